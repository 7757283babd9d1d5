//! How much memory is taken.

use crate::heap;

/// What reading a disk may take at most, in bytes, beside the files that it is for: 64 MiB, as in the tests.
pub const MOST: usize = 64 << 20;

/// Does something that may take so many bytes.
pub fn at_most<T>(most: usize, act: impl FnOnce() -> T) -> T {
    let (result, taken) = heap::peak(act);
    assert!(taken <= most, "{taken} bytes of memory were taken, and there may be {most}");
    result
}
