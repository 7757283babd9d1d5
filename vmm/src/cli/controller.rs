//! What `run` does while its guest runs: it turns signals and keys into commands, answers the VMM's questions, and
//! finds out how it all ended.

use std::io::{self, Read, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::time::{Duration, Instant};

use innkeeper_protocol::{Command, Ending, Error, Event, Happening, ResetCause};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};

use super::ending_status;
use super::local::LocalVmm;
use super::run::{BootOptions, Keyboard, Parcel};
use super::terminal::Escape;

/// A guest may not listen to the power button yet; pressing it again does no harm.
const BUTTON_PERIOD: Duration = Duration::from_secs(10);
/// How long a guest that is switched off hard may take to let go of its disks before the process ends anyway.
const END_PATIENCE: Duration = Duration::from_secs(1);

/// SIGTERM, SIGINT and SIGHUP, as something to wait for.
#[derive(Debug)]
pub struct Signals(SignalFd);

impl Signals {
    /// Blocks the signals in this thread and those that it starts.
    pub fn take() -> io::Result<Self> {
        let mut set = SigSet::empty();
        [Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP].into_iter().for_each(|signal| set.add(signal));
        set.thread_block()?;
        Ok(Self(SignalFd::with_flags(&set, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK)?))
    }
}

/// How a guest of `run` ended.
#[derive(Debug)]
pub struct Outcome(Ending);

impl Outcome {
    pub fn exit_status(&self) -> u8 {
        ending_status(&self.0)
    }
}

/// A stop that is under way.
#[derive(Clone, Copy, Debug)]
struct Stop {
    deadline: Instant,
    next_press: Instant,
}

/// The controller.
pub struct Controller<'a> {
    vmm: &'a mut LocalVmm,
    boot: BootOptions,
    signals: Signals,
    keyboard: Option<Keyboard>,
    escape: Escape,
    stop_timeout: Duration,
    stop: Option<Stop>,
    /// Why the guest starts anew, if it does.
    reset: Option<ResetCause>,
    /// Why we have switched it off, if we have.
    verdict: Option<Ending>,
    /// When to end, with or without the VMM's word that the guest has.
    end_at: Option<Instant>,
}

impl<'a> Controller<'a> {
    pub fn new(
        vmm: &'a mut LocalVmm,
        boot: BootOptions,
        signals: Signals,
        keyboard: Option<Keyboard>,
        stop_timeout: Duration,
    ) -> Self {
        Self {
            vmm,
            boot,
            signals,
            keyboard,
            escape: Escape::default(),
            stop_timeout,
            stop: None,
            reset: None,
            verdict: None,
            end_at: None,
        }
    }

    /// Stays with the guest until it ends.
    pub fn drive(mut self) -> anyhow::Result<Outcome> {
        self.vmm.call(Command::Events { after: 0 }, &[])?;
        loop {
            while let Some(event) = self.vmm.event()? {
                if let Some(ending) = self.hear(event)? {
                    return Ok(self.outcome(ending));
                }
            }
            if self.vmm.is_quitting() {
                return Err(Error::Closed.into());
            }
            while self.signals.0.read_signal()?.is_some() {
                self.stop()?;
            }
            if self.has_keys()? && self.take_keys() {
                self.switch_off(Ending::Stopped)?;
            }
            self.keep_time()?;
            if self.end_at.is_some_and(|end| Instant::now() >= end) {
                return Ok(self.outcome(Ending::Stopped));
            }
            self.wait()?;
        }
    }

    /// A guest that was stopped by us was so for a reason.
    fn outcome(self, ending: Ending) -> Outcome {
        match (ending, self.verdict) {
            (Ending::Stopped, Some(verdict)) => Outcome(verdict),
            (ending, _) => Outcome(ending),
        }
    }

    /// Sleeps until there is something to do.
    fn wait(&mut self) -> io::Result<()> {
        let stop = self.stop.map(|stop| stop.deadline.min(stop.next_press));
        let keys = self.keyboard.as_ref().map(|keyboard| keyboard.keys.as_fd());
        let sources: Vec<BorrowedFd<'_>> = [self.signals.0.as_fd()].into_iter().chain(keys).collect();
        self.vmm.wait(&sources, stop.into_iter().chain(self.end_at).min())
    }

    /// Deals with one event; returns how the guest ended, if that is what it says.
    fn hear(&mut self, Event { what, .. }: Event) -> anyhow::Result<Option<Ending>> {
        match what {
            Happening::Ended(ending) => return Ok(Some(ending)),
            Happening::Reset { cause } => self.reset = Some(cause),
            Happening::BootSourceWanted { .. } => match (self.stop, self.reset) {
                (None, _) => self.boot_again()?,
                // Asked to stop, the guest chose to reboot. That is as good as off.
                (Some(_), Some(ResetCause::Guest) | None) => self.switch_off(Ending::PowerOff)?,
                (Some(_), Some(_)) => {
                    let reason = "the guest ended in a triple fault when it was to switch itself off".into();
                    self.switch_off(Ending::Failed { reason })?;
                }
            },
            _ => {}
        }
        Ok(None)
    }

    /// Opens the boot source anew: there may be another kernel by now. If that takes long, so would what the VMM does
    /// with it, which is to read it.
    fn boot_again(&mut self) -> anyhow::Result<()> {
        let mut parcel = Parcel::default();
        let source = match self.boot.open(&mut parcel) {
            Ok(source) => Some(source),
            Err(error) => {
                tracing::warn!(error = %format!("{error:#}"), "the guest boots what it booted before");
                None
            }
        };
        let descriptors = if source.is_some() { parcel.descriptors() } else { Vec::new() };
        match self.vmm.call(Command::Boot { source }, &descriptors) {
            // Another controller was quicker, or it took too long.
            Ok(_) | Err(Error::Refused(_)) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    /// The first signal presses the power button, the second one does not wait for it.
    fn stop(&mut self) -> anyhow::Result<()> {
        if self.stop.is_some() {
            return self.switch_off(Ending::Stopped);
        }
        self.press_power_button()?;
        let now = Instant::now();
        self.stop = Some(Stop { deadline: now + self.stop_timeout, next_press: now + BUTTON_PERIOD });
        Ok(())
    }

    fn keep_time(&mut self) -> anyhow::Result<()> {
        let Some(stop) = self.stop.filter(|_| self.end_at.is_none()) else { return Ok(()) };
        let now = Instant::now();
        if now >= stop.deadline {
            tracing::warn!("the guest did not switch itself off in time");
            self.switch_off(Ending::Stopped)?;
        } else if now >= stop.next_press {
            self.press_power_button()?;
            self.stop = Some(Stop { next_press: now + BUTTON_PERIOD, ..stop });
        }
        Ok(())
    }

    fn press_power_button(&mut self) -> anyhow::Result<()> {
        match self.vmm.call(Command::PowerButton, &[]) {
            // Between two machines there is no button. Its time will come.
            Ok(_) | Err(Error::Refused(_)) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    fn switch_off(&mut self, verdict: Ending) -> anyhow::Result<()> {
        if self.verdict.is_none() {
            self.verdict = Some(verdict);
            self.end_at = Some(Instant::now() + END_PATIENCE);
            self.vmm.call(Command::PowerOff, &[])?;
        }
        Ok(())
    }

    /// Whether somebody has typed, or will not any more.
    fn has_keys(&self) -> io::Result<bool> {
        let Some(keyboard) = &self.keyboard else { return Ok(false) };
        let mut source = [PollFd::new(keyboard.keys.as_fd(), PollFlags::POLLIN)];
        match poll(&mut source, PollTimeout::ZERO) {
            Ok(count) => Ok(count > 0),
            Err(nix::Error::EINTR) => Ok(false),
            Err(error) => Err(error.into()),
        }
    }

    /// Passes keys on; true if it was the escape that ends the guest.
    fn take_keys(&mut self) -> bool {
        let Some(keyboard) = &mut self.keyboard else { return false };
        let mut bytes = [0; 256];
        let passed = match keyboard.keys.read(&mut bytes) {
            Ok(0) | Err(_) => {
                self.keyboard = None;
                return false;
            }
            Ok(count) => self.escape.filter(&bytes[..count]),
        };
        let Some(passed) = passed else { return true };
        // Somebody who types must always be able to type the escape: what the guest does not read is lost at some
        // point.
        let _ = keyboard.guest.write(&passed);
        false
    }
}
