//! Real guests that change while they run: the `micro` image, driven over the control protocol. For a host with
//! hardware KVM, or the lab.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use innkeeper_protocol::{Command, ConsoleKind, DeviceState, Ending, Happening, Limit, Limits, ResetCause};
use innkeeper_tests::Shell;
use innkeeper_tests::controller::{Boot, Controller, Machine};
use innkeeper_tests::network::Namespace;

const PATIENCE: Duration = Duration::from_secs(60);
const MIB: u64 = 1 << 20;
/// How many MiB of 120 that became free come back at least.
const COMES_BACK: u64 = 70;

struct Guest {
    shell: Shell,
    controller: Controller,
    directory: tempfile::TempDir,
}

impl Guest {
    fn start(machine: &Machine) -> Result<Self> {
        Self::start_with(machine, |_, _| Ok(()))
    }

    fn start_with(
        machine: &Machine,
        prepare: impl FnOnce(&mut Controller, &Path) -> Result<()>,
    ) -> Result<Self> {
        let directory = tempfile::tempdir()?;
        let socket = directory.path().join("control");
        let prepare = |controller: &mut Controller| prepare(controller, directory.path());
        let (shell, controller) = Shell::driven(machine, &socket, prepare)?;
        Ok(Self { shell, controller, directory })
    }

    fn disk(&self, name: &str, mib: u64) -> Result<PathBuf> {
        disk(self.directory.path(), name, mib)
    }

    fn freed(&mut self, id: &str) -> Result<()> {
        self.controller.expect(&Happening::DeviceFreed { id: id.into() }, PATIENCE)?;
        Ok(())
    }

    fn count(&self, what: &str) -> Result<usize> {
        Ok(std::fs::read_dir(format!("/proc/{}/{what}", self.shell.vmm.pid()))?.count())
    }

    /// Switches the guest off by the button.
    fn end(mut self) -> Result<()> {
        self.controller.say(Command::PowerButton)?;
        self.controller.expect(&Happening::Ended(Ending::PowerOff), PATIENCE)?;
        self.controller.say(Command::Quit)?;
        self.shell.vmm.wait_for_code(0, PATIENCE)
    }
}

fn disk(directory: &Path, name: &str, mib: u64) -> Result<PathBuf> {
    let path = directory.join(name);
    std::fs::File::create(&path)?.set_len(mib * MIB)?;
    Ok(path)
}

/// Has the guest wait until `condition` holds.
fn until(condition: &str) -> String {
    format!("n=0; until {condition}; do n=$((n+1)); [ $n -lt 400 ] || exit 1; sleep 0.05; done")
}

/// What the guest calls the disk with this serial number, once it is there.
fn find_disk(shell: &mut Shell, serial: &str) -> Result<String> {
    let find = format!("grep -ls '^{serial}$' /sys/block/*/serial");
    let found = shell.run(&format!("({}) && {find}", until(&format!("{find} >/dev/null"))));
    let path = match found {
        Ok(path) => path,
        Err(error) => return Err(error.context(shell.run("dmesg | tail -n 30")?)),
    };
    let name = path.trim().trim_start_matches("/sys/block/").trim_end_matches("/serial");
    Ok(format!("/dev/{name}"))
}

fn rounds(variable: &str, short: usize) -> Result<usize> {
    match std::env::var(variable) {
        Ok(text) => Ok(text.parse()?),
        Err(_) => Ok(short),
    }
}

/// A stock kernel takes disks and interfaces and gives them up, while both do I/O, and nothing is left behind.
#[test]
fn devices_are_plugged_and_unplugged_under_load() -> Result<()> {
    let rounds = rounds("INNKEEPER_HOTPLUG_ROUNDS", 12)?;
    let namespace = Namespace::new()?;
    namespace.run(
        "ip tuntap add tap0 mode tap vnet_hdr && ip address add 10.9.0.1/24 dev tap0 && ip link set tap0 up",
    )?;
    // One CPU: each ping switches time stamps on and off, for which Linux patches its own code; and an emulated host can
    // lose track of code that one CPU patches and another one runs.
    let machine = Machine::new(Boot::micro("ip=off"));
    let mut guest = Guest::start_with(&machine, |controller, directory| {
        controller.attach_disk("root", &disk(directory, "root", 16)?, Limits::default())?;
        Ok(())
    })?;
    let image = guest.disk("plugged", 8)?;
    // The disk that stays is busy all the time.
    guest
        .shell
        .run("(while :; do dd if=/dev/vda of=/dev/null bs=64k iflag=direct 2>/dev/null; done) & true")?;
    let mut before = None;
    for round in 0..rounds {
        // What is needed once is not a leak.
        if round == 4.min(rounds - 1) {
            before =
                Some((guest.count("fd")?, guest.count("task")?, own_memory(guest.shell.vmm.pid(), 256)?));
        }
        let id = format!("vol-{round}");
        guest.controller.attach_disk(&id, &image, Limits::default())?;
        let device = find_disk(&mut guest.shell, &id)?;
        guest.shell.run(&format!(
            "dd if=/dev/urandom of={device} bs=64k count=8 conv=fsync 2>/dev/null; \
             (while :; do dd if={device} of=/dev/null bs=4k iflag=direct 2>/dev/null || break; done) & \
             (dd if=/dev/zero of={device} bs=4k oflag=direct 2>/dev/null; true) & true"
        ))?;
        guest.controller.detach(&id, false)?;
        guest.freed(&id).with_context(|| format!("round {round}"))?;
        // A writer that came late has made a plain file of that name.
        guest.shell.run(&format!("({}); sleep 0.2; rm -f {device}", until(&format!("[ ! -b {device} ]"))))?;

        let id = format!("eni-{round}");
        let tap = namespace.open_tap("tap0", 1)?;
        guest.controller.attach_interface(&id, &tap, "02:00:00:00:00:09")?;
        guest.shell.run(&format!(
            "({}) && ip address add 10.9.0.2/24 dev eth0 && ip link set eth0 up && ping -c 1 -w 20 10.9.0.1",
            until("[ -e /sys/class/net/eth0 ]")
        ))?;
        guest.shell.run("(ping -q -i 0.01 -s 1400 10.9.0.1 >/dev/null; true) & true")?;
        guest.controller.detach(&id, false)?;
        guest.freed(&id).with_context(|| format!("round {round}"))?;
        guest.shell.run(&format!("({}); killall -q ping; true", until("[ ! -e /sys/class/net/eth0 ]")))?;
    }
    let (descriptors, threads, memory) = before.context("at least one round")?;
    assert_eq!((guest.count("fd")?, guest.count("task")?), (descriptors, threads), "descriptors and threads");
    let grown = own_memory(guest.shell.vmm.pid(), 256)?.saturating_sub(memory);
    assert!(grown < 1024, "{grown} KiB more after {rounds} rounds");
    assert_eq!(guest.controller.status()?.devices.len(), 1);
    guest.end()
}

/// KiB that the process has of its own (PSS), but for the guest's memory, which is the mapping of that size, and for the
/// program's file: how much of that is mapped is up to the kernel.
fn own_memory(pid: u32, guest_mib: u64) -> Result<u64> {
    let maps = std::fs::read_to_string(format!("/proc/{pid}/smaps"))?;
    let field = |line: &str, name: &str| -> Option<u64> {
        line.strip_prefix(name)?.trim().strip_suffix(" kB")?.trim().parse().ok()
    };
    let (mut is_own, mut total) = (true, 0);
    for line in maps.lines() {
        if let Some(size) = field(line, "Size:") {
            is_own &= size != guest_mib << 10;
        } else if let Some(value) = field(line, "Pss:").filter(|_| is_own) {
            total += value;
        } else if line.split_whitespace().next().is_some_and(|first| first.contains('-')) {
            // A mapping's first line: addresses first, and a file's path last.
            is_own = !line.contains(" /");
        }
    }
    Ok(total)
}

/// A guest that does not react keeps its device; one that is made to lose it lives on.
#[test]
fn a_device_can_be_taken_by_force() -> Result<()> {
    let mut guest = Guest::start(&Machine::new(Boot::micro("ip=off")))?;
    let image = guest.disk("data", 8)?;
    guest.controller.attach_disk("data", &image, Limits::default())?;
    let device = find_disk(&mut guest.shell, "data")?;
    guest.shell.run(&format!(
        "(while dd if={device} of=/dev/null bs=4k iflag=direct 2>/dev/null; do :; done) & true"
    ))?;
    guest.controller.say(Command::Pause)?;
    guest.controller.detach("data", false)?;
    std::thread::sleep(Duration::from_millis(300));
    assert_eq!(guest.controller.status()?.devices[0].state, DeviceState::Detaching);
    guest.controller.detach("data", true)?;
    guest.freed("data")?;
    guest.controller.say(Command::Resume)?;
    guest.shell.run(&until(&format!("[ ! -e {device} ]")))?;
    // The same name and file, at once.
    guest.controller.attach_disk("data", &image, Limits::default())?;
    let device = find_disk(&mut guest.shell, "data")?;
    guest.shell.run(&format!("dd if={device} of=/dev/null bs=64k iflag=direct"))?;
    guest.end()
}

#[test]
fn a_disk_grows_while_it_is_used() -> Result<()> {
    let machine = Machine { cpus: 2, ..Machine::new(Boot::micro("ip=off")) };
    let mut guest = Guest::start_with(&machine, |controller, directory| {
        controller.attach_disk("root", &disk(directory, "root", 8)?, Limits::default())?;
        Ok(())
    })?;
    guest
        .shell
        .run("(while :; do dd if=/dev/vda of=/dev/null bs=4k iflag=direct 2>/dev/null; done) & true")?;
    for mib in [9, 16, 64] {
        guest.controller.say(Command::ResizeDisk { id: "root".into(), size: mib * MIB })?;
        let sectors = mib * MIB / 512;
        guest.shell.run(&until(&format!("[ $(cat /sys/block/vda/size) = {sectors} ]")))?;
        assert_eq!(guest.controller.status()?.devices[0].size, mib * MIB);
    }
    guest.shell.run(
        "echo the end | dd of=/dev/vda bs=512 seek=$((64*2048-1)) conv=fsync,notrunc 2>/dev/null; \
         dd if=/dev/vda bs=512 skip=$((64*2048-1)) 2>/dev/null | head -n 1 | grep 'the end'",
    )?;
    assert_eq!(guest.directory.path().join("root").metadata()?.len(), 64 * MIB);
    guest.end()
}

/// A reboot over the protocol shuts the guest down cleanly, and it comes back with the boot source of the moment.
#[test]
fn a_reboot_boots_what_the_controller_has_then() -> Result<()> {
    let mut guest = Guest::start(&Machine::new(Boot::micro("ip=off mark=first")))?;
    let wanted = |what: &Happening| matches!(what, Happening::BootSourceWanted { .. });
    guest.controller.say(Command::Reboot { timeout_ms: 60_000 })?;
    guest.controller.expect(&Happening::Reset { cause: ResetCause::Controller }, PATIENCE)?;
    guest.controller.wait_for(wanted, PATIENCE)?;
    guest.controller.boot(&Boot::micro("ip=off mark=second"))?;
    guest.shell.wait_for_boot()?;
    assert!(guest.shell.run("cat /proc/cmdline")?.contains("mark=second"));

    guest.shell.vmm.send("reboot\n")?;
    guest.controller.expect(&Happening::Reset { cause: ResetCause::Guest }, PATIENCE)?;
    guest.controller.wait_for(wanted, PATIENCE)?;
    guest.controller.boot(&Boot::micro("ip=off mark=third"))?;
    guest.shell.wait_for_boot()?;
    assert!(guest.shell.run("cat /proc/cmdline")?.contains("mark=third"));

    // Nobody answers.
    guest.shell.vmm.send("echo b >/proc/sysrq-trigger\n")?;
    guest.shell.wait_for_boot()?;
    assert!(guest.shell.run("cat /proc/cmdline")?.contains("mark=third"));
    assert_eq!(guest.controller.status()?.resets, 3);
    guest.end()
}

/// With nothing to do, no thread of the VMM wakes up but those of the CPUs.
#[test]
fn an_idle_guest_wakes_nobody() -> Result<()> {
    let namespace = Namespace::new()?;
    namespace.run("ip tuntap add tap0 mode tap vnet_hdr && ip link set tap0 up")?;
    namespace.run("sysctl -qw net.ipv6.conf.all.disable_ipv6=1")?;
    let machine =
        Machine { cpus: 2, balloon: true, virtio_console: true, ..Machine::new(Boot::micro("ip=off")) };
    let mut guest = Guest::start_with(&machine, |controller, directory| {
        controller.attach_disk("root", &disk(directory, "root", 8)?, Limits::default())?;
        controller.attach_interface("eni", &namespace.open_tap("tap0", 1)?, "02:00:00:00:00:09")?;
        Ok(())
    })?;
    guest.shell.run("dd if=/dev/vda of=/dev/null bs=64k 2>/dev/null; sleep 5")?;
    let wakeups = |guest: &Guest| -> Result<Vec<(String, u64)>> {
        let mut found = Vec::new();
        for entry in std::fs::read_dir(format!("/proc/{}/task", guest.shell.vmm.pid()))? {
            let path = entry?.path();
            let name = std::fs::read_to_string(path.join("comm"))?.trim().to_owned();
            let status = std::fs::read_to_string(path.join("status"))?;
            let switches = status
                .lines()
                .find_map(|line| line.strip_prefix("voluntary_ctxt_switches:")?.trim().parse().ok())
                .context("voluntary_ctxt_switches")?;
            // The kernel's own threads for us (io_uring, KVM), and what Linux asks for now and then: entropy, and that
            // free pages are taken back.
            if !["cpu", "iou-", "kvm-", "rng", "balloon"].iter().any(|prefix| name.starts_with(prefix)) {
                found.push((name, switches));
            }
        }
        found.sort();
        Ok(found)
    };
    let before = wakeups(&guest)?;
    std::thread::sleep(Duration::from_secs(5));
    assert_eq!(wakeups(&guest)?, before);
    guest.end()
}

/// Limits hold from the moment they are set, and only as long.
#[test]
fn limits_change_while_the_disk_is_used() -> Result<()> {
    let machine = Machine { cpus: 2, ..Machine::new(Boot::micro("ip=off")) };
    let mut guest = Guest::start_with(&machine, |controller, directory| {
        controller.attach_disk("root", &disk(directory, "root", 16)?, Limits::default())?;
        Ok(())
    })?;
    let read = |guest: &mut Guest| -> Result<f64> {
        let begun = Instant::now();
        guest.shell.run("dd if=/dev/vda of=/dev/null bs=64k count=32 iflag=direct 2>/dev/null")?;
        Ok(begun.elapsed().as_secs_f64())
    };
    let free = read(&mut guest)?;
    let limit = |per_second, burst| Some(Limit { per_second, burst: Some(burst) });
    let limits = Limits { bytes: limit(MIB, 64 << 10), operations: None };
    guest.controller.say(Command::LimitDisk { id: "root".into(), limits })?;
    // 2 MiB at 1 MiB/s.
    let limited = read(&mut guest)?;
    assert!((1.8..free + 4.0).contains(&limited), "{limited} s with a limit, {free} s without");
    let limits = Limits { bytes: None, operations: limit(8, 1) };
    guest.controller.say(Command::LimitDisk { id: "root".into(), limits })?;
    // 32 requests at 8 a second.
    let limited = read(&mut guest)?;
    assert!((3.5..free + 6.0).contains(&limited), "{limited} s with a limit, {free} s without");
    // A request that waits is let go when the limit goes.
    let limits = Limits { bytes: None, operations: limit(1, 1) };
    guest.controller.say(Command::LimitDisk { id: "root".into(), limits })?;
    guest
        .shell
        .vmm
        .send("dd if=/dev/vda of=/dev/null bs=64k count=128 iflag=direct 2>/dev/null; echo do''ne\n")?;
    std::thread::sleep(Duration::from_millis(1500));
    guest.controller.say(Command::LimitDisk { id: "root".into(), limits: Limits::default() })?;
    guest.shell.vmm.expect("done", Duration::from_secs(20))?;
    guest.shell.run("true")?;
    let metrics = guest.controller.metrics()?;
    let disk = &metrics.disks["root"];
    assert!(disk.throttled > 0 && disk.read_bytes >= 12 * MIB && disk.reads.count > 100, "{disk:?}");
    guest.end()
}

/// What the balloon takes is the host's, and so is what the guest no longer uses.
#[test]
fn memory_comes_back() -> Result<()> {
    let machine = Machine { balloon: true, ..Machine::new(Boot::micro("ip=off")) };
    let mut guest = Guest::start(&machine)?;
    let resident = |guest: &Guest| -> Result<u64> {
        let status = std::fs::read_to_string(format!("/proc/{}/status", guest.shell.vmm.pid()))?;
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).context("VmRSS")?;
        Ok(line.trim().trim_end_matches(" kB").trim().parse::<u64>()? >> 10)
    };
    // Free pages are reported on their own, some seconds after they became free, and only where they lie together in
    // blocks of 2 MiB: how many of them do is chance.
    guest
        .shell
        .run("mount -o remount,size=90% /tmp; dd if=/dev/zero of=/tmp/ballast bs=1M count=120 2>/dev/null")?;
    let full = resident(&guest)?;
    guest.shell.run("rm /tmp/ballast")?;
    let deadline = Instant::now() + Duration::from_secs(40);
    while resident(&guest)? + COMES_BACK > full && Instant::now() < deadline {
        std::thread::sleep(Duration::from_millis(250));
    }
    let reported = resident(&guest)?;
    let balloon = guest.controller.metrics()?.balloon.context("a balloon")?;
    assert!(
        reported + COMES_BACK <= full && balloon.reported_bytes >= COMES_BACK * MIB,
        "{full} MiB before, {reported} MiB after 120 MiB became free, {balloon:?}; {}",
        guest.shell.run(
            "grep -h . /sys/bus/virtio/devices/*/features; grep -i balloon /proc/modules /proc/interrupts"
        )?
    );

    let available = |guest: &mut Guest| -> Result<u64> {
        Ok(guest.shell.run("awk '/MemAvailable/ {print $2}' /proc/meminfo")?.parse::<u64>()? >> 10)
    };
    let before = available(&mut guest)?;
    guest.controller.say(Command::SetBalloon { size: 100 * MIB })?;
    let deadline = Instant::now() + PATIENCE;
    loop {
        let balloon = guest.controller.status()?.balloon.context("a balloon")?;
        assert_eq!(balloon.target, 100 * MIB);
        if balloon.actual == balloon.target {
            break;
        }
        assert!(Instant::now() < deadline, "{balloon:?}");
        std::thread::sleep(Duration::from_millis(100));
    }
    let taken = before.saturating_sub(available(&mut guest)?);
    assert!((80..120).contains(&taken), "{taken} MiB less");
    guest.controller.say(Command::SetBalloon { size: 0 })?;
    guest.shell.run(&until("[ $(awk '/MemAvailable/ {print $2}' /proc/meminfo) -gt 120000 ]"))?;
    guest.end()
}

/// The virtio console is a console as the serial port is.
#[test]
fn the_virtio_console_speaks_and_listens() -> Result<()> {
    let machine = Machine { virtio_console: true, ..Machine::new(Boot::micro("ip=off")) };
    let mut guest = Guest::start(&machine)?;
    guest.shell.run("i=0; while [ $i -lt 500 ]; do echo line $i; i=$((i+1)); done >/dev/hvc0")?;
    let history = guest.controller.history(ConsoleKind::Virtio)?.replace('\r', "");
    let expected: String = (0..500).map(|line| format!("line {line}\n")).collect();
    assert_eq!(history, expected);

    let (mut ours, theirs) = std::os::unix::net::UnixStream::pair()?;
    use std::io::{Read, Write};
    use std::os::fd::AsFd;
    let command = Command::AttachConsole {
        console: ConsoleKind::Virtio,
        output: Some(innkeeper_protocol::Descriptor(0)),
        input: Some(innkeeper_protocol::Descriptor(1)),
        follow: true,
        after: history.len() as u64 + 500,
    };
    let copy = theirs.try_clone()?;
    guest.controller.call(command, &[theirs.as_fd(), copy.as_fd()])?;
    guest.shell.run("(stty raw -echo; head -c 20000 | md5sum; echo over) </dev/hvc0 >/dev/hvc0 & true")?;
    guest.shell.run("sleep 1")?;
    let typed: Vec<u8> = (0..20_000u32).map(|number| b'a' + (number % 23) as u8).collect();
    ours.write_all(&typed)?;
    ours.set_read_timeout(Some(PATIENCE))?;
    let mut answer = String::new();
    while !answer.contains("over") {
        let mut bytes = [0; 256];
        let count = ours.read(&mut bytes).with_context(|| format!("after {answer:?}"))?;
        answer.push_str(&String::from_utf8_lossy(&bytes[..count]));
    }
    let sum =
        guest.shell.run("awk 'BEGIN { for (n = 0; n < 20000; n++) printf \"%c\", 97 + n % 23 }' | md5sum")?;
    assert!(answer.contains(sum.split(' ').next().context("a sum")?), "{answer} and not {sum}");
    guest.end()
}

/// Numbers go both ways through `tap0` of `namespace`, to port `port` of the guest at 10.9.0.2.
fn exchange_over_tcp(guest: &mut Guest, namespace: &Namespace, port: u16, bytes: u64) -> Result<()> {
    guest.shell.run(&format!("(/tmp/netprobe listen {port} >/tmp/{port} 2>&1) & true"))?;
    guest.shell.run(&until(&format!("grep -q listening /tmp/{port}")))?;
    let output = namespace
        .command(innkeeper_tests::program("netprobe"))
        .args(["connect", &format!("10.9.0.2:{port}"), &bytes.to_string()])
        .output()?;
    anyhow::ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    guest.shell.run(&until(&format!("grep -q exchanged /tmp/{port}")))?;
    Ok(())
}

const SET_UP_NETWORK: &str = "cd /tmp && tar xf /dev/vda && ip address add 10.9.0.2/24 dev eth0 && \
                              ip link set eth0 up && ping -c 1 -w 20 10.9.0.1";

/// Every CPU has queues of its own, for disks and for frames, also after a reboot.
#[test]
fn queues_are_as_many_as_cpus() -> Result<()> {
    const CPUS: usize = 4;
    let namespace = Namespace::new()?;
    namespace.run(
        "ip tuntap add tap0 mode tap vnet_hdr multi_queue && ip address add 10.9.0.1/24 dev tap0 && \
         ip link set tap0 up",
    )?;
    let tools = innkeeper_tests::toolbox()?;
    let machine = Machine { cpus: CPUS as u8, ..Machine::new(Boot::micro("ip=off")) };
    let mut guest = Guest::start_with(&machine, |controller, _| {
        controller.attach_disk("tools", tools.path(), Limits::default())?;
        let taps = namespace.open_tap("tap0", CPUS)?;
        controller.attach_interface("eni", &taps, "02:00:00:00:00:09")?;
        Ok(())
    })?;
    for round in 0..2 {
        guest.shell.run(SET_UP_NETWORK)?;
        assert_eq!(guest.shell.run("ls /sys/block/vda/mq | wc -l")?, CPUS.to_string());
        assert_eq!(guest.shell.run("ls -d /sys/class/net/eth0/queues/rx-* | wc -l")?, CPUS.to_string());
        for port in 7000..7004 {
            exchange_over_tcp(&mut guest, &namespace, port, 2 * MIB)?;
        }
        // From each CPU in turn: frames leave by its own queue, and requests too.
        for cpu in 0..CPUS {
            let mask = 1 << cpu;
            guest.shell.run(&format!(
                "taskset {mask:x} ping -c 3 -i 0.1 -w 20 10.9.0.1 >/dev/null; \
                 taskset {mask:x} dd if=/dev/vda of=/dev/null bs=4k count=16 iflag=direct 2>/dev/null"
            ))?;
        }
        let metrics = guest.controller.metrics()?;
        let (disk, interface) = (&metrics.disks["tools"], &metrics.interfaces["eni"]);
        assert!(disk.kicks.len() == CPUS && disk.kicks.iter().all(|kicks| *kicks > 1), "{disk:?}");
        let transmit = interface.kicks.iter().skip(1).step_by(2);
        assert!(
            transmit.clone().count() == CPUS && transmit.clone().all(|kicks| *kicks > 1),
            "{interface:?}"
        );
        assert!(interface.sent_bytes > 8 * MIB && interface.received_bytes > 8 * MIB, "{interface:?}");
        if round == 0 {
            guest.shell.vmm.send("reboot -f\n")?;
            guest.controller.wait_for(|what| matches!(what, Happening::BootSourceWanted { .. }), PATIENCE)?;
            guest.controller.say(Command::Boot { source: None })?;
            guest.shell.wait_for_boot()?;
        }
    }
    guest.end()
}

/// With its descriptors, the kernel moves the frames, over reboots and changes of interrupts too.
#[test]
fn vhost_net_moves_the_frames() -> Result<()> {
    if !Path::new("/dev/vhost-net").exists() {
        eprintln!("there is no vhost-net here; the lab has it");
        return Ok(());
    }
    let namespace = Namespace::new()?;
    namespace.run(
        "ip tuntap add tap0 mode tap vnet_hdr && ip address add 10.9.0.1/24 dev tap0 && ip link set tap0 up",
    )?;
    let tools = innkeeper_tests::toolbox()?;
    let machine = Machine { cpus: 2, ..Machine::new(Boot::micro("ip=off")) };
    let mut guest = Guest::start_with(&machine, |controller, _| {
        controller.attach_disk("tools", tools.path(), Limits::default())?;
        let taps = namespace.open_tap("tap0", 1)?;
        let vhost = std::fs::File::options().read(true).write(true).open("/dev/vhost-net")?;
        controller.attach_interface_with("eni", &taps, &[vhost.into()], "02:00:00:00:00:09")?;
        Ok(())
    })?;
    let limits = Command::LimitInterface {
        id: "eni".into(),
        receive: Limits { bytes: Some(Limit { per_second: 1, burst: None }), operations: None },
        transmit: Limits::default(),
    };
    assert!(guest.controller.refused(limits, &[])?.message.contains("vhost"));
    for round in 0..2 {
        guest.shell.run(SET_UP_NETWORK)?;
        exchange_over_tcp(&mut guest, &namespace, 7000, 4 * MIB)?;
        // The interrupts of the interface move from CPU to CPU while frames flow.
        guest.shell.run(
            "(while :; do for cpu in 1 2; do for irq in $(grep -o '^ *[0-9]*:.*virtio[0-9]*-[io]' /proc/interrupts | \
             cut -d: -f1); do echo $cpu >/proc/irq/$irq/smp_affinity; done; done; done 2>/dev/null) & true",
        )?;
        exchange_over_tcp(&mut guest, &namespace, 7001, 4 * MIB)?;
        // The driver goes and comes back.
        guest.shell.run(
            "kill %1 2>/dev/null; cd /sys/bus/virtio/drivers/virtio_net && device=$(ls -d virtio*) && \
             echo $device >unbind && echo $device >bind; cd /tmp",
        )?;
        guest
            .shell
            .run("ip address add 10.9.0.2/24 dev eth0 && ip link set eth0 up && ping -c 1 -w 20 10.9.0.1")?;
        exchange_over_tcp(&mut guest, &namespace, 7002, MIB)?;
        assert_eq!(guest.controller.metrics()?.interfaces["eni"].sent_frames, 0, "not by us");
        if round == 0 {
            guest.shell.vmm.send("reboot -f\n")?;
            guest.controller.wait_for(|what| matches!(what, Happening::BootSourceWanted { .. }), PATIENCE)?;
            guest.controller.say(Command::Boot { source: None })?;
            guest.shell.wait_for_boot()?;
        }
    }
    guest.end()
}

/// Programs of guest and host talk over vsock, whoever begins.
#[test]
fn vsock_connects_both_ways() -> Result<()> {
    use std::io::{Read, Write};
    use std::os::fd::AsFd;
    use std::os::unix::net::UnixStream;
    let tools = innkeeper_tests::toolbox()?;
    let directory = tempfile::tempdir()?;
    let listener = directory.path().join("vsock");
    let machine = Machine { vsock: Some((42, listener.clone())), ..Machine::new(Boot::micro("ip=off")) };
    let mut guest = Guest::start_with(&machine, |controller, _| {
        controller.attach_disk("tools", tools.path(), Limits::default())?;
        Ok(())
    })?;
    guest.shell.run("cd /tmp && tar xf /dev/vda")?;
    let (ours, theirs) = innkeeper_tests::controller::socket_pair()?;
    let listen = Command::ListenVsock { port: 6000, stream: innkeeper_protocol::Descriptor(0) };
    guest.controller.call(listen, &[theirs.as_fd()])?;
    drop(theirs);
    for round in 0..3 {
        guest.shell.run("(./netprobe vsock-listen 5000 >/tmp/log 2>&1) & true")?;
        guest.shell.run(&until("grep -q listening /tmp/log"))?;
        let mut stream = UnixStream::connect(&listener)?;
        stream.write_all(b"CONNECT 5000\n")?;
        let mut answer = Vec::new();
        while answer.last() != Some(&b'\n') {
            let mut byte = [0];
            stream.read_exact(&mut byte)?;
            answer.push(byte[0]);
        }
        assert!(answer.starts_with(b"OK "), "{answer:?}");
        let stream = std::fs::File::from(std::os::fd::OwnedFd::from(stream));
        innkeeper_tests::exchange::begin(stream, 3 * MIB).with_context(|| format!("round {round}"))?;
        guest.shell.run(&until("grep -q exchanged /tmp/log"))?;

        guest.shell.run("(./netprobe vsock-connect 6000 3000000 >/tmp/log2 2>&1) & true")?;
        let (_, mut descriptors) = innkeeper_protocol::receive_packet(ours.as_fd())?;
        let stream = descriptors.pop().context("a connection")?;
        innkeeper_tests::exchange::answer(stream.into()).with_context(|| format!("round {round}"))?;
        guest.shell.run(&until("grep -q exchanged /tmp/log2"))?;
    }
    assert!(guest.shell.run("./netprobe vsock-connect 6001 1").is_err(), "nobody listens there");
    // Nobody is left behind, and a guest that begins anew finds everything as it was.
    let metrics = guest.controller.metrics()?.vsock.context("a vsock device")?;
    assert_eq!((metrics.connections, metrics.accepted, metrics.refused), (0, 6, 1), "{metrics:?}");
    guest.end()
}
