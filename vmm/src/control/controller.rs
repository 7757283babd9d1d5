//! One controller's connection. Nothing here waits: what the socket does not take stays until it does.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use innkeeper_block::layered::Layer;
use innkeeper_protocol::{
    self as protocol, Command, Descriptor, Failure, FailureCode, LAYERS_MAX, LayerFiles, Message, Outcome,
    Reply, Request,
};
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::poll::PollFlags;

use super::events::EventLog;

/// A controller.
#[derive(Debug)]
pub struct Controller {
    socket: OwnedFd,
    /// Whether the versions go together.
    pub has_said_hello: bool,
    /// The number of the last event that it got or knew of before, if it wants events.
    last_event: Option<u64>,
    /// Whether it has got an event since it asked for them. From then on it expects them without a gap.
    has_events: bool,
    /// What the socket had no room for. Until it has gone, nothing more is read.
    unsent: Option<Message>,
    /// The lower layers of the layered disk that it adds next, from the bottom.
    layers: Vec<Layer>,
    /// It is gone, or cannot be served any longer.
    is_over: bool,
}

/// A request as it came in: what it says, or what is wrong with it.
pub type Incoming = (u64, Result<Command, Failure>, Descriptors);

impl Controller {
    /// Takes over a connected socket.
    pub fn new(socket: OwnedFd) -> io::Result<Self> {
        set_nonblocking(&socket)?;
        Ok(Self {
            socket,
            has_said_hello: false,
            last_event: None,
            has_events: false,
            unsent: None,
            layers: Vec::new(),
            is_over: false,
        })
    }

    /// Keeps layers for the layered disk that it adds next.
    pub fn add_layers(
        &mut self,
        layers: Vec<LayerFiles>,
        descriptors: &mut Descriptors,
    ) -> Result<(), Failure> {
        if self.layers.len().saturating_add(layers.len()) > LAYERS_MAX {
            let message = format!("at most {LAYERS_MAX} layers are kept for the next disk");
            return Err(Failure { code: FailureCode::Invalid, message });
        }
        self.layers.extend(descriptors.take_layers(layers)?);
        Ok(())
    }

    /// The layers that it has said before.
    pub fn take_layers(&mut self) -> Vec<Layer> {
        std::mem::take(&mut self.layers)
    }

    /// Whether it is to be forgotten.
    pub fn is_over(&self) -> bool {
        self.is_over
    }

    /// What to wait for at its socket.
    pub fn interest(&self) -> PollFlags {
        if self.unsent.is_some() { PollFlags::POLLOUT } else { PollFlags::POLLIN }
    }

    /// The next request, if one has come and the answer to the one before it is gone.
    pub fn receive(&mut self) -> Option<Incoming> {
        if self.unsent.is_some() || self.is_over {
            return None;
        }
        match protocol::receive_packet(self.socket.as_fd()) {
            Ok((bytes, descriptors)) => {
                let descriptors = Descriptors(descriptors.into_iter().map(Some).collect());
                let (id, command) = parse(&bytes);
                Some((id, command, descriptors))
            }
            Err(protocol::Error::Io(error)) if error.kind() == io::ErrorKind::WouldBlock => None,
            Err(error @ protocol::Error::TooLarge) => {
                let failure = Failure { code: FailureCode::Invalid, message: error.to_string() };
                Some((0, Err(failure), Descriptors(Vec::new())))
            }
            Err(error) => {
                tracing::debug!(%error, "a controller goes");
                self.is_over = true;
                None
            }
        }
    }

    /// Answers a request.
    pub fn reply(&mut self, id: u64, outcome: Outcome) {
        self.send(Message::Reply(Reply { id, outcome }));
    }

    /// It wants events from behind number `after` on. What is not kept any more it cannot have; the numbers tell.
    pub fn subscribe(&mut self, after: u64) {
        (self.last_event, self.has_events) = (Some(after), false);
    }

    /// Sends what waits, and then the events that it has not got yet, as far as the socket takes them.
    pub fn flush(&mut self, events: &EventLog) {
        if let Some(message) = self.unsent.take() {
            self.send(message);
        }
        while let Some((last, event)) =
            self.last_event.and_then(|last| Some((last, events.next(last)?))).filter(|_| self.is_ready())
        {
            if self.has_events && event.sequence > last + 1 {
                // What comes next is not what it expects. It had better begin anew.
                tracing::warn!("a controller does not read its events, and is cut off");
                self.is_over = true;
                return;
            }
            (self.last_event, self.has_events) = (Some(event.sequence), true);
            self.send(Message::Event(event.clone()));
        }
    }

    fn is_ready(&self) -> bool {
        self.unsent.is_none() && !self.is_over
    }

    /// Whether it has not taken what was sent to it.
    pub fn is_deaf(&self) -> bool {
        self.unsent.is_some()
    }

    /// Forgets it.
    pub fn cut_off(&mut self) {
        self.is_over = true;
    }

    fn send(&mut self, message: Message) {
        match protocol::send_packet(self.socket.as_fd(), &message, &[]) {
            Ok(()) => {}
            Err(protocol::Error::Io(error)) if error.kind() == io::ErrorKind::WouldBlock => {
                self.unsent = Some(message);
            }
            Err(error) => {
                tracing::debug!(%error, "a controller goes");
                self.is_over = true;
            }
        }
    }
}

impl AsFd for Controller {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

/// The request in a packet: its id as far as it can be read, and its command.
pub fn parse(bytes: &[u8]) -> (u64, Result<Command, Failure>) {
    #[derive(serde::Deserialize)]
    struct Id {
        id: u64,
    }
    match serde_json::from_slice::<Request>(bytes) {
        Ok(Request { id, command }) => (id, Ok(command)),
        Err(error) => {
            let id = serde_json::from_slice::<Id>(bytes).map_or(0, |Id { id }| id);
            let message = format!("the request cannot be understood: {error}");
            (id, Err(Failure { code: FailureCode::Invalid, message }))
        }
    }
}

/// Has reads and writes return at once.
pub fn set_nonblocking(file: &impl AsFd) -> io::Result<()> {
    let flags = OFlag::from_bits_retain(fcntl(file.as_fd(), FcntlArg::F_GETFL)?);
    fcntl(file.as_fd(), FcntlArg::F_SETFL(flags | OFlag::O_NONBLOCK))?;
    Ok(())
}

/// The descriptors of a packet. Those that nobody takes are closed.
#[derive(Debug)]
pub struct Descriptors(Vec<Option<OwnedFd>>);

impl Descriptors {
    /// The descriptor that a message speaks of, for `what`.
    pub fn take(&mut self, descriptor: Descriptor, what: &str) -> Result<OwnedFd, Failure> {
        let index = usize::try_from(descriptor.0).unwrap_or(usize::MAX);
        self.0.get_mut(index).and_then(Option::take).ok_or_else(|| Failure {
            code: FailureCode::Invalid,
            message: format!(
                "descriptor {index}, for {what}, did not come with the message, or is named twice"
            ),
        })
    }

    /// The layers that a message speaks of.
    pub fn take_layers(&mut self, layers: Vec<LayerFiles>) -> Result<Vec<Layer>, Failure> {
        layers
            .into_iter()
            .map(|LayerFiles { data, map }| {
                let data = self.take(data, "the data of a layer")?.into();
                Ok(Layer { data, map: self.take(map, "the map of a layer")?.into() })
            })
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use innkeeper_protocol::Happening;
    use nix::sys::socket::{AddressFamily, SockFlag, SockType, socketpair};

    fn pair() -> (OwnedFd, Controller) {
        let (ours, theirs) =
            socketpair(AddressFamily::Unix, SockType::SeqPacket, None, SockFlag::SOCK_CLOEXEC).unwrap();
        (ours, Controller::new(theirs).unwrap())
    }

    #[test]
    fn nonsense_is_answered_with_the_id_it_has() {
        let cases: [(&[u8], u64); 5] = [
            (b"", 0),
            (b"\xff\xfe", 0),
            (br#"{"id":3}"#, 3),
            (br#"{"id":4,"command":"fly"}"#, 4),
            (br#"{"id":5,"command":{"detach":{"id":"a","colour":"red"}}}"#, 5),
        ];
        for (bytes, id) in cases {
            let (found, command) = parse(bytes);
            assert_eq!((found, command.unwrap_err().code), (id, FailureCode::Invalid));
        }
        assert_eq!(parse(br#"{"id":6,"command":"start"}"#), (6, Ok(Command::Start)));
    }

    #[test]
    fn a_descriptor_is_there_once() {
        let (socket, _controller) = pair();
        let mut descriptors = Descriptors(vec![Some(socket)]);
        assert!(descriptors.take(Descriptor(1), "a disk").is_err());
        assert!(descriptors.take(Descriptor(u32::MAX), "a disk").is_err());
        assert!(descriptors.take(Descriptor(0), "a disk").is_ok());
        assert!(descriptors.take(Descriptor(0), "a disk").unwrap_err().message.contains("named twice"));
    }

    /// One that asks for all there is cannot have lost what goes before the first event is sent to it.
    #[test]
    fn events_may_be_forgotten_before_a_controller_gets_the_first() {
        let (ours, mut controller) = pair();
        let mut events = EventLog::default();
        (0..protocol::EVENTS_KEPT).for_each(|_| events.add(Happening::Started));
        controller.subscribe(0);
        events.add(Happening::Paused);
        controller.flush(&events);
        assert!(!controller.is_over());
        let (bytes, _) = protocol::receive_packet(ours.as_fd()).unwrap();
        let Ok(Message::Event(event)) = serde_json::from_slice(&bytes) else { panic!("no event") };
        assert_eq!(event.sequence, 2);
    }

    #[test]
    fn a_controller_that_does_not_read_is_not_waited_for() {
        let (ours, mut controller) = pair();
        let mut events = EventLog::default();
        controller.subscribe(0);
        while controller.unsent.is_none() {
            events.add(Happening::Started);
            controller.flush(&events);
        }
        protocol::send_packet(ours.as_fd(), &Request { id: 1, command: Command::Status }, &[]).unwrap();
        assert!(controller.receive().is_none(), "it is to read first");
        assert_eq!(controller.interest(), PollFlags::POLLOUT);
        let mut last = 0;
        // It was cut off if it fell too far behind, and comes again.
        controller.flush(&events);
        assert!(!controller.is_over());
        while last < events.last() {
            let (bytes, _) = protocol::receive_packet(ours.as_fd()).unwrap();
            let Ok(Message::Event(event)) = serde_json::from_slice(&bytes) else { panic!("no event") };
            assert!(event.sequence > last);
            last = event.sequence;
            controller.flush(&events);
        }
        assert!(controller.receive().is_some());
        drop(ours);
        assert!(controller.receive().is_none() && controller.is_over());
    }
}
