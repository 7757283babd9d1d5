//! HTTP for the guests of a VPC. What one of them can make us hold is bounded: connections, of which each has its own, the
//! time that it may take to ask, and the size of a request. No answer is larger than what its socket takes at once.

use std::convert::Infallible;
use std::io;
use std::os::fd::AsRawFd;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use http_body_util::{BodyExt, Full};
use hyper::body::{Bytes, Incoming};
use hyper::header::{HeaderName, HeaderValue};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use nix::libc;
use nix::sys::socket::{setsockopt, sockopt};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

use super::{Answer, Content, Metadata, Refusal, answer};
use crate::data_plane::peer::Peer;
use crate::ids::{NetworkInterfaceId, VpcId};
use crate::places::{Place, Places, refuse};

const TOKEN: HeaderName = HeaderName::from_static("x-aws-ec2-metadata-token");
const TTL: HeaderName = HeaderName::from_static("x-aws-ec2-metadata-token-ttl-seconds");
const FORWARDED: HeaderName = HeaderName::from_static("x-forwarded-for");

/// The hops that a packet may go which has no limit of its own: Linux's default.
const HOPS: u8 = 64;

/// What the guests of a VPC may cost.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Connections at once. The next ones wait to be accepted.
    connections: usize,
    /// Connections of one network interface at once, however many addresses it has. The next ones are closed.
    connections_each: usize,
    /// For a guest to send a request, as long for what is behind its headers, and before the next one on the same
    /// connection.
    request: Duration,
    /// For a connection altogether. Guests open another.
    connection: Duration,
    /// The longest request, in bytes; and the most behind it, of which nothing is looked at.
    size: usize,
    /// The most headers of a request.
    headers: usize,
    /// What Linux keeps for a connection of what was asked and not read yet, in bytes; it reckons with twice as much. No less
    /// than it begins with: what was promised to the other end cannot be taken back.
    unread: usize,
    /// The same of what was said and not heard yet. It is more than the longest answer.
    unheard: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            connections: 2048,
            connections_each: 32,
            request: Duration::from_secs(10),
            connection: Duration::from_secs(600),
            size: 16 * 1024,
            headers: 64,
            unread: 64 * 1024,
            unheard: 32 * 1024,
        }
    }
}

impl Metadata {
    /// Serves the guests of a VPC until it is dropped.
    pub async fn serve(self: Arc<Self>, vpc: VpcId, listener: TcpListener) {
        let mut connections = JoinSet::new();
        let places = Places::new(self.rate);
        loop {
            let room = connections.len() < self.limits.connections;
            let accepted = tokio::select! {
                Some(_) = connections.join_next() => continue,
                accepted = listener.accept(), if room => accepted,
            };
            match accepted {
                Ok((stream, address)) => {
                    // Who is not known has nothing to ask for.
                    let peer = Peer::of(&self.state.read(), &vpc, address.ip());
                    let place =
                        |peer: &Peer| places.take(peer.interface.clone(), self.limits.connections_each);
                    match peer.and_then(|peer| Some((place(&peer)?, peer))) {
                        Some((place, peer)) => {
                            connections.spawn(Arc::clone(&self).connection(stream, peer, place));
                        }
                        None => refuse(stream),
                    }
                }
                Err(error) => {
                    tracing::warn!(%vpc, %error, "cannot accept a connection to the metadata service");
                    sleep(Duration::from_millis(100)).await;
                }
            }
        }
    }

    async fn connection(self: Arc<Self>, stream: TcpStream, peer: Peer, place: Place<NetworkInterfaceId>) {
        let limits = self.limits;
        if let Err(error) = peer.hold(&stream) {
            tracing::debug!(peer = %peer.address, %error, "whoever has asked for metadata is gone");
            return;
        }
        // Or they would grow to megabytes, for whoever asks a lot and does not read.
        let _ = setsockopt(&stream, sockopt::RcvBuf, &limits.unread);
        let _ = setsockopt(&stream, sockopt::SndBuf, &limits.unheard);
        // Answers are small, and whole when they are sent.
        let _ = stream.set_nodelay(true);
        let hops = Arc::new(Hops::default());
        let stream = Limited { stream, hops: Arc::clone(&hops), current: HOPS };
        let service = service_fn(|request| {
            let (metadata, peer, place, hops) = (&self, &peer, &place, &hops);
            async move {
                place.turn().await;
                Ok::<_, Infallible>(metadata.respond(request, peer, hops).await)
            }
        });
        let mut connection = http1::Builder::new();
        let connection = connection
            .timer(TokioTimer::new())
            .title_case_headers(true)
            // Whoever has no more to ask can still be answered.
            .half_close(true)
            .header_read_timeout(limits.request)
            .max_buf_size(limits.size)
            .max_headers(limits.headers)
            .serve_connection(TokioIo::new(stream), service);
        let mut connection = pin!(connection);
        let ended = match timeout(limits.connection, connection.as_mut()).await {
            Ok(ended) => ended,
            Err(_) => {
                connection.as_mut().graceful_shutdown();
                timeout(limits.request, connection).await.unwrap_or(Ok(()))
            }
        };
        if let Err(error) = ended {
            tracing::debug!(peer = %peer.address, %error, "a connection to the metadata service ended early");
        }
    }

    async fn respond(
        self: &Arc<Self>,
        request: Request<Incoming>,
        peer: &Peer,
        hops: &Hops,
    ) -> Response<Full<Bytes>> {
        let (request, body) = request.into_parts();
        // The next request is behind it.
        let body = http_body_util::Limited::new(body, self.limits.size).collect();
        let is_whole = timeout(self.limits.request, body).await.is_ok_and(|body| body.is_ok());
        let header = |name: HeaderName| request.headers.get(name).map(HeaderValue::as_bytes);
        let asked = answer::Request {
            method: request.method.as_str(),
            path: request.uri.path(),
            token: header(TOKEN),
            ttl: header(TTL),
            is_forwarded: request.headers.contains_key(FORWARDED),
        };
        let mut answer = self.answer(peer, asked);
        if let Ok(Content::Signature(kind, document)) = answer.content {
            answer.content = self.sign(kind, document).await;
        }
        tracing::debug!(
            peer = %peer.address, method = asked.method, path = asked.path,
            status = answer.content.as_ref().map_or_else(|refusal| refusal.status().0, |_| 200),
            "answered for the metadata"
        );
        hops.say(answer.hop_limit.unwrap_or(HOPS));
        let mut response = response(answer);
        if !is_whole {
            response.headers_mut().insert("connection", HeaderValue::from_static("close"));
        }
        response
    }
}

fn response(answer: Answer) -> Response<Full<Bytes>> {
    let allowed = match answer.content {
        Err(Refusal::MethodNotAllowed { allowed }) => Some(allowed),
        _ => None,
    };
    let (status, media_type, body) = match answer.content {
        Ok(Content::Text(text)) => (200, "text/plain", text.into_bytes()),
        Ok(Content::Bytes(bytes)) => (200, "application/octet-stream", bytes),
        Ok(Content::Signature(..)) => {
            let refusal = Refusal::Unavailable;
            (refusal.status().0, "text/html", refusal.document().into_bytes())
        }
        Err(refusal) => (refusal.status().0, "text/html", refusal.document().into_bytes()),
    };
    let mut response = Response::new(Full::from(body));
    *response.status_mut() = StatusCode::from_u16(status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    let headers = response.headers_mut();
    headers.insert("content-type", HeaderValue::from_static(media_type));
    headers.insert("accept-ranges", HeaderValue::from_static("none"));
    headers.insert("server", HeaderValue::from_static("EC2ws"));
    if let Some(ttl) = answer.token_ttl {
        headers.insert(TTL, ttl.into());
    }
    if let Some(allowed) = allowed {
        headers.insert("allow", HeaderValue::from_static(allowed));
    }
    response
}

/// How many hops the answers may go that are being written.
struct Hops {
    /// The fewest of them.
    limit: AtomicU8,
    /// Whether all are written.
    is_written: AtomicBool,
}

impl Default for Hops {
    fn default() -> Self {
        Self { limit: AtomicU8::new(HOPS), is_written: AtomicBool::new(true) }
    }
}

impl Hops {
    /// There is another answer.
    fn say(&self, limit: u8) {
        if self.is_written.swap(false, Ordering::Relaxed) {
            self.limit.store(limit, Ordering::Relaxed);
        } else {
            self.limit.fetch_min(limit, Ordering::Relaxed);
        }
    }
}

/// A connection whose packets go no further than what they say may.
///
/// The limit is the socket's, and TCP says again with it what is lost. A token that is lost for want of hops would arrive
/// with the limit of the next answer: so there are not more hops again before the other end has all that was said.
struct Limited {
    stream: TcpStream,
    hops: Arc<Hops>,
    current: u8,
}

impl AsyncRead for Limited {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(context, buffer)
    }
}

impl Limited {
    fn limit(&mut self) -> io::Result<()> {
        self.hops.is_written.store(false, Ordering::Relaxed);
        let wanted = self.hops.limit.load(Ordering::Relaxed);
        if wanted < self.current || wanted > self.current && is_heard(&self.stream)? {
            self.stream.set_ttl(wanted.into())?;
            self.current = wanted;
        }
        Ok(())
    }
}

/// Whether the other end has all that was said.
fn is_heard(stream: &TcpStream) -> io::Result<bool> {
    let mut waiting: libc::c_int = 0;
    // SAFETY: the call fills one int.
    match unsafe { libc::ioctl(stream.as_raw_fd(), libc::TIOCOUTQ, &mut waiting) } {
        0 => Ok(waiting == 0),
        _ => Err(io::Error::last_os_error()),
    }
}

impl AsyncWrite for Limited {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.limit()?;
        Pin::new(&mut self.stream).poll_write(context, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.limit()?;
        Pin::new(&mut self.stream).poll_write_vectored(context, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    /// Comes when everything is written.
    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.hops.is_written.store(true, Ordering::Relaxed);
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}
