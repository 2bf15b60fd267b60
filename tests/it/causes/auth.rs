//! Logging in to a bastion.

use std::borrow::Cow;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use russh::keys::Algorithm;
use russh::server::{Auth, Handler, PublicKeyOffer};

use super::scripted::Scripted;
use super::{At, bastion_fails, says, shown};
use crate::agents::{daemon, unused_database};
use crate::support::bastion::{make_key, public_line};
use crate::support::{Bastion, Daemon};

fn identity(path: &Path) -> String {
    format!("identity = {:?}\n", path.display().to_string())
}

/// Lets nobody in.
struct Strict;

impl Handler for Strict {
    type Error = russh::Error;

    async fn auth_publickey_offered(&mut self, _: &str, _: PublicKeyOffer<'_>) -> Result<Auth, russh::Error> {
        Ok(Auth::reject())
    }
}

super::cases! {
    no_key_where_none_may_be_made: [AuthNoIdentity] => {
        let bastion = Bastion::start();
        let head = format!(
            "[http]\nlisten = \"127.0.0.1:0\"\n[daemon]\nstate_dir = {:?}\ngenerate_keys = false\n",
            bastion.path("state").display().to_string()
        );
        let config = unused_database(&format!("{head}{}", bastion.keyless_section("prod", bastion.port)));
        let failure = shown(&Daemon::start(&config), &At::Bastion("prod"));
        [says(failure, "bastion \"prod\" has no key: ", "daemon.generate_keys")]
    }

    each_way_a_key_file_can_be_wrong:
        [AuthIdentityUnreadable, AuthIdentityUnreadable, AuthIdentityUnreadable, AuthIdentityUnreadable,
         AuthPassphrase, AuthPassphrase] =>
    {
        let bastion = Bastion::start();
        let file = |name: &str| bastion.path(name);
        let open = make_key(&bastion.path(""), "open", &["-t", "ed25519", "-N", ""]);
        fs::set_permissions(&open, fs::Permissions::from_mode(0o644)).unwrap();
        make_key(&bastion.path(""), "closed", &["-t", "ed25519", "-N", "sesame"]);
        fs::write(file("garbage"), "-----BEGIN CERTIFICATE-----\nMII\n-----END CERTIFICATE-----\n").unwrap();
        fs::set_permissions(file("garbage"), fs::Permissions::from_mode(0o600)).unwrap();
        let closed = "identity_passphrase = \"open\"\n";
        let found = [
            ("missing", "", "cannot be read: No such file", "ssh-keygen -t ed25519 -f "),
            ("open", "", "can be read by others (mode 0644)", "chmod 600 "),
            ("identity.pub", "", "is a public key", "the file of the same name without .pub"),
            ("garbage", "", "is not a private key in any known format", "BEGIN OPENSSH PRIVATE KEY"),
            ("closed", "", "is encrypted, and no `identity_passphrase` is set", "take the passphrase off"),
            ("closed", closed, "does not open with `identity_passphrase`", "correct"),
        ];
        let keyless = bastion.keyless_section("prod", bastion.port);
        found.map(|(name, more, detail, hint)| {
            let failure = bastion_fails(&format!("{keyless}{}{more}", identity(&file(name))));
            let failure = says(failure, &format!("the private key {} ", file(name).display()), hint);
            says(failure, detail, hint)
        })
    }

    a_user_that_nobody_knows_looks_like_a_wrong_key: [AuthRejected] => {
        let bastion = Bastion::start();
        let section = bastion.section("prod", bastion.port);
        let user = format!("user = {:?}", bastion.account.name);
        let failure = bastion_fails(&section.replace(&user, "user = \"nobody-knows-me\""));
        assert!(bastion.log().contains("Invalid user nobody-knows-me"), "{}", bastion.log());
        [says(failure, "rejected the ssh-ed25519 key SHA256:", "an unknown one looks just like this")]
    }

    rsa_keys_by_sha1_only: [AuthRejected, AuthRejected] => {
        let scripted = Scripted::start(|| Strict, |config| {
            config.preferred.key = Cow::Owned(vec![Algorithm::Ed25519, Algorithm::Rsa { hash: None }]);
        });
        let rsa = make_key(&scripted.bastion.path(""), "rsa", &["-t", "rsa", "-b", "2048", "-N", ""]);
        let with_rsa = |section: &str| {
            let lines = section.lines().filter(|line| !line.starts_with("identity"));
            format!("{}{}", lines.map(|line| format!("{line}\n")).collect::<String>(), identity(&rsa))
        };
        let told = bastion_fails(&with_rsa(&scripted.section));
        // Of an sshd of before 9.5 it cannot be told from outside.
        let bastion = Bastion::with("PubkeyAcceptedAlgorithms ssh-rsa");
        bastion.authorize(&public_line(&rsa));
        let section = with_rsa(&bastion.section("prod", bastion.port));
        daemon(&format!("{section}legacy_algorithms = true\n")).wait_up("prod");
        let untold = bastion_fails(&section);
        [
            says(told, "rejected the ssh-rsa key SHA256:", "takes RSA keys with SHA-1 only: update its sshd"),
            says(untold, "rejected the ssh-rsa key SHA256:", "`legacy_algorithms = true`"),
        ]
    }

    a_further_step_that_is_wanted: [AuthRejected, AuthRejected] => {
        let two_keys = Bastion::with("AuthenticationMethods publickey,publickey");
        let of_keys = bastion_fails(&two_keys.section("prod", two_keys.port));
        let questions = "KbdInteractiveAuthentication yes";
        let methods = "AuthenticationMethods publickey,keyboard-interactive";
        let with_questions = Bastion::with(&format!("{questions}\n{methods}"));
        let of_questions = bastion_fails(&with_questions.section("prod", with_questions.port));
        [
            says(of_keys, "and wants publickey as well", "a further step (AuthenticationMethods"),
            says(of_questions, "and wants keyboard-interactive as well", "AuthenticationMethods"),
        ]
    }

    a_bastion_that_hangs_up_during_the_login: [AuthClosed] => {
        let bastion = Bastion::with_password("correct horse", "pam_permit.so", "LoginGraceTime 4");
        let late = "password = { command = [\"sh\", \"-c\", \"sleep 7; echo correct horse\"] }\n";
        let failure = bastion_fails(&format!("{}{late}", bastion.keyless_section("prod", bastion.port)));
        [says(failure, "during the login", "its log says why")]
    }
}
