//! Sends numbers over TCP and checks that they arrive, on either end of a guest's network interface.
//!
//! `netprobe listen PORT` takes one connection; `netprobe connect ADDRESS:PORT BYTES` sends BYTES bytes each
//! way at the same time. Both print a line when all has arrived as it was sent.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};

const CHUNK: usize = 64 << 10;
const PATIENCE: Duration = Duration::from_secs(60);

fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match arguments.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["listen", port] => {
            let listener = TcpListener::bind(("0.0.0.0", port.parse()?)).context("cannot listen")?;
            println!("listening");
            let (mut stream, _) = listener.accept()?;
            let mut size = [0; 8];
            stream.read_exact(&mut size)?;
            exchange(stream, u64::from_le_bytes(size))
        }
        ["connect", address, bytes] => {
            let bytes: u64 = bytes.parse()?;
            let mut stream = TcpStream::connect(address).context("cannot connect")?;
            stream.write_all(&bytes.to_le_bytes())?;
            exchange(stream, bytes)
        }
        _ => bail!("usage: netprobe listen PORT | netprobe connect ADDRESS:PORT BYTES"),
    }
}

/// Sends and receives `bytes` bytes at the same time.
fn exchange(stream: TcpStream, bytes: u64) -> Result<()> {
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    let started = Instant::now();
    let mut sender = stream.try_clone()?;
    let sending = std::thread::spawn(move || -> Result<()> {
        let mut sent = 0;
        while sent < bytes {
            let chunk = pattern(sent, (bytes - sent).min(CHUNK as u64));
            sender.write_all(&chunk)?;
            sent += chunk.len() as u64;
        }
        Ok(sender.shutdown(Shutdown::Write)?)
    });
    let mut receiver = &stream;
    let mut buffer = vec![0; CHUNK];
    let mut received = 0;
    loop {
        let count = receiver.read(&mut buffer)?;
        if count == 0 {
            break;
        }
        ensure!(buffer[..count] == pattern(received, count as u64), "wrong data near byte {received}");
        received += count as u64;
    }
    ensure!(received == bytes, "{received} of {bytes} bytes arrived");
    sending.join().expect("the sending thread does not panic")?;
    println!("exchanged {bytes} bytes each way in {} ms", started.elapsed().as_millis());
    Ok(())
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
