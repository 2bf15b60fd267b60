use std::fs::{self, OpenOptions};
use std::io::Write;
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt, symlink};

use super::*;
use crate::backoff::Bounds;
use crate::ids::HostPort;
use crate::placement::PoolBounds;
use crate::settings::plan::{BastionPlan, IdentityPlan, TrustPlan};
use crate::ssh::identities::{Identities, load_identities as load};

fn plan(identity: IdentityPlan) -> BastionPlan {
    let second = std::time::Duration::from_secs(1);
    BastionPlan {
        name: Name::parse("prod").unwrap(),
        at: HostPort::new("bastion", 22),
        user: "me".to_owned(),
        jump: None,
        proxy_command: None,
        identity,
        passphrase: None,
        certificates: vec![],
        agent: None,
        password: None,
        legacy_algorithms: false,
        trust: TrustPlan::Pins(vec![]),
        keepalive_interval: second,
        keepalive_timeout: second,
        connect_timeout: second,
        open_timeout: second,
        pool: PoolBounds { min: 1, max: 1 },
        reconnect: Bounds { min: second, max: second },
    }
}

fn load_identities(plan: &BastionPlan, passphrase: Option<&Secret>) -> Result<Identities, Failure> {
    load(plan, passphrase, None)
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
    assert_eq!(generate_key(&path, &own(true).name, Existing::Keep).unwrap(), Placed::Kept);
    assert_eq!(load_identities(&own(true), None).unwrap().own_public_key.unwrap(), line);
    assert_eq!(generate_key(&path, &own(true).name, Existing::Replace).unwrap(), Placed::Made);
    let replaced = load_identities(&own(true), None).unwrap().own_public_key.unwrap();
    assert_ne!(replaced, line);
    assert_eq!(fs::read_to_string(public_path(&path)).unwrap().trim(), replaced);
    fs::remove_file(public_path(&path)).unwrap();
    restore_public_key(&path, &replaced).unwrap();
    restore_public_key(&path, "another").unwrap();
    assert_eq!(fs::read_to_string(public_path(&path)).unwrap().trim(), replaced);
    assert_eq!(fs::read_dir(path.parent().unwrap()).unwrap().count(), 2, "something was left behind");
}

/// Of the crate ssh-key's tests: a key that protects nothing.
const OF_PUTTY: &str = "\
PuTTY-User-Key-File-3: ssh-ed25519
Encryption: none
Comment: user@example.com
Public-Lines: 2
AAAAC3NzaC1lZDI1NTE5AAAAILM+rvN+ot98qgEN796jTiQfZfG1KaT0PtFDJ/XF
Sqti
Private-Lines: 1
AAAAILYGwiLRDBba4WxwpNRRc0cuxhfgXGVpINJuVsCPtZHt
Private-MAC: 94140d0344fad6aa1bf7b71e9c93db11ccac8a232f8a51e11c024869d608c82d
";

#[test]
fn a_key_of_puttys_is_as_good_as_another_and_a_damaged_one_says_what_is_wanted() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("key.ppk");
    let write = |text: &str| {
        fs::write(&path, text).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
    };
    write(OF_PUTTY);
    let loaded = load_identities(&plan(IdentityPlan::Files(vec![path.clone()])), None).unwrap();
    assert!(loaded.list[0].to_string().starts_with("the ssh-ed25519 key SHA256:"), "{}", loaded.list[0]);
    write(&OF_PUTTY.replace("Private-MAC: 94", "Private-MAC: 95"));
    let failure = failure(&path);
    assert_eq!(failure.cause, Cause::AuthIdentityUnreadable);
    assert!(failure.hint().contains("PuTTY"), "{}: {}", failure, failure.hint());
}

#[test]
fn what_stands_in_the_way_of_a_key_is_not_taken_for_one() {
    let name = Name::parse("prod").unwrap();
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("prod");
    fs::create_dir(dir.path().join("prod.unfinished")).unwrap();
    symlink("nowhere", &path).unwrap();
    let error = generate_key(&path, &name, Existing::Keep).unwrap_err();
    assert_eq!(error.to_string(), "it is a link to a file that does not exist");
    assert_eq!(generate_key(&path, &name, Existing::Replace).unwrap(), Placed::Made);
    assert!(!path.is_symlink());
    // The state directory is a file.
    assert!(generate_key(&path.join("keys/prod"), &name, Existing::Keep).is_err());
    // What cannot be replaced stays, and nothing is left behind.
    let path = dir.path().join("full");
    fs::create_dir_all(path.join("of")).unwrap();
    assert!(generate_key(&path, &name, Existing::Replace).is_err());
    let left = fs::read_dir(dir.path()).unwrap().filter(|entry| entry.as_ref().unwrap().path().is_file());
    assert_eq!(left.count(), 2, "only the key and its public half are files");
}

#[test]
fn what_root_makes_belongs_to_the_owner_of_the_directory() {
    if !geteuid().is_root() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    std::os::unix::fs::chown(dir.path(), Some(12345), Some(54321)).unwrap();
    let path = dir.path().join("keys/prod");
    generate_key(&path, &Name::parse("prod").unwrap(), Existing::Keep).unwrap();
    for made in [path.parent().unwrap(), &path, &public_path(&path)] {
        let metadata = fs::metadata(made).unwrap();
        assert_eq!((metadata.uid(), metadata.gid()), (12345, 54321), "{}", made.display());
    }
}

#[test]
fn a_key_that_others_can_read_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("key");
    generate_key(&path, &Name::parse("prod").unwrap(), Existing::Keep).unwrap();
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
    generate_key(&good, &Name::parse("prod").unwrap(), Existing::Keep).unwrap();
    let paths = vec![dir.path().join("missing"), good];
    assert_eq!(load_identities(&plan(IdentityPlan::Files(paths)), None).unwrap().list.len(), 1);
}

#[test]
fn an_encrypted_key_needs_its_passphrase() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("key");
    let mut rng = russh::keys::key::safe_rng();
    let key = PrivateKey::random(&mut rng, Algorithm::Ed25519).unwrap().encrypt(&mut rng, "sesame").unwrap();
    files::place(&path, 0o600, key.to_openssh(LineEnding::LF).unwrap().as_bytes(), Existing::Keep).unwrap();
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

/// What a key of the kind ecdsa looks like whose number is a byte shorter than others.
const SHORT: &str = "\
b3BlbnNzaC1rZXktdjEAAAAABG5vbmUAAAAEbm9uZQAAAAAAAAABAAAAaAAAABNlY2RzYS
1zaGEyLW5pc3RwMjU2AAAACG5pc3RwMjU2AAAAQQTLAFidFm9GK3Pr8S8OQVbKLWUUd/YT
YoQuBprFer5UBAvG6laFJYnjyVftMaojzDoYZIF/Bl9ozv+wU2MZyTp2AAAAmHZoBbF2aA
WxAAAAE2VjZHNhLXNoYTItbmlzdHAyNTYAAAAIbmlzdHAyNTYAAABBBMsAWJ0Wb0Yrc+vx
Lw5BVsotZRR39hNihC4GmsV6vlQEC8bqVoUliePJV+0xqiPMOhhkgX8GX2jO/7BTYxnJOn
YAAAAfI8JlVJTsKdeD6wi1kacqvRF3i++QfJUnMmiEMHfYBwAAAAFj";

#[test]
fn a_short_number_is_explained_and_the_way_out_works() {
    let dir = tempfile::tempdir().unwrap();
    let key = dir.path().join("key");
    let label = "OPENSSH PRIVATE KEY";
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&key).unwrap();
    write!(file, "-----BEGIN {label}-----\n{SHORT}\n-----END {label}-----\n").unwrap();
    let convert = |passphrase: &[&str]| {
        let status = std::process::Command::new("ssh-keygen")
            .args(["-q", "-p", "-f"])
            .arg(&key)
            .args(passphrase)
            .stdout(std::process::Stdio::null())
            .status();
        assert!(status.unwrap().success());
    };
    let explained = |failure: Failure| {
        assert_eq!(failure.cause, Cause::AuthIdentityUnreadable);
        assert!(failure.detail().contains("has a number of a length that cannot be read"), "{failure:?}");
        let hint = failure.hint();
        assert!(hint.ends_with(&format!("ssh-keygen -p -m PKCS8 -f {}", key.display())), "{hint}");
    };
    let secret = Secret::new("open sesame".to_owned());
    explained(failure(&key));
    convert(&["-P", "", "-N", "open sesame"]);
    let plan = plan(IdentityPlan::Files(vec![key.clone()]));
    explained(load_identities(&plan, Some(&secret)).err().unwrap());
    convert(&["-P", "open sesame", "-N", "open sesame", "-m", "PKCS8"]);
    assert!(load_identities(&plan, Some(&secret)).is_ok());
}
