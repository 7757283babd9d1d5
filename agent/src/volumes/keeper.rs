//! What is done for volumes while nobody asks for it: layers that nobody needs any more are removed, and those that nobody
//! needs by themselves are merged, so that stacks do not grow without end.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use innkeeper_block::layered;
use tokio::time::{MissedTickBehavior, interval};

use super::layers::Access;
use super::{Error, Volumes, io_error, stack};
use crate::ids::LayerId;
use crate::records::Layer;
use crate::store::StoreError;

/// How often it looks without being asked to.
const PERIOD: Duration = Duration::from_secs(10);

/// How many bytes of layers are copied in a second at most, so that guests have the disk.
const RATE: u64 = 64 << 20;

/// A layer is not copied for the sake of those on top of it that are smaller than it by more than this,
const RATIO: u64 = 4;
/// unless there are more than these.
const DEEP: usize = 16;

/// What is left free for guests when layers are merged, in bytes.
const RESERVE: u64 = 1 << 30;

/// How long layers are left alone that could not be merged.
const REST: Duration = Duration::from_secs(600);

/// Ends what is under way when it is dropped.
struct Stop(Arc<AtomicBool>);

impl Drop for Stop {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Tidies up whenever something was deleted, and now and then, until it is dropped.
pub async fn keep(volumes: Arc<Volumes>) {
    let mut ticks = interval(PERIOD);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            _ = ticks.tick() => {}
            () = volumes.changed.notified() => {}
        }
        let volumes = Arc::clone(&volumes);
        let tidied = tokio::task::spawn_blocking(move || {
            volumes.settle_all();
            volumes.collect()?;
            volumes.to_merge.notify_one();
            Ok::<_, Error>(())
        });
        match tidied.await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => {
                let error = crate::instances::chain(&error);
                tracing::error!(error, "layers that nobody needs stay for now");
            }
            Err(error) => tracing::error!(%error, "layers that nobody needs stay for now"),
        }
    }
}

/// Merges what can be, whenever that may have changed, until it is dropped. That can take hours.
pub async fn keep_merging(volumes: Arc<Volumes>) {
    let stop = Stop(Arc::default());
    loop {
        volumes.to_merge.notified().await;
        let (merging, stop) = (Arc::clone(&volumes), Arc::clone(&stop.0));
        let merged = tokio::task::spawn_blocking(move || {
            let is_over = || stop.load(Ordering::Relaxed);
            let mut has_merged = false;
            while !is_over() && merging.merge_some(&is_over) {
                has_merged = true;
            }
            has_merged
        });
        match merged.await {
            Ok(true) => volumes.something_was_deleted(),
            Ok(false) => {}
            Err(error) => tracing::error!(%error, "layers are not merged for now"),
        }
    }
}

impl Volumes {
    /// Something was deleted: its layers may not be needed any more.
    pub fn something_was_deleted(&self) {
        self.changed.notify_one();
    }

    /// Removes the layers that nobody needs any more, and the files that no record has.
    pub fn collect(&self) -> Result<(), Error> {
        if !stack::unneeded(&self.state.read()).is_empty() {
            self.record(|draft| {
                for layer in stack::unneeded(draft) {
                    tracing::debug!(%layer, "nobody needs the layer any more");
                    draft.remove::<Layer>(&layer);
                }
            })?;
        }
        let mut unknown = self.layers.unclaimed().map_err(io_error("look for the files of layers"))?;
        let world = self.state.read();
        let known: BTreeSet<&str> = world.all::<Layer>().map(|layer| layer.files.as_str()).collect();
        unknown.retain(|name| !known.contains(name.as_str()));
        for name in unknown {
            self.layers.remove(&name).map_err(io_error("remove a layer's files"))?;
            tracing::info!(files = name, "removed a layer that nobody needs any more");
        }
        Ok(())
    }

    /// Makes one layer of several, if that is worth its while anywhere. False if there is nothing to do.
    pub fn merge_some(&self, is_over: &dyn Fn() -> bool) -> bool {
        for mut run in stack::mergeable(&self.state.read()) {
            let Some(topmost) = run.last().map(|layer| layer.id.clone()) else { continue };
            if self.unmerged().get(&topmost).is_some_and(|failed| failed.elapsed() < REST) {
                continue;
            }
            let sizes = run.iter().map(|layer| self.layers.allocated(layer)).collect::<io::Result<Vec<_>>>();
            let merged = sizes.map_err(io_error("look at a layer")).and_then(|sizes| {
                run.drain(..worth_merging(&sizes));
                let size = sizes.iter().rev().take(run.len()).sum();
                if run.len() > 1 && self.has_room(size)? { self.merge(&run, is_over) } else { Ok(false) }
            });
            match merged {
                Ok(true) => return true,
                Ok(false) => {}
                Err(error) => {
                    let error = crate::instances::chain(&error);
                    tracing::warn!(layer = %topmost, error, "layers cannot be merged for now");
                    self.unmerged().insert(topmost, Instant::now());
                }
            }
        }
        false
    }

    fn unmerged(&self) -> MutexGuard<'_, BTreeMap<LayerId, Instant>> {
        self.unmerged.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether so much can be copied, and guests still have room to write.
    fn has_room(&self, bytes: u64) -> Result<bool, Error> {
        let free = self.layers.free().map_err(io_error("look for room"))?;
        Ok(free > bytes.saturating_add(RESERVE))
    }

    fn merge(&self, run: &[Arc<Layer>], is_over: &dyn Fn() -> bool) -> Result<bool, Error> {
        let files = LayerId::random().to_string();
        let _claim = self.layers.claim(&files);
        let open = |layer: &Arc<Layer>| self.layers.open(layer, Access::Read);
        let layers = run.iter().map(open).collect::<io::Result<_>>().map_err(io_error("open a layer"))?;
        let into = self.layers.make_files(&files).map_err(io_error("make a layer"))?;
        let begun = Instant::now();
        let mut copied = 0;
        let merged = layered::merge(layers, into, |bytes| {
            copied += bytes;
            let due = Duration::from_millis(copied.saturating_mul(1000) / RATE);
            std::thread::sleep(due.saturating_sub(begun.elapsed()).min(Duration::from_secs(1)));
            !is_over()
        });
        if let Err(cause) = merged.map(drop).and_then(|()| self.layers.sync()) {
            // Mostly the disk is full, and this is a part of what it is full of.
            self.layers.remove(&files).map_err(io_error("remove a layer's files"))?;
            return if is_over() { Ok(false) } else { Err(Error::Io { what: "merge layers", cause }) };
        }
        let done = self
            .state
            .change(|draft| -> Result<bool, StoreError> { Ok(stack::merged(draft, run, &files)) })?;
        tracing::info!(
            layers = run.len(),
            bytes = copied,
            done,
            "merged layers that nobody needs by themselves"
        );
        Ok(done)
    }
}

/// How many of the lowest layers of a run are better left alone, given what each takes, from the bottom.
fn worth_merging(sizes: &[u64]) -> usize {
    if sizes.len() > DEEP {
        return 0;
    }
    let mut above: u64 = 0;
    let mut first = sizes.len();
    for (index, size) in sizes.iter().enumerate().rev() {
        if first < sizes.len() && *size > above.saturating_mul(RATIO) {
            break;
        }
        above = above.saturating_add(*size);
        first = index;
    }
    first
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn large_layers_are_not_copied_for_small_ones() {
        for (sizes, left) in [
            (&[][..], 0),
            (&[100], 0),
            (&[100, 100], 0),
            (&[401, 100], 1),
            (&[400, 100], 0),
            (&[10_000, 100, 100, 100], 1),
            (&[10_000, 0, 0], 1),
            (&[1_000_000; 17], 0),
        ] {
            assert_eq!(worth_merging(sizes), left, "{sizes:?}");
        }
        let mut deep = vec![1; 16];
        deep.insert(0, 1_000_000);
        assert_eq!(worth_merging(&deep), 0);
    }
}
