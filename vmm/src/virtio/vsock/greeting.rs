//! What a program on the host says to get a connection to the guest, and what it hears: `CONNECT PORT`, `OK PORT`.
//!
//! It is the text protocol that Firecracker and Cloud Hypervisor have, so that their clients work here. The port in
//! the answer is the host's end of the connection, which tells nobody much.

/// The longest line, with its line feed.
pub const MAX_LINE: usize = 32;

/// Why what a program says is not a greeting.
#[derive(Debug, PartialEq, Eq)]
pub struct Junk;

/// The port that the guest is to be asked for, and the length of the line. None if the line goes on; `bytes` is all
/// that there is, up to [`MAX_LINE`].
pub fn parse(bytes: &[u8]) -> Result<Option<(u32, usize)>, Junk> {
    let Some(end) = bytes.iter().take(MAX_LINE).position(|byte| *byte == b'\n') else {
        return if bytes.len() < MAX_LINE { Ok(None) } else { Err(Junk) };
    };
    let line = bytes.get(..end).and_then(|line| std::str::from_utf8(line).ok()).ok_or(Junk)?;
    let port = line.strip_prefix("CONNECT ").ok_or(Junk)?;
    // `parse` would take a sign, too.
    if !port.bytes().all(|byte| byte.is_ascii_digit()) {
        return Err(Junk);
    }
    Ok(Some((port.parse().map_err(|_| Junk)?, end + 1)))
}

/// The answer once the guest has agreed.
pub fn answer(host_port: u32) -> String {
    format!("OK {host_port}\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_line_with_a_port_is_a_greeting() {
        type Case = (&'static [u8], Result<Option<(u32, usize)>, Junk>);
        let cases: [Case; 14] = [
            (b"CONNECT 22\n", Ok(Some((22, 11)))),
            (b"CONNECT 22\nSSH-2.0", Ok(Some((22, 11)))),
            (b"CONNECT 4294967295\n", Ok(Some((u32::MAX, 19)))),
            (b"", Ok(None)),
            (b"CONNECT 2", Ok(None)),
            (b"CONNECT 4294967296\n", Err(Junk)),
            (b"CONNECT \n", Err(Junk)),
            (b"CONNECT +2\n", Err(Junk)),
            (b"CONNECT -2\n", Err(Junk)),
            (b"CONNECT 22 \n", Err(Junk)),
            (b"\n", Err(Junk)),
            (b"GET / HTTP/1.1\r\n", Err(Junk)),
            (b"\xff\xfe\n", Err(Junk)),
            (b"CONNECT 00000000000000000000000022\n", Err(Junk)),
        ];
        for (bytes, expected) in cases {
            assert_eq!(parse(bytes), expected, "{}", String::from_utf8_lossy(bytes));
        }
    }
}
