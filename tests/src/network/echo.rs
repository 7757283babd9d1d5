//! Servers that send everything back, and those who try to reach them.

use std::io::{ErrorKind, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::AsFd;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};

use super::Place;
use crate::background::{Background, End};

/// How long a connection that was made may be silent.
const PATIENCE: Duration = Duration::from_secs(10);
const CHUNK: usize = 64 << 10;

/// A server that sends everything back. It ends when it is dropped.
pub struct Server {
    port: u16,
    seen: Seen,
    _thread: Background,
}

/// Who has come, in order.
#[derive(Clone, Default)]
struct Seen(Arc<Mutex<Vec<SocketAddr>>>);

impl Seen {
    fn add(&self, mut peer: SocketAddr) {
        peer.set_ip(peer.ip().to_canonical());
        self.0.lock().unwrap_or_else(PoisonError::into_inner).push(peer);
    }
}

impl Server {
    /// The port that it is at.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Who has come until now, as their addresses look from here: one for each connection, or each datagram.
    pub fn seen(&self) -> Vec<SocketAddr> {
        self.seen.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// What comes of a try to connect.
#[derive(Debug)]
pub enum Attempt {
    /// Somebody is there.
    Connected(Connection),
    /// Somebody says that nobody is there.
    Refused,
    /// Somebody says that there is no way to it, or nobody has its address.
    Unreachable,
    /// Nobody says anything.
    TimedOut,
}

impl Attempt {
    /// The connection, if there is one.
    pub fn connected(self) -> Result<Connection> {
        match self {
            Self::Connected(connection) => Ok(connection),
            other => bail!("not connected: {other:?}"),
        }
    }
}

/// A connection.
#[derive(Debug)]
pub struct Connection(TcpStream);

impl Connection {
    /// Sends up to 64 KiB, and expects them back.
    pub fn echo(&mut self, bytes: &[u8]) -> Result<()> {
        self.0.write_all(bytes)?;
        let mut returned = vec![0; bytes.len()];
        self.0.read_exact(&mut returned).context("there is no echo")?;
        ensure!(returned == bytes, "the echo is not what was said");
        Ok(())
    }

    /// The stream, whose reads and writes wait for 10 s at most.
    pub fn stream(&self) -> &TcpStream {
        &self.0
    }

    /// The same for those who want to keep it.
    pub fn into_stream(self) -> TcpStream {
        self.0
    }
}

impl Place {
    /// Serves TCP at a port of all addresses; 0 is for any that is free.
    pub fn serve_tcp(&self, port: u16) -> Result<Server> {
        let listener = self.listen(port)?;
        listener.set_nonblocking(true)?;
        let (port, seen) = (listener.local_addr()?.port(), Seen::default());
        let ours = seen.clone();
        let thread = Background::spawn(move |end| {
            std::thread::scope(|scope| {
                while end.or_readable(&[listener.as_fd()]) {
                    if let Ok((stream, peer)) = listener.accept() {
                        seen.add(peer);
                        scope.spawn(|| answer(stream, end));
                    }
                }
            });
        })?;
        Ok(Server { port, seen: ours, _thread: thread })
    }

    /// Serves UDP at a port of all addresses; 0 is for any that is free.
    pub fn serve_udp(&self, port: u16) -> Result<Server> {
        let socket = self.inside(|| bind(port, |addresses| UdpSocket::bind(addresses)))?;
        socket.set_nonblocking(true)?;
        let (port, seen) = (socket.local_addr()?.port(), Seen::default());
        let ours = seen.clone();
        let thread = Background::spawn(move |end| {
            let mut buffer = vec![0; CHUNK];
            while end.or_readable(&[socket.as_fd()]) {
                if let Ok((count, peer)) = socket.recv_from(&mut buffer) {
                    seen.add(peer);
                    // Whoever does not get it, asks again.
                    let _ = socket.send_to(&buffer[..count], peer);
                }
            }
        })?;
        Ok(Server { port, seen: ours, _thread: thread })
    }

    /// Listens at a port of all addresses, for a server of the test's own; 0 is for any that is free.
    pub fn listen(&self, port: u16) -> Result<TcpListener> {
        self.inside(|| bind(port, |addresses| TcpListener::bind(addresses)))
    }

    /// Tries to connect. An address that nobody has is found out by Linux after 3 s.
    pub fn connect(&self, address: impl Into<IpAddr>, port: u16, patience: Duration) -> Result<Attempt> {
        let to = SocketAddr::new(address.into(), port);
        match self.inside(|| Ok(TcpStream::connect_timeout(&to, patience)))? {
            Ok(stream) => {
                stream.set_nodelay(true)?;
                stream.set_read_timeout(Some(PATIENCE))?;
                stream.set_write_timeout(Some(PATIENCE))?;
                Ok(Attempt::Connected(Connection(stream)))
            }
            Err(error) => match error.kind() {
                ErrorKind::ConnectionRefused => Ok(Attempt::Refused),
                ErrorKind::HostUnreachable | ErrorKind::NetworkUnreachable => Ok(Attempt::Unreachable),
                ErrorKind::TimedOut => Ok(Attempt::TimedOut),
                _ => Err(error).with_context(|| format!("cannot connect to {to}")),
            },
        }
    }

    /// Sends a datagram, and returns the answer, if there is one.
    pub fn udp(
        &self,
        address: impl Into<IpAddr>,
        port: u16,
        datagram: &[u8],
        patience: Duration,
    ) -> Result<Option<Vec<u8>>> {
        let to = SocketAddr::new(address.into(), port);
        let any = if to.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
        let socket = self.inside(|| Ok(UdpSocket::bind(any)?))?;
        socket.set_read_timeout(Some(patience))?;
        let mut buffer = vec![0; CHUNK];
        // That there is nobody, or no way, may be known at once or be told later.
        let mut asked = || {
            socket.connect(to)?;
            socket.send(datagram)?;
            socket.recv(&mut buffer)
        };
        match asked() {
            Ok(count) => Ok(Some(buffer[..count].to_vec())),
            Err(error) => match error.kind() {
                ErrorKind::WouldBlock
                | ErrorKind::TimedOut
                | ErrorKind::ConnectionRefused
                | ErrorKind::HostUnreachable
                | ErrorKind::NetworkUnreachable => Ok(None),
                _ => Err(error).with_context(|| format!("cannot ask {to}")),
            },
        }
    }
}

/// Both kinds of IP, where the host has them.
fn bind<T>(port: u16, bind: impl Fn(&str) -> std::io::Result<T>) -> Result<T> {
    let bound = bind(&format!("[::]:{port}")).or_else(|_| bind(&format!("0.0.0.0:{port}")));
    bound.with_context(|| format!("cannot serve port {port}"))
}

fn answer(mut stream: TcpStream, end: &End) {
    let mut buffer = vec![0; CHUNK];
    // One that does not read is not waited for when it is time to end.
    let _ = stream.set_write_timeout(Some(PATIENCE));
    while end.or_readable(&[stream.as_fd()]) {
        match stream.read(&mut buffer) {
            Ok(count @ 1..) if stream.write_all(&buffer[..count]).is_ok() => {}
            _ => return,
        }
    }
}
