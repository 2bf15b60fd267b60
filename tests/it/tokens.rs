//! Logins of AlloyDB and Lakebase are made as the clouds want it, and what goes wrong is named without a secret.

mod google;
mod lakebase;

use std::time::{Duration, SystemTime};

use serde_json::json;
use tunnelkeeper::credentials::Minted;
use tunnelkeeper::failure::{Cause, Failure};
use tunnelkeeper::ids::{HostPort, Target};
use tunnelkeeper::settings::plan::{CredentialsPlan, LoginPlan};

use crate::support::cloud::{Asked, framed};
use crate::support::{Cloud, Reply, logins, runtime};

fn mint(plan: &CredentialsPlan) -> Result<Minted, Failure> {
    runtime().block_on(mint_at(plan, Target::Tcp(HostPort::new("db.example", 5432))))
}

async fn mint_at(plan: &CredentialsPlan, database: Target) -> Result<Minted, Failure> {
    logins::mint(&LoginPlan { database: None, credentials: plan.clone() }, &database).await
}

/// User and password, of a login that lasts about as long as it should.
fn user_and_password(minted: &Minted, life: u64) -> (String, String) {
    let left = minted.expires.unwrap().duration_since(SystemTime::now()).unwrap();
    assert!(left <= Duration::from_secs(life) && left > Duration::from_secs(life - 60), "{left:?}");
    let password = minted.login.password.as_ref().unwrap().expose().to_owned();
    (minted.login.user.clone(), password)
}

/// All that is said of a failure.
fn text(failure: &Failure) -> String {
    format!("{failure}\n{failure:?}\n{}\n{}", failure.hint(), serde_json::to_string(failure).unwrap())
}

/// Gives everything back that it gets, as a complaint.
fn echo(status: u16) -> Cloud {
    Cloud::start(move |request: &Asked| {
        let said = format!("{:?} {}", request.headers, request.body);
        Reply::Json(status, json!({ "error": "invalid_request", "error_description": said, "message": said }))
    })
}

/// What a service may do wrong, each with the failure that it has to become. `plan` is one whose first request goes to
/// the service.
fn every_wrong_answer(plan: impl Fn(&Cloud) -> CredentialsPlan) {
    let long = "x".repeat(70_000);
    let endless =
        b"HTTP/1.1 200 OK\r\n\r\n".iter().copied().chain(std::iter::repeat_n(b'x', 1 << 20)).collect();
    for (reply, expected, detail) in [
        (framed(200, "", "<html>sign in</html>"), Cause::CredentialsInvalidAnswer, "no token in its answer"),
        (framed(200, "", "{}"), Cause::CredentialsInvalidAnswer, "no token in its answer"),
        (framed(200, "", r#"{"access_token":["t0ken"]}"#), Cause::CredentialsInvalidAnswer, "no token"),
        (framed(200, "", &long), Cause::CredentialsInvalidAnswer, "longer than 65536 bytes"),
        (endless, Cause::CredentialsInvalidAnswer, "longer than 65536 bytes"),
        (b"SSH-2.0-OpenSSH\r\n".to_vec(), Cause::CredentialsUnreachable, "http://127.0.0.1"),
        (
            b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n{".to_vec(),
            Cause::CredentialsUnreachable,
            "127.0.0.1",
        ),
        (
            b"HTTP/1.1 302 X\r\nLocation: http://127.0.0.1:1/\r\nContent-Length: 0\r\n\r\n".to_vec(),
            Cause::CredentialsInvalidAnswer,
            "status 302",
        ),
        (framed(502, "", "<html>bad gateway</html>"), Cause::CredentialsUnreachable, "status 502"),
        (framed(429, "", "{}"), Cause::CredentialsUnreachable, "status 429"),
    ] {
        let shown = String::from_utf8_lossy(&reply[..reply.len().min(60)]).into_owned();
        let service = Cloud::start(move |_| Reply::Raw(reply.clone()));
        let failure = mint(&plan(&service)).unwrap_err();
        assert_eq!(failure.cause, expected, "{shown}: {failure}");
        assert!(failure.detail().contains(detail), "{shown}: {failure}");
        assert!(!text(&failure).contains("t0ken"), "{failure}");
        assert_eq!(service.asked().len(), 1, "{shown}");
    }
}

/// The clock stands still and goes on by itself when nothing else happens.
fn silence(plan: impl Fn(&Cloud) -> CredentialsPlan) {
    let service = Cloud::start(|_| Reply::Silence);
    let plan = plan(&service);
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().start_paused(true).build().unwrap();
    let failure = runtime.block_on(async {
        let before = tokio::time::Instant::now();
        let failure = mint_at(&plan, Target::Unix("/x".into())).await.unwrap_err();
        assert!(before.elapsed() <= Duration::from_secs(15), "{:?}", before.elapsed());
        failure
    });
    assert_eq!(failure.cause, Cause::CredentialsUnreachable);
    assert!(failure.detail().contains("within 10 s"), "{failure}");
}

/// Nothing listens there.
fn gone(plan: impl Fn(&Cloud) -> CredentialsPlan) {
    let service = Cloud::gone();
    let failure = mint(&plan(&service)).unwrap_err();
    assert_eq!(failure.cause, Cause::CredentialsUnreachable);
    assert!(failure.detail().contains("Connection refused"), "{failure}");
}
