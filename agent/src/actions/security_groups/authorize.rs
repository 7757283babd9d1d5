//! AuthorizeSecurityGroupIngress and AuthorizeSecurityGroupEgress.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::permissions::{Allowed, check_count};
use super::request::about_rules;
use super::rule_item::RuleItem;
use super::spread_all;
use crate::query::tags::{TagSpecification, specified};
use crate::query::{Action, ApiError, Context};
use crate::records::{Rule, SecurityGroup};
use crate::state::World;

/// Adds rules about what comes in.
#[derive(Debug, Deserialize)]
#[serde(transparent)]
pub struct AuthorizeSecurityGroupIngress(Request);

/// Adds rules about what goes out.
#[derive(Debug, Deserialize)]
#[serde(transparent)]
pub struct AuthorizeSecurityGroupEgress(Request);

about_rules! {
    /// All of the rules are added, or none.
    struct Request {
        #[serde(default, rename = "TagSpecification")]
        tags: Vec<TagSpecification>,
    }
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Response {
    #[serde(rename = "return")]
    done: bool,
    security_group_rule_set: Vec<RuleItem>,
}

impl Request {
    fn tags(&self) -> Result<BTreeMap<String, String>, ApiError> {
        let kind = "security-group-rule";
        Ok(specified(&self.tags, &[kind])?.remove(kind).unwrap_or_default())
    }

    /// The group as it will be, and the new rules.
    fn plan(
        &self,
        world: &World,
        context: Context<'_>,
        is_egress: bool,
    ) -> Result<(SecurityGroup, Vec<Rule>), ApiError> {
        let group = self.group(world, context)?;
        let permissions = self.permissions(is_egress)?;
        if permissions.is_empty() {
            return Err(ApiError::missing("ipPermissions"));
        }
        let mut new = Vec::new();
        for (allowed, description) in spread_all(world, context, group, &permissions)? {
            if group.rules.iter().any(|rule| rule.is_egress == is_egress && Allowed::of(rule) == allowed) {
                let message = format!("the specified rule \"{allowed}\" already exists");
                return Err(ApiError::new("InvalidPermission.Duplicate", message));
            }
            new.push(allowed.into_rule(is_egress, description));
        }
        let mut group = SecurityGroup::clone(group);
        group.rules.extend(new.iter().cloned());
        check_count(&group.rules)?;
        Ok((group, new))
    }

    fn run(&self, context: Context<'_>, is_egress: bool) -> Result<Response, ApiError> {
        let tags = self.tags()?;
        context.agent.state.change(|draft| {
            let (group, new) = self.plan(draft, context, is_egress)?;
            for rule in &new {
                draft.tag(&rule.id, tags.clone());
            }
            draft.put(group.clone());
            let items = new.iter().map(|rule| RuleItem::new(draft, context, &group, rule)).collect();
            Ok(Response { done: true, security_group_rule_set: items })
        })
    }
}

impl Action for AuthorizeSecurityGroupIngress {
    const NAME: &'static str = "AuthorizeSecurityGroupIngress";
    type Response = Response;

    fn check(&self, context: Context<'_>) -> Result<(), ApiError> {
        self.0.tags()?;
        self.0.plan(&context.agent.state.read(), context, false).map(|_| ())
    }

    fn run(self, context: Context<'_>) -> Result<Response, ApiError> {
        self.0.run(context, false)
    }
}

impl Action for AuthorizeSecurityGroupEgress {
    const NAME: &'static str = "AuthorizeSecurityGroupEgress";
    type Response = Response;

    fn check(&self, context: Context<'_>) -> Result<(), ApiError> {
        self.0.tags()?;
        self.0.plan(&context.agent.state.read(), context, true).map(|_| ())
    }

    fn run(self, context: Context<'_>) -> Result<Response, ApiError> {
        self.0.run(context, true)
    }
}
