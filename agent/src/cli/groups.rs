//! Security groups: list.

use serde_json::Value;

use crate::cli::answer::{list, text};
use crate::cli::client::Parameters;
use crate::cli::global::Global;
use crate::cli::output::View;

const GROUPS: View = View {
    id: "groupId",
    columns: &[
        ("ID", |each, _| text(each, "groupId").into()),
        ("NAME", |each, _| text(each, "groupName").into()),
        ("VPC", |each, _| text(each, "vpcId").into()),
        ("INBOUND", |each, _| rules(list(each, "ipPermissions"))),
        ("DESCRIPTION", |each, _| text(each, "groupDescription").into()),
    ],
};

/// What to do with security groups.
#[derive(Debug, clap::Subcommand)]
pub enum Groups {
    /// List security groups and what they let in
    List,
}

impl Groups {
    /// Does it; returns the exit status.
    pub fn execute(self, global: &Global) -> anyhow::Result<u8> {
        let Self::List = self;
        let parameters = Parameters::default();
        let found = global.client()?.describe("DescribeSecurityGroups", parameters, "securityGroupInfo")?;
        global.show(&GROUPS, &found)?;
        Ok(0)
    }
}

/// Rules in short, such as `tcp 22 from 0.0.0.0/0`.
fn rules(permissions: &[Value]) -> String {
    permissions.iter().map(rule).collect::<Vec<_>>().join(", ")
}

fn rule(permission: &Value) -> String {
    const SOURCES: [(&str, &str); 4] = [
        ("ipRanges", "cidrIp"),
        ("ipv6Ranges", "cidrIpv6"),
        ("groups", "groupId"),
        ("prefixListIds", "prefixListId"),
    ];
    let (from, to) = (text(permission, "fromPort"), text(permission, "toPort"));
    let ports = match (from, to) {
        ("" | "-1", _) => String::new(),
        _ if from == to => format!(" {from}"),
        _ => format!(" {from}-{to}"),
    };
    let protocol = match text(permission, "ipProtocol") {
        "-1" => "all",
        other => other,
    };
    let sources = SOURCES
        .into_iter()
        .flat_map(|(name, field)| list(permission, name).iter().map(move |each| text(each, field)));
    format!("{protocol}{ports} from {}", sources.collect::<Vec<_>>().join(" "))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn rules_are_said_in_short() {
        for (permission, said) in [
            (
                json!({"ipProtocol": "tcp", "fromPort": "22", "toPort": "22", "ipRanges": [{"cidrIp": "0.0.0.0/0"}]}),
                "tcp 22 from 0.0.0.0/0",
            ),
            (
                json!({
                    "ipProtocol": "udp", "fromPort": "1", "toPort": "9",
                    "ipRanges": [{"cidrIp": "10.0.0.0/8"}], "ipv6Ranges": [{"cidrIpv6": "::/0"}],
                }),
                "udp 1-9 from 10.0.0.0/8 ::/0",
            ),
            (json!({"ipProtocol": "-1", "groups": [{"groupId": "sg-1"}]}), "all from sg-1"),
        ] {
            assert_eq!(rules(&[permission]), said);
        }
    }
}
