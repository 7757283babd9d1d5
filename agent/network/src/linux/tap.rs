//! Taps: the host's end of a guest's network interface.

use std::fs::{self, OpenOptions};
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::libc;

mod ioctl {
    nix::ioctl_readwrite_bad!(
        set_interface,
        nix::request_code_write!(b'T', 202, size_of::<nix::libc::c_int>()),
        nix::libc::ifreq
    );
}

/// How long a tap may be another's that has ended: the kernel closes what a killed process had open when it gets to it.
const LETTING_GO: Duration = Duration::from_secs(2);

/// Opens a tap, which is made if it is not there, once for each pair of queues. It has a virtio-net header in front of
/// each frame. It goes with the last descriptor.
pub fn open(name: &str, queues: u16) -> io::Result<Vec<OwnedFd>> {
    let mut flags = libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR;
    if queues > 1 {
        flags |= libc::IFF_MULTI_QUEUE;
    }
    // Who opens one with several queues that another still has would share it.
    let deadline = Instant::now() + LETTING_GO;
    while nix::net::if_::if_nametoindex(name).is_ok() {
        if Instant::now() > deadline {
            return Err(Errno::EBUSY.into());
        }
        std::thread::sleep(LETTING_GO / 200);
    }
    let opened = (0..queues.max(1)).map(|_| open_queue(name, flags)).collect::<io::Result<_>>()?;
    // The kernel answers for others at once, and not after up to 0.8 s, as it would for the sake of a shared cable.
    fs::write(format!("/proc/sys/net/ipv4/neigh/{name}/proxy_delay"), "0")?;
    Ok(opened)
}

fn open_queue(name: &str, flags: libc::c_int) -> io::Result<OwnedFd> {
    let mut options = OpenOptions::new();
    options.read(true).write(true).custom_flags(libc::O_NONBLOCK);
    let file = options.open("/dev/net/tun")?;
    // SAFETY: all zeroes are a valid ifreq.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    // The last byte stays 0.
    let room = request.ifr_name.len() - 1;
    if name.len() > room {
        return Err(io::Error::from(Errno::ENAMETOOLONG));
    }
    for (to, from) in request.ifr_name.iter_mut().zip(name.bytes()) {
        *to = from.cast_signed();
    }
    request.ifr_ifru.ifru_flags = libc::c_short::try_from(flags).map_err(io::Error::other)?;
    // SAFETY: the request is a whole ifreq, of which the kernel writes the name and the flags, and lives as long as the call.
    unsafe { ioctl::set_interface(file.as_raw_fd(), &raw mut request) }?;
    Ok(file.into())
}
