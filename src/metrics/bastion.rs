//! The series of a bastion.

use std::sync::{Arc, OnceLock};

use prometheus::{CounterVec, Error, GaugeVec, HistogramVec};

use super::ledger::{Had, Ledger, Series};
use super::tally::{Tallies, Tally};
use super::{Registrar, SHORT, Timings, by_phase, by_reason, set_if_known};
use crate::failure::{Cause, Phase};
use crate::ids::Name;
use crate::snapshot::Bastion;

pub(super) struct Families {
    series: Series,
    up: GaugeVec,
    up_since: GaugeVec,
    uptime: CounterVec,
    sessions: GaugeVec,
    establish: HistogramVec,
    failures: Tallies,
    losses: Tallies,
    stalled: CounterVec,
    round_trip: HistogramVec,
    unanswered: GaugeVec,
    certificate_expiry: GaugeVec,
    session_cut: GaugeVec,
}

impl Families {
    pub(super) fn new(registrar: &Registrar<'_>) -> Result<Self, Error> {
        let bastion = &["bastion"][..];
        Ok(Self {
            series: registrar.series.clone(),
            up: registrar.gauge(
                "tunnel_up",
                "Whether a session to the bastion is established and not suspect.",
                bastion,
            )?,
            up_since: registrar.gauge(
                "tunnel_up_since_timestamp_seconds",
                "Since when the tunnel is up; absent while it is down.",
                bastion,
            )?,
            uptime: registrar.seconds_counter(
                "tunnel_uptime_seconds_total",
                "How long the tunnel was up; its rate is the availability.",
                bastion,
            )?,
            sessions: registrar.gauge(
                "tunnel_sessions",
                "Established sessions, suspect ones included.",
                bastion,
            )?,
            establish: registrar.histogram(
                "session_establish_seconds",
                "From name look-up to the first answered ping.",
                bastion,
                &SHORT,
            )?,
            failures: registrar.tallies(
                "session_failures_total",
                "Attempts that did not establish a session.",
                &["bastion", "phase", "reason"],
            )?,
            losses: registrar.tallies(
                "session_losses_total",
                "Established sessions lost.",
                &["bastion", "reason"],
            )?,
            stalled: registrar.seconds_counter(
                "session_stalled_seconds_total",
                "How long sessions took nothing from the bastion because clients did not read.",
                bastion,
            )?,
            round_trip: registrar.histogram(
                "keepalive_rtt_seconds",
                "Round trips of answered pings.",
                bastion,
                &SHORT,
            )?,
            unanswered: registrar.gauge(
                "keepalive_unanswered",
                "Pings sent since the last sign of life, of the worst session; absent without one.",
                bastion,
            )?,
            certificate_expiry: registrar.gauge(
                "ssh_certificate_expiry_timestamp_seconds",
                "When the user certificate for the bastion expires; absent without one that does.",
                bastion,
            )?,
            session_cut: registrar.gauge(
                "session_cut_seconds",
                "How long idle, or how old, sessions are when they are cut again and again; absent unless they are.",
                &["bastion", "after"],
            )?,
        })
    }

    pub(super) fn observe(&self, bastions: &[Bastion], series: &mut Had) {
        for bastion in bastions {
            let labels = &[bastion.name.as_str()][..];
            // It may have gone since the snapshot was taken, and nobody would remove what is set now.
            if !series.has(&self.up, labels) {
                continue;
            }
            let established = bastion.sessions.iter().filter(|session| session.state != "connecting");
            let worst = established.clone().map(|session| session.keepalives_unanswered).max();
            self.up.with_label_values(labels).set(f64::from(u8::from(bastion.up)));
            set_if_known(&self.up_since, labels, bastion.up_since.map(super::Stamp::seconds));
            series.raise(&self.uptime, labels, bastion.uptime_seconds);
            self.sessions.with_label_values(labels).set(established.count() as f64);
            series.raise(&self.stalled, labels, bastion.stalled_seconds);
            set_if_known(&self.unanswered, labels, worst.map(f64::from));
            let expires = bastion.certificate.as_ref().map(|certificate| certificate.expires.seconds());
            set_if_known(&self.certificate_expiry, labels, expires);
            for after in CUT_AFTER {
                let cut = bastion.session_cut.as_ref().filter(|cut| cut.after == after);
                let seconds = cut.map(|cut| cut.seconds as f64);
                set_if_known(&self.session_cut, &[&bastion.name, after], seconds);
            }
        }
    }
}

/// What the time is counted from after which sessions are cut.
const CUT_AFTER: [&str; 3] = ["idle", "age", "client_alive"];

/// The handles of one bastion.
pub struct BastionMetrics {
    name: Name,
    family: Tallies,
    failures: Arc<Tally>,
    /// Of the jump before it, where it has one.
    jump_failures: OnceLock<Arc<Tally>>,
    losses: Arc<Tally>,
    /// From name look-up to the first answered ping.
    pub establish: Timings,
    /// Round trips of answered pings.
    pub round_trip: Timings,
    _ledger: Ledger,
}

/// The phases in which an attempt can fail.
const ATTEMPT: [Phase; 7] =
    [Phase::Dns, Phase::Tcp, Phase::Banner, Phase::Kex, Phase::HostKey, Phase::Auth, Phase::Session];

/// The causes of these phases.
pub(super) fn of_phases(phases: &[Phase]) -> impl Iterator<Item = Cause> {
    Cause::ALL.iter().copied().filter(move |cause| phases.contains(&cause.phase()))
}

/// The causes for which an established session can be lost.
pub(super) fn session_losses() -> impl Iterator<Item = Cause> {
    let all = Cause::ALL.iter().copied();
    all.filter(|cause| cause.phase() == Phase::Session && *cause != Cause::SessionNotEstablished)
}

impl BastionMetrics {
    pub(super) fn new(families: &Families, bastion: &Name) -> Self {
        let name = bastion.as_str();
        let mut ledger = Ledger::new(&families.series);
        ledger
            .observed(&[&families.up, &families.up_since, &families.sessions, &families.unanswered], &[name]);
        ledger.observed(&[&families.certificate_expiry], &[name]);
        for after in CUT_AFTER {
            ledger.observed(&[&families.session_cut], &[name, after]);
        }
        ledger.raised(&[&families.uptime, &families.stalled], &[name]);
        Self {
            name: bastion.clone(),
            family: families.failures.clone(),
            failures: families.failures.of(&[name], of_phases(&ATTEMPT).map(by_phase)),
            jump_failures: OnceLock::new(),
            losses: families.losses.of(&[name], session_losses().map(by_reason)),
            establish: ledger.timings(&families.establish, &[name]),
            round_trip: ledger.timings(&families.round_trip, &[name]),
            _ledger: ledger,
        }
    }

    /// It is reached through another bastion, which may not connect to it.
    pub fn expect_jump(&self) {
        let cells = of_phases(&[Phase::Channel]).map(by_phase);
        self.jump_failures.get_or_init(|| self.family.of(&[self.name.as_str()], cells));
    }

    /// An attempt did not establish a session.
    pub fn failed(&self, cause: Cause) {
        for tally in [Some(&self.failures), self.jump_failures.get()].into_iter().flatten() {
            tally.count(by_phase(cause));
        }
    }

    /// An established session was lost.
    pub fn lost(&self, cause: Cause) {
        self.losses.count(by_reason(cause));
    }
}
