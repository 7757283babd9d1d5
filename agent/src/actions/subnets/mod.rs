//! Subnets.

mod create_subnet;
mod delete_subnet;
mod describe_subnets;
mod item;
mod modify_subnet_attribute;

use crate::query::dispatch::Registry;

pub(super) fn register(registry: &mut Registry) {
    registry.add::<create_subnet::CreateDefaultSubnet>();
    registry.add::<create_subnet::CreateSubnet>();
    registry.add::<delete_subnet::DeleteSubnet>();
    registry.add::<describe_subnets::DescribeSubnets>();
    registry.add::<modify_subnet_attribute::AssociateSubnetCidrBlock>();
    registry.add::<modify_subnet_attribute::ModifySubnetAttribute>();
}
