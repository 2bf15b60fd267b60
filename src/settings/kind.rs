//! What a database's name tells of it: its kind, what its service calls it, where it is, and whether it may be asleep.
//!
//! Only the name under which the bastion finds it is looked at, never the local end of a forward. Amazon's names are those
//! of its "Endpoints" and of what its drivers take apart; Databricks' those of its documentation of Lakebase.

use super::plan::Kind;

/// What a name tells. What it does not, its owner has to write.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Inferred {
    pub(super) kind: Kind,
    /// The cluster's or work group's own name.
    pub(super) name: Option<String>,
    pub(super) region: Option<String>,
    pub(super) rest: Rest,
}

/// Whether a database that nobody uses costs less, so that a probe costs money.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Rest {
    /// It is there all the time.
    Never,
    /// It may have been set to sleep.
    Perhaps,
    /// It sleeps, and a login wakes it.
    Sleeps,
    /// Each query is billed.
    Billed,
}

impl Rest {
    /// What asking it costs, where that is known.
    pub(super) fn cost(self) -> Option<&'static str> {
        match self {
            Self::Never | Self::Perhaps => None,
            Self::Sleeps => Some("a login wakes a database that sleeps"),
            // Amazon Redshift, "Billing for Amazon Redshift Serverless": a minimum for each query, whatever it does.
            Self::Billed => Some("each query is billed for a minute at least"),
        }
    }
}

/// Where Lakebase's databases are, of all clouds.
const DATABRICKS: [&str; 6] = [
    ".databricks.com",
    ".azuredatabricks.net",
    ".databricks.azure.us",
    ".databricks.azure.cn",
    ".databricks.us",
    ".databricks.mil",
];

/// Reads a host name. Letters in capitals and a dot at the end make no difference.
pub(super) fn infer(host: &str) -> Inferred {
    let host = host.trim_end_matches('.').to_ascii_lowercase();
    let amazon = host.strip_suffix(".amazonaws.com").or_else(|| host.strip_suffix(".amazonaws.com.cn"));
    match amazon {
        Some(inside) => infer_amazon(&inside.split('.').collect::<Vec<_>>()),
        None if is_lakebase(&host) => {
            let rest = if host.starts_with("instance-") { Rest::Never } else { Rest::Sleeps };
            Inferred { kind: Kind::Lakebase, name: None, region: None, rest }
        }
        None => Inferred { kind: Kind::Postgres, name: None, region: None, rest: Rest::Never },
    }
}

fn is_lakebase(host: &str) -> bool {
    let is_database = host.split('.').skip(1).any(|label| label == "database");
    is_database && DATABRICKS.iter().any(|domain| host.ends_with(domain))
}

/// Whether a name of Lakebase, in small letters, is that of an autoscaling database, whatever domain stands after it.
pub(super) fn is_autoscaling(host: &str) -> bool {
    host.starts_with("ep-")
}

/// Whether it is a proxy of Amazon RDS, whose certificates every machine can verify (Amazon RDS, "Using TLS/SSL with RDS
/// Proxy": they come from AWS Certificate Manager).
pub(super) fn is_rds_proxy(host: &str) -> bool {
    let is_proxy = |host: &str| host.split('.').skip(1).any(|label| label.starts_with("proxy-"));
    infer(host).kind == Kind::Rds && is_proxy(&host.to_ascii_lowercase())
}

/// The labels before the domain end in `REGION.SERVICE`, in China also in `SERVICE.REGION`.
fn infer_amazon(labels: &[&str]) -> Inferred {
    let service = |label: &&str| service_of(label).is_some();
    let (before, after) = match labels.iter().rposition(service) {
        Some(at) => (labels.get(..at).unwrap_or_default(), labels.get(at + 1..).unwrap_or_default()),
        None => (labels, &[][..]),
    };
    let kind = labels.iter().rev().find_map(|label| service_of(label)).unwrap_or(Kind::Postgres);
    let (names, region) = match (before, after) {
        (names, [region]) => (names, Some(region)),
        ([names @ .., region], []) if !names.is_empty() => (names, Some(region)),
        _ => (before, None),
    };
    let rest = match kind {
        Kind::RedshiftServerless => Rest::Billed,
        Kind::Rds if names.iter().any(|label| label.starts_with("cluster-")) => Rest::Perhaps,
        _ => Rest::Never,
    };
    let has_name = matches!(kind, Kind::Redshift | Kind::RedshiftServerless);
    let name = names.first().filter(|_| has_name);
    Inferred {
        kind,
        name: name.map(ToString::to_string),
        region: region.filter(|label| is_region(label)).map(ToString::to_string),
        rest,
    }
}

fn service_of(label: &str) -> Option<Kind> {
    match label {
        "rds" => Some(Kind::Rds),
        "redshift" | "redshift-dev" => Some(Kind::Redshift),
        "redshift-serverless" | "redshift-serverless-dev" => Some(Kind::RedshiftServerless),
        _ => None,
    }
}

/// Whether it could be a region: it becomes part of the name of a service.
pub(super) fn is_region(text: &str) -> bool {
    !text.is_empty()
        && text.len() <= 63
        && text.bytes().all(|b| matches!(b, b'a'..=b'z' | b'0'..=b'9' | b'-'))
}

#[cfg(test)]
mod tests {
    use Rest::{Billed, Never, Perhaps, Sleeps};

    use super::*;

    #[test]
    fn what_names_tell() {
        use Kind::{Lakebase, Postgres, Rds, Redshift, RedshiftServerless};
        for (host, kind, name, region, rest) in [
            ("analytics.internal", Postgres, "", "", Never),
            ("10.0.0.1", Postgres, "", "", Never),
            ("rds.amazonaws.com", Rds, "", "", Never),
            ("amazonaws.com", Postgres, "", "", Never),
            ("rds.example.com", Postgres, "", "", Never),
            ("orders.c1abc.eu-west-1.rds.amazonaws.com", Rds, "", "eu-west-1", Never),
            ("ORDERS.c1abc.eu-west-1.RDS.amazonaws.com.", Rds, "", "eu-west-1", Never),
            ("orders.c1abc.rds.cn-north-1.amazonaws.com.cn", Rds, "", "cn-north-1", Never),
            ("orders.c1abc.cn-north-1.rds.amazonaws.com.cn", Rds, "", "cn-north-1", Never),
            ("orders.cluster-c1abc.us-gov-west-1.rds.amazonaws.com", Rds, "", "us-gov-west-1", Perhaps),
            ("orders.cluster-ro-c1abc.eu-west-1.rds.amazonaws.com", Rds, "", "eu-west-1", Perhaps),
            ("pool.proxy-c1abc.eu-west-1.rds.amazonaws.com", Rds, "", "eu-west-1", Never),
            // As users shorten names in examples.
            ("xxx.us-east-1.amazonaws.com", Postgres, "", "us-east-1", Never),
            ("hostname.us-east-1.redshift.amazonaws.com", Redshift, "hostname", "us-east-1", Never),
            ("dwh.c1abc.us-east-1.redshift.amazonaws.com", Redshift, "dwh", "us-east-1", Never),
            ("Dwh.c1abc.us-east-1.Redshift.AmazonAWS.com", Redshift, "dwh", "us-east-1", Never),
            ("dwh.c1abc.us-east-1.redshift-dev.amazonaws.com", Redshift, "dwh", "us-east-1", Never),
            ("dwh.c1abc.cn-north-1.redshift.amazonaws.com.cn", Redshift, "dwh", "cn-north-1", Never),
            (
                "workgroup-name.123456789.us-east-1.redshift-serverless.amazonaws.com",
                RedshiftServerless,
                "workgroup-name",
                "us-east-1",
                Billed,
            ),
            (
                "my-production-instance.myregion.redshift-serverless.amazonaws.com",
                RedshiftServerless,
                "my-production-instance",
                "myregion",
                Billed,
            ),
            (
                "wg.1.us-east-1.redshift-serverless-dev.amazonaws.com.",
                RedshiftServerless,
                "wg",
                "us-east-1",
                Billed,
            ),
            (
                "wg.1.cn-north-1.redshift-serverless.amazonaws.com.cn",
                RedshiftServerless,
                "wg",
                "cn-north-1",
                Billed,
            ),
            ("x_y.redshift.amazonaws.com", Redshift, "x_y", "", Never),
            ("c.x.not_one.redshift.amazonaws.com", Redshift, "c", "", Never),
            // Its owner chose this name.
            ("dwh.c1abc.us-east-1.redshift.amazonaws.com.example.com", Postgres, "", "", Never),
            ("instance-0a1b.database.cloud.databricks.com", Lakebase, "", "", Never),
            ("ep-cool-sun-1.database.us-east-1.cloud.databricks.com.", Lakebase, "", "", Sleeps),
            ("ep-cool-sun-1.database.eastus2.azuredatabricks.net", Lakebase, "", "", Sleeps),
            ("EP-cool-sun-1-pooler.database.azuredatabricks.net", Lakebase, "", "", Sleeps),
            ("something.database.gcp.databricks.com", Lakebase, "", "", Sleeps),
            ("dbc-1234.cloud.databricks.com", Postgres, "", "", Never),
            ("database.databricks.com", Postgres, "", "", Never),
            ("ep-1.database.mydatabricks.com", Postgres, "", "", Never),
        ] {
            let text = |text: &str| (!text.is_empty()).then(|| text.to_owned());
            let expected = Inferred { kind, name: text(name), region: text(region), rest };
            assert_eq!(infer(host), expected, "{host}");
        }
    }
}
