//! Files in memory, for what was read from a disk. Once they are sealed nobody can change them, whoever gets them.

use std::ffi::CStr;
use std::fs::File;
use std::io;

use memmap2::{Mmap, MmapMut};
use nix::fcntl::{FcntlArg, SealFlag, fcntl};
use nix::sys::memfd::{MFdFlags, memfd_create};

/// A file in memory.
pub fn create(name: &CStr) -> io::Result<File> {
    Ok(File::from(memfd_create(name, MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING)?))
}

/// Makes it impossible to change the file.
///
/// It is not `F_SEAL_WRITE`, which fails while a mapping of ours is in a child between its fork and its exec.
pub fn seal(file: &File) -> io::Result<()> {
    add_seals(file, SealFlag::F_SEAL_FUTURE_WRITE | SealFlag::F_SEAL_SEAL)
}

fn add_seals(file: &File, seals: SealFlag) -> io::Result<()> {
    let size = SealFlag::F_SEAL_SHRINK | SealFlag::F_SEAL_GROW;
    fcntl(file, FcntlArg::F_ADD_SEALS(size | seals))?;
    Ok(())
}

/// The contents of a file of this module. Its size is fixed from now on.
pub fn map(file: &File) -> io::Result<Mmap> {
    add_seals(file, SealFlag::empty())?;
    // SAFETY: The file is in memory and nobody but us has it yet, so that nothing changes under the mapping, and its
    // size is sealed.
    unsafe { Mmap::map(file) }
}

/// Like [`map`], to be written to.
pub fn map_mut(file: &File) -> io::Result<MmapMut> {
    add_seals(file, SealFlag::empty())?;
    // SAFETY: As above.
    unsafe { MmapMut::map_mut(file) }
}
