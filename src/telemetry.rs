//! Log lines: one event per state change, for people or as JSON. The only module that names tracing-subscriber.
//!
//! Records of the `log` crate are not taken up: russh writes what it signs and every packet there, and what it
//! reports of failures reaches us as errors.

mod journal;

use std::io::{self, IsTerminal};

use tracing_subscriber::filter::Targets;
use tracing_subscriber::fmt::writer::BoxMakeWriter;
use tracing_subscriber::layer::{Layered, SubscriberExt};
use tracing_subscriber::reload::{self, Handle};
use tracing_subscriber::{Layer, Registry};

use crate::settings::plan::{LogFormat, LogPlan};
use crate::systemd;
use journal::Journal;

type Filtered = Layered<reload::Layer<Targets, Registry>, Registry>;
type Lines = Box<dyn Layer<Filtered> + Send + Sync>;

/// What is logged, and how, for as long as the process lives.
pub struct Telemetry {
    filter: Handle<Targets, Registry>,
    lines: Handle<Lines, Filtered>,
}

/// Begins to log to standard error.
///
/// # Errors
/// A second beginning.
pub fn start(plan: &LogPlan) -> Result<Telemetry, String> {
    let (filter, filter_handle) = reload::Layer::new(filter(plan));
    let (lines, lines_handle) = reload::Layer::new(lines(plan));
    let subscriber = tracing_subscriber::registry().with(filter).with(lines);
    tracing::subscriber::set_global_default(subscriber).map_err(|error| error.to_string())?;
    Ok(Telemetry { filter: filter_handle, lines: lines_handle })
}

impl Telemetry {
    /// Goes on as another plan says.
    pub fn change(&self, plan: &LogPlan) {
        // What is logged to is there for as long as the process lives.
        let _ = self.filter.reload(filter(plan));
        let _ = self.lines.reload(lines(plan));
    }
}

fn filter(plan: &LogPlan) -> Targets {
    // The configuration takes nothing else.
    plan.level.as_str().parse().unwrap_or_default()
}

fn lines(plan: &LogPlan) -> Lines {
    let terminal = io::stderr().is_terminal();
    let json = match plan.format {
        LogFormat::Json => true,
        LogFormat::Text => false,
        LogFormat::Auto => !terminal,
    };
    let writer =
        if systemd::keeps_log() { BoxMakeWriter::new(Journal) } else { BoxMakeWriter::new(io::stderr) };
    let layer = tracing_subscriber::fmt::layer().with_writer(writer).with_target(false);
    if json { layer.json().flatten_event(true).boxed() } else { layer.with_ansi(terminal).boxed() }
}

#[cfg(test)]
mod tests {
    use tracing_subscriber::filter::LevelFilter;
    use tracing_subscriber::layer::Filter;

    use super::*;
    use crate::settings::LogFilter;

    #[test]
    fn filters_mean_here_what_the_configuration_takes_them_for() {
        for (text, most) in [
            ("off", LevelFilter::OFF),
            ("WARN", LevelFilter::WARN),
            ("error, tunnelkeeper = debug", LevelFilter::DEBUG),
            ("info,tunnelkeeper::ssh=off", LevelFilter::INFO),
        ] {
            let filter = LogFilter::parse(text).unwrap();
            let filter: Targets = filter.as_str().parse().unwrap();
            assert_eq!(Filter::<Registry>::max_level_hint(&filter), Some(most), "{text}");
        }
    }
}
