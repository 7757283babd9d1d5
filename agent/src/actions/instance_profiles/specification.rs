//! `IamInstanceProfile` in requests: a profile, by its name or its ARN.

use std::sync::Arc;

use jiff::Timestamp;
use serde::Deserialize;

use crate::iam::{PASS_ROLE, authorise};
use crate::ids::ProfileAssociationId;
use crate::query::{ApiError, Context, Service};
use crate::records::{InstanceProfile, ProfileAssociation};
use crate::state::World;

/// `IamInstanceProfile`.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "PascalCase", deny_unknown_fields)]
pub struct Specification {
    arn: Option<String>,
    name: Option<String>,
}

impl Specification {
    /// The profile, if the caller may give an instance its role.
    pub fn find<'w>(
        &self,
        world: &'w World,
        context: Context<'_>,
    ) -> Result<&'w Arc<InstanceProfile>, ApiError> {
        authorise(world, context.caller, Service::Ec2, PASS_ROLE)?;
        let mut own =
            world.all::<InstanceProfile>().filter(|profile| profile.owner == context.caller.account);
        match (&self.name, &self.arn) {
            (Some(name), None) => own.find(|profile| profile.name == *name).ok_or_else(|| {
                ApiError::invalid(name, "iamInstanceProfile.name", "Invalid IAM Instance Profile name")
            }),
            (None, Some(arn)) => own.find(|profile| profile.arn() == *arn).ok_or_else(|| {
                ApiError::invalid(arn, "iamInstanceProfile.arn", "Invalid IAM Instance Profile ARN")
            }),
            (None, None) => Err(ApiError::missing("IamInstanceProfile")),
            (Some(_), Some(_)) => Err(ApiError::combination(
                "The parameter 'iamInstanceProfile.name' may not be used in combination with \
                 'iamInstanceProfile.arn'",
            )),
        }
    }
}

/// A new association with a profile.
pub fn associate(profile: &InstanceProfile, now: Timestamp) -> ProfileAssociation {
    ProfileAssociation {
        id: ProfileAssociationId::random(),
        profile: profile.id.clone(),
        arn: profile.arn(),
        since: now,
    }
}
