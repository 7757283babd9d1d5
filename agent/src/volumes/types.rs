//! The volume types, and how large and how fast a volume of each may be: EC2's limits, without any I/O.

use innkeeper_protocol as protocol;

use crate::query::ApiError;
use crate::records::VolumeShape;

const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;

/// The type of a volume for which none is named.
pub const DEFAULT: &str = "gp2";

/// The MiB per second that a gp3 volume has if none are named.
const GP3_THROUGHPUT: u32 = 125;

/// What a volume is to be, with everything that was left open filled in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Resolved {
    /// Such as `gp3`.
    pub volume_type: String,
    /// In GiB.
    pub size: u32,
    /// Operations per second, of types that have them.
    pub iops: Option<u32>,
    /// MiB per second, of types that have it.
    pub throughput: Option<u32>,
}

/// A volume type's limits.
struct Limits {
    /// Its name.
    name: &'static str,
    /// The smallest and the largest volume, in GiB.
    size: (u32, u32),
    /// How many operations per second it has.
    iops: Iops,
    /// The range that the throughput can be chosen from, in MiB per second.
    throughput: Option<(u32, u32)>,
}

/// How many operations per second a type has.
enum Iops {
    /// EC2 does not say.
    Untold,
    /// They grow with the size.
    PerGib {
        /// For each GiB.
        ratio: u32,
        /// At least.
        least: u32,
        /// At most.
        most: u32,
    },
    /// They are chosen.
    Chosen {
        /// At least.
        least: u32,
        /// At most.
        most: u32,
        /// At most so many for each GiB.
        ratio: u32,
        /// If none are named; without it they must be.
        default: Option<u32>,
    },
}

/// From the documentation of CreateVolume.
const TYPES: [Limits; 7] = [
    Limits {
        name: "gp2",
        size: (1, 16_384),
        iops: Iops::PerGib { ratio: 3, least: 100, most: 16_000 },
        throughput: None,
    },
    Limits {
        name: "gp3",
        size: (1, 65_536),
        iops: Iops::Chosen { least: 3_000, most: 80_000, ratio: 500, default: Some(3_000) },
        throughput: Some((GP3_THROUGHPUT, 2_000)),
    },
    Limits {
        name: "io1",
        size: (4, 16_384),
        iops: Iops::Chosen { least: 100, most: 64_000, ratio: 50, default: None },
        throughput: None,
    },
    Limits {
        name: "io2",
        size: (4, 65_536),
        iops: Iops::Chosen { least: 100, most: 256_000, ratio: 1_000, default: None },
        throughput: None,
    },
    Limits { name: "st1", size: (125, 16_384), iops: Iops::Untold, throughput: None },
    Limits { name: "sc1", size: (125, 16_384), iops: Iops::Untold, throughput: None },
    Limits { name: "standard", size: (1, 1_024), iops: Iops::Untold, throughput: None },
];

/// What a guest may do with a volume that is so. From EC2's documentation of the types; what it says of bursts is told as
/// what may be used at once after a pause.
pub fn limits(shape: &VolumeShape) -> protocol::Limits {
    let (size, iops) = (u64::from(shape.size), shape.iops.map(u64::from));
    let steady = |per_second: u64| protocol::Limit { per_second, burst: None };
    let burst =
        |per_second: u64, burst: u64| protocol::Limit { per_second, burst: Some(burst.max(per_second)) };
    let (operations, bytes) = match shape.volume_type.as_str() {
        // 5.4 million I/O credits, as long as it has less than the 3000 that they are spent at.
        "gp2" => {
            let base = iops.unwrap_or(100);
            let operations = if base < 3_000 { burst(base, 5_400_000) } else { steady(base) };
            (Some(operations), steady(if size <= 170 { 128 * MIB } else { 250 * MIB }))
        }
        "gp3" => (iops.map(steady), steady(u64::from(shape.throughput.unwrap_or(GP3_THROUGHPUT)) * MIB)),
        "io1" => (iops.map(steady), steady((iops.unwrap_or(100) * MIB / 4).clamp(MIB, 1_000 * MIB))),
        "io2" => (iops.map(steady), steady((iops.unwrap_or(100) * MIB / 4).clamp(MIB, 4_000 * MIB))),
        // Credits for a mebibyte each of as many as the volume has.
        "st1" => (None, burst((size * 40 * MIB / 1024).min(500 * MIB), size * GIB)),
        "sc1" => (None, burst((size * 12 * MIB / 1024).min(192 * MIB), size * GIB)),
        _ => (Some(burst(100, 6_000)), steady(90 * MIB)),
    };
    protocol::Limits { bytes: Some(bytes), operations }
}

/// Whether there can be such a volume, and what it is with everything that was left open filled in.
pub fn check(
    volume_type: &str,
    size: u32,
    iops: Option<u32>,
    throughput: Option<u32>,
) -> Result<Resolved, ApiError> {
    let Some(limits) = TYPES.iter().find(|limits| limits.name == volume_type) else {
        let names = TYPES.map(|limits| limits.name).join(", ");
        let message = format!("Unknown volume type: {volume_type}. There are {names}.");
        return Err(ApiError::new("UnknownVolumeType", message));
    };
    let (smallest, largest) = limits.size;
    let reason = if size < smallest {
        Some(format!("small for volume type {volume_type}; minimum is {smallest}GiB."))
    } else if size > largest {
        Some(format!("large for volume type {volume_type}; maximum is {largest}GiB."))
    } else {
        None
    };
    if let Some(reason) = reason {
        return Err(invalid(format!("Volume of {size}GiB is too {reason}")));
    }
    let iops = limits.iops(size, iops)?;
    let throughput = limits.throughput(iops, throughput)?;
    Ok(Resolved { volume_type: volume_type.to_owned(), size, iops, throughput })
}

impl Limits {
    fn iops(&self, size: u32, wanted: Option<u32>) -> Result<Option<u32>, ApiError> {
        let name = self.name;
        let (least, most, ratio, default) = match self.iops {
            Iops::Chosen { least, most, ratio, default } => (least, most, ratio, default),
            _ if wanted.is_some() => {
                let message = format!("The parameter iops is not supported for {name} volumes.");
                return Err(ApiError::combination(message));
            }
            Iops::Untold => return Ok(None),
            Iops::PerGib { ratio, least, most } => {
                return Ok(Some(size.saturating_mul(ratio).clamp(least, most)));
            }
        };
        let Some(wanted) = wanted else {
            let message = format!("The parameter iops must be specified for {name} volumes.");
            return default.map(Some).ok_or_else(|| ApiError::new("MissingParameter", message));
        };
        if wanted < least {
            let message = format!("Volume iops of {wanted} is too low; minimum is {least}.");
            return Err(invalid(message));
        }
        if wanted > most {
            return Err(invalid(format!("Volume iops of {wanted} is too high; maximum is {most}.")));
        }
        // What every volume of the type has is allowed for the smallest, too.
        if default != Some(wanted) && wanted > size.saturating_mul(ratio) {
            let actual = f64::from(wanted) / f64::from(size);
            let message =
                format!("Iops to volume size ratio of {actual:.6} is too high; maximum is {ratio}.");
            return Err(invalid(message));
        }
        Ok(Some(wanted))
    }

    fn throughput(&self, iops: Option<u32>, wanted: Option<u32>) -> Result<Option<u32>, ApiError> {
        let Some((least, most)) = self.throughput else {
            let name = self.name;
            let message = format!("The parameter throughput is not supported for {name} volumes.");
            return wanted.map_or(Ok(None), |_| Err(ApiError::combination(message)));
        };
        let wanted = wanted.unwrap_or(least);
        if wanted < least {
            let message = format!("Volume throughput of {wanted} is too low; minimum is {least}.");
            return Err(invalid(message));
        }
        if wanted > most {
            let message = format!("Volume throughput of {wanted} is too high; maximum is {most}.");
            return Err(invalid(message));
        }
        // A quarter of a MiB for each operation.
        let iops = iops.unwrap_or(0);
        if u64::from(wanted) * 4 > u64::from(iops) {
            let actual = f64::from(wanted) / f64::from(iops);
            let message = format!(
                "Throughput (MiBps) to iops ratio of {actual:.6} is too high; maximum is 0.250000 MiBps per iops."
            );
            return Err(invalid(message));
        }
        Ok(Some(wanted))
    }
}

fn invalid(message: String) -> ApiError {
    ApiError::new("InvalidParameterValue", message)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_left_open_is_filled_in() {
        for (name, size, iops, throughput, expected) in [
            ("gp2", 1, None, None, (Some(100), None)),
            ("gp2", 1000, None, None, (Some(3000), None)),
            ("gp2", 16_384, None, None, (Some(16_000), None)),
            ("gp3", 1, None, None, (Some(3000), Some(125))),
            ("gp3", 1, Some(3000), None, (Some(3000), Some(125))),
            ("gp3", 100, Some(16_000), Some(1000), (Some(16_000), Some(1000))),
            ("io1", 4, Some(200), None, (Some(200), None)),
            ("io2", 256, Some(256_000), None, (Some(256_000), None)),
            ("st1", 125, None, None, (None, None)),
            ("standard", 1, None, None, (None, None)),
        ] {
            let found = check(name, size, iops, throughput).unwrap();
            assert_eq!((found.iops, found.throughput), expected, "{name} {size}");
        }
    }

    #[test]
    fn what_is_out_of_range_is_refused() {
        for (name, size, iops, throughput, code) in [
            ("gp4", 1, None, None, "UnknownVolumeType"),
            ("GP2", 1, None, None, "UnknownVolumeType"),
            ("gp2", 0, None, None, "InvalidParameterValue"),
            ("gp2", 16_385, None, None, "InvalidParameterValue"),
            ("gp2", 10, Some(100), None, "InvalidParameterCombination"),
            ("gp2", 10, None, Some(125), "InvalidParameterCombination"),
            ("gp3", 10, Some(2999), None, "InvalidParameterValue"),
            ("gp3", 10, Some(5001), None, "InvalidParameterValue"),
            ("gp3", 10, Some(80_001), None, "InvalidParameterValue"),
            ("gp3", 10, None, Some(124), "InvalidParameterValue"),
            ("gp3", 10, None, Some(751), "InvalidParameterValue"),
            ("gp3", 1000, Some(80_000), Some(2001), "InvalidParameterValue"),
            ("io1", 10, None, None, "MissingParameter"),
            ("io1", 10, Some(501), None, "InvalidParameterValue"),
            ("io1", 3, Some(100), None, "InvalidParameterValue"),
            ("st1", 124, None, None, "InvalidParameterValue"),
            ("st1", 125, Some(500), None, "InvalidParameterCombination"),
            ("standard", 1025, None, None, "InvalidParameterValue"),
        ] {
            assert_eq!(check(name, size, iops, throughput).unwrap_err().code, code, "{name} {size} {iops:?}");
        }
    }
}
