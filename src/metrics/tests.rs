use std::collections::BTreeSet;
use std::time::{Duration, SystemTime};

use super::*;
use crate::failure::Cause;
use crate::pgwire::ErrorClass;
use crate::snapshot::{Bastion, Configuration, Cut, Daemon, Database, Probe, Session};

fn name(text: &str) -> Name {
    Name::parse(text).unwrap()
}

fn snapshot(up: bool) -> Snapshot {
    let now = Stamp(SystemTime::UNIX_EPOCH + Duration::from_secs(1_700_000_000));
    Snapshot {
        at: now,
        daemon: Daemon {
            version: "1".into(),
            pid: 1,
            started: now,
            ready: true,
            not_ready_because: vec![],
            configuration: Configuration::default(),
        },
        bastions: vec![Bastion {
            name: "prod".into(),
            host: "b".into(),
            port: 22,
            user: "u".into(),
            jump: None,
            up,
            up_since: up.then_some(now),
            down_since: None,
            uptime_seconds: 12.5,
            stalled_seconds: 0.25,
            refusing: false,
            next_attempt: None,
            last_failure: None,
            public_key: None,
            next_key: None,
            certificate: None,
            session_cut: None,
            sessions: vec![Session {
                id: 1,
                state: "established".into(),
                since: now,
                address: None,
                clients: 1,
                round_trip_seconds: None,
                keepalives_unanswered: 2,
                gate_open: true,
                backlog_bytes: 0,
            }],
        }],
        databases: vec![Database {
            name: "analytics".into(),
            kind: "postgres".into(),
            host: "d".into(),
            port: 5432,
            bastions: vec!["prod".into()],
            listen: vec![],
            up,
            accepting: true,
            uptime_seconds: 12.5,
            clients_active: 3,
            clients_held: 2,
            last_failure: None,
            probe: Probe {
                level: "query".into(),
                verdict: if up { "up" } else { "unknown" }.into(),
                since: None,
                latency_seconds: None,
                last_success: None,
                last_failure: None,
                certificate_expires: up
                    .then_some(Stamp(std::time::UNIX_EPOCH + Duration::from_secs(4_000_000_000))),
                credential_expires: None,
            },
            clients: vec![],
            database: None,
            sslmode: None,
            sslrootcert: None,
        }],
    }
}

/// The series of the daemon itself, without those of the process.
fn series(text: &str) -> BTreeSet<String> {
    let lines = text.lines().filter(|line| line.starts_with("tunnelkeeper_"));
    lines.filter_map(|line| line.rsplit_once(' ')).map(|(series, _)| series.to_owned()).collect()
}

#[test]
fn gauges_follow_the_snapshot_and_counters_of_seconds_only_rise() {
    let metrics = Metrics::new().unwrap();
    let (_bastion, _database) =
        (metrics.bastion(&name("prod")), metrics.database(&name("analytics"), &[name("prod")]));
    let text = metrics.exposition(&snapshot(true)).unwrap();
    for line in [
        "tunnelkeeper_tunnel_up{bastion=\"prod\"} 1",
        "tunnelkeeper_tunnel_up_since_timestamp_seconds{bastion=\"prod\"} 1700000000",
        "tunnelkeeper_tunnel_uptime_seconds_total{bastion=\"prod\"} 12.5",
        "tunnelkeeper_tunnel_sessions{bastion=\"prod\"} 1",
        "tunnelkeeper_keepalive_unanswered{bastion=\"prod\"} 2",
        "tunnelkeeper_session_stalled_seconds_total{bastion=\"prod\"} 0.25",
        "tunnelkeeper_database_up{database=\"analytics\"} 1",
        "tunnelkeeper_database_bastion_info{bastion=\"prod\",database=\"analytics\",preference=\"0\"} 1",
        "tunnelkeeper_clients_active{database=\"analytics\"} 3",
        "tunnelkeeper_clients_held{database=\"analytics\"} 2",
        "tunnelkeeper_probe_up{database=\"analytics\"} 1",
    ] {
        assert!(text.contains(&format!("{line}\n")), "{line}\nnot in\n{text}");
    }
    let text = metrics.exposition(&snapshot(false)).unwrap();
    assert!(text.contains("tunnelkeeper_tunnel_up{bastion=\"prod\"} 0\n"));
    assert!(text.contains("tunnelkeeper_tunnel_uptime_seconds_total{bastion=\"prod\"} 12.5\n"));
    for absent in ["tunnel_up_since_timestamp_seconds{", "probe_up{"] {
        assert!(!text.contains(absent), "{absent} is there though it is not known");
    }
}

#[test]
fn counters_exist_at_zero_and_count() {
    let metrics = Metrics::new().unwrap();
    let bastion = metrics.bastion(&name("prod"));
    let database = metrics.database(&name("analytics"), &[name("prod")]);
    let before = series(&metrics.exposition(&snapshot(true)).unwrap());
    bastion.failed(Cause::AuthRejected);
    bastion.lost(Cause::SessionReset);
    database.connection(Outcome::HoldTimeout);
    database.cut(Cause::ClientStalled);
    database.cut(Cause::SessionKeepaliveTimeout);
    database.channel_failed(&name("prod"), Cause::ChannelProhibited);
    database.probe_failed(Cause::DbLoginRejected);
    database.probe_answered();
    database.probe_skipped();
    for code in ["42P01", "42601", "57014", "42?"] {
        database.query_failed(ErrorClass::of(code.as_bytes()));
    }
    database.query_duration.observe(Duration::from_millis(7));
    database.turnaround.observe(Duration::from_secs(7200));
    let text = metrics.exposition(&snapshot(true)).unwrap();
    assert_eq!(series(&text), before, "a series appeared by counting");
    for line in [
        "session_failures_total{bastion=\"prod\",phase=\"auth\",reason=\"rejected\"} 1",
        "session_failures_total{bastion=\"prod\",phase=\"tcp\",reason=\"refused\"} 0",
        "session_losses_total{bastion=\"prod\",reason=\"reset\"} 1",
        "client_connections_total{database=\"analytics\",outcome=\"hold_timeout\"} 1",
        "clients_cut_total{database=\"analytics\",reason=\"stalled\"} 1",
        "clients_cut_total{database=\"analytics\",reason=\"keepalive_timeout\"} 1",
        "channel_failures_total{bastion=\"prod\",database=\"analytics\",reason=\"prohibited\"} 1",
        "probes_total{database=\"analytics\",phase=\"db_login\",reason=\"rejected\"} 1",
        "probes_total{database=\"analytics\",phase=\"ok\",reason=\"ok\"} 1",
        "query_errors_total{database=\"analytics\",sqlstate_class=\"42\"} 2",
        "query_errors_total{database=\"analytics\",sqlstate_class=\"57\"} 1",
        "query_errors_total{database=\"analytics\",sqlstate_class=\"other\"} 1",
        "query_errors_total{database=\"analytics\",sqlstate_class=\"XX\"} 0",
        "query_duration_seconds_bucket{database=\"analytics\",le=\"0.005\"} 0",
        "query_duration_seconds_bucket{database=\"analytics\",le=\"0.01\"} 1",
        "turnaround_seconds_bucket{database=\"analytics\",le=\"3600\"} 0",
        "turnaround_seconds_count{database=\"analytics\"} 1",
    ] {
        assert!(text.contains(&format!("tunnelkeeper_{line}\n")), "{line}\nnot in\n{text}");
    }
}

#[test]
fn everything_of_a_bastion_and_a_database_goes_with_it() {
    let metrics = Metrics::new().unwrap();
    let nothing = Snapshot { bastions: vec![], databases: vec![], ..snapshot(true) };
    let before = series(&metrics.exposition(&nothing).unwrap());
    let handles = (metrics.bastion(&name("prod")), metrics.database(&name("analytics"), &[name("prod")]));
    assert!(series(&metrics.exposition(&snapshot(true)).unwrap()).len() > before.len() + 100);
    drop(handles);
    assert_eq!(series(&metrics.exposition(&nothing).unwrap()), before);
}

/// The value of a series.
fn value(text: &str, series: &str) -> f64 {
    let line = text.lines().find_map(|line| line.strip_prefix("tunnelkeeper_")?.strip_prefix(series));
    line.unwrap_or_else(|| panic!("there is no {series} in\n{text}")).trim().parse().unwrap()
}

#[test]
fn what_comes_back_while_it_still_drains_counts_on() {
    let metrics = Metrics::new().unwrap();
    let draining = metrics.database(&name("analytics"), &[name("prod")]);
    draining.passed(Direction::ToDatabase, 5);
    let back = metrics.database(&name("analytics"), &[name("spare")]);
    back.passed(Direction::ToDatabase, 7);
    draining.channel_failed(&name("prod"), Cause::ChannelProhibited);
    let bytes = "client_bytes_total{database=\"analytics\",direction=\"to_database\"}";
    let of_prod = "channel_failures_total{bastion=\"prod\",database=\"analytics\",reason=\"prohibited\"}";
    let text = metrics.exposition(&snapshot(true)).unwrap();
    assert_eq!((value(&text, bytes), value(&text, of_prod)), (12.0, 1.0));
    drop(draining);
    back.passed(Direction::ToDatabase, 1);
    let text = metrics.exposition(&snapshot(true)).unwrap();
    assert_eq!(value(&text, bytes), 13.0);
    assert!(!text.contains(of_prod), "nobody has it any more");
}

#[test]
fn seconds_go_on_when_what_measures_them_is_replaced() {
    let metrics = Metrics::new().unwrap();
    let _handles = (metrics.bastion(&name("prod")), metrics.database(&name("analytics"), &[name("prod")]));
    for (total, expected) in [
        (100.0, 100.0),
        (130.0, 130.0),
        // Its parts do not end at one moment.
        (129.9, 130.0),
        (131.0, 131.0),
        // Another one.
        (4.0, 135.0),
        (6.5, 137.5),
    ] {
        let mut snapshot = snapshot(true);
        snapshot.bastions[0].uptime_seconds = total;
        snapshot.bastions[0].stalled_seconds = total;
        snapshot.databases[0].uptime_seconds = total;
        let text = metrics.exposition(&snapshot).unwrap();
        for series in [
            "tunnel_uptime_seconds_total{bastion=\"prod\"}",
            "session_stalled_seconds_total{bastion=\"prod\"}",
            "database_uptime_seconds_total{database=\"analytics\"}",
        ] {
            assert_eq!(value(&text, series), expected, "{series} at {total}");
        }
    }
}

#[test]
fn what_was_never_up_has_its_counters_of_seconds() {
    let metrics = Metrics::new().unwrap();
    let _handles = (metrics.bastion(&name("prod")), metrics.database(&name("analytics"), &[name("prod")]));
    let mut snapshot = snapshot(false);
    snapshot.bastions[0].uptime_seconds = 0.0;
    snapshot.bastions[0].stalled_seconds = 0.0;
    snapshot.databases[0].uptime_seconds = 0.0;
    let text = metrics.exposition(&snapshot).unwrap();
    for series in [
        "tunnel_uptime_seconds_total{bastion=\"prod\"}",
        "session_stalled_seconds_total{bastion=\"prod\"}",
        "database_uptime_seconds_total{database=\"analytics\"}",
    ] {
        assert_eq!(value(&text, series), 0.0, "{series}");
    }
}

#[test]
fn what_cuts_sessions_is_known_only_while_it_does() {
    let metrics = Metrics::new().unwrap();
    let bastion = metrics.bastion(&name("prod"));
    let mut snapshot = snapshot(true);
    let mut cuts = |after: Option<&str>| {
        snapshot.bastions[0].session_cut = after.map(|after| Cut {
            after: after.to_owned(),
            seconds: 61,
            at_most: false,
            losses: 3,
            detail: String::new(),
            hint: String::new(),
        });
        let text = metrics.exposition(&snapshot).unwrap();
        let lines = text.lines().filter(|line| line.starts_with("tunnelkeeper_session_cut_seconds{"));
        lines.map(|line| line.split_once('{').unwrap().1.to_owned()).collect::<Vec<_>>()
    };
    assert!(cuts(None).is_empty());
    assert_eq!(cuts(Some("idle")), ["after=\"idle\",bastion=\"prod\"} 61"]);
    assert_eq!(cuts(Some("age")), ["after=\"age\",bastion=\"prod\"} 61"]);
    drop(bastion);
    assert!(cuts(Some("age")).is_empty(), "it stays when its bastion has gone");
}

#[test]
fn a_snapshot_that_is_older_than_the_last_one_changes_nothing() {
    let metrics = Metrics::new().unwrap();
    let _bastion = metrics.bastion(&name("prod"));
    let mut older = snapshot(true);
    let mut newer = snapshot(true);
    older.bastions[0].uptime_seconds = 1000.0;
    newer.at = Stamp(newer.at.0 + Duration::from_secs(1));
    metrics.exposition(&newer).unwrap();
    let text = metrics.exposition(&older).unwrap();
    let uptime = "tunnel_uptime_seconds_total{bastion=\"prod\"}";
    assert_eq!(value(&text, uptime), 12.5);
    // Nor is the clock's stepping back more than a step.
    assert_eq!(value(&metrics.exposition(&older).unwrap(), uptime), 1000.0);
}

#[test]
fn what_has_gone_since_the_snapshot_was_taken_stays_away() {
    let metrics = Metrics::new().unwrap();
    let before = series(&metrics.exposition(&snapshot(true)).unwrap());
    drop((metrics.bastion(&name("prod")), metrics.database(&name("analytics"), &[name("prod")])));
    assert_eq!(series(&metrics.exposition(&snapshot(true)).unwrap()), before);
}

#[test]
fn another_order_of_the_bastions_resets_nothing() {
    let metrics = Metrics::new().unwrap();
    let database = metrics.database(&name("analytics"), &[name("prod"), name("spare")]);
    database.channel_failed(&name("prod"), Cause::ChannelProhibited);
    database.set_bastions(&[name("spare"), name("prod")]);
    database.channel_failed(&name("prod"), Cause::ChannelProhibited);
    let text = metrics.exposition(&snapshot(true)).unwrap();
    let failures = |bastion: &str| {
        format!(
            "channel_failures_total{{bastion=\"{bastion}\",database=\"analytics\",reason=\"prohibited\"}}"
        )
    };
    assert_eq!(value(&text, &failures("prod")), 2.0);
    let info = text.lines().filter(|line| line.starts_with("tunnelkeeper_database_bastion_info"));
    let info: Vec<&str> = info.map(|line| line.split_once('{').unwrap().1).collect();
    assert_eq!(
        info,
        [
            "bastion=\"prod\",database=\"analytics\",preference=\"1\"} 1",
            "bastion=\"spare\",database=\"analytics\",preference=\"0\"} 1"
        ]
    );
    database.set_bastions(&[name("spare")]);
    let text = metrics.exposition(&snapshot(true)).unwrap();
    assert!(!text.contains(&failures("prod")) && text.contains(&failures("spare")));
}

#[test]
fn who_comes_while_another_goes_has_all_series() {
    let metrics = Metrics::new().unwrap();
    for _ in 0..50 {
        let old = metrics.bastion(&name("prod"));
        let new = std::thread::scope(|threads| {
            threads.spawn(move || drop(old));
            threads.spawn(|| metrics.bastion(&name("prod"))).join().unwrap()
        });
        new.lost(Cause::SessionReset);
        let text = metrics.exposition(&snapshot(true)).unwrap();
        let losses = "session_losses_total{bastion=\"prod\",reason=\"reset\"}";
        assert!(value(&text, losses) > 0.0);
        assert_eq!(value(&text, "tunnel_up{bastion=\"prod\"}"), 1.0);
    }
}
