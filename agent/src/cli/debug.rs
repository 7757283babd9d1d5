//! `innkeeper debug`: for those who want to see inside.

use std::io::{self, BufWriter, Write};

use anyhow::bail;
use clap::{Args, Subcommand};

use super::answer::{list, text};
use super::client::{Client, Parameters};
use super::{ConfigFile, exit_status};
use crate::instances::failpoint::PLACES;
use crate::state::Document;
use crate::store::{StoreError, format, redb};

/// Look inside the daemon.
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

/// Print what the daemon has stored, as lines of JSON.
///
/// Nothing is changed. While the daemon runs, it is asked for what it has.
#[derive(Debug, Args)]
struct State {
    /// Only documents of a kind, such as instance, or a single one, such as instance/i-0123456789abcdef0.
    #[arg(value_name = "KIND[/KEY]")]
    wanted: Option<String>,

    #[command(flatten)]
    config: ConfigFile,

    /// Also print the secrets of access keys and the agent's own; only while the daemon does not run.
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
        let config = self.config.load()?;
        let documents = match redb::read_everything(&config.store()) {
            Err(error) if error.is_in_use() => self.of_daemon(&Client::new(&config, None)?)?,
            stored => self.of_store(stored?)?,
        };
        let mut output = BufWriter::new(io::stdout().lock());
        for document in documents {
            writeln!(output, "{}", serde_json::to_string(&document)?)?;
        }
        output.flush()?;
        Ok(exit_status::SUCCESS)
    }

    fn of_store(&self, stored: Vec<(String, Vec<u8>)>) -> anyhow::Result<Vec<Document>> {
        format::understand(&stored.iter().cloned().collect())?;
        let mut documents = Vec::new();
        for (key, bytes) in stored {
            let failed =
                |cause: serde_json::Error| StoreError { what: format!("read {key}"), cause: cause.into() };
            let document = Document::read(key.clone(), &bytes).map_err(failed)?;
            if self.wanted.as_ref().is_none_or(|wanted| document.is_one_of(wanted)) {
                documents.push(if self.secrets { document } else { document.without_secrets() });
            }
        }
        Ok(documents)
    }

    /// The daemon's records are the newest, and it has the store for itself.
    fn of_daemon(&self, client: &Client) -> anyhow::Result<Vec<Document>> {
        if self.secrets {
            bail!(
                "the daemon runs, and tells nobody what is secret: stop it first (guests go on), or leave \
                 --secrets out"
            );
        }
        let parameters = Parameters::default().with_some("Key", self.wanted.as_deref());
        let answer = client.call("InnkeeperDescribeState", parameters)?;
        let read = |item: &serde_json::Value| -> anyhow::Result<Document> {
            let key = text(item, "key").to_owned();
            let read = || Ok((text(item, "version").parse()?, serde_json::from_str(text(item, "document"))?));
            let (version, document) =
                read().map_err(|error: anyhow::Error| error.context(format!("cannot read {key}")))?;
            Ok(Document { key, version, document })
        };
        list(&answer, "documentSet").iter().map(read).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::client::tests::serve;

    fn state(wanted: Option<&str>, secrets: bool) -> State {
        State { wanted: wanted.map(str::to_owned), config: ConfigFile { config: None }, secrets }
    }

    #[test]
    fn a_daemon_tells_what_its_store_has() {
        let stored = r#"{"version":1,"document":{"id":"vpc-1","size":16}}"#;
        let marked = ("meta/format".to_owned(), br#"{"format":1,"program":"innkeeper"}"#.to_vec());
        let of_store = state(Some("vpc"), false)
            .of_store(vec![marked, ("vpc/vpc-1".to_owned(), stored.as_bytes().to_vec())])
            .unwrap();
        let answer = "<R><documentSet><item><key>vpc/vpc-1</key><version>1</version>\
                      <document>{&quot;id&quot;:&quot;vpc-1&quot;,&quot;size&quot;:16}</document></item></documentSet></R>";
        let (client, server) = serve(vec![(200, answer.into())]);
        assert_eq!(state(Some("vpc"), false).of_daemon(&client).unwrap(), of_store);
        assert!(
            server.join().unwrap()[0].contains("Action=InnkeeperDescribeState&Version=2016-11-15&Key=vpc")
        );
    }

    #[test]
    fn a_daemon_tells_no_secrets() {
        let (client, _) = serve(Vec::new());
        let error = state(None, true).of_daemon(&client).unwrap_err().to_string();
        assert!(error.contains("leave --secrets out"), "{error}");
    }
}
