//! The metadata service, asked by guests that have Linux's network stack: `stand-in-vmm` moves their frames.
//!
//! [`wire`] is how they ask, byte by byte; [`expected`] is what they are to be told, and [`inn`] one that has a lot to ask
//! about.

mod clients;
mod conformance;
mod connections;
mod expected;
mod identity;
mod inn;
mod isolation;
mod limits;
mod live;
mod roles;
mod wire;

use anyhow::{Result, ensure};
use innkeeper_tests::stand_in::{Lab, PATIENCE};

#[test]
fn an_instance_learns_who_it_is() -> Result<()> {
    let lab = Lab::start()?;
    let ids = [lab.launch()?, lab.launch()?];
    for id in &ids {
        let guest = lab.guest(id)?;
        let told = guest.run("curl -sS --fail http://169.254.169.254/latest/meta-data/instance-id")?;
        ensure!(told == *id, "{told} and not {id}");
    }
    lab.end("TerminateInstances", &ids, "terminated")
}
