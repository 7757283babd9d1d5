//! The inside of a VPC: what is in its namespace.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::net::Ipv4Addr;
use std::os::fd::AsRawFd;
use std::path::Path;
use std::time::{Duration, Instant};

use nix::libc;

use super::conntrack::{self, Connection};
use super::netlink::{KernelNeighbour, KernelRoute, Link, Netlink};
use super::nft::{self, Generation};
use super::{Error, Namespace, What};
use crate::names::{UPLINK, host_link, uplink_macs};
use crate::plan::{Mac, Vpc};
use crate::routes::{INSIDE, Routes, Way};
use crate::ruleset::Ruleset;
use crate::stale::{self, Owners};

/// The largest packet within a VPC, as in EC2 (User Guide, "Network MTU").
pub const INSIDE_MTU: u32 = 9001;
/// The largest packet from and to the outside.
pub const OUTSIDE_MTU: u32 = 1500;

/// How often it is tried to change routes while links come and go.
const ROUTING_TRIES: u32 = 3;

/// How long the kernel may take to let packets through a new uplink.
const UPLINK_PATIENCE: Duration = Duration::from_secs(5);

/// What does not change in a namespace, relative to `/proc/sys/net/`. Some kernels have no IPv6, and with it not its
/// settings.
const SETTINGS: [(&str, &str); 13] = [
    ("ipv6/conf/all/disable_ipv6", "1"),
    ("ipv6/conf/default/disable_ipv6", "1"),
    ("ipv4/ip_forward", "1"),
    // Who may send what is for the rules to say.
    ("ipv4/conf/all/rp_filter", "0"),
    ("ipv4/conf/default/rp_filter", "0"),
    ("ipv4/conf/all/accept_redirects", "0"),
    ("ipv4/conf/default/accept_redirects", "0"),
    ("ipv4/conf/all/send_redirects", "0"),
    ("ipv4/conf/default/send_redirects", "0"),
    ("ipv4/conf/all/accept_source_route", "0"),
    ("ipv4/conf/default/accept_source_route", "0"),
    // The kernel answers for all that it has a route to.
    ("ipv4/conf/default/proxy_arp", "1"),
    ("ipv4/conf/all/arp_accept", "0"),
];

/// As [`SETTINGS`], once there are rules. A connection begins at its beginning: what is in its middle belongs to one that
/// is over.
const TRACKING: (&str, &str) = ("netfilter/nf_conntrack_tcp_loose", "0");

/// The namespace of a VPC.
#[derive(Debug)]
pub struct Inside {
    namespace: Namespace,
    netlink: Netlink,
    generation: Generation,
    /// The Ethernet address of the host's end of the uplink.
    host_end: Mac,
    /// What nftables was told last, and the number that it has had since.
    told: Option<(Ruleset, u32)>,
    /// What was applied last.
    plan: Option<Vpc>,
    /// Links as they were seen last and left. To list hundreds of them is what takes longest.
    links: BTreeMap<String, Link>,
    /// Whether the uplink was made a moment ago, so that packets may not get through yet.
    is_uplink_new: bool,
}

impl Inside {
    /// Opens or makes the namespace of a VPC. `host` is where its uplink leads.
    pub fn open(directory: &Path, vpc: &str, host: &Namespace) -> Result<Self, Error> {
        let path = directory.join(vpc);
        let opened = Namespace::open_or_make(&path);
        let (namespace, is_new) = opened.what(|| format!("make the namespace {}", path.display()))?;
        let what = || format!("prepare the namespace of {vpc}");
        let (mut netlink, generation) = namespace
            .enter(|| {
                // Again for one that is there: its maker may have died half-way.
                set_up()?;
                Ok((Netlink::open()?, Generation::open()?))
            })
            .what(what)?;
        prepare_links(&mut netlink, vpc, host).what(what)?;
        tracing::debug!(vpc, is_new, "its network namespace is ready");
        Ok(Self {
            namespace,
            netlink,
            generation,
            host_end: uplink_macs(vpc).1,
            told: None,
            plan: None,
            links: BTreeMap::new(),
            is_uplink_new: true,
        })
    }

    /// The namespace.
    pub fn namespace(&self) -> &Namespace {
        &self.namespace
    }

    /// Brings about a plan, by these rules and routes, with an uplink to `host`. Rules come first: a route never leads past
    /// them; and what the rules would not have let begin is forgotten last.
    pub fn apply(
        &mut self,
        vpc: &Vpc,
        ruleset: &Ruleset,
        routes: &Routes,
        host: &Namespace,
    ) -> Result<(), Error> {
        let before = match &self.plan {
            Some(before) if stale::may_leave_stale(before, vpc) => Some(stale::owners(before)),
            Some(_) => None,
            // An agent that has just begun learns from the kernel who had what.
            None => Some(self.present_owners().what(|| "learn who has which address".into())?),
        };
        self.tell(ruleset).what(|| "change the rules".into())?;
        self.lead(&vpc.id, routes, host)?;
        if let Some(before) = before {
            let change = stale::Change::new(&before, vpc);
            let is_stale = |one: &Connection| change.is_stale(one.original, one.reply);
            let forgotten = self.namespace.enter(|| conntrack::forget(is_stale));
            let forgotten = forgotten.what(|| "forget connections that are over".into())?;
            tracing::debug!(vpc = vpc.id, forgotten, "looked through the connections");
        }
        if self.plan.as_ref() != Some(vpc) {
            self.plan = Some(vpc.clone());
        }
        Ok(())
    }

    /// The private addresses of an interface, as they were applied last.
    pub fn addresses_of(&self, interface: &str) -> Vec<Ipv4Addr> {
        let interface = self.plan.as_ref().and_then(|plan| plan.interfaces.get(interface));
        let addresses = interface.into_iter().flat_map(|interface| &interface.addresses);
        addresses.map(|address| address.private).collect()
    }

    fn lead(&mut self, vpc: &str, routes: &Routes, host: &Namespace) -> Result<(), Error> {
        let mut tries = 1..=ROUTING_TRIES;
        loop {
            let result = self.route(vpc, routes, host);
            let is_gone = |error: &io::Error| {
                matches!(error.raw_os_error(), Some(libc::ENODEV | libc::ENXIO | libc::EINVAL))
            };
            match (result, tries.next()) {
                // A link may be another one than it was, or have gone meanwhile.
                (Err(error), Some(_)) if is_gone(&error) => self.links.clear(),
                (result, _) => return result.what(|| "change the routes".into()),
            }
        }
    }

    /// Who has which private address as far as the routes say.
    fn present_owners(&mut self) -> io::Result<Owners> {
        let names: BTreeMap<u32, String> =
            self.netlink.links()?.into_iter().map(|(name, link)| (link.index, name)).collect();
        let inside = self.netlink.routes()?.into_iter().filter(|route| route.table == INSIDE);
        let owner = |route: KernelRoute| {
            let is_one = route.destination.prefix() == 32;
            let name = names.get(&route.link?)?.clone();
            is_one.then(|| (route.destination.first(), name))
        };
        Ok(inside.filter_map(owner).collect())
    }

    /// Something has gone wrong half-way: nothing is taken for done, and the kernel is asked by new sockets.
    pub fn distrust(&mut self) {
        self.told = None;
        self.links.clear();
        let opened = self.namespace.enter(|| Ok((Netlink::open()?, Generation::open()?)));
        match opened {
            Ok((netlink, generation)) => (self.netlink, self.generation) = (netlink, generation),
            Err(error) => tracing::warn!(%error, "the kernel cannot be asked for a network anew"),
        }
    }

    /// Somebody else may have done something: forgets what is known of links, and makes anew what does not change.
    pub fn look_again(&mut self, vpc: &str, host: &Namespace) -> Result<(), Error> {
        self.links.clear();
        let what = || format!("prepare the namespace of {vpc} again");
        self.namespace.enter(set_up).what(what)?;
        self.prepare_links(vpc, host).what(what)
    }

    /// Forgets a link that is made anew.
    pub fn forget(&mut self, link: &str) {
        self.links.remove(link);
    }

    /// Waits until packets get through the uplink, if it is new, and its other end up since a moment ago.
    pub fn wait_for_uplink(&mut self) -> Result<(), Error> {
        if !self.is_uplink_new {
            return Ok(());
        }
        let deadline = Instant::now() + UPLINK_PATIENCE;
        let mut running = || -> io::Result<()> {
            while !self.netlink.link(UPLINK)?.is_some_and(|link| link.is_running) {
                if Instant::now() > deadline {
                    return Err(io::ErrorKind::TimedOut.into());
                }
                std::thread::sleep(Duration::from_millis(1));
            }
            Ok(())
        };
        running().what(|| "get packets through the uplink".into())?;
        self.is_uplink_new = false;
        Ok(())
    }

    /// Tells nftables what is new, or everything, if somebody else has changed something.
    fn tell(&mut self, ruleset: &Ruleset) -> io::Result<()> {
        let script = match &self.told {
            Some((told, generation)) if *generation == self.generation.get()? => told.change_to(ruleset),
            _ => ruleset.replace(),
        };
        if !script.is_empty() {
            self.told = None;
            self.namespace.enter(|| {
                nft::run(&script)?;
                // There only since there are rules that track.
                set(TRACKING)
            })?;
            self.told = Some((ruleset.clone(), self.generation.get()?));
        }
        Ok(())
    }

    fn prepare_links(&mut self, vpc: &str, host: &Namespace) -> io::Result<()> {
        self.is_uplink_new |= prepare_links(&mut self.netlink, vpc, host)?;
        Ok(())
    }

    fn route(&mut self, vpc: &str, routes: &Routes, host: &Namespace) -> io::Result<()> {
        let mut links = self.look(routes)?;
        if !links.contains_key(UPLINK) {
            // It goes when somebody removes either of its ends.
            self.prepare_links(vpc, host)?;
            links = self.look(routes)?;
        }
        for (name, link) in &mut links {
            let mtu = match name.as_str() {
                "lo" => continue,
                UPLINK => OUTSIDE_MTU,
                _ => INSIDE_MTU,
            };
            if !link.is_up || link.mtu != mtu {
                self.netlink.set_up(link.index, Some(mtu))?;
                (link.is_up, link.mtu) = (true, mtu);
            }
        }
        self.addresses(&links, routes)?;
        self.rules(routes)?;
        self.neighbours(&links, routes)?;
        self.routes(&links, routes)?;
        self.links = links;
        Ok(())
    }

    /// The links that there are of those that there should be.
    fn look(&mut self, routes: &Routes) -> io::Result<BTreeMap<String, Link>> {
        let known = std::mem::take(&mut self.links);
        let all = if known.is_empty() { Some(self.netlink.links()?) } else { None };
        let mut links = BTreeMap::new();
        for name in routes.taps.iter().map(String::as_str).chain(["lo", UPLINK]) {
            let link = match &all {
                Some(all) => all.get(name).copied(),
                None => match known.get(name) {
                    Some(link) => Some(*link),
                    None => self.netlink.link(name)?,
                },
            };
            links.extend(link.map(|link| (name.to_owned(), link)));
        }
        Ok(links)
    }

    /// The services' own addresses, which are the loopback's.
    fn addresses(&mut self, links: &BTreeMap<String, Link>, routes: &Routes) -> io::Result<()> {
        let Some(loopback) = links.get("lo") else { return Ok(()) };
        let present: BTreeSet<_> = self
            .netlink
            .addresses(loopback.index)?
            .into_iter()
            .filter(|address| !address.is_loopback())
            .collect();
        for address in present.difference(&routes.addresses) {
            self.netlink.remove_address(loopback.index, *address)?;
        }
        for address in routes.addresses.difference(&present) {
            self.netlink.add_address(loopback.index, *address)?;
        }
        Ok(())
    }

    fn rules(&mut self, routes: &Routes) -> io::Result<()> {
        let (present, has_others) = self.netlink.rules()?;
        if !has_others {
            self.netlink.add_fixed_rules()?;
        }
        let present: BTreeSet<u32> = present.into_iter().collect();
        for mark in routes.marks.difference(&present) {
            self.netlink.add_rule(*mark)?;
        }
        for mark in present.difference(&routes.marks) {
            self.netlink.remove_rule(*mark)?;
        }
        Ok(())
    }

    fn neighbours(&mut self, links: &BTreeMap<String, Link>, routes: &Routes) -> io::Result<()> {
        // All that are beyond the uplink are the host's end of it.
        let wanted: BTreeSet<KernelNeighbour> = routes
            .neighbours
            .iter()
            .filter_map(|one| {
                Some((links.get(&one.device)?.index, one.address, one.mac.unwrap_or(self.host_end)))
            })
            .collect();
        let present: BTreeSet<KernelNeighbour> = self.netlink.neighbours()?.into_iter().collect();
        for neighbour in present.difference(&wanted) {
            self.netlink.remove_neighbour(*neighbour)?;
        }
        for neighbour in wanted.difference(&present) {
            self.netlink.add_neighbour(*neighbour)?;
        }
        Ok(())
    }

    fn routes(&mut self, links: &BTreeMap<String, Link>, routes: &Routes) -> io::Result<()> {
        let wanted: BTreeSet<KernelRoute> = routes
            .routes
            .iter()
            .filter_map(|route| {
                let (link, hop) = match &route.way {
                    Way::Link(device) => (Some(links.get(device)?.index), None),
                    Way::Hop(device, hop) => match links.get(device) {
                        Some(link) => (Some(link.index), Some(*hop)),
                        // Nobody is there to forward.
                        None => (None, None),
                    },
                    Way::Blackhole => (None, None),
                };
                Some(KernelRoute { table: route.table, destination: route.destination, link, hop })
            })
            .collect();
        let present: BTreeSet<KernelRoute> = self.netlink.routes()?.into_iter().collect();
        let replaced: BTreeSet<_> =
            wanted.difference(&present).map(|route| (route.table, route.destination)).collect();
        for route in present.difference(&wanted) {
            if !replaced.contains(&(route.table, route.destination)) {
                self.netlink.remove_route(route)?;
            }
        }
        for route in wanted.difference(&present) {
            self.netlink.add_route(route)?;
        }
        Ok(())
    }
}

/// In the namespace.
fn set_up() -> io::Result<()> {
    let mut settings = SETTINGS.into_iter().chain([TRACKING]);
    settings.try_for_each(|(name, value)| match set((name, value)) {
        Err(error) if error.kind() == io::ErrorKind::NotFound && !name.starts_with("ipv4") => Ok(()),
        result => result,
    })
}

/// In the namespace.
fn set((name, value): (&str, &str)) -> io::Result<()> {
    let path = Path::new("/proc/sys/net").join(name);
    let named =
        |error: io::Error| io::Error::new(error.kind(), format!("{} cannot be set: {error}", path.display()));
    fs::write(&path, value).map_err(named)
}

/// The loopback and the uplink; returns whether that is a new one.
fn prepare_links(netlink: &mut Netlink, vpc: &str, host: &Namespace) -> io::Result<bool> {
    let name = host_link(vpc);
    let is_there =
        netlink.link(UPLINK)?.is_some() && host.enter(|| Ok(Netlink::open()?.link(&name)?.is_some()))?;
    if !is_there {
        let (own, other) = uplink_macs(vpc);
        // It leads nowhere, if somebody has given its other end another name.
        netlink.remove_link(UPLINK)?;
        // Of a namespace that is going, which takes its time.
        host.enter(|| Netlink::open()?.remove_link(&name))?;
        netlink.add_pair((UPLINK, own), (&name, other), host.file().as_raw_fd())?;
    }
    for (name, mtu) in [("lo", None), (UPLINK, Some(OUTSIDE_MTU))] {
        match netlink.link(name)? {
            Some(link) => netlink.set_up(link.index, mtu)?,
            None => return Err(io::Error::other(format!("there is no {name}"))),
        }
    }
    Ok(!is_there)
}
