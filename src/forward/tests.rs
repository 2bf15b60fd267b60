mod at_once;
mod many;
mod several;

use std::time::{Duration, Instant};

use bytes::Bytes;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use tokio::net::TcpStream;
use tokio::time::sleep;

use super::*;
use crate::dial::fake::{FakeDial, FarEnd, Sent};
use crate::dial::{Arrival, Ways};
use crate::failure::{Cause, Failure};
use crate::ids::{HostPort, Name, Target};
use crate::lanes::Lanes;
use crate::listener::Claims;
use crate::local::LocalAddress;
use crate::metrics::Metrics;
use crate::pgwire::SSL_REQUEST;
use crate::settings::plan::{
    ForwardPlan, Kind, ListenAt, ListenPlan, ProbeLevel, ProbePlan, ProbeWhen, TlsMode, TlsPlan,
};
use crate::state::{Incident, TunnelState};

const STARTUP: &[u8] = b"\0\0\0\x11\0\x03\0\0user\0me\0\0";
const READY: &[u8] = b"Z\0\0\0\x05I";

fn plan(bastions: &[&str], forward: ForwardPlan) -> Arc<DatabasePlan> {
    let name = |text| Name::parse(text).unwrap();
    let second = Duration::from_secs(1);
    Arc::new(DatabasePlan {
        name: name("analytics"),
        bastions: bastions.iter().map(|bastion| name(bastion)).collect(),
        kind: Kind::Postgres,
        target: Target::Tcp(HostPort::new("db", 5432)),
        forward,
        probe: ProbePlan {
            level: ProbeLevel::Off,
            when: ProbeWhen::Always,
            interval: second,
            timeout: second,
            failures: 2,
            fresh_login: second,
            query: "SELECT 1".to_owned(),
            login: None,
            tls: TlsPlan { mode: TlsMode::Prefer, ca: None, allow_unverified: false },
        },
    })
}

/// What the process has room for.
const ROOM: usize = 3;

fn usual() -> ForwardPlan {
    ForwardPlan {
        listen: ListenPlan {
            at: vec![ListenAt::Address(LocalAddress::Tcp("127.0.0.1:0".parse().unwrap()))],
            socket_mode: 0o660,
            socket_group: None,
            allow_remote_clients: false,
        },
        hold_timeout: Duration::from_secs(30),
        hold_max: 500,
        max_clients: 1000,
        idle_timeout: None,
        stall_timeout: Duration::from_secs(60),
    }
}

struct Case {
    dial: FakeDial,
    /// The second bastion's, which is down unless a test has it up.
    second: FakeDial,
    changes: watch::Sender<Arc<Route<FakeDial>>>,
    state: watch::Receiver<ForwardState>,
    metrics: Metrics,
    claims: watch::Sender<Vec<Arc<Claim>>>,
    drain: CancellationToken,
    cut: CancellationToken,
    life: tokio::task::JoinHandle<()>,
}

impl Case {
    fn new(up: bool, forward: ForwardPlan) -> Self {
        Self::behind(&["prod"], up, forward)
    }

    fn behind(bastions: &[&str], up: bool, forward: ForwardPlan) -> Self {
        let dial = FakeDial::new(up);
        let metrics = Metrics::new().unwrap();
        let (drain, cut) = (CancellationToken::new(), CancellationToken::new());
        let plan = plan(bastions, forward);
        let second = FakeDial::new(false);
        let dials = [dial.clone(), second.clone()];
        let ways = Ways::new(plan.bastions.iter().cloned().zip(dials).collect());
        let (changes, route) = watch::channel(Arc::new(Route { plan: Arc::clone(&plan), ways }));
        let (claims, staked) = watch::channel(Claims::default().stake(&plan.forward.listen).unwrap());
        let (state, unit) = new(Parts {
            claims: staked,
            route,
            metrics: Arc::new(metrics.database(&plan.name, &plan.bastions)),
            sockets: Arc::default(),
            room: Room::new(ROOM),
            drain: drain.clone(),
            cut: cut.clone(),
        });
        let life = tokio::spawn(async move { unit.run().await });
        Self { dial, second, changes, state, metrics, claims, drain, cut, life }
    }

    /// Another configuration.
    fn change(&self, change: impl FnOnce(&mut DatabasePlan)) {
        let Route { mut plan, ways } = Route::clone(&self.changes.borrow());
        change(Arc::make_mut(&mut plan));
        self.changes.send_replace(Arc::new(Route { plan, ways }));
    }

    async fn connect(&self) -> TcpStream {
        let address = self.state.borrow().listening[0].tcp().unwrap();
        TcpStream::connect(address).await.unwrap()
    }

    async fn held(&self, count: usize) {
        eventually(|| self.state.borrow().clients.held() == count).await;
    }

    /// The value of a counter with this label, from the exposition.
    fn counted(&self, series: &str) -> String {
        let nothing = crate::board::Board::default().snapshot();
        let text = self.metrics.exposition(&nothing).unwrap();
        let line = text.lines().find(|line| line.starts_with(&format!("tunnelkeeper_{series} ")));
        line.unwrap_or_else(|| panic!("no {series} in\n{text}")).rsplit(' ').next().unwrap().to_owned()
    }

    async fn outcome(&self, outcome: &str) {
        let series = format!("client_connections_total{{database=\"analytics\",outcome=\"{outcome}\"}}");
        eventually(|| self.counted(&series) == "1").await;
    }
}

async fn eventually(mut condition: impl FnMut() -> bool) {
    let patience = Instant::now() + Duration::from_secs(10);
    while !condition() {
        assert!(Instant::now() < patience, "it never came true");
        sleep(Duration::from_millis(2)).await;
    }
}

async fn rest(client: &mut TcpStream) -> std::io::Result<Vec<u8>> {
    let mut read = Vec::new();
    client.read_to_end(&mut read).await.map(|_| read)
}

/// The text of the fatal error with which a client was refused, and its code.
fn fatal_text(bytes: &[u8]) -> (String, String) {
    assert_eq!(bytes.first(), Some(&b'E'), "{bytes:?}");
    let fields: Vec<String> =
        bytes[5..].split(|byte| *byte == 0).map(|field| String::from_utf8(field.to_vec()).unwrap()).collect();
    let field = |kind: char| fields.iter().find_map(|field| field.strip_prefix(kind)).unwrap().to_owned();
    (field('C'), field('M'))
}

fn lost() -> Arrival {
    Arrival::Lost(Failure::new(Cause::SessionReset, "the connection broke"))
}

async fn begin(client: &mut TcpStream, far: &mut FarEnd) {
    client.write_all(STARTUP).await.unwrap();
    assert_eq!(far.hear(STARTUP.len()).await, STARTUP);
    far.say(READY);
    let mut ready = [0; 6];
    client.read_exact(&mut ready).await.unwrap();
}

#[tokio::test]
async fn a_client_is_held_and_then_carried_with_what_it_sent() {
    let case = Case::new(false, usual());
    let mut far = case.dial.answer();
    let mut client = case.connect().await;
    client.write_all(&SSL_REQUEST).await.unwrap();
    case.held(1).await;
    case.dial.set_up(true);
    assert_eq!(far.hear(8).await, SSL_REQUEST);
    case.held(0).await;
    far.say(b"N");
    assert_eq!(client.read_u8().await.unwrap(), b'N');
    drop(client);
    assert_eq!(far.sent.recv().await, Some(Sent::End));
    far.arrive(Arrival::Closed);
    eventually(|| case.state.borrow().clients.is_empty() && case.dial.seats_taken() == 0).await;
    case.outcome("carried").await;
}

#[tokio::test]
async fn a_held_client_that_leaves_frees_its_place() {
    let case = Case::new(false, usual());
    let mut client = case.connect().await;
    client.write_all(&SSL_REQUEST).await.unwrap();
    case.held(1).await;
    drop(client);
    case.held(0).await;
    case.outcome("gone").await;
}

#[tokio::test]
async fn clients_are_accepted_where_their_session_lives() {
    let lanes = Lanes::start(2).unwrap();
    let (one, other) = (lanes.lease().unwrap(), lanes.lease().unwrap());
    let case = Case::new(true, usual());
    let mut early = case.connect().await;
    let mut far_of_early = case.dial.answer();
    early.write_all(b"early").await.unwrap();
    assert_eq!(far_of_early.hear(5).await, b"early");
    for lane in [&one, &other] {
        case.dial.move_to(lane.handle.clone());
        // It need not have moved by the time that the first one comes, but each is served.
        let until = Instant::now() + Duration::from_secs(10);
        while case.dial.asked_on() != Some(lane.handle.id()) {
            assert!(Instant::now() < until, "clients are still accepted elsewhere");
            let mut far = case.dial.answer();
            let mut client = case.connect().await;
            client.write_all(b"late").await.unwrap();
            assert_eq!(far.hear(4).await, b"late");
            drop(client);
            far.arrive(Arrival::Closed);
            eventually(|| case.state.borrow().clients.len() == 1).await;
        }
    }
    far_of_early.say(b"still here");
    let mut heard = [0; 10];
    early.read_exact(&mut heard).await.unwrap();
    assert_eq!(&heard, b"still here");
    case.drain.cancel();
    eventually(|| !case.state.borrow().accepting).await;
    case.cut.cancel();
    case.life.await.unwrap();
}

#[tokio::test]
async fn a_client_held_in_vain_is_told_why() {
    let case = Case::new(false, ForwardPlan { hold_timeout: Duration::from_millis(50), ..usual() });
    let mut incident = None;
    Incident::record(&mut incident, Failure::new(Cause::TcpRefused, "nobody listens"), now());
    case.dial.publish(TunnelState {
        down_since: Some(now()),
        last_failure: incident,
        ..TunnelState::default()
    });
    for first in [&SSL_REQUEST[..], b""] {
        let mut client = case.connect().await;
        client.write_all(first).await.unwrap();
        if !first.is_empty() {
            assert_eq!(client.read_u8().await.unwrap(), b'N');
        }
        client.write_all(STARTUP).await.unwrap();
        let (code, text) = fatal_text(&rest(&mut client).await.unwrap());
        assert_eq!(code, "57P03");
        for part in ["\"analytics\"", "\"prod\" is down since 20", "tcp refused: nobody listens"] {
            assert!(text.contains(part), "{part} not in {text}");
        }
    }
    let vain = case.counted("client_connections_total{database=\"analytics\",outcome=\"hold_timeout\"}");
    assert_eq!(vain, "2");
}

#[tokio::test]
async fn a_client_that_speaks_another_language_is_just_closed() {
    let case = Case::new(false, ForwardPlan { hold_timeout: Duration::ZERO, ..usual() });
    for first in [&b"GET / HTTP/1.1\r\n\r\n"[..], b"\x16\x03\x01\x02", &SSL_REQUEST[..4]] {
        let mut client = case.connect().await;
        client.write_all(first).await.unwrap();
        client.shutdown().await.unwrap();
        assert_eq!(rest(&mut client).await.unwrap_or_default(), b"", "{first:?}");
    }
}

#[tokio::test]
async fn while_the_bastion_refuses_us_nobody_waits() {
    let case = Case::new(false, usual());
    let mut client = case.connect().await;
    client.write_all(STARTUP).await.unwrap();
    case.held(1).await;
    case.dial.publish(TunnelState { refusing: true, ..TunnelState::default() });
    let (code, _) = fatal_text(&rest(&mut client).await.unwrap());
    assert_eq!(code, "57P03");
    case.outcome("refused").await;
}

#[tokio::test]
async fn limits_are_said() {
    let case = Case::new(false, ForwardPlan { hold_max: 1, max_clients: 2, ..usual() });
    let first = case.connect().await;
    case.held(1).await;
    let mut second = case.connect().await;
    second.write_all(STARTUP).await.unwrap();
    let (code, text) = fatal_text(&rest(&mut second).await.unwrap());
    assert!(code == "57P03" && text.contains("(hold.max)"), "{code} {text}");
    eventually(|| case.state.borrow().clients.len() == 1).await;
    case.dial.set_up(true);
    case.held(0).await;
    let _third = case.connect().await;
    eventually(|| case.state.borrow().clients.len() == 2).await;
    let mut fourth = case.connect().await;
    fourth.write_all(STARTUP).await.unwrap();
    let (code, text) = fatal_text(&rest(&mut fourth).await.unwrap());
    assert!(code == "53300" && text.contains("(max_clients)"), "{code} {text}");
    drop(first);
}

#[tokio::test]
async fn so_is_the_limit_of_the_process() {
    let case = Case::new(false, usual());
    let mut room = Vec::new();
    for taken in 1..=ROOM {
        room.push(case.connect().await);
        case.held(taken).await;
    }
    let mut beyond = case.connect().await;
    beyond.write_all(STARTUP).await.unwrap();
    let (code, text) = fatal_text(&rest(&mut beyond).await.unwrap());
    assert!(code == "53300" && text.contains("LimitNOFILE"), "{code} {text}");
    drop(room.pop());
    case.held(ROOM - 1).await;
    room.push(case.connect().await);
    case.held(ROOM).await;
}

#[tokio::test]
async fn a_session_lost_before_an_answer_is_replaced_unseen() {
    let case = Case::new(true, usual());
    let (mut first, mut second) = (case.dial.answer(), case.dial.answer());
    let mut client = case.connect().await;
    client.write_all(&SSL_REQUEST).await.unwrap();
    assert_eq!(first.hear(8).await, SSL_REQUEST);
    first.arrive(lost());
    assert_eq!(second.hear(8).await, SSL_REQUEST);
    second.say(b"N");
    assert_eq!(client.read_u8().await.unwrap(), b'N');
    case.outcome("carried").await;
    assert_eq!(case.counted("clients_cut_total{database=\"analytics\",reason=\"reset\"}"), "0");
}

#[tokio::test]
async fn a_lost_session_cuts_its_clients() {
    let case = Case::new(true, usual());
    // Between messages a plain client is told.
    let mut far = case.dial.answer();
    let mut client = case.connect().await;
    begin(&mut client, &mut far).await;
    far.arrive(lost());
    let (code, text) = fatal_text(&rest(&mut client).await.unwrap());
    assert_eq!(code, "57P01");
    assert!(text.contains("\"analytics\" was cut: session reset: the connection broke"), "{text}");
    // Within a message, or encrypted, it is reset and never closed as if complete.
    let mut far = case.dial.answer();
    let mut client = case.connect().await;
    begin(&mut client, &mut far).await;
    far.say(b"D\0\0\x10\0half a row");
    let mut half = [0; 15];
    client.read_exact(&mut half).await.unwrap();
    far.arrive(lost());
    assert_eq!(rest(&mut client).await.unwrap_err().kind(), std::io::ErrorKind::ConnectionReset);
    let mut far = case.dial.answer();
    let mut client = case.connect().await;
    client.write_all(&SSL_REQUEST).await.unwrap();
    far.hear(8).await;
    far.say(b"S");
    client.read_u8().await.unwrap();
    far.arrive(lost());
    assert_eq!(rest(&mut client).await.unwrap_err().kind(), std::io::ErrorKind::ConnectionReset);
    assert_eq!(case.counted("clients_cut_total{database=\"analytics\",reason=\"reset\"}"), "3");
    assert_eq!(case.counted("client_startups_total{database=\"analytics\",encryption=\"tls\"}"), "1");
    assert_eq!(case.counted("client_startups_total{database=\"analytics\",encryption=\"plain\"}"), "2");
}

#[tokio::test]
async fn a_database_that_is_not_reached_is_tried_again_until_the_hold_ends() {
    let case = Case::new(true, ForwardPlan { hold_timeout: Duration::from_millis(400), ..usual() });
    for _ in 0..10 {
        case.dial.refuse(Failure::new(Cause::ChannelConnectFailed, "\"Connection refused\""));
    }
    case.dial.publish(TunnelState { uptime: up(), ..TunnelState::default() });
    let mut client = case.connect().await;
    client.write_all(STARTUP).await.unwrap();
    let (code, text) = fatal_text(&rest(&mut client).await.unwrap());
    assert_eq!(code, "57P03");
    assert!(
        text.contains("through bastion \"prod\": channel connect_failed: \"Connection refused\""),
        "{text}"
    );
    case.outcome("open_failed").await;
    let tried = case
        .counted("channel_failures_total{bastion=\"prod\",database=\"analytics\",reason=\"connect_failed\"}");
    assert_eq!(tried, "2", "at once and after 0.25 s");
    assert_eq!(case.state.borrow().last_failure.as_ref().unwrap().failure.cause, Cause::ChannelConnectFailed);
    assert_eq!(case.dial.doubts(), 0);
}

#[tokio::test]
async fn a_held_client_stays_held_through_a_change_that_lowers_the_limits() {
    let case = Case::new(false, ForwardPlan { hold_max: 1, ..usual() });
    let _client = case.connect().await;
    case.held(1).await;
    case.change(|plan| plan.forward.hold_max = 0);
    let mut second = case.connect().await;
    second.write_all(STARTUP).await.unwrap();
    let (_, text) = fatal_text(&rest(&mut second).await.unwrap());
    assert!(text.contains("(hold.max)"), "{text}");
    case.held(1).await;
}

#[tokio::test]
async fn an_idle_client_is_ended_by_a_limit_that_comes_later() {
    let case = Case::new(true, usual());
    let mut far = case.dial.answer();
    let mut client = case.connect().await;
    begin(&mut client, &mut far).await;
    case.change(|plan| plan.forward.idle_timeout = Some(Duration::from_millis(50)));
    let (code, text) = fatal_text(&rest(&mut client).await.unwrap());
    assert!(code == "57P05" && text.contains("client idle"), "{code} {text}");
}

#[tokio::test]
async fn an_open_that_got_no_answer_is_tried_elsewhere_at_once() {
    let case = Case::new(true, usual());
    case.dial.refuse(Failure::new(Cause::ChannelTimeout, "no answer"));
    let mut far = case.dial.answer();
    let mut client = case.connect().await;
    begin(&mut client, &mut far).await;
    assert_eq!(case.dial.doubts(), 1);
}

#[tokio::test]
async fn draining_waits_for_clients_and_cutting_ends_them() {
    let case = Case::new(true, usual());
    let mut far = case.dial.answer();
    let mut client = case.connect().await;
    begin(&mut client, &mut far).await;
    let address = case.state.borrow().listening[0].tcp().unwrap();
    case.claims.send_replace(Vec::new());
    case.drain.cancel();
    eventually(|| !case.state.borrow().accepting).await;
    let refused = TcpStream::connect(address).await;
    assert!(refused.is_err(), "a new client was accepted");
    client.write_all(b"Q\0\0\0\x06;\0").await.unwrap();
    assert_eq!(far.hear(7).await, b"Q\0\0\0\x06;\0");
    assert!(!case.life.is_finished());
    case.cut.cancel();
    let (code, text) = fatal_text(&rest(&mut client).await.unwrap());
    assert!(code == "57P01" && text.contains("client drained"), "{code} {text}");
    drop(client);
    case.life.await.unwrap();
}

#[tokio::test]
async fn whoever_is_connected_when_it_drains_is_served() {
    let case = Case::new(true, usual());
    let mut far = case.dial.answer();
    let mut first = case.connect().await;
    begin(&mut first, &mut far).await;
    let mut far = case.dial.answer();
    let address = case.state.borrow().listening[0].tcp().unwrap();
    // It has to wait: there is one thread, and this is on it.
    let waiting = std::net::TcpStream::connect(address).unwrap();
    case.claims.send_replace(Vec::new());
    case.drain.cancel();
    waiting.set_nonblocking(true).unwrap();
    let mut second = TcpStream::from_std(waiting).unwrap();
    begin(&mut second, &mut far).await;
    assert!(TcpStream::connect(address).await.is_err(), "a new client was accepted");
}

#[tokio::test]
async fn results_are_whole_when_the_database_closes_first() {
    let case = Case::new(true, usual());
    let mut far = case.dial.answer();
    let mut client = case.connect().await;
    begin(&mut client, &mut far).await;
    let big = Bytes::from(vec![7; 8 << 20]);
    far.arrive(Arrival::Data(big.clone()));
    far.arrive(Arrival::End);
    far.arrive(Arrival::Closed);
    // The client still talks while the result is under way, which must not destroy it.
    client.write_all(b"X\0\0\0\x04").await.unwrap();
    sleep(Duration::from_millis(100)).await;
    assert_eq!(rest(&mut client).await.unwrap().len(), big.len());
}
fn up() -> crate::state::Uptime {
    let mut uptime = crate::state::Uptime::default();
    uptime.set(true, now());
    uptime
}
