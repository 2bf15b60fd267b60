use std::sync::Arc;

use rcgen::{CertificateParams, DistinguishedName, DnType, KeyPair, date_time_ymd};
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::ServerConfig;
use tokio_rustls::rustls::crypto::aws_lc_rs;
use tokio_rustls::rustls::pki_types::PrivatePkcs8KeyDer;

use super::*;
use crate::ids::{HostPort, Target};
use crate::secret::{Secret, SecretSource};
use crate::settings::plan::{AwsKeysPlan, CredentialsPlan, LakebaseResource, TlsMode};

fn plan(mode: TlsMode) -> TlsPlan {
    TlsPlan { mode, ca: None, allow_unverified: false }
}

fn by_password() -> LoginPlan {
    let credentials = CredentialsPlan::Password { user: "me".to_owned(), password: None };
    LoginPlan { database: None, credentials }
}

const LIMIT: Duration = Duration::from_secs(5);

/// What comes of a login with a server that answers each of our messages with the next of `answers`.
async fn login(mode: TlsMode, answers: &'static [&'static [u8]]) -> Result<(), Failure> {
    login_by(&by_password(), mode, answers).await
}

async fn login_by(by: &LoginPlan, mode: TlsMode, answers: &'static [&'static [u8]]) -> Result<(), Failure> {
    let (near, mut far) = duplex(1 << 16);
    tokio::spawn(async move {
        for answer in answers {
            let mut asked = [0; 1 << 10];
            if far.read(&mut asked).await.unwrap_or(0) == 0 {
                return;
            }
            far.write_all(answer).await.unwrap();
        }
    });
    let database = Target::Tcp(HostPort::new("db.internal", 5432));
    let wire = negotiate(near, &database, &plan(mode), LIMIT).await?.wire;
    let password = Some(Secret::new("hunter2".to_owned()));
    let login = Login { user: "me".to_owned(), password };
    let session = Session::login(wire, &login, by, &plan(mode), LIMIT).await?;
    session.query("SELECT 1", LIMIT).await
}

const OK: &[u8] = b"R\0\0\0\x08\0\0\0\0Z\0\0\0\x05I";

fn error(fields: &'static str) -> Vec<u8> {
    let mut message = vec![b'E'];
    message.extend(u32::try_from(fields.len() + 4).unwrap().to_be_bytes());
    message.extend(fields.as_bytes());
    message
}

fn leak(bytes: Vec<u8>) -> &'static [u8] {
    Box::leak(bytes.into_boxed_slice())
}

#[tokio::test(start_paused = true)]
async fn answers_become_causes() {
    let answers = |list: Vec<&'static [u8]>| &*Box::leak(list.into_boxed_slice());
    let rejected = leak(error("SFATAL\0C28P01\0Mpassword authentication failed for user \"me\"\0\0"));
    let no_hba = leak(error("SFATAL\0C28000\0Mno pg_hba.conf entry for host \"10.0.0.1\"\0\0"));
    let no_database = leak(error("SFATAL\0C3D000\0Mdatabase \"x\" does not exist\0\0"));
    let full = leak(error("SFATAL\0C53300\0Msorry, too many clients already\0\0"));
    let starting = leak(error("SFATAL\0C57P03\0Mthe database system is starting up\0\0"));
    let other = leak(error("SFATAL\0CXX000\0Minternal\0\0"));
    let shutdown = leak(error("SFATAL\0C57P01\0Mterminating connection due to administrator command\0\0"));
    let redshift = leak(error("SFATAL\0C28000\0Mpassword authentication failed for user \"me\"\0\0"));
    let syntax = leak([error("SERROR\0C42601\0Msyntax error\0\0"), b"Z\0\0\0\x05I".to_vec()].concat());
    for (mode, list, expected) in [
        (TlsMode::Disable, vec![OK, b"C\0\0\0\x0dSELECT 1\0Z\0\0\0\x05I"], None),
        (TlsMode::Prefer, vec![b"N", OK, b"I\0\0\0\x04Z\0\0\0\x05I"], None),
        (TlsMode::Require, vec![b"N"], Some(Cause::DbTlsRefused)),
        (TlsMode::Require, vec![b"H"], Some(Cause::DbLoginNotPostgres)),
        (TlsMode::Require, vec![b"Snot TLS at all, my friend", b""], Some(Cause::DbLoginNotPostgres)),
        (TlsMode::Prefer, vec![b"SSH-2.0-OpenSSH_9.2\r\n", b""], Some(Cause::DbLoginNotPostgres)),
        (TlsMode::Prefer, vec![full], Some(Cause::DbLoginTooManyConnections)),
        (TlsMode::Prefer, vec![b"Ecould not fork new process for connection\n\0"], Some(Cause::DbLoginOther)),
        (TlsMode::Require, vec![], Some(Cause::DbTlsFailed)),
        (TlsMode::Disable, vec![rejected], Some(Cause::DbLoginRejected)),
        (TlsMode::Disable, vec![redshift], Some(Cause::DbLoginRejected)),
        (TlsMode::Disable, vec![no_hba], Some(Cause::DbLoginNoHbaEntry)),
        (TlsMode::Disable, vec![no_database], Some(Cause::DbLoginUnknownDatabase)),
        (TlsMode::Disable, vec![full], Some(Cause::DbLoginTooManyConnections)),
        (TlsMode::Disable, vec![starting], Some(Cause::DbLoginStarting)),
        (TlsMode::Disable, vec![other], Some(Cause::DbLoginOther)),
        (TlsMode::Disable, vec![], Some(Cause::DbLoginClosed)),
        (TlsMode::Disable, vec![b"R\0\0\0\x08\0\0\0\x03"], Some(Cause::DbLoginUnsupportedMethod)),
        (TlsMode::Disable, vec![b"R\0\0\0\x08\0\0\0\x0d"], Some(Cause::DbLoginUnsupportedMethod)),
        (TlsMode::Disable, vec![b"SSH-2.0-OpenSSH_9.2\r\n"], Some(Cause::DbLoginNotPostgres)),
        (TlsMode::Disable, vec![OK, syntax], Some(Cause::DbQueryError)),
        (TlsMode::Disable, vec![OK, shutdown], Some(Cause::DbQueryClosed)),
        (TlsMode::Disable, vec![OK], Some(Cause::DbQueryClosed)),
    ] {
        let result = login(mode, answers(list.clone())).await;
        let found = result.as_ref().err().map(|failure| failure.cause);
        assert_eq!(found, expected, "{list:?}: {result:?}");
        assert!(!format!("{result:?}").contains("hunter2"));
    }
}

#[tokio::test(start_paused = true)]
async fn a_silent_database_is_not_waited_for() {
    let database = Target::Tcp(HostPort::new("db", 5432));
    let (near, _far) = duplex(1 << 16);
    let failure = negotiate(near, &database, &plan(TlsMode::Require), LIMIT).await.err().unwrap();
    assert_eq!(failure.cause, Cause::DbTlsTimeout);
    let (near, _far) = duplex(1 << 16);
    let user = Login { user: "me".to_owned(), password: None };
    let login =
        Session::login(Wire::Plain(near), &user, &by_password(), &plan(TlsMode::Disable), LIMIT).await;
    assert_eq!(login.err().unwrap().cause, Cause::DbLoginTimeout);
}

#[tokio::test(start_paused = true)]
async fn a_missing_password_is_named() {
    let (near, mut far) = duplex(1 << 16);
    far.write_all(b"R\0\0\0\x0c\0\0\0\x05salt").await.unwrap();
    let user = Login { user: "me".to_owned(), password: None };
    let login =
        Session::login(Wire::Plain(near), &user, &by_password(), &plan(TlsMode::Disable), LIMIT).await;
    assert_eq!(login.err().unwrap().cause, Cause::CredentialsMissing);
}

#[tokio::test]
async fn a_wrong_ca_file_is_named() {
    let file = tempfile::NamedTempFile::new().unwrap();
    for (ca, expected) in
        [("/nonexistent.pem", "cannot be read"), (file.path().to_str().unwrap(), "has no certificate")]
    {
        let plan = TlsPlan { mode: TlsMode::VerifyFull, ca: Some(ca.into()), allow_unverified: false };
        let (near, _far) = duplex(1 << 16);
        let failure =
            negotiate(near, &Target::Tcp(HostPort::new("db", 5432)), &plan, LIMIT).await.err().unwrap();
        assert!(failure.detail().contains(ca) && failure.detail().contains(expected), "{failure}");
    }
}

/// Those of Redshift and of Windows that the probe cannot make, each with its own sentence.
#[tokio::test(start_paused = true)]
async fn logins_that_cannot_be_made_are_named() {
    for (request, detail, hint) in [
        (
            b"R\0\0\0\x08\0\0\0\x0d",
            "Redshift's own SHA-256 form",
            "method = \"iam\", or a user whose password",
        ),
        (b"R\0\0\0\x08\0\0\0\x0e", "a token of an identity provider", "method = \"iam\""),
        (b"R\0\0\0\x08\0\0\0\x07", "GSSAPI", "scram-sha-256"),
        (b"R\0\0\0\x08\0\0\0\x09", "SSPI", "scram-sha-256"),
        (b"R\0\0\0\x08\0\0\0\x63", "a login of kind 99", "scram-sha-256"),
    ] {
        let answers = vec![&request[..]];
        let failure = login(TlsMode::Disable, answers.leak()).await.unwrap_err();
        assert_eq!(failure.cause, Cause::DbLoginUnsupportedMethod);
        assert!(
            failure.detail().contains(detail) && failure.hint().contains(hint),
            "{failure}: {}",
            failure.hint()
        );
    }
}

/// The ways to log in by something temporary, each with a word of its hint.
fn temporary() -> [(CredentialsPlan, &'static str); 5] {
    let keys = || AwsKeysPlan::Chain { profile: None };
    let (user, region) = (|| "me".to_owned(), || "r".to_owned());
    let secret = || SecretSource::Env("X".to_owned());
    [
        (CredentialsPlan::RdsIam { user: user(), region: region(), keys: keys() }, "rds_iam"),
        (
            CredentialsPlan::RedshiftIam {
                user: user(),
                cluster_id: "c".to_owned(),
                region: region(),
                keys: keys(),
                endpoint_url: None,
            },
            "exists in the cluster",
        ),
        (
            CredentialsPlan::RedshiftServerlessIam {
                workgroup: "w".to_owned(),
                region: region(),
                keys: keys(),
                endpoint_url: None,
            },
            "identity that asks AWS",
        ),
        (CredentialsPlan::AlloydbIam { user: user(), credentials_file: None }, "alloydb.iam_authentication"),
        (
            CredentialsPlan::LakebaseOauth {
                user: None,
                workspace: "https://w".to_owned(),
                client_id: secret(),
                client_secret: secret(),
                resource: LakebaseResource::Instance("x".to_owned()),
            },
            "service principal",
        ),
    ]
}

#[tokio::test(start_paused = true)]
async fn a_token_is_never_sent_without_tls() {
    for (credentials, _) in temporary() {
        let by = LoginPlan { database: None, credentials };
        for mode in [TlsMode::Disable, TlsMode::Prefer] {
            let (near, mut far) = duplex(1 << 16);
            // It has no TLS.
            far.write_all(b"N").await.unwrap();
            let tls = TlsPlan { mode, ca: None, allow_unverified: true };
            let wire =
                negotiate(near, &Target::Tcp(HostPort::new("db", 5432)), &tls, LIMIT).await.unwrap().wire;
            let login = Login { user: "me".to_owned(), password: Some(Secret::new("token".to_owned())) };
            let failure = Session::login(wire, &login, &by, &tls, LIMIT).await.err().unwrap();
            assert_eq!(failure.cause, Cause::DbTlsRefused);
            let mut heard = Vec::new();
            far.read_to_end(&mut heard).await.unwrap();
            let asked = if mode == TlsMode::Prefer { &crate::pgwire::SSL_REQUEST[..] } else { &[] };
            assert_eq!(heard, asked, "something was sent in clear");
        }
    }
}

#[test]
fn a_token_that_is_rejected_has_its_own_hint() {
    for (credentials, word) in temporary() {
        assert!(hints::rejected(&credentials).unwrap().contains(word), "{credentials:?}");
    }
    assert_eq!(hints::rejected(&by_password().credentials), None);
}

/// A database with TLS and a certificate of its own, which the test may change first; it answers what comes inside TLS with
/// `answer`. Returns its stream and the certificate.
fn encrypted(
    names: &[&str],
    change: impl FnOnce(&mut CertificateParams),
    answer: &'static [u8],
) -> (DuplexStream, String) {
    let key = KeyPair::generate().unwrap();
    let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
    let mut params = CertificateParams::new(names).unwrap();
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, "a database");
    change(&mut params);
    let certificate = params.self_signed(&key).unwrap();
    let config = ServerConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(
            vec![certificate.der().clone()],
            PrivatePkcs8KeyDer::from(key.serialize_der()).into(),
        );
    let acceptor = TlsAcceptor::from(Arc::new(config.unwrap()));
    let (near, mut far) = duplex(1 << 16);
    tokio::spawn(async move {
        let mut request = [0; 8];
        if far.read_exact(&mut request).await.is_err() {
            return;
        }
        far.write_all(b"S").await.unwrap();
        let Ok(mut tls) = acceptor.accept(far).await else { return };
        if tls.read_u8().await.is_ok() {
            tls.write_all(answer).await.unwrap();
            let mut rest = Vec::new();
            let _ = tls.read_to_end(&mut rest).await;
        }
    });
    (near, certificate.pem())
}

fn good(from: i32, until: i32) -> impl Fn(&mut CertificateParams) {
    move |params| {
        params.not_before = date_time_ymd(from, 1, 2);
        params.not_after = date_time_ymd(until, 3, 4);
    }
}

#[tokio::test]
async fn what_is_wrong_with_a_certificate_is_named() {
    let (own, other) = (tempfile::NamedTempFile::new().unwrap(), tempfile::NamedTempFile::new().unwrap());
    std::fs::write(other.path(), encrypted(&["x"], |_| {}, b"").1).unwrap();
    let many = ["a.internal", "b.internal", "10.0.0.1", "*.c.internal", "e.internal", "fd00::1"];
    for (names, years, roots, cause, expected) in [
        (&["db.internal"][..], (2000, 2099), &own, None, String::new()),
        (
            &["a.internal"],
            (2000, 2099),
            &own,
            Some(Cause::DbTlsNameMismatch),
            "for a.internal, not for db.internal".to_owned(),
        ),
        (
            &many,
            (2000, 2099),
            &own,
            Some(Cause::DbTlsNameMismatch),
            "for a.internal, b.internal, 10.0.0.1, *.c.internal and 2 more, not for db.internal".to_owned(),
        ),
        (
            &[],
            (2000, 2099),
            &own,
            Some(Cause::DbTlsNameMismatch),
            "for nobody by a subjectAltName (CN=a database), not for db.internal".to_owned(),
        ),
        (
            &["db.internal"],
            (2000, 2099),
            &other,
            Some(Cause::DbTlsUnknownIssuer),
            format!("of \"CN=a database\", which tls.ca ({}) does not vouch for", other.path().display()),
        ),
        (
            &["db.internal"],
            (2000, 2001),
            &own,
            Some(Cause::DbTlsExpired),
            "that expired at 2001-03-04T00:00:00Z".to_owned(),
        ),
        (
            &["db.internal"],
            (2090, 2091),
            &own,
            Some(Cause::DbTlsExpired),
            "that is good only from 2090-01-02T00:00:00Z on".to_owned(),
        ),
    ] {
        let (near, pem) = encrypted(names, good(years.0, years.1), b"");
        std::fs::write(own.path(), pem).unwrap();
        let ca = Some(roots.path().to_owned());
        let tls = TlsPlan { mode: TlsMode::VerifyFull, ca, allow_unverified: false };
        let agreed = negotiate(near, &Target::Tcp(HostPort::new("db.internal", 5432)), &tls, LIMIT).await;
        match (agreed, cause) {
            (Ok(Agreement { certificate_expires, .. }), None) => {
                let expires = humantime::parse_rfc3339("2099-03-04T00:00:00Z").unwrap();
                assert_eq!(certificate_expires, Some(expires));
            }
            (Err(failure), Some(cause)) => {
                let full = format!("db.internal:5432 shows a certificate {expected}");
                assert_eq!((failure.cause, failure.detail()), (cause, full.as_str()));
            }
            (agreed, _) => panic!("{names:?} {years:?}: {:?}", agreed.err()),
        }
    }
}

#[tokio::test]
async fn an_expiry_is_known_also_where_nothing_is_verified() {
    let (near, _) = encrypted(&["db.internal"], good(2000, 2001), b"");
    let database = Target::Tcp(HostPort::new("elsewhere", 5432));
    let agreed = negotiate(near, &database, &plan(TlsMode::Require), LIMIT).await.unwrap();
    assert_eq!(agreed.certificate_expires, Some(humantime::parse_rfc3339("2001-03-04T00:00:00Z").unwrap()));
}

/// As RDS answers a token that it does not take, and Redshift a temporary password.
#[tokio::test]
async fn a_token_that_is_rejected_is_told_from_a_password() {
    for answer in [
        "SFATAL\0C28000\0MPAM authentication failed for user \"me\"\0\0",
        "SFATAL\0C28000\0Mpassword authentication failed for user \"IAM:me\"\0\0",
        "SFATAL\0C28P01\0Mpassword authentication failed for user \"me\"\0\0",
    ] {
        for (credentials, word) in temporary() {
            let (near, _) = encrypted(&["db"], good(2000, 2099), leak(error(answer)));
            let tls = plan(TlsMode::Require);
            let wire =
                negotiate(near, &Target::Tcp(HostPort::new("db", 5432)), &tls, LIMIT).await.unwrap().wire;
            let by = LoginPlan { database: None, credentials };
            let login = Login { user: "me".to_owned(), password: Some(Secret::new("token".to_owned())) };
            let failure = Session::login(wire, &login, &by, &tls, LIMIT).await.err().unwrap();
            assert_eq!(failure.cause, Cause::DbLoginRejected);
            assert!(failure.hint().contains(word), "{}", failure.hint());
        }
    }
}

/// It asks for the password as it is, and takes any.
const ASKS_AND_TAKES: &[u8] = b"R\0\0\0\x08\0\0\0\x03R\0\0\0\x08\0\0\0\0Z\0\0\0\x05I";

#[tokio::test]
async fn an_issuer_that_could_be_anybody_gets_no_password() {
    let roots = || Some("roots.pem".into());
    for (mode, ca, allow_unverified, expected) in [
        (TlsMode::Require, None, false, Some(Cause::DbLoginUnsupportedMethod)),
        (TlsMode::VerifyCa, None, false, Some(Cause::DbLoginUnsupportedMethod)),
        (TlsMode::VerifyCa, None, true, None),
        (TlsMode::VerifyCa, roots(), false, None),
        (TlsMode::VerifyFull, None, false, None),
    ] {
        let (near, _) = encrypted(&["db"], good(2000, 2099), ASKS_AND_TAKES);
        let database = Target::Tcp(HostPort::new("db", 5432));
        let wire = negotiate(near, &database, &plan(TlsMode::Require), LIMIT).await.unwrap().wire;
        let login = Login { user: "me".to_owned(), password: Some(Secret::new("hunter2".to_owned())) };
        let tls = TlsPlan { mode, ca, allow_unverified };
        let failure = Session::login(wire, &login, &by_password(), &tls, LIMIT).await.err();
        assert_eq!(failure.map(|failure| failure.cause), expected, "{tls:?}");
    }
}
