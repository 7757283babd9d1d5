//! What people and programs see of instances: status checks, scheduled events, and metrics over a day of an instance.

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use innkeeper_tests::agent::{Agent, IMPATIENT, STORED, TINY};
use innkeeper_tests::ec2::{Client, texts};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

const PATIENCE: Duration = Duration::from_secs(60);

fn launch(client: &Client, image: &str, instance_type: &str) -> Result<String> {
    let id = client.launch(image, instance_type)?;
    client.wait_for(std::slice::from_ref(&id), "running", PATIENCE)?;
    Ok(id)
}

/// Waits until an answer of DescribeInstanceStatus has these texts.
fn wait_for_status(client: &Client, id: &str, pieces: &[&str]) -> Result<()> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let parameters = [("InstanceId.1", id), ("IncludeAllInstances", "true")];
        let answer = client.ask("DescribeInstanceStatus", &parameters)?;
        if pieces.iter().all(|piece| answer.contains(piece)) {
            return Ok(());
        }
        ensure!(Instant::now() < deadline, "not {pieces:?}: {answer}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

#[test]
fn a_vmm_that_does_not_answer_is_an_impaired_system() -> Result<()> {
    let mut agent = Agent::start(IMPATIENT)?;
    let image = agent.register("bare", &agent.payload("idle")?)?;
    let id = launch(&agent.client()?, &image, TINY)?;
    let well = ["<systemStatus><status>ok", "<instanceStatus><status>ok", "<attachedEbsStatus><status>ok"];
    wait_for_status(&agent.client()?, &id, &well)?;
    let vmm = Pid::from_raw(agent.vmms()?[0] as i32);
    kill(vmm, Signal::SIGSTOP)?;
    let ill = ["<systemStatus><status>impaired", "<status>failed</status><impairedSince>"];
    wait_for_status(&agent.client()?, &id, &ill)?;
    kill(vmm, Signal::SIGCONT)?;
    wait_for_status(&agent.client()?, &id, &well)?;
    // The next agent finds out by itself.
    agent.kill()?;
    agent.resume()?;
    let client = agent.client()?;
    wait_for_status(&client, &id, &well)?;
    client.ask("StopInstances", &[("InstanceId.1", &id)])?;
    wait_for_status(&client, &id, &["<name>stopped", "<systemStatus><status>not-applicable"])
}

#[test]
fn an_event_is_put_off_by_aws_and_carried_out() -> Result<()> {
    let mut agent = Agent::start(IMPATIENT)?;
    let image = agent.register("bare", &agent.payload("idle")?)?;
    let client = agent.client()?;
    let (first, second) = (launch(&client, &image, TINY)?, launch(&client, &image, TINY)?);
    let announce = |id: &str, time: &str| -> Result<String> {
        let parameters = [("InstanceId", id), ("Code", "instance-stop"), ("NotBefore", time)];
        let answer = client.ask("InnkeeperScheduleEvent", &parameters)?;
        texts(&answer, "instanceEventId").pop().context("no event")
    };
    let later = announce(&first, "2100-01-01T00:00:00Z")?;
    let arguments = |time| {
        let words =
            ["ec2", "modify-instance-event-start-time", "--instance-id", &first, "--instance-event-id"];
        let mut all: Vec<String> = words.map(str::to_owned).into();
        all.extend([later.clone(), "--not-before".to_owned(), String::from(time)]);
        all
    };
    let moved = arguments("2100-01-03T00:00:00Z");
    let answer = agent.aws(&moved.iter().map(String::as_str).collect::<Vec<_>>())?;
    ensure!(answer.contains("instance-stop") && answer.contains("2100-01-03T00:00:00"), "{answer}");
    // Its time may come while there is no agent.
    let soon = announce(&second, "2000-01-01T00:00:00Z")?;
    agent.kill()?;
    agent.resume()?;
    let client = agent.client()?;
    client.wait_for(std::slice::from_ref(&second), "stopped", PATIENCE)?;
    let answer = client.ask("DescribeInstances", &[("InstanceId.1", &second)])?;
    ensure!(answer.contains("<code>Server.ScheduledStop</code>"), "{answer}");
    wait_for_status(&client, &second, &[&soon, "[Completed] "])?;
    wait_for_status(&client, &first, &[&later, "<name>running"])
}

/// A port that nobody listens on.
fn free_port() -> Result<u16> {
    Ok(TcpListener::bind("127.0.0.1:0")?.local_addr()?.port())
}

/// What a Prometheus server remembers.
struct Scraper {
    port: u16,
    /// The kind of each metric.
    kinds: BTreeMap<String, String>,
    /// The last value of each series.
    values: BTreeMap<String, f64>,
    scrapes: usize,
}

impl Scraper {
    fn new(port: u16) -> Self {
        Self { port, kinds: BTreeMap::new(), values: BTreeMap::new(), scrapes: 0 }
    }

    fn get(&self, path: &str) -> Result<String> {
        let mut stream = TcpStream::connect(("127.0.0.1", self.port))?;
        stream.set_read_timeout(Some(PATIENCE))?;
        write!(stream, "GET {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n")?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        Ok(answer)
    }

    /// Reads the metrics, and compares them with those that it has read before.
    fn scrape(&mut self) -> Result<BTreeMap<String, f64>> {
        let answer = self.get("/metrics")?;
        let (head, body) = answer.split_once("\r\n\r\n").context("no body")?;
        ensure!(head.starts_with("HTTP/1.1 200") && head.contains("text/plain; version=0.0.4"), "{head}");
        let mut now = BTreeMap::new();
        let mut family = String::new();
        for line in body.lines() {
            if let Some(rest) = line.strip_prefix("# TYPE ") {
                let (name, kind) = rest.split_once(' ').context("a kind")?;
                ensure!(self.scrapes > 0 || !self.kinds.contains_key(name), "{name} is there twice");
                family = name.to_owned();
                self.kinds.insert(family.clone(), kind.to_owned());
            } else if !line.starts_with('#') {
                let (series, value) = line.rsplit_once(' ').context("a value")?;
                ensure!(series.starts_with(&family), "{series} is not among its own");
                let value: f64 = value.parse().with_context(|| format!("{line:?}"))?;
                ensure!(now.insert(series.to_owned(), value).is_none(), "{series} is there twice");
                let is_counter = self.kinds.get(&family).is_some_and(|kind| kind != "gauge");
                let before = self.values.insert(series.to_owned(), value).unwrap_or(0.0);
                ensure!(!is_counter || value >= before, "{series} went from {before} back to {value}");
            }
        }
        self.scrapes += 1;
        Ok(now)
    }
}

impl Scraper {
    /// Reads the metrics until a series is above a value.
    fn scrape_until(&mut self, series: &str, above: f64) -> Result<BTreeMap<String, f64>> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let now = self.scrape()?;
            if now.get(series).is_some_and(|value| *value > above) {
                return Ok(now);
            }
            ensure!(Instant::now() < deadline, "{series} is not above {above} in {now:?}");
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

/// A day of an instance, in which the agent is killed between any two things, and the host once: a reader of events hears
/// of every change once and in order, and a Prometheus server sees no counter go backwards.
#[test]
fn over_a_day_no_change_is_missed_and_no_counter_goes_backwards() -> Result<()> {
    let port = free_port()?;
    let mut agent = Agent::start(&format!("{IMPATIENT}\nmetrics-listen = \"127.0.0.1:{port}\""))?;
    // Each time that it boots, its guest reads and writes a sector.
    let image = agent.register("bare", &agent.payload("busy")?)?;
    let mut scraper = Scraper::new(port);
    ensure!(scraper.get("/")?.starts_with("HTTP/1.1 404"));
    scraper.scrape()?;
    let mut events = agent.follow_events()?;
    let ids = [agent.client()?.launch(&image, STORED)?];
    let id = &ids[0];
    let series = |name: &str, labels: &str| format!("innkeeper_{name}{{instance_id=\"{id}\"{labels}}}");
    let exits = series("instance_exits_total", ",reason=\"port-write\"");
    let (mut last_exits, mut boots) = (0.0, 0.0);
    for (action, state) in [
        ("", "running"),
        ("RebootInstances", "running"),
        ("StopInstances", "stopped"),
        ("StartInstances", "running"),
        ("the host", "running"),
        ("TerminateInstances", "terminated"),
    ] {
        scraper.scrape()?;
        agent.kill()?;
        if action == "the host" {
            agent.reboot_host()?;
        }
        agent.resume()?;
        scraper.scrape()?;
        if action.ends_with("Instances") {
            agent.client()?.ask(action, &[("InstanceId.1", id)])?;
        }
        agent.client()?.wait_for(&ids, state, PATIENCE)?;
        if state != "running" {
            let now = scraper.scrape()?;
            ensure!(!now.contains_key(&exits), "an instance that is {state} counts");
            continue;
        }
        wait_for_status(&agent.client()?, id, &["<systemStatus><status>ok"])?;
        // Each guest prints something, which are exits; also that which a reset begins.
        scraper.scrape_until(&exits, last_exits)?;
        let root = agent.client()?.ask("DescribeVolumes", &[])?;
        let root = texts(&root, "volumeId").pop().context("a volume")?;
        let bytes = |direction: &str| {
            series("instance_disk_bytes_total", &format!(",disk=\"{root}\",direction=\"{direction}\""))
        };
        let now = scraper.scrape_until(&bytes("write"), 512.0 * boots)?;
        boots += 1.0;
        let value = |name: &str| now.get(name).copied().with_context(|| format!("no {name} in {now:?}"));
        last_exits = value(&exits)?;
        for direction in ["read", "write"] {
            let bytes = value(&bytes(direction))?;
            ensure!(bytes == 512.0 * boots, "{bytes} bytes in {boots} boots, {direction}");
        }
        ensure!(value(&series("instance_vcpus", ""))? == 1.0);
        ensure!(value(&series("instance_memory_bytes", ""))? == f64::from(64 << 20));
        ensure!(value(&series("instance_store_bytes", ""))? == 2e9);
        let (guest, own) = (
            value(&series("instance_memory_resident_bytes", ""))?,
            value(&series("instance_vmm_resident_bytes", ""))?,
        );
        ensure!(guest > 0.0 && guest <= f64::from(64 << 20), "{guest} bytes of the guest");
        ensure!(own > f64::from(1 << 19) && own < f64::from(64 << 20), "{own} bytes of the VMM");
        value(&series("instance_cpu_seconds_total", ",mode=\"user\""))?;
        value(&series("instance_cpu_guest_seconds_total", ""))?;
        ensure!(value(&series("instance_status_check", ",check=\"system\""))? == 1.0);
        ensure!(value("innkeeper_instances{state=\"running\"}")? == 1.0);
        ensure!(value("innkeeper_requests_total{action=\"RunInstances\",code=\"\"}")? == 1.0);
        ensure!(value("innkeeper_store_bytes")? > 0.0);
    }
    let now = scraper.scrape()?;
    let life = [
        "pending",
        "running",
        "stopping",
        "stopped",
        "pending",
        "running",
        "pending",
        "running",
        "shutting-down",
        "terminated",
    ];
    ensure!(now["innkeeper_state_changes_total"] == life.len() as f64, "{now:?}");
    for state in life {
        let heard = events.hear()?;
        ensure!(
            heard["detail"]["state"] == state && heard["detail"]["instance-id"] == id.as_str(),
            "{heard}"
        );
    }
    let named = |name: &str| scraper.kinds.get(name).map(String::as_str);
    ensure!(named("innkeeper_request_seconds") == Some("histogram"), "{:?}", scraper.kinds);
    Ok(())
}
