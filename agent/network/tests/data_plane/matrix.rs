//! Generated combinations of groups, ACLs, routes and addresses: the model says what becomes of a packet, and a real one
//! shows it.

use std::net::Ipv4Addr;
use std::ops::RangeInclusive;
use std::time::Duration;

use innkeeper_network::plan::{
    AclEntry, Address, GroupRule, NatGateway, Peer, Route, Target, Traffic, Vpc, protocol,
};
use innkeeper_network::verdict::{ECHO_REQUEST, End, Packet};

use crate::lab::{Lab, Outside, PATIENCE, SOON, on_a_host};
use crate::plans;
use crate::wire;

/// How many combinations there are by default; `INNKEEPER_NETWORK_COMBINATIONS` says otherwise.
const COMBINATIONS: u64 = 250;
/// How many connections are tried in each.
const CONNECTIONS: usize = 12;
/// Somebody outside.
const WORLD: [Ipv4Addr; 3] =
    [Ipv4Addr::new(8, 8, 8, 8), Ipv4Addr::new(192, 0, 2, 1), Ipv4Addr::new(169, 254, 170, 2)];

/// Who nobody outside is: nobody of the VPC either, a neighbour of the host, and a service.
const LIES: [Ipv4Addr; 3] =
    [Ipv4Addr::new(10, 0, 0, 99), Ipv4Addr::new(169, 254, 7, 7), Ipv4Addr::new(169, 254, 169, 253)];

/// A protocol that nobody knows.
const EXPERIMENT: u8 = 253;

/// A generator of numbers that are the same each time (SplitMix64).
struct Dice(u64);

impl Dice {
    fn roll(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    fn below(&mut self, count: usize) -> usize {
        (self.roll() % count as u64) as usize
    }

    fn pick<'a, T>(&mut self, from: &'a [T]) -> &'a T {
        &from[self.below(from.len())]
    }

    /// True so many times of ten.
    fn chance(&mut self, of_ten: usize) -> bool {
        self.below(10) < of_ten
    }
}

fn traffic(dice: &mut Dice) -> Traffic {
    let ports: [RangeInclusive<u16>; 4] = [0..=u16::MAX, 80..=80, 53..=100, 1024..=u16::MAX];
    let ports = dice.pick(&ports).clone();
    match dice.below(8) {
        0 | 1 => Traffic::All,
        2..=4 => Traffic::Tcp(ports),
        5 => Traffic::Udp(ports),
        6 => dice.pick(&[Traffic::Icmp(None, None), Traffic::Icmp(Some(8), None)]).clone(),
        _ => Traffic::Protocol(*dice.pick(&[EXPERIMENT, protocol::TCP, 132])),
    }
}

fn range(dice: &mut Dice) -> innkeeper_network::Cidr {
    let ranges =
        ["0.0.0.0/0", "0.0.0.0/0", "10.0.0.0/16", "10.0.0.0/24", "10.0.1.0/24", "10.0.0.4/32", "8.0.0.0/8"];
    dice.pick(&ranges).parse().unwrap()
}

fn rule(dice: &mut Dice, number: usize) -> GroupRule {
    let peer =
        if dice.chance(3) { Peer::Group(format!("sg-{}", dice.below(3))) } else { Peer::Range(range(dice)) };
    GroupRule { id: format!("sgr-{number}"), is_egress: dice.chance(4), traffic: traffic(dice), peer }
}

fn acl(dice: &mut Dice) -> Vec<AclEntry> {
    let mut entries = Vec::new();
    for number in 0..dice.below(5) {
        entries.push(AclEntry {
            number: 10 + number as u16,
            is_egress: dice.chance(5),
            allows: dice.chance(5),
            traffic: traffic(dice),
            peer: range(dice),
        });
    }
    // Most let pass what is left.
    if dice.chance(8) {
        entries.extend(plans::open_acl());
    }
    entries
}

/// One combination. The interfaces stay, everything else is by chance.
fn combination(dice: &mut Dice) -> Vpc {
    let mut vpc = plans::two_subnets();
    vpc.has_internet_gateway = dice.chance(9);
    vpc.groups = (0..3)
        .map(|group| {
            let mut rules: Vec<GroupRule> = (0..dice.below(5)).map(|number| rule(dice, number)).collect();
            if dice.chance(7) {
                rules.push(plans::outbound());
            }
            (format!("sg-{group}"), rules)
        })
        .collect();
    vpc.acls = (0..2).map(|number| (format!("acl-{number}"), acl(dice))).collect();
    for number in 0..2 {
        let subnet = vpc.subnets.get_mut(&format!("subnet-{number}")).unwrap();
        subnet.acl = format!("acl-{}", dice.below(2));
        subnet.route_table = format!("rtb-{number}");
    }
    if dice.chance(7) {
        let gateway = NatGateway {
            subnet: "subnet-0".into(),
            private: Ipv4Addr::new(10, 0, 0, 200),
            public: Ipv4Addr::new(198, 19, 0, 200),
        };
        vpc.nat_gateways.insert("nat-1".into(), gateway);
    }
    let targets = [
        Target::InternetGateway,
        Target::InternetGateway,
        Target::NatGateway("nat-1".into()),
        Target::Interface("eni-0".into()),
        Target::Blackhole,
    ];
    vpc.route_tables = (0..2)
        .map(|number| {
            let mut routes = Vec::new();
            for destination in ["0.0.0.0/0", "8.8.0.0/16"] {
                if dice.chance(8) {
                    let target = dice.pick(&targets).clone();
                    routes.push(Route { destination: destination.parse().unwrap(), target });
                }
            }
            (format!("rtb-{number}"), routes)
        })
        .collect();
    for (number, interface) in (0..).zip(vpc.interfaces.values_mut()) {
        interface.groups = (0..3).filter(|_| dice.chance(5)).map(|group| format!("sg-{group}")).collect();
        let public = dice.chance(6).then_some(Ipv4Addr::new(198, 19, 0, 10 + number));
        interface.addresses = vec![Address { private: plans::address(number), public }];
        interface.source_dest_check = dice.chance(7);
    }
    vpc
}

/// The first packet of a connection.
fn packet(dice: &mut Dice, vpc: &Vpc, source: Ipv4Addr, own: u16) -> Packet {
    let others: Vec<Address> = vpc.interfaces.values().map(|one| one.addresses[0]).collect();
    let others: Vec<Address> = others.into_iter().filter(|other| other.private != source).collect();
    let other = *dice.pick(&others);
    let destination = match dice.below(10) {
        0..=5 => other.private,
        6 => other.public.unwrap_or(other.private),
        7 => Ipv4Addr::new(10, 0, 0, 99),
        _ => *dice.pick(&WORLD),
    };
    let mut protocol = *dice.pick(&[protocol::TCP, protocol::TCP, protocol::UDP, protocol::ICMP, EXPERIMENT]);
    // Nothing tells one of these from another, also not from those of combinations before. They are answered by nobody,
    // go one way only, and where no address is translated.
    if protocol == EXPERIMENT && (!vpc.contains(destination) || destination < source) {
        protocol = protocol::UDP;
    }
    let (source_port, destination_port) = match protocol {
        protocol::TCP | protocol::UDP => (own, *dice.pick(&[80, 53, 443, 5000])),
        protocol::ICMP => (own, ECHO_REQUEST),
        _ => (0, 0),
    };
    Packet { source, destination, protocol, source_port, destination_port }
}

/// What a packet may look like where it should not be: as it is, or with addresses translated.
fn forms(vpc: &Vpc, packet: Packet) -> Vec<Packet> {
    let own = || vpc.interfaces.values().flat_map(|interface| &interface.addresses);
    let sources = own().filter(|one| one.private == packet.source).filter_map(|one| one.public);
    let sources = sources.chain(vpc.nat_gateways.values().map(|gateway| gateway.public));
    let destinations = own().filter(|one| one.public == Some(packet.destination)).map(|one| one.private);
    let sent = sources.map(|source| Packet { source, ..packet });
    let received = destinations.map(|destination| Packet { destination, ..packet });
    [packet].into_iter().chain(sent).chain(received).collect()
}

/// Where a packet is seen: at interfaces, and on its way out. One that nobody is to see is looked for in all its forms.
fn seen(lab: &Lab, outside: &Outside, vpc: &Vpc, packet: Packet, expected: Option<&End>) -> Vec<End> {
    let patience = |end: &End| if expected == Some(end) { PATIENCE } else { Duration::ZERO };
    let interfaces = vpc.interfaces.keys().map(|id| End::Interface(id.clone()));
    let mut ends: Vec<End> = interfaces.chain([End::Outside]).collect();
    // Whoever is to see it, sees it first; then enough time has gone by for all others.
    ends.sort_by_key(|end| expected != Some(end));
    if expected.is_none() {
        std::thread::sleep(SOON);
    }
    let forms = if expected.is_some() { vec![packet] } else { forms(vpc, packet) };
    ends.retain(|end| match end {
        End::Interface(id) => lab.any_arrives(id, &forms, patience(end)),
        End::Outside => outside.any_arrives(&forms, patience(end)),
    });
    ends
}

/// Tries one connection; returns whether the first packet has arrived, and its answer.
fn connect(lab: &Lab, outside: &Outside, vpc: &Vpc, from: &str, packet: Packet) -> [bool; 2] {
    let context = |what: &str| format!("{what} of {from}: {packet:?}\nin {vpc:#?}");
    lab.forget();
    let sender = vpc.interfaces[from].mac;
    let sent = vpc.sends(from, packet);
    lab.send(from, sender, packet, wire::SYN);
    let Ok(passage) = sent else {
        let ends = seen(lab, outside, vpc, packet, None);
        assert_eq!(ends, [], "{sent:?} {}", context("a packet"));
        return [false, false];
    };
    let ends = seen(lab, outside, vpc, passage.packet, Some(&passage.to));
    assert_eq!(ends, std::slice::from_ref(&passage.to), "{}", context("a packet"));
    if packet.protocol == EXPERIMENT {
        return [true, false];
    }
    let reply = packet.reply();
    let (answered, arrived) = match &passage.to {
        End::Interface(to) => {
            let answered = vpc.answers(to, reply);
            lab.send(to, vpc.interfaces[to].mac, reply, wire::SYN_ACK);
            (answered, reply)
        }
        // Somebody of this VPC, by a public address: the packet comes back by the host.
        End::Outside
            if vpc.interfaces.values().any(|one| one.addresses[0].public == Some(packet.destination)) =>
        {
            let received = vpc.receives(passage.packet);
            let to = received.as_ref().ok().map(|passage| passage.to.clone());
            let arrived = received.as_ref().map_or(passage.packet, |passage| passage.packet);
            let ends = seen(lab, outside, vpc, arrived, to.as_ref());
            assert_eq!(ends, Vec::from_iter(to), "{received:?} {}", context("a packet that came back"));
            return [true, false];
        }
        End::Outside => {
            outside.send(passage.packet.reply(), wire::SYN_ACK);
            (vpc.hears(from, reply), reply)
        }
    };
    let to = answered.as_ref().ok().map(|_| End::Interface(from.to_owned()));
    let ends = seen(lab, outside, vpc, arrived, to.as_ref());
    assert_eq!(ends, Vec::from_iter(to), "{answered:?} {}", context("an answer"));
    [true, answered.is_ok()]
}

/// Tries a connection from outside to a public address.
fn connect_from_outside(lab: &Lab, outside: &Outside, vpc: &Vpc, packet: Packet) -> bool {
    lab.forget();
    let received = vpc.receives(packet);
    outside.send(packet, wire::SYN);
    let to = received.as_ref().ok().map(|passage| passage.to.clone());
    let arrived = received.as_ref().map_or(packet, |passage| passage.packet);
    let ends = seen(lab, outside, vpc, arrived, to.as_ref());
    assert_eq!(ends, Vec::from_iter(to), "{received:?} of {packet:?} in {vpc:#?}");
    received.is_ok()
}

#[test]
fn packets_do_what_the_plan_says() {
    let combinations = match std::env::var("INNKEEPER_NETWORK_COMBINATIONS") {
        Ok(number) => number.parse().unwrap(),
        Err(_) => COMBINATIONS,
    };
    on_a_host(|mut lab| {
        let mut counts = [0_u64; 4];
        let mut own = 1024_u16;
        for seed in 0..combinations {
            let dice = &mut Dice(seed);
            let vpc = combination(dice);
            lab.apply(&vpc);
            let outside = lab.outside(&vpc.id);
            for _ in 0..CONNECTIONS {
                own = own.checked_add(1).unwrap_or(1024);
                let from = format!("eni-{}", dice.below(vpc.interfaces.len()));
                let address = vpc.interfaces[&from].addresses[0];
                let packet = packet(dice, &vpc, address.private, own);
                if dice.chance(7) {
                    let [arrived, answered] = connect(&lab, &outside, &vpc, &from, packet);
                    counts[0] += 1;
                    counts[1] += u64::from(arrived);
                    counts[2] += u64::from(answered);
                } else if packet.protocol != EXPERIMENT {
                    let destination = address.public.unwrap_or(Ipv4Addr::new(198, 19, 9, 9));
                    // Now and then somebody out there says that it is one of the VPC, or nobody.
                    let source = match dice.below(5) {
                        0 => plans::address(dice.below(vpc.interfaces.len()) as u8),
                        1 => *dice.pick(&LIES),
                        _ => WORLD[0],
                    };
                    let packet = Packet { source, destination, ..packet };
                    counts[3] += u64::from(connect_from_outside(&lab, &outside, &vpc, packet));
                }
            }
        }
        let [tried, arrived, answered, from_outside] = counts;
        println!("{tried} tried, {arrived} arrived, {answered} answered; {from_outside} from outside");
        // Both verdicts are worth nothing if one of them is never given.
        for count in [tried - arrived, arrived - answered, answered, from_outside] {
            assert!(count >= combinations / 10, "{counts:?}");
        }
    });
}
