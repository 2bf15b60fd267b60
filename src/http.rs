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

use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::task::AbortHandle;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tracing::debug;

use crate::board::Board;
use crate::listener::Bound;
use crate::local::{LocalAddress, Peer};
use crate::metrics::Metrics;
use crate::socket::Socket;
use routes::Routes;

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
                let connection = converse(TokioIo::new(socket), peer, Arc::clone(&routes));
                connections.push_back(tokio::spawn(connection).abort_handle());
            }
        }
    }
}

async fn converse(io: TokioIo<Socket>, peer: Peer, routes: Arc<Routes>) {
    let at_home = peer.is_local();
    let service = service_fn(move |request: Request<Incoming>| {
        let response: Response<Full<Bytes>> = routes.answer(&request, at_home);
        std::future::ready(Ok::<_, Infallible>(response))
    });
    let mut server = http1::Builder::new();
    server.timer(TokioTimer::new()).header_read_timeout(HEADER_PATIENCE).max_buf_size(MAX_HEADER);
    let mut connection = pin!(server.serve_connection(io, service));
    let ended = match timeout(MAX_AGE, connection.as_mut()).await {
        Ok(ended) => ended,
        Err(_) => {
            // The answer under way is finished first.
            connection.as_mut().graceful_shutdown();
            timeout(HEADER_PATIENCE, connection).await.unwrap_or(Ok(()))
        }
    };
    if let Err(error) = ended {
        debug!(%peer, %error, "an HTTP conversation broke");
    }
}
