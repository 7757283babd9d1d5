//! What a greedy guest gets of the service, and what that costs its neighbour and the daemon: hardly anything.

use std::io::{ErrorKind, Read, Write};
use std::net::{Ipv4Addr, Shutdown, TcpStream, UdpSocket};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use innkeeper_tests::agent::IMPATIENT;
use innkeeper_tests::network::Place;
use innkeeper_tests::stand_in::{Guest, Lab, eventually};
use nix::sys::socket::{setsockopt, sockopt};

use super::PATIENCE;
use super::wire::{HTTP, SERVICE, Wire, get, once};

/// The connections of one address.
const SHARE: usize = 32;
/// How long a guest may take for a request.
const TIME: Duration = Duration::from_secs(10);
/// How long a neighbour may have to wait for an answer, on a machine that has a lot to do. It is less than what TCP waits
/// before it says something again.
const PROMPT: Duration = Duration::from_millis(900);
/// What the daemon may need more, in bytes.
const MEMORY: usize = 24 << 20;
/// The packets that an interface may send to the services in a second.
const PACKETS: f64 = 1024.0;

/// A greedy guest and its neighbour.
struct Neighbours {
    lab: Lab,
    ids: [String; 2],
    greedy: Guest,
    neighbour: Guest,
    /// What the daemon needed before, in bytes.
    memory: usize,
}

impl Neighbours {
    fn move_in(more: &str) -> Result<Self> {
        let lab = Lab::start_with(&format!("{IMPATIENT}\n{more}"))?;
        let user_data = BASE64_STANDARD.encode([b'x'; 16 << 10]);
        let ids = [lab.launch_with(&[("UserData", &user_data)])?, lab.launch()?];
        let (greedy, neighbour) = (lab.guest(&ids[0])?, lab.guest(&ids[1])?);
        let all = Self { memory: resident(&lab)?, lab, ids, greedy, neighbour };
        all.is_served()?;
        Ok(all)
    }

    /// How long the neighbour waits for an answer, on a new connection.
    fn is_served(&self) -> Result<Duration> {
        let asked = Instant::now();
        let answer = once(&self.neighbour, &get("/latest/meta-data/instance-id"))?;
        ensure!(answer.text()? == self.ids[1]);
        let waited = asked.elapsed();
        ensure!(waited < PROMPT, "the neighbour waited for {waited:?}");
        Ok(waited)
    }

    /// Lets the neighbour ask all the time while something else happens; says how long it has waited.
    fn is_served_during<T>(&self, what: &str, action: impl FnOnce() -> Result<T>) -> Result<T> {
        let is_over = AtomicBool::new(false);
        std::thread::scope(|scope| {
            let neighbour = scope.spawn(|| -> Result<Vec<Duration>> {
                let mut waited = Vec::new();
                while !is_over.load(Ordering::Relaxed) {
                    waited.push(self.is_served()?);
                    std::thread::sleep(Duration::from_millis(10));
                }
                Ok(waited)
            });
            let done = action();
            is_over.store(true, Ordering::Relaxed);
            let waited = neighbour.join().map_err(|_| anyhow::anyhow!("the neighbour has panicked"))?;
            let mut waited = waited.with_context(|| what.to_owned())?;
            waited.sort();
            let median = waited.get(waited.len() / 2).copied().unwrap_or_default();
            let longest = waited.last().copied().unwrap_or_default();
            println!(
                "{what}: a neighbour is answered {} times, in {median:.1?}, {longest:.1?} at most",
                waited.len()
            );
            done
        })
    }

    /// Expects that the daemon needs not much more than before.
    fn is_frugal(&self, what: &str) -> Result<()> {
        let more = resident(&self.lab)?.saturating_sub(self.memory);
        println!("{what}: the daemon needs {} KiB more", more >> 10);
        ensure!(more < MEMORY, "{what}: the daemon needs {more} bytes more");
        Ok(())
    }

    fn move_out(&self) -> Result<()> {
        self.lab.end("TerminateInstances", &self.ids, "terminated")
    }
}

/// What the daemon has in memory, in bytes.
fn resident(lab: &Lab) -> Result<usize> {
    let pid = lab.agent.pid().context("no daemon")?;
    let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).context("no VmRSS")?;
    Ok(line.trim().trim_end_matches(" kB").parse::<usize>()? << 10)
}

/// Connects many times. Those that are refused may be reset before one has them.
fn connect(place: &Place, count: usize) -> Result<Vec<TcpStream>> {
    let connect = || -> Result<Option<TcpStream>> {
        match TcpStream::connect((SERVICE, HTTP)) {
            Ok(stream) => {
                stream.set_nonblocking(true)?;
                Ok(Some(stream))
            }
            Err(error) if error.kind() == ErrorKind::ConnectionReset => Ok(None),
            Err(error) => Err(error.into()),
        }
    };
    place.inside(|| (0..count).filter_map(|_| connect().transpose()).collect())
}

/// Expects that a further connection is closed at once.
fn is_refused(place: &Place) -> Result<()> {
    match Wire::open(place) {
        Ok(mut wire) => wire.expect_end(PATIENCE),
        Err(error) => {
            let kind = error.downcast_ref::<std::io::Error>().map(std::io::Error::kind);
            ensure!(kind == Some(ErrorKind::ConnectionReset), "{error}");
            Ok(())
        }
    }
}

/// Whether the other end has closed it.
fn is_closed(mut stream: &TcpStream) -> bool {
    !matches!(stream.read(&mut [0; 64]), Err(error) if error.kind() == ErrorKind::WouldBlock)
}

#[test]
fn a_guest_has_its_share_of_connections() -> Result<()> {
    let all = Neighbours::move_in("")?;
    let ask = get("/latest/meta-data/instance-id");
    let mut wires = Vec::new();
    for _ in 0..SHARE {
        let mut wire = Wire::open(&all.greedy)?;
        ensure!(wire.ask(&ask)?.text()? == all.ids[0]);
        wires.push(wire);
    }
    for _ in 0..2 * SHARE {
        is_refused(&all.greedy)?;
        all.is_served()?;
    }
    // Another address is no other guest.
    let interface = all.lab.described(&all.ids[0], "networkInterfaceId")?.context("an interface")?;
    let second = "172.31.0.200";
    let more = [("NetworkInterfaceId", interface.as_str()), ("PrivateIpAddress.1", second)];
    all.lab.client.ask("AssignPrivateIpAddresses", &more)?;
    all.greedy.run(&format!("ip address add {second}/20 dev eth0"))?;
    let by_second = || -> Result<(Option<i32>, String)> {
        let line = "curl -sS --max-time 5 http://169.254.169.254/latest/meta-data/instance-id --interface";
        let asked = all.greedy.output(&["sh", "-c", &format!("{line} {second}")])?;
        Ok((asked.status.code(), String::from_utf8(asked.stdout)?))
    };
    // It ends in the middle, or is reset.
    eventually("its other address is closed the door", || Ok(matches!(by_second()?.0, Some(7 | 52 | 56))))?;
    for wire in &mut wires {
        ensure!(wire.ask(&ask)?.text()? == all.ids[0]);
    }
    wires.pop();
    eventually("it is let in by its other address", || Ok(by_second()?.1 == all.ids[0]))?;
    eventually("there is room for another one", || Ok(once(&all.greedy, &ask).is_ok()))?;
    drop(wires);
    eventually("it is served again", || Ok(once(&all.greedy, &ask).is_ok()))?;
    all.move_out()
}

/// Connections that say nothing, or half of something, or something very slowly.
#[test]
fn half_requests_end_soon() -> Result<()> {
    const COUNT: usize = 200;
    let all = Neighbours::move_in("service-packets = 0")?;
    let began = Instant::now();
    let streams = connect(&all.greedy, COUNT)?;
    let halves = [
        "",
        "G",
        "GET /latest/ HTTP/1.1\r\nX-Slow: ",
        "PUT /latest/api/token HTTP/1.1\r\nContent-Length: 9\r\n\r\n",
    ];
    for (mut stream, half) in streams.iter().zip(halves.iter().cycle()) {
        let _ = stream.write_all(half.as_bytes());
    }
    let open = || streams.iter().filter(|stream| !is_closed(stream)).count();
    eventually("what is more than its share is closed", || Ok(open() <= SHARE))?;
    ensure!(began.elapsed() < TIME / 2, "after {:?}", began.elapsed());
    all.is_served_during("half requests", || {
        while open() > 0 {
            ensure!(began.elapsed() < TIME + Duration::from_secs(5), "{} are still open", open());
            for mut stream in streams.iter().filter(|stream| !is_closed(stream)) {
                let _ = stream.write_all(b"x");
            }
            if began.elapsed() < TIME - Duration::from_secs(1) {
                ensure!(open() >= SHARE / 2, "only {} are open after {:?}", open(), began.elapsed());
            }
            std::thread::sleep(Duration::from_millis(200));
        }
        Ok(())
    })?;
    println!("half requests have ended after {:?}", began.elapsed());
    ensure!(once(&all.greedy, &get("/latest/"))?.status == 200);
    all.is_frugal("half requests")?;
    all.move_out()
}

#[test]
fn requests_that_are_too_long_are_refused() -> Result<()> {
    let all = Neighbours::move_in("service-packets = 0")?;
    let long = |length: usize| get("/latest/").with("X-Long", &"x".repeat(length));
    for length in [17 << 10, 20 << 10, 30 << 10] {
        let mut wire = Wire::open(&all.greedy)?;
        ensure!(wire.ask(&long(length))?.status == 431);
        wire.expect_end(PATIENCE)?;
    }
    all.is_served_during("long requests", || {
        for _ in 0..20 {
            let mut wire = Wire::open(&all.greedy)?;
            // It is refused while it comes, or nobody hears it to its end.
            match wire.say(&long(4 << 20).bytes()) {
                Ok(()) => ensure!(wire.hear().is_ok_and(|answer| answer.status == 431)),
                Err(error) => {
                    let kind = error.downcast_ref::<std::io::Error>().map(std::io::Error::kind);
                    let is_closed = matches!(kind, Some(ErrorKind::BrokenPipe | ErrorKind::ConnectionReset));
                    ensure!(is_closed, "{error}");
                }
            }
        }
        Ok(())
    })?;
    all.is_frugal("long requests")?;
    all.move_out()
}

/// What the kernel keeps for the connections of the service, in bytes.
fn kernel_memory(lab: &Lab) -> Result<usize> {
    let network = lab.agent.networks()?.pop().context("no network")?;
    let list = format!("nsenter --net={} ss -Htnm state all 'sport = 80'", network.display());
    let listed = Place::here()?.run(&list)?;
    // Such as skmem:(r0,rb131072,t0,tb87040,f0,w0,o0,bl0,d0).
    let all =
        listed.split("skmem:(").skip(1).flat_map(|rest| rest.split(')').next().unwrap_or("").split(','));
    let used = all.filter_map(|field| field.strip_prefix(['r', 'w', 'f'])?.parse::<usize>().ok());
    Ok(used.sum())
}

/// Whoever asks and does not read is not asked for ever what he wants.
#[test]
fn answers_that_nobody_reads_cost_little() -> Result<()> {
    let all = Neighbours::move_in("service-packets = 0")?;
    let ask = get("/latest/user-data").bytes();
    let streams = connect(&all.greedy, SHARE - 1)?;
    for stream in &streams {
        setsockopt(stream, sockopt::SndBuf, &(16 << 10))?;
    }
    let mut asked = vec![0; streams.len()];
    all.is_served_during("answers that nobody reads", || {
        let mut last = Instant::now();
        while last.elapsed() < Duration::from_secs(1) {
            for (mut stream, asked) in streams.iter().zip(&mut asked) {
                if let Ok(count) = stream.write(&ask[*asked % ask.len()..])
                    && count > 0
                {
                    *asked += count;
                    last = Instant::now();
                }
            }
            ensure!(asked.iter().all(|asked| *asked < 16 << 20), "there is no end of it: {asked:?}");
        }
        Ok(())
    })?;
    let mean = asked.iter().sum::<usize>() / asked.len();
    println!("of each of {} connections, {} KiB are taken", streams.len(), mean >> 10);
    all.is_frugal("answers that nobody reads")?;
    let kernel = kernel_memory(&all.lab)?;
    println!("the kernel keeps {} KiB for them", kernel >> 10);
    ensure!(kernel < SHARE << 18, "the kernel keeps {kernel} bytes");
    // It can still read with the one that it has left, also late.
    let mut late = Wire::open(&all.greedy)?;
    const MANY: usize = 40;
    late.say(&ask.repeat(MANY))?;
    std::thread::sleep(Duration::from_millis(500));
    for number in 0..MANY {
        let answer = late.hear().with_context(|| format!("answer {number}"))?;
        ensure!((answer.status, answer.body.len()) == (200, 16 << 10));
    }
    ensure!(streams.iter().any(|stream| stream.peek(&mut [0]).is_ok()), "nothing was said to the others");
    all.move_out()
}

/// Asks for the time as often as it can, for a while; returns how often it has asked, and how often it was told in each
/// second.
fn flood(guest: &Place) -> Result<(usize, f64)> {
    let socket = guest.inside(|| Ok(UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?))?;
    socket.connect((Ipv4Addr::new(169, 254, 169, 123), 123))?;
    socket.set_nonblocking(true)?;
    let mut question = [0; 48];
    question[0] = 0x23;
    let (mut asked, mut told) = (0, 0);
    let mut hear = || {
        while socket.recv(&mut [0; 64]).is_ok() {
            told += 1;
        }
    };
    let began = Instant::now();
    while began.elapsed() < Duration::from_secs(3) {
        for _ in 0..5 {
            asked += usize::from(socket.send(&question).is_ok());
        }
        hear();
        std::thread::sleep(Duration::from_millis(1));
    }
    let time = began.elapsed().as_secs_f64();
    std::thread::sleep(Duration::from_millis(100));
    hear();
    Ok((asked, f64::from(told) / time))
}

#[test]
fn a_flood_takes_nothing_from_others() -> Result<()> {
    let all = Neighbours::move_in("")?;
    // Half a second's worth may come at once.
    let most = PACKETS * (1.0 + 0.5 / 3.0);
    let (asked, told) = all.is_served_during("a flood", || flood(&all.greedy))?;
    println!("of {asked} packets, {told:.0} in a second were answered");
    ensure!(asked > 4 * PACKETS as usize, "it was no flood");
    ensure!(told < most * 1.05, "{told} in a second");
    ensure!(told > PACKETS / 2.0, "only {told} in a second");
    eventually("it is served again", || Ok(once(&all.greedy, &get("/latest/")).is_ok()))?;
    all.move_out()?;
    drop(all);

    // Unless the operator wants none of that.
    let all = Neighbours::move_in("service-packets = 0")?;
    let (asked, told) = flood(&all.greedy)?;
    println!("without a budget, of {asked} packets, {told:.0} in a second were answered");
    ensure!(told > most * 1.2, "{told} in a second of {asked}");
    all.is_served_during("connections that come and go", || {
        let began = Instant::now();
        let mut count = 0;
        while began.elapsed() < Duration::from_secs(2) {
            count += connect(&all.greedy, SHARE)?.len();
        }
        println!("{count} connections have come and gone");
        Ok(())
    })?;
    all.is_frugal("a flood")?;
    all.move_out()
}

/// A packet that the guest's interface cuts up can have a thousand requests.
#[test]
fn many_requests_in_few_packets_count_as_many() -> Result<()> {
    const LOOK: Duration = Duration::from_secs(2);
    let all = Neighbours::move_in("")?;
    let asks = get("/latest/meta-data/instance-id").bytes().repeat(20_000);
    let mut wire = Wire::open(&all.greedy)?;
    let mut asking = wire.stream().try_clone()?;
    let asking = std::thread::spawn(move || asking.write_all(&asks));
    let (began, mut answered) = (Instant::now(), 0);
    all.is_served_during("many requests", || {
        while began.elapsed() < LOOK {
            ensure!(wire.hear()?.status == 200);
            answered += 1;
        }
        Ok(())
    })?;
    // It would be heard to its end otherwise.
    wire.stream().shutdown(Shutdown::Both)?;
    let _ = asking.join();
    let most = PACKETS * (LOOK.as_secs_f64() + 0.5);
    println!("{answered} were answered");
    ensure!(f64::from(answered) < most * 1.05, "{answered} in {LOOK:?}");
    ensure!(f64::from(answered) > PACKETS / 4.0, "only {answered} in {LOOK:?}");
    all.move_out()
}
