//! The network: why packets are dropped.

use serde_json::Value;

use crate::cli::answer::{list, text};
use crate::cli::client::Parameters;
use crate::cli::global::{Global, Output, print};
use crate::cli::names;

/// What to do with the network.
#[derive(Debug, clap::Subcommand)]
pub enum Network {
    /// Say why packets from and to an instance are dropped: which group, ACL or route is in the way
    Trace {
        /// Id or name of an instance
        instance: String,
        /// Say it too of packets that pass
        #[arg(long, short)]
        all: bool,
        /// End after this time; by default go on until interrupted
        #[arg(long, value_name = "SECONDS", value_parser = clap::value_parser!(u64).range(1..))]
        seconds: Option<u64>,
    },
}

/// How long one look takes, in seconds.
const LOOK: u64 = 2;

impl Network {
    /// Does it; returns the exit status.
    pub fn execute(self, global: &Global) -> anyhow::Result<u8> {
        let Self::Trace { instance, all, seconds } = self;
        let client = global.client()?;
        let id = names::instance(&client, &instance)?;
        let mut left = seconds.unwrap_or(u64::MAX);
        while left > 0 {
            let look = left.min(LOOK);
            left -= look;
            let parameters = Parameters::default()
                .with("InstanceId", id.as_str())
                .with("Seconds", look.to_string())
                .with("All", all.to_string());
            let answer = client.call("InnkeeperTracePackets", parameters)?;
            show(global, list(&answer, "packetSet"))?;
        }
        Ok(0)
    }
}

fn show(global: &Global, packets: &[Value]) -> anyhow::Result<()> {
    match global.output {
        Output::Json => packets.iter().try_for_each(|packet| print(&format!("{packet}\n"))),
        Output::Table => {
            packets.iter().try_for_each(|packet| print(&format!("{}\n", text(packet, "description"))))
        }
    }
}
