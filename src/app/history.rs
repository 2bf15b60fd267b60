//! Keeps the history that the status page draws, for as long as there is a page.

use std::sync::Arc;

use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

use crate::board::Board;
use crate::clock::now;
use crate::history::TELL_EVERY;

/// Has the board take note of how things are, until it is stopped.
pub(super) async fn keep(board: Arc<Board>, stop: CancellationToken) {
    loop {
        board.record(now().instant);
        tokio::select! {
            () = stop.cancelled() => return,
            () = sleep(TELL_EVERY) => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::{MetadataExt, PermissionsExt};
    use std::time::Duration;

    use tokio::sync::watch;

    use super::*;
    use crate::history::{BUCKETS, Unit};
    use crate::settings::plan::Plan;
    use crate::settings::{self, Surroundings};
    use crate::state::TunnelState;

    fn plan() -> Plan {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("tunnelkeeper.toml");
        let database = "[databases.analytics]\nbastion = \"prod\"\nhost = \"h\"\nlisten = \"127.0.0.1:0\"\n";
        fs::write(&path, format!("[bastions.prod]\nhost = \"b\"\nuser = \"u\"\n{database}")).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
        let uid = fs::metadata(&path).unwrap().uid();
        let surroundings = Surroundings { uid, config_option: Some(path), ..Surroundings::default() };
        settings::load(&surroundings).unwrap().plan
    }

    #[tokio::test(start_paused = true)]
    async fn what_has_been_is_kept_until_the_unit_goes_or_the_page_does() {
        let (board, stop) = (Arc::new(Board::default()), CancellationToken::new());
        let bastion = Arc::clone(&plan().bastions[0]);
        let unit = Unit::Bastion(bastion.name.clone());
        let (tell, tunnel) = watch::channel(Arc::<TunnelState>::default());
        board.put_tunnel(Arc::clone(&bastion), tunnel.clone(), watch::channel(None).1);
        let task = tokio::spawn(keep(Arc::clone(&board), stop.clone()));
        sleep(Duration::from_secs(3600)).await;
        let known = |board: &Board| {
            let history = board.history();
            let track = history.track(&unit).unwrap();
            track.buckets().filter(|bucket| bucket.reachable().is_some()).count()
        };
        assert_eq!(known(&board), 0);
        let mut up = TunnelState::default();
        up.uptime.set(true, now());
        tell.send_replace(Arc::new(up));
        sleep(Duration::from_secs(600)).await;
        assert!((20..=21).contains(&known(&board)), "{}", known(&board));
        assert_eq!(board.history().changes().count(), 1);
        // A reload puts it up once more.
        board.put_tunnel(bastion, tunnel.clone(), watch::channel(None).1);
        sleep(Duration::from_secs(7200)).await;
        assert_eq!(known(&board), BUCKETS);
        let Unit::Bastion(name) = &unit else { unreachable!() };
        board.remove_tunnel(name, &tunnel);
        sleep(TELL_EVERY).await;
        assert!(board.history().track(&unit).is_none());
        stop.cancel();
        task.await.unwrap();
    }
}
