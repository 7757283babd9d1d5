//! The real daemon and the real clients, with guests that are bare payloads: what any KVM can run.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use innkeeper_tests::agent::{Agent, IMPATIENT, REGION, TINY, Template, run_suite, suite};
use innkeeper_tests::aws;
use innkeeper_tests::ec2::{Client, console_text, numbered, texts};
use innkeeper_tests::stack::Stack;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

const PATIENCE: Duration = Duration::from_secs(60);

/// A daemon, and an image of a payload that says that it is ready: `idle` does nothing more, `button` switches itself
/// off when the power button is pressed.
fn start(payload: &'static str) -> Result<(Agent, String, Template)> {
    let agent = Agent::with_types_of_ec2(IMPATIENT)?;
    let template = agent.payload(payload)?;
    let image = agent.register("bare", &template)?;
    Ok((agent, image, template))
}

/// All files and directories below a directory.
fn files(directory: &Path) -> Result<BTreeSet<PathBuf>> {
    let mut found = BTreeSet::new();
    let mut rest = vec![directory.to_owned()];
    while let Some(directory) = rest.pop() {
        for entry in std::fs::read_dir(directory)? {
            let path = entry?.path();
            if path.is_dir() {
                rest.push(path.clone());
            }
            found.insert(path);
        }
    }
    Ok(found)
}

/// Launches so many instances with one call, and terminates them, until they are not even listed any more.
fn come_and_go(agent: &Agent, image: &str, count: usize) -> Result<()> {
    let client = agent.client()?;
    let all = count.to_string();
    let launch = [("ImageId", image), ("InstanceType", TINY), ("MinCount", &all), ("MaxCount", &all)];
    let ids = texts(&client.ask("RunInstances", &launch)?, "instanceId");
    let different = |texts: &[String]| texts.iter().collect::<BTreeSet<_>>().len();
    ensure!(different(&ids) == count, "not {count} instances: {ids:?}");
    client.wait_for(&ids, "running", PATIENCE)?;
    agent.wait_for_vmms(count)?;
    let interfaces = client.ask("DescribeNetworkInterfaces", &[])?;
    ensure!(
        different(&texts(&interfaces, "networkInterfaceId")) == count,
        "not {count} interfaces: {interfaces}"
    );

    let chosen = numbered("InstanceId", &ids);
    let chosen: Vec<_> = chosen.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
    client.ask("TerminateInstances", &chosen)?;
    agent.wait_for_vmms(0)?;
    let deadline = Instant::now() + PATIENCE;
    loop {
        let listed = texts(&client.ask("DescribeInstances", &[])?, "instanceId").len();
        if listed == 0 {
            return Ok(());
        }
        ensure!(Instant::now() < deadline, "{listed} instances are still listed{}", agent.last_words());
        std::thread::sleep(Duration::from_millis(50));
    }
}

#[test]
fn the_walker_finds_what_is_wrong_with_an_answer() -> Result<()> {
    run_suite(&mut suite("test_walker")?)
}

#[test]
fn every_answer_is_as_the_model_has_it() -> Result<()> {
    let (agent, image, template) = start("idle")?;
    agent.run_suite("every_action", &image, &template)?;
    agent.run_suite("every_network_action", &image, &template)?;
    agent.run_suite("every_storage_action", &image, &template)?;
    agent.run_suite("every_identity_action", &image, &template)?;
    agent.wait_for_vmms(0)
}

#[test]
fn bad_requests_get_ec2s_errors() -> Result<()> {
    let (agent, image, template) = start("idle")?;
    agent.run_suite("bad_requests", &image, &template)?;
    agent.wait_for_vmms(0)
}

#[test]
fn instances_live_in_boto3s_resources() -> Result<()> {
    let (agent, image, template) = start("button")?;
    agent.run_suite("life", &image, &template)?;
    agent.wait_for_vmms(0)
}

#[test]
fn the_documented_commands_do_what_they_say() -> Result<()> {
    let (agent, image, template) = start("button")?;
    aws::life(&agent, &image, &template)
}

#[test]
fn fifty_instances_come_and_go_and_leave_nothing() -> Result<()> {
    let agent = Agent::start(&format!("{IMPATIENT}\nterminated-retention = 1"))?;
    let image = agent.register("bare", &agent.payload("idle")?)?;
    // The first one ever leaves the directories that all share.
    come_and_go(&agent, &image, 1)?;
    let before = [files(&agent.state_directory())?, files(&agent.run_directory())?];
    come_and_go(&agent, &image, 50)?;
    let client = agent.client()?;
    for (action, element) in [
        ("DescribeVolumes", "volumeId"),
        ("DescribeNetworkInterfaces", "networkInterfaceId"),
        ("DescribeTags", "key"),
    ] {
        let left = texts(&client.ask(action, &[])?, element);
        ensure!(left.is_empty(), "{action} still says {left:?}");
    }
    let after = [files(&agent.state_directory())?, files(&agent.run_directory())?];
    for (before, after) in before.iter().zip(&after) {
        let left: Vec<_> = after.difference(before).collect();
        ensure!(left.is_empty(), "files are left: {left:?}");
    }
    Ok(())
}

#[test]
fn guests_outlive_the_daemon() -> Result<()> {
    let mut agent = Agent::start(IMPATIENT)?;
    let template = agent.payload("idle")?;
    let image = agent.register("bare", &template)?;
    let client = agent.client()?;
    let launch = [("ImageId", image.as_str()), ("InstanceType", TINY), ("MinCount", "3"), ("MaxCount", "3")];
    let ids = texts(&client.ask("RunInstances", &launch)?, "instanceId");
    client.wait_for(&ids, "running", PATIENCE)?;
    agent.wait_for_vmms(3)?;
    let vmms: BTreeSet<_> = agent.vmms()?.into_iter().collect();
    for round in 0..4 {
        if round % 2 == 0 {
            agent.kill()?;
        } else {
            let status = agent.stop()?;
            ensure!(status.success(), "the daemon ended with {status}{}", agent.last_words());
        }
        ensure!(agent.vmms()?.into_iter().collect::<BTreeSet<_>>() == vmms, "a guest went with the daemon");
        agent.resume()?;
        let client = agent.client()?;
        client.wait_for(&ids, "running", PATIENCE)?;
        for id in &ids {
            let output =
                agent.aws(&["ec2", "get-console-output", "--instance-id", id, "--output", "text"])?;
            ensure!(output.matches(template.banner).count() == 1, "its console: {output}");
        }
    }
    // The new daemon holds them as the old one did.
    let client = agent.client()?;
    client.ask("StopInstances", &[("InstanceId.1", &ids[0]), ("Force", "true")])?;
    client.wait_for(&ids[..1], "stopped", PATIENCE)?;
    client.ask("TerminateInstances", &[("InstanceId.1", &ids[1]), ("InstanceId.2", &ids[2])])?;
    client.wait_for(&ids[1..], "terminated", PATIENCE)?;
    agent.wait_for_vmms(0)
}

/// The state of the only instance, and why it is in it.
fn wait_for_end(agent: &Agent, id: &str, state: &str) -> Result<String> {
    let client = agent.client()?;
    client.wait_for(&[id.to_owned()], state, PATIENCE)?;
    agent.wait_for_vmms(0)?;
    let answer = client.ask("DescribeInstances", &[("InstanceId.1", id)])?;
    let reason = answer.split("<stateReason>").nth(1).unwrap_or_default();
    Ok(texts(reason, "code").into_iter().next().unwrap_or_default())
}

#[test]
fn a_guest_that_switches_itself_off_follows_its_shutdown_behaviour() -> Result<()> {
    let agent = Agent::start(IMPATIENT)?;
    let image = agent.register("short", &agent.payload("hello")?)?;
    for (behaviour, state) in [("stop", "stopped"), ("terminate", "terminated")] {
        let launch = [
            ("ImageId", image.as_str()),
            ("InstanceType", TINY),
            ("MinCount", "1"),
            ("MaxCount", "1"),
            ("InstanceInitiatedShutdownBehavior", behaviour),
        ];
        let client = agent.client()?;
        let ids = texts(&client.ask("RunInstances", &launch)?, "instanceId");
        ensure!(wait_for_end(&agent, &ids[0], state)? == "Client.InstanceInitiatedShutdown");
        let console = console_text(&client.ask("GetConsoleOutput", &[("InstanceId", &ids[0])])?)?;
        ensure!(console.starts_with("hello from a bare guest"), "its console: {console:?}");
    }
    Ok(())
}

#[test]
fn an_instance_whose_vmm_dies_is_stopped_and_can_be_started() -> Result<()> {
    let agent = Agent::start(IMPATIENT)?;
    let image = agent.register("bare", &agent.payload("idle")?)?;
    let client = agent.client()?;
    let launch = [("ImageId", image.as_str()), ("InstanceType", TINY), ("MinCount", "1"), ("MaxCount", "1")];
    let ids = texts(&client.ask("RunInstances", &launch)?, "instanceId");
    client.wait_for(&ids, "running", PATIENCE)?;
    for pid in agent.vmms()? {
        kill(Pid::from_raw(pid as i32), Signal::SIGKILL)?;
    }
    ensure!(wait_for_end(&agent, &ids[0], "stopped")? == "Server.InternalError");
    client.ask("StartInstances", &[("InstanceId.1", &ids[0])])?;
    client.wait_for(&ids, "running", PATIENCE)?;
    agent.wait_for_vmms(1)?;
    client.ask("TerminateInstances", &[("InstanceId.1", &ids[0])])?;
    ensure!(wait_for_end(&agent, &ids[0], "terminated")? == "Client.UserInitiatedShutdown");
    Ok(())
}

/// Between MinCount and MaxCount, and none below MinCount.
#[test]
fn as_many_are_launched_as_fit() -> Result<()> {
    let cpus = std::thread::available_parallelism()?.get();
    let agent = Agent::start("cpu-overcommit = 1.0")?;
    let image = agent.register("bare", &agent.payload("idle")?)?;
    let client = agent.client()?;
    let launch = |min: usize, max: usize| {
        let (min, max) = (min.to_string(), max.to_string());
        let parameters =
            [("ImageId", image.as_str()), ("InstanceType", TINY), ("MinCount", &min), ("MaxCount", &max)];
        client.send("RunInstances", &parameters)
    };
    let refused = |(status, answer): (u16, String)| {
        let code = texts(&answer, "Code");
        ensure!(status == 500 && code == ["InsufficientInstanceCapacity"], "{status}: {answer}");
        Ok(())
    };
    refused(launch(cpus + 1, cpus + 1)?)?;
    let (status, answer) = launch(1, cpus + 5)?;
    ensure!(status == 200 && texts(&answer, "instanceId").len() == cpus, "{status}: {answer}");
    refused(launch(1, 1)?)
}

/// A client that got no answer sends its request again, perhaps before the first one is through.
#[test]
fn the_same_launch_at_the_same_time_is_one_launch() -> Result<()> {
    let agent = Agent::start(IMPATIENT)?;
    let image = agent.register("bare", &agent.payload("idle")?)?;
    let launch = || {
        let parameters = [
            ("ImageId", image.as_str()),
            ("InstanceType", TINY),
            ("MinCount", "2"),
            ("MaxCount", "2"),
            ("ClientToken", "once"),
        ];
        agent.client()?.ask("RunInstances", &parameters)
    };
    let answers = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..16).map(|_| scope.spawn(launch)).collect();
        let answers = threads.into_iter().map(|thread| thread.join().expect("a launch does not panic"));
        answers.collect::<Result<Vec<_>>>()
    })?;
    let launched: BTreeSet<Vec<String>> = answers.iter().map(|answer| texts(answer, "instanceId")).collect();
    ensure!(launched.len() == 1, "different answers: {launched:?}");
    agent.wait_for_vmms(2)
}

/// Two guests that write to one volume would destroy it.
#[test]
fn a_volume_is_given_away_only_when_its_guest_has_let_go() -> Result<()> {
    let mut agent = Agent::start(IMPATIENT)?;
    let image = agent.register("bare", &agent.payload("idle")?)?;
    let mut client = agent.client()?;
    let launch = [("ImageId", image.as_str()), ("InstanceType", TINY), ("MinCount", "2"), ("MaxCount", "2")];
    let ids = texts(&client.ask("RunInstances", &launch)?, "instanceId");
    client.wait_for(&ids, "running", PATIENCE)?;
    let made = client.ask("CreateVolume", &[("AvailabilityZone", "us-east-1a"), ("Size", "1")])?;
    let volume = texts(&made, "volumeId").pop().unwrap_or_default();
    let attach = |client: &Client, instance: &str| {
        let parameters = [("VolumeId", volume.as_str()), ("InstanceId", instance), ("Device", "/dev/sdf")];
        client.send("AttachVolume", &parameters)
    };
    let detach = |client: &Client, force: &str| {
        client.ask("DetachVolume", &[("VolumeId", volume.as_str()), ("Force", force)])
    };
    let wait = |client: &Client, status: &str| -> Result<()> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let answer = client.ask("DescribeVolumes", &[("VolumeId.1", &volume)])?;
            if texts(&answer, "status").iter().any(|found| found == status) {
                return Ok(());
            }
            ensure!(Instant::now() < deadline, "{volume} is not {status}: {answer}");
            std::thread::sleep(Duration::from_millis(5));
        }
    };
    ensure!(attach(&client, &ids[0])?.0 == 200);
    wait(&client, "attached")?;
    // This guest never lets go by itself.
    detach(&client, "false")?;
    wait(&client, "detaching")?;
    let (status, answer) = attach(&client, &ids[1])?;
    ensure!(status == 400 && answer.contains("VolumeInUse"), "{answer}");
    // What was begun is known to the next agent.
    agent.kill()?;
    agent.resume()?;
    client = agent.client()?;
    wait(&client, "detaching")?;
    detach(&client, "true")?;
    wait(&client, "available")?;
    ensure!(attach(&client, &ids[1])?.0 == 200);
    wait(&client, "attached")?;
    // The end of a guest is the end of waiting for it.
    detach(&client, "false")?;
    wait(&client, "detaching")?;
    client.ask("StopInstances", &[("InstanceId.1", &ids[1]), ("Force", "true")])?;
    wait(&client, "available")?;
    client.ask("DeleteVolume", &[("VolumeId", &volume)])?;
    // Only those of the instances' are left.
    agent.wait_for_layers(ids.len())?;
    Ok(())
}

/// A reader hears of every change once and in order, also when the daemon is killed meanwhile; and so does one that
/// comes later.
#[test]
fn every_change_is_heard_of_once_across_daemons() -> Result<()> {
    let mut agent = Agent::start(IMPATIENT)?;
    let image = agent.register("bare", &agent.payload("idle")?)?;
    let mut first = agent.follow_events()?;
    let launch = [("ImageId", image.as_str()), ("InstanceType", TINY), ("MinCount", "2"), ("MaxCount", "2")];
    let ids = texts(&agent.client()?.ask("RunInstances", &launch)?, "instanceId");
    for (action, state) in [
        ("", "running"),
        ("StopInstances", "stopped"),
        ("StartInstances", "running"),
        ("TerminateInstances", "terminated"),
    ] {
        if !action.is_empty() {
            agent.client()?.ask(action, &[("InstanceId.1", &ids[0]), ("InstanceId.2", &ids[1])])?;
            agent.kill()?;
            agent.resume()?;
        }
        agent.client()?.wait_for(&ids, state, PATIENCE)?;
    }
    let life =
        ["pending", "running", "stopping", "stopped", "pending", "running", "shutting-down", "terminated"];
    let mut heard = Vec::new();
    for _ in 0..life.len() * ids.len() {
        heard.push(first.hear()?);
    }
    let different: BTreeSet<_> = heard.iter().map(|event| event["id"].to_string()).collect();
    ensure!(different.len() == heard.len(), "some came twice: {heard:?}");
    for id in &ids {
        let of_it = heard.iter().filter(|event| event["detail"]["instance-id"] == id.as_str());
        let states: Vec<_> = of_it.filter_map(|event| event["detail"]["state"].as_str()).collect();
        ensure!(states == life, "{id}: {states:?}");
    }
    let mut late = agent.follow_events()?;
    for event in &heard {
        let again = late.hear()?;
        ensure!(again == *event, "{again} and not {event}");
    }
    Ok(())
}

/// A grub.cfg that boots this kernel.
fn grub_cfg(kernel: &str) -> String {
    format!("set default=0\nmenuentry 'a bare guest' {{\n\tlinux {kernel} console=ttyS0 quiet\n}}\n")
}

fn run(command: &mut Command) -> Result<()> {
    let output = command.output()?;
    ensure!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
    Ok(())
}

/// Snapshots of a guest's volume are complete while it runs. Those that are deleted leave nothing: their layers are merged,
/// and the guest gets what is made of them, also of an agent that comes later, and when it was made before that came.
#[test]
fn layers_come_and_go_under_a_running_guest() -> Result<()> {
    let mut agent = Agent::start(IMPATIENT)?;
    let image = agent.register("bare", &agent.payload("idle")?)?;
    let id = agent.client()?.launch(&image, TINY)?;
    agent.client()?.wait_for(std::slice::from_ref(&id), "running", PATIENCE)?;
    let volume = texts(&agent.client()?.ask("DescribeVolumes", &[])?, "volumeId").swap_remove(0);
    let wait = |agent: &Agent, action: &str, element: &str, wanted: &str| -> Result<()> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let answer = agent.client()?.ask(action, &[])?;
            if texts(&answer, element).iter().all(|is| is == wanted) {
                return Ok(());
            }
            ensure!(Instant::now() < deadline, "{answer}{}", agent.last_words());
            std::thread::sleep(Duration::from_millis(10));
        }
    };
    let descriptors = |agent: &Agent| -> Result<usize> {
        let pid = agent.vmms()?.first().copied().context("a VMM")?;
        Ok(Path::new("/proc").join(pid.to_string()).join("fd").read_dir()?.count())
    };
    let before = descriptors(&agent)?;
    for round in 0..3 {
        let mut snapshots = Vec::new();
        for _ in 0..4 {
            let answer = agent.client()?.ask("CreateSnapshot", &[("VolumeId", &volume)])?;
            snapshots.push(texts(&answer, "snapshotId").swap_remove(0));
            wait(&agent, "DescribeSnapshots", "status", "completed")?;
        }
        agent.wait_for_layers(5 + round)?;
        ensure!(descriptors(&agent)? > before + 7, "the guest has not got the new layers");
        if round == 1 {
            agent.kill()?;
            agent.resume()?;
        }
        let vmm = Pid::from_raw(agent.vmms()?.first().copied().context("a VMM")? as i32);
        if round == 2 {
            kill(vmm, Signal::SIGSTOP)?;
        }
        for snapshot in &snapshots[..3] {
            agent.client()?.ask("DeleteSnapshot", &[("SnapshotId", snapshot)])?;
        }
        // One of each round's last snapshot, and the top.
        agent.wait_for_layers(2 + round)?;
        if round == 2 {
            agent.kill()?;
            kill(vmm, Signal::SIGCONT)?;
            agent.resume()?;
        }
        let deadline = Instant::now() + PATIENCE;
        while descriptors(&agent)? > before + 2 * (1 + round) {
            ensure!(Instant::now() < deadline, "the guest keeps what was merged: {}", agent.last_words());
            std::thread::sleep(Duration::from_millis(10));
        }
    }
    let larger = [("VolumeId", volume.as_str()), ("Size", "9"), ("VolumeType", "gp3"), ("Iops", "4000")];
    agent.client()?.ask("ModifyVolume", &larger)?;
    wait(&agent, "DescribeVolumesModifications", "modificationState", "completed")?;
    wait(&agent, "DescribeVolumes", "size", "9")?;
    let refused = agent.try_command(&["volume", "check", &volume])?;
    ensure!(String::from_utf8_lossy(&refused.stderr).contains("Stop the instance"), "{refused:?}");
    agent.client()?.ask("StopInstances", &[("InstanceId.1", &id), ("Force", "true")])?;
    agent.client()?.wait_for(std::slice::from_ref(&id), "stopped", PATIENCE)?;
    agent.command(&["volume", "check", &volume])?;
    agent.client()?.ask("StartInstances", &[("InstanceId.1", &id)])?;
    agent.client()?.wait_for(std::slice::from_ref(&id), "running", PATIENCE)
}

/// What may be attached to an instance fits into its machine.
#[test]
fn an_instance_starts_with_all_that_it_may_have() -> Result<()> {
    let agent = Agent::start(IMPATIENT)?;
    let image = agent.register("bare", &agent.payload("idle")?)?;
    let client = agent.client()?;
    let launch = |volumes: usize| {
        let mut parameters: Vec<(String, String)> =
            [("ImageId", image.as_str()), ("InstanceType", TINY), ("MinCount", "1"), ("MaxCount", "1")]
                .map(|(name, value)| (name.to_owned(), value.to_owned()))
                .into();
        for number in 1..=volumes {
            let mapping = format!("BlockDeviceMapping.{number}");
            let device = format!("/dev/xvdb{}", char::from(b'a' + number as u8 - 1));
            parameters.push((format!("{mapping}.DeviceName"), device));
            parameters.push((format!("{mapping}.Ebs.VolumeSize"), "1".to_owned()));
            parameters.push((format!("{mapping}.Ebs.DeleteOnTermination"), "true".to_owned()));
        }
        let parameters: Vec<_> =
            parameters.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
        client.send("RunInstances", &parameters)
    };
    // With the root volume and the interface there are 28.
    let (status, answer) = launch(26)?;
    ensure!(status == 200, "{answer}");
    let ids = texts(&answer, "instanceId");
    client.wait_for(&ids, "running", PATIENCE)?;
    let volumes = client.ask("DescribeVolumes", &[])?;
    let states: Vec<_> = texts(&volumes, "status").into_iter().filter(|state| state == "attached").collect();
    ensure!(states.len() == 27, "{volumes}");
    let made = client.ask("CreateVolume", &[("AvailabilityZone", "us-east-1a"), ("Size", "1")])?;
    let volume = texts(&made, "volumeId").swap_remove(0);
    let attach = [("VolumeId", volume.as_str()), ("InstanceId", &ids[0]), ("Device", "/dev/sdf")];
    let (status, answer) = client.send("AttachVolume", &attach)?;
    ensure!(status == 400 && answer.contains("AttachmentLimitExceeded"), "{answer}");
    client.ask("TerminateInstances", &[("InstanceId.1", &ids[0])])?;
    client.wait_for(&ids, "terminated", PATIENCE)?;
    client.ask("DeleteVolume", &[("VolumeId", &volume)])?;
    agent.wait_for_layers(0)
}

/// A guest that is being stopped goes on writing until it is off, and a snapshot does not wait for that.
#[test]
fn a_snapshot_of_an_instance_that_stops_is_of_the_moment() -> Result<()> {
    let agent = Agent::start("stop-timeout = 300")?;
    // It takes no notice of the power button.
    let image = agent.register("bare", &agent.payload("idle")?)?;
    let client = agent.client()?;
    let ids = [client.launch(&image, TINY)?];
    client.wait_for(&ids, "running", PATIENCE)?;
    let volume = texts(&client.ask("DescribeVolumes", &[])?, "volumeId").swap_remove(0);
    client.ask("StopInstances", &[("InstanceId.1", &ids[0])])?;
    client.wait_for(&ids, "stopping", PATIENCE)?;
    client.ask("CreateSnapshot", &[("VolumeId", &volume)])?;
    let deadline = Instant::now() + PATIENCE;
    while texts(&client.ask("DescribeSnapshots", &[])?, "status") != ["completed"] {
        ensure!(Instant::now() < deadline, "it waits for the guest: {}", agent.last_words());
        std::thread::sleep(Duration::from_millis(10));
    }
    client.wait_for(&ids, "stopping", PATIENCE)?;
    client.ask("StopInstances", &[("InstanceId.1", &ids[0]), ("Force", "true")])?;
    client.wait_for(&ids, "stopped", PATIENCE)
}

/// Makes a disk, `disk.raw` in a new directory, that boots a payload.
fn disk_with(payload: &Template, directory: &Path) -> Result<PathBuf> {
    let boot = directory.join("root/boot");
    std::fs::create_dir_all(boot.join("grub"))?;
    std::fs::copy(payload.location.join("vmlinux"), boot.join("vmlinuz-1"))?;
    std::fs::write(boot.join("grub/grub.cfg"), grub_cfg("/boot/vmlinuz-1"))?;
    let disk = directory.join("disk.raw");
    run(Command::new("mke2fs")
        .args(["-q", "-t", "ext4", "-d"])
        .arg(directory.join("root"))
        .arg(&disk)
        .arg("16M"))?;
    Ok(disk)
}

/// A disk as distributions publish it becomes an image, and an instance of it boots, with one command each.
#[test]
fn a_qcow2_file_becomes_an_image_with_one_command() -> Result<()> {
    let agent = Agent::start(IMPATIENT)?;
    let hello = agent.payload("hello")?;
    let directory = tempfile::tempdir()?;
    let disk = disk_with(&hello, &directory.path().join("disk"))?;
    let file = directory.path().join("published.qcow2");
    run(Command::new("qemu-img").args(["convert", "-q", "-c", "-O", "qcow2"]).arg(&disk).arg(&file))?;
    let sum = Command::new("sha512sum").arg(&file).output()?.stdout;
    let sum = String::from_utf8(sum)?.split(' ').next().unwrap_or_default().to_owned();
    let import = |name: &str, format: &str, sum: &str| {
        let checksum = format!("sha512:{sum}");
        let file = file.to_string_lossy();
        let words = ["image", "import", &file, "--format", format, "--checksum", &checksum, "--name", name];
        agent.try_command(&words)
    };
    let refused = |output: std::process::Output, why: &str| {
        let errors = String::from_utf8_lossy(&output.stderr).into_owned();
        ensure!(!output.status.success() && errors.contains(why), "{errors}");
        ensure!(agent.client()?.ask("DescribeImages", &[])?.contains("<imagesSet/>"), "an image was made");
        Ok(())
    };
    refused(import("published", "raw", &sum)?, "--format qcow2")?;
    refused(import("published", "qcow2", &"0".repeat(128))?, "checksum")?;
    let imported = import("published", "qcow2", &sum)?;
    ensure!(imported.status.success(), "{}", String::from_utf8_lossy(&imported.stderr));
    let again = import("published", "qcow2", &sum)?;
    ensure!(String::from_utf8_lossy(&again.stderr).contains("has the name published"), "{again:?}");
    let left = std::fs::read_dir(hello.location.with_file_name(""))?.count();
    ensure!(left == 1, "an import has left something behind");
    let id = agent.command(&["run", "published", "--type", TINY, "--quiet"])?;
    ensure!(wait_for_end(&agent, &id, "stopped")? == "Client.InstanceInitiatedShutdown");
    let console = agent.command(&["console", &id])?;
    ensure!(console.contains("hello from a bare guest"), "{console}");
    Ok(())
}

/// Without a kernel at registration, the disk says what is booted, each time: also what a guest has written there since.
#[test]
fn an_instance_boots_what_its_disk_says() -> Result<()> {
    let agent = Agent::start(IMPATIENT)?;
    let (old, new) = (agent.payload("button")?, agent.payload("hello")?);
    let import = old.location.with_file_name("disk-only");
    let disk = disk_with(&old, &import)?;
    let template = Template { location: import.clone(), banner: "ready" };
    let image = agent.register("disk-only", &template)?;

    let client = agent.client()?;
    let launch = [("ImageId", image.as_str()), ("InstanceType", TINY), ("MinCount", "1"), ("MaxCount", "1")];
    let answer = client.ask("RunInstances", &launch)?;
    let id = texts(&answer, "instanceId").pop().unwrap_or_default();
    let console = || console_text(&client.ask("GetConsoleOutput", &[("InstanceId", &id)])?);
    let wait_for_console = |text: &str| -> Result<()> {
        let deadline = Instant::now() + PATIENCE;
        while !console()?.contains(text) {
            ensure!(Instant::now() < deadline, "no {text:?}: {:?}{}", console()?, agent.last_words());
            std::thread::sleep(Duration::from_millis(5));
        }
        Ok(())
    };
    client.wait_for(std::slice::from_ref(&id), "running", PATIENCE)?;
    wait_for_console("ready")?;

    // As an upgrade in the guest would leave it. This guest does not use its disk.
    let volumes = texts(&client.ask("DescribeVolumes", &[])?, "volumeId");
    let stack = Stack::find(&agent.state_directory().join("layers"))?;
    let volume = import.join("volume");
    stack.copy_to(&volume)?;
    std::fs::write(import.join("grub.cfg"), grub_cfg("/boot/vmlinuz-2"))?;
    let commands = format!(
        "write {} /boot/vmlinuz-2\nrm /boot/grub/grub.cfg\nwrite {} /boot/grub/grub.cfg\n",
        new.location.join("vmlinux").display(),
        import.join("grub.cfg").display()
    );
    std::fs::write(import.join("commands"), commands)?;
    run(Command::new("debugfs").args(["-w", "-f"]).arg(import.join("commands")).arg(&volume))?;
    stack.copy_from(&volume)?;
    client.ask("RebootInstances", &[("InstanceId.1", &id)])?;
    wait_for_console("hello from a bare guest")?;
    // It switches itself off then.
    ensure!(wait_for_end(&agent, &id, "stopped")? == "Client.InstanceInitiatedShutdown");
    client.ask("StartInstances", &[("InstanceId.1", &id)])?;
    wait_for_console("hello from a bare guest")?;
    ensure!(wait_for_end(&agent, &id, "stopped")? == "Client.InstanceInitiatedShutdown");

    // What cannot be booted is said, and can be mended.
    stack.copy_from(Path::new("/dev/null"))?;
    client.ask("StartInstances", &[("InstanceId.1", &id)])?;
    ensure!(wait_for_end(&agent, &id, "stopped")? == "Server.InternalError");
    let answer = client.ask("DescribeInstances", &[("InstanceId.1", &id)])?;
    ensure!(answer.contains(&format!("cannot boot from {}: ", volumes[0])), "{answer}");
    stack.copy_from(&disk)?;
    client.ask("StartInstances", &[("InstanceId.1", &id)])?;
    client.wait_for(std::slice::from_ref(&id), "running", PATIENCE)?;
    wait_for_console("ready")
}

#[test]
fn clients_find_and_trust_an_agent_that_speaks_tls() -> Result<()> {
    let mut agent =
        Agent::start("listen = \"0.0.0.0:0\"\ntls-names = [\"localhost\", \"innkeeper.example\"]")?;
    for _ in 0..2 {
        let endpoint = agent.endpoint().to_owned();
        let port = endpoint.strip_prefix("https://localhost:").context("not the endpoint")?;
        // All that they know is in the credentials file.
        let regions = ["ec2", "describe-regions", "--query", "Regions[].RegionName", "--output", "text"];
        ensure!(agent.aws(&regions)? == REGION);
        ensure!(agent.command(&["ps"])?.contains("STATE"), "no list");
        ensure!(agent.command(&["ps", "--endpoint-url", &format!("https://127.0.0.1:{port}")]).is_ok());
        let authority = agent.command(&["identity", "certificate", "--kind", "ca"])?;
        let bundle = agent.state_directory().join("ca.pem");
        ensure!(authority == std::fs::read_to_string(&bundle)?.trim_end(), "{authority}");

        let plain = ureq::Agent::config_builder().http_status_as_error(false).build().new_agent();
        let mut refused = plain.get(format!("http://localhost:{port}/")).call()?;
        let answer = refused.body_mut().read_to_string()?;
        ensure!(refused.status() == 400 && answer.contains("begin its URL with https://"), "{answer}");

        let verify = format!(
            "openssl s_client -connect 127.0.0.1:{port} -verify_return_error -verify_hostname innkeeper.example -CAfile"
        );
        shell(&format!("{verify} {}", bundle.display()))?;

        // Those who trust somebody else do not talk to it.
        shell(&format!(
            "openssl req -x509 -newkey ed25519 -nodes -keyout /dev/null -subj /CN=other -out {}",
            bundle.display()
        ))?;
        let suspicious = agent.try_command(&["ps"])?;
        let said = String::from_utf8_lossy(&suspicious.stderr);
        ensure!(!suspicious.status.success() && said.contains("AWS_CA_BUNDLE"), "{said}");

        // The next one has another certificate of the same authority.
        agent.stop()?;
        agent.resume()?;
        ensure!(agent.command(&["identity", "certificate", "--kind", "ca"])? == authority);
    }
    Ok(())
}

fn shell(line: &str) -> Result<()> {
    let output = Command::new("sh").args(["-c", line]).stdin(Stdio::null()).output()?;
    ensure!(output.status.success(), "{line}: {}", String::from_utf8_lossy(&output.stderr));
    Ok(())
}
