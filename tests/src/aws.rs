//! The commands of EC2's documentation, one after the other, as a person types them.

use std::time::{Duration, Instant};

use anyhow::{Result, bail, ensure};

use crate::agent::{Agent, Template};
use crate::path;

const PATIENCE: Duration = Duration::from_secs(180);

/// The life of two instances, by the real `aws`. Their VMMs come and go with them.
pub fn life(agent: &Agent, image: &str, template: &Template) -> Result<()> {
    let directory = tempfile::tempdir()?;
    let script = directory.path().join("my_script.sh");
    std::fs::write(&script, "#!/bin/sh\necho hello\n")?;
    let key = ec2(agent, "create-key-pair --key-name MyKeyPair --key-type ed25519 --query KeyMaterial")?;
    ensure!(key.starts_with("-----BEGIN OPENSSH PRIVATE KEY-----"), "not a private key: {key}");
    let launched = ec2(
        agent,
        &format!(
            "run-instances --image-id {image} --count 2 --instance-type t3.nano --key-name MyKeyPair --user-data \
             file://{} --tag-specifications ResourceType=instance,Tags=[{{Key=webserver,Value=production}}] \
             ResourceType=volume,Tags=[{{Key=cost-center,Value=cc123}}] --query Instances[].InstanceId",
            path(&script)
        ),
    )?;
    let ids: Vec<&str> = launched.split_whitespace().collect();
    let [first, second] = ids[..] else { bail!("not two instances: {launched}") };
    ec2(agent, &format!("wait instance-running --instance-ids {first} {second}"))?;
    agent.wait_for_vmms(2)?;
    ec2(agent, &format!("wait instance-status-ok --instance-ids {first} {second}"))?;
    let found = ec2(
        agent,
        "describe-instances --filters Name=tag:webserver,Values=prod* Name=instance-state-name,Values=running \
         --query Reservations[].Instances[].[InstanceId,AmiLaunchIndex,KeyName,InstanceType]",
    )?;
    for (id, index) in [(first, 0), (second, 1)] {
        ensure!(found.contains(&format!("{id}\t{index}\tMyKeyPair\tt3.nano")), "{id} is not in {found}");
    }
    wait_for_banners(agent, first, template.banner, 1)?;

    ec2(agent, &format!("reboot-instances --instance-ids {first}"))?;
    wait_for_banners(agent, first, template.banner, 2)?;

    let stopping = "StoppingInstances[].CurrentState.Name";
    let state = ec2(agent, &format!("stop-instances --instance-ids {first} --query {stopping}"))?;
    ensure!(state == "stopping", "stop-instances says {state}");
    ec2(agent, &format!("wait instance-stopped --instance-ids {first}"))?;
    agent.wait_for_vmms(1)?;
    // The braces are one argument.
    let value = r#"{"Value":"t3.micro"}"#;
    ec2(agent, &format!("modify-instance-attribute --instance-id {first} --instance-type {value}"))?;
    ec2(agent, &format!("start-instances --instance-ids {first}"))?;
    ec2(agent, &format!("wait instance-running --instance-ids {first}"))?;
    let chosen = "Reservations[].Instances[].[InstanceType,State.Name]";
    let now = ec2(agent, &format!("describe-instances --instance-ids {first} --query {chosen}"))?;
    ensure!(now == "t3.micro\trunning", "the instance is {now}");
    wait_for_banners(agent, first, template.banner, 1)?;

    ec2(agent, &format!("terminate-instances --instance-ids {first} {second}"))?;
    ec2(agent, &format!("wait instance-terminated --instance-ids {first} {second}"))?;
    agent.wait_for_vmms(0)?;
    let volumes = ec2(agent, "describe-volumes --query Volumes[].VolumeId")?;
    ensure!(volumes.is_empty(), "volumes are left: {volumes}");
    ec2(agent, "delete-key-pair --key-name MyKeyPair")?;
    Ok(())
}

/// `aws ec2` with these words, of which none has a space. The answer comes as text.
pub fn ec2(agent: &Agent, words: &str) -> Result<String> {
    let arguments: Vec<&str> = ["ec2", "--output", "text"].into_iter().chain(words.split(' ')).collect();
    agent.aws(&arguments)
}

/// Waits until the guest has said so often that it is up.
fn wait_for_banners(agent: &Agent, instance: &str, banner: &str, count: usize) -> Result<()> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let console =
            ec2(agent, &format!("get-console-output --instance-id {instance} --latest --query Output"))?;
        if console.matches(banner).count() >= count {
            return Ok(());
        }
        ensure!(Instant::now() < deadline, "{banner:?} is not there {count} times: {console}");
        std::thread::sleep(Duration::from_millis(100));
    }
}
