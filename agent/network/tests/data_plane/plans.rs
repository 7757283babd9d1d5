//! Plans for tests.

use std::net::Ipv4Addr;

use innkeeper_network::plan::{
    AclEntry, Address, GroupRule, Interface, Mac, Peer, Route, Subnet, Target, Traffic, Vpc,
};

/// The Ethernet address of the guest with this number.
pub fn mac(number: u8) -> Mac {
    Mac([2, 0, 0, 0, 1, number])
}

/// The address of the guest with this number: 0 and 1 are in the first subnet, others in the second.
pub fn address(number: u8) -> Ipv4Addr {
    Ipv4Addr::new(10, 0, u8::from(number > 1), 4 + number)
}

pub fn everywhere() -> innkeeper_network::Cidr {
    "0.0.0.0/0".parse().unwrap()
}

/// What an ACL has at first: everything passes.
pub fn open_acl() -> Vec<AclEntry> {
    let entry = |is_egress| AclEntry {
        number: 100,
        is_egress,
        allows: true,
        traffic: Traffic::All,
        peer: everywhere(),
    };
    vec![entry(false), entry(true)]
}

/// Everything may leave.
pub fn outbound() -> GroupRule {
    GroupRule { id: "sgr-0".into(), is_egress: true, traffic: Traffic::All, peer: Peer::Range(everywhere()) }
}

/// Two subnets with a way out, two guests in the first, one in the second; one group, that lets nothing in.
pub fn two_subnets() -> Vpc {
    let subnet =
        |cidr: &str| Subnet { cidr: cidr.parse().unwrap(), route_table: "rtb-1".into(), acl: "acl-1".into() };
    let interface = |number: u8| {
        let interface = Interface {
            subnet: format!("subnet-{}", u8::from(number > 1)),
            mac: mac(number),
            addresses: vec![Address { private: address(number), public: None }],
            groups: vec!["sg-1".into()],
            source_dest_check: true,
        };
        (format!("eni-{number}"), interface)
    };
    Vpc {
        id: "vpc-0123456789abcdef0".into(),
        cidrs: vec!["10.0.0.0/16".parse().unwrap()],
        has_internet_gateway: true,
        subnets: [
            ("subnet-0".to_owned(), subnet("10.0.0.0/24")),
            ("subnet-1".to_owned(), subnet("10.0.1.0/24")),
        ]
        .into(),
        route_tables: [(
            "rtb-1".to_owned(),
            vec![Route { destination: everywhere(), target: Target::InternetGateway }],
        )]
        .into(),
        acls: [("acl-1".to_owned(), open_acl())].into(),
        groups: [("sg-1".to_owned(), vec![outbound()])].into(),
        interfaces: (0..3).map(interface).collect(),
        nat_gateways: Default::default(),
        service_packets: None,
    }
}
