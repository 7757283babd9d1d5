//! nftables: scripts for `nft`, and the number that changes with every change of the rules.

use std::io::{self, Write};
use std::process::{Command, Stdio};

use netlink_sys::{Socket, SocketAddr, protocols::NETLINK_NETFILTER};

/// Carries out a script in the namespace of the calling thread: all of it or nothing.
pub fn run(script: &str) -> io::Result<()> {
    if script.is_empty() { Ok(()) } else { with(&["-f", "-"], script) }
}

/// Whether the kernel would carry a script out.
pub fn check(script: &str) -> io::Result<()> {
    with(&["--check", "-f", "-"], script)
}

fn with(arguments: &[&str], script: &str) -> io::Result<()> {
    let mut child = Command::new("nft")
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(|error| {
            io::Error::new(error.kind(), format!("nft cannot be run ({error}); the package nftables has it"))
        })?;
    let written = match child.stdin.take() {
        Some(mut input) => input.write_all(script.as_bytes()),
        None => Ok(()),
    };
    let output = child.wait_with_output()?;
    if output.status.success() {
        return written;
    }
    let said = String::from_utf8_lossy(&output.stderr);
    // The first line says what is wrong, the next ones show where.
    let lines: Vec<&str> = said.lines().take(2).collect();
    Err(io::Error::other(format!("nft: {}", lines.join(" "))))
}

/// A connection to nftables in the namespace in which it was made.
#[derive(Debug)]
pub struct Generation {
    socket: Socket,
}

/// `NFT_MSG_GETGEN` of the subsystem `NFNL_SUBSYS_NFTABLES` (linux/netfilter/nf_tables.h).
const GET_GENERATION: u16 = (10 << 8) | 16;
/// Its answer.
const NEW_GENERATION: u16 = (10 << 8) | 15;
/// The attribute that holds the number, big-endian.
const GENERATION_ID: u16 = 1;
/// Bytes of `nlmsghdr`, and of `nfgenmsg` after it.
const HEADERS: usize = 16 + 4;

impl Generation {
    /// Made in the namespace of the calling thread.
    pub fn open() -> io::Result<Self> {
        let socket = Socket::new(NETLINK_NETFILTER)?;
        socket.connect(&SocketAddr::new(0, 0))?;
        Ok(Self { socket })
    }

    /// The number of the rules as they are.
    pub fn get(&self) -> io::Result<u32> {
        let mut request = Vec::with_capacity(HEADERS);
        request.extend_from_slice(&20_u32.to_ne_bytes());
        request.extend_from_slice(&GET_GENERATION.to_ne_bytes());
        // NLM_F_REQUEST, sequence, port; then the family, which is none, and the version, which is 0.
        request.extend_from_slice(&1_u16.to_ne_bytes());
        request.extend_from_slice(&[0; 8]);
        request.extend_from_slice(&[0; 4]);
        self.socket.send(&request, 0)?;
        let (answer, _) = self.socket.recv_from_full()?;
        read_generation(&answer).ok_or_else(|| io::Error::other("nftables does not tell its generation"))
    }
}

fn read_generation(answer: &[u8]) -> Option<u32> {
    let word = |bytes: &[u8]| Some(u16::from_ne_bytes(bytes.get(..2)?.try_into().ok()?));
    if word(answer.get(4..)?)? != NEW_GENERATION {
        return None;
    }
    let mut attributes = answer.get(HEADERS..)?;
    loop {
        let length = usize::from(word(attributes)?);
        if word(attributes.get(2..)?)? == GENERATION_ID {
            return Some(u32::from_be_bytes(attributes.get(4..8)?.try_into().ok()?));
        }
        attributes = attributes.get(length.max(4).next_multiple_of(4)..)?;
    }
}
