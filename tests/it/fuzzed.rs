//! Whatever comes in from outside: the corpus of each fuzz target, and thousands of mutations of it that are the same each
//! time. `make fuzz` goes on where this ends (fuzz/).

#[path = "../../fuzz/bodies/configuration.rs"]
mod configuration;
#[path = "../../fuzz/bodies/http.rs"]
mod http;
#[path = "../../fuzz/bodies/known_hosts.rs"]
mod known_hosts;
#[path = "../../fuzz/bodies/pgwire.rs"]
mod pgwire;

use std::fs;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;

use rand::rngs::StdRng;
use rand::{Rng, RngExt, SeedableRng};

/// No input is longer, as in `make fuzz`.
const MAX_LEN: usize = 4096;

fn corpus(target: &str) -> Vec<Vec<u8>> {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus").join(target);
    let mut files: Vec<_> = fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.sort();
    files.iter().map(|file| fs::read(file).unwrap()).collect()
}

/// One of the things that happen to bytes: some change, go, come, come twice, or come from another input.
fn mutate(input: &mut Vec<u8>, corpus: &[Vec<u8>], rng: &mut StdRng) {
    let some = |len: usize, rng: &mut StdRng| {
        let from = rng.random_range(0..=len);
        from..rng.random_range(from..=len.min(from + 64))
    };
    let at = some(input.len(), rng);
    match rng.random_range(0..6) {
        0 => input[at].iter_mut().for_each(|byte| *byte ^= 1 << (rng.next_u32() % 8)),
        1 => drop(input.drain(at)),
        2 => rng.fill_bytes(&mut input[at]),
        3 => input.extend_from_within(at),
        4 => {
            let words: [&[u8]; 9] =
                [b"\0", b"\r\n", b"\n", b"\xff\xff\xff\xff", b"\"", b" ", b"=", b",", b"@revoked "];
            input.splice(at, words[rng.random_range(0..words.len())].iter().copied());
        }
        _ => {
            let other = &corpus[rng.random_range(0..corpus.len())];
            input.splice(at, other[some(other.len(), rng)].iter().copied());
        }
    }
    input.truncate(MAX_LEN);
}

fn check_all(target: &str, mutations: usize, check: impl Fn(&[u8])) {
    let (corpus, mut rng) = (corpus(target), StdRng::seed_from_u64(1));
    assert!(corpus.len() >= 5, "{target} has a corpus of {} only", corpus.len());
    let try_one = |input: &[u8]| {
        if let Err(panic) = catch_unwind(AssertUnwindSafe(|| check(input))) {
            eprintln!("{target} fails on \"{}\"", input.escape_ascii());
            std::panic::resume_unwind(panic);
        }
    };
    corpus.iter().for_each(|input| try_one(input));
    for _ in 0..mutations {
        let mut input = corpus[rng.random_range(0..corpus.len())].clone();
        for _ in 0..rng.random_range(1..=6) {
            mutate(&mut input, &corpus, &mut rng);
        }
        try_one(&input);
    }
}

#[test]
fn conversations_with_postgresql() {
    check_all("pgwire", 20_000, |input| pgwire::check(input, || 0));
}

#[test]
fn known_hosts_files() {
    check_all("known_hosts", 2_000, known_hosts::check);
}

#[test]
fn configuration_files() {
    check_all("configuration", 5_000, configuration::check);
}

#[test]
fn requests_over_http() {
    check_all("http", 2_000, http::check);
}
