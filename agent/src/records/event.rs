//! What has happened, for those who want to hear of it.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::ids::InstanceId;
use crate::records::InstanceState;

/// A change of an instance's state. It is recorded with the change itself, so that there is one for each.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StateChange {
    /// Its place among all, from 1: 20 digits, so that the order of the keys is that of the events.
    pub number: String,
    /// A UUID.
    pub id: String,
    /// When.
    pub time: Timestamp,
    /// The account.
    pub owner: String,
    /// Whose state it is.
    pub instance: InstanceId,
    /// Which it is from then on.
    pub state: InstanceState,
}

impl StateChange {
    /// The key of the event with this number.
    pub fn key_of(number: u64) -> String {
        format!("{number:020}")
    }

    /// Its number; 0 for one that no agent has made.
    pub fn ordinal(&self) -> u64 {
        self.number.parse().unwrap_or(0)
    }
}
