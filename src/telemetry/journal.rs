//! Standard error where it is systemd's journal: each line begins with its priority, which the journal takes off again, so
//! that `journalctl --priority=warning` finds what it should.

use std::io::{self, Write};

use tracing::{Level, Metadata};
use tracing_subscriber::fmt::MakeWriter;

/// Makes a writer for each event.
pub(super) struct Journal;

/// Writes one event.
pub(super) struct Line {
    /// As sd-daemon(3) has it: a number of syslog's in angle brackets.
    priority: &'static str,
}

fn priority(level: Level) -> &'static str {
    match level {
        Level::ERROR => "<3>",
        Level::WARN => "<4>",
        Level::INFO => "<6>",
        Level::DEBUG | Level::TRACE => "<7>",
    }
}

impl<'a> MakeWriter<'a> for Journal {
    type Writer = Line;

    fn make_writer(&'a self) -> Line {
        Line { priority: priority(Level::INFO) }
    }

    fn make_writer_for(&'a self, event: &Metadata<'_>) -> Line {
        Line { priority: priority(*event.level()) }
    }
}

impl Write for Line {
    /// An event comes in one piece, and goes in one, so that no other line comes between.
    fn write(&mut self, event: &[u8]) -> io::Result<usize> {
        let line = [self.priority.as_bytes(), event].concat();
        io::stderr().write_all(&line)?;
        Ok(event.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        io::stderr().flush()
    }
}
