//! What an agent of before there were layers has left: a raw file for each volume, and one for each snapshot. Each
//! becomes the data of a layer, without being copied.

use std::fs;
use std::io;
use std::path::Path;

use super::{Error, NewLayer, Volumes, io_error};
use crate::ids::LayerId;
use crate::records::{Layer, Snapshot, SnapshotState, Volume};

impl Volumes {
    /// Makes layers of the files of snapshots, and of the volumes that no guest has. To be called when the agent starts.
    pub fn adopt_all(&self) {
        let world = self.state.read();
        let is_old = |layer: &LayerId| world.get::<Layer>(layer).is_none();
        for snapshot in world.all::<Snapshot>().filter(|snapshot| is_old(&snapshot.layer)) {
            if let Err(error) = self.adopt_snapshot(snapshot) {
                let error = crate::instances::chain(&error);
                tracing::error!(snapshot = %snapshot.id, error, "its file does not become a layer");
            }
        }
        for volume in world.all::<Volume>().filter(|volume| is_old(&volume.layer)) {
            if let Err(error) = self.adopt_volume(volume) {
                let error = crate::instances::chain(&error);
                tracing::warn!(volume = %volume.id, error, "its file does not become a layer yet");
            }
        }
    }

    fn adopt_snapshot(&self, snapshot: &Snapshot) -> Result<(), Error> {
        let base = match &snapshot.file {
            Some(file) => self.link(file, snapshot.layer.clone())?,
            None => None,
        };
        let is_lost = snapshot.file.is_some() && base.is_none();
        self.record(|draft| {
            // Without a file it was one of nothing.
            let size = u64::from(snapshot.volume_size) << 30;
            let layer = base.as_ref().map_or_else(|| Layer::plan(None, size), |base| base.record.clone());
            draft.put(Layer { id: snapshot.layer.clone(), ..layer });
            // Its layer was named when it was read, and is written down with this.
            draft.update::<Snapshot>(&snapshot.id, |snapshot| {
                snapshot.file = None;
                if is_lost {
                    snapshot.state = SnapshotState::Error("its file is not there any more".into());
                }
            });
        })?;
        Ok(())
    }

    /// Makes a layer of a volume's file, and puts another one on it.
    pub(super) fn adopt_volume(&self, volume: &Volume) -> Result<(), Error> {
        let path = self.legacy.join(format!("{}.raw", volume.id));
        let base = self.link(&path, LayerId::random())?;
        let size = u64::from(volume.size) << 30;
        self.record(|draft| {
            let snapshot = volume.snapshot.as_ref().and_then(|id| draft.get::<Snapshot>(id));
            let parent = match &base {
                Some(base) => Some(base.record.id.clone()),
                None => snapshot.map(|snapshot| snapshot.layer.clone()),
            };
            if let Some(base) = &base {
                draft.put(base.record.clone());
            }
            draft.put(Layer { id: volume.layer.clone(), ..Layer::plan(parent, size) });
            // The layer was named when the volume was read, and would be another one the next time.
            draft.update::<Volume>(&volume.id, |record| record.layer = volume.layer.clone());
        })?;
        match fs::remove_file(&path) {
            Err(cause) if cause.kind() != io::ErrorKind::NotFound => {
                Err(Error::Io { what: "remove a volume's old file", cause })
            }
            _ => Ok(()),
        }
    }

    /// Makes a layer of a raw file, if it is there. The file stays, and has the same content.
    fn link(&self, file: &Path, id: LayerId) -> Result<Option<NewLayer>, Error> {
        if !file.try_exists().map_err(io_error("look for a disk"))? {
            return Ok(None);
        }
        let mut record = Layer { files: id.to_string(), id, ..Layer::plan(None, 0) };
        let claim = self.layers.claim(&record.files);
        let made = self.layers.adopt(&record.files, file).map_err(io_error("make a layer of a disk"))?;
        // A VMM that an earlier agent has started may still write to it.
        if made.data.try_lock().is_err() {
            let cause = io::Error::new(io::ErrorKind::ResourceBusy, "its guest still runs: stop it first");
            return Err(Error::Io { what: "make a layer of a disk", cause });
        }
        made.data.unlock().map_err(io_error("make a layer of a disk"))?;
        self.seal_imported(&mut record, made)?;
        Ok(Some(NewLayer { record, _claim: claim }))
    }
}
