//! `bench metadata`: how much the metadata service can do, and what one greedy guest takes from the others. The guests are
//! network namespaces, whose frames a program carries to their taps, so that all of it has to share this machine.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpStream};
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use innkeeper_tests::agent::IMPATIENT;
use innkeeper_tests::network::Place;
use innkeeper_tests::stand_in::{Guest, Lab};

use crate::figures::quantile;

const ADDRESS: (Ipv4Addr, u16) = (Ipv4Addr::new(169, 254, 169, 254), 80);
/// The guests that ask, and how many connections each has.
const GUESTS: usize = 4;
const CONNECTIONS: usize = 8;
/// How long each part of a run takes.
const TIME: Duration = Duration::from_secs(3);
/// Requests a second, of all guests together, that have to be answered.
const RATE: f64 = 20_000.0;
/// How long 99 of 100 may take at half of that, in milliseconds.
const HALF_LOAD: f64 = 2.0;
/// By how much the agent may grow, in MiB.
const GROWTH: f64 = 8.0;
/// What an interface may send by default, in packets a second, and in requests.
const BUDGET: f64 = 1024.0;
/// How long the neighbour of a greedy guest may have to wait, in milliseconds: 99 of 100 times.
const NEIGHBOUR: f64 = 20.0;

/// What is asked for, in turns: a text, a list, and what is deep in the tree.
const PATHS: [&str; 4] = [
    "meta-data/instance-id",
    "meta-data/",
    "meta-data/placement/availability-zone",
    "dynamic/instance-identity/document",
];

/// A connection that stays open.
struct Asker {
    stream: TcpStream,
    requests: Vec<Vec<u8>>,
    buffer: Vec<u8>,
    next: usize,
}

impl Asker {
    fn new(place: &Place) -> Result<Self> {
        let stream = place.inside(|| Ok(TcpStream::connect(ADDRESS)?))?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(Duration::from_secs(20)))?;
        let mut asker = Self { stream, requests: Vec::new(), buffer: vec![0; 16 << 10], next: 0 };
        let put = "PUT /latest/api/token HTTP/1.1\r\nHost: 169.254.169.254\r\n\
                   X-aws-ec2-metadata-token-ttl-seconds: 21600\r\n\r\n";
        let answer = asker.send(put.as_bytes())?;
        let token = answer.rsplit("\r\n").next().context("a token")?;
        asker.requests = PATHS
            .iter()
            .map(|path| {
                format!(
                    "GET /latest/{path} HTTP/1.1\r\nHost: 169.254.169.254\r\n\
                     X-aws-ec2-metadata-token: {token}\r\n\r\n"
                )
                .into_bytes()
            })
            .collect();
        Ok(asker)
    }

    /// Asks for the next thing.
    fn ask(&mut self) -> Result<()> {
        self.next = (self.next + 1) % self.requests.len();
        let request = std::mem::take(&mut self.requests[self.next]);
        let answered = self.send(&request).map(drop);
        self.requests[self.next] = request;
        answered
    }

    fn send(&mut self, request: &[u8]) -> Result<&str> {
        self.stream.write_all(request)?;
        let mut length = 0;
        loop {
            let count = self.stream.read(&mut self.buffer[length..])?;
            ensure!(count > 0, "the connection was closed");
            length += count;
            let text = std::str::from_utf8(&self.buffer[..length])?;
            let Some(head) = text.find("\r\n\r\n") else { continue };
            let body = text[..head].split("Content-Length: ").nth(1).and_then(|rest| rest.lines().next());
            if length >= head + 4 + body.context("a length")?.parse::<usize>()? {
                ensure!(text.starts_with("HTTP/1.1 200 "), "{text}");
                break;
            }
        }
        Ok(std::str::from_utf8(&self.buffer[..length])?)
    }
}

fn askers(guests: &[Guest], each: usize) -> Result<Vec<Asker>> {
    guests.iter().flat_map(|guest| (0..each).map(|_| Asker::new(guest))).collect()
}

/// Has all ask at once: without pause, or each at so many requests a second. Returns how long each answer took, from the
/// moment that it was to be asked for, in milliseconds.
fn load(askers: &mut [Asker], pace: Option<f64>, time: Duration) -> Result<Vec<f64>> {
    let began = Instant::now();
    let count = askers.len();
    thread::scope(|scope| {
        let each = move |(number, asker): (usize, &'_ mut Asker)| -> Result<Vec<f64>> {
            let mut samples = Vec::new();
            // Not all at the same moment.
            let mut due = pace.map_or(0.0, |pace| number as f64 / count as f64 / pace);
            while began.elapsed() < time {
                let asked = match pace {
                    None => Instant::now(),
                    Some(pace) => {
                        let moment = began + Duration::from_secs_f64(due);
                        due += 1.0 / pace;
                        thread::sleep(moment.saturating_duration_since(Instant::now()));
                        moment
                    }
                };
                asker.ask()?;
                samples.push(asked.elapsed().as_secs_f64() * 1e3);
            }
            Ok(samples)
        };
        let threads: Vec<_> =
            askers.iter_mut().enumerate().map(|one| scope.spawn(move || each(one))).collect();
        let mut all = Vec::new();
        for thread in threads {
            all.extend(thread.join().map_err(|_| anyhow::anyhow!("a thread has panicked"))??);
        }
        Ok(all)
    })
}

/// The agent's memory, in MiB.
fn memory(lab: &Lab) -> Result<f64> {
    let status = std::fs::read_to_string(format!("/proc/{}/status", lab.agent.pid().context("an agent")?))?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).context("its memory")?;
    Ok(line.trim().trim_end_matches(" kB").parse::<f64>()? / 1024.0)
}

/// Measures it, so many times.
pub fn bench(runs: usize) -> Result<ExitCode> {
    let mut missed = Vec::new();
    let mut check = |is_reached: bool, what: String| {
        if !is_reached {
            missed.push(what);
        }
    };
    without_budget(runs, &mut check)?;
    with_budget(&mut check)?;
    if missed.is_empty() {
        return Ok(ExitCode::SUCCESS);
    }
    println!("\nMissed:\n  {}", missed.join("\n  "));
    Ok(ExitCode::FAILURE)
}

fn without_budget(runs: usize, check: &mut impl FnMut(bool, String)) -> Result<()> {
    let lab = Lab::start_with(&format!("service-packets = 0\n{IMPATIENT}"))?;
    let guests = launch(&lab, GUESTS)?;
    let mut askers = askers(&guests, CONNECTIONS)?;
    println!("{GUESTS} guests with {CONNECTIONS} connections each, which stay open; no budget:\n");
    println!("| run | requests/s | p99 ms at half of 20,000/s | agent MiB |\n| --- | --- | --- | --- |");
    let (mut rates, mut delays) = (Vec::new(), Vec::new());
    let mut before = None;
    // The first one warms up.
    for run in 0..=runs {
        let began = Instant::now();
        let answered = load(&mut askers, None, TIME)?.len() as f64 / began.elapsed().as_secs_f64();
        let pace = RATE / 2.0 / askers.len() as f64;
        let delay = quantile(&load(&mut askers, Some(pace), TIME)?, 0.99);
        let now = memory(&lab)?;
        if run == 0 {
            before = Some(now);
            continue;
        }
        println!("| {run} | {answered:.0} | {delay:.2} | {now:.1} |");
        rates.push(answered);
        delays.push(delay);
    }
    let (rate, delay) = (quantile(&rates, 0.5), quantile(&delays, 0.5));
    println!("| median | {rate:.0} (to reach: {RATE}) | {delay:.2} (to reach: {HALF_LOAD}) | |\n");
    check(rate >= RATE, format!("{rate:.0} requests/s"));
    check(delay <= HALF_LOAD, format!("p99 of {delay:.2} ms at half load"));
    let grown = memory(&lab)? - before.unwrap_or_default();
    check(grown <= GROWTH, format!("the agent has grown by {grown:.1} MiB"));
    Ok(())
}

fn with_budget(check: &mut impl FnMut(bool, String)) -> Result<()> {
    let lab = Lab::start()?;
    let guests = launch(&lab, 2)?;
    let mut neighbour = Asker::new(&guests[1])?;
    let alone = load(std::slice::from_mut(&mut neighbour), Some(100.0), TIME)?;
    let mut greedy = askers(&guests[..1], CONNECTIONS)?;
    let is_over = AtomicBool::new(false);
    let (answered, beside) = thread::scope(|scope| {
        let flood = scope.spawn(|| {
            // What is over the budget is lost, and sent again by the guest's TCP.
            let answered = load(&mut greedy, None, 2 * TIME);
            is_over.store(true, Ordering::Relaxed);
            answered
        });
        let beside = load(std::slice::from_mut(&mut neighbour), Some(100.0), TIME);
        ensure!(!is_over.load(Ordering::Relaxed), "the greedy guest has ended before its neighbour");
        let answered = flood.join().map_err(|_| anyhow::anyhow!("a thread has panicked"))?;
        Ok((answered?, beside?))
    })?;
    let rate = answered.len() as f64 / (2 * TIME).as_secs_f64();
    let [alone, beside] = [alone, beside].map(|samples| quantile(&samples, 0.99));
    println!(
        "A greedy guest and its neighbour, which asks 100 times a second; the budget is {BUDGET} packets/s:\n"
    );
    println!("| | |\n| --- | --- |");
    println!("| greedy guest | {rate:.0} requests/s (at most {BUDGET}) |");
    println!("| neighbour, alone | p99 {alone:.2} ms |");
    println!("| neighbour, beside it | p99 {beside:.2} ms (at most {NEIGHBOUR}) |");
    // A burst at the beginning counts for more than what is said for a second.
    check(rate <= 1.2 * BUDGET, format!("{rate:.0} requests/s of a greedy guest"));
    check(beside <= NEIGHBOUR, format!("p99 of {beside:.2} ms beside a greedy guest"));
    Ok(())
}

fn launch(lab: &Lab, count: usize) -> Result<Vec<Guest>> {
    (0..count).map(|_| lab.guest(&lab.launch()?)).collect()
}
