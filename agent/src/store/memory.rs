//! A store in memory, for tests: nothing of it survives.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};

use super::{Store, StoreError, Write};

/// Keys and documents.
#[derive(Debug, Default)]
pub struct Memory {
    documents: Mutex<BTreeMap<String, Vec<u8>>>,
}

impl Store for Memory {
    fn load(&self, prefix: &str) -> Result<Vec<(String, Vec<u8>)>, StoreError> {
        let documents = self.documents.lock().unwrap_or_else(PoisonError::into_inner);
        let found = documents.range(prefix.to_owned()..).take_while(|(key, _)| key.starts_with(prefix));
        Ok(found.map(|(key, value)| (key.clone(), value.clone())).collect())
    }

    fn commit(&self, writes: &[Write]) -> Result<(), StoreError> {
        let mut documents = self.documents.lock().unwrap_or_else(PoisonError::into_inner);
        for Write { key, value } in writes {
            match value {
                Some(value) => documents.insert(key.clone(), value.clone()),
                None => documents.remove(key),
            };
        }
        Ok(())
    }
}
