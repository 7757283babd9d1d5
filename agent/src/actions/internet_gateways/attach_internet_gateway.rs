//! AttachInternetGateway and DetachInternetGateway.

use serde::Deserialize;

use crate::actions::lookup::find_own;
use crate::query::{Action, ApiError, Context};
use crate::records::{InternetGateway, NetworkInterface, Vpc};
use crate::state::World;

/// Gives a gateway to a VPC that has none.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase", deny_unknown_fields)]
pub struct AttachInternetGateway {
    internet_gateway_id: String,
    vpc_id: String,
}

impl AttachInternetGateway {
    /// The gateway as it shall be.
    fn plan(&self, world: &World, context: Context<'_>) -> Result<InternetGateway, ApiError> {
        let gateway = find_own::<InternetGateway>(world, context, &self.internet_gateway_id)?;
        let vpc = find_own::<Vpc>(world, context, &self.vpc_id)?;
        if let Some(other) = &gateway.vpc {
            let message = format!("resource {} is already attached to network {other}", gateway.id);
            return Err(ApiError::new("Resource.AlreadyAssociated", message));
        }
        if world.all::<InternetGateway>().any(|gateway| gateway.vpc.as_ref() == Some(&vpc.id)) {
            let message = format!("Network {} already has an internet gateway attached", vpc.id);
            return Err(ApiError::new("InvalidParameterValue", message));
        }
        Ok(InternetGateway { vpc: Some(vpc.id.clone()), ..InternetGateway::clone(gateway) })
    }
}

impl Action for AttachInternetGateway {
    const NAME: &'static str = "AttachInternetGateway";
    type Response = ();

    fn check(&self, context: Context<'_>) -> Result<(), ApiError> {
        self.plan(&context.agent.state.read(), context).map(drop)
    }

    fn run(self, context: Context<'_>) -> Result<(), ApiError> {
        context.agent.state.change(|draft| {
            let gateway = self.plan(draft, context)?;
            draft.put(gateway);
            Ok(())
        })
    }
}

/// Takes a gateway away from a VPC in which nobody has a public address. Routes to it lead nowhere.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase", deny_unknown_fields)]
pub struct DetachInternetGateway {
    internet_gateway_id: String,
    vpc_id: String,
}

impl DetachInternetGateway {
    /// The gateway as it shall be.
    fn plan(&self, world: &World, context: Context<'_>) -> Result<InternetGateway, ApiError> {
        let gateway = find_own::<InternetGateway>(world, context, &self.internet_gateway_id)?;
        let vpc = find_own::<Vpc>(world, context, &self.vpc_id)?;
        if gateway.vpc.as_ref() != Some(&vpc.id) {
            let message = format!("resource {} is not attached to network {}", gateway.id, vpc.id);
            return Err(ApiError::new("Gateway.NotAttached", message));
        }
        let mut interfaces = world.all::<NetworkInterface>().filter(|interface| interface.vpc == vpc.id);
        if interfaces.any(|interface| interface.addresses().any(|address| address.public.is_some())) {
            let message = format!(
                "Network {} has some mapped public address(es). Please unmap those public address(es) before detaching \
                 the gateway.",
                vpc.id
            );
            return Err(ApiError::new("DependencyViolation", message));
        }
        Ok(InternetGateway { vpc: None, ..InternetGateway::clone(gateway) })
    }
}

impl Action for DetachInternetGateway {
    const NAME: &'static str = "DetachInternetGateway";
    type Response = ();

    fn check(&self, context: Context<'_>) -> Result<(), ApiError> {
        self.plan(&context.agent.state.read(), context).map(drop)
    }

    fn run(self, context: Context<'_>) -> Result<(), ApiError> {
        context.agent.state.change(|draft| {
            let gateway = self.plan(draft, context)?;
            draft.put(gateway);
            Ok(())
        })
    }
}
