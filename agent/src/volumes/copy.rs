//! Copying a file without its holes.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::fd::{AsFd, AsRawFd};

use nix::errno::Errno;
use nix::unistd::Whence;

/// How much is copied at once.
const CHUNK: usize = 1 << 20;

/// Copies a file: shares its blocks where the file system can, and leaves its holes out where it cannot.
pub fn copy_sparse(source: &File, target: &File) -> io::Result<()> {
    if share_blocks(source, target)? {
        return Ok(());
    }
    let length = source.metadata()?.len();
    target.set_len(length)?;
    let mut position: i64 = 0;
    let (mut source, mut target) = (source, target);
    let mut buffer = vec![0; CHUNK];
    loop {
        let start = match nix::unistd::lseek(source.as_fd(), position, Whence::SeekData) {
            Ok(start) => start,
            // There is only a hole left.
            Err(Errno::ENXIO) => return Ok(()),
            Err(error) => return Err(error.into()),
        };
        let end = nix::unistd::lseek(source.as_fd(), start, Whence::SeekHole)?;
        let offset = u64::try_from(start).map_err(io::Error::other)?;
        let mut rest = u64::try_from(end - start).map_err(io::Error::other)?;
        source.seek(SeekFrom::Start(offset))?;
        target.seek(SeekFrom::Start(offset))?;
        while rest > 0 {
            let piece = usize::try_from(rest).unwrap_or(CHUNK).min(CHUNK);
            let count = source.read(&mut buffer[..piece])?;
            if count == 0 {
                return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "it became shorter meanwhile"));
            }
            target.write_all(&buffer[..count])?;
            rest -= count as u64;
        }
        position = end;
    }
}

/// Lets two files share their blocks until one is written to. False if the file system cannot.
fn share_blocks(source: &File, target: &File) -> io::Result<bool> {
    // SAFETY: both descriptors are open, and the request takes the second as its number.
    let result = unsafe { nix::libc::ioctl(target.as_raw_fd(), nix::libc::FICLONE, source.as_raw_fd()) };
    if result == 0 {
        return Ok(true);
    }
    match Errno::last() {
        Errno::EOPNOTSUPP | Errno::EXDEV | Errno::EINVAL | Errno::ENOTTY | Errno::EPERM | Errno::ETXTBSY => {
            Ok(false)
        }
        error => Err(error.into()),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{FileExt, MetadataExt};

    use super::*;

    #[test]
    fn holes_stay_holes() {
        let directory = tempfile::tempdir().unwrap();
        let open = |name: &str| {
            let path = directory.path().join(name);
            File::options().read(true).write(true).create(true).truncate(true).open(path).unwrap()
        };
        let (source, target) = (open("source"), open("target"));
        source.write_all_at(b"beginning", 0).unwrap();
        source.write_all_at(b"end", 3 << 20).unwrap();
        source.set_len(8 << 20).unwrap();
        copy_sparse(&source, &target).unwrap();
        let mut contents = [vec![0; 8 << 20], vec![1; 8 << 20]];
        for (file, content) in [&source, &target].into_iter().zip(&mut contents) {
            file.read_exact_at(content, 0).unwrap();
        }
        assert!(contents[0] == contents[1]);
        assert!(target.metadata().unwrap().blocks() * 512 < 1 << 20, "the holes were filled");
    }
}
