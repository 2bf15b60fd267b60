//! Two daemons behind HAProxy, as `deploy/haproxy.cfg` has it: one after the other goes, and no new client notices.

use std::fs::{self, File, Permissions};
use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::JoinHandle;
use std::time::Instant;

use nix::sys::signal::Signal;
use tempfile::TempDir;

use crate::support::account::{account, find};
use crate::support::client::{Job, ask, connect, job};
use crate::support::{Bastion, Daemon, Postgres, eventually, runtime};

/// Clients that come one after the other, as fast as they are served, at a time.
const CLIENTS: usize = 4;

/// How many of them have to be served before the next thing happens: as many as it takes for each client to have met what
/// happened last.
const SOME: usize = 50;

/// A free address on a loopback network of its own: what is stopped and started again finds its port as it was, since
/// nobody's outgoing connection is given a port there.
fn free_address(machine: u8) -> SocketAddr {
    let listener = TcpListener::bind((Ipv4Addr::new(127, 0, 22, machine), 0)).unwrap();
    listener.local_addr().unwrap()
}

/// A daemon that can be started again at the same addresses.
struct Replica {
    listen: SocketAddr,
    http: SocketAddr,
    config: String,
    _state: TempDir,
    daemon: Option<Daemon>,
}

impl Replica {
    fn start(machine: u8, bastion: &Bastion) -> Self {
        let (listen, http) = (free_address(machine), free_address(machine));
        let state = TempDir::with_prefix("state-").unwrap();
        let database = Postgres::shared().section("analytics", "prod");
        let config = format!(
            "[http]\nlisten = \"{http}\"\n[daemon]\nstate_dir = {:?}\n{}{}",
            state.path().display().to_string(),
            bastion.section("prod", bastion.port),
            database.replace("127.0.0.1:0", &listen.to_string()),
        );
        let mut replica = Self { listen, http, config, _state: state, daemon: None };
        replica.start_again();
        replica
    }

    fn start_again(&mut self) {
        self.daemon = Some(Daemon::start(&self.config));
    }

    fn daemon(&self) -> &Daemon {
        self.daemon.as_ref().unwrap()
    }

    fn clients(&self) -> usize {
        self.daemon().database("analytics")["clients"].as_array().unwrap().len()
    }

    fn held(&self) -> f64 {
        self.daemon().metric("clients_held{database=\"analytics\"}")
    }
}

/// The balancer of the example, at other addresses.
struct Balancer {
    listen: SocketAddr,
    dir: TempDir,
    child: Child,
}

impl Balancer {
    fn start(replicas: &[Replica; 2]) -> Self {
        let dir = TempDir::with_prefix("balancer-").unwrap();
        fs::set_permissions(dir.path(), Permissions::from_mode(0o755)).unwrap();
        account().give(dir.path());
        let listen = free_address(100);
        let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("deploy/haproxy.cfg");
        let mut config = fs::read_to_string(path).unwrap();
        let socket = dir.path().join("admin.sock").display().to_string();
        // Each server on its own machine, so that its health is asked of another port at each.
        let servers = ["10.0.0.11", "10.0.0.12"].into_iter().zip(replicas);
        let servers = servers.flat_map(|(machine, replica)| {
            let http = replica.http.port();
            [
                (format!("{machine}:15432 check"), format!("{} check port {http}", replica.listen)),
                (format!("{machine}:15432 backup"), format!("{} backup", replica.listen)),
            ]
        });
        let places = [
            ("bind :15432".to_owned(), format!("bind {listen}")),
            ("/run/haproxy/admin.sock".to_owned(), socket),
        ];
        for (example, real) in places.into_iter().chain(servers) {
            assert_eq!(config.matches(&example).count(), 1, "{example}");
            config = config.replace(&example, &real);
        }
        let file = dir.path().join("haproxy.cfg");
        fs::write(&file, config).unwrap();
        let log = File::create(dir.path().join("log")).unwrap();
        let mut command = account().command(&find("haproxy"));
        command.arg("-db").arg("-f").arg(&file).stdin(Stdio::null());
        let child = command.stdout(log.try_clone().unwrap()).stderr(log).spawn().unwrap();
        let balancer = Self { listen, dir, child };
        eventually("the balancer answers", || UnixStream::connect(balancer.admin()).ok());
        balancer
    }

    fn admin(&self) -> PathBuf {
        self.dir.path().join("admin.sock")
    }

    /// What it thinks of a server: its column of `show stat`.
    fn status(&self, server: &str) -> String {
        let mut socket = UnixStream::connect(self.admin()).unwrap();
        socket.write_all(b"show stat\n").unwrap();
        let mut answer = String::new();
        socket.read_to_string(&mut answer).unwrap();
        let rows: Vec<Vec<&str>> = answer.lines().map(|line| line.split(',').collect()).collect();
        let column = rows[0].iter().position(|name| *name == "status").unwrap();
        let row = rows.iter().find(|row| row.starts_with(&["analytics", server])).unwrap();
        row[column].to_owned()
    }

    fn wait_for(&self, server: &str, status: &str) {
        eventually(&format!("the balancer finds {server} {status}"), || {
            (self.status(server) == status).then_some(())
        });
    }
}

impl Drop for Balancer {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        if std::thread::panicking() {
            let log = fs::read_to_string(self.dir.path().join("log")).unwrap_or_default();
            eprintln!("--- the balancer said:\n{log}");
        }
    }
}

/// A client that was not served.
#[derive(Debug)]
struct Failed {
    begun: Instant,
    ended: Instant,
    #[expect(dead_code, reason = "shown when the test fails")]
    how: Job,
}

/// New clients all the time.
struct Load {
    served: Arc<AtomicUsize>,
    stop: Arc<AtomicBool>,
    clients: Vec<JoinHandle<Vec<Failed>>>,
}

impl Load {
    fn on(address: SocketAddr) -> Self {
        let (served, stop) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicBool::new(false)));
        let client = || {
            let (served, stop) = (Arc::clone(&served), Arc::clone(&stop));
            std::thread::spawn(move || {
                let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
                let mut failed = Vec::new();
                while !stop.load(Ordering::SeqCst) {
                    let begun = Instant::now();
                    match runtime.block_on(job(address)) {
                        Job::Done => drop(served.fetch_add(1, Ordering::SeqCst)),
                        how => failed.push(Failed { begun, ended: Instant::now(), how }),
                    }
                }
                failed
            })
        };
        let clients = (0..CLIENTS).map(|_| client()).collect();
        Self { served, stop, clients }
    }

    /// Waits until so many more have been served.
    fn some_more(&self) {
        let until = self.served.load(Ordering::SeqCst) + SOME;
        eventually("new clients are served", || (self.served.load(Ordering::SeqCst) >= until).then_some(()));
    }

    /// How many were served, and who was not.
    fn end(self) -> (usize, Vec<Failed>) {
        self.stop.store(true, Ordering::SeqCst);
        let failed = self.clients.into_iter().flat_map(|client| client.join().unwrap()).collect();
        (self.served.load(Ordering::SeqCst), failed)
    }
}

fn both_up() -> (Bastion, [Replica; 2], Balancer) {
    let bastion = Bastion::start();
    let replicas = [1, 2].map(|machine| Replica::start(machine, &bastion));
    let balancer = Balancer::start(&replicas);
    for server in ["a", "b"] {
        balancer.wait_for(server, "UP");
    }
    (bastion, replicas, balancer)
}

#[test]
fn daemons_are_killed_and_drained_in_turn_and_no_new_client_fails() {
    let (_bastion, mut replicas, balancer) = both_up();
    let load = Load::on(balancer.listen);
    let mut deaths = Vec::new();
    for (server, replica) in ["a", "b"].into_iter().zip(&mut replicas) {
        load.some_more();
        let killed = Instant::now();
        let mut daemon = replica.daemon.take().unwrap();
        daemon.signal(Signal::SIGKILL);
        daemon.wait();
        // Until it is dead, the kernel accepts connections for it.
        deaths.push((killed, Instant::now()));
        load.some_more();
        balancer.wait_for(server, "DOWN");
        replica.start_again();
        balancer.wait_for(server, "UP");
        load.some_more();

        let runtime = runtime();
        let mut clients = Vec::new();
        eventually("a client of its own", || {
            clients.push(runtime.block_on(connect(balancer.listen)).unwrap());
            (replica.clients() > CLIENTS).then_some(())
        });
        let mut daemon = replica.daemon.take().unwrap();
        daemon.signal(Signal::SIGTERM);
        daemon.wait_event("waiting for clients to finish");
        balancer.wait_for(server, "DOWN");
        load.some_more();
        for client in clients {
            runtime.block_on(client.simple_query("SELECT 1")).expect("a client was cut by a drain");
        }
        assert_eq!(daemon.wait().code(), Some(0));
        assert!(daemon.events("client cut").is_empty(), "{}", daemon.printed());
        load.some_more();
        replica.start_again();
        balancer.wait_for(server, "UP");
    }
    load.some_more();
    let (served, failed) = load.end();
    assert!(served > 10 * SOME, "only {served} were served");
    let was_under_way =
        |failed: &&Failed| deaths.iter().any(|(killed, dead)| failed.begun < *dead && failed.ended > *killed);
    let failed: Vec<&Failed> = failed.iter().filter(|failed| !was_under_way(failed)).collect();
    assert!(failed.is_empty(), "of {served} new clients these failed: {failed:#?}; deaths: {deaths:#?}");
    for replica in &replicas {
        let carried = "client_connections_total{database=\"analytics\",outcome=\"carried\"}";
        assert!(replica.daemon().metric(carried) > 0.0, "one of them had no clients");
    }
}

#[test]
fn while_no_daemon_reaches_the_database_clients_are_held() {
    let (mut bastion, replicas, balancer) = both_up();
    bastion.kill();
    for server in ["a", "b"] {
        balancer.wait_for(server, "DOWN");
    }
    let (runtime, address) = (runtime(), balancer.listen);
    let answers: Vec<_> = (0..4).map(|_| runtime.spawn(ask(address, "SELECT 'late'"))).collect();
    eventually("they are held", || (replicas.iter().map(Replica::held).sum::<f64>() == 4.0).then_some(()));
    bastion.start_again();
    for answer in answers {
        assert_eq!(runtime.block_on(answer).unwrap().unwrap(), "late");
    }
}

#[test]
fn the_example_is_valid_as_it_stands() {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("deploy/haproxy.cfg");
    let output = Command::new(find("haproxy")).args(["-c", "-f"]).arg(path).output().unwrap();
    assert!(output.status.success() && output.stderr.is_empty(), "{output:?}");
}
