//! Who the probe logs in as, and where what it takes comes from.

use std::path::{Path, PathBuf};

use crate::secret::SecretSource;

/// The probe's login.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LoginPlan {
    /// The database's own default (mostly the user's name) if none.
    pub database: Option<String>,
    /// Where user and password come from.
    pub credentials: CredentialsPlan,
}

/// Where a database's user and password come from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CredentialsPlan {
    /// From the configuration.
    Password {
        /// The database's user.
        user: String,
        /// Needed unless the database trusts the bastion.
        password: Option<SecretSource>,
    },
    /// A token for Amazon RDS or Aurora, signed here.
    RdsIam {
        /// The database's user, which has the role `rds_iam`.
        user: String,
        /// The database's region.
        region: String,
        /// Who signs.
        keys: AwsKeysPlan,
    },
    /// A temporary password from `redshift:GetClusterCredentials`.
    RedshiftIam {
        /// The database's user; it comes back with `IAM:` before it.
        user: String,
        /// The cluster, in its own upper and lower case.
        cluster_id: String,
        /// The cluster's region.
        region: String,
        /// Who asks.
        keys: AwsKeysPlan,
        /// Asked instead of the region's own endpoint: for private links.
        endpoint_url: Option<String>,
    },
    /// User and temporary password from `redshift-serverless:GetCredentials`.
    RedshiftServerlessIam {
        /// The work group.
        workgroup: String,
        /// Its region.
        region: String,
        /// Who asks, and so the database's user.
        keys: AwsKeysPlan,
        /// Asked instead of the region's own endpoint: for private links.
        endpoint_url: Option<String>,
    },
    /// An OAuth token for AlloyDB.
    AlloydbIam {
        /// The database's user: an e-mail address, of a service account without `.gserviceaccount.com`.
        user: String,
        /// Google's default chain if none.
        credentials_file: Option<PathBuf>,
    },
    /// An OAuth token for Lakebase, which is made in two steps: one for the workspace, one for the database.
    LakebaseOauth {
        /// The client's own id if none.
        user: Option<String>,
        /// The workspace's address, `https://...`, without a slash at the end.
        workspace: String,
        /// The service principal's id.
        client_id: SecretSource,
        /// Its secret.
        client_secret: SecretSource,
        /// What the token is for.
        resource: LakebaseResource,
    },
}

/// Who asks AWS, and signs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum AwsKeysPlan {
    /// AWS's default chain: environment, shared files, web identity, container, machine.
    Chain {
        /// The profile in the shared files; the chain's own choice if none.
        profile: Option<String>,
    },
    /// Keys from the configuration.
    Keys {
        /// `access_key_id`
        id: SecretSource,
        /// `secret_access_key`
        secret: SecretSource,
        /// `session_token`: for temporary keys.
        session_token: Option<SecretSource>,
    },
}

/// What a token of Lakebase is for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LakebaseResource {
    /// Provisioned: the instance's name.
    Instance(String),
    /// Autoscaling: `projects/P/branches/B/endpoints/E`.
    Endpoint(String),
}

impl CredentialsPlan {
    /// Whether they are made for one login or an hour of them, by somebody else than the database: whoever has such a token
    /// is let in.
    #[must_use]
    pub fn are_temporary(&self) -> bool {
        !matches!(self, Self::Password { .. })
    }
}

impl LoginPlan {
    /// The file with Google's credentials, where one is named.
    #[must_use]
    pub fn credentials_file(&self) -> Option<&Path> {
        match &self.credentials {
            CredentialsPlan::AlloydbIam { credentials_file, .. } => credentials_file.as_deref(),
            _ => None,
        }
    }

    /// The secrets that come from the configuration, each with its key.
    #[must_use]
    pub fn secrets(&self) -> Vec<(&'static str, &SecretSource)> {
        match &self.credentials {
            CredentialsPlan::Password { password, .. } => {
                password.iter().map(|source| ("password", source)).collect()
            }
            CredentialsPlan::RdsIam { keys, .. }
            | CredentialsPlan::RedshiftIam { keys, .. }
            | CredentialsPlan::RedshiftServerlessIam { keys, .. } => keys.secrets(),
            CredentialsPlan::AlloydbIam { .. } => Vec::new(),
            CredentialsPlan::LakebaseOauth { client_id, client_secret, .. } => {
                vec![("client_id", client_id), ("client_secret", client_secret)]
            }
        }
    }
}

impl AwsKeysPlan {
    fn secrets(&self) -> Vec<(&'static str, &SecretSource)> {
        match self {
            Self::Chain { .. } => Vec::new(),
            Self::Keys { id, secret, session_token } => {
                let token = session_token.iter().map(|source| ("session_token", source));
                [("access_key_id", id), ("secret_access_key", secret)].into_iter().chain(token).collect()
            }
        }
    }
}
