//! Volumes: list, create, attach, detach, remove.

use anyhow::Context;
use serde_json::Value;

use crate::cli::answer::{list, tag, text, without_request};
use crate::cli::client::{Client, Parameters};
use crate::cli::global::Global;
use crate::cli::names;
use crate::cli::output::{View, age};
use crate::cli::tags::tags;

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
        /// The snapshot that it begins with
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
    use super::*;

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
