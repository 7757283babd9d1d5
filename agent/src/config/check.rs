//! What a configuration has to be to work.

use std::collections::BTreeSet;
use std::ops::RangeInclusive;

use innkeeper_network::plan::NOBODYS;

use super::{Config, ConfigError};

/// What EC2 allows for a VPC.
const VPC_PREFIXES: std::ops::RangeInclusive<u8> = 16..=28;

/// The longest prefix of a subnet.
const SUBNET_PREFIX: u8 = 28;

/// The most disks of an instance store, as many as EC2 has names for, and the size of each in GB.
const MAX_DISKS: u32 = 24;
const MAX_DISK: u64 = 65_536;

/// In Mbit/s: a terabit.
const MAX_BANDWIDTH: u64 = 1_000_000;

/// What the budget of an interface may be, in packets a second. With less, no lease would be had.
const SERVICE_PACKETS: RangeInclusive<u32> = 16..=1_000_000;

/// The most VPCs and the most elastic addresses.
const MAX_QUOTA: usize = 10_000;

/// In seconds.
const DAY: u64 = 24 * 60 * 60;

impl Config {
    /// Says what is wrong.
    pub(super) fn check(&self) -> Result<(), ConfigError> {
        self.check_listen()?;
        self.check_places()?;
        self.check_region()?;
        self.check_network()?;
        self.check_limits()?;
        self.check_instance_types()
    }

    fn check_listen(&self) -> Result<(), ConfigError> {
        for (number, name) in self.tls_names.iter().enumerate() {
            if !innkeeper_identity::is_server_name(name) {
                return invalid("tls-names", format!("{name:?} is not a DNS name or an IP address"));
            }
            if number == 0 && name.starts_with('*') {
                let reason =
                    format!("clients cannot go to {name:?}: the first has to be the name of this host");
                return invalid("tls-names", reason);
            }
        }
        let (certificate, key) = (&self.tls_certificate, &self.tls_key);
        match (certificate, key) {
            (Some(_), None) => return invalid("tls-key", "it is needed for tls-certificate"),
            (None, Some(_)) => return invalid("tls-certificate", "it is needed for tls-key"),
            (Some(_), Some(_)) if self.tls_names.is_empty() => {
                return invalid("tls-names", "at least one is needed, for which tls-certificate is");
            }
            _ => {}
        }
        if self.tls_names.is_empty() && !self.listen.ip().is_loopback() {
            let reason = format!(
                "{} is not an address of the loopback, and answers such as CreateKeyPair's private key are secret: say \
                 by which names clients know this host, tls-names = [\"HOST\"], for TLS, or listen on 127.0.0.1",
                self.listen.ip()
            );
            return invalid("listen", reason);
        }
        Ok(())
    }

    fn check_places(&self) -> Result<(), ConfigError> {
        let places = [
            ("state-directory", &self.state_directory),
            ("run-directory", &self.run_directory),
            ("boot-id-file", &self.boot_id_file),
        ];
        let images = self.image_directories.iter().map(|directory| ("image-directories", directory));
        let programs = self.vmm.iter().map(|vmm| ("vmm", vmm));
        let reader = self.boot_reader.iter().map(|reader| ("boot-reader", reader));
        let certificate = self.tls_certificate.iter().map(|certificate| ("tls-certificate", certificate));
        let tls = certificate.chain(self.tls_key.iter().map(|key| ("tls-key", key)));
        for (key, path) in places.into_iter().chain(images).chain(programs).chain(reader).chain(tls) {
            if !path.is_absolute() {
                return invalid(key, format!("{:?} is not an absolute path", path.display().to_string()));
            }
        }
        if self.state_directory == self.run_directory {
            return invalid("run-directory", "it has to be another one than state-directory");
        }
        Ok(())
    }

    fn check_region(&self) -> Result<(), ConfigError> {
        if self.account.len() != 12 || !self.account.bytes().all(|byte| byte.is_ascii_digit()) {
            return invalid("account", format!("{:?} is not 12 digits", self.account));
        }
        if !is_name(&self.region) {
            let reason = format!("{:?} is not lower-case words and a number, as in us-east-1", self.region);
            return invalid("region", reason);
        }
        if self.zones.is_empty() {
            return invalid("zones", "at least one is needed");
        }
        let mut seen = BTreeSet::new();
        for zone in &self.zones {
            if !matches!(zone.strip_prefix(&self.region).map(str::as_bytes), Some([b'a'..=b'z'])) {
                return invalid("zones", format!("{zone:?} is not the region {} and a letter", self.region));
            }
            if !seen.insert(zone) {
                return invalid("zones", format!("{zone} is listed twice"));
            }
        }
        Ok(())
    }

    fn check_network(&self) -> Result<(), ConfigError> {
        let vpc = self.vpc_cidr;
        if !VPC_PREFIXES.contains(&vpc.prefix()) {
            let reason = format!(
                "{vpc} is too {}: the prefix of a VPC is /16 to /28",
                if vpc.prefix() < 16 { "large" } else { "small" }
            );
            return invalid("vpc-cidr", reason);
        }
        if vpc.parts(SUBNET_PREFIX).count() < self.zones.len() {
            let reason = format!("{vpc} has no room for a subnet in each of the {} zones", self.zones.len());
            return invalid("vpc-cidr", reason);
        }
        let ranges = [vpc].into_iter().map(|range| ("vpc-cidr", range));
        let ranges = ranges.chain(self.public_addresses.iter().map(|range| ("public-addresses", *range)));
        for (key, range) in ranges {
            if let Some(other) = NOBODYS.iter().find(|other| other.overlaps(range)) {
                return invalid(key, format!("{range} has addresses of {other}, which is reserved"));
            }
        }
        for (number, range) in self.public_addresses.iter().enumerate() {
            let others = self.public_addresses.iter().take(number).chain([&vpc]);
            if let Some(other) = others.into_iter().find(|other| range.overlaps(**other)) {
                return invalid("public-addresses", format!("{range} and {other} have addresses in common"));
            }
        }
        Ok(())
    }

    fn check_limits(&self) -> Result<(), ConfigError> {
        for (key, quota) in
            [("vpc-quota", self.vpc_quota), ("elastic-address-quota", self.elastic_address_quota)]
        {
            if quota > MAX_QUOTA {
                return invalid(key, format!("{quota} is more than the {MAX_QUOTA} that are allowed"));
            }
        }
        if self.service_packets != 0 && !SERVICE_PACKETS.contains(&self.service_packets) {
            let (least, most) = SERVICE_PACKETS.into_inner();
            let reason = format!("{} is not 0 and not in {least} to {most}", self.service_packets);
            return invalid("service-packets", reason);
        }
        for (key, seconds, most) in [
            ("stop-timeout", self.stop_timeout, DAY),
            ("reboot-timeout", self.reboot_timeout, DAY),
            ("terminated-retention", self.terminated_retention, 31 * DAY),
        ] {
            if seconds > most {
                return invalid(key, format!("{seconds} seconds are more than the {most} that are allowed"));
            }
        }
        if !(self.cpu_overcommit > 0.0 && self.cpu_overcommit <= 1000.0) {
            return invalid(
                "cpu-overcommit",
                format!("{} is not above 0 and at most 1000", self.cpu_overcommit),
            );
        }
        Ok(())
    }

    fn check_instance_types(&self) -> Result<(), ConfigError> {
        let mut seen = BTreeSet::new();
        for own in &self.instance_types {
            let name = &own.name;
            if !name.split_once('.').is_some_and(|(family, size)| is_name(family) && is_name(size)) {
                let reason = format!("{name:?} is not a family, a dot and a size, as in lab.tiny");
                return invalid("instance-types", reason);
            }
            if !seen.insert(name) {
                return invalid("instance-types", format!("{name} is there twice"));
            }
            if own.vcpus == 0 || own.memory == 0 {
                return invalid(
                    "instance-types",
                    format!("{name} needs at least one vCPU and 1 MiB of memory"),
                );
            }
            if own.bandwidth.is_some_and(|bandwidth| !(1..=MAX_BANDWIDTH).contains(&bandwidth)) {
                let reason = format!("the bandwidth of {name} has to be 1 to {MAX_BANDWIDTH}, in Mbit/s");
                return invalid("instance-types", reason);
            }
            if let Some(store) = own.instance_store
                && (store.disks > MAX_DISKS || store.size == 0 || store.size > MAX_DISK)
            {
                let reason = format!(
                    "the instance store of {name} has to have at most {MAX_DISKS} disks, of 1 to {MAX_DISK} GB each"
                );
                return invalid("instance-types", reason);
            }
        }
        Ok(())
    }
}

fn invalid(key: &'static str, reason: impl Into<String>) -> Result<(), ConfigError> {
    Err(ConfigError::Invalid { key, reason: reason.into() })
}

/// Lower-case words of letters and digits, with dashes between them.
fn is_name(text: &str) -> bool {
    let word = |word: &str| {
        !word.is_empty() && word.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit())
    };
    text.split('-').all(word)
}

#[cfg(test)]
mod tests {
    use super::super::tests::read;

    #[test]
    fn what_cannot_work_is_refused_with_the_reason() {
        for (text, error) in [
            (
                "listen = '0.0.0.0:8773'",
                "listen in the configuration: 0.0.0.0 is not an address of the loopback, and answers",
            ),
            (
                "listen = '[::]:8773'",
                "listen in the configuration: :: is not an address of the loopback, and",
            ),
            ("tls-names = ['a b']", "tls-names in the configuration: \"a b\" is not a DNS name or an IP"),
            (
                "tls-names = ['*.a']",
                "tls-names in the configuration: clients cannot go to \"*.a\": the first",
            ),
            (
                "tls-names = ['a']\ntls-certificate = '/c'",
                "tls-key in the configuration: it is needed for tls-certificate",
            ),
            ("tls-names = ['a']\ntls-key = '/k'", "tls-certificate in the configuration: it is needed for"),
            (
                "tls-certificate = '/c'\ntls-key = '/k'",
                "tls-names in the configuration: at least one is needed",
            ),
            (
                "tls-names = ['a']\ntls-certificate = 'c'\ntls-key = '/k'",
                "tls-certificate in the configuration: \"c\" is not an absolute path",
            ),
            (
                "state-directory = 'state'",
                "state-directory in the configuration: \"state\" is not an absolute path",
            ),
            ("vmm = 'innkeeper-vmm'", "vmm in the configuration: "),
            (
                "run-directory = '/var/lib/innkeeper'",
                "run-directory in the configuration: it has to be another",
            ),
            ("account = '12345'", "account in the configuration: \"12345\" is not 12 digits"),
            ("account = '12345678901x'", "account in the configuration: "),
            ("region = 'US East'", "region in the configuration: "),
            ("zones = []", "zones in the configuration: at least one"),
            (
                "zones = ['eu-west-1a']",
                "zones in the configuration: \"eu-west-1a\" is not the region us-east-1 and",
            ),
            ("zones = ['us-east-1ab']", "zones in the configuration: \"us-east-1ab\" is not"),
            ("zones = ['us-east-1']", "zones in the configuration: \"us-east-1\" is not"),
            (
                "zones = ['us-east-1a', 'us-east-1a']",
                "zones in the configuration: us-east-1a is listed twice",
            ),
            ("vpc-cidr = '10.0.0.0/8'", "vpc-cidr in the configuration: 10.0.0.0/8 is too large"),
            ("vpc-cidr = '10.0.0.0/29'", "vpc-cidr in the configuration: 10.0.0.0/29 is too small"),
            ("vpc-cidr = '10.0.0.0/28'", "vpc-cidr in the configuration: 10.0.0.0/28 has no room"),
            (
                "public-addresses = ['172.31.4.0/24']",
                "public-addresses in the configuration: 172.31.4.0/24 and 172",
            ),
            (
                "service-packets = 7",
                "service-packets in the configuration: 7 is not 0 and not in 16 to 1000000",
            ),
            ("vpc-quota = 10001", "vpc-quota in the configuration: 10001 is more than the 10000"),
            ("elastic-address-quota = 10001", "elastic-address-quota in the configuration: 10001 is more"),
            ("stop-timeout = 100000", "stop-timeout in the configuration: 100000 seconds are more"),
            ("cpu-overcommit = 0", "cpu-overcommit in the configuration: 0 is not above 0"),
            ("cpu-overcommit = nan", "cpu-overcommit in the configuration: NaN is not above 0"),
            (
                "[[instance-types]]\nname = 'tiny'\nvcpus = 1\nmemory = 1",
                "instance-types in the configuration: \"tiny\" is not a family",
            ),
            (
                "[[instance-types]]\nname = 'lab.tiny'\nvcpus = 0\nmemory = 1",
                "instance-types in the configuration: lab.tiny needs at least one vCPU",
            ),
            (
                "[[instance-types]]\nname = 'lab.tiny'\nvcpus = 1\nmemory = 1\n\
                 instance-store = { disks = 25, size = 1 }",
                "instance-types in the configuration: the instance store of lab.tiny has to have at most 24",
            ),
        ] {
            let found = read(text, &[]).unwrap_err();
            assert!(found.starts_with(error), "{found}");
        }
    }

    #[test]
    fn what_can_work_is_taken() {
        for text in [
            "listen = '[::1]:0'",
            "listen = '0.0.0.0:8773'\ntls-names = ['innkeeper.example', '*.innkeeper.example', '2001:db8::1']",
            "listen = '[::]:8773'\ntls-names = ['a']\ntls-certificate = '/c'\ntls-key = '/k'",
            "tls-names = ['localhost']",
            "cpu-overcommit = 0.5",
            "vpc-cidr = '10.0.0.0/28'\nzones = ['us-east-1a']",
            "public-addresses = ['203.0.113.0/28', '198.51.100.7/32']",
            "public-addresses = []",
            "vpc-quota = 0\nelastic-address-quota = 10000",
            "stop-timeout = 0",
            "[[instance-types]]\nname = 'lab.2x-tiny'\nvcpus = 1\nmemory = 64",
        ] {
            assert!(read(text, &[]).is_ok(), "{text}");
        }
    }
}
