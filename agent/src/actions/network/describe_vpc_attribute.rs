//! DescribeVpcAttribute.

use serde::{Deserialize, Serialize};

use crate::actions::lookup::find;
use crate::query::{Action, ApiError, Context};
use crate::records::Vpc;

/// One attribute of a VPC.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase", deny_unknown_fields)]
pub struct DescribeVpcAttribute {
    vpc_id: String,
    attribute: String,
}

#[derive(Debug, Default, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Response {
    vpc_id: String,
    enable_dns_support: Option<Value>,
    enable_dns_hostnames: Option<Value>,
    enable_network_address_usage_metrics: Option<Value>,
}

#[derive(Debug, Serialize)]
struct Value {
    value: bool,
}

impl Action for DescribeVpcAttribute {
    const NAME: &'static str = "DescribeVpcAttribute";
    type Response = Response;

    fn run(self, context: Context<'_>) -> Result<Response, ApiError> {
        let world = context.agent.state.read();
        let vpc = find::<Vpc>(&world, context, &self.vpc_id)?;
        let mut response = Response { vpc_id: self.vpc_id, ..Response::default() };
        // What EC2 gives to a default VPC, and to one that somebody has made.
        let (place, value) = match self.attribute.as_str() {
            "enableDnsSupport" => (&mut response.enable_dns_support, true),
            "enableDnsHostnames" => (&mut response.enable_dns_hostnames, vpc.is_default),
            "enableNetworkAddressUsageMetrics" => (&mut response.enable_network_address_usage_metrics, false),
            other => {
                let reason =
                    "There are enableDnsSupport, enableDnsHostnames and enableNetworkAddressUsageMetrics.";
                return Err(ApiError::invalid(other, "attribute", reason));
            }
        };
        *place = Some(Value { value });
        Ok(response)
    }
}
