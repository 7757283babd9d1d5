//! The changes of instances' states, in the form of Amazon EventBridge's "EC2 Instance State-change Notification", as a
//! stream of server-sent events.
//!
//! `GET /events`, signed like any request, answers with those that are kept, and goes on with what comes. `after=N`, or
//! the header `Last-Event-ID`, leaves out what was seen already; `follow=false` ends where the present begins. Nothing is
//! kept for a reader: one that falls behind reads the records later, and is told of how many are not there any more.

use std::sync::Arc;
use std::time::Duration;

use serde_json::{Value, json};
use tokio::sync::broadcast::{self, error::RecvError};
use tokio::time::{Instant, timeout_at};

use crate::records::StateChange;
use crate::state::{Changed, State, World};

/// Where they are.
pub const PATH: &str = "/events";

/// After how long a stream on which nothing happens says so, by which the one side notices that the other is gone.
pub const KEEP_ALIVE: Duration = Duration::from_secs(15);

/// How many events go into one piece of a stream.
const PIECE: usize = 100;

/// An event as EventBridge has it.
pub fn notification(change: &StateChange, region: &str) -> Value {
    let StateChange { id, time, owner, instance, state, .. } = change;
    json!({
        "version": "0",
        "id": id,
        "detail-type": "EC2 Instance State-change Notification",
        "source": "aws.ec2",
        "account": owner,
        "time": time.strftime("%Y-%m-%dT%H:%M:%SZ").to_string(),
        "region": region,
        "resources": [format!("arn:aws:ec2:{region}:{owner}:instance/{instance}")],
        "detail": { "instance-id": instance, "state": state.name() },
    })
}

/// What a reader asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wish {
    /// Whose events.
    pub account: String,
    /// The number of the last one that was seen already.
    pub after: u64,
    /// Whether to go on with what comes.
    pub follow: bool,
}

/// A reader's place in the events.
pub struct Follower {
    state: Arc<State>,
    changes: broadcast::Receiver<Changed>,
    region: String,
    wish: Wish,
}

impl Follower {
    /// Begins to read.
    pub fn new(state: Arc<State>, region: &str, mut wish: Wish) -> Self {
        // First, so that nothing falls between what is read and what is heard of.
        let changes = state.watch();
        // A number that was not given out yet is from another store.
        wish.after = wish.after.min(newest(&state.read()));
        Self { state, changes, region: region.to_owned(), wish }
    }

    /// The next piece of the stream, when there is one; none at its end.
    pub async fn next(&mut self) -> Option<String> {
        let silent_until = Instant::now() + KEEP_ALIVE;
        loop {
            let world = self.state.read();
            let piece = self.piece(&world);
            if !piece.is_empty() {
                return Some(piece);
            }
            // What was left out was another account's.
            if self.wish.after < newest(&world) {
                continue;
            }
            drop(world);
            if !self.wish.follow {
                return None;
            }
            match timeout_at(silent_until, self.changes.recv()).await {
                Ok(Ok(_) | Err(RecvError::Lagged(_))) => {}
                Ok(Err(RecvError::Closed)) => return None,
                Err(_) => return Some(":\n\n".to_owned()),
            }
        }
    }

    /// What there is now, a part of it if it is much.
    fn piece(&mut self, world: &World) -> String {
        let Wish { account, after, .. } = &mut self.wish;
        let mut piece = String::new();
        for (count, change) in world.after::<StateChange>(&StateChange::key_of(*after)).enumerate() {
            let number = change.ordinal();
            let lost = number.saturating_sub(*after + 1);
            // Who has seen nothing yet has lost nothing.
            if lost > 0 && *after > 0 {
                piece += &format!("event: lost\ndata: {}\n\n", json!({ "lost": lost }));
            }
            if change.owner == *account {
                piece += &format!("id: {number}\ndata: {}\n\n", notification(change, &self.region));
            }
            *after = number;
            if count + 1 == PIECE {
                break;
            }
        }
        piece
    }
}

fn newest(world: &World) -> u64 {
    world.last::<StateChange>().map_or(0, |last| last.ordinal())
}

#[cfg(test)]
mod tests {
    use jiff::Timestamp;

    use super::*;
    use crate::records::{Instance, InstanceState, Lifecycle};
    use crate::serve::Agent;
    use crate::state::journal::KEPT;
    use crate::store::StoreError;

    const ACCOUNT: &str = "000000000000";

    fn instance(number: u8) -> Instance {
        let (vpc, subnet) = ("vpc-00000000000000000", "subnet-00000000000000000");
        serde_json::from_value(json!({
            "id": format!("i-{number:017x}"), "reservation": "r-00000000000000000", "owner": ACCOUNT,
            "image": "ami-00000000000000000", "instance_type": "t3.micro", "launch_index": 0,
            "launch_time": Timestamp::UNIX_EPOCH, "availability_zone": "us-east-1a", "vpc": vpc, "subnet": subnet,
            "network_interface": "eni-00000000000000000", "root_device_name": "/dev/xvda", "block_devices": [],
            "shutdown_behavior": "stop", "disable_api_termination": false, "disable_api_stop": false,
            "ebs_optimized": false, "monitoring": false,
            "metadata_options": {
                "http_tokens": "optional", "http_put_response_hop_limit": 1, "http_endpoint": "enabled",
                "instance_metadata_tags": "disabled",
            },
            "lifecycle": Lifecycle::launch(Timestamp::UNIX_EPOCH),
        }))
        .unwrap()
    }

    fn put(state: &State, number: u8, is_in: InstanceState) {
        let done: Result<(), StoreError> = state.change(|draft| {
            let mut instance = instance(number);
            instance.lifecycle.state = is_in;
            draft.put(instance);
            Ok(())
        });
        done.unwrap();
    }

    fn follower(agent: &Agent, account: &str, after: u64, follow: bool) -> Follower {
        Follower::new(agent.state.clone(), "us-east-1", Wish { account: account.into(), after, follow })
    }

    /// The numbers and states of a stream's events, until its end.
    async fn told(mut follower: Follower) -> Vec<(u64, String)> {
        let mut text = String::new();
        while let Some(piece) = follower.next().await {
            text += &piece;
        }
        events(&text)
    }

    fn events(text: &str) -> Vec<(u64, String)> {
        let event = |event: &str| {
            let number = event.split("id: ").nth(1)?.lines().next()?.parse().ok()?;
            let data: Value = serde_json::from_str(event.split("data: ").nth(1)?).ok()?;
            Some((number, data["detail"]["state"].as_str()?.to_owned()))
        };
        text.split_terminator("\n\n").filter_map(event).collect()
    }

    #[test]
    fn a_notification_is_as_eventbridge_has_it() {
        let change = StateChange {
            number: StateChange::key_of(7),
            id: "7bf73129-1428-4cd3-a780-95db273d1602".into(),
            time: "2026-11-28T12:00:01.5Z".parse().unwrap(),
            owner: ACCOUNT.into(),
            instance: "i-00000000000000001".parse().unwrap(),
            state: InstanceState::ShuttingDown,
        };
        let expected = json!({
            "version": "0",
            "id": "7bf73129-1428-4cd3-a780-95db273d1602",
            "detail-type": "EC2 Instance State-change Notification",
            "source": "aws.ec2",
            "account": ACCOUNT,
            "time": "2026-11-28T12:00:01Z",
            "region": "us-east-1",
            "resources": ["arn:aws:ec2:us-east-1:000000000000:instance/i-00000000000000001"],
            "detail": { "instance-id": "i-00000000000000001", "state": "shutting-down" },
        });
        assert_eq!(notification(&change, "us-east-1"), expected);
    }

    #[tokio::test]
    async fn every_change_is_told_once_and_in_order() {
        use InstanceState::{Pending, Running, Stopped, Stopping};
        let agent = Agent::for_tests();
        for state in [Pending, Running, Running, Stopping, Stopped] {
            put(&agent.state, 1, state);
        }
        let all = [(1, "pending"), (2, "running"), (3, "stopping"), (4, "stopped")];
        let all = all.map(|(number, state)| (number, state.to_owned()));
        assert_eq!(told(follower(&agent, ACCOUNT, 0, false)).await, all);
        assert_eq!(told(follower(&agent, ACCOUNT, 2, false)).await, all[2..]);
        assert_eq!(told(follower(&agent, ACCOUNT, 99, false)).await, []);
        assert_eq!(told(follower(&agent, "111111111111", 0, false)).await, []);
    }

    #[tokio::test]
    async fn a_follower_hears_of_what_comes() {
        let agent = Agent::for_tests();
        let mut follower = follower(&agent, ACCOUNT, 0, true);
        put(&agent.state, 1, InstanceState::Pending);
        assert_eq!(events(&follower.next().await.unwrap()), [(1, "pending".to_owned())]);
        let state = agent.state.clone();
        let later = tokio::task::spawn_blocking(move || put(&state, 1, InstanceState::Running));
        assert_eq!(events(&follower.next().await.unwrap()), [(2, "running".to_owned())]);
        later.await.unwrap();
    }

    #[tokio::test]
    async fn who_is_too_slow_is_told_how_much_is_lost() {
        let agent = Agent::for_tests();
        put(&agent.state, 1, InstanceState::Pending);
        let mut slow = follower(&agent, ACCOUNT, 0, true);
        assert_eq!(events(&slow.next().await.unwrap()).len(), 1);
        let states = [InstanceState::Running, InstanceState::Stopped];
        for index in 0..KEPT + 10 {
            put(&agent.state, 1, states[index % 2]);
        }
        assert_eq!(agent.state.read().all::<StateChange>().len(), KEPT);
        let piece = slow.next().await.unwrap();
        assert!(piece.starts_with("event: lost\ndata: {\"lost\":10}\n\nid: 12\n"), "{piece}");
        assert_eq!(events(&piece).len(), PIECE);
        let rest = told(follower(&agent, ACCOUNT, 12, false)).await;
        assert_eq!((rest.len(), rest.last().unwrap().0), (KEPT - 1, KEPT as u64 + 11));
    }
}
