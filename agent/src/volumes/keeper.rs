//! What is done for volumes while nobody asks for it: layers that nobody needs any more are removed.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::{MissedTickBehavior, interval};

use super::{Error, Volumes, io_error, stack};
use crate::records::Layer;

/// How often it looks without being asked to.
const PERIOD: Duration = Duration::from_secs(10);

/// Tidies up whenever something was deleted, and now and then, until it is dropped.
pub async fn keep(volumes: Arc<Volumes>) {
    let mut ticks = interval(PERIOD);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let settled = {
        let volumes = Arc::clone(&volumes);
        tokio::task::spawn_blocking(move || volumes.settle_all()).await
    };
    if let Err(error) = settled {
        tracing::error!(%error, "volumes of before the start are not settled");
    }
    loop {
        tokio::select! {
            _ = ticks.tick() => {}
            () = volumes.changed.notified() => {}
        }
        let volumes = Arc::clone(&volumes);
        match tokio::task::spawn_blocking(move || volumes.collect()).await {
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
}
