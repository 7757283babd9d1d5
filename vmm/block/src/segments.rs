//! Memory that an operation reads from or writes to, in pieces.

use std::any::Any;
use std::fmt;
use std::sync::Arc;

/// Pieces of memory, and a share in whatever keeps them mapped. Others, such as a guest, may change their content
/// at any time.
pub struct Segments {
    pieces: Pieces,
    memory: Arc<dyn Any + Send + Sync>,
}

/// Most operations are about one piece, which is not worth an allocation.
enum Pieces {
    One([libc::iovec; 1]),
    Many(Vec<libc::iovec>),
}

// SAFETY: the pieces are memory that is shared anyway, and stays mapped for as long as this has its share in it.
unsafe impl Send for Segments {}

impl fmt::Debug for Segments {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} bytes in {} segments", self.len(), self.as_iovecs().len())
    }
}

impl Segments {
    /// Takes `pieces` of `memory`, in their order.
    ///
    /// # Safety
    /// Every piece must be valid for reads and writes of its length for as long as `memory` exists.
    pub unsafe fn new(
        pieces: impl IntoIterator<Item = libc::iovec>,
        memory: Arc<dyn Any + Send + Sync>,
    ) -> Self {
        let mut pieces = pieces.into_iter().filter(|piece| piece.iov_len > 0);
        let pieces = match (pieces.next(), pieces.next()) {
            (None, _) => Pieces::Many(Vec::new()),
            (Some(only), None) => Pieces::One([only]),
            (Some(first), Some(second)) => Pieces::Many([first, second].into_iter().chain(pieces).collect()),
        };
        Self { pieces, memory }
    }

    /// Bytes in all.
    pub fn len(&self) -> usize {
        self.as_iovecs().iter().map(|piece| piece.iov_len).sum()
    }

    /// Whether there is not a single byte.
    pub fn is_empty(&self) -> bool {
        self.as_iovecs().is_empty()
    }

    /// The pieces that are left, none of them empty.
    pub fn as_iovecs(&self) -> &[libc::iovec] {
        match &self.pieces {
            Pieces::One(piece) => piece,
            Pieces::Many(pieces) => pieces,
        }
    }

    /// Copies as much of `data` as there is room for; returns how much that was.
    pub fn copy_from(&mut self, data: &[u8]) -> usize {
        let mut done = 0;
        for piece in self.as_iovecs() {
            let part = &data[done..data.len().min(done + piece.iov_len)];
            for (offset, byte) in part.iter().enumerate() {
                // SAFETY: inside the piece, which is valid for writes. Somebody may read it meanwhile, so that it
                // has to be volatile.
                unsafe { piece.iov_base.cast::<u8>().add(offset).write_volatile(*byte) };
            }
            done += part.len();
        }
        done
    }

    /// Copies as much to `buffer` as there is and has room; returns how much that was.
    pub(crate) fn copy_to(&self, buffer: &mut [u8]) -> usize {
        let mut done = 0;
        for piece in self.as_iovecs() {
            let room = buffer.len().min(done + piece.iov_len);
            let part = &mut buffer[done..room];
            for (offset, byte) in part.iter_mut().enumerate() {
                // SAFETY: inside the piece, which is valid for reads. Somebody may write to it meanwhile, so that it
                // has to be volatile.
                *byte = unsafe { piece.iov_base.cast::<u8>().add(offset).read_volatile() };
            }
            done += part.len();
        }
        done
    }

    /// Makes all of it zeroes.
    pub(crate) fn fill_with_zeroes(&self) {
        for piece in self.as_iovecs() {
            // SAFETY: the piece is valid for writes of its length. Whoever reads it meanwhile may see either content.
            unsafe { std::ptr::write_bytes(piece.iov_base.cast::<u8>(), 0, piece.iov_len) };
        }
    }

    /// Takes the first `count` bytes away from the rest, or all if there are not so many.
    pub(crate) fn take_front(&mut self, count: usize) -> Self {
        if count >= self.len() {
            let rest = Self { pieces: Pieces::Many(Vec::new()), memory: Arc::clone(&self.memory) };
            return std::mem::replace(self, rest);
        }
        let mut left = count;
        let front = self.as_iovecs().iter().map_while(|piece| {
            let length = piece.iov_len.min(left);
            left -= length;
            (length > 0).then_some(libc::iovec { iov_base: piece.iov_base, iov_len: length })
        });
        // SAFETY: these are pieces of what is valid for as long as the memory exists.
        let front = unsafe { Self::new(front.collect::<Vec<_>>(), Arc::clone(&self.memory)) };
        self.advance(count);
        front
    }

    /// Drops the first `done` bytes, which must be there.
    pub(crate) fn advance(&mut self, mut done: usize) {
        if done == self.len() {
            self.pieces = Pieces::Many(Vec::new());
            return;
        }
        let pieces = match &mut self.pieces {
            Pieces::One(piece) => &mut piece[..],
            Pieces::Many(pieces) => {
                let whole = pieces.iter().take_while(|piece| {
                    let is_whole = piece.iov_len <= done;
                    done -= if is_whole { piece.iov_len } else { 0 };
                    is_whole
                });
                let whole = whole.count();
                pieces.drain(..whole);
                pieces
            }
        };
        if let Some(first) = pieces.first_mut() {
            first.iov_base = first.iov_base.wrapping_byte_add(done);
            first.iov_len -= done;
        }
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use std::sync::Mutex;

    /// Memory that a test can look at.
    #[derive(Clone)]
    pub struct Memory(Arc<Mutex<Vec<Vec<u8>>>>);

    impl Memory {
        pub fn new(pieces: Vec<Vec<u8>>) -> Self {
            Self(Arc::new(Mutex::new(pieces)))
        }

        pub fn segments(&self) -> Segments {
            let iovec = |piece: &mut Vec<u8>| libc::iovec {
                iov_base: piece.as_mut_ptr().cast(),
                iov_len: piece.len(),
            };
            let pieces: Vec<_> = self.0.lock().unwrap().iter_mut().map(iovec).collect();
            // SAFETY: the vectors are not resized, and live as long as the mutex that holds them.
            unsafe { Segments::new(pieces, self.0.clone()) }
        }

        pub fn bytes(&self) -> Vec<u8> {
            self.0.lock().unwrap().concat()
        }
    }

    #[test]
    fn bytes_are_dropped_from_the_front() {
        for pieces in [vec![vec![0; 3], vec![], vec![0; 5], vec![0; 2]], vec![vec![0; 10]]] {
            let memory = Memory::new(pieces);
            for done in 0..=10 {
                let mut segments = memory.segments();
                segments.advance(done);
                assert_eq!((segments.len(), segments.is_empty()), (10 - done, done == 10));
                assert!(segments.as_iovecs().iter().all(|piece| piece.iov_len > 0));
            }
        }
    }

    #[test]
    fn bytes_are_taken_from_the_front() {
        let memory = Memory::new(vec![b"abc".to_vec(), b"defgh".to_vec(), b"ij".to_vec()]);
        for count in 0..12 {
            let mut rest = memory.segments();
            let front = rest.take_front(count);
            let content = |segments: &Segments| {
                let mut bytes = vec![0; 20];
                let length = segments.copy_to(&mut bytes);
                bytes.truncate(length);
                bytes
            };
            assert_eq!([content(&front), content(&rest)].concat(), b"abcdefghij");
            assert_eq!((front.len(), rest.len()), (count.min(10), 10 - count.min(10)));
        }
        memory.segments().take_front(4).fill_with_zeroes();
        assert_eq!(memory.bytes(), b"\0\0\0\0efghij");
    }

    #[test]
    fn data_is_copied_as_far_as_it_fits() {
        let memory = Memory::new(vec![vec![0; 3], vec![0; 2]]);
        assert_eq!(memory.segments().copy_from(b"abcdefgh"), 5);
        assert_eq!(memory.bytes(), b"abcde");
        assert_eq!(memory.segments().copy_from(b"xyz!"), 4);
        assert_eq!(memory.bytes(), b"xyz!e");
    }
}
