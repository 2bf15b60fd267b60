//! A database's logins, one after the other, as the configuration says. For whoever logs in to it.
//!
//! A temporary login is used again until its last fifth, at least the last minute of it, has begun; where no new one
//! can be had then, until its end. One that the database has refused is not used again.

use std::time::{Duration, SystemTime};

use tracing::debug;

use super::databricks::Lakebase;
use super::{Minted, mint};
use crate::clock::now;
use crate::failure::Failure;
use crate::ids::Target;
use crate::secret::Login;
use crate::settings::plan::LoginPlan;

/// A login is not given out when it expires so soon: it still has to be shown.
const MARGIN: Duration = Duration::from_secs(60);

/// The logins of one database. Whoever asks has it for himself, so that one is asked for at a time.
pub struct Logins {
    plan: LoginPlan,
    target: Target,
    lakebase: Lakebase,
    kept: Option<Kept>,
}

struct Kept {
    login: Login,
    renew_at: SystemTime,
    expires: SystemTime,
}

/// What has come of asking for a login.
#[derive(Debug)]
pub struct Asked {
    /// A new one, or the last one where it is still good.
    pub login: Result<Login, Failure>,
    /// What the cloud gave where it was asked: when that expires, or why there is nothing.
    pub mint: Option<Result<Option<SystemTime>, Failure>>,
}

impl Logins {
    /// `target` is where the database really is, which some logins are signed for.
    #[must_use]
    pub fn new(plan: LoginPlan, target: Target) -> Self {
        Self { plan, target, lakebase: Lakebase::default(), kept: None }
    }

    /// A login that the database should take. The future may be dropped at any time.
    pub async fn get(&mut self) -> Asked {
        let asked_at = now().wall;
        if let Some(kept) = self.kept.as_ref().filter(|kept| asked_at < kept.renew_at) {
            return Asked { login: Ok(kept.login.clone()), mint: None };
        }
        let minted = mint(&self.plan, &self.target, &self.lakebase).await;
        let mint = self.plan.credentials.are_temporary().then(|| minted.as_ref().map(|minted| minted.expires).map_err(Clone::clone));
        let login = match minted {
            Ok(minted) => Ok(self.keep(minted, asked_at)),
            Err(failure) => self.last_good(now().wall).ok_or(failure),
        };
        Asked { login, mint }
    }

    /// The database has refused the last one.
    pub fn forget(&mut self) {
        self.kept = None;
    }

    fn keep(&mut self, minted: Minted, asked_at: SystemTime) -> Login {
        let Minted { login, expires } = minted;
        self.kept = expires.and_then(|expires| {
            let life = expires.duration_since(asked_at).unwrap_or_default();
            let renew_at = expires.checked_sub(MARGIN.max(life / 5))?;
            Some(Kept { login: login.clone(), renew_at, expires })
        });
        login
    }

    fn last_good(&self, at: SystemTime) -> Option<Login> {
        let kept = self.kept.as_ref().filter(|kept| at < kept.expires)?;
        debug!("no new login can be had: the last one is used until it expires");
        Some(kept.login.clone())
    }
}
