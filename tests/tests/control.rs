//! A VMM that is driven over the control protocol, with bare payloads: what any KVM can run, in milliseconds.

use std::collections::BTreeSet;
use std::io::Write;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::process::Command as Process;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use innkeeper_protocol::{
    AttachDisk, Command, ConsoleKind, Descriptor, DeviceState, DiskSource, Ending, FailureCode, Happening,
    Limits, ResetCause, State,
};
use innkeeper_tests::controller::{Boot, Controller, Machine, listener, serve, serve_by};
use innkeeper_tests::{Vmm, path, payload, program};

const PATIENCE: Duration = Duration::from_secs(20);
/// Where disks and interfaces are on the bus.
const SLOTS: std::ops::RangeInclusive<u8> = 1..=30;
/// Bytes of a console that are kept.
const HISTORY: usize = 64 << 10;
/// How long a reset waits for somebody to say what to boot.
const BOOT_SOURCE_PATIENCE: Duration = Duration::from_secs(2);

/// A guest at `ready`, its controller, and where others can connect.
struct Guest {
    vmm: Vmm,
    controller: Controller,
    directory: tempfile::TempDir,
    streams: (OwnedFd, OwnedFd),
}

impl Guest {
    fn start(payload: &str) -> Result<Self> {
        let (vmm, mut controller, streams) = serve()?;
        let directory = tempfile::tempdir()?;
        let listener = listener(&directory.path().join("control"))?;
        controller.configure(&Machine::new(Boot::payload(payload)), Some(&listener))?;
        controller.say(Command::Start)?;
        controller.attach_console(ConsoleKind::Serial, &streams, 0)?;
        controller.subscribe()?;
        let mut guest = Self { vmm, controller, directory, streams };
        guest.vmm.expect("ready\n", PATIENCE)?;
        Ok(guest)
    }

    fn connect(&self) -> Result<Controller> {
        Controller::connect(&self.directory.path().join("control"))
    }

    /// Has the guest echo something, which shows that it lives.
    fn check(&mut self) -> Result<()> {
        self.vmm.send("e!")?;
        self.vmm.expect("!", PATIENCE)?;
        Ok(())
    }

    fn quit(mut self, code: i32) -> Result<()> {
        self.controller.say(Command::Quit)?;
        self.vmm.wait_for_code(code, PATIENCE)
    }
}

fn disk(directory: &Path, name: &str, sectors: u64) -> Result<std::path::PathBuf> {
    let path = directory.join(name);
    std::fs::File::create(&path)?.set_len(sectors * 512)?;
    Ok(path)
}

/// From nothing to the end, with descriptors only: the process opens no path after it was executed.
#[test]
fn a_whole_life_opens_no_path() -> Result<()> {
    let directory = tempfile::tempdir()?;
    let trace = directory.path().join("trace");
    // What the C runtime does before `main` is to ask for its own name, by readlink.
    let calls = "open,openat,openat2,creat,open_by_handle_at,open_tree,connect,bind,socket,execve,statfs,stat,lstat,\
                 newfstatat,statx,access,faccessat,faccessat2,unlink,mkdir,chdir";
    let mut command = Process::new("strace");
    command.args(["-f", "-qq", "-e", &format!("trace={calls}"), "-o", path(&trace)]);
    // What is traced outlives who traces it, unless somebody sees to it.
    command.args(["setpriv", "--pdeathsig", "KILL"]);
    command.arg(program("innkeeper-vmm")).args(["serve", "--control", "3"]);
    let (mut vmm, mut controller, streams) =
        serve_by(command).context("strace is needed; see scripts/setup")?;

    let listener = listener(&directory.path().join("control"))?;
    let machine = Machine { virtio_console: true, balloon: true, ..Machine::new(Boot::payload("control")) };
    assert_eq!(controller.status()?.state, State::Unconfigured);
    controller.configure(&machine, Some(&listener))?;
    controller.attach_disk("root", &disk(directory.path(), "root", 8)?, Limits::default())?;
    controller.subscribe()?;
    controller.say(Command::Start)?;
    controller.attach_console(ConsoleKind::Serial, &streams, 0)?;
    vmm.expect("ready\n", PATIENCE)?;

    controller.attach_disk("more", &disk(directory.path(), "more", 8)?, Limits::default())?;
    controller.say(Command::ResizeDisk { id: "more".into(), size: 16 * 512 })?;
    controller.say(Command::SetBalloon { size: 1 << 20 })?;
    controller.say(Command::Pause)?;
    controller.say(Command::Resume)?;
    controller.detach("more", true)?;
    controller.expect(&Happening::DeviceFreed { id: "more".into() }, PATIENCE)?;
    vmm.send("r")?;
    controller.wait_for(|what| matches!(what, Happening::BootSourceWanted { .. }), PATIENCE)?;
    controller.boot(&machine.boot)?;
    vmm.expect("ready\n", PATIENCE)?;
    let mut successor = Controller::connect(&directory.path().join("control"))?;
    drop(controller);
    assert!(successor.history(ConsoleKind::Serial)?.ends_with("ready\n"));
    assert!(!successor.metrics()?.cpus.is_empty());
    vmm.send("p")?;
    successor.subscribe()?;
    successor.expect(&Happening::Ended(Ending::PowerOff), PATIENCE)?;
    successor.say(Command::Quit)?;
    vmm.wait_for_code(0, PATIENCE)?;

    let trace = std::fs::read_to_string(&trace)?;
    let mut lines = trace.lines().filter(|line| !line.contains("+++") && !line.contains("---"));
    let begin = "/innkeeper-vmm\", [";
    assert!(lines.any(|line| line.contains("execve(") && line.contains(begin)), "{trace}");
    // With an empty path, it is an open descriptor that is looked at.
    let rest: Vec<&str> = lines.filter(|line| !line.contains("AT_EMPTY_PATH")).collect();
    assert!(rest.is_empty(), "calls that name a path, or make a socket: {rest:#?}");
    Ok(())
}

#[test]
fn a_connection_begins_with_hello_and_nonsense_is_answered() -> Result<()> {
    use innkeeper_protocol::{Message, Outcome, receive_packet};
    let guest = Guest::start("control")?;
    let path = guest.directory.path().join("control");
    let socket = nix::sys::socket::socket(
        nix::sys::socket::AddressFamily::Unix,
        nix::sys::socket::SockType::SeqPacket,
        nix::sys::socket::SockFlag::empty(),
        None,
    )?;
    use std::os::fd::AsRawFd;
    nix::sys::socket::connect(socket.as_raw_fd(), &nix::sys::socket::UnixAddr::new(&path)?)?;
    let ask = |text: &[u8]| -> Result<(u64, Outcome)> {
        nix::sys::socket::send(socket.as_raw_fd(), text, nix::sys::socket::MsgFlags::empty())?;
        let (bytes, _) = receive_packet(socket.as_fd())?;
        match serde_json::from_slice(&bytes)? {
            Message::Reply(reply) => Ok((reply.id, reply.outcome)),
            Message::Event(event) => anyhow::bail!("an event that nobody asked for: {event:?}"),
        }
    };
    let is_refused = |(id, outcome): (u64, Outcome), expected: u64, text: &str| match outcome {
        Outcome::Error(failure) => {
            assert_eq!((id, failure.code), (expected, FailureCode::Invalid));
            assert!(failure.message.contains(text), "{}", failure.message);
        }
        Outcome::Ok(answer) => panic!("{answer:?}"),
    };
    is_refused(ask(br#"{"id":1,"command":"status"}"#)?, 1, "begins with hello");
    is_refused(ask(br#"{"id":2,"command":{"hello":{"version":99}}}"#)?, 2, "version 1");
    is_refused(ask(b"\0\0")?, 0, "cannot be understood");
    is_refused(ask(&vec![b'['; 100_000])?, 0, "cannot be understood");
    assert!(matches!(ask(br#"{"id":3,"command":{"hello":{"version":1}}}"#)?, (3, Outcome::Ok(_))));
    is_refused(ask(br#"{"id":4,"command":"explode"}"#)?, 4, "explode");
    is_refused(ask(br#"{"id":5,"command":{"detach":{"id":7}}}"#)?, 5, "cannot be understood");
    assert!(matches!(ask(br#"{"id":6,"command":"status"}"#)?, (6, Outcome::Ok(_))));
    guest.quit(3)
}

/// What does not go is refused with a reason, and changes nothing.
#[test]
fn what_does_not_go_is_refused() -> Result<()> {
    let (mut vmm, mut controller, streams) = serve()?;
    let directory = tempfile::tempdir()?;
    let file = std::fs::File::open("/dev/null")?;
    let failure = controller.refused(Command::Start, &[])?;
    assert_eq!(failure.code, FailureCode::Conflict);
    assert!(failure.message.contains("configure it first"), "{}", failure.message);
    let machine = Machine::new(Boot::payload("control"));
    let mut bad = machine.clone();
    for (cpus, memory) in [(0, 16), (33, 16), (1, 1), (1, 1 << 20)] {
        (bad.cpus, bad.memory) = (cpus, memory);
        assert!(controller.configure(&bad, None).is_err(), "{cpus} {memory}");
    }
    controller.configure(&machine, None)?;
    assert!(controller.configure(&machine, None).is_err(), "configured twice");
    for command in [Command::Pause, Command::Resume, Command::PowerButton, Command::Reset] {
        assert_eq!(controller.refused(command, &[])?.code, FailureCode::Conflict);
    }
    let image = disk(directory.path(), "disk", 8)?;
    controller.attach_disk("a", &image, Limits::default())?;
    let error = controller.attach_disk("a", &image, Limits::default()).unwrap_err();
    assert!(format!("{error:#}").contains("in use"), "{error:#}");
    // Also when it is the very same opened file, whose lock does not tell.
    let opened = std::fs::File::options().read(true).write(true).open(&image)?;
    let again = AttachDisk {
        id: "b".into(),
        source: DiskSource::Raw { file: Descriptor(0) },
        read_only: false,
        still: false,
        serial: String::new(),
        engine: Default::default(),
        queues: None,
        limits: Limits::default(),
    };
    controller.detach("a", false)?;
    controller.call(Command::AttachDisk(Box::new(again.clone())), &[opened.as_fd()])?;
    let second = AttachDisk { id: "c".into(), ..again };
    let failure = controller.refused(Command::AttachDisk(Box::new(second)), &[opened.as_fd()])?;
    assert!(failure.message.contains("that of device \"b\""), "{}", failure.message);
    // With the device goes the lock, though we still have the file.
    controller.detach("b", false)?;
    controller.attach_disk("a", &image, Limits::default())?;
    let other = disk(directory.path(), "other", 8)?;
    let error = controller.attach_disk("a", &other, Limits::default()).unwrap_err();
    assert!(format!("{error:#}").contains("there is a device \"a\" already"), "{error:#}");
    for id in ["", "with space", &"x".repeat(65)] {
        assert!(controller.attach_disk(id, &other, Limits::default()).is_err(), "{id:?}");
    }
    let command = Command::AttachConsole {
        console: ConsoleKind::Virtio,
        output: Some(Descriptor(0)),
        input: None,
        follow: true,
        after: 0,
    };
    let failure = controller.refused(command, &[file.as_fd()])?;
    assert!(failure.message.contains("no virtio console"), "{}", failure.message);
    let failure = controller.refused(Command::Detach { id: "b".into(), force: true }, &[])?;
    assert_eq!(failure.code, FailureCode::NotFound);
    for size in [0, 4 * 512, 8 * 512 + 1] {
        let failure = controller.refused(Command::ResizeDisk { id: "a".into(), size }, &[])?;
        assert_eq!(failure.code, FailureCode::Invalid, "{size}");
    }
    let failure = controller.refused(Command::SetBalloon { size: 1 }, &[])?;
    assert_eq!(failure.code, FailureCode::Unsupported);
    controller.say(Command::Start)?;
    controller.attach_console(ConsoleKind::Serial, &streams, 0)?;
    vmm.expect("ready\n", PATIENCE)?;
    assert_eq!(controller.refused(Command::Start, &[])?.code, FailureCode::Conflict);
    assert_eq!(controller.refused(Command::Boot { source: None }, &[])?.code, FailureCode::Conflict);
    assert_eq!(controller.status()?.devices.len(), 1);
    drop(controller);
    // Nobody is left, and nobody can come.
    vmm.wait_for_code(3, PATIENCE)
}

#[test]
fn a_paused_guest_does_nothing_until_it_is_resumed() -> Result<()> {
    let mut guest = Guest::start("control")?;
    for _ in 0..10 {
        guest.controller.say(Command::Pause)?;
        guest.controller.say(Command::Pause)?;
        guest.vmm.send("e?")?;
        assert!(guest.vmm.expect("?", Duration::from_millis(20)).is_err(), "a paused guest answers");
        assert_eq!(guest.controller.status()?.state, State::Paused);
        guest.controller.say(Command::Resume)?;
        guest.vmm.expect("?", PATIENCE)?;
    }
    // Also one that is paused can be reset, and ended.
    guest.controller.say(Command::Pause)?;
    guest.controller.say(Command::Reset)?;
    guest.controller.wait_for(|what| matches!(what, Happening::BootSourceWanted { .. }), PATIENCE)?;
    guest.controller.say(Command::Boot { source: None })?;
    guest.vmm.expect("ready\n", PATIENCE)?;
    guest.controller.say(Command::Pause)?;
    guest.controller.say(Command::PowerOff)?;
    guest.controller.expect(&Happening::Ended(Ending::Stopped), PATIENCE)?;
    guest.quit(3)
}

/// A reset boots what the controller sends, or, if that is nothing good, what was booted before.
#[test]
fn a_reset_asks_for_a_boot_source() -> Result<()> {
    let mut guest = Guest::start("control")?;
    let wanted = |what: &Happening| matches!(what, Happening::BootSourceWanted { .. });
    for (way, cause) in [("r", ResetCause::Guest), ("t", ResetCause::TripleFault)] {
        guest.vmm.send(way)?;
        guest.controller.expect(&Happening::Reset { cause }, PATIENCE)?;
        guest.controller.wait_for(wanted, PATIENCE)?;
        guest.controller.boot(&Boot::payload("control"))?;
        guest.controller.expect(&Happening::Started, PATIENCE)?;
        guest.vmm.expect("ready\n", PATIENCE)?;
    }

    // Nobody answers: after 2 s the old one.
    let asked = Instant::now();
    guest.vmm.send("k")?;
    guest.vmm.expect("ready\n", PATIENCE)?;
    let waited = asked.elapsed();
    assert!((Duration::from_millis(1900)..Duration::from_millis(4000)).contains(&waited), "{waited:?}");

    // Who says that it takes longer is waited for longer; but only when there is something to wait for.
    let longer = Command::DelayBoot { within_ms: 60_000 };
    assert_eq!(guest.controller.refused(longer.clone(), &[])?.code, FailureCode::Conflict);
    guest.controller.wait_for(wanted, PATIENCE)?;
    guest.vmm.send("k")?;
    guest.controller.wait_for(wanted, PATIENCE)?;
    guest.controller.say(longer)?;
    let forever = Command::DelayBoot { within_ms: 600_001 };
    assert_eq!(guest.controller.refused(forever, &[])?.code, FailureCode::Invalid);
    assert!(guest.vmm.expect("ready\n", Duration::from_secs(3)).is_err(), "it was not waited for");
    guest.controller.boot(&Boot::payload("control"))?;
    guest.vmm.expect("ready\n", PATIENCE)?;

    // Nonsense is refused, and the old one is used at once.
    let text = tempfile::NamedTempFile::new()?;
    text.as_file().write_all(b"not a kernel")?;
    let nonsense = Boot { kernel: text.path().into(), ..Boot::payload("control") };
    guest.vmm.send("r")?;
    guest.controller.wait_for(wanted, PATIENCE)?;
    guest.controller.boot(&nonsense)?;
    let refused = |what: &Happening| matches!(what, Happening::BootSourceRefused { .. });
    guest.controller.wait_for(refused, PATIENCE)?;
    guest.vmm.expect("ready\n", PATIENCE)?;

    // Another kernel is what runs then.
    guest.controller.say(Command::Reset)?;
    guest.controller.expect(&Happening::Reset { cause: ResetCause::Controller }, PATIENCE)?;
    guest.controller.wait_for(wanted, PATIENCE)?;
    guest.controller.boot(&Boot::payload("hello"))?;
    guest.vmm.expect("hello from a bare guest\ngoodbye\n", PATIENCE)?;
    guest.controller.expect(&Happening::Ended(Ending::PowerOff), PATIENCE)?;
    assert_eq!(guest.controller.status()?.resets, 6);
    guest.quit(0)
}

/// An armed power button turns the guest's power-off into a reset; a guest that does not listen is reset hard.
#[test]
fn a_reboot_is_a_power_off_that_starts_anew() -> Result<()> {
    let mut guest = Guest::start("control")?;
    guest.controller.say(Command::Reboot { timeout_ms: 60_000 })?;
    assert!(guest.controller.status()?.is_rebooting);
    guest.check()?;
    guest.vmm.send("p")?;
    guest.controller.expect(&Happening::Reset { cause: ResetCause::Controller }, PATIENCE)?;
    guest.controller.say(Command::Boot { source: None })?;
    guest.vmm.expect("ready\n", PATIENCE)?;
    assert!(!guest.controller.status()?.is_rebooting);

    guest.vmm.send("h")?;
    guest.controller.say(Command::Reboot { timeout_ms: 300 })?;
    guest.controller.expect(&Happening::Reset { cause: ResetCause::Controller }, PATIENCE)?;
    guest.controller.say(Command::Boot { source: None })?;
    guest.vmm.expect("ready\n", PATIENCE)?;
    guest.vmm.send("p")?;
    guest.controller.expect(&Happening::Ended(Ending::PowerOff), PATIENCE)?;
    guest.quit(0)
}

#[test]
fn devices_come_and_go_through_the_registers() -> Result<()> {
    let mut guest = Guest::start("control")?;
    let image = disk(guest.directory.path(), "disk", 8)?;
    let before = guest.vmm.holds()?;
    let show = |guest: &mut Guest, command: &str, expected: &str| -> Result<()> {
        guest.vmm.send(command)?;
        let answer = guest.vmm.expect("\n", PATIENCE)?;
        ensure!(answer == expected, "{command}: {answer} and not {expected}");
        Ok(())
    };
    let mut last_slot = 0;
    let rounds = match std::env::var("INNKEEPER_HOTPLUG_ROUNDS") {
        Ok(text) => text.parse()?,
        Err(_) => 40,
    };
    for round in 0..rounds {
        let id = format!("vol-{round}");
        let slot = guest.controller.attach_disk(&id, &image, Limits::default())?;
        assert_ne!(slot, last_slot, "a slot is not used again at once");
        last_slot = slot;
        let name = char::from(b'A' + slot);
        show(&mut guest, "a", &format!("{:08x}", 1u32 << slot))?;
        show(&mut guest, "a", "00000000")?;
        show(&mut guest, &format!("s{name}"), "10421af4")?;
        if round % 2 == 0 {
            // Asked twice, the guest hears of it twice, and nothing else changes.
            for _ in 0..2 {
                guest.controller.detach(&id, false)?;
                show(&mut guest, "b", &format!("{:08x}", 1u32 << slot))?;
                assert_eq!(guest.controller.status()?.devices[0].state, DeviceState::Detaching);
            }
            show(&mut guest, &format!("j{name}"), "ejected")?;
        } else {
            guest.controller.detach(&id, true)?;
            guest.controller.expect(&Happening::DeviceEjected { id: id.clone() }, PATIENCE)?;
            guest.controller.expect(&Happening::DeviceFreed { id: id.clone() }, PATIENCE)?;
            // What is left of it is still to be ejected.
            show(&mut guest, &format!("s{name}"), "10421af4")?;
            show(&mut guest, "b", &format!("{:08x}", 1u32 << slot))?;
            show(&mut guest, &format!("j{name}"), "ejected")?;
        }
        show(&mut guest, &format!("s{name}"), "ffffffff")?;
        if round % 2 == 0 {
            guest.controller.expect(&Happening::DeviceFreed { id: id.clone() }, PATIENCE)?;
        }
        let failure = guest.controller.refused(Command::Detach { id, force: false }, &[])?;
        assert_eq!(failure.code, FailureCode::NotFound);
    }
    guest.vmm.expect_to_hold(before, PATIENCE)?;

    // What a guest gives up unasked is still attached, and there again after a reset, or goes at once.
    for is_reset in [true, false] {
        let slot = guest.controller.attach_disk("unasked", &image, Limits::default())?;
        show(&mut guest, &format!("j{}", char::from(b'A' + slot)), "ejected")?;
        show(&mut guest, &format!("s{}", char::from(b'A' + slot)), "ffffffff")?;
        assert_eq!(guest.controller.status()?.devices[0].state, DeviceState::Attached);
        if is_reset {
            guest.vmm.send("r")?;
            guest.controller.wait_for(|what| matches!(what, Happening::BootSourceWanted { .. }), PATIENCE)?;
            guest.controller.say(Command::Boot { source: None })?;
            guest.vmm.expect("ready\n", PATIENCE)?;
            show(&mut guest, &format!("s{}", char::from(b'A' + slot)), "10421af4")?;
            guest.controller.detach("unasked", true)?;
        } else {
            guest.controller.detach("unasked", false)?;
        }
        guest.controller.expect(&Happening::DeviceFreed { id: "unasked".into() }, PATIENCE)?;
    }

    // A guest that never answers keeps its device over a pause, and loses it in a reset.
    guest.controller.attach_disk("kept", &image, Limits::default())?;
    guest.controller.detach("kept", false)?;
    guest.controller.say(Command::Pause)?;
    guest.controller.say(Command::Resume)?;
    assert_eq!(guest.controller.status()?.devices[0].state, DeviceState::Detaching);
    guest.vmm.send("r")?;
    guest.controller.expect(&Happening::DeviceFreed { id: "kept".into() }, PATIENCE)?;
    assert!(guest.controller.status()?.devices.is_empty());
    // The whole bus, and no more.
    guest.controller.say(Command::Boot { source: None })?;
    guest.vmm.expect("ready\n", PATIENCE)?;
    for number in SLOTS {
        let image = disk(guest.directory.path(), &format!("disk{number}"), 8)?;
        guest.controller.attach_disk(&format!("disk{number}"), &image, Limits::default())?;
    }
    let error = guest.controller.attach_disk("one too many", &image, Limits::default());
    assert!(error.is_err());
    let error = guest.controller.attach_disk("another", &image, Limits::default()).unwrap_err();
    assert!(format!("{error:#}").contains("all slots"), "{error:#}");
    guest.quit(3)
}

/// However a controller goes, the guest stays, and the next one finds everything: the console's history, the
/// counters, the events.
#[test]
fn controllers_die_and_the_guest_lives() -> Result<()> {
    let kills = match std::env::var("INNKEEPER_CONTROLLER_KILLS") {
        Ok(text) => text.parse()?,
        Err(_) => 40u64,
    };
    let mut guest = Guest::start("control")?;
    let image = disk(guest.directory.path(), "disk", 8)?;
    let socket = guest.directory.path().join("control");
    let before = guest.vmm.holds()?;
    let mut printed = guest.controller.status()?.serial_output;
    let mut exits = 0;
    let mut last_event = guest.controller.status()?.last_event;
    for round in 0..kills {
        // Another process is the controller, in the middle of whatever it does, and is killed.
        let mut victim = Process::new(program("controller-in-distress"))
            .args([path(&socket), path(&image), &round.to_string()])
            .stdout(std::process::Stdio::piped())
            .spawn()
            .context("controller-in-distress is a program of innkeeper-tests")?;
        let mut byte = [0];
        std::io::Read::read_exact(victim.stdout.as_mut().context("a pipe")?, &mut byte)?;
        std::thread::sleep(Duration::from_micros((round % 40) * 100));
        victim.kill()?;
        victim.wait()?;

        let mut next = guest.connect()?;
        let status = next.status()?;
        if status.state == State::Paused {
            next.say(Command::Resume)?;
        }
        assert!(status.serial_output >= printed && status.last_event >= last_event, "round {round}");
        (printed, last_event) = (status.serial_output, status.last_event);
        let metrics = next.metrics()?;
        let now: u64 = metrics.cpus.iter().map(|cpu| cpu.port_reads + cpu.port_writes).sum();
        assert!(now >= exits, "round {round}");
        exits = now;
        // What the one before had asked for may have been done since the look at the status: a device that was to go is
        // gone, and one that was to come is there. One that was freed is listed until the guest lets go of it.
        let mut freed = BTreeSet::new();
        for devices in [status.devices, next.status()?.devices] {
            for device in devices.into_iter().filter(|device| freed.insert(device.id.clone())) {
                let detach = Command::Detach { id: device.id.clone(), force: true };
                if let Err(failure) = next.try_call(detach, &[])? {
                    assert_eq!(failure.code, FailureCode::NotFound, "round {round}: {}", failure.message);
                }
                next.subscribe()?;
                next.expect(&Happening::DeviceFreed { id: device.id }, PATIENCE)?;
            }
        }
        // The guest gives up what is left of disks that were taken by force, or else no slot would be free soon.
        let slots = SLOTS.map(|slot| char::from(b'A' + slot));
        guest.vmm.send(slots.clone().map(|name| format!("j{name}")).collect::<String>())?;
        for _ in slots {
            guest.vmm.expect("ejected\n", PATIENCE)?;
        }
        guest.check().with_context(|| format!("round {round}"))?;
        let history = next.history(ConsoleKind::Serial)?;
        let is_whole = history.len() < HISTORY;
        assert!(!is_whole || history.starts_with("ready\n"), "round {round}: {history}");
        assert!(history.ends_with('!'), "round {round}: {history}");
        // It hears of everything that the others do, and would be cut off if it did not read.
        guest.controller.status()?;
    }
    // That the last reader of the history has ended is noticed with the next thing that happens.
    let deadline = Instant::now() + PATIENCE;
    while guest.vmm.holds()? != before && Instant::now() < deadline {
        guest.controller.status()?;
    }
    guest.vmm.expect_to_hold(before, Duration::ZERO)?;
    drop(guest.streams);
    guest.vmm.send("p")?;
    let mut last = Controller::connect(&socket)?;
    last.subscribe()?;
    last.expect(&Happening::Ended(Ending::PowerOff), PATIENCE)?;
    // Nobody was there when it ended, and yet it is known.
    drop((last, guest.controller));
    let mut late = Controller::connect(&socket)?;
    assert_eq!(late.status()?.ending, Some(Ending::PowerOff));
    late.say(Command::Quit)?;
    guest.vmm.wait_for_code(0, PATIENCE)
}

/// A controller that asks and never reads is not waited for.
#[test]
fn a_controller_that_does_not_read_harms_nobody() -> Result<()> {
    let mut guest = Guest::start("control")?;
    let mut deaf = guest.connect()?;
    deaf.subscribe()?;
    for _ in 0..400 {
        guest.controller.say(Command::Pause)?;
        guest.controller.expect(&Happening::Paused, PATIENCE)?;
        guest.controller.say(Command::Resume)?;
    }
    guest.check()?;
    guest.quit(3)
}

/// `run` is a controller as any other, in the VMM's own thread: it hears what others do, answers what it is asked, and
/// can be cut off.
#[test]
fn others_can_drive_a_guest_of_run() -> Result<()> {
    let directory = tempfile::tempdir()?;
    let socket = directory.path().join("control");
    let kernel = payload("control");
    let mut vmm = Vmm::run(["--kernel", path(&kernel), "--memory", "16M", "--control", path(&socket)])?;
    vmm.expect("ready\n", PATIENCE)?;
    let mut other = Controller::connect(&socket)?;
    for _ in 0..100 {
        other.say(Command::Pause)?;
        other.say(Command::Resume)?;
    }
    let asked = Instant::now();
    vmm.send("r")?;
    vmm.expect("ready\n", PATIENCE)?;
    assert!(asked.elapsed() < BOOT_SOURCE_PATIENCE, "nobody said what to boot");

    let crowd: Vec<_> = (0..16).map(|_| Controller::connect(&socket)).collect::<Result<_>>()?;
    vmm.send("e!")?;
    vmm.expect("!", PATIENCE)?;
    drop(crowd);
    let mut last = Controller::connect(&socket)?;
    assert_eq!(last.status()?.state, State::Running);
    last.say(Command::Quit)?;
    vmm.wait_for_code(3, PATIENCE)?;
    ensure!(!socket.exists(), "the socket's file is left");
    Ok(())
}

/// Between two machines nobody has the device, so that nobody is waited for.
#[test]
fn what_is_detached_between_two_machines_is_gone() -> Result<()> {
    let mut guest = Guest::start("control")?;
    let image = disk(guest.directory.path(), "disk", 8)?;
    guest.controller.attach_disk("data", &image, Limits::default())?;
    guest.vmm.send("r")?;
    guest.controller.wait_for(|what| matches!(what, Happening::BootSourceWanted { .. }), PATIENCE)?;
    // Long enough for the old machine to go, and not for the question to be over.
    std::thread::sleep(Duration::from_millis(500));
    guest.controller.detach("data", false)?;
    guest.controller.expect(&Happening::DeviceFreed { id: "data".into() }, Duration::from_millis(500))?;
    assert_eq!(guest.controller.status()?.state, State::Resetting);
    guest.controller.attach_disk("data", &image, Limits::default())?;
    guest.controller.boot(&Boot::payload("control"))?;
    guest.vmm.expect("ready\n", PATIENCE)?;
    assert_eq!(guest.controller.status()?.devices[0].state, DeviceState::Attached);
    guest.quit(3)
}

/// Input that comes before there is a machine waits, and so does the VMM.
#[test]
fn input_for_a_guest_that_is_not_there_keeps_nobody_busy() -> Result<()> {
    fn ticks(vmm: &Vmm) -> Result<u64> {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", vmm.pid()))?;
        let fields: Vec<&str> = stat.rsplit(')').next().context("a name")?.split_whitespace().collect();
        Ok(fields[11].parse::<u64>()? + fields[12].parse::<u64>()?)
    }
    let (mut vmm, mut controller, streams) = serve()?;
    controller.configure(&Machine::new(Boot::payload("control")), None)?;
    controller.attach_console(ConsoleKind::Serial, &streams, 0)?;
    vmm.send("e!")?;
    controller.status()?;
    let before = ticks(&vmm)?;
    std::thread::sleep(Duration::from_millis(500));
    // In hundredths of a second.
    let busy = ticks(&vmm)? - before;
    assert!(busy < 10, "{busy} of 50 ticks");
    controller.say(Command::Start)?;
    vmm.expect("ready\n", PATIENCE)?;
    vmm.expect("!", PATIENCE)?;
    controller.say(Command::Quit)?;
    vmm.wait_for_code(3, PATIENCE)
}
