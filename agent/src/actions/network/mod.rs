//! VPCs, subnets, network interfaces and DHCP options, as far as they can be looked at.

mod describe_dhcp_options;
mod describe_network_interfaces;
mod describe_subnets;
mod describe_vpc_attribute;
mod describe_vpcs;

use crate::query::dispatch::Registry;

pub(super) fn register(registry: &mut Registry) {
    registry.add::<describe_dhcp_options::DescribeDhcpOptions>();
    registry.add::<describe_network_interfaces::DescribeNetworkInterfaces>();
    registry.add::<describe_subnets::DescribeSubnets>();
    registry.add::<describe_vpc_attribute::DescribeVpcAttribute>();
    registry.add::<describe_vpcs::DescribeVpcs>();
}

#[cfg(test)]
mod tests {
    use crate::actions::testing::Client;
    use crate::records::InstanceState;

    #[test]
    fn the_default_vpc_is_described() {
        let client = Client::new();
        let vpc = client.text("DescribeVpcs&Filter.1.Name=is-default&Filter.1.Value.1=true", "vpcId");
        assert_eq!(
            client.text("DescribeAccountAttributes&AttributeName.1=default-vpc", "attributeValue"),
            vpc
        );
        let subnets = format!("DescribeSubnets&Filter.1.Name=vpc-id&Filter.1.Value.1={vpc}");
        assert_eq!(client.texts(&subnets, "subnetId").len(), 3);
        assert_eq!(client.texts(&subnets, "availableIpAddressCount"), ["4091"; 3]);
        client.instance(InstanceState::Running);
        assert_eq!(
            client.texts(&subnets, "availableIpAddressCount").iter().filter(|count| *count == "4090").count(),
            1
        );
        let name = client.texts("DescribeNetworkInterfaces", "privateDnsName");
        assert!(name.iter().all(|name| name == "ip-172-31-0-9.ec2.internal"), "{name:?}");
        for (attribute, element) in
            [("enableDnsSupport", "enableDnsSupport"), ("enableDnsHostnames", "enableDnsHostnames")]
        {
            let request = format!("DescribeVpcAttribute&VpcId={vpc}&Attribute={attribute}");
            assert_eq!(client.text(&request, element), "<value>true</value>");
        }
        assert!(client.ask("DescribeDhcpOptions").unwrap().contains("domain-name-servers"));
        assert_eq!(client.texts("DescribeAvailabilityZones", "zoneId"), ["use1-az1", "use1-az2", "use1-az3"]);
        client.refuses(&[
            ("DescribeVpcs&VpcId.1=vpc-12345678", "InvalidVpcID.NotFound"),
            ("DescribeSubnets&SubnetId.1=subnet-12345678", "InvalidSubnetID.NotFound"),
            ("DescribeDhcpOptions&DhcpOptionsId.1=dopt-12345678", "InvalidDhcpOptionID.NotFound"),
            (
                "DescribeNetworkInterfaces&NetworkInterfaceId.1=eni-12345678",
                "InvalidNetworkInterfaceID.NotFound",
            ),
            (&format!("DescribeVpcAttribute&VpcId={vpc}&Attribute=x"), "InvalidParameterValue"),
            ("DescribeAvailabilityZones&ZoneName.1=mars-1a", "InvalidParameterValue"),
            ("DescribeAccountAttributes&AttributeName.1=x", "InvalidParameterValue"),
        ]);
    }

    #[test]
    fn an_account_does_not_see_what_another_one_has() {
        let client = Client::new();
        let vpc = client.text("DescribeVpcs", "vpcId");
        assert!(!client.ask_as("111111111111", "DescribeVpcs").unwrap().contains("vpcId"));
        let error = client.ask_as("111111111111", &format!("DescribeVpcs&VpcId.1={vpc}")).unwrap_err();
        assert_eq!(error.code, "InvalidVpcID.NotFound");
    }
}
