//! DescribeSnapshots.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::item::SnapshotItem;
use crate::actions::lookup::select;
use crate::actions::sharing::is_account;
use crate::query::filters::{Field, Filter, Filtered, Selection};
use crate::query::pages::page;
use crate::query::{Action, ApiError, Context};
use crate::records::Snapshot;

/// The snapshots that the caller can make volumes of.
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
    snapshot_set: Vec<SnapshotItem>,
    next_token: Option<String>,
}

impl Filtered for SnapshotItem {
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
            "transfer-type" => |_| vec!["standard".to_owned()],
            "owner-alias" => |_| Vec::new(),
            _ => return None,
        })
    }

    fn tags(&self) -> Option<&BTreeMap<String, String>> {
        Some(&self.tags)
    }
}

impl DescribeSnapshots {
    /// Refuses names of accounts that are none.
    fn check_accounts(&self) -> Result<(), ApiError> {
        let check = |names: &[String], words: &[&str]| match names
            .iter()
            .find(|name| !is_account(name) && !words.contains(&name.as_str()))
        {
            None => Ok(()),
            Some(name) => {
                let message = format!("Invalid user id: \"{name}\"");
                Err(ApiError::new("InvalidUserID.Malformed", message))
            }
        };
        check(&self.owners, &["self", "amazon"])?;
        check(&self.restorable_by, &["self", "all"])
    }

    /// Whether a snapshot is of one of the owners, and for one of those that are named to make volumes of.
    fn is_wanted(&self, snapshot: &Snapshot, account: &str) -> bool {
        let of = |owner: &String| *owner == snapshot.owner || owner == "self" && snapshot.owner == account;
        let by = |who: &String| {
            let is_permitted =
                |who: &str| snapshot.create_volume_permissions.iter().any(|permitted| permitted == who);
            match who.as_str() {
                "self" => snapshot.owner == account || is_permitted(account),
                who => snapshot.owner == who || is_permitted(who),
            }
        };
        (self.owners.is_empty() || self.owners.iter().any(of))
            && (self.restorable_by.is_empty() || self.restorable_by.iter().any(by))
    }
}

impl Action for DescribeSnapshots {
    const NAME: &'static str = "DescribeSnapshots";
    type Response = Response;

    fn run(self, context: Context<'_>) -> Result<Response, ApiError> {
        if self.max_results.is_some() && !self.ids.is_empty() {
            let message = "The parameter snapshotSet cannot be used with the parameter maxResults";
            return Err(ApiError::combination(message));
        }
        self.check_accounts()?;
        let world = context.agent.state.read();
        let wanted = Selection::new(&self.filters)?;
        let snapshots = select::<Snapshot>(&world, context, &self.ids)?;
        let snapshots = snapshots.iter().filter(|one| self.is_wanted(one, &context.caller.account));
        let mut items: Vec<SnapshotItem> =
            snapshots.map(|one| SnapshotItem::new(&world, &context.caller.account, one)).collect();
        items.retain(|item| wanted.accepts(item));
        let (snapshot_set, next_token) =
            page(items, |item| &item.snapshot_id, self.max_results, self.next_token.as_deref(), 5)?;
        Ok(Response { snapshot_set, next_token })
    }
}
