//! Places for connections, of which each address gets so many and no more.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// How many connections each address has.
#[derive(Clone, Default)]
pub struct Places(Arc<Mutex<HashMap<IpAddr, usize>>>);

/// A connection's place, which is free again when it is dropped.
pub struct Place {
    places: Places,
    peer: IpAddr,
}

impl Places {
    fn lock(&self) -> MutexGuard<'_, HashMap<IpAddr, usize>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A place, unless the peer has so many already.
    pub fn take(&self, peer: IpAddr, most: usize) -> Option<Place> {
        let mut taken = self.lock();
        let own = taken.entry(peer).or_default();
        if *own >= most {
            return None;
        }
        *own += 1;
        Some(Place { places: self.clone(), peer })
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut taken = self.places.lock();
        if let Some(own) = taken.get_mut(&self.peer) {
            *own = own.saturating_sub(1);
            if *own == 0 {
                taken.remove(&self.peer);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_are_free_again() {
        let places = Places::default();
        let (one, other) = (IpAddr::from([10, 0, 0, 4]), IpAddr::from([10, 0, 0, 5]));
        let mut taken: Vec<Place> = std::iter::from_fn(|| places.take(one, 3)).collect();
        assert_eq!(taken.len(), 3);
        assert!(places.take(other, 3).is_some());
        taken.pop();
        assert!(places.take(one, 3).is_some());
        drop(taken);
        assert!(places.lock().is_empty());
        assert!(places.take(one, 0).is_none());
    }
}
