//! An association in answers.

use serde::Serialize;

use crate::actions::lookup::time;
use crate::records::ProfileAssociation;

/// `iamInstanceProfile`.
#[derive(Debug, Serialize)]
pub struct ProfileItem {
    arn: String,
    id: String,
}

impl From<&ProfileAssociation> for ProfileItem {
    fn from(association: &ProfileAssociation) -> Self {
        Self { arn: association.arn.clone(), id: association.profile.clone() }
    }
}

/// `iamInstanceProfileAssociation`.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct AssociationItem {
    pub association_id: String,
    pub instance_id: String,
    iam_instance_profile: ProfileItem,
    pub state: &'static str,
    timestamp: String,
}

impl AssociationItem {
    pub fn new(instance: impl ToString, association: &ProfileAssociation, state: &'static str) -> Self {
        Self {
            association_id: association.id.to_string(),
            instance_id: instance.to_string(),
            iam_instance_profile: association.into(),
            state,
            timestamp: time(association.since),
        }
    }
}
