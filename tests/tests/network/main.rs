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
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use innkeeper_tests::agent::{Agent, IMPATIENT, TINY};
use innkeeper_tests::ec2::{Client, texts};
use innkeeper_tests::network::Place;
use innkeeper_tests::stand_in::{self, Guest};

const PATIENCE: Duration = Duration::from_secs(20);
/// How long nobody answers who is not allowed to.
const SILENCE: Duration = Duration::from_millis(500);

/// A daemon, its client, and an image.
struct Lab {
    agent: Agent,
    client: Client,
    image: String,
}

impl Lab {
    fn start() -> Result<Self> {
        let agent = Agent::start_on(&stand_in::vmm(), IMPATIENT)?;
        let image = agent.register("stand-in", &stand_in::template(&agent)?)?;
        let client = agent.client()?;
        Ok(Self { agent, client, image })
    }

    /// Launches an instance, and waits until it runs.
    fn launch(&self) -> Result<String> {
        self.launch_with(&[])
    }

    /// As [`Lab::launch`], with further parameters.
    fn launch_with(&self, more: &[(&str, &str)]) -> Result<String> {
        let own =
            [("ImageId", self.image.as_str()), ("InstanceType", TINY), ("MinCount", "1"), ("MaxCount", "1")];
        let id = self.one("RunInstances", &[&own, more].concat(), "instanceId")?;
        self.client.wait_for(std::slice::from_ref(&id), "running", PATIENCE)?;
        Ok(id)
    }

    /// The guest of an instance, with the addresses that it has been given.
    fn guest(&self, id: &str) -> Result<Guest> {
        let guest = Guest::of(&self.agent, id)?;
        guest.lease("eth0")?;
        Ok(guest)
    }

    /// Sends a request, and returns the first text of its answer with this name.
    fn one(&self, action: &str, parameters: &[(&str, &str)], element: &str) -> Result<String> {
        let answer = self.client.ask(action, parameters)?;
        texts(&answer, element).into_iter().next().with_context(|| format!("no {element} in {answer}"))
    }

    /// What an instance's description has for a name, if anything.
    fn described(&self, id: &str, name: &str) -> Result<Option<String>> {
        let answer = self.client.ask("DescribeInstances", &[("InstanceId.1", id)])?;
        Ok(texts(&answer, name).into_iter().next())
    }

    fn address(&self, id: &str, name: &str) -> Result<Ipv4Addr> {
        let text = self.described(id, name)?.with_context(|| format!("{id} has no {name}"))?;
        Ok(text.parse()?)
    }

    /// The only security group of an instance.
    fn group(&self, id: &str) -> Result<String> {
        self.described(id, "groupId")?.context("a group")
    }

    /// Adds a rule to a security group, or takes one away: `AuthorizeSecurityGroupIngress` and so on.
    fn rule(&self, change: &str, group: &str, traffic: (&str, &str), from: &str) -> Result<Instant> {
        let (protocol, port) = traffic;
        let rule = [
            ("GroupId", group),
            ("IpPermissions.1.IpProtocol", protocol),
            ("IpPermissions.1.FromPort", port),
            ("IpPermissions.1.ToPort", port),
            ("IpPermissions.1.IpRanges.1.CidrIp", from),
        ];
        self.client.ask(change, &rule)?;
        Ok(Instant::now())
    }

    fn end(&self, change: &str, ids: &[String], state: &str) -> Result<()> {
        for id in ids {
            self.client.ask(change, &[("InstanceId.1", id)])?;
        }
        self.client.wait_for(ids, state, PATIENCE)
    }
}

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

/// Waits until something is so.
fn eventually(what: &str, mut is_so: impl FnMut() -> Result<bool>) -> Result<()> {
    let deadline = Instant::now() + PATIENCE;
    while !is_so()? {
        if Instant::now() > deadline {
            bail!("after {PATIENCE:?} it is not so that {what}");
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    Ok(())
}
