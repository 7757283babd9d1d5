//! DescribeSnapshots.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::actions::lookup::{select, time};
use crate::query::filters::{Field, Filter, Filtered, Selection};
use crate::query::pages::page;
use crate::query::{Action, ApiError, Context};
use crate::records::Snapshot;
use crate::state::World;

/// What EC2 names as the volume of a snapshot that was not made from one.
const NO_VOLUME: &str = "vol-ffffffff";

/// The caller's snapshots.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase", deny_unknown_fields)]
pub struct DescribeSnapshots {
    #[serde(default, rename = "Filter")]
    filters: Vec<Filter>,
    #[serde(default, rename = "SnapshotId")]
    ids: Vec<String>,
    #[serde(default, rename = "Owner")]
    owners: Vec<String>,
    #[serde(default)]
    restorable_by: Vec<String>,
    max_results: Option<i64>,
    next_token: Option<String>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Response {
    snapshot_set: Vec<Item>,
    next_token: Option<String>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Item {
    snapshot_id: String,
    volume_id: String,
    status: &'static str,
    start_time: String,
    completion_time: String,
    progress: &'static str,
    owner_id: String,
    volume_size: u32,
    description: String,
    encrypted: bool,
    storage_tier: &'static str,
    #[serde(rename = "tagSet", serialize_with = "crate::actions::tags::set")]
    tags: BTreeMap<String, String>,
}

impl Item {
    fn new(world: &World, snapshot: &Snapshot) -> Self {
        Self {
            snapshot_id: snapshot.id.to_string(),
            volume_id: snapshot.volume.as_ref().map_or_else(|| NO_VOLUME.to_owned(), ToString::to_string),
            status: "completed",
            start_time: time(snapshot.started),
            completion_time: time(snapshot.started),
            progress: "100%",
            owner_id: snapshot.owner.clone(),
            volume_size: snapshot.volume_size,
            description: snapshot.description.clone(),
            encrypted: false,
            storage_tier: "standard",
            tags: world.tags(&snapshot.id).cloned().unwrap_or_default(),
        }
    }
}

impl Filtered for Item {
    fn field(name: &str) -> Option<Field<Self>> {
        Some(match name {
            "snapshot-id" => |item| vec![item.snapshot_id.clone()],
            "volume-id" => |item| vec![item.volume_id.clone()],
            "status" => |item| vec![item.status.to_owned()],
            "start-time" => |item| vec![item.start_time.clone()],
            "progress" => |item| vec![item.progress.to_owned()],
            "owner-id" => |item| vec![item.owner_id.clone()],
            "volume-size" => |item| vec![item.volume_size.to_string()],
            "description" => |item| vec![item.description.clone()],
            "encrypted" => |item| vec![item.encrypted.to_string()],
            "storage-tier" => |item| vec![item.storage_tier.to_owned()],
            "owner-alias" | "transfer-type" => |_| Vec::new(),
            _ => return None,
        })
    }

    fn tags(&self) -> Option<&BTreeMap<String, String>> {
        Some(&self.tags)
    }
}

impl Action for DescribeSnapshots {
    const NAME: &'static str = "DescribeSnapshots";
    type Response = Response;

    fn run(self, context: Context<'_>) -> Result<Response, ApiError> {
        let world = context.agent.state.read();
        let wanted = Selection::new(&self.filters)?;
        let account = &context.caller.account;
        // Nobody can restore the snapshots of others yet, so that both lists say the same.
        let names = |all: &[String]| all.is_empty() || all.iter().any(|who| who == "self" || who == account);
        let mut items: Vec<Item> = Vec::new();
        if names(&self.owners) && names(&self.restorable_by) {
            let snapshots = select::<Snapshot>(&world, context, &self.ids)?;
            items.extend(snapshots.iter().map(|snapshot| Item::new(&world, snapshot)));
        }
        items.retain(|item| wanted.accepts(item));
        let (snapshot_set, next_token) =
            page(items, |item| &item.snapshot_id, self.max_results, self.next_token.as_deref(), 5)?;
        Ok(Response { snapshot_set, next_token })
    }
}
