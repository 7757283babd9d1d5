//! DescribeAccountAttributes.

use serde::{Deserialize, Serialize};

use crate::actions::network_interfaces::MAX_GROUPS;
use crate::query::{Action, ApiError, Context};
use crate::records::Vpc;

/// What an account may have.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase", deny_unknown_fields)]
pub struct DescribeAccountAttributes {
    #[serde(default, rename = "AttributeName")]
    names: Vec<String>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Response {
    account_attribute_set: Vec<Attribute>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Attribute {
    attribute_name: &'static str,
    attribute_value_set: Vec<Value>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Value {
    attribute_value: String,
}

impl Action for DescribeAccountAttributes {
    const NAME: &'static str = "DescribeAccountAttributes";
    type Response = Response;

    fn run(self, context: Context<'_>) -> Result<Response, ApiError> {
        let world = context.agent.state.read();
        let account = &context.caller.account;
        let default_vpc = world.all::<Vpc>().find(|vpc| vpc.is_default && vpc.owner == *account);
        let elastic_addresses = context.agent.config.elastic_address_quota.to_string();
        let all = [
            ("supported-platforms", "VPC".to_owned()),
            ("default-vpc", default_vpc.map_or_else(|| "none".to_owned(), |vpc| vpc.id.to_string())),
            ("max-instances", "1000".to_owned()),
            ("vpc-max-security-groups-per-interface", MAX_GROUPS.to_string()),
            // Those outside of VPCs, which are no more.
            ("max-elastic-ips", elastic_addresses.clone()),
            ("vpc-max-elastic-ips", elastic_addresses),
        ];
        if let Some(unknown) = self.names.iter().find(|name| !all.iter().any(|(known, _)| known == *name)) {
            let known = all.map(|(name, _)| name).join(", ");
            return Err(ApiError::invalid(unknown, "attributeName", format!("There are {known}.")));
        }
        let wanted = |name: &str| self.names.is_empty() || self.names.iter().any(|wanted| wanted == name);
        let attributes = all.into_iter().filter(|(name, _)| wanted(name)).map(|(name, value)| Attribute {
            attribute_name: name,
            attribute_value_set: vec![Value { attribute_value: value }],
        });
        Ok(Response { account_attribute_set: attributes.collect() })
    }
}
