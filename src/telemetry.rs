//! Log lines: one event per state change, for people or as JSON. The only module that names tracing-subscriber.
//!
//! Records of the `log` crate are not taken up: russh writes what it signs and every packet there, and what it
//! reports of failures reaches us as errors.

use std::io::{self, IsTerminal};

use tracing_subscriber::EnvFilter;
use tracing_subscriber::layer::SubscriberExt;

use crate::settings::plan::{LogFormat, LogPlan};

/// Begins to log to standard error.
///
/// # Errors
/// A second beginning.
pub fn start(plan: &LogPlan) -> Result<(), String> {
    let filter = EnvFilter::builder().parse_lossy(plan.level.as_str());
    let terminal = io::stderr().is_terminal();
    let json = match plan.format {
        LogFormat::Json => true,
        LogFormat::Text => false,
        LogFormat::Auto => !terminal,
    };
    let base = tracing_subscriber::registry().with(filter);
    let layer = tracing_subscriber::fmt::layer().with_writer(io::stderr).with_target(false);
    let result = if json {
        tracing::subscriber::set_global_default(base.with(layer.json().flatten_event(true)))
    } else {
        tracing::subscriber::set_global_default(base.with(layer.with_ansi(terminal)))
    };
    result.map_err(|error| error.to_string())
}

#[cfg(test)]
mod tests {
    use tracing_subscriber::filter::LevelFilter;

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
            let filter = EnvFilter::builder().parse(filter.as_str()).unwrap();
            assert_eq!(filter.max_level_hint(), Some(most), "{text}");
        }
    }
}
