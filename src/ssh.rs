//! One SSH connection to a bastion: dial, verify, log in, open channels, ping, end. The only module that names
//! russh.
//!
//! It decides nothing about when or how often; [`crate::session`] does. russh 0.65 has hazards that are dealt with
//! here, each where it arises: its inbound queue that stops a whole session (`gate`, `transport`), its writers that
//! never wake (`channel`), its end of a session that looks like an orderly end of data (`channel`), its channels
//! that leak when an open is dropped or a close is ours (`channel`), its readiness to accept whatever a server
//! opens (`guard`), and a login on a dead connection that looks like a rejection (`login`).

mod agent;
mod algorithms;
mod certificate;
mod channel;
mod connect;
mod gate;
mod greeting;
mod guard;
mod host_key;
mod identities;
mod jump;
mod keys;
mod login;
mod next_key;
mod pins;
mod prompts;
mod proxy;
mod refusal;
mod signing;
mod tally;
mod transport;

pub use agent::{HeldKey, list_agent_keys};
pub use certificate::read_certificate_term;
pub use channel::{Connection, Inbound, Outbound};
pub use connect::{Connected, connect};
pub use gate::{BufferMemory, Gate, SINGLE_LIMIT};
pub use host_key::{Seen, look_at_host_keys};
pub use identities::{AgentKeys, Identities, load_identities};
pub use keys::{generate_key, restore_public_key};
pub use login::FetchPassword;
pub use next_key::{NextKey, find_next_key, next_key_path, old_key_path, take_over_next_key};
