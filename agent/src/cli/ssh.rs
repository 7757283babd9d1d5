//! Logging in to instances.

use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, bail};
use serde_json::Value;

use crate::cli::answer::text;
use crate::cli::client::Parameters;
use crate::cli::global::Global;
use crate::cli::names;

/// Logs in to an instance with ssh, by its public address.
///
/// Its security groups have to let the host in at port 22. The exit status is ssh's.
#[derive(Debug, clap::Args)]
pub struct Ssh {
    /// Id or name of an instance
    instance: String,
    /// Who to be there; by default whom the image's name tells: admin for Debian, ubuntu for Ubuntu, else ec2-user
    #[arg(long, short, value_name = "USER")]
    login: Option<String>,
    /// The private key; by default NAME.pem of the instance's key pair, here or in ~/.ssh, if it is there
    #[arg(long, short, value_name = "FILE")]
    identity: Option<PathBuf>,
    /// The port
    #[arg(long, short, default_value_t = 22)]
    port: u16,
    /// A command to run there, after --
    #[arg(last = true)]
    command: Vec<String>,
}

impl Ssh {
    /// Becomes ssh.
    pub fn execute(self, global: &Global) -> anyhow::Result<u8> {
        let client = global.client()?;
        let id = names::instance(&client, &self.instance)?;
        let found = client.instances(Parameters::default().with("InstanceId.1", id.as_str()))?;
        let instance = found.first().with_context(|| format!("there is no {id}"))?;
        let state = text(instance, "instanceState.name");
        if state != "running" {
            bail!(
                "{id} is {state}, and nobody can log in: `innkeeper start {id} --wait` starts one that is stopped"
            );
        }
        let address = text(instance, "ipAddress");
        if address.is_empty() {
            bail!(
                "{id} has no public address. Allocate an elastic address and associate it, or launch in a subnet that \
                 gives one"
            );
        }
        let login = match &self.login {
            Some(login) => login.clone(),
            None => {
                let images = Parameters::default().with("ImageId.1", text(instance, "imageId"));
                let images = client.describe("DescribeImages", images, "imagesSet")?;
                login_of(images.first().map_or("", |image| text(image, "name"))).to_owned()
            }
        };
        let key = self.identity.clone().or_else(|| key_file(instance));
        let error = self.command(address, &login, key).exec();
        Err(error).context("cannot run ssh (the package openssh-client has it)")
    }

    fn command(&self, address: &str, login: &str, key: Option<PathBuf>) -> Command {
        let mut ssh = Command::new("ssh");
        // An address is another instance's tomorrow: a host key that is remembered by address would be in the way.
        ssh.args([
            "-o",
            "StrictHostKeyChecking=no",
            "-o",
            "UserKnownHostsFile=/dev/null",
            "-o",
            "LogLevel=ERROR",
        ]);
        ssh.arg("-p").arg(self.port.to_string());
        if let Some(key) = key {
            ssh.arg("-i").arg(key);
        }
        ssh.arg(format!("{login}@{address}"));
        if !self.command.is_empty() {
            ssh.arg("--").args(&self.command);
        }
        ssh
    }
}

/// Whom the distributions' own images let in.
fn login_of(image: &str) -> &'static str {
    let name = image.to_lowercase();
    for (part, login) in [("debian", "admin"), ("ubuntu", "ubuntu"), ("fedora", "fedora"), ("micro", "root")]
    {
        if name.contains(part) {
            return login;
        }
    }
    "ec2-user"
}

/// The file in which the private key of an instance's key pair may be.
fn key_file(instance: &Value) -> Option<PathBuf> {
    let name = text(instance, "keyName");
    if name.is_empty() || name.contains('/') {
        return None;
    }
    let file = format!("{name}.pem");
    let at_home = std::env::var_os("HOME").map(|home| PathBuf::from(home).join(".ssh").join(&file));
    [Some(PathBuf::from(&file)), at_home].into_iter().flatten().find(|path| path.is_file())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_image_tells_who_logs_in() {
        for (image, login) in [
            ("debian-12-amd64", "admin"),
            ("Ubuntu 24.04", "ubuntu"),
            ("al2023-ami", "ec2-user"),
            ("micro", "root"),
            ("", "ec2-user"),
        ] {
            assert_eq!(login_of(image), login, "{image}");
        }
    }

    #[test]
    fn ssh_is_told_what_was_asked_for() {
        let ssh = Ssh {
            instance: "web".into(),
            login: None,
            identity: None,
            port: 2222,
            command: vec!["uptime".into(), "-p".into()],
        };
        let command = ssh.command("198.19.0.7", "admin", Some("me.pem".into()));
        let words: Vec<_> = command.get_args().map(|word| word.to_string_lossy().into_owned()).collect();
        assert_eq!(
            words.split_at(6).1,
            ["-p", "2222", "-i", "me.pem", "admin@198.19.0.7", "--", "uptime", "-p"]
        );
    }
}
