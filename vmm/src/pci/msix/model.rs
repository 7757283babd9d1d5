//! The table and the pending bits beside a model of them (PCI Local Bus 3.0, section 6.8.2), with a device that raises
//! its vectors at any time.
//!
//! The model says what is in the table, and which interrupts are held back. Whether those that are not arrive is for
//! the tests of [`crate::interrupt`].

use kvm_ioctls::Kvm;
use proptest::prelude::*;
use proptest::test_runner::TestRunner;
use vmm_sys_util::eventfd::EventFd;

use super::*;

/// More than a byte of pending bits.
const COUNT: usize = 11;
/// Vectors that a part of the kernel raises, which does not look whether they are masked.
const BY_KERNEL: usize = 3;

#[derive(Clone, Debug)]
enum Step {
    /// Message control, as it is in configuration space.
    Control(u16),
    WriteTable(usize, Vec<u8>),
    ReadTable(usize, usize),
    Raise(usize),
}

struct Model {
    control: u16,
    entries: [[u32; 4]; COUNT],
    pending: [bool; COUNT],
}

impl Model {
    fn new() -> Self {
        Self { control: 0, entries: [[0, 0, 0, 1]; COUNT], pending: [false; COUNT] }
    }

    fn delivers(&self, vector: usize) -> bool {
        let (is_enabled, is_function_masked) = (self.control & 0x8000 != 0, self.control & 0x4000 != 0);
        is_enabled && !is_function_masked && self.entries[vector][3] & 1 == 0
    }

    /// What is held back goes out as soon as it can.
    fn settle(&mut self) {
        for vector in 0..COUNT {
            self.pending[vector] &= !self.delivers(vector);
        }
    }

    /// The entries and registers of an access, if it is one that a table has.
    fn registers(offset: usize, width: usize) -> Vec<(usize, usize)> {
        let is_valid = (width == 4 || width == 8) && offset.is_multiple_of(width) && offset < 16 * COUNT;
        let registers = offset / 4..(offset + width) / 4;
        if is_valid { registers.map(|register| (register / 4, register % 4)).collect() } else { Vec::new() }
    }

    fn read(&self, offset: usize, width: usize) -> Vec<u8> {
        let registers = Self::registers(offset, width);
        if registers.is_empty() {
            return vec![0xff; width];
        }
        registers.iter().flat_map(|(entry, register)| self.entries[*entry][*register].to_le_bytes()).collect()
    }

    fn write(&mut self, offset: usize, data: &[u8]) {
        for ((entry, register), value) in Self::registers(offset, data.len()).into_iter().zip(data.chunks(4))
        {
            self.entries[entry][register] = u32::from_le_bytes(value.try_into().unwrap());
        }
    }

    fn pending_bytes(&self, length: usize) -> Vec<u8> {
        let mut bytes = vec![0; length];
        for (vector, _) in self.pending.iter().enumerate().filter(|(_, is_pending)| **is_pending) {
            bytes[vector / 8] |= 1 << (vector % 8);
        }
        bytes
    }
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let vector_control = (0..COUNT, prop::bool::ANY)
        .prop_map(|(entry, is_masked)| Step::WriteTable(16 * entry + 12, vec![u8::from(is_masked), 0, 0, 0]));
    let message = (0..COUNT, any::<u8>()).prop_map(|(entry, vector)| {
        Step::WriteTable(16 * entry, [0xfee0_0000u32.to_le_bytes(), [0, 0, 0, vector]].concat())
    });
    let offset = || prop_oneof![4 => (0usize..16 * COUNT / 4 + 8).prop_map(|at| 4 * at), 1 => 0usize..0x1000];
    let width = || prop::sample::select(vec![1usize, 2, 4, 8]);
    let step = prop_oneof![
        3 => prop::sample::select(vec![0u16, 0x8000, 0x8000, 0xc000, 0x4000, 0x800a, 0xffff]).prop_map(Step::Control),
        6 => vector_control,
        2 => message,
        1 => (offset(), width(), any::<u64>())
            .prop_map(|(at, width, value)| Step::WriteTable(at, value.to_le_bytes()[..width].to_vec())),
        2 => (offset(), width()).prop_map(|(at, width)| Step::ReadTable(at, width)),
        8 => (0..COUNT).prop_map(Step::Raise),
    ];
    prop::collection::vec(step, 1..60)
}

/// A vector is pending if it was raised while it was masked, by whatever means, until it no longer is.
#[test]
fn a_table_holds_back_what_is_masked() {
    let vm = Arc::new(Kvm::new().unwrap().create_vm().unwrap());
    vm.create_irq_chip().unwrap();
    let interrupts = Interrupts::new(vm);
    let mut runner = TestRunner::default();
    let result = runner.run(&steps(), |steps| {
        let mut msix = Msix::new(&interrupts, COUNT as u16).unwrap();
        let vectors = msix.vectors();
        let by_kernel: Vec<EventFd> =
            vectors[..BY_KERNEL].iter().map(|vector| vector.raised_by_kernel().unwrap()).collect();
        let mut model = Model::new();
        for step in steps {
            match step {
                Step::Control(control) => {
                    msix.set_control(control);
                    model.control = control;
                }
                Step::WriteTable(offset, data) => {
                    msix.write_table(offset, &data);
                    model.write(offset, &data);
                }
                Step::ReadTable(offset, width) => {
                    let mut data = vec![0x5a; width];
                    msix.read_table(offset, &mut data);
                    prop_assert_eq!(data, model.read(offset, width));
                }
                Step::Raise(vector) => {
                    match by_kernel.get(vector) {
                        Some(event) => event.write(1).unwrap(),
                        None => vectors[vector].trigger(),
                    }
                    model.pending[vector] = true;
                }
            }
            model.settle();
            let mut pending = vec![0x5a; 4];
            msix.read_pending(0, &mut pending);
            prop_assert_eq!(pending, model.pending_bytes(4));
        }
        Ok(())
    });
    result.unwrap();
}
