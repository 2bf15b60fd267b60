//! Reads the login keys of `[databases.NAME]`: who the probe logs in as, and where the password or token comes from.
//!
//! A key that the chosen way to log in does not know is refused, since whoever wrote it expects something of it. Only a
//! `user`, a `password` and a `cluster_id` that are beside the point are passed over with a note: profiles of other tools
//! have them.

use std::path::PathBuf;

use super::Effective;
use super::kind::{Inferred, is_autoscaling, is_region};
use super::plan::{AwsKeysPlan, CredentialsPlan, Kind, LakebaseResource, LoginPlan};
use super::reader::{Given, Report, Section};
use super::url::ServiceUrl;
use super::values::{Setting, text, words};
use crate::secret::SecretSource;

/// How the probe's user proves who it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Method {
    /// By a password of the database's own.
    Database,
    /// By a temporary password or token of the cloud.
    Iam,
    /// By a token of Databricks.
    Oauth,
}

words!(Method { "database" => Self::Database, "iam" => Self::Iam, "oauth" => Self::Oauth });

impl Method {
    fn as_str(self) -> &'static str {
        match self {
            Self::Database => "database",
            Self::Iam => "iam",
            Self::Oauth => "oauth",
        }
    }
}

/// The keys of each way to log in, besides `user`, `password` and `database`.
const WAYS: [(Kind, Method, &[&str]); 5] = [
    (
        Kind::Rds,
        Method::Iam,
        &["region", "access_key_id", "secret_access_key", "session_token", "iam_profile"],
    ),
    (
        Kind::Redshift,
        Method::Iam,
        &[
            "cluster_id",
            "region",
            "access_key_id",
            "secret_access_key",
            "session_token",
            "iam_profile",
            "endpoint_url",
        ],
    ),
    (
        Kind::RedshiftServerless,
        Method::Iam,
        &[
            "workgroup",
            "region",
            "access_key_id",
            "secret_access_key",
            "session_token",
            "iam_profile",
            "endpoint_url",
        ],
    ),
    (Kind::Alloydb, Method::Iam, &["credentials_file"]),
    (Kind::Lakebase, Method::Oauth, &["workspace", "client_id", "client_secret", "instance", "endpoint"]),
];

/// What is written, whether it makes sense or not.
struct Keys {
    user: Option<String>,
    password: Option<SecretSource>,
    cluster_id: Option<String>,
    workgroup: Option<String>,
    region: Option<Region>,
    access_key_id: Option<SecretSource>,
    secret_access_key: Option<SecretSource>,
    session_token: Option<SecretSource>,
    iam_profile: Option<String>,
    endpoint_url: Option<ServiceUrl>,
    credentials_file: Option<PathBuf>,
    workspace: Option<ServiceUrl>,
    client_id: Option<SecretSource>,
    client_secret: Option<SecretSource>,
    instance: Option<String>,
    endpoint: Option<EndpointPath>,
}

/// The login, and how it is made.
pub(super) struct Read {
    /// None where the probe has nobody to log in as, or something is wrong.
    pub(super) login: Option<LoginPlan>,
    /// None where it is not known, or not one of the kind's.
    pub(super) method: Option<Method>,
}

pub(super) fn read(
    kind: Option<Kind>,
    inferred: Option<&Inferred>,
    host: &str,
    section: &mut Section,
    report: &mut Report,
) -> Read {
    let database = section.get("database", report).map(|StartupValue(database)| database);
    let method = if section.has("method") {
        section.get("method", report)
    } else {
        Some(section.get_or("method", Method::Database, report))
    };
    let keys = Keys::read(section, report);
    let fits = |method: &Method| kind.is_none_or(|kind| refuse_strangers(kind, *method, section, report));
    let Some(method) = method.filter(fits) else { return Read { login: None, method: None } };
    let mut reader = Reader { method, inferred, host, keys, section, report };
    let credentials = match kind {
        _ if method == Method::Database => reader.password(),
        Some(Kind::Rds) => reader.rds(),
        Some(Kind::Redshift) => reader.redshift(),
        Some(Kind::RedshiftServerless) => reader.redshift_serverless(),
        Some(Kind::Alloydb) => reader.alloydb(),
        Some(Kind::Lakebase) => reader.lakebase(),
        // The one has no other method, and of the other nobody knows.
        Some(Kind::Postgres) | None => None,
    };
    Read { login: credentials.map(|credentials| LoginPlan { database, credentials }), method: Some(method) }
}

/// Reports a method that the kind does not have, and keys that the method does not have. False for the first: nothing
/// more can be said then.
fn refuse_strangers(kind: Kind, method: Method, section: &Section, report: &mut Report) -> bool {
    let own = WAYS.iter().find(|(of, with, _)| (*of, *with) == (kind, method)).map(|(_, _, keys)| *keys);
    if own.is_none() && method != Method::Database {
        let with: Vec<&str> =
            WAYS.iter().filter(|(_, with, _)| *with == method).map(|(of, ..)| of.as_str()).collect();
        let other = WAYS.iter().find(|(of, ..)| *of == kind).map(|(_, with, _)| with.as_str());
        let text = format!(
            "\"{}\" is for {}, and this is {}: write method = \"{}\", or `kind` if this is another kind",
            method.as_str(),
            with.join(", "),
            kind.as_str(),
            other.unwrap_or("database"),
        );
        report.problem(section, "method", text);
        return false;
    }
    let mut refused: Vec<&str> = Vec::new();
    for key in WAYS.iter().flat_map(|(_, _, keys)| keys.iter()) {
        let is_passed_over =
            *key == "cluster_id" && (kind, method) == (Kind::RedshiftServerless, Method::Iam);
        let is_own = is_passed_over || own.is_some_and(|own| own.contains(key));
        if !section.has(key) || is_own || refused.contains(key) {
            continue;
        }
        refused.push(key);
        report.problem(section, key, of_no_use(key, kind, method));
    }
    true
}

/// What a key is for, which is not what it stands beside.
fn of_no_use(key: &str, kind: Kind, method: Method) -> String {
    let ways: Vec<_> = WAYS.iter().filter(|(_, _, keys)| keys.contains(&key)).collect();
    if let Some((_, with, _)) = ways.iter().find(|(of, ..)| *of == kind) {
        return format!(
            "is of no use with method = \"{}\": write method = \"{}\", or leave it out",
            method.as_str(),
            with.as_str()
        );
    }
    let kinds: Vec<&str> = ways.iter().map(|(of, ..)| of.as_str()).collect();
    format!("is for {}, and this is {}: leave it out", kinds.join(", "), kind.as_str())
}

impl Keys {
    fn read(section: &mut Section, report: &mut Report) -> Self {
        Self {
            user: section.get("user", report).map(|StartupValue(user)| user),
            password: section.get("password", report),
            cluster_id: section.get("cluster_id", report),
            workgroup: section.get("workgroup", report),
            region: section.get("region", report),
            access_key_id: section.get("access_key_id", report),
            secret_access_key: section.get("secret_access_key", report),
            session_token: section.get("session_token", report),
            iam_profile: section.get("iam_profile", report),
            endpoint_url: section.get("endpoint_url", report),
            credentials_file: section.get("credentials_file", report),
            workspace: section.get("workspace", report),
            client_id: section.get("client_id", report),
            client_secret: section.get("client_secret", report),
            instance: section.get("instance", report),
            endpoint: section.get("endpoint", report),
        }
    }
}

/// Makes one of the ways to log in from what is written; whatever makes none comes with a problem.
struct Reader<'a> {
    method: Method,
    inferred: Option<&'a Inferred>,
    /// In small letters.
    host: &'a str,
    keys: Keys,
    section: &'a Section,
    report: &'a mut Report,
}

impl Reader<'_> {
    fn password(&mut self) -> Option<CredentialsPlan> {
        if !self.section.has("user") {
            for key in ["password", "database"] {
                if self.section.has(key) {
                    self.problem(key, "is of no use without `user`: the probe logs in only with both");
                }
            }
        }
        Some(CredentialsPlan::Password { user: self.keys.user.take()?, password: self.keys.password.take() })
    }

    fn rds(&mut self) -> Option<CredentialsPlan> {
        self.pass_over(&["password"], "the token is the password");
        if self.inferred.is_some_and(|inferred| inferred.kind != Kind::Rds) {
            let text = "is none of RDS's own names, and a token is good only for the name that it was made for: write \
                        the endpoint's own name, if this is an alias";
            self.note("host", text);
        }
        let (user, region, keys) = (self.user(), self.region(), self.aws_keys());
        let other = |own: &&String| region.as_ref().is_some_and(|region| region != *own);
        if let Some(own) = self.inferred.and_then(|inferred| inferred.region.as_ref()).filter(other) {
            let text = format!(
                "`host` is in \"{own}\", where a token for another region is not taken: leave it out"
            );
            self.note("region", text);
        }
        Some(CredentialsPlan::RdsIam { user: user?, region: region?, keys: keys? })
    }

    fn redshift(&mut self) -> Option<CredentialsPlan> {
        self.pass_over(&["password"], "Redshift makes one for each login");
        let written = self.keys.cluster_id.take();
        let cluster_id = self.or_inferred("cluster_id", written, Kind::Redshift);
        let (user, region, keys) = (self.user(), self.region(), self.aws_keys());
        if user.as_ref().is_some_and(|user| user.starts_with("IAM:")) {
            self.note("user", "begins with IAM:, which AWS puts before it by itself: write it without");
        }
        let endpoint_url = self.endpoint_url();
        Some(CredentialsPlan::RedshiftIam {
            user: user?,
            cluster_id: cluster_id?,
            region: region?,
            keys: keys?,
            endpoint_url,
        })
    }

    fn redshift_serverless(&mut self) -> Option<CredentialsPlan> {
        self.pass_over(&["user", "password"], "Redshift Serverless makes them from the identity that asks");
        self.pass_over(&["cluster_id"], "a work group is no cluster, and is found by `host` or `workgroup`");
        let written = self.keys.workgroup.take();
        let workgroup = self.or_inferred("workgroup", written, Kind::RedshiftServerless);
        let (region, keys) = (self.region(), self.aws_keys());
        let endpoint_url = self.endpoint_url();
        Some(CredentialsPlan::RedshiftServerlessIam {
            workgroup: workgroup?,
            region: region?,
            keys: keys?,
            endpoint_url,
        })
    }

    fn alloydb(&mut self) -> Option<CredentialsPlan> {
        self.pass_over(&["password"], "the token is the password");
        let (user, credentials_file) = (self.user(), self.keys.credentials_file.take());
        if user.as_ref().is_some_and(|user| user.ends_with(".gserviceaccount.com")) {
            self.note("user", "is named without .gserviceaccount.com in AlloyDB: write it without");
        }
        Some(CredentialsPlan::AlloydbIam { user: user?, credentials_file })
    }

    fn lakebase(&mut self) -> Option<CredentialsPlan> {
        self.pass_over(&["password"], "the token is the password");
        if self.host.split('.').next().is_some_and(|label| label.ends_with("-pooler")) {
            self.note(
                "host",
                "is Lakebase's pooler, which takes passwords only: write the name without -pooler",
            );
        }
        let workspace = self.keys.workspace.take().map(|ServiceUrl(url)| url);
        let workspace = self.required("workspace", workspace);
        let (client_id, client_secret) = (self.keys.client_id.take(), self.keys.client_secret.take());
        let client_id = self.required("client_id", client_id);
        let client_secret = self.required("client_secret", client_secret);
        let resource = self.lakebase_resource();
        Some(CredentialsPlan::LakebaseOauth {
            user: self.keys.user.take(),
            workspace: workspace?,
            client_id: client_id?,
            client_secret: client_secret?,
            resource: resource?,
        })
    }

    fn lakebase_resource(&mut self) -> Option<LakebaseResource> {
        if self.section.has("instance") && self.section.has("endpoint") {
            self.problem(
                "endpoint",
                "and `instance` are two kinds of Lakebase: write `instance` for a provisioned one, `endpoint` for an \
                 autoscaling one",
            );
            return None;
        }
        let endpoint = self.keys.endpoint.take().map(|EndpointPath(path)| LakebaseResource::Endpoint(path));
        if self.section.has("endpoint") {
            return endpoint;
        }
        if self.section.has("instance") && is_autoscaling(self.host) {
            let text = "is of a provisioned database, and `host` is the name of an autoscaling one: write its `endpoint`";
            self.problem("instance", text);
            return None;
        }
        let instance = self.keys.instance.take().map(LakebaseResource::Instance);
        if !self.section.has("instance") {
            self.problem(
                "instance",
                "is missing: write the name of the instance, or of an autoscaling database its `endpoint`",
            );
        }
        instance
    }

    fn user(&mut self) -> Option<String> {
        let user = self.keys.user.take();
        self.required("user", user)
    }

    fn region(&mut self) -> Option<String> {
        let written = self.keys.region.take().map(|Region(region)| region);
        let inferred = self.inferred.and_then(|inferred| inferred.region.clone());
        self.required_unless_known("region", written, inferred)
    }

    /// A name that the host's first part is, if it is of that kind.
    fn or_inferred(&mut self, key: &str, written: Option<String>, kind: Kind) -> Option<String> {
        let inferred = self.inferred.filter(|inferred| inferred.kind == kind);
        let name = inferred.and_then(|inferred| inferred.name.clone());
        self.required_unless_known(key, written, name)
    }

    fn required_unless_known(
        &mut self,
        key: &str,
        written: Option<String>,
        known: Option<String>,
    ) -> Option<String> {
        if !self.section.has(key) && known.is_none() && self.inferred.is_some() {
            self.problem(
                key,
                "is missing: `host` does not tell it, and it is needed with this method, so write it",
            );
        }
        let known = known.filter(|_| !self.section.has(key));
        if let Some(known) = &known {
            let (key, value) = (self.section.path_of(key), known.clone().into());
            self.report.effective.push(Effective { key, value, source: "the host".to_owned() });
        }
        written.or(known)
    }

    fn required<T>(&mut self, key: &str, written: Option<T>) -> Option<T> {
        if !self.section.has(key) {
            let text = format!("is missing: it is needed with method = \"{}\"", self.method.as_str());
            self.problem(key, text);
        }
        written
    }

    fn endpoint_url(&mut self) -> Option<String> {
        self.keys.endpoint_url.take().map(|ServiceUrl(url)| url)
    }

    fn aws_keys(&mut self) -> Option<AwsKeysPlan> {
        let keys = ["access_key_id", "secret_access_key", "session_token"];
        let written: Vec<&str> = keys.into_iter().filter(|key| self.section.has(key)).collect();
        let missing: Vec<&str> = keys.into_iter().take(2).filter(|key| !self.section.has(key)).collect();
        if let Some(first) = written.first() {
            for key in &missing {
                let text =
                    format!("is missing beside `{first}`: write both, or neither to use AWS's default chain");
                self.problem(key, text);
            }
            if self.section.has("iam_profile") {
                let text = format!("and `{first}` are two ways to log in to AWS: leave one out");
                self.problem("iam_profile", text);
                return None;
            }
            let (id, secret) = (self.keys.access_key_id.take(), self.keys.secret_access_key.take());
            return Some(AwsKeysPlan::Keys {
                id: id?,
                secret: secret?,
                session_token: self.keys.session_token.take(),
            });
        }
        Some(AwsKeysPlan::Chain { profile: self.keys.iam_profile.take() })
    }

    fn pass_over(&mut self, keys: &[&str], why: &str) {
        for key in keys.iter().filter(|key| self.section.has(key)) {
            self.note(key, format!("is not used with method = \"{}\": {why}", self.method.as_str()));
        }
    }

    fn note(&mut self, key: &str, text: impl Into<String>) {
        self.report.note(self.section, key, text);
    }

    fn problem(&mut self, key: &str, text: impl Into<String>) {
        self.report.problem(self.section, key, text);
    }
}

/// A value of PostgreSQL's start-up message, in which a zero byte ends it (PostgreSQL 17, "Message Formats").
struct StartupValue(String);

impl Setting for StartupValue {
    fn read(given: &Given<'_>) -> Result<Self, String> {
        let text = String::read(given)?;
        if text.contains('\0') {
            return Err("has a zero byte in it, which no name in PostgreSQL has: leave that out".to_owned());
        }
        Ok(Self(text))
    }
    fn show(&self) -> serde_json::Value {
        self.0.show()
    }
}

/// A region of AWS.
struct Region(String);

impl Setting for Region {
    fn read(given: &Given<'_>) -> Result<Self, String> {
        let text = text(given, "a region such as \"eu-west-1\"")?;
        if is_region(text) {
            Ok(Self(text.to_owned()))
        } else {
            Err(format!("\"{}\" is not a region: write for example \"eu-west-1\"", text.escape_debug()))
        }
    }
    fn show(&self) -> serde_json::Value {
        self.0.clone().into()
    }
}

/// What Lakebase calls an endpoint.
struct EndpointPath(String);

impl Setting for EndpointPath {
    fn read(given: &Given<'_>) -> Result<Self, String> {
        const FORM: &str = "projects/PROJECT/branches/BRANCH/endpoints/ENDPOINT";
        let text = text(given, FORM)?;
        let parts: Vec<&str> = text.split('/').collect();
        match parts.as_slice() {
            ["projects", project, "branches", branch, "endpoints", endpoint]
                if [project, branch, endpoint].iter().all(|part| !part.is_empty()) =>
            {
                Ok(Self(text.to_owned()))
            }
            _ => Err(format!("\"{}\" is not the name of an endpoint: write {FORM}", text.escape_debug())),
        }
    }
    fn show(&self) -> serde_json::Value {
        self.0.clone().into()
    }
}
