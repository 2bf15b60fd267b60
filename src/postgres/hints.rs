//! What to do when a database does not let somebody in who comes with a temporary password or a token.

use crate::settings::plan::CredentialsPlan;

/// None for passwords of the database's own, of which nothing more is known than the general hint says.
pub(super) fn rejected(credentials: &CredentialsPlan) -> Option<&'static str> {
    match credentials {
        CredentialsPlan::Password { .. } => None,
        // Amazon RDS, "IAM database authentication": the role, the policy, and what a token is signed for.
        CredentialsPlan::RdsIam { .. } => Some(
            "in the database: GRANT rds_iam TO the user; in AWS: allow rds-db:connect for it; and check this machine's \
             clock, `region` and `host`, for which the token is signed",
        ),
        // GetClusterCredentials with AutoCreate=false makes a password for anybody (Redshift API reference).
        CredentialsPlan::RedshiftIam { .. } => Some(
            "check that the user exists in the cluster, since AWS makes a password for one that does not as well; and this \
             machine's clock",
        ),
        CredentialsPlan::RedshiftServerlessIam { .. } => {
            Some("check that the work group knows the identity that asks AWS, and this machine's clock")
        }
        CredentialsPlan::AlloydbIam { .. } => Some(
            "check that the instance has alloydb.iam_authentication on, and that the user was added to the cluster with IAM \
             authentication, a service account without .gserviceaccount.com",
        ),
        CredentialsPlan::LakebaseOauth { .. } => Some(
            "check that the database has a role for the service principal, named by its id, and this machine's clock",
        ),
    }
}
