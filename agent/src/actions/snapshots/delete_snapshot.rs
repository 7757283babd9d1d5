//! DeleteSnapshot.

use serde::Deserialize;

use super::user_of;
use crate::actions::lookup::find_own;
use crate::query::{Action, ApiError, Context};
use crate::records::{Snapshot, Tags};
use crate::state::World;

/// Takes a snapshot away that no image needs, in any order: volumes that were made from it, and snapshots that were made
/// after it, keep the layers that they need, and the others are removed in time.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase", deny_unknown_fields)]
pub struct DeleteSnapshot {
    snapshot_id: String,
}

impl DeleteSnapshot {
    fn plan(&self, world: &World, context: Context<'_>) -> Result<(), ApiError> {
        let snapshot = find_own::<Snapshot>(world, context, &self.snapshot_id)?;
        match user_of(world, &snapshot.id) {
            None => Ok(()),
            Some(user) => {
                let message = format!("The snapshot {} is currently in use by {user}", snapshot.id);
                Err(ApiError::new("InvalidSnapshot.InUse", message))
            }
        }
    }
}

impl Action for DeleteSnapshot {
    const NAME: &'static str = "DeleteSnapshot";
    type Response = ();

    fn check(&self, context: Context<'_>) -> Result<(), ApiError> {
        self.plan(&context.agent.state.read(), context)
    }

    fn run(self, context: Context<'_>) -> Result<(), ApiError> {
        context.agent.state.change(|draft| {
            self.plan(draft, context)?;
            draft.remove::<Snapshot>(&self.snapshot_id);
            draft.remove::<Tags>(&self.snapshot_id);
            Ok(())
        })
    }
}
