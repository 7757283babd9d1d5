//! The programs on the host: their sockets, the [`Connection`]s that these belong to, and whose turn it is.
//!
//! A program that has connected to the listener is a visitor until it has said which port it wants; from then on,
//! and from the start if the guest has asked, its socket and its connection make a link. All sockets are in one
//! epoll instance, edge by edge; what it has said is remembered until the socket says that there is nothing more.
//!
//! Data for the guest stays in its socket until the guest has buffers. Only then is one piece of it staged here,
//! which may fill several of these buffers.

use std::collections::{BTreeSet, HashMap, VecDeque};
use std::io;
use std::mem;
use std::ops::Range;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use nix::sys::socket::{MsgFlags, Shutdown, recv, send, shutdown};

use super::connection::{BUF_ALLOC, Connection, Outcome};
use super::greeting::{self, Junk};
use super::host::VsockHost;
use super::packet::{HEADER_SIZE, HOST_CID, Header, Ports, TYPE_STREAM, op};
use crate::virtio::queue::{Chain, QueueError};

/// Links and visitors, at most.
pub const MAX_PEERS: usize = 1024;
/// Visitors, at most. Further ones wait in the listener.
pub const MAX_VISITORS: usize = 64;
/// RSTs about packets that belong to nothing, before the guest is to take some.
pub const MAX_RESETS: usize = 256;
/// How long one side may take for what is a matter of moments: a visitor for its line, the guest for its RESPONSE, or
/// for its RST when all is over.
pub const PATIENCE: Duration = Duration::from_secs(10);

/// Bytes that are staged at a time.
const STAGE: usize = 64 << 10;
/// Rounds of [`EVENTS`] each, before it is somebody else's turn.
const ROUNDS: usize = 8;
const EVENTS: usize = 32;

/// The host's ports of connections that the host begins, which are not those that services have.
const FRESH_PORTS: Range<u32> = 0x4000_0000..0x8000_0000;

/// What a socket is known by, for all the life of a device. 0 is the listener.
type Token = u64;
const LISTENER: Token = 0;

/// The programs.
#[derive(Debug)]
pub struct Peers {
    host: Arc<VsockHost>,
    epoll: Epoll,
    last_token: Token,
    next_port: u32,
    /// Whether somebody may be waiting to be accepted.
    has_callers: bool,
    visitors: HashMap<Token, OwnedFd>,
    links: HashMap<Token, Link>,
    /// The links that the guest can name.
    by_ports: HashMap<Ports, Token>,
    deadlines: BTreeSet<(Instant, Token)>,
    /// What the guest is to get, in this order: RSTs, then each link in its turn.
    resets: VecDeque<Header>,
    turns: VecDeque<Token>,
    stage: Stage,
    /// A packet's payload.
    payload: Box<[u8]>,
}

/// A connection and its program.
#[derive(Debug)]
struct Link {
    connection: Connection,
    /// None when the program has closed its end.
    socket: Option<OwnedFd>,
    is_readable: bool,
    /// Whether the socket is to say when it takes data again.
    awaits_room: bool,
    /// Whether it is among [`Peers::turns`].
    has_turn: bool,
    /// The guest has forgotten it; the program has not got all of its data yet.
    is_remainder: bool,
}

/// Data of the link whose turn it is.
#[derive(Debug)]
struct Stage {
    bytes: Box<[u8]>,
    filled: Range<usize>,
}

impl Peers {
    /// Begins to listen.
    pub fn new(host: Arc<VsockHost>) -> io::Result<Self> {
        let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
        if let Some(listener) = host.listener() {
            epoll.add(listener, EpollEvent::new(EpollFlags::EPOLLIN | EpollFlags::EPOLLET, LISTENER))?;
        }
        Ok(Self {
            host,
            epoll,
            last_token: LISTENER,
            next_port: FRESH_PORTS.start,
            has_callers: false,
            visitors: HashMap::new(),
            links: HashMap::new(),
            by_ports: HashMap::new(),
            deadlines: BTreeSet::new(),
            resets: VecDeque::new(),
            turns: VecDeque::new(),
            stage: Stage { bytes: vec![0; STAGE].into(), filled: 0..0 },
            payload: vec![0; BUF_ALLOC as usize].into(),
        })
    }

    /// Becomes readable when [`Peers::poll`] has something to do.
    pub fn event(&self) -> BorrowedFd<'_> {
        self.epoll.0.as_fd()
    }

    /// When [`Peers::expire`] has something to do.
    pub fn deadline(&self) -> Option<Instant> {
        self.deadlines.first().map(|(deadline, _)| *deadline)
    }

    /// Whether the guest has to take RSTs before it may send more.
    pub fn is_congested(&self) -> bool {
        self.resets.len() >= MAX_RESETS
    }

    /// Takes in what has happened to sockets. False if there may be more.
    pub fn poll(&mut self) -> bool {
        let mut events = [EpollEvent::empty(); EVENTS];
        for _ in 0..ROUNDS {
            // It cannot fail, other than by a signal.
            let count = self.epoll.wait(&mut events, EpollTimeout::ZERO).unwrap_or(0);
            if count == 0 {
                return true;
            }
            for event in events.iter().take(count) {
                match event.data() {
                    LISTENER => self.has_callers = true,
                    token if self.visitors.contains_key(&token) => self.greet(token, event.events()),
                    token => self.advance(token, event.events()),
                }
            }
        }
        false
    }

    /// Ends what has taken too long at `now`.
    pub fn expire(&mut self, now: Instant) {
        while let Some((deadline, token)) = self.deadlines.first().copied()
            && deadline <= now
        {
            self.deadlines.pop_first();
            if self.visitors.remove(&token).is_none() {
                self.break_off(token);
            }
        }
    }

    /// Lets in who is waiting, if there is room now, and counts.
    pub fn settle(&mut self) {
        self.accept();
        self.host.counts.connections.store(self.by_ports.len() as u64, Ordering::Relaxed);
    }

    fn is_full(&self) -> bool {
        self.visitors.len() + self.links.len() >= MAX_PEERS
    }

    fn next_token(&mut self) -> Token {
        self.last_token += 1;
        self.last_token
    }

    fn set_deadline(&mut self, token: Token) {
        self.deadlines.insert((Instant::now() + PATIENCE, token));
    }

    fn forget_deadline(&mut self, token: Token) {
        self.deadlines.retain(|(_, of)| *of != token);
    }

    // From the host.

    fn accept(&mut self) {
        while self.has_callers && self.visitors.len() < MAX_VISITORS && !self.is_full() {
            match self.host.accept() {
                Ok(socket) => self.let_in(socket),
                Err(nix::Error::EAGAIN) => self.has_callers = false,
                Err(nix::Error::EINTR | nix::Error::ECONNABORTED) => {}
                Err(error) => {
                    // Too many open files, say. They are tried again when something else has happened.
                    tracing::debug!(%error, "cannot accept a vsock connection");
                    return;
                }
            }
        }
    }

    fn let_in(&mut self, socket: OwnedFd) {
        let token = self.next_token();
        // What it has said already is an event, too.
        match self.epoll.add(&socket, interest(token, false)) {
            Ok(()) => {
                self.visitors.insert(token, socket);
                self.set_deadline(token);
            }
            Err(error) => tracing::debug!(%error, "cannot watch a vsock connection"),
        }
    }

    /// Reads a visitor's line, if it is there.
    fn greet(&mut self, token: Token, events: EpollFlags) {
        let Some(socket) = self.visitors.get(&token) else { return };
        let is_gone = events.contains(EpollFlags::EPOLLHUP);
        match if is_gone { Err(Junk) } else { read_greeting(socket) } {
            Ok(None) => {}
            Ok(Some(port)) => self.request(token, port),
            Err(Junk) => {
                self.visitors.remove(&token);
                self.forget_deadline(token);
            }
        }
    }

    /// Asks the guest for a connection to its port `port`.
    fn request(&mut self, token: Token, port: u32) {
        self.forget_deadline(token);
        let Some(socket) = self.visitors.remove(&token) else { return };
        let Some(ports) = self.fresh_ports(port) else { return };
        self.set_deadline(token);
        let connection = Connection::request(self.host.cid(), ports);
        // What follows the line was announced with it.
        self.add(token, Link { is_readable: true, ..Link::new(connection, socket) });
    }

    fn fresh_ports(&mut self, guest: u32) -> Option<Ports> {
        // There are fewer links than tries.
        for _ in 0..=MAX_PEERS {
            let host = self.next_port;
            let next = host + 1;
            self.next_port = if FRESH_PORTS.contains(&next) { next } else { FRESH_PORTS.start };
            let ports = Ports { host, guest };
            if !self.by_ports.contains_key(&ports) {
                return Some(ports);
            }
        }
        None
    }

    fn add(&mut self, token: Token, link: Link) {
        self.by_ports.insert(link.connection.ports(), token);
        self.links.insert(token, link);
        self.give_turn(token);
    }

    /// Something has happened to a link's socket.
    fn advance(&mut self, token: Token, events: EpollFlags) {
        let Some(link) = self.links.get_mut(&token) else { return };
        link.is_readable = true;
        if events.contains(EpollFlags::EPOLLOUT) {
            link.flush();
        }
        if events.contains(EpollFlags::EPOLLHUP) {
            if !link.connection.is_open() {
                return self.break_off(token);
            }
            link.connection.host_stopped_receiving();
            if !link.connection.guest_receives() {
                // Nobody reads up to the end.
                link.connection.host_stopped_sending();
            }
        }
        self.after(token);
    }

    // From the guest.

    /// Takes in a packet that the guest has sent.
    pub fn receive(&mut self, chain: &mut Chain<'_>) -> Result<(), QueueError> {
        let mut bytes = [0; HEADER_SIZE];
        if chain.readable.copy_to(&mut bytes) < HEADER_SIZE {
            return Err(QueueError::TooShort(chain.head));
        }
        let header = Header::from_bytes(&bytes);
        if header.src_cid != u64::from(self.host.cid()) || header.dst_cid != HOST_CID {
            // The guest speaks for itself, and to the host. An answer would have to be somebody else's.
            tracing::debug!(?header, "dropped a packet that is not from the guest to the host");
            return Ok(());
        }
        let token = self.by_ports.get(&header.ports()).copied();
        match token.filter(|_| header.type_ == TYPE_STREAM) {
            Some(token) => self.receive_for(token, &header, chain),
            None if header.op == op::RST => {}
            None if header.op == op::REQUEST && header.type_ == TYPE_STREAM => self.respond(&header),
            None => self.reset(&header),
        }
        Ok(())
    }

    /// The guest wants a connection.
    fn respond(&mut self, request: &Header) {
        let socket = if self.is_full() { None } else { self.host.connect(request.dst_port) };
        let token = self.next_token();
        let watched = socket.filter(|socket| self.epoll.add(socket, interest(token, false)).is_ok());
        let Some(socket) = watched else {
            self.host.counts.refused.add(1);
            return self.reset(request);
        };
        self.host.counts.accepted.add(1);
        self.add(token, Link::new(Connection::respond(self.host.cid(), request), socket));
    }

    /// Answers a packet that belongs to nothing.
    fn reset(&mut self, packet: &Header) {
        let header = Header::to_guest(self.host.cid(), packet.ports(), op::RST);
        self.resets.push_back(Header { type_: packet.type_, ..header });
    }

    fn receive_for(&mut self, token: Token, header: &Header, chain: &mut Chain<'_>) {
        let Some(link) = self.links.get_mut(&token) else { return };
        match link.connection.receive(header) {
            Outcome::Nothing => {}
            Outcome::Opened => {
                if !link.tell(&greeting::answer(header.dst_port)) {
                    return self.break_off(token);
                }
                self.forget_deadline(token);
                self.host.counts.accepted.add(1);
            }
            Outcome::Data => {
                // No longer than there is room for in the connection, which is what `payload` holds.
                let payload = usize::try_from(header.len).ok().and_then(|len| self.payload.get_mut(..len));
                let rest = chain.readable.split_off(HEADER_SIZE);
                let (Some(payload), Some(rest)) = (payload, rest) else { return self.break_off(token) };
                if rest.copy_to(payload) < payload.len() {
                    // The guest has promised more than there is.
                    return self.break_off(token);
                }
                self.host.counts.sent_bytes.add(u64::from(header.len));
                link.deliver(payload);
            }
            Outcome::Shutdown => {
                link.pass_on_shutdown();
                if !link.connection.guest_receives() {
                    self.unstage(token);
                }
            }
            Outcome::Finished => {
                self.reset(header);
                return self.part(token);
            }
            Outcome::Reset => {
                if !link.connection.is_open() {
                    self.host.counts.refused.add(1);
                }
                self.remove(token);
                return;
            }
            Outcome::Violation => {
                tracing::debug!(?header, "the guest broke the rules of a vsock connection");
                return self.break_off(token);
            }
        }
        self.after(token);
    }

    /// The guest is done with a link; its program gets what is left.
    fn part(&mut self, token: Token) {
        self.take_turn(token);
        let Some(link) = self.links.get_mut(&token) else { return };
        self.by_ports.remove(&link.connection.ports());
        link.pass_on_shutdown();
        link.is_remainder = true;
        link.is_readable = false;
        self.after(token);
    }

    // To both.

    /// Draws the conclusions when something about a link has changed.
    fn after(&mut self, token: Token) {
        let Some(link) = self.links.get_mut(&token) else { return };
        link.watch(&self.epoll, token);
        if link.is_remainder {
            if link.connection.is_flushed() {
                self.remove(token);
            }
            return;
        }
        if link.connection.is_done_by_host() && link.socket.take().is_some() {
            self.set_deadline(token);
        }
        self.give_turn(token);
    }

    /// Ends a link on both sides at once.
    fn break_off(&mut self, token: Token) {
        let Some(link) = self.remove(token) else { return };
        if !link.connection.is_open() {
            self.host.counts.refused.add(1);
        }
        if link.connection.is_known_to_guest() && !link.is_remainder {
            let header = Header::to_guest(self.host.cid(), link.connection.ports(), op::RST);
            self.resets.push_back(header);
        }
    }

    fn remove(&mut self, token: Token) -> Option<Link> {
        self.take_turn(token);
        self.forget_deadline(token);
        let link = self.links.remove(&token)?;
        if !link.is_remainder {
            self.by_ports.remove(&link.connection.ports());
        }
        Some(link)
    }

    fn give_turn(&mut self, token: Token) {
        if let Some(link) = self.links.get_mut(&token)
            && !mem::replace(&mut link.has_turn, true)
        {
            self.turns.push_back(token);
        }
    }

    /// There is nothing more to say to the guest about a link.
    fn take_turn(&mut self, token: Token) {
        self.unstage(token);
        if let Some(link) = self.links.get_mut(&token)
            && mem::replace(&mut link.has_turn, false)
        {
            self.turns.retain(|turn| *turn != token);
        }
    }

    /// Throws away what is staged, if it is this link's.
    fn unstage(&mut self, token: Token) {
        if self.turns.front() == Some(&token) {
            self.stage.filled = 0..0;
        }
    }

    // To the guest.

    /// Whether there is a packet for the guest. To be asked only when the guest may have a buffer for it: the
    /// answer may have to be read from a socket.
    pub fn has_packet(&mut self) -> bool {
        if !self.resets.is_empty() {
            return true;
        }
        while let Some(token) = self.turns.front().copied() {
            if !self.stage.filled.is_empty() {
                return true;
            }
            if let Some(link) = self.links.get_mut(&token) {
                if link.connection.has_control() {
                    return true;
                }
                // That may be the end of the data, or a lack of credit, of which the guest is to hear.
                if link.read(&mut self.stage) || link.connection.has_control() {
                    return true;
                }
                link.has_turn = false;
            }
            self.turns.pop_front();
        }
        false
    }

    /// The packet that [`Peers::has_packet`] has found, with at most `room` bytes of data. None if there is room for no
    /// data at all, and nothing else to say.
    pub fn packet(&mut self, room: usize) -> Option<(Header, &[u8])> {
        if let Some(reset) = self.resets.pop_front() {
            return Some((reset, &[]));
        }
        let token = self.turns.front().copied()?;
        let link = self.links.get_mut(&token)?;
        if self.stage.filled.is_empty() {
            let header = link.connection.control()?;
            self.after(token);
            return Some((header, &[]));
        }
        let piece = self.stage.take(room);
        let len = u32::try_from(piece.len()).ok().filter(|len| *len > 0)?;
        let header = link.connection.data(len);
        self.host.counts.received_bytes.add(u64::from(len));
        if self.stage.filled.is_empty() {
            // Then the others have their turn.
            self.turns.rotate_left(1);
        }
        Some((header, self.stage.bytes.get(piece)?))
    }
}

impl Drop for Peers {
    fn drop(&mut self) {
        self.host.counts.connections.store(0, Ordering::Relaxed);
    }
}

impl Stage {
    /// Up to `room` bytes, which are then not staged any more.
    fn take(&mut self, room: usize) -> Range<usize> {
        let Range { start, end } = self.filled;
        let middle = start + room.min(end - start);
        self.filled = middle..end;
        start..middle
    }
}

impl Link {
    fn new(connection: Connection, socket: OwnedFd) -> Self {
        Self {
            connection,
            socket: Some(socket),
            is_readable: false,
            awaits_room: false,
            has_turn: false,
            is_remainder: false,
        }
    }

    /// Reads data for the guest, if there is some and it may have it. True if something is staged then.
    fn read(&mut self, stage: &mut Stage) -> bool {
        while self.is_readable && self.connection.carries_data() {
            let Some(socket) = &self.socket else { break };
            let credit = usize::try_from(self.connection.credit()).unwrap_or(usize::MAX);
            if credit == 0 {
                self.connection.ask_for_credit();
                break;
            }
            let most = credit.min(stage.bytes.len());
            match recv(socket.as_raw_fd(), &mut stage.bytes[..most], MsgFlags::MSG_DONTWAIT) {
                Ok(0) => self.connection.host_stopped_sending(),
                Ok(count) => {
                    stage.filled = 0..count;
                    return true;
                }
                Err(nix::Error::EINTR) => {}
                Err(nix::Error::EAGAIN) => self.is_readable = false,
                Err(_) => {
                    self.connection.host_stopped_sending();
                    self.connection.host_stopped_receiving();
                }
            }
        }
        false
    }

    /// Tells the program a line of our own. False if it does not get through.
    fn tell(&mut self, line: &str) -> bool {
        self.socket.as_ref().is_some_and(|socket| write(socket, line.as_bytes()) == Ok(line.len()))
    }

    /// Passes on what the guest has sent, and keeps what the program does not take.
    fn deliver(&mut self, payload: &[u8]) {
        let mut taken = 0;
        if let Some(socket) = self.socket.as_ref().filter(|_| self.connection.is_flushed()) {
            match write(socket, payload) {
                Ok(count) => taken = count,
                Err(Gone) => self.connection.host_stopped_receiving(),
            }
        }
        self.connection.taken(taken);
        self.connection.keep(payload.get(taken..).unwrap_or_default());
    }

    /// Passes on what was kept.
    fn flush(&mut self) {
        while let Some(socket) = self.socket.as_ref().filter(|_| !self.connection.is_flushed()) {
            match write(socket, self.connection.backlog()) {
                Ok(0) => return,
                Ok(count) => self.connection.flushed(count),
                Err(Gone) => self.connection.host_stopped_receiving(),
            }
        }
        self.pass_on_shutdown();
    }

    /// Tells the program that the guest does not receive, or that it has sent all.
    fn pass_on_shutdown(&self) {
        let Some(socket) = &self.socket else { return };
        // They fail only where the program was faster, and needs no telling.
        if !self.connection.guest_receives() {
            let _ = shutdown(socket.as_raw_fd(), Shutdown::Read);
        }
        if !self.connection.guest_sends() && self.connection.is_flushed() {
            let _ = shutdown(socket.as_raw_fd(), Shutdown::Write);
        }
    }

    /// Waits for room in the socket if, and only if, something was kept.
    fn watch(&mut self, epoll: &Epoll, token: Token) {
        let awaits_room = !self.connection.is_flushed();
        let Some(socket) = self.socket.as_ref().filter(|_| awaits_room != self.awaits_room) else { return };
        match epoll.modify(socket, &mut interest(token, awaits_room)) {
            Ok(()) => self.awaits_room = awaits_room,
            Err(error) => tracing::debug!(%error, "cannot watch a vsock connection"),
        }
    }
}

/// What a link's or a visitor's socket is watched for. That it was closed comes unasked.
fn interest(token: Token, awaits_room: bool) -> EpollEvent {
    let room = if awaits_room { EpollFlags::EPOLLOUT } else { EpollFlags::empty() };
    EpollEvent::new(EpollFlags::EPOLLIN | room | EpollFlags::EPOLLET, token)
}

/// Nobody reads at the other end of a socket.
#[derive(Debug, PartialEq, Eq)]
struct Gone;

/// Writes as much as a socket takes now; returns how much that is.
fn write(socket: &OwnedFd, bytes: &[u8]) -> Result<usize, Gone> {
    loop {
        match send(socket.as_raw_fd(), bytes, MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL) {
            Ok(count) => return Ok(count),
            Err(nix::Error::EINTR) => {}
            Err(nix::Error::EAGAIN) => return Ok(0),
            Err(_) => return Err(Gone),
        }
    }
}

/// The port that a visitor asks for; none if its line is not complete. What follows the line is left where it is.
fn read_greeting(socket: &OwnedFd) -> Result<Option<u32>, Junk> {
    let mut line = [0; greeting::MAX_LINE];
    let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_PEEK;
    let count = loop {
        match recv(socket.as_raw_fd(), &mut line, flags) {
            Ok(0) => return Err(Junk),
            Ok(count) => break count,
            Err(nix::Error::EINTR) => {}
            Err(nix::Error::EAGAIN) => return Ok(None),
            Err(_) => return Err(Junk),
        }
    };
    let Some((port, length)) = greeting::parse(&line[..count])? else { return Ok(None) };
    match recv(socket.as_raw_fd(), &mut line[..length], MsgFlags::MSG_DONTWAIT) {
        Ok(read) if read == length => Ok(Some(port)),
        _ => Err(Junk),
    }
}
