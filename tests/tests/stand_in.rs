//! The stand-in VMM, with a controller of the tests' own and with the real daemon; and what is there to try networks
//! with, tried on a network that is known to work.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV4};
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use innkeeper_protocol::{Command, ConsoleKind, DriverState, Ending, FailureCode, Happening, State};
use innkeeper_tests::agent::{Agent, IMPATIENT, TINY};
use innkeeper_tests::controller::{self, Boot, Controller, Machine};
use innkeeper_tests::ec2::console_text;
use innkeeper_tests::network::echo::Attempt;
use innkeeper_tests::network::frame::{self, ArpOperation, Mac};
use innkeeper_tests::network::{Namespace, Place};
use innkeeper_tests::stand_in::{self, BANNER, Guest};
use innkeeper_tests::{Vmm, exchange, path};

const PATIENCE: Duration = Duration::from_secs(20);
/// How long to wait for what is not to come.
const MOMENT: Duration = Duration::from_millis(300);
const HOST: Ipv4Addr = Ipv4Addr::new(10, 9, 0, 1);
const GUEST: Ipv4Addr = Ipv4Addr::new(10, 9, 0, 2);
const MAC: &str = "02:00:00:00:00:09";
const SECOND_MAC: &str = "02:00:00:00:00:0a";

/// A guest that runs, with one interface, at the other end of a tap called `tap0` with address [`HOST`].
struct Lab {
    namespace: Namespace,
    guest: Guest,
    controller: Controller,
    vmm: Vmm,
    _consoles: (OwnedFd, OwnedFd),
    directory: tempfile::TempDir,
}

impl Lab {
    /// The guest's interface has no address.
    fn start() -> Result<Self> {
        let namespace = Namespace::new()?;
        make_tap(&namespace, "tap0", "10.9.0.1/24")?;
        let directory = tempfile::tempdir()?;
        let (vmm, mut controller, consoles) = stand_in::serve()?;
        let guest = Guest::of_vmm(vmm.pid())?;
        let listener = controller::listener(&directory.path().join("control"))?;
        controller.configure(&Machine::new(Boot::payload("idle")), Some(&listener))?;
        controller.attach_interface("eni-1", &namespace.open_tap("tap0", 1)?, MAC)?;
        ensure!(guest.interfaces()?.is_empty(), "there is no guest yet that could see it");
        controller.subscribe()?;
        controller.say(Command::Start)?;
        controller.expect(&Happening::Started, PATIENCE)?;
        ensure!(guest.wait_for_interface(MAC.parse()?, PATIENCE)? == "eth0");
        Ok(Self { namespace, guest, controller, vmm, _consoles: consoles, directory })
    }

    /// The guest's interface has the address [`GUEST`].
    fn with_address() -> Result<Self> {
        let lab = Self::start()?;
        lab.guest.set_address("eth0", "10.9.0.2/24", None)?;
        Ok(lab)
    }

    fn socket(&self) -> PathBuf {
        self.directory.path().join("control")
    }
}

fn make_tap(namespace: &Namespace, name: &str, address: &str) -> Result<()> {
    namespace.run(&format!(
        "ip tuntap add {name} mode tap vnet_hdr && ip address add {address} dev {name} && ip link set {name} up"
    ))?;
    Ok(())
}

/// Sends 32 MiB each way at the same time, which must arrive as they were sent.
fn exchange_much(from: &Place, to: &Place, address: Ipv4Addr) -> Result<()> {
    const MUCH: u64 = 32 << 20;
    let listener = to.listen(0)?;
    let port = listener.local_addr()?.port();
    let other = std::thread::spawn(move || exchange::answer(OwnedFd::from(listener.accept()?.0).into()));
    let stream = from.connect(address, port, PATIENCE)?.connected()?.into_stream();
    exchange::begin(OwnedFd::from(stream).into(), MUCH)?;
    other.join().expect("the other side does not panic")?;
    Ok(())
}

#[test]
fn frames_go_both_ways_large_and_small() -> Result<()> {
    let mut lab = Lab::with_address()?;
    let (host, guest) = (&lab.namespace, &lab.guest);
    ensure!(guest.ping(HOST)? && host.ping(GUEST)?, "no ping");
    exchange_much(guest, host, HOST)?;
    let metrics = lab.controller.metrics()?;
    let counts = &metrics.interfaces["eni-1"];
    let [received, sent] =
        [(counts.received_bytes, counts.received_frames), (counts.sent_bytes, counts.sent_frames)];
    for (bytes, frames) in [received, sent] {
        // Segments larger than the MTU pass whole, so that there are fewer than of 1500 bytes.
        ensure!(bytes > 32 << 20 && frames < bytes / 1500, "{counts:?}");
    }
    host.run("ip link set tap0 mtu 9001")?;
    guest.run("ip link set eth0 mtu 9001")?;
    // With the IP header and that of ICMP: 9001 bytes, in one packet.
    host.run("ping -q -c 1 -M do -s 8973 -W 5 10.9.0.2")?;
    guest.run("ping -q -c 1 -M do -s 8973 -W 5 10.9.0.1")?;
    exchange_much(host, guest, GUEST)
}

#[test]
fn interfaces_come_and_go_while_the_guest_runs() -> Result<()> {
    let mut lab = Lab::with_address()?;
    lab.namespace.run(
        "ip tuntap add tap1 mode tap vnet_hdr multi_queue && ip address add 10.9.1.1/24 dev tap1 && \
         ip link set tap1 up",
    )?;
    for _ in 0..3 {
        let tap = lab.namespace.open_tap("tap1", 2)?;
        ensure!(lab.controller.attach_interface("eni-2", &tap, SECOND_MAC)? == 2);
        ensure!(lab.guest.wait_for_interface(SECOND_MAC.parse()?, PATIENCE)? == "eth1");
        lab.guest.set_address("eth1", "10.9.1.2/24", None)?;
        ensure!(lab.guest.ping(Ipv4Addr::new(10, 9, 1, 1))?, "no ping by the second interface");
        // Whichever of the two queues the host sends them by.
        let server = lab.guest.serve_tcp(0)?;
        for _ in 0..8 {
            let attempt = lab.namespace.connect(Ipv4Addr::new(10, 9, 1, 2), server.port(), PATIENCE)?;
            attempt.connected()?.echo(b"by any queue")?;
        }
        lab.controller.detach("eni-2", false)?;
        lab.controller.expect(&Happening::DeviceFreed { id: "eni-2".into() }, PATIENCE)?;
        ensure!(lab.guest.interfaces()?.len() == 1);
        ensure!(lab.guest.ping(HOST)?, "the other one is as it was");
    }
    // What the host takes away shows.
    lab.namespace.run("ip link delete tap0")?;
    let deadline = Instant::now() + PATIENCE;
    while lab.controller.status()?.devices[0].driver != DriverState::NeedsReset {
        ensure!(Instant::now() < deadline, "nobody has seen that the tap is gone");
        std::thread::sleep(Duration::from_millis(5));
    }
    Ok(())
}

#[test]
fn a_guest_outlives_its_controller_and_obeys_the_next() -> Result<()> {
    let mut lab = Lab::with_address()?;
    let server = lab.guest.serve_tcp(80)?;
    let mut connection = lab.namespace.connect(GUEST, 80, PATIENCE)?.connected()?;
    let socket = lab.socket();
    drop(lab.controller);
    let mut first = Controller::connect(&socket)?;
    let mut second = Controller::connect(&socket)?;
    for controller in [&mut first, &mut second] {
        let status = controller.status()?;
        ensure!(status.state == State::Running && status.devices.len() == 1, "{status:?}");
        ensure!(controller.history(ConsoleKind::Serial)? == BANNER);
        controller.subscribe()?;
        controller.expect(&Happening::Started, PATIENCE)?;
    }
    connection.echo(b"still there")?;
    ensure!(server.seen().len() == 1, "{:?}", server.seen());
    let gone = first.refused(Command::Detach { id: "eni-2".into(), force: true }, &[])?;
    ensure!(gone.code == FailureCode::NotFound, "{gone:?}");
    let refused = first.refused(Command::Pause, &[])?;
    ensure!(refused.code == FailureCode::Unsupported, "{refused:?}");

    // A reset is a guest that has to be given its address again; nobody says what to boot.
    first.say(Command::Reset)?;
    second.wait_for(|what| matches!(what, Happening::BootSourceWanted { .. }), PATIENCE)?;
    second.expect(&Happening::Started, PATIENCE)?;
    ensure!(first.status()?.resets == 1);
    ensure!(lab.guest.interfaces()?.len() == 1 && !lab.guest.ping(HOST)?, "it has kept its address");
    lab.guest.set_address("eth0", "10.9.0.2/24", None)?;
    ensure!(lab.guest.ping(HOST)?);

    first.say(Command::PowerButton)?;
    for controller in [&mut first, &mut second] {
        controller.expect(&Happening::Ended(Ending::PowerOff), PATIENCE)?;
    }
    ensure!(
        lab.guest.interfaces()?.is_empty() && first.history(ConsoleKind::Serial)?.len() == 2 * BANNER.len()
    );
    second.say(Command::Quit)?;
    lab.vmm.wait_for_code(0, PATIENCE)
}

/// A VMM that was told nothing yet must not be left behind by an agent that dies.
#[test]
fn without_a_listener_the_vmm_ends_with_its_controller() -> Result<()> {
    let (mut vmm, controller, _consoles) = stand_in::serve()?;
    drop(controller);
    vmm.wait_for_code(3, PATIENCE)
}

#[test]
fn a_lease_is_got_and_used() -> Result<()> {
    let lab = Lab::start()?;
    ensure!(lab.guest.lease("eth0").is_err(), "there is no server");
    let configuration = lab.directory.path().join("udhcpd.conf");
    let leases = lab.directory.path().join("leases");
    std::fs::write(&leases, "")?;
    let text = format!(
        "start 10.9.0.50\nend 10.9.0.50\ninterface tap0\nlease_file {leases}\npidfile {directory}/pid\n\
         opt subnet 255.255.255.0\nopt router 10.9.0.1\nopt dns 10.9.0.2 10.9.0.3\nopt domain ec2.internal\n\
         opt hostname ip-10-9-0-50\nopt mtu 9001\nopt lease 3600\n",
        leases = path(&leases),
        directory = path(lab.directory.path()),
    );
    std::fs::write(&configuration, text)?;
    let mut command = lab.namespace.command("busybox");
    let mut server =
        command.args(["udhcpd", "-f"]).arg(&configuration).stderr(std::process::Stdio::null()).spawn()?;
    let lease = lab.guest.lease("eth0");
    server.kill()?;
    server.wait()?;
    let lease = lease?;
    let expected = Ipv4Addr::new(10, 9, 0, 50);
    ensure!((lease.address, lease.prefix, lease.router) == (expected, 24, Some(HOST)), "{lease:?}");
    ensure!(lease.dns == [GUEST, Ipv4Addr::new(10, 9, 0, 3)] && lease.mtu == Some(9001), "{lease:?}");
    ensure!(lease.domain.as_deref() == Some("ec2.internal") && lease.seconds == 3600, "{lease:?}");
    ensure!(lease.hostname.as_deref() == Some("ip-10-9-0-50"), "{lease:?}");
    ensure!(lease.server == Some(HOST), "{lease:?}");
    // By the router, which knows the way to itself.
    lab.namespace.run("ip address add 192.0.2.1/32 dev lo")?;
    ensure!(lab.guest.ping(Ipv4Addr::new(192, 0, 2, 1))?, "the lease is not used");
    ensure!(lab.guest.run("ip link show eth0")?.contains("mtu 9001"));
    Ok(())
}

#[test]
fn who_answers_and_who_does_not_can_be_told_apart() -> Result<()> {
    let lab = Lab::with_address()?;
    let (host, guest) = (&lab.namespace, &lab.guest);
    let (tcp, udp) = (host.serve_tcp(0)?, host.serve_udp(0)?);
    let mut connection = guest.connect(HOST, tcp.port(), PATIENCE)?.connected()?;
    connection.echo(&[7; 60_000])?;
    ensure!(tcp.seen() == [connection.stream().local_addr()?], "{:?}", tcp.seen());
    let asked = guest.udp(HOST, udp.port(), b"hello?", PATIENCE)?;
    ensure!(asked.as_deref() == Some(b"hello?"), "{asked:?}");
    ensure!(udp.seen().iter().map(SocketAddr::ip).collect::<Vec<_>>() == [IpAddr::V4(GUEST)]);
    // A port where nobody is, a network where there is no way to, and a host that says nothing.
    let port = tcp.port();
    drop(tcp);
    let refused = guest.connect(HOST, port, PATIENCE)?;
    ensure!(matches!(refused, Attempt::Refused), "{refused:?}");
    let unreachable = guest.connect(Ipv4Addr::new(192, 0, 2, 1), 80, PATIENCE)?;
    ensure!(matches!(unreachable, Attempt::Unreachable), "{unreachable:?}");
    ensure!(guest.udp(HOST, port, b"hello?", PATIENCE)?.is_none());
    host.run("ip route add blackhole 10.9.0.2/32")?;
    let silence = guest.connect(HOST, port, MOMENT)?;
    ensure!(matches!(silence, Attempt::TimedOut), "{silence:?}");
    ensure!(guest.udp(HOST, udp.port(), b"hello?", MOMENT)?.is_none() && !guest.ping(HOST)?);
    // The connection that was made did not outlive the server.
    ensure!(connection.echo(b"?").is_err());
    // A guest talks to itself, too.
    let own = guest.serve_tcp(0)?;
    guest.connect(Ipv4Addr::LOCALHOST, own.port(), PATIENCE)?.connected()?.echo(b"!")?;
    guest.connect(Ipv6Addr::LOCALHOST, own.port(), PATIENCE)?.connected()?.echo(b"!")
}

#[test]
fn forged_frames_arrive_as_they_were_made() -> Result<()> {
    let lab = Lab::with_address()?;
    let (host, guest) = (&lab.namespace, &lab.guest);
    let mac: Mac = MAC.parse()?;
    let strange = Mac([2, 0, 0, 0, 0, 0x66]);
    let stranger = Ipv4Addr::new(10, 9, 0, 66);
    let [at_host, at_guest] = [host.capture("tap0")?, guest.capture("eth0")?];

    let claim = frame::arp(ArpOperation::Reply, (strange, stranger), (Mac::BROADCAST, HOST));
    let claim = frame::ethernet(Mac::BROADCAST, strange, frame::ARP, &claim);
    guest.send_frame("eth0", &claim)?;
    let seen = at_host.wait_for(|frame| frame.bytes.starts_with(&claim), PATIENCE)?;
    ensure!(!seen.is_outgoing);
    let sent = at_guest.wait_for(|frame| frame.bytes == claim, PATIENCE)?;
    ensure!(sent.is_outgoing);

    // From an address that is not the guest's: the host has no doubts, and answers.
    host.run(&format!("ip neighbour replace {stranger} lladdr {mac} dev tap0"))?;
    let ping = frame::ipv4(stranger, HOST, frame::ICMP, &frame::echo_request(1, 1, b"boo"));
    let host_mac = host.interfaces()?.first().context("no tap0")?.1;
    guest.send_frame("eth0", &frame::ethernet(host_mac, mac, frame::IPV4, &ping))?;
    let is_answer = |bytes: &[u8]| {
        let parsed = frame::parse_ethernet(bytes).and_then(|(_, _, _, packet)| frame::parse_ipv4(packet));
        parsed.is_some_and(|(from, to, protocol, _)| (from, to, protocol) == (HOST, stranger, frame::ICMP))
    };
    at_guest.wait_for(|frame| is_answer(&frame.bytes), PATIENCE)?;

    // UDP, to a socket.
    let server = host.serve_udp(0)?;
    let (from, to) = (SocketAddrV4::new(GUEST, 7), SocketAddrV4::new(HOST, server.port()));
    guest.send_frame("eth0", &frame::udp_frame((host_mac, to), (mac, from), b"by hand"))?;
    let is_echo = |bytes: &[u8]| frame::parse_udp_frame(bytes) == Some((to, from, b"by hand"));
    at_guest.wait_for(|frame| is_echo(&frame.bytes), PATIENCE)?;
    ensure!(server.seen() == [SocketAddr::V4(from)]);

    // A router that is none: it is believed, as the host has nothing against it.
    let router = Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 0x66);
    let prefix = Ipv6Addr::new(0x2001, 0xdb8, 0, 0x66, 0, 0, 0, 0);
    host.send_frame("tap0", &frame::router_advertisement((strange, router), prefix))?;
    let deadline = Instant::now() + PATIENCE;
    while !guest.run("ip -6 address show dev eth0")?.contains("2001:db8:0:66:") {
        ensure!(Instant::now() < deadline, "no address by the advertisement");
        std::thread::sleep(Duration::from_millis(20));
    }
    Ok(())
}

/// A server of DHCP that a guest could be, made by hand.
#[test]
fn a_forged_lease_is_believed_where_nobody_prevents_it() -> Result<()> {
    let lab = Lab::start()?;
    let (host, guest) = (&lab.namespace, &lab.guest);
    let requests = host.capture("tap0")?;
    let [address, server] = [Ipv4Addr::new(10, 9, 0, 77), HOST];
    let host_mac = host.interfaces()?.first().context("no tap0")?.1;
    let answer = |wanted: u8, kind: u8| -> Result<()> {
        let message = |bytes: &[u8]| {
            let (_, to, message) = frame::parse_udp_frame(bytes)?;
            (to.port() == 67 && frame::dhcp_option(message, 53) == Some(&[wanted])).then(|| message.to_vec())
        };
        let request = requests.wait_for(|frame| message(&frame.bytes).is_some(), PATIENCE)?;
        let request = message(&request.bytes).unwrap_or_default();
        let options: [(u8, &[u8]); 2] = [(1, &[255; 4]), (51, &[0, 0, 0, 60])];
        let answer = frame::dhcp_answer(&request, kind, address, server, &options)?;
        let (from, to) = (SocketAddrV4::new(server, 67), SocketAddrV4::new(address, 68));
        host.send_frame("tap0", &frame::udp_frame((Mac::BROADCAST, to), (host_mac, from), &answer))
    };
    let lease = std::thread::scope(|scope| {
        let lease = scope.spawn(|| guest.lease("eth0"));
        answer(1, 2)?;
        answer(3, 5)?;
        lease.join().expect("the client does not panic")
    })?;
    ensure!((lease.address, lease.prefix, lease.seconds) == (address, 32, 60), "{lease:?}");
    Ok(())
}

#[test]
fn the_daemon_takes_it_for_its_vmm() -> Result<()> {
    let mut agent = Agent::start_on(&stand_in::vmm(), IMPATIENT)?;
    let image = agent.register("stand-in", &stand_in::template(&agent)?)?;
    let mut client = agent.client()?;
    let ids = [client.launch(&image, TINY)?];
    let id = &ids[0];
    client.wait_for(&ids, "running", PATIENCE)?;
    agent.wait_for_vmms(1)?;
    let guest = Guest::of(&agent, id)?;
    ensure!(agent.vmms()? == [guest.pid()]);
    let described = client.ask("DescribeInstances", &[("InstanceId.1", id)])?;
    ensure!(described.contains("<name>running</name>"), "{described}");
    let server = guest.serve_tcp(0)?;
    guest.connect(Ipv4Addr::LOCALHOST, server.port(), PATIENCE)?.connected()?.echo(b"anybody home?")?;

    // It does not go with the daemon, and the next one has it.
    agent.kill()?;
    agent.resume()?;
    client = agent.client()?;
    client.wait_for(&ids, "running", PATIENCE)?;
    ensure!(agent.vmms()? == [guest.pid()], "it was started anew");
    let console = |client: &innkeeper_tests::ec2::Client| {
        console_text(&client.ask("GetConsoleOutput", &[("InstanceId", id)])?)
    };
    ensure!(console(&client)? == BANNER, "{:?}", console(&client)?);

    client.ask("RebootInstances", &[("InstanceId.1", id)])?;
    let deadline = Instant::now() + PATIENCE;
    while console(&client)? != BANNER.repeat(2) {
        ensure!(Instant::now() < deadline, "no reboot: {:?}{}", console(&client)?, agent.last_words());
        std::thread::sleep(Duration::from_millis(5));
    }
    client.ask("StopInstances", &[("InstanceId.1", id)])?;
    client.wait_for(&ids, "stopped", PATIENCE)?;
    agent.wait_for_vmms(0)?;
    ensure!(Guest::of(&agent, id).is_err(), "there is no guest");

    client.ask("StartInstances", &[("InstanceId.1", id)])?;
    client.wait_for(&ids, "running", PATIENCE)?;
    let again = Guest::of(&agent, id)?;
    ensure!(again.pid() != guest.pid() && !again.is_same(&guest)?);
    client.ask("TerminateInstances", &[("InstanceId.1", id)])?;
    client.wait_for(&ids, "terminated", PATIENCE)?;
    agent.wait_for_vmms(0)
}
