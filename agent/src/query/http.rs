//! The API's HTTP server: connections, limits, and the way of a request from its bytes to its answer.
//!
//! Whatever comes as HTTP is answered in EC2's XML, but for the stream of [`events`], which has a path of its own. What a
//! client can make us hold is bounded: connections, the time that each may take to say something, the size of a request,
//! the actions that run at once, and the streams. Guests come in at doors of their own, and take nothing of that from the
//! operator.

use std::convert::Infallible;
use std::error::Error;
use std::future::pending;
use std::io;
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use http_body_util::channel::Channel;
use http_body_util::{BodyExt, Either, Full};
use hyper::body::{Body, Bytes};
use hyper::header::{HeaderName, HeaderValue};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{HeaderMap, Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use jiff::Timestamp;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpListener;
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinSet;
use tokio::time::{Instant as Moment, sleep, sleep_until, timeout};
use tracing::Instrument;

use crate::data_plane;
use crate::events::{self, Follower, Wish};
use crate::iam::{self, Identity};
use crate::ids::VpcId;
use crate::places::{Place, Places};
use crate::query::dispatch::{Call, Registry};
use crate::query::listener::{Arrival, Client, Listener, Who};
use crate::query::sigv4::{self, Signed, Unfit};
use crate::query::{ApiError, Caller, Context, Service, parameters, xml};
use crate::serve::Agent;

/// The longest body that is read, in bytes. User data, the largest thing that a request has, is at most 16 KiB.
const MAX_BODY: usize = 512 * 1024;

/// How much of a longer body is taken and thrown away, so that its sender gets to read the answer.
const MAX_DISCARDED: usize = 64 * 1024 * 1024;

/// What a stream of events is called where requests have an action.
const EVENTS: &str = "events";

/// A request that takes longer is worth a warning.
const SLOW: Duration = Duration::from_secs(2);

/// How many clients are served, and how long they are waited for.
#[derive(Clone, Copy, Debug)]
struct Limits {
    /// Connections at once. The next ones wait to be accepted.
    connections: usize,
    /// Of these, how many may be of other hosts. The next ones are closed.
    remote: usize,
    /// Connections of one guest, or of one address of another host, at once. The next ones are closed.
    connections_each: usize,
    /// The most bytes of a request's head.
    size: usize,
    /// Actions that run at once.
    actions: usize,
    /// Streams of events at once.
    streams: usize,
    /// For a client to agree on TLS.
    handshake: Duration,
    /// For a client to send a request's head: also the next one on the same connection.
    head: Duration,
    /// For a client to send a request's body.
    body: Duration,
    /// For a request to get its turn when all actions are busy.
    turn: Duration,
    /// For a connection altogether. Clients open another.
    connection: Duration,
    /// For a connection's last request, once it is to end.
    end: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            connections: 512,
            remote: 448,
            connections_each: 64,
            size: 256 * 1024,
            actions: 32,
            streams: 64,
            handshake: Duration::from_secs(10),
            head: Duration::from_secs(30),
            body: Duration::from_secs(30),
            turn: Duration::from_secs(5),
            connection: Duration::from_secs(120),
            end: Duration::from_secs(10),
        }
    }
}

impl Limits {
    /// Those of the guests of a VPC.
    fn inside() -> Self {
        Self {
            connections: 256,
            connections_each: 16,
            size: 64 * 1024,
            actions: 8,
            streams: 16,
            ..Self::default()
        }
    }
}

/// Serves the API on `listener` until `shutdown` is ready, and ends when the requests that have begun are answered.
pub async fn serve(
    listener: Listener,
    agent: Arc<Agent>,
    registry: Arc<Registry>,
    shutdown: impl Future<Output = ()>,
) -> io::Result<()> {
    let front = Front::new(Api { agent, registry }, Limits::default());
    accept(listener, Arc::new(front), shutdown).await;
    Ok(())
}

/// What serves the API to the guests of a VPC, as long as the agent is there.
pub fn inside_vpcs(agent: &Arc<Agent>, registry: &Arc<Registry>) -> data_plane::Api {
    // The agent has what keeps this.
    let (agent, registry) = (Arc::downgrade(agent), Arc::clone(registry));
    Box::new(move |vpc, listener| {
        let (agent, registry) = (agent.upgrade(), Arc::clone(&registry));
        Box::pin(async move {
            match agent {
                Some(agent) => serve_in_vpc(vpc, listener, agent, registry).await,
                None => Ok(()),
            }
        })
    })
}

async fn serve_in_vpc(
    vpc: VpcId,
    listener: std::net::TcpListener,
    agent: Arc<Agent>,
    registry: Arc<Registry>,
) -> io::Result<()> {
    let listener = Listener::inside(TcpListener::from_std(listener)?, vpc, agent.state.clone());
    let rate = agent.config.data_plane_settings().service_packets;
    let front = Front { rate, ..Front::new(Api { agent, registry }, Limits::inside()) };
    accept(listener, Arc::new(front), pending()).await;
    Ok(())
}

/// What the server needs to know of the rest.
trait Application: Send + Sync + 'static {
    /// The region that requests are signed for.
    fn region(&self) -> &str;

    /// Finds out whose an access key is, with its security token if it goes with one.
    fn identify(&self, key: &str, token: Option<&str>, now: Timestamp) -> Result<Identity, Unfit>;

    /// Runs an action. Blocks.
    fn answer(&self, service: Service, call: &Call, caller: &Caller, id: &str) -> Result<String, ApiError>;

    /// Begins to read events.
    fn follow(&self, caller: &Caller, wish: Wish) -> Result<Follower, ApiError>;

    /// Counts a request. The action is as the client has named it, or empty.
    fn count(&self, action: &str, code: &'static str, took: Duration) {
        let _ = (action, code, took);
    }
}

/// The real one.
struct Api {
    agent: Arc<Agent>,
    registry: Arc<Registry>,
}

impl Application for Api {
    fn region(&self) -> &str {
        &self.agent.config.region
    }

    fn identify(&self, key: &str, token: Option<&str>, now: Timestamp) -> Result<Identity, Unfit> {
        iam::identify(&self.agent.state.read(), key, token, now)
    }

    fn answer(&self, service: Service, call: &Call, caller: &Caller, id: &str) -> Result<String, ApiError> {
        let context = Context { agent: &self.agent, caller, request_id: id, digest: &call.digest };
        self.registry.answer(service, call, context)
    }

    fn follow(&self, caller: &Caller, wish: Wish) -> Result<Follower, ApiError> {
        iam::authorise(&self.agent.state.read(), caller, Service::Ec2, iam::FOLLOW_EVENTS)?;
        Ok(Follower::new(Arc::clone(&self.agent.state), &self.agent.config.region, wish))
    }

    fn count(&self, action: &str, code: &'static str, took: Duration) {
        // Clients may name what they like.
        let is_known = action == EVENTS || self.registry.names().any(|name| name == action);
        self.agent.metrics.requests.count(if is_known { action } else { "" }, code, took);
    }
}

/// A request's answer.
enum Answer {
    /// A document, in XML.
    Document(String),
    /// What comes, until it ends.
    Events(Channel<Bytes>),
}

/// When a connection is to end: the streams on it end before.
#[derive(Clone)]
struct Ending {
    /// At the latest.
    time: Moment,
    /// It never has a value; its end is what tells.
    told: watch::Receiver<()>,
}

impl Ending {
    async fn wait(&mut self) {
        tokio::select! {
            _ = self.told.changed() => {}
            () = sleep_until(self.time) => {}
        }
    }
}

async fn accept<A: Application>(
    listener: Listener,
    front: Arc<Front<A>>,
    shutdown: impl Future<Output = ()>,
) {
    let mut shutdown = pin!(shutdown);
    let (end, ending) = watch::channel(());
    let mut connections = JoinSet::new();
    let places = Places::new(front.rate);
    let remote = Arc::new(Semaphore::new(front.limits.remote));
    loop {
        let room = connections.len() < front.limits.connections;
        tokio::select! {
            () = &mut shutdown => break,
            Some(_) = connections.join_next() => {}
            accepted = listener.accept(), if room => match accepted {
                Ok((arrival, peer, who)) => {
                    let most = if who == Who::Local { usize::MAX } else { front.limits.connections_each };
                    let is_remote = matches!(who, Who::Remote(_));
                    let of_remote = is_remote.then(|| Arc::clone(&remote).try_acquire_owned()).transpose();
                    match (places.take(who, most), of_remote) {
                        (Some(place), Ok(of_remote)) => {
                            let served = Arc::clone(&front).serve(arrival, peer, place, ending.clone());
                            connections.spawn(async move {
                                let _of_remote = of_remote;
                                served.await;
                            });
                        }
                        _ => arrival.refuse(),
                    }
                }
                Err(error) => {
                    // Mostly there are no descriptors left: others have to end first.
                    tracing::warn!(%error, "cannot accept a connection to the API");
                    sleep(Duration::from_millis(100)).await;
                }
            },
        }
    }
    drop(listener);
    drop(end);
    while connections.join_next().await.is_some() {}
}

/// The server.
struct Front<A> {
    application: Arc<A>,
    actions: Arc<Semaphore>,
    streams: Arc<Semaphore>,
    /// Requests of each client in a second. None is as many as it likes.
    rate: Option<u32>,
    limits: Limits,
}

/// What the log says of a request.
struct Trace {
    /// When all of it was there.
    began: Instant,
    action: String,
    access_key: String,
}

impl<A: Application> Front<A> {
    fn new(application: A, limits: Limits) -> Self {
        Self {
            application: Arc::new(application),
            actions: Arc::new(Semaphore::new(limits.actions)),
            streams: Arc::new(Semaphore::new(limits.streams)),
            rate: None,
            limits,
        }
    }

    /// Serves a client until it goes, or `told` says that it has to.
    async fn serve(
        self: Arc<Self>,
        arrival: Arrival,
        peer: SocketAddr,
        place: Place<Who>,
        told: watch::Receiver<()>,
    ) {
        let mut ending = Ending { time: Moment::now() + self.limits.connection, told };
        let greeted = tokio::select! {
            greeted = timeout(self.limits.handshake, arrival.greet()) => greeted,
            () = ending.wait() => return,
        };
        let ended = match greeted {
            Ok(Ok(Client::Plain(stream))) => self.connection(stream, place, false, ending).await,
            Ok(Ok(Client::Secure(stream))) => self.connection(stream, place, false, ending).await,
            Ok(Ok(Client::Insecure(stream))) => self.connection(stream, place, true, ending).await,
            Ok(Err(error)) => Err(error.into()),
            Err(error) => Err(error.into()),
        };
        if let Err(error) = ended {
            tracing::debug!(%peer, %error, "a connection to the API ended early");
        }
    }

    /// Answers the requests on a connection; if it `is_insecure`, by saying so.
    async fn connection<S>(
        self: Arc<Self>,
        stream: S,
        place: Place<Who>,
        is_insecure: bool,
        mut ending: Ending,
    ) -> Result<(), Box<dyn Error + Send + Sync>>
    where
        S: AsyncRead + AsyncWrite + Unpin + Send,
    {
        let limits = self.limits;
        let of_streams = ending.clone();
        let service = service_fn(|request| {
            let (front, place, ending) = (&self, &place, of_streams.clone());
            async move {
                place.turn().await;
                Ok::<_, Infallible>(front.respond(request, is_insecure, ending).await)
            }
        });
        let connection = http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(limits.head)
            .max_buf_size(limits.size)
            .serve_connection(TokioIo::new(stream), service);
        let mut connection = pin!(connection);
        let ended = tokio::select! {
            ended = connection.as_mut() => ended,
            () = ending.wait() => {
                connection.as_mut().graceful_shutdown();
                timeout(limits.end, connection).await.unwrap_or(Ok(()))
            }
        };
        Ok(ended?)
    }

    /// Answers a request.
    async fn respond<B>(
        &self,
        request: Request<B>,
        is_insecure: bool,
        ending: Ending,
    ) -> Response<Either<Full<Bytes>, Channel<Bytes>>>
    where
        B: Body<Data = Bytes> + Unpin,
    {
        let id = uuid::Builder::from_random_bytes(rand::random()).into_uuid().to_string();
        // A client that asks again and again hears of its connection's end with an answer, and not by a request that gets none.
        let is_old = ending.time.saturating_duration_since(Moment::now()) < self.limits.connection / 2;
        let mut trace = Trace { began: Instant::now(), action: String::new(), access_key: String::new() };
        let mut service = Service::Ec2;
        // Whatever is logged on the way has the request's id.
        let span = tracing::info_span!("request", id);
        let result = if is_insecure {
            Err(ApiError::new(
                "InsecureTransport",
                "This address speaks TLS only: begin its URL with https://.",
            ))
        } else {
            self.answer(request, &id, &mut service, &mut trace, ending).instrument(span.clone()).await
        };
        let _span = span.enter();
        let (status, code, answer) = match result {
            Ok(answer) => (200, "", answer),
            Err(error) => (error.status(), error.code, Answer::Document(xml::error(service, &id, &error))),
        };
        let Trace { began, action, access_key } = trace;
        let took = began.elapsed();
        self.application.count(&action, code, took);
        // What is too much is the client's doing, who could fill the log with it.
        if status == 500 || took > SLOW {
            tracing::warn!(action, access_key, status, code, ?took, "answered a request");
        } else {
            tracing::debug!(action, access_key, status, code, ?took, "answered a request");
        }
        let (body, content_type) = match answer {
            Answer::Document(document) => (Either::Left(Full::from(document)), "text/xml;charset=UTF-8"),
            Answer::Events(stream) => (Either::Right(stream), "text/event-stream"),
        };
        let mut response = Response::new(body);
        *response.status_mut() = StatusCode::from_u16(status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        let headers = response.headers_mut();
        headers.insert("content-type", HeaderValue::from_static(content_type));
        if is_old {
            headers.insert("connection", HeaderValue::from_static("close"));
        }
        if let Ok(id) = HeaderValue::from_str(&id) {
            // SDKs look for the one or the other.
            headers.insert(HeaderName::from_static("x-amzn-requestid"), id.clone());
            headers.insert(HeaderName::from_static("x-amz-request-id"), id);
        }
        response
    }

    async fn answer<B>(
        &self,
        request: Request<B>,
        id: &str,
        service: &mut Service,
        trace: &mut Trace,
        ending: Ending,
    ) -> Result<Answer, ApiError>
    where
        B: Body<Data = Bytes> + Unpin,
    {
        let (head, body) = request.into_parts();
        let reading = timeout(self.limits.body, read(body)).await;
        let body =
            reading.map_err(|_| ApiError::new("RequestTimeout", "The request's body did not come."))??;
        // A client may take its time, which is none of ours.
        trace.began = Instant::now();
        if !matches!(head.method, Method::GET | Method::POST) {
            let message = format!("The method {} is not allowed: use POST or GET.", head.method);
            return Err(ApiError::new("MethodNotAllowed", message));
        }
        let query = parameters::decode(head.uri.query().unwrap_or_default().as_bytes())?;
        let signed = Signed {
            method: head.method.as_str(),
            path: head.uri.path(),
            query: &query,
            headers: &headers(&head.headers),
            body: &body,
        };
        *service = sigv4::service(signed).unwrap_or(Service::Ec2);
        let (mut found, now) = (None, Timestamp::now());
        let signer = sigv4::verify(signed, self.application.region(), now, |key, token| {
            let Identity { secret, caller } = self.application.identify(key, token, now)?;
            found = Some(caller);
            Ok(secret)
        })?;
        trace.access_key = signer.access_key;
        let Some(caller) = found else {
            return Err(ApiError::internal("a signature was good without a key"));
        };
        if head.uri.path() == events::PATH {
            trace.action = EVENTS.into();
            let wish = wish(&query, &head.headers, &caller.account)?;
            return self.events(&caller, wish, ending).map(Answer::Events);
        }
        let mut all = query;
        all.extend(parameters::decode(&body)?);
        drop(body);
        let call = Call::read(all)?;
        trace.action.clone_from(&call.action);
        self.run(signer.service, call, caller, id).await.map(Answer::Document)
    }

    /// Begins a stream of events. It costs no more than its place, however slowly it is read: the next piece is made
    /// when there is room for it.
    fn events(&self, caller: &Caller, wish: Wish, mut ending: Ending) -> Result<Channel<Bytes>, ApiError> {
        let Ok(place) = Arc::clone(&self.streams).try_acquire_owned() else {
            return Err(ApiError::new("RequestLimitExceeded", "Too many streams of events are open."));
        };
        let mut follower = self.application.follow(caller, wish)?;
        let (mut sender, stream) = Channel::new(1);
        tokio::spawn(async move {
            let _place = place;
            let telling = async {
                while let Some(piece) = follower.next().await {
                    if sender.send_data(Bytes::from(piece)).await.is_err() {
                        return;
                    }
                }
            };
            tokio::select! {
                () = telling => {}
                () = ending.wait() => {}
            }
        });
        Ok(stream)
    }

    /// Runs an action on a thread that may block, when it is its turn.
    async fn run(&self, service: Service, call: Call, caller: Caller, id: &str) -> Result<String, ApiError> {
        let turn = timeout(self.limits.turn, Arc::clone(&self.actions).acquire_owned()).await;
        let Ok(Ok(turn)) = turn else {
            return Err(ApiError::new("RequestLimitExceeded", "Request limit exceeded."));
        };
        let application = Arc::clone(&self.application);
        let id = id.to_owned();
        let span = tracing::Span::current();
        let running = tokio::task::spawn_blocking(move || {
            // Also when the client has gone, it is a turn until it ends.
            let _turn = turn;
            span.in_scope(|| application.answer(service, &call, &caller, &id))
        });
        running.await.unwrap_or_else(|failure| Err(ApiError::internal(failure)))
    }
}

/// What a reader of events asks for.
fn wish(query: &[(String, String)], headers: &HeaderMap, account: &str) -> Result<Wish, ApiError> {
    let parameter =
        |name: &str| query.iter().find(|(found, _)| found == name).map(|(_, value)| value.as_str());
    let last = headers.get("last-event-id").and_then(|value| value.to_str().ok());
    let invalid = |name: &str, value: &str, wanted: &str| {
        ApiError::new(
            "InvalidParameterValue",
            format!("Value ({value}) for parameter {name} is not {wanted}."),
        )
    };
    let after = match parameter("after").or(last) {
        Some(text) => text.parse().map_err(|_| invalid("after", text, "the number of an event"))?,
        None => 0,
    };
    let follow = match parameter("follow") {
        None | Some("true") => true,
        Some("false") => false,
        Some(other) => return Err(invalid("follow", other, "true or false")),
    };
    Ok(Wish { account: account.to_owned(), after, follow })
}

/// The headers as text. What is not UTF-8 is changed, so that a signature over it does not match.
fn headers(headers: &HeaderMap) -> Vec<(String, String)> {
    let text = |value: &HeaderValue| String::from_utf8_lossy(value.as_bytes()).into_owned();
    headers.iter().map(|(name, value)| (name.as_str().to_owned(), text(value))).collect()
}

/// Reads a body, if it is not too long.
async fn read<B: Body<Data = Bytes> + Unpin>(mut body: B) -> Result<Vec<u8>, ApiError> {
    let mut bytes = Vec::new();
    let mut length = 0;
    while let Some(frame) = body.frame().await {
        let broken = |_| ApiError::new("IncompleteBody", "The request's body ended early.");
        let Ok(data) = frame.map_err(broken)?.into_data() else { continue };
        length += data.len();
        if length <= MAX_BODY {
            bytes.extend_from_slice(&data);
        } else {
            bytes = Vec::new();
        }
        if length > MAX_DISCARDED {
            break;
        }
    }
    if length > MAX_BODY {
        let message = format!("The request is longer than {MAX_BODY} bytes.");
        return Err(ApiError::new("RequestEntityTooLarge", message));
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use std::sync::{Condvar, Mutex};

    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpStream;
    use tokio::sync::oneshot;
    use tokio_rustls::TlsConnector;
    use tokio_rustls::rustls::crypto::ring;
    use tokio_rustls::rustls::pki_types::pem::PemObject;
    use tokio_rustls::rustls::pki_types::{CertificateDer, ServerName};
    use tokio_rustls::rustls::{ClientConfig, RootCertStore, ServerConfig};

    use super::*;
    use crate::config::Config;
    use crate::identity::Identity as Authority;
    use crate::records::AccessKey;
    use crate::serve::tls;

    const SHORT: Duration = Duration::from_millis(150);
    /// For what has to be long enough for a busy machine to do something else in it.
    const SECOND: Duration = Duration::from_secs(1);
    const LONG: Duration = Duration::from_secs(20);

    /// Answers with the action's name; one panics, one waits until it may go on.
    #[derive(Default)]
    struct Echo {
        door: Mutex<Door>,
        opened: Condvar,
    }

    #[derive(Default)]
    struct Door {
        open: bool,
        waiting: usize,
    }

    impl Echo {
        fn open(&self) {
            self.door.lock().unwrap().open = true;
            self.opened.notify_all();
        }

        /// Returns when so many actions wait.
        async fn fills(&self, count: usize) {
            while self.door.lock().unwrap().waiting < count {
                sleep(Duration::from_millis(5)).await;
            }
        }
    }

    impl Application for Arc<Echo> {
        fn region(&self) -> &str {
            "us-east-1"
        }

        fn identify(&self, key: &str, token: Option<&str>, _: Timestamp) -> Result<Identity, Unfit> {
            let identity = Identity { secret: "secret".into(), caller: Caller::root("000000000000", key) };
            if (key, token) == ("AKIA", None) { Ok(identity) } else { Err(Unfit::Unknown) }
        }

        fn answer(&self, _: Service, call: &Call, caller: &Caller, id: &str) -> Result<String, ApiError> {
            match call.action.as_str() {
                "Panic" => panic!("as it should"),
                "Wait" => {
                    let mut door = self.door.lock().unwrap();
                    door.waiting += 1;
                    drop(self.opened.wait_while(door, |door| !door.open).unwrap());
                }
                _ => {}
            }
            Ok(format!("{} {} {} {}", call.action, caller.arn, id.len(), call.parameters.len()))
        }

        fn follow(&self, _: &Caller, wish: Wish) -> Result<Follower, ApiError> {
            let store = Arc::new(crate::store::memory::Memory::default());
            let state = Arc::new(crate::state::State::open(store).unwrap());
            Ok(Follower::new(state, self.region(), wish))
        }
    }

    struct Server {
        address: SocketAddr,
        echo: Arc<Echo>,
        stop: oneshot::Sender<()>,
        ended: tokio::task::JoinHandle<()>,
    }

    async fn server(limits: Limits) -> Server {
        server_with(limits, None).await
    }

    async fn server_with(limits: Limits, tls: Option<Arc<ServerConfig>>) -> Server {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let echo = Arc::new(Echo::default());
        let (stop, stopped) = oneshot::channel();
        let front = Arc::new(Front::new(Arc::clone(&echo), limits));
        let ended =
            tokio::spawn(accept(Listener::new(listener, tls), front, async { stopped.await.unwrap_or(()) }));
        Server { address, echo, stop, ended }
    }

    impl Server {
        async fn connect(&self) -> TcpStream {
            TcpStream::connect(self.address).await.unwrap()
        }

        /// Sends bytes; returns what comes until the connection ends.
        async fn exchange(&self, bytes: &[u8]) -> String {
            exchange(self.address, bytes).await
        }
    }

    async fn exchange(address: SocketAddr, bytes: &[u8]) -> String {
        let mut stream = TcpStream::connect(address).await.unwrap();
        stream.write_all(bytes).await.unwrap();
        rest(&mut stream).await
    }

    async fn rest(stream: &mut (impl AsyncRead + Unpin)) -> String {
        let mut all = Vec::new();
        timeout(LONG, stream.read_to_end(&mut all)).await.expect("the connection should end").unwrap();
        String::from_utf8(all).unwrap()
    }

    /// A signed request as bytes, after which the connection is to end.
    fn signed_by(key: &str, secret: &str, method: &str, query: &str, body: &[u8]) -> Vec<u8> {
        signed_to("/", key, secret, method, query, body)
    }

    fn signed_to(path: &str, key: &str, secret: &str, method: &str, query: &str, body: &[u8]) -> Vec<u8> {
        signed_with(None, path, key, secret, method, query, body)
    }

    fn signed_with(
        token: Option<&str>,
        path: &str,
        key: &str,
        secret: &str,
        method: &str,
        query: &str,
        body: &[u8],
    ) -> Vec<u8> {
        let header = |name: &str, value: &str| (name.to_owned(), value.to_owned());
        let mut headers = vec![header("host", "innkeeper")];
        headers.extend(token.map(|token| header("x-amz-security-token", token)));
        let pairs = parameters::decode(query.as_bytes()).unwrap_or_default();
        let request = Signed { method, path, query: &pairs, headers: &headers, body };
        let more = sigv4::sign(request, key, secret, "us-east-1", Service::Ec2, Timestamp::now());
        headers.extend(more);
        let length = body.len();
        let mut text =
            format!("{method} {path}?{query} HTTP/1.1\r\nconnection: close\r\ncontent-length: {length}\r\n");
        text.extend(headers.iter().map(|(name, value)| format!("{name}: {value}\r\n")));
        text.push_str("\r\n");
        [text.as_bytes(), body].concat()
    }

    fn signed(method: &str, query: &str, body: &[u8]) -> Vec<u8> {
        signed_by("AKIA", "secret", method, query, body)
    }

    fn stream(query: &str) -> Vec<u8> {
        signed_to(events::PATH, "AKIA", "secret", "GET", query, b"")
    }

    fn post(body: &str) -> Vec<u8> {
        signed("POST", "", body.as_bytes())
    }

    #[tokio::test]
    async fn a_signed_request_is_answered() {
        let server = server(Limits::default()).await;
        let body = "Action=Describe&Version=2016-11-15&A.1=x";
        for request in [
            post(body),
            signed("GET", body, b""),
            signed("POST", "Action=Describe&A.1=x", b"Version=2016-11-15"),
        ] {
            let answer = server.exchange(&request).await;
            assert!(answer.starts_with("HTTP/1.1 200 OK\r\n"), "{answer}");
            assert!(answer.contains("content-type: text/xml;charset=UTF-8\r\n"), "{answer}");
            assert!(answer.contains("x-amzn-requestid: "), "{answer}");
            assert!(answer.ends_with("\r\n\r\nDescribe arn:aws:iam::000000000000:root 36 1"), "{answer}");
        }
    }

    #[tokio::test]
    async fn whatever_comes_the_answer_is_xml() {
        let server = server(Limits::default()).await;
        let plain =
            |line: &str| format!("{line} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n").into_bytes();
        let version = "&Version=2016-11-15";
        for (request, status, code) in [
            (plain("GET /"), 403, "MissingAuthenticationToken"),
            (plain("GET /some/where?else"), 403, "MissingAuthenticationToken"),
            (plain("DELETE /"), 405, "MethodNotAllowed"),
            (plain("BREW *"), 405, "MethodNotAllowed"),
            (plain("GET /?%zz"), 400, "MalformedQueryString"),
            (plain("GET /?%ff"), 400, "MalformedQueryString"),
            (plain("GET /?X-Amz-Algorithm=x"), 400, "IncompleteSignature"),
            (post(&format!("Action=A%{version}")), 400, "MalformedQueryString"),
            (signed("POST", "", b"Action=\xff"), 400, "MalformedQueryString"),
            (post("{\"Action\": \"DescribeInstances\"}"), 400, "MissingAction"),
            (post(""), 400, "MissingAction"),
            (post("Action=A"), 400, "MissingParameter"),
            (post("Action=A&Version=new"), 400, "NoSuchVersion"),
            (post(&format!("Action=A&Action=B{version}")), 400, "InvalidParameterCombination"),
            (post(&format!("Action=A&DryRun=perhaps{version}")), 400, "InvalidParameterValue"),
            (post(&format!("Action=A{version}{}", "&x".repeat(10_000))), 400, "InvalidParameterValue"),
            (post(&"x".repeat(MAX_BODY + 1)), 413, "RequestEntityTooLarge"),
            (post(&"x".repeat(8 * MAX_BODY)), 413, "RequestEntityTooLarge"),
            (post(&format!("Action=Panic{version}")), 500, "InternalError"),
        ] {
            let answer = server.exchange(&request).await;
            let begin = String::from_utf8_lossy(&request[..request.len().min(200)]).into_owned();
            assert!(answer.starts_with(&format!("HTTP/1.1 {status} ")), "{begin}: {answer}");
            assert!(answer.contains("content-type: text/xml;charset=UTF-8\r\n"), "{begin}: {answer}");
            let start = format!(
                "\r\n\r\n<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n<Response><Errors><Error><Code>{code}<"
            );
            assert!(answer.contains(&start), "{begin}: {answer}");
            assert!(answer.ends_with("</RequestID></Response>"), "{begin}: {answer}");
        }
    }

    #[tokio::test]
    async fn an_error_of_sts_has_its_form() {
        let server = server(Limits::default()).await;
        let request = String::from_utf8(post("Action=A")).unwrap().replace("/ec2/", "/sts/");
        let answer = server.exchange(request.as_bytes()).await;
        assert!(answer.contains("<Type>Sender</Type><Code>SignatureDoesNotMatch</Code>"), "{answer}");
    }

    #[tokio::test]
    async fn the_agent_answers_whom_it_knows() {
        let agent = Arc::new(Agent::for_tests());
        let mut registry = Registry::default();
        crate::actions::register(&mut registry);
        let key = AccessKey::clone(agent.state.read().all::<AccessKey>().next().unwrap());
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (stop, stopped) = oneshot::channel::<()>();
        let serving = tokio::spawn(serve(Listener::new(listener, None), agent, Arc::new(registry), async {
            drop(stopped.await)
        }));

        let body = "Action=DescribeRegions&Version=2016-11-15";
        let good = signed_by(&key.id, &key.secret, "POST", "", body.as_bytes());
        let answer = exchange(address, &good).await;
        assert!(answer.contains("<regionName>us-east-1</regionName>"), "{answer}");
        for bad in
            [signed_by("AKIAX", &key.secret, "POST", "", b""), signed_by(&key.id, "x", "POST", "", b"")]
        {
            let answer = exchange(address, &bad).await;
            assert!(answer.starts_with("HTTP/1.1 401 ") && answer.contains("<Code>AuthFailure<"), "{answer}");
        }

        stop.send(()).unwrap();
        timeout(LONG, serving).await.unwrap().unwrap().unwrap();
    }

    #[tokio::test]
    async fn an_instance_is_answered_what_its_role_may_ask() {
        use crate::records::{Instance, InstanceState};
        let client = crate::actions::testing::Client::new();
        client.profile("web");
        client.permit("web", r#""Effect":"Allow","Action":"ec2:DescribeRegions""#).unwrap();
        let id = client.instance(InstanceState::Running);
        let associate = format!("AssociateIamInstanceProfile&InstanceId={id}&IamInstanceProfile.Name=web");
        client.ask(&associate).unwrap();
        let agent = Arc::new(client.agent);
        let world = agent.state.read();
        let given = iam::credentials(&world, world.get::<Instance>(&id).unwrap(), Timestamp::now()).unwrap();
        let mut registry = Registry::default();
        crate::actions::register(&mut registry);
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (stop, stopped) = oneshot::channel::<()>();
        let serving = tokio::spawn(serve(Listener::new(listener, None), agent, Arc::new(registry), async {
            drop(stopped.await)
        }));

        let (key, secret) = (&given.access_key_id, &given.secret_access_key);
        let describe = "Action=DescribeRegions&Version=2016-11-15";
        let stopping = format!("Action=StopInstances&Version=2016-11-15&InstanceId.1={id}");
        for (token, path, query, piece) in [
            (Some(given.token.as_str()), "/", describe, "<regionName>us-east-1</regionName>"),
            (Some(&given.token), "/", &stopping, "<Code>UnauthorizedOperation</Code>"),
            (Some(&given.token), events::PATH, "follow=false", "perform: innkeeper:FollowEvents because"),
            (None, "/", describe, "<Code>AuthFailure</Code>"),
            (None, events::PATH, "follow=false", "<Code>AuthFailure</Code>"),
        ] {
            let request = signed_with(token, path, key, secret, "GET", query, b"");
            let answer = exchange(address, &request).await;
            assert!(answer.contains(piece), "{piece}: {answer}");
        }
        stop.send(()).unwrap();
        timeout(LONG, serving).await.unwrap().unwrap().unwrap();
    }

    #[tokio::test]
    async fn too_many_requests_are_told_so() {
        let server = server(Limits { actions: 2, turn: SHORT, ..Limits::default() }).await;
        let wait = post("Action=Wait&Version=2016-11-15");
        let (first, second) =
            tokio::join!(async { tokio::join!(server.exchange(&wait), server.exchange(&wait)) }, async {
                server.echo.fills(2).await;
                let refused = server.exchange(&post("Action=A&Version=2016-11-15")).await;
                server.echo.open();
                refused
            });
        assert!(second.starts_with("HTTP/1.1 503 "), "{second}");
        assert!(second.contains("<Code>RequestLimitExceeded</Code>"), "{second}");
        assert!(first.0.starts_with("HTTP/1.1 200 ") && first.1.starts_with("HTTP/1.1 200 "), "{first:?}");
        assert!(server.exchange(&post("Action=A&Version=2016-11-15")).await.starts_with("HTTP/1.1 200 "));
    }

    #[tokio::test]
    async fn a_slow_client_loses_its_connection() {
        let silent = server(Limits { head: SHORT, ..Limits::default() }).await;
        assert_eq!(silent.exchange(b"").await, "");
        silent.exchange(b"POST / HTTP/1.1\r\nhost:").await;

        let half = server(Limits { body: SHORT, ..Limits::default() }).await;
        let answer = half.exchange(b"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: 9\r\n\r\nAction").await;
        assert!(answer.starts_with("HTTP/1.1 408 ") && answer.contains("<Code>RequestTimeout<"), "{answer}");

        let idle = server(Limits { head: SECOND, ..Limits::default() }).await;
        let answer = idle.exchange(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n").await;
        assert!(answer.ends_with("</Response>"), "{answer}");
    }

    #[tokio::test]
    async fn connections_have_an_end_and_then_others_get_their_turn() {
        let server = server(Limits { connections: 1, connection: SECOND, ..Limits::default() }).await;
        let mut first = server.connect().await;
        let second = server.exchange(&post("Action=A&Version=2016-11-15")).await;
        assert!(second.starts_with("HTTP/1.1 200 "), "{second}");
        assert_eq!(rest(&mut first).await, "");
    }

    #[tokio::test]
    async fn an_old_connection_ends_with_an_answer() {
        let server = server(Limits { connection: 2 * SECOND, ..Limits::default() }).await;
        let mut stream = server.connect().await;
        let request = b"GET / HTTP/1.1\r\nhost: x\r\n\r\n";
        stream.write_all(request).await.unwrap();
        let mut young = Vec::new();
        while !young.ends_with(b"</Response>") {
            assert!(stream.read_buf(&mut young).await.unwrap() > 0);
        }
        assert!(!String::from_utf8(young).unwrap().contains("connection: close"));
        sleep(SECOND + SECOND / 5).await;
        stream.write_all(request).await.unwrap();
        let old = rest(&mut stream).await;
        assert!(old.contains("connection: close") && old.ends_with("</Response>"), "{old}");
    }

    #[tokio::test]
    async fn a_request_that_has_begun_is_answered_before_the_end() {
        let server = server(Limits::default()).await;
        let mut idle = server.connect().await;
        let mut busy = server.connect().await;
        busy.write_all(&post("Action=Wait&Version=2016-11-15")).await.unwrap();
        server.echo.fills(1).await;
        server.stop.send(()).unwrap();
        assert_eq!(rest(&mut idle).await, "");
        assert!(TcpStream::connect(server.address).await.is_err());
        assert!(!server.ended.is_finished());
        server.echo.open();
        assert!(rest(&mut busy).await.starts_with("HTTP/1.1 200 "));
        timeout(LONG, server.ended).await.unwrap().unwrap();
    }

    /// TLS with a certificate of our own for `innkeeper.example`, and a client that trusts it.
    fn with_tls() -> (Option<Arc<ServerConfig>>, TlsConnector) {
        let directory = tempfile::tempdir().unwrap();
        let names = vec!["innkeeper.example".to_owned()];
        let config =
            Config { tls_names: names, state_directory: directory.path().into(), ..Config::default() };
        let store = Arc::new(crate::store::memory::Memory::default());
        let state = Arc::new(crate::state::State::open(store).unwrap());
        let server = tls::configure(&config, &Authority::new(state, "us-east-1".into())).unwrap();
        let mut roots = RootCertStore::empty();
        roots.add(CertificateDer::from_pem_file(config.ca_bundle().unwrap()).unwrap()).unwrap();
        let client = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(roots)
            .with_no_client_auth();
        (server, Arc::new(client).into())
    }

    #[tokio::test]
    async fn a_signed_request_is_answered_over_tls() {
        let (tls, connector) = with_tls();
        let server = server_with(Limits::default(), tls).await;
        let connect = async |name: &'static str| {
            connector.connect(ServerName::try_from(name).unwrap(), server.connect().await).await
        };
        for name in ["innkeeper.example", "127.0.0.1"] {
            let mut stream = connect(name).await.unwrap();
            stream.write_all(&post("Action=A&Version=2016-11-15")).await.unwrap();
            let answer = rest(&mut stream).await;
            assert!(answer.starts_with("HTTP/1.1 200 ") && answer.ends_with("36 0"), "{answer}");
        }
        assert!(connect("other.example").await.is_err());
    }

    #[tokio::test]
    async fn where_tls_is_spoken_nothing_else_is_answered() {
        let server = server_with(Limits::default(), with_tls().0).await;
        let answer = server.exchange(&post("Action=A&Version=2016-11-15")).await;
        assert!(answer.starts_with("HTTP/1.1 400 "), "{answer}");
        assert!(answer.contains("<Code>InsecureTransport</Code>") && answer.contains("https://"), "{answer}");
        // Neither are those who speak nothing known.
        assert!(!server.exchange(b"\x00\x01\x02").await.starts_with("HTTP"));
    }

    #[tokio::test]
    async fn who_does_not_agree_on_tls_loses_its_place() {
        let (tls, connector) = with_tls();
        let server =
            server_with(Limits { connections: 1, handshake: SECOND, ..Limits::default() }, tls).await;
        for said in [&b""[..], b"\x16\x03\x01"] {
            let mut first = server.connect().await;
            first.write_all(said).await.unwrap();
            let name = ServerName::try_from("innkeeper.example").unwrap();
            let mut second = connector.connect(name, server.connect().await).await.unwrap();
            second.write_all(&post("Action=A&Version=2016-11-15")).await.unwrap();
            assert!(rest(&mut second).await.starts_with("HTTP/1.1 200 "));
            assert_eq!(rest(&mut first).await, "");
        }
    }

    #[tokio::test]
    async fn events_are_a_stream_for_those_who_sign() {
        let server = server(Limits::default()).await;
        let answer = server.exchange(&stream("follow=false")).await;
        assert!(answer.starts_with("HTTP/1.1 200 OK\r\n"), "{answer}");
        assert!(answer.contains("content-type: text/event-stream\r\n"), "{answer}");
        let unsigned = format!("GET {} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n", events::PATH);
        assert!(server.exchange(unsigned.as_bytes()).await.starts_with("HTTP/1.1 403 "));
        for bad in ["after=x", "after=-1", "follow=perhaps"] {
            let answer = server.exchange(&stream(bad)).await;
            assert!(answer.contains("<Code>InvalidParameterValue</Code>"), "{bad}: {answer}");
        }
    }

    #[tokio::test]
    async fn a_stream_keeps_no_server_and_no_connection_from_its_end() {
        let server = server(Limits { streams: 1, connection: SECOND, ..Limits::default() }).await;
        let began = Instant::now();
        let mut first = server.connect().await;
        first.write_all(&stream("")).await.unwrap();
        let mut head = [0; 15];
        first.read_exact(&mut head).await.unwrap();
        let refused = server.exchange(&stream("")).await;
        assert!(
            refused.starts_with("HTTP/1.1 503 ") && refused.contains("RequestLimitExceeded"),
            "{refused}"
        );
        // It ends as a whole answer, and not in the middle.
        assert!(rest(&mut first).await.ends_with("\r\n0\r\n\r\n"));
        assert!(began.elapsed() < events::KEEP_ALIVE, "{:?}", began.elapsed());

        let server = self::server(Limits::default()).await;
        let mut open = server.connect().await;
        open.write_all(&stream("")).await.unwrap();
        open.read_exact(&mut head).await.unwrap();
        server.stop.send(()).unwrap();
        assert!(rest(&mut open).await.ends_with("\r\n0\r\n\r\n"));
        timeout(LONG, server.ended).await.unwrap().unwrap();
    }
}
