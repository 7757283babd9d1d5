//! Copies a disk, on two threads: one reads and decompresses, the other hashes and writes.

use std::sync::mpsc::{Receiver, Sender, SyncSender, channel, sync_channel};
use std::thread;

use super::Progress;
use super::error::{Error, Result, failed};
use super::manifest::CHUNK;
use super::partial::Work;
use super::source::Source;

/// A chunk's number, and what is in it.
type Filled = (u64, Vec<u8>);

/// Copies what is not done yet of a disk of `size` bytes. `size` is that of the source, rounded up.
pub(super) fn copy(
    source: &Source,
    size: u64,
    work: &mut Work<'_>,
    progress: &mut dyn Progress,
) -> Result<()> {
    let first = work.done();
    let (filled, full) = sync_channel(1);
    let (emptied, empty) = channel();
    thread::scope(|scope| {
        let reader = thread::Builder::new()
            .name("import".into())
            .spawn_scoped(scope, || read(source, size, first, filled, empty))
            .map_err(failed("start a thread to read", source.path()))?;
        // This ends when the reader does, and the reader when this does: each by the channel's other end.
        let written = write(full, emptied, size, work, progress);
        let read = reader.join().unwrap_or_else(|_| {
            let reason = "reading it ended in a panic, whose message is above".to_owned();
            Err(Error::Damaged { path: source.path().into(), reason })
        });
        written.and(read)
    })?;
    work.record(size.div_ceil(CHUNK))
}

/// Reads all chunks from number `first` on, but for those that are known to be zeroes.
fn read(
    source: &Source,
    size: u64,
    first: u64,
    filled: SyncSender<Filled>,
    empty: Receiver<Vec<u8>>,
) -> Result<()> {
    let mut position = first.saturating_mul(CHUNK);
    while let Some(data) = source.contents.next_data(position, source.size)? {
        let index = data / CHUNK;
        let offset = index.saturating_mul(CHUNK);
        let length = |end: u64| usize::try_from(end.saturating_sub(offset).min(CHUNK)).unwrap_or_default();
        let mut chunk = empty.try_recv().unwrap_or_default();
        chunk.resize(length(size), 0);
        // The last one may be longer than what there is of the source.
        if let Some((contents, padding)) = chunk.split_at_mut_checked(length(source.size)) {
            source.contents.read(contents, offset)?;
            padding.fill(0);
        }
        if filled.send((index, chunk)).is_err() {
            // The writer has an error to tell.
            break;
        }
        position = offset.saturating_add(CHUNK);
    }
    Ok(())
}

fn write(
    full: Receiver<Filled>,
    emptied: Sender<Vec<u8>>,
    size: u64,
    work: &mut Work<'_>,
    progress: &mut dyn Progress,
) -> Result<()> {
    for (index, chunk) in full {
        work.write(index, &chunk)?;
        progress.done(index.saturating_add(1).saturating_mul(CHUNK).min(size));
        // The reader may be done.
        let _ = emptied.send(chunk);
    }
    Ok(())
}
