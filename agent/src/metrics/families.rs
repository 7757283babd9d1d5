//! The metrics: their names, what they are, and in which unit they are counted.

/// What a metric is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// It only grows.
    Counter,
    /// It goes up and down.
    Gauge,
    /// How often something took how long.
    Histogram,
}

/// In what a counter is recorded. What is told is in seconds, or whatever the name says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unit {
    /// As it is.
    One,
    /// In nanoseconds.
    Nanoseconds,
}

/// A metric.
#[derive(Debug)]
pub struct Family {
    /// Its name.
    pub name: &'static str,
    /// What it is.
    pub kind: Kind,
    /// In what its counters are recorded.
    pub unit: Unit,
    /// For people.
    pub help: &'static str,
}

macro_rules! families {
    ($($constant:ident = $kind:ident $unit:ident $name:literal, $help:literal;)*) => {
        $(
            #[doc = $help]
            pub static $constant: Family =
                Family { name: $name, kind: Kind::$kind, unit: Unit::$unit, help: $help };
        )*

        /// All of them.
        pub static ALL: &[&Family] = &[$(&$constant),*];
    };
}

families! {
    BUILD_INFO = Gauge One "innkeeper_build_info", "The agent's version.";
    AGENT_START = Gauge One "innkeeper_agent_start_time_seconds", "When this agent was started, since 1970.";
    AGENT_RESIDENT = Gauge One "innkeeper_agent_resident_bytes", "The agent's memory.";
    AGENT_DESCRIPTORS = Gauge One "innkeeper_agent_open_descriptors", "The agent's open files.";
    STORE_BYTES = Gauge One "innkeeper_store_bytes", "The size of the file with the agent's records.";
    RESOURCES = Gauge One "innkeeper_resources", "How many resources of a kind there are.";
    STATE_CHANGES = Counter One "innkeeper_state_changes_total", "Changes of instances' states.";
    REQUESTS = Counter One "innkeeper_requests_total", "Requests to the API, by action and error code.";
    REQUEST_SECONDS = Histogram Nanoseconds "innkeeper_request_seconds", "How long requests to the API took.";
    INSTANCES = Gauge One "innkeeper_instances", "How many instances are in a state.";
    CAPACITY_VCPUS = Gauge One "innkeeper_capacity_vcpus", "vCPUs that the host has to give.";
    CAPACITY_VCPUS_USED = Gauge One "innkeeper_capacity_used_vcpus", "vCPUs that instances have.";
    CAPACITY_MEMORY = Gauge One "innkeeper_capacity_memory_bytes", "Memory that the host has to give.";
    CAPACITY_MEMORY_USED = Gauge One "innkeeper_capacity_used_memory_bytes",
        "Memory that instances and their instance stores have.";
    INSTANCE_INFO = Gauge One "innkeeper_instance_info", "What an instance is.";
    INSTANCE_VCPUS = Gauge One "innkeeper_instance_vcpus", "The vCPUs of an instance.";
    INSTANCE_MEMORY = Gauge One "innkeeper_instance_memory_bytes", "The memory of an instance.";
    INSTANCE_STORE = Gauge One "innkeeper_instance_store_bytes", "The size of an instance's instance store.";
    INSTANCE_RESIDENT = Gauge One "innkeeper_instance_memory_resident_bytes",
        "The part of its memory that an instance has used.";
    VMM_RESIDENT = Gauge One "innkeeper_instance_vmm_resident_bytes",
        "The memory that an instance's VMM takes beside the guest's.";
    STATUS_CHECK = Gauge One "innkeeper_instance_status_check", "1 if a status check has passed, 0 if it has failed.";
    INSTANCE_CPU = Counter Nanoseconds "innkeeper_instance_cpu_seconds_total",
        "CPU time of an instance's VMM, in user mode, where its guest runs, and in system mode.";
    INSTANCE_CPU_GUEST = Counter Nanoseconds "innkeeper_instance_cpu_guest_seconds_total",
        "The part of the CPU time in user mode that the guest itself has used.";
    INSTANCE_EXITS = Counter One "innkeeper_instance_exits_total", "How often vCPUs have left the guest, and why.";
    DISK_BYTES = Counter One "innkeeper_instance_disk_bytes_total", "Bytes that a guest has read and written.";
    DISK_OPERATIONS = Counter One "innkeeper_instance_disk_operations_total", "Requests of a guest to a disk.";
    DISK_SECONDS = Counter Nanoseconds "innkeeper_instance_disk_operation_seconds_total",
        "The time that requests to a disk took.";
    DISK_ERRORS = Counter One "innkeeper_instance_disk_errors_total", "Requests to a disk that have failed.";
    DISK_THROTTLED = Counter One "innkeeper_instance_disk_throttled_total",
        "How often a disk has waited for its limit.";
    NETWORK_BYTES = Counter One "innkeeper_instance_network_bytes_total",
        "Bytes that a guest has received and sent.";
    NETWORK_FRAMES = Counter One "innkeeper_instance_network_frames_total",
        "Frames that a guest has received and sent.";
    NETWORK_DROPS = Counter One "innkeeper_instance_network_drops_total",
        "Frames that the guest, or the host, had no room for.";
    NETWORK_THROTTLED = Counter One "innkeeper_instance_network_throttled_total",
        "How often an interface has waited for its limit.";
}

/// The metric that a series is of, if it is one of those that there are now.
pub fn of_series(series: &str) -> Option<&'static Family> {
    let name = series.split('{').next().unwrap_or(series);
    ALL.iter().copied().find(|family| match family.kind {
        Kind::Histogram => {
            let part = name.strip_prefix(family.name);
            part.is_some_and(|part| matches!(part, "_bucket" | "_sum" | "_count"))
        }
        _ => family.name == name,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// https://prometheus.io/docs/practices/naming
    #[test]
    fn names_are_as_prometheus_wants_them() {
        for family in ALL {
            let Family { name, kind, help, .. } = family;
            let is_name = |byte: u8| byte.is_ascii_lowercase() || byte == b'_';
            assert!(name.starts_with("innkeeper_") && name.bytes().all(is_name), "{name}");
            assert_eq!(name.ends_with("_total"), *kind == Kind::Counter, "{name}");
            assert!(help.ends_with('.') && !help.contains(['\n', '\\']), "{name}");
            assert_eq!(ALL.iter().filter(|other| other.name == *name).count(), 1, "{name}");
        }
    }

    #[test]
    fn a_series_is_found_by_its_name() {
        let found = |series| of_series(series).map(|family| family.name);
        assert_eq!(found("innkeeper_requests_total{action=\"a\"}"), Some("innkeeper_requests_total"));
        assert_eq!(found("innkeeper_state_changes_total"), Some("innkeeper_state_changes_total"));
        assert_eq!(found("innkeeper_request_seconds_bucket{le=\"1\"}"), Some("innkeeper_request_seconds"));
        assert_eq!(found("innkeeper_request_seconds"), None);
        assert_eq!(found("something_else_total"), None);
    }

    #[test]
    fn the_dashboard_asks_for_what_there_is() {
        let dashboard = include_str!("../../../docs/dashboard.json");
        let is_part = |character: char| character.is_ascii_alphanumeric() || character == '_';
        let names = dashboard.split(|character| !is_part(character));
        let names: Vec<&str> = names.filter(|name| name.starts_with("innkeeper_")).collect();
        assert!(names.len() >= 20);
        for name in names {
            let is_known = ALL.iter().any(|family| family.name == name) || of_series(name).is_some();
            assert!(is_known, "{name}");
        }
    }
}
