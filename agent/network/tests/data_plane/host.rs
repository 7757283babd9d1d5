//! The host's side: packets between instances and somebody beyond the host.

use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4};
use std::time::Instant;

use innkeeper_network::names;
use innkeeper_network::plan::{Address, Traffic, Vpc, protocol};
use innkeeper_network::verdict::Packet;

use crate::lab::{Lab, PATIENCE, SOON, World, on_a_host, on_host};
use crate::plans::{address, mac};
use crate::{group, inbound, plans};

/// The public address of the guest that has one.
const PUBLIC: Ipv4Addr = Ipv4Addr::new(198, 19, 0, 7);

/// A VPC whose first guest has a public address, and is open for everybody.
fn with_public(public: Ipv4Addr) -> Vpc {
    let mut vpc = plans::two_subnets();
    vpc.interfaces.get_mut("eni-0").unwrap().addresses =
        vec![Address { private: address(0), public: Some(public) }];
    group(&mut vpc).push(inbound(Traffic::All, "0.0.0.0/0"));
    vpc
}

/// Connections, each from another port.
struct Ports(u16);

impl Ports {
    fn next(&mut self) -> u16 {
        self.0 += 1;
        self.0
    }
}

/// Whom the world sees when the first guest of a VPC sends something, and whether that hears the answer.
fn seen(lab: &Lab, world: &World, id: &str, ports: &mut Ports) -> Option<Ipv4Addr> {
    let server = world.socket(7000);
    let begin = Instant::now();
    // Links that are new, and neighbours that are not known, take their time.
    while begin.elapsed() < PATIENCE {
        let packet = Packet {
            source: address(0),
            destination: World::ADDRESS,
            protocol: protocol::UDP,
            source_port: ports.next(),
            destination_port: 7000,
        };
        lab.send(id, mac(0), packet, 0);
        let Ok((_, SocketAddr::V4(peer))) = server.recv_from(&mut [0; 16]) else { continue };
        lab.forget();
        server.send_to(b"data", peer).unwrap();
        assert!(lab.arrives(id, packet.reply(), PATIENCE), "{peer} does not hear the answer");
        return Some(*peer.ip());
    }
    None
}

/// Whether the first guest is reached by its public address, and is heard by that.
fn is_reached(lab: &Lab, world: &World, id: &str, public: Ipv4Addr, ports: &mut Ports) -> bool {
    let port = ports.next();
    let client = world.socket(port);
    let to = SocketAddrV4::new(public, 7000);
    let packet = Packet {
        source: World::ADDRESS,
        destination: address(0),
        protocol: protocol::UDP,
        source_port: port,
        destination_port: 7000,
    };
    client.send_to(b"data", to).unwrap();
    if !lab.arrives(id, packet, PATIENCE) {
        return false;
    }
    lab.send(id, mac(0), packet.reply(), 0);
    client.set_read_timeout(Some(PATIENCE)).unwrap();
    client.recv_from(&mut [0; 16]).is_ok_and(|(_, peer)| peer == SocketAddr::V4(to))
}

#[test]
fn the_world_sees_the_host_or_a_public_address() {
    on_a_host(|mut lab| {
        on_host("echo 0 > /proc/sys/net/ipv4/ip_forward");
        let (world, vpc, mut ports) = (lab.world(), with_public(PUBLIC), Ports(1024));
        for (masquerade, expected) in [(true, World::HOST), (false, PUBLIC)] {
            lab.settings.masquerade = masquerade;
            lab.restart();
            lab.apply(&vpc);
            assert_eq!(seen(&lab, &world, "eni-0", &mut ports), Some(expected));
            assert!(is_reached(&lab, &world, "eni-0", PUBLIC, &mut ports));
        }

        // Whatever a VPC lets out, the host lets out what is of the pool.
        let (server, uplink) = (world.socket(7000), lab.uplink(&vpc.id));
        for (source, expected) in [(PUBLIC, true), (address(0), false), (World::HOST, false)] {
            let (source_port, destination_port) = (ports.next(), 7000);
            let destination = World::ADDRESS;
            uplink.send(
                Packet { source, destination, protocol: protocol::UDP, source_port, destination_port },
                0,
            );
            server.set_read_timeout(Some(if expected { PATIENCE } else { 20 * SOON })).unwrap();
            assert_eq!(server.recv(&mut [0; 16]).is_ok(), expected, "{source}");
        }
    });
}

/// Whatever somebody does with the host's side is mended, by the agent that runs and by the next one.
#[test]
fn the_hosts_side_is_made_whole_again() {
    on_a_host(|mut lab| {
        let (world, vpc, mut ports) = (lab.world(), with_public(PUBLIC), Ports(1024));
        lab.apply(&vpc);
        let link = names::host_link(&vpc.id);
        for damage in [
            "true".to_owned(),
            "nft flush ruleset".to_owned(),
            "nft flush chain inet innkeeper-test postrouting".to_owned(),
            "echo 0 > /proc/sys/net/ipv4/ip_forward".to_owned(),
            format!("ip link delete {link}"),
            format!("ip link set {link} down"),
            format!("ip link set {link} down; ip link set {link} name other"),
            format!("ip link set {link} netns {}", world.path().display()),
            format!("ip route flush dev {link}"),
            format!("ip neigh flush dev {link} nud permanent"),
            format!("ip address flush dev {link}"),
        ] {
            for with_restart in [false, true] {
                on_host(&damage);
                if with_restart {
                    lab.restart();
                    lab.apply(&vpc);
                } else {
                    lab.networks
                        .mend(&vpc)
                        .unwrap_or_else(|error| panic!("{damage}: {error}: {}", error.cause));
                }
                assert_eq!(seen(&lab, &world, "eni-0", &mut ports), Some(World::HOST), "{damage}");
                assert!(is_reached(&lab, &world, "eni-0", PUBLIC, &mut ports), "{damage}");
            }
        }
        // The way is there without anybody looking for damage, if what is told is not possible otherwise.
        on_host(&format!("ip link delete {link}"));
        let _ = lab.networks.apply(&vpc);
        lab.apply(&vpc);
        assert_eq!(seen(&lab, &world, "eni-0", &mut ports), Some(World::HOST));
    });
}

/// An agent that starts takes over one VPC after the other, and takes away what was left of others.
#[test]
fn who_waits_for_his_turn_after_a_restart_is_translated_as_before() {
    on_a_host(|mut lab| {
        let (world, one, mut ports) = (lab.world(), with_public(PUBLIC), Ports(1024));
        let other_public = Ipv4Addr::new(198, 19, 0, 8);
        let mut two = Vpc { id: "vpc-fedcba9876543210f".into(), ..with_public(other_public) };
        let interface = two.interfaces.remove("eni-0").unwrap();
        two.interfaces = [("eni-9".to_owned(), interface)].into();
        let left = Vpc { id: "vpc-00112233445566778".into(), interfaces: Default::default(), ..one.clone() };
        for vpc in [&one, &two, &left] {
            lab.apply(vpc);
        }
        for (vpc, id) in [(&one, "eni-0"), (&two, "eni-9")] {
            assert_eq!(seen(&lab, &world, id, &mut ports), Some(World::HOST), "{}", vpc.id);
        }
        let all_are_seen = |lab: &Lab, ports: &mut Ports, when: &str| {
            for (id, public) in [("eni-0", PUBLIC), ("eni-9", other_public)] {
                assert_eq!(seen(lab, &world, id, ports), Some(World::HOST), "{id} {when}");
                assert!(is_reached(lab, &world, id, public, ports), "{id} {when}");
            }
        };
        lab.restart();
        all_are_seen(&lab, &mut ports, "before anything is done");
        lab.networks.remove(&left.id).unwrap();
        all_are_seen(&lab, &mut ports, "when the first is removed");
        lab.apply(&one);
        all_are_seen(&lab, &mut ports, "when the first has had its turn");
        lab.apply(&two);
        all_are_seen(&lab, &mut ports, "when all have had theirs");
    });
}
