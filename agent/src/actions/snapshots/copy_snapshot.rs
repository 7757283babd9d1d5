//! CopySnapshot.

use std::collections::BTreeMap;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::{check_description, copy};
use crate::actions::lookup::completed_snapshot;
use crate::actions::refused::refuse;
use crate::query::tags::{Tag, TagSpecification, specified_for, tag_set};
use crate::query::{Action, ApiError, Context};
use crate::records::Snapshot;
use crate::state::World;

/// Makes the caller a snapshot of its own of the same data. Nothing is copied: both are the same layers.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase", deny_unknown_fields)]
pub struct CopySnapshot {
    source_region: String,
    source_snapshot_id: String,
    description: Option<String>,
    destination_region: Option<String>,
    encrypted: Option<bool>,
    kms_key_id: Option<String>,
    /// It would say who asks another region.
    #[serde(rename = "PresignedUrl")]
    _presigned_url: Option<String>,
    destination_outpost_arn: Option<String>,
    destination_availability_zone: Option<String>,
    /// It is there at once, whatever is asked for.
    #[serde(rename = "CompletionDurationMinutes")]
    _completion_duration_minutes: Option<i64>,
    #[serde(default, rename = "TagSpecification")]
    tags: Vec<TagSpecification>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Response {
    snapshot_id: String,
    tag_set: Vec<Tag>,
}

/// What there is of EC2's ways to encrypt a copy.
pub(in crate::actions) fn check_encryption(
    encrypted: Option<bool>,
    key: Option<&String>,
) -> Result<(), ApiError> {
    if key.is_some() && encrypted != Some(true) {
        let message = "The parameter KmsKeyId requires the parameter Encrypted to be set.";
        return Err(ApiError::new("InvalidParameterDependency", message));
    }
    refuse(&[(key.is_some(), "This host has no KMS keys: leave KmsKeyId out.")])
}

/// Refuses all regions but the own one.
pub(in crate::actions) fn check_region(
    context: Context<'_>,
    region: &str,
    parameter: &str,
) -> Result<(), ApiError> {
    let own = &context.agent.config.region;
    if region == own {
        return Ok(());
    }
    let reason = format!("This host is the region {own}, and knows no other.");
    Err(ApiError::invalid(region, parameter, reason))
}

impl CopySnapshot {
    fn plan(&self, world: &World, context: Context<'_>) -> Result<Snapshot, ApiError> {
        check_description(self.description.as_ref())?;
        check_region(context, &self.source_region, "SourceRegion")?;
        if let Some(region) = &self.destination_region {
            check_region(context, region, "DestinationRegion")?;
        }
        refuse(&[
            (
                self.destination_outpost_arn.is_some(),
                "There are no outposts: leave DestinationOutpostArn out.",
            ),
            (
                self.destination_availability_zone.is_some(),
                "There are no local zones: leave DestinationAvailabilityZone out.",
            ),
        ])?;
        check_encryption(self.encrypted, self.kms_key_id.as_ref())?;
        if self.encrypted == Some(false) {
            let reason = "A copy cannot be asked to be unencrypted: leave it out.";
            return Err(ApiError::invalid(false, "Encrypted", reason));
        }
        let source = completed_snapshot(world, context, &self.source_snapshot_id)?;
        let description = self.description.clone().unwrap_or_default();
        let mut snapshot = copy(source, &context.caller.account, description, Timestamp::now());
        snapshot.encrypted |= self.encrypted == Some(true);
        Ok(snapshot)
    }

    fn tags(&self) -> Result<BTreeMap<String, String>, ApiError> {
        specified_for(&self.tags, "snapshot")
    }
}

impl Action for CopySnapshot {
    const NAME: &'static str = "CopySnapshot";
    type Response = Response;

    fn check(&self, context: Context<'_>) -> Result<(), ApiError> {
        self.tags()?;
        self.plan(&context.agent.state.read(), context).map(drop)
    }

    fn run(self, context: Context<'_>) -> Result<Response, ApiError> {
        let tags = self.tags()?;
        context.agent.state.change(|draft| {
            let snapshot = self.plan(draft, context)?;
            let response = Response { snapshot_id: snapshot.id.to_string(), tag_set: tag_set(Some(&tags)) };
            draft.tag(&snapshot.id, tags);
            draft.put(snapshot);
            Ok(response)
        })
    }
}
