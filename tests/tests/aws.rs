//! The real daemon and the real clients, with real guests: the `micro` image. For a host with hardware KVM, or the lab.

use anyhow::Result;
use innkeeper_tests::agent::Agent;
use innkeeper_tests::aws;

#[test]
fn the_documented_commands_do_what_they_say() -> Result<()> {
    let agent = Agent::start("")?;
    let template = agent.micro()?;
    let image = agent.register("micro", &template)?;
    aws::life(&agent, &image, &template)
}

#[test]
fn instances_live_in_boto3s_resources() -> Result<()> {
    let agent = Agent::start("")?;
    let template = agent.micro()?;
    let image = agent.register("micro", &template)?;
    agent.run_suite("life", &image, &template)?;
    agent.wait_for_vmms(0)
}
