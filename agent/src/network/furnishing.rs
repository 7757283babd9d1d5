//! What every VPC has from the start: a main route table, a network ACL and a security group, all of which are the default
//! for whatever comes into it.

use std::sync::Arc;

use crate::ids::{NetworkAclId, RouteTableAssociationId, RouteTableId, SecurityGroupId, VpcId};
use crate::network::Cidr;
use crate::records::{
    AclEntry, NetworkAcl, Peer, Route, RouteOrigin, RouteTable, RouteTableAssociation, RouteTarget, Rule,
    SecurityGroup, Vpc,
};
use crate::state::World;

/// The furnishings of a VPC.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Furnishing {
    /// The main one.
    pub route_table: RouteTable,
    /// The default one.
    pub network_acl: NetworkAcl,
    /// The group `default`.
    pub security_group: SecurityGroup,
}

/// Furnishes a new VPC.
pub fn furnish(vpc: &Vpc) -> Furnishing {
    Furnishing {
        route_table: main_route_table(vpc),
        network_acl: default_acl(vpc, NetworkAclId::random()),
        security_group: default_security_group(vpc),
    }
}

/// A route table with routes to all of the VPC, which no subnet uses.
pub fn route_table(vpc: &Vpc) -> RouteTable {
    RouteTable {
        id: RouteTableId::random(),
        owner: vpc.owner.clone(),
        vpc: vpc.id.clone(),
        routes: vpc.cidrs().map(local_route).collect(),
        associations: Vec::new(),
    }
}

/// The route to a range of the VPC.
pub fn local_route(destination: Cidr) -> Route {
    Route { destination, target: RouteTarget::Local, origin: RouteOrigin::CreateRouteTable }
}

/// The table of subnets that have no other.
pub fn main_route_table(vpc: &Vpc) -> RouteTable {
    let main = RouteTableAssociation { id: RouteTableAssociationId::random(), subnet: None };
    RouteTable { associations: vec![main], ..route_table(vpc) }
}

/// The ACL that new subnets have. It denies nothing.
pub fn default_acl(vpc: &Vpc, id: NetworkAclId) -> NetworkAcl {
    let allow = |egress| AclEntry {
        number: 100,
        egress,
        protocol: None,
        allow: true,
        cidr: Cidr::EVERYWHERE,
        ports: None,
        icmp: None,
    };
    NetworkAcl {
        id,
        owner: vpc.owner.clone(),
        vpc: vpc.id.clone(),
        is_default: true,
        entries: vec![allow(false), allow(true)],
    }
}

/// The group `default` that every VPC has.
pub fn default_security_group(vpc: &Vpc) -> SecurityGroup {
    let id = SecurityGroupId::random();
    let rules = vec![
        Rule::of_everything(false, Peer::Group(id.clone())),
        Rule::of_everything(true, Peer::Ipv4("0.0.0.0/0".into())),
    ];
    SecurityGroup {
        id,
        name: "default".into(),
        description: "default VPC security group".into(),
        owner: vpc.owner.clone(),
        vpc: vpc.id.clone(),
        rules,
    }
}

/// The default ACL of a VPC.
pub fn acl_of<'w>(world: &'w World, vpc: &VpcId) -> Option<&'w Arc<NetworkAcl>> {
    world.all::<NetworkAcl>().find(|acl| acl.vpc == *vpc && acl.is_default)
}

/// The group `default` of a VPC.
pub fn group_of<'w>(world: &'w World, vpc: &VpcId) -> Option<&'w Arc<SecurityGroup>> {
    world.all::<SecurityGroup>().find(|group| group.vpc == *vpc && group.name == "default")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Config;
    use crate::network::default_vpc;

    #[test]
    fn members_of_the_default_group_reach_each_other_and_everybody() {
        let plan = default_vpc::plan(&Config::default(), "000000000000", None);
        let group = plan.furnishing.security_group;
        assert_eq!(group.vpc, plan.vpc.id);
        let rules: Vec<(bool, Peer)> =
            group.rules.into_iter().map(|rule| (rule.is_egress, rule.peer)).collect();
        let expected = [(false, Peer::Group(group.id)), (true, Peer::Ipv4("0.0.0.0/0".into()))];
        assert_eq!(rules, expected);
    }

    #[test]
    fn the_main_route_table_leads_to_all_of_the_vpc() {
        let plan = default_vpc::plan(&Config::default(), "000000000000", None);
        let table = main_route_table(&plan.vpc);
        assert!(table.is_main());
        assert_eq!(table.routes, [local_route(plan.vpc.cidr)]);
    }
}
