//! The tables of qcow2 files, which are looked at before anything is read by them.

#![no_main]

use std::io::Write;

use arbitrary::Arbitrary;
use innkeeper_images::import::{MAX_SIZE, look_at_qcow2};
use innkeeper_images_fuzz::{Change, Ground, Image, Steps, check_message, memory};
use libfuzzer_sys::fuzz_target;

/// In bytes.
const CLUSTER: usize = 4096;

#[derive(Arbitrary, Debug)]
struct Input {
    /// Clusters of data, and which of them are mapped.
    clusters: u8,
    mapped: u32,
    changes: Steps<Change>,
    /// What is missing at the end, in bytes.
    cut: Option<u16>,
}

/// A file with one table of each kind.
fn file(clusters: usize, mapped: u32) -> Image {
    let mut file = vec![0; CLUSTER * (5 + clusters)];
    let mut header = b"QFI\xfb\0\0\0\x03".to_vec();
    header.extend([0; 12]);
    header.extend(12_u32.to_be_bytes());
    header.extend((clusters.max(1) as u64 * CLUSTER as u64).to_be_bytes());
    header.extend([0; 4]);
    header.extend(1_u32.to_be_bytes());
    header.extend((3 * CLUSTER as u64).to_be_bytes());
    header.extend((CLUSTER as u64).to_be_bytes());
    header.extend(1_u32.to_be_bytes());
    header.extend([0; 36]);
    header.extend(4_u32.to_be_bytes());
    header.extend(104_u32.to_be_bytes());
    file[..header.len()].copy_from_slice(&header);
    let flag = 1_u64 << 63;
    let mut put = |at: usize, value: u64| file[at..at + 8].copy_from_slice(&value.to_be_bytes());
    put(CLUSTER, 2 * CLUSTER as u64);
    put(3 * CLUSTER, flag | 4 * CLUSTER as u64);
    for cluster in (0..clusters).filter(|cluster| mapped >> (cluster % 32) & 1 == 1) {
        put(4 * CLUSTER + 8 * cluster, flag | (CLUSTER * (5 + cluster)) as u64);
    }
    for cluster in 0..5 + clusters {
        file[2 * CLUSTER + 2 * cluster + 1] = 1;
    }
    Image::new(file)
}

fuzz_target!(|input: Input| {
    let mut image = file(usize::from(input.clusters), input.mapped);
    let tables =
        [0..112, 0..112, 3 * CLUSTER..3 * CLUSTER + 16, 4 * CLUSTER..5 * CLUSTER, CLUSTER..CLUSTER + 16];
    let ground = Ground { structures: tables.to_vec(), start: 0, unit: 1 };
    input.changes.iter().for_each(|change| change.apply(&mut image, &ground));
    let bytes = image.bytes();
    let length = bytes.len().saturating_sub(usize::from(input.cut.unwrap_or(0)));
    let mut file = tempfile::tempfile_in("/dev/shm").unwrap();
    file.write_all(&bytes[..length]).unwrap();
    match memory::at_most(memory::MOST, || look_at_qcow2(&file, length as u64)) {
        Ok(size) => assert!(size <= MAX_SIZE),
        Err(error) => check_message(&error),
    }
});
