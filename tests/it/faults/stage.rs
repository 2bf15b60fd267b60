//! What the rows are played on: a daemon with two bastions, `prod`, to which all faults happen, and `calm` beside it, to
//! which nothing may happen. Through each goes a database that checks what it is told.

use std::fs;
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use serde_json::Value;
use tokio::runtime::Runtime;

use super::stream::{Echo, Stream};
use crate::support::room::Room;
use crate::support::{Bastion, Daemon, Relay, eventually, runtime};

/// Attempts are over soon, and the next one comes soon. One session, so that all rows are about it.
const QUICK: &str = "connect_timeout = \"1s\"\nopen_timeout = \"1s\"\nreconnect = { min = \"20ms\", max = \"200ms\" }\n\
                     sessions = { max = 1 }\n";

/// And silence is noticed soon.
pub const ALERT: &str = "keepalive_interval = \"500ms\"\nkeepalive_timeout = \"3s\"\n";

/// Between the blocks of a stream.
const PACE: Duration = Duration::from_millis(20);

/// What a daemon may have more than at first before it counts as leaking, in kB: what 4 streams leave in the
/// allocator, and 8 MB to spare.
const SPARE_KB: u64 = 24 << 10;

/// Threads that have read a file or looked up a name wait ten seconds for more of that.
const SPARE_THREADS: usize = 4;

pub struct Stage {
    pub prod: Bastion,
    pub relay: Relay,
    pub echo: Echo,
    pub daemon: Daemon,
    pub runtime: Runtime,
    /// Where the daemon looks up names, if that is its own.
    pub hosts: Option<PathBuf>,
    /// Where the bastion is, if that is not where the daemon is.
    pub room: Option<Room>,
    bystander: Stream,
    aside: Echo,
    base: Usage,
    _calm: Bastion,
}

/// What a process has.
#[derive(Clone, Copy, Debug)]
struct Usage {
    descriptors: usize,
    threads: usize,
    memory_kb: u64,
}

impl Usage {
    fn of(daemon: &Daemon) -> Self {
        let count = |what: &str| fs::read_dir(format!("/proc/{}/{what}", daemon.pid())).unwrap().count();
        Self { descriptors: count("fd"), threads: count("task"), memory_kb: daemon.memory_kb("VmRSS") }
    }
}

impl Stage {
    /// For faults that have to be noticed.
    pub fn alert(prod: Bastion) -> Self {
        Self::behind_relay(prod, ALERT, |_| {})
    }

    /// For faults that have to be endured.
    pub fn patient(prod: Bastion) -> Self {
        Self::behind_relay(prod, "", |_| {})
    }

    /// Without a relay.
    pub fn direct(prod: Bastion) -> Self {
        let (relay, section) = (Relay::before(prod.port), prod.section("prod", prod.port));
        Self::build(prod, relay, &section, |_| {})
    }

    pub fn behind_relay(prod: Bastion, keys: &str, change: impl FnOnce(&mut Command)) -> Self {
        let relay = Relay::before(prod.port);
        let section = format!("{}{keys}", prod.section("prod", relay.port));
        Self::build(prod, relay, &section, change)
    }

    /// With the bastion's own keys, and the daemon's command changed.
    pub fn build(prod: Bastion, relay: Relay, keys: &str, change: impl FnOnce(&mut Command)) -> Self {
        Self::build_with(prod, relay, Echo::start(), keys, "", change)
    }

    /// With the database's server and what else is in the configuration.
    pub fn build_with(
        prod: Bastion,
        relay: Relay,
        echo: Echo,
        section: &str,
        more: &str,
        change: impl FnOnce(&mut Command),
    ) -> Self {
        let (calm, aside, runtime) = (Bastion::start(), Echo::start(), runtime());
        let config = format!(
            "{section}{QUICK}{}sessions = {{ max = 1 }}\n{}{}{more}",
            calm.section("calm", calm.port),
            if more.contains("[databases.echo]") { String::new() } else { echo.section("echo", "prod") },
            aside.section("aside", "calm"),
        );
        let daemon = Daemon::with(&config, change);
        daemon.wait_up("prod");
        daemon.wait_up("calm");
        let bystander = Stream::start(&runtime, daemon.address("aside"), PACE);
        bystander.wait_for_more(2);
        let base = Usage::of(&daemon);
        let stage = Self {
            prod,
            relay,
            echo,
            daemon,
            runtime,
            hosts: None,
            room: None,
            bystander,
            aside,
            base,
            _calm: calm,
        };
        // What the first clients need stays.
        let first: Vec<Stream> = (0..4).map(|_| stage.stream()).collect();
        first.iter().for_each(|stream| stream.wait_for_more(8));
        first.into_iter().for_each(|stream| stream.must_be_whole(&stage.runtime));
        stage.all_have_left();
        Self { base: Usage::of(&stage.daemon), ..stage }
    }

    /// A client that comes now.
    pub fn stream(&self) -> Stream {
        self.stream_of("echo")
    }

    pub fn stream_of(&self, database: &str) -> Stream {
        Stream::start(&self.runtime, self.daemon.address(database), PACE)
    }

    /// One that says all that it can.
    pub fn fast_stream(&self) -> Stream {
        Stream::start(&self.runtime, self.daemon.address("echo"), Duration::ZERO)
    }

    fn all_have_left(&self) {
        eventually("all have left", || {
            let database = self.daemon.database("echo");
            let sessions = self.daemon.bastion("prod")["sessions"].clone();
            let seats: u64 =
                sessions.as_array().unwrap().iter().map(|session| session["clients"].as_u64().unwrap()).sum();
            (database["clients_active"] == 0 && database["clients_held"] == 0 && seats == 0).then_some(())
        });
    }

    /// The other bastion, its session and its client have noticed nothing.
    pub fn assert_bystander_untouched(&self) {
        self.bystander.wait_for_more(2);
        let calm = self.daemon.bastion("calm");
        let untouched = calm["up"] == true
            && calm["last_failure"] == Value::Null
            && calm["sessions"][0]["id"] == 1
            && calm["sessions"][0]["state"] == "established";
        assert!(untouched, "{calm}");
    }

    /// Whoever came has left, and with them all that was needed for them.
    pub fn assert_nothing_left_behind(&self) {
        self.all_have_left();
        eventually("nothing is left behind", || {
            let (now, base) = (Usage::of(&self.daemon), self.base);
            let back = now.descriptors <= base.descriptors
                && now.threads <= base.threads + SPARE_THREADS
                && now.memory_kb <= base.memory_kb + SPARE_KB;
            back.then_some(())
        });
        eventually("the server's connections are closed", || (self.echo.open() == 0).then_some(()));
        self.echo.assert_heard_well();
    }

    /// The last row is over.
    pub fn end(self) {
        self.aside.assert_heard_well();
        self.bystander.must_be_whole(&self.runtime);
        assert_eq!(self.daemon.get("/livez").0, 200);
    }
}
