//! PostgreSQL's wire protocol, as far as a forward must know it: what a client asks for first, where one message
//! ends and the next begins, what is asked and answered, and the few messages that we send ourselves.
//!
//! Source: PostgreSQL documentation, "Frontend/Backend Protocol", "Message Formats". Nothing here keeps the text
//! of a query, a password or a result, and nothing here changes or delays a byte: [`Observer`] only watches.

mod cycles;
mod error;
mod frame;
mod observer;
mod reply;
mod session;
mod startup;

pub use error::ErrorClass;
pub use observer::{Encryption, Observer};
pub use reply::{ENCRYPTION_REFUSED, SqlState, fatal};
pub use session::Event;
pub use startup::{First, MAX_STARTUP_LEN, Request, SSL_REQUEST, first_request};
