//! AssociateAddress and DisassociateAddress.

use std::net::Ipv4Addr;

use serde::{Deserialize, Serialize};

use super::meant;
use crate::actions::lookup::find_own;
use crate::actions::network_interfaces::own;
use crate::ids::{AddressAssociationId, AllocationId, NetworkInterfaceId, is_well_formed};
use crate::instances::interfaces;
use crate::network::public_addresses::{association, give_automatic};
use crate::query::{Action, ApiError, Context};
use crate::records::{
    ElasticAddress, ElasticAssociation, Instance, InstanceState, InternetGateway, NetworkInterface,
    PublicAddress,
};
use crate::state::{Draft, World};

/// Lets an elastic address stand for an address of an interface, in the place of whichever did.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase", deny_unknown_fields)]
pub struct AssociateAddress {
    allocation_id: Option<String>,
    public_ip: Option<String>,
    instance_id: Option<String>,
    network_interface_id: Option<String>,
    private_ip_address: Option<String>,
    allow_reassociation: Option<bool>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Associated {
    association_id: String,
}

/// What is to be done.
struct Plan {
    elastic: ElasticAddress,
    interface: NetworkInterfaceId,
    private: Ipv4Addr,
    /// The association, if it is there already.
    known: Option<AddressAssociationId>,
}

impl AssociateAddress {
    fn interface(&self, world: &World, context: Context<'_>) -> Result<NetworkInterface, ApiError> {
        let interface = match (&self.network_interface_id, &self.instance_id) {
            (Some(_), Some(_)) => {
                let message = "The parameters InstanceId and NetworkInterfaceId cannot be used together";
                return Err(ApiError::combination(message));
            }
            (None, None) => {
                let message = "Either 'InstanceId' or 'NetworkInterfaceId' must be provided";
                return Err(ApiError::new("MissingParameter", message));
            }
            (Some(id), None) => own(world, context, id)?,
            (None, Some(id)) => {
                let instance = find_own::<Instance>(world, context, id)?;
                let state = instance.lifecycle.state;
                if matches!(state, InstanceState::ShuttingDown | InstanceState::Terminated) {
                    let message = format!("The instance '{id}' is '{}'.", state.name());
                    return Err(ApiError::new("IncorrectInstanceState", message));
                }
                if interfaces(world, &instance.id).len() > 1 {
                    let message = format!(
                        "There are multiple interfaces attached to instance '{id}'. Please specify an interface ID for \
                         the operation instead."
                    );
                    return Err(ApiError::new("InvalidInstanceID", message));
                }
                own(world, context, instance.network_interface.as_str())?
            }
        };
        Ok(NetworkInterface::clone(interface))
    }

    fn plan(&self, world: &World, context: Context<'_>) -> Result<Plan, ApiError> {
        let elastic = meant(world, context, self.allocation_id.as_deref(), self.public_ip.as_deref())?;
        let interface = self.interface(world, context)?;
        let target = match &self.private_ip_address {
            None => &interface.primary,
            Some(text) => {
                let address = text
                    .parse::<Ipv4Addr>()
                    .map_err(|_| ApiError::invalid(text, "privateIpAddress", "It is not an IPv4 address."))?;
                interface.addresses().find(|one| one.address == address).ok_or_else(|| {
                    let message =
                        format!("The private IP address {address} is not assigned to {}.", interface.id);
                    ApiError::new("InvalidParameterValue", message)
                })?
            }
        };
        if !world.all::<InternetGateway>().any(|gateway| gateway.vpc.as_ref() == Some(&interface.vpc)) {
            let message = format!("Network {} is not attached to any internet gateway", interface.vpc);
            return Err(ApiError::new("Gateway.NotAttached", message));
        }
        let mut known = None;
        if let Some((holder, address, association)) = association(world, &elastic.id) {
            // One of a NAT gateway stays there.
            own(world, context, holder.id.as_str())?;
            if (&holder.id, address.address) == (&interface.id, target.address) {
                known = Some(association.id.clone());
            } else if self.allow_reassociation == Some(false) {
                let message = format!(
                    "resource {} is already associated with associate-id {}",
                    elastic.id, association.id
                );
                return Err(ApiError::new("Resource.AlreadyAssociated", message));
            }
        }
        let other = target.public.as_ref().and_then(|public| public.elastic.as_ref());
        if let Some(other) = other.filter(|other| other.allocation != elastic.id)
            && self.allow_reassociation == Some(false)
        {
            let message =
                format!("resource {} is already associated with associate-id {}", interface.id, other.id);
            return Err(ApiError::new("Resource.AlreadyAssociated", message));
        }
        let elastic = ElasticAddress::clone(elastic);
        Ok(Plan { elastic, private: target.address, interface: interface.id.clone(), known })
    }
}

/// Ends the association of an elastic address, if there is one. The instance that had it gets an automatic address again,
/// if it had one before, as in EC2.
fn disassociate(draft: &mut Draft, context: Context<'_>, allocation: &AllocationId) {
    let Some((interface, _, _)) = association(draft, allocation) else { return };
    let id = interface.id.clone();
    let instance = interface.instance().and_then(|id| draft.get::<Instance>(id));
    let runs = instance.is_some_and(|instance| instance.lifecycle.state.holds_capacity());
    draft.update::<NetworkInterface>(&id, |interface| {
        for address in interface.addresses_mut() {
            let elastic = address.public.as_ref().and_then(|public| public.elastic.as_ref());
            if elastic.is_some_and(|elastic| elastic.allocation == *allocation) {
                address.public = None;
            }
        }
    });
    if runs {
        give_automatic(draft, &context.agent.config, &id);
    }
}

impl Action for AssociateAddress {
    const NAME: &'static str = "AssociateAddress";
    type Response = Associated;

    fn check(&self, context: Context<'_>) -> Result<(), ApiError> {
        self.plan(&context.agent.state.read(), context).map(drop)
    }

    fn run(self, context: Context<'_>) -> Result<Associated, ApiError> {
        context.agent.state.change(|draft| {
            let Plan { elastic, interface, private, known } = self.plan(draft, context)?;
            if let Some(id) = known {
                return Ok(Associated { association_id: id.to_string() });
            }
            disassociate(draft, context, &elastic.id);
            let id = AddressAssociationId::random();
            let association = ElasticAssociation { allocation: elastic.id, id: id.clone() };
            let public = PublicAddress { address: elastic.public_address, elastic: Some(association) };
            draft.update::<NetworkInterface>(&interface, |interface| {
                if let Some(target) = interface.addresses_mut().find(|one| one.address == private) {
                    target.public = Some(public);
                }
            });
            Ok(Associated { association_id: id.to_string() })
        })
    }
}

/// Takes an elastic address away from its interface. It stays the account's.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase", deny_unknown_fields)]
pub struct DisassociateAddress {
    association_id: Option<String>,
    public_ip: Option<String>,
}

impl DisassociateAddress {
    fn plan(&self, world: &World, context: Context<'_>) -> Result<AllocationId, ApiError> {
        let not_found = |id: &str| {
            let message = format!("The association ID '{id}' does not exist");
            ApiError::new("InvalidAssociationID.NotFound", message)
        };
        let (holder, allocation) = match (&self.association_id, &self.public_ip) {
            (Some(_), Some(_)) => {
                let message = "You may specify public IP or association id, but not both in the same call";
                return Err(ApiError::combination(message));
            }
            (None, None) => {
                let message = "Either public IP or association id must be specified";
                return Err(ApiError::new("MissingParameter", message));
            }
            (Some(id), None) => {
                if !is_well_formed(AddressAssociationId::PREFIX, id) {
                    let message = format!("Invalid id: \"{id}\" (expecting \"eipassoc-...\")");
                    return Err(ApiError::new("InvalidAssociationID.Malformed", message));
                }
                let owner = &context.caller.account;
                let mut own = world.all::<ElasticAddress>().filter(|address| address.owner == *owner);
                let found = own.find_map(|address| {
                    let (holder, _, association) = association(world, &address.id)?;
                    (association.id.as_str() == id).then(|| (holder, address.id.clone()))
                });
                found.ok_or_else(|| not_found(id))?
            }
            (None, Some(ip)) => {
                let address = meant(world, context, None, Some(ip))?;
                let found =
                    association(world, &address.id).map(|(holder, _, _)| (holder, address.id.clone()));
                found.ok_or_else(|| not_found(ip))?
            }
        };
        own(world, context, holder.id.as_str())?;
        Ok(allocation)
    }
}

impl Action for DisassociateAddress {
    const NAME: &'static str = "DisassociateAddress";
    type Response = ();

    fn check(&self, context: Context<'_>) -> Result<(), ApiError> {
        self.plan(&context.agent.state.read(), context).map(drop)
    }

    fn run(self, context: Context<'_>) -> Result<(), ApiError> {
        context.agent.state.change(|draft| {
            let allocation = self.plan(draft, context)?;
            disassociate(draft, context, &allocation);
            Ok(())
        })
    }
}
