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
use innkeeper_images_fuzz::disks::{Disk, disks, vmlinux};
use innkeeper_images_fuzz::{Bytes, Change, Meter, Steps, bzimage, check_message, gzip, memory};
use libfuzzer_sys::fuzz_target;

/// What configuration may be read of a few partitions, in bytes: more than each may have.
const CONFIGURATION: u64 = 1 << 30;

/// The length of a message, in bytes: what a disk says in one is cut off, twice at most.
const MOST_MESSAGE: usize = 3000;

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
    /// Writes a kernel of some kind, or a script.
    Known {
        file: u8,
        contents: u8,
    },
    /// Puts the mark of some file system over another.
    Mark {
        file_system: u8,
        mark: u8,
    },
}

/// Kernels that have an end of their own, and scripts that say paths in another way.
static KNOWN: LazyLock<Vec<Vec<u8>>> = LazyLock::new(|| {
    let elf = vmlinux();
    let sized = |stream: &[u8], size: u32| bzimage(&[stream, &size.to_le_bytes()].concat());
    let zstd = zstd::encode_all(&*elf, 1).unwrap();
    let (mut old, mut other) = (bzimage(&gzip(&elf)), elf.clone());
    (old[0x206], other[18]) = (7, 183);
    let script = |lines: &str| format!("menuentry x {{\n{lines}\n}}\n").into_bytes();
    vec![
        bzimage(b"BZh91AY&SY and so on"),
        old,
        bzimage(&gzip(&other)),
        other,
        bzimage(&gzip(b"")),
        sized(&zstd, elf.len() as u32),
        sized(&zstd, 8 << 20),
        // A dictionary of gigabytes.
        sized(b"\xfd7zXZ\0\0\x01\x69\x22\xde\x36\x02\0\x21\x01\x28\0\0\0\xe6\xa0\x11\xb3", 64 << 20),
        elf,
        script("linux /vmlinuz-6.1 a\ninitrd /initrd.img-6.1 /initrd.img-6.1"),
        script("linux /boot/vmlinuz-6.1 a\ninitrd /boot/initrd.img-6.1"),
        script("linux /boot/grub b\ninitrd /boot/none"),
        script(&format!("linux /boot/vmlinuz-6.1 {}", "long=argument ".repeat(130))),
        script("linux /holes\ninitrd /etc/fstab"),
    ]
});

/// Where file systems have their marks.
const MARKS: [(usize, &[u8]); 9] = [
    (0, b"XFSB"),
    (0x1_0040, b"_BHRfS_M"),
    (0x400, &[0x10, 0x20, 0xf5, 0xf2]),
    (0, b"LUKS\xba\xbe"),
    (0x36, b"FAT"),
    (0xff6, b"SWAPSPACE2"),
    (0x438, &[0, 0]),
    // As at the end of a table.
    (510, &[0x55, 0xaa]),
    // Another feature.
    (0x460, &[0x10]),
];

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
            Step::Known { file, contents } => {
                disk.replace(*file, &KNOWN[usize::from(*contents) % KNOWN.len()]);
                continue;
            }
            Step::Mark { file_system, mark } => {
                let (offset, bytes) = MARKS[usize::from(*mark) % MARKS.len()];
                disk.mark(*file_system, offset, bytes);
                continue;
            }
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
        Err(error) => {
            check_message(&error);
            assert!(error.to_string().len() <= MOST_MESSAGE, "{error}");
        }
    }
    disk.image.restore();
});
