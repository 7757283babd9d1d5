//! Layered disks: what a controller does with them, and what is left of them when a VMM is killed. The guests are bare
//! payloads, which any KVM can run.

use std::fs::File;
use std::os::fd::OwnedFd;
use std::process::Command as Process;
use std::time::{Duration, Instant};

use anyhow::{Result, bail, ensure};
use innkeeper_block::layered::{Layer, LayerDescription, create_layer};
use innkeeper_protocol::{
    Answer, AttachDisk, Command, ConsoleKind, Descriptor, DiskSource, Ending, FailureCode, Happening,
    LAYERS_MAX, LayerFiles,
};
use innkeeper_tests::controller::{Boot, Controller, Machine, listener, serve, serve_by};
use innkeeper_tests::layers::{Layers, Parcel};
use innkeeper_tests::{Vmm, path, program};
use nix::fcntl::{FcntlArg, SealFlag, fcntl};
use nix::sys::memfd::{MFdFlags, memfd_create};
use uuid::Uuid;

const PATIENCE: Duration = Duration::from_secs(20);
/// Like the payload's, with an end that the sequence is written to.
const SIZE: u64 = 80 << 20;
const BLOCK: u64 = 4096;

/// A guest that drives layered disks as it is told, and its controller.
struct Guest {
    vmm: Vmm,
    controller: Controller,
}

impl Guest {
    /// A VMM with these volumes, as disks 0 and on of the payload.
    fn start(volumes: &[&Layers]) -> Result<Self> {
        Self::start_with(serve()?, |controller| {
            let attach = |(number, layers): (usize, &&Layers)| layers.attach(controller, &id(number));
            volumes.iter().enumerate().map(attach).collect()
        })
    }

    /// The same with the disks whose slots `attach` returns.
    fn start_with(
        served: (Vmm, Controller, (OwnedFd, OwnedFd)),
        attach: impl FnOnce(&mut Controller) -> Result<Vec<u8>>,
    ) -> Result<Self> {
        let (vmm, mut controller, streams) = served;
        controller.configure(&Machine::new(Boot::payload("disk")), None)?;
        let slots = attach(&mut controller)?;
        controller.say(Command::Start)?;
        controller.attach_console(ConsoleKind::Serial, &streams, 0)?;
        controller.subscribe()?;
        // The VMM has its own, and when it ends the console closes.
        drop(streams);
        let mut guest = Self { vmm, controller };
        guest.begin(&slots)?;
        Ok(guest)
    }

    /// The payload begins, or begins anew, with its disks in these slots.
    fn begin(&mut self, slots: &[u8]) -> Result<()> {
        self.vmm.expect("ready\n", PATIENCE)?;
        for (number, slot) in slots.iter().enumerate().rev() {
            self.ask(&format!("d{number}{}", char::from(b'A' + slot)), "00")?;
        }
        Ok(())
    }

    /// Has the payload do something, and expects this answer.
    fn ask(&mut self, command: &str, expected: &str) -> Result<()> {
        self.vmm.send(command)?;
        let answer = self.vmm.expect("\n", PATIENCE)?;
        ensure!(answer == expected, "{command}: {answer:?} and not {expected:?}");
        Ok(())
    }

    /// Puts the layers with these names on the disk.
    fn seal(&mut self, layers: &Layers, names: &[&str]) -> Result<()> {
        let mut parcel = Parcel::default();
        let disks = vec![layers.seal(&id(0), names, &mut parcel)?];
        self.controller.call(Command::SealDisks { disks }, &parcel.descriptors())?;
        Ok(())
    }

    fn finish_seal(&mut self, number: usize) -> Result<()> {
        self.controller.say(Command::FinishSeal { id: id(number) })?;
        self.controller.expect(&Happening::DiskSealed { id: id(number), failure: None }, PATIENCE)?;
        Ok(())
    }

    /// The top, how many layers there are, and how many of them are to be marked as sealed.
    fn stack(&mut self) -> Result<(Option<String>, u32, u32)> {
        let device = self.controller.status()?.devices.remove(0);
        Ok((device.top, device.layers, device.unsealed))
    }

    /// The names of the layers.
    fn layers(&mut self) -> Result<Vec<String>> {
        match self.controller.call(Command::DiskLayers { id: id(0) }, &[])? {
            Answer::DiskLayers { layers } => Ok(layers),
            other => bail!("disk-layers was answered by {other:?}"),
        }
    }

    fn quit(mut self, code: i32) -> Result<()> {
        self.controller.say(Command::Quit)?;
        self.vmm.wait_for_code(code, PATIENCE)
    }
}

fn id(number: usize) -> String {
    format!("vol-{number}")
}

/// What blocks are filled with: their first bytes.
fn blocks(layers: &innkeeper_block::Layered, count: u64) -> Result<String> {
    let mut text = String::new();
    for block in 0..count {
        let mut content = [0; BLOCK as usize];
        layers.read_at(&mut content, block * BLOCK)?;
        ensure!(content == [content[0]; BLOCK as usize], "block {block} is not of one piece");
        text.push(if content[0] == 0 { '-' } else { content[0].into() });
    }
    Ok(text)
}

#[test]
fn a_disk_gets_new_tops_while_the_guest_writes() -> Result<()> {
    let directory = tempfile::tempdir()?;
    let mut layers = Layers::new(directory.path(), 1, SIZE)?;
    let mut guest = Guest::start(&[&layers])?;
    let top = |layers: &Layers| layers.names.last().map(|(_, id)| id.to_string());
    assert_eq!(guest.stack()?, (top(&layers), 1, 0));
    guest.ask("z", &format!("00 {:016x}", SIZE / 512))?;
    guest.ask("wa1", "00")?;
    guest.ask("wb1", "00")?;
    // What is sealed is the volume as it is now; the guest goes on.
    let second = layers.push()?;
    guest.seal(&layers, &[&second])?;
    guest.ask("wb2", "00")?;
    guest.ask("ra", "00 1")?;
    guest.ask("rb", "00 2")?;
    assert_eq!(guest.stack()?, (top(&layers), 2, 1));
    // Again, which changes nothing, and together with another one.
    guest.seal(&layers, &[&second])?;
    assert_eq!(guest.stack()?, (top(&layers), 2, 1));
    let third = layers.push()?;
    guest.seal(&layers, &[&second, &third])?;
    assert_eq!(guest.stack()?, (top(&layers), 3, 2));
    guest.ask("wc3", "00")?;
    guest.finish_seal(0)?;
    assert_eq!(guest.stack()?, (top(&layers), 3, 0));
    guest.finish_seal(0)?;
    assert_eq!(blocks(&layers.snapshot(1)?, 4)?, "11--");
    assert_eq!(blocks(&layers.snapshot(2)?, 4)?, "12--");

    // A layer in the place of two.
    let merged = layers.merge(0..2)?;
    let mut parcel = Parcel::default();
    let files = parcel.add(layers.open(&merged, false)?);
    let replace = |first, count| Command::ReplaceLayers { id: id(0), first, count, merged: files };
    for (first, count) in [(0, 0), (0, 1), (1, 1), (0, 3), (2, 2), (u32::MAX, 2), (1, u32::MAX)] {
        let failure = guest.controller.refused(replace(first, count), &parcel.descriptors())?;
        assert_eq!(failure.code, FailureCode::Invalid, "{first} {count}");
    }
    assert_eq!(guest.layers()?.len(), 3);
    guest.controller.call(replace(0, 2), &parcel.descriptors())?;
    assert_eq!(guest.stack()?, (top(&layers), 2, 0));
    assert_eq!(guest.layers()?, layers.names.iter().map(|(_, id)| id.to_string()).collect::<Vec<_>>());
    guest.ask("ra", "00 1")?;
    guest.ask("rb", "00 2")?;

    // It grows, and so does what is put on it.
    layers.size += 32 << 20;
    guest.controller.say(Command::ResizeDisk { id: id(0), size: layers.size })?;
    guest.ask("z", &format!("00 {:016x}", layers.size / 512))?;
    let fourth = layers.push()?;
    guest.seal(&layers, &[&fourth])?;
    guest.ask("wd4", "00")?;
    // When it goes, all that was written stays.
    guest.controller.detach(&id(0), true)?;
    guest.controller.expect(&Happening::DeviceFreed { id: id(0) }, PATIENCE)?;
    guest.ask("f", "01")?;
    assert_eq!(blocks(&layers.snapshot(3)?, 5)?, "1234-");
    assert!(layers.check()?.is_sound());
    guest.quit(3)
}

/// What does not go is refused with a reason, and changes nothing.
#[test]
fn what_does_not_go_is_refused() -> Result<()> {
    let directory = tempfile::tempdir()?;
    let mut layers = Layers::new(directory.path(), 1, SIZE)?;
    let mut other = Layers::new(directory.path(), 2, SIZE)?;
    let mut guest = Guest::start(&[&layers, &other])?;
    let raw = directory.path().join("raw");
    std::fs::File::create(&raw)?.set_len(1 << 20)?;
    guest.controller.attach_disk("raw", &raw, Default::default())?;
    let second = layers.push()?;
    let wrong = other.push()?;
    let mut refused = |disks: &[(&str, &Layers, &[&str])], code, text: &str| -> Result<()> {
        let mut parcel = Parcel::default();
        let disks = disks
            .iter()
            .map(|(id, layers, names)| layers.seal(id, names, &mut parcel))
            .collect::<Result<_>>()?;
        let failure = guest.controller.refused(Command::SealDisks { disks }, &parcel.descriptors())?;
        assert!(failure.code == code && failure.message.contains(text), "{failure:?}");
        Ok(())
    };
    let good: (&str, &Layers, &[&str]) = ("vol-0", &layers, &[&second]);
    let (invalid, conflict) = (FailureCode::Invalid, FailureCode::Conflict);
    refused(&[good, ("vol-9", &other, &[&wrong])], FailureCode::NotFound, "no device \"vol-9\"")?;
    refused(&[good, ("raw", &other, &[&wrong])], conflict, "not a layered disk")?;
    refused(&[good, ("vol-0", &other, &[&wrong])], invalid, "there twice")?;
    refused(&[("vol-1", &layers, &[&second])], invalid, "disk \"vol-1\": the new layer was not made")?;
    refused(&[good, ("vol-1", &layers, &[&second])], invalid, "a file of the new layers")?;
    refused(&[("vol-1", &layers, &["1-1"])], conflict, "that of device \"vol-0\"")?;
    for (id, code) in [("raw", conflict), ("vol-9", FailureCode::NotFound)] {
        let id = String::from(id);
        for command in [Command::FinishSeal { id: id.clone() }, Command::DiskLayers { id: id.clone() }] {
            assert_eq!(guest.controller.refused(command, &[])?.code, code, "{id}");
        }
    }
    let devices = guest.controller.status()?.devices;
    assert!(devices.iter().all(|device| device.layers <= 1 && device.unsealed == 0), "{devices:?}");

    // A file of a layered disk is nobody else's to write to.
    let file = directory.path().join("1-1.data");
    let error = guest.controller.attach_disk("thief", &file, Default::default()).unwrap_err();
    assert!(format!("{error:#}").contains("in use"), "{error:#}");
    // Layers that are none, or not of one stack.
    let mut attach = |layers: &Layers, names: &[&str], is_written: bool| -> Result<_> {
        let mut parcel = Parcel::default();
        for name in names {
            parcel.add(layers.open(name, is_written)?);
        }
        let disk = layers.disk("bad", parcel.layers.clone());
        guest.controller.refused(Command::AttachDisk(Box::new(disk)), &parcel.descriptors())
    };
    assert_eq!(attach(&other, &[], true)?.message, "there are no layers");
    let third = Layers::new(directory.path(), 3, SIZE)?;
    let fourth = Layers::new(directory.path(), 4, SIZE)?;
    let failure = attach(&third, &["3-1", "4-1"], true)?;
    assert!(failure.message.contains("belongs on top of nothing"), "{failure:?}");
    let failure = attach(&fourth, &["4-1"], false)?;
    assert!(failure.message.contains("not opened for reading and writing"), "{failure:?}");
    let failure = attach(&other, &["2-1"], true)?;
    assert!(failure.code == FailureCode::Conflict && failure.message.contains("in use"), "{failure:?}");
    // A descriptor that did not come.
    let layers = vec![LayerFiles { data: Descriptor(0), map: Descriptor(1) }];
    let disk = AttachDisk { source: DiskSource::Layered { layers }, ..third.disk("bad", Vec::new()) };
    let failure = guest.controller.refused(Command::AttachDisk(Box::new(disk)), &[])?;
    assert!(failure.message.contains("did not come"), "{failure:?}");
    guest.quit(3)
}

/// A stack has more files than a packet takes, and than a process may open unless it asks for more.
#[test]
fn a_deep_stack_comes_in_several_packets() -> Result<()> {
    const DEPTH: usize = 300;
    let directory = tempfile::tempdir()?;
    let mut layers = Layers::new(directory.path(), 1, SIZE)?;
    {
        let volume = innkeeper_block::Layered::open(layers.files()?, false)?;
        while layers.names.len() < DEPTH {
            let name = layers.push()?;
            volume.seal(layers.open(&name, true)?)?;
        }
        volume.finish_seal()?;
    }
    let mut command = Process::new("sh");
    let line = format!("ulimit -Sn 256 && exec {} serve --control 3", path(&program("innkeeper-vmm")));
    command.args(["-c", &line]);
    let served = serve_by(command)?;
    let mut guest = Guest::start_with(served, |controller| Ok(vec![layers.attach(controller, &id(0))?]))?;
    assert_eq!(guest.stack()?.1, DEPTH as u32);
    guest.ask("wa1", "00")?;
    guest.ask("ra", "00 1")?;
    guest.ask("rz", "00 -")?;
    let before = guest.vmm.holds()?;
    assert!(before[0] > 2 * DEPTH);

    // What waits goes with a disk that is refused, and there is a bound.
    let other = Layers::new(directory.path(), 2, SIZE)?;
    let wait = |controller: &mut Controller, count: usize| -> Result<_> {
        let mut parcel = Parcel::default();
        for _ in 0..count {
            parcel.add(other.open("2-1", true)?);
        }
        controller.try_call(Command::Layers { layers: parcel.layers.clone() }, &parcel.descriptors())
    };
    wait(&mut guest.controller, 3)?.expect("there is room for three");
    assert!(guest.vmm.holds()?[0] == before[0] + 6);
    let mut parcel = Parcel::default();
    parcel.add(other.open("2-1", true)?);
    let attach = Command::AttachDisk(Box::new(other.disk("other", parcel.layers.clone())));
    let failure = guest.controller.refused(attach.clone(), &parcel.descriptors())?;
    assert!(failure.message.contains("is there twice"), "{failure:?}");
    guest.controller.call(attach, &parcel.descriptors())?;
    guest.controller.detach("other", true)?;
    guest.controller.expect(&Happening::DeviceFreed { id: "other".into() }, PATIENCE)?;
    let mut waiting = 0;
    let failure = loop {
        match wait(&mut guest.controller, 120)? {
            Ok(_) => waiting += 120,
            Err(failure) => break failure,
        }
        assert!(waiting <= LAYERS_MAX);
    };
    assert_eq!(failure.code, FailureCode::Invalid);
    assert!(waiting + 120 > LAYERS_MAX, "{waiting}: {failure:?}");
    guest.quit(3)?;
    assert_eq!(blocks(&layers.snapshot(DEPTH)?, 2)?, "1-");
    Ok(())
}

/// They also go with the connection.
#[test]
fn layers_do_not_outlive_their_connection() -> Result<()> {
    let directory = tempfile::tempdir()?;
    let layers = Layers::new(directory.path(), 1, SIZE)?;
    let (vmm, mut controller, _streams) = serve()?;
    let socket = directory.path().join("control");
    controller.configure(&Machine::new(Boot::payload("disk")), Some(&listener(&socket)?))?;
    let before = vmm.holds()?;
    let mut other = Controller::connect(&socket)?;
    let mut parcel = Parcel::default();
    parcel.add(layers.open("1-1", true)?);
    other.call(Command::Layers { layers: parcel.layers.clone() }, &parcel.descriptors())?;
    drop(other);
    vmm.expect_to_hold(before, PATIENCE)?;
    // And are not another's.
    let disk = layers.disk("disk", Vec::new());
    let failure = controller.refused(Command::AttachDisk(Box::new(disk)), &[])?;
    assert_eq!(failure.message, "there are no layers");
    Ok(())
}

/// What was written to one disk before something was written to another is in the snapshots if the other is.
#[test]
fn several_disks_are_sealed_at_one_point_of_time() -> Result<()> {
    let directory = tempfile::tempdir()?;
    let mut volumes = [Layers::new(directory.path(), 1, SIZE)?, Layers::new(directory.path(), 2, SIZE)?];
    let mut guest = Guest::start(&[&volumes[0], &volumes[1]])?;
    guest.vmm.send("s")?;
    for _ in 0..40 {
        let mut parcel = Parcel::default();
        let mut disks = Vec::new();
        for (number, layers) in volumes.iter_mut().enumerate() {
            let name = layers.push()?;
            disks.push(layers.seal(&id(number), &[&name], &mut parcel)?);
        }
        std::thread::sleep(Duration::from_millis(2));
        guest.controller.call(Command::SealDisks { disks }, &parcel.descriptors())?;
    }
    guest.vmm.send("!")?;
    assert!(guest.vmm.expect("\n", PATIENCE)?.starts_with("00 "));
    (0..2).try_for_each(|number| guest.finish_seal(number))?;
    let mut last = 0;
    for count in 1..volumes[0].names.len() {
        let numbers = volumes.each_ref().map(|layers| -> Result<u64> {
            let mut sector = [0; 8];
            layers.snapshot(count)?.read_at(&mut sector, 0)?;
            Ok(u64::from_le_bytes(sector))
        });
        let [first, second] = numbers;
        let (first, second) = (first?, second?);
        assert!(second >= last && (second..=second + 1).contains(&first), "{last} {first} {second}");
        last = second;
    }
    assert!(last > 0);
    guest.quit(3)
}

/// How much longer a write may take because of a snapshot.
const STALL_MAX: Duration = Duration::from_millis(20);
/// For how long the guest writes before something is done and after it.
const AROUND: Duration = Duration::from_millis(40);

/// A guest that writes: how often it did, and how long the longest of its writes has taken.
struct Writer<'a> {
    guest: &'a mut Guest,
    began: Instant,
    count: u64,
    longest: Duration,
}

impl<'a> Writer<'a> {
    fn start(guest: &'a mut Guest) -> Result<Self> {
        let began = Instant::now();
        guest.vmm.send("t")?;
        Ok(Self { guest, began, count: 0, longest: Duration::ZERO })
    }

    /// It waits to be told something else.
    fn stop(&mut self) -> Result<()> {
        self.guest.vmm.send("!")?;
        let answer = self.guest.vmm.expect("\n", PATIENCE)?;
        let elapsed = self.began.elapsed();
        let figures = answer.split(' ').map(|figure| u64::from_str_radix(figure, 16));
        let figures = figures.collect::<Result<Vec<_>, _>>()?;
        let [0, count, longest, all] = figures[..] else { bail!("the payload says {answer:?}") };
        self.count += count;
        // How fast its clock ticks, this run says itself.
        self.longest = self.longest.max(elapsed.mul_f64(longest as f64 / all as f64));
        Ok(())
    }

    /// It flushes once in between.
    fn flush(&mut self) -> Result<()> {
        self.stop()?;
        self.guest.ask("f", "00")?;
        self.began = Instant::now();
        self.guest.vmm.send("t")
    }
}

/// The longest of a busy guest's writes while a snapshot is taken: from when its disk gets a new top until what is below
/// is durable and marked as sealed. In some the guest also flushes meanwhile, which waits for the disk as it must.
///
/// What it is without a snapshot is measured in turns, and a machine on which all is slow only adds that to the bound. Others
/// may have the CPU or the disk at any time: what is wrong is wrong each time that it is tried.
#[test]
fn a_snapshot_does_not_stall_the_guest() -> Result<()> {
    const TRIES: usize = 3;
    let directory = tempfile::tempdir()?;
    let mut layers = Layers::new(directory.path(), 1, SIZE)?;
    let mut guest = Guest::start(&[&layers])?;
    let mut stalls = String::new();
    for _ in 0..TRIES {
        match find_stalls(&mut guest, &mut layers)? {
            Some(found) => stalls = found,
            None => return guest.quit(3),
        }
    }
    bail!("each of {TRIES} times a guest was stalled: {stalls}");
}

/// Takes snapshots of a guest that writes. Says what is wrong if its writes take too long: half of the time, or once in
/// ten times.
fn find_stalls(guest: &mut Guest, layers: &mut Layers) -> Result<Option<String>> {
    const SNAPSHOTS: usize = 25;
    let (mut with, mut without, mut sealing) = (Vec::new(), Vec::new(), Vec::new());
    let mut counts = Vec::new();
    for round in 0..SNAPSHOTS {
        let flushes = round % 3 == 2;
        let name = layers.push()?;
        let mut writer = Writer::start(guest)?;
        std::thread::sleep(AROUND);
        let began = Instant::now();
        writer.guest.seal(layers, &[&name])?;
        writer.guest.controller.say(Command::FinishSeal { id: id(0) })?;
        if flushes {
            writer.flush()?;
        }
        let end = Happening::DiskSealed { id: id(0), failure: None };
        writer.guest.controller.expect(&end, PATIENCE)?;
        let took = began.elapsed();
        std::thread::sleep(AROUND);
        writer.stop()?;
        with.push(writer.longest);
        counts.push(writer.count);
        sealing.push(took);
        assert_eq!(guest.stack()?.2, 0);

        let mut writer = Writer::start(guest)?;
        std::thread::sleep(AROUND);
        if flushes {
            writer.flush()?;
        }
        std::thread::sleep(took + AROUND);
        writer.stop()?;
        without.push(writer.longest);
    }
    for times in [&mut with, &mut without, &mut sealing] {
        times.sort();
    }
    let (middle, most) = (SNAPSHOTS / 2, SNAPSHOTS * 9 / 10);
    counts.sort();
    // It may not have had a CPU at all while there was one snapshot or other.
    ensure!(counts[middle] > 10, "the guest was not busy: {counts:?}");
    for (what, times) in [
        ("the longest write with a snapshot", &with),
        ("the longest write without", &without),
        ("a snapshot", &sealing),
    ] {
        let [median, ninetieth, worst] = [middle, most, SNAPSHOTS - 1].map(|at| times[at]);
        println!("{what}: median {median:?}, nine of ten {ninetieth:?}, worst {worst:?}");
    }
    let is_stalled = |at: &usize| with[*at] > without[*at] + STALL_MAX;
    let stalled = [middle, most].into_iter().find(is_stalled);
    Ok(stalled.map(|at| format!("{:?} with a snapshot, {:?} without", with[at], without[at])))
}

/// However a guest or its VMM ends, short of being killed, what was written is there, as with a raw file.
#[test]
fn an_orderly_end_keeps_what_was_not_flushed() -> Result<()> {
    let directory = tempfile::tempdir()?;
    let layers = Layers::new(directory.path(), 1, SIZE)?;
    let content = || -> Result<String> { blocks(&layers.snapshot(1)?, 6) };
    let mut guest = Guest::start(&[&layers])?;
    // When it is to be booted anew, whoever looks for the boot source reads the files while the VMM has them.
    guest.ask("wa1", "00")?;
    guest.vmm.send("R")?;
    guest.controller.wait_for(|what| matches!(what, Happening::BootSourceWanted { .. }), PATIENCE)?;
    let still = layers.names.iter().map(|(name, _)| layers.open(name, false)).collect::<Result<_>>()?;
    assert_eq!(blocks(&innkeeper_block::Layered::open_still(still)?, 6)?, "1-----");
    assert!(layers.snapshot(1).is_err(), "the VMM has it");
    // So does another VMM.
    {
        let (_vmm, mut controller, _streams) = serve()?;
        controller.configure(&Machine::new(Boot::payload("disk")), None)?;
        for (read_only, still, is_good) in
            [(true, true, true), (true, false, false), (false, false, false), (false, true, false)]
        {
            let mut parcel = Parcel::default();
            parcel.add(layers.open("1-1", true)?);
            let name = format!("{read_only}{still}");
            let disk = AttachDisk { read_only, still, ..layers.disk(&name, parcel.layers.clone()) };
            let result = controller.try_call(Command::AttachDisk(Box::new(disk)), &parcel.descriptors())?;
            assert_eq!(result.is_ok(), is_good, "{result:?}");
        }
    }
    guest.controller.say(Command::Boot { source: None })?;
    guest.begin(&[1])?;
    guest.ask("ra", "00 1")?;
    guest.ask("wb2", "00")?;
    guest.vmm.send("p")?;
    guest.controller.expect(&Happening::Ended(Ending::PowerOff), PATIENCE)?;
    assert_eq!(content()?, "12----");
    guest.quit(0)?;

    let mut guest = Guest::start(&[&layers])?;
    guest.ask("wc3", "00")?;
    guest.quit(3)?;
    assert_eq!(content()?, "123---");

    let mut guest = Guest::start(&[&layers])?;
    guest.ask("wd4", "00")?;
    guest.controller.say(Command::PowerOff)?;
    guest.controller.expect(&Happening::Ended(Ending::Stopped), PATIENCE)?;
    assert_eq!(content()?, "1234--");
    guest.quit(3)?;

    let mut guest = Guest::start(&[&layers])?;
    guest.ask("we5", "00")?;
    // Its controller is gone, and there can be no other.
    drop(guest.controller);
    guest.vmm.wait_for_code(3, PATIENCE)?;
    assert_eq!(content()?, "12345-");
    Ok(())
}

/// What cannot be made durable any more when a disk goes is said, for as long as somebody may ask.
#[test]
fn what_is_lost_when_a_disk_goes_is_said() -> Result<()> {
    let directory = tempfile::tempdir()?;
    let like = Layers::new(directory.path(), 1, SIZE)?;
    // A disk whose map finds no room for what the guest has written.
    let attach = |controller: &mut Controller| -> Result<Vec<u8>> {
        let memory = |name| -> Result<File> { Ok(memfd_create(name, MFdFlags::MFD_ALLOW_SEALING)?.into()) };
        let layer = Layer { data: memory("data")?, map: memory("map")? };
        create_layer(&layer, &LayerDescription { id: Uuid::from_u128(1), parent: None, size: SIZE })?;
        fcntl(&layer.map, FcntlArg::F_ADD_SEALS(SealFlag::F_SEAL_GROW))?;
        let mut parcel = Parcel::default();
        let layers = vec![parcel.add(layer)];
        Ok(vec![controller.attach(like.disk(&id(0), layers), &parcel.descriptors())?])
    };
    for is_forced in [true, false] {
        let mut guest = Guest::start_with(serve()?, attach)?;
        guest.ask("wa1", "00")?;
        // That it fails does not spoil the disk: there may be room again.
        guest.ask("f", "01")?;
        guest.ask("ra", "00 1")?;
        let status = guest.controller.status()?;
        assert!(status.devices[0].impairment.is_none() && status.losses.is_empty(), "{status:?}");
        if is_forced {
            guest.controller.detach(&id(0), true)?;
            guest.controller.expect(&Happening::DeviceFreed { id: id(0) }, PATIENCE)?;
        } else {
            guest.controller.say(Command::PowerOff)?;
            guest.controller.expect(&Happening::Ended(Ending::Stopped), PATIENCE)?;
        }
        let losses = guest.controller.status()?.losses;
        assert!(losses.keys().eq([&id(0)]) && losses[&id(0)].contains("os error 1"), "{losses:?}");
        if is_forced {
            // Another one of this name begins anew.
            let layers = Layers::new(directory.path(), 2, SIZE)?;
            layers.attach(&mut guest.controller, &id(0))?;
            assert!(guest.controller.status()?.losses.is_empty());
        }
        guest.quit(3)?;
    }
    Ok(())
}

#[test]
fn a_command_line_names_layers() -> Result<()> {
    let directory = tempfile::tempdir()?;
    let mut layers = Layers::new(directory.path(), 1, SIZE)?;
    {
        let volume = innkeeper_block::Layered::open(layers.files()?, false)?;
        let name = layers.push()?;
        volume.seal(layers.open(&name, true)?)?;
        volume.finish_seal()?;
    }
    let run = |names: &str| {
        let kernel = innkeeper_tests::payload("roundtrip");
        let names = names.replace('@', path(directory.path()));
        let disk = format!("path={names},format=layered");
        Vmm::run(["--kernel", path(&kernel), "--memory", "16M", "--disk", &disk])
    };
    let mut vmm = run("@/1-1.data:@/1-1.map:@/1-2.data:@/1-2.map")?;
    vmm.wait_for_code(0, PATIENCE)?;
    vmm.expect("read 00: \nwrite 00\nflush 00\n", PATIENCE)?;
    for (names, error) in [
        ("@/1-2.data:@/1-2.map", "layer 0 (00000000-0000-0001-0000-000000000002) belongs on top of"),
        ("@/1-1.data:@/1-1.map", "the top layer is sealed"),
        ("@/1-1.data:@/1-3.map", "1-3.map: No such file"),
    ] {
        let mut vmm = run(names)?;
        vmm.wait_for_code(1, PATIENCE)?;
        let errors = vmm.errors();
        assert!(errors.contains(error) && errors.lines().count() == 1, "{errors}");
    }
    let mut sector = [0; 512];
    layers.snapshot(2)?.read_at(&mut sector, 512)?;
    assert_eq!(sector, [1; 512]);
    Ok(())
}

mod kills;
