//! Network interfaces. The actions change records; whatever makes interfaces real follows them.

mod attach_network_interface;
mod attributes;
mod create_network_interface;
mod delete_network_interface;
mod describe_network_interfaces;
pub(crate) mod item;
pub(crate) mod new;
mod private_addresses;

use std::sync::Arc;

pub(crate) use attach_network_interface::{check_limits, in_use};
pub(crate) use new::MAX_GROUPS;

use crate::actions::lookup::find_own;
use crate::query::dispatch::Registry;
use crate::query::{ApiError, Context};
use crate::records::{InterfaceType, NetworkInterface, Subnet};
use crate::state::World;

pub(super) fn register(registry: &mut Registry) {
    registry.add::<attach_network_interface::AttachNetworkInterface>();
    registry.add::<attach_network_interface::DetachNetworkInterface>();
    registry.add::<attributes::DescribeNetworkInterfaceAttribute>();
    registry.add::<attributes::ModifyNetworkInterfaceAttribute>();
    registry.add::<attributes::ResetNetworkInterfaceAttribute>();
    registry.add::<create_network_interface::CreateNetworkInterface>();
    registry.add::<delete_network_interface::DeleteNetworkInterface>();
    registry.add::<describe_network_interfaces::DescribeNetworkInterfaces>();
    registry.add::<private_addresses::AssignPrivateIpAddresses>();
    registry.add::<private_addresses::UnassignPrivateIpAddresses>();
}

/// An interface that the caller can change: one of a NAT gateway is not.
pub(crate) fn own<'w>(
    world: &'w World,
    context: Context<'_>,
    id: &str,
) -> Result<&'w Arc<NetworkInterface>, ApiError> {
    let interface = find_own::<NetworkInterface>(world, context, id)?;
    if interface.interface_type != InterfaceType::Interface {
        let message = format!("You do not have permission to change {id}: it belongs to a NAT gateway.");
        return Err(ApiError::new("OperationNotPermitted", message));
    }
    Ok(interface)
}

/// The availability zone of an interface.
pub(crate) fn zone<'w>(world: &'w World, interface: &NetworkInterface) -> &'w str {
    world.get::<Subnet>(&interface.subnet).map_or("", |subnet| &subnet.availability_zone)
}

#[cfg(test)]
mod tests {
    use crate::actions::testing::Client;
    use crate::ids::NetworkInterfaceId;
    use crate::instances::{detach_interface, interface_attached};
    use crate::records::InstanceState;
    use crate::store::StoreError;

    /// The default subnet of the zone in which the client's instances are.
    fn subnet(client: &Client) -> String {
        client.text("DescribeSubnets&Filter.1.Name=availability-zone&Filter.1.Value.1=us-east-1a", "subnetId")
    }

    fn create(client: &Client, rest: &str) -> String {
        let request = format!("CreateNetworkInterface&SubnetId={}{rest}", subnet(client));
        client.texts(&request, "networkInterfaceId").remove(0)
    }

    #[test]
    fn an_interface_has_the_addresses_that_are_asked_for() {
        let client = Client::new();
        let shown = |id: &str, element: &str| {
            client.texts(&format!("DescribeNetworkInterfaces&NetworkInterfaceId.1={id}"), element)
        };
        let all = |id: &str| shown(id, "privateIpAddress")[1..].to_vec();
        let one =
            create(&client, "&PrivateIpAddress=172.31.0.40&SecondaryPrivateIpAddressCount=2&ClientToken=t");
        let again = "&PrivateIpAddress=172.31.0.40&SecondaryPrivateIpAddressCount=2&ClientToken=t";
        assert_eq!(create(&client, again), one);
        assert_eq!(all(&one).last().unwrap(), "172.31.0.5");
        assert_eq!(
            (shown(&one, "status"), shown(&one, "groupName")),
            (vec!["available".into()], vec!["default".into()])
        );
        let two = create(
            &client,
            "&PrivateIpAddresses.1.PrivateIpAddress=172.31.0.50&PrivateIpAddresses.2.PrivateIpAddress=172.31.0.51\
             &PrivateIpAddresses.2.Primary=true&Description=web",
        );
        assert_eq!(shown(&two, "privateIpAddress")[0], "172.31.0.51");
        let request = format!("CreateNetworkInterface&SubnetId={}", subnet(&client));
        let with = |rest: &str| format!("{request}{rest}");
        client.refuses(&[
            (&with("&PrivateIpAddress=172.31.0.40"), "InvalidIPAddress.InUse"),
            (&with("&PrivateIpAddress=172.31.0.4"), "InvalidIPAddress.InUse"),
            (&with("&PrivateIpAddress=172.31.0.3"), "InvalidParameterValue"),
            (&with("&PrivateIpAddress=172.31.16.9"), "InvalidParameterValue"),
            (
                &with("&PrivateIpAddress=172.31.0.9&PrivateIpAddresses.1.PrivateIpAddress=172.31.0.9"),
                "InvalidParameterValue",
            ),
            (&with("&SecondaryPrivateIpAddressCount=-1"), "InvalidParameterValue"),
            (&with("&SecondaryPrivateIpAddressCount=1000"), "PrivateIpAddressLimitExceeded"),
            (&with("&SecurityGroupId.1=sg-12345678"), "InvalidGroup.NotFound"),
            (&with("&Ipv6AddressCount=1"), "UnsupportedOperation"),
            (&with("&Ipv4PrefixCount=1"), "UnsupportedOperation"),
            (&with("&InterfaceType=efa"), "UnsupportedOperation"),
            ("CreateNetworkInterface&SubnetId=subnet-12345678", "InvalidSubnetID.NotFound"),
        ]);
        // More of them, and fewer.
        let assign = format!("AssignPrivateIpAddresses&NetworkInterfaceId={two}");
        assert_eq!(
            client.texts(&format!("{assign}&SecondaryPrivateIpAddressCount=2"), "privateIpAddress"),
            ["172.31.0.6", "172.31.0.7"]
        );
        client.refuses(&[
            (&assign, "MissingParameter"),
            (&format!("{assign}&PrivateIpAddress.1=172.31.0.5"), "InvalidIPAddress.InUse"),
            (
                &format!("{assign}&PrivateIpAddress.1=172.31.0.40&AllowReassignment=true"),
                "InvalidIPAddress.InUse",
            ),
            (
                &format!(
                    "UnassignPrivateIpAddresses&NetworkInterfaceId={two}&PrivateIpAddress.1=172.31.0.51"
                ),
                "InvalidParameterValue",
            ),
            (
                &format!("UnassignPrivateIpAddresses&NetworkInterfaceId={two}&PrivateIpAddress.1=172.31.0.5"),
                "InvalidParameterValue",
            ),
        ]);
        client.ask(&format!("{assign}&PrivateIpAddress.1=172.31.0.5&AllowReassignment=true")).unwrap();
        assert!(
            !all(&one).contains(&"172.31.0.5".to_owned()) && all(&two).contains(&"172.31.0.5".to_owned())
        );
        client
            .ask(&format!(
                "UnassignPrivateIpAddresses&NetworkInterfaceId={two}&PrivateIpAddress.1=172.31.0.5"
            ))
            .unwrap();
        assert!(!all(&two).contains(&"172.31.0.5".to_owned()));
        client.ask(&format!("DeleteNetworkInterface&NetworkInterfaceId={two}")).unwrap();
    }

    /// Does what the instance's actor would.
    fn act(client: &Client, eni: &str) {
        let id: NetworkInterfaceId = eni.parse().unwrap();
        let done: Result<(), StoreError> = client.agent.state.change(|draft| {
            interface_attached(draft, &id);
            detach_interface(draft, &id);
            Ok(())
        });
        done.unwrap();
    }

    #[test]
    fn an_interface_is_attached_and_detached() {
        let client = Client::new();
        for state in [InstanceState::Running, InstanceState::Stopped] {
            let instance = client.instance(state);
            let eni = create(&client, "");
            let attach = |eni: &str, index: &str| {
                format!(
                    "AttachNetworkInterface&NetworkInterfaceId={eni}&InstanceId={instance}&DeviceIndex={index}"
                )
            };
            let pending = client.instance(InstanceState::Pending);
            let away = client.text(
                "DescribeSubnets&Filter.1.Name=availability-zone&Filter.1.Value.1=us-east-1b",
                "subnetId",
            );
            let away = client
                .texts(&format!("CreateNetworkInterface&SubnetId={away}"), "networkInterfaceId")
                .remove(0);
            let rich = create(&client, "&SecondaryPrivateIpAddressCount=2");
            client.refuses(&[
                (&attach(&eni, "0"), "InvalidParameterValue"),
                (&attach(&eni, "-1"), "InvalidParameterValue"),
                (&attach(&away, "1"), "InvalidParameterCombination"),
                // A t3.micro has two interfaces with two addresses each.
                (&attach(&rich, "1"), "PrivateIpAddressLimitExceeded"),
                (
                    &format!(
                        "AttachNetworkInterface&NetworkInterfaceId={eni}&InstanceId={pending}&DeviceIndex=1"
                    ),
                    "IncorrectState",
                ),
                (&attach("eni-12345678", "1"), "InvalidNetworkInterfaceID.NotFound"),
            ]);
            let attachment = client.text(&attach(&eni, "1"), "attachmentId");
            let shown = |element: &str| {
                client.texts(&format!("DescribeNetworkInterfaces&NetworkInterfaceId.1={eni}"), element)
            };
            let is_running = state == InstanceState::Running;
            assert_eq!(shown("status"), ["in-use", if is_running { "attaching" } else { "attached" }]);
            act(&client, &eni);
            assert_eq!(shown("status"), ["in-use", "attached"]);
            let indexes = format!("DescribeInstances&InstanceId.1={instance}");
            assert_eq!(client.texts(&indexes, "deviceIndex"), ["0", "1"]);
            let third = create(&client, "");
            client.refuses(&[
                (&attach(&eni, "2"), "InvalidNetworkInterface.InUse"),
                (&attach(&third, "2"), "AttachmentLimitExceeded"),
                (&format!("DeleteNetworkInterface&NetworkInterfaceId={eni}"), "InvalidParameterValue"),
                (
                    &format!("ModifyInstanceAttribute&InstanceId={instance}&SourceDestCheck.Value=false"),
                    "InvalidInstanceID",
                ),
                (
                    &format!(
                        "AssignPrivateIpAddresses&NetworkInterfaceId={eni}&SecondaryPrivateIpAddressCount=2"
                    ),
                    "PrivateIpAddressLimitExceeded",
                ),
                ("DetachNetworkInterface&AttachmentId=eni-attach-12345678", "InvalidAttachmentID.NotFound"),
            ]);
            let primary = client.texts(&indexes, "attachmentId").remove(0);
            client.refuses(&[(
                &format!("DetachNetworkInterface&AttachmentId={primary}"),
                "OperationNotPermitted",
            )]);
            let keep = format!(
                "ModifyNetworkInterfaceAttribute&NetworkInterfaceId={eni}&Attachment.AttachmentId={attachment}"
            );
            client.ask(&format!("{keep}&Attachment.DeleteOnTermination=true")).unwrap();
            assert_eq!(shown("deleteOnTermination"), ["true"]);
            client.ask(&format!("DetachNetworkInterface&AttachmentId={attachment}&Force=true")).unwrap();
            if is_running {
                assert_eq!(shown("status"), ["in-use", "detaching"]);
                act(&client, &eni);
            }
            assert_eq!(shown("status"), ["available"]);
            client.ask(&format!("DeleteNetworkInterface&NetworkInterfaceId={eni}")).unwrap();
        }
    }

    #[test]
    fn attributes_are_described_changed_and_reset() {
        let client = Client::new();
        let eni = create(&client, "");
        let group = client.text("CreateSecurityGroup&GroupName=web&GroupDescription=d", "groupId");
        let shown = |attribute: &str| {
            client
                .ask(&format!(
                    "DescribeNetworkInterfaceAttribute&NetworkInterfaceId={eni}&Attribute={attribute}"
                ))
                .unwrap()
        };
        let modify = |rest: &str| format!("ModifyNetworkInterfaceAttribute&NetworkInterfaceId={eni}{rest}");
        for (rest, attribute, part) in [
            ("&Description.Value=front", "description", "<description><value>front</value></description>"),
            ("&SourceDestCheck.Value=false", "sourceDestCheck", "<sourceDestCheck><value>false</value>"),
            (&format!("&SecurityGroupId.1={group}"), "groupSet", "<groupName>web</groupName>"),
            ("&AssociatePublicIpAddress=true", "associatePublicIpAddress", "<associatePublicIpAddress>true<"),
        ] {
            client.ask(&modify(rest)).unwrap();
            assert!(shown(attribute).contains(part), "{}", shown(attribute));
        }
        client
            .ask(&format!("ResetNetworkInterfaceAttribute&NetworkInterfaceId={eni}&SourceDestCheck=true"))
            .unwrap();
        assert!(shown("sourceDestCheck").contains("<value>true</value>"));
        client.refuses(&[
            (&modify(""), "InvalidParameterCombination"),
            (&modify("&Description.Value=x&SourceDestCheck.Value=true"), "InvalidParameterCombination"),
            (&modify("&EnablePrimaryIpv6=true"), "UnsupportedOperation"),
            (
                &modify("&Attachment.AttachmentId=eni-attach-12345678&Attachment.DeleteOnTermination=true"),
                "InvalidAttachmentID.NotFound",
            ),
            (
                &format!("DescribeNetworkInterfaceAttribute&NetworkInterfaceId={eni}&Attribute=x"),
                "InvalidParameterValue",
            ),
            (&format!("DescribeNetworkInterfaceAttribute&NetworkInterfaceId={eni}"), "MissingParameter"),
            (&format!("ResetNetworkInterfaceAttribute&NetworkInterfaceId={eni}"), "MissingParameter"),
            (&format!("DeleteSecurityGroup&GroupId={group}"), "DependencyViolation"),
        ]);
    }
}
