//! `innkeeper check`.

use std::fmt;
use std::fs;
use std::io::{self, Write};
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::process::Command;

use clap::Args;
use nix::sys::statvfs::statvfs;
use nix::unistd::{AccessFlags, access};

use super::firewall::{self, Barrier};
use super::{ConfigFile, exit_status};
use crate::config::Config;

/// Say whether this host can be an innkeeper, and what to do if not.
///
/// Exit status: 0 if it can, 1 if something is missing.
#[derive(Debug, Args)]
pub struct Check {
    #[command(flatten)]
    config: ConfigFile,
}

/// How good something is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Verdict {
    Good,
    /// It works, but not for long.
    Scarce,
    /// It does not work.
    Bad,
}

/// What was found out.
#[derive(Debug)]
struct Finding {
    subject: &'static str,
    verdict: Verdict,
    text: String,
}

impl fmt::Display for Finding {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let verdict = match self.verdict {
            Verdict::Good => "ok",
            Verdict::Scarce => "scarce",
            Verdict::Bad => "FAILED",
        };
        write!(formatter, "{:<8} {verdict:<7} {}", self.subject, self.text)
    }
}

impl Check {
    pub fn execute(self) -> anyhow::Result<u8> {
        let config = self.config.load()?;
        let mut is_good = true;
        let mut output = io::stdout().lock();
        let findings = [
            guests(&config),
            network(),
            directory("state", &config.state_directory),
            directory("run", &config.run_directory),
            disk(&config.state_directory),
            memory(&config),
        ];
        for finding in findings {
            is_good &= finding.verdict != Verdict::Bad;
            writeln!(output, "{finding}")?;
        }
        Ok(if is_good { exit_status::SUCCESS } else { exit_status::ERROR })
    }
}

/// Whether guests can run: the VMM knows.
fn guests(config: &Config) -> Finding {
    let program = config.host_settings().vmm;
    let (verdict, text) = match Command::new(&program).arg("check").output() {
        Ok(output) => {
            let said = String::from_utf8_lossy(if output.stdout.is_empty() {
                &output.stderr
            } else {
                &output.stdout
            });
            let verdict = if output.status.success() { Verdict::Good } else { Verdict::Bad };
            let said = said.trim().replace('\n', " ");
            let silent =
                || format!("{} check said nothing, and ended with {}", program.display(), output.status);
            (verdict, if said.is_empty() { silent() } else { said })
        }
        Err(error) => (
            Verdict::Bad,
            format!("cannot run {} (see vmm in the configuration): {error}", program.display()),
        ),
    };
    Finding { subject: "guests", verdict, text }
}

/// Whether instances can have a network, and nobody stands in its way.
fn network() -> Finding {
    let found = (fs::metadata("/dev/net/tun"), firewall::barriers(), innkeeper_network::linux::check());
    let (verdict, text) = match found {
        (Err(error), ..) => (Verdict::Bad, format!("/dev/net/tun: {error} (modprobe tun)")),
        (_, Err(reason), _) => (Verdict::Bad, reason),
        (_, _, Err(error)) => (Verdict::Bad, format!("{error}: {}", error.cause)),
        (Ok(_), Ok(barriers), Ok(())) => match barriers.first() {
            None => (Verdict::Good, "nobody on this host drops what is forwarded".to_owned()),
            Some(Barrier { table, chain, owner }) => {
                let text = format!(
                    "the chain {chain} of table {table} drops what is forwarded, and with it what instances send and get \
                     beyond the host: {}",
                    owner.advice()
                );
                (Verdict::Scarce, text)
            }
        },
    };
    Finding { subject: "network", verdict, text }
}

/// Whether we can write to a directory, or make it.
fn directory(subject: &'static str, path: &Path) -> Finding {
    let existing = path.ancestors().find(|path| path.exists()).unwrap_or(path);
    let (verdict, text) = match access(existing, AccessFlags::R_OK | AccessFlags::W_OK | AccessFlags::X_OK) {
        Err(error) => {
            let text = format!("cannot write to {}: {} (run as root)", existing.display(), error.desc());
            (Verdict::Bad, text)
        }
        Ok(()) if existing != path => (Verdict::Good, format!("{} will be made", path.display())),
        Ok(()) => match fs::metadata(path) {
            Ok(found) if !found.is_dir() => (Verdict::Bad, format!("{} is not a directory", path.display())),
            Ok(found) if found.mode() & 0o022 != 0 => {
                (Verdict::Bad, format!("others may write to {0} (chmod 700 {0})", path.display()))
            }
            Ok(_) => (Verdict::Good, path.display().to_string()),
            Err(error) => (Verdict::Bad, format!("{}: {error}", path.display())),
        },
    };
    Finding { subject, verdict, text }
}

/// Bytes, as many as an instance or two need.
const ENOUGH_DISK: u64 = 10 << 30;

fn disk(state_directory: &Path) -> Finding {
    let existing = state_directory.ancestors().find(|path| path.exists()).unwrap_or(state_directory);
    let (verdict, text) = match statvfs(existing) {
        Ok(found) => {
            let free = found.blocks_available() * found.fragment_size();
            let verdict = if free < ENOUGH_DISK { Verdict::Scarce } else { Verdict::Good };
            (verdict, format!("{} GiB free for volumes at {}", free >> 30, existing.display()))
        }
        Err(error) => (Verdict::Bad, format!("{}: {}", existing.display(), error.desc())),
    };
    Finding { subject: "disk", verdict, text }
}

fn memory(config: &Config) -> Finding {
    let found = fs::read_to_string("/proc/meminfo").map(|text| available(&text));
    let (verdict, text) = match found {
        Ok(Some(available)) => {
            let rest = available.saturating_sub(config.reserved_memory);
            let verdict = if rest == 0 { Verdict::Scarce } else { Verdict::Good };
            (verdict, format!("{rest} MiB free for guests, besides {} reserved", config.reserved_memory))
        }
        Ok(None) => (Verdict::Bad, "/proc/meminfo does not say what is available".to_owned()),
        Err(error) => (Verdict::Bad, format!("cannot read /proc/meminfo: {error}")),
    };
    Finding { subject: "memory", verdict, text }
}

/// `MemAvailable` in MiB.
fn available(meminfo: &str) -> Option<u64> {
    let line = meminfo.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kib / 1024)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn available_memory_is_in_mebibytes() {
        assert_eq!(available("MemTotal: 9 kB\nMemAvailable:   20480 kB\n"), Some(20));
        assert_eq!(available("MemTotal: 9 kB\n"), None);
    }

    #[test]
    fn directories_are_fine_if_only_we_can_write_to_them() {
        let parent = tempfile::tempdir().unwrap();
        let path = parent.path().join("a/b");
        let verdict = || directory("state", &path).verdict;
        assert_eq!(verdict(), Verdict::Good);
        fs::create_dir_all(&path).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o700)).unwrap();
        assert_eq!(verdict(), Verdict::Good);
        fs::set_permissions(&path, fs::Permissions::from_mode(0o777)).unwrap();
        assert_eq!(verdict(), Verdict::Bad);
        fs::remove_dir(&path).unwrap();
        fs::write(&path, "").unwrap();
        assert_eq!(verdict(), Verdict::Bad);
    }

    #[test]
    fn a_vmm_that_is_not_there_is_a_finding() {
        let config = Config { vmm: Some("/nowhere/innkeeper-vmm".into()), ..Config::default() };
        let finding = guests(&config);
        assert_eq!(finding.verdict, Verdict::Bad);
        assert!(finding.text.starts_with("cannot run /nowhere/innkeeper-vmm"), "{}", finding.text);
    }

    #[test]
    fn a_vmm_that_says_nothing_is_named() {
        let config = Config { vmm: Some("/bin/false".into()), ..Config::default() };
        let finding = guests(&config);
        assert_eq!(finding.verdict, Verdict::Bad);
        assert_eq!(finding.text, "/bin/false check said nothing, and ended with exit status: 1");
    }
}
