//! From a plan to a ruleset.

use std::collections::{BTreeMap, BTreeSet};

use sha2::{Digest, Sha256};

use super::{ANYWHERE_IN, ANYWHERE_OUT, Family, Ruleset};
use crate::names;
use crate::plan::{AclEntry, GroupRule, Interface, NOBODYS, NatGateway, Peer, Traffic, Vpc, protocol};
use crate::{Cidr, mark};

/// What interfaces with the same groups have in common.
struct Combination {
    name: String,
    /// Directions and protocols in which everybody may do everything.
    open: Vec<(bool, u8)>,
}

/// Compiles a plan. An interface whose subnet or ACL is not in it is left out, and gets and sends nothing.
pub fn compile(vpc: &Vpc) -> Ruleset {
    let mut ruleset = Ruleset::default();
    for (id, entries) in &vpc.acls {
        ruleset.acl(id, entries);
    }
    for (id, rules) in &vpc.groups {
        ruleset.group(vpc, id, rules);
    }
    let mut combinations = BTreeMap::new();
    for (id, interface) in &vpc.interfaces {
        ruleset.interface(vpc, id, interface, &mut combinations);
    }
    if vpc.has_internet_gateway {
        for (id, gateway) in &vpc.nat_gateways {
            ruleset.nat_gateway(vpc, id, gateway);
        }
    }
    for range in &vpc.cidrs {
        ruleset.add("inside", range);
    }
    for service in crate::routes::addresses(vpc) {
        ruleset.add("services", service);
    }
    for range in NOBODYS {
        ruleset.add("inside", range);
        ruleset.add("nobodys", range);
    }
    // Half a second's worth may come at once.
    let budget = vpc.service_packets.map(|rate| {
        let burst = (rate / 2).max(1);
        format!("update @service_rate {{ iifname limit rate over {rate}/second burst {burst} packets }} drop")
    });
    ruleset.chains.insert("budget".to_owned(), budget.into_iter().collect());
    ruleset
}

impl Ruleset {
    fn add(&mut self, set: &str, key: impl ToString) {
        self.element(Family::Inet, set, key.to_string(), None);
    }

    fn map(&mut self, map: &str, key: impl ToString, value: impl ToString) {
        self.element(Family::Inet, map, key.to_string(), Some(value.to_string()));
    }

    fn element(&mut self, family: Family, set: &str, key: String, value: Option<String>) {
        self.elements.entry((family, set.to_owned())).or_default().insert(key, value);
    }

    fn acl(&mut self, id: &str, entries: &[AclEntry]) {
        let mut entries: Vec<&AclEntry> = entries.iter().collect();
        entries.sort_by_key(|entry| entry.number);
        for is_egress in [false, true] {
            let chain = entries.iter().filter(|entry| entry.is_egress == is_egress).map(|entry| {
                let verdict = if entry.allows { "return" } else { "drop" };
                rule([range(is_egress, entry.peer), traffic(&entry.traffic), verdict.into()])
            });
            self.chains.insert(directed(id, is_egress), chain.chain(["drop".to_owned()]).collect());
        }
    }

    fn group(&mut self, vpc: &Vpc, id: &str, rules: &[GroupRule]) {
        for is_egress in [false, true] {
            let (next, anywhere) =
                if is_egress { ("receiver", ANYWHERE_OUT) } else { ("accepted", ANYWHERE_IN) };
            let own = rules.iter().filter(|rule| rule.is_egress == is_egress);
            let chain = own.map(|own| {
                let peer = match &own.peer {
                    Peer::Range(cidr) => range(is_egress, *cidr),
                    Peer::Group(group) => format!("ip {} @{group}", side(is_egress)),
                };
                let mark = if own.peer.is_anywhere() {
                    format!("meta mark set meta mark | {anywhere}")
                } else {
                    String::new()
                };
                rule([peer, traffic(&own.traffic), mark, format!("goto {next}")])
            });
            self.chains.insert(directed(id, is_egress), chain.collect());
        }
        self.member_sets.insert(id.to_owned());
        for member in vpc.members(id) {
            self.add(id, member);
        }
        // A group of another VPC has no members here.
        for rule in rules {
            if let Peer::Group(other) = &rule.peer {
                self.member_sets.insert(other.clone());
            }
        }
    }

    fn interface<'a>(
        &mut self,
        vpc: &'a Vpc,
        id: &str,
        interface: &'a Interface,
        combinations: &mut BTreeMap<Vec<&'a str>, Combination>,
    ) {
        let Some(subnet) = vpc.subnets.get(&interface.subnet) else { return };
        if !vpc.acls.contains_key(&subnet.acl) {
            return;
        }
        let tap = names::tap(id);
        self.map("subnet_of", &tap, mark(subnet.cidr));
        self.add("within", format!("{} . {tap}", mark(subnet.cidr)));
        self.map("acl_out", &tap, format!("jump {}", directed(&subnet.acl, true)));
        self.map("acl_in", &tap, format!("jump {}", directed(&subnet.acl, false)));

        let groups: BTreeSet<&str> = interface.groups.iter().map(String::as_str).collect();
        let known: Vec<&str> = groups.into_iter().filter(|group| vpc.groups.contains_key(*group)).collect();
        let combination = combinations.entry(known).or_insert_with_key(|known| self.combination(vpc, known));
        for (is_egress, map, set) in [(true, "groups_out", "open_out"), (false, "groups_in", "open_in")] {
            self.map(map, &tap, format!("goto {}", directed(&combination.name, is_egress)));
            for (_, number) in combination.open.iter().filter(|(direction, _)| *direction == is_egress) {
                self.add(set, format!("{tap} . {number}"));
            }
        }

        let sender = format!("{tap} . {}", interface.mac);
        self.add("senders", &sender);
        self.element(Family::Arp, "senders", sender.clone(), None);
        if !interface.source_dest_check {
            self.add("forwarders", &sender);
        }
        for address in &interface.addresses {
            let private = address.private;
            let binding = format!("{sender} . {private}");
            self.add("bindings", &binding);
            self.add("addresses", format!("{tap} . {private}"));
            self.element(Family::Arp, "bindings", binding, None);
            if let Some(public) = address.public.filter(|_| vpc.has_internet_gateway) {
                self.map("private_of", public, private);
                self.map("public_of", private, public);
                self.add("public_pairs", format!("{public} . {private}"));
                self.add("has_public", format!("{tap} . {private}"));
                self.add("leaving", public);
            }
        }
    }

    /// The chains of interfaces that have exactly these groups.
    fn combination(&mut self, vpc: &Vpc, groups: &[&str]) -> Combination {
        let mut name = String::from("groups-");
        for byte in Sha256::digest(groups.join(" ")).iter().take(8) {
            name.push_str(&format!("{byte:02x}"));
        }
        let mut open = Vec::new();
        for is_egress in [true, false] {
            let jumps = groups.iter().map(|group| format!("jump {}", directed(group, is_egress)));
            let jumps = jumps.chain(["drop".to_owned()]).collect();
            self.chains.insert(directed(&name, is_egress), jumps);
            let protocols = [protocol::TCP, protocol::UDP].into_iter();
            let protocols = protocols.filter(|number| is_open(vpc, groups, is_egress, *number));
            open.extend(protocols.map(|number| (is_egress, number)));
        }
        Combination { name, open }
    }

    fn nat_gateway(&mut self, vpc: &Vpc, id: &str, gateway: &NatGateway) {
        let Some(subnet) = vpc.subnets.get(&gateway.subnet) else { return };
        if !vpc.acls.contains_key(&subnet.acl) {
            return;
        }
        let (private, public) = (gateway.private, gateway.public);
        let (acl_in, acl_out) = (directed(&subnet.acl, false), directed(&subnet.acl, true));
        // Between the gateway and those in its own subnet is no ACL.
        let mark = mark(subnet.cidr);
        let out = vec![format!("meta mark != {mark} jump {acl_in}"), format!("jump {acl_out}")];
        // What comes from outside has no mark of its own, and needs one here only.
        let back = vec![
            format!("jump {acl_in}"),
            format!("meta mark set {mark}"),
            format!("meta mark . oifname != @within jump {acl_out}"),
            "meta mark set 0".to_owned(),
        ];
        self.chains.insert(directed(id, true), out);
        self.chains.insert(directed(id, false), back);
        self.map("nat_of", private, public);
        self.add("nat_pairs", format!("{private} . {public}"));
        self.add("nat_nexthops", private);
        self.add("nat_addresses", public);
        self.add("leaving", public);
        self.map("nat_out", private, format!("jump {}", directed(id, true)));
        self.map("nat_in", public, format!("jump {}", directed(id, false)));
    }
}

/// Whether an interface with these groups lets everybody do everything with a protocol, in one direction.
fn is_open(vpc: &Vpc, groups: &[&str], is_egress: bool, number: u8) -> bool {
    let rules = groups.iter().filter_map(|group| vpc.groups.get(*group)).flatten();
    rules
        .filter(|rule| rule.is_egress == is_egress)
        .any(|rule| rule.peer.is_anywhere() && rule.traffic.is_all_of(number))
}

/// The chain of something for one direction, as seen from the interface.
fn directed(id: &str, is_egress: bool) -> String {
    format!("{id}-{}", if is_egress { "out" } else { "in" })
}

fn rule<const N: usize>(parts: [String; N]) -> String {
    let parts: Vec<String> = parts.into_iter().filter(|part| !part.is_empty()).collect();
    parts.join(" ")
}

/// The address of the other side.
fn side(is_egress: bool) -> &'static str {
    if is_egress { "daddr" } else { "saddr" }
}

fn range(is_egress: bool, cidr: Cidr) -> String {
    if cidr.prefix() == 0 { String::new() } else { format!("ip {} {cidr}", side(is_egress)) }
}

fn traffic(traffic: &Traffic) -> String {
    let ports = |name: &str, ports: &std::ops::RangeInclusive<u16>| match (ports.start(), ports.end()) {
        (0, &u16::MAX) => format!("meta l4proto {name}"),
        (first, last) if first == last => format!("{name} dport {first}"),
        (first, last) => format!("{name} dport {first}-{last}"),
    };
    match traffic {
        Traffic::All => String::new(),
        Traffic::Tcp(range) => ports("tcp", range),
        Traffic::Udp(range) => ports("udp", range),
        Traffic::Icmp(None, _) => "meta l4proto icmp".to_owned(),
        Traffic::Icmp(Some(kind), None) => format!("icmp type {kind}"),
        Traffic::Icmp(Some(kind), Some(code)) => format!("icmp type {kind} icmp code {code}"),
        Traffic::Protocol(number) => format!("meta l4proto {number}"),
    }
}
