//! DescribeInstanceTypeOfferings.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::actions::regions::zone_id;
use crate::query::filters::{Field, Filter, Filtered, Selection};
use crate::query::pages::page;
use crate::query::{Action, ApiError, Context};

/// Where the types are to be had: everywhere.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase", deny_unknown_fields)]
pub struct DescribeInstanceTypeOfferings {
    location_type: Option<String>,
    #[serde(default, rename = "Filter")]
    filters: Vec<Filter>,
    max_results: Option<i64>,
    next_token: Option<String>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Response {
    instance_type_offering_set: Vec<Item>,
    next_token: Option<String>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Item {
    instance_type: String,
    location_type: String,
    location: String,
}

impl Filtered for Item {
    fn field(name: &str) -> Option<Field<Self>> {
        Some(match name {
            "instance-type" => |item| vec![item.instance_type.clone()],
            "location" => |item| vec![item.location.clone()],
            _ => return None,
        })
    }

    fn tags(&self) -> Option<&BTreeMap<String, String>> {
        None
    }
}

impl Action for DescribeInstanceTypeOfferings {
    const NAME: &'static str = "DescribeInstanceTypeOfferings";
    type Response = Response;

    fn run(self, context: Context<'_>) -> Result<Response, ApiError> {
        let config = &context.agent.config;
        let location_type = self.location_type.as_deref().unwrap_or("region");
        let locations: Vec<String> = match location_type {
            "region" => vec![config.region.clone()],
            "availability-zone" => config.zones.clone(),
            "availability-zone-id" => config.zones.iter().map(|zone| zone_id(&config.region, zone)).collect(),
            "outpost" => Vec::new(),
            other => {
                let reason = "Expecting one of: region, availability-zone, availability-zone-id, outpost.";
                return Err(ApiError::invalid(other, "LocationType", reason));
            }
        };
        let wanted = Selection::new(&self.filters)?;
        let mut items: Vec<(String, Item)> = Vec::new();
        for kind in context.agent.catalogue.all() {
            let of_kind = locations.iter().map(|location| Item {
                instance_type: kind.name.clone(),
                location_type: location_type.to_owned(),
                location: location.clone(),
            });
            let of_kind = of_kind.filter(|item| wanted.accepts(item));
            items.extend(of_kind.map(|item| (format!("{}/{}", item.instance_type, item.location), item)));
        }
        items.sort_by(|one, other| one.0.cmp(&other.0));
        let (items, next_token) =
            page(items, |(key, _)| key, self.max_results, self.next_token.as_deref(), 5)?;
        let instance_type_offering_set = items.into_iter().map(|(_, item)| item).collect();
        Ok(Response { instance_type_offering_set, next_token })
    }
}
