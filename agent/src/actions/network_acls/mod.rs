//! Network ACLs.

mod create_network_acl;
mod describe_network_acls;
mod entries;
mod item;

use crate::query::dispatch::Registry;

pub(super) fn register(registry: &mut Registry) {
    registry.add::<create_network_acl::CreateNetworkAcl>();
    registry.add::<create_network_acl::DeleteNetworkAcl>();
    registry.add::<create_network_acl::ReplaceNetworkAclAssociation>();
    registry.add::<describe_network_acls::DescribeNetworkAcls>();
    registry.add::<entries::CreateNetworkAclEntry>();
    registry.add::<entries::DeleteNetworkAclEntry>();
    registry.add::<entries::ReplaceNetworkAclEntry>();
}

#[cfg(test)]
mod tests {
    use crate::actions::testing::Client;

    #[test]
    fn an_acl_has_entries_in_their_order() {
        let client = Client::new();
        let vpc = client.text("DescribeVpcs", "vpcId");
        let create = format!("CreateNetworkAcl&VpcId={vpc}&ClientToken=t");
        let acl = client.text(&create, "networkAclId");
        assert_eq!(client.text(&create, "networkAclId"), acl);
        let shown =
            |element: &str| client.texts(&format!("DescribeNetworkAcls&NetworkAclId.1={acl}"), element);
        assert_eq!(
            (shown("ruleNumber"), shown("ruleAction")),
            (vec!["32767".into(); 2], vec!["deny".into(); 2])
        );
        let entry = |action: &str, rest: &str| {
            format!("{action}&NetworkAclId={acl}&CidrBlock=10.1.2.3/8&RuleAction=allow&Egress=false&{rest}")
        };
        client
            .ask(&entry(
                "CreateNetworkAclEntry",
                "RuleNumber=200&Protocol=tcp&PortRange.From=22&PortRange.To=23",
            ))
            .unwrap();
        client
            .ask(&entry("CreateNetworkAclEntry", "RuleNumber=100&Protocol=1&Icmp.Type=8&Icmp.Code=-1"))
            .unwrap();
        client
            .ask(&entry("CreateNetworkAclEntry", "RuleNumber=50&Protocol=-1&PortRange.From=1&PortRange.To=2"))
            .unwrap();
        assert_eq!(shown("ruleNumber"), ["32767", "50", "100", "200", "32767"]);
        assert_eq!(shown("protocol"), ["-1", "-1", "1", "6", "-1"]);
        assert_eq!((shown("from"), shown("type")), (vec!["22".to_owned()], vec!["8".to_owned()]));
        assert!(shown("cidrBlock").contains(&"10.0.0.0/8".to_owned()));
        client.refuses(&[
            (&entry("CreateNetworkAclEntry", "RuleNumber=50&Protocol=-1"), "NetworkAclEntryAlreadyExists"),
            (&entry("CreateNetworkAclEntry", "RuleNumber=0&Protocol=-1"), "InvalidParameterValue"),
            (&entry("CreateNetworkAclEntry", "RuleNumber=32767&Protocol=-1"), "InvalidParameterValue"),
            (&entry("CreateNetworkAclEntry", "RuleNumber=1&Protocol=256"), "InvalidParameterValue"),
            (&entry("CreateNetworkAclEntry", "RuleNumber=1&Protocol=6"), "MissingParameter"),
            (&entry("CreateNetworkAclEntry", "RuleNumber=1&Protocol=icmp"), "MissingParameter"),
            (
                &entry("CreateNetworkAclEntry", "RuleNumber=1&Protocol=6&PortRange.From=2&PortRange.To=1"),
                "InvalidParameterValue",
            ),
            (
                &entry(
                    "CreateNetworkAclEntry",
                    "RuleNumber=1&Protocol=6&PortRange.From=2&PortRange.To=65536",
                ),
                "InvalidParameterValue",
            ),
            (
                &entry("CreateNetworkAclEntry", "RuleNumber=1&Protocol=-1&Ipv6CidrBlock=::/0"),
                "UnsupportedOperation",
            ),
            (&entry("ReplaceNetworkAclEntry", "RuleNumber=1&Protocol=-1"), "InvalidNetworkAclEntry.NotFound"),
            (
                &format!("DeleteNetworkAclEntry&NetworkAclId={acl}&RuleNumber=50&Egress=true"),
                "InvalidNetworkAclEntry.NotFound",
            ),
        ]);
        client
            .ask(&entry(
                "ReplaceNetworkAclEntry",
                "RuleNumber=50&Protocol=17&PortRange.From=53&PortRange.To=53",
            ))
            .unwrap();
        assert_eq!(shown("protocol")[1], "17");
        client.ask(&format!("DeleteNetworkAclEntry&NetworkAclId={acl}&RuleNumber=50&Egress=false")).unwrap();
        for number in 1..=18 {
            client.ask(&entry("CreateNetworkAclEntry", &format!("RuleNumber={number}&Protocol=-1"))).unwrap();
        }
        client.refuses(&[(
            &entry("CreateNetworkAclEntry", "RuleNumber=19&Protocol=-1"),
            "NetworkAclEntryLimitExceeded",
        )]);
        client
            .ask(&entry(
                "ReplaceNetworkAclEntry",
                "RuleNumber=18&Protocol=17&PortRange.From=53&PortRange.To=53",
            ))
            .unwrap();
    }

    #[test]
    fn a_subnet_always_has_one_acl() {
        let client = Client::new();
        let vpc = client.text("DescribeVpcs", "vpcId");
        let default = client.texts("DescribeNetworkAcls", "networkAclId").remove(0);
        let subnet = client.texts("DescribeSubnets", "subnetId").remove(0);
        let filter =
            format!("DescribeNetworkAcls&Filter.1.Name=association.subnet-id&Filter.1.Value.1={subnet}");
        let association = |acl: &str| {
            let world = client.agent.state.read();
            let subnet = world.get::<crate::records::Subnet>(&subnet).unwrap();
            assert_eq!(subnet.network_acl.network_acl.as_str(), acl);
            subnet.network_acl.id.to_string()
        };
        let acl = client.text(&format!("CreateNetworkAcl&VpcId={vpc}"), "networkAclId");
        let replace = format!(
            "ReplaceNetworkAclAssociation&AssociationId={}&NetworkAclId={acl}",
            association(&default)
        );
        let new = client.text(&replace, "newAssociationId");
        assert_eq!(association(&acl), new);
        assert_eq!(client.texts(&filter, "networkAclAssociationId"), [&*new]);
        let other = client.text("CreateVpc&CidrBlock=10.0.0.0/16", "vpcId");
        let away = client.text(&format!("CreateNetworkAcl&VpcId={other}"), "networkAclId");
        client.refuses(&[
            (&replace, "InvalidAssociationID.NotFound"),
            (
                &format!("ReplaceNetworkAclAssociation&AssociationId={new}&NetworkAclId={away}"),
                "InvalidParameterValue",
            ),
            (&format!("DeleteNetworkAcl&NetworkAclId={acl}"), "DependencyViolation"),
            (&format!("DeleteNetworkAcl&NetworkAclId={default}"), "InvalidParameterValue"),
        ]);
        client
            .ask(&format!("ReplaceNetworkAclAssociation&AssociationId={new}&NetworkAclId={default}"))
            .unwrap();
        client.ask(&format!("DeleteNetworkAcl&NetworkAclId={acl}")).unwrap();
    }
}
