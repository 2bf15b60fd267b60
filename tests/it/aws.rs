//! Logins of AWS: whoever checks our signatures accepts them, and whatever goes wrong is told apart. No test asks the real
//! AWS, and none a machine's own metadata.

mod chain;
mod moto;
mod signature;

use std::time::{Duration, SystemTime};

use tunnelkeeper::credentials::Minted;
use tunnelkeeper::failure::{Cause, Failure};
use tunnelkeeper::ids::{HostPort, Target};
use tunnelkeeper::secret::{Secret, SecretSource};
use tunnelkeeper::settings::plan::{AwsKeysPlan, CredentialsPlan, LoginPlan};

use crate::support::cloud::{Asked, Cloud, Reply};
use crate::support::logins::mint;
use crate::support::runtime;
use moto::Moto;

const KEY_ID: &str = "AKIDEXAMPLE";
const SECRET: &str = "wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY";
const TOKEN: &str = "SESS/TOK+==";

fn keys(id: &str, secret: &str, token: Option<&str>) -> AwsKeysPlan {
    let source = |text: &str| SecretSource::Plain(Secret::new(text.to_owned()));
    AwsKeysPlan::Keys { id: source(id), secret: source(secret), session_token: token.map(source) }
}

fn cluster(keys: AwsKeysPlan, cluster_id: &str, endpoint_url: &str) -> LoginPlan {
    let credentials = CredentialsPlan::RedshiftIam {
        user: "probe".to_owned(),
        cluster_id: cluster_id.to_owned(),
        region: "us-east-1".to_owned(),
        keys,
        endpoint_url: Some(endpoint_url.to_owned()),
    };
    LoginPlan { database: Some("dev".to_owned()), credentials }
}

fn workgroup(keys: AwsKeysPlan, endpoint_url: &str) -> LoginPlan {
    let credentials = CredentialsPlan::RedshiftServerlessIam {
        workgroup: "wg1".to_owned(),
        region: "us-east-1".to_owned(),
        keys,
        endpoint_url: Some(endpoint_url.to_owned()),
    };
    LoginPlan { database: Some("dev".to_owned()), credentials }
}

fn ask(plan: &LoginPlan) -> Result<Minted, Failure> {
    let target = Target::Tcp(HostPort::new("db.abc123.us-east-1.rds.amazonaws.com", 5432));
    runtime().block_on(mint(plan, &target))
}

fn minutes_left(minted: &Minted) -> u64 {
    (minted.expires.unwrap().duration_since(SystemTime::now()).unwrap().as_secs() + 30) / 60
}

#[test]
fn moto_takes_our_signature_and_no_other() {
    let moto = Moto::start();
    let right = || keys(&moto.key_id, &moto.secret, None);
    let minted = ask(&cluster(right(), "Analytics", &moto.url())).unwrap();
    assert_eq!(minted.login.user, "IAM:probe");
    assert!(minted.login.password.as_ref().unwrap().expose().len() > 20);
    assert_eq!(minutes_left(&minted), 15);

    let failure = ask(&cluster(keys(&moto.key_id, SECRET, None), "Analytics", &moto.url())).unwrap_err();
    assert_eq!(failure.cause, Cause::CredentialsDenied);
    assert!(failure.detail().contains("SignatureDoesNotMatch"), "{failure}");
    let failure = ask(&cluster(keys(KEY_ID, SECRET, None), "Analytics", &moto.url())).unwrap_err();
    assert_eq!(failure.cause, Cause::CredentialsDenied);
    assert!(failure.detail().contains("InvalidClientTokenId"), "{failure}");
    // Upper and lower case count.
    let failure = ask(&cluster(right(), "analytics", &moto.url())).unwrap_err();
    assert_eq!(failure.cause, Cause::CredentialsDenied);
    assert!(failure.detail().contains("Cluster analytics not found"), "{failure}");
    assert!(
        failure.hint().contains("`cluster_id`") && failure.hint().contains("`region`"),
        "{}",
        failure.hint()
    );
    // moto does not know Serverless, and says so in HTML.
    let failure = ask(&workgroup(right(), &moto.url())).unwrap_err();
    assert_eq!(failure.cause, Cause::CredentialsInvalidAnswer, "{failure}");
}

/// What Redshift Serverless answers to a question that is in order.
fn serverless(asked: &Asked, secret: &str) -> Reply {
    let refuse = |code: &str, message: &str| {
        Reply::Answer(
            400,
            format!(r#"{{"__type":"com.amazonaws.redshiftserverless#{code}","message":"{message}"}}"#),
        )
    };
    let header = |name: &str| asked.headers.get(name).map_or("", String::as_str);
    if let Err(found) = signature::check(asked, "redshift-serverless", KEY_ID, secret) {
        return refuse("InvalidSignatureException", &found);
    }
    let is_called = header("x-amz-target") == "RedshiftServerless.GetCredentials"
        && header("content-type") == "application/x-amz-json-1.1"
        && (asked.method.as_str(), asked.path.as_str()) == ("POST", "/");
    if !is_called || asked.body != r#"{"workgroupName":"wg1","dbName":"dev","durationSeconds":900}"# {
        return refuse("ValidationException", "it is another question");
    }
    let expiration = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap().as_secs() + 900;
    let answer = format!(r#"{{"dbUser":"IAMR:probe","dbPassword":"pass:word","expiration":{expiration}.5}}"#);
    Reply::Answer(200, answer)
}

#[test]
fn serverless_is_asked_as_it_wants_to_be() {
    for token in [None, Some(TOKEN)] {
        let cloud = Cloud::start(|asked| serverless(asked, SECRET));
        let minted = ask(&workgroup(keys(KEY_ID, SECRET, token), &cloud.url())).unwrap();
        assert_eq!(minted.login.user, "IAMR:probe");
        assert_eq!(minted.login.password.as_ref().unwrap().expose(), "pass:word");
        assert_eq!(minutes_left(&minted), 15);
        let asked = &cloud.asked()[0];
        assert_eq!(asked.headers.get("x-amz-security-token").map(String::as_str), token);
        assert_eq!(asked.headers["host"], format!("127.0.0.1:{}", cloud.port));
        let failure = ask(&workgroup(keys(KEY_ID, "another", token), &cloud.url())).unwrap_err();
        assert_eq!(failure.cause, Cause::CredentialsDenied);
        assert!(failure.detail().ends_with("the signature is wrong"), "{failure}");
    }
}

/// The address of a private link may have a path, and capitals, which are not sent.
#[test]
fn the_signed_host_is_the_sent_one() {
    let cloud = Cloud::start(|asked| match signature::check(asked, "redshift", KEY_ID, SECRET) {
        Ok(()) => Reply::Answer(200, "<html/>".to_owned()),
        Err(found) => {
            Reply::Answer(400, format!("<ErrorResponse><Error><Code>{found}</Code></Error></ErrorResponse>"))
        }
    });
    let url = format!("HTTP://LocalHost:{}/private%20link", cloud.port);
    let failure = ask(&cluster(keys(KEY_ID, SECRET, Some(TOKEN)), "c1", &url)).unwrap_err();
    assert_eq!(failure.cause, Cause::CredentialsInvalidAnswer, "{failure}");
    assert_eq!(cloud.asked()[0].headers["host"], format!("localhost:{}", cloud.port));
}

fn refuse(status: u16, header: &str, code: &str, message: &str) -> Reply {
    let body = format!(
        "<ErrorResponse><Error><Code>{code}</Code><Message>{message}</Message></Error></ErrorResponse>"
    );
    Reply::AnswerWith(status, header.to_owned(), body)
}

fn in_an_hour() -> String {
    let time = SystemTime::now() + Duration::from_secs(3600);
    format!("Date: {}\r\n", httpdate::fmt_http_date(time))
}

type Answering = fn(&Asked) -> Reply;

#[test]
fn what_goes_wrong_is_told_apart() {
    let echo: Answering = |asked| {
        let lines: String = asked.headers.iter().map(|(name, value)| format!("{name}:{value}\n")).collect();
        refuse(
            403,
            "",
            "SignatureDoesNotMatch",
            &format!("They differ.\n\nThe Canonical String is\n'POST\n{lines}'"),
        )
    };
    let cases: [(&str, Answering, Cause, &str); 11] = [
        (
            "skew",
            |_| refuse(403, &in_an_hour(), "RequestTimeTooSkewed", "no"),
            Cause::CredentialsClockSkew,
            "behind AWS's",
        ),
        (
            "early",
            |_| refuse(403, &in_an_hour(), "SignatureDoesNotMatch", "no"),
            Cause::CredentialsClockSkew,
            "59m",
        ),
        (
            "throttle",
            |_| refuse(400, "", "Throttling", "Rate exceeded"),
            Cause::CredentialsUnreachable,
            "Rate exceeded",
        ),
        (
            "expired",
            |_| refuse(403, "", "ExpiredToken", "it is over"),
            Cause::CredentialsExpired,
            "it is over",
        ),
        ("denied", |_| refuse(403, "", "AccessDenied", "not you"), Cause::CredentialsDenied, "not you"),
        ("echo", echo, Cause::CredentialsDenied, "They differ."),
        (
            "HTML",
            |_| Reply::Answer(502, "<html>bad gateway".into()),
            Cause::CredentialsInvalidAnswer,
            "with status 502",
        ),
        (
            "else",
            |_| Reply::Answer(200, "<html>log in</html>".into()),
            Cause::CredentialsInvalidAnswer,
            "not with a login",
        ),
        (
            "flood",
            |_| Reply::Answer(200, "x".repeat(1 << 20)),
            Cause::CredentialsInvalidAnswer,
            "longer than 65536 bytes",
        ),
        (
            "half",
            |_| Reply::Raw(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n<GetCluster".to_vec()),
            Cause::CredentialsUnreachable,
            "could not be asked",
        ),
        (
            "redirect",
            |_| Reply::AnswerWith(307, "Location: /elsewhere\r\n".into(), String::new()),
            Cause::CredentialsInvalidAnswer,
            "with status 307",
        ),
    ];
    for (name, answer, cause, expected) in cases {
        let cloud = Cloud::start(answer);
        let failure = ask(&cluster(keys(KEY_ID, SECRET, Some(TOKEN)), "c1", &cloud.url())).unwrap_err();
        assert_eq!(failure.cause, cause, "{name}: {failure}");
        assert!(failure.detail().contains(expected), "{name}: {failure}");
        assert!(
            !failure.detail().contains("SESS") && !failure.detail().contains(SECRET),
            "{name}: {failure}"
        );
        assert_eq!(cloud.asked().len(), 1, "{name}");
    }
}

/// Under a clock that runs on when all wait, ten seconds are over at once.
#[test]
fn who_never_answers_is_given_up() {
    let cloud = Cloud::start(|_| Reply::Silence);
    let plan = cluster(keys(KEY_ID, SECRET, None), "c1", &cloud.url());
    let target = Target::Tcp(HostPort::new("c1", 5439));
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().start_paused(true).build().unwrap();
    let (took, outcome) = runtime.block_on(async {
        let began = tokio::time::Instant::now();
        let outcome = mint(&plan, &target).await;
        (began.elapsed(), outcome)
    });
    let failure = outcome.unwrap_err();
    assert_eq!(failure.cause, Cause::CredentialsUnreachable);
    assert!(failure.detail().ends_with("gave no answer within 10 s"), "{failure}");
    assert!(took >= Duration::from_secs(10) && took < Duration::from_secs(11), "{took:?}");
}

#[test]
fn keys_that_are_none_are_named() {
    for (id, secret, expected) in [
        ("AK ID", SECRET, "access_key_id: the configuration holds a blank"),
        (KEY_ID, "wJalr\nXUtn", "secret_access_key: the configuration holds a blank"),
    ] {
        let failure = ask(&workgroup(keys(id, secret, None), "https://127.0.0.1:1")).unwrap_err();
        assert_eq!(failure.cause, Cause::CredentialsMissing);
        assert!(failure.detail().contains(expected), "{failure}");
        assert!(!failure.detail().contains("wJalr"), "{failure}");
    }
    let id = SecretSource::Env("TUNNELKEEPER_TEST_UNSET".into());
    let plan = AwsKeysPlan::Keys { id: id.clone(), secret: id, session_token: None };
    let failure = ask(&workgroup(plan, "https://127.0.0.1:1")).unwrap_err();
    assert_eq!(failure.cause, Cause::CredentialsMissing);
    assert!(failure.detail().contains("TUNNELKEEPER_TEST_UNSET is not set"), "{failure}");
}
