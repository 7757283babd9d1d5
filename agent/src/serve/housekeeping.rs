//! Carries out scheduled events, and forgets what need not be known any longer: instances that were terminated and NAT
//! gateways that were deleted a while ago, and answers that nobody will ask for again. With the last instance of an image that is gone, the image's files go.

use std::sync::Arc;
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use tokio::time::{MissedTickBehavior, interval};

use super::Agent;
use crate::ids::InstanceId;
use crate::records::{
    Idempotency, Instance, InstanceState, Meter, NatGateway, NatGatewayState, NetworkInterface, Notice, Tags,
};
use crate::state::{State, World};
use crate::store::StoreError;
use crate::{images, scheduled_events};

/// How often it looks.
const PERIOD: Duration = Duration::from_secs(10);

/// How long deleted NAT gateways stay listed.
const NAT_GATEWAYS: SignedDuration = SignedDuration::from_hours(1);

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
        let done = tokio::task::spawn_blocking(move || {
            let images = images::directory(&agent.config.state_directory);
            if let Err(error) = images::clean_up(&images, &agent.state) {
                tracing::error!(%error, "files of images that nobody needs stay for now");
            }
            let patience =
                SignedDuration::from_secs(agent.config.stop_timeout.try_into().unwrap_or(i64::MAX));
            carry_out_events(&agent.state, patience, Timestamp::now())?;
            tidy(&agent.state, retention, Timestamp::now())
        })
        .await;
        match done {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::error!(%error, cause = %error.cause, "old records stay for now"),
            Err(error) => tracing::error!(%error, "old records stay for now"),
        }
    }
}

/// Carries out scheduled events whose time has come, each in the transaction that says so.
fn carry_out_events(state: &State, patience: SignedDuration, now: Timestamp) -> Result<(), StoreError> {
    if !scheduled_events::is_time(&state.read(), now) {
        return Ok(());
    }
    state.change(|draft| {
        scheduled_events::carry_out(draft, patience, now);
        Ok(())
    })
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
            draft.remove::<Meter>(id);
            draft.remove::<Notice>(id);
        }
        for interface in &old.interfaces {
            draft.remove::<NetworkInterface>(interface);
            draft.remove::<Tags>(interface);
        }
        for gateway in &old.nat_gateways {
            draft.remove::<NatGateway>(gateway);
            draft.remove::<Tags>(gateway);
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
    nat_gateways: Vec<String>,
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
                interface.attachment.as_ref().is_some_and(|attachment| {
                    attachment.delete_on_termination && instances.binary_search(&attachment.instance).is_ok()
                })
            });
            theirs.map(|interface| interface.id.to_string()).collect()
        };
        let gateways = world.all::<NatGateway>().filter(
            |gateway| matches!(gateway.state, NatGatewayState::Deleted { at } if is_over(at, NAT_GATEWAYS)),
        );
        let nat_gateways = gateways.map(|gateway| gateway.id.to_string()).collect();
        let tokens = world.all::<Idempotency>().filter(|token| is_over(token.created, TOKENS));
        let tokens = tokens.map(|token| token.key.clone()).collect();
        Self { instances, interfaces, nat_gateways, tokens }
    }

    fn is_empty(&self) -> bool {
        self.instances.is_empty() && self.nat_gateways.is_empty() && self.tokens.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    const HOUR: SignedDuration = SignedDuration::from_hours(1);

    fn at(hour: i64) -> Timestamp {
        Timestamp::UNIX_EPOCH + SignedDuration::from_hours(hour)
    }

    /// An instance that has been in a state since an hour, its interface and the tags of both.
    fn put_instance(state: &State, number: u8, is_in: InstanceState, since: i64) {
        let id = format!("i-0000000000000000{number}");
        let interface = format!("eni-0000000000000000{number}");
        let (vpc, subnet) = ("vpc-00000000000000000", "subnet-00000000000000000");
        let instance: Instance = serde_json::from_value(json!({
            "id": id, "reservation": "r-00000000000000000", "owner": "000000000000",
            "image": "ami-00000000000000000", "instance_type": "t3.micro", "launch_index": 0,
            "launch_time": at(0), "availability_zone": "us-east-1a", "vpc": vpc, "subnet": subnet,
            "network_interface": interface,
            "root_device_name": "/dev/xvda", "block_devices": [], "shutdown_behavior": "stop",
            "disable_api_termination": false, "disable_api_stop": false, "ebs_optimized": false,
            "monitoring": false,
            "metadata_options": {
                "http_tokens": "optional", "http_put_response_hop_limit": 1, "http_endpoint": "enabled",
                "instance_metadata_tags": "disabled",
            },
            "lifecycle": { "has_run": true, "state": is_in, "transition_reason": "", "since": at(since) },
        }))
        .unwrap();
        let its_interface: NetworkInterface = serde_json::from_value(json!({
            "id": interface, "owner": "000000000000", "vpc": vpc, "subnet": subnet, "description": "",
            "mac": "02:00:00:00:00:01", "primary": { "address": "172.31.0.4" }, "secondary": [], "groups": [],
            "interface_type": "interface", "source_dest_check": true, "associate_public_address": false,
            "attachment": {
                "id": "eni-attach-00000000000000000", "instance": id, "device_index": 0, "attached": at(0),
                "status": "attached", "delete_on_termination": true,
            },
        }))
        .unwrap();
        let done: Result<(), StoreError> = state.change(|draft| {
            for resource in [&id, &interface] {
                draft.tag(resource, [("Name".to_owned(), "a".to_owned())]);
            }
            draft.put(instance);
            draft.put(its_interface);
            Ok(())
        });
        done.unwrap();
    }

    fn put_token(state: &State, key: &str, created: i64) {
        let done: Result<(), StoreError> = state.change(|draft| {
            let (request, resource) = (String::new(), String::new());
            draft.put(Idempotency { key: key.into(), request, resource, created: at(created) });
            Ok(())
        });
        done.unwrap();
    }

    fn keys(state: &State) -> Vec<String> {
        let documents = state.read().documents().unwrap().into_iter();
        let kinds = ["instance", "network-interface", "tags", "idempotency"];
        documents
            .filter(|found| kinds.iter().any(|kind| found.is_one_of(kind)))
            .map(|found| found.key)
            .collect()
    }

    #[test]
    fn what_is_old_is_forgotten_with_all_that_belongs_to_it() {
        let agent = Agent::for_tests();
        let state = &agent.state;
        put_instance(state, 1, InstanceState::Terminated, 8);
        put_instance(state, 2, InstanceState::Terminated, 9);
        put_instance(state, 3, InstanceState::Stopped, 1);
        let of = |number: u8| {
            let digits = format!("0000000000000000{number}");
            [
                format!("instance/i-{digits}"),
                format!("network-interface/eni-{digits}"),
                format!("tags/eni-{digits}"),
                format!("tags/i-{digits}"),
            ]
        };
        let expected = |numbers: &[u8]| {
            let mut expected: Vec<String> = numbers.iter().copied().flat_map(of).collect();
            expected.sort();
            expected
        };
        tidy(state, HOUR, at(8)).unwrap();
        assert_eq!(keys(state), expected(&[1, 2, 3]));
        tidy(state, HOUR, at(9)).unwrap();
        assert_eq!(keys(state), expected(&[2, 3]));
        tidy(state, HOUR, at(99)).unwrap();
        assert_eq!(keys(state), expected(&[3]));
    }

    #[test]
    fn a_deleted_nat_gateway_is_listed_for_an_hour() {
        let agent = Agent::for_tests();
        let gateway: NatGateway = serde_json::from_value(json!({
            "id": "nat-00000000000000001", "owner": "000000000000", "vpc": "vpc-00000000000000000",
            "subnet": "subnet-00000000000000000", "connectivity": "private", "private_address": "172.31.0.4",
            "network_interface": "eni-00000000000000000", "state": "available", "created": at(0),
        }))
        .unwrap();
        for (state, now, count) in [
            (NatGatewayState::Available, 99, 1),
            (NatGatewayState::Deleted { at: at(98) }, 98, 1),
            (NatGatewayState::Deleted { at: at(98) }, 99, 0),
        ] {
            let gateway = NatGateway { state, ..gateway.clone() };
            let done: Result<(), StoreError> = agent.state.change(|draft| {
                draft.put(gateway);
                Ok(())
            });
            done.unwrap();
            tidy(&agent.state, HOUR, at(now)).unwrap();
            assert_eq!(agent.state.read().all::<NatGateway>().len(), count);
        }
    }

    #[test]
    fn client_tokens_are_good_for_a_day() {
        let agent = Agent::for_tests();
        put_token(&agent.state, "a", 0);
        put_token(&agent.state, "b", 1);
        tidy(&agent.state, HOUR, at(24)).unwrap();
        assert_eq!(keys(&agent.state), ["idempotency/b"]);
    }

    #[test]
    fn nothing_is_written_if_nothing_is_old() {
        let agent = Agent::for_tests();
        let mut changes = agent.state.watch();
        tidy(&agent.state, HOUR, at(99)).unwrap();
        assert!(changes.try_recv().is_err());
    }
}
