//! Buffers of the guest, in the form that `readv(2)` and `writev(2)` take.
//!
//! They are kept in vectors that are used again for every frame, so that a frame costs no allocation.

use vm_memory::VolatileSlice;

/// More segments than this cannot be handed to the host in one call (`IOV_MAX`).
pub const MAX_SEGMENTS: usize = 1024;

/// One buffer.
#[derive(Clone, Copy)]
#[repr(transparent)]
pub struct Segment(libc::iovec);

// SAFETY: the pointer is into guest memory, which all threads of the VMM share and which stays mapped for as
// long as the handler that owns the segment holds it, or to a byte that moves along with the segment.
unsafe impl Send for Segment {}

impl Segment {
    /// A piece of guest memory. It is valid for as long as that is mapped.
    pub fn of(slice: &VolatileSlice<'_>) -> Self {
        let guard = slice.ptr_guard_mut();
        Self(libc::iovec { iov_base: guard.as_ptr().cast(), iov_len: guard.len() })
    }

    /// A single byte.
    pub fn of_byte(byte: &mut u8) -> Self {
        Self(libc::iovec { iov_base: (&raw mut *byte).cast(), iov_len: 1 })
    }
}

/// The segments as the system sees them.
pub fn as_iovecs(segments: &[Segment]) -> &[libc::iovec] {
    // SAFETY: a segment is an `iovec`, transparently, and the length is the slice's.
    unsafe { std::slice::from_raw_parts(segments.as_ptr().cast(), segments.len()) }
}
