//! Linux's device-mapper, as far as an overlay needs it (the kernel's `include/uapi/linux/dm-ioctl.h`).

use std::fs::{File, OpenOptions};
use std::io;
use std::path::{Path, PathBuf};

use crate::boot::disk::SECTOR;

/// The interface's version that is asked for: 4.0, which all since Linux 2.6 have.
const VERSION: [u32; 3] = [4, 0, 0];

/// The flag of a table that nobody can write through.
const READ_ONLY: u32 = 1;

/// The longest parameters of a target, in bytes.
const MAX_PARAMETERS: usize = 128;

/// `struct dm_ioctl`.
#[repr(C)]
pub struct Header {
    version: [u32; 3],
    data_size: u32,
    data_start: u32,
    target_count: u32,
    open_count: i32,
    flags: u32,
    event_nr: u32,
    padding: u32,
    device: u64,
    name: [u8; 128],
    uuid: [u8; 129],
    data: [u8; 7],
}

/// `struct dm_target_spec`.
#[repr(C)]
struct Target {
    start: u64,
    length: u64,
    status: i32,
    next: u32,
    kind: [u8; 16],
}

/// A request with one target and its parameters.
#[repr(C)]
struct Request {
    header: Header,
    target: Target,
    parameters: [u8; MAX_PARAMETERS],
}

nix::ioctl_readwrite!(create_device, 0xfd, 3, Header);
nix::ioctl_readwrite!(suspend_device, 0xfd, 6, Header);
nix::ioctl_readwrite!(load_table, 0xfd, 9, Header);

type Ioctl = unsafe fn(i32, *mut Header) -> nix::Result<i32>;

impl Request {
    fn new(name: &str) -> Self {
        let mut request = Self {
            header: Header {
                version: VERSION,
                data_size: size_of::<Self>() as u32,
                data_start: size_of::<Header>() as u32,
                target_count: 0,
                open_count: 0,
                flags: 0,
                event_nr: 0,
                padding: 0,
                device: 0,
                name: [0; 128],
                uuid: [0; 129],
                data: [0; 7],
            },
            target: Target { start: 0, length: 0, status: 0, next: 0, kind: [0; 16] },
            parameters: [0; MAX_PARAMETERS],
        };
        put(&mut request.header.name, name);
        request
    }

    fn make(&mut self, control: &File, ioctl: Ioctl) -> io::Result<()> {
        use std::os::fd::AsRawFd;
        // SAFETY: The kernel reads and writes as much as `data_size` says, which is all of the request that this
        // pointer leads to.
        unsafe { ioctl(control.as_raw_fd(), (&raw mut *self).cast()) }?;
        Ok(())
    }
}

/// Copies a text that ends in a zero.
fn put(to: &mut [u8], text: &str) {
    let room = to.len().saturating_sub(1);
    for (to, byte) in to.iter_mut().take(room).zip(text.bytes()) {
        *to = byte;
    }
}

/// The device-mapper.
pub struct Mapper(File);

impl Mapper {
    /// Opens it. Its module has to be loaded.
    ///
    /// # Errors
    /// It is not there.
    pub fn open() -> io::Result<Self> {
        Ok(Self(OpenOptions::new().read(true).write(true).open("/dev/mapper/control")?))
    }

    /// Part of a device, in bytes. What is no whole sector at its end is left out.
    ///
    /// # Errors
    /// Linux refuses.
    pub fn part(
        &self,
        name: &str,
        device: &Path,
        start: u64,
        length: u64,
        is_read_only: bool,
    ) -> io::Result<PathBuf> {
        let parameters = format!("{} {}", device.display(), start / SECTOR);
        self.device(name, "linear", &parameters, length, if is_read_only { READ_ONLY } else { 0 })
    }

    /// A device whose writes go to `store`, and that otherwise has what is on `origin`, of this length in bytes. What is
    /// in the store is forgotten at the end.
    ///
    /// # Errors
    /// Linux refuses.
    pub fn overlay(&self, name: &str, origin: &Path, store: &Path, length: u64) -> io::Result<PathBuf> {
        // Not persistent, in pieces of 4 KiB.
        let parameters = format!("{} {} N 8", origin.display(), store.display());
        self.device(name, "snapshot", &parameters, length, 0)
    }

    /// Makes a device of one target, and gives its path.
    fn device(
        &self,
        name: &str,
        kind: &str,
        parameters: &str,
        length: u64,
        flags: u32,
    ) -> io::Result<PathBuf> {
        if parameters.len() >= MAX_PARAMETERS {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        Request::new(name).make(&self.0, create_device)?;
        let mut table = Request::new(name);
        table.header.target_count = 1;
        table.header.flags = flags;
        table.target.length = length / SECTOR;
        put(&mut table.target.kind, kind);
        put(&mut table.parameters, parameters);
        table.make(&self.0, load_table)?;
        // Without a flag that says so nothing is suspended: the table is put to use.
        let mut resume = Request::new(name);
        resume.make(&self.0, suspend_device)?;
        // As the kernel encodes it: the minor number is in bits 0 to 7 and 20 to 31.
        let device = resume.header.device;
        let minor = device & 0xff | (device >> 12) & 0xfff00;
        Ok(format!("/dev/dm-{minor}").into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_have_the_kernels_layout() {
        assert_eq!((size_of::<Header>(), size_of::<Target>()), (312, 40));
        assert_eq!(std::mem::offset_of!(Header, device), 40);
        assert_eq!(std::mem::offset_of!(Request, parameters), 352);
    }

    #[test]
    fn a_name_ends() {
        let request = Request::new(&"x".repeat(500));
        assert_eq!((request.header.name[126], request.header.name[127]), (b'x', 0));
    }
}
