//! The files of layers: two in one directory for each, `NAME.data` and `NAME.map`.
//!
//! Which there are is for the records to say. A file whose name is in no record is garbage, unless it is about to be
//! recorded: then somebody has a [`Claim`] to the name.

use std::collections::BTreeSet;
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use innkeeper_block::layered::{self, LayerDescription};
use nix::sys::statvfs::statvfs;

use crate::records::Layer;

/// The files' extensions.
const KINDS: [&str; 2] = ["data", "map"];

/// The directory.
#[derive(Debug)]
pub struct Layers {
    directory: PathBuf,
    claimed: Arc<Mutex<BTreeSet<String>>>,
}

/// The right to a name that no record has yet, until it is dropped.
#[derive(Debug)]
pub struct Claim {
    name: String,
    claimed: Arc<Mutex<BTreeSet<String>>>,
}

impl Drop for Claim {
    fn drop(&mut self) {
        lock(&self.claimed).remove(&self.name);
    }
}

fn lock(claimed: &Mutex<BTreeSet<String>>) -> MutexGuard<'_, BTreeSet<String>> {
    claimed.lock().unwrap_or_else(PoisonError::into_inner)
}

/// How the files of a layer are opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// For reading.
    Read,
    /// For reading and writing.
    Write,
}

impl Layers {
    /// In this directory, which is made with the first layer.
    pub fn new(directory: PathBuf) -> Self {
        Self { directory, claimed: Arc::default() }
    }

    fn path(&self, name: &str, kind: &str) -> PathBuf {
        self.directory.join(format!("{name}.{kind}"))
    }

    /// Claims a name. What is made under it is no garbage until a record has the name, or the claim is gone.
    pub fn claim(&self, name: &str) -> Claim {
        lock(&self.claimed).insert(name.to_owned());
        Claim { name: name.to_owned(), claimed: Arc::clone(&self.claimed) }
    }

    /// Makes two empty files. What an interrupted call has left is thrown away.
    pub fn make_files(&self, name: &str) -> io::Result<layered::Layer> {
        DirBuilder::new().recursive(true).mode(0o700).create(&self.directory)?;
        self.remove(name)?;
        let new = |kind| {
            let mut options = OpenOptions::new();
            options.read(true).write(true).create_new(true).mode(0o600).open(self.path(name, kind))
        };
        let [data, map] = KINDS;
        Ok(layered::Layer { data: new(data)?, map: new(map)? })
    }

    /// Makes the data file another name of `file`, and an empty map.
    pub fn adopt(&self, name: &str, file: &Path) -> io::Result<layered::Layer> {
        let made = self.make_files(name)?;
        let [data, _] = KINDS;
        let path = self.path(name, data);
        fs::remove_file(&path)?;
        fs::hard_link(file, &path)?;
        Ok(layered::Layer { data: OpenOptions::new().read(true).write(true).open(path)?, ..made })
    }

    /// Makes the files of an empty layer. They are on the disk when this returns, and so are their names.
    pub fn make(&self, layer: &Layer) -> io::Result<()> {
        let parent = layer.parent.as_ref().map(|parent| parent.uuid());
        let description = LayerDescription { id: layer.id.uuid(), parent, size: layer.size };
        layered::create_layer(&self.make_files(&layer.files)?, &description)?;
        self.sync()
    }

    /// Makes names that were made, and others that are gone, survive a crash of the host.
    pub fn sync(&self) -> io::Result<()> {
        File::open(&self.directory)?.sync_all()
    }

    /// Opens the files of a layer.
    pub fn open(&self, layer: &Layer, access: Access) -> io::Result<layered::Layer> {
        let open = |kind| {
            let path = self.path(&layer.files, kind);
            let opened = OpenOptions::new().read(true).write(access == Access::Write).open(&path);
            opened.map_err(|error| io::Error::new(error.kind(), format!("{}: {error}", path.display())))
        };
        let [data, map] = KINDS;
        Ok(layered::Layer { data: open(data)?, map: open(map)? })
    }

    /// What the data of a layer takes, in bytes.
    pub fn allocated(&self, layer: &Layer) -> io::Result<u64> {
        const UNIT: u64 = 512;
        let [data, _] = KINDS;
        Ok(fs::metadata(self.path(&layer.files, data))?.blocks() * UNIT)
    }

    /// How much can still be written where the layers are, in bytes.
    pub fn free(&self) -> io::Result<u64> {
        let found = statvfs(&self.directory)?;
        Ok(found.blocks_available().saturating_mul(found.fragment_size()))
    }

    /// Removes the files of a name. Without effect if there are none.
    pub fn remove(&self, name: &str) -> io::Result<()> {
        KINDS.iter().try_for_each(|kind| match fs::remove_file(self.path(name, kind)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        })
    }

    /// The names of all files that are there and that nobody has claimed.
    pub fn unclaimed(&self) -> io::Result<BTreeSet<String>> {
        let mut names = BTreeSet::new();
        let entries = match fs::read_dir(&self.directory) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(names),
            entries => entries?,
        };
        for entry in entries {
            let entry = entry?.file_name();
            let path = Path::new(&entry);
            let kind = path.extension().and_then(|kind| kind.to_str());
            if kind.is_some_and(|kind| KINDS.contains(&kind)) {
                names.extend(path.file_stem().and_then(|stem| Some(stem.to_str()?.to_owned())));
            }
        }
        // Looked at after the files: what was claimed then and is not now has a record.
        let claimed = lock(&self.claimed);
        names.retain(|name| !claimed.contains(name));
        Ok(names)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_layer_is_made_anew_until_it_is_recorded() {
        let directory = tempfile::tempdir().unwrap();
        let layers = Layers::new(directory.path().join("layers"));
        assert!(layers.unclaimed().unwrap().is_empty());
        let layer = Layer::plan(None, 1 << 20);
        assert_eq!(layers.open(&layer, Access::Read).unwrap_err().kind(), io::ErrorKind::NotFound);
        for _ in 0..2 {
            layers.make(&layer).unwrap();
            let files = layers.open(&layer, Access::Write).unwrap();
            assert!(innkeeper_block::Layered::open(vec![files], false).is_ok());
        }
        let claim = layers.claim(&layer.files);
        assert!(layers.unclaimed().unwrap().is_empty());
        drop(claim);
        assert_eq!(layers.unclaimed().unwrap(), BTreeSet::from([layer.files.clone()]));
        layers.remove(&layer.files).unwrap();
        layers.remove(&layer.files).unwrap();
        assert!(layers.unclaimed().unwrap().is_empty());
    }
}
