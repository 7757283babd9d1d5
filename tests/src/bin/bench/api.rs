//! `bench api`: how long a client waits for the daemon, with guests that are bare payloads.

use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use innkeeper_tests::agent::{Agent, TINY};
use innkeeper_tests::ec2::{Client, numbered, texts};

use crate::figures::quantile;

const PATIENCE: Duration = Duration::from_secs(120);
/// How many instances are described.
const RECORDS: usize = 1000;
/// How many of them run at a time.
const BATCH: usize = 50;

/// What is measured, and the milliseconds that 99 of 100 may take, if that is to be reached.
struct Line {
    name: &'static str,
    limit: Option<f64>,
    samples: Vec<f64>,
}

/// Measures the answers, as a client on this host sees them.
pub fn bench(runs: usize) -> Result<ExitCode> {
    let agent = Agent::start("cpu-overcommit = 100.0")?;
    let image = agent.register("bare", &agent.payload("idle")?)?;
    let client = agent.client()?;
    println!("The API, by a client on this host with one connection, guests are bare payloads:\n");
    let mut lines = Vec::from(launches(&client, &image, runs)?);
    fill(&client, &image)?;
    agent.wait_for_vmms(0)?;
    lines.extend(descriptions(&client, runs)?);
    println!("| | p50 ms | p99 ms | max ms | p99 to reach |\n| --- | --- | --- | --- | --- |");
    let mut missed = Vec::new();
    for Line { name, limit, samples } in &lines {
        let [middle, high, max] = [0.5, 0.99, 1.0].map(|part| quantile(samples, part));
        let reach = limit.map(|limit| limit.to_string()).unwrap_or_default();
        println!("| {name} | {middle:.1} | {high:.1} | {max:.1} | {reach} |");
        if limit.is_some_and(|limit| high > limit) {
            missed.push(format!("{name}: {high:.1} ms"));
        }
    }
    println!("\n{runs} runs each.");
    if missed.is_empty() {
        return Ok(ExitCode::SUCCESS);
    }
    println!("Missed:\n  {}", missed.join("\n  "));
    Ok(ExitCode::FAILURE)
}

/// Launches instances one after the other; each is gone before the next.
fn launches(client: &Client, image: &str, runs: usize) -> Result<[Line; 3]> {
    let mut lines = [
        Line { name: "RunInstances of one", limit: Some(50.0), samples: Vec::new() },
        Line { name: "from RunInstances to running", limit: None, samples: Vec::new() },
        Line { name: "TerminateInstances of one", limit: None, samples: Vec::new() },
    ];
    // The first one warms up.
    for run in 0..=runs {
        let began = Instant::now();
        let ids = launch(client, image, 1)?;
        let answered = began.elapsed();
        client.wait_for(&ids, "running", PATIENCE)?;
        let running = began.elapsed();
        let (terminated, _) = timed(|| client.ask("TerminateInstances", &[("InstanceId.1", &ids[0])]))?;
        client.wait_for(&ids, "terminated", PATIENCE)?;
        if run > 0 {
            for (line, sample) in lines.iter_mut().zip([answered, running, terminated]) {
                line.samples.push(sample.as_secs_f64() * 1e3);
            }
        }
    }
    Ok(lines)
}

fn launch(client: &Client, image: &str, count: usize) -> Result<Vec<String>> {
    let count = count.to_string();
    let parameters = [("ImageId", image), ("InstanceType", TINY), ("MinCount", &count), ("MaxCount", &count)];
    Ok(texts(&client.ask("RunInstances", &parameters)?, "instanceId"))
}

/// Leaves stopped instances behind, whose records are as long as those of running ones, until there are enough.
fn fill(client: &Client, image: &str) -> Result<()> {
    for _ in 0..RECORDS / BATCH {
        let ids = launch(client, image, BATCH)?;
        client.wait_for(&ids, "running", PATIENCE)?;
        let mut parameters = numbered("InstanceId", &ids);
        parameters.push(("Force".into(), "true".into()));
        let parameters: Vec<_> =
            parameters.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
        client.ask("StopInstances", &parameters)?;
        client.wait_for(&ids, "stopped", PATIENCE)?;
    }
    Ok(())
}

/// Describes them: all, a page of them, one.
fn descriptions(client: &Client, runs: usize) -> Result<[Line; 3]> {
    let stopped = [("Filter.1.Name", "instance-state-name"), ("Filter.1.Value.1", "stopped")];
    let all = client.ask("DescribeInstances", &stopped)?;
    let ids = texts(&all, "instanceId");
    let one = [("InstanceId.1", ids[ids.len() / 2].as_str())];
    let page = [stopped[0], stopped[1], ("MaxResults", "100")];
    let mut lines = [
        (
            Line { name: "DescribeInstances of 1,000", limit: Some(30.0), samples: Vec::new() },
            &stopped[..],
            RECORDS,
        ),
        (Line { name: "DescribeInstances, 100 of 1,000", limit: None, samples: Vec::new() }, &page[..], 100),
        (Line { name: "DescribeInstances of one", limit: None, samples: Vec::new() }, &one[..], 1),
    ];
    for run in 0..=runs {
        for (line, parameters, count) in &mut lines {
            let (time, answer) = timed(|| client.ask("DescribeInstances", parameters))?;
            let found = texts(&answer, "instanceState").len();
            ensure!(found == *count, "{}: {found} instances in the answer", line.name);
            if run > 0 {
                line.samples.push(time.as_secs_f64() * 1e3);
            }
        }
    }
    Ok(lines.map(|(line, _, _)| line))
}

fn timed<T>(work: impl FnOnce() -> Result<T>) -> Result<(Duration, T)> {
    let began = Instant::now();
    let result = work()?;
    Ok((began.elapsed(), result))
}
