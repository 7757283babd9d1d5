//! Where clients of the API come in: a socket, with TLS or without.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::ServerConfig;
use tokio_rustls::server::TlsStream;

use crate::data_plane::peer::Peer;
use crate::ids::VpcId;
use crate::state::State;

/// A socket that listens.
pub struct Listener {
    socket: TcpListener,
    tls: Option<TlsAcceptor>,
    /// In which VPC it is, and who is in there.
    inside: Option<(VpcId, Arc<State>)>,
}

impl Listener {
    /// One for TLS, if there is a configuration of it.
    pub fn new(socket: TcpListener, tls: Option<Arc<ServerConfig>>) -> Self {
        Self { socket, tls: tls.map(TlsAcceptor::from), inside: None }
    }

    /// One in a VPC, for the guests there.
    pub fn inside(socket: TcpListener, vpc: VpcId, state: Arc<State>) -> Self {
        Self { socket, tls: None, inside: Some((vpc, state)) }
    }

    /// The next client.
    pub(super) async fn accept(&self) -> io::Result<(Arrival, SocketAddr)> {
        let (stream, peer) = loop {
            let (stream, peer) = self.socket.accept().await?;
            if self.is_for_its_peer(&stream, peer) {
                break (stream, peer);
            }
        };
        // Answers are small, and whole when they are sent.
        let _ = stream.set_nodelay(true);
        Ok((Arrival { stream, tls: self.tls.clone() }, peer))
    }
}

impl Listener {
    /// Whether what is said on a connection is heard by whoever has opened it, and by nobody who has its address later.
    fn is_for_its_peer(&self, stream: &TcpStream, peer: SocketAddr) -> bool {
        let Some((vpc, state)) = &self.inside else { return true };
        let IpAddr::V4(address) = peer.ip() else { return false };
        Peer::find(&state.read(), vpc, address).is_some_and(|peer| peer.hold(stream).is_ok())
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
