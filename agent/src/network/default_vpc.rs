//! The VPC that an account begins with, and that is used when none is named: a subnet in each availability zone, and a
//! security group that lets its members talk to each other and to everybody outside.

use crate::config::Config;
use crate::ids::{DhcpOptionsId, SecurityGroupId, SecurityGroupRuleId, SubnetId, VpcId};
use crate::network::Cidr;
use crate::records::{DhcpOptions, Peer, Rule, SecurityGroup, Subnet, Vpc};

/// How long the subnets' prefixes are, as long as the VPC has room: EC2's own are of 4,096 addresses.
const SUBNET_PREFIX: u8 = 20;

/// EC2 has no smaller subnets.
const LONGEST_SUBNET_PREFIX: u8 = 28;

/// All that a VPC needs to be used.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DefaultVpc {
    /// The VPC.
    pub vpc: Vpc,
    /// Its DHCP options.
    pub dhcp_options: DhcpOptions,
    /// One for each zone.
    pub subnets: Vec<Subnet>,
    /// Its group `default`.
    pub security_group: SecurityGroup,
}

/// Plans the VPC. An availability zone for which its range has no room gets no subnet.
pub fn plan(config: &Config) -> DefaultVpc {
    let owner = &config.account;
    let dhcp_options = DhcpOptions {
        id: DhcpOptionsId::random(),
        owner: owner.clone(),
        options: vec![
            ("domain-name".into(), vec![domain_name(&config.region)]),
            ("domain-name-servers".into(), vec!["AmazonProvidedDNS".into()]),
        ],
    };
    let vpc = Vpc {
        id: VpcId::random(),
        owner: owner.clone(),
        cidr: config.vpc_cidr.to_string(),
        is_default: true,
        dhcp_options: dhcp_options.id.clone(),
    };
    let ranges = config.vpc_cidr.parts(subnet_prefix(config.vpc_cidr, config.zones.len()));
    let subnets = config.zones.iter().zip(ranges).map(|(zone, range)| Subnet {
        id: SubnetId::random(),
        owner: owner.clone(),
        vpc: vpc.id.clone(),
        cidr: range.to_string(),
        availability_zone: zone.clone(),
        default_for_az: true,
        map_public_ip_on_launch: true,
    });
    let subnets = subnets.collect();
    let security_group = default_security_group(&vpc);
    DefaultVpc { vpc, dhcp_options, subnets, security_group }
}

/// The group `default` that every VPC has.
pub fn default_security_group(vpc: &Vpc) -> SecurityGroup {
    let id = SecurityGroupId::random();
    let rule = |is_egress, peer| Rule {
        id: SecurityGroupRuleId::random(),
        is_egress,
        protocol: "-1".into(),
        from_port: Some(-1),
        to_port: Some(-1),
        peer,
        description: None,
    };
    let rules = vec![rule(false, Peer::Group(id.clone())), rule(true, Peer::Ipv4("0.0.0.0/0".into()))];
    SecurityGroup {
        id,
        name: "default".into(),
        description: "default VPC security group".into(),
        owner: vpc.owner.clone(),
        vpc: vpc.id.clone(),
        rules,
    }
}

/// The largest subnets, of EC2's default size at most, that leave one for each zone.
fn subnet_prefix(vpc: Cidr, zones: usize) -> u8 {
    let zones = zones.max(1).next_power_of_two().trailing_zeros();
    let needed = u8::try_from(zones).unwrap_or(u8::MAX).saturating_add(vpc.prefix());
    needed.clamp(SUBNET_PREFIX, LONGEST_SUBNET_PREFIX)
}

/// What the names of instances end with.
fn domain_name(region: &str) -> String {
    match region {
        "us-east-1" => "ec2.internal".to_owned(),
        other => format!("{other}.compute.internal"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn subnets(vpc: &str, zones: usize) -> Vec<String> {
        let zones = (0..zones).map(|number| format!("us-east-1{number}")).collect();
        let config = Config { vpc_cidr: vpc.parse().unwrap(), zones, ..Config::default() };
        plan(&config).subnets.into_iter().map(|subnet| subnet.cidr).collect()
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
    fn members_of_the_default_group_reach_each_other_and_everybody() {
        let plan = plan(&Config::default());
        let group = plan.security_group;
        assert_eq!(group.vpc, plan.vpc.id);
        let rules: Vec<(bool, Peer)> =
            group.rules.into_iter().map(|rule| (rule.is_egress, rule.peer)).collect();
        let expected = [(false, Peer::Group(group.id)), (true, Peer::Ipv4("0.0.0.0/0".into()))];
        assert_eq!(rules, expected);
    }

    #[test]
    fn names_end_as_in_ec2() {
        assert_eq!(domain_name("us-east-1"), "ec2.internal");
        assert_eq!(domain_name("eu-west-1"), "eu-west-1.compute.internal");
    }
}
