use crate::secret::SecretSource;
use crate::settings::Settings;
use crate::settings::plan::{
    AwsKeysPlan, CredentialsPlan, DatabasePlan, Kind, LakebaseResource, ProbeLevel, ProbeWhen, TlsMode,
};
use crate::settings::tests::Case;

const RDS: &str = "orders.c1abc.eu-west-1.rds.amazonaws.com";
const PROXY: &str = "orders.proxy-c1abc.eu-west-1.rds.amazonaws.com";
const REDSHIFT: &str = "dwh.c1abc.us-east-1.redshift.amazonaws.com";
const SERVERLESS: &str = "nightly.123456789.us-east-1.redshift-serverless.amazonaws.com";
const INSTANCE: &str = "instance-0a1b.database.cloud.databricks.com";
const ENDPOINT: &str = "ep-cool-sun-1.database.us-east-1.cloud.databricks.com";
const KEYS: &str = "access_key_id = { env = \"A\" }\nsecret_access_key = { env = \"S\" }";
const OAUTH: &str = "database = \"d\"\nworkspace = \"https://dbc-1.cloud.databricks.com/\"\nclient_id = { env = \"I\" }\n\
                     client_secret = { env = \"S\" }";

fn case(host: &str, more: &str) -> Case {
    Case::new(&format!(
        "[bastions.b]\nhost = \"b\"\nuser = \"u\"\n[databases.d]\nbastion = \"b\"\nlisten = \"127.0.0.1:1\"\n\
         host = \"{host}\"\n{more}\n"
    ))
}

fn load(host: &str, more: &str) -> Settings {
    case(host, more).load()
}

fn database(settings: &Settings) -> &DatabasePlan {
    &settings.plan.databases[0]
}

fn credentials(host: &str, more: &str) -> CredentialsPlan {
    database(&load(host, more)).probe.login.clone().unwrap().credentials
}

fn env(name: &str) -> SecretSource {
    SecretSource::Env(name.to_owned())
}

fn keys() -> AwsKeysPlan {
    AwsKeysPlan::Keys { id: env("A"), secret: env("S"), session_token: None }
}

#[test]
fn each_kind_has_its_defaults() {
    use ProbeLevel::{Query, Tls};
    use ProbeWhen::{Active, Always};
    let (rds_ca, alloydb) = ("tls.ca = \"x.pem\"", "kind = \"alloydb\"");
    let cluster = "orders.cluster-c1abc.eu-west-1.rds.amazonaws.com";
    for (host, more, kind, port, mode, level, when, notes) in [
        ("db.internal", "", Kind::Postgres, 5432, TlsMode::Prefer, Query, Always, 0),
        (RDS, "", Kind::Rds, 5432, TlsMode::Require, Query, Always, 1),
        (RDS, rds_ca, Kind::Rds, 5432, TlsMode::VerifyFull, Query, Always, 0),
        (cluster, rds_ca, Kind::Rds, 5432, TlsMode::VerifyFull, Query, Active, 1),
        (cluster, "kind = \"postgres\"", Kind::Postgres, 5432, TlsMode::Prefer, Query, Active, 1),
        (REDSHIFT, "", Kind::Redshift, 5439, TlsMode::VerifyFull, Query, Always, 0),
        (SERVERLESS, "", Kind::RedshiftServerless, 5439, TlsMode::VerifyFull, Tls, Always, 1),
        ("10.0.0.1", alloydb, Kind::Alloydb, 5432, TlsMode::Require, Query, Always, 1),
        (
            "10.0.0.1",
            "kind = \"alloydb\"\ntls.ca = \"x.pem\"",
            Kind::Alloydb,
            5432,
            TlsMode::VerifyCa,
            Query,
            Always,
            0,
        ),
        (PROXY, "", Kind::Rds, 5432, TlsMode::VerifyFull, Query, Always, 0),
        (PROXY, "kind = \"alloydb\"", Kind::Alloydb, 5432, TlsMode::Require, Query, Always, 1),
        (INSTANCE, "", Kind::Lakebase, 5432, TlsMode::VerifyFull, Query, Always, 0),
        (ENDPOINT, "", Kind::Lakebase, 5432, TlsMode::VerifyFull, Tls, Always, 1),
        ("alias.internal", "kind = \"lakebase\"", Kind::Lakebase, 5432, TlsMode::VerifyFull, Tls, Always, 1),
        // The kind that is written wins, and what a name stands for is not overruled by it.
        (SERVERLESS, "kind = \"postgres\"", Kind::Postgres, 5432, TlsMode::Prefer, Tls, Always, 1),
        (RDS, "kind = \"redshift\"\nport = 7", Kind::Redshift, 7, TlsMode::VerifyFull, Query, Always, 0),
    ] {
        let settings = load(host, &format!("user = \"probe\"\n{more}"));
        let DatabasePlan { kind: found, target, probe, .. } = database(&settings);
        assert_eq!((*found, target.port()), (kind, Some(port)), "{host} {more}");
        assert_eq!((probe.tls.mode, probe.level, probe.when), (mode, level, when), "{host} {more}");
        assert_eq!(settings.notes.len(), notes, "{host} {more}: {:?}", settings.notes);
    }
    assert!(load(RDS, "").notes[0].text.contains("fetch https://truststore.pki.rds.amazonaws.com/"));
}

#[test]
fn what_costs_money_is_asked_only_in_so_many_words() {
    for host in [SERVERLESS, ENDPOINT] {
        for (more, level, when, note) in [
            ("", ProbeLevel::Tls, ProbeWhen::Always, Some("probe.level")),
            ("probe = { level = \"connect\" }", ProbeLevel::Connect, ProbeWhen::Always, None),
            ("probe = { level = \"query\" }", ProbeLevel::Query, ProbeWhen::Active, Some("probe.when")),
            ("probe = { level = \"login\" }", ProbeLevel::Login, ProbeWhen::Active, Some("probe.when")),
            ("probe = { when = \"active\" }", ProbeLevel::Tls, ProbeWhen::Active, Some("probe.level")),
            ("probe = { level = \"query\", when = \"always\" }", ProbeLevel::Query, ProbeWhen::Always, None),
        ] {
            let settings = load(host, &format!("user = \"probe\"\n{more}"));
            let probe = &database(&settings).probe;
            assert_eq!((probe.level, probe.when), (level, when), "{host} {more}");
            let keys: Vec<&str> = settings.notes.iter().map(|note| note.key.as_str()).collect();
            let expected: Vec<String> = note.iter().map(|key| format!("databases.d.{key}")).collect();
            assert_eq!(keys, expected, "{host} {more}");
        }
    }
    let oauth = |host: &str, resource: &str| {
        let settings = load(host, &format!("method = \"oauth\"\n{OAUTH}\n{resource}"));
        database(&settings).probe.level
    };
    let endpoint = "endpoint = \"projects/p/branches/b/endpoints/e\"";
    let alias = "kind = \"lakebase\"\ninstance = \"x\"";
    for (host, kind) in [(ENDPOINT, ""), ("EP-cool-sun-1.internal", "kind = \"lakebase\"")] {
        for probe in ["", "probe = { level = \"query\", when = \"always\" }"] {
            let pair = format!("method = \"oauth\"\n{OAUTH}\ninstance = \"x\"\n{kind}\n{probe}");
            let problems = case(host, &pair).problems();
            let text = "d.instance: is of a provisioned database, and `host` is the name of an autoscaling one: write its";
            assert!(problems.len() == 1 && problems[0].contains(text), "{host}: {problems:?}");
        }
    }
    assert_eq!(oauth(ENDPOINT, endpoint), ProbeLevel::Tls);
    assert_eq!(oauth(INSTANCE, endpoint), ProbeLevel::Tls);
    assert_eq!(oauth(INSTANCE, "instance = \"x\""), ProbeLevel::Query);
    assert_eq!(oauth("alias.internal", alias), ProbeLevel::Query);
}

/// As the users' own connection page has them.
#[test]
fn the_examples_of_the_requirement_load_as_written() {
    let secrets = "access_key_id = { env = \"A\" }\nsecret_access_key = { env = \"S\" }\ndatabase = \"dev\"\nuser = \"me\"";
    let expected = |workgroup: &str, region: &str| CredentialsPlan::RedshiftServerlessIam {
        workgroup: workgroup.to_owned(),
        region: region.to_owned(),
        keys: keys(),
        endpoint_url: None,
    };
    let iam = format!("method = \"iam\"\npassword = {{ env = \"P\" }}\n{secrets}");
    for (host, workgroup, region) in [
        (
            "my-production-instance.myregion.redshift-serverless.amazonaws.com",
            "my-production-instance",
            "myregion",
        ),
        (
            "workgroup-name.123456789.us-east-1.redshift-serverless.amazonaws.com",
            "workgroup-name",
            "us-east-1",
        ),
    ] {
        let settings = load(host, &iam);
        let login = database(&settings).probe.login.clone().unwrap();
        assert_eq!(login.credentials, expected(workgroup, region));
        assert_eq!(login.database.as_deref(), Some("dev"));
        let ignored: Vec<&str> = settings.notes.iter().map(|note| note.key.as_str()).collect();
        assert_eq!(ignored, ["databases.d.user", "databases.d.password", "databases.d.probe.level"]);
    }
    // As the page has them, whose writer takes the work group for a cluster.
    let page = "method = \"iam\"\ncluster_id = \"my-cluster\"\nuser = \"me\"\npassword = \"hunter2\"\nregion = \"myregion\"\n\
                access_key_id = { env = \"A\" }\nsecret_access_key = { env = \"S\" }";
    let settings = load("my-production-instance.myregion.redshift-serverless.amazonaws.com", page);
    let login = database(&settings).probe.login.clone().unwrap();
    assert_eq!(login.credentials, expected("my-production-instance", "myregion"));
    let ignored: Vec<&str> = settings.notes.iter().map(|note| note.key.as_str()).collect();
    let keys_passed_over =
        ["user", "password", "cluster_id", "probe.level"].map(|key| format!("databases.d.{key}"));
    assert_eq!(ignored, keys_passed_over);
    let more = format!("method = \"iam\"\ncluster_id = \"My-Cluster\"\nregion = \"eu-west-1\"\n{secrets}");
    let expected = CredentialsPlan::RedshiftIam {
        user: "me".to_owned(),
        cluster_id: "My-Cluster".to_owned(),
        region: "eu-west-1".to_owned(),
        keys: keys(),
        endpoint_url: None,
    };
    assert_eq!(credentials("hostname.us-east-1.redshift.amazonaws.com", &more), expected);
    let settings = load("xxx.us-east-1.amazonaws.com", "user = \"me\"\npassword = { env = \"P\" }");
    assert_eq!(database(&settings).kind, Kind::Postgres);
}

#[test]
fn logins_follow_from_the_host() {
    let redshift =
        |cluster_id: &str, region: &str, keys, endpoint_url: Option<&str>| CredentialsPlan::RedshiftIam {
            user: "me".to_owned(),
            cluster_id: cluster_id.to_owned(),
            region: region.to_owned(),
            keys,
            endpoint_url: endpoint_url.map(str::to_owned),
        };
    let chain = |profile: Option<&str>| AwsKeysPlan::Chain { profile: profile.map(str::to_owned) };
    let iam = "method = \"iam\"\nuser = \"me\"\ndatabase = \"d\"";
    for (host, more, expected) in [
        (REDSHIFT, String::new(), redshift("dwh", "us-east-1", chain(None), None)),
        (REDSHIFT, "iam_profile = \"p\"".to_owned(), redshift("dwh", "us-east-1", chain(Some("p")), None)),
        (
            REDSHIFT,
            format!("cluster_id = \"Other\"\nregion = \"eu-west-3\"\n{KEYS}"),
            redshift("Other", "eu-west-3", keys(), None),
        ),
        (
            "10.0.0.1",
            "kind = \"redshift\"\ncluster_id = \"c\"\nregion = \"r-1\"\nendpoint_url = \"https://vpce/\""
                .to_owned(),
            redshift("c", "r-1", chain(None), Some("https://vpce")),
        ),
        (
            RDS,
            "tls.ca = \"x\"".to_owned(),
            CredentialsPlan::RdsIam {
                user: "me".to_owned(),
                region: "eu-west-1".to_owned(),
                keys: chain(None),
            },
        ),
        (
            "10.0.0.1",
            "kind = \"alloydb\"\ntls.ca = \"x\"\ncredentials_file = \"/c.json\"".to_owned(),
            CredentialsPlan::AlloydbIam { user: "me".to_owned(), credentials_file: Some("/c.json".into()) },
        ),
    ] {
        assert_eq!(credentials(host, &format!("{iam}\n{more}")), expected, "{host} {more}");
    }
    let lakebase = |user: Option<&str>, resource| CredentialsPlan::LakebaseOauth {
        user: user.map(str::to_owned),
        workspace: "https://dbc-1.cloud.databricks.com".to_owned(),
        client_id: env("I"),
        client_secret: env("S"),
        resource,
    };
    let oauth = format!("method = \"oauth\"\n{OAUTH}");
    let instance = LakebaseResource::Instance("x".to_owned());
    assert_eq!(credentials(INSTANCE, &format!("{oauth}\ninstance = \"x\"")), lakebase(None, instance));
    let endpoint = LakebaseResource::Endpoint("projects/p/branches/b/endpoints/e".to_owned());
    let more = "user = \"me\"\nendpoint = \"projects/p/branches/b/endpoints/e\"";
    assert_eq!(credentials(ENDPOINT, &format!("{oauth}\n{more}")), lakebase(Some("me"), endpoint));
    let shown = load(REDSHIFT, iam).effective;
    let region = shown.iter().find(|effective| effective.key == "databases.d.region").unwrap();
    assert_eq!((region.value.as_str(), region.source.as_str()), (Some("us-east-1"), "the host"));
}

#[test]
fn logins_that_make_no_sense_are_refused_with_what_to_write() {
    let iam = "method = \"iam\"\nuser = \"me\"\ndatabase = \"d\"";
    let with = |more: &str| format!("{iam}\n{more}");
    let oauth = |more: &str| format!("method = \"oauth\"\n{OAUTH}\n{more}");
    for (host, more, expected) in [
        ("db", iam.to_owned(), "method: \"iam\" is for rds, redshift, redshift-serverless, alloydb, and this is postgres: write method = \"database\", or `kind`"),
        (INSTANCE, iam.to_owned(), "method: \"iam\" is for rds, redshift, redshift-serverless, alloydb, and this is lakebase: write method = \"oauth\""),
        (RDS, "method = \"oauth\"".to_owned(), "method: \"oauth\" is for lakebase, and this is rds: write method = \"iam\""),
        (RDS, "method = \"password\"".to_owned(), "method: \"password\" is not one of"),
        (REDSHIFT, "user = \"me\"\nregion = \"us-east-1\"".to_owned(), "region: is of no use with method = \"database\": write method = \"iam\""),
        (REDSHIFT, with("workgroup = \"w\""), "workgroup: is for redshift-serverless, and this is redshift: leave it out"),
        (REDSHIFT, with("instance = \"w\""), "instance: is for lakebase, and this is redshift"),
        (RDS, with("tls.ca = \"x\"\nendpoint_url = \"https://x\""), "endpoint_url: is for redshift, redshift-serverless, and this is rds"),
        (REDSHIFT, "method = \"iam\"".to_owned(), "user: is missing: it is needed with method = \"iam\""),
        (RDS, "method = \"iam\"\ntls.ca = \"x\"".to_owned(), "user: is missing"),
        ("10.0.0.1", "kind = \"alloydb\"\nmethod = \"iam\"\ntls.ca = \"x\"".to_owned(), "user: is missing"),
        ("db", with("kind = \"rds\"\ntls.ca = \"x\""), "region: is missing: `host` does not tell it"),
        ("db", with("kind = \"redshift\"\nregion = \"r\""), "cluster_id: is missing: `host` does not tell it"),
        ("x.us-east-1.amazonaws.com", with("kind = \"redshift\""), "cluster_id: is missing"),
        ("db", "kind = \"redshift-serverless\"\nmethod = \"iam\"\nregion = \"r\"".to_owned(), "workgroup: is missing"),
        (REDSHIFT, with("region = \"a.b/\""), "region: \"a.b/\" is not a region"),
        (REDSHIFT, with("access_key_id = { env = \"A\" }"), "secret_access_key: is missing beside `access_key_id`"),
        (REDSHIFT, with("secret_access_key = { env = \"A\" }"), "access_key_id: is missing beside `secret_access_key`"),
        (REDSHIFT, with(&format!("{KEYS}\niam_profile = \"p\"")), "iam_profile: and `access_key_id` are two ways"),
        (REDSHIFT, with("endpoint_url = \"http://10.0.0.1\""), "endpoint_url: \"http://10.0.0.1\" is not encrypted"),
        (INSTANCE, oauth(""), "instance: is missing: write the name of the instance, or of an autoscaling"),
        (INSTANCE, oauth("instance = \"x\"\nendpoint = \"projects/p/branches/b/endpoints/e\""), "endpoint: and `instance` are two kinds"),
        (INSTANCE, oauth("endpoint = \"ep-cool-sun-1\""), "endpoint: \"ep-cool-sun-1\" is not the name of an endpoint: write projects/"),
        (INSTANCE, "method = \"oauth\"\ninstance = \"x\"\nworkspace = \"https://w\"\nclient_id = { env = \"I\" }".to_owned(), "client_secret: is missing"),
        (INSTANCE, "method = \"oauth\"\ninstance = \"x\"\nworkspace = \"dbc-1\"\nclient_id = { env = \"I\" }\nclient_secret = { env = \"I\" }".to_owned(), "workspace: \"dbc-1\" has no scheme"),
    ] {
        let problems = case(host, &more).problems();
        let full = format!("tunnelkeeper.toml: databases.d.{expected}");
        assert!(problems.len() == 1 && problems[0].starts_with(&full), "{full}\nnot in {problems:#?}");
    }
    let both = case(REDSHIFT, &with("session_token = { env = \"T\" }")).problems();
    assert!(
        both.len() == 2 && both.iter().all(|problem| problem.contains("beside `session_token`")),
        "{both:?}"
    );
}

#[test]
fn a_token_goes_only_to_whoever_proves_who_it_is() {
    let iam = "method = \"iam\"\nuser = \"me\"\ndatabase = \"d\"";
    let allowed = "allow_unverified = true";
    for (host, more, expected) in [
        (
            RDS,
            "",
            "tls.ca: this login sends a token as it is inside TLS, so the database has to prove first who it is: fetch https://truststore.pki.rds.amazonaws.com/global/global-bundle.pem and name the file as tls.ca",
        ),
        (RDS, "tls.mode = \"require\"", "tls.mode: this login sends a token"),
        (RDS, "tls.mode = \"prefer\"", "tls.mode: this login sends a token"),
        (
            RDS,
            "tls = { mode = \"disable\", allow_unverified = true }",
            "tls.mode: a token is never sent without TLS",
        ),
        (
            REDSHIFT,
            "tls.mode = \"require\"",
            "tls.mode: this login sends a token as it is inside TLS, so the database has to prove first who it is: write tls.mode = \"verify-full\"",
        ),
        (
            "10.0.0.1",
            "kind = \"alloydb\"",
            "tls.ca: this login sends a token as it is inside TLS, so the database has to prove first who it is: fetch the certificate of the cluster's own authority",
        ),
        (
            PROXY,
            "tls.mode = \"require\"",
            "tls.mode: this login sends a token as it is inside TLS, so the database has to prove first who it is: write tls.mode = \"verify-full\"",
        ),
        (
            "/run/.s.PGSQL.5432",
            "kind = \"alloydb\"",
            "host: is a Unix socket, over which PostgreSQL speaks no TLS",
        ),
    ] {
        let problems = case(host, &format!("{iam}\n{more}")).problems();
        let full = format!("tunnelkeeper.toml: databases.d.{expected}");
        assert!(problems.len() == 1 && problems[0].starts_with(&full), "{full}\nnot in {problems:#?}");
    }
    for (host, more) in [
        (RDS, "tls.ca = \"x\""),
        (RDS, "tls.mode = \"verify-full\""),
        (RDS, &format!("tls = {{ {allowed} }}")),
        (RDS, &format!("tls = {{ mode = \"prefer\", {allowed} }}")),
        (REDSHIFT, ""),
        // Its certificates are of a public authority.
        (PROXY, ""),
        (&PROXY.replace("orders", "reader.endpoint"), ""),
        (REDSHIFT, "tls = { mode = \"verify-ca\", ca = \"x\" }"),
        (REDSHIFT, &format!("tls = {{ mode = \"verify-ca\", {allowed} }}")),
        ("10.0.0.1", "kind = \"alloydb\"\ntls = { mode = \"verify-full\", ca = \"x\" }"),
    ] {
        load(host, &format!("{iam}\n{more}"));
    }
    // A password that is not sent as it is needs no proof; one that is, the login itself refuses.
    load(RDS, "user = \"me\"\npassword = { env = \"P\" }");
}

#[test]
fn an_issuer_that_could_be_anybody_proves_nothing() {
    let expected = "tunnelkeeper.toml: databases.d.tls.mode: verifies only who issued the certificate, and without tls.ca \
                    any public authority would do: name tls.ca or write \"verify-full\"";
    for (host, login) in [
        ("db.internal", ""),
        ("db.internal", "user = \"me\"\npassword = { env = \"P\" }"),
        (REDSHIFT, "user = \"me\"\ndatabase = \"d\"\nmethod = \"iam\""),
        ("10.0.0.1", "kind = \"alloydb\"\nuser = \"me\"\ndatabase = \"d\"\nmethod = \"iam\""),
    ] {
        assert_eq!(
            case(host, &format!("{login}\ntls.mode = \"verify-ca\"")).problems(),
            [expected],
            "{host} {login}"
        );
        load(host, &format!("{login}\ntls = {{ mode = \"verify-ca\", ca = \"x\" }}"));
    }
}

#[test]
fn what_is_beside_the_point_is_passed_over_with_a_note() {
    let password = "user = \"me\"\npassword = { env = \"P\" }";
    for (host, more, expected) in [
        (
            REDSHIFT,
            "method = \"iam\"\ndatabase = \"d\"",
            "password: is not used with method = \"iam\": Redshift makes one",
        ),
        (RDS, "method = \"iam\"\ntls.ca = \"x\"", "password: is not used with method = \"iam\": the token"),
        (
            "alias.internal",
            "kind = \"rds\"\nregion = \"r\"\nmethod = \"iam\"\ntls.ca = \"x\"",
            "host: is none of RDS's own names",
        ),
        (
            RDS,
            "region = \"us-east-1\"\nmethod = \"iam\"\ntls.ca = \"x\"",
            "region: `host` is in \"eu-west-1\", where a token for another region is not taken",
        ),
        ("10.0.0.1", "kind = \"alloydb\"\nport = 5433", "port: is the port of Google's own connectors"),
        (
            "ep-cool-sun-1-pooler.database.us-east-1.cloud.databricks.com",
            &format!("method = \"oauth\"\n{OAUTH}\nendpoint = \"projects/p/branches/b/endpoints/e\""),
            "host: is Lakebase's pooler, which takes passwords only",
        ),
    ] {
        let settings = load(host, &format!("{password}\n{more}"));
        let notes: Vec<String> =
            settings.notes.iter().map(|note| format!("{}: {}", note.key, note.text)).collect();
        assert!(
            notes.iter().any(|note| note.starts_with(&format!("databases.d.{expected}"))),
            "{expected}: {notes:?}"
        );
    }
}

#[test]
fn users_are_named_as_the_database_knows_them() {
    let alloydb = "kind = \"alloydb\"\ntls.ca = \"x\"";
    for (host, user, more, expected) in [
        (REDSHIFT, "IAM:me", "", &["user: begins with IAM:, which AWS puts before it by itself"][..]),
        (REDSHIFT, "me", "region = \"eu-west-1\"", &[]),
        (
            "10.0.0.1",
            "probe@p.iam.gserviceaccount.com",
            alloydb,
            &["user: is named without .gserviceaccount.com in AlloyDB"],
        ),
        ("10.0.0.1", "probe@p.iam", alloydb, &[]),
        (RDS, "me", "tls.ca = \"x\"\nregion = \"eu-west-1\"", &[]),
    ] {
        let settings = load(host, &format!("method = \"iam\"\nuser = \"{user}\"\ndatabase = \"d\"\n{more}"));
        let notes: Vec<String> =
            settings.notes.iter().map(|note| format!("{}: {}", note.key, note.text)).collect();
        let starts =
            |(note, expected): (&String, &&str)| note.starts_with(&format!("databases.d.{expected}"));
        assert!(notes.len() == expected.len() && notes.iter().zip(expected).all(starts), "{user}: {notes:?}");
    }
    for key in ["user", "database"] {
        let other = if key == "user" { "" } else { "user = \"me\"" };
        let problems = case("db", &format!("{key} = \"a\\u0000b\"\n{other}")).problems();
        let expected = format!("tunnelkeeper.toml: databases.d.{key}: has a zero byte in it");
        assert!(problems.len() == 1 && problems[0].starts_with(&expected), "{problems:?}");
    }
}

#[test]
fn a_temporary_login_names_its_database() {
    let iam = "method = \"iam\"\nuser = \"me\"";
    let oauth = format!("method = \"oauth\"\ninstance = \"x\"\n{}", OAUTH.replace("database = \"d\"\n", ""));
    for (host, login, example) in [
        (REDSHIFT, iam, "dev"),
        (SERVERLESS, iam, "dev"),
        ("10.0.0.1", &format!("{iam}\nkind = \"alloydb\"\ntls.ca = \"x\""), "postgres"),
        (INSTANCE, &oauth, "databricks_postgres"),
    ] {
        for level in ["login", "query"] {
            let expected = format!(
                "tunnelkeeper.toml: databases.d.database: is missing: the database would take the user's name for it, so \
                 write for example database = \"{example}\""
            );
            let more = format!("{login}\nprobe.level = \"{level}\"");
            assert_eq!(case(host, &more).problems(), [expected], "{host}");
        }
        load(host, &format!("{login}\nprobe.level = \"tls\""));
    }
    // Here the user is one of the database's own.
    load(RDS, &format!("{iam}\ntls.ca = \"x\""));
    load(REDSHIFT, "user = \"me\"\npassword = { env = \"P\" }");
}

#[test]
fn keys_are_no_problem_while_the_kind_is_unknown() {
    for wrong in ["kind = \"redshft\"", "host = \"a b\""] {
        let text = format!("{wrong}\nmethod = \"iam\"\ncluster_id = \"c\"\nworkgroup = \"w\"");
        let host = if wrong.starts_with("host") { "" } else { "host = \"db\"" };
        let case = Case::new(&format!(
            "[bastions.b]\nhost = \"b\"\nuser = \"u\"\n[databases.d]\nbastion = \"b\"\nlisten = \"127.0.0.1:1\"\n\
             {host}\n{text}\n"
        ));
        assert_eq!(case.problems().len(), 1, "{:?}", case.problems());
    }
}
