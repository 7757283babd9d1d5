//! `bench`: Innkeeper beside other VMMs, measured from outside wherever that can be.
//!
//! The VMMs take turns, so that a machine whose speed drifts is fair to all, and what counts is the median of
//! some runs, after one that is thrown away. The peers are QEMU's microvm, and Firecracker and Cloud Hypervisor if
//! $FIRECRACKER and $CLOUD_HYPERVISOR name their programs. A bench fails if Innkeeper misses what is to be reached.
//!
//! `api` and `metadata` are about the daemon, which has no peer: what counts there is what 99 of 100 requests take.

mod api;
mod block;
mod figures;
mod launch;
mod memory;
mod metadata;
mod net;
mod vmms;
mod vpc;

use std::process::ExitCode;

use anyhow::{Context, Result, bail, ensure};

fn main() -> Result<ExitCode> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let (name, runs) = match arguments.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        [name] => (name, None),
        [name, runs] => (name, Some(runs.parse::<usize>().context("RUNS is not a number")?)),
        _ => bail!("usage: bench launch|boot|memory|block|file|layers|net|vpc|interface|metadata|api [RUNS]"),
    };
    ensure!(runs != Some(0), "no median of no runs");
    match name {
        "launch" => launch::bare_payload(runs.unwrap_or(21)),
        "boot" => launch::stock_kernel(runs.unwrap_or(5)),
        "memory" => memory::bench(runs.unwrap_or(3)),
        "block" => block::bench(runs.unwrap_or(5)),
        "file" => block::beside_host(runs.unwrap_or(3)),
        "layers" => block::layers(runs.unwrap_or(5)),
        "net" => net::bench(runs.unwrap_or(7)),
        "vpc" => vpc::bench(runs.unwrap_or(7)),
        "interface" => vpc::interface_among_many(runs.unwrap_or(21)),
        "metadata" => metadata::bench(runs.unwrap_or(3)),
        "api" => api::bench(runs.unwrap_or(100)),
        _ => bail!(
            "there is no bench {name:?}: launch, boot, memory, block, file, layers, net, vpc, interface, metadata or api"
        ),
    }
}
