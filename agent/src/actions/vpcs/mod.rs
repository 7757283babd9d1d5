//! VPCs.

mod attributes;
mod cidr_blocks;
mod create_vpc;
mod delete_vpc;
mod describe_vpcs;
mod item;

use std::sync::Arc;

use innkeeper_network::plan::NOBODYS;

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

/// A range that a VPC can have. What is nobody's, and what public addresses are taken from, it cannot.
fn in_range(context: Context<'_>, cidr: Cidr) -> Result<Cidr, ApiError> {
    let public = &context.agent.config.public_addresses;
    let message = if !(16..=28).contains(&cidr.prefix()) {
        format!("The CIDR '{cidr}' is invalid: a VPC has a range of /16 to /28.")
    } else if let Some(other) = NOBODYS.iter().chain(public).find(|other| other.overlaps(cidr)) {
        format!("The CIDR '{cidr}' is invalid: {other} is reserved.")
    } else {
        return Ok(cidr);
    };
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

    #[test]
    fn a_vpc_comes_furnished_and_goes_when_nothing_else_is_in_it() {
        let client = Client::new();
        let tags = "TagSpecification.1.ResourceType=vpc&TagSpecification.1.Tag.1.Key=a&TagSpecification.1.Tag.1.Value=b";
        let vpc = client.text(&format!("CreateVpc&CidrBlock=10.0.7.9/16&{tags}"), "vpcId");
        let here = format!("Filter.1.Name=vpc-id&Filter.1.Value.1={vpc}");
        let shown =
            client.ask(&format!("DescribeVpcs&{here}&Filter.2.Name=tag:a&Filter.2.Value.1=b")).unwrap();
        assert!(shown.contains("<cidrBlock>10.0.0.0/16</cidrBlock><cidrBlockAssociationSet>"), "{shown}");
        assert!(shown.contains("<isDefault>false</isDefault>"), "{shown}");
        assert_eq!(client.texts(&format!("DescribeRouteTables&{here}"), "main"), ["true"]);
        assert_eq!(client.texts(&format!("DescribeNetworkAcls&{here}"), "default"), ["true"]);
        assert_eq!(client.texts(&format!("DescribeSecurityGroups&{here}"), "groupName"), ["default"]);
        // It has the same DHCP options as the default VPC.
        assert_eq!(client.texts("DescribeDhcpOptions", "dhcpOptionsId").len(), 1);
        let subnet = client.text(&format!("CreateSubnet&VpcId={vpc}&CidrBlock=10.0.1.0/24"), "subnetId");
        let gateway = client.text("CreateInternetGateway", "internetGatewayId");
        client.ask(&format!("AttachInternetGateway&InternetGatewayId={gateway}&VpcId={vpc}")).unwrap();
        let delete = format!("DeleteVpc&VpcId={vpc}");
        client.refuses(&[(&delete, "DependencyViolation")]);
        client.ask(&format!("DetachInternetGateway&InternetGatewayId={gateway}&VpcId={vpc}")).unwrap();
        client.refuses(&[(&delete, "DependencyViolation")]);
        client.ask(&format!("DeleteSubnet&SubnetId={subnet}")).unwrap();
        for (create, id) in [
            (format!("CreateRouteTable&VpcId={vpc}"), "routeTableId"),
            (format!("CreateNetworkAcl&VpcId={vpc}"), "networkAclId"),
            (format!("CreateSecurityGroup&VpcId={vpc}&GroupName=g&GroupDescription=g"), "groupId"),
        ] {
            let id = client.texts(&create, id).remove(0);
            client.refuses(&[(&delete, "DependencyViolation")]);
            let (kind, parameter) = match id.split('-').next().unwrap() {
                "rtb" => ("DeleteRouteTable", "RouteTableId"),
                "acl" => ("DeleteNetworkAcl", "NetworkAclId"),
                _ => ("DeleteSecurityGroup", "GroupId"),
            };
            client.ask(&format!("{kind}&{parameter}={id}")).unwrap();
        }
        client.ask(&delete).unwrap();
        let documents = client.agent.state.read().documents().unwrap();
        assert!(!documents.iter().any(|found| found.document.to_string().contains(&vpc)));
        assert!(client.agent.state.read().tags(&vpc).is_none());
    }

    #[test]
    fn what_cannot_be_a_vpc_is_refused() {
        let mut client = Client::new();
        client.refuses(&[
            ("CreateVpc", "MissingParameter"),
            ("CreateVpc&CidrBlock=everywhere", "InvalidParameterValue"),
            ("CreateVpc&CidrBlock=10.0.0.0/15", "InvalidVpc.Range"),
            ("CreateVpc&CidrBlock=10.0.0.0/29", "InvalidVpc.Range"),
            ("CreateVpc&CidrBlock=10.0.0.0/16&InstanceTenancy=dedicated", "UnsupportedOperation"),
            ("CreateVpc&CidrBlock=10.0.0.0/16&AmazonProvidedIpv6CidrBlock=true", "UnsupportedOperation"),
            ("CreateVpc&Ipv4IpamPoolId=x", "UnsupportedOperation"),
            ("CreateVpc&CidrBlock=10.0.0.0/16&DryRun=true", "DryRunOperation"),
            ("CreateDefaultVpc", "DefaultVpcAlreadyExists"),
            ("DeleteVpc&VpcId=vpc-12345678", "InvalidVpcID.NotFound"),
        ]);
        client.agent.config.vpc_quota = 2;
        client.ask("CreateVpc&CidrBlock=10.0.0.0/28").unwrap();
        client.refuses(&[("CreateVpc&CidrBlock=10.0.0.0/16", "VpcLimitExceeded")]);
    }

    #[test]
    fn the_default_vpc_can_be_made_again() {
        let client = Client::new();
        let vpc = client.text("DescribeVpcs", "vpcId");
        let gateway = client.text("DescribeInternetGateways", "internetGatewayId");
        client.ask(&format!("DetachInternetGateway&InternetGatewayId={gateway}&VpcId={vpc}")).unwrap();
        client.ask(&format!("DeleteInternetGateway&InternetGatewayId={gateway}")).unwrap();
        for subnet in client.texts("DescribeSubnets", "subnetId") {
            client.ask(&format!("DeleteSubnet&SubnetId={subnet}")).unwrap();
        }
        client.ask(&format!("DeleteVpc&VpcId={vpc}")).unwrap();
        client.refuses(&[("CreateDefaultSubnet&AvailabilityZone=us-east-1a", "DefaultVpcDoesNotExist")]);
        let again = client.text("CreateDefaultVpc", "vpcId");
        assert_eq!(client.texts("DescribeSubnets", "vpcId"), [again.clone(), again.clone(), again]);
        assert_eq!(client.texts("DescribeRouteTables", "state"), ["active", "active", "associated"]);
    }

    #[test]
    fn a_vpc_has_further_ranges() {
        let client = Client::new();
        let vpc = client.text("CreateVpc&CidrBlock=10.0.0.0/16", "vpcId");
        let associate = |cidr: &str| format!("AssociateVpcCidrBlock&VpcId={vpc}&CidrBlock={cidr}");
        client.refuses(&[
            (&associate("10.0.3.0/24"), "InvalidVpc.Range"),
            (&associate("10.1.0.0/29"), "InvalidVpc.Range"),
            (&format!("CreateSubnet&VpcId={vpc}&CidrBlock=10.1.1.0/24"), "InvalidSubnet.Range"),
        ]);
        let id = client.text(&associate("10.1.0.0/16"), "associationId");
        let subnet = client.text(&format!("CreateSubnet&VpcId={vpc}&CidrBlock=10.1.1.0/24"), "subnetId");
        let routes = format!("DescribeRouteTables&Filter.1.Name=vpc-id&Filter.1.Value.1={vpc}");
        assert_eq!(client.texts(&routes, "destinationCidrBlock"), ["10.0.0.0/16", "10.1.0.0/16"]);
        let disassociate = format!("DisassociateVpcCidrBlock&AssociationId={id}");
        client.refuses(&[(&disassociate, "DependencyViolation")]);
        client.ask(&format!("DeleteSubnet&SubnetId={subnet}")).unwrap();
        client.ask(&disassociate).unwrap();
        assert_eq!(client.texts(&routes, "destinationCidrBlock"), ["10.0.0.0/16"]);
        client.refuses(&[(&disassociate, "InvalidVpcCidrBlockAssociationID.NotFound")]);
        for number in 1..=4 {
            client.ask(&associate(&format!("10.{number}.0.0/16"))).unwrap();
        }
        client.refuses(&[(&associate("10.5.0.0/16"), "CidrLimitExceeded")]);
        let shown = format!("DescribeVpcs&VpcId.1={vpc}");
        let first = client.texts(&shown, "associationId").remove(0);
        client.refuses(&[(
            &format!("DisassociateVpcCidrBlock&AssociationId={first}"),
            "OperationNotPermitted",
        )]);
    }

    #[test]
    fn attributes_are_changed_one_at_a_time() {
        let client = Client::new();
        let vpc = client.text("CreateVpc&CidrBlock=10.0.0.0/16", "vpcId");
        let modify = |rest: &str| format!("ModifyVpcAttribute&VpcId={vpc}{rest}");
        for (attribute, parameter, before) in [
            ("enableDnsSupport", "EnableDnsSupport", true),
            ("enableDnsHostnames", "EnableDnsHostnames", false),
        ] {
            let shown = format!("DescribeVpcAttribute&VpcId={vpc}&Attribute={attribute}");
            assert_eq!(client.text(&shown, "value"), before.to_string());
            client.ask(&modify(&format!("&{parameter}.Value={}", !before))).unwrap();
            assert_eq!(client.text(&shown, "value"), (!before).to_string());
        }
        client.refuses(&[
            (&modify(""), "MissingParameter"),
            (
                &modify("&EnableDnsSupport.Value=true&EnableDnsHostnames.Value=true"),
                "InvalidParameterCombination",
            ),
            (&modify("&EnableNetworkAddressUsageMetrics.Value=true"), "UnsupportedOperation"),
        ]);
    }
}
