use std::fs;
use std::os::unix::fs::PermissionsExt;

use super::database::check;
use super::progress::Record;
use super::*;
use crate::failure::{Cause, Failure};
use crate::settings::{Surroundings, load};

const BASTIONS: &str = "[bastions.edge]\nhost = \"edge.example\"\nuser = \"me\"\n\
                        [bastions.prod]\nhost = \"prod.example\"\nuser = \"me\"\njump = \"edge\"\n\
                        [bastions.spare]\nhost = \"192.0.2.1\"\nuser = \"me\"\n";

fn database(name: &str, bastions: &str, keys: &str) -> String {
    format!("[databases.{name}]\nbastion = {bastions}\nlisten = \"unix:/run/{name}\"\n{keys}\n")
}

/// The plan of a configuration.
fn plan(databases: &str) -> Plan {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("t.toml");
    fs::write(&path, format!("{BASTIONS}{databases}")).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
    let uid = nix::unistd::geteuid().as_raw();
    load(&Surroundings { uid, config_option: Some(path), ..Surroundings::default() }).unwrap().plan
}

fn two_databases() -> Plan {
    let host = "host = \"db.example\"\nuser = \"probe\"";
    plan(&format!("{}{}", database("a", "[\"prod\", \"spare\"]", host), database("b", "\"edge\"", host)))
}

fn select(plan: &Plan, names: &[&str]) -> Result<Selection, String> {
    let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
    Selection::of(plan, &names)
}

#[test]
fn a_name_brings_along_what_it_needs_and_what_is_behind_it() {
    let plan = two_databases();
    for (names, bastions, ways) in [
        (&[][..], "edge prod spare", "a/prod a/spare b/edge"),
        (&["a"], "edge prod spare", "a/prod a/spare"),
        (&["b"], "edge", "b/edge"),
        (&["prod"], "edge prod", "a/prod"),
        (&["edge"], "edge", "b/edge"),
        (&["spare", "b"], "edge spare", "a/spare b/edge"),
    ] {
        let selection = select(&plan, names).unwrap();
        let found: Vec<&str> = selection.bastions.iter().map(|bastion| bastion.name.as_str()).collect();
        assert_eq!(found.join(" "), bastions, "{names:?}");
        let found: Vec<String> =
            selection.ways.iter().map(|way| format!("{}/{}", way.database.name, way.bastion)).collect();
        assert_eq!(found.join(" "), ways, "{names:?}");
    }
    assert_eq!(select(&plan, &["a", "c"]).unwrap_err(), "c");
}

/// Each stage of the first check of a database: its key, and why it is left out, if it is.
fn asked(keys: &str) -> Vec<(&'static str, String)> {
    let plan = plan(&database("d", "\"spare\"", keys));
    let check = check(select(&plan, &["d"]).unwrap().ways.first().unwrap());
    let why = |stage: &Stage| match &stage.outcome {
        Outcome::NotAsked(reason) => reason.clone(),
        _ => String::new(),
    };
    check.stages.iter().map(|stage| (stage.kind.key(), why(stage))).collect()
}

#[test]
fn nothing_is_asked_that_the_probe_would_not_ask() {
    let stages = |rows: &[(&'static str, &str)]| {
        rows.iter().map(|(key, why)| (*key, (*why).to_owned())).collect::<Vec<_>>()
    };
    let no_user = "no `user` is set for the database";
    let whole = ["credentials", "forwarding", "reach", "db_tls", "db_login", "db_query"].map(|key| (key, ""));
    assert_eq!(asked("host = \"db\"\nuser = \"u\"\n"), stages(&whole));
    assert_eq!(
        asked("host = \"db\"\n"),
        stages(&[
            ("forwarding", ""),
            ("reach", ""),
            ("db_tls", ""),
            ("db_login", no_user),
            ("db_query", no_user)
        ])
    );
    let level = "probe.level is \"connect\"";
    assert_eq!(
        asked("host = \"db\"\nuser = \"u\"\nprobe = { level = \"connect\" }\n"),
        stages(&[
            ("forwarding", ""),
            ("reach", ""),
            ("db_tls", level),
            ("db_login", level),
            ("db_query", level)
        ])
    );
    assert_eq!(
        asked("host = \"db\"\nuser = \"u\"\nprobe = { level = \"login\" }\n").last().unwrap().1,
        "probe.level is \"login\""
    );
    // sshd has one answer for a socket, and PostgreSQL no TLS.
    assert_eq!(
        asked("host = \"/run/.s.PGSQL.5432\"\nuser = \"u\"\n"),
        stages(&[
            ("credentials", ""),
            ("reach", ""),
            ("db_tls", "tls.mode is \"disable\""),
            ("db_login", ""),
            ("db_query", "")
        ])
    );
    let serverless =
        asked("host = \"w.123456789012.us-east-1.redshift-serverless.amazonaws.com\"\nuser = \"u\"\n");
    let why = "probe.level is \"tls\", since a query bills at least 60 s";
    assert_eq!(serverless.get(3..), Some(&stages(&[("db_login", why), ("db_query", why)])[..]));
}

/// What is found when the checks of two databases go like this.
fn verdict(make: impl FnOnce(&[Record])) -> (Vec<Check>, Verdict) {
    let plan = two_databases();
    let progress = prepare(&plan, &select(&plan, &[]).unwrap());
    let records: Vec<Record> = progress.records().collect();
    make(&records);
    records.iter().for_each(Record::close);
    let checks = progress.checks();
    let verdict = Verdict::of(&checks);
    (checks, verdict)
}

fn pass_all(records: &[Record]) {
    use Kind::{
        Algorithms, Connection, Credentials, DatabaseLogin, Forwarding, Greeting, HostKey, Identity, Login,
        Name, Ping, Query, Reach, Tls,
    };
    for record in records {
        for kind in [Identity, Name, Connection, Greeting, Algorithms, HostKey, Login, Ping] {
            record.pass(kind, "");
        }
        for kind in [Credentials, Forwarding, Reach, Tls, DatabaseLogin, Query] {
            record.pass(kind, "");
        }
    }
}

#[test]
fn all_is_well_only_if_every_stage_is() {
    let (_, verdict) = verdict(pass_all);
    assert!(verdict.passed && verdict.findings.is_empty());
    assert_eq!(verdict.summary, ["All is well: 3 bastions and 2 databases."]);
}

#[test]
fn a_failure_is_named_once_where_it_is_mended_and_what_it_keeps_from_working() {
    let prohibited = Failure::new(Cause::ChannelProhibited, "not that");
    let missing = Failure::new(Cause::CredentialsMissing, "no such variable");
    let (checks, verdict) = verdict(|records| {
        let [edge, prod, spare, a_prod, a_spare, b] = records else { panic!("{}", records.len()) };
        pass_all(&[edge.clone(), spare.clone(), b.clone()]);
        // By the jump.
        prod.pass(Kind::Identity, "");
        prod.fail(prohibited);
        a_prod.fail_at(Kind::Credentials, missing.clone());
        a_spare.fail_at(Kind::Credentials, missing);
    });
    assert!(!verdict.passed);
    assert_eq!(
        verdict.summary,
        ["1 of 3 bastions cannot be used: prod.", "1 of 2 databases cannot be used: a."]
    );
    let findings: Vec<(String, &str, &str)> = verdict
        .findings
        .iter()
        .map(|finding| (finding.subjects.join(", "), finding.side.key(), finding.place.as_str()))
        .collect();
    assert_eq!(
        findings,
        [
            ("bastion prod".to_owned(), "bastion", "bastion edge"),
            ("database a through prod, database a through spare".to_owned(), "machine", "this machine"),
        ]
    );
    let prod = checks.get(1).unwrap();
    let outcomes: Vec<&Outcome> = prod.stages.iter().map(|stage| &stage.outcome).collect();
    assert!(matches!(outcomes.as_slice(), [Outcome::Passed(_), Outcome::Failed(_), rest @ ..]
        if rest.iter().all(|outcome| **outcome == Outcome::NotReached)));
}

#[test]
fn one_way_of_two_is_enough() {
    let (_, verdict) = verdict(|records| {
        let [others @ .., a_prod, a_spare, b] = records else { panic!("{}", records.len()) };
        pass_all(others);
        pass_all(&[a_prod.clone(), b.clone()]);
        a_spare.pass(Kind::Credentials, "");
        a_spare.fail(Failure::new(Cause::ChannelProhibited, "not that"));
    });
    assert!(!verdict.passed);
    assert_eq!(verdict.summary, ["a can be used through prod, and not through spare."]);
}

#[test]
fn a_host_key_that_is_refused_was_agreed_on_and_one_that_cannot_be_judged_was_never_seen() {
    for (cause, algorithms) in [(Cause::HostKeyChanged, true), (Cause::HostKeyUnreadable, false)] {
        let (checks, _) = verdict(|records| {
            let edge = records.first().unwrap();
            edge.pass(Kind::Identity, "");
            edge.fail(Failure::new(cause, "no"));
        });
        let stage = |kind| checks.first().unwrap().stages.iter().find(|stage| stage.kind == kind).unwrap();
        assert!(matches!(stage(Kind::HostKey).outcome, Outcome::Failed(_)), "{cause:?}");
        assert_eq!(matches!(stage(Kind::Algorithms).outcome, Outcome::Passed(_)), algorithms, "{cause:?}");
        assert_eq!(stage(Kind::Login).outcome, Outcome::NotReached);
    }
}

#[test]
fn a_stage_that_is_gone_through_again_stays_as_it_was_and_no_peer_steers_the_terminal() {
    let (checks, _) = verdict(|records| {
        let edge = records.first().unwrap();
        edge.pass(Kind::Greeting, "SSH-2.0-\u{1b}[2Jone\r\n");
        edge.pass(Kind::Greeting, "two");
    });
    let passed = Outcome::Passed("SSH-2.0- [2Jone".to_owned());
    assert!(checks.first().unwrap().stages.iter().any(|stage| stage.outcome == passed));
}

#[test]
fn what_only_this_user_meets_is_said_so() {
    let runs_as = |daemon: Option<&str>| RunsAs { me: "root".to_owned(), daemon: daemon.map(str::to_owned) };
    let hint = |cause, daemon| runs_as(daemon).explain(Failure::new(cause, "x")).hint().to_owned();
    assert!(hint(Cause::AuthIdentityUnreadable, Some("tk")).contains("`sudo -u tk tunnelkeeper doctor`"));
    assert_eq!(hint(Cause::AuthIdentityUnreadable, None), Cause::AuthIdentityUnreadable.hint());
    assert!(
        hint(Cause::CredentialsMissing, None).contains("variables and credentials that this shell has not")
    );
    assert_eq!(hint(Cause::AuthRejected, Some("tk")), Cause::AuthRejected.hint());
    assert!(
        runs_as(None).note().is_none() && runs_as(Some("tk")).note().unwrap().contains("the daemon as tk")
    );
}
