//! The servers and the daemon, the faults as they are done to them, and what the daemon says of itself.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use rand::rngs::StdRng;
use rand::{Rng, RngExt, SeedableRng};
use tokio::runtime::Runtime;

use super::clients;
use super::faults::{Fault, Kind};
use super::forwards::{BASTIONS, Behind, DATABASES, EDGE, FIRST_SHAKY, Forward, Hit, INNER, STREAMS};
use super::ledger::Ledger;
use super::streams;
use crate::support::bastion::{make_key, public_line};
use crate::support::daemon::request;
use crate::support::processes::children;
use crate::support::{Bastion, Daemon, PATIENCE, Postgres, Relay, relay};

pub const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(8);
pub const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
pub const BACKOFF_MAX: Duration = Duration::from_secs(2);

struct Post {
    sshd: Bastion,
    relay: Relay,
    /// Its section of the configuration, with the first of its two keys.
    section: String,
    second_key: bool,
}

impl Post {
    fn start(index: usize) -> Self {
        let sshd = Bastion::start();
        let relay = Relay::before(sshd.port);
        let directory = sshd.path("");
        let second = make_key(&directory, "second", &["-t", "ed25519", "-N", ""]);
        sshd.authorize(&format!("{}\n{}", public_line(&sshd.path("identity")), public_line(&second)));
        let jump = if index == INNER { format!("jump = \"{}\"\n", BASTIONS[EDGE]) } else { String::new() };
        let section = format!(
            "{}{jump}keepalive_interval = \"1s\"\nkeepalive_timeout = \"{}s\"\nconnect_timeout = \"{}s\"\n\
             reconnect = {{ max = \"{}s\" }}\nsessions = {{ max = 3 }}\n",
            sshd.section(BASTIONS[index], relay.port),
            KEEPALIVE_TIMEOUT.as_secs(),
            CONNECT_TIMEOUT.as_secs(),
            BACKOFF_MAX.as_secs(),
        );
        Self { sshd, relay, section, second_key: false }
    }

    fn section(&self) -> String {
        if self.second_key { self.section.replace("/identity\"", "/second\"") } else { self.section.clone() }
    }

    /// sshd and whoever serves its connections.
    fn processes(&self) -> Vec<u32> {
        let mut family = vec![self.sshd.pid()];
        let mut listed = 0;
        while let Some(pid) = family.get(listed).copied() {
            // One that still ran could have a child more.
            signal(pid, Signal::SIGSTOP);
            family.extend(children(pid));
            listed += 1;
        }
        family
    }
}

fn signal(pid: u32, signal: Signal) {
    // It may have ended.
    let _ = kill(Pid::from_raw(i32::try_from(pid).unwrap()), signal);
}

#[derive(Debug)]
pub struct Measure {
    pub memory_kb: u64,
    pub peak_kb: u64,
    pub descriptors: usize,
    pub sessions: usize,
}

pub struct Scene {
    posts: Vec<Post>,
    steady: Postgres,
    shaky: Postgres,
    byte_servers: Vec<u16>,
    daemon: Daemon,
    forwards: Vec<Forward>,
    long_hold: bool,
    guest: bool,
    stopped: BTreeMap<usize, Vec<u32>>,
}

impl Scene {
    pub fn start(runtime: &Runtime, ledger: &Arc<Ledger>) -> Self {
        let posts: Vec<Post> = (0..BASTIONS.len()).map(Post::start).collect();
        let (steady, shaky) = (Postgres::start(|_| {}), Postgres::start(|_| {}));
        let byte_servers: Vec<u16> = STREAMS.iter().map(|_| streams::serve(runtime, ledger)).collect();
        let configuration = configuration(&posts, &steady, &shaky, &byte_servers, false, false);
        let daemon = Daemon::with(&configuration, |command| {
            command.env("RUST_LOG", "tunnelkeeper=info");
        });
        for bastion in BASTIONS {
            daemon.wait_up(bastion);
        }
        let status = daemon.status();
        let address = |name: &str| {
            let databases = status["databases"].as_array().unwrap();
            let database = databases.iter().find(|database| database["name"] == name).unwrap();
            database["listen"][0].as_str().unwrap().parse().unwrap()
        };
        let forward =
            |name: String, bastions, behind| Forward { address: address(&name), name, bastions, behind };
        let databases = DATABASES.iter().enumerate().map(|(index, bastions)| {
            let behind = if index < FIRST_SHAKY { Behind::Postgres } else { Behind::ShakyPostgres };
            forward(format!("database{index}"), *bastions, behind)
        });
        let streams = STREAMS
            .iter()
            .enumerate()
            .map(|(index, bastions)| forward(format!("bytes{index}"), *bastions, Behind::Bytes));
        let forwards = databases.chain(streams).collect();
        let (long_hold, guest, stopped) = (false, false, BTreeMap::new());
        Self { posts, steady, shaky, byte_servers, daemon, forwards, long_hold, guest, stopped }
    }

    pub fn name(&self, bastion: usize) -> &'static str {
        BASTIONS[bastion]
    }

    /// Those to servers of bytes, or to databases.
    pub fn forwards(&self, bytes: bool) -> Vec<Forward> {
        self.forwards.iter().filter(|forward| (forward.behind == Behind::Bytes) == bytes).cloned().collect()
    }

    /// Plays a round to its end; what was played, and what may be felt of it.
    pub fn play(&mut self, round: &[Fault], runtime: &Runtime, ledger: &Arc<Ledger>) -> (String, Hit) {
        let start = Instant::now();
        let hit = round.iter().map(Fault::hits).fold(Hit::default(), Hit::and);
        let mut moments: Vec<(Duration, bool, Fault)> = round
            .iter()
            .flat_map(|fault| [(fault.begins, true, *fault), (fault.ends, false, *fault)])
            .collect();
        moments.sort_by_key(|(at, begins, _)| (*at, !*begins));
        for (at, begins, fault) in moments {
            std::thread::sleep(at.saturating_sub(start.elapsed()));
            if begins {
                ledger.fault_begins(fault.hits());
                self.begin(&fault, runtime, ledger);
            } else {
                self.end_fault(&fault);
            }
        }
        let words: Vec<String> = round.iter().map(ToString::to_string).collect();
        (words.join(", "), hit)
    }

    fn begin(&mut self, fault: &Fault, runtime: &Runtime, ledger: &Arc<Ledger>) {
        let amount = fault.amount;
        let post = &mut self.posts[fault.bastion];
        match fault.kind {
            Kind::Silence => post.relay.set(relay::Fault::Silence),
            Kind::SilenceOfOld => post.relay.set(relay::Fault::SilenceOld),
            Kind::Reset => post.relay.set(relay::Fault::Reset),
            Kind::Delay => post.relay.set(relay::Fault::Delay(Duration::from_millis(10 + amount % 90))),
            Kind::CutAfterBytes => post.relay.set(relay::Fault::CutAfter(usize::try_from(amount).unwrap())),
            Kind::SshdKilled => post.sshd.kill(),
            Kind::SessionsKilled => post.sshd.kill_sessions(),
            Kind::SshdStopped => {
                self.stopped.insert(fault.bastion, post.processes());
            }
            Kind::ListenerStopped => {
                signal(post.sshd.pid(), Signal::SIGSTOP);
                self.stopped.insert(fault.bastion, vec![post.sshd.pid()]);
            }
            Kind::PostgresRestarted => self.shaky.stop(),
            Kind::BackendsTerminated => {
                self.shaky.sql(
                    "postgres",
                    "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = 'trusted'",
                );
            }
            Kind::NeverRead | Kind::LeaveWithReset | Kind::Nonsense => {
                self.send_rude_clients(fault, runtime, ledger);
            }
            Kind::SameConfiguration => self.reload(ledger),
            Kind::OtherLimits => {
                self.long_hold = !self.long_hold;
                self.reload(ledger);
            }
            Kind::OtherDatabase => {
                self.guest = !self.guest;
                self.reload(ledger);
            }
            Kind::OtherKey => {
                post.second_key = !post.second_key;
                self.reload(ledger);
            }
        }
    }

    fn end_fault(&mut self, fault: &Fault) {
        let post = &mut self.posts[fault.bastion];
        match fault.kind {
            Kind::Silence | Kind::SilenceOfOld | Kind::Reset | Kind::Delay | Kind::CutAfterBytes => {
                post.relay.set(relay::Fault::None);
            }
            Kind::SshdKilled => post.sshd.start_again(),
            Kind::SshdStopped | Kind::ListenerStopped => {
                for pid in self.stopped.remove(&fault.bastion).unwrap() {
                    signal(pid, Signal::SIGCONT);
                }
            }
            Kind::PostgresRestarted => self.shaky.start_again(),
            _ => {}
        }
    }

    fn send_rude_clients(&self, fault: &Fault, runtime: &Runtime, ledger: &Arc<Ledger>) {
        let mut rng = StdRng::seed_from_u64(fault.amount);
        let (pause, bytes) = (fault.ends - fault.begins, self.forwards(true));
        for index in 0..4 + fault.amount % 8 {
            let any = self.forwards[rng.random_range(0..self.forwards.len())].clone();
            let mut words = vec![0; rng.random_range(1..4000)];
            rng.fill_bytes(&mut words);
            match fault.kind {
                Kind::NeverRead => {
                    let forward = bytes[rng.random_range(0..bytes.len())].clone();
                    let (place, ledger) = (rng.next_u64() >> 1, Arc::clone(ledger));
                    runtime.spawn(clients::do_not_read(forward, pause, index % 2 == 0, place, ledger));
                }
                Kind::LeaveWithReset => drop(runtime.spawn(clients::leave_with_reset(any, words))),
                _ => drop(runtime.spawn(clients::speak_nonsense(any, words))),
            }
        }
    }

    fn reload(&self, ledger: &Ledger) {
        let (posts, servers) = (&self.posts, &self.byte_servers);
        let configuration =
            configuration(posts, &self.steady, &self.shaky, servers, self.long_hold, self.guest);
        let problems = self.daemon.reload(&configuration);
        if !problems.is_empty() {
            ledger.breach(format!("a configuration that is right was refused: {problems:?}"));
        }
    }

    /// Sessions that each bastion has lost so far.
    pub fn losses(&self) -> Vec<f64> {
        let metrics = self.daemon.metrics();
        let of = |name: &str| {
            let prefix = format!("session_losses_total{{bastion=\"{name}\"");
            metrics.iter().filter(|(series, _)| series.starts_with(&prefix)).map(|(_, lost)| lost).sum()
        };
        BASTIONS.iter().map(|name| of(name)).collect()
    }

    pub fn losses_since(&self, before: &[f64]) -> Vec<(usize, f64)> {
        self.losses().iter().zip(before).map(|(now, before)| now - before).enumerate().collect()
    }

    /// Tunnels that are not up.
    pub fn down(&self) -> Vec<&'static str> {
        let status = self.daemon.status();
        let up = |name: &str| {
            let bastions = status["bastions"].as_array().unwrap();
            bastions.iter().any(|bastion| bastion["name"] == name && bastion["up"] == true)
        };
        BASTIONS.into_iter().filter(|name| !up(name)).collect()
    }

    /// Of all that the daemon says became of its clients, what must never be: no outage here is longer than a hold.
    pub fn refusals(&self) -> Vec<(String, f64)> {
        let never = ["hold_timeout", "refused", "limit", "open_failed"];
        let is_one =
            |series: &str| never.iter().any(|outcome| series.ends_with(&format!("outcome=\"{outcome}\"}}")));
        let metrics = self.daemon.metrics();
        metrics.into_iter().filter(|(series, value)| is_one(series) && *value > 0.0).collect()
    }

    pub fn is_empty(&self) -> bool {
        let status = self.daemon.status();
        let nobody =
            |database: &serde_json::Value| database["clients_active"] == 0 && database["clients_held"] == 0;
        status["databases"].as_array().unwrap().iter().all(nobody)
    }

    pub fn measure(&self) -> Measure {
        let status = self.daemon.status();
        let sessions = |bastion: &serde_json::Value| bastion["sessions"].as_array().unwrap().len();
        Measure {
            memory_kb: self.daemon.memory_kb("VmRSS"),
            peak_kb: self.daemon.memory_kb("VmHWM"),
            descriptors: std::fs::read_dir(format!("/proc/{}/fd", self.daemon.pid())).unwrap().count(),
            sessions: status["bastions"].as_array().unwrap().iter().map(sessions).sum(),
        }
    }

    /// Waits until all clients have left, and memory and descriptors are back where they were; what there is then.
    pub fn settle(
        &self,
        before: &Measure,
        growth_kb: u64,
        more_descriptors: usize,
    ) -> Result<Measure, String> {
        let until = Instant::now() + PATIENCE;
        loop {
            let now = self.measure();
            let descriptors =
                before.descriptors + more_descriptors + now.sessions.saturating_sub(before.sessions);
            let is_back = now.memory_kb <= before.memory_kb + growth_kb && now.descriptors <= descriptors;
            if is_back && self.is_empty() {
                return Ok(now);
            }
            if Instant::now() > until {
                let clients = self.is_empty();
                return Err(format!("it was {before:?} and is {now:?}; all clients have left: {clients}"));
            }
            std::thread::sleep(Duration::from_millis(100));
        }
    }

    /// From now on the daemon has to say that it is alive and ready whenever it is asked.
    pub fn watch_health(&self, ledger: &Arc<Ledger>) -> Watched {
        let address: SocketAddr = self.daemon.url().trim_start_matches("http://").parse().unwrap();
        let (stop, ledger) = (Arc::new(AtomicBool::new(false)), Arc::clone(ledger));
        let stopped = Arc::clone(&stop);
        let thread = std::thread::spawn(move || {
            while !stopped.load(Ordering::SeqCst) {
                for path in ["/livez", "/readyz"] {
                    let (code, body) = request(
                        address,
                        &format!("GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"),
                    );
                    if code != 200 {
                        ledger.breach(format!("{path} is {code}: {body}"));
                    }
                }
                std::thread::sleep(Duration::from_millis(250));
            }
        });
        Watched { stop, thread }
    }

    /// The daemon ends as it was asked to.
    pub fn end(mut self) {
        self.daemon.signal(Signal::SIGTERM);
        assert!(self.daemon.wait().success());
    }
}

pub struct Watched {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<()>,
}

impl Watched {
    pub fn end(self) {
        self.stop.store(true, Ordering::SeqCst);
        self.thread.join().unwrap();
    }
}

fn configuration(
    posts: &[Post],
    steady: &Postgres,
    shaky: &Postgres,
    byte_servers: &[u16],
    long_hold: bool,
    guest: bool,
) -> String {
    let mut text: String = posts.iter().map(Post::section).collect();
    let hold = format!("hold = {{ timeout = \"{}s\" }}\n", if long_hold { 90 } else { 60 });
    let all = |bastions: &[usize]| {
        let names: Vec<String> = bastions.iter().map(|bastion| format!("{:?}", BASTIONS[*bastion])).collect();
        format!("bastion = [{}]", names.join(", "))
    };
    for (index, bastions) in DATABASES.iter().enumerate() {
        let server = if index < FIRST_SHAKY { steady } else { shaky };
        let section = server.section(&format!("database{index}"), "any");
        text += &format!("{}{hold}", section.replace("bastion = \"any\"", &all(bastions)));
    }
    for ((index, bastions), port) in STREAMS.iter().enumerate().zip(byte_servers) {
        let section = steady.unprobed_section(&format!("bytes{index}"), "any");
        let section = section.replace(&format!("port = {}", steady.port), &format!("port = {port}"));
        text += &format!("{}{hold}", section.replace("bastion = \"any\"", &all(bastions)));
    }
    if guest {
        text += &steady.section("guest", BASTIONS[EDGE]);
    }
    text
}
