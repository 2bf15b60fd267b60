//! The binary: everything is in the library.

use std::process::ExitCode;

use mimalloc::MiMalloc;

/// The C library's own gives memory back to the system after every burst and takes it again page by page.
#[global_allocator]
static ALLOCATOR: MiMalloc = MiMalloc;

fn main() -> ExitCode {
    tunnelkeeper::cli::main(std::env::args_os())
}
