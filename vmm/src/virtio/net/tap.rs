//! A tap interface: Ethernet frames to and from the host, each with a virtio-net header in front.

use std::fs::{File, OpenOptions};
use std::io::{self, Read};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::os::unix::fs::OpenOptionsExt;

use nix::net::if_::if_nametoindex;

mod ioctl {
    use std::os::raw::c_int;
    nix::ioctl_write_ptr_bad!(
        set_interface,
        nix::request_code_write!(b'T', 202, size_of::<c_int>()),
        libc::ifreq
    );
    nix::ioctl_write_int_bad!(
        set_offload,
        nix::request_code_write!(b'T', 208, size_of::<std::os::raw::c_uint>())
    );
    nix::ioctl_write_ptr_bad!(
        set_header_size,
        nix::request_code_write!(b'T', 216, size_of::<c_int>()),
        c_int
    );
}

/// Offloads that the other side of the tap can handle (`TUN_F_*`).
pub mod offload {
    /// Packets whose checksum is not filled in.
    pub const CHECKSUM: u32 = 1;
    /// TCP over IPv4 segments larger than the MTU.
    pub const TSO4: u32 = 2;
    /// TCP over IPv6 segments larger than the MTU.
    pub const TSO6: u32 = 4;
}

/// Bytes of `virtio_net_hdr_v1`, in front of every frame in both directions.
pub const HEADER_SIZE: usize = 12;

/// Why there is no tap.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "the messages say it")]
pub enum Error {
    #[error("{0:?} is not an interface name (1 to 15 bytes, no spaces or slashes)")]
    Name(String),
    #[error("there is no such interface; create it first: ip tuntap add {0} mode tap vnet_hdr")]
    Missing(String),
    #[error("it is busy: another process uses it")]
    Busy,
    #[error(
        "it is not a tap, or has other flags than ours; make one by another name: ip tuntap add NAME mode tap vnet_hdr"
    )]
    NotATap,
    #[error(
        "permission denied (run as root, or make the tap yours: ip tuntap add {0} mode tap vnet_hdr user USER)"
    )]
    Permission(String),
    #[error("{action} failed")]
    Host { action: &'static str, source: io::Error },
}

/// An opened tap.
#[derive(Debug)]
pub struct Tap(File);

impl Tap {
    /// Opens the tap called `name`, which must exist: an interface made on the fly would have no address and
    /// lead nowhere.
    pub fn open(name: &str) -> Result<Self, Error> {
        let host = |action| move |source| Error::Host { action, source };
        let is_name = |byte: u8| byte.is_ascii_graphic() && byte != b'/';
        if name.is_empty() || name.len() >= libc::IFNAMSIZ || !name.bytes().all(is_name) {
            return Err(Error::Name(name.into()));
        }
        if_nametoindex(name).map_err(|_| Error::Missing(name.into()))?;
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .custom_flags(libc::O_NONBLOCK | libc::O_CLOEXEC)
            .open("/dev/net/tun")
            .map_err(host("opening /dev/net/tun"))?;
        // SAFETY: all-zero is a value of this plain C structure.
        let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
        for (to, from) in request.ifr_name.iter_mut().zip(name.bytes()) {
            *to = from as libc::c_char;
        }
        request.ifr_ifru.ifru_flags = (libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR) as libc::c_short;
        // SAFETY: the request is a whole `ifreq`, which the call reads.
        unsafe { ioctl::set_interface(file.as_raw_fd(), &request) }.map_err(|error| match error {
            nix::Error::EBUSY => Error::Busy,
            nix::Error::EINVAL => Error::NotATap,
            nix::Error::EPERM => Error::Permission(name.into()),
            error => Error::Host { action: "attaching to the interface", source: error.into() },
        })?;
        let size = HEADER_SIZE as libc::c_int;
        // SAFETY: the call reads one int.
        unsafe { ioctl::set_header_size(file.as_raw_fd(), &size) }
            .map_err(|error| host("setting the header size")(error.into()))?;
        Ok(Self(file))
    }

    /// Says what frames the guest can take; see [`offload`].
    pub fn set_offloads(&self, offloads: u32) -> io::Result<()> {
        // SAFETY: the argument is a plain number.
        unsafe { ioctl::set_offload(self.0.as_raw_fd(), offloads as libc::c_int) }?;
        Ok(())
    }

    /// Throws away the frames that are waiting, up to more than the host keeps by default.
    pub fn discard_pending(&self) {
        const LIMIT: usize = 2048;
        let mut header = [0; HEADER_SIZE];
        for _ in 0..LIMIT {
            // What does not fit is cut off.
            if (&self.0).read(&mut header).is_err() {
                return;
            }
        }
    }

    /// Receives one frame into `segments`; returns its length with the header.
    ///
    /// # Safety
    /// Every segment must be valid for writes of its length.
    pub unsafe fn receive(&self, segments: &[libc::iovec]) -> io::Result<usize> {
        // SAFETY: the caller's promise, and the count is the slice's.
        let count =
            unsafe { libc::readv(self.0.as_raw_fd(), segments.as_ptr(), segments.len() as libc::c_int) };
        usize::try_from(count).map_err(|_| io::Error::last_os_error())
    }

    /// Sends one frame.
    ///
    /// # Safety
    /// Every segment must be valid for reads of its length.
    pub unsafe fn send(&self, segments: &[libc::iovec]) -> io::Result<()> {
        // SAFETY: the caller's promise, and the count is the slice's.
        let count =
            unsafe { libc::writev(self.0.as_raw_fd(), segments.as_ptr(), segments.len() as libc::c_int) };
        if count < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
    }
}

impl AsFd for Tap {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}
