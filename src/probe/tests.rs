use std::sync::atomic::{AtomicUsize, Ordering};

use rcgen::{CertificateParams, KeyPair};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::ServerConfig;
use tokio_rustls::rustls::crypto::aws_lc_rs;
use tokio_rustls::rustls::pki_types::PrivatePkcs8KeyDer;

use super::*;
use crate::dial::Arrival;
use crate::dial::fake::{FakeDial, FarEnd};
use crate::ids::{HostPort, Name, Target};
use crate::metrics::Metrics;
use crate::secret::SecretSource;
use crate::settings::Surroundings;
use crate::settings::plan::{CredentialsPlan, ForwardPlan, Kind, ListenPlan, LoginPlan, ProbePlan, TlsPlan};

fn name(text: &str) -> Name {
    Name::parse(text).unwrap()
}

struct Case {
    dial: FakeDial,
    state: watch::Receiver<ProbeState>,
    metrics: Metrics,
    database: Arc<DatabaseMetrics>,
    stop: CancellationToken,
    life: tokio::task::JoinHandle<()>,
}

fn login(password: Option<SecretSource>) -> LoginPlan {
    let credentials = CredentialsPlan::Password { user: "probe".to_owned(), password };
    LoginPlan { database: None, credentials }
}

fn case(up: bool, change: impl FnOnce(&mut ProbePlan)) -> Case {
    let mut probe = ProbePlan {
        level: ProbeLevel::Query,
        when: ProbeWhen::Always,
        interval: Duration::from_secs(15),
        timeout: Duration::from_secs(5),
        failures: 2,
        fresh_login: Duration::from_secs(600),
        query: "SELECT 1".to_owned(),
        login: Some(login(None)),
        tls: TlsPlan { mode: TlsMode::Disable, ca: None, allow_unverified: false },
    };
    change(&mut probe);
    let forward = ForwardPlan {
        listen: ListenPlan {
            at: vec![],
            socket_mode: 0o660,
            socket_group: None,
            allow_remote_clients: false,
        },
        hold_timeout: Duration::ZERO,
        hold_max: 0,
        max_clients: 1,
        idle_timeout: None,
        stall_timeout: Duration::from_secs(60),
    };
    let plan = DatabasePlan {
        name: name("analytics"),
        bastions: vec![name("prod")],
        kind: Kind::Postgres,
        target: Target::Tcp(HostPort::new("db", 5432)),
        forward,
        probe,
    };
    case_of(up, Arc::new(plan))
}

fn case_of(up: bool, plan: Arc<DatabasePlan>) -> Case {
    let (dial, metrics, stop) = (FakeDial::new(up), Metrics::new().unwrap(), CancellationToken::new());
    let database = Arc::new(metrics.database(&plan.name, &plan.bastions));
    let ways = Ways::new(vec![(name("prod"), dial.clone())]);
    let (_, route) = watch::channel(Arc::new(Route { plan, ways }));
    let parts = Parts { route, metrics: Arc::clone(&database), stop: stop.clone() };
    let (state, unit) = new(parts);
    Case { dial, state, metrics, database, stop, life: tokio::spawn(async move { unit.run().await }) }
}

impl Case {
    async fn health(&mut self, health: Health) -> ProbeState {
        self.state.wait_for(|state| state.health == health).await.unwrap().clone()
    }

    fn probes(&self, phase: &str, reason: &str) -> String {
        let text = self.metrics.exposition(&crate::board::Board::default().snapshot()).unwrap();
        let series = format!("probes_total{{database=\"analytics\",phase=\"{phase}\",reason=\"{reason}\"}}");
        let line = text.lines().find_map(|line| line.strip_prefix(&format!("tunnelkeeper_{series} ")));
        line.unwrap_or_else(|| panic!("no {series}")).to_owned()
    }
}

const LOGGED_IN: &[u8] = b"R\0\0\0\x08\0\0\0\0Z\0\0\0\x05I";
const ANSWERED: &[u8] = b"C\0\0\0\x0dSELECT 1\0Z\0\0\0\x05I";

/// Plays a database that lets the probe in and answers `queries` queries.
fn serve(mut far: FarEnd, queries: usize) -> tokio::task::JoinHandle<FarEnd> {
    tokio::spawn(async move {
        assert!(far.hear(1).await.ends_with(b"application_name\0tunnelkeeper\0\0"));
        far.say(LOGGED_IN);
        for _ in 0..queries {
            assert_eq!(far.hear(14).await, b"Q\0\0\0\x0dSELECT 1\0");
            far.say(ANSWERED);
        }
        far
    })
}

#[tokio::test(start_paused = true)]
async fn one_login_serves_many_queries_until_a_fresh_one_is_due() {
    let mut case = case(true, |probe| probe.fresh_login = Duration::from_secs(40));
    let first = serve(case.dial.answer(), 3);
    let second = serve(case.dial.answer(), 1);
    let state = case.health(Health::Up).await;
    assert!(state.latency.is_some() && state.last_success.is_some());
    let mut first = first.await.unwrap();
    assert_eq!(first.hear(5).await, b"X\0\0\0\x04", "the old connection was not closed in good order");
    first.arrive(Arrival::Closed);
    let mut second = second.await.unwrap();
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert_eq!(case.probes("ok", "ok"), "4");
    case.stop.cancel();
    case.life.await.unwrap();
    assert_eq!(second.hear(5).await, b"X\0\0\0\x04", "the end was not in good order");
}

#[tokio::test(start_paused = true)]
async fn a_connection_that_the_server_ended_is_no_failure() {
    let mut case = case(true, |_| {});
    let first = serve(case.dial.answer(), 1);
    let second = serve(case.dial.answer(), 1);
    case.health(Health::Up).await;
    first.await.unwrap().arrive(Arrival::Closed);
    second.await.unwrap();
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert_eq!((case.probes("ok", "ok"), case.dial.doubts()), ("2".to_owned(), 0));
}

#[tokio::test(start_paused = true)]
async fn two_failures_are_down_and_one_answer_is_up() {
    let mut case = case(true, |_| {});
    case.dial.refuse(Failure::new(Cause::ChannelConnectFailed, "refused"));
    case.dial.refuse(Failure::new(Cause::ChannelConnectFailed, "refused"));
    let third = serve(case.dial.answer(), 1);
    let began = Instant::now();
    let state = case.health(Health::Down).await;
    assert!((14..=16).contains(&began.elapsed().as_secs()), "{:?}", began.elapsed());
    assert_eq!(state.last_failure.unwrap().failure.cause, Cause::ChannelConnectFailed);
    assert_eq!((case.probes("channel", "connect_failed"), case.dial.doubts()), ("2".to_owned(), 2));
    case.health(Health::Up).await;
    third.await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn without_a_session_nothing_is_known() {
    let mut case = case(false, |_| {});
    tokio::time::sleep(Duration::from_secs(60)).await;
    assert_eq!(case.state.borrow().health, Health::Unknown);
    assert!(case.probes("skipped", "skipped").parse::<u32>().unwrap() >= 3);
    assert_eq!(case.dial.doubts(), 0);
    let far = serve(case.dial.answer(), 1);
    case.dial.set_up(true);
    case.health(Health::Up).await;
    far.await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn behind_a_shut_gate_silence_is_no_failure() {
    let mut case = case(true, |_| {});
    let far = serve(case.dial.answer(), 1);
    case.health(Health::Up).await;
    let _far = far.await.unwrap();
    case.dial.block(true);
    tokio::time::sleep(Duration::from_secs(60)).await;
    assert_eq!((case.state.borrow().health, case.dial.doubts()), (Health::Up, 0));
}

#[tokio::test(start_paused = true)]
async fn a_database_that_falls_silent_is_noticed() {
    let mut case = case(true, |_| {});
    let far = serve(case.dial.answer(), 1);
    case.health(Health::Up).await;
    let _far = far.await.unwrap();
    // One is asked to cancel the query, the other to log in.
    let _silent = [case.dial.answer(), case.dial.answer()];
    let state = case.health(Health::Down).await;
    assert_eq!(state.last_failure.unwrap().failure.cause, Cause::DbLoginTimeout);
    assert_eq!(case.probes("db_query", "timeout"), "1");
}

#[tokio::test(start_paused = true)]
async fn a_rejected_login_is_tried_once_a_minute() {
    let case = case(true, |_| {});
    for _ in 0..4 {
        let mut far = case.dial.answer();
        tokio::spawn(async move {
            far.hear(1).await;
            far.say(b"E\0\0\0\x23SFATAL\0C28P01\0Mwrong password\0\0");
            far.hear(usize::MAX).await;
        });
    }
    tokio::time::sleep(Duration::from_secs(120)).await;
    assert_eq!(case.probes("db_login", "rejected"), "3");
}

#[tokio::test(start_paused = true)]
async fn levels_stop_where_they_say() {
    let mut connect = case(true, |probe| probe.level = ProbeLevel::Connect);
    let mut far = connect.dial.answer();
    connect.health(Health::Up).await;
    assert_eq!(far.hear(1).await, b"", "a probe that only connects said something");

    let mut tls = case(true, |probe| {
        probe.level = ProbeLevel::Tls;
        probe.login = None;
        probe.tls.mode = TlsMode::Prefer;
    });
    let mut far = tls.dial.answer();
    tokio::spawn(async move {
        assert_eq!(far.hear(8).await, crate::pgwire::SSL_REQUEST);
        far.say(b"N");
        assert_eq!(far.hear(1).await, b"", "a probe without a login said something");
    });
    tls.health(Health::Up).await;

    let mut off = case(true, |probe| probe.level = ProbeLevel::Off);
    off.health(Health::NotProbed).await;
    assert_eq!(off.dial.seats_taken(), 0);
}

#[tokio::test(start_paused = true)]
async fn only_active_clients_wake_the_database() {
    let mut case = case(true, |probe| probe.when = ProbeWhen::Active);
    case.health(Health::NotProbed).await;
    assert_eq!(case.dial.seats_taken(), 0);
    let far = serve(case.dial.answer(), 1);
    case.database.passed(crate::metrics::Direction::ToDatabase, 10);
    case.health(Health::Up).await;
    far.await.unwrap();
    case.health(Health::NotProbed).await;
}

#[tokio::test(start_paused = true)]
async fn a_missing_secret_is_named_and_says_nothing_of_the_database() {
    let mut case = case(true, |probe| {
        let source = SecretSource::Env("TUNNELKEEPER_TEST_UNSET".to_owned());
        probe.login = Some(login(Some(source)));
    });
    let _far = [case.dial.answer(), case.dial.answer(), case.dial.answer()];
    let failed = |state: &ProbeState| state.last_failure.as_ref().is_some_and(|it| it.last != it.since);
    let state = case.state.wait_for(failed).await.unwrap().clone();
    let failure = state.last_failure.unwrap().failure;
    assert_eq!((failure.cause, state.health), (Cause::CredentialsMissing, Health::Unknown));
    assert!(failure.detail().contains("TUNNELKEEPER_TEST_UNSET is not set"), "{failure}");
}

#[tokio::test(start_paused = true)]
async fn what_is_wrong_before_the_login_is_told_even_where_there_is_none() {
    let mut case = case(true, |probe| {
        probe.login = Some(login(Some(SecretSource::Env("TUNNELKEEPER_TEST_UNSET".to_owned()))));
    });
    for _ in 0..2 {
        case.dial.refuse(Failure::new(Cause::ChannelConnectFailed, "refused"));
    }
    let state = case.health(Health::Down).await;
    assert_eq!(state.last_failure.unwrap().failure.cause, Cause::ChannelConnectFailed);
}

#[tokio::test(start_paused = true)]
async fn a_query_that_takes_too_long_is_cancelled() {
    let mut case = case(true, |_| {});
    let (mut first, mut second) = (case.dial.answer(), case.dial.answer());
    first.hear(1).await;
    first.say(b"R\0\0\0\x08\0\0\0\0K\0\0\0\x0c\0\0\0\x07\x01\x02\x03\x04Z\0\0\0\x05I");
    assert_eq!(first.hear(14).await, b"Q\0\0\0\x0dSELECT 1\0");
    // CancelRequest: its length and code, and what BackendKeyData named.
    assert_eq!(second.hear(16).await, b"\0\0\0\x10\x04\xd2\x16\x2e\0\0\0\x07\x01\x02\x03\x04");
    second.arrive(Arrival::Closed);
    first.arrive(Arrival::Closed);
    let state = case.state.wait_for(|state| state.last_failure.is_some()).await.unwrap().clone();
    assert_eq!(state.last_failure.unwrap().failure.cause, Cause::DbQueryTimeout);
}

/// What a database received.
#[derive(Default)]
struct Received {
    handshakes: AtomicUsize,
    startups: AtomicUsize,
    statements: AtomicUsize,
    /// Of its certificate, which is looked at whenever a probe is made.
    _dir: Option<tempfile::TempDir>,
}

impl Received {
    fn counts(&self) -> [usize; 3] {
        [&self.handshakes, &self.startups, &self.statements].map(|count| count.load(Ordering::SeqCst))
    }
}

/// Plays a database with TLS that lets everybody in and counts what comes.
async fn count(far: FarEnd, acceptor: TlsAcceptor, received: Arc<Received>) -> std::io::Result<()> {
    let mut far = far.into_stream();
    let mut request = [0; 8];
    far.read_exact(&mut request).await?;
    far.write_all(b"S").await?;
    let mut tls = acceptor.accept(far).await?;
    received.handshakes.fetch_add(1, Ordering::SeqCst);
    let len = tls.read_u32().await? as usize;
    received.startups.fetch_add(1, Ordering::SeqCst);
    tls.read_exact(&mut vec![0; len - 4]).await?;
    tls.write_all(LOGGED_IN).await?;
    while tls.read_u8().await? == b'Q' {
        received.statements.fetch_add(1, Ordering::SeqCst);
        let len = tls.read_u32().await? as usize;
        tls.read_exact(&mut vec![0; len - 4]).await?;
        tls.write_all(ANSWERED).await?;
    }
    Ok(())
}

/// A probe of the database that `keys` describe, which a fake one answers.
async fn counted(host: &str, keys: &str) -> (Case, Arc<Received>) {
    let key = KeyPair::generate().unwrap();
    let certificate = CertificateParams::new(vec![host.to_owned()]).unwrap().self_signed(&key).unwrap();
    let config = ServerConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(
            vec![certificate.der().clone()],
            PrivatePkcs8KeyDer::from(key.serialize_der()).into(),
        );
    let acceptor = TlsAcceptor::from(Arc::new(config.unwrap()));
    let dir = tempfile::tempdir().unwrap();
    let [ca, path] = ["ca.pem", "tunnelkeeper.toml"].map(|name| dir.path().join(name));
    std::fs::write(&ca, certificate.pem()).unwrap();
    let text = format!(
        "[bastions.prod]\nhost = \"b\"\nuser = \"u\"\n[databases.analytics]\nbastion = \"prod\"\n\
         host = \"{host}\"\nlisten = \"127.0.0.1:1\"\ntls.ca = {ca:?}\n{keys}\n"
    );
    std::fs::write(&path, text).unwrap();
    std::fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(0o600)).unwrap();
    let uid = std::os::unix::fs::MetadataExt::uid(&std::fs::metadata(&path).unwrap());
    let surroundings = Surroundings { uid, config_option: Some(path), ..Surroundings::default() };
    let settings = crate::settings::load(&surroundings).unwrap();
    let case = case_of(true, Arc::clone(&settings.plan.databases[0]));
    let received = Arc::new(Received { _dir: Some(dir), ..Received::default() });
    for _ in 0..300 {
        tokio::spawn(count(case.dial.answer(), acceptor.clone(), Arc::clone(&received)));
    }
    (case, received)
}

const HOUR: Duration = Duration::from_secs(3600);
const SERVERLESS: &str = "nightly.123456789.us-east-1.redshift-serverless.amazonaws.com";
const ENDPOINT: &str = "ep-cool-sun-1.database.us-east-1.cloud.databricks.com";

#[tokio::test(start_paused = true)]
async fn what_is_billed_or_woken_is_asked_nothing_by_default() {
    let oauth = "method = \"oauth\"\nworkspace = \"https://w\"\nclient_id = { env = \"I\" }\n\
                 client_secret = { env = \"S\" }\nendpoint = \"projects/p/branches/b/endpoints/e\"";
    for (host, keys) in [
        (SERVERLESS, ""),
        (SERVERLESS, "user = \"probe\"\ndatabase = \"dev\""),
        (SERVERLESS, "method = \"iam\"\ndatabase = \"dev\""),
        (ENDPOINT, "user = \"probe\"\ndatabase = \"dev\""),
        (ENDPOINT, oauth),
    ] {
        let (case, received) = counted(host, keys).await;
        tokio::time::sleep(HOUR).await;
        let [handshakes, startups, statements] = received.counts();
        assert!((220..=260).contains(&handshakes), "{host} {keys}: {handshakes}");
        assert_eq!((startups, statements), (0, 0), "{host} {keys}");
        assert_eq!(case.state.borrow().health, Health::Up);
    }
}

#[tokio::test(start_paused = true)]
async fn what_is_billed_or_woken_is_asked_in_so_many_words() {
    for host in [SERVERLESS, ENDPOINT] {
        let (mut case, received) = counted(host, "user = \"probe\"\nprobe = { level = \"query\" }").await;
        tokio::time::sleep(HOUR).await;
        assert_eq!(received.counts(), [0, 0, 0], "it was asked though no client was active");
        assert_eq!(case.state.borrow().health, Health::NotProbed, "what was not probed is not up");
        case.database.passed(crate::metrics::Direction::ToDatabase, 10);
        case.health(Health::Up).await;
        assert_eq!(received.counts(), [1, 1, 1]);
        let always = "user = \"probe\"\nprobe = { level = \"query\", when = \"always\" }";
        let (_case, received) = counted(host, always).await;
        tokio::time::sleep(HOUR).await;
        let [handshakes, startups, statements] = received.counts();
        assert!((220..=260).contains(&statements), "{statements}");
        assert_eq!((handshakes, startups), (6, 6));
    }
}

#[tokio::test(start_paused = true)]
async fn the_end_of_a_certificate_is_known_once_it_was_shown() {
    let (mut case, _received) = counted(SERVERLESS, "").await;
    assert_eq!(case.state.borrow().certificate_expires, None);
    case.health(Health::Up).await;
    // What rcgen gives by default, January 1st 4096.
    let expected = std::time::UNIX_EPOCH + Duration::from_secs(67_090_118_400);
    assert_eq!(case.state.borrow().certificate_expires, Some(expected));
}
