//! Instance types, and which of them the host has room for.

use std::collections::BTreeMap;

use serde_json::Value;

use crate::cli::answer::{number, text};
use crate::cli::client::Parameters;
use crate::cli::global::Global;
use crate::cli::output::{View, memory};
use crate::host::{Host, Linux};
use crate::instances::capacity::Capacity;

const TYPES: View = View {
    id: "instanceType",
    columns: &[
        ("TYPE", |each, _| text(each, "instanceType").into()),
        ("VCPUS", |each, _| text(each, "vCpuInfo.defaultVCpus").into()),
        ("MEMORY", |each, _| number(each, "memoryInfo.sizeInMiB").map(memory).unwrap_or_default()),
        ("NETWORK", |each, _| text(each, "networkInfo.networkPerformance").into()),
    ],
};

/// Lists instance types.
#[derive(Debug, clap::Args)]
pub struct Types {
    /// Show only those that this host has room for now
    #[arg(long)]
    fits: bool,
}

impl Types {
    /// Does it; returns the exit status.
    pub fn execute(self, global: &Global) -> anyhow::Result<u8> {
        let client = global.client()?;
        let mut found = client.describe("DescribeInstanceTypes", Parameters::default(), "instanceTypeSet")?;
        found.sort_by_cached_key(order);
        if self.fits {
            let host = Linux::new(global.configuration()?.host_settings()).capacity()?;
            let left = left(host, &found, &client.instances(Parameters::default())?);
            found.retain(|each| fits(left, each));
        }
        global.show(&TYPES, &found)?;
        Ok(0)
    }
}

/// Families by their names, and in each of them the small before the large.
fn order(instance_type: &Value) -> (String, u64, u64, String) {
    let name = text(instance_type, "instanceType");
    let (vcpus, memory) = needs(instance_type);
    (name.split('.').next().unwrap_or_default().to_owned(), vcpus, memory, name.to_owned())
}

/// vCPUs, and memory in MiB.
fn needs(instance_type: &Value) -> (u64, u64) {
    let of = |path: &str| number(instance_type, path).unwrap_or_default();
    (of("vCpuInfo.defaultVCpus"), of("memoryInfo.sizeInMiB"))
}

/// What instances leave of a host.
fn left(host: Capacity, types: &[Value], instances: &[Value]) -> Capacity {
    let needed: BTreeMap<_, _> = types.iter().map(|each| (text(each, "instanceType"), needs(each))).collect();
    let mut left = host;
    for instance in instances {
        if matches!(text(instance, "instanceState.name"), "stopped" | "terminated") {
            continue;
        }
        // As the daemon has it: beside one whose type has left the configuration, nothing fits.
        let (vcpus, memory) =
            needed.get(text(instance, "instanceType")).copied().unwrap_or((u64::MAX, u64::MAX));
        left.vcpus = left.vcpus.saturating_sub(vcpus);
        left.memory = left.memory.saturating_sub(memory);
    }
    left
}

fn fits(left: Capacity, instance_type: &Value) -> bool {
    let (vcpus, memory) = needs(instance_type);
    vcpus <= left.vcpus && vcpus <= left.largest.into() && memory <= left.memory
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn of(name: &str, vcpus: u32, memory: u32) -> Value {
        json!({
            "instanceType": name,
            "vCpuInfo": {"defaultVCpus": vcpus.to_string()},
            "memoryInfo": {"sizeInMiB": memory.to_string()},
        })
    }

    #[test]
    fn what_runs_leaves_less_room() {
        let types = [of("a.small", 1, 512), of("a.large", 2, 8192), of("a.huge", 96, 512)];
        let host = Capacity { vcpus: 100, memory: 9000, largest: 64 };
        for (name, state, fitting) in [
            ("a.large", "running", ["a.small"].as_slice()),
            ("a.large", "pending", &["a.small"]),
            ("a.large", "stopped", &["a.small", "a.large"]),
            ("a.gone", "running", &[]),
            ("a.gone", "stopped", &["a.small", "a.large"]),
        ] {
            let instance = json!({"instanceType": name, "instanceState": {"name": state}});
            let left = left(host, &types, &[instance]);
            let found: Vec<_> =
                types.iter().filter(|each| fits(left, each)).map(|each| text(each, "instanceType")).collect();
            assert_eq!(found, fitting, "{name} {state}");
        }
    }

    #[test]
    fn types_are_listed_by_family_and_size() {
        let mut types = [of("b.nano", 1, 1), of("a.xlarge", 4, 4), of("a.large", 2, 2)];
        types.sort_by_cached_key(order);
        assert_eq!(
            types.map(|each| text(&each, "instanceType").to_owned()),
            ["a.large", "a.xlarge", "b.nano"]
        );
    }
}
