//! DescribeSecurityGroupRules.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::rule_item::RuleItem;
use crate::actions::lookup::select;
use crate::query::filters::{Field, Filter, Filtered, Selection};
use crate::query::pages::page;
use crate::query::{Action, ApiError, Context};
use crate::records::SecurityGroup;

/// The rules of the caller's groups.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase", deny_unknown_fields)]
pub struct DescribeSecurityGroupRules {
    #[serde(default, rename = "Filter")]
    filters: Vec<Filter>,
    #[serde(default, rename = "SecurityGroupRuleId")]
    ids: Vec<String>,
    max_results: Option<i64>,
    next_token: Option<String>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Response {
    security_group_rule_set: Vec<RuleItem>,
    next_token: Option<String>,
}

impl Filtered for RuleItem {
    fn field(name: &str) -> Option<Field<Self>> {
        Some(match name {
            "group-id" => |rule| vec![rule.group_id.clone()],
            "security-group-rule-id" => |rule| vec![rule.security_group_rule_id.clone()],
            _ => return None,
        })
    }

    fn tags(&self) -> Option<&BTreeMap<String, String>> {
        Some(&self.tags)
    }
}

impl Action for DescribeSecurityGroupRules {
    const NAME: &'static str = "DescribeSecurityGroupRules";
    type Response = Response;

    fn run(self, context: Context<'_>) -> Result<Response, ApiError> {
        let world = context.agent.state.read();
        let wanted = Selection::new(&self.filters)?;
        let mut items = Vec::new();
        for group in select::<SecurityGroup>(&world, context, &[])? {
            items.extend(group.rules.iter().map(|rule| RuleItem::new(&world, context, &group, rule)));
        }
        let known = |id: &&String| items.iter().any(|item| item.security_group_rule_id == **id);
        if let Some(id) = self.ids.iter().find(|id| !known(id)) {
            return Err(super::no_rule(id));
        }
        items.retain(|item| self.ids.is_empty() || self.ids.contains(&item.security_group_rule_id));
        items.retain(|item| wanted.accepts(item));
        items.sort_by(|one, other| one.security_group_rule_id.cmp(&other.security_group_rule_id));
        let (security_group_rule_set, next_token) = page(
            items,
            |item| &item.security_group_rule_id,
            self.max_results,
            self.next_token.as_deref(),
            5,
        )?;
        Ok(Response { security_group_rule_set, next_token })
    }
}
