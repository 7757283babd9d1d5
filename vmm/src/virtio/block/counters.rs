//! What is counted of a disk's requests.

use std::time::Duration;

use innkeeper_protocol as protocol;

use super::request::Kind;
use crate::metrics::{Counter, Histogram};

/// The numbers of one queue: threads that add to the same ones would slow each other down.
#[derive(Debug, Default)]
pub(super) struct Counters {
    pub kicks: Counter,
    pub throttled: Counter,
    errors: Counter,
    read_bytes: Counter,
    written_bytes: Counter,
    reads: Histogram,
    writes: Histogram,
    flushes: Histogram,
    discards: Histogram,
}

impl Counters {
    /// Counts a request for `length` bytes of data that was carried out in `time`, well or not.
    pub fn record(&self, kind: Kind, length: usize, is_ok: bool, time: Duration) {
        let (histogram, bytes) = match kind {
            Kind::Read => (&self.reads, Some(&self.read_bytes)),
            Kind::Write => (&self.writes, Some(&self.written_bytes)),
            Kind::Flush => (&self.flushes, None),
            Kind::Discard => (&self.discards, None),
            Kind::Other => return,
        };
        histogram.record(time);
        if let Some(bytes) = bytes.filter(|_| is_ok) {
            bytes.add(length as u64);
        }
    }

    /// Counts a request that failed.
    pub fn record_error(&self) {
        self.errors.add(1);
    }

    /// Adds these numbers to those of the whole disk.
    pub fn add_to(&self, disk: &mut protocol::DiskMetrics) {
        disk.kicks.push(self.kicks.get());
        disk.throttled += self.throttled.get();
        disk.errors += self.errors.get();
        disk.read_bytes += self.read_bytes.get();
        disk.written_bytes += self.written_bytes.get();
        for (histogram, sum) in [
            (&self.reads, &mut disk.reads),
            (&self.writes, &mut disk.writes),
            (&self.flushes, &mut disk.flushes),
            (&self.discards, &mut disk.discards),
        ] {
            add(&histogram.snapshot(), sum);
        }
    }
}

fn add(histogram: &protocol::Histogram, sum: &mut protocol::Histogram) {
    sum.count += histogram.count;
    sum.total_ns = sum.total_ns.saturating_add(histogram.total_ns);
    let length = sum.buckets.len().max(histogram.buckets.len());
    sum.buckets.resize(length, 0);
    for (sum, count) in sum.buckets.iter_mut().zip(&histogram.buckets) {
        *sum += count;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_numbers_of_queues_are_added() {
        let queues = [Counters::default(), Counters::default()];
        queues[0].kicks.add(3);
        queues[0].record(Kind::Read, 512, true, Duration::from_micros(3));
        queues[1].record(Kind::Read, 1024, true, Duration::from_nanos(10));
        queues[1].record(Kind::Read, 4096, false, Duration::from_nanos(10));
        queues[1].record(Kind::Flush, 0, true, Duration::from_nanos(20));
        queues[1].record(Kind::Other, 20, true, Duration::from_nanos(20));
        queues[1].record_error();
        let mut disk = protocol::DiskMetrics::default();
        queues.iter().for_each(|counters| counters.add_to(&mut disk));
        let expected = protocol::DiskMetrics {
            kicks: vec![3, 0],
            read_bytes: 1536,
            errors: 1,
            reads: protocol::Histogram { count: 3, total_ns: 3020, buckets: vec![2, 0, 1] },
            flushes: protocol::Histogram { count: 1, total_ns: 20, buckets: vec![1] },
            ..Default::default()
        };
        assert_eq!(disk, expected);
    }
}
