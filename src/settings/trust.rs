//! Reads where trust in a bastion's host key comes from.

use std::path::PathBuf;

use super::plan::{DaemonPlan, KnownHostsPlan, TrustPlan};
use super::reader::{Report, Section};
use crate::host_keys::{Fingerprint, HostKeyPolicy};

super::values::words!(HostKeyPolicy { "strict" => Self::Strict, "accept-new" => Self::AcceptNew });

pub(super) fn read(section: &mut Section, daemon: &DaemonPlan, report: &mut Report) -> Option<TrustPlan> {
    let (named, pinned) = (section.has("known_hosts"), section.has("host_key"));
    let own = daemon.state_dir.join("known_hosts");
    let files = if named || pinned {
        section.get("known_hosts", report)
    } else {
        let mut defaults = vec![PathBuf::from("/etc/tunnelkeeper/known_hosts"), own.clone()];
        defaults.extend(report.home.as_ref().map(|home| home.join(".ssh/known_hosts")));
        Some(section.get_or("known_hosts", defaults, report))
    };
    let pins: Option<Vec<Fingerprint>> = section.get("host_key", report);
    let policy = section.get_or("host_key_policy", HostKeyPolicy::Strict, report);
    let update = section.get_or("update_host_keys", true, report);
    if pinned {
        if named {
            let text = "is not read where `host_key` pins keys: keep one of the two";
            report.problem(section, "known_hosts", text);
        }
        if policy == HostKeyPolicy::AcceptNew {
            let text = "learns nothing where `host_key` pins keys: keep one of the two";
            report.problem(section, "host_key_policy", text);
        }
        if update && section.has("update_host_keys") {
            let text = "follows nothing where `host_key` pins keys: keep one of the two";
            report.problem(section, "update_host_keys", text);
        }
        return pins.map(TrustPlan::Pins);
    }
    let mut files: Vec<PathBuf> = files?;
    // What is learnt has to be read again, or every key would be a first one.
    if policy == HostKeyPolicy::AcceptNew && !files.contains(&own) {
        files.push(own.clone());
    }
    let own = files.contains(&own).then_some(own);
    Some(TrustPlan::Files(KnownHostsPlan { files, named, own, policy, update }))
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::super::tests::{Case, SMALLEST};
    use super::*;

    #[test]
    fn where_host_keys_are_kept() {
        let trust = |keys: &str| {
            let case = Case::new(&SMALLEST.replace("[databases", &format!("{keys}\n[databases")))
                .env("STATE_DIRECTORY", "/state");
            match &case.load().plan.bastions[0].trust {
                TrustPlan::Files(known_hosts) => known_hosts.clone(),
                TrustPlan::Pins(_) => panic!("{keys} pins"),
            }
        };
        let (own, theirs) = (Path::new("/state/known_hosts"), Path::new("/theirs"));
        let named = trust("known_hosts = \"/theirs\"");
        assert_eq!((named.files.as_slice(), named.own.as_deref()), (&[theirs.to_owned()][..], None));
        let both = trust("known_hosts = [\"/theirs\", \"/state/known_hosts\"]\nupdate_host_keys = false");
        assert_eq!((both.own.as_deref(), both.update), (Some(own), false));
        assert!(both.requires(theirs) && !both.requires(own));
        // What is learnt is read.
        let learning = trust("known_hosts = \"/theirs\"\nhost_key_policy = \"accept-new\"");
        assert_eq!(learning.policy, HostKeyPolicy::AcceptNew);
        assert_eq!(learning.files, [theirs, own]);
        assert_eq!(learning.own.as_deref(), Some(own));
        let pin = "host_key = \"SHA256:47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU\"";
        for (keys, expected) in [
            (
                format!("{pin}\nhost_key_policy = \"accept-new\""),
                "bastions.prod.host_key_policy: learns nothing where `host_key` pins keys",
            ),
            (
                format!("{pin}\nupdate_host_keys = true"),
                "bastions.prod.update_host_keys: follows nothing where `host_key` pins keys",
            ),
            (format!("{pin}\nknown_hosts = \"/theirs\""), "bastions.prod.known_hosts: is not read where"),
            (
                "host_key_policy = \"no\"".to_owned(),
                "bastions.prod.host_key_policy: \"no\" is not one of \"strict\", \"accept-new\"",
            ),
        ] {
            let problems =
                Case::new(&SMALLEST.replace("[databases", &format!("{keys}\n[databases"))).problems();
            assert!(problems.len() == 1 && problems[0].contains(expected), "{problems:?}");
        }
    }
}
