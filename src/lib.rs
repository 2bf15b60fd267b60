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
pub mod ssh;
