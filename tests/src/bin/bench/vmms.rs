//! The VMMs that are measured, and their command lines for one and the same guest.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};
use innkeeper_tests::network::Place;
use innkeeper_tests::{Shell, Vmm, image, path, program};

/// The kernel's command line, the same for every VMM: what ours uses by default, and the reset that all of them
/// have.
const COMMAND_LINE: &str = "console=ttyS0 quiet panic=1 reboot=t 8250.nr_uarts=1 tsc=reliable random.trust_cpu=on \
                            cryptomgr.notests i8042.noaux i8042.nokbd";

/// The address of a guest's network interface.
const MAC: &str = "02:00:00:00:00:07";

/// The prompt of the `micro` image's shell.
const PROMPT: &str = "micro# ";

/// What a guest is made of.
#[derive(Clone, Debug)]
pub struct Guest {
    pub kernel: PathBuf,
    pub initrd: Option<PathBuf>,
    pub command_line: String,
    pub cpus: u32,
    /// Memory in MiB.
    pub mib: u32,
    /// A disk, which goes through the host's page cache and is flushed when the guest says so.
    pub disk: Option<Disk>,
    /// The name of a tap with `vnet_hdr`.
    pub tap: Option<String>,
    /// The address of its network interface.
    pub mac: String,
}

/// What a guest's disk is made of.
#[derive(Clone, Debug)]
pub enum Disk {
    Raw(PathBuf),
    /// Data and map of each layer, from the bottom, with colons between them.
    Layered(String),
    Qcow2(PathBuf),
}

impl Disk {
    /// The file, for a VMM that finds out or is told what is in it.
    fn file(&self) -> &str {
        match self {
            Self::Raw(file) | Self::Qcow2(file) => path(file),
            Self::Layered(layers) => layers,
        }
    }
}

impl Guest {
    /// A guest of the image `name`, which is `micro` or made from it, without disk and network.
    pub fn of_image(name: &str, cpus: u32, mib: u32) -> Self {
        Self {
            kernel: image(name, "vmlinux"),
            initrd: Some(image(name, "initrd.img")),
            command_line: COMMAND_LINE.into(),
            cpus,
            mib,
            disk: None,
            tap: None,
            mac: MAC.into(),
        }
    }
}

/// A VMM that is measured, or what takes the place of one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Contender {
    Innkeeper,
    /// Ours, with a disk of layers.
    InnkeeperLayered,
    Qemu,
    /// QEMU with a qcow2 disk that is on top of a raw one.
    QemuQcow2,
    /// QEMU with a thread for the disk, which it otherwise serves in its main thread.
    QemuIothread,
    Firecracker,
    CloudHypervisor,
    /// No VMM: a disk's file as the host itself uses it.
    HostFile,
}

impl Contender {
    /// Those that are on this machine: ours first, then QEMU.
    pub fn all() -> Vec<Self> {
        let mut all = vec![Self::Innkeeper, Self::Qemu];
        all.extend([Self::Firecracker, Self::CloudHypervisor].iter().filter(|vmm| vmm.program().is_some()));
        all
    }

    pub fn name(self) -> &'static str {
        match self {
            Self::Innkeeper => "Innkeeper",
            Self::InnkeeperLayered => "Innkeeper, layered",
            Self::Qemu => "QEMU microvm",
            Self::QemuQcow2 => "QEMU, qcow2",
            Self::QemuIothread => "QEMU, iothread",
            Self::Firecracker => "Firecracker",
            Self::CloudHypervisor => "Cloud Hypervisor",
            Self::HostFile => "the host's file",
        }
    }

    fn program(self) -> Option<String> {
        match self {
            Self::Innkeeper | Self::InnkeeperLayered => Some(path(&program("innkeeper-vmm")).into()),
            Self::Qemu | Self::QemuIothread | Self::QemuQcow2 => Some("qemu-system-x86_64".into()),
            Self::Firecracker => std::env::var("FIRECRACKER").ok(),
            Self::CloudHypervisor => std::env::var("CLOUD_HYPERVISOR").ok(),
            Self::HostFile => None,
        }
    }

    /// The command that runs `guest` with its console on standard input and output. Files that it needs are put
    /// into `directory`.
    pub fn command(self, guest: &Guest, directory: &Path) -> Result<Vec<String>> {
        let mut command = vec![self.program().context("no such VMM here")?];
        command.extend(match self {
            Self::Innkeeper | Self::InnkeeperLayered => innkeeper(guest),
            Self::Qemu | Self::QemuQcow2 => qemu(guest, ""),
            Self::QemuIothread => qemu(guest, ",iothread=disk-thread"),
            Self::Firecracker => firecracker(guest, directory)?,
            Self::CloudHypervisor => cloud_hypervisor(guest),
            Self::HostFile => Vec::new(),
        });
        Ok(command)
    }

    /// Boots `guest`, which is of the `micro` image, to its shell, in the network that its tap is in.
    pub fn boot(self, guest: &Guest, directory: &Path, network: Option<&Place>) -> Result<Shell> {
        let command = self.command(guest, directory)?;
        let (program, arguments) = command.split_first().context("a command")?;
        let mut command = network.map_or_else(|| Command::new(program), |network| network.command(program));
        let mut shell = Shell::new(Vmm::spawn(command.args(arguments))?, PROMPT);
        shell.wait_for_boot().with_context(|| format!("{} did not boot the guest", self.name()))?;
        Ok(shell)
    }
}

fn words(text: &str) -> Vec<String> {
    text.split_whitespace().map(String::from).collect()
}

fn innkeeper(guest: &Guest) -> Vec<String> {
    let Guest { kernel, initrd, command_line, cpus, mib, disk, tap, mac } = guest;
    let mut command = words(&format!("run --cpus {cpus} --memory {mib}M --kernel {}", path(kernel)));
    command.extend(["--cmdline".into(), command_line.clone()]);
    if let Some(initrd) = initrd {
        command.extend(["--initrd".into(), path(initrd).into()]);
    }
    if let Some(disk) = disk {
        let format = if matches!(disk, Disk::Layered(_)) { "layered" } else { "raw" };
        command.extend(["--disk".into(), format!("path={},format={format}", disk.file())]);
    }
    if let Some(tap) = tap {
        command.extend(["--tap".into(), format!("{tap},mac={mac}")]);
    }
    command
}

fn qemu(guest: &Guest, disk_options: &str) -> Vec<String> {
    let Guest { kernel, initrd, command_line, cpus, mib, disk, tap, mac } = guest;
    // PCI costs time at boot, so only who has devices for it gets it.
    let pci = if disk.is_some() || tap.is_some() { ",pcie=on" } else { "" };
    let mut command = words(&format!(
        "-M microvm,x-option-roms=off,pit=off,pic=off,rtc=off{pci} -accel kvm -cpu host,arch-capabilities=off \
         -smp {cpus} -m {mib} -nodefaults -no-user-config -display none -serial stdio -kernel {}",
        path(kernel)
    ));
    command.extend(["-append".into(), command_line.clone()]);
    if let Some(initrd) = initrd {
        command.extend(["-initrd".into(), path(initrd).into()]);
    }
    if let Some(disk) = disk {
        if !disk_options.is_empty() {
            command.extend(words("-object iothread,id=disk-thread"));
        }
        let format = if matches!(disk, Disk::Qcow2(_)) { "qcow2" } else { "raw" };
        command.extend(words(&format!(
            "-drive if=none,id=disk,format={format},aio=io_uring,cache=writeback,discard=unmap,file={} \
             -device virtio-blk-pci,drive=disk{disk_options}",
            disk.file()
        )));
    }
    if let Some(tap) = tap {
        command.extend(words(&format!(
            "-netdev tap,id=net,ifname={tap},script=no,downscript=no,vhost=off \
             -device virtio-net-pci,netdev=net,mac={mac},romfile="
        )));
    }
    command
}

fn firecracker(guest: &Guest, directory: &Path) -> Result<Vec<String>> {
    let Guest { kernel, initrd, command_line, cpus, mib, disk, tap, mac } = guest;
    let configuration = directory.join("firecracker.json");
    let initrd =
        initrd.as_deref().map(|initrd| format!(r#", "initrd_path": "{}""#, path(initrd))).unwrap_or_default();
    let boot =
        format!(r#"{{"kernel_image_path": "{}", "boot_args": "{command_line}"{initrd}}}"#, path(kernel));
    let drive = disk.as_ref().map(|disk| {
        format!(
            r#"{{"drive_id": "disk", "path_on_host": "{}", "is_root_device": false, "is_read_only": false,
                "cache_type": "Writeback", "io_engine": "Async"}}"#,
            disk.file()
        )
    });
    let interface = tap
        .as_ref()
        .map(|tap| format!(r#"{{"iface_id": "net", "host_dev_name": "{tap}", "guest_mac": "{mac}"}}"#));
    let json = format!(
        r#"{{"boot-source": {boot}, "drives": [{}], "network-interfaces": [{}],
            "machine-config": {{"vcpu_count": {cpus}, "mem_size_mib": {mib}}}}}"#,
        drive.unwrap_or_default(),
        interface.unwrap_or_default()
    );
    fs::write(&configuration, json)?;
    // The guest has no driver for virtio over MMIO.
    let pci = if disk.is_some() || tap.is_some() { "--enable-pci" } else { "" };
    Ok(words(&format!("--no-api --no-seccomp {pci} --config-file {}", path(&configuration))))
}

fn cloud_hypervisor(guest: &Guest) -> Vec<String> {
    let Guest { kernel, initrd, command_line, cpus, mib, disk, tap, mac } = guest;
    let mut command = words(&format!(
        "--seccomp false --cpus boot={cpus} --memory size={mib}M --serial tty --console off --kernel {}",
        path(kernel)
    ));
    command.extend(["--cmdline".into(), command_line.clone()]);
    if let Some(initrd) = initrd {
        command.extend(["--initramfs".into(), path(initrd).into()]);
    }
    if let Some(disk) = disk {
        command.extend(["--disk".into(), format!("path={},image_type=raw", disk.file())]);
    }
    if let Some(tap) = tap {
        command.extend(["--net".into(), format!("tap={tap},mac={mac}")]);
    }
    command
}
