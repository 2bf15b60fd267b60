//! Shows in half a minute what tunnelkeeper does for a client when a bastion dies: `cargo run --example demo`.
//!
//! Everything is in this process and on loopback: a small SSH bastion, a small database behind it, and the real
//! daemon with a real configuration in a directory of its own. In a terminal, Enter drops the bastion as often as
//! you like. Elsewhere it is dropped once, and the exit code tells whether all went as told, so CI can run it too.
//! `RUST_LOG=info` adds the daemon's log.
//!
//! It is no test of SSH or PostgreSQL: its bastion knows one key and one database, and its database answers a few
//! questions without reading any SQL. The tests use an sshd and a PostgreSQL.

#![allow(clippy::print_stdout, clippy::print_stderr, reason = "it has a story to tell")]

use std::error::Error;
use std::fs::OpenOptions;
use std::io::{self, IsTerminal, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use async_trait::async_trait;
use futures_util::stream;
use pgwire::api::query::SimpleQueryHandler;
use pgwire::api::results::{DataRowEncoder, FieldFormat, FieldInfo, QueryResponse, Response};
use pgwire::api::{ClientInfo, ClientPortalStore, PgWireServerHandlers, Type};
use pgwire::error::PgWireResult;
use russh::keys::ssh_key::LineEnding;
use russh::keys::{Algorithm, HashAlg, PrivateKey, PublicKey};
use russh::server::{self, Auth, ChannelOpenHandle, Msg, VerifiedPublicKey};
use russh::{Channel, ChannelOpenFailure, MethodKind, MethodSet};
use tokio::io::copy_bidirectional;
use tokio::net::TcpStream;
use tokio::runtime::{Builder, Runtime};
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep, sleep_until, timeout};
use tokio_postgres::{NoTls, SimpleQueryMessage};
use tunnelkeeper::app::Daemon;
use tunnelkeeper::board::Board;
use tunnelkeeper::lanes::Lanes;
use tunnelkeeper::settings::{self, Settings, Surroundings};
use tunnelkeeper::{client, signals, snapshot, telemetry};

/// How long the bastion stays away.
const OUTAGE: Duration = Duration::from_secs(3);
/// Nothing here takes longer unless something is wrong.
const PATIENCE: Duration = Duration::from_secs(20);
const LOOK_AGAIN: Duration = Duration::from_millis(5);
const ANY_PORT: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), 0);

type Outcome<T = ()> = Result<T, Box<dyn Error + Send + Sync>>;

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("\ndemo: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> Outcome {
    // Removed when this function returns, however it does.
    let directory = tempfile::Builder::new().prefix("tunnelkeeper-demo-").tempdir()?;
    let interrupts = signals::listen()?;
    let database = TcpListener::bind(ANY_PORT)?;
    let (host_key, identity) = (new_key()?, new_key()?);
    identity.write_openssh_file(directory.path().join("identity"), LineEnding::LF)?;
    let host_key_fingerprint = host_key.fingerprint(HashAlg::Sha256).to_string();
    let mut bastion = Bastion::new(host_key, identity.public_key().clone(), database.local_addr()?);
    bastion.start()?;
    let status = free_address()?;
    let text = configuration(directory.path(), &bastion, &host_key_fingerprint, status);
    let settings = load(write_configuration(directory.path(), &text)?)?;
    if let Ok(level) = std::env::var("RUST_LOG") {
        telemetry::start(&settings.plan.log, Some(&level))?;
    }
    let lanes = Arc::new(Lanes::start(settings.plan.daemon.threads)?);
    let runtime = Runtime::new()?;
    runtime.spawn(serve_database(database));
    let story = Story { bastion, status: format!("http://{status}/"), by_hand: at_a_terminal() };
    let result = runtime.block_on(story.with_daemon(&settings, &lanes, interrupts));
    runtime.shutdown_background();
    result
}

fn new_key() -> Outcome<PrivateKey> {
    Ok(PrivateKey::random(&mut russh::keys::key::safe_rng(), Algorithm::Ed25519)?)
}

/// The daemon does not tell where its status is served, so the port is chosen beforehand.
fn free_address() -> io::Result<SocketAddr> {
    TcpListener::bind(ANY_PORT)?.local_addr()
}

fn at_a_terminal() -> bool {
    io::stdin().is_terminal() && io::stdout().is_terminal()
}

/// All that a bastion and a database behind it need, but for `reconnect` and `drain_timeout`: a demo is in a hurry.
fn configuration(directory: &Path, bastion: &Bastion, fingerprint: &str, status: SocketAddr) -> String {
    format!(
        r#"
[http]
listen = "{status}"

[daemon]
drain_timeout = "1s"

[bastions.demo]
host = "127.0.0.1"
port = {bastion_port}
user = "demo"
identity = {identity:?}
host_key = "{fingerprint}"
reconnect = {{ max = "1s" }}

[databases.playground]
bastion = "demo"
host = "127.0.0.1"
port = {database_port}
listen = "127.0.0.1:0"
user = "demo"
"#,
        bastion_port = bastion.address.port(),
        identity = directory.join("identity").display().to_string(),
        database_port = bastion.rules.database.port(),
    )
}

fn write_configuration(directory: &Path, text: &str) -> io::Result<PathBuf> {
    let path = directory.join("tunnelkeeper.toml");
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&path)?;
    file.write_all(text.as_bytes())?;
    Ok(path)
}

/// The environment is left out: variables meant for a real daemon must not change the demo's.
fn load(path: PathBuf) -> Outcome<Settings> {
    let uid = nix::unistd::geteuid().as_raw();
    let surroundings = Surroundings { uid, config_option: Some(path), ..Surroundings::default() };
    settings::load(&surroundings).map_err(|problems| {
        let lines: Vec<String> = problems.iter().map(ToString::to_string).collect();
        lines.join("\n").into()
    })
}

/// What is told, and what it is told about.
struct Story {
    bastion: Bastion,
    status: String,
    /// Somebody sits there and says when.
    by_hand: bool,
}

impl Story {
    async fn with_daemon(
        mut self,
        settings: &Settings,
        lanes: &Arc<Lanes>,
        mut interrupts: mpsc::UnboundedReceiver<signals::Request>,
    ) -> Outcome {
        let daemon = Daemon::start(settings, lanes).map_err(|error| error.to_string())?;
        let board = Arc::clone(daemon.board());
        let by_hand = self.by_hand;
        let told = tokio::select! {
            told = self.tell(&board) => told,
            _ = interrupts.recv() => if by_hand { Ok(()) } else { Err("interrupted".into()) },
        };
        daemon.end(std::future::pending()).await;
        told
    }

    async fn tell(&mut self, board: &Board) -> Outcome {
        let forward = self.introduce(board).await?;
        if !self.by_hand {
            self.outage(board, forward).await?;
            println!("All went as told. Run it in a terminal to drop the bastion by hand.");
            return Ok(());
        }
        let mut lines = lines_typed()?;
        loop {
            print!("Enter drops the bastion for {} seconds, q and Enter ends: ", OUTAGE.as_secs());
            io::stdout().flush()?;
            match lines.recv().await {
                Some(line) if line.trim() != "q" => self.outage(board, forward).await?,
                _ => return Ok(()),
            }
        }
    }

    /// Shows the way through, and returns where clients connect.
    async fn introduce(&self, board: &Board) -> Outcome<SocketAddr> {
        let (_, database) = wait_for(board, "the tunnel came up and the database was found well", |seen| {
            seen.0.up && seen.1.probe.verdict == "up"
        })
        .await?;
        let forward: SocketAddr = database.listen.first().ok_or("the forward does not listen")?.parse()?;
        client::get(&self.status, "/readyz").await?;
        let probe = milliseconds(Duration::from_secs_f64(database.probe.latency_seconds.unwrap_or_default()));
        let (question, port) = ("SELECT version()", forward.port());
        let (answer, took) = ask(forward, question).await?;
        println!("\nA client reaches a database that only a bastion can reach, as if it were local:\n");
        println!("  client -> {forward} -> tunnelkeeper ==SSH==> bastion -> database\n");
        println!("  asked     {question}");
        println!("  answered  {answer}");
        println!(
            "  in        {}, connecting included (the daemon's own probe: {probe})\n",
            milliseconds(took)
        );
        println!("While this runs, try it from another terminal:\n");
        println!("  psql \"host=127.0.0.1 port={port} user=demo dbname=playground\" -c \"SELECT now()\"\n");
        println!("and see what the daemon knows: {0} (metrics: {0}metrics)\n", self.status);
        Ok(forward)
    }

    /// Drops the bastion under a client's nose and lets it come back.
    async fn outage(&mut self, board: &Board, forward: SocketAddr) -> Outcome {
        let (question, dropped) = ("SELECT now()", Instant::now());
        let say = |text: &str| println!("  {:>4.1} s  {text}", dropped.elapsed().as_secs_f64());
        println!("\nThe bastion loses its power:\n");
        self.bastion.cut_power();
        wait_for(board, "the daemon noticed that the bastion is gone", |seen| !seen.0.up).await?;
        say("the tunnel is down");

        let waiting = tokio::spawn(ask(forward, question));
        let (bastion, database) = wait_for(board, "the client was held", |seen| {
            !seen.0.up && seen.0.last_failure.is_some() && seen.1.clients_held > 0
        })
        .await?;
        say(&format!("a client connects, asks {question}, and is held ({})", held(&database)));
        if let Some(trouble) = bastion.last_failure {
            say(&format!("what the daemon knows of the bastion: {trouble}"));
        }

        sleep_until(dropped + OUTAGE).await;
        if waiting.is_finished() {
            return Err("the client was not held until the bastion came back".into());
        }
        self.bastion.start()?;
        say("the bastion is back");
        wait_for(board, "the tunnel healed", |seen| seen.0.up).await?;
        say("the tunnel is up again, by itself");
        let (answer, took) = waiting.await??;
        say(&format!("the client is answered: {answer}"));
        wait_for(board, "the client was let go", |seen| seen.1.clients_held == 0).await?;
        println!("\nThe client saw no error, only a wait of {:.1} seconds.\n", took.as_secs_f64());
        Ok(())
    }
}

fn milliseconds(time: Duration) -> String {
    format!("{:.1} ms", time.as_secs_f64() * 1000.0)
}

fn held(database: &snapshot::Database) -> String {
    format!("clients held: {}, active: {}", database.clients_held, database.clients_active)
}

/// The lines typed, read by a thread that nobody waits for in the end: a read of a terminal cannot be called off.
fn lines_typed() -> io::Result<mpsc::UnboundedReceiver<String>> {
    let (send, lines) = mpsc::unbounded_channel();
    let read = move || {
        let typed = io::stdin().lines().map_while(Result::ok);
        typed.map(|line| send.send(line)).take_while(Result::is_ok).for_each(drop);
    };
    std::thread::Builder::new().name("lines".to_owned()).spawn(read)?;
    Ok(lines)
}

/// The demo's only bastion and its only database.
type Seen = (snapshot::Bastion, snapshot::Database);

async fn wait_for(board: &Board, what: &str, happened: impl Fn(&Seen) -> bool) -> Outcome<Seen> {
    let look = async {
        loop {
            let snapshot = board.snapshot();
            let seen = snapshot.bastions.into_iter().zip(snapshot.databases).next();
            match seen {
                Some(seen) if happened(&seen) => return seen,
                _ => sleep(LOOK_AGAIN).await,
            }
        }
    };
    let result = timeout(PATIENCE, look).await;
    result.map_err(|_| format!("waited for {} seconds in vain until {what}", PATIENCE.as_secs()).into())
}

/// Asks the database through the forward, as any client would.
async fn ask(forward: SocketAddr, question: &str) -> Outcome<(String, Duration)> {
    let asked = Instant::now();
    let conversation = async {
        let mut login = tokio_postgres::Config::new();
        login.host(forward.ip().to_string()).port(forward.port()).user("demo").dbname("playground");
        let (client, connection) = login.connect(NoTls).await?;
        tokio::spawn(connection);
        let messages = client.simple_query(question).await?;
        let answer = messages.iter().find_map(|message| match message {
            SimpleQueryMessage::Row(row) => row.get(0),
            _ => None,
        });
        Ok(answer.ok_or_else(|| format!("{question} was answered with nothing"))?.to_owned())
    };
    match timeout(PATIENCE, conversation).await {
        Ok(answer) => answer.map(|answer| (answer, asked.elapsed())),
        Err(_) => Err(format!("{question} was not answered within {} seconds", PATIENCE.as_secs()).into()),
    }
}

/// Whom the bastion lets in, and where to.
struct Rules {
    client_key: PublicKey,
    database: SocketAddr,
}

struct Bastion {
    address: SocketAddr,
    config: Arc<server::Config>,
    rules: Arc<Rules>,
    /// Its own, so that one call ends all that it does, as abruptly as a power cut does.
    runtime: Option<Runtime>,
}

impl Bastion {
    fn new(host_key: PrivateKey, client_key: PublicKey, database: SocketAddr) -> Self {
        let config = server::Config {
            keys: vec![host_key],
            methods: MethodSet::from(&[MethodKind::PublicKey][..]),
            auth_rejection_time_initial: Some(Duration::ZERO),
            inactivity_timeout: None,
            ..server::Config::default()
        };
        let rules = Arc::new(Rules { client_key, database });
        Self { address: ANY_PORT, config: Arc::new(config), rules, runtime: None }
    }

    /// Listens where it listened before, once it has listened anywhere.
    fn start(&mut self) -> Outcome {
        let listener = TcpListener::bind(self.address)
            .map_err(|error| format!("the bastion cannot listen on {}: {error}", self.address))?;
        self.address = listener.local_addr()?;
        let runtime = Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
        runtime.spawn(serve_bastion(listener, Arc::clone(&self.config), Arc::clone(&self.rules)));
        self.runtime = Some(runtime);
        Ok(())
    }

    fn cut_power(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

impl Drop for Bastion {
    // A runtime that is dropped within another one panics.
    fn drop(&mut self) {
        self.cut_power();
    }
}

async fn serve_bastion(
    listener: TcpListener,
    config: Arc<server::Config>,
    rules: Arc<Rules>,
) -> io::Result<()> {
    let listener = asynchronous(listener)?;
    loop {
        let (socket, _) = listener.accept().await?;
        socket.set_nodelay(true)?;
        let (config, guard) = (Arc::clone(&config), Guard(Arc::clone(&rules)));
        tokio::spawn(async move { server::run_stream(config, socket, guard).await?.await });
    }
}

fn asynchronous(listener: TcpListener) -> io::Result<tokio::net::TcpListener> {
    listener.set_nonblocking(true)?;
    tokio::net::TcpListener::from_std(listener)
}

/// One connection to the bastion. Whatever it does not mention, russh refuses.
struct Guard(Arc<Rules>);

impl server::Handler for Guard {
    type Error = russh::Error;

    async fn auth_publickey(&mut self, _: &str, key: VerifiedPublicKey<'_>) -> Result<Auth, russh::Error> {
        let known = key.public_key.key_data() == self.0.client_key.key_data();
        Ok(if known { Auth::Accept } else { Auth::reject() })
    }

    async fn channel_open_direct_tcpip(
        &mut self,
        channel: Channel<Msg>,
        host: &str,
        port: u32,
        _: &str,
        _: u32,
        reply: ChannelOpenHandle,
        _: &mut server::Session,
    ) -> Result<(), russh::Error> {
        let database = self.0.database;
        if host != database.ip().to_string() || port != u32::from(database.port()) {
            reply.reject(ChannelOpenFailure::AdministrativelyProhibited).await;
            return Ok(());
        }
        // The session stands still until this function returns, so it must not wait here.
        tokio::spawn(async move {
            let Ok(mut socket) = TcpStream::connect(database).await else {
                return reply.reject(ChannelOpenFailure::ConnectFailed).await;
            };
            reply.accept().await;
            // However it ends, both sides see it.
            let _ = copy_bidirectional(&mut socket, &mut channel.into_stream()).await;
        });
        Ok(())
    }
}

/// The database: lets everybody in, and answers every question with one row.
struct Playground;

async fn serve_database(listener: TcpListener) -> io::Result<()> {
    let listener = asynchronous(listener)?;
    loop {
        let (socket, _) = listener.accept().await?;
        socket.set_nodelay(true)?;
        tokio::spawn(pgwire::tokio::process_socket(socket, None, Playground));
    }
}

impl PgWireServerHandlers for Playground {
    fn simple_query_handler(&self) -> Arc<impl SimpleQueryHandler> {
        Arc::new(Self)
    }
}

#[async_trait]
impl SimpleQueryHandler for Playground {
    async fn do_query<C>(&self, _: &mut C, query: &str) -> PgWireResult<Vec<Response>>
    where
        C: ClientInfo + ClientPortalStore + Unpin + Send + Sync,
    {
        let (column, answer) = answer_to(query);
        let field = FieldInfo::new(column.to_owned(), None, None, Type::TEXT, FieldFormat::Text);
        let fields = Arc::new(vec![field]);
        let mut row = DataRowEncoder::new(Arc::clone(&fields));
        row.encode_field(&answer)?;
        let rows = stream::iter([Ok(row.take_row())]);
        Ok(vec![Response::Query(QueryResponse::new(fields, rows))])
    }
}

/// The name of the only column, and what stands there.
fn answer_to(query: &str) -> (&'static str, String) {
    match query.trim_end_matches(|end: char| end == ';' || end.is_whitespace()).to_lowercase().trim() {
        "select 1" => ("?column?", "1".to_owned()),
        "select now()" => ("now", humantime::format_rfc3339_millis(SystemTime::now()).to_string()),
        "select version()" => {
            ("version", "the playground of tunnelkeeper's demo, no real PostgreSQL".to_owned())
        }
        _ => ("hello", "I only know SELECT 1, SELECT now() and SELECT version()".to_owned()),
    }
}
