//! What is kept of what real guests write, and for how long: the `micro` image, driven by the real `aws`. For a host with
//! hardware KVM, or the lab.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use innkeeper_tests::agent::{Agent, REGION};
use innkeeper_tests::aws::ec2;
use innkeeper_tests::ec2::texts;
use innkeeper_tests::path;

const PATIENCE: Duration = Duration::from_secs(180);

/// A type with room for a real kernel, and a disk of an instance store.
const REAL: &str = "[[instance-types]]\nname = \"lab.real\"\nvcpus = 1\nmemory = 256\n\
                    instance-store = { disks = 1, size = 1 }";

/// User data that counts its runs, where its instance's copies find how often it has run before.
const COUNTING: &str =
    "#!/bin/bash\necho run >>/root/runs\necho \"user data has run $(wc -l </root/runs)\"\n";

/// Prints the device of the disk whose serial number begins with the argument, and has a size in GiB. Copies of a volume
/// have other serial numbers, so that those are found by their size.
const FIND: &str = r#"find_disk() { for disk in /sys/block/vd*; do
    case $(cat $disk/serial) in $1*) [ $(($(cat $disk/size) / 2097152)) = $2 ] && echo /dev/${disk##*/};; esac; done; }; "#;

/// An agent, and what is needed to launch instances and to log in to them.
struct Lab {
    agent: Agent,
    key: PathBuf,
    script: PathBuf,
    group: String,
    _directory: tempfile::TempDir,
}

/// What was seen of a guest.
#[derive(Debug, PartialEq, Eq)]
struct Seen {
    boot: String,
    lines: Vec<String>,
}

impl Lab {
    fn new() -> Result<Self> {
        let agent = Agent::start(REAL)?;
        let directory = tempfile::tempdir()?;
        let (key, script) = (directory.path().join("me.pem"), directory.path().join("script"));
        agent.command(&["key", "create", "me", "--file", path(&key)])?;
        std::fs::write(&script, COUNTING)?;
        let group = ec2(&agent, "describe-security-groups --query SecurityGroups[0].GroupId")?;
        let rule = "--protocol tcp --port 22 --cidr 0.0.0.0/0";
        ec2(&agent, &format!("authorize-security-group-ingress --group-id {group} {rule}"))?;
        Ok(Self { agent, key, script, group, _directory: directory })
    }

    fn ec2(&self, words: &str) -> Result<String> {
        ec2(&self.agent, words)
    }

    fn launch(&self, image: &str, count: usize, more: &str) -> Result<Vec<String>> {
        let launched = self.ec2(&format!(
            "run-instances --image-id {image} --count {count} --instance-type lab.real --key-name me \
             --security-group-ids {} --user-data file://{} --query Instances[].InstanceId{more}",
            self.group,
            path(&self.script)
        ))?;
        let ids: Vec<String> = launched.split_whitespace().map(str::to_owned).collect();
        ensure!(ids.len() == count, "not {count} instances: {launched}");
        Ok(ids)
    }

    /// The volume that an instance has as a device.
    fn volume(&self, instance: &str, device: &str) -> Result<String> {
        self.ec2(&format!(
            "describe-volumes --filters Name=attachment.instance-id,Values={instance} \
             Name=attachment.device,Values={device} --query Volumes[].VolumeId"
        ))
    }

    /// Has a guest carry something out, once a boot other than this one lets somebody in; returns what it has printed.
    fn run(&self, instance: &str, before: &str, command: &str) -> Result<Seen> {
        let script = format!("{FIND}{command}");
        let (boot, lines) = self.agent.run_in_guest(instance, &self.key, before, &script)?;
        Ok(Seen { boot, lines })
    }

    /// Stops an instance and starts it again.
    fn stop_and_start(&self, instance: &str) -> Result<()> {
        self.ec2(&format!("stop-instances --instance-ids {instance}"))?;
        self.ec2(&format!("wait instance-stopped --instance-ids {instance}"))?;
        self.ec2(&format!("start-instances --instance-ids {instance}"))?;
        self.ec2(&format!("wait instance-running --instance-ids {instance}")).map(drop)
    }
}

/// Writes to each disk of the first instance, the data volume of 2 GiB without a file system.
const WRITE: &str = "echo mine >/root/note; printf 'on the volume' >$(find_disk vol 2); \
                     echo mine >/mnt/ephemeral0/note; sync";

/// Prints what each has: the root volume, the data volume, the instance store.
const READ: &str = "cat /root/note; head -c 13 $(find_disk vol 2) | tr -d '\\000'; echo; \
                    cat /mnt/ephemeral0/note 2>/dev/null || echo nothing";

/// Two instances as EC2's documentation has them: one with a root volume, a further volume and an instance store, one with
/// its root device in the instance store. Then an image of the first, and what becomes of that.
#[test]
fn what_ec2_keeps_is_kept_and_nothing_else() -> Result<()> {
    let lab = Lab::new()?;
    let micro = lab.agent.micro()?;
    let (image, in_store) =
        (lab.agent.register("micro", &micro)?, lab.agent.register_in_store("micro-stored", &micro)?);
    let mapping = " --block-device-mappings DeviceName=/dev/sdf,Ebs={VolumeSize=2,DeleteOnTermination=false}";
    let first = lab.launch(&image, 1, mapping)?.remove(0);
    let second = lab.launch(&in_store, 1, "")?.remove(0);
    let (root, data) = (lab.volume(&first, "/dev/xvda")?, lab.volume(&first, "/dev/sdf")?);
    ensure!(root.starts_with("vol-") && data.starts_with("vol-"), "volumes: {root:?}, {data:?}");
    lab.agent.wait_for_console(&first, "user data has run 1")?;
    let mut of_first = lab.run(&first, "", WRITE)?;
    let written = "echo mine >/root/note; sync";
    let mut of_second = lab.run(&second, "", written)?;

    // A reboot keeps all.
    lab.ec2(&format!("reboot-instances --instance-ids {first} {second}"))?;
    of_first = lab.run(&first, &of_first.boot, READ)?;
    ensure!(of_first.lines == ["mine", "on the volume", "mine"], "after a reboot: {of_first:?}");
    of_second = lab.run(&second, &of_second.boot, "cat /root/note")?;
    ensure!(of_second.lines == ["mine"], "after a reboot: {of_second:?}");

    // A stop keeps what is on volumes.
    lab.stop_and_start(&first)?;
    of_first = lab.run(&first, &of_first.boot, READ)?;
    ensure!(of_first.lines == ["mine", "on the volume", "nothing"], "after a stop: {of_first:?}");
    let refused = lab.agent.try_aws(&["ec2", "stop-instances", "--instance-ids", &second])?;
    let errors = String::from_utf8_lossy(&refused.stderr);
    let words =
        format!("The instance '{second}' does not have an 'ebs' root device type and cannot be stopped");
    ensure!(!refused.status.success() && errors.contains(&words), "{errors}");
    ensure!(errors.contains("UnsupportedOperation"), "{errors}");

    // An image of it, which is made while it is down for a reboot.
    let copy = lab.ec2(&format!("create-image --instance-id {first} --name micro-copy --query ImageId"))?;
    lab.ec2(&format!("wait image-available --image-ids {copy}"))?;
    of_first = lab.run(&first, &of_first.boot, "echo later >/root/note; sync; cat /root/note")?;
    ensure!(of_first.lines == ["later"], "{of_first:?}");
    let copies = lab.launch(&copy, 2, "")?;
    let mut identities = BTreeSet::new();
    for id in &copies {
        // The file in which runs are counted is a copy too.
        lab.agent.wait_for_console(id, "user data has run 2")?;
        let read =
            "cat /root/note; head -c 13 $(find_disk vol 2) | tr -d '\\000'; echo; cat /root/runs | wc -l";
        let seen = lab.run(id, "", read)?;
        ensure!(seen.lines == ["mine", "on the volume", "2"], "a copy has {seen:?}");
        let identity = "hostname; cat /var/lib/ec2/instance-id; md5sum </var/lib/dropbear/ed25519";
        let seen = lab.run(id, "", identity)?;
        ensure!(seen.lines.get(1) == Some(id), "{id} takes itself for another: {seen:?}");
        identities.extend(seen.lines);
    }
    ensure!(identities.len() == 6, "copies have something in common: {identities:?}");

    // What goes with an instance, and what does not.
    lab.ec2(&format!("terminate-instances --instance-ids {first} {second} {}", copies[1]))?;
    lab.ec2(&format!("wait instance-terminated --instance-ids {first} {second} {}", copies[1]))?;
    let left =
        lab.ec2("describe-volumes --filters Name=status,Values=available --query Volumes[].VolumeId")?;
    let left: Vec<&str> = left.split_whitespace().collect();
    ensure!(left.contains(&data.as_str()) && !left.contains(&root.as_str()), "volumes: {left:?}");
    let words = format!("attach-volume --volume-id {data} --instance-id {} --device /dev/sdh", copies[0]);
    lab.ec2(&words)?;
    lab.ec2(&format!("wait volume-in-use --volume-ids {data}"))?;
    let serial = data.replace('-', "");
    let read = format!(
        "for wait in 1 2 3 4 5 6 7 8 9 10; do disk=$(find_disk {serial} 2); [ -n \"$disk\" ] && break; sleep 0.5; done; \
         head -c 13 $disk"
    );
    let seen = lab.run(&copies[0], "", &read)?;
    ensure!(seen.lines == ["on the volume"], "the volume has {seen:?}");

    // And when all is deleted, nothing is left.
    lab.ec2(&format!("terminate-instances --instance-ids {}", copies[0]))?;
    lab.ec2(&format!("wait instance-terminated --instance-ids {}", copies[0]))?;
    for image in [&copy, &image, &in_store] {
        lab.ec2(&format!("deregister-image --image-id {image} --delete-associated-snapshots"))?;
    }
    let volumes = lab.ec2("describe-volumes --query Volumes[].VolumeId")?;
    for volume in volumes.split_whitespace() {
        lab.ec2(&format!("delete-volume --volume-id {volume}"))?;
    }
    ensure!(lab.ec2("describe-snapshots --owner-ids self --query Snapshots[].SnapshotId")?.is_empty());
    lab.agent.wait_for_layers(0)
}

/// How often a volume comes and goes.
fn rounds() -> Result<usize> {
    match std::env::var("INNKEEPER_ATTACH_ROUNDS") {
        Ok(text) => Ok(text.parse()?),
        Err(_) => Ok(2),
    }
}

/// What a guest does for ever: it writes to each volume of 2 GiB that it has, as long as it has it, and says on its console
/// when one has come, and how many have. Where a device was, dd makes a file if it comes too late.
const WRITING: &str = r#"sh -c 'trap "" HUP; came=0; while true; do sleep 0.1; for disk in /sys/block/vd*; do
    [ "$(cat $disk/size 2>/dev/null)" = 4194304 ] || continue
    serial=$(cat $disk/serial) device=/dev/${disk##*/} is_new=1
    while [ -b $device ] && dd if=/dev/zero of=$device bs=64k count=32 conv=notrunc,fsync 2>/dev/null; do
        [ -z "$is_new" ] || { is_new= came=$((came+1)); echo "wrote to $serial, number $came." >/dev/console; }
    done
    [ ! -f $device ] || rm $device
done; done' >/dev/null 2>&1 </dev/null &"#;

/// A volume is attached to a running guest, used, and detached while the guest writes to it, again and again; a snapshot
/// is taken meanwhile now and then.
#[test]
fn a_volume_comes_and_goes_while_its_guest_writes() -> Result<()> {
    let lab = Lab::new()?;
    let image = lab.agent.register("micro", &lab.agent.micro()?)?;
    let id = lab.launch(&image, 1, "")?.remove(0);
    // The real aws takes longer than what it asks for.
    let client = lab.agent.client()?;
    let made = client.ask("CreateVolume", &[("Size", "2"), ("AvailabilityZone", &format!("{REGION}a"))])?;
    let volume = texts(&made, "volumeId").into_iter().next().context("a volume")?;
    let boot = lab.run(&id, "", WRITING)?.boot;
    let serial = volume.replace('-', "");
    let wait = |action: &str, wanted: &str| -> Result<()> {
        let named = [("Filter.1.Name", "volume-id"), ("Filter.1.Value.1", volume.as_str())];
        let deadline = Instant::now() + PATIENCE;
        loop {
            let answer = client.ask(action, &named)?;
            if answer.contains(&format!("<status>{wanted}</status>")) {
                return Ok(());
            }
            ensure!(Instant::now() < deadline, "it is not {wanted}: {answer}{}", lab.agent.last_words());
            std::thread::sleep(Duration::from_millis(50));
        }
    };
    let descriptors = || -> Result<usize> {
        let pid = lab.agent.vmms()?.first().copied().context("a VMM")?;
        Ok(Path::new("/proc").join(pid.to_string()).join("fd").read_dir()?.count())
    };
    let before = descriptors()?;
    let rounds = rounds()?;
    for round in 1..=rounds {
        let attach = [("VolumeId", volume.as_str()), ("InstanceId", &id), ("Device", "/dev/sdf")];
        client.ask("AttachVolume", &attach)?;
        // It is used, and goes on being used.
        let used = format!("wrote to {serial}, number {round}.");
        lab.agent.wait_for_console(&id, &used).with_context(|| format!("round {round}"))?;
        wait("DescribeVolumes", "attached")?;
        if round % 2 == 0 {
            let taken = client.ask("CreateSnapshot", &[("VolumeId", &volume)])?;
            wait("DescribeSnapshots", "completed")?;
            let snapshot = texts(&taken, "snapshotId").into_iter().next().context("a snapshot")?;
            client.ask("DeleteSnapshot", &[("SnapshotId", &snapshot)])?;
        }
        client.ask("DetachVolume", &[("VolumeId", &volume)])?;
        wait("DescribeVolumes", "available").with_context(|| format!("round {round}"))?;
    }
    println!("{rounds} rounds");
    ensure!(lab.run(&id, "", "true")?.boot == boot, "the guest has started anew");
    let after = descriptors()?;
    ensure!(after == before, "the VMM had {before} descriptors, and has {after}");
    client.ask("DeleteVolume", &[("VolumeId", &volume)])?;
    client.ask("TerminateInstances", &[("InstanceId.1", &id)])?;
    lab.agent.wait_for_vmms(0)?;
    // Those of the image.
    lab.agent.wait_for_layers(1)
}
