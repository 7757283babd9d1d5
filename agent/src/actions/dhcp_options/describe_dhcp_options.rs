//! DescribeDhcpOptions.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::item::OptionsItem;
use crate::actions::lookup::select;
use crate::query::filters::{Field, Filter, Filtered, Selection};
use crate::query::pages::page;
use crate::query::{Action, ApiError, Context};
use crate::records::DhcpOptions;

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
    dhcp_options_set: Vec<OptionsItem>,
    next_token: Option<String>,
}

impl Filtered for OptionsItem {
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
        let mut items: Vec<OptionsItem> =
            all.iter().map(|options| OptionsItem::new(&world, options)).collect();
        items.retain(|item| wanted.accepts(item));
        let (dhcp_options_set, next_token) =
            page(items, |item| &item.dhcp_options_id, self.max_results, self.next_token.as_deref(), 5)?;
        Ok(Response { dhcp_options_set, next_token })
    }
}
