//! An outage wakes the right person and says why: the real daemon, Prometheus and Alertmanager with the files that are
//! shipped. Only their times are shortened, and their addresses are those of the test.

use std::fs::{self, File};
use std::net::{SocketAddr, TcpStream};
use std::process::{Child, Command, Stdio};

use nix::sys::signal::Signal;
use serde_json::Value;
use tempfile::TempDir;

use crate::alerts::dashboards;
use crate::support::account::find;
use crate::support::client::connect;
use crate::support::daemon::request;
use crate::support::prometheus::Prometheus;
use crate::support::webhook::Webhook;
use crate::support::{Bastion, Daemon, Postgres, eventually, free_port, runtime};

/// The durations that are waited for, not those that are looked back on, and what stands in their place. An alert that is
/// sent is not sent again for a minute, so what it says has to be scraped and recorded by then.
const WAITED: [(&str, &str); 7] = [
    ("for:", "3s"),
    ("interval:", "1s"),
    ("scrape_interval:", "1s"),
    ("evaluation_interval:", "1s"),
    ("group_wait:", "1s"),
    ("group_interval:", "1s"),
    ("repeat_interval:", "1s"),
];

/// A shipped file with short times, and how many there were.
fn hastened(name: &str) -> (String, usize) {
    let text = fs::read_to_string(dashboards("prometheus").join(name)).unwrap();
    let mut hastened = 0;
    let lines = text.lines().map(|line| {
        let (key, _) = line.trim_start().split_once(' ').unwrap_or_default();
        let Some((_, short)) = WAITED.iter().find(|(waited, _)| *waited == key) else {
            return line.to_owned();
        };
        hastened += 1;
        let indentation = &line[..line.len() - line.trim_start().len()];
        format!("{indentation}{key} {short}")
    });
    (lines.collect::<Vec<_>>().join("\n"), hastened)
}

fn replaced(text: &str, from: &str, to: &str) -> String {
    assert!(text.contains(from), "{from} is not in {text}");
    text.replace(from, to)
}

struct Alertmanager {
    port: u16,
    child: Child,
    dir: TempDir,
}

impl Alertmanager {
    fn start(webhook: &Webhook) -> Self {
        let (config, times) = hastened("alertmanager.example.yml");
        assert_eq!(times, 6, "{config}");
        let config =
            replaced(&config, "http://127.0.0.1:9099/", &format!("http://127.0.0.1:{}/", webhook.port));
        let dir = TempDir::with_prefix("alertmanager-").unwrap();
        fs::write(dir.path().join("alertmanager.yml"), config).unwrap();
        let port = free_port();
        let child = Command::new("setpriv")
            .args(["--pdeathsig", "KILL"])
            .arg(find("prometheus-alertmanager"))
            .arg(format!("--config.file={}", dir.path().join("alertmanager.yml").display()))
            .arg(format!("--storage.path={}", dir.path().join("data").display()))
            .arg(format!("--web.listen-address=127.0.0.1:{port}"))
            // It has no peers, for which it would listen on every address.
            .arg("--cluster.listen-address=")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(File::create(dir.path().join("log")).unwrap())
            .spawn()
            .unwrap();
        let mut alertmanager = Self { port, child, dir };
        eventually("Alertmanager listens", || {
            let ended = alertmanager.child.try_wait().unwrap();
            assert!(ended.is_none(), "Alertmanager ended with {ended:?}");
            TcpStream::connect(("127.0.0.1", port)).ok()
        });
        alertmanager
    }

    /// The alerts that it has, told or not.
    fn alerts(&self) -> Vec<Value> {
        let address = SocketAddr::from(([127, 0, 0, 1], self.port));
        let (code, body) = request(address, "GET /api/v2/alerts HTTP/1.0\r\nHost: localhost\r\n\r\n");
        assert_eq!(code, 200, "{body}");
        serde_json::from_str(&body).unwrap()
    }
}

impl Drop for Alertmanager {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        if std::thread::panicking() {
            let log = fs::read_to_string(self.dir.path().join("log"));
            eprintln!("--- Alertmanager on port {} said:\n{}", self.port, log.unwrap_or_default());
        }
    }
}

/// Everything from the daemon to the person.
struct Watched {
    // In the order in which they end.
    prometheus: Prometheus,
    alertmanager: Alertmanager,
    webhook: Webhook,
    daemon: Daemon,
    _rules: TempDir,
}

impl Watched {
    fn start(bastion: &Bastion) -> Self {
        // Clients would be held, and the bastion be left alone, for half a minute.
        let hold = "hold = { timeout = \"1s\" }\n";
        let database = Postgres::shared().section("analytics", "prod");
        let (prod, pace) = (bastion.section("prod", bastion.port), "reconnect = { max = \"1s\" }\n");
        let daemon = Daemon::start(&format!("{prod}{pace}{database}{hold}"));
        daemon.wait_up("prod");
        let webhook = Webhook::start();
        let alertmanager = Alertmanager::start(&webhook);
        let (rules, config) = (TempDir::with_prefix("rules-").unwrap(), hastened("prometheus.example.yml").0);
        let mut config = replaced(&config, "127.0.0.1:9093", &format!("127.0.0.1:{}", alertmanager.port));
        config = replaced(&config, "127.0.0.1:9822", daemon.url().trim_start_matches("http://"));
        for (name, least) in [("recording.rules.yml", 4), ("alerts.rules.yml", 15)] {
            let (text, times) = hastened(name);
            assert!(times >= least, "{name}: {times}");
            let path = rules.path().join(name);
            fs::write(&path, text).unwrap();
            config = replaced(&config, name, &path.display().to_string());
        }
        let prometheus = Prometheus::start(&config);
        Self { prometheus, alertmanager, webhook, daemon, _rules: rules }
    }

    /// Waits for a notification that says so; returns the way that it came, too.
    fn wait(&self, alert: &str, status: &str, says: &str) -> (String, Value) {
        eventually(&format!("{alert} is {status} and says {says:?}"), || {
            let alerts = self.webhook.alerts(alert);
            alerts.into_iter().find(|(_, alert)| {
                let description = alert["annotations"]["description"].as_str().unwrap();
                alert["status"] == status && description.contains(says)
            })
        })
    }

    fn wait_for_one(&self, promql: &str) {
        eventually(promql, || (!self.prometheus.query(promql).as_array().unwrap().is_empty()).then_some(()));
    }
}

/// The queries that the runbook tells people to make.
fn runbook_queries() -> Vec<String> {
    let runbook = fs::read_to_string(dashboards("RUNBOOK.md")).unwrap();
    let blocks = runbook.split("```promql\n").skip(1).map(|rest| rest.split("```").next().unwrap());
    blocks.flat_map(str::lines).map(str::to_owned).collect()
}

#[test]
fn an_outage_reaches_those_who_are_to_know_and_so_does_its_end() {
    let mut bastion = Bastion::start();
    let watched = Watched::start(&bastion);
    let (tunnel_down, unreachable) = ("TunnelkeeperTunnelDown", "TunnelkeeperDatabaseUnreachable");
    watched.wait_for_one("tunnelkeeper_tunnel_up == 1");
    watched.wait_for_one("tunnelkeeper_probe_up == 1");
    assert!(watched.webhook.alerts(tunnel_down).is_empty() && watched.webhook.alerts(unreachable).is_empty());

    bastion.kill();
    let (path, alert) = watched.wait(tunnel_down, "firing", "tcp refused (");
    assert_eq!((path.as_str(), &alert["labels"]["bastion"]), ("/warning", &"prod".into()), "{alert}");
    let (path, alert) = watched.wait(unreachable, "firing", "prod tcp refused (");
    assert_eq!((path.as_str(), &alert["labels"]["database"]), ("/page", &"analytics".into()), "{alert}");
    assert_eq!(alert["labels"]["instance"], watched.daemon.url().trim_start_matches("http://"), "{alert}");

    // What follows from it is known, and not told.
    runtime().block_on(connect(watched.daemon.address("analytics"))).map(drop).unwrap_err();
    eventually("that a client was refused is held back", || {
        let alerts = watched.alertmanager.alerts();
        let refused =
            alerts.iter().find(|alert| alert["labels"]["alertname"] == "TunnelkeeperClientsRefused")?;
        (refused["status"]["state"] == "suppressed").then_some(())
    });

    watched.webhook.forget();
    bastion.start_again();
    watched.wait(tunnel_down, "resolved", "");
    watched.wait(unreachable, "resolved", "");
    let (_, alert) = watched.wait("TunnelkeeperClientsRefused", "firing", "analytics");
    assert_eq!(alert["labels"]["outcome"], "hold_timeout", "{alert}");

    let queries = runbook_queries();
    assert!(queries.len() >= 8, "{queries:?}");
    for query in queries {
        // It panics where Prometheus does not understand one.
        watched.prometheus.query(&query);
    }

    watched.webhook.forget();
    watched.daemon.signal(Signal::SIGKILL);
    let (path, alert) = watched.wait("TunnelkeeperDaemonAbsent", "firing", "gets no answer");
    assert_eq!(path, "/page", "{alert}");
}
