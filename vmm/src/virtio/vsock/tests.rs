//! The device as a driver and programs on the host see it: with real sockets, and woken by nothing but its sources.

use std::collections::HashMap;
use std::io::{IoSliceMut, Read, Write};
use std::net::Shutdown;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::Arc;
use std::time::{Duration, Instant};

use nix::cmsg_space;
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use nix::sys::socket::{
    AddressFamily, ControlMessageOwned, MsgFlags, SockFlag, SockType, UnixAddr, recvmsg, socketpair,
};
use proptest::prelude::*;
use vmm_sys_util::eventfd::EventFd;

use super::connection::BUF_ALLOC;
use super::packet::{HEADER_SIZE, HOST_CID, Header, Ports, op, shutdown};
use super::peers::{MAX_PEERS, MAX_RESETS, MAX_VISITORS, PATIENCE};
use super::*;
use crate::virtio::harness::{self, Driver};
use crate::virtio::queue::QueueError;
use crate::virtio::worker::Handler;

const CID: u32 = 7;
const SIZE: u16 = 128;
/// Bytes in a receive buffer: those that Linux has are as small.
const BUFFER: usize = 4096;
/// What the guest's programs have room for, if a test does not say so.
const GUEST_BUFFER: u32 = 64 << 10;

/// A guest, and the device in place of its thread.
struct Bench {
    host: Arc<VsockHost>,
    path: std::path::PathBuf,
    _folder: Option<tempfile::TempDir>,
    receive: Driver,
    transmit: Driver,
    receive_doorbell: EventFd,
    transmit_doorbell: EventFd,
    /// Where receive buffers are, by their heads.
    buffers: HashMap<u16, u64>,
    epoll: Epoll,
    muxer: Muxer,
    wake_ups: usize,
}

impl Bench {
    /// A guest with `buffers` receive buffers.
    fn new(buffers: usize) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("vsock");
        let listener = UnixListener::bind(&path).unwrap();
        let host = Arc::new(VsockHost::new(CID, Some(listener.into())).unwrap());
        let mut bench = Self::over(host, path);
        bench._folder = Some(folder);
        bench.supply(buffers);
        bench
    }

    /// A guest without receive buffers.
    fn over(host: Arc<VsockHost>, path: std::path::PathBuf) -> Self {
        let memory = harness::memory(2);
        let (receive, receive_queue) = Driver::new(&memory, 0, SIZE);
        let (transmit, transmit_queue) = Driver::new(&memory, 1, SIZE);
        let receive_doorbell = receive_queue.doorbell.try_clone().unwrap();
        let transmit_doorbell = transmit_queue.doorbell.try_clone().unwrap();
        let queues = vec![Some(receive_queue), Some(transmit_queue), None];
        let muxer = Muxer::new(Arc::clone(&host), harness::activation(&memory, 0, queues)).unwrap();
        let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC).unwrap();
        for (fd, source) in muxer.sources() {
            epoll.add(fd, EpollEvent::new(EpollFlags::EPOLLIN | EpollFlags::EPOLLET, source)).unwrap();
        }
        Self {
            host,
            path,
            _folder: None,
            receive,
            transmit,
            receive_doorbell,
            transmit_doorbell,
            buffers: HashMap::new(),
            epoll,
            muxer,
            wake_ups: 0,
        }
    }

    /// Works as the device's thread does, until nothing wakes it any more.
    fn try_run(&mut self) -> Result<(), QueueError> {
        let mut events = [EpollEvent::empty(); 8];
        for _ in 0..100_000 {
            let count = self.epoll.wait(&mut events, EpollTimeout::ZERO).unwrap();
            if count == 0 {
                return Ok(());
            }
            self.wake_ups += count;
            for event in events.iter().take(count) {
                self.muxer.handle(event.data())?;
            }
        }
        panic!("the device does not come to rest");
    }

    fn run(&mut self) {
        self.try_run().unwrap();
    }

    fn supply(&mut self, count: usize) {
        self.supply_of(count, BUFFER);
    }

    fn supply_of(&mut self, count: usize, size: usize) {
        for _ in 0..count {
            let (head, addresses) = self.receive.request(&[], &[size]);
            self.buffers.insert(head, addresses[0]);
        }
        self.receive_doorbell.write(1).unwrap();
    }

    /// What the guest has received since the last time. It does not give the buffers back.
    fn take(&mut self) -> Vec<(Header, Vec<u8>)> {
        let mut packets = Vec::new();
        while let Some((head, written)) = self.receive.used() {
            let bytes = self.receive.read(self.buffers.remove(&head).unwrap(), written as usize);
            let (header, payload) = bytes.split_first_chunk::<HEADER_SIZE>().expect("a whole header");
            let header = Header::from_bytes(header);
            assert_eq!((header.src_cid, header.dst_cid), (HOST_CID, u64::from(CID)));
            assert_eq!(header.len as usize, payload.len());
            packets.push((header, payload.to_vec()));
        }
        packets
    }

    /// Runs, and gives the guest all that there is for it, with its buffers given back.
    fn received(&mut self) -> Vec<(Header, Vec<u8>)> {
        let mut all = Vec::new();
        loop {
            self.run();
            let packets = self.take();
            if packets.is_empty() {
                return all;
            }
            self.supply(packets.len());
            all.extend(packets);
        }
    }

    /// The only packet there is, which has no payload.
    fn one(&mut self) -> Header {
        let mut packets = self.received();
        assert_eq!(packets.len(), 1, "{packets:?}");
        let (header, payload) = packets.remove(0);
        assert!(payload.is_empty());
        header
    }

    /// The operations of what the guest receives, and their flags.
    fn heard(&mut self) -> Vec<(u16, u32)> {
        self.received().iter().map(|(header, _)| (header.op, header.flags)).collect()
    }

    fn submit(&mut self, bytes: &[&[u8]]) {
        while self.transmit.used().is_some() {}
        self.transmit.request(bytes, &[]);
        self.transmit_doorbell.write(1).unwrap();
    }

    fn send(&mut self, header: Header, payload: &[u8]) {
        self.submit(&[&header.to_bytes(), payload]);
        self.run();
    }

    fn say(&mut self, ports: Ports, op: u16) {
        self.send(packet(ports, op), &[]);
    }

    fn write(&mut self, ports: Ports, data: &[u8]) {
        self.send(Header { len: data.len() as u32, ..packet(ports, op::RW) }, data);
    }

    fn shut(&mut self, ports: Ports, flags: u32) {
        self.send(Header { flags, ..packet(ports, op::SHUTDOWN) }, &[]);
    }

    /// A program that has said which port it wants.
    fn program(&self, line: &str) -> UnixStream {
        let mut program = UnixStream::connect(&self.path).unwrap();
        program.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
        program.write_all(line.as_bytes()).unwrap();
        program
    }

    /// A connection that a program has asked for and got.
    fn open_from_host(&mut self) -> (UnixStream, Ports) {
        let mut program = self.program("CONNECT 22\n");
        let request = self.one();
        assert_eq!((request.op, request.dst_port, request.buf_alloc), (op::REQUEST, 22, BUF_ALLOC));
        let ports = Ports { host: request.src_port, guest: 22 };
        self.say(ports, op::RESPONSE);
        assert_eq!(read(&mut program), format!("OK {}\n", ports.host).as_bytes());
        assert_eq!(self.heard(), []);
        (program, ports)
    }

    /// A connection that the guest has asked for and got.
    fn open_from_guest(&mut self) -> (UnixStream, Ports) {
        let service = self.service(9);
        let ports = Ports { host: 9, guest: 1234 };
        self.say(ports, op::REQUEST);
        let response = self.one();
        assert_eq!((response.op, response.src_port, response.dst_port), (op::RESPONSE, 9, 1234));
        (accept(&service).unwrap(), ports)
    }

    /// The controller's end of where connections to `port` go.
    fn service(&self, port: u32) -> OwnedFd {
        let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
        let (ours, theirs) = socketpair(AddressFamily::Unix, SockType::SeqPacket, None, flags).unwrap();
        self.host.listen(port, theirs).unwrap();
        ours
    }

    fn counts(&self) -> (u64, u64, u64) {
        let metrics = self.host.metrics();
        (metrics.connections, metrics.accepted, metrics.refused)
    }
}

/// A packet from the guest to the host.
fn packet(ports: Ports, op: u16) -> Header {
    Header {
        src_cid: u64::from(CID),
        dst_cid: HOST_CID,
        src_port: ports.guest,
        dst_port: ports.host,
        buf_alloc: GUEST_BUFFER,
        type_: 1,
        op,
        ..Header::default()
    }
}

/// What there is to read now; empty at the end.
fn read(program: &mut UnixStream) -> Vec<u8> {
    let mut data = vec![0; 1 << 20];
    let count = program.read(&mut data).expect("there is something to read, or the end");
    data.truncate(count);
    data
}

fn has_ended(program: &mut UnixStream) -> bool {
    program.set_nonblocking(true).unwrap();
    let result = program.read(&mut [0]);
    program.set_nonblocking(false).unwrap();
    // A socket that was closed with something unread in it says so.
    matches!(&result, Ok(0)) || result.is_err_and(|error| error.raw_os_error() == Some(libc::ECONNRESET))
}

/// The next connection of the guest's.
fn accept(service: &OwnedFd) -> Option<UnixStream> {
    let mut byte = [1; 2];
    let mut control = cmsg_space!(RawFd);
    let mut data = [IoSliceMut::new(&mut byte)];
    let received =
        recvmsg::<UnixAddr>(service.as_raw_fd(), &mut data, Some(&mut control), MsgFlags::empty()).ok()?;
    if received.bytes == 0 {
        return None;
    }
    let Some(ControlMessageOwned::ScmRights(fds)) = received.cmsgs().unwrap().next() else {
        panic!("a packet without a descriptor");
    };
    // SAFETY: the kernel has just made this descriptor.
    let program = UnixStream::from(unsafe { OwnedFd::from_raw_fd(fds[0]) });
    program.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    Some(program)
}

fn pattern(length: usize) -> Vec<u8> {
    (0..length).map(|index| (index * 7 + index / 251) as u8).collect()
}

#[test]
fn a_program_on_the_host_reaches_the_guest() {
    let mut bench = Bench::new(8);
    let mut program = bench.program("CONNECT 22\nhello");
    let request = bench.one();
    let ports = Ports { host: request.src_port, guest: 22 };
    assert!(ports.host >= 0x4000_0000);
    bench.say(ports, op::RESPONSE);
    assert_eq!(read(&mut program), format!("OK {}\n", ports.host).as_bytes());
    let packets = bench.received();
    assert_eq!(packets.len(), 1);
    assert_eq!((packets[0].0.op, &packets[0].1[..]), (op::RW, &b"hello"[..]));
    bench.write(ports, b"world");
    assert_eq!(read(&mut program), b"world");
    assert_eq!(bench.counts(), (1, 1, 0));
    let metrics = bench.host.metrics();
    assert_eq!((metrics.received_bytes, metrics.sent_bytes), (5, 5));
}

#[test]
fn a_greeting_may_come_in_pieces() {
    let mut bench = Bench::new(8);
    let mut program = bench.program("CONN");
    bench.run();
    program.write_all(b"ECT 5").unwrap();
    bench.run();
    assert!(bench.take().is_empty());
    program.write_all(b"\n").unwrap();
    assert_eq!(bench.one().dst_port, 5);
}

#[test]
fn the_guest_may_refuse() {
    let mut bench = Bench::new(8);
    let mut program = bench.program("CONNECT 22\n");
    let ports = Ports { host: bench.one().src_port, guest: 22 };
    bench.say(ports, op::RST);
    assert!(has_ended(&mut program));
    assert_eq!(bench.heard(), []);
    assert_eq!(bench.counts(), (0, 0, 1));
}

#[test]
fn a_guest_that_does_not_answer_is_not_waited_for() {
    let mut bench = Bench::new(8);
    let mut program = bench.program("CONNECT 22\n");
    let ports = Ports { host: bench.one().src_port, guest: 22 };
    let deadline = bench.muxer.deadline().expect("it is waited for");
    bench.muxer.peers.expire(deadline - Duration::from_millis(1));
    assert!(!has_ended(&mut program));
    bench.muxer.peers.expire(deadline);
    assert!(has_ended(&mut program));
    assert_eq!(bench.muxer.deadline(), None);
    bench.transmit_doorbell.write(1).unwrap();
    assert_eq!(bench.heard(), [(op::RST, 0)]);
    bench.say(ports, op::RESPONSE);
    assert_eq!(bench.heard(), [(op::RST, 0)], "it is too late");
    assert_eq!(bench.counts(), (0, 0, 1));
}

#[test]
fn a_program_that_gives_up_is_forgotten() {
    let mut bench = Bench::new(8);
    let program = bench.program("CONNECT 22\n");
    assert_eq!(bench.heard(), [(op::REQUEST, 0)]);
    drop(program);
    assert_eq!(bench.heard(), [(op::RST, 0)]);
    // The guest need not hear of one that it did not know.
    drop(bench.program("CONNECT 22\n"));
    assert_eq!(bench.heard(), []);
    assert_eq!(bench.muxer.deadline(), None);
}

#[test]
fn the_guest_reaches_a_service_on_the_host() {
    let mut bench = Bench::new(8);
    let (mut program, ports) = bench.open_from_guest();
    bench.write(ports, b"hello");
    assert_eq!(read(&mut program), b"hello");
    program.write_all(b"world").unwrap();
    assert_eq!(bench.received()[0].1, b"world");
    assert_eq!(bench.counts(), (1, 1, 0));
}

#[test]
fn a_port_that_nobody_has_is_refused() {
    let mut bench = Bench::new(8);
    let ports = Ports { host: 9, guest: 1234 };
    bench.say(ports, op::REQUEST);
    let reset = bench.one();
    assert_eq!((reset.op, reset.src_port, reset.dst_port), (op::RST, 9, 1234));
    drop(bench.service(9));
    bench.say(ports, op::REQUEST);
    assert_eq!(bench.heard(), [(op::RST, 0)], "the service is gone");
    let first = bench.service(9);
    let second = bench.service(9);
    bench.say(ports, op::REQUEST);
    assert_eq!(bench.heard(), [(op::RESPONSE, 0)]);
    assert!(accept(&first).is_none() && accept(&second).is_some(), "the later one has replaced the earlier");
    assert_eq!(bench.counts().2, 2);
}

#[test]
fn much_data_reaches_a_guest_with_little_room() {
    for room in [1000, 5000, GUEST_BUFFER, 10 << 20] {
        let mut bench = Bench::new(16);
        let (program, ports) = bench.open_from_host();
        bench.send(Header { buf_alloc: room, ..packet(ports, op::CREDIT_UPDATE) }, &[]);
        let data = pattern(600_000);
        program.set_nonblocking(true).unwrap();
        let (mut written, mut received) = (0, Vec::<u8>::new());
        while received.len() < data.len() {
            if let Ok(count) = (&program).write(&data[written..]) {
                written += count;
            }
            let before = received.len();
            for (header, payload) in bench.received() {
                assert!(matches!(header.op, op::RW | op::CREDIT_REQUEST));
                received.extend(payload);
            }
            assert!(received.len() - before <= room as usize, "more than there was credit for");
            let update = packet(ports, op::CREDIT_UPDATE);
            bench.send(Header { buf_alloc: room, fwd_cnt: received.len() as u32, ..update }, &[]);
        }
        assert!(received == data);
        drop(program);
        assert_eq!(bench.heard().last(), Some(&(op::SHUTDOWN, shutdown::BOTH)), "behind all data");
        assert_eq!(bench.host.metrics().received_bytes, 600_000);
    }
}

#[test]
fn much_data_reaches_a_program_that_reads_slowly() {
    let mut bench = Bench::new(16);
    let (mut program, ports) = bench.open_from_guest();
    let data = pattern(3_000_000);
    let (mut sent, mut credit_used, mut received) = (0, 0u32, Vec::<u8>::new());
    while received.len() < data.len() {
        // As much as there is credit for, in packets of any size.
        while sent < data.len() {
            let room = (BUF_ALLOC - (sent as u32).wrapping_sub(credit_used)) as usize;
            let length = room.min(data.len() - sent).min(40_000);
            if length == 0 {
                break;
            }
            bench.write(ports, &data[sent..sent + length]);
            sent += length;
            for (header, _) in bench.received() {
                assert_eq!(header.op, op::CREDIT_UPDATE);
                credit_used = header.fwd_cnt;
            }
        }
        let mut piece = [0; 10_000];
        let count = program.read(&mut piece).unwrap();
        received.extend(&piece[..count]);
        for (header, _) in bench.received() {
            assert_eq!(header.op, op::CREDIT_UPDATE);
            credit_used = header.fwd_cnt;
        }
    }
    assert!(received == data);
    assert_eq!(bench.host.metrics().sent_bytes, 3_000_000);
}

#[test]
fn connections_take_turns() {
    let mut bench = Bench::new(8);
    let (mut first, first_ports) = bench.open_from_host();
    let (mut second, second_ports) = bench.open_from_host();
    for ports in [first_ports, second_ports] {
        bench.send(Header { buf_alloc: 1 << 20, ..packet(ports, op::CREDIT_UPDATE) }, &[]);
    }
    first.write_all(&[1; 100_000]).unwrap();
    second.write_all(&[2; 100_000]).unwrap();
    let packets = bench.received();
    let mut order: Vec<u32> = packets.iter().map(|(header, _)| header.src_port).collect();
    order.dedup();
    assert_eq!(order, [first_ports.host, second_ports.host, first_ports.host, second_ports.host]);
    for (ports, byte) in [(first_ports, 1), (second_ports, 2)] {
        let own = packets.iter().filter(|(header, _)| header.src_port == ports.host);
        assert!(own.flat_map(|(_, payload)| payload).eq(&[byte; 100_000]));
    }
}

/// What was read for one connection must not get into another.
#[test]
fn data_ends_with_its_connection() {
    let last_words =
        [(op::RST, 0), (op::SHUTDOWN, shutdown::RECEIVE), (op::SHUTDOWN, shutdown::BOTH), (op::REQUEST, 0)];
    for (op, flags) in last_words {
        let mut bench = Bench::new(8);
        let (mut first, first_ports) = bench.open_from_host();
        let (mut second, second_ports) = bench.open_from_host();
        // One byte more than there are buffers for.
        first.write_all(&[1; 8 * (BUFFER - HEADER_SIZE) + 1]).unwrap();
        bench.run();
        second.write_all(b"second").unwrap();
        bench.send(Header { flags, ..packet(first_ports, op) }, &[]);
        assert_eq!(bench.take().len(), 8);
        bench.supply(8);
        let packets = bench.received();
        let data: Vec<_> = packets.iter().filter(|(header, _)| header.op == op::RW).collect();
        assert_eq!(data.len(), 1, "{op} {flags}");
        assert_eq!((data[0].0.src_port, &data[0].1[..]), (second_ports.host, &b"second"[..]));
    }
}

/// A handler does a part of its work at a time, and comes back for the rest by itself.
#[test]
fn much_at_once_is_done_in_parts() {
    let mut bench = Bench::new(0);
    for guest in 0..100 {
        bench.say(Ports { host: 9, guest }, op::RW);
    }
    bench.supply_of(100, HEADER_SIZE);
    bench.run();
    assert_eq!(bench.take().len(), 100);

    raise_file_limit();
    let mut bench = Bench::new(8);
    let programs: Vec<UnixStream> = (0..600)
        .map(|_| {
            let program = bench.program("CONNECT 22\n");
            assert_eq!(bench.heard(), [(op::REQUEST, 0)]);
            program
        })
        .collect();
    assert_eq!(bench.counts().0, 600);
    drop(programs);
    bench.run();
    assert_eq!(bench.counts(), (0, 0, 600));
}

#[test]
fn the_guest_ends_its_direction_first() {
    let mut bench = Bench::new(8);
    let (mut program, ports) = bench.open_from_guest();
    bench.write(ports, b"question");
    bench.shut(ports, shutdown::SEND);
    assert_eq!(read(&mut program), b"question");
    assert!(has_ended(&mut program));
    program.write_all(b"answer").unwrap();
    assert_eq!(bench.received()[0].1, b"answer");
    drop(program);
    assert_eq!(bench.heard().last(), Some(&(op::SHUTDOWN, shutdown::BOTH)));
    bench.shut(ports, shutdown::BOTH);
    assert_eq!(bench.heard(), [(op::RST, 0)]);
    assert_eq!(bench.counts().0, 0);
    assert_eq!(bench.muxer.deadline(), None);
}

#[test]
fn the_program_ends_its_direction_first() {
    let mut bench = Bench::new(8);
    let (mut program, ports) = bench.open_from_host();
    program.write_all(b"question").unwrap();
    program.shutdown(Shutdown::Write).unwrap();
    assert_eq!(bench.heard(), [(op::RW, 0), (op::SHUTDOWN, shutdown::SEND)]);
    bench.write(ports, b"answer");
    bench.shut(ports, shutdown::BOTH);
    assert_eq!(bench.heard(), [(op::RST, 0)]);
    assert_eq!(read(&mut program), b"answer");
    assert!(has_ended(&mut program));
}

#[test]
fn a_guest_that_does_not_receive_stops_the_program() {
    let mut bench = Bench::new(8);
    let (mut program, ports) = bench.open_from_host();
    bench.shut(ports, shutdown::RECEIVE);
    assert!(program.write_all(b"too late").is_err());
    bench.write(ports, b"still here");
    assert_eq!(read(&mut program), b"still here");
    drop(program);
    assert_eq!(bench.heard(), [(op::SHUTDOWN, shutdown::BOTH)]);
    bench.say(ports, op::RST);
    assert_eq!(bench.heard(), []);
    assert_eq!(bench.counts(), (0, 1, 0));
}

#[test]
fn a_guest_that_does_not_let_go_is_made_to() {
    let mut bench = Bench::new(8);
    let (program, ports) = bench.open_from_host();
    assert_eq!(bench.muxer.deadline(), None);
    drop(program);
    assert_eq!(bench.heard().last(), Some(&(op::SHUTDOWN, shutdown::BOTH)));
    bench.write(ports, b"for nobody");
    assert_eq!(bench.heard(), []);
    bench.muxer.peers.expire(Instant::now() + PATIENCE);
    bench.transmit_doorbell.write(1).unwrap();
    assert_eq!(bench.heard(), [(op::RST, 0)]);
    assert_eq!(bench.counts().0, 0);
}

#[test]
fn what_the_guest_has_sent_arrives_after_its_end() {
    let mut bench = Bench::new(8);
    let (mut program, ports) = bench.open_from_guest();
    // More than the socket holds.
    let data = pattern(BUF_ALLOC as usize);
    let mut sent: Vec<u8> = Vec::new();
    for _ in 0..2 {
        bench.write(ports, &data);
        sent.extend(&data);
    }
    bench.received();
    bench.shut(ports, shutdown::BOTH);
    assert_eq!(bench.heard(), [(op::RST, 0)]);
    bench.write(ports, b"more");
    assert_eq!(bench.heard(), [(op::RST, 0)], "for the guest it is over");
    // The ports are free again.
    let _service = bench.service(9);
    bench.say(ports, op::REQUEST);
    assert_eq!(bench.heard(), [(op::RESPONSE, 0)]);
    let mut received = Vec::new();
    while !has_ended_after(&mut bench, &mut program, &mut received) {}
    assert!(received == sent);
    assert_eq!(bench.counts().0, 1);
}

#[test]
fn a_guest_that_was_in_a_hurry_hears_only_the_end() {
    let mut bench = Bench::new(0);
    let service = bench.service(9);
    let ports = Ports { host: 9, guest: 1234 };
    bench.say(ports, op::REQUEST);
    let mut program = accept(&service).unwrap();
    // More than the socket holds, so that the connection is still there.
    let data = pattern(2 * BUF_ALLOC as usize);
    data.chunks(BUF_ALLOC as usize).for_each(|piece| bench.write(ports, piece));
    bench.say(ports, op::CREDIT_REQUEST);
    bench.shut(ports, shutdown::BOTH);
    assert_eq!(bench.counts().0, 0);
    bench.supply(8);
    assert_eq!(bench.heard(), [(op::RST, 0)]);
    let mut received = Vec::new();
    while !has_ended_after(&mut bench, &mut program, &mut received) {}
    assert!(received == data);
}

/// Takes what there is to read; whether that was the end.
fn has_ended_after(bench: &mut Bench, program: &mut UnixStream, received: &mut Vec<u8>) -> bool {
    bench.run();
    let piece = read(program);
    received.extend(&piece);
    piece.is_empty()
}

#[test]
fn a_guest_beyond_its_credit_is_cut_off() {
    let mut bench = Bench::new(8);
    let (mut program, ports) = bench.open_from_guest();
    // Whatever the socket takes, at some time the rest is too much.
    let piece = vec![0; 60_000];
    let mut heard = Vec::new();
    for _ in 0..100 {
        bench.write(ports, &piece);
        heard = bench.heard();
        if heard.contains(&(op::RST, 0)) {
            break;
        }
    }
    assert_eq!(heard.last(), Some(&(op::RST, 0)));
    assert_eq!(bench.counts().0, 0);
    while !read(&mut program).is_empty() {}
}

#[test]
fn a_guest_without_credit_is_asked_once() {
    let mut bench = Bench::new(8);
    let (mut program, ports) = bench.open_from_host();
    bench.send(Header { buf_alloc: 0, ..packet(ports, op::CREDIT_UPDATE) }, &[]);
    program.write_all(b"data").unwrap();
    assert_eq!(bench.heard(), [(op::CREDIT_REQUEST, 0)]);
    for _ in 0..3 {
        bench.send(Header { buf_alloc: 0, ..packet(ports, op::CREDIT_UPDATE) }, &[]);
        assert_eq!(bench.heard(), [], "the answer is known");
    }
    bench.send(Header { buf_alloc: 2, ..packet(ports, op::CREDIT_UPDATE) }, &[]);
    let packets = bench.received();
    assert_eq!(packets[0].1, b"da");
    assert_eq!(packets[1].0.op, op::CREDIT_REQUEST);
    bench.send(Header { buf_alloc: 2, ..packet(ports, op::CREDIT_REQUEST) }, &[]);
    assert_eq!(bench.heard(), [(op::CREDIT_UPDATE, 0)]);
}

#[test]
fn packets_that_belong_to_nothing_are_answered() {
    let mut bench = Bench::new(8);
    let ports = Ports { host: 9, guest: 1234 };
    for op in [op::RESPONSE, op::SHUTDOWN, op::RW, op::CREDIT_UPDATE, op::CREDIT_REQUEST, 0, 8, u16::MAX] {
        bench.say(ports, op);
        let reset = bench.one();
        assert_eq!((reset.op, reset.src_port, reset.dst_port, reset.type_), (op::RST, 9, 1234, 1), "{op}");
    }
    bench.say(ports, op::RST);
    assert_eq!(bench.heard(), [], "an RST has no answer");
    let _service = bench.service(9);
    for type_ in [0, 2, u16::MAX] {
        bench.send(Header { type_, ..packet(ports, op::REQUEST) }, &[]);
        let reset = bench.one();
        assert_eq!((reset.op, reset.type_), (op::RST, type_));
        bench.send(Header { type_, ..packet(ports, op::RST) }, &[]);
        assert_eq!(bench.heard(), []);
    }
}

#[test]
fn the_guest_speaks_for_itself_to_the_host() {
    let mut bench = Bench::new(8);
    let _service = bench.service(9);
    let ports = Ports { host: 9, guest: 1234 };
    for cid in [0, 1, 2, u64::from(CID) + 1, u64::from(CID) | 1 << 32, u64::MAX] {
        bench.send(Header { src_cid: cid, ..packet(ports, op::REQUEST) }, &[]);
        assert_eq!(bench.heard(), [], "from {cid}");
    }
    for cid in [0, 1, 3, u64::from(CID), 2 | 1 << 32, u64::MAX] {
        bench.send(Header { dst_cid: cid, ..packet(ports, op::REQUEST) }, &[]);
        assert_eq!(bench.heard(), [], "to {cid}");
    }
    assert_eq!(bench.counts(), (0, 0, 0));
}

/// A mistake of Firecracker (CVE-2019-18960): a header's length was taken for a buffer's.
#[test]
fn a_packet_cannot_be_longer_than_its_buffers() {
    for len in [5, 4096, BUF_ALLOC, BUF_ALLOC + 1, i32::MAX as u32, u32::MAX] {
        let mut bench = Bench::new(8);
        let (mut program, ports) = bench.open_from_guest();
        bench.send(Header { len, ..packet(ports, op::RW) }, b"four");
        assert_eq!(bench.heard(), [(op::RST, 0)], "{len}");
        assert!(has_ended(&mut program));
    }
    // What is behind the length is nobody's, and so is what comes with anything but data.
    let mut bench = Bench::new(8);
    let (mut program, ports) = bench.open_from_guest();
    bench.send(Header { len: 2, ..packet(ports, op::RW) }, b"four");
    bench.send(Header { len: 0, ..packet(ports, op::RW) }, b"four");
    bench.send(Header { len: u32::MAX, ..packet(ports, op::CREDIT_UPDATE) }, b"four");
    assert_eq!(read(&mut program), b"fo");
    assert_eq!(bench.heard(), []);
}

#[test]
fn buffers_may_be_cut_anywhere() {
    let mut bench = Bench::new(0);
    let service = bench.service(9);
    let ports = Ports { host: 9, guest: 1234 };
    let request = packet(ports, op::REQUEST).to_bytes();
    let (front, back) = request.split_at(13);
    bench.submit(&[front, &back[..1], &back[1..]]);
    let (_, addresses) = bench.receive.request(&[], &[7, 30, 6, 1]);
    bench.receive_doorbell.write(1).unwrap();
    bench.run();
    let bytes: Vec<u8> = addresses
        .iter()
        .zip([7, 30, 6, 1])
        .flat_map(|(at, length)| bench.receive.read(*at, length))
        .collect();
    assert_eq!(Header::from_bytes(bytes.first_chunk().unwrap()).op, op::RESPONSE);
    let mut program = accept(&service).unwrap();
    program.write_all(b"abcdef").unwrap();
    let (_, addresses) = bench.receive.request(&[], &[43, 3, 100]);
    bench.receive_doorbell.write(1).unwrap();
    bench.run();
    assert_eq!(bench.receive.read(addresses[1], 3)[1..], *b"ab");
    assert_eq!(bench.receive.read(addresses[2], 4), b"cdef");
}

#[test]
fn buffers_that_hold_no_packet_are_errors() {
    let mut bench = Bench::new(0);
    bench.submit(&[&[0; HEADER_SIZE - 1]]);
    assert!(matches!(bench.try_run(), Err(QueueError::TooShort(_))));

    let mut bench = Bench::new(0);
    bench.say(Ports { host: 9, guest: 1 }, op::REQUEST);
    bench.receive.request(&[], &[HEADER_SIZE - 1]);
    bench.receive_doorbell.write(1).unwrap();
    assert!(matches!(bench.try_run(), Err(QueueError::TooShort(_))));

    let mut bench = Bench::new(8);
    let (mut program, _) = bench.open_from_host();
    while bench.receive.used().is_some() {}
    program.write_all(&[0; 8 * (BUFFER - HEADER_SIZE)]).unwrap();
    bench.run();
    bench.take();
    program.write_all(b"data").unwrap();
    bench.receive.request(&[], &[HEADER_SIZE]);
    bench.receive_doorbell.write(1).unwrap();
    assert!(matches!(bench.try_run(), Err(QueueError::TooShort(_))), "no room for a single byte");
}

/// As for frames, a mistake of Firecracker (CVE-2020-16843): a ring without buffers was the end of it.
#[test]
fn nothing_is_lost_while_the_guest_has_no_buffers() {
    let mut bench = Bench::new(0);
    let mut programs: Vec<UnixStream> =
        (0..5).map(|port| bench.program(&format!("CONNECT {port}\n"))).collect();
    bench.run();
    assert!(bench.take().is_empty());
    let before = bench.wake_ups;
    bench.run();
    assert_eq!(bench.wake_ups, before, "and nobody spins");
    let mut requests = Vec::new();
    for _ in 0..5 {
        bench.supply(1);
        bench.run();
        let packets = bench.take();
        assert_eq!(packets.len(), 1);
        requests.push(packets[0].0);
    }
    for request in &requests {
        bench.say(Ports { host: request.src_port, guest: request.dst_port }, op::RESPONSE);
    }
    for program in &mut programs {
        assert!(read(program).starts_with(b"OK "));
        program.write_all(b"data").unwrap();
        program.shutdown(Shutdown::Write).unwrap();
    }
    bench.run();
    assert!(bench.take().is_empty());
    let mut packets = Vec::new();
    for _ in 0..10 {
        bench.supply(1);
        bench.run();
        packets.extend(bench.take());
    }
    assert_eq!(packets.len(), 10);
    for request in &requests {
        let own: Vec<_> = packets.iter().filter(|(header, _)| header.src_port == request.src_port).collect();
        assert_eq!((own[0].0.op, &own[0].1[..]), (op::RW, &b"data"[..]));
        assert_eq!((own[1].0.op, own[1].0.flags), (op::SHUTDOWN, shutdown::SEND));
    }
}

#[test]
fn a_guest_that_takes_no_answers_has_to_wait() {
    let mut bench = Bench::new(0);
    let (mut asked, mut served) = (0, 0);
    // It fills the queue again whenever there is room in it.
    for _ in 0..20 {
        while asked - served < u32::from(SIZE) / 2 {
            let header = packet(Ports { host: 9, guest: asked }, op::RW).to_bytes();
            bench.transmit.request(&[&header, &[]], &[]);
            asked += 1;
        }
        bench.transmit_doorbell.write(1).unwrap();
        bench.run();
        while bench.transmit.used().is_some() {
            served += 1;
        }
    }
    assert!((MAX_RESETS as u32..MAX_RESETS as u32 + 64).contains(&served), "{served}");
    bench.supply(16);
    let resets = bench.received();
    let ports: Vec<u32> = resets.iter().map(|(header, _)| header.dst_port).collect();
    assert_eq!(ports, (0..asked).collect::<Vec<_>>());
}

#[test]
fn visitors_that_talk_nonsense_are_shown_out() {
    let mut bench = Bench::new(8);
    let junk =
        ["GET / HTTP/1.1\r\n", "connect 1\n", "CONNECT x\n", "CONNECT 0000000000000000000000000000000", "\n"];
    for line in junk {
        let mut program = bench.program(line);
        bench.run();
        assert!(has_ended(&mut program), "{line}");
    }
    drop(bench.program("CONN"));
    let silent = bench.program("");
    silent.shutdown(Shutdown::Write).unwrap();
    bench.run();
    assert_eq!(bench.muxer.deadline(), None);
    assert!(bench.take().is_empty());
    bench.open_from_host();
}

#[test]
fn visitors_that_dawdle_do_not_keep_others_out_for_long() {
    let mut bench = Bench::new(8);
    let mut dawdlers: Vec<UnixStream> = (0..MAX_VISITORS).map(|_| bench.program("CONN")).collect();
    bench.run();
    let _late = bench.program("CONNECT 1\n");
    bench.run();
    assert!(bench.take().is_empty());
    bench.muxer.peers.expire(Instant::now() + PATIENCE);
    assert!(dawdlers.iter_mut().all(has_ended));
    bench.transmit_doorbell.write(1).unwrap();
    assert_eq!(bench.heard(), [(op::REQUEST, 0)]);
}

#[test]
fn there_are_so_many_connections_and_no_more() {
    raise_file_limit();
    let mut bench = Bench::new(8);
    let service = bench.service(9);
    let mut programs = Vec::new();
    for guest in 0..MAX_PEERS as u32 {
        bench.say(Ports { host: 9, guest }, op::REQUEST);
        assert_eq!(bench.heard(), [(op::RESPONSE, 0)]);
        programs.push(accept(&service).unwrap());
    }
    let one_more = Ports { host: 9, guest: MAX_PEERS as u32 };
    bench.say(one_more, op::REQUEST);
    assert_eq!(bench.heard(), [(op::RST, 0)]);
    let _waiting = bench.program("CONNECT 1\n");
    assert_eq!(bench.heard(), [], "it waits in the listener");
    assert_eq!(bench.counts(), (MAX_PEERS as u64, MAX_PEERS as u64, 1));
    bench.say(Ports { host: 9, guest: 5 }, op::RST);
    assert_eq!(bench.heard(), [(op::REQUEST, 0)]);
    assert_eq!(bench.counts().0, MAX_PEERS as u64);
    // All that happens at once is heard of.
    drop(programs);
    let ends = bench.heard().into_iter().filter(|end| *end == (op::SHUTDOWN, shutdown::BOTH));
    assert_eq!(ends.count(), MAX_PEERS - 1);
}

/// Both ends of all connections are in this process.
fn raise_file_limit() {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: the calls read and write one structure.
    unsafe {
        assert_eq!(libc::getrlimit(libc::RLIMIT_NOFILE, &mut limit), 0);
        limit.rlim_cur = limit.rlim_max;
        assert_eq!(libc::setrlimit(libc::RLIMIT_NOFILE, &limit), 0);
    }
}

#[test]
fn fresh_ports_are_those_that_nobody_has() {
    let mut bench = Bench::new(8);
    let first = bench.open_from_host().1;
    let _service = bench.service(first.host + 1);
    let taken = Ports { host: first.host + 1, guest: 22 };
    bench.say(taken, op::REQUEST);
    assert_eq!(bench.heard().last(), Some(&(op::RESPONSE, 0)));
    assert_eq!(bench.open_from_host().1.host, first.host + 2);
}

#[test]
fn a_second_request_on_the_same_ports_ends_the_first() {
    let mut bench = Bench::new(8);
    let (mut program, ports) = bench.open_from_guest();
    bench.say(ports, op::REQUEST);
    assert_eq!(bench.heard(), [(op::RST, 0)]);
    assert!(has_ended(&mut program));
}

#[test]
fn the_device_needs_both_queues() {
    let host = Arc::new(VsockHost::new(CID, None).unwrap());
    let memory = harness::memory(2);
    let activation = harness::activation(&memory, 0, vec![Some(Driver::new(&memory, 0, SIZE).1), None, None]);
    assert!(Muxer::new(host, activation).is_err());
}

#[test]
fn the_configuration_is_the_context_id() {
    let device = Vsock::new(Arc::new(VsockHost::new(CID, None).unwrap()));
    let mut config = [0xff; 12];
    device.read_config(0, &mut config);
    assert_eq!(config, [7, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
}

/// With its thread, over two drivers.
#[test]
fn a_reset_ends_connections_and_nothing_else() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("vsock");
    let listener = UnixListener::bind(&path).unwrap();
    let host = Arc::new(VsockHost::new(CID, Some(listener.into())).unwrap());
    let mut device = Vsock::new(Arc::clone(&host));
    let connect = || {
        let mut program = UnixStream::connect(&path).unwrap();
        program.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
        program.write_all(b"CONNECT 22\n").unwrap();
        program
    };
    // Nobody serves it yet.
    let mut program = connect();
    for _ in 0..2 {
        let memory = harness::memory(2);
        let (mut receive, receive_queue) = Driver::new(&memory, 0, SIZE);
        let (mut transmit, transmit_queue) = Driver::new(&memory, 1, SIZE);
        let doorbell = transmit_queue.doorbell.try_clone().unwrap();
        let (_, buffers) = receive.request(&[], &[BUFFER]);
        let queues = vec![Some(receive_queue), Some(transmit_queue), None];
        device.activate(harness::activation(&memory, 0, queues)).unwrap();
        while receive.used().is_none() {
            std::thread::sleep(Duration::from_millis(1));
        }
        let header = receive.read(buffers[0], HEADER_SIZE);
        let request = Header::from_bytes(header.first_chunk().unwrap());
        assert_eq!((request.op, request.dst_port), (op::REQUEST, 22));
        let response = packet(Ports { host: request.src_port, guest: 22 }, op::RESPONSE);
        transmit.request(&[&response.to_bytes()], &[]);
        doorbell.write(1).unwrap();
        assert!(read(&mut program).starts_with(b"OK "));
        assert_eq!(host.metrics().connections, 1);
        device.reset();
        assert!(has_ended(&mut program));
        assert_eq!(host.metrics().connections, 0);
        program = connect();
    }
    assert_eq!(host.metrics().accepted, 2);
}

#[test]
fn nothing_happens_where_nothing_happens() {
    let mut bench = Bench::new(32);
    let (mut program, _ports) = bench.open_from_host();
    program.write_all(&[0; 10_000]).unwrap();
    bench.received();
    let before = bench.wake_ups;
    for _ in 0..10 {
        bench.run();
    }
    assert_eq!(bench.wake_ups, before);
    assert_eq!(bench.muxer.deadline(), None);
}

#[derive(Clone, Debug)]
enum Step {
    Packet { header: Header, connection: usize, payload: usize },
    Supply(usize),
    Program(&'static str),
    Write(usize, usize),
    Read(usize),
    Close(usize),
    Expire,
}

fn number() -> impl Strategy<Value = u32> {
    prop_oneof![0u32..100, 0u32..200_000, Just(u32::MAX), any::<u32>()]
}

fn step() -> impl Strategy<Value = Step> {
    let header = (0u16..9, number(), 0u32..5, number(), number(), 0u16..20).prop_map(
        |(op, len, flags, buf_alloc, fwd_cnt, strange)| Header {
            len,
            flags,
            buf_alloc,
            fwd_cnt,
            type_: if strange == 0 { 2 } else { 1 },
            ..packet(Ports { host: 9, guest: u32::from(strange) }, op)
        },
    );
    prop_oneof![
        8 => (header, 0usize..8, 0usize..60_000)
            .prop_map(|(header, connection, payload)| Step::Packet { header, connection, payload }),
        2 => (1usize..8).prop_map(Step::Supply),
        2 => prop::sample::select(vec!["CONNECT 1\n", "CONNECT 2\nx", "CONN", "junk\n"]).prop_map(Step::Program),
        2 => (0usize..8, 0usize..100_000).prop_map(|(which, count)| Step::Write(which, count)),
        2 => (0usize..8).prop_map(Step::Read),
        1 => (0usize..8).prop_map(Step::Close),
        1 => Just(Step::Expire),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Whatever a guest and the host's programs do, the device works and comes to rest.
    #[test]
    fn no_order_of_things_stops_the_device(steps in prop::collection::vec(step(), 1..120)) {
        let mut bench = Bench::new(4);
        let service = bench.service(9);
        let mut programs: Vec<UnixStream> = Vec::new();
        let mut known: Vec<Ports> = Vec::new();
        let data = vec![1; 100_000];
        for step in steps {
            match step {
                Step::Packet { header, connection, payload } => {
                    let ports = known.iter().rev().nth(connection).copied().unwrap_or(header.ports());
                    let header = Header { src_port: ports.guest, dst_port: ports.host, ..header };
                    bench.send(header, &data[..payload]);
                }
                Step::Supply(count) => {
                    let count = count.min(usize::from(SIZE) / 2 - bench.buffers.len().min(usize::from(SIZE) / 2));
                    bench.supply(count);
                }
                Step::Program(line) => programs.push(bench.program(line)),
                Step::Write(which, count) => {
                    if let Some(mut program) = programs.get(which) {
                        program.set_nonblocking(true).unwrap();
                        let _ = program.write(&data[..count]);
                    }
                }
                Step::Read(which) => {
                    if let Some(mut program) = programs.get(which) {
                        program.set_nonblocking(true).unwrap();
                        let _ = program.read(&mut vec![0; 1 << 20]);
                    }
                }
                Step::Close(which) => {
                    if which < programs.len() {
                        programs.remove(which);
                    }
                }
                Step::Expire => bench.muxer.peers.expire(Instant::now() + PATIENCE),
            }
            bench.run();
            programs.extend(accept(&service));
            for (header, _) in bench.take() {
                if matches!(header.op, op::REQUEST | op::RESPONSE) {
                    known.push(Ports { host: header.src_port, guest: header.dst_port });
                }
            }
        }
        // When all programs have gone and the guest has let go, nothing is left.
        drop((programs, service));
        let held = bench.buffers.len();
        bench.supply(8usize.saturating_sub(held));
        for round in 0..2 {
            let requests = bench.received().into_iter().map(|(header, _)| header);
            known.extend(requests.map(|header| Ports { host: header.src_port, guest: header.dst_port }));
            for ports in known.drain(..) {
                bench.say(ports, op::RST);
            }
            bench.muxer.peers.expire(Instant::now() + PATIENCE);
            bench.transmit_doorbell.write(1).unwrap();
            prop_assert!(round == 0 || bench.counts().0 == 0, "{:?}", bench.muxer.peers);
        }
        prop_assert_eq!(bench.muxer.deadline(), None);
    }
}
