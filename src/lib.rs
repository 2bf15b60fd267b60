//! tunnelkeeper keeps SSH tunnels to database bastions open, forwards a local port to each database, holds clients
//! through an outage, probes every database, and says which hop failed. The README shows it to users; this page
//! shows the house to those who change it.
//!
//! The modules stand on floors. A file uses modules of lower floors only, and its own; those on one floor do not
//! know each other (words may). Values go down as arguments, knowledge comes up through `watch` channels and returned exits.
//! Each outside crate has one door: only `ssh` names russh, only `postgres` tokio-postgres, only `metrics`
//! prometheus, only `http` and `client` hyper, only `signals` signal-hook, only `settings` config, only
//! `telemetry` tracing-subscriber, only `listener` sd-listen-fds, only `systemd` sd-notify,
//! only `credentials` AWS's crates and reqwest. A test reads `src/` and enforces all of this.
//!
//! ```text
//! files, environment ─► settings (Plan) ─► supervisor ─► tunnel ─► session ─► ssh ⇄ bastion
//!                                            │             ▲ Dial
//!                                            ├─► forward ──┤ ─► pump ⇄ client
//!                                            └─► probe ────┘ ─► postgres
//!  board ◄── watch ── tunnel, forward, probe               metrics ◄── handles
//!    └─► http (/readyz /status /)                             └─► /metrics
//! ```

// Floor 0: words. Plain data; they may use each other, but not in a circle.
pub mod backoff;
pub mod failure;
pub mod ids;
pub mod local;
pub mod milestones;
pub mod secret;
pub mod snapshot;
pub mod state;

// Floor 1: rules. Decisions without I/O and without a clock.
pub mod history;
pub mod host_keys;
pub mod idle_cut;
pub mod keepalive;
pub mod pgwire;
pub mod placement;
pub mod retry;
pub mod verdict;

// Floor 2: settings. Reads files and the environment, opens nothing else.
pub mod settings;

// Floor 3: instruments.
pub mod board;
pub mod clock;
pub mod dial;
pub mod files;
pub mod lanes;
pub mod metrics;
pub mod process_group;
pub mod socket;

// Floor 4: edges. Each touches one thing outside.
pub mod client;
pub mod credentials;
pub mod listener;
pub mod postgres;
pub mod pump;
pub mod signals;
pub mod socket_table;
pub mod ssh;
pub mod stamps;
pub mod systemd;

// Floor 5: one SSH connection from dial to exit.
pub mod session;

// Floor 6: units. One loop each.
pub mod forward;
pub mod probe;
pub mod rotation;
pub mod tunnel;

// Floor 7: sets the others to work, once or for good.
pub mod doctor;
pub mod supervisor;

// Floor 8: surfaces. They read snapshots.
pub mod http;
pub mod telemetry;

// Floor 9: the daemon as a whole.
pub mod app;

// Floor 10: the command line.
pub mod cli;
