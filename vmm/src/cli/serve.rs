//! `innkeeper-vmm serve`: a guest for whoever holds the other end of a socket.

use std::os::fd::{FromRawFd, OwnedFd, RawFd};

use anyhow::{Context, ensure};
use clap::Args;
use nix::fcntl::{FcntlArg, FdFlag, fcntl};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::sys::socket::{SockType, getsockopt, sockopt};

use super::ending_status;
use crate::control;

#[derive(Args, Debug)]
pub struct Serve {
    /// The control socket: an inherited descriptor of a connected Unix socket of type SOCK_SEQPACKET
    #[arg(long, value_name = "FD", default_value_t = 3, value_parser = clap::value_parser!(RawFd).range(3..))]
    control: RawFd,
}

impl Serve {
    pub fn execute(self) -> anyhow::Result<u8> {
        let number = self.control;
        let what = || {
            format!(
                "descriptor {number} is not a connected Unix socket of type SOCK_SEQPACKET (see --control)"
            )
        };
        // SAFETY: only looked at, and the answer is an error if it is not open.
        let is_open = unsafe { libc::fcntl(number, libc::F_GETFD) } >= 0;
        ensure!(is_open, what());
        // SAFETY: it is open, was inherited for us to use, and nobody else here knows it.
        let socket = unsafe { OwnedFd::from_raw_fd(number) };
        ensure!(matches!(getsockopt(&socket, sockopt::SockType), Ok(SockType::SeqPacket)), what());
        fcntl(&socket, FcntlArg::F_SETFD(FdFlag::FD_CLOEXEC)).with_context(what)?;
        raise_descriptor_limit();
        let ending = control::serve(socket).context("the control thread cannot go on")?;
        Ok(ending_status(&ending))
    }
}

/// A deep stack of layers has hundreds of files. The soft limit is for those who use `select(2)`.
fn raise_descriptor_limit() {
    let raise = || {
        let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
        setrlimit(Resource::RLIMIT_NOFILE, hard, hard)
    };
    if let Err(error) = raise() {
        tracing::warn!(%error, "the limit of open files stays as it is");
    }
}
