//! The terminal, while a guest has it, and the keys that end the guest.

use std::io::{self, IsTerminal};
use std::os::fd::AsFd;

use nix::sys::termios::{OutputFlags, SetArg, Termios, cfmakeraw, tcgetattr, tcsetattr};

/// A terminal in raw mode: every key goes to the guest. Dropping it restores the terminal.
#[derive(Debug)]
pub struct RawTerminal {
    before: Termios,
}

impl RawTerminal {
    /// Switches standard input to raw mode, if it is a terminal.
    pub fn enter() -> io::Result<Option<Self>> {
        let stdin = io::stdin();
        if !stdin.is_terminal() {
            return Ok(None);
        }
        let before = tcgetattr(stdin.as_fd())?;
        let mut raw = before.clone();
        cfmakeraw(&mut raw);
        // Our own messages still end in a line feed alone.
        raw.output_flags |= OutputFlags::OPOST;
        tcsetattr(stdin.as_fd(), SetArg::TCSANOW, &raw)?;
        Ok(Some(Self { before }))
    }
}

impl Drop for RawTerminal {
    fn drop(&mut self) {
        // The terminal may be gone; then there is nothing to restore.
        let _ = tcsetattr(io::stdin().as_fd(), SetArg::TCSANOW, &self.before);
    }
}

/// The key after which `x` ends the guest (Ctrl-A).
const ESCAPE: u8 = 1;

/// Recognises Ctrl-A x. Ctrl-A twice is one Ctrl-A for the guest; before any other key it is dropped.
#[derive(Debug, Default)]
pub struct Escape {
    is_open: bool,
}

impl Escape {
    /// What is for the guest; none if the guest is to end.
    pub fn filter(&mut self, bytes: &[u8]) -> Option<Vec<u8>> {
        let mut passed = Vec::with_capacity(bytes.len());
        for byte in bytes {
            match (std::mem::take(&mut self.is_open), *byte) {
                (true, b'x') => return None,
                (false, ESCAPE) => self.is_open = true,
                (_, byte) => passed.push(byte),
            }
        }
        Some(passed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_escape_works_across_reads() {
        let mut escape = Escape::default();
        assert_eq!(escape.filter(b"ax\x01").unwrap(), b"ax");
        assert_eq!(escape.filter(b"\x01x\x01b").unwrap(), b"\x01xb");
        assert_eq!(escape.filter(b"a\x01"), Some(b"a".to_vec()));
        assert_eq!(escape.filter(b"x"), None);
    }
}
