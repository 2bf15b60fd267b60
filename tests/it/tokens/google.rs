//! AlloyDB: every kind of Google's credentials becomes a token, and the default chain looks where Google's own does.

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::LazyLock;
use std::time::{SystemTime, UNIX_EPOCH};

use aws_lc_rs::signature::{RSA_PKCS1_2048_8192_SHA256, UnparsedPublicKey};
use data_encoding::BASE64URL_NOPAD;
use rcgen::{KeyPair, PKCS_RSA_SHA256};
use serde_json::{Value, json};
use tempfile::NamedTempFile;
use tunnelkeeper::failure::Cause;
use tunnelkeeper::settings::plan::CredentialsPlan;

use super::{echo, every_wrong_answer, gone, mint, silence, text, user_and_password};
use crate::support::cloud::Asked;
use crate::support::{Cloud, Reply};

const USER: &str = "prober@project.iam";
const ACCOUNT: &str = "prober@project.iam.gserviceaccount.com";
const SCOPE: &str = "https://www.googleapis.com/auth/alloydb.login";

/// Making one takes a while.
static KEY: LazyLock<KeyPair> = LazyLock::new(|| KeyPair::generate_for(&PKCS_RSA_SHA256).unwrap());

/// A file of credentials, and the plan that names it.
struct Credentials {
    file: NamedTempFile,
}

impl Credentials {
    fn new(content: &Value) -> Self {
        let file = NamedTempFile::new().unwrap();
        fs::write(file.path(), content.to_string()).unwrap();
        Self { file }
    }

    fn plan(&self) -> CredentialsPlan {
        of_file(self.file.path())
    }
}

fn of_file(path: &Path) -> CredentialsPlan {
    CredentialsPlan::AlloydbIam { user: USER.to_owned(), credentials_file: Some(path.to_owned()) }
}

fn service_account(service: &Cloud) -> Value {
    json!({
        "type": "service_account",
        "project_id": "project",
        "private_key_id": "key7",
        "private_key": KEY.serialize_pem(),
        "client_email": ACCOUNT,
        "token_uri": service.address("/token"),
        "universe_domain": "googleapis.com",
    })
}

fn authorized_user(service: &Cloud) -> Value {
    json!({
        "type": "authorized_user",
        "client_id": "gcloud.apps.googleusercontent.com",
        "client_secret": "d-hunter2",
        "refresh_token": "1//refresh+me",
        "quota_project_id": "project",
        "token_uri": service.address("/token"),
    })
}

fn granting() -> Cloud {
    Cloud::saying(200, json!({ "access_token": "ya29.t0ken", "expires_in": 3599, "token_type": "Bearer" }))
}

/// The claims of a token that this key has signed.
fn claims(token: &str) -> (Value, Value) {
    let (signed, signature) = token.rsplit_once('.').unwrap();
    let decode = |part: &str| BASE64URL_NOPAD.decode(part.as_bytes()).unwrap();
    UnparsedPublicKey::new(&RSA_PKCS1_2048_8192_SHA256, KEY.public_key_raw())
        .verify(signed.as_bytes(), &decode(signature))
        .expect("the signature is the key's");
    let (header, claims) = signed.split_once('.').unwrap();
    (serde_json::from_slice(&decode(header)).unwrap(), serde_json::from_slice(&decode(claims)).unwrap())
}

#[test]
fn a_service_account_signs_for_its_token() {
    let service = granting();
    let login = user_and_password(&mint(&Credentials::new(&service_account(&service)).plan()).unwrap(), 3599);
    assert_eq!(login, (USER.to_owned(), "ya29.t0ken".to_owned()));
    let request = service.only();
    assert_eq!((request.method.as_str(), request.path.as_str()), ("POST", "/token"));
    let form = request.form();
    assert_eq!(form.len(), 2);
    assert_eq!(form["grant_type"], "urn:ietf:params:oauth:grant-type:jwt-bearer");
    let (header, claims) = claims(&form["assertion"]);
    assert_eq!(header, json!({ "alg": "RS256", "typ": "JWT", "kid": "key7" }));
    let (issued, expires) = (claims["iat"].as_u64().unwrap(), claims["exp"].as_u64().unwrap());
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs();
    assert!(issued < now && now - issued < 60 && expires == issued + 3600, "{claims}");
    let expected = json!({ "iss": ACCOUNT, "scope": SCOPE, "aud": service.address("/token"), "iat": issued, "exp": expires });
    assert_eq!(claims, expected);
}

#[test]
fn a_persons_token_is_renewed() {
    let service = granting();
    let login = user_and_password(&mint(&Credentials::new(&authorized_user(&service)).plan()).unwrap(), 3599);
    assert_eq!(login, (USER.to_owned(), "ya29.t0ken".to_owned()));
    let form = service.only().form();
    assert_eq!(form.len(), 4);
    assert_eq!(form["grant_type"], "refresh_token");
    assert_eq!(form["client_id"], "gcloud.apps.googleusercontent.com");
    assert_eq!(form["client_secret"], "d-hunter2");
    assert_eq!(form["refresh_token"], "1//refresh+me");
}

/// The first step, and a service account's token in the second.
fn two_steps() -> Cloud {
    Cloud::start(|request| match request.path.as_str() {
        "/sts" | "/token" => Reply::Json(200, json!({ "access_token": "f1rst", "expires_in": 3599 })),
        _ => Reply::Json(200, json!({ "accessToken": "ya29.t0ken", "expireTime": in_an_hour() })),
    })
}

fn in_an_hour() -> String {
    let hour = SystemTime::now() + std::time::Duration::from_secs(3600);
    humantime::format_rfc3339_seconds(hour).to_string()
}

fn assert_acts(request: &Asked) {
    let path = format!("/v1/projects/-/serviceAccounts/{ACCOUNT}:generateAccessToken");
    assert_eq!((request.method.as_str(), request.path.as_str()), ("POST", path.as_str()));
    assert_eq!(request.header("authorization"), "Bearer f1rst");
    assert_eq!(request.json(), json!({ "scope": [SCOPE], "lifetime": "3600s", "delegates": [] }));
}

#[test]
fn another_clouds_identity_becomes_a_service_account() {
    let service = two_steps();
    let subject = NamedTempFile::new().unwrap();
    fs::write(subject.path(), "{\"id_token\":\"s.u+b\"}").unwrap();
    let account = service.address(&format!("/v1/projects/-/serviceAccounts/{ACCOUNT}:generateAccessToken"));
    let mut content = json!({
        "type": "external_account",
        "audience": "//iam.googleapis.com/projects/1/locations/global/workloadIdentityPools/p/providers/k",
        "subject_token_type": "urn:ietf:params:oauth:token-type:jwt",
        "token_url": service.address("/sts"),
        "credential_source": {
            "file": subject.path(),
            "format": { "type": "json", "subject_token_field_name": "id_token" },
        },
        "service_account_impersonation_url": account,
    });
    let login = user_and_password(&mint(&Credentials::new(&content).plan()).unwrap(), 3600);
    assert_eq!(login.1, "ya29.t0ken");
    let [first, second] = <[Asked; 2]>::try_from(service.asked()).unwrap();
    let form = first.form();
    assert_eq!(form.len(), 6);
    assert_eq!(form["grant_type"], "urn:ietf:params:oauth:grant-type:token-exchange");
    assert_eq!(form["audience"], content["audience"].as_str().unwrap());
    assert_eq!(form["scope"], "https://www.googleapis.com/auth/cloud-platform");
    assert_eq!(form["requested_token_type"], "urn:ietf:params:oauth:token-type:access_token");
    assert_eq!(form["subject_token"], "s.u+b");
    assert_eq!(form["subject_token_type"], "urn:ietf:params:oauth:token-type:jwt");
    assert_acts(&second);

    // Without a service account, and with the proof at an address.
    let proof = Cloud::start(|request| match request.header("metadata") {
        "true" => Reply::Answer(200, "pr00f\n".to_owned()),
        _ => Reply::Json(400, json!({})),
    });
    content["service_account_impersonation_url"] = Value::Null;
    content["credential_source"] =
        json!({ "url": proof.address("/identity?v=1"), "headers": { "Metadata": "true" } });
    let login = user_and_password(&mint(&Credentials::new(&content).plan()).unwrap(), 3599);
    assert_eq!(login.1, "f1rst");
    assert_eq!(proof.only().path, "/identity?v=1");
    let form = service.asked()[2].form();
    assert_eq!((form["scope"].as_str(), form["subject_token"].as_str()), (SCOPE, "pr00f"));

    content["credential_source"] = json!({});
    let failure = mint(&Credentials::new(&content).plan()).unwrap_err();
    assert_eq!(failure.cause, Cause::CredentialsMissing);
    assert!(failure.detail().ends_with("neither a file nor an address"), "{failure}");
    // What would be run or signed is not taken for something else, and nobody is asked.
    for source in [
        json!({ "executable": { "command": "/bin/proof" } }),
        json!({ "certificate": { "use_default_certificate_config": true } }),
        json!({ "environment_id": "aws1", "url": proof.address("/iam/security-credentials") }),
    ] {
        content["credential_source"] = source;
        let failure = mint(&Credentials::new(&content).plan()).unwrap_err();
        assert_eq!(failure.cause, Cause::CredentialsMissing, "{failure}");
        assert!(failure.detail().ends_with("is of a kind that is not supported"), "{failure}");
    }
    assert_eq!((proof.asked().len(), service.asked().len()), (1, 3));

    // Where a proof is had from may itself be a secret.
    let refusing = Cloud::saying(403, json!({}));
    let address = refusing.address("/identity?code=hunter2").replace("http://", "http://u:hunter2@");
    content["credential_source"] = json!({ "url": address });
    let failure = mint(&Credentials::new(&content).plan()).unwrap_err();
    assert!(failure.detail().ends_with(&format!(":{} answers with status 403", refusing.port)), "{failure}");
    assert!(!text(&failure).contains("hunter2"), "{failure}");
}

#[test]
fn a_person_may_act_as_a_service_account() {
    let service = two_steps();
    let content = json!({
        "type": "impersonated_service_account",
        "source_credentials": authorized_user(&service),
        "service_account_impersonation_url":
            service.address(&format!("/v1/projects/-/serviceAccounts/{ACCOUNT}:generateAccessToken")),
    });
    let login = user_and_password(&mint(&Credentials::new(&content).plan()).unwrap(), 3600);
    assert_eq!(login.1, "ya29.t0ken");
    let [first, second] = <[Asked; 2]>::try_from(service.asked()).unwrap();
    assert_eq!(first.form()["refresh_token"], "1//refresh+me");
    assert_acts(&second);

    let forbidding = Cloud::start(|request| match request.path.as_str() {
        "/token" => Reply::Json(200, json!({ "access_token": "f1rst", "expires_in": 3599 })),
        _ => {
            let said = format!("denied to {}", request.header("authorization"));
            Reply::Json(
                403,
                json!({ "error": { "code": 403, "status": "PERMISSION_DENIED", "message": said } }),
            )
        }
    });
    let content = content.to_string().replace(&service.url(), &forbidding.url());
    let failure = mint(&Credentials::new(&serde_json::from_str(&content).unwrap()).plan()).unwrap_err();
    assert_eq!(failure.cause, Cause::CredentialsDenied);
    assert!(failure.detail().ends_with("PERMISSION_DENIED: denied to Bearer (hidden)"), "{failure}");
    assert!(
        failure.hint().ends_with(&format!("iam.serviceAccountTokenCreator on {ACCOUNT}")),
        "{}",
        failure.hint()
    );
}

#[test]
fn what_google_refuses_is_told_apart() {
    let skewed = "Invalid JWT: Token must be a short-lived token (60 minutes) and in a reasonable timeframe. Check your iat and exp values in the JWT claim.";
    let (account, person) = (service_account as fn(&Cloud) -> Value, authorized_user as fn(&Cloud) -> Value);
    for (content, status, error, description, expected, hint) in [
        (account, 400, "invalid_grant", skewed, Cause::CredentialsClockSkew, "clock"),
        (
            account,
            400,
            "invalid_grant",
            "Invalid JWT Signature.",
            Cause::CredentialsDenied,
            "(`credentials_file`)",
        ),
        (
            account,
            400,
            "invalid_grant",
            "Invalid grant: account not found",
            Cause::CredentialsDenied,
            ACCOUNT,
        ),
        (account, 401, "invalid_client", "The OAuth client was deleted.", Cause::CredentialsDenied, ACCOUNT),
        (
            person,
            400,
            "invalid_grant",
            "Token has been expired or revoked.",
            Cause::CredentialsExpired,
            "gcloud auth",
        ),
        (person, 400, "invalid_grant", "Bad Request", Cause::CredentialsDenied, "gcloud auth"),
        (person, 401, "invalid_client", "Unauthorized", Cause::CredentialsDenied, "gcloud auth"),
        (person, 503, "backend_error", "try again", Cause::CredentialsUnreachable, "wait"),
    ] {
        let service = Cloud::saying(status, json!({ "error": error, "error_description": description }));
        let failure = mint(&Credentials::new(&content(&service)).plan()).unwrap_err();
        assert_eq!(failure.cause, expected, "{failure}");
        assert!(failure.detail().ends_with(&format!("{error}: {description}")), "{failure}");
        assert!(failure.hint().contains(hint), "{}", failure.hint());
    }
}

#[test]
fn what_is_no_token_endpoint_is_named() {
    let files = std::cell::RefCell::new(Vec::new());
    let plan = |service: &Cloud| {
        let credentials = Credentials::new(&authorized_user(service));
        let plan = credentials.plan();
        files.borrow_mut().push(credentials);
        plan
    };
    every_wrong_answer(plan);
    gone(plan);
    silence(plan);
}

#[test]
fn no_secret_is_repeated() {
    for status in [400, 401, 403, 500] {
        for content in [service_account as fn(&Cloud) -> Value, authorized_user] {
            let service = echo(status);
            let failure = mint(&Credentials::new(&content(&service)).plan()).unwrap_err();
            let form = service.only().form();
            let sent: Vec<&String> = ["assertion", "client_secret", "refresh_token"]
                .iter()
                .filter_map(|name| form.get(*name))
                .collect();
            assert!(!sent.is_empty());
            for secret in sent {
                let in_a_form: String = form_urlencoded::byte_serialize(secret.as_bytes()).collect();
                assert!(
                    !text(&failure).contains(secret) && !text(&failure).contains(&in_a_form),
                    "{failure}"
                );
            }
            assert!(failure.detail().contains("(hidden)"), "{failure}");
        }
    }
}

#[test]
fn a_file_that_cannot_be_used_is_named() {
    let service = granting();
    let mut clear = service_account(&service);
    clear["token_uri"] = json!("http://oauth2.example/token");
    let mut named = service_account(&service);
    named["token_uri"] = json!("https://u:hunter2@oauth2.example/hunter2");
    let mut broken = service_account(&service);
    broken["private_key"] = json!("-----BEGIN PRIVATE KEY-----\naHVudGVyMg==\n-----END PRIVATE KEY-----\n");
    for (content, expected) in [
        (json!({ "type": "service_account", "private_key": "hunter2" }), "lacks the field `client_email`"),
        (json!("hunter2"), "is not as Google writes files of credentials"),
        (json!({ "type": "gdch_service_account", "private_key": "hunter2" }), "is of none of the types"),
        (clear, "`token_uri` http://oauth2.example is not asked: it would get the secret in clear"),
        (named, "`token_uri` https://oauth2.example is not asked: it has a user or password in it"),
        (broken, "is no RSA key in PKCS #8"),
    ] {
        let failure = mint(&Credentials::new(&content).plan()).unwrap_err();
        assert_eq!(failure.cause, Cause::CredentialsMissing, "{failure}");
        assert!(failure.detail().contains(expected), "{failure}");
        assert!(!text(&failure).contains("hunter2") && !text(&failure).contains("aHVudGVyMg"), "{failure}");
    }
    let failure = mint(&of_file(Path::new("/nonexistent/key.json"))).unwrap_err();
    assert_eq!(failure.cause, Cause::CredentialsMissing);
    assert!(failure.detail().starts_with("/nonexistent/key.json cannot be read: No such file"), "{failure}");
    assert!(failure.hint().contains("`credentials_file`"), "{}", failure.hint());
    assert!(service.asked().is_empty());
}

/// Says what the default chain makes of its environment, for the tests below: theirs is shared by all of them.
#[test]
#[ignore = "others run it as a process of its own"]
fn the_default_chain() {
    let plan = CredentialsPlan::AlloydbIam { user: USER.to_owned(), credentials_file: None };
    match mint(&plan) {
        Ok(minted) => eprintln!("minted: {:?}", user_and_password(&minted, 300)),
        Err(failure) => eprintln!("failed: {failure} ({})", failure.hint()),
    }
}

/// What [`the_default_chain`] says.
fn in_environment(home: &Path, variables: &[(&str, &str)]) -> String {
    said(&mut default_chain(home, variables))
}

fn default_chain(home: &Path, variables: &[(&str, &str)]) -> Command {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--ignored", "--exact", "tokens::google::the_default_chain", "--nocapture"]);
    command.env_remove("GOOGLE_APPLICATION_CREDENTIALS").env_remove("GCE_METADATA_HOST").env("HOME", home);
    command.envs(variables.iter().copied()).stdin(Stdio::null());
    command
}

fn said(command: &mut Command) -> String {
    let output = command.output().unwrap();
    let (stdout, stderr) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success() && stdout.contains("1 passed"), "{stdout}{stderr}");
    stderr
        .lines()
        .find(|line| line.starts_with("minted: ") || line.starts_with("failed: "))
        .unwrap()
        .to_owned()
}

fn short_lived() -> Cloud {
    Cloud::start(|request| match (request.header("metadata-flavor"), request.method.as_str()) {
        ("Google", "GET") => {
            Reply::Json(200, json!({ "access_token": "machine", "expires_in": 299, "token_type": "Bearer" }))
        }
        (_, "POST") => Reply::Json(200, json!({ "access_token": "file", "expires_in": 299 })),
        _ => Reply::Json(403, json!({})),
    })
}

#[test]
fn the_default_chain_is_googles_own() {
    let service = short_lived();
    let host = format!("127.0.0.1:{}", service.port);
    let home = tempfile::tempdir().unwrap();
    let machine = [("GCE_METADATA_HOST", host.as_str())];

    // Neither file is there.
    assert_eq!(in_environment(home.path(), &machine), format!("minted: (\"{USER}\", \"machine\")"));
    let request = service.only();
    let path = "/computeMetadata/v1/instance/service-accounts/default/token";
    let query = "scopes=https%3A%2F%2Fwww.googleapis.com%2Fauth%2Falloydb.login";
    assert_eq!((request.method.as_str(), request.path), ("GET", format!("{path}?{query}")));

    // The working directory is nobody's home.
    let decoy = home.path().join("decoy/.config/gcloud");
    fs::create_dir_all(&decoy).unwrap();
    fs::write(decoy.join("application_default_credentials.json"), authorized_user(&service).to_string())
        .unwrap();
    let mut command = default_chain(&home.path().join("decoy"), &machine);
    command.env("HOME", ".").current_dir(home.path().join("decoy"));
    assert_eq!(said(&mut command), format!("minted: (\"{USER}\", \"machine\")"));

    // gcloud's file goes before the machine,
    let gcloud = home.path().join(".config/gcloud");
    fs::create_dir_all(&gcloud).unwrap();
    fs::write(gcloud.join("application_default_credentials.json"), authorized_user(&service).to_string())
        .unwrap();
    assert_eq!(in_environment(home.path(), &machine), format!("minted: (\"{USER}\", \"file\")"));
    assert_eq!(service.asked()[2].form()["grant_type"], "refresh_token");

    // and the variable before both.
    let named = Credentials::new(&service_account(&service));
    let variables = [machine[0], ("GOOGLE_APPLICATION_CREDENTIALS", named.file.path().to_str().unwrap())];
    assert_eq!(in_environment(home.path(), &variables), format!("minted: (\"{USER}\", \"file\")"));
    claims(&service.asked()[3].form()["assertion"]);

    // What it names has to be there.
    let variables = [machine[0], ("GOOGLE_APPLICATION_CREDENTIALS", "/nonexistent/key.json")];
    let failed = in_environment(home.path(), &variables);
    assert!(
        failed.starts_with("failed: credentials missing: /nonexistent/key.json cannot be read"),
        "{failed}"
    );
    assert_eq!(service.asked().len(), 4);
}

#[test]
fn a_machine_without_an_account_is_told_from_none() {
    let home = tempfile::tempdir().unwrap();
    let nothing = Cloud::start(|_| Reply::Answer(404, "<html>".to_owned()));
    let failed =
        in_environment(home.path(), &[("GCE_METADATA_HOST", &format!("127.0.0.1:{}", nothing.port))]);
    assert!(failed.contains("credentials missing: $GOOGLE_APPLICATION_CREDENTIALS is not set, "), "{failed}");
    assert!(failed.contains("the metadata server knows of no service account"), "{failed}");
    assert!(failed.contains("attach a service account"), "{failed}");

    let scopeless = Cloud::saying(403, json!({ "error": "insufficient" }));
    let failed =
        in_environment(home.path(), &[("GCE_METADATA_HOST", &format!("127.0.0.1:{}", scopeless.port))]);
    assert!(failed.contains("credentials denied: the metadata server answers with status 403"), "{failed}");

    let port = crate::support::free_port();
    let failed = in_environment(home.path(), &[("GCE_METADATA_HOST", &format!("127.0.0.1:{port}"))]);
    assert!(failed.contains("credentials unreachable: http://127.0.0.1:"), "{failed}");
}
