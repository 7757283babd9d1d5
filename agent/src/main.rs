//! The program `innkeeper`. Everything is in the library.

use std::process::ExitCode;

fn main() -> ExitCode {
    innkeeper::cli::main().into()
}
