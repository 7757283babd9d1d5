//! What is left when an import is interrupted, and what the next one makes of it.
//!
//! `INNKEEPER_IMPORT_KILLS` is how many imports are killed at some time, 20 without it.

use std::cell::OnceCell;
use std::collections::BTreeSet;
use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use innkeeper_images::import::{DISK, Error, Format, Import, MANIFEST, Manifest};

use crate::common::tool;
use crate::disks::{KIB, Lab, MIB, Told, check_image, contents, patch, program};

/// A disk that takes the unoptimised program about a second, and needs several batches.
const SIZE: usize = 21 * MIB + 5 * KIB;

struct Sample {
    lab: Lab,
    disk: Vec<u8>,
    source: PathBuf,
    /// That of the first image, which was looked at more closely than others.
    digest: OnceCell<String>,
}

impl Sample {
    fn new() -> Self {
        let lab = Lab::new();
        let mut disk = contents(SIZE);
        disk[7 * MIB..15 * MIB].fill(0);
        let source = lab.convert(&lab.file("raw", &disk), "source", &["-c"]);
        Self { lab, disk, source, digest: OnceCell::new() }
    }

    fn arguments(&self, command: &mut Command) {
        command.args(["import", "--format", "qcow2"]).arg(&self.source).arg(self.target());
    }

    fn target(&self) -> PathBuf {
        self.lab.path("image")
    }

    fn journal(&self) -> PathBuf {
        self.lab.path("image.partial/journal")
    }

    /// How many chunks the journal says are done.
    fn done(&self) -> u64 {
        let journal = fs::read_to_string(self.journal()).unwrap_or_default();
        let done = journal.lines().filter_map(|line| line.strip_prefix("done ")?.parse().ok());
        done.max().unwrap_or_default()
    }

    /// What is at the target is whole, or not there.
    fn check(&self) -> bool {
        if !self.target().exists() {
            return false;
        }
        let digest = Manifest::read(&self.target().join(MANIFEST)).unwrap().digest();
        let first = self.digest.get_or_init(|| {
            check_image(&self.target(), &self.disk, &digest);
            digest.clone()
        });
        assert_eq!(digest, *first);
        assert!(fs::read(self.target().join(DISK)).unwrap() == self.disk, "the disk is another");
        true
    }

    /// Imports to the end. Returns where that began, in bytes.
    fn finish(&self) -> u64 {
        let (imported, told) =
            self.lab.import(Format::Qcow2, &self.source).unwrap_or_else(|error| panic!("{error}"));
        assert!(self.check());
        assert!(!self.lab.path("image.partial").exists());
        let said = told.notes.iter().any(|note| note.contains("goes on where"));
        assert_eq!(said, imported.resumed_from > 0, "{:?}", told.notes);
        imported.resumed_from
    }

    /// Runs the program until it does something for the `nth` time, and kills it there. False if it did not come to that.
    fn killed_at(&self, call: &str, nth: usize) -> bool {
        let mut command = tool("strace");
        let inject = format!("inject={call}:signal=KILL:when={nth}");
        command.args(["-f", "-qq", "-o", "/dev/null", "-e", &inject]);
        command.arg(program().get_program());
        self.arguments(&mut command);
        let status = command.stdout(Stdio::null()).stderr(Stdio::null()).status().unwrap();
        let killed = status.signal() == Some(9) || status.code() == Some(137);
        assert!(killed || status.success(), "{call} {nth}: {status}");
        killed
    }
}

fn kills() -> usize {
    std::env::var("INNKEEPER_IMPORT_KILLS").ok().and_then(|kills| kills.parse().ok()).unwrap_or(20)
}

#[test]
fn killed_at_any_time() {
    let sample = Sample::new();
    let begun = Instant::now();
    let start = || {
        let mut command = program();
        sample.arguments(&mut command);
        command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap()
    };
    assert!(start().wait().unwrap().success());
    let whole = begun.elapsed();
    fs::remove_dir_all(sample.target()).unwrap();
    let mut state = 0x2545_f491_4f6c_dd1d_u64;
    let (mut killed, mut finished, mut resumed) = (0, 0, 0);
    while killed < kills() {
        let before = sample.done();
        let mut child: Child = start();
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        thread::sleep(whole.mul_f64((state >> 40) as f64 / (1_u64 << 24) as f64));
        child.kill().unwrap();
        let status = child.wait().unwrap();
        killed += usize::from(status.signal() == Some(9));
        if sample.check() {
            // A kill may also come between publishing and the end. The journal that it leaves is of no use to the next.
            fs::remove_dir_all(sample.target()).unwrap();
            if sample.journal().exists() {
                assert!(!sample.lab.path("image.partial/image").exists(), "it was published twice");
                fs::remove_file(sample.journal()).unwrap();
            }
            finished += 1;
        } else {
            assert_eq!(status.signal(), Some(9), "it gave up");
            assert!(sample.done() >= before, "what was done is gone");
            resumed += usize::from(before > 0);
        }
    }
    let last = sample.finish();
    println!(
        "{killed} killed, {resumed} of them had gone on; {finished} were done; the last began at {last}"
    );
    assert!(resumed + finished > 0, "no import went on with another's work");
}

#[test]
fn killed_at_every_step() {
    let sample = Sample::new();
    let (mut killed, mut resumed) = (0, 0);
    for call in [
        "mkdir",
        "openat",
        "write",
        "ftruncate",
        "pwrite64",
        "fdatasync",
        "fsync",
        "rename",
        "unlink",
        "rmdir",
    ] {
        // The first ones, one by one; of the many others some.
        for nth in [1, 2, 3, 4, 6, 9, 20] {
            let done = sample.killed_at(call, nth);
            killed += usize::from(done);
            if sample.check() {
                // Then nothing else goes on with it, and what is left of it is in nobody's way.
                assert!(matches!(sample.lab.import(Format::Qcow2, &sample.source), Err(Error::Exists(_))));
                assert!(!sample.lab.path("image.partial").exists(), "{call} {nth} left something");
                fs::remove_dir_all(sample.target()).unwrap();
            } else {
                assert!(done, "{call} {nth}");
                let from = sample.done();
                resumed += usize::from(from > 0);
                assert_eq!(sample.finish(), (from * 4 * MIB as u64).min(SIZE as u64), "{call} {nth}");
                fs::remove_dir_all(sample.target()).unwrap();
            }
            if !done {
                break;
            }
        }
    }
    println!("killed {killed} times, resumed {resumed} times");
    assert!(killed >= 30 && resumed >= 5, "killed {killed} times, resumed {resumed} times");
}

/// An import that has done something, but not all.
fn interrupted() -> Sample {
    let sample = Sample::new();
    for nth in 2.. {
        assert!(sample.killed_at("fdatasync", nth), "it was never at work");
        if sample.done() > 0 {
            return sample;
        }
    }
    unreachable!()
}

#[test]
fn going_on_can_be_interrupted_too() {
    let sample = interrupted();
    let done = sample.done();
    // What was not recorded is cut off, and the disk gets its size again: killed before, between and behind.
    for nth in [1, 2, 3] {
        assert!(sample.killed_at("ftruncate", nth), "{nth}");
        assert_eq!(sample.done(), done, "{nth}");
    }
    assert_eq!(sample.finish(), done * 4 * MIB as u64);
}

#[test]
fn what_is_done_is_not_read_again() {
    let sample = interrupted();
    // Where the first chunks are in the source there is garbage now, and it looks as if nobody had been there.
    let times = File::open(&sample.source).unwrap().metadata().unwrap().modified().unwrap();
    let file = File::options().write(true).open(&sample.source).unwrap();
    let mut found = 0;
    let source = fs::read(&sample.source).unwrap();
    // Compressed clusters come in the order of the disk, behind the tables.
    for offset in (MIB..MIB + MIB / 2).step_by(64) {
        found += 1;
        file.write_all_at(&[!source[offset]], offset as u64).unwrap();
    }
    assert!(found > 0);
    file.set_modified(times).unwrap();
    drop(file);
    let from = sample.finish();
    assert!(from >= 4 * MIB as u64, "{from}");
}

#[test]
fn a_source_that_has_changed_is_imported_anew() {
    for change in ["contents", "time", "length"] {
        let mut sample = interrupted();
        match change {
            "contents" => {
                let mut disk = contents(SIZE);
                disk[100..200].fill(1);
                sample.source = sample.lab.convert(&sample.lab.file("raw", &disk), "source", &[]);
                sample.disk = disk;
            }
            "time" => {
                let later = std::time::SystemTime::now() + Duration::from_nanos(1);
                File::options().write(true).open(&sample.source).unwrap().set_modified(later).unwrap();
            }
            _ => {
                let file = File::options().write(true).open(&sample.source).unwrap();
                let metadata = file.metadata().unwrap();
                file.set_len(metadata.len() + 512).unwrap();
                file.set_modified(metadata.modified().unwrap()).unwrap();
            }
        }
        let (imported, told) = sample.lab.import(Format::Qcow2, &sample.source).unwrap();
        assert_eq!(imported.resumed_from, 0);
        assert!(told.notes.iter().any(|note| note.contains("starts anew: the source")), "{:?}", told.notes);
        check_image(&sample.target(), &sample.disk, &imported.digest);
    }
}

#[test]
fn work_that_is_not_as_it_was_left_is_done_anew() {
    for change in ["changed", "shorter", "gone", "no journal", "garbage", "foreign journal"] {
        let sample = interrupted();
        let disk = sample.lab.path("image.partial/image/disk.raw");
        let journal = fs::read_to_string(sample.journal()).unwrap();
        match change {
            "changed" => {
                // The last chunk of those that are done.
                let last =
                    journal.lines().rfind(|line| line.len() > 64 && line.as_bytes()[0].is_ascii_digit());
                let index: u64 = last.unwrap().split(' ').next().unwrap().parse().unwrap();
                patch(&disk, index * 4 * MIB as u64 + 5, b"changed");
            }
            "shorter" => File::options().write(true).open(&disk).unwrap().set_len(MIB as u64).unwrap(),
            "gone" => fs::remove_dir_all(disk.parent().unwrap()).unwrap(),
            "no journal" => fs::remove_file(sample.journal()).unwrap(),
            "garbage" => fs::write(sample.journal(), [0xff; 5000]).unwrap(),
            _ => fs::write(sample.journal(), journal.replacen("qcow2", "raw", 1)).unwrap(),
        }
        assert_eq!(sample.finish(), 0, "{change}");
    }
}

#[test]
fn a_torn_journal_costs_one_batch() {
    let sample = interrupted();
    let done = sample.done();
    let mut journal = fs::read(sample.journal()).unwrap();
    journal.extend_from_slice(b"6 0123456789abcdef0123\0\0\0\0\0");
    fs::write(sample.journal(), journal).unwrap();
    // What is behind what the journal has may be anything.
    let disk = sample.lab.path("image.partial/image/disk.raw");
    patch(&disk, done * 4 * MIB as u64, &[0xee; 20_000]);
    patch(&disk, SIZE as u64 - 3, b"end");
    assert_eq!(sample.finish(), done * 4 * MIB as u64);
}

#[test]
fn a_checksum_is_read_once() {
    let sample = interrupted();
    let checksum = {
        use sha2::{Digest, Sha256};
        let digest = Sha256::digest(fs::read(&sample.source).unwrap());
        format!("sha256:{}", digest.iter().map(|byte| format!("{byte:02x}")).collect::<String>())
    };
    let import = |checksum: &str| {
        let checksum = Some(checksum.parse().unwrap());
        let (source, target) = (sample.source.clone(), sample.target());
        let mut told = Told::default();
        let result = Import { source, format: Format::Qcow2, target, checksum }.run(&mut told);
        (result, told.stages.len())
    };
    // The import that was interrupted had none. A wrong one does no harm to what is done.
    let done = sample.done();
    assert!(matches!(import(&checksum.replace(':', ":0")[..71]).0, Err(Error::Checksum { .. })));
    assert_eq!(sample.done(), done);
    fs::write(
        sample.journal(),
        fs::read_to_string(sample.journal()).unwrap() + &format!("checked {checksum}\n"),
    )
    .unwrap();
    let (result, stages) = import(&checksum);
    assert!(result.unwrap().resumed_from > 0);
    assert_eq!(stages, 1, "it was checked again");
    assert!(sample.check());
    fs::remove_dir_all(sample.target()).unwrap();
    assert_eq!(import(&checksum).1, 2);
}

/// Whatever a crash of the host leaves: what the journal says is on the disk, and so is what is published.
#[test]
fn nothing_is_said_to_be_done_before_it_is_on_the_disk() {
    let sample = Sample::new();
    let log = sample.lab.path("calls");
    let mut command = tool("strace");
    command.args(["-f", "-qq", "-y", "-e", "trace=pwrite64,write,fdatasync,fsync,rename", "-o"]).arg(&log);
    command.arg(program().get_program());
    sample.arguments(&mut command);
    assert!(command.stdout(Stdio::null()).stderr(Stdio::null()).status().unwrap().success());
    let (mut unsynced, mut batches, mut published) = (BTreeSet::new(), 0, false);
    for line in fs::read_to_string(log).unwrap().lines() {
        // As in `123 fdatasync(5</tmp/image/disk.raw>) = 0`.
        let file = line.split(['<', '>']).nth(1).unwrap_or_default();
        let is = |call: &str| line.contains(&format!(" {call}("));
        if is("pwrite64") || is("write") && file.contains("image.partial/image") {
            unsynced.insert(file.to_owned());
        } else if is("fdatasync") || is("fsync") {
            unsynced.remove(file);
        } else if is("write") && file.ends_with("/journal") {
            assert!(unsynced.is_empty(), "{line}: {unsynced:?}");
            batches += 1;
        } else if is("rename") && line.contains("image.partial/image") {
            assert!(unsynced.is_empty(), "{line}: {unsynced:?}");
            published = true;
        }
    }
    assert!(batches > 1 && published, "{batches} batches");
}

#[test]
fn two_at_once() {
    let sample = Sample::new();
    let mut command = program();
    sample.arguments(&mut command);
    let mut first = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    while !sample.journal().exists() {
        thread::sleep(Duration::from_millis(1));
        assert!(first.try_wait().unwrap().is_none());
    }
    let error = sample.lab.import(Format::Qcow2, &sample.source).map(|_| ()).unwrap_err();
    assert!(matches!(error, Error::Busy(_)) && error.to_string().contains("already"), "{error}");
    assert!(first.wait().unwrap().success());
    assert!(sample.check());
}

#[test]
fn many_at_once() {
    let lab = Lab::new();
    let disk = contents(MIB);
    let source = lab.file("raw", &disk);
    for _ in 0..10 {
        let results: Vec<_> = thread::scope(|scope| {
            let start = || {
                let (source, target) = (source.clone(), lab.path("image"));
                let import = Import { source, format: Format::Raw, target, checksum: None };
                scope.spawn(move || import.run(&mut Told::default()))
            };
            let threads: Vec<_> = (0..8).map(|_| start()).collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).collect()
        });
        let made: Vec<_> = results.iter().flatten().collect();
        assert_eq!(made.len(), 1);
        for error in results.iter().filter_map(|result| result.as_ref().err()) {
            assert!(matches!(error, Error::Busy(_) | Error::Exists(_)), "{error}");
        }
        check_image(&lab.path("image"), &disk, &made[0].digest);
        fs::remove_dir_all(lab.path("image")).unwrap();
        // One that came last may have left its empty directory to the next.
        let _ = fs::remove_dir(lab.path("image.partial"));
        assert_eq!(lab.names(), ["raw"]);
    }
}

#[test]
fn a_full_disk_is_gone_on_with_when_there_is_room() {
    let sample = Sample::new();
    let mount = sample.lab.path("mount");
    let out = sample.lab.path("out");
    fs::create_dir(&mount).unwrap();
    // Of its own namespace, where it is root, so that the mount is nobody else's.
    let script = r#"
        mount -t tmpfs -o size=9m tmpfs "$MOUNT"
        "$PROGRAM" import --format qcow2 "$SOURCE" "$MOUNT/image" 2>"$OUT.full" && exit 1
        [ ! -e "$MOUNT/image" ] || exit 2
        mount -o remount,size=64m "$MOUNT"
        "$PROGRAM" import --format qcow2 "$SOURCE" "$MOUNT/image" 2>"$OUT.room" || exit 3
        cp -r --sparse=always "$MOUNT/image" "$OUT"
    "#;
    let mut command = Command::new("unshare");
    command.args(["--user", "--map-root-user", "--mount", "sh", "-ec", script]);
    command.env("MOUNT", &mount).env("PROGRAM", program().get_program());
    command.env("SOURCE", &sample.source).env("OUT", &out);
    let output = command.output().unwrap();
    assert!(output.status.success(), "{}: {}", output.status, String::from_utf8_lossy(&output.stderr));
    let read = |name: &str| fs::read_to_string(sample.lab.path(name)).unwrap();
    let full = read("out.full");
    let last = full.lines().last().unwrap();
    assert!(last.contains("make room") && last.contains("No space left on device"), "{full}");
    assert_eq!(last.matches("No space left").count(), 1, "{full}");
    assert!(read("out.room").contains("goes on where an earlier import stopped"), "{}", read("out.room"));
    let digest = Manifest::read(&out.join(MANIFEST)).unwrap().digest();
    check_image(Path::new(&out), &sample.disk, &digest);
}
