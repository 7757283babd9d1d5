//! AssociateVpcCidrBlock and DisassociateVpcCidrBlock.

use serde::de::IgnoredAny;
use serde::{Deserialize, Serialize};

use super::item::Association;
use super::{in_range, range};
use crate::actions::lookup::find_own;
use crate::actions::refused::{NO_IPAM, NO_IPV6, refuse};
use crate::ids::VpcCidrAssociationId;
use crate::network::furnishing::local_route;
use crate::query::{Action, ApiError, Context};
use crate::records::{CidrAssociation, RouteTable, RouteTarget, Subnet, Vpc};
use crate::state::{Draft, World};

/// The most ranges of a VPC.
const MAX_CIDRS: usize = 5;

/// Gives a further range to a VPC.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase", deny_unknown_fields)]
pub struct AssociateVpcCidrBlock {
    vpc_id: String,
    cidr_block: Option<String>,
    #[serde(default)]
    amazon_provided_ipv6_cidr_block: bool,
    ipv6_pool: Option<IgnoredAny>,
    ipv6_cidr_block: Option<IgnoredAny>,
    ipv6_ipam_pool_id: Option<IgnoredAny>,
    ipv6_netmask_length: Option<IgnoredAny>,
    ipv6_cidr_block_network_border_group: Option<IgnoredAny>,
    ipv4_ipam_pool_id: Option<IgnoredAny>,
    ipv4_netmask_length: Option<IgnoredAny>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Response {
    vpc_id: String,
    cidr_block_association: Association,
}

impl Response {
    fn new(vpc: &Vpc, association: &CidrAssociation, state: &'static str) -> Self {
        let item = Association::new(association.id.to_string(), association.cidr, state);
        Self { vpc_id: vpc.id.to_string(), cidr_block_association: item }
    }
}

impl AssociateVpcCidrBlock {
    /// The VPC as it shall be, and what is new.
    fn plan(&self, world: &World, context: Context<'_>) -> Result<(Vpc, CidrAssociation), ApiError> {
        let ipv6 = self.amazon_provided_ipv6_cidr_block
            || self.ipv6_pool.is_some()
            || self.ipv6_cidr_block.is_some()
            || self.ipv6_ipam_pool_id.is_some()
            || self.ipv6_netmask_length.is_some()
            || self.ipv6_cidr_block_network_border_group.is_some();
        refuse(&[
            (ipv6, NO_IPV6),
            (self.ipv4_ipam_pool_id.is_some() || self.ipv4_netmask_length.is_some(), NO_IPAM),
        ])?;
        let mut vpc = Vpc::clone(find_own::<Vpc>(world, context, &self.vpc_id)?);
        let text = self.cidr_block.as_deref().ok_or_else(|| ApiError::missing("cidrBlock"))?;
        let cidr = in_range(context, range(text, "cidrBlock")?)?;
        if let Some(other) = vpc.cidrs().find(|other| other.overlaps(cidr)) {
            let message = format!("The CIDR '{cidr}' conflicts with the VPC's CIDR '{other}'.");
            return Err(ApiError::new("InvalidVpc.Range", message));
        }
        let tables = world.all::<RouteTable>().filter(|table| table.vpc == vpc.id);
        let mut routes = tables.flat_map(|table| &table.routes);
        if let Some(route) = routes.find(|route| cidr.covers(route.destination)) {
            let message = format!("The CIDR '{cidr}' conflicts with the route to {}.", route.destination);
            return Err(ApiError::new("InvalidVpc.Range", message));
        }
        if vpc.cidrs().count() >= MAX_CIDRS {
            let message =
                format!("This network '{}' has met its maximum number of allowed CIDRs: {MAX_CIDRS}", vpc.id);
            return Err(ApiError::new("CidrLimitExceeded", message));
        }
        let association = CidrAssociation { id: VpcCidrAssociationId::random(), cidr };
        vpc.secondary_cidrs.push(association.clone());
        Ok((vpc, association))
    }
}

/// Changes all route tables of a VPC.
fn change_tables(draft: &mut Draft, vpc: &Vpc, change: impl Fn(&mut RouteTable)) {
    let tables = draft.all::<RouteTable>().filter(|table| table.vpc == vpc.id);
    let ids: Vec<_> = tables.map(|table| table.id.clone()).collect();
    for id in ids {
        draft.update::<RouteTable>(&id, &change);
    }
}

impl Action for AssociateVpcCidrBlock {
    const NAME: &'static str = "AssociateVpcCidrBlock";
    type Response = Response;

    fn check(&self, context: Context<'_>) -> Result<(), ApiError> {
        self.plan(&context.agent.state.read(), context).map(drop)
    }

    fn run(self, context: Context<'_>) -> Result<Response, ApiError> {
        context.agent.state.change(|draft| {
            let (vpc, new) = self.plan(draft, context)?;
            change_tables(draft, &vpc, |table| table.routes.push(local_route(new.cidr)));
            let answer = Response::new(&vpc, &new, "associating");
            draft.put(vpc);
            Ok(answer)
        })
    }
}

/// Takes a further range away from a VPC.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase", deny_unknown_fields)]
pub struct DisassociateVpcCidrBlock {
    association_id: String,
}

impl DisassociateVpcCidrBlock {
    /// The VPC as it shall be, and what is gone.
    fn plan(&self, world: &World, context: Context<'_>) -> Result<(Vpc, CidrAssociation), ApiError> {
        let id = &self.association_id;
        for vpc in world.all::<Vpc>().filter(|vpc| vpc.owner == context.caller.account) {
            if vpc.primary_association() == *id {
                let message = format!(
                    "The vpc CIDR block with association ID {id} may not be disassociated. It is the primary IPv4 CIDR \
                     block of the VPC"
                );
                return Err(ApiError::new("OperationNotPermitted", message));
            }
            let mut changed = Vpc::clone(vpc);
            let Some(at) = changed.secondary_cidrs.iter().position(|one| one.id.as_str() == id) else {
                continue;
            };
            let gone = changed.secondary_cidrs.remove(at);
            let mut subnets = world.all::<Subnet>().filter(|subnet| subnet.vpc == vpc.id);
            if let Some(subnet) = subnets.find(|subnet| gone.cidr.covers(subnet.cidr)) {
                let message = format!("The CIDR '{}' has a dependent object, '{}'.", gone.cidr, subnet.id);
                return Err(ApiError::new("DependencyViolation", message));
            }
            return Ok((changed, gone));
        }
        let message = format!("The vpc CIDR block association ID '{id}' does not exist");
        Err(ApiError::new("InvalidVpcCidrBlockAssociationID.NotFound", message))
    }
}

impl Action for DisassociateVpcCidrBlock {
    const NAME: &'static str = "DisassociateVpcCidrBlock";
    type Response = Response;

    fn check(&self, context: Context<'_>) -> Result<(), ApiError> {
        self.plan(&context.agent.state.read(), context).map(drop)
    }

    fn run(self, context: Context<'_>) -> Result<Response, ApiError> {
        context.agent.state.change(|draft| {
            let (vpc, gone) = self.plan(draft, context)?;
            change_tables(draft, &vpc, |table| {
                table
                    .routes
                    .retain(|route| route.target != RouteTarget::Local || route.destination != gone.cidr);
            });
            let answer = Response::new(&vpc, &gone, "disassociating");
            draft.put(vpc);
            Ok(answer)
        })
    }
}
