//! CreateNetworkAclEntry, ReplaceNetworkAclEntry and DeleteNetworkAclEntry.

use serde::Deserialize;
use serde::de::IgnoredAny;

use crate::actions::lookup::find_own;
use crate::actions::refused::{NO_IPV6, refuse};
use crate::actions::vpcs::range;
use crate::query::{Action, ApiError, Context};
use crate::records::{AclEntry, NetworkAcl};
use crate::state::World;

/// The most entries of an ACL in each direction.
const MAX_ENTRIES: usize = 20;

/// The numbers that entries can have. The next one is that of the entry which denies the rest.
const NUMBERS: std::ops::RangeInclusive<i64> = 1..=32766;

const ICMP: u8 = 1;
const TCP: u8 = 6;
const UDP: u8 = 17;

/// Adds an entry to an ACL.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase", deny_unknown_fields)]
pub struct CreateNetworkAclEntry {
    network_acl_id: String,
    rule_number: i64,
    protocol: String,
    rule_action: String,
    egress: bool,
    cidr_block: Option<String>,
    ipv6_cidr_block: Option<IgnoredAny>,
    #[serde(rename = "Icmp")]
    icmp: Option<Icmp>,
    port_range: Option<PortRange>,
}

/// Changes the entry of a number.
#[derive(Debug, Deserialize)]
#[serde(transparent)]
pub struct ReplaceNetworkAclEntry(CreateNetworkAclEntry);

#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase", deny_unknown_fields)]
struct Icmp {
    #[serde(rename = "Type")]
    kind: Option<i64>,
    code: Option<i64>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase", deny_unknown_fields)]
struct PortRange {
    from: Option<i64>,
    to: Option<i64>,
}

/// Reads a protocol: a number, -1 for all, or one of the names that EC2 takes.
fn protocol(text: &str) -> Result<Option<u8>, ApiError> {
    match text {
        "-1" | "all" => Ok(None),
        "icmp" => Ok(Some(ICMP)),
        "tcp" => Ok(Some(TCP)),
        "udp" => Ok(Some(UDP)),
        _ => text.parse().map(Some).map_err(|_| {
            let reason = "Expecting tcp, udp, icmp, or a number from -1 to 255.";
            ApiError::invalid(text, "protocol", reason)
        }),
    }
}

/// Reads the number of an entry.
fn number(number: i64) -> Result<u16, ApiError> {
    let checked = u16::try_from(number).ok().filter(|_| NUMBERS.contains(&number));
    checked.ok_or_else(|| {
        let reason = format!("Expecting a number from {} to {}.", NUMBERS.start(), NUMBERS.end());
        ApiError::invalid(number, "ruleNumber", reason)
    })
}

impl CreateNetworkAclEntry {
    fn entry(&self) -> Result<AclEntry, ApiError> {
        refuse(&[(self.ipv6_cidr_block.is_some(), NO_IPV6)])?;
        let protocol = protocol(&self.protocol)?;
        let allow = match self.rule_action.as_str() {
            "allow" => true,
            "deny" => false,
            other => {
                return Err(ApiError::invalid(other, "ruleAction", "Expecting one of: allow, deny."));
            }
        };
        let text = self.cidr_block.as_deref().ok_or_else(|| ApiError::missing("cidrBlock"))?;
        // EC2 ignores what says nothing of the protocol.
        let ports = match protocol {
            Some(TCP | UDP) => Some(self.ports()?),
            _ => None,
        };
        let icmp = match protocol {
            Some(ICMP) => Some(self.icmp()?),
            _ => None,
        };
        Ok(AclEntry {
            number: number(self.rule_number)?,
            egress: self.egress,
            protocol,
            allow,
            cidr: range(text, "cidrBlock")?,
            ports,
            icmp,
        })
    }

    fn ports(&self) -> Result<(u16, u16), ApiError> {
        let missing = || ApiError::missing("portRange");
        let range = self.port_range.as_ref().ok_or_else(missing)?;
        let port = |port: Option<i64>| {
            let port = port.ok_or_else(missing)?;
            let reason = "Expecting a number from 0 to 65535.";
            u16::try_from(port).map_err(|_| ApiError::invalid(port, "portRange", reason))
        };
        let (from, to) = (port(range.from)?, port(range.to)?);
        if from > to {
            let reason = format!("The range must not end, at {to}, before it begins.");
            return Err(ApiError::invalid(from, "portRange", reason));
        }
        Ok((from, to))
    }

    fn icmp(&self) -> Result<(i16, i16), ApiError> {
        let missing = || ApiError::missing("icmpTypeCode");
        let icmp = self.icmp.as_ref().ok_or_else(missing)?;
        let number = |number: Option<i64>| {
            let number = number.ok_or_else(missing)?;
            let checked = i16::try_from(number).ok().filter(|number| (-1..=255).contains(number));
            let reason = "Expecting a number from -1, for all, to 255.";
            checked.ok_or_else(|| ApiError::invalid(number, "icmpTypeCode", reason))
        };
        Ok((number(icmp.kind)?, number(icmp.code)?))
    }

    /// The ACL as it shall be, with the entry in the place of another one or without one.
    fn plan(&self, world: &World, context: Context<'_>, replaces: bool) -> Result<NetworkAcl, ApiError> {
        let mut acl = NetworkAcl::clone(find_own::<NetworkAcl>(world, context, &self.network_acl_id)?);
        let entry = self.entry()?;
        let same = |other: &AclEntry| (other.egress, other.number) == (entry.egress, entry.number);
        match (acl.entries.iter().any(same), replaces) {
            (true, false) => {
                let message = format!("The network acl entry identified by {} already exists.", entry.number);
                return Err(ApiError::new("NetworkAclEntryAlreadyExists", message));
            }
            (false, true) => return Err(no_entry(&acl, entry.number)),
            _ => acl.entries.retain(|other| !same(other)),
        }
        if acl.entries.iter().filter(|other| other.egress == entry.egress).count() >= MAX_ENTRIES {
            let message =
                format!("{} has {MAX_ENTRIES} entries of this direction, which is the most.", acl.id);
            return Err(ApiError::new("NetworkAclEntryLimitExceeded", message));
        }
        acl.entries.push(entry);
        acl.entries.sort_by_key(|entry| (entry.egress, entry.number));
        Ok(acl)
    }
}

fn no_entry(acl: &NetworkAcl, number: u16) -> ApiError {
    let message = format!("The network acl entry identified by {number} does not exist in {}.", acl.id);
    ApiError::new("InvalidNetworkAclEntry.NotFound", message)
}

impl Action for CreateNetworkAclEntry {
    const NAME: &'static str = "CreateNetworkAclEntry";
    type Response = ();

    fn check(&self, context: Context<'_>) -> Result<(), ApiError> {
        self.plan(&context.agent.state.read(), context, false).map(drop)
    }

    fn run(self, context: Context<'_>) -> Result<(), ApiError> {
        context.agent.state.change(|draft| {
            let acl = self.plan(draft, context, false)?;
            draft.put(acl);
            Ok(())
        })
    }
}

impl Action for ReplaceNetworkAclEntry {
    const NAME: &'static str = "ReplaceNetworkAclEntry";
    type Response = ();

    fn check(&self, context: Context<'_>) -> Result<(), ApiError> {
        self.0.plan(&context.agent.state.read(), context, true).map(drop)
    }

    fn run(self, context: Context<'_>) -> Result<(), ApiError> {
        context.agent.state.change(|draft| {
            let acl = self.0.plan(draft, context, true)?;
            draft.put(acl);
            Ok(())
        })
    }
}

/// Takes an entry out of an ACL.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase", deny_unknown_fields)]
pub struct DeleteNetworkAclEntry {
    network_acl_id: String,
    rule_number: i64,
    egress: bool,
}

impl DeleteNetworkAclEntry {
    /// The ACL as it shall be.
    fn plan(&self, world: &World, context: Context<'_>) -> Result<NetworkAcl, ApiError> {
        let mut acl = NetworkAcl::clone(find_own::<NetworkAcl>(world, context, &self.network_acl_id)?);
        let number = number(self.rule_number)?;
        let count = acl.entries.len();
        acl.entries.retain(|entry| (entry.egress, entry.number) != (self.egress, number));
        if acl.entries.len() == count { Err(no_entry(&acl, number)) } else { Ok(acl) }
    }
}

impl Action for DeleteNetworkAclEntry {
    const NAME: &'static str = "DeleteNetworkAclEntry";
    type Response = ();

    fn check(&self, context: Context<'_>) -> Result<(), ApiError> {
        self.plan(&context.agent.state.read(), context).map(drop)
    }

    fn run(self, context: Context<'_>) -> Result<(), ApiError> {
        context.agent.state.change(|draft| {
            let acl = self.plan(draft, context)?;
            draft.put(acl);
            Ok(())
        })
    }
}
