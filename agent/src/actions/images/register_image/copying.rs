//! Brings an image about that is registered from a directory: copies its files, and records what they have become.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::mpsc::{RecvTimeoutError, sync_channel};
use std::thread;

use jiff::Timestamp;
use tokio::runtime::Handle;

use crate::ids::{ImageId, SnapshotId};
use crate::images::{self, Copy, Source, Turn};
use crate::instances::{Instances, chain};
use crate::query::ApiError;
use crate::records::{Image, ImageState, Snapshot, SnapshotState, Tags};
use crate::serve::Agent;
use crate::state::State;
use crate::store::StoreError;
use crate::volumes::Volumes;

/// An image that is recorded and has no files yet.
#[derive(Debug)]
pub(super) struct Copying {
    pub id: ImageId,
    /// Where they are.
    pub source: Source,
    /// What its root disk becomes, if that is no instance store.
    pub snapshot: SnapshotId,
    /// Of the snapshot.
    pub tags: BTreeMap<String, String>,
}

/// What the copying needs of the agent, which does not wait for it.
struct Parts {
    state: Arc<State>,
    volumes: Arc<Volumes>,
    instances: Instances,
    directory: PathBuf,
}

/// Copies the files on a thread of its own. Waits for that, though no longer than clients wait for an answer: then the image
/// is pending, and becomes available or failed. What goes wrong before is the answer, and the image is gone again.
///
/// # Errors
/// The files cannot be used, or the host failed.
pub(super) fn begin(agent: &Agent, turn: Turn, copying: Copying) -> Result<(), ApiError> {
    let parts = Parts {
        state: Arc::clone(&agent.state),
        volumes: Arc::clone(&agent.volumes),
        instances: agent.instances.clone(),
        directory: images::directory(&agent.config.state_directory),
    };
    let (id, patience) = (copying.id.clone(), turn.patience());
    // Without room in it: who is told knows that it was heard.
    let (tell, told) = sync_channel(0);
    let runtime = Handle::try_current().ok();
    let span = tracing::Span::current();
    let spawned = thread::Builder::new().name(format!("copy {id}")).spawn(move || {
        let _turn = turn;
        let (_entered, _span) = (runtime.as_ref().map(Handle::enter), span.entered());
        let id = copying.id.clone();
        let failure = match copy(&parts, copying) {
            Ok(()) => return drop(tell.send(Ok(()))),
            Err(failure) => failure,
        };
        let why = chain(&failure);
        if tell.send(Err(failure)).is_err() {
            tracing::error!(%id, why, "an image cannot be made");
            fail(&parts.state, &id, &why);
        }
    });
    let outcome = match spawned {
        Ok(_) => told.recv_timeout(patience),
        Err(error) => {
            forget(&agent.state, &id);
            return Err(ApiError::internal(error));
        }
    };
    match outcome {
        Ok(Ok(())) | Err(RecvTimeoutError::Timeout) => Ok(()),
        Ok(Err(failure)) => {
            forget(&agent.state, &id);
            Err(from_images(failure))
        }
        Err(RecvTimeoutError::Disconnected) => {
            forget(&agent.state, &id);
            Err(ApiError::internal(format!("the copying of {id} has panicked")))
        }
    }
}

fn copy(parts: &Parts, copying: Copying) -> Result<(), images::Error> {
    let Copying { id, source, snapshot, tags } = copying;
    source.check_boots(|disk| parts.instances.check_boots(disk))?;
    let copy = source.copy(&parts.directory, &id, &parts.volumes)?;
    let volume_size = source.volume_size();
    let recorded = parts.state.change(|draft| {
        let Some(image) = draft.get::<Image>(&id).filter(|image| image.is_copied) else {
            return Ok::<_, StoreError>(false);
        };
        let mut image = Image::clone(image);
        let Copy { boot, disk, .. } = &copy;
        image.boot.clone_from(boot);
        let layer = disk.as_ref().map(|disk| disk.record.id.clone());
        match (&mut image.root_store, layer) {
            (Some(store), layer) => store.layer = layer,
            (None, Some(layer)) => {
                draft.tag(&snapshot, tags);
                draft.put(Snapshot {
                    id: snapshot,
                    owner: image.owner.clone(),
                    description: format!("Root disk of {id}"),
                    volume_size,
                    volume: None,
                    started: image.created,
                    layer,
                    state: SnapshotState::Completed,
                    completed: Some(Timestamp::now()),
                    encrypted: false,
                    create_volume_permissions: Vec::new(),
                    file: None,
                });
            }
            (None, None) => {}
        }
        if let Some(disk) = disk {
            draft.put(disk.record.clone());
        }
        (image.state, image.is_copied) = (ImageState::Available, false);
        draft.put(image);
        Ok(true)
    });
    match recorded {
        Ok(true) => Ok(()),
        // It was deregistered meanwhile.
        Ok(false) => {
            copy.discard();
            Ok(())
        }
        Err(error) => {
            copy.discard();
            Err(images::Error::Store(error))
        }
    }
}

/// Takes back what was recorded of an image that nobody has seen yet.
fn forget(state: &State, id: &ImageId) {
    let forgotten = state.change(|draft| {
        draft.remove::<Image>(id);
        draft.remove::<Tags>(id);
        Ok::<_, StoreError>(())
    });
    if let Err(error) = forgotten {
        tracing::error!(%id, error = chain(&error), "an image without files stays in the store until the next start");
    }
}

fn fail(state: &State, id: &ImageId, why: &str) {
    let failed = state.change(|draft| {
        draft.update::<Image>(id, |image| image.fail(why));
        Ok::<_, StoreError>(())
    });
    if let Err(error) = failed {
        tracing::error!(%id, error = chain(&error), "an image stays pending until the next start");
    }
}

/// A problem with an image's files, as EC2 would say it.
pub(super) fn from_images(error: images::Error) -> ApiError {
    if error.is_the_clients() {
        return ApiError::new("InvalidManifest", error.to_string());
    }
    match &error {
        // SDKs try again after a while.
        images::Error::Busy => ApiError::new("RequestLimitExceeded", error.to_string()),
        _ => ApiError::internal(chain(&error)),
    }
}
