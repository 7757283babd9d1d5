//! The network of instances, with guests that have Linux's network stack: `stand-in-vmm` moves their frames. What only a
//! real guest can show is in `live.rs`.

mod changes;
mod connections;
mod elastic;
mod life;
mod services;
mod spoofing;
mod ssh;
mod trace;
mod tutorial;

use std::net::Ipv4Addr;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use innkeeper_tests::network::Place;
use innkeeper_tests::stand_in::{Lab, PATIENCE, eventually};

/// How long nobody answers who is not allowed to.
const SILENCE: Duration = Duration::from_millis(500);

/// How the host is seen from instances: by the first address of the pool, of which `public` is another one.
fn host_address(public: Ipv4Addr) -> Ipv4Addr {
    Ipv4Addr::from_bits((public.to_bits() & 0xffff_ff00) + 1)
}

/// The host's link to the VPC that has a public address.
fn host_link(host: &Place, public: Ipv4Addr) -> Result<String> {
    let route = host.run(&format!("ip -oneline route get {public}"))?;
    let link = route.split_whitespace().skip_while(|word| *word != "dev").nth(1);
    let link = link.with_context(|| format!("no link in {route}"))?;
    ensure!(link.starts_with("vpc"), "nothing leads to {public}: {route}");
    Ok(link.to_owned())
}
