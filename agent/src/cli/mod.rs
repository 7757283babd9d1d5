//! What people type: one file for each subcommand.

mod check;
mod credentials;
mod debug;
mod serve;

use std::io::{self, Write};
use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};

use crate::config::{Config, ConfigError};

/// Exit statuses. Usage errors are 2, which is clap's.
mod exit_status {
    /// It was done.
    pub const SUCCESS: u8 = 0;
    /// It could not be done.
    pub const ERROR: u8 = 1;
}

/// EC2 on this host.
#[derive(Debug, Parser)]
#[command(name = "innkeeper", version, max_term_width = 100, arg_required_else_help = true)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    Serve(serve::Serve),
    Credentials(credentials::Credentials),
    Check(check::Check),
    Debug(debug::Debug),
}

/// Where the configuration is.
#[derive(Debug, Args)]
struct ConfigFile {
    /// The configuration [default: /etc/innkeeper/innkeeper.toml, if it is there].
    #[arg(long, value_name = "FILE", env = "INNKEEPER_CONFIG")]
    config: Option<PathBuf>,
}

impl ConfigFile {
    fn load(&self) -> Result<Config, ConfigError> {
        Config::load(self.config.as_deref())
    }
}

/// Runs the program; returns its exit status.
pub fn main() -> u8 {
    let outcome = match Arguments::parse().command {
        Command::Serve(serve) => serve.execute(),
        Command::Credentials(credentials) => credentials.execute(),
        Command::Check(check) => check.execute(),
        Command::Debug(debug) => debug.execute(),
    };
    match outcome {
        Ok(status) => status,
        // Whoever read our output has seen enough.
        Err(error) if is_broken_pipe(&error) => exit_status::SUCCESS,
        Err(error) => {
            // One line, the causes behind one another; and perhaps nobody is there to read it.
            let _ = writeln!(io::stderr(), "innkeeper: {error:#}");
            exit_status::ERROR
        }
    }
}

fn is_broken_pipe(error: &anyhow::Error) -> bool {
    error.downcast_ref::<io::Error>().is_some_and(|error| error.kind() == io::ErrorKind::BrokenPipe)
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_commands_are_well_formed() {
        Arguments::command().debug_assert();
    }
}
