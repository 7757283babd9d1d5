//! What is done for volumes while nobody asks for it: layers that nobody needs any more are removed, and those that nobody
//! needs by themselves are merged, so that stacks do not grow without end.

use std::collections::BTreeSet;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
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
    let stop = Stop(Arc::default());
    loop {
        tokio::select! {
            _ = ticks.tick() => {}
            () = volumes.changed.notified() => {}
        }
        let (volumes, stop) = (Arc::clone(&volumes), Arc::clone(&stop.0));
        let tidied = tokio::task::spawn_blocking(move || {
            volumes.settle_all();
            volumes.collect()?;
            let is_over = || stop.load(Ordering::Relaxed);
            while !is_over() && volumes.merge_some(&is_over)? {}
            volumes.collect()
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
    pub fn merge_some(&self, is_over: &dyn Fn() -> bool) -> Result<bool, Error> {
        for mut run in stack::mergeable(&self.state.read()) {
            let sizes = run.iter().map(|layer| self.layers.allocated(layer)).collect::<io::Result<Vec<_>>>();
            run.drain(..worth_merging(&sizes.map_err(io_error("look at a layer"))?));
            if run.len() > 1 {
                return self.merge(&run, is_over);
            }
        }
        Ok(false)
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
        match merged {
            Ok(_) => {}
            Err(_) if is_over() => return Ok(false),
            Err(cause) => return Err(Error::Io { what: "merge layers", cause }),
        }
        self.layers.sync().map_err(io_error("merge layers"))?;
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
