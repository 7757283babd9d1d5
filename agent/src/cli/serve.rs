//! `innkeeper serve`.

use std::time::Duration;

use anyhow::Context;
use clap::Args;

use super::{ConfigFile, exit_status};
use crate::serve;

/// How long work that cannot be interrupted may hold up the end. It is done again by the next agent.
const PATIENCE: Duration = Duration::from_secs(5);

/// Run the daemon, which is EC2's API and all that happens to instances.
///
/// SIGTERM and SIGINT end it; guests go on, and the next daemon takes them over. RUST_LOG says how much is logged.
#[derive(Debug, Args)]
pub struct Serve {
    #[command(flatten)]
    config: ConfigFile,
}

impl Serve {
    pub fn execute(self) -> anyhow::Result<u8> {
        let config = self.config.load()?;
        serve::log::begin();
        let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build();
        let runtime = runtime.context("cannot start threads")?;
        let outcome = runtime.block_on(serve::run(config));
        runtime.shutdown_timeout(PATIENCE);
        outcome.map(|()| exit_status::SUCCESS)
    }
}
