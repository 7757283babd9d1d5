//! Addresses by DHCP, got by a client of others: busybox's.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::process::Stdio;
use std::str::FromStr;

use anyhow::{Context, Result, ensure};

use super::Place;

/// What the client runs with what it has got. It does not touch what a namespace of the network does not keep apart:
/// the host's name and its name servers.
const SCRIPT: &str = r#"#!/bin/sh
set -e
case $1 in
deconfig)
    ip -4 address flush dev "$interface"
    ip link set "$interface" up
    ;;
bound | renew)
    [ -z "$mtu" ] || ip link set "$interface" mtu "$mtu"
    ip -4 address flush dev "$interface"
    ip address add "$ip/${mask:-32}" dev "$interface"
    for gateway in $router; do
        # On link, because a router may lie outside a /32.
        ip route replace default via "$gateway" dev "$interface" onlink
        break
    done
    env >"$0.lease"
    ;;
esac
"#;

/// What a server has given.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Lease {
    /// The address.
    pub address: Ipv4Addr,
    /// Bits of its network.
    pub prefix: u8,
    /// Whoever forwards what goes elsewhere, the first of them if there are several.
    pub router: Option<Ipv4Addr>,
    /// Name servers.
    pub dns: Vec<Ipv4Addr>,
    /// What names end in.
    pub domain: Option<String>,
    /// The client's name.
    pub hostname: Option<String>,
    /// Bytes of the largest packet.
    pub mtu: Option<u16>,
    /// For how many seconds.
    pub seconds: u32,
    /// Who has given it.
    pub server: Option<Ipv4Addr>,
    /// All that the client's script was told, by udhcpc's names, such as `ntpsrv`, `search` or `staticroutes`.
    pub variables: BTreeMap<String, String>,
}

impl Place {
    /// Gets an address for an interface by DHCP, and uses it: the address, the MTU and the way to others. Tries for
    /// some seconds.
    pub fn lease(&self, interface: &str) -> Result<Lease> {
        let directory = tempfile::tempdir()?;
        let script = directory.path().join("script");
        std::fs::write(&script, SCRIPT)?;
        std::fs::set_permissions(&script, std::os::unix::fs::PermissionsExt::from_mode(0o700))?;
        let script = crate::path(&script);
        let mut client = self.command("busybox");
        client
            .args(["udhcpc", "-n", "-q", "-f", "-t", "5", "-T", "1"])
            .args(["-O", "mtu", "-O", "ntpsrv", "-O", "search", "-O", "staticroutes"])
            .args(["-i", interface, "-s", script]);
        // The variables are the client's, and no others.
        client.env_clear().env("PATH", std::env::var_os("PATH").unwrap_or_default()).stdin(Stdio::null());
        let output = client.output().context("cannot run busybox")?;
        let errors = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "no lease for {interface}: {errors}");
        let told = std::fs::read_to_string(format!("{script}.lease"))
            .with_context(|| format!("the lease for {interface} could not be used: {errors}"))?;
        parse(&told)
    }
}

/// Reads what the script was told: a line `NAME=VALUE` for each variable.
fn parse(told: &str) -> Result<Lease> {
    let lines = told.lines().filter_map(|line| line.split_once('='));
    let variables: BTreeMap<String, String> =
        lines.map(|(name, value)| (name.to_owned(), value.to_owned())).collect();
    let text = |name: &str| variables.get(name).cloned();
    fn number<T: FromStr>(name: &str, text: Option<String>) -> Result<Option<T>> {
        text.map(|text| text.parse().ok().with_context(|| format!("{name} is {text:?}"))).transpose()
    }
    let addresses = |name: &str| -> Result<Vec<Ipv4Addr>> {
        let text = text(name).unwrap_or_default();
        text.split_whitespace().map(|one| Ok(one.parse()?)).collect()
    };
    Ok(Lease {
        address: number("ip", text("ip"))?.context("a lease without an address")?,
        prefix: number("mask", text("mask"))?.unwrap_or(32),
        router: addresses("router")?.first().copied(),
        dns: addresses("dns")?,
        domain: text("domain"),
        hostname: text("hostname"),
        mtu: number("mtu", text("mtu"))?,
        seconds: number("lease", text("lease"))?.context("a lease without an end")?,
        server: number("serverid", text("serverid"))?,
        variables,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lease_is_what_the_script_was_told() {
        let told = "ip=10.0.0.5\nmask=24\nrouter=10.0.0.1 10.0.0.2\ndns=10.0.0.2\ndomain=a b\nlease=60\nx";
        let lease = parse(told).unwrap();
        assert_eq!((lease.address, lease.prefix), (Ipv4Addr::new(10, 0, 0, 5), 24));
        assert_eq!(lease.router, Some(Ipv4Addr::new(10, 0, 0, 1)));
        assert_eq!((lease.seconds, lease.mtu, lease.hostname), (60, None, None));
        assert_eq!(lease.variables["domain"], "a b");
        assert!(parse("ip=10.0.0.5\nlease=60\nmtu=many").is_err());
        assert!(parse("").is_err());
    }
}
