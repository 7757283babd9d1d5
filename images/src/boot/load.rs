//! Copies a kernel and initial RAM file systems into memory.

use std::fs::File;
use std::os::unix::fs::FileExt;

use super::error::{Error, Place};
use super::ext4::{self, FileSystem};
use super::memory;
use crate::kernel::{self, Packed};

/// The size of a kernel's file that is accepted, in bytes: 512 MiB.
pub const MAX_KERNEL: u64 = 512 << 20;

/// The size that all initial RAM file systems together may have, in bytes: 512 MiB.
pub const MAX_INITRD: u64 = 512 << 20;

/// What decompressing a kernel may take beside the kernel itself, in bytes. One that needs more decompresses itself.
const MAX_DECOMPRESSOR: usize = 40 << 20;

/// A file system to load from.
pub struct From<'a> {
    /// Where it is.
    pub place: Place,
    /// The file system.
    pub file_system: &'a FileSystem<'a>,
    /// Where kernels are in it: `/boot`, or nothing if it is mounted there.
    pub base: &'a str,
}

impl From<'_> {
    /// The kernel as it boots fastest: the ELF file inside of a bzImage if there is one, else what is there.
    pub fn kernel(&self, path: &str) -> Result<File, Error> {
        let file = memory::create(c"kernel").map_err(Error::Memory)?;
        let path = self.copy(path, MAX_KERNEL, &file, 0)?.0;
        let error = |cause| Error::Kernel { place: self.place, path: path.clone(), cause };
        let kernel = {
            let image = memory::map(&file).map_err(Error::Memory)?;
            unpack(&image).map_err(|why| match why {
                Why::Kernel(cause) => error(cause),
                Why::Memory(cause) => Error::Memory(cause),
            })?
        };
        let kernel = kernel.unwrap_or(file);
        memory::seal(&kernel).map_err(Error::Memory)?;
        Ok(kernel)
    }

    /// Initial RAM file systems one after another, each at a multiple of four bytes as Linux has it.
    pub fn initrds(&self, paths: &[String]) -> Result<Option<File>, Error> {
        if paths.is_empty() {
            return Ok(None);
        }
        let file = memory::create(c"initrd").map_err(Error::Memory)?;
        let mut length: u64 = 0;
        for path in paths {
            let start = length.next_multiple_of(4);
            length = start.saturating_add(self.copy(path, MAX_INITRD.saturating_sub(start), &file, start)?.1);
        }
        memory::seal(&file).map_err(Error::Memory)?;
        Ok(Some(file))
    }

    /// Copies a file to an offset in another. Gives its path, as it was found, and its size in bytes.
    fn copy(&self, path: &str, limit: u64, to: &File, start: u64) -> Result<(String, u64), Error> {
        let mut take = |offset: u64, piece: &[u8]| to.write_all_at(piece, start.saturating_add(offset));
        let mut result = (path.to_owned(), self.file_system.copy(path, limit, &mut take));
        // An entry may say the path as seen from the running system, or from the file system itself.
        if matches!(result.1, Err(ext4::Error::NotFound)) {
            let other = match (self.base, path.strip_prefix("/boot")) {
                ("", Some(inner)) => Some(inner.to_owned()),
                ("", None) | (_, Some(_)) => None,
                (base, None) => Some(format!("{base}/{}", path.trim_start_matches('/'))),
            };
            if let Some(other) = other {
                let copied = self.file_system.copy(&other, limit, &mut take);
                if !matches!(copied, Err(ext4::Error::NotFound)) {
                    result = (other, copied);
                }
            }
        }
        let (path, copied) = result;
        let error = |cause| Error::File { place: self.place, path: path.clone(), cause };
        let size = match copied {
            Ok(0) => return Err(error(ext4::Error::Empty)),
            Ok(size) => size,
            Err(ext4::Error::Store(cause)) => return Err(Error::Memory(cause)),
            Err(cause) => return Err(error(cause)),
        };
        // Its end may be a hole.
        to.set_len(start.saturating_add(size)).map_err(Error::Memory)?;
        Ok((path, size))
    }
}

enum Why {
    Kernel(kernel::Error),
    Memory(std::io::Error),
}

/// The kernel inside of an image, in a file of its own; `None` if the image had better be booted as it is.
fn unpack(image: &[u8]) -> Result<Option<File>, Why> {
    if kernel::is_elf_kernel(image) {
        return Ok(None);
    }
    let packed = match Packed::in_image(image) {
        Ok(packed) => packed,
        // It knows how to decompress itself.
        Err(kernel::Error::UnsupportedCompression(_) | kernel::Error::OldProtocol(_)) => return Ok(None),
        // An ELF file for another machine.
        Err(kernel::Error::AlreadyElf) => return Err(Why::Kernel(kernel::Error::NotElf)),
        Err(error) => return Err(Why::Kernel(error)),
    };
    if packed.size() == 0 {
        return Err(Why::Kernel(kernel::Error::NotElf));
    }
    // Then the guest may take the time.
    if packed.is_slow() {
        return Ok(None);
    }
    let file = memory::create(c"vmlinux").map_err(Why::Memory)?;
    file.set_len(packed.size() as u64).map_err(Why::Memory)?;
    let mut output = memory::map_mut(&file).map_err(Why::Memory)?;
    match packed.unpack(&mut output, MAX_DECOMPRESSOR) {
        Ok(()) => {}
        Err(kernel::Error::Memory { .. }) => return Ok(None),
        Err(error) => return Err(Why::Kernel(error)),
    }
    drop(output);
    Ok(Some(file))
}
