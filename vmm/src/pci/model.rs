//! The bus beside a model of what a guest may expect of it, driven by the same accesses in any order.
//!
//! The model is what the specification says about a type 0 header, written down register by register; it knows nothing
//! of masks, mappings or locks. Where BARs lie over each other it says nothing, and neither does the specification.

use std::collections::BTreeMap;

use proptest::prelude::*;
use proptest::sample::Index;

use super::*;

/// What firmware would do: each slot has 16 MiB of its own behind 3 GiB.
const WINDOW: u64 = 0xc000_0000;
const WINDOW_END: u64 = 0xe000_0000;
const SLOT_WINDOW: u64 = 0x100_0000;

/// The capability that the devices here have, behind its head: bits of the second byte may be changed.
const CAPABILITY: [u8; 6] = [0x11, 0x22, 0x33, 0x44, 0x55, 0x66];
const CAPABILITY_WRITABLE: [u8; 2] = [0, 0xc0];

/// A device with memory behind its BARs. What was not written is zero.
struct Scratch {
    config: ConfigSpace,
    memory: BTreeMap<(usize, u64), u8>,
    sizes: BTreeMap<usize, u64>,
}

impl Scratch {
    fn new(bars: &BTreeMap<usize, u32>) -> Self {
        let mut config = ConfigSpace::new(Identity {
            vendor: 0x1af4,
            device: 0x1042,
            revision: 1,
            class: 0x01_8000,
            subsystem_vendor: 0x1af4,
            subsystem: 0x40,
        });
        bars.iter().for_each(|(bar, size)| config.add_bar(*bar, *size));
        config.add_capability(CapabilityId::Vendor, &CAPABILITY, &CAPABILITY_WRITABLE);
        let sizes = bars.iter().map(|(bar, size)| (*bar, u64::from(*size))).collect();
        Self { config, memory: BTreeMap::new(), sizes }
    }
}

impl PciDevice for Scratch {
    fn config(&self) -> &ConfigSpace {
        &self.config
    }

    fn config_mut(&mut self) -> &mut ConfigSpace {
        &mut self.config
    }

    fn read_bar(&mut self, bar: usize, offset: u64, data: &mut [u8]) {
        assert!(offset + data.len() as u64 <= self.sizes[&bar], "the access lies inside the BAR");
        for (at, byte) in (offset..).zip(data) {
            *byte = self.memory.get(&(bar, at)).copied().unwrap_or(0);
        }
    }

    fn write_bar(&mut self, bar: usize, offset: u64, data: &[u8]) {
        assert!(offset + data.len() as u64 <= self.sizes[&bar], "the access lies inside the BAR");
        self.memory.extend((offset..).zip(data).map(|(at, byte)| ((bar, at), *byte)));
    }
}

/// What is known of a function.
#[derive(Clone, Debug)]
enum Function {
    /// Slot 0: a header, and nothing to be done with it.
    HostBridge {
        command: u8,
        line: u8,
    },
    Scratch(Known),
}

#[derive(Clone, Debug)]
struct Known {
    command: u8,
    line: u8,
    /// By index: size and address.
    bars: BTreeMap<usize, (u64, u64)>,
    capability_control: u8,
    memory: BTreeMap<(usize, u64), u8>,
}

impl Known {
    /// As it is when it was just put into `slot`; none if it has no room there.
    fn placed(slot: u64, sizes: &BTreeMap<usize, u32>) -> Option<Self> {
        let mut free = WINDOW + slot * SLOT_WINDOW;
        let mut bars = BTreeMap::new();
        for (bar, size) in sizes {
            let size = u64::from(*size);
            let address = free.div_ceil(size) * size;
            free = address + size;
            bars.insert(*bar, (size, address));
        }
        let is_inside = free <= WINDOW + (slot + 1) * SLOT_WINDOW;
        // Memory decoding is on.
        is_inside.then(|| Self {
            command: 2,
            line: 0,
            bars,
            capability_control: 0x22,
            memory: BTreeMap::new(),
        })
    }
}

impl Function {
    fn byte(&self, offset: usize) -> u8 {
        let byte = |value: u64, first: usize| (value >> (8 * (offset - first))) as u8;
        let (identity, class, subsystem) = match self {
            Self::HostBridge { .. } => (0x0d57_8086, 0x0600_0000, 0),
            Self::Scratch(_) => (0x1042_1af4, 0x0180_0001, 0x0040_1af4),
        };
        let (command, line) = match self {
            Self::HostBridge { command, line } => (*command, *line),
            Self::Scratch(known) => (known.command, known.line),
        };
        match (offset, self) {
            (0x00..0x04, _) => byte(identity, 0x00),
            (0x04, _) => command,
            (0x08..0x0c, _) => byte(class, 0x08),
            (0x2c..0x30, _) => byte(subsystem, 0x2c),
            (0x3c, _) => line,
            (_, Self::HostBridge { .. }) => 0,
            // There is a list of capabilities, and this is where it begins.
            (0x06, Self::Scratch(_)) => 0x10,
            (0x34, Self::Scratch(_)) => 0x40,
            (0x10..0x28, Self::Scratch(known)) => {
                let bar = (offset - 0x10) / 4;
                known.bars.get(&bar).map_or(0, |(_, address)| byte(*address, 0x10 + 4 * bar))
            }
            (0x40, Self::Scratch(_)) => 0x09,
            (0x43, Self::Scratch(known)) => known.capability_control,
            (0x42..0x48, Self::Scratch(_)) => CAPABILITY[offset - 0x42],
            _ => 0,
        }
    }

    fn set_byte(&mut self, offset: usize, value: u8) {
        match (offset, self) {
            // Memory space and bus master.
            (0x04, Self::HostBridge { command, .. } | Self::Scratch(Known { command, .. })) => {
                *command = value & 0b110;
            }
            (0x3c, Self::HostBridge { line, .. } | Self::Scratch(Known { line, .. })) => *line = value,
            (0x10..0x28, Self::Scratch(known)) => {
                let shift = 8 * (offset % 4);
                if let Some((size, address)) = known.bars.get_mut(&((offset - 0x10) / 4)) {
                    let written = *address & !(0xff << shift) | u64::from(value) << shift;
                    *address = written - written % *size;
                }
            }
            (0x43, Self::Scratch(known)) => {
                known.capability_control = value & 0xc0 | known.capability_control & 0x3f;
            }
            _ => {}
        }
    }
}

/// The bus as the guest may expect it.
struct Model(BTreeMap<u64, Function>);

impl Model {
    fn insert(&mut self, slot: u64, bars: &BTreeMap<usize, u32>) -> bool {
        if slot > 31 || self.0.contains_key(&slot) {
            return false;
        }
        match Known::placed(slot, bars) {
            Some(known) => self.0.insert(slot, Function::Scratch(known)).is_none(),
            None => false,
        }
    }

    fn remove(&mut self, slot: u64) -> bool {
        slot != 0 && self.0.remove(&slot).is_some()
    }

    fn is_in_a_register(function: u64, offset: usize, width: usize) -> bool {
        function == 0 && offset / 4 == (offset + width - 1) / 4 && offset < 0x100
    }

    fn read_config(&self, slot: u64, function: u64, offset: usize, width: usize) -> Vec<u8> {
        match self.0.get(&slot) {
            Some(known) if Self::is_in_a_register(function, offset, width) => {
                (offset..offset + width).map(|at| known.byte(at)).collect()
            }
            // No extended capabilities.
            Some(_) if function == 0 && offset + width > 0x100 => vec![0; width],
            _ => vec![0xff; width],
        }
    }

    fn write_config(&mut self, slot: u64, function: u64, offset: usize, data: &[u8]) {
        if let Some(known) = self.0.get_mut(&slot)
            && Self::is_in_a_register(function, offset, data.len())
        {
            (offset..).zip(data).for_each(|(at, value)| known.set_byte(at, *value));
        }
    }

    /// The BARs that an access may reach: slot, BAR and offset in it.
    fn claims(&self, address: u64, width: usize) -> Vec<(u64, usize, u64)> {
        let mut claims = Vec::new();
        for (slot, function) in &self.0 {
            let Function::Scratch(known) = function else { continue };
            for (bar, (size, start)) in &known.bars {
                let is_inside = *start <= address && address + width as u64 <= start + size;
                if known.command & 2 != 0 && is_inside {
                    claims.push((*slot, *bar, address - start));
                }
            }
        }
        claims
    }

    fn memory(&mut self, slot: u64) -> &mut BTreeMap<(usize, u64), u8> {
        match self.0.get_mut(&slot) {
            Some(Function::Scratch(known)) => &mut known.memory,
            _ => panic!("nothing in slot {slot} has memory"),
        }
    }

    /// An address that is worth a try: near the beginning or the end of a BAR, whether it answers or not.
    fn address(&self, target: &Target) -> u64 {
        let near = match target {
            Target::Anywhere(offset) => return WINDOW + offset,
            Target::Near(which, at_end, delta) => {
                let bars: Vec<(u64, u64)> = (self.0.values())
                    .filter_map(|function| match function {
                        Function::Scratch(known) => Some(known.bars.values().copied()),
                        Function::HostBridge { .. } => None,
                    })
                    .flatten()
                    .collect();
                if bars.is_empty() {
                    return WINDOW;
                }
                let (size, start) = which.get(&bars);
                (start + if *at_end { *size } else { 0 }).saturating_add_signed(*delta)
            }
        };
        near.clamp(WINDOW, WINDOW_END - 8)
    }
}

/// Where in the window.
#[derive(Clone, Debug)]
enum Target {
    Anywhere(u64),
    /// A BAR, whether at its end or its beginning, and how far from there.
    Near(Index, bool, i64),
}

#[derive(Clone, Debug)]
enum Step {
    Insert { slot: u64, bars: BTreeMap<usize, u32> },
    Remove { slot: u64 },
    ReadConfig { slot: u64, function: u64, offset: usize, width: usize },
    WriteConfig { slot: u64, function: u64, offset: usize, data: Vec<u8> },
    ReadWindow { target: Target, width: usize },
    WriteWindow { target: Target, data: Vec<u8> },
}

fn width() -> impl Strategy<Value = usize> {
    prop::sample::select(vec![1usize, 2, 4, 8])
}

/// Few slots, so that much happens in each; and those at the end of the bus.
fn slot() -> impl Strategy<Value = u64> {
    prop_oneof![8 => 0u64..4, 1 => 30u64..32]
}

fn offset() -> impl Strategy<Value = usize> {
    prop_oneof![6 => 0usize..0x4c, 1 => 0xf8usize..0x108, 1 => 0usize..0x1000]
}

fn bars() -> impl Strategy<Value = BTreeMap<usize, u32>> {
    let size = prop::sample::select(vec![16u32, 64, 0x1000, 0x8000, 0x10_0000, 0x80_0000, 0x100_0000]);
    prop::collection::btree_map(0usize..6, size, 0..4)
}

fn data() -> impl Strategy<Value = Vec<u8>> {
    (width(), any::<u64>()).prop_map(|(width, value)| value.to_le_bytes()[..width].to_vec())
}

fn target() -> impl Strategy<Value = Target> {
    prop_oneof![
        1 => (0..WINDOW_END - WINDOW - 8).prop_map(Target::Anywhere),
        6 => (any::<Index>(), any::<bool>(), -9i64..9).prop_map(|(which, at_end, delta)| Target::Near(which, at_end, delta)),
    ]
}

fn step() -> impl Strategy<Value = Step> {
    let write = |slot, offset, value: u32| Step::WriteConfig {
        slot,
        function: 0,
        offset,
        data: value.to_le_bytes().into(),
    };
    prop_oneof![
        3 => (prop_oneof![9 => slot(), 1 => 32u64..256], bars()).prop_map(|(slot, bars)| Step::Insert { slot, bars }),
        1 => prop_oneof![9 => slot(), 1 => 32u64..256].prop_map(|slot| Step::Remove { slot }),
        4 => (slot(), prop_oneof![9 => Just(0u64), 1 => 1u64..8], offset(), width())
            .prop_map(|(slot, function, offset, width)| Step::ReadConfig { slot, function, offset, width }),
        2 => (slot(), prop_oneof![9 => Just(0u64), 1 => 1u64..8], offset(), data())
            .prop_map(|(slot, function, offset, data)| Step::WriteConfig { slot, function, offset, data }),
        // What systems do: they size BARs, move them, and switch them on and off.
        2 => (slot(), 0usize..6).prop_map(move |(slot, bar)| write(slot, 0x10 + 4 * bar, u32::MAX)),
        4 => (slot(), 0usize..6, 0xbff0u32..0xe010)
            .prop_map(move |(slot, bar, address)| write(slot, 0x10 + 4 * bar, address << 16)),
        2 => (slot(), 0u32..8).prop_map(move |(slot, command)| write(slot, 4, command)),
        6 => (target(), width()).prop_map(|(target, width)| Step::ReadWindow { target, width }),
        6 => (target(), data()).prop_map(|(target, data)| Step::WriteWindow { target, data }),
    ]
}

/// The bus, and the model of it.
struct World {
    ecam: Ecam,
    window: Window,
    model: Model,
}

impl World {
    fn new() -> Self {
        let root = Arc::new(PciRoot::default());
        let bridge = Function::HostBridge { command: 0, line: 0 };
        let model = Model(BTreeMap::from([(0, bridge)]));
        Self { ecam: Ecam(Arc::clone(&root)), window: Window(root), model }
    }

    fn read_config(
        &self,
        slot: u64,
        function: u64,
        offset: usize,
        width: usize,
    ) -> Result<(), TestCaseError> {
        let mut data = vec![0x5a; width];
        self.ecam.read(slot << 15 | function << 12 | offset as u64, &mut data);
        let expected = self.model.read_config(slot, function, offset, width);
        prop_assert_eq!(data, expected, "{}.{} {:#x}+{}", slot, function, offset, width);
        Ok(())
    }

    fn run(&mut self, step: Step) -> Result<(), TestCaseError> {
        let root = Arc::clone(&self.ecam.0);
        match step {
            Step::Insert { slot, bars } => {
                let device = Arc::new(Mutex::new(Scratch::new(&bars)));
                let expected = self.model.insert(slot, &bars);
                prop_assert_eq!(root.insert(slot as u8, device).is_ok(), expected, "slot {}", slot);
            }
            Step::Remove { slot } => prop_assert_eq!(root.remove(slot as u8), self.model.remove(slot)),
            Step::ReadConfig { slot, function, offset, width } if offset + width <= 0x1000 => {
                self.read_config(slot, function, offset, width)?;
            }
            Step::WriteConfig { slot, function, offset, data } if offset + data.len() <= 0x1000 => {
                self.ecam.write(slot << 15 | function << 12 | offset as u64, &data);
                self.model.write_config(slot, function, offset, &data);
            }
            // The bus above does not let such accesses through.
            Step::ReadConfig { .. } | Step::WriteConfig { .. } => {}
            Step::ReadWindow { target, width } => {
                let address = self.model.address(&target);
                let mut data = vec![0x5a; width];
                self.window.read(address - WINDOW, &mut data);
                let expected: Vec<u8> = match self.model.claims(address, width)[..] {
                    [] => vec![0xff; width],
                    [(slot, bar, offset)] => {
                        let memory = self.model.memory(slot);
                        let byte = |at| memory.get(&(bar, at)).copied().unwrap_or(0);
                        (offset..offset + width as u64).map(byte).collect()
                    }
                    _ => return Ok(()),
                };
                prop_assert_eq!(data, expected, "{:#x}", address);
            }
            Step::WriteWindow { target, data } => {
                let address = self.model.address(&target);
                let claims = self.model.claims(address, data.len());
                if let [(slot, bar, offset)] = claims[..] {
                    let bytes = (offset..).zip(&data).map(|(at, byte)| ((bar, at), *byte));
                    self.model.memory(slot).extend(bytes);
                }
                if claims.len() < 2 {
                    self.window.write(address - WINDOW, &data);
                }
            }
        }
        Ok(())
    }
}

proptest! {
    /// Whatever a guest does to configuration space and to the memory behind BARs, and whatever comes and goes meanwhile:
    /// it reads what the specification has it read.
    #[test]
    fn a_guest_finds_the_bus_as_specified(steps in prop::collection::vec(step(), 1..150)) {
        let mut world = World::new();
        for step in steps {
            world.run(step)?;
        }
        for slot in [0, 1, 2, 3, 4, 30, 31] {
            for register in (0..0x104).step_by(4) {
                world.read_config(slot, 0, register, 4)?;
            }
        }
    }
}
