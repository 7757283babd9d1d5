//! What a store says of itself: the document `meta/format` has the number of the form of the whole, and the program
//! that wrote it last.
//!
//! Records have versions of their own, and most changes are changes of one kind of record. The format's number goes up
//! when keys move, kinds merge or split, or documents have to be made from others: then [`MIGRATIONS`] gets a function
//! that leads from the form before to the new one.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::{Store, StoreError, Write};

/// Where it is.
const KEY: &str = "meta/format";

/// Who writes.
const PROGRAM: &str = concat!("innkeeper ", env!("CARGO_PKG_VERSION"));

/// All of a store, by key.
pub type Documents = BTreeMap<String, Vec<u8>>;

/// Leads from one format to the next. Sees everything, and changes what has to be.
pub type Migration = fn(&mut Documents) -> Result<(), String>;

/// From format 1 to 2, from 2 to 3, and so on.
pub const MIGRATIONS: &[Migration] = &[];

#[derive(Debug, PartialEq, Serialize, Deserialize)]
struct Format {
    format: usize,
    program: String,
}

/// Makes a store ready for this agent: begins a new one, brings an old one up to date in one transaction, refuses one
/// that a newer agent has written.
pub fn prepare(store: &dyn Store, migrations: &[Migration]) -> Result<(), StoreError> {
    let newest = migrations.len() + 1;
    let documents: Documents = store.load("")?.into_iter().collect();
    let written = check(&documents, newest)?;
    let format = Format { format: newest, program: PROGRAM.to_owned() };
    if written.as_ref() == Some(&format) {
        return Ok(());
    }
    let mut migrated = documents.clone();
    let from = written.map_or(newest, |written| written.format);
    for (number, migrate) in (1..).zip(migrations).skip(from.saturating_sub(1)) {
        tracing::info!(from = number, to = number + 1, "migrating the state store");
        migrate(&mut migrated).map_err(|reason| {
            refused(format!("it cannot be brought from format {number} to the next: {reason}"))
        })?;
    }
    let bytes = serde_json::to_vec(&format)
        .map_err(|cause| StoreError { what: format!("write {KEY}"), cause: cause.into() })?;
    migrated.insert(KEY.to_owned(), bytes);
    store.commit(&difference(&documents, &migrated))
}

/// What the store says of itself, if this agent can read it. Nothing is said in an empty one.
fn check(documents: &Documents, newest: usize) -> Result<Option<Format>, StoreError> {
    let Some(bytes) = documents.get(KEY) else {
        return match documents.is_empty() {
            true => Ok(None),
            false => Err(refused(format!("it has no {KEY}: this is not the state of an innkeeper"))),
        };
    };
    let written: Format =
        serde_json::from_slice(bytes).map_err(|error| refused(format!("{KEY}: {error}")))?;
    if written.format == 0 || written.format > newest {
        return Err(refused(format!(
            "it has format {} and was written by {}; this is {PROGRAM}, which knows formats up to {newest}. Install \
             {} or newer, or begin anew with another state-directory",
            written.format, written.program, written.program
        )));
    }
    Ok(Some(written))
}

/// Refuses documents that a newer agent has written, and those that are not ours.
pub fn understand(documents: &Documents) -> Result<(), StoreError> {
    check(documents, MIGRATIONS.len() + 1).map(drop)
}

fn refused(reason: String) -> StoreError {
    StoreError { what: "be used".to_owned(), cause: reason.into() }
}

/// What turns one into the other.
fn difference(before: &Documents, after: &Documents) -> Vec<Write> {
    let gone = before.keys().filter(|key| !after.contains_key(*key));
    let gone = gone.map(|key| Write { key: key.clone(), value: None });
    let changed = after.iter().filter(|(key, value)| before.get(*key) != Some(value));
    let changed = changed.map(|(key, value)| Write { key: key.clone(), value: Some(value.clone()) });
    gone.chain(changed).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::memory::Memory;

    fn write(store: &Memory, key: &str, value: &str) {
        store.commit(&[Write { key: key.into(), value: Some(value.into()) }]).unwrap();
    }

    fn texts(store: &Memory) -> Vec<(String, String)> {
        let texts = store.load("").unwrap().into_iter();
        texts.map(|(key, value)| (key, String::from_utf8(value).unwrap())).collect()
    }

    /// Keys were in upper case.
    fn to_lower_case(documents: &mut Documents) -> Result<(), String> {
        let upper: Vec<String> = documents.keys().filter(|key| key.starts_with("A/")).cloned().collect();
        for key in upper {
            let value = documents.remove(&key).unwrap();
            documents.insert(key.to_lowercase(), value);
        }
        Ok(())
    }

    /// Documents had no mark.
    fn mark(documents: &mut Documents) -> Result<(), String> {
        for (_, value) in documents.iter_mut().filter(|(key, _)| key.starts_with("a/")) {
            if value.starts_with(b"broken") {
                return Err("a/ is broken".into());
            }
            value.push(b'!');
        }
        Ok(())
    }

    fn format_of(store: &Memory) -> Format {
        serde_json::from_slice(&store.load(KEY).unwrap()[0].1).unwrap()
    }

    #[test]
    fn an_empty_store_gets_the_newest_format() {
        let store = Memory::default();
        prepare(&store, &[to_lower_case, mark]).unwrap();
        assert_eq!(format_of(&store), Format { format: 3, program: PROGRAM.into() });
    }

    #[test]
    fn an_older_store_is_brought_up_to_date_once() {
        let store = Memory::default();
        write(&store, KEY, r#"{"format":1,"program":"innkeeper 0.0.1"}"#);
        write(&store, "A/X", "x");
        write(&store, "b/y", "y");
        prepare(&store, &[to_lower_case]).unwrap();
        for _ in 0..2 {
            prepare(&store, &[to_lower_case, mark]).unwrap();
        }
        let expected = [("a/x", "x!"), ("b/y", "y")].map(|(key, value)| (key.to_owned(), value.to_owned()));
        assert_eq!(texts(&store)[..2], expected);
        assert_eq!(format_of(&store), Format { format: 3, program: PROGRAM.into() });
    }

    #[test]
    fn a_migration_that_fails_changes_nothing() {
        let store = Memory::default();
        write(&store, KEY, r#"{"format":1,"program":"innkeeper 0.0.1"}"#);
        write(&store, "A/X", "broken");
        let before = texts(&store);
        let error = prepare(&store, &[to_lower_case, mark]).unwrap_err();
        assert_eq!(error.cause.to_string(), "it cannot be brought from format 2 to the next: a/ is broken");
        assert_eq!(texts(&store), before);
    }

    #[test]
    fn a_newer_store_is_refused_by_the_name_of_who_wrote_it() {
        let store = Memory::default();
        write(&store, KEY, r#"{"format":2,"program":"innkeeper 7.1.0"}"#);
        let before = texts(&store);
        let reason = prepare(&store, &[]).unwrap_err().cause.to_string();
        assert!(reason.contains("written by innkeeper 7.1.0"), "{reason}");
        assert!(reason.contains("Install innkeeper 7.1.0 or newer"), "{reason}");
        assert_eq!(texts(&store), before);
    }

    #[test]
    fn something_else_is_not_taken_for_a_store() {
        let store = Memory::default();
        write(&store, "a/x", "x");
        assert!(prepare(&store, MIGRATIONS).is_err());
    }
}
