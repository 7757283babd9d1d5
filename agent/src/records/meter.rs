//! What was counted, over all the processes that have counted it.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// Counters by series, such as `innkeeper_requests_total{action="RunInstances",code=""}`.
pub type Counts = BTreeMap<String, u64>;

/// How many counters are kept of what counts no more, such as a disk that was detached and may come back: those of a hundred
/// disks. All of a meter is written whenever it is read, so that it may not grow for ever.
const MAX_GONE: usize = 1200;

/// What processes that come and go count, such as the agents after one another or the VMMs of an instance. What is told is
/// recorded before, so that no counter is ever lower than it was told to be.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Meter {
    /// [`Meter::AGENT`], or an instance's id.
    pub name: String,
    /// The process that counts now.
    pub process: String,
    /// What others before it have counted, and it has before it began anew.
    pub before: Counts,
    /// What it has counted when it was asked last.
    pub last: Counts,
}

impl Meter {
    /// The name of the agent's.
    pub const AGENT: &'static str = "agent";

    /// One that has nothing yet.
    pub fn new(name: impl Into<String>) -> Self {
        Self { name: name.into(), process: String::new(), before: Counts::new(), last: Counts::new() }
    }

    /// Takes over what a process has counted by now. A counter that is lower than it was, or gone, has begun anew or will.
    pub fn read(&mut self, process: &str, counts: Counts) {
        let is_another = self.process != process;
        for (series, last) in &self.last {
            if is_another || counts.get(series).is_none_or(|now| now < last) {
                let sum = self.before.entry(series.clone()).or_default();
                *sum = sum.saturating_add(*last);
            }
        }
        process.clone_into(&mut self.process);
        self.last = counts;
        let is_gone = |series: &String| !self.last.contains_key(series);
        if self.before.keys().filter(|series| is_gone(series)).count() > MAX_GONE {
            self.before.retain(|series, _| self.last.contains_key(series));
        }
    }

    /// The sums of what is counted now.
    pub fn current(&self) -> impl Iterator<Item = (&str, u64)> {
        self.last.iter().map(|(series, last)| {
            let before = self.before.get(series).copied().unwrap_or(0);
            (series.as_str(), before.saturating_add(*last))
        })
    }

    /// The sums of everything that was ever counted.
    pub fn totals(&self) -> impl Iterator<Item = (&str, u64)> {
        let gone = self.before.iter().filter(|(series, _)| !self.last.contains_key(*series));
        self.current().chain(gone.map(|(series, before)| (series.as_str(), *before)))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn counts(all: &[(&str, u64)]) -> Counts {
        all.iter().map(|(series, count)| ((*series).to_owned(), *count)).collect()
    }

    fn totals(meter: &Meter) -> Vec<(&str, u64)> {
        meter.current().collect()
    }

    #[test]
    fn sums_go_over_all_processes() {
        let mut meter = Meter::new("x");
        meter.read("one", counts(&[("a", 3), ("b", 1)]));
        meter.read("one", counts(&[("a", 5), ("b", 1)]));
        assert_eq!(totals(&meter), [("a", 5), ("b", 1)]);
        // Another that happens to have counted more.
        meter.read("two", counts(&[("a", 6)]));
        assert_eq!(totals(&meter), [("a", 11)]);
        assert_eq!(meter.totals().collect::<Vec<_>>(), [("a", 11), ("b", 1)]);
        // A disk that was taken away and is back.
        meter.read("two", counts(&[("a", 6), ("b", 2)]));
        assert_eq!(totals(&meter), [("a", 11), ("b", 3)]);
        meter.read("two", counts(&[("a", 1), ("b", 2)]));
        assert_eq!(totals(&meter), [("a", 12), ("b", 3)]);
    }

    #[test]
    fn what_counts_no_more_is_forgotten_some_day() {
        let mut meter = Meter::new("x");
        for disk in 0..10_000 {
            meter.read("one", counts(&[("stays", disk), (&format!("disk {disk}"), 1)]));
            assert!(meter.before.len() <= MAX_GONE + 1, "{}", meter.before.len());
        }
        meter.read("two", counts(&[("stays", 1), ("disk 9999", 1)]));
        assert_eq!(totals(&meter), [("disk 9999", 2), ("stays", 10_000)]);
    }

    proptest! {
        /// Whatever is counted, by whomever: no sum that is told is lower than the same one told before.
        #[test]
        fn no_sum_goes_backwards(
            readings in proptest::collection::vec((0..3u8, proptest::collection::btree_map("[a-c]", 0..9u64, 0..4)), 0..40)
        ) {
            let mut meter = Meter::new("x");
            let mut told = Counts::new();
            for (process, counts) in readings {
                meter.read(&process.to_string(), counts);
                for (series, total) in meter.totals() {
                    let before = told.insert(series.to_owned(), total).unwrap_or(0);
                    prop_assert!(total >= before, "{} {} {}", series, before, total);
                }
            }
        }
    }
}
