//! Consoles: what the guest has printed, kept here, whoever reads it, and what it is to read.
//!
//! The guest's CPUs append to a ring of 64 KiB and never wait. Readers follow at their own pace, each with a
//! position of its own; one that falls behind by more than the ring loses the oldest bytes and is told how
//! many. A [`Copier`] is such a reader, with a file to copy to. Input goes the other way, through a
//! [`ConsoleInput`], and waits at its sender when the guest does not read.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, Write};
use std::ops::Range;
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use vmm_sys_util::eventfd::EventFd;

use crate::event::{self, as_fd};

/// Bytes of output that are kept.
pub const HISTORY: usize = 64 << 10;

/// What a console's input is fed to.
pub trait ConsoleInput: Send + Sync {
    /// Takes input for the guest, as much as there is room for; returns how much that was.
    fn receive(&self, bytes: &[u8]) -> usize;

    /// Becomes readable when input that [`ConsoleInput::receive`] had no room for can be tried again. Always
    /// the same event, for one reader, who resets it.
    fn drained(&self) -> Arc<EventFd>;
}

/// A console's output.
#[derive(Debug, Default)]
pub struct Console {
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    /// The last bytes printed.
    ring: VecDeque<u8>,
    /// How many bytes were printed in all: the position behind the ring's last byte.
    end: u64,
    /// Readers that have read everything: it is worth a system call to tell them when there is more. A reader
    /// that goes away takes its event with it.
    waiters: Vec<Weak<EventFd>>,
}

/// A piece of output, as a reader gets it.
#[derive(Debug, PartialEq, Eq)]
pub struct Output {
    /// The bytes.
    pub bytes: Vec<u8>,
    /// Where to go on reading.
    pub next: u64,
    /// How many bytes were dropped before `bytes`, because the reader came too late.
    pub lost: u64,
}

impl Console {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Appends what the guest prints.
    pub fn append(&self, bytes: &[u8]) {
        self.append_behind(0, bytes);
    }

    /// Appends what the guest prints, after `lost` bytes that it has printed faster than anybody could keep
    /// them.
    pub fn append_behind(&self, lost: u64, bytes: &[u8]) {
        let mut state = self.lock();
        if lost > 0 {
            state.ring.clear();
        }
        state.end = state.end.saturating_add(lost).saturating_add(bytes.len() as u64);
        let kept = &bytes[bytes.len().saturating_sub(HISTORY)..];
        let excess = (state.ring.len() + kept.len()).saturating_sub(HISTORY);
        state.ring.drain(..excess);
        state.ring.extend(kept);
        for waiter in state.waiters.drain(..).filter_map(|waiter| waiter.upgrade()) {
            // Can only fail if it is readable already.
            let _ = waiter.write(1);
        }
    }

    /// How many bytes were printed in all, which is the position of the next one.
    pub fn printed(&self) -> u64 {
        self.lock().end
    }

    /// The positions of what is kept.
    fn kept(&self) -> Range<u64> {
        let state = self.lock();
        state.start()..state.end
    }

    /// What was printed from `position` on, as far as it is still kept. Does not wait.
    pub fn read(&self, position: u64) -> Output {
        self.lock().read(position)
    }

    /// As [`Console::read`]; if there is nothing, `waiter` becomes readable once when there is.
    pub fn read_or_watch(&self, position: u64, waiter: &Arc<EventFd>) -> Output {
        let mut state = self.lock();
        let output = state.read(position);
        if output.bytes.is_empty() {
            let waiter = Arc::downgrade(waiter);
            state.waiters.retain(|other| other.strong_count() > 0 && !other.ptr_eq(&waiter));
            state.waiters.push(waiter);
        }
        output
    }
}

impl State {
    fn start(&self) -> u64 {
        self.end - self.ring.len() as u64
    }

    fn read(&self, position: u64) -> Output {
        let start = self.start();
        let from = position.clamp(start, self.end);
        let bytes = self.ring.range((from - start) as usize..).copied().collect();
        Output { bytes, next: self.end, lost: from.saturating_sub(position) }
    }
}

/// The guest's side of a console, for a serial port to write to.
#[derive(Debug)]
pub struct ConsoleWriter(pub Arc<Console>);

impl Write for ConsoleWriter {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.append(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// How long a [`Copier`] goes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Extent {
    /// To the end of what is printed when it starts.
    History,
    /// Until it is told that nothing follows.
    Follow,
}

/// Copies a console's output to a file, in a thread of its own: only that thread waits if the file does. The
/// file is closed at the end, which comes early if nobody can read what is written to it any more. Dropping
/// the copier ends it at once.
#[derive(Debug)]
pub struct Copier {
    console: Arc<Console>,
    course: Arc<Course>,
    thread: JoinHandle<()>,
}

/// What a copier and its thread share.
#[derive(Debug)]
struct Course {
    /// Nothing is copied from this position on.
    end: AtomicU64,
    /// Wakes the thread, to look at the console and at `end`.
    wake: Arc<EventFd>,
}

impl Course {
    /// How many bytes there are to go at `position`; none at the end.
    fn rest(&self, position: u64) -> Option<u64> {
        self.end.load(Ordering::SeqCst).checked_sub(position).filter(|rest| *rest > 0)
    }

    fn end_at(&self, position: u64) {
        self.end.fetch_min(position, Ordering::SeqCst);
        // Can only fail if it is readable already.
        let _ = self.wake.write(1);
    }
}

impl Copier {
    /// Starts copying from byte `from` of all that was printed, or from the first one after it that is still
    /// kept.
    pub fn spawn(console: Arc<Console>, file: File, from: u64, extent: Extent) -> io::Result<Self> {
        let kept = console.kept();
        let end = match extent {
            Extent::History => kept.end,
            Extent::Follow => u64::MAX,
        };
        let course = Arc::new(Course { end: AtomicU64::new(end), wake: Arc::new(event::new()?) });
        let copy = Copy {
            console: Arc::clone(&console),
            course: Arc::clone(&course),
            file,
            position: from.clamp(kept.start, kept.end),
            has_lost: false,
        };
        let thread = std::thread::Builder::new()
            .name("console".into())
            .stack_size(64 << 10)
            .spawn(move || copy.run())?;
        Ok(Self { console, course, thread })
    }

    /// Whether it has ended.
    pub fn is_finished(&self) -> bool {
        self.thread.is_finished()
    }

    /// Ends it when what was printed so far is copied.
    pub fn end(&self) {
        self.course.end_at(self.console.printed());
    }

    /// As [`Copier::end`], and waits for that, but not longer than `patience`.
    pub fn finish(self, patience: Duration) {
        const STEP: Duration = Duration::from_millis(1);
        self.end();
        let deadline = Instant::now() + patience;
        while !self.is_finished() && Instant::now() < deadline {
            std::thread::sleep(STEP);
        }
    }
}

impl Drop for Copier {
    fn drop(&mut self) {
        self.course.end_at(0);
    }
}

/// The thread's part of a [`Copier`].
struct Copy {
    console: Arc<Console>,
    course: Arc<Course>,
    file: File,
    position: u64,
    /// Output was dropped. That is said once: how often it happens is for the guest and the reader to decide.
    has_lost: bool,
}

impl Copy {
    fn run(mut self) {
        match self.copy() {
            Ok(()) => {}
            Err(error)
                if matches!(error.kind(), io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset) =>
            {
                tracing::debug!("a reader of the console is gone");
            }
            Err(error) => tracing::warn!(%error, "console output goes nowhere from here on"),
        }
    }

    fn copy(&mut self) -> io::Result<()> {
        while self.course.rest(self.position).is_some() {
            let output = self.console.read_or_watch(self.position, &self.course.wake);
            if output.lost > 0 && !std::mem::replace(&mut self.has_lost, true) {
                tracing::warn!(bytes = output.lost, "the console's reader is too slow; output was dropped");
            }
            if output.bytes.is_empty() {
                self.wait(PollFlags::empty())?;
                continue;
            }
            self.position = output.next - output.bytes.len() as u64;
            self.write(&output.bytes)?;
        }
        Ok(())
    }

    /// Writes `bytes`, which are at the position, up to the end.
    fn write(&mut self, mut bytes: &[u8]) -> io::Result<()> {
        while let Some(rest) = self.course.rest(self.position).filter(|_| !bytes.is_empty()) {
            if !self.wait(PollFlags::POLLOUT)? {
                continue;
            }
            // A pipe that is writable takes as much as this without a wait, be it non-blocking or not.
            let count = bytes.len().min(libc::PIPE_BUF).min(usize::try_from(rest).unwrap_or(usize::MAX));
            match self.file.write(&bytes[..count]) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(written) => {
                    bytes = &bytes[written..];
                    self.position += written as u64;
                }
                Err(error)
                    if matches!(error.kind(), io::ErrorKind::Interrupted | io::ErrorKind::WouldBlock) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// Waits until the thread is woken, or the file is ready for `interest`, which is what it returns. An
    /// error if nobody can read the file any more.
    fn wait(&self, interest: PollFlags) -> io::Result<bool> {
        let wake = &self.course.wake;
        let mut events =
            [PollFd::new(as_fd(wake), PollFlags::POLLIN), PollFd::new(self.file.as_fd(), interest)];
        match poll(&mut events, PollTimeout::NONE) {
            Ok(_) => {}
            Err(nix::Error::EINTR) => return Ok(false),
            Err(error) => return Err(error.into()),
        }
        let [woken, file] = events;
        if woken.any().unwrap_or(true) {
            // Consumes the event; that it was there is all there is to know.
            let _ = wake.read();
        }
        let ready = file.revents().unwrap_or(PollFlags::empty());
        if ready.intersects(PollFlags::POLLERR | PollFlags::POLLHUP | PollFlags::POLLNVAL) {
            return Err(io::ErrorKind::BrokenPipe.into());
        }
        Ok(ready.intersects(interest))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::io::Read;
    use std::os::fd::AsRawFd;
    use std::os::unix::net::UnixStream;

    const PATIENCE: Duration = Duration::from_secs(10);

    /// A pipe: what is read, what is written to, and a console.
    fn pipe() -> (File, File, Arc<Console>) {
        let (reader, writer) = nix::unistd::pipe().unwrap();
        (File::from(reader), File::from(writer), Arc::new(Console::default()))
    }

    fn follow(console: &Arc<Console>, file: File, from: u64) -> Copier {
        Copier::spawn(Arc::clone(console), file, from, Extent::Follow).unwrap()
    }

    fn text(mut file: File) -> String {
        let mut text = String::new();
        file.read_to_string(&mut text).unwrap();
        text
    }

    fn wait_until(mut what: impl FnMut() -> bool) {
        let deadline = Instant::now() + PATIENCE;
        while !what() {
            assert!(Instant::now() < deadline);
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    #[test]
    fn readers_follow_at_their_own_pace() {
        let console = Console::default();
        console.append(b"one ");
        let first = console.read(0);
        assert_eq!((first.bytes.as_slice(), first.next, first.lost), (&b"one "[..], 4, 0));
        console.append(b"two");
        assert_eq!(console.read(first.next).bytes, b"two");
        assert_eq!(console.read(0).bytes, b"one two");
        assert_eq!(console.read(99), Output { bytes: vec![], next: 7, lost: 0 });
        assert_eq!(console.printed(), 7);
    }

    /// A mistake of Firecracker (issue 2177): what nobody read was kept, however much it became.
    #[test]
    fn only_the_last_64_kib_are_kept() {
        let console = Console::default();
        for _ in 0..100 {
            console.append(&[b'x'; 1000]);
        }
        console.append(b"end");
        let output = console.read(5);
        assert_eq!(output.bytes.len(), HISTORY);
        assert!(output.bytes.ends_with(b"xend"));
        assert_eq!(output.lost, 100_003 - HISTORY as u64 - 5);
        console.append(&vec![b'y'; 3 * HISTORY]);
        assert_eq!(console.read(0).bytes, vec![b'y'; HISTORY]);
    }

    #[test]
    fn what_nobody_could_keep_is_counted() {
        let console = Console::default();
        console.append(b"before");
        console.append_behind(1000, b"after");
        assert_eq!(console.read(0), Output { bytes: b"after".to_vec(), next: 1011, lost: 1006 });
        console.append_behind(u64::MAX, b"x");
        assert_eq!(console.read(u64::MAX - 1).bytes, b"x");
    }

    #[test]
    fn a_waiter_is_told_once() {
        let console = Console::default();
        let waiter = Arc::new(event::new().unwrap());
        for _ in 0..3 {
            assert!(console.read_or_watch(0, &waiter).bytes.is_empty());
        }
        console.append(b"a");
        console.append(b"b");
        assert_eq!(waiter.read().unwrap(), 1);
        assert_eq!(console.read_or_watch(0, &waiter).bytes, b"ab");
        console.append(b"c");
        assert!(waiter.read().is_err());
    }

    #[test]
    fn waiters_that_are_gone_leave_nothing_behind() {
        let console = Console::default();
        for _ in 0..100 {
            console.read_or_watch(0, &Arc::new(event::new().unwrap()));
        }
        assert!(console.lock().waiters.len() <= 1);
    }

    #[test]
    fn a_reader_that_never_reads_blocks_nobody() {
        let (reader, writer, console) = pipe();
        let copier = follow(&console, writer, 0);
        let started = Instant::now();
        for _ in 0..1000 {
            console.append(&[b'x'; 1024]);
        }
        copier.finish(Duration::from_millis(50));
        assert!(started.elapsed() < Duration::from_secs(5));
        drop(reader);
    }

    #[test]
    fn everything_is_copied_before_the_end() {
        let (reader, writer, console) = pipe();
        let copier = follow(&console, writer, 0);
        console.append(b"the last words");
        copier.finish(PATIENCE);
        console.append(b"not for this reader");
        assert_eq!(text(reader), "the last words");
    }

    #[test]
    fn a_reader_may_begin_anywhere() {
        for (from, expected) in [(0, "one two three"), (4, "two three"), (7, " three"), (u64::MAX, " three")]
        {
            let (reader, writer, console) = pipe();
            console.append(b"one two");
            let copier = follow(&console, writer, from);
            console.append(b" three");
            copier.finish(PATIENCE);
            assert_eq!(text(reader), expected, "{from}");
        }
    }

    #[test]
    fn history_ends_by_itself() {
        for (from, expected) in [(0, "history"), (4, "ory"), (7, ""), (99, "")] {
            let (reader, writer, console) = pipe();
            console.append(b"history");
            let copier = Copier::spawn(Arc::clone(&console), writer, from, Extent::History).unwrap();
            console.append(b" goes on");
            assert_eq!(text(reader), expected, "{from}");
            wait_until(|| copier.is_finished());
        }
    }

    #[test]
    fn a_slow_reader_gets_the_whole_history() {
        let (mut reader, writer) = UnixStream::pair().unwrap();
        writer.set_nonblocking(true).unwrap();
        let console = Arc::new(Console::default());
        let printed: Vec<u8> = (0..2 * HISTORY).map(|index| (index / 7) as u8).collect();
        console.append(&printed);
        let writer = File::from(std::os::fd::OwnedFd::from(writer));
        let copier = Copier::spawn(console, writer, 0, Extent::History).unwrap();
        let mut received = Vec::new();
        let mut piece = [0; 3000];
        loop {
            match reader.read(&mut piece).unwrap() {
                0 => break,
                count => received.extend_from_slice(&piece[..count]),
            }
        }
        assert!(received == printed[HISTORY..]);
        wait_until(|| copier.is_finished());
    }

    #[test]
    fn a_reader_that_goes_away_ends_its_copier_alone() {
        let console = Arc::new(Console::default());
        let (reader, writer, _) = pipe();
        let (socket, peer) = UnixStream::pair().unwrap();
        let (other_reader, other_writer, _) = pipe();
        let copiers = [
            follow(&console, writer, 0),
            follow(&console, File::from(std::os::fd::OwnedFd::from(socket)), 0),
        ];
        let other = follow(&console, other_writer, 0);
        assert!(copiers.iter().all(|copier| !copier.is_finished()));
        // The guest prints nothing.
        drop(reader);
        drop(peer);
        wait_until(|| copiers.iter().all(Copier::is_finished));
        console.append(b"for the other one");
        other.finish(PATIENCE);
        assert_eq!(text(other_reader), "for the other one");
    }

    #[test]
    fn a_copier_that_is_dropped_ends_even_if_its_reader_is_stuck() {
        let (reader, writer, console) = pipe();
        let copier = follow(&console, writer, 0);
        let mut unread = 0;
        wait_until(|| {
            console.append(&[b'x'; HISTORY]);
            // SAFETY: FIONREAD writes one number, to where there is one.
            let result = unsafe { libc::ioctl(reader.as_raw_fd(), libc::FIONREAD, &raw mut unread) };
            assert_eq!(result, 0);
            unread >= HISTORY as libc::c_int
        });
        let course = Arc::clone(&copier.course);
        drop(copier);
        // The thread has let go of it.
        wait_until(|| Arc::strong_count(&course) == 1);
        drop(reader);
    }

    proptest! {
        /// Whatever is printed in whatever pieces, a reader gets the end of it, and knows how much it has
        /// missed.
        #[test]
        fn a_reader_gets_what_is_kept(
            pieces in prop::collection::vec((any::<u8>(), 0usize..40_000), 0..8),
            from in 0u64..200_000,
        ) {
            let console = Console::default();
            let mut printed = Vec::new();
            for (byte, count) in pieces {
                console.append(&vec![byte; count]);
                printed.extend(std::iter::repeat_n(byte, count));
            }
            let start = printed.len().saturating_sub(HISTORY);
            let at = (from as usize).clamp(start, printed.len());
            let output = console.read(from);
            prop_assert!(output.bytes == printed[at..]);
            prop_assert_eq!(output.next, printed.len() as u64);
            prop_assert_eq!(output.lost, (start as u64).saturating_sub(from));
        }
    }
}
