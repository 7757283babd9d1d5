//! Where clients of the API come in: a socket, with TLS or without.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use nix::sys::socket::{setsockopt, sockopt};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::ServerConfig;
use tokio_rustls::server::TlsStream;

use crate::data_plane::peer::Peer;
use crate::ids::{NetworkInterfaceId, VpcId};
use crate::places::refuse;
use crate::state::State;

/// A socket that listens.
pub struct Listener {
    socket: TcpListener,
    tls: Option<TlsAcceptor>,
    /// In which VPC it is, and who is in there.
    inside: Option<(VpcId, Arc<State>)>,
}

/// Who has come, as far as his share of the service is concerned.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) enum Who {
    /// Somebody on this host, which has people and tunnels behind one address.
    Local,
    /// Somebody on another host.
    Remote(IpAddr),
    /// A guest, by its network interface.
    Guest(NetworkInterfaceId),
}

/// What Linux keeps for a connection of somebody who is not on this host, in bytes: of what was asked and not read yet, and
/// of what was said and not heard yet. It reckons with twice as much. Or they would grow to megabytes, for whoever asks a lot
/// and does not read.
const UNREAD: usize = 128 * 1024;
const UNHEARD: usize = 64 * 1024;

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
    pub(super) async fn accept(&self) -> io::Result<(Arrival, SocketAddr, Who)> {
        let (stream, peer, who) = loop {
            let (stream, peer) = self.socket.accept().await?;
            match self.who(&stream, peer) {
                Some(who) => break (stream, peer, who),
                None => refuse(stream),
            }
        };
        if who != Who::Local {
            let _ = setsockopt(&stream, sockopt::RcvBuf, &UNREAD);
            let _ = setsockopt(&stream, sockopt::SndBuf, &UNHEARD);
        }
        // Answers are small, and whole when they are sent.
        let _ = stream.set_nodelay(true);
        Ok((Arrival { stream, tls: self.tls.clone() }, peer, who))
    }
}

impl Listener {
    /// Who it is. None is nobody that is known.
    fn who(&self, stream: &TcpStream, peer: SocketAddr) -> Option<Who> {
        let Some((vpc, state)) = &self.inside else {
            let address = peer.ip().to_canonical();
            return Some(if address.is_loopback() { Who::Local } else { Who::Remote(address) });
        };
        let peer = Peer::of(&state.read(), vpc, peer.ip())?;
        peer.hold(stream).ok()?;
        Some(Who::Guest(peer.interface))
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
    /// Has nothing to do with the client.
    pub(super) fn refuse(self) {
        refuse(self.stream);
    }

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

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn those_on_this_host_share_nothing_with_others() {
        let listener = Listener::new(TcpListener::bind("127.0.0.1:0").await.unwrap(), None);
        let client = TcpStream::connect(listener.socket.local_addr().unwrap());
        let (client, (stream, _)) = tokio::try_join!(client, listener.socket.accept()).unwrap();
        let who =
            |address: &str| listener.who(&stream, SocketAddr::new(address.parse().unwrap(), 1)).unwrap();
        for local in ["127.0.0.1", "127.0.0.2", "::1", "::ffff:127.0.0.1"] {
            assert_eq!(who(local), Who::Local, "{local}");
        }
        assert_eq!(who("192.0.2.1"), Who::Remote([192, 0, 2, 1].into()));
        assert_eq!(who("::ffff:192.0.2.1"), who("192.0.2.1"), "it is one host, however it comes");
        drop(client);
    }
}
