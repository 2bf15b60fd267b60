//! tunnelkeeper against its peers: `ssh -L` and `autossh`, through one real sshd, to one real PostgreSQL, in one run.
//!
//! `cargo bench --bench against_openssh -- [CASE]... [OPTIONS]`. All of it is on this machine's loopback. Forwarders
//! take turns, A B A B, so that what else the machine does falls on all of them; the table shows medians with the least
//! and the most, and ratios of medians. A figure of one machine says little about another one: the ratios are what counts.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::print_stdout,
    clippy::print_stderr,
    missing_docs,
    unreachable_pub,
    reason = "nobody waits for its answer but the person who started it: a panic is how it fails"
)]

mod arguments;
mod cases;
mod link;
mod peers;
mod report;
mod servers;
mod stage;
mod usage;

/// What the integration tests stand on.
#[path = "../../tests/it"]
#[allow(dead_code, unused_imports, reason = "the tests use the rest of it")]
mod it {
    pub mod support;
}
use it::support;

use clap::Parser;

use arguments::Arguments;
use report::Report;
use stage::Stage;

fn main() {
    let arguments = Arguments::parse();
    if arguments.list {
        return cases::ALL.iter().for_each(|case| println!("{}", case.name));
    }
    let plan = arguments.plan();
    let stage = Stage::set();
    let mut report = Report::new(&plan);
    for case in &plan.cases {
        eprintln!("{}", case.name);
        (case.run)(&stage, &plan, report.case(case.name));
        report.save(&plan.json);
    }
    println!("{report}\nThe same as JSON: {}", plan.json.display());
}
