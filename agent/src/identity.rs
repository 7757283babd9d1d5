//! The agent's own authority, which signs identity documents and the certificate of the API.
//!
//! Its keys are made when they are first needed: that takes a CPU part of a second, and many agents never need them.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use innkeeper_identity::Authority;
use jiff::Timestamp;

use crate::records;
use crate::state::State;
use crate::store::StoreError;

/// Why there is no authority.
#[derive(Debug, thiserror::Error)]
pub enum IdentityError {
    /// Its keys cannot be made or read.
    #[error("the agent's authority cannot be had")]
    Authority(#[from] innkeeper_identity::Error),
    /// It was tried a moment ago.
    #[error("the agent's authority could not be had a moment ago; the log says why")]
    NotYet,
    /// They cannot be kept.
    #[error("the keys of the agent's authority cannot be kept")]
    Store(#[from] StoreError),
}

/// How long it takes until what has failed is tried again: guests can ask for it as often as they like.
const REST: Duration = Duration::from_secs(10);

/// Who has the authority.
pub struct Identity {
    state: Arc<State>,
    region: String,
    found: Mutex<Found>,
}

#[derive(Default)]
enum Found {
    #[default]
    Nothing,
    Failure(Instant),
    Authority(Arc<Authority>),
}

impl Identity {
    /// Nothing is made yet. The region is the one that its certificates name.
    pub fn new(state: Arc<State>, region: String) -> Self {
        Self { state, region, found: Mutex::default() }
    }

    /// The authority: as it is kept, else a new one, which is kept before anybody gets it. Blocks, the first time for as
    /// long as it takes to make keys.
    pub fn authority(&self) -> Result<Arc<Authority>, IdentityError> {
        let mut found = self.found.lock().unwrap_or_else(PoisonError::into_inner);
        match &*found {
            Found::Authority(known) => return Ok(Arc::clone(known)),
            Found::Failure(at) if at.elapsed() < REST => return Err(IdentityError::NotYet),
            _ => {}
        }
        let kept = self.state.read().get::<records::Identity>(records::Identity::THIS).cloned();
        let had = match kept {
            Some(kept) => Authority::open(&kept.keys).map_err(IdentityError::from),
            None => self.generate(),
        };
        match had {
            Ok(authority) => {
                let authority = Arc::new(authority);
                *found = Found::Authority(Arc::clone(&authority));
                Ok(authority)
            }
            Err(error) => {
                *found = Found::Failure(Instant::now());
                Err(error)
            }
        }
    }

    fn generate(&self) -> Result<Authority, IdentityError> {
        let made = Authority::generate(&self.region, Timestamp::now())?;
        let record = records::Identity { name: records::Identity::THIS.to_owned(), keys: made.keys()? };
        self.state.change(|draft| {
            draft.put(record);
            Ok::<_, StoreError>(())
        })?;
        tracing::info!("made the keys of the agent's authority");
        Ok(made)
    }
}

#[cfg(test)]
mod tests {
    use innkeeper_identity::Kind;

    use super::*;
    use crate::store::Store;
    use crate::store::memory::Memory;

    #[test]
    fn it_is_made_once_and_kept() {
        let store: Arc<dyn Store> = Arc::new(Memory::default());
        let open = || Identity::new(Arc::new(State::open(store.clone()).unwrap()), "us-east-1".into());
        let identity = Arc::new(open());
        assert_eq!(identity.state.read().all::<records::Identity>().count(), 0);
        // Whoever asks meanwhile waits for the first.
        let askers: Vec<_> = (0..4)
            .map(|_| {
                let identity = Arc::clone(&identity);
                std::thread::spawn(move || identity.authority().unwrap().certificate(Kind::Ca).unwrap())
            })
            .collect();
        let first = identity.authority().unwrap().certificate(Kind::Ca).unwrap();
        for asker in askers {
            assert_eq!(asker.join().unwrap(), first);
        }
        assert_eq!(identity.state.read().all::<records::Identity>().count(), 1);
        assert_eq!(open().authority().unwrap().certificate(Kind::Ca).unwrap(), first);
    }

    #[test]
    fn keys_that_cannot_be_read_are_not_replaced() {
        let state = Arc::new(State::open(Arc::new(Memory::default())).unwrap());
        let identity = Identity::new(state.clone(), "us-east-1".into());
        let mut keys = identity.authority().unwrap().keys().unwrap();
        keys.rsa_key.truncate(100);
        let record = records::Identity { name: records::Identity::THIS.into(), keys };
        state
            .change(|draft| {
                draft.put(record.clone());
                Ok::<_, StoreError>(())
            })
            .unwrap();
        let broken = Identity::new(state.clone(), "us-east-1".into());
        let error = broken.authority().unwrap_err();
        assert!(matches!(error, IdentityError::Authority(_)), "{error}");
        let error = broken.authority().unwrap_err();
        assert!(matches!(error, IdentityError::NotYet), "{error}");
        assert_eq!(**state.read().get::<records::Identity>(records::Identity::THIS).unwrap(), record);
    }
}
