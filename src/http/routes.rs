//! Which path answers what.

use std::net::IpAddr;
use std::sync::Arc;

use http_body_util::Full;
use hyper::body::Bytes;
use hyper::header::{
    ALLOW, CACHE_CONTROL, CONTENT_SECURITY_POLICY, CONTENT_TYPE, HOST, HeaderMap, HeaderValue,
};
use hyper::{Method, Response, StatusCode, Uri};

use super::page;
use crate::board::Board;
use crate::metrics::Metrics;
use crate::snapshot::{Database, Snapshot};

const TEXT: &str = "text/plain; charset=utf-8";
const JSON: &str = "application/json";
const HTML: &str = "text/html; charset=utf-8";
/// Prometheus' text format.
const EXPOSITION: &str = "text/plain; version=0.0.4; charset=utf-8";

pub(super) struct Routes {
    pub(super) metrics: Arc<Metrics>,
    pub(super) board: Arc<Board>,
    /// We listen on loopback only.
    pub(super) loopback: bool,
    /// Status and page are served too.
    pub(super) everything: bool,
}

struct Answer {
    status: StatusCode,
    content_type: &'static str,
    body: String,
}

fn plain(status: StatusCode, body: impl Into<String>) -> Answer {
    Answer { status, content_type: TEXT, body: body.into() + "\n" }
}

impl Routes {
    pub(super) fn answer(&self, method: &Method, uri: &Uri, headers: &HeaderMap) -> Response<Full<Bytes>> {
        let answer = if *method != Method::GET && *method != Method::HEAD {
            plain(StatusCode::METHOD_NOT_ALLOWED, "only GET and HEAD are answered")
        } else if self.loopback && !is_local(headers.get(HOST)) {
            // A page of another site must not reach us by a name that it has pointed at this machine.
            plain(StatusCode::MISDIRECTED_REQUEST, "this address answers for localhost only")
        } else {
            self.route(uri.path())
        };
        respond(answer)
    }

    fn route(&self, path: &str) -> Answer {
        match path {
            "/livez" => plain(StatusCode::OK, "ok"),
            "/readyz" => ready(&self.board.snapshot()),
            "/metrics" => self.exposition(),
            "/" | "/api/v1/status" if !self.everything => plain(
                StatusCode::FORBIDDEN,
                "this is not served to other machines: set http.allow_remote_status = true to allow it",
            ),
            "/" => Answer {
                status: StatusCode::OK,
                content_type: HTML,
                body: page::render(&self.board.snapshot()),
            },
            "/api/v1/status" => status(&self.board.snapshot()),
            _ => match path.strip_prefix("/readyz/") {
                Some(name) => ready_database(&self.board.snapshot(), name),
                None => {
                    plain(StatusCode::NOT_FOUND, "there is nothing here: see /, /metrics, /readyz, /livez")
                }
            },
        }
    }

    fn exposition(&self) -> Answer {
        match self.metrics.exposition(&self.board.snapshot()) {
            Ok(body) => Answer { status: StatusCode::OK, content_type: EXPOSITION, body },
            Err(error) => plain(StatusCode::INTERNAL_SERVER_ERROR, error.to_string()),
        }
    }
}

fn status(snapshot: &Snapshot) -> Answer {
    match serde_json::to_string_pretty(snapshot) {
        Ok(body) => Answer { status: StatusCode::OK, content_type: JSON, body },
        Err(error) => plain(StatusCode::INTERNAL_SERVER_ERROR, error.to_string()),
    }
}

fn ready(snapshot: &Snapshot) -> Answer {
    if snapshot.daemon.ready {
        plain(StatusCode::OK, "ready")
    } else {
        plain(StatusCode::SERVICE_UNAVAILABLE, snapshot.daemon.not_ready_because.join("\n"))
    }
}

fn ready_database(snapshot: &Snapshot, name: &str) -> Answer {
    let Some(database) = snapshot.databases.iter().find(|database| database.name == name) else {
        return plain(StatusCode::NOT_FOUND, "there is no database of this name");
    };
    let failing = failing_checks(snapshot, database);
    if failing.is_empty() {
        plain(StatusCode::OK, "ready")
    } else {
        plain(StatusCode::SERVICE_UNAVAILABLE, failing.join("\n"))
    }
}

fn failing_checks(snapshot: &Snapshot, database: &Database) -> Vec<String> {
    let mut failing = snapshot.daemon.not_ready_because.clone();
    if !database.up {
        let behind = |bastion: &&crate::snapshot::Bastion| database.bastions.contains(&bastion.name);
        for bastion in snapshot.bastions.iter().filter(behind) {
            let why = bastion.last_failure.as_ref().map(|trouble| format!(": {trouble}"));
            failing.push(format!("tunnel: bastion {} is down{}", bastion.name, why.unwrap_or_default()));
        }
    }
    if database.probe.verdict == "down" {
        let why = database.probe.last_failure.as_ref().map(|trouble| format!(": {trouble}"));
        failing.push(format!("probe: down{}", why.unwrap_or_default()));
    }
    failing
}

/// Whether a request was addressed to this machine by a name that only means this machine.
fn is_local(host: Option<&HeaderValue>) -> bool {
    // HTTP/1.0 needs no Host, and no browser speaks it.
    let Some(host) = host else { return true };
    let Ok(host) = host.to_str() else { return false };
    let name = match host.strip_prefix('[') {
        Some(v6) => v6.split(']').next().unwrap_or_default(),
        None => host.split(':').next().unwrap_or_default(),
    };
    name.eq_ignore_ascii_case("localhost") || name.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback())
}

fn respond(answer: Answer) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(Bytes::from(answer.body)));
    *response.status_mut() = answer.status;
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static(answer.content_type));
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    let policy = "default-src 'none'; style-src 'unsafe-inline'; frame-ancestors 'none'; base-uri 'none'";
    headers.insert(CONTENT_SECURITY_POLICY, HeaderValue::from_static(policy));
    headers.insert("x-content-type-options", HeaderValue::from_static("nosniff"));
    headers.insert("cross-origin-resource-policy", HeaderValue::from_static("same-origin"));
    if answer.status == StatusCode::METHOD_NOT_ALLOWED {
        headers.insert(ALLOW, HeaderValue::from_static("GET, HEAD"));
    }
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    fn routes(loopback: bool, everything: bool) -> Routes {
        let board = Arc::new(Board::default());
        board.set_stage(crate::board::Stage::Ready);
        Routes { metrics: Arc::new(Metrics::new().unwrap()), board, loopback, everything }
    }

    fn ask(routes: &Routes, method: &str, path: &str, host: &str) -> u16 {
        let mut headers = HeaderMap::new();
        headers.insert(HOST, HeaderValue::from_str(host).unwrap());
        let method = Method::from_bytes(method.as_bytes()).unwrap();
        routes.answer(&method, &path.parse().unwrap(), &headers).status().as_u16()
    }

    #[test]
    fn paths() {
        let routes = routes(true, true);
        for (path, status) in [
            ("/", 200),
            ("/livez", 200),
            ("/readyz", 200),
            ("/readyz/none", 404),
            ("/metrics", 200),
            ("/api/v1/status", 200),
            ("/api/v1/status?x=1", 200),
            ("/etc/passwd", 404),
            ("/readyz/../metrics", 404),
        ] {
            assert_eq!(ask(&routes, "GET", path, "localhost:9822"), status, "{path}");
        }
        for method in ["POST", "PUT", "DELETE", "OPTIONS", "TRACE", "CONNECT"] {
            assert_eq!(ask(&routes, method, "/metrics", "localhost"), 405, "{method}");
        }
        assert_eq!(ask(&routes, "HEAD", "/metrics", "localhost"), 200);
    }

    #[test]
    fn on_loopback_only_loopback_names_are_answered() {
        let routes = routes(true, true);
        for good in ["localhost", "LOCALHOST:1", "127.0.0.1:9822", "127.9.9.9", "[::1]:9822", "[::1]"] {
            assert_eq!(ask(&routes, "GET", "/", good), 200, "{good}");
        }
        for bad in
            ["evil.example", "localhost.evil.example", "127.0.0.1.evil.example", "10.0.0.1", "[::2]", ""]
        {
            assert_eq!(ask(&routes, "GET", "/metrics", bad), 421, "{bad}");
        }
    }

    #[test]
    fn other_machines_see_what_monitoring_needs() {
        let routes = routes(false, false);
        for (path, status) in [("/", 403), ("/api/v1/status", 403), ("/metrics", 200), ("/readyz", 200)] {
            assert_eq!(ask(&routes, "GET", path, "tunnels.internal"), status, "{path}");
        }
    }

    #[test]
    fn not_ready_says_why() {
        let routes = routes(true, true);
        routes.board.set_stage(crate::board::Stage::Draining);
        let answer = ready(&routes.board.snapshot());
        assert_eq!(answer.status, StatusCode::SERVICE_UNAVAILABLE);
        assert_eq!(answer.body, "draining: the daemon was told to stop\n");
    }
}
