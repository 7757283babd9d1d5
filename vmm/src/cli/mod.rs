//! The command line: `innkeeper-vmm run` and `innkeeper-vmm check`.

mod options;
mod run;
mod terminal;

use std::io::Write;
use std::process::ExitCode;

use clap::{Parser, Subcommand};

use crate::check;

/// Exit statuses. Usage errors are 2, which is clap's.
mod exit_status {
    /// The VMM could not do what it was asked to.
    pub const ERROR: u8 = 1;
    /// The guest was switched off hard.
    pub const STOPPED: u8 = 3;
    /// The guest could not go on.
    pub const FAILED: u8 = 4;
    /// `check`: KVM is there, but cannot run an unmodified kernel.
    pub const NO_HARDWARE_SUPPORT: u8 = 10;
    /// `check`: there is no KVM.
    pub const NO_KVM: u8 = 11;
}

/// A KVM virtual machine monitor: one process, one guest.
#[derive(Debug, Parser)]
#[command(name = "innkeeper-vmm", version, max_term_width = 100)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Boot a guest and stay with it until it ends.
    ///
    /// Exit status: 0 the guest switched itself off; 1 it could not be started; 2 wrong usage; 3 it was
    /// switched off hard (second SIGTERM, timeout, or Ctrl-A x); 4 it could not go on.
    ///
    /// SIGTERM, SIGINT and SIGHUP press the power button. RUST_LOG=debug shows what happens inside.
    Run(Box<run::Run>),
    /// Say whether this host can run guests.
    ///
    /// Exit status: 0 ready; 10 there is a KVM, but it cannot run unmodified kernels; 11 there is no KVM.
    Check,
}

/// Runs the program.
pub fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let outcome = match arguments.command {
        Command::Run(run) => run.execute(),
        Command::Check => Ok(report(check::check())),
    };
    outcome.unwrap_or_else(|error| {
        // One line: the causes behind one another.
        complain(&format!("{error:#}"));
        ExitCode::from(exit_status::ERROR)
    })
}

/// Says why the program ends, if there is still somebody to hear it.
fn complain(why: &str) {
    let _ = writeln!(std::io::stderr(), "innkeeper-vmm: {why}");
}

fn report(readiness: check::Readiness) -> ExitCode {
    // Whoever asks may look at the exit status alone.
    let _ = writeln!(std::io::stdout(), "{readiness}");
    match readiness {
        check::Readiness::Ready => ExitCode::SUCCESS,
        check::Readiness::NoHardwareSupport { .. } => ExitCode::from(exit_status::NO_HARDWARE_SUPPORT),
        check::Readiness::NoKvm { .. } => ExitCode::from(exit_status::NO_KVM),
    }
}
