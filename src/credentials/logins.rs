//! A database's logins, one after the other, as the configuration says. For whoever logs in to it.
//!
//! A temporary login is used again until its last fifth, at least the last minute of it, has begun; where no new one
//! can be had then, until its end. One that the database has refused is not used again. A cloud that gives none is
//! left alone for a while.

use std::time::{Duration, Instant, SystemTime};

use super::databricks::Lakebase;
use super::{Minted, mint};
use crate::backoff::Bounds;
use crate::clock::now;
use crate::failure::{Cause, Failure};
use crate::ids::Target;
use crate::secret::Login;
use crate::settings::plan::LoginPlan;
use crate::state::Moment;

/// A login is renewed no later than this before its end: it still has to be shown.
const MARGIN: Duration = Duration::from_secs(60);

/// How long a cloud is left alone that has given no login; twice as long each time.
const PAUSE: Bounds = Bounds { min: Duration::from_secs(60), max: Duration::from_secs(300) };

/// The logins of one database. Whoever asks has it for himself, so that one is asked for at a time.
pub struct Logins {
    plan: LoginPlan,
    target: Target,
    lakebase: Lakebase,
    kept: Option<Kept>,
    pause: Option<Pause>,
}

struct Kept {
    login: Login,
    renew_at: Instant,
    expires: Moment,
}

/// The cloud is not asked until then.
struct Pause {
    until: Instant,
    /// How often in a row it gave none.
    failures: u32,
    failure: Failure,
}

/// What has come of asking for a login.
#[derive(Debug)]
pub struct Asked {
    /// A new one, or the last one where it is still good.
    pub login: Result<Login, Failure>,
    /// Of a temporary login, where a new one was asked for: when it expires, or why there is none.
    pub mint: Option<Result<Option<SystemTime>, Failure>>,
}

impl Logins {
    /// `target` is where the database really is, which some logins are signed for.
    #[must_use]
    pub fn new(plan: LoginPlan, target: Target) -> Self {
        Self { plan, target, lakebase: Lakebase::default(), kept: None, pause: None }
    }

    /// Whether they are what a configuration asks for.
    #[must_use]
    pub fn are_for(&self, plan: &LoginPlan, target: &Target) -> bool {
        (&self.plan, &self.target) == (plan, target)
    }

    /// A login that the database should take. The future may be dropped at any time.
    pub async fn get(&mut self) -> Asked {
        let asked = now();
        if let Some(kept) = self.good().filter(|kept| asked.instant < kept.renew_at) {
            return Asked { login: Ok(kept.login.clone()), mint: None };
        }
        if let Some(pause) = self.pause.as_ref().filter(|pause| asked.instant < pause.until) {
            let failure = pause.failure.clone();
            return Asked { login: self.last_good().ok_or(failure), mint: None };
        }
        let minted = mint(&self.plan, &self.target, &self.lakebase).await;
        let mint = minted.as_ref().map(|minted| minted.expires).map_err(Clone::clone);
        let mint = self.plan.credentials.are_temporary().then_some(mint);
        let login = match minted {
            Ok(minted) => Ok(self.keep(minted, asked)),
            Err(failure) => {
                self.pause(&failure);
                self.last_good().ok_or(failure)
            }
        };
        Asked { login, mint }
    }

    /// The database has refused the last one.
    pub fn forget(&mut self) {
        self.kept = None;
    }

    /// Its life is measured by a clock that nobody sets.
    fn keep(&mut self, minted: Minted, asked: Moment) -> Login {
        let Minted { login, expires } = minted;
        self.pause = None;
        self.kept = expires.and_then(|expires| {
            let life = expires.duration_since(asked.wall).unwrap_or_default();
            let use_for = life.saturating_sub(MARGIN.max(life / 5));
            let renew_at = asked.instant.checked_add(use_for)?;
            let expires = Moment { instant: asked.instant.checked_add(life)?, wall: expires };
            Some(Kept { login: login.clone(), renew_at, expires })
        });
        login
    }

    /// What is read on this machine may be asked for at any time.
    fn pause(&mut self, failure: &Failure) {
        if failure.cause == Cause::CredentialsMissing {
            return;
        }
        let failures = self.pause.as_ref().map_or(0, |pause| pause.failures) + 1;
        let until = now().instant + PAUSE.ceiling(failures);
        self.pause = Some(Pause { until, failures, failure: failure.clone() });
    }

    fn last_good(&self) -> Option<Login> {
        self.good().map(|kept| kept.login.clone())
    }

    /// By both clocks: the one that nobody sets stands still while the machine sleeps.
    fn good(&self) -> Option<&Kept> {
        let at = now();
        self.kept.as_ref().filter(|kept| at.instant < kept.expires.instant && at.wall < kept.expires.wall)
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::Path;

    use tempfile::NamedTempFile;
    use tokio::time::advance;

    use super::*;
    use crate::ids::HostPort;
    use crate::secret::{Secret, SecretSource};
    use crate::settings::plan::{AwsKeysPlan, CredentialsPlan};

    const MINUTE: Duration = Duration::from_secs(60);

    /// Of a database that takes tokens for a quarter of an hour, signed with a key that stands in a file.
    fn logins(key: &Path) -> Logins {
        let secret = |text: &str| SecretSource::Plain(Secret::new(text.to_owned()));
        let keys = AwsKeysPlan::Keys {
            id: secret("AKIDEXAMPLE"),
            secret: SecretSource::File(key.to_owned()),
            session_token: None,
        };
        let credentials =
            CredentialsPlan::RdsIam { user: "probe".to_owned(), region: "eu-west-1".to_owned(), keys };
        let target = Target::Tcp(HostPort::new("db.eu-west-1.rds.amazonaws.com", 5432));
        Logins::new(LoginPlan { database: None, credentials }, target)
    }

    fn password(asked: Asked) -> String {
        asked.login.unwrap().password.unwrap().expose().to_owned()
    }

    #[tokio::test(start_paused = true)]
    async fn a_login_is_used_until_its_last_fifth_and_renewed_then() {
        let key = NamedTempFile::new().unwrap();
        fs::write(&key, "one").unwrap();
        let mut logins = logins(key.path());
        let first = logins.get().await;
        let expires = first.mint.clone().unwrap().unwrap().unwrap();
        assert!(expires > SystemTime::now() + 14 * MINUTE);
        let first = password(first);
        fs::write(&key, "two").unwrap();
        advance(11 * MINUTE).await;
        let again = logins.get().await;
        assert!(again.mint.is_none());
        assert_eq!(password(again), first);
        advance(2 * MINUTE).await;
        let renewed = logins.get().await;
        assert!(matches!(renewed.mint, Some(Ok(Some(_)))), "{renewed:?}");
        assert_ne!(password(renewed), first);
    }

    #[tokio::test(start_paused = true)]
    async fn where_no_new_one_can_be_had_the_last_one_is_used_to_its_end() {
        let key = NamedTempFile::new().unwrap();
        fs::write(&key, "one").unwrap();
        let mut logins = logins(key.path());
        let first = password(logins.get().await);
        fs::remove_file(&key).unwrap();
        advance(14 * MINUTE).await;
        let asked = logins.get().await;
        assert_eq!(asked.mint.clone().unwrap().unwrap_err().cause, Cause::CredentialsMissing);
        assert_eq!(password(asked), first);
        advance(MINUTE + Duration::from_secs(1)).await;
        assert_eq!(logins.get().await.login.unwrap_err().cause, Cause::CredentialsMissing);
    }

    #[tokio::test(start_paused = true)]
    async fn one_that_the_database_has_refused_is_not_used_again() {
        let key = NamedTempFile::new().unwrap();
        fs::write(&key, "one").unwrap();
        let mut logins = logins(key.path());
        let first = password(logins.get().await);
        fs::write(&key, "two").unwrap();
        logins.forget();
        let second = logins.get().await;
        assert!(second.mint.is_some());
        assert_ne!(password(second), first);
    }

    #[tokio::test(start_paused = true)]
    async fn a_cloud_that_gives_none_is_left_alone_for_a_while() {
        // Bound, so that nobody else gets it, and listened on by nobody.
        let kept = tokio::net::TcpSocket::new_v4().unwrap();
        kept.bind("127.0.0.1:0".parse().unwrap()).unwrap();
        let port = kept.local_addr().unwrap().port();
        let secret = |text: &str| SecretSource::Plain(Secret::new(text.to_owned()));
        let credentials = CredentialsPlan::RedshiftServerlessIam {
            workgroup: "nightly".to_owned(),
            region: "eu-west-1".to_owned(),
            keys: AwsKeysPlan::Keys { id: secret("id"), secret: secret("secret"), session_token: None },
            endpoint_url: Some(format!("http://127.0.0.1:{port}")),
        };
        let target = Target::Tcp(HostPort::new("db", 5439));
        let mut logins = Logins::new(LoginPlan { database: None, credentials }, target);
        for pause in [1, 2, 4, 5, 5].map(|minutes| minutes * MINUTE) {
            let asked = logins.get().await;
            assert_eq!(asked.mint.unwrap().unwrap_err().cause, Cause::CredentialsUnreachable);
            advance(pause - Duration::from_secs(1)).await;
            let told = logins.get().await;
            assert!(told.mint.is_none(), "it is asked within {pause:?}");
            assert_eq!(told.login.unwrap_err().cause, Cause::CredentialsUnreachable);
            advance(Duration::from_secs(2)).await;
        }
    }

    #[tokio::test]
    async fn a_password_is_fetched_anew_each_time_and_none_is_counted_for_it() {
        let file = NamedTempFile::new().unwrap();
        let source = Some(SecretSource::File(file.path().to_owned()));
        let credentials = CredentialsPlan::Password { user: "me".to_owned(), password: source };
        let target = Target::Tcp(HostPort::new("db", 5432));
        let mut logins = Logins::new(LoginPlan { database: None, credentials }, target);
        for text in ["one", "two"] {
            fs::write(&file, text).unwrap();
            let asked = logins.get().await;
            assert!(asked.mint.is_none());
            assert_eq!(password(asked), text);
        }
    }
}
