//! Scheduled events: what an operator has announced for an instance, as EC2 announces maintenance. When its time has come,
//! an event is carried out, once, and stays listed as completed.

use jiff::{SignedDuration, Timestamp};

use crate::records::{EventCode, Instance, ScheduledEvent};
use crate::state::{Draft, World};

/// How long a completed event is listed, as EC2 does it.
const LISTED: SignedDuration = SignedDuration::from_hours(7 * 24);

/// The events whose time has come, in the order in which they were announced for.
fn due(world: &World, now: Timestamp) -> Vec<ScheduledEvent> {
    let is_due = |event: &ScheduledEvent| event.completed.is_none() && event.takes_effect() <= now;
    let mut due: Vec<ScheduledEvent> =
        world.all::<ScheduledEvent>().filter(|event| is_due(event)).map(|event| (**event).clone()).collect();
    due.sort_by_key(|event| event.not_before);
    due
}

/// The events that nobody needs to know of any more.
fn old(world: &World, now: Timestamp) -> Vec<String> {
    let is_old = |event: &ScheduledEvent| {
        let is_over = event.completed.is_some_and(|completed| now.duration_since(completed) >= LISTED);
        is_over || world.get::<Instance>(&event.instance).is_none()
    };
    let old = world.all::<ScheduledEvent>().filter(|event| is_old(event));
    old.map(|event| event.id.to_string()).collect()
}

/// Whether there is anything to do.
pub fn is_time(world: &World, now: Timestamp) -> bool {
    !due(world, now).is_empty() || !old(world, now).is_empty()
}

/// Carries out what is due, and forgets what is old. A guest that is stopped has `patience` to switch itself off.
pub fn carry_out(draft: &mut Draft, patience: SignedDuration, now: Timestamp) {
    for event in due(draft, now) {
        tracing::info!(event = %event.id, instance = %event.instance, code = event.code.name(), "a scheduled event");
        draft.update::<Instance>(&event.instance, |instance| {
            let endings = instance.endings();
            // One that does not run has nothing that could be interrupted.
            let _ = match event.code {
                EventCode::InstanceReboot => instance.lifecycle.reboot(),
                EventCode::InstanceStop | EventCode::InstanceRetirement => {
                    instance.lifecycle.retire(endings, patience, now)
                }
                EventCode::SystemReboot | EventCode::SystemMaintenance => Ok(()),
            };
        });
        draft.put(ScheduledEvent { completed: Some(now), ..event });
    }
    for id in old(draft, now) {
        draft.remove::<ScheduledEvent>(id);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::actions::testing::Client;
    use crate::ids::InstanceEventId;
    use crate::records::{InstanceState, RootDeviceType, Step, StoreDisk};
    use crate::store::StoreError;

    const PATIENCE: SignedDuration = SignedDuration::from_secs(120);

    fn at(hour: i64) -> Timestamp {
        Timestamp::UNIX_EPOCH + SignedDuration::from_hours(hour)
    }

    fn run(client: &Client, hour: i64) {
        let done: Result<(), StoreError> = client.agent.state.change(|draft| {
            carry_out(draft, PATIENCE, at(hour));
            Ok(())
        });
        done.unwrap();
    }

    /// An instance in a state with an event at 10 hours, until 12.
    fn announced(client: &Client, state: InstanceState, root: RootDeviceType, code: EventCode) -> Instance {
        let id = client.instance(state);
        let mut instance = Instance::clone(client.agent.state.read().get::<Instance>(&id).unwrap());
        instance.lifecycle.step = None;
        if root == RootDeviceType::InstanceStore {
            let root = StoreDisk {
                name: StoreDisk::ROOT.into(),
                device_name: None,
                size: 1,
                layer: None,
                source: None,
            };
            instance.instance_store.push(root);
        }
        client.put(instance.clone());
        client.put(ScheduledEvent {
            id: InstanceEventId::random(),
            instance: id,
            code,
            description: "x".into(),
            not_before: at(10),
            not_after: Some(at(12)),
            not_before_deadline: Some(at(20)),
            completed: None,
            canceled: false,
        });
        instance
    }

    #[test]
    fn an_event_does_what_it_says_when_its_time_has_come() {
        use EventCode::{InstanceReboot, InstanceRetirement, InstanceStop, SystemMaintenance, SystemReboot};
        use InstanceState::{Running, ShuttingDown, Stopped, Stopping};
        use RootDeviceType::{Ebs, InstanceStore};
        let button = Step::PressButton { deadline: at(10) + PATIENCE };
        for (from, root, code, to, step) in [
            (Running, Ebs, InstanceReboot, Running, Some(Step::Reboot)),
            (Running, Ebs, InstanceStop, Stopping, Some(button.clone())),
            (Running, Ebs, InstanceRetirement, Stopping, Some(button)),
            (Running, InstanceStore, InstanceRetirement, ShuttingDown, Some(Step::EndVmm)),
            (Running, Ebs, SystemReboot, Running, None),
            (Running, Ebs, SystemMaintenance, Running, None),
            (Stopped, Ebs, InstanceStop, Stopped, None),
            (Stopped, Ebs, InstanceReboot, Stopped, None),
        ] {
            let client = Client::new();
            let before = announced(&client, from, root, code);
            run(&client, 9);
            let instance = |client: &Client| {
                Instance::clone(client.agent.state.read().get::<Instance>(&before.id).unwrap())
            };
            assert_eq!(instance(&client), before, "{code:?}");
            // What is the host's own is over when it is said to be.
            let waits = matches!(code, SystemReboot | SystemMaintenance);
            run(&client, 10);
            assert_eq!(is_time(&client.agent.state.read(), at(12)), waits, "{code:?}");
            run(&client, 12);
            let after = instance(&client).lifecycle;
            assert_eq!((after.state, after.step), (to, step), "{from:?} {code:?}");
            if from == Running && to != Running {
                assert_eq!(after.state_reason.unwrap().code, "Server.ScheduledStop");
            }
            assert!(!is_time(&client.agent.state.read(), at(12 + 6 * 24)));
            run(&client, 12 + 7 * 24);
            assert!(client.agent.state.read().all::<ScheduledEvent>().next().is_none());
        }
    }

    #[test]
    fn an_event_goes_with_its_instance() {
        let client = Client::new();
        let instance =
            announced(&client, InstanceState::Running, RootDeviceType::Ebs, EventCode::InstanceStop);
        let done: Result<(), StoreError> = client.agent.state.change(|draft| {
            draft.remove::<Instance>(&instance.id);
            Ok(())
        });
        done.unwrap();
        assert!(is_time(&client.agent.state.read(), at(0)));
        run(&client, 0);
        assert!(client.agent.state.read().all::<ScheduledEvent>().next().is_none());
    }
}
