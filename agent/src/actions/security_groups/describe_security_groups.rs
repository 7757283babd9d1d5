//! DescribeSecurityGroups.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::by_name;
use super::permissions::{IpPermission, gather};
use crate::actions::lookup::{arn, select};
use crate::query::filters::{Field, Filter, Filtered, Selection};
use crate::query::pages::page;
use crate::query::{Action, ApiError, Context};
use crate::records::SecurityGroup;
use crate::state::World;

/// The caller's groups.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase", deny_unknown_fields)]
pub struct DescribeSecurityGroups {
    #[serde(default, rename = "Filter")]
    filters: Vec<Filter>,
    #[serde(default, rename = "GroupId")]
    ids: Vec<String>,
    #[serde(default, rename = "GroupName")]
    names: Vec<String>,
    max_results: Option<i64>,
    next_token: Option<String>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Response {
    security_group_info: Vec<Item>,
    next_token: Option<String>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Item {
    owner_id: String,
    group_id: String,
    group_name: String,
    group_description: String,
    vpc_id: String,
    security_group_arn: String,
    ip_permissions: Vec<IpPermission>,
    ip_permissions_egress: Vec<IpPermission>,
    #[serde(rename = "tagSet", serialize_with = "crate::actions::tags::set")]
    tags: BTreeMap<String, String>,
}

impl Item {
    fn new(world: &World, context: Context<'_>, group: &SecurityGroup) -> Self {
        let rules =
            |egress| gather(&group.owner, group.rules.iter().filter(move |rule| rule.is_egress == egress));
        Self {
            owner_id: group.owner.clone(),
            group_id: group.id.to_string(),
            group_name: group.name.clone(),
            group_description: group.description.clone(),
            vpc_id: group.vpc.to_string(),
            security_group_arn: arn(context, &group.owner, "security-group", &group.id),
            ip_permissions: rules(false),
            ip_permissions_egress: rules(true),
            tags: world.tags(&group.id).cloned().unwrap_or_default(),
        }
    }
}

/// The values of one thing in all permissions of one direction.
macro_rules! each {
    ($permissions:ident, $permission:ident => $values:expr) => {
        |group| group.$permissions.iter().flat_map(|$permission| $values).collect()
    };
}

/// The filters about permissions, for one direction.
macro_rules! permission_field {
    ($name:expr, $permissions:ident) => {
        Some(match $name {
            "cidr" => each!($permissions, one => one.ip_ranges.iter().map(|range| range.cidr_ip.clone())),
            "ipv6-cidr" => {
                each!($permissions, one => one.ipv6_ranges.iter().map(|range| range.cidr_ipv6.clone()))
            }
            "from-port" => each!($permissions, one => one.from_port.map(|port| port.to_string())),
            "to-port" => each!($permissions, one => one.to_port.map(|port| port.to_string())),
            "protocol" => each!($permissions, one => one.ip_protocol.clone()),
            "group-id" => each!($permissions, one => one.groups.iter().filter_map(|pair| pair.group_id.clone())),
            "group-name" => {
                each!($permissions, one => one.groups.iter().filter_map(|pair| pair.group_name.clone()))
            }
            "user-id" => each!($permissions, one => one.groups.iter().filter_map(|pair| pair.user_id.clone())),
            "prefix-list-id" => {
                each!($permissions, one => one.prefix_list_ids.iter().map(|list| list.prefix_list_id.clone()))
            }
            _ => return None,
        })
    };
}

impl Filtered for Item {
    fn field(name: &str) -> Option<Field<Self>> {
        if let Some(name) = name.strip_prefix("ip-permission.") {
            return permission_field!(name, ip_permissions);
        }
        if let Some(name) = name.strip_prefix("egress.ip-permission.") {
            return permission_field!(name, ip_permissions_egress);
        }
        Some(match name {
            "owner-id" => |group| vec![group.owner_id.clone()],
            "group-id" => |group| vec![group.group_id.clone()],
            "group-name" => |group| vec![group.group_name.clone()],
            "description" => |group| vec![group.group_description.clone()],
            "vpc-id" => |group| vec![group.vpc_id.clone()],
            _ => return None,
        })
    }

    fn tags(&self) -> Option<&BTreeMap<String, String>> {
        Some(&self.tags)
    }
}

impl Action for DescribeSecurityGroups {
    const NAME: &'static str = "DescribeSecurityGroups";
    type Response = Response;

    fn run(mut self, context: Context<'_>) -> Result<Response, ApiError> {
        let world = context.agent.state.read();
        let wanted = Selection::new(&self.filters)?;
        for name in &self.names {
            self.ids.push(by_name(&world, context, name)?.id.to_string());
        }
        let groups = select::<SecurityGroup>(&world, context, &self.ids)?;
        let mut items: Vec<Item> = groups.iter().map(|group| Item::new(&world, context, group)).collect();
        items.retain(|item| wanted.accepts(item));
        let (security_group_info, next_token) =
            page(items, |item| &item.group_id, self.max_results, self.next_token.as_deref(), 5)?;
        Ok(Response { security_group_info, next_token })
    }
}
