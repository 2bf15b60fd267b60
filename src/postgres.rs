//! Talks to a database as a client would: TLS, login, one query. The only module that names tokio-postgres.
//!
//! TLS is agreed on here and not inside tokio-postgres, so that each phase has its own time and its own failure,
//! and so that a probe may stop after it. Every function has a deadline of its own: tokio-postgres has none over a
//! stream that it did not open.

mod certificates;
mod guard;
mod hints;
mod shown;
mod tls;

use std::error::Error as _;
use std::future::{Ready, ready};
use std::io;
use std::time::Duration;

use tokio::time::timeout;
use tokio_postgres::config::{SslMode, SslNegotiation};
use tokio_postgres::tls::{TlsConnect, TlsStream};
use tokio_postgres::{CancelToken, Client, Config, Error};
use tokio_util::task::AbortOnDropHandle;

use crate::failure::{Cause, Failure};
use crate::secret::Login;
use crate::settings::plan::{LoginPlan, TlsPlan};
use guard::{Budget, ClearText, Guard};
pub use tls::{Agreement, Stream, Wire, negotiate};

/// How long a goodbye may take.
const GOODBYE: Duration = Duration::from_secs(2);

/// A session in the database.
pub struct Session {
    client: Client,
    /// Aborted when the session is dropped: tokio-postgres would wait for ever for an answer that does not come.
    driver: AbortOnDropHandle<()>,
    budget: Budget,
}

/// Asks the database over another connection to give up what it does for a session: it would go on without anybody to
/// answer, and each probe would leave one more behind.
pub struct Canceller(CancelToken);

impl Canceller {
    /// Asks, and does not wait for more than that it was heard.
    pub async fn cancel<S: Stream>(self, wire: Wire<S>, limit: Duration) {
        let _ = timeout(limit, self.0.cancel_query_raw(wire, Agreed)).await;
    }
}

/// TLS has been agreed on already, or is not wanted.
struct Agreed;

impl<S: TlsStream + Unpin + Send> TlsConnect<S> for Agreed {
    type Stream = S;
    type Error = io::Error;
    type Future = Ready<io::Result<S>>;

    fn connect(self, stream: S) -> Self::Future {
        ready(Ok(stream))
    }
}

impl Session {
    /// Logs in with what `plan` has led to. A password is never sent in clear unless `tls` allows it, a temporary one or a
    /// token nothing at all without TLS; a database that wants more than a second of computation is refused.
    ///
    /// # Errors
    /// `db_login` failures, `credentials` `missing` where the database wants a password and there is none, and `db_tls`
    /// `refused` where there is no TLS for a token.
    pub async fn login<S: Stream>(
        wire: Wire<S>,
        login: &Login,
        plan: &LoginPlan,
        tls: &TlsPlan,
        limit: Duration,
    ) -> Result<Self, Failure> {
        if plan.credentials.are_temporary() && matches!(wire, Wire::Plain(_)) {
            let text = "the database has no TLS, and a token or temporary password is sent only inside it";
            return Err(Failure::new(Cause::DbTlsRefused, text).with_hint("switch TLS on in the database"));
        }
        let mut config = Config::new();
        config.user(&login.user).application_name("tunnelkeeper");
        if let Some(database) = &plan.database {
            config.dbname(database);
        }
        if let Some(password) = &login.password {
            config.password(password.expose());
        }
        let encrypted = matches!(wire, Wire::Tls(_));
        if encrypted {
            // The channel binding is that of our TLS; tokio-postgres must not ask for TLS again.
            config.ssl_mode(SslMode::Require).ssl_negotiation(SslNegotiation::Direct);
        } else {
            config.ssl_mode(SslMode::Disable);
        }
        let clear_text = match wire {
            Wire::Tls(_) if tls.proves_identity() || tls.allow_unverified => ClearText::Allowed,
            Wire::Tls(_) => ClearText::Unverified,
            Wire::Plain(_) => ClearText::Unencrypted,
        };
        let (guard, budget) = Guard::new(wire, clear_text);
        match timeout(limit, config.connect_raw(guard, Agreed)).await {
            Ok(Ok((client, connection))) => {
                let driver = tokio::spawn(async move {
                    // What ends the connection, the next query says.
                    let _ = connection.await;
                });
                Ok(Self { client, driver: AbortOnDropHandle::new(driver), budget })
            }
            Ok(Err(error)) => Err(login_failure(&error, plan, login.password.is_some())),
            Err(_) => {
                Err(Failure::new(Cause::DbLoginTimeout, "the database did not finish the login in time"))
            }
        }
    }

    /// Asks one query and waits for the whole answer. After a failure the session is of no more use; where the time was
    /// over the database is still busy with it, so that it has to be told with a [`Canceller`].
    ///
    /// # Errors
    /// `db_query` failures.
    pub async fn query(&self, query: &str, limit: Duration) -> Result<(), Failure> {
        self.budget.refill();
        // The simple protocol leaves no prepared statement behind and works through poolers of every kind.
        match timeout(limit, self.client.batch_execute(query)).await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(error)) => Err(query_failure(&error)),
            Err(_) => {
                Err(Failure::new(Cause::DbQueryTimeout, "the database did not answer the query in time"))
            }
        }
    }

    /// What it takes to have the database give up what it does for this session.
    #[must_use]
    pub fn canceller(&self) -> Canceller {
        Canceller(self.client.cancel_token())
    }

    /// Whether the connection is known to have ended.
    #[must_use]
    pub fn is_closed(&self) -> bool {
        self.client.is_closed() || self.driver.is_finished()
    }

    /// Says goodbye.
    pub async fn close(self) {
        drop(self.client);
        let _ = timeout(GOODBYE, self.driver).await;
    }
}

/// A failure of ours that travelled through tokio-postgres.
fn ours(error: &Error) -> Option<Failure> {
    let mut source = error.source();
    while let Some(error) = source {
        let inner = error.downcast_ref::<io::Error>().and_then(io::Error::get_ref);
        if let Some(failure) = inner.and_then(|inner| inner.downcast_ref::<Failure>()) {
            return Some(failure.clone());
        }
        source = error.source();
    }
    None
}

/// TLS that the server ended after its handshake.
fn of_tls(error: &Error) -> Option<Failure> {
    let io = error.source().and_then(|source| source.downcast_ref::<io::Error>())?;
    tls::alert(tls::of_rustls(io)?)
}

/// An error with all its causes: tokio-postgres says only "db error" by itself.
fn chain(error: &Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        text.push_str(": ");
        text.push_str(&error.to_string());
        source = error.source();
    }
    text
}

/// What streams say when they end. Parsers use the same kinds of errors for what they cannot understand, so that only
/// the words tell them apart: rustls' of TLS without its own closing, tokio's of half a message.
fn has_ended(error: &Error) -> bool {
    use io::ErrorKind::{BrokenPipe, ConnectionAborted, ConnectionReset};
    let is_end = |error: &io::Error| {
        let text = error.to_string();
        matches!(error.kind(), BrokenPipe | ConnectionAborted | ConnectionReset)
            || ["close_notify", "bytes remaining on stream"].iter().any(|words| text.contains(words))
    };
    error.is_closed() || error.source().and_then(|source| source.downcast_ref().map(is_end)) == Some(true)
}

fn login_failure(error: &Error, plan: &LoginPlan, has_password: bool) -> Failure {
    if let Some(failure) = ours(error).or_else(|| of_tls(error)) {
        return failure;
    }
    if let Some(answer) = error.as_db_error() {
        let (code, message) = (answer.code().code(), answer.message());
        let cause = login_answer(code, message);
        let failure = Failure::new(cause, answered(code, message, answer.detail()));
        let temporary = hints::rejected(&plan.credentials).filter(|_| cause == Cause::DbLoginRejected);
        if let Some(hint) = temporary {
            return failure.with_hint(hint);
        }
        return match code {
            "28000" if message.contains("client certificate") => failure.with_hint(
                "it wants a client's certificate, which the probe has not: let its user log in without one",
            ),
            "42501" => {
                failure.with_hint("let the probe's user connect: GRANT CONNECT ON DATABASE ... TO ...")
            }
            // Neon's and Lakebase's words for whoever gives no name in TLS, or one that they do not know.
            _ if message.contains("Endpoint ID is not specified") => failure.with_hint(
                "this service finds a database by the name that it is asked for in TLS: write its own name as `host`",
            ),
            _ => failure,
        };
    }
    let text = chain(error);
    if has_ended(error) {
        let text = format!("the database closed the connection during the login: {text}");
        Failure::new(Cause::DbLoginClosed, text)
    } else if !has_password && text.contains("password missing") {
        Failure::new(Cause::CredentialsMissing, "the database wants a password, and none is configured")
            .with_hint("set the database's `password`")
    } else if text.contains("SCRAM verification error") {
        let text = "the server could not prove that it knows the password too";
        Failure::new(Cause::DbLoginOther, text).with_hint(
            "what answers may not be your database: check `host` and `port`, and verify it by tls.mode",
        )
    } else if text.contains("unsupported") || text.contains("authentication") {
        Failure::new(Cause::DbLoginUnsupportedMethod, format!("the login cannot be made: {text}"))
    } else {
        Failure::new(
            Cause::DbLoginNotPostgres,
            format!("the answer to the login is not PostgreSQL's: {text}"),
        )
    }
}

/// What a database means that refuses a login: PostgreSQL 17, appendix A, "PostgreSQL Error Codes".
fn login_answer(code: &str, message: &str) -> Cause {
    match code {
        "28000" if message.contains("pg_hba.conf") => Cause::DbLoginNoHbaEntry,
        "28000" if message.contains("client certificate") => Cause::DbLoginUnsupportedMethod,
        "3D000" => Cause::DbLoginUnknownDatabase,
        "53300" => Cause::DbLoginTooManyConnections,
        _ if code.starts_with("28") => Cause::DbLoginRejected,
        _ if code.starts_with("57P") => Cause::DbLoginStarting,
        _ => Cause::DbLoginOther,
    }
}

fn answered(code: &str, message: &str, detail: Option<&str>) -> String {
    match detail {
        Some(detail) => format!("the database answers: {message}: {detail} ({code})"),
        None => format!("the database answers: {message} ({code})"),
    }
}

fn query_failure(error: &Error) -> Failure {
    if let Some(failure) = ours(error) {
        return failure;
    }
    let Some(answer) = error.as_db_error() else {
        let text = chain(error);
        return if has_ended(error) {
            Failure::new(Cause::DbQueryClosed, format!("the database closed the connection: {text}"))
        } else {
            Failure::new(Cause::DbQueryError, text)
        };
    };
    let code = answer.code().code();
    let text = answered(code, answer.message(), answer.detail());
    match code {
        // The server ended the session: a restart, an idle limit, an administrator.
        _ if code.starts_with("57P") => Failure::new(Cause::DbQueryClosed, text),
        // Its own time was over before ours: `statement_timeout`, `lock_timeout`.
        "57014" | "55P03" => Failure::new(Cause::DbQueryTimeout, text),
        _ if code.starts_with("53") => Failure::new(Cause::DbQueryError, text)
            .with_hint("the database is out of resources: check its disk and memory"),
        _ => Failure::new(Cause::DbQueryError, text),
    }
}

#[cfg(test)]
mod tests;
