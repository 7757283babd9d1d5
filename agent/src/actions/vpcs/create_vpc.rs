//! CreateVpc and CreateDefaultVpc.

use serde::de::IgnoredAny;
use serde::{Deserialize, Serialize};

use super::item::VpcItem;
use super::{default_of, in_range, range};
use crate::actions::refused::{NO_IPAM, NO_IPV6, refuse};
use crate::ids::{DhcpOptionsId, VpcId};
use crate::network::Cidr;
use crate::network::default_vpc::{self, new_dhcp_options};
use crate::network::furnishing::{Furnishing, furnish};
use crate::query::tags::{TagSpecification, specified_for};
use crate::query::{Action, ApiError, Context};
use crate::records::{DhcpOptions, Vpc};
use crate::state::{Draft, World};

/// Makes a VPC with a route table, a network ACL and a security group.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase", deny_unknown_fields)]
pub struct CreateVpc {
    cidr_block: Option<String>,
    instance_tenancy: Option<String>,
    #[serde(default, rename = "TagSpecification")]
    tags: Vec<TagSpecification>,
    #[serde(default)]
    amazon_provided_ipv6_cidr_block: bool,
    ipv6_pool: Option<IgnoredAny>,
    ipv6_cidr_block: Option<IgnoredAny>,
    ipv6_ipam_pool_id: Option<IgnoredAny>,
    ipv6_netmask_length: Option<IgnoredAny>,
    ipv6_cidr_block_network_border_group: Option<IgnoredAny>,
    ipv4_ipam_pool_id: Option<IgnoredAny>,
    ipv4_netmask_length: Option<IgnoredAny>,
    vpc_encryption_control: Option<IgnoredAny>,
}

#[derive(Debug, Serialize)]
pub struct Response {
    vpc: VpcItem,
}

impl CreateVpc {
    fn plan(&self, world: &World, context: Context<'_>) -> Result<Cidr, ApiError> {
        let ipv6 = self.amazon_provided_ipv6_cidr_block
            || self.ipv6_pool.is_some()
            || self.ipv6_cidr_block.is_some()
            || self.ipv6_ipam_pool_id.is_some()
            || self.ipv6_netmask_length.is_some()
            || self.ipv6_cidr_block_network_border_group.is_some();
        let tenancy = self.instance_tenancy.as_deref().is_some_and(|tenancy| tenancy != "default");
        refuse(&[
            (ipv6, NO_IPV6),
            (self.ipv4_ipam_pool_id.is_some() || self.ipv4_netmask_length.is_some(), NO_IPAM),
            (tenancy, "There is one host: InstanceTenancy can only be default."),
            (
                self.vpc_encryption_control.is_some(),
                "Traffic does not leave this host: leave VpcEncryptionControl out.",
            ),
        ])?;
        let text = self.cidr_block.as_deref().ok_or_else(|| ApiError::missing("cidrBlock"))?;
        let cidr = in_range(context, range(text, "cidrBlock")?)?;
        room_for_one(world, context)?;
        Ok(cidr)
    }
}

/// Whether the account may have one more VPC.
fn room_for_one(world: &World, context: Context<'_>) -> Result<(), ApiError> {
    let quota = context.agent.config.vpc_quota;
    let owner = &context.caller.account;
    if world.all::<Vpc>().filter(|vpc| vpc.owner == *owner).count() >= quota {
        let message = format!(
            "The maximum number of VPCs has been reached: {quota}, which is vpc-quota in the agent's configuration."
        );
        return Err(ApiError::new("VpcLimitExceeded", message));
    }
    Ok(())
}

/// The account's options for VPCs for which none are chosen. They are made again if somebody has deleted them.
fn default_dhcp_options(world: &World, owner: &str, region: &str) -> DhcpOptions {
    let new = new_dhcp_options(owner, region);
    let mut own = world.all::<DhcpOptions>().filter(|options| options.owner == owner);
    let known = own.find(|options| options.options == new.options);
    known.map_or(new, |known| DhcpOptions::clone(known))
}

fn put_default_dhcp_options(draft: &mut Draft, owner: &str, region: &str) -> DhcpOptionsId {
    let options = default_dhcp_options(draft, owner, region);
    let id = options.id.clone();
    draft.put(options);
    id
}

impl Action for CreateVpc {
    const NAME: &'static str = "CreateVpc";
    type Response = Response;

    fn check(&self, context: Context<'_>) -> Result<(), ApiError> {
        specified_for(&self.tags, "vpc")?;
        self.plan(&context.agent.state.read(), context).map(drop)
    }

    fn run(self, context: Context<'_>) -> Result<Response, ApiError> {
        let tags = specified_for(&self.tags, "vpc")?;
        let owner = &context.caller.account;
        context.agent.state.change(|draft| {
            let cidr = self.plan(draft, context)?;
            let vpc = Vpc {
                id: VpcId::random(),
                owner: owner.clone(),
                cidr,
                secondary_cidrs: Vec::new(),
                is_default: false,
                dhcp_options: Some(put_default_dhcp_options(draft, owner, &context.agent.config.region)),
                enable_dns_support: true,
                enable_dns_hostnames: false,
            };
            let Furnishing { route_table, network_acl, security_group } = furnish(&vpc);
            draft.put(route_table);
            draft.put(network_acl);
            draft.put(security_group);
            draft.put(vpc.clone());
            draft.tag(&vpc.id, tags);
            // Nothing has to be done for it, and clients expect that something has.
            Ok(Response { vpc: VpcItem { state: "pending", ..VpcItem::new(draft, &vpc) } })
        })
    }
}

/// Makes the default VPC again, if it was deleted.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase", deny_unknown_fields)]
pub struct CreateDefaultVpc {}

fn room_for_a_default(world: &World, context: Context<'_>) -> Result<(), ApiError> {
    if default_of(world, context).is_some() {
        let message = "A Default VPC already exists for this account in this region.";
        return Err(ApiError::new("DefaultVpcAlreadyExists", message));
    }
    room_for_one(world, context)
}

impl Action for CreateDefaultVpc {
    const NAME: &'static str = "CreateDefaultVpc";
    type Response = Response;

    fn check(&self, context: Context<'_>) -> Result<(), ApiError> {
        room_for_a_default(&context.agent.state.read(), context)
    }

    fn run(self, context: Context<'_>) -> Result<Response, ApiError> {
        let (config, owner) = (&context.agent.config, &context.caller.account);
        context.agent.state.change(|draft| {
            room_for_a_default(draft, context)?;
            let options = default_dhcp_options(draft, owner, &config.region);
            let plan = default_vpc::plan(config, owner, Some(options));
            let vpc = plan.vpc.clone();
            plan.put(draft);
            Ok(Response { vpc: VpcItem { state: "pending", ..VpcItem::new(draft, &vpc) } })
        })
    }
}
