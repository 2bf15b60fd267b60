//! The daemon as a service: what systemd is told of it for as long as it runs.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::sleep;
use tracing::error;

use crate::board::Board;
use crate::failure::{Cause, one_line};
use crate::ids::Name;
use crate::supervisor::Pulse;
use crate::systemd;

/// How many tunnels are named: systemd takes no message of 4 KiB.
const MAX_NAMED: usize = 10;

/// The longest line, in characters.
const MAX_LINE: usize = 1000;

/// How soon `systemctl status` shows a change.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// Tells systemd for ever. Returns at once where nothing listens.
pub(super) async fn report(board: Arc<Board>, pulse: Pulse) {
    if systemd::listens() {
        tokio::join!(show_status(&board), feed_watchdog(&pulse));
    }
}

async fn show_status(board: &Board) {
    let mut shown = String::new();
    loop {
        let (up, down) = board.tunnels();
        let line = line(up, &down, &board.remarks());
        if line != shown {
            systemd::status(line.clone()).await;
            shown = line;
        }
        sleep(LOOK_EVERY).await;
    }
}

/// Says that the daemon lives as often as all of it has answered.
async fn feed_watchdog(pulse: &Pulse) {
    let Some(limit) = systemd::watchdog() else { return };
    let patience = limit / 4;
    loop {
        let silent = pulse.silent(patience).await;
        if silent.is_empty() {
            systemd::alive().await;
        } else {
            let (silent, limit_s) = (silent.join(", "), limit.as_secs());
            let hint = "please report this with the log";
            error!(
                silent,
                limit_s, hint, "parts of the daemon do not answer: systemd starts it anew if that lasts"
            );
        }
        sleep(patience).await;
    }
}

fn line(up: usize, down: &[(Name, Option<Cause>)], remarks: &[String]) -> String {
    let mut parts = vec![format!("{up} of {} tunnels up", up + down.len())];
    let explain = |(name, cause): &(Name, Option<Cause>)| match cause {
        Some(cause) => format!("{name} ({} {})", cause.phase().as_str(), cause.reason()),
        None => name.to_string(),
    };
    if !down.is_empty() {
        let named = down.iter().take(MAX_NAMED).map(explain).collect::<Vec<_>>().join(", ");
        let more = match down.len().saturating_sub(MAX_NAMED) {
            0 => String::new(),
            more => format!(" and {more} more"),
        };
        parts.push(format!("down: {named}{more}"));
    }
    parts.extend_from_slice(remarks);
    one_line(&parts.join("; "), MAX_LINE)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_line_says_what_is_down_and_why() {
        let name = |text| Name::parse(text).unwrap();
        assert_eq!(line(2, &[], &[]), "2 of 2 tunnels up");
        let down = [(name("edge"), None), (name("prod"), Some(Cause::TcpRefused))];
        assert_eq!(line(1, &down, &[]), "1 of 3 tunnels up; down: edge, prod (tcp refused)");
        let many = vec![(name("edge"), None); 12];
        assert!(line(0, &many, &[]).ends_with("edge, edge and 2 more"));
        assert_eq!(line(0, &[], &["not reloaded".to_owned()]), "0 of 0 tunnels up; not reloaded");
    }
}
