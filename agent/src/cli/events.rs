//! What has become of instances.

use std::time::Duration;

use serde_json::Value;

use crate::cli::answer::text;
use crate::cli::client::{Refused, Told};
use crate::cli::global::{Global, Output, print};

/// How long an agent that does not answer is left alone: it may be starting again.
const REST: Duration = Duration::from_secs(1);

/// Prints the changes of instances' states. As json, one document of EventBridge's form to a line.
#[derive(Debug, clap::Args)]
pub struct Events {
    /// Go on with what comes, also when the agent is started again
    #[arg(long, short)]
    follow: bool,
    /// Leave out the events up to this number
    #[arg(long, value_name = "NUMBER", default_value_t = 0)]
    after: u64,
}

impl Events {
    /// Does it; returns the exit status.
    pub fn execute(self, global: &Global) -> anyhow::Result<u8> {
        let mut after = self.after;
        // A wrong address is not waited for; a known agent is.
        let mut is_known = false;
        loop {
            let mut printed = Ok(());
            // Anew each time: with the agent, its address may be another.
            let read = global.client().and_then(|client| {
                client.events(after, self.follow, &mut |told| {
                    is_known = true;
                    if let Told::Event { number, .. } = &told {
                        after = *number;
                    }
                    printed = show(global, &told);
                    printed.is_ok()
                })
            });
            printed?;
            match read {
                Ok(()) if !self.follow => return Ok(0),
                // A stream ends after a while, so that none is kept open for nobody.
                Ok(()) => is_known = true,
                Err(error) if !is_known || is_final(&error) => return Err(error),
                Err(_) => std::thread::sleep(REST),
            }
        }
    }
}

/// Whether the agent would say so again.
fn is_final(error: &anyhow::Error) -> bool {
    error.downcast_ref::<Refused>().is_some_and(|refused| refused.status < 500)
}

fn show(global: &Global, told: &Told) -> anyhow::Result<()> {
    match told {
        Told::Event { event, .. } if global.output == Output::Json => print(&format!("{event}\n")),
        Told::Event { number, event } => print(&format!("{}\n", line(*number, event))),
        Told::Lost(count) => {
            eprintln!("innkeeper: {count} events were forgotten before they could be read");
            Ok(())
        }
    }
}

fn line(number: u64, event: &Value) -> String {
    let (instance, state) = (text(event, "detail.instance-id"), text(event, "detail.state"));
    format!("{number:>6}  {}  {instance}  {state}", text(event, "time"))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn an_event_is_a_line() {
        let event = json!({
            "time": "2026-11-28T12:00:01Z",
            "detail": { "instance-id": "i-00000000000000001", "state": "running" },
        });
        assert_eq!(line(7, &event), "     7  2026-11-28T12:00:01Z  i-00000000000000001  running");
    }
}
