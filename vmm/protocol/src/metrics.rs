//! What a VMM counts.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// What was counted since the VMM was started.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Metrics {
    /// By number of the CPU.
    pub cpus: Vec<CpuMetrics>,
    /// By id.
    pub disks: BTreeMap<String, DiskMetrics>,
    /// By id.
    pub interfaces: BTreeMap<String, InterfaceMetrics>,
    /// The balloon, if there is one.
    pub balloon: Option<BalloonMetrics>,
    /// The vsock device, if there is one.
    pub vsock: Option<VsockMetrics>,
}

/// Why a CPU left the guest, and how often.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[expect(missing_docs, reason = "the names say it")]
pub struct CpuMetrics {
    pub port_reads: u64,
    pub port_writes: u64,
    pub memory_reads: u64,
    pub memory_writes: u64,
    pub interrupted: u64,
    pub other: u64,
}

/// What a disk has done.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct DiskMetrics {
    /// How often the guest rang a queue's doorbell, by queue.
    pub kicks: Vec<u64>,
    /// Bytes read by the guest.
    pub read_bytes: u64,
    /// Bytes written by the guest.
    pub written_bytes: u64,
    /// Requests that failed.
    pub errors: u64,
    /// How often a queue had to wait for a rate limit.
    pub throttled: u64,
    /// How long reads took, from being taken from the queue.
    pub reads: Histogram,
    /// How long writes took.
    pub writes: Histogram,
    /// How long flushes took.
    pub flushes: Histogram,
    /// How long discards and write-zeroes took.
    pub discards: Histogram,
}

/// What an interface has done.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[expect(missing_docs, reason = "the names say it")]
pub struct InterfaceMetrics {
    /// How often the guest rang a queue's doorbell, by queue. With vhost, the kernel hears them and does not count.
    pub kicks: Vec<u64>,
    pub received_bytes: u64,
    pub received_frames: u64,
    /// Frames that the guest had no large enough buffer for.
    pub receive_drops: u64,
    pub sent_bytes: u64,
    pub sent_frames: u64,
    /// Frames that the host did not take.
    pub send_drops: u64,
    /// How often a queue had to wait for a rate limit.
    pub throttled: u64,
}

/// What a balloon has done.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct BalloonMetrics {
    /// Given back to the host by inflating, in bytes.
    pub inflated_bytes: u64,
    /// Taken from the host again by deflating, in bytes.
    pub deflated_bytes: u64,
    /// Given back to the host by free-page reporting, in bytes.
    pub reported_bytes: u64,
}

/// What a vsock device has done.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[expect(missing_docs, reason = "the names say it")]
pub struct VsockMetrics {
    /// Connections that are open now.
    pub connections: u64,
    pub accepted: u64,
    pub refused: u64,
    pub received_bytes: u64,
    pub sent_bytes: u64,
}

/// How often something took how long.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Histogram {
    /// How often in all.
    pub count: u64,
    /// How long in all.
    pub total_ns: u64,
    /// How often by duration: entry 0 is for less than 1 µs, entry N for less than 2^N µs, the last for all that is
    /// longer. Zeroes at the end are left out.
    pub buckets: Vec<u64>,
}
