//! Signs a login: with a private key that is at hand, or through an agent.
//!
//! russh can sign by itself with a private key, but names the wrong algorithm for the certificate of an RSA key; so all
//! that is shown to a bastion is signed here.

use russh::keys::agent::{AgentIdentity, AgentSessionBinding};
use russh::keys::signature::Signer as _;
use russh::keys::ssh_encoding::Encode;
use russh::keys::ssh_key::private::KeypairData;
use russh::keys::ssh_key::{self, Signature};
use russh::keys::{HashAlg, PrivateKey};
use russh::{SendError, Signer as RusshSigner};

use super::agent::{self, Agent};
use super::identities::Signer;
use super::login::Awaited;
use crate::failure::{Cause, Failure};
use crate::settings::plan::AgentPlan;

/// What russh asks for a signature.
pub(super) struct Signing<'a> {
    pub(super) signer: &'a Signer,
    /// The agent, and the connection to it once there is one.
    pub(super) plan: Option<&'a AgentPlan>,
    pub(super) agent: &'a mut Option<Agent>,
    /// What an agent is told of the connection that it signs for.
    pub(super) binding: Option<AgentSessionBinding>,
    pub(super) awaited: &'a mut Awaited,
}

/// Why there is no signature.
pub(super) enum Unsigned {
    Failed(Failure),
    /// The connection to the bastion is.
    Gone,
}

impl From<SendError> for Unsigned {
    fn from(_: SendError) -> Self {
        Self::Gone
    }
}

impl RusshSigner for Signing<'_> {
    type Error = Unsigned;

    /// Returns what is to be signed with the signature behind it, as russh wants it.
    async fn auth_sign(
        &mut self,
        _: &AgentIdentity,
        hash: Option<HashAlg>,
        mut to_sign: Vec<u8>,
    ) -> Result<Vec<u8>, Unsigned> {
        let signature = match self.signer {
            Signer::Key(key) => sign(key, hash, &to_sign).map_err(|error| cannot(&error))?,
            Signer::Agent(key) => {
                *self.awaited = Awaited::Agent;
                let signature = self.agent().await?.sign(key, hash, &to_sign).await;
                *self.awaited = Awaited::Bastion;
                signature.map_err(|failure| {
                    // A late answer must not be taken for that to the next question.
                    *self.agent = None;
                    Unsigned::Failed(failure)
                })?
            }
        };
        agent::put(&mut to_sign, &signature);
        Ok(to_sign)
    }
}

impl Signing<'_> {
    async fn agent(&mut self) -> Result<&mut Agent, Unsigned> {
        if self.agent.is_none() {
            let plan = self.plan.unwrap_or(&AgentPlan::Environment);
            let mut agent = Agent::connect(plan).await.map_err(Unsigned::Failed)?;
            if let Some(binding) = &self.binding {
                agent.bind(binding).await.map_err(Unsigned::Failed)?;
            }
            *self.agent = Some(agent);
        }
        let none = || Unsigned::Failed(Failure::new(Cause::AuthAgent, "there is no agent"));
        self.agent.as_mut().ok_or_else(none)
    }
}

fn sign(key: &PrivateKey, hash: Option<HashAlg>, data: &[u8]) -> ssh_key::Result<Vec<u8>> {
    let signature: Signature = match key.key_data() {
        KeypairData::Rsa(key) => (key, hash).try_sign(data)?,
        key => key.try_sign(data)?,
    };
    Ok(signature.encode_vec()?)
}

fn cannot(error: &ssh_key::Error) -> Unsigned {
    let text = format!("the private key cannot sign: {error}");
    Unsigned::Failed(Failure::new(Cause::AuthIdentityUnreadable, text))
}
