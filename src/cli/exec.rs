//! `exec`: waits for a database, and becomes the command that works with it. No shell, no child: the process, its
//! signals and its exit code are the command's own.

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::io;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;

use super::asking::{find, standpoint};
use super::libpq::{self, Parameter, SSL_MODES};
use super::wait::wait_for;
use super::{Patience, Stop};
use crate::failure::plain;
use crate::files;

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
    let parameters = libpq::parameters(find(&status, name)?, &standpoint(&status)).map_err(cannot)?;
    let own = |variable: &str| {
        let value = variables.get(variable).filter(|value| !value.is_empty());
        value.map(|value| value.to_string_lossy().into_owned())
    };
    let changes = changes(&parameters, own);
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
/// never less than the caller or the daemon wants; and roots that the caller trusts stay.
fn changes(parameters: &[(Parameter, String)], own: impl Fn(&str) -> Option<String>) -> Vec<Change> {
    // A service wins over the environment, so one that was meant for elsewhere would lead there.
    let mut changes = vec![("PGSERVICE", None), (Parameter::HostAddr.variable(), None)];
    for (parameter, value) in parameters {
        let variable = parameter.variable();
        let value = match parameter {
            Parameter::SslMode => stricter(own_ssl_mode(&own), value),
            Parameter::SslRootCert if own(variable).is_some() => continue,
            _ => value.clone(),
        };
        changes.push((variable, Some(value)));
    }
    changes
}

/// Never less than either of the two. A mode that we do not know is for libpq to judge.
fn stricter(own: Option<String>, value: &str) -> String {
    let strictness =
        |mode: &str| SSL_MODES.iter().position(|known| *known == mode).unwrap_or(SSL_MODES.len());
    own.filter(|own| strictness(own) > strictness(value)).unwrap_or_else(|| value.to_owned())
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

    /// What is changed in an environment, for a database that is to be verified.
    fn changed(own: &[(&str, &str)], mode: &str) -> String {
        let parameters = [
            (Parameter::Host, "db".to_owned()),
            (Parameter::SslMode, mode.to_owned()),
            (Parameter::SslRootCert, "/ca".to_owned()),
        ];
        let own = |variable: &str| {
            own.iter().find(|(name, _)| *name == variable).map(|(_, value)| (*value).to_owned())
        };
        let show = |(variable, value): &Change| format!("{variable}={}", value.as_deref().unwrap_or("-"));
        changes(&parameters, own).iter().map(show).collect::<Vec<_>>().join(" ")
    }

    #[test]
    fn the_stricter_mode_wins_and_the_callers_roots_stay() {
        let start = "PGSERVICE=- PGHOSTADDR=- PGHOST=db";
        for (own, mode, expected) in [
            (&[][..], "prefer", " PGSSLMODE=prefer PGSSLROOTCERT=/ca"),
            (&[("PGSSLMODE", "disable")], "verify-full", " PGSSLMODE=verify-full PGSSLROOTCERT=/ca"),
            (&[("PGSSLMODE", "verify-full")], "prefer", " PGSSLMODE=verify-full PGSSLROOTCERT=/ca"),
            (&[("PGSSLMODE", "new")], "verify-full", " PGSSLMODE=new PGSSLROOTCERT=/ca"),
            (&[("PGSSLROOTCERT", "/mine")], "verify-ca", " PGSSLMODE=verify-ca"),
            (&[("PGSSLROOTCERT", "system")], "prefer", " PGSSLMODE=verify-full"),
            (&[("PGSSLROOTCERT", "system"), ("PGSSLMODE", "require")], "verify-ca", " PGSSLMODE=verify-full"),
            (
                &[("PGHOST", "other"), ("PGHOSTADDR", "10.0.0.1")],
                "require",
                " PGSSLMODE=require PGSSLROOTCERT=/ca",
            ),
        ] {
            assert_eq!(changed(own, mode), format!("{start}{expected}"), "{own:?} {mode}");
        }
    }
}
