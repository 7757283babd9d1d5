//! An instance's life as a pure state machine: what may be asked, what is to be done, what follows from what was seen.
//!
//! ```text
//!            launch                 start
//!              |                      |
//!              v        guest runs    |
//!           pending ---------------> running <--.
//!              |        host reboots |  |  |    | reboot
//!              | cannot start        |  |  '----'
//!              v                     |  | stop, power-off, VMM gone
//!         stopping <-----------------|--'
//!              |                     | terminate
//!              v       terminate     v
//!           stopped -----------> shutting-down ----> terminated
//! ```
//!
//! An instance whose root device is in its instance store has nothing that could be started again: where another would
//! be stopped, it is terminated.
//!
//! A state with work to do has a [`Step`]. It is recorded before it is done, safe to be done again, and replaced by the
//! next one when it is done; so whoever finds the record knows how to go on.

use jiff::{SignedDuration, Timestamp};

use crate::records::{Endings, InstanceState, Lifecycle, ShutdownBehavior, StateReason, Step};

/// EC2's reasons.
mod reason {
    pub const USER_SHUTDOWN: (&str, &str) = ("Client.UserInitiatedShutdown", "User initiated shutdown");
    pub const INSTANCE_SHUTDOWN: (&str, &str) =
        ("Client.InstanceInitiatedShutdown", "Instance initiated shutdown");
    pub const SCHEDULED: (&str, &str) = ("Server.ScheduledStop", "Stopped due to a scheduled retirement");
    pub const INTERNAL: &str = "Server.InternalError";
}

/// Why a request does not go with the state of an instance.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Refused(pub InstanceState);

/// What was seen or done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Observation {
    /// A step is done.
    Done(Step),
    /// A step cannot be done, or its time is over.
    Failed(Step, String),
    /// The guest has switched itself off.
    PoweredOff,
    /// The VMM has died, or could not go on.
    Died(String),
}

impl Lifecycle {
    /// A new instance's.
    pub fn launch(now: Timestamp) -> Self {
        Self {
            state: InstanceState::Pending,
            step: Some(Step::PrepareVolumes),
            state_reason: None,
            transition_reason: String::new(),
            since: now,
            has_run: false,
        }
    }

    fn enter(&mut self, state: InstanceState, step: Option<Step>, now: Timestamp) {
        if self.state != state {
            self.since = now;
        }
        self.state = state;
        self.step = step;
    }

    fn because(&mut self, (code, message): (&str, &str), transition: String) {
        self.state_reason = Some(StateReason::new(code, message));
        self.transition_reason = transition;
    }

    /// StartInstances. Without effect on one that is on its way or there.
    pub fn start(&mut self, now: Timestamp) -> Result<(), Refused> {
        match self.state {
            InstanceState::Stopped => {
                self.state_reason = None;
                self.transition_reason = String::new();
                self.enter(InstanceState::Pending, Some(Step::StartVmm), now);
                Ok(())
            }
            InstanceState::Pending | InstanceState::Running => Ok(()),
            other => Err(Refused(other)),
        }
    }

    /// StopInstances. A guest has until the deadline to switch itself off, if it is not forced.
    pub fn stop(&mut self, force: bool, patience: SignedDuration, now: Timestamp) -> Result<(), Refused> {
        let step = if force {
            Step::EndVmm
        } else {
            Step::PressButton { deadline: now.saturating_add(patience).unwrap_or(Timestamp::MAX) }
        };
        match self.state {
            InstanceState::Running => {
                self.because(reason::USER_SHUTDOWN, by_user(now));
                self.enter(InstanceState::Stopping, Some(step), now);
                Ok(())
            }
            // A second, impatient request.
            InstanceState::Stopping if force => {
                self.step = Some(step);
                Ok(())
            }
            InstanceState::Stopping | InstanceState::Stopped => Ok(()),
            other => Err(Refused(other)),
        }
    }

    /// RebootInstances.
    pub fn reboot(&mut self) -> Result<(), Refused> {
        match self.state {
            InstanceState::Running => {
                self.step = Some(Step::Reboot);
                Ok(())
            }
            other => Err(Refused(other)),
        }
    }

    /// TerminateInstances. Always possible, and without effect on one that is on its way or there.
    pub fn terminate(&mut self, now: Timestamp) {
        match self.state {
            InstanceState::ShuttingDown | InstanceState::Terminated => {}
            _ => {
                self.because(reason::USER_SHUTDOWN, by_user(now));
                self.enter(InstanceState::ShuttingDown, Some(Step::EndVmm), now);
            }
        }
    }

    /// A scheduled event: it is stopped, or terminated if it cannot be.
    pub fn retire(
        &mut self,
        endings: Endings,
        patience: SignedDuration,
        now: Timestamp,
    ) -> Result<(), Refused> {
        if self.state != InstanceState::Running {
            return Err(Refused(self.state));
        }
        if endings.can_stop() {
            self.stop(false, patience, now)?;
        } else {
            self.terminate(now);
        }
        self.because(reason::SCHEDULED, format!("{} ({})", reason::SCHEDULED.0, instant(now)));
        Ok(())
    }

    /// The host was started anew, and no VMM has outlived that: what ran starts again, and what was on its way goes on
    /// with its step. Nobody needs to press a button any more.
    pub fn host_rebooted(&mut self, endings: Endings, now: Timestamp) {
        match self.state {
            InstanceState::Running if !endings.can_stop() => {
                self.fail(
                    "The host was started anew, and the instance store with its root device is lost",
                    endings,
                    now,
                );
            }
            InstanceState::Running => {
                self.state_reason = None;
                self.transition_reason = String::new();
                self.enter(InstanceState::Pending, Some(Step::StartVmm), now);
            }
            InstanceState::Stopping => self.step = Some(Step::EndVmm),
            InstanceState::Pending
            | InstanceState::ShuttingDown
            | InstanceState::Stopped
            | InstanceState::Terminated => {}
        }
    }

    /// Moves on after what was seen. What does not go with the state or the step was overtaken by a request, and is
    /// nothing. A step on the way down that fails stays: whoever does it tries again.
    pub fn observe(&mut self, what: Observation, endings: Endings, now: Timestamp) {
        use InstanceState::{Pending, Running, ShuttingDown, Stopped, Stopping, Terminated};
        match what {
            Observation::Done(step) if self.step.as_ref() == Some(&step) => match (self.state, step) {
                (Pending, Step::PrepareVolumes) => self.step = Some(Step::StartVmm),
                (Pending, Step::StartVmm) => {
                    self.has_run = true;
                    self.enter(Running, None, now);
                }
                (Running, _) => self.step = None,
                (Stopping, Step::PressButton { .. }) => self.step = Some(Step::EndVmm),
                (Stopping, _) => self.enter(Stopped, None, now),
                (ShuttingDown, Step::EndVmm) => self.step = Some(Step::ReleaseVolumes),
                (ShuttingDown, _) => self.enter(Terminated, None, now),
                _ => {}
            },
            Observation::Failed(step, why) if self.step.as_ref() == Some(&step) => match (self.state, step) {
                (Pending, _) => self.fail(&why, endings, now),
                (Running, _) => self.step = None,
                (Stopping, Step::PressButton { .. }) => self.step = Some(Step::EndVmm),
                _ => {}
            },
            Observation::PoweredOff if self.state == Running => {
                self.because(reason::INSTANCE_SHUTDOWN, String::new());
                let state = match endings.power_off {
                    ShutdownBehavior::Stop if endings.can_stop() => Stopping,
                    _ => ShuttingDown,
                };
                self.enter(state, Some(Step::EndVmm), now);
            }
            Observation::Died(why) if matches!(self.state, Pending | Running) => {
                self.fail(&why, endings, now)
            }
            // What was asked to go has gone.
            Observation::PoweredOff | Observation::Died(_) if self.state == Stopping => {
                self.step = Some(Step::EndVmm);
            }
            _ => {}
        }
    }

    /// The host's fault. What never ran is terminated, as in EC2.
    fn fail(&mut self, why: &str, endings: Endings, now: Timestamp) {
        self.because((reason::INTERNAL, why), format!("{} ({})", reason::INTERNAL, instant(now)));
        let can_stop = self.has_run && endings.can_stop();
        let state = if can_stop { InstanceState::Stopping } else { InstanceState::ShuttingDown };
        self.enter(state, Some(Step::EndVmm), now);
    }
}

/// `User initiated (2026-11-21 10:00:00 GMT)`.
fn by_user(now: Timestamp) -> String {
    format!("User initiated ({})", instant(now))
}

fn instant(now: Timestamp) -> impl std::fmt::Display {
    now.strftime("%Y-%m-%d %H:%M:%S GMT")
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::records::RootDeviceType;

    const STOPS: Endings = Endings { power_off: ShutdownBehavior::Stop, root: RootDeviceType::Ebs };
    const TERMINATES: Endings = Endings { power_off: ShutdownBehavior::Terminate, ..STOPS };
    const STORE: Endings = Endings { root: RootDeviceType::InstanceStore, ..STOPS };

    const PATIENCE: SignedDuration = SignedDuration::from_secs(120);

    fn now() -> Timestamp {
        Timestamp::from_second(1_795_000_000).unwrap()
    }

    /// A lifecycle after the recorded steps were done until there is none.
    fn settled(mut lifecycle: Lifecycle) -> Lifecycle {
        while let Some(step) = lifecycle.step.clone() {
            lifecycle.observe(Observation::Done(step), STOPS, now());
        }
        lifecycle
    }

    fn running() -> Lifecycle {
        settled(Lifecycle::launch(now()))
    }

    #[test]
    fn a_whole_life() {
        let mut lifecycle = running();
        assert_eq!(lifecycle.state, InstanceState::Running);
        lifecycle.reboot().unwrap();
        lifecycle = settled(lifecycle);
        assert_eq!(lifecycle.state, InstanceState::Running);
        lifecycle.stop(false, PATIENCE, now()).unwrap();
        assert_eq!(lifecycle.state, InstanceState::Stopping);
        assert_eq!(lifecycle.start(now()), Err(Refused(InstanceState::Stopping)));
        lifecycle = settled(lifecycle);
        assert_eq!(lifecycle.state, InstanceState::Stopped);
        assert_eq!(lifecycle.state_reason.clone().unwrap().code, "Client.UserInitiatedShutdown");
        assert!(
            lifecycle.transition_reason.starts_with("User initiated (20"),
            "{}",
            lifecycle.transition_reason
        );
        assert!(lifecycle.transition_reason.ends_with(" GMT)"));
        assert_eq!(lifecycle.reboot(), Err(Refused(InstanceState::Stopped)));
        lifecycle.start(now()).unwrap();
        assert_eq!((lifecycle.state, &lifecycle.state_reason), (InstanceState::Pending, &None));
        lifecycle = settled(lifecycle);
        assert_eq!(lifecycle.state, InstanceState::Running);
        lifecycle.terminate(now());
        lifecycle = settled(lifecycle);
        assert_eq!(lifecycle.state, InstanceState::Terminated);
        assert_eq!(lifecycle.start(now()), Err(Refused(InstanceState::Terminated)));
        assert_eq!(lifecycle.stop(true, PATIENCE, now()), Err(Refused(InstanceState::Terminated)));
    }

    #[test]
    fn a_power_off_follows_the_shutdown_behaviour() {
        for (endings, expected) in [
            (STOPS, InstanceState::Stopped),
            (TERMINATES, InstanceState::Terminated),
            (STORE, InstanceState::Terminated),
        ] {
            let mut lifecycle = running();
            lifecycle.observe(Observation::PoweredOff, endings, now());
            let lifecycle = settled(lifecycle);
            assert_eq!(lifecycle.state, expected);
            assert_eq!(lifecycle.state_reason.unwrap().code, "Client.InstanceInitiatedShutdown");
        }
    }

    #[test]
    fn a_dead_vmm_is_a_stopped_instance_with_a_reason() {
        let mut lifecycle = running();
        lifecycle.observe(Observation::Died("it was killed".into()), TERMINATES, now());
        let lifecycle = settled(lifecycle);
        assert_eq!(lifecycle.state, InstanceState::Stopped);
        let reason = lifecycle.state_reason.unwrap();
        assert_eq!(reason.code, "Server.InternalError");
        assert_eq!(reason.message, "Server.InternalError: it was killed");
    }

    #[test]
    fn a_root_device_in_the_instance_store_does_not_outlive_its_vmm() {
        let mut died = running();
        died.observe(Observation::Died("it was killed".into()), STORE, now());
        let mut host = running();
        host.host_rebooted(STORE, now());
        for lifecycle in [died, host] {
            assert_eq!(lifecycle.state, InstanceState::ShuttingDown);
            let lifecycle = settled(lifecycle);
            assert_eq!(lifecycle.state, InstanceState::Terminated);
            assert_eq!(lifecycle.state_reason.unwrap().code, "Server.InternalError");
        }
        // What has not run yet has nothing to lose, and goes on.
        let mut lifecycle = Lifecycle::launch(now());
        lifecycle.host_rebooted(STORE, now());
        assert_eq!(settled(lifecycle).state, InstanceState::Running);
    }

    #[test]
    fn what_cannot_start_goes_back_or_away() {
        let mut lifecycle = Lifecycle::launch(now());
        let why = "no space is left".to_owned();
        lifecycle.observe(Observation::Failed(Step::PrepareVolumes, why.clone()), STOPS, now());
        assert_eq!(settled(lifecycle).state, InstanceState::Terminated);
        let mut lifecycle = running();
        lifecycle.stop(true, PATIENCE, now()).unwrap();
        lifecycle = settled(lifecycle);
        lifecycle.start(now()).unwrap();
        lifecycle.observe(Observation::Failed(Step::StartVmm, why), STOPS, now());
        assert_eq!(settled(lifecycle).state, InstanceState::Stopped);
    }

    #[test]
    fn a_request_overtakes_the_step_that_is_being_done() {
        let mut lifecycle = Lifecycle::launch(now());
        lifecycle.terminate(now());
        lifecycle.observe(Observation::Done(Step::PrepareVolumes), STOPS, now());
        assert_eq!((lifecycle.state, lifecycle.step), (InstanceState::ShuttingDown, Some(Step::EndVmm)));
        let mut lifecycle = running();
        lifecycle.stop(false, PATIENCE, now()).unwrap();
        lifecycle.stop(true, PATIENCE, now()).unwrap();
        assert_eq!(lifecycle.step, Some(Step::EndVmm));
    }

    #[test]
    fn a_reboot_of_the_host_starts_what_ran_and_finishes_what_had_begun() {
        let stopping = |force| {
            let mut lifecycle = running();
            lifecycle.stop(force, PATIENCE, now()).unwrap();
            lifecycle
        };
        let mut rebooting = running();
        rebooting.reboot().unwrap();
        let mut terminating = running();
        terminating.terminate(now());
        use InstanceState::{Pending, Running, ShuttingDown, Stopped, Stopping, Terminated};
        for (mut lifecycle, then, finally) in [
            (Lifecycle::launch(now()), Pending, Running),
            (running(), Pending, Running),
            (rebooting, Pending, Running),
            (stopping(false), Stopping, Stopped),
            (stopping(true), Stopping, Stopped),
            (settled(stopping(true)), Stopped, Stopped),
            (terminating.clone(), ShuttingDown, Terminated),
            (settled(terminating), Terminated, Terminated),
        ] {
            let before = lifecycle.clone();
            lifecycle.host_rebooted(STOPS, now());
            assert_eq!(lifecycle.state, then, "{before:?}");
            assert!(!matches!(lifecycle.step, Some(Step::PressButton { .. } | Step::Reboot)), "{before:?}");
            assert_eq!(settled(lifecycle).state, finally, "{before:?}");
        }
    }

    /// Anything that can happen.
    fn happening() -> impl Strategy<Value = u8> {
        0..13u8
    }

    proptest! {
        /// Whatever happens in whatever order: a state on its way has a step, one at rest has none (but for a reboot),
        /// a terminated instance stays, and doing the recorded steps always leads to rest.
        #[test]
        fn no_instance_is_ever_stuck(happenings in proptest::collection::vec(happening(), 0..40)) {
            let mut lifecycle = Lifecycle::launch(now());
            for happening in happenings {
                let before = lifecycle.state;
                let step = lifecycle.step.clone().unwrap_or(Step::EndVmm);
                let endings = [STOPS, TERMINATES, STORE][usize::from(happening) % 3];
                match happening {
                    0 | 1 => lifecycle.observe(Observation::Done(step), endings, now()),
                    2 => lifecycle.observe(Observation::Failed(step, "x".into()), endings, now()),
                    3 => lifecycle.observe(Observation::Done(Step::StartVmm), endings, now()),
                    4 | 5 => lifecycle.observe(Observation::PoweredOff, endings, now()),
                    6 => lifecycle.observe(Observation::Died("x".into()), endings, now()),
                    7 => drop(lifecycle.start(now())),
                    8 => drop(lifecycle.stop(false, PATIENCE, now())),
                    9 => drop(lifecycle.stop(true, PATIENCE, now())),
                    10 => drop(lifecycle.reboot()),
                    11 => lifecycle.host_rebooted(endings, now()),
                    _ => lifecycle.terminate(now()),
                }
                use InstanceState::{Pending, Running, ShuttingDown, Stopped, Stopping, Terminated};
                match lifecycle.state {
                    Pending | Stopping | ShuttingDown => prop_assert!(lifecycle.step.is_some()),
                    Stopped | Terminated => prop_assert_eq!(&lifecycle.step, &None),
                    Running => prop_assert!(matches!(lifecycle.step, None | Some(Step::Reboot))),
                }
                prop_assert!(before != Terminated || lifecycle.state == Terminated);
                let rest = settled(lifecycle.clone());
                prop_assert!(matches!(rest.state, Running | Stopped | Terminated));
            }
        }
    }
}
