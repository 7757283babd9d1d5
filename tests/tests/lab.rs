//! The lab: it hands through what a command needs, and leaves nothing behind.

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

fn lab() -> Command {
    Command::new(Path::new(env!("CARGO_MANIFEST_DIR")).join("../scripts/lab"))
}

/// The processes whose command line names something in `directory`: their ids, and those lines.
fn processes_of(directory: &Path) -> Result<Vec<(i32, String)>> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir("/proc")? {
        let entry = entry?;
        let Ok(pid) = entry.file_name().to_string_lossy().parse() else { continue };
        let line = std::fs::read(entry.path().join("cmdline")).unwrap_or_default();
        let line = String::from_utf8_lossy(&line).replace('\0', " ");
        if line.contains(directory.to_str().context("a UTF-8 path")?) {
            found.push((pid, line));
        }
    }
    Ok(found)
}

#[test]
fn output_and_exit_status_come_back() -> Result<()> {
    let output = lab()
        .args(["--cpus", "1", "--memory", "1G", "--timeout", "120", "--env", "GREETING=hello there"])
        .args(["--", "sh", "-c", "echo $GREETING; pwd; nproc; ls /dev/kvm; echo oops >&2; exit 42"])
        .stdin(Stdio::null())
        .output()?;
    let directory = std::env::current_dir()?;
    assert_eq!(output.status.code(), Some(42), "{}", String::from_utf8_lossy(&output.stderr));
    assert_eq!(
        String::from_utf8(output.stdout)?,
        format!("hello there\n{}\n1\n/dev/kvm\n", directory.display())
    );
    assert_eq!(String::from_utf8(output.stderr)?, "oops\n");
    Ok(())
}

/// Stopped by its timeout or by a signal, with a command inside that would go on for ever.
#[test]
fn nothing_is_left_running() -> Result<()> {
    for (timeout, signal, code) in [("8", None, 124), ("120", Some(Signal::SIGTERM), 143)] {
        let temporary = tempfile::tempdir()?;
        let mut child = lab()
            .args(["--memory", "1G", "--timeout", timeout, "--", "sleep", "1000"])
            .env("TMPDIR", temporary.path())
            .stdin(Stdio::null())
            .stderr(Stdio::null())
            .spawn()?;
        let started = Instant::now();
        while processes_of(temporary.path())?.len() < 2 {
            assert!(started.elapsed() < Duration::from_secs(20), "the lab did not start");
            std::thread::sleep(Duration::from_millis(20));
        }
        if let Some(signal) = signal {
            kill(Pid::from_raw(child.id() as i32), signal)?;
        }
        assert_eq!(child.wait()?.code(), Some(code));
        assert_eq!(processes_of(temporary.path())?, []);
        let left: Vec<PathBuf> =
            std::fs::read_dir(temporary.path())?.map(|entry| Ok(entry?.path())).collect::<Result<_>>()?;
        assert_eq!(left, Vec::<PathBuf>::new());
    }
    Ok(())
}

/// A lab that does nothing more is given up, and counts as one that has died, which can be tried again.
#[test]
fn a_lab_that_hangs_is_given_up() -> Result<()> {
    let temporary = tempfile::tempdir()?;
    let mut child = lab()
        .args(["--memory", "1G", "--timeout", "120", "--patience", "20", "--", "sh", "-c"])
        .args(["echo up; sleep 1000"])
        .env("TMPDIR", temporary.path())
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()?;
    let mut output = BufReader::new(child.stdout.take().context("a pipe")?);
    let mut line = String::new();
    output.read_line(&mut line)?;
    assert_eq!(line, "up\n");
    for (pid, line) in processes_of(temporary.path())? {
        if line.contains("qemu-system") {
            kill(Pid::from_raw(pid), Signal::SIGSTOP)?;
        }
    }
    let output = child.wait_with_output()?;
    assert_eq!(output.status.code(), Some(125));
    let errors = String::from_utf8(output.stderr)?;
    let (_, log) = errors.trim().split_once("the lab hangs").context(errors.clone())?;
    std::fs::remove_file(log.rsplit(' ').next().context("a file")?)?;
    Ok(())
}
