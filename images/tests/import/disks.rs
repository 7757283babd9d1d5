//! Disks to import, and importing them.

use std::fs::{self, File};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::process::Command;

use innkeeper_images::import::{DISK, Error, Format, Import, Imported, MANIFEST, Manifest, Progress, Stage};
use tempfile::TempDir;

use crate::common::{run, tool};

pub const KIB: usize = 1 << 10;
pub const MIB: usize = 1 << 20;

/// The program.
pub fn program() -> Command {
    Command::new(env!("CARGO_BIN_EXE_innkeeper-images"))
}

/// The same bytes in every run, of which every 64 KiB are zeroes, text or hard to compress.
pub fn contents(length: usize) -> Vec<u8> {
    let mut state = 0x1234_5678_9abc_def1_u64;
    let mut random = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state
    };
    let mut contents = Vec::with_capacity(length);
    while contents.len() < length {
        match random() % 4 {
            0 => contents.resize(contents.len() + 64 * KIB, 0),
            1 => contents.extend(format!("{:063}\n", random()).repeat(KIB).bytes()),
            _ => (0..8 * KIB).for_each(|_| contents.extend(random().to_le_bytes())),
        }
    }
    contents.truncate(length);
    contents
}

/// What an import tells.
#[derive(Debug, Default)]
pub struct Told {
    pub stages: Vec<(Stage, u64)>,
    pub last: u64,
    pub notes: Vec<String>,
}

impl Progress for Told {
    fn begin(&mut self, stage: Stage, total: u64) {
        self.stages.push((stage, total));
        self.last = 0;
    }

    fn done(&mut self, bytes: u64) {
        assert!(bytes >= self.last, "{bytes} after {}", self.last);
        self.last = bytes;
    }

    fn note(&mut self, note: &str) {
        self.notes.push(note.to_owned());
    }
}

/// A directory to work in.
pub struct Lab(TempDir);

impl Lab {
    pub fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    pub fn file(&self, name: &str, contents: &[u8]) -> PathBuf {
        let path = self.path(name);
        fs::write(&path, contents).unwrap();
        path
    }

    pub fn names(&self) -> Vec<String> {
        let entries = fs::read_dir(self.0.path()).unwrap();
        let mut names: Vec<_> =
            entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    /// Makes a qcow2 file of a raw one, with these arguments to `qemu-img convert`.
    pub fn convert(&self, raw: &Path, name: &str, arguments: &[&str]) -> PathBuf {
        let path = self.path(name);
        run(
            tool("qemu-img")
                .args(["convert", "-f", "raw", "-O", "qcow2"])
                .args(arguments)
                .arg(raw)
                .arg(&path),
            "",
        );
        path
    }

    /// What QEMU has for the disk in a qcow2 file.
    pub fn flat(&self, qcow2: &Path) -> Vec<u8> {
        let path = self.path("flat.raw");
        run(tool("qemu-img").args(["convert", "-f", "qcow2", "-O", "raw"]).arg(qcow2).arg(&path), "");
        fs::read(path).unwrap()
    }

    pub fn import(&self, format: Format, source: &Path) -> Result<(Imported, Told), Error> {
        let mut told = Told::default();
        let import = Import { source: source.into(), format, target: self.path("image"), checksum: None };
        import.run(&mut told).map(|imported| (imported, told))
    }

    /// Imports a disk that has to be these bytes afterwards. Removes the image.
    #[track_caller]
    pub fn imports(&self, format: Format, source: &Path, expected: &[u8]) -> (Imported, Told) {
        let (imported, told) = self.import(format, source).unwrap_or_else(|error| panic!("{error}"));
        assert_eq!(imported.size, expected.len() as u64);
        assert_eq!(told.last, imported.size);
        check_image(&self.path("image"), expected, &imported.digest);
        fs::remove_dir_all(self.path("image")).unwrap();
        assert!(!self.path("image.partial").exists());
        (imported, told)
    }

    /// Checks that a disk is refused, and nothing is left of it. Returns the message.
    #[track_caller]
    pub fn refuses(&self, format: Format, source: &Path) -> String {
        let before = self.names();
        let Err(error) = self.import(format, source) else { panic!("{source:?} was imported") };
        assert_eq!(self.names(), before);
        let message = error.to_string();
        assert!(message.contains(source.to_str().unwrap()), "{message}");
        message
    }
}

/// Checks an image directory: its disk is these bytes, its manifest is the disk's, and there is nothing else.
#[track_caller]
pub fn check_image(image: &Path, expected: &[u8], digest: &str) {
    let disk = File::open(image.join(DISK)).unwrap();
    assert!(fs::read(image.join(DISK)).unwrap() == expected, "the disk is another");
    let manifest = Manifest::read(&image.join(MANIFEST)).unwrap();
    manifest.verify(&disk).unwrap();
    assert_eq!(manifest.size(), expected.len() as u64);
    assert_eq!(manifest.digest(), digest);
    assert_eq!(fs::read_dir(image).unwrap().count(), 2);
    // Whatever the source was, zeroes take no room.
    let zeroes = [0; 4 * KIB];
    let blocks = expected.chunks(4 * KIB).filter(|block| **block != zeroes[..block.len()]).count();
    // A file system needs some blocks for itself.
    let most = (blocks * 4 * KIB + 64 * KIB) as u64;
    let allocated = disk.metadata().unwrap().blocks() * 512;
    assert!(allocated <= most, "{allocated} bytes for {most}");
}

/// Changes a file.
pub fn patch(path: &Path, offset: u64, bytes: &[u8]) {
    File::options().write(true).open(path).unwrap().write_all_at(bytes, offset).unwrap();
}
