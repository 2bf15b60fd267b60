//! The command line: reads it, runs the command, and says how it ended.

mod asking;
mod configuration;
mod doctor;
mod exec;
mod keygen;
mod libpq;
mod packaging;
mod reach;
mod service_file;
mod status;
mod trust;
mod wait;

use std::ffi::OsString;
use std::io::{self, IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use clap::{Args, CommandFactory, Parser, Subcommand, ValueEnum};
use tokio::runtime::Builder;

use crate::failure::plain;
use crate::host_keys::Fingerprint;
use crate::settings::plan::BastionPlan;
use crate::settings::{self, Problem, Settings, Surroundings};
use crate::{app, client, telemetry};

/// The command did what it was asked.
const DONE: u8 = 0;
/// It failed.
const FAILED: u8 = 1;
/// The configuration cannot be used: sysexits.h, `EX_CONFIG`.
const CONFIGURATION: u8 = 78;

const ABOUT: &str = "Keeps SSH tunnels to database bastions open and forwards a local port to each database.

A client that connects while a tunnel is down is held until it is back. Each database is probed through its \
tunnel, every failure is named with its stage and a hint, and Prometheus metrics tell of all of it.";

const AFTER: &str = "Begin with a configuration file (the README shows the smallest one that works), then:

  tunnelkeeper config check      what is wrong with the configuration?
  tunnelkeeper trust BASTION     is it the bastion?
  tunnelkeeper keygen BASTION    which key does the bastion need?
  tunnelkeeper doctor            does it work, and if not, what is to be done?
  tunnelkeeper run               the daemon, in the foreground
  tunnelkeeper status            what is up, what is not, and why?";

#[derive(Parser)]
#[command(name = "tunnelkeeper", version, about = ABOUT, after_help = AFTER)]
struct Arguments {
    /// The configuration file [default: $TUNNELKEEPER_CONFIG, else /etc/tunnelkeeper/tunnelkeeper.toml]
    ///
    /// Files `conf.d/*.toml` beside it and environment variables such as TUNNELKEEPER__HTTP__LISTEN are laid over
    /// it, in this order.
    #[arg(long, global = true, value_name = "FILE")]
    config: Option<PathBuf>,
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Run the daemon in the foreground
    ///
    /// Logs go to standard error. SIGTERM or SIGINT lets clients finish for `daemon.drain_timeout` and then ends the
    /// daemon; a second one ends it at once. SIGHUP reads the configuration anew, applies what is different if all
    /// of it is good, and has bastions tried at once that wait for their next attempt. Exit
    /// codes: 0 stopped as asked, 1 could not start, 78 configuration.
    Run,
    /// Check or show the configuration
    #[command(subcommand)]
    Config(ConfigCommand),
    /// Make a key for a bastion, and print what the bastion needs to accept it
    ///
    /// The key goes to the state directory (daemon.state_dir). A key that is there already is left alone, and
    /// printed again.
    Keygen {
        /// The bastion's name in the configuration
        bastion: String,
        /// Replace a key that is there already
        #[arg(long)]
        force: bool,
        /// Make the key that takes the place of the present one once the bastion accepts it
        #[arg(long)]
        next: bool,
    },
    /// Fetch the host keys of a bastion, show them, and store those that you confirm
    ///
    /// They go to known_hosts in the state directory (daemon.state_dir). On a terminal it asks, as ssh does; elsewhere
    /// only keys with a fingerprint that is given are stored. A key that has changed is never replaced.
    Trust {
        /// The bastion's name in the configuration
        bastion: String,
        /// Store the key with this fingerprint, and ask nothing; may be repeated
        #[arg(long = "fingerprint", value_name = "SHA256:...", value_parser = Fingerprint::parse)]
        fingerprints: Vec<Fingerprint>,
    },
    /// Try every stage of every way, and say what is to be mended
    ///
    /// From the key files over name, connection, host key and login to the forward, TLS, and the login and query of the
    /// probe: each stage with its time, through every bastion of a database and every jump before it. No daemon is needed,
    /// and one that runs is not disturbed. Nothing is stored, and a database is asked no more than its `probe.level`
    /// allows; where `probe.when` is "active" one that rests is woken. Run it as the daemon's user to see what the daemon
    /// sees. Exit codes: 0 all is well, 1 something is not, 78 configuration.
    Doctor {
        /// Bastions, with the databases behind them, and databases, with their bastions [default: all]
        names: Vec<String>,
        /// How to print it
        #[arg(long, value_enum, default_value_t = Format::Text)]
        format: Format,
    },
    /// Ask the running daemon what is up, what is not, and why
    Status {
        /// Bastions and databases to show [default: all]
        names: Vec<String>,
        #[command(flatten)]
        daemon: DaemonAddress,
        /// How to print it
        #[arg(long, value_enum, default_value_t = Format::Text)]
        format: Format,
        /// Show it again every two seconds, until interrupted
        #[arg(long)]
        watch: bool,
    },
    /// Wait until databases can be reached
    ///
    /// A database can be reached when the daemon takes clients, a tunnel for it is up and its probe, if it has one, has
    /// found it up: as /readyz/NAME says, but for a first probe that is still under way, which is waited for. So is a
    /// daemon that does not run yet. What is waited for is said on standard error after two seconds and whenever it
    /// changes. When time is up, it says for each database what is missing and why, and the exit code is 1.
    Wait {
        /// The databases [default: all]
        names: Vec<String>,
        #[command(flatten)]
        patience: Patience,
        /// How long they must have been reachable without a break, by what the daemon has seen
        #[arg(long, value_name = "DURATION", default_value = "0s", value_parser = duration)]
        stable: Duration,
        #[command(flatten)]
        daemon: DaemonAddress,
        /// How to print it
        #[arg(long, value_enum, default_value_t = Format::Text)]
        format: Format,
    },
    /// Wait until a database can be reached, and become a command that connects to it
    ///
    /// The command finds the way in libpq's variables: PGHOST is the database's real name, so that TLS can verify it,
    /// PGHOSTADDR and PGPORT are where the daemon listens (for a Unix socket PGHOST is its directory), and
    /// PGDATABASE, PGSSLMODE and PGSSLROOTCERT are as configured for the probe. User and password are the command's
    /// own. Of what is set already, PGSERVICE is removed, since it would lead elsewhere; of two PGSSLMODE the stricter
    /// wins, also where it rules out a Unix socket; a PGSSLROOTCERT stays; and a PGHOST that is to be verified has to
    /// be the database's. No shell is involved: signals and the exit code are the command's.
    ///
    /// Exit codes of our own: 125 it did not come to the command, 126 the command cannot be run, 127 it is not there.
    Exec {
        /// The database's name in the configuration
        database: String,
        #[command(flatten)]
        patience: Patience,
        #[command(flatten)]
        daemon: DaemonAddress,
        /// The command and its arguments
        #[arg(last = true, required = true, value_name = "CMD")]
        command: Vec<OsString>,
    },
    /// Print a connection service file for libpq with a section for each database
    ///
    /// With the same fields as `exec`, for PGSERVICEFILE or ~/.pg_service.conf: `psql service=NAME` then leads to the
    /// database NAME. A database that libpq cannot be led to has a comment that says why.
    ServiceFile {
        #[command(flatten)]
        daemon: DaemonAddress,
    },
    /// Print a script that completes the command line in a shell
    Completions {
        /// The shell
        shell: packaging::Shell,
    },
    /// Print the manual page
    Man,
}

#[derive(Subcommand)]
enum ConfigCommand {
    /// Read the whole configuration and report every problem
    Check,
    /// Print every key with its value and where the value comes from, secrets masked
    Show {
        /// How to print it
        #[arg(long, value_enum, default_value_t = Format::Text)]
        format: Format,
    },
}

#[derive(Args)]
struct DaemonAddress {
    /// Where the daemon answers [default: $TUNNELKEEPER_URL, else http://127.0.0.1:9822]
    #[arg(long, value_name = "URL")]
    url: Option<String>,
}

#[derive(Clone, Copy, Args)]
struct Patience {
    /// How long to wait; 0s looks once
    #[arg(long, value_name = "DURATION", default_value = "60s", value_parser = duration)]
    timeout: Duration,
}

/// A duration as the configuration has it. A year is as good as for ever, and can be added to any moment.
fn duration(text: &str) -> Result<Duration, String> {
    match humantime::parse_duration(text) {
        Ok(duration) => Ok(duration.min(Duration::from_secs(366 * 24 * 3600))),
        Err(_) => Err("write for example \"30s\" or \"5m\"".to_owned()),
    }
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Format {
    /// For people
    Text,
    /// For programs
    Json,
}

/// What a command came to, other than done.
enum Stop {
    /// It failed, for a reason that fits in a sentence.
    Failed(String),
    /// Something is not reachable; a line each.
    Unreached(Vec<String>),
    /// `exec` did not become its command: the exit code that says why, and what there is to say.
    NotRun(u8, Vec<String>),
    /// The configuration cannot be used.
    Configuration(Vec<Problem>),
    /// It failed, and what there is to say has been said.
    Told,
    /// Whoever reads what it prints has seen enough.
    Unread,
}

impl Stop {
    fn code(&self) -> u8 {
        match self {
            Self::Unread => DONE,
            Self::Failed(_) | Self::Unreached(_) | Self::Told => FAILED,
            Self::NotRun(code, _) => *code,
            Self::Configuration(_) => CONFIGURATION,
        }
    }

    /// What there is to say, for standard error.
    fn lines(self) -> Vec<String> {
        match self {
            Self::Unread | Self::Told => Vec::new(),
            Self::Failed(text) => vec![text],
            Self::Unreached(lines) | Self::NotRun(_, lines) => lines,
            Self::Configuration(problems) => problems.iter().map(ToString::to_string).collect(),
        }
    }
}

/// Of what is printed.
impl From<io::Error> for Stop {
    fn from(error: io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::BrokenPipe => Self::Unread,
            _ => Self::Failed(format!("the output cannot be written: {}", plain(&error))),
        }
    }
}

/// Runs the command line `arguments`, the program's name first.
pub fn main(arguments: impl IntoIterator<Item = OsString>) -> ExitCode {
    let arguments: Vec<OsString> = arguments.into_iter().collect();
    let arguments = match Arguments::try_parse_from(&arguments) {
        Ok(arguments) => arguments,
        Err(error) => {
            // Help asked for is no error; clap knows which is which.
            let _ = error.print();
            return ExitCode::from(usage_code(&error, &arguments));
        }
    };
    // Neither stream is locked for longer than a line: the daemon's log goes to one of them.
    let (mut out, mut err) = (io::stdout(), io::stderr());
    let Err(stop) = dispatch(arguments, &mut out) else { return ExitCode::from(DONE) };
    let code = stop.code();
    for line in stop.lines() {
        let _ = writeln!(err, "tunnelkeeper: {line}");
    }
    ExitCode::from(code)
}

/// The code of a wrong usage, which must not be taken for one of the command that `exec` was to become.
fn usage_code(error: &clap::Error, arguments: &[OsString]) -> u8 {
    let code = u8::try_from(error.exit_code()).unwrap_or(FAILED);
    let lenient = Arguments::command().ignore_errors(true).try_get_matches_from(arguments);
    let is_exec = lenient.is_ok_and(|matches| matches.subcommand_name() == Some("exec"));
    if code != DONE && is_exec { exec::OURS } else { code }
}

fn dispatch(arguments: Arguments, out: &mut impl Write) -> Result<(), Stop> {
    let surroundings = surroundings(arguments.config);
    let url = |daemon: DaemonAddress| daemon_url(daemon, &surroundings);
    match arguments.command {
        Command::Run => run(&surroundings),
        Command::Config(ConfigCommand::Check) => configuration::check(&load(&surroundings)?, out),
        Command::Config(ConfigCommand::Show { format }) => {
            configuration::show(&load(&surroundings)?, format, out)
        }
        Command::Keygen { bastion, force, next } => {
            let settings = load(&surroundings)?;
            let make = if next { keygen::next } else { keygen::keygen };
            make(&settings, &bastion, force, out)
        }
        Command::Trust { bastion, fingerprints } => {
            let settings = load(&surroundings)?;
            // The question goes to stderr: whoever cannot read it cannot answer.
            let is_there = io::stdin().is_terminal() && io::stderr().is_terminal();
            let mut terminal = is_there.then(|| io::stdin().lock());
            let home = surroundings.variables.get("HOME").map(Path::new);
            trust::trust(&settings, &bastion, &fingerprints, terminal.as_mut(), home, out)
        }
        Command::Doctor { names, format } => doctor::doctor(&surroundings, &names, format, out),
        Command::Status { names, daemon, format, watch: true } => {
            let clear = format == Format::Text && io::stdout().is_terminal();
            status::watch(&url(daemon), &names, format, clear, out)
        }
        Command::Status { names, daemon, format, watch: false } => {
            status::status(&url(daemon), &names, format, out)
        }
        Command::Wait { names, patience, stable, daemon, format } => {
            wait::wait(&url(daemon), &names, patience, stable, format, out)
        }
        Command::Exec { database, patience, daemon, command } => {
            Err(exec::exec(&url(daemon), &database, patience, &command, &surroundings.variables))
        }
        Command::ServiceFile { daemon } => service_file::service_file(&url(daemon), out),
        Command::Completions { shell } => packaging::completions(shell, Arguments::command(), out),
        Command::Man => packaging::man(Arguments::command(), out),
    }
}

/// Where the daemon is asked.
fn daemon_url(daemon: DaemonAddress, surroundings: &Surroundings) -> String {
    let variable = surroundings.variables.get("TUNNELKEEPER_URL").filter(|url| !url.is_empty());
    let url = daemon.url.or_else(|| variable.map(|url| url.to_string_lossy().into_owned()));
    url.unwrap_or_else(|| client::DEFAULT_URL.to_owned()).trim_end_matches('/').to_owned()
}

/// Waits for the one thing that a command waits for. What hangs then, such as the look-up of a name, is left behind.
fn block_on<F: Future>(thing: F) -> Result<F::Output, Stop> {
    let runtime = Builder::new_current_thread().enable_all().build().map_err(|error| refused(&error))?;
    let output = runtime.block_on(thing);
    runtime.shutdown_background();
    Ok(output)
}

fn refused(error: &io::Error) -> Stop {
    Stop::Failed(format!("the system refuses to let us start: {}", plain(error)))
}

fn surroundings(config_option: Option<PathBuf>) -> Surroundings {
    let named = |(name, value): (OsString, OsString)| Some((name.into_string().ok()?, value));
    Surroundings {
        variables: std::env::vars_os().filter_map(named).collect(),
        uid: nix::unistd::geteuid().as_raw(),
        config_option,
        state_dir_in_use: None,
    }
}

fn load(surroundings: &Surroundings) -> Result<Settings, Stop> {
    settings::load(surroundings).map_err(Stop::Configuration)
}

fn bastion<'a>(settings: &'a Settings, name: &str) -> Result<&'a BastionPlan, Stop> {
    let bastions = &settings.plan.bastions;
    bastions.iter().find(|bastion| bastion.name.as_str() == name).map(AsRef::as_ref).ok_or_else(|| {
        let known: Vec<&str> = bastions.iter().map(|bastion| bastion.name.as_str()).collect();
        let name = name.escape_debug();
        Stop::Failed(format!("there is no bastion \"{name}\": known are {}", known.join(", ")))
    })
}

fn run(surroundings: &Surroundings) -> Result<(), Stop> {
    let settings = load(surroundings)?;
    let telemetry = telemetry::start(&settings.plan.log).map_err(Stop::Failed)?;
    app::run(&settings, surroundings, &telemetry).map_err(|error| Stop::Failed(error.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Arguments::command().debug_assert();
        let help = Arguments::command().render_long_help().to_string();
        assert!(help.contains(settings::DEFAULT_FILE), "the help names another default file");
    }
}
