//! Who a request comes from, and what it may do.
//!
//! An access key of the account may do everything. An instance that has an instance profile is given temporary
//! credentials ([`session`]) by the metadata service; with these it is the profile's role, and may do what the role's
//! policies allow ([`policy`]). The role is looked up with each request, so that a policy that is changed counts at once.
//!
//! [`identify`] finds out who has signed a request, [`authorise`] whether that may be done; the records are
//! [`Role`] and [`InstanceProfile`].

pub mod policy;
pub mod session;

use jiff::Timestamp;

use crate::query::sigv4::Unfit;
use crate::query::{ApiError, Caller, Service};
use crate::records::{AccessKey, Instance, InstanceProfile, InstanceState, Role, Secret};
use crate::state::World;

use self::policy::{Decision, Policy, decide, trusts_ec2};
use self::session::Claims;

/// What following `/events` is called in policies.
pub const FOLLOW_EVENTS: &str = "innkeeper:FollowEvents";

/// All that the operator may do, as policies say it.
pub const ALL_OF_OPERATORS: &str = "innkeeper:*";

/// What giving an instance a role is called in policies, besides the action that does it. Whoever may launch instances
/// could otherwise have every role.
pub const PASS_ROLE: &str = "iam:PassRole";

/// Temporary credentials, as the metadata service shows them.
#[derive(Clone, PartialEq, Eq)]
pub struct SessionCredentials {
    /// The role's name.
    pub role: String,
    /// `ASIA…`.
    pub access_key_id: String,
    /// What goes with it.
    pub secret_access_key: String,
    /// What has to be sent with each request.
    pub token: String,
    /// When they were made.
    pub last_updated: Timestamp,
    /// When they end.
    pub expiration: Timestamp,
}

impl std::fmt::Debug for SessionCredentials {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter
            .debug_struct("SessionCredentials")
            .field("role", &self.role)
            .field("access_key_id", &self.access_key_id)
            .finish_non_exhaustive()
    }
}

/// The instance profile of an instance, as the metadata service shows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Profile {
    /// Its ARN.
    pub arn: String,
    /// `AIPA…`.
    pub id: String,
    /// The name of its role, if it has one.
    pub role: Option<String>,
    /// Since when the instance has it.
    pub last_updated: Timestamp,
}

/// An instance's profile, unless it was deleted since.
pub fn profile_of(world: &World, instance: &Instance) -> Option<Profile> {
    let association = instance.instance_profile.as_ref()?;
    let profile = world.get::<InstanceProfile>(&association.profile)?;
    let role = role_of(world, profile).map(|role| role.name.clone());
    Some(Profile { arn: profile.arn(), id: profile.id.clone(), role, last_updated: association.since })
}

/// An instance's temporary credentials. None without a profile, with one that has no role, or with a role that does not
/// trust EC2.
pub fn credentials(world: &World, instance: &Instance, now: Timestamp) -> Option<SessionCredentials> {
    let association = instance.instance_profile.as_ref()?;
    let role = role_of(world, world.get::<InstanceProfile>(&association.profile)?)?;
    if trusts_ec2(&role.trust) != Ok(true) {
        return None;
    }
    let claims = Claims::current(&instance.id, &role.id, association.since, now);
    let made = claims.sign(world.get::<Secret>(Secret::THIS)?);
    Some(SessionCredentials {
        role: role.name.clone(),
        access_key_id: made.access_key_id,
        secret_access_key: made.secret_access_key,
        token: made.token,
        last_updated: claims.issued,
        expiration: claims.expires,
    })
}

fn role_of<'w>(world: &'w World, profile: &InstanceProfile) -> Option<&'w Role> {
    world.get::<Role>(profile.role.as_ref()?).map(AsRef::as_ref)
}

/// Who may have signed a request, if what it was signed with fits.
#[derive(Clone, PartialEq, Eq)]
pub struct Identity {
    /// The access key's secret half.
    pub secret: String,
    /// Who has it.
    pub caller: Caller,
}

/// Finds out whose an access key is. A temporary one goes with a token, and another one without.
pub fn identify(
    world: &World,
    access_key: &str,
    token: Option<&str>,
    now: Timestamp,
) -> Result<Identity, Unfit> {
    let Some(token) = token else {
        let key = world.get::<AccessKey>(access_key).ok_or(Unfit::Unknown)?;
        return Ok(Identity { secret: key.secret.clone(), caller: Caller::root(&key.account, access_key) });
    };
    let master = world.get::<Secret>(Secret::THIS).ok_or(Unfit::Unknown)?;
    let claims = Claims::verify(master, access_key, token, now)?;
    let instance = world.get::<Instance>(&claims.instance).ok_or(Unfit::Unknown)?;
    let role = world.get::<Role>(&claims.role).ok_or(Unfit::Unknown)?;
    // Nobody is left to whom they were given.
    if instance.lifecycle.state == InstanceState::Terminated {
        return Err(Unfit::Unknown);
    }
    let caller = Caller {
        account: role.owner.clone(),
        access_key: access_key.to_owned(),
        arn: format!("arn:aws:sts::{}:assumed-role/{}/{}", role.owner, role.name, instance.id),
        user_id: format!("{}:{}", role.id, instance.id),
        role: Some(role.id.clone()),
    };
    Ok(Identity { secret: claims.secret_key(master), caller })
}

/// What an action is called in policies, such as `ec2:DescribeInstances`. The operator's own are `innkeeper:DescribeHost`
/// and so on.
pub fn permission(service: Service, action: &str) -> String {
    match action.strip_prefix("Innkeeper") {
        Some(own) if service == Service::Ec2 => format!("innkeeper:{own}"),
        _ => format!("{}:{action}", service.name()),
    }
}

/// Refuses what the caller may not do, in the words of the service that was asked. `permission` is what it is called in
/// policies.
pub fn authorise(world: &World, caller: &Caller, service: Service, permission: &str) -> Result<(), ApiError> {
    // Who one is, one may always know.
    let Some(role) = caller.role.as_ref().filter(|_| permission != "sts:GetCallerIdentity") else {
        return Ok(());
    };
    // Without the role, nothing allows anything.
    let documents = world.get::<Role>(role).into_iter().flat_map(|role| role.policies.values());
    let policies: Vec<Policy> =
        documents.map(|document| Policy::parse(document)).collect::<Result<_, _>>().map_err(|error| {
            ApiError::internal(format_args!("a policy of {role} cannot be read: {error}"))
        })?;
    let reason = match decide(&policies, permission) {
        Decision::Allowed => return Ok(()),
        Decision::NotAllowed => format!("because no identity-based policy allows the {permission} action"),
        Decision::Denied => "with an explicit deny in an identity-based policy".to_owned(),
    };
    let message = format!("User: {} is not authorized to perform: {permission} {reason}", caller.arn);
    Err(match service {
        Service::Ec2 => ApiError::new(
            "UnauthorizedOperation",
            format!("You are not authorized to perform this operation. {message}"),
        ),
        Service::Iam | Service::Sts => ApiError::new("AccessDenied", message),
    })
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, SystemTime};

    use aws_credential_types::Credentials;
    use aws_sigv4::http_request::{SignableBody, SignableRequest, SigningSettings, sign};
    use aws_sigv4::sign::v4::SigningParams;
    use jiff::SignedDuration;

    use super::*;
    use crate::actions::testing::Client;
    use crate::ids::InstanceId;
    use crate::query::sigv4::{self, Signed};

    const BODY: &str = "Action=DescribeInstances&Version=2016-11-15";

    /// A client with an instance that has a profile, whose role may describe.
    fn client() -> (Client, InstanceId) {
        let client = Client::new();
        client.profile("web");
        client.permit("web", r#""Effect":"Allow","Action":"ec2:Describe*""#).unwrap();
        let id = client.instance(InstanceState::Running);
        client
            .ask(&format!("AssociateIamInstanceProfile&InstanceId={id}&IamInstanceProfile.Name=web"))
            .unwrap();
        (client, id)
    }

    fn given(client: &Client, id: &InstanceId, now: Timestamp) -> Option<SessionCredentials> {
        let world = client.agent.state.read();
        credentials(&world, world.get::<Instance>(id).unwrap(), now)
    }

    /// What Amazon's signer has signed with credentials, and the agent has found of it.
    fn signed(
        client: &Client,
        with: &SessionCredentials,
        service: &str,
        now: Timestamp,
    ) -> Result<Caller, ApiError> {
        let token = Some(with.token.clone());
        let identity =
            Credentials::new(&with.access_key_id, &with.secret_access_key, token, None, "test").into();
        let time = SystemTime::UNIX_EPOCH + Duration::from_secs(now.as_second() as u64);
        let parameters = SigningParams::builder()
            .identity(&identity)
            .region("us-east-1")
            .name(service)
            .time(time)
            .settings(SigningSettings::default())
            .build()
            .unwrap()
            .into();
        let mut headers = vec![("host".to_owned(), "169.254.169.254".to_owned())];
        let borrowed = headers.iter().map(|(name, value)| (name.as_str(), value.as_str()));
        let body = SignableBody::Bytes(BODY.as_bytes());
        let request = SignableRequest::new("POST", "http://169.254.169.254/", borrowed, body).unwrap();
        let (instructions, _) = sign(request, &parameters).unwrap().into_parts();
        let added: Vec<_> =
            instructions.headers().map(|(name, value)| (name.to_owned(), value.to_owned())).collect();
        headers.extend(added);
        let request =
            Signed { method: "POST", path: "/", query: &[], headers: &headers, body: BODY.as_bytes() };
        let world = client.agent.state.read();
        let mut found = None;
        sigv4::verify(request, "us-east-1", now, |key, token| {
            let Identity { secret, caller } = identify(&world, key, token, now)?;
            found = Some(caller);
            Ok(secret)
        })?;
        Ok(found.unwrap())
    }

    #[test]
    fn an_instance_signs_with_what_it_is_given_and_does_what_its_role_may() {
        let (client, id) = client();
        let now = Timestamp::now();
        let with = given(&client, &id, now).unwrap();
        assert_eq!(with.role, "web");
        assert!(!format!("{with:?}").contains(&with.secret_access_key));
        let caller = signed(&client, &with, "ec2", now).unwrap();
        assert_eq!(caller.arn, format!("arn:aws:sts::000000000000:assumed-role/web/{id}"));
        assert!(client.ask_by(&caller, Service::Ec2, "DescribeInstances").is_ok());
        let stop = format!("StopInstances&InstanceId.1={id}");
        let code = |request: &str| client.ask_by(&caller, Service::Ec2, request).unwrap_err().code;
        assert_eq!(code(&stop), "UnauthorizedOperation");
        let identity = client.ask_by(&caller, Service::Sts, "GetCallerIdentity").unwrap();
        assert!(identity.contains(&format!("<Arn>{}</Arn><UserId>AROA", caller.arn)), "{identity}");
        assert!(identity.contains(&format!(":{id}</UserId>")), "{identity}");
        // A policy that is changed counts at once.
        client.permit("web", r#""Effect":"Allow","Action":"ec2:DescribeVpcs""#).unwrap();
        assert_eq!(code("DescribeInstances"), "UnauthorizedOperation");
    }

    #[test]
    fn credentials_change_and_end_and_survive_a_restart() {
        let (client, id) = client();
        let now = Timestamp::now();
        let later = |hours| now + SignedDuration::from_hours(hours);
        let first = given(&client, &id, now).unwrap();
        assert_eq!(first, given(&client, &id, later(4)).unwrap());
        let second = given(&client, &id, later(5)).unwrap();
        assert_ne!(first.access_key_id, second.access_key_id);
        for with in [&first, &second] {
            assert!(signed(&client, with, "ec2", later(5)).is_ok());
        }
        assert_eq!(signed(&client, &first, "ec2", later(6)).unwrap_err().code, "RequestExpired");
        assert_eq!(signed(&client, &first, "iam", later(6)).unwrap_err().code, "ExpiredToken");
        assert!(signed(&client, &second, "ec2", later(6)).is_ok());
        // Taken away from the instance, they are good until their end, as in AWS.
        let association = client.text("DescribeIamInstanceProfileAssociations", "associationId");
        client.ask(&format!("DisassociateIamInstanceProfile&AssociationId={association}")).unwrap();
        assert_eq!(given(&client, &id, now), None);
        assert!(signed(&client, &first, "ec2", later(1)).is_ok());
    }

    #[test]
    fn credentials_end_with_their_role_and_their_instance() {
        let (client, id) = client();
        let now = Timestamp::now();
        let with = given(&client, &id, now).unwrap();
        for (state, code) in [
            (InstanceState::Stopped, ""),
            (InstanceState::ShuttingDown, ""),
            (InstanceState::Terminated, "AuthFailure"),
            (InstanceState::Running, ""),
        ] {
            let mut instance = Instance::clone(client.agent.state.read().get::<Instance>(&id).unwrap());
            instance.lifecycle.state = state;
            client.put(instance);
            let found = signed(&client, &with, "ec2", now).map_or_else(|error| error.code, |_| "");
            assert_eq!(found, code, "{state:?}");
        }
        // A new role of the same name is another one.
        for request in [
            "DeleteRolePolicy&RoleName=web&PolicyName=rights",
            "RemoveRoleFromInstanceProfile&InstanceProfileName=web&RoleName=web",
            "DeleteRole&RoleName=web",
            "DeleteInstanceProfile&InstanceProfileName=web",
        ] {
            client.ask_iam(request).unwrap();
        }
        client.profile("web");
        assert_eq!(signed(&client, &with, "ec2", now).unwrap_err().code, "AuthFailure");
        assert_eq!(signed(&client, &with, "sts", now).unwrap_err().code, "InvalidClientTokenId");
    }

    #[test]
    fn a_role_that_does_not_trust_ec2_is_given_to_nobody() {
        let (client, id) = client();
        let trust = "%7B%22Statement%22%3A%7B%22Effect%22%3A%22Allow%22%2C%22Principal%22%3A%7B%22Service%22%3A\
                     %22lambda.amazonaws.com%22%7D%2C%22Action%22%3A%22sts%3AAssumeRole%22%7D%7D";
        client.ask_iam(&format!("UpdateAssumeRolePolicy&RoleName=web&PolicyDocument={trust}")).unwrap();
        assert_eq!(given(&client, &id, Timestamp::now()), None);
    }

    #[test]
    fn only_what_is_the_operators_own_is_called_so() {
        for (service, action, expected) in [
            (Service::Ec2, "DescribeInstances", "ec2:DescribeInstances"),
            (Service::Ec2, "InnkeeperDescribeHost", "innkeeper:DescribeHost"),
            (Service::Iam, "GetRole", "iam:GetRole"),
            (Service::Sts, "GetCallerIdentity", "sts:GetCallerIdentity"),
        ] {
            assert_eq!(permission(service, action), expected);
        }
        let (client, _) = client();
        let world = client.agent.state.read();
        let role = world.all::<Role>().next().map(|role| role.id.clone());
        let caller = Caller { role, ..Caller::root("000000000000", "ASIA") };
        let refused = authorise(&world, &caller, Service::Ec2, FOLLOW_EVENTS).unwrap_err();
        assert_eq!(refused.code, "UnauthorizedOperation");
    }
}
