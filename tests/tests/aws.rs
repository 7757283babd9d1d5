//! The real daemon and the real clients, with real guests: the `micro` image. For a host with hardware KVM, or the lab.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::net::Ipv4Addr;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use innkeeper_tests::agent::{Agent, Template};
use innkeeper_tests::ec2::texts;
use innkeeper_tests::network::Place;
use innkeeper_tests::network::echo::Attempt;
use innkeeper_tests::{aws, image, path};

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

/// A type with room for a real kernel, an instance store, and little bandwidth: 1 MB in a second.
const REAL: &str = "[[instance-types]]\nname = \"lab.real\"\nvcpus = 1\nmemory = 256\nbandwidth = 8\n\
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
fn with_profile(agent: &Agent, directory: &Path, profile: &str) -> Result<Template> {
    let template = agent.micro()?;
    fs::create_dir(directory)?;
    fs::copy(template.location.join("vmlinux"), directory.join("vmlinux"))?;
    let root = directory.join("root");
    fs::create_dir_all(root.join("etc"))?;
    fs::write(root.join("etc/profile"), profile)?;
    // What an instance does of itself is not to be in the way.
    fs::write(root.join("etc/ec2"), "#!/bin/sh\n")?;
    fs::set_permissions(root.join("etc/ec2"), PermissionsExt::from_mode(0o755))?;
    // Linux unpacks archives that follow one another, the last file of a name wins.
    let pack = "find . | cpio --quiet --create --format=newc --owner=0:0";
    let packed = Command::new("sh").args(["-c", pack]).current_dir(&root).output()?;
    ensure!(packed.status.success(), "{}", String::from_utf8_lossy(&packed.stderr));
    fs::copy(image("micro", "initrd.img"), directory.join("initrd.img"))?;
    File::options().append(true).open(directory.join("initrd.img"))?.write_all(&packed.stdout)?;
    Ok(Template { location: directory.to_owned(), banner: "micro: ready" })
}

/// What a guest writes to its instance store is there after a reboot, with another agent, and not after a stop.
#[test]
fn a_guest_finds_its_instance_store_again_until_it_stops() -> Result<()> {
    let mut agent = Agent::start(REAL)?;
    let directory = tempfile::tempdir_in(agent.run_directory().with_file_name("import"))?;
    let template = with_profile(&agent, &directory.path().join("micro"), PROFILE)?;
    let image = agent.register("stored", &template)?;
    let id = agent.client()?.launch(&image, "lab.real")?;
    agent.wait_for_console(&id, "ephemeral0 has: nothing")?;
    agent.kill()?;
    agent.resume()?;
    agent.client()?.ask("RebootInstances", &[("InstanceId.1", &id)])?;
    agent.wait_for_console(&id, "ephemeral0 has: of this guest")?;
    let client = agent.client()?;
    for (action, state) in [("StopInstances", "stopped"), ("StartInstances", "running")] {
        client.ask(action, &[("InstanceId.1", &id)])?;
        client.wait_for(std::slice::from_ref(&id), state, PATIENCE)?;
    }
    agent.wait_for_console(&id, "ephemeral0 has: nothing")?;

    // With its root there, a guest that switches itself off is terminated.
    let image = agent.register_in_store("root", &template)?;
    let id = client.launch(&image, "lab.real")?;
    agent.wait_for_console(&id, "root has: nothing")?;
    client.ask("RebootInstances", &[("InstanceId.1", &id)])?;
    client.wait_for(std::slice::from_ref(&id), "terminated", PATIENCE)?;
    agent.wait_for_console(&id, "root has: of this guest")?;
    Ok(())
}

/// What a shell does first that has a network: it answers at two ports, and says what it has got.
const NETWORK: &str = r#"
export HOME=/root PATH=/bin
nc -ll -p 8080 -e cat &
nc -ll -p 8081 -e cat &
nc -ll -p 8082 -e dd if=/dev/zero bs=4096 count=1024 &
while ! ip -4 address show dev eth0 | grep -q inet; do sleep 0.2; done
echo "address: $(ip -4 -o address show dev eth0 | tr -s ' ' | cut -d' ' -f4)"
echo "mtu: $(cat /sys/class/net/eth0/mtu)"
echo "name: $(hostname)"
nslookup $(hostname).ec2.internal
OTHERS
PS1='micro# '
"#;

/// A stock kernel's own virtio-net and DHCP, which `stand-in-vmm` has none of.
#[test]
fn real_guests_get_their_addresses_and_only_what_is_allowed() -> Result<()> {
    let agent = Agent::start(REAL)?;
    let client = agent.client()?;
    let directory = tempfile::tempdir_in(agent.run_directory().with_file_name("import"))?;
    let launch = |name: &str, others: &str| -> Result<(String, String)> {
        let profile = NETWORK.replace("OTHERS", others);
        let template = with_profile(&agent, &directory.path().join(name), &profile)?;
        let id = client.launch(&agent.register(name, &template)?, "lab.real")?;
        let described = client.ask("DescribeInstances", &[("InstanceId.1", &id)])?;
        let private = texts(&described, "privateIpAddress").into_iter().next().context("an address")?;
        Ok((id, private))
    };
    let (first, address) = launch("first", "")?;
    agent.wait_for_console(&first, &format!("address: {address}/20"))?;
    agent.wait_for_console(&first, "mtu: 9001")?;
    // It drives its interface, and so its check is passed when it answers there.
    let deadline = Instant::now() + PATIENCE;
    while !client
        .ask("DescribeInstanceStatus", &[("InstanceId.1", &first)])?
        .contains("<status>passed</status>")
    {
        ensure!(Instant::now() < deadline, "its checks are not passed: {}", agent.last_words());
        std::thread::sleep(Duration::from_millis(100));
    }
    let name = format!("ip-{}", address.replace('.', "-"));
    agent.wait_for_console(&first, &format!("name: {name}"))?;
    agent.wait_for_console(&first, &format!("Name:\t{name}.ec2.internal"))?;

    // Its neighbour reaches it, in packets of every size.
    let other = format!(
        "ping -c 1 {address} >/dev/null && echo \"reached: small\"; ping -c 1 -s 8900 {address} >/dev/null && echo \
         \"reached: large\"; echo hello | nc -w 5 {address} 8080 | grep -q hello && echo \"reached: tcp\""
    );
    let (second, _) = launch("second", &other)?;
    for what in ["small", "large", "tcp"] {
        agent.wait_for_console(&second, &format!("reached: {what}"))?;
    }

    // The host does, at the port that it is allowed.
    let described = client.ask("DescribeInstances", &[("InstanceId.1", &first)])?;
    let public: Ipv4Addr =
        texts(&described, "ipAddress").into_iter().next().context("a public address")?.parse()?;
    let group = texts(&described, "groupId").into_iter().next().context("a group")?;
    let rule = [
        ("GroupId", group.as_str()),
        ("IpPermissions.1.IpProtocol", "tcp"),
        ("IpPermissions.1.FromPort", "8081"),
        ("IpPermissions.1.ToPort", "8082"),
        ("IpPermissions.1.IpRanges.1.CidrIp", "0.0.0.0/0"),
    ];
    client.ask("AuthorizeSecurityGroupIngress", &rule)?;
    let host = Place::here()?;
    host.connect(public, 8081, PATIENCE)?.connected()?.echo(b"hello from the host")?;
    ensure!(matches!(host.connect(public, 8080, Duration::from_secs(2))?, Attempt::TimedOut));

    // As fast as its type may be: 4 MiB at 1 MB/s, of which a tenth of a second's worth may come at once.
    let mut stream = host.connect(public, 8082, PATIENCE)?.connected()?.into_stream();
    let (begun, mut bytes) = (Instant::now(), Vec::new());
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.read_to_end(&mut bytes)?;
    let time = begun.elapsed();
    ensure!(bytes.len() == 4 << 20, "{} bytes", bytes.len());
    ensure!((3.5..20.0).contains(&time.as_secs_f64()), "4 MiB at 1 MB/s took {time:?}");
    Ok(())
}

/// User data that counts its runs.
const COUNTING: &str =
    "#!/bin/bash\necho run >>/root/runs\necho \"$(hostname) has run $(wc -l </root/runs)\"\n";

/// What somebody looks at who has logged in: what was made of metadata and disks.
const LOOK: &str = "hostname; wc -l </root/runs; ls /mnt/ephemeral0; \
                    wget -q -O - http://169.254.169.254/latest/meta-data/ 2>&1; touch /mnt/ephemeral0/seen; sync";

/// An instance is what its metadata says, which it only gets with a token; and it was started for the first time once.
#[test]
fn a_guest_is_what_its_metadata_says() -> Result<()> {
    let agent = Agent::start(REAL)?;
    let client = agent.client()?;
    let image = agent.register("micro", &agent.micro()?)?;
    let directory = tempfile::tempdir()?;
    let key = directory.path().join("me.pem");
    agent.command(&["key", "create", "me", "--file", path(&key)])?;
    let launch = [
        ("ImageId", image.as_str()),
        ("InstanceType", "lab.real"),
        ("MinCount", "1"),
        ("MaxCount", "1"),
        ("KeyName", "me"),
        ("MetadataOptions.HttpTokens", "required"),
        ("UserData", &BASE64_STANDARD.encode(COUNTING)),
    ];
    let launched = client.ask("RunInstances", &launch)?;
    let first = |element| texts(&launched, element).into_iter().next().context(element);
    let (id, group, address) = (first("instanceId")?, first("groupId")?, first("privateIpAddress")?);
    let rule = [
        ("GroupId", group.as_str()),
        ("IpPermissions.1.IpProtocol", "tcp"),
        ("IpPermissions.1.FromPort", "22"),
        ("IpPermissions.1.ToPort", "22"),
        ("IpPermissions.1.IpRanges.1.CidrIp", "0.0.0.0/0"),
    ];
    client.ask("AuthorizeSecurityGroupIngress", &rule)?;
    let name = format!("ip-{}", address.replace('.', "-"));
    agent.wait_for_console(&id, &format!("{name} has run 1"))?;
    agent.wait_for_console(&id, "micro: user data ended with status 0")?;

    let refused = "wget: server returned error: HTTP/1.1 401 Unauthorized";
    let (mut boot, seen) = agent.run_in_guest(&id, &key, "", LOOK)?;
    ensure!(seen == [&name, "1", "lost+found", refused], "at first: {seen:?}");
    client.ask("RebootInstances", &[("InstanceId.1", &id)])?;
    let seen;
    (boot, seen) = agent.run_in_guest(&id, &key, &boot, LOOK)?;
    ensure!(seen == [&name, "1", "lost+found", "seen", refused], "after a reboot: {seen:?}");
    for (action, state) in [("StopInstances", "stopped"), ("StartInstances", "running")] {
        client.ask(action, &[("InstanceId.1", &id)])?;
        client.wait_for(std::slice::from_ref(&id), state, PATIENCE)?;
    }
    let (_, seen) = agent.run_in_guest(&id, &key, &boot, LOOK)?;
    ensure!(seen == [&name, "1", "lost+found", refused], "after a stop: {seen:?}");
    Ok(())
}
