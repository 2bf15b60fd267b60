//! AWS's default chain, which looks into the environment of a process: so each test starts one of its own, which is this
//! program again and asks for a login whenever it is told to.

use std::io::{BufRead, BufReader, Read, Write};
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::{Duration, SystemTime};
use std::{env, fs};

use rcgen::{CertifiedKey, generate_simple_self_signed};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio_rustls::rustls::ServerConfig;
use tokio_rustls::rustls::crypto::aws_lc_rs;
use tokio_rustls::rustls::pki_types::PrivateKeyDer;
use tunnelkeeper::ids::{HostPort, Target};
use tunnelkeeper::settings::plan::{AwsKeysPlan, CredentialsPlan, LoginPlan};

use super::{KEY_ID, SECRET, TOKEN, signature};
use crate::support::cloud::{Cloud, Reply};
use crate::support::logins::mint;
use crate::support::{eventually, runtime};

const PLAN: &str = "TUNNELKEEPER_TEST_PLAN";
const ANSWER: &str = "ANSWER ";
const BEGUN: &str = "everything is logged";

#[test]
#[ignore = "it is what the other tests start"]
fn asker() {
    let Ok(plan) = env::var(PLAN) else { return };
    tracing_subscriber::fmt()
        .with_max_level(tracing_subscriber::filter::LevelFilter::TRACE)
        .with_writer(std::io::stderr)
        .init();
    tracing::trace!("{BEGUN}");
    let plan: Value = serde_json::from_str(&plan).unwrap();
    let text = |key: &str| plan[key].as_str().map(str::to_owned);
    let keys = AwsKeysPlan::Chain { profile: text("profile") };
    let (user, region) = ("probe".to_owned(), "us-east-1".to_owned());
    let credentials = match text("cluster") {
        None => CredentialsPlan::RdsIam { user, region, keys },
        Some(cluster_id) => CredentialsPlan::RedshiftIam {
            user,
            cluster_id,
            region,
            keys,
            endpoint_url: text("endpoint_url"),
        },
    };
    let plan = LoginPlan { database: None, credentials };
    let target = Target::Tcp(HostPort::new("db.abc123.us-east-1.rds.amazonaws.com", 5432));
    let runtime = runtime();
    for _ in std::io::stdin().lines() {
        let answer = match runtime.block_on(mint(&plan, &target)) {
            Ok(minted) => json!({
                "password": minted.login.password.unwrap().expose(),
                "expires": humantime::format_rfc3339_seconds(minted.expires.unwrap()).to_string(),
            }),
            Err(failure) => json!(failure),
        };
        println!("{ANSWER}{answer}");
    }
}

struct Asker {
    dir: TempDir,
    child: Child,
    questions: ChildStdin,
    answers: BufReader<ChildStdout>,
}

impl Asker {
    /// A process with this environment and no other; in the values `{}` is its home. It never asks a machine's own metadata
    /// unless told where they are.
    fn start(plan: &Value, environment: &[(&str, &str)]) -> Self {
        let dir = TempDir::with_prefix("asker-").unwrap();
        let home = dir.path().to_str().unwrap();
        let mut command = Command::new("setpriv");
        command.args(["--pdeathsig", "KILL"]).arg(env::current_exe().unwrap());
        command.args(["--exact", "aws::chain::asker", "--ignored", "--nocapture", "--test-threads", "1"]);
        command.env_clear().env("PATH", env::var_os("PATH").unwrap()).env("HOME", home);
        command.env(PLAN, plan.to_string()).env("AWS_EC2_METADATA_DISABLED", "true");
        command.envs(environment.iter().map(|(name, value)| (name, value.replace("{}", home))));
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
        command.stderr(fs::File::create(dir.path().join("log")).unwrap());
        let mut child = command.spawn().unwrap();
        let (questions, answers) = (child.stdin.take().unwrap(), child.stdout.take().unwrap());
        Self { dir, child, questions, answers: BufReader::new(answers) }
    }

    fn rds(environment: &[(&str, &str)]) -> Self {
        Self::start(&json!({}), environment)
    }

    fn home(&self) -> &Path {
        self.dir.path()
    }

    /// Puts text into a file of AWS's.
    fn write(&self, name: &str, text: &str) {
        fs::create_dir_all(self.home().join(".aws")).unwrap();
        fs::write(self.home().join(".aws").join(name), text).unwrap();
    }

    /// Asks once, and looks at what was said on the way.
    fn ask(&mut self) -> Value {
        writeln!(self.questions).unwrap();
        let answer = self.answers.by_ref().lines().map(Result::unwrap).find_map(|line| {
            let (_, answer) = line.split_once(ANSWER)?;
            Some(serde_json::from_str(answer).unwrap())
        });
        let log = fs::read_to_string(self.home().join("log")).unwrap();
        assert!(log.contains(BEGUN), "{log}");
        for secret in [SECRET, TOKEN, "hunter2", "X-Amz-Signature"] {
            assert!(!log.contains(secret), "{secret} was logged: {log}");
        }
        answer.unwrap_or_else(|| panic!("it ended without an answer: {log}"))
    }

    fn password(&mut self) -> String {
        let answer = self.ask();
        answer["password"].as_str().unwrap_or_else(|| panic!("{answer}")).to_owned()
    }

    /// Asks for what fails; the reason and the detail.
    fn failure(&mut self) -> (String, String) {
        let answer = self.ask();
        let text = |key: &str| answer[key].as_str().unwrap_or_else(|| panic!("{answer}")).to_owned();
        assert!(!answer.to_string().contains("hunter2"), "{answer}");
        (text("reason"), text("detail"))
    }
}

impl Drop for Asker {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn in_minutes(minutes: u64) -> String {
    humantime::format_rfc3339_seconds(SystemTime::now() + Duration::from_secs(60 * minutes)).to_string()
}

/// What gives temporary keys, as a container's and a machine's endpoints do.
fn temporary_keys(expires: &str) -> String {
    json!({
        "Code": "Success", "LastUpdated": in_minutes(0), "Type": "AWS-HMAC",
        "AccessKeyId": KEY_ID, "SecretAccessKey": SECRET, "Token": TOKEN, "Expiration": expires,
    })
    .to_string()
}

fn profile(name: &str, key_id: &str) -> String {
    format!("[{name}]\naws_access_key_id = {key_id}\naws_secret_access_key = {SECRET}\n")
}

#[test]
fn keys_come_from_a_containers_endpoint_and_end_with_them() {
    let expires = in_minutes(7);
    let keys = temporary_keys(&expires);
    let cloud = Cloud::start(move |asked| match asked.headers.get("authorization").map(String::as_str) {
        Some("container's own") if asked.path == "/keys" => Reply::Answer(200, keys.clone()),
        _ => Reply::Answer(403, r#"{"code":"AccessDenied","message":"not you"}"#.to_owned()),
    });
    let url = format!("{}/keys", cloud.url());
    let endpoint = ("AWS_CONTAINER_CREDENTIALS_FULL_URI", url.as_str());
    let mut asker = Asker::rds(&[endpoint, ("AWS_CONTAINER_AUTHORIZATION_TOKEN", "container's own")]);
    let answer = asker.ask();
    let token = answer["password"].as_str().unwrap();
    assert!(token.contains(&format!("X-Amz-Credential={KEY_ID}%2F")), "{token}");
    assert!(token.contains("&X-Amz-Security-Token=SESS%2FTOK%2B%3D%3D"), "{token}");
    assert_eq!(answer["expires"], expires, "a token counts no longer than the keys that signed it");

    let (reason, detail) = Asker::rds(&[endpoint]).failure();
    assert_eq!(reason, "denied", "{detail}");
}

#[test]
fn keys_come_from_a_machines_metadata() {
    let keys = temporary_keys(&in_minutes(300));
    let cloud = Cloud::start(move |asked| match (asked.method.as_str(), asked.path.trim_end_matches('/')) {
        ("PUT", "/latest/api/token") => Reply::AnswerWith(
            200,
            "x-aws-ec2-metadata-token-ttl-seconds: 21600\r\n".to_owned(),
            "metadata's own".to_owned(),
        ),
        _ if asked.headers.get("x-aws-ec2-metadata-token").map(String::as_str) != Some("metadata's own") => {
            Reply::Answer(401, String::new())
        }
        ("GET", "/latest/meta-data/iam/security-credentials") => Reply::Answer(200, "the-role".to_owned()),
        ("GET", "/latest/meta-data/iam/security-credentials/the-role") => Reply::Answer(200, keys.clone()),
        _ => Reply::Answer(404, String::new()),
    });
    let url = cloud.url();
    let mut asker =
        Asker::rds(&[("AWS_EC2_METADATA_DISABLED", "false"), ("AWS_EC2_METADATA_SERVICE_ENDPOINT", &url)]);
    let answer = asker.ask();
    assert!(answer["password"].as_str().is_some_and(|token| token.contains(KEY_ID)), "{answer}");
    let expires = humantime::parse_rfc3339(answer["expires"].as_str().unwrap()).unwrap();
    assert!(expires < SystemTime::now() + Duration::from_secs(901), "{answer}");
}

#[test]
fn keys_come_from_a_token_of_another_identity() {
    let assumed = |asked: &crate::support::cloud::Asked| {
        let is_right = asked.body.contains("Action=AssumeRoleWithWebIdentity")
            && asked.body.contains("WebIdentityToken=hunter2")
            && asked.body.contains("RoleArn=arn%3Aaws%3Aiam%3A%3A1%3Arole%2Fx");
        let expires = in_minutes(60);
        Reply::Answer(
            if is_right { 200 } else { 400 },
            format!(
                "<AssumeRoleWithWebIdentityResponse><AssumeRoleWithWebIdentityResult><Credentials>\
                 <AccessKeyId>{KEY_ID}</AccessKeyId><SecretAccessKey>{SECRET}</SecretAccessKey>\
                 <SessionToken>{TOKEN}</SessionToken><Expiration>{expires}</Expiration>\
                 </Credentials></AssumeRoleWithWebIdentityResult></AssumeRoleWithWebIdentityResponse>"
            ),
        )
    };
    let refused = |code: &'static str| {
        move |_: &crate::support::cloud::Asked| {
            let body = format!(
                "<ErrorResponse><Error><Code>{code}</Code><Message>no</Message></Error></ErrorResponse>"
            );
            Reply::Answer(403, body)
        }
    };
    for (cloud, expected) in [
        (Cloud::start(assumed), ""),
        (Cloud::start(refused("AccessDenied")), "denied"),
        (Cloud::start(refused("ExpiredTokenException")), "expired"),
    ] {
        let url = cloud.url();
        let mut asker = Asker::rds(&[
            ("AWS_WEB_IDENTITY_TOKEN_FILE", "{}/token"),
            ("AWS_ROLE_ARN", "arn:aws:iam::1:role/x"),
            ("AWS_ENDPOINT_URL_STS", &url),
        ]);
        fs::write(asker.home().join("token"), "hunter2").unwrap();
        if expected.is_empty() {
            assert!(asker.password().contains(KEY_ID));
        } else {
            let (reason, detail) = asker.failure();
            assert_eq!(reason, expected, "{detail}");
        }
    }
}

/// The same process, whose files change under it.
#[test]
fn shared_files_are_read_anew_and_a_named_profile_is_meant() {
    let environment = [("AWS_ACCESS_KEY_ID", "AKIDENVIRONMENT"), ("AWS_SECRET_ACCESS_KEY", SECRET)];
    let mut asker = Asker::start(&json!({ "profile": "loader" }), &environment);
    let (reason, detail) = asker.failure();
    assert_eq!(reason, "missing");
    assert!(detail.contains("loader"), "{detail}");
    asker.write("credentials", "this is not a file of AWS's\n");
    let (reason, detail) = asker.failure();
    assert_eq!(reason, "missing");
    assert!(detail.contains("the profile loader of AWS's shared files cannot be used"), "{detail}");
    for key_id in ["AKIDONE", "AKIDTWO"] {
        asker.write("credentials", &(profile("default", "AKIDDEFAULT") + &profile("loader", key_id)));
        assert!(asker.password().contains(&format!("X-Amz-Credential={key_id}%2F")));
    }
    // Where none is named, the environment comes first, then the default profile.
    assert!(Asker::rds(&environment).password().contains("=AKIDENVIRONMENT%2F"));
    let mut asker = Asker::rds(&[]);
    asker.write("credentials", &profile("default", "AKIDDEFAULT"));
    assert!(asker.password().contains("=AKIDDEFAULT%2F"));
}

#[test]
fn keys_come_from_a_command_whose_complaints_stay_with_it() {
    let mut asker = Asker::rds(&[]);
    let config = |asker: &Asker, expires: &str| {
        let keys = json!({
            "Version": 1, "AccessKeyId": KEY_ID, "SecretAccessKey": SECRET, "SessionToken": TOKEN, "Expiration": expires,
        });
        fs::write(asker.home().join("keys"), keys.to_string()).unwrap();
        asker.write(
            "config",
            &format!("[default]\ncredential_process = cat {}/keys\n", asker.home().display()),
        );
    };
    let expires = in_minutes(5);
    config(&asker, &expires);
    let answer = asker.ask();
    assert_eq!(answer["expires"], expires, "{answer}");
    config(&asker, "2026-01-02T03:04:05Z");
    let (reason, detail) = asker.failure();
    assert_eq!(reason, "expired");
    assert!(detail.ends_with("keys that expired at 2026-01-02T03:04:05Z"), "{detail}");
    asker.write("config", "[default]\ncredential_process = sh -c 'echo hunter2 >&2; exit 3'\n");
    let (reason, detail) = asker.failure();
    assert_eq!(reason, "missing");
    assert!(detail.contains("exit status: 3"), "{detail}");
}

/// A command is asked after the environment, and is a source of roles too.
#[test]
fn a_command_has_its_place_among_the_others() {
    let printing = |key_id: &str| {
        json!({ "Version": 1, "AccessKeyId": key_id, "SecretAccessKey": SECRET, "SessionToken": TOKEN })
            .to_string()
    };
    let assumed = |asked: &crate::support::cloud::Asked| {
        let is_right = asked.body.contains("Action=AssumeRole&")
            && asked.body.contains("ExternalId=theirs")
            && asked.headers["authorization"].contains("Credential=AKIDCOMMAND/");
        let expires = in_minutes(60);
        let body = format!(
            "<AssumeRoleResponse><AssumeRoleResult><Credentials><AccessKeyId>AKIDROLE</AccessKeyId>\
             <SecretAccessKey>{SECRET}</SecretAccessKey><SessionToken>{TOKEN}</SessionToken>\
             <Expiration>{expires}</Expiration></Credentials></AssumeRoleResult></AssumeRoleResponse>"
        );
        Reply::Answer(if is_right { 200 } else { 400 }, body)
    };
    let cloud = Cloud::start(assumed);
    let url = cloud.url();
    let role = "role_arn = arn:aws:iam::1:role/x\nexternal_id = theirs\n";
    let environment = [("AWS_ACCESS_KEY_ID", "AKIDENVIRONMENT"), ("AWS_SECRET_ACCESS_KEY", SECRET)];
    for (variables, named, expected) in [
        (&environment[..], None, "AKIDENVIRONMENT"),
        (&environment[..], Some("plain"), "AKIDCOMMAND"),
        (&[][..], None, "AKIDCOMMAND"),
        (&[("AWS_PROFILE", "role")][..], None, "AKIDROLE"),
        (&[][..], Some("role"), "AKIDROLE"),
        (&[][..], Some("itself"), "AKIDROLE"),
        (&[][..], Some("static"), "AKIDROLE"),
    ] {
        let plan = json!({ "profile": named });
        let mut asker = Asker::start(&plan, &[variables, &[("AWS_ENDPOINT_URL_STS", url.as_str())]].concat());
        let home = asker.home().display().to_string();
        let command = format!("credential_process = sh {home}/script\n");
        fs::write(asker.home().join("keys"), printing("AKIDCOMMAND")).unwrap();
        fs::write(asker.home().join("script"), format!("touch {home}/ran\ncat {home}/keys\n")).unwrap();
        asker.write(
            "config",
            &format!(
                "[default]\n{command}[profile plain]\n{command}[profile role]\n{role}source_profile = plain\n\
                 [profile itself]\n{role}source_profile = itself\n{command}\
                 [profile static]\n{role}source_profile = kept\n[profile kept]\n{command}"
            ),
        );
        asker.write("credentials", &profile("kept", "AKIDCOMMAND"));
        let token = asker.password();
        assert!(token.contains(&format!("={expected}%2F")), "{named:?} {variables:?}: {token}");
        let is_run = expected != "AKIDENVIRONMENT" && named != Some("static");
        assert_eq!(asker.home().join("ran").exists(), is_run, "{named:?} {variables:?}");
    }
}

#[test]
fn a_command_that_hangs_is_ended_and_knows_nothing_of_the_service_manager() {
    let mut asker = Asker::rds(&[("NOTIFY_SOCKET", "/nonexistent"), ("LISTEN_FDS", "1")]);
    let home = asker.home().display().to_string();
    let script = format!("env > {home}/seen\nsleep 300 &\necho $! > {home}/pid\necho hunter2\nwait\n");
    fs::write(asker.home().join("script"), script).unwrap();
    asker.write("config", &format!("[default]\ncredential_process = sh {home}/script\n"));
    let (reason, detail) = asker.failure();
    assert_eq!(reason, "missing");
    assert!(detail.ends_with("of AWS's shared files did not finish within 10 s"), "{detail}");
    let read = |name: &str| fs::read_to_string(asker.home().join(name)).unwrap();
    assert!(
        !read("seen").contains("NOTIFY_SOCKET") && !read("seen").contains("LISTEN_FDS"),
        "{}",
        read("seen")
    );
    let stat = format!("/proc/{}/stat", read("pid").trim());
    eventually("the command's own child ends", || {
        let stat = fs::read_to_string(&stat).unwrap_or_default();
        // It may wait for whoever adopted it to notice.
        stat.rsplit(')').next().is_none_or(|rest| rest.is_empty() || rest.starts_with(" Z")).then_some(())
    });
    assert!(asker.child.try_wait().unwrap().is_none());
}

#[test]
fn what_a_command_prints_instead_of_keys_is_not_shown() {
    let mut asker = Asker::rds(&[]);
    asker.write("config", "[default]\ncredential_process = echo hunter2\n");
    let (reason, detail) = asker.failure();
    assert_eq!(reason, "invalid_answer");
    assert!(detail.contains("profile default of AWS's shared files does not print keys"), "{detail}");
}

#[test]
fn sign_on_is_told_how_to_get_in() {
    let mut asker = Asker::rds(&[]);
    asker.write(
        "config",
        "[default]\nsso_session = x\nsso_account_id = 1\nsso_role_name = y\n\
         [sso-session x]\nsso_region = us-east-1\nsso_start_url = https://sign-on.invalid\n",
    );
    let answer = asker.ask();
    assert_eq!(answer["reason"], "missing", "{answer}");
    assert!(answer["hint"].as_str().unwrap().contains("aws configure export-credentials"), "{answer}");
}

/// As a container sees its machine when it is one hop too far away.
#[test]
fn metadata_that_never_answer_are_given_up() {
    let cloud = Cloud::start(|_| Reply::Silence);
    let url = cloud.url();
    let mut asker =
        Asker::rds(&[("AWS_EC2_METADATA_DISABLED", "false"), ("AWS_EC2_METADATA_SERVICE_ENDPOINT", &url)]);
    let (reason, detail) = asker.failure();
    assert_eq!(reason, "missing", "{detail}");
    assert_eq!(cloud.asked().first().map(|asked| asked.path.as_str()), Some("/latest/api/token"));
}

#[test]
fn where_there_are_none_all_places_are_named() {
    let (reason, detail) = Asker::rds(&[]).failure();
    assert_eq!(reason, "missing");
    for place in ["the environment", "shared files", "web identity", "container", "machine"] {
        assert!(detail.contains(place), "{detail}");
    }
}

const KEYS: [(&str, &str); 3] =
    [("AWS_ACCESS_KEY_ID", KEY_ID), ("AWS_SECRET_ACCESS_KEY", SECRET), ("AWS_SESSION_TOKEN", TOKEN)];

#[test]
fn the_environment_may_name_another_endpoint() {
    let cloud = Cloud::start(|asked| match signature::check(asked, "redshift", KEY_ID, SECRET) {
        Ok(()) => Reply::Answer(
            200,
            "<GetClusterCredentialsResponse><GetClusterCredentialsResult><DbUser>IAM:probe</DbUser>\
             <DbPassword>from elsewhere</DbPassword><Expiration>2100-01-01T00:00:00Z</Expiration>\
             </GetClusterCredentialsResult></GetClusterCredentialsResponse>"
                .to_owned(),
        ),
        Err(found) => Reply::Answer(400, found),
    });
    let url = cloud.url();
    // A proxy would see a login that goes without TLS.
    let proxy = Cloud::start(|_| Reply::Answer(403, String::new()));
    let proxy_url = proxy.url();
    let environment =
        [("AWS_ENDPOINT_URL_REDSHIFT", url.as_str()), ("HTTP_PROXY", &proxy_url), ("ALL_PROXY", &proxy_url)];
    let mut asker = Asker::start(&json!({ "cluster": "c1" }), &[&KEYS[..], &environment].concat());
    assert_eq!(asker.password(), "from elsewhere");
    assert!(proxy.asked().is_empty(), "{:?}", proxy.asked());
}

#[test]
fn a_proxy_is_asked_for_the_way() {
    let proxy = Cloud::start(|_| Reply::Answer(403, String::new()));
    let url = proxy.url().replace("http://", "http://user:hunter2@");
    let environment = [("HTTPS_PROXY", url.as_str()), ("AWS_ENDPOINT_URL", "https://redshift.invalid")];
    let mut asker = Asker::start(&json!({ "cluster": "c1" }), &[&KEYS[..], &environment].concat());
    let (reason, detail) = asker.failure();
    assert_eq!(reason, "unreachable", "{detail}");
    let asked = &proxy.asked()[0];
    assert_eq!((asked.method.as_str(), asked.path.as_str()), ("CONNECT", "redshift.invalid:443"));
}

#[test]
fn a_service_is_believed_by_the_systems_roots() {
    let CertifiedKey { cert, signing_key } = generate_simple_self_signed(["localhost".to_owned()]).unwrap();
    let key = PrivateKeyDer::try_from(signing_key.serialize_der()).unwrap();
    let tls = ServerConfig::builder_with_provider(aws_lc_rs::default_provider().into())
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![cert.der().clone()], key)
        .unwrap();
    let cloud = Cloud::secured(tls, |_| Reply::Answer(200, "hello".to_owned()));
    let url = format!("https://localhost:{}", cloud.port);
    let plan = json!({ "cluster": "c1", "endpoint_url": url });
    let (reason, detail) = Asker::start(&plan, &KEYS).failure();
    assert_eq!(reason, "unreachable");
    assert!(detail.contains("UnknownIssuer"), "{detail}");
    assert!(cloud.asked().is_empty());

    let mut asker = Asker::start(&plan, &[&KEYS[..], &[("SSL_CERT_FILE", "{}/roots.pem")]].concat());
    fs::write(asker.home().join("roots.pem"), cert.pem()).unwrap();
    let (reason, detail) = asker.failure();
    assert_eq!((reason.as_str(), cloud.asked().len()), ("invalid_answer", 1), "{detail}");
    // Another name than the certificate's.
    let plan = json!({ "cluster": "c1", "endpoint_url": format!("https://127.0.0.1:{}", cloud.port) });
    let mut asker = Asker::start(&plan, &[&KEYS[..], &[("SSL_CERT_FILE", "{}/roots.pem")]].concat());
    fs::write(asker.home().join("roots.pem"), cert.pem()).unwrap();
    let (reason, detail) = asker.failure();
    assert_eq!(reason, "unreachable");
    assert!(detail.contains("not valid for name"), "{detail}");
}
