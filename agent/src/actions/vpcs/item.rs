//! A VPC in answers.

use std::collections::BTreeMap;

use serde::Serialize;

use crate::records::Vpc;
use crate::state::World;

/// `vpc`.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct VpcItem {
    pub vpc_id: String,
    pub owner_id: String,
    pub state: &'static str,
    pub cidr_block: String,
    pub cidr_block_association_set: Vec<Association>,
    pub dhcp_options_id: String,
    pub instance_tenancy: &'static str,
    pub is_default: bool,
    #[serde(rename = "tagSet", serialize_with = "crate::actions::tags::set")]
    pub tags: BTreeMap<String, String>,
}

/// `cidrBlockAssociation`.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Association {
    pub association_id: String,
    pub cidr_block: String,
    pub cidr_block_state: AssociationState,
}

#[derive(Debug, Serialize)]
pub struct AssociationState {
    pub state: &'static str,
}

impl Association {
    /// How far it is, in EC2's words. Nothing has to be waited for.
    pub fn new(id: String, cidr: impl ToString, state: &'static str) -> Self {
        Self {
            association_id: id,
            cidr_block: cidr.to_string(),
            cidr_block_state: AssociationState { state },
        }
    }
}

impl VpcItem {
    pub fn new(world: &World, vpc: &Vpc) -> Self {
        let primary = Association::new(vpc.primary_association(), vpc.cidr, "associated");
        let others = vpc.secondary_cidrs.iter();
        let others = others.map(|one| Association::new(one.id.to_string(), one.cidr, "associated"));
        Self {
            vpc_id: vpc.id.to_string(),
            owner_id: vpc.owner.clone(),
            state: "available",
            cidr_block: vpc.cidr.to_string(),
            cidr_block_association_set: std::iter::once(primary).chain(others).collect(),
            dhcp_options_id: vpc
                .dhcp_options
                .as_ref()
                .map_or_else(|| "default".to_owned(), ToString::to_string),
            instance_tenancy: "default",
            is_default: vpc.is_default,
            tags: world.tags(&vpc.id).cloned().unwrap_or_default(),
        }
    }
}
