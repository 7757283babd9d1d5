//! NAT gateways.

mod create_nat_gateway;
mod describe_nat_gateways;
mod item;

use crate::query::dispatch::Registry;

pub(super) fn register(registry: &mut Registry) {
    registry.add::<create_nat_gateway::CreateNatGateway>();
    registry.add::<create_nat_gateway::DeleteNatGateway>();
    registry.add::<describe_nat_gateways::DescribeNatGateways>();
}
