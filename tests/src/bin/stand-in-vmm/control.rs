//! Controllers: a thread for each connection, which does what it is asked for, one request after the other.

use std::io;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use anyhow::Result;
use innkeeper_protocol::{
    Answer, Command, Descriptor, Ending, Error, Failure, FailureCode, Message, Outcome, Reply, Request,
    VERSION, receive_packet, send_packet,
};
use nix::sys::socket::{SockFlag, accept4};

use crate::machine::Machine;

/// How long not to look for new controllers after that has failed.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// What all threads share.
pub struct Shared {
    machine: Mutex<Machine>,
    /// Something has happened to the machine, or to a connection.
    changed: Condvar,
}

impl Shared {
    /// The machine, for as long as nobody else is to touch it.
    pub fn lock(&self) -> MutexGuard<'_, Machine> {
        self.machine.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until something has happened, or until `deadline`.
    pub fn wait<'m>(
        &self,
        machine: MutexGuard<'m, Machine>,
        deadline: Option<Instant>,
    ) -> MutexGuard<'m, Machine> {
        match deadline {
            None => self.changed.wait(machine).unwrap_or_else(PoisonError::into_inner),
            Some(deadline) => {
                let rest = deadline.saturating_duration_since(Instant::now());
                self.changed.wait_timeout(machine, rest).unwrap_or_else(PoisonError::into_inner).0
            }
        }
    }
}

/// Serves controllers, the first of them at the other end of `socket`, until one says `quit`, or until the last has
/// gone and no other can come; then the process ends, and with it the guest.
pub fn serve(socket: OwnedFd) -> Result<()> {
    let shared = Arc::new(Shared { machine: Mutex::default(), changed: Condvar::new() });
    connect(&shared, socket)?;
    // This thread is the clock.
    let mut machine = shared.lock();
    loop {
        let deadline = machine.deadline();
        machine = shared.wait(machine, deadline);
        if machine.look(Instant::now()) {
            shared.changed.notify_all();
        }
    }
}

/// Serves another controller, in a thread of its own.
fn connect(shared: &Arc<Shared>, socket: OwnedFd) -> io::Result<()> {
    shared.lock().connections += 1;
    let ours = Arc::clone(shared);
    let work = move || {
        let mut connection =
            Connection { socket: Arc::new(socket), has_said_hello: false, subscription: Arc::default() };
        while connection.serve_one(&ours) {}
        connection.subscription.store(true, Ordering::Relaxed);
        let mut machine = ours.lock();
        machine.connections -= 1;
        if machine.connections == 0 && !machine.has_listener {
            // Nobody is left to say anything, and nobody can come.
            exit(machine.ending());
        }
        ours.changed.notify_all();
    };
    std::thread::Builder::new().spawn(work).map(drop)
}

/// Takes in controllers for as long as there is a machine.
fn accept(shared: &Arc<Shared>, listener: &OwnedFd) {
    loop {
        match accept4(listener.as_raw_fd(), SockFlag::SOCK_CLOEXEC) {
            // SAFETY: the kernel has just made this descriptor for us, and nobody else knows it.
            Ok(fd) => match connect(shared, unsafe { OwnedFd::from_raw_fd(fd) }) {
                Ok(()) => {}
                Err(error) => eprintln!("a controller cannot be served: {error}"),
            },
            Err(nix::Error::EINTR | nix::Error::ECONNABORTED) => {}
            Err(error) => {
                eprintln!("no controller can be taken in: {error}");
                std::thread::sleep(ACCEPT_PAUSE);
            }
        }
    }
}

fn exit(ending: Option<&Ending>) -> ! {
    // As innkeeper-vmm does.
    std::process::exit(match ending {
        Some(Ending::PowerOff) => 0,
        Some(Ending::Failed { .. }) => 4,
        Some(Ending::Stopped) | None => 3,
    })
}

struct Connection {
    socket: Arc<OwnedFd>,
    has_said_hello: bool,
    /// Whether whoever sends events is to end.
    subscription: Arc<AtomicBool>,
}

impl Connection {
    /// Answers a request; false if there will be no other.
    fn serve_one(&mut self, shared: &Arc<Shared>) -> bool {
        let (id, request, mut descriptors) = match receive_packet(self.socket.as_fd()) {
            Ok((bytes, descriptors)) => {
                let (id, command) = parse(&bytes);
                (id, command, Descriptors(descriptors.into_iter().map(Some).collect()))
            }
            Err(error @ Error::TooLarge) => (0, Err(invalid(error.to_string())), Descriptors(Vec::new())),
            Err(_) => return false,
        };
        let is_last = matches!(request, Ok(Command::Quit)) && self.has_said_hello;
        let result = request.and_then(|command| self.answer(shared, command, &mut descriptors));
        let outcome = result.map_or_else(Outcome::Error, Outcome::Ok);
        let sent = send_packet(self.socket.as_fd(), &Message::Reply(Reply { id, outcome }), &[]);
        if is_last {
            exit(shared.lock().ending());
        }
        sent.is_ok()
    }

    fn answer(
        &mut self,
        shared: &Arc<Shared>,
        command: Command,
        descriptors: &mut Descriptors,
    ) -> Result<Answer, Failure> {
        match command {
            Command::Hello { version: VERSION } => {
                self.has_said_hello = true;
                let program = format!("stand-in-vmm {}", env!("CARGO_PKG_VERSION"));
                return Ok(Answer::Hello { version: VERSION, program, pid: std::process::id() });
            }
            Command::Hello { version } => {
                return Err(invalid(format!("version {version} is not spoken here, but {VERSION}")));
            }
            _ if !self.has_said_hello => return Err(invalid("a connection begins with hello")),
            Command::Events { after } => self.subscribe(shared, after).map_err(failed)?,
            Command::Configure(configure) => {
                let mut take = |at: Option<Descriptor>, what| {
                    at.map(|descriptor| descriptors.take(descriptor, what)).transpose()
                };
                let listener = take(configure.listener, "the listener")?;
                // These have to be there, but are not needed.
                take(Some(configure.kvm), "KVM")?;
                take(Some(configure.boot.kernel), "the kernel")?;
                take(configure.boot.initrd, "the initrd")?;
                let mut machine = shared.lock();
                machine.configure(&configure)?;
                if let Some(listener) = listener {
                    let ours = Arc::clone(shared);
                    std::thread::Builder::new().spawn(move || accept(&ours, &listener)).map_err(failed)?;
                    machine.has_listener = true;
                }
            }
            Command::AttachConsole { output, input: None, follow, after, console } => {
                shared.lock().check_console(console)?;
                if let Some(output) = output {
                    let (output, ours) = (descriptors.take(output, "console output")?, Arc::clone(shared));
                    let work = move || crate::machine::copy_console(&ours, output.into(), follow, after);
                    std::thread::Builder::new().spawn(work).map_err(failed)?;
                }
            }
            command => {
                let answer = shared.lock().execute(command, descriptors);
                shared.changed.notify_all();
                return answer;
            }
        }
        Ok(Answer::Done)
    }

    /// Has all events behind number `after` sent, by a thread that waits for the controller to read them.
    fn subscribe(&mut self, shared: &Arc<Shared>, mut after: u64) -> io::Result<()> {
        self.subscription.store(true, Ordering::Relaxed);
        self.subscription = Arc::default();
        let (ours, socket, is_over) =
            (Arc::clone(shared), Arc::clone(&self.socket), Arc::clone(&self.subscription));
        shared.changed.notify_all();
        let work = move || {
            let mut machine = ours.lock();
            while !is_over.load(Ordering::Relaxed) {
                let Some(event) = machine.event_after(after) else {
                    machine = ours.wait(machine, None);
                    continue;
                };
                drop(machine);
                after = event.sequence;
                if send_packet(socket.as_fd(), &Message::Event(event), &[]).is_err() {
                    return;
                }
                machine = ours.lock();
            }
        };
        std::thread::Builder::new().spawn(work).map(drop)
    }
}

/// The request in a packet: its id as far as it can be read, and its command.
fn parse(bytes: &[u8]) -> (u64, Result<Command, Failure>) {
    match serde_json::from_slice::<Request>(bytes) {
        Ok(Request { id, command }) => (id, Ok(command)),
        Err(error) => {
            let read = serde_json::from_slice::<serde_json::Value>(bytes).ok();
            let id = read.and_then(|value| value.get("id")?.as_u64()).unwrap_or_default();
            (id, Err(invalid(format!("the request cannot be understood: {error}"))))
        }
    }
}

/// The descriptors of a packet. Those that nobody takes are closed.
pub struct Descriptors(Vec<Option<OwnedFd>>);

impl Descriptors {
    /// The descriptor that a message speaks of, for `what`.
    pub fn take(&mut self, descriptor: Descriptor, what: &str) -> Result<OwnedFd, Failure> {
        let index = usize::try_from(descriptor.0).unwrap_or(usize::MAX);
        let message = || format!("descriptor {index}, for {what}, did not come with the message");
        self.0.get_mut(index).and_then(Option::take).ok_or_else(|| invalid(message()))
    }
}

/// A value that is not allowed.
pub fn invalid(message: impl Into<String>) -> Failure {
    Failure { code: FailureCode::Invalid, message: message.into() }
}

/// The host does not do it.
pub fn failed(error: impl std::fmt::Display) -> Failure {
    Failure { code: FailureCode::Failed, message: error.to_string() }
}
