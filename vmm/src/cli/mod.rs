//! The command line: `innkeeper-vmm run`, `serve`, `control` and `check`.

mod control;
mod controller;
mod local;
mod options;
mod run;
mod serve;
mod terminal;

use std::io::Write;
use std::os::fd::{IntoRawFd, RawFd};

use clap::{Parser, Subcommand};
use innkeeper_protocol::Ending;

use crate::check;

/// Exit statuses. Usage errors are 2, which is clap's.
mod exit_status {
    /// The guest switched itself off, or the host is ready.
    pub const SUCCESS: u8 = 0;
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
    /// Run a guest for a controller, which drives it over a socket and passes all that it needs as descriptors.
    ///
    /// Opens no file. The protocol is described in the package innkeeper-protocol. Exit status: as for run. SIGTERM
    /// ends the guest like a power cut; a controller has better ways.
    Serve(serve::Serve),
    /// Say one thing to a VMM that runs, and print its answer as JSON.
    ///
    /// innkeeper-vmm control /run/vm status
    ///
    /// innkeeper-vmm control /run/vm '{"attach-disk":{"id":"data","source":{"raw":{"file":0}}}}' data.raw
    ///
    /// innkeeper-vmm control /run/vm '{"detach":{"id":"data"}}'
    ///
    /// innkeeper-vmm control /run/vm '{"events":{"after":0}}'
    #[command(verbatim_doc_comment)]
    Control(control::Control),
    /// Say whether this host can run guests.
    ///
    /// Exit status: 0 ready; 10 there is a KVM, but it cannot run unmodified kernels; 11 there is no KVM.
    Check,
}

/// Does what a program's start-up has to do, without opening anything.
pub fn prepare_process() {
    const STANDARD_STREAMS: std::ops::Range<RawFd> = 0..3;
    // SAFETY: sets how a signal is dealt with, before there is a second thread. A reader that is gone shall be an
    // error, not the end.
    unsafe { libc::signal(libc::SIGPIPE, libc::SIG_IGN) };
    for stream in STANDARD_STREAMS {
        // SAFETY: only looked at.
        let is_closed = unsafe { libc::fcntl(stream, libc::F_GETFD) } < 0;
        // Or else the next descriptor would take its place, and logs would go there. An eventfd takes nothing but
        // eight bytes, and gives nothing; being the lowest that is free, this one takes the stream's number.
        if is_closed && let Ok(event) = crate::event::new() {
            let _ = event.into_raw_fd();
        }
    }
}

/// Runs the program; returns its exit status.
pub fn main() -> u8 {
    let arguments = Arguments::parse();
    let outcome = match arguments.command {
        Command::Run(run) => run.execute(),
        Command::Serve(serve) => serve.execute(),
        Command::Control(control) => control.execute(),
        Command::Check => Ok(report(check::check())),
    };
    outcome.unwrap_or_else(|error| {
        // One line: the causes behind one another.
        complain(&format!("{error:#}"));
        exit_status::ERROR
    })
}

/// Says why the program ends, if there is still somebody to hear it.
fn complain(why: &str) {
    let _ = writeln!(std::io::stderr(), "innkeeper-vmm: {why}");
}

/// The exit status for how a guest ended; a failure's reason goes to standard error.
fn ending_status(ending: &Ending) -> u8 {
    match ending {
        Ending::PowerOff => exit_status::SUCCESS,
        Ending::Stopped => exit_status::STOPPED,
        Ending::Failed { reason } => {
            complain(reason);
            exit_status::FAILED
        }
    }
}

fn report(readiness: check::Readiness) -> u8 {
    // Whoever asks may look at the exit status alone.
    let _ = writeln!(std::io::stdout(), "{readiness}");
    match readiness {
        check::Readiness::Ready => exit_status::SUCCESS,
        check::Readiness::NoHardwareSupport { .. } => exit_status::NO_HARDWARE_SUPPORT,
        check::Readiness::NoKvm { .. } => exit_status::NO_KVM,
    }
}
