//! `innkeeper net trace`, as a person uses it who wonders why nobody answers.

use anyhow::{Context, Result, ensure};
use innkeeper_tests::network::Place;

use super::{Lab, SILENCE};

#[test]
fn a_person_is_told_why_a_packet_was_dropped() -> Result<()> {
    let lab = Lab::start()?;
    let id = lab.launch()?;
    lab.guest(&id)?;
    let (public, group) = (lab.address(&id, "ipAddress")?, lab.group(&id)?);
    let host = Place::here()?;
    let said = std::thread::scope(|scope| {
        let trace = scope.spawn(|| lab.agent.command(&["net", "trace", &id, "--seconds", "4"]));
        while !trace.is_finished() {
            host.connect(public, 8080, SILENCE)?;
        }
        trace.join().expect("the command does not panic")
    })?;
    let line = said.lines().find(|line| line.contains(&format!("{public}:8080"))).context(said.clone())?;
    ensure!(line.starts_with("tcp ") && line.contains("dropped, no inbound rule of eni-"), "{line}");
    ensure!(line.contains(&group), "{line}");
    lab.end("TerminateInstances", &[id], "terminated")
}
