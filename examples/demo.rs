//! Shows in half a minute what a client notices when a bastion dies: `cargo run --example demo`.
//!
//! Everything is in this process and on loopback: a small SSH bastion, a small database behind it, and the real
//! daemon with a configuration of its own. In a terminal, Enter drops the bastion as often as you like; elsewhere it
//! is dropped once, and the exit code tells whether all went as told. `RUST_LOG=info` adds the daemon's log.
//!
//! It is no test of SSH or PostgreSQL: the bastion knows one key and one database, and the database answers three
//! questions without reading any SQL.

#![allow(clippy::print_stdout, clippy::print_stderr, reason = "it has a story to tell")]

use std::error::Error;
use std::fs::{OpenOptions, Permissions};
use std::io::{self, IsTerminal, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use async_trait::async_trait;
use futures_util::stream;
use pgwire::api::query::SimpleQueryHandler;
use pgwire::api::results::{DataRowEncoder, FieldFormat, FieldInfo, QueryResponse, Response};
use pgwire::api::{ClientInfo, ClientPortalStore, PgWireServerHandlers, Type};
use pgwire::error::PgWireResult;
use russh::Channel;
use russh::keys::key::safe_rng;
use russh::keys::ssh_key::LineEnding;
use russh::keys::{Algorithm, HashAlg, PrivateKey, PublicKey};
use russh::server::{self, Auth, ChannelOpenHandle, Msg, Server, VerifiedPublicKey};
use tokio::io::copy_bidirectional;
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::{Builder, Runtime};
use tokio::sync::mpsc::UnboundedReceiver;
use tokio::time::{Instant, sleep, sleep_until, timeout};
use tokio_postgres::{NoTls, SimpleQueryMessage};
use tokio_util::sync::CancellationToken;
use tunnelkeeper::app::Daemon;
use tunnelkeeper::board::Board;
use tunnelkeeper::lanes::Lanes;
use tunnelkeeper::listener::Inherited;
use tunnelkeeper::settings::{self, Settings, Surroundings};
use tunnelkeeper::signals::{self, Request};
use tunnelkeeper::snapshot::{Bastion, Database};
use tunnelkeeper::{client, telemetry};

/// How long the bastion stays away.
const OUTAGE: Duration = Duration::from_secs(3);
/// Nothing here takes longer unless something is wrong.
const PATIENCE: Duration = Duration::from_secs(20);
const LOOK_AGAIN: Duration = Duration::from_millis(5);
const ANY_PORT: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 0);

type Outcome<T = ()> = Result<T, Box<dyn Error + Send + Sync>>;

fn main() -> ExitCode {
    let Err(error) = run() else { return ExitCode::SUCCESS };
    eprintln!("\ndemo: {error}");
    ExitCode::FAILURE
}

fn run() -> Outcome {
    let interrupts = signals::listen()?;
    // Removed when this function returns, however it does.
    let directory = tempfile::Builder::new()
        .prefix("tunnelkeeper-demo-")
        .permissions(Permissions::from_mode(0o700))
        .tempdir()?;
    let runtime = Runtime::new()?;
    let database = runtime.block_on(TcpListener::bind(ANY_PORT))?;
    let mut machine = Machine::new(database.local_addr()?, &directory.path().join("identity"))?;
    machine.start()?;
    runtime.spawn(serve_database(database));
    let settings = configure(directory.path(), &machine)?;
    if std::env::var_os("RUST_LOG").is_some_and(|level| !level.is_empty()) {
        telemetry::start(&settings.plan.log)?;
    }
    let lanes = Arc::new(Lanes::start(settings.plan.daemon.threads)?);
    let result = runtime.block_on(perform(&settings, &lanes, &mut machine, interrupts));
    // A line may still be waited for, which cannot be called off.
    runtime.shutdown_background();
    result
}

/// Writes and loads what a bastion and a database need, and three keys more: a demo has no time for `drain_timeout`
/// and `reconnect` as they are by default, and a second session could die of something less plain than the first.
/// The environment is left out but for `RUST_LOG`, since it is meant for a real daemon.
fn configure(directory: &Path, machine: &Machine) -> Outcome<Settings> {
    let path = directory.join("tunnelkeeper.toml");
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&path)?;
    write!(
        file,
        r#"
        http.listen = "127.0.0.1:0"
        daemon.drain_timeout = "1s"

        [bastions.demo]
        host = "127.0.0.1"
        port = {bastion_port}
        user = "demo"
        identity = {identity:?}
        host_key = "{host_key}"
        reconnect.max = "1s"
        sessions.max = 1

        [databases.playground]
        bastion = "demo"
        host = "127.0.0.1"
        port = {database_port}
        listen = "127.0.0.1:0"
        user = "demo"
        "#,
        bastion_port = machine.address.port(),
        identity = directory.join("identity"),
        host_key = machine.fingerprint,
        database_port = machine.guard.database.port(),
    )?;
    let uid = nix::unistd::geteuid().as_raw();
    let variables = std::env::var_os("RUST_LOG").map(|level| ("RUST_LOG".to_owned(), level));
    let surroundings = Surroundings {
        variables: variables.into_iter().collect(),
        uid,
        config_option: Some(path),
        ..Surroundings::default()
    };
    settings::load(&surroundings).map_err(|problems| {
        let lines: Vec<String> = problems.iter().map(ToString::to_string).collect();
        lines.join("\n").into()
    })
}

async fn perform(
    settings: &Settings,
    lanes: &Arc<Lanes>,
    machine: &mut Machine,
    mut interrupts: UnboundedReceiver<Request>,
) -> Outcome {
    let daemon = Daemon::start(settings, lanes, Inherited::default())?;
    let status = daemon.http().map(|address| format!("http://{address}/")).unwrap_or_default();
    let mut story = Story { board: Arc::clone(daemon.board()), machine, status };
    let told = tokio::select! {
        told = story.tell() => told,
        _ = interrupts.recv() => Err("interrupted".into()),
    };
    daemon.end(CancellationToken::new()).await;
    told
}

struct Story<'a> {
    board: Arc<Board>,
    machine: &'a mut Machine,
    status: String,
}

impl Story<'_> {
    async fn tell(&mut self) -> Outcome {
        let login = self.introduce().await?;
        if !(io::stdin().is_terminal() && io::stdout().is_terminal()) {
            self.outage(&login).await?;
            println!("All went as told. Run it in a terminal to drop the bastion by hand.");
            return Ok(());
        }
        loop {
            print!("Enter drops the bastion for {} seconds, q and Enter ends: ", OUTAGE.as_secs());
            io::stdout().flush()?;
            match tokio::task::spawn_blocking(|| io::stdin().lines().next().transpose()).await?? {
                Some(line) if line.trim() != "q" => self.outage(&login).await?,
                _ => return Ok(()),
            }
        }
    }

    /// Shows the way to the database, and returns how clients connect.
    async fn introduce(&self) -> Outcome<String> {
        let well = |bastion: &Bastion, database: &Database| bastion.up && database.probe.verdict == "up";
        let (_, database) = self.wait("the tunnel is up and the database well", well).await?;
        let forward: SocketAddr = database.listen.first().ok_or("the forward does not listen")?.parse()?;
        client::get(&self.status, "/readyz").await?;
        let login = format!("host=127.0.0.1 port={} user=demo dbname=playground", forward.port());
        let (question, status) = ("SELECT version()", &self.status);
        let (answer, took) = ask(login.clone(), question).await?;
        self.wait("the client has left", |_, database| database.clients_active == 0).await?;
        println!("\nA client reaches a database that stands behind an SSH bastion, as if it were local:\n");
        println!("  client ──> {forward} (tunnelkeeper) ══SSH══> bastion ──> database\n");
        println!("  asked     {question}\n  answered  {answer}\n  after     {took:.1?}\n");
        println!("While this runs, try it from another terminal, and see what the daemon knows:\n");
        println!("  psql \"{login}\" -c \"SELECT now()\"");
        println!("  {status} and {status}metrics\n");
        Ok(login)
    }

    /// Drops the bastion under a client's nose, and lets it come back.
    async fn outage(&mut self, login: &str) -> Outcome {
        let (question, dropped) = ("SELECT now()", Instant::now());
        let say = |text: &str| println!("  {:>4.1} s  {text}", dropped.elapsed().as_secs_f64());
        println!("\nThe bastion loses its power:\n");
        self.machine.cut_power();
        let (bastion, _) = self.wait("the tunnel is seen to be down", |bastion, _| !bastion.up).await?;
        let failure = bastion.last_failure.ok_or("the daemon does not say why the tunnel is down")?;
        say(&format!("the tunnel is down ({failure})"));

        let waiting = tokio::spawn(ask(login.to_owned(), question));
        let held = |bastion: &Bastion, database: &Database| !bastion.up && database.clients_held > 0;
        let (_, database) = self.wait("the client is held", held).await?;
        say(&format!("a client asks {question} and is held (clients held: {})", database.clients_held));

        sleep_until(dropped + OUTAGE).await;
        if waiting.is_finished() {
            return Err("the client was not held until the bastion came back".into());
        }
        self.machine.start()?;
        say("the bastion is back");
        self.wait("the tunnel has healed", |bastion, _| bastion.up).await?;
        say("the tunnel is up again");
        let (answer, took) = waiting.await??;
        say(&format!("the client is answered: {answer}"));
        println!("\nThe client saw no error, only a wait of {:.1} seconds.\n", took.as_secs_f64());
        Ok(())
    }

    /// Waits until what the daemon says of its bastion and its database is what is expected.
    async fn wait(
        &self,
        what: &str,
        expected: impl Fn(&Bastion, &Database) -> bool,
    ) -> Outcome<(Bastion, Database)> {
        let deadline = Instant::now() + PATIENCE;
        while Instant::now() < deadline {
            let snapshot = self.board.snapshot();
            match snapshot.bastions.into_iter().zip(snapshot.databases).next() {
                Some((bastion, database)) if expected(&bastion, &database) => return Ok((bastion, database)),
                _ => sleep(LOOK_AGAIN).await,
            }
        }
        Err(format!("this did not happen within {} seconds: {what}", PATIENCE.as_secs()).into())
    }
}

/// Asks the database through the forward as any client does, and tells how long it took, connecting included.
async fn ask(login: String, question: &str) -> Outcome<(String, Duration)> {
    let asked = Instant::now();
    let conversation = async {
        let (client, connection) = tokio_postgres::connect(&login, NoTls).await?;
        tokio::spawn(connection);
        client.simple_query(question).await
    };
    let in_time = timeout(PATIENCE, conversation).await;
    let messages = in_time.map_err(|_| format!("{question} was not answered in time"))??;
    let answer = messages.iter().find_map(|message| match message {
        SimpleQueryMessage::Row(row) => row.get(0),
        _ => None,
    });
    Ok((answer.ok_or_else(|| format!("{question} was answered with no row"))?.to_owned(), asked.elapsed()))
}

/// The machine that the bastion runs on.
struct Machine {
    address: SocketAddr,
    fingerprint: String,
    config: Arc<server::Config>,
    guard: Guard,
    /// Its own, so that one call ends all that it does, as abruptly as a power cut.
    runtime: Option<Runtime>,
}

impl Machine {
    fn new(database: SocketAddr, identity: &Path) -> Outcome<Self> {
        let new_key = || PrivateKey::random(&mut safe_rng(), Algorithm::Ed25519);
        let (host_key, client_key) = (new_key()?, new_key()?);
        client_key.write_openssh_file(identity, LineEnding::LF)?;
        let guard = Guard { client_key: client_key.public_key().clone(), database };
        let fingerprint = host_key.fingerprint(HashAlg::Sha256).to_string();
        let config = server::Config {
            keys: vec![host_key],
            nodelay: true,
            // The first question of a login is what there is to log in with; sshd does not make us wait for the answer either.
            auth_rejection_time_initial: Some(Duration::ZERO),
            ..server::Config::default()
        };
        Ok(Self { address: ANY_PORT, fingerprint, config: Arc::new(config), guard, runtime: None })
    }

    /// Listens where it did before, if it did.
    fn start(&mut self) -> Outcome {
        let listener = std::net::TcpListener::bind(self.address)?;
        listener.set_nonblocking(true)?;
        self.address = listener.local_addr()?;
        let runtime = Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
        let (config, mut guard) = (Arc::clone(&self.config), self.guard.clone());
        runtime.spawn(async move { guard.run_on_socket(config, &TcpListener::from_std(listener)?).await });
        self.runtime = Some(runtime);
        Ok(())
    }

    fn cut_power(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

/// Lets one key in, and that to one database only. Whatever is not mentioned here, russh refuses.
#[derive(Clone)]
struct Guard {
    client_key: PublicKey,
    database: SocketAddr,
}

impl Server for Guard {
    type Handler = Self;

    fn new_client(&mut self, _: Option<SocketAddr>) -> Self {
        self.clone()
    }
}

impl server::Handler for Guard {
    type Error = russh::Error;

    async fn auth_publickey(&mut self, _: &str, key: VerifiedPublicKey<'_>) -> Result<Auth, russh::Error> {
        let known = key.public_key.key_data() == self.client_key.key_data();
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
        // A reply that is dropped refuses. The session stands still until this function returns.
        if format!("{host}:{port}") == self.database.to_string() {
            tokio::spawn(carry(self.database, channel, reply));
        }
        Ok(())
    }
}

async fn carry(database: SocketAddr, channel: Channel<Msg>, reply: ChannelOpenHandle) -> io::Result<()> {
    let mut socket = TcpStream::connect(database).await?;
    reply.accept().await;
    copy_bidirectional(&mut socket, &mut channel.into_stream()).await?;
    Ok(())
}

/// Lets everybody in, and answers every question with one row.
struct Playground;

async fn serve_database(listener: TcpListener) -> io::Result<()> {
    loop {
        let (socket, _) = listener.accept().await?;
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
        let fields =
            Arc::new(vec![FieldInfo::new(column.to_owned(), None, None, Type::TEXT, FieldFormat::Text)]);
        let mut row = DataRowEncoder::new(Arc::clone(&fields));
        row.encode_field(&answer)?;
        let rows = stream::iter([Ok(row.take_row())]);
        Ok(vec![Response::Query(QueryResponse::new(fields, rows))])
    }
}

/// The name of the only column, and what stands there.
fn answer_to(query: &str) -> (&'static str, String) {
    match query.trim().trim_end_matches(';').to_lowercase().as_str() {
        "select 1" => ("?column?", "1".to_owned()),
        "select now()" => ("now", humantime::format_rfc3339_millis(SystemTime::now()).to_string()),
        "select version()" => ("version", "the playground of tunnelkeeper's demo".to_owned()),
        _ => ("hello", "I only know SELECT 1, SELECT now() and SELECT version()".to_owned()),
    }
}
