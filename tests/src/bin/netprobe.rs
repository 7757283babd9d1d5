//! TCP on either end of a guest's network interface: whether numbers arrive as they were sent, and how fast.
//!
//! `netprobe listen PORT` takes one connection; `netprobe connect ADDRESS:PORT BYTES` sends BYTES bytes each
//! way at the same time. Both print a line when all has arrived as it was sent. `netprobe vsock-listen PORT` and
//! `netprobe vsock-connect PORT BYTES`, in a guest, do the same over vsock.
//!
//! `netprobe serve PORT` does what `netprobe measure WHAT ADDRESS:PORT SECONDS` asks it for, again and again. The
//! one that measures has the only clock that counts, and prints one number: for WHAT `to` and `from`, the bytes per
//! second that went to the server or came from it; for `turns`, how many times in a second a byte went there and back.

use std::fs::File;
use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use innkeeper_tests::exchange;
use nix::libc;
use nix::sys::socket::{self, AddressFamily, Backlog, SockFlag, SockType, VsockAddr, bind};

const CHUNK: usize = 64 << 10;
const PATIENCE: Duration = Duration::from_secs(60);

fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match arguments.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["listen", port] => {
            let (stream, _) = listen(port)?.accept()?;
            be_patient(&stream)?;
            report(exchange::answer(OwnedFd::from(stream).into())?)
        }
        ["connect", address, bytes] => {
            let stream = TcpStream::connect(address).context("cannot connect")?;
            be_patient(&stream)?;
            report(exchange::begin(OwnedFd::from(stream).into(), bytes.parse()?)?)
        }
        ["vsock-listen", port] => {
            let socket = vsock()?;
            bind(socket.as_raw_fd(), &VsockAddr::new(libc::VMADDR_CID_ANY, port.parse()?))?;
            socket::listen(&socket, Backlog::new(1)?)?;
            println!("listening");
            let accepted = socket::accept(socket.as_raw_fd())?;
            // SAFETY: the kernel has just made this descriptor for us.
            report(exchange::answer(unsafe { File::from_raw_fd(accepted) })?)
        }
        ["vsock-connect", port, bytes] => {
            let socket = vsock()?;
            let host = VsockAddr::new(libc::VMADDR_CID_HOST, port.parse()?);
            socket::connect(socket.as_raw_fd(), &host).context("cannot connect")?;
            report(exchange::begin(socket.into(), bytes.parse()?)?)
        }
        ["serve", port] => serve(&listen(port)?),
        ["measure", what, address, seconds] => {
            let order = match what {
                "to" => Order::Sink,
                "from" => Order::Source,
                "turns" => Order::Echo,
                _ => bail!("there is no {what:?} to measure: to, from or turns"),
            };
            println!("{:.1}", measure(order, address, seconds.parse()?)?);
            Ok(())
        }
        _ => bail!(
            "usage: netprobe listen PORT | netprobe connect ADDRESS:PORT BYTES | netprobe vsock-listen PORT | \
             netprobe vsock-connect PORT BYTES | netprobe serve PORT | netprobe measure to|from|turns ADDRESS:PORT SECONDS"
        ),
    }
}

fn report(bytes: u64) -> Result<()> {
    println!("exchanged {bytes} bytes each way");
    Ok(())
}

fn vsock() -> Result<OwnedFd> {
    Ok(socket::socket(AddressFamily::Vsock, SockType::Stream, SockFlag::SOCK_CLOEXEC, None)?)
}

fn listen(port: &str) -> Result<TcpListener> {
    let listener = TcpListener::bind(("0.0.0.0", port.parse()?)).context("cannot listen")?;
    println!("listening");
    Ok(listener)
}

/// What a server is to do with a connection: the first byte on it. All but a source do it until the other side is
/// done.
#[derive(Clone, Copy)]
#[repr(u8)]
enum Order {
    /// Read everything, then say how many bytes there were.
    Sink = b'>',
    /// Write until the other side hangs up.
    Source = b'<',
    /// Send everything back.
    Echo = b'=',
}

/// Serves one connection after the other, for ever.
fn serve(listener: &TcpListener) -> Result<()> {
    loop {
        let (stream, _) = listener.accept()?;
        if let Err(error) = obey(stream) {
            eprintln!("{error:#}");
        }
    }
}

fn obey(mut stream: TcpStream) -> Result<()> {
    be_patient(&stream)?;
    let mut order = [0];
    stream.read_exact(&mut order)?;
    let mut buffer = vec![0; CHUNK];
    if order[0] == Order::Source as u8 {
        // Ends with the error that nobody listens any more.
        while stream.write_all(&buffer).is_ok() {}
        return Ok(());
    }
    let mut received = 0;
    loop {
        let count = stream.read(&mut buffer)?;
        if count == 0 {
            break;
        }
        received += count as u64;
        if order[0] == Order::Echo as u8 {
            stream.write_all(&buffer[..count])?;
        }
    }
    if order[0] == Order::Sink as u8 {
        stream.write_all(&received.to_le_bytes())?;
    }
    Ok(())
}

/// Measures for so many seconds; returns bytes or turns per second.
fn measure(order: Order, address: &str, seconds: u64) -> Result<f64> {
    let mut stream = TcpStream::connect(address).context("cannot connect")?;
    be_patient(&stream)?;
    stream.write_all(&[order as u8])?;
    let mut buffer = vec![0; CHUNK];
    let (started, end) = (Instant::now(), Duration::from_secs(seconds));
    let mut count = 0;
    while started.elapsed() < end {
        match order {
            Order::Sink => stream.write_all(&buffer)?,
            Order::Source => match stream.read(&mut buffer) {
                Ok(0) => bail!("the server hung up"),
                Ok(bytes) => count += bytes as u64,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(error.into()),
            },
            Order::Echo => {
                stream.write_all(&[0])?;
                stream.read_exact(&mut buffer[..1])?;
                count += 1;
            }
        }
    }
    if let Order::Sink = order {
        // What counts is what has arrived, and when the last of it has.
        stream.shutdown(Shutdown::Write)?;
        let mut received = [0; 8];
        stream.read_exact(&mut received)?;
        count = u64::from_le_bytes(received);
    }
    Ok(count as f64 / started.elapsed().as_secs_f64())
}

/// No small segment waits for another, and nothing takes for ever.
fn be_patient(stream: &TcpStream) -> Result<()> {
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    Ok(stream.set_write_timeout(Some(PATIENCE))?)
}
