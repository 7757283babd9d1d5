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

#[cfg(test)]
mod tests {
    use crate::actions::testing::Client;

    #[test]
    fn a_public_gateway_has_an_elastic_address_as_long_as_it_is_there() {
        let client = Client::new();
        let (vpc, subnet) =
            (client.text("DescribeVpcs", "vpcId"), client.texts("DescribeSubnets", "subnetId").remove(0));
        let id = client.text("AllocateAddress", "allocationId");
        let tags = "TagSpecification.1.ResourceType=natgateway&TagSpecification.1.Tag.1.Key=a";
        let create = format!("CreateNatGateway&SubnetId={subnet}&AllocationId={id}&ClientToken=t&{tags}");
        client.refuses(&[
            (&format!("CreateNatGateway&SubnetId={subnet}"), "MissingParameter"),
            (&format!("CreateNatGateway&AllocationId={id}"), "MissingParameter"),
            (&format!("{create}&ConnectivityType=private"), "InvalidParameterCombination"),
            (&format!("{create}&ConnectivityType=x"), "InvalidParameterValue"),
            (&format!("{create}&AvailabilityMode=regional"), "UnsupportedOperation"),
            (&format!("{create}&SecondaryPrivateIpAddressCount=1"), "UnsupportedOperation"),
        ]);
        let gateway = client.text(&create, "natGatewayId");
        assert_eq!(client.text(&create, "natGatewayId"), gateway);
        let shown = client.ask("DescribeNatGateways&Filter.1.Name=state&Filter.1.Value.1=available").unwrap();
        assert!(shown.contains(&id) && shown.contains("<publicIp>198.19."), "{shown}");
        let eni = client.text("DescribeNatGateways", "networkInterfaceId");
        let interface = client.ask(&format!("DescribeNetworkInterfaces&NetworkInterfaceId.1={eni}")).unwrap();
        for part in [
            "<interfaceType>nat_gateway<",
            "<requesterManaged>true<",
            "<status>in-use<",
            "<sourceDestCheck>false<",
        ] {
            assert!(interface.contains(part), "{part} {interface}");
        }
        let association = client.text("DescribeAddresses", "associationId");
        let table = client.texts(&format!("CreateRouteTable&VpcId={vpc}"), "routeTableId").remove(0);
        client
            .ask(&format!(
                "CreateRoute&RouteTableId={table}&DestinationCidrBlock=0.0.0.0/0&NatGatewayId={gateway}"
            ))
            .unwrap();
        client.refuses(&[
            (&format!("CreateNatGateway&SubnetId={subnet}&AllocationId={id}"), "Resource.AlreadyAssociated"),
            (&format!("DisassociateAddress&AssociationId={association}"), "OperationNotPermitted"),
            (&format!("DeleteNetworkInterface&NetworkInterfaceId={eni}"), "OperationNotPermitted"),
            (&format!("DeleteSubnet&SubnetId={subnet}"), "DependencyViolation"),
        ]);
        let states = format!("DescribeRouteTables&RouteTableId.1={table}");
        assert_eq!(client.texts(&states, "state"), ["active", "active"]);
        let delete = format!("DeleteNatGateway&NatGatewayId={gateway}");
        assert_eq!(client.text(&delete, "natGatewayId"), gateway);
        client.refuses(&[(&delete, "NatGatewayNotFound")]);
        assert_eq!(client.texts("DescribeNatGateways", "state"), ["deleted"]);
        assert_eq!(client.texts(&states, "state"), ["active", "blackhole"]);
        client.ask(&format!("ReleaseAddress&AllocationId={id}")).unwrap();
        client.ask(&format!("DeleteSubnet&SubnetId={subnet}")).unwrap();
    }

    #[test]
    fn a_private_gateway_has_an_address_of_its_subnet_only() {
        let client = Client::new();
        let subnet = client
            .texts("DescribeSubnets&Filter.1.Name=cidr&Filter.1.Value.1=172.31.0.0/20", "subnetId")
            .remove(0);
        let create = format!("CreateNatGateway&SubnetId={subnet}&ConnectivityType=private");
        let made = client.ask(&format!("{create}&PrivateIpAddress=172.31.0.70")).unwrap();
        assert!(made.contains("<privateIp>172.31.0.70</privateIp>") && !made.contains("publicIp"), "{made}");
        client.refuses(&[(&format!("{create}&PrivateIpAddress=172.31.0.70"), "InvalidIPAddress.InUse")]);
        for _ in 0..4 {
            client.ask(&create).unwrap();
        }
        client.refuses(&[(&create, "NatGatewayLimitExceeded")]);
    }
}
