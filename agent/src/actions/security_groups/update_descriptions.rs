//! UpdateSecurityGroupRuleDescriptionsIngress and UpdateSecurityGroupRuleDescriptionsEgress.

use serde::Deserialize;

use super::permissions::{Allowed, IpPermission, check_description};
use super::{meant, no_rule, spread_all};
use crate::query::{Action, ApiError, Context};
use crate::records::SecurityGroup;
use crate::state::World;

/// Describes rules about what comes in.
#[derive(Debug, Deserialize)]
#[serde(transparent)]
pub struct UpdateSecurityGroupRuleDescriptionsIngress(Request);

/// Describes rules about what goes out.
#[derive(Debug, Deserialize)]
#[serde(transparent)]
pub struct UpdateSecurityGroupRuleDescriptionsEgress(Request);

/// Rules are called by their ids, or by what they allow. Without a description, the old one goes.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase", deny_unknown_fields)]
struct Request {
    group_id: Option<String>,
    group_name: Option<String>,
    #[serde(default)]
    ip_permissions: Vec<IpPermission>,
    #[serde(default, rename = "SecurityGroupRuleDescription")]
    descriptions: Vec<RuleDescription>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase", deny_unknown_fields)]
struct RuleDescription {
    security_group_rule_id: String,
    description: Option<String>,
}

impl Request {
    /// The group as it will be.
    fn plan(&self, world: &World, context: Context<'_>, is_egress: bool) -> Result<SecurityGroup, ApiError> {
        let group = meant(world, context, self.group_id.as_deref(), self.group_name.as_deref())?;
        if self.ip_permissions.is_empty() == self.descriptions.is_empty() {
            let message = "Either IpPermissions or SecurityGroupRuleDescription must be there, and not both.";
            return Err(ApiError::combination(message));
        }
        let mut changed = SecurityGroup::clone(group);
        for (allowed, description) in spread_all(world, context, group, &self.ip_permissions)? {
            let mut rules = changed.rules.iter_mut();
            let Some(rule) = rules.find(|rule| rule.is_egress == is_egress && Allowed::of(rule) == allowed)
            else {
                let message = "The specified rule does not exist in this security group.";
                return Err(ApiError::new("InvalidPermission.NotFound", message));
            };
            rule.description = description;
        }
        for RuleDescription { security_group_rule_id: id, description } in &self.descriptions {
            check_description(description.as_deref())?;
            let mut rules = changed.rules.iter_mut();
            let rule = rules.find(|rule| rule.is_egress == is_egress && rule.id.as_str() == id);
            rule.ok_or_else(|| no_rule(id))?.description.clone_from(description);
        }
        Ok(changed)
    }

    fn run(&self, context: Context<'_>, is_egress: bool) -> Result<(), ApiError> {
        context.agent.state.change(|draft| {
            let group = self.plan(draft, context, is_egress)?;
            draft.put(group);
            Ok(())
        })
    }
}

impl Action for UpdateSecurityGroupRuleDescriptionsIngress {
    const NAME: &'static str = "UpdateSecurityGroupRuleDescriptionsIngress";
    type Response = ();

    fn check(&self, context: Context<'_>) -> Result<(), ApiError> {
        self.0.plan(&context.agent.state.read(), context, false).map(|_| ())
    }

    fn run(self, context: Context<'_>) -> Result<(), ApiError> {
        self.0.run(context, false)
    }
}

impl Action for UpdateSecurityGroupRuleDescriptionsEgress {
    const NAME: &'static str = "UpdateSecurityGroupRuleDescriptionsEgress";
    type Response = ();

    fn check(&self, context: Context<'_>) -> Result<(), ApiError> {
        self.0.plan(&context.agent.state.read(), context, true).map(|_| ())
    }

    fn run(self, context: Context<'_>) -> Result<(), ApiError> {
        self.0.run(context, true)
    }
}
