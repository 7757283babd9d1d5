//! `innkeeper-vmm control`: says one thing to a VMM that runs, for people and scripts.

use std::fs::OpenOptions;
use std::io::{self, Write};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use clap::Args;
use innkeeper_protocol::{Answer, Command, Connection};
use nix::sys::socket::{AddressFamily, SockFlag, SockType, UnixAddr, connect, socket};

use super::exit_status;
use crate::virtio::net::tap;

#[derive(Args, Debug)]
pub struct Control {
    /// The VMM's control socket (see run --control)
    #[arg(value_name = "SOCKET")]
    socket: PathBuf,
    /// A command as the protocol has it, in JSON; one without arguments is just its name: status, metrics, pause
    #[arg(value_name = "COMMAND")]
    command: String,
    /// What the command's descriptors are, in their order: files to open, or tap:NAME for a tap
    #[arg(value_name = "FILE")]
    files: Vec<String>,
}

impl Control {
    pub fn execute(self) -> anyhow::Result<u8> {
        let command = parse(&self.command)?;
        let opened: Vec<OwnedFd> = self.files.iter().map(|file| open(file)).collect::<anyhow::Result<_>>()?;
        let mut vmm = dial(&self.socket)?;
        let wants_events = matches!(command, Command::Events { .. });
        let descriptors: Vec<_> = opened.iter().map(AsFd::as_fd).collect();
        match vmm.call(command, &descriptors)? {
            Answer::Done => {}
            answer => print(&answer)?,
        }
        if wants_events {
            follow(&mut vmm)?;
        }
        Ok(exit_status::SUCCESS)
    }
}

/// Prints events until the VMM, or whoever reads, has gone.
fn follow(vmm: &mut Connection) -> anyhow::Result<()> {
    loop {
        match vmm.event() {
            Ok(event) => print(&event)?,
            Err(innkeeper_protocol::Error::Closed) => return Ok(()),
            Err(error) => return Err(error.into()),
        }
    }
}

fn parse(text: &str) -> anyhow::Result<Command> {
    let is_name = text.bytes().all(|byte| byte.is_ascii_lowercase() || byte == b'-');
    let json = if is_name { format!("{text:?}") } else { text.to_owned() };
    serde_json::from_str(&json).with_context(|| format!("{text} is not a command"))
}

fn open(file: &str) -> anyhow::Result<OwnedFd> {
    if let Some(name) = file.strip_prefix("tap:") {
        let taps = tap::open(name, 1).with_context(|| format!("cannot open tap {name}"))?;
        return taps.into_iter().next().with_context(|| format!("tap {name} has no queue"));
    }
    // What cannot be written can still be read; the VMM says if that is not enough.
    let open = |write| OpenOptions::new().read(true).write(write).custom_flags(libc::O_NONBLOCK).open(file);
    let opened = open(true).or_else(|error| match error.kind() {
        io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem => open(false),
        _ => Err(error),
    });
    Ok(opened.with_context(|| format!("cannot open {file}"))?.into())
}

fn dial(path: &Path) -> anyhow::Result<Connection> {
    let socket = socket(AddressFamily::Unix, SockType::SeqPacket, SockFlag::SOCK_CLOEXEC, None)?;
    let address = UnixAddr::new(path).with_context(|| format!("{} is too long", path.display()))?;
    match connect(socket.as_raw_fd(), &address) {
        Ok(()) => {}
        Err(nix::Error::ECONNREFUSED) => bail!("no VMM listens at {} any more", path.display()),
        Err(error) => {
            return Err(error).with_context(|| format!("cannot connect to {}", path.display()));
        }
    }
    Ok(Connection::open(socket)?)
}

fn print(value: &impl serde::Serialize) -> anyhow::Result<()> {
    let text = serde_json::to_string_pretty(value)?;
    Ok(writeln!(io::stdout(), "{text}")?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_or_json_is_a_command() {
        assert_eq!(parse("power-button").unwrap(), Command::PowerButton);
        assert_eq!(parse(r#"{"events":{"after":3}}"#).unwrap(), Command::Events { after: 3 });
        for bad in ["", "fly", "{}", "{\"detach\":{}}", "status status"] {
            assert!(parse(bad).is_err(), "{bad}");
        }
    }
}
