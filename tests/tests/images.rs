//! Disks as distributions have them, from a qcow2 file to a guest that was given no kernel: what the disk itself says is
//! booted, also after a reboot. The disks are those of the image `debian-disks`, each a whole Debian, which takes a minute
//! or more in the lab.

use std::fs;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use innkeeper_tests::agent::Agent;
use innkeeper_tests::ec2::Client;
use innkeeper_tests::{image, path};

const PATIENCE: Duration = Duration::from_secs(1200);

/// Enough for a Debian that does nothing.
const TYPE: &str = "lab.small";
const CONFIGURATION: &str = "[[instance-types]]\nname = \"lab.small\"\nvcpus = 1\nmemory = 512";

/// An instance of a disk.
struct Guest {
    agent: Agent,
    client: Client,
    id: String,
    begun: Instant,
}

impl Guest {
    /// Imports a disk, and launches an instance of it.
    fn launch(disk: &str) -> Result<Self> {
        let begun = Instant::now();
        let file = image("debian-disks", &format!("{disk}.qcow2"));
        let reader = image("boot-reader", "vmlinux");
        let reader = reader.parent().context("a directory")?;
        let agent = Agent::start(&format!("boot-reader = {reader:?}\n{CONFIGURATION}"))?;
        let image = agent.command(&["image", "import", path(&file), "--format", "qcow2", "--name", disk])?;
        println!("imported in {:.1} s", begun.elapsed().as_secs_f64());
        let client = agent.client()?;
        let id = client.launch(&image, TYPE)?;
        client.wait_for(std::slice::from_ref(&id), "running", PATIENCE)?;
        let guest = Self { agent, client, id, begun };
        guest.tell("running");
        Ok(guest)
    }

    fn tell(&self, what: &str) {
        println!("{what} after {:.1} s", self.begun.elapsed().as_secs_f64());
    }

    /// Waits until the guest has said something, and returns what it has said so far. Meanwhile it is running, as far as
    /// one can see from outside.
    fn wait_for(&self, report: &str) -> Result<String> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let console = self.client.console(&self.id)?;
            let described = self.client.ask("DescribeInstances", &[("InstanceId.1", &self.id)])?;
            let last_words = || format!("{console}\n{described}{}", self.agent.last_words());
            ensure!(described.contains("<name>running</name>"), "it does not run: {}", last_words());
            if console.contains(report) {
                self.tell(report);
                return Ok(console);
            }
            ensure!(!console.contains("report: cannot"), "{}", last_words());
            ensure!(Instant::now() < deadline, "{report:?} is not in: {}", last_words());
            std::thread::sleep(Duration::from_secs(1));
        }
    }
}

/// The version of a kernel of the disks: the one `before` and the one `after` another is installed.
fn version(which: &str) -> Result<String> {
    Ok(fs::read_to_string(image("debian-disks", which))?.trim().to_owned())
}

/// A kernel that is installed in a guest, by the scripts of its package, is the one that runs after `reboot`. The disk is one
/// file system.
fn boots_the_kernel_that_was_installed_last(file_system: &str) -> Result<()> {
    let guest = Guest::launch(file_system)?;
    let vmms = guest.agent.vmms()?;
    let report = |version: &str| {
        format!("report: Linux {version}; / is {file_system} /dev/vda2, /boot is {file_system} /dev/vda2")
    };
    guest.wait_for(&report(&version("before")?))?;
    guest.wait_for("report: installed another kernel")?;
    let console = guest.wait_for(&report(&version("after")?))?;
    ensure!(console.matches("report: Linux").count() == 2, "more than one reboot: {console}");
    ensure!(guest.agent.vmms()? == vmms, "another VMM runs it");
    Ok(())
}

#[test]
#[ignore = "minutes long; scripts/test full runs it"]
fn a_reboot_boots_the_kernel_that_was_installed_last() -> Result<()> {
    boots_the_kernel_that_was_installed_last("ext4")
}

/// The host does not read XFS: a guest that is thrown away does so, when the image is registered, at each start and at each
/// reboot.
#[test]
#[ignore = "minutes long; scripts/test full runs it"]
fn everything_can_be_on_xfs() -> Result<()> {
    boots_the_kernel_that_was_installed_last("xfs")
}

#[test]
#[ignore = "a minute long; scripts/test full runs it"]
fn boot_has_a_file_system_of_its_own() -> Result<()> {
    let guest = Guest::launch("boot")?;
    let report = "/ is ext4 /dev/vda3, /boot is ext4 /dev/vda2";
    guest.wait_for(&format!("report: Linux {}; {report}", version("before")?))?;
    Ok(())
}
