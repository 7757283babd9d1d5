//! The real daemon and the real clients, with real guests: the `micro` image. For a host with hardware KVM, or the lab.

use std::fs::{self, File};
use std::io::Write;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use innkeeper_tests::agent::{Agent, Template};
use innkeeper_tests::{aws, image};

const PATIENCE: Duration = Duration::from_secs(180);

#[test]
fn the_documented_commands_do_what_they_say() -> Result<()> {
    let agent = Agent::start("")?;
    let template = agent.micro()?;
    let image = agent.register("micro", &template)?;
    aws::life(&agent, &image, &template)
}

#[test]
fn instances_live_in_boto3s_resources() -> Result<()> {
    let agent = Agent::start("")?;
    let template = agent.micro()?;
    let image = agent.register("micro", &template)?;
    agent.run_suite("life", &image, &template)?;
    agent.wait_for_vmms(0)
}

/// A type with room for a real kernel, and an instance store.
const REAL: &str = "[[instance-types]]\nname = \"lab.real\"\nvcpus = 1\nmemory = 256\n\
                    instance-store = { disks = 1, size = 1 }";

/// What a shell of the `micro` image does first: it says what it finds at the beginning of the disk with a serial number,
/// and leaves something there. A guest that finds that on its root disk switches itself off.
const PROFILE: &str = r#"
export HOME=/root PATH=/bin
for serial in root ephemeral0; do
    for disk in /sys/block/vd*; do
        [ "$(cat $disk/serial)" = $serial ] || continue
        found=$(head -c 13 /dev/${disk##*/} | tr -d '\000')
        echo "$serial has: ${found:-nothing}"
        printf 'of this guest' >/dev/${disk##*/}
        sync
        [ $serial != root ] || [ -z "$found" ] || poweroff
    done
done
PS1='micro# '
"#;

/// The `micro` image with this profile.
fn with_profile(agent: &Agent, directory: &Path) -> Result<Template> {
    let template = agent.micro()?;
    fs::create_dir(directory)?;
    fs::copy(template.location.join("vmlinux"), directory.join("vmlinux"))?;
    let root = directory.join("root");
    fs::create_dir_all(root.join("etc"))?;
    fs::write(root.join("etc/profile"), PROFILE)?;
    // Linux unpacks archives that follow one another, the last file of a name wins.
    let pack = "find . | cpio --quiet --create --format=newc --owner=0:0";
    let packed = Command::new("sh").args(["-c", pack]).current_dir(&root).output()?;
    ensure!(packed.status.success(), "{}", String::from_utf8_lossy(&packed.stderr));
    fs::copy(image("micro", "initrd.img"), directory.join("initrd.img"))?;
    File::options().append(true).open(directory.join("initrd.img"))?.write_all(&packed.stdout)?;
    Ok(Template { location: directory.to_owned(), banner: "micro: ready" })
}

/// Waits until a console has this.
fn wait_for_console(agent: &Agent, id: &str, text: &str) -> Result<()> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let console = agent.client()?.console(id)?;
        if console.contains(text) {
            return Ok(());
        }
        ensure!(Instant::now() < deadline, "{id} does not say {text:?}: {console}{}", agent.last_words());
        std::thread::sleep(Duration::from_millis(100));
    }
}

/// What a guest writes to its instance store is there after a reboot, with another agent, and not after a stop.
#[test]
fn a_guest_finds_its_instance_store_again_until_it_stops() -> Result<()> {
    let mut agent = Agent::start(REAL)?;
    let directory = tempfile::tempdir_in(agent.run_directory().with_file_name("import"))?;
    let template = with_profile(&agent, &directory.path().join("micro"))?;
    let image = agent.register("stored", &template)?;
    let id = agent.client()?.launch(&image, "lab.real")?;
    wait_for_console(&agent, &id, "ephemeral0 has: nothing")?;
    agent.kill()?;
    agent.resume()?;
    agent.client()?.ask("RebootInstances", &[("InstanceId.1", &id)])?;
    wait_for_console(&agent, &id, "ephemeral0 has: of this guest")?;
    let client = agent.client()?;
    for (action, state) in [("StopInstances", "stopped"), ("StartInstances", "running")] {
        client.ask(action, &[("InstanceId.1", &id)])?;
        client.wait_for(std::slice::from_ref(&id), state, PATIENCE)?;
    }
    wait_for_console(&agent, &id, "ephemeral0 has: nothing")?;

    // With its root there, a guest that switches itself off is terminated.
    let image = agent.register_in_store("root", &template)?;
    let id = client.launch(&image, "lab.real")?;
    wait_for_console(&agent, &id, "root has: nothing")?;
    client.ask("RebootInstances", &[("InstanceId.1", &id)])?;
    client.wait_for(std::slice::from_ref(&id), "terminated", PATIENCE)?;
    wait_for_console(&agent, &id, "root has: of this guest")?;
    Ok(())
}
