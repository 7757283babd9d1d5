//! From the ids of a request to records: who may see them, and what EC2 answers if they are not there.

use std::fmt;
use std::sync::Arc;

use crate::actions::sharing::EVERYBODY;
use crate::ids::{
    AllocationId, DhcpOptionsId, ImageId, InstanceId, InternetGatewayId, NatGatewayId, NetworkAclId,
    NetworkInterfaceId, RouteTableId, SecurityGroupId, SnapshotId, SubnetId, VolumeId, VpcId, is_well_formed,
};
use crate::query::{ApiError, Context};
use crate::records::{
    DhcpOptions, ElasticAddress, Image, Instance, InternetGateway, KeyPair, NatGateway, NetworkAcl,
    NetworkInterface, RouteTable, SecurityGroup, Snapshot, SnapshotState, Subnet, Volume, Vpc,
};
use crate::state::{Kept, World};

/// A record that requests name by its id.
pub trait Named: Kept {
    /// What the id begins with.
    const PREFIX: &'static str;
    /// The code for a text that is no such id.
    const MALFORMED: &'static str;
    /// The code for an id that nobody has.
    const NOT_FOUND: &'static str;
    /// What goes with that code, with the id for `{}`.
    const MESSAGE: &'static str;

    /// The account that it belongs to.
    fn owner(&self) -> &str;

    /// The accounts that may know of it too; `all` is everybody.
    fn shared_with(&self) -> &[String] {
        &[]
    }

    /// Whether an account may know of it.
    fn is_visible(&self, account: &str) -> bool {
        self.owner() == account || self.shared_with().iter().any(|who| who == account || who == EVERYBODY)
    }
}

macro_rules! named {
    ($($record:ty, $id:ty, $malformed:literal, $not_found:literal, $message:literal $(, $shared:ident)?;)*) => {$(
        impl Named for $record {
            const PREFIX: &'static str = <$id>::PREFIX;
            const MALFORMED: &'static str = $malformed;
            const NOT_FOUND: &'static str = $not_found;
            const MESSAGE: &'static str = $message;

            fn owner(&self) -> &str {
                &self.owner
            }

            $(fn shared_with(&self) -> &[String] {
                &self.$shared
            })?
        }
    )*};
}

#[rustfmt::skip]
named! {
    DhcpOptions, DhcpOptionsId, "InvalidDhcpOptionsId.Malformed", "InvalidDhcpOptionID.NotFound",
        "The dhcpOption ID '{}' does not exist";
    ElasticAddress, AllocationId, "InvalidAllocationID.Malformed", "InvalidAllocationID.NotFound",
        "The allocation ID '{}' does not exist";
    Image, ImageId, "InvalidAMIID.Malformed", "InvalidAMIID.NotFound",
        "The image id '[{}]' does not exist", launch_permissions;
    Instance, InstanceId, "InvalidInstanceID.Malformed", "InvalidInstanceID.NotFound",
        "The instance ID '{}' does not exist";
    InternetGateway, InternetGatewayId, "InvalidInternetGatewayId.Malformed", "InvalidInternetGatewayID.NotFound",
        "The internetGateway ID '{}' does not exist";
    NatGateway, NatGatewayId, "NatGatewayMalformed", "NatGatewayNotFound",
        "NAT gateway {} was not found";
    NetworkAcl, NetworkAclId, "InvalidNetworkAclId.Malformed", "InvalidNetworkAclID.NotFound",
        "The networkAcl ID '{}' does not exist";
    NetworkInterface, NetworkInterfaceId, "InvalidNetworkInterfaceId.Malformed", "InvalidNetworkInterfaceID.NotFound",
        "The networkInterface ID '{}' does not exist";
    RouteTable, RouteTableId, "InvalidRouteTableId.Malformed", "InvalidRouteTableID.NotFound",
        "The routeTable ID '{}' does not exist";
    SecurityGroup, SecurityGroupId, "InvalidGroupId.Malformed", "InvalidGroup.NotFound",
        "The security group '{}' does not exist";
    Snapshot, SnapshotId, "InvalidSnapshotID.Malformed", "InvalidSnapshot.NotFound",
        "The snapshot '{}' does not exist.", create_volume_permissions;
    Subnet, SubnetId, "InvalidSubnetId.Malformed", "InvalidSubnetID.NotFound",
        "The subnet ID '{}' does not exist";
    Volume, VolumeId, "InvalidVolumeID.Malformed", "InvalidVolume.NotFound",
        "The volume '{}' does not exist.";
    Vpc, VpcId, "InvalidVpcId.Malformed", "InvalidVpcID.NotFound",
        "The vpc ID '{}' does not exist";
}

/// The record with an id.
pub fn find<'w, R: Named>(world: &'w World, context: Context<'_>, id: &str) -> Result<&'w Arc<R>, ApiError> {
    if !is_well_formed(R::PREFIX, id) {
        let message = format!("Invalid id: \"{id}\" (expecting \"{}-...\")", R::PREFIX);
        return Err(ApiError::new(R::MALFORMED, message));
    }
    world
        .get::<R>(id)
        .filter(|record| record.is_visible(&context.caller.account))
        .ok_or_else(|| ApiError::new(R::NOT_FOUND, R::MESSAGE.replace("{}", id)))
}

/// The record with an id, if the caller's account owns it: others may know of some, and change none.
pub fn find_own<'w, R: Named>(
    world: &'w World,
    context: Context<'_>,
    id: &str,
) -> Result<&'w Arc<R>, ApiError> {
    let record = find::<R>(world, context, id)?;
    if record.owner() != context.caller.account {
        let message = format!("Not authorized for {id}: it belongs to another account.");
        return Err(ApiError::new("AuthFailure", message));
    }
    Ok(record)
}

/// The records with these ids, or all that the caller may know of if there are none, in the order of their keys.
pub fn select<R: Named>(
    world: &World,
    context: Context<'_>,
    ids: &[String],
) -> Result<Vec<Arc<R>>, ApiError> {
    if ids.is_empty() {
        let account = &context.caller.account;
        return Ok(world.all::<R>().filter(|record| record.is_visible(account)).cloned().collect());
    }
    let mut found: Vec<Arc<R>> =
        ids.iter().map(|id| find(world, context, id).cloned()).collect::<Result<_, _>>()?;
    found.sort_by(|one, other| one.key().cmp(other.key()));
    found.dedup_by(|one, other| one.key() == other.key());
    Ok(found)
}

/// The snapshot with an id, if something can be made of it already. Who may know of it may do that.
pub fn completed_snapshot<'w>(
    world: &'w World,
    context: Context<'_>,
    id: &str,
) -> Result<&'w Arc<Snapshot>, ApiError> {
    let snapshot = find::<Snapshot>(world, context, id)?;
    let state = match snapshot.state {
        SnapshotState::Completed => return Ok(snapshot),
        SnapshotState::Pending => "pending",
        SnapshotState::Error(_) => "error",
    };
    let message = format!("Snapshot {id} is in invalid state - {state}");
    Err(ApiError::new("IncorrectState", message))
}

/// The same for a snapshot that an image is to be made of: it is the caller's own, so that whoever owns a snapshot can also
/// get rid of it.
pub fn own_completed_snapshot<'w>(
    world: &'w World,
    context: Context<'_>,
    id: &str,
) -> Result<&'w Arc<Snapshot>, ApiError> {
    let snapshot = completed_snapshot(world, context, id)?;
    if snapshot.owner != context.caller.account {
        let message =
            format!("The snapshot {id} is another account's: make an image of a copy (CopySnapshot).");
        return Err(ApiError::new("AuthFailure", message));
    }
    Ok(snapshot)
}

/// The caller's key pairs, which requests name by their names as well as by their ids.
pub fn key_pairs<'w>(world: &'w World, context: Context<'w>) -> impl Iterator<Item = &'w Arc<KeyPair>> {
    world.all::<KeyPair>().filter(move |pair| pair.owner == context.caller.account)
}

/// The ARN of one of EC2's resources.
pub fn arn(context: Context<'_>, owner: &str, kind: &str, id: impl fmt::Display) -> String {
    format!("arn:aws:ec2:{}:{owner}:{kind}/{id}", context.agent.config.region)
}

/// The error for something that others still need.
pub fn dependency(kind: &str, id: impl fmt::Display) -> ApiError {
    let message = format!("The {kind} '{id}' has dependencies and cannot be deleted.");
    ApiError::new("DependencyViolation", message)
}

/// A time as EC2 writes it: `2026-11-21T10:00:00.000Z`.
pub fn time(at: jiff::Timestamp) -> String {
    at.strftime("%Y-%m-%dT%H:%M:%S.%3fZ").to_string()
}

/// Reads a point in time, such as `2026-11-28T10:00:00Z`.
pub fn parse_time(text: &str, parameter: &str) -> Result<jiff::Timestamp, ApiError> {
    text.parse().map_err(|_| {
        ApiError::invalid(text, parameter, "Expecting a date and time as in 2026-11-28T10:00:00Z.")
    })
}
