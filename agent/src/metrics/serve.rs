//! The server of the metrics: one page, for whoever can reach its address. There are no secrets in it, and nothing can be
//! changed through it.

use std::convert::Infallible;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::header::HeaderValue;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::time::{sleep, timeout};

use super::scrape;
use super::text::MEDIA_TYPE;
use crate::serve::Agent;

/// Where they are.
const PATH: &str = "/metrics";

/// Connections at once. The next ones wait to be accepted.
const CONNECTIONS: usize = 16;

/// For a client to send the head of a request.
const HEAD: Duration = Duration::from_secs(10);

/// For a connection altogether. Clients open another.
const CONNECTION: Duration = Duration::from_secs(300);

/// Serves the metrics until it is dropped.
pub async fn serve(listener: TcpListener, agent: Arc<Agent>) {
    let places = Arc::new(Semaphore::new(CONNECTIONS));
    loop {
        let Ok(place) = Arc::clone(&places).acquire_owned().await else { return };
        match listener.accept().await {
            Ok((stream, _)) => {
                let agent = Arc::clone(&agent);
                tokio::spawn(async move {
                    let _place = place;
                    connection(stream, agent).await;
                });
            }
            Err(error) => {
                tracing::warn!(%error, "cannot accept a connection for the metrics");
                sleep(Duration::from_millis(100)).await;
            }
        }
    }
}

async fn connection(stream: TcpStream, agent: Arc<Agent>) {
    let service = service_fn(|request| {
        let agent = Arc::clone(&agent);
        async move { Ok::<_, Infallible>(respond(&request, &agent).await) }
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD)
        .serve_connection(TokioIo::new(stream), service);
    // Who breaks off will come again.
    let _ = timeout(CONNECTION, pin!(connection)).await;
}

async fn respond(request: &Request<Incoming>, agent: &Arc<Agent>) -> Response<Full<Bytes>> {
    if request.uri().path() != PATH {
        return page(StatusCode::NOT_FOUND, "text/plain", format!("The metrics are at {PATH}.\n"));
    }
    if !matches!(*request.method(), Method::GET | Method::HEAD) {
        return page(StatusCode::METHOD_NOT_ALLOWED, "text/plain", "They can be read only.\n".into());
    }
    match scrape(agent).await {
        Ok(text) => page(StatusCode::OK, MEDIA_TYPE, text),
        Err(error) => {
            tracing::error!(%error, "no metrics");
            page(StatusCode::INTERNAL_SERVER_ERROR, "text/plain", format!("{error}\n"))
        }
    }
}

fn page(status: StatusCode, media_type: &'static str, text: String) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::from(text));
    *response.status_mut() = status;
    response.headers_mut().insert("content-type", HeaderValue::from_static(media_type));
    response
}
