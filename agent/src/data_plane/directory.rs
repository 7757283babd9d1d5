//! From the records to what the services of a VPC know.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;

use innkeeper_network::names::tap;
use innkeeper_network::routes::services::API;
use innkeeper_network::routes::{resolver, router};
use innkeeper_network::services::Directory;
use innkeeper_network::services::dhcp::Lease;
use innkeeper_network::services::dns::Zone;

use super::plan::used;
use crate::ids::VpcId;
use crate::network::names::{domain_name, private_dns_name, public_dns_name};
use crate::records::{DhcpOptions, NetworkInterface, Subnet, Vpc};
use crate::state::World;

/// EC2's name for whoever resolves names in a VPC.
const AMAZON_PROVIDED: &str = "AmazonProvidedDNS";

/// Names of ours end so, which are no name of EC2's and nobody's outside.
const OWN_DOMAIN: &str = "innkeeper.internal.";

/// The services that the API has, which clients look for by a name each.
const API_NAMES: [&str; 3] = ["ec2", "iam", "sts"];

/// What is known in a VPC, in this region.
pub fn directory(world: &World, vpc: &VpcId, region: &str) -> Directory {
    let Some(record) = world.get::<Vpc>(vpc) else { return Directory::default() };
    let options = record.dhcp_options.as_ref().and_then(|id| world.get::<DhcpOptions>(id));
    let leases = used(world, vpc).filter_map(|interface| {
        let lease = lease(world, record, options.map(AsRef::as_ref), interface, region)?;
        Some((tap(interface.id.as_str()), lease))
    });
    let leases = leases.collect();
    let zone = record.enable_dns_support.then(|| zone(world, record, region));
    Directory { leases, zone, ..Directory::default() }
}

fn lease(
    world: &World,
    vpc: &Vpc,
    options: Option<&DhcpOptions>,
    interface: &NetworkInterface,
    region: &str,
) -> Option<Lease> {
    let subnet = world.get::<Subnet>(&interface.subnet)?.cidr;
    let values = |name: &str| {
        let found = options.and_then(|options| options.options.iter().find(|(own, _)| own == name));
        found.map_or(&[][..], |(_, values)| values.as_slice())
    };
    let servers = |name: &str| -> Vec<Ipv4Addr> {
        let address = |value: &String| match value.as_str() {
            AMAZON_PROVIDED => vpc.enable_dns_support.then(|| resolver(vpc.cidr)),
            other => other.parse().ok(),
        };
        values(name).iter().filter_map(address).collect()
    };
    let address = interface.primary.address;
    let name = private_dns_name(address, region);
    Some(Lease {
        mac: interface.mac.parse().ok()?,
        address,
        subnet,
        router: router(subnet),
        name_servers: servers("domain-name-servers"),
        domain: values("domain-name").first().cloned(),
        host_name: name.split('.').next().map(str::to_owned),
        time_servers: servers("ntp-servers"),
    })
}

fn zone(world: &World, vpc: &Vpc, region: &str) -> Zone {
    let (mut names, mut addresses) = (BTreeMap::new(), BTreeMap::new());
    for interface in used(world, &vpc.id) {
        for own in interface.addresses() {
            let name = format!("{}.", private_dns_name(own.address, region));
            names.insert(name.clone(), own.address);
            addresses.insert(own.address, name);
            // From inside, a public name means the private address, as in EC2.
            if let Some(public) = own.public.as_ref().filter(|_| vpc.enable_dns_hostnames) {
                names.insert(format!("{}.", public_dns_name(public.address, region)), own.address);
            }
        }
    }
    names.extend(API_NAMES.map(|service| (format!("{service}.{region}.{OWN_DOMAIN}"), API)));
    let domains = vec![format!("{}.", domain_name(region)), OWN_DOMAIN.to_owned()];
    Zone { server: Some(resolver(vpc.cidr)), names, addresses, domains }
}
