//! IAM's records: roles, and the instance profiles by which instances have them.

use std::collections::BTreeMap;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::ids::ProfileAssociationId;

/// A role: what whoever has it may do.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Role {
    /// `AROA…`. Another role with the same name has another one.
    pub id: String,
    /// The account.
    pub owner: String,
    /// Unique in the account, whatever the case.
    pub name: String,
    /// `/`, or such as `/teams/web/`.
    pub path: String,
    /// Whatever its maker has to say.
    pub description: Option<String>,
    /// `AssumeRolePolicyDocument`: who may have it. As it was given.
    pub trust: String,
    /// What it may do: documents by the policies' names, as they were given.
    #[serde(default)]
    pub policies: BTreeMap<String, String>,
    /// In seconds. For those that assume it by STS, which is nobody here.
    pub max_session_duration: u32,
    /// When it was made.
    pub created: Timestamp,
}

impl Role {
    /// Its ARN.
    pub fn arn(&self) -> String {
        format!("arn:aws:iam::{}:role{}{}", self.owner, self.path, self.name)
    }
}

/// An instance profile: what an instance has to have a role.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct InstanceProfile {
    /// `AIPA…`. Another profile with the same name has another one.
    pub id: String,
    /// The account.
    pub owner: String,
    /// Unique in the account, whatever the case.
    pub name: String,
    /// `/`, or such as `/teams/web/`.
    pub path: String,
    /// The id of its role, which cannot be deleted meanwhile.
    pub role: Option<String>,
    /// When it was made.
    pub created: Timestamp,
}

impl InstanceProfile {
    /// Its ARN.
    pub fn arn(&self) -> String {
        format!("arn:aws:iam::{}:instance-profile{}{}", self.owner, self.path, self.name)
    }
}

/// The instance profile that an instance has. The profile may be gone since.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProfileAssociation {
    /// `iip-assoc-…`.
    pub id: ProfileAssociationId,
    /// The profile's id.
    pub profile: String,
    /// The profile's ARN.
    pub arn: String,
    /// Since when. The instance's temporary credentials change in steps that begin here.
    pub since: Timestamp,
}
