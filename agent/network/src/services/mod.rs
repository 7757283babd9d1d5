//! The services that every VPC has, inside of its namespace: addresses (`dhcp`), names (`dns`), the time (`time`). For
//! those that others provide, there is a socket here.
//!
//! Each has a pure part that answers a packet from what the [`Directory`] says, and a loop over a socket that was made in
//! the namespace. Anti-spoofing makes the interface and the address that a packet comes from trustworthy.

pub mod dhcp;
pub mod dns;
mod socket;
pub mod time;

use std::collections::BTreeMap;
use std::io;
use std::net::{Ipv4Addr, TcpListener};
use std::os::fd::OwnedFd;
use std::sync::Arc;

use tokio::sync::watch;
use tokio::task::JoinSet;

use crate::linux::Networks;
use crate::routes::services::{API, METADATA};

/// What the services of a VPC know.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Directory {
    /// What a guest is told by DHCP, by the name of its tap.
    pub leases: BTreeMap<String, dhcp::Lease>,
    /// What names mean. None, if the VPC has no DNS support.
    pub zone: Option<dns::Zone>,
    /// Whom to ask for other names.
    pub resolvers: dns::Resolvers,
}

/// The directory as it is now.
pub type Current = watch::Receiver<Arc<Directory>>;

/// The sockets of a VPC's services.
#[derive(Debug)]
pub struct Sockets {
    /// Those of the services that are here.
    pub own: OwnSockets,
    /// Where the metadata service is asked, non-blocking.
    pub metadata: TcpListener,
    /// Where the API is asked, non-blocking.
    pub api: TcpListener,
}

/// The sockets of addresses, names and the time.
#[derive(Debug)]
pub struct OwnSockets {
    dhcp: OwnedFd,
    dns: OwnedFd,
    dns_streams: TcpListener,
    time: OwnedFd,
}

impl Sockets {
    /// Opens them in a VPC's namespace, in which its own addresses are there already.
    pub fn open(networks: &Networks, vpc: &str) -> io::Result<Self> {
        networks.enter(vpc, || {
            let own = OwnSockets {
                dhcp: socket::open(dhcp::PORT)?,
                dns: socket::open(dns::PORT)?,
                dns_streams: listen(Ipv4Addr::UNSPECIFIED, dns::PORT)?,
                time: socket::open(time::PORT)?,
            };
            Ok(Self { own, metadata: listen(METADATA, HTTP)?, api: listen(API, HTTP)? })
        })
    }
}

/// The port of HTTP.
const HTTP: u16 = 80;

fn listen(address: Ipv4Addr, port: u16) -> io::Result<TcpListener> {
    let listener = TcpListener::bind((address, port))?;
    listener.set_nonblocking(true)?;
    Ok(listener)
}

impl OwnSockets {
    /// Serves until it is dropped.
    pub async fn serve(self, directory: Current) -> io::Result<()> {
        let mut services = JoinSet::new();
        services.spawn(dhcp::serve(socket::Socket::new(self.dhcp)?, directory.clone()));
        services.spawn(time::serve(socket::Socket::new(self.time)?));
        let dns = dns::Server::new(directory);
        services.spawn(dns.clone().serve_datagrams(socket::Socket::new(self.dns)?));
        services.spawn(dns.serve_streams(tokio::net::TcpListener::from_std(self.dns_streams)?));
        match services.join_next().await {
            Some(Ok(result)) => result,
            Some(Err(error)) => Err(io::Error::other(error)),
            None => Ok(()),
        }
    }
}
