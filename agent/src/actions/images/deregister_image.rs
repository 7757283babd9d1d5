//! DeregisterImage.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};

use super::{clean_up, snapshots};
use crate::actions::lookup::find_own;
use crate::actions::snapshots::user_of;
use crate::ids::SnapshotId;
use crate::query::{Action, ApiError, Context};
use crate::records::{Image, Snapshot, Tags};
use crate::state::Draft;

/// Takes an image away. Its instances keep what they boot from, and its snapshots stay unless they are to go, too.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase", deny_unknown_fields)]
pub struct DeregisterImage {
    image_id: String,
    #[serde(default)]
    delete_associated_snapshots: bool,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Response {
    #[serde(rename = "return")]
    done: bool,
    delete_snapshot_result_set: Option<Vec<DeletedSnapshot>>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct DeletedSnapshot {
    snapshot_id: String,
    return_code: &'static str,
}

fn delete(draft: &mut Draft, context: Context<'_>, id: &SnapshotId) -> DeletedSnapshot {
    let is_own = draft.get::<Snapshot>(id).is_some_and(|snapshot| snapshot.owner == context.caller.account);
    let return_code = if !is_own {
        "missing-permissions"
    } else if user_of(draft, id).is_some() {
        "skipped"
    } else {
        draft.remove::<Snapshot>(id);
        draft.remove::<Tags>(id);
        "success"
    };
    DeletedSnapshot { snapshot_id: id.to_string(), return_code }
}

impl Action for DeregisterImage {
    const NAME: &'static str = "DeregisterImage";
    type Response = Response;

    fn check(&self, context: Context<'_>) -> Result<(), ApiError> {
        find_own::<Image>(&context.agent.state.read(), context, &self.image_id).map(|_| ())
    }

    fn run(self, context: Context<'_>) -> Result<Response, ApiError> {
        let deleted = context.agent.state.change(|draft| {
            let image = Image::clone(find_own(draft, context, &self.image_id)?);
            draft.remove::<Image>(&image.id);
            draft.remove::<Tags>(&image.id);
            let deleted = self
                .delete_associated_snapshots
                .then(|| BTreeSet::from_iter(snapshots(&image)))
                .map(|ids| ids.into_iter().map(|id| delete(draft, context, id)).collect());
            Ok::<_, ApiError>(deleted)
        })?;
        clean_up(context);
        Ok(Response { done: true, delete_snapshot_result_set: deleted })
    }
}
