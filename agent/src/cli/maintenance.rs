//! How instances are, and what is announced for them.

use clap::ValueEnum;
use serde_json::Value;

use crate::cli::answer::{list, text, without_request};
use crate::cli::client::Parameters;
use crate::cli::global::Global;
use crate::cli::names;
use crate::cli::output::View;

const STATUSES: View = View {
    id: "instanceId",
    columns: &[
        ("ID", |each, _| text(each, "instanceId").into()),
        ("STATE", |each, _| text(each, "instanceState.name").into()),
        ("SYSTEM", |each, _| text(each, "systemStatus.status").into()),
        ("INSTANCE", |each, _| text(each, "instanceStatus.status").into()),
        ("VOLUMES", |each, _| text(each, "attachedEbsStatus.status").into()),
        ("EVENTS", |each, _| events(each)),
    ],
};

const EVENTS: View = View {
    id: "instanceEventId",
    columns: &[
        ("EVENT", |each, _| text(each, "instanceEventId").into()),
        ("NOT BEFORE", |each, _| text(each, "notBefore").into()),
    ],
};

fn events(instance: &Value) -> String {
    let all = list(instance, "eventsSet").iter();
    let is_past = |event: &&Value| {
        let description = text(event, "description");
        ["[Completed] ", "[Canceled] "].iter().any(|past| description.starts_with(past))
    };
    let each = all.filter(|event| !is_past(event)).map(|event| {
        format!(
            "{} {} from {}",
            text(event, "instanceEventId"),
            text(event, "code"),
            text(event, "notBefore")
        )
    });
    each.collect::<Vec<_>>().join(", ")
}

/// What to do about instances' health.
#[derive(Debug, clap::Subcommand)]
pub enum Maintenance {
    /// Show the status checks of instances, and the events that are announced for them
    Status {
        /// Ids or names of instances; by default all that are there
        instances: Vec<String>,
    },
    /// Announce an event for an instance, which is carried out when its time has come
    Schedule {
        /// Id or name of an instance
        instance: String,
        /// instance-reboot, instance-stop, instance-retirement, system-reboot or system-maintenance
        code: String,
        /// When it begins, such as 2026-12-24T18:00:00Z
        #[arg(long, value_name = "TIME")]
        not_before: String,
        /// When it is over
        #[arg(long, value_name = "TIME")]
        not_after: Option<String>,
        /// Until when its owner may put it off; by default for a week
        #[arg(long, value_name = "TIME")]
        deadline: Option<String>,
        /// What it is, for people
        #[arg(long, value_name = "TEXT")]
        description: Option<String>,
    },
    /// Let an instance know by its metadata that it is going to be interrupted, and do nothing to it
    Notify {
        /// Id or name of an instance
        instance: String,
        /// What of
        notice: Notice,
        /// How it is going to be interrupted [default: terminate]
        #[arg(long)]
        action: Option<Interruption>,
        /// When, such as 2026-12-24T18:00:00Z [default: in two minutes; of a recommendation: now]
        #[arg(long, value_name = "TIME")]
        time: Option<String>,
    },
    /// Take back events that have not happened yet
    Cancel {
        /// Ids of events
        #[arg(required = true, value_name = "EVENT")]
        events: Vec<String>,
    },
}

/// What an instance is let know.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub enum Notice {
    /// It is going to be interrupted.
    Interruption,
    /// It may be interrupted soon: its work is better done elsewhere.
    Rebalance,
    /// Nothing of what it was let know is true any more.
    None,
}

/// How an instance is interrupted.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub enum Interruption {
    /// Its memory is kept.
    Hibernate,
    /// It can be started again.
    Stop,
    /// It is gone.
    Terminate,
}

/// As it is typed.
fn word(value: impl ValueEnum) -> String {
    value.to_possible_value().map(|value| value.get_name().to_owned()).unwrap_or_default()
}

impl Maintenance {
    /// Does it; returns the exit status.
    pub fn execute(self, global: &Global) -> anyhow::Result<u8> {
        let client = global.client()?;
        match self {
            Self::Status { instances } => {
                let ids = match instances.is_empty() {
                    true => Vec::new(),
                    false => names::instances(&client, &instances)?,
                };
                let parameters =
                    Parameters::default().with("IncludeAllInstances", "true").with_list("InstanceId", &ids);
                let found = client.describe("DescribeInstanceStatus", parameters, "instanceStatusSet")?;
                global.show(&STATUSES, &found)?;
            }
            Self::Schedule { instance, code, not_before, not_after, deadline, description } => {
                let parameters = Parameters::default()
                    .with("InstanceId", names::instance(&client, &instance)?)
                    .with("Code", code)
                    .with("NotBefore", not_before)
                    .with_some("NotAfter", not_after)
                    .with_some("NotBeforeDeadline", deadline)
                    .with_some("Description", description);
                let made = client.call("InnkeeperScheduleEvent", parameters)?;
                global.show(&EVENTS, &[without_request(made)])?;
            }
            Self::Notify { instance, notice, action, time } => {
                let id = names::instance(&client, &instance)?;
                let parameters = Parameters::default()
                    .with("InstanceId", id.as_str())
                    .with("Notice", word(notice))
                    .with_some("InterruptionAction", action.map(word))
                    .with_some("Time", time);
                client.call("InnkeeperNotifyInstance", parameters)?;
                global.done("instanceId", &[id])?;
            }
            Self::Cancel { events } => {
                for event in &events {
                    let parameters = Parameters::default().with("InstanceEventId", event.as_str());
                    client.call("InnkeeperCancelEvent", parameters)?;
                }
                global.done("instanceEventId", &events)?;
            }
        }
        Ok(0)
    }
}
