//! `innkeeper run`, then `innkeeper ssh`, with nothing configured: the guest runs a real server.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::process::{Child, Stdio};

use anyhow::{Context, Result, ensure};
use innkeeper_tests::agent::TINY;
use innkeeper_tests::path;
use innkeeper_tests::stand_in::Guest;

use super::{Lab, eventually};

/// A server in a guest, which lets in whoever has the key. When it is dropped, it ends.
struct Server(Child);

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Server {
    /// `home` becomes the home of root, for the server alone.
    fn start(guest: &Guest, home: &std::path::Path, public_key: &str) -> Result<Self> {
        fs::create_dir(home.join(".ssh"))?;
        fs::write(home.join(".ssh/authorized_keys"), format!("{public_key}\n"))?;
        for (file, mode) in [("", 0o700), (".ssh", 0o700), (".ssh/authorized_keys", 0o600)] {
            fs::set_permissions(home.join(file), fs::Permissions::from_mode(mode))?;
        }
        let key = home.join("host-key");
        guest.run(&format!("dropbearkey -t ed25519 -f {} 2>/dev/null >&2", path(&key)))?;
        let home = path(home);
        let serve = format!(
            "mount --make-rprivate / && mount --bind {home} /root && exec dropbear -F -E -s -p 22 -P '' -r /root/host-key"
        );
        let mut server = guest.command("unshare");
        server.args(["--mount", "sh", "-c", &serve]).stdin(Stdio::null()).stderr(Stdio::null());
        Ok(Self(server.spawn().context("cannot run unshare")?))
    }
}

#[test]
fn a_person_launches_and_logs_in() -> Result<()> {
    let lab = Lab::start()?;
    let directory = tempfile::tempdir()?;
    let private = directory.path().join("mine.pem");
    lab.agent.command(&["key", "create", "mine", "--file", path(&private)])?;
    let run = ["run", "stand-in", "--type", TINY, "--name", "web", "--key", "mine", "--wait", "--quiet"];
    let id = lab.agent.command(&run)?;
    let guest = lab.guest(&id)?;
    let described = [("IncludePublicKey", "true")];
    let public = lab.one("DescribeKeyPairs", &described, "publicKey")?;
    let _server = Server::start(&guest, directory.path(), &public)?;
    let log_in = |command: &str| {
        let line = ["ssh", "web", "--login", "root", "--identity", path(&private), "--", command];
        lab.agent.try_command(&line)
    };
    eventually("one can log in", || Ok(log_in("true")?.status.success()))?;
    // The guest, and not the host, is where one is.
    let there = String::from_utf8(log_in("ip -o link show eth0")?.stdout)?;
    ensure!(there.contains("eth0"), "{there}");
    ensure!(log_in("exit 7")?.status.code() == Some(7));
    // Only from the host, and only there.
    let rules = lab.client.ask("DescribeSecurityGroupRules", &[])?;
    ensure!(rules.contains("/32</cidrIpv4>"), "{rules}");
    let again = lab.agent.command(&run)?;
    let groups = lab.client.ask("DescribeSecurityGroups", &[("GroupName.1", "innkeeper-login")])?;
    ensure!(groups.matches("<groupId>").count() == 1, "{groups}");
    lab.end("TerminateInstances", &[id, again], "terminated")
}
