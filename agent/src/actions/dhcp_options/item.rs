//! A set of DHCP options in answers.

use std::collections::BTreeMap;

use serde::Serialize;

use crate::records::DhcpOptions;
use crate::state::World;

/// `dhcpOptions`.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct OptionsItem {
    pub dhcp_options_id: String,
    pub owner_id: String,
    pub dhcp_configuration_set: Vec<DhcpOption>,
    #[serde(rename = "tagSet", serialize_with = "crate::actions::tags::set")]
    pub tags: BTreeMap<String, String>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct DhcpOption {
    pub key: String,
    pub value_set: Vec<Value>,
}

#[derive(Debug, Serialize)]
pub struct Value {
    pub value: String,
}

impl OptionsItem {
    pub fn new(world: &World, options: &DhcpOptions) -> Self {
        let option = |(key, values): &(String, Vec<String>)| DhcpOption {
            key: key.clone(),
            value_set: values.iter().map(|value| Value { value: value.clone() }).collect(),
        };
        Self {
            dhcp_options_id: options.id.to_string(),
            owner_id: options.owner.clone(),
            dhcp_configuration_set: options.options.iter().map(option).collect(),
            tags: world.tags(&options.id).cloned().unwrap_or_default(),
        }
    }
}
