//! CreateInternetGateway and DeleteInternetGateway.

use serde::{Deserialize, Serialize};

use super::item::GatewayItem;
use crate::actions::lookup::{dependency, find_own};
use crate::ids::InternetGatewayId;
use crate::query::tags::{TagSpecification, specified_for};
use crate::query::{Action, ApiError, Context};
use crate::records::{InternetGateway, Tags};
use crate::state::World;

/// Makes a gateway that no VPC has yet.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase", deny_unknown_fields)]
pub struct CreateInternetGateway {
    #[serde(default, rename = "TagSpecification")]
    tags: Vec<TagSpecification>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Response {
    internet_gateway: GatewayItem,
}

/// As in EC2, an account can have as many gateways as VPCs.
fn room_for_one(world: &World, context: Context<'_>) -> Result<(), ApiError> {
    let quota = context.agent.config.vpc_quota;
    let owner = &context.caller.account;
    if world.all::<InternetGateway>().filter(|gateway| gateway.owner == *owner).count() >= quota {
        let message = format!(
            "The maximum number of internet gateways has been reached: {quota}, which is vpc-quota in the agent's \
             configuration."
        );
        return Err(ApiError::new("InternetGatewayLimitExceeded", message));
    }
    Ok(())
}

impl Action for CreateInternetGateway {
    const NAME: &'static str = "CreateInternetGateway";
    type Response = Response;

    fn check(&self, context: Context<'_>) -> Result<(), ApiError> {
        specified_for(&self.tags, "internet-gateway")?;
        room_for_one(&context.agent.state.read(), context)
    }

    fn run(self, context: Context<'_>) -> Result<Response, ApiError> {
        let tags = specified_for(&self.tags, "internet-gateway")?;
        context.agent.state.change(|draft| {
            room_for_one(draft, context)?;
            let owner = context.caller.account.clone();
            let gateway = InternetGateway { id: InternetGatewayId::random(), owner, vpc: None };
            draft.put(gateway.clone());
            draft.tag(&gateway.id, tags);
            Ok(Response { internet_gateway: GatewayItem::new(draft, &gateway) })
        })
    }
}

/// Deletes a gateway that no VPC has. Routes to it lead nowhere.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase", deny_unknown_fields)]
pub struct DeleteInternetGateway {
    internet_gateway_id: String,
}

impl DeleteInternetGateway {
    fn plan(&self, world: &World, context: Context<'_>) -> Result<InternetGatewayId, ApiError> {
        let gateway = find_own::<InternetGateway>(world, context, &self.internet_gateway_id)?;
        match gateway.vpc {
            Some(_) => Err(dependency("internetGateway", &gateway.id)),
            None => Ok(gateway.id.clone()),
        }
    }
}

impl Action for DeleteInternetGateway {
    const NAME: &'static str = "DeleteInternetGateway";
    type Response = ();

    fn check(&self, context: Context<'_>) -> Result<(), ApiError> {
        self.plan(&context.agent.state.read(), context).map(drop)
    }

    fn run(self, context: Context<'_>) -> Result<(), ApiError> {
        context.agent.state.change(|draft| {
            let id = self.plan(draft, context)?;
            draft.remove::<InternetGateway>(&id);
            draft.remove::<Tags>(&id);
            Ok(())
        })
    }
}
