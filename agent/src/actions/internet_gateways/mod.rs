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

#[cfg(test)]
mod tests {
    use crate::actions::testing::Client;

    #[test]
    fn a_vpc_has_one_gateway_and_a_gateway_one_vpc() {
        let mut client = Client::new();
        let vpc = client.text("DescribeVpcs", "vpcId");
        let default = client.text("DescribeInternetGateways", "internetGatewayId");
        let other = client.text("CreateVpc&CidrBlock=10.0.0.0/16", "vpcId");
        let tags = "TagSpecification.1.ResourceType=internet-gateway&TagSpecification.1.Tag.1.Key=a";
        let gateway = client.text(&format!("CreateInternetGateway&{tags}"), "internetGatewayId");
        let attach = |gateway: &str, vpc: &str| {
            format!("AttachInternetGateway&InternetGatewayId={gateway}&VpcId={vpc}")
        };
        let detach = |gateway: &str, vpc: &str| attach(gateway, vpc).replace("Attach", "Detach");
        client.refuses(&[
            (&attach(&gateway, &vpc), "InvalidParameterValue"),
            (&attach(&default, &other), "Resource.AlreadyAssociated"),
            (&attach("igw-12345678", &other), "InvalidInternetGatewayID.NotFound"),
            (&detach(&gateway, &other), "Gateway.NotAttached"),
        ]);
        client.ask(&attach(&gateway, &other)).unwrap();
        let filter =
            format!("DescribeInternetGateways&Filter.1.Name=attachment.vpc-id&Filter.1.Value.1={other}");
        assert_eq!(client.texts(&filter, "state"), ["available"]);
        client.refuses(&[(
            &format!("DeleteInternetGateway&InternetGatewayId={gateway}"),
            "DependencyViolation",
        )]);
        client.ask(&detach(&gateway, &other)).unwrap();
        client.ask(&format!("DeleteInternetGateway&InternetGatewayId={gateway}")).unwrap();
        assert!(client.agent.state.read().tags(&gateway).is_none());
        client.agent.config.vpc_quota = 1;
        client.refuses(&[("CreateInternetGateway", "InternetGatewayLimitExceeded")]);
    }
}
