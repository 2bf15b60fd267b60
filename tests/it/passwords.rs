//! Passwords, questions, and logins in several steps.

use std::fs;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use russh::keys::{Algorithm, PrivateKey};
use russh::server::{self, Auth, Response};
use russh::{MethodKind, MethodSet};

use crate::agents::{daemon, failure};
use crate::support::bastion::{make_key, public_line};
use crate::support::{Bastion, runtime};

const PASSWORD: &str = "correct horse";
const GOOD: &str = "pam_permit.so";

fn password(password: &str) -> String {
    format!("password = {password:?}\n")
}

#[test]
fn a_password_in_every_way_of_asking() {
    for only in ["", "PasswordAuthentication no", "KbdInteractiveAuthentication no"] {
        let bastion = Bastion::with_password(PASSWORD, GOOD, only);
        let section = bastion.keyless_section("prod", bastion.port);
        let daemon = daemon(&format!("{section}{}", password(PASSWORD)));
        daemon.wait_up("prod");
        assert!(!daemon.dir.path().join("state/keys").exists(), "a key was made that nobody asked for");
        assert!(!daemon.printed().contains(PASSWORD));
    }
}

#[test]
fn a_wrong_password_is_given_once() {
    let bastion = Bastion::with_password(PASSWORD, GOOD, "");
    let section = bastion.keyless_section("prod", bastion.port);
    let wrong = "wrong horse";
    let (daemon, reason, detail, _) = failure(&format!("{section}{}", password(wrong)));
    assert_eq!(reason, "rejected", "{detail}");
    assert!(detail.contains("rejected the password for"), "{detail}");
    assert!(!daemon.printed().contains(wrong));
    drop(daemon);
    let log = bastion.log();
    assert!(log.contains("Failed keyboard-interactive") && !log.contains("Failed password"), "{log}");
}

#[test]
fn a_password_is_fetched_when_it_is_needed_and_anew_each_time() {
    let bastion = Bastion::with_password(PASSWORD, GOOD, "");
    let file = bastion.path("secret");
    let secret = format!("password = {{ file = {:?} }}\n", file.display().to_string());
    let keyless = bastion.keyless_section("prod", bastion.port);
    // The key is enough.
    let with_key = bastion.section("prod", bastion.port);
    daemon(&format!("{with_key}{secret}")).wait_up("prod");
    let (daemon, reason, detail, _) = failure(&format!("{keyless}{secret}"));
    assert_eq!(reason, "secret", "{detail}");
    assert!(detail.contains("`password`") && detail.contains("No such file"), "{detail}");
    fs::write(&file, PASSWORD).unwrap();
    daemon.wait_up("prod");
}

#[test]
fn several_steps() {
    for methods in [
        "publickey,password",
        "publickey,keyboard-interactive",
        "password,publickey",
        "keyboard-interactive,password publickey,password,keyboard-interactive",
    ] {
        let bastion = Bastion::with_password(PASSWORD, GOOD, &format!("AuthenticationMethods {methods}"));
        let section = bastion.section("prod", bastion.port);
        daemon(&format!("{section}{}", password(PASSWORD))).wait_up("prod");
    }
}

#[test]
fn two_keys() {
    let bastion = Bastion::with("AuthenticationMethods publickey,publickey");
    let second = make_key(&bastion.path(""), "second", &["-t", "rsa", "-b", "2048", "-N", ""]);
    let stranger = make_key(&bastion.path(""), "stranger", &["-N", ""]);
    bastion.authorize(&format!("{}\n{}", public_line(&bastion.path("identity")), public_line(&second)));
    let section = bastion.keyless_section("prod", bastion.port);
    let named = |keys: &[&std::path::Path]| {
        let keys: Vec<String> = keys.iter().map(|key| key.display().to_string()).collect();
        format!("{section}identity = {keys:?}\n")
    };
    daemon(&named(&[&bastion.path("identity"), &stranger, &second])).wait_up("prod");
    let (_daemon, reason, detail, _) = failure(&named(&[&bastion.path("identity"), &stranger]));
    assert_eq!(reason, "rejected", "{detail}");
    for part in ["accepted the ssh-ed25519 key", "wants publickey as well and rejected the ssh-"] {
        assert!(detail.contains(part), "{detail}");
    }
}

#[test]
fn the_step_that_is_missing_is_named() {
    let bastion = Bastion::with_password(PASSWORD, GOOD, "AuthenticationMethods publickey,password");
    let section = bastion.section("prod", bastion.port);
    let (_daemon, reason, detail, hint) = failure(&section);
    assert_eq!(reason, "rejected", "{detail}");
    assert!(
        detail.contains("accepted the ssh-ed25519 key") && detail.contains("wants password as well"),
        "{detail}"
    );
    assert!(hint.starts_with("set `password`"), "{hint}");
    let wrong = password("wrong horse");
    let (_daemon, reason, detail, _) = failure(&format!("{section}{wrong}"));
    assert_eq!(reason, "rejected", "{detail}");
    assert!(detail.ends_with("wants password as well and rejected the password"), "{detail}");
}

#[test]
fn a_password_that_has_expired() {
    let expired = "pam_debug.so acct=new_authtok_reqd";
    let bastion = Bastion::with_password(PASSWORD, expired, "");
    let section = bastion.keyless_section("prod", bastion.port);
    let (daemon, reason, detail, _) = failure(&format!("{section}{}", password(PASSWORD)));
    assert_eq!(reason, "password_expired", "{detail}");
    assert!(detail.contains("wants a new password") && detail.contains("Current password:"), "{detail}");
    drop(daemon);
    assert!(!bastion.log().contains("Accepted password"), "{}", bastion.log());
}

/// A bastion that asks what this machine's PAM has no module for. Counts the answers that are not empty.
struct Inquisitor {
    prompts: &'static [(&'static str, bool)],
    mood: Mood,
    answers: Arc<AtomicUsize>,
}

#[derive(Clone, Copy, PartialEq)]
enum Mood {
    /// Takes no for an answer.
    Plain,
    /// Goes on asking, or says that one more step is wanted, for ever.
    Endless,
    /// Never says what it thinks of a password.
    Silent,
}

impl server::Handler for Inquisitor {
    type Error = russh::Error;

    async fn auth_keyboard_interactive<'a>(
        &'a mut self,
        _: &str,
        _: &str,
        response: Option<Response<'a>>,
    ) -> Result<Auth, russh::Error> {
        let answered = response.is_some();
        for answer in response.into_iter().flatten() {
            self.answers.fetch_add(usize::from(!answer.is_empty()), Ordering::SeqCst);
        }
        if answered && self.mood == Mood::Plain {
            return Ok(Auth::reject());
        }
        let prompts = self.prompts.iter().map(|(prompt, echo)| ((*prompt).into(), *echo)).collect::<Vec<_>>();
        Ok(Auth::Partial { name: "".into(), instructions: "".into(), prompts: prompts.into() })
    }

    async fn auth_password(&mut self, _: &str, _: &str) -> Result<Auth, russh::Error> {
        if self.mood == Mood::Silent {
            std::future::pending::<()>().await;
        }
        Ok(self.more())
    }

    async fn auth_publickey(
        &mut self,
        _: &str,
        _: server::VerifiedPublicKey<'_>,
    ) -> Result<Auth, russh::Error> {
        Ok(self.more())
    }
}

impl Inquisitor {
    fn more(&self) -> Auth {
        let both = [MethodKind::PublicKey, MethodKind::Password];
        Auth::Reject {
            proceed_with_methods: Some(MethodSet::from(&both[..])),
            partial_success: self.mood == Mood::Endless,
        }
    }
}

/// The failure of a login at an inquisitor, and how many answers it got.
fn asked(
    methods: &[MethodKind],
    prompts: &'static [(&'static str, bool)],
    mood: Mood,
) -> (String, String, usize) {
    let key = PrivateKey::random(&mut russh::keys::key::safe_rng(), Algorithm::Ed25519).unwrap();
    let public = key.public_key().to_openssh().unwrap();
    let config = Arc::new(server::Config {
        keys: vec![key],
        methods: MethodSet::from(methods),
        auth_rejection_time: std::time::Duration::ZERO,
        ..server::Config::default()
    });
    let runtime = runtime();
    let listener = runtime.block_on(tokio::net::TcpListener::bind("127.0.0.1:0")).unwrap();
    let port = listener.local_addr().unwrap().port();
    let answers: Arc<AtomicUsize> = Arc::default();
    let counted = Arc::clone(&answers);
    runtime.spawn(async move {
        let (socket, _) = listener.accept().await.unwrap();
        let handler = Inquisitor { prompts, mood, answers: counted };
        let session = server::run_stream(config, socket, handler).await;
        drop(session.unwrap().await);
    });
    let bastion = Bastion::start();
    let section = bastion.section("prod", port);
    fs::write(bastion.path(&format!("known_hosts.prod.{port}")), format!("[127.0.0.1]:{port} {public}\n"))
        .unwrap();
    let patience = if mood == Mood::Silent { "connect_timeout = \"2s\"\n" } else { "" };
    let (_daemon, reason, detail, _) = failure(&format!("{section}{patience}{}", password(PASSWORD)));
    (reason, detail, answers.load(Ordering::SeqCst))
}

#[test]
fn a_question_for_a_person_is_named_and_not_answered() {
    let interactive = [MethodKind::KeyboardInteractive];
    let (reason, detail, answers) = asked(&interactive, &[("Verification code: ", false)], Mood::Plain);
    assert_eq!((reason.as_str(), answers), ("rejected", 0), "{detail}");
    assert!(detail.contains("asks \"Verification code:\", which only a person can answer"), "{detail}");
    let (reason, detail, answers) =
        asked(&interactive, &[("Password: ", false), ("Passcode: ", false)], Mood::Plain);
    assert_eq!((reason.as_str(), answers), ("rejected", 0), "{detail}");
    let (reason, detail, answers) = asked(&interactive, &[("Password: ", true)], Mood::Plain);
    assert_eq!((reason.as_str(), answers), ("rejected", 0), "{detail}");
    // There is another way to give it.
    let both = [MethodKind::KeyboardInteractive, MethodKind::Password];
    let (reason, detail, answers) = asked(&both, &[("Token: ", false)], Mood::Plain);
    assert_eq!((reason.as_str(), answers), ("rejected", 0), "{detail}");
    assert!(detail.contains("asks \"Token:\"") && detail.contains("rejected the password"), "{detail}");
}

#[test]
fn a_bastion_that_is_never_content_is_left() {
    let interactive = [MethodKind::KeyboardInteractive];
    let (reason, detail, answers) = asked(&interactive, &[("Password: ", false)], Mood::Endless);
    assert_eq!((reason.as_str(), answers), ("rejected", 1), "{detail}");
    assert!(detail.contains("rejected the password for"), "{detail}");
    let (reason, detail, _) = asked(&interactive, &[], Mood::Endless);
    assert_eq!(reason, "rejected", "{detail}");
    assert!(detail.contains("does not come to an end with its questions"), "{detail}");
    let all = [MethodKind::PublicKey, MethodKind::Password];
    let (reason, detail, _) = asked(&all, &[("Password: ", false)], Mood::Endless);
    assert_eq!(reason, "rejected", "{detail}");
    assert!(
        detail.contains("accepted the ssh-ed25519 key") && detail.contains("and the password"),
        "{detail}"
    );
}

#[test]
fn a_bastion_that_never_decides_is_left() {
    let (reason, detail, _) = asked(&[MethodKind::Password], &[], Mood::Silent);
    assert_eq!(reason, "timeout", "{detail}");
    assert!(detail.contains("did not decide about the password of"), "{detail}");
}
