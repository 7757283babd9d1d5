//! The device against a driver in memory and a host that is one end of a pair of sockets.

use std::os::fd::OwnedFd;
use std::os::unix::net::UnixDatagram;
use std::time::Duration;

use innkeeper_protocol::{Limit, Limits};
use virtio_bindings::virtio_config::VIRTIO_F_VERSION_1;
use virtio_bindings::virtio_ring::{VRING_DESC_F_INDIRECT, VRING_DESC_F_NEXT, VRING_DESC_F_WRITE};
use virtio_queue::desc::RawDescriptor;
use virtio_queue::desc::split::Descriptor as SplitDescriptor;
use vm_memory::{Bytes, GuestAddress};

use proptest::prelude::*;

use super::*;
use crate::event;
use crate::memory::GuestMemory;
use crate::virtio::QueueInterrupt;
use crate::virtio::harness::{self, Driver};
use crate::virtio::queue::{Queue, QueueError};
use crate::virtio::worker::{Handler, SOURCE_DEADLINE};

const TAP: u64 = 0;
const RECEIVE: u64 = 1;
const TRANSMIT: u64 = 2;
const SIZE: u16 = 64;

const MERGEABLE: u64 = 1 << VIRTIO_NET_F_MRG_RXBUF;
const LARGE: u64 = 1 << VIRTIO_NET_F_GUEST_TSO4;
const CONTROLLED: u64 = 1 << VIRTIO_NET_F_CTRL_VQ;
const MULTI_QUEUE: u64 = CONTROLLED | 1 << VIRTIO_NET_F_MQ;

/// A socket for the host, and one for the device.
fn ends() -> (UnixDatagram, OwnedFd) {
    let (host, device) = UnixDatagram::pair().unwrap();
    host.set_nonblocking(true).unwrap();
    device.set_nonblocking(true).unwrap();
    (host, device.into())
}

fn interface(pairs: usize) -> (Vec<UnixDatagram>, Arc<Interface>) {
    let (hosts, devices) = (0..pairs).map(|_| ends()).unzip();
    let none = Limits::default();
    let interface = Interface::stand_in(devices, MacAddress::from_number(1), none, none).unwrap();
    (hosts, Arc::new(interface))
}

fn operations(count: u64) -> Limits {
    // For a while, the burst is all there is.
    Limits { bytes: None, operations: Some(Limit { per_second: 1, burst: Some(count) }) }
}

/// A driver that has set up all queues, the device, and the host's end of every pair.
struct Bench {
    hosts: Vec<UnixDatagram>,
    interface: Arc<Interface>,
    drivers: Vec<Driver>,
    pairs: Vec<Pair>,
    control: Control,
}

impl Bench {
    fn new(count: usize, features: u64) -> Self {
        Self::without(count, features, &[])
    }

    /// A driver that has left out some queues.
    fn without(count: usize, features: u64, missing: &[usize]) -> Self {
        let (hosts, interface) = interface(count);
        let queues = Net::new(Arc::clone(&interface)).queue_sizes().len();
        let memory = harness::memory(queues as u64);
        let (drivers, devices): (Vec<_>, Vec<_>) =
            (0..queues).map(|index| Driver::new(&memory, index as u64, SIZE)).unzip();
        let is_there = |(index, queue)| (!missing.contains(&index)).then_some(queue);
        let devices = devices.into_iter().enumerate().map(is_there).collect();
        let (pairs, control) = handlers(&interface, harness::activation(&memory, features, devices)).unwrap();
        Self { hosts, interface, drivers, pairs, control }
    }

    fn handle(&mut self, source: u64) {
        self.pairs[0].handle(source).unwrap();
    }

    /// The next frame that the host got.
    fn sent(&self) -> Option<Vec<u8>> {
        let mut frame = vec![0; 1 << 17];
        let length = self.hosts[0].recv(&mut frame).ok()?;
        frame.truncate(length);
        Some(frame)
    }

    fn sent_count(&self) -> usize {
        std::iter::from_fn(|| self.sent()).count()
    }

    /// Chains that came back from queue `queue`.
    fn used(&mut self, queue: usize) -> Vec<(u16, u32)> {
        std::iter::from_fn(|| self.drivers[queue].used()).collect()
    }

    /// Gives a command to the control queue, which is `queue`; returns the answer.
    fn command(&mut self, queue: usize, command: &[&[u8]]) -> u8 {
        let (head, answers) = self.drivers[queue].request(command, &[1]);
        self.control.handle(0).unwrap();
        assert_eq!(self.drivers[queue].used(), Some((head, 1)));
        self.drivers[queue].read(answers[0], 1)[0]
    }
}

fn frame(length: usize) -> Vec<u8> {
    (0..HEADER_SIZE + length).map(|index| if index < HEADER_SIZE { 0 } else { index as u8 }).collect()
}

#[test]
fn a_frame_is_sent_as_it_is() {
    let mut bench = Bench::new(1, 0);
    let whole = frame(500);
    let (first, _) = bench.drivers[1].request(&[&whole], &[]);
    let (second, _) = bench.drivers[1].request(&[&whole[..7], &whole[7..20], &whole[20..]], &[]);
    bench.handle(TRANSMIT);
    assert_eq!((bench.sent().unwrap(), bench.sent().unwrap()), (whole.clone(), whole));
    assert_eq!(bench.used(1), [(first, 0), (second, 0)]);
    let metrics = bench.interface.metrics();
    assert_eq!((metrics.sent_frames, metrics.sent_bytes, metrics.send_drops), (2, 1000, 0));
    assert_eq!((metrics.kicks, metrics.throttled), (vec![0, 1], 0));
}

#[test]
fn frames_of_impossible_size_are_dropped_and_given_back() {
    let mut bench = Bench::new(1, 0);
    let largest = frame(MAX_FRAME - HEADER_SIZE);
    bench.drivers[1].request(&[&frame(0)[1..]], &[]);
    bench.drivers[1].request(&[&largest], &[]);
    bench.drivers[1].request(&[&largest, &[0]], &[]);
    // It has nothing to read.
    bench.drivers[1].request(&[], &[100]);
    bench.drivers[1].request(&[&frame(1)], &[]);
    bench.handle(TRANSMIT);
    assert_eq!((bench.sent().unwrap().len(), bench.sent().unwrap().len()), (MAX_FRAME, HEADER_SIZE + 1));
    assert_eq!(bench.used(1).len(), 5);
    assert_eq!(bench.interface.metrics().send_drops, 3);
}

#[test]
fn a_frame_that_the_host_does_not_take_is_lost() {
    let mut bench = Bench::new(1, 0);
    bench.hosts.clear();
    bench.drivers[1].request(&[&frame(60)], &[]);
    bench.handle(TRANSMIT);
    bench.handle(TAP);
    assert_eq!(bench.used(1).len(), 1);
    let metrics = bench.interface.metrics();
    assert_eq!((metrics.sent_frames, metrics.send_drops), (0, 1));
}

#[test]
fn a_busy_direction_lets_others_go_first() {
    let mut bench = Bench::new(1, 0);
    // More than fit into the socket at a time would be lost.
    let count = usize::from(SIZE);
    for _ in 0..count {
        bench.drivers[1].request(&[&frame(1)], &[]);
    }
    bench.handle(TRANSMIT);
    let sent = bench.interface.metrics();
    assert_eq!(sent.sent_frames + sent.send_drops, count as u64);
    assert!(bench.pairs[0].deadline().is_some_and(|deadline| deadline <= Instant::now()));
    bench.sent_count();
    bench.drivers[1].request(&[&frame(1)], &[]);
    bench.handle(SOURCE_DEADLINE);
    assert_eq!((bench.sent_count(), bench.pairs[0].deadline()), (1, None));
}

#[test]
fn a_frame_is_received_into_one_buffer() {
    let mut bench = Bench::new(1, 0);
    let (head, addresses) = bench.drivers[0].request(&[], &[4, 5, 1600]);
    bench.hosts[0].send(&frame(300)).unwrap();
    bench.handle(TAP);
    assert_eq!(bench.used(0), [(head, 312)]);
    let mut expected = frame(300);
    expected[10] = 1;
    let parts = [(addresses[0], 4), (addresses[1], 5), (addresses[2], 303)];
    let received: Vec<u8> =
        parts.iter().flat_map(|(at, length)| bench.drivers[0].read(*at, *length)).collect();
    assert_eq!(received, expected);
    let metrics = bench.interface.metrics();
    assert_eq!((metrics.received_frames, metrics.received_bytes, metrics.receive_drops), (1, 300, 0));
}

#[test]
fn a_frame_fills_several_mergeable_buffers() {
    let mut bench = Bench::new(1, MERGEABLE);
    let heads: Vec<_> = (0..20).map(|_| bench.drivers[0].request(&[], &[11, 189])).collect();
    let frames = [frame(500), frame(188), frame(189)];
    frames.iter().for_each(|frame| assert_eq!(bench.hosts[0].send(frame).unwrap(), frame.len()));
    bench.handle(TAP);
    let used = bench.used(0);
    let lengths: Vec<u32> = used.iter().map(|(_, length)| *length).collect();
    assert_eq!(lengths, [200, 200, 112, 200, 200, 1]);
    let mut bytes: Vec<u8> = Vec::new();
    for ((head, length), (expected, at)) in used.iter().zip(&heads) {
        assert_eq!(head, expected);
        bytes.extend(bench.drivers[0].read(at[0], (*length).min(11) as usize));
        bytes.extend(bench.drivers[0].read(at[1], (*length as usize).saturating_sub(11)));
    }
    let mut expected = frames;
    [3, 1, 2].iter().zip(&mut expected).for_each(|(count, frame)| frame[10] = *count);
    assert_eq!(bytes, expected.concat());
}

/// More pieces than the host takes in one call, in chains that come and go.
#[test]
fn buffers_in_many_pieces_are_used_as_far_as_they_go() {
    const PIECES: u64 = 1100;
    let mut bench = Bench::new(1, MERGEABLE | LARGE);
    let driver = &mut bench.drivers[0];
    let (table, bytes) = (driver.buffer(16 * PIECES as usize), driver.buffer(PIECES as usize));
    for index in 0..PIECES {
        let next = if index + 1 < PIECES { VRING_DESC_F_NEXT as u16 } else { 0 };
        let flags = next | VRING_DESC_F_WRITE as u16;
        let piece = RawDescriptor::from(SplitDescriptor::new(bytes + index, 1, flags, index as u16 + 1));
        driver.memory.write_obj(piece, GuestAddress(table + 16 * index)).unwrap();
    }
    for head in 0..5 {
        bench.drivers[0].descriptor(head, table, 16 * PIECES as u32, VRING_DESC_F_INDIRECT as u16, 0);
        bench.drivers[0].submit(head);
        bench.hosts[0].send(&frame(1023)).unwrap();
        bench.hosts[0].send(&frame(1011)).unwrap();
        bench.handle(TAP);
        assert_eq!(bench.used(0), [(head, 1023)]);
        assert_eq!(bench.drivers[0].read(bytes + 12, 1011), frame(1011)[12..]);
        assert_eq!(bench.interface.metrics().receive_drops, u64::from(head) + 1);
    }
}

#[test]
fn a_frame_that_does_not_fit_is_dropped_whole() {
    for features in [0, MERGEABLE] {
        let mut bench = Bench::new(1, features);
        let mut heads = Vec::new();
        for _ in 0..2 {
            heads.push(bench.drivers[0].request(&[], &[MAX_PLAIN_FRAME]).0);
        }
        // The first buffer has room for the largest frame, so that the second one is not even looked at.
        bench.hosts[0].send(&frame(MAX_PLAIN_FRAME - HEADER_SIZE + 1)).unwrap();
        bench.hosts[0].send(&frame(MAX_PLAIN_FRAME - HEADER_SIZE)).unwrap();
        bench.handle(TAP);
        assert_eq!(bench.interface.metrics().receive_drops, 1, "{features:#x}");
        assert_eq!(bench.used(0), [(heads[0], MAX_PLAIN_FRAME as u32)]);
    }
}

/// A mistake of Firecracker (CVE-2020-16843): once the ring was full, nothing was received ever after.
#[test]
fn frames_wait_for_a_guest_without_buffers() {
    let mut bench = Bench::new(1, MERGEABLE);
    bench.hosts[0].send(&frame(100)).unwrap();
    bench.handle(TAP);
    assert_eq!(bench.pairs[0].deadline(), None);
    // Not enough for the largest frame that may come.
    bench.drivers[0].request(&[], &[1000]);
    bench.handle(RECEIVE);
    assert_eq!(bench.used(0), []);
    bench.drivers[0].request(&[], &[1000]);
    bench.handle(RECEIVE);
    assert_eq!(bench.used(0), [(0, 112)]);
    assert_eq!(bench.interface.metrics().kicks, [2, 0]);
}

#[test]
fn a_receive_buffer_without_room_for_the_header_is_an_error() {
    for lengths in [&[11][..], &[1, 2, 3]] {
        let mut bench = Bench::new(1, MERGEABLE);
        bench.drivers[0].request(&[], lengths);
        assert!(matches!(bench.pairs[0].handle(RECEIVE), Err(QueueError::TooShort(0))));
    }
    let mut bench = Bench::new(1, 0);
    bench.drivers[0].request(&[&frame(100)], &[]);
    assert!(matches!(bench.pairs[0].handle(TAP), Err(QueueError::TooShort(0))));
}

#[test]
fn what_is_over_the_limit_is_sent_later() {
    let mut bench = Bench::new(1, 0);
    bench.interface.set_limits(Limits::default(), operations(2)).unwrap();
    for _ in 0..5 {
        bench.drivers[1].request(&[&frame(60)], &[]);
    }
    bench.handle(TRANSMIT);
    assert_eq!((bench.sent_count(), bench.used(1).len()), (2, 2));
    let deadline = bench.pairs[0].deadline().unwrap();
    assert!(deadline > Instant::now() + Duration::from_millis(500));
    // Too early, for whatever reason: nothing happens, and it is still the same wait.
    bench.handle(TRANSMIT);
    bench.handle(SOURCE_DEADLINE);
    assert_eq!((bench.sent_count(), bench.interface.metrics().throttled), (0, 1));
    assert!(bench.pairs[0].deadline().is_some());
    // The limit is lifted, and the doorbell rung.
    bench.interface.set_limits(Limits::default(), Limits::default()).unwrap();
    bench.handle(TRANSMIT);
    assert_eq!((bench.sent_count(), bench.used(1).len()), (3, 3));
    assert_eq!(bench.pairs[0].deadline(), None);
}

#[test]
fn what_is_over_the_limit_is_received_later() {
    let mut bench = Bench::new(1, 0);
    let bytes = Limit { per_second: 100, burst: Some(100) };
    bench.interface.set_limits(Limits { bytes: Some(bytes), operations: None }, Limits::default()).unwrap();
    for _ in 0..4 {
        bench.drivers[0].request(&[], &[1600]);
    }
    bench.hosts[0].send(&frame(99)).unwrap();
    bench.handle(TAP);
    assert_eq!((bench.used(0).len(), bench.pairs[0].deadline()), (1, None));
    bench.hosts[0].send(&frame(1000)).unwrap();
    bench.handle(TAP);
    // The last one went into debt; but as long as nothing else has come, there is nothing to wait for.
    assert_eq!((bench.used(0).len(), bench.pairs[0].deadline()), (1, None));
    bench.hosts[0].send(&frame(60)).unwrap();
    bench.handle(TAP);
    bench.handle(TAP);
    assert!(bench.pairs[0].deadline().unwrap() > Instant::now() + Duration::from_secs(5));
    assert_eq!((bench.used(0).len(), bench.interface.metrics().throttled), (0, 1));
    bench.interface.set_limits(Limits::default(), Limits::default()).unwrap();
    bench.handle(RECEIVE);
    assert_eq!((bench.used(0).len(), bench.pairs[0].deadline()), (1, None));
}

#[test]
fn a_limit_that_is_none_changes_nothing() {
    let (_hosts, interface) = interface(1);
    interface.set_limits(operations(3), operations(3)).unwrap();
    let bad = Limits { operations: Some(Limit { per_second: 0, burst: None }), bytes: None };
    for (receive, transmit) in [(bad, Limits::default()), (Limits::default(), bad)] {
        assert!(matches!(interface.set_limits(receive, transmit), Err(Error::Limit(_))));
    }
    for limit in [&interface.receive_limit, &interface.transmit_limit] {
        (0..3).for_each(|_| limit.take(1000));
        assert!(limit.wait().is_some());
    }
}

#[test]
fn the_driver_says_how_many_pairs_it_uses() {
    let mut bench = Bench::new(4, MULTI_QUEUE);
    bench.interface.begin(0).unwrap();
    assert_eq!((bench.pairs.len(), bench.interface.enabled_pairs()), (4, 1));
    let cases: [(&[&[u8]], u8, usize); 12] = [
        (&[&[4, 0], &[3, 0]], 0, 3),
        (&[&[4, 0, 4, 0]], 0, 4),
        (&[&[4, 0], &[0, 0]], 1, 4),
        (&[&[4, 0], &[5, 0]], 1, 4),
        (&[&[4, 0], &[1, 1]], 1, 4),
        (&[&[4, 0], &[0xff, 0xff]], 1, 4),
        (&[&[4, 0], &[2]], 1, 4),
        (&[&[4, 1], &[2, 0]], 1, 4),
        (&[&[0, 0], &[1, 0]], 1, 4),
        (&[&[4]], 1, 4),
        (&[&[4, 0], &[2, 0], &[9; 100]], 0, 2),
        (&[&[4, 0], &[1, 0]], 0, 1),
    ];
    for (command, answer, enabled) in cases {
        assert_eq!(bench.command(8, command), answer, "{command:?}");
        assert_eq!(bench.interface.enabled_pairs(), enabled, "{command:?}");
    }
    // A reset, and a driver after it, start with one again.
    bench.command(8, &[&[4, 0, 4, 0]]);
    bench.interface.quiesce().unwrap();
    assert_eq!(bench.interface.enabled_pairs(), 1);
}

#[test]
fn a_command_without_room_for_an_answer_is_an_error() {
    let mut bench = Bench::new(2, MULTI_QUEUE);
    bench.drivers[4].request(&[&[4, 0], &[1, 0]], &[]);
    assert!(matches!(bench.control.handle(0), Err(QueueError::TooShort(0))));
}

#[test]
fn every_pair_has_a_tap_of_its_own() {
    let mut bench = Bench::new(3, MULTI_QUEUE);
    for index in 0..3 {
        bench.drivers[2 * index].request(&[], &[1600]);
        bench.drivers[2 * index + 1].request(&[&frame(10 * index)], &[]);
        bench.hosts[index].send(&frame(20 * index)).unwrap();
        bench.pairs[index].handle(TAP).unwrap();
        bench.pairs[index].handle(TRANSMIT).unwrap();
        assert_eq!(bench.used(2 * index), [(0, (HEADER_SIZE + 20 * index) as u32)]);
        assert_eq!(bench.used(2 * index + 1), [(0, 0)]);
        let length = bench.hosts[index].recv(&mut [0; 100]).unwrap();
        assert_eq!(length, HEADER_SIZE + 10 * index);
    }
    assert_eq!(bench.interface.metrics().kicks, [0, 1, 0, 1, 0, 1]);
}

/// Without the feature, the control queue is the third one (section 5.1.2).
#[test]
fn a_driver_without_multi_queue_has_one_pair() {
    let mut bench = Bench::new(4, CONTROLLED);
    assert_eq!(bench.pairs.len(), 1);
    assert_eq!(bench.command(2, &[&[4, 0], &[1, 0]]), 0);
    assert_eq!(bench.command(2, &[&[4, 0], &[2, 0]]), 1);

    let bench = Bench::without(4, 0, &[2, 3, 4, 5, 6, 7, 8]);
    assert!(bench.pairs.len() == 1 && bench.control.is_idle());
}

#[test]
fn pairs_that_were_not_set_up_cannot_be_enabled() {
    let mut bench = Bench::without(4, MULTI_QUEUE, &[5]);
    assert_eq!(bench.pairs.len(), 2);
    assert_eq!(bench.command(8, &[&[4, 0], &[2, 0]]), 0);
    assert_eq!(bench.command(8, &[&[4, 0], &[3, 0]]), 1);
}

#[test]
fn a_driver_without_the_first_pair_is_refused() {
    let (_hosts, interface) = interface(1);
    let memory = harness::memory(2);
    for index in 0..2 {
        let (_, queue) = Driver::new(&memory, index, SIZE);
        let queues = if index == 0 { vec![Some(queue), None] } else { vec![None, Some(queue)] };
        assert!(handlers(&interface, harness::activation(&memory, 0, queues)).is_err());
    }
    assert!(handlers(&interface, harness::activation(&memory, 0, Vec::new())).is_err());
}

#[test]
fn what_is_on_offer_depends_on_the_number_of_pairs() {
    for (pairs, sizes) in [(1, vec![256; 2]), (2, vec![256, 256, 256, 256, 64])] {
        let (_hosts, interface) = interface(pairs);
        let device = Net::new(interface);
        assert_eq!(device.queue_sizes(), sizes);
        assert_eq!(device.features() & MULTI_QUEUE, if pairs > 1 { MULTI_QUEUE } else { 0 });
        let mut config = [0xff; 12];
        device.read_config(0, &mut config);
        assert_eq!(config, [2, 1, 0, 0, 0, 0, 1, 0, pairs as u8, 0, 0, 0]);
    }
}

#[test]
fn offloads_need_one_another() {
    let bits = |bits: &[u32]| bits.iter().fold(0, |all, bit| all | 1 << bit);
    let (checksum, tso4, tso6, ecn) =
        (VIRTIO_NET_F_GUEST_CSUM, VIRTIO_NET_F_GUEST_TSO4, VIRTIO_NET_F_GUEST_TSO6, VIRTIO_NET_F_GUEST_ECN);
    let cases = [
        (bits(&[]), 0),
        (bits(&[tso4, tso6, ecn]), 0),
        (bits(&[checksum]), 1),
        (bits(&[checksum, ecn]), 1),
        (bits(&[checksum, tso4]), 3),
        (bits(&[checksum, tso6, ecn]), 13),
        (bits(&[checksum, tso4, tso6, ecn]), 15),
    ];
    let memory = harness::memory(1);
    for (features, expected) in cases {
        let activation = harness::activation(&memory, features, Vec::new());
        assert_eq!(offloads(&activation), expected, "{features:#x}");
    }
}

/// With threads, twice: frames go both ways, and nothing is left of the first driver.
#[test]
fn a_device_serves_one_driver_after_the_other() {
    let (hosts, interface) = interface(2);
    let mut device = Net::new(Arc::clone(&interface));
    let wait_for = |what: &mut dyn FnMut() -> bool| {
        let end = Instant::now() + Duration::from_secs(10);
        while !what() {
            assert!(Instant::now() < end);
            std::thread::sleep(Duration::from_millis(1));
        }
    };
    for _ in 0..2 {
        // Nobody listens to this one.
        hosts[0].send(&frame(7)).unwrap();
        let memory: Arc<GuestMemory> = harness::memory(5);
        let (mut drivers, queues): (Vec<_>, Vec<_>) =
            (0..5).map(|index| Driver::new(&memory, index, SIZE)).unzip();
        let doorbells: Vec<_> = queues.iter().map(|queue| queue.doorbell.try_clone().unwrap()).collect();
        let features = 1 << VIRTIO_F_VERSION_1 | MULTI_QUEUE;
        let queues = queues.into_iter().map(Some).collect();
        device.activate(harness::activation(&memory, features, queues)).unwrap();

        drivers[4].request(&[&[4, 0], &[2, 0]], &[1]);
        doorbells[4].write(1).unwrap();
        wait_for(&mut || drivers[4].used().is_some());
        assert_eq!(interface.enabled_pairs(), 2);
        for pair in 0..2 {
            drivers[2 * pair].request(&[], &[1600]);
            doorbells[2 * pair].write(1).unwrap();
            drivers[2 * pair + 1].request(&[&frame(33)], &[]);
            doorbells[2 * pair + 1].write(1).unwrap();
            wait_for(&mut || hosts[pair].recv(&mut [0; 100]).is_ok_and(|length| length == 45));
            hosts[pair].send(&frame(44)).unwrap();
            wait_for(&mut || drivers[2 * pair].used() == Some((0, 56)));
        }
        device.reset();
        assert_eq!(interface.enabled_pairs(), 1);
    }
}

/// With `VIRTIO_F_EVENT_IDX`, the driver is told where to ring, and that is never behind what was seen
/// already.
#[test]
fn the_doorbell_is_asked_for_when_there_is_nothing_left() {
    let mut bench = Bench::new(1, MERGEABLE);
    let memory = Arc::clone(&bench.drivers[0].memory);
    let queues = bench.drivers.iter().map(|driver| {
        let queue = Queue::new(driver.layout, SIZE, true, &memory).unwrap();
        Some(ActiveQueue { queue, doorbell: event::new().unwrap(), interrupt: QueueInterrupt(None) })
    });
    let activation = harness::activation(&memory, MERGEABLE, queues.collect());
    bench.pairs = handlers(&bench.interface, activation).unwrap().0;
    let avail_event = |driver: &Driver| {
        let at = driver.layout.used + 4 + 8 * u64::from(SIZE);
        driver.memory.read_obj::<u16>(GuestAddress(at)).unwrap()
    };
    for round in 1..4 {
        bench.drivers[0].request(&[], &[700]);
        bench.drivers[1].request(&[&frame(1)], &[]);
        bench.handle(RECEIVE);
        bench.handle(TRANSMIT);
        // One buffer is not enough for the largest frame, three are.
        let asked = [avail_event(&bench.drivers[0]), avail_event(&bench.drivers[1])];
        assert_eq!(asked, [round.min(2), round]);
    }
}

/// What a driver and a network may do.
#[derive(Clone, Debug)]
enum Step {
    Descriptor { queue: usize, index: u16, address: u64, length: u32, flags: u16, next: u16 },
    Submit { queue: usize, head: u16 },
    Fill { queue: usize },
    Frame { pair: usize, length: usize },
    Handle { handler: usize, source: u64 },
    Limit { count: u64 },
}

fn step() -> impl Strategy<Value = Step> {
    let length = prop_oneof![Just(0u32), 1..100u32, 1000..3000u32, 60_000..70_000u32, any::<u32>()];
    let descriptor = (0..5usize, 0..SIZE, 0..5 * harness::QUEUE_SPACE, length, 0..8u16, 0..SIZE + 1);
    prop_oneof![
        4 => descriptor.prop_map(|(queue, index, address, length, flags, next)| {
            Step::Descriptor { queue, index, address, length, flags, next }
        }),
        4 => (0..5usize, 0..SIZE + 1).prop_map(|(queue, head)| Step::Submit { queue, head }),
        2 => (0..5usize).prop_map(|queue| Step::Fill { queue }),
        3 => (0..2usize, 0..70_000usize).prop_map(|(pair, length)| Step::Frame { pair, length }),
        6 => (0..3usize, 0..4u64).prop_map(|(handler, source)| Step::Handle { handler, source }),
        1 => (0..3u64).prop_map(|count| Step::Limit { count }),
    ]
}

proptest! {
    #[test]
    fn no_driver_is_too_odd(steps in prop::collection::vec(step(), 1..200), is_mergeable: bool) {
        let features = MULTI_QUEUE | LARGE | if is_mergeable { MERGEABLE } else { 0 };
        let mut bench = Bench::new(2, features);
        for step in steps {
            let result = match step {
                Step::Descriptor { queue, index, address, length, flags, next } => {
                    bench.drivers[queue].descriptor(index, address, length, flags, next);
                    Ok(())
                }
                Step::Submit { queue, head } => {
                    bench.drivers[queue].submit(head);
                    Ok(())
                }
                Step::Fill { queue } => {
                    bench.drivers[queue].request(&[&frame(5)], &[]);
                    bench.drivers[queue].request(&[], &[1, 2000, 66_000]);
                    Ok(())
                }
                Step::Frame { pair, length } => {
                    // A full socket is like a full tap.
                    let _ = bench.hosts[pair].send(&frame(length));
                    Ok(())
                }
                Step::Handle { handler: 2, .. } => bench.control.handle(0),
                Step::Handle { handler, source: 3 } => bench.pairs[handler].handle(SOURCE_DEADLINE),
                Step::Handle { handler, source } => bench.pairs[handler].handle(source),
                Step::Limit { count } => {
                    let limits = if count == 0 { Limits::default() } else { operations(count) };
                    bench.interface.set_limits(limits, limits).unwrap();
                    Ok(())
                }
            };
            bench.sent_count();
            if result.is_err() {
                break;
            }
        }
    }
}
