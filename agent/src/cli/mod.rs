//! What people type: one file for each subcommand, or for each kind of resource.
//!
//! [`serve`], [`credentials`], [`check`] and [`debug`] are for whoever runs the daemon. The commands in [`people`] are
//! clients of its EC2 API, as `aws` is: [`client`] asks, [`answer`] reads the XML, [`names`] finds what is meant,
//! [`wait`] waits, and [`output`] makes the tables.

mod answer;
mod check;
mod client;
mod completions;
mod console;
mod credentials;
mod debug;
mod events;
mod firewall;
mod global;
mod groups;
mod identity;
mod images;
mod instances;
mod keys;
mod maintenance;
mod names;
mod network;
mod output;
mod people;
mod run;
mod serve;
mod snapshots;
mod ssh;
mod tags;
mod types;
mod volumes;
mod wait;

use std::io::{self, Write};
use std::path::PathBuf;

use clap::{Args, CommandFactory, Parser, Subcommand};

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
#[command(
    name = "innkeeper",
    version,
    arg_required_else_help = true,
    after_help = people::EXAMPLES
)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    #[command(flatten)]
    People(Box<people::Command>),
    Serve(serve::Serve),
    Credentials(credentials::Credentials),
    Check(check::Check),
    Debug(debug::Debug),
}

/// Where the configuration is.
#[derive(Debug, Args)]
struct ConfigFile {
    /// The configuration file [default: /etc/innkeeper/innkeeper.toml, if it is there].
    #[arg(long, value_name = "FILE", env = "INNKEEPER_CONFIG", hide_env_values = true)]
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
        Command::People(command) => command.execute(Arguments::command()),
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
    use super::*;

    #[test]
    fn the_commands_are_well_formed() {
        Arguments::command().debug_assert();
    }

    /// The widest help that does not break in a common terminal.
    const WIDEST: usize = 120;

    fn check_help(command: &mut clap::Command) {
        let help = command.render_long_help().to_string();
        for line in help.lines() {
            assert!(line.chars().count() <= WIDEST, "{}: {line}", command.get_name());
        }
        command.get_subcommands_mut().for_each(check_help);
    }

    #[test]
    fn help_is_not_wider_than_a_terminal() {
        let mut root = Arguments::command();
        root.build();
        check_help(&mut root);
    }

    #[test]
    fn the_examples_are_commands() {
        for line in people::EXAMPLES.lines().filter_map(|line| line.strip_prefix("  ")) {
            for part in line.split(" | xargs ") {
                let names = part.starts_with("innkeeper terminate").then_some("web");
                let parsed = Arguments::try_parse_from(part.split(' ').chain(names));
                assert!(parsed.is_ok(), "{part}: {parsed:?}");
            }
        }
    }

    #[test]
    fn wrong_usage_is_refused_before_anything_is_asked() {
        for line in [
            "innkeeper stop",
            "innkeeper run",
            "innkeeper run micro --count 0",
            "innkeeper ps --output xml",
            "innkeeper ps --quiet --output json",
            "innkeeper stop web --timeout 5",
            "innkeeper tag i-1",
            "innkeeper completions dos",
            "innkeeper volume modify data",
            "innkeeper volume check",
            "innkeeper snapshot create",
            "innkeeper image create web",
        ] {
            let error = Arguments::try_parse_from(line.split(' ')).unwrap_err();
            assert_eq!(error.exit_code(), 2, "{line}");
        }
    }
}
