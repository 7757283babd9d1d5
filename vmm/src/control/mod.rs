//! The control thread: it serves controllers, watches the guest, and carries console input.
//!
//! Everything here happens in one loop that sleeps in `poll(2)` and waits for nobody else: not for a controller to
//! read, not for the guest to answer, not for a disk. [`innkeeper_protocol`] describes what is spoken; [`Server`] is
//! the loop, which [`serve`] runs; its `execute` (in `commands`) does what a request asks for.

mod commands;
mod consoles;
mod controller;
mod events;

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::time::{Duration, Instant};

use innkeeper_protocol::{Answer, Command, DiskSource, Ending, Failure, FailureCode, Outcome, VERSION};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{SockFlag, accept4};

use crate::cpu;
use crate::machine::guest::Guest;
use consoles::Consoles;
use controller::{Controller, Descriptors};
use events::EventLog;

pub use controller::parse;

/// The most controllers at a time. One is usual, two when one takes over from another.
const MAX_CONTROLLERS: usize = 16;
/// How long not to look for new controllers after that has failed.
const ACCEPT_PAUSE: Duration = Duration::from_secs(1);
/// How long the last console output may take to be written.
const CONSOLE_PATIENCE: Duration = Duration::from_secs(1);

/// Serves controllers, the first of them at the other end of `socket`, until one says `quit`, or until the last has
/// gone and no other can come. Returns how the guest ended; the process should end then, because threads of a guest
/// that was ended hard may be left.
pub fn serve(socket: OwnedFd) -> io::Result<Ending> {
    Server::new(socket)?.run()
}

/// What the control thread has. Dropping it takes the guest down, and waits for that; [`Server::run`] does not.
#[derive(Debug)]
pub struct Server {
    controllers: Vec<Controller>,
    /// Where controllers come from.
    listener: Option<OwnedFd>,
    /// When to look for more of them again, after that has failed.
    accepts_after: Instant,
    guest: Option<Guest>,
    consoles: Consoles,
    events: EventLog,
    is_quitting: bool,
}

impl Server {
    /// With a controller at the other end of `socket`.
    pub fn new(socket: OwnedFd) -> io::Result<Self> {
        cpu::install_kick_handler()?;
        Ok(Self {
            controllers: vec![Controller::new(socket)?],
            listener: None,
            accepts_after: Instant::now(),
            guest: None,
            consoles: Consoles::default(),
            events: EventLog::default(),
            is_quitting: false,
        })
    }

    /// As [`serve`], from here on.
    pub fn run(mut self) -> io::Result<Ending> {
        while !self.is_quitting {
            self.wait(&[], None)?;
            self.turn();
        }
        let ending = self.guest.as_ref().and_then(Guest::ending).cloned();
        self.consoles.finish(CONSOLE_PATIENCE);
        // A guest that still runs is not taken down: the process ends.
        if let Some(guest) = self.guest {
            guest.leave();
        }
        Ok(ending.unwrap_or(Ending::Stopped))
    }

    /// Whether there is nobody left to do anything for.
    pub fn is_quitting(&self) -> bool {
        self.is_quitting
    }

    /// Does what there is to do.
    pub fn turn(&mut self) {
        self.serve_controllers();
        if let Some(guest) = &mut self.guest {
            guest.look(Instant::now());
            self.consoles.look(guest);
            guest.take_happenings().into_iter().for_each(|what| self.events.add(what));
        }
        self.controllers.iter_mut().for_each(|controller| controller.flush(&self.events));
        self.controllers.retain(|controller| !controller.is_over());
        // Nobody is left to say anything, and nobody can come: it would run for ever.
        self.is_quitting |= self.controllers.is_empty() && self.listener.is_none();
    }

    /// Sleeps until there is something to do, something to read from one of `others`, or until `later`.
    pub fn wait(&self, others: &[BorrowedFd<'_>], later: Option<Instant>) -> io::Result<()> {
        let mut waiting = Vec::new();
        let mut add = |fd, events| waiting.push(PollFd::new(fd, events));
        if let Some(guest) = &self.guest {
            guest.sources().into_iter().for_each(|source| add(source, PollFlags::POLLIN));
        }
        self.consoles.sources().into_iter().for_each(|source| add(source, PollFlags::POLLIN));
        self.controllers.iter().for_each(|controller| add(controller.as_fd(), controller.interest()));
        let accepts_now = self.accepts_after <= Instant::now();
        if let Some(listener) = self.listener.as_ref().filter(|_| accepts_now) {
            add(listener.as_fd(), PollFlags::POLLIN);
        }
        others.iter().for_each(|other| add(*other, PollFlags::POLLIN));
        let accepts_later = (!accepts_now).then_some(self.accepts_after);
        let guests = self.guest.as_ref().and_then(Guest::deadline);
        let deadline = [guests, accepts_later, later].into_iter().flatten().min();
        match poll(&mut waiting, timeout(deadline)) {
            Ok(_) | Err(nix::Error::EINTR) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    /// Answers what controllers have asked, and takes in new ones.
    fn serve_controllers(&mut self) {
        self.accept();
        for index in 0..self.controllers.len() {
            // A request at a time from each: nobody keeps the others waiting.
            let Some((id, command, mut descriptors)) =
                self.controllers.get_mut(index).and_then(Controller::receive)
            else {
                continue;
            };
            let result = command.and_then(|command| self.answer(index, command, &mut descriptors));
            let outcome = match result {
                Ok(answer) => Outcome::Ok(answer),
                Err(failure) => Outcome::Error(failure),
            };
            if let Some(controller) = self.controllers.get_mut(index) {
                controller.reply(id, outcome);
            }
        }
    }

    /// Deals with what concerns the connection; all else is for [`Server::execute`].
    fn answer(
        &mut self,
        index: usize,
        command: Command,
        descriptors: &mut Descriptors,
    ) -> Result<Answer, Failure> {
        let refuse = |message: String| Err(Failure { code: FailureCode::Invalid, message });
        let Some(controller) = self.controllers.get_mut(index) else {
            return refuse("the connection is closed".into());
        };
        match command {
            Command::Hello { version: VERSION } => {
                controller.has_said_hello = true;
                let program = format!("innkeeper-vmm {}", env!("CARGO_PKG_VERSION"));
                Ok(Answer::Hello { version: VERSION, program, pid: std::process::id() })
            }
            Command::Hello { version } => {
                refuse(format!("version {version} of the protocol is not spoken here, but version {VERSION}"))
            }
            _ if !controller.has_said_hello => refuse("a connection begins with hello".into()),
            Command::Events { after } => {
                controller.subscribe(after);
                Ok(Answer::Done)
            }
            Command::Layers { layers } => {
                controller.add_layers(layers, descriptors)?;
                Ok(Answer::Done)
            }
            Command::AttachDisk(disk) => {
                let layers = match disk.source {
                    DiskSource::Layered { .. } => controller.take_layers(),
                    DiskSource::Raw { .. } => Vec::new(),
                };
                self.attach_disk(*disk, layers, descriptors)
            }
            command => self.execute(command, descriptors),
        }
    }

    fn accept(&mut self) {
        let now = Instant::now();
        let Some(listener) = self.listener.as_ref().filter(|_| self.accepts_after <= now) else { return };
        loop {
            let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
            match accept4(listener.as_raw_fd(), flags) {
                Ok(fd) => {
                    // SAFETY: the kernel has just made this descriptor for us, and nobody else knows it.
                    let socket = unsafe { OwnedFd::from_raw_fd(fd) };
                    match Controller::new(socket) {
                        Ok(controller) => self.controllers.push(controller),
                        Err(error) => tracing::warn!(%error, "a controller cannot be served"),
                    }
                    make_room(&mut self.controllers);
                }
                Err(nix::Error::EINTR | nix::Error::ECONNABORTED) => {}
                Err(nix::Error::EAGAIN) => return,
                Err(error) => {
                    // Out of descriptors, most likely. Whoever waits is still there in a while.
                    tracing::warn!(%error, "no controller can be taken in");
                    self.accepts_after = now + ACCEPT_PAUSE;
                    return;
                }
            }
        }
    }
}

/// Cuts off a controller if there are too many: one that does not read, or else the one that has been there longest.
fn make_room(controllers: &mut [Controller]) {
    let there: Vec<usize> = (0..controllers.len()).filter(|index| !controllers[*index].is_over()).collect();
    if there.len() > MAX_CONTROLLERS {
        let deaf = there.iter().find(|index| controllers[**index].is_deaf());
        if let Some(index) = deaf.or(there.first()) {
            tracing::warn!("too many controllers; one is cut off");
            controllers[*index].cut_off();
        }
    }
}

/// How long to sleep, rounded up to the milliseconds that the system counts in.
fn timeout(deadline: Option<Instant>) -> PollTimeout {
    let Some(deadline) = deadline else {
        return PollTimeout::NONE;
    };
    let rest = deadline.saturating_duration_since(Instant::now());
    PollTimeout::try_from(rest + Duration::from_micros(999)).unwrap_or(PollTimeout::MAX)
}
