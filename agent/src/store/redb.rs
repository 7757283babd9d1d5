//! The store in a file on this host: redb, one table, from keys to documents.
//!
//! A commit is on the disk when it returns. One that fails, because the disk is full say, may or may not have reached
//! it; redb itself then wants to be opened anew. We do that, and put back what was there before: so who is told that
//! a transaction failed can rely on it, and the store works again as soon as the disk does.

use std::collections::BTreeMap;
use std::fmt;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use redb::{Builder, Database, DatabaseError, ReadableDatabase, TableDefinition, TableError};

use super::{InUse, Store, StoreError, Write};

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
    /// How things were before the commit that failed.
    undo: Before,
}

/// What keys had; none is nothing.
type Before = BTreeMap<String, Option<Vec<u8>>>;

/// How long the file may still be in use when it is opened: if an agent is killed while it starts a VMM, the process that
/// is to become that has the agent's files for a moment longer.
const LETTING_GO: Duration = Duration::from_secs(1);

impl fmt::Debug for Redb {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Redb").field("path", &self.path).finish_non_exhaustive()
    }
}

impl Redb {
    /// Opens the file, and makes it if it is not there. Nobody else can open it from now on. Blocks, for a second if somebody
    /// has it open.
    pub fn open(path: impl Into<PathBuf>) -> Result<Self, StoreError> {
        let path = path.into();
        let deadline = Instant::now() + LETTING_GO;
        let database = loop {
            match create(&path) {
                Err(DatabaseError::DatabaseAlreadyOpen) if Instant::now() < deadline => {
                    std::thread::sleep(LETTING_GO / 100);
                }
                result => break result.map_err(|cause| cannot_open(&path, cause))?,
            }
        };
        Ok(Self { path, inner: Mutex::new(Inner { database: Some(database), undo: Before::new() }) })
    }

    fn with_database<T>(
        &self,
        what: &dyn fmt::Display,
        work: impl FnOnce(&Database, &mut Before) -> Result<T, redb::Error>,
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
fn settle(database: &Database, undo: &mut Before) -> Result<(), redb::Error> {
    if !undo.is_empty() {
        let writes: Vec<Write> =
            undo.iter().map(|(key, value)| Write { key: key.clone(), value: value.clone() }).collect();
        write(database, &writes, &mut Before::new())?;
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
fn write(database: &Database, writes: &[Write], undo: &mut Before) -> Result<(), redb::Error> {
    let transaction = database.begin_write()?;
    {
        let mut table = transaction.open_table(DOCUMENTS)?;
        for Write { key, value } in writes {
            let before = match value {
                Some(value) => table.insert(key.as_str(), value.as_slice())?,
                None => table.remove(key.as_str())?,
            };
            let before = before.map(|before| before.value().to_vec());
            undo.entry(key.clone()).or_insert(before);
        }
    }
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
        DatabaseError::DatabaseAlreadyOpen => InUse.into(),
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

#[cfg(test)]
mod tests {
    use std::io::{BufRead, BufReader, Write as _};
    use std::os::unix::fs::PermissionsExt;
    use std::process::{Child, Command, Stdio};

    use super::*;

    /// Where a child of this test program finds the file that it is to write to.
    const FILE: &str = "INNKEEPER_TEST_STORE";

    fn put(key: &str, value: impl ToString) -> Write {
        Write { key: key.into(), value: Some(value.to_string().into_bytes()) }
    }

    fn delete(key: &str) -> Write {
        Write { key: key.into(), value: None }
    }

    fn all(store: &dyn Store) -> Vec<(String, String)> {
        let documents = store.load("").unwrap().into_iter();
        documents.map(|(key, value)| (key, String::from_utf8(value).unwrap())).collect()
    }

    fn texts<const N: usize>(pairs: [(&str, &str); N]) -> Vec<(String, String)> {
        pairs.map(|(key, value)| (key.to_owned(), value.to_owned())).into()
    }

    #[test]
    fn what_is_written_is_there_when_it_is_opened_again() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("state.redb");
        let store = Redb::open(&path).unwrap();
        assert_eq!(all(&store), []);
        store.commit(&[put("a/1", 1), put("a/2", 2), put("ab/1", 3), put("b/1", 4)]).unwrap();
        store.commit(&[delete("a/1"), put("b/1", 5), delete("c/1")]).unwrap();
        assert_eq!(store.load("a/").unwrap(), [("a/2".into(), b"2".to_vec())]);
        drop(store);
        let expected = texts([("a/2", "2"), ("ab/1", "3"), ("b/1", "5")]);
        assert_eq!(all(&Redb::open(&path).unwrap()), expected);
        let read: Vec<String> = read_everything(&path).unwrap().into_iter().map(|(key, _)| key).collect();
        assert_eq!(read, ["a/2", "ab/1", "b/1"]);
    }

    #[test]
    fn nobody_else_can_read_or_open_it() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("state.redb");
        let store = Redb::open(&path).unwrap();
        assert_eq!(path.metadata().unwrap().permissions().mode() & 0o777, 0o600);
        for error in [Redb::open(&path).err(), read_everything(&path).err()] {
            let error = error.unwrap();
            assert_eq!(error.to_string(), format!("the state store cannot open {}", path.display()));
            assert!(error.is_in_use(), "{}", error.cause);
        }
        drop(store);
        Redb::open(&path).unwrap();
    }

    #[test]
    fn what_cannot_be_opened_is_named() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("missing/state.redb");
        let error = Redb::open(&path).unwrap_err();
        assert!(error.to_string().ends_with("missing/state.redb"), "{error}");
        let path = directory.path().join("state.redb");
        std::fs::write(&path, "not a store".repeat(1000)).unwrap();
        assert!(Redb::open(&path).is_err());
    }

    #[test]
    fn what_a_failed_commit_may_have_written_is_undone() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("state.redb");
        let store = Redb::open(&path).unwrap();
        store.commit(&[put("a/1", 1), put("a/2", 2)]).unwrap();
        {
            // It has reached the disk, but redb did not say so.
            let mut inner = store.inner.lock().unwrap();
            let Inner { database, undo } = &mut *inner;
            let writes = [put("a/1", 7), delete("a/2"), put("a/3", 7), put("a/1", 8), put("a/3", 8)];
            write(database.as_ref().unwrap(), &writes, undo).unwrap();
            *database = None;
        }
        assert_eq!(all(&store), texts([("a/1", "1"), ("a/2", "2")]));
        store.commit(&[put("a/3", 3)]).unwrap();
        assert_eq!(all(&store), texts([("a/1", "1"), ("a/2", "2"), ("a/3", "3")]));
    }

    /// Runs one of the tests below in a process of its own.
    fn child(test: &str, path: &Path) -> Child {
        let mut command = Command::new(std::env::current_exe().unwrap());
        command.args(["--exact", &format!("store::redb::tests::{test}"), "--nocapture", "--ignored"]);
        command.env(FILE, path).stdout(Stdio::piped()).spawn().unwrap()
    }

    #[test]
    #[ignore = "is the child of another test"]
    fn child_that_writes_until_it_is_killed() {
        let Some(path) = std::env::var_os(FILE) else { return };
        let store = Redb::open(PathBuf::from(path)).unwrap();
        let last = store
            .load("a/last")
            .unwrap()
            .pop()
            .map_or(0, |(_, value)| String::from_utf8(value).unwrap().parse::<u64>().unwrap());
        for number in last + 1.. {
            let bulk = "x".repeat(usize::try_from(number % 50).unwrap() * 100);
            let writes =
                [put("a/last", number), put("b/last", number), put(&format!("c/{}", number % 20), bulk)];
            store.commit(&writes).unwrap();
            let _ = writeln!(std::io::stdout(), "committed {number}");
        }
    }

    #[test]
    fn a_killed_process_loses_nothing_that_it_was_told_is_written() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("state.redb");
        let mut before = 0;
        for round in 0..8 {
            let mut child = child("child_that_writes_until_it_is_killed", &path);
            let mut committed = before;
            let lines = BufReader::new(child.stdout.take().unwrap()).lines().map_while(Result::ok);
            for line in lines {
                if let Some((_, number)) = line.split_once("committed ") {
                    committed = number.parse().unwrap();
                    if committed == before + 5 + 3 * round {
                        child.kill().unwrap();
                    }
                }
            }
            child.wait().unwrap();
            // What was on its way may be there too, as a whole.
            let documents = read_everything(&path).unwrap().into_iter();
            let documents: Vec<(String, String)> =
                documents.map(|(key, value)| (key, String::from_utf8(value).unwrap())).collect();
            let last =
                |key| documents.iter().find(|(found, _)| found == key).unwrap().1.parse::<u64>().unwrap();
            assert!(
                (committed..=committed + 1).contains(&last("a/last")),
                "{committed} of {}",
                last("a/last")
            );
            assert_eq!(last("a/last"), last("b/last"));
            before = last("a/last");
        }
    }

    #[test]
    #[ignore = "is the child of another test"]
    fn child_whose_disk_is_full_for_a_while() {
        let Some(path) = std::env::var_os(FILE) else { return };
        let path = PathBuf::from(path);
        let limit = |bytes: u64| {
            let limit = libc::rlimit { rlim_cur: bytes, rlim_max: libc::RLIM_INFINITY };
            // SAFETY: setrlimit reads the structure that it is given, and nothing else.
            assert_eq!(unsafe { libc::setrlimit(libc::RLIMIT_FSIZE, &limit) }, 0);
        };
        // SAFETY: a signal that is ignored calls nothing. Writes beyond the limit then fail.
        unsafe { libc::signal(libc::SIGXFSZ, libc::SIG_IGN) };
        let store = Redb::open(&path).unwrap();
        store.commit(&[put("a/1", 1)]).unwrap();
        let bulk = "x".repeat(1 << 20);
        let mut failures = 0;
        for number in 0..16 {
            let size = path.metadata().unwrap().len();
            limit(if number % 2 == 0 { size } else { libc::RLIM_INFINITY });
            let before = store.load("a/").unwrap();
            let key = format!("b/{number}");
            match store.commit(&[put("a/1", number), put(&key, &bulk)]) {
                Ok(()) => assert_eq!(store.load(&key).unwrap().len(), 1),
                Err(error) => {
                    failures += 1;
                    assert!(number % 2 == 0, "{number}: {error}: {}", error.cause);
                    limit(libc::RLIM_INFINITY);
                    assert_eq!(store.load("a/").unwrap(), before);
                    assert_eq!(store.load(&key).unwrap(), []);
                }
            }
        }
        assert!(failures > 1, "the disk was full {failures} times");
        let expected = all(&store);
        drop(store);
        assert_eq!(all(&Redb::open(&path).unwrap()), expected);
        let _ = writeln!(std::io::stdout(), "survived");
    }

    #[test]
    fn a_full_disk_fails_a_commit_as_a_whole_and_later_ones_succeed() {
        let directory = tempfile::tempdir().unwrap();
        let child = child("child_whose_disk_is_full_for_a_while", &directory.path().join("state.redb"));
        let output = child.wait_with_output().unwrap();
        let text = String::from_utf8_lossy(&output.stdout);
        assert!(text.contains("survived"), "{text}");
    }
}
