//! Property tests of the queue against a model: a driver that works by the book, in any order of events, and one that
//! writes whatever it likes.

use std::collections::BTreeMap;

use proptest::prelude::*;
use virtio_bindings::virtio_ring::{
    VRING_AVAIL_F_NO_INTERRUPT, VRING_DESC_F_INDIRECT, VRING_DESC_F_NEXT, VRING_DESC_F_WRITE,
    VRING_USED_F_NO_NOTIFY,
};
use virtio_queue::QueueT;
use virtio_queue::desc::RawDescriptor;
use virtio_queue::desc::split::Descriptor;
use vm_memory::{Bytes, GuestAddress};

use super::{Layout, Queue, QueueError};
use crate::memory::GuestMemory;

const MEMORY_SIZE: usize = 0x2_0000;
const DESCRIPTORS: u64 = 0x1000;
const AVAILABLE: u64 = 0x2000;
const USED: u64 = 0x3000;
/// Where indirect tables are, by head, and buffers, by head and position.
const TABLES: u64 = 0x4000;
const BUFFERS: u64 = 0x8000;
const BUFFER_SIZE: u64 = 0x100;
const MAX_SIZE: u16 = 16;
/// The longest chain that the driver makes.
const MAX_CHAIN: usize = 5;

/// A chain: how long its readable and its writable buffers are.
#[derive(Clone, Debug)]
struct Shape {
    readable: Vec<u16>,
    writable: Vec<u16>,
    is_indirect: bool,
}

fn shapes() -> impl Strategy<Value = Shape> {
    let lengths = || prop::collection::vec(0..BUFFER_SIZE as u16, 0..=MAX_CHAIN);
    (lengths(), lengths(), any::<bool>()).prop_map(|(mut readable, mut writable, is_indirect)| {
        writable.truncate(MAX_CHAIN - readable.len());
        if readable.is_empty() && writable.is_empty() {
            readable.push(1);
        }
        Shape { readable, writable, is_indirect }
    })
}

/// What happens next.
#[derive(Clone, Debug)]
enum Step {
    /// The driver adds chains, as far as there is room, and rings if it has to.
    Add(Vec<Shape>),
    /// The device, if it is awake, takes this many chains, and goes to sleep if there are fewer. While it turns in, the
    /// driver adds some.
    Take(usize, Vec<Shape>),
    /// The device gives back this many of the chains it has, beginning anywhere, and interrupts if it has to.
    GiveBack(usize, prop::sample::Index),
    /// The driver, if it is awake, takes what has come back, and goes to sleep.
    Collect,
}

fn steps() -> impl Strategy<Value = Step> {
    prop_oneof![
        prop::collection::vec(shapes(), 1..4).prop_map(Step::Add),
        (1usize..6, prop::collection::vec(shapes(), 0..2)).prop_map(|(count, late)| Step::Take(count, late)),
        (1usize..6, any::<prop::sample::Index>()).prop_map(|(count, first)| Step::GiveBack(count, first)),
        Just(Step::Collect),
    ]
}

/// Content that no two buffers share.
fn content(head: u16, position: usize, round: u16, length: usize) -> Vec<u8> {
    (0..length)
        .map(|at| (at as u16 ^ (head << 3) ^ (position as u16) ^ round.wrapping_mul(37)) as u8)
        .collect()
}

/// Both sides of a queue, and what each knows.
struct World {
    memory: GuestMemory,
    queue: Queue,
    layout: Layout,
    event_idx: bool,
    free: Vec<u16>,
    available: u16,
    used: u16,
    /// Chains that the driver has submitted, by head: the shape, the descriptors, and the number of the submission.
    submitted: BTreeMap<u16, (Shape, Vec<u16>, u16)>,
    /// In the order of their submission.
    expected: Vec<u16>,
    /// What the device has.
    taken: Vec<u16>,
    /// What the device has given back: the head, and how much it has written.
    given_back: Vec<(u16, u32)>,
    is_device_awake: bool,
    is_driver_awake: bool,
}

impl World {
    /// `start` is the index that the rings are at.
    fn new(size: u16, event_idx: bool, start: u16) -> Self {
        let memory = GuestMemory::from_ranges(&[(GuestAddress(0), MEMORY_SIZE)]).unwrap();
        let layout = Layout { size, descriptors: DESCRIPTORS, available: AVAILABLE, used: USED };
        let mut queue = Queue::new(layout, MAX_SIZE, event_idx, &memory).unwrap();
        queue.ring.set_next_avail(start);
        queue.ring.set_next_used(start);
        let world = Self {
            memory,
            queue,
            layout,
            event_idx,
            free: (0..size).collect(),
            available: start,
            used: start,
            submitted: BTreeMap::new(),
            expected: Vec::new(),
            taken: Vec::new(),
            given_back: Vec::new(),
            is_device_awake: true,
            is_driver_awake: true,
        };
        world.write(AVAILABLE + 2, start);
        world.write(USED + 2, start);
        world
    }

    fn write(&self, address: u64, value: u16) {
        self.memory.write_obj(value, GuestAddress(address)).unwrap();
    }

    fn read(&self, address: u64) -> u16 {
        self.memory.read_obj(GuestAddress(address)).unwrap()
    }

    fn buffer(head: u16, position: usize) -> u64 {
        BUFFERS + (u64::from(head) * MAX_CHAIN as u64 + position as u64) * BUFFER_SIZE
    }

    /// The device's word on when it wants to be rung (section 2.7.7), and the driver's on interrupts.
    fn avail_event(&self) -> u16 {
        self.read(USED + 4 + 8 * u64::from(self.layout.size))
    }

    fn put_head(&mut self, head: u16) {
        let slot = u64::from(self.available % self.layout.size);
        self.write(AVAILABLE + 4 + 2 * slot, head);
        self.available = self.available.wrapping_add(1);
    }

    fn add(&mut self, shapes: Vec<Shape>) {
        let before = self.available;
        for shape in shapes {
            let length = shape.readable.len() + shape.writable.len();
            let needed = if shape.is_indirect { 1 } else { length };
            if self.free.len() < needed {
                continue;
            }
            let descriptors = self.free.split_off(self.free.len() - needed);
            let head = descriptors[0];
            let round = self.available;
            let table = TABLES + u64::from(head) * 16 * MAX_CHAIN as u64;
            for position in 0..length {
                let is_readable = position < shape.readable.len();
                let size = if is_readable {
                    shape.readable[position]
                } else {
                    shape.writable[position - shape.readable.len()]
                };
                let address = Self::buffer(head, position);
                let filling = if is_readable {
                    content(head, position, round, size.into())
                } else {
                    vec![0; size.into()]
                };
                self.memory.write_slice(&filling, GuestAddress(address)).unwrap();
                let mut flags = if is_readable { 0 } else { VRING_DESC_F_WRITE };
                let is_last = position + 1 == length;
                flags |= if is_last { 0 } else { VRING_DESC_F_NEXT };
                let (at, next) = if shape.is_indirect {
                    (table + 16 * position as u64, position as u16 + 1)
                } else {
                    let next = descriptors.get(position + 1).copied().unwrap_or(0);
                    (DESCRIPTORS + 16 * u64::from(descriptors[position]), next)
                };
                let descriptor = Descriptor::new(address, size.into(), flags as u16, next);
                self.memory.write_obj(RawDescriptor::from(descriptor), GuestAddress(at)).unwrap();
            }
            if shape.is_indirect {
                let descriptor = Descriptor::new(table, 16 * length as u32, VRING_DESC_F_INDIRECT as u16, 0);
                let at = GuestAddress(DESCRIPTORS + 16 * u64::from(head));
                self.memory.write_obj(RawDescriptor::from(descriptor), at).unwrap();
            }
            self.put_head(head);
            self.submitted.insert(head, (shape, descriptors, round));
            self.expected.push(head);
        }
        self.write(AVAILABLE + 2, self.available);
        let wants_bell = if self.event_idx {
            let passed = self.available.wrapping_sub(self.avail_event()).wrapping_sub(1);
            passed < self.available.wrapping_sub(before)
        } else {
            u32::from(self.read(USED)) & VRING_USED_F_NO_NOTIFY == 0
        };
        self.is_device_awake |= wants_bell && self.available != before;
    }

    fn take(&mut self, count: usize, late: Vec<Shape>) {
        if !self.is_device_awake {
            return;
        }
        self.queue.disable_doorbell(&self.memory).unwrap();
        let (mut count, mut late) = (count, late);
        while count > 0 {
            let is_empty = self.queue.is_empty(&self.memory).unwrap();
            let Some(chain) = self.queue.pop(&self.memory).unwrap() else {
                assert!(is_empty);
                self.add(std::mem::take(&mut late));
                if self.queue.enable_doorbell(&self.memory).unwrap() {
                    continue;
                }
                self.is_device_awake = false;
                return;
            };
            assert!(!is_empty);
            assert_eq!(chain.head, self.expected.remove(0), "in the order of submission");
            let (shape, _, round) = &self.submitted[&chain.head];
            let sent: Vec<u8> = (0..)
                .zip(&shape.readable)
                .flat_map(|(position, size)| content(chain.head, position, *round, (*size).into()))
                .collect();
            let mut received = vec![0; chain.readable.len()];
            chain.readable.copy_to(&mut received);
            assert_eq!(received, sent);
            let room: usize = shape.writable.iter().map(|size| usize::from(*size)).sum();
            assert_eq!(chain.writable.len(), room);
            assert_eq!(chain.writable.copy_from(&content(chain.head, 99, *round, room)), room);
            self.taken.push(chain.head);
            count -= 1;
        }
    }

    fn give_back(&mut self, count: usize, which: impl Fn(usize) -> usize) {
        for _ in 0..count.min(self.taken.len()) {
            let head = self.taken.remove(which(self.taken.len()));
            let written = u32::from(head) + 7;
            self.queue.push(&self.memory, head, written).unwrap();
            self.given_back.push((head, written));
        }
        self.is_driver_awake |= self.queue.needs_interrupt(&self.memory).unwrap();
    }

    fn collect(&mut self) {
        if !self.is_driver_awake {
            return;
        }
        if !self.event_idx {
            self.write(AVAILABLE, VRING_AVAIL_F_NO_INTERRUPT as u16);
        }
        while self.read(USED + 2) != self.used {
            let at = USED + 4 + 8 * u64::from(self.used % self.layout.size);
            let element: [u32; 2] = self.memory.read_obj(GuestAddress(at)).unwrap();
            self.used = self.used.wrapping_add(1);
            let (head, written) = self.given_back.remove(0);
            assert_eq!(element, [u32::from(head), written], "once, and in the order it was given back");
            let (shape, descriptors, round) = self.submitted.remove(&head).unwrap();
            let mut received = Vec::new();
            for (position, size) in (shape.readable.len()..).zip(&shape.writable) {
                let mut buffer = vec![0; (*size).into()];
                self.memory.read_slice(&mut buffer, GuestAddress(Self::buffer(head, position))).unwrap();
                received.extend(buffer);
            }
            assert_eq!(received, content(head, 99, round, received.len()));
            self.free.extend(descriptors);
        }
        if self.event_idx {
            self.write(AVAILABLE + 4 + 2 * u64::from(self.layout.size), self.used);
        } else {
            self.write(AVAILABLE, 0);
        }
        self.is_driver_awake = false;
    }

    fn run(&mut self, step: Step) {
        match step {
            Step::Add(shapes) => self.add(shapes),
            Step::Take(count, late) => self.take(count, late),
            Step::GiveBack(count, first) => self.give_back(count, |length| first.index(length)),
            Step::Collect => self.collect(),
        }
    }
}

proptest! {
    /// What goes in comes out, once and in order; and nobody sleeps while there is something for him.
    #[test]
    fn chains_make_their_way(
        size in prop::sample::select(vec![1u16, 2, 4, 8, 16]),
        event_idx: bool,
        start in prop_oneof![Just(0u16), 65_500u16..=65_535],
        steps in prop::collection::vec(steps(), 1..120),
    ) {
        let mut world = World::new(size, event_idx, start);
        for step in steps {
            world.run(step);
        }
        // Both go on for as long as they are awake.
        for _ in 0..2 {
            world.take(usize::MAX, Vec::new());
            world.give_back(usize::MAX, |_| 0);
            world.collect();
        }
        prop_assert!(world.submitted.is_empty(), "{:?} never came back", world.submitted);
        prop_assert_eq!(world.free.len(), usize::from(size));
    }

    /// A chain that the device has is refused when it comes again, whatever happened before.
    #[test]
    fn nothing_is_taken_twice(
        event_idx: bool,
        start: u16,
        steps in prop::collection::vec(steps(), 1..60),
        which: prop::sample::Index,
    ) {
        let mut world = World::new(MAX_SIZE, event_idx, start);
        for step in steps {
            world.run(step);
        }
        // However it went, the device has something in the end.
        (world.is_device_awake, world.is_driver_awake) = (true, true);
        world.collect();
        world.add(vec![Shape { readable: vec![1], writable: Vec::new(), is_indirect: false }]);
        world.take(usize::MAX, Vec::new());
        let head = *which.get(&world.taken);
        world.put_head(head);
        world.write(AVAILABLE + 2, world.available);
        let result = world.queue.pop(&world.memory);
        prop_assert!(matches!(result, Err(QueueError::InFlight(refused)) if refused == head), "{:?}", result);
    }

    /// Rings full of anything give chains of memory that exists, or errors, and come to an end.
    #[test]
    fn nonsense_does_no_harm(
        event_idx: bool,
        index: u16,
        heads in prop::collection::vec(0u16..20, 16),
        table in prop::collection::vec(
            (prop_oneof![0u64..0x2_1000, any::<u64>()], prop_oneof![0u32..0x800, any::<u32>()], 0u16..8, 0u16..20),
            16,
        ),
    ) {
        let mut world = World::new(MAX_SIZE, event_idx, 0);
        for (index, (address, length, flags, next)) in (0..).zip(table) {
            let descriptor = RawDescriptor::from(Descriptor::new(address, length, flags, next));
            world.memory.write_obj(descriptor, GuestAddress(DESCRIPTORS + 16 * index)).unwrap();
        }
        for head in heads {
            world.put_head(head);
        }
        world.write(AVAILABLE + 2, index % 24);
        let mut seen = Vec::new();
        while let Ok(Some(chain)) = world.queue.pop(&world.memory) {
            prop_assert!(!seen.contains(&chain.head));
            let slices = chain.readable.slices().len() + chain.writable.slices().len();
            prop_assert!(slices <= usize::from(MAX_SIZE));
            prop_assert!(chain.readable.len() + chain.writable.len() <= MEMORY_SIZE * usize::from(MAX_SIZE));
            seen.push(chain.head);
        }
        prop_assert!(seen.len() <= usize::from(MAX_SIZE));
    }
}
