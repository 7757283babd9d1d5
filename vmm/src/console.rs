//! The console: what the guest has printed, kept here, whoever reads it.
//!
//! The guest's CPUs append to a ring of 64 KiB and never wait. Readers follow at their own pace, each with a
//! position of its own; one that falls behind by more than the ring loses the oldest bytes and is told how
//! many.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, Write};
use std::os::fd::AsFd;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

/// Bytes of output that are kept.
pub const HISTORY: usize = 64 << 10;

/// A console's output.
#[derive(Debug, Default)]
pub struct Console {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct State {
    /// The last bytes printed.
    ring: VecDeque<u8>,
    /// How many bytes were printed in all: the position behind the ring's last byte.
    end: u64,
    is_closed: bool,
    /// Somebody waits for a change, so it is worth a system call to announce one.
    has_waiter: bool,
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
        let mut state = self.lock();
        state.end += bytes.len() as u64;
        let kept = &bytes[bytes.len().saturating_sub(HISTORY)..];
        let excess = (state.ring.len() + kept.len()).saturating_sub(HISTORY);
        state.ring.drain(..excess);
        state.ring.extend(kept);
        if std::mem::take(&mut state.has_waiter) {
            self.changed.notify_all();
        }
    }

    /// What was printed from `position` on, as far as it is still kept. Does not wait.
    pub fn read(&self, position: u64) -> Output {
        self.lock().read(position)
    }

    /// As [`Console::read`], but waits until there is something; none once the console is closed and read.
    pub fn wait(&self, position: u64) -> Option<Output> {
        let mut state = self.lock();
        while state.end <= position {
            if state.is_closed {
                return None;
            }
            state.has_waiter = true;
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        Some(state.read(position))
    }

    /// Says that nothing more will be printed.
    fn close(&self) {
        self.lock().is_closed = true;
        self.changed.notify_all();
    }
}

impl State {
    fn read(&self, position: u64) -> Output {
        let start = self.end - self.ring.len() as u64;
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

/// What becomes of what a file holds already.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Start {
    /// It goes, once there is output: a guest that does not start leaves the file as it was.
    Anew,
    /// It stays, and output goes where the file stands.
    Here,
}

/// Copies a console's output to a file, in a thread of its own: only that thread waits if the file does.
#[derive(Debug)]
pub struct Copier {
    console: Arc<Console>,
    thread: JoinHandle<()>,
}

impl Copier {
    /// Starts copying from the first byte on.
    pub fn spawn(console: Arc<Console>, mut file: File, start: Start) -> io::Result<Self> {
        let source = Arc::clone(&console);
        let thread =
            std::thread::Builder::new().name("console".into()).stack_size(64 << 10).spawn(move || {
                let mut position = 0;
                let mut start = start;
                while let Some(output) = source.wait(position) {
                    position = output.next;
                    if output.lost > 0 {
                        tracing::warn!(
                            bytes = output.lost,
                            "the console's reader is too slow; output was dropped"
                        );
                    }
                    if std::mem::replace(&mut start, Start::Here) == Start::Anew
                        && let Err(error) = empty(&file)
                    {
                        tracing::warn!(%error, "the console's file keeps its old content");
                    }
                    if let Err(error) = write_patiently(&mut file, &output.bytes) {
                        tracing::warn!(%error, "console output goes nowhere from here on");
                        return;
                    }
                }
            })?;
        Ok(Self { console, thread })
    }

    /// Says that the guest has ended, and waits until all is copied, but not longer than `patience`.
    pub fn finish(self, patience: Duration) {
        const STEP: Duration = Duration::from_millis(1);
        self.console.close();
        let deadline = Instant::now() + patience;
        while !self.thread.is_finished() && Instant::now() < deadline {
            std::thread::sleep(STEP);
        }
    }
}

fn empty(file: &File) -> io::Result<()> {
    if file.metadata()?.is_file() { file.set_len(0) } else { Ok(()) }
}

/// Writes all of `bytes`, also to a file that somebody else has made non-blocking, as shells do with terminals.
fn write_patiently(file: &mut File, mut bytes: &[u8]) -> io::Result<()> {
    while !bytes.is_empty() {
        match file.write(bytes) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(count) => bytes = &bytes[count..],
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                poll(&mut [PollFd::new(file.as_fd(), PollFlags::POLLOUT)], PollTimeout::NONE)?;
            }
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read;

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
    }

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
    fn a_reader_that_never_reads_blocks_nobody() {
        let (reader, writer) = nix::unistd::pipe().unwrap();
        let console = Arc::new(Console::default());
        let copier = Copier::spawn(Arc::clone(&console), File::from(writer), Start::Here).unwrap();
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
        let (reader, writer) = nix::unistd::pipe().unwrap();
        let console = Arc::new(Console::default());
        let copier = Copier::spawn(Arc::clone(&console), File::from(writer), Start::Here).unwrap();
        console.append(b"the last words");
        copier.finish(Duration::from_secs(10));
        let mut text = String::new();
        File::from(reader).read_to_string(&mut text).unwrap();
        assert_eq!(text, "the last words");
    }
}
