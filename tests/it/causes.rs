//! Every cause of failure, proved: a daemon meets it, and its status names phase and reason, with a detail and a hint; and
//! whatever `doctor` can meet too, it names by the same words.
//!
//! A case is a test together with the causes that it proves, so that the table at the end cannot name one that no test
//! has seen. What other tests prove already is not proved again: the table names these, and looks whether they are there.

mod auth;
mod banner;
mod channel;
mod client;
mod database;
mod dns;
mod elsewhere;
mod kex;
mod scripted;
mod session;
mod table;
mod tcp;

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::process::Output;
use std::time::Duration;

use serde_json::Value;
use socket2::{Domain, Socket, Type};
use tunnelkeeper::failure::Cause;

use crate::support::daemon::run;
use crate::support::postgres::TRUSTED;
use crate::support::{Bastion, Daemon, Postgres, eventually};

/// A test, and what it proves.
pub struct Case {
    pub file: &'static str,
    pub test: &'static str,
    pub causes: &'static [Cause],
}

/// Makes of each case a test, and of all of them the part of the table that is this file's. A case returns the failures
/// that it has been shown, which have to be those that it claims, in this order.
macro_rules! cases {
    ($($name:ident: [$($cause:ident),+] => $body:block)+) => {
        pub const CASES: &[$crate::causes::Case] = &[$($crate::causes::Case {
            file: file!(),
            test: stringify!($name),
            causes: &[$(tunnelkeeper::failure::Cause::$cause),+],
        }),+];

        $(
            #[test]
            fn $name() {
                $crate::causes::prove(&[$(tunnelkeeper::failure::Cause::$cause),+], &$body);
            }
        )+
    };
}
use cases;

fn prove(causes: &[Cause], shown: &[Value]) {
    let text = |failure: &Value, key: &str| failure[key].as_str().unwrap_or_default().to_owned();
    let claimed: Vec<_> = causes.iter().map(|cause| [cause.phase().as_str(), cause.reason()]).collect();
    let found: Vec<_> =
        shown.iter().map(|failure| ["phase", "reason"].map(|key| text(failure, key))).collect();
    assert_eq!(found, claimed, "{shown:?}");
    assert!(shown.iter().all(|failure| !text(failure, "hint").is_empty()), "{shown:?}");
}

/// Where a failure is shown.
enum At<'a> {
    Bastion(&'a str),
    /// The probe of the database.
    Probe(&'a str),
}

/// The failure that a daemon's status shows, and that `doctor` finds beside it. Every case of a bastion or a database
/// looks here, but those of a moment that has passed.
fn shown(daemon: &Daemon, at: &At<'_>) -> Value {
    let failure = status_shows(daemon, at);
    doctor_finds(&run(&daemon.config(), &["doctor", "--format", "json"]), at, &failure);
    failure
}

/// That `doctor` comes to the same failure, and calls it the same.
fn doctor_finds(output: &Output, at: &At<'_>, failure: &Value) {
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    let (key, name) = match at {
        At::Bastion(name) => ("bastion", name),
        At::Probe(name) => ("database", name),
    };
    let checks = report["checks"].as_array().unwrap().iter().filter(|check| check[key] == *name);
    let found: Vec<&Value> = checks
        .flat_map(|check| check["stages"].as_array().unwrap())
        .map(|stage| &stage["failure"])
        .filter(|failure| failure.is_object())
        .collect();
    let same = |found: &&Value| ["phase", "reason"].iter().all(|key| found[*key] == failure[*key]);
    assert!(found.len() == 1 && found.iter().all(same), "{failure} is not {found:?} in {report:#}");
    assert!(!found[0]["hint"].as_str().unwrap().is_empty(), "{report:#}");
}

/// The failure that a daemon's status shows.
fn status_shows(daemon: &Daemon, at: &At<'_>) -> Value {
    eventually("the status shows a failure", || {
        let failure = match at {
            At::Bastion(name) => daemon.bastion(name)["last_failure"].take(),
            At::Probe(name) => daemon.database(name)["probe"]["last_failure"].take(),
        };
        failure.is_object().then_some(failure)
    })
}

/// That it says these words, in the detail and in the hint.
fn says(failure: Value, detail: &str, hint: &str) -> Value {
    for (key, words) in [("detail", detail), ("hint", hint)] {
        assert!(failure[key].as_str().unwrap().contains(words), "{words:?} is not in the {key} of {failure}");
    }
    failure
}

/// What the status says of the bastion `prod` with these keys.
fn bastion_fails(section: &str) -> Value {
    shown(&Daemon::start(&crate::agents::unused_database(section)), &At::Bastion("prod"))
}

/// What the status says of a database behind a good bastion with these keys.
fn database_fails(bastion: &Bastion, keys: &str) -> Value {
    let config = format!("{}{}", bastion.section("prod", bastion.port), probed(keys));
    shown(&Daemon::start(&config), &At::Probe("analytics"))
}

/// A database that is probed often. Where to find it the keys say.
fn probed(keys: &str) -> String {
    format!(
        "[databases.analytics]\nbastion = \"prod\"\nlisten = \"127.0.0.1:0\"\n\
         probe.interval = \"100ms\"\n{keys}\n"
    )
}

/// The keys of the database that a server of this port is taken for.
fn at_port(port: u16, patience: &str) -> String {
    format!("host = \"127.0.0.1\"\nport = {port}\nuser = \"probe\"\n{patience}")
}

/// The keys of the real one.
fn at_postgres(patience: &str) -> String {
    let port = Postgres::shared().port;
    at_port(port, patience).replace("\"probe\"", &format!("{TRUSTED:?}"))
}

/// For a database that is not to answer: a probe has so long for each of its phases, and the ones before are to end in it.
const SOON: &str = "probe.timeout = \"3s\"\n";

/// For one that is to answer, however busy this machine is.
const LATE: &str = "probe.timeout = \"30s\"\n";

/// A server that does this with each of its connections; returns its port.
fn server(serve: impl Fn(TcpStream) + Clone + Send + 'static) -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    std::thread::spawn(move || {
        for socket in listener.incoming().map_while(Result::ok) {
            let serve = serve.clone();
            std::thread::spawn(move || serve(socket));
        }
    });
    port
}

/// A server that takes what it is told, says this and no more, and stays.
fn saying(words: &'static [u8]) -> u16 {
    server(move |mut socket| {
        let _ = socket.read(&mut [0; 1024]);
        let _ = socket.write_all(words);
        let _ = socket.read_to_end(&mut Vec::new());
    })
}

/// A server that takes no connection any more, as if packets to it were dropped: its queue is full.
struct Filtered {
    port: u16,
    _server: Socket,
    _fillers: Vec<TcpStream>,
}

impl Filtered {
    fn start() -> Self {
        let server = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
        server.bind(&std::net::SocketAddr::from(([127, 0, 0, 1], 0)).into()).unwrap();
        server.listen(0).unwrap();
        let address = server.local_addr().unwrap().as_socket().unwrap();
        let fill = || TcpStream::connect_timeout(&address, Duration::from_millis(300)).ok();
        let fillers: Vec<TcpStream> = std::iter::from_fn(fill).take(10).collect();
        assert!(fillers.len() < 10, "the queue never fills up");
        Self { port: address.port(), _server: server, _fillers: fillers }
    }
}
