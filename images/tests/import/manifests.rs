//! What a manifest notices, and what passes for one.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;

use innkeeper_images::import::{Error, Format, Manifest};
use sha2::{Digest, Sha256};

use crate::disks::{Lab, MIB, contents};

/// The size of a chunk.
const CHUNK: usize = 4 * MIB;

/// An image whose disk has data in its first and third chunk and at the end of its last one, which is a short one.
fn image(lab: &Lab) -> (Manifest, File, Vec<u8>) {
    let mut disk = vec![0; 5 * CHUNK + 512];
    for (chunk, length) in [(0, CHUNK), (2, 5000)] {
        disk[chunk * CHUNK..][..length].copy_from_slice(&contents(MIB + length)[MIB..]);
    }
    *disk.last_mut().unwrap() = 7;
    lab.import(Format::Raw, &lab.file("raw", &disk)).unwrap();
    let manifest = Manifest::read(&lab.path("image/disk.manifest")).unwrap();
    let file = File::options().read(true).write(true).open(lab.path("image/disk.raw")).unwrap();
    (manifest, file, disk)
}

#[test]
fn each_change_is_noticed_where_it_is() {
    let lab = Lab::new();
    let (manifest, file, disk) = image(&lab);
    manifest.verify(&file).unwrap();
    assert_eq!(manifest.data(), 2 * CHUNK as u64 + 512);
    for offset in [
        0,
        CHUNK - 1,
        // In holes.
        CHUNK,
        2 * CHUNK - 1,
        2 * CHUNK + 6000,
        3 * CHUNK + 12345,
        5 * CHUNK - 1,
        // In the last chunk, which is a short one.
        5 * CHUNK,
        5 * CHUNK + 511,
    ] {
        for bit in [1, 128] {
            file.write_all_at(&[disk[offset] ^ bit], offset as u64).unwrap();
            match manifest.verify(&file) {
                Err(Error::Differs { chunk, offset: start, length }) => {
                    assert_eq!((chunk, start), ((offset / CHUNK) as u64, (offset / CHUNK * CHUNK) as u64));
                    assert_eq!(length, if chunk == 5 { 512 } else { CHUNK as u64 });
                }
                other => panic!("{offset}: {other:?}"),
            }
            file.write_all_at(&[disk[offset]], offset as u64).unwrap();
        }
        // Zeroes that were written are still zeroes.
        manifest.verify(&file).unwrap();
    }
}

#[test]
fn the_first_of_two_changes_is_named() {
    let lab = Lab::new();
    let (manifest, file, disk) = image(&lab);
    file.write_all_at(b"x", 4 * CHUNK as u64).unwrap();
    file.write_all_at(b"x", CHUNK as u64).unwrap();
    assert!(matches!(manifest.verify(&file), Err(Error::Differs { chunk: 1, .. })));
    file.write_all_at(&[!disk[9]], 9).unwrap();
    assert!(matches!(manifest.verify(&file), Err(Error::Differs { chunk: 0, .. })));
}

#[test]
fn another_size_and_a_lost_chunk_are_noticed() {
    let lab = Lab::new();
    let (manifest, file, disk) = image(&lab);
    let size = disk.len() as u64;
    for other in [size + 512, size - 512, 0] {
        file.set_len(other).unwrap();
        let error = manifest.verify(&file).unwrap_err();
        assert!(
            matches!(error, Error::Size { expected, found } if (expected, found) == (size, other)),
            "{error}"
        );
    }
    // All is a hole now.
    file.set_len(size).unwrap();
    assert!(matches!(manifest.verify(&file), Err(Error::Differs { chunk: 0, .. })));
}

#[test]
fn hashes_are_those_of_the_chunks() {
    let lab = Lab::new();
    let (manifest, _, disk) = image(&lab);
    let text = fs::read_to_string(lab.path("image/disk.manifest")).unwrap();
    let line = |chunk: usize| {
        let bytes = &disk[chunk * CHUNK..disk.len().min((chunk + 1) * CHUNK)];
        let digits: String = Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect();
        format!("{chunk} {digits}\n")
    };
    let lines = [line(0), line(2), line(5)].concat();
    let expected = format!("innkeeper-disk-manifest 1\nsize {}\nchunk {CHUNK}\n{lines}end 3\n", disk.len());
    assert_eq!(text, expected);
    assert_eq!(manifest.text(), expected);
    assert_eq!(Manifest::parse(&text).unwrap(), manifest);
}

#[test]
fn whatever_else_is_not_a_manifest() {
    let digest = "0123456789abcdef".repeat(4);
    let good =
        format!("innkeeper-disk-manifest 1\nsize 16777216\nchunk 65536\n0 {digest}\n255 {digest}\nend 2\n");
    assert_eq!(Manifest::parse(&good).unwrap().text(), good);
    for (from, to, line) in [
        ("manifest 1", "manifest 2", 1),
        ("size 16777216", "size 0", 2),
        ("size 16777216", "size 16777215", 2),
        ("size 16777216", "size 016777216", 2),
        ("size 16777216", "size +16777216", 2),
        ("size 16777216", "size 70368744178176", 2),
        ("size 16777216", "size 99999999999999999999", 2),
        ("size 16777216", "size -512", 2),
        ("size 16777216", "Size 16777216", 2),
        ("chunk 65536", "chunk 65535", 3),
        ("chunk 65536", "chunk 98304", 3),
        ("chunk 65536", "chunk 32768", 3),
        ("chunk 65536", "chunk 134217728", 3),
        ("chunk 65536", "chunk 0", 3),
        ("0 0123", "0  0123", 4),
        ("0 0123", "00 0123", 4),
        ("0 0123", "0 0123ABCD", 4),
        ("0 0123456789abcdef", "0 0123456789ABCDEF", 4),
        ("0 0123", "0 123", 4),
        ("0 0123", "255 0123", 5),
        ("255 0", "0 0", 5),
        ("255 0", "256 0", 5),
        ("255 0", "18446744073709551615 0", 5),
        ("end 2", "end 1", 6),
        ("end 2", "end 3", 6),
        ("end 2", "end 02", 6),
        ("end 2\n", "", 6),
        ("end 2\n", "end 2", 6),
        ("end 2\n", "end 2\n\n", 6),
        ("end 2\n", "end 2\nend 2\n", 6),
        ("end 2\n", "end 2\r\n", 6),
        ("chunk 65536\n", "chunk 65536\r\n", 6),
        ("255", "\u{0}255", 5),
    ] {
        let bad = good.replacen(from, to, 1);
        assert_ne!(bad, good);
        match Manifest::parse(&bad) {
            Err(Error::Manifest { line: found, .. }) => assert_eq!(found, line, "{bad}"),
            other => panic!("{bad}: {other:?}"),
        }
    }
    for end in 0..good.len() {
        assert!(Manifest::parse(&good[..end]).is_err(), "{end}");
    }
    let lab = Lab::new();
    let error = Manifest::read(&lab.file("binary", &[0xff; 100])).unwrap_err().to_string();
    assert!(error.contains("binary"), "{error}");
    let error = Manifest::read(&lab.file("other", b"size 5\n")).unwrap_err();
    assert!(error.to_string().contains("other") && std::error::Error::source(&error).is_some(), "{error}");
}
