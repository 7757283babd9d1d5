//! A rule in answers.

use std::collections::BTreeMap;

use serde::Serialize;

use crate::actions::lookup::arn;
use crate::query::Context;
use crate::records::{Peer, Rule, SecurityGroup};
use crate::state::World;

/// `securityGroupRule`.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct RuleItem {
    pub security_group_rule_id: String,
    security_group_rule_arn: String,
    pub group_id: String,
    group_owner_id: String,
    is_egress: bool,
    ip_protocol: String,
    from_port: i32,
    to_port: i32,
    cidr_ipv4: Option<String>,
    cidr_ipv6: Option<String>,
    prefix_list_id: Option<String>,
    referenced_group_info: Option<ReferencedGroup>,
    description: Option<String>,
    #[serde(rename = "tagSet", serialize_with = "crate::actions::tags::set")]
    pub tags: BTreeMap<String, String>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct ReferencedGroup {
    group_id: String,
    user_id: String,
    vpc_id: String,
}

impl RuleItem {
    pub fn new(world: &World, context: Context<'_>, group: &SecurityGroup, rule: &Rule) -> Self {
        let (mut cidr_ipv4, mut cidr_ipv6, mut prefix_list_id, mut referenced_group_info) =
            (None, None, None, None);
        match &rule.peer {
            Peer::Ipv4(cidr) => cidr_ipv4 = Some(cidr.clone()),
            Peer::Ipv6(cidr) => cidr_ipv6 = Some(cidr.clone()),
            Peer::PrefixList(id) => prefix_list_id = Some(id.clone()),
            Peer::Group(id) => {
                referenced_group_info = Some(ReferencedGroup {
                    group_id: id.to_string(),
                    user_id: group.owner.clone(),
                    vpc_id: group.vpc.to_string(),
                });
            }
        }
        Self {
            security_group_rule_id: rule.id.to_string(),
            security_group_rule_arn: arn(context, &group.owner, "security-group-rule", &rule.id),
            group_id: group.id.to_string(),
            group_owner_id: group.owner.clone(),
            is_egress: rule.is_egress,
            ip_protocol: rule.protocol.clone(),
            from_port: rule.from_port.unwrap_or(-1),
            to_port: rule.to_port.unwrap_or(-1),
            cidr_ipv4,
            cidr_ipv6,
            prefix_list_id,
            referenced_group_info,
            description: rule.description.clone(),
            tags: world.tags(&rule.id).cloned().unwrap_or_default(),
        }
    }
}
