//! What can be imported.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::time::{Duration, Instant};

use innkeeper_images::import::{Format, Stage};

use crate::common::{run, tool};
use crate::disks::{KIB, Lab, MIB, contents};

#[test]
fn a_raw_disk_whose_zeroes_are_written_out() {
    let lab = Lab::new();
    let mut disk = contents(9 * MIB);
    disk[MIB..7 * MIB].fill(0);
    let source = lab.file("disk", &disk);
    let (imported, told) = lab.imports(Format::Raw, &source, &disk);
    assert!(imported.allocated < 3 * MIB as u64 + 64 * KIB as u64, "{}", imported.allocated);
    assert_eq!(imported.resumed_from, 0);
    assert_eq!(told.stages, [(Stage::Copy, 9 * MIB as u64)]);
    assert!(told.notes.is_empty());
    // The same disk has the same digest, and another has not.
    let again = lab.imports(Format::Raw, &source, &disk).0;
    assert_eq!(again.digest, imported.digest);
    disk[8 * MIB] ^= 1;
    fs::write(&source, &disk).unwrap();
    assert_ne!(lab.imports(Format::Raw, &source, &disk).0.digest, imported.digest);
}

#[test]
fn the_holes_of_a_raw_disk_are_not_read() {
    let lab = Lab::new();
    let path = lab.path("disk");
    let source = File::create(&path).unwrap();
    // No disk reads as many zeroes in that time.
    const SIZE: u64 = 8 << 40;
    source.set_len(SIZE).unwrap();
    for offset in [0, 5 << 30, SIZE - 5] {
        source.write_all_at(b"begun", offset).unwrap();
    }
    let begun = Instant::now();
    let (imported, _) = lab.import(Format::Raw, &path).unwrap();
    assert!(begun.elapsed() < Duration::from_secs(20), "{:?}", begun.elapsed());
    assert_eq!(imported.size, SIZE);
    assert!(imported.allocated < MIB as u64, "{}", imported.allocated);
    let disk = File::open(lab.path("image/disk.raw")).unwrap();
    for offset in [0, 5 << 30, SIZE - 5] {
        let mut found = [0; 5];
        disk.read_exact_at(&mut found, offset).unwrap();
        assert_eq!(&found, b"begun");
    }
    let manifest = fs::read_to_string(lab.path("image/disk.manifest")).unwrap();
    assert_eq!(manifest.lines().count(), 3 + 3 + 1, "{manifest}");
}

#[test]
fn a_disk_ends_with_a_sector() {
    let lab = Lab::new();
    for size in [1, 511, 512, 5 * MIB + 100, 8 * MIB - 1] {
        let mut disk = contents(size);
        disk[size - 1] = 0xff;
        let source = lab.file("disk", &disk);
        disk.resize(size.next_multiple_of(512), 0);
        let (_, told) = lab.imports(Format::Raw, &source, &disk);
        let padded = told.notes.iter().any(|note| note.contains("within a sector"));
        assert_eq!(padded, !size.is_multiple_of(512), "{size}: {:?}", told.notes);
    }
}

#[test]
fn qcow2_disks_of_all_kinds() {
    let lab = Lab::new();
    let mut disk = contents(6 * MIB + 5 * KIB);
    // Some of it is not even allocated.
    disk[MIB..5 * MIB].fill(0);
    let raw = lab.file("raw", &disk);
    for arguments in [
        &[][..],
        &["-c"],
        &["-o", "compat=0.10"],
        &["-c", "-o", "compat=0.10"],
        &["-o", "cluster_size=512"],
        &["-o", "cluster_size=4k"],
        &["-c", "-o", "cluster_size=4k"],
        &["-o", "cluster_size=64k"],
        &["-o", "cluster_size=2M"],
        &["-c", "-o", "cluster_size=2M"],
        &["-o", "preallocation=metadata"],
        &["-o", "preallocation=falloc"],
        &["-o", "preallocation=full"],
        &["-o", "preallocation=full,cluster_size=2M"],
        &["-o", "lazy_refcounts=on,refcount_bits=1"],
        &["-o", "refcount_bits=64"],
        &["-S", "0"],
    ] {
        let qcow2 = lab.convert(&raw, "qcow2", arguments);
        assert!(lab.flat(&qcow2) == disk, "{arguments:?}: QEMU has another");
        println!("{arguments:?}");
        let (_, told) = lab.imports(Format::Qcow2, &qcow2, &disk);
        assert!(told.notes.is_empty());
        fs::remove_file(qcow2).unwrap();
    }
}

#[test]
fn qcow2_disks_of_odd_sizes() {
    let lab = Lab::new();
    for size in [512, KIB, 64 * KIB - 512, 64 * KIB + 512, 4 * MIB - 512, 4 * MIB + 512, 5 * MIB] {
        let disk = contents(size);
        let raw = lab.file("raw", &disk);
        for arguments in [&[][..], &["-c"]] {
            let qcow2 = lab.convert(&raw, "qcow2", arguments);
            lab.imports(Format::Qcow2, &qcow2, &disk);
        }
    }
    // QEMU makes sizes whole sectors. Others need not.
    let qcow2 = lab.convert(&lab.file("raw", &contents(MIB)), "qcow2", &[]);
    crate::disks::patch(&qcow2, 24, &(MIB as u64 - 100).to_be_bytes());
    let mut disk = contents(MIB - 100);
    disk.resize(MIB, 0);
    let (_, told) = lab.imports(Format::Qcow2, &qcow2, &disk);
    assert!(told.notes[0].contains("100 more bytes"), "{:?}", told.notes);
}

#[test]
fn a_qcow2_disk_without_data_takes_no_time() {
    let lab = Lab::new();
    for (size, cluster_size) in [("16T", "64k"), ("64T", "2M"), ("8G", "512")] {
        let path = lab.path("qcow2");
        let option = format!("cluster_size={cluster_size}");
        run(tool("qemu-img").args(["create", "-q", "-f", "qcow2", "-o", &option]).arg(&path).arg(size), "");
        let begun = Instant::now();
        // ext4 has no files of 16 TiB and more, and a clear word for it.
        match lab.import(Format::Qcow2, &path) {
            Ok((imported, _)) => assert_eq!(imported.allocated, 0),
            Err(error) => assert!(error.to_string().contains("disk.raw"), "{size}: {error}"),
        }
        assert!(begun.elapsed() < Duration::from_secs(10), "{size}: {:?}", begun.elapsed());
        for left in ["image", "image.partial"] {
            let _ = fs::remove_dir_all(lab.path(left));
        }
    }
}

#[test]
fn the_current_disk_of_one_with_snapshots() {
    let lab = Lab::new();
    let raw = lab.file("raw", &contents(6 * MIB));
    for arguments in [&[][..], &["-c"]] {
        let qcow2 = lab.convert(&raw, "qcow2", arguments);
        run(tool("qemu-img").args(["snapshot", "-c", "before"]).arg(&qcow2), "");
        run(
            tool("qemu-io")
                .args(["-f", "qcow2", "-c", "write -P 0x5a 100k 300k", "-c", "discard 1M 1M"])
                .arg(&qcow2),
            "",
        );
        run(tool("qemu-img").args(["snapshot", "-c", "between"]).arg(&qcow2), "");
        run(tool("qemu-io").args(["-f", "qcow2", "-c", "write -z 3M 200k"]).arg(&qcow2), "");
        let expected = lab.flat(&qcow2);
        assert!(expected[100 * KIB..400 * KIB].iter().all(|byte| *byte == 0x5a));
        assert!(expected != fs::read(&raw).unwrap());
        lab.imports(Format::Qcow2, &qcow2, &expected);
    }
}
