//! Copies a kernel and initial RAM file systems into memory.

use std::fs::File;
use std::os::unix::fs::FileExt;

use super::error::{Error, Place};
use super::memory;
use super::tree::{self, Take, Tree};
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
    /// Its files.
    pub tree: &'a dyn Tree,
    /// Where kernels are in it: `/boot`, or nothing if it is mounted there.
    pub base: &'a str,
    /// What it is a part of, if it is a subvolume.
    pub whole: Option<&'a dyn Tree>,
}

impl From<'_> {
    /// The kernel as it boots fastest: the ELF file inside of a bzImage if there is one, else what is there.
    pub fn kernel(&self, path: &str) -> Result<File, Error> {
        let file = memory::create(c"kernel").map_err(Error::Memory)?;
        let (path, size) =
            self.copy(path, MAX_KERNEL, &mut |offset, piece| file.write_all_at(piece, offset))?;
        // Its end may be a hole.
        file.set_len(size).map_err(Error::Memory)?;
        bootable(file, self.place, &path)
    }

    /// Initial RAM file systems, put together as [`Self::copy_initrds`] does.
    pub fn initrds(&self, paths: &[String]) -> Result<Option<File>, Error> {
        if paths.is_empty() {
            return Ok(None);
        }
        let file = memory::create(c"initrd").map_err(Error::Memory)?;
        let length = self.copy_initrds(paths, &mut |offset, piece| file.write_all_at(piece, offset))?;
        file.set_len(length).map_err(Error::Memory)?;
        memory::seal(&file).map_err(Error::Memory)?;
        Ok(Some(file))
    }

    /// Hands initial RAM file systems to `take`, one after another, each at a multiple of four bytes as Linux has it.
    /// Gives their length in bytes, at most [`MAX_INITRD`].
    pub fn copy_initrds(&self, paths: &[String], take: Take<'_>) -> Result<u64, Error> {
        let mut length: u64 = 0;
        for path in paths {
            let start = length.next_multiple_of(4);
            let (_, size) = self.copy(path, MAX_INITRD.saturating_sub(start), &mut |offset, piece| {
                take(start.saturating_add(offset), piece)
            })?;
            length = start.saturating_add(size);
        }
        Ok(length)
    }

    /// Hands a file that has something in it to `take`. Gives its path, as it was found, and its size in bytes.
    pub fn copy(&self, path: &str, limit: u64, take: Take<'_>) -> Result<(String, u64), Error> {
        // An entry may say the path as seen from the running system, from the file system itself, or, as GRUB does, from
        // the file system that it is a subvolume of.
        let other = match (self.base, path.strip_prefix("/boot")) {
            ("", Some(inner)) => Some(inner.to_owned()),
            ("", None) | (_, Some(_)) => None,
            (base, None) => Some(format!("{base}/{}", path.trim_start_matches('/'))),
        };
        let others = [other.map(|path| (self.tree, path)), self.whole.map(|whole| (whole, path.to_owned()))];
        let mut result = (path.to_owned(), self.tree.copy(path, limit, take));
        for (tree, path) in others.into_iter().flatten() {
            if matches!(result.1, Err(tree::Error::NotFound)) {
                match tree.copy(&path, limit, take) {
                    Err(tree::Error::NotFound) => {}
                    copied => result = (path, copied),
                }
            }
        }
        let (path, copied) = result;
        match copied {
            Ok(0) => Err(Error::File { place: self.place, path, cause: tree::Error::Empty }),
            Ok(size) => Ok((path, size)),
            Err(tree::Error::Store(cause)) => Err(Error::Memory(cause)),
            Err(cause) => Err(Error::File { place: self.place, path, cause }),
        }
    }
}

/// Makes a kernel of a memory file what it is booted as, and seals it. `place` and `path` say where it is from.
pub fn bootable(file: File, place: Place, path: &str) -> Result<File, Error> {
    let kernel = {
        let image = memory::map(&file).map_err(Error::Memory)?;
        unpack(&image).map_err(|why| match why {
            Why::Kernel(cause) => Error::Kernel { place, path: path.to_owned(), cause },
            Why::Memory(cause) => Error::Memory(cause),
        })?
    };
    let kernel = kernel.unwrap_or(file);
    memory::seal(&kernel).map_err(Error::Memory)?;
    Ok(kernel)
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
