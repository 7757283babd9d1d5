//! How bytes become inputs.
//!
//! libFuzzer changes bytes, adds and removes some, and puts parts of two inputs together. What is told by an early byte
//! should not change the meaning of all behind it: a step has bytes of its own, which say how many they are, and lists
//! say first how long they are.

use std::ops::Deref;

use arbitrary::{Arbitrary, Result, Unstructured};

/// As many steps as an input may have: more take more time and find no more.
const MOST_STEPS: usize = 256;

/// All steps that there are bytes for.
#[derive(Clone, Debug)]
pub struct Steps<T>(Vec<T>);

impl<'a, T: Arbitrary<'a>> Arbitrary<'a> for Steps<T> {
    fn arbitrary(input: &mut Unstructured<'a>) -> Result<Self> {
        let mut steps = Vec::new();
        while !input.is_empty() && steps.len() < MOST_STEPS {
            // Most steps need few.
            let length = match input.arbitrary::<u8>()? {
                length @ ..0xc0 => 8 + length % 32,
                length => length,
            };
            let bytes = input.bytes(input.len().min(length.into()))?;
            steps.extend(T::arbitrary(&mut Unstructured::new(bytes)));
        }
        Ok(Self(steps))
    }
}

impl<T> IntoIterator for Steps<T> {
    type Item = T;
    type IntoIter = std::vec::IntoIter<T>;

    fn into_iter(self) -> Self::IntoIter {
        self.0.into_iter()
    }
}

/// Up to `MOST` of something.
#[derive(Clone, Debug)]
pub struct List<T, const MOST: usize = 16>(pub Vec<T>);

impl<'a, T: Arbitrary<'a>, const MOST: usize> Arbitrary<'a> for List<T, MOST> {
    fn arbitrary(input: &mut Unstructured<'a>) -> Result<Self> {
        // Most lists are short.
        let length = match input.arbitrary::<u8>()? {
            length @ ..0xc0 => usize::from(length % 4),
            length => usize::from(length & 0x3f),
        };
        (0..length.min(MOST)).map(|_| input.arbitrary()).collect::<Result<_>>().map(Self)
    }
}

impl<T, const MOST: usize> Deref for List<T, MOST> {
    type Target = [T];

    fn deref(&self) -> &[T] {
        &self.0
    }
}

impl<T, const MOST: usize> IntoIterator for List<T, MOST> {
    type Item = T;
    type IntoIter = std::vec::IntoIter<T>;

    fn into_iter(self) -> Self::IntoIter {
        self.0.into_iter()
    }
}

/// Up to 255 bytes.
#[derive(Clone, Debug)]
pub struct Bytes(pub Vec<u8>);

impl<'a> Arbitrary<'a> for Bytes {
    fn arbitrary(input: &mut Unstructured<'a>) -> Result<Self> {
        let length = usize::from(input.arbitrary::<u8>()?).min(input.len());
        Ok(Self(input.bytes(length)?.to_vec()))
    }
}

impl Deref for Bytes {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.0
    }
}

/// A step, and whether the device hears of it at once: mostly it does.
#[derive(Arbitrary, Clone, Debug)]
pub struct Timed<T> {
    step: T,
    then: Then,
}

#[derive(Arbitrary, Clone, Debug)]
enum Then {
    Work,
    WorkToo,
    Wait,
}

impl<T> Timed<T> {
    /// The step, and whether the doorbells ring behind it and the device works until it rests.
    pub fn take(self) -> (T, bool) {
        (self.step, !matches!(self.then, Then::Wait))
    }
}
