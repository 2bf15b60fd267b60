//! `exec`: waits for a database, and becomes the command that works with it. No shell, no child: the process, its
//! signals and its exit code are the command's own.

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::io;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;

use super::asking::{find, standpoint};
use super::libpq::{self, Parameter, SSL_MODES, Standpoint, verifies};
use super::wait::wait_for;
use super::{Patience, Stop};
use crate::failure::plain;
use crate::files;
use crate::snapshot::Database;

/// We failed; the command was not tried. As `env` and `docker run` have it.
pub(super) const OURS: u8 = 125;
/// The command cannot be run.
const CANNOT_RUN: u8 = 126;
/// There is no such command.
const NOT_FOUND: u8 = 127;

/// A change of the environment: a new value, or none.
type Change = (&'static str, Option<String>);

/// Returns only when it did not become the command.
pub(super) fn exec(
    url: &str,
    name: &str,
    patience: Patience,
    command: &[OsString],
    variables: &BTreeMap<String, OsString>,
) -> Stop {
    let own = |stop: Stop| Stop::NotRun(OURS, stop.lines());
    let Some((program, arguments)) = command.split_first() else {
        return own(Stop::Failed("there is no command: write it after `--`".to_owned()));
    };
    let environment = match environment(url, name, patience, variables) {
        Ok(environment) => environment,
        Err(stop) => return own(stop),
    };
    let mut command = Command::new(program);
    command.args(arguments);
    for (variable, value) in environment {
        match value {
            Some(value) => command.env(variable, value),
            None => command.env_remove(variable),
        };
    }
    not_run(program, &command.exec())
}

fn not_run(program: &OsStr, error: &io::Error) -> Stop {
    let code = if error.kind() == io::ErrorKind::NotFound { NOT_FOUND } else { CANNOT_RUN };
    let program = program.to_string_lossy();
    Stop::NotRun(code, vec![format!("\"{}\" cannot be run: {}", program.escape_debug(), plain(error))])
}

fn environment(
    url: &str,
    name: &str,
    patience: Patience,
    variables: &BTreeMap<String, OsString>,
) -> Result<Vec<Change>, Stop> {
    let status = wait_for(url, name, patience)?;
    let cannot = |why: String| Stop::Failed(format!("database \"{name}\": {why}"));
    let own = |variable: &str| {
        let value = variables.get(variable).filter(|value| !value.is_empty());
        value.map(|value| value.to_string_lossy().into_owned())
    };
    let database = find(&status, name).map_err(Stop::Failed)?;
    let changes = changes(database, &standpoint(&status), own).map_err(cannot)?;
    let roots = changes.iter().find(|(variable, _)| *variable == Parameter::SslRootCert.variable());
    if let Some((_, Some(file))) = roots.filter(|(_, file)| file.as_deref() != Some("system")) {
        files::open(Path::new(file)).map_err(|error| cannot(unreadable(file, &error)))?;
    }
    Ok(changes)
}

/// libpq would say that there is no such file.
fn unreadable(file: &str, error: &io::Error) -> String {
    let why = plain(error);
    format!(
        "{file}, which verifies it, cannot be read by this user: {why}: let this user read it and enter its directory, or \
         set PGSSLROOTCERT"
    )
}

/// What becomes of the caller's environment. Where it connects to is ours to say, all of it; how much TLS proves is
/// never less than the caller or the daemon wants; and whom a caller who verifies wants to find, and by which roots, is
/// not for whoever answers as the daemon to say.
fn changes(
    database: &Database,
    standpoint: &Standpoint,
    own: impl Fn(&str) -> Option<String>,
) -> Result<Vec<Change>, String> {
    let mut database = database.clone();
    let own_mode = own_ssl_mode(&own);
    let caller_verifies = own_mode.as_deref().is_some_and(verifies);
    if caller_verifies && !database.sslmode.as_deref().is_some_and(verifies) {
        database.sslrootcert = None;
    }
    database.sslmode = stricter(own_mode, database.sslmode);
    let parameters = libpq::parameters(&database, standpoint)?;
    // A service wins over the environment, so one that was meant for elsewhere would lead there.
    let mut changes = vec![("PGSERVICE", None), (Parameter::HostAddr.variable(), None)];
    for (parameter, value) in parameters {
        let variable = parameter.variable();
        match (parameter, own(variable)) {
            (Parameter::Host, Some(wanted)) if caller_verifies && !wanted.eq_ignore_ascii_case(&value) => {
                return Err(another_host(&wanted, &value));
            }
            (Parameter::SslRootCert, Some(_)) => {}
            _ => changes.push((variable, Some(value))),
        }
    }
    Ok(changes)
}

fn another_host(wanted: &str, led: &str) -> String {
    format!(
        "PGHOST is \"{}\" and to be verified, but the daemon leads to \"{}\": unset PGHOST if that is the right name",
        wanted.escape_debug(),
        led.escape_debug()
    )
}

/// Never less than either of the two. A mode that we do not know may be any, so it wins.
fn stricter(own: Option<String>, theirs: Option<String>) -> Option<String> {
    let strictness =
        |mode: &String| SSL_MODES.iter().position(|known| known == mode).unwrap_or(SSL_MODES.len());
    own.into_iter().chain(theirs).max_by_key(strictness)
}

/// With `sslrootcert=system` libpq does nothing less than to verify in full; before version 16, which takes it for a
/// file, it would do so only if told.
fn own_ssl_mode(own: &impl Fn(&str) -> Option<String>) -> Option<String> {
    let full = own("PGSSLROOTCERT").filter(|roots| roots == "system").map(|_| "verify-full".to_owned());
    full.or_else(|| own("PGSSLMODE"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::snapshot::tests::troubled;

    /// What is changed in an environment, for a database that is to be verified.
    fn changed(own: &[(&str, &str)], mode: &str) -> Result<String, String> {
        let mut database = troubled().databases.swap_remove(0);
        database.host = "db".to_owned();
        database.sslmode = Some(mode.to_owned());
        database.sslrootcert = Some("/ca".to_owned());
        let standpoint = Standpoint { elsewhere: None, system_roots: None };
        let own = |variable: &str| {
            own.iter().find(|(name, _)| *name == variable).map(|(_, value)| (*value).to_owned())
        };
        let show = |(variable, value): &Change| format!("{variable}={}", value.as_deref().unwrap_or("-"));
        let changes = changes(&database, &standpoint, own)?;
        Ok(changes.iter().map(show).collect::<Vec<_>>().join(" "))
    }

    #[test]
    fn the_stricter_mode_wins_and_the_callers_roots_stay() {
        let start = "PGSERVICE=- PGHOSTADDR=- PGHOST=db PGHOSTADDR=127.0.0.1 PGPORT=15432";
        for (own, mode, expected) in [
            (&[][..], "prefer", " PGSSLMODE=prefer PGSSLROOTCERT=/ca"),
            (&[("PGSSLMODE", "disable")], "verify-full", " PGSSLMODE=verify-full PGSSLROOTCERT=/ca"),
            (&[("PGSSLMODE", "require")], "prefer", " PGSSLMODE=require PGSSLROOTCERT=/ca"),
            (&[("PGSSLMODE", "verify-full")], "verify-ca", " PGSSLMODE=verify-full PGSSLROOTCERT=/ca"),
            // Roots of a daemon that verifies nothing are not what proves it to a caller.
            (&[("PGSSLMODE", "verify-full")], "prefer", " PGSSLMODE=verify-full"),
            (&[("PGSSLROOTCERT", "/mine")], "verify-ca", " PGSSLMODE=verify-ca"),
            (&[("PGSSLROOTCERT", "system")], "prefer", " PGSSLMODE=verify-full"),
            (&[("PGSSLROOTCERT", "system"), ("PGSSLMODE", "require")], "verify-ca", " PGSSLMODE=verify-full"),
            (
                &[("PGHOST", "other"), ("PGHOSTADDR", "10.0.0.1")],
                "require",
                " PGSSLMODE=require PGSSLROOTCERT=/ca",
            ),
            (
                &[("PGHOST", "DB"), ("PGSSLMODE", "verify-ca")],
                "verify-ca",
                " PGSSLMODE=verify-ca PGSSLROOTCERT=/ca",
            ),
        ] {
            assert_eq!(changed(own, mode).unwrap(), format!("{start}{expected}"), "{own:?} {mode}");
        }
        assert!(
            changed(&[("PGSSLMODE", "new")], "verify-full")
                .unwrap_err()
                .contains("cannot use \"new\" as sslmode")
        );
    }

    #[test]
    fn a_caller_who_verifies_is_not_led_to_another_host() {
        for own in [("PGSSLMODE", "verify-ca"), ("PGSSLMODE", "verify-full"), ("PGSSLROOTCERT", "system")] {
            let text = changed(&[own, ("PGHOST", "other")], "verify-full").unwrap_err();
            assert!(text.contains("\"other\"") && text.contains("\"db\""), "{text}");
        }
    }
}
