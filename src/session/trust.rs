//! Where a session's trust in its bastion's host key comes from, and what is learnt of it.
//!
//! Keys are only ever stored in the known_hosts file of the state directory, whole or not at all, after a look at what
//! all files say at that moment: never over a changed or revoked key, and never beside a file that cannot be read.

use std::io;
use std::path::Path;
use std::sync::Arc;

use tracing::{debug, info, warn};

use super::visit::Visit;
use super::way::place;
use crate::failure::{Cause, Failure, plain};
use crate::files::{self, Existing};
use crate::host_keys::{HostKey, HostKeyPolicy, KnownHosts, Renewal, Shown, Trust, Trusted};
use crate::ids::HostPort;
use crate::milestones::Milestones;
use crate::settings::plan::{BastionPlan, KnownHostsPlan, TrustPlan};
use crate::ssh::{self, Connection, Seen};

/// Larger than any known_hosts file, in bytes.
const MAX_KNOWN_HOSTS: usize = 16 << 20;

/// Reads the trust for one dial.
pub(super) async fn read(plan: &BastionPlan) -> Result<Trust, Failure> {
    let known_hosts = match &plan.trust {
        TrustPlan::Pins(pins) => return Ok(Trust::Pins(pins.clone())),
        TrustPlan::Files(known_hosts) => known_hosts.clone(),
    };
    let policy = known_hosts.policy;
    let known = aside(move || read_files(&known_hosts)).await?;
    Ok(Trust::Files { known, policy })
}

/// Reads all known_hosts files. May block.
///
/// # Errors
/// `host_key` `unreadable`, naming the file.
pub fn read_files(plan: &KnownHostsPlan) -> Result<KnownHosts, Failure> {
    let mut known = KnownHosts::default();
    for path in &plan.files {
        let bytes = match files::read(path, MAX_KNOWN_HOSTS) {
            Ok(bytes) => bytes,
            // It has no line for the bastion, and is named as one of those looked into.
            Err(error) if error.kind() == io::ErrorKind::NotFound && !plan.requires(path) => {
                Default::default()
            }
            Err(error) => {
                let text =
                    format!("the known_hosts file {} cannot be read: {}", path.display(), plain(&error));
                let failure = Failure::new(Cause::HostKeyUnreadable, text);
                return Err(match error.kind() {
                    io::ErrorKind::NotFound => failure.with_hint("make the file, or correct `known_hosts`"),
                    _ => failure.from_system(&error),
                });
            }
        };
        known.read(&path.display().to_string(), &String::from_utf8_lossy(&bytes));
    }
    Ok(known)
}

/// Says how the key becomes known, where it is not.
pub(super) fn advise(plan: &BastionPlan, failure: Failure) -> Failure {
    let TrustPlan::Files(known_hosts) = &plan.trust else { return failure };
    if failure.cause != Cause::HostKeyUnknown {
        return failure;
    }
    let how = match &known_hosts.own {
        Some(_) => format!("run `tunnelkeeper trust {}`", plan.name),
        None => "append the line that `ssh-keyscan` prints to a file that `known_hosts` names".to_owned(),
    };
    let compare = failure.hint().to_owned();
    failure.with_hint(format!("{compare}, then {how}"))
}

/// Stores a key that was trusted on first sight, before anything is told to the bastion.
pub(super) async fn learn(plan: &BastionPlan, seen: &Seen) -> Result<(), Failure> {
    let (Trusted::FirstSight, TrustPlan::Files(known_hosts)) = (seen.trusted, &plan.trust) else {
        return Ok(());
    };
    let (known_hosts, at, key) = (known_hosts.clone(), plan.at.clone(), seen.key.clone());
    if aside(move || store(&known_hosts, &at, |known| first(known, &at, key))).await?.is_some() {
        warn!(
            bastion = %plan.name,
            host_key = %seen.key.fingerprint(),
            hint = format!("compare it with the bastion's own: {}", seen.key.comparison()),
            "stored the first host key of this bastion (host_key_policy = \"accept-new\")"
        );
    }
    Ok(())
}

/// A key that is still the first one. Another dial may have been quicker, and have seen another.
fn first(known: &KnownHosts, at: &HostPort, key: HostKey) -> Result<Option<Renewal>, Failure> {
    let trust = Trust::Files { known: known.clone(), policy: HostKeyPolicy::AcceptNew };
    let shown = Shown::Key(key.clone());
    // The time matters to certificates only.
    Ok(match trust.judge(at, &shown, 0)? {
        Trusted::Known => None,
        Trusted::FirstSight => Some(Renewal::adding(vec![key])),
    })
}

/// Follows the bastion's announcement of its host keys, where the one it has shown was learnt by us.
pub(super) async fn renew(
    plan: Arc<BastionPlan>,
    announcement: impl Future<Output = Option<(Connection, Vec<HostKey>)>>,
    shown: HostKey,
) {
    let TrustPlan::Files(known_hosts) = &plan.trust else { return };
    let (true, Some(own)) = (known_hosts.update, known_hosts.own.clone()) else { return };
    let Some((connection, announced)) = announcement.await.filter(|(_, keys)| !keys.is_empty()) else {
        return;
    };
    let (files, at, own) = (known_hosts.clone(), plan.at.clone(), own.display().to_string());
    let renewal = {
        let at = at.clone();
        move |known: &KnownHosts| known.renewal(&at, &own, &shown, &announced)
    };
    let outcome = async {
        let (first_look, look) = (files.clone(), renewal.clone());
        let Some(wanted) = aside(move || read_files(&first_look).map(|known| look(&known))).await? else {
            return Ok(None);
        };
        if let Err(text) = connection.prove_host_keys(&wanted.new).await {
            debug!(bastion = %plan.name, reason = text, "the bastion did not prove its announced host keys");
            return Ok(None);
        }
        aside(move || {
            store(&files, &at, |known| {
                // What has become new meanwhile is not proved.
                let now = renewal(known).map(|mut now| {
                    now.new.retain(|key| wanted.new.contains(key));
                    now
                });
                Ok(now)
            })
        })
        .await
    };
    match outcome.await {
        Ok(Some(done)) => {
            let list = |keys: &mut dyn Iterator<Item = &HostKey>| {
                keys.map(ToString::to_string).collect::<Vec<_>>().join(", ")
            };
            let (new, gone) = (list(&mut done.new.iter()), list(&mut done.gone.iter().map(|(_, key)| key)));
            if !new.is_empty() {
                info!(bastion = %plan.name, new, "stored the host keys that the bastion announced and proved");
            }
            if !gone.is_empty() {
                info!(bastion = %plan.name, gone, "removed host keys that the bastion does not announce any more");
            }
        }
        Ok(None) => {
            debug!(bastion = %plan.name, "the bastion announced its host keys, and nothing follows from it");
        }
        Err(failure) => warn!(
            bastion = %plan.name,
            reason = failure.detail(),
            hint = failure.hint(),
            "the host keys that the bastion announced are not stored"
        ),
    }
}

/// Fetches the host keys of a bastion through its jumps, outermost first. It logs in to these as itself, and to the
/// bastion not at all.
///
/// # Errors
/// Those of any hop.
pub async fn fetch(plan: &BastionPlan, jumps: &[Arc<BastionPlan>]) -> Result<Vec<HostKey>, Failure> {
    let outer = pass(jumps).await?;
    ssh::look_at_host_keys(plan, outer.as_deref().map(Visit::connection)).await
}

/// Logs in to jumps, one through the other, and learns nothing of them. Returns the innermost.
pub(super) async fn pass(jumps: &[Arc<BastionPlan>]) -> Result<Option<Arc<Visit>>, Failure> {
    let mut outer: Option<Arc<Visit>> = None;
    for jump in jumps {
        let jump = &Arc::new(as_known(jump));
        let visit = Visit::make(jump, outer, &Milestones::default()).await;
        outer = Some(Arc::new(visit.map_err(|failure| failure.at(&place(jump)))?));
    }
    Ok(outer)
}

/// A plan by which nothing is learnt: whoever confirms one key, or asks about another matter, has not been asked about
/// this one.
pub(super) fn as_known(plan: &BastionPlan) -> BastionPlan {
    let mut plan = plan.clone();
    if let TrustPlan::Files(known_hosts) = &mut plan.trust {
        known_hosts.policy = HostKeyPolicy::Strict;
    }
    plan
}

/// Changes the known_hosts file of the state directory by what `decide` makes of all files, and returns that. Nobody
/// else changes it meanwhile. May block.
///
/// # Errors
/// Those of `decide`, and `host_key` `unreadable` where a file cannot be read or this one not be written.
pub fn store(
    known_hosts: &KnownHostsPlan,
    at: &HostPort,
    decide: impl FnOnce(&KnownHosts) -> Result<Option<Renewal>, Failure>,
) -> Result<Option<Renewal>, Failure> {
    let Some(own) = &known_hosts.own else {
        let text = format!("no known_hosts file of the daemon's own is read for {at}");
        return Err(Failure::new(Cause::HostKeyUnreadable, text));
    };
    let cannot = |error: io::Error| {
        let text = format!("{} cannot be changed: {}", own.display(), plain(&error));
        let hint = match error.kind() {
            io::ErrorKind::ResourceBusy => {
                "find out with `fuser -v` which process it is, and end it, or wait until it is done"
            }
            _ if own.is_symlink() => "replace the link by a file",
            _ => {
                "let the daemon's user write to daemon.state_dir, and run `tunnelkeeper trust` as that user or root"
            }
        };
        Failure::new(Cause::HostKeyUnreadable, text).with_hint(hint).from_system(&error)
    };
    let dir = own.parent().unwrap_or(Path::new("."));
    files::make_dir(dir).map_err(cannot)?;
    let _alone = files::lock(&own.with_extension("lock")).map_err(cannot)?;
    let Some(renewal) = decide(&read_files(known_hosts)?)? else { return Ok(None) };
    let text = files::read_own(own, MAX_KNOWN_HOSTS).map_err(cannot)?;
    let text = renewal.apply(at, &text);
    files::place(own, 0o644, &text, Existing::Replace).map_err(cannot)?;
    Ok(Some(renewal))
}

async fn aside<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, Failure> + Send + 'static,
) -> Result<T, Failure> {
    let done = files::read_aside(work).await;
    done.map_err(|text| Failure::new(Cause::HostKeyUnreadable, format!("the known_hosts files: {text}")))?
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
    use std::path::PathBuf;

    use super::*;

    fn key(name: &str) -> HostKey {
        HostKey { key_type: "ssh-ed25519".to_owned(), blob: name.as_bytes().to_vec() }
    }

    /// The plan of a daemon whose state is kept in `state_dir`.
    fn plan(state_dir: &Path, others: &[PathBuf]) -> KnownHostsPlan {
        let own = state_dir.join("known_hosts");
        let files = [others, std::slice::from_ref(&own)].concat();
        KnownHostsPlan { files, named: true, own: Some(own), policy: HostKeyPolicy::AcceptNew, update: true }
    }

    fn bastion() -> HostPort {
        HostPort::new("b", 22)
    }

    fn learn(plan: &KnownHostsPlan, name: &str) -> Result<bool, Failure> {
        store(plan, &bastion(), |known| first(known, &bastion(), key(name))).map(|done| done.is_some())
    }

    fn cause(result: Result<bool, Failure>) -> Cause {
        result.unwrap_err().cause
    }

    #[test]
    fn a_first_key_is_stored_once_and_none_over_it() {
        let dir = tempfile::tempdir().unwrap();
        let plan = plan(&dir.path().join("state"), &[]);
        assert_eq!(learn(&plan, "a"), Ok(true));
        assert_eq!(learn(&plan, "a"), Ok(false));
        assert_eq!(cause(learn(&plan, "b")), Cause::HostKeyChanged);
        let own = plan.own.unwrap();
        assert_eq!(fs::read_to_string(&own).unwrap(), "b ssh-ed25519 YQ==\n");
        assert_eq!(fs::metadata(&own).unwrap().mode() & 0o777, 0o644);
        assert_eq!(fs::metadata(own.with_extension("lock")).unwrap().mode() & 0o777, 0o600);
        assert_eq!(fs::read_dir(own.parent().unwrap()).unwrap().count(), 2, "something was left behind");
    }

    #[test]
    fn of_many_at_a_time_one_is_first() {
        let dir = tempfile::tempdir().unwrap();
        let plan = plan(&dir.path().join("state"), &[]);
        let names: Vec<String> = (0..8).map(|number| number.to_string()).collect();
        let learnt = std::thread::scope(|scope| {
            let dials: Vec<_> = names.iter().map(|name| scope.spawn(|| learn(&plan, name).is_ok())).collect();
            dials.into_iter().map(|dial| dial.join().unwrap()).filter(|learnt| *learnt).count()
        });
        assert_eq!(learnt, 1);
        assert_eq!(fs::read_to_string(plan.own.unwrap()).unwrap().lines().count(), 1);
    }

    #[test]
    fn whoever_holds_the_directory_holds_up_nobody_and_a_lock_not_for_ever() {
        let dir = tempfile::tempdir().unwrap();
        let plan = plan(dir.path(), &[]);
        let directory = fs::File::open(dir.path()).unwrap();
        directory.lock().unwrap();
        assert_eq!(learn(&plan, "a"), Ok(true));
        let lock = fs::File::open(dir.path().join("known_hosts.lock")).unwrap();
        lock.lock().unwrap();
        let failure = learn(&plan, "a").unwrap_err();
        assert!(failure.detail().ends_with("known_hosts.lock for too long"), "{failure}");
        assert!(failure.hint().contains("fuser -v"), "{}", failure.hint());
        drop(lock);
        assert_eq!(learn(&plan, "a"), Ok(false));
    }

    #[test]
    fn nothing_is_learnt_beside_what_cannot_be_read() {
        let dir = tempfile::tempdir().unwrap();
        let (state_dir, other) = (dir.path().join("state"), dir.path().join("other"));
        let with_other = plan(&state_dir, std::slice::from_ref(&other));
        assert_eq!(cause(learn(&with_other, "a")), Cause::HostKeyUnreadable);
        fs::create_dir(&other).unwrap();
        assert_eq!(cause(learn(&with_other, "a")), Cause::HostKeyUnreadable);
        fs::remove_dir(&other).unwrap();
        fs::write(&other, "@revoked * ssh-ed25519 YQ==").unwrap();
        assert_eq!(cause(learn(&with_other, "a")), Cause::HostKeyRevoked);
        // What others may have put in the way is not followed.
        let own = with_other.own.clone().unwrap();
        symlink(&other, &own).unwrap();
        let failure = learn(&with_other, "b").unwrap_err();
        assert!(failure.detail().ends_with("known_hosts cannot be changed: it is a link"), "{failure}");
        assert_eq!(failure.hint(), "replace the link by a file");
        fs::remove_file(&own).unwrap();
        assert_eq!(learn(&with_other, "b"), Ok(true));
    }

    #[test]
    fn what_root_stores_belongs_to_the_owner_of_the_directory() {
        if !nix::unistd::geteuid().is_root() {
            return;
        }
        let dir = tempfile::tempdir().unwrap();
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o700)).unwrap();
        std::os::unix::fs::chown(dir.path(), Some(12345), Some(54321)).unwrap();
        let plan = plan(dir.path(), &[]);
        assert_eq!(learn(&plan, "a"), Ok(true));
        let metadata = fs::metadata(plan.own.unwrap()).unwrap();
        assert_eq!((metadata.uid(), metadata.gid()), (12345, 54321));
    }
}
