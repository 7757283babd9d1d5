//! The status checks of running instances: what their VMMs say, and how long they have been saying so. It is true of now
//! and kept in memory only; the next agent asks again.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use innkeeper_protocol::{DeviceState, DeviceStatus, DriverState, Status};
use jiff::{SignedDuration, Timestamp};

use crate::ids::{InstanceId, VolumeId};

/// How long a guest may take until it is heard of.
const PATIENCE: SignedDuration = SignedDuration::from_mins(5);

/// How a check has ended.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Check {
    /// Not yet.
    #[default]
    Initializing,
    /// Well.
    Passed,
    /// Not well.
    Failed {
        /// The first time in a row.
        since: Timestamp,
    },
}

/// The checks of an instance.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Health {
    /// The VMM answers, and its devices work.
    pub system: Check,
    /// The guest is up: it has said something, or drives a device.
    pub instance: Check,
    /// Its volumes can be used.
    pub volumes: Check,
}

impl Check {
    /// The next outcome after this one.
    fn then(self, is_well: bool, now: Timestamp) -> Self {
        match (is_well, self) {
            (true, _) => Self::Passed,
            (false, Self::Failed { since }) => Self::Failed { since },
            (false, _) => Self::Failed { since: now },
        }
    }
}

impl Health {
    /// Whether there is nothing to be waited for.
    pub fn is_well(self) -> bool {
        [self.system, self.instance, self.volumes].iter().all(|check| *check == Check::Passed)
    }

    /// What follows from the VMM's answer, or its silence. `running` is when the instance began to run.
    pub fn then(self, answer: Option<&Status>, running: Timestamp, now: Timestamp) -> Self {
        let Some(status) = answer else { return Self { system: self.system.then(false, now), ..self } };
        // One that is on its way out may be as it likes.
        let mut devices = status.devices.iter().filter(|device| device.state == DeviceState::Attached);
        let works = |device: &DeviceStatus| device.driver != DriverState::NeedsReset;
        let is_volume = |device: &&DeviceStatus| device.id.parse::<VolumeId>().is_ok();
        let is_up = status.serial_output > 0
            || status.virtio_output > 0
            || devices.clone().any(|device| device.driver == DriverState::Running);
        let instance = match self.instance {
            before @ Check::Initializing if !is_up && now.duration_since(running) < PATIENCE => before,
            before => before.then(is_up, now),
        };
        Self {
            volumes: self.volumes.then(devices.clone().filter(is_volume).all(works), now),
            system: self.system.then(devices.all(works), now),
            instance,
        }
    }
}

/// What is known of each running instance.
#[derive(Debug, Default)]
pub struct Healths(Mutex<BTreeMap<InstanceId, Health>>);

impl Healths {
    fn lock(&self) -> MutexGuard<'_, BTreeMap<InstanceId, Health>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// That of one instance.
    pub fn get(&self, instance: &InstanceId) -> Health {
        self.lock().get(instance).copied().unwrap_or_default()
    }

    /// Notes it.
    pub fn set(&self, instance: &InstanceId, health: Health) {
        self.lock().insert(instance.clone(), health);
    }

    /// Forgets an instance that does not run.
    pub fn forget(&self, instance: &InstanceId) {
        self.lock().remove(instance);
    }
}

#[cfg(test)]
mod tests {
    use innkeeper_protocol::{DeviceKind, State};

    use super::*;

    const PASSED: Check = Check::Passed;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    fn status(serial_output: u64, devices: &[(&str, DriverState)]) -> Status {
        let device = |(id, driver): &(&str, DriverState)| DeviceStatus {
            id: (*id).into(),
            kind: DeviceKind::Disk,
            slot: 1,
            state: DeviceState::Attached,
            size: 0,
            driver: *driver,
        };
        Status {
            state: State::Running,
            ending: None,
            resets: 0,
            is_rebooting: false,
            last_event: 0,
            devices: devices.iter().map(device).collect(),
            serial_output,
            virtio_output: 0,
            balloon: None,
        }
    }

    fn health(system: Check, instance: Check, volumes: Check) -> Health {
        Health { system, instance, volumes }
    }

    #[test]
    fn a_guest_that_is_heard_of_is_well() {
        let volume = "vol-0123456789abcdef0";
        for status in [status(1, &[]), status(0, &[(volume, DriverState::Running)])] {
            let found = Health::default().then(Some(&status), at(0), at(1));
            assert_eq!(found, health(PASSED, PASSED, PASSED));
            assert!(found.is_well());
        }
        let silent = status(0, &[(volume, DriverState::None)]);
        let found = Health::default().then(Some(&silent), at(0), at(1));
        assert_eq!(found, health(PASSED, Check::Initializing, PASSED));
        let late = found.then(Some(&silent), at(0), at(301));
        assert_eq!(late.instance, Check::Failed { since: at(301) });
        assert_eq!(late.then(Some(&silent), at(0), at(400)), late);
        assert!(late.then(Some(&status(1, &[])), at(0), at(500)).is_well());
    }

    #[test]
    fn a_broken_device_is_the_systems_and_a_volumes_is_the_volumes_too() {
        let (broken, well) = (DriverState::NeedsReset, DriverState::Running);
        let before = health(PASSED, PASSED, PASSED);
        let failed = Check::Failed { since: at(9) };
        for (devices, system, volumes) in [
            ([("vol-0123456789abcdef0", broken), ("ephemeral0", well)], failed, failed),
            ([("vol-0123456789abcdef0", well), ("ephemeral0", broken)], failed, PASSED),
            ([("vol-0123456789abcdef0", well), ("ephemeral0", well)], PASSED, PASSED),
        ] {
            let found = before.then(Some(&status(1, &devices)), at(0), at(9));
            assert_eq!(found, health(system, PASSED, volumes), "{devices:?}");
        }
        let mut leaving = status(1, &[("vol-0123456789abcdef0", broken)]);
        leaving.devices[0].state = DeviceState::Ejected;
        assert!(before.then(Some(&leaving), at(0), at(9)).is_well());
    }

    #[test]
    fn silence_is_the_systems() {
        let before = health(PASSED, PASSED, PASSED);
        let silent = before.then(None, at(0), at(5)).then(None, at(0), at(9));
        assert_eq!(silent, health(Check::Failed { since: at(5) }, PASSED, PASSED));
        assert!(silent.then(Some(&status(1, &[])), at(0), at(10)).is_well());
    }

    #[test]
    fn who_does_not_run_is_not_known() {
        let (healths, id) = (Healths::default(), InstanceId::random());
        healths.set(&id, health(PASSED, PASSED, PASSED));
        assert!(healths.get(&id).is_well());
        healths.forget(&id);
        assert_eq!(healths.get(&id), Health::default());
    }
}
