//! DescribeNetworkAcls.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::item::{AclItem, AssociationItem, EntryItem};
use crate::actions::lookup::select;
use crate::query::filters::{Field, Filter, Filtered, Selection};
use crate::query::pages::page;
use crate::query::{Action, ApiError, Context};
use crate::records::NetworkAcl;

/// The caller's network ACLs.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase", deny_unknown_fields)]
pub struct DescribeNetworkAcls {
    #[serde(default, rename = "Filter")]
    filters: Vec<Filter>,
    #[serde(default, rename = "NetworkAclId")]
    ids: Vec<String>,
    max_results: Option<i64>,
    next_token: Option<String>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Response {
    network_acl_set: Vec<AclItem>,
    next_token: Option<String>,
}

/// A value of each association.
fn associations(acl: &AclItem, value: impl Fn(&AssociationItem) -> String) -> Vec<String> {
    acl.association_set.iter().map(value).collect()
}

/// A value of each entry that has it.
fn entries(acl: &AclItem, value: impl Fn(&EntryItem) -> Option<String>) -> Vec<String> {
    acl.entry_set.iter().filter_map(value).collect()
}

impl Filtered for AclItem {
    fn field(name: &str) -> Option<Field<Self>> {
        Some(match name {
            "network-acl-id" => |acl| vec![acl.network_acl_id.clone()],
            "owner-id" => |acl| vec![acl.owner_id.clone()],
            "vpc-id" => |acl| vec![acl.vpc_id.clone()],
            "default" => |acl| vec![acl.is_default.to_string()],
            "association.association-id" => {
                |acl| associations(acl, |one| one.network_acl_association_id.clone())
            }
            "association.network-acl-id" => |acl| associations(acl, |one| one.network_acl_id.clone()),
            "association.subnet-id" => |acl| associations(acl, |one| one.subnet_id.clone()),
            "entry.cidr" => |acl| entries(acl, |entry| Some(entry.cidr_block.clone())),
            "entry.egress" => |acl| entries(acl, |entry| Some(entry.egress.to_string())),
            "entry.protocol" => |acl| entries(acl, |entry| Some(entry.protocol.clone())),
            "entry.rule-action" => |acl| entries(acl, |entry| Some(entry.rule_action.to_owned())),
            "entry.rule-number" => |acl| entries(acl, |entry| Some(entry.rule_number.to_string())),
            "entry.icmp.code" => {
                |acl| entries(acl, |entry| Some(entry.icmp_type_code.as_ref()?.code.to_string()))
            }
            "entry.icmp.type" => {
                |acl| entries(acl, |entry| Some(entry.icmp_type_code.as_ref()?.kind.to_string()))
            }
            "entry.port-range.from" => {
                |acl| entries(acl, |entry| Some(entry.port_range.as_ref()?.from.to_string()))
            }
            "entry.port-range.to" => {
                |acl| entries(acl, |entry| Some(entry.port_range.as_ref()?.to.to_string()))
            }
            "entry.ipv6-cidr" => |_| Vec::new(),
            _ => return None,
        })
    }

    fn tags(&self) -> Option<&BTreeMap<String, String>> {
        Some(&self.tags)
    }
}

impl Action for DescribeNetworkAcls {
    const NAME: &'static str = "DescribeNetworkAcls";
    type Response = Response;

    fn run(self, context: Context<'_>) -> Result<Response, ApiError> {
        let world = context.agent.state.read();
        let wanted = Selection::new(&self.filters)?;
        let acls = select::<NetworkAcl>(&world, context, &self.ids)?;
        let mut items: Vec<AclItem> = acls.iter().map(|acl| AclItem::new(&world, acl)).collect();
        items.retain(|item| wanted.accepts(item));
        let (network_acl_set, next_token) =
            page(items, |item| &item.network_acl_id, self.max_results, self.next_token.as_deref(), 5)?;
        Ok(Response { network_acl_set, next_token })
    }
}
