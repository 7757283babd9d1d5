//! What has happened, for those who want to hear of it.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::ids::{InstanceEventId, InstanceId};
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

/// What an operator has announced for an instance.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ScheduledEvent {
    /// `instance-event-…`.
    pub id: InstanceEventId,
    /// What it is for.
    pub instance: InstanceId,
    /// What will happen.
    pub code: EventCode,
    /// For people.
    pub description: String,
    /// When it begins.
    pub not_before: Timestamp,
    /// When it is over.
    pub not_after: Option<Timestamp>,
    /// Until when its beginning may be put off.
    pub not_before_deadline: Option<Timestamp>,
    /// When it was carried out, or taken back.
    pub completed: Option<Timestamp>,
    /// Whether it was taken back.
    #[serde(default)]
    pub canceled: bool,
}

impl ScheduledEvent {
    /// What becomes of it, in EC2's words: `active`, `completed` or `canceled`.
    pub fn state(&self) -> &'static str {
        match self.completed {
            None => "active",
            Some(_) if self.canceled => "canceled",
            Some(_) => "completed",
        }
    }

    /// What people are told, which begins with what has become of it.
    pub fn description(&self) -> String {
        let description = &self.description;
        match self.completed {
            None => description.clone(),
            Some(_) if self.canceled => format!("[Canceled] {description}"),
            Some(_) => format!("[Completed] {description}"),
        }
    }

    /// When there is something to do about it: what happens to the host is done by others, and over at its end.
    pub fn takes_effect(&self) -> Timestamp {
        match self.code {
            EventCode::SystemReboot | EventCode::SystemMaintenance => {
                self.not_after.unwrap_or(self.not_before)
            }
            _ => self.not_before,
        }
    }
}

/// What an operator has let an instance know of, which it finds in its metadata. It is for the guest that runs: a start makes
/// an end of it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Notice {
    /// Whom.
    pub instance: InstanceId,
    /// When.
    pub given: Timestamp,
    /// That it is going to be interrupted, as a spot instance is.
    pub interruption: Option<Interruption>,
    /// That it may be interrupted soon, and since when this is so.
    pub rebalance: Option<Timestamp>,
}

/// The interruption of an instance. It is announced; nobody carries it out.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Interruption {
    /// How.
    pub action: InterruptionAction,
    /// When.
    pub time: Timestamp,
}

/// How an instance is interrupted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum InterruptionAction {
    /// Its memory is kept.
    Hibernate,
    /// It can be started again.
    Stop,
    /// It is gone.
    Terminate,
}

impl InterruptionAction {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Hibernate, Self::Stop, Self::Terminate];

    /// Whether nothing is left to start again.
    pub fn is_termination(self) -> bool {
        self == Self::Terminate
    }

    /// EC2's name.
    pub fn name(self) -> &'static str {
        match self {
            Self::Hibernate => "hibernate",
            Self::Stop => "stop",
            Self::Terminate => "terminate",
        }
    }
}

/// What a scheduled event is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum EventCode {
    /// The instance is rebooted.
    InstanceReboot,
    /// The host is rebooted.
    SystemReboot,
    /// The host may be without its network or power for a while.
    SystemMaintenance,
    /// The instance is stopped, or terminated if it cannot be.
    InstanceRetirement,
    /// The instance is stopped.
    InstanceStop,
}

impl EventCode {
    /// All of them.
    pub const ALL: [Self; 5] = [
        Self::InstanceReboot,
        Self::SystemReboot,
        Self::SystemMaintenance,
        Self::InstanceRetirement,
        Self::InstanceStop,
    ];

    /// EC2's name.
    pub fn name(self) -> &'static str {
        match self {
            Self::InstanceReboot => "instance-reboot",
            Self::SystemReboot => "system-reboot",
            Self::SystemMaintenance => "system-maintenance",
            Self::InstanceRetirement => "instance-retirement",
            Self::InstanceStop => "instance-stop",
        }
    }

    /// What people are told if nothing else is said.
    pub fn description(self) -> &'static str {
        match self {
            Self::InstanceReboot => "The instance is scheduled for a reboot",
            Self::SystemReboot => "The host is scheduled for a reboot",
            Self::SystemMaintenance => "The host is scheduled for maintenance",
            Self::InstanceRetirement | Self::InstanceStop => "The instance is running on degraded hardware",
        }
    }
}
