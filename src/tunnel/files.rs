//! The files whose change may end a bastion's refusal: while it refuses us they are looked at now and then, so that
//! whoever mends one need not wait for the next attempt.

use std::path::PathBuf;
use std::time::Duration;

use tokio::time::Instant;

use crate::secret::SecretSource;
use crate::settings::plan::{AgentPlan, BastionPlan, IdentityPlan, TrustPlan};
use crate::stamps::Stamps;

/// How often the files are looked at.
const LOOK_EVERY: Duration = Duration::from_secs(2);

pub(super) struct Files {
    paths: Vec<PathBuf>,
    /// How they looked before the last dial.
    before: Option<Stamps>,
    watched: Option<Watched>,
}

struct Watched {
    stamps: Stamps,
    due: Instant,
}

impl Files {
    pub(super) fn of<'a>(bastions: impl Iterator<Item = &'a BastionPlan>) -> Self {
        Self { paths: bastions.flat_map(files_of).collect(), before: None, watched: None }
    }

    /// A dial begins that may be refused: what is mended while it goes on has to be noticed too.
    pub(super) fn remember(&mut self) {
        self.before = Some(Stamps::take(self.paths.clone()));
    }

    /// The bastion refuses us.
    pub(super) fn watch(&mut self) {
        let before = self.before.take();
        if self.watched.is_none() {
            let stamps = before.unwrap_or_else(|| Stamps::take(self.paths.clone()));
            self.watched = Some(Watched { stamps, due: Instant::now() });
        }
    }

    /// It does not, or not any more.
    pub(super) fn forget(&mut self) {
        self.watched = None;
    }

    /// Whether one has changed since the last look, and when to look again.
    pub(super) fn look(&mut self) -> (bool, Option<Instant>) {
        let Some(watched) = &mut self.watched else { return (false, None) };
        if Instant::now() < watched.due {
            return (false, Some(watched.due));
        }
        watched.due = Instant::now() + LOOK_EVERY;
        let retaken = watched.stamps.retake();
        let changed = retaken != watched.stamps;
        watched.stamps = retaken;
        (changed, Some(watched.due))
    }
}

fn files_of(plan: &BastionPlan) -> Vec<PathBuf> {
    let mut paths = match &plan.identity {
        IdentityPlan::Files(files) => files.clone(),
        IdentityPlan::Own { path, .. } => vec![path.clone()],
        IdentityPlan::Agent => Vec::new(),
    };
    paths.extend(plan.certificate_files());
    for secret in [&plan.passphrase, &plan.password] {
        if let Some(SecretSource::File(path)) = secret {
            paths.push(path.clone());
        }
    }
    // An agent that was started again has another socket.
    paths.extend(plan.agent.as_ref().and_then(AgentPlan::socket));
    match &plan.trust {
        TrustPlan::Files(known) => paths.extend(known.files.iter().cloned()),
        TrustPlan::Pins(_) => {}
    }
    paths
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn what_is_mended_during_the_dial_is_noticed() {
        let dir = tempfile::tempdir().unwrap();
        let key = dir.path().join("key");
        let mut files = Files { paths: vec![key.clone()], before: None, watched: None };
        assert_eq!(files.look(), (false, None));
        files.remember();
        std::fs::write(&key, "mended").unwrap();
        files.watch();
        assert!(files.look().0, "it was mended before we looked");
        assert!(!files.look().0);
        std::fs::write(&key, "mended once more").unwrap();
        assert!(!files.look().0, "it is not looked at all the time");
        tokio::time::advance(LOOK_EVERY).await;
        assert!(files.look().0);
        files.forget();
        assert_eq!(files.look(), (false, None));
    }
}
