//! A network interface: a tap in the guest's namespace, and a wire from it to the agent's tap.

use std::fs::File;
use std::io::{self, ErrorKind, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use innkeeper_protocol::{DriverState, InterfaceMetrics};
use innkeeper_tests::background::{Background, End};
use innkeeper_tests::network::frame::Mac;
use innkeeper_tests::network::tap;
use nix::net::if_::if_nametoindex;

/// The largest packet with what is in front of it: TCP segments may be larger than the MTU.
const LARGEST: usize = (64 << 10) + 1024 + tap::HEADER_SIZE;
/// How many frames are copied before a thread looks whether it is to end.
const BATCH: usize = 64;

/// An interface, whether the guest runs or not.
pub struct Interface {
    /// The agent's tap, a descriptor for each of its queues.
    queues: Arc<Vec<File>>,
    mac: Mac,
    counts: Arc<Counts>,
    wire: Option<Wire>,
}

/// What has passed.
#[derive(Default)]
struct Counts {
    received: Direction,
    sent: Direction,
    /// Whether one of the taps is there no more.
    has_failed: AtomicBool,
}

#[derive(Default)]
struct Direction {
    frames: AtomicU64,
    bytes: AtomicU64,
    drops: AtomicU64,
}

/// The guest's tap, which goes with this, and the two threads that copy.
struct Wire {
    _receiver: Background,
    _sender: Background,
}

impl Interface {
    /// Takes over the agent's tap.
    pub fn new(queues: Vec<OwnedFd>, mac: Mac) -> io::Result<Self> {
        queues.iter().try_for_each(tap::adopt)?;
        let queues = Arc::new(queues.into_iter().map(File::from).collect());
        Ok(Self { queues, mac, counts: Arc::default(), wire: None })
    }

    /// Shows it to the guest, by the first name that is free.
    pub fn plug(&mut self) -> io::Result<()> {
        let mut names = (0..).map(|number| format!("eth{number}"));
        let name = names.find(|name| if_nametoindex(name.as_str()).is_err()).unwrap_or_default();
        let guest = tap::open(&name, 0)?;
        tap::adopt(&guest)?;
        tap::set_mac(&name, self.mac)?;
        tap::set_offloads(&guest, tap::OFFLOADS)?;
        for queue in self.queues.iter() {
            tap::set_offloads(queue, tap::OFFLOADS)?;
            // What came before is not for this guest.
            while copy_one(queue, None, &Direction::default(), &mut [0; tap::HEADER_SIZE])? {}
        }
        self.counts.has_failed.store(false, Ordering::Relaxed);
        let guest = Arc::new(vec![File::from(guest)]);
        let receiver = self.copier(&self.queues, &guest, |counts| &counts.received)?;
        let sender = self.copier(&guest, &self.queues, |counts| &counts.sent)?;
        self.wire = Some(Wire { _receiver: receiver, _sender: sender });
        Ok(())
    }

    /// Takes it from the guest.
    pub fn unplug(&mut self) {
        if self.wire.take().is_some() {
            // Nobody reads it now. If it is gone, that is as well.
            let _ = self.queues.iter().try_for_each(|queue| tap::set_offloads(queue, 0));
        }
    }

    /// What the guest makes of it.
    pub fn driver(&self) -> DriverState {
        match (&self.wire, self.counts.has_failed.load(Ordering::Relaxed)) {
            (None, _) => DriverState::None,
            (Some(_), false) => DriverState::Running,
            (Some(_), true) => DriverState::NeedsReset,
        }
    }

    /// What has passed.
    pub fn metrics(&self) -> InterfaceMetrics {
        let read = |count: &AtomicU64| count.load(Ordering::Relaxed);
        let Counts { received, sent, .. } = &*self.counts;
        InterfaceMetrics {
            kicks: vec![0; self.queues.len()],
            received_bytes: read(&received.bytes),
            received_frames: read(&received.frames),
            receive_drops: read(&received.drops),
            sent_bytes: read(&sent.bytes),
            sent_frames: read(&sent.frames),
            send_drops: read(&sent.drops),
            throttled: 0,
        }
    }

    /// Copies frames, in a thread of its own.
    fn copier(
        &self,
        from: &Arc<Vec<File>>,
        to: &Arc<Vec<File>>,
        direction: fn(&Counts) -> &Direction,
    ) -> io::Result<Background> {
        let (from, to, counts) = (Arc::clone(from), Arc::clone(to), Arc::clone(&self.counts));
        Background::spawn(move |end| {
            if let Err(error) = copy(&from, to.first(), direction(&counts), end) {
                eprintln!("an interface has lost its tap: {error}");
                counts.has_failed.store(true, Ordering::Relaxed);
            }
        })
    }
}

fn copy(from: &[File], to: Option<&File>, direction: &Direction, end: &End) -> io::Result<()> {
    let sources: Vec<_> = from.iter().map(AsFd::as_fd).collect();
    let mut buffer = vec![0; LARGEST];
    while end.or_readable(&sources) {
        for source in from {
            for _ in 0..BATCH {
                if !copy_one(source, to, direction, &mut buffer)? {
                    break;
                }
            }
        }
    }
    Ok(())
}

/// Copies a frame, or drops it; false if there is none.
fn copy_one(
    mut from: &File,
    to: Option<&File>,
    direction: &Direction,
    buffer: &mut [u8],
) -> io::Result<bool> {
    let length = match from.read(buffer) {
        Ok(length) => length,
        Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(false),
        Err(error) if error.kind() == ErrorKind::Interrupted => return Ok(true),
        Err(error) => return Err(error),
    };
    let frame = buffer.get(..length).unwrap_or_default();
    // Who is down, or has no room, does not get it.
    let is_taken = to.is_some_and(|mut to| to.write(frame).is_ok());
    let add = |count: &AtomicU64, number: usize| count.fetch_add(number as u64, Ordering::Relaxed);
    if is_taken {
        add(&direction.frames, 1);
        add(&direction.bytes, length.saturating_sub(tap::HEADER_SIZE));
    } else {
        add(&direction.drops, 1);
    }
    Ok(true)
}
