//! CreateSnapshot.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::item::SnapshotItem;
use super::{check, check_description, check_place};
use crate::actions::lookup::find;
use crate::ids::VolumeId;
use crate::query::tags::{TagSpecification, specified_for};
use crate::query::{Action, ApiError, Context};
use crate::records::Volume;
use crate::state::World;
use crate::volumes::snapshots::take;

/// Keeps what is on a volume now. When it is answered, nothing that is written from now on will be in the snapshot.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase", deny_unknown_fields)]
pub struct CreateSnapshot {
    volume_id: String,
    description: Option<String>,
    outpost_arn: Option<String>,
    location: Option<String>,
    #[serde(default, rename = "TagSpecification")]
    tags: Vec<TagSpecification>,
}

/// The snapshot itself.
#[derive(Debug, Serialize)]
#[serde(transparent)]
pub struct Response(SnapshotItem);

impl CreateSnapshot {
    fn plan(&self, world: &World, context: Context<'_>) -> Result<VolumeId, ApiError> {
        check_description(self.description.as_ref())?;
        check_place(self.outpost_arn.as_ref(), self.location.as_ref())?;
        let volume = find::<Volume>(world, context, &self.volume_id)?;
        check(world, volume)?;
        Ok(volume.id.clone())
    }
}

impl Action for CreateSnapshot {
    const NAME: &'static str = "CreateSnapshot";
    type Response = Response;

    fn check(&self, context: Context<'_>) -> Result<(), ApiError> {
        specified_for(&self.tags, "snapshot")?;
        self.plan(&context.agent.state.read(), context).map(drop)
    }

    fn run(self, context: Context<'_>) -> Result<Response, ApiError> {
        let tags = specified_for(&self.tags, "snapshot")?;
        let (volume, item) = context.agent.state.change(|draft| {
            let volume = self.plan(draft, context)?;
            let description = self.description.as_deref().unwrap_or_default();
            let snapshot = take(draft, &volume, description, Timestamp::now())
                .ok_or_else(|| ApiError::internal(format_args!("{volume} has no layer")))?;
            draft.tag(&snapshot.id, tags);
            Ok::<_, ApiError>((volume, SnapshotItem::new(draft, &snapshot.owner, &snapshot)))
        })?;
        context.agent.settle_volumes(&[volume]);
        Ok(Response(item))
    }
}
