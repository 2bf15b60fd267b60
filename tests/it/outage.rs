//! An outage of the bastion refuses no job.

use std::net::TcpStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant, SystemTime};

use crate::support::client::{Job, connect, job};
use crate::support::{Bastion, Daemon, PATIENCE, Postgres, eventually, free_port, runtime, tunnel};

#[test]
fn sshd_killed_and_started_again_under_a_stream_of_clients() {
    let (mut bastion, daemon) =
        tunnel("sessions = { max = 1 }\n", &Postgres::shared().section("analytics", "prod"));
    let address = daemon.address("analytics");
    let runtime = runtime();

    // One client runs a query that would take for ever.
    let running = runtime.block_on(connect(address)).unwrap();
    let (told, cut) = std::sync::mpsc::channel();
    runtime.spawn(async move {
        let result = running.batch_execute("SELECT pg_sleep(3600)").await;
        told.send((Instant::now(), result.map_err(|error| format!("{error:?}")))).unwrap();
    });
    eventually("the query runs", || {
        let running = "SELECT count(*) FROM pg_stat_activity WHERE query = 'SELECT pg_sleep(3600)'";
        (Postgres::shared().sql("postgres", running) == "1").then_some(())
    });

    // A client every 50 ms, each with a question.
    let stop = Arc::new(AtomicBool::new(false));
    let clients = runtime.spawn({
        let stop = Arc::clone(&stop);
        async move {
            let mut asked = Vec::new();
            while !stop.load(Ordering::SeqCst) {
                asked.push(tokio::spawn(job(address)));
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
            asked
        }
    });
    let before = daemon.metric("client_connections_total{database=\"analytics\",outcome=\"carried\"}");
    eventually("the stream flows", || {
        let carried = daemon.metric("client_connections_total{database=\"analytics\",outcome=\"carried\"}");
        (carried > before + 10.0).then_some(())
    });

    bastion.kill();
    let killed = Instant::now();
    let (cut_at, result) = cut.recv_timeout(PATIENCE).unwrap();
    assert!(result.is_err(), "the query that was cut ended as if complete");
    assert!(cut_at - killed < Duration::from_secs(1), "it was cut after {:?}", cut_at - killed);
    daemon.wait_down("prod");
    assert_eq!(daemon.metric("tunnel_up{bastion=\"prod\"}"), 0.0);
    eventually("clients are held", || {
        (daemon.metric("clients_held{database=\"analytics\"}") > 5.0).then_some(())
    });
    std::thread::sleep(Duration::from_secs(3).saturating_sub(killed.elapsed()));
    bastion.start_again();
    daemon.wait_up("prod");
    assert_eq!(daemon.metric("tunnel_up{bastion=\"prod\"}"), 1.0);
    eventually("nobody is held", || {
        (daemon.metric("clients_held{database=\"analytics\"}") == 0.0).then_some(())
    });
    stop.store(true, Ordering::SeqCst);

    let asked = runtime.block_on(clients).unwrap();
    let count = asked.len();
    let jobs: Vec<Job> = asked.into_iter().map(|job| runtime.block_on(job).unwrap()).collect();
    let unanswered: Vec<&Job> = jobs.iter().filter(|job| matches!(job, Job::Unanswered(_))).collect();
    assert!(unanswered.is_empty(), "of {count}: {unanswered:?}");
    // Those that were in the middle of their conversation when the bastion died.
    let cut = jobs.iter().filter(|job| matches!(job, Job::CutAfterAnswer(_))).count();
    assert!(count > 60 && cut <= 3, "{cut} of {count} were cut");

    let metrics = daemon.metrics();
    let losses: Vec<(&String, &f64)> = metrics
        .iter()
        .filter(|(series, value)| series.starts_with("session_losses_total") && **value > 0.0)
        .collect();
    assert_eq!(losses.len(), 1, "{losses:?}");
    assert_eq!(*losses[0].1, 1.0, "{losses:?}");
    let reasons = ["closed_by_bastion", "reset"];
    assert!(reasons.iter().any(|reason| losses[0].0.contains(reason)), "{losses:?}");
    for outcome in ["hold_timeout", "refused", "limit", "gone", "open_failed"] {
        assert_eq!(
            metrics[&format!("client_connections_total{{database=\"analytics\",outcome=\"{outcome}\"}}")],
            0.0
        );
    }
    // The oldest is the long query's; a job of the stream may have been about to leave, and nobody is known who has left.
    let event = eventually("the log says whose query was cut", || {
        let oldest = daemon.events("client cut").into_iter().max_by_key(|event| event["age_s"].as_u64());
        oldest.filter(|event| event["activity"] == "in a query")
    });
    assert_eq!((&event["database"], &event["level"]), (&"analytics".into(), &"WARN".into()), "{event}");
    assert_eq!(event["user"], whoami(), "{event}");
}

#[test]
fn what_kept_a_tunnel_from_growing_does_not_keep_it_down() {
    let (bastion, daemon) = tunnel("", &Postgres::shared().section("analytics", "prod"));
    let authorized = std::fs::read_to_string(bastion.path("authorized_keys")).unwrap();
    bastion.authorize("");
    let (address, runtime) = (daemon.address("analytics"), runtime());
    let _clients: Vec<_> = (0..2).map(|_| runtime.block_on(connect(address)).unwrap()).collect();
    let refused = "session_failures_total{bastion=\"prod\",phase=\"auth\",reason=\"rejected\"}";
    // Each new client finds no empty session, so that one more is dialled.
    eventually("the bastion has refused to let another session in, as often as is tried", || {
        assert_eq!(runtime.block_on(job(address)), Job::Done);
        (daemon.metric(refused) >= 3.0).then_some(())
    });
    assert!(daemon.bastion("prod")["up"].as_bool().unwrap());
    bastion.authorize(authorized.trim());
    bastion.kill_sessions();
    eventually("the session is lost", || {
        (daemon.metric("session_losses_total{bastion=\"prod\",reason=\"closed_by_bastion\"}")
            + daemon.metric("session_losses_total{bastion=\"prod\",reason=\"reset\"}")
            >= 1.0)
            .then_some(())
    });
    assert_eq!(runtime.block_on(job(address)), Job::Done);
}

/// A database that takes no connection and refuses none, as behind a security group: its queue is full.
pub struct Swallower {
    _listener: socket2::Socket,
    _queued: Vec<socket2::Socket>,
    pub port: u16,
}

impl Swallower {
    pub fn start() -> Self {
        use socket2::{Domain, SockAddr, Socket, Type};
        let listener = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
        let any: std::net::SocketAddr = "127.0.0.1:0".parse().unwrap();
        listener.bind(&SockAddr::from(any)).unwrap();
        listener.listen(0).unwrap();
        let address = listener.local_addr().unwrap();
        let queue = || {
            let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
            socket.set_nonblocking(true).unwrap();
            let _ = socket.connect(&address);
            socket
        };
        let port = address.as_socket().unwrap().port();
        Self { _listener: listener, _queued: (0..4).map(|_| queue()).collect(), port }
    }

    /// Connections that are still being made to it.
    pub fn attempts(&self) -> usize {
        let table = std::fs::read_to_string("/proc/net/tcp").unwrap();
        let to = format!("0100007F:{:04X} 02 ", self.port);
        table.lines().filter(|line| line.contains(&to)).count()
    }
}

#[test]
fn a_database_that_swallows_every_attempt_is_not_drowned_in_them() {
    let bastion = Bastion::start();
    let swallower = Swallower::start();
    let before = swallower.attempts();
    let database = Postgres::shared().unprobed_section("analytics", "prod");
    let database = database
        .replace(&format!("port = {}", Postgres::shared().port), &format!("port = {}", swallower.port));
    let daemon = Daemon::start(&format!(
        "{}open_timeout = \"500ms\"\n{database}hold = {{ timeout = \"6s\" }}\n",
        bastion.section("prod", bastion.port)
    ));
    daemon.wait_up("prod");
    let address = daemon.address("analytics");
    let runtime = runtime();
    let jobs: Vec<_> = (0..30).map(|_| runtime.spawn(job(address))).collect();
    let mut most = 0;
    for asked in jobs {
        while !asked.is_finished() {
            most = most.max(swallower.attempts() - before);
            std::thread::sleep(Duration::from_millis(20));
        }
        let Job::Unanswered(error) = runtime.block_on(asked).unwrap() else { panic!("it was answered") };
        assert!(error.contains("channel timeout"), "{error}");
    }
    // Each client's first attempt, and those of four at a time in the six seconds (and a little more on a busy
    // machine) afterwards; every client for itself would make 300.
    assert!(most <= 30 + 4 * 20, "{most} attempts at a time");
    let failed = "client_connections_total{database=\"analytics\",outcome=\"open_failed\"}";
    assert_eq!(daemon.metric(failed), 30.0);
    // Who leaves meanwhile is noticed.
    drop(TcpStream::connect(address).unwrap());
    eventually("nobody is there", || {
        let database = daemon.database("analytics");
        (database["clients_active"] == 0 && database["clients_held"] == 0).then_some(())
    });
}

#[test]
fn when_a_bastion_is_tried_again_is_shown_as_clients_come_and_leave() {
    let bastion = Bastion::start();
    let database = Postgres::shared().unprobed_section("analytics", "prod");
    let daemon = Daemon::start(&format!("{}{database}", bastion.section("prod", free_port())));
    let next_attempt_in = || {
        let next = daemon.bastion("prod")["next_attempt"].as_str()?.to_owned();
        humantime::parse_rfc3339(&next).unwrap().duration_since(SystemTime::now()).ok()
    };
    let is_far = || next_attempt_in().filter(|wait| *wait > Duration::from_secs(4));
    let next = eventually("nobody waits", is_far);
    let client = TcpStream::connect(daemon.address("analytics")).unwrap();
    eventually("it is tried for a client", || next_attempt_in().filter(|wait| wait.as_secs() < 1));
    assert!(is_far().is_none(), "it was to be tried in {next:?}");
    drop(client);
    eventually("nobody waits any more", is_far);
}

/// Who runs this test, and so its clients.
fn whoami() -> String {
    nix::unistd::User::from_uid(nix::unistd::geteuid()).unwrap().unwrap().name
}
