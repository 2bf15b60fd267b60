//! What the daemon answers over HTTP: metrics, health, status, and a page for people. The only server that names
//! hyper.
//!
//! It reads snapshots and touches nothing else, so that no tunnel, however slow, can keep it from answering. GET
//! and HEAD only, no secrets, nothing for other origins; from other machines only what monitoring needs, unless `allow_remote_status`.

mod assets;
mod page;
mod routes;

use std::collections::VecDeque;
use std::convert::Infallible;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use hyper::Request;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::task::AbortHandle;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tracing::debug;

use crate::board::Board;
use crate::listener::Bound;
use crate::local::LocalAddress;
use crate::metrics::Metrics;
pub use routes::Routes;

/// Connections at a time. One more, and the oldest is closed: those who hold connections that they do not use must
/// not keep a health check out.
pub const MAX_CONNECTIONS: usize = 64;
/// How long a client may take to send a request's header, or be idle between requests.
const HEADER_PATIENCE: Duration = Duration::from_secs(30);
/// More than any request's header, in bytes.
const MAX_HEADER: usize = 16 << 10;
/// How long any connection may last; clients connect again.
const MAX_AGE: Duration = Duration::from_secs(600);

/// Answers until told to stop. `allow_remote_status` may change meanwhile.
pub async fn serve(
    mut bound: Bound,
    allow_remote_status: Arc<AtomicBool>,
    metrics: Arc<Metrics>,
    board: Arc<Board>,
    stop: CancellationToken,
) {
    let loopback = bound.addresses().all(LocalAddress::is_local);
    let routes = Arc::new(Routes { metrics, board, loopback, allow_remote_status });
    let mut connections: VecDeque<AbortHandle> = VecDeque::new();
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            (socket, peer) = bound.accept() => {
                connections.retain(|connection| !connection.is_finished());
                if connections.len() >= MAX_CONNECTIONS
                    && let Some(oldest) = connections.pop_front()
                {
                    oldest.abort();
                }
                let routes = Arc::clone(&routes);
                let connection = async move {
                    if let Err(error) = converse(socket, peer.is_local(), routes).await {
                        debug!(%peer, %error, "an HTTP conversation broke");
                    }
                };
                connections.push_back(tokio::spawn(connection).abort_handle());
            }
        }
    }
}

/// Answers one connection to its end. `at_home`: whoever asks is on this machine, or in this container, as far as its
/// address tells.
///
/// # Errors
/// What it sent was no HTTP, or it left in the middle.
pub async fn converse(
    stream: impl AsyncRead + AsyncWrite + Unpin,
    at_home: bool,
    routes: Arc<Routes>,
) -> Result<(), hyper::Error> {
    let service = service_fn(move |request: Request<Incoming>| {
        std::future::ready(Ok::<_, Infallible>(routes.answer(&request, at_home)))
    });
    let mut server = http1::Builder::new();
    server.timer(TokioTimer::new()).header_read_timeout(HEADER_PATIENCE).max_buf_size(MAX_HEADER);
    let mut connection = pin!(server.serve_connection(TokioIo::new(stream), service));
    match timeout(MAX_AGE, connection.as_mut()).await {
        Ok(ended) => ended,
        Err(_) => {
            // The answer under way is finished first.
            connection.as_mut().graceful_shutdown();
            timeout(HEADER_PATIENCE, connection).await.unwrap_or(Ok(()))
        }
    }
}
