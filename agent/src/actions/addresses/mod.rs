//! Elastic addresses.

mod allocate_address;
mod associate_address;
mod describe_addresses;

use std::sync::Arc;

use crate::actions::lookup::find_own;
use crate::query::dispatch::Registry;
use crate::query::{ApiError, Context};
use crate::records::ElasticAddress;
use crate::state::World;

pub(super) fn register(registry: &mut Registry) {
    registry.add::<allocate_address::AllocateAddress>();
    registry.add::<allocate_address::ReleaseAddress>();
    registry.add::<associate_address::AssociateAddress>();
    registry.add::<associate_address::DisassociateAddress>();
    registry.add::<describe_addresses::DescribeAddresses>();
    registry.add::<describe_addresses::DescribeAddressesAttribute>();
}

/// The address that a request is about, by its id or by itself.
fn meant<'w>(
    world: &'w World,
    context: Context<'_>,
    allocation: Option<&str>,
    public_ip: Option<&str>,
) -> Result<&'w Arc<ElasticAddress>, ApiError> {
    match (allocation, public_ip) {
        (Some(_), Some(_)) => Err(ApiError::combination(
            "You may specify public IP or allocation id, but not both in the same call",
        )),
        (None, None) => {
            let message = "Either public IP or allocation id must be specified";
            Err(ApiError::new("MissingParameter", message))
        }
        (Some(id), None) => find_own::<ElasticAddress>(world, context, id),
        (None, Some(ip)) => {
            let owner = &context.caller.account;
            let mut own = world.all::<ElasticAddress>().filter(|address| address.owner == *owner);
            own.find(|address| address.public_address.to_string() == ip)
                .ok_or_else(|| ApiError::new("InvalidAddress.NotFound", format!("Address '{ip}' not found.")))
        }
    }
}

#[cfg(test)]
mod tests {
    use crate::actions::testing::Client;
    use crate::network::public_addresses;
    use crate::records::{Instance, InstanceState, NetworkInterface};

    /// The public address of an instance's interface.
    fn public(client: &Client, instance: impl AsRef<str>) -> Option<String> {
        let world = client.agent.state.read();
        let id = &world.get::<Instance>(instance).unwrap().network_interface;
        let public = world.get::<NetworkInterface>(id).unwrap().primary.public.as_ref();
        public.map(|public| public.address.to_string())
    }

    fn interface(client: &Client, instance: impl AsRef<str>) -> String {
        client.agent.state.read().get::<Instance>(instance).unwrap().network_interface.to_string()
    }

    #[test]
    fn an_address_is_the_accounts_until_it_is_released() {
        let mut client = Client::new();
        // Before the other one, which may be any that is left.
        client.ask("AllocateAddress&Address=198.19.7.7").unwrap();
        let tags = "TagSpecification.1.ResourceType=elastic-ip&TagSpecification.1.Tag.1.Key=a";
        let id = client.text(&format!("AllocateAddress&Domain=vpc&{tags}"), "allocationId");
        let address = client.text(&format!("DescribeAddresses&AllocationId.1={id}"), "publicIp");
        assert!(address.starts_with("198.19."), "{address}");
        client.refuses(&[
            (&format!("AllocateAddress&Address={address}"), "InvalidIPAddress.InUse"),
            ("AllocateAddress&Address=8.8.8.8", "InvalidAddress.NotFound"),
            ("AllocateAddress&Address=198.19.0.1", "InvalidAddress.NotFound"),
            ("AllocateAddress&Address=x", "InvalidParameterValue"),
            ("AllocateAddress&Domain=standard", "UnsupportedOperation"),
            ("AllocateAddress&PublicIpv4Pool=mine", "UnsupportedOperation"),
            ("DescribeAddresses&PublicIp.1=8.8.8.8", "InvalidAddress.NotFound"),
            ("DescribeAddresses&AllocationId.1=eipalloc-12345678", "InvalidAllocationID.NotFound"),
            ("ReleaseAddress", "MissingParameter"),
            (&format!("ReleaseAddress&AllocationId={id}&PublicIp={address}"), "InvalidParameterCombination"),
            ("DescribeAddressesAttribute&Attribute=x", "InvalidParameterValue"),
        ]);
        let filter = "DescribeAddresses&Filter.1.Name=public-ip&Filter.1.Value.1=198.1?.7.7";
        assert_eq!(client.texts(filter, "publicIp"), ["198.19.7.7"]);
        assert_eq!(
            client.texts("DescribeAddresses&Filter.1.Name=tag-key&Filter.1.Value.1=a", "publicIp"),
            [&*address]
        );
        client.ask("ReleaseAddress&PublicIp=198.19.7.7").unwrap();
        client.agent.config.elastic_address_quota = 1;
        client.refuses(&[("AllocateAddress", "AddressLimitExceeded")]);
        assert_eq!(
            client.text("DescribeAccountAttributes&AttributeName.1=vpc-max-elastic-ips", "attributeValue"),
            "1"
        );
        client.ask(&format!("ReleaseAddress&AllocationId={id}")).unwrap();
        client.agent.config.public_addresses.clear();
        client.refuses(&[("AllocateAddress", "InsufficientAddressCapacity")]);
        assert!(!client.ask("DescribeAddressesAttribute&Attribute=domain-name").unwrap().contains("<item>"));
    }

    #[test]
    fn an_elastic_address_takes_the_place_of_the_automatic_one() {
        let client = Client::new();
        let instance = client.instance(InstanceState::Running);
        let eni = interface(&client, &instance);
        client
            .ask(&format!(
                "ModifyNetworkInterfaceAttribute&NetworkInterfaceId={eni}&AssociatePublicIpAddress=true"
            ))
            .unwrap();
        let automatic = public(&client, &instance).unwrap();
        let allocate = || client.text("AllocateAddress", "allocationId");
        let (one, two) = (allocate(), allocate());
        let address = |id: &str| client.text(&format!("DescribeAddresses&AllocationId.1={id}"), "publicIp");
        let associate = |id: &str| format!("AssociateAddress&AllocationId={id}&InstanceId={instance}");
        let first = client.text(&associate(&one), "associationId");
        // Again, it is the same.
        assert_eq!(client.text(&associate(&one), "associationId"), first);
        assert_eq!(public(&client, &instance), Some(address(&one)));
        assert!(!public_addresses::taken(&client.agent.state.read()).contains(&automatic.parse().unwrap()));
        let shown = client.ask(&format!("DescribeAddresses&AllocationId.1={one}")).unwrap();
        for part in [&first, &eni, instance.as_str(), "172.31.0.9"] {
            assert!(shown.contains(part), "{part} {shown}");
        }
        client.refuses(&[
            (&format!("ReleaseAddress&AllocationId={one}"), "InvalidIPAddress.InUse"),
            (&format!("{}&AllowReassociation=false", associate(&two)), "Resource.AlreadyAssociated"),
            (&format!("AssociateAddress&AllocationId={one}"), "MissingParameter"),
            (&format!("{}&NetworkInterfaceId={eni}", associate(&one)), "InvalidParameterCombination"),
            (&format!("{}&PrivateIpAddress=172.31.0.99", associate(&one)), "InvalidParameterValue"),
        ]);
        client.ask(&associate(&two)).unwrap();
        assert_eq!(public(&client, &instance), Some(address(&two)));
        assert!(client.texts(&format!("DescribeAddresses&AllocationId.1={one}"), "associationId").is_empty());
        // Without an elastic one, the instance has an automatic one again.
        client.ask(&format!("DisassociateAddress&PublicIp={}", address(&two))).unwrap();
        let again = public(&client, &instance).unwrap();
        assert!(again != address(&one) && again != address(&two));
        client.refuses(&[
            (&format!("DisassociateAddress&AssociationId={first}"), "InvalidAssociationID.NotFound"),
            (&format!("DisassociateAddress&PublicIp={}", address(&two)), "InvalidAssociationID.NotFound"),
            ("DisassociateAddress", "MissingParameter"),
        ]);
    }

    #[test]
    fn an_elastic_address_moves() {
        let client = Client::new();
        let (here, there) =
            (client.instance(InstanceState::Running), client.instance(InstanceState::Stopped));
        let id = client.text("AllocateAddress", "allocationId");
        let associate = |instance: &str| format!("AssociateAddress&AllocationId={id}&InstanceId={instance}");
        client.ask(&associate(here.as_str())).unwrap();
        client.refuses(&[(
            &format!("{}&AllowReassociation=false", associate(there.as_str())),
            "Resource.AlreadyAssociated",
        )]);
        client.ask(&associate(there.as_str())).unwrap();
        assert_eq!(public(&client, &here), None);
        assert!(public(&client, &there).is_some());
        let gone = client.instance(InstanceState::Terminated);
        let vpc = client.text("CreateVpc&CidrBlock=10.0.0.0/16", "vpcId");
        let subnet = client.text(&format!("CreateSubnet&VpcId={vpc}&CidrBlock=10.0.0.0/24"), "subnetId");
        let away = client
            .texts(&format!("CreateNetworkInterface&SubnetId={subnet}"), "networkInterfaceId")
            .remove(0);
        client.refuses(&[
            (&associate(gone.as_str()), "IncorrectInstanceState"),
            (&format!("AssociateAddress&AllocationId={id}&NetworkInterfaceId={away}"), "Gateway.NotAttached"),
        ]);
        let gateway = client.text("CreateInternetGateway", "internetGatewayId");
        client.ask(&format!("AttachInternetGateway&InternetGatewayId={gateway}&VpcId={vpc}")).unwrap();
        client.ask(&format!("AssociateAddress&AllocationId={id}&NetworkInterfaceId={away}")).unwrap();
        let detach = format!("DetachInternetGateway&InternetGatewayId={gateway}&VpcId={vpc}");
        client.refuses(&[(&detach, "DependencyViolation")]);
        client.ask(&format!("DeleteNetworkInterface&NetworkInterfaceId={away}")).unwrap();
        client.ask(&detach).unwrap();
        client.ask(&format!("ReleaseAddress&AllocationId={id}")).unwrap();
    }
}
