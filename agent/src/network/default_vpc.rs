//! The VPC that an account begins with, and that is used when none is named: a subnet in each availability zone, a security
//! group that lets its members talk to each other and to everybody outside, and a way to the internet.

use crate::config::Config;
use crate::ids::{DhcpOptionsId, InternetGatewayId, NetworkAclAssociationId, SubnetId, VpcId};
use crate::network::Cidr;
use crate::network::furnishing::{Furnishing, furnish};
use crate::network::names::domain_name;
use crate::records::{
    AclAssociation, DhcpOptions, InternetGateway, NetworkAcl, Route, RouteOrigin, RouteTable, RouteTarget,
    Subnet, Vpc,
};
use crate::state::Draft;

/// How long the subnets' prefixes are, as long as the VPC has room: EC2's own are of 4,096 addresses.
pub const SUBNET_PREFIX: u8 = 20;

/// EC2 has no smaller subnets.
pub const LONGEST_SUBNET_PREFIX: u8 = 28;

/// All that a VPC needs to be used.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DefaultVpc {
    /// The VPC.
    pub vpc: Vpc,
    /// Its DHCP options.
    pub dhcp_options: DhcpOptions,
    /// One for each zone.
    pub subnets: Vec<Subnet>,
    /// What every VPC has.
    pub furnishing: Furnishing,
    /// Its way out.
    pub internet_gateway: InternetGateway,
}

/// Plans the VPC of an account, with these DHCP options or new ones. An availability zone for which its range has no room gets no
/// subnet.
pub fn plan(config: &Config, owner: &str, dhcp_options: Option<DhcpOptions>) -> DefaultVpc {
    let dhcp_options = dhcp_options.unwrap_or_else(|| new_dhcp_options(owner, &config.region));
    let vpc = Vpc {
        id: VpcId::random(),
        owner: owner.to_owned(),
        cidr: config.vpc_cidr,
        secondary_cidrs: Vec::new(),
        is_default: true,
        dhcp_options: Some(dhcp_options.id.clone()),
        enable_dns_support: true,
        enable_dns_hostnames: true,
    };
    let mut furnishing = furnish(&vpc);
    let internet_gateway = way_out(&vpc, &mut furnishing.route_table);
    let ranges = config.vpc_cidr.parts(subnet_prefix(config.vpc_cidr, config.zones.len()));
    let zones = config.zones.iter().zip(ranges);
    let subnets =
        zones.map(|(zone, range)| default_subnet(&vpc, &furnishing.network_acl, zone, range)).collect();
    DefaultVpc { vpc, dhcp_options, subnets, furnishing, internet_gateway }
}

impl DefaultVpc {
    /// Records all of it.
    pub fn put(self, draft: &mut Draft) {
        draft.put(self.dhcp_options);
        draft.put(self.vpc);
        draft.put(self.furnishing.network_acl);
        for subnet in self.subnets {
            draft.put(subnet);
        }
        draft.put(self.furnishing.security_group);
        draft.put(self.internet_gateway);
        draft.put(self.furnishing.route_table);
    }
}

/// The subnet that is used when only its zone is named.
pub fn default_subnet(vpc: &Vpc, acl: &NetworkAcl, zone: &str, range: Cidr) -> Subnet {
    Subnet {
        id: SubnetId::random(),
        owner: vpc.owner.clone(),
        vpc: vpc.id.clone(),
        cidr: range,
        availability_zone: zone.to_owned(),
        default_for_az: true,
        map_public_ip_on_launch: true,
        network_acl: AclAssociation { id: NetworkAclAssociationId::random(), network_acl: acl.id.clone() },
    }
}

/// An internet gateway of a VPC, to which its route table leads from now on.
pub fn way_out(vpc: &Vpc, table: &mut RouteTable) -> InternetGateway {
    let gateway = InternetGateway {
        id: InternetGatewayId::random(),
        owner: vpc.owner.clone(),
        vpc: Some(vpc.id.clone()),
    };
    table.routes.push(Route {
        destination: Cidr::EVERYWHERE,
        target: RouteTarget::InternetGateway(gateway.id.clone()),
        origin: RouteOrigin::CreateRoute,
    });
    gateway
}

/// The DHCP options of VPCs for which none are chosen.
pub fn new_dhcp_options(owner: &str, region: &str) -> DhcpOptions {
    DhcpOptions {
        id: DhcpOptionsId::random(),
        owner: owner.to_owned(),
        options: vec![
            ("domain-name".into(), vec![domain_name(region)]),
            ("domain-name-servers".into(), vec!["AmazonProvidedDNS".into()]),
        ],
    }
}

/// The largest subnets, of EC2's default size at most, that leave one for each zone.
fn subnet_prefix(vpc: Cidr, zones: usize) -> u8 {
    let zones = zones.max(1).next_power_of_two().trailing_zeros();
    let needed = u8::try_from(zones).unwrap_or(u8::MAX).saturating_add(vpc.prefix());
    needed.clamp(SUBNET_PREFIX, LONGEST_SUBNET_PREFIX)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn subnets(vpc: &str, zones: usize) -> Vec<String> {
        let zones = (0..zones).map(|number| format!("us-east-1{number}")).collect();
        let config = Config { vpc_cidr: vpc.parse().unwrap(), zones, ..Config::default() };
        plan(&config, "000000000000", None)
            .subnets
            .into_iter()
            .map(|subnet| subnet.cidr.to_string())
            .collect()
    }

    #[test]
    fn each_zone_has_a_subnet_of_4096_addresses_if_there_is_room() {
        assert_eq!(subnets("172.31.0.0/16", 3), ["172.31.0.0/20", "172.31.16.0/20", "172.31.32.0/20"]);
        assert_eq!(subnets("172.31.0.0/16", 16).last().unwrap(), "172.31.240.0/20");
        assert_eq!(subnets("10.0.0.0/20", 1), ["10.0.0.0/20"]);
        assert_eq!(subnets("10.0.0.0/20", 2), ["10.0.0.0/21", "10.0.8.0/21"]);
        assert_eq!(subnets("10.0.0.0/28", 1), ["10.0.0.0/28"]);
        assert_eq!(subnets("10.0.0.0/28", 3), ["10.0.0.0/28"]);
    }

    #[test]
    fn it_leads_to_the_internet() {
        let plan = plan(&Config::default(), "000000000000", None);
        assert_eq!(plan.internet_gateway.vpc.as_ref(), Some(&plan.vpc.id));
        let target = RouteTarget::InternetGateway(plan.internet_gateway.id);
        let routes = &plan.furnishing.route_table.routes;
        assert!(routes.iter().any(|route| route.destination == Cidr::EVERYWHERE && route.target == target));
    }
}
