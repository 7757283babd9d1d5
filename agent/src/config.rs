//! What the operator can choose.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;

use serde::Deserialize;

/// The configuration: a TOML file, every key of which can be left out.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct Config {
    /// Where the API listens. Not on the loopback needs TLS, which is not there yet.
    pub listen: SocketAddr,
    /// What is to survive a reboot of the host: records, volumes, images.
    pub state_directory: PathBuf,
    /// What does not: the VMMs' sockets.
    pub run_directory: PathBuf,
    /// The program `innkeeper-vmm`; by default the one beside this program, else the one on the `PATH`.
    pub vmm: Option<PathBuf>,
    /// The account: 12 digits.
    pub account: String,
    /// The region.
    pub region: String,
    /// The region's availability zones; the first one is used when none is named.
    pub zones: Vec<String>,
    /// The default VPC's range.
    pub vpc_cidr: String,
    /// Public addresses.
    pub public_addresses: Vec<(Ipv4Addr, Ipv4Addr)>,
    /// How long a guest has to switch itself off before it is switched off, in seconds.
    pub stop_timeout: u64,
    /// How long a guest has to reboot before it is reset, in seconds.
    pub reboot_timeout: u64,
    /// How long terminated instances stay listed, in seconds.
    pub terminated_retention: u64,
    /// Directories that images may be registered from.
    pub image_directories: Vec<PathBuf>,
    /// How many vCPUs are sold for each CPU of the host.
    pub cpu_overcommit: f64,
    /// MiB of memory that no instance gets.
    pub reserved_memory: u64,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            listen: SocketAddr::from(([127, 0, 0, 1], 8773)),
            state_directory: "/var/lib/innkeeper".into(),
            run_directory: "/run/innkeeper".into(),
            vmm: None,
            account: "000000000000".into(),
            region: "us-east-1".into(),
            zones: ["a", "b", "c"].map(|letter| format!("us-east-1{letter}")).into(),
            vpc_cidr: "172.31.0.0/16".into(),
            public_addresses: Vec::new(),
            stop_timeout: 120,
            reboot_timeout: 120,
            terminated_retention: 3600,
            image_directories: vec!["/var/lib/innkeeper/import".into()],
            cpu_overcommit: 8.0,
            reserved_memory: 512,
        }
    }
}
