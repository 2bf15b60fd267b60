//! What a bastion that announces its host keys changes in what was learnt of it: OpenSSH's `UpdateHostKeys`, see
//! `hostkeys-00@openssh.com` in PROTOCOL in its source.

use super::known_hosts::{Entry, KnownHosts, Marker, beside};
use super::{Fingerprint, HostKey, names};
use crate::ids::HostPort;

/// The changes of one file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Renewal {
    /// New keys. The bastion has yet to prove that it has them.
    pub new: Vec<HostKey>,
    /// What the bastion announces beside each new key, to be written on its line.
    pub beside: Vec<Fingerprint>,
    /// Keys that the bastion does not have any more, and their lines, counted from 1.
    pub gone: Vec<(usize, HostKey)>,
}

impl Renewal {
    /// Only adds keys, of which nobody has announced anything.
    #[must_use]
    pub fn adding(new: Vec<HostKey>) -> Self {
        Self { new, beside: Vec::new(), gone: Vec::new() }
    }
}

impl KnownHosts {
    /// What changes in the file `own`, whose lines are among these, when the bastion that has shown the key `shown`
    /// announces `announced`. Nothing unless `shown` was learnt there, and everything that is known of the bastion
    /// too: what somebody else says of it, or of an authority for it, is not ours to overrule.
    ///
    /// A key is gone only where one that is still announced was once announced beside it, as its line says: then one
    /// sshd had both. It has to be of the same type, if there is one. Behind one name there may be several sshds, each
    /// with keys of its own and perhaps some that all have.
    #[must_use]
    pub fn renewal(
        &self,
        bastion: &HostPort,
        own: &str,
        shown: &HostKey,
        announced: &[HostKey],
    ) -> Option<Renewal> {
        let names = names(bastion);
        let learnt: Vec<_> = self.entries_for(names.first()?, Marker::None).collect();
        let elsewhere = names.iter().flat_map(|name| self.entries_for(name, Marker::None));
        let is_ours = learnt.iter().any(|entry| entry.key == *shown)
            && learnt.iter().all(|entry| entry.is_learnt())
            && elsewhere.into_iter().all(|entry| entry.is_in(own))
            && self.authorities(bastion).next().is_none();
        if !is_ours {
            return None;
        }
        let is_new = |key: &&HostKey| {
            learnt.iter().all(|entry| entry.key != **key) && self.revocation(bastion, key).is_none()
        };
        let stays = |key: &HostKey| key == shown || announced.contains(key);
        let has_successor = |gone: &Entry| {
            let same_type = |key: &HostKey| key.key_type == gone.key.key_type;
            let type_stays = announced.iter().any(same_type);
            learnt.iter().any(|entry| {
                stays(&entry.key)
                    && (same_type(&entry.key) || !type_stays)
                    && (entry.was_beside(gone) || gone.was_beside(entry))
            })
        };
        let gone = learnt.iter().filter(|entry| !stays(&entry.key) && has_successor(entry));
        let renewal = Renewal {
            new: announced.iter().filter(is_new).cloned().collect(),
            beside: announced.iter().map(HostKey::fingerprint).collect(),
            gone: gone.map(|entry| (entry.line(), entry.key.clone())).collect(),
        };
        (!renewal.new.is_empty() || !renewal.gone.is_empty()).then_some(renewal)
    }
}

impl Renewal {
    /// The file's text after the changes. Other lines stay as they are, down to the byte.
    #[must_use]
    pub fn apply(&self, bastion: &HostPort, text: &[u8]) -> Vec<u8> {
        let lines = text.split_inclusive(|byte| *byte == b'\n').enumerate();
        let is_gone = |index: usize| self.gone.iter().any(|(line, _)| *line == index + 1);
        let kept = lines.filter(|(index, _)| !is_gone(*index)).map(|(_, line)| line);
        let mut text = kept.collect::<Vec<_>>().concat();
        for key in &self.new {
            if !text.is_empty() && !text.ends_with(b"\n") {
                text.push(b'\n');
            }
            text.extend_from_slice(super::line(bastion, key).as_bytes());
            text.extend_from_slice(beside(&self.beside, key).as_bytes());
            text.push(b'\n');
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(name: &str) -> HostKey {
        HostKey { key_type: "ssh-ed25519".to_owned(), blob: name.as_bytes().to_vec() }
    }

    fn bastion() -> HostPort {
        HostPort::new("b", 2222)
    }

    fn line(name: &str) -> String {
        super::super::line(&bastion(), &key(name))
    }

    /// What `keys` change where the bastion shows `a`, as new keys and lines that are gone.
    fn renewal(own: &str, other: &str, keys: &[&str]) -> Option<(Vec<HostKey>, Vec<usize>)> {
        let mut known = KnownHosts::default();
        known.read("other", other);
        known.read("own", own);
        let keys: Vec<HostKey> = keys.iter().map(|name| key(name)).collect();
        let renewal = known.renewal(&bastion(), "own", &key("a"), &keys)?;
        Some((renewal.new, renewal.gone.into_iter().map(|(line, _)| line).collect()))
    }

    #[test]
    fn only_what_was_learnt_is_renewed() {
        let base64 = |name: &str| data_encoding::BASE64.encode(name.as_bytes());
        let beside = beside(&[key("a").fingerprint(), key("old").fingerprint()], &key("old"));
        let own = format!("# ours\n{}\n{}{beside}\n", line("a"), line("old"));
        let changed = Some((vec![key("new")], vec![3]));
        assert_eq!(renewal(&own, "", &["a", "new"]), changed);
        assert_eq!(renewal(&own, "", &["a", "old"]), None);
        assert_eq!(renewal(&own, "", &["a"]), Some((vec![], vec![3])));
        assert_eq!(renewal(&own, "", &["old"]), None, "the key in use stays, announced or not");
        assert_eq!(renewal(&own, "", &["new"]), changed);
        // A bastion of another name, or another port's, says nothing of this one.
        assert_eq!(renewal(&own, &format!("c ssh-ed25519 {}", base64("old")), &["a", "new"]), changed);
        let of_port_22 = format!("b ssh-ed25519 {}\n", base64("x"));
        assert_eq!(
            renewal(&format!("{of_port_22}{}", line("a")), "", &["a", "new"]),
            Some((vec![key("new")], vec![]))
        );
        for (what, own, other) in [
            ("the key was not learnt", line("old"), String::new()),
            ("another file has it", own.clone(), line("a")),
            ("another file has it without a port", own.clone(), format!("b ssh-ed25519 {}", base64("a"))),
            ("it was learnt for the host", format!("b ssh-ed25519 {}", base64("a")), String::new()),
            ("an authority", own.clone(), format!("@cert-authority * ssh-ed25519 {}", base64("ca"))),
            ("an authority of ours", format!("{own}@cert-authority b ssh-ed25519 YQ=="), String::new()),
            ("several names", format!("[b]:2222,c ssh-ed25519 {}", base64("a")), String::new()),
            ("a pattern", format!("{own}[b]:* ssh-ed25519 {}", base64("x")), String::new()),
        ] {
            assert_eq!(renewal(&own, &other, &["a", "new"]), None, "{what}");
        }
        let revoked = format!("@revoked * ssh-ed25519 {}", base64("new"));
        assert_eq!(renewal(&own, &revoked, &["a", "old", "new"]), None);
    }

    #[test]
    fn only_what_one_sshd_had_takes_the_place_of_the_other() {
        let two = format!("{}\n{}\n", line("a"), line("b"));
        assert_eq!(renewal(&two, "", &["a"]), None, "it may be another sshd's");
        assert_eq!(renewal(&two, "", &["a", "new"]), Some((vec![key("new")], vec![])));
        // `a`, then `b` beside it, then `b` alone; whichever of the two lines says so.
        let all = [key("a").fingerprint(), key("b").fingerprint()];
        for (first, second) in [("b", "a"), ("a", "b")] {
            let renewed = Renewal { new: vec![key(second)], beside: all.to_vec(), gone: Vec::new() };
            let text = renewed.apply(&bastion(), line(first).as_bytes());
            let gone = if first == "b" { 1 } else { 2 };
            assert_eq!(renewal(str::from_utf8(&text).unwrap(), "", &["a"]), Some((vec![], vec![gone])));
        }
    }

    #[test]
    fn other_lines_stay_as_they_are() {
        let renewal = Renewal { gone: vec![(2, key("gone"))], ..Renewal::adding(vec![key("new")]) };
        let new = format!("{}\n", line("new"));
        for (before, after) in [
            (&b"# \xff\r\ngone\nkept"[..], format!("# \u{fffd}\r\nkept\n{new}")),
            (b"", new.clone()),
            (b"kept\n", format!("kept\n{new}")),
        ] {
            assert_eq!(String::from_utf8_lossy(&renewal.apply(&bastion(), before)), after);
        }
    }
}
