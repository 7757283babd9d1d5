//! Where clients of the API come in: a socket, with TLS or without.

use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::ServerConfig;
use tokio_rustls::server::TlsStream;

/// A socket that listens.
pub struct Listener {
    socket: TcpListener,
    tls: Option<TlsAcceptor>,
}

impl Listener {
    /// One for TLS, if there is a configuration of it.
    pub fn new(socket: TcpListener, tls: Option<Arc<ServerConfig>>) -> Self {
        Self { socket, tls: tls.map(TlsAcceptor::from) }
    }

    /// The next client.
    pub(super) async fn accept(&self) -> io::Result<(Arrival, SocketAddr)> {
        let (stream, peer) = self.socket.accept().await?;
        // Answers are small, and whole when they are sent.
        let _ = stream.set_nodelay(true);
        Ok((Arrival { stream, tls: self.tls.clone() }, peer))
    }
}

/// A client that has come, and said nothing yet.
pub(super) struct Arrival {
    stream: TcpStream,
    tls: Option<TlsAcceptor>,
}

/// How a client speaks.
pub(super) enum Client {
    /// As it should, without TLS.
    Plain(TcpStream),
    /// As it should, with TLS.
    Secure(Box<TlsStream<TcpStream>>),
    /// Without TLS, where there should be.
    Insecure(TcpStream),
}

impl Arrival {
    /// Shakes hands with the client, which may take as long as the client likes.
    pub(super) async fn greet(self) -> io::Result<Client> {
        let Some(tls) = self.tls else { return Ok(Client::Plain(self.stream)) };
        let mut first = [0];
        self.stream.peek(&mut first).await?;
        // HTTP begins with a method, and TLS with the byte 22 (RFC 8446 §5.1).
        if first[0].is_ascii_alphabetic() {
            return Ok(Client::Insecure(self.stream));
        }
        Ok(Client::Secure(Box::new(tls.accept(self.stream).await?)))
    }
}

/// How many connections each address has.
#[derive(Clone, Default)]
pub(super) struct Places(Arc<Mutex<HashMap<IpAddr, usize>>>);

/// A connection's place, which is free again when it is dropped.
pub(super) struct Place {
    places: Places,
    peer: IpAddr,
}

impl Places {
    fn lock(&self) -> MutexGuard<'_, HashMap<IpAddr, usize>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A place, unless the peer has so many already.
    pub(super) fn take(&self, peer: IpAddr, most: usize) -> Option<Place> {
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
