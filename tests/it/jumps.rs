//! Bastions behind bastions.

use std::io::Write;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use crate::outage::Swallower;
use crate::stalled::{ROW, ROWS, Reader};
use crate::support::client::{Job, job};
use crate::support::daemon::run;
use crate::support::{Bastion, Daemon, Fault, Postgres, Relay, eventually, runtime};

/// Three sshds one behind the other, and a fourth beside the last one: `edge`, `middle`, `prod`, `side`.
struct Chain {
    edge: Bastion,
    middle: Bastion,
    prod: Bastion,
    side: Bastion,
}

impl Chain {
    fn start() -> Self {
        let start = Bastion::start;
        Self { edge: start(), middle: start(), prod: start(), side: start() }
    }

    fn config(&self, edge_port: u16, keys: &str) -> String {
        let through = |bastion: &Bastion, name: &str, jump: &str| {
            format!("{}jump = \"{jump}\"\n{keys}", bastion.section(name, bastion.port))
        };
        format!(
            "{}{}{}{}{}{}",
            self.edge.section("edge", edge_port),
            through(&self.middle, "middle", "edge"),
            through(&self.prod, "prod", "middle"),
            through(&self.side, "side", "edge"),
            Postgres::shared().section("far", "prod"),
            Postgres::shared().section("near", "side"),
        )
    }
}

fn trouble(daemon: &Daemon, bastion: &str) -> (String, String) {
    let failure = daemon.bastion(bastion)["last_failure"].clone();
    let word = |key: &str| failure[key].as_str().unwrap_or_default().to_owned();
    (format!("{} {}", word("phase"), word("reason")), word("detail"))
}

#[test]
fn a_chain_whose_middle_is_killed_under_load() {
    let mut chain = Chain::start();
    let daemon = Daemon::start(&chain.config(chain.edge.port, ""));
    for bastion in ["edge", "middle", "prod", "side"] {
        daemon.wait_up(bastion);
    }
    let runtime = runtime();
    assert_eq!(runtime.block_on(job(daemon.address("far"))), Job::Done);
    let edge = daemon.bastion("edge");
    let sessions = edge["sessions"].as_array().unwrap().len();
    assert!(sessions >= 2, "one for each session behind it: {edge}");

    let (stop, done) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
    let load = |address| {
        let (stop, done) = (Arc::clone(&stop), Arc::clone(&done));
        runtime.spawn(async move {
            while !stop.load(Ordering::SeqCst) {
                assert!(!matches!(job(address).await, Job::Unanswered(_)));
                done.fetch_add(1, Ordering::SeqCst);
            }
        })
    };
    let (far, near) = (load(daemon.address("far")), load(daemon.address("near")));
    eventually("jobs are under way", || (done.load(Ordering::SeqCst) > 10).then_some(()));
    chain.middle.kill();
    daemon.wait_down("prod");
    daemon.wait_down("middle");
    eventually("the middle is named", || {
        let at_middle = |bastion: &str| {
            let (cause, detail) = trouble(&daemon, bastion);
            cause == "channel connect_failed" && detail.starts_with("at the jump \"middle\": ")
        };
        (at_middle("prod") && at_middle("middle")).then_some(())
    });
    let up = |bastion: &str| daemon.metric(&format!("tunnel_up{{bastion=\"{bastion}\"}}"));
    assert_eq!((up("edge"), up("middle"), up("prod"), up("side")), (1.0, 0.0, 0.0, 1.0));
    assert!(
        daemon
            .metric("session_failures_total{bastion=\"middle\",phase=\"channel\",reason=\"connect_failed\"}")
            >= 1.0
    );
    let before = done.load(Ordering::SeqCst);
    eventually("the other path serves", || (done.load(Ordering::SeqCst) > before + 20).then_some(()));

    chain.middle.start_again();
    daemon.wait_up("prod");
    daemon.wait_up("middle");
    stop.store(true, Ordering::SeqCst);
    runtime.block_on(async { tokio::try_join!(far, near) }).unwrap();
    let metrics = daemon.metrics();
    assert!(metrics["session_losses_total{bastion=\"middle\",reason=\"closed_by_bastion\"}"] >= 1.0);
    assert_eq!(metrics["session_losses_total{bastion=\"edge\",reason=\"closed_by_bastion\"}"], 0.0);
    assert_eq!(metrics["session_losses_total{bastion=\"side\",reason=\"closed_by_bastion\"}"], 0.0);
}

#[test]
fn a_stalled_client_on_one_path_leaves_the_others() {
    let chain = Chain::start();
    let daemon = Daemon::start(&chain.config(chain.edge.port, "sessions = { max = 1 }\n"));
    daemon.wait_up("prod");
    daemon.wait_up("side");
    let runtime = runtime();
    let before = daemon.memory_kb("VmRSS");
    let reader = Reader::ask(daemon.address("far"));
    eventually("the gate shuts", || {
        (!daemon.bastion("prod")["sessions"][0]["gate_open"].as_bool().unwrap()).then_some(())
    });
    for _ in 0..20 {
        assert_eq!(runtime.block_on(job(daemon.address("near"))), Job::Done);
    }
    let grown = daemon.memory_kb("VmRSS").saturating_sub(before);
    assert!(grown < 120 << 10, "{grown} kB for one client that does not read");
    assert_eq!(reader.read().unwrap(), ROWS * (ROW - 1));
    for (series, value) in daemon.metrics() {
        assert!(!series.starts_with("session_losses_total") || value == 0.0, "{series} {value}");
    }
}

/// A daemon that soon gives up what is silent behind the relay.
fn start_impatient() -> (Chain, Relay, Daemon) {
    let chain = Chain::start();
    let relay = Relay::before(chain.edge.port);
    let keys = "keepalive_interval = \"1s\"\nkeepalive_timeout = \"12s\"\n";
    let daemon = Daemon::start(&chain.config(relay.port, keys));
    daemon.wait_up("prod");
    daemon.wait_up("side");
    (chain, relay, daemon)
}

#[test]
fn a_jump_that_falls_silent_is_the_one_that_is_blamed() {
    let (_chain, relay, daemon) = start_impatient();
    relay.set(Fault::Silence);
    for bastion in ["edge", "middle", "prod", "side"] {
        daemon.wait_down(bastion);
    }
    let lost = |bastion: &str| {
        let series = format!("session_losses_total{{bastion=\"{bastion}\",reason=\"keepalive_timeout\"}}");
        daemon.metric(&series)
    };
    eventually("the session is given up", || (lost("prod") >= 1.0).then_some(()));
    let event = daemon.wait_event("session lost");
    assert!(event["detail"].as_str().unwrap().ends_with(", nor from its jump \"edge\""), "{event}");
    relay.set(Fault::None);
    daemon.wait_up("prod");
}

#[test]
fn of_a_session_that_is_given_up_nothing_is_left_at_its_jumps() {
    let (_chain, relay, daemon) = start_impatient();
    // The connections look well to the kernel, and nothing is answered.
    relay.set(Fault::SilenceOld);
    for bastion in ["prod", "side"] {
        let series = format!("session_losses_total{{bastion=\"{bastion}\",reason=\"keepalive_timeout\"}}");
        eventually("the session is given up", || (daemon.metric(&series) >= 1.0).then_some(()));
    }
    eventually("only the new ones have a connection", || {
        let sessions = daemon.bastion("edge")["sessions"].as_array().unwrap().len();
        (sessions >= 2 && sessions == connections_to(relay.port)).then_some(())
    });
}

/// Connections to a port of this machine that nobody has closed.
fn connections_to(port: u16) -> usize {
    let table = std::fs::read_to_string("/proc/net/tcp").unwrap();
    let (to, established) = (format!("0100007F:{port:04X}"), "01");
    let columns = table.lines().map(|line| line.split_ascii_whitespace().collect::<Vec<_>>());
    columns.filter(|columns| columns[2] == to && columns[3] == established).count()
}

#[test]
fn a_jump_that_forbids_the_way_is_named_with_the_remedy() {
    let edge = Bastion::with("AllowTcpForwarding no");
    let prod = Bastion::start();
    let daemon = Daemon::start(&format!(
        "{}{}jump = \"edge\"\n{}",
        edge.section("edge", edge.port),
        prod.section("prod", prod.port),
        Postgres::shared().unprobed_section("analytics", "prod")
    ));
    let event = daemon.wait_event("bastion not reached");
    assert_eq!((&event["phase"], &event["reason"]), (&"channel".into(), &"prohibited".into()), "{event}");
    assert!(event["hint"].as_str().unwrap().contains("let the jump forward to 127.0.0.1:"), "{event}");
    let state = daemon.bastion("edge");
    assert!(!state["up"].as_bool().unwrap());
}

#[test]
fn the_line_of_keygen_opens_the_way_to_the_next_hop_and_no_other() {
    let (edge, prod) = (Bastion::start(), Bastion::start());
    edge.authorize("");
    let config = format!(
        "{}{}jump = \"edge\"\n{}",
        edge.keyless_section("edge", edge.port),
        prod.section("prod", prod.port),
        Postgres::shared().section("analytics", "prod")
    );
    let daemon = Daemon::start(&config);
    eventually("the jump shows the key that it is missing", || {
        (!daemon.bastion("edge")["public_key"].is_null()).then_some(())
    });
    assert!(daemon.bastion("prod")["public_key"].is_null());
    let (cause, detail) = trouble(&daemon, "prod");
    assert_eq!(cause, "auth rejected");
    assert!(detail.starts_with("at the jump \"edge\": "), "{detail}");
    let output = run(&daemon.config(), &["keygen", "edge"]);
    let text = String::from_utf8(output.stdout).unwrap();
    let line = text.lines().find(|line| line.contains("restrict,")).unwrap().trim();
    assert_eq!(line.matches("permitopen=").count(), 1);
    assert!(line.contains(&format!("permitopen=\"127.0.0.1:{}\"", prod.port)), "{line}");
    edge.authorize(line);
    daemon.signal(nix::sys::signal::Signal::SIGHUP);
    daemon.wait_up("prod");
    assert_eq!(runtime().block_on(job(daemon.address("analytics"))), Job::Done);
}

/// A database that takes whatever it is sent and says nothing.
fn sink() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    std::thread::spawn(move || {
        for socket in listener.incoming() {
            std::thread::spawn(move || std::io::copy(&mut socket.unwrap(), &mut std::io::sink()));
        }
    });
    port
}

/// Sends without end, and counts. Returns when it is cut.
fn upload(address: SocketAddr, sent: &AtomicUsize) {
    let mut socket = TcpStream::connect(address).unwrap();
    let mut bytes = b"\0\0\0\x12\0\x03\0\0user\0me\0\0\0".to_vec();
    bytes[3] = u8::try_from(bytes.len()).unwrap();
    bytes.resize(64 << 10, b'x');
    while let Ok(written) = socket.write(&bytes) {
        sent.fetch_add(written, Ordering::SeqCst);
    }
}

#[test]
fn uploads_are_cut_when_a_hop_dies_and_that_one_is_blamed() {
    const UPLOADS: usize = 6;
    // Nothing but the end itself tells that a hop is dead.
    let patient = "keepalive_interval = \"1h\"\nkeepalive_timeout = \"2h\"\nsessions = { max = 1 }\n";
    for dying in ["prod", "middle", "edge"] {
        let mut chain = Chain::start();
        let relay = Relay::before(chain.prod.port);
        let section = |bastion: &Bastion, name: &str, port, jump: &str| {
            format!("{}{jump}{patient}", bastion.section(name, port))
        };
        let database = Postgres::shared().unprobed_section("far", "prod");
        let database =
            database.replace(&format!("port = {}", Postgres::shared().port), &format!("port = {}", sink()));
        let daemon = Daemon::start(&format!(
            "{}{}{}{database}",
            section(&chain.edge, "edge", chain.edge.port, ""),
            section(&chain.middle, "middle", chain.middle.port, "jump = \"edge\"\n"),
            section(&chain.prod, "prod", relay.port, "jump = \"middle\"\n"),
        ));
        daemon.wait_up("prod");
        let (address, sent) = (daemon.address("far"), Arc::new(AtomicUsize::new(0)));
        let uploads: Vec<_> = (0..UPLOADS)
            .map(|_| {
                let sent = Arc::clone(&sent);
                std::thread::spawn(move || upload(address, &sent))
            })
            .collect();
        let passes =
            |bytes| eventually("uploads pass", || (sent.load(Ordering::SeqCst) > bytes).then_some(()));
        passes(8 << 20);
        // Everything on the way fills up.
        relay.set(Fault::Silence);
        let mut before = (0, std::time::Instant::now());
        eventually("nothing passes any more", || {
            let now = sent.load(Ordering::SeqCst);
            if now != before.0 {
                before = (now, std::time::Instant::now());
            }
            (before.1.elapsed().as_secs() >= 1).then_some(())
        });
        match dying {
            "prod" => relay.set(Fault::Reset),
            "middle" => chain.middle.kill(),
            _ => chain.edge.kill(),
        }
        eventually(&format!("all are cut when {dying} dies"), || {
            uploads.iter().all(std::thread::JoinHandle::is_finished).then_some(())
        });
        let event = daemon.wait_event("session lost");
        let detail = event["detail"].as_str().unwrap();
        assert_eq!(event["clients"], UPLOADS, "{event}");
        assert!(["reset", "closed_by_bastion"].contains(&event["reason"].as_str().unwrap()), "{event}");
        match dying {
            "prod" => assert!(!detail.contains("at the jump"), "{event}"),
            jump => assert!(detail.starts_with(&format!("at the jump \"{jump}\": ")), "{event}"),
        }
    }
}

/// A bastion behind `edge` that takes no connection and refuses none; and how many attempts at it are none of the daemon's.
fn behind_nothing(edge: &Bastion, edge_port: u16, limit: &str) -> (impl Drop, Swallower, Daemon, usize) {
    let (prod, swallower) = (Bastion::start(), Swallower::start());
    let limit = format!("connect_timeout = \"{limit}\"\n");
    let config = format!(
        "{}{limit}{}jump = \"edge\"\n{limit}{}",
        edge.section("edge", edge_port),
        prod.section("prod", swallower.port),
        Postgres::shared().unprobed_section("analytics", "prod")
    );
    let before = swallower.attempts();
    let daemon = Daemon::start(&config);
    (prod, swallower, daemon, before)
}

#[test]
fn a_hop_that_swallows_every_attempt_leaves_no_session_before_it() {
    let edge = Bastion::start();
    let relay = Relay::before(edge.port);
    let (_prod, _swallower, daemon, _) = behind_nothing(&edge, relay.port, "1s");
    let failed = "session_failures_total{bastion=\"prod\",phase=\"channel\",reason=\"timeout\"}";
    eventually("it was tried a few times", || (daemon.metric(failed) >= 4.0).then_some(()));
    // One is being tried, and the one before may be about to go.
    assert!(relay.open() <= 2, "{} sessions of {} are there", relay.open(), relay.accepted());
    let event = daemon.wait_event("bastion not reached");
    assert!(event["detail"].as_str().unwrap().ends_with(" within 1s"), "{event}");
    assert_eq!(daemon.metric("session_losses_total{bastion=\"edge\",reason=\"closed_by_bastion\"}"), 0.0);
}

#[test]
fn a_jump_that_falls_silent_before_the_next_hop_is_reached_is_blamed_for_it() {
    let edge = Bastion::start();
    let relay = Relay::before(edge.port);
    let (_prod, swallower, daemon, before) = behind_nothing(&edge, relay.port, "4s");
    eventually("the jump tries", || (swallower.attempts() > before).then_some(()));
    relay.set(Fault::Silence);
    let event = daemon.wait_event("bastion not reached");
    assert_eq!(
        event["detail"],
        format!("at the jump \"edge\": 127.0.0.1:{} let us in and then answered nothing", relay.port)
    );
}

#[test]
fn the_bastion_behind_a_jump_hears_the_goodbye() {
    let (edge, prod) = (Bastion::start(), Bastion::start());
    let daemon = Daemon::start(&format!(
        "{}{}jump = \"edge\"\n{}",
        edge.section("edge", edge.port),
        prod.section("prod", prod.port),
        Postgres::shared().unprobed_section("analytics", "prod")
    ));
    daemon.wait_up("prod");
    daemon.signal(nix::sys::signal::Signal::SIGTERM);
    eventually("it is told", || prod.log().contains("Received disconnect from").then_some(()));
}
