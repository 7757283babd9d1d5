//! Snapshots of volumes: list, create, copy, remove.

use serde_json::Value;

use crate::cli::answer::{list, tag, text, without_request};
use crate::cli::client::Parameters;
use crate::cli::global::Global;
use crate::cli::names;
use crate::cli::output::{View, age};
use crate::cli::tags::tags;
use crate::cli::wait::{Wait, Way};

const SNAPSHOTS: View = View {
    id: "snapshotId",
    columns: &[
        ("ID", |each, _| text(each, "snapshotId").into()),
        ("NAME", |each, _| tag(each, "Name").unwrap_or_default().into()),
        ("STATE", |each, _| state(each).into()),
        ("VOLUME", |each, _| text(each, "volumeId").into()),
        ("SIZE", |each, _| format!("{} GiB", text(each, "volumeSize"))),
        ("DESCRIPTION", |each, _| text(each, "description").into()),
        ("CREATED", |each, now| age(text(each, "startTime"), now)),
    ],
};

const COMPLETED: Way = Way {
    kind: "snapshot",
    wanted: "completed",
    action: "DescribeSnapshots",
    parameter: "SnapshotId",
    list: "snapshotSet",
    id: "snapshotId",
    state: "status",
    done: "completed",
    comes: "pending",
    reason: "statusMessage",
};

/// EC2 calls it one thing where there is one snapshot, and another where there are several.
fn state(snapshot: &Value) -> &str {
    match text(snapshot, "status") {
        "" => text(snapshot, "state"),
        status => status,
    }
}

/// What to do with snapshots.
#[derive(Debug, clap::Subcommand)]
pub enum Snapshots {
    /// List the snapshots that you own
    List,
    /// Keep what is on a volume, or on all volumes of an instance, as it is now
    Create {
        /// Id or name of a volume
        #[arg(required_unless_present = "instance")]
        volume: Option<String>,
        /// Id or name of an instance, of whose volumes there is to be one each, of the same point in time
        #[arg(long, conflicts_with = "volume")]
        instance: Option<String>,
        #[command(flatten)]
        wanted: Wanted,
        #[command(flatten)]
        wait: Wait,
    },
    /// Make another snapshot of the same data
    Copy {
        /// Id or name of a snapshot
        snapshot: String,
        #[command(flatten)]
        wanted: Wanted,
    },
    /// Delete snapshots; volumes that were made of them stay as they are
    #[command(visible_alias = "delete")]
    Remove {
        /// Ids or names of snapshots
        #[arg(required = true, value_name = "SNAPSHOT")]
        snapshots: Vec<String>,
    },
}

/// What a snapshot is to have.
#[derive(Debug, clap::Args)]
pub struct Wanted {
    /// What it is, for people
    #[arg(long, value_name = "TEXT")]
    description: Option<String>,
    /// A name: the tag Name
    #[arg(long)]
    name: Option<String>,
    /// A tag
    #[arg(long, value_name = "KEY=VALUE")]
    tag: Vec<String>,
}

impl Wanted {
    fn parameters(&self) -> anyhow::Result<Parameters> {
        let tags = tags(self.name.as_deref(), &self.tag)?;
        Ok(Parameters::default()
            .with_some("Description", self.description.as_deref())
            .with_tags("snapshot", &tags))
    }
}

impl Snapshots {
    /// Does it; returns the exit status.
    pub fn execute(self, global: &Global) -> anyhow::Result<u8> {
        let client = global.client()?;
        match self {
            Self::List => {
                let own = Parameters::default().with("Owner.1", "self");
                let found = client.describe("DescribeSnapshots", own, "snapshotSet")?;
                global.show(&SNAPSHOTS, &found)?;
            }
            Self::Create { volume, instance, wanted, wait } => {
                let parameters = wanted.parameters()?;
                let made = match (volume, instance) {
                    (_, Some(instance)) => {
                        let id = names::instance(&client, &instance)?;
                        let parameters = parameters.with("InstanceSpecification.InstanceId", id);
                        let made = client.call("CreateSnapshots", parameters)?;
                        list(&made, "snapshotSet").to_vec()
                    }
                    (volume, None) => {
                        let id = names::volume(&client, &volume.unwrap_or_default())?;
                        let made = client.call("CreateSnapshot", parameters.with("VolumeId", id))?;
                        vec![without_request(made)]
                    }
                };
                global.show(&SNAPSHOTS, &made)?;
                let ids: Vec<_> = made.iter().map(|each| text(each, "snapshotId").to_owned()).collect();
                wait.until_there(&client, &COMPLETED, &ids)?;
            }
            Self::Copy { snapshot, wanted } => {
                let regions = client.describe("DescribeRegions", Parameters::default(), "regionInfo")?;
                let region = regions.first().map(|region| text(region, "regionName")).unwrap_or_default();
                let parameters = wanted
                    .parameters()?
                    .with("SourceSnapshotId", names::snapshot(&client, &snapshot)?)
                    .with("SourceRegion", region);
                let made = client.call("CopySnapshot", parameters)?;
                global.done("snapshotId", &[text(&made, "snapshotId").to_owned()])?;
            }
            Self::Remove { snapshots } => {
                let ids = names::snapshots(&client, &snapshots)?;
                for id in &ids {
                    client.call("DeleteSnapshot", Parameters::default().with("SnapshotId", id.as_str()))?;
                }
                global.done("snapshotId", &ids)?;
            }
        }
        Ok(0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::client::tests::serve;

    #[test]
    fn a_snapshot_is_waited_for_until_it_is_complete_or_has_failed() {
        let answer = |status: &str| {
            let item = format!(
                "<item><snapshotId>snap-1</snapshotId><status>{status}</status><statusMessage>full</statusMessage></item>"
            );
            (200, format!("<R><snapshotSet>{item}</snapshotSet></R>"))
        };
        let ids = ["snap-1".to_owned()];
        let wait = Wait { wait: true, timeout: 60 };
        for (answers, error) in [
            (vec![answer("pending"), answer("completed")], None),
            (vec![answer("error")], Some("snap-1 is error, not completed: full")),
        ] {
            let (client, server) = serve(answers);
            let outcome = wait.until_there(&client, &COMPLETED, &ids);
            assert_eq!(outcome.err().map(|error| error.to_string()).as_deref(), error);
            server.join().unwrap();
        }
    }
}
