//! Which blocks are being changed, so that nobody else changes them meanwhile, and so that all changes can be waited for.

use std::ops::Range;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

/// The blocks of a volume that are being changed.
#[derive(Default)]
pub struct InFlight {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    ranges: Vec<Range<u64>>,
    /// Nobody may begin.
    is_closed: bool,
    waiting: usize,
}

/// The right to change blocks.
pub struct Hold {
    in_flight: Arc<InFlight>,
    blocks: Range<u64>,
}

/// Nothing is changed for as long as this exists.
pub struct Pause<'a>(&'a InFlight);

impl InFlight {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wait<'a>(&self, mut state: MutexGuard<'a, State>) -> MutexGuard<'a, State> {
        state.waiting += 1;
        let mut state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        state.waiting -= 1;
        state
    }

    /// Waits until nobody else changes any of `blocks`, which are not none.
    pub fn hold(self: &Arc<Self>, blocks: Range<u64>) -> Hold {
        let mut state = self.lock();
        while !state.is_free(&blocks) {
            state = self.wait(state);
        }
        state.ranges.push(blocks.clone());
        Hold { in_flight: Arc::clone(self), blocks }
    }

    /// The same, but does not wait.
    pub fn try_hold(self: &Arc<Self>, blocks: Range<u64>) -> Option<Hold> {
        let mut state = self.lock();
        state.is_free(&blocks).then(|| {
            state.ranges.push(blocks.clone());
            Hold { in_flight: Arc::clone(self), blocks }
        })
    }

    /// Lets nobody begin, and waits for those who have, but not longer than until `deadline`. There is one pause at a time.
    pub fn pause(&self, deadline: Instant) -> Option<Pause<'_>> {
        let mut state = self.lock();
        state.is_closed = true;
        // From here on everybody goes on when this is dropped.
        let pause = Pause(self);
        while !state.ranges.is_empty() {
            let rest = deadline.saturating_duration_since(Instant::now());
            if rest.is_zero() {
                drop(state);
                return None;
            }
            state.waiting += 1;
            (state, _) = self.changed.wait_timeout(state, rest).unwrap_or_else(PoisonError::into_inner);
            state.waiting -= 1;
        }
        Some(pause)
    }

    /// Whether nothing is being changed.
    #[cfg(test)]
    pub fn is_idle(&self) -> bool {
        self.lock().ranges.is_empty()
    }

    fn changed(&self, state: &State) {
        // Waking nobody costs a system call as well.
        if state.waiting > 0 {
            self.changed.notify_all();
        }
    }
}

impl State {
    fn is_free(&self, blocks: &Range<u64>) -> bool {
        let is_apart = |other: &Range<u64>| blocks.end <= other.start || other.end <= blocks.start;
        !self.is_closed && self.ranges.iter().all(is_apart)
    }
}

impl Drop for Hold {
    fn drop(&mut self) {
        let mut state = self.in_flight.lock();
        if let Some(at) = state.ranges.iter().position(|range| *range == self.blocks) {
            state.ranges.swap_remove(at);
        }
        self.in_flight.changed(&state);
    }
}

impl Drop for Pause<'_> {
    fn drop(&mut self) {
        let mut state = self.0.lock();
        state.is_closed = false;
        self.0.changed(&state);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicU32, Ordering};
    use std::time::Duration;

    #[test]
    fn nobody_changes_the_same_blocks() {
        let in_flight = Arc::new(InFlight::default());
        let is_free = |blocks| in_flight.lock().is_free(&blocks);
        let first = in_flight.hold(10..20);
        for taken in [10..20, 0..11, 19..30, 0..100, 12..13] {
            assert!(!is_free(taken));
        }
        let others = [in_flight.hold(0..10), in_flight.hold(20..30)];
        drop(first);
        assert!(!is_free(9..21));
        drop(others);
        assert!(is_free(9..21));
    }

    #[test]
    fn a_pause_that_takes_too_long_is_given_up() {
        let in_flight = Arc::new(InFlight::default());
        let hold = in_flight.hold(0..1);
        assert!(in_flight.pause(Instant::now() + Duration::from_millis(5)).is_none());
        let other = in_flight.try_hold(5..6);
        assert!(other.is_some(), "everybody goes on");
        drop((hold, other));
        let pause = in_flight.pause(Instant::now());
        assert!(pause.is_some() && in_flight.try_hold(5..6).is_none());
    }

    #[test]
    fn waiting_ends() {
        let in_flight = Arc::new(InFlight::default());
        let inside = AtomicU32::new(0);
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for _ in 0..500 {
                        let _hold = in_flight.hold(5..6);
                        assert_eq!(inside.fetch_add(1, Ordering::SeqCst), 0);
                        inside.fetch_sub(1, Ordering::SeqCst);
                    }
                });
            }
            scope.spawn(|| {
                for _ in 0..100 {
                    let _pause = in_flight.pause(Instant::now() + Duration::from_secs(60)).unwrap();
                    assert_eq!(inside.load(Ordering::SeqCst), 0);
                }
            });
        });
        assert!(in_flight.lock().is_free(&(0..100)));
    }
}
