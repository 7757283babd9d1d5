//! The options that every command has.

use std::io::Write;
use std::path::PathBuf;

use anyhow::{Context, bail};
use clap::ValueEnum;
use jiff::Timestamp;
use serde_json::Value;

use crate::cli::client::Client;
use crate::cli::output::{self, View};
use crate::config::Config;

/// How a command's answer is printed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum Output {
    /// For people.
    #[default]
    Table,
    /// For programs: an array of EC2's elements with EC2's names; every value is a text.
    Json,
}

/// The options that every command has.
#[derive(Clone, Debug, Default, clap::Args)]
pub struct Global {
    /// The configuration file [default: /etc/innkeeper/innkeeper.toml]
    #[arg(
        long,
        global = true,
        value_name = "FILE",
        env = "INNKEEPER_CONFIG",
        hide_env_values = true,
        help_heading = "Global options"
    )]
    pub config: Option<PathBuf>,
    /// Where the agent answers: http://HOST:PORT [default: as configured]
    #[arg(
        long,
        global = true,
        value_name = "URL",
        env = "INNKEEPER_ENDPOINT_URL",
        hide_env_values = true,
        help_heading = "Global options"
    )]
    pub endpoint_url: Option<String>,
    /// How to print the answer: as a table, or as json for programs
    #[arg(
        long,
        global = true,
        value_enum,
        hide_possible_values = true,
        default_value_t,
        value_name = "FORMAT",
        help_heading = "Global options"
    )]
    pub output: Output,
    /// Print ids only
    #[arg(long, short, global = true, conflicts_with = "output", help_heading = "Global options")]
    pub quiet: bool,
}

impl Global {
    /// What the operator has chosen.
    pub fn configuration(&self) -> anyhow::Result<Config> {
        Ok(Config::load(self.config.as_deref())?)
    }

    /// Somebody to ask the agent.
    pub fn client(&self) -> anyhow::Result<Client> {
        Client::new(&self.configuration()?, self.endpoint_url.as_deref())
    }

    /// Prints resources.
    pub fn show(&self, view: &View, items: &[Value]) -> anyhow::Result<()> {
        if self.quiet {
            return print(&output::ids(view, items));
        }
        match self.output {
            Output::Table => print(&output::table(view, items, Timestamp::now())),
            Output::Json => self.show_json(items),
        }
    }

    /// Prints resources for programs.
    pub fn show_json(&self, items: &[Value]) -> anyhow::Result<()> {
        print(&format!("{}\n", serde_json::to_string_pretty(items)?))
    }

    /// Says which resources something was done to: their ids, or elements with them for programs.
    pub fn done(&self, id: &str, ids: &[String]) -> anyhow::Result<()> {
        if self.output == Output::Table {
            return print(&output::lines(ids.iter().map(String::as_str)));
        }
        let items: Vec<Value> =
            ids.iter().map(|each| Value::from_iter([(id.to_owned(), Value::from(each.as_str()))])).collect();
        self.show_json(&items)
    }
}

/// Prints a text as it is.
pub fn print(text: &str) -> anyhow::Result<()> {
    print_bytes(text.as_bytes())
}

/// Prints bytes as they are.
pub fn print_bytes(bytes: &[u8]) -> anyhow::Result<()> {
    let mut out = std::io::stdout().lock();
    out.write_all(bytes).and_then(|()| out.flush()).context("cannot write to standard output")
}

/// Splits a text such as `KEY=VALUE`; the form, and what it is for, are in the error.
pub fn split(text: &str, what: &str, form: &str) -> anyhow::Result<(String, String)> {
    match text.split_once('=') {
        Some((name, value)) if !name.is_empty() => Ok((name.to_owned(), value.to_owned())),
        _ => bail!("{text:?} is not a {what}: write {form}"),
    }
}
