//! What each client of a service may take of it: so many connections at once, and so many requests in a second.

use std::collections::HashMap;
use std::hash::Hash;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use nix::libc;
use nix::sys::socket::{setsockopt, sockopt};
use tokio::net::TcpStream;
use tokio::time::sleep;

/// How long it is remembered what a client has asked that has no connection any more.
const MEMORY: Duration = Duration::from_secs(2);

/// The places of all clients.
#[derive(Clone)]
pub struct Places<K> {
    /// Requests of each in a second. None is as many as it likes.
    rate: Option<u32>,
    clients: Arc<Mutex<HashMap<K, Client>>>,
}

struct Client {
    connections: usize,
    left: Instant,
    budget: Arc<Budget>,
}

/// A connection's place, which is free again when it is dropped.
pub struct Place<K: Eq + Hash> {
    places: Places<K>,
    client: K,
    budget: Arc<Budget>,
}

impl<K: Eq + Hash + Clone> Places<K> {
    /// Nobody has one yet.
    pub fn new(rate: Option<u32>) -> Self {
        Self { rate, clients: Arc::default() }
    }

    /// A place, unless the client has so many already.
    pub fn take(&self, client: K, most: usize) -> Option<Place<K>> {
        let now = Instant::now();
        let mut clients = self.lock();
        clients.retain(|_, known| known.connections > 0 || now.duration_since(known.left) < MEMORY);
        let known = clients.entry(client.clone()).or_insert_with(|| Client {
            connections: 0,
            left: now,
            budget: Arc::new(Budget::new(self.rate, now)),
        });
        if known.connections >= most {
            return None;
        }
        known.connections += 1;
        let budget = known.budget.clone();
        drop(clients);
        Some(Place { places: self.clone(), client, budget })
    }
}

impl<K> Places<K> {
    fn lock(&self) -> MutexGuard<'_, HashMap<K, Client>> {
        self.clients.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<K: Eq + Hash> Place<K> {
    /// Waits until it is this client's turn to ask for something.
    pub async fn turn(&self) {
        while let Err(wait) = self.budget.take(Instant::now()) {
            sleep(wait).await;
        }
    }
}

impl<K: Eq + Hash> Drop for Place<K> {
    fn drop(&mut self) {
        if let Some(known) = self.places.lock().get_mut(&self.client) {
            known.connections = known.connections.saturating_sub(1);
            known.left = Instant::now();
        }
    }
}

/// So many requests in a second, of which half a second's worth may come at once.
struct Budget {
    rate: Option<f64>,
    state: Mutex<(f64, Instant)>,
}

impl Budget {
    fn new(rate: Option<u32>, now: Instant) -> Self {
        let rate = rate.map(f64::from);
        Self { rate, state: Mutex::new((Self::burst(rate), now)) }
    }

    fn burst(rate: Option<f64>) -> f64 {
        rate.map_or(0.0, |rate| (rate / 2.0).max(1.0))
    }

    /// Takes one; an error is for how long there is none.
    fn take(&self, now: Instant) -> Result<(), Duration> {
        let Some(rate) = self.rate else { return Ok(()) };
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let (left, since) = *state;
        let left =
            (left + now.saturating_duration_since(since).as_secs_f64() * rate).min(Self::burst(self.rate));
        let result = if left >= 1.0 { Ok(()) } else { Err(Duration::from_secs_f64((1.0 - left) / rate)) };
        *state = (if result.is_ok() { left - 1.0 } else { left }, now);
        result
    }
}

/// Closes a connection at once, so that the kernel has nothing left of it.
pub fn refuse(connection: TcpStream) {
    let now = libc::linger { l_onoff: 1, l_linger: 0 };
    // Without it, only the farewell takes longer.
    let _ = setsockopt(&connection, sockopt::Linger, &now);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_are_free_again() {
        let places = Places::new(None);
        let mut taken: Vec<_> = std::iter::from_fn(|| places.take("one", 3)).collect();
        assert_eq!(taken.len(), 3);
        assert!(places.take("other", 3).is_some());
        taken.pop();
        assert!(places.take("one", 3).is_some());
        drop(taken);
        assert!(places.lock().values().all(|known| known.connections == 0));
        assert!(places.take("one", 0).is_none());
        // Who has gone is forgotten after a while.
        for known in places.lock().values_mut() {
            known.left -= MEMORY;
        }
        let _place = places.take("third", 1);
        assert_eq!(places.lock().len(), 1);
    }

    #[test]
    fn who_comes_back_finds_the_budget_as_it_was() {
        let places = Places::new(Some(10));
        for _ in 0..5 {
            assert!(places.take("one", 1).unwrap().budget.take(Instant::now()).is_ok());
        }
        assert!(places.take("one", 1).unwrap().budget.take(Instant::now()).is_err());
        assert!(places.take("other", 1).unwrap().budget.take(Instant::now()).is_ok());
    }

    #[test]
    fn a_budget_is_for_a_second() {
        let now = Instant::now();
        let budget = Budget::new(Some(100), now);
        let at = |milliseconds| now + Duration::from_millis(milliseconds);
        let taken = |time| std::iter::from_fn(|| budget.take(time).ok()).take(1000).count();
        assert_eq!(taken(at(0)), 50);
        let wait = budget.take(at(0)).unwrap_err();
        assert!(wait <= Duration::from_millis(11), "{wait:?}");
        assert_eq!(taken(at(100)), 10);
        assert_eq!(taken(at(60_000)), 50);
        assert!((0..1000).all(|_| Budget::new(None, now).take(now).is_ok()));
    }
}
