//! CreateVolume.

use serde::de::IgnoredAny;
use serde::{Deserialize, Serialize};

use super::item::VolumeItem;
use crate::actions::lookup::{completed_snapshot, find};
use crate::actions::regions::zone_id;
use crate::actions::snapshots::check_encryption;
use crate::ids::{LayerId, SnapshotId, VolumeId};
use crate::query::idempotency::{recall, remember};
use crate::query::tags::{TagSpecification, specified};
use crate::query::{Action, ApiError, Context};
use crate::records::{Volume, VolumeState};
use crate::state::World;
use crate::volumes::stack;
use crate::volumes::types::{self, Resolved};

/// Makes a volume, empty or from a snapshot.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase", deny_unknown_fields)]
pub struct CreateVolume {
    availability_zone: Option<String>,
    availability_zone_id: Option<String>,
    size: Option<u32>,
    snapshot_id: Option<String>,
    volume_type: Option<String>,
    iops: Option<u32>,
    throughput: Option<u32>,
    encrypted: Option<bool>,
    kms_key_id: Option<String>,
    multi_attach_enabled: Option<bool>,
    outpost_arn: Option<String>,
    operator: Option<IgnoredAny>,
    /// Volumes are there at once, at any rate.
    #[serde(rename = "VolumeInitializationRate")]
    _volume_initialization_rate: Option<i64>,
    client_token: Option<String>,
    #[serde(default, rename = "TagSpecification")]
    tags: Vec<TagSpecification>,
}

/// The volume itself.
#[derive(Debug, Serialize)]
#[serde(transparent)]
pub struct Response(VolumeItem);

/// What is to be made.
struct Plan {
    zone: String,
    snapshot: Option<(SnapshotId, LayerId)>,
    encrypted: bool,
    resolved: Resolved,
}

impl CreateVolume {
    fn zone(&self, context: Context<'_>) -> Result<String, ApiError> {
        let config = &context.agent.config;
        let (wanted, found) = match (&self.availability_zone, &self.availability_zone_id) {
            (Some(name), None) => (name, config.zones.iter().find(|zone| *zone == name)),
            (None, Some(id)) => (id, config.zones.iter().find(|zone| zone_id(&config.region, zone) == *id)),
            (Some(_), Some(_)) => {
                let message = "AvailabilityZone cannot be used with AvailabilityZoneId.";
                return Err(ApiError::combination(message));
            }
            (None, None) => return Err(ApiError::missing("availabilityZone")),
        };
        found.cloned().ok_or_else(|| {
            let message = format!("The zone '{wanted}' does not exist.");
            ApiError::new("InvalidZone.NotFound", message)
        })
    }

    fn plan(&self, world: &World, context: Context<'_>) -> Result<Plan, ApiError> {
        let zone = self.zone(context)?;
        if self.multi_attach_enabled == Some(true) {
            let message = "A volume can be attached to one instance only: leave MultiAttachEnabled out.";
            return Err(ApiError::new("UnsupportedOperation", message));
        }
        if self.outpost_arn.is_some() {
            let message = "There are no outposts: leave OutpostArn out.";
            return Err(ApiError::new("UnsupportedOperation", message));
        }
        if self.operator.is_some() {
            let message = "There are no managed volumes: leave Operator out.";
            return Err(ApiError::new("UnsupportedOperation", message));
        }
        check_encryption(self.encrypted, self.kms_key_id.as_ref())?;
        let snapshot =
            self.snapshot_id.as_ref().map(|id| completed_snapshot(world, context, id)).transpose()?;
        let smallest = snapshot.map(|snapshot| snapshot.volume_size);
        let Some(size) = self.size.or(smallest) else { return Err(ApiError::missing("size/snapshot")) };
        if smallest.is_some_and(|smallest| size < smallest) {
            let smallest = smallest.unwrap_or_default();
            let reason = format!("It is smaller than the snapshot's size, {smallest}GiB.");
            return Err(ApiError::invalid(size, "size", reason));
        }
        let volume_type = self.volume_type.as_deref().unwrap_or(types::DEFAULT);
        let resolved = types::check(volume_type, size, self.iops, self.throughput)?;
        // What is made of something encrypted is so, too, whatever is asked for.
        let encrypted = self.encrypted == Some(true) || snapshot.is_some_and(|snapshot| snapshot.encrypted);
        let snapshot = snapshot.map(|snapshot| (snapshot.id.clone(), snapshot.layer.clone()));
        Ok(Plan { zone, snapshot, encrypted, resolved })
    }
}

impl Action for CreateVolume {
    const NAME: &'static str = "CreateVolume";
    type Response = Response;

    fn check(&self, context: Context<'_>) -> Result<(), ApiError> {
        specified(&self.tags, &["volume"])?;
        let world = context.agent.state.read();
        match recall(&world, context, Self::NAME, self.client_token.as_deref())? {
            // What was possible then need not be now.
            Some(_) => Ok(()),
            None => self.plan(&world, context).map(|_| ()),
        }
    }

    fn run(self, context: Context<'_>) -> Result<Response, ApiError> {
        let tags = specified(&self.tags, &["volume"])?.remove("volume").unwrap_or_default();
        let token = self.client_token.as_deref();
        context.agent.state.change(|draft| {
            if let Some(earlier) = recall(draft, context, Self::NAME, token)? {
                let volume = find::<Volume>(draft, context, &earlier)?;
                return Ok(Response(VolumeItem::new(draft, context, volume)));
            }
            let Plan { zone, snapshot, encrypted, resolved } = self.plan(draft, context)?;
            let (snapshot, base) = snapshot.unzip();
            let volume = Volume {
                layer: stack::found(draft, base.as_ref(), resolved.size),
                id: VolumeId::random(),
                owner: context.caller.account.clone(),
                size: resolved.size,
                volume_type: resolved.volume_type,
                iops: resolved.iops,
                throughput: resolved.throughput,
                encrypted,
                snapshot,
                availability_zone: zone,
                created: jiff::Timestamp::now(),
                state: VolumeState::Available,
                attachment: None,
                modification: None,
                impairment: None,
                auto_enable_io: false,
            };
            remember(draft, context, Self::NAME, token, &volume.id);
            draft.tag(&volume.id, tags);
            draft.put(volume.clone());
            let mut item = VolumeItem::new(draft, context, &volume);
            // Nothing has to be done for it, and clients expect that something has.
            item.status = "creating";
            Ok(Response(item))
        })
    }
}
