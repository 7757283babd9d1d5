//! The store in a file on this host: redb, one table, from keys to documents.
//!
//! A commit is on the disk when it returns. One that fails, because the disk is full say, may or may not have reached
//! it; redb itself then wants to be opened anew. We do that, and put back what was there before: so who is told that
//! a transaction failed can rely on it, and the store works again as soon as the disk does.

use std::fmt;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use redb::{Builder, Database, DatabaseError, ReadableDatabase, TableDefinition, TableError};

use super::{Store, StoreError, Write};

/// The only table.
const DOCUMENTS: TableDefinition<&str, &[u8]> = TableDefinition::new("documents");

/// What redb may keep in memory, in bytes. The agent reads everything once and then only writes.
const CACHE: usize = 8 << 20;

/// The store's file.
pub struct Redb {
    path: PathBuf,
    inner: Mutex<Inner>,
}

struct Inner {
    /// None when the file could not be opened again after a failure.
    database: Option<Database>,
    /// What puts back how things were before the commit that failed.
    undo: Vec<Write>,
}

impl fmt::Debug for Redb {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Redb").field("path", &self.path).finish_non_exhaustive()
    }
}

impl Redb {
    /// Opens the file, and makes it if it is not there. Nobody else can open it from now on.
    pub fn open(path: impl Into<PathBuf>) -> Result<Self, StoreError> {
        let path = path.into();
        let database = create(&path).map_err(|cause| cannot_open(&path, cause))?;
        Ok(Self { path, inner: Mutex::new(Inner { database: Some(database), undo: Vec::new() }) })
    }

    fn with_database<T>(
        &self,
        what: &dyn fmt::Display,
        work: impl FnOnce(&Database, &mut Vec<Write>) -> Result<T, redb::Error>,
    ) -> Result<T, StoreError> {
        let mut inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        let Inner { database, undo } = &mut *inner;
        let opened = match database {
            Some(opened) => opened,
            None => database.insert(create(&self.path).map_err(|cause| cannot_open(&self.path, cause))?),
        };
        let failed = |cause: redb::Error| StoreError { what: what.to_string(), cause: cause.into() };
        let result = settle(opened, undo).and_then(|()| work(opened, undo)).map_err(failed);
        if result.is_err() {
            // redb does not write again after an error: see `redb::StorageError::PreviousIo`. What cannot be done now
            // is done before the store is used the next time.
            *database = None;
            if let Ok(opened) = create(&self.path) {
                let _ = settle(&opened, undo);
                *database = Some(opened);
            }
        }
        result
    }
}

impl Store for Redb {
    fn load(&self, prefix: &str) -> Result<Vec<(String, Vec<u8>)>, StoreError> {
        let what = format!("read {prefix:?} from {}", self.path.display());
        self.with_database(&what, |database, _| read(database, prefix))
    }

    fn commit(&self, writes: &[Write]) -> Result<(), StoreError> {
        let what = format!("write to {}", self.path.display());
        self.with_database(&what, |database, undo| {
            write(database, writes, undo)?;
            undo.clear();
            Ok(())
        })
    }
}

/// Undoes a commit that has failed, if there is one.
fn settle(database: &Database, undo: &mut Vec<Write>) -> Result<(), redb::Error> {
    if !undo.is_empty() {
        write(database, undo, &mut Vec::new())?;
        undo.clear();
    }
    Ok(())
}

fn read(database: &impl ReadableDatabase, prefix: &str) -> Result<Vec<(String, Vec<u8>)>, redb::Error> {
    let transaction = database.begin_read()?;
    let table = match transaction.open_table(DOCUMENTS) {
        Ok(table) => table,
        // Nothing has been written yet.
        Err(TableError::TableDoesNotExist(_)) => return Ok(Vec::new()),
        Err(error) => return Err(error.into()),
    };
    let mut found = Vec::new();
    for entry in table.range(prefix..)? {
        let (key, value) = entry?;
        if !key.value().starts_with(prefix) {
            break;
        }
        found.push((key.value().to_owned(), value.value().to_vec()));
    }
    Ok(found)
}

/// Writes durably; `undo` gets what was there before, before anything can be on the disk.
fn write(database: &Database, writes: &[Write], undo: &mut Vec<Write>) -> Result<(), redb::Error> {
    let transaction = database.begin_write()?;
    {
        let mut table = transaction.open_table(DOCUMENTS)?;
        for Write { key, value } in writes {
            let before = match value {
                Some(value) => table.insert(key.as_str(), value.as_slice())?,
                None => table.remove(key.as_str())?,
            };
            undo.push(Write { key: key.clone(), value: before.map(|guard| guard.value().to_vec()) });
        }
    }
    // A key may be written twice: the last undoing is that of the first write.
    undo.reverse();
    transaction.commit()?;
    Ok(())
}

/// Opens the file to write, and makes it if it is not there.
fn create(path: &Path) -> Result<Database, DatabaseError> {
    let file = OpenOptions::new().read(true).write(true).create(true).truncate(false).mode(0o600).open(path);
    drop(file.map_err(storage)?);
    let database = Builder::new().set_cache_size(CACHE).create(path)?;
    // The file's name is to survive too.
    if let Some(directory) = path.parent() {
        File::open(directory).and_then(|directory| directory.sync_all()).map_err(storage)?;
    }
    Ok(database)
}

fn storage(error: io::Error) -> DatabaseError {
    DatabaseError::Storage(error.into())
}

fn cannot_open(path: &Path, cause: DatabaseError) -> StoreError {
    let cause = match cause {
        DatabaseError::DatabaseAlreadyOpen => "it is in use by another innkeeper serve".into(),
        other => other.into(),
    };
    StoreError { what: format!("open {}", path.display()), cause }
}

/// Everything in the file at `path`, which stays as it is, unless whoever wrote it last was killed: then redb has to
/// repair it first, as the next agent would.
pub fn read_everything(path: &Path) -> Result<Vec<(String, Vec<u8>)>, StoreError> {
    let failed =
        |cause: redb::Error| StoreError { what: format!("read {}", path.display()), cause: cause.into() };
    match Builder::new().set_cache_size(CACHE).open_read_only(path) {
        Ok(database) => read(&database, "").map_err(failed),
        Err(DatabaseError::RepairAborted) => {
            let database = Builder::new().set_cache_size(CACHE).open(path);
            read(&database.map_err(|cause| cannot_open(path, cause))?, "").map_err(failed)
        }
        Err(cause) => Err(cannot_open(path, cause)),
    }
}
