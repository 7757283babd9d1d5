//! Real packets through real namespaces, against what the plan says. Needs root.

mod host;
mod lab;
mod matrix;
mod plans;
mod wire;

use std::net::Ipv4Addr;
use std::process::Command;
use std::time::{Duration, Instant};

use innkeeper_network::names;
use innkeeper_network::plan::{Address, GroupRule, Interface, Mac, Peer, Traffic, Vpc, protocol};
use innkeeper_network::probe::Probe;
use innkeeper_network::trace::Tracer;
use innkeeper_network::verdict::Packet;

use lab::{Lab, PATIENCE, SOON, on_a_host, router};
use plans::{address, mac};

fn tcp(source: Ipv4Addr, destination: Ipv4Addr, port: u16) -> Packet {
    Packet { source, destination, protocol: protocol::TCP, source_port: 40000, destination_port: port }
}

/// Lets a guest in from wherever the rule says.
fn inbound(traffic: Traffic, peer: &str) -> GroupRule {
    GroupRule { id: "sgr-1".into(), is_egress: false, traffic, peer: Peer::Range(peer.parse().unwrap()) }
}

/// The group that all guests are in.
fn group(vpc: &mut Vpc) -> &mut Vec<GroupRule> {
    vpc.groups.get_mut("sg-1").unwrap()
}

/// Whether a packet from one guest to another arrives, and one back.
fn exchange(lab: &Lab, [from, to]: [u8; 2], packet: Packet) -> [bool; 2] {
    let ids = [from, to].map(|number| format!("eni-{number}"));
    lab.forget();
    lab.send(&ids[0], mac(from), packet, wire::SYN);
    let arrived = lab.arrives(&ids[1], packet, 20 * SOON);
    lab.send(&ids[1], mac(to), packet.reply(), wire::SYN_ACK);
    [arrived, lab.arrives(&ids[0], packet.reply(), 20 * SOON)]
}

/// Whether the rest of a connection passes, in its first direction.
fn goes_on(lab: &Lab, [from, to]: [u8; 2], packet: Packet) -> bool {
    lab.forget();
    lab.send(&format!("eni-{from}"), mac(from), packet, wire::ACK);
    lab.arrives(&format!("eni-{to}"), packet, 20 * SOON)
}

#[test]
fn two_of_a_subnet_reach_each_other_as_their_groups_say() {
    on_a_host(|mut lab| {
        let mut vpc = plans::two_subnets();
        lab.apply(&vpc);
        let request = tcp(address(0), address(1), 80);
        assert_eq!(exchange(&lab, [0, 1], request), [false, false], "no rule lets it in");

        group(&mut vpc).push(inbound(Traffic::Tcp(80..=80), "10.0.0.0/24"));
        lab.apply(&vpc);
        assert_eq!(exchange(&lab, [0, 1], request), [true, true]);
        assert_eq!(exchange(&lab, [0, 1], tcp(address(0), address(1), 81)), [false, false]);
        assert_eq!(exchange(&lab, [2, 1], tcp(address(2), address(1), 80)), [false, false]);

        // A tracked connection lives on, new ones do not.
        group(&mut vpc).pop();
        lab.apply(&vpc);
        assert!(goes_on(&lab, [0, 1], request));
        let new = Packet { source_port: 40001, ..request };
        assert_eq!(exchange(&lab, [0, 1], new), [false, false]);
    });
}

/// EC2 does not track what everybody may do in both directions.
#[test]
fn a_connection_that_is_not_tracked_ends_with_its_rule() {
    on_a_host(|mut lab| {
        let mut vpc = plans::two_subnets();
        group(&mut vpc).push(inbound(Traffic::Tcp(80..=80), "0.0.0.0/0"));
        lab.apply(&vpc);
        let request = tcp(address(0), address(1), 80);
        assert_eq!(exchange(&lab, [0, 1], request), [true, true]);
        assert!(goes_on(&lab, [0, 1], request));
        group(&mut vpc).pop();
        lab.apply(&vpc);
        assert!(!goes_on(&lab, [0, 1], request));
    });
}

#[test]
fn an_acl_cuts_what_is_tracked() {
    on_a_host(|mut lab| {
        let mut vpc = plans::two_subnets();
        group(&mut vpc).push(inbound(Traffic::All, "10.0.0.0/16"));
        lab.apply(&vpc);
        let (across, within) = (tcp(address(0), address(2), 80), tcp(address(0), address(1), 80));
        assert_eq!(exchange(&lab, [0, 2], across), [true, true]);
        assert_eq!(exchange(&lab, [0, 1], within), [true, true]);
        for entry in vpc.acls.get_mut("acl-1").unwrap() {
            entry.allows = false;
        }
        lab.apply(&vpc);
        assert!(!goes_on(&lab, [0, 2], across));
        // It stands at the subnet's border, and not within.
        assert!(goes_on(&lab, [0, 1], within));
    });
}

#[test]
fn a_public_address_is_its_own() {
    on_a_host(|mut lab| {
        let mut vpc = plans::two_subnets();
        let public = Ipv4Addr::new(198, 19, 0, 7);
        let own = |public| vec![Address { private: address(0), public }];
        vpc.interfaces.get_mut("eni-0").unwrap().addresses = own(Some(public));
        lab.apply(&vpc);
        let outside = lab.outside(&vpc.id);
        let world = Ipv4Addr::new(8, 8, 8, 8);
        let out = tcp(address(0), world, 443);
        lab.send("eni-0", mac(0), out, wire::SYN);
        let seen = Packet { source: public, ..out };
        assert!(outside.arrives(seen, PATIENCE));
        outside.send(seen.reply(), wire::SYN_ACK);
        assert!(lab.arrives("eni-0", out.reply(), PATIENCE));
        // Without one, nothing leaves.
        let other = tcp(address(1), world, 443);
        lab.send("eni-1", mac(1), other, wire::SYN);
        assert!(!outside.arrives(Packet { source: address(1), ..other }, SOON));

        // Whoever gets it next gets nothing of the connections before.
        vpc.interfaces.get_mut("eni-0").unwrap().addresses = own(None);
        vpc.interfaces.get_mut("eni-1").unwrap().addresses =
            vec![Address { private: address(1), public: Some(public) }];
        lab.apply(&vpc);
        lab.forget();
        outside.send(seen.reply(), wire::ACK);
        assert!(!lab.arrives("eni-0", out.reply(), 20 * SOON));
        lab.send("eni-0", mac(0), out, wire::ACK);
        assert!(!outside.arrives(seen, 20 * SOON));
    });
}

/// Whoever is near the host can send packets to public addresses, and say what they like about where they come from.
#[test]
fn nobody_outside_is_one_of_the_vpc() {
    on_a_host(|mut lab| {
        let mut vpc = plans::two_subnets();
        let public = Ipv4Addr::new(198, 19, 0, 7);
        vpc.interfaces.get_mut("eni-0").unwrap().addresses =
            vec![Address { private: address(0), public: Some(public) }];
        group(&mut vpc)
            .push(GroupRule { peer: Peer::Group("sg-1".into()), ..inbound(Traffic::All, "0.0.0.0/0") });
        group(&mut vpc).push(inbound(Traffic::All, "192.0.2.1/32"));
        lab.apply(&vpc);
        let outside = lab.outside(&vpc.id);
        let arrives = |source, kind| {
            let packet = Packet { source, protocol: kind, ..tcp(source, public, 7000) };
            lab.forget();
            outside.send(packet, wire::SYN);
            lab.arrives("eni-0", Packet { destination: address(0), ..packet }, 20 * SOON)
        };
        for kind in [protocol::UDP, protocol::TCP] {
            assert!(arrives(Ipv4Addr::new(192, 0, 2, 1), kind));
            for member in [address(0), address(1), address(2)] {
                assert!(!arrives(member, kind), "{member} comes from outside");
            }
        }

        // A router on the way may have such an address, and its word of a connection counts.
        let out = tcp(address(0), Ipv4Addr::new(8, 8, 8, 8), 443);
        lab.send("eni-0", mac(0), out, wire::SYN);
        let (error, told) = wire::too_large(Ipv4Addr::new(10, 0, 0, 99), Packet { source: public, ..out });
        outside.send_bytes(&error);
        assert!(lab.arrives("eni-0", Packet { destination: address(0), ..told }, PATIENCE));
    });
}

/// Forged Ethernet and IP addresses, ARP, and protocols that nobody asked for.
#[test]
fn a_guest_is_nobody_else() {
    on_a_host(|mut lab| {
        let mut vpc = plans::two_subnets();
        group(&mut vpc).push(inbound(Traffic::All, "0.0.0.0/0"));
        lab.apply(&vpc);
        let honest = tcp(address(0), address(1), 80);
        assert_eq!(exchange(&lab, [0, 1], honest), [true, true]);
        for forged in
            [address(2), Ipv4Addr::new(10, 0, 0, 77), Ipv4Addr::new(8, 8, 8, 8), Ipv4Addr::LOCALHOST]
        {
            let packet = Packet { source: forged, source_port: 40001, ..honest };
            lab.send("eni-0", mac(0), packet, wire::SYN);
            assert!(!lab.arrives("eni-1", packet, SOON), "{packet:?}");
        }
        let packet = Packet { source_port: 40002, ..honest };
        lab.send("eni-0", mac(7), packet, wire::SYN);
        assert!(!lab.arrives("eni-1", packet, SOON));

        // Who says that it has another's address is not answered, and changes nothing.
        let router = router("10.0.0.0/24".parse().unwrap());
        assert_eq!(lab.ask("eni-0", (mac(0), address(1)), router), None);
        assert_eq!(lab.ask("eni-0", (mac(1), address(1)), router), None);
        assert_eq!(exchange(&lab, [0, 1], Packet { source_port: 40003, ..honest }), [true, true]);
        // Neighbours are reached by the router, who answers for them and for nobody who is not there.
        assert!(lab.ask("eni-0", (mac(0), address(0)), address(1)).is_some_and(|answer| answer != mac(1)));
        assert_eq!(lab.ask("eni-0", (mac(0), address(0)), Ipv4Addr::new(10, 0, 0, 99)), None);
    });
}

/// Fragments are put together on their way, whoever has sent them, and each has to be its sender's own.
#[test]
fn a_fragment_is_its_senders_own() {
    on_a_host(|mut lab| {
        let mut vpc = plans::two_subnets();
        group(&mut vpc).push(inbound(Traffic::All, "0.0.0.0/0"));
        lab.apply(&vpc);
        let datagram = |port| Packet { protocol: protocol::UDP, ..tcp(address(1), address(2), port) };
        let send = |from: u8, own: u8, fragment: &[u8]| {
            lab.send_bytes(&format!("eni-{from}"), mac(own), fragment);
        };
        let arrives = |packet, time| {
            let has_come = lab.arrives("eni-2", packet, time);
            lab.forget();
            has_come
        };
        let whole = wire::fragments(datagram(80), 1);
        for fragment in &whole {
            send(1, 1, fragment);
        }
        assert!(arrives(datagram(80), PATIENCE), "an honest packet in two parts");

        // Another one says how the victim's packets begin, or how they end.
        for (number, mac) in [(2, 0), (3, 1)] {
            let [forged, _] = wire::fragments(datagram(81), number);
            let [_, last] = wire::fragments(datagram(80), number);
            send(0, mac, &forged);
            send(1, 1, &last);
            assert!(!arrives(datagram(81), 20 * SOON), "a forged beginning");
        }
        for (number, mac) in [(4, 0), (5, 1)] {
            let [first, last] = wire::fragments(datagram(80), number);
            send(1, 1, &first);
            send(0, mac, &last);
            assert!(!arrives(datagram(80), 20 * SOON), "a forged end");
            send(1, 1, &last);
            assert!(arrives(datagram(80), PATIENCE), "what somebody else has sent takes a packet along");
        }
        // And it can do nothing alone.
        for fragment in wire::fragments(datagram(82), 6) {
            send(0, 0, &fragment);
        }
        assert!(!arrives(datagram(82), 20 * SOON));
    });
}

#[test]
fn vpcs_with_the_same_range_never_meet() {
    on_a_host(|mut lab| {
        let mut one = plans::two_subnets();
        group(&mut one).push(inbound(Traffic::All, "0.0.0.0/0"));
        let mut two = Vpc { id: "vpc-fedcba9876543210f".into(), ..one.clone() };
        let other = two.interfaces.remove("eni-1").unwrap();
        two.interfaces = [("eni-9".to_owned(), other)].into();
        one.interfaces.remove("eni-1");
        lab.apply(&one);
        lab.apply(&two);
        let packet = tcp(address(0), address(1), 80);
        lab.send("eni-0", mac(0), packet, wire::SYN);
        assert!(!lab.arrives("eni-9", packet, 20 * SOON));
    });
}

/// Connections live through a restart of the agent, and whatever somebody has thrown away is there again.
#[test]
fn a_network_is_made_whole_again() {
    on_a_host(|mut lab| {
        let mut vpc = plans::two_subnets();
        group(&mut vpc).push(inbound(Traffic::Tcp(80..=80), "10.0.0.0/24"));
        lab.apply(&vpc);
        let request = tcp(address(0), address(1), 80);
        assert_eq!(exchange(&lab, [0, 1], request), [true, true]);
        group(&mut vpc).pop();
        for damage in [
            "true",
            "nft flush ruleset",
            "nft flush chain inet innkeeper forward",
            "ip rule flush",
            "ip route flush table 100",
            "ip link set uplink down",
            "ip link delete uplink",
            "echo 0 > /proc/sys/net/ipv4/ip_forward",
            "ip neigh flush all; ip address flush dev lo",
        ] {
            let id = vpc.id.clone();
            let damaged = lab.networks.enter(&id, || Command::new("sh").args(["-c", damage]).status());
            assert!(damaged.unwrap().success(), "{damage}");
            lab.restart();
            lab.apply(&vpc);
            assert!(goes_on(&lab, [0, 1], request), "{damage}");
            // And without a restart.
            let damaged = lab.networks.enter(&id, || Command::new("sh").args(["-c", damage]).status());
            assert!(damaged.unwrap().success(), "{damage}");
            lab.networks.mend(&vpc).unwrap();
            assert!(goes_on(&lab, [0, 1], request), "{damage}");
            let new = Packet { source_port: 40001, ..request };
            assert_eq!(exchange(&lab, [0, 1], new), [false, false], "{damage}");
        }
    });
}

#[test]
fn nothing_is_left_of_a_network() {
    on_a_host(|mut lab| {
        let vpc = plans::two_subnets();
        for _ in 0..5 {
            lab.apply(&vpc);
            lab.leave_all();
            assert_eq!(lab.networks.existing().unwrap(), std::slice::from_ref(&vpc.id));
            lab.networks.remove(&vpc.id).unwrap();
            assert!(lab.networks.existing().unwrap().is_empty());
        }
        let links = Command::new("ip").args(["-o", "link"]).output().unwrap();
        let links = String::from_utf8(links.stdout).unwrap();
        assert!(!links.contains(&names::host_link(&vpc.id)), "{links}");
        // Nothing again is nothing.
        lab.networks.remove(&vpc.id).unwrap();
    });
}

/// `count` interfaces in the first subnet, besides the three that are there.
fn crowd(vpc: &mut Vpc, count: u16) {
    for number in 0..count {
        let [high, low] = (1000 + number).to_be_bytes();
        let interface = Interface {
            subnet: "subnet-1".into(),
            mac: Mac([2, 0, 0, 1, high, low]),
            addresses: vec![Address { private: Ipv4Addr::new(10, 0, high, low), public: None }],
            groups: vec!["sg-1".into()],
            source_dest_check: true,
        };
        vpc.interfaces.insert(format!("eni-{number:08x}"), interface);
    }
}

/// What is measured properly elsewhere: that an interface more does not cost as much as all others together.
#[test]
fn an_interface_more_costs_little() {
    on_a_host(|mut lab| {
        let mut vpc = plans::two_subnets();
        vpc.subnets.get_mut("subnet-1").unwrap().cidr = "10.0.0.0/20".parse().unwrap();
        vpc.subnets.remove("subnet-0");
        vpc.interfaces.clear();
        crowd(&mut vpc, 499);
        let all = Instant::now();
        lab.networks.apply(&vpc).unwrap();
        let mut taps: Vec<_> = Vec::new();
        for id in vpc.interfaces.keys() {
            taps.extend(lab.networks.open_tap(&vpc.id, id, 1).unwrap());
        }
        lab.networks.apply(&vpc).unwrap();
        let all = all.elapsed();
        let mut times = Vec::new();
        for number in 500..510 {
            crowd(&mut vpc, number);
            let begin = Instant::now();
            let id = format!("eni-{:08x}", number - 1);
            taps.extend(lab.networks.open_tap(&vpc.id, &id, 1).unwrap());
            lab.networks.apply(&vpc).unwrap();
            times.push(begin.elapsed());
        }
        times.sort();
        println!("499 interfaces: {all:?}; one more: {:?} (median)", times[times.len() / 2]);
        assert!(times[0] < Duration::from_millis(100), "{times:?}");
    });
}

#[test]
fn a_guest_that_is_there_answers() {
    on_a_host(|mut lab| {
        let vpc = plans::two_subnets();
        lab.apply(&vpc);
        let (id, interface) = ("eni-0", &vpc.interfaces["eni-0"]);
        let router = router(vpc.subnets["subnet-0"].cidr);
        let probe = Probe::open(&lab.networks, &vpc.id, id, interface, router).unwrap();
        assert!(!probe.is_answered(Duration::from_millis(20)).unwrap());
        std::thread::scope(|scope| {
            let asked = scope.spawn(|| probe.is_answered(PATIENCE));
            lab.answer(id, (mac(0), address(0)));
            assert!(asked.join().unwrap().unwrap());
        });
    });
}

#[test]
fn a_trace_says_why_a_packet_was_dropped() {
    on_a_host(|mut lab| {
        let mut vpc = plans::two_subnets();
        group(&mut vpc).push(inbound(Traffic::Tcp(80..=80), "10.0.0.0/16"));
        vpc.acls.get_mut("acl-1").unwrap()[1].peer = "10.0.0.0/16".parse().unwrap();
        lab.apply(&vpc);
        let world = Ipv4Addr::new(8, 8, 8, 8);
        let numbered = |number: u16, packet| Packet { source_port: 40000 + number, ..packet };
        let sent = [
            (numbered(0, tcp(address(0), address(1), 80)), "passed"),
            (
                numbered(1, tcp(address(0), address(1), 22)),
                "dropped, no inbound rule of eni-1's groups (sg-1) allows it",
            ),
            (numbered(2, tcp(address(0), world, 443)), "dropped, 10.0.0.4 has no public address"),
            (numbered(3, tcp(address(0), Ipv4Addr::new(10, 0, 0, 99), 80)), "dropped, nobody in the VPC has"),
            (numbered(4, tcp(Ipv4Addr::new(9, 9, 9, 9), address(0), 80)), "dropped, nobody in the VPC has"),
            (
                numbered(5, tcp(address(1), address(0), 80)),
                "dropped, 10.0.0.5 is an address inside of the VPC",
            ),
        ];
        let tracer = Tracer::open(&lab.networks, &vpc).unwrap();
        let outside = lab.outside(&vpc.id);
        for (packet, _) in &sent {
            if packet.source == address(0) {
                lab.send("eni-0", mac(0), *packet, wire::SYN);
            } else {
                outside.send(*packet, wire::SYN);
            }
        }
        let traced = tracer.look(&vpc, &[address(0)], Duration::from_millis(50)).unwrap();
        let said: Vec<String> = traced.iter().map(ToString::to_string).collect();
        assert_eq!(said.len(), sent.len(), "{said:#?}");
        for (said, (_, expected)) in said.iter().zip(&sent) {
            assert!(said.contains(expected), "{said} is not {expected}");
        }
        // A network ACL, which stands at the border only.
        let across = numbered(6, tcp(address(0), address(2), 80));
        vpc.acls.get_mut("acl-1").unwrap()[0].allows = false;
        lab.apply(&vpc);
        lab.send("eni-0", mac(0), across, wire::SYN);
        let traced = tracer.look(&vpc, &[address(2)], Duration::from_millis(50)).unwrap();
        let said: Vec<String> = traced.iter().map(ToString::to_string).collect();
        let [said] = said.as_slice() else { panic!("{said:#?}") };
        assert!(said.contains("entry 100 of acl-1 denies what enters its subnet"), "{said}");
    });
}
