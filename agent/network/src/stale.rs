//! Which connections do not go on when a plan changes: whose address has become another's, or is translated to another one.
//! The kernel would otherwise go on as it began: the next one with an address would get what the last one was allowed,
//! and who goes on sending would be translated as before, and dropped.

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;

use crate::names;
use crate::plan::{Interface, NOBODYS, Target, Vpc};

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

/// Who had which private address, by the name of its tap: as far as the kernel knows, too.
pub type Owners = BTreeMap<Ipv4Addr, String>;

/// What a plan has given to whom.
pub fn owners(vpc: &Vpc) -> Owners {
    let each = |(id, interface): (&String, &Interface)| {
        let tap = names::tap(id);
        interface.addresses.iter().map(|own| (own.private, tap.clone())).collect::<Vec<_>>()
    };
    vpc.interfaces.iter().flat_map(each).collect()
}

/// Says of connections whether they go on, from one plan to the next.
#[derive(Debug)]
pub struct Change<'a> {
    /// Private addresses that are not whose they were.
    moved: BTreeSet<Ipv4Addr>,
    /// The private addresses that public ones stand for.
    private_of: BTreeMap<Ipv4Addr, Ipv4Addr>,
    /// Interfaces by their private addresses.
    interfaces: BTreeMap<Ipv4Addr, &'a Interface>,
    after: &'a Vpc,
}

impl<'a> Change<'a> {
    /// From what was, to a plan.
    pub fn new(before: &Owners, after: &'a Vpc) -> Self {
        let now = owners(after);
        let has_moved = |(address, owner): &(&Ipv4Addr, &String)| now.get(*address) != Some(*owner);
        let moved = before.iter().filter(has_moved).map(|(address, _)| *address).collect();
        let each = after.interfaces.values();
        let interfaces = each.flat_map(|one| one.addresses.iter().map(move |own| (own.private, one)));
        let public = after.interfaces.values().flat_map(|one| &one.addresses);
        let public = public.filter(|_| after.has_internet_gateway);
        let private_of = public.filter_map(|own| Some((own.public?, own.private))).collect();
        Self { moved, private_of, interfaces: interfaces.collect(), after }
    }

    /// Whether a connection, by its addresses before and after translation, does not go on.
    pub fn is_stale(&self, original: (Ipv4Addr, Ipv4Addr), reply: (Ipv4Addr, Ipv4Addr)) -> bool {
        if [original.0, original.1, reply.0, reply.1].iter().any(|one| self.moved.contains(one)) {
            return true;
        }
        // Of the services nothing is translated.
        if NOBODYS.iter().any(|range| range.contains(original.1)) {
            return false;
        }
        match (self.after.contains(original.0), self.after.contains(original.1)) {
            // Out into the world: by which address? What an interface forwards is not translated.
            (true, false) => reply.1 != self.leaves_as(original.0, original.1).unwrap_or(original.0),
            // In, to a public address: whose? What is nobody's only passes through.
            (false, false) => reply.0 != *self.private_of.get(&original.1).unwrap_or(&original.1),
            _ => false,
        }
    }

    /// The public address that a private one's packets to the world have. None, if they are not translated.
    fn leaves_as(&self, private: Ipv4Addr, destination: Ipv4Addr) -> Option<Ipv4Addr> {
        let interface = self.interfaces.get(&private)?;
        match &self.after.route(&interface.subnet, destination)?.target {
            Target::InternetGateway if self.after.has_internet_gateway => {
                interface.addresses.iter().find(|own| own.private == private)?.public
            }
            Target::NatGateway(id) if self.after.has_internet_gateway => {
                self.after.nat_gateways.get(id).map(|gateway| gateway.public)
            }
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::{Address, Mac, NatGateway, Route, Subnet};

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

    fn is_stale(
        before: &Vpc,
        after: &Vpc,
        original: (Ipv4Addr, Ipv4Addr),
        reply: (Ipv4Addr, Ipv4Addr),
    ) -> bool {
        Change::new(&owners(before), after).is_stale(original, reply)
    }

    #[test]
    fn what_goes_on_as_it_was_is_not_stale() {
        let plan = vpc(Target::InternetGateway, Some(PUBLIC));
        for (original, reply) in [
            ((A, B), (B, A)),
            ((A, WORLD), (WORLD, PUBLIC)),
            ((WORLD, PUBLIC), (A, WORLD)),
            ((WORLD, A), (A, WORLD)),
            // In transit, and to a service.
            ((Ipv4Addr::new(192, 168, 7, 1), WORLD), (WORLD, Ipv4Addr::new(192, 168, 7, 1))),
            ((A, Ipv4Addr::new(169, 254, 169, 253)), (Ipv4Addr::new(169, 254, 169, 253), A)),
        ] {
            assert!(!is_stale(&plan, &plan, original, reply), "{original:?}");
            assert!(!Change::new(&Owners::new(), &plan).is_stale(original, reply), "{original:?}");
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
            assert!(is_stale(before, after, original, reply), "{original:?} {reply:?}");
            assert!(!is_stale(before, before, original, reply) || before == &without, "{original:?}");
        }
    }

    #[test]
    fn what_was_anothers_is_stale() {
        let before = vpc(Target::InternetGateway, None);
        let mut after = before.clone();
        let moved = after.interfaces.remove("eni-a").unwrap();
        assert!(is_stale(&before, &after, (B, A), (A, B)));
        after.interfaces.insert("eni-c".to_owned(), moved);
        assert!(may_leave_stale(&before, &after));
        assert!(is_stale(&before, &after, (A, B), (B, A)));
    }
}
