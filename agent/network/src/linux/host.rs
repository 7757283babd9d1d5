//! The host's side: the way to each VPC's public addresses, and out into the world.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::net::Ipv4Addr;
use std::path::Path;

use super::inside::OUTSIDE_MTU;
use super::netlink::{KernelRoute, Netlink};
use super::nft::{self, Generation};
use super::{Error, Namespace, What};
use crate::Cidr;
use crate::names::{VPC_SIDE, host_link, uplink_macs};
use crate::plan::Vpc;

/// The main table.
const MAIN: u32 = 254;

/// What the operator has chosen.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HostSettings {
    /// The name of our nftables table: agents that share a host have different ones.
    pub table: String,
    /// Whose table it is, for people who find it: at most 100 letters, without quotation marks.
    pub comment: String,
    /// What public addresses are taken from.
    pub pool: Vec<Cidr>,
    /// The host's own address, by which instances see it. None, if there is no pool.
    pub address: Option<Ipv4Addr>,
    /// Whether what leaves the host gets the host's address, because nobody out there knows the pool.
    pub masquerade: bool,
}

/// The host's side.
pub struct Host {
    settings: HostSettings,
    namespace: Namespace,
    netlink: Netlink,
    generation: Generation,
    /// The VPCs' links, and the number that the rules have had since they were told last.
    told: Option<(BTreeSet<String>, u32)>,
    /// The links of all VPCs, and the public addresses of those that were applied.
    links: BTreeMap<String, BTreeSet<Ipv4Addr>>,
}

impl Host {
    /// That of the network namespace of the calling thread, with links to the VPCs that exist. Their connections are
    /// translated before they are applied too: what begins without stays so to its end.
    pub fn open(settings: HostSettings, existing: &[String]) -> Result<Self, Error> {
        let what = || "ask the kernel for its network".into();
        let namespace = Namespace::own().what(what)?;
        let netlink = Netlink::open().what(what)?;
        let generation = Generation::open().what(what)?;
        let links = existing.iter().map(|vpc| (host_link(vpc), BTreeSet::new())).collect();
        Ok(Self { settings, namespace, netlink, generation, told: None, links })
    }

    /// The host's network namespace.
    pub fn namespace(&self) -> &Namespace {
        &self.namespace
    }

    /// Lets it forward again, if somebody has told it not to.
    pub fn mend(&self) -> Result<(), Error> {
        self.namespace.enter(forward).what(|| "let the host forward".into())
    }

    /// Leads a VPC's public addresses to it.
    pub fn apply(&mut self, vpc: &Vpc) -> Result<(), Error> {
        let link = host_link(&vpc.id);
        self.links.insert(link.clone(), public_addresses(vpc));
        self.tell().what(|| "change the host's rules".into())?;
        self.lead(&vpc.id, &link).what(|| format!("lead to {}", vpc.id))
    }

    /// Nothing leads to a VPC any more. Its link goes with its namespace, and with the link the routes.
    pub fn remove(&mut self, vpc: &str) -> Result<(), Error> {
        let link = host_link(vpc);
        self.links.remove(&link);
        self.netlink.remove_link(&link).what(|| format!("remove {link}"))?;
        self.tell().what(|| "change the host's rules".into())
    }

    fn tell(&mut self) -> io::Result<()> {
        let links: BTreeSet<String> = self.links.keys().cloned().collect();
        if let Some((told, generation)) = &self.told
            && *told == links
            && *generation == self.generation.get()?
        {
            return Ok(());
        }
        self.told = None;
        // Who runs a firewall of its own sees this as one table more.
        self.namespace.enter(|| {
            forward()?;
            nft::run(&script(&self.settings, &links))
        })?;
        self.told = Some((links, self.generation.get()?));
        Ok(())
    }

    fn lead(&mut self, vpc: &str, name: &str) -> io::Result<()> {
        let link = self.netlink.link(name)?;
        let link = link.ok_or_else(|| io::Error::other(format!("there is no {name}")))?;
        if !link.is_up || link.mtu != OUTSIDE_MTU {
            self.netlink.set_up(link.index, Some(OUTSIDE_MTU))?;
        }
        if let Some(address) = self.settings.address
            && !self.netlink.addresses(link.index)?.contains(&address)
        {
            self.netlink.add_address(link.index, address)?;
        }
        let neighbour = (link.index, VPC_SIDE, uplink_macs(vpc).0);
        if !self.netlink.neighbours()?.contains(&neighbour) {
            self.netlink.add_neighbour(neighbour)?;
        }
        let route = |address| {
            let destination = Cidr::around(address, 32)?;
            Some(KernelRoute { table: MAIN, destination, link: Some(link.index), hop: Some(VPC_SIDE) })
        };
        let public = self.links.get(name).into_iter().flatten();
        let wanted: BTreeSet<KernelRoute> = public.filter_map(|address| route(*address)).collect();
        let present = self.netlink.routes()?.into_iter();
        let present: BTreeSet<KernelRoute> = present.filter(|route| route.link == Some(link.index)).collect();
        for route in present.difference(&wanted) {
            self.netlink.remove_route(route)?;
        }
        for route in wanted.difference(&present) {
            self.netlink.add_route(route)?;
        }
        Ok(())
    }
}

/// What is public of a VPC.
fn public_addresses(vpc: &Vpc) -> BTreeSet<Ipv4Addr> {
    if !vpc.has_internet_gateway {
        return BTreeSet::new();
    }
    let own = vpc.interfaces.values().flat_map(|interface| &interface.addresses);
    let own = own.filter_map(|address| address.public);
    own.chain(vpc.nat_gateways.values().map(|gateway| gateway.public)).collect()
}

/// In the host's namespace: lets it forward, also for others. Without, nothing would get to instances or from them.
fn forward() -> io::Result<()> {
    let path = Path::new("/proc/sys/net/ipv4/ip_forward");
    if fs::read_to_string(path)?.trim() == "1" { Ok(()) } else { fs::write(path, "1") }
}

fn script(settings: &HostSettings, links: &BTreeSet<String>) -> String {
    let HostSettings { table, comment, pool, masquerade, .. } = settings;
    let remove = format!("add table inet {table}\ndelete table inet {table}\n");
    if links.is_empty() {
        return remove;
    }
    let elements = |all: Vec<String>| {
        if all.is_empty() { String::new() } else { format!("elements = {{ {} }};", all.join(", ")) }
    };
    let links = elements(links.iter().cloned().collect());
    let pool = elements(pool.iter().map(ToString::to_string).collect());
    let masquerade =
        if *masquerade { "iifname @links oifname != @links ip saddr @pool masquerade" } else { "" };
    format!(
        "{remove}table inet {table} {{\n\
         comment \"{comment}\"\n\
         set links {{ type ifname; {links} }}\n\
         set pool {{ type ipv4_addr; flags interval; {pool} }}\n\
         chain forward {{\n\
         type filter hook forward priority filter - 10; policy accept;\n\
         iifname @links ip saddr != @pool drop\n\
         iifname @links meta nfproto ipv6 drop\n\
         }}\n\
         chain postrouting {{\n\
         type nat hook postrouting priority srcnat; policy accept;\n\
         {masquerade}\n\
         }}\n}}\n"
    )
}
