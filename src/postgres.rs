//! Talks to a database as a client would: TLS, login, one query. The only module that names tokio-postgres.
//!
//! TLS is agreed on here and not inside tokio-postgres, so that each phase has its own time and its own failure,
//! and so that a probe may stop after it. Every function has a deadline of its own: tokio-postgres has none over a
//! stream that it did not open.

mod guard;
mod tls;

use std::error::Error as _;
use std::future::{Ready, ready};
use std::io;
use std::time::Duration;

use tokio::time::timeout;
use tokio_postgres::config::{SslMode, SslNegotiation};
use tokio_postgres::error::SqlState;
use tokio_postgres::tls::TlsConnect;
use tokio_postgres::{Client, Config, Error};
use tokio_util::task::AbortOnDropHandle;

use crate::failure::{Cause, Failure};
use crate::secret::Secret;
use crate::settings::plan::{LoginPlan, TlsPlan};
use guard::{Budget, Guard};
pub use tls::{Stream, Wire, negotiate};

/// How long a goodbye may take.
const GOODBYE: Duration = Duration::from_secs(2);

/// A session in the database.
pub struct Session {
    client: Client,
    /// Aborted when the session is dropped: tokio-postgres would wait for ever for an answer that does not come.
    driver: AbortOnDropHandle<()>,
    budget: Budget,
}

/// TLS has been agreed on already, or is not wanted.
struct Agreed;

impl<S: Stream> TlsConnect<Guard<Wire<S>>> for Agreed {
    type Stream = Guard<Wire<S>>;
    type Error = io::Error;
    type Future = Ready<io::Result<Guard<Wire<S>>>>;

    fn connect(self, stream: Guard<Wire<S>>) -> Self::Future {
        ready(Ok(stream))
    }
}

impl Session {
    /// Logs in. A password is never sent in clear unless `tls` allows it; a database that wants more than a second
    /// of computation is refused.
    ///
    /// # Errors
    /// `db_login` failures, and `credentials` `missing` where the database wants a password and there is none.
    pub async fn login<S: Stream>(
        wire: Wire<S>,
        login: &LoginPlan,
        password: Option<&Secret>,
        tls: &TlsPlan,
        limit: Duration,
    ) -> Result<Self, Failure> {
        let mut config = Config::new();
        config.user(&login.user).application_name("tunnelkeeper");
        if let Some(database) = &login.database {
            config.dbname(database);
        }
        if let Some(password) = password {
            config.password(password.expose());
        }
        let encrypted = matches!(wire, Wire::Tls(_));
        if encrypted {
            // The channel binding is that of our TLS; tokio-postgres must not ask for TLS again.
            config.ssl_mode(SslMode::Require).ssl_negotiation(SslNegotiation::Direct);
        } else {
            config.ssl_mode(SslMode::Disable);
        }
        let clear_text_allowed = encrypted && (tls.mode.verifies() || tls.allow_unverified);
        let (guard, budget) = Guard::new(wire, clear_text_allowed);
        match timeout(limit, config.connect_raw(guard, Agreed)).await {
            Ok(Ok((client, connection))) => {
                let driver = tokio::spawn(async move {
                    // What ends the connection, the next query says.
                    let _ = connection.await;
                });
                Ok(Self { client, driver: AbortOnDropHandle::new(driver), budget })
            }
            Ok(Err(error)) => Err(login_failure(&error, password.is_some())),
            Err(_) => {
                Err(Failure::new(Cause::DbLoginTimeout, "the database did not finish the login in time"))
            }
        }
    }

    /// Asks one query and waits for the whole answer. After a failure the session is of no more use.
    ///
    /// # Errors
    /// `db_query` failures.
    pub async fn query(&self, query: &str, limit: Duration) -> Result<(), Failure> {
        self.budget.refill();
        // The simple protocol leaves no prepared statement behind and works through poolers of every kind.
        match timeout(limit, self.client.simple_query(query)).await {
            Ok(Ok(_)) => Ok(()),
            Ok(Err(error)) => Err(query_failure(&error)),
            Err(_) => {
                Err(Failure::new(Cause::DbQueryTimeout, "the database did not answer the query in time"))
            }
        }
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

fn has_ended(error: &Error) -> bool {
    let io = error.source().and_then(|source| source.downcast_ref::<io::Error>());
    // What cannot be understood is no end.
    error.is_closed() || io.is_some_and(|error| error.kind() != io::ErrorKind::InvalidData)
}

fn login_failure(error: &Error, has_password: bool) -> Failure {
    if let Some(failure) = ours(error) {
        return failure;
    }
    let Some(answer) = error.as_db_error() else {
        let text = chain(error);
        return if has_ended(error) {
            Failure::new(
                Cause::DbLoginClosed,
                format!("the database closed the connection during the login: {text}"),
            )
        } else if !has_password && text.contains("password missing") {
            Failure::new(Cause::CredentialsMissing, "the database wants a password, and none is configured")
                .with_hint("set the database's `password`")
        } else if text.contains("unsupported") || text.contains("authentication") {
            Failure::new(Cause::DbLoginUnsupportedMethod, format!("the login cannot be made: {text}"))
        } else {
            Failure::new(
                Cause::DbLoginNotPostgres,
                format!("the answer to the login is not PostgreSQL's: {text}"),
            )
        };
    };
    let cause = match answer.code() {
        code if *code == SqlState::INVALID_AUTHORIZATION_SPECIFICATION
            && answer.message().contains("pg_hba.conf") =>
        {
            Cause::DbLoginNoHbaEntry
        }
        code if code.code().starts_with("28") => Cause::DbLoginRejected,
        code if *code == SqlState::INVALID_CATALOG_NAME => Cause::DbLoginUnknownDatabase,
        code if *code == SqlState::TOO_MANY_CONNECTIONS => Cause::DbLoginTooManyConnections,
        code if code.code().starts_with("57P") => Cause::DbLoginStarting,
        _ => Cause::DbLoginOther,
    };
    Failure::new(cause, format!("the database answers: {} ({})", answer.message(), answer.code().code()))
}

fn query_failure(error: &Error) -> Failure {
    if let Some(failure) = ours(error) {
        return failure;
    }
    match error.as_db_error() {
        // The server ended the session: a restart, an idle limit, an administrator.
        Some(answer) if answer.code().code().starts_with("57P") => Failure::new(
            Cause::DbQueryClosed,
            format!("the database ended the session: {} ({})", answer.message(), answer.code().code()),
        ),
        Some(answer) => Failure::new(
            Cause::DbQueryError,
            format!("the database answers: {} ({})", answer.message(), answer.code().code()),
        ),
        None if has_ended(error) => Failure::new(
            Cause::DbQueryClosed,
            format!("the database closed the connection: {}", chain(error)),
        ),
        None => Failure::new(Cause::DbQueryError, chain(error)),
    }
}

#[cfg(test)]
mod tests;
