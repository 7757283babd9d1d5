//! Taps and other interfaces in the namespace of whoever calls.

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;

use nix::libc::{self, c_int, c_short, c_ulong};
use nix::sys::socket::{AddressFamily, SockFlag, SockType, socket};

use super::frame::Mac;

/// Bytes of `virtio_net_hdr_v1` in front of every frame.
pub const HEADER_SIZE: usize = 12;
/// Checksums that are not filled in, and TCP segments larger than the MTU (`TUN_F_CSUM`, `TUN_F_TSO4`, `TUN_F_TSO6`,
/// `TUN_F_TSO_ECN`): what Linux as a guest has `innkeeper-vmm` take.
pub const OFFLOADS: u32 = 1 | 2 | 4 | 8;

const FLAGS: c_int = libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR;

/// Opens the tap `name`, which is made if it is not there; `more` are flags of its.
pub fn open(name: &str, more: c_int) -> io::Result<OwnedFd> {
    let mut options = File::options();
    let tun = options
        .read(true)
        .write(true)
        .custom_flags(libc::O_NONBLOCK | libc::O_CLOEXEC)
        .open("/dev/net/tun")?;
    let mut request = request(name)?;
    request.ifr_ifru.ifru_flags = (FLAGS | more) as c_short;
    // SAFETY: the call reads and fills one whole `ifreq`.
    check(unsafe { libc::ioctl(tun.as_raw_fd(), libc::TUNSETIFF, &mut request) })?;
    Ok(tun.into())
}

/// Takes an opened tap into use: frames with [`HEADER_SIZE`], and reads that do not wait. Fails for what is not a tap
/// with such headers.
pub fn adopt(tap: &impl AsRawFd) -> io::Result<()> {
    let mut request = request("")?;
    // SAFETY: the call fills one whole `ifreq`.
    check(unsafe { libc::ioctl(tap.as_raw_fd(), libc::TUNGETIFF, &mut request) })?;
    // SAFETY: the call has set the flags.
    let flags = c_int::from(unsafe { request.ifr_ifru.ifru_flags });
    if flags & FLAGS != FLAGS {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, format!("a tap with flags {flags:#x}")));
    }
    let size = HEADER_SIZE as c_int;
    // SAFETY: the call reads one int.
    check(unsafe { libc::ioctl(tap.as_raw_fd(), libc::TUNSETVNETHDRSZ, &size) })?;
    // SAFETY: reads and sets the flags of an open descriptor.
    unsafe {
        let status = libc::fcntl(tap.as_raw_fd(), libc::F_GETFL);
        check(status)?;
        check(libc::fcntl(tap.as_raw_fd(), libc::F_SETFL, status | libc::O_NONBLOCK))
    }
}

/// Says what whoever reads the tap can handle: [`OFFLOADS`], or 0.
pub fn set_offloads(tap: &impl AsRawFd, offloads: u32) -> io::Result<()> {
    // SAFETY: the argument is a plain number.
    check(unsafe { libc::ioctl(tap.as_raw_fd(), libc::TUNSETOFFLOAD, c_ulong::from(offloads)) })
}

/// Gives an interface a hardware address.
pub fn set_mac(name: &str, mac: Mac) -> io::Result<()> {
    let mut request = request(name)?;
    // SAFETY: all-zero is a value of this plain C structure.
    let mut address: libc::sockaddr = unsafe { std::mem::zeroed() };
    address.sa_family = libc::ARPHRD_ETHER;
    for (to, from) in address.sa_data.iter_mut().zip(mac.0) {
        *to = from as libc::c_char;
    }
    request.ifr_ifru.ifru_hwaddr = address;
    of_interface(libc::SIOCSIFHWADDR, &mut request)
}

/// Lets an interface be up.
pub fn set_up(name: &str) -> io::Result<()> {
    let mut request = request(name)?;
    of_interface(libc::SIOCGIFFLAGS, &mut request)?;
    // SAFETY: the call has set the flags.
    let flags = unsafe { request.ifr_ifru.ifru_flags };
    request.ifr_ifru.ifru_flags = flags | libc::IFF_UP as c_short;
    of_interface(libc::SIOCSIFFLAGS, &mut request)
}

fn of_interface(what: c_ulong, request: &mut libc::ifreq) -> io::Result<()> {
    let any = socket(AddressFamily::Unix, SockType::Datagram, SockFlag::SOCK_CLOEXEC, None)?;
    // SAFETY: these calls read or fill one whole `ifreq`.
    check(unsafe { libc::ioctl(any.as_raw_fd(), what, request) })
}

fn request(name: &str) -> io::Result<libc::ifreq> {
    if name.len() >= libc::IFNAMSIZ {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, format!("{name:?} is too long a name")));
    }
    // SAFETY: all-zero is a value of this plain C structure.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(name.bytes()) {
        *to = from as libc::c_char;
    }
    Ok(request)
}

fn check(result: c_int) -> io::Result<()> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}
