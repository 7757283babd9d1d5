//! Permissions, as requests and answers have them, and the rules that they are made of. Pure: no record is looked up.
//!
//! A permission (`IpPermission`) is a protocol, a range of ports and any number of peers; a rule has one peer. Rules
//! are kept in one form only, so that two that allow the same are equal: protocols by name where EC2 has one, addresses
//! without host bits, and no ports where the protocol has none.

use std::net::{Ipv4Addr, Ipv6Addr};

use serde::{Deserialize, Serialize};

use crate::ids::{SecurityGroupId, SecurityGroupRuleId};
use crate::query::ApiError;
use crate::records::{Peer, Rule};

/// What names and descriptions may be made of, besides letters and digits.
const PUNCTUATION: &str = " ._-:/()#,@[]+=&;{}!$*";

/// The most rules in one direction, for IPv4 and IPv6 each.
const MAX_RULES: usize = 60;

/// A permission.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all(deserialize = "PascalCase", serialize = "camelCase"), deny_unknown_fields)]
pub(super) struct IpPermission {
    pub ip_protocol: Option<String>,
    pub from_port: Option<i32>,
    pub to_port: Option<i32>,
    #[serde(default)]
    pub groups: Vec<UserIdGroupPair>,
    #[serde(default)]
    pub ip_ranges: Vec<IpRange>,
    #[serde(default)]
    pub ipv6_ranges: Vec<Ipv6Range>,
    #[serde(default)]
    pub prefix_list_ids: Vec<PrefixListId>,
}

/// IPv4 addresses.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all(deserialize = "PascalCase", serialize = "camelCase"), deny_unknown_fields)]
pub(super) struct IpRange {
    pub cidr_ip: String,
    pub description: Option<String>,
}

/// IPv6 addresses.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all(deserialize = "PascalCase", serialize = "camelCase"), deny_unknown_fields)]
pub(super) struct Ipv6Range {
    pub cidr_ipv6: String,
    pub description: Option<String>,
}

/// A prefix list.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all(deserialize = "PascalCase", serialize = "camelCase"), deny_unknown_fields)]
pub(super) struct PrefixListId {
    pub prefix_list_id: String,
    pub description: Option<String>,
}

/// The instances of a group.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all(deserialize = "PascalCase", serialize = "camelCase"), deny_unknown_fields)]
pub(super) struct UserIdGroupPair {
    pub user_id: Option<String>,
    pub group_id: Option<String>,
    pub group_name: Option<String>,
    pub vpc_id: Option<String>,
    pub vpc_peering_connection_id: Option<String>,
    pub peering_status: Option<String>,
    pub description: Option<String>,
}

/// What a rule allows: all of it but its id, its direction and its description.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Allowed {
    pub protocol: String,
    pub from_port: Option<i32>,
    pub to_port: Option<i32>,
    pub peer: Peer,
}

impl Allowed {
    /// What a rule allows.
    pub fn of(rule: &Rule) -> Self {
        let (from_port, to_port) = rule.ports();
        Self { protocol: rule.protocol.clone(), from_port, to_port, peer: rule.peer.clone() }
    }

    /// A new rule that allows this.
    pub fn into_rule(self, is_egress: bool, description: Option<String>) -> Rule {
        Rule {
            id: SecurityGroupRuleId::random(),
            is_egress,
            protocol: self.protocol,
            from_port: self.from_port,
            to_port: self.to_port,
            peer: self.peer,
            description,
        }
    }
}

impl std::fmt::Display for Allowed {
    /// As EC2's errors do: `peer: 0.0.0.0/0, TCP, from port: 22, to port: 22, ALLOW`.
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let peer = match &self.peer {
            Peer::Ipv4(text) | Peer::Ipv6(text) | Peer::PrefixList(text) => text,
            Peer::Group(id) => id.as_str(),
        };
        write!(formatter, "peer: {peer}, ")?;
        match self.protocol.as_str() {
            "-1" => write!(formatter, "ALL, ")?,
            name => write!(formatter, "{}, ", name.to_uppercase())?,
        }
        if let (Some(from), Some(to)) = (self.from_port, self.to_port) {
            let (first, second) = match self.protocol.as_str() {
                "icmp" | "icmpv6" => ("type", "code"),
                _ => ("from port", "to port"),
            };
            write!(formatter, "{first}: {from}, {second}: {to}, ")?;
        }
        formatter.write_str("ALLOW")
    }
}

/// The one rule that every new group has: everything may leave.
pub(super) fn default_egress() -> Rule {
    Rule::of_everything(true, Peer::Ipv4("0.0.0.0/0".into()))
}

/// What a permission allows, peer by peer, with the peer's description. `group` finds the group that a pair means.
pub(super) fn spread(
    permission: &IpPermission,
    group: impl Fn(&UserIdGroupPair) -> Result<SecurityGroupId, ApiError>,
) -> Result<Vec<(Allowed, Option<String>)>, ApiError> {
    let Some(name) = &permission.ip_protocol else { return Err(ApiError::missing("ipProtocol")) };
    let protocol = protocol(name)?;
    let (from_port, to_port) = ports(&protocol, permission.from_port, permission.to_port)?;
    let mut peers = Vec::new();
    for range in &permission.ip_ranges {
        peers.push((Peer::Ipv4(ipv4(&range.cidr_ip)?), &range.description));
    }
    for range in &permission.ipv6_ranges {
        peers.push((Peer::Ipv6(ipv6(&range.cidr_ipv6)?), &range.description));
    }
    if let Some(list) = permission.prefix_list_ids.first() {
        return Err(no_prefix_list(&list.prefix_list_id));
    }
    for pair in &permission.groups {
        peers.push((Peer::Group(group(pair)?), &pair.description));
    }
    if peers.is_empty() {
        let message = "A permission must have a peer: IpRanges, Ipv6Ranges, PrefixListIds or Groups.";
        return Err(ApiError::new("InvalidPermission.Malformed", message));
    }
    let rule = |(peer, text): (Peer, &Option<String>)| {
        check_description(text.as_deref())?;
        Ok((Allowed { protocol: protocol.clone(), from_port, to_port, peer }, text.clone()))
    };
    peers.into_iter().map(rule).collect()
}

/// There are none on this host yet.
pub(super) fn no_prefix_list(id: &str) -> ApiError {
    ApiError::new("InvalidPrefixListID.NotFound", format!("The prefix list ID '{id}' does not exist"))
}

/// Rules as permissions: those with the same protocol and ports together, in the order in which they were made.
pub(super) fn gather<'r>(owner: &str, rules: impl Iterator<Item = &'r Rule>) -> Vec<IpPermission> {
    let mut permissions: Vec<IpPermission> = Vec::new();
    for rule in rules {
        let (from_port, to_port) = rule.ports();
        let place = permissions.iter().position(|permission| {
            permission.ip_protocol.as_ref() == Some(&rule.protocol)
                && (permission.from_port, permission.to_port) == (from_port, to_port)
        });
        let mut permission = match place {
            Some(place) => permissions.remove(place),
            None => IpPermission {
                ip_protocol: Some(rule.protocol.clone()),
                from_port,
                to_port,
                ..IpPermission::default()
            },
        };
        let description = rule.description.clone();
        match &rule.peer {
            Peer::Ipv4(cidr) => {
                permission.ip_ranges.push(IpRange { cidr_ip: cidr.clone(), description });
            }
            Peer::Ipv6(cidr) => {
                permission.ipv6_ranges.push(Ipv6Range { cidr_ipv6: cidr.clone(), description });
            }
            Peer::PrefixList(id) => {
                permission.prefix_list_ids.push(PrefixListId { prefix_list_id: id.clone(), description });
            }
            Peer::Group(id) => permission.groups.push(UserIdGroupPair {
                user_id: Some(owner.to_owned()),
                group_id: Some(id.to_string()),
                description,
                ..UserIdGroupPair::default()
            }),
        }
        permissions.insert(place.unwrap_or(permissions.len()), permission);
    }
    permissions
}

/// Whether a group may have all of these rules.
pub(super) fn check_count(rules: &[Rule]) -> Result<(), ApiError> {
    for is_egress in [false, true] {
        for is_ipv6 in [false, true] {
            let counts = |rule: &&Rule| {
                rule.is_egress == is_egress
                    && match rule.peer {
                        Peer::Ipv4(_) => !is_ipv6,
                        Peer::Ipv6(_) => is_ipv6,
                        Peer::Group(_) | Peer::PrefixList(_) => true,
                    }
            };
            if rules.iter().filter(counts).count() > MAX_RULES {
                return Err(ApiError::new(
                    "RulesPerSecurityGroupLimitExceeded",
                    format!(
                        "The maximum number of rules per security group has been reached: {MAX_RULES} in each direction."
                    ),
                ));
            }
        }
    }
    Ok(())
}

/// Whether a text can be a name or a description of a group or rule.
pub(super) fn is_plain(text: &str) -> bool {
    text.chars().count() <= 255
        && text.chars().all(|character| character.is_ascii_alphanumeric() || PUNCTUATION.contains(character))
}

/// Refuses what cannot be a rule's description.
pub(super) fn check_description(text: Option<&str>) -> Result<(), ApiError> {
    if text.is_none_or(is_plain) {
        return Ok(());
    }
    let message = format!(
        "Invalid rule description. Valid descriptions are strings less than 256 characters from the following set: \
         a-zA-Z0-9{PUNCTUATION}"
    );
    Err(ApiError::new("InvalidParameterValue", message))
}

/// A protocol as rules have it.
pub(super) fn protocol(text: &str) -> Result<String, ApiError> {
    let text = text.to_ascii_lowercase();
    Ok(match text.as_str() {
        "-1" | "all" => "-1".into(),
        "tcp" | "6" => "tcp".into(),
        "udp" | "17" => "udp".into(),
        "icmp" | "1" => "icmp".into(),
        "icmpv6" | "58" => "icmpv6".into(),
        number => match number.parse::<u8>() {
            Ok(number) => number.to_string(),
            Err(_) => {
                let message = format!("Invalid value '{text}' for IP protocol. Unknown protocol.");
                return Err(ApiError::new("InvalidParameterValue", message));
            }
        },
    })
}

/// Ports, or an ICMP type and code, as rules have them.
pub(super) fn ports(
    protocol: &str,
    from: Option<i32>,
    to: Option<i32>,
) -> Result<(Option<i32>, Option<i32>), ApiError> {
    let invalid = |message: String| Err(ApiError::new("InvalidParameterValue", message));
    match (protocol, from, to) {
        ("tcp" | "udp", Some(from), Some(to)) => {
            if let Some(port) = [from, to].into_iter().find(|port| !(0..=65_535).contains(port)) {
                return invalid(format!(
                    "Invalid value '{port}' for portRange. TCP/UDP port ({port}) out of range"
                ));
            }
            if from > to {
                let name = protocol.to_uppercase();
                return invalid(format!("Invalid {name} port range ({from}>{to})"));
            }
            Ok((Some(from), Some(to)))
        }
        ("tcp" | "udp", ..) => invalid(
            "Invalid value 'Must specify both from and to ports with TCP/UDP.' for portRange.".to_owned(),
        ),
        ("icmpv6", None, None) => Ok((Some(-1), Some(-1))),
        ("icmp" | "icmpv6", Some(kind), Some(code)) => {
            if !(-1..=255).contains(&kind) {
                return invalid(format!("ICMP type ({kind}) out of range"));
            }
            if !(-1..=255).contains(&code) || kind == -1 && code != -1 {
                return invalid(format!("ICMP code ({code}) out of range"));
            }
            Ok((Some(kind), Some(code)))
        }
        ("icmp" | "icmpv6", ..) => invalid("ICMP needs a type (FromPort) and a code (ToPort).".to_owned()),
        // Other protocols have no ports, and EC2 takes no notice of them.
        _ => Ok((None, None)),
    }
}

/// An IPv4 range without host bits.
pub(super) fn ipv4(text: &str) -> Result<String, ApiError> {
    let parsed = text.split_once('/').and_then(|(address, length)| {
        let address: Ipv4Addr = address.parse().ok()?;
        let length = prefix_length(length, 32)?;
        let mask = u32::MAX.checked_shl(32 - length).unwrap_or(0);
        Some(format!("{}/{length}", Ipv4Addr::from(u32::from(address) & mask)))
    });
    parsed.ok_or_else(|| malformed_cidr(text))
}

/// An IPv6 range without host bits.
pub(super) fn ipv6(text: &str) -> Result<String, ApiError> {
    let parsed = text.split_once('/').and_then(|(address, length)| {
        let address: Ipv6Addr = address.parse().ok()?;
        let length = prefix_length(length, 128)?;
        let mask = u128::MAX.checked_shl(128 - length).unwrap_or(0);
        Some(format!("{}/{length}", Ipv6Addr::from(u128::from(address) & mask)))
    });
    parsed.ok_or_else(|| malformed_cidr(text))
}

fn prefix_length(text: &str, most: u32) -> Option<u32> {
    // `parse` takes a sign, too.
    let digits = text.bytes().all(|byte| byte.is_ascii_digit());
    text.parse().ok().filter(|&length| digits && length <= most)
}

fn malformed_cidr(text: &str) -> ApiError {
    ApiError::new("InvalidParameterValue", format!("CIDR block {text} is malformed"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn permission(protocol: &str, ports: Option<(i32, i32)>, cidrs: &[&str]) -> IpPermission {
        let range = |cidr: &&str| match cidr.contains(':') {
            false => (Some(IpRange { cidr_ip: (*cidr).to_owned(), description: None }), None),
            true => (None, Some(Ipv6Range { cidr_ipv6: (*cidr).to_owned(), description: None })),
        };
        IpPermission {
            ip_protocol: Some(protocol.to_owned()),
            from_port: ports.map(|ports| ports.0),
            to_port: ports.map(|ports| ports.1),
            ip_ranges: cidrs.iter().filter_map(|cidr| range(cidr).0).collect(),
            ipv6_ranges: cidrs.iter().filter_map(|cidr| range(cidr).1).collect(),
            ..IpPermission::default()
        }
    }

    fn spread_out(permission: &IpPermission) -> Result<Vec<String>, &'static str> {
        let group = |pair: &UserIdGroupPair| Ok(pair.group_id.clone().unwrap().parse().unwrap());
        let rules = spread(permission, group).map_err(|error| error.code)?;
        Ok(rules.into_iter().map(|(allowed, _)| allowed.to_string()).collect())
    }

    #[test]
    fn rules_have_one_form() {
        for (protocol, ports, cidr, expected) in [
            ("tcp", Some((22, 22)), "0.0.0.0/0", "peer: 0.0.0.0/0, TCP, from port: 22, to port: 22, ALLOW"),
            (
                "6",
                Some((0, 65_535)),
                "10.1.2.3/8",
                "peer: 10.0.0.0/8, TCP, from port: 0, to port: 65535, ALLOW",
            ),
            ("UDP", Some((53, 53)), "1.2.3.4/32", "peer: 1.2.3.4/32, UDP, from port: 53, to port: 53, ALLOW"),
            ("icmp", Some((-1, -1)), "0.0.0.0/0", "peer: 0.0.0.0/0, ICMP, type: -1, code: -1, ALLOW"),
            ("58", None, "FD00::1/8", "peer: fd00::/8, ICMPV6, type: -1, code: -1, ALLOW"),
            ("-1", Some((1, 2)), "::/0", "peer: ::/0, ALL, ALLOW"),
            ("50", Some((1, 2)), "0.0.0.0/0", "peer: 0.0.0.0/0, 50, ALLOW"),
        ] {
            assert_eq!(spread_out(&permission(protocol, ports, &[cidr])).unwrap(), [expected]);
        }
    }

    #[test]
    fn what_no_rule_can_be_made_of_is_refused() {
        for (protocol, ports, cidrs, code) in [
            ("tcp", None, &["0.0.0.0/0"][..], "InvalidParameterValue"),
            ("tcp", Some((-1, -1)), &["0.0.0.0/0"], "InvalidParameterValue"),
            ("tcp", Some((1, 65_536)), &["0.0.0.0/0"], "InvalidParameterValue"),
            ("tcp", Some((2, 1)), &["0.0.0.0/0"], "InvalidParameterValue"),
            ("icmp", None, &["0.0.0.0/0"], "InvalidParameterValue"),
            ("icmp", Some((-1, 0)), &["0.0.0.0/0"], "InvalidParameterValue"),
            ("icmp", Some((256, 0)), &["0.0.0.0/0"], "InvalidParameterValue"),
            ("tpc", Some((1, 1)), &["0.0.0.0/0"], "InvalidParameterValue"),
            ("256", None, &["0.0.0.0/0"], "InvalidParameterValue"),
            ("-1", None, &["0.0.0.0"], "InvalidParameterValue"),
            ("-1", None, &["0.0.0.0/33"], "InvalidParameterValue"),
            ("-1", None, &["0.0.0.0/+8"], "InvalidParameterValue"),
            ("-1", None, &["0.0.0/8"], "InvalidParameterValue"),
            ("-1", None, &["fd00::/129"], "InvalidParameterValue"),
            ("-1", None, &[], "InvalidPermission.Malformed"),
        ] {
            assert_eq!(
                spread_out(&permission(protocol, ports, cidrs)).unwrap_err(),
                code,
                "{protocol} {cidrs:?}"
            );
        }
        let list = PrefixListId { prefix_list_id: "pl-1".into(), description: None };
        let lists = IpPermission { prefix_list_ids: vec![list], ..permission("-1", None, &[]) };
        assert_eq!(spread_out(&lists).unwrap_err(), "InvalidPrefixListID.NotFound");
        let mut described = permission("-1", None, &["0.0.0.0/0"]);
        described.ip_ranges[0].description = Some("<b>".into());
        assert_eq!(spread_out(&described).unwrap_err(), "InvalidParameterValue");
    }

    #[test]
    fn permissions_gather_what_has_the_same_ports() {
        let group: SecurityGroupId = "sg-0123456789abcdef0".parse().unwrap();
        let pair = UserIdGroupPair { group_id: Some(group.to_string()), ..UserIdGroupPair::default() };
        let ssh = IpPermission {
            groups: vec![pair],
            ..permission("tcp", Some((22, 22)), &["10.0.0.0/8", "192.168.0.0/16", "fd00::/8"])
        };
        let web = permission("tcp", Some((80, 80)), &["0.0.0.0/0"]);
        let resolve = |pair: &UserIdGroupPair| Ok(pair.group_id.clone().unwrap().parse().unwrap());
        let mut rules = Vec::new();
        for permission in [&ssh, &web] {
            let spread = spread(permission, resolve).unwrap();
            rules.extend(spread.into_iter().map(|(allowed, text)| allowed.into_rule(false, text)));
        }
        // Whatever the order.
        rules.swap(1, 4);
        let gathered = gather("123456789012", rules.iter());
        assert_eq!(gathered.len(), 2);
        assert_eq!(gathered[0].groups[0].user_id.as_deref(), Some("123456789012"));
        assert_eq!(gathered[0].ip_ranges.len(), 2);
        assert_eq!(gathered[0].ipv6_ranges.len(), 1);
        assert_eq!(gathered[1], web);
    }

    #[test]
    fn each_direction_and_family_has_its_own_count() {
        let rule = |number: u8, is_egress: bool, ipv6: bool| Rule {
            is_egress,
            peer: match ipv6 {
                false => Peer::Ipv4(format!("10.0.0.{number}/32")),
                true => Peer::Ipv6(format!("fd00::{number}/128")),
            },
            ..default_egress()
        };
        let mut rules = Vec::new();
        for number in 0..60 {
            rules.extend([(false, false), (false, true), (true, false)].map(|(a, b)| rule(number, a, b)));
        }
        check_count(&rules).unwrap();
        rules.push(rule(60, false, false));
        assert_eq!(check_count(&rules).unwrap_err().code, "RulesPerSecurityGroupLimitExceeded");
    }
}
