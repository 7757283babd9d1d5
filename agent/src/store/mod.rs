//! Where documents are kept: keys and values, changed in transactions that survive a crash.
//!
//! Keys are `kind/name`. The trait is small enough for an embedded store, for memory in tests, and later for a store
//! that many hosts share. [`State`](crate::state::State) tells those who want to know of changes.

pub mod format;
#[cfg(test)]
pub mod memory;
pub mod redb;

/// Something that is written in a transaction.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Write {
    /// `kind/name`.
    pub key: String,
    /// The new value; none deletes.
    pub value: Option<Vec<u8>>,
}

/// Why the store failed.
#[derive(Debug, thiserror::Error)]
#[error("the state store cannot {what}")]
pub struct StoreError {
    /// What was to be done.
    pub what: String,
    /// Why it was not.
    #[source]
    pub cause: Box<dyn std::error::Error + Send + Sync>,
}

/// Somebody else has the store, which is for one only.
#[derive(Debug, thiserror::Error)]
#[error("it is in use by another innkeeper serve")]
pub struct InUse;

impl StoreError {
    /// Whether it is because somebody else has the store.
    pub fn is_in_use(&self) -> bool {
        self.cause.is::<InUse>()
    }
}

/// Keeps documents. Its functions block.
pub trait Store: Send + Sync {
    /// Everything whose key begins with `prefix`, in the order of the keys.
    fn load(&self, prefix: &str) -> Result<Vec<(String, Vec<u8>)>, StoreError>;

    /// Writes all of it or nothing. When it returns, it is on the disk.
    fn commit(&self, writes: &[Write]) -> Result<(), StoreError>;
}
