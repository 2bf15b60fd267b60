//! Temporary logins from end to end: a cloud's service makes them, and the probe logs in to a real PostgreSQL with them,
//! through the bastion, inside TLS, by the database's real name.

use std::fs;
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde_json::{Value, json};

use crate::support::postgres::{CLOUD, DATABASE, IAM, PASSWORD, TRUSTED};
use crate::support::{Bastion, Cloud, Daemon, Postgres, Reply, eventually};

/// Fails unless the database itself says that it is asked by that user, and inside TLS.
const PROOF: &str = "SELECT 1 / count(*) FROM pg_stat_ssl WHERE pid = pg_backend_pid() AND ssl AND \
                     current_user = 'IAM:probe'";

/// `[databases.cloud]` at a real name, and one beside it that is well.
fn sections(host: &str, keys: &str) -> String {
    let postgres = Postgres::shared();
    format!(
        "[databases.cloud]\nbastion = \"prod\"\nhost = \"{host}\"\nport = {}\nlisten = \"127.0.0.1:0\"\n\
         database = \"{DATABASE}\"\nprobe = {{ level = \"query\", when = \"always\", interval = \"200ms\", \
         fresh_login = \"100ms\", query = \"{PROOF}\" }}\n{keys}\n{}probe.interval = \"200ms\"\n",
        postgres.port,
        postgres.section("beside", "prod")
    )
}

fn daemon(bastion: &Bastion, sections: &str) -> Daemon {
    Daemon::with(&format!("{}{sections}", bastion.section("prod", bastion.port)), |command| {
        command.env("SSL_CERT_FILE", Postgres::shared().ca());
    })
}

fn is_up(daemon: &Daemon) {
    eventually("the probe is answered", || {
        (daemon.database("cloud")["probe"]["verdict"] == "up").then_some(())
    });
}

/// Waits until the probe says why it fails; returns what, and what to do.
fn failure(daemon: &Daemon, reason: [&str; 2]) -> [String; 2] {
    eventually(&format!("the probe says {reason:?}"), || {
        let failure = &daemon.database("cloud")["probe"]["last_failure"];
        (["phase", "reason"].map(|key| failure[key].as_str().unwrap_or_default()) == reason)
            .then(|| ["detail", "hint"].map(|key| failure[key].as_str().unwrap().to_owned()))
    })
}

fn minted(daemon: &Daemon, result: &str) -> f64 {
    daemon.metric(&format!("credential_mints_total{{database=\"cloud\",result=\"{result}\"}}"))
}

/// Waits until the database beside it has been probed so many times more.
fn a_while(daemon: &Daemon, probes: f64) {
    const BESIDE: &str = "probes_total{database=\"beside\",phase=\"ok\",reason=\"ok\"}";
    let until = daemon.metric(BESIDE) + probes;
    eventually("time goes by", || (daemon.metric(BESIDE) >= until).then_some(()));
}

fn seconds(life: Duration) -> f64 {
    (SystemTime::now() + life).duration_since(UNIX_EPOCH).unwrap().as_secs_f64()
}

const HOUR: Duration = Duration::from_secs(3600);

/// Amazon Redshift Serverless, as the test wants it to answer at the moment.
struct Serverless {
    service: Cloud,
    answer: Arc<Mutex<(u16, Value)>>,
}

impl Serverless {
    fn start(answer: (u16, Value)) -> Self {
        let answer = Arc::new(Mutex::new(answer));
        let current = Arc::clone(&answer);
        let service = Cloud::start(move |_| {
            let (status, body) = current.lock().unwrap().clone();
            Reply::Json(status, body)
        });
        Self { service, answer }
    }

    fn answer(&self, answer: (u16, Value)) {
        *self.answer.lock().unwrap() = answer;
    }

    fn keys(&self) -> String {
        // Who asks is who logs in: the users' page has both keys filled in all the same.
        format!(
            "method = \"iam\"\nuser = \"ignored\"\npassword = \"ignored\"\naccess_key_id = \"AKIDEXAMPLE\"\n\
             secret_access_key = \"example\"\nendpoint_url = \"{}\"\n",
            self.service.url()
        )
    }
}

fn login(password: &str, life: Duration) -> (u16, Value) {
    (200, json!({ "dbUser": IAM, "dbPassword": password, "expiration": seconds(life) }))
}

fn denial() -> (u16, Value) {
    (400, json!({ "__type": "AccessDeniedException", "message": "no redshift-serverless:GetCredentials" }))
}

#[test]
fn each_cloud_lets_the_probe_in() {
    let bastion = Bastion::that_knows(&CLOUD);
    let postgres = Postgres::shared();
    let signing = "access_key_id = \"AKIDEXAMPLE\"\nsecret_access_key = \"example\"\n";
    let xml = format!(
        "<GetClusterCredentialsResponse xmlns=\"http://redshift.amazonaws.com/doc/2012-12-01/\">\
         <GetClusterCredentialsResult><DbUser>{IAM}</DbUser><DbPassword>{PASSWORD}</DbPassword>\
         <Expiration>2100-01-01T00:00:00Z</Expiration></GetClusterCredentialsResult></GetClusterCredentialsResponse>"
    );
    let redshift = Cloud::start(move |request| {
        assert!(
            request.body.contains("DbUser=probe&") && request.body.contains("ClusterIdentifier=analytics")
        );
        Reply::Answer(200, xml.clone())
    });
    let serverless = Serverless::start(login(PASSWORD, HOUR));
    let databricks = Cloud::start(|request| match request.path.as_str() {
        "/oidc/v1/token" => Reply::Json(200, json!({ "access_token": "w0rkspace", "expires_in": 3600 })),
        _ => Reply::Json(200, json!({ "token": PASSWORD, "expiration_time": "2100-01-01T00:00:00Z" })),
    });
    let google = Cloud::saying(200, json!({ "access_token": PASSWORD, "expires_in": 3600 }));
    let file = bastion.path("google.json");
    let authorized = json!({
        "type": "authorized_user", "client_id": "id", "client_secret": "s", "refresh_token": "r",
        "token_uri": google.address("/token"),
    });
    fs::write(&file, authorized.to_string()).unwrap();
    for (host, keys) in [
        (
            CLOUD[1],
            format!("method = \"iam\"\nuser = \"probe\"\n{signing}endpoint_url = \"{}\"\n", redshift.url()),
        ),
        (CLOUD[2], serverless.keys()),
        (
            CLOUD[3],
            format!(
                "method = \"oauth\"\nuser = \"{IAM}\"\nworkspace = \"{}\"\nclient_id = \"c\"\nclient_secret = \"s\"\n\
                 instance = \"orders\"\n",
                databricks.url()
            ),
        ),
        (
            CLOUD[0],
            format!(
                "kind = \"alloydb\"\nmethod = \"iam\"\nuser = \"{IAM}\"\ncredentials_file = {file:?}\n\
                 tls = {{ mode = \"verify-full\", ca = {:?} }}\n",
                postgres.ca()
            ),
        ),
    ] {
        let daemon = daemon(&bastion, &sections(host, &keys));
        is_up(&daemon);
        a_while(&daemon, 3.0);
        // It has logged in several times, and asked once.
        assert_eq!(minted(&daemon, "ok"), 1.0, "{host}");
        assert!(daemon.metric("credential_expiry_timestamp_seconds{database=\"cloud\"}") > seconds(HOUR / 2));
        let everything = daemon.printed() + &daemon.status().to_string() + &daemon.get("/").1;
        assert!(!everything.contains(PASSWORD), "{host}");
    }
}

/// The server cannot know a token, which is another one each second, and lets its user in; what is in a token, the vectors
/// say.
#[test]
fn tokens_of_rds_are_made_here_and_last_a_quarter_of_an_hour() {
    let bastion = Bastion::that_knows(&[CLOUD[0]]);
    let keys = format!(
        "method = \"iam\"\nuser = \"{TRUSTED}\"\naccess_key_id = \"AKIDEXAMPLE\"\nsecret_access_key = \"example\"\n\
         tls.ca = {:?}\n",
        Postgres::shared().ca()
    );
    let daemon = daemon(&bastion, &sections(CLOUD[0], &keys).replace("'IAM:probe'", "'trusted'"));
    is_up(&daemon);
    let expires = daemon.metric("credential_expiry_timestamp_seconds{database=\"cloud\"}");
    assert!(expires > seconds(Duration::from_secs(600)) && expires <= seconds(Duration::from_secs(900)));
    assert_eq!(minted(&daemon, "ok"), 1.0);
}

#[test]
fn a_login_that_expires_between_probes_is_renewed() {
    let serverless = Serverless::start(login(PASSWORD, Duration::from_secs(61)));
    let bastion = Bastion::that_knows(&[CLOUD[2]]);
    let daemon = daemon(&bastion, &sections(CLOUD[2], &serverless.keys()));
    is_up(&daemon);
    // A second later the first one is in its last minute.
    eventually("another one is asked for", || (minted(&daemon, "ok") >= 2.0).then_some(()));
    serverless.answer(login(PASSWORD, HOUR));
    let renewed = "credential_expiry_timestamp_seconds{database=\"cloud\"}";
    eventually("it lasts longer", || (daemon.metric(renewed) > seconds(HOUR / 2)).then_some(()));
    let before = minted(&daemon, "ok");
    a_while(&daemon, 5.0);
    assert_eq!(minted(&daemon, "ok"), before);
    assert!(daemon.database("cloud")["probe"]["last_failure"].is_null());
}

#[test]
fn a_mint_that_fails_is_no_failure_of_the_database() {
    let serverless = Serverless::start(denial());
    let bastion = Bastion::that_knows(&[CLOUD[2]]);
    let daemon = daemon(&bastion, &sections(CLOUD[2], &serverless.keys()));
    let [detail, hint] = failure(&daemon, ["credentials", "denied"]);
    assert!(detail.contains("no redshift-serverless:GetCredentials") && !hint.is_empty(), "{detail}: {hint}");
    // The cloud is left alone for a minute, while the database is looked at as far as that goes without a login.
    const DENIED: &str = "probes_total{database=\"cloud\",phase=\"credentials\",reason=\"denied\"}";
    eventually("it is probed again and again", || (daemon.metric(DENIED) > 5.0).then_some(()));
    assert_eq!((minted(&daemon, "denied"), serverless.service.asked().len()), (1.0, 1));
    assert_eq!(daemon.database("cloud")["probe"]["verdict"], "unknown");
    assert!(daemon.database("cloud")["probe"]["certificate_expires"].is_string());
    // Jobs bring their own logins.
    assert_eq!(daemon.get("/readyz/cloud").0, 200);
    let of_database = daemon.metrics();
    let of_database = of_database.iter().filter(|(series, _)| {
        series.contains("probes_total{database=\"cloud\",phase=\"db_") && !series.ends_with("\"ok\"}")
    });
    assert!(of_database.clone().count() > 10 && of_database.clone().all(|(_, count)| *count == 0.0));
}

#[test]
fn while_the_last_login_is_good_a_refused_renewal_is_a_warning() {
    let serverless = Serverless::start(login(PASSWORD, Duration::from_secs(61)));
    let bastion = Bastion::that_knows(&[CLOUD[2]]);
    let daemon = daemon(&bastion, &sections(CLOUD[2], &serverless.keys()));
    is_up(&daemon);
    serverless.answer(denial());
    let event = daemon.wait_event("no new login can be made; the one before is used until it expires");
    assert_eq!((&event["phase"], &event["reason"]), (&"credentials".into(), &"denied".into()), "{event}");
    a_while(&daemon, 3.0);
    assert_eq!(daemon.database("cloud")["probe"]["verdict"], "up");
    assert_eq!(minted(&daemon, "denied"), 1.0);
    // A reload leaves its login and what is counted alone.
    let again = daemon.config();
    let before = (minted(&daemon, "ok"), minted(&daemon, "denied"));
    let config = fs::read_to_string(again).unwrap();
    assert!(daemon.reload(&config.replace("interval = \"200ms\"", "interval = \"150ms\"")).is_empty());
    a_while(&daemon, 3.0);
    assert_eq!((minted(&daemon, "ok"), minted(&daemon, "denied")), before);
}

#[test]
fn a_login_that_the_database_refuses_is_made_anew_and_not_hammered() {
    let serverless = Serverless::start(login("wrong", HOUR));
    let bastion = Bastion::that_knows(&[CLOUD[2]]);
    let daemon = daemon(&bastion, &sections(CLOUD[2], &serverless.keys()));
    failure(&daemon, ["db_login", "rejected"]);
    eventually("the database counts as down", || {
        (daemon.database("cloud")["probe"]["verdict"] == "down").then_some(())
    });
    a_while(&daemon, 15.0);
    let rejected = "probes_total{database=\"cloud\",phase=\"db_login\",reason=\"rejected\"}";
    assert_eq!((daemon.metric(rejected), minted(&daemon, "ok")), (2.0, 2.0));
}
