//! Bare-metal payloads: what any KVM can run, in milliseconds.

use std::io::Write;
use std::os::unix::fs::FileExt;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::Result;
use innkeeper_tests::{Vmm, disk, path, payload, program};
use nix::sys::signal::Signal;

const PATIENCE: Duration = Duration::from_secs(20);

fn run(name: &str, more: &[&str]) -> Result<Vmm> {
    let kernel = payload(name);
    Vmm::run(["--kernel", path(&kernel), "--memory", "16M"].iter().chain(more))
}

fn disk_image(sectors: usize, text: &str) -> tempfile::NamedTempFile {
    let mut file = tempfile::NamedTempFile::new().unwrap();
    file.write_all(&vec![0; sectors * 512]).unwrap();
    file.as_file().write_all_at(text.as_bytes(), 0).unwrap();
    file
}

#[test]
fn a_guest_speaks_and_switches_itself_off() -> Result<()> {
    let mut vmm = run("hello", &[])?;
    vmm.expect("hello from a bare guest\ngoodbye\n", PATIENCE)?;
    vmm.wait_for_code(0, PATIENCE)
}

/// Without a PVH note, an ELF kernel is entered in 64-bit mode.
#[test]
fn an_elf_file_without_a_pvh_note_runs_too() -> Result<()> {
    let mut vmm = run("linux64/hello", &[])?;
    vmm.wait_for_code(0, PATIENCE)?;
    vmm.expect("hello from a bare guest\n", PATIENCE)?;
    Ok(())
}

#[test]
fn the_largest_machines_start() -> Result<()> {
    for memory in ["3G", "64G", "256G"] {
        let kernel = payload("hello");
        let mut vmm = Vmm::run(["--kernel", path(&kernel), "--memory", memory, "--cpus", "32"])?;
        vmm.wait_for_code(0, PATIENCE)?;
    }
    Ok(())
}

/// What `check` says, and the exit status that goes with it, on this host and where there is no KVM.
#[test]
fn the_check_has_three_answers() -> Result<()> {
    let check = |prepare: &str| -> Result<(Option<i32>, String)> {
        let line = format!("{prepare} exec {} check", path(&program("innkeeper-vmm")));
        let output = Command::new("unshare").args(["--mount", "sh", "-c", &line]).output()?;
        Ok((output.status.code(), String::from_utf8(output.stdout)?))
    };
    let (code, text) = check("")?;
    match code {
        Some(0) => assert!(text.starts_with("ready: "), "{text}"),
        Some(10) => {
            assert!(text.starts_with("KVM without hardware support: the processor instruction "), "{text}")
        }
        code => panic!("{code:?}: {text}"),
    }
    let (code, text) = check("mount -t tmpfs none /dev &&")?;
    assert_eq!(code, Some(11));
    assert!(
        text.starts_with("no KVM: cannot open /dev/kvm: No such file") && text.contains("modprobe"),
        "{text}"
    );
    let (code, text) = check("mount --bind /dev/null /dev/kvm &&")?;
    assert_eq!(code, Some(11), "{text}");
    Ok(())
}

#[test]
fn the_pci_bus_is_enumerated() -> Result<()> {
    let file = disk_image(8, "");
    let mut vmm = run("enumerate", &["--disk", &disk(file.path(), "")])?;
    vmm.wait_for_code(0, PATIENCE)?;
    let bus = vmm.expect("slot 1f", PATIENCE)?;
    assert!(bus.contains("slot 00 8086:0d57"), "{bus}");
    assert!(bus.contains("slot 01 1af4:1042 bar c1000000 size 00008000 caps 09 09 09 09 09 11"), "{bus}");
    let entropy = vmm.expect("\n", PATIENCE)?;
    assert!(entropy.starts_with(" 1af4:1044"), "{entropy}");
    Ok(())
}

#[test]
fn a_virtqueue_makes_a_round_trip() -> Result<()> {
    for engine in ["auto", "sync"] {
        let file = disk_image(16, "sector zero");
        let mut vmm = run("roundtrip", &["--disk", &disk(file.path(), &format!(",engine={engine}"))])?;
        vmm.wait_for_code(0, PATIENCE)?;
        vmm.expect("read 00: sector zero\nwrite 00\nflush 00\nbeyond the end 01\n", PATIENCE)?;
        let mut sector = [0; 13];
        file.as_file().read_exact_at(&mut sector, 512)?;
        assert_eq!(&sector, b"tfdups!{fsp\x01\x01");
    }
    Ok(())
}

#[test]
fn a_read_only_disk_stays_as_it_is() -> Result<()> {
    let file = disk_image(16, "sector zero");
    let mut vmm = run("roundtrip", &["--disk", &disk(file.path(), ",readonly=on")])?;
    vmm.wait_for_code(0, PATIENCE)?;
    vmm.expect("read 00: sector zero\nwrite 01\n", PATIENCE)?;
    let mut sector = [0; 512];
    file.as_file().read_exact_at(&mut sector, 512)?;
    assert_eq!(sector, [0; 512]);
    Ok(())
}

#[test]
fn a_guest_resets_in_the_same_process() -> Result<()> {
    let mut vmm = run("control", &[])?;
    for way in ["r", "k", "t"] {
        vmm.expect("ready\n", PATIENCE)?;
        vmm.send("ex")?;
        vmm.expect("x", PATIENCE)?;
        vmm.send(way)?;
    }
    vmm.expect("ready\n", PATIENCE)?;

    vmm.send("p")?;
    vmm.wait_for_code(0, PATIENCE)
}

#[test]
fn five_triple_faults_are_enough() -> Result<()> {
    let mut vmm = run("triple", &[])?;
    vmm.wait_for_code(4, PATIENCE)?;
    assert!(vmm.errors().contains("triple fault 5 times within 10 s"), "{}", vmm.errors());
    for _ in 0..5 {
        vmm.expect("dying\n", PATIENCE)?;
    }
    assert!(vmm.expect("dying", PATIENCE).is_err());
    Ok(())
}

#[test]
fn a_second_sigterm_ends_a_guest_that_does_not_listen() -> Result<()> {
    let mut vmm = run("control", &[])?;
    vmm.expect("ready\n", PATIENCE)?;
    vmm.send("h")?;
    vmm.signal(Signal::SIGTERM)?;
    assert!(vmm.wait(Duration::from_millis(300)).is_err(), "one SIGTERM only presses the power button");
    vmm.signal(Signal::SIGTERM)?;
    vmm.wait_for_code(3, PATIENCE)
}

#[test]
fn a_guest_that_does_not_listen_is_ended_after_the_timeout() -> Result<()> {
    let mut vmm = run("control", &["--stop-timeout", "1"])?;
    vmm.expect("ready\n", PATIENCE)?;
    let asked = Instant::now();
    vmm.signal(Signal::SIGTERM)?;
    vmm.wait_for_code(3, PATIENCE)?;
    assert!(asked.elapsed() >= Duration::from_secs(1));
    Ok(())
}

/// More input than the serial port holds arrives whole and in order.
#[test]
fn console_input_waits_for_the_guest() -> Result<()> {
    let mut vmm = run("control", &[])?;
    vmm.expect("ready\n", PATIENCE)?;
    let text: String = ('a'..='z').cycle().take(1000).collect();
    vmm.send(text.chars().map(|letter| format!("e{letter}")).collect::<String>())?;
    vmm.expect(&text, PATIENCE)?;
    vmm.send("p")?;
    vmm.wait_for_code(0, PATIENCE)
}

#[test]
fn the_console_goes_to_a_file_or_nowhere() -> Result<()> {
    let file = tempfile::NamedTempFile::new()?;
    let old = "what a guest said before, at greater length than this one will";
    std::fs::write(file.path(), old)?;
    let serial = format!("file={}", path(file.path()));
    let mut vmm = Vmm::run(["--kernel", "/dev/null", "--serial", &serial])?;
    vmm.wait_for_code(1, PATIENCE)?;
    assert_eq!(std::fs::read_to_string(file.path())?, old, "there is no new guest");
    let mut vmm = run("hello", &["--serial", &format!("file={}", path(file.path()))])?;
    vmm.wait_for_code(0, PATIENCE)?;
    assert_eq!(std::fs::read_to_string(file.path())?, "hello from a bare guest\ngoodbye\n");
    let mut vmm = run("hello", &["--serial", "none"])?;
    vmm.wait_for_code(0, PATIENCE)?;
    assert!(vmm.expect("hello", PATIENCE).is_err());
    Ok(())
}

/// What one guest does before it stops. How many guests there are: `scripts/test --seeds N`.
const HOSTILE_ROUNDS: u16 = 150;

fn attack(vmm: &mut Vmm, seed: u16, rounds: u16) -> Result<()> {
    let ([first, second], [low, high]) = (seed.to_le_bytes(), rounds.to_le_bytes());
    vmm.send([first, second, low, high])
}

/// A guest that writes nonsense everywhere. The VMM survives or ends with a message; it never hangs.
#[test]
fn a_hostile_guest_harms_only_itself() -> Result<()> {
    let seeds = match std::env::var("INNKEEPER_HOSTILE_SEEDS") {
        Ok(text) => text.parse()?,
        Err(_) => 4u16,
    };
    let content = "a disk that is only changed through requests";
    for seed in 1..=seeds {
        let file = disk_image(16, content);
        let witness = disk_image(16, content);
        let mut vmm = run(
            "hostile",
            &["--disk", &disk(file.path(), ""), "--disk", &disk(witness.path(), ",readonly=on")],
        )?;
        vmm.expect("seed?\n", PATIENCE)?;
        attack(&mut vmm, seed, HOSTILE_ROUNDS)?;
        // Its disk writes where it said, which may be into itself: then it resets and asks again.
        match vmm.expect_any(&["survived\n", "seed?\n"], Duration::from_secs(60)) {
            Ok("survived\n") => vmm.wait_for_code(0, PATIENCE)?,
            Ok(_) => {
                attack(&mut vmm, seed, 0)?;
                vmm.wait_for_code(0, PATIENCE)?;
            }
            Err(error) => {
                let status = vmm.wait(PATIENCE).map_err(|_| error)?;
                assert_eq!(status.code(), Some(4), "seed {seed}: {}", vmm.errors());
            }
        }
        assert!(!vmm.errors().contains("panicked"), "seed {seed}: {}", vmm.errors());
        assert_eq!(witness.as_file().metadata()?.len(), 16 * 512, "seed {seed}");
        let mut kept = vec![0; content.len()];
        witness.as_file().read_exact_at(&mut kept, 0)?;
        assert_eq!(kept, content.as_bytes(), "seed {seed}");
    }
    Ok(())
}

/// Descriptors and threads do not grow with resets.
#[test]
fn resets_leak_nothing() -> Result<()> {
    let file = disk_image(8, "");
    let mut vmm = run("control", &["--disk", &disk(file.path(), "")])?;
    vmm.expect("ready\n", PATIENCE)?;
    let before = vmm.holds()?;
    for _ in 0..20 {
        vmm.send("r")?;
        vmm.expect("ready\n", PATIENCE)?;
    }
    vmm.expect_to_hold(before, PATIENCE)?;
    vmm.send("p")?;
    vmm.wait_for_code(0, PATIENCE)
}
