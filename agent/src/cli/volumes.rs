//! Volumes: list, create, attach, detach, change, check, remove.

use anyhow::Context;
use serde_json::Value;

use crate::cli::answer::{at, list, number, tag, text, without_request};
use crate::cli::client::{Client, Parameters};
use crate::cli::exit_status;
use crate::cli::global::{Global, Output, print};
use crate::cli::names;
use crate::cli::output::{View, age, plain};
use crate::cli::tags::tags;
use crate::cli::wait::{Wait, Way};

const VOLUMES: View = View {
    id: "volumeId",
    columns: &[
        ("ID", |each, _| text(each, "volumeId").into()),
        ("NAME", |each, _| tag(each, "Name").unwrap_or_default().into()),
        ("STATE", |each, _| text(each, "status").into()),
        ("SIZE", |each, _| format!("{} GiB", text(each, "size"))),
        ("TYPE", |each, _| text(each, "volumeType").into()),
        ("ATTACHED TO", |each, _| attached_to(each)),
        ("CREATED", |each, now| age(text(each, "createTime"), now)),
    ],
};

const ATTACHMENT: View = View {
    id: "volumeId",
    columns: &[
        ("ID", |each, _| text(each, "volumeId").into()),
        ("INSTANCE", |each, _| text(each, "instanceId").into()),
        ("DEVICE", |each, _| text(each, "device").into()),
        ("STATE", |each, _| text(each, "status").into()),
    ],
};

const MODIFICATION: View = View {
    id: "volumeId",
    columns: &[
        ("ID", |each, _| text(each, "volumeId").into()),
        ("STATE", |each, _| text(each, "modificationState").into()),
        ("WAS", |each, _| shape(each, "original")),
        ("BECOMES", |each, _| shape(each, "target")),
    ],
};

const MODIFIED: Way = Way {
    kind: "volume",
    wanted: "modified",
    action: "DescribeVolumesModifications",
    parameter: "VolumeId",
    list: "volumeModificationSet",
    id: "volumeId",
    state: "modificationState",
    done: "completed",
    comes: "modifying",
    reason: "statusMessage",
};

const STATUS: View = View {
    id: "volumeId",
    columns: &[
        ("ID", |each, _| text(each, "volumeId").into()),
        ("STATUS", |each, _| text(each, "volumeStatus.status").into()),
        ("I/O ENABLED", |each, _| detail(each, "io-enabled")),
        ("I/O PERFORMANCE", |each, _| detail(each, "io-performance")),
        ("WHAT HAPPENED", |each, _| {
            list(each, "eventsSet").first().map(|event| text(event, "description").into()).unwrap_or_default()
        }),
        ("WHAT TO DO", |each, _| {
            let is_impaired = !list(each, "actionsSet").is_empty();
            let advice = || format!("innkeeper volume enable {}", text(each, "volumeId"));
            is_impaired.then(advice).unwrap_or_default()
        }),
    ],
};

/// What a volume was or will be, such as `8 GiB gp3, 3000 IOPS, 125 MiB/s`.
fn shape(modification: &Value, which: &str) -> String {
    let says = |what: &str| text(modification, &format!("{which}{what}"));
    let mut shape = format!("{} GiB {}", says("Size"), says("VolumeType"));
    for (what, unit) in [("Iops", "IOPS"), ("Throughput", "MiB/s")] {
        if !says(what).is_empty() {
            shape += &format!(", {} {unit}", says(what));
        }
    }
    shape
}

/// What a volume's status says of a detail.
fn detail(status: &Value, name: &str) -> String {
    let details = list(status, "volumeStatus.details").iter();
    details.filter(|each| text(each, "name") == name).map(|each| text(each, "status")).collect()
}

fn attached_to(volume: &Value) -> String {
    let attachments = list(volume, "attachmentSet").iter();
    let each = attachments.map(|each| format!("{} {}", text(each, "instanceId"), text(each, "device")));
    each.collect::<Vec<_>>().join(", ")
}

/// What to do with volumes.
#[derive(Debug, clap::Subcommand)]
pub enum Volumes {
    /// List volumes
    List,
    /// Create a volume
    Create {
        /// Its size
        #[arg(long, value_name = "GiB", required_unless_present = "snapshot")]
        size: Option<u32>,
        /// Id or name of the snapshot that it begins with
        #[arg(long, value_name = "ID")]
        snapshot: Option<String>,
        /// The volume type
        #[arg(long = "type", short = 't', value_name = "TYPE", default_value = "gp3")]
        volume_type: String,
        /// The availability zone; by default the region's first
        #[arg(long)]
        zone: Option<String>,
        /// A name: the tag Name
        #[arg(long)]
        name: Option<String>,
        /// A tag
        #[arg(long, value_name = "KEY=VALUE")]
        tag: Vec<String>,
    },
    /// Attach a volume to an instance
    Attach {
        /// Id or name of a volume
        volume: String,
        /// Id or name of an instance
        instance: String,
        /// The device name; by default the first that is free of /dev/sdf to /dev/sdp
        #[arg(long)]
        device: Option<String>,
    },
    /// Detach a volume from its instance
    Detach {
        /// Id or name of a volume
        volume: String,
        /// Take it away without asking the guest
        #[arg(long)]
        force: bool,
    },
    /// Make a volume larger, or another type, or faster or slower
    ///
    /// The guest has to make its file system larger by itself.
    Modify {
        /// Id or name of a volume
        volume: String,
        /// Its new size
        #[arg(long, value_name = "GiB", required_unless_present_any = ["volume_type", "iops", "throughput"])]
        size: Option<u32>,
        /// Its new type
        #[arg(long = "type", short = 't', value_name = "TYPE")]
        volume_type: Option<String>,
        /// Its operations per second, for gp3, io1 and io2
        #[arg(long, value_name = "N")]
        iops: Option<u32>,
        /// Its throughput, for gp3
        #[arg(long, value_name = "MiB/s")]
        throughput: Option<u32>,
        #[command(flatten)]
        wait: Wait,
    },
    /// Say whether volumes can be written to
    Status {
        /// Ids or names of volumes; by default all
        #[arg(value_name = "VOLUME")]
        volumes: Vec<String>,
    },
    /// Let volumes that are impaired take writes again
    ///
    /// What was written shortly before may be lost: check the file systems that are on them.
    Enable {
        /// Ids or names of volumes
        #[arg(required = true, value_name = "VOLUME")]
        volumes: Vec<String>,
    },
    /// Find out whether anything that is on volumes was lost
    ///
    /// Reads what says where the data is, not the data itself, and changes nothing.
    ///
    /// Exit status: 0 if all is well, 1 if something is damaged.
    Check {
        /// Ids or names of volumes
        #[arg(required = true, value_name = "VOLUME")]
        volumes: Vec<String>,
    },
    /// Delete volumes and what is on them
    #[command(visible_alias = "delete")]
    Remove {
        /// Ids or names of volumes
        #[arg(required = true, value_name = "VOLUME")]
        volumes: Vec<String>,
    },
}

impl Volumes {
    /// Does it; returns the exit status.
    pub fn execute(self, global: &Global) -> anyhow::Result<u8> {
        let client = global.client()?;
        match self {
            Self::List => {
                let found = client.describe("DescribeVolumes", Parameters::default(), "volumeSet")?;
                global.show(&VOLUMES, &found)?;
            }
            Self::Create { size, snapshot, volume_type, zone, name, tag } => {
                let tags = tags(name.as_deref(), &tag)?;
                let zone = zone.map_or_else(|| first_zone(&client), Ok)?;
                let snapshot = snapshot.map(|wanted| names::snapshot(&client, &wanted)).transpose()?;
                let parameters = Parameters::default()
                    .with("AvailabilityZone", zone)
                    .with("VolumeType", volume_type)
                    .with_some("Size", size.map(|size| size.to_string()))
                    .with_some("SnapshotId", snapshot)
                    .with_tags("volume", &tags);
                let made = client.call("CreateVolume", parameters)?;
                global.show(&VOLUMES, &[without_request(made)])?;
            }
            Self::Attach { volume, instance, device } => {
                let volumes = names::volumes(&client, &[volume])?;
                let instance = names::instance(&client, &instance)?;
                let device = device.map_or_else(|| free_device(&client, &instance), Ok)?;
                let parameters = Parameters::default()
                    .with_some("VolumeId", volumes.first().map(String::as_str))
                    .with("InstanceId", instance)
                    .with("Device", device);
                let made = client.call("AttachVolume", parameters)?;
                global.show(&ATTACHMENT, &[without_request(made)])?;
            }
            Self::Detach { volume, force } => {
                let volumes = names::volumes(&client, &[volume])?;
                let parameters = Parameters::default()
                    .with_some("VolumeId", volumes.first().map(String::as_str))
                    .with_some("Force", force.then_some("true"));
                let gone = client.call("DetachVolume", parameters)?;
                global.show(&ATTACHMENT, &[without_request(gone)])?;
            }
            Self::Modify { volume, size, volume_type, iops, throughput, wait } => {
                let number = |number: Option<u32>| number.map(|number| number.to_string());
                let id = names::volume(&client, &volume)?;
                let parameters = Parameters::default()
                    .with("VolumeId", id.as_str())
                    .with_some("Size", number(size))
                    .with_some("VolumeType", volume_type)
                    .with_some("Iops", number(iops))
                    .with_some("Throughput", number(throughput));
                let made = client.call("ModifyVolume", parameters)?;
                let modification = at(&made, "volumeModification").cloned().unwrap_or_default();
                global.show(&MODIFICATION, &[modification])?;
                wait.until_there(&client, &MODIFIED, &[id])?;
            }
            Self::Status { volumes } => {
                let ids = names::volumes(&client, &volumes)?;
                let parameters = Parameters::default().with_list("VolumeId", &ids);
                let found = client.describe("DescribeVolumeStatus", parameters, "volumeStatusSet")?;
                global.show(&STATUS, &found)?;
            }
            Self::Enable { volumes } => {
                let ids = names::volumes(&client, &volumes)?;
                for id in &ids {
                    client.call("EnableVolumeIO", Parameters::default().with("VolumeId", id.as_str()))?;
                }
                global.done("volumeId", &ids)?;
            }
            Self::Check { volumes } => {
                let ids = names::volumes(&client, &volumes)?;
                let parameters = Parameters::default().with_list("VolumeId", &ids);
                let answer = client.call("InnkeeperCheckVolume", parameters)?;
                let found = list(&answer, "volumeSet");
                match global.output {
                    Output::Table if !global.quiet => print(&found.iter().map(checked).collect::<String>())?,
                    _ => global.show(&STATUS, found)?,
                }
                let is_sound = |each: &Value| text(each, "isSound") == "true";
                return Ok(if found.iter().all(is_sound) {
                    exit_status::SUCCESS
                } else {
                    exit_status::ERROR
                });
            }
            Self::Remove { volumes } => {
                let ids = names::volumes(&client, &volumes)?;
                for id in &ids {
                    client.call("DeleteVolume", Parameters::default().with("VolumeId", id.as_str()))?;
                }
                global.done("volumeId", &ids)?;
            }
        }
        Ok(0)
    }
}

/// What was found out about a volume, for people: a line for the volume, and one for each finding.
fn checked(volume: &Value) -> String {
    let layers = list(volume, "layerSet");
    let data: u64 = layers.iter().filter_map(|layer| number(layer, "data")).sum();
    let verdict = match text(volume, "isSound") {
        "true" => "sound",
        _ => "damaged: what is on it cannot be trusted; make it anew of a snapshot that is sound",
    };
    let mut lines = format!(
        "{}: {} layer{}, {} MiB of data, {verdict}\n",
        text(volume, "volumeId"),
        layers.len(),
        if layers.len() == 1 { "" } else { "s" },
        data.div_ceil(1 << 20)
    );
    for finding in list(volume, "findingSet") {
        let kind = if text(finding, "isDamage") == "true" { "damage" } else { "note" };
        let (layer, id) = (text(finding, "layer"), text(finding, "layerId"));
        lines += &format!("  {kind}: layer {layer} ({id}): {}\n", plain(text(finding, "problem")));
    }
    lines
}

fn first_zone(client: &Client) -> anyhow::Result<String> {
    let zones =
        client.describe("DescribeAvailabilityZones", Parameters::default(), "availabilityZoneInfo")?;
    let zone = zones.first().map(|zone| text(zone, "zoneName").to_owned());
    zone.context("the region has no availability zone: name one with --zone")
}

fn free_device(client: &Client, instance: &str) -> anyhow::Result<String> {
    let found = client.instances(Parameters::default().with("InstanceId.1", instance))?;
    let taken = found.iter().flat_map(|each| list(each, "blockDeviceMapping"));
    let taken: Vec<_> = taken.map(|each| text(each, "deviceName")).collect();
    first_free(&taken).with_context(|| format!("{instance} has no device name free: give one with --device"))
}

/// The first of the device names that EC2 recommends which is not taken. Names that begin with `/dev/xvd` take
/// `/dev/sd` as well: a guest sees only the last letter.
fn first_free(taken: &[&str]) -> Option<String> {
    let is_free = |letter: &char| !taken.iter().any(|name| ends(name, *letter));
    ('f'..='p').find(is_free).map(|letter| format!("/dev/sd{letter}"))
}

/// Whether a device name is that of a letter.
fn ends(name: &str, letter: char) -> bool {
    ["/dev/sd", "/dev/xvd"]
        .iter()
        .any(|prefix| name.strip_prefix(prefix).is_some_and(|rest| rest.starts_with(letter)))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn what_was_found_out_is_told() {
        let layer = json!({"layer": "0", "data": "1048577"});
        for (volume, told) in [
            (
                json!({"volumeId": "vol-1", "isSound": "true", "layerSet": [layer], "findingSet": []}),
                "vol-1: 1 layer, 2 MiB of data, sound\n",
            ),
            (
                json!({"volumeId": "vol-2", "isSound": "false", "layerSet": [layer, {"layer": "1"}], "findingSet": [
                    {"layer": "1", "layerId": "b", "problem": "it is torn", "isDamage": "true"},
                    {"layer": "0", "layerId": "a", "problem": "it is not sealed", "isDamage": "false"},
                ]}),
                "vol-2: 2 layers, 2 MiB of data, damaged: what is on it cannot be trusted; make it anew of a snapshot \
                 that is sound\n  damage: layer 1 (b): it is torn\n  note: layer 0 (a): it is not sealed\n",
            ),
        ] {
            assert_eq!(checked(&volume), told);
        }
    }

    #[test]
    fn a_change_is_told_by_what_the_volume_was_and_will_be() {
        let modification = json!({
            "originalSize": "8", "originalVolumeType": "gp2", "originalIops": "100",
            "targetSize": "9", "targetVolumeType": "gp3", "targetIops": "3000", "targetThroughput": "125",
        });
        assert_eq!(shape(&modification, "original"), "8 GiB gp2, 100 IOPS");
        assert_eq!(shape(&modification, "target"), "9 GiB gp3, 3000 IOPS, 125 MiB/s");
        let status = json!({"volumeStatus": {"details": [
            {"name": "io-enabled", "status": "failed"},
            {"name": "io-performance", "status": "stalled"},
        ]}});
        assert_eq!(detail(&status, "io-performance"), "stalled");
    }

    #[test]
    fn a_volume_gets_the_first_free_device() {
        for (taken, free) in [
            (["/dev/xvda", "/dev/sdb"].as_slice(), Some("/dev/sdf")),
            (&["/dev/sdf", "/dev/xvdg"], Some("/dev/sdh")),
            (
                &[
                    "/dev/sdf", "/dev/sdg", "/dev/sdh", "/dev/sdi", "/dev/sdj", "/dev/sdk", "/dev/sdl",
                    "/dev/sdm", "/dev/sdn", "/dev/sdo", "/dev/sdp",
                ],
                None,
            ),
        ] {
            assert_eq!(first_free(taken).as_deref(), free, "{taken:?}");
        }
    }
}
