//! Route tables and their routes.

mod associations;
mod create_route_table;
mod describe_route_tables;
mod item;
mod routes;

use crate::query::dispatch::Registry;

pub(super) fn register(registry: &mut Registry) {
    registry.add::<associations::AssociateRouteTable>();
    registry.add::<associations::DisassociateRouteTable>();
    registry.add::<associations::ReplaceRouteTableAssociation>();
    registry.add::<create_route_table::CreateRouteTable>();
    registry.add::<create_route_table::DeleteRouteTable>();
    registry.add::<describe_route_tables::DescribeRouteTables>();
    registry.add::<routes::CreateRoute>();
    registry.add::<routes::DeleteRoute>();
    registry.add::<routes::ReplaceRoute>();
}
