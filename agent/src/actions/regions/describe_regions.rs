//! DescribeRegions.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::query::filters::{Field, Filter, Filtered, Selection};
use crate::query::{Action, ApiError, Context};

/// There is one region: this host's.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase", deny_unknown_fields)]
pub struct DescribeRegions {
    #[serde(default, rename = "Filter")]
    filters: Vec<Filter>,
    #[serde(default, rename = "RegionName")]
    names: Vec<String>,
    #[serde(default, rename = "AllRegions")]
    _all: bool,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Response {
    region_info: Vec<Region>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Region {
    region_name: String,
    region_endpoint: String,
    opt_in_status: &'static str,
}

impl Filtered for Region {
    fn field(name: &str) -> Option<Field<Self>> {
        Some(match name {
            "region-name" => |region| vec![region.region_name.clone()],
            "endpoint" => |region| vec![region.region_endpoint.clone()],
            "opt-in-status" => |region| vec![region.opt_in_status.to_owned()],
            _ => return None,
        })
    }

    fn tags(&self) -> Option<&BTreeMap<String, String>> {
        None
    }
}

impl Action for DescribeRegions {
    const NAME: &'static str = "DescribeRegions";
    type Response = Response;

    fn run(self, context: Context<'_>) -> Result<Response, ApiError> {
        let config = &context.agent.config;
        if let Some(unknown) = self.names.iter().find(|name| **name != config.region) {
            let message = format!("Invalid region provided: {unknown}. This host is {}.", config.region);
            return Err(ApiError::new("InvalidParameterValue", message));
        }
        let wanted = Selection::new(&self.filters)?;
        let region = Region {
            region_name: config.region.clone(),
            region_endpoint: config.listen.to_string(),
            opt_in_status: "opt-in-not-required",
        };
        Ok(Response { region_info: Vec::from_iter(wanted.accepts(&region).then_some(region)) })
    }
}
