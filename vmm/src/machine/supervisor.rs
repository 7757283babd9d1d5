//! The supervisor: it watches a machine, and starts the next one when the guest resets.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::PoisonError;
use std::time::{Duration, Instant};

use kvm_ioctls::Kvm;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};

use super::{Configuration, Error, Machine, host_error};
use crate::cpu;
use crate::event::as_fd;
use crate::exit::{Exit, ResetCause};

/// A guest that dies this often within [`FAULT_PERIOD`] will not live.
const FAULT_LIMIT: usize = 5;
const FAULT_PERIOD: Duration = Duration::from_secs(10);
/// A guest may not listen to the power button yet; pressing it again does no harm.
const BUTTON_PERIOD: Duration = Duration::from_secs(10);
/// The key after which `x` ends the machine when input comes from a terminal (Ctrl-A).
const ESCAPE: u8 = 1;
/// Bytes that may be typed before the guest reads them.
const TYPED_AHEAD: usize = 4096;

/// How it all ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Ending {
    /// The guest switched itself off.
    PowerOff,
    /// It was switched off hard, because it did not react, or because somebody insisted. Its threads may still
    /// be there: the process should end.
    Stopped,
    /// It could not go on; the text says why.
    Failed(String),
}

/// Runs a guest through its resets until it ends.
#[derive(Debug)]
pub struct Supervisor {
    kvm: Kvm,
    configuration: Configuration,
    signals: SignalFd,
    /// How long a guest may take to switch itself off once it was asked to.
    stop_timeout: Duration,
    input: Option<Input>,
    faults: VecDeque<Instant>,
    stop: Option<Stop>,
}

/// A stop that is under way.
#[derive(Clone, Copy, Debug)]
struct Stop {
    deadline: Instant,
    next_press: Instant,
}

impl Supervisor {
    /// Takes over SIGTERM, SIGINT and SIGHUP. To be called before any thread is started, so that all have
    /// these signals blocked.
    pub fn new(kvm: Kvm, configuration: Configuration, stop_timeout: Duration) -> Result<Self, Error> {
        let mut set = SigSet::empty();
        [Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP].into_iter().for_each(|signal| set.add(signal));
        let take = || {
            set.thread_block()?;
            cpu::install_kick_handler()?;
            Ok(SignalFd::with_flags(&set, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK)?)
        };
        let signals = take().map_err(host_error("take over signals"))?;
        Ok(Self {
            kvm,
            configuration,
            signals,
            stop_timeout,
            input: None,
            faults: VecDeque::new(),
            stop: None,
        })
    }

    /// Feeds what comes from `source` to the guest's serial port. With `escape`, Ctrl-A x ends the machine.
    pub fn set_input(&mut self, source: File, escape: bool) {
        self.input = Some(Input { source, escape: escape.then(Escape::default), backlog: VecDeque::new() });
    }

    /// Runs the guest.
    pub fn run(mut self) -> Result<Ending, Error> {
        loop {
            let mut machine = Machine::build(&self.kvm, &self.configuration)?;
            machine.start()?;
            let Some(exit) = self.watch(&machine)? else {
                // A hard stop waits for nobody, not even for a device thread in the middle of a slow request:
                // the process is about to end, and takes everything with it.
                std::mem::forget(machine);
                return Ok(Ending::Stopped);
            };
            match exit {
                Exit::PowerOff => return Ok(Ending::PowerOff),
                Exit::Failure(reason) => return Ok(Ending::Failed(reason)),
                // Asked to stop, the guest chose to reboot. That is as good as off.
                Exit::Reset(ResetCause::Guest) if self.stop.is_some() => return Ok(Ending::PowerOff),
                Exit::Reset(cause) if self.stop.is_some() => {
                    return Ok(Ending::Failed(format!(
                        "the guest ended in a {cause} when it was to switch itself off"
                    )));
                }
                Exit::Reset(cause) => tracing::info!(%cause, "the guest starts anew"),
            }
            if exit == Exit::Reset(ResetCause::TripleFault) && self.is_hopeless(Instant::now()) {
                return Ok(Ending::Failed(format!(
                    "the guest ended in a triple fault {FAULT_LIMIT} times within {} s",
                    FAULT_PERIOD.as_secs()
                )));
            }
        }
    }

    /// Counts a triple fault; true if there were too many of late.
    fn is_hopeless(&mut self, now: Instant) -> bool {
        self.faults.push_back(now);
        self.faults.retain(|fault| now.duration_since(*fault) <= FAULT_PERIOD);
        self.faults.len() >= FAULT_LIMIT
    }

    /// Watches until the machine ends by itself, or, with none, until it is to be ended hard.
    fn watch(&mut self, machine: &Machine) -> Result<Option<Exit>, Error> {
        let failed = |action| host_error(action);
        let drained = lock(machine).drained().map_err(failed("watch the serial port"))?;
        // What the machine before this one had no room for.
        self.feed(machine, false);
        loop {
            // Signals first: a guest that resets in a loop must not keep us from them.
            if self.take_signals(machine).map_err(failed("read a signal"))? {
                return Ok(None);
            }
            if let Some(exit) = machine.exit().get() {
                return Ok(Some(exit));
            }
            let input =
                self.input.as_ref().filter(|input| input.is_wanted()).map(|input| input.source.as_fd());
            let events = wait(
                [
                    Some(as_fd(machine.exit().event())),
                    Some(self.signals.as_fd()),
                    Some(as_fd(&drained)),
                    input,
                ],
                self.stop.map(|stop| stop.next_press.min(stop.deadline)),
            )
            .map_err(failed("wait for events"))?;
            let [_, _, drain, input] = events;
            if drain {
                // Consumes the event; that it was there is all there is to know.
                let _ = drained.read();
            }
            if (drain || input) && self.feed(machine, input) {
                return Ok(None);
            }
            if let Some(stop) = &mut self.stop {
                let now = Instant::now();
                if now >= stop.deadline {
                    tracing::warn!("the guest did not switch itself off in time");
                    return Ok(None);
                }
                if now >= stop.next_press {
                    machine.press_power_button();
                    stop.next_press = now + BUTTON_PERIOD;
                }
            }
        }
    }

    /// The first signal presses the power button, the second one (true) does not wait for it.
    fn take_signals(&mut self, machine: &Machine) -> io::Result<bool> {
        while self.signals.read_signal()?.is_some() {
            if self.stop.is_some() {
                return Ok(true);
            }
            machine.press_power_button();
            let now = Instant::now();
            self.stop = Some(Stop { deadline: now + self.stop_timeout, next_press: now + BUTTON_PERIOD });
        }
        Ok(false)
    }

    /// Passes input on; true if it was the escape that ends the machine.
    fn feed(&mut self, machine: &Machine, is_readable: bool) -> bool {
        let Some(input) = &mut self.input else {
            return false;
        };
        if is_readable {
            match input.fetch() {
                Ok(Fetched::Bytes) => {}
                Ok(Fetched::Escaped) => return true,
                Ok(Fetched::End) => self.input = None,
                Err(error) => {
                    tracing::warn!(%error, "no more console input");
                    self.input = None;
                }
            }
        }
        if let Some(input) = &mut self.input {
            let bytes = input.backlog.make_contiguous();
            let taken = lock(machine).receive(bytes);
            input.backlog.drain(..taken);
        }
        false
    }
}

fn lock(machine: &Machine) -> std::sync::MutexGuard<'_, crate::platform::serial::SerialPort> {
    machine.serial().lock().unwrap_or_else(PoisonError::into_inner)
}

/// Waits until one of `sources` is readable, or until `deadline`; says which are.
fn wait<const N: usize>(
    sources: [Option<BorrowedFd<'_>>; N],
    deadline: Option<Instant>,
) -> io::Result<[bool; N]> {
    let timeout = match deadline {
        None => PollTimeout::NONE,
        Some(deadline) => {
            let rest = deadline.saturating_duration_since(Instant::now()) + Duration::from_millis(1);
            PollTimeout::try_from(rest).unwrap_or(PollTimeout::MAX)
        }
    };
    let present: Vec<usize> = (0..N).filter(|index| sources[*index].is_some()).collect();
    let mut polled: Vec<PollFd<'_>> =
        sources.iter().flatten().map(|source| PollFd::new(*source, PollFlags::POLLIN)).collect();
    match poll(&mut polled, timeout) {
        Ok(_) | Err(nix::Error::EINTR) => {}
        Err(error) => return Err(error.into()),
    }
    let mut readable = [false; N];
    for (index, event) in present.into_iter().zip(&polled) {
        readable[index] = event.any().unwrap_or(true);
    }
    Ok(readable)
}

/// Console input on its way to the guest.
#[derive(Debug)]
struct Input {
    source: File,
    escape: Option<Escape>,
    /// What the serial port had no room for. While there is any, no more is read.
    backlog: VecDeque<u8>,
}

enum Fetched {
    Bytes,
    End,
    Escaped,
}

impl Input {
    /// Input of a program waits until the guest has read what there is. Somebody at a terminal must always be
    /// able to type the escape; what else is typed then is kept up to a limit.
    fn is_wanted(&self) -> bool {
        self.escape.is_some() || self.backlog.is_empty()
    }

    fn fetch(&mut self) -> io::Result<Fetched> {
        let mut bytes = [0; 256];
        let count = match self.source.read(&mut bytes) {
            Ok(0) => return Ok(Fetched::End),
            Ok(count) => count,
            Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => 0,
            Err(error) => return Err(error),
        };
        let bytes = &bytes[..count];
        match &mut self.escape {
            None => self.backlog.extend(bytes),
            Some(escape) => match escape.filter(bytes) {
                Some(bytes) => {
                    self.backlog.extend(bytes);
                    self.backlog.truncate(TYPED_AHEAD);
                }
                None => return Ok(Fetched::Escaped),
            },
        }
        Ok(Fetched::Bytes)
    }
}

/// Recognises Ctrl-A x. Ctrl-A twice is one Ctrl-A for the guest; before any other key it is dropped.
#[derive(Debug, Default)]
struct Escape {
    is_open: bool,
}

impl Escape {
    /// What is for the guest; none if the machine is to end.
    fn filter(&mut self, bytes: &[u8]) -> Option<Vec<u8>> {
        let mut passed = Vec::with_capacity(bytes.len());
        for byte in bytes {
            match (std::mem::take(&mut self.is_open), *byte) {
                (true, b'x') => return None,
                (false, ESCAPE) => self.is_open = true,
                (_, byte) => passed.push(byte),
            }
        }
        Some(passed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_escape_works_across_reads() {
        let mut escape = Escape::default();
        assert_eq!(escape.filter(b"ax\x01").unwrap(), b"ax");
        assert_eq!(escape.filter(b"\x01x\x01b").unwrap(), b"\x01xb");
        assert_eq!(escape.filter(b"a\x01"), Some(b"a".to_vec()));
        assert_eq!(escape.filter(b"x"), None);
    }
}
