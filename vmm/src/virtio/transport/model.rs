//! The common configuration structure beside a model of it: a driver that reads and writes whatever it likes.
//!
//! The model is sections 2.1 and 4.1.4.3, and what this transport makes of a driver that breaks their rules: a write of
//! another width than the field's is ignored, and so is one that takes bits of the status away, or comes at a time when
//! the driver must not change the field.

use std::sync::{Mutex, OnceLock};

use kvm_ioctls::Kvm;
use proptest::prelude::*;
use vm_memory::GuestAddress;

use super::*;

const MEMORY: u64 = 0x10_0000;
const QUEUE_SIZES: [u16; 3] = [16, 8, 256];
/// What the device offers by itself, and with what all devices do: VERSION_1, EVENT_IDX and INDIRECT_DESC.
const DEVICE_FEATURES: u64 = 1 << 6 | 1 << 40;
const OFFERED: u64 = DEVICE_FEATURES | 1 << 32 | 1 << 29 | 1 << 28;

const DRIVER: u8 = 2;
const DRIVER_OK: u8 = 4;
const FEATURES_OK: u8 = 8;
const NEEDS_RESET: u8 = 64;

/// What the device was told, in this order.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Call {
    Activate { features: u64, queues: Vec<Option<Layout>> },
    Reset,
}

/// Remembers what it was told.
#[derive(Debug)]
struct Recorder(Arc<Mutex<Vec<Call>>>);

impl VirtioDevice for Recorder {
    fn device_type(&self) -> DeviceType {
        DeviceType::Block
    }

    fn features(&self) -> u64 {
        DEVICE_FEATURES
    }

    fn queue_sizes(&self) -> &[u16] {
        &QUEUE_SIZES
    }

    fn activate(&mut self, activation: Activation) -> std::io::Result<()> {
        let Activation { features, queues, .. } = activation;
        let queues = queues.iter().map(|queue| queue.as_ref().map(|queue| queue.queue.layout())).collect();
        self.0.lock().unwrap().push(Call::Activate { features, queues });
        Ok(())
    }

    fn reset(&mut self) {
        self.0.lock().unwrap().push(Call::Reset);
    }
}

#[derive(Clone, Copy, Debug)]
struct ModelQueue {
    layout: Layout,
    max_size: u16,
    vector: u16,
    enable: u16,
}

impl ModelQueue {
    fn new(max_size: u16) -> Self {
        Self { layout: Layout { size: max_size, ..Layout::default() }, max_size, vector: 0xffff, enable: 0 }
    }

    /// Whether a device could work with it.
    fn is_valid(&self) -> bool {
        let Layout { size, descriptors, available, used } = self.layout;
        let size = u64::from(size);
        let is_inside = |start: u64, length| start.checked_add(length).is_some_and(|end| end <= MEMORY);
        descriptors % 16 == 0
            && available % 2 == 0
            && used % 4 == 0
            // Here, an available ring at address 0 is one that was not set up.
            && available != 0
            && is_inside(descriptors, 16 * size)
            && is_inside(available, 6 + 2 * size)
            && is_inside(used, 6 + 8 * size)
    }
}

/// The structure as a driver may expect it.
#[derive(Clone, Debug)]
struct Model {
    device_select: u32,
    driver_select: u32,
    accepted: [u32; 2],
    config_vector: u16,
    status: u8,
    generation: u8,
    queue_select: u16,
    queues: Vec<ModelQueue>,
    calls: Vec<Call>,
}

impl Model {
    fn new() -> Self {
        Self {
            device_select: 0,
            driver_select: 0,
            accepted: [0; 2],
            config_vector: 0xffff,
            status: 0,
            generation: 0,
            queue_select: 0,
            queues: QUEUE_SIZES.map(ModelQueue::new).to_vec(),
            calls: Vec::new(),
        }
    }

    fn accepted(&self) -> u64 {
        u64::from(self.accepted[1]) << 32 | u64::from(self.accepted[0])
    }

    fn bytes(&self) -> Vec<u8> {
        let offered = [OFFERED as u32, (OFFERED >> 32) as u32];
        let half = |halves: [u32; 2], select: u32| halves.get(select as usize).copied().unwrap_or(0);
        let missing = ModelQueue::new(0);
        let queue = self.queues.get(usize::from(self.queue_select)).unwrap_or(&missing);
        [
            &self.device_select.to_le_bytes()[..],
            &half(offered, self.device_select).to_le_bytes(),
            &self.driver_select.to_le_bytes(),
            &half(self.accepted, self.driver_select).to_le_bytes(),
            &self.config_vector.to_le_bytes(),
            &3u16.to_le_bytes(),
            &[self.status, self.generation],
            &self.queue_select.to_le_bytes(),
            &queue.layout.size.to_le_bytes(),
            &queue.vector.to_le_bytes(),
            &queue.enable.to_le_bytes(),
            &self.queue_select.to_le_bytes(),
            &queue.layout.descriptors.to_le_bytes(),
            &queue.layout.available.to_le_bytes(),
            &queue.layout.used.to_le_bytes(),
        ]
        .concat()
    }

    fn write(&mut self, offset: u64, data: &[u8]) {
        let value = data.iter().rev().fold(0u64, |value, byte| value << 8 | u64::from(*byte));
        // A vector for each queue, and one for the configuration.
        let vector = if value <= 3 { value as u16 } else { 0xffff };
        let has_features = self.status & FEATURES_OK != 0;
        match (offset, data.len()) {
            (0x00, 4) => self.device_select = value as u32,
            (0x08, 4) => self.driver_select = value as u32,
            (0x0c, 4) if !has_features => {
                if let Some(half) = self.accepted.get_mut(self.driver_select as usize) {
                    *half = value as u32;
                }
            }
            (0x10, 2) => self.config_vector = vector,
            (0x14, 1) => self.write_status(value as u8),
            (0x16, 2) => self.queue_select = value as u16,
            (0x18.., width) if has_features && self.status & DRIVER_OK == 0 => {
                let queue = self.queues.get_mut(usize::from(self.queue_select));
                let Some(queue) = queue.filter(|queue| queue.enable == 0) else { return };
                let low = |field: u64| field >> 32 << 32 | value;
                let high = |field: u64| field & 0xffff_ffff | value << 32;
                let layout = &mut queue.layout;
                match (offset, width) {
                    (0x18, 2) if value.is_power_of_two() && value <= u64::from(queue.max_size) => {
                        layout.size = value as u16;
                    }
                    (0x1a, 2) => queue.vector = vector,
                    (0x1c, 2) if value == 1 => queue.enable = 1,
                    (0x20, 4) => layout.descriptors = low(layout.descriptors),
                    (0x24, 4) => layout.descriptors = high(layout.descriptors),
                    (0x20, 8) => layout.descriptors = value,
                    (0x28, 4) => layout.available = low(layout.available),
                    (0x2c, 4) => layout.available = high(layout.available),
                    (0x28, 8) => layout.available = value,
                    (0x30, 4) => layout.used = low(layout.used),
                    (0x34, 4) => layout.used = high(layout.used),
                    (0x30, 8) => layout.used = value,
                    _ => {}
                }
            }
            _ => {}
        }
    }

    fn write_status(&mut self, value: u8) {
        if value == 0 {
            let (generation, mut calls) = (self.generation, std::mem::take(&mut self.calls));
            calls.push(Call::Reset);
            *self = Self { generation, calls, ..Self::new() };
            return;
        }
        let own = self.status & NEEDS_RESET;
        let before = self.status & !NEEDS_RESET;
        let mut after = value & !NEEDS_RESET;
        if before & after != before {
            return;
        }
        let accepted = self.accepted();
        let are_features_good = accepted >> 32 & 1 == 1 && accepted & !OFFERED == 0 && after & DRIVER != 0;
        if before & FEATURES_OK == 0 && !are_features_good {
            after &= !FEATURES_OK;
        }
        if before & DRIVER_OK == 0 && after & FEATURES_OK == 0 {
            after &= !DRIVER_OK;
        }
        self.status = after | own;
        if after & !before & DRIVER_OK != 0 {
            if self.queues.iter().all(|queue| queue.enable == 0 || queue.is_valid()) {
                let queues = self.queues.iter().map(|queue| (queue.enable == 1).then_some(queue.layout));
                self.calls.push(Call::Activate { features: accepted, queues: queues.collect() });
            } else {
                self.status |= NEEDS_RESET;
            }
        }
    }
}

#[derive(Clone, Debug)]
enum Step {
    Write {
        offset: u64,
        data: Vec<u8>,
    },
    /// Several writes of drivers that know what they do.
    Accept(u64),
    SetUp {
        queue: u16,
        address: u64,
    },
    ChangeConfig,
    Read {
        offset: u64,
        width: usize,
    },
}

fn field() -> impl Strategy<Value = (u64, usize)> {
    prop::sample::select(vec![
        (0x00, 4),
        (0x04, 4),
        (0x08, 4),
        (0x0c, 4),
        (0x10, 2),
        (0x12, 2),
        (0x14, 1),
        (0x15, 1),
        (0x16, 2),
        (0x18, 2),
        (0x1a, 2),
        (0x1c, 2),
        (0x1e, 2),
        (0x20, 4),
        (0x24, 4),
        (0x28, 4),
        (0x2c, 4),
        (0x30, 4),
        (0x34, 4),
        (0x20, 8),
        (0x28, 8),
        (0x30, 8),
    ])
}

fn anywhere() -> impl Strategy<Value = (u64, usize)> {
    (0u64..0x48, prop::sample::select(vec![1usize, 2, 4, 8]))
}

fn value() -> impl Strategy<Value = u64> {
    prop_oneof![4 => 0u64..20, 2 => (0u64..0x110).prop_map(|page| page << 12), 1 => any::<u64>()]
}

fn step() -> impl Strategy<Value = Step> {
    let status = |value: u8| Step::Write { offset: 0x14, data: vec![value] };
    let features = prop_oneof![
        6 => any::<u64>().prop_map(|some| some & OFFERED | 1 << 32),
        1 => Just(0u64),
        1 => any::<u64>(),
    ];
    let address = prop_oneof![
        8 => (1u64..0x30).prop_map(|page| page << 14),
        // Up to the end of memory, and over it.
        2 => (0u64..0x1000).prop_map(|back| MEMORY - 0x800 - back),
        1 => any::<u64>(),
    ];
    prop_oneof![
        6 => (prop_oneof![3 => field(), 1 => anywhere()], value()).prop_map(|((offset, width), value)| {
            Step::Write { offset, data: value.to_le_bytes()[..width].to_vec() }
        }),
        4 => prop::sample::select(vec![1u8, 3, 11, 11, 15, 15, 0, 64, 79, 128, 143]).prop_map(status),
        1 => any::<u8>().prop_map(status),
        2 => features.prop_map(Step::Accept),
        4 => (0u16..4, address).prop_map(|(queue, address)| Step::SetUp { queue, address }),
        1 => Just(Step::ChangeConfig),
        4 => prop_oneof![field(), anywhere()].prop_map(|(offset, width)| Step::Read { offset, width }),
    ]
}

/// The device, and the model of it.
struct World {
    function: VirtioPci,
    calls: Arc<Mutex<Vec<Call>>>,
    model: Model,
}

impl World {
    fn new() -> Self {
        // A VM takes longer to make than all that is done with it here.
        static VM: OnceLock<Arc<VmFd>> = OnceLock::new();
        let vm = VM.get_or_init(|| {
            let vm = Kvm::new().unwrap().create_vm().unwrap();
            vm.create_irq_chip().unwrap();
            Arc::new(vm)
        });
        let calls = Arc::default();
        let device = Box::new(Recorder(Arc::clone(&calls)));
        let memory = Arc::new(GuestMemory::from_ranges(&[(GuestAddress(0), MEMORY as usize)]).unwrap());
        let interrupts = Interrupts::new(Arc::clone(vm));
        let function = VirtioPci::new("test".into(), device, Arc::clone(vm), &interrupts, memory).unwrap();
        Self { function, calls, model: Model::new() }
    }

    fn write(&mut self, offset: u64, data: &[u8]) {
        self.function.write_bar(BAR, offset, data);
        self.model.write(offset, data);
    }

    fn read(&mut self, offset: u64, width: usize) -> Result<(), TestCaseError> {
        let mut data = vec![0x5a; width];
        self.function.read_bar(BAR, offset, &mut data);
        let bytes = self.model.bytes();
        // Behind the structure there is nothing.
        let byte = |at| bytes.get(at).copied().unwrap_or(0);
        let expected: Vec<u8> = (offset as usize..offset as usize + width).map(byte).collect();
        prop_assert_eq!(data, expected, "{:#x}+{}", offset, width);
        Ok(())
    }

    fn run(&mut self, step: Step) -> Result<(), TestCaseError> {
        match step {
            Step::Write { offset, data } => self.write(offset, &data),
            Step::Accept(features) => {
                for half in 0..2u32 {
                    self.write(0x08, &half.to_le_bytes());
                    self.write(0x0c, &((features >> (32 * half)) as u32).to_le_bytes());
                }
            }
            Step::SetUp { queue, address } => {
                self.write(0x16, &queue.to_le_bytes());
                for (field, at) in [(0x20, address), (0x28, address.wrapping_add(0x400)), (0x30, address)] {
                    self.write(field, &at.to_le_bytes());
                }
                self.write(0x1c, &[1, 0]);
            }
            Step::ChangeConfig => {
                let Ok(()) = self.function.remote().change_config(|| Ok::<_, std::convert::Infallible>(()));
                // Before and after the change.
                self.model.generation = self.model.generation.wrapping_add(2);
            }
            Step::Read { offset, width } => self.read(offset, width)?,
        }
        self.read(0, 0x38)
    }
}

proptest! {
    /// Whatever a driver does: it reads what was expected, and the device is told nothing but what makes sense.
    #[test]
    fn a_driver_finds_the_structure_as_specified(steps in prop::collection::vec(step(), 1..80)) {
        let mut world = World::new();
        for step in steps {
            world.run(step)?;
        }
        prop_assert_eq!(&*world.calls.lock().unwrap(), &world.model.calls);
    }
}
