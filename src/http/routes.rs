//! Which path answers what.

use std::net::{Ipv4Addr, Ipv6Addr};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use http_body_util::Full;
use hyper::body::Bytes;
use hyper::header::{ALLOW, CACHE_CONTROL, CONTENT_SECURITY_POLICY, CONTENT_TYPE, HOST, HeaderValue};
use hyper::{Method, Request, Response, StatusCode, Version};

use super::{assets, page};
use crate::board::Board;
use crate::metrics::Metrics;
use crate::snapshot::{Bastion, Database, Snapshot, Trouble};

const TEXT: &str = "text/plain; charset=utf-8";
const JSON: &str = "application/json";
const HTML: &str = "text/html; charset=utf-8";
/// Prometheus' text format.
const EXPOSITION: &str = "text/plain; version=0.0.4; charset=utf-8";
/// For what is true at one moment only.
const NOT_KEPT: &str = "no-store";
/// For what has its version in its address.
const KEPT: &str = "max-age=86400, immutable";
/// Nothing but what comes from here, and nothing that is written into the page: no text that we show can do anything.
const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; \
                      form-action 'none'; frame-ancestors 'none'; base-uri 'none'; \
                      require-trusted-types-for 'script'; trusted-types 'none'";

/// What there is to answer with, and for whom.
pub struct Routes {
    /// For `/metrics`.
    pub metrics: Arc<Metrics>,
    /// For everything else.
    pub board: Arc<Board>,
    /// We listen on loopback only.
    pub loopback: bool,
    /// Status and page are served on other addresses too.
    pub allow_remote_status: Arc<AtomicBool>,
}

struct Answer {
    status: StatusCode,
    content_type: &'static str,
    caching: &'static str,
    body: String,
}

fn plain(status: StatusCode, body: impl Into<String>) -> Answer {
    Answer { status, content_type: TEXT, caching: NOT_KEPT, body: body.into() + "\n" }
}

fn good(content_type: &'static str, body: String) -> Answer {
    Answer { status: StatusCode::OK, content_type, caching: NOT_KEPT, body }
}

impl Routes {
    /// `at_home`: whoever asks is on this machine, or in this container, as far as its address tells.
    pub(super) fn answer<B>(&self, request: &Request<B>, at_home: bool) -> Response<Full<Bytes>> {
        let to_us = is_addressed_to_us(request);
        let answer = if !matches!(*request.method(), Method::GET | Method::HEAD) {
            plain(StatusCode::METHOD_NOT_ALLOWED, "only GET and HEAD are answered")
        } else if self.loopback && !to_us {
            // A page of another site must not reach us by a name that it has pointed at this machine.
            plain(StatusCode::MISDIRECTED_REQUEST, "this address answers for localhost only")
        } else {
            let everything = at_home && to_us || self.allow_remote_status.load(Ordering::Relaxed);
            self.route(request.uri().path(), everything)
        };
        respond(answer)
    }

    fn route(&self, path: &str, everything: bool) -> Answer {
        match path {
            "/livez" => plain(StatusCode::OK, "ok"),
            "/readyz" => ready(&self.board.snapshot()),
            "/metrics" => self.exposition(),
            _ if is_detailed(path) && !everything => plain(
                StatusCode::FORBIDDEN,
                "this is not served to other machines: set http.allow_remote_status = true to allow it",
            ),
            "/" => good(HTML, page::render(&self.board.snapshot(), &self.board.history())),
            "/api/v1/status" => status(&self.board.snapshot()),
            _ => {
                if let Some(name) = path.strip_prefix("/readyz/") {
                    ready_database(&self.board.snapshot(), name, everything)
                } else if let Some((content_type, text)) = assets::find(path) {
                    Answer { caching: KEPT, ..good(content_type, text.to_owned()) }
                } else {
                    plain(StatusCode::NOT_FOUND, "there is nothing here: see /, /metrics, /readyz, /livez")
                }
            }
        }
    }

    fn exposition(&self) -> Answer {
        match self.metrics.exposition(&self.board.snapshot()) {
            Ok(body) => good(EXPOSITION, body),
            Err(error) => plain(StatusCode::INTERNAL_SERVER_ERROR, error.to_string()),
        }
    }
}

/// What names hosts, accounts and keys, and what belongs to it.
fn is_detailed(path: &str) -> bool {
    matches!(path, "/" | "/api/v1/status") || assets::find(path).is_some()
}

fn status(snapshot: &Snapshot) -> Answer {
    match serde_json::to_string_pretty(snapshot) {
        Ok(body) => good(JSON, body),
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

fn ready_database(snapshot: &Snapshot, name: &str, in_detail: bool) -> Answer {
    let Some(database) = snapshot.databases.iter().find(|database| database.name == name) else {
        return plain(StatusCode::NOT_FOUND, "there is no database of this name");
    };
    let failing = failing_checks(snapshot, database, in_detail);
    if failing.is_empty() {
        plain(StatusCode::OK, "ready")
    } else {
        plain(StatusCode::SERVICE_UNAVAILABLE, failing.join("\n"))
    }
}

/// A detail names hosts, accounts and keys, which other machines need not know to raise an alarm.
fn failing_checks(snapshot: &Snapshot, database: &Database, in_detail: bool) -> Vec<String> {
    let why = |trouble: Option<&Trouble>| match trouble {
        Some(trouble) if in_detail => format!(": {trouble}"),
        Some(trouble) => format!(": {} {}", trouble.phase, trouble.reason),
        None => String::new(),
    };
    let mut failing = Vec::new();
    if !database.accepting {
        failing.push("removed: the database takes no new clients".to_owned());
    }
    if !database.up {
        let behind = |bastion: &&Bastion| database.bastions.contains(&bastion.name);
        let down = |bastion: &Bastion| {
            format!("tunnel: bastion {} is down{}", bastion.name, why(bastion.last_failure.as_ref()))
        };
        let all: Vec<String> = snapshot.bastions.iter().filter(behind).map(down).collect();
        // Those of a database that is removed may have gone before it.
        failing.extend(if all.is_empty() { vec!["tunnel: none is up".to_owned()] } else { all });
    }
    if database.probe.verdict == "down" {
        failing.push(format!("probe: down{}", why(database.probe.last_failure.as_ref())));
    }
    failing
}

/// Whether a request names this machine by what only means this machine.
fn is_addressed_to_us<B>(request: &Request<B>) -> bool {
    let mut hosts = request.headers().get_all(HOST).iter();
    match (hosts.next(), hosts.next()) {
        (Some(host), None) => host.to_str().is_ok_and(is_local),
        (Some(_), Some(_)) => false,
        // HTTP/1.0 needs no Host, and no browser speaks it.
        (None, _) => request.version() < Version::HTTP_11,
    }
}

fn is_local(host: &str) -> bool {
    let name = match host.rsplit_once(':') {
        // It is within the brackets of an IPv6 address.
        Some((_, rest)) if rest.ends_with(']') => host,
        Some((name, port)) if port.parse::<u16>().is_ok() => name,
        Some(_) => return false,
        None => host,
    };
    match name.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')) {
        Some(v6) => v6.parse::<Ipv6Addr>().is_ok_and(|ip| ip.is_loopback()),
        None => {
            name.strip_suffix('.').unwrap_or(name).eq_ignore_ascii_case("localhost")
                || name.parse::<Ipv4Addr>().is_ok_and(|ip| ip.is_loopback())
        }
    }
}

fn respond(answer: Answer) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(Bytes::from(answer.body)));
    *response.status_mut() = answer.status;
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static(answer.content_type));
    headers.insert(CACHE_CONTROL, HeaderValue::from_static(answer.caching));
    headers.insert(CONTENT_SECURITY_POLICY, HeaderValue::from_static(POLICY));
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
    use crate::snapshot::tests::troubled;

    fn routes(loopback: bool, everything: bool) -> Routes {
        let board = Arc::new(Board::default());
        board.set_stage(crate::board::Stage::Ready);
        let allow_remote_status = Arc::new(AtomicBool::new(everything));
        Routes { metrics: Arc::new(Metrics::new().unwrap()), board, loopback, allow_remote_status }
    }

    fn ask(routes: &Routes, method: &str, path: &str, host: &str) -> u16 {
        ask_from(routes, routes.loopback, method, path, host)
    }

    fn ask_from(routes: &Routes, at_home: bool, method: &str, path: &str, host: &str) -> u16 {
        let request = Request::builder().method(method).uri(path).header(HOST, host);
        routes.answer(&request.body(()).unwrap(), at_home).status().as_u16()
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
            ("/page.css?v=1", 200),
            ("/page.js", 200),
            ("/page.svg", 200),
            ("/page.html", 404),
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
    fn a_browser_keeps_what_belongs_to_the_page_and_lets_nothing_else_in() {
        let routes = routes(true, true);
        for (path, caching) in
            [("/", "no-store"), ("/page.js?v=1", "max-age=86400, immutable"), ("/metrics", "no-store")]
        {
            let request = Request::builder().uri(path).header(HOST, "localhost").body(()).unwrap();
            let answer = routes.answer(&request, true);
            assert_eq!(answer.headers()[CACHE_CONTROL], caching, "{path}");
            let policy = answer.headers()[CONTENT_SECURITY_POLICY].to_str().unwrap();
            assert!(
                policy.starts_with("default-src 'none'; script-src 'self'; style-src 'self'; "),
                "{policy}"
            );
            assert!(!policy.contains("unsafe") && !policy.contains('*') && !policy.contains(':'), "{policy}");
        }
    }

    #[test]
    fn on_loopback_only_loopback_names_are_answered() {
        let routes = routes(true, true);
        for good in
            ["localhost", "LOCALHOST:1", "localhost.:1", "127.0.0.1:9822", "127.9.9.9", "[::1]:9822", "[::1]"]
        {
            assert_eq!(ask(&routes, "GET", "/", good), 200, "{good}");
        }
        for bad in [
            "evil.example",
            "localhost.evil.example",
            "127.0.0.1.evil.example",
            "localhost..",
            "10.0.0.1",
            "[::2]",
            "[::1].evil",
            "[::1].evil:1",
            "[::1]]",
            "127.0.0.1:abc",
            "127.0.0.1:70000",
            "localhost:1:2",
            "::1",
            "",
        ] {
            assert_eq!(ask(&routes, "GET", "/metrics", bad), 421, "{bad}");
        }
        let two = Request::builder().uri("/metrics").header(HOST, "localhost").header(HOST, "evil.example");
        assert_eq!(routes.answer(&two.body(()).unwrap(), true).status(), 421);
        for (version, status) in [(Version::HTTP_11, 421), (Version::HTTP_10, 200)] {
            let none = Request::builder().uri("/metrics").version(version).body(()).unwrap();
            assert_eq!(routes.answer(&none, true).status(), status, "{version:?}");
        }
    }

    #[test]
    fn other_machines_see_what_monitoring_needs() {
        let routes = routes(false, false);
        for (path, status) in [
            ("/", 403),
            ("/page.css", 403),
            ("/page.js", 403),
            ("/page.svg", 403),
            ("/api/v1/status", 403),
            ("/metrics", 200),
            ("/readyz", 200),
        ] {
            assert_eq!(ask(&routes, "GET", path, "tunnels.internal"), status, "{path}");
            // A page of another site that has pointed its name at this machine.
            assert_eq!(ask_from(&routes, true, "GET", path, "tunnels.internal"), status, "{path}");
            assert_eq!(ask_from(&routes, true, "GET", path, "127.0.0.1:9822"), 200, "{path}");
            assert_eq!(ask(&routes, "GET", path, "127.0.0.1:9822"), status, "{path}");
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

    #[test]
    fn a_database_is_as_ready_as_its_tunnel_and_its_probe() {
        let mut snapshot = troubled();
        for (in_detail, tunnel, probe) in [
            (false, "tunnel: bastion gone is down: auth rejected\n", "probe: down: db_login rejected\n"),
            (
                true,
                "tunnel: bastion gone is down: auth rejected: the \u{1b}[2Jdetail\n",
                "probe: down: db_login rejected: the \u{1b}[2Jdetail\n",
            ),
        ] {
            assert_eq!(ready_database(&snapshot, "analytics", in_detail).body, probe);
            assert_eq!(ready_database(&snapshot, "lost", in_detail).body, format!("{tunnel}{probe}"));
        }
        for database in &mut snapshot.databases {
            database.probe.verdict = "unknown".to_owned();
        }
        assert!(!snapshot.daemon.ready, "the daemon drains");
        assert_eq!(ready_database(&snapshot, "analytics", true).status, StatusCode::OK);
        assert_eq!(ready_database(&snapshot, "lost", true).status, StatusCode::SERVICE_UNAVAILABLE);
    }

    #[test]
    fn a_database_that_is_removed_is_not_ready() {
        let mut snapshot = troubled();
        let database = &mut snapshot.databases[0];
        (database.accepting, database.probe.verdict) = (false, "unknown".to_owned());
        let removed = "removed: the database takes no new clients\n";
        assert_eq!(ready_database(&snapshot, "analytics", false).body, removed);
        // Its bastion has gone too.
        let database = &mut snapshot.databases[0];
        (database.up, database.bastions) = (false, vec!["forgotten".to_owned()]);
        let answer = ready_database(&snapshot, "analytics", false);
        assert_eq!(
            (answer.status, answer.body),
            (StatusCode::SERVICE_UNAVAILABLE, format!("{removed}tunnel: none is up\n"))
        );
    }
}
