//! Reads `[databases.NAME.tls]`: how much a database has to prove before it is told a password or a token.

use super::kind::is_rds_proxy;
use super::login::Method;
use super::plan::{Kind, RDS_BUNDLE, TlsMode, TlsPlan};
use super::reader::{Report, Section};
use crate::ids::Target;

pub(super) fn read(
    kind: Option<Kind>,
    method: Option<Method>,
    target: Option<&Target>,
    section: &mut Section,
    report: &mut Report,
) -> TlsPlan {
    let mut tls = section.section("tls", "tls = { mode = \"verify-full\" }", report);
    let is_socket = matches!(target, Some(Target::Unix(_)));
    let is_public = kind == Some(Kind::Rds) && target.is_some_and(|target| is_rds_proxy(target.host()));
    let default = if is_socket { TlsMode::Disable } else { default_mode(kind, tls.has("ca") || is_public) };
    let mode = tls.get_or("mode", default, report);
    let ca = tls.get("ca", report);
    let allow_unverified = tls.get_or("allow_unverified", false, report);
    let plan = TlsPlan { mode, ca, allow_unverified };
    let has_token = method.is_some_and(|method| method != Method::Database);
    let mode_is_known = kind.is_some() || tls.has("mode");
    if is_socket {
        refuse_on_sockets(&plan, has_token, section, &tls, report);
    } else if mode_is_known {
        let missing_roots = where_the_roots_are(kind).filter(|_| !is_public);
        refuse_what_proves_nothing(missing_roots, &plan, has_token, &tls, report);
    }
    tls.finish(report);
    plan
}

fn default_mode(kind: Option<Kind>, has_roots: bool) -> TlsMode {
    match kind {
        Some(Kind::Rds) if has_roots => TlsMode::VerifyFull,
        // Its certificates are for no name that a client knows.
        Some(Kind::Alloydb) if has_roots => TlsMode::VerifyCa,
        Some(Kind::Rds | Kind::Alloydb) => TlsMode::Require,
        Some(Kind::Redshift | Kind::RedshiftServerless | Kind::Lakebase) => TlsMode::VerifyFull,
        Some(Kind::Postgres) | None => TlsMode::Prefer,
    }
}

/// Where the roots of a kind are that this machine does not have.
fn where_the_roots_are(kind: Option<Kind>) -> Option<String> {
    match kind? {
        Kind::Rds => Some(format!("fetch {RDS_BUNDLE}")),
        Kind::Alloydb => Some("fetch the certificate of the cluster's own authority from Google".to_owned()),
        Kind::Postgres | Kind::Redshift | Kind::RedshiftServerless | Kind::Lakebase => None,
    }
}

fn refuse_on_sockets(plan: &TlsPlan, has_token: bool, section: &Section, tls: &Section, report: &mut Report) {
    if plan.ca.is_some() || plan.mode.verifies() {
        let key = if plan.mode.verifies() { "mode" } else { "ca" };
        let text = "there is nothing to verify: PostgreSQL speaks no TLS over a Unix socket, which is as safe as the \
                    bastion itself; leave tls out";
        report.problem(tls, key, text);
    } else if has_token {
        let text = "is a Unix socket, over which PostgreSQL speaks no TLS, and a token is sent only inside TLS: write \
                    the name of the database";
        report.problem(section, "host", text);
    }
}

/// Roots that are not used, and tokens that anybody could ask for: whoever has one logs in with it.
fn refuse_what_proves_nothing(
    missing_roots: Option<String>,
    plan: &TlsPlan,
    has_token: bool,
    tls: &Section,
    report: &mut Report,
) {
    let key = if tls.has("mode") { "mode" } else { "ca" };
    if plan.mode.verifies() {
        if !plan.proves_identity() && !plan.allow_unverified {
            let text = "verifies only who issued the certificate, and without tls.ca any public authority would do: name \
                        tls.ca or write \"verify-full\"";
            report.problem(tls, key, text);
        }
        return;
    }
    if plan.ca.is_some() {
        report.problem(tls, "ca", "is of no use with this tls.mode: write mode = \"verify-full\"");
    } else if has_token && plan.mode == TlsMode::Disable {
        report.problem(tls, key, "a token is never sent without TLS: write mode = \"verify-full\"");
    } else if has_token && !plan.allow_unverified {
        let advice = match missing_roots {
            Some(place) => format!("{place} and name the file as tls.ca"),
            None => "write tls.mode = \"verify-full\"".to_owned(),
        };
        let text = format!(
            "this login sends a token as it is inside TLS, so the database has to prove first who it is: {advice} \
             (tls.allow_unverified = true does without)"
        );
        report.problem(tls, key, text);
    } else if let Some(place) = missing_roots.filter(|_| !tls.has("mode")) {
        report.note(tls, "ca", format!("the probe does not verify this database: {place} and name it here"));
    }
}
