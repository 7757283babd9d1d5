//! A program in a guest that has no keys of its own, and an instance profile: the real boto3.

use std::fs;

use anyhow::{Result, ensure};
use innkeeper_tests::agent::{REGION, client_program};
use innkeeper_tests::path;
use innkeeper_tests::stand_in::{Guest, Lab};

/// What boto3 prints in a guest, which knows no more than where EC2 is, by name.
fn boto3(guest: &Guest, id: &str) -> Result<String> {
    let directory = tempfile::tempdir()?;
    let resolver = directory.path().join("resolv.conf");
    fs::write(&resolver, "nameserver 169.254.169.253\n")?;
    let python = client_program("python3")?;
    let program = concat!(env!("CARGO_MANIFEST_DIR"), "/clients/role.py");
    let line = format!(
        "mount --make-rprivate / && mount --bind {} /etc/resolv.conf && exec env -i HOME={} AWS_REGION={REGION} \
         AWS_DEFAULT_REGION={REGION} AWS_ENDPOINT_URL=http://ec2.{REGION}.innkeeper.internal {} {program} {id}",
        path(&resolver),
        path(directory.path()),
        path(&python)
    );
    let output = guest.output(&["unshare", "--mount", "sh", "-c", &line])?;
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    ensure!(output.status.success(), "{said}{}", String::from_utf8_lossy(&output.stderr));
    Ok(said)
}

#[test]
fn boto3_without_keys_does_what_the_role_may() -> Result<()> {
    let lab = Lab::start()?;
    lab.agent.make_role("watcher", "ec2:Describe*")?;
    lab.agent.make_role("keeper", "ec2:*")?;
    let id = lab.launch_with(&[("IamInstanceProfile.Name", "watcher")])?;
    let guest = lab.guest(&id)?;
    let account = "000000000000";
    let said = boto3(&guest, &id)?;
    let expected = format!(
        "credentials: iam-role\ndescribed: {id}\nrefused: UnauthorizedOperation\nrefused: UnauthorizedOperation\n\
         is: arn:aws:sts::{account}:assumed-role/watcher/{id}\n"
    );
    ensure!(said == expected, "{said}");

    // Another role, while it runs: the next program has it.
    let association = lab.one("DescribeIamInstanceProfileAssociations", &[], "associationId")?;
    let replace = [("AssociationId", association.as_str()), ("IamInstanceProfile.Name", "keeper")];
    lab.client.ask("ReplaceIamInstanceProfileAssociation", &replace)?;
    let other = lab.launch()?;
    let said = boto3(&guest, &other)?;
    ensure!(said.contains("refused: DryRunOperation\nstopped\n"), "{said}");
    ensure!(said.ends_with(&format!("is: arn:aws:sts::{account}:assumed-role/keeper/{id}\n")), "{said}");
    lab.client.wait_for(std::slice::from_ref(&other), "stopped", super::PATIENCE)?;

    // Without a profile there are no credentials.
    let association = lab.one("DescribeIamInstanceProfileAssociations", &[], "associationId")?;
    lab.client.ask("DisassociateIamInstanceProfile", &[("AssociationId", &association)])?;
    let said = boto3(&guest, &id).err().map(|error| error.to_string()).unwrap_or_default();
    ensure!(said.starts_with("credentials: None\n") && said.contains("NoCredentialsError"), "{said}");
    lab.end("TerminateInstances", &[id, other], "terminated")
}
