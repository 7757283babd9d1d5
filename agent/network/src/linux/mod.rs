//! Brings about in Linux what a plan says.
//!
//! - [`Networks`] has the namespaces of all VPCs, and the host's side of them.
//! - `namespace` makes and enters them, `netlink` and `nft` are how the kernel is told, `tap` opens an interface's tap.
//! - `inside` brings about what is in a namespace, `host` what leads to it.
//!
//! Everything can be done again, over whatever is there: what is missing is added, what is too much is removed, and the
//! rest is not touched. So an agent that starts, a VPC that changes and one that somebody has meddled with are the same
//! case. All functions block: for milliseconds, or, where somebody else has to let go first, for some seconds.

mod conntrack;
mod host;
mod inside;
mod namespace;
mod netlink;
mod nft;
mod tap;

use std::collections::BTreeMap;
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

pub use host::HostSettings;
pub use inside::INSIDE_MTU;
pub use namespace::Namespace;

use crate::plan::Vpc;
use crate::{names, routes, ruleset};
use host::Host;
use inside::Inside;

/// Why Linux does not do as it was told.
#[derive(Debug, thiserror::Error)]
#[error("cannot {what}")]
pub struct Error {
    /// What was to be done.
    pub what: String,
    /// Why it is not.
    #[source]
    pub cause: io::Error,
}

/// Names what was to be done.
trait What<T> {
    fn what(self, what: impl FnOnce() -> String) -> Result<T, Error>;
}

impl<T, E: Into<io::Error>> What<T> for Result<T, E> {
    fn what(self, what: impl FnOnce() -> String) -> Result<T, Error> {
        self.map_err(|cause| Error { what: what(), cause: cause.into() })
    }
}

/// Whether this host's kernel and `nft` know all that the rules of a VPC need.
pub fn check() -> Result<(), Error> {
    nft::check(&ruleset::Ruleset::default().replace()).what(|| "have the rules of a VPC".into())
}

/// The networks of an agent: a namespace for each VPC.
pub struct Networks {
    /// Where the namespaces are mounted.
    directory: PathBuf,
    host: Host,
    vpcs: BTreeMap<String, Inside>,
}

impl Networks {
    /// Takes over what an earlier agent has left below `directory`, which is made with the first VPC. The host's side is
    /// that of the network namespace in which this is called.
    pub fn open(directory: PathBuf, settings: HostSettings) -> Result<Self, Error> {
        let host = Host::open(settings, &existing(&directory)?)?;
        Ok(Self { directory, host, vpcs: BTreeMap::new() })
    }

    /// The VPCs that have a namespace.
    pub fn existing(&self) -> Result<Vec<String>, Error> {
        existing(&self.directory)
    }

    /// Brings about what a plan says, in the namespace and on the host.
    pub fn apply(&mut self, vpc: &Vpc) -> Result<(), Error> {
        if !self.vpcs.contains_key(&vpc.id) {
            let inside = Inside::open(&self.directory, &vpc.id, self.host.namespace())?;
            self.vpcs.insert(vpc.id.clone(), inside);
        }
        let Some(inside) = self.vpcs.get_mut(&vpc.id) else { return Ok(()) };
        let (ruleset, routes) = (ruleset::compile(vpc), routes::compile(vpc));
        let result = inside.apply(vpc, &ruleset, &routes, self.host.namespace());
        let result = result.and_then(|()| self.host.apply(vpc));
        let result = result.and_then(|()| inside.wait_for_uplink());
        if result.is_err() {
            // What was done of it is not known.
            inside.distrust();
        }
        result
    }

    /// As [`Networks::apply`], where somebody else may have done something with what is there. Takes longer.
    pub fn mend(&mut self, vpc: &Vpc) -> Result<(), Error> {
        self.host.mend()?;
        if let Some(inside) = self.vpcs.get_mut(&vpc.id) {
            inside.look_again(&vpc.id, self.host.namespace())?;
        }
        self.apply(vpc)
    }

    /// Opens the tap of an interface of a VPC that was applied, once for each pair of queues. It is there as long as one
    /// of its descriptors is open; who has opened it applies the plan once more.
    pub fn open_tap(&mut self, vpc: &str, interface: &str, queues: u16) -> Result<Vec<OwnedFd>, Error> {
        let name = names::tap(interface);
        let what = || format!("open the tap {name} of {interface}");
        let inside =
            self.vpcs.get_mut(vpc).ok_or_else(|| io::Error::other(format!("{vpc} has no network yet")));
        let inside = inside.what(what)?;
        inside.forget(&name);
        let addresses = inside.addresses_of(interface);
        let open = || {
            // Whoever had its addresses before had connections of its own.
            conntrack::forget(|connection| connection.concerns(|one| addresses.contains(&one)))?;
            tap::open(&name, queues)
        };
        inside.namespace().enter(open).what(what)
    }

    /// Runs a function in a VPC's namespace, on a thread of its own: sockets that it makes are in there.
    pub fn enter<T: Send>(
        &self,
        vpc: &str,
        function: impl FnOnce() -> io::Result<T> + Send,
    ) -> io::Result<T> {
        let inside =
            self.vpcs.get(vpc).ok_or_else(|| io::Error::other(format!("{vpc} has no network yet")))?;
        inside.namespace().enter(function)
    }

    /// Takes a VPC's network away, with all that is in it. Nothing, if there is none.
    pub fn remove(&mut self, vpc: &str) -> Result<(), Error> {
        self.vpcs.remove(vpc);
        self.host.remove(vpc)?;
        Namespace::remove(&self.directory.join(vpc)).what(|| format!("remove the namespace of {vpc}"))
    }
}

/// The VPCs whose namespaces are mounted in a directory.
fn existing(directory: &Path) -> Result<Vec<String>, Error> {
    let what = || format!("list {}", directory.display());
    let entries = match std::fs::read_dir(directory) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(error).what(what),
    };
    let names = entries.map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned()));
    names.collect::<io::Result<_>>().what(what)
}
