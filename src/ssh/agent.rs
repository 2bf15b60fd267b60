//! Asks an ssh-agent what keys it has, and to sign with one (draft-ietf-sshm-ssh-agent, and OpenSSH's PROTOCOL.agent).
//!
//! russh has a client too, but one key that it cannot read costs it the whole list, and it waits for ever. An agent may
//! ask a person before it signs, so each answer has its time, and what is over that is given up.

use std::path::PathBuf;
use std::time::Duration;

use russh::keys::agent::AgentSessionBinding;
use russh::keys::key::parse_public_key;
use russh::keys::{Certificate, HashAlg, PublicKey};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::time::timeout;

use super::certificate;
use crate::failure::{Cause, Failure, plain};
use crate::settings::plan::AgentPlan;

/// How long each answer may take: enough to touch a security key.
const PATIENCE: Duration = Duration::from_secs(10);

/// The longest message that OpenSSH's agent sends.
const MAX_MESSAGE: usize = 256 << 10;

const FAILURE: u8 = 5;
const REQUEST_IDENTITIES: u8 = 11;
const IDENTITIES_ANSWER: u8 = 12;
const SIGN_REQUEST: u8 = 13;
const SIGN_RESPONSE: u8 = 14;
const EXTENSION: u8 = 27;
const RSA_SHA2_256: u32 = 2;
const RSA_SHA2_512: u32 = 4;

/// A key or certificate whose private half is in an agent.
pub struct HeldKey {
    pub(super) shown: Shown,
    /// What the agent calls it when it is asked to sign.
    pub(super) blob: Vec<u8>,
    pub(super) comment: String,
}

/// What a bastion is shown.
#[derive(Clone)]
pub(super) enum Shown {
    Key(PublicKey),
    Certificate(Box<Certificate>),
}

/// The keys that an agent has.
///
/// # Errors
/// `auth` `agent`, when it cannot be asked.
pub async fn list_agent_keys(plan: &AgentPlan) -> Result<Vec<HeldKey>, Failure> {
    Agent::connect(plan).await?.list().await
}

/// A connection to an agent.
pub(super) struct Agent {
    stream: UnixStream,
    socket: PathBuf,
}

impl Agent {
    pub(super) async fn connect(plan: &AgentPlan) -> Result<Self, Failure> {
        let Some(socket) = plan.socket() else {
            let text = "`agent` is true, and $SSH_AUTH_SOCK is not set for the daemon";
            return Err(Failure::new(Cause::AuthAgent, text)
                .with_hint("set it, or write the path of the agent's socket as `agent`"));
        };
        match timeout(PATIENCE, UnixStream::connect(&socket)).await {
            Ok(Ok(stream)) => Ok(Self { stream, socket }),
            Ok(Err(error)) => {
                let text = format!("the agent at {} cannot be reached: {}", socket.display(), plain(&error));
                Err(Failure::new(Cause::AuthAgent, text).from_system(&error))
            }
            Err(_) => Err(silent(&socket.display().to_string())),
        }
    }

    async fn list(&mut self) -> Result<Vec<HeldKey>, Failure> {
        let answer = self.ask(&[REQUEST_IDENTITIES]).await?;
        let keys = match answer.split_first() {
            Some((&IDENTITIES_ANSWER, list)) => parse_list(list),
            _ => None,
        };
        keys.ok_or_else(|| self.failure("gives no list of its keys"))
    }

    /// Tells the agent which host its signatures are for: it may hold keys that are for some only. One that does not
    /// understand has none of these.
    pub(super) async fn bind(&mut self, binding: &AgentSessionBinding) -> Result<(), Failure> {
        let mut request = vec![EXTENSION];
        let (host_key, session) = (binding.host_key(), binding.session_id().as_ref());
        for part in [b"session-bind@openssh.com".as_slice(), host_key, session, binding.signature()] {
            put(&mut request, part);
        }
        request.push(0);
        self.ask(&request).await.map(drop)
    }

    /// A signature in wire format, whatever its algorithm.
    pub(super) async fn sign(
        &mut self,
        key: &[u8],
        hash: Option<HashAlg>,
        data: &[u8],
    ) -> Result<Vec<u8>, Failure> {
        let mut request = vec![SIGN_REQUEST];
        put(&mut request, key);
        put(&mut request, data);
        let (flags, expected) = match hash {
            Some(HashAlg::Sha256) => (RSA_SHA2_256, Some(&b"rsa-sha2-256"[..])),
            Some(HashAlg::Sha512) => (RSA_SHA2_512, Some(&b"rsa-sha2-512"[..])),
            _ => (0, None),
        };
        request.extend(u32::to_be_bytes(flags));
        let answer = self.ask(&request).await?;
        let signature = match answer.split_first() {
            Some((&SIGN_RESPONSE, mut rest)) => take(&mut rest).map(<[u8]>::to_vec),
            Some((&FAILURE, _)) => {
                let text = "refuses to sign: it is locked, nobody confirmed or touched the key, or the key may not \
                            be used for this host";
                return Err(self.failure(text));
            }
            _ => None,
        };
        let signature = signature.ok_or_else(|| self.failure("gives what is no signature"))?;
        match (take(&mut signature.as_slice()), expected) {
            // One of before 2018 signs by SHA-1 whatever it is asked for.
            (Some(algorithm), Some(expected)) if algorithm != expected => {
                Err(self.failure("signs with RSA keys by SHA-1 only: update it, or use an Ed25519 key"))
            }
            _ => Ok(signature),
        }
    }

    async fn ask(&mut self, request: &[u8]) -> Result<Vec<u8>, Failure> {
        match timeout(PATIENCE, exchange(&mut self.stream, request)).await {
            Ok(Ok(answer)) => Ok(answer),
            Ok(Err(error)) => Err(self.failure(&format!("broke off: {}", plain(&error)))),
            Err(_) => Err(silent(&self.socket.display().to_string())),
        }
    }

    fn failure(&self, found: &str) -> Failure {
        Failure::new(Cause::AuthAgent, format!("the agent at {} {found}", self.socket.display()))
    }
}

fn silent(socket: &str) -> Failure {
    let text = format!("the agent at {socket} did not answer within {} s", PATIENCE.as_secs());
    Failure::new(Cause::AuthAgent, text)
        .with_hint("if it waits for somebody to confirm or to touch a key: give it one that needs nobody")
}

async fn exchange(stream: &mut UnixStream, request: &[u8]) -> std::io::Result<Vec<u8>> {
    let mut message = Vec::new();
    put(&mut message, request);
    stream.write_all(&message).await?;
    let len = usize::try_from(stream.read_u32().await?).unwrap_or(usize::MAX);
    if len > MAX_MESSAGE {
        return Err(std::io::Error::other("its answer is too long"));
    }
    let mut answer = vec![0; len];
    stream.read_exact(&mut answer).await?;
    Ok(answer)
}

/// All keys that can be read: one of a kind that we do not know must not hide the others.
fn parse_list(mut list: &[u8]) -> Option<Vec<HeldKey>> {
    let (_count, rest) = list.split_first_chunk::<4>()?;
    list = rest;
    let mut keys = Vec::new();
    while !list.is_empty() {
        let (blob, comment) = (take(&mut list)?, take(&mut list)?);
        let shown = if certificate::is_certificate(blob) {
            certificate::decode(blob).map(|certificate| Shown::Certificate(Box::new(certificate)))
        } else {
            parse_public_key(blob).ok().map(Shown::Key)
        };
        let comment = String::from_utf8_lossy(comment).into_owned();
        keys.extend(shown.map(|shown| HeldKey { shown, blob: blob.to_vec(), comment }));
    }
    Some(keys)
}

/// Appends a string as RFC 4251 section 5 writes it.
pub(super) fn put(message: &mut Vec<u8>, part: &[u8]) {
    message.extend(u32::to_be_bytes(u32::try_from(part.len()).unwrap_or(u32::MAX)));
    message.extend(part);
}

/// Takes one off the front.
fn take<'a>(message: &mut &'a [u8]) -> Option<&'a [u8]> {
    let (len, rest) = message.split_first_chunk::<4>()?;
    let (part, rest) = rest.split_at_checked(usize::try_from(u32::from_be_bytes(*len)).ok()?)?;
    *message = rest;
    Some(part)
}

#[cfg(test)]
mod tests {
    use russh::keys::{Algorithm, PrivateKey};

    use super::*;

    fn answer(blobs: &[&[u8]]) -> Vec<u8> {
        let mut list = u32::to_be_bytes(u32::try_from(blobs.len()).unwrap()).to_vec();
        for blob in blobs {
            put(&mut list, blob);
            put(&mut list, b"comment");
        }
        list
    }

    #[test]
    fn a_key_of_an_unknown_kind_does_not_hide_the_others() {
        let key = PrivateKey::random(&mut russh::keys::key::safe_rng(), Algorithm::Ed25519).unwrap();
        let good = key.public_key().to_bytes().unwrap();
        let mut nested = Vec::new();
        for _ in 0..1000 {
            put(&mut nested, b"ssh-ed25519-cert-v01@openssh.com");
        }
        for odd in [
            &b""[..],
            b"\0\0\0\x07unknown",
            b"\0\0\0\x0bssh-ed25519\0\0\0\x05short",
            b"\xff\xff\xff\xff",
            &nested,
        ] {
            let keys = parse_list(&answer(&[odd, &good])).unwrap();
            let [HeldKey { shown: Shown::Key(shown), blob, comment }] = keys.as_slice() else {
                panic!("{} keys", keys.len());
            };
            assert_eq!(
                (shown.key_data(), blob, comment.as_str()),
                (key.public_key().key_data(), &good, "comment")
            );
        }
        assert!(parse_list(&answer(&[])).unwrap().is_empty());
        for cut in [0, 3, 6, 20] {
            assert!(parse_list(&answer(&[&good])[..cut]).is_none(), "{cut}");
        }
    }

    /// An agent that gives this answer to everything.
    async fn answering(answer: &[u8]) -> (tempfile::TempDir, Agent) {
        let dir = tempfile::tempdir().unwrap();
        let socket = dir.path().join("socket");
        let listener = tokio::net::UnixListener::bind(&socket).unwrap();
        let mut message = Vec::new();
        put(&mut message, answer);
        tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.unwrap();
            stream.read_u32().await.unwrap();
            stream.write_all(&message).await.unwrap();
            let _ = stream.read_to_end(&mut Vec::new()).await;
        });
        let agent = Agent::connect(&AgentPlan::Socket(socket)).await.unwrap();
        (dir, agent)
    }

    fn signature(algorithm: &[u8], rest: &[u8]) -> (Vec<u8>, Vec<u8>) {
        let mut blob = Vec::new();
        put(&mut blob, algorithm);
        blob.extend(rest);
        let mut answer = vec![SIGN_RESPONSE];
        put(&mut answer, &blob);
        (blob, answer)
    }

    #[tokio::test]
    async fn what_a_security_key_signs_is_passed_on_whole() {
        // A signature, then flags and counter (PROTOCOL.u2f).
        let (blob, answer) = signature(b"sk-ssh-ed25519@openssh.com", b"\0\0\0\x04sign\x01\0\0\0\x07");
        let (_dir, mut agent) = answering(&answer).await;
        assert_eq!(agent.sign(b"key", None, b"data").await.unwrap(), blob);
    }

    #[tokio::test]
    async fn what_is_no_good_signature_is_named() {
        let (_, sha1) = signature(b"ssh-rsa", b"\0\0\0\x04sign");
        for (answer, expected) in [
            (&[FAILURE][..], "refuses to sign"),
            (b"", "gives what is no signature"),
            (&[SIGN_RESPONSE, 0, 0, 0, 9], "gives what is no signature"),
            (&vec![0; MAX_MESSAGE + 1], "its answer is too long"),
            (&sha1, "by SHA-1 only"),
        ] {
            let (_dir, mut agent) = answering(answer).await;
            let failure = agent.sign(b"key", Some(HashAlg::Sha512), b"data").await.unwrap_err();
            assert_eq!(failure.cause, Cause::AuthAgent);
            assert!(failure.detail().contains(expected), "{failure}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn one_that_says_nothing_is_given_up() {
        let (dir, mut agent) = answering(b"").await;
        agent.ask(b"x").await.unwrap();
        let failure = agent.list().await.err().unwrap();
        assert!(failure.detail().ends_with("did not answer within 10 s"), "{failure}");
        drop(dir);
    }
}
