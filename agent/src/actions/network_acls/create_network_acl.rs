//! CreateNetworkAcl, DeleteNetworkAcl and ReplaceNetworkAclAssociation.

use serde::{Deserialize, Serialize};

use super::item::AclItem;
use crate::actions::lookup::{dependency, find, find_own};
use crate::ids::{NetworkAclAssociationId, NetworkAclId, SubnetId, is_well_formed};
use crate::query::idempotency::{recall, remember};
use crate::query::tags::{TagSpecification, specified_for};
use crate::query::{Action, ApiError, Context};
use crate::records::{AclAssociation, NetworkAcl, Subnet, Tags, Vpc};
use crate::state::World;

/// The most network ACLs of a VPC.
const MAX_ACLS: usize = 200;

/// Makes an ACL that denies everything, until it has entries, and that no subnet has yet.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase", deny_unknown_fields)]
pub struct CreateNetworkAcl {
    vpc_id: String,
    client_token: Option<String>,
    #[serde(default, rename = "TagSpecification")]
    tags: Vec<TagSpecification>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Response {
    network_acl: AclItem,
    client_token: Option<String>,
}

impl CreateNetworkAcl {
    fn plan(&self, world: &World, context: Context<'_>) -> Result<NetworkAcl, ApiError> {
        let vpc = find_own::<Vpc>(world, context, &self.vpc_id)?;
        if world.all::<NetworkAcl>().filter(|acl| acl.vpc == vpc.id).count() >= MAX_ACLS {
            let message =
                format!("The maximum number of network ACLs of a VPC has been reached: {MAX_ACLS}.");
            return Err(ApiError::new("NetworkAclLimitExceeded", message));
        }
        Ok(NetworkAcl {
            id: NetworkAclId::random(),
            owner: vpc.owner.clone(),
            vpc: vpc.id.clone(),
            is_default: false,
            entries: Vec::new(),
        })
    }

    fn answer(&self, world: &World, acl: &NetworkAcl) -> Response {
        Response { network_acl: AclItem::new(world, acl), client_token: self.client_token.clone() }
    }
}

impl Action for CreateNetworkAcl {
    const NAME: &'static str = "CreateNetworkAcl";
    type Response = Response;

    fn check(&self, context: Context<'_>) -> Result<(), ApiError> {
        specified_for(&self.tags, "network-acl")?;
        let world = context.agent.state.read();
        match recall(&world, context, Self::NAME, self.client_token.as_deref())? {
            Some(_) => Ok(()),
            None => self.plan(&world, context).map(drop),
        }
    }

    fn run(self, context: Context<'_>) -> Result<Response, ApiError> {
        let tags = specified_for(&self.tags, "network-acl")?;
        let token = self.client_token.as_deref();
        context.agent.state.change(|draft| {
            if let Some(earlier) = recall(draft, context, Self::NAME, token)? {
                return Ok(self.answer(draft, find::<NetworkAcl>(draft, context, &earlier)?));
            }
            let acl = self.plan(draft, context)?;
            remember(draft, context, Self::NAME, token, &acl.id);
            draft.tag(&acl.id, tags);
            draft.put(acl.clone());
            Ok(self.answer(draft, &acl))
        })
    }
}

/// Deletes an ACL that no subnet has.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase", deny_unknown_fields)]
pub struct DeleteNetworkAcl {
    network_acl_id: String,
}

impl DeleteNetworkAcl {
    fn plan(&self, world: &World, context: Context<'_>) -> Result<NetworkAclId, ApiError> {
        let acl = find_own::<NetworkAcl>(world, context, &self.network_acl_id)?;
        if acl.is_default {
            let message = format!("cannot delete default network ACL {}", acl.id);
            return Err(ApiError::new("InvalidParameterValue", message));
        }
        if world.all::<Subnet>().any(|subnet| subnet.network_acl.network_acl == acl.id) {
            return Err(dependency("networkAcl", &acl.id));
        }
        Ok(acl.id.clone())
    }
}

impl Action for DeleteNetworkAcl {
    const NAME: &'static str = "DeleteNetworkAcl";
    type Response = ();

    fn check(&self, context: Context<'_>) -> Result<(), ApiError> {
        self.plan(&context.agent.state.read(), context).map(drop)
    }

    fn run(self, context: Context<'_>) -> Result<(), ApiError> {
        context.agent.state.change(|draft| {
            let id = self.plan(draft, context)?;
            draft.remove::<NetworkAcl>(&id);
            draft.remove::<Tags>(&id);
            Ok(())
        })
    }
}

/// Gives another ACL to a subnet. The association has a new id then.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase", deny_unknown_fields)]
pub struct ReplaceNetworkAclAssociation {
    association_id: String,
    network_acl_id: String,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Replaced {
    new_association_id: String,
}

impl ReplaceNetworkAclAssociation {
    fn plan(&self, world: &World, context: Context<'_>) -> Result<(SubnetId, NetworkAclId), ApiError> {
        let id = self.association_id.as_str();
        if !is_well_formed(NetworkAclAssociationId::PREFIX, id) {
            let message = format!("Invalid id: \"{id}\" (expecting \"aclassoc-...\")");
            return Err(ApiError::new("InvalidNetworkAclAssociationId.Malformed", message));
        }
        let mut own = world.all::<Subnet>().filter(|subnet| subnet.owner == context.caller.account);
        let Some(subnet) = own.find(|subnet| subnet.network_acl.id.as_str() == id) else {
            let message = format!("The association ID '{id}' does not exist");
            return Err(ApiError::new("InvalidAssociationID.NotFound", message));
        };
        let acl = find_own::<NetworkAcl>(world, context, &self.network_acl_id)?;
        if acl.vpc != subnet.vpc {
            let message =
                format!("network ACL {} and subnet {} belong to different networks", acl.id, subnet.id);
            return Err(ApiError::new("InvalidParameterValue", message));
        }
        Ok((subnet.id.clone(), acl.id.clone()))
    }
}

impl Action for ReplaceNetworkAclAssociation {
    const NAME: &'static str = "ReplaceNetworkAclAssociation";
    type Response = Replaced;

    fn check(&self, context: Context<'_>) -> Result<(), ApiError> {
        self.plan(&context.agent.state.read(), context).map(drop)
    }

    fn run(self, context: Context<'_>) -> Result<Replaced, ApiError> {
        context.agent.state.change(|draft| {
            let (subnet, network_acl) = self.plan(draft, context)?;
            let id = NetworkAclAssociationId::random();
            let answer = Replaced { new_association_id: id.to_string() };
            draft.update::<Subnet>(&subnet, |subnet| subnet.network_acl = AclAssociation { id, network_acl });
            Ok(answer)
        })
    }
}
