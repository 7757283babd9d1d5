//! What is kept of the consoles of instances whose VMM has ended.

use std::fs::{self, DirBuilder};
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::PathBuf;

use jiff::Timestamp;

use crate::ids::InstanceId;

/// What an instance has printed on its console.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConsoleOutput {
    /// At most the last 64 KiB.
    pub bytes: Vec<u8>,
    /// When it was looked at, or when the VMM ended.
    pub time: Timestamp,
}

/// One file per instance.
pub struct Consoles {
    directory: PathBuf,
}

impl Consoles {
    /// In this directory, which is made with the first console.
    pub fn new(directory: PathBuf) -> Self {
        Self { directory }
    }

    fn path(&self, instance: &InstanceId) -> PathBuf {
        self.directory.join(instance.as_str())
    }

    /// Keeps what a VMM that is about to end has kept.
    pub fn keep(&self, instance: &InstanceId, bytes: &[u8]) -> io::Result<()> {
        DirBuilder::new().recursive(true).mode(0o700).create(&self.directory)?;
        let new = self.directory.join(format!("{instance}.new"));
        fs::write(&new, bytes)?;
        fs::rename(new, self.path(instance))
    }

    /// What was kept, if anything was.
    pub fn read(&self, instance: &InstanceId) -> io::Result<Option<ConsoleOutput>> {
        let path = self.path(instance);
        match fs::read(&path) {
            Ok(bytes) => {
                let time =
                    Timestamp::try_from(fs::metadata(&path)?.modified()?).unwrap_or(Timestamp::UNIX_EPOCH);
                Ok(Some(ConsoleOutput { bytes, time }))
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Forgets an instance.
    pub fn remove(&self, instance: &InstanceId) {
        if let Err(error) = fs::remove_file(self.path(instance))
            && error.kind() != io::ErrorKind::NotFound
        {
            tracing::warn!(%instance, %error, "a console's file stays behind");
        }
    }

    /// Forgets the instances that are not wanted, and what a crash has left.
    pub fn retain(&self, is_wanted: impl Fn(&InstanceId) -> bool) {
        let Ok(entries) = fs::read_dir(&self.directory) else { return };
        for entry in entries.flatten() {
            let name = entry.file_name();
            let id = name.to_str().and_then(|name| name.parse::<InstanceId>().ok());
            if !id.is_some_and(|id| is_wanted(&id)) {
                // Tried again when the agent starts the next time.
                let _ = fs::remove_file(entry.path());
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_kept_is_read_until_it_is_forgotten() {
        let directory = tempfile::tempdir().unwrap();
        let consoles = Consoles::new(directory.path().join("consoles"));
        let (a, b) = (InstanceId::random(), InstanceId::random());
        assert_eq!(consoles.read(&a).unwrap(), None);
        consoles.keep(&a, b"one").unwrap();
        consoles.keep(&a, b"two").unwrap();
        consoles.keep(&b, b"").unwrap();
        assert_eq!(consoles.read(&a).unwrap().unwrap().bytes, b"two");
        consoles.retain(|id| *id == a);
        assert!(consoles.read(&b).unwrap().is_none());
        consoles.remove(&a);
        consoles.remove(&a);
        assert!(consoles.read(&a).unwrap().is_none());
    }
}
