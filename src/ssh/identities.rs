//! What a login can be tried with: keys and certificates, from files and from an agent, in the order in which the bastion
//! is shown them.
//!
//! Each one that is shown may count as an attempt (sshd's MaxAuthTries, 6 unless set), so what cannot be of use is left
//! out, and where `identity` names keys an agent signs for these and shows no others.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::SystemTime;

use russh::keys::{Certificate, HashAlg, PrivateKey, PublicKey};

use super::agent::{HeldKey, Shown};
use super::certificate;
use super::keys::{self, Unusable, generate_key};
use super::next_key::{next_key_path, old_key_path};
use crate::failure::{Cause, Failure, plain};
use crate::files::{Existing, Placed};
use crate::secret::Secret;
use crate::settings::plan::{AgentPlan, BastionPlan, IdentityPlan, certificate_beside};
use crate::state::CertificateTerm;

/// Who signs.
#[derive(Clone)]
pub(super) enum Signer {
    Key(Arc<PrivateKey>),
    /// The agent, by its name for the key.
    Agent(Vec<u8>),
}

/// A key or certificate to show to the bastion.
pub(super) struct Identity {
    pub(super) shown: Shown,
    pub(super) signer: Signer,
    /// For people.
    pub(super) name: String,
    /// For a certificate that ends.
    pub(super) term: Option<CertificateTerm>,
}

impl fmt::Display for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.shown {
            Shown::Key(key) => {
                let (algorithm, fingerprint) = (key.algorithm(), key.fingerprint(HashAlg::Sha256));
                write!(f, "the {algorithm} key {fingerprint} ({})", self.name)
            }
            Shown::Certificate(certificate) => {
                write!(f, "{} ({})", certificate::describe(certificate), self.name)
            }
        }
    }
}

/// What a login can be tried with.
pub struct Identities {
    /// In the order in which they are tried.
    pub(super) list: Vec<Identity>,
    /// What should have been among them and is not.
    pub(super) setbacks: Vec<Failure>,
    /// Who signs for those in an agent.
    pub(super) agent: Option<AgentPlan>,
    /// The public line of the daemon's own key, where that is what it logs in with.
    pub own_public_key: Option<String>,
    /// The daemon's own key was missing and has just been made.
    pub just_made: bool,
    /// The certificate that the bastion is to see, also where its time is over.
    pub certificate: Option<CertificateTerm>,
}

impl Identities {
    /// Each key and certificate in words, in the order in which they are tried.
    #[must_use]
    pub fn names(&self) -> Vec<String> {
        let words = |identity: &Identity| match &identity.shown {
            Shown::Key(key) => {
                format!("{}, {} {}", identity.name, key.algorithm(), key.fingerprint(HashAlg::Sha256))
            }
            Shown::Certificate(certificate) => {
                format!("{}, {}", identity.name, certificate::describe(certificate))
            }
        };
        self.list.iter().map(words).collect()
    }

    /// What should have been among them and is not.
    #[must_use]
    pub fn setbacks(&self) -> &[Failure] {
        &self.setbacks
    }
}

/// What an agent has; nothing where none is to be asked.
pub type AgentKeys = Option<Result<Vec<HeldKey>, Failure>>;

/// Collects what a bastion's plan says to log in with; makes the daemon's own key when it is missing and may be made.
/// Reads files and may compute for a second (bcrypt), so it belongs on a thread that may block.
///
/// # Errors
/// `auth` `no_identity`, `identity_unreadable`, `passphrase` and `agent`, naming the file or the agent, when nothing is
/// left to log in with.
pub fn load_identities(
    plan: &BastionPlan,
    passphrase: Option<&Secret>,
    agent: AgentKeys,
) -> Result<Identities, Failure> {
    let mut collection = Collection::new(plan, agent);
    let own_key = match &plan.identity {
        IdentityPlan::Own { path, generate } => collection.add_own_key(path, *generate, passphrase)?,
        IdentityPlan::Files(paths) => {
            for path in paths {
                collection.add_file(path, passphrase);
            }
            None
        }
        IdentityPlan::Agent => {
            collection.add_agent();
            None
        }
    };
    collection.check_certificates();
    let Collection { mut certified, keys, setbacks, term, .. } = collection;
    certified.extend(keys);
    match setbacks.first() {
        Some(failure) if certified.is_empty() && plan.password.is_none() => return Err(failure.clone()),
        _ => {}
    }
    let (own_public_key, made) = own_key.unzip();
    Ok(Identities {
        list: certified,
        setbacks,
        agent: plan.agent.clone(),
        own_public_key,
        just_made: made == Some(Placed::Made),
        certificate: term,
    })
}

struct Collection<'a> {
    plan: &'a BastionPlan,
    agent: Vec<HeldKey>,
    agent_failure: Option<Failure>,
    /// The certificates that the plan names.
    named: Vec<(PathBuf, Certificate)>,
    now: SystemTime,
    /// Certificates come first, as ssh shows them: whoever has one has it because the key alone is not enough.
    certified: Vec<Identity>,
    keys: Vec<Identity>,
    setbacks: Vec<Failure>,
    term: Option<CertificateTerm>,
}

impl<'a> Collection<'a> {
    fn new(plan: &'a BastionPlan, agent: AgentKeys) -> Self {
        let (agent, agent_failure) = match agent {
            Some(Ok(keys)) => (keys, None),
            Some(Err(failure)) => (Vec::new(), Some(failure)),
            None => (Vec::new(), None),
        };
        let mut setbacks = Vec::new();
        let mut named = Vec::new();
        for path in &plan.certificates {
            match certificate::read(path) {
                Ok(Some(certificate)) => named.push((path.clone(), certificate)),
                Ok(None) => {
                    let text = format!("there is no certificate {}", path.display());
                    setbacks.push(Failure::new(Cause::AuthIdentityUnreadable, text));
                }
                Err(failure) => setbacks.push(failure),
            }
        }
        let now = SystemTime::now();
        let (certified, keys, term) = (Vec::new(), Vec::new(), None);
        Self { plan, agent, agent_failure, named, now, certified, keys, setbacks, term }
    }

    /// The daemon's own key: its public line, and whether it has just been made. None where it need not be there.
    fn add_own_key(
        &mut self,
        path: &Path,
        generate: bool,
        passphrase: Option<&Secret>,
    ) -> Result<Option<(String, Placed)>, Failure> {
        let name = &self.plan.name;
        // Whoever has taken the key away has not taken the next one, nor the one before: a new one would be of no use.
        let others = [next_key_path(path), old_key_path(path)];
        let others: Vec<PathBuf> = others.into_iter().filter(|other| other.exists()).collect();
        let made = match path.exists() {
            true => {
                self.add_file(path, passphrase);
                Placed::Kept
            }
            false if !others.is_empty() => {
                others.iter().for_each(|other| self.add_file(other, passphrase));
                Placed::Kept
            }
            false if generate => {
                let made = generate_key(path, name, Existing::Keep);
                let made = made.map_err(|error| cannot_make(path, &error))?;
                self.add_file(path, passphrase);
                made
            }
            false if self.plan.password.is_some() => return Ok(None),
            false => {
                let text = format!("bastion \"{name}\" has no key: {} does not exist", path.display());
                return Err(Failure::new(Cause::AuthNoIdentity, text));
            }
        };
        let public = self.keys.first().and_then(|identity| match &identity.shown {
            Shown::Key(key) => key.to_openssh().ok(),
            Shown::Certificate(_) => None,
        });
        Ok(public.map(|line| (line, made)))
    }

    fn add_file(&mut self, path: &Path, passphrase: Option<&Secret>) {
        let name = path.display().to_string();
        let (public, signer) = match keys::load(path, passphrase) {
            Ok(key) => (key.public_key().clone(), Signer::Key(Arc::new(key))),
            Err(Unusable { public: Some(public), .. }) if self.plan.agent.is_some() => {
                return self.add_held_file(path, &public);
            }
            Err(Unusable { failure, .. }) => return self.setbacks.push(failure),
        };
        self.add_certificates(Some(path), &public, &signer);
        self.add(Shown::Key(public), signer, name);
    }

    /// A file that tells which key of the agent is meant.
    fn add_held_file(&mut self, path: &Path, public: &PublicKey) {
        let is_meant = |held: &HeldKey| match &held.shown {
            Shown::Key(key) => key.key_data() == public.key_data(),
            Shown::Certificate(certificate) => certificate.public_key() == public.key_data(),
        };
        let (meant, others) = std::mem::take(&mut self.agent).into_iter().partition::<Vec<_>, _>(is_meant);
        self.agent = others;
        if meant.is_empty() {
            let text = format!("the agent does not have the key of {}", path.display());
            let absent = Failure::new(Cause::AuthAgent, text).with_hint("add it: ssh-add");
            return self.setbacks.push(self.agent_failure.clone().unwrap_or(absent));
        }
        if let Some(key) = meant.iter().find(|held| matches!(held.shown, Shown::Key(_))) {
            self.add_certificates(Some(path), public, &Signer::Agent(key.blob.clone()));
        }
        for HeldKey { shown, blob, .. } in meant {
            self.add(shown, Signer::Agent(blob), format!("{}, in the agent", path.display()));
        }
    }

    fn add_agent(&mut self) {
        let held = std::mem::take(&mut self.agent);
        if held.is_empty() {
            let none =
                || Failure::new(Cause::AuthAgent, "the agent has no keys").with_hint("add one: ssh-add");
            self.setbacks.push(self.agent_failure.take().unwrap_or_else(none));
        }
        for HeldKey { shown, blob, comment } in held {
            let signer = Signer::Agent(blob);
            if let Shown::Key(public) = &shown {
                self.add_certificates(None, public, &signer);
            }
            self.add(shown, signer, format!("\"{comment}\" in the agent"));
        }
    }

    /// The certificates in files that are for a key: those that the plan names, else the one beside the key's file.
    fn add_certificates(&mut self, file: Option<&Path>, key: &PublicKey, signer: &Signer) {
        let named = std::mem::take(&mut self.named);
        let is_for = |(_, certificate): &(PathBuf, Certificate)| certificate.public_key() == key.key_data();
        let (mut meant, others) = named.into_iter().partition::<Vec<_>, _>(is_for);
        self.named = others;
        if let (true, Some(path)) = (self.plan.certificates.is_empty(), file.map(certificate_beside)) {
            match certificate::read(&path) {
                Ok(Some(certificate)) if certificate.public_key() == key.key_data() => {
                    meant.push((path, certificate));
                }
                Ok(Some(certificate)) => self.setbacks.push(for_another_key(&path, &certificate)),
                Ok(None) => {}
                Err(failure) => self.setbacks.push(failure),
            }
        }
        for (path, certificate) in meant {
            let name = path.display().to_string();
            let term = certificate::term(&certificate, Some(path));
            self.add_certificate(Box::new(certificate), term, signer.clone(), name);
        }
    }

    fn add(&mut self, shown: Shown, signer: Signer, name: String) {
        match shown {
            Shown::Key(_) => self.keys.push(Identity { shown, signer, name, term: None }),
            Shown::Certificate(certificate) => {
                let term = certificate::term(&certificate, None);
                self.add_certificate(certificate, term, signer, name);
            }
        }
    }

    fn add_certificate(
        &mut self,
        certificate: Box<Certificate>,
        term: Option<CertificateTerm>,
        signer: Signer,
        name: String,
    ) {
        self.term = self.term.take().or_else(|| term.clone());
        match certificate::check(&certificate, &name, self.now) {
            Ok(()) => {
                self.certified.push(Identity { shown: Shown::Certificate(certificate), signer, name, term });
            }
            Err(failure) => self.setbacks.push(failure),
        }
    }

    /// Whoever names a certificate means it to be used.
    fn check_certificates(&mut self) {
        let left = std::mem::take(&mut self.named);
        self.setbacks.extend(left.iter().map(|(path, certificate)| for_another_key(path, certificate)));
    }
}

fn cannot_make(path: &Path, error: &io::Error) -> Failure {
    Failure::new(
        Cause::AuthNoIdentity,
        format!("the key {} cannot be made: {}", path.display(), plain(error)),
    )
    .with_hint(
        "let the daemon's user write to daemon.state_dir, or name an existing private key with `identity`",
    )
    .from_system(error)
}

fn for_another_key(path: &Path, certificate: &Certificate) -> Failure {
    let fingerprint = certificate.public_key().fingerprint(HashAlg::Sha256);
    let text =
        format!("the certificate {} is for the key {fingerprint}, which is not at hand", path.display());
    Failure::new(Cause::AuthIdentityUnreadable, text).with_hint(
        "let the authority sign the public half of the key that `identity` names, or name that other key",
    )
}
