//! A connection to a VMM, for an actor: calls with a deadline, events, and word of its death.

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Duration;

use innkeeper_block::layered;
use innkeeper_protocol::{
    Answer, AttachDisk, AttachInterface, Command, ConsoleKind, Descriptor, DiskEngine, DiskSource,
    Error as ProtocolError, Event, LayerFiles, Limits, MAX_DESCRIPTORS, Message, Metrics, Outcome, Request,
    SealDisk, State, Status, VERSION, receive_packet, send_packet,
};
use tokio::io::AsyncReadExt;
use tokio::io::unix::AsyncFd;
use tokio::net::unix::pipe;
use tokio::time::timeout;

use crate::host::{self, VmmProcess};

/// How long a VMM may take to answer. It answers at once, however long what it was asked for takes; but the host may be
/// busy.
const PATIENCE: Duration = Duration::from_secs(20);

/// How often it is looked whether a guest that was ended is gone.
const LOOK_AGAIN: Duration = Duration::from_millis(5);

/// How many events may come before an answer. A VMM tells of what its guest does, which is little: one that tells more
/// is not to be trusted.
const MAX_EVENTS: usize = 1024;
/// The most of a console that a VMM keeps.
const CONSOLE: u64 = 64 << 10;

/// Why a VMM does not do as it was told.
#[derive(Debug, thiserror::Error)]
pub enum VmmError {
    /// It cannot be talked to.
    #[error(transparent)]
    Protocol(ProtocolError),
    /// It is gone.
    #[error(
        "the VMM has ended without an answer (the agent's log has its last words, `innkeeper check` what this host lacks)"
    )]
    Ended,
    /// It does not answer.
    #[error("the VMM has not answered within {} s", PATIENCE.as_secs())]
    Silent,
}

impl From<ProtocolError> for VmmError {
    fn from(error: ProtocolError) -> Self {
        match error {
            ProtocolError::Closed => Self::Ended,
            other => Self::Protocol(other),
        }
    }
}

impl From<io::Error> for VmmError {
    fn from(error: io::Error) -> Self {
        Self::Protocol(error.into())
    }
}

/// What a disk is made of.
#[derive(Debug)]
pub enum DiskFiles {
    /// A raw file.
    Raw(OwnedFd),
    /// Layers, from the bottom.
    Layers(Vec<layered::Layer>),
}

/// A disk to add.
#[derive(Clone, Copy, Debug)]
pub struct NewDisk<'a> {
    /// The agent's name for it.
    pub id: &'a str,
    /// What the guest sees.
    pub serial: &'a str,
    /// Whether it is only read, and nobody writes to it meanwhile.
    pub is_still: bool,
    /// How much the guest may do.
    pub limits: Limits,
}

/// How many layers go into a packet.
pub const LAYERS_AT_ONCE: usize = MAX_DESCRIPTORS / 2;

/// Layers as a message names them, whose descriptors come behind `before` others.
fn parcel(layers: &[layered::Layer], before: usize) -> (Vec<LayerFiles>, Vec<BorrowedFd<'_>>) {
    let descriptors = layers.iter().flat_map(|layer| [layer.data.as_fd(), layer.map.as_fd()]).collect();
    let number = |index: usize| Descriptor(u32::try_from(before + index).unwrap_or(u32::MAX));
    let names =
        (0..layers.len()).map(|index| LayerFiles { data: number(2 * index), map: number(2 * index + 1) });
    (names.collect(), descriptors)
}

/// A VMM.
#[derive(Debug)]
pub struct Vmm {
    control: AsyncFd<OwnedFd>,
    process: AsyncFd<OwnedFd>,
    last_id: u64,
    events: VecDeque<Event>,
}

impl Vmm {
    /// Takes over a process, and says hello.
    pub async fn open(process: VmmProcess) -> Result<Self, VmmError> {
        let mut vmm = Self {
            control: watched(process.control)?,
            process: watched(process.pidfd)?,
            last_id: 0,
            events: VecDeque::new(),
        };
        vmm.call(Command::Hello { version: VERSION }, &[]).await?;
        Ok(vmm)
    }

    /// Has a command carried out.
    pub async fn call(&mut self, command: Command, descriptors: &[OwnedFd]) -> Result<Answer, VmmError> {
        let descriptors: Vec<BorrowedFd<'_>> = descriptors.iter().map(AsFd::as_fd).collect();
        self.call_with(command, &descriptors).await
    }

    async fn call_with(
        &mut self,
        command: Command,
        descriptors: &[BorrowedFd<'_>],
    ) -> Result<Answer, VmmError> {
        self.last_id += 1;
        let id = self.last_id;
        let exchange = async {
            let request = Request { id, command };
            loop {
                let mut ready = self.control.writable().await?;
                match send_packet(self.control.get_ref().as_fd(), &request, descriptors) {
                    Err(ProtocolError::Io(error)) if error.kind() == io::ErrorKind::WouldBlock => {
                        ready.clear_ready();
                    }
                    result => break result?,
                }
            }
            loop {
                match receive(&self.control).await? {
                    Message::Event(_) if self.events.len() == MAX_EVENTS => {
                        return Err(ProtocolError::Unexpected.into());
                    }
                    Message::Event(event) => self.events.push_back(event),
                    Message::Reply(reply) if reply.id == id => {
                        return match reply.outcome {
                            Outcome::Ok(answer) => Ok(answer),
                            Outcome::Error(failure) => Err(ProtocolError::Refused(failure).into()),
                        };
                    }
                    // To a call before this one that was given up.
                    Message::Reply(reply) if reply.id < id => {}
                    Message::Reply(_) => return Err(ProtocolError::Unexpected.into()),
                }
            }
        };
        timeout(PATIENCE, exchange).await.map_err(|_| VmmError::Silent)?
    }

    /// Has a command carried out that needs no descriptors and has no answer.
    pub async fn say(&mut self, command: Command) -> Result<(), VmmError> {
        self.call(command, &[]).await.map(|_| ())
    }

    /// Gives the guest a disk; returns its slot.
    pub async fn attach_disk(&mut self, disk: NewDisk<'_>, files: &DiskFiles) -> Result<u8, VmmError> {
        let (source, descriptors) = match files {
            DiskFiles::Raw(file) => (DiskSource::Raw { file: Descriptor(0) }, vec![file.as_fd()]),
            DiskFiles::Layers(layers) => {
                // A packet has no room for more.
                let (below, above) = layers.split_at(layers.len().saturating_sub(LAYERS_AT_ONCE));
                for layers in below.chunks(LAYERS_AT_ONCE) {
                    let (layers, descriptors) = parcel(layers, 0);
                    self.call_with(Command::Layers { layers }, &descriptors).await?;
                }
                let (layers, descriptors) = parcel(above, 0);
                (DiskSource::Layered { layers }, descriptors)
            }
        };
        let attach = AttachDisk {
            id: disk.id.to_owned(),
            source,
            read_only: disk.is_still,
            still: disk.is_still,
            serial: disk.serial.to_owned(),
            engine: DiskEngine::Auto,
            queues: None,
            limits: disk.limits,
        };
        match self.call_with(Command::AttachDisk(Box::new(attach)), &descriptors).await? {
            Answer::Attached { slot } => Ok(slot),
            _ => Err(ProtocolError::Unexpected.into()),
        }
    }

    /// Puts new layers on disks, at one point of time: for each, those that were made to be on top of what it has.
    pub async fn seal_disks<'a>(
        &mut self,
        disks: impl Iterator<Item = (&'a str, &'a [layered::Layer])>,
    ) -> Result<(), VmmError> {
        let mut descriptors = Vec::new();
        let mut seals = Vec::new();
        for (id, tops) in disks {
            let (tops, more) = parcel(tops, descriptors.len());
            descriptors.extend(more);
            seals.push(SealDisk { id: id.to_owned(), tops });
        }
        self.call_with(Command::SealDisks { disks: seals }, &descriptors).await.map(drop)
    }

    /// The UUIDs of a disk's layers, from the bottom.
    pub async fn disk_layers(&mut self, id: &str) -> Result<Vec<String>, VmmError> {
        match self.call(Command::DiskLayers { id: id.to_owned() }, &[]).await? {
            Answer::DiskLayers { layers } => Ok(layers),
            _ => Err(ProtocolError::Unexpected.into()),
        }
    }

    /// Puts a layer in the place of `count` of a disk's that it was merged of, from the `first` on.
    pub async fn replace_layers(
        &mut self,
        id: &str,
        (first, count): (usize, usize),
        merged: &layered::Layer,
    ) -> Result<(), VmmError> {
        let number = |number| u32::try_from(number).unwrap_or(u32::MAX);
        let (layers, descriptors) = parcel(std::slice::from_ref(merged), 0);
        let Some(merged) = layers.first().copied() else { return Ok(()) };
        let (first, count) = (number(first), number(count));
        let command = Command::ReplaceLayers { id: id.to_owned(), first, count, merged };
        self.call_with(command, &descriptors).await.map(drop)
    }

    /// Gives the guest a network interface; returns its slot.
    pub async fn attach_interface(
        &mut self,
        id: &str,
        mac: &str,
        limits: Limits,
        taps: &[OwnedFd],
    ) -> Result<u8, VmmError> {
        let interface = AttachInterface {
            id: id.to_owned(),
            taps: (0..).map(Descriptor).take(taps.len()).collect(),
            vhost: Vec::new(),
            mac: mac.to_owned(),
            receive: limits,
            transmit: limits,
        };
        match self.call(Command::AttachInterface(Box::new(interface)), taps).await? {
            Answer::Attached { slot } => Ok(slot),
            _ => Err(ProtocolError::Unexpected.into()),
        }
    }

    /// How things stand.
    pub async fn status(&mut self) -> Result<Status, VmmError> {
        match self.call(Command::Status, &[]).await? {
            Answer::Status(status) => Ok(*status),
            _ => Err(ProtocolError::Unexpected.into()),
        }
    }

    /// What was counted since it was started.
    pub async fn metrics(&mut self) -> Result<Metrics, VmmError> {
        match self.call(Command::Metrics, &[]).await? {
            Answer::Metrics(metrics) => Ok(*metrics),
            _ => Err(ProtocolError::Unexpected.into()),
        }
    }

    /// The next event, if it was asked for events. Nothing is lost when this is given up.
    pub async fn event(&mut self) -> Result<Event, VmmError> {
        if let Some(event) = self.events.pop_front() {
            return Ok(event);
        }
        loop {
            if let Message::Event(event) = receive(&self.control).await? {
                return Ok(event);
            }
        }
    }

    /// What the guest has printed on its serial port and the VMM has kept.
    pub async fn console(&mut self) -> Result<Vec<u8>, VmmError> {
        let (ours, theirs) = io::pipe()?;
        let ours = pipe::Receiver::from_owned_fd(ours.into())?;
        let command = Command::AttachConsole {
            console: ConsoleKind::Serial,
            output: Some(Descriptor(0)),
            input: None,
            follow: false,
            after: 0,
        };
        self.call(command, &[theirs.into()]).await?;
        let mut bytes = Vec::new();
        let mut limited = ours.take(CONSOLE);
        timeout(PATIENCE, limited.read_to_end(&mut bytes)).await.map_err(|_| VmmError::Silent)??;
        Ok(bytes)
    }

    /// Returns when the process has ended.
    pub async fn died(&self) {
        // A pidfd is readable from the process's end on; an error here would be the agent's own, and then the control
        // socket's end says the same.
        if self.process.readable().await.is_ok() {
            host::reap(self.process.get_ref());
        }
    }

    /// Ends the guest, if it has not ended by itself, and says how things stand once nothing of it is left: the disks are
    /// closed then.
    pub async fn end_guest(&mut self) -> Result<Status, VmmError> {
        let over = async {
            loop {
                let status = self.status().await?;
                if status.ending.is_some() || status.state == State::Unconfigured {
                    return Ok(status);
                }
                if status.state != State::Ended {
                    // It may have ended by itself since.
                    let _ = self.say(Command::PowerOff).await;
                }
                tokio::time::sleep(LOOK_AGAIN).await;
            }
        };
        timeout(PATIENCE, over).await.map_err(|_| VmmError::Silent)?
    }

    /// Ends the guest and the process.
    pub async fn end(mut self) -> Result<(), host::HostError> {
        let _ = self.end_guest().await;
        self.quit().await
    }

    /// Ends the process: by the protocol first, which lets writes that are under way end, then by force.
    pub async fn quit(mut self) -> Result<(), host::HostError> {
        let politely = async {
            self.say(Command::Quit).await?;
            self.died().await;
            Ok::<(), VmmError>(())
        };
        if !matches!(timeout(PATIENCE, politely).await, Ok(Ok(()))) {
            let process = self.process.into_inner();
            return match tokio::task::spawn_blocking(move || host::kill(&process)).await {
                Ok(result) => result,
                Err(error) => {
                    Err(host::HostError { what: "end a VMM".into(), cause: io::Error::other(error) })
                }
            };
        }
        Ok(())
    }
}

/// Lets the runtime watch a descriptor.
fn watched(descriptor: OwnedFd) -> io::Result<AsyncFd<OwnedFd>> {
    // SAFETY: an OwnedFd is open, stays the same one, and is not given away before the AsyncFd is.
    unsafe { AsyncFd::register(descriptor) }.map_err(io::Error::from)
}

/// The next message. Packets arrive whole, so nothing is lost when this is given up.
async fn receive(control: &AsyncFd<OwnedFd>) -> Result<Message, VmmError> {
    // A socket that is always readable is never waited for: without this, a VMM that talks without end would keep the
    // thread from everybody else.
    tokio::task::coop::consume_budget().await;
    loop {
        let mut ready = control.readable().await?;
        match receive_packet(control.get_ref().as_fd()) {
            Ok((bytes, _)) => return Ok(serde_json::from_slice(&bytes).map_err(ProtocolError::from)?),
            Err(ProtocolError::Io(error)) if error.kind() == io::ErrorKind::WouldBlock => ready.clear_ready(),
            Err(error) => return Err(error.into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixStream;

    use innkeeper_protocol::Happening;
    use nix::sys::socket::{AddressFamily, SockFlag, SockType, socketpair};

    use super::*;

    /// A connection to a VMM that says nothing but events, and as many as it can.
    fn flooded() -> Vmm {
        let flags = SockFlag::SOCK_CLOEXEC;
        let (ours, theirs) = socketpair(AddressFamily::Unix, SockType::SeqPacket, None, flags).unwrap();
        nix::fcntl::fcntl(&ours, nix::fcntl::FcntlArg::F_SETFL(nix::fcntl::OFlag::O_NONBLOCK)).unwrap();
        std::thread::spawn(move || {
            let what = Happening::BootSourceRefused { reason: "x".repeat(1000) };
            let event = Message::Event(Event { sequence: 1, time_ms: 0, what });
            while send_packet(theirs.as_fd(), &event, &[]).is_ok() {}
        });
        // Stands for its process, and lives.
        let (process, _) = UnixStream::pair().unwrap();
        Vmm {
            control: watched(ours).unwrap(),
            process: watched(process.into()).unwrap(),
            last_id: 0,
            events: VecDeque::new(),
        }
    }

    #[tokio::test]
    async fn a_vmm_cannot_fill_the_memory_with_events() {
        let mut vmm = flooded();
        let error = vmm.status().await.unwrap_err();
        assert!(matches!(error, VmmError::Protocol(ProtocolError::Unexpected)), "{error}");
        assert_eq!(vmm.events.len(), MAX_EVENTS);
    }

    #[test]
    fn an_end_of_the_connection_is_told_as_the_end_of_the_vmm() {
        for (error, expected) in [
            (ProtocolError::Closed, "the VMM has ended without an answer"),
            (ProtocolError::Io(io::Error::other("no room")), "the control socket failed: no room"),
        ] {
            let said = VmmError::from(error).to_string();
            assert!(said.starts_with(expected), "{said}");
        }
    }
}
