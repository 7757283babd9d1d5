//! What a VMM has counted, by series.

use std::time::Duration;

use innkeeper_protocol::{CpuMetrics, DiskMetrics, InterfaceMetrics};

use super::families::{self as family, Family};
use super::text::series;
use crate::ids::InstanceId;
use crate::instances::Sample;
use crate::records::Counts;

/// The counters of an instance's VMM and of its process.
pub fn counts(id: &InstanceId, sample: &Sample) -> Counts {
    let mut counts = Counts::new();
    let mut add = |family: &Family, labels: &[(&str, &str)], count: u64| {
        let labels = [&[("instance_id", id.as_str())], labels].concat();
        let sum = counts.entry(series(family.name, &labels)).or_default();
        *sum = sum.saturating_add(count);
    };
    let process = &sample.process;
    let nanoseconds = |time: Duration| u64::try_from(time.as_nanos()).unwrap_or(u64::MAX);
    add(&family::INSTANCE_CPU, &[("mode", "user")], nanoseconds(process.user_time));
    add(&family::INSTANCE_CPU, &[("mode", "system")], nanoseconds(process.system_time));
    add(&family::INSTANCE_CPU_GUEST, &[], nanoseconds(process.guest_time));
    for cpu in &sample.vmm.cpus {
        let CpuMetrics { port_reads, port_writes, memory_reads, memory_writes, interrupted, other } = *cpu;
        for (reason, count) in [
            ("port-read", port_reads),
            ("port-write", port_writes),
            ("memory-read", memory_reads),
            ("memory-write", memory_writes),
            ("interrupted", interrupted),
            ("other", other),
        ] {
            add(&family::INSTANCE_EXITS, &[("reason", reason)], count);
        }
    }
    for (disk, metrics) in &sample.vmm.disks {
        let disk = ("disk", disk.as_str());
        let DiskMetrics { read_bytes, written_bytes, errors, throttled, .. } = metrics;
        add(&family::DISK_BYTES, &[disk, ("direction", "read")], *read_bytes);
        add(&family::DISK_BYTES, &[disk, ("direction", "write")], *written_bytes);
        add(&family::DISK_ERRORS, &[disk], *errors);
        add(&family::DISK_THROTTLED, &[disk], *throttled);
        for (operation, times) in [
            ("read", &metrics.reads),
            ("write", &metrics.writes),
            ("flush", &metrics.flushes),
            ("discard", &metrics.discards),
        ] {
            let labels = [disk, ("operation", operation)];
            add(&family::DISK_OPERATIONS, &labels, times.count);
            add(&family::DISK_SECONDS, &labels, times.total_ns);
        }
    }
    for (interface, metrics) in &sample.vmm.interfaces {
        let interface = ("interface", interface.as_str());
        let InterfaceMetrics { received_bytes, sent_bytes, received_frames, sent_frames, .. } = *metrics;
        for (family, received, sent) in [
            (&family::NETWORK_BYTES, received_bytes, sent_bytes),
            (&family::NETWORK_FRAMES, received_frames, sent_frames),
            (&family::NETWORK_DROPS, metrics.receive_drops, metrics.send_drops),
        ] {
            add(family, &[interface, ("direction", "receive")], received);
            add(family, &[interface, ("direction", "send")], sent);
        }
        add(&family::NETWORK_THROTTLED, &[interface], metrics.throttled);
    }
    counts
}

#[cfg(test)]
mod tests {
    use innkeeper_protocol::{Histogram, Metrics};

    use super::*;
    use crate::host::VmmUsage;
    use crate::metrics::families::of_series;

    #[test]
    fn a_vmms_counters_have_their_series() {
        let mut vmm = Metrics::default();
        let cpu = CpuMetrics { port_reads: 2, ..CpuMetrics::default() };
        vmm.cpus = vec![cpu, cpu];
        let reads = Histogram { count: 7, total_ns: 9, buckets: Vec::new() };
        vmm.disks.insert("vol-1".into(), DiskMetrics { read_bytes: 512, reads, ..DiskMetrics::default() });
        vmm.interfaces.insert("eni-1".into(), InterfaceMetrics { sent_frames: 3, ..Default::default() });
        let [guest_time, user_time, system_time] = [4, 5, 1].map(Duration::from_secs);
        let process = VmmUsage { guest_time, user_time, system_time, ..VmmUsage::default() };
        let id: InstanceId = "i-0123456789abcdef0".parse().unwrap();
        let counts = counts(&id, &Sample { vmm, process });
        for (rest, count) in [
            ("exits_total{#,reason=\"port-read\"}", 4),
            ("disk_bytes_total{#,disk=\"vol-1\",direction=\"read\"}", 512),
            ("disk_operations_total{#,disk=\"vol-1\",operation=\"read\"}", 7),
            ("disk_operation_seconds_total{#,disk=\"vol-1\",operation=\"read\"}", 9),
            ("network_frames_total{#,interface=\"eni-1\",direction=\"send\"}", 3),
            ("cpu_seconds_total{#,mode=\"user\"}", 5_000_000_000),
            ("cpu_seconds_total{#,mode=\"system\"}", 1_000_000_000),
            ("cpu_guest_seconds_total{#}", 4_000_000_000),
        ] {
            let series =
                format!("innkeeper_instance_{}", rest.replace('#', "instance_id=\"i-0123456789abcdef0\""));
            assert_eq!(counts.get(&series), Some(&count), "{series} in {counts:?}");
        }
        assert!(counts.keys().all(|series| of_series(series).is_some()));
    }
}
