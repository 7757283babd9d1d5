//! `innkeeper debug`: for those who want to see inside.

use std::io::{self, BufWriter, Write};

use anyhow::bail;
use clap::{Args, Subcommand};

use super::{ConfigFile, exit_status};
use crate::instances::failpoint::PLACES;
use crate::state::Document;
use crate::store::{StoreError, format, redb};

/// Look inside.
#[derive(Debug, Args)]
pub struct Debug {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    State(State),
    /// Print the places at which INNKEEPER_FAILPOINT can let the daemon die.
    Failpoints,
}

/// Print what the daemon has stored, as lines of JSON, while it does not run.
///
/// Nothing is changed. While the daemon runs, its API has the same: the action InnkeeperDescribeState.
#[derive(Debug, Args)]
struct State {
    /// Only documents of a kind, such as instance, or a single one, such as instance/i-0123456789abcdef0.
    #[arg(value_name = "KIND[/KEY]")]
    wanted: Option<String>,

    #[command(flatten)]
    config: ConfigFile,

    /// Also print the secrets of access keys.
    #[arg(long)]
    secrets: bool,
}

impl Debug {
    pub fn execute(self) -> anyhow::Result<u8> {
        match self.command {
            Command::State(state) => state.execute(),
            Command::Failpoints => {
                for place in PLACES {
                    writeln!(io::stdout(), "{place}")?;
                }
                Ok(exit_status::SUCCESS)
            }
        }
    }
}

impl State {
    fn execute(self) -> anyhow::Result<u8> {
        let store = self.config.load()?.store();
        let stored = match redb::read_everything(&store) {
            Err(error) if error.is_in_use() => bail!(
                "{} is in use by the innkeeper serve that runs: stop it first (guests go on), or ask its API with the \
                 action InnkeeperDescribeState",
                store.display()
            ),
            other => other?,
        };
        format::understand(&stored.iter().cloned().collect())?;
        let mut output = BufWriter::new(io::stdout().lock());
        for (key, bytes) in stored {
            let failed =
                |cause: serde_json::Error| StoreError { what: format!("read {key}"), cause: cause.into() };
            let document = Document::read(key.clone(), &bytes).map_err(failed)?;
            if self.wanted.as_ref().is_some_and(|wanted| !document.is_one_of(wanted)) {
                continue;
            }
            let document = if self.secrets { document } else { document.without_secrets() };
            writeln!(output, "{}", serde_json::to_string(&document)?)?;
        }
        output.flush()?;
        Ok(exit_status::SUCCESS)
    }
}
