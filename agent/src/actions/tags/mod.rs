//! Tags, whatever they are on.

mod create_tags;
mod delete_tags;
mod describe_tags;

use std::collections::BTreeMap;

use serde::{Serialize, Serializer};

use crate::actions::lookup::{Named, find_own, key_pairs};
use crate::query::dispatch::Registry;
use crate::query::tags::tag_set;
use crate::query::{ApiError, Context};
use crate::records::{
    DhcpOptions, ElasticAddress, Image, Instance, InternetGateway, NatGateway, NetworkAcl, NetworkInterface,
    RouteTable, SecurityGroup, Snapshot, Subnet, Volume, Vpc,
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
        "acl" => "network-acl",
        "ami" => "image",
        "dopt" => "dhcp-options",
        "eipalloc" => "elastic-ip",
        "eni" => "network-interface",
        "i" => "instance",
        "igw" => "internet-gateway",
        "key" => "key-pair",
        "nat" => "natgateway",
        "rtb" => "route-table",
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
            Some("elastic-ip") => exists::<ElasticAddress>,
            Some("image") => exists::<Image>,
            Some("instance") => exists::<Instance>,
            Some("internet-gateway") => exists::<InternetGateway>,
            Some("key-pair") => key_pair_exists,
            Some("natgateway") => exists::<NatGateway>,
            Some("network-acl") => exists::<NetworkAcl>,
            Some("network-interface") => exists::<NetworkInterface>,
            Some("route-table") => exists::<RouteTable>,
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

fn key_pair_exists(world: &World, context: Context<'_>, id: &str) -> Result<(), ApiError> {
    if key_pairs(world, context).any(|pair| pair.id.as_str() == id) {
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

#[cfg(test)]
mod tests {
    use crate::actions::testing::Client;

    /// A tag that the metadata service shows is a part of a path there.
    #[test]
    fn an_instance_that_shows_its_tags_has_only_such_as_can_be_shown() {
        let client = Client::new();
        let id = client.instance(crate::records::InstanceState::Running);
        let tag = |key: &str| format!("CreateTags&ResourceId.1={id}&Tag.1.Key={key}&Tag.1.Value=x");
        let show =
            |how: &str| format!("ModifyInstanceMetadataOptions&InstanceId={id}&InstanceMetadataTags={how}");
        client.ask(&tag("a%2Fb")).unwrap();
        client.refuses(&[(&show("enabled"), "InvalidParameterValue")]);
        client.ask(&format!("DeleteTags&ResourceId.1={id}&Tag.1.Key=a%2Fb")).unwrap();
        client.ask(&show("enabled")).unwrap();
        for key in ["a%2Fb", "a%0Ab", "a%20b", "_index", ".."] {
            client.refuses(&[(&tag(key), "InvalidParameterValue")]);
        }
        client.ask(&tag("a:b")).unwrap();
        client.ask(&show("disabled")).unwrap();
        client.ask(&tag("a%20b")).unwrap();
    }

    #[test]
    fn tags_come_and_go() {
        let client = Client::new();
        let vpc = client.text("DescribeVpcs", "vpcId");
        let tag = |key: &str, value: &str| {
            format!("CreateTags&ResourceId.1={vpc}&Tag.1.Key={key}&Tag.1.Value={value}")
        };
        client.ask(&tag("Name", "one")).unwrap();
        client.ask(&tag("Name", "two")).unwrap();
        client.ask(&tag("Stage", "")).unwrap();
        for (filters, count) in [
            ("", 2),
            ("&Filter.1.Name=resource-type&Filter.1.Value.1=vpc", 2),
            ("&Filter.1.Name=key&Filter.1.Value.1=Name", 1),
            ("&Filter.1.Name=value&Filter.1.Value.1=one", 0),
            ("&Filter.1.Name=tag:Name&Filter.1.Value.1=t*", 1),
        ] {
            let found = client.texts(&format!("DescribeTags{filters}"), "resourceId");
            assert_eq!(found, vec![vpc.clone(); count], "{filters}");
        }
        let delete = |rest: &str| client.ask(&format!("DeleteTags&ResourceId.1={vpc}{rest}")).unwrap();
        let keys = || client.texts("DescribeTags", "key");
        delete("&Tag.1.Key=Name&Tag.1.Value=one");
        assert_eq!(keys(), ["Name", "Stage"]);
        delete("&Tag.1.Key=Name&Tag.1.Value=two");
        assert_eq!(keys(), ["Stage"]);
        client.ask(&tag("More", "1")).unwrap();
        delete("&Tag.1.Key=More");
        assert_eq!(keys(), ["Stage"]);
        delete("");
        assert!(keys().is_empty());
    }

    #[test]
    fn what_cannot_be_tagged_is_refused_and_nothing_is_tagged() {
        let client = Client::new();
        let vpc = client.text("DescribeVpcs", "vpcId");
        for (resource, code) in [
            ("i-12345678", "InvalidInstanceID.NotFound"),
            ("i-x", "InvalidInstanceID.Malformed"),
            ("vol-12345678", "InvalidVolume.NotFound"),
            ("snap-12345678", "InvalidSnapshot.NotFound"),
            ("ami-12345678", "InvalidAMIID.NotFound"),
            ("sg-12345678", "InvalidGroup.NotFound"),
            ("sgr-12345678", "InvalidSecurityGroupRuleId.NotFound"),
            ("key-12345678", "InvalidKeyPair.NotFound"),
            ("eni-12345678", "InvalidNetworkInterfaceID.NotFound"),
            ("subnet-12345678", "InvalidSubnetID.NotFound"),
            ("vpc-12345678", "InvalidVpcID.NotFound"),
            ("dopt-12345678", "InvalidDhcpOptionID.NotFound"),
            ("rtb-12345678", "InvalidRouteTableID.NotFound"),
            ("igw-12345678", "InvalidInternetGatewayID.NotFound"),
            ("nat-12345678", "NatGatewayNotFound"),
            ("acl-12345678", "InvalidNetworkAclID.NotFound"),
            ("eipalloc-12345678", "InvalidAllocationID.NotFound"),
            ("lt-12345678", "InvalidID"),
            ("nonsense", "InvalidID"),
        ] {
            let request = format!("CreateTags&ResourceId.1={vpc}&ResourceId.2={resource}&Tag.1.Key=a");
            client.refuses(&[(&request, code)]);
        }
        client.refuses(&[
            ("CreateTags&Tag.1.Key=a", "MissingParameter"),
            (&format!("CreateTags&ResourceId.1={vpc}"), "MissingParameter"),
            (&format!("CreateTags&ResourceId.1={vpc}&Tag.1.Key=aws:a"), "InvalidParameterValue"),
        ]);
        let many = |first: usize, count: usize| {
            let tag = |at: usize| format!("&Tag.{}.Key=k{}", at + 1, first + at);
            format!("CreateTags&ResourceId.1={vpc}{}", (0..count).map(tag).collect::<String>())
        };
        assert!(client.texts("DescribeTags", "key").is_empty());
        client.ask(&many(0, 50)).unwrap();
        client.ask(&many(40, 10)).unwrap();
        client.refuses(&[(&many(50, 1), "TagLimitExceeded")]);
    }
}
