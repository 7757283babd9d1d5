//! The `innkeeper-vmm` program. Everything is in the library.
//!
//! The C runtime calls [`main`] itself. Rust's own start-up would open `/proc/self/maps`, to know the stack's end, and
//! `/dev/null`, for standard streams that are closed; but `innkeeper-vmm serve` opens nothing, and runs where there
//! is nothing to open.

#![no_main]

use std::ffi::{c_char, c_int};

use tracing_subscriber::EnvFilter;

/// Where the program begins. Returns its exit status.
#[unsafe(no_mangle)]
pub extern "C" fn main(_argc: c_int, _argv: *const *const c_char) -> c_int {
    innkeeper_vmm::cli::prepare_process();
    // A guest that goes on without one of its devices' threads is worse than one that ends.
    let report = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        report(panic);
        std::process::abort();
    }));
    // Quiet unless RUST_LOG says otherwise.
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("warn"));
    // Whoever reads the log may go away: that is no reason to panic.
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .log_internal_errors(false)
        .init();
    innkeeper_vmm::cli::main().into()
}
