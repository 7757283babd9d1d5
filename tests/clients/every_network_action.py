"""Every action of the network, answered by the daemon and walked against botocore's model, in a VPC of its own."""

import time
import unittest

from botocore.exceptions import ClientError

from clients.daemon import IMAGE, INSTANCE_TYPE, QUICK, REGION, Recorder

WORLD = "0.0.0.0/0"


class EveryNetworkAction(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.recorder = Recorder()
        cls.ec2 = cls.recorder.client()
        cls.name = f"network-{time.time_ns()}"

    def tags(self, kind: str) -> list[dict]:
        return [{"ResourceType": kind, "Tags": [{"Key": "Suite", "Value": self.name}]}]

    def refused(self, code: str, function, **parameters):
        with self.assertRaises(ClientError) as caught:
            function(**parameters)
        self.assertEqual(caught.exception.response["Error"]["Code"], code)

    def test_1_a_vpc_from_its_beginning_to_its_end(self):
        ec2, in_vpc = self.ec2, lambda vpc: [{"Name": "vpc-id", "Values": [vpc]}]
        vpc = ec2.create_vpc(CidrBlock="10.20.0.0/16", TagSpecifications=self.tags("vpc"))["Vpc"]["VpcId"]
        ec2.get_waiter("vpc_available").wait(VpcIds=[vpc])
        ec2.modify_vpc_attribute(VpcId=vpc, EnableDnsHostnames={"Value": True})
        for attribute in ("enableDnsSupport", "enableDnsHostnames"):
            self.assertIn("Value", str(ec2.describe_vpc_attribute(VpcId=vpc, Attribute=attribute)))
        more = ec2.associate_vpc_cidr_block(VpcId=vpc, CidrBlock="10.21.0.0/16")["CidrBlockAssociation"]
        ec2.disassociate_vpc_cidr_block(AssociationId=more["AssociationId"])

        subnets = [
            ec2.create_subnet(
                VpcId=vpc, CidrBlock=f"10.20.{number}.0/24", AvailabilityZone=f"{REGION}a",
                TagSpecifications=self.tags("subnet"),
            )["Subnet"]["SubnetId"]
            for number in range(2)
        ]
        self.refused("InvalidSubnet.Conflict", ec2.create_subnet, VpcId=vpc, CidrBlock="10.20.1.0/25")
        ec2.modify_subnet_attribute(SubnetId=subnets[0], MapPublicIpOnLaunch={"Value": True})
        [public] = ec2.describe_subnets(SubnetIds=subnets[:1])["Subnets"]
        self.assertEqual((public["MapPublicIpOnLaunch"], public["AvailableIpAddressCount"]), (True, 251))

        gateway = ec2.create_internet_gateway(TagSpecifications=self.tags("internet-gateway"))["InternetGateway"]
        gateway = gateway["InternetGatewayId"]
        ec2.attach_internet_gateway(InternetGatewayId=gateway, VpcId=vpc)
        attached = ec2.describe_internet_gateways(Filters=[{"Name": "attachment.vpc-id", "Values": [vpc]}])
        self.assertEqual(attached["InternetGateways"][0]["Attachments"][0]["State"], "available")

        table = ec2.create_route_table(VpcId=vpc, TagSpecifications=self.tags("route-table"))["RouteTable"]
        table = table["RouteTableId"]
        self.assertTrue(ec2.create_route(RouteTableId=table, DestinationCidrBlock=WORLD, GatewayId=gateway)["Return"])
        association = ec2.associate_route_table(RouteTableId=table, SubnetId=subnets[0])["AssociationId"]
        shown = ec2.describe_route_tables(RouteTableIds=[table])["RouteTables"][0]
        self.assertEqual([route["State"] for route in shown["Routes"]], ["active", "active"])
        [main] = ec2.describe_route_tables(
            Filters=[*in_vpc(vpc), {"Name": "association.main", "Values": ["true"]}]
        )["RouteTables"]
        changed = ec2.replace_route_table_association(AssociationId=association, RouteTableId=main["RouteTableId"])
        association = ec2.replace_route_table_association(
            AssociationId=changed["NewAssociationId"], RouteTableId=table
        )["NewAssociationId"]

        address = ec2.allocate_address(Domain="vpc", TagSpecifications=self.tags("elastic-ip"))
        nat = ec2.create_nat_gateway(
            SubnetId=subnets[0], AllocationId=address["AllocationId"], TagSpecifications=self.tags("natgateway")
        )["NatGateway"]["NatGatewayId"]
        ec2.get_waiter("nat_gateway_available").wait(NatGatewayIds=[nat])
        ec2.create_route(RouteTableId=main["RouteTableId"], DestinationCidrBlock=WORLD, NatGatewayId=nat)
        ec2.replace_route(RouteTableId=main["RouteTableId"], DestinationCidrBlock=WORLD, NatGatewayId=nat)

        acl = ec2.create_network_acl(VpcId=vpc, TagSpecifications=self.tags("network-acl"))["NetworkAcl"]
        acl = acl["NetworkAclId"]
        entry = {
            "NetworkAclId": acl, "RuleNumber": 100, "Protocol": "6", "RuleAction": "allow", "Egress": False,
            "CidrBlock": WORLD, "PortRange": {"From": 22, "To": 22},
        }
        ec2.create_network_acl_entry(**entry)
        self.refused("NetworkAclEntryAlreadyExists", ec2.create_network_acl_entry, **entry)
        ec2.replace_network_acl_entry(**{**entry, "RuleAction": "deny"})
        [default] = ec2.describe_network_acls(Filters=[*in_vpc(vpc), {"Name": "default", "Values": ["true"]}])[
            "NetworkAcls"
        ]
        own = next(each for each in default["Associations"] if each["SubnetId"] == subnets[1])
        replaced = ec2.replace_network_acl_association(
            AssociationId=own["NetworkAclAssociationId"], NetworkAclId=acl
        )["NewAssociationId"]
        self.refused("DependencyViolation", ec2.delete_network_acl, NetworkAclId=acl)
        ec2.replace_network_acl_association(AssociationId=replaced, NetworkAclId=default["NetworkAclId"])
        ec2.delete_network_acl_entry(NetworkAclId=acl, RuleNumber=100, Egress=False)
        ec2.delete_network_acl(NetworkAclId=acl)

        options = ec2.create_dhcp_options(
            DhcpConfigurations=[{"Key": "domain-name", "Values": ["example.com"]}],
            TagSpecifications=self.tags("dhcp-options"),
        )["DhcpOptions"]["DhcpOptionsId"]
        ec2.associate_dhcp_options(DhcpOptionsId=options, VpcId=vpc)
        self.refused("DependencyViolation", ec2.delete_dhcp_options, DhcpOptionsId=options)
        ec2.associate_dhcp_options(DhcpOptionsId="default", VpcId=vpc)
        ec2.delete_dhcp_options(DhcpOptionsId=options)

        # In the order in which nothing needs anything that comes after it.
        self.refused("DependencyViolation", ec2.delete_vpc, VpcId=vpc)
        ec2.delete_nat_gateway(NatGatewayId=nat)
        ec2.get_waiter("nat_gateway_deleted").wait(NatGatewayIds=[nat])
        shown = ec2.describe_route_tables(RouteTableIds=[main["RouteTableId"]])["RouteTables"][0]
        self.assertIn("blackhole", [route["State"] for route in shown["Routes"]])
        ec2.delete_route(RouteTableId=main["RouteTableId"], DestinationCidrBlock=WORLD)
        ec2.release_address(AllocationId=address["AllocationId"])
        ec2.disassociate_route_table(AssociationId=association)
        ec2.delete_route_table(RouteTableId=table)
        ec2.detach_internet_gateway(InternetGatewayId=gateway, VpcId=vpc)
        ec2.delete_internet_gateway(InternetGatewayId=gateway)
        for subnet in subnets:
            ec2.delete_subnet(SubnetId=subnet)
        ec2.delete_vpc(VpcId=vpc)
        self.refused("InvalidVpcID.NotFound", ec2.describe_vpcs, VpcIds=[vpc])

    def test_2_interfaces_and_addresses_of_an_instance(self):
        ec2 = self.ec2
        instance = ec2.run_instances(ImageId=IMAGE, MinCount=1, MaxCount=1, InstanceType="t3.micro")["Instances"][0]
        ids = [instance["InstanceId"]]
        ec2.get_waiter("instance_running").wait(InstanceIds=ids, WaiterConfig=QUICK)
        [shown] = ec2.describe_instances(InstanceIds=ids)["Reservations"][0]["Instances"]
        automatic = shown["PublicIpAddress"]
        self.assertTrue(shown["PublicDnsName"].startswith("ec2-" + automatic.replace(".", "-")))

        address = ec2.allocate_address(TagSpecifications=self.tags("elastic-ip"))
        associated = ec2.associate_address(InstanceId=ids[0], AllocationId=address["AllocationId"])
        [held] = ec2.describe_addresses(AllocationIds=[address["AllocationId"]])["Addresses"]
        self.assertEqual(held["InstanceId"], ids[0])
        [shown] = ec2.describe_instances(InstanceIds=ids)["Reservations"][0]["Instances"]
        self.assertEqual(shown["PublicIpAddress"], address["PublicIp"])
        self.assertNotEqual(shown["PublicIpAddress"], automatic)
        ec2.disassociate_address(AssociationId=associated["AssociationId"])
        ec2.describe_addresses_attribute(AllocationIds=[address["AllocationId"]])
        ec2.release_address(AllocationId=address["AllocationId"])

        interface = ec2.create_network_interface(
            SubnetId=shown["SubnetId"], Description="a second one", TagSpecifications=self.tags("network-interface")
        )["NetworkInterface"]["NetworkInterfaceId"]
        ec2.get_waiter("network_interface_available").wait(NetworkInterfaceIds=[interface])
        given = ec2.assign_private_ip_addresses(NetworkInterfaceId=interface, SecondaryPrivateIpAddressCount=1)
        second = given["AssignedPrivateIpAddresses"][0]["PrivateIpAddress"]
        ec2.unassign_private_ip_addresses(NetworkInterfaceId=interface, PrivateIpAddresses=[second])
        ec2.modify_network_interface_attribute(NetworkInterfaceId=interface, SourceDestCheck={"Value": False})
        for attribute in ("description", "groupSet", "sourceDestCheck", "attachment"):
            ec2.describe_network_interface_attribute(NetworkInterfaceId=interface, Attribute=attribute)
        ec2.reset_network_interface_attribute(NetworkInterfaceId=interface, SourceDestCheck="true")
        # What is gone is gone when it is forced: these guests may not know how to let go.
        attachment = ec2.attach_network_interface(NetworkInterfaceId=interface, InstanceId=ids[0], DeviceIndex=1)
        self.until(interface, "attached")
        ec2.detach_network_interface(AttachmentId=attachment["AttachmentId"], Force=True)
        ec2.get_waiter("network_interface_available").wait(NetworkInterfaceIds=[interface], WaiterConfig=QUICK)
        ec2.delete_network_interface(NetworkInterfaceId=interface)
        ec2.terminate_instances(InstanceIds=ids)
        ec2.get_waiter("instance_terminated").wait(InstanceIds=ids, WaiterConfig=QUICK)

    def until(self, interface: str, status: str):
        for _ in range(100):
            [found] = self.ec2.describe_network_interfaces(NetworkInterfaceIds=[interface])["NetworkInterfaces"]
            if found.get("Attachment", {}).get("Status") == status:
                return
            time.sleep(0.1)
        self.fail(f"{interface} is not {status}: {found}")

    def test_3_the_default_vpc_can_be_made_again(self):
        ec2 = self.ec2
        [vpc] = ec2.describe_vpcs(Filters=[{"Name": "is-default", "Values": ["true"]}])["Vpcs"]
        self.refused("DefaultVpcAlreadyExists", ec2.create_default_vpc)
        subnets = ec2.describe_subnets(Filters=[{"Name": "vpc-id", "Values": [vpc["VpcId"]]}])["Subnets"]
        last = max(subnets, key=lambda subnet: subnet["AvailabilityZone"])
        ec2.delete_subnet(SubnetId=last["SubnetId"])
        made = ec2.create_default_subnet(AvailabilityZone=last["AvailabilityZone"])["Subnet"]
        self.assertTrue(made["DefaultForAz"])

    def test_4_everything_was_walked(self):
        print(self.recorder.report())
        # EC2 says `available` of an attached internet gateway, and Terraform waits for that; the model has other words.
        errors = [error for error in self.recorder.errors if not error.startswith("DescribeInternetGateways: ")]
        self.assertEqual(errors, [], "what the model does not know")
        answered = set(self.recorder.answers)
        self.assertEqual(len(answered), 59, sorted(answered))


if __name__ == "__main__":
    unittest.main()
