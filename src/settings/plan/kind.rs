//! The kinds of databases.

/// The roots of Amazon RDS and Aurora, which no machine has by itself (Amazon RDS, "Using SSL/TLS to encrypt a connection").
pub const RDS_BUNDLE: &str = "https://truststore.pki.rds.amazonaws.com/global/global-bundle.pem";

/// The kind of a database: it decides defaults, and which temporary logins there are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// PostgreSQL anywhere.
    Postgres,
    /// Amazon RDS and Aurora.
    Rds,
    /// A cluster of Amazon Redshift.
    Redshift,
    /// A work group of Amazon Redshift Serverless, which bills by the query.
    RedshiftServerless,
    /// Google AlloyDB.
    Alloydb,
    /// Databricks Lakebase, provisioned or autoscaling.
    Lakebase,
}

crate::settings::values::words!(Kind {
    "postgres" => Self::Postgres,
    "rds" => Self::Rds,
    "redshift" => Self::Redshift,
    "redshift-serverless" => Self::RedshiftServerless,
    "alloydb" => Self::Alloydb,
    "lakebase" => Self::Lakebase,
});

impl Kind {
    /// The word used in the configuration.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Postgres => "postgres",
            Self::Rds => "rds",
            Self::Redshift => "redshift",
            Self::RedshiftServerless => "redshift-serverless",
            Self::Alloydb => "alloydb",
            Self::Lakebase => "lakebase",
        }
    }

    /// The port that the service has unless its owner chose another one.
    #[must_use]
    pub fn default_port(self) -> u16 {
        match self {
            Self::Redshift | Self::RedshiftServerless => 5439,
            Self::Postgres | Self::Rds | Self::Alloydb | Self::Lakebase => 5432,
        }
    }
}
