//! The nftables rules of a VPC's namespace.
//!
//! ```text
//! claims      who a packet claims to be is who sends it: interface, Ethernet and IP address belong together
//! mangle      the packet is marked with its subnet, which chooses the route table
//! dstnat      what comes from outside to a public address goes to the private one
//! forward     outside: is it a public address's, or a NAT gateway's?
//!             ACLs, if the packet leaves a subnet or enters one: each packet, by itself
//!             groups of the sender, then of the receiver: new connections, and those that are not tracked
//! srcnat      what leaves gets the public address, or the NAT gateway's
//! input       only the services that every VPC has
//! ```
//!
//! What does not change is [`FIXED`]: hooks, and sets that are empty at first. The rest is compiled from the plan:
//! chains for each ACL, each security group and each combination of groups that an interface has, and elements of the
//! sets. So most changes are elements that come and go, and an interface more costs a few of them, however many there
//! are. [`Ruleset::change_to`] says what to tell nftables, in one transaction, to make one ruleset out of another.
//!
//! **Marks.** A packet carries its subnet's first address in its mark. Subnets have 16 addresses or more, so that the
//! last four bits are free: [`ANYWHERE_OUT`] and [`ANYWHERE_IN`] remember that the rule which let it through is for
//! everybody. A connection's mark remembers at whose end it is tracked: 1 for the one who has begun it, 2 for the other.
//!
//! **Tracked connections** live on after the rule that let them in is gone. EC2 does not track those of TCP and UDP that
//! a rule for everybody allows, if the other direction is open for everybody too: their packets are looked at one by one,
//! and a rule that goes takes them along (EC2 User Guide, "Security group connection tracking").

mod compile;
mod script;

use std::collections::{BTreeMap, BTreeSet};

pub use compile::compile;

/// A rule for everybody has let the packet out of the sender's interface.
const ANYWHERE_OUT: u32 = 1;
/// A rule for everybody has let the packet into the receiver's interface.
const ANYWHERE_IN: u32 = 2;
/// The name of our tables.
pub const TABLE: &str = "innkeeper";

/// What is compiled from a plan.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Ruleset {
    /// Chains, and their rules.
    chains: BTreeMap<String, Vec<String>>,
    /// The sets of groups' members, which come and go.
    member_sets: BTreeSet<String>,
    /// The elements of a family's set: keys, and what they lead to in a map.
    elements: BTreeMap<(Family, String), BTreeMap<String, Option<String>>>,
}

/// The family of a table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Family {
    Inet,
    Arp,
}

impl Family {
    fn name(self) -> &'static str {
        match self {
            Self::Inet => "inet",
            Self::Arp => "arp",
        }
    }
}

/// What does not depend on the plan: hooks, and sets that are filled later.
const FIXED: &str = r#"
table arp innkeeper {
    set bindings { type ifname . ether_addr . ipv4_addr; }
    set senders { type ifname . ether_addr; }

    chain input {
        type filter hook input priority filter; policy drop;
        iifname "uplink" accept
        iifname . arp saddr ether . arp saddr ip @bindings accept
        # A guest that asks whether somebody else has the address that it is about to use.
        iifname . arp saddr ether @senders arp saddr ip 0.0.0.0 accept
    }
}

table inet innkeeper {
    # By interface.
    map subnet_of { type ifname : mark; }
    map acl_out { type ifname : verdict; }
    map acl_in { type ifname : verdict; }
    map groups_out { type ifname : verdict; }
    map groups_in { type ifname : verdict; }
    set within { type mark . ifname; }
    set open_out { type ifname . inet_proto; }
    set open_in { type ifname . inet_proto; }

    # Who is who.
    set bindings { type ifname . ether_addr . ipv4_addr; }
    set senders { type ifname . ether_addr; }
    set addresses { type ifname . ipv4_addr; }
    set forwarders { type ifname . ether_addr; }
    set services { type ipv4_addr; }
    set inside { type ipv4_addr; flags interval; }
    set nobodys { type ipv4_addr; flags interval; }
    set connections { type ifname; size 65535; flags dynamic; }
    set service_rate { type ifname; size 65535; flags dynamic; timeout 10s; }

    # Public addresses, and those of NAT gateways.
    map private_of { type ipv4_addr : ipv4_addr; }
    map public_of { type ipv4_addr : ipv4_addr; }
    set public_pairs { type ipv4_addr . ipv4_addr; }
    set has_public { type ifname . ipv4_addr; }
    map nat_of { type ipv4_addr : ipv4_addr; }
    set nat_pairs { type ipv4_addr . ipv4_addr; }
    set nat_addresses { type ipv4_addr; }
    set nat_nexthops { type ipv4_addr; }
    set leaving { type ipv4_addr; }
    map nat_out { type ipv4_addr : verdict; }
    map nat_in { type ipv4_addr : verdict; }

    chain claims {
        # Before fragments are put together (-400): what is whole comes from where its last part came from.
        type filter hook prerouting priority -450; policy accept;
        meta nfproto ipv6 drop
        iifname { "uplink", "lo" } return
        iifname . ether saddr . ip saddr @bindings return
        iifname . ether saddr @senders ip saddr 0.0.0.0 ip daddr 255.255.255.255 udp sport 68 udp dport 67 return
        # Without its check, an interface forwards what is somebody's outside of the VPC, and nothing else.
        iifname . ether saddr @forwarders ip saddr != @inside ip daddr != 169.254.0.0/16 ip daddr != @services return
        drop
    }

    chain mangle {
        type filter hook prerouting priority mangle; policy accept;
        meta mark set 0
        meta mark set iifname map @subnet_of
    }

    chain to_private {
        type nat hook prerouting priority dstnat; policy accept;
        iifname "uplink" dnat ip to ip daddr map @private_of
    }

    # Filled from the plan: it drops what is too much.
    chain budget {
    }

    chain input {
        type filter hook input priority filter; policy drop;
        iifname "lo" accept
        iifname "uplink" drop
        jump budget
        udp dport { 53, 67, 123 } accept
        tcp dport { 53, 80 } accept
        ct state related accept
    }

    chain accepted {
        ct state != new accept
        meta mark & 1 == 0 ct mark set ct mark | 1
        iifname . meta l4proto != @open_in ct mark set ct mark | 1
        meta mark & 2 == 0 ct mark set ct mark | 2
        oifname . meta l4proto != @open_out ct mark set ct mark | 2
        accept
    }

    chain receiver {
        ct state established ct direction original ct mark & 2 == 2 accept
        ct state established ct direction reply ct mark & 1 == 1 accept
        oifname vmap @groups_in
        oifname "uplink" goto accepted
        drop
    }

    chain sender {
        ct state invalid drop
        # What ICMP says of a connection is for one of its ends to say, or for whoever is on the way.
        ct state related iifname "uplink" accept
        ct state related iifname . ether saddr @forwarders accept
        ct state related ct direction original iifname . ct original ip saddr @addresses accept
        ct state related ct direction reply iifname . ct reply ip saddr @addresses accept
        ct state established ct direction original ct mark & 1 == 1 goto receiver
        ct state established ct direction reply ct mark & 2 == 2 goto receiver
        iifname vmap @groups_out
        iifname "uplink" goto receiver
        drop
    }

    chain from_outside {
        # Nobody out there has an address of the VPC, and its groups' rules take the source for who it is. Routers do have
        # such addresses, and say by them what has become of a connection's packets.
        ct state != related ip saddr @inside drop
        ct direction original ct original ip daddr . ip daddr @public_pairs return
        ct direction reply ct reply ip daddr . ip daddr @public_pairs return
        ct direction reply ct reply ip daddr vmap @nat_in
        ct direction reply ct reply ip daddr @nat_addresses return
        drop
    }

    chain to_outside {
        rt ip nexthop 169.254.0.1 goto to_internet_gateway
        rt ip nexthop vmap @nat_out
        ct status & snat == 0 ct direction original rt ip nexthop @nat_nexthops return
        ct direction original rt ip nexthop . ct reply ip daddr @nat_pairs return
        drop
    }

    chain to_internet_gateway {
        ct direction reply ct original ip daddr . ip saddr @public_pairs return
        ct status & snat == snat ct reply ip daddr . ip saddr @public_pairs return
        ct status & snat == 0 ct direction original iifname . ip saddr @has_public return
        drop
    }

    chain forward {
        type filter hook forward priority filter; policy drop;
        # Nobody's: the services that have such an address are in here, and the host's own are not for guests.
        ip daddr @nobodys drop
        # Leases are given by the VPC, and by nobody in it.
        udp sport 67 udp dport 68 drop
        # What the kernel can track is the host's, and everybody's.
        iifname != "uplink" ct state new add @connections { iifname ct count over 16384 } drop
        iifname "uplink" jump from_outside
        oifname "uplink" jump to_outside
        meta mark . oifname @within goto sender
        iifname vmap @acl_out
        oifname vmap @acl_in
        goto sender
    }

    chain to_public {
        type nat hook postrouting priority srcnat; policy accept;
        oifname "uplink" snat ip to rt ip nexthop map @nat_of
        oifname "uplink" snat ip to ip saddr map @public_of
    }

    chain last {
        type filter hook postrouting priority 150; policy accept;
        # A connection that has begun when there was no gateway is not translated when there is one.
        oifname "uplink" ip saddr != @leaving drop
    }
}
"#;
