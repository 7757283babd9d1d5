//! AssociateRouteTable, DisassociateRouteTable and ReplaceRouteTableAssociation.

use std::sync::Arc;

use serde::de::IgnoredAny;
use serde::{Deserialize, Serialize};

use super::item::AssociationState;
use crate::actions::lookup::find_own;
use crate::actions::refused::refuse;
use crate::ids::{RouteTableAssociationId, RouteTableId, SubnetId, is_well_formed};
use crate::query::{Action, ApiError, Context};
use crate::records::{RouteTable, RouteTableAssociation, Subnet};
use crate::state::{Draft, World};

/// Lets a subnet use a route table instead of the main one.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase", deny_unknown_fields)]
pub struct AssociateRouteTable {
    route_table_id: String,
    subnet_id: Option<String>,
    gateway_id: Option<IgnoredAny>,
    public_ipv4_pool: Option<IgnoredAny>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Associated {
    association_id: String,
    association_state: AssociationState,
}

impl AssociateRouteTable {
    fn plan(&self, world: &World, context: Context<'_>) -> Result<(RouteTableId, SubnetId), ApiError> {
        refuse(&[(
            self.gateway_id.is_some() || self.public_ipv4_pool.is_some(),
            "Only subnets use route tables on this host: leave GatewayId and PublicIpv4Pool out.",
        )])?;
        let table = find_own::<RouteTable>(world, context, &self.route_table_id)?;
        let id = self.subnet_id.as_deref().ok_or_else(|| ApiError::missing("subnetId"))?;
        let subnet = find_own::<Subnet>(world, context, id)?;
        if table.vpc != subnet.vpc {
            let message =
                format!("route table {} and subnet {} belong to different networks", table.id, subnet.id);
            return Err(ApiError::new("InvalidParameterValue", message));
        }
        let uses =
            |table: &RouteTable| table.associations.iter().any(|one| one.subnet.as_ref() == Some(&subnet.id));
        if world.all::<RouteTable>().any(|table| uses(table)) {
            let message = format!(
                "the specified association for route table {} conflicts with an existing association",
                table.id
            );
            return Err(ApiError::new("Resource.AlreadyAssociated", message));
        }
        Ok((table.id.clone(), subnet.id.clone()))
    }
}

/// Lets a table be used, under a new id.
fn associate(draft: &mut Draft, table: &RouteTableId, subnet: Option<SubnetId>) -> RouteTableAssociationId {
    let id = RouteTableAssociationId::random();
    let association = RouteTableAssociation { id: id.clone(), subnet };
    draft.update::<RouteTable>(table, |table| table.associations.push(association));
    id
}

/// Ends an association.
fn disassociate(draft: &mut Draft, table: &RouteTableId, id: &RouteTableAssociationId) {
    draft.update::<RouteTable>(table, |table| table.associations.retain(|one| one.id != *id));
}

/// The association with an id, and its table.
fn association<'w>(
    world: &'w World,
    context: Context<'_>,
    id: &str,
) -> Result<(&'w Arc<RouteTable>, &'w RouteTableAssociation), ApiError> {
    if !is_well_formed(RouteTableAssociationId::PREFIX, id) {
        let message = format!("Invalid id: \"{id}\" (expecting \"rtbassoc-...\")");
        return Err(ApiError::new("InvalidRouteTableAssociationId.Malformed", message));
    }
    let mut own = world.all::<RouteTable>().filter(|table| table.owner == context.caller.account);
    let found = own.find_map(|table| {
        let association = table.associations.iter().find(|association| association.id.as_str() == id)?;
        Some((table, association))
    });
    found.ok_or_else(|| {
        ApiError::new("InvalidAssociationID.NotFound", format!("The association ID '{id}' does not exist"))
    })
}

impl Action for AssociateRouteTable {
    const NAME: &'static str = "AssociateRouteTable";
    type Response = Associated;

    fn check(&self, context: Context<'_>) -> Result<(), ApiError> {
        self.plan(&context.agent.state.read(), context).map(drop)
    }

    fn run(self, context: Context<'_>) -> Result<Associated, ApiError> {
        context.agent.state.change(|draft| {
            let (table, subnet) = self.plan(draft, context)?;
            let id = associate(draft, &table, Some(subnet));
            Ok(Associated { association_id: id.to_string(), association_state: AssociationState::ASSOCIATED })
        })
    }
}

/// Lets a subnet use the main route table again.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase", deny_unknown_fields)]
pub struct DisassociateRouteTable {
    association_id: String,
}

impl DisassociateRouteTable {
    fn plan(
        &self,
        world: &World,
        context: Context<'_>,
    ) -> Result<(RouteTableId, RouteTableAssociationId), ApiError> {
        let (table, association) = association(world, context, &self.association_id)?;
        if association.subnet.is_none() {
            let message = format!("cannot disassociate the main route table association {}", association.id);
            return Err(ApiError::new("InvalidParameterValue", message));
        }
        Ok((table.id.clone(), association.id.clone()))
    }
}

impl Action for DisassociateRouteTable {
    const NAME: &'static str = "DisassociateRouteTable";
    type Response = ();

    fn check(&self, context: Context<'_>) -> Result<(), ApiError> {
        self.plan(&context.agent.state.read(), context).map(drop)
    }

    fn run(self, context: Context<'_>) -> Result<(), ApiError> {
        context.agent.state.change(|draft| {
            let (table, id) = self.plan(draft, context)?;
            disassociate(draft, &table, &id);
            Ok(())
        })
    }
}

/// Lets a subnet, or all that have none of their own, use another route table. The association has a new id then.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase", deny_unknown_fields)]
pub struct ReplaceRouteTableAssociation {
    association_id: String,
    route_table_id: String,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Replaced {
    new_association_id: String,
    association_state: AssociationState,
}

impl ReplaceRouteTableAssociation {
    /// The table of before, the association, and the new table.
    fn plan(
        &self,
        world: &World,
        context: Context<'_>,
    ) -> Result<(RouteTableId, RouteTableAssociation, RouteTableId), ApiError> {
        let (old, association) = association(world, context, &self.association_id)?;
        let new = find_own::<RouteTable>(world, context, &self.route_table_id)?;
        if old.vpc != new.vpc {
            let message = format!("route tables {} and {} belong to different networks", old.id, new.id);
            return Err(ApiError::new("InvalidParameterValue", message));
        }
        Ok((old.id.clone(), association.clone(), new.id.clone()))
    }
}

impl Action for ReplaceRouteTableAssociation {
    const NAME: &'static str = "ReplaceRouteTableAssociation";
    type Response = Replaced;

    fn check(&self, context: Context<'_>) -> Result<(), ApiError> {
        self.plan(&context.agent.state.read(), context).map(drop)
    }

    fn run(self, context: Context<'_>) -> Result<Replaced, ApiError> {
        context.agent.state.change(|draft| {
            let (old, association, new) = self.plan(draft, context)?;
            disassociate(draft, &old, &association.id);
            let id = associate(draft, &new, association.subnet);
            let association_state = AssociationState::ASSOCIATED;
            Ok(Replaced { new_association_id: id.to_string(), association_state })
        })
    }
}
