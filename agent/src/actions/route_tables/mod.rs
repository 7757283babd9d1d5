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

#[cfg(test)]
mod tests {
    use crate::actions::testing::Client;
    use crate::records::InstanceState;

    #[test]
    fn a_subnet_uses_the_table_that_it_is_associated_with() {
        let client = Client::new();
        let vpc = client.text("DescribeVpcs", "vpcId");
        let other = client.text("CreateVpc&CidrBlock=10.0.0.0/16", "vpcId");
        let subnet = client.texts("DescribeSubnets", "subnetId").remove(0);
        let create = |vpc: &str| {
            client.texts(&format!("CreateRouteTable&VpcId={vpc}&ClientToken={vpc}"), "routeTableId").remove(0)
        };
        let (table, away) = (create(&vpc), create(&other));
        assert_eq!(create(&vpc), table);
        let associate = |table: &str| format!("AssociateRouteTable&RouteTableId={table}&SubnetId={subnet}");
        client.refuses(&[
            (&associate(&away), "InvalidParameterValue"),
            (&associate("rtb-12345678"), "InvalidRouteTableID.NotFound"),
            (&format!("AssociateRouteTable&RouteTableId={table}"), "MissingParameter"),
            (
                &format!("AssociateRouteTable&RouteTableId={table}&GatewayId=igw-12345678"),
                "UnsupportedOperation",
            ),
        ]);
        let id = client.text(&associate(&table), "associationId");
        let filter =
            format!("DescribeRouteTables&Filter.1.Name=association.subnet-id&Filter.1.Value.1={subnet}");
        assert_eq!(client.texts(&filter, "routeTableAssociationId"), [&*id]);
        client.refuses(&[
            (&associate(&table), "Resource.AlreadyAssociated"),
            (&format!("DeleteRouteTable&RouteTableId={table}"), "DependencyViolation"),
            (
                &format!("ReplaceRouteTableAssociation&AssociationId={id}&RouteTableId={away}"),
                "InvalidParameterValue",
            ),
        ]);
        let next = client.texts(&format!("CreateRouteTable&VpcId={vpc}"), "routeTableId").remove(0);
        let replace = format!("ReplaceRouteTableAssociation&AssociationId={id}&RouteTableId={next}");
        let new = client.text(&replace, "newAssociationId");
        client.refuses(&[(&replace, "InvalidAssociationID.NotFound")]);
        client.ask(&format!("DeleteRouteTable&RouteTableId={table}")).unwrap();
        client.ask(&format!("DisassociateRouteTable&AssociationId={new}")).unwrap();
        assert!(client.texts(&filter, "routeTableId").is_empty());
        // The main table is another one, and its association stays.
        let main = format!(
            "DescribeRouteTables&Filter.1.Name=association.main&Filter.1.Value.1=true&Filter.2.Name=vpc-id&Filter.2.Value.1={vpc}"
        );
        let id = client.text(&main, "routeTableAssociationId");
        client.refuses(&[(&format!("DisassociateRouteTable&AssociationId={id}"), "InvalidParameterValue")]);
        client.ask(&format!("ReplaceRouteTableAssociation&AssociationId={id}&RouteTableId={next}")).unwrap();
        assert_eq!(client.texts(&main, "routeTableId"), [&*next, &*next]);
    }

    #[test]
    fn routes_lead_to_what_is_there_or_nowhere() {
        let client = Client::new();
        let vpc = client.text("DescribeVpcs", "vpcId");
        let table = client.texts(&format!("CreateRouteTable&VpcId={vpc}"), "routeTableId").remove(0);
        let gateway = client.text("DescribeInternetGateways", "internetGatewayId");
        let unattached = client.text("CreateInternetGateway", "internetGatewayId");
        let instance = client.instance(InstanceState::Stopped);
        let route =
            |action: &str, rest: &str| format!("{action}&RouteTableId={table}&DestinationCidrBlock={rest}");
        let to_gateway = format!("0.0.0.0/0&GatewayId={gateway}");
        client.ask(&route("CreateRoute", &to_gateway)).unwrap();
        client.refuses(&[
            (&route("CreateRoute", &to_gateway), "RouteAlreadyExists"),
            (&route("CreateRoute", "10.0.0.0/8"), "MissingParameter"),
            (
                &route("CreateRoute", &format!("10.0.0.0/8&GatewayId={gateway}&InstanceId={instance}")),
                "InvalidParameterCombination",
            ),
            (&route("CreateRoute", &format!("10.0.0.0/8&GatewayId={unattached}")), "InvalidParameterValue"),
            (&route("CreateRoute", "10.0.0.0/8&GatewayId=vgw-12345678"), "InvalidGatewayID.NotFound"),
            (&route("CreateRoute", "10.0.0.0/8&NatGatewayId=nat-12345678"), "NatGatewayNotFound"),
            (&route("CreateRoute", "10.0.0.0/8&TransitGatewayId=tgw-12345678"), "UnsupportedOperation"),
            (&route("CreateRoute", &format!("172.31.7.0/24&GatewayId={gateway}")), "InvalidParameterValue"),
            (&format!("CreateRoute&RouteTableId={table}&GatewayId={gateway}"), "MissingParameter"),
            (
                &format!(
                    "CreateRoute&RouteTableId={table}&DestinationIpv6CidrBlock=::/0&GatewayId={gateway}"
                ),
                "UnsupportedOperation",
            ),
            (&route("ReplaceRoute", &format!("10.0.0.0/8&GatewayId={gateway}")), "InvalidParameterValue"),
            (&route("DeleteRoute", "10.0.0.0/8"), "InvalidRoute.NotFound"),
            (&route("DeleteRoute", "172.31.0.0/16"), "InvalidParameterValue"),
            (&route("ReplaceRoute", "0.0.0.0/0&LocalTarget=true"), "InvalidParameterValue"),
        ]);
        let states = || client.texts(&format!("DescribeRouteTables&RouteTableId.1={table}"), "state");
        assert_eq!(states(), ["active", "active"]);
        // What leads to an instance leads to its interface, as long as the instance runs.
        client.ask(&route("ReplaceRoute", &format!("0.0.0.0/0&InstanceId={instance}"))).unwrap();
        let shown = client.ask(&format!("DescribeRouteTables&RouteTableId.1={table}")).unwrap();
        assert!(
            shown.contains("<networkInterfaceId>eni-") && shown.contains(&format!("<instanceId>{instance}<")),
            "{shown}"
        );
        assert_eq!(states(), ["active", "blackhole"]);
        // What is in the VPC leads nowhere else.
        let inside = ["172.31.0.0/16", "172.31.7.0/24"];
        for (action, range) in ["ReplaceRoute", "CreateRoute"].into_iter().zip(inside) {
            let request = route(action, &format!("{range}&InstanceId={instance}"));
            client.refuses(&[(&request, "InvalidParameterValue")]);
        }
        client.ask(&route("ReplaceRoute", "172.31.0.0/16&LocalTarget=true")).unwrap();
        client.ask(&route("ReplaceRoute", &to_gateway)).unwrap();
        assert_eq!(states(), ["active", "active"]);
        client.ask(&format!("DetachInternetGateway&InternetGatewayId={gateway}&VpcId={vpc}")).unwrap();
        assert_eq!(states(), ["active", "blackhole"]);
        client.ask(&route("DeleteRoute", "0.0.0.0/0")).unwrap();
        assert_eq!(states(), ["active"]);
    }
}
