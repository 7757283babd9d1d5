//! Instances: list, describe, stop, start, reboot, terminate.

use serde_json::{Value, json};

use crate::cli::answer::{list, tag, text};
use crate::cli::client::Parameters;
use crate::cli::global::{Global, Output, print, split};
use crate::cli::names;
use crate::cli::output::{View, age, columns, plain};
use crate::cli::wait::Wait;

/// How instances look.
pub const INSTANCES: View = View {
    id: "instanceId",
    columns: &[
        ("ID", |each, _| text(each, "instanceId").into()),
        ("NAME", |each, _| tag(each, "Name").unwrap_or_default().into()),
        ("STATE", |each, _| text(each, "instanceState.name").into()),
        ("TYPE", |each, _| text(each, "instanceType").into()),
        ("IMAGE", |each, _| text(each, "imageId").into()),
        ("PRIVATE ADDRESS", |each, _| text(each, "privateIpAddress").into()),
        ("PUBLIC ADDRESS", |each, _| text(each, "ipAddress").into()),
        ("LAUNCHED", |each, now| age(text(each, "launchTime"), now)),
    ],
};

/// How instances look whose states change.
const CHANGES: View = View {
    id: "instanceId",
    columns: &[
        ("ID", |each, _| text(each, "instanceId").into()),
        ("STATE", |each, _| text(each, "currentState.name").into()),
        ("WAS", |each, _| text(each, "previousState.name").into()),
    ],
};

/// Lists instances.
#[derive(Debug, clap::Args)]
pub struct Ps {
    /// Show terminated ones too
    #[arg(long, short)]
    all: bool,
    /// Show those that match EC2's filter, such as tag:Name=web or instance-state-name=running,stopped
    #[arg(long, short, value_name = "NAME=VALUE")]
    filter: Vec<String>,
}

impl Ps {
    /// Does it; returns the exit status.
    pub fn execute(self, global: &Global) -> anyhow::Result<u8> {
        let filters: Vec<_> = self
            .filter
            .iter()
            .map(|each| split(each, "filter", "NAME=VALUE"))
            .collect::<anyhow::Result<_>>()?;
        let mut found = global.client()?.instances(Parameters::default().with_filters(&filters))?;
        // Whoever asks for a state gets it.
        let names_state = filters.iter().any(|(name, _)| name.starts_with("instance-state-"));
        if !self.all && !names_state {
            found.retain(|each| text(each, "instanceState.name") != "terminated");
        }
        global.show(&INSTANCES, &found)?;
        Ok(0)
    }
}

/// Shows everything about instances.
#[derive(Debug, clap::Args)]
pub struct Describe {
    /// Ids or names of instances
    #[arg(required = true, value_name = "INSTANCE")]
    instances: Vec<String>,
}

impl Describe {
    /// Does it; returns the exit status.
    pub fn execute(self, global: &Global) -> anyhow::Result<u8> {
        let client = global.client()?;
        let ids = names::instances(&client, &self.instances)?;
        let found = client.instances(Parameters::default().with_list("InstanceId", &ids))?;
        if global.quiet || global.output == Output::Json {
            global.show(&INSTANCES, &found)?;
        } else {
            let all: Vec<_> = found.iter().map(|each| columns(details(each))).collect();
            print(&all.join("\n"))?;
        }
        Ok(0)
    }
}

/// What there is to say about an instance: titles and texts.
fn details(instance: &Value) -> Vec<Vec<String>> {
    const TEXTS: [(&str, &str); 15] = [
        ("instance", "instanceId"),
        ("state", "instanceState.name"),
        ("reason", "stateReason.message"),
        ("type", "instanceType"),
        ("image", "imageId"),
        ("key pair", "keyName"),
        ("launched", "launchTime"),
        ("zone", "placement.availabilityZone"),
        ("private address", "privateIpAddress"),
        ("private name", "privateDnsName"),
        ("public address", "ipAddress"),
        ("subnet", "subnetId"),
        ("VPC", "vpcId"),
        ("metadata tokens", "metadataOptions.httpTokens"),
        ("root device", "rootDeviceName"),
    ];
    let texts = TEXTS.into_iter().map(|(title, path)| (title, text(instance, path).to_owned()));
    let groups = list(instance, "groupSet")
        .iter()
        .map(|each| ("security group", format!("{} {}", text(each, "groupId"), text(each, "groupName"))));
    let devices = list(instance, "blockDeviceMapping").iter().map(|each| {
        let ending =
            if text(each, "ebs.deleteOnTermination") == "true" { ", deleted on termination" } else { "" };
        let (name, volume) = (text(each, "deviceName"), text(each, "ebs.volumeId"));
        ("volume", format!("{volume} as {name}, {}{ending}", text(each, "ebs.status")))
    });
    let tags = list(instance, "tagSet")
        .iter()
        .map(|each| ("tag", format!("{}={}", text(each, "key"), text(each, "value"))));
    texts
        .chain(groups)
        .chain(devices)
        .chain(tags)
        .filter(|(_, text)| !text.is_empty())
        .map(|(title, text)| vec![title.to_owned(), plain(&text)])
        .collect()
}

/// Stops instances.
#[derive(Debug, clap::Args)]
pub struct Stop {
    /// Ids or names of instances
    #[arg(required = true, value_name = "INSTANCE")]
    instances: Vec<String>,
    /// Switch them off without asking their guests, which can lose what is not on disk yet
    #[arg(long)]
    force: bool,
    #[command(flatten)]
    wait: Wait,
}

impl Stop {
    /// Does it; returns the exit status.
    pub fn execute(self, global: &Global) -> anyhow::Result<u8> {
        let parameters = Parameters::default().with_some("Force", self.force.then_some("true"));
        change(global, "StopInstances", &self.instances, parameters, &self.wait, "stopped")
    }
}

/// Starts instances.
#[derive(Debug, clap::Args)]
pub struct Start {
    /// Ids or names of instances
    #[arg(required = true, value_name = "INSTANCE")]
    instances: Vec<String>,
    #[command(flatten)]
    wait: Wait,
}

impl Start {
    /// Does it; returns the exit status.
    pub fn execute(self, global: &Global) -> anyhow::Result<u8> {
        change(global, "StartInstances", &self.instances, Parameters::default(), &self.wait, "running")
    }
}

/// Terminates instances.
#[derive(Debug, clap::Args)]
pub struct Terminate {
    /// Ids or names of instances
    #[arg(required = true, value_name = "INSTANCE")]
    instances: Vec<String>,
    #[command(flatten)]
    wait: Wait,
}

impl Terminate {
    /// Does it; returns the exit status.
    pub fn execute(self, global: &Global) -> anyhow::Result<u8> {
        change(global, "TerminateInstances", &self.instances, Parameters::default(), &self.wait, "terminated")
    }
}

/// Asks for instances to come into another state, waits for it if that is wanted, and says what came of it.
fn change(
    global: &Global,
    action: &str,
    instances: &[String],
    parameters: Parameters,
    wait: &Wait,
    wanted: &str,
) -> anyhow::Result<u8> {
    let client = global.client()?;
    let ids = names::instances(&client, instances)?;
    let answer = client.call(action, parameters.with_list("InstanceId", &ids))?;
    wait.until(&client, &ids, wanted)?;
    let mut changes = list(&answer, "instancesSet").to_vec();
    if wait.wait {
        for each in &mut changes {
            arrived(each, wanted);
        }
    }
    global.show(&CHANGES, &changes)?;
    Ok(0)
}

/// Says of a change that it came to its end.
fn arrived(change: &mut Value, state: &str) {
    let code = match state {
        "running" => "16",
        "terminated" => "48",
        _ => "80",
    };
    if let Some(current) = change.get_mut("currentState") {
        *current = json!({"code": code, "name": state});
    }
}

/// Reboots instances.
#[derive(Debug, clap::Args)]
pub struct Reboot {
    /// Ids or names of instances
    #[arg(required = true, value_name = "INSTANCE")]
    instances: Vec<String>,
}

impl Reboot {
    /// Does it; returns the exit status.
    pub fn execute(self, global: &Global) -> anyhow::Result<u8> {
        let client = global.client()?;
        let ids = names::instances(&client, &self.instances)?;
        client.call("RebootInstances", Parameters::default().with_list("InstanceId", &ids))?;
        global.done("instanceId", &ids)?;
        Ok(0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::output::table;

    fn instance() -> Value {
        json!({
            "instanceId": "i-0123456789abcdef0",
            "imageId": "ami-1",
            "instanceState": {"code": "16", "name": "running"},
            "instanceType": "t3.micro",
            "launchTime": "2026-11-21T09:57:00.000Z",
            "privateIpAddress": "172.31.0.4",
            "groupSet": [{"groupId": "sg-1", "groupName": "default"}],
            "blockDeviceMapping": [{
                "deviceName": "/dev/xvda",
                "ebs": {"volumeId": "vol-1", "status": "attached", "deleteOnTermination": "true"},
            }],
            "tagSet": [{"key": "Name", "value": "web"}],
        })
    }

    #[test]
    fn an_instance_is_a_row() {
        let mut instance = instance();
        instance["ipAddress"] = json!("198.19.0.4");
        let shown = table(&INSTANCES, &[instance], "2026-11-21T10:00:00Z".parse().unwrap());
        let words: Vec<_> = shown.lines().nth(1).unwrap().split("  ").map(str::trim).collect();
        let words: Vec<_> = words.into_iter().filter(|word| !word.is_empty()).collect();
        assert_eq!(
            words,
            [
                "i-0123456789abcdef0",
                "web",
                "running",
                "t3.micro",
                "ami-1",
                "172.31.0.4",
                "198.19.0.4",
                "3 minutes ago"
            ]
        );
    }

    #[test]
    fn details_leave_out_what_there_is_not() {
        let rows = details(&instance());
        let of = |title: &str| rows.iter().find(|row| row[0] == title).map(|row| row[1].as_str());
        assert_eq!(of("security group"), Some("sg-1 default"));
        assert_eq!(of("volume"), Some("vol-1 as /dev/xvda, attached, deleted on termination"));
        assert_eq!(of("tag"), Some("Name=web"));
        assert_eq!(of("public address"), None);
    }

    #[test]
    fn after_waiting_the_state_is_the_one_waited_for() {
        let mut change = json!({"instanceId": "i-1", "currentState": {"code": "64", "name": "stopping"}});
        arrived(&mut change, "stopped");
        assert_eq!(text(&change, "currentState.name"), "stopped");
        assert_eq!(text(&change, "currentState.code"), "80");
    }
}
