//! A machine: everything that belongs to one run of a guest, from power-on to power-off or reset.
//!
//! [`Machine::build`] puts the parts together in an order that KVM likes, [`Machine::start`] lets the CPUs
//! run, and dropping the machine takes it all down. A guest that resets gets a new machine over the same
//! [`Configuration`] and [`devices::Devices`]: no state of the old one can be forgotten, because none is left.
//!
//! [`guest::Guest`] is the life of a guest over all its machines.

pub mod devices;
pub mod guest;
mod lifecycle;
mod reaper;

use std::collections::BTreeMap;
use std::io;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use kvm_bindings::{
    KVM_CAP_PMU_CAPABILITY, KVM_MAX_CPUID_ENTRIES, KVM_PMU_CAP_DISABLE, kvm_enable_cap,
    kvm_userspace_memory_region,
};
use kvm_ioctls::{Cap, Kvm, VmFd};
use vm_memory::{Address, GuestMemoryBackend, GuestMemoryRegion};
use vmm_sys_util::eventfd::EventFd;

use crate::boot::{self, BootSource};
use crate::bus::Bus;
use crate::console::Console;
use crate::cpu::{self, Cpu, CpuThread, ExitCounters, Exits, cpuid};
use crate::exit::ExitSignal;
use crate::firmware::{self, smbios};
use crate::interrupt::{self, Interrupts};
use crate::memory::{self, GuestMemory};
use crate::pci::{self, Ecam, PciRoot, Window};
use crate::platform::hotplug::{self, Hotplug, HotplugRegisters, Slots};
use crate::platform::i8042::{self, KeyboardController};
use crate::platform::power::{self, PowerRegisters};
use crate::platform::serial::{self, SerialPort};
use crate::platform::{GSI_EVENTS, GSI_HOTPLUG, GSI_SERIAL};
use crate::virtio::VirtioDevice;
use crate::virtio::balloon::{Balloon, BalloonControl};
use crate::virtio::console::{ConsolePort, VirtioConsole};
use crate::virtio::rng::Rng;
use crate::virtio::transport::{Remote, VirtioPci};
use crate::virtio::vsock::{Vsock, VsockHost};

/// What a machine is made of, besides the devices that come and go.
#[derive(Debug)]
pub struct Configuration {
    /// How many CPUs: 1 to [`cpu::MAX_CPUS`].
    pub cpus: u8,
    /// RAM in bytes.
    pub memory: u64,
    /// What SMBIOS says.
    pub identity: smbios::Identity,
    /// Where the serial port prints.
    pub serial: Arc<Console>,
    /// The virtio console, if there is to be one.
    pub virtio_console: Option<Arc<ConsolePort>>,
    /// The balloon, if there is to be one.
    pub balloon: Option<Arc<BalloonControl>>,
    /// What the vsock device connects to, if there is to be one.
    pub vsock: Option<Arc<VsockHost>>,
}

impl Configuration {
    /// What the machine always has on its bus, besides what comes and goes.
    fn built_in(&self) -> Vec<(BuiltIn, Box<dyn VirtioDevice>)> {
        let mut devices: Vec<(BuiltIn, Box<dyn VirtioDevice>)> =
            vec![(BuiltIn::Rng, Box::new(Rng::default()))];
        if let Some(port) = &self.virtio_console {
            devices.push((BuiltIn::Console, Box::new(VirtioConsole::new(Arc::clone(port)))));
        }
        if let Some(control) = &self.balloon {
            devices.push((BuiltIn::Balloon, Box::new(Balloon::new(Arc::clone(control)))));
        }
        if let Some(host) = &self.vsock {
            devices.push((BuiltIn::Vsock, Box::new(Vsock::new(Arc::clone(host)))));
        }
        devices
    }

    /// The slots for what comes and goes.
    pub fn slots(&self) -> Slots {
        let Self { virtio_console, balloon, vsock, .. } = self;
        let built_in = [
            (BuiltIn::Rng, true),
            (BuiltIn::Console, virtio_console.is_some()),
            (BuiltIn::Balloon, balloon.is_some()),
            (BuiltIn::Vsock, vsock.is_some()),
        ];
        Slots::except(built_in.into_iter().filter(|(_, is_there)| *is_there).map(|(device, _)| device as u8))
    }
}

/// What does not come and go, by its slot: the end of the bus, which leaves the beginning to what does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
enum BuiltIn {
    Rng = 31,
    Console = 30,
    Balloon = 29,
    Vsock = 28,
}

/// Why there is no machine.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "the messages say it")]
pub enum Error {
    #[error("a guest has 1 to {max} CPUs, not {0}", max = cpu::MAX_CPUS)]
    CpuCount(u8),
    #[error("this host's KVM has no {0:?}; a newer kernel is needed")]
    Capability(Cap),
    #[error("cannot {action}")]
    Kvm { action: &'static str, source: kvm_ioctls::Error },
    #[error(transparent)]
    Memory(#[from] memory::Error),
    #[error(transparent)]
    Boot(#[from] boot::Error),
    #[error(transparent)]
    Firmware(#[from] firmware::Error),
    #[error(transparent)]
    Cpu(#[from] cpu::Error),
    #[error(transparent)]
    Interrupt(#[from] interrupt::Error),
    #[error(transparent)]
    Pci(#[from] pci::Error),
    #[error("cannot {action}")]
    Host { action: &'static str, source: io::Error },
}

fn kvm_error(action: &'static str) -> impl Fn(kvm_ioctls::Error) -> Error {
    move |source| Error::Kvm { action, source }
}

fn host_error(action: &'static str) -> impl Fn(io::Error) -> Error {
    move |source| Error::Host { action, source }
}

/// A virtio device on the bus of a machine.
pub type Function = Arc<Mutex<VirtioPci>>;

/// A machine whose CPUs run, or are about to.
#[derive(Debug)]
pub struct Machine {
    cpus: Vec<CpuThread>,
    waiting_cpus: Vec<Cpu>,
    exits: Exits,
    serial: Arc<Mutex<SerialPort>>,
    power_button: EventFd,
    vm: Arc<VmFd>,
    interrupts: Arc<Interrupts>,
    root: Arc<PciRoot>,
    hotplug: Arc<Hotplug>,
    /// By slot.
    functions: BTreeMap<u8, (Function, Remote)>,
    /// Behind everything that uses it, so that it is unmapped last.
    memory: Arc<GuestMemory>,
}

impl Machine {
    /// Builds a machine, ready to be given devices and to start.
    pub fn build(kvm: &Kvm, configuration: &Configuration, boot: &BootSource) -> Result<Self, Error> {
        if !(1..=cpu::MAX_CPUS).contains(&configuration.cpus) {
            return Err(Error::CpuCount(configuration.cpus));
        }
        let memory = Arc::new(memory::allocate(configuration.memory)?);
        let vm = Arc::new(create_vm(kvm, &memory)?);
        let cpus = create_cpus(kvm, &vm, configuration.cpus)?;

        let slots = configuration.slots();
        let rsdp = firmware::write(&memory, configuration.cpus, slots, &configuration.identity)?;
        let entry = boot::load(boot, &memory, rsdp)?;
        if let Some(first) = cpus.first() {
            first.enter_at(&memory, entry)?;
        }

        let interrupts = Interrupts::new(Arc::clone(&vm));
        let exit = Arc::new(ExitSignal::new().map_err(host_error("create an eventfd"))?);
        let serial = SerialPort::new(Arc::clone(&configuration.serial), interrupts.pin(GSI_SERIAL)?)
            .map_err(host_error("create the serial port"))?;
        let serial = Arc::new(Mutex::new(serial));
        let power_button = interrupts.pin(GSI_EVENTS)?;

        let root = Arc::new(PciRoot::default());
        let hotplug = Hotplug::new(Arc::clone(&root), slots, interrupts.pin(GSI_HOTPLUG)?)
            .map_err(host_error("create an eventfd"))?;
        let hotplug = Arc::new(hotplug);

        let mut ports = Bus::default();
        ports.insert(serial::BASE_PORT.into(), serial::PORT_COUNT, serial.clone());
        ports.insert(
            i8042::BASE_PORT.into(),
            i8042::PORT_COUNT,
            shared(KeyboardController::new(Arc::clone(&exit))),
        );
        ports.insert(
            power::BASE_PORT.into(),
            power::PORT_COUNT,
            shared(PowerRegisters::new(Arc::clone(&exit))),
        );
        ports.insert(
            hotplug::BASE_PORT.into(),
            hotplug::PORT_COUNT,
            shared(HotplugRegisters(Arc::clone(&hotplug))),
        );
        let mut mmio = Bus::default();
        mmio.insert(memory::PCI_WINDOW_START, memory::PCI_WINDOW_SIZE, Arc::new(Window(Arc::clone(&root))));
        mmio.insert(memory::ECAM_START, memory::ECAM_SIZE, Arc::new(Ecam(Arc::clone(&root))));

        let mut machine = Self {
            cpus: Vec::new(),
            waiting_cpus: cpus,
            exits: Exits { ports: Arc::new(ports), mmio: Arc::new(mmio), exit },
            serial,
            power_button,
            vm,
            interrupts,
            root,
            hotplug,
            functions: BTreeMap::new(),
            memory,
        };
        for (slot, device) in configuration.built_in() {
            machine.insert(slot as u8, device)?;
        }
        Ok(machine)
    }

    /// Puts a device into `slot`. A guest that runs is to be told by [`Hotplug::check`].
    pub fn insert(&mut self, slot: u8, device: Box<dyn VirtioDevice>) -> Result<(), Error> {
        let name = format!("{:?} in slot {slot}", device.device_type());
        let (vm, memory) = (Arc::clone(&self.vm), Arc::clone(&self.memory));
        let function = VirtioPci::new(name, device, vm, &self.interrupts, memory)?;
        let remote = function.remote();
        let function = Arc::new(Mutex::new(function));
        self.root.insert(slot, function.clone())?;
        self.functions.insert(slot, (function, remote));
        Ok(())
    }

    /// Takes the device in `slot` off the bus, if the guest has not done so already. It still has its threads.
    pub fn remove(&mut self, slot: u8) -> Option<Function> {
        self.root.remove(slot);
        self.functions.remove(&slot).map(|(function, _)| function)
    }

    /// Whether there is a device in `slot`, or what is left of one.
    pub fn has(&self, slot: u8) -> bool {
        self.functions.contains_key(&slot)
    }

    /// The side door of the device in `slot`.
    pub fn remote(&self, slot: u8) -> Option<&Remote> {
        self.functions.get(&slot).map(|(_, remote)| remote)
    }

    /// The side door of the balloon, if there is one.
    pub fn balloon(&self) -> Option<&Remote> {
        self.remote(BuiltIn::Balloon as u8)
    }

    /// Lets the CPUs run. `counters` are theirs, in their order.
    pub fn start(&mut self, counters: &[Arc<ExitCounters>]) -> Result<(), Error> {
        tracing::debug!(cpus = self.waiting_cpus.len(), "starting");
        for (cpu, counters) in std::mem::take(&mut self.waiting_cpus).into_iter().zip(counters) {
            let thread = CpuThread::spawn(cpu, self.exits.clone(), Arc::clone(counters))
                .map_err(host_error("start a CPU thread"))?;
            self.cpus.push(thread);
        }
        Ok(())
    }

    /// Has the CPUs stand still, and returns when they do. Devices finish what they were asked for. False, and the CPUs
    /// run on, if one does not stand still within `patience`: it may be waiting for a disk.
    pub fn pause(&self, patience: Duration) -> bool {
        let deadline = Instant::now() + patience;
        self.cpus.iter().for_each(CpuThread::pause);
        let is_standing = self.cpus.iter().all(|cpu| cpu.wait_for_pause(deadline));
        if !is_standing {
            self.resume();
        }
        is_standing
    }

    /// Lets CPUs that stand still run on.
    pub fn resume(&self) {
        self.cpus.iter().for_each(CpuThread::resume);
    }

    /// Where the machine says that it has ended.
    pub fn exit(&self) -> &ExitSignal {
        &self.exits.exit
    }

    /// The serial port, to feed it input.
    pub fn serial(&self) -> &Arc<Mutex<SerialPort>> {
        &self.serial
    }

    /// Where to tell the guest of devices that come and go.
    pub fn hotplug(&self) -> &Hotplug {
        &self.hotplug
    }

    /// Presses the ACPI power button, once. The guest may or may not listen.
    pub fn press_power_button(&self) {
        if let Err(error) = self.power_button.write(1) {
            tracing::warn!(%error, "the power button is stuck");
        }
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        // All are told before the first is waited for: one may be waiting for a device that another feeds.
        self.cpus.iter().for_each(CpuThread::stop);
        self.cpus.clear();
    }
}

fn shared<T>(device: T) -> Arc<Mutex<T>> {
    Arc::new(Mutex::new(device))
}

/// Creates the VM with its memory and interrupt controllers, in the order that costs least.
///
/// Setting a memory region waits for readers of the old map. Creating the interrupt controllers starts a
/// grace period that such a wait would then have to sit through, which takes 5 ms: so memory comes first.
fn create_vm(kvm: &Kvm, memory: &GuestMemory) -> Result<VmFd, Error> {
    for capability in [Cap::Irqchip, Cap::UserMemory, Cap::Irqfd, Cap::Ioeventfd, Cap::SetTssAddr] {
        if !kvm.check_extension(capability) {
            return Err(Error::Capability(capability));
        }
    }
    let vm = create_vm_patiently(kvm).map_err(kvm_error("create a virtual machine"))?;
    disable_performance_counters(&vm);
    for (slot, region) in memory.iter().enumerate() {
        let region = kvm_userspace_memory_region {
            slot: slot as u32,
            guest_phys_addr: region.start_addr().raw_value(),
            memory_size: region.len(),
            userspace_addr: region.as_ptr() as u64,
            flags: 0,
        };
        // SAFETY: the region is mapped, and stays so as long as CPUs run: the machine holds the memory, and
        // takes the CPUs down before it lets go of it.
        unsafe { vm.set_user_memory_region(region) }.map_err(kvm_error("give the guest its memory"))?;
    }
    vm.set_identity_map_address(memory::KVM_IDENTITY_MAP_START)
        .map_err(kvm_error("place KVM's identity map"))?;
    vm.set_tss_address(memory::KVM_TSS_START as usize)
        .map_err(kvm_error("place KVM's task state segment"))?;
    vm.create_irq_chip().map_err(kvm_error("create the interrupt controllers"))?;
    Ok(vm)
}

/// On AMD, hiding the counters' CPUID bits leaves four of them working.
fn disable_performance_counters(vm: &VmFd) {
    let request = kvm_enable_cap {
        cap: KVM_CAP_PMU_CAPABILITY,
        args: [KVM_PMU_CAP_DISABLE.into(), 0, 0, 0],
        ..Default::default()
    };
    if let Err(error) = vm.enable_cap(&request) {
        tracing::debug!(%error, "this KVM cannot switch performance counters off");
    }
}

/// KVM gives up on creating a VM when a signal comes in between; it works at the next try.
fn create_vm_patiently(kvm: &Kvm) -> Result<VmFd, kvm_ioctls::Error> {
    const TRIES: u32 = 5;
    let mut result = kvm.create_vm();
    for _ in 1..TRIES {
        match result {
            Err(error) if error.errno() == libc::EINTR => result = kvm.create_vm(),
            _ => break,
        }
    }
    result
}

fn create_cpus(kvm: &Kvm, vm: &VmFd, count: u8) -> Result<Vec<Cpu>, Error> {
    let list = "list the CPU features that KVM supports";
    let supported = kvm.get_supported_cpuid(KVM_MAX_CPUID_ENTRIES).map_err(kvm_error(list))?;
    let template = cpuid::template(&supported, kvm.check_extension(Cap::TscDeadlineTimer))
        .map_err(|_| kvm_error(list)(kvm_ioctls::Error::new(libc::E2BIG)))?;
    (0..count).map(|index| Ok(Cpu::create(vm, &template, index, count)?)).collect()
}
