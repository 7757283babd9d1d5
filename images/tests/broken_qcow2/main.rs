//! More than a thousand qcow2 files that are broken, each in its own way: headers, their extensions, L1 and L2 tables, and
//! files that would be a disk without end. Each ends in an error of one line, within 2 s and 64 MiB, or in the disk that
//! QEMU reads from it too. If QEMU refuses the file for what no reader needs, such as reference counts, that is the whole one's.
//!
//! The files are the same in every run. `SHOW=1 cargo test -p innkeeper-images --test broken_qcow2 -- --nocapture` prints
//! every message.

#[path = "../common/mod.rs"]
mod common;
#[path = "../common/heap.rs"]
mod heap;

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use common::{run, tool};
use innkeeper_images::import::{Format, Import, Progress, Stage};
use tempfile::TempDir;

const MAX_TIME: Duration = Duration::from_secs(2);
const MAX_MEMORY: usize = 64 << 20;

/// Larger disks are not compared byte by byte. None of them has data.
const LARGE: u64 = 1 << 30;

/// The same numbers in every run.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    fn below(&mut self, end: usize) -> usize {
        (self.next() % end as u64) as usize
    }
}

/// Who does not want to see how far an import is.
struct Nobody;

impl Progress for Nobody {
    fn begin(&mut self, _: Stage, _: u64) {}
    fn done(&mut self, _: u64) {}
    fn note(&mut self, _: &str) {}
}

/// What has happened to all files so far.
struct Tally {
    directory: TempDir,
    errors: usize,
    read: usize,
    /// How many of those QEMU does not read.
    alone: usize,
    slowest: Duration,
    largest: usize,
}

impl Tally {
    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// Imports a file that was made of a whole one. False if that is refused.
    fn check(&mut self, name: &str, base: &Base, contents: &[u8]) -> bool {
        let name = format!("{}: {name}", base.name);
        let (source, target) = (self.path("qcow2"), self.path("image"));
        fs::write(&source, contents).unwrap();
        let import = Import { source: source.clone(), format: Format::Qcow2, target, checksum: None };
        let begun = Instant::now();
        let (result, memory) = heap::peak(|| import.run(&mut Nobody));
        let time = begun.elapsed();
        assert!(time < MAX_TIME, "{name}: {time:?}");
        assert!(memory < MAX_MEMORY, "{name}: {memory} bytes");
        self.slowest = self.slowest.max(time);
        self.largest = self.largest.max(memory);
        if let Err(error) = &result {
            let cause = std::error::Error::source(error).map(ToString::to_string).unwrap_or_default();
            let message = format!("{error}: {cause}");
            assert!(message.len() > 20 && message.len() < 1000, "{name}: {message:?}");
            assert!(!message.chars().any(char::is_control), "{name}: {message:?}");
            assert!(!message.contains("panic"), "{name}: {message:?}");
            if std::env::var_os("SHOW").is_some() {
                println!("{name}: {message}");
            }
            // A damaged compressed cluster is only found when it is read.
            let _ = fs::remove_dir_all(self.path("image.partial"));
            self.errors += 1;
            return false;
        }
        self.read += 1;
        if result.is_ok_and(|imported| imported.size > LARGE) {
            // It has only holes then, as the caller has seen to.
            let allocated = fs::metadata(self.path("image/disk.raw")).unwrap().blocks();
            assert_eq!(allocated, 0, "{name}");
            fs::remove_dir_all(self.path("image")).unwrap();
            return true;
        }
        let flat = self.path("flat");
        let mut convert = tool("qemu-img");
        convert.args(["convert", "-f", "qcow2", "-O", "raw"]).arg(&source).arg(&flat);
        let ours = fs::read(self.path("image/disk.raw")).unwrap();
        let theirs = if convert.output().unwrap().status.success() {
            fs::read(flat).unwrap()
        } else {
            self.alone += 1;
            base.disk.clone()
        };
        // QEMU leaves out the end of a disk that is not a whole sector. An import fills the sector.
        let same = ours.starts_with(&theirs) && ours.len() - theirs.len() <= 512;
        assert!(same, "{name}: QEMU reads another disk");
        fs::remove_dir_all(self.path("image")).unwrap();
        true
    }
}

/// A whole file, and where its tables are.
struct Base {
    name: String,
    disk: Vec<u8>,
    file: Vec<u8>,
    cluster: usize,
    l1: usize,
    l1_entries: usize,
    l2: usize,
}

impl Base {
    fn new(name: &str, arguments: &[&str]) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let (raw, qcow2) = (directory.path().join("raw"), directory.path().join("qcow2"));
        let mut random = Random(0x0dd_ba11_5eed);
        let mut disk: Vec<u8> = (0..700 << 10).map(|_| (random.next() % 5) as u8).collect();
        disk[200 << 10..300 << 10].fill(0);
        fs::write(&raw, &disk).unwrap();
        let mut convert = tool("qemu-img");
        run(convert.args(["convert", "-f", "raw", "-O", "qcow2"]).args(arguments).arg(&raw).arg(&qcow2), "");
        let file = fs::read(qcow2).unwrap();
        let l1 = long(&file, 40) as usize;
        Self {
            name: name.to_owned(),
            disk,
            cluster: 1 << word(&file, 20),
            l1,
            l1_entries: word(&file, 36) as usize,
            l2: (long(&file, l1) & 0x00ff_ffff_ffff_fe00) as usize,
            file,
        }
    }

    /// The file with other bytes somewhere.
    fn with(&self, offset: usize, bytes: &[u8]) -> Vec<u8> {
        let mut file = self.file.clone();
        let end = offset + bytes.len();
        if file.len() < end {
            file.resize(end, 0);
        }
        file[offset..end].copy_from_slice(bytes);
        file
    }
}

fn word(file: &[u8], offset: usize) -> u32 {
    u32::from_be_bytes(file[offset..offset + 4].try_into().unwrap())
}

fn long(file: &[u8], offset: usize) -> u64 {
    u64::from_be_bytes(file[offset..offset + 8].try_into().unwrap())
}

#[test]
fn broken_qcow2_files_end_in_errors() {
    let begun = Instant::now();
    // In memory, so that the time is the import's and not a disk's.
    let directory = tempfile::tempdir_in("/dev/shm").unwrap();
    let mut tally = Tally { directory, errors: 0, read: 0, alone: 0, slowest: Duration::ZERO, largest: 0 };
    let mut random = Random(0x1ee7_c0de_5eed_0002);
    let bases = [
        Base::new("64K", &[]),
        Base::new("4K", &["-o", "cluster_size=4k"]),
        Base::new("512", &["-o", "cluster_size=512"]),
        Base::new("version 2", &["-o", "compat=0.10"]),
        Base::new("compressed", &["-c"]),
        Base::new("compressed 4K", &["-c", "-o", "cluster_size=4k"]),
    ];
    type Break = fn(&mut Tally, &Base, &mut Random);
    // The header is the same for all sizes of clusters.
    let headers = ["64K", "version 2", "compressed"];
    let kinds: [(&str, Break); 7] = [
        ("whole", |tally, base, _| assert!(tally.check("whole", base, &base.file))),
        ("headers", break_header),
        ("extensions", break_extensions),
        ("L1 tables", break_l1),
        ("L2 tables", break_l2),
        ("bits", flip_bits),
        ("endless", break_sizes),
    ];
    for (kind, make) in kinds {
        let before = (tally.errors, tally.read);
        let some = matches!(kind, "headers" | "extensions");
        let those = bases.iter().filter(|base| !some || headers.contains(&&*base.name));
        those.for_each(|base| make(&mut tally, base, &mut random));
        println!("{kind:12} {:4} errors {:4} read", tally.errors - before.0, tally.read - before.1);
    }
    let Tally { errors, read, alone, slowest, largest, .. } = tally;
    let (largest, time) = (largest >> 10, begun.elapsed());
    println!(
        "{errors} errors, {read} read, {alone} of them not by QEMU; at most {slowest:?} and {largest} KiB; all {time:?}"
    );
    assert!(errors >= 500 && read >= 100, "{errors} errors, {read} read");
}

/// Each field, with what readers do not expect.
fn break_header(tally: &mut Tally, base: &Base, random: &mut Random) {
    for offset in (0..112).step_by(4) {
        let now = word(&base.file, offset);
        let length = base.file.len() as u32;
        for value in [0, now.wrapping_add(1), now ^ 1 << 31, u32::MAX, length, random.next() as u32] {
            let name = format!("word {offset} is {value:#x}");
            tally.check(&name, base, &base.with(offset, &value.to_be_bytes()));
        }
    }
    for length in [4, 71, 72, 103, 104, 111, 112, 511, 512, base.cluster] {
        assert!(!tally.check(&format!("{length} bytes"), base, &base.file[..length]));
    }
}

/// Lengths and kinds of the header's extensions.
fn break_extensions(tally: &mut Tally, base: &Base, random: &mut Random) {
    const KINDS: [u32; 6] = [0, 0xe279_2aca, 0x6803_f857, 0x2385_2875, 0x0537_be77, 0x4441_5441];
    let start = if word(&base.file, 4) == 2 { 72 } else { word(&base.file, 100) as usize };
    for kind in KINDS {
        for length in [0, 1, 48, 49, 97, 240, 1 << 16, u32::MAX] {
            let extension = [kind.to_be_bytes(), length.to_be_bytes()].concat();
            tally.check(&format!("extension {kind:#x} {length}"), base, &base.with(start, &extension));
        }
    }
    // One behind the other, to the end of the cluster.
    let many: Vec<u8> = (start..base.cluster).step_by(8).flat_map(|_| [0, 0, 0, 9, 0, 0, 0, 0]).collect();
    tally.check("many extensions", base, &base.with(start, &many));
    let noise: Vec<u8> = (start..base.cluster.min(512)).map(|_| random.next() as u8).collect();
    tally.check("noise for extensions", base, &base.with(start, &noise));
}

/// What entries of tables should not be.
fn entries(base: &Base, random: &mut Random) -> Vec<u64> {
    let (cluster, length) = (base.cluster as u64, base.file.len() as u64);
    let copied = 1 << 63;
    let mut entries = vec![
        0,
        1,
        copied,
        1 << 62,
        3 << 62,
        u64::MAX,
        0x00ff_ffff_ffff_fe00,
        copied | (cluster / 2),
        copied | length.next_multiple_of(cluster),
        copied | (length / cluster * cluster),
        copied | base.l1 as u64,
        copied | base.l2 as u64,
        copied | 1 << 55,
        copied | cluster | 2,
        copied | cluster | 1 << 56,
        1 << 62 | (length - 1),
        1 << 62 | length,
        1 << 62 | 0x3fff_ffff_ffff_0000,
    ];
    entries.extend((0..6).map(|_| random.next()));
    entries.extend((0..6).map(|_| copied | (random.next() % (2 * length) / cluster * cluster)));
    entries.extend((0..6).map(|_| (1 << 62) | (random.next() % length)));
    entries
}

fn break_l1(tally: &mut Tally, base: &Base, random: &mut Random) {
    for entry in entries(base, random) {
        let index = random.below(base.l1_entries);
        let file = base.with(base.l1 + index * 8, &entry.to_be_bytes());
        tally.check(&format!("L1 entry {index} is {entry:#x}"), base, &file);
    }
}

fn break_l2(tally: &mut Tally, base: &Base, random: &mut Random) {
    let used = ((700 << 10) / base.cluster).min(base.cluster / 8);
    for entry in entries(base, random) {
        let index = random.below(used);
        let file = base.with(base.l2 + index * 8, &entry.to_be_bytes());
        tally.check(&format!("L2 entry {index} is {entry:#x}"), base, &file);
    }
    // All the same.
    let entry = &base.file[base.l2..base.l2 + 8];
    tally.check("one cluster", base, &base.with(base.l2, &entry.repeat(used)));
}

fn flip_bits(tally: &mut Tally, base: &Base, random: &mut Random) {
    for number in 0..45 {
        let mut file = base.file.clone();
        for _ in 0..=number % 3 {
            let table = [(0, 112), (base.l1, base.l1_entries * 8), (base.l2, base.cluster.min(1 << 12))];
            let (start, length) = table[number % 3];
            file[start + random.below(length)] ^= 1 << random.below(8);
        }
        tally.check(&format!("bits {number}"), base, &file);
    }
}

/// Small files that say that they are large disks.
fn break_sizes(tally: &mut Tally, base: &Base, _: &mut Random) {
    // The L1 table gets a place of its own, behind all else.
    let l1 = base.file.len().next_multiple_of(base.cluster);
    let covered = base.cluster as u64 * (base.cluster as u64 / 8);
    for shift in [31, 36, 40, 46] {
        let size = 1_u64 << shift;
        let entries = size.div_ceil(covered);
        for entry in [0, 1 << 63 | base.l2 as u64] {
            let mut file = base.with(24, &size.to_be_bytes());
            let shown = u32::try_from(entries).unwrap_or(u32::MAX);
            file[36..40].copy_from_slice(&shown.to_be_bytes());
            file[40..48].copy_from_slice(&(l1 as u64).to_be_bytes());
            file.resize(l1, 0);
            // What is not there is not read either.
            file.extend(u64::to_be_bytes(entry).repeat(entries.min(1 << 18) as usize));
            let endless = entry != 0;
            let read = tally.check(&format!("2^{shift} bytes, {entry:#x}"), base, &file);
            assert!(!(endless && read), "{}: 2^{shift} bytes were made of {}", base.name, file.len());
        }
    }
}
