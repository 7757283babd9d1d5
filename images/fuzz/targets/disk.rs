//! Whole disks, from the partition table to what is booted.

#![no_main]

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::sync::{LazyLock, Mutex};

use arbitrary::Arbitrary;
use innkeeper_images::boot::{
    self, BUDGET, BootSource, Error, MAX_INITRD, MAX_KERNEL, command_line, entry::MAX_INITRDS,
};
use innkeeper_images::kernel::MAX_VMLINUX;
use innkeeper_images_fuzz::disks::{Disk, disks};
use innkeeper_images_fuzz::{Bytes, Change, Meter, Steps, check_message, memory};
use libfuzzer_sys::fuzz_target;

/// What configuration may be read of a few partitions, in bytes: more than each may have.
const CONFIGURATION: u64 = 1 << 30;

/// What is read twice, in bytes.
const CHEAP: u64 = 1 << 20;

#[derive(Arbitrary, Debug)]
enum Step {
    Change(Change),
    /// Writes a file.
    Write {
        file: u8,
        contents: Bytes,
    },
    /// Goes on where the one before ended.
    Continue(Bytes),
}

#[derive(Arbitrary, Debug)]
struct Input {
    base: u8,
    /// Most are.
    is_bare: Option<bool>,
    /// How much is left of the disk, in 1024 parts.
    cut: Option<u16>,
    steps: Steps<Step>,
}

static DISKS: LazyLock<Vec<Mutex<Disk>>> = LazyLock::new(|| {
    let disks = disks();
    for (index, disk) in disks.iter().enumerate() {
        if let Err(error) = find(disk.image.bytes()) {
            panic!("disk {index}: {error}");
        }
    }
    disks.into_iter().map(Mutex::new).collect()
});

/// What is found, and how many bytes were read for it.
fn find(bytes: &[u8]) -> Result<(BootSource, u64), Error> {
    let meter = Meter::new(bytes);
    let result = memory::at_most(memory::MOST, || boot::find(&meter));
    meter.check(BUDGET, MAX_KERNEL + MAX_INITRD + CONFIGURATION);
    result.map(|source| (source, meter.bytes()))
}

fn check(source: &BootSource) {
    let line = &source.command_line;
    assert!(line.len() <= command_line::MAX_LENGTH && !line.chars().any(char::is_control), "{line:?}");
    let size = source.kernel.metadata().unwrap().len();
    assert!((1..=MAX_KERNEL.max(MAX_VMLINUX as u64)).contains(&size), "{size}");
    source.kernel.set_len(size + 1).unwrap_err();
    source.kernel.write_at(b"x", 0).unwrap_err();
    assert_eq!(source.initrd.is_some(), !source.origin.initrds.is_empty());
    assert!(source.origin.initrds.len() <= MAX_INITRDS);
    if let Some(initrd) = &source.initrd {
        let size = initrd.metadata().unwrap().len();
        assert!((1..=MAX_INITRD).contains(&size), "{size}");
        initrd.set_len(size - 1).unwrap_err();
        initrd.write_at(b"x", 0).unwrap_err();
    }
}

fn contents(file: &File) -> Vec<u8> {
    let mut contents = vec![0; file.metadata().unwrap().len() as usize];
    file.read_exact_at(&mut contents, 0).unwrap();
    contents
}

fn is_same(a: &BootSource, b: &BootSource) -> bool {
    let files = |source: &BootSource| (contents(&source.kernel), source.initrd.as_ref().map(contents));
    (&a.command_line, &a.origin) == (&b.command_line, &b.origin) && files(a) == files(b)
}

fuzz_target!(|input: Input| {
    let mut disk = DISKS[usize::from(input.base) % DISKS.len()].lock().unwrap();
    let (mut last, mut skip) = (0, 0);
    for step in input.steps.iter() {
        let bytes = match step {
            Step::Change(change) => {
                disk.change(change);
                continue;
            }
            Step::Write { file, contents } => {
                (last, skip) = (*file, 0);
                contents
            }
            Step::Continue(contents) => contents,
        };
        disk.write(last, skip, bytes);
        skip += bytes.len();
    }
    if input.is_bare != Some(true) {
        disk.seal();
    }
    let bytes = disk.image.bytes();
    let length = input.cut.map_or(bytes.len(), |part| bytes.len() / 1024 * (usize::from(part) % 1025));
    match find(&bytes[..length]) {
        Ok((source, read)) => {
            check(&source);
            if read < CHEAP {
                let again = find(&bytes[..length]);
                assert!(again.is_ok_and(|(again, _)| is_same(&source, &again)), "not the same again");
            }
        }
        Err(error) => check_message(&error),
    }
    disk.image.restore();
});
