//! The thread that runs a CPU: from one exit to the next until the machine ends.

use std::io;
use std::os::unix::thread::JoinHandleExt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};
use std::thread::JoinHandle;

use kvm_bindings::kvm_run;
use kvm_ioctls::{VcpuExit, VcpuFd};
use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, Signal, sigaction};

use super::Cpu;
use crate::bus::Bus;
use crate::exit::{Exit, ExitSignal, ResetCause};

/// Interrupts `KVM_RUN`. Nothing else uses it.
const KICK: Signal = Signal::SIGUSR1;

extern "C" fn on_kick(_signal: libc::c_int) {}

/// Makes the kick signal harmless. To be called once, before the first CPU runs.
pub fn install_kick_handler() -> io::Result<()> {
    let action = SigAction::new(SigHandler::Handler(on_kick), SaFlags::empty(), SigSet::empty());
    // SAFETY: the handler does nothing, so it is safe whatever it interrupts.
    unsafe { sigaction(KICK, &action)? };
    Ok(())
}

/// Where the exits of a CPU lead.
#[derive(Clone, Debug)]
pub struct Exits {
    /// Port I/O.
    pub ports: Arc<Bus>,
    /// Memory-mapped I/O.
    pub mmio: Arc<Bus>,
    /// Where to say that the machine has ended.
    pub exit: Arc<ExitSignal>,
}

/// A running CPU. Dropping it stops the CPU and waits for its thread.
#[derive(Debug)]
pub struct CpuThread {
    stop: Arc<AtomicBool>,
    immediate_exit: ImmediateExit,
    /// The thread hands the descriptor back, so that the memory behind `immediate_exit` outlives the thread.
    thread: Option<JoinHandle<VcpuFd>>,
}

/// The byte in `kvm_run` that makes the next `KVM_RUN` return at once.
#[derive(Debug)]
struct ImmediateExit(*mut u8);

// SAFETY: the pointer is only used for atomic stores, by `CpuThread::stop`, while the mapping exists.
unsafe impl Send for ImmediateExit {}

impl CpuThread {
    /// Starts running `cpu`.
    pub fn spawn(cpu: Cpu, exits: Exits) -> io::Result<Self> {
        let Cpu { index, mut fd } = cpu;
        let stop = Arc::new(AtomicBool::new(false));
        let immediate_exit = ImmediateExit(&raw mut fd.get_kvm_run().immediate_exit);
        let should_stop = Arc::clone(&stop);
        let thread = std::thread::Builder::new().name(format!("cpu{index}")).spawn(move || {
            if let Some(exit) = run(&mut fd, &exits, &should_stop) {
                exits.exit.set(exit);
            }
            fd
        })?;
        Ok(Self { stop, immediate_exit, thread: Some(thread) })
    }

    /// Tells the CPU to stop, without waiting for it.
    ///
    /// A CPU that is about to enter the guest sees `immediate_exit`, one that is in the guest is interrupted
    /// by the signal: there is no gap between the two.
    pub fn stop(&self) {
        let Some(thread) = &self.thread else { return };
        self.stop.store(true, Ordering::Release);
        // SAFETY: the byte is in a mapping that the descriptor owns, and the descriptor is in the thread or in
        // its result, which only `drop` takes; a panic in between would have aborted the process (the release
        // profile says so). The kernel and we are the only users, and a byte is atomic.
        unsafe { AtomicU8::from_ptr(self.immediate_exit.0) }.store(1, Ordering::Release);
        // SAFETY: the thread is not joined yet, so its id is valid; the signal has a handler.
        unsafe { libc::pthread_kill(thread.as_pthread_t() as libc::pthread_t, KICK as libc::c_int) };
    }
}

impl Drop for CpuThread {
    fn drop(&mut self) {
        self.stop();
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!("a CPU thread panicked");
        }
    }
}

/// The page that KVM describes exits in, for what `VcpuExit` leaves out.
struct RunPage(*const kvm_run);

impl RunPage {
    /// The size in bytes of each access of a port exit, 1, 2 or 4.
    fn port_access_size(&self) -> usize {
        // SAFETY: the page is mapped for as long as the CPU's descriptor, which `run` borrows for longer than it
        // has this; only the kernel writes this field, and not now. After a port exit, `io` is the member of the
        // union that is filled in; any bits are a value of it.
        let size = unsafe { (*self.0).__bindgen_anon_1.io.size };
        usize::from(size).max(1)
    }
}

/// Runs until told to stop (then there is nothing to report) or until this CPU ends the machine.
fn run(cpu: &mut VcpuFd, exits: &Exits, stop: &AtomicBool) -> Option<Exit> {
    let page = RunPage(&raw const *cpu.get_kvm_run());
    while !stop.load(Ordering::Acquire) {
        match cpu.run() {
            // A string instruction comes as many accesses to one port at once.
            Ok(VcpuExit::IoOut(port, data)) => {
                data.chunks(page.port_access_size())
                    .for_each(|data| exits.ports.write(u64::from(port), data));
            }
            Ok(VcpuExit::IoIn(port, data)) => {
                data.chunks_mut(page.port_access_size())
                    .for_each(|data| exits.ports.read(u64::from(port), data));
            }
            Ok(VcpuExit::MmioWrite(address, data)) => exits.mmio.write(address, data),
            Ok(VcpuExit::MmioRead(address, data)) => exits.mmio.read(address, data),
            Ok(VcpuExit::Intr) => {}
            Ok(VcpuExit::Shutdown) => return Some(Exit::Reset(ResetCause::TripleFault)),
            Ok(VcpuExit::FailEntry(reason, _)) => {
                return Some(Exit::Failure(format!(
                    "KVM cannot enter the guest (hardware reason {reason:#x})"
                )));
            }
            Ok(VcpuExit::InternalError) => return Some(Exit::Failure(describe_internal_error(cpu))),
            Ok(exit) => return Some(Exit::Failure(format!("unexpected exit from the guest: {exit:?}"))),
            // EINTR: a kick. EAGAIN: a CPU that the guest has not started yet was disturbed.
            Err(error) if matches!(error.errno(), libc::EINTR | libc::EAGAIN) => {}
            Err(error) => return Some(Exit::Failure(format!("running a CPU failed: {error}"))),
        }
    }
    None
}

fn describe_internal_error(cpu: &mut VcpuFd) -> String {
    const EMULATION: u32 = 1;
    let at = cpu
        .get_regs()
        .map_or_else(|_| "an unknown address".into(), |registers| format!("{:#x}", registers.rip));
    let run = cpu.get_kvm_run();
    // SAFETY: after an internal error, `internal` is the member of the union that KVM has filled in.
    let suberror = unsafe { run.__bindgen_anon_1.internal.suberror };
    match suberror {
        EMULATION => format!(
            "KVM cannot emulate the guest's instruction at {at}; if this is an unmodified kernel, the host lacks \
             hardware virtualisation (see: innkeeper-vmm check)"
        ),
        suberror => format!("KVM internal error (suberror {suberror}) at {at}"),
    }
}
