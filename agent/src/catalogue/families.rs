//! EC2's families of instance types, as EC2 publishes them.
//!
//! Most families of a generation have the same sizes with the same shares of network and EBS, and differ in memory,
//! processor and disks. So a table of sizes is shared by all that it is true of.

use super::{Disks, Ebs, InstanceType, Network, Processor};

/// MiB.
const GIB: u64 = 1024;

/// What the sizes of a family have in common.
struct Family {
    name: &'static str,
    processor: Processor,
    memory: Memory,
    sizes: &'static [Size],
    disks: Store,
}

/// How much memory the sizes have, in MiB.
enum Memory {
    /// In proportion.
    PerVcpu(u64),
    /// One by one.
    Each(&'static [u64]),
}

/// The disks of the sizes.
enum Store {
    /// None have any.
    None,
    /// How many of how many GB, one by one.
    Ssd(&'static [(u32, u64)]),
    /// How many of how many GB, one by one.
    Hdd(&'static [(u32, u64)]),
}

/// A size.
struct Size {
    name: &'static str,
    vcpus: u32,
    /// Baseline and peak, in Gbit/s.
    network: (f64, f64),
    /// Interfaces, and the addresses of each.
    interfaces: (u32, u32),
    /// Baseline and maximum, in Mbit/s; none if it has no share of its own.
    ebs: (u32, u32),
    /// Baseline and maximum.
    iops: (u32, u32),
}

const fn size(
    name: &'static str,
    vcpus: u32,
    network: (f64, f64),
    interfaces: (u32, u32),
    ebs: (u32, u32),
    iops: (u32, u32),
) -> Size {
    Size { name, vcpus, network, interfaces, ebs, iops }
}

const fn intel(clock: f64) -> Processor {
    Processor { manufacturer: "Intel", clock, threads_per_core: 2 }
}

const fn amd(clock: f64) -> Processor {
    Processor { manufacturer: "AMD", clock, threads_per_core: 2 }
}

/// Processors on which a vCPU is a core.
const fn whole_cores(processor: Processor) -> Processor {
    Processor { threads_per_core: 1, ..processor }
}

#[rustfmt::skip]
const T2: &[Size] = &[
    size("nano",    1, (0.032, 0.512), (2,  2), (0, 0), (0, 0)),
    size("micro",   1, (0.064, 1.024), (2,  2), (0, 0), (0, 0)),
    size("small",   1, (0.128, 1.024), (3,  4), (0, 0), (0, 0)),
    size("medium",  2, (0.256, 1.024), (3,  6), (0, 0), (0, 0)),
    size("large",   2, (0.512, 1.024), (3, 12), (0, 0), (0, 0)),
    size("xlarge",  4, (0.75,  1.024), (3, 15), (0, 0), (0, 0)),
    size("2xlarge", 8, (1.0,   1.024), (3, 15), (0, 0), (0, 0)),
];

#[rustfmt::skip]
const T3: &[Size] = &[
    size("nano",    2, (0.032, 5.0), (2,  2), ( 43, 2085), ( 250, 11_800)),
    size("micro",   2, (0.064, 5.0), (2,  2), ( 87, 2085), ( 500, 11_800)),
    size("small",   2, (0.128, 5.0), (3,  4), (174, 2085), (1000, 11_800)),
    size("medium",  2, (0.256, 5.0), (3,  6), (347, 2085), (2000, 11_800)),
    size("large",   2, (0.512, 5.0), (3, 12), (695, 2780), (4000, 15_700)),
    size("xlarge",  4, (1.024, 5.0), (4, 15), (695, 2780), (4000, 15_700)),
    size("2xlarge", 8, (2.048, 5.0), (4, 15), (695, 2780), (4000, 15_700)),
];

#[rustfmt::skip]
const T3A: &[Size] = &[
    size("nano",    2, (0.032, 5.0), (2,  2), ( 45, 2085), ( 250, 11_800)),
    size("micro",   2, (0.064, 5.0), (2,  2), ( 90, 2085), ( 500, 11_800)),
    size("small",   2, (0.128, 5.0), (2,  4), (175, 2085), (1000, 11_800)),
    size("medium",  2, (0.256, 5.0), (3,  6), (350, 2085), (2000, 11_800)),
    size("large",   2, (0.512, 5.0), (3, 12), (695, 2780), (4000, 15_700)),
    size("xlarge",  4, (1.024, 5.0), (4, 15), (695, 2780), (4000, 15_700)),
    size("2xlarge", 8, (2.048, 5.0), (4, 15), (695, 2780), (4000, 15_700)),
];

/// The memory of the T families, in MiB.
const T_MEMORY: Memory = Memory::Each(&[512, GIB, 2 * GIB, 4 * GIB, 8 * GIB, 16 * GIB, 32 * GIB]);

/// Generation 5 of M and R.
#[rustfmt::skip]
const GENERATION_5: &[Size] = &[
    size("large",    2, ( 0.75, 10.0), ( 3, 10), (   650,   4750), (  3600, 18_750)),
    size("xlarge",   4, ( 1.25, 10.0), ( 4, 15), (  1150,   4750), (  6000, 18_750)),
    size("2xlarge",  8, ( 2.5,  10.0), ( 4, 15), (  2300,   4750), (12_000, 18_750)),
    size("4xlarge", 16, ( 5.0,  10.0), ( 8, 30), (  4750,   4750), (18_750, 18_750)),
    size("8xlarge", 32, (10.0,  10.0), ( 8, 30), (  6800,   6800), (30_000, 30_000)),
    size("12xlarge", 48, (12.0, 12.0), ( 8, 30), (  9500,   9500), (40_000, 40_000)),
    size("16xlarge", 64, (20.0, 20.0), (15, 50), (13_600, 13_600), (60_000, 60_000)),
    size("24xlarge", 96, (25.0, 25.0), (15, 50), (19_000, 19_000), (80_000, 80_000)),
];

#[rustfmt::skip]
const C5: &[Size] = &[
    size("large",    2, ( 0.75, 10.0), ( 3, 10), (   650,   4750), (  4000, 20_000)),
    size("xlarge",   4, ( 1.25, 10.0), ( 4, 15), (  1150,   4750), (  6000, 20_000)),
    size("2xlarge",  8, ( 2.5,  10.0), ( 4, 15), (  2300,   4750), (10_000, 20_000)),
    size("4xlarge", 16, ( 5.0,  10.0), ( 8, 30), (  4750,   4750), (20_000, 20_000)),
    size("9xlarge", 36, (12.0,  12.0), ( 8, 30), (  9500,   9500), (40_000, 40_000)),
    size("12xlarge", 48, (12.0, 12.0), ( 8, 30), (  9500,   9500), (40_000, 40_000)),
    size("18xlarge", 72, (25.0, 25.0), (15, 50), (19_000, 19_000), (80_000, 80_000)),
    size("24xlarge", 96, (25.0, 25.0), (15, 50), (19_000, 19_000), (80_000, 80_000)),
];

/// The sizes that generations 6 and 7 begin with.
macro_rules! generation_6 {
    ([$($before:expr),*] $($after:expr),*) => {
        &[
            $($before,)*
            size("large",     2, ( 0.781, 12.5), ( 3, 10), (   650, 10_000), (  3600,  40_000)),
            size("xlarge",    4, ( 1.562, 12.5), ( 4, 15), (  1250, 10_000), (  6000,  40_000)),
            size("2xlarge",   8, ( 3.125, 12.5), ( 4, 15), (  2500, 10_000), (12_000,  40_000)),
            size("4xlarge",  16, ( 6.25,  12.5), ( 8, 30), (  5000, 10_000), (20_000,  40_000)),
            size("8xlarge",  32, (12.5,   12.5), ( 8, 30), (10_000, 10_000), (40_000,  40_000)),
            size("12xlarge", 48, (18.75, 18.75), ( 8, 30), (15_000, 15_000), (60_000,  60_000)),
            size("16xlarge", 64, (25.0,   25.0), (15, 50), (20_000, 20_000), (80_000,  80_000)),
            size("24xlarge", 96, (37.5,   37.5), (15, 50), (30_000, 30_000), (120_000, 120_000)),
            $($after,)*
        ]
    };
}

const X32: Size = size("32xlarge", 128, (50.0, 50.0), (15, 50), (40_000, 40_000), (160_000, 160_000));
const X48: Size = size("48xlarge", 192, (50.0, 50.0), (15, 50), (40_000, 40_000), (240_000, 240_000));
const MEDIUM: Size = size("medium", 1, (0.39, 12.5), (2, 4), (325, 10_000), (2500, 40_000));

const GENERATION_6I: &[Size] = generation_6!([] X32);
const GENERATION_6A: &[Size] = generation_6!([] X32, X48);
const GENERATION_7I: &[Size] = generation_6!([] X48);
const GENERATION_7A: &[Size] = generation_6!([MEDIUM] X32, X48);

/// Half of what the other families of the generation have for certain, and as much for a while.
#[rustfmt::skip]
const FLEX: &[Size] = &[
    size("large",     2, ( 0.39,  12.5), ( 3, 10), (   312, 10_000), (  2500, 36_000)),
    size("xlarge",    4, ( 0.781, 12.5), ( 4, 15), (   625, 10_000), (  3600, 36_000)),
    size("2xlarge",   8, ( 1.562, 12.5), ( 4, 15), (  1250, 10_000), (  6000, 36_000)),
    size("4xlarge",  16, ( 3.125, 12.5), ( 8, 30), (  2500, 10_000), (12_000, 36_000)),
    size("8xlarge",  32, ( 6.25,  12.5), ( 8, 30), (  5000, 10_000), (20_000, 36_000)),
    size("12xlarge", 48, ( 9.375, 18.75), ( 8, 30), ( 7500, 15_000), (30_000, 60_000)),
    size("16xlarge", 64, (12.5,  25.0), (15, 50), (10_000, 20_000), (40_000, 80_000)),
];

#[rustfmt::skip]
const X2IDN: &[Size] = &[
    size("16xlarge",  64, ( 50.0,  50.0), (15, 50), (40_000, 40_000), (173_333, 173_333)),
    size("24xlarge",  96, ( 75.0,  75.0), (15, 50), (60_000, 60_000), (260_000, 260_000)),
    size("32xlarge", 128, (100.0, 100.0), (15, 50), (80_000, 80_000), (260_000, 260_000)),
];

#[rustfmt::skip]
const I3: &[Size] = &[
    size("large",    2, ( 0.75, 10.0), ( 3, 10), (   425,    425), (  3000,   3000)),
    size("xlarge",   4, ( 1.25, 10.0), ( 4, 15), (   850,    850), (  6000,   6000)),
    size("2xlarge",  8, ( 2.5,  10.0), ( 4, 15), (  1700,   1700), (12_000, 12_000)),
    size("4xlarge", 16, ( 5.0,  10.0), ( 8, 30), (  3500,   3500), (16_000, 16_000)),
    size("8xlarge", 32, (10.0,  10.0), ( 8, 30), (  7000,   7000), (32_500, 32_500)),
    size("16xlarge", 64, (25.0, 25.0), (15, 50), (14_000, 14_000), (65_000, 65_000)),
];

#[rustfmt::skip]
const I3EN: &[Size] = &[
    size("large",    2, ( 2.1,  25.0), ( 3, 10), (   577,   4750), (  3000, 20_000)),
    size("xlarge",   4, ( 4.2,  25.0), ( 4, 15), (  1154,   4750), (  6000, 20_000)),
    size("2xlarge",  8, ( 8.4,  25.0), ( 4, 15), (  2307,   4750), (12_000, 20_000)),
    size("3xlarge", 12, (12.5,  25.0), ( 4, 15), (  3800,   4750), (15_000, 20_000)),
    size("6xlarge", 24, (25.0,  25.0), ( 8, 30), (  4750,   4750), (20_000, 20_000)),
    size("12xlarge", 48, (50.0, 50.0), ( 8, 30), (  9500,   9500), (40_000, 40_000)),
    size("24xlarge", 96, (100.0, 100.0), (15, 50), (19_000, 19_000), (80_000, 80_000)),
];

#[rustfmt::skip]
const I4I: &[Size] = &[
    size("large",     2, ( 0.781, 10.0), ( 3, 10), (   625, 10_000), (  2500,  40_000)),
    size("xlarge",    4, ( 1.875, 10.0), ( 4, 15), (  1250, 10_000), (  5000,  40_000)),
    size("2xlarge",   8, ( 4.687, 12.0), ( 4, 15), (  2500, 10_000), (10_000,  40_000)),
    size("4xlarge",  16, ( 9.375, 25.0), ( 8, 30), (  5000, 10_000), (20_000,  40_000)),
    size("8xlarge",  32, (18.75, 18.75), ( 8, 30), (10_000, 10_000), (40_000,  40_000)),
    size("12xlarge", 48, (28.12, 28.12), ( 8, 30), (15_000, 15_000), (60_000,  60_000)),
    size("16xlarge", 64, (37.5,   37.5), (15, 50), (20_000, 20_000), (80_000,  80_000)),
    size("24xlarge", 96, (56.25, 56.25), (15, 50), (30_000, 30_000), (120_000, 120_000)),
    size("32xlarge", 128, (75.0,  75.0), (15, 50), (40_000, 40_000), (160_000, 160_000)),
];

#[rustfmt::skip]
const D3: &[Size] = &[
    size("xlarge",   4, ( 3.0, 15.0), (4,  3), ( 850, 2800), (  5000, 15_000)),
    size("2xlarge",  8, ( 6.0, 15.0), (4,  5), (1700, 2800), (10_000, 15_000)),
    size("4xlarge", 16, (12.5, 15.0), (4, 10), (2800, 2800), (15_000, 15_000)),
    size("8xlarge", 32, (25.0, 25.0), (3, 20), (5000, 5000), (30_000, 30_000)),
];

/// The disks of M5d and R5d.
const DISKS_5D: Store =
    Store::Ssd(&[(1, 75), (1, 150), (1, 300), (2, 300), (2, 600), (2, 900), (4, 600), (4, 900)]);

const fn family(
    name: &'static str,
    processor: Processor,
    memory: Memory,
    sizes: &'static [Size],
    disks: Store,
) -> Family {
    Family { name, processor, memory, sizes, disks }
}

const PER_VCPU_2: Memory = Memory::PerVcpu(2 * GIB);
const PER_VCPU_4: Memory = Memory::PerVcpu(4 * GIB);
const PER_VCPU_8: Memory = Memory::PerVcpu(8 * GIB);

#[rustfmt::skip]
const FAMILIES: &[Family] = &[
    // General purpose.
    family("t2", whole_cores(intel(2.3)), T_MEMORY, T2, Store::None),
    family("t3", intel(2.5), T_MEMORY, T3, Store::None),
    family("t3a", amd(2.2), T_MEMORY, T3A, Store::None),
    family("m5", intel(3.1), PER_VCPU_4, GENERATION_5, Store::None),
    family("m5d", intel(3.1), PER_VCPU_4, GENERATION_5, DISKS_5D),
    family("m6i", intel(3.5), PER_VCPU_4, GENERATION_6I, Store::None),
    family("m6a", amd(3.6), PER_VCPU_4, GENERATION_6A, Store::None),
    family("m7i", intel(3.2), PER_VCPU_4, GENERATION_7I, Store::None),
    family("m7i-flex", intel(3.2), PER_VCPU_4, FLEX, Store::None),
    family("m7a", whole_cores(amd(3.7)), PER_VCPU_4, GENERATION_7A, Store::None),
    // Compute.
    family("c5", intel(3.4), PER_VCPU_2, C5, Store::None),
    family("c5d", intel(3.4), PER_VCPU_2, C5, Store::Ssd(&[
        (1, 50), (1, 100), (1, 200), (1, 400), (1, 900), (2, 900), (2, 900), (4, 900),
    ])),
    family("c6i", intel(3.5), PER_VCPU_2, GENERATION_6I, Store::None),
    family("c6a", amd(3.6), PER_VCPU_2, GENERATION_6A, Store::None),
    family("c7i", intel(3.2), PER_VCPU_2, GENERATION_7I, Store::None),
    family("c7i-flex", intel(3.2), PER_VCPU_2, FLEX, Store::None),
    family("c7a", whole_cores(amd(3.7)), PER_VCPU_2, GENERATION_7A, Store::None),
    // Memory.
    family("r5", intel(3.1), PER_VCPU_8, GENERATION_5, Store::None),
    family("r5d", intel(3.1), PER_VCPU_8, GENERATION_5, DISKS_5D),
    family("r6i", intel(3.5), PER_VCPU_8, GENERATION_6I, Store::None),
    family("r6a", amd(3.6), PER_VCPU_8, GENERATION_6A, Store::None),
    family("r7i", intel(3.2), PER_VCPU_8, GENERATION_7I, Store::None),
    family("r7a", whole_cores(amd(3.7)), PER_VCPU_8, GENERATION_7A, Store::None),
    family("x2idn", intel(3.5), Memory::PerVcpu(16 * GIB), X2IDN, Store::Ssd(&[(1, 1900), (2, 1425), (2, 1900)])),
    // Storage.
    family("i3", intel(2.3), Memory::PerVcpu(7808), I3, Store::Ssd(&[
        (1, 475), (1, 950), (1, 1900), (2, 1900), (4, 1900), (8, 1900),
    ])),
    family("i3en", intel(3.1), PER_VCPU_8, I3EN, Store::Ssd(&[
        (1, 1250), (1, 2500), (2, 2500), (1, 7500), (2, 7500), (4, 7500), (8, 7500),
    ])),
    family("i4i", intel(3.5), PER_VCPU_8, I4I, Store::Ssd(&[
        (1, 468), (1, 937), (1, 1875), (1, 3750), (2, 3750), (3, 3750), (4, 3750), (6, 3750), (8, 3750),
    ])),
    family("d3", intel(3.1), PER_VCPU_8, D3, Store::Hdd(&[(3, 1980), (6, 1980), (12, 1980), (24, 1980)])),
];

/// All of EC2's types that are here.
pub(super) fn all() -> impl Iterator<Item = InstanceType> {
    FAMILIES.iter().flat_map(|family| {
        family.sizes.iter().enumerate().map(move |(number, size)| instance_type(family, number, size))
    })
}

fn instance_type(family: &Family, number: usize, size: &Size) -> InstanceType {
    let name = format!("{}.{}", family.name, size.name);
    let memory = match family.memory {
        Memory::PerVcpu(each) => each * u64::from(size.vcpus),
        Memory::Each(list) => list.get(number).copied().unwrap_or_default(),
    };
    let (disks, kind) = match family.disks {
        Store::None => (None, ""),
        Store::Ssd(list) => (list.get(number), "ssd"),
        Store::Hdd(list) => (list.get(number), "hdd"),
    };
    let (baseline, peak) = size.network;
    let performance = match (family.name, size.name) {
        ("t2", "xlarge" | "2xlarge") => "Moderate".to_owned(),
        ("t2", _) => "Low to Moderate".to_owned(),
        _ if baseline < peak => format!("Up to {peak} Gigabit"),
        _ => format!("{peak} Gigabit"),
    };
    let (baseline_bandwidth, maximum_bandwidth) = size.ebs;
    let (baseline_iops, maximum_iops) = size.iops;
    InstanceType {
        vcpus: size.vcpus,
        memory,
        processor: family.processor,
        hypervisor: if matches!(family.name, "t2" | "i3") { "xen" } else { "nitro" },
        burstable: family.name.starts_with('t'),
        current_generation: true,
        free_tier: matches!(name.as_str(), "t2.micro" | "t3.micro"),
        network: Network {
            performance,
            baseline,
            peak,
            interfaces: size.interfaces.0,
            addresses: size.interfaces.1,
        },
        ebs: (maximum_bandwidth > 0).then_some(Ebs {
            baseline_bandwidth,
            maximum_bandwidth,
            baseline_iops,
            maximum_iops,
        }),
        disks: disks.map(|&(count, size)| Disks { count, size, kind }),
        name,
    }
}
