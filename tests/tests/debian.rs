//! A whole Debian 12, from its GPT disk to the login prompt. It takes minutes in the lab, so there are few.

use std::path::Path;
use std::process::Command as Process;
use std::time::Duration;

use anyhow::{Result, ensure};
use innkeeper_protocol::{Command, Happening, Limits};
use innkeeper_tests::controller::Controller;
use innkeeper_tests::network::Namespace;
use innkeeper_tests::{Shell, Vmm, disk, image, path};
use nix::sys::signal::Signal;

const PATIENCE: Duration = Duration::from_secs(600);

/// A copy of the image's disk, sparse, that the guest may change.
fn copy(file: &Path, directory: &Path) -> Result<std::path::PathBuf> {
    let copy = directory.join("disk.raw");
    let status =
        Process::new("cp").arg("--sparse=always").arg("--reflink=auto").arg(file).arg(&copy).status()?;
    ensure!(status.success(), "cp failed");
    Ok(copy)
}

struct Debian {
    guest: Shell,
    directory: tempfile::TempDir,
}

impl Debian {
    fn boot() -> Result<Self> {
        // Not on the lab's memory file system: the disk is large.
        let directory = tempfile::tempdir_in(innkeeper_tests::build_directory())?;
        let root = copy(&image("debian-12", "disk.raw"), directory.path())?;
        let (kernel, initrd) = (image("debian-12", "vmlinux"), image("debian-12", "initrd.img"));
        let vmm = Vmm::run([
            "--kernel",
            path(&kernel),
            "--initrd",
            path(&initrd),
            "--cpus",
            "4",
            "--memory",
            "5G",
            "--append",
            "root=/dev/vda1 cloud-init=disabled",
            "--disk",
            &disk(&root, ",serial=vol0123456789abcdef0"),
            "--smbios",
            "uuid=ec2e1916-9099-7caf-fd21-012345abcdef,asset-tag=i-0123456789abcdef0",
            "--control",
            path(&directory.path().join("control")),
        ])?;
        let mut debian = Self { guest: Shell::new(vmm, ":~# "), directory };
        debian.log_in()?;
        Ok(debian)
    }

    fn log_in(&mut self) -> Result<()> {
        self.guest.vmm.expect("debian login: ", PATIENCE)?;
        self.guest.vmm.send("root\n")?;
        self.guest.vmm.expect(":~# ", PATIENCE)?;
        // No bracketed paste: its escape sequences would be part of every output.
        self.guest.vmm.send("bind 'set enable-bracketed-paste off'\n")?;
        self.guest.vmm.expect(":~# ", PATIENCE)?;
        Ok(())
    }

    fn check(&mut self) -> Result<()> {
        let guest = &mut self.guest;
        assert_eq!(guest.run("nproc")?, "4");
        let kib: u64 = guest.run("awk '/MemTotal/ {print $2}' /proc/meminfo")?.parse()?;
        assert!((4900 << 10..5 << 20).contains(&kib), "{kib} KiB of memory");
        assert_eq!(
            guest.run("dmidecode -s bios-vendor; dmidecode -s system-manufacturer")?,
            "Amazon EC2\nAmazon EC2"
        );
        let uuid = "ec2e1916-9099-7caf-fd21-012345abcdef";
        assert_eq!(
            guest.run("dmidecode -s system-uuid; dmidecode -s system-serial-number")?,
            format!("{uuid}\n{uuid}")
        );
        assert_eq!(guest.run("dmidecode -s baseboard-asset-tag")?, "i-0123456789abcdef0");
        let errors =
            guest.run("dmidecode 2>&1 >/dev/null; dmidecode | grep -i -e bad -e wrong -e invalid; true")?;
        assert_eq!(errors, "");
        let bus = guest.run("lspci -vv")?;
        assert_eq!(bus.matches("MSI-X: Enable+").count(), 2, "{bus}");
        assert!(bus.contains("Virtio 1.0 block device") && bus.contains("Virtio 1.0 RNG"), "{bus}");
        assert_eq!(guest.run("readlink /dev/disk/by-id/virtio-vol0123456789abcdef0")?, "../../vda");
        Ok(())
    }
}

impl Debian {
    /// Has a disk and an interface come and go, with nothing in the guest but what Debian has.
    fn plug_and_unplug(&mut self) -> Result<()> {
        let namespace = Namespace::new()?;
        namespace.run("ip tuntap add tap0 mode tap vnet_hdr && ip link set tap0 up")?;
        let mut controller = Controller::connect(&self.directory.path().join("control"))?;
        controller.subscribe()?;
        let image = self.directory.path().join("data.raw");
        std::fs::File::create(&image)?.set_len(64 << 20)?;
        let until = |condition: &str| {
            format!("for n in $(seq 600); do {condition} && break; sleep 0.1; done; {condition}")
        };
        for round in 0..2 {
            let id = format!("vol{round}");
            controller.attach_disk(&id, &image, Limits::default())?;
            let device = format!("/dev/disk/by-id/virtio-{id}");
            let guest = &mut self.guest;
            guest.run_for(&until(&format!("test -e {device}")), PATIENCE)?;
            guest.run_for(
                &format!("mkfs.ext4 -q -F {device} && mount {device} /mnt && touch /mnt/file"),
                PATIENCE,
            )?;
            controller.say(Command::ResizeDisk { id: id.clone(), size: (64 << 20) + 4096 * (round + 1) })?;
            let size = (64 << 20) + 4096 * (round + 1);
            guest.run_for(&until(&format!("test $(blockdev --getsize64 {device}) = {size}")), PATIENCE)?;
            guest.run_for("umount /mnt", PATIENCE)?;
            controller.detach(&id, false)?;
            controller.expect(&Happening::DeviceFreed { id }, PATIENCE)?;
            guest.run_for(&until(&format!("test ! -e {device}")), PATIENCE)?;

            let mac = "02:00:00:00:00:09";
            controller.attach_interface("eni", &namespace.open_tap("tap0", 1)?, mac)?;
            let is_there = format!("ip -o link | grep -q {mac}");
            guest.run_for(&until(&is_there), PATIENCE)?;
            controller.detach("eni", false)?;
            controller.expect(&Happening::DeviceFreed { id: "eni".into() }, PATIENCE)?;
            guest.run_for(&until(&format!("(! {is_there})")), PATIENCE)?;
        }
        assert_eq!(controller.status()?.devices.len(), 1);
        Ok(())
    }
}

/// From power-on to a shutdown by the power button, with devices that come and go in between.
#[test]
fn stock_debian_boots_and_stops() -> Result<()> {
    let mut debian = Debian::boot()?;
    debian.check()?;
    debian.plug_and_unplug()?;
    debian.guest.vmm.signal(Signal::SIGTERM)?;
    debian.guest.vmm.expect("reboot: Power down", PATIENCE)?;
    debian.guest.vmm.wait_for_code(0, PATIENCE)
}

/// A reboot comes back in the same process, and `poweroff` ends it.
#[test]
#[ignore = "minutes long; scripts/test full runs it"]
fn stock_debian_reboots_and_powers_off() -> Result<()> {
    let mut debian = Debian::boot()?;
    let boot = debian.guest.run("cat /proc/sys/kernel/random/boot_id; touch /root/marker")?;
    debian.guest.vmm.send("reboot\n")?;
    debian.log_in()?;
    assert_ne!(
        debian.guest.run("cat /proc/sys/kernel/random/boot_id; ls /root/marker")?.lines().next(),
        Some(boot.as_str())
    );
    debian.guest.vmm.send("poweroff\n")?;
    debian.guest.vmm.wait_for_code(0, PATIENCE)
}
