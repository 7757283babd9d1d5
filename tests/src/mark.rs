//! What is written to the beginning of a disk, to see later whether it is still there.

use std::fs::{File, OpenOptions};
use std::io::{Read, Write};
use std::path::Path;

use anyhow::Result;

/// What is written.
pub const MARK: &[u8] = b"of this guest";

/// What is there on a new disk.
pub const NOTHING: &[u8] = &[0; MARK.len()];

/// Writes it.
pub fn mark(disk: &Path) -> Result<()> {
    Ok(OpenOptions::new().write(true).open(disk)?.write_all(MARK)?)
}

/// What is where [`MARK`] would be.
pub fn beginning(disk: &Path) -> Result<Vec<u8>> {
    let mut bytes = vec![0; MARK.len()];
    File::open(disk)?.read_exact(&mut bytes)?;
    Ok(bytes)
}
