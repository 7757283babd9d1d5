//! A host of its own in a namespace, with networks on it whose guests are the tests themselves: they hold the taps, and
//! write and read frames. The kernel forwards a frame before its writer goes on, so that what has not arrived soon never
//! does.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::fs::File;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, UdpSocket};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use innkeeper_network::linux::{HostSettings, Namespace, Networks};
use innkeeper_network::plan::{Mac, Vpc};
use innkeeper_network::verdict::Packet;
use innkeeper_network::{Cidr, names};

use crate::wire;

/// How long a frame may take that has to arrive.
pub const PATIENCE: Duration = Duration::from_millis(1000);
/// How long one is waited for that must not.
pub const SOON: Duration = Duration::from_millis(3);

/// Runs a test in a network namespace of its own, which is the host.
pub fn on_a_host(test: impl FnOnce(Lab) + Send) {
    std::thread::scope(|scope| {
        let run = || {
            nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET).expect("root");
            test(Lab::new());
        };
        if let Err(panic) = scope.spawn(run).join() {
            std::panic::resume_unwind(panic);
        }
    });
}

/// The host and its guests.
pub struct Lab {
    pub networks: Networks,
    pub settings: HostSettings,
    directory: tempfile::TempDir,
    taps: BTreeMap<String, File>,
    routers: BTreeMap<String, Mac>,
    seen: RefCell<BTreeMap<String, Vec<Packet>>>,
}

impl Drop for Lab {
    fn drop(&mut self) {
        for vpc in self.networks.existing().unwrap_or_default() {
            let _ = self.networks.remove(&vpc);
        }
    }
}

fn settings() -> HostSettings {
    HostSettings {
        table: "innkeeper-test".into(),
        comment: "a test".into(),
        pool: vec!["198.19.0.0/16".parse().unwrap()],
        address: Some(Ipv4Addr::new(198, 19, 0, 1)),
        masquerade: true,
    }
}

impl Lab {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let networks = Networks::open(directory.path().join("vpcs"), settings()).unwrap();
        Self {
            networks,
            settings: settings(),
            directory,
            taps: BTreeMap::new(),
            routers: BTreeMap::new(),
            seen: RefCell::default(),
        }
    }

    /// As an agent that starts over what the last one has left.
    pub fn restart(&mut self) {
        self.networks = Networks::open(self.directory.path().join("vpcs"), self.settings.clone()).unwrap();
    }

    /// Brings about a plan, with a guest on each of its interfaces.
    pub fn apply(&mut self, vpc: &Vpc) {
        self.networks.apply(vpc).unwrap_or_else(|error| panic!("{error}: {}", error.cause));
        let new: Vec<&String> = vpc.interfaces.keys().filter(|id| !self.taps.contains_key(*id)).collect();
        if new.is_empty() {
            return;
        }
        for id in new {
            let tap = self.networks.open_tap(&vpc.id, id, 1).unwrap().remove(0);
            self.taps.insert(id.clone(), File::from(tap));
        }
        self.networks.apply(vpc).unwrap();
        for (id, interface) in &vpc.interfaces {
            let own = (interface.mac, interface.addresses[0].private);
            let router = router(vpc.subnets[&interface.subnet].cidr);
            let mac = self.ask(id, own, router).unwrap_or_else(|| panic!("{router} does not answer {id}"));
            self.routers.insert(id.clone(), mac);
        }
    }

    /// Takes all guests away.
    pub fn leave_all(&mut self) {
        self.taps.clear();
    }

    /// Asks by ARP who has an address.
    pub fn ask(&mut self, id: &str, own: (Mac, Ipv4Addr), target: Ipv4Addr) -> Option<Mac> {
        self.drain(id);
        self.inject(id, &wire::arp_request(own, target));
        let deadline = Instant::now() + Duration::from_millis(200);
        while Instant::now() < deadline {
            if let Some(frame) = read(&self.taps[id])
                && let Some((address, mac)) = wire::read_arp_reply(&frame)
                && address == target
            {
                return Some(mac);
            }
            std::thread::sleep(Duration::from_micros(100));
        }
        None
    }

    /// Lets a guest answer whoever asks by ARP for its address, once.
    pub fn answer(&self, id: &str, own: (Mac, Ipv4Addr)) {
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Some(asker) =
                read(&self.taps[id]).as_deref().and_then(|frame| wire::read_arp_request(frame, own.1))
            {
                return self.inject(id, &wire::arp_reply(own, asker));
            }
            assert!(Instant::now() < deadline, "nobody asks");
            std::thread::sleep(Duration::from_micros(100));
        }
    }

    fn drain(&self, id: &str) {
        while read(&self.taps[id]).is_some() {}
    }

    /// Lets a guest send a packet to its router.
    pub fn send(&self, id: &str, mac: Mac, packet: Packet, flags: u8) {
        self.send_bytes(id, mac, &wire::ipv4(packet, flags));
    }

    /// Lets a guest send to its router what is a packet, or a part of one.
    pub fn send_bytes(&self, id: &str, mac: Mac, packet: &[u8]) {
        self.inject(id, &wire::frame(self.routers[id], mac, packet));
    }

    /// Lets a guest send a frame, with a header in front.
    pub fn inject(&self, id: &str, frame: &[u8]) {
        (&self.taps[id]).write_all(frame).unwrap();
    }

    /// Whether a packet arrives at a guest within a time, or has arrived since [`Lab::forget`].
    pub fn arrives(&self, id: &str, packet: Packet, time: Duration) -> bool {
        self.any_arrives(id, &[packet], time)
    }

    /// As [`Lab::arrives`], in any of these forms.
    pub fn any_arrives(&self, id: &str, forms: &[Packet], time: Duration) -> bool {
        let end = Instant::now() + time;
        loop {
            let mut seen = self.seen.borrow_mut();
            let seen = seen.entry(id.to_owned()).or_default();
            while let Some(frame) = read(&self.taps[id]) {
                seen.extend(frame.get(wire::HEADER + 14..).and_then(wire::read_ipv4));
            }
            if seen.iter().any(|packet| forms.contains(packet)) {
                return true;
            }
            if Instant::now() >= end {
                return false;
            }
            std::thread::sleep(Duration::from_micros(100));
        }
    }

    /// Forgets what has arrived.
    pub fn forget(&self) {
        self.seen.borrow_mut().clear();
    }

    /// What is outside of a VPC.
    pub fn outside(&self, vpc: &str) -> Outside {
        let (inside, outside) = names::uplink_macs(vpc);
        Outside::open(&names::host_link(vpc), inside, outside)
    }

    /// The other end of that, inside of a VPC: what is sent here has passed its rules.
    pub fn uplink(&self, vpc: &str) -> Outside {
        let (inside, outside) = names::uplink_macs(vpc);
        self.networks.enter(vpc, || Ok(Outside::open(names::UPLINK, outside, inside))).unwrap()
    }

    /// Makes a network behind the host, of which nothing else is known to it.
    pub fn world(&self) -> World {
        World::open(self.directory.path())
    }
}

/// The router of a subnet.
pub fn router(subnet: Cidr) -> Ipv4Addr {
    Ipv4Addr::from_bits(subnet.first().to_bits() + 1)
}

fn read(mut tap: &File) -> Option<Vec<u8>> {
    let mut buffer = vec![0; 66000];
    let length = tap.read(&mut buffer).ok()?;
    buffer.truncate(length);
    Some(buffer)
}

/// An end of a VPC's uplink, where packets are put in and looked at as they are.
pub struct Outside {
    socket: OwnedFd,
    other: Mac,
    own: Mac,
}

impl Outside {
    fn open(name: &str, other: Mac, own: Mac) -> Self {
        let protocol = (libc::ETH_P_ALL as u16).to_be();
        // SAFETY: no memory is involved; the descriptor is checked.
        let socket = unsafe {
            libc::socket(
                libc::AF_PACKET,
                libc::SOCK_RAW | libc::SOCK_NONBLOCK | libc::SOCK_CLOEXEC,
                protocol.into(),
            )
        };
        assert!(socket >= 0);
        // SAFETY: it is open, and nobody else's.
        let socket = unsafe { OwnedFd::from_raw_fd(socket) };
        // SAFETY: all zeroes are a valid address.
        let mut address: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
        address.sll_family = libc::AF_PACKET as u16;
        address.sll_protocol = protocol;
        address.sll_ifindex = nix::net::if_::if_nametoindex(name).unwrap() as i32;
        // SAFETY: the address is whole, and lives as long as the call.
        let bound = unsafe {
            libc::bind(socket.as_raw_fd(), (&raw const address).cast(), size_of::<libc::sockaddr_ll>() as u32)
        };
        assert_eq!(bound, 0);
        Self { socket, other, own }
    }

    /// Sends a packet to the other end.
    pub fn send(&self, packet: Packet, flags: u8) {
        self.send_bytes(&wire::ipv4(packet, flags));
    }

    /// Sends what is a packet, or a part of one, to the other end.
    pub fn send_bytes(&self, packet: &[u8]) {
        let frame = wire::frame(self.other, self.own, packet);
        let frame = &frame[wire::HEADER..];
        // SAFETY: the bytes live as long as the call.
        let sent = unsafe { libc::send(self.socket.as_raw_fd(), frame.as_ptr().cast(), frame.len(), 0) };
        assert_eq!(sent, frame.len() as isize);
    }

    /// Whether a packet comes out within a time.
    pub fn arrives(&self, packet: Packet, time: Duration) -> bool {
        self.any_arrives(&[packet], time)
    }

    /// As [`Outside::arrives`], in any of these forms.
    pub fn any_arrives(&self, forms: &[Packet], time: Duration) -> bool {
        let end = Instant::now() + time;
        let mut buffer = vec![0_u8; 66000];
        loop {
            loop {
                // SAFETY: the buffer is as long as it says, and lives as long as the call.
                let length = unsafe {
                    libc::recv(self.socket.as_raw_fd(), buffer.as_mut_ptr().cast(), buffer.len(), 0)
                };
                let Ok(length) = usize::try_from(length) else { break };
                // What was sent in is seen here too.
                let is_outgoing = buffer[6..12] == self.other.0;
                let packet = wire::read_ipv4(&buffer[14..length]);
                if is_outgoing && packet.is_some_and(|packet| forms.contains(&packet)) {
                    return true;
                }
            }
            if Instant::now() >= end {
                return false;
            }
            std::thread::sleep(Duration::from_micros(100));
        }
    }
}

/// Somebody out in the world, in a namespace of his own, who knows the way to public addresses.
pub struct World {
    path: PathBuf,
    namespace: Namespace,
}

impl World {
    /// Its address, and the host's.
    pub const ADDRESS: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 1);
    pub const HOST: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 2);

    fn open(directory: &Path) -> Self {
        let path = directory.join("world");
        let (namespace, _) = Namespace::open_or_make(&path).unwrap();
        let world = Self { path, namespace };
        on_host(&format!(
            "ip link add world type veth peer name host
             ip link set host netns {}
             ip address add {}/24 dev world
             ip link set world up",
            world.path.display(),
            Self::HOST
        ));
        let far = format!(
            "ip address add {}/24 dev host && ip link set host up && ip route add 198.19.0.0/16 via {}",
            Self::ADDRESS,
            Self::HOST
        );
        assert!(world.namespace.enter(|| Command::new("sh").args(["-c", &far]).status()).unwrap().success());
        world
    }

    /// Where its namespace is mounted.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// A socket there.
    pub fn socket(&self, port: u16) -> UdpSocket {
        let socket = self.namespace.enter(|| UdpSocket::bind((Self::ADDRESS, port))).unwrap();
        socket.set_read_timeout(Some(20 * SOON)).unwrap();
        socket
    }
}

impl Drop for World {
    fn drop(&mut self) {
        let _ = Namespace::remove(&self.path);
    }
}

/// Runs commands in the namespace of the calling thread, which has to be a test's own.
pub fn on_host(commands: &str) {
    let status = Command::new("sh").args(["-ec", commands]).status().unwrap();
    assert!(status.success(), "{commands}");
}
