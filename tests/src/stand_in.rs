//! Guests where no stock kernel can run: those of the stand-in VMM, a program that a controller, or the daemon, takes
//! for `innkeeper-vmm`.
//!
//! Its guest is a network namespace, which has an interface `eth0`, `eth1` and so on for each that is attached, and
//! nobody in it but the test. It obeys the power button at once, and says [`BANNER`] when it is up. It has no addresses
//! at first, and after a reboot ([`Place::lease`], [`Place::set_address`]).

use std::net::Ipv4Addr;
use std::ops::Deref;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};

use crate::agent::{Agent, IMPATIENT, TINY, Template};
use crate::controller::{self, Controller};
use crate::ec2::{Client, texts};
use crate::network::Place;
use crate::{Vmm, program};

/// What a guest says on its serial port when it is up.
pub const BANNER: &str = "stand-in: ready\n";

/// The program, for [`Agent::start_on`].
pub fn vmm() -> PathBuf {
    program("stand-in-vmm")
}

/// As [`controller::serve`].
pub fn serve() -> Result<(Vmm, Controller, (OwnedFd, OwnedFd))> {
    let mut command = Command::new(vmm());
    command.args(["serve", "--control", "3"]);
    controller::serve_by(command)
}

/// A guest: a [`Place`]. It is that of one VMM, also after its end.
pub struct Guest {
    place: Place,
    pid: u32,
}

impl Guest {
    /// The guest of a VMM that has said hello.
    pub fn of_vmm(pid: u32) -> Result<Self> {
        let place = Place::of_process(pid)?;
        // So that no test does to the host what it means to do to a guest.
        let is_host = place.is_same(&Place::here()?)?;
        ensure!(!is_host, "process {pid} has no network of its own: it is not a stand-in, or has just begun");
        Ok(Self { place, pid })
    }

    /// The guest of an instance that runs. After a stop and a start, that is another one.
    pub fn of(agent: &Agent, instance: &str) -> Result<Self> {
        Self::of_vmm(agent.vmm_of(instance)?).with_context(|| format!("{instance}{}", agent.last_words()))
    }

    /// The VMM's process.
    pub fn pid(&self) -> u32 {
        self.pid
    }
}

impl Deref for Guest {
    type Target = Place;

    fn deref(&self) -> &Place {
        &self.place
    }
}

/// What an image for such guests is made of: anything that the daemon takes for a kernel.
pub fn template(agent: &Agent) -> Result<Template> {
    Ok(Template { banner: BANNER, ..agent.payload("idle")? })
}

/// How long things may take that take no time.
pub const PATIENCE: Duration = Duration::from_secs(20);
/// A daemon whose guests are stand-ins, its client, and an image.
pub struct Lab {
    /// The daemon.
    pub agent: Agent,
    /// Asks it.
    pub client: Client,
    /// What is launched.
    pub image: String,
}

impl Lab {
    /// Starts the daemon.
    pub fn start() -> Result<Self> {
        Self::start_with(IMPATIENT)
    }

    /// Starts it with this configuration.
    pub fn start_with(configuration: &str) -> Result<Self> {
        let agent = Agent::start_on(&vmm(), configuration)?;
        let image = agent.register("stand-in", &template(&agent)?)?;
        let client = agent.client()?;
        Ok(Self { agent, client, image })
    }

    /// Launches an instance, and waits until it runs.
    pub fn launch(&self) -> Result<String> {
        self.launch_with(&[])
    }

    /// As [`Lab::launch`], with further parameters.
    pub fn launch_with(&self, more: &[(&str, &str)]) -> Result<String> {
        let own =
            [("ImageId", self.image.as_str()), ("InstanceType", TINY), ("MinCount", "1"), ("MaxCount", "1")];
        let id = self.one("RunInstances", &[&own, more].concat(), "instanceId")?;
        self.client.wait_for(std::slice::from_ref(&id), "running", PATIENCE)?;
        Ok(id)
    }

    /// The guest of an instance, with the addresses that it has been given.
    pub fn guest(&self, id: &str) -> Result<Guest> {
        let guest = Guest::of(&self.agent, id)?;
        guest.lease("eth0")?;
        Ok(guest)
    }

    /// Sends a request, and returns the first text of its answer with this name.
    pub fn one(&self, action: &str, parameters: &[(&str, &str)], element: &str) -> Result<String> {
        let answer = self.client.ask(action, parameters)?;
        texts(&answer, element).into_iter().next().with_context(|| format!("no {element} in {answer}"))
    }

    /// What an instance's description has for a name, if anything.
    pub fn described(&self, id: &str, name: &str) -> Result<Option<String>> {
        let answer = self.client.ask("DescribeInstances", &[("InstanceId.1", id)])?;
        Ok(texts(&answer, name).into_iter().next())
    }

    /// An address in an instance's description.
    pub fn address(&self, id: &str, name: &str) -> Result<Ipv4Addr> {
        let text = self.described(id, name)?.with_context(|| format!("{id} has no {name}"))?;
        Ok(text.parse()?)
    }

    /// The only security group of an instance.
    pub fn group(&self, id: &str) -> Result<String> {
        self.described(id, "groupId")?.context("a group")
    }

    /// Adds a rule to a security group, or takes one away: `AuthorizeSecurityGroupIngress` and so on.
    pub fn rule(&self, change: &str, group: &str, traffic: (&str, &str), from: &str) -> Result<Instant> {
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

    /// Sends a request about each of these instances, and waits until they are in a state.
    pub fn end(&self, change: &str, ids: &[String], state: &str) -> Result<()> {
        for id in ids {
            self.client.ask(change, &[("InstanceId.1", id)])?;
        }
        self.client.wait_for(ids, state, PATIENCE)
    }
}

/// Waits until something is so.
pub fn eventually(what: &str, mut is_so: impl FnMut() -> Result<bool>) -> Result<()> {
    let deadline = Instant::now() + PATIENCE;
    while !is_so()? {
        if Instant::now() > deadline {
            bail!("after {PATIENCE:?} it is not so that {what}");
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    Ok(())
}
