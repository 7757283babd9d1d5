//! VPCs.

mod attributes;
mod cidr_blocks;
mod create_vpc;
mod delete_vpc;
mod describe_vpcs;
mod item;

use std::sync::Arc;

use crate::network::Cidr;
use crate::query::dispatch::Registry;
use crate::query::{ApiError, Context};
use crate::records::Vpc;
use crate::state::World;

pub(super) fn register(registry: &mut Registry) {
    registry.add::<attributes::DescribeVpcAttribute>();
    registry.add::<attributes::ModifyVpcAttribute>();
    registry.add::<cidr_blocks::AssociateVpcCidrBlock>();
    registry.add::<cidr_blocks::DisassociateVpcCidrBlock>();
    registry.add::<create_vpc::CreateDefaultVpc>();
    registry.add::<create_vpc::CreateVpc>();
    registry.add::<delete_vpc::DeleteVpc>();
    registry.add::<describe_vpcs::DescribeVpcs>();
}

/// The caller's default VPC.
pub(crate) fn default_of<'w>(world: &'w World, context: Context<'_>) -> Option<&'w Arc<Vpc>> {
    world.all::<Vpc>().find(|vpc| vpc.is_default && vpc.owner == context.caller.account)
}

/// Reads an address range. As EC2, it takes one that begins in the middle for the whole.
pub(crate) fn range(text: &str, parameter: &str) -> Result<Cidr, ApiError> {
    Cidr::lenient(text).map_err(|_| ApiError::invalid(text, parameter, "This is not a valid CIDR block."))
}

/// A range that a VPC can have.
fn in_range(cidr: Cidr) -> Result<Cidr, ApiError> {
    if (16..=28).contains(&cidr.prefix()) {
        return Ok(cidr);
    }
    let message = format!("The CIDR '{cidr}' is invalid: a VPC has a range of /16 to /28.");
    Err(ApiError::new("InvalidVpc.Range", message))
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
