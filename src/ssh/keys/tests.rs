use std::os::unix::fs::PermissionsExt;

use super::*;
use crate::backoff::Bounds;
use crate::ids::HostPort;
use crate::placement::PoolBounds;
use crate::settings::plan::TrustPlan;

fn plan(identity: IdentityPlan) -> BastionPlan {
    let second = std::time::Duration::from_secs(1);
    BastionPlan {
        name: Name::parse("prod").unwrap(),
        at: HostPort::new("bastion", 22),
        user: "me".to_owned(),
        identity,
        passphrase: None,
        trust: TrustPlan::Pins(vec![]),
        keepalive_interval: second,
        keepalive_timeout: second,
        connect_timeout: second,
        open_timeout: second,
        pool: PoolBounds { min: 1, max: 1 },
        reconnect: Bounds { min: second, max: second },
    }
}

fn failure(path: &Path) -> Failure {
    load_identities(&plan(IdentityPlan::Files(vec![path.to_owned()])), None).err().unwrap()
}

fn mode(path: &Path) -> u32 {
    fs::metadata(path).unwrap().mode() & 0o777
}

#[test]
fn the_own_key_is_made_once_and_for_nobody_else() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("state/keys/prod");
    let own = |generate| plan(IdentityPlan::Own { path: path.clone(), generate });
    let missing = load_identities(&own(false), None).err().unwrap();
    assert_eq!(missing.cause, Cause::AuthNoIdentity);
    let made = load_identities(&own(true), None).unwrap();
    assert!(made.just_made);
    let line = made.own_public_key.unwrap();
    assert!(line.starts_with("ssh-ed25519 ") && line.ends_with(" tunnelkeeper-prod"), "{line}");
    assert_eq!((mode(&path), mode(path.parent().unwrap())), (0o600, 0o700));
    assert_eq!(fs::read_to_string(public_path(&path)).unwrap().trim(), line);
    let again = load_identities(&own(true), None).unwrap();
    assert!(!again.just_made);
    assert_eq!(again.own_public_key.unwrap(), line);
    assert_eq!(generate_key(&path, &own(true).name).unwrap_err().kind(), io::ErrorKind::AlreadyExists);
    assert_eq!(fs::read_dir(path.parent().unwrap()).unwrap().count(), 2, "something was left behind");
}

#[test]
fn a_key_that_others_can_read_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("key");
    generate_key(&path, &Name::parse("prod").unwrap()).unwrap();
    for bad in [0o640, 0o604, 0o644, 0o602] {
        fs::set_permissions(&path, fs::Permissions::from_mode(bad)).unwrap();
        let failure = failure(&path);
        assert_eq!(failure.cause, Cause::AuthIdentityUnreadable);
        assert!(failure.detail().contains("can be read by others"), "{failure}");
        assert_eq!(failure.hint(), format!("chmod 600 {}", path.display()));
    }
    fs::set_permissions(&path, fs::Permissions::from_mode(0o400)).unwrap();
    assert!(load_identities(&plan(IdentityPlan::Files(vec![path])), None).is_ok());
}

#[test]
fn what_is_not_a_private_key_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("key");
    assert!(failure(&path).detail().contains("cannot be read: No such file or directory"));
    assert!(failure(dir.path()).detail().contains("is not a file"));
    let write = |bytes: &[u8]| {
        let _ = fs::remove_file(&path);
        OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&path)
            .unwrap()
            .write_all(bytes)
            .unwrap();
        failure(&path)
    };
    assert!(write(b"hello").detail().contains("is not a private key in any known format"));
    assert!(write(b"\xff\xfe").detail().contains("is not a private key in any known format"));
    assert!(write(b"ssh-ed25519 AAAA me").hint().contains("without .pub"));
    assert!(write(&[b'x'; 70_000]).detail().contains("is too large"));
    let legacy = "-----BEGIN EC PRIVATE KEY-----\nProc-Type: 4,ENCRYPTED\nDEK-Info: AES-256-CBC,00\n\nAAAA\n\
                  -----END EC PRIVATE KEY-----\n";
    assert!(write(legacy.as_bytes()).hint().contains("ssh-keygen -p -f"));
}

#[test]
fn one_good_key_of_a_list_is_enough() {
    let dir = tempfile::tempdir().unwrap();
    let good = dir.path().join("good");
    generate_key(&good, &Name::parse("prod").unwrap()).unwrap();
    let paths = vec![dir.path().join("missing"), good];
    assert_eq!(load_identities(&plan(IdentityPlan::Files(paths)), None).unwrap().keys.len(), 1);
}

#[test]
fn an_encrypted_key_needs_its_passphrase() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("key");
    let mut rng = russh::keys::key::safe_rng();
    let key = PrivateKey::random(&mut rng, Algorithm::Ed25519).unwrap().encrypt(&mut rng, "sesame").unwrap();
    let owner = fs::metadata(dir.path()).unwrap();
    write_new(&path, 0o600, key.to_openssh(LineEnding::LF).unwrap().as_bytes(), &owner).unwrap();
    assert_eq!(failure(&path).cause, Cause::AuthPassphrase);
    let open = |passphrase: &str| {
        load_identities(
            &plan(IdentityPlan::Files(vec![path.clone()])),
            Some(&Secret::new(passphrase.to_owned())),
        )
    };
    let refused = open("hunter2").err().unwrap();
    assert_eq!(refused.cause, Cause::AuthPassphrase);
    assert!(!refused.to_string().contains("hunter2"));
    assert!(open("sesame").is_ok());
}
