//! The signatures of identity documents.
//!
//! Making one takes a CPU a millisecond, and who asks for it may be anybody's guest: what was made is kept for as long as the
//! instance's document stays the same, which it does while the instance runs.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::tree::Signed;
use crate::identity::{Identity, IdentityError};

/// For how many documents signatures are kept.
const KEPT: usize = 1024;

/// Makes and keeps signatures.
pub struct Signatures {
    identity: Arc<Identity>,
    /// By document: those that were asked for.
    kept: Mutex<HashMap<String, HashMap<Signed, String>>>,
}

impl Signatures {
    /// By the agent's authority.
    pub fn new(identity: Arc<Identity>) -> Self {
        Self { identity, kept: Mutex::default() }
    }

    fn kept(&self) -> MutexGuard<'_, HashMap<String, HashMap<Signed, String>>> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A signature that was made before.
    pub fn known(&self, kind: Signed, document: &str) -> Option<String> {
        self.kept().get(document)?.get(&kind).cloned()
    }

    /// Signs a document. Blocks; the very first time for as long as it takes to make keys.
    pub fn sign(&self, kind: Signed, document: &str) -> Result<String, IdentityError> {
        let authority = self.identity.authority()?;
        let bytes = document.as_bytes();
        let made = match kind {
            Signed::Signature => authority.signature(bytes),
            Signed::Pkcs7 => authority.pkcs7(bytes),
            Signed::Rsa2048 => authority.rsa2048(bytes),
        }?;
        let mut kept = self.kept();
        if kept.len() >= KEPT && !kept.contains_key(document) {
            // Those of instances that have gone are among them. Whoever is still there asks again.
            kept.clear();
        }
        kept.entry(document.to_owned()).or_default().insert(kind, made.clone());
        Ok(made)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::state::State;
    use crate::store::memory::Memory;

    #[test]
    fn what_was_made_is_kept_and_not_without_end() {
        let state = Arc::new(State::open(Arc::new(Memory::default())).unwrap());
        let signatures = Signatures::new(Arc::new(Identity::new(state, "us-east-1".into())));
        assert_eq!(signatures.known(Signed::Pkcs7, "a"), None);
        // DSA's are never twice the same.
        let made = signatures.sign(Signed::Pkcs7, "a").unwrap();
        assert_eq!(signatures.known(Signed::Pkcs7, "a"), Some(made));
        assert_eq!(signatures.known(Signed::Rsa2048, "a"), None);
        assert_eq!(signatures.known(Signed::Pkcs7, "b"), None);
        for number in 0..KEPT {
            signatures.kept().entry(number.to_string()).or_default();
        }
        signatures.sign(Signed::Signature, "c").unwrap();
        assert_eq!(signatures.kept().len(), 1);
    }
}
