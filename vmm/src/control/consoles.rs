//! Consoles, and who reads and writes them.
//!
//! Output is copied by a thread for each reader. Input is carried by the control thread, from descriptors that
//! controllers have passed to the device that the guest reads from, as fast as the guest does that.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use innkeeper_protocol::{ConsoleKind, Status};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use vmm_sys_util::eventfd::EventFd;

use crate::console::{Console, ConsoleInput, Copier, Extent};
use crate::event::as_fd;
use crate::machine::guest::Guest;
use crate::virtio::console::ConsolePort;

/// The most readers, and the most sources of input, at a time.
const MAX_ATTACHED: usize = 8;

/// Why a console is not attached.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("there is no virtio console; it has to be in the configuration")]
    NoConsole,
    #[error("at most {MAX_ATTACHED} readers and {MAX_ATTACHED} sources of input can be attached")]
    TooMany,
    #[error("cannot attach the console")]
    Io(#[from] io::Error),
}

/// The consoles of a guest.
#[derive(Debug, Default)]
pub struct Consoles {
    serial: Option<Arc<Console>>,
    virtio: Option<Arc<ConsolePort>>,
    copiers: Vec<Copier>,
    inputs: Vec<Input>,
}

impl Consoles {
    /// Takes over the consoles of a machine.
    pub fn set(&mut self, serial: Arc<Console>, virtio: Option<Arc<ConsolePort>>) {
        self.serial = Some(serial);
        self.virtio = virtio;
    }

    /// Attaches a reader, a source of input, or both.
    pub fn attach(
        &mut self,
        kind: ConsoleKind,
        output: Option<OwnedFd>,
        input: Option<OwnedFd>,
        follow: bool,
        after: u64,
    ) -> Result<(), Error> {
        let console = match kind {
            ConsoleKind::Serial => self.serial.as_ref(),
            ConsoleKind::Virtio => self.virtio.as_ref().map(|port| port.output()),
        };
        let console = Arc::clone(console.ok_or(Error::NoConsole)?);
        self.copiers.retain(|copier| !copier.is_finished());
        if output.is_some() && self.copiers.len() >= MAX_ATTACHED
            || input.is_some() && self.inputs.len() >= MAX_ATTACHED
        {
            return Err(Error::TooMany);
        }
        if let Some(output) = output {
            let extent = if follow { Extent::Follow } else { Extent::History };
            self.copiers.push(Copier::spawn(console, output.into(), after, extent)?);
        }
        if let Some(input) = input {
            self.inputs.push(Input {
                kind,
                source: input.into(),
                backlog: VecDeque::new(),
                drained: None,
                has_reader: false,
                is_over: false,
            });
        }
        Ok(())
    }

    /// Carries what there is to carry.
    pub fn look(&mut self, guest: &Guest) {
        self.copiers.retain(|copier| !copier.is_finished());
        for input in &mut self.inputs {
            let console: Option<&dyn ConsoleInput> = match (input.kind, guest.serial(), &self.virtio) {
                (ConsoleKind::Serial, Some(serial), _) => Some(serial.as_ref()),
                (ConsoleKind::Virtio, _, Some(port)) => Some(port.as_ref()),
                _ => None,
            };
            input.has_reader = console.is_some();
            if let Some(console) = console {
                input.carry(console);
            }
        }
        self.inputs.retain(|input| !input.is_over);
        if guest.ending().is_some() {
            // Nothing more is printed, and nobody reads.
            self.inputs.clear();
            self.copiers.iter().for_each(Copier::end);
        }
    }

    /// What to wait for.
    pub fn sources(&self) -> Vec<BorrowedFd<'_>> {
        self.inputs.iter().filter(|input| input.has_reader).map(Input::awaited).collect()
    }

    /// Brings all readers to their end, because nothing more is printed; waits until they have all there is, but not
    /// longer than `patience`.
    pub fn finish(&mut self, patience: Duration) {
        let deadline = Instant::now() + patience;
        for copier in std::mem::take(&mut self.copiers) {
            copier.finish(deadline.saturating_duration_since(Instant::now()));
        }
    }

    /// Fills in what is known here of how things stand.
    pub fn describe(&self, status: &mut Status) {
        status.serial_output = self.serial.as_ref().map_or(0, |console| console.printed());
        status.virtio_output = self.virtio.as_ref().map_or(0, |port| port.output().printed());
    }
}

/// Input on its way to the guest.
#[derive(Debug)]
struct Input {
    kind: ConsoleKind,
    source: File,
    /// What the guest had no room for. While there is any, no more is read.
    backlog: VecDeque<u8>,
    /// While there is a backlog: becomes readable when it is worth another try.
    drained: Option<Arc<EventFd>>,
    /// Whether there is a machine to feed it to. Until then, that there is input is not worth waking for.
    has_reader: bool,
    is_over: bool,
}

impl Input {
    /// What to wait for: nothing is read before the guest has taken what was read.
    fn awaited(&self) -> BorrowedFd<'_> {
        match &self.drained {
            None => self.source.as_fd(),
            Some(drained) => as_fd(drained),
        }
    }

    fn carry(&mut self, console: &dyn ConsoleInput) {
        if let Some(drained) = self.drained.take() {
            // Consumes the event; that it was there is all there is to know.
            let _ = drained.read();
        }
        if self.backlog.is_empty() {
            self.fetch();
        }
        if !self.backlog.is_empty() {
            let drained = console.drained();
            let taken = console.receive(self.backlog.make_contiguous());
            self.backlog.drain(..taken);
            self.drained = (!self.backlog.is_empty()).then_some(drained);
        }
    }

    fn fetch(&mut self) {
        // Others may share the file, so that it stays in the mode it is in, and must not be read when it is empty.
        let mut source = [PollFd::new(self.source.as_fd(), PollFlags::POLLIN)];
        if !matches!(poll(&mut source, PollTimeout::ZERO), Ok(1..)) {
            return;
        }
        let mut bytes = [0; 256];
        match self.source.read(&mut bytes) {
            Ok(0) => self.is_over = true,
            Ok(count) => self.backlog.extend(&bytes[..count]),
            Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => {}
            Err(error) => {
                tracing::warn!(%error, "no more console input");
                self.is_over = true;
            }
        }
    }
}
