//! InnkeeperTracePackets: what becomes of an instance's packets, and why some are dropped.

use std::time::Duration;

use innkeeper_network::trace::{Fate, Traced};
use serde::{Deserialize, Serialize};

use crate::actions::lookup::find_own;
use crate::instances::interfaces;
use crate::query::{Action, ApiError, Context};
use crate::records::{Instance, NetworkInterface};

/// How long one request looks by default, in seconds, and at most.
const SECONDS: (u64, u64) = (2, 10);

/// Looks for some time at the packets from and to an instance's interfaces.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase", deny_unknown_fields)]
pub struct TracePackets {
    instance_id: String,
    seconds: Option<u64>,
    /// Whether those that pass are told too.
    #[serde(default)]
    all: bool,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Response {
    packet_set: Vec<Item>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Item {
    /// Milliseconds since the look began.
    milliseconds: u64,
    /// Where it came from; none is from outside.
    network_interface_id: Option<String>,
    /// `passed` or `dropped`.
    fate: &'static str,
    description: String,
}

impl From<&Traced> for Item {
    fn from(traced: &Traced) -> Self {
        Self {
            milliseconds: u64::try_from(traced.at.as_millis()).unwrap_or(u64::MAX),
            network_interface_id: traced.from.clone(),
            fate: if traced.fate == Fate::Passed { "passed" } else { "dropped" },
            description: traced.to_string(),
        }
    }
}

impl TracePackets {
    fn time(&self) -> Result<Duration, ApiError> {
        let (usual, most) = SECONDS;
        match self.seconds.unwrap_or(usual) {
            seconds if (1..=most).contains(&seconds) => Ok(Duration::from_secs(seconds)),
            other => Err(ApiError::invalid(other, "seconds", format!("Expecting 1 to {most}."))),
        }
    }
}

impl Action for TracePackets {
    const NAME: &'static str = "InnkeeperTracePackets";
    type Response = Response;

    fn check(&self, context: Context<'_>) -> Result<(), ApiError> {
        self.time()?;
        find_own::<Instance>(&context.agent.state.read(), context, &self.instance_id).map(drop)
    }

    fn run(self, context: Context<'_>) -> Result<Response, ApiError> {
        let time = self.time()?;
        let world = context.agent.state.read();
        let id = find_own::<Instance>(&world, context, &self.instance_id)?.id.clone();
        let own = interfaces(&world, &id);
        let own: Vec<_> =
            own.iter().filter_map(|interface| world.get::<NetworkInterface>(interface).cloned()).collect();
        // At once, each on a thread of its own.
        let data_plane = &context.agent.data_plane;
        let looked = std::thread::scope(|scope| {
            let looks: Vec<_> =
                own.iter().map(|interface| scope.spawn(|| data_plane.trace(interface, time))).collect();
            looks.into_iter().map(|look| look.join()).collect::<Vec<_>>()
        });
        let mut traced = Vec::new();
        for look in looked {
            let look = look.map_err(|_| ApiError::internal(std::io::Error::other("a look has failed")))?;
            match look.map_err(ApiError::internal)? {
                Some(packets) => traced.extend(packets),
                None => {
                    let message = format!("The instance '{id}' is not running: it has no packets.");
                    return Err(ApiError::new("IncorrectInstanceState", message));
                }
            }
        }
        traced.retain(|packet| self.all || packet.fate != Fate::Passed);
        traced.sort_by_key(|packet| packet.at);
        Ok(Response { packet_set: traced.iter().map(Item::from).collect() })
    }
}

#[cfg(test)]
mod tests {
    use crate::actions::testing::Client;
    use crate::records::InstanceState;

    #[test]
    fn what_cannot_be_looked_at_is_refused() {
        let client = Client::new();
        let stopped = client.instance(InstanceState::Stopped);
        client.refuses(&[
            (&format!("InnkeeperTracePackets&InstanceId={stopped}"), "IncorrectInstanceState"),
            (&format!("InnkeeperTracePackets&InstanceId={stopped}&Seconds=0"), "InvalidParameterValue"),
            (&format!("InnkeeperTracePackets&InstanceId={stopped}&Seconds=99"), "InvalidParameterValue"),
            ("InnkeeperTracePackets&InstanceId=i-12345678", "InvalidInstanceID.NotFound"),
        ]);
    }
}
