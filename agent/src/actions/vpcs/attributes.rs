//! DescribeVpcAttribute and ModifyVpcAttribute.

use serde::{Deserialize, Serialize};

use crate::actions::lookup::{find, find_own};
use crate::actions::refused::unsupported;
use crate::query::{Action, ApiError, Context};
use crate::records::Vpc;
use crate::state::World;

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

/// In requests and in answers.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
#[serde(rename_all(deserialize = "PascalCase"), deny_unknown_fields)]
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
        let (place, value) = match self.attribute.as_str() {
            "enableDnsSupport" => (&mut response.enable_dns_support, vpc.enable_dns_support),
            "enableDnsHostnames" => (&mut response.enable_dns_hostnames, vpc.enable_dns_hostnames),
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

/// Changes one attribute of a VPC.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase", deny_unknown_fields)]
pub struct ModifyVpcAttribute {
    vpc_id: String,
    enable_dns_support: Option<Value>,
    enable_dns_hostnames: Option<Value>,
    enable_network_address_usage_metrics: Option<Value>,
}

impl ModifyVpcAttribute {
    /// The VPC as it shall be.
    fn plan(&self, world: &World, context: Context<'_>) -> Result<Vpc, ApiError> {
        let mut vpc = Vpc::clone(find_own::<Vpc>(world, context, &self.vpc_id)?);
        match (self.enable_dns_support, self.enable_dns_hostnames, self.enable_network_address_usage_metrics)
        {
            (Some(on), None, None) => vpc.enable_dns_support = on.value,
            (None, Some(on), None) => vpc.enable_dns_hostnames = on.value,
            (None, None, Some(Value { value: false })) => {}
            (None, None, Some(_)) => {
                return Err(unsupported("This host has no metrics of how many addresses a network uses."));
            }
            (None, None, None) => {
                return Err(ApiError::missing("enableDnsSupport or enableDnsHostnames"));
            }
            _ => {
                let message = "Fields for multiple attribute types specified: change one at a time.";
                return Err(ApiError::combination(message));
            }
        }
        Ok(vpc)
    }
}

impl Action for ModifyVpcAttribute {
    const NAME: &'static str = "ModifyVpcAttribute";
    type Response = ();

    fn check(&self, context: Context<'_>) -> Result<(), ApiError> {
        self.plan(&context.agent.state.read(), context).map(drop)
    }

    fn run(self, context: Context<'_>) -> Result<(), ApiError> {
        context.agent.state.change(|draft| {
            let vpc = self.plan(draft, context)?;
            draft.put(vpc);
            Ok(())
        })
    }
}
