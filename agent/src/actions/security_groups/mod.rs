//! Security groups and their rules.

mod authorize;
mod create_security_group;
mod delete_security_group;
mod describe_security_group_rules;
mod describe_security_groups;
mod modify_security_group_rules;
mod permissions;
mod request;
mod revoke;
mod rule_item;
mod update_descriptions;

use std::collections::HashSet;
use std::sync::Arc;

use crate::actions::lookup::find;
use crate::query::dispatch::Registry;
use crate::query::{ApiError, Context};
use crate::records::{SecurityGroup, Vpc};
use crate::state::World;
use permissions::{Allowed, IpPermission, UserIdGroupPair, spread};

pub(super) fn register(registry: &mut Registry) {
    registry.add::<authorize::AuthorizeSecurityGroupEgress>();
    registry.add::<authorize::AuthorizeSecurityGroupIngress>();
    registry.add::<create_security_group::CreateSecurityGroup>();
    registry.add::<delete_security_group::DeleteSecurityGroup>();
    registry.add::<describe_security_group_rules::DescribeSecurityGroupRules>();
    registry.add::<describe_security_groups::DescribeSecurityGroups>();
    registry.add::<modify_security_group_rules::ModifySecurityGroupRules>();
    registry.add::<revoke::RevokeSecurityGroupEgress>();
    registry.add::<revoke::RevokeSecurityGroupIngress>();
    registry.add::<update_descriptions::UpdateSecurityGroupRuleDescriptionsEgress>();
    registry.add::<update_descriptions::UpdateSecurityGroupRuleDescriptionsIngress>();
}

/// Whether a group's VPC is the default one, in which groups can be called by their names.
fn in_default_vpc(world: &World, group: &SecurityGroup) -> bool {
    world.get::<Vpc>(&group.vpc).is_some_and(|vpc| vpc.is_default)
}

/// The group that a request means by an id, or by a name in the default VPC.
fn meant<'w>(
    world: &'w World,
    context: Context<'_>,
    id: Option<&str>,
    name: Option<&str>,
) -> Result<&'w Arc<SecurityGroup>, ApiError> {
    match (id, name) {
        (Some(id), None) => find(world, context, id),
        (None, Some(name)) => by_name(world, context, name),
        (Some(_), Some(_)) => {
            let message = "The parameter groupName cannot be used with the parameter groupId";
            Err(ApiError::combination(message))
        }
        (None, None) => Err(ApiError::missing("groupName or groupId")),
    }
}

/// The group of the default VPC with this name.
fn by_name<'w>(
    world: &'w World,
    context: Context<'_>,
    name: &str,
) -> Result<&'w Arc<SecurityGroup>, ApiError> {
    let mut own = world.all::<SecurityGroup>().filter(|group| group.owner == context.caller.account);
    own.find(|group| group.name == name && in_default_vpc(world, group)).ok_or_else(|| {
        let message = format!("The security group '{name}' does not exist in default VPC");
        ApiError::new("InvalidGroup.NotFound", message)
    })
}

/// What EC2 says of a rule's id that no rule has.
fn no_rule(id: &str) -> ApiError {
    let message = format!("The security group rule ID '{id}' does not exist");
    ApiError::new("InvalidSecurityGroupRuleId.NotFound", message)
}

/// What permissions of a group allow, peer by peer. Groups that they name are of the same VPC.
fn spread_all(
    world: &World,
    context: Context<'_>,
    group: &SecurityGroup,
    permissions: &[IpPermission],
) -> Result<Vec<(Allowed, Option<String>)>, ApiError> {
    let other = |pair: &UserIdGroupPair| {
        if let Some(user) = pair.user_id.as_ref().filter(|user| **user != group.owner) {
            let message =
                format!("The security group is of another account ({user}), which cannot be reached");
            return Err(ApiError::new("InvalidGroup.NotFound", message));
        }
        let other = meant(world, context, pair.group_id.as_deref(), pair.group_name.as_deref())?;
        if other.vpc != group.vpc {
            let message = "You have specified two resources that belong to different networks.";
            return Err(ApiError::new("InvalidGroup.NotFound", message));
        }
        Ok(other.id.clone())
    };
    let mut all = Vec::new();
    for permission in permissions {
        all.extend(spread(permission, other)?);
    }
    let mut seen = HashSet::with_capacity(all.len());
    for (allowed, _) in &all {
        if !seen.insert(allowed) {
            let message = format!("The same permission must not appear multiple times: {allowed}");
            return Err(ApiError::new("InvalidParameterValue", message));
        }
    }
    Ok(all)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::actions::testing::Client;
    use crate::ids::VpcId;
    use crate::records::InstanceState;

    const SSH: &str = "&IpPermissions.1.IpProtocol=tcp&IpPermissions.1.FromPort=22&IpPermissions.1.ToPort=22\
                       &IpPermissions.1.IpRanges.1.CidrIp=10.0.0.0/8";

    fn create(client: &Client, name: &str) -> String {
        client.text(&format!("CreateSecurityGroup&GroupName={name}&GroupDescription=d"), "groupId")
    }

    #[test]
    fn a_group_lives_from_creation_to_deletion() {
        let client = Client::new();
        let id = create(&client, "web");
        let shown = client.ask(&format!("DescribeSecurityGroups&GroupId.1={id}")).unwrap();
        assert!(
            shown.contains("<ipPermissions/>") && shown.contains("<cidrIp>0.0.0.0/0</cidrIp>"),
            "{shown}"
        );
        assert_eq!(client.texts("DescribeSecurityGroups&GroupName.1=web", "groupId"), [&*id]);
        client.refuses(&[
            ("CreateSecurityGroup&GroupName=web&GroupDescription=d", "InvalidGroup.Duplicate"),
            ("CreateSecurityGroup&GroupName=default&GroupDescription=d", "InvalidGroup.Reserved"),
            ("CreateSecurityGroup&GroupName=sg-1&GroupDescription=d", "InvalidParameterValue"),
            ("CreateSecurityGroup&GroupName=%C3%A4&GroupDescription=d", "InvalidParameterValue"),
            ("CreateSecurityGroup&GroupName=a&GroupDescription=<", "InvalidParameterValue"),
            ("CreateSecurityGroup&GroupName=a", "MissingParameter"),
            (
                "CreateSecurityGroup&GroupName=a&GroupDescription=d&VpcId=vpc-12345678",
                "InvalidVpcID.NotFound",
            ),
            ("DeleteSecurityGroup", "MissingParameter"),
            ("DeleteSecurityGroup&GroupName=default", "CannotDelete"),
            ("DeleteSecurityGroup&GroupName=x", "InvalidGroup.NotFound"),
            ("DeleteSecurityGroup&GroupId=sg-12345678", "InvalidGroup.NotFound"),
            ("DeleteSecurityGroup&GroupId=web", "InvalidGroupId.Malformed"),
        ]);
        client.ask("DeleteSecurityGroup&GroupName=web").unwrap();
        assert_eq!(client.texts("DescribeSecurityGroups", "groupName"), ["default"]);
    }

    #[test]
    fn rules_are_added_once_and_taken_away() {
        let client = Client::new();
        let id = create(&client, "web");
        let authorize = format!("AuthorizeSecurityGroupIngress&GroupId={id}");
        let mut rule = client.text(&format!("{authorize}{SSH}"), "securityGroupRuleId");
        // The same in other words; and nothing of a request of which a part is refused.
        let other = "&IpPermissions.2.IpProtocol=udp&IpPermissions.2.FromPort=1&IpPermissions.2.ToPort=1\
                     &IpPermissions.2.IpRanges.1.CidrIp=0.0.0.0/0";
        client.refuses(&[
            (&format!("{authorize}{SSH}"), "InvalidPermission.Duplicate"),
            (&format!("{authorize}{SSH}{other}"), "InvalidPermission.Duplicate"),
            (&format!("{authorize}&IpProtocol=6&FromPort=22&ToPort=22&CidrIp=10.9.9.9/8"), "InvalidPermission.Duplicate"),
            (&format!("{authorize}&IpProtocol=tcp&FromPort=22&ToPort=22&CidrIp=10.0.0.0"), "InvalidParameterValue"),
            (&format!("{authorize}{other}{}", other.replace(".2.", ".3.")), "InvalidParameterValue"),
            (&format!("{authorize}&IpPermissions.1.IpProtocol=-1"), "InvalidPermission.Malformed"),
            (&format!("{authorize}&IpProtocol=tcp&FromPort=1&ToPort=1&CidrIp=1.1.1.1/32{SSH}"), "InvalidParameterCombination"),
            (&authorize, "MissingParameter"),
            (&format!("AuthorizeSecurityGroupEgress&GroupId={id}&IpProtocol=-1&CidrIp=1.1.1.1/32"), "InvalidParameterCombination"),
            (
                &format!("AuthorizeSecurityGroupEgress&GroupId={id}&IpPermissions.1.IpProtocol=-1&IpPermissions.1.IpRanges.1.CidrIp=0.0.0.0/0"),
                "InvalidPermission.Duplicate",
            ),
            (&format!("RevokeSecurityGroupIngress&GroupId={id}&SecurityGroupRuleId.1=sgr-12345678"), "InvalidSecurityGroupRuleId.NotFound"),
            (&format!("RevokeSecurityGroupEgress&GroupId={id}&SecurityGroupRuleId.1={rule}"), "InvalidSecurityGroupRuleId.NotFound"),
        ]);
        let rules = format!("DescribeSecurityGroupRules&Filter.1.Name=group-id&Filter.1.Value.1={id}");
        assert_eq!(client.texts(&rules, "securityGroupRuleId").len(), 2);
        // In the default VPC, EC2 tells of what it does not find.
        let unknown = format!("RevokeSecurityGroupIngress&GroupId={id}{}", SSH.replace("=22", "=23"));
        assert_eq!(client.texts(&unknown, "cidrIp"), ["10.0.0.0/8"]);
        // By what it allows, in both forms; by its id; and by its id twice.
        let revoke = format!("RevokeSecurityGroupIngress&GroupId={id}");
        for rest in [
            SSH,
            "&IpProtocol=tcp&FromPort=22&ToPort=22&CidrIp=10.0.0.0/8",
            "&SecurityGroupRuleId.1={rule}",
            "&SecurityGroupRuleId.1={rule}&SecurityGroupRuleId.2={rule}",
        ] {
            let request = format!("{revoke}{}", rest.replace("{rule}", &rule));
            assert_eq!(client.text(&request, "securityGroupRuleId"), rule, "{rest}");
            assert_eq!(client.texts(&rules, "isEgress"), ["true"], "{rest}");
            rule = client.text(&format!("{authorize}{SSH}"), "securityGroupRuleId");
        }
    }

    #[test]
    fn the_rules_of_the_default_group_are_rules_like_any() {
        let client = Client::new();
        let all = "IpPermissions.1.IpProtocol=-1&IpPermissions.1.IpRanges.1.CidrIp=0.0.0.0/0";
        let id = client.texts("DescribeSecurityGroups&GroupName.1=default", "groupId").remove(0);
        // Also those that an agent of before has recorded.
        for of_before in [false, true] {
            if of_before {
                let mut group =
                    SecurityGroup::clone(client.agent.state.read().get::<SecurityGroup>(&id).unwrap());
                for rule in &mut group.rules {
                    (rule.from_port, rule.to_port) = (Some(-1), Some(-1));
                }
                client.put(group);
            }
            assert!(!client.ask("DescribeSecurityGroups").unwrap().contains("fromPort"));
            client.refuses(&[(
                &format!("AuthorizeSecurityGroupEgress&GroupId={id}&{all}"),
                "InvalidPermission.Duplicate",
            )]);
            let revoke = format!("RevokeSecurityGroupEgress&GroupId={id}&{all}");
            assert!(client.texts(&revoke, "cidrIp").is_empty(), "it was not found");
            assert_eq!(client.texts("DescribeSecurityGroupRules", "isEgress"), ["false"]);
            client.ask(&format!("AuthorizeSecurityGroupEgress&GroupId={id}&{all}")).unwrap();
        }
        let own = format!("IpPermissions.1.IpProtocol=-1&IpPermissions.1.Groups.1.GroupId={id}");
        client.ask(&format!("RevokeSecurityGroupIngress&GroupId={id}&{own}")).unwrap();
        assert_eq!(client.texts("DescribeSecurityGroupRules", "isEgress"), ["true"]);
    }

    #[test]
    fn outside_the_default_vpc_a_rule_that_is_not_there_is_an_error_and_names_mean_nothing() {
        let client = Client::new();
        let default = client.agent.state.read().all::<Vpc>().next().cloned();
        let vpc = VpcId::random();
        client.put(Vpc { id: vpc.clone(), is_default: false, ..Vpc::clone(&default.unwrap()) });
        let id = client
            .text(&format!("CreateSecurityGroup&GroupName=web&GroupDescription=d&VpcId={vpc}"), "groupId");
        client.refuses(&[
            (&format!("RevokeSecurityGroupIngress&GroupId={id}{SSH}"), "InvalidPermission.NotFound"),
            ("DescribeSecurityGroups&GroupName.1=web", "InvalidGroup.NotFound"),
            (
                &format!(
                    "AuthorizeSecurityGroupIngress&GroupName=default&IpPermissions.1.IpProtocol=-1\
                     &IpPermissions.1.Groups.1.GroupId={id}"
                ),
                "InvalidGroup.NotFound",
            ),
        ]);
    }

    #[test]
    fn the_sixty_first_rule_is_refused() {
        let client = Client::new();
        let id = create(&client, "web");
        let range = |at: usize| format!("&IpPermissions.1.IpRanges.{}.CidrIp=10.0.0.{at}/32", at + 1);
        let request = |first: usize, count: usize| {
            let ranges: String = (first..first + count).map(range).collect();
            format!("AuthorizeSecurityGroupIngress&GroupId={id}&IpPermissions.1.IpProtocol=-1{ranges}")
        };
        client.refuses(&[(&request(0, 61), "RulesPerSecurityGroupLimitExceeded")]);
        client.ask(&request(0, 60)).unwrap();
        client.refuses(&[(&request(60, 1), "RulesPerSecurityGroupLimitExceeded")]);
    }

    #[test]
    fn a_group_that_is_used_stays() {
        let client = Client::new();
        let (web, db) = (create(&client, "web"), create(&client, "db"));
        let from_web = "&IpPermissions.1.IpProtocol=tcp&IpPermissions.1.FromPort=1&IpPermissions.1.ToPort=1\
                        &IpPermissions.1.Groups.1.";
        let request = format!("AuthorizeSecurityGroupIngress&GroupId={db}{from_web}GroupName=web");
        assert_eq!(client.text(&request, "referencedGroupInfo").matches(&web).count(), 1);
        client.refuses(&[
            (&format!("DeleteSecurityGroup&GroupId={web}"), "DependencyViolation"),
            (
                &format!("AuthorizeSecurityGroupIngress&GroupId={db}{from_web}GroupId=sg-12345678"),
                "InvalidGroup.NotFound",
            ),
        ]);
        let filter =
            format!("DescribeSecurityGroups&Filter.1.Name=ip-permission.group-id&Filter.1.Value.1={web}");
        assert_eq!(client.texts(&filter, "groupName"), ["db"]);
        client.ask(&format!("DeleteSecurityGroup&GroupId={db}")).unwrap();
        client.ask(&format!("DeleteSecurityGroup&GroupId={web}")).unwrap();
        client.instance(InstanceState::Running);
        client.refuses(&[("DeleteSecurityGroup&GroupName=default", "CannotDelete")]);
    }

    #[test]
    fn rules_are_described_and_changed() {
        let client = Client::new();
        let id = create(&client, "web");
        let rule =
            client.text(&format!("AuthorizeSecurityGroupIngress&GroupId={id}{SSH}"), "securityGroupRuleId");
        let shown =
            || client.ask(&format!("DescribeSecurityGroupRules&SecurityGroupRuleId.1={rule}")).unwrap();
        let update = format!("UpdateSecurityGroupRuleDescriptionsIngress&GroupId={id}");
        client.ask(&format!("{update}{SSH}&IpPermissions.1.IpRanges.1.Description=one")).unwrap();
        assert!(shown().contains("<description>one</description>"));
        let named = format!("{update}&SecurityGroupRuleDescription.1.SecurityGroupRuleId={rule}");
        client.ask(&format!("{named}&SecurityGroupRuleDescription.1.Description=two")).unwrap();
        assert!(shown().contains("<description>two</description>"));
        let modify =
            format!("ModifySecurityGroupRules&GroupId={id}&SecurityGroupRule.1.SecurityGroupRuleId={rule}");
        let new = "&SecurityGroupRule.1.SecurityGroupRule.";
        client
            .ask(&format!("{modify}{new}IpProtocol=udp{new}FromPort=53{new}ToPort=53{new}CidrIpv6=fd00::1/8"))
            .unwrap();
        assert!(shown().contains("<cidrIpv6>fd00::/8</cidrIpv6>"), "{}", shown());
        client.refuses(&[
            (&format!("{update}{SSH}"), "InvalidPermission.NotFound"),
            (&update, "InvalidParameterCombination"),
            (&format!("{modify}{new}IpProtocol=-1"), "InvalidParameterCombination"),
            (&format!("{modify}{new}IpProtocol=x{new}CidrIpv4=0.0.0.0/0"), "InvalidParameterValue"),
        ]);
    }
}
