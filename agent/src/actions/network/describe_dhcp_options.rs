//! DescribeDhcpOptions.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::actions::lookup::select;
use crate::query::filters::{Field, Filter, Filtered, Selection};
use crate::query::pages::page;
use crate::query::{Action, ApiError, Context};
use crate::records::DhcpOptions;
use crate::state::World;

/// The caller's sets of DHCP options.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase", deny_unknown_fields)]
pub struct DescribeDhcpOptions {
    #[serde(default, rename = "Filter")]
    filters: Vec<Filter>,
    #[serde(default, rename = "DhcpOptionsId")]
    ids: Vec<String>,
    max_results: Option<i64>,
    next_token: Option<String>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Response {
    dhcp_options_set: Vec<Item>,
    next_token: Option<String>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Item {
    dhcp_options_id: String,
    owner_id: String,
    dhcp_configuration_set: Vec<DhcpOption>,
    #[serde(rename = "tagSet", serialize_with = "crate::actions::tags::set")]
    tags: BTreeMap<String, String>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct DhcpOption {
    key: String,
    value_set: Vec<Value>,
}

#[derive(Debug, Serialize)]
struct Value {
    value: String,
}

impl Item {
    fn new(world: &World, options: &DhcpOptions) -> Self {
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

impl Filtered for Item {
    fn field(name: &str) -> Option<Field<Self>> {
        Some(match name {
            "dhcp-options-id" => |item| vec![item.dhcp_options_id.clone()],
            "owner-id" => |item| vec![item.owner_id.clone()],
            "key" => |item| item.dhcp_configuration_set.iter().map(|option| option.key.clone()).collect(),
            "value" => |item| {
                let values = item.dhcp_configuration_set.iter().flat_map(|option| &option.value_set);
                values.map(|value| value.value.clone()).collect()
            },
            _ => return None,
        })
    }

    fn tags(&self) -> Option<&BTreeMap<String, String>> {
        Some(&self.tags)
    }
}

impl Action for DescribeDhcpOptions {
    const NAME: &'static str = "DescribeDhcpOptions";
    type Response = Response;

    fn run(self, context: Context<'_>) -> Result<Response, ApiError> {
        let world = context.agent.state.read();
        let wanted = Selection::new(&self.filters)?;
        let all = select::<DhcpOptions>(&world, context, &self.ids)?;
        let mut items: Vec<Item> = all.iter().map(|options| Item::new(&world, options)).collect();
        items.retain(|item| wanted.accepts(item));
        let (dhcp_options_set, next_token) =
            page(items, |item| &item.dhcp_options_id, self.max_results, self.next_token.as_deref(), 5)?;
        Ok(Response { dhcp_options_set, next_token })
    }
}
