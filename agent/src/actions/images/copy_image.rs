//! CopyImage.

#[cfg(test)]
mod tests;

use std::collections::BTreeMap;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::register_image::check_name;
use super::{check_description, check_name_is_free};
use crate::actions::lookup::{Named, find};
use crate::actions::refused::refuse;
use crate::actions::snapshots::{check_encryption, check_region, copy};
use crate::ids::ImageId;
use crate::query::idempotency::{recall, remember};
use crate::query::tags::{TagSpecification, fits, specified};
use crate::query::{Action, ApiError, Context};
use crate::records::{Image, ImageOrigin, ImageState, Snapshot, SnapshotState};
use crate::state::World;

/// Makes the caller an image of its own that is the same as another, with snapshots of its own. Nothing is copied: they
/// are the same layers.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase", deny_unknown_fields)]
pub struct CopyImage {
    source_image_id: String,
    source_region: String,
    name: String,
    description: Option<String>,
    client_token: Option<String>,
    encrypted: Option<bool>,
    kms_key_id: Option<String>,
    #[serde(default)]
    copy_image_tags: bool,
    destination_outpost_arn: Option<String>,
    destination_availability_zone: Option<String>,
    destination_availability_zone_id: Option<String>,
    /// It is there at once, whatever is asked for.
    #[serde(rename = "SnapshotCopyCompletionDurationMinutes")]
    _completion_duration_minutes: Option<i64>,
    #[serde(default, rename = "TagSpecification")]
    tags: Vec<TagSpecification>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Response {
    image_id: String,
}

/// What is to be recorded.
struct Plan {
    image: Image,
    snapshots: Vec<Snapshot>,
    image_tags: BTreeMap<String, String>,
    snapshot_tags: BTreeMap<String, String>,
}

impl CopyImage {
    /// What does not depend on records.
    fn check_parameters(&self, context: Context<'_>) -> Result<(), ApiError> {
        check_name(&self.name)?;
        check_description(self.description.as_ref())?;
        check_region(context, &self.source_region, "SourceRegion")?;
        refuse(&[
            (
                self.destination_outpost_arn.is_some(),
                "There are no outposts: leave DestinationOutpostArn out.",
            ),
            (
                self.destination_availability_zone.is_some()
                    || self.destination_availability_zone_id.is_some(),
                "There are no local zones: leave the destination's availability zone out.",
            ),
        ])?;
        check_encryption(self.encrypted, self.kms_key_id.as_ref())?;
        specified(&self.tags, &["image", "snapshot"]).map(drop)
    }

    fn plan(&self, world: &World, context: Context<'_>) -> Result<Plan, ApiError> {
        let source = find::<Image>(world, context, &self.source_image_id)?;
        check_name_is_free(world, context, &self.name)?;
        if source.state != ImageState::Available {
            let message = format!("The image ID '{}' is not available", source.id);
            return Err(ApiError::new("InvalidAMIID.Unavailable", message));
        }
        let (account, now) = (&context.caller.account, Timestamp::now());
        if source.root_store.is_some() && source.owner != *account {
            let message = "You do not have permission to access the storage of this ami: its root device is in the \
                           instance store, which only its owner can copy.";
            return Err(ApiError::new("InvalidRequest", message));
        }
        let mut image = Image {
            id: ImageId::random(),
            name: self.name.clone(),
            description: self.description.clone().filter(|text| !text.is_empty()),
            owner: account.clone(),
            launch_permissions: Vec::new(),
            location: format!("{account}/{}", self.name),
            created: now,
            origin: Some(ImageOrigin::Image(source.id.clone())),
            ..Image::clone(source)
        };
        let mut snapshots = Vec::new();
        for volume in image.block_devices.iter_mut().filter_map(|mapping| mapping.volume.as_mut()) {
            let Some(id) = &volume.snapshot else { continue };
            // Who may launch an image need not be allowed to have what is on its disks.
            let found = world.get::<Snapshot>(id).filter(|snapshot| snapshot.is_visible(account));
            let Some(found) = found.filter(|snapshot| snapshot.state == SnapshotState::Completed) else {
                let message = format!(
                    "You do not have permission to access the storage of this ami: its owner can give it with \
                     ModifySnapshotAttribute of {id}."
                );
                return Err(ApiError::new("InvalidRequest", message));
            };
            if self.encrypted == Some(false) && found.encrypted {
                let reason = format!("The snapshot {id} is encrypted, and so is each of its copies.");
                return Err(ApiError::invalid(false, "Encrypted", reason));
            }
            let description = format!(
                "Copied for DestinationAmi {} from SourceAmi {} for SourceSnapshot {id}.",
                image.id, source.id
            );
            let mut copied = copy(found, account, description, now);
            copied.encrypted |= self.encrypted == Some(true);
            volume.encrypted |= copied.encrypted;
            volume.snapshot = Some(copied.id.clone());
            snapshots.push(copied);
        }
        let mut tags = specified(&self.tags, &["image", "snapshot"])?;
        // Others see the tags that they have given, and no others.
        let copied = world.tags(&source.id).filter(|_| self.copy_image_tags && source.owner == *account);
        let mut image_tags = copied.cloned().unwrap_or_default();
        image_tags.extend(tags.remove("image").unwrap_or_default());
        fits(image_tags.len())?;
        let snapshot_tags = tags.remove("snapshot").unwrap_or_default();
        Ok(Plan { image, snapshots, image_tags, snapshot_tags })
    }
}

impl Action for CopyImage {
    const NAME: &'static str = "CopyImage";
    type Response = Response;

    fn check(&self, context: Context<'_>) -> Result<(), ApiError> {
        self.check_parameters(context)?;
        let world = context.agent.state.read();
        match recall(&world, context, Self::NAME, self.client_token.as_deref())? {
            // What was possible then need not be now.
            Some(_) => Ok(()),
            None => self.plan(&world, context).map(drop),
        }
    }

    fn run(self, context: Context<'_>) -> Result<Response, ApiError> {
        let token = self.client_token.as_deref();
        context.agent.state.change(|draft| {
            if let Some(image_id) = recall(draft, context, Self::NAME, token)? {
                return Ok(Response { image_id });
            }
            let Plan { image, snapshots, image_tags, snapshot_tags } = self.plan(draft, context)?;
            for snapshot in snapshots {
                draft.tag(&snapshot.id, snapshot_tags.clone());
                draft.put(snapshot);
            }
            let image_id = image.id.to_string();
            remember(draft, context, Self::NAME, token, &image_id);
            draft.tag(&image_id, image_tags);
            draft.put(image);
            Ok(Response { image_id })
        })
    }
}
