//! What the agent signs with.

use innkeeper_identity::Keys;
use serde::{Deserialize, Serialize};

use super::Record;

/// The keys of the agent's own authority, made when they are first needed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Identity {
    /// There is one: [`Identity::THIS`].
    pub name: String,
    /// The keys and their certificates.
    #[serde(flatten)]
    pub keys: Keys,
}

impl Identity {
    /// The name of the only one.
    pub const THIS: &'static str = "this";
}

impl Record for Identity {
    const KIND: &'static str = "identity";

    fn key(&self) -> &str {
        &self.name
    }
}
