//! A vsock device between a hostile guest and programs on the host that come, talk and go as they like.

#![no_main]

use std::collections::{HashMap, VecDeque};
use std::io::{IoSliceMut, Read, Write};
use std::net::Shutdown;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixListener, UnixStream};
use std::sync::{Arc, OnceLock};

use arbitrary::Arbitrary;
use innkeeper_fuzz::{Act, Bytes, Device, Guest, Length, List, Setup, Steps, Timed};
use innkeeper_vmm::virtio::VirtioDevice;
use innkeeper_vmm::virtio::vsock::{Muxer, Vsock, VsockHost};
use libfuzzer_sys::fuzz_target;
use nix::sys::socket::{
    AddressFamily, ControlMessageOwned, MsgFlags, SockFlag, SockType, UnixAddr, recvmsg, socketpair,
};

const CID: u32 = 7;
const HOST_CID: u64 = 2;
const HEADER_SIZE: usize = 44;
/// What the host's end of a connection keeps for a program.
const BUF_ALLOC: u32 = 128 << 10;
const MAX_PEERS: u64 = 1024;
/// The first port of a connection that a program asks for.
const FRESH_PORT: u32 = 0x4000_0000;

const RECEIVE: usize = 0;
const TRANSMIT: usize = 1;

const REQUEST: u16 = 1;
const RESPONSE: u16 = 2;
const RESET: u16 = 3;
const SHUTDOWN: u16 = 4;
const DATA: u16 = 5;
const CREDIT_UPDATE: u16 = 6;
const CREDIT_REQUEST: u16 = 7;

/// Programs, at a time, and bytes that each says at once.
const MOST_PROGRAMS: usize = 16;

#[derive(Arbitrary, Clone, Copy, Debug)]
enum Port {
    /// One of those that programs listen to, or ask for.
    Known(u8),
    /// One that the device has chosen.
    Fresh(u8),
    Any(u32),
}

impl Port {
    fn number(self) -> u32 {
        match self {
            Self::Known(port) => u32::from(port % 4),
            Self::Fresh(index) => FRESH_PORT + u32::from(index % 16),
            Self::Any(port) => port,
        }
    }
}

/// Which connection a packet is about.
#[derive(Arbitrary, Clone, Copy, Debug)]
enum About {
    /// One that the guest has heard of, or has asked for.
    Known(u8),
    Ports {
        host: Port,
        guest: Port,
    },
}

/// What a packet says. Most say something that goes with a connection.
#[derive(Arbitrary, Clone, Copy, Debug)]
enum Op {
    Data,
    MoreData,
    Shutdown,
    CreditUpdate,
    CreditRequest,
    Request,
    Response,
    Reset,
    Any(u16),
}

impl Op {
    fn number(self) -> u16 {
        match self {
            Self::Request => REQUEST,
            Self::Response => RESPONSE,
            Self::Reset => RESET,
            Self::Shutdown => SHUTDOWN,
            Self::Data | Self::MoreData => DATA,
            Self::CreditUpdate => CREDIT_UPDATE,
            Self::CreditRequest => CREDIT_REQUEST,
            Self::Any(number) => number,
        }
    }
}

/// A packet from the guest. What is not said here is as it has to be.
#[derive(Arbitrary, Debug)]
struct Packet {
    about: About,
    op: Op,
    flags: u8,
    credit: Credit,
    payload: Length,
    /// What `len` says, if it is not so.
    len: Option<u32>,
    odd: Odd,
    cut: u8,
    is_indirect: bool,
}

/// What the guest says of its room, and of what it has taken.
#[derive(Arbitrary, Clone, Copy, Debug)]
enum Credit {
    True,
    /// It has taken all, but there is little room.
    Little(u16),
    /// It has taken less, or more.
    Near {
        room: u16,
        taken: i8,
    },
    Any {
        room: u32,
        taken: u32,
    },
}

impl Packet {
    fn new(about: About, op: Op, length: u16) -> Self {
        Self {
            about,
            op,
            flags: 0,
            credit: Credit::True,
            payload: Length::Long(length),
            len: None,
            odd: Odd::Nothing,
            cut: 0,
            is_indirect: false,
        }
    }
}

#[derive(Arbitrary, Clone, Copy, Debug)]
enum Odd {
    Nothing,
    Nothing2,
    Nothing3,
    Cid(u64, u64),
    Type(u16),
    Flags(u32),
    Short,
}

#[derive(Arbitrary, Debug)]
enum Step {
    Act(Act),
    Packet(Packet),
    /// The guest gives buffers to receive into.
    Supply {
        lengths: List<Length>,
        is_indirect: bool,
        repeat: u8,
    },
    /// The guest takes packets, and gives as many buffers.
    Answer(Option<Op>),
    /// It asks for a connection to a port that a program listens to.
    Open {
        host: u8,
        guest: u8,
    },
    /// It sends as much as it may, and perhaps more.
    Flood {
        connection: u8,
        count: u8,
    },
    /// A program comes and says what it wants.
    Visit {
        port: Port,
        more: u8,
    },
    /// A program comes and says something else.
    VisitOddly(Bytes),
    Write {
        program: u8,
        length: Length,
    },
    Read {
        program: u8,
        length: u16,
    },
    Close {
        program: u8,
        how: u8,
    },
    /// A program listens to a port of the host.
    Listen(Port),
    /// It does not any more.
    StopListening(u8),
    Ring(u8),
    Handle(u64),
    Run,
    Activate(Setup),
}

#[derive(Arbitrary, Debug)]
struct Input {
    setup: Setup,
    /// Programs listen to some ports already, and the guest has so many buffers.
    is_prepared: bool,
    buffers: u8,
    /// How much the guest's programs have room for.
    has_little_room: bool,
    steps: Steps<Timed<Step>>,
}

/// Where programs connect to. One for all inputs: binding is slow.
fn listener() -> &'static (UnixListener, SocketAddr) {
    static LISTENER: OnceLock<(UnixListener, SocketAddr)> = OnceLock::new();
    LISTENER.get_or_init(|| {
        let name = format!("innkeeper-fuzz-vsock-{}", std::process::id());
        let address = SocketAddr::from_abstract_name(name).unwrap();
        let listener = UnixListener::bind_addr(&address).unwrap();
        listener.set_nonblocking(true).unwrap();
        (listener, address)
    })
}

/// What the guest knows of a connection.
#[derive(Default)]
struct Received {
    /// Bytes in all, and the most that the guest has ever allowed.
    bytes: u64,
    allowed: u64,
}

struct Bench {
    guest: Guest,
    host: Arc<VsockHost>,
    device: Option<Device>,
    programs: Vec<UnixStream>,
    services: Vec<OwnedFd>,
    /// By host port and guest port.
    connections: HashMap<(u32, u32), Received>,
    /// Those that packets should be about.
    known: Vec<(u32, u32)>,
    /// What the guest has got and not answered: the host's port, its own, and the operation.
    unanswered: VecDeque<(u32, u32, u16)>,
    /// Bytes that programs have written, that the guest has got, and the other way round.
    written: u64,
    received: u64,
    sent: u64,
    read: u64,
    is_known: bool,
    room: u32,
}

impl Bench {
    fn new() -> Self {
        let (listener, _) = listener();
        // Programs of the input before this one.
        while listener.accept().is_ok() {}
        let host = VsockHost::new(CID, Some(listener.try_clone().unwrap().into())).unwrap();
        Self {
            guest: Guest::default(),
            host: Arc::new(host),
            device: None,
            programs: Vec::new(),
            services: Vec::new(),
            connections: HashMap::new(),
            known: Vec::new(),
            unanswered: VecDeque::new(),
            written: 0,
            received: 0,
            sent: 0,
            read: 0,
            is_known: true,
            room: BUF_ALLOC,
        }
    }

    fn activate(&mut self, setup: &Setup) {
        self.device = None;
        assert_eq!(self.host.metrics().connections, 0, "connections end with the device");
        self.connections.clear();
        self.known.clear();
        self.unanswered.clear();
        let vsock = Vsock::new(Arc::clone(&self.host));
        let activation = self.guest.activate(setup, vsock.features(), vsock.queue_sizes());
        let muxer = activation.and_then(|activation| Muxer::new(Arc::clone(&self.host), activation).ok());
        self.device = muxer.map(Device::new);
    }

    fn send(&mut self, packet: Packet) {
        let Packet { about, op, flags, credit, payload, len, odd, cut, is_indirect } = packet;
        let (host_port, guest_port) = match about {
            About::Known(index) if !self.known.is_empty() => {
                self.known[usize::from(index) % self.known.len()]
            }
            About::Known(index) => (u32::from(index % 4), u32::from(index)),
            About::Ports { host, guest } => (host.number(), guest.number()),
        };
        let payload = vec![flags; payload.fitting()];
        let (op, mut flags, mut kind) = (op.number(), u32::from(flags % 4), 1);
        let (mut src_cid, mut dst_cid) = (u64::from(CID), HOST_CID);
        match odd {
            Odd::Nothing | Odd::Nothing2 | Odd::Nothing3 | Odd::Short => {}
            Odd::Cid(src, dst) => (src_cid, dst_cid) = (src, dst),
            Odd::Type(other) => kind = other,
            Odd::Flags(other) => flags = other,
        }
        let payload = if op == DATA { &payload[..] } else { &[] };
        let len = len.unwrap_or(payload.len() as u32);
        let has_got = self.connections.entry((host_port, guest_port)).or_default();
        let got = has_got.bytes as u32;
        let (buf_alloc, fwd_cnt) = match credit {
            Credit::True => (self.room, got),
            Credit::Little(room) => (room.into(), got),
            Credit::Near { room, taken } => (room.into(), got.wrapping_add_signed(taken.into())),
            Credit::Any { room, taken } => (room, taken),
        };
        // The counter wraps around; a guest may say that it has taken more, or less, than it has got.
        let ahead = i64::from(fwd_cnt.wrapping_sub(got) as i32);
        let limit = (has_got.bytes + u64::from(buf_alloc)).saturating_add_signed(ahead);
        has_got.allowed = has_got.allowed.max(limit);
        let header = [
            &src_cid.to_le_bytes()[..],
            &dst_cid.to_le_bytes(),
            &guest_port.to_le_bytes(),
            &host_port.to_le_bytes(),
            &len.to_le_bytes(),
            &u16::to_le_bytes(kind),
            &op.to_le_bytes(),
            &flags.to_le_bytes(),
            &buf_alloc.to_le_bytes(),
            &fwd_cnt.to_le_bytes(),
        ]
        .concat();
        let mut bytes = [&header[..], payload].concat();
        if matches!(odd, Odd::Short) {
            bytes.truncate(usize::from(cut) % HEADER_SIZE);
            self.guest.may_be_given_up();
        }
        let (head, tail) = bytes.split_at(usize::from(cut).min(bytes.len()));
        if self.guest.submit(TRANSMIT, &[head, tail], &[], is_indirect).is_some() {
            match op {
                DATA => self.sent += u64::from(len).min(payload.len() as u64),
                REQUEST => self.know((host_port, guest_port)),
                RESET => self.known.retain(|ports| *ports != (host_port, guest_port)),
                _ => {}
            }
        }
    }

    fn know(&mut self, ports: (u32, u32)) {
        if self.known.len() < MOST_PROGRAMS && !self.known.contains(&ports) {
            self.known.push(ports);
        }
    }

    fn supply(&mut self, lengths: &[usize], is_indirect: bool) {
        if lengths.iter().sum::<usize>() <= HEADER_SIZE {
            // There is no room for a byte of data.
            self.guest.may_be_given_up();
        }
        self.guest.submit(RECEIVE, &[], lengths, is_indirect);
    }

    fn answer(&mut self, other: Option<Op>) {
        for (host_port, guest_port, received) in self.unanswered.drain(..).collect::<Vec<_>>() {
            self.supply(&[4096], false);
            // To a request it is a response that makes sense, to data a credit update.
            let fitting = match received {
                REQUEST => Op::Response,
                DATA => Op::CreditUpdate,
                _ => continue,
            };
            let about = About::Ports { host: Port::Any(host_port), guest: Port::Any(guest_port) };
            self.send(Packet::new(about, other.unwrap_or(fitting), 0));
        }
    }

    fn visit(&mut self, line: &[u8]) {
        if self.programs.len() >= MOST_PROGRAMS {
            return;
        }
        let (_, address) = listener();
        let program = UnixStream::connect_addr(address).unwrap();
        program.set_nonblocking(true).unwrap();
        let _ = (&program).write(line);
        self.programs.push(program);
    }

    fn program(&mut self, program: u8) -> Option<&mut UnixStream> {
        let count = self.programs.len().max(1);
        self.programs.get_mut(usize::from(program) % count)
    }

    fn timed(&mut self, step: Timed<Step>) {
        let (step, works) = step.take();
        self.step(step);
        if works {
            self.guest.ring_all();
            self.step(Step::Run);
        }
    }

    fn step(&mut self, step: Step) {
        match step {
            Step::Act(act) => self.guest.act(act),
            Step::Packet(packet) => self.send(packet),
            Step::Supply { lengths, is_indirect, repeat } => {
                let lengths: Vec<_> = lengths.into_iter().map(Length::fitting).collect();
                (0..=repeat % 32).for_each(|_| self.supply(&lengths, is_indirect));
            }
            Step::Answer(op) => self.answer(op),
            Step::Open { host, guest } => {
                let about = About::Ports { host: Port::Known(host % 3), guest: Port::Known(guest) };
                self.send(Packet::new(about, Op::Request, 0));
            }
            Step::Flood { connection, count } => {
                for _ in 0..count % 32 {
                    self.send(Packet::new(About::Known(connection), Op::Data, 0x7000));
                    self.guest.ring(TRANSMIT);
                    self.step(Step::Run);
                }
            }
            Step::Visit { port, more } => {
                let line = format!("CONNECT {}\n{}", port.number(), "x".repeat(more.into()));
                self.written += u64::from(more);
                self.visit(line.as_bytes());
            }
            Step::VisitOddly(line) => {
                self.written += line.len() as u64;
                self.visit(&line);
            }
            Step::Write { program, length } => {
                let bytes = vec![program; length.fitting()];
                let written = self.program(program).and_then(|program| program.write(&bytes).ok());
                self.written += written.unwrap_or(0) as u64;
            }
            Step::Read { program, length } => {
                let mut bytes = vec![0; length.into()];
                let read = self.program(program).and_then(|program| program.read(&mut bytes).ok());
                self.read += read.unwrap_or(0) as u64;
            }
            Step::Close { program, how } => {
                let count = self.programs.len().max(1);
                let index = usize::from(program) % count;
                let Some(program) = self.programs.get(index) else { return };
                match how % 4 {
                    0 => _ = program.shutdown(Shutdown::Read),
                    1 => _ = program.shutdown(Shutdown::Write),
                    2 => _ = program.shutdown(Shutdown::Both),
                    _ => _ = self.programs.swap_remove(index),
                }
            }
            Step::Listen(port) => {
                let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
                let (ours, theirs) =
                    socketpair(AddressFamily::Unix, SockType::SeqPacket, None, flags).unwrap();
                let is_port = port.number() != u32::MAX;
                assert_eq!(self.host.listen(port.number(), theirs).is_ok(), is_port);
                self.services.push(ours);
            }
            Step::StopListening(service) => {
                let count = self.services.len().max(1);
                let index = usize::from(service) % count;
                if index < self.services.len() {
                    self.services.swap_remove(index);
                }
            }
            Step::Ring(queue) => self.guest.ring(usize::from(queue % 3)),
            Step::Handle(source) => {
                if let Some(device) = &mut self.device {
                    device.handle(&mut self.guest, source % 5);
                }
            }
            Step::Run => {
                if let Some(device) = &mut self.device {
                    device.run(&mut self.guest);
                }
                self.take_connections();
            }
            Step::Activate(setup) => self.activate(&setup),
        }
        self.check();
    }

    /// Programs that listen take the connections that the guest has made.
    fn take_connections(&mut self) {
        for service in &self.services {
            while self.programs.len() < MOST_PROGRAMS {
                let Some(socket) = accept(service) else { break };
                socket.set_nonblocking(true).unwrap();
                self.programs.push(socket);
            }
        }
    }

    fn check(&mut self) {
        assert!(self.host.metrics().connections <= MAX_PEERS);
        self.is_known &= self.guest.is_content_known();
        let Guest { memory, drivers, .. } = &mut self.guest;
        if let Some(Some(driver)) = drivers.get_mut(TRANSMIT) {
            for returned in driver.returned.drain(..) {
                assert!(
                    returned.written == 0 || !self.is_known,
                    "nothing is written to what the guest sends"
                );
            }
        }
        let Some(Some(driver)) = drivers.get_mut(RECEIVE) else { return };
        for returned in std::mem::take(&mut driver.returned) {
            if !self.is_known {
                continue;
            }
            let pieces = returned.chain.map(|chain| chain.writable).unwrap_or_default();
            let bytes: Vec<u8> = pieces
                .iter()
                .flat_map(|piece| memory.read(piece.address, piece.length.into()))
                .take(returned.written as usize)
                .collect();
            let (header, payload) = bytes.split_first_chunk::<HEADER_SIZE>().expect("a whole header");
            let field = |at: usize, size: usize| {
                header[at..at + size].iter().rev().fold(0u64, |value, byte| value << 8 | u64::from(*byte))
            };
            assert_eq!((field(0, 8), field(8, 8)), (HOST_CID, CID.into()), "who speaks to whom");
            assert_eq!(field(24, 4), payload.len() as u64, "what is said to follow does");
            let op = field(30, 2) as u16;
            assert!((1..=7).contains(&op) && (field(28, 2) == 1 || op == RESET));
            assert!(payload.is_empty() || op == DATA);
            let ports = (field(16, 4) as u32, field(20, 4) as u32);
            let connection = self.connections.entry(ports).or_default();
            if op == DATA {
                assert!(!payload.is_empty());
                self.received += payload.len() as u64;
                connection.bytes += payload.len() as u64;
                assert!(connection.bytes <= connection.allowed, "the guest got more than it has allowed");
            }
            if op == RESET {
                self.known.retain(|known| *known != ports);
            }
            if matches!(op, REQUEST | RESPONSE) {
                // It is a new one.
                connection.bytes = 0;
            }
            self.unanswered.push_back((ports.0, ports.1, op));
        }
        let asked = self.unanswered.iter().filter(|(.., op)| *op == REQUEST);
        let heard: Vec<_> = asked.map(|(host, guest, _)| (*host, *guest)).collect();
        heard.into_iter().for_each(|ports| self.know(ports));
        if self.is_known {
            assert!(self.received <= self.written, "the guest got more than anybody has written");
            // There is a line of the device's own for each connection.
            let lines = self.host.metrics().accepted * 16;
            assert!(self.read <= self.sent + lines, "programs got more than the guest has sent");
        }
    }
}

/// The next connection that was passed to a service.
fn accept(service: &OwnedFd) -> Option<UnixStream> {
    let (mut byte, mut control) = ([0], nix::cmsg_space!([i32; 1]));
    let mut data = [IoSliceMut::new(&mut byte)];
    let flags = MsgFlags::MSG_CMSG_CLOEXEC;
    let received = recvmsg::<UnixAddr>(service.as_raw_fd(), &mut data, Some(&mut control), flags).ok()?;
    let message = received.cmsgs().ok()?.next()?;
    let ControlMessageOwned::ScmRights(fds) = message else { return None };
    // SAFETY: the kernel has just made this descriptor for us, and nobody else knows it.
    Some(unsafe { UnixStream::from_raw_fd(*fds.first()?) })
}

fuzz_target!(|input: Input| {
    let mut bench = Bench::new();
    bench.activate(&input.setup);
    bench.room = if input.has_little_room { 300 } else { BUF_ALLOC };
    if input.is_prepared {
        (0..3).for_each(|port| bench.step(Step::Listen(Port::Known(port))));
        (0..input.buffers % 128).for_each(|_| bench.supply(&[4096], false));
    }
    input.steps.into_iter().for_each(|step| bench.timed(step));
});
