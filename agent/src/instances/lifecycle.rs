//! An instance's life as a pure state machine: what may be asked, what is to be done, what follows from what was seen.
//!
//! ```text
//!            launch                 start
//!              |                      |
//!              v        guest runs    |
//!           pending ---------------> running <--.
//!              |                     |  |  |    | reboot
//!              | cannot start        |  |  '----'
//!              v                     |  | stop, power-off, VMM gone
//!         stopping <-----------------|--'
//!              |                     | terminate
//!              v       terminate     v
//!           stopped -----------> shutting-down ----> terminated
//! ```
//!
//! A state with work to do has a [`Step`]. It is recorded before it is done, safe to be done again, and replaced by the
//! next one when it is done; so whoever finds the record knows how to go on.

use jiff::{SignedDuration, Timestamp};

use crate::records::{InstanceState, Lifecycle, ShutdownBehavior, StateReason, Step};

/// EC2's reasons.
mod reason {
    pub const USER_SHUTDOWN: (&str, &str) = ("Client.UserInitiatedShutdown", "User initiated shutdown");
    pub const INSTANCE_SHUTDOWN: (&str, &str) =
        ("Client.InstanceInitiatedShutdown", "Instance initiated shutdown");
    pub const INTERNAL: &str = "Server.InternalError";
}

/// Why a request does not go with the state of an instance.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Refused(pub InstanceState);

/// What was seen or done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Observation {
    /// The recorded step is done.
    Done,
    /// The recorded step cannot be done.
    Failed(String),
    /// The guest has switched itself off.
    PoweredOff,
    /// The VMM has died, or could not go on.
    Died(String),
    /// The time for the recorded step is over.
    TimedOut,
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

    /// Moves on after what was seen. What does not go with the state was overtaken by a request, and is nothing.
    pub fn observe(&mut self, what: Observation, behavior: ShutdownBehavior, now: Timestamp) {
        use InstanceState::{Pending, Running, ShuttingDown, Stopped, Stopping, Terminated};
        match (self.state, self.step.clone(), what) {
            (Pending, Some(Step::PrepareVolumes), Observation::Done) => self.step = Some(Step::StartVmm),
            (Pending, Some(Step::StartVmm), Observation::Done) => self.enter(Running, None, now),
            (Running, Some(Step::Reboot), Observation::Done | Observation::Failed(_)) => self.step = None,
            (Running, _, Observation::PoweredOff) => {
                let transition = String::new();
                self.because(reason::INSTANCE_SHUTDOWN, transition);
                let state = match behavior {
                    ShutdownBehavior::Stop => Stopping,
                    ShutdownBehavior::Terminate => ShuttingDown,
                };
                self.enter(state, Some(Step::EndVmm), now);
            }
            (Stopping, Some(Step::PressButton { .. }), _) => self.step = Some(Step::EndVmm),
            (Stopping, Some(Step::EndVmm), Observation::Done) => self.enter(Stopped, None, now),
            (ShuttingDown, Some(Step::EndVmm), Observation::Done) => {
                self.step = Some(Step::ReleaseVolumes);
            }
            (ShuttingDown, Some(Step::ReleaseVolumes), Observation::Done) => {
                self.enter(Terminated, None, now);
            }
            // It never ran: EC2 terminates what cannot be launched.
            (Pending, Some(Step::PrepareVolumes), Observation::Failed(why)) => {
                self.because((reason::INTERNAL, &why), format!("{} ({})", reason::INTERNAL, instant(now)));
                self.enter(ShuttingDown, Some(Step::EndVmm), now);
            }
            (Pending | Running, _, Observation::Failed(why) | Observation::Died(why)) => {
                self.because((reason::INTERNAL, &why), format!("{} ({})", reason::INTERNAL, instant(now)));
                self.enter(Stopping, Some(Step::EndVmm), now);
            }
            // Tried again: see the actor.
            (Stopping | ShuttingDown, _, Observation::Failed(_)) => {}
            _ => {}
        }
    }
}

/// `User initiated (2026-11-21 10:00:00 GMT)`.
fn by_user(now: Timestamp) -> String {
    format!("User initiated ({})", instant(now))
}

fn instant(now: Timestamp) -> impl std::fmt::Display {
    now.strftime("%Y-%m-%d %H:%M:%S GMT")
}
