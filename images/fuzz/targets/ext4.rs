//! File systems of every kind, of which everything is read that there is.

#![no_main]

use std::cell::Cell;
use std::sync::{LazyLock, Mutex};

use arbitrary::Arbitrary;
use innkeeper_images::boot::Region;
use innkeeper_images::boot::ext4::{Error, FileSystem};
use innkeeper_images::boot::tree::{MAX_NAMES, Tree as _};
use innkeeper_images_fuzz::disks::{Disk, file_systems};
use innkeeper_images_fuzz::{Change, Meter, Steps, check_message, memory};
use libfuzzer_sys::fuzz_target;

/// What may be read of structures, in bytes. A disk's own budget is larger, and takes longer.
const BUDGET: u64 = 4 << 20;

/// The size of files that are read, in bytes, how many paths are looked at, and how many of a directory.
const LIMIT: u64 = 512 << 10;
const MOST_PATHS: usize = 32;
const MOST_OF_DIRECTORY: usize = 8;

#[derive(Arbitrary, Debug)]
struct Input {
    base: u8,
    /// Most are: what is wrong with a checksum is found soon.
    is_bare: Option<bool>,
    changes: Steps<Change>,
}

static BASES: LazyLock<Vec<Mutex<Disk>>> = LazyLock::new(|| {
    let bases = file_systems();
    for base in &bases {
        let meter = Meter::new(base.image.bytes());
        let budget = Cell::new(BUDGET);
        let whole = FileSystem::open(Region::whole(&meter, &budget).unwrap()).unwrap();
        assert_eq!(whole.read("initrd", LIMIT).unwrap(), "initrd ".repeat(300).into_bytes());
    }
    bases.into_iter().map(Mutex::new).collect()
});

fn read_all(bytes: &[u8]) -> Result<(), Error> {
    let meter = Meter::new(bytes);
    let budget = Cell::new(BUDGET);
    let mut files = 0;
    let result = FileSystem::open(Region::whole(&meter, &budget).unwrap()).map(|file_system| {
        let mut paths = vec![String::new()];
        let mut count = 0;
        while let Some(path) = paths.pop() {
            count += 1;
            if count > MOST_PATHS {
                break;
            }
            files += 2 * LIMIT;
            // Now and then, as it takes time.
            if !check_file(&file_system, &path, count % 4 == 0) {
                continue;
            }
            let names = check_names(&file_system, &path).into_iter().take(MOST_OF_DIRECTORY);
            paths.extend(names.map(|name| format!("{path}/{name}")));
        }
    });
    meter.check(BUDGET, files);
    result
}

/// Checks a file. Says whether it may be a directory.
fn check_file(file_system: &FileSystem<'_>, path: &str, is_twice: bool) -> bool {
    let mut copy = Vec::new();
    let copied = file_system.copy(path, LIMIT, &mut |offset, piece| {
        let offset = offset as usize;
        assert!(offset >= copy.len() && !piece.is_empty(), "a piece goes back");
        assert!(offset + piece.len() <= LIMIT as usize, "a piece is behind the end");
        copy.resize(offset, 0);
        copy.extend_from_slice(piece);
        Ok(())
    });
    let is_none = matches!(copied, Err(Error::NotA(_)));
    match &copied {
        Ok(size) => assert!(*size <= LIMIT && copy.len() as u64 <= *size, "more than there is"),
        Err(error) => check_message(error),
    }
    if is_twice {
        match (copied, file_system.read(path, LIMIT)) {
            (Ok(size), Ok(contents)) => {
                copy.resize(size as usize, 0);
                assert!(copy == contents, "{path} is not the same a second time");
            }
            (Err(error), Ok(_)) => panic!("only the second time: {error}"),
            // There may be nothing left of the budget.
            (_, Err(error)) => check_message(&error),
        }
    }
    is_none
}

fn check_names(file_system: &FileSystem<'_>, path: &str) -> Vec<String> {
    match file_system.names(path) {
        Ok(names) => {
            assert!(names.len() <= MAX_NAMES);
            for name in &names {
                assert!(!name.is_empty() && name.len() <= 255 && !name.contains(['/', '\0']), "{name:?}");
                assert!(name != "." && name != "..");
            }
            names
        }
        Err(error) => {
            check_message(&error);
            Vec::new()
        }
    }
}

fuzz_target!(|input: Input| {
    let mut disk = BASES[usize::from(input.base) % BASES.len()].lock().unwrap();
    input.changes.iter().for_each(|change| disk.change(change));
    if input.is_bare != Some(true) {
        disk.seal();
    }
    if let Err(error) = memory::at_most(memory::MOST, || read_all(disk.image.bytes())) {
        check_message(&error);
    }
    disk.image.restore();
});
