//! Which connections do not go on when a plan changes: whose address has become another's, or is translated to another one.
//! The kernel would otherwise go on as it began: the next one with an address would get what the last one was allowed,
//! and who goes on sending would be translated as before, and dropped.

use std::net::Ipv4Addr;

use crate::plan::{Target, Vpc};

/// What is compared of two plans, to see whether connections have to be looked through at all.
pub fn may_leave_stale(before: &Vpc, after: &Vpc) -> bool {
    let differs = |same: bool| !same;
    let addresses = |vpc: &Vpc| -> Vec<_> {
        vpc.interfaces.iter().map(|(id, one)| (id.clone(), one.addresses.clone())).collect()
    };
    differs(before.has_internet_gateway == after.has_internet_gateway)
        || differs(before.route_tables == after.route_tables)
        || differs(before.nat_gateways == after.nat_gateways)
        || differs(before.subnets == after.subnets)
        || differs(addresses(before) == addresses(after))
}

/// Whether a connection, by its addresses before and after translation, belongs to a plan and not to the one after it.
/// `before` is None if it is not known: then only those are stale that are translated in another way.
pub fn is_stale(
    before: Option<&Vpc>,
    after: &Vpc,
    original: (Ipv4Addr, Ipv4Addr),
    reply: (Ipv4Addr, Ipv4Addr),
) -> bool {
    let has_moved = |address: Ipv4Addr| {
        let owner = |vpc: &Vpc| vpc.owner(address).map(|(id, _)| id.to_owned());
        before.is_some_and(|before| owner(before).is_some() && owner(before) != owner(after))
    };
    if [original.0, original.1, reply.0, reply.1].into_iter().any(has_moved) {
        return true;
    }
    match (after.contains(original.0), after.contains(original.1)) {
        // Out into the world: by which address?
        (true, false) => {
            let translated = after.leaves_as(original.0, original.1);
            // What an interface of the VPC forwards is not translated.
            reply.1 != translated.unwrap_or(original.0)
        }
        // In, to a public address: whose?
        (false, false) => after.public_owner(original.1) != Some(reply.0),
        _ => false,
    }
}

impl Vpc {
    /// The public address that a private one's packets to the world have. None, if they are not translated.
    fn leaves_as(&self, private: Ipv4Addr, destination: Ipv4Addr) -> Option<Ipv4Addr> {
        let (_, interface) = self.owner(private)?;
        match &self.route(&interface.subnet, destination)?.target {
            Target::InternetGateway if self.has_internet_gateway => {
                interface.addresses.iter().find(|own| own.private == private)?.public
            }
            Target::NatGateway(id) if self.has_internet_gateway => {
                self.nat_gateways.get(id).map(|gateway| gateway.public)
            }
            _ => None,
        }
    }

    /// The private address that a public one stands for.
    fn public_owner(&self, public: Ipv4Addr) -> Option<Ipv4Addr> {
        let own = self.interfaces.values().flat_map(|interface| &interface.addresses);
        let mut own = own.filter(|address| self.has_internet_gateway && address.public == Some(public));
        own.next().map(|address| address.private)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::{Address, Interface, Mac, NatGateway, Route, Subnet};

    const A: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 4);
    const B: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 5);
    const WORLD: Ipv4Addr = Ipv4Addr::new(8, 8, 8, 8);
    const PUBLIC: Ipv4Addr = Ipv4Addr::new(198, 19, 0, 4);
    const NAT: Ipv4Addr = Ipv4Addr::new(198, 19, 0, 9);

    fn interface(private: Ipv4Addr, public: Option<Ipv4Addr>) -> Interface {
        Interface {
            subnet: "subnet-1".into(),
            mac: Mac([2, 0, 0, 0, 0, 1]),
            addresses: vec![Address { private, public }],
            groups: vec![],
            source_dest_check: true,
        }
    }

    fn vpc(target: Target, public: Option<Ipv4Addr>) -> Vpc {
        let subnet =
            Subnet { cidr: "10.0.0.0/24".parse().unwrap(), route_table: "rtb-1".into(), acl: "acl-1".into() };
        Vpc {
            cidrs: vec!["10.0.0.0/16".parse().unwrap()],
            has_internet_gateway: true,
            subnets: [("subnet-1".to_owned(), subnet)].into(),
            route_tables: [(
                "rtb-1".to_owned(),
                vec![Route { destination: "0.0.0.0/0".parse().unwrap(), target }],
            )]
            .into(),
            interfaces: [
                ("eni-a".to_owned(), interface(A, public)),
                ("eni-b".to_owned(), interface(B, None)),
            ]
            .into(),
            nat_gateways: [(
                "nat-1".to_owned(),
                NatGateway { subnet: "subnet-1".into(), private: Ipv4Addr::new(10, 0, 0, 9), public: NAT },
            )]
            .into(),
            ..Vpc::default()
        }
    }

    #[test]
    fn what_goes_on_as_it_was_is_not_stale() {
        let plan = vpc(Target::InternetGateway, Some(PUBLIC));
        for (original, reply) in [
            ((A, B), (B, A)),
            ((A, WORLD), (WORLD, PUBLIC)),
            ((WORLD, PUBLIC), (A, WORLD)),
            ((WORLD, A), (A, WORLD)),
        ] {
            assert!(!is_stale(Some(&plan), &plan, original, reply), "{original:?}");
            assert!(!is_stale(None, &plan, original, reply), "{original:?}");
        }
        assert!(!may_leave_stale(&plan, &plan.clone()));
    }

    #[test]
    fn what_is_translated_in_another_way_is_stale() {
        let (plan, without) =
            (vpc(Target::InternetGateway, Some(PUBLIC)), vpc(Target::InternetGateway, None));
        let by_nat = vpc(Target::NatGateway("nat-1".into()), Some(PUBLIC));
        for (before, after, original, reply) in [
            (&plan, &without, (A, WORLD), (WORLD, PUBLIC)),
            (&plan, &without, (WORLD, PUBLIC), (A, WORLD)),
            (&without, &plan, (A, WORLD), (WORLD, A)),
            (&plan, &by_nat, (A, WORLD), (WORLD, PUBLIC)),
            (&by_nat, &plan, (A, WORLD), (WORLD, NAT)),
        ] {
            assert!(may_leave_stale(before, after));
            assert!(is_stale(Some(before), after, original, reply), "{original:?} {reply:?}");
            assert!(!is_stale(Some(before), before, original, reply) || before == &without, "{original:?}");
        }
    }

    #[test]
    fn what_was_anothers_is_stale() {
        let before = vpc(Target::InternetGateway, None);
        let mut after = before.clone();
        let moved = after.interfaces.remove("eni-a").unwrap();
        assert!(is_stale(Some(&before), &after, (B, A), (A, B)));
        after.interfaces.insert("eni-c".to_owned(), moved);
        assert!(may_leave_stale(&before, &after));
        assert!(is_stale(Some(&before), &after, (A, B), (B, A)));
    }
}
