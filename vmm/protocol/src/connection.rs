//! Packets on a `SOCK_SEQPACKET` socket: a JSON document, and the descriptors that go with it.

use std::io::{self, IoSlice, IoSliceMut};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

use nix::cmsg_space;
use nix::sys::socket::{ControlMessage, ControlMessageOwned, MsgFlags, UnixAddr, recv, recvmsg, sendmsg};
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::message::{Answer, Command, Event, Failure, Message, Outcome, Request};

/// The largest packet in bytes.
pub const MAX_PACKET: usize = 128 << 10;
/// The most descriptors that a packet carries (`SCM_MAX_FD`).
pub const MAX_DESCRIPTORS: usize = 253;

/// Why a message did not get through.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The other side is gone.
    #[error("the other side has closed the connection")]
    Closed,
    /// The socket failed. `WouldBlock` of a non-blocking one is here too.
    #[error("the control socket failed: {0}")]
    Io(#[from] io::Error),
    /// A packet that is too large, or with more descriptors than fit.
    #[error("a packet was larger than {MAX_PACKET} bytes, or had more than {MAX_DESCRIPTORS} descriptors")]
    TooLarge,
    /// Not a message of this protocol.
    #[error("a message cannot be understood: {0}")]
    Malformed(#[from] serde_json::Error),
    /// The VMM says no.
    #[error("{}", .0.message)]
    Refused(Failure),
    /// The VMM answers something else.
    #[error("the answer does not go with the request")]
    Unexpected,
}

/// Sends one packet. Without a reader, that is [`Error::Closed`].
pub fn send_packet(
    socket: BorrowedFd<'_>,
    message: &impl Serialize,
    descriptors: &[BorrowedFd<'_>],
) -> Result<(), Error> {
    let bytes = serde_json::to_vec(message)?;
    if bytes.len() > MAX_PACKET || descriptors.len() > MAX_DESCRIPTORS {
        return Err(Error::TooLarge);
    }
    let raw: Vec<_> = descriptors.iter().map(AsRawFd::as_raw_fd).collect();
    let rights = [ControlMessage::ScmRights(&raw)];
    let control = if raw.is_empty() { &[][..] } else { &rights };
    loop {
        let data = [IoSlice::new(&bytes)];
        match sendmsg::<UnixAddr>(socket.as_raw_fd(), &data, control, MsgFlags::MSG_NOSIGNAL, None) {
            Ok(_) => return Ok(()),
            Err(nix::Error::EINTR) => {}
            Err(nix::Error::EPIPE | nix::Error::ECONNRESET) => return Err(Error::Closed),
            Err(error) => return Err(io::Error::from(error).into()),
        }
    }
}

/// Receives one packet: its bytes and its descriptors.
pub fn receive_packet(socket: BorrowedFd<'_>) -> Result<(Vec<u8>, Vec<OwnedFd>), Error> {
    // Most packets are small, and a large buffer costs more than a look at the packet's length does.
    let mut bytes = vec![0; next_length(socket)?.min(MAX_PACKET)];
    let mut control = cmsg_space!([std::os::fd::RawFd; MAX_DESCRIPTORS]);
    let (count, flags, descriptors) = loop {
        let mut data = [IoSliceMut::new(&mut bytes)];
        let flags = MsgFlags::MSG_CMSG_CLOEXEC;
        match recvmsg::<UnixAddr>(socket.as_raw_fd(), &mut data, Some(&mut control), flags) {
            Ok(received) => {
                let mut descriptors = Vec::new();
                for message in received.cmsgs().map_err(io::Error::from)? {
                    if let ControlMessageOwned::ScmRights(raw) = message {
                        // SAFETY: the kernel has just made these descriptors for us, and nobody else knows them.
                        descriptors.extend(raw.into_iter().map(|fd| unsafe { OwnedFd::from_raw_fd(fd) }));
                    }
                }
                break (received.bytes, received.flags, descriptors);
            }
            Err(nix::Error::EINTR) => {}
            Err(nix::Error::ECONNRESET) => return Err(Error::Closed),
            Err(error) => return Err(io::Error::from(error).into()),
        }
    };
    if flags.intersects(MsgFlags::MSG_TRUNC | MsgFlags::MSG_CTRUNC) {
        return Err(Error::TooLarge);
    }
    if count == 0 {
        return Err(Error::Closed);
    }
    bytes.truncate(count);
    Ok((bytes, descriptors))
}

/// The length of the packet that is next, which stays where it is. Waits for it, unless the socket is non-blocking.
fn next_length(socket: BorrowedFd<'_>) -> Result<usize, Error> {
    loop {
        match recv(socket.as_raw_fd(), &mut [], MsgFlags::MSG_PEEK | MsgFlags::MSG_TRUNC) {
            Ok(length) => return Ok(length),
            Err(nix::Error::EINTR) => {}
            Err(nix::Error::ECONNRESET) => return Err(Error::Closed),
            Err(error) => return Err(io::Error::from(error).into()),
        }
    }
}

/// A controller's end. Calls wait for their answer, and keep the events that come before it.
#[derive(Debug)]
pub struct Connection {
    socket: OwnedFd,
    last_id: u64,
    events: std::collections::VecDeque<Event>,
}

impl Connection {
    /// Takes over a connected socket. The first thing to say is [`Command::Hello`].
    pub fn new(socket: OwnedFd) -> Self {
        Self { socket, last_id: 0, events: Default::default() }
    }

    /// Takes over a connected socket and says hello.
    pub fn open(socket: OwnedFd) -> Result<Self, Error> {
        let mut connection = Self::new(socket);
        connection.call(Command::Hello { version: crate::VERSION }, &[])?;
        Ok(connection)
    }

    /// Sends a command and waits for its answer.
    pub fn call(&mut self, command: Command, descriptors: &[BorrowedFd<'_>]) -> Result<Answer, Error> {
        let id = self.send(command, descriptors)?;
        self.answer(id)
    }

    /// Sends a command without waiting for its answer; returns the number to ask for it with.
    ///
    /// Several commands can be on their way, which saves a wait for each. The VMM carries out each of them, also if it
    /// has refused the one before. It reads no more once the socket has no room for its answers: whoever sends ten
    /// without reading one may wait for ever.
    pub fn send(&mut self, command: Command, descriptors: &[BorrowedFd<'_>]) -> Result<u64, Error> {
        self.last_id += 1;
        let id = self.last_id;
        send_packet(self.socket.as_fd(), &Request { id, command }, descriptors)?;
        Ok(id)
    }

    /// The answer to a command that [`Connection::send`] has sent; to be asked for in the order of the commands. Waits
    /// for it; if the socket is a non-blocking one, it can be asked for again.
    pub fn answer(&mut self, id: u64) -> Result<Answer, Error> {
        loop {
            match self.receive()? {
                Message::Event(event) => self.events.push_back(event),
                Message::Reply(reply) if reply.id == id => {
                    return match reply.outcome {
                        Outcome::Ok(answer) => Ok(answer),
                        Outcome::Error(failure) => Err(Error::Refused(failure)),
                    };
                }
                Message::Reply(_) => return Err(Error::Unexpected),
            }
        }
    }

    /// The next event. Waits for it, if the socket is not a non-blocking one.
    pub fn event(&mut self) -> Result<Event, Error> {
        if let Some(event) = self.events.pop_front() {
            return Ok(event);
        }
        match self.receive()? {
            Message::Event(event) => Ok(event),
            Message::Reply(_) => Err(Error::Unexpected),
        }
    }

    /// Whether [`Connection::event`] has one without a look at the socket.
    pub fn has_event(&self) -> bool {
        !self.events.is_empty()
    }

    fn receive(&mut self) -> Result<Message, Error> {
        receive::<Message>(self.socket.as_fd()).map(|(message, _)| message)
    }
}

impl AsFd for Connection {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

/// Receives one message and its descriptors.
fn receive<T: DeserializeOwned>(socket: BorrowedFd<'_>) -> Result<(T, Vec<OwnedFd>), Error> {
    let (bytes, descriptors) = receive_packet(socket)?;
    Ok((serde_json::from_slice(&bytes)?, descriptors))
}

#[cfg(test)]
mod tests {
    use super::*;
    use nix::sys::socket::{AddressFamily, SockFlag, SockType, socketpair};

    fn pair() -> (OwnedFd, OwnedFd) {
        socketpair(AddressFamily::Unix, SockType::SeqPacket, None, SockFlag::SOCK_CLOEXEC).unwrap()
    }

    #[test]
    fn descriptors_travel_with_their_message() {
        let (ours, theirs) = pair();
        let (read, write) = nix::unistd::pipe().unwrap();
        send_packet(ours.as_fd(), &"two", &[read.as_fd(), write.as_fd()]).unwrap();
        send_packet(ours.as_fd(), &"none", &[]).unwrap();
        drop((read, write));
        let (bytes, descriptors) = receive_packet(theirs.as_fd()).unwrap();
        assert_eq!((bytes.as_slice(), descriptors.len()), (&b"\"two\""[..], 2));
        nix::unistd::write(&descriptors[1], b"x").unwrap();
        let mut byte = [0];
        assert_eq!(nix::unistd::read(&descriptors[0], &mut byte), Ok(1));
        assert!(receive_packet(theirs.as_fd()).unwrap().1.is_empty());
        drop(ours);
        assert!(matches!(receive_packet(theirs.as_fd()), Err(Error::Closed)));
        assert!(matches!(send_packet(theirs.as_fd(), &1, &[]), Err(Error::Closed)));
    }

    #[test]
    fn what_is_too_large_is_not_sent_and_not_taken() {
        let (ours, theirs) = pair();
        let text = "x".repeat(MAX_PACKET);
        assert!(matches!(send_packet(ours.as_fd(), &text, &[]), Err(Error::TooLarge)));
        let many = vec![ours.as_fd(); MAX_DESCRIPTORS + 1];
        assert!(matches!(send_packet(ours.as_fd(), &1, &many), Err(Error::TooLarge)));
        let bytes = vec![b'x'; MAX_PACKET + 1];
        let flags = MsgFlags::empty();
        nix::sys::socket::send(ours.as_raw_fd(), &bytes, flags).unwrap();
        assert!(matches!(receive_packet(theirs.as_fd()), Err(Error::TooLarge)));
        send_packet(ours.as_fd(), &&text[..MAX_PACKET - 2], &many[..MAX_DESCRIPTORS]).unwrap();
        let (bytes, descriptors) = receive_packet(theirs.as_fd()).unwrap();
        assert_eq!((bytes.len(), descriptors.len()), (MAX_PACKET, MAX_DESCRIPTORS));
    }

    #[test]
    fn several_commands_can_be_on_their_way() {
        use crate::message::Reply;
        let (ours, theirs) = pair();
        let mut connection = Connection::new(ours);
        let ids = [Command::Hello { version: 1 }, Command::Status, Command::Start]
            .map(|command| connection.send(command, &[]).unwrap());
        for expected in ids {
            let (Request { id, .. }, _) = receive(theirs.as_fd()).unwrap();
            assert_eq!(id, expected);
            let reply = Message::Reply(Reply { id, outcome: Outcome::Ok(Answer::Done) });
            send_packet(theirs.as_fd(), &reply, &[]).unwrap();
        }
        assert!(ids.into_iter().all(|id| matches!(connection.answer(id), Ok(Answer::Done))));
    }

    #[test]
    fn events_before_an_answer_are_kept() {
        use crate::message::{Happening, Reply};
        let (ours, theirs) = pair();
        let event = |sequence| Message::Event(Event { sequence, time_ms: 0, what: Happening::Started });
        let reply = |id| Message::Reply(Reply { id, outcome: Outcome::Ok(Answer::Done) });
        for message in [reply(1), event(1), event(2), reply(2), event(3), reply(9)] {
            send_packet(theirs.as_fd(), &message, &[]).unwrap();
        }
        let mut connection = Connection::open(ours).unwrap();
        connection.call(Command::Start, &[]).unwrap();
        for sequence in 1..=3 {
            assert_eq!(connection.has_event(), sequence < 3);
            assert_eq!(connection.event().unwrap().sequence, sequence);
        }
        assert!(matches!(connection.call(Command::Start, &[]), Err(Error::Unexpected)));
    }
}
