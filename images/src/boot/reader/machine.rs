//! What the init of the guest does for the machine.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::kmod::{ModuleInitFlags, finit_module};
use nix::mount::{MsFlags, mount};
use nix::sys::reboot::{RebootMode, reboot};

/// Where the recipe puts modules: a directory for each purpose, with files in the order in which they are loaded.
const MODULES: &str = "/modules";

/// How long a disk may take to appear.
const PATIENCE: Duration = Duration::from_secs(10);

/// The longest message of the kernel that is read, in bytes.
const MAX_MESSAGE: usize = 8192;

/// Makes devices visible, and loads the driver of disks.
///
/// # Errors
/// Linux refuses.
pub fn set_up() -> io::Result<()> {
    mount(Some("dev"), "/dev", Some("devtmpfs"), MsFlags::empty(), None::<&str>)?;
    load("disk")
}

/// Opens a disk, once it is there.
///
/// # Errors
/// It does not come, or cannot be opened.
pub fn open_disk(path: &Path, is_writable: bool) -> io::Result<File> {
    let begun = Instant::now();
    loop {
        match OpenOptions::new().read(true).write(is_writable).open(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound && begun.elapsed() < PATIENCE => {
                std::thread::sleep(Duration::from_millis(1));
            }
            result => return result,
        }
    }
}

/// Loads the modules for a purpose; none if the recipe has none for it, because it is built in or not there at all.
///
/// # Errors
/// A module cannot be loaded.
pub fn load(purpose: &str) -> io::Result<()> {
    let directory = Path::new(MODULES).join(purpose);
    let Ok(entries) = fs::read_dir(directory) else { return Ok(()) };
    let mut paths = entries.map(|entry| Ok(entry?.path())).collect::<io::Result<Vec<_>>>()?;
    paths.sort();
    for path in paths {
        match finit_module(File::open(&path)?, c"", ModuleInitFlags::empty()) {
            // Two purposes have it, or it is for a processor that this one is not.
            Ok(()) | Err(Errno::EEXIST | Errno::ENODEV) => {}
            Err(errno) => return Err(errno.into()),
        }
    }
    Ok(())
}

/// The first warning in the kernel's log that a driver has written about a device, such as `XFS (dm-2): Corruption
/// detected`. What follows it is often only what came of it.
pub fn complaint(driver: &str, device: &str) -> Option<String> {
    let flags = OFlag::O_NONBLOCK.bits();
    let mut log = OpenOptions::new().read(true).custom_flags(flags).open("/dev/kmsg").ok()?;
    let mut record = vec![0; MAX_MESSAGE];
    loop {
        match log.read(&mut record) {
            Ok(0) => return None,
            Ok(length) => {
                let text = String::from_utf8_lossy(record.get(..length).unwrap_or_default());
                if let Some(complaint) = complaint_of(&text, driver, device) {
                    return Some(complaint);
                }
            }
            // It was overwritten meanwhile; the next one is there.
            Err(error) if error.raw_os_error() == Some(Errno::EPIPE as i32) => {}
            Err(_) => return None,
        }
    }
}

/// The text of a record of the kernel's log, if it is a driver's warning or worse about a device (the kernel's
/// Documentation/ABI/testing/dev-kmsg).
fn complaint_of(record: &str, driver: &str, device: &str) -> Option<String> {
    let (fields, text) = record.split_once(';')?;
    let priority: u32 = fields.split(',').next()?.parse().ok()?;
    let text = text.lines().next()?;
    let is_drivers = text.get(..driver.len()).is_some_and(|start| start.eq_ignore_ascii_case(driver));
    (priority & 7 <= 4 && is_drivers && text.contains(device)).then(|| text.to_owned())
}

/// Ends the guest.
pub fn power_off() {
    // It only comes back with an error.
    let Err(errno) = reboot(RebootMode::RB_POWER_OFF);
    eprintln!("cannot power off: {errno}");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_drivers_complaints() {
        for (record, expected) in [
            ("4,1,2,-;XFS (dm-2): Corruption\n SUBSYSTEM=block\n", Some("XFS (dm-2): Corruption")),
            ("3,1,2,-,caller=T1;XFS dm-2; y", Some("XFS dm-2; y")),
            ("12,1,2,-;xfs: dm-2", Some("xfs: dm-2")),
            ("5,1,2,-;XFS (dm-2): Mounting", None),
            ("4,1,2,-;XFS (dm-5): Corruption", None),
            ("4,1,2,-;BTRFS error (dm-2)", None),
            ("4,1,2,-;XF", None),
            ("x", None),
            ("", None),
        ] {
            assert_eq!(complaint_of(record, "xfs", "dm-2").as_deref(), expected, "{record:?}");
        }
    }
}
