//! Counting: numbers that device and CPU threads add to, and the control thread reads.
//!
//! Nothing here orders anything: a reader gets numbers that were true at some moment, each for itself.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use innkeeper_protocol as protocol;

/// A number that only grows.
#[derive(Debug, Default)]
pub struct Counter(AtomicU64);

impl Counter {
    /// Adds `count`.
    pub fn add(&self, count: u64) {
        self.0.fetch_add(count, Ordering::Relaxed);
    }

    /// The sum.
    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// Entries of a histogram: the last one is for a quarter of an hour and more.
const BUCKETS: usize = 31;

/// How often something took how long, by powers of two of a microsecond.
#[derive(Debug, Default)]
pub struct Histogram {
    total_ns: Counter,
    buckets: [Counter; BUCKETS],
}

impl Histogram {
    /// Counts one that took `time`.
    pub fn record(&self, time: Duration) {
        let nanoseconds = u64::try_from(time.as_nanos()).unwrap_or(u64::MAX);
        self.total_ns.add(nanoseconds);
        if let Some(bucket) = self.buckets.get(bucket(nanoseconds)) {
            bucket.add(1);
        }
    }

    /// The counts as the protocol has them.
    pub fn snapshot(&self) -> protocol::Histogram {
        let mut buckets: Vec<u64> = self.buckets.iter().map(Counter::get).collect();
        let used = buckets.iter().rposition(|count| *count > 0).map_or(0, |last| last + 1);
        buckets.truncate(used);
        protocol::Histogram { count: buckets.iter().sum(), total_ns: self.total_ns.get(), buckets }
    }
}

/// The entry for a duration: 0 below 1 µs, N below 2^N µs.
fn bucket(nanoseconds: u64) -> usize {
    let microseconds = nanoseconds / 1000;
    ((u64::BITS - microseconds.leading_zeros()) as usize).min(BUCKETS - 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_fall_into_powers_of_two() {
        let cases = [(0, 0), (999, 0), (1000, 1), (1999, 1), (2000, 2), (4000, 3), (u64::MAX, BUCKETS - 1)];
        for (nanoseconds, expected) in cases {
            assert_eq!(bucket(nanoseconds), expected, "{nanoseconds}");
        }
    }

    #[test]
    fn a_snapshot_has_no_zeroes_at_its_end() {
        let histogram = Histogram::default();
        assert_eq!(histogram.snapshot(), protocol::Histogram::default());
        histogram.record(Duration::from_micros(3));
        histogram.record(Duration::from_nanos(10));
        let expected = protocol::Histogram { count: 2, total_ns: 3010, buckets: vec![1, 0, 1] };
        assert_eq!(histogram.snapshot(), expected);
    }
}
