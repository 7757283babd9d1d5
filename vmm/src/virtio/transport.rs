//! Virtio over PCI, modern transport only (section 4.1).
//!
//! One BAR holds all structures, each in a page of its own. Queue registers can only be changed between
//! FEATURES_OK and DRIVER_OK: what a device works with never changes under it. Doorbells are ioeventfds,
//! registered when a device is activated, so that a machine whose devices are not used pays nothing.

#[cfg(test)]
mod model;

use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use innkeeper_protocol::DriverState;
use kvm_ioctls::{IoEventAddress, NoDatamatch, VmFd};
use virtio_bindings::virtio_config::VIRTIO_F_VERSION_1;
use virtio_bindings::virtio_ring::VIRTIO_RING_F_EVENT_IDX;
use vmm_sys_util::eventfd::EventFd;

use super::queue::{Layout, Queue};
use super::{
    Activation, ActiveQueue, COMMON_FEATURES, DeviceType, NO_VECTOR, Notifier, QueueInterrupt, VirtioDevice,
    read_bytes, status,
};
use crate::event;
use crate::interrupt::{self, Interrupts};
use crate::memory::GuestMemory;
use crate::pci::msix::{self, Msix};
use crate::pci::{CapabilityId, ConfigSpace, Identity, PciDevice};

const BAR: usize = 0;
const BAR_SIZE: u32 = 0x8000;

/// Structures in the BAR: offset and size in bytes.
mod region {
    pub const COMMON: (u32, u32) = (0x0000, 0x38);
    pub const ISR: (u32, u32) = (0x1000, 1);
    pub const DEVICE: (u32, u32) = (0x2000, 0x1000);
    pub const NOTIFY: (u32, u32) = (0x3000, 0x1000);
    pub const MSIX_TABLE: (u32, u32) = (0x4000, 0x1000);
    pub const MSIX_PENDING: (u32, u32) = (0x5000, 0x1000);
}

/// Bytes from one queue's doorbell to the next.
const NOTIFY_MULTIPLIER: u32 = 4;
/// What fits in the MSI-X table's page, with a vector for configuration changes.
const MAX_QUEUES: usize = 0x1000 / msix::ENTRY_SIZE - 1;

/// The structures a device has, by their numbers in a capability (section 4.1.4).
#[derive(Clone, Copy)]
#[repr(u8)]
enum Structure {
    Common = 1,
    Notify = 2,
    Isr = 3,
    Device = 4,
    BarWindow = 5,
}

/// Fields of the common configuration structure (section 4.1.4.3).
mod common {
    pub const DEVICE_FEATURE_SELECT: u64 = 0x00;
    pub const DRIVER_FEATURE_SELECT: u64 = 0x08;
    pub const DRIVER_FEATURE: u64 = 0x0c;
    pub const CONFIG_VECTOR: u64 = 0x10;
    pub const STATUS: u64 = 0x14;
    pub const QUEUE_SELECT: u64 = 0x16;
    pub const QUEUE_SIZE: u64 = 0x18;
    pub const QUEUE_VECTOR: u64 = 0x1a;
    pub const QUEUE_ENABLE: u64 = 0x1c;
    pub const QUEUE_DESCRIPTORS: u64 = 0x20;
    pub const QUEUE_DRIVER: u64 = 0x28;
    pub const QUEUE_DEVICE: u64 = 0x30;
}

/// A virtio device as a PCI function.
#[derive(Debug)]
pub struct VirtioPci {
    config: ConfigSpace,
    /// Where in configuration space MSI-X message control is, and the window into the BAR.
    msix_control: usize,
    bar_window: usize,
    msix: Msix,
    device: Box<dyn VirtioDevice>,
    registers: Registers,
    queues: Vec<QueueRegisters>,
    notifier: Arc<Notifier>,
    doorbells: Doorbells,
    memory: Arc<GuestMemory>,
}

/// The registers that are not a queue's.
#[derive(Debug, Default)]
struct Registers {
    device_feature_select: u32,
    driver_feature_select: u32,
    driver_features: u64,
    queue_select: u16,
}

#[derive(Clone, Copy, Debug)]
struct QueueRegisters {
    layout: Layout,
    max_size: u16,
    vector: u16,
    is_enabled: bool,
}

impl QueueRegisters {
    fn new(max_size: u16) -> Self {
        let layout = Layout { size: max_size, ..Default::default() };
        Self { layout, max_size, vector: NO_VECTOR, is_enabled: false }
    }
}

impl VirtioPci {
    /// Puts `device` on the PCI bus of `vm`. `name` is for logs.
    pub fn new(
        name: String,
        device: Box<dyn VirtioDevice>,
        vm: Arc<VmFd>,
        interrupts: &Arc<Interrupts>,
        memory: Arc<GuestMemory>,
    ) -> Result<Self, interrupt::Error> {
        let queues: Vec<_> = device.queue_sizes().iter().map(|size| QueueRegisters::new(*size)).collect();
        debug_assert!(queues.len() <= MAX_QUEUES);
        let vectors = queues.len() as u16 + 1;
        let msix = Msix::new(interrupts, vectors)?;
        let notifier = Arc::new(Notifier::new(name, msix.vectors()));
        let mut config = ConfigSpace::new(identity(device.device_type()));
        config.add_bar(BAR, BAR_SIZE);
        for (kind, region) in [
            (Structure::Common, region::COMMON),
            (Structure::Isr, region::ISR),
            (Structure::Device, region::DEVICE),
        ] {
            config.add_capability(CapabilityId::Vendor, &structure(kind, region, &[]), &[]);
        }
        let multiplier = NOTIFY_MULTIPLIER.to_le_bytes();
        let notify = structure(Structure::Notify, region::NOTIFY, &multiplier);
        config.add_capability(CapabilityId::Vendor, &notify, &[]);
        let bar_window = add_bar_window(&mut config);
        let [low, high] = msix::CONTROL_WRITABLE.to_le_bytes();
        let msix_control = config.add_capability(
            CapabilityId::Msix,
            &Msix::capability(vectors, BAR as u32, region::MSIX_TABLE.0, region::MSIX_PENDING.0),
            &[low, high],
        );
        Ok(Self {
            config,
            msix_control,
            bar_window,
            msix,
            device,
            registers: Registers::default(),
            queues,
            notifier,
            doorbells: Doorbells { vm, bells: Arc::default(), base: None },
            memory,
        })
    }

    /// What can be done to the device without waiting for whoever has it in hand.
    pub fn remote(&self) -> Remote {
        Remote { notifier: Arc::clone(&self.notifier), bells: Arc::clone(&self.doorbells.bells) }
    }

    /// Stops the device, for good, when it is taken off the bus. Waits for requests that are under way.
    pub fn stop(&mut self) {
        self.reset();
    }

    fn status(&self) -> u8 {
        self.notifier.status.load(Ordering::SeqCst)
    }

    fn offered_features(&self) -> u64 {
        self.device.features() | COMMON_FEATURES
    }

    fn selected_queue(&self) -> Option<&QueueRegisters> {
        self.queues.get(usize::from(self.registers.queue_select))
    }

    /// The common configuration structure as the driver reads it.
    fn common(&self) -> [u8; region::COMMON.1 as usize] {
        let registers = &self.registers;
        let half = |features: u64, select: u32| match select {
            0 => features as u32,
            1 => (features >> 32) as u32,
            _ => 0,
        };
        let offered = half(self.offered_features(), registers.device_feature_select);
        let accepted = half(registers.driver_features, registers.driver_feature_select);
        // A queue that does not exist has size 0 (section 4.1.4.3).
        let none = QueueRegisters { vector: NO_VECTOR, ..QueueRegisters::new(0) };
        let queue = self.selected_queue().unwrap_or(&none);
        let config_vector = self.notifier.config_vector.load(Ordering::SeqCst);
        let queue_count = self.queues.len() as u16;
        let generation = self.notifier.config_generation.load(Ordering::SeqCst);

        let mut bytes = [0; region::COMMON.1 as usize];
        let mut rest = &mut bytes[..];
        let mut put = |field: &[u8]| {
            let (head, tail) = std::mem::take(&mut rest).split_at_mut(field.len());
            head.copy_from_slice(field);
            rest = tail;
        };
        put(&registers.device_feature_select.to_le_bytes());
        put(&offered.to_le_bytes());
        put(&registers.driver_feature_select.to_le_bytes());
        put(&accepted.to_le_bytes());
        put(&config_vector.to_le_bytes());
        put(&queue_count.to_le_bytes());
        put(&[self.status(), generation]);
        put(&registers.queue_select.to_le_bytes());
        put(&queue.layout.size.to_le_bytes());
        put(&queue.vector.to_le_bytes());
        put(&u16::from(queue.is_enabled).to_le_bytes());
        put(&registers.queue_select.to_le_bytes()); // queue_notify_off: doorbells are in the queues' order
        put(&queue.layout.descriptors.to_le_bytes());
        put(&queue.layout.available.to_le_bytes());
        put(&queue.layout.used.to_le_bytes());
        bytes
    }

    fn write_common(&mut self, offset: u64, data: &[u8]) {
        match (offset, data) {
            (common::DEVICE_FEATURE_SELECT, &[a, b, c, d]) => {
                self.registers.device_feature_select = u32::from_le_bytes([a, b, c, d]);
            }
            (common::DRIVER_FEATURE_SELECT, &[a, b, c, d]) => {
                self.registers.driver_feature_select = u32::from_le_bytes([a, b, c, d]);
            }
            (common::DRIVER_FEATURE, &[a, b, c, d]) => self.accept_features(u32::from_le_bytes([a, b, c, d])),
            (common::CONFIG_VECTOR, &[a, b]) => {
                let vector = self.existing_vector(u16::from_le_bytes([a, b]));
                self.notifier.config_vector.store(vector, Ordering::SeqCst);
            }
            (common::STATUS, &[value]) => self.set_status(value),
            (common::QUEUE_SELECT, &[a, b]) => self.registers.queue_select = u16::from_le_bytes([a, b]),
            _ => self.write_queue(offset, data),
        }
    }

    fn accept_features(&mut self, half: u32) {
        if self.status() & status::FEATURES_OK != 0 {
            return;
        }
        let (mask, value) = match self.registers.driver_feature_select {
            0 => (u64::from(u32::MAX), u64::from(half)),
            1 => (u64::from(u32::MAX) << 32, u64::from(half) << 32),
            _ => return,
        };
        self.registers.driver_features = self.registers.driver_features & !mask | value;
    }

    fn existing_vector(&self, vector: u16) -> u16 {
        if self.notifier.vector(vector).is_some() { vector } else { NO_VECTOR }
    }

    /// Writes a register of the selected queue, if queues can be configured at present.
    fn write_queue(&mut self, offset: u64, data: &[u8]) {
        let is_open = self.status() & (status::FEATURES_OK | status::DRIVER_OK) == status::FEATURES_OK;
        let vector = match *data {
            [a, b] => self.existing_vector(u16::from_le_bytes([a, b])),
            _ => NO_VECTOR,
        };
        let select = usize::from(self.registers.queue_select);
        let Some(queue) = self.queues.get_mut(select).filter(|queue| is_open && !queue.is_enabled) else {
            return;
        };
        match (offset, data) {
            (common::QUEUE_SIZE, &[a, b]) => {
                let size = u16::from_le_bytes([a, b]);
                if size.is_power_of_two() && size <= queue.max_size {
                    queue.layout.size = size;
                }
            }
            (common::QUEUE_VECTOR, &[_, _]) => queue.vector = vector,
            (common::QUEUE_ENABLE, &[1, 0]) => queue.is_enabled = true,
            (common::QUEUE_DESCRIPTORS..0x28, _) => {
                write_address(&mut queue.layout.descriptors, offset, data)
            }
            (common::QUEUE_DRIVER..0x30, _) => write_address(&mut queue.layout.available, offset, data),
            (common::QUEUE_DEVICE..0x38, _) => write_address(&mut queue.layout.used, offset, data),
            _ => {}
        }
    }

    /// The driver's side of the status field (section 2.1.1): bits are added one after the other, and all
    /// are taken away at once by a reset.
    fn set_status(&mut self, value: u8) {
        if value == 0 {
            return self.reset();
        }
        let current = self.status() & !status::NEEDS_RESET;
        let added = value & !current & !status::NEEDS_RESET;
        if current & !value != 0 || added == 0 {
            return;
        }
        let mut accepted = added;
        if added & status::FEATURES_OK != 0 && !self.can_accept_features(current | added) {
            accepted &= !status::FEATURES_OK;
        }
        if added & status::DRIVER_OK != 0 && (current | accepted) & status::FEATURES_OK == 0 {
            accepted &= !status::DRIVER_OK;
        }
        self.notifier.status.fetch_or(accepted, Ordering::SeqCst);
        if accepted & status::DRIVER_OK != 0 {
            self.activate();
        }
        if accepted & status::FAILED != 0 {
            tracing::debug!(device = ?self.device.device_type(), "the driver gave up");
        }
    }

    fn can_accept_features(&self, status: u8) -> bool {
        let features = self.registers.driver_features;
        let is_modern = features >> VIRTIO_F_VERSION_1 & 1 == 1;
        is_modern && features & !self.offered_features() == 0 && status & status::DRIVER != 0
    }

    fn activate(&mut self) {
        if let Err(error) = self.try_activate() {
            self.notifier.fail(error.as_ref());
        }
    }

    fn try_activate(&mut self) -> Result<(), Box<dyn std::error::Error>> {
        let features = self.registers.driver_features;
        let event_idx = features >> VIRTIO_RING_F_EVENT_IDX & 1 == 1;
        let mut queues = Vec::with_capacity(self.queues.len());
        let mut doorbells = Vec::with_capacity(self.queues.len());
        for registers in &self.queues {
            if !registers.is_enabled {
                queues.push(None);
                doorbells.push(None);
                continue;
            }
            let queue = Queue::new(registers.layout, registers.max_size, event_idx, &self.memory)?;
            let doorbell = event::new()?;
            let interrupt = QueueInterrupt(self.notifier.vector(registers.vector).cloned());
            // A driver may have made buffers available before it said that it is ready.
            doorbell.write(1)?;
            doorbells.push(Some(doorbell.try_clone()?));
            queues.push(Some(ActiveQueue { queue, doorbell, interrupt }));
        }
        self.doorbells.bells.set(doorbells);
        self.place_doorbells();
        self.device.activate(Activation {
            memory: Arc::clone(&self.memory),
            features,
            queues,
            notifier: Arc::clone(&self.notifier),
        })?;
        Ok(())
    }

    fn reset(&mut self) {
        self.device.reset();
        self.doorbells.place(None);
        self.doorbells.bells.set(Vec::new());
        self.registers = Registers::default();
        for queue in &mut self.queues {
            *queue = QueueRegisters::new(queue.max_size);
        }
        self.notifier.config_vector.store(NO_VECTOR, Ordering::SeqCst);
        // Last: a driver that reads 0 may reuse the memory (section 2.4.1).
        self.notifier.status.store(0, Ordering::SeqCst);
    }

    /// Lets KVM listen where the BAR is now.
    fn place_doorbells(&mut self) {
        let base =
            self.config.mapped_bars().first().map(|(_, address, _)| address + u64::from(region::NOTIFY.0));
        self.doorbells.place(base);
    }

    /// The BAR access that the window capability asks for: offset and length (section 4.1.4.9).
    fn window_access(&self) -> Option<(u64, usize)> {
        const BAR_FIELD: usize = 2;
        const OFFSET_FIELD: usize = 6;
        const LENGTH_FIELD: usize = 10;
        let mut bar = [0];
        self.config.read(self.bar_window + BAR_FIELD, &mut bar);
        let offset = self.config.dword(self.bar_window + OFFSET_FIELD);
        let length = self.config.dword(self.bar_window + LENGTH_FIELD);
        let fits = matches!(length, 1 | 2 | 4)
            && offset.is_multiple_of(length)
            && offset.checked_add(length).is_some_and(|end| end <= BAR_SIZE);
        (fits && usize::from(bar[0]) == BAR).then_some((u64::from(offset), length as usize))
    }

    fn window_data(&self) -> std::ops::Range<usize> {
        const DATA_FIELD: usize = 14;
        self.bar_window + DATA_FIELD..self.bar_window + DATA_FIELD + 4
    }
}

impl PciDevice for VirtioPci {
    fn config(&self) -> &ConfigSpace {
        &self.config
    }

    fn config_mut(&mut self) -> &mut ConfigSpace {
        &mut self.config
    }

    fn read_config(&mut self, offset: usize, data: &mut [u8]) {
        if offset == self.window_data().start
            && let Some((at, length)) = self.window_access()
        {
            let mut bytes = [0; 4];
            self.read_bar(BAR, at, &mut bytes[..length]);
            let count = data.len().min(bytes.len());
            data[..count].copy_from_slice(&bytes[..count]);
            return;
        }
        self.config.read(offset, data);
    }

    fn write_config(&mut self, offset: usize, data: &[u8]) {
        self.config.write(offset, data);
        if offset == self.window_data().start
            && let Some((at, length)) = self.window_access()
            && data.len() >= length
        {
            self.write_bar(BAR, at, &data[..length]);
        }
        self.msix.set_control(self.config.word(self.msix_control));
        if !self.doorbells.bells.lock().is_empty() {
            self.place_doorbells();
        }
    }

    fn read_bar(&mut self, _bar: usize, offset: u64, data: &mut [u8]) {
        data.fill(0);
        let Some((region, at)) = find_region(offset) else {
            return;
        };
        match region {
            region::COMMON => read_bytes(&self.common(), at, data),
            // There are no pin interrupts whose status there could be, so the ISR is always 0.
            region::DEVICE => self.device.read_config(at, data),
            region::MSIX_TABLE => self.msix.read_table(at, data),
            region::MSIX_PENDING => self.msix.read_pending(at, data),
            _ => {}
        }
    }

    fn write_bar(&mut self, _bar: usize, offset: u64, data: &[u8]) {
        let Some((region, at)) = find_region(offset) else {
            return;
        };
        match region {
            // KVM takes 64-bit accesses apart or not as it likes; the driver writes 32 bits at a time.
            region::COMMON => self.write_common(at as u64, data),
            region::DEVICE => self.device.write_config(at, data),
            region::NOTIFY => self.doorbells.bells.ring(at / NOTIFY_MULTIPLIER as usize),
            region::MSIX_TABLE => self.msix.write_table(at, data),
            _ => {}
        }
    }
}

/// The eventfds that queues listen to, and where KVM listens for them.
#[derive(Debug)]
struct Doorbells {
    vm: Arc<VmFd>,
    bells: Arc<Bells>,
    /// The address of the first doorbell, while KVM listens.
    base: Option<u64>,
}

impl Doorbells {
    /// Moves all doorbells to `base`, or nowhere. A doorbell that KVM does not take still rings, by an exit.
    fn place(&mut self, base: Option<u64>) {
        if base == self.base {
            return;
        }
        let address = |base: u64, index: usize| {
            IoEventAddress::Mmio(base + u64::from(NOTIFY_MULTIPLIER) * index as u64)
        };
        let bells = self.bells.lock();
        for (index, event) in
            bells.iter().enumerate().filter_map(|(index, event)| Some((index, event.as_ref()?)))
        {
            if let Some(old) = self.base
                && let Err(error) = self.vm.unregister_ioevent(event, &address(old, index), NoDatamatch)
            {
                tracing::debug!(index, %error, "KVM did not listen to this doorbell");
            }
            if let Some(new) = base
                && let Err(error) = self.vm.register_ioevent(event, &address(new, index), NoDatamatch)
            {
                tracing::debug!(index, %error, "KVM cannot listen to this doorbell; it rings more slowly");
            }
        }
        self.base = base;
    }
}

/// By queue, what becomes readable when its doorbell rings. Nobody has the lock for long.
#[derive(Debug, Default)]
struct Bells(Mutex<Vec<Option<EventFd>>>);

impl Bells {
    fn lock(&self) -> MutexGuard<'_, Vec<Option<EventFd>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn set(&self, events: Vec<Option<EventFd>>) {
        *self.lock() = events;
    }

    fn ring(&self, index: usize) {
        if let Some(Some(event)) = self.lock().get(index) {
            // Can only fail if the counter is full, and then the bell is ringing already.
            let _ = event.write(1);
        }
    }
}

/// A device's side door. A CPU may have the function in hand for as long as a disk takes to end its last request; this
/// waits for nobody.
#[derive(Clone, Debug)]
pub struct Remote {
    notifier: Arc<Notifier>,
    bells: Arc<Bells>,
}

impl Remote {
    /// Changes what the configuration structure is made of, and tells the driver if that succeeds.
    pub fn change_config<E>(&self, change: impl FnOnce() -> Result<(), E>) -> Result<(), E> {
        // Before and after: a driver that reads one half of each sees that they do not go together.
        self.notifier.config_changes();
        change()?;
        self.notifier.config_changed();
        Ok(())
    }

    /// What the guest's driver has made of the device.
    pub fn driver_state(&self) -> DriverState {
        match self.notifier.status.load(Ordering::SeqCst) {
            bits if bits & status::NEEDS_RESET != 0 => DriverState::NeedsReset,
            bits if bits & (status::DRIVER_OK | status::FAILED) == status::DRIVER_OK => DriverState::Running,
            _ => DriverState::None,
        }
    }

    /// Wakes the device's threads, so that they look at what was changed for them.
    pub fn wake(&self) {
        let count = self.bells.lock().len();
        (0..count).for_each(|queue| self.bells.ring(queue));
    }
}

fn identity(device_type: DeviceType) -> Identity {
    const VENDOR: u16 = 0x1af4;
    /// Modern devices: 0x1040 and the type (section 4.1.2).
    const FIRST_DEVICE: u16 = 0x1040;
    let class = match device_type {
        DeviceType::Net => 0x02_0000,
        DeviceType::Block => 0x01_8000,
        DeviceType::Console | DeviceType::Vsock => 0x07_8000,
        DeviceType::Entropy => 0x10_8000,
        DeviceType::Balloon => 0x05_8000,
    };
    Identity {
        vendor: VENDOR,
        device: FIRST_DEVICE + device_type as u16,
        revision: 1,
        class,
        subsystem_vendor: VENDOR,
        subsystem: FIRST_DEVICE,
    }
}

/// The body of a `virtio_pci_cap` (section 4.1.4), with `extra` behind it.
fn structure(kind: Structure, (offset, size): (u32, u32), extra: &[u8]) -> Vec<u8> {
    const HEAD_SIZE: usize = 16;
    let mut body = vec![(HEAD_SIZE + extra.len()) as u8, kind as u8, BAR as u8, 0, 0, 0];
    body.extend(offset.to_le_bytes());
    body.extend(size.to_le_bytes());
    body.extend(extra);
    body
}

/// A window through which configuration accesses reach the BAR, for systems that cannot map it. Returns where
/// its body is.
fn add_bar_window(config: &mut ConfigSpace) -> usize {
    let body = structure(Structure::BarWindow, (0, 0), &[0; 4]);
    let mut writable = vec![0xff; body.len()];
    // Length, type, (BAR,) id and padding are not the driver's.
    writable[..2].fill(0);
    writable[3..6].fill(0);
    config.add_capability(CapabilityId::Vendor, &body, &writable)
}

fn find_region(offset: u64) -> Option<((u32, u32), usize)> {
    [region::COMMON, region::ISR, region::DEVICE, region::NOTIFY, region::MSIX_TABLE, region::MSIX_PENDING]
        .into_iter()
        .find_map(|region| {
            let at = offset.checked_sub(u64::from(region.0))?;
            (at < u64::from(region.1)).then_some((region, at as usize))
        })
}

/// Writes one half, or the whole, of a 64-bit field.
fn write_address(field: &mut u64, offset: u64, data: &[u8]) {
    const LOW: u64 = 0xffff_ffff;
    match (offset % 8, data) {
        (0, &[a, b, c, d]) => *field = *field & !LOW | u64::from(u32::from_le_bytes([a, b, c, d])),
        (4, &[a, b, c, d]) => *field = *field & LOW | u64::from(u32::from_le_bytes([a, b, c, d])) << 32,
        (0, &[a, b, c, d, e, f, g, h]) => *field = u64::from_le_bytes([a, b, c, d, e, f, g, h]),
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io;
    use vm_memory::GuestAddress;

    /// Remembers how it was activated.
    #[derive(Debug, Default)]
    struct Recorder(Arc<Mutex<Vec<String>>>);

    impl VirtioDevice for Recorder {
        fn device_type(&self) -> DeviceType {
            DeviceType::Block
        }

        fn features(&self) -> u64 {
            1 << 6
        }

        fn queue_sizes(&self) -> &[u16] {
            &[16, 8]
        }

        fn read_config(&self, offset: usize, data: &mut [u8]) {
            read_bytes(b"configuration", offset, data);
        }

        fn activate(&mut self, activation: Activation) -> io::Result<()> {
            let queues: Vec<bool> = activation.queues.iter().map(Option::is_some).collect();
            self.0.lock().unwrap().push(format!("activate {queues:?}"));
            Ok(())
        }

        fn reset(&mut self) {
            self.0.lock().unwrap().push("reset".into());
        }
    }

    /// The driver's side of a device.
    struct Driver {
        function: VirtioPci,
        calls: Arc<Mutex<Vec<String>>>,
    }

    impl Driver {
        fn new() -> Self {
            let kvm = kvm_ioctls::Kvm::new().expect("/dev/kvm is needed; without, scripts/test uses the lab");
            let vm = Arc::new(kvm.create_vm().unwrap());
            vm.create_irq_chip().unwrap();
            let memory = Arc::new(GuestMemory::from_ranges(&[(GuestAddress(0), 0x10_0000)]).unwrap());
            let recorder = Recorder::default();
            let calls = Arc::clone(&recorder.0);
            let interrupts = Interrupts::new(Arc::clone(&vm));
            let function =
                VirtioPci::new("test".into(), Box::new(recorder), vm, &interrupts, memory).unwrap();
            Self { function, calls }
        }

        fn read<const N: usize>(&mut self, offset: u64) -> [u8; N] {
            let mut data = [0; N];
            self.function.read_bar(BAR, offset, &mut data);
            data
        }

        fn write(&mut self, offset: u64, data: &[u8]) {
            self.function.write_bar(BAR, offset, data);
        }

        fn status(&mut self) -> u8 {
            self.read::<1>(common::STATUS)[0]
        }

        fn accept(&mut self, features: u64) {
            for half in 0..2u32 {
                self.write(common::DRIVER_FEATURE_SELECT, &half.to_le_bytes());
                self.write(common::DRIVER_FEATURE, &((features >> (32 * half)) as u32).to_le_bytes());
            }
        }

        /// Comes as far as FEATURES_OK.
        fn negotiate(&mut self) {
            self.write(common::STATUS, &[1]);
            self.write(common::STATUS, &[3]);
            self.accept(1 << VIRTIO_F_VERSION_1);
            self.write(common::STATUS, &[11]);
        }

        fn set_up_queue(&mut self, queue: u16, address: u64) {
            self.write(common::QUEUE_SELECT, &queue.to_le_bytes());
            for (field, at) in [
                (common::QUEUE_DESCRIPTORS, address),
                (common::QUEUE_DRIVER, address + 0x1000),
                (common::QUEUE_DEVICE, address + 0x2000),
            ] {
                self.write(field, &(at as u32).to_le_bytes());
                self.write(field + 4, &((at >> 32) as u32).to_le_bytes());
            }
            self.write(common::QUEUE_ENABLE, &[1, 0]);
        }

        fn calls(&self) -> Vec<String> {
            self.calls.lock().unwrap().clone()
        }
    }

    #[test]
    fn a_driver_brings_a_device_up_and_down() {
        let mut driver = Driver::new();
        let remote = driver.function.remote();
        driver.negotiate();
        assert_eq!((driver.status(), remote.driver_state()), (11, DriverState::None));
        driver.set_up_queue(0, 0x1_0000);
        driver.write(common::STATUS, &[15]);
        assert_eq!((driver.status(), driver.calls()), (15, vec!["activate [true, false]".into()]));
        assert_eq!(remote.driver_state(), DriverState::Running);
        assert_eq!(&driver.read::<13>(0x2000), b"configuration");
        driver.write(common::STATUS, &[0]);
        assert_eq!((driver.status(), driver.calls().len()), (0, 2));
        assert_eq!(remote.driver_state(), DriverState::None);
        assert_eq!(driver.read::<4>(common::QUEUE_SIZE), [16, 0, 0xff, 0xff]);
        assert_eq!(driver.read::<2>(common::QUEUE_ENABLE), [0, 0]);
    }

    #[test]
    fn features_must_be_on_offer_and_modern() {
        for features in [0, 1 << 6, 1 << VIRTIO_F_VERSION_1 | 1 << 7, u64::MAX] {
            let mut driver = Driver::new();
            driver.write(common::STATUS, &[3]);
            driver.accept(features);
            driver.write(common::STATUS, &[11]);
            assert_eq!(driver.status(), 3, "{features:#x}");
            driver.write(common::STATUS, &[15]);
            assert_eq!(driver.status() & 4, 0, "DRIVER_OK without FEATURES_OK");
            assert!(driver.calls().is_empty());
        }
    }

    /// A mistake of Firecracker (CVE-2026-5747): the size of a queue changed under a running device.
    #[test]
    fn queues_are_frozen_outside_their_time() {
        let mut driver = Driver::new();
        driver.write(common::QUEUE_SIZE, &[4, 0]);
        assert_eq!(driver.read::<2>(common::QUEUE_SIZE), [16, 0], "before FEATURES_OK");
        driver.negotiate();
        driver.set_up_queue(0, 0x1_0000);
        driver.write(common::QUEUE_SIZE, &[4, 0]);
        assert_eq!(driver.read::<2>(common::QUEUE_SIZE), [16, 0], "after it was enabled");
        driver.write(common::STATUS, &[15]);
        for queue in 0..2u16 {
            driver.write(common::QUEUE_SELECT, &queue.to_le_bytes());
            let before = driver.read::<32>(common::QUEUE_SIZE);
            for offset in common::QUEUE_SIZE..0x38 {
                driver.write(offset, &[1]);
                driver.write(offset, &[2, 0]);
                driver.write(offset, &[4, 0, 0, 0]);
                driver.write(offset, &[8, 0, 0, 0, 0, 0, 0, 0]);
            }
            assert_eq!(driver.read::<32>(common::QUEUE_SIZE), before, "queue {queue} after DRIVER_OK");
        }
    }

    /// A mistake of others (openvmm, issue 2782): a size of 0, or one whose upper half was cut off until it was 0, was
    /// divided by.
    #[test]
    fn queue_sizes_are_powers_of_two_within_the_limit() {
        let mut driver = Driver::new();
        driver.negotiate();
        for (size, expected) in [(0u16, 16), (3, 16), (32, 16), (0x8000, 16), (8, 8), (16, 16), (1, 1)] {
            driver.write(common::QUEUE_SIZE, &size.to_le_bytes());
            assert_eq!(u16::from_le_bytes(driver.read(common::QUEUE_SIZE)), expected, "size {size}");
        }
        for wide in [0x1_0000u32, 0x1_0008, 0] {
            driver.write(common::QUEUE_SIZE, &wide.to_le_bytes());
            assert_eq!(driver.read::<2>(common::QUEUE_SIZE), [1, 0], "no field has that width");
        }
    }

    /// A mistake of Cloud Hypervisor (issue 7917): `queue_select` was an index that nobody checked.
    #[test]
    fn a_queue_that_does_not_exist_has_size_zero() {
        let mut driver = Driver::new();
        driver.negotiate();
        for select in [2u16, 255, 0xffff] {
            driver.set_up_queue(select, 0x1_0000);
            assert_eq!(driver.read::<2>(common::QUEUE_SIZE), [0, 0]);
            assert_eq!(driver.read::<2>(common::QUEUE_ENABLE), [0, 0]);
        }
        driver.write(u64::from(region::NOTIFY.0) + 4 * 100, &[1, 0]);
    }

    #[test]
    fn rings_outside_memory_ask_for_a_reset() {
        for address in [0xf_f000, 0x20_0000, u64::MAX - 0x2fff] {
            let mut driver = Driver::new();
            driver.negotiate();
            driver.set_up_queue(0, address);
            driver.write(common::STATUS, &[15]);
            assert_eq!(driver.status(), 15 | 64, "{address:#x}");
            assert_eq!(driver.function.remote().driver_state(), DriverState::NeedsReset);
            assert!(driver.calls().is_empty());
            driver.write(common::STATUS, &[0]);
            assert_eq!(driver.status(), 0);
        }
    }

    #[test]
    fn vectors_that_do_not_exist_are_none() {
        let mut driver = Driver::new();
        driver.negotiate();
        for (vector, expected) in [(0u16, 0u16), (2, 2), (3, NO_VECTOR), (0xfffe, NO_VECTOR)] {
            for register in [common::CONFIG_VECTOR, common::QUEUE_VECTOR] {
                driver.write(register, &vector.to_le_bytes());
                assert_eq!(u16::from_le_bytes(driver.read(register)), expected);
            }
        }
    }

    /// The whole BAR, and the window to it in configuration space, with every width at every offset.
    #[test]
    fn no_access_is_too_odd() {
        let mut driver = Driver::new();
        for offset in (0..u64::from(BAR_SIZE)).filter(|offset| offset % 0x1000 < 0x60) {
            for width in [1, 2, 4, 8] {
                driver.function.read_bar(BAR, offset, &mut [0; 8][..width]);
                driver.function.write_bar(BAR, offset, &[0xff; 8][..width]);
            }
        }
        let window = driver.function.bar_window;
        for (offset, length) in
            [(0u32, 4u32), (0x14, 1), (BAR_SIZE, 4), (u32::MAX, 4), (0, 0), (2, 3), (0x7fff, 2)]
        {
            driver.function.write_config(window + 6, &offset.to_le_bytes());
            driver.function.write_config(window + 10, &length.to_le_bytes());
            let mut data = [0; 4];
            driver.function.read_config(window + 14, &mut data);
            driver.function.write_config(window + 14, &data);
        }
        driver.function.write_config(window + 6, &0x2000u32.to_le_bytes());
        driver.function.write_config(window + 10, &4u32.to_le_bytes());
        let mut data = [0; 4];
        driver.function.read_config(window + 14, &mut data);
        assert_eq!(&data, b"conf");
    }
}
