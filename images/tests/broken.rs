//! More than 300 images that are broken, each in its own way: partition tables, ext4's structures, its journal,
//! configurations, kernels. Each ends in an error of one line, within 2 s and 64 MiB.
//!
//! The images are the same in every run. Where a random change hits nothing that matters, the answer has to be that of
//! the whole image. Files in memory do not count, since the limits of what goes into them are
//! [`MAX_KERNEL`](innkeeper_images::boot::MAX_KERNEL) and the like; the images of this test do not count either.

mod common;

use std::alloc::{GlobalAlloc, Layout, System};
use std::fs;
use std::io::Read;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use common::{LINUX, Tree, bzimage, gpt, grub_cfg, gzip, mbr, run, tool, vmlinux};
use innkeeper_images::boot::{self, BootSource, Error};

/// Counts what is allocated.
struct Counting;

static NOW: AtomicUsize = AtomicUsize::new(0);
static PEAK: AtomicUsize = AtomicUsize::new(0);

#[global_allocator]
static ALLOCATOR: Counting = Counting;

fn grow(size: usize) {
    let now = NOW.fetch_add(size, Ordering::Relaxed) + size;
    PEAK.fetch_max(now, Ordering::Relaxed);
}

// SAFETY: Everything goes to the system's allocator as it is.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        grow(layout.size());
        // SAFETY: As the caller has it.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        grow(layout.size());
        // SAFETY: As the caller has it.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        // Both are there while it is copied.
        grow(size);
        NOW.fetch_sub(layout.size(), Ordering::Relaxed);
        // SAFETY: As the caller has it.
        unsafe { System.realloc(pointer, layout, size) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        NOW.fetch_sub(layout.size(), Ordering::Relaxed);
        // SAFETY: As the caller has it.
        unsafe { System.dealloc(pointer, layout) }
    }
}

const MAX_TIME: Duration = Duration::from_secs(2);
const MAX_MEMORY: usize = 64 << 20;

/// What is found, to compare.
type Answer = (Vec<u8>, Vec<u8>, String);

fn answer(source: &BootSource) -> Answer {
    let read = |file: &fs::File| {
        let mut contents = Vec::new();
        let mut file = file.try_clone().unwrap();
        std::io::Seek::rewind(&mut file).unwrap();
        file.read_to_end(&mut contents).unwrap();
        contents
    };
    (read(&source.kernel), source.initrd.as_ref().map(read).unwrap_or_default(), source.command_line.clone())
}

/// What has happened to all images so far.
#[derive(Default)]
struct Tally {
    errors: usize,
    unharmed: usize,
    slowest: Duration,
    largest: usize,
    /// What boots and should not.
    wrong: Vec<String>,
}

impl Tally {
    /// Looks at a broken image. `whole` is what the unbroken one boots; without it there has to be an error.
    fn check(&mut self, name: &str, disk: &[u8], whole: Option<&Answer>) -> Option<Error> {
        let before = NOW.load(Ordering::Relaxed);
        PEAK.store(before, Ordering::Relaxed);
        let begun = Instant::now();
        let result = boot::find(&disk);
        let time = begun.elapsed();
        let memory = PEAK.load(Ordering::Relaxed).saturating_sub(before);
        assert!(time < MAX_TIME, "{name}: {time:?}");
        assert!(memory < MAX_MEMORY, "{name}: {memory} bytes");
        self.slowest = self.slowest.max(time);
        self.largest = self.largest.max(memory);
        match result {
            Err(error) => {
                let message = error.to_string();
                assert!(message.len() > 20 && message.len() < 1000, "{name}: {message:?}");
                assert!(!message.chars().any(char::is_control), "{name}: {message:?}");
                self.errors += 1;
                if std::env::var_os("SHOW").is_some() {
                    println!("{name}: {message}");
                }
                Some(error)
            }
            Ok(source) => {
                let found = answer(&source);
                assert!(source.kernel.metadata().unwrap().size() <= boot::MAX_KERNEL, "{name}");
                if whole.is_none_or(|whole| *whole != found) {
                    self.wrong.push(format!("{name} boots {:?}", source.origin));
                }
                self.unharmed += 1;
                None
            }
        }
    }
}

/// The same numbers in every run (xorshift64*).
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    fn below(&mut self, end: usize) -> usize {
        (self.next() % end as u64) as usize
    }
}

/// A whole image, and where in it things are.
struct Base {
    disk: Vec<u8>,
    /// Where its file system begins.
    start: usize,
    /// Its file system, for `debugfs`.
    file: tempfile::NamedTempFile,
    block_size: usize,
    answer: Answer,
}

const VERSION: &str = "6.1.0-40";
const KERNEL: &str = "/boot/vmlinuz-6.1.0-40";
const CONFIGURATION: &str = "/boot/grub/grub.cfg";
const INITRD: &str = "/boot/initrd.img-6.1.0-40";

/// The size of the whole images' configuration, which leaves room for broken ones.
const CONFIGURATION_SIZE: usize = 128 << 10;

fn tree(kernel: &[u8]) -> Tree {
    let mut cfg = grub_cfg("0", "/boot", &[VERSION]).into_bytes();
    cfg.resize(CONFIGURATION_SIZE, b'\n');
    Tree::new()
        .with(&KERNEL[1..], kernel)
        .with(&INITRD[1..], "initrd ".repeat(3000))
        .with(&CONFIGURATION[1..], cfg)
}

impl Base {
    fn new(disk: Vec<u8>, start: usize, file_system: &[u8], block_size: usize) -> Self {
        let file = tempfile::NamedTempFile::new().unwrap();
        fs::write(file.path(), file_system).unwrap();
        let answer = answer(&boot::find(&disk.as_slice()).unwrap_or_else(|error| panic!("{error}")));
        Self { disk, start, file, block_size, answer }
    }

    fn debugfs(&self, command: &str) -> String {
        run(tool("debugfs").arg("-R").arg(command).arg(self.file.path()), "")
    }

    /// Where the inode of a path is on the disk.
    fn inode(&self, path: &str) -> usize {
        let text = self.debugfs(&format!("imap {path}"));
        let mut words = text.split("located at block ").nth(1).expect(&text).split(", offset 0x");
        let block: usize = words.next().unwrap().parse().unwrap();
        self.start
            + block * self.block_size
            + usize::from_str_radix(words.next().unwrap().trim(), 16).unwrap()
    }

    /// Where the blocks of a path are on the disk.
    fn blocks(&self, path: &str) -> Vec<usize> {
        let text = self.debugfs(&format!("blocks {path}"));
        text.split_whitespace()
            .map(|block| self.start + block.parse::<usize>().unwrap() * self.block_size)
            .collect()
    }

    /// The size of a file in bytes.
    fn size(&self, path: &str) -> usize {
        let text = self.debugfs(&format!("stat {path}"));
        text.split("Size: ").nth(1).and_then(|rest| rest.split_whitespace().next()).unwrap().parse().unwrap()
    }

    fn with(&self, changes: &[(usize, &[u8])]) -> Vec<u8> {
        let mut disk = self.disk.clone();
        for (offset, bytes) in changes {
            disk[*offset..][..bytes.len()].copy_from_slice(bytes);
        }
        disk
    }

    /// With other contents of a file, which has to be large enough. The rest of it is spaces.
    fn with_contents(&self, path: &str, contents: &[u8], filler: u8) -> Vec<u8> {
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

fn crc32(data: &[u8]) -> u32 {
    let mut crc = flate2::Crc::new();
    crc.update(data);
    crc.sum()
}

fn le32(data: &[u8], offset: usize) -> usize {
    u32::from_le_bytes(data[offset..][..4].try_into().unwrap()) as usize
}

/// Changes both tables of a GPT, and makes their checksums right.
fn change_gpt(disk: &mut [u8], change: impl Fn(&mut [u8], &mut [u8])) {
    let last = disk.len() / 512 - 1;
    for (header_at, entries_at) in [(1, 2), (last, last - 32)] {
        let mut header = disk[header_at * 512..][..512].to_vec();
        let mut entries = disk[entries_at * 512..][..128 * 128].to_vec();
        change(&mut header, &mut entries);
        let count = le32(&header, 80).saturating_mul(le32(&header, 84));
        if let Some(entries) = entries.get(..count) {
            header[88..92].copy_from_slice(&crc32(entries).to_le_bytes());
        }
        let size = le32(&header, 12).min(512);
        header[16..20].fill(0);
        let sum = crc32(&header[..size]);
        header[16..20].copy_from_slice(&sum.to_le_bytes());
        disk[header_at * 512..][..512].copy_from_slice(&header);
        disk[entries_at * 512..][..128 * 128].copy_from_slice(&entries);
    }
}

fn break_gpt(tally: &mut Tally, base: &Base, random: &mut Random) {
    // Fields whose value makes no sense, in tables that match their checksums.
    let values = [0_u64, 1, 3, 0xff, 0xffff, 0xffff_ffff, u64::MAX / 512, u64::MAX];
    for (field, size) in [(12, 4), (24, 8), (40, 8), (48, 8), (72, 8), (80, 4), (84, 4)] {
        for value in values {
            let mut disk = base.disk.clone();
            change_gpt(&mut disk, |header, _| {
                header[field..field + size].copy_from_slice(&value.to_le_bytes()[..size])
            });
            tally.check(&format!("GPT header field {field} is {value:#x}"), &disk, Some(&base.answer));
        }
    }
    for field in [32, 40] {
        for value in values {
            let mut disk = base.disk.clone();
            change_gpt(&mut disk, |_, entries| {
                entries[field..field + 8].copy_from_slice(&value.to_le_bytes())
            });
            tally.check(&format!("GPT entry field {field} is {value:#x}"), &disk, None);
        }
    }
    let mut disk = base.disk.clone();
    change_gpt(&mut disk, |_, entries| entries.copy_within(0..128, 128));
    tally.check("GPT partitions overlap", &disk, None);
    // Changes that nobody has made the checksums right for, in the same place of both.
    for _ in 0..12 {
        let (offset, bit) = (random.below(92), random.below(8));
        let mut disk = base.disk.clone();
        let last = disk.len() - 512;
        for header in [512, last] {
            disk[header + offset] ^= 1 << bit;
        }
        tally.check(&format!("bit {bit} of byte {offset} of both GPT headers"), &disk, None);
    }
    for length in [
        600,
        1024,
        4096,
        1 << 20,
        (1 << 20) + 1024,
        (1 << 20) + 4096,
        2 << 20,
        5 << 20,
        base.disk.len() - (1 << 20) - 512,
    ] {
        tally.check(&format!("GPT disk cut off at {length}"), &base.disk[..length], None);
    }
}

fn break_mbr(tally: &mut Tally, base: &Base) {
    let entry = 446;
    for (field, bytes) in [
        (0, &[7_u8][..]),
        (8, &[0; 4]),
        (8, &[1, 0, 0, 0]),
        (8, &[0xff; 4]),
        (8, &[0x01, 0x08, 0, 0]),
        (12, &[0xff; 4]),
        (12, &[1, 0, 0, 0]),
        (12, &[64, 0, 0, 0]),
        (12, &[0, 0, 1, 0]),
        (4, &[0x05]),
        (4, &[0x82]),
        (4, &[0xee]),
    ] {
        tally.check(&format!("MBR field {field} is {bytes:?}"), &base.with(&[(entry + field, bytes)]), None);
    }
    // Chains of logical partitions that lead back, to themselves, and outside.
    for next in [0_u32, 1, 8, 0x7fff_ffff, 0xffff_ffff] {
        let mut link = [0; 66];
        link[4] = 0x83;
        link[8..12].copy_from_slice(&1_u32.to_le_bytes());
        link[12..16].copy_from_slice(&1_u32.to_le_bytes());
        link[16 + 4] = 5;
        link[16 + 8..][..4].copy_from_slice(&next.to_le_bytes());
        link[16 + 12..][..4].copy_from_slice(&1_u32.to_le_bytes());
        link[64..].copy_from_slice(&[0x55, 0xaa]);
        let mut extended = [0; 16];
        extended[4] = 5;
        extended[8..12].copy_from_slice(&16_u32.to_le_bytes());
        extended[12..].copy_from_slice(&1000_u32.to_le_bytes());
        let changes = [
            (entry, &[0; 16][..]),
            (entry + 16, &extended),
            (16 * 512 + 446, &link),
            (24 * 512 + 446, &link),
        ];
        tally.check(&format!("logical partitions lead to {next}"), &base.with(&changes), None);
    }
    for length in [511, 1024, 1 << 20, 3 << 20, base.disk.len() - 4096] {
        tally.check(&format!("MBR disk cut off at {length}"), &base.disk[..length], None);
    }
}

/// Fields of the superblock in a file system without checksums.
fn break_superblock(tally: &mut Tally, base: &Base, random: &mut Random) {
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
fn break_inodes(tally: &mut Tally, base: &Base) {
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
fn break_trees(tally: &mut Tally, base: &Base) {
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
                    (0, _) => {
                        [header(2, room, 0), vec![0, 0, 0, 0, 1, 0, 0, 0, 40, 0, 0, 0].repeat(2)].concat()
                    }
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

fn break_directories(tally: &mut Tally, base: &Base) {
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
fn flip_bits(tally: &mut Tally, base: &Base, random: &mut Random) {
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

fn break_configurations(tally: &mut Tally, base: &Base, random: &mut Random) {
    let cfg = grub_cfg("0", "/boot", &[VERSION]);
    let braces: Vec<usize> = cfg.match_indices(['}', '\'']).map(|(at, _)| at).collect();
    let mut broken: Vec<(String, String)> = vec![
        ("another kernel".into(), cfg.replace("vmlinuz", "vmlinux")),
        ("another initrd".into(), cfg.replace("initrd.img", "initrd")),
        ("no linux".into(), cfg.replace("\tlinux", "\tmultiboot")),
        ("a directory for a kernel".into(), cfg.replace(KERNEL, "/boot")),
        ("an endless path".into(), cfg.replace(KERNEL, &"/boot/..".repeat(500))),
        ("a long path".into(), cfg.replace(KERNEL, &format!("/boot/{}", "x".repeat(60_000)))),
        ("long arguments".into(), cfg.replace("quiet", &"quiet ".repeat(400))),
        ("a control character".into(), cfg.replace("quiet", "'qui\u{7}et'")),
        ("a line break in an argument".into(), cfg.replace("quiet", "'qui\net'")),
        ("deep conditions".into(), "if true; then ".repeat(5000)),
        ("deep blocks".into(), "menuentry x { ".repeat(5000)),
        ("deep menus".into(), format!("{}{}", "submenu x { ".repeat(20), "}".repeat(20))),
        ("deep functions".into(), "function x { ".repeat(5000)),
        ("deep loops".into(), "for x in y; do ".repeat(5000)),
        ("exclamation marks".into(), format!("if [ {} ]; then linux", "! ".repeat(60_000))),
        ("one giant word".into(), "x'".repeat(CONFIGURATION_SIZE / 2 - 1)),
        ("one giant line".into(), format!("{} {{", "x ".repeat(60_000))),
        ("giant variables".into(), format!("set a=aaaa\n{}", "set a=$a$a$a$a\n".repeat(5000))),
        ("many variables".into(), (0..8000).map(|n| format!("set v{n}=1\n")).collect()),
        (
            "giant commands".into(),
            format!("set a={}\n{}", "a".repeat(4000), format!("x{}\n", " $a".repeat(500)).repeat(20)),
        ),
        ("many entries".into(), "menuentry x { }\n".repeat(8000)),
        ("firmware".into(), "menuentry 'Firmware' { fwsetup; }".into()),
        ("an open quote".into(), "set x=\"".into()),
        ("an open brace".into(), "set x=${a".into()),
        ("another order".into(), "fi\nif\n".into()),
    ];
    for _ in 0..25 {
        // Without one of its braces or quotes it is no script, or not this one.
        let at = braces[random.below(braces.len())];
        let mut text = cfg.clone();
        text.remove(at);
        broken.push((format!("without the {at}th character"), text));
    }
    for (name, text) in broken {
        let disk = base.with_contents(CONFIGURATION, text.as_bytes(), b'\n');
        tally.check(&format!("grub.cfg: {name}"), &disk, Some(&base.answer));
    }
    // Noise: there may be no entry left, and then it is the highest version.
    let noise: Vec<u8> = (0..CONFIGURATION_SIZE).map(|_| b"{}'\"$\\;\n if fi"[random.below(14)]).collect();
    tally.check("grub.cfg of noise", &base.with_contents(CONFIGURATION, &noise, b'\n'), None);
}

fn break_links(tally: &mut Tally) {
    let whole = || tree(&bzimage(&gzip(&vmlinux("x"))));
    let with = |path: &str, target: &str| {
        let tree = whole();
        let _ = fs::remove_file(tree.path().join(&path[1..]));
        tree.with_link(&path[1..], target)
    };
    let chain = (0..40)
        .fold(with(KERNEL, "c0"), |tree, n| tree.with_link(&format!("boot/c{n}"), &format!("c{}", n + 1)));
    let circle = with(CONFIGURATION, "a").with_link("boot/grub/a", "b").with_link("boot/grub/b", "a");
    let broken = [
        ("a link to itself", with(CONFIGURATION, "grub.cfg")),
        ("a circle", circle),
        ("a chain", chain),
        ("a link to nowhere", with(KERNEL, "nowhere")),
        ("a link that grows", with(KERNEL, "../boot/l/x").with_link("boot/l", "../boot/l/l")),
        ("a long way", with(INITRD, &"../boot/".repeat(100))),
    ];
    for (name, tree) in broken {
        tally.check(name, &tree.ext4(8), None);
    }
    for size in [2 << 20, 3 << 30_u64] {
        let tree = whole();
        fs::File::create(tree.path().join(&CONFIGURATION[1..])).unwrap().set_len(size).unwrap();
        tally.check(&format!("a grub.cfg of {size} bytes"), &tree.ext4(8), None);
    }
    for path in [KERNEL, INITRD] {
        for size in [0, 600 << 20, 200 << 30_u64] {
            let tree = whole();
            fs::File::create(tree.path().join(&path[1..])).unwrap().set_len(size).unwrap();
            tally.check(&format!("{path} of {size} bytes"), &tree.ext4(8), None);
        }
    }
    let many = (0..5000).fold(whole(), |tree, n| tree.with(&format!("boot/loader/entries/{n}.conf"), ""));
    tally.check("thousands of entries", &many.mke2fs(12, &["-t", "ext4", "-N", "6000"]), None);
    let many =
        (0..300).fold(whole(), |tree, n| tree.with(&format!("boot/loader/entries/{n}.conf"), "linux /k"));
    tally.check("hundreds of entries", &many.ext4(12), None);
}

fn break_kernels(tally: &mut Tally, base: &Base, random: &mut Random) {
    let elf = vmlinux("x");
    let good = bzimage(&gzip(&elf));
    let sized =
        |stream: Vec<u8>, size: usize| bzimage(&[stream, (size as u32).to_le_bytes().to_vec()].concat());
    let zstd = |data: &[u8]| zstd::encode_all(data, 1).unwrap();
    let lz4 = |data: &[u8]| {
        let block = lz4_flex::block::compress(data);
        [&[0x02, 0x21, 0x4c, 0x18][..], &(block.len() as u32).to_le_bytes(), &block].concat()
    };
    let bomb = vec![0; 24 << 20];
    let mut gzip_bomb = gzip(&bomb);
    let end = gzip_bomb.len() - 4;
    gzip_bomb[end..].copy_from_slice(&200_000_u32.to_le_bytes());
    let mut other = elf.clone();
    other[18] = 183;
    let mut broken = vec![
        ("no kernel".to_owned(), b"#!/bin/sh\n".repeat(100)),
        ("zeros".into(), vec![0; 4096]),
        ("another machine's".into(), other.clone()),
        ("another machine's inside".into(), bzimage(&gzip(&other))),
        ("text inside".into(), bzimage(&gzip(&b"text ".repeat(1000)))),
        ("a gzip bomb".into(), bzimage(&gzip_bomb)),
        ("a zstd bomb".into(), sized(zstd(&bomb), 200_000)),
        ("an lz4 bomb".into(), sized(lz4(&bomb), 200_000)),
        ("a zstd kernel that is too large".into(), sized(zstd(&elf), 600 << 20)),
        ("a zstd kernel that is smaller than it says".into(), sized(zstd(&elf), 500 << 20)),
        ("an lz4 kernel that is smaller than it says".into(), sized(lz4(&elf), 500 << 20)),
        ("a gzip kernel of no bytes".into(), bzimage(&gzip(b""))),
        ("lz4 without end".into(), sized([&[0x02, 0x21, 0x4c, 0x18][..], &[0xff; 8]].concat(), 1000)),
        (
            "zstd with a window of gigabytes".into(),
            sized([&zstd(&elf)[..4], &[0, 0xff, 0, 0, 0, 0]].concat(), 400 << 20),
        ),
        ("xz with a dictionary of gigabytes".into(), sized(xz_header(40), 100_000)),
        ("xz with a small dictionary and nothing more".into(), sized(xz_header(0), 100_000)),
        ("xz with another filter".into(), sized(xz_header(41), 100_000)),
    ];
    // Offsets that lead outside, in every field of the header that is read.
    for (field, bytes) in [
        (0x1f1, &[0xff][..]),
        (0x202, b"XXXX"),
        (0x248, &[0xff; 4]),
        (0x248, &[1, 0, 0, 0]),
        (0x24c, &[0xff; 4]),
        (0x24c, &[0; 4]),
        (0x24c, &[8, 0, 0, 0]),
    ] {
        let mut kernel = good.clone();
        kernel[field..][..bytes.len()].copy_from_slice(bytes);
        broken.push((format!("header field {field:#x} is {bytes:?}"), kernel));
    }
    for _ in 0..15 {
        // Behind gzip's header, whose time and system nobody minds.
        let (at, bit) = (1034 + random.below(good.len() - 1034), random.below(8));
        let mut kernel = good.clone();
        kernel[at] ^= 1 << bit;
        broken.push((format!("bit {bit} of byte {at}"), kernel));
    }
    for cut in [1, 100, 0x1f1, 0x250, 1023, 1024, 1030, good.len() / 2, good.len() - 1] {
        broken.push((format!("cut off at {cut}"), good[..cut].to_vec()));
    }
    for (name, kernel) in broken {
        // With zeros behind, like a file in whole blocks: nothing in the header says how long the file is.
        let disk = base.with_contents(KERNEL, &kernel, 0);
        tally.check(&format!("kernel: {name}"), &disk, Some(&base.answer));
    }
    // What takes too much memory to decompress may do that itself, where it hurts nobody else.
    let kernel = sized(xz_header(40), 500 << 20);
    let disk = base.with_contents(KERNEL, &kernel, 0);
    let mut answer = base.answer.clone();
    answer.0 = kernel;
    answer.0.resize(base.size(KERNEL), 0);
    assert!(tally.check("a kernel with a dictionary of gigabytes", &disk, Some(&answer)).is_none());
}

/// An xz stream whose block has this size of dictionary, and no end.
fn xz_header(dictionary: u8) -> Vec<u8> {
    let mut block = vec![2, 0, 0x21, 1, dictionary, 0, 0, 0];
    block.extend(crc32(&block).to_le_bytes());
    let mut flags = vec![0, 1];
    flags.extend(crc32(&flags).to_le_bytes());
    [b"\xfd7zXZ\0".to_vec(), flags, block].concat()
}

fn break_journals(tally: &mut Tally, random: &mut Random) {
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

#[test]
fn broken_images_end_in_errors() {
    let begun = Instant::now();
    let mut tally = Tally::default();
    let mut random = Random(0x1ee7_c0de_5eed_0001);
    let kernel = bzimage(&[gzip(&vmlinux("x")), vec![0xa5; 300_000]].concat());
    // The payload ends where gzip does.
    let mut kernel = kernel;
    let length = gzip(&vmlinux("x")).len() as u32;
    kernel[0x24c..0x250].copy_from_slice(&length.to_le_bytes());
    let tree = tree(&kernel);
    let checked = tree.ext4(8);
    let unchecked = tree.mke2fs(8, &["-t", "ext4", "-b", "1024", "-O", "^metadata_csum,^64bit,^has_journal"]);
    const START: usize = 1 << 20;
    let gpt = Base::new(gpt(&[(LINUX, &checked)]), START, &checked, 1024);
    let mbr = Base::new(mbr(&[&unchecked], &[]), START, &unchecked, 1024);

    type Break<'a> = (&'a str, Box<dyn FnOnce(&mut Tally, &mut Random) + 'a>);
    let kinds: [Break<'_>; 12] = [
        ("GPT", Box::new(|tally, random| break_gpt(tally, &gpt, random))),
        ("MBR", Box::new(|tally, _| break_mbr(tally, &mbr))),
        ("superblock", Box::new(|tally, random| break_superblock(tally, &mbr, random))),
        ("inodes", Box::new(|tally, _| break_inodes(tally, &mbr))),
        ("extent trees", Box::new(|tally, _| break_trees(tally, &mbr))),
        ("directories", Box::new(|tally, _| break_directories(tally, &mbr))),
        ("bits", Box::new(|tally, random| flip_bits(tally, &gpt, random))),
        ("configurations", Box::new(|tally, random| break_configurations(tally, &mbr, random))),
        ("links and sizes", Box::new(|tally, _| break_links(tally))),
        ("kernels", Box::new(|tally, random| break_kernels(tally, &mbr, random))),
        ("journals", Box::new(|tally, random| break_journals(tally, random))),
        (
            "whole",
            Box::new(|tally, _| {
                for base in [&gpt, &mbr] {
                    assert!(tally.check("whole", &base.disk, Some(&base.answer)).is_none());
                }
            }),
        ),
    ];
    for (kind, make) in kinds {
        let before = (tally.errors, tally.unharmed);
        make(&mut tally, &mut random);
        println!("{kind:16} {:4} errors {:4} unharmed", tally.errors - before.0, tally.unharmed - before.1);
    }
    let Tally { errors, unharmed, slowest, largest, wrong } = tally;
    println!(
        "{errors} errors, {unharmed} unharmed; at most {slowest:?} and {} KiB; all {:?}",
        largest >> 10,
        begun.elapsed()
    );
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert!(errors >= 300, "only {errors} of {} are errors", errors + unharmed);
}
