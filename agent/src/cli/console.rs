//! What instances print on their consoles.

use std::time::Duration;

use anyhow::Context;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};

use crate::cli::answer::text;
use crate::cli::client::{Client, Parameters};
use crate::cli::global::{Global, Output, print_bytes};
use crate::cli::names;
use crate::cli::wait::is_gone;

/// How often to ask for more.
const INTERVAL: Duration = Duration::from_secs(1);

/// Prints an instance's console.
#[derive(Debug, clap::Args)]
pub struct Console {
    /// Id or name of an instance
    instance: String,
    /// Go on with what comes, until the instance ends
    #[arg(long, short, conflicts_with = "output")]
    follow: bool,
}

impl Console {
    /// Does it; returns the exit status.
    pub fn execute(self, global: &Global) -> anyhow::Result<u8> {
        let client = global.client()?;
        let id = names::instance(&client, &self.instance)?;
        if self.follow {
            follow(&client, &id)?;
            return Ok(0);
        }
        let answer = ask(&client, &id)?;
        let output = decode(&answer)?;
        if global.output == Output::Json {
            let output = String::from_utf8_lossy(&output);
            let shown = json!({"instanceId": id, "timestamp": text(&answer, "timestamp"), "output": output});
            global.show_json(&[shown])?;
        } else {
            print_bytes(&output)?;
        }
        Ok(0)
    }
}

fn ask(client: &Client, id: &str) -> anyhow::Result<Value> {
    client.call("GetConsoleOutput", Parameters::default().with("InstanceId", id).with("Latest", "true"))
}

fn decode(answer: &Value) -> anyhow::Result<Vec<u8>> {
    STANDARD.decode(text(answer, "output")).context("the console's output is not base64")
}

/// Prints what comes, until nothing more can.
fn follow(client: &Client, id: &str) -> anyhow::Result<()> {
    let mut before = Vec::new();
    loop {
        // First whether it ends, so that the last words are heard.
        let parameters = Parameters::default().with("InstanceId.1", id);
        let is_over = match client.instances(parameters) {
            Ok(found) => !found.iter().any(|each| goes_on(text(each, "instanceState.name"))),
            Err(error) if is_gone(&error) => return Ok(()),
            Err(error) => return Err(error),
        };
        let now = decode(&ask(client, id)?)?;
        print_bytes(fresh(&before, &now))?;
        if is_over {
            return Ok(());
        }
        before = now;
        std::thread::sleep(INTERVAL);
    }
}

fn goes_on(state: &str) -> bool {
    !matches!(state, "stopped" | "terminated")
}

/// What is new in a console's last output. Of a long one the beginning is forgotten, so that the longest end of the
/// old one that the new one begins with is what both have.
fn fresh<'a>(before: &[u8], now: &'a [u8]) -> &'a [u8] {
    // As Knuth, Morris and Pratt search: `borders` has for each beginning of `now` the longest shorter beginning that
    // it ends with.
    let mut borders: Vec<usize> = Vec::with_capacity(now.len());
    for (index, byte) in now.iter().enumerate() {
        let length = if index == 0 { 0 } else { extend(now, &borders, borders.last().copied(), *byte) };
        borders.push(length);
    }
    let mut common = 0;
    for byte in before {
        let from = if common == now.len() { shorter(&borders, common) } else { Some(common) };
        common = extend(now, &borders, from, *byte);
    }
    now.get(common..).unwrap_or_default()
}

/// The longest beginning of `text` that what ends in its first `length` bytes and one more byte ends with.
fn extend(text: &[u8], borders: &[usize], mut length: Option<usize>, byte: u8) -> usize {
    while let Some(known) = length {
        if text.get(known) == Some(&byte) {
            return known + 1;
        }
        length = shorter(borders, known);
    }
    0
}

fn shorter(borders: &[usize], length: usize) -> Option<usize> {
    borders.get(length.checked_sub(1)?).copied()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_new_is_printed() {
        for (before, now, new) in [
            ("", "abc", "abc"),
            ("abc", "abc", ""),
            ("abc", "abcdef", "def"),
            ("abcd", "cdef", "ef"),
            ("abc", "xyz", "xyz"),
            ("aaaa", "aaaaa", "a"),
            ("abab", "ababab", "ab"),
            ("xaab", "aabaab", "aab"),
            ("abc", "", ""),
            ("abcabc", "abc", ""),
        ] {
            assert_eq!(fresh(before.as_bytes(), now.as_bytes()), new.as_bytes(), "{before} {now}");
        }
    }
}
