//! What the operator can choose: a TOML file, then variables of the environment, then checks.
//!
//! `innkeeper.toml`, beside this package, shows every key with its default.

mod check;
mod environment;

use std::io;
use std::net::{Ipv6Addr, SocketAddr};
use std::path::{Path, PathBuf};

use innkeeper_images::recipe::Cache;
use innkeeper_network::linux::HostSettings;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::data_plane;
use crate::host::Settings;
use crate::network::Cidr;
use crate::network::public_addresses::Pool;

/// Where the file is if nobody says.
pub const DEFAULT_FILE: &str = "/etc/innkeeper/innkeeper.toml";

/// The configuration. Every key can be left out.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct Config {
    /// Where the API listens. Elsewhere than on the loopback it needs TLS.
    pub listen: SocketAddr,
    /// The names by which clients know the API: DNS names and IP addresses. With any, it is served over TLS.
    pub tls_names: Vec<String>,
    /// A certificate for these names, in PEM; by default one that the agent's own authority issues.
    pub tls_certificate: Option<PathBuf>,
    /// Its private key, in PEM.
    pub tls_key: Option<PathBuf>,
    /// Where metrics can be read, by everybody who can reach it; by default nowhere.
    pub metrics_listen: Option<SocketAddr>,
    /// What is to survive a reboot of the host: records, volumes, images.
    pub state_directory: PathBuf,
    /// What does not: the VMMs' sockets.
    pub run_directory: PathBuf,
    /// Where the kernel says which boot of the host this is.
    pub boot_id_file: PathBuf,
    /// The program `innkeeper-vmm`; by default the one beside this program, else the one on the `PATH`.
    pub vmm: Option<PathBuf>,
    /// The directory with the guest that reads disks whose file systems are not read here; by default the one beside this
    /// program, else the one that this user has built.
    pub boot_reader: Option<PathBuf>,
    /// The account: 12 digits.
    pub account: String,
    /// The region.
    pub region: String,
    /// The region's availability zones; the first one is used when none is named. By default `a`, `b` and `c` of the
    /// region.
    pub zones: Vec<String>,
    /// The default VPC's range, made on the first start.
    pub vpc_cidr: Cidr,
    /// The ranges that public addresses are taken from. The first address of the first one is the host's.
    pub public_addresses: Vec<Cidr>,
    /// Whether what instances send beyond the host gets the host's own address.
    pub masquerade: bool,
    /// How many VPCs an account can have, the default one included.
    pub vpc_quota: usize,
    /// How many packets each network interface may send in a second to the VPC's services: metadata, names, time, the API. 0 is
    /// as many as it likes.
    pub service_packets: u32,
    /// How many elastic addresses an account can have.
    pub elastic_address_quota: usize,
    /// How long a guest has to switch itself off before it is switched off, in seconds.
    pub stop_timeout: u64,
    /// How long a guest has to reboot before it is reset, in seconds.
    pub reboot_timeout: u64,
    /// Whether volumes are only as fast as EC2's of their type.
    pub limit_volumes: bool,
    /// How long terminated instances stay listed, in seconds.
    pub terminated_retention: u64,
    /// Directories that images may be registered from.
    pub image_directories: Vec<PathBuf>,
    /// How many vCPUs are sold for each CPU of the host.
    pub cpu_overcommit: f64,
    /// MiB of memory that no instance gets.
    pub reserved_memory: u64,
    /// Instance types besides EC2's.
    pub instance_types: Vec<OwnInstanceType>,
}

/// An instance type that EC2 does not have.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct OwnInstanceType {
    /// A family, a dot and a size, such as `lab.tiny`.
    pub name: String,
    /// How many CPUs the guest sees.
    pub vcpus: u32,
    /// In MiB.
    pub memory: u64,
    /// The disks of its instance store. By default none, or those of EC2's type of this name.
    pub instance_store: Option<OwnInstanceStore>,
    /// What each network interface may send, and receive, in Mbit/s. By default 10,000, or as much as EC2's type of this name.
    pub bandwidth: Option<u64>,
}

/// The instance store of a type.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct OwnInstanceStore {
    /// How many, 0 to 24.
    pub disks: u32,
    /// The size of each, in GB (10⁹ bytes).
    pub size: u64,
}

impl Default for Config {
    fn default() -> Self {
        let region = "us-east-1";
        Self {
            listen: SocketAddr::from(([127, 0, 0, 1], 8773)),
            tls_names: Vec::new(),
            tls_certificate: None,
            tls_key: None,
            metrics_listen: None,
            state_directory: "/var/lib/innkeeper".into(),
            run_directory: "/run/innkeeper".into(),
            boot_id_file: "/proc/sys/kernel/random/boot_id".into(),
            vmm: None,
            boot_reader: None,
            account: "000000000000".into(),
            region: region.into(),
            zones: zones_of(region),
            vpc_cidr: Cidr::DEFAULT_VPC,
            public_addresses: vec![Cidr::PUBLIC_ADDRESSES],
            masquerade: true,
            vpc_quota: 5,
            service_packets: 1024,
            elastic_address_quota: 5,
            stop_timeout: 120,
            reboot_timeout: 120,
            limit_volumes: true,
            terminated_retention: 3600,
            image_directories: vec!["/var/lib/innkeeper/import".into()],
            cpu_overcommit: 8.0,
            reserved_memory: 512,
            instance_types: Vec::new(),
        }
    }
}

impl Config {
    /// What the host needs to know.
    pub fn host_settings(&self) -> Settings {
        Settings {
            vmm: self.vmm.clone().unwrap_or_else(default_vmm),
            run_directory: self.run_directory.clone(),
            scratch_directory: self.state_directory.clone(),
            boot_id_file: self.boot_id_file.clone(),
            cpu_overcommit: self.cpu_overcommit,
            reserved_memory: self.reserved_memory,
            network: HostSettings {
                table: self.table(),
                comment: self.comment(),
                pool: self.public_addresses.clone(),
                address: Pool::new(&self.public_addresses).host_address(),
                masquerade: self.masquerade,
            },
        }
    }
}

impl Config {
    /// What the network needs to know.
    pub fn data_plane_settings(&self) -> data_plane::Settings {
        let service_packets = Some(self.service_packets).filter(|packets| *packets > 0);
        data_plane::Settings { region: self.region.clone(), service_packets }
    }

    /// By what our table is recognised. Linux keeps 128 bytes of it.
    fn comment(&self) -> String {
        let directory = self.run_directory.to_string_lossy();
        let plain = directory.chars().filter(|letter| letter.is_ascii_graphic() && *letter != '"');
        plain.take(100).collect()
    }

    /// The name of our nftables table on the host. Agents that share a host have directories of their own, and tables.
    fn table(&self) -> String {
        let directory = &self.run_directory;
        if *directory == Self::default().run_directory {
            return "innkeeper".to_owned();
        }
        let digest = Sha256::digest(directory.as_os_str().as_encoded_bytes());
        let digits: String = digest.iter().take(4).map(|byte| format!("{byte:02x}")).collect();
        format!("innkeeper-{digits}")
    }

    /// Where the guest is that reads disks, if there is one.
    pub fn boot_reader(&self) -> Option<PathBuf> {
        let beside = || {
            let path = std::env::current_exe().ok()?.with_file_name(BOOT_READER);
            path.is_dir().then_some(path)
        };
        let built = || Cache::of_user().ok()?.current(BOOT_READER).ok();
        self.boot_reader.clone().or_else(beside).or_else(built)
    }
}

/// The name of the image of the guest that reads disks.
const BOOT_READER: &str = "boot-reader";

/// The VMM beside this program, if there is one; else whichever is on the `PATH`.
fn default_vmm() -> PathBuf {
    let name = PathBuf::from("innkeeper-vmm");
    let beside = std::env::current_exe().map(|program| program.with_file_name(&name));
    beside.ok().filter(|path| path.is_file()).unwrap_or(name)
}

/// Why there is no configuration.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("cannot read {}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The file does not say what it should.
    #[error("{} line {line}: {reason}", path.display())]
    Parse {
        /// The file.
        path: PathBuf,
        /// From 1.
        line: usize,
        /// Why.
        reason: String,
    },
    /// A variable of the environment does not.
    #[error("the variable {variable}: {reason}")]
    Environment {
        /// The variable.
        variable: String,
        /// Why.
        reason: String,
    },
    /// A value is not allowed.
    #[error("{key} in the configuration: {reason}")]
    Invalid {
        /// The key.
        key: &'static str,
        /// Why, and what to do.
        reason: String,
    },
}

impl Config {
    /// Reads the file at `path`, else the one at [`DEFAULT_FILE`] if there is one; then what this process' environment
    /// says.
    pub fn load(path: Option<&Path>) -> Result<Self, ConfigError> {
        let (path, needed) = path.map_or((Path::new(DEFAULT_FILE), false), |path| (path, true));
        let text = match std::fs::read_to_string(path) {
            Ok(text) => text,
            Err(error) if !needed && error.kind() == io::ErrorKind::NotFound => String::new(),
            Err(source) => return Err(ConfigError::Read { path: path.to_owned(), source }),
        };
        // What is not UTF-8 is none of ours.
        let environment = std::env::vars_os()
            .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)));
        Self::read(path, &text, environment)
    }

    /// The configuration in a file with this text, where no variable of the environment says otherwise.
    fn read(
        path: &Path,
        text: &str,
        environment: impl Iterator<Item = (String, String)>,
    ) -> Result<Self, ConfigError> {
        let failed = |error: toml::de::Error| {
            let before = error.span().and_then(|span| text.get(..span.start)).unwrap_or_default();
            let line = 1 + before.matches('\n').count();
            ConfigError::Parse { path: path.to_owned(), line, reason: error.message().to_owned() }
        };
        // In one go, for errors with lines.
        let mut config: Self = toml::from_str(text).map_err(failed)?;
        let file: toml::Table = toml::from_str(text).map_err(failed)?;
        let mut chosen: Vec<String> = file.keys().cloned().collect();
        chosen.extend(environment::apply(&mut config, environment)?);
        if !chosen.iter().any(|key| key == "zones") {
            config.zones = zones_of(&config.region);
        }
        config.check()?;
        Ok(config)
    }

    /// Where the records are.
    pub fn store(&self) -> PathBuf {
        self.state_directory.join("state.redb")
    }

    /// The API's URL, as clients know it, if it listens at this port.
    pub fn endpoint_url(&self, port: u16) -> String {
        match self.tls_names.first() {
            None => format!("http://{}", SocketAddr::new(self.listen.ip(), port)),
            Some(name) => match name.parse::<Ipv6Addr>() {
                Ok(address) => format!("https://[{address}]:{port}"),
                Err(_) => format!("https://{name}:{port}"),
            },
        }
    }

    /// Where the certificate is that clients have to trust, if it is our own authority's.
    pub fn ca_bundle(&self) -> Option<PathBuf> {
        let is_own = !self.tls_names.is_empty() && self.tls_certificate.is_none();
        is_own.then(|| self.state_directory.join("ca.pem"))
    }

    /// Where the access key is, in the form that AWS's tools read.
    pub fn credentials(&self) -> PathBuf {
        self.state_directory.join("credentials")
    }
}

fn zones_of(region: &str) -> Vec<String> {
    ["a", "b", "c"].map(|letter| format!("{region}{letter}")).into()
}

#[cfg(test)]
mod tests {
    use super::*;

    const EXAMPLE: &str = include_str!("../../innkeeper.toml");

    pub fn read(text: &str, environment: &[(&str, &str)]) -> Result<Config, String> {
        let environment = environment.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
        Config::read(Path::new("a.toml"), text, environment).map_err(|error| error.to_string())
    }

    /// The settings of the example, which are commented out.
    fn uncommented() -> toml::Table {
        let setting = |line: &str| {
            let line = line.strip_prefix('#')?;
            (!line.is_empty() && !line.starts_with([' ', '#'])).then(|| line.to_owned())
        };
        let lines: Vec<String> = EXAMPLE.lines().filter_map(setting).collect();
        lines.join("\n").parse().unwrap()
    }

    #[test]
    fn the_example_changes_nothing() {
        assert_eq!(read(EXAMPLE, &[]), Ok(Config::default()));
    }

    #[test]
    fn the_example_shows_every_key_with_its_default() {
        let mut shown = uncommented();
        let serde_json::Value::Object(keys) = serde_json::to_value(Config::default()).unwrap() else {
            panic!("not an object");
        };
        assert_eq!(shown.keys().collect::<Vec<_>>(), keys.keys().collect::<Vec<_>>());
        // These go together.
        let tls = ["tls-certificate", "tls-key"].map(|key| (key.to_owned(), shown.remove(key).unwrap()));
        let tls = toml::Table::from_iter(tls);
        let config = read(&format!("tls-names = ['a']\n{tls}"), &[]).unwrap();
        assert!(config.tls_certificate.is_some() && config.tls_key.is_some());
        // These have none, and are shown with a value that could be.
        for key in ["boot-reader", "instance-types", "metrics-listen", "vmm"] {
            let shown = toml::Table::from_iter([(key.to_owned(), shown.remove(key).unwrap())]);
            let config = read(&shown.to_string(), &[]).unwrap();
            assert_ne!(config, Config::default(), "{key}");
        }
        assert_eq!(read(&shown.to_string(), &[]), Ok(Config::default()));
    }

    #[test]
    fn a_mistake_in_the_file_is_named_with_its_line() {
        for (text, error) in [
            ("\nlissten = 1", "a.toml line 2: unknown field `lissten`"),
            ("account = 1", "a.toml line 1: invalid type: integer `1`, expected a string"),
            (
                "vpc-cidr = '10.0.0.1/16'",
                "a.toml line 1: \"10.0.0.1/16\" does not begin at its first address",
            ),
            ("a = [", "a.toml line 1: "),
            ("[[instance-types]]\nname = 'a.b'\nvcpus = 1", "a.toml line 1: missing field `memory`"),
        ] {
            let found = read(text, &[]).unwrap_err();
            assert!(found.starts_with(error) && !found.contains('\n'), "{found}");
        }
    }

    #[test]
    fn clients_find_the_api() {
        for (text, url, has_bundle) in [
            ("", "http://127.0.0.1:1", false),
            ("listen = '[::1]:8773'", "http://[::1]:1", false),
            ("listen = '0.0.0.0:0'\ntls-names = ['a.example', 'b']", "https://a.example:1", true),
            ("tls-names = ['2001:db8::1']", "https://[2001:db8::1]:1", true),
            ("tls-names = ['a']\ntls-certificate = '/c'\ntls-key = '/k'", "https://a:1", false),
        ] {
            let config = read(text, &[]).unwrap();
            assert_eq!((config.endpoint_url(1), config.ca_bundle().is_some()), (url.to_owned(), has_bundle));
        }
    }

    #[test]
    fn the_zones_follow_the_region() {
        let config = read("region = 'eu-west-1'", &[]).unwrap();
        assert_eq!(config.zones, ["eu-west-1a", "eu-west-1b", "eu-west-1c"]);
        let config = read("region = 'eu-west-1'", &[("INNKEEPER_REGION", "eu-west-2")]).unwrap();
        assert_eq!(config.zones[0], "eu-west-2a");
        let config = read("zones = ['us-east-1d']", &[]).unwrap();
        assert_eq!(config.zones, ["us-east-1d"]);
    }
}
