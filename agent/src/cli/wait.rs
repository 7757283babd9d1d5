//! Waiting until instances are what they were asked to become.

use std::time::{Duration, Instant};

use anyhow::bail;
use indicatif::ProgressBar;
use serde_json::Value;

use crate::cli::answer::{at, text};
use crate::cli::client::{Client, Parameters, Refused};

/// How often to ask.
const INTERVAL: Duration = Duration::from_millis(200);

/// Whether and how long to wait.
#[derive(Clone, Debug, clap::Args)]
pub struct Wait {
    /// Wait until it is done
    #[arg(long)]
    pub wait: bool,
    /// How long to wait at most, in seconds
    #[arg(long, value_name = "SECONDS", default_value_t = 300, requires = "wait")]
    pub timeout: u64,
}

/// What to do about a resource that is waited for.
#[derive(Debug, PartialEq, Eq)]
enum Decision {
    /// It is there.
    Done,
    /// It is on its way.
    GoOn,
    /// It went elsewhere, for this reason.
    Fail(String),
}

/// Decides about an instance in a state that shall come to another.
fn decide(wanted: &str, state: &str, reason: &str) -> Decision {
    let comes = match wanted {
        "running" => "pending",
        "stopped" => "stopping",
        _ => "shutting-down",
    };
    decide_by(state, wanted, comes, reason)
}

/// What an answer says of the instance with this id.
fn judge(wanted: &str, id: &str, instances: &[Value]) -> Decision {
    match instances.iter().find(|each| text(each, "instanceId") == id) {
        Some(found) => {
            let reason = at(found, "stateReason").map(|reason| text(reason, "message")).unwrap_or_default();
            decide(wanted, text(found, "instanceState.name"), reason)
        }
        // What is terminated is forgotten after a while.
        None if wanted == "terminated" => Decision::Done,
        None => Decision::Fail("is gone".to_owned()),
    }
}

/// The way of resources of a kind to where they are wanted, and what tells how far they are.
#[derive(Debug)]
pub struct Way {
    /// Such as `image`.
    pub kind: &'static str,
    /// For people, what it comes to.
    pub wanted: &'static str,
    /// The action that describes them.
    pub action: &'static str,
    /// The parameter that takes their ids.
    pub parameter: &'static str,
    /// The list in the answer.
    pub list: &'static str,
    /// Where in an entry the id is.
    pub id: &'static str,
    /// Where the state is.
    pub state: &'static str,
    /// The state at the end of the way.
    pub done: &'static str,
    /// The state on the way.
    pub comes: &'static str,
    /// Where it says why it went elsewhere.
    pub reason: &'static str,
}

impl Wait {
    /// Waits until instances are in a state, if that is wanted; fails if one of them does not get there.
    pub fn until(&self, client: &Client, ids: &[String], wanted: &str) -> anyhow::Result<()> {
        self.until_all("instance", ids, wanted, ", or look at `innkeeper console`", |left| {
            let found = match client.instances(Parameters::default().with_list("InstanceId", left)) {
                // One of them is; which one shows if all are asked for.
                Err(error) if is_gone(&error) => client.instances(Parameters::default())?,
                found => found?,
            };
            Ok(left.iter().map(|id| judge(wanted, id, &found)).collect())
        })
    }

    /// The same for resources of another kind.
    pub fn until_there(&self, client: &Client, way: &Way, ids: &[String]) -> anyhow::Result<()> {
        self.until_all(way.kind, ids, way.wanted, "", |left| {
            let parameters = Parameters::default().with_list(way.parameter, left);
            let found = client.describe(way.action, parameters, way.list)?;
            let decide = |id: &String| {
                let resource = found.iter().find(|each| text(each, way.id) == id);
                let says = |path| resource.map(|each| text(each, path)).unwrap_or_default();
                decide_by(says(way.state), way.done, way.comes, says(way.reason))
            };
            Ok(left.iter().map(decide).collect())
        })
    }

    /// Waits for resources of any kind. `ask` decides about each of those that are left, in their order.
    fn until_all(
        &self,
        kind: &str,
        ids: &[String],
        wanted: &str,
        advice: &str,
        ask: impl Fn(&[String]) -> anyhow::Result<Vec<Decision>>,
    ) -> anyhow::Result<()> {
        if !self.wait {
            return Ok(());
        }
        let end = Instant::now() + Duration::from_secs(self.timeout);
        // Drawn on a terminal only.
        let spinner = ProgressBar::new_spinner();
        spinner.enable_steady_tick(INTERVAL);
        let mut left = ids.to_vec();
        loop {
            spinner.set_message(format!("{} to be {wanted}", count(kind, left.len())));
            let decisions = ask(&left)?;
            let mut waiting = Vec::new();
            for (id, decision) in left.into_iter().zip(decisions) {
                match decision {
                    Decision::Done => {}
                    Decision::GoOn => waiting.push(id),
                    Decision::Fail(why) => {
                        spinner.finish_and_clear();
                        bail!("{id} {why}");
                    }
                }
            }
            if waiting.is_empty() {
                spinner.finish_and_clear();
                return Ok(());
            }
            if Instant::now() >= end {
                spinner.finish_and_clear();
                let seconds = self.timeout;
                bail!(
                    "{} not {wanted} after {seconds} seconds: wait longer with --timeout{advice}",
                    waiting.join(", ")
                );
            }
            left = waiting;
            std::thread::sleep(INTERVAL);
        }
    }
}

fn count(kind: &str, number: usize) -> String {
    if number == 1 { format!("waiting for the {kind}") } else { format!("waiting for {number} {kind}s") }
}

/// Decides about a resource that is on its way, `comes`, to a state where it is done.
fn decide_by(state: &str, done: &str, comes: &str, reason: &str) -> Decision {
    match state {
        _ if state == done => Decision::Done,
        _ if state == comes => Decision::GoOn,
        "" => Decision::Fail("is gone".to_owned()),
        _ if reason.is_empty() => Decision::Fail(format!("is {state}, not {done}")),
        _ => Decision::Fail(format!("is {state}, not {done}: {reason}")),
    }
}

/// Whether an error says that there is no such instance.
pub fn is_gone(error: &anyhow::Error) -> bool {
    error.downcast_ref::<Refused>().is_some_and(|refused| refused.code == "InvalidInstanceID.NotFound")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::client::tests::serve;

    #[test]
    fn an_instance_comes_where_it_should_or_the_reason_is_told() {
        let fail = |why: &str| Decision::Fail(why.to_owned());
        for (wanted, state, reason, decision) in [
            ("running", "pending", "", Decision::GoOn),
            ("running", "running", "", Decision::Done),
            ("running", "terminated", "no room", fail("is terminated, not running: no room")),
            ("stopped", "stopping", "a user did it", Decision::GoOn),
            ("stopped", "stopped", "a user did it", Decision::Done),
            ("stopped", "running", "", fail("is running, not stopped")),
            ("terminated", "shutting-down", "", Decision::GoOn),
            ("terminated", "stopped", "", fail("is stopped, not terminated")),
        ] {
            assert_eq!(decide(wanted, state, reason), decision, "{wanted}, {state}");
        }
        assert_eq!(judge("terminated", "i-1", &[]), Decision::Done);
        assert_eq!(judge("running", "i-1", &[]), fail("is gone"));
    }

    #[test]
    fn other_resources_are_on_their_way_there_or_elsewhere() {
        let fail = |why: &str| Decision::Fail(why.to_owned());
        for (state, reason, decision) in [
            ("completed", "", Decision::Done),
            ("pending", "", Decision::GoOn),
            ("error", "the disk is full", fail("is error, not completed: the disk is full")),
            ("error", "", fail("is error, not completed")),
            ("", "", fail("is gone")),
        ] {
            assert_eq!(decide_by(state, "completed", "pending", reason), decision, "{state}");
        }
        assert_eq!(count("snapshot", 1), "waiting for the snapshot");
        assert_eq!(count("snapshot", 2), "waiting for 2 snapshots");
    }

    #[test]
    fn waiting_asks_again_until_it_is_so() {
        let answer = |state: &str| {
            let xml = format!(
                "<R><reservationSet><item><instancesSet><item><instanceId>i-1</instanceId><instanceState><name>{state}\
                 </name></instanceState></item></instancesSet></item></reservationSet></R>"
            );
            (200, xml)
        };
        let wait = Wait { wait: true, timeout: 60 };
        let (client, server) = serve(vec![answer("pending"), answer("running")]);
        wait.until(&client, &["i-1".into()], "running").unwrap();
        server.join().unwrap();
        let (client, server) = serve(vec![answer("pending")]);
        let short = Wait { wait: true, timeout: 0 };
        let error = short.until(&client, &["i-1".into()], "running").unwrap_err();
        assert!(error.to_string().starts_with("i-1 not running after 0 seconds"), "{error}");
        server.join().unwrap();
    }
}
