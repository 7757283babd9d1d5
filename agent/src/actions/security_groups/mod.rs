//! Security groups and their rules.

mod authorize;
mod create_security_group;
mod delete_security_group;
mod describe_security_group_rules;
mod describe_security_groups;
mod modify_security_group_rules;
mod permissions;
mod revoke;
mod rule_item;
mod update_descriptions;

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
    for (index, (allowed, _)) in all.iter().enumerate() {
        if all.iter().take(index).any(|(earlier, _)| earlier == allowed) {
            let message = format!("The same permission must not appear multiple times: {allowed}");
            return Err(ApiError::new("InvalidParameterValue", message));
        }
    }
    Ok(all)
}
