//! The API's HTTP server: connections, limits, and the way of a request from its bytes to its answer.
//!
//! Whatever comes, the answer is EC2's XML. What a client can make us hold is bounded: connections, the time that each
//! may take to say something, the size of a request, the actions that run at once.

use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use http_body_util::{BodyExt, Full};
use hyper::body::{Body, Bytes};
use hyper::header::{HeaderName, HeaderValue};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{HeaderMap, Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use jiff::Timestamp;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

use crate::query::dispatch::{Call, Registry};
use crate::query::sigv4::{self, Signed};
use crate::query::{ApiError, Caller, Context, Service, parameters, xml};
use crate::records::AccessKey;
use crate::serve::Agent;

/// The longest body that is read, in bytes. User data, the largest thing that a request has, is at most 16 KiB.
const MAX_BODY: usize = 512 * 1024;

/// How much of a longer body is taken and thrown away, so that its sender gets to read the answer.
const MAX_DISCARDED: usize = 64 * 1024 * 1024;

/// How many connections there are at once. The next ones wait to be accepted.
const MAX_CONNECTIONS: usize = 512;

/// How many actions run at once.
const MAX_ACTIONS: usize = 32;

/// A request that takes longer is worth a warning.
const SLOW: Duration = Duration::from_secs(2);

/// How long things may take.
#[derive(Clone, Copy, Debug)]
struct Patience {
    /// A client, to send a request's head: also the next one on the same connection.
    head: Duration,
    /// A client, to send a request's body.
    body: Duration,
    /// A request, to get a turn when all actions are busy.
    turn: Duration,
    /// A connection altogether. Clients open another.
    connection: Duration,
    /// The last request of a connection, once that is to end.
    end: Duration,
}

impl Default for Patience {
    fn default() -> Self {
        Self {
            head: Duration::from_secs(30),
            body: Duration::from_secs(30),
            turn: Duration::from_secs(5),
            connection: Duration::from_secs(120),
            end: Duration::from_secs(10),
        }
    }
}

/// Serves the API on `listener` until `shutdown` is ready, and ends when the requests that have begun are answered.
pub async fn serve(
    listener: TcpListener,
    agent: Arc<Agent>,
    registry: Arc<Registry>,
    shutdown: impl Future<Output = ()>,
) -> io::Result<()> {
    let front = Front::new(Api { agent, registry }, Patience::default());
    accept(listener, Arc::new(front), shutdown).await;
    Ok(())
}

/// What the server needs to know of the rest.
trait Application: Send + Sync + 'static {
    /// The region that requests are signed for.
    fn region(&self) -> &str;

    /// The access key with this id.
    fn access_key(&self, id: &str) -> Option<AccessKey>;

    /// Runs an action. Blocks.
    fn answer(&self, service: Service, call: &Call, caller: &Caller, id: &str) -> Result<String, ApiError>;
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

    fn access_key(&self, id: &str) -> Option<AccessKey> {
        self.agent.state.read().get::<AccessKey>(id).map(|key| AccessKey::clone(key))
    }

    fn answer(&self, service: Service, call: &Call, caller: &Caller, id: &str) -> Result<String, ApiError> {
        let context = Context { agent: &self.agent, caller, request_id: id, digest: &call.digest };
        self.registry.answer(service, call, context)
    }
}

async fn accept<A: Application>(
    listener: TcpListener,
    front: Arc<Front<A>>,
    shutdown: impl Future<Output = ()>,
) {
    let mut shutdown = pin!(shutdown);
    let (end, ending) = watch::channel(());
    let mut connections = JoinSet::new();
    loop {
        let room = connections.len() < MAX_CONNECTIONS;
        tokio::select! {
            () = &mut shutdown => break,
            Some(_) = connections.join_next() => {}
            accepted = listener.accept(), if room => match accepted {
                Ok((stream, peer)) => {
                    connections.spawn(Arc::clone(&front).connection(stream, peer, ending.clone()));
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
    patience: Patience,
}

/// What the log says of a request.
#[derive(Default)]
struct Trace {
    action: String,
    access_key: String,
}

impl<A: Application> Front<A> {
    fn new(application: A, patience: Patience) -> Self {
        Self { application: Arc::new(application), actions: Arc::new(Semaphore::new(MAX_ACTIONS)), patience }
    }

    /// Serves a connection until it ends, or `ending` says that it has to.
    async fn connection(
        self: Arc<Self>,
        stream: TcpStream,
        peer: SocketAddr,
        mut ending: watch::Receiver<()>,
    ) {
        let patience = self.patience;
        // Answers are small, and whole when they are sent.
        let _ = stream.set_nodelay(true);
        let service = service_fn(move |request| {
            let front = Arc::clone(&self);
            async move { Ok::<_, Infallible>(front.respond(request).await) }
        });
        let connection = http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(patience.head)
            .serve_connection(TokioIo::new(stream), service);
        let mut connection = pin!(connection);
        let ended = tokio::select! {
            ended = connection.as_mut() => Some(ended),
            // It never has a value; its end is what tells.
            _ = ending.changed() => None,
            () = sleep(patience.connection) => None,
        };
        let ended = match ended {
            Some(ended) => ended,
            None => {
                connection.as_mut().graceful_shutdown();
                timeout(patience.end, connection).await.unwrap_or(Ok(()))
            }
        };
        if let Err(error) = ended {
            tracing::debug!(%peer, %error, "a connection to the API ended early");
        }
    }

    /// Answers a request.
    async fn respond<B>(&self, request: Request<B>) -> Response<Full<Bytes>>
    where
        B: Body<Data = Bytes> + Unpin,
    {
        let began = Instant::now();
        let id = uuid::Builder::from_random_bytes(rand::random()).into_uuid().to_string();
        let mut trace = Trace::default();
        let mut service = Service::Ec2;
        let result = self.answer(request, &id, &mut service, &mut trace).await;
        let (status, code, document) = match result {
            Ok(document) => (200, "", document),
            Err(error) => (error.status(), error.code, xml::error(service, &id, &error)),
        };
        let Trace { action, access_key } = trace;
        let took = began.elapsed();
        if status >= 500 || took > SLOW {
            tracing::warn!(request = id, action, access_key, status, code, ?took, "answered a request");
        } else {
            tracing::debug!(request = id, action, access_key, status, code, ?took, "answered a request");
        }
        let mut response = Response::new(Full::new(Bytes::from(document)));
        *response.status_mut() = StatusCode::from_u16(status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        let headers = response.headers_mut();
        headers.insert("content-type", HeaderValue::from_static("text/xml;charset=UTF-8"));
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
    ) -> Result<String, ApiError>
    where
        B: Body<Data = Bytes> + Unpin,
    {
        let (head, body) = request.into_parts();
        let reading = timeout(self.patience.body, read(body)).await;
        let body =
            reading.map_err(|_| ApiError::new("RequestTimeout", "The request's body did not come."))??;
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
        let mut found = None;
        let signer = sigv4::verify(signed, self.application.region(), Timestamp::now(), |key| {
            found = self.application.access_key(key);
            found.as_ref().map(|key| key.secret.clone())
        })?;
        *service = signer.service;
        trace.access_key = signer.access_key;
        let Some(key) = found else { return Err(ApiError::internal("a signature was good without a key")) };
        let mut all = query;
        all.extend(parameters::decode(&body)?);
        let call = Call::read(all)?;
        trace.action.clone_from(&call.action);
        self.run(*service, call, caller(key), id).await
    }

    /// Runs an action on a thread that may block, when it is its turn.
    async fn run(&self, service: Service, call: Call, caller: Caller, id: &str) -> Result<String, ApiError> {
        let turn = timeout(self.patience.turn, Arc::clone(&self.actions).acquire_owned()).await;
        let Ok(Ok(turn)) = turn else {
            return Err(ApiError::new("RequestLimitExceeded", "Request limit exceeded."));
        };
        let application = Arc::clone(&self.application);
        let id = id.to_owned();
        let running = tokio::task::spawn_blocking(move || {
            // Also when the client has gone, it is a turn until it ends.
            let _turn = turn;
            application.answer(service, &call, &caller, &id)
        });
        running.await.unwrap_or_else(|failure| Err(ApiError::internal(failure)))
    }
}

fn caller(key: AccessKey) -> Caller {
    Caller {
        arn: format!("arn:aws:iam::{}:root", key.account),
        user_id: key.account.clone(),
        account: key.account,
        access_key: key.id,
    }
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
