//! Files in memory, for what was read from a disk. Once they are sealed nobody can change them, whoever gets them.

use std::ffi::CStr;
use std::fs::File;
use std::io;

use memmap2::{Mmap, MmapMut};
use nix::errno::Errno;
use nix::fcntl::{FcntlArg, SealFlag, fcntl, posix_fallocate};
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

/// Takes the memory for all of a file, also where it has holes. Without it a mapping takes memory as it is touched, and
/// where there is none that ends the process (SIGBUS).
fn allocate(file: &File) -> io::Result<()> {
    let length = i64::try_from(file.metadata()?.len()).map_err(io::Error::other)?;
    if length == 0 {
        return Ok(());
    }
    loop {
        match posix_fallocate(file, 0, length) {
            Err(Errno::EINTR) => {}
            result => return Ok(result?),
        }
    }
}

/// The contents of a file of this module, for which all memory is taken first. Its size is fixed from now on.
pub fn map(file: &File) -> io::Result<Mmap> {
    allocate(file)?;
    add_seals(file, SealFlag::empty())?;
    // SAFETY: The file is in memory and nobody but us has it yet, so that nothing changes under the mapping, and its
    // size is sealed.
    unsafe { Mmap::map(file) }
}

/// Like [`map`], to be written to.
pub fn map_mut(file: &File) -> io::Result<MmapMut> {
    allocate(file)?;
    add_seals(file, SealFlag::empty())?;
    // SAFETY: As above.
    unsafe { MmapMut::map_mut(file) }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt;

    use super::*;

    #[test]
    fn a_mapping_has_its_memory() {
        let file = create(c"test").unwrap();
        file.set_len(1 << 20).unwrap();
        assert_eq!(file.metadata().unwrap().blocks(), 0);
        assert_eq!(map(&file).unwrap().len(), 1 << 20);
        assert_eq!(file.metadata().unwrap().blocks() * 512, 1 << 20);
        assert!(map(&file).unwrap().iter().all(|byte| *byte == 0));
    }
}
