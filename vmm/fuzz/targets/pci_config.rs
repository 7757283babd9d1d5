//! A guest that does anything with PCI functions: their configuration space, BARs, MSI-X tables and virtio registers.
//!
//! The devices behind them do nothing; but they hold the transport to what it has promised them.

#![no_main]

use std::cell::RefCell;
use std::io;
use std::sync::{Arc, Mutex};

use arbitrary::Arbitrary;
use innkeeper_fuzz::{Address, Memory, Steps};
use innkeeper_vmm::bus::BusDevice;
use innkeeper_vmm::interrupt::Interrupts;
use innkeeper_vmm::memory::PCI_WINDOW_START;
use innkeeper_vmm::pci::{Ecam, PciDevice, PciRoot, Window};
use innkeeper_vmm::virtio::queue::{Layout, QueueError};
use innkeeper_vmm::virtio::transport::VirtioPci;
use innkeeper_vmm::virtio::{Activation, DeviceType, VirtioDevice};
use kvm_ioctls::{Kvm, VmFd};
use libfuzzer_sys::fuzz_target;

/// Slots 1 to 3 have functions.
const FUNCTIONS: usize = 3;
const BAR_SIZE: u32 = 0x8000;
/// What each device offers besides what all do.
const FEATURES: u64 = 0b1_0000_0001;
const COMMON_FEATURES: u64 = 1 << 32 | 1 << 29 | 1 << 28;
const VERSION_1: u64 = 1 << 32;
/// Bytes of the devices' own configuration structure.
const CONFIG: &[u8] = b"configuration";

/// Fields of the common configuration structure.
mod common {
    pub const DRIVER_FEATURE_SELECT: u64 = 0x08;
    pub const DRIVER_FEATURE: u64 = 0x0c;
    pub const STATUS: u64 = 0x14;
    pub const QUEUE_SELECT: u64 = 0x16;
    pub const QUEUE_SIZE: u64 = 0x18;
    pub const QUEUE_VECTOR: u64 = 0x1a;
    pub const QUEUE_ENABLE: u64 = 0x1c;
    pub const QUEUE_DESCRIPTORS: u64 = 0x20;
    pub const QUEUE_DRIVER: u64 = 0x28;
    pub const QUEUE_DEVICE: u64 = 0x30;
}

mod status {
    pub const DRIVER_OK: u8 = 4;
    pub const FEATURES_OK: u8 = 8;
    pub const NEEDS_RESET: u8 = 64;
}

/// How wide an access is.
#[derive(Arbitrary, Clone, Copy, Debug)]
enum Width {
    One,
    Two,
    Four,
    Eight,
    Odd(u8),
}

impl Width {
    fn bytes(self) -> usize {
        match self {
            Self::One => 1,
            Self::Two => 2,
            Self::Four => 4,
            Self::Eight => 8,
            Self::Odd(width) => usize::from(width % 8) + 1,
        }
    }
}

/// A place in a function's BAR.
#[derive(Arbitrary, Clone, Copy, Debug)]
enum Register {
    Common(u8),
    Device(u8),
    Notify(u8),
    Table { entry: u8, field: u8 },
    Pending(u8),
    Any(u16),
}

impl Register {
    fn offset(self) -> u64 {
        match self {
            Self::Common(offset) => u64::from(offset % 0x40),
            Self::Device(offset) => 0x2000 + u64::from(offset % 0x20),
            Self::Notify(queue) => 0x3000 + 4 * u64::from(queue % 8),
            Self::Table { entry, field } => 0x4000 + 16 * u64::from(entry % 8) + 4 * u64::from(field % 4),
            Self::Pending(offset) => 0x5000 + u64::from(offset),
            Self::Any(offset) => u64::from(offset) % u64::from(BAR_SIZE),
        }
    }
}

#[derive(Arbitrary, Debug)]
enum Step {
    /// In configuration space, of a function or of what is none.
    Config { slot: u8, function: u8, offset: u16, width: Width, write: Option<u64> },
    /// Behind a BAR, where it is now.
    Bar { slot: u8, register: Register, width: Width, write: Option<u64> },
    /// In the window, whatever is there.
    Window { offset: u32, width: Width, write: Option<u64> },
    /// A BAR goes somewhere else, and answers there or does not.
    Move { slot: u8, to: u16, is_on: bool },
    /// By way of the configuration space, to the BAR.
    ByCapability { slot: u8, register: Register, length: u8, write: Option<u32> },
    /// A driver begins, and accepts these.
    Negotiate { slot: u8, features: u64 },
    /// It sets up a queue.
    SetUp { slot: u8, queue: u8, exponent: u8, at: Option<[Address; 3]>, vector: u16 },
    /// It adds bits to the status, or begins anew.
    Status { slot: u8, value: u8 },
    /// It is ready.
    Ready { slot: u8 },
    /// It programs a vector.
    Vector { slot: u8, entry: u8, is_usual: bool, message: u64, data: u32, is_masked: bool },
    /// It uses MSI-X, or masks all of it, or says something that means nothing.
    Msix { slot: u8, is_used: bool, is_masked: bool, rest: u8 },
    /// A driver does all that it has to do.
    Drive { slot: u8, features: u64, exponent: u8 },
    /// The device interrupts.
    Interrupt { slot: u8, queue: u8 },
    /// The device gives up.
    Fail { slot: u8 },
    /// The device's configuration changes.
    Change { slot: u8 },
    /// Its threads are to look again.
    Wake { slot: u8 },
    /// It is taken off the bus, and may come back.
    Unplug { slot: u8, comes_back: bool },
}

#[derive(Arbitrary, Debug)]
struct Input {
    /// Of each function: how many queues, and how large (2^n).
    queues: [(u8, u8); FUNCTIONS],
    steps: Steps<Step>,
}

/// What a device has been told.
#[derive(Debug, Default)]
struct Told {
    activation: Option<Activation>,
    refuses: bool,
}

/// A device that only listens.
#[derive(Debug)]
struct Listener {
    told: Arc<Mutex<Told>>,
    sizes: Vec<u16>,
}

impl VirtioDevice for Listener {
    fn device_type(&self) -> DeviceType {
        DeviceType::Block
    }

    fn features(&self) -> u64 {
        FEATURES
    }

    fn queue_sizes(&self) -> &[u16] {
        &self.sizes
    }

    fn read_config(&self, offset: usize, data: &mut [u8]) {
        for (index, byte) in data.iter_mut().enumerate() {
            *byte = CONFIG.get(offset + index).copied().unwrap_or(0);
        }
    }

    fn activate(&mut self, activation: Activation) -> io::Result<()> {
        let mut told = self.told.lock().unwrap();
        assert!(told.activation.is_none(), "a device is activated once before it is reset");
        let features = activation.features;
        assert_eq!(features & !(FEATURES | COMMON_FEATURES), 0, "only what was offered can be accepted");
        assert_ne!(features & VERSION_1, 0, "there are no old drivers");
        assert_eq!(activation.queues.len(), self.sizes.len());
        for (queue, largest) in activation.queues.iter().zip(&self.sizes) {
            let Some(queue) = queue else { continue };
            let size = queue.queue.layout().size;
            assert!(size.is_power_of_two() && size <= *largest, "a queue of {size} entries");
        }
        if told.refuses {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        told.activation = Some(activation);
        Ok(())
    }

    fn reset(&mut self) {
        self.told.lock().unwrap().activation = None;
    }
}

/// A function, and what is known of it.
struct Function {
    function: Arc<Mutex<VirtioPci>>,
    told: Arc<Mutex<Told>>,
    sizes: Vec<u16>,
    /// Configuration space as it was at first.
    original: [u8; 256],
    /// Where the window and MSI-X message control are.
    window: u64,
    msix: u64,
}

struct Bench {
    memory: Memory,
    interrupts: Arc<Interrupts>,
    vm: Arc<VmFd>,
    root: Arc<PciRoot>,
    ecam: Ecam,
    window: Window,
    functions: Vec<Function>,
}

impl Bench {
    fn new(vm: Arc<VmFd>, queues: [(u8, u8); FUNCTIONS]) -> Self {
        let root = Arc::new(PciRoot::default());
        let mut bench = Self {
            memory: Memory::default(),
            interrupts: Interrupts::new(Arc::clone(&vm)),
            vm,
            ecam: Ecam(Arc::clone(&root)),
            window: Window(Arc::clone(&root)),
            root,
            functions: Vec::new(),
        };
        for (index, (count, exponent)) in queues.into_iter().enumerate() {
            let sizes = vec![1 << (exponent % 9); usize::from(count % 5)];
            bench.insert(index, sizes);
        }
        bench
    }

    fn insert(&mut self, index: usize, sizes: Vec<u16>) {
        let told = Arc::new(Mutex::new(Told::default()));
        let device = Box::new(Listener { told: Arc::clone(&told), sizes: sizes.clone() });
        let (vm, memory) = (Arc::clone(&self.vm), Arc::clone(self.memory.shared()));
        let function = VirtioPci::new("fuzzed".into(), device, vm, &self.interrupts, memory).unwrap();
        let function = Arc::new(Mutex::new(function));
        self.root.insert(index as u8 + 1, function.clone()).unwrap();
        let read = |at: usize| {
            let mut byte = [0];
            function.lock().unwrap().config().read(at, &mut byte);
            byte[0]
        };
        // As a driver finds them (section 4.1.4).
        let (mut window, mut msix, mut at) = (0, 0, usize::from(read(0x34)));
        while at != 0 {
            match (read(at), read(at + 3)) {
                (9, 5) => window = at as u64,
                (0x11, _) => msix = at as u64 + 2,
                _ => {}
            }
            at = read(at + 1).into();
        }
        let original = std::array::from_fn(read);
        let function = Function { function, told, sizes, original, window, msix };
        if index < self.functions.len() {
            self.functions[index] = function;
        } else {
            self.functions.push(function);
        }
    }

    fn config(&self, index: usize, offset: u64) -> u64 {
        ((index as u64 + 1) << 15) + offset
    }

    /// Where the BAR of a function is in the window.
    fn base(&self, index: usize) -> u64 {
        let mut bar = [0; 4];
        self.ecam.read(self.config(index, 0x10), &mut bar);
        u64::from(u32::from_le_bytes(bar)).wrapping_sub(PCI_WINDOW_START)
    }

    fn access(device: &dyn BusDevice, offset: u64, width: Width, write: Option<u64>) {
        let mut data = write.unwrap_or(0).to_le_bytes();
        let data = &mut data[..width.bytes()];
        match write {
            Some(_) => device.write(offset, data),
            None => device.read(offset, data),
        }
    }

    fn write(&self, index: usize, register: u64, value: &[u8]) {
        self.functions[index].function.lock().unwrap().write_bar(0, register, value);
    }

    fn read<const SIZE: usize>(&self, index: usize, register: u64) -> [u8; SIZE] {
        let mut data = [0; SIZE];
        self.functions[index].function.lock().unwrap().read_bar(0, register, &mut data);
        data
    }

    fn step(&mut self, step: Step) {
        let index = |slot: u8| usize::from(slot) % FUNCTIONS;
        match step {
            Step::Config { slot, function, offset, width, write } => {
                // Nearly always one that there is.
                let function = if function > 250 { u64::from(function % 8) } else { 0 };
                let offset =
                    if offset > 0xf000 { u64::from(offset % 0x1000) } else { u64::from(offset % 0x100) };
                let at = (u64::from(slot % 6) << 15) + (function << 12) + offset;
                Self::access(&self.ecam, at, width, write);
            }
            Step::Bar { slot, register, width, write } => {
                let at = self.base(index(slot)).wrapping_add(register.offset());
                if at < 512 << 20 {
                    Self::access(&self.window, at, width, write);
                }
            }
            Step::Window { offset, width, write } => {
                Self::access(&self.window, u64::from(offset % (512 << 20)), width, write);
            }
            Step::Move { slot, to, is_on } => {
                let address = if to & 0xf000 == 0 {
                    PCI_WINDOW_START as u32 + (u32::from(to) << 15)
                } else {
                    u32::from(to) << 16
                };
                self.ecam.write(self.config(index(slot), 0x10), &address.to_le_bytes());
                self.ecam.write(self.config(index(slot), 4), &[u8::from(is_on) << 1]);
            }
            Step::ByCapability { slot, register, length, write } => {
                let window = self.functions[index(slot)].window;
                let at = |field: u64| self.config(index(slot), window + field);
                self.ecam.write(at(8), &(register.offset() as u32).to_le_bytes());
                self.ecam.write(at(12), &u32::from(length % 9).to_le_bytes());
                match write {
                    Some(value) => self.ecam.write(at(16), &value.to_le_bytes()),
                    None => self.ecam.read(at(16), &mut [0; 4]),
                }
            }
            Step::Negotiate { slot, features } => {
                let features = features & (FEATURES | COMMON_FEATURES) | VERSION_1;
                for (value, half) in [(1, features as u32), (3, (features >> 32) as u32)] {
                    self.write(index(slot), common::STATUS, &[value]);
                    self.write(
                        index(slot),
                        common::DRIVER_FEATURE_SELECT,
                        &(u32::from(value) / 2).to_le_bytes(),
                    );
                    self.write(index(slot), common::DRIVER_FEATURE, &half.to_le_bytes());
                }
                self.write(index(slot), common::STATUS, &[11]);
            }
            Step::SetUp { slot, queue, exponent, at, vector } => {
                let queue = u16::from(queue % 6);
                let base = u64::from(queue) * 0x2000;
                let [descriptors, available, used] = match at {
                    Some(addresses) => addresses.map(Address::resolve),
                    None => [base + 0x10, base + 0x1010, base + 0x1220],
                };
                let write = |register, value: &[u8]| self.write(index(slot), register, value);
                write(common::QUEUE_SELECT, &queue.to_le_bytes());
                write(common::QUEUE_SIZE, &(1u16 << (exponent % 16)).to_le_bytes());
                write(common::QUEUE_VECTOR, &(vector % 8).to_le_bytes());
                write(common::QUEUE_DESCRIPTORS, &descriptors.to_le_bytes());
                write(common::QUEUE_DRIVER, &available.to_le_bytes());
                write(common::QUEUE_DEVICE, &used.to_le_bytes());
                write(common::QUEUE_ENABLE, &[1, 0]);
            }
            Step::Status { slot, value } => {
                self.functions[index(slot)].told.lock().unwrap().refuses = value & 0x30 == 0x30;
                self.write(index(slot), common::STATUS, &[value]);
            }
            Step::Ready { slot } => self.write(index(slot), common::STATUS, &[15]),
            Step::Vector { slot, entry, is_usual, message, data, is_masked } => {
                let (address, data) = if is_usual { (0xfee0_0000, data & 0xff) } else { (message, data) };
                let control = u32::from(is_masked).to_le_bytes();
                let entry = 0x4000 + 16 * u64::from(entry % 6);
                self.write(index(slot), entry, &address.to_le_bytes());
                self.write(index(slot), entry + 8, &data.to_le_bytes());
                self.write(index(slot), entry + 12, &control);
            }
            Step::Msix { slot, is_used, is_masked, rest } => {
                let at = self.config(index(slot), self.functions[index(slot)].msix + 1);
                let control = u8::from(is_used) << 7 | u8::from(is_masked) << 6 | (rest % 64);
                self.ecam.write(at, &[control]);
            }
            Step::Drive { slot, features, exponent } => {
                self.step(Step::Status { slot, value: 0 });
                self.step(Step::Negotiate { slot, features });
                self.step(Step::Msix { slot, is_used: true, is_masked: false, rest: 0 });
                for queue in 0..self.functions[index(slot)].sizes.len() as u8 {
                    let (vector, entry) = (u16::from(queue) + 1, queue + 1);
                    self.step(Step::Vector {
                        slot,
                        entry,
                        is_usual: true,
                        message: 0,
                        data: 0x41,
                        is_masked: false,
                    });
                    self.step(Step::SetUp { slot, queue, exponent, at: None, vector });
                }
                self.step(Step::Ready { slot });
            }
            Step::Interrupt { slot, queue } => {
                let told = self.functions[index(slot)].told.lock().unwrap();
                let queues = told.activation.iter().flat_map(|activation| &activation.queues);
                let present: Vec<_> = queues.flatten().collect();
                if let Some(queue) = present.get(usize::from(queue) % present.len().max(1)) {
                    queue.interrupt.trigger();
                }
            }
            Step::Fail { slot } => {
                let told = self.functions[index(slot)].told.lock().unwrap();
                if let Some(activation) = &told.activation {
                    activation.notifier.fail(&QueueError::Layout);
                }
            }
            Step::Change { slot } => {
                let remote = self.functions[index(slot)].function.lock().unwrap().remote();
                let Ok(()) = remote.change_config(|| Ok::<_, std::convert::Infallible>(()));
            }
            Step::Wake { slot } => self.functions[index(slot)].function.lock().unwrap().remote().wake(),
            Step::Unplug { slot, comes_back } => {
                let index = index(slot);
                self.root.remove(index as u8 + 1);
                // It is off the bus, but the machine still has it.
                let function = &self.functions[index];
                function.function.lock().unwrap().stop();
                assert!(function.told.lock().unwrap().activation.is_none());
                if comes_back {
                    let sizes = function.sizes.clone();
                    self.insert(index, sizes);
                }
            }
        }
    }

    fn finish(&self) {
        for (index, Function { function, original, window, msix, .. }) in self.functions.iter().enumerate() {
            self.check(index);
            let mut now = [0; 256];
            function.lock().unwrap().config().read(0, &mut now);
            assert_eq!(now[4] & !6, 0, "a bit of the command register that does not exist");
            assert!(now[0x10] == 0 && now[0x11] & 0x7f == 0, "a BAR is where it cannot be");
            let may_change = [4..5, 0x10..0x14, 0x3c..0x3d, *window + 4..*window + 20, *msix + 1..*msix + 2];
            for range in may_change {
                let range = range.start as usize..range.end as usize;
                now[range.clone()].copy_from_slice(&original[range]);
            }
            assert!(now == *original, "a register that cannot be changed was");
        }
    }

    fn check(&self, index: usize) {
        let Function { told, sizes, .. } = &self.functions[index];
        let [status] = self.read(index, common::STATUS);
        let told = told.lock().unwrap();
        let is_ready = status & status::DRIVER_OK != 0;
        assert!(
            !is_ready || status & status::FEATURES_OK != 0,
            "a driver is ready before it has accepted features"
        );
        match &told.activation {
            Some(_) => assert!(is_ready, "a device works for a driver that is not ready"),
            None => assert!(
                !is_ready || status & status::NEEDS_RESET != 0,
                "nobody works for a driver that is ready"
            ),
        }
        let selected = self.read::<2>(index, common::QUEUE_SELECT);
        for (queue, largest) in (0u16..).zip(sizes) {
            self.write(index, common::QUEUE_SELECT, &queue.to_le_bytes());
            let layout = Layout {
                size: u16::from_le_bytes(self.read(index, common::QUEUE_SIZE)),
                descriptors: u64::from_le_bytes(self.read(index, common::QUEUE_DESCRIPTORS)),
                available: u64::from_le_bytes(self.read(index, common::QUEUE_DRIVER)),
                used: u64::from_le_bytes(self.read(index, common::QUEUE_DEVICE)),
            };
            let is_enabled = u16::from_le_bytes(self.read(index, common::QUEUE_ENABLE));
            assert!(layout.size.is_power_of_two() && layout.size <= *largest && is_enabled <= 1);
            if status == 0 {
                assert_eq!(layout, Layout { size: *largest, ..Layout::default() }, "a reset resets all");
            }
            if let Some(activation) = &told.activation {
                let active = activation.queues[usize::from(queue)].as_ref().map(|queue| queue.queue.layout());
                let shown = (is_enabled == 1).then_some(layout);
                assert_eq!(active, shown, "what a device works with never changes under it");
            }
        }
        self.write(index, common::QUEUE_SELECT, &selected);
    }
}

impl Drop for Bench {
    fn drop(&mut self) {
        // As a machine does with what it takes off the bus: KVM is to forget the doorbells.
        self.functions.iter().for_each(|function| function.function.lock().unwrap().stop());
    }
}

/// A VM for some hundred inputs: making one is slow, and one that has had thousands of interrupts is, too.
fn vm() -> Arc<VmFd> {
    const INPUTS: usize = 1000;
    thread_local! {
        static VM: RefCell<(usize, Option<Arc<VmFd>>)> = const { RefCell::new((0, None)) };
    }
    VM.with_borrow_mut(|(count, vm)| {
        *count += 1;
        if *count % INPUTS == 0 {
            *vm = None;
        }
        let vm = vm.get_or_insert_with(|| {
            let vm = Kvm::new().expect("/dev/kvm is needed").create_vm().unwrap();
            vm.create_irq_chip().unwrap();
            Arc::new(vm)
        });
        Arc::clone(vm)
    })
}

fuzz_target!(|input: Input| {
    let mut bench = Bench::new(vm(), input.queues);
    for (number, step) in input.steps.into_iter().enumerate() {
        bench.step(step);
        bench.check(number % FUNCTIONS);
    }
    bench.finish();
});
