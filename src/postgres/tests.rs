use tokio::io::{AsyncReadExt, AsyncWriteExt, duplex};

use super::*;
use crate::ids::{HostPort, Target};
use crate::secret::Secret;
use crate::settings::plan::TlsMode;

fn plan(mode: TlsMode) -> TlsPlan {
    TlsPlan { mode, ca: None, allow_unverified: false }
}

const LIMIT: Duration = Duration::from_secs(5);

/// What comes of a login with a server that answers each of our messages with the next of `answers`.
async fn login(mode: TlsMode, answers: &'static [&'static [u8]]) -> Result<(), Failure> {
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
    let wire = negotiate(near, &database, &plan(mode), LIMIT).await?;
    let password = Some(Secret::new("hunter2".to_owned()));
    let login = Login { user: "me".to_owned(), password };
    let session = Session::login(wire, &login, None, &plan(mode), LIMIT).await?;
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
    let login = Session::login(Wire::Plain(near), &user, None, &plan(TlsMode::Disable), LIMIT).await;
    assert_eq!(login.err().unwrap().cause, Cause::DbLoginTimeout);
}

#[tokio::test(start_paused = true)]
async fn a_missing_password_is_named() {
    let (near, mut far) = duplex(1 << 16);
    far.write_all(b"R\0\0\0\x0c\0\0\0\x05salt").await.unwrap();
    let user = Login { user: "me".to_owned(), password: None };
    let login = Session::login(Wire::Plain(near), &user, None, &plan(TlsMode::Disable), LIMIT).await;
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
