use super::*;

const KEY_A: &str = "AAAAC3NzaC1lZDI1NTE5AAAAIGPKSUTyz1HwHReFVvD5obVsALAgJRNarH4TRpNePnAS";
const KEY_B: &str = "AAAAC3NzaC1lZDI1NTE5AAAAIIkVG9hkskjWA8J4Fsq4AQMenqqLe6WNWIWnd7xa/7ek";
const RSA: &str = "AAAAB3NzaC1yc2EAAAADAQABAAAAgQDyruSU9mzMkiFl7MzHIoX49EDzBiRXw2eSRHisCBHDBPMBREDN+6Ttanyv5trp5MbO\
                   Chu3l/SOMJieQSLcjIDQ2w1iV+52lq/fdmUfB92bysuzgRBxRwoJyWjeydlx2frFQqtj3aXX/mGfkE3oH+2q6x+P\
                   iSSeu+OHAvradAIpeQ==";

fn blob(base64: &str) -> Vec<u8> {
    data_encoding::BASE64.decode(base64.as_bytes()).unwrap()
}

fn key(base64: &str) -> HostKey {
    let key_type = if base64 == RSA { "ssh-rsa" } else { "ssh-ed25519" };
    HostKey { key_type: key_type.to_owned(), blob: blob(base64) }
}

fn files(text: &str, policy: HostKeyPolicy) -> Trust {
    let mut known = KnownHosts::default();
    known.read("known_hosts", text);
    Trust::Files { known, policy }
}

/// The time of all judgements here, in seconds since 1970.
const NOW: u64 = 1_800_000_000;

fn judge_as(policy: HostKeyPolicy, text: &str, bastion: &HostPort, shown: &Shown) -> Result<Trusted, Cause> {
    files(text, policy).judge(bastion, shown, NOW).map_err(|failure| failure.cause)
}

fn judge(text: &str, host: &str, port: u16, base64: &str) -> Result<(), Cause> {
    let shown = Shown::Key(key(base64));
    judge_as(HostKeyPolicy::Strict, text, &HostPort::new(host, port), &shown)
        .map(|trusted| assert_eq!(trusted, Trusted::Known))
}

#[test]
fn names_ports_and_patterns() {
    let unknown = Err(Cause::HostKeyUnknown);
    let changed = Err(Cause::HostKeyChanged);
    for (line, host, port, expected) in [
        (format!("bastion ssh-ed25519 {KEY_A}"), "bastion", 22, Ok(())),
        (format!("BASTION ssh-ed25519 {KEY_A} comment"), "Bastion", 22, Ok(())),
        (format!("other,bastion\tssh-ed25519  {KEY_A}"), "bastion", 22, Ok(())),
        (format!("bastion ssh-ed25519 {KEY_B}"), "bastion", 22, changed),
        (format!("bastion ssh-ed25519 {KEY_B}\nbastion ssh-ed25519 {KEY_A}"), "bastion", 22, Ok(())),
        (format!("bastion ssh-rsa {RSA}"), "bastion", 22, unknown),
        (format!("[bastion]:2222 ssh-ed25519 {KEY_A}"), "bastion", 2222, Ok(())),
        (format!("[bastion]:2222 ssh-ed25519 {KEY_A}"), "bastion", 22, unknown),
        (format!("bastion ssh-ed25519 {KEY_A}"), "bastion", 2222, Ok(())),
        (format!("bastion ssh-ed25519 {KEY_B}"), "bastion", 2222, unknown),
        (format!("*.example.com ssh-ed25519 {KEY_A}"), "b1.example.com", 22, Ok(())),
        (format!("b?.example.com ssh-ed25519 {KEY_A}"), "b12.example.com", 22, unknown),
        (format!("*.example.com,!b1.example.com ssh-ed25519 {KEY_A}"), "b1.example.com", 22, unknown),
        (format!("!b1.example.com,*.example.com ssh-ed25519 {KEY_A}"), "b2.example.com", 22, Ok(())),
        (format!("10.0.0.* ssh-ed25519 {KEY_A}"), "10.0.0.7", 22, Ok(())),
        (format!("[::1]:2222 ssh-ed25519 {KEY_A}"), "::1", 2222, Ok(())),
        (format!("bastion. ssh-ed25519 {KEY_A}\nbastion ssh-ed25519 {KEY_A}"), "bastion.", 22, Ok(())),
        (format!("# bastion ssh-ed25519 {KEY_A}"), "bastion", 22, unknown),
        (format!("@cert-authority bastion ssh-ed25519 {KEY_A}"), "bastion", 22, unknown),
        (format!("bastion ssh-ed25519 not-base64!\nbastion ssh-ed25519 {KEY_A}"), "bastion", 22, Ok(())),
    ] {
        assert_eq!(judge(&line, host, port, KEY_A), expected, "{line} for {host}:{port}");
    }
}

#[test]
fn revocation_beats_trust_wherever_it_stands() {
    for line in [
        format!("@revoked * ssh-ed25519 {KEY_A}\nbastion ssh-ed25519 {KEY_A}"),
        format!("bastion ssh-ed25519 {KEY_A}\n@revoked bastion ssh-ed25519 {KEY_A}"),
        format!("[bastion]:22 ssh-ed25519 {KEY_A}\n@revoked bastion ssh-ed25519 {KEY_A}"),
    ] {
        assert_eq!(judge(&line, "bastion", 22, KEY_A), Err(Cause::HostKeyRevoked), "{line}");
    }
    let line = format!("[bastion]:2222 ssh-ed25519 {KEY_A}\n@revoked bastion ssh-ed25519 {KEY_A}");
    assert_eq!(judge(&line, "bastion", 2222, KEY_A), Err(Cause::HostKeyRevoked));
    let other = format!("@revoked bastion ssh-ed25519 {KEY_B}\nbastion ssh-ed25519 {KEY_A}");
    assert_eq!(judge(&other, "bastion", 22, KEY_A), Ok(()));
}

#[test]
fn hashed_names() {
    // Printed by `ssh-keygen -H` (OpenSSH 9.2) for `bastion` and `[bastion]:2222`.
    let lines = format!(
        "|1|l4mBkPwIfE1FfhCD+BiUwb0mXWg=|REzCfK2aQr5CRFXoKbuybOfk8ms= ssh-ed25519 {KEY_A}\n\
         |1|y+7j450pLmvj9am6++t7fp2aAyE=|pAObCskSh8gOjeSjpklcdI78VaY= ssh-ed25519 {KEY_B}"
    );
    assert_eq!(judge(&lines, "bastion", 22, KEY_A), Ok(()));
    assert_eq!(judge(&lines, "bastion", 2222, KEY_B), Ok(()));
    assert_eq!(judge(&lines, "bastion", 2222, KEY_A), Err(Cause::HostKeyChanged));
    assert_eq!(judge(&lines, "bastion2", 22, KEY_A), Err(Cause::HostKeyUnknown));
}

#[test]
fn pins_replace_files() {
    let trust = Trust::Pins(vec![key(KEY_B).fingerprint(), key(KEY_A).fingerprint()]);
    let bastion = HostPort::new("bastion", 22);
    assert_eq!(trust.judge(&bastion, &Shown::Key(key(KEY_A)), NOW), Ok(Trusted::Known));
    let refused = trust.judge(&bastion, &Shown::Key(key(RSA)), NOW).unwrap_err();
    assert_eq!(refused.cause, Cause::HostKeyChanged);
    assert!(!trust.wants_certificate(&bastion), "a pin is for the key itself");
}

#[test]
fn known_types_come_from_the_exact_name_first() {
    let lines = format!("[b]:2222 ssh-rsa {RSA}\nb ssh-ed25519 {KEY_A}\n@revoked b ssh-dss {KEY_B}");
    let trust = files(&lines, HostKeyPolicy::Strict);
    assert_eq!(trust.known_key_types(&HostPort::new("b", 2222)), ["ssh-rsa"]);
    assert_eq!(trust.known_key_types(&HostPort::new("b", 22)), ["ssh-ed25519"]);
    assert!(trust.known_key_types(&HostPort::new("c", 22)).is_empty());
}

#[test]
fn a_first_key_is_learnt_where_nothing_is_known() {
    use HostKeyPolicy::AcceptNew;
    let first = Ok(Trusted::FirstSight);
    for (line, port, expected) in [
        (String::new(), 22, first),
        (format!("other ssh-ed25519 {KEY_B}"), 22, first),
        (format!("bastion ssh-ed25519 {KEY_A}"), 22, Ok(Trusted::Known)),
        (format!("bastion ssh-ed25519 {KEY_B}"), 22, Err(Cause::HostKeyChanged)),
        (format!("bastion ssh-rsa {RSA}"), 22, Err(Cause::HostKeyUnknown)),
        (format!("* ssh-ed25519 {KEY_B}"), 22, Err(Cause::HostKeyChanged)),
        (format!("@revoked * ssh-ed25519 {KEY_A}"), 22, Err(Cause::HostKeyRevoked)),
        (format!("@cert-authority * ssh-ed25519 {KEY_B}"), 22, Err(Cause::HostKeyUnknown)),
        (format!("@cert-authority bastion ssh-ed25519 {KEY_B}"), 2222, Err(Cause::HostKeyUnknown)),
        (format!("bastion ssh-ed25519 {KEY_B}"), 2222, first),
        (format!("[bastion]:2222 ssh-ed25519 {KEY_B}"), 2222, Err(Cause::HostKeyChanged)),
    ] {
        let bastion = HostPort::new("bastion", port);
        assert_eq!(judge_as(AcceptNew, &line, &bastion, &Shown::Key(key(KEY_A))), expected, "{line}");
    }
}

fn certificate() -> HostCertificate {
    HostCertificate {
        key: key(KEY_A),
        authority: key(KEY_B),
        signature_fault: None,
        is_for_host: true,
        validity: NOW..NOW + 1,
        principals: vec!["bastion".to_owned()],
        critical_options: Vec::new(),
    }
}

#[test]
fn a_certificate_is_as_good_as_its_authority() {
    let authority = format!("@cert-authority * ssh-ed25519 {KEY_B}\n");
    let invalid = Err(Cause::HostKeyCertificateInvalid);
    let revoked = Err(Cause::HostKeyRevoked);
    for (lines, port, expected) in [
        (authority.clone(), 22, Ok(Trusted::Known)),
        (authority.clone(), 2222, Ok(Trusted::Known)),
        (format!("@cert-authority [bastion]:2222 ssh-ed25519 {KEY_B}"), 2222, Ok(Trusted::Known)),
        (format!("@cert-authority [bastion]:2222 ssh-ed25519 {KEY_B}"), 22, invalid),
        (format!("@cert-authority other ssh-ed25519 {KEY_B}"), 22, invalid),
        (format!("@cert-authority bastion ssh-rsa {RSA}"), 22, invalid),
        (format!("@cert-authority b ssh-rsa {RSA}\n{authority}"), 22, Ok(Trusted::Known)),
        (format!("bastion ssh-ed25519 {KEY_B}"), 22, Err(Cause::HostKeyChanged)),
        (format!("{authority}@revoked * ssh-ed25519 {KEY_A}"), 22, revoked),
        (format!("{authority}@revoked * ssh-ed25519 {KEY_B}"), 22, revoked),
        (format!("{authority}@revoked other ssh-ed25519 {KEY_B}"), 22, Ok(Trusted::Known)),
        (format!("{authority}bastion ssh-rsa {RSA}"), 22, Ok(Trusted::Known)),
        (format!("{authority}bastion ssh-ed25519 {KEY_B}"), 22, Ok(Trusted::Known)),
    ] {
        let bastion = HostPort::new("Bastion.", port);
        for policy in [HostKeyPolicy::Strict, HostKeyPolicy::AcceptNew] {
            let judged = judge_as(policy, &lines, &bastion, &Shown::Certificate(certificate()));
            assert_eq!(judged, expected, "{lines} for port {port}");
        }
    }
    let wants =
        |lines: &str| files(lines, HostKeyPolicy::Strict).wants_certificate(&HostPort::new("bastion", 2222));
    assert!(wants(&authority) && wants("@cert-authority bastion ssh-ed25519 YQ=="));
    assert!(!wants("bastion ssh-ed25519 YQ==") && !wants("@cert-authority b ssh-ed25519 YQ=="));
}

#[test]
fn a_certificate_that_fails_says_why_and_leaves_its_key() {
    let authority = format!("@cert-authority * ssh-ed25519 {KEY_B}\n");
    let for_hosts = |principals: &[&str]| HostCertificate {
        principals: principals.iter().map(|name| (*name).to_owned()).collect(),
        ..certificate()
    };
    let valid = |validity| HostCertificate { validity, ..certificate() };
    for good in [for_hosts(&[]), for_hosts(&["x", "bastion"]), valid(0..u64::MAX)] {
        let judged =
            files(&authority, HostKeyPolicy::Strict).judge(&bastion(), &Shown::Certificate(good), NOW);
        assert_eq!(judged, Ok(Trusted::Known));
    }
    for (bad, why, remedy) in [
        (
            HostCertificate { is_for_host: false, ..certificate() },
            "is a user's, not a host's",
            "ssh-keygen -h -s",
        ),
        (valid(0..NOW), "expired at 2027-01-15T08:00:00Z", "clock"),
        (valid(NOW + 1..u64::MAX), "is not valid before 2027-01-15T08:00:01Z", "clock"),
        (valid(u64::MAX..u64::MAX), "is not valid before 9999-12-31T23:59:59Z", "clock"),
        (
            for_hosts(&["[bastion]:22", "*.bastion"]),
            "is for [bastion]:22 and *.bastion, not for bastion",
            "-n bastion",
        ),
        (for_hosts(&["Bastion", "b*"]), "is for Bastion and b*, not for bastion", "as `host`"),
        (
            HostCertificate { critical_options: vec!["force-command".to_owned()], ..certificate() },
            "has the unknown critical option \"force-command\"",
            "without that option",
        ),
        (
            HostCertificate { signature_fault: Some("too bad".to_owned()), ..certificate() },
            "is not signed as it should be: too bad",
            "Ed25519",
        ),
        (
            HostCertificate { authority: key(RSA), ..certificate() },
            "and known_hosts has another authority for it",
            "@cert-authority",
        ),
    ] {
        let shown = Shown::Certificate(bad);
        let failure = files(&authority, HostKeyPolicy::AcceptNew).judge(&bastion(), &shown, NOW).unwrap_err();
        assert_eq!(failure.cause, Cause::HostKeyCertificateInvalid);
        assert!(failure.detail().ends_with(why), "{failure}");
        assert!(failure.hint().contains(remedy), "{failure}: {}", failure.hint());
        let known = format!("{authority}bastion ssh-ed25519 {KEY_A}");
        assert_eq!(judge_as(HostKeyPolicy::Strict, &known, &bastion(), &shown), Ok(Trusted::Known));
    }
}

fn bastion() -> HostPort {
    HostPort::new("bastion", 22)
}

#[test]
fn lines_are_written_as_they_are_read() {
    for (host, port, start) in
        [("Bastion.", 22, "bastion ssh-ed25519 "), ("::1", 2222, "[::1]:2222 ssh-ed25519 ")]
    {
        let bastion = HostPort::new(host, port);
        let line = line(&bastion, &key(KEY_A));
        assert_eq!(line, format!("{start}{KEY_A}"));
        assert_eq!(judge(&line, host, port, KEY_A), Ok(()));
    }
}

proptest::proptest! {
    #[test]
    fn arbitrary_files_never_panic(text in "\\PC*", host in "[a-z.\\[\\]:*!|]{0,20}") {
        let _ = judge(&text, &host, 22, KEY_A);
    }
}

#[test]
fn what_makes_a_key_trusted_is_told() {
    let bastion = HostPort::new("bastion", 22);
    let grounds = |text: &str| files(text, HostKeyPolicy::AcceptNew).grounds(&bastion, &key(KEY_A));
    let known = format!("bastion ssh-ed25519 {KEY_A}\n");
    let authority = format!("# one\n@cert-authority bastion ssh-ed25519 {KEY_B}\n");
    assert_eq!(grounds(&known), "known by known_hosts:1");
    assert_eq!(grounds(&authority), "vouched for by the authority of known_hosts:2");
    assert_eq!(grounds(""), "seen for the first time");
    let pins = Trust::Pins(vec![key(KEY_A).fingerprint()]);
    assert_eq!(pins.grounds(&bastion, &key(KEY_A)), "pinned by `host_key`");
}
