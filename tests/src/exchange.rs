//! Numbers that go both ways over a stream at the same time, and must arrive as they were sent.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::AsRawFd;

use anyhow::{Result, ensure};
use nix::sys::socket::{Shutdown, shutdown};

const CHUNK: u64 = 64 << 10;

/// Says how many bytes there are to be, and exchanges them.
pub fn begin(mut stream: File, bytes: u64) -> Result<u64> {
    stream.write_all(&bytes.to_le_bytes())?;
    exchange(stream, bytes)
}

/// Hears how many bytes there are to be, and exchanges them.
pub fn answer(mut stream: File) -> Result<u64> {
    let mut size = [0; 8];
    stream.read_exact(&mut size)?;
    exchange(stream, u64::from_le_bytes(size))
}

fn exchange(mut stream: File, bytes: u64) -> Result<u64> {
    let mut sender = stream.try_clone()?;
    let sending = std::thread::spawn(move || -> Result<()> {
        let mut sent = 0;
        while sent < bytes {
            let chunk = pattern(sent, (bytes - sent).min(CHUNK));
            sender.write_all(&chunk)?;
            sent += chunk.len() as u64;
        }
        Ok(shutdown(sender.as_raw_fd(), Shutdown::Write)?)
    });
    let mut buffer = vec![0; CHUNK as usize];
    let mut received = 0;
    loop {
        let count = stream.read(&mut buffer)?;
        if count == 0 {
            break;
        }
        ensure!(buffer[..count] == pattern(received, count as u64), "wrong data near byte {received}");
        received += count as u64;
    }
    ensure!(received == bytes, "{received} of {bytes} bytes arrived");
    sending.join().expect("the sending thread does not panic")?;
    Ok(bytes)
}

/// The bytes of the stream from `start` on: each 8 hold their own position, mixed.
fn pattern(start: u64, length: u64) -> Vec<u8> {
    (start..start + length)
        .map(|position| {
            let mixed = (position / 8).wrapping_mul(0x9e37_79b9_7f4a_7c15);
            mixed.to_le_bytes()[(position % 8) as usize]
        })
        .collect()
}
