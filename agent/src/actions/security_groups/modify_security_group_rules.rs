//! ModifySecurityGroupRules.

use serde::Deserialize;

use super::no_rule;
use super::permissions::{
    Allowed, check_count, check_description, ipv4, ipv6, no_prefix_list, ports, protocol,
};
use crate::actions::lookup::find;
use crate::query::{Action, ApiError, Context};
use crate::records::{Peer, SecurityGroup};
use crate::state::World;

/// Makes rules anew, under their ids: all of them, or none.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase", deny_unknown_fields)]
pub struct ModifySecurityGroupRules {
    group_id: String,
    #[serde(default, rename = "SecurityGroupRule")]
    updates: Vec<Update>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase", deny_unknown_fields)]
struct Update {
    security_group_rule_id: String,
    security_group_rule: NewRule,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase", deny_unknown_fields)]
struct NewRule {
    ip_protocol: Option<String>,
    from_port: Option<i32>,
    to_port: Option<i32>,
    cidr_ipv4: Option<String>,
    cidr_ipv6: Option<String>,
    prefix_list_id: Option<String>,
    referenced_group_id: Option<String>,
    description: Option<String>,
}

impl NewRule {
    fn allowed(
        &self,
        world: &World,
        context: Context<'_>,
        group: &SecurityGroup,
    ) -> Result<Allowed, ApiError> {
        let name = self.ip_protocol.as_ref().ok_or_else(|| ApiError::missing("ipProtocol"))?;
        let protocol = protocol(name)?;
        let (from_port, to_port) = ports(&protocol, self.from_port, self.to_port)?;
        let peer = match (&self.cidr_ipv4, &self.cidr_ipv6, &self.prefix_list_id, &self.referenced_group_id) {
            (Some(cidr), None, None, None) => Peer::Ipv4(ipv4(cidr)?),
            (None, Some(cidr), None, None) => Peer::Ipv6(ipv6(cidr)?),
            (None, None, Some(id), None) => return Err(no_prefix_list(id)),
            (None, None, None, Some(id)) => {
                let other = find::<SecurityGroup>(world, context, id)?;
                if other.vpc != group.vpc {
                    let message = "You have specified two resources that belong to different networks.";
                    return Err(ApiError::new("InvalidGroup.NotFound", message));
                }
                Peer::Group(other.id.clone())
            }
            _ => {
                let message =
                    "A rule must have exactly one of CidrIpv4, CidrIpv6, PrefixListId and ReferencedGroupId.";
                return Err(ApiError::combination(message));
            }
        };
        check_description(self.description.as_deref())?;
        Ok(Allowed { protocol, from_port, to_port, peer })
    }
}

impl ModifySecurityGroupRules {
    /// The group as it will be.
    fn plan(&self, world: &World, context: Context<'_>) -> Result<SecurityGroup, ApiError> {
        let group = find::<SecurityGroup>(world, context, &self.group_id)?;
        if self.updates.is_empty() {
            return Err(ApiError::missing("SecurityGroupRule"));
        }
        let mut changed = SecurityGroup::clone(group);
        for Update { security_group_rule_id: id, security_group_rule: new } in &self.updates {
            let allowed = new.allowed(world, context, group)?;
            let rule = changed.rules.iter_mut().find(|rule| rule.id.as_str() == id);
            let rule = rule.ok_or_else(|| no_rule(id))?;
            rule.protocol = allowed.protocol;
            rule.from_port = allowed.from_port;
            rule.to_port = allowed.to_port;
            rule.peer = allowed.peer;
            rule.description.clone_from(&new.description);
        }
        for (index, rule) in changed.rules.iter().enumerate() {
            let allowed = Allowed::of(rule);
            let mut earlier = changed.rules.iter().take(index);
            if earlier.any(|other| other.is_egress == rule.is_egress && Allowed::of(other) == allowed) {
                let message = format!("the specified rule \"{allowed}\" already exists");
                return Err(ApiError::new("InvalidPermission.Duplicate", message));
            }
        }
        check_count(&changed.rules)?;
        Ok(changed)
    }
}

impl Action for ModifySecurityGroupRules {
    const NAME: &'static str = "ModifySecurityGroupRules";
    type Response = ();

    fn check(&self, context: Context<'_>) -> Result<(), ApiError> {
        self.plan(&context.agent.state.read(), context).map(|_| ())
    }

    fn run(self, context: Context<'_>) -> Result<(), ApiError> {
        context.agent.state.change(|draft| {
            let group = self.plan(draft, context)?;
            draft.put(group);
            Ok(())
        })
    }
}
