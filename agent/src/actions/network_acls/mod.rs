//! Network ACLs.

mod create_network_acl;
mod describe_network_acls;
mod entries;
mod item;

use crate::query::dispatch::Registry;

pub(super) fn register(registry: &mut Registry) {
    registry.add::<create_network_acl::CreateNetworkAcl>();
    registry.add::<create_network_acl::DeleteNetworkAcl>();
    registry.add::<create_network_acl::ReplaceNetworkAclAssociation>();
    registry.add::<describe_network_acls::DescribeNetworkAcls>();
    registry.add::<entries::CreateNetworkAclEntry>();
    registry.add::<entries::DeleteNetworkAclEntry>();
    registry.add::<entries::ReplaceNetworkAclEntry>();
}
