//! Internet gateways.

mod attach_internet_gateway;
mod create_internet_gateway;
mod describe_internet_gateways;
mod item;

use crate::query::dispatch::Registry;

pub(super) fn register(registry: &mut Registry) {
    registry.add::<attach_internet_gateway::AttachInternetGateway>();
    registry.add::<attach_internet_gateway::DetachInternetGateway>();
    registry.add::<create_internet_gateway::CreateInternetGateway>();
    registry.add::<create_internet_gateway::DeleteInternetGateway>();
    registry.add::<describe_internet_gateways::DescribeInternetGateways>();
}
