//! Logs of transactions, which are all by the book or not. What they mean is known for the first kind.

#![no_main]

use std::cell::Cell;
use std::collections::BTreeMap;
use std::sync::{LazyLock, Mutex};

use arbitrary::Arbitrary;
use innkeeper_images::boot::Region;
use innkeeper_images::boot::ext4::{Error, FileSystem};
use innkeeper_images::boot::tree::Tree as _;
use innkeeper_images_fuzz::disks::{Disk, with_journal};
use innkeeper_images_fuzz::ext4::FileSystem as Layout;
use innkeeper_images_fuzz::journal::{
    CHECKSUM_2, CHECKSUM_3, ESCAPED, IS_64BIT, LAST, MAGIC, SAME_UUID, Shape, be32,
};
use innkeeper_images_fuzz::{Change, List, Meter, Steps, check_message, memory};
use libfuzzer_sys::fuzz_target;

const BUDGET: u64 = 8 << 20;
const LIMIT: u64 = 64 << 10;
const SCRIPT: &str = "/boot/grub/grub.cfg";

#[derive(Arbitrary, Clone, Copy, Debug)]
enum Block {
    /// Of the script.
    Script(u8),
    /// Of the script, too.
    ScriptToo(u8),
    /// Of anything.
    Structure(u8),
    Any(u64),
}

/// What is in a copy: the same byte again and again, perhaps behind the mark of the journal's own blocks.
#[derive(Arbitrary, Clone, Copy, Debug)]
struct Contents {
    byte: u8,
    is_like_a_log: bool,
}

#[derive(Arbitrary, Clone, Debug)]
enum Step {
    Write {
        has_uuids: bool,
        copies: List<(Block, Contents), 70>,
    },
    Revoke(List<Block, 20>),
    Commit,
    Change(Change),
    /// A word of the log's superblock.
    Superblock {
        word: u8,
        by: i8,
        is_near: bool,
    },
    /// The log goes on elsewhere.
    Skip(u8),
    /// Or with another number.
    Sequence(i8),
    /// A block of this kind with nothing in it.
    Header(u8),
}

#[derive(Arbitrary, Debug)]
struct Input {
    features: u8,
    start: u16,
    sequence: u32,
    is_bare: Option<bool>,
    /// A byte of a block of the log is another one than its checksum says.
    spoilt: Option<(u8, u16)>,
    steps: Steps<Step>,
}

static BASE: LazyLock<Mutex<Disk>> = LazyLock::new(|| Mutex::new(with_journal()));

/// What a log of whole transactions says of blocks of the script.
#[derive(Default)]
struct Expected {
    copies: BTreeMap<u64, (u32, Vec<u8>)>,
    revoked: BTreeMap<u64, u32>,
    pending: Vec<(u64, Vec<u8>)>,
    pending_revoked: Vec<u64>,
}

impl Expected {
    fn commit(&mut self, sequence: u32) {
        for (block, contents) in self.pending.drain(..) {
            self.copies.insert(block, (sequence, contents));
        }
        self.revoked.extend(self.pending_revoked.drain(..).map(|block| (block, sequence)));
    }

    /// The newest copy, unless it is of a transaction that is not after the one that revokes it.
    fn newest(&self, block: u64) -> Option<&[u8]> {
        let (sequence, contents) = self.copies.get(&block)?;
        let is_revoked = self.revoked.get(&block).is_some_and(|by| sequence.wrapping_sub(*by) as i32 <= 0);
        (!is_revoked).then_some(contents)
    }
}

struct Writer<'d> {
    disk: &'d mut Disk,
    size: usize,
    log: Vec<usize>,
    shape: Shape,
    is_64bit: bool,
    first: usize,
    at: usize,
    used: usize,
    sequence: u32,
    expected: Option<Expected>,
}

impl<'d> Writer<'d> {
    fn new(disk: &'d mut Disk, input: &Input) -> Self {
        let layout = Layout::look(disk.image.bytes(), 0);
        let (log, size) = (layout.log().to_vec(), layout.block_size);
        let sums = [0, CHECKSUM_2, CHECKSUM_3, CHECKSUM_2 | CHECKSUM_3][usize::from(input.features % 4)];
        let is_64bit = input.features & 4 != 0;
        // Revocations, which have no meaning of their own, are there now and then.
        let features = sums | if is_64bit { IS_64BIT } else { 0 } | u32::from(input.features >> 3 & 1);
        let superblock = &disk.image.bytes()[log[0]..];
        let (length, first) = (be32(superblock, 16) as usize, be32(superblock, 20) as usize);
        assert!(length == log.len() && first == 1, "a log of {length} blocks from {first} on");
        let start = first + usize::from(input.start) % (length - first);
        disk.image.write(log[0] + 24, &input.sequence.to_be_bytes());
        disk.image.write(log[0] + 28, &(start as u32).to_be_bytes());
        disk.image.write(log[0] + 40, &features.to_be_bytes());
        let (at, used, sequence) = (start, 0, input.sequence);
        let has_sums = sums != 0;
        let expected = (!has_sums || input.is_bare != Some(true)).then(Expected::default);
        Self { disk, size, log, shape: Shape::new(features), is_64bit, first, at, used, sequence, expected }
    }

    fn block(&mut self, block: Block) -> u64 {
        let script = self.disk.script();
        match block {
            Block::Script(index) | Block::ScriptToo(index) => {
                (script[usize::from(index) % script.len()].start / self.size) as u64
            }
            Block::Structure(index) => {
                let structures = &self.disk.ground.structures;
                let at = structures[usize::from(index) % structures.len()].start;
                // Now the reader may see something else than a script.
                self.expected = None;
                (at / self.size) as u64
            }
            Block::Any(block) => {
                self.expected = None;
                block
            }
        }
    }

    fn header(&self, kind: u32) -> Vec<u8> {
        [MAGIC.to_be_bytes(), kind.to_be_bytes(), self.sequence.to_be_bytes()].concat()
    }

    fn push(&mut self, block: &[u8]) {
        let mut whole = block.to_vec();
        whole.resize(self.size, 0);
        self.disk.image.write(self.log[self.at], &whole);
        self.used += 1;
        self.at = if self.at + 1 == self.log.len() { self.first } else { self.at + 1 };
    }

    fn step(&mut self, step: &Step) {
        match step {
            Step::Write { has_uuids, copies } => {
                let mut descriptor = self.header(1);
                let size = self.shape.size() + if *has_uuids { 16 } else { 0 };
                let room = (self.shape.end(self.size) - descriptor.len()) / size;
                let copies: Vec<_> = copies.iter().take(room).copied().collect();
                let mut blocks = Vec::new();
                for (index, (block, contents)) in copies.iter().enumerate() {
                    let number = self.block(*block);
                    let mut copy = vec![contents.byte; self.size];
                    let mut flags = if *has_uuids { 0 } else { SAME_UUID };
                    if contents.is_like_a_log {
                        copy[..4].copy_from_slice(&MAGIC.to_be_bytes());
                        flags |= ESCAPED;
                    }
                    if index + 1 == copies.len() {
                        flags |= LAST;
                    }
                    // The other half of the number has no room without the feature.
                    let number = if self.is_64bit { number } else { number & 0xffff_ffff };
                    descriptor.extend(self.shape.tag(number, flags));
                    if let Some(expected) = &mut self.expected {
                        expected.pending.push((number, copy.clone()));
                    }
                    if contents.is_like_a_log {
                        copy[..4].fill(0);
                    }
                    blocks.push(copy);
                }
                if !blocks.is_empty() {
                    self.push(&descriptor);
                    blocks.iter().for_each(|copy| self.push(copy));
                }
            }
            Step::Revoke(blocks) => {
                let mut revocations = self.header(5);
                let size = if self.is_64bit { 8 } else { 4 };
                revocations.extend((16 + size * blocks.len() as u32).to_be_bytes());
                for block in blocks.iter() {
                    let number = self.block(*block);
                    let bytes = number.to_be_bytes();
                    revocations.extend(if self.is_64bit { &bytes[..] } else { &bytes[4..] });
                    if let Some(expected) = &mut self.expected {
                        expected.pending_revoked.push(number);
                    }
                }
                self.push(&revocations);
            }
            Step::Commit => {
                self.push(&self.header(2));
                if let Some(expected) = &mut self.expected {
                    expected.commit(self.sequence);
                }
                self.sequence = self.sequence.wrapping_add(1);
            }
            Step::Change(change) => {
                self.disk.change(change);
                self.expected = None;
            }
            Step::Superblock { word, by, is_near } => {
                let at = self.log[0] + 12 + usize::from(word % 9) * 4;
                let now = if *is_near { be32(self.disk.image.bytes(), at) } else { 0 };
                self.disk.image.write(at, &now.wrapping_add_signed((*by).into()).to_be_bytes());
                self.expected = None;
            }
            Step::Skip(count) => {
                self.at = self.first + (self.at + usize::from(*count)) % (self.log.len() - self.first);
                self.expected = None;
            }
            Step::Sequence(by) => {
                self.sequence = self.sequence.wrapping_add_signed((*by).into());
                self.expected = None;
            }
            Step::Header(kind) => {
                self.push(&self.header(u32::from(kind % 7)));
                self.expected = None;
            }
        }
    }
}

fn read(bytes: &[u8]) -> Result<Vec<u8>, Error> {
    let meter = Meter::new(bytes);
    let budget = Cell::new(BUDGET);
    let open = || FileSystem::open(Region::whole(&meter, &budget).unwrap());
    let result = memory::at_most(memory::MOST, || open().and_then(|it| it.read(SCRIPT, LIMIT)));
    meter.check(BUDGET, LIMIT);
    result
}

fuzz_target!(|input: Input| {
    let mut disk = BASE.lock().unwrap();
    let original =
        disk.script().iter().flat_map(|block| disk.image.bytes()[block.clone()].to_vec()).collect();
    let mut writer = Writer::new(&mut disk, &input);
    for step in input.steps.iter() {
        if writer.used + 80 > writer.log.len() {
            break;
        }
        writer.step(step);
    }
    let spoilt = input.spoilt.map(|(block, byte)| {
        let length = writer.log.len() - writer.first;
        let block = writer.first + (usize::from(input.start) + usize::from(block)) % length;
        writer.log[block] + usize::from(byte) % writer.size
    });
    let expected = writer.expected.take().filter(|_| spoilt.is_none());
    if input.is_bare != Some(true) {
        disk.seal();
    }
    if let Some(at) = spoilt {
        let byte = !disk.image.bytes()[at];
        disk.image.write(at, &[byte]);
    }
    let result = read(disk.image.bytes());
    match (expected, result) {
        (Some(expected), result) => {
            let mut contents: Vec<u8> = original;
            for (index, block) in disk.script().iter().enumerate() {
                let number = (block.start / disk.ground.unit) as u64;
                if let Some(newest) = expected.newest(number) {
                    contents[index * block.len()..][..block.len()].copy_from_slice(newest);
                }
            }
            let read = result.unwrap_or_else(|error| panic!("a log by the book: {error}"));
            assert!(read == contents, "a log by the book means something else");
        }
        (None, Err(error)) => check_message(&error),
        (None, Ok(_)) => {}
    }
    disk.image.restore();
});
