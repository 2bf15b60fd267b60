#![doc = include_str!("../README.md")]

pub mod backoff;
pub mod failure;
pub mod ids;
pub mod secret;
pub mod snapshot;
pub mod state;

pub mod host_keys;
pub mod keepalive;
pub mod pgwire;
pub mod placement;
pub mod retry;
pub mod verdict;

pub mod settings;

pub mod board;
pub mod dial;
pub mod lanes;
pub mod metrics;

pub mod client;
pub mod credentials;
pub mod listener;
pub mod postgres;
pub mod pump;
pub mod signals;
pub mod socket_table;
pub mod ssh;
pub mod stamps;

pub mod session;

pub mod forward;
pub mod probe;
pub mod tunnel;

pub mod supervisor;

pub mod http;
pub mod telemetry;

pub mod app;
pub mod cli;
