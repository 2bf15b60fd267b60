//! The binary: reads the command line and exits with the right code.
fn main() {}
