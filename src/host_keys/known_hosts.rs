//! The format of known_hosts files: see "SSH_KNOWN_HOSTS FILE FORMAT" in OpenSSH's sshd(8).

use std::sync::Arc;

use aws_lc_rs::hmac;
use data_encoding::BASE64;

use super::{Fingerprint, HostKey, names};
use crate::ids::HostPort;

/// What a line says of its key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Marker {
    None,
    Revoked,
    CertAuthority,
}

/// The names a line is for.
#[derive(Clone, Debug)]
enum Hosts {
    /// Patterns with `*` and `?`; `true` = negated.
    Patterns(Vec<(bool, String)>),
    /// `|1|salt|HMAC-SHA1(salt, name)`.
    Hashed { salt: Vec<u8>, hash: Vec<u8> },
}

impl Hosts {
    fn parse(text: &str) -> Option<Self> {
        let Some(hashed) = text.strip_prefix("|1|") else {
            let patterns = text.split(',').filter(|pattern| !pattern.is_empty()).map(|pattern| {
                let lower = pattern.to_ascii_lowercase();
                match lower.strip_prefix('!') {
                    Some(rest) => (true, rest.to_owned()),
                    None => (false, lower),
                }
            });
            return Some(Self::Patterns(patterns.collect()));
        };
        let (salt, hash) = hashed.split_once('|')?;
        Some(Self::Hashed {
            salt: BASE64.decode(salt.as_bytes()).ok()?,
            hash: BASE64.decode(hash.as_bytes()).ok()?,
        })
    }

    /// `name` is in lower case, with brackets and port where the port is not 22.
    fn matches(&self, name: &str) -> bool {
        match self {
            Self::Hashed { salt, hash } => hash_name(salt, name) == *hash,
            Self::Patterns(patterns) => {
                let hit = |negated| {
                    patterns
                        .iter()
                        .any(|(neg, pattern)| *neg == negated && glob(pattern.as_bytes(), name.as_bytes()))
                };
                hit(false) && !hit(true)
            }
        }
    }
}

/// HMAC-SHA1 is what the format prescribes; it hides names from casual readers and protects nothing else.
pub(super) fn hash_name(salt: &[u8], name: &str) -> Vec<u8> {
    let key = hmac::Key::new(hmac::HMAC_SHA1_FOR_LEGACY_USE_ONLY, salt);
    hmac::sign(&key, name.as_bytes()).as_ref().to_vec()
}

/// `*` matches any run of characters, `?` exactly one. Linear in the length of `text` for each `*`.
fn glob(pattern: &[u8], text: &[u8]) -> bool {
    let (mut p, mut t) = (0, 0);
    let mut backtrack: Option<(usize, usize)> = None;
    while t < text.len() {
        match pattern.get(p) {
            Some(b'*') => {
                backtrack = Some((p + 1, t));
                p += 1;
            }
            Some(c) if *c == b'?' || text.get(t) == Some(c) => {
                p += 1;
                t += 1;
            }
            _ => match backtrack {
                Some((after_star, from)) => {
                    p = after_star;
                    t = from + 1;
                    backtrack = Some((after_star, from + 1));
                }
                None => return false,
            },
        }
    }
    pattern.get(p..).is_some_and(|rest| rest.iter().all(|c| *c == b'*'))
}

/// The line for a bastion's key, as OpenSSH writes it.
#[must_use]
pub fn line(bastion: &HostPort, key: &HostKey) -> String {
    let name = names(bastion).into_iter().next().unwrap_or_default();
    format!("{name} {} {}", key.key_type, BASE64.encode(&key.blob))
}

/// Begins the comment of a key that a bastion has announced.
const BESIDE: &str = "announced-with:";

/// The comment, after a space, of a `key` that was announced with all of these.
pub(super) fn beside(all: &[Fingerprint], key: &HostKey) -> String {
    let others = all.iter().filter(|fingerprint| **fingerprint != key.fingerprint());
    let others: Vec<String> = others.map(ToString::to_string).collect();
    if others.is_empty() { String::new() } else { format!(" {BESIDE}{}", others.join(",")) }
}

/// One line of a known_hosts file.
#[derive(Clone, Debug)]
pub struct Entry {
    file: Arc<str>,
    line: usize,
    marker: Marker,
    hosts: Hosts,
    beside: Vec<Fingerprint>,
    /// The key, its type as written.
    pub key: HostKey,
}

impl Entry {
    /// `file:line`.
    #[must_use]
    pub fn place(&self) -> String {
        format!("{}:{}", self.file, self.line)
    }

    pub(super) fn line(&self) -> usize {
        self.line
    }

    /// Whether its key was announced with that of another line.
    pub(super) fn was_beside(&self, other: &Self) -> bool {
        self.beside.contains(&other.key.fingerprint())
    }

    pub(super) fn is_in(&self, file: &str) -> bool {
        *self.file == *file
    }

    /// Whether it may be one of those that are learnt: they are for one name.
    pub(super) fn is_learnt(&self) -> bool {
        match &self.hosts {
            Hosts::Hashed { .. } => true,
            Hosts::Patterns(patterns) => matches!(patterns.as_slice(),
                [(false, name)] if !name.contains(['*', '?'])),
        }
    }

    fn parse(file: &Arc<str>, line: usize, text: &str) -> Option<Self> {
        let mut words = text.split_ascii_whitespace().peekable();
        let marker = match *words.peek()? {
            "@revoked" => Marker::Revoked,
            "@cert-authority" => Marker::CertAuthority,
            word if word.starts_with('@') => return None,
            _ => Marker::None,
        };
        if marker != Marker::None {
            words.next();
        }
        let hosts = Hosts::parse(words.next()?)?;
        let key_type = words.next()?.to_owned();
        let blob = BASE64.decode(words.next()?.as_bytes()).ok()?;
        let beside = words.next().and_then(|comment| comment.strip_prefix(BESIDE)).unwrap_or_default();
        let beside = beside.split(',').filter_map(|text| Fingerprint::parse(text).ok()).collect();
        Some(Self { file: Arc::clone(file), line, marker, hosts, beside, key: HostKey { key_type, blob } })
    }
}

/// What is known of a bastion's key.
#[derive(Clone, Debug)]
pub enum Standing<'a> {
    /// This line has it.
    Known(&'a Entry),
    /// This line revokes it, whatever others say.
    Revoked(&'a Entry),
    /// This line has another of its type.
    Changed(&'a Entry),
    /// Nothing. There may be keys of these other types.
    Unknown(Vec<&'a str>),
}

/// The lines of all known_hosts files of a bastion.
#[derive(Clone, Debug, Default)]
pub struct KnownHosts {
    entries: Vec<Entry>,
    files: Vec<Arc<str>>,
}

impl KnownHosts {
    /// Adds a file's lines. A line that is not understood is passed over, as OpenSSH does.
    pub fn read(&mut self, file: &str, text: &str) {
        let file: Arc<str> = file.into();
        let lines = text.lines().enumerate().map(|(index, line)| (index + 1, line.trim()));
        let lines = lines.filter(|(_, line)| !line.is_empty() && !line.starts_with('#'));
        self.entries.extend(lines.filter_map(|(number, line)| Entry::parse(&file, number, line)));
        self.files.push(file);
    }

    /// What is known of a key of the bastion at `bastion`.
    #[must_use]
    pub fn standing(&self, bastion: &HostPort, key: &HostKey) -> Standing<'_> {
        if let Some(entry) = self.revocation(bastion, key) {
            return Standing::Revoked(entry);
        }
        let exact: Vec<&Entry> = names(bastion)
            .first()
            .map(|name| self.entries_for(name, Marker::None).collect())
            .unwrap_or_default();
        if let Some(entry) = exact.iter().find(|entry| entry.key == *key) {
            return Standing::Known(entry);
        }
        if let Some(entry) = exact.iter().find(|entry| entry.key.key_type == key.key_type) {
            return Standing::Changed(entry);
        }
        // A line without the port may have the key of another port's sshd, and says nothing against it.
        match self.all_for(bastion, Marker::None).find(|entry| entry.key == *key) {
            Some(entry) => Standing::Known(entry),
            None => Standing::Unknown(types(exact.into_iter())),
        }
    }

    /// The line that revokes a key, be it a host's or an authority's.
    pub(super) fn revocation(&self, bastion: &HostPort, key: &HostKey) -> Option<&Entry> {
        self.all_for(bastion, Marker::Revoked).find(|entry| entry.key.blob == key.blob)
    }

    /// The lines of authorities that may vouch for the bastion.
    pub fn authorities(&self, bastion: &HostPort) -> impl Iterator<Item = &Entry> {
        self.all_for(bastion, Marker::CertAuthority)
    }

    /// The keys of the bastion that are not among those which it shows: those under its exact name, if there are some.
    #[must_use]
    pub fn not_shown(&self, bastion: &HostPort, shown: &[HostKey]) -> Vec<&Entry> {
        let by_name =
            names(bastion).into_iter().map(|name| self.entries_for(&name, Marker::None).collect::<Vec<_>>());
        let known = by_name.into_iter().find(|entries| !entries.is_empty()).unwrap_or_default();
        known.into_iter().filter(|entry| !shown.contains(&entry.key)).collect()
    }

    /// The types of the bastion's keys, without repetition: those under its exact name, if there are some.
    pub(super) fn key_types(&self, bastion: &HostPort) -> Vec<&str> {
        let by_name = names(bastion).into_iter().map(|name| types(self.entries_for(&name, Marker::None)));
        by_name.into_iter().find(|types| !types.is_empty()).unwrap_or_default()
    }

    fn all_for(&self, bastion: &HostPort, marker: Marker) -> impl Iterator<Item = &Entry> {
        names(bastion).into_iter().flat_map(move |name| self.entries_for(&name, marker))
    }

    pub(super) fn entries_for<'a>(
        &'a self,
        name: &str,
        marker: Marker,
    ) -> impl Iterator<Item = &'a Entry> + use<'a> {
        let name = name.to_owned();
        self.entries.iter().filter(move |entry| entry.marker == marker && entry.hosts.matches(&name))
    }

    /// The files read, as the subject of a sentence.
    pub(super) fn describe_files(&self) -> String {
        match self.files.as_slice() {
            [] => "the known_hosts files have".to_owned(),
            [one] => format!("{one} has"),
            [many @ .., last] => format!("{} and {last} have", many.join(", ")),
        }
    }
}

fn types<'a>(entries: impl Iterator<Item = &'a Entry>) -> Vec<&'a str> {
    let mut types: Vec<&str> = Vec::new();
    for entry in entries {
        if !types.contains(&entry.key.key_type.as_str()) {
            types.push(&entry.key.key_type);
        }
    }
    types
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn globs() {
        for (pattern, text, expected) in [
            ("*", "", true),
            ("a*c", "abbc", true),
            ("a*c", "abbd", false),
            ("*.example.*", "b.example.com", true),
            ("a**b", "ab", true),
            ("?", "", false),
            ("??", "ab", true),
            ("", "a", false),
            ("*a*a*a*b", "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa", false),
        ] {
            assert_eq!(glob(pattern.as_bytes(), text.as_bytes()), expected, "{pattern} on {text}");
        }
    }
}
