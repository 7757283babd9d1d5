//! The thread that runs a CPU: from one exit to the next, but for pauses, until the machine ends.

use std::io;
use std::os::unix::thread::JoinHandleExt;
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Instant;

use innkeeper_protocol::{CpuMetrics, ResetCause};

use kvm_bindings::kvm_run;
use kvm_ioctls::{VcpuExit, VcpuFd};
use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, Signal, sigaction};

use super::Cpu;
use crate::bus::Bus;
use crate::exit::{Exit, ExitSignal};
use crate::metrics::Counter;

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

/// Why a CPU left the guest, counted.
#[derive(Debug, Default)]
pub struct ExitCounters {
    port_reads: Counter,
    port_writes: Counter,
    memory_reads: Counter,
    memory_writes: Counter,
    interrupted: Counter,
    other: Counter,
}

impl ExitCounters {
    /// The counts as the protocol has them.
    pub fn snapshot(&self) -> CpuMetrics {
        CpuMetrics {
            port_reads: self.port_reads.get(),
            port_writes: self.port_writes.get(),
            memory_reads: self.memory_reads.get(),
            memory_writes: self.memory_writes.get(),
            interrupted: self.interrupted.get(),
            other: self.other.get(),
        }
    }
}

/// A CPU with its thread. Dropping it stops the CPU and waits for its thread.
#[derive(Debug)]
pub struct CpuThread {
    gate: Arc<Gate>,
    immediate_exit: ImmediateExit,
    /// The thread hands the descriptor back, so that the memory behind `immediate_exit` outlives the thread.
    thread: Option<JoinHandle<VcpuFd>>,
}

/// The byte in `kvm_run` that makes the next `KVM_RUN` return at once.
#[derive(Clone, Copy, Debug)]
struct ImmediateExit(*mut u8);

// SAFETY: the pointer is only used for atomic stores, while the mapping exists: see `ImmediateExit::set`.
unsafe impl Send for ImmediateExit {}

impl ImmediateExit {
    fn set(self, value: bool) {
        // SAFETY: the byte is in a mapping that the CPU's descriptor owns, and the descriptor is in the thread or in
        // its result, which only `CpuThread::drop` takes; a panic in between would have aborted the process (the
        // release profile says so). The kernel and we are the only users, and a byte is atomic.
        unsafe { AtomicU8::from_ptr(self.0) }.store(value.into(), Ordering::SeqCst);
    }
}

/// What a CPU is to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
enum Wanted {
    Run,
    Pause,
    Stop,
}

/// Where a CPU's thread passes before it enters the guest.
#[derive(Debug)]
struct Gate {
    /// A [`Wanted`], to look at without the lock.
    wanted: AtomicU8,
    /// The same, and whether the thread stands still.
    state: Mutex<(Wanted, bool)>,
    changed: Condvar,
}

impl Gate {
    fn new() -> Self {
        let wanted = Wanted::Run;
        Self {
            wanted: AtomicU8::new(wanted as u8),
            state: Mutex::new((wanted, false)),
            changed: Condvar::new(),
        }
    }

    fn lock(&self) -> MutexGuard<'_, (Wanted, bool)> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn set(&self, wanted: Wanted) {
        let mut state = self.lock();
        // What is to stop stays so.
        if state.0 != Wanted::Stop {
            state.0 = wanted;
            self.wanted.store(wanted as u8, Ordering::SeqCst);
        }
        self.changed.notify_all();
    }

    fn is_open(&self) -> bool {
        self.wanted.load(Ordering::SeqCst) == Wanted::Run as u8
    }

    /// Waits until the CPU is to run or to stop; says whether it is to run. `standing` is called if there is a wait.
    fn pass(&self, standing: impl FnOnce()) -> bool {
        let mut state = self.lock();
        if state.0 == Wanted::Pause {
            standing();
        }
        while state.0 == Wanted::Pause {
            state.1 = true;
            self.changed.notify_all();
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        state.1 = false;
        state.0 == Wanted::Run
    }

    /// Waits until the thread stands still, or is not to any more; false if that takes longer than until `deadline`.
    fn wait_for_stand(&self, deadline: Instant) -> bool {
        let mut state = self.lock();
        while state.0 == Wanted::Pause && !state.1 {
            let rest = deadline.saturating_duration_since(Instant::now());
            if rest.is_zero() {
                return false;
            }
            state = self.changed.wait_timeout(state, rest).unwrap_or_else(PoisonError::into_inner).0;
        }
        true
    }

    /// Says that the thread is at its end.
    fn leave(&self) {
        self.set(Wanted::Stop);
    }
}

impl CpuThread {
    /// Starts running `cpu`.
    pub fn spawn(cpu: Cpu, exits: Exits, counters: Arc<ExitCounters>) -> io::Result<Self> {
        let Cpu { index, mut fd } = cpu;
        let gate = Arc::new(Gate::new());
        let immediate_exit = ImmediateExit(&raw mut fd.get_kvm_run().immediate_exit);
        let passed = Arc::clone(&gate);
        let thread = std::thread::Builder::new().name(format!("cpu{index}")).spawn(move || {
            if let Some(exit) = run(&mut fd, immediate_exit, &exits, &passed, &counters) {
                exits.exit.set(exit);
            }
            passed.leave();
            fd
        })?;
        Ok(Self { gate, immediate_exit, thread: Some(thread) })
    }

    /// Tells the CPU to stop, for good, without waiting for it.
    pub fn stop(&self) {
        self.interrupt(Wanted::Stop);
    }

    /// Tells the CPU to stand still, without waiting for it.
    pub fn pause(&self) {
        self.interrupt(Wanted::Pause);
    }

    /// Waits until the CPU stands still, after [`CpuThread::pause`]; false if that takes longer than until `deadline`.
    pub fn wait_for_pause(&self, deadline: Instant) -> bool {
        self.gate.wait_for_stand(deadline)
    }

    /// Lets the CPU run on.
    pub fn resume(&self) {
        self.gate.set(Wanted::Run);
    }

    /// A CPU that is about to enter the guest sees `immediate_exit`, one that is in the guest is interrupted by the
    /// signal: there is no gap between the two.
    fn interrupt(&self, wanted: Wanted) {
        let Some(thread) = &self.thread else { return };
        self.gate.set(wanted);
        self.immediate_exit.set(true);
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
fn run(
    cpu: &mut VcpuFd,
    immediate_exit: ImmediateExit,
    exits: &Exits,
    gate: &Gate,
    counters: &ExitCounters,
) -> Option<Exit> {
    let page = RunPage(&raw const *cpu.get_kvm_run());
    loop {
        if !gate.is_open() {
            // The guest's watchdogs are not to be surprised by the time that passes.
            let standing = || _ = cpu.kvmclock_ctrl();
            if !gate.pass(standing) {
                return None;
            }
        }
        match cpu.run() {
            // A string instruction comes as many accesses to one port at once.
            Ok(VcpuExit::IoOut(port, data)) => {
                counters.port_writes.add(1);
                data.chunks(page.port_access_size())
                    .for_each(|data| exits.ports.write(u64::from(port), data));
            }
            Ok(VcpuExit::IoIn(port, data)) => {
                counters.port_reads.add(1);
                data.chunks_mut(page.port_access_size())
                    .for_each(|data| exits.ports.read(u64::from(port), data));
            }
            Ok(VcpuExit::MmioWrite(address, data)) => {
                counters.memory_writes.add(1);
                exits.mmio.write(address, data);
            }
            Ok(VcpuExit::MmioRead(address, data)) => {
                counters.memory_reads.add(1);
                exits.mmio.read(address, data);
            }
            Ok(VcpuExit::Intr) => counters.interrupted.add(1),
            // EINTR: a kick. EAGAIN: a CPU that the guest has not started yet was disturbed.
            Err(error) if matches!(error.errno(), libc::EINTR | libc::EAGAIN) => {
                counters.interrupted.add(1);
                // Before the gate is looked at again: who closes it does that first, and then sets this.
                immediate_exit.set(false);
            }
            Ok(VcpuExit::Shutdown) => return Some(Exit::Reset(ResetCause::TripleFault)),
            exit => {
                counters.other.add(1);
                let failure = match exit {
                    Ok(VcpuExit::FailEntry(reason, _)) => {
                        format!("KVM cannot enter the guest (hardware reason {reason:#x})")
                    }
                    Ok(VcpuExit::InternalError) => describe_internal_error(cpu),
                    Ok(exit) => format!("unexpected exit from the guest: {exit:?}"),
                    Err(error) => format!("running a CPU failed: {error}"),
                };
                return Some(Exit::Failure(failure));
            }
        }
    }
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

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn who_does_not_stand_still_is_not_waited_for() {
        let gate = Gate::new();
        gate.set(Wanted::Pause);
        assert!(!gate.wait_for_stand(Instant::now() + Duration::from_millis(20)));
    }

    #[test]
    fn a_gate_holds_a_thread_until_it_is_opened() {
        let gate = Arc::new(Gate::new());
        assert!(gate.is_open() && gate.pass(|| unreachable!()));
        gate.set(Wanted::Pause);
        let thread = {
            let gate = Arc::clone(&gate);
            std::thread::spawn(move || gate.pass(|| ()))
        };
        let soon = Instant::now() + Duration::from_secs(20);
        assert!(gate.wait_for_stand(soon));
        assert!(!thread.is_finished());
        gate.set(Wanted::Run);
        assert!(thread.join().unwrap());
    }

    #[test]
    fn what_is_to_stop_cannot_be_resumed_and_is_waited_for_by_nobody() {
        let gate = Gate::new();
        gate.set(Wanted::Pause);
        gate.leave();
        gate.set(Wanted::Run);
        assert!(gate.wait_for_stand(Instant::now()));
        assert!(!gate.is_open() && !gate.pass(|| unreachable!()));
    }
}
