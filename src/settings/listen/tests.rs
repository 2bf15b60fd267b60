use std::path::PathBuf;

use super::*;
use crate::settings::tests::{Case, SMALLEST};

/// The smallest configuration with another value for `listen`, and more keys.
fn listening(listen: &str, more: &str) -> Case {
    Case::new(&SMALLEST.replace("\"127.0.0.1:15432\"", &format!("{listen}\n{more}")))
}

#[test]
fn listeners_of_every_kind() {
    let list = "[\"127.0.0.1:1\", \"unix:~/.s.PGSQL.1\", \"unix:.s.PGSQL.2\", \"systemd:analytics\"]";
    let case = listening(list, "socket_mode = \"606\"\nsocket_group = \"jobs\"").env("HOME", "/home/me");
    let settings = case.load();
    let unix = |path: PathBuf| ListenAt::Address(LocalAddress::Unix(path));
    let plan = &settings.plan.databases[0].forward.listen;
    assert_eq!(
        plan.at,
        [
            ListenAt::Address(LocalAddress::Tcp("127.0.0.1:1".parse().unwrap())),
            unix("/home/me/.s.PGSQL.1".into()),
            unix(case.dir.path().join(".s.PGSQL.2")),
            ListenAt::Systemd("analytics".to_owned())
        ]
    );
    assert_eq!((plan.socket_mode, plan.socket_group.as_deref()), (0o606, Some("jobs")));
    assert!(settings.notes.is_empty(), "{:?}", settings.notes);
    let mode = settings.effective.iter().find(|effective| effective.key.ends_with(".socket_mode"));
    assert_eq!(mode.unwrap().value, "0606");
    assert_eq!(listening("\"unix:/x\"", "").load().plan.databases[0].forward.listen.socket_mode, 0o660);
}

#[test]
fn what_is_wrong_with_a_listener_is_found_before_the_start() {
    let long = format!("\"unix:/{}\"", "x".repeat(107));
    for (listen, more, expected) in [
        (
            long.as_str(),
            "",
            "is 108 bytes long: the path of a socket has at most 107, so choose a shorter one",
        ),
        ("\"unix:\"", "", "listen: is empty: write the path of a file"),
        ("\"unix:/run/x/\"", "", "is a directory: name the socket in it, \"/run/x/.s.PGSQL.5432\""),
        ("\"/run/x\"", "", "is a path: write \"unix:/run/x\" to listen on a Unix socket"),
        ("\"systemd:\"", "", "listen: \"\" is not the name of a socket: write the FileDescriptorName"),
        ("\"systemd:a:b\"", "", "listen: \"a:b\" is not the name of a socket"),
        (
            "\"unix:/x\"",
            "socket_mode = 660",
            "socket_mode: is a number: write a mode in quotes, such as \"0660\"",
        ),
        ("\"unix:/x\"", "socket_mode = \"0888\"", "socket_mode: \"0888\" is not a mode"),
        ("\"unix:/x\"", "socket_mode = \"4660\"", "socket_mode: \"4660\" is not a mode"),
        ("\"unix:/x\"", "socket_mode = \"0440\"", "socket_mode: \"0440\" lets nobody connect"),
        ("[\"unix:/x\", \"unix://x\"]", "", "listen: unix://x stands twice in this list"),
        ("[\"systemd:x\", \"systemd:x\"]", "", "listen: systemd:x stands twice in this list"),
    ] {
        let problems = listening(listen, more).problems();
        assert!(problems.len() == 1 && problems[0].contains(expected), "{expected}\nnot in {problems:?}");
    }
    for (listen, advice) in [
        ("unix:/run/.s.PGSQL.1", "choose another path"),
        ("systemd:x", "give each database a socket of its own"),
    ] {
        let case = listening(&format!("\"{listen}\""), "");
        let other = format!("[databases.two]\nbastion = \"prod\"\nhost = \"d\"\nlisten = \"{listen}\"\n");
        case.write("conf.d/a.toml", &other);
        let expected = format!(
            "conf.d/a.toml: databases.two.listen: {listen} is taken by databases.analytics.listen already: {advice}"
        );
        assert_eq!(case.problems(), [expected]);
    }
}

#[test]
fn what_is_of_no_use_to_a_listener_is_noted() {
    for (listen, more, expected) in [
        (
            "\"127.0.0.1:1\"",
            "socket_mode = \"0600\"",
            "is of no use here: only listeners written as \"unix:/path\"",
        ),
        ("\"systemd:x\"", "socket_group = \"jobs\"", "is of no use here"),
        ("\"unix:/run/analytics.sock\"", "", "find a socket only under the name .s.PGSQL.PORT"),
    ] {
        let notes = listening(listen, more).load().notes;
        assert!(notes.len() == 1 && notes[0].text.contains(expected), "{notes:?}");
    }
}
