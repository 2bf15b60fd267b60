//! Whether every surface says what was wrong, in the same words: status, metrics, log and page.

use std::collections::BTreeMap;

use serde_json::Value;

use super::Why;
use super::stage::Stage;
use crate::support::eventually;

/// What was said before the fault.
pub struct Said {
    metrics: BTreeMap<String, f64>,
    events: BTreeMap<&'static str, usize>,
}

const LOST: &str = "session lost";
const NOT_REACHED: &str = "bastion not reached";
const NOT_CONNECTED: &str = "clients cannot be connected to the database through this bastion";
const CUT: &str = "client cut";
const DOWN: &str = "database down";

impl Said {
    pub fn by(stage: &Stage) -> Self {
        let events = [LOST, NOT_REACHED, NOT_CONNECTED, CUT, DOWN];
        let events = events.map(|message| (message, stage.daemon.events(message).len()));
        Self { metrics: stage.daemon.metrics(), events: events.into() }
    }

    fn risen(&self, now: &BTreeMap<String, f64>, series: &str) -> f64 {
        now.get(series).copied().unwrap_or_default() - self.metrics.get(series).copied().unwrap_or_default()
    }

    /// Events since then.
    fn events(&self, stage: &Stage, message: &'static str) -> Vec<Value> {
        stage.daemon.events(message).into_iter().skip(self.events[message]).collect()
    }

    /// Sessions of `prod` lost since then, by their reason.
    pub fn losses(&self, stage: &Stage) -> Vec<(String, f64)> {
        let now = stage.daemon.metrics();
        let of_prod = now.keys().filter_map(|series| {
            let reason = series.strip_prefix("session_losses_total{bastion=\"prod\",reason=\"")?;
            Some((reason.trim_end_matches("\"}").to_owned(), self.risen(&now, series)))
        });
        of_prod.filter(|(_, risen)| *risen > 0.0).collect()
    }

    /// One of these is what became of the session that was there, and of as many clients on it. Returns which.
    pub fn wait_for_loss(&self, stage: &Stage, reasons: &[&'static str], clients: usize) -> Why {
        let lost = eventually(&format!("the session is lost by {reasons:?}"), || self.losses(stage).pop());
        let reason = reasons.iter().find(|reason| **reason == lost.0);
        let Some(reason) = reason else { panic!("the session is lost by {lost:?}, not {reasons:?}") };
        let is_it = |event: &Value| event["reason"] == *reason;
        eventually("the log tells of the loss", || {
            self.events(stage, LOST)
                .into_iter()
                .find(|event| event["bastion"] == "prod" && event["phase"] == "session" && is_it(event))
        });
        eventually("the log and the metric tell of every client that was cut", || {
            let events = self.events(stage, CUT).iter().filter(|event| is_it(event)).count();
            let series = format!("clients_cut_total{{database=\"echo\",reason=\"{reason}\"}}");
            let counted = self.risen(&stage.daemon.metrics(), &series);
            (events == clients && counted == clients as f64).then_some(())
        });
        Why("session", reason)
    }

    /// One of these is said everywhere as the reason why there is no session, or no way to the database. Returns which.
    pub fn wait_for_failure(&self, stage: &Stage, reasons: &[Why]) -> Why {
        let why = *eventually(&format!("it fails by {reasons:?}"), || {
            let now = stage.daemon.metrics();
            let is_said =
                |why: &&Why| self.risen(&now, &series(**why)) >= 1.0 && last_failure(stage, **why).is_some();
            reasons.iter().find(is_said)
        });
        let Why(phase, reason) = why;
        let message = match subject(phase) {
            Subject::Bastion => NOT_REACHED,
            Subject::Clients => NOT_CONNECTED,
            Subject::Probe => DOWN,
        };
        eventually(&format!("the log tells of {why:?}"), || {
            let events = self.events(stage, message);
            let found =
                events.into_iter().find(|event| event["phase"] == phase && event["reason"] == reason)?;
            let explained = |key: &str| found[key].as_str().is_some_and(|text| !text.is_empty());
            assert!(explained("detail") && explained("hint"), "{found}");
            Some(())
        });
        self.wait_for_page(stage, why);
        why
    }

    /// The page shows it, be it still so or over.
    pub fn wait_for_page(&self, stage: &Stage, Why(phase, reason): Why) {
        eventually(&format!("the page shows {phase} {reason}"), || {
            stage.daemon.get("/").1.contains(&format!("{phase} {reason}: ")).then_some(())
        });
    }
}

/// What a phase is a failure of.
enum Subject {
    Bastion,
    Clients,
    Probe,
}

fn subject(phase: &str) -> Subject {
    match phase {
        "channel" => Subject::Clients,
        "db_tls" | "db_login" | "db_query" => Subject::Probe,
        _ => Subject::Bastion,
    }
}

/// The metric that counts it.
fn series(Why(phase, reason): Why) -> String {
    match subject(phase) {
        Subject::Bastion => {
            format!("session_failures_total{{bastion=\"prod\",phase=\"{phase}\",reason=\"{reason}\"}}")
        }
        Subject::Clients => {
            format!("channel_failures_total{{bastion=\"prod\",database=\"echo\",reason=\"{reason}\"}}")
        }
        Subject::Probe => {
            format!("probes_total{{database=\"analytics\",phase=\"{phase}\",reason=\"{reason}\"}}")
        }
    }
}

/// The status shows it as the last failure.
pub fn last_failure(stage: &Stage, Why(phase, reason): Why) -> Option<Value> {
    let failure = match subject(phase) {
        Subject::Bastion => stage.daemon.bastion("prod")["last_failure"].clone(),
        Subject::Clients => stage.daemon.database("echo")["last_failure"].clone(),
        Subject::Probe => stage.daemon.database("analytics")["probe"]["last_failure"].clone(),
    };
    (failure["phase"] == phase && failure["reason"] == reason).then_some(failure)
}
