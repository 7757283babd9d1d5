//! Interrupts: pins of the I/O APIC and message-signalled ones, both as eventfds that KVM listens to.
//!
//! A write to the eventfd is the interrupt, so any thread (and a kernel back-end) can raise one without
//! entering the VMM's locks. KVM's routing table is only written when a guest unmasks a vector with a new
//! message: each change makes the kernel wait for all CPUs of the guest.
//!
//! A vector that is masked must not interrupt. Our own threads look before they raise one; the kernel does
//! not, so from a vector that it raises ([`MsiVector::raised_by_kernel`]) KVM is parted while it is masked.
//! That takes longer, so that the other vectors stay connected.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use kvm_bindings::{
    KVM_IRQ_ROUTING_IRQCHIP, KVM_IRQ_ROUTING_MSI, KVM_IRQCHIP_IOAPIC, KvmIrqRouting, kvm_irq_routing_entry,
    kvm_irq_routing_irqchip, kvm_irq_routing_msi,
};
use kvm_ioctls::VmFd;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use vmm_sys_util::eventfd::EventFd;

use crate::event;

/// Pins of the I/O APIC, which are the first global system interrupts.
const IO_APIC_PINS: u32 = 24;
/// KVM routes at most this many (`KVM_MAX_IRQ_ROUTES`).
const MAX_ROUTES: u32 = 4096;

/// Why there is no interrupt.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// No eventfd to be had.
    #[error("cannot create an eventfd for an interrupt")]
    Event(#[from] std::io::Error),
    /// KVM did not take it.
    #[error("cannot connect an interrupt with KVM")]
    Kvm(#[from] kvm_ioctls::Error),
    /// All of them are in use.
    #[error("all {MAX_ROUTES} interrupt routes are in use")]
    NoRoute,
}

/// The address and data of a message-signalled interrupt, as the guest programs them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct MsiMessage {
    /// Where the device would write, in the local APICs' range.
    pub address: u64,
    /// What it would write.
    pub data: u32,
}

/// The interrupt routes of one machine.
#[derive(Debug)]
pub struct Interrupts {
    vm: Arc<VmFd>,
    routes: Mutex<Routes>,
}

/// Messages by number of their global system interrupt, less [`IO_APIC_PINS`].
#[derive(Debug, Default)]
struct Routes(Vec<Route>);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Route {
    Free,
    Allocated(Option<MsiMessage>),
}

impl Interrupts {
    /// For a VM that has its interrupt controllers.
    pub fn new(vm: Arc<VmFd>) -> Arc<Self> {
        Arc::new(Self { vm, routes: Mutex::default() })
    }

    /// An edge on pin `gsi` of the I/O APIC for every write to the returned eventfd.
    pub fn pin(&self, gsi: u32) -> Result<EventFd, Error> {
        let event = event::new()?;
        self.vm.register_irqfd(&event, gsi)?;
        Ok(event)
    }

    /// A message-signalled interrupt, masked at first.
    pub fn msi(self: &Arc<Self>) -> Result<Arc<MsiVector>, Error> {
        let event = event::new()?;
        let mut routes = self.lock();
        let free = routes.0.iter().position(|route| *route == Route::Free);
        let index = match free {
            Some(index) => index,
            None if routes.0.len() as u32 + IO_APIC_PINS < MAX_ROUTES => {
                routes.0.push(Route::Free);
                routes.0.len() - 1
            }
            None => return Err(Error::NoRoute),
        };
        routes.0[index] = Route::Allocated(None);
        Ok(Arc::new(MsiVector {
            interrupts: Arc::clone(self),
            gsi: index as u32 + IO_APIC_PINS,
            event,
            connection: Mutex::default(),
            is_masked: AtomicBool::new(true),
            is_pending: AtomicBool::new(false),
        }))
    }

    fn lock(&self) -> MutexGuard<'_, Routes> {
        self.routes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Sends `gsi` where `message` says. Nothing happens if it already goes there.
    fn route(&self, gsi: u32, message: MsiMessage) -> Result<(), Error> {
        let mut routes = self.lock();
        let Some(route) = routes.0.get_mut((gsi - IO_APIC_PINS) as usize) else {
            return Err(Error::NoRoute);
        };
        let old = std::mem::replace(route, Route::Allocated(Some(message)));
        if old == Route::Allocated(Some(message)) {
            return Ok(());
        }
        let result = routes.table().and_then(|table| Ok(self.vm.set_gsi_routing(&table)?));
        if result.is_err()
            && let Some(route) = routes.0.get_mut((gsi - IO_APIC_PINS) as usize)
        {
            // KVM still has the old one.
            *route = old;
        }
        result
    }

    fn free(&self, gsi: u32) {
        // KVM learns of it with the next change: an interrupt that nobody raises needs no hurry.
        if let Some(route) = self.lock().0.get_mut((gsi - IO_APIC_PINS) as usize) {
            *route = Route::Free;
        }
    }
}

impl Routes {
    /// What KVM is to know: the pins one to one, and every message.
    fn table(&self) -> Result<KvmIrqRouting, Error> {
        let pins = (0..IO_APIC_PINS).map(|pin| {
            let mut entry =
                kvm_irq_routing_entry { gsi: pin, type_: KVM_IRQ_ROUTING_IRQCHIP, ..Default::default() };
            entry.u.irqchip = kvm_irq_routing_irqchip { irqchip: KVM_IRQCHIP_IOAPIC, pin };
            entry
        });
        let messages = self.0.iter().zip(IO_APIC_PINS..).filter_map(|(route, gsi)| {
            let Route::Allocated(Some(message)) = route else {
                return None;
            };
            let mut entry = kvm_irq_routing_entry { gsi, type_: KVM_IRQ_ROUTING_MSI, ..Default::default() };
            entry.u.msi = kvm_irq_routing_msi {
                address_lo: message.address as u32,
                address_hi: (message.address >> 32) as u32,
                data: message.data,
                ..Default::default()
            };
            Some(entry)
        });
        let entries: Vec<_> = pins.chain(messages).collect();
        KvmIrqRouting::from_entries(&entries).map_err(|_| Error::NoRoute)
    }
}

/// One message-signalled interrupt of a device. Raised from any thread; masked and unmasked by the guest.
#[derive(Debug)]
pub struct MsiVector {
    interrupts: Arc<Interrupts>,
    gsi: u32,
    event: EventFd,
    connection: Mutex<Connection>,
    is_masked: AtomicBool,
    /// Whether one of our threads has raised it while it was masked.
    is_pending: AtomicBool,
}

#[derive(Debug, Default)]
struct Connection {
    /// Whether KVM listens to the eventfd: from the first unmasking on, and not while a vector is masked that
    /// the kernel raises.
    is_connected: bool,
    is_raised_by_kernel: bool,
}

impl MsiVector {
    /// Interrupts the guest, now or when it unmasks the vector.
    pub fn trigger(&self) {
        if !self.is_masked.load(Ordering::SeqCst) {
            self.signal();
            return;
        }
        self.is_pending.store(true, Ordering::SeqCst);
        // Unmasked in between: either this thread or the one that unmasks takes the pending bit.
        if !self.is_masked.load(Ordering::SeqCst) && self.is_pending.swap(false, Ordering::SeqCst) {
            self.signal();
        }
    }

    /// An eventfd for a part of the kernel, every write to which interrupts the guest, now or when it unmasks
    /// the vector. From now on masking takes as long as the kernel needs to let go of it.
    pub fn raised_by_kernel(&self) -> Result<EventFd, Error> {
        let event = self.event.try_clone()?;
        let mut connection = self.connection();
        connection.is_raised_by_kernel = true;
        if self.is_masked.load(Ordering::SeqCst) {
            self.disconnect(&mut connection)?;
        }
        Ok(event)
    }

    /// Holds interrupts back.
    pub fn mask(&self) {
        let mut connection = self.connection();
        self.is_masked.store(true, Ordering::SeqCst);
        if connection.is_raised_by_kernel
            && let Err(error) = self.disconnect(&mut connection)
        {
            tracing::warn!(%error, "an interrupt vector may interrupt although it is masked");
        }
    }

    /// Delivers interrupts as `message`, beginning with one that was held back.
    pub fn unmask(&self, message: MsiMessage) -> Result<(), Error> {
        self.interrupts.route(self.gsi, message)?;
        let mut connection = self.connection();
        if !connection.is_connected {
            // What the eventfd has collected is an interrupt right away.
            self.interrupts.vm.register_irqfd(&self.event, self.gsi)?;
            connection.is_connected = true;
        }
        self.is_masked.store(false, Ordering::SeqCst);
        if self.is_pending.swap(false, Ordering::SeqCst) {
            self.signal();
        }
        Ok(())
    }

    /// Whether an interrupt is held back.
    pub fn is_pending(&self) -> bool {
        // While KVM listens, nothing is held back, even if it leaves the count where it is.
        let has_collected = || !self.connection().is_connected && is_readable(&self.event);
        self.is_pending.load(Ordering::SeqCst) || has_collected()
    }

    fn connection(&self) -> MutexGuard<'_, Connection> {
        self.connection.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Parts KVM from the eventfd. It takes with it what was raised until then.
    fn disconnect(&self, connection: &mut Connection) -> Result<(), Error> {
        if connection.is_connected {
            self.interrupts.vm.unregister_irqfd(&self.event, self.gsi)?;
            connection.is_connected = false;
        }
        Ok(())
    }

    fn signal(&self) {
        // The counter only fills up if KVM does not listen, and then there is nobody to tell.
        let _ = self.event.write(1);
    }
}

impl Drop for MsiVector {
    fn drop(&mut self) {
        // Fails only if the VM is gone, and its routes with it.
        let _ = self.disconnect(&mut self.connection());
        self.interrupts.free(self.gsi);
    }
}

fn is_readable(event: &EventFd) -> bool {
    let mut fds = [PollFd::new(event::as_fd(event), PollFlags::POLLIN)];
    poll(&mut fds, PollTimeout::ZERO).is_ok_and(|ready| ready > 0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use kvm_ioctls::{Kvm, VcpuFd};
    use std::time::{Duration, Instant};

    const VECTOR: u8 = 0x41;
    const MESSAGE: MsiMessage = MsiMessage { address: 0xfee0_0000, data: VECTOR as u32 };

    /// A machine with a CPU that never runs: what arrives stays in its local APIC.
    fn machine() -> (Arc<Interrupts>, VcpuFd) {
        const SPURIOUS: usize = 0xf0;
        const APIC_ENABLED: i8 = 1;
        let vm = Arc::new(Kvm::new().unwrap().create_vm().unwrap());
        vm.create_irq_chip().unwrap();
        let cpu = vm.create_vcpu(0).unwrap();
        let mut apic = cpu.get_lapic().unwrap();
        apic.regs[SPURIOUS + 1] |= APIC_ENABLED;
        cpu.set_lapic(&apic).unwrap();
        (Interrupts::new(vm), cpu)
    }

    /// Whether [`VECTOR`] is in the local APIC.
    fn is_there(cpu: &VcpuFd) -> bool {
        const REQUESTS: usize = 0x200;
        let byte = REQUESTS + usize::from(VECTOR / 32) * 16 + usize::from(VECTOR % 32 / 8);
        cpu.get_lapic().unwrap().regs[byte] as u8 >> (VECTOR % 8) & 1 == 1
    }

    /// The kernel delivers when it finds the time.
    fn arrives(cpu: &VcpuFd) -> bool {
        let end = Instant::now() + Duration::from_secs(10);
        while !is_there(cpu) && Instant::now() < end {
            std::thread::sleep(Duration::from_millis(1));
        }
        is_there(cpu)
    }

    fn stays_away(cpu: &VcpuFd) -> bool {
        std::thread::sleep(Duration::from_millis(20));
        !is_there(cpu)
    }

    fn forget(cpu: &VcpuFd) {
        let mut apic = cpu.get_lapic().unwrap();
        apic.regs[0x200..0x280].fill(0);
        cpu.set_lapic(&apic).unwrap();
    }

    #[test]
    fn a_masked_vector_is_pending() {
        let (interrupts, cpu) = machine();
        let vector = interrupts.msi().unwrap();
        vector.trigger();
        assert!(vector.is_pending() && stays_away(&cpu));
        vector.unmask(MESSAGE).unwrap();
        assert!(!vector.is_pending() && arrives(&cpu));
        forget(&cpu);
        vector.mask();
        vector.trigger();
        assert!(vector.is_pending() && stays_away(&cpu));
    }

    #[test]
    fn the_kernel_is_held_back_by_a_mask() {
        let (interrupts, cpu) = machine();
        for is_masked_at_first in [true, false] {
            let vector = interrupts.msi().unwrap();
            vector.unmask(MESSAGE).unwrap();
            if is_masked_at_first {
                vector.mask();
            }
            let event = vector.raised_by_kernel().unwrap();
            vector.mask();
            event.write(1).unwrap();
            assert!(vector.is_pending() && stays_away(&cpu));
            vector.unmask(MESSAGE).unwrap();
            assert!(!vector.is_pending() && arrives(&cpu));
            forget(&cpu);

            // What was delivered is not delivered again.
            vector.mask();
            assert!(!vector.is_pending());
            vector.unmask(MESSAGE).unwrap();
            assert!(stays_away(&cpu));

            // Nor does our own thread go past the mask.
            vector.mask();
            vector.trigger();
            assert!(vector.is_pending() && stays_away(&cpu));
            vector.unmask(MESSAGE).unwrap();
            assert!(arrives(&cpu));
            forget(&cpu);
            event.write(1).unwrap();
            assert!(arrives(&cpu));
            forget(&cpu);
        }
    }
}
