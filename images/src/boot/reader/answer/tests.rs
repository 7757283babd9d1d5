use std::collections::BTreeMap;
use std::io::Read;

use proptest::prelude::*;

use super::*;
use crate::boot::entry::BootEntry;
use crate::boot::load::From;
use crate::boot::tree::{self, Take, Tree};

/// A tree of files and nothing else.
#[derive(Default)]
struct Files(BTreeMap<&'static str, Vec<u8>>);

impl Tree for Files {
    fn copy(&self, path: &str, limit: u64, take: Take<'_>) -> Result<u64, tree::Error> {
        let contents = self.0.get(path).ok_or(tree::Error::NotFound)?;
        assert!(contents.len() as u64 <= limit);
        for (piece, offset) in contents.chunks(1000).zip((0..).step_by(1000)) {
            take(offset, piece).map_err(tree::Error::Store)?;
        }
        Ok(contents.len() as u64)
    }

    fn names(&self, _path: &str) -> Result<Vec<String>, tree::Error> {
        Err(tree::Error::NotFound)
    }

    fn exists(&self, path: &str) -> Result<bool, tree::Error> {
        Ok(self.0.contains_key(path))
    }
}

fn elf() -> Vec<u8> {
    let mut elf = b"\x7fELF\x02\x01\x01".to_vec();
    elf.resize(5000, 7);
    elf[18..20].copy_from_slice(&[62, 0]);
    elf
}

fn disk() -> File {
    let disk = tempfile::tempfile().unwrap();
    disk.set_len(ANSWER_DISK).unwrap();
    disk
}

/// What a guest does that has found this entry.
fn give(disk: &File, files: &Files, place: Place, entry: BootEntry) -> Result<(), boot::Error> {
    let answer = Answer::begin(disk).unwrap().unwrap();
    let from = From { place, tree: files, base: "/boot", whole: None };
    answer.give(Found { from, configuration: Some("/boot/grub/grub.cfg".into()), entry })
}

fn entry(initrds: &[&str], arguments: Option<&str>) -> BootEntry {
    BootEntry {
        title: "Linux".into(),
        kernel: "/boot/k".into(),
        initrds: initrds.iter().map(|path| (*path).to_owned()).collect(),
        arguments: arguments.map(str::to_owned),
    }
}

fn files() -> Files {
    Files(BTreeMap::from([
        ("/boot/k", elf()),
        ("/boot/a", b"12345".to_vec()),
        ("/boot/b", [vec![0; 3 << 20], b"x".to_vec()].concat()),
    ]))
}

fn contents(mut file: &File) -> Vec<u8> {
    let mut contents = Vec::new();
    file.read_to_end(&mut contents).unwrap();
    contents
}

#[test]
fn what_a_guest_gives_is_what_the_host_gets() {
    let disk = disk();
    give(&disk, &files(), Place::Partition(3), entry(&["a", "/boot/b"], Some("root=/dev/vda3 quiet")))
        .unwrap();
    let source = answer(&disk).unwrap();
    assert_eq!(
        source.origin,
        Origin {
            place: Place::Partition(3),
            configuration: Some("/boot/grub/grub.cfg".into()),
            title: "Linux".into(),
            kernel: "/boot/k".into(),
            initrds: vec!["a".into(), "/boot/b".into()],
        }
    );
    assert!(
        source.command_line.starts_with("root=/dev/vda3 quiet console=ttyS0 "),
        "{}",
        source.command_line
    );
    assert!(contents(&source.kernel) == elf());
    let initrd = source.initrd.unwrap();
    let expected = [b"12345\0\0\0".to_vec(), vec![0; 3 << 20], b"x".to_vec()].concat();
    assert!(contents(&initrd) == expected);
    for file in [source.kernel, initrd] {
        file.write_at(b"x", 0).unwrap_err();
        file.set_len(1).unwrap_err();
    }
}

#[test]
fn a_disk_without_partitions_and_an_entry_with_little() {
    let disk = disk();
    give(&disk, &files(), Place::Disk, entry(&[], None)).unwrap();
    let source = answer(&disk).unwrap();
    assert_eq!((source.origin.place, source.initrd.is_none()), (Place::Disk, true));
    assert!(source.command_line.starts_with("console=ttyS0 "), "{}", source.command_line);
}

#[test]
fn an_answer_that_is_none() {
    let disk = disk();
    let why = |disk: &File| match answer(disk) {
        Err(boot::Error::Reader(error)) => error,
        other => panic!("{other:?}"),
    };
    assert!(matches!(why(&disk), Error::NotBegun));
    assert!(matches!(why(&tempfile::tempfile().unwrap()), Error::Read(_)));
    let begun = Answer::begin(&disk).unwrap();
    assert!(begun.is_some() && matches!(why(&disk), Error::NotEnded));
    // After a crash, twice.
    for _ in 0..2 {
        assert!(Answer::begin(&disk).unwrap().is_none());
        let error = why(&disk);
        assert!(matches!(&error, Error::Nothing(reason) if reason == CRASHED), "{error}");
    }
    Answer::refuse(&disk, &format!("it is\nbroken {}", "ä".repeat(5000))).unwrap();
    let reason = why(&disk).to_string();
    assert!(reason.starts_with("it is?broken ä") && reason.chars().count() <= 1001, "{reason}");
    disk.write_all_at(&[9], 8).unwrap();
    assert!(matches!(why(&disk), Error::Version(9)));
}

#[test]
fn what_cannot_be_given() {
    let disk = disk();
    let mut long = entry(&[], None);
    long.title = "x".repeat(MAX_TEXT as usize);
    for (entry, expected) in [
        (entry(&["c"], None), "cannot read c on the disk: it does not exist"),
        (long, "the boot entry \"xxxx"),
    ] {
        let error = give(&disk, &files(), Place::Disk, entry).unwrap_err().to_string();
        assert!(error.starts_with(expected), "{error}");
        disk.write_all_at(&[0; 8], 0).unwrap();
    }
}

/// An answer in a few bytes, so that it can be changed at will.
fn small_answer() -> Vec<u8> {
    let file = tempfile::tempfile().unwrap();
    file.set_len(KERNEL_AT + (1 << 20)).unwrap();
    give(&file, &files(), Place::Disk, entry(&[], Some("ro"))).unwrap();
    let mut bytes = vec![0; KERNEL_AT as usize + (1 << 20)];
    file.read_exact_at(&mut bytes, 0).unwrap();
    bytes
}

#[test]
fn lies_are_found_out() {
    let honest = small_answer();
    answer(&honest.as_slice()).unwrap();
    let put = |at: usize, bytes: &[u8]| {
        let mut lying = honest.clone();
        lying[at..at + bytes.len()].copy_from_slice(bytes);
        lying
    };
    let text = TEXT_AT as usize;
    let length = le64(&honest, 16) as usize;
    for (lying, expected) in [
        (put(0, b"X"), "has not come so far"),
        (put(12, &[7]), "its state is none"),
        (put(12, &[2, 0, 0, 0, 0, 0, 0, 0]), "for no reason"),
        (put(16, &(MAX_TEXT + 1).to_le_bytes()), "its text is too long"),
        (put(16, &u64::MAX.to_le_bytes()), "its text is too long"),
        (put(16, &MAX_TEXT.to_le_bytes()), "there is something behind its text"),
        (put(16, &3_u64.to_le_bytes()), "its text is cut off"),
        (put(24, &0_u64.to_le_bytes()), "its kernel is empty or too large"),
        (put(24, &(MAX_KERNEL + 1).to_le_bytes()), "its kernel is empty or too large"),
        (put(24, &MAX_KERNEL.to_le_bytes()), "behind the end"),
        (put(32, &(MAX_INITRD + 1).to_le_bytes()), "initial RAM file system is too large"),
        (put(32, &1_u64.to_le_bytes()), "has no name, or a name and no contents"),
        (put(text + 4, &u32::MAX.to_le_bytes()), "its text is cut off"),
        (put(text + 8, b"\xff"), "its text is no UTF-8"),
        (put(text + length - 4, &33_u32.to_le_bytes()), "too many initial RAM file systems"),
        (put(text + length - 4, &u32::MAX.to_le_bytes()), "too many initial RAM file systems"),
        (put(text + length - 4, &1_u32.to_le_bytes()), "its text is cut off"),
        (put(text + length - 6, b"\x01"), "have a control character"),
        (
            put(KERNEL_AT as usize, b"x"),
            "the kernel /boot/k on the disk cannot be booted: not a Linux bzImage",
        ),
    ] {
        let error = answer(&lying.as_slice()).unwrap_err().to_string();
        assert!(error.contains(expected) && !error.contains('\n'), "{error:?} and not {expected:?}");
    }
}

proptest! {
    #[test]
    fn any_answer_is_an_error_of_one_line_or_a_boot_source(
        state in 0_u32..5,
        lengths in proptest::array::uniform3(prop_oneof![0_u64..200, any::<u64>()]),
        text in proptest::collection::vec(prop_oneof![0_u8..9, any::<u8>()], 0..200),
    ) {
        let mut disk = vec![0; 2048];
        disk[..8].copy_from_slice(MAGIC);
        disk[8] = VERSION as u8;
        disk[12..16].copy_from_slice(&state.to_le_bytes());
        for (at, length) in [16, 24, 32].into_iter().zip(lengths) {
            disk[at..at + 8].copy_from_slice(&length.to_le_bytes());
        }
        disk[512..512 + text.len()].copy_from_slice(&text);
        let error = answer(&disk.as_slice()).unwrap_err().to_string();
        prop_assert!(!error.is_empty() && !error.contains('\n'));
    }

    #[test]
    fn any_change_of_an_answer(changes in proptest::collection::vec((0_usize..700, any::<u8>()), 1..6)) {
        thread_local!(static HONEST: Vec<u8> = small_answer());
        let mut disk = HONEST.with(Clone::clone);
        for (at, byte) in changes {
            disk[at] = byte;
        }
        if let Err(error) = answer(&disk.as_slice()) {
            prop_assert!(!error.to_string().contains('\n'));
        }
    }
}
