//! CreateSubnet and CreateDefaultSubnet.

use serde::de::IgnoredAny;
use serde::{Deserialize, Serialize};

use super::item::SubnetItem;
use crate::actions::lookup::find_own;
use crate::actions::refused::{NO_IPAM, NO_IPV6, NO_OUTPOSTS, refuse};
use crate::actions::regions::zone_id;
use crate::actions::vpcs::{default_of, range};
use crate::ids::{NetworkAclAssociationId, SubnetId};
use crate::network::Cidr;
use crate::network::default_vpc::{LONGEST_SUBNET_PREFIX, SUBNET_PREFIX, default_subnet};
use crate::network::furnishing::acl_of;
use crate::network::subnets::free_part;
use crate::query::tags::{TagSpecification, specified_for};
use crate::query::{Action, ApiError, Context};
use crate::records::{AclAssociation, NetworkAcl, Subnet, Vpc};
use crate::state::World;

/// The most subnets of a VPC.
const MAX_SUBNETS: usize = 200;

/// Makes a subnet in a VPC. It uses the main route table and the default network ACL.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase", deny_unknown_fields)]
pub struct CreateSubnet {
    vpc_id: String,
    cidr_block: Option<String>,
    availability_zone: Option<String>,
    availability_zone_id: Option<String>,
    #[serde(default, rename = "TagSpecification")]
    tags: Vec<TagSpecification>,
    ipv6_cidr_block: Option<IgnoredAny>,
    #[serde(default)]
    ipv6_native: bool,
    ipv6_ipam_pool_id: Option<IgnoredAny>,
    ipv6_netmask_length: Option<IgnoredAny>,
    ipv4_ipam_pool_id: Option<IgnoredAny>,
    ipv4_netmask_length: Option<IgnoredAny>,
    outpost_arn: Option<IgnoredAny>,
}

#[derive(Debug, Serialize)]
pub struct Response {
    subnet: SubnetItem,
}

/// The zone that a request names; the first one if it names none.
fn zone(context: Context<'_>, name: Option<&str>, id: Option<&str>) -> Result<String, ApiError> {
    let config = &context.agent.config;
    let (wanted, found) = match (name, id) {
        (Some(_), Some(_)) => {
            let message = "AvailabilityZone cannot be used with AvailabilityZoneId.";
            return Err(ApiError::combination(message));
        }
        (Some(name), None) => (name, config.zones.iter().find(|zone| *zone == name)),
        (None, Some(id)) => (id, config.zones.iter().find(|zone| zone_id(&config.region, zone) == id)),
        (None, None) => ("", config.zones.first()),
    };
    found.cloned().ok_or_else(|| {
        let reason = format!(
            "Subnets can currently only be created in the following availability zones: {}.",
            config.zones.join(", ")
        );
        ApiError::invalid(wanted, "availabilityZone", reason)
    })
}

/// The network ACL that new subnets of a VPC have.
fn acl<'w>(world: &'w World, vpc: &Vpc) -> Result<&'w NetworkAcl, ApiError> {
    let acl = acl_of(world, &vpc.id).map(AsRef::as_ref);
    acl.ok_or_else(|| ApiError::internal(format_args!("{} has no default network ACL", vpc.id)))
}

/// The ranges of a VPC's subnets; there must be room for one more.
fn others(world: &World, vpc: &Vpc) -> Result<Vec<Cidr>, ApiError> {
    let subnets = world.all::<Subnet>().filter(|subnet| subnet.vpc == vpc.id);
    let others: Vec<Cidr> = subnets.map(|subnet| subnet.cidr).collect();
    if others.len() >= MAX_SUBNETS {
        let message = format!("The maximum number of subnets of a VPC has been reached: {MAX_SUBNETS}.");
        return Err(ApiError::new("SubnetLimitExceeded", message));
    }
    Ok(others)
}

impl CreateSubnet {
    fn plan(&self, world: &World, context: Context<'_>) -> Result<Subnet, ApiError> {
        let ipv6 = self.ipv6_cidr_block.is_some()
            || self.ipv6_native
            || self.ipv6_ipam_pool_id.is_some()
            || self.ipv6_netmask_length.is_some();
        refuse(&[
            (ipv6, NO_IPV6),
            (self.ipv4_ipam_pool_id.is_some() || self.ipv4_netmask_length.is_some(), NO_IPAM),
            (self.outpost_arn.is_some(), NO_OUTPOSTS),
        ])?;
        let vpc = find_own::<Vpc>(world, context, &self.vpc_id)?;
        let text = self.cidr_block.as_deref().ok_or_else(|| ApiError::missing("cidrBlock"))?;
        let cidr = range(text, "cidrBlock")?;
        let zone = zone(context, self.availability_zone.as_deref(), self.availability_zone_id.as_deref())?;
        if cidr.prefix() > LONGEST_SUBNET_PREFIX || !vpc.cidrs().any(|whole| whole.covers(cidr)) {
            return Err(ApiError::new("InvalidSubnet.Range", format!("The CIDR '{cidr}' is invalid.")));
        }
        if others(world, vpc)?.iter().any(|other| other.overlaps(cidr)) {
            let message = format!("The CIDR '{cidr}' conflicts with another subnet");
            return Err(ApiError::new("InvalidSubnet.Conflict", message));
        }
        let network_acl = acl(world, vpc)?.id.clone();
        Ok(Subnet {
            id: SubnetId::random(),
            owner: vpc.owner.clone(),
            vpc: vpc.id.clone(),
            cidr,
            availability_zone: zone,
            default_for_az: false,
            map_public_ip_on_launch: false,
            network_acl: AclAssociation { id: NetworkAclAssociationId::random(), network_acl },
        })
    }
}

impl Action for CreateSubnet {
    const NAME: &'static str = "CreateSubnet";
    type Response = Response;

    fn check(&self, context: Context<'_>) -> Result<(), ApiError> {
        specified_for(&self.tags, "subnet")?;
        self.plan(&context.agent.state.read(), context).map(drop)
    }

    fn run(self, context: Context<'_>) -> Result<Response, ApiError> {
        let tags = specified_for(&self.tags, "subnet")?;
        context.agent.state.change(|draft| {
            let subnet = self.plan(draft, context)?;
            draft.put(subnet.clone());
            draft.tag(&subnet.id, tags);
            Ok(Response { subnet: SubnetItem::new(draft, context, &subnet) })
        })
    }
}

/// Makes the default subnet of a zone, if it was deleted.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase", deny_unknown_fields)]
pub struct CreateDefaultSubnet {
    availability_zone: Option<String>,
    availability_zone_id: Option<String>,
    #[serde(default)]
    ipv6_native: bool,
}

impl CreateDefaultSubnet {
    fn plan(&self, world: &World, context: Context<'_>) -> Result<Subnet, ApiError> {
        refuse(&[(self.ipv6_native, NO_IPV6)])?;
        if self.availability_zone.is_none() && self.availability_zone_id.is_none() {
            return Err(ApiError::missing("availabilityZone"));
        }
        let zone = zone(context, self.availability_zone.as_deref(), self.availability_zone_id.as_deref())?;
        let Some(vpc) = default_of(world, context) else {
            let message = "No default VPC exists for this account in this region.";
            return Err(ApiError::new("DefaultVpcDoesNotExist", message));
        };
        let mut subnets = world.all::<Subnet>().filter(|subnet| subnet.vpc == vpc.id);
        if let Some(subnet) = subnets.find(|subnet| subnet.default_for_az && subnet.availability_zone == zone)
        {
            let message = format!("'{}' is already the default subnet in {zone}.", subnet.id);
            return Err(ApiError::new("DefaultSubnetAlreadyExistsInAvailabilityZone", message));
        }
        let others = others(world, vpc)?;
        let Some(cidr) = free_part(vpc.cidr, SUBNET_PREFIX, LONGEST_SUBNET_PREFIX, &others) else {
            let message = format!("There is no room left for a subnet in '{}'.", vpc.id);
            return Err(ApiError::new("InsufficientFreeAddressesInVpc", message));
        };
        Ok(default_subnet(vpc, acl(world, vpc)?, &zone, cidr))
    }
}

impl Action for CreateDefaultSubnet {
    const NAME: &'static str = "CreateDefaultSubnet";
    type Response = Response;

    fn check(&self, context: Context<'_>) -> Result<(), ApiError> {
        self.plan(&context.agent.state.read(), context).map(drop)
    }

    fn run(self, context: Context<'_>) -> Result<Response, ApiError> {
        context.agent.state.change(|draft| {
            let subnet = self.plan(draft, context)?;
            draft.put(subnet.clone());
            Ok(Response { subnet: SubnetItem::new(draft, context, &subnet) })
        })
    }
}
