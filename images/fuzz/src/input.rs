//! How bytes become inputs.
//!
//! libFuzzer changes bytes, adds and removes some, and puts parts of two inputs together. So that an early byte does not
//! change the meaning of all behind it, a step has bytes of its own, which say how many they are.

use std::ops::Deref;

use arbitrary::{Arbitrary, Result, Unstructured};

/// As many steps as an input may have.
const MOST_STEPS: usize = 128;

/// All steps that there are bytes for.
#[derive(Clone, Debug)]
pub struct Steps<T>(Vec<T>);

impl<'a, T: Arbitrary<'a>> Arbitrary<'a> for Steps<T> {
    fn arbitrary(input: &mut Unstructured<'a>) -> Result<Self> {
        let mut steps = Vec::new();
        while !input.is_empty() && steps.len() < MOST_STEPS {
            // Most steps need few.
            let length = match input.arbitrary::<u8>()? {
                length @ ..0xc0 => 6 + usize::from(length % 32),
                length => 4 * usize::from(length),
            };
            let bytes = input.bytes(input.len().min(length))?;
            steps.extend(T::arbitrary(&mut Unstructured::new(bytes)));
        }
        Ok(Self(steps))
    }
}

impl<T> Deref for Steps<T> {
    type Target = [T];

    fn deref(&self) -> &[T] {
        &self.0
    }
}

/// Up to `MOST` of something.
#[derive(Clone, Debug)]
pub struct List<T, const MOST: usize = 16>(Vec<T>);

impl<'a, T: Arbitrary<'a>, const MOST: usize> Arbitrary<'a> for List<T, MOST> {
    fn arbitrary(input: &mut Unstructured<'a>) -> Result<Self> {
        let length = usize::from(input.arbitrary::<u8>()?) % (MOST + 1);
        (0..length).map(|_| input.arbitrary()).collect::<Result<_>>().map(Self)
    }
}

impl<T, const MOST: usize> Deref for List<T, MOST> {
    type Target = [T];

    fn deref(&self) -> &[T] {
        &self.0
    }
}

/// All the bytes that are left of a step.
#[derive(Clone, Debug)]
pub struct Bytes(Vec<u8>);

impl<'a> Arbitrary<'a> for Bytes {
    fn arbitrary(input: &mut Unstructured<'a>) -> Result<Self> {
        Ok(Self(input.bytes(input.len())?.to_vec()))
    }
}

impl Deref for Bytes {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.0
    }
}
