//! One flush at a time, for all who ask for one meanwhile.

use std::io;
use std::sync::{Condvar, Mutex, PoisonError};

/// Joins flushes: each that is asked for is covered by a run that began later.
#[derive(Default)]
pub struct Flusher {
    state: Mutex<State>,
    ended: Condvar,
}

#[derive(Default)]
struct State {
    is_running: bool,
    /// How many runs were begun.
    begun: u64,
    /// The last run that is over, and how it went.
    ended: u64,
    error: Option<(io::ErrorKind, String)>,
}

impl Flusher {
    /// Returns when a run that began after this was called is over: `run` is one, if nobody else's will do.
    pub fn flush(&self, run: impl FnOnce() -> io::Result<()>) -> io::Result<()> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let wanted = state.begun + 1;
        while state.ended < wanted && state.is_running {
            state = self.ended.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        if state.ended < wanted {
            state.is_running = true;
            state.begun += 1;
            drop(state);
            let result = run();
            state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
            state.is_running = false;
            state.ended = state.begun;
            state.error = result.err().map(|error| (error.kind(), error.to_string()));
            self.ended.notify_all();
        }
        match &state.error {
            None => Ok(()),
            Some((kind, message)) => Err(io::Error::new(*kind, message.clone())),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicU32, Ordering};
    use std::time::Duration;

    #[test]
    fn flushes_are_joined_and_each_is_covered() {
        let flusher = Flusher::default();
        // What is written, and how much of it a flush has reached.
        let (written, durable, runs) = (AtomicU32::new(0), AtomicU32::new(0), AtomicU32::new(0));
        std::thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| {
                    for _ in 0..20 {
                        let mine = written.fetch_add(1, Ordering::SeqCst) + 1;
                        flusher
                            .flush(|| {
                                let all = written.load(Ordering::SeqCst);
                                std::thread::sleep(Duration::from_millis(1));
                                runs.fetch_add(1, Ordering::SeqCst);
                                durable.store(all, Ordering::SeqCst);
                                Ok(())
                            })
                            .unwrap();
                        assert!(durable.load(Ordering::SeqCst) >= mine);
                    }
                });
            }
        });
        assert!(runs.into_inner() < 160, "some of 160 flushes were joined");
    }

    #[test]
    fn a_failure_is_told() {
        let flusher = Flusher::default();
        let full = || Err(io::Error::new(io::ErrorKind::StorageFull, "full"));
        assert_eq!(flusher.flush(full).unwrap_err().to_string(), "full");
        flusher.flush(|| Ok(())).unwrap();
    }
}
