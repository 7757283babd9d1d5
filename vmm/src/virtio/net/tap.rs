//! A tap interface: Ethernet frames to and from the host, each with a virtio-net header in front.
//!
//! A tap has one or several queues, each with a descriptor of its own ([`Tap`]). Who controls the VMM opens
//! them and attaches them to the interface; [`open`] does that for those who have no controller.

use std::fs::{File, OpenOptions};
use std::io::{self, Read};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;

use libc::{c_int, c_short};
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::net::if_::if_nametoindex;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

mod ioctl {
    use std::os::raw::{c_int, c_uint};
    nix::ioctl_write_ptr_bad!(
        set_interface,
        nix::request_code_write!(b'T', 202, size_of::<c_int>()),
        libc::ifreq
    );
    nix::ioctl_write_int_bad!(set_offload, nix::request_code_write!(b'T', 208, size_of::<c_uint>()));
    nix::ioctl_read_bad!(get_interface, nix::request_code_read!(b'T', 210, size_of::<c_uint>()), libc::ifreq);
    nix::ioctl_write_ptr_bad!(
        set_header_size,
        nix::request_code_write!(b'T', 216, size_of::<c_int>()),
        c_int
    );
    nix::ioctl_write_ptr_bad!(
        set_queue,
        nix::request_code_write!(b'T', 217, size_of::<c_int>()),
        libc::ifreq
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
    /// Such segments with the CWR bit, for which one of the two above must be there.
    pub const TSO_ECN: u32 = 8;
}

/// Bytes of `virtio_net_hdr_v1`, in front of every frame in both directions.
pub const HEADER_SIZE: usize = 12;

/// What a tap is to be: Ethernet frames with a header of virtio's, and no other.
const FLAGS: c_int = libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR;

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
        "it is not a tap with several queues; make one by another name: ip tuntap add NAME mode tap vnet_hdr multi_queue"
    )]
    NotMultiQueue,
    #[error(
        "permission denied (run as root, or make the tap yours: ip tuntap add {0} mode tap vnet_hdr user USER)"
    )]
    Permission(String),
    #[error("it is not a descriptor of a tap that is attached to its interface (TUNSETIFF)")]
    NotAttached,
    #[error("the tap must have IFF_TAP, IFF_NO_PI and IFF_VNET_HDR, but its flags are {0:#x}")]
    Flags(u16),
    #[error("{action} failed")]
    Host { action: &'static str, source: io::Error },
}

fn host<E: Into<io::Error>>(action: &'static str) -> impl FnOnce(E) -> Error {
    move |source| Error::Host { action, source: source.into() }
}

/// Opens `queues` queues, at least 1, of the tap called `name`, which must exist: an interface made on the
/// fly would have no address and lead nowhere.
pub fn open(name: &str, queues: u16) -> Result<Vec<OwnedFd>, Error> {
    let is_name = |byte: u8| byte.is_ascii_graphic() && byte != b'/';
    if name.is_empty() || name.len() >= libc::IFNAMSIZ || !name.bytes().all(is_name) {
        return Err(Error::Name(name.into()));
    }
    if_nametoindex(name).map_err(|_| Error::Missing(name.into()))?;
    if queues == 1 {
        return match open_queue(name, FLAGS) {
            // A tap that can have several queues wants to hear of it, even from who takes only one.
            Err(Error::NotATap) => open_queue(name, FLAGS | libc::IFF_MULTI_QUEUE),
            result => result,
        }
        .map(|queue| vec![queue]);
    }
    let result = (0..queues).map(|_| open_queue(name, FLAGS | libc::IFF_MULTI_QUEUE)).collect();
    match result {
        Err(Error::NotATap) => Err(Error::NotMultiQueue),
        result => result,
    }
}

fn open_queue(name: &str, flags: c_int) -> Result<OwnedFd, Error> {
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .custom_flags(libc::O_NONBLOCK | libc::O_CLOEXEC)
        .open("/dev/net/tun")
        .map_err(host("opening /dev/net/tun"))?;
    let mut request = request(flags);
    for (to, from) in request.ifr_name.iter_mut().zip(name.bytes()) {
        *to = from as libc::c_char;
    }
    // SAFETY: the request is a whole `ifreq`, which the call reads.
    unsafe { ioctl::set_interface(file.as_raw_fd(), &request) }.map_err(|error| match error {
        nix::Error::EBUSY => Error::Busy,
        nix::Error::EINVAL => Error::NotATap,
        nix::Error::EPERM => Error::Permission(name.into()),
        error => host("attaching to the interface")(error),
    })?;
    Ok(file.into())
}

fn request(flags: c_int) -> libc::ifreq {
    // SAFETY: all-zero is a value of this plain C structure.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    request.ifr_ifru.ifru_flags = flags as c_short;
    request
}

/// One queue of a tap.
#[derive(Debug)]
pub struct Tap {
    file: File,
    /// Of the interface.
    name: [libc::c_char; libc::IFNAMSIZ],
    flags: c_int,
    /// Something else that takes and gives frames is in the tap's place. Only where there is no guest.
    is_stand_in: bool,
}

impl Tap {
    /// Takes a queue into use that is attached to its interface. It is enabled then.
    pub fn new(descriptor: OwnedFd) -> Result<Self, Error> {
        let fd = descriptor.as_raw_fd();
        let mut request = request(0);
        // SAFETY: the call fills the request, which is a whole `ifreq`.
        unsafe { ioctl::get_interface(fd, &mut request) }.map_err(|_| Error::NotAttached)?;
        // SAFETY: the call has set the flags.
        let flags = c_int::from(unsafe { request.ifr_ifru.ifru_flags });
        // The kernel says IFF_NOFILTER in the place of IFF_NO_PI, so that this one can hardly be missed.
        if flags & FLAGS != FLAGS {
            return Err(Error::Flags(flags as u16));
        }
        let status = fcntl(&descriptor, FcntlArg::F_GETFL).map_err(host("reading the descriptor's flags"))?;
        let status = OFlag::from_bits_retain(status) | OFlag::O_NONBLOCK;
        fcntl(&descriptor, FcntlArg::F_SETFL(status)).map_err(host("setting the descriptor's flags"))?;
        let size = HEADER_SIZE as c_int;
        // SAFETY: the call reads one int.
        unsafe { ioctl::set_header_size(fd, &size) }.map_err(host("setting the header size"))?;
        let tap = Self { file: descriptor.into(), name: request.ifr_name, flags, is_stand_in: false };
        if flags & libc::IFF_DETACH_QUEUE != 0 {
            // Who had it before has left it so.
            tap.set_enabled(true).map_err(host("enabling a queue of the tap"))?;
        }
        Ok(tap)
    }

    /// Takes anything that hands over a frame with each read and write, such as one end of a pair of datagram
    /// sockets. It must not block.
    #[cfg(any(test, fuzzing))]
    pub fn stand_in(descriptor: OwnedFd) -> Self {
        let flags = FLAGS | libc::IFF_MULTI_QUEUE;
        Self { file: descriptor.into(), name: Default::default(), flags, is_stand_in: true }
    }

    /// Whether both are queues of one interface.
    pub fn is_same_interface(&self, other: &Self) -> bool {
        self.name == other.name
    }

    /// Whether the interface can have more than one queue.
    pub fn is_multi_queue(&self) -> bool {
        self.flags & libc::IFF_MULTI_QUEUE != 0
    }

    /// Says what frames the guest can take; see [`offload`]. It applies to all queues of the interface.
    pub fn set_offloads(&self, offloads: u32) -> io::Result<()> {
        if self.is_stand_in {
            return Ok(());
        }
        // SAFETY: the argument is a plain number.
        unsafe { ioctl::set_offload(self.file.as_raw_fd(), offloads as c_int) }?;
        Ok(())
    }

    /// Lets the host put frames into this queue, or not: then it does not have any either. Only for a tap
    /// that can have several. Fails if it is so already.
    pub fn set_enabled(&self, is_enabled: bool) -> io::Result<()> {
        if self.is_stand_in {
            return Ok(());
        }
        let flag = if is_enabled { libc::IFF_ATTACH_QUEUE } else { libc::IFF_DETACH_QUEUE };
        // SAFETY: the request is a whole `ifreq`, which the call reads.
        unsafe { ioctl::set_queue(self.file.as_raw_fd(), &request(flag)) }?;
        Ok(())
    }

    /// Whether there is a frame to receive.
    pub fn is_readable(&self) -> bool {
        let mut fds = [PollFd::new(self.file.as_fd(), PollFlags::POLLIN)];
        // If that is not to be learned, trying to read will tell.
        poll(&mut fds, PollTimeout::ZERO).is_ok_and(|ready| ready > 0)
    }

    /// Throws away the frames that are waiting, up to more than the host keeps by default.
    pub fn discard_pending(&self) {
        const LIMIT: usize = 2048;
        let mut header = [0; HEADER_SIZE];
        for _ in 0..LIMIT {
            // What does not fit is cut off.
            if (&self.file).read(&mut header).is_err() {
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
        let count = unsafe { libc::readv(self.file.as_raw_fd(), segments.as_ptr(), segments.len() as c_int) };
        usize::try_from(count).map_err(|_| io::Error::last_os_error())
    }

    /// Sends one frame.
    ///
    /// # Safety
    /// Every segment must be valid for reads of its length.
    pub unsafe fn send(&self, segments: &[libc::iovec]) -> io::Result<()> {
        // SAFETY: the caller's promise, and the count is the slice's.
        let count =
            unsafe { libc::writev(self.file.as_raw_fd(), segments.as_ptr(), segments.len() as c_int) };
        if count < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
    }
}

impl AsFd for Tap {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::virtio::net::{Error as InterfaceError, Interface, MacAddress};
    use innkeeper_protocol::Limits;

    const MULTI_QUEUE: c_int = libc::IFF_MULTI_QUEUE;

    /// Runs a test where there are no interfaces but its own.
    fn in_a_namespace(test: impl FnOnce() + Send + 'static) {
        let run = move || {
            // SAFETY: it only changes what this thread sees.
            let result = unsafe { libc::unshare(libc::CLONE_NEWNET) };
            assert_eq!(result, 0, "a network namespace is needed, which takes root");
            test();
        };
        std::thread::spawn(run).join().unwrap();
    }

    fn interface(taps: Vec<OwnedFd>) -> Result<Interface, InterfaceError> {
        let none = Limits::default();
        Interface::new(taps, Vec::new(), MacAddress::from_number(1), none, none)
    }

    fn error(taps: Vec<OwnedFd>) -> String {
        let error = interface(taps).unwrap_err();
        let source = std::error::Error::source(&error).map(|source| format!(": {source}"));
        format!("{error}{}", source.unwrap_or_default())
    }

    #[test]
    fn names_are_checked() {
        for name in ["", "a b", "a/b", "0123456789abcdef", "t\u{e4}p"] {
            assert!(matches!(open(name, 1), Err(Error::Name(_))), "{name:?}");
        }
        assert!(matches!(open("no-such-tap", 1), Err(Error::Missing(_))));
        assert!(matches!(open("lo", 1), Err(Error::NotATap)));
        assert!(matches!(open("lo", 2), Err(Error::NotMultiQueue)));
    }

    #[test]
    fn a_tap_is_opened_as_it_was_made() {
        in_a_namespace(|| {
            let _plain = open_queue("plain", FLAGS).unwrap();
            assert!(matches!(open("plain", 1), Err(Error::Busy)));
            assert!(matches!(open("plain", 2), Err(Error::NotMultiQueue)));
            let _multi = open_queue("multi", FLAGS | MULTI_QUEUE).unwrap();
            assert!(interface(open("multi", 1).unwrap()).is_ok());
            assert!(interface(open("multi", 8).unwrap()).is_ok());
        });
    }

    #[test]
    fn descriptors_are_those_of_one_tap() {
        in_a_namespace(|| {
            let null = || OwnedFd::from(File::open("/dev/null").unwrap());
            let tap = |name, flags| open_queue(name, flags).unwrap();
            let fresh = || OwnedFd::from(File::open("/dev/net/tun").unwrap());
            let cases = [
                (vec![], "1 to 8 taps"),
                ((0..9).map(|_| null()).collect(), "not 9"),
                (vec![null()], "not a descriptor of a tap"),
                (vec![fresh()], "attached"),
                (vec![tap("a", libc::IFF_TUN | libc::IFF_NO_PI | libc::IFF_VNET_HDR)], "must have IFF_TAP"),
                (vec![tap("b", libc::IFF_TAP | libc::IFF_NO_PI)], "IFF_VNET_HDR"),
                (
                    vec![tap("d", FLAGS | MULTI_QUEUE), tap("e", FLAGS | MULTI_QUEUE)],
                    "tap 1 is a queue of another",
                ),
            ];
            for (taps, words) in cases {
                let message = error(taps);
                assert!(message.contains(words), "no {words:?} in: {message}");
            }
            let single = tap("f", FLAGS);
            let twice = vec![single.try_clone().unwrap(), single];
            assert!(error(twice).contains("IFF_MULTI_QUEUE"));
        });
    }

    #[test]
    fn vhost_comes_with_every_tap() {
        in_a_namespace(|| {
            let null = || OwnedFd::from(File::open("/dev/null").unwrap());
            let none = Limits::default();
            for (count, words) in [(1, "vhost 0 cannot be used"), (2, "not 2 for 1")] {
                let tap = open_queue("tap", FLAGS).unwrap();
                let vhost = (0..count).map(|_| null()).collect();
                let made = Interface::new(vec![tap], vhost, MacAddress::from_number(1), none, none);
                let message = made.unwrap_err().to_string();
                assert!(message.contains(words), "{message}");
            }
        });
    }

    fn is_enabled(tap: &Tap) -> bool {
        let mut request = request(0);
        // SAFETY: the call fills the request, flags included.
        let flags = unsafe {
            ioctl::get_interface(tap.file.as_raw_fd(), &mut request).unwrap();
            c_int::from(request.ifr_ifru.ifru_flags)
        };
        flags & libc::IFF_DETACH_QUEUE == 0
    }

    #[test]
    fn queues_are_enabled_from_the_first_on() {
        in_a_namespace(|| {
            let queues: Vec<_> = (0..3).map(|_| open_queue("tap", FLAGS | MULTI_QUEUE).unwrap()).collect();
            let again: Vec<_> = queues.iter().map(|queue| queue.try_clone().unwrap()).collect();
            let one = interface(queues).unwrap();
            for count in [1, 3, 2, 1, 1, 2, 3, 1] {
                one.set_enabled_pairs(count).unwrap();
                let enabled: Vec<_> = (0..3).map(|pair| is_enabled(one.tap(pair).unwrap())).collect();
                assert_eq!(enabled, [true, count > 1, count > 2]);
            }
            one.begin(offload::CHECKSUM | offload::TSO4 | offload::TSO_ECN).unwrap();
            one.quiesce().unwrap();
            // Another VMM takes the descriptors as the last one has left them.
            let other = interface(again).unwrap();
            other.set_enabled_pairs(3).unwrap();
            assert!(is_enabled(one.tap(2).unwrap()));
        });
    }
}
