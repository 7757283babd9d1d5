//! What follows when a machine ends: the decisions, without their consequences.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use innkeeper_protocol::{Ending, ResetCause};

use crate::exit::Exit;

/// A guest that dies this often within [`FAULT_PERIOD`] will not live.
const FAULT_LIMIT: usize = 5;
const FAULT_PERIOD: Duration = Duration::from_secs(10);

/// The triple faults of late.
#[derive(Debug, Default)]
pub struct Faults(VecDeque<Instant>);

impl Faults {
    /// Counts one; true if there were too many.
    fn count(&mut self, now: Instant) -> bool {
        self.0.push_back(now);
        self.0.retain(|fault| now.duration_since(*fault) <= FAULT_PERIOD);
        self.0.len() >= FAULT_LIMIT
    }
}

/// What follows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Next {
    /// Another machine.
    Reset(ResetCause),
    /// Nothing.
    End(Ending),
}

/// What follows when a machine has ended by `exit`, while a reboot was under way or not.
pub fn after(exit: Exit, is_rebooting: bool, faults: &mut Faults, now: Instant) -> Next {
    match exit {
        Exit::PowerOff if is_rebooting => Next::Reset(ResetCause::Controller),
        Exit::PowerOff => Next::End(Ending::PowerOff),
        Exit::Failure(reason) => Next::End(Ending::Failed { reason }),
        Exit::Reset(ResetCause::TripleFault) if faults.count(now) => {
            let seconds = FAULT_PERIOD.as_secs();
            let reason = format!("the guest ended in a triple fault {FAULT_LIMIT} times within {seconds} s");
            Next::End(Ending::Failed { reason })
        }
        Exit::Reset(cause) => Next::Reset(cause),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_power_off_ends_the_guest_unless_it_is_half_of_a_reboot() {
        let now = Instant::now();
        let mut faults = Faults::default();
        assert_eq!(after(Exit::PowerOff, false, &mut faults, now), Next::End(Ending::PowerOff));
        assert_eq!(after(Exit::PowerOff, true, &mut faults, now), Next::Reset(ResetCause::Controller));
        for is_rebooting in [false, true] {
            let reset = after(Exit::Reset(ResetCause::Guest), is_rebooting, &mut faults, now);
            assert_eq!(reset, Next::Reset(ResetCause::Guest));
            let failure = after(Exit::Failure("x".into()), is_rebooting, &mut faults, now);
            assert_eq!(failure, Next::End(Ending::Failed { reason: "x".into() }));
        }
    }

    #[test]
    fn five_faults_within_ten_seconds_are_the_end() {
        let start = Instant::now();
        let fault = |faults: &mut Faults, second| {
            let now = start + Duration::from_secs(second);
            after(Exit::Reset(ResetCause::TripleFault), false, faults, now)
        };
        let again = Next::Reset(ResetCause::TripleFault);
        let mut quick = Faults::default();
        (0..4).for_each(|second| assert_eq!(fault(&mut quick, second), again));
        assert!(matches!(fault(&mut quick, 4), Next::End(Ending::Failed { .. })));
        let mut slow = Faults::default();
        (0..100).step_by(3).for_each(|second| assert_eq!(fault(&mut slow, second), again));
    }
}
