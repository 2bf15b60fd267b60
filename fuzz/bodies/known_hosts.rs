//! A known_hosts file, whatever stands in it: no key is trusted that is not there, a line that we write is understood, and a
//! revoked key stays revoked.

use data_encoding::BASE64;
use tunnelkeeper::failure::Cause;
use tunnelkeeper::host_keys::{HostKey, HostKeyPolicy, KnownHosts, Shown, Standing, Trust, line};
use tunnelkeeper::ids::HostPort;

/// Bastions as they are found in files: by name and by address, on the usual port and on others, and none too usual.
fn bastions() -> [HostPort; 5] {
    [
        ("bastion.example.com", 22),
        ("bastion.example.com", 2222),
        ("10.0.0.1", 22),
        ("2001:db8::1", 22),
        ("LOCALHOST.", 1),
    ]
    .map(|(host, port)| HostPort::new(host, port))
}

fn known(files: &[&str]) -> KnownHosts {
    let mut known = KnownHosts::default();
    for (number, text) in files.iter().enumerate() {
        known.read(&format!("file {number}"), text);
    }
    known
}

fn is_known(files: &[&str], bastion: &HostPort, key: &HostKey) -> bool {
    matches!(known(files).standing(bastion, key), Standing::Known(_))
}

fn is_revoked(files: &[&str], bastion: &HostPort, key: &HostKey) -> bool {
    matches!(known(files).standing(bastion, key), Standing::Revoked(_))
}

/// The first byte chooses the bastion, the rest is the file.
pub fn check(input: &[u8]) {
    let Some((choice, text)) = input.split_first() else { return };
    let text = String::from_utf8_lossy(text);
    let bastions = bastions();
    let bastion = &bastions[usize::from(*choice) % bastions.len()];
    let key = HostKey { key_type: "ssh-ed25519".to_owned(), blob: b"a key that no input has".to_vec() };
    let encoded = BASE64.encode(&key.blob);

    if !text.contains(&encoded) {
        assert!(!is_known(&[&text], bastion, &key), "a key is trusted that is not there");
    }
    let ours = line(bastion, &key);
    assert!(is_known(&[&ours], bastion, &key), "{ours} is not understood");
    if !is_revoked(&[&text], bastion, &key) {
        let after = format!("{text}\n{ours}\n");
        for files in [&[&*text, &*ours][..], &[&ours, &text], &[&after]] {
            assert!(is_known(files, bastion, &key), "{ours} is not found beside the input");
        }
    }
    // By its name, by any name, and without its port; whatever type the line says that it has.
    let host = bastion.host.trim_end_matches('.');
    for revoked in [
        format!("@revoked {ours}"),
        format!("@revoked * ssh-rsa {encoded}"),
        format!("@revoked {host} x {encoded}"),
    ] {
        for files in [&[&*text, &*revoked, &*ours][..], &[&revoked, &ours, &text], &[&ours, &revoked, &text]]
        {
            assert!(is_revoked(files, bastion, &key), "a key is taken that is revoked: {revoked}");
            let trust = Trust::Files { known: known(files), policy: HostKeyPolicy::AcceptNew };
            let judged = trust.judge(bastion, &Shown::Key(key.clone()), 0);
            assert_eq!(judged.unwrap_err().cause, Cause::HostKeyRevoked);
            let _ = (trust.known_key_types(bastion), trust.wants_certificate(bastion));
        }
    }
    // A bastion of another name has nothing of it.
    let other = HostPort::new("another.example.net", bastion.port);
    assert!(!is_known(&[&ours], &other, &key), "{ours} is taken for another bastion's");
    // Whatever a file has for a bastion, its words reach a person on one line.
    let strict = Trust::Files { known: known(&[&text]), policy: HostKeyPolicy::Strict };
    if let Err(failure) = strict.judge(bastion, &Shown::Key(key), 0) {
        assert!(!failure.to_string().chars().any(char::is_control), "{failure:?}");
    }
}
