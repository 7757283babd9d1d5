//! The instance store, with guests that are bare payloads: it is one guest's, however often that reboots, and nobody's
//! after it.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use innkeeper_tests::agent::{Agent, IMPATIENT, STORED, TINY};
use innkeeper_tests::ec2::{Client, texts};
use innkeeper_tests::mark::{MARK, NOTHING, beginning, mark};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

const PATIENCE: Duration = Duration::from_secs(60);

/// Launches an instance, and waits until it runs.
fn launch(client: &Client, image: &str, instance_type: &str) -> Result<String> {
    let id = client.launch(image, instance_type)?;
    client.wait_for(std::slice::from_ref(&id), "running", PATIENCE)?;
    Ok(id)
}

/// Waits until a guest has said so often that it is ready.
fn wait_for_ready(client: &Client, id: &str, count: usize) -> Result<()> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let console = client.console(id)?;
        if console.matches("ready").count() >= count {
            return Ok(());
        }
        ensure!(Instant::now() < deadline, "{id} has only said {console:?}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Waits until an instance is in a state; returns the code of the reason.
fn wait_for_state(client: &Client, id: &str, state: &str) -> Result<String> {
    client.wait_for(&[id.to_owned()], state, PATIENCE)?;
    let answer = client.ask("DescribeInstances", &[("InstanceId.1", id)])?;
    Ok(texts(&answer, "code").into_iter().find(|code| code.contains('.')).unwrap_or_default())
}

#[test]
fn a_store_outlives_reboots_and_agents_and_nothing_else() -> Result<()> {
    let mut agent = Agent::start(IMPATIENT)?;
    let image = agent.register("bare", &agent.payload("idle")?)?;
    let id = launch(&agent.client()?, &image, STORED)?;
    let disks = ["ephemeral0", "ephemeral1"].map(|name| agent.store_disk(&id, name));
    for disk in &disks {
        ensure!(disk.metadata()?.len() == 1_000_000_000 && beginning(disk)? == NOTHING, "{disk:?}");
        mark(disk)?;
    }
    wait_for_ready(&agent.client()?, &id, 1)?;
    agent.client()?.ask("RebootInstances", &[("InstanceId.1", &id)])?;
    wait_for_ready(&agent.client()?, &id, 2)?;
    agent.kill()?;
    agent.resume()?;
    for disk in &disks {
        ensure!(beginning(disk)? == MARK, "a reboot or another agent has changed {disk:?}");
    }

    let client = agent.client()?;
    client.ask("StopInstances", &[("InstanceId.1", &id)])?;
    wait_for_state(&client, &id, "stopped")?;
    ensure!(agent.stores()?.is_empty(), "a stopped instance has a store: {:?}", agent.stores()?);
    client.ask("StartInstances", &[("InstanceId.1", &id)])?;
    wait_for_state(&client, &id, "running")?;
    for disk in &disks {
        ensure!(beginning(disk)? == NOTHING, "a stop has kept {disk:?}");
        mark(disk)?;
    }
    agent.kill()?;
    agent.reboot_host()?;
    agent.resume()?;
    let client = agent.client()?;
    wait_for_state(&client, &id, "running")?;
    ensure!(beginning(&disks[0])? == NOTHING, "a reboot of the host has kept the store");
    // A host that keeps what it has mounted is none that was started anew, but what if.
    mark(&disks[0])?;
    agent.kill()?;
    agent.rename_boot()?;
    for pid in agent.vmms()? {
        kill(Pid::from_raw(pid as i32), Signal::SIGKILL)?;
    }
    agent.wait_for_vmms(0)?;
    agent.resume()?;
    let client = agent.client()?;
    wait_for_state(&client, &id, "running")?;
    ensure!(beginning(&disks[0])? == NOTHING, "another boot of the host has kept the store");
    client.ask("TerminateInstances", &[("InstanceId.1", &id)])?;
    wait_for_state(&client, &id, "terminated")?;
    ensure!(agent.stores()?.is_empty() && !disks[0].exists(), "a store is left");
    Ok(())
}

#[test]
fn a_root_device_in_the_store_cannot_be_stopped_and_ends_with_its_guest() -> Result<()> {
    let mut agent = Agent::start(IMPATIENT)?;
    let image = agent.register_in_store("store", &agent.payload("idle")?)?;
    let client = agent.client()?;
    let described = client.ask("DescribeImages", &[("ImageId.1", &image)])?;
    ensure!(texts(&described, "rootDeviceType") == ["instance-store"], "{described}");
    let id = launch(&client, &image, TINY)?;
    let answer = client.ask("DescribeInstances", &[("InstanceId.1", &id)])?;
    ensure!(texts(&answer, "rootDeviceType") == ["instance-store"], "{answer}");
    ensure!(texts(&answer, "volumeId").is_empty(), "it has a volume: {answer}");
    let (status, answer) = client.send("StopInstances", &[("InstanceId.1", &id)])?;
    let message =
        format!("The instance '{id}' does not have an 'ebs' root device type and cannot be stopped");
    ensure!(status == 400 && texts(&answer, "Code") == ["UnsupportedOperation"], "{answer}");
    ensure!(texts(&answer, "Message").iter().any(|text| text.replace("&apos;", "'") == message), "{answer}");

    let root = agent.store_disk(&id, "root");
    mark(&root)?;
    wait_for_ready(&client, &id, 1)?;
    client.ask("RebootInstances", &[("InstanceId.1", &id)])?;
    wait_for_ready(&client, &id, 2)?;
    ensure!(beginning(&root)? == MARK, "a reboot has changed the root disk");
    for pid in agent.vmms()? {
        kill(Pid::from_raw(pid as i32), Signal::SIGKILL)?;
    }
    ensure!(wait_for_state(&client, &id, "terminated")? == "Server.InternalError");

    // One that switches itself off.
    let hello = agent.register_in_store("hello", &agent.payload("hello")?)?;
    let short = client.launch(&hello, TINY)?;
    ensure!(wait_for_state(&client, &short, "terminated")? == "Client.InstanceInitiatedShutdown");

    // And one whose host is started anew.
    let id = launch(&client, &image, TINY)?;
    agent.kill()?;
    agent.reboot_host()?;
    agent.resume()?;
    let client = agent.client()?;
    ensure!(wait_for_state(&client, &id, "terminated")? == "Server.InternalError");
    agent.wait_for_vmms(0)?;
    ensure!(agent.stores()?.is_empty(), "a store is left: {:?}", agent.stores()?);
    Ok(())
}

/// What a store may take of the memory is taken from the host's.
#[test]
fn a_store_has_to_fit_into_the_hosts_memory() -> Result<()> {
    let agent = Agent::start(
        "cpu-overcommit = 100.0\n[[instance-types]]\nname = \"lab.huge\"\nvcpus = 1\nmemory = 64\n\
         instance-store = { disks = 1, size = 60000 }",
    )?;
    let image = agent.register("bare", &agent.payload("idle")?)?;
    let parameters =
        [("ImageId", image.as_str()), ("InstanceType", "lab.huge"), ("MinCount", "1"), ("MaxCount", "1")];
    let (status, answer) = agent.client()?.send("RunInstances", &parameters)?;
    ensure!(
        status == 500 && texts(&answer, "Code") == ["InsufficientInstanceCapacity"],
        "{status}: {answer}"
    );
    Ok(())
}
