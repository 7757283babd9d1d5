//! DescribeAvailabilityZones.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::query::filters::{Field, Filter, Filtered, Selection};
use crate::query::{Action, ApiError, Context};

/// The zones are those of the configuration.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase", deny_unknown_fields)]
pub struct DescribeAvailabilityZones {
    #[serde(default, rename = "Filter")]
    filters: Vec<Filter>,
    #[serde(default, rename = "ZoneName")]
    names: Vec<String>,
    #[serde(default, rename = "ZoneId")]
    ids: Vec<String>,
    #[serde(default, rename = "AllAvailabilityZones")]
    _all: bool,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Response {
    availability_zone_info: Vec<Zone>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Zone {
    zone_name: String,
    zone_id: String,
    zone_state: &'static str,
    zone_type: &'static str,
    region_name: String,
    group_name: String,
    network_border_group: String,
    opt_in_status: &'static str,
    message_set: Vec<Message>,
}

/// There are none: an outage of a zone is one of the host.
#[derive(Debug, Serialize)]
enum Message {}

impl Filtered for Zone {
    fn field(name: &str) -> Option<Field<Self>> {
        Some(match name {
            "zone-name" => |zone| vec![zone.zone_name.clone()],
            "zone-id" => |zone| vec![zone.zone_id.clone()],
            "zone-type" => |zone| vec![zone.zone_type.to_owned()],
            "state" => |zone| vec![zone.zone_state.to_owned()],
            "region-name" => |zone| vec![zone.region_name.clone()],
            "group-name" => |zone| vec![zone.group_name.clone()],
            "opt-in-status" => |zone| vec![zone.opt_in_status.to_owned()],
            "message" | "group-long-name" | "parent-zone-id" | "parent-zone-name" => |_| Vec::new(),
            _ => return None,
        })
    }

    fn tags(&self) -> Option<&BTreeMap<String, String>> {
        None
    }
}

impl Action for DescribeAvailabilityZones {
    const NAME: &'static str = "DescribeAvailabilityZones";
    type Response = Response;

    fn run(self, context: Context<'_>) -> Result<Response, ApiError> {
        let config = &context.agent.config;
        let mut zones: Vec<Zone> = config
            .zones
            .iter()
            .map(|name| Zone {
                zone_name: name.clone(),
                zone_id: zone_id(&config.region, name),
                zone_state: "available",
                zone_type: "availability-zone",
                region_name: config.region.clone(),
                group_name: config.region.clone(),
                network_border_group: config.region.clone(),
                opt_in_status: "opt-in-not-required",
                message_set: Vec::new(),
            })
            .collect();
        for (wanted, parameter) in [(&self.names, "ZoneName"), (&self.ids, "ZoneId")] {
            let value = |zone: &Zone| match parameter {
                "ZoneName" => zone.zone_name.clone(),
                _ => zone.zone_id.clone(),
            };
            if let Some(unknown) =
                wanted.iter().find(|wanted| !zones.iter().any(|zone| value(zone) == **wanted))
            {
                let message = format!("Invalid availability zone: [{unknown}]");
                return Err(ApiError::new("InvalidParameterValue", message));
            }
            if !wanted.is_empty() {
                zones.retain(|zone| wanted.contains(&value(zone)));
            }
        }
        let selection = Selection::new(&self.filters)?;
        zones.retain(|zone| selection.accepts(zone));
        Ok(Response { availability_zone_info: zones })
    }
}

/// A zone's id in AWS's form: `use1-az1` is `us-east-1a`. Which letter has which number differs from account to
/// account there; here `a` is 1. A zone whose name is not its region's and a letter has its name for its id.
pub(crate) fn zone_id(region: &str, zone: &str) -> String {
    let Some(number) = zone.strip_prefix(region).and_then(|letter| match letter.as_bytes() {
        [letter @ b'a'..=b'z'] => Some(letter - b'a' + 1),
        _ => None,
    }) else {
        return zone.to_owned();
    };
    // `ap-southeast-2` is `apse2`, `us-gov-west-1` is `usgw1`.
    let mut short = String::new();
    for (index, part) in region.split('-').enumerate() {
        match part {
            _ if index == 0 => short.push_str(part),
            "northeast" => short.push_str("ne"),
            "northwest" => short.push_str("nw"),
            "southeast" => short.push_str("se"),
            "southwest" => short.push_str("sw"),
            _ if part.bytes().all(|byte| byte.is_ascii_digit()) => short.push_str(part),
            _ => short.extend(part.chars().take(1)),
        }
    }
    format!("{short}-az{number}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn zone_ids_have_the_form_of_aws() {
        for (region, zone, expected) in [
            ("us-east-1", "us-east-1a", "use1-az1"),
            ("us-west-2", "us-west-2d", "usw2-az4"),
            ("eu-central-1", "eu-central-1b", "euc1-az2"),
            ("ap-southeast-2", "ap-southeast-2c", "apse2-az3"),
            ("ap-northeast-1", "ap-northeast-1a", "apne1-az1"),
            ("ca-central-1", "ca-central-1a", "cac1-az1"),
            ("us-gov-west-1", "us-gov-west-1a", "usgw1-az1"),
            ("home", "homea", "home-az1"),
            ("home", "cellar", "cellar"),
        ] {
            assert_eq!(zone_id(region, zone), expected, "{zone}");
        }
    }
}
