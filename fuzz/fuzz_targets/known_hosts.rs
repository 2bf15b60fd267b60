#![no_main]

#[path = "../bodies/known_hosts.rs"]
mod known_hosts;

libfuzzer_sys::fuzz_target!(|input: &[u8]| known_hosts::check(input));
