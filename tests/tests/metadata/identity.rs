//! An instance proves which one it is, to somebody who has the agent's certificates and `docs/identity.md`.

use std::fs;
use std::path::Path;
use std::process::{Command, Output};

use anyhow::{Context, Result, ensure};
use innkeeper_tests::stand_in::Lab;

/// The commands of the document, by what they verify.
fn commands(kind: &str) -> Result<&'static str> {
    let text = include_str!("../../../docs/identity.md");
    let section = text.split(&format!("\n### {kind}\n")).nth(1).context("a section")?;
    section.split("```sh\n").nth(1).and_then(|rest| rest.split("```").next()).context("commands")
}

fn run(directory: &Path, commands: &str) -> Result<Output> {
    Command::new("bash").args(["-euc", commands]).current_dir(directory).output().context("cannot run bash")
}

#[test]
fn a_document_is_the_agents_and_this_instances() -> Result<()> {
    let lab = Lab::start()?;
    let ids = [lab.launch()?, lab.launch()?];
    let guest = lab.guest(&ids[0])?;
    let directory = tempfile::tempdir()?;
    let fetch = |name: &str| {
        guest.run(&format!("curl -sS --fail http://169.254.169.254/latest/dynamic/instance-identity/{name}"))
    };
    let document = fetch("document")?;
    ensure!(document.contains(&format!("\"instanceId\" : \"{}\"", ids[0])), "{document}");
    for kind in ["signature", "pkcs7", "rsa2048"] {
        let write = |name: &str, text: &str| fs::write(directory.path().join(name), text);
        write(kind, &fetch(kind)?)?;
        write("certificate", &lab.agent.command(&["identity", "certificate", "--kind", kind])?)?;
        write("document", &document)?;
        let output = run(directory.path(), commands(kind)?)?;
        ensure!(output.status.success(), "{kind}: {}", String::from_utf8_lossy(&output.stderr));
        write("document", &document.replace(&ids[0], &ids[1]))?;
        ensure!(!run(directory.path(), commands(kind)?)?.status.success(), "{kind} is of any document");
    }
    lab.end("TerminateInstances", &ids, "terminated")
}
