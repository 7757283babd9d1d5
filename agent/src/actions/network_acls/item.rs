//! A network ACL in answers.

use std::collections::BTreeMap;

use serde::Serialize;

use crate::records::{AclEntry, NetworkAcl, Subnet};
use crate::state::World;

/// The number of the entry that nobody can change: it denies what no other one says anything of.
const LAST_NUMBER: u16 = 32767;

/// `networkAcl`.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct AclItem {
    pub network_acl_id: String,
    pub owner_id: String,
    pub vpc_id: String,
    #[serde(rename = "default")]
    pub is_default: bool,
    pub entry_set: Vec<EntryItem>,
    pub association_set: Vec<AssociationItem>,
    #[serde(rename = "tagSet", serialize_with = "crate::actions::tags::set")]
    pub tags: BTreeMap<String, String>,
}

/// `entry`.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct EntryItem {
    pub rule_number: u16,
    pub protocol: String,
    pub rule_action: &'static str,
    pub egress: bool,
    pub cidr_block: String,
    pub icmp_type_code: Option<IcmpTypeCode>,
    pub port_range: Option<PortRange>,
}

#[derive(Debug, Serialize)]
pub struct IcmpTypeCode {
    #[serde(rename = "type")]
    pub kind: i16,
    pub code: i16,
}

#[derive(Debug, Serialize)]
pub struct PortRange {
    pub from: u16,
    pub to: u16,
}

/// `association`.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct AssociationItem {
    pub network_acl_association_id: String,
    pub network_acl_id: String,
    pub subnet_id: String,
}

impl From<&AclEntry> for EntryItem {
    fn from(entry: &AclEntry) -> Self {
        Self {
            rule_number: entry.number,
            protocol: entry.protocol.map_or_else(|| "-1".to_owned(), |number| number.to_string()),
            rule_action: if entry.allow { "allow" } else { "deny" },
            egress: entry.egress,
            cidr_block: entry.cidr.to_string(),
            icmp_type_code: entry.icmp.map(|(kind, code)| IcmpTypeCode { kind, code }),
            port_range: entry.ports.map(|(from, to)| PortRange { from, to }),
        }
    }
}

impl EntryItem {
    /// What is denied if nothing else is said.
    fn last(egress: bool) -> Self {
        Self {
            rule_number: LAST_NUMBER,
            protocol: "-1".to_owned(),
            rule_action: "deny",
            egress,
            cidr_block: "0.0.0.0/0".to_owned(),
            icmp_type_code: None,
            port_range: None,
        }
    }
}

impl AclItem {
    pub fn new(world: &World, acl: &NetworkAcl) -> Self {
        let mut entry_set: Vec<EntryItem> = acl.entries.iter().map(EntryItem::from).collect();
        entry_set.extend([true, false].map(EntryItem::last));
        // As EC2 lists them: first what goes out.
        entry_set.sort_by_key(|entry| (!entry.egress, entry.rule_number));
        let subnets = world.all::<Subnet>().filter(|subnet| subnet.network_acl.network_acl == acl.id);
        let association_set = subnets.map(|subnet| AssociationItem {
            network_acl_association_id: subnet.network_acl.id.to_string(),
            network_acl_id: acl.id.to_string(),
            subnet_id: subnet.id.to_string(),
        });
        Self {
            network_acl_id: acl.id.to_string(),
            owner_id: acl.owner.clone(),
            vpc_id: acl.vpc.to_string(),
            is_default: acl.is_default,
            entry_set,
            association_set: association_set.collect(),
            tags: world.tags(&acl.id).cloned().unwrap_or_default(),
        }
    }
}
