//! The whole images that broken ones are made from.

use std::fs;

use innkeeper_images::boot;

use crate::common::{Tree, grub_cfg, run, tool};
use crate::measure::{Answer, answer};

/// The same numbers in every run (xorshift64*).
pub struct Random(pub u64);

impl Random {
    pub fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    pub fn below(&mut self, end: usize) -> usize {
        (self.next() % end as u64) as usize
    }
}

/// A whole image, and where in it things are.
pub struct Base {
    pub disk: Vec<u8>,
    /// Where its file system begins.
    pub start: usize,
    /// Its file system, for `debugfs`.
    pub file: tempfile::NamedTempFile,
    pub block_size: usize,
    pub answer: Answer,
}

pub const VERSION: &str = "6.1.0-40";
pub const KERNEL: &str = "/boot/vmlinuz-6.1.0-40";
pub const CONFIGURATION: &str = "/boot/grub/grub.cfg";
pub const INITRD: &str = "/boot/initrd.img-6.1.0-40";

/// The size of the whole images' configuration, which leaves room for broken ones.
pub const CONFIGURATION_SIZE: usize = 128 << 10;

pub fn tree(kernel: &[u8]) -> Tree {
    let mut cfg = grub_cfg("0", "/boot", &[VERSION]).into_bytes();
    cfg.resize(CONFIGURATION_SIZE, b'\n');
    Tree::new()
        .with(&KERNEL[1..], kernel)
        .with(&INITRD[1..], "initrd ".repeat(3000))
        .with(&CONFIGURATION[1..], cfg)
}

impl Base {
    pub fn new(disk: Vec<u8>, start: usize, file_system: &[u8], block_size: usize) -> Self {
        let file = tempfile::NamedTempFile::new().unwrap();
        fs::write(file.path(), file_system).unwrap();
        let answer = answer(&boot::find(&disk.as_slice()).unwrap_or_else(|error| panic!("{error}")));
        Self { disk, start, file, block_size, answer }
    }

    pub fn debugfs(&self, command: &str) -> String {
        run(tool("debugfs").arg("-R").arg(command).arg(self.file.path()), "")
    }

    /// Where the inode of a path is on the disk.
    pub fn inode(&self, path: &str) -> usize {
        let text = self.debugfs(&format!("imap {path}"));
        let mut words = text.split("located at block ").nth(1).expect(&text).split(", offset 0x");
        let block: usize = words.next().unwrap().parse().unwrap();
        self.start
            + block * self.block_size
            + usize::from_str_radix(words.next().unwrap().trim(), 16).unwrap()
    }

    /// Where the blocks of a path are on the disk.
    pub fn blocks(&self, path: &str) -> Vec<usize> {
        let text = self.debugfs(&format!("blocks {path}"));
        text.split_whitespace()
            .map(|block| self.start + block.parse::<usize>().unwrap() * self.block_size)
            .collect()
    }

    /// The size of a file in bytes.
    pub fn size(&self, path: &str) -> usize {
        let text = self.debugfs(&format!("stat {path}"));
        text.split("Size: ").nth(1).and_then(|rest| rest.split_whitespace().next()).unwrap().parse().unwrap()
    }

    pub fn with(&self, changes: &[(usize, &[u8])]) -> Vec<u8> {
        let mut disk = self.disk.clone();
        for (offset, bytes) in changes {
            disk[*offset..][..bytes.len()].copy_from_slice(bytes);
        }
        disk
    }

    /// With other contents of a file, which has to be large enough. The rest of it is spaces.
    pub fn with_contents(&self, path: &str, contents: &[u8], filler: u8) -> Vec<u8> {
        let mut disk = self.disk.clone();
        let mut rest = contents;
        for block in self.blocks(path) {
            let (now, later) = rest.split_at(rest.len().min(self.block_size));
            disk[block..][..self.block_size].fill(filler);
            disk[block..][..now.len()].copy_from_slice(now);
            rest = later;
        }
        assert!(rest.is_empty());
        disk
    }
}
