//! Small queries.

use std::net::{Ipv4Addr, SocketAddr};
use std::process::{Command, Stdio};
use std::sync::Once;

use super::alternate;
use crate::arguments::Plan;
use crate::peers::{Target, Task, start_all};
use crate::report::Figures;
use crate::stage::Stage;
use crate::support::account::find;
use crate::support::postgres::{DATABASE, TRUSTED};
use crate::usage::cpu_seconds;

pub fn select(stage: &Stage, plan: &Plan, figures: &mut Figures, clients: u32) {
    let port = stage.postgres.port;
    static TABLES: Once = Once::new();
    TABLES.call_once(|| {
        said(pgbench((Ipv4Addr::LOCALHOST, port).into(), &["-i", "-s", "5", "-q"]));
    });
    let task = Task::new(&stage.bastion, vec![Target::Postgres(port)]);
    let forwarders = start_all(plan, &task);
    let (clients, seconds) = (clients.to_string(), plan.window.as_secs().to_string());
    let load = ["-S", "-n", "-M", "simple", "-j", "1", "-c", &clients, "-T", &seconds];
    alternate(plan, &forwarders, figures, |forwarder| {
        let before = cpu_seconds(forwarder.pid());
        let told = said(pgbench(forwarder.address(), &load));
        let cpu = cpu_seconds(forwarder.pid()) - before;
        let processed = figure(&told, "number of transactions actually processed:");
        vec![
            ("transactions", "1/s", figure(&told, "tps =")),
            ("latency", "ms", figure(&told, "latency average =")),
            ("processor", "us each", cpu * 1e6 / processed),
        ]
    });
}

fn pgbench(address: SocketAddr, arguments: &[&str]) -> Command {
    let mut command = Command::new(find("pgbench"));
    let port = address.port().to_string();
    // Without TLS, so that a forward may look at the messages.
    command.env("PGSSLMODE", "disable").args(arguments);
    command.args(["-h", "127.0.0.1", "-p", &port, "-U", TRUSTED, DATABASE]).stdin(Stdio::null());
    command
}

fn said(mut command: Command) -> String {
    let output = command.output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

/// The number after these words.
fn figure(told: &str, words: &str) -> f64 {
    let rest = told.split(words).nth(1).unwrap_or_else(|| panic!("pgbench does not say {words} {told}"));
    rest.split_ascii_whitespace().next().unwrap().parse().unwrap()
}
