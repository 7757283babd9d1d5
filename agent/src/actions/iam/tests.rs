//! Roles and instance profiles as clients see them.

use crate::actions::testing::Client;
use crate::query::{ApiError, Caller, Service};
use crate::records::{InstanceState, Tags};

const TRUST: &str = "AssumeRolePolicyDocument=%7B%22Statement%22%3A%7B%22Effect%22%3A%22Allow%22%2C%22Principal%22\
    %3A%7B%22Service%22%3A%22ec2.amazonaws.com%22%7D%2C%22Action%22%3A%22sts%3AAssumeRole%22%7D%7D";

fn role(name: &str) -> String {
    format!("CreateRole&RoleName={name}&{TRUST}")
}

/// What the elements of a name have.
fn texts(answer: &str, element: &str) -> Vec<String> {
    let (start, end) = (format!("<{element}>"), format!("</{element}>"));
    let after = answer.split(&start).skip(1);
    after.map(|rest| rest.split(&end).next().unwrap().to_owned()).collect()
}

fn refuses(client: &Client, table: &[(&str, &str, u16)]) {
    for (request, code, status) in table {
        let error = client.ask_iam(request).expect_err(request);
        assert_eq!((error.code, error.status()), (*code, *status), "{request}: {error}");
    }
}

#[test]
fn a_role_is_made_shown_changed_and_deleted() {
    let client = Client::new();
    let made = client
        .ask_iam(&format!("{}&Path=/teams/web/&Description=for+tests&Tags.member.1.Key=a", role("web")));
    let made = made.unwrap();
    assert_eq!(texts(&made, "Arn"), ["arn:aws:iam::000000000000:role/teams/web/web"]);
    let id = &texts(&made, "RoleId")[0];
    assert!(id.starts_with("AROA") && id.len() == 21, "{id}");
    let shown = client.ask_iam("GetRole&RoleName=web").unwrap();
    for piece in [
        "<GetRoleResult><Role><Path>/teams/web/</Path><RoleName>web</RoleName>",
        "<AssumeRolePolicyDocument>%7B%22Statement%22%3A",
        "<Description>for tests</Description><MaxSessionDuration>3600</MaxSessionDuration>",
        "<Tags><member><Key>a</Key><Value></Value></member></Tags></Role></GetRoleResult>",
    ] {
        assert!(shown.contains(piece), "{piece}: {shown}");
    }
    let updated = client.ask_iam("UpdateRole&RoleName=web&Description=&MaxSessionDuration=7200").unwrap();
    assert!(updated.contains("<UpdateRoleResult/><ResponseMetadata>"), "{updated}");
    let shown = client.ask_iam("GetRole&RoleName=web").unwrap();
    assert!(!shown.contains("Description") && shown.contains(">7200<"), "{shown}");

    client.permit("web", r#""Effect":"Allow","Action":"ec2:*""#).unwrap();
    let names = client.ask_iam("ListRolePolicies&RoleName=web").unwrap();
    assert!(names.contains("<PolicyNames><member>rights</member></PolicyNames>"), "{names}");
    let shown = client.ask_iam("GetRolePolicy&RoleName=web&PolicyName=rights").unwrap();
    assert!(texts(&shown, "PolicyDocument")[0].contains("%22ec2%3A%2A%22"), "{shown}");
    let none = client.ask_iam("ListAttachedRolePolicies&RoleName=web").unwrap();
    assert!(none.contains("<AttachedPolicies/><IsTruncated>false</IsTruncated>"), "{none}");

    refuses(&client, &[("DeleteRole&RoleName=web", "DeleteConflict", 409)]);
    let deleted = client.ask_iam("DeleteRolePolicy&RoleName=web&PolicyName=rights").unwrap();
    assert!(!deleted.contains("Result"), "{deleted}");
    client.ask_iam("DeleteRole&RoleName=web").unwrap();
    let id = id.clone();
    assert!(client.agent.state.read().get::<Tags>(id).is_none());
    refuses(&client, &[("GetRole&RoleName=web", "NoSuchEntity", 404)]);
}

#[test]
fn a_profile_has_one_role_and_keeps_it_from_being_deleted() {
    let client = Client::new();
    client.ask_iam(&role("web")).unwrap();
    client.ask_iam(&role("db")).unwrap();
    let made = client.ask_iam("CreateInstanceProfile&InstanceProfileName=web&Path=/a/").unwrap();
    assert_eq!(texts(&made, "Arn"), ["arn:aws:iam::000000000000:instance-profile/a/web"]);
    assert!(made.contains("<Roles/>"), "{made}");
    let (add, remove) = ("AddRoleToInstanceProfile", "RemoveRoleFromInstanceProfile");
    let with = |action: &str, role: &str| format!("{action}&InstanceProfileName=web&RoleName={role}");
    client.ask_iam(&with(add, "web")).unwrap();
    let shown = client.ask_iam("GetInstanceProfile&InstanceProfileName=web").unwrap();
    assert!(shown.contains("<Roles><member><Path>/</Path><RoleName>web</RoleName>"), "{shown}");
    for (role, count) in [("web", 1), ("db", 0)] {
        let found = client.ask_iam(&format!("ListInstanceProfilesForRole&RoleName={role}")).unwrap();
        assert_eq!(texts(&found, "InstanceProfileName").len(), count);
    }
    refuses(
        &client,
        &[
            (&with(add, "web"), "LimitExceeded", 409),
            (&with(add, "db"), "LimitExceeded", 409),
            (&with(add, "cat"), "NoSuchEntity", 404),
            (&with(remove, "db"), "NoSuchEntity", 404),
            ("DeleteRole&RoleName=web", "DeleteConflict", 409),
            ("DeleteInstanceProfile&InstanceProfileName=web", "DeleteConflict", 409),
        ],
    );
    client.ask_iam(&with(remove, "web")).unwrap();
    client.ask_iam("DeleteRole&RoleName=web").unwrap();
    client.ask_iam("DeleteInstanceProfile&InstanceProfileName=web").unwrap();
    refuses(&client, &[("GetInstanceProfile&InstanceProfileName=web", "NoSuchEntity", 404)]);
}

#[test]
fn a_profile_that_is_used_can_be_deleted_and_another_one_is_not_it() {
    let client = Client::new();
    client.profile("web");
    let id = client.instance(InstanceState::Running);
    client.ask(&format!("AssociateIamInstanceProfile&InstanceId={id}&IamInstanceProfile.Name=web")).unwrap();
    let with_role = || {
        let world = client.agent.state.read();
        let instance = world.get::<crate::records::Instance>(&id).unwrap();
        (
            crate::iam::profile_of(&world, instance).is_some(),
            crate::iam::credentials(&world, instance, jiff::Timestamp::now()).is_some(),
        )
    };
    assert_eq!(with_role(), (true, true));
    client.ask_iam("RemoveRoleFromInstanceProfile&InstanceProfileName=web&RoleName=web").unwrap();
    assert_eq!(with_role(), (true, false));
    client.ask_iam("DeleteInstanceProfile&InstanceProfileName=web").unwrap();
    client.ask_iam("CreateInstanceProfile&InstanceProfileName=web").unwrap();
    client.ask_iam("AddRoleToInstanceProfile&InstanceProfileName=web&RoleName=web").unwrap();
    assert_eq!(with_role(), (false, false));
    assert_eq!(client.texts("DescribeIamInstanceProfileAssociations", "instanceId"), [id.as_str()]);
}

#[test]
fn what_is_wrong_has_iams_codes() {
    let client = Client::new();
    client.ask_iam(&role("web")).unwrap();
    client.ask_iam("CreateInstanceProfile&InstanceProfileName=web").unwrap();
    let long = "x".repeat(65);
    let policy = |document: &str| {
        let document: String = form_urlencoded::byte_serialize(document.as_bytes()).collect();
        format!("PutRolePolicy&RoleName=web&PolicyName=p&PolicyDocument={document}")
    };
    let narrow =
        r#"{"Statement":{"Effect":"Allow","Action":"ec2:*","Resource":"arn:aws:ec2:*:*:instance/i-1"}}"#;
    let large = format!(
        r#"{{"Statement":{{"Effect":"Allow","Action":"ec2:{}","Resource":"*"}}}}"#,
        "x".repeat(10_240)
    );
    refuses(
        &client,
        &[
            (&role("web"), "EntityAlreadyExists", 409),
            (&role("WEB"), "EntityAlreadyExists", 409),
            (&role(""), "ValidationError", 400),
            (&role("a/b"), "ValidationError", 400),
            (&role(&long), "ValidationError", 400),
            (&format!("{}&Path=a", role("a")), "ValidationError", 400),
            (&format!("{}&Path=//", role("a")), "ValidationError", 400),
            (&format!("{}&MaxSessionDuration=1", role("a")), "ValidationError", 400),
            (&format!("{}&PermissionsBoundary=x", role("a")), "UnsupportedOperation", 400),
            (&format!("{}&Colour=red", role("a")), "ValidationError", 400),
            (&format!("{}&Tags=x", role("a")), "ValidationError", 400),
            (&format!("{}&Tags.1.Key=x", role("a")), "ValidationError", 400),
            (&format!("{}&Tags.member.1.Key=aws:x", role("a")), "ValidationError", 400),
            (&format!("{}&DryRun=true", role("a")), "ValidationError", 400),
            ("CreateRole&RoleName=a", "ValidationError", 400),
            ("CreateRole&RoleName=a&AssumeRolePolicyDocument=x", "MalformedPolicyDocument", 400),
            ("UpdateAssumeRolePolicy&RoleName=web&PolicyDocument=x", "MalformedPolicyDocument", 400),
            (&policy("{}"), "MalformedPolicyDocument", 400),
            (&policy(narrow), "MalformedPolicyDocument", 400),
            (&policy(&large), "LimitExceeded", 409),
            (&policy(&" ".repeat(131_073)), "ValidationError", 400),
            ("GetRolePolicy&RoleName=web&PolicyName=p", "NoSuchEntity", 404),
            ("DeleteRolePolicy&RoleName=web&PolicyName=p", "NoSuchEntity", 404),
            ("ListRolePolicies&RoleName=cat", "NoSuchEntity", 404),
            ("ListAttachedRolePolicies&RoleName=cat", "NoSuchEntity", 404),
            ("ListInstanceProfilesForRole&RoleName=cat", "NoSuchEntity", 404),
            ("CreateInstanceProfile&InstanceProfileName=Web", "EntityAlreadyExists", 409),
            ("DeleteInstanceProfile&InstanceProfileName=cat", "NoSuchEntity", 404),
            ("ListRoles&MaxItems=0", "ValidationError", 400),
            ("ListRoles&Marker=?", "ValidationError", 400),
            ("GetUser&UserName=me", "NoSuchEntity", 404),
            ("CreateUser&UserName=me", "InvalidAction", 400),
        ],
    );
    let error = client.ask_iam(&policy(narrow)).unwrap_err();
    assert!(error.message.contains("arn:aws:ec2:*:*:instance/i-1"), "{error}");
    assert_eq!(texts(&client.ask_iam("ListRoles").unwrap(), "RoleName"), ["web"]);
    // An empty list, as SDKs write it.
    client.ask_iam(&format!("{}&Tags=", role("a"))).unwrap();
}

#[test]
fn lists_come_in_pages_and_are_the_accounts_own() {
    let client = Client::new();
    for name in ["c", "a", "b"] {
        client.ask_iam(&format!("{}&Path=/{name}/", role(name))).unwrap();
        client.ask_iam(&format!("CreateInstanceProfile&InstanceProfileName={name}")).unwrap();
    }
    for (action, element) in [("ListRoles", "RoleName"), ("ListInstanceProfiles", "InstanceProfileName")] {
        let first = client.ask_iam(&format!("{action}&MaxItems=2")).unwrap();
        assert_eq!(texts(&first, element), ["a", "b"]);
        assert_eq!(texts(&first, "IsTruncated"), ["true"]);
        let marker = &texts(&first, "Marker")[0];
        let rest = client.ask_iam(&format!("{action}&MaxItems=2&Marker={marker}")).unwrap();
        assert_eq!((texts(&rest, element), texts(&rest, "Marker")), (vec!["c".to_owned()], vec![]));
    }
    let found = client.ask_iam("ListRoles&PathPrefix=/b").unwrap();
    assert_eq!(texts(&found, "RoleName"), ["b"]);
    let other = Caller::root("111111111111", "AKIA");
    let ask = |request: &str| client.ask_by(&other, Service::Iam, request);
    assert!(texts(&ask("ListRoles").unwrap(), "RoleName").is_empty());
    assert_eq!(ask("DeleteRole&RoleName=a").unwrap_err().code, "NoSuchEntity");
    ask(&role("a")).unwrap();
}

#[test]
fn roles_and_profiles_have_tags() {
    let client = Client::new();
    client.profile("web");
    for (kind, name) in [("Role", "RoleName"), ("InstanceProfile", "InstanceProfileName")] {
        let tag = |rest: &str| client.ask_iam(&format!("Tag{kind}&{name}=web&{rest}"));
        tag("Tags.member.1.Key=b&Tags.member.1.Value=1&Tags.member.2.Key=a&Tags.member.2.Value=2").unwrap();
        tag("Tags.member.1.Key=b&Tags.member.1.Value=3").unwrap();
        let listed = client.ask_iam(&format!("List{kind}Tags&{name}=web")).unwrap();
        assert_eq!(
            (texts(&listed, "Key"), texts(&listed, "Value")),
            (vec!["a".into(), "b".into()], vec!["2".into(), "3".into()])
        );
        client.ask_iam(&format!("Untag{kind}&{name}=web&TagKeys.member.1=a&TagKeys.member.2=c")).unwrap();
        let listed = client.ask_iam(&format!("List{kind}Tags&{name}=web")).unwrap();
        assert_eq!(texts(&listed, "Key"), ["b"]);
        client.ask_iam(&format!("Untag{kind}&{name}=web&TagKeys.member.1=b")).unwrap();
        let many: String = (0..51).map(|n| format!("&Tags.member.{}.Key=k{n}", n + 1)).collect();
        assert_eq!(tag(&many[1..]).unwrap_err().code, "LimitExceeded");
    }
    // They are not EC2's.
    assert!(client.texts("DescribeTags", "key").is_empty());
}

#[test]
fn the_account_is_its_only_user() {
    let client = Client::new();
    let user = client.ask_iam("GetUser").unwrap();
    assert_eq!(texts(&user, "Arn"), ["arn:aws:iam::000000000000:root"]);
    assert_eq!(texts(&user, "UserId"), ["000000000000"]);
}

/// What a role whose policy has a statement is answered.
fn as_role(client: &Client, statement: &str, service: Service, request: &str) -> Result<String, ApiError> {
    client.permit("web", statement).unwrap();
    let world = client.agent.state.read();
    let role = world.all::<crate::records::Role>().find(|role| role.name == "web").unwrap();
    let caller = Caller {
        arn: "arn:aws:sts::000000000000:assumed-role/web/i-1".into(),
        role: Some(role.id.clone()),
        ..Caller::root("000000000000", "ASIA")
    };
    client.ask_by(&caller, service, request)
}

#[test]
fn a_role_does_what_its_policies_allow_and_nothing_else() {
    let client = Client::new();
    client.profile("web");
    client.profile("admin");
    let id = client.instance(InstanceState::Running);
    let describe = r#""Effect":"Allow","Action":"ec2:Describe*""#;
    let stop = format!("StopInstances&InstanceId.1={id}");
    let dry = format!("{stop}&DryRun=true");
    let associate = format!("AssociateIamInstanceProfile&InstanceId={id}&IamInstanceProfile.Name=admin");
    let all_of_ec2 = r#""Effect":"Allow","Action":["ec2:*","iam:AddRoleToInstanceProfile"]"#;
    let all = r#""Effect":"Allow","Action":"*""#;
    let nothing = r#""Effect":"Deny","Action":"*""#;
    let operator = r#""Effect":"Allow","Action":"innkeeper:*""#;
    let both = r#""Effect":"Allow","Action":["*","innkeeper:*"]"#;
    let document = format!(r#"{{"Statement":{{{operator},"Resource":"*"}}}}"#);
    let document: String = form_urlencoded::byte_serialize(document.as_bytes()).collect();
    let promote = format!("PutRolePolicy&RoleName=web&PolicyName=more&PolicyDocument={document}");
    let run =
        "RunInstances&MinCount=1&MaxCount=1&IamInstanceProfile.Name=admin&ImageId=ami-00000000000000000";
    let add = "AddRoleToInstanceProfile&InstanceProfileName=web&RoleName=admin";
    for (statement, service, request, code) in [
        (describe, Service::Ec2, "DescribeInstances", ""),
        (describe, Service::Ec2, "DescribeInstances&DryRun=true", "DryRunOperation"),
        (describe, Service::Ec2, stop.as_str(), "UnauthorizedOperation"),
        (describe, Service::Ec2, &dry, "UnauthorizedOperation"),
        // Whoever may not do it does not learn what else is wrong.
        (describe, Service::Ec2, "StopInstances&Colour=red", "UnauthorizedOperation"),
        (describe, Service::Ec2, "StopInstance", "InvalidAction"),
        (describe, Service::Iam, "GetRole&RoleName=web", "AccessDenied"),
        (describe, Service::Sts, "GetCallerIdentity", ""),
        (nothing, Service::Sts, "GetCallerIdentity", ""),
        (nothing, Service::Ec2, "DescribeInstances", "UnauthorizedOperation"),
        (all, Service::Ec2, &dry, "DryRunOperation"),
        (all, Service::Iam, "GetRole&RoleName=web", ""),
        (all, Service::Iam, "GetUser", "ValidationError"),
        (all, Service::Ec2, "InnkeeperDescribeHost", "UnauthorizedOperation"),
        (operator, Service::Ec2, "InnkeeperDescribeState", ""),
        // Nobody makes an operator of himself.
        (all, Service::Iam, &promote, "AccessDenied"),
        (both, Service::Iam, &promote, ""),
        // Nobody gives a role who may not.
        (all_of_ec2, Service::Ec2, &associate, "UnauthorizedOperation"),
        (all_of_ec2, Service::Iam, add, "AccessDenied"),
        (all, Service::Iam, add, "LimitExceeded"),
        (all, Service::Ec2, run, "InvalidAMIID.NotFound"),
        (all, Service::Ec2, &associate, ""),
    ] {
        let answer = as_role(&client, statement, service, request);
        assert_eq!(answer.as_ref().map_or_else(|error| error.code, |_| ""), code, "{request}: {answer:?}");
    }
    let message = |statement| as_role(&client, statement, Service::Ec2, &stop).unwrap_err().message;
    assert_eq!(
        message(describe),
        "You are not authorized to perform this operation. User: \
         arn:aws:sts::000000000000:assumed-role/web/i-1 is not authorized to perform: ec2:StopInstances because no \
         identity-based policy allows the ec2:StopInstances action"
    );
    assert!(
        message(nothing).ends_with("ec2:StopInstances with an explicit deny in an identity-based policy")
    );
}
