//! A whole Debian with stock cloud-init, as an instance: it finds out by itself that it is in EC2, configures itself by what
//! the metadata service tells, and runs its user data once. It takes minutes in the lab for each time that it boots.

use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use innkeeper_tests::agent::Agent;
use innkeeper_tests::ec2::Client;
use innkeeper_tests::{image, path};

const PATIENCE: Duration = Duration::from_secs(900);

/// Enough for cloud-init and for boto3, which is large.
const TYPE: &str = "lab.medium";
const CONFIGURATION: &str = "[[instance-types]]\nname = \"lab.medium\"\nvcpus = 1\nmemory = 1024";

/// What counts how often it was run.
const USER_DATA: &str = "#!/bin/sh\necho ran >>/root/user-data\n";

/// The instance, and how to be in it.
struct Debian {
    agent: Agent,
    client: Client,
    id: String,
    key: tempfile::TempDir,
    begun: Instant,
}

impl Debian {
    /// Launches it, with these further words of `innkeeper run`, on an agent that was prepared.
    fn launch(more: &[&str], prepare: impl FnOnce(&Agent) -> Result<()>) -> Result<Self> {
        let begun = Instant::now();
        let agent = Agent::start(CONFIGURATION)?;
        prepare(&agent)?;
        let key = tempfile::tempdir()?;
        // The disk and nothing else: it says itself what it boots.
        let directory = tempfile::tempdir_in(agent.run_directory().with_file_name("import"))?;
        let copied = Command::new("cp")
            .arg("--sparse=always")
            .args([image("debian-12", "disk.raw").as_path(), directory.path()])
            .status()?;
        ensure!(copied.success(), "the disk was not copied");
        let (key_file, user_data) = (key.path().join("mine.pem"), key.path().join("user-data"));
        std::fs::write(&user_data, USER_DATA)?;
        agent.command(&["key", "create", "mine", "--file", path(&key_file)])?;
        agent.command(&["image", "register", path(directory.path()), "--name", "debian-12"])?;
        let run =
            ["run", "debian-12", "--type", TYPE, "--name", "web", "--key", "mine", "--quiet", "--user-data"];
        let id = agent.command(&[&run[..], &[path(&user_data)], more].concat())?;
        let client = agent.client()?;
        let debian = Self { agent, client, id, key, begun };
        debian.wait_until_configured("launched")?;
        Ok(debian)
    }

    /// Runs a command in it. None, if nobody can log in.
    fn try_ssh(&self, line: &str) -> Result<Option<String>> {
        let key = self.key.path().join("mine.pem");
        let ssh = self.agent.try_command(&["ssh", "web", "--identity", path(&key), "--", line])?;
        // 255 is ssh's own.
        Ok((ssh.status.code() != Some(255) && ssh.status.code() != Some(1))
            .then(|| String::from_utf8_lossy(&ssh.stdout).trim_end().to_owned()))
    }

    fn ssh(&self, line: &str) -> Result<String> {
        let said = self.try_ssh(&format!("{line} || echo failed"))?.context("nobody can log in")?;
        ensure!(!said.ends_with("failed"), "{line}: {said}{}", self.last_words());
        Ok(said)
    }

    fn last_words(&self) -> String {
        self.client.console(&self.id).unwrap_or_default() + &self.agent.last_words()
    }

    /// Waits until one can log in and cloud-init has come to its end.
    fn wait_until_configured(&self, how: &str) -> Result<()> {
        let deadline = Instant::now() + PATIENCE;
        // An older boot may be there for a moment.
        while self.try_ssh("test -e /run/ended || cloud-init status --wait >/dev/null")?.is_none() {
            ensure!(Instant::now() < deadline, "{how}, and nobody can log in: {}", self.last_words());
            std::thread::sleep(Duration::from_secs(2));
        }
        println!("{how}: configured after {:.0} s", self.begun.elapsed().as_secs_f64());
        Ok(())
    }

    /// Does something that makes an end of this boot, and waits for the next.
    fn boot_again(&self, how: &str, action: impl FnOnce() -> Result<()>) -> Result<()> {
        let boot = self.ssh("cat /proc/sys/kernel/random/boot_id")?;
        action()?;
        let deadline = Instant::now() + PATIENCE;
        while self.try_ssh("cat /proc/sys/kernel/random/boot_id")?.is_none_or(|now| now == boot) {
            ensure!(Instant::now() < deadline, "{how}, and it is the same boot: {}", self.last_words());
            std::thread::sleep(Duration::from_secs(2));
        }
        self.wait_until_configured(how)
    }
}

#[test]
#[ignore = "a quarter of an hour long; scripts/test full runs it"]
fn stock_cloud_init_configures_its_instance_once() -> Result<()> {
    let debian = Debian::launch(&[], |_| Ok(()))?;
    let described = debian.agent.command(&["describe", "web", "--output", "json"])?;
    let address = described.split("\"privateIpAddress\": \"").nth(1).and_then(|rest| rest.split('"').next());
    let name = format!("ip-{}", address.context("an address")?.replace('.', "-"));

    // By itself: nothing tells it, neither on the command line nor on a disk.
    ensure!(!debian.ssh("cat /proc/cmdline")?.contains("ds="));
    let detected = debian.ssh("sudo cat /run/cloud-init/ds-identify.log")?;
    ensure!(
        detected.contains("Found single datasource: Ec2") || detected.contains("DSLIST=[Ec2"),
        "{detected}"
    );
    let status = debian.ssh("cloud-init status --long")?;
    ensure!(status.contains("DataSourceEc2Local") && status.contains("status: done"), "{status}");
    ensure!(debian.ssh("cloud-id")? == "aws");
    ensure!(debian.ssh("hostname")? == name);
    ensure!(debian.ssh("id -un")? == "admin");
    ensure!(debian.ssh("cloud-init query instance_id")? == debian.id);
    ensure!(debian.ssh("sudo cat /root/user-data")? == "ran");

    let all = debian.ssh("ec2-metadata --all")?;
    for line in [format!("instance-id: {}", debian.id), format!("local-hostname: {name}.ec2.internal")] {
        ensure!(all.contains(&line), "{all}");
    }

    debian.boot_again("rebooted by the API", || {
        debian.client.ask("RebootInstances", &[("InstanceId.1", &debian.id)]).map(drop)
    })?;
    debian.boot_again("rebooted from inside", || debian.try_ssh("sudo systemctl reboot").map(drop))?;
    debian.boot_again("stopped and started", || {
        debian.agent.command(&["stop", "web", "--wait"])?;
        debian.agent.command(&["start", "web", "--wait"]).map(drop)
    })?;
    ensure!(debian.ssh("sudo cat /root/user-data")? == "ran", "the user data ran again");
    ensure!(debian.ssh("hostname")? == name);
    Ok(())
}

/// What the guest does with its role. Debian's boto3 is older than the variable that names an endpoint.
const BOTO3: &str = r#"
import boto3
from botocore.exceptions import ClientError
ec2 = boto3.client("ec2", region_name="us-east-1", endpoint_url="http://ec2.us-east-1.innkeeper.internal")
ids = [one["InstanceId"] for each in ec2.describe_instances()["Reservations"] for one in each["Instances"]]
print("described", *ids)
try:
    ec2.stop_instances(InstanceIds=ids)
except ClientError as error:
    print(error.response["Error"]["Code"])
"#;

#[test]
#[ignore = "minutes long; scripts/test full runs it"]
fn boto3_in_a_whole_debian_has_the_role_of_its_instance() -> Result<()> {
    let debian =
        Debian::launch(&["--profile", "watcher"], |agent| agent.make_role("watcher", "ec2:Describe*"))?;
    let said = debian.ssh(&format!("python3 -c '{BOTO3}'"))?;
    ensure!(said == format!("described {}\nUnauthorizedOperation", debian.id), "{said}");
    Ok(())
}
