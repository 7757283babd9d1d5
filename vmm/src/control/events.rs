//! What has happened, kept for controllers that come later.

use std::collections::VecDeque;
use std::time::{SystemTime, UNIX_EPOCH};

use innkeeper_protocol::{EVENTS_KEPT, Event, Happening};

/// The last events.
#[derive(Debug, Default)]
pub struct EventLog {
    kept: VecDeque<Event>,
    /// The number of the last one.
    last: u64,
}

impl EventLog {
    /// Adds an event that happens now.
    pub fn add(&mut self, what: Happening) {
        tracing::debug!(?what, "event");
        self.last += 1;
        let time_ms = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_millis() as u64;
        if self.kept.len() == EVENTS_KEPT {
            self.kept.pop_front();
        }
        self.kept.push_back(Event { sequence: self.last, time_ms, what });
    }

    /// The number of the last event; 0 if there was none.
    pub fn last(&self) -> u64 {
        self.last
    }

    /// The first event behind number `after`. It has the next number, unless that one is not kept any more.
    pub fn next(&self, after: u64) -> Option<&Event> {
        let first = self.kept.front()?.sequence;
        let index = after.saturating_add(1).saturating_sub(first);
        self.kept.get(usize::try_from(index).ok()?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_events_are_kept_and_numbered() {
        let mut log = EventLog::default();
        assert_eq!((log.last(), log.next(0)), (0, None));
        for _ in 0..EVENTS_KEPT as u64 + 10 {
            log.add(Happening::Started);
        }
        assert_eq!(log.kept.len(), EVENTS_KEPT);
        assert_eq!(log.next(0).unwrap().sequence, 11, "the first ten are gone");
        for after in 10..log.last() {
            assert_eq!(log.next(after).unwrap().sequence, after + 1);
        }
        assert_eq!(log.next(log.last()), None);
        assert_eq!(log.next(log.last() + 1000), None);
    }
}
