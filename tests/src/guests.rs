//! Real guests of a daemon: what they say on their consoles, and what somebody sees who has logged in.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Result, bail, ensure};

use crate::agent::Agent;
use crate::path;

const PATIENCE: Duration = Duration::from_secs(180);

impl Agent {
    /// Waits until a console has this.
    pub fn wait_for_console(&self, id: &str, text: &str) -> Result<()> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let console = self.client()?.console(id)?;
            if console.contains(text) {
                return Ok(());
            }
            ensure!(Instant::now() < deadline, "{id} does not say {text:?}: {console}{}", self.last_words());
            std::thread::sleep(Duration::from_millis(100));
        }
    }

    /// Logs in with a key and runs a command, once a boot other than this one has come so far; returns the boot, and the
    /// lines that the command has printed.
    pub fn run_in_guest(
        &self,
        id: &str,
        key: &Path,
        before: &str,
        command: &str,
    ) -> Result<(String, Vec<String>)> {
        let script = format!("cat /proc/sys/kernel/random/boot_id; {command}");
        let deadline = Instant::now() + PATIENCE;
        loop {
            let output = self.try_command(&["ssh", id, "--identity", path(key), "--", &script])?;
            let text = String::from_utf8(output.stdout)?;
            let mut lines = text.lines().map(str::to_owned);
            if let (true, Some(boot)) = (output.status.success(), lines.next())
                && boot != before
            {
                return Ok((boot, lines.collect()));
            }
            if Instant::now() > deadline {
                let errors = String::from_utf8_lossy(&output.stderr);
                bail!("nobody can log in: {errors}; {}{}", self.client()?.console(id)?, self.last_words());
            }
            std::thread::sleep(Duration::from_millis(200));
        }
    }
}
