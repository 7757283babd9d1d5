//! `bench vpc`: guests in a VPC, one to another and from the host, by the data plane that the daemon uses. And
//! `bench interface`: how long it takes to bring an interface about among many.

use std::net::Ipv4Addr;
use std::process::ExitCode;
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use innkeeper_network::Cidr;
use innkeeper_network::linux::{HostSettings, Networks};
use innkeeper_network::names::tap;
use innkeeper_network::plan::{
    AclEntry, Address, GroupRule, Interface, Mac, Peer, Route, Subnet, Target, Traffic, Vpc,
};
use innkeeper_tests::network::{Namespace, Place};
use innkeeper_tests::{Shell, program};

use crate::figures::{Better, Figures, Line, median};
use crate::net::{MIB_PER_SECOND, PORT, SECONDS, initrd_with_netprobe};
use crate::vmms::{Contender, Guest};

const CPUS: u32 = 1;
const MIB: u32 = 192;
const ID: &str = "vpc-0123456789abcdef0";
const INTERFACES: [&str; 2] = ["eni-10000000000000000", "eni-20000000000000000"];
const PRIVATE: [Ipv4Addr; 2] = [Ipv4Addr::new(10, 0, 0, 4), Ipv4Addr::new(10, 0, 0, 5)];
const PUBLIC: [Ipv4Addr; 2] = [Ipv4Addr::new(198, 19, 0, 4), Ipv4Addr::new(198, 19, 0, 5)];

/// Who measures, and what, as netprobe calls it.
const JOBS: [(&str, bool, &str, f64); 4] = [
    ("guest to guest, MiB/s", true, "to", MIB_PER_SECOND),
    ("guest to guest, round trips of 1 byte, per second", true, "turns", 1.0),
    ("host to guest, MiB/s", false, "to", MIB_PER_SECOND),
    ("host to guest, round trips of 1 byte, per second", false, "turns", 1.0),
];

fn everywhere() -> Result<Cidr> {
    Ok("0.0.0.0/0".parse()?)
}

fn mac(number: u16) -> Mac {
    let [high, low] = number.to_be_bytes();
    Mac([2, 0, 0, 0, high, low])
}

/// A VPC with one subnet, whose group lets everything in.
fn vpc(interfaces: impl IntoIterator<Item = (String, Interface)>) -> Result<Vpc> {
    let rule = |is_egress| -> Result<GroupRule> {
        let peer = Peer::Range(everywhere()?);
        Ok(GroupRule { id: "sgr-1".into(), is_egress, traffic: Traffic::All, peer })
    };
    let entry = |is_egress| -> Result<AclEntry> {
        Ok(AclEntry { number: 100, is_egress, allows: true, traffic: Traffic::All, peer: everywhere()? })
    };
    let cidr = "10.0.0.0/16".parse()?;
    let subnet = Subnet { cidr, route_table: "rtb-1".into(), acl: "acl-1".into() };
    let route = Route { destination: everywhere()?, target: Target::InternetGateway };
    Ok(Vpc {
        id: ID.into(),
        cidrs: vec![cidr],
        has_internet_gateway: true,
        subnets: [("subnet-1".to_owned(), subnet)].into(),
        route_tables: [("rtb-1".to_owned(), vec![route])].into(),
        acls: [("acl-1".to_owned(), vec![entry(false)?, entry(true)?])].into(),
        groups: [("sg-1".to_owned(), vec![rule(false)?, rule(true)?])].into(),
        interfaces: interfaces.into_iter().collect(),
        nat_gateways: Default::default(),
        service_packets: None,
    })
}

fn interface(number: u16, private: Ipv4Addr, public: Option<Ipv4Addr>) -> Interface {
    Interface {
        subnet: "subnet-1".into(),
        mac: mac(number),
        addresses: vec![Address { private, public }],
        groups: vec!["sg-1".into()],
        source_dest_check: true,
    }
}

/// A host of its own, with networks on it.
struct Host {
    place: Namespace,
    networks: Networks,
    _directory: tempfile::TempDir,
}

impl Drop for Host {
    fn drop(&mut self) {
        let _ = self.networks.remove(ID);
    }
}

impl Host {
    fn new() -> Result<Self> {
        let (place, directory) = (Namespace::new()?, tempfile::tempdir()?);
        let settings = HostSettings {
            table: "innkeeper".into(),
            comment: "a bench".into(),
            pool: vec!["198.19.0.0/16".parse()?],
            address: Some(Ipv4Addr::new(198, 19, 0, 1)),
            masquerade: false,
        };
        let networks = place.inside(|| Ok(Networks::open(directory.path().join("vpcs"), settings)?))?;
        Ok(Self { place, networks, _directory: directory })
    }
}

/// Two guests of a VMM, in a VPC.
struct Pair {
    guests: [Shell; 2],
    host: Host,
}

impl Pair {
    fn boot(vmm: Contender, guest: &Guest, directory: &std::path::Path) -> Result<Self> {
        let mut host = Host::new()?;
        let own = |number: usize| interface(number as u16 + 1, PRIVATE[number], Some(PUBLIC[number]));
        let plan = vpc([0, 1].map(|number| (INTERFACES[number].to_owned(), own(number))))?;
        host.networks.apply(&plan)?;
        let inside = host.networks.enter(ID, || Place::here().map_err(std::io::Error::other))?;
        for id in INTERFACES {
            inside.run(&format!("ip tuntap add {} mode tap vnet_hdr", tap(id)))?;
        }
        host.networks.mend(&plan)?;
        let boot = |number: usize| -> Result<Shell> {
            let mut guest = guest.clone();
            guest.tap = Some(tap(INTERFACES[number]));
            guest.mac = mac(number as u16 + 1).to_string();
            guest.command_line += &format!(" micro.ip={}/16,10.0.0.1", PRIVATE[number]);
            let mut shell = vmm.boot(&guest, directory, Some(&inside))?;
            shell.run("ip link set eth0 mtu 9001")?;
            shell.run(&format!("/netprobe serve {PORT} >/dev/null 2>&1 & sleep 1"))?;
            Ok(shell)
        };
        Ok(Self { guests: [boot(0)?, boot(1)?], host })
    }

    fn measure(&mut self, (_, is_guest, what, unit): (&str, bool, &str, f64)) -> Result<f64> {
        let target = if is_guest { PRIVATE[1] } else { PUBLIC[1] };
        let arguments = format!("measure {what} {target}:{PORT} {SECONDS}");
        let text = if is_guest {
            self.guests[0].run(&format!("/netprobe {arguments}"))?
        } else {
            let output = self.host.place.command(program("netprobe")).args(arguments.split(' ')).output()?;
            ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
            String::from_utf8(output.stdout)?
        };
        let value: f64 = text.trim().parse().with_context(|| format!("netprobe printed {text:?}"))?;
        Ok(value / unit)
    }
}

pub fn bench(runs: usize) -> Result<ExitCode> {
    println!("Two guests in a VPC, routed and filtered, {CPUS} CPU, {MIB} MiB, one connection:\n");
    let directory = tempfile::tempdir()?;
    let initrd = initrd_with_netprobe()?;
    let lines = JOBS.iter().map(|job| Line { name: job.0, better: Better::Higher });
    let mut figures = Figures::new(&Contender::all(), lines);
    figures.take_turns(
        runs,
        |vmm| {
            let mut guest = Guest::of_image("micro", CPUS, MIB);
            guest.initrd = Some(initrd.path().into());
            Pair::boot(vmm, &guest, directory.path())
        },
        |pair, line| pair.measure(JOBS[line]),
    )?;
    Ok(figures.report())
}

/// How many interfaces there are already.
const CROWD: u16 = 499;
/// How long one more may take, in milliseconds.
const REACH: f64 = 20.0;

pub fn interface_among_many(runs: usize) -> Result<ExitCode> {
    let mut host = Host::new()?;
    let one = |number: u16| {
        let [high, low] = (number + 4).to_be_bytes();
        let private = Ipv4Addr::new(10, 0, high, low);
        (format!("eni-{number:012x}"), interface(number, private, None))
    };
    let mut plan = vpc((0..CROWD).map(one))?;
    host.networks.apply(&plan)?;
    let mut taps = Vec::new();
    for id in plan.interfaces.keys() {
        taps.extend(host.networks.open_tap(ID, id, 1)?);
    }
    host.networks.apply(&plan)?;
    let mut times = Vec::new();
    for _ in 0..runs {
        let (id, interface) = one(CROWD);
        plan.interfaces.insert(id.clone(), interface);
        let begin = Instant::now();
        host.networks.apply(&plan)?;
        let tap = host.networks.open_tap(ID, &id, 1)?;
        host.networks.apply(&plan)?;
        times.push(begin.elapsed().as_secs_f64() * 1e3);
        drop(tap);
        plan.interfaces.remove(&id);
        host.networks.apply(&plan)?;
    }
    let time = median(&times);
    println!(
        "One interface among {}: {time:.1} ms from the record to a tap that is filtered and routed",
        CROWD + 1
    );
    println!("(median of {runs}; to reach: {REACH} ms)");
    Ok(if time <= REACH { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
