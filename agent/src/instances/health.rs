//! The status checks of running instances: what their VMMs say, and how long they have been saying so. It is true of now
//! and kept in memory only; the next agent asks again.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use innkeeper_protocol::{DeviceState, DeviceStatus, DriverState, Status};
use jiff::{SignedDuration, Timestamp};

use crate::ids::{InstanceId, VolumeId};

/// How long a guest may take until it is heard of.
const PATIENCE: SignedDuration = SignedDuration::from_mins(5);

/// How long a guest may be mute on the network that drives its interface: as long as it takes to boot, or to renew a lease.
const GRACE: SignedDuration = SignedDuration::from_secs(60);

/// What a guest says on the network.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Guest {
    /// It does not drive its interface, or could not be asked.
    Unasked,
    /// It answers.
    Answers,
    /// It does not.
    Mute,
}

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
    /// The guest is up: it has said something, or drives a device; and if it drives its network interface, it answers there.
    pub instance: Check,
    /// Its volumes can be used.
    pub volumes: Check,
    /// Since when it does not answer on the network.
    pub mute_since: Option<Timestamp>,
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

    /// What follows from the VMM's answer, or its silence, and the guest's. `running` is when the instance began to run.
    pub fn then(self, answer: Option<&Status>, guest: Guest, running: Timestamp, now: Timestamp) -> Self {
        let Some(status) = answer else { return Self { system: self.system.then(false, now), ..self } };
        // One that is on its way out may be as it likes.
        let mut devices = status.devices.iter().filter(|device| device.state == DeviceState::Attached);
        let works = |device: &DeviceStatus| device.driver != DriverState::NeedsReset;
        let takes_writes = |device: &DeviceStatus| works(device) && device.impairment.is_none();
        let is_volume = |device: &&DeviceStatus| device.id.parse::<VolumeId>().is_ok();
        let is_up = status.serial_output > 0
            || status.virtio_output > 0
            || devices.clone().any(|device| device.driver == DriverState::Running);
        let mute_since = (guest == Guest::Mute).then(|| self.mute_since.unwrap_or(now));
        let instance = match (self.instance, mute_since) {
            // It may be about to get its address, or to boot anew.
            (before, Some(since)) if now.duration_since(since) < GRACE => before,
            (before @ Check::Initializing, _) if now.duration_since(running) < PATIENCE => match guest {
                Guest::Mute => before,
                _ if !is_up => before,
                _ => Check::Passed,
            },
            (before, _) => before.then(is_up && guest != Guest::Mute, now),
        };
        Self {
            mute_since,
            volumes: self.volumes.then(devices.clone().filter(is_volume).all(takes_writes), now),
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

    use super::Guest::{Answers, Mute, Unasked};
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
            top: None,
            layers: 0,
            unsealed: 0,
            impairment: None,
        };
        Status {
            state: State::Running,
            ending: None,
            resets: 0,
            is_rebooting: false,
            last_event: 0,
            devices: devices.iter().map(device).collect(),
            losses: BTreeMap::new(),
            serial_output,
            virtio_output: 0,
            balloon: None,
        }
    }

    fn health(system: Check, instance: Check, volumes: Check) -> Health {
        Health { system, instance, volumes, mute_since: None }
    }

    #[test]
    fn a_guest_that_is_heard_of_is_well() {
        let volume = "vol-0123456789abcdef0";
        for status in [status(1, &[]), status(0, &[(volume, DriverState::Running)])] {
            let found = Health::default().then(Some(&status), Unasked, at(0), at(1));
            assert_eq!(found, health(PASSED, PASSED, PASSED));
            assert!(found.is_well());
        }
        let silent = status(0, &[(volume, DriverState::None)]);
        let found = Health::default().then(Some(&silent), Unasked, at(0), at(1));
        assert_eq!(found, health(PASSED, Check::Initializing, PASSED));
        let late = found.then(Some(&silent), Unasked, at(0), at(301));
        assert_eq!(late.instance, Check::Failed { since: at(301) });
        assert_eq!(late.then(Some(&silent), Unasked, at(0), at(400)), late);
        assert!(late.then(Some(&status(1, &[])), Unasked, at(0), at(500)).is_well());
    }

    #[test]
    fn a_guest_that_drives_its_interface_has_to_answer_there() {
        let up = status(1, &[("eni-0123456789abcdef0", DriverState::Running)]);
        let instance = |health: Health| health.instance;
        // It takes its time to get an address, and that is no failure.
        let booting = Health::default().then(Some(&up), Mute, at(0), at(1));
        assert_eq!(instance(booting), Check::Initializing);
        assert_eq!(instance(booting.then(Some(&up), Mute, at(0), at(100))), Check::Initializing);
        assert_eq!(instance(booting.then(Some(&up), Mute, at(0), at(301))), Check::Failed { since: at(301) });
        let well = booting.then(Some(&up), Answers, at(0), at(20));
        assert_eq!(instance(well), PASSED);
        // One that was well has a minute.
        let mute = well.then(Some(&up), Mute, at(0), at(400));
        assert_eq!(instance(mute), PASSED);
        let failed = mute.then(Some(&up), Mute, at(0), at(460));
        assert_eq!(instance(failed), Check::Failed { since: at(460) });
        assert!(failed.then(Some(&up), Answers, at(0), at(470)).is_well());
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
            let found = before.then(Some(&status(1, &devices)), Unasked, at(0), at(9));
            assert_eq!(found, health(system, PASSED, volumes), "{devices:?}");
        }
        let mut impaired = status(1, &[("vol-0123456789abcdef0", well)]);
        impaired.devices[0].impairment = Some("a sync has failed".into());
        let found = before.then(Some(&impaired), Unasked, at(0), at(9));
        assert_eq!(found, health(PASSED, PASSED, failed), "the system does what it can");
        let mut leaving = status(1, &[("vol-0123456789abcdef0", broken)]);
        leaving.devices[0].state = DeviceState::Ejected;
        assert!(before.then(Some(&leaving), Unasked, at(0), at(9)).is_well());
    }

    #[test]
    fn silence_is_the_systems() {
        let before = health(PASSED, PASSED, PASSED);
        let silent = before.then(None, Unasked, at(0), at(5)).then(None, Unasked, at(0), at(9));
        assert_eq!(silent, health(Check::Failed { since: at(5) }, PASSED, PASSED));
        assert!(silent.then(Some(&status(1, &[])), Unasked, at(0), at(10)).is_well());
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
