//! The agent is killed at every place at which it could die, in the middle of instances' lives, and started again:
//! nothing is lost, nothing is left over, and running guests do not notice. Then once more, and the host dies with it:
//! guests that ran are started again.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use innkeeper_tests::agent::{Agent, STORED};
use innkeeper_tests::ec2::{self, Client};
use innkeeper_tests::mark::{MARK, NOTHING, beginning, mark};

const PATIENCE: Duration = Duration::from_secs(60);

/// An agent that is expected to die now and then, and whoever works with it all the same.
struct Mortal {
    agent: Agent,
    client: Client,
    deaths: u64,
    /// Whether the host dies with it, and is started again too.
    takes_host_along: bool,
}

impl Mortal {
    /// As a patient user does: asks again when there was no answer. Requests are made so that this does no harm.
    fn ask(&mut self, action: &str, parameters: &[(&str, &str)]) -> Result<String> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            match self.client.send(action, parameters) {
                Ok((200, answer)) => return Ok(answer),
                // A first try, to which there was no answer, may have been before the host died: what ran is pending again.
                Ok((_, answer))
                    if self.takes_host_along
                        && answer.contains("IncorrectInstanceState")
                        && Instant::now() < deadline =>
                {
                    std::thread::sleep(Duration::from_millis(5));
                }
                Ok((status, answer)) => anyhow::bail!("{action}: {status}, {answer}"),
                Err(error) => {
                    ensure!(Instant::now() < deadline, "{action}: {error:#}");
                    self.raise()?;
                }
            }
        }
    }

    /// Starts the agent again if it has died.
    fn raise(&mut self) -> Result<()> {
        if self.agent.has_died()? { self.rise() } else { Ok(()) }
    }

    fn rise(&mut self) -> Result<()> {
        self.deaths += 1;
        if self.takes_host_along {
            self.agent.reboot_host()?;
        }
        self.agent.resume()?;
        self.client = self.agent.client()?;
        Ok(())
    }

    fn state(&mut self, instance: &str) -> Result<String> {
        let answer = self.ask("DescribeInstances", &[("InstanceId.1", instance)])?;
        let state = answer.split("<instanceState>").nth(1).context("a state")?;
        ec2::texts(state, "name").into_iter().next().context("a name")
    }

    fn wait_for(&mut self, instance: &str, wanted: &str) -> Result<()> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let state = self.state(instance)?;
            if state == wanted {
                return Ok(());
            }
            ensure!(
                Instant::now() < deadline,
                "{instance} is {state} and not {wanted}{}",
                self.agent.last_words()
            );
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    fn console(&mut self, instance: &str) -> Result<String> {
        let answer = self.ask("GetConsoleOutput", &[("InstanceId", instance)])?;
        ec2::console_text(&answer)
    }

    /// Waits until the guest has said that it is ready so often, or once after a death of the host, with which the console
    /// goes.
    fn wait_for_ready(&mut self, instance: &str, count: usize, deaths: u64) -> Result<()> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let console = self.console(instance)?;
            let count = if self.takes_host_along && self.deaths > deaths { 1 } else { count };
            if console.matches("ready").count() >= count {
                return Ok(());
            }
            ensure!(Instant::now() < deadline, "{instance} has only said {console:?}");
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    fn run(&mut self, image: &str, token: &str) -> Result<String> {
        let answer = self.ask(
            "RunInstances",
            &[
                ("ImageId", image),
                ("InstanceType", STORED),
                ("MinCount", "1"),
                ("MaxCount", "1"),
                ("ClientToken", token),
            ],
        )?;
        ec2::texts(&answer, "instanceId").pop().context("an instance")
    }

    /// Takes a snapshot of an instance's volume, makes the volume larger, and deletes the snapshot when it is complete.
    fn snapshot(&mut self, id: &str) -> Result<()> {
        let attached = [("Filter.1.Name", "attachment.instance-id"), ("Filter.1.Value.1", id)];
        let volumes = self.ask("DescribeVolumes", &attached)?;
        let volume = ec2::texts(&volumes, "volumeId").swap_remove(0);
        self.ask("CreateSnapshot", &[("VolumeId", &volume)])?;
        let of_volume = [("Filter.1.Name", "volume-id"), ("Filter.1.Value.1", volume.as_str())];
        let deadline = Instant::now() + PATIENCE;
        loop {
            let snapshots = self.ask("DescribeSnapshots", &of_volume)?;
            let mut states = ec2::texts(&snapshots, "status");
            // One that was asked for twice is there twice.
            ensure!(!states.is_empty(), "the snapshot is lost");
            states.retain(|state| state != "completed");
            if states.is_empty() {
                for snapshot in ec2::texts(&snapshots, "snapshotId") {
                    self.ask("DeleteSnapshot", &[("SnapshotId", &snapshot)])?;
                }
                break;
            }
            ensure!(Instant::now() < deadline, "a snapshot stays {states:?}");
            std::thread::sleep(Duration::from_millis(5));
        }
        Ok(())
    }

    /// Everything that can happen to an instance. Its guest hears the power button.
    fn live(&mut self, image: &str, token: &str) -> Result<()> {
        let id = self.run(image, token)?;
        self.wait_for(&id, "running")?;
        self.wait_for_ready(&id, 1, self.deaths)?;
        self.snapshot(&id)?;
        let deaths = self.deaths;
        self.ask("RebootInstances", &[("InstanceId.1", &id)])?;
        self.wait_for_ready(&id, 2, deaths)?;
        self.wait_for(&id, "running")?;
        self.ask("StopInstances", &[("InstanceId.1", &id)])?;
        self.wait_for(&id, "stopped")?;
        let console = self.console(&id)?;
        ensure!(
            self.takes_host_along || console.ends_with("off\n"),
            "it was not asked to switch itself off, or that is lost: {console:?}"
        );
        self.ask("StartInstances", &[("InstanceId.1", &id)])?;
        self.wait_for(&id, "running")?;
        self.wait_for_ready(&id, 1, self.deaths)?;
        self.ask("TerminateInstances", &[("InstanceId.1", &id)])?;
        self.wait_for(&id, "terminated")
    }

    /// What there is of instances that are not terminated: files, processes and records.
    fn check(&mut self, alive: &[String]) -> Result<()> {
        let names = |directory: &str, root: std::path::PathBuf| -> Result<BTreeSet<String>> {
            let entries = match std::fs::read_dir(root.join(directory)) {
                Ok(entries) => entries,
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(BTreeSet::new()),
                Err(error) => return Err(error.into()),
            };
            Ok(entries.flatten().map(|entry| entry.file_name().to_string_lossy().into_owned()).collect())
        };
        self.agent.wait_for_vmms(alive.len())?;
        let running = names("instances", self.agent.run_directory())?;
        ensure!(running == alive.iter().cloned().collect(), "run directories: {running:?}");
        let stores = names("stores", self.agent.run_directory())?;
        ensure!(stores == running && self.agent.stores()?.len() == alive.len(), "stores: {stores:?}");
        let volumes = self.ask("DescribeVolumes", &[])?;
        let recorded: BTreeSet<String> = ec2::texts(&volumes, "volumeId").into_iter().collect();
        ensure!(recorded.len() == alive.len(), "volumes: {recorded:?}");
        // Each has one, as its image has none.
        self.agent.wait_for_layers(alive.len())?;
        let interfaces = self.ask("DescribeNetworkInterfaces", &[])?;
        let interfaces: BTreeSet<String> =
            ec2::texts(&interfaces, "networkInterfaceId").into_iter().collect();
        ensure!(interfaces.len() == alive.len(), "interfaces: {interfaces:?}");
        Ok(())
    }
}

/// How often the agent is killed.
fn kills() -> Result<u64> {
    match std::env::var("INNKEEPER_AGENT_KILLS") {
        Ok(text) => Ok(text.parse()?),
        Err(_) => Ok(50),
    }
}

/// An agent, the places at which it can die, the image of those whose lives it dies in, and an instance that only runs.
fn begin(takes_host_along: bool) -> Result<(Mortal, Vec<String>, String, String)> {
    let agent = Agent::start("")?;
    let bystander_image = agent.register("bystander", &agent.payload("idle")?)?;
    let image = agent.register("mortal", &agent.payload("button")?)?;
    let places = agent.failpoints()?;
    ensure!(places.len() >= 20, "{places:?}");
    let client = agent.client()?;
    let mut mortal = Mortal { agent, client, deaths: 0, takes_host_along };
    let bystander = mortal.run(&bystander_image, "bystander")?;
    mortal.wait_for(&bystander, "running")?;
    mortal.wait_for_ready(&bystander, 1, 0)?;
    Ok((mortal, places, image, bystander))
}

/// Lives whole lives, in each of which the agent dies at another place, until it has died as often as is wanted.
fn die_everywhere(
    mortal: &mut Mortal,
    places: &[String],
    image: &str,
    check: impl Fn(&mut Mortal) -> Result<()>,
) -> Result<()> {
    let wanted = kills()?;
    for round in 0.. {
        if mortal.deaths >= wanted {
            break;
        }
        let place = &places[round % places.len()];
        // An instance is started and ended twice in its life.
        let repeated = place.starts_with("start-vmm") || place.starts_with("end-vmm");
        let time = if repeated { 1 + round / places.len() % 2 } else { 1 };
        let before = mortal.deaths;
        mortal.agent.stop()?;
        if let Err(error) = mortal.agent.resume_until(&format!("{place}:{time}")) {
            // It may die before it is ready.
            ensure!(mortal.agent.pid().is_none(), error);
            mortal.rise()?;
        }
        mortal.client = mortal.agent.client()?;
        let context = || format!("killed at {place}, the {time}. time");
        mortal.live(image, &format!("round-{round}")).with_context(context)?;
        // The last places are passed when there is nothing left to ask for.
        let deadline = Instant::now() + PATIENCE;
        while mortal.deaths == before {
            mortal.raise()?;
            ensure!(Instant::now() < deadline, "the agent was not killed at {place}");
            std::thread::sleep(Duration::from_millis(1));
        }
        check(mortal).with_context(context)?;
    }
    println!("{} kills", mortal.deaths);
    Ok(())
}

fn finish(mut mortal: Mortal, bystander: &str) -> Result<()> {
    mortal.ask("TerminateInstances", &[("InstanceId.1", bystander)])?;
    mortal.wait_for(bystander, "terminated")?;
    mortal.check(&[])
}

#[test]
fn an_agent_dies_anywhere_and_nothing_is_lost() -> Result<()> {
    let (mut mortal, places, image, bystander) = begin(false)?;
    let vmm = mortal.agent.vmms()?;
    let disk = mortal.agent.store_disk(&bystander, "ephemeral1");
    mark(&disk)?;
    die_everywhere(&mut mortal, &places, &image, |mortal| {
        mortal.check(std::slice::from_ref(&bystander))?;
        ensure!(mortal.agent.vmms()? == vmm, "the bystander has another VMM");
        ensure!(mortal.console(&bystander)? == "ready\n", "the bystander has noticed something");
        ensure!(beginning(&disk)? == MARK, "the bystander's instance store is another");
        Ok(())
    })?;
    finish(mortal, &bystander)
}

#[test]
fn a_host_dies_anywhere_and_what_ran_starts_again() -> Result<()> {
    let (mut mortal, places, image, bystander) = begin(true)?;
    let identity = |mortal: &mut Mortal| -> Result<Vec<Vec<String>>> {
        let answer = mortal.ask("DescribeInstances", &[("InstanceId.1", &bystander)])?;
        Ok(["launchTime", "privateIpAddress", "volumeId", "networkInterfaceId", "macAddress"]
            .map(|name| ec2::texts(&answer, name))
            .into())
    };
    let before = identity(&mut mortal)?;
    let disk = mortal.agent.store_disk(&bystander, "ephemeral0");
    die_everywhere(&mut mortal, &places, &image, |mortal| {
        mortal.wait_for(&bystander, "running")?;
        mortal.check(std::slice::from_ref(&bystander))?;
        ensure!(beginning(&disk)? == NOTHING, "the instance store has outlived the host");
        mark(&disk)?;
        mortal.wait_for_ready(&bystander, 1, 0)?;
        let after = identity(mortal)?;
        ensure!(after == before, "the bystander has become another: {before:?}, {after:?}");
        Ok(())
    })?;
    finish(mortal, &bystander)
}

/// Of an instance whose root device is in the instance store, nothing is left that could be started: once it has run it ends
/// with its host, whatever it was about to do. Until then there is nothing to lose, and its launch goes on.
#[test]
fn an_instance_in_the_store_ends_with_its_host() -> Result<()> {
    let agent = Agent::start("")?;
    let image = agent.register_in_store("mortal", &agent.payload("button")?)?;
    let mut places = agent.failpoints()?;
    // It has no volume, and cannot be stopped.
    places.retain(|place| !place.starts_with("cover.") && !place.starts_with("press-button."));
    ensure!(places.len() >= 15, "{places:?}");
    let client = agent.client()?;
    let mut mortal = Mortal { agent, client, deaths: 0, takes_host_along: true };
    for place in &places {
        let before = mortal.deaths;
        mortal.agent.stop()?;
        if let Err(error) = mortal.agent.resume_until(place) {
            ensure!(mortal.agent.pid().is_none(), error);
            mortal.rise()?;
        }
        mortal.client = mortal.agent.client()?;
        let id = mortal.run(&image, place)?;
        let deadline = Instant::now() + PATIENCE;
        while mortal.state(&id)? == "pending" {
            ensure!(Instant::now() < deadline, "it stays pending: {}", mortal.agent.last_words());
            std::thread::sleep(Duration::from_millis(5));
        }
        let is_launch = ["prepare-volumes.", "start-vmm."].iter().any(|step| place.starts_with(step));
        let has_run = place == "start-vmm.after";
        if mortal.deaths == before && !is_launch {
            mortal.wait_for_ready(&id, 1, before)?;
            // There may be no answer.
            let _ = mortal.client.send("RebootInstances", &[("InstanceId.1", &id)]);
            while mortal.deaths == before && mortal.console(&id)?.matches("ready").count() < 2 {
                ensure!(Instant::now() < deadline, "it does not reboot: {}", mortal.agent.last_words());
                std::thread::sleep(Duration::from_millis(5));
            }
        }
        // Else it has to end by itself.
        if (is_launch || mortal.deaths == before) && !has_run {
            mortal.ask("TerminateInstances", &[("InstanceId.1", &id)])?;
        }
        mortal.wait_for(&id, "terminated").with_context(|| format!("killed at {place}"))?;
        while mortal.deaths == before {
            mortal.raise()?;
            ensure!(Instant::now() < deadline, "the agent was not killed at {place}");
            std::thread::sleep(Duration::from_millis(1));
        }
        mortal.wait_for(&id, "terminated")?;
        mortal.check(&[]).with_context(|| format!("killed at {place}"))?;
    }
    Ok(())
}
