//! Disks and interfaces: what controllers have attached, over all the machines of a guest.
//!
//! A device goes in steps that each can be asked for again: it is attached; detaching, from when the guest was asked
//! to let go of it; ejected, when the guest has, or is not asked; and freed, when its last request is done. [`step`]
//! is that as a function. A guest that does not answer keeps its device, and can be asked again, or made to.

use std::sync::Arc;

use innkeeper_block::{FileUse, Layered};
use innkeeper_protocol::{DeviceKind, DeviceState, DeviceStatus, DriverState};

use crate::platform::hotplug::{self, Slots};
use crate::virtio::VirtioDevice;
use crate::virtio::block::{Block, Disk};
use crate::virtio::net::{Interface, Net};

/// What a device is in itself. It outlives machines.
#[derive(Clone, Debug)]
pub enum Part {
    /// A disk.
    Disk(Arc<Disk>),
    /// A network interface.
    Interface(Arc<Interface>),
}

impl Part {
    /// The files that it is on.
    pub fn files(&self) -> Vec<FileUse> {
        match self {
            Self::Disk(disk) => disk.files(),
            Self::Interface(_) => Vec::new(),
        }
    }

    /// The layers that it is on, if it is a disk that is on some.
    pub fn layered(&self) -> Option<Layered> {
        match self {
            Self::Disk(disk) => disk.layered(),
            Self::Interface(_) => None,
        }
    }

    /// Why something of it is lost, if that is so, once nobody uses it any more.
    pub fn loss(&self) -> Option<String> {
        match self {
            Self::Disk(disk) => disk.loss(),
            Self::Interface(_) => None,
        }
    }

    /// What it is.
    pub fn kind(&self) -> DeviceKind {
        match self {
            Self::Disk(_) => DeviceKind::Disk,
            Self::Interface(_) => DeviceKind::Interface,
        }
    }

    /// The device for one machine.
    pub fn device(&self) -> Box<dyn VirtioDevice> {
        match self {
            Self::Disk(disk) => Box::new(Block::new(Arc::clone(disk))),
            Self::Interface(interface) => Box::new(Net::new(Arc::clone(interface))),
        }
    }
}

/// An attached device.
#[derive(Debug)]
pub struct Device {
    /// The controller's name for it.
    pub id: String,
    /// Its PCI slot, in every machine.
    pub slot: u8,
    /// What it is.
    pub part: Part,
    /// How far it is on its way out.
    pub state: DeviceState,
}

impl Device {
    /// How things stand with it.
    pub fn status(&self, driver: DriverState) -> DeviceStatus {
        let size = match &self.part {
            Part::Disk(disk) => disk.capacity(),
            Part::Interface(_) => 0,
        };
        let Self { id, slot, state, .. } = self;
        let layered = self.part.layered();
        let count = |count: usize| u32::try_from(count).unwrap_or(u32::MAX);
        DeviceStatus {
            id: id.clone(),
            kind: self.part.kind(),
            slot: *slot,
            state: *state,
            size,
            driver,
            top: layered.as_ref().map(|layered| layered.top().to_string()),
            layers: layered.as_ref().map_or(0, |layered| count(layered.layers())),
            unsealed: layered.as_ref().map_or(0, |layered| count(layered.unsealed())),
            impairment: layered.and_then(|layered| layered.impairment().map(str::to_owned)),
        }
    }
}

/// What happens to a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Input {
    /// It is to go, if the guest agrees.
    Detach,
    /// It is to go.
    Force,
    /// The guest has let go of it.
    Ejected,
    /// Its last request is done.
    Finished,
    /// The machine that it was in is gone.
    MachineGone,
}

/// What is to be done about it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// Nothing.
    None,
    /// Ask the guest to let go of it.
    Ask,
    /// Take it off the bus, and have its last requests done.
    TakeOff,
    /// Forget it.
    Free,
}

/// The state that follows, and what is to be done. With [`Action::Free`], there is no state any more.
pub fn step(state: DeviceState, input: Input) -> (DeviceState, Action) {
    use DeviceState::{Attached, Detaching, Ejected};
    match (state, input) {
        (Attached | Detaching, Input::Detach) => (Detaching, Action::Ask),
        (Attached | Detaching, Input::Force) | (Detaching, Input::Ejected) => (Ejected, Action::TakeOff),
        (Detaching, Input::MachineGone) | (Ejected, Input::Finished) => (Ejected, Action::Free),
        // It is on its way, or nobody wants it to go. A guest may give up what it was not asked for, and then is without
        // it until it starts anew; but what is attached is for controllers to say.
        (Ejected, _) | (Attached, Input::Ejected) | (_, Input::Finished | Input::MachineGone) => {
            (state, Action::None)
        }
    }
}

/// Whether a guest that starts has a device in this state.
pub fn is_in_machine(state: DeviceState) -> bool {
    matches!(state, DeviceState::Attached | DeviceState::Detaching)
}

/// All disks and interfaces of a guest.
#[derive(Debug)]
pub struct Devices {
    list: Vec<Device>,
    /// Where to begin to look for a free slot: behind the last one given. A guest that was made to let go of a device
    /// may need a while to see that the slot is empty.
    next_slot: u8,
}

impl Default for Devices {
    fn default() -> Self {
        Self { list: Vec::new(), next_slot: *hotplug::SLOTS.start() }
    }
}

impl Devices {
    /// One of `slots` that none of them has, and that is not occupied otherwise.
    pub fn free_slot(&self, slots: Slots, is_occupied: impl Fn(u8) -> bool) -> Option<u8> {
        let (behind, before) = (slots.iter().filter(|slot| *slot >= self.next_slot), slots.iter());
        behind.chain(before).find(|slot| self.in_slot(*slot).is_none() && !is_occupied(*slot))
    }

    /// Adds a device, in a slot that is free.
    pub fn add(&mut self, id: String, slot: u8, part: Part) {
        self.next_slot = slot + 1;
        self.list.push(Device { id, slot, part, state: DeviceState::Attached });
    }

    /// Forgets a device.
    pub fn remove(&mut self, id: &str) {
        self.list.retain(|device| device.id != id);
    }

    /// The device of this name.
    pub fn get(&self, id: &str) -> Option<&Device> {
        self.list.iter().find(|device| device.id == id)
    }

    /// The device in this slot.
    pub fn in_slot(&self, slot: u8) -> Option<&Device> {
        self.list.iter().find(|device| device.slot == slot)
    }

    /// Lets `input` happen to a device; returns what is to be done, and whether its state is another one now.
    pub fn step(&mut self, id: &str, input: Input) -> (Action, bool) {
        let Some(device) = self.list.iter_mut().find(|device| device.id == id) else {
            return (Action::None, false);
        };
        let (state, action) = step(device.state, input);
        (action, std::mem::replace(&mut device.state, state) != state)
    }

    /// All of them, in the order in which they were attached.
    pub fn iter(&self) -> impl Iterator<Item = &Device> {
        self.list.iter()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::firmware::smbios::Identity;
    use crate::machine::Configuration;
    use crate::virtio::console::ConsolePort;
    use crate::virtio::vsock::VsockHost;
    use innkeeper_block::RawFile;
    use proptest::prelude::*;

    const INPUTS: [Input; 5] =
        [Input::Detach, Input::Force, Input::Ejected, Input::Finished, Input::MachineGone];

    fn arbitrary_input() -> impl Strategy<Value = Input> {
        prop::sample::select(INPUTS.to_vec())
    }

    #[test]
    fn the_usual_way_out() {
        let (state, action) = step(DeviceState::Attached, Input::Detach);
        assert_eq!((state, action), (DeviceState::Detaching, Action::Ask));
        let (state, action) = step(state, Input::Ejected);
        assert_eq!((state, action), (DeviceState::Ejected, Action::TakeOff));
        assert_eq!(step(state, Input::Finished).1, Action::Free);
    }

    /// A guest that ejects its own root disk would be without one for ever.
    #[test]
    fn a_guest_cannot_detach_what_it_was_not_asked_for() {
        assert_eq!(step(DeviceState::Attached, Input::Ejected), (DeviceState::Attached, Action::None));
    }

    #[test]
    fn asking_again_is_heard_again_and_changes_nothing() {
        let (state, action) = step(DeviceState::Detaching, Input::Detach);
        assert_eq!((state, action), (DeviceState::Detaching, Action::Ask));
        for input in [Input::Detach, Input::Force, Input::Ejected, Input::MachineGone] {
            assert_eq!(step(DeviceState::Ejected, input), (DeviceState::Ejected, Action::None), "{input:?}");
        }
    }

    #[test]
    fn a_reset_keeps_what_is_attached_and_completes_what_is_detaching() {
        assert_eq!(step(DeviceState::Attached, Input::MachineGone), (DeviceState::Attached, Action::None));
        assert_eq!(step(DeviceState::Detaching, Input::MachineGone).1, Action::Free);
    }

    fn a_disk() -> Part {
        let file = tempfile::tempfile().unwrap();
        file.set_len(512).unwrap();
        let raw = RawFile::from_file(file, false).unwrap();
        let limits = innkeeper_protocol::Limits::default();
        Part::Disk(Arc::new(Disk::new(Arc::new(raw), Default::default(), 1, limits).unwrap()))
    }

    /// What a machine has not is not kept a slot for: most have room for 27 disks, and for three interfaces.
    #[test]
    fn devices_get_all_slots_that_nothing_is_built_into() {
        for (console, balloon, vsock) in [(false, false, false), (true, true, true), (false, true, false)] {
            let configuration = Configuration {
                cpus: 1,
                memory: 16 << 20,
                identity: Identity::new(uuid::Uuid::nil(), None, None).unwrap(),
                serial: Arc::default(),
                virtio_console: console.then(|| Arc::new(ConsolePort::new(Arc::default()).unwrap())),
                balloon: balloon.then(Arc::default),
                vsock: vsock.then(|| Arc::new(VsockHost::new(3, None).unwrap())),
            };
            let built_in: Vec<u8> = configuration.built_in().iter().map(|(slot, _)| *slot as u8).collect();
            let mut devices = Devices::default();
            while let Some(slot) = devices.free_slot(configuration.slots(), |_| false) {
                devices.add(slot.to_string(), slot, a_disk());
            }
            let slots: Vec<u8> = devices.iter().map(|device| device.slot).collect();
            assert!((1..32).filter(|slot| !built_in.contains(slot)).eq(slots), "{built_in:?}");
            devices.remove("5");
            assert_eq!(devices.free_slot(configuration.slots(), |_| false), Some(5));
            assert_eq!(devices.free_slot(configuration.slots(), |slot| slot == 5), None);
        }
    }

    proptest! {
        /// However often and in whatever order things happen: a device is taken off once, freed once, after that, and
        /// never comes back.
        #[test]
        fn every_way_out_is_a_way_out(inputs in prop::collection::vec(arbitrary_input(), 0..50)) {
            let mut state = DeviceState::Attached;
            let mut taken_off = 0;
            for input in inputs {
                let (next, action) = step(state, input);
                let rank = |state| match state {
                    DeviceState::Attached => 0,
                    DeviceState::Detaching => 1,
                    DeviceState::Ejected => 2,
                };
                prop_assert!(rank(next) >= rank(state), "{:?} {:?} {:?}", state, input, next);
                match action {
                    Action::TakeOff => taken_off += 1,
                    Action::Free => {
                        prop_assert!(taken_off == 1 || input == Input::MachineGone);
                        return Ok(());
                    }
                    Action::None | Action::Ask => {}
                }
                prop_assert!(taken_off <= 1);
                state = next;
            }
        }
    }
}
