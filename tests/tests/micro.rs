//! Real guests: the `micro` image, with Debian's unmodified kernel. For a host with hardware KVM, or the lab.

use std::fs::File;
use std::io::{Read, Write};
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use innkeeper_tests::network::Namespace;
use innkeeper_tests::{Shell, Vmm, disk, image, path, program, toolbox};
use nix::sys::signal::Signal;

const PATIENCE: Duration = Duration::from_secs(60);
const MIB: usize = 1 << 20;

/// Random content, the same each time.
fn random(size: usize) -> Vec<u8> {
    let mut state = 0x1234_5678_9abc_def0u64;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state
    };
    (0..size / 8).flat_map(|_| next().to_le_bytes()).collect()
}

fn disk_image(content: &[u8]) -> Result<tempfile::NamedTempFile> {
    let mut file = tempfile::NamedTempFile::new()?;
    file.write_all(content)?;
    Ok(file)
}

fn checksum(bytes: &[u8]) -> Result<String> {
    let mut child = Command::new("sha256sum").stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
    child.stdin.take().context("a pipe")?.write_all(bytes)?;
    let output = child.wait_with_output()?;
    Ok(String::from_utf8(output.stdout)?.split(' ').next().unwrap_or_default().into())
}

fn read(path: &Path) -> Result<Vec<u8>> {
    let mut content = Vec::new();
    File::open(path)?.read_to_end(&mut content)?;
    Ok(content)
}

/// What is written is what is read, in both directions; discarded space is given back.
#[test]
fn disks_keep_what_they_are_given() -> Result<()> {
    let content = random(4 * MIB);
    let fixed = disk_image(&content)?;
    let scratch = disk_image(&vec![0xff; 8 * MIB])?;
    let mut guest = Shell::micro(&[
        "--disk",
        &disk(fixed.path(), ",readonly=on,serial=vol0123456789abcdef0"),
        "--disk",
        &disk(scratch.path(), ""),
    ])?;
    assert_eq!(guest.run("sha256sum </dev/vda")?.split(' ').next(), Some(checksum(&content)?.as_str()));
    assert_eq!(guest.run("cat /sys/block/vda/serial")?, "vol0123456789abcdef0");
    assert_eq!(
        guest.run("cat /sys/block/vda/ro /sys/block/vdb/ro /sys/block/vdb/size")?,
        format!("1\n0\n{}", 8 * MIB / 512)
    );
    assert!(
        guest.run("dd if=/dev/zero of=/dev/vda count=1 conv=fsync").is_err(),
        "a read-only disk was written"
    );

    let inside = guest
        .run("dd if=/dev/urandom of=/dev/vdb bs=64k count=64 conv=fsync 2>/dev/null; sha256sum </dev/vdb")?;
    assert_eq!(inside.split(' ').next(), Some(checksum(&read(scratch.path())?)?.as_str()));

    // Odd sizes and places, through the page cache and around it.
    guest.run("dd if=/dev/vda of=/dev/vdb bs=512 skip=3 seek=11 count=77 oflag=direct 2>/dev/null; sync")?;
    assert_eq!(read(scratch.path())?[11 * 512..88 * 512], content[3 * 512..80 * 512]);

    let before = scratch.path().metadata()?.blocks();
    guest.run("blkdiscard /dev/vdb")?;
    let after = scratch.path().metadata()?.blocks();
    assert!(after < before / 4, "{after} of {before} blocks are left after a discard");
    assert_eq!(read(fixed.path())?, content);
    guest.vmm.send("poweroff\n")?;
    guest.vmm.wait_for_code(0, PATIENCE)
}

/// A flush in the guest is an fdatasync on the host, and without one there is none. With the synchronous engine,
/// because nobody can see what goes through an io_uring.
#[test]
fn a_flush_reaches_the_host_disk() -> Result<()> {
    let scratch = disk_image(&vec![0; MIB])?;
    let mut guest = Shell::micro(&["--disk", &disk(scratch.path(), ",engine=sync")])?;
    let trace = tempfile::NamedTempFile::new()?;
    let mut strace = Command::new("strace")
        .args(["-f", "-e", "trace=fdatasync,fsync,pwritev,pwritev2", "-o", path(trace.path())])
        .args(["-p", &guest.vmm.pid().to_string()])
        .stderr(Stdio::piped())
        .spawn()
        .context("strace is needed; scripts/setup installs it")?;
    wait_until_attached(&mut strace)?;
    let count =
        |call: &str| Ok::<_, anyhow::Error>(String::from_utf8(read(trace.path())?)?.matches(call).count());

    guest.run("dd if=/dev/urandom of=/dev/vda bs=4k count=8 oflag=direct 2>/dev/null")?;
    assert_ne!(count("pwritev")?, 0);
    let before = count("fdatasync")?;
    assert_eq!(before, 0, "a sync that nobody asked for");
    guest.run("dd if=/dev/urandom of=/dev/vda bs=4k count=8 conv=fsync 2>/dev/null")?;
    assert!(count("fdatasync")? > before, "no fdatasync: {}", String::from_utf8(read(trace.path())?)?);
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(strace.id() as i32), Signal::SIGTERM)?;
    strace.wait()?;
    guest.vmm.send("poweroff\n")?;
    guest.vmm.wait_for_code(0, PATIENCE)
}

fn wait_until_attached(strace: &mut Child) -> Result<()> {
    let mut byte = [0];
    let mut line = String::new();
    let stderr = strace.stderr.as_mut().context("a pipe")?;
    while !line.contains("attached") {
        ensure!(stderr.read(&mut byte)? == 1, "strace did not attach: {line}");
        line.push(byte[0].into());
    }
    Ok(())
}

/// Ping and bulk TCP in both directions, with the offloads negotiated.
#[test]
fn frames_pass_through_a_tap() -> Result<()> {
    const BYTES: usize = 32 * MIB;
    let namespace = Namespace::new()?;
    namespace.run(
        "ip tuntap add tap0 mode tap vnet_hdr && ip address add 10.9.0.1/24 dev tap0 && ip link set tap0 up",
    )?;
    let tools = toolbox()?;
    let mut command = namespace.command(program("innkeeper-vmm"));
    command.arg("run");
    command.args([
        "--kernel",
        path(&image("micro", "vmlinux")),
        "--initrd",
        path(&image("micro", "initrd.img")),
    ]);
    command.args(["--tap", "tap0,mac=02:00:00:00:00:07", "--append", "micro.ip=10.9.0.2/24"]);
    command.args(["--disk", &disk(tools.path(), ",readonly=on")]);
    let mut guest = Shell::new(Vmm::spawn(&mut command)?, "micro# ");
    guest.wait_for_boot()?;

    assert_eq!(guest.run("cat /sys/class/net/eth0/address")?, "02:00:00:00:00:07");
    let features = guest.run("cat /sys/class/net/eth0/device/features")?;
    // Bits by number: CSUM, GUEST_CSUM, MAC, GUEST_TSO4, GUEST_TSO6, HOST_TSO4, HOST_TSO6, MRG_RXBUF,
    // INDIRECT_DESC, EVENT_IDX, VERSION_1.
    for bit in [0, 1, 5, 7, 8, 11, 12, 15, 28, 29, 32] {
        assert_eq!(features.as_bytes().get(bit), Some(&b'1'), "feature {bit} of {features}");
    }
    guest.run("ping -c 3 -i 0.2 -w 20 10.9.0.1")?;
    namespace.run("ping -c 3 -i 0.2 -w 20 10.9.0.2")?;
    namespace.run("ping -c 2 -s 9000 -i 0.2 -w 20 10.9.0.2")?;

    guest.run("cd /tmp && tar xf /dev/vda && ./netprobe listen 7000 >/tmp/listen.log & sleep 1")?;
    let outside = namespace
        .command(program("netprobe"))
        .args(["connect", "10.9.0.2:7000", &BYTES.to_string()])
        .output()?;
    ensure!(outside.status.success(), "{}", String::from_utf8_lossy(&outside.stderr));
    guest.run("sleep 1; grep exchanged /tmp/listen.log")?;

    let mut listener =
        namespace.command(program("netprobe")).args(["listen", "7001"]).stdout(Stdio::null()).spawn()?;
    guest.run_for(
        &format!("sleep 1; /tmp/netprobe connect 10.9.0.1:7001 {BYTES}"),
        Duration::from_secs(120),
    )?;
    ensure!(listener.wait()?.success(), "the listener on the host failed");

    // Large segments did cross the tap: far fewer packets than an MTU of 1500 would take.
    let packets: usize = guest.run("cat /sys/class/net/eth0/statistics/tx_packets")?.parse()?;
    assert!(packets < 2 * BYTES / 1500, "{packets} packets for {} MiB", 2 * BYTES / MIB);
    guest.vmm.send("poweroff\n")?;
    guest.vmm.wait_for_code(0, PATIENCE)
}

#[test]
fn sigterm_presses_the_power_button() -> Result<()> {
    let guest = &mut Shell::micro(&[])?;
    guest.vmm.signal(Signal::SIGTERM)?;
    guest.vmm.wait_for_code(0, PATIENCE)
}

/// A reboot comes back in the same process, with the same disks; so does a crash.
#[test]
fn reboots_stay_in_the_process() -> Result<()> {
    let scratch = disk_image(&vec![0; MIB])?;
    let mut guest = Shell::micro(&["--disk", &disk(scratch.path(), "")])?;
    for (round, way) in ["reboot", "reboot -f", "echo b >/proc/sysrq-trigger", "echo c >/proc/sysrq-trigger"]
        .iter()
        .enumerate()
    {
        guest.run(&format!("echo round {round} >/dev/vda; sync"))?;
        guest.vmm.send(format!("{way}\n"))?;
        guest.wait_for_boot()?;
        assert_eq!(guest.run("head -n 1 /dev/vda")?, format!("round {round}"));
    }
    guest.vmm.send("poweroff\n")?;
    guest.vmm.wait_for_code(0, PATIENCE)
}

/// Everything the guest prints comes out, and everything typed goes in.
#[test]
fn the_console_loses_nothing() -> Result<()> {
    let mut guest = Shell::micro(&[])?;
    let lines = guest.run("i=0; while [ $i -lt 2000 ]; do echo line $i; i=$((i+1)); done")?;
    let expected: Vec<String> = (0..2000).map(|line| format!("line {line}")).collect();
    assert_eq!(lines.lines().collect::<Vec<_>>(), expected);
    let typed: String = ('a'..='z').cycle().take(600).collect();
    assert_eq!(guest.run(&format!("echo {typed} | wc -c"))?, "601");
    Ok(())
}

/// CPUs, memory, identity and devices are as configured.
#[test]
fn the_machine_is_as_configured() -> Result<()> {
    let uuid = "ec2e1916-9099-7caf-fd21-012345abcdef";
    let mut guest = Shell::micro(&[
        "--cpus",
        "3",
        "--memory",
        "4G",
        "--smbios",
        &format!("uuid={uuid},serial={uuid},asset-tag=i-0123456789abcdef0"),
    ])?;
    assert_eq!(guest.run("nproc")?, "3");
    let kib: u64 = guest.run("awk '/MemTotal/ {print $2}' /proc/meminfo")?.parse()?;
    assert!((3900 << 10..4 << 20).contains(&kib), "{kib} KiB");
    assert!(
        guest.run("cat /proc/iomem")?.contains("100000000-13fffffff : System RAM"),
        "no memory above 4 GiB"
    );
    assert_eq!(
        guest.run(
            "cd /sys/class/dmi/id; cat sys_vendor bios_vendor product_uuid product_serial board_asset_tag"
        )?,
        format!("Amazon EC2\nAmazon EC2\n{uuid}\n{uuid}\ni-0123456789abcdef0")
    );
    assert_eq!(
        guest.run("awk '/^apicid/ {print $3}' /proc/cpuinfo | sort -u | tr '\\n' ' '")?.trim(),
        "0 1 2"
    );
    assert_eq!(guest.run("awk '/cpu cores/ {print $4}' /proc/cpuinfo | sort -u")?, "3");
    let interrupts = guest.run("cat /proc/interrupts")?;
    assert!(interrupts.contains("PCI-MSIX") && interrupts.contains("virtio0-"), "{interrupts}");
    assert_eq!(guest.run("cat /sys/class/misc/hw_random/rng_current")?, "virtio_rng.0");
    assert_eq!(guest.run("head -c 100000 /dev/hwrng | wc -c")?, "100000");
    assert_eq!(
        guest.run("cat /sys/devices/system/clocksource/clocksource0/current_clocksource")?,
        "kvm-clock"
    );
    assert!(!guest.run("dmesg")?.contains("ACPI Error"), "{}", guest.run("dmesg | grep -i acpi")?);
    Ok(())
}

/// As many CPUs as there can be, on a host that has a fraction of them.
#[test]
fn thirty_two_cpus_come_up() -> Result<()> {
    let mut guest = Shell::micro(&["--cpus", "32", "--memory", "64G"])?;
    assert_eq!(guest.run("nproc")?, "32");
    let ids = guest.run("awk '/^apicid/ {print $3}' /proc/cpuinfo | sort -nu | wc -l")?;
    assert_eq!(ids, "32");
    let kib: u64 = guest.run("awk '/MemTotal/ {print $2}' /proc/meminfo")?.parse()?;
    assert!((62 << 20..64 << 20).contains(&kib), "{kib} KiB");
    guest.vmm.send("poweroff -f\n")?;
    guest.vmm.wait_for_code(0, PATIENCE)
}

/// A bzImage, which unpacks itself, and more CPUs than the host has.
#[test]
fn a_bzimage_boots_too() -> Result<()> {
    let (kernel, initrd) = (image("kernel", "vmlinuz"), image("micro", "initrd.img"));
    let vmm = Vmm::run(["--kernel", path(&kernel), "--initrd", path(&initrd), "--cpus", "4"])?;
    let mut guest = Shell::new(vmm, "micro# ");
    guest.wait_for_boot()?;
    assert_eq!(guest.run("nproc")?, "4");
    Ok(())
}
