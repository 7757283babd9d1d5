//! One connection (sections 5.10.6.3 to 5.10.6.5): who may send how much, who has stopped, and what the guest is to
//! hear about it.
//!
//! Pure: packets, bytes and the end of the host's program come in; packets and bytes go out. What is to be said is
//! kept as a few flags and not as a list, so that a guest that takes nothing cannot make it grow; and the host's
//! program does not get more than [`BUF_ALLOC`] bytes behind the guest.

use std::collections::VecDeque;

use super::packet::{Header, Ports, op, shutdown};

/// How many bytes are kept for a program on the host that does not read. The guest knows it as `buf_alloc`.
pub const BUF_ALLOC: u32 = 128 << 10;

/// The guest is told unasked how much was read, when it is this much.
const CREDIT_STEP: u32 = BUF_ALLOC / 4;

/// What a packet from the guest means for the host's program.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Nothing.
    Nothing,
    /// The guest has agreed to the connection.
    Opened,
    /// The payload is for it.
    Data,
    /// The guest has shut down a direction; see [`Connection::guest_receives`] and [`Connection::guest_sends`].
    Shutdown,
    /// The guest is done with the connection and wants to hear RST. What it has sent before is still to be delivered.
    Finished,
    /// The guest has broken the connection off.
    Reset,
    /// The guest does not keep to the rules: the connection ends with an RST.
    Violation,
}

/// How far the connection is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    /// The host wants it. Whether the guest knows is whether REQUEST is still to be sent.
    Requested,
    /// Both want it.
    Open,
}

/// Whether the guest is to be asked for credit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum CreditRequest {
    None,
    Due,
    Sent,
}

/// A connection.
#[derive(Debug)]
pub struct Connection {
    guest_cid: u32,
    ports: Ports,
    phase: Phase,
    /// REQUEST or RESPONSE, until it is sent.
    opening: Option<u16>,

    /// What each side has shut down, in the words of a SHUTDOWN; it only becomes more.
    guest_shutdown: u32,
    host_shutdown: u32,
    /// What the guest was told of `host_shutdown`.
    told_shutdown: u32,

    /// The guest's credit as it was told last, and what was sent in all.
    guest_buf_alloc: u32,
    guest_fwd_cnt: u32,
    sent: u32,
    credit_request: CreditRequest,

    /// What the host's program has not taken yet, and how much it has taken in all; how much of that the guest knows.
    backlog: VecDeque<u8>,
    fwd_cnt: u32,
    told_fwd_cnt: u32,
    owes_credit_update: bool,
}

impl Connection {
    fn new(guest_cid: u32, ports: Ports, phase: Phase, opening: u16) -> Self {
        Self {
            guest_cid,
            ports,
            phase,
            opening: Some(opening),
            guest_shutdown: 0,
            host_shutdown: 0,
            told_shutdown: 0,
            guest_buf_alloc: 0,
            guest_fwd_cnt: 0,
            sent: 0,
            credit_request: CreditRequest::None,
            backlog: VecDeque::new(),
            fwd_cnt: 0,
            told_fwd_cnt: 0,
            owes_credit_update: false,
        }
    }

    /// A connection that a program on the host wants.
    pub fn request(guest_cid: u32, ports: Ports) -> Self {
        Self::new(guest_cid, ports, Phase::Requested, op::REQUEST)
    }

    /// The connection that the guest wants with `request`, and gets.
    pub fn respond(guest_cid: u32, request: &Header) -> Self {
        let mut connection = Self::new(guest_cid, request.ports(), Phase::Open, op::RESPONSE);
        connection.learn_credit(request);
        connection
    }

    /// Which one it is.
    pub fn ports(&self) -> Ports {
        self.ports
    }

    /// Whether both sides have agreed to it.
    pub fn is_open(&self) -> bool {
        self.phase == Phase::Open
    }

    /// Whether the guest has heard of it.
    pub fn is_known_to_guest(&self) -> bool {
        self.opening != Some(op::REQUEST)
    }

    /// Whether the guest still wants data.
    pub fn guest_receives(&self) -> bool {
        self.guest_shutdown & shutdown::RECEIVE == 0
    }

    /// Whether the guest may still send data.
    pub fn guest_sends(&self) -> bool {
        self.guest_shutdown & shutdown::SEND == 0
    }

    /// Whether the host's program has ended both directions: all that is missing is the guest's word.
    pub fn is_done_by_host(&self) -> bool {
        self.host_shutdown == shutdown::BOTH
    }

    /// Takes in a packet that belongs to this connection.
    pub fn receive(&mut self, header: &Header) -> Outcome {
        self.learn_credit(header);
        match (self.phase, header.op) {
            (_, op::RST) => Outcome::Reset,
            // The answer to a question that was not asked yet.
            (Phase::Requested, op::RESPONSE) if self.is_known_to_guest() => {
                self.phase = Phase::Open;
                Outcome::Opened
            }
            (Phase::Open, op::SHUTDOWN) => {
                self.guest_shutdown |= header.flags & shutdown::BOTH;
                if self.guest_shutdown == shutdown::BOTH { Outcome::Finished } else { Outcome::Shutdown }
            }
            (Phase::Open, op::RW) if self.guest_sends() => {
                let fits = usize::try_from(header.len).is_ok_and(|len| len <= self.room());
                if fits { Outcome::Data } else { Outcome::Violation }
            }
            (Phase::Open, op::CREDIT_UPDATE) => Outcome::Nothing,
            (Phase::Open, op::CREDIT_REQUEST) => {
                self.owes_credit_update = true;
                Outcome::Nothing
            }
            _ => Outcome::Violation,
        }
    }

    /// Every packet says how much room there is (section 5.10.6.3).
    fn learn_credit(&mut self, header: &Header) {
        self.guest_buf_alloc = header.buf_alloc;
        self.guest_fwd_cnt = header.fwd_cnt;
        // An answer without room is no reason to ask again: a guest says so itself when its program has read.
        if self.credit() > 0 {
            self.credit_request = CreditRequest::None;
        }
    }

    // From the guest to the host's program.

    /// How many bytes the guest may send now, at most.
    fn room(&self) -> usize {
        (BUF_ALLOC as usize).saturating_sub(self.backlog.len())
    }

    /// Whether everything that the guest has sent was taken.
    pub fn is_flushed(&self) -> bool {
        self.backlog.is_empty()
    }

    /// The host's program took `count` bytes.
    pub fn taken(&mut self, count: usize) {
        // Never more than there was room for.
        self.fwd_cnt = self.fwd_cnt.wrapping_add(count as u32);
    }

    /// Keeps `bytes`, which the host's program did not take. They are the end of a packet with [`Outcome::Data`].
    pub fn keep(&mut self, bytes: &[u8]) {
        if self.host_shutdown & shutdown::RECEIVE != 0 {
            // The guest sent them before it heard that nobody reads.
            return self.taken(bytes.len());
        }
        debug_assert!(bytes.len() <= self.room());
        self.backlog.extend(bytes);
    }

    /// The first of the bytes that are kept.
    pub fn backlog(&self) -> &[u8] {
        self.backlog.as_slices().0
    }

    /// The host's program took `count` bytes of those that were kept.
    pub fn flushed(&mut self, count: usize) {
        let count = count.min(self.backlog.len());
        self.backlog.drain(..count);
        if self.backlog.is_empty() {
            // Memory is for connections that are behind.
            self.backlog = VecDeque::new();
        }
        self.taken(count);
    }

    /// The host's program takes nothing any more.
    pub fn host_stopped_receiving(&mut self) {
        self.host_shutdown |= shutdown::RECEIVE;
        self.flushed(self.backlog.len());
    }

    // From the host's program to the guest.

    /// The host's program sends nothing any more.
    pub fn host_stopped_sending(&mut self) {
        self.host_shutdown |= shutdown::SEND;
    }

    /// Whether data may be sent to the guest, apart from the question how much.
    pub fn carries_data(&self) -> bool {
        self.is_open() && self.guest_receives() && self.host_shutdown & shutdown::SEND == 0
    }

    /// How many bytes the guest has room for.
    pub fn credit(&self) -> u32 {
        // A guest that has taken more than it was sent has no credit, until it says something sensible.
        self.guest_buf_alloc.saturating_sub(self.sent.wrapping_sub(self.guest_fwd_cnt))
    }

    /// There is data, and no credit. The guest is asked for some, once.
    pub fn ask_for_credit(&mut self) {
        if self.credit_request == CreditRequest::None {
            self.credit_request = CreditRequest::Due;
        }
    }

    /// The header for `len` bytes of data. Not more than there was credit for.
    pub fn data(&mut self, len: u32) -> Header {
        self.sent = self.sent.wrapping_add(len);
        Header { len, ..self.header(op::RW) }
    }

    /// Whether there is something to say to the guest.
    pub fn has_control(&self) -> bool {
        self.opening.is_some()
            || self.told_shutdown != self.host_shutdown && self.is_open()
            || self.owes_credit_update
            || self.credit_request == CreditRequest::Due
            || self.is_credit_update_worthwhile()
    }

    /// The next thing to say to the guest.
    pub fn control(&mut self) -> Option<Header> {
        if let Some(opening) = self.opening.take() {
            return Some(self.header(opening));
        }
        if !self.is_open() {
            return None;
        }
        if self.told_shutdown != self.host_shutdown {
            self.told_shutdown = self.host_shutdown;
            return Some(Header { flags: self.host_shutdown, ..self.header(op::SHUTDOWN) });
        }
        if self.credit_request == CreditRequest::Due {
            self.credit_request = CreditRequest::Sent;
            return Some(self.header(op::CREDIT_REQUEST));
        }
        let is_update_due = self.owes_credit_update || self.is_credit_update_worthwhile();
        is_update_due.then(|| self.header(op::CREDIT_UPDATE))
    }

    fn is_credit_update_worthwhile(&self) -> bool {
        self.guest_sends() && self.fwd_cnt.wrapping_sub(self.told_fwd_cnt) >= CREDIT_STEP
    }

    fn header(&mut self, op: u16) -> Header {
        self.told_fwd_cnt = self.fwd_cnt;
        self.owes_credit_update = false;
        Header {
            buf_alloc: BUF_ALLOC,
            fwd_cnt: self.fwd_cnt,
            ..Header::to_guest(self.guest_cid, self.ports, op)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const PORTS: Ports = Ports { host: 1000, guest: 2000 };

    fn packet(op: u16) -> Header {
        Header { op, src_port: PORTS.guest, dst_port: PORTS.host, buf_alloc: 1000, ..Header::default() }
    }

    /// A connection that the guest asked for, with everything said.
    fn open() -> Connection {
        let mut connection = Connection::respond(3, &packet(op::REQUEST));
        assert_eq!(connection.control().unwrap().op, op::RESPONSE);
        assert_eq!(connection.control(), None);
        connection
    }

    /// All that is to be said, as operations and flags.
    fn said(connection: &mut Connection) -> Vec<(u16, u32)> {
        let mut all = Vec::new();
        while connection.has_control() {
            let header = connection.control().expect("there is something to say");
            all.push((header.op, header.flags));
        }
        assert_eq!(connection.control(), None);
        all
    }

    #[test]
    fn the_host_asks_and_the_guest_agrees() {
        let mut connection = Connection::request(3, PORTS);
        assert!(!connection.is_known_to_guest() && !connection.carries_data());
        let request = connection.control().unwrap();
        assert_eq!((request.op, request.buf_alloc, request.fwd_cnt), (op::REQUEST, BUF_ALLOC, 0));
        assert_eq!(
            (request.src_cid, request.dst_cid, request.src_port, request.dst_port),
            (2, 3, 1000, 2000)
        );
        assert_eq!(connection.control(), None);
        assert_eq!(connection.receive(&packet(op::RESPONSE)), Outcome::Opened);
        assert!(connection.carries_data());
        assert_eq!(connection.credit(), 1000);
    }

    #[test]
    fn packets_that_do_not_fit_the_phase_are_violations() {
        let requested = || {
            let mut connection = Connection::request(3, PORTS);
            connection.control();
            connection
        };
        let ops = [op::REQUEST, op::RW, op::SHUTDOWN, op::CREDIT_UPDATE, op::CREDIT_REQUEST, 0, 8, u16::MAX];
        for op in ops {
            assert_eq!(requested().receive(&packet(op)), Outcome::Violation, "{op}");
        }
        for op in [op::REQUEST, op::RESPONSE, 0, 8, u16::MAX] {
            assert_eq!(open().receive(&packet(op)), Outcome::Violation, "{op}");
        }
        let mut unsaid = Connection::request(3, PORTS);
        assert_eq!(unsaid.receive(&packet(op::RESPONSE)), Outcome::Violation, "nothing was asked yet");
        for mut connection in [requested(), open(), unsaid] {
            assert_eq!(connection.receive(&packet(op::RST)), Outcome::Reset);
        }
    }

    #[test]
    fn a_guest_cannot_send_more_than_is_kept() {
        let mut connection = open();
        let data = |len| Header { len, ..packet(op::RW) };
        assert_eq!(connection.receive(&data(BUF_ALLOC + 1)), Outcome::Violation);
        assert_eq!(connection.receive(&data(u32::MAX)), Outcome::Violation);
        assert_eq!(connection.receive(&data(BUF_ALLOC)), Outcome::Data);
        connection.keep(&vec![0; BUF_ALLOC as usize]);
        assert_eq!(connection.receive(&data(0)), Outcome::Data);
        assert_eq!(connection.receive(&data(1)), Outcome::Violation);
        connection.flushed(1);
        assert_eq!(connection.receive(&data(1)), Outcome::Data);
    }

    #[test]
    fn the_guest_hears_of_room_in_steps_or_when_it_asks() {
        let mut connection = open();
        connection.keep(&vec![0; BUF_ALLOC as usize]);
        connection.flushed(CREDIT_STEP as usize - 1);
        assert_eq!(said(&mut connection), []);
        connection.receive(&packet(op::CREDIT_REQUEST));
        connection.receive(&packet(op::CREDIT_REQUEST));
        let update = connection.control().unwrap();
        assert_eq!((update.op, update.fwd_cnt), (op::CREDIT_UPDATE, CREDIT_STEP - 1));
        connection.flushed(CREDIT_STEP as usize - 1);
        assert_eq!(said(&mut connection), []);
        connection.flushed(1);
        assert_eq!(said(&mut connection), [(op::CREDIT_UPDATE, 0)]);
        // Any packet says it.
        connection.flushed(CREDIT_STEP as usize);
        assert_eq!(connection.data(1).fwd_cnt, 3 * CREDIT_STEP - 1);
        assert_eq!(said(&mut connection), []);
    }

    #[test]
    fn credit_is_what_the_guest_says_less_what_is_on_its_way() {
        let cases = [
            (0, 0, 0, 0),
            (1000, 0, 400, 600),
            (1000, 400, 400, 1000),
            (1000, 0, 1000, 0),
            // It has become smaller.
            (100, 0, 400, 0),
            // More taken than sent.
            (1000, 401, 400, 0),
            (u32::MAX, 0, u32::MAX, 0),
            (u32::MAX, u32::MAX, 0, u32::MAX - 1),
        ];
        for (buf_alloc, fwd_cnt, sent, expected) in cases {
            let mut connection = open();
            connection.sent = sent;
            connection.receive(&Header { buf_alloc, fwd_cnt, ..packet(op::CREDIT_UPDATE) });
            assert_eq!(connection.credit(), expected, "{buf_alloc} {fwd_cnt} {sent}");
        }
        let mut connection = open();
        connection.sent = u32::MAX - 9;
        connection.data(30);
        connection.receive(&Header { fwd_cnt: u32::MAX - 9, ..packet(op::CREDIT_UPDATE) });
        assert_eq!(connection.credit(), 970, "counters wrap around");
    }

    #[test]
    fn credit_is_asked_for_once() {
        let mut connection = open();
        connection.ask_for_credit();
        connection.ask_for_credit();
        assert_eq!(said(&mut connection), [(op::CREDIT_REQUEST, 0)]);
        connection.receive(&Header { buf_alloc: 0, ..packet(op::CREDIT_UPDATE) });
        connection.ask_for_credit();
        assert_eq!(said(&mut connection), []);
        connection.receive(&packet(op::CREDIT_UPDATE));
        connection.ask_for_credit();
        assert_eq!(said(&mut connection), [(op::CREDIT_REQUEST, 0)]);
    }

    #[test]
    fn each_direction_ends_by_itself() {
        let shut = |flags| Header { flags, ..packet(op::SHUTDOWN) };
        let mut connection = open();
        assert_eq!(connection.receive(&shut(0)), Outcome::Shutdown);
        assert_eq!(connection.receive(&shut(!shutdown::BOTH)), Outcome::Shutdown);
        assert!(connection.guest_receives() && connection.guest_sends());
        assert_eq!(connection.receive(&shut(shutdown::SEND)), Outcome::Shutdown);
        assert!(connection.guest_receives() && !connection.guest_sends() && connection.carries_data());
        assert_eq!(connection.receive(&packet(op::RW)), Outcome::Violation, "it had said that it is done");
        assert_eq!(connection.receive(&shut(shutdown::RECEIVE)), Outcome::Finished);
        assert!(!connection.carries_data());

        let mut connection = open();
        connection.host_stopped_sending();
        assert_eq!(said(&mut connection), [(op::SHUTDOWN, shutdown::SEND)]);
        assert!(!connection.carries_data() && !connection.is_done_by_host());
        connection.keep(&[1; 10]);
        assert_eq!(connection.backlog(), [1; 10]);
        connection.host_stopped_receiving();
        assert!(connection.is_flushed() && connection.is_done_by_host());
        assert_eq!(said(&mut connection), [(op::SHUTDOWN, shutdown::BOTH)]);
        // What is on its way then is lost, and is not counted against the guest.
        assert_eq!(connection.receive(&Header { len: BUF_ALLOC, ..packet(op::RW) }), Outcome::Data);
        connection.keep(&vec![0; BUF_ALLOC as usize]);
        assert!(connection.is_flushed());
        assert_eq!(connection.fwd_cnt, BUF_ALLOC + 10);
    }

    #[derive(Clone, Debug)]
    enum Step {
        Packet { op: u16, len: u32, flags: u32, buf_alloc: u32, fwd_cnt: u32 },
        Taken(usize),
        Send,
        Say,
        StopReceiving,
        StopSending,
    }

    fn extreme() -> impl Strategy<Value = u32> {
        prop_oneof![0u32..4, 0u32..2 * BUF_ALLOC, Just(u32::MAX), Just(i32::MAX as u32), any::<u32>()]
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            6 => (0u16..9, extreme(), extreme(), extreme(), extreme()).prop_map(
                |(op, len, flags, buf_alloc, fwd_cnt)| Step::Packet { op, len, flags, buf_alloc, fwd_cnt }
            ),
            2 => (0usize..100_000).prop_map(Step::Taken),
            2 => Just(Step::Send),
            4 => Just(Step::Say),
            1 => Just(Step::StopReceiving),
            1 => Just(Step::StopSending),
        ]
    }

    proptest! {
        /// Whatever a guest says: what is kept and what is to be said stay bounded, and nothing exceeds its credit.
        #[test]
        fn no_guest_gets_more_than_it_may(by_host: bool, steps in prop::collection::vec(step(), 1..200)) {
            let mut connection =
                if by_host { Connection::request(3, PORTS) } else { Connection::respond(3, &packet(op::REQUEST)) };
            for step in steps {
                match step {
                    Step::Packet { op, len, flags, buf_alloc, fwd_cnt } => {
                        let header = Header { len, flags, buf_alloc, fwd_cnt, ..packet(op) };
                        let before = connection.backlog.len();
                        if connection.receive(&header) == Outcome::Data {
                            prop_assert!(before + len as usize <= BUF_ALLOC as usize);
                            connection.keep(&vec![0; len as usize]);
                        }
                    }
                    Step::Taken(count) => connection.flushed(count),
                    Step::Send => {
                        let (credit, before) = (connection.credit(), connection.sent);
                        if connection.carries_data() && credit > 0 {
                            connection.data(credit);
                            prop_assert_eq!(connection.credit(), 0);
                            prop_assert_eq!(connection.sent.wrapping_sub(before), credit);
                        }
                    }
                    Step::Say => prop_assert_eq!(connection.has_control(), connection.control().is_some()),
                    Step::StopReceiving => connection.host_stopped_receiving(),
                    Step::StopSending => connection.host_stopped_sending(),
                }
                prop_assert!(connection.backlog.len() <= BUF_ALLOC as usize);
            }
            let mut rest = 0;
            while connection.control().is_some() {
                rest += 1;
                prop_assert!(rest <= 4);
            }
        }

        /// A guest that keeps to its credit gets all its data through, whatever the program's pace.
        #[test]
        fn a_guest_that_keeps_to_its_credit_is_never_stuck(
            paces in prop::collection::vec(1usize..200_000, 1..50),
            wishes in prop::collection::vec(1u32..100_000, 1..50),
        ) {
            let mut connection = open();
            let (mut sent, mut known) = (0u32, 0u32);
            let mut paces = paces.into_iter().cycle();
            for wish in wishes {
                let mut rest = wish;
                while rest > 0 {
                    let len = rest.min(BUF_ALLOC - (sent - known));
                    prop_assert_eq!(connection.receive(&Header { len, ..packet(op::RW) }), Outcome::Data);
                    connection.keep(&vec![0; len as usize]);
                    sent += len;
                    rest -= len;
                    connection.flushed(paces.next().unwrap());
                    if let Some(update) = connection.control() {
                        known = update.fwd_cnt;
                    }
                    if len == 0 {
                        prop_assert!(!connection.is_flushed() || known == sent, "stuck");
                    }
                }
            }
        }
    }
}
