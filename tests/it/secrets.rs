//! Nothing that is printed or served contains a secret, however much is logged.

use std::fs;
use std::os::unix::fs::PermissionsExt;

use crate::support::bastion::{make_key, public_line};
use crate::support::client::{Job, job, run_psql};
use crate::support::daemon::run;
use crate::support::postgres::{PASSWORD, SCRAM};
use crate::support::{Bastion, Daemon, Postgres, eventually, runtime};

#[test]
fn known_secrets_show_nowhere() {
    let bastion = Bastion::start();
    let dir = bastion.path("x").parent().unwrap().to_owned();
    let passphrase = "sesame-4d1f-passphrase";
    let key = make_key(&dir, "closed", &["-t", "ed25519", "-N", passphrase]);
    bastion.authorize(&public_line(&key));
    let section = bastion.keyless_section("prod", bastion.port);
    let postgres = Postgres::shared();
    let script = bastion.path("secret.sh");
    fs::write(&script, format!("#!/bin/sh\nprintf '%s' '{PASSWORD}'\n")).unwrap();
    fs::set_permissions(&script, fs::Permissions::from_mode(0o755)).unwrap();
    let wrong = "wrong-9b2e-password";
    let config = format!(
        "{section}identity = {:?}\nidentity_passphrase = {passphrase:?}\n\
         {}user = \"{SCRAM}\"\npassword = {{ env = \"DB_PASSWORD\" }}\ndatabase = \"warehouse\"\n\
         {}user = \"{SCRAM}\"\npassword = {{ command = [{:?}, \"argument-7c3a-token\"] }}\ndatabase = \"warehouse\"\n\
         {}user = \"{SCRAM}\"\npassword = {wrong:?}\ndatabase = \"warehouse\"\n",
        key.display().to_string(),
        unprobed(postgres, "one"),
        unprobed(postgres, "two"),
        script.display().to_string(),
        unprobed(postgres, "three"),
    );
    let daemon = Daemon::with(&config, |command| {
        command.env("RUST_LOG", "trace").env("DB_PASSWORD", PASSWORD);
    });
    for name in ["one", "two"] {
        eventually("the probe is answered", || {
            (daemon.database(name)["probe"]["verdict"] == "up").then_some(())
        });
    }
    eventually("the wrong password is rejected", || {
        daemon.database("three")["probe"]["last_failure"].as_object().map(drop)
    });
    let address = daemon.address("one");
    assert_eq!(runtime().block_on(job(address)), Job::Done);
    let query = "query-5e8d-text";
    for tls in ["disable", "require"] {
        let login = format!("user={SCRAM} password='{PASSWORD}' sslmode={tls}");
        assert_eq!(run_psql(address, &login, &format!("SELECT '{query}'")).unwrap(), query);
        assert!(run_psql(address, &login, &format!("SELECT no_such_column, '{query}'")).is_err());
    }

    let mut surfaces = vec![("the log", daemon.printed())];
    for path in ["/", "/metrics", "/api/v1/status", "/readyz", "/readyz/three", "/livez"] {
        surfaces.push((path, daemon.get(path).1));
    }
    for arguments in [&["config", "show"][..], &["config", "show", "--format", "json"], &["config", "check"]]
    {
        let output = run(&daemon.config(), arguments);
        assert!(output.status.success(), "{output:?}");
        surfaces.push((
            "config",
            format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr)),
        ));
    }
    for arguments in [&["status", "--url"][..], &["status", "--format", "json", "--url"]] {
        let url = daemon.url();
        let output = run(&daemon.config(), &[arguments, &[url.as_str()]].concat());
        assert!(output.status.success(), "{output:?}");
        surfaces.push(("status", String::from_utf8_lossy(&output.stdout).into_owned()));
    }
    let private_key = fs::read_to_string(&key).unwrap();
    let middle_of_the_key = private_key.lines().nth(2).unwrap();
    for (surface, text) in &surfaces {
        assert!(text.len() > 1, "{surface} is empty");
        for secret in [PASSWORD, passphrase, wrong, "argument-7c3a-token", middle_of_the_key, query] {
            assert!(!text.contains(secret), "{surface} contains the secret {secret}");
        }
    }
    assert!(
        surfaces[0].1.contains("\"TRACE\"") || surfaces[0].1.contains("\"DEBUG\""),
        "the log was not verbose"
    );
}

fn unprobed(postgres: &Postgres, name: &str) -> String {
    let section = postgres.unprobed_section(name, "prod");
    section.replace("probe = { level = \"off\" }\n", "probe = { interval = \"200ms\" }\n")
}
