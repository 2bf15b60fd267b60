use std::time::Duration;

use proptest::prelude::*;

use super::super::SSL_REQUEST;
use super::super::startup::MAX_STARTUP_LEN;
use super::*;

const STARTUP: &[u8] = b"\0\0\0\x11\0\x03\0\0user\0me\0\0";
const READY: &[u8] = b"Z\0\0\0\x05I";
const CANCEL: &[u8] = b"\0\0\0\x10\x04\xd2\x16\x2e\0\0\0\x01\0\0\0\x02";

fn message(kind: u8, body: &[u8]) -> Vec<u8> {
    let len = u32::try_from(body.len() + 4).unwrap().to_be_bytes();
    [&[kind], &len[..], body].concat()
}

fn startup(parameters: &[u8]) -> Vec<u8> {
    let len = u32::try_from(parameters.len() + 8).unwrap().to_be_bytes();
    [&len[..], b"\0\x03\0\0", parameters].concat()
}

/// One word of a conversation. Startups: `ssl`, `cancel`, `hello`, `replication`. A message is its type, with a body such as
/// real ones have; `ZI` is ready and idle, `E42P01` an error, `F57P01` a fatal one; `tls` anything encrypted.
fn bytes(word: &str) -> Vec<u8> {
    match (word, word.split_at(1)) {
        ("ssl", _) => SSL_REQUEST.to_vec(),
        ("cancel", _) => CANCEL.to_vec(),
        ("hello", _) => startup(b"user\0me\0database\0d\0application_name\0psql\0\0"),
        ("replication", _) => startup(b"user\0me\0replication\0true\0\0"),
        ("tls", _) => b"\x17\x03\x03\0\x05hello".to_vec(),
        ("yes" | "no", (answer, _)) => answer.to_uppercase().replace('Y', "S").into_bytes(),
        (_, ("Z", status)) => message(b'Z', status.as_bytes()),
        (_, ("E", code)) if !code.is_empty() => {
            message(b'E', format!("SERROR\0VERROR\0C{code}\0Mno C23505 here\0\0").as_bytes())
        }
        (_, ("F", code)) if !code.is_empty() => {
            message(b'E', format!("SFATAL\0VFATAL\0C{code}\0Mbye\0\0").as_bytes())
        }
        (_, ("S" | "H" | "X" | "c" | "1" | "2" | "3" | "n" | "I" | "s", _)) => {
            message(word.as_bytes()[0], b"")
        }
        (_, (kind, _)) => message(kind.as_bytes()[0], b"Z\0\0\0\x05I"),
    }
}

/// What has been seen of a conversation.
#[derive(Debug, PartialEq)]
struct Seen {
    events: Vec<String>,
    doing: Doing,
    at_boundary: bool,
    encryption: Option<Encryption>,
}

/// Watches who says what: the client's words after `>`, the server's after `<`; each line takes a second, and its bytes come
/// in pieces of `cut`. The server's line is seen at once, the client's has been forwarded half a second later.
fn watch(lines: &[(bool, Vec<u8>)], cut: usize, start: Instant) -> Seen {
    let mut observer = Observer::new(start);
    let mut events = Vec::new();
    for (second, (client, bytes)) in lines.iter().enumerate() {
        let now = start + Duration::from_secs(second as u64 + 1);
        for piece in bytes.chunks(cut) {
            if *client {
                observer.client_sends(piece);
            } else {
                observer.server_sends(piece, || now, |event| events.push(event));
            }
        }
        if *client {
            observer.forwarded(now + Duration::from_millis(500));
        }
    }
    let events = events.iter().map(|event| match event {
        Event::Answered(time) => format!("answered {}", time.as_secs_f64()),
        Event::Failed(class) => format!("failed {}", class.as_str()),
        Event::TurnedAround(time) => format!("turned {}", time.as_secs_f64()),
    });
    Seen {
        events: events.collect(),
        doing: observer.doing(),
        at_boundary: observer.at_boundary(),
        encryption: observer.encryption(),
    }
}

fn lines(conversation: &str) -> Vec<(bool, Vec<u8>)> {
    let lines = conversation.split_inclusive(['>', '<']).collect::<Vec<_>>();
    lines
        .windows(2)
        .map(|pair| {
            let words = pair[1].trim_end_matches(['>', '<']).split_whitespace();
            (pair[0].ends_with('>'), words.flat_map(bytes).collect())
        })
        .collect()
}

#[test]
fn conversations() {
    // After `> hello < R K S ZI`, which take two seconds.
    for (after_login, events, activity, since) in [
        ("", &[][..], Activity::Idle, Some(2.0)),
        // A simple query; with a notice and a notification; several statements; an empty one; a function call.
        ("> Q", &[], Activity::InQuery, Some(3.5)),
        ("> Q < T D", &[], Activity::InQuery, Some(3.5)),
        ("> Q < T D D C ZI", &["answered 0.5"], Activity::Idle, Some(4.0)),
        ("> Q < N T D A C S ZI < N A S", &["answered 0.5"], Activity::Idle, Some(4.0)),
        ("> Q < T D C T D C I < ZI", &["answered 1.5"], Activity::Idle, Some(5.0)),
        ("> F < V ZI", &["answered 0.5"], Activity::Idle, Some(4.0)),
        // An extended one; prepared first, with Flush; portals read in steps.
        ("> P B D E S < 1 2 T D C ZI", &["answered 0.5"], Activity::Idle, Some(4.0)),
        ("> P D H < 1 t T", &[], Activity::InQuery, Some(3.5)),
        ("> P D H < 1 t T > B E S < 2 D C ZI", &["answered 0.5"], Activity::Idle, Some(6.0)),
        ("> P B E H < 1 2 D s > E S < D C ZI", &["answered 0.5"], Activity::Idle, Some(6.0)),
        ("> C S < 3 ZI", &["answered 0.5"], Activity::Idle, Some(4.0)),
        ("> C", &[], Activity::Idle, Some(2.0)),
        // Pipelines: all at once, one after the other, and mixed.
        ("> B E S B E S Q < 2 C ZI 2 C ZI", &["answered 0.5", "answered 0.5"], Activity::InQuery, Some(4.0)),
        ("> B E S > B E S < 2 C ZI < 2 C ZI", &["answered 1.5", "answered 1.5"], Activity::Idle, Some(6.0)),
        // Errors: alone, in the middle of a pipeline, between Flushes, with a code that nobody knows.
        ("> Q < E42P01 ZI", &["failed 42", "answered 0.5"], Activity::Idle, Some(4.0)),
        (
            "> P B E S P B E S < 1 E22012 ZI 1 2 C ZI",
            &["failed 22", "answered 0.5", "answered 0.5"],
            Activity::Idle,
            Some(4.0),
        ),
        ("> P H < E42601 > S < ZI", &["failed 42", "answered 0.5"], Activity::Idle, Some(6.0)),
        ("> Q < E99999 ZI", &["failed other", "answered 0.5"], Activity::Idle, Some(4.0)),
        // Transactions.
        ("> Q < C ZT", &["answered 0.5"], Activity::InTransaction, Some(4.0)),
        ("> Q < C ZT > Q", &["answered 0.5"], Activity::InQuery, Some(5.5)),
        (
            "> Q < C ZT > Q < E23505 ZE",
            &["answered 0.5", "failed 23", "answered 0.5"],
            Activity::InFailedTransaction,
            Some(6.0),
        ),
        // COPY out, in, by a query and by a batch, failing and given up.
        ("> Q < H d d", &[], Activity::Copying, Some(4.0)),
        ("> Q < H d d c C ZI", &["answered 0.5"], Activity::Idle, Some(4.0)),
        ("> Q < G > d d d", &[], Activity::Copying, Some(4.0)),
        ("> Q < G > d d c < C ZI", &["answered 2.5"], Activity::Idle, Some(6.0)),
        ("> Q < G > d f < E57014 ZI", &["failed 57", "answered 2.5"], Activity::Idle, Some(6.0)),
        ("> Q < G > d < E22P04 ZI > d c", &["failed 22", "answered 2.5"], Activity::Idle, Some(6.0)),
        ("> P B E S < 1 2 G > d d c S < C ZI", &["answered 0.5"], Activity::Idle, Some(6.0)),
        ("> P B E S d d c S < 1 2 G C ZI", &["answered 0.5"], Activity::Idle, Some(4.0)),
        ("> P B E S < 1 2 H d c C ZI", &["answered 0.5"], Activity::Idle, Some(4.0)),
        // The server ends it: on its own, and during a query.
        ("< F57P01", &[], Activity::Dismissed, Some(3.0)),
        ("> Q < F57P01", &["failed 57"], Activity::Dismissed, Some(4.0)),
        ("> Q < ZT < F25P03", &["answered 0.5"], Activity::Dismissed, Some(5.0)),
        // Before the answer of a query is known to be forwarded, and after a client has said goodbye.
        ("> Q X < C ZI", &["answered 0.5"], Activity::Idle, Some(4.0)),
        // Nothing that is known: a ready server that nobody asked, unknown types, lengths and statuses.
        ("< ZI", &[], Activity::Unknown, Some(3.0)),
        ("> Q < ZI ZI > Q < ZI", &["answered 0.5"], Activity::Unknown, Some(4.0)),
        ("> y < ZI", &[], Activity::Unknown, Some(3.5)),
        ("< y", &[], Activity::Unknown, Some(3.0)),
        ("> Q < Z?", &[], Activity::Unknown, Some(4.0)),
        ("> Q < ZII", &[], Activity::Unknown, Some(4.0)),
    ] {
        let conversation = format!("> hello < R K S ZI {after_login} >");
        let (lines, start) = (lines(&conversation), Instant::now());
        let seen = watch(&lines, usize::MAX, start);
        let since = since.map(|seconds| start + Duration::from_secs_f64(seconds));
        assert_eq!(seen.events, events, "{after_login}");
        assert_eq!(seen.doing, Doing { activity, since }, "{after_login}");
        assert_eq!(seen.at_boundary, activity != Activity::Unknown, "{after_login}");
        for cut in 1..20 {
            assert_eq!(watch(&lines, cut, start), seen, "{after_login} in pieces of {cut}");
        }
    }
}

#[test]
fn how_connections_begin() {
    let (plain, tls) = (Some(Encryption::Plain), Some(Encryption::Tls));
    for (conversation, events, activity, encryption, at_boundary) in [
        (">", &[][..], Activity::Starting, None, true),
        ("> ssl", &[], Activity::Starting, None, false),
        ("> ssl < yes", &[], Activity::Encrypted, tls, false),
        ("> ssl < no", &[], Activity::Starting, None, true),
        ("> ssl < no > hello", &[], Activity::Starting, plain, true),
        ("> ssl < F53300", &[], Activity::Dismissed, plain, true),
        ("> hello < R", &[], Activity::Starting, plain, true),
        ("> hello < R > p < R K N ZI", &[], Activity::Idle, plain, true),
        ("> hello < v R > p < F28P01", &[], Activity::Dismissed, plain, true),
        // A client that does not wait for the end of its login.
        ("> hello Q < R K ZI", &[], Activity::InQuery, plain, true),
        ("> hello Q < R K ZI C ZI", &["answered 0.5"], Activity::Idle, plain, true),
        // An encrypted one: each time that it is answered, and not what the server says unasked.
        (
            "> ssl < yes > tls < tls tls < tls > tls > tls < tls",
            &["turned 0.5", "turned 0.5"],
            Activity::Encrypted,
            tls,
            false,
        ),
        ("> ssl < yes < tls", &[], Activity::Encrypted, tls, false),
        // A replication has errors, and no times.
        ("> replication < R ZI > Q < T D C ZI", &[], Activity::Idle, plain, true),
        ("> replication < R ZI > Q < E42704 ZI", &["failed 42"], Activity::Idle, plain, true),
        ("> replication < R ZI > Q < W d d > d d", &[], Activity::Replicating, plain, true),
        ("> replication < R ZI > Q < W d > c < c C ZI", &[], Activity::Idle, plain, true),
        ("> cancel", &[], Activity::Cancelling, None, false),
        ("> cancel < y", &[], Activity::Cancelling, None, false),
    ] {
        let (lines, start) = (lines(&format!("{conversation} >")), Instant::now());
        let seen = watch(&lines, usize::MAX, start);
        assert_eq!(seen.events, events, "{conversation}");
        let Seen { doing, .. } = seen;
        assert_eq!((doing.activity, seen.encryption), (activity, encryption), "{conversation}");
        assert_eq!(seen.at_boundary, at_boundary, "{conversation}");
        for cut in 1..12 {
            assert_eq!(watch(&lines, cut, start), seen, "{conversation} in pieces of {cut}");
        }
    }
}

#[test]
fn what_is_no_beginning() {
    for (client, server, activity) in [
        (&b"\x16\x03\x01\x02\x00\x01\x00\x01"[..], &b""[..], Activity::Encrypted),
        (b"GET / HTTP/1.1\r\n", b"", Activity::Unknown),
        (b"", b"220 hello", Activity::Unknown),
        (&SSL_REQUEST, b"HTTP/1.1 400", Activity::Unknown),
        (STARTUP, b"\0\0\0\0\0", Activity::Unknown),
        (&SSL_REQUEST, b"NN", Activity::Unknown),
    ] {
        let lines = [(true, client.to_vec()), (false, server.to_vec())];
        assert_eq!(watch(&lines, 1, Instant::now()).doing.activity, activity, "{client:?} {server:?}");
    }
}

#[test]
fn a_boundary_is_between_messages() {
    let mut observer = Observer::new(Instant::now());
    observer.client_sends(STARTUP);
    for (at, byte) in READY.repeat(2).iter().enumerate() {
        assert_eq!(observer.at_boundary(), at % READY.len() == 0, "{at}");
        observer.server_sends(&[*byte], Instant::now, |_| {});
    }
}

#[test]
fn what_is_still_on_its_way_is_known_and_since_when_is_not() {
    let start = Instant::now();
    let mut observer = Observer::new(start);
    observer.client_sends(STARTUP);
    observer.server_sends(READY, || start, |_| {});
    // A query of which only the beginning has come.
    observer.client_sends(&message(b'Q', &[b' '; 100])[..50]);
    assert_eq!(observer.doing(), Doing { activity: Activity::InQuery, since: None });
    observer.forwarded(start + Duration::from_secs(1));
    assert_eq!(observer.doing().since, Some(start + Duration::from_secs(1)));
    // An answer before we know that the question has been forwarded takes no time.
    observer.client_sends(&message(b'Q', &[b' '; 100])[50..]);
    let mut events = Vec::new();
    observer.server_sends(READY, || start + Duration::from_secs(9), |event| events.push(event));
    assert_eq!(events, [Event::Answered(Duration::ZERO)]);
}

#[test]
fn names_are_given_away_once() {
    let mut observer = Observer::new(Instant::now());
    let packet = bytes("hello");
    observer.client_sends(&packet[..packet.len() - 1]);
    assert_eq!(observer.take_startup(), None);
    observer.client_sends(&packet[packet.len() - 1..]);
    let names = observer.take_startup().unwrap();
    assert_eq!((names.user.as_str(), names.database.as_str()), ("me", "d"));
    assert_eq!(names.application_name.as_deref(), Some("psql"));
    assert_eq!(observer.take_startup(), None);
}

#[test]
fn a_startup_message_is_kept_until_it_is_read_and_no_longer_than_postgresql_takes() {
    for len in [MAX_STARTUP_LEN, MAX_STARTUP_LEN + 1] {
        let mut observer = Observer::new(Instant::now());
        for byte in startup(&vec![b'x'; len - 8]) {
            observer.client_sends(&[byte]);
            if let Stage::Asking { packet } = &observer.stage {
                assert!(packet.capacity() <= 2 * MAX_STARTUP_LEN);
            }
        }
        let expected = if len <= MAX_STARTUP_LEN { Some(Encryption::Plain) } else { None };
        assert_eq!(observer.encryption(), expected, "{len}");
    }
}

/// Words of both sides, and now and then something that is none.
fn line() -> impl Strategy<Value = (bool, Vec<u8>)> {
    let client =
        prop::sample::select(vec!["Q", "P", "B", "D", "E", "S", "H", "F", "d", "c", "f", "C", "X", "p"]);
    let server = prop::sample::select(vec![
        "R", "K", "S", "ZI", "ZT", "ZE", "T", "t", "D", "C", "I", "1", "2", "3", "n", "s", "G", "H", "W",
        "V", "E42P01", "F57P01", "N", "A", "d", "c", "v",
    ]);
    let words = |word: &[&str]| word.iter().flat_map(|word| bytes(word)).collect::<Vec<u8>>();
    prop_oneof![
        20 => prop::collection::vec(client, 0..8).prop_map(move |said| (true, words(&said))),
        20 => prop::collection::vec(server, 0..8).prop_map(move |said| (false, words(&said))),
        1 => (any::<bool>(), prop::collection::vec(any::<u8>(), 0..20)),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1000))]

    #[test]
    fn how_the_bytes_are_cut_changes_nothing(said in prop::collection::vec(line(), 0..30), cut in 1usize..40) {
        let mut conversation = lines("> hello < R ZI >");
        conversation.extend(said);
        let start = Instant::now();
        let seen = |cut| {
            let seen = watch(&conversation, cut, start);
            // What comes and goes within one piece is not seen to come and go.
            Seen { doing: Doing { since: None, ..seen.doing }, ..seen }
        };
        prop_assert_eq!(seen(cut), seen(usize::MAX));
    }

    #[test]
    fn garbage_from_the_start_never_panics(
        said in prop::collection::vec((any::<bool>(), prop::collection::vec(any::<u8>(), 0..20)), 0..20),
    ) {
        let start = Instant::now();
        prop_assert_eq!(watch(&said, 1, start), watch(&said, usize::MAX, start));
    }
}
