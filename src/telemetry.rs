//! Log lines: one event per state change, for people or as JSON. The only module that names tracing-subscriber.
//!
//! Records of the `log` crate are not taken up: russh writes what it signs and every packet there, and what it
//! reports of failures reaches us as errors.

use std::io::{self, IsTerminal};

use tracing_subscriber::EnvFilter;
use tracing_subscriber::layer::SubscriberExt;

use crate::settings::plan::{LogFormat, LogPlan};

/// Checks a filter.
///
/// # Errors
/// Says in one sentence what is wrong with it.
pub fn check_level(level: &str) -> Result<(), String> {
    match EnvFilter::builder().parse(level) {
        Ok(_) => Ok(()),
        Err(error) => Err(format!(
            "\"{}\" is not a log level ({error}): write error, warn, info, debug or trace",
            level.escape_debug()
        )),
    }
}

/// Begins to log to standard error. `override_level` is `$RUST_LOG`.
///
/// # Errors
/// A filter that cannot be read, or a second beginning.
pub fn start(plan: &LogPlan, override_level: Option<&str>) -> Result<(), String> {
    let level = override_level.unwrap_or(&plan.level);
    check_level(level)?;
    let filter = EnvFilter::builder().parse_lossy(level);
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
    use super::*;

    #[test]
    fn levels() {
        for good in ["info", "warn", "tunnelkeeper=debug", "info,hyper=off"] {
            assert_eq!(check_level(good), Ok(()), "{good}");
        }
        assert!(check_level("tunnelkeeper=loud").is_err());
    }
}
