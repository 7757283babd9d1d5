//! Controllers that send anything: packets that are no requests, requests that make no sense, descriptors of the wrong
//! kind, in any order, while others come and go. The guest is never started.

#![no_main]

use std::collections::{HashSet, VecDeque};
use std::fs::File;
use std::io::{IoSlice, Write};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use arbitrary::Arbitrary;
use innkeeper_block::layered::{Layer, LayerDescription, create_layer};
use innkeeper_fuzz::{Bytes, List, Steps};
use innkeeper_protocol::{
    Answer, AttachDisk, AttachInterface, BootSource, Command, Configure, ConsoleKind, Descriptor, DiskEngine,
    DiskSource, Event, Identity, LayerFiles, Limit, Limits, MAX_PACKET, Message, Outcome, Reply, Request,
    SealDisk, State, Status, Vsock, receive_packet,
};
use innkeeper_vmm::control::{Server, parse};
use libfuzzer_sys::fuzz_target;
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::socket::{
    AddressFamily, Backlog, ControlMessage, MsgFlags, SockFlag, SockType, UnixAddr, bind, connect, listen,
    sendmsg, socket, socketpair,
};
use nix::unistd::pipe2;
use uuid::Uuid;

/// The most controllers that come in one input.
const MOST_CONTROLLERS: usize = 20;

/// Bytes of a volume in layers.
const LAYER_SIZE: u64 = 8192;

/// A descriptor that a controller passes.
#[derive(Arbitrary, Clone, Copy, Debug)]
enum Kind {
    Kvm,
    /// A file of so many bytes.
    File(u16),
    ReadOnlyFile,
    /// The map of a layer without content, on top of the one with the number before.
    Map(u8),
    Null,
    /// For controllers to come.
    Listener,
    StreamListener,
    PacketSocket,
    /// The end to read from, which has something.
    PipeToRead,
    PipeToWrite,
}

/// A name, or something that is none.
#[derive(Arbitrary, Clone, Debug)]
enum Text {
    Known(u8),
    Empty,
    Long(u8),
    Any(String),
}

impl Text {
    fn id(&self) -> String {
        match self {
            Self::Known(number) => format!("vol{}", number % 4),
            Self::Empty => String::new(),
            Self::Long(length) => "x".repeat((*length).into()),
            Self::Any(text) => text.clone(),
        }
    }

    fn or(&self, usual: &str) -> String {
        match self {
            Self::Known(_) => usual.into(),
            other => other.id(),
        }
    }
}

#[derive(Arbitrary, Clone, Copy, Debug)]
struct Rates([Option<(u64, Option<u64>)>; 2]);

impl Rates {
    fn limits(self) -> Limits {
        let limit = |(per_second, burst)| Limit { per_second, burst };
        let [bytes, operations] = self.0.map(|rate| rate.map(limit));
        Limits { bytes, operations }
    }
}

/// A request. Descriptors are named by number; most inputs have few.
#[derive(Arbitrary, Clone, Debug)]
enum Wish {
    Hello {
        is_spoken: bool,
        version: u32,
    },
    /// With descriptors that fit.
    ConfigureWell {
        cpus: u8,
        has_listener: bool,
        virtio_console: bool,
        balloon: bool,
        cid: Option<u32>,
    },
    Configure {
        kvm: u8,
        cpus: u8,
        memory: u64,
        uuid: Text,
        serial: Option<Text>,
        kernel: u8,
        initrd: Option<u8>,
        command_line: Text,
        listener: Option<u8>,
        vsock: Option<(u32, Option<u8>)>,
    },
    AttachDiskWell {
        id: Text,
        size: u16,
        queues: Option<u16>,
    },
    ListenVsockWell(u8),
    AttachConsoleWell {
        is_virtio: bool,
        has_pipe: bool,
        has_input: bool,
        follow: bool,
        after: u8,
    },
    AttachDisk {
        id: Text,
        file: u8,
        read_only: bool,
        serial: Text,
        engine: u8,
        queues: Option<u16>,
        limits: Rates,
    },
    AttachInterface {
        id: Text,
        taps: List<u8>,
        vhost: List<u8>,
        mac: Text,
        receive: Rates,
        transmit: Rates,
    },
    AttachLayersWell {
        id: Text,
        first: u8,
        count: u8,
    },
    LayersWell(u8),
    SealWell {
        id: Text,
        first: u8,
        count: u8,
    },
    AttachLayers {
        id: Text,
        layers: List<(u8, u8)>,
        read_only: bool,
        still: bool,
    },
    Layers(List<(u8, u8)>),
    SealDisks(List<(Text, List<(u8, u8), 4>), 4>),
    FinishSeal(Text),
    DiskLayers(Text),
    ReplaceLayers {
        id: Text,
        first: u32,
        count: u32,
        merged: (u8, u8),
    },
    Detach {
        id: Text,
        force: bool,
    },
    ResizeDisk {
        id: Text,
        sectors: u16,
        rest: u64,
    },
    LimitDisk {
        id: Text,
        limits: Rates,
    },
    LimitInterface {
        id: Text,
        receive: Rates,
        transmit: Rates,
    },
    SetBalloon(u64),
    ListenVsock {
        port: u32,
        stream: u8,
    },
    Pause,
    Resume,
    PowerButton,
    Reboot(u64),
    Reset,
    PowerOff,
    Boot(Option<(u8, Option<u8>, Text)>),
    DelayBoot(u64),
    Status,
    Metrics,
    AttachConsole {
        is_virtio: bool,
        output: Option<u8>,
        input: Option<u8>,
        follow: bool,
        after: u64,
    },
    Events(u64),
    Quit,
}

/// How far things are when an input begins.
#[derive(Arbitrary, Clone, Debug)]
enum Start {
    Nothing,
    Hello,
    Configured { virtio_console: bool, balloon: bool, cid: Option<u32> },
    WithDisks(u8),
}

/// What is done to a request on its way.
#[derive(Arbitrary, Clone, Debug)]
enum Damage {
    Replace { at: u16, with: u8 },
    Cut(u16),
    Repeat { from: u16, length: u16 },
    Insert { at: u16, what: Bytes },
}

#[derive(Arbitrary, Debug)]
enum Step {
    Ask {
        controller: u8,
        wish: Wish,
        with: List<Kind, 8>,
    },
    AskBadly {
        controller: u8,
        wish: Wish,
        with: List<Kind, 8>,
        damage: List<Damage, 8>,
    },
    Say {
        controller: u8,
        bytes: Bytes,
        with: List<Kind, 8>,
    },
    /// More than anybody takes, or nearly so much.
    SayMuch {
        controller: u8,
        by: i8,
    },
    Come,
    Go(u8),
    Read(u8),
    Turn,
}

/// A controller, and the ids of what it wants to hear about.
struct Controller {
    socket: OwnedFd,
    expected: VecDeque<u64>,
    /// Whether somebody has taken it in, and not cut it off since. Not everything that listens is the VMM's.
    is_served: bool,
}

struct Bench {
    server: Server,
    controllers: Vec<Controller>,
    listeners: Vec<UnixAddr>,
    last_id: u64,
    /// The other ends of what was passed.
    others: Vec<OwnedFd>,
}

fn kvm() -> Option<OwnedFd> {
    static KVM: OnceLock<Option<File>> = OnceLock::new();
    let kvm = KVM.get_or_init(|| File::options().read(true).write(true).open("/dev/kvm").ok());
    kvm.as_ref().and_then(|kvm| Some(kvm.try_clone().ok()?.into()))
}

fn null() -> OwnedFd {
    File::open("/dev/null").unwrap().into()
}

fn file(size: u64) -> File {
    let file = File::from(memfd_create(c"file", MFdFlags::MFD_CLOEXEC).unwrap());
    file.set_len(size).unwrap();
    file
}

/// The map of layer `number`, which has been on top of another one unless it is the first.
fn map(number: u8) -> File {
    let (id, map) = (u128::from(number) + 1, file(0));
    let layer = Layer { data: file(0), map: map.try_clone().unwrap() };
    let parent = (number > 0).then(|| Uuid::from_u128(id - 1));
    create_layer(&layer, &LayerDescription { id: Uuid::from_u128(id), parent, size: LAYER_SIZE }).unwrap();
    map
}

/// What `count` layers from number `first` on need, and what is said of them.
fn layers_well(first: u8, count: u8, with: &mut Vec<Kind>) -> Vec<LayerFiles> {
    let numbers = first % 8..first % 8 + count % 4 + 1;
    numbers
        .map(|number| {
            let at = with.len() as u32;
            with.extend([Kind::File(LAYER_SIZE as u16), Kind::Map(number)]);
            LayerFiles { data: Descriptor(at), map: Descriptor(at + 1) }
        })
        .collect()
}

fn attach_layers(id: &Text, layers: Vec<LayerFiles>, (read_only, still): (bool, bool)) -> Command {
    Command::AttachDisk(Box::new(AttachDisk {
        id: id.id(),
        source: DiskSource::Layered { layers },
        read_only,
        still,
        serial: String::new(),
        engine: DiskEngine::Auto,
        queues: None,
        limits: Limits::default(),
    }))
}

impl Bench {
    fn new() -> Self {
        let (ours, theirs) = pair();
        let first = Controller { socket: ours, expected: VecDeque::new(), is_served: true };
        let server = Server::new(theirs).unwrap();
        Self { server, controllers: vec![first], listeners: Vec::new(), last_id: 0, others: Vec::new() }
    }

    fn descriptor(&mut self, kind: Kind) -> OwnedFd {
        match kind {
            Kind::Kvm => kvm().unwrap_or_else(null),
            Kind::File(size) => file(size.into()).into(),
            Kind::ReadOnlyFile => {
                let file = file(4096);
                File::open(format!("/proc/self/fd/{}", file.as_raw_fd())).unwrap().into()
            }
            Kind::Map(number) => map(number).into(),
            Kind::Null => null(),
            Kind::Listener => self.listener(SockType::SeqPacket),
            Kind::StreamListener => self.listener(SockType::Stream),
            Kind::PacketSocket => {
                let (ours, theirs) = pair();
                self.others.push(ours);
                theirs
            }
            Kind::PipeToRead => {
                let (read, write) = pipe2(nix::fcntl::OFlag::O_CLOEXEC).unwrap();
                let _ = File::from(write).write(b"typed by somebody");
                read
            }
            Kind::PipeToWrite => {
                let (read, write) = pipe2(nix::fcntl::OFlag::O_CLOEXEC).unwrap();
                self.others.push(read);
                write
            }
        }
    }

    fn listener(&mut self, kind: SockType) -> OwnedFd {
        static COUNT: AtomicU64 = AtomicU64::new(0);
        let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
        let listener = socket(AddressFamily::Unix, kind, flags, None).unwrap();
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        let name = format!("innkeeper-fuzz-control-{}-{count}", std::process::id());
        let address = UnixAddr::new_abstract(name.as_bytes()).unwrap();
        bind(listener.as_raw_fd(), &address).unwrap();
        listen(&listener, Backlog::new(8).unwrap()).unwrap();
        if kind == SockType::SeqPacket {
            self.listeners.push(address);
        }
        listener
    }

    fn controller(&self, controller: u8) -> Option<usize> {
        let count = self.controllers.len();
        (count > 0).then(|| usize::from(controller) % count)
    }

    fn ask(&mut self, controller: u8, wish: Wish, mut with: Vec<Kind>, damage: &[Damage]) {
        let command = wish.command(&mut with);
        self.last_id += 1;
        let request = Request { id: self.last_id, command };
        let mut bytes = serde_json::to_vec(&request).unwrap();
        damage.iter().for_each(|damage| damage.apply(&mut bytes));
        self.say(controller, &bytes, &with);
    }

    fn say(&mut self, controller: u8, bytes: &[u8], with: &[Kind]) {
        let Some(index) = self.controller(controller) else { return };
        let (id, command) = parse(bytes);
        if matches!(command, Ok(Command::Start)) || bytes.is_empty() {
            return;
        }
        let descriptors: Vec<_> = with.iter().map(|kind| self.descriptor(*kind)).collect();
        let raw: Vec<_> = descriptors.iter().map(AsRawFd::as_raw_fd).collect();
        let rights = [ControlMessage::ScmRights(&raw)];
        let control = if raw.is_empty() { &[][..] } else { &rights };
        let controller = &mut self.controllers[index];
        let flags = MsgFlags::MSG_NOSIGNAL | MsgFlags::MSG_DONTWAIT;
        let data = [IoSlice::new(bytes)];
        if sendmsg::<UnixAddr>(controller.socket.as_raw_fd(), &data, control, flags, None).is_ok() {
            controller.expected.push_back(if bytes.len() > MAX_PACKET { 0 } else { id });
        }
    }

    fn start(&mut self, start: Start) {
        let (virtio_console, balloon, cid, disks) = match start {
            Start::Nothing | Start::Hello => (false, false, None, 0),
            Start::Configured { virtio_console, balloon, cid } => (virtio_console, balloon, cid, 0),
            Start::WithDisks(count) => (true, true, Some(3), count % 32),
        };
        let mut ask = |wish| self.step(Step::Ask { controller: 0, wish, with: List(Vec::new()) });
        if !matches!(start, Start::Nothing) {
            ask(Wish::Hello { is_spoken: true, version: 1 });
        }
        if matches!(start, Start::Configured { .. } | Start::WithDisks(_)) {
            ask(Wish::ConfigureWell { cpus: 1, has_listener: true, virtio_console, balloon, cid });
        }
        for disk in 0..disks {
            ask(Wish::AttachDiskWell { id: Text::Any(format!("vol{disk}")), size: 4096, queues: None });
        }
    }

    /// False when the process would end.
    fn step(&mut self, step: Step) -> bool {
        match step {
            Step::Ask { controller, wish, with } => {
                self.ask(controller, wish, with.0, &[]);
                return self.turn();
            }
            Step::AskBadly { controller, wish, with, damage } => self.ask(controller, wish, with.0, &damage),
            Step::Say { controller, bytes, with } => self.say(controller, &bytes, &with),
            Step::SayMuch { controller, by } => {
                self.say(controller, &vec![b'{'; MAX_PACKET.saturating_add_signed(by.into())], &[]);
            }
            Step::Come => self.come(),
            Step::Go(controller) => {
                if let Some(index) = self.controller(controller) {
                    self.controllers.remove(index);
                }
            }
            Step::Read(controller) => {
                if let Some(index) = self.controller(controller) {
                    self.controllers[index].read();
                }
            }
            Step::Turn => return self.turn(),
        }
        true
    }

    fn turn(&mut self) -> bool {
        self.server.turn();
        let goes_on = !self.server.is_quitting();
        self.controllers.iter_mut().for_each(Controller::read);
        goes_on
    }

    /// Everybody gets an answer, in the end, to all that was asked.
    fn finish(mut self) {
        let open = self.controllers.iter().map(|controller| controller.expected.len()).sum::<usize>();
        for _ in 0..open {
            if !self.turn() {
                return;
            }
        }
        let mut served = self.controllers.iter().filter(|controller| controller.is_served);
        assert!(served.all(|controller| controller.expected.is_empty()), "a request was not answered");
    }

    fn come(&mut self) {
        if self.controllers.len() >= MOST_CONTROLLERS {
            return;
        }
        for address in &self.listeners {
            let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
            let socket = socket(AddressFamily::Unix, SockType::SeqPacket, flags, None).unwrap();
            if connect(socket.as_raw_fd(), address).is_ok() {
                self.controllers.push(Controller { socket, expected: VecDeque::new(), is_served: false });
            }
        }
    }
}

impl Controller {
    /// Reads what there is, and sees that it makes sense.
    fn read(&mut self) {
        loop {
            let (bytes, descriptors) = match receive_packet(self.socket.as_fd()) {
                Ok(packet) => packet,
                Err(error) => {
                    // There may have been too many, or it may not have read: then nothing is owed to it.
                    self.is_served &= !matches!(error, innkeeper_protocol::Error::Closed);
                    return;
                }
            };
            assert!(descriptors.is_empty(), "a VMM passes nothing");
            self.is_served = true;
            match serde_json::from_slice(&bytes).expect("a message") {
                Message::Reply(Reply { id, outcome }) => {
                    assert_eq!(self.expected.pop_front(), Some(id), "replies come once, and in order");
                    if let Outcome::Ok(Answer::Status(status)) = outcome {
                        check(&status);
                    }
                }
                Message::Event(Event { sequence, .. }) => assert!(sequence > 0),
            }
        }
    }
}

/// What is always true of a machine that was never started.
fn check(status: &Status) {
    assert!(matches!(status.state, State::Unconfigured | State::Configured | State::Ended));
    assert_eq!((status.resets, status.is_rebooting, status.serial_output), (0, false, 0));
    let ids: HashSet<_> = status.devices.iter().map(|device| &device.id).collect();
    let slots: HashSet<_> = status.devices.iter().map(|device| device.slot).collect();
    assert_eq!(
        (ids.len(), slots.len()),
        (status.devices.len(), status.devices.len()),
        "names and slots are unique"
    );
    assert!(
        status
            .devices
            .iter()
            .all(|device| (1..28).contains(&device.slot) && (1..=64).contains(&device.id.len()))
    );
    assert!(status.devices.is_empty() || status.state != State::Unconfigured);
    for device in &status.devices {
        assert!(device.unsealed < device.layers.max(1) && device.impairment.is_none());
        assert_eq!(device.top.is_some(), device.layers > 0);
    }
}

impl Damage {
    fn apply(&self, bytes: &mut Vec<u8>) {
        let place = |at: u16, length: usize| usize::from(at) % (length + 1);
        match self {
            Self::Replace { at, with } => {
                let at = place(*at, bytes.len());
                if let Some(byte) = bytes.get_mut(at) {
                    *byte = *with;
                }
            }
            Self::Cut(at) => bytes.truncate(place(*at, bytes.len())),
            Self::Repeat { from, length } => {
                let from = place(*from, bytes.len());
                let to = (from + usize::from(*length)).min(bytes.len());
                bytes.extend_from_within(from..to);
            }
            Self::Insert { at, what } => {
                let at = place(*at, bytes.len());
                bytes.splice(at..at, what.iter().copied());
            }
        }
    }
}

impl Wish {
    /// The command, and the descriptors that go with it if it names them itself.
    fn command(self, with: &mut Vec<Kind>) -> Command {
        let descriptor = |index: u8| Descriptor(index.into());
        let list = |list: List<u8>| list.into_iter().map(descriptor).collect();
        let layers = |list: Vec<(u8, u8)>| -> Vec<LayerFiles> {
            let files = |(data, map)| LayerFiles { data: descriptor(data), map: descriptor(map) };
            list.into_iter().map(files).collect()
        };
        match self {
            Self::Hello { is_spoken, version } => {
                Command::Hello { version: if is_spoken { 1 } else { version } }
            }
            Self::ConfigureWell { cpus, has_listener, virtio_console, balloon, cid } => {
                *with = vec![Kind::Kvm, Kind::File(100), Kind::Listener];
                Command::Configure(Box::new(Configure {
                    kvm: Descriptor(0),
                    cpus: cpus % 32 + 1,
                    memory: 64 << 20,
                    identity: Identity { uuid: UUID.into(), serial: None, asset_tag: None },
                    boot: BootSource { kernel: Descriptor(1), initrd: None, command_line: "quiet".into() },
                    listener: has_listener.then_some(Descriptor(2)),
                    virtio_console,
                    balloon,
                    vsock: cid.map(|cid| Vsock { cid, listener: None }),
                }))
            }
            Self::Configure {
                kvm,
                cpus,
                memory,
                uuid,
                serial,
                kernel,
                initrd,
                command_line,
                listener,
                vsock,
            } => Command::Configure(Box::new(Configure {
                kvm: descriptor(kvm),
                cpus,
                memory,
                identity: Identity {
                    uuid: uuid.or(UUID),
                    serial: serial.as_ref().map(Text::id),
                    asset_tag: serial.as_ref().map(Text::id),
                },
                boot: boot(kernel, initrd, &command_line),
                listener: listener.map(descriptor),
                virtio_console: true,
                balloon: true,
                vsock: vsock.map(|(cid, listener)| Vsock { cid, listener: listener.map(descriptor) }),
            })),
            Self::AttachDiskWell { id, size, queues } => {
                *with = vec![Kind::File(size)];
                Command::AttachDisk(Box::new(AttachDisk {
                    id: id.id(),
                    source: DiskSource::Raw { file: Descriptor(0) },
                    read_only: false,
                    still: false,
                    serial: String::new(),
                    engine: DiskEngine::Auto,
                    queues,
                    limits: Limits::default(),
                }))
            }
            Self::ListenVsockWell(port) => {
                *with = vec![Kind::PacketSocket];
                Command::ListenVsock { port: port.into(), stream: Descriptor(0) }
            }
            Self::AttachConsoleWell { is_virtio, has_pipe, has_input, follow, after } => {
                *with = vec![if has_pipe { Kind::PipeToWrite } else { Kind::File(0) }, Kind::PipeToRead];
                Command::AttachConsole {
                    console: if is_virtio { ConsoleKind::Virtio } else { ConsoleKind::Serial },
                    output: Some(Descriptor(0)),
                    input: has_input.then_some(Descriptor(1)),
                    follow,
                    after: after.into(),
                }
            }
            Self::AttachDisk { id, file, read_only, serial, engine, queues, limits } => {
                Command::AttachDisk(Box::new(AttachDisk {
                    id: id.id(),
                    source: DiskSource::Raw { file: descriptor(file) },
                    read_only,
                    still: false,
                    serial: serial.id(),
                    engine: [DiskEngine::Auto, DiskEngine::IoUring, DiskEngine::Sync]
                        [usize::from(engine % 3)],
                    queues,
                    limits: limits.limits(),
                }))
            }
            Self::AttachInterface { id, taps, vhost, mac, receive, transmit } => {
                Command::AttachInterface(Box::new(AttachInterface {
                    id: id.id(),
                    taps: list(taps),
                    vhost: list(vhost),
                    mac: mac.or("02:00:00:00:00:01"),
                    receive: receive.limits(),
                    transmit: transmit.limits(),
                }))
            }
            Self::AttachLayersWell { id, first, count } => {
                *with = Vec::new();
                let layers = layers_well(first, count, with);
                attach_layers(&id, layers, (false, false))
            }
            Self::LayersWell(count) => {
                *with = Vec::new();
                Command::Layers { layers: layers_well(0, count, with) }
            }
            Self::SealWell { id, first, count } => {
                *with = Vec::new();
                let disk = SealDisk { id: id.id(), tops: layers_well(first, count, with) };
                Command::SealDisks { disks: vec![disk] }
            }
            Self::AttachLayers { id, layers: named, read_only, still } => {
                attach_layers(&id, layers(named.0), (read_only, still))
            }
            Self::Layers(named) => Command::Layers { layers: layers(named.0) },
            Self::SealDisks(disks) => {
                let disk =
                    |(id, tops): (Text, List<(u8, u8), 4>)| SealDisk { id: id.id(), tops: layers(tops.0) };
                Command::SealDisks { disks: disks.into_iter().map(disk).collect() }
            }
            Self::FinishSeal(id) => Command::FinishSeal { id: id.id() },
            Self::DiskLayers(id) => Command::DiskLayers { id: id.id() },
            Self::ReplaceLayers { id, first, count, merged } => Command::ReplaceLayers {
                id: id.id(),
                first,
                count,
                merged: LayerFiles { data: descriptor(merged.0), map: descriptor(merged.1) },
            },
            Self::Detach { id, force } => Command::Detach { id: id.id(), force },
            Self::ResizeDisk { id, sectors, rest } => {
                Command::ResizeDisk { id: id.id(), size: (u64::from(sectors) * 512).wrapping_add(rest) }
            }
            Self::LimitDisk { id, limits } => Command::LimitDisk { id: id.id(), limits: limits.limits() },
            Self::LimitInterface { id, receive, transmit } => Command::LimitInterface {
                id: id.id(),
                receive: receive.limits(),
                transmit: transmit.limits(),
            },
            Self::SetBalloon(size) => Command::SetBalloon { size },
            Self::ListenVsock { port, stream } => Command::ListenVsock { port, stream: descriptor(stream) },
            Self::Pause => Command::Pause,
            Self::Resume => Command::Resume,
            Self::PowerButton => Command::PowerButton,
            Self::Reboot(timeout_ms) => Command::Reboot { timeout_ms },
            Self::Reset => Command::Reset,
            Self::PowerOff => Command::PowerOff,
            Self::Boot(source) => Command::Boot {
                source: source.map(|(kernel, initrd, command_line)| boot(kernel, initrd, &command_line)),
            },
            Self::DelayBoot(within_ms) => Command::DelayBoot { within_ms },
            Self::Status => Command::Status,
            Self::Metrics => Command::Metrics,
            Self::AttachConsole { is_virtio, output, input, follow, after } => Command::AttachConsole {
                console: if is_virtio { ConsoleKind::Virtio } else { ConsoleKind::Serial },
                output: output.map(descriptor),
                input: input.map(descriptor),
                follow,
                after,
            },
            Self::Events(after) => Command::Events { after },
            Self::Quit => Command::Quit,
        }
    }
}

const UUID: &str = "ec2a1b2c-0000-4000-8000-000000000001";

fn boot(kernel: u8, initrd: Option<u8>, command_line: &Text) -> BootSource {
    BootSource {
        kernel: Descriptor(kernel.into()),
        initrd: initrd.map(|initrd| Descriptor(initrd.into())),
        command_line: command_line.or("quiet"),
    }
}

fn pair() -> (OwnedFd, OwnedFd) {
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    socketpair(AddressFamily::Unix, SockType::SeqPacket, None, flags).unwrap()
}

fn open_descriptors() -> usize {
    std::fs::read_dir("/proc/self/fd").unwrap().count()
}

/// All that was passed is closed in the end, also by threads that take a moment.
fn see_that_all_is_closed(before: usize) {
    const PATIENCE: Duration = Duration::from_secs(5);
    let start = Instant::now();
    while open_descriptors() > before {
        assert!(start.elapsed() < PATIENCE, "descriptors that were passed are open although all has ended");
        std::thread::yield_now();
    }
}

#[derive(Arbitrary, Debug)]
struct Input {
    start: Start,
    steps: Steps<Step>,
}

fuzz_target!(|input: Input| {
    drop(kvm());
    let before = open_descriptors();
    let mut bench = Bench::new();
    bench.start(input.start);
    if input.steps.into_iter().all(|step| bench.step(step)) {
        bench.finish();
    } else {
        drop(bench);
    }
    see_that_all_is_closed(before);
});
