//! The daemon against real servers: OpenSSH's sshd and PostgreSQL, with faults put in between by a relay of ours.
//!
//! Each module is a promise of the product. `support` starts what they need, on free loopback ports and in
//! temporary directories, and ends it with the test, also when the test fails.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::print_stderr,
    clippy::print_stdout,
    missing_docs,
    unreachable_pub,
    reason = "these are tests: a panic is how they fail"
)]

mod support;

mod agents;
mod alerting;
mod alerts;
mod architecture;
mod aws;
mod balancer;
mod carried;
mod causes;
mod certificates;
mod commands;
mod container;
mod contract;
mod crowd;
mod doctor;
mod explained;
mod failover;
mod faults;
mod fuzzed;
mod grafana;
mod half_open;
mod host_keys;
mod hostile;
mod idle_cuts;
mod jobs;
mod jumps;
mod kinds;
mod kubernetes;
mod library;
mod lifetime;
mod logins;
mod minted;
mod outage;
mod page;
mod passwords;
mod queries;
mod reload;
mod rotation;
mod secrets;
mod service;
mod soak;
mod sockets;
mod stalled;
mod surfaces;
mod tokens;
mod trust;
mod ways;
