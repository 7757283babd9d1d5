//! Broken structures of ext4.

use std::fs;
use std::path::PathBuf;

use innkeeper_images::boot::Error;

use crate::base::{Base, CONFIGURATION, INITRD, KERNEL, Random, tree};
use crate::common::{bzimage, gzip, run, tool, vmlinux};
use crate::measure::Tally;
use crate::tables::le32;

/// Fields of the superblock in a file system without checksums.
pub fn break_superblock(tally: &mut Tally, base: &Base, random: &mut Random) {
    let superblock = base.start + 1024;
    let fields = [
        ("blocks", 4, 4),
        ("block size", 0x18, 4),
        ("inodes per group", 0x28, 4),
        ("magic", 0x38, 2),
        ("inode size", 0x58, 2),
        ("inodes", 0, 4),
    ];
    for (name, offset, size) in fields {
        for value in [0, 1, 7, 0x7fff_ffff, 0xffff_ffff, random.next() as u32] {
            let bytes = &value.to_le_bytes()[..size];
            // Inodes that are not used, or a file system that is larger than it says.
            tally.check(
                &format!("{name} is {value:#x}"),
                &base.with(&[(superblock + offset, bytes)]),
                Some(&base.answer),
            );
        }
    }
    for bit in [0, 3, 4, 11, 12, 18, 19, 25, 31] {
        let features = le32(&base.disk, superblock + 0x60) as u32 | 1 << bit;
        let disk = base.with(&[(superblock + 0x60, &features.to_le_bytes())]);
        let error = tally.check(&format!("feature {bit}"), &disk, None);
        assert!(matches!(error, Some(Error::NeedsGuest { .. })), "{error:?}");
    }
    for block in [0_u32, 1, 2, 5, 0x7fff_ffff, 0xffff_ffff, random.next() as u32] {
        let place = base.start + base.block_size.max(2048) + 8;
        tally.check(
            &format!("the inode table is at {block:#x}"),
            &base.with(&[(place, &block.to_le_bytes())]),
            None,
        );
    }
}

/// Inodes in a file system without checksums: what they are, how large, and where their blocks are.
pub fn break_inodes(tally: &mut Tally, base: &Base) {
    for path in ["/", "/boot", "/boot/grub", CONFIGURATION, KERNEL, INITRD] {
        let inode = base.inode(path);
        let is_directory = !path.contains('.');
        let mut changes: Vec<(&str, usize, &[u8])> = vec![
            ("mode 0", 0, &[0, 0]),
            ("a device", 0, &[0, 0x60]),
            ("a symbolic link", 0, &[0xff, 0xa1]),
            ("no links", 26, &[0, 0]),
            ("encrypted", 32, &[0, 8, 8, 0]),
            ("inline", 32, &[0, 0, 8, 0x10]),
            ("no extents", 32, &[0, 0, 0, 0]),
            ("extent magic", 40, &[0, 0]),
            ("extents", 42, &[0xff, 0xff]),
            ("room", 44, &[0xff, 0xff]),
            ("depth", 46, &[1, 0]),
            ("depth", 46, &[5, 0]),
            ("depth", 46, &[6, 0]),
            ("length 0", 56, &[0, 0]),
            ("start", 60, &[0, 0, 0, 0]),
            ("start", 60, &[0xff, 0xff, 0xff, 0xff]),
            ("high start", 58, &[0xff, 0xff]),
        ];
        // Without anything in it a configuration is none.
        if [KERNEL, INITRD].contains(&path) {
            changes.push(("empty", 4, &[0; 4]));
        }
        if !is_directory {
            changes.push(("size", 108, &[0xff, 0, 0, 0]));
            changes.push(("size", 4, &[0xff, 0xff, 0xff, 0xff]));
            changes.push(("a directory", 0, &[0xff, 0x41]));
        }
        for (name, offset, bytes) in changes {
            // Without a directory, or with the root's own inode gone, there is no configuration, and so no error of its own.
            tally.check(&format!("{path}: {name} {bytes:?}"), &base.with(&[(inode + offset, bytes)]), None);
        }
    }
}

/// Extent trees that go round in circles, in blocks that nobody uses.
pub fn break_trees(tally: &mut Tally, base: &Base) {
    let free = base.start + 6 * (1 << 20);
    let block = (free - base.start) / base.block_size;
    for path in [CONFIGURATION, KERNEL, INITRD, "/boot"] {
        let inode = base.inode(path);
        for (depth, entries, leaf) in [(1, 1, 0), (1, 4, 0), (5, 4, 0), (5, 4, 1), (2, 2, 2)] {
            let mut disk = base.disk.clone();
            let room = (base.block_size - 12) / 12;
            let header = |entries: usize, room: usize, depth: usize| {
                let words = [0xf30a, entries as u16, room as u16, depth as u16, 0, 0];
                words.iter().flat_map(|word| word.to_le_bytes()).collect::<Vec<u8>>()
            };
            let child = |first: u32, block: usize| {
                [first.to_le_bytes(), (block as u32).to_le_bytes(), [0; 4]].concat()
            };
            let root =
                (0..entries).fold(header(entries, 4, depth), |node, _| [node, child(0, block)].concat());
            disk[inode + 40..][..root.len()].copy_from_slice(&root);
            // A chain of nodes, each full of ways to the next; the last is empty, leads back, or has no length.
            for level in 0..depth {
                let own = depth - 1 - level;
                let node = match (own, leaf) {
                    (0, 0) => header(0, room, 0),
                    (0, 1) => [header(1, room, 0), vec![0; 12]].concat(),
                    (0, _) => [header(2, room, 0), [0, 0, 0, 0, 1, 0, 0, 0, 40, 0, 0, 0].repeat(2)].concat(),
                    _ => (0..room).fold(header(room, room, own), |node, _| {
                        [node, child(0, block + level + 1)].concat()
                    }),
                };
                disk[free + level * base.block_size..][..node.len()].copy_from_slice(&node);
            }
            tally.check(
                &format!("{path}: a tree {depth} deep with {entries} ways, leaf {leaf}"),
                &disk,
                None,
            );
            // And one that has no end: every node leads to itself.
            let own = (0..room).fold(header(room, room, depth), |node, _| [node, child(0, block)].concat());
            disk[free..][..own.len()].copy_from_slice(&own);
            tally.check(&format!("{path}: a node {depth} deep leads to itself"), &disk, None);
        }
    }
}

/// Contents without end: the same blocks again and again, in files and directories that are much larger than the disk.
pub fn repeat_blocks(tally: &mut Tally, base: &Base) {
    let free = base.start + 6 * (1 << 20);
    let (node, blocks) = (free, free + base.block_size);
    let block = |at: usize| ((at - base.start) / base.block_size) as u32;
    let count = 1900_u16;
    let mut tree = vec![];
    for extent in 0..80_u32 {
        tree.extend((extent * u32::from(count)).to_le_bytes());
        tree.extend(count.to_le_bytes());
        tree.extend([0; 2]);
        tree.extend(block(blocks).to_le_bytes());
    }
    let tree = [&[0x0a, 0xf3, 80, 0, 84, 0, 0, 0, 0, 0, 0, 0][..], &tree].concat();
    let root =
        [&[0x0a, 0xf3, 1, 0, 4, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0][..], &block(node).to_le_bytes(), &[0; 4]]
            .concat();
    // Directories of nothing but room.
    let mut empty = vec![0; base.block_size];
    empty[4..6].copy_from_slice(&(base.block_size as u16).to_le_bytes());
    let empty = empty.repeat(usize::from(count));
    let size = 80 * u32::from(count) * base.block_size as u32;
    for path in ["/", "/boot", KERNEL, CONFIGURATION] {
        let inode = base.inode(path);
        let mut changes = vec![(inode + 40, &*root), (node, &tree), (blocks, &empty)];
        let size = size.to_le_bytes();
        changes.push((inode + 4, &size));
        let error = tally.check(&format!("{path} repeats"), &base.with(&changes), None);
        let has_no_end = error.is_some_and(|error| error.to_string().contains("there is no end to it"));
        assert_eq!(has_no_end, !path.contains('.'), "{path}");
    }
}

pub fn break_directories(tally: &mut Tally, base: &Base) {
    for path in ["/", "/boot", "/boot/grub"] {
        let block = base.blocks(path)[0];
        for (name, offset, bytes) in [
            ("no length", 4, &[0, 0][..]),
            ("a short entry", 4, &[4, 0]),
            ("an odd entry", 4, &[13, 0]),
            ("a long entry", 4, &[0xfc, 0xff]),
            ("a long name", 6, &[255]),
            ("an empty name", 6, &[0]),
            ("a slash", 8, b"/"),
            ("a zero", 8, b"\0"),
            ("no length of the second", 16, &[0, 0]),
            ("a long name of the second", 18, &[200]),
        ] {
            tally.check(&format!("{path}: {name}"), &base.with(&[(block + offset, bytes)]), None);
        }
    }
    // Entries that lead nowhere, or back.
    for (directory, name) in [
        ("/", "boot"),
        ("/boot", "grub"),
        ("/boot/grub", "grub.cfg"),
        ("/boot", &KERNEL[6..]),
        ("/boot", &INITRD[6..]),
    ] {
        let block = base.blocks(directory)[0];
        let contents = &base.disk[block..][..base.block_size];
        let at = contents.windows(name.len()).position(|window| window == name.as_bytes()).unwrap();
        for inode in [0xffff_ffff_u32, 0x7fff_ffff, 1000] {
            let disk = base.with(&[(block + at - 8, &inode.to_le_bytes())]);
            tally.check(&format!("{name} is inode {inode}"), &disk, None);
        }
    }
}

/// Random changes of structures with checksums. Only those that are used matter.
pub fn flip_bits(tally: &mut Tally, base: &Base, random: &mut Random) {
    let mut places: Vec<(usize, usize)> =
        vec![(base.start + 1024, 1024), (base.start + base.block_size.max(2048), 64)];
    for path in ["/", "/boot", "/boot/grub", CONFIGURATION, KERNEL, INITRD] {
        places.push((base.inode(path), 160));
    }
    for path in ["/", "/boot", "/boot/grub"] {
        places.push((base.blocks(path)[0], base.block_size));
    }
    for _ in 0..100 {
        let (place, length) = places[random.below(places.len())];
        let mut disk = base.disk.clone();
        let mut name = format!("{place:#x}:");
        for _ in 0..=random.below(3) {
            let (offset, bit) = (random.below(length), random.below(8));
            disk[place + offset] ^= 1 << bit;
            name += &format!(" bit {bit} of {offset}");
        }
        tally.check(&name, &disk, Some(&base.answer));
    }
}

pub fn break_journals(tally: &mut Tally, random: &mut Random) {
    let file_system = tree(&bzimage(&gzip(&vmlinux("x"))))
        .mke2fs(16, &["-t", "ext4", "-b", "1024", "-O", "^metadata_csum,^64bit"]);
    let mut base = Base::new(file_system.clone(), 0, &file_system, 1024);
    let block = base.blocks(CONFIGURATION)[0] / 1024;
    let path: PathBuf = base.file.path().into();
    let same = tempfile::NamedTempFile::new().unwrap();
    fs::write(same.path(), &base.disk[block * 1024..][..1024]).unwrap();
    run(
        tool("debugfs").args(["-w", "-f", "-"]).arg(&path),
        &format!("jo\njw -b {block} {}\njc\n", same.path().display()),
    );
    base.disk = fs::read(&path).unwrap();
    let inode = base.inode("<8>");
    let journal = base.blocks("<8>")[0];
    let whole = base.answer.clone();
    assert!(tally.check("a whole journal", &base.disk, Some(&whole)).is_none());
    for (name, offset, bytes) in [
        ("magic", journal, &[0; 4][..]),
        ("kind", journal + 4, &[0, 0, 0, 9]),
        ("block size", journal + 12, &[0, 0, 0, 0]),
        ("block size", journal + 12, &[0, 0, 16, 0]),
        ("length", journal + 16, &[0; 4]),
        ("length", journal + 16, &[0xff; 4]),
        ("first", journal + 20, &[0; 4]),
        ("first", journal + 20, &[0xff; 4]),
        ("start", journal + 28, &[0xff; 4]),
        ("start", journal + 28, &[0x7f, 0xff, 0xff, 0xff]),
        ("features", journal + 40, &[0xff; 4]),
        ("features", journal + 40, &[0, 0, 0, 0x20]),
        ("inode", 1024 + 0xe0, &[0; 4]),
        ("inode", 1024 + 0xe0, &[0xff; 4]),
        ("inode", 1024 + 0xe0, &[9, 0, 0, 0]),
        ("extents", inode + 40, &[0; 4]),
        ("extent", inode + 60, &[0xff; 4]),
        ("extent", inode + 56, &[0; 2]),
        ("extent", inode + 52, &[0xff; 4]),
        ("size", inode + 4, &[0; 8]),
    ] {
        tally.check(&format!("journal: {name} is {bytes:?}"), &base.with(&[(offset, bytes)]), None);
    }
    // What leads outside the file system, or is no log at all.
    let log: Vec<usize> = base.blocks("<8>")[1..4].to_vec();
    for at in &log {
        for _ in 0..5 {
            let mut disk = base.disk.clone();
            let offset = random.below(40);
            disk[at + offset] ^= 1 << random.below(8);
            // Whatever is not complete does not count, and the copy is the same.
            tally.check(&format!("journal: byte {offset} of the block at {at:#x}"), &disk, Some(&whole));
        }
    }
}
