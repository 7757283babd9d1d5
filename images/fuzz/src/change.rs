//! What an input changes of an image.

use std::ops::Range;

use arbitrary::Arbitrary;

use crate::image::Image;
use crate::input::Bytes;

/// What changes refer to.
pub struct Ground {
    /// Where its structures are.
    pub structures: Vec<Range<usize>>,
    /// Where places are counted from, in bytes, and in what: blocks or sectors.
    pub start: usize,
    /// See `start`.
    pub unit: usize,
}

/// A place in an image.
#[derive(Arbitrary, Clone, Copy, Debug)]
enum Place {
    /// In a structure, near its beginning.
    Near { structure: u8, offset: u8 },
    /// In a structure, anywhere.
    Far { structure: u8, offset: u16 },
    /// In one of the first few structures.
    First { structure: u8, offset: u8 },
    /// Anywhere.
    Any(u32),
}

impl Place {
    fn resolve(self, image: &Image, ground: &Ground) -> usize {
        let (structure, offset) = match self {
            Self::Near { structure, offset } => (structure, usize::from(offset)),
            Self::Far { structure, offset } => (structure, usize::from(offset)),
            Self::First { structure, offset } => (structure % 8, usize::from(offset)),
            Self::Any(at) => return at as usize % image.bytes().len(),
        };
        let range = &ground.structures[usize::from(structure) % ground.structures.len()];
        (range.start + offset % range.len()) % image.bytes().len()
    }
}

#[derive(Arbitrary, Clone, Debug)]
enum Value {
    /// These bytes.
    Bytes(Bytes),
    /// A little-endian number.
    Two(u16),
    /// A little-endian number.
    Four(u32),
    /// A number about where one with so many bits more ends.
    Edge { bits: u8, by: i8, is_long: bool },
    /// More or less than now.
    Add { by: i8, is_long: bool },
    /// Where a structure is.
    PlaceOf { structure: u8 },
    /// What is in another place.
    Copy { from: Place, length: u16 },
    /// The same byte again and again.
    Fill { byte: u8, length: u16 },
}

/// A change of an image.
#[derive(Arbitrary, Clone, Debug)]
pub struct Change {
    at: Place,
    to: Value,
}

impl Change {
    /// Carries it out.
    pub fn apply(&self, image: &mut Image, ground: &Ground) {
        let at = self.at.resolve(image, ground);
        let number = |value: u64, is_long: bool| value.to_le_bytes()[..if is_long { 4 } else { 2 }].to_vec();
        let bytes = match &self.to {
            Value::Bytes(bytes) => bytes.to_vec(),
            Value::Two(value) => value.to_le_bytes().into(),
            Value::Four(value) => value.to_le_bytes().into(),
            Value::Edge { bits, by, is_long } => {
                number((1_u64 << (bits % 33)).wrapping_add_signed(i64::from(*by)), *is_long)
            }
            Value::Add { by, is_long } => {
                let mut now = [0; 8];
                let length = image.bytes().len();
                let field = &image.bytes()[at..length.min(at + if *is_long { 4 } else { 2 })];
                now[..field.len()].copy_from_slice(field);
                number(u64::from_le_bytes(now).wrapping_add_signed((*by).into()), *is_long)
            }
            Value::PlaceOf { structure } => {
                let place = Place::Near { structure: *structure, offset: 0 }.resolve(image, ground);
                ((place.saturating_sub(ground.start) / ground.unit) as u32).to_le_bytes().into()
            }
            Value::Copy { from, length } => {
                let from = from.resolve(image, ground);
                let end = image.bytes().len().min(from + usize::from(length % 5000));
                image.bytes()[from..end].to_vec()
            }
            Value::Fill { byte, length } => vec![*byte; usize::from(length % 5000)],
        };
        image.write(at, &bytes);
    }
}
