//! A VMM in the controller's own thread.
//!
//! `run` says what it has to say over a socket, as every controller does. But a thread at each end would mean that
//! each waits to be scheduled for whatever the other says, which on a busy machine takes longer than all the rest of
//! a launch. So the one thread takes turns: it sends a command, has the VMM look at it, and reads the answer.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::time::Instant;

use anyhow::Context;
use innkeeper_protocol::{Answer, Command, Connection, Ending, Error, Event, VERSION};
use nix::sys::socket::{AddressFamily, SockFlag, SockType, socketpair};

use crate::control::Server;

/// Both ends of a control socket.
pub struct LocalVmm {
    connection: Connection,
    server: Server,
}

impl LocalVmm {
    /// A VMM that was told nothing yet.
    pub fn new() -> anyhow::Result<Self> {
        // Neither end waits for the other: there is nobody else to do what it would wait for.
        let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
        let (ours, theirs) = socketpair(AddressFamily::Unix, SockType::SeqPacket, None, flags)
            .context("cannot make the control socket")?;
        let server = Server::new(theirs).context("cannot serve the control socket")?;
        let mut vmm = Self { connection: Connection::new(ours), server };
        vmm.call(Command::Hello { version: VERSION }, &[])?;
        Ok(vmm)
    }

    /// Has a command carried out.
    pub fn call(&mut self, command: Command, descriptors: &[BorrowedFd<'_>]) -> Result<Answer, Error> {
        let id = self.connection.send(command, descriptors)?;
        loop {
            self.server.turn();
            match self.connection.answer(id) {
                // There were so many events to read that the socket had no room for it.
                Err(error) if would_block(&error) => {}
                outcome => return outcome,
            }
        }
    }

    /// The next event, if there is one.
    pub fn event(&mut self) -> Result<Option<Event>, Error> {
        match self.connection.event() {
            Ok(event) => Ok(Some(event)),
            Err(error) if would_block(&error) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Whether another controller has said that this is the end.
    pub fn is_quitting(&self) -> bool {
        self.server.is_quitting()
    }

    /// Serves the guest and other controllers until there is something for this one to do: an event, something to read
    /// from one of `others`, or the time `until`.
    pub fn wait(&mut self, others: &[BorrowedFd<'_>], until: Option<Instant>) -> io::Result<()> {
        if !self.connection.has_event() && !self.is_quitting() {
            let ours = [self.connection.as_fd()];
            self.server.wait(&[&ours, others].concat(), until)?;
        }
        self.server.turn();
        Ok(())
    }

    /// Says that it is over, and returns how the guest ended. If this controller was cut off, others go on with it.
    pub fn quit(mut self) -> io::Result<Ending> {
        // It may have been over before.
        let _ = self.call(Command::Quit, &[]);
        self.server.run()
    }
}

fn would_block(error: &Error) -> bool {
    matches!(error, Error::Io(error) if error.kind() == io::ErrorKind::WouldBlock)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_answers_in_the_same_thread() {
        let mut vmm = LocalVmm::new().unwrap();
        for _ in 0..100 {
            assert!(matches!(vmm.call(Command::Status, &[]), Ok(Answer::Status(_))));
            assert!(matches!(vmm.call(Command::Start, &[]), Err(Error::Refused(_))));
        }
        assert_eq!(vmm.call(Command::Events { after: 0 }, &[]).unwrap(), Answer::Done);
        assert!(vmm.event().unwrap().is_none());
        vmm.wait(&[], Some(Instant::now())).unwrap();
        assert!(!vmm.is_quitting());
        assert_eq!(vmm.quit().unwrap(), Ending::Stopped);
    }

    #[test]
    fn after_the_end_nobody_waits() {
        let mut vmm = LocalVmm::new().unwrap();
        vmm.call(Command::Quit, &[]).unwrap();
        assert!(vmm.is_quitting());
        vmm.wait(&[], None).unwrap();
        assert_eq!(vmm.quit().unwrap(), Ending::Stopped);
    }
}
