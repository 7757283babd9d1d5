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

#[cfg(test)]
mod tests {
    use crate::actions::testing::Client;

    #[test]
    fn a_subnet_is_made_changed_and_deleted() {
        let client = Client::new();
        let vpc = client.text("CreateVpc&CidrBlock=10.0.0.0/16", "vpcId");
        let create = |rest: &str| format!("CreateSubnet&VpcId={vpc}&CidrBlock={rest}");
        let subnet = client.text(&create("10.0.1.0/24&AvailabilityZone=us-east-1b"), "subnetId");
        let shown = || client.ask(&format!("DescribeSubnets&SubnetId.1={subnet}")).unwrap();
        assert!(shown().contains("<availableIpAddressCount>251</availableIpAddressCount>"));
        assert!(shown().contains("<availabilityZone>us-east-1b</availabilityZone>"));
        assert!(shown().contains("<mapPublicIpOnLaunch>false</mapPublicIpOnLaunch>"));
        let modify = |rest: &str| format!("ModifySubnetAttribute&SubnetId={subnet}{rest}");
        client.ask(&modify("&MapPublicIpOnLaunch.Value=true")).unwrap();
        client.ask(&modify("&EnableDns64.Value=false")).unwrap();
        assert!(shown().contains("<mapPublicIpOnLaunch>true</mapPublicIpOnLaunch>"));
        client.refuses(&[
            (&create("10.0.1.128/25"), "InvalidSubnet.Conflict"),
            (&create("10.0.0.0/16"), "InvalidSubnet.Conflict"),
            (&create("10.1.0.0/24"), "InvalidSubnet.Range"),
            (&create("10.0.2.0/29"), "InvalidSubnet.Range"),
            (&create("10.0.0.0/15"), "InvalidSubnet.Range"),
            (&create("x"), "InvalidParameterValue"),
            (&create("10.0.2.0/24&AvailabilityZone=mars-1a"), "InvalidParameterValue"),
            (
                &create("10.0.2.0/24&AvailabilityZone=us-east-1a&AvailabilityZoneId=x"),
                "InvalidParameterCombination",
            ),
            (&create("10.0.2.0/24&Ipv6Native=true"), "UnsupportedOperation"),
            ("CreateSubnet&VpcId=vpc-12345678&CidrBlock=10.0.2.0/24", "InvalidVpcID.NotFound"),
            (&modify(""), "MissingParameter"),
            (&modify("&EnableDns64.Value=true"), "UnsupportedOperation"),
            (&modify("&PrivateDnsHostnameTypeOnLaunch=resource-name"), "UnsupportedOperation"),
            (
                &modify("&MapPublicIpOnLaunch.Value=true&EnableDns64.Value=false"),
                "InvalidParameterCombination",
            ),
            (
                &format!("AssociateSubnetCidrBlock&SubnetId={subnet}&Ipv6CidrBlock=fd00::/64"),
                "UnsupportedOperation",
            ),
        ]);
        let interface = client
            .texts(&format!("CreateNetworkInterface&SubnetId={subnet}"), "networkInterfaceId")
            .remove(0);
        assert!(shown().contains("<availableIpAddressCount>250</availableIpAddressCount>"));
        let delete = format!("DeleteSubnet&SubnetId={subnet}");
        client.refuses(&[(&delete, "DependencyViolation")]);
        client.ask(&format!("DeleteNetworkInterface&NetworkInterfaceId={interface}")).unwrap();
        let table = client.texts(&format!("CreateRouteTable&VpcId={vpc}"), "routeTableId").remove(0);
        client.ask(&format!("AssociateRouteTable&RouteTableId={table}&SubnetId={subnet}")).unwrap();
        client.ask(&delete).unwrap();
        client.ask(&format!("DeleteRouteTable&RouteTableId={table}")).unwrap();
    }

    #[test]
    fn a_zone_has_one_default_subnet() {
        let client = Client::new();
        let request = "CreateDefaultSubnet&AvailabilityZone=us-east-1b";
        client.refuses(&[
            (request, "DefaultSubnetAlreadyExistsInAvailabilityZone"),
            ("CreateDefaultSubnet", "MissingParameter"),
        ]);
        let filter = "DescribeSubnets&Filter.1.Name=availability-zone&Filter.1.Value.1=us-east-1b";
        let subnet = client.text(filter, "subnetId");
        client.ask(&format!("DeleteSubnet&SubnetId={subnet}")).unwrap();
        let made = client.ask(request).unwrap();
        assert!(made.contains("<cidrBlock>172.31.16.0/20</cidrBlock>"), "{made}");
        assert!(made.contains("<defaultForAz>true</defaultForAz><mapPublicIpOnLaunch>true<"), "{made}");
    }
}
