//! A network interface whose driver is hostile, and whose host sends frames of any size at any time.

#![no_main]

use std::collections::VecDeque;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixDatagram;
use std::sync::Arc;

use arbitrary::Arbitrary;
use innkeeper_fuzz::{Act, Bytes, Device, Guest, Length, List, Setup, Steps, Timed};
use innkeeper_protocol::{Limit, Limits};
use innkeeper_vmm::virtio::VirtioDevice;
use innkeeper_vmm::virtio::net::{Interface, MacAddress, Net, handlers};
use libfuzzer_sys::fuzz_target;
use virtio_bindings::virtio_net::VIRTIO_NET_F_MQ;

/// Bytes in front of a frame, and where the number of buffers is in them.
const HEADER_SIZE: usize = 12;
const NUM_BUFFERS: std::ops::Range<usize> = 10..12;
/// The largest frame with its header.
const MAX_FRAME: usize = HEADER_SIZE + 18 + (64 << 10);
/// What is received at a time, to see that nothing is larger.
const RECEIVE_SIZE: usize = MAX_FRAME + 1000;

#[derive(Arbitrary, Clone, Copy, Debug)]
struct Burst(Option<u8>);

impl Burst {
    fn limit(self) -> Option<Limit> {
        // What is used up does not come back in the time that a run takes.
        self.0.map(|burst| Limit { per_second: 1, burst: Some(u64::from(burst) * 16 + 1) })
    }
}

#[derive(Arbitrary, Debug)]
enum Step {
    Act(Act),
    /// The guest gives buffers to receive into.
    Supply {
        pair: u8,
        lengths: List<Length>,
        is_indirect: bool,
        repeat: u8,
    },
    /// The guest sends a frame, cut into pieces.
    Send {
        pair: u8,
        lengths: List<Length>,
        byte: u8,
        is_indirect: bool,
    },
    /// The guest sends something that may be no frame, and offers to be written to.
    SendOdd {
        pair: u8,
        pieces: List<Bytes>,
        writable: u8,
    },
    /// The host sends a frame.
    Frame {
        pair: u8,
        length: u16,
        byte: u8,
    },
    /// The host sends several.
    Frames {
        pair: u8,
        length: u8,
        count: u8,
    },
    /// The host takes what the guest has sent.
    Take {
        pair: u8,
    },
    /// The guest wants so many pairs of queues.
    Pairs(u16),
    /// The guest gives some other command.
    Command {
        pieces: List<Bytes>,
        room: u8,
    },
    Ring(u8),
    Handle {
        device: u8,
        source: u64,
    },
    Run,
    Limit {
        receive: [Burst; 2],
        transmit: [Burst; 2],
    },
    Activate(Setup),
}

#[derive(Arbitrary, Debug)]
struct Input {
    pairs: u8,
    setup: Setup,
    steps: Steps<Timed<Step>>,
}

/// What is on its way in one pair.
#[derive(Default)]
struct Traffic {
    /// From the host, in the order in which it has sent them. Some are dropped.
    received: VecDeque<Vec<u8>>,
    /// From the guest.
    sent: VecDeque<Vec<u8>>,
}

struct Bench {
    guest: Guest,
    hosts: Vec<UnixDatagram>,
    interface: Arc<Interface>,
    devices: Vec<Device>,
    traffic: Vec<Traffic>,
    control_queue: usize,
    is_known: bool,
    /// Room to receive into.
    frame: Vec<u8>,
}

impl Bench {
    fn new(pairs: usize) -> Self {
        let ends = || {
            let (host, device) = UnixDatagram::pair().unwrap();
            host.set_nonblocking(true).unwrap();
            device.set_nonblocking(true).unwrap();
            (host, OwnedFd::from(device))
        };
        let (hosts, devices): (Vec<_>, Vec<_>) = (0..pairs).map(|_| ends()).unzip();
        let (mac, none) = (MacAddress::from_number(1), Limits::default());
        let interface = Arc::new(Interface::stand_in(devices, mac, none, none).unwrap());
        Self {
            guest: Guest::default(),
            traffic: hosts.iter().map(|_| Traffic::default()).collect(),
            hosts,
            interface,
            devices: Vec::new(),
            control_queue: 2,
            is_known: true,
            frame: vec![0; RECEIVE_SIZE],
        }
    }

    fn activate(&mut self, setup: &Setup) {
        self.devices.clear();
        // What the guest had on its way is gone; what the host has sent waits in the tap.
        for (host, traffic) in self.hosts.iter().zip(&mut self.traffic) {
            while host.recv(&mut [0; 1]).is_ok() {}
            traffic.sent.clear();
        }
        let net = Net::new(Arc::clone(&self.interface));
        let has_pairs = setup.features & net.features() & 1 << VIRTIO_NET_F_MQ != 0;
        // With one pair only, it is the third queue (section 5.1.2).
        self.control_queue = if has_pairs { 2 * self.hosts.len() } else { 2 };
        let Some(activation) = self.guest.activate(setup, net.features(), net.queue_sizes()) else { return };
        let Ok((pairs, control)) = handlers(&self.interface, activation) else { return };
        self.devices.extend(pairs.into_iter().map(Device::new));
        self.devices.push(Device::new(control));
        self.is_known = true;
    }

    fn pair(&self, pair: u8) -> usize {
        usize::from(pair) % self.hosts.len()
    }

    /// Whether there is a control queue at all.
    fn has_control(&self) -> bool {
        self.hosts.len() > 1
    }

    fn send_from_host(&mut self, pair: usize, frame: Vec<u8>) {
        if self.hosts[pair].send(&frame).is_ok()
            && let Some(traffic) = self.traffic.get_mut(pair)
        {
            traffic.received.push_back(frame);
        }
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
            Step::Supply { pair, lengths, is_indirect, repeat } => {
                let queue = 2 * self.pair(pair);
                let lengths: Vec<_> = lengths.into_iter().map(Length::fitting).collect();
                for _ in 0..=repeat % 32 {
                    if lengths.iter().sum::<usize>() < HEADER_SIZE {
                        // There is not even room for a header.
                        self.guest.may_be_given_up();
                    }
                    self.guest.submit(queue, &[], &lengths, is_indirect);
                }
            }
            Step::Send { pair, lengths, byte, is_indirect } => {
                let pieces: Vec<_> = lengths.into_iter().map(|length| vec![byte; length.fitting()]).collect();
                let header = [byte; HEADER_SIZE];
                let mut readable: Vec<&[u8]> = vec![&header];
                readable.extend(pieces.iter().map(|piece| &piece[..]));
                self.send_from_guest(pair, &readable, &[], is_indirect);
            }
            Step::SendOdd { pair, pieces, writable } => {
                let readable: Vec<&[u8]> = pieces.iter().map(|piece| &piece[..]).collect();
                self.send_from_guest(pair, &readable, &[writable.into()], false);
            }
            Step::Frame { pair, length, byte } => {
                let pair = self.pair(pair);
                self.send_from_host(pair, vec![byte; HEADER_SIZE + usize::from(length)]);
            }
            Step::Frames { pair, length, count } => {
                let pair = self.pair(pair);
                for index in 0..count {
                    self.send_from_host(pair, vec![index; HEADER_SIZE + usize::from(length)]);
                }
            }
            Step::Take { pair } => self.take(self.pair(pair)),
            Step::Pairs(count) => {
                let [low, high] = count.to_le_bytes();
                if self.has_control() {
                    self.guest.submit(self.control_queue, &[&[4, 0], &[low, high]], &[1], false);
                }
            }
            Step::Command { pieces, room } => {
                let readable: Vec<&[u8]> = pieces.iter().map(|piece| &piece[..]).collect();
                if self.has_control() {
                    if room == 0 {
                        // There is not even room for an answer.
                        self.guest.may_be_given_up();
                    }
                    self.guest.submit(self.control_queue, &readable, &[room.into()], false);
                }
            }
            Step::Ring(queue) => self.guest.ring(usize::from(queue) % 9),
            Step::Handle { device, source } => {
                let count = self.devices.len().max(1);
                let index = usize::from(device) % count;
                // For the control queue, 1 would be a fault that the kernel has found.
                let source = if index + 1 == count { source & 6 } else { source % 5 };
                if let Some(device) = self.devices.get_mut(index) {
                    device.handle(&mut self.guest, source);
                }
            }
            Step::Run => self.devices.iter_mut().for_each(|device| device.run(&mut self.guest)),
            Step::Limit { receive, transmit } => {
                let limits = |[bytes, operations]: [Burst; 2]| Limits {
                    bytes: bytes.limit(),
                    operations: operations.limit(),
                };
                self.interface.set_limits(limits(receive), limits(transmit)).unwrap();
            }
            Step::Activate(setup) => self.activate(&setup),
        }
        self.check();
    }

    fn send_from_guest(&mut self, pair: u8, readable: &[&[u8]], writable: &[usize], is_indirect: bool) {
        let pair = self.pair(pair);
        let queue = 2 * pair + 1;
        if self.guest.submit(queue, readable, writable, is_indirect).is_some()
            && let Some(traffic) = self.traffic.get_mut(pair)
        {
            traffic.sent.push_back(readable.concat());
        }
    }

    /// The host takes what it was sent. Frames may be missing, because it had no room; but those that there are come
    /// whole and in their order.
    fn take(&mut self, pair: usize) {
        let Some(traffic) = self.traffic.get_mut(pair) else { return };
        while let Ok(length) = self.hosts[pair].recv(&mut self.frame) {
            assert!((HEADER_SIZE..=MAX_FRAME).contains(&length), "a frame of {length} bytes");
            if !self.is_known {
                continue;
            }
            let frame = &self.frame[..length];
            let is_sent = std::iter::from_fn(|| traffic.sent.pop_front()).any(|sent| sent == frame);
            assert!(is_sent, "the host got a frame that the guest has not sent");
        }
    }

    fn check(&mut self) {
        self.is_known &= self.guest.is_content_known();
        if !self.is_known {
            return;
        }
        let Guest { memory, drivers, .. } = &mut self.guest;
        for (pair, traffic) in self.traffic.iter_mut().enumerate() {
            if let Some(Some(driver)) = drivers.get_mut(2 * pair + 1) {
                driver.returned.clear();
            }
            let Some(Some(driver)) = drivers.get_mut(2 * pair) else { continue };
            if 2 * pair == self.control_queue {
                driver.returned.clear();
                continue;
            }
            let mut buffers = driver.returned.drain(..).map(|returned| {
                let pieces = returned.chain.map(|chain| chain.writable).unwrap_or_default();
                let bytes = pieces.iter().flat_map(|piece| memory.read(piece.address, piece.length.into()));
                bytes.take(returned.written as usize).collect::<Vec<u8>>()
            });
            while let Some(mut frame) = buffers.next() {
                assert!(frame.len() >= HEADER_SIZE, "the first buffer holds the header");
                let count = u16::from_le_bytes([frame[NUM_BUFFERS.start], frame[NUM_BUFFERS.start + 1]]);
                assert!(count > 0);
                for _ in 1..count {
                    frame.extend(buffers.next().expect("the device has said how many buffers there are"));
                }
                let is_sent = std::iter::from_fn(|| traffic.received.pop_front()).any(|mut sent| {
                    sent[NUM_BUFFERS].copy_from_slice(&count.to_le_bytes());
                    sent == frame
                });
                assert!(is_sent, "the guest got a frame that the host has not sent");
            }
        }
    }
}

fuzz_target!(|input: Input| {
    let mut bench = Bench::new(1 + usize::from(input.pairs % 2));
    bench.activate(&input.setup);
    input.steps.into_iter().for_each(|step| bench.timed(step));
});
