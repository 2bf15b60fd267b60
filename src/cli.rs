//! The command line: reads it, runs the command, and says how it ended.

mod configuration;
mod keygen;
mod status;

use std::ffi::OsString;
use std::io::{self, IsTerminal, Write};
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, Parser, Subcommand, ValueEnum};
use tokio::runtime::{Builder, Runtime};

use crate::app;
use crate::failure::plain;
use crate::settings::{self, Problem, Settings, Surroundings};
use crate::telemetry;

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
  tunnelkeeper keygen BASTION    which key does the bastion need?
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
    /// The configuration cannot be used.
    Configuration(Vec<Problem>),
    /// Whoever reads what it prints has seen enough.
    Unread,
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
    let arguments = match Arguments::try_parse_from(arguments) {
        Ok(arguments) => arguments,
        Err(error) => {
            // Help asked for is no error; clap knows which is which.
            let _ = error.print();
            return ExitCode::from(u8::try_from(error.exit_code()).unwrap_or(2));
        }
    };
    // Neither stream is locked for longer than a line: the daemon's log goes to one of them.
    let (mut out, mut err) = (io::stdout(), io::stderr());
    let code = match dispatch(arguments, &mut out) {
        Ok(()) | Err(Stop::Unread) => DONE,
        Err(Stop::Failed(text)) => {
            let _ = writeln!(err, "tunnelkeeper: {text}");
            FAILED
        }
        Err(Stop::Configuration(problems)) => {
            for problem in &problems {
                let _ = writeln!(err, "tunnelkeeper: {problem}");
            }
            CONFIGURATION
        }
    };
    ExitCode::from(code)
}

fn dispatch(arguments: Arguments, out: &mut impl Write) -> Result<(), Stop> {
    let surroundings = surroundings(arguments.config);
    match arguments.command {
        Command::Run => run(&surroundings),
        Command::Config(ConfigCommand::Check) => configuration::check(&load(&surroundings)?, out),
        Command::Config(ConfigCommand::Show { format }) => {
            configuration::show(&load(&surroundings)?, format, out)
        }
        Command::Keygen { bastion, force } => keygen::keygen(&load(&surroundings)?, &bastion, force, out),
        Command::Status { names, daemon, format, watch } => {
            let variable = surroundings.variables.get("TUNNELKEEPER_URL").filter(|url| !url.is_empty());
            let url = daemon.url.or_else(|| variable.map(|url| url.to_string_lossy().into_owned()));
            if watch {
                let clear = format == Format::Text && io::stdout().is_terminal();
                return status::watch(url.as_deref(), &names, format, clear, out);
            }
            status::status(url.as_deref(), &names, format, out)
        }
    }
}

/// For a command that waits for one thing.
fn runtime() -> Result<Runtime, Stop> {
    let runtime = Builder::new_current_thread().enable_all().build();
    runtime.map_err(|error| Stop::Failed(format!("the system refuses to let us start: {}", plain(&error))))
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

fn run(surroundings: &Surroundings) -> Result<(), Stop> {
    let settings = load(surroundings)?;
    let telemetry = telemetry::start(&settings.plan.log).map_err(Stop::Failed)?;
    app::run(&settings, surroundings, &telemetry).map_err(|error| Stop::Failed(error.to_string()))
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Arguments::command().debug_assert();
        let help = Arguments::command().render_long_help().to_string();
        assert!(help.contains(settings::DEFAULT_FILE), "the help names another default file");
    }
}
