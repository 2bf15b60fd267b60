#![no_main]

#[path = "../bodies/http.rs"]
mod http;

libfuzzer_sys::fuzz_target!(|input: &[u8]| http::check(input));
