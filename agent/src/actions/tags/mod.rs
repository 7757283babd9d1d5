//! Tags, whatever they are on.

mod create_tags;
mod delete_tags;
mod describe_tags;

use std::collections::BTreeMap;

use serde::{Serialize, Serializer};

use crate::actions::lookup::{Named, find_own};
use crate::query::dispatch::Registry;
use crate::query::tags::tag_set;
use crate::query::{ApiError, Context};
use crate::records::{
    DhcpOptions, Image, Instance, KeyPair, NetworkInterface, SecurityGroup, Snapshot, Subnet, Volume, Vpc,
};
use crate::state::World;

/// The most resources of one request.
const MAX_RESOURCES: usize = 1000;

pub(super) fn register(registry: &mut Registry) {
    registry.add::<create_tags::CreateTags>();
    registry.add::<delete_tags::DeleteTags>();
    registry.add::<describe_tags::DescribeTags>();
}

/// Writes `tagSet`.
pub(super) fn set<S: Serializer>(tags: &BTreeMap<String, String>, serializer: S) -> Result<S::Ok, S::Error> {
    tag_set(Some(tags)).serialize(serializer)
}

/// What EC2 calls the kind of a resource, by its id.
fn kind(id: &str) -> Option<&'static str> {
    let (prefix, _) = id.rsplit_once('-')?;
    Some(match prefix {
        "ami" => "image",
        "dopt" => "dhcp-options",
        "eni" => "network-interface",
        "i" => "instance",
        "key" => "key-pair",
        "sg" => "security-group",
        "sgr" => "security-group-rule",
        "snap" => "snapshot",
        "subnet" => "subnet",
        "vol" => "volume",
        "vpc" => "vpc",
        _ => return None,
    })
}

/// Whether all of these are resources that the caller can tag.
fn check(world: &World, context: Context<'_>, resources: &[String]) -> Result<(), ApiError> {
    if resources.is_empty() {
        return Err(ApiError::missing("resourceIdSet"));
    }
    if resources.len() > MAX_RESOURCES {
        let message = format!("A request can be about at most {MAX_RESOURCES} resources.");
        return Err(ApiError::new("InvalidParameterValue", message));
    }
    resources.iter().try_for_each(|id| {
        let exists: fn(&World, Context<'_>, &str) -> Result<(), ApiError> = match kind(id) {
            Some("dhcp-options") => exists::<DhcpOptions>,
            Some("image") => exists::<Image>,
            Some("instance") => exists::<Instance>,
            Some("key-pair") => key_pair_exists,
            Some("network-interface") => exists::<NetworkInterface>,
            Some("security-group") => exists::<SecurityGroup>,
            Some("security-group-rule") => rule_exists,
            Some("snapshot") => exists::<Snapshot>,
            Some("subnet") => exists::<Subnet>,
            Some("volume") => exists::<Volume>,
            Some("vpc") => exists::<Vpc>,
            _ => {
                let message = format!("The ID '{id}' is not valid");
                return Err(ApiError::new("InvalidID", message));
            }
        };
        exists(world, context, id)
    })
}

fn exists<R: Named>(world: &World, context: Context<'_>, id: &str) -> Result<(), ApiError> {
    find_own::<R>(world, context, id).map(|_| ())
}

fn key_pair_exists(world: &World, _: Context<'_>, id: &str) -> Result<(), ApiError> {
    if world.all::<KeyPair>().any(|pair| pair.id.as_str() == id) {
        return Ok(());
    }
    Err(ApiError::new("InvalidKeyPair.NotFound", format!("The keyPair ID '{id}' does not exist")))
}

fn rule_exists(world: &World, context: Context<'_>, id: &str) -> Result<(), ApiError> {
    let mut own = world.all::<SecurityGroup>().filter(|group| group.owner == context.caller.account);
    if own.any(|group| group.rules.iter().any(|rule| rule.id.as_str() == id)) {
        return Ok(());
    }
    let message = format!("The security group rule ID '{id}' does not exist");
    Err(ApiError::new("InvalidSecurityGroupRuleId.NotFound", message))
}
