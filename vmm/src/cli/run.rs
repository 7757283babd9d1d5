//! `innkeeper-vmm run`: opens everything by name and hands it to the machine.

use std::fs::{File, OpenOptions};
use std::os::fd::AsFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use clap::Args;
use innkeeper_block::RawFile;
use kvm_ioctls::Kvm;
use uuid::Uuid;

use super::options::{DiskOption, SerialOption, Size, SmbiosOption, TapOption};
use super::terminal::RawTerminal;
use super::{complain, exit_status};
use crate::boot::{self, BootSource};
use crate::console::{Console, Copier, Start};
use crate::firmware::smbios::Identity;
use crate::machine::{self, Configuration, Disk, Ending, Interface, Supervisor};
use crate::memory;
use crate::virtio::net::MacAddress;
use crate::virtio::net::tap::Tap;

/// The kernel command line unless there is another: a serial console, little chatter, and no time spent on
/// hardware that this machine does not have.
const DEFAULT_COMMAND_LINE: &str = "console=ttyS0 quiet panic=1 8250.nr_uarts=1 tsc=reliable random.trust_cpu=on \
                                    cryptomgr.notests i8042.noaux i8042.nokbd";

/// How long the last console output may take to be written.
const CONSOLE_PATIENCE: Duration = Duration::from_secs(1);

#[derive(Args, Debug)]
pub struct Run {
    /// Kernel: an uncompressed ELF file (vmlinux) or a bzImage (vmlinuz)
    #[arg(long, value_name = "FILE")]
    kernel: PathBuf,
    /// Initial RAM file system
    #[arg(long, value_name = "FILE")]
    initrd: Option<PathBuf>,
    /// Kernel command line, in place of the default one
    #[arg(long, value_name = "TEXT", default_value = DEFAULT_COMMAND_LINE)]
    cmdline: String,
    /// What to add to the end of the kernel command line
    #[arg(long, value_name = "TEXT")]
    append: Option<String>,
    /// Number of CPUs, 1 to 32
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u8).range(1..=i64::from(crate::cpu::MAX_CPUS)))]
    cpus: u8,
    /// Memory, 4M to 256G
    #[arg(long, value_name = "SIZE", default_value = "256M")]
    memory: Size,
    /// A disk: path=FILE,format=raw[,readonly=on][,serial=TEXT][,engine=auto|io_uring|sync]. May be repeated
    #[arg(long = "disk", value_name = "DISK")]
    disks: Vec<DiskOption>,
    /// A network interface: NAME[,mac=ADDRESS] of an existing tap. May be repeated
    #[arg(long = "tap", value_name = "TAP")]
    taps: Vec<TapOption>,
    /// Where the serial console goes: stdio, file=FILE or none. In a terminal, Ctrl-A x ends the guest
    #[arg(long, value_name = "WHERE", default_value = "stdio")]
    serial: SerialOption,
    /// What SMBIOS says: uuid=UUID[,serial=TEXT][,asset-tag=TEXT]. By default a random UUID
    #[arg(long, value_name = "IDENTITY")]
    smbios: Option<SmbiosOption>,
    /// Seconds from SIGTERM until the guest is switched off hard
    #[arg(long, value_name = "SECONDS", default_value_t = 60)]
    stop_timeout: u32,
}

impl Run {
    pub fn execute(self) -> anyhow::Result<ExitCode> {
        let kvm = Kvm::new().context("cannot open /dev/kvm; innkeeper-vmm check says what to do")?;
        let console = Arc::new(Console::default());
        let configuration = self.open(Arc::clone(&console))?;
        let stop_timeout = Duration::from_secs(self.stop_timeout.into());
        let mut supervisor = Supervisor::new(kvm, configuration, stop_timeout)?;
        let mut terminal = None;
        let copier = match &self.serial {
            SerialOption::None => None,
            SerialOption::File(path) => {
                // A pipe that nobody reads is an error, not a wait.
                let file = OpenOptions::new()
                    .write(true)
                    .create(true)
                    .truncate(false)
                    .custom_flags(libc::O_NONBLOCK)
                    .open(path)
                    .with_context(|| format!("cannot create {}", path.display()))?;
                Some(Copier::spawn(console, file, Start::Anew).context("cannot start the console")?)
            }
            SerialOption::Stdio => {
                terminal = RawTerminal::enter().context("cannot switch the terminal to raw mode")?;
                let duplicate = |fd: std::os::fd::BorrowedFd<'_>| {
                    Ok::<_, std::io::Error>(File::from(fd.try_clone_to_owned()?))
                };
                let (input, output) = duplicate(std::io::stdin().as_fd())
                    .and_then(|input| Ok((input, duplicate(std::io::stdout().as_fd())?)))
                    .context("cannot use standard input and output")?;
                supervisor.set_input(input, terminal.is_some());
                Some(Copier::spawn(console, output, Start::Here).context("cannot start the console")?)
            }
        };
        let ending = supervisor.run();
        if let Some(copier) = copier {
            copier.finish(CONSOLE_PATIENCE);
        }
        drop(terminal);
        let ending = ending.map_err(|error| match &error {
            machine::Error::Boot(boot::Error::Initrd(_)) => self.cannot_boot(error, self.initrd.as_deref()),
            machine::Error::Boot(boot::Error::Kernel(_)) => self.cannot_boot(error, Some(&self.kernel)),
            _ => error.into(),
        })?;
        Ok(match ending {
            Ending::PowerOff => ExitCode::SUCCESS,
            Ending::Stopped => ExitCode::from(exit_status::STOPPED),
            Ending::Failed(reason) => {
                complain(&reason);
                ExitCode::from(exit_status::FAILED)
            }
        })
    }

    /// Names the file that is wrong.
    fn cannot_boot(&self, error: machine::Error, file: Option<&Path>) -> anyhow::Error {
        anyhow::Error::from(error).context(format!("cannot boot {}", file.unwrap_or(&self.kernel).display()))
    }

    /// Opens what the guest is made of.
    fn open(&self, console: Arc<Console>) -> anyhow::Result<Configuration> {
        let Size(memory) = self.memory;
        memory::check_size(memory)?;
        let command_line = match &self.append {
            Some(more) => format!("{} {more}", self.cmdline),
            None => self.cmdline.clone(),
        };
        boot::check_command_line(&command_line)?;
        let kernel = open_file("kernel", &self.kernel)?;
        let initrd = self.initrd.as_deref().map(|path| open_file("initrd", path)).transpose()?;
        let identity = match &self.smbios {
            Some(SmbiosOption(identity)) => identity.clone(),
            None => Identity::new(random_uuid()?, None, None)?,
        };
        let mac_base = identity.uuid.as_u64_pair().1;
        let disks = self.disks.iter().map(open_disk).collect::<anyhow::Result<_>>()?;
        let interfaces = self
            .taps
            .iter()
            .zip(0..)
            .map(|(tap, index)| open_tap(tap, mac_base.wrapping_add(index)))
            .collect::<anyhow::Result<_>>()?;
        let boot = BootSource { kernel, initrd, command_line };
        Ok(Configuration { cpus: self.cpus, memory, boot, identity, disks, interfaces, console })
    }
}

/// Opens a file to read; a pipe with no writer is an error, not a wait.
fn open_file(what: &str, path: &Path) -> anyhow::Result<File> {
    OpenOptions::new()
        .read(true)
        .custom_flags(libc::O_NONBLOCK)
        .open(path)
        .with_context(|| format!("cannot open {what} {}", path.display()))
}

fn open_disk(option: &DiskOption) -> anyhow::Result<Disk> {
    let backend = RawFile::open(&option.path, option.is_read_only)
        .with_context(|| format!("cannot open disk {}", option.path.display()))?;
    Ok(Disk { backend: Arc::new(backend.with_engine(option.engine)), serial: option.serial.clone() })
}

fn open_tap(option: &TapOption, number: u64) -> anyhow::Result<Interface> {
    let tap = Tap::open(&option.name).with_context(|| format!("cannot open tap {}", option.name))?;
    Ok(Interface { tap: Arc::new(tap), mac: option.mac.unwrap_or_else(|| MacAddress::from_number(number)) })
}

fn random_uuid() -> anyhow::Result<Uuid> {
    let mut bytes = [0u8; 16];
    // SAFETY: pointer and length are those of the array.
    let count = unsafe { libc::getrandom(bytes.as_mut_ptr().cast(), bytes.len(), 0) };
    anyhow::ensure!(count == bytes.len() as isize, "cannot get random bytes for a UUID");
    Ok(uuid::Builder::from_random_bytes(bytes).into_uuid())
}
