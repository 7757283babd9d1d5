//! The instance types: what each has, by name.
//!
//! `families` has EC2's published figures. The operator can add types, and give one of EC2's names another size. A type
//! that is larger than the host is listed like the others; there is just never room for it.

mod families;

use std::collections::BTreeMap;

use crate::records::StoreDisk;

/// An instance type.
#[derive(Clone, Debug, PartialEq)]
pub struct InstanceType {
    /// Such as `t3.micro`.
    pub name: String,
    /// How many CPUs the guest sees.
    pub vcpus: u32,
    /// In MiB.
    pub memory: u64,
    /// What it runs on, in EC2's data centres.
    pub processor: Processor,
    /// `nitro` or `xen`.
    pub hypervisor: &'static str,
    /// Whether it earns and spends CPU credits.
    pub burstable: bool,
    /// Whether EC2 still recommends it.
    pub current_generation: bool,
    /// Whether EC2 lets newcomers have it for nothing.
    pub free_tier: bool,
    /// Its share of the network.
    pub network: Network,
    /// Its share of the way to its volumes, if it has one of its own.
    pub ebs: Option<Ebs>,
    /// Its instance store.
    pub disks: Option<Disks>,
}

/// A processor.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Processor {
    /// Who makes it.
    pub manufacturer: &'static str,
    /// Its sustained clock in GHz.
    pub clock: f64,
    /// vCPUs for each core.
    pub threads_per_core: u32,
}

/// A share of the network.
#[derive(Clone, Debug, PartialEq)]
pub struct Network {
    /// For people, such as `Up to 12.5 Gigabit`.
    pub performance: String,
    /// In Gbit/s, always.
    pub baseline: f64,
    /// In Gbit/s, for a while.
    pub peak: f64,
    /// The most interfaces.
    pub interfaces: u32,
    /// The most IPv4 addresses of each.
    pub addresses: u32,
}

/// A share of the way to the volumes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ebs {
    /// In Mbit/s, always.
    pub baseline_bandwidth: u32,
    /// In Mbit/s, for a while.
    pub maximum_bandwidth: u32,
    /// Operations of 16 KiB per second, always.
    pub baseline_iops: u32,
    /// Operations of 16 KiB per second, for a while.
    pub maximum_iops: u32,
}

/// An instance store: disks of one size.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Disks {
    /// How many.
    pub count: u32,
    /// The size of each, in GB (10⁹ bytes).
    pub size: u64,
    /// `ssd` or `hdd`.
    pub kind: &'static str,
}

impl InstanceType {
    /// The disks of its instance store, which all its instances get, as with EC2's NVMe disks.
    pub fn instance_store(&self) -> Vec<StoreDisk> {
        let Some(disks) = self.disks else { return Vec::new() };
        (0..disks.count)
            .map(|number| StoreDisk {
                name: format!("ephemeral{number}"),
                device_name: None,
                size: disks.size.saturating_mul(1_000_000_000),
                layer: None,
                source: None,
            })
            .collect()
    }

    /// A type of the operator's. What EC2 would publish of it is that of a small type of today.
    pub fn own(name: &str, vcpus: u32, memory: u64) -> Self {
        Self {
            name: name.to_owned(),
            vcpus,
            memory,
            processor: Processor { manufacturer: "Intel", clock: 3.0, threads_per_core: 1 },
            hypervisor: "nitro",
            burstable: false,
            current_generation: true,
            free_tier: false,
            network: Network {
                performance: "Up to 10 Gigabit".to_owned(),
                baseline: 0.75,
                peak: 10.0,
                interfaces: 3,
                addresses: 10,
            },
            ebs: Some(Ebs {
                baseline_bandwidth: 650,
                maximum_bandwidth: 4750,
                baseline_iops: 3600,
                maximum_iops: 18_750,
            }),
            disks: None,
        }
    }
}

/// A type of the operator's.
#[derive(Clone, Copy, Debug, Default)]
pub struct Own<'a> {
    /// Its name.
    pub name: &'a str,
    /// How many CPUs the guest sees.
    pub vcpus: u32,
    /// In MiB.
    pub memory: u64,
    /// Its instance store, if it is not the usual one.
    pub disks: Option<Disks>,
    /// In Mbit/s, if it is not the usual one.
    pub bandwidth: Option<u64>,
}

/// All instance types.
#[derive(Clone, Debug)]
pub struct Catalogue {
    types: BTreeMap<String, InstanceType>,
}

impl Default for Catalogue {
    /// EC2's types.
    fn default() -> Self {
        Self::new(std::iter::empty())
    }
}

impl Catalogue {
    /// EC2's types and the operator's. A type that EC2 has too keeps what else is known of it.
    pub fn new<'a>(own: impl IntoIterator<Item = Own<'a>>) -> Self {
        let mut types: BTreeMap<String, InstanceType> =
            families::all().map(|found| (found.name.clone(), found)).collect();
        for Own { name, vcpus, memory, disks, bandwidth } in own {
            let found =
                types.entry(name.to_owned()).or_insert_with(|| InstanceType::own(name, vcpus, memory));
            found.vcpus = vcpus;
            found.memory = memory;
            match disks {
                None => {}
                Some(disks) if disks.count == 0 => found.disks = None,
                Some(disks) => found.disks = Some(disks),
            }
            if let Some(bandwidth) = bandwidth {
                let gigabits = bandwidth as f64 / 1000.0;
                found.network.performance = format!("{gigabits} Gigabit");
                (found.network.baseline, found.network.peak) = (gigabits, gigabits);
            }
        }
        Self { types }
    }

    /// The type with this name.
    pub fn get(&self, name: &str) -> Option<&InstanceType> {
        self.types.get(name)
    }

    /// All of them, in the order of their names.
    pub fn all(&self) -> impl Iterator<Item = &InstanceType> {
        self.types.values()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_figures_are_those_that_ec2_publishes() {
        let catalogue = Catalogue::default();
        for (name, vcpus, memory, network, interfaces, ebs, disks) in [
            ("t2.micro", 1, 1024, "Low to Moderate", (2, 2), None, None),
            ("t3.nano", 2, 512, "Up to 5 Gigabit", (2, 2), Some((43, 2085, 250, 11_800)), None),
            ("t3.micro", 2, 1024, "Up to 5 Gigabit", (2, 2), Some((87, 2085, 500, 11_800)), None),
            ("t3a.2xlarge", 8, 32_768, "Up to 5 Gigabit", (4, 15), Some((695, 2780, 4000, 15_700)), None),
            ("m5.large", 2, 8192, "Up to 10 Gigabit", (3, 10), Some((650, 4750, 3600, 18_750)), None),
            (
                "m5d.8xlarge",
                32,
                131_072,
                "10 Gigabit",
                (8, 30),
                Some((6800, 6800, 30_000, 30_000)),
                Some((2, 600)),
            ),
            ("c5.9xlarge", 36, 73_728, "12 Gigabit", (8, 30), Some((9500, 9500, 40_000, 40_000)), None),
            (
                "m6i.32xlarge",
                128,
                524_288,
                "50 Gigabit",
                (15, 50),
                Some((40_000, 40_000, 160_000, 160_000)),
                None,
            ),
            (
                "c6a.48xlarge",
                192,
                393_216,
                "50 Gigabit",
                (15, 50),
                Some((40_000, 40_000, 240_000, 240_000)),
                None,
            ),
            ("c7a.medium", 1, 2048, "Up to 12.5 Gigabit", (2, 4), Some((325, 10_000, 2500, 40_000)), None),
            (
                "c7i-flex.xlarge",
                4,
                8192,
                "Up to 12.5 Gigabit",
                (4, 15),
                Some((625, 10_000, 3600, 36_000)),
                None,
            ),
            (
                "r6a.48xlarge",
                192,
                1_572_864,
                "50 Gigabit",
                (15, 50),
                Some((40_000, 40_000, 240_000, 240_000)),
                None,
            ),
            ("r7a.medium", 1, 8192, "Up to 12.5 Gigabit", (2, 4), Some((325, 10_000, 2500, 40_000)), None),
            (
                "r7i.xlarge",
                4,
                32_768,
                "Up to 12.5 Gigabit",
                (4, 15),
                Some((1250, 10_000, 6000, 40_000)),
                None,
            ),
            (
                "x2idn.16xlarge",
                64,
                1_048_576,
                "50 Gigabit",
                (15, 50),
                Some((40_000, 40_000, 173_333, 173_333)),
                Some((1, 1900)),
            ),
            (
                "i3.large",
                2,
                15_616,
                "Up to 10 Gigabit",
                (3, 10),
                Some((425, 425, 3000, 3000)),
                Some((1, 475)),
            ),
            (
                "i3en.24xlarge",
                96,
                786_432,
                "100 Gigabit",
                (15, 50),
                Some((19_000, 19_000, 80_000, 80_000)),
                Some((8, 7500)),
            ),
            (
                "i4i.xlarge",
                4,
                32_768,
                "Up to 10 Gigabit",
                (4, 15),
                Some((1250, 10_000, 5000, 40_000)),
                Some((1, 937)),
            ),
            (
                "d3.8xlarge",
                32,
                262_144,
                "25 Gigabit",
                (3, 20),
                Some((5000, 5000, 30_000, 30_000)),
                Some((24, 1980)),
            ),
        ] {
            let found = catalogue.get(name).unwrap();
            assert_eq!((found.vcpus, found.memory), (vcpus, memory), "{name}");
            assert_eq!(found.network.performance, network, "{name}");
            assert_eq!((found.network.interfaces, found.network.addresses), interfaces, "{name}");
            let found_ebs = found.ebs.map(|ebs| {
                (ebs.baseline_bandwidth, ebs.maximum_bandwidth, ebs.baseline_iops, ebs.maximum_iops)
            });
            assert_eq!(found_ebs, ebs, "{name}");
            assert_eq!(found.disks.map(|disks| (disks.count, disks.size)), disks, "{name}");
        }
    }

    #[test]
    fn no_figure_is_out_of_bounds() {
        for found in Catalogue::default().all() {
            let name = &found.name;
            assert!((1..=192).contains(&found.vcpus), "{name}");
            assert!((512..=2048 * 1024).contains(&found.memory), "{name}");
            assert_eq!(found.vcpus % found.processor.threads_per_core, 0, "{name}");
            assert!(found.network.baseline > 0.0 && found.network.baseline <= found.network.peak, "{name}");
            assert!((1..=15).contains(&found.network.interfaces), "{name}");
            if let Some(ebs) = found.ebs {
                assert!(ebs.baseline_bandwidth <= ebs.maximum_bandwidth, "{name}");
                assert!(ebs.baseline_iops <= ebs.maximum_iops, "{name}");
            }
        }
    }

    /// The sizes that EC2's model lists for each family, without the bare metal ones.
    const MODEL: &[(&str, &str)] = &[
        ("c5", "large xlarge 2xlarge 4xlarge 9xlarge 12xlarge 18xlarge 24xlarge"),
        ("c5d", "large xlarge 2xlarge 4xlarge 9xlarge 12xlarge 18xlarge 24xlarge"),
        ("c6a", "large xlarge 2xlarge 4xlarge 8xlarge 12xlarge 16xlarge 24xlarge 32xlarge 48xlarge"),
        ("c6i", "large xlarge 2xlarge 4xlarge 8xlarge 12xlarge 16xlarge 24xlarge 32xlarge"),
        ("c7a", "medium large xlarge 2xlarge 4xlarge 8xlarge 12xlarge 16xlarge 24xlarge 32xlarge 48xlarge"),
        ("c7i", "large xlarge 2xlarge 4xlarge 8xlarge 12xlarge 16xlarge 24xlarge 48xlarge"),
        ("c7i-flex", "large xlarge 2xlarge 4xlarge 8xlarge 12xlarge 16xlarge"),
        ("d3", "xlarge 2xlarge 4xlarge 8xlarge"),
        ("i3", "large xlarge 2xlarge 4xlarge 8xlarge 16xlarge"),
        ("i3en", "large xlarge 2xlarge 3xlarge 6xlarge 12xlarge 24xlarge"),
        ("i4i", "large xlarge 2xlarge 4xlarge 8xlarge 16xlarge 32xlarge 12xlarge 24xlarge"),
        ("m5", "large xlarge 2xlarge 4xlarge 8xlarge 12xlarge 16xlarge 24xlarge"),
        ("m5d", "large xlarge 2xlarge 4xlarge 8xlarge 12xlarge 16xlarge 24xlarge"),
        ("m6a", "large xlarge 2xlarge 4xlarge 8xlarge 12xlarge 16xlarge 24xlarge 32xlarge 48xlarge"),
        ("m6i", "large xlarge 2xlarge 4xlarge 8xlarge 12xlarge 16xlarge 24xlarge 32xlarge"),
        ("m7a", "medium large xlarge 2xlarge 4xlarge 8xlarge 12xlarge 16xlarge 24xlarge 32xlarge 48xlarge"),
        ("m7i", "large xlarge 2xlarge 4xlarge 8xlarge 12xlarge 16xlarge 24xlarge 48xlarge"),
        ("m7i-flex", "large xlarge 2xlarge 4xlarge 8xlarge 12xlarge 16xlarge"),
        ("r5", "large xlarge 2xlarge 4xlarge 8xlarge 12xlarge 16xlarge 24xlarge"),
        ("r5d", "large xlarge 2xlarge 4xlarge 8xlarge 12xlarge 16xlarge 24xlarge"),
        ("r6a", "large xlarge 2xlarge 4xlarge 8xlarge 12xlarge 16xlarge 24xlarge 32xlarge 48xlarge"),
        ("r6i", "large xlarge 2xlarge 4xlarge 8xlarge 12xlarge 16xlarge 24xlarge 32xlarge"),
        ("r7a", "medium large xlarge 2xlarge 4xlarge 8xlarge 12xlarge 16xlarge 24xlarge 32xlarge 48xlarge"),
        ("r7i", "large xlarge 2xlarge 4xlarge 8xlarge 12xlarge 16xlarge 24xlarge 48xlarge"),
        ("t2", "nano micro small medium large xlarge 2xlarge"),
        ("t3", "nano micro small medium large xlarge 2xlarge"),
        ("t3a", "nano micro small medium large xlarge 2xlarge"),
        ("x2idn", "16xlarge 24xlarge 32xlarge"),
    ];

    #[test]
    fn every_family_is_as_large_as_in_the_model() {
        let mut expected: Vec<String> = MODEL
            .iter()
            .flat_map(|(family, sizes)| sizes.split(' ').map(move |size| format!("{family}.{size}")))
            .collect();
        expected.sort();
        let found: Vec<String> = Catalogue::default().all().map(|found| found.name.clone()).collect();
        assert_eq!(found, expected);
    }

    #[test]
    fn the_operator_adds_types_and_changes_sizes() {
        let store = Disks { count: 2, size: 3, kind: "ssd" };
        let none = Disks { count: 0, ..store };
        let own = |name, memory, disks| Own { name, vcpus: 1, memory, disks, bandwidth: None };
        let catalogue = Catalogue::new([
            Own { bandwidth: Some(8), ..own("lab.tiny", 128, None) },
            own("t3.micro", 256, Some(store)),
            own("i3.large", 128, Some(none)),
            own("i3.xlarge", 128, None),
        ]);
        let tiny = catalogue.get("lab.tiny").unwrap();
        assert_eq!((tiny.vcpus, tiny.memory, tiny.burstable), (1, 128, false));
        assert_eq!((tiny.network.performance.as_str(), tiny.network.peak), ("0.008 Gigabit", 0.008));
        let micro = catalogue.get("t3.micro").unwrap();
        assert_eq!((micro.vcpus, micro.memory, micro.burstable), (1, 256, true));
        let store = |name| {
            let disks = catalogue.get(name).unwrap().instance_store();
            disks.into_iter().map(|disk| (disk.name, disk.size)).collect::<Vec<_>>()
        };
        let [zero, one] = ["ephemeral0", "ephemeral1"].map(|name| (name.to_owned(), 3_000_000_000));
        assert_eq!(store("t3.micro"), [zero, one]);
        assert_eq!((store("lab.tiny").len(), store("i3.large").len(), store("i3.xlarge").len()), (0, 0, 1));
    }
}
