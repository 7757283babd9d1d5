//! Forgets what need not be known any longer: instances that were terminated a while ago, and answers that nobody will
//! ask for again.

use std::sync::Arc;
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use tokio::time::{MissedTickBehavior, interval};

use super::Agent;
use crate::ids::InstanceId;
use crate::records::{Idempotency, Instance, InstanceState, NetworkInterface, Tags};
use crate::state::{State, World};
use crate::store::StoreError;

/// How often it looks.
const PERIOD: Duration = Duration::from_secs(10);

/// How long a client token is good for.
const TOKENS: SignedDuration = SignedDuration::from_hours(24);

/// Tidies up again and again, until it is dropped.
pub async fn keep(agent: Arc<Agent>) {
    let mut ticks = interval(PERIOD);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        let agent = Arc::clone(&agent);
        let retention =
            SignedDuration::from_secs(agent.config.terminated_retention.try_into().unwrap_or(i64::MAX));
        let done = tokio::task::spawn_blocking(move || tidy(&agent.state, retention, Timestamp::now())).await;
        match done {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::error!(%error, cause = %error.cause, "old records stay for now"),
            Err(error) => tracing::error!(%error, "old records stay for now"),
        }
    }
}

/// Forgets what is old, in one transaction.
fn tidy(state: &State, retention: SignedDuration, now: Timestamp) -> Result<(), StoreError> {
    // Mostly there is nothing to do, and nobody has to wait for us to find that out.
    if Old::among(&state.read(), retention, now).is_empty() {
        return Ok(());
    }
    state.change(|draft| {
        let old = Old::among(draft, retention, now);
        for id in &old.instances {
            tracing::info!(instance = %id, "forgetting a terminated instance");
            draft.remove::<Instance>(id);
            draft.remove::<Tags>(id);
        }
        for interface in &old.interfaces {
            draft.remove::<NetworkInterface>(interface);
            draft.remove::<Tags>(interface);
        }
        for token in &old.tokens {
            draft.remove::<Idempotency>(token);
        }
        Ok(())
    })
}

/// What is to be forgotten.
#[derive(Debug, PartialEq)]
struct Old {
    instances: Vec<InstanceId>,
    interfaces: Vec<String>,
    tokens: Vec<String>,
}

impl Old {
    fn among(world: &World, retention: SignedDuration, now: Timestamp) -> Self {
        let is_over = |since: Timestamp, time: SignedDuration| now.duration_since(since) >= time;
        let terminated = world.all::<Instance>().filter(|instance| {
            instance.lifecycle.state == InstanceState::Terminated
                && is_over(instance.lifecycle.since, retention)
        });
        let instances: Vec<InstanceId> = terminated.map(|instance| instance.id.clone()).collect();
        let interfaces = if instances.is_empty() {
            Vec::new()
        } else {
            let theirs = world.all::<NetworkInterface>().filter(|interface| {
                interface.delete_on_termination && instances.binary_search(&interface.instance).is_ok()
            });
            theirs.map(|interface| interface.id.to_string()).collect()
        };
        let tokens = world.all::<Idempotency>().filter(|token| is_over(token.created, TOKENS));
        Self { instances, interfaces, tokens: tokens.map(|token| token.key.clone()).collect() }
    }

    fn is_empty(&self) -> bool {
        self.instances.is_empty() && self.tokens.is_empty()
    }
}
