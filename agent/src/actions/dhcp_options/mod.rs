//! DHCP options.

mod create_dhcp_options;
mod describe_dhcp_options;
mod item;

use crate::query::dispatch::Registry;

pub(super) fn register(registry: &mut Registry) {
    registry.add::<create_dhcp_options::AssociateDhcpOptions>();
    registry.add::<create_dhcp_options::CreateDhcpOptions>();
    registry.add::<create_dhcp_options::DeleteDhcpOptions>();
    registry.add::<describe_dhcp_options::DescribeDhcpOptions>();
}

#[cfg(test)]
mod tests {
    use crate::actions::testing::Client;

    #[test]
    fn a_vpc_has_a_set_of_options_or_none() {
        let client = Client::new();
        let vpc = client.text("DescribeVpcs", "vpcId");
        let one = |key: &str, value: &str| {
            format!("CreateDhcpOptions&DhcpConfiguration.1.Key={key}&DhcpConfiguration.1.Value.1={value}")
        };
        let more = "DhcpConfiguration.2.Key=ntp-servers&DhcpConfiguration.2.Value.1=10.0.0.1&DhcpConfiguration.2.Value.2=10.0.0.2";
        let set = client.text(&format!("{}&{more}", one("domain-name", "example.org")), "dhcpOptionsId");
        let shown = client.ask(&format!("DescribeDhcpOptions&DhcpOptionsId.1={set}")).unwrap();
        assert!(shown.contains("example.org") && shown.contains("10.0.0.2"), "{shown}");
        let associate =
            |set: &str| client.ask(&format!("AssociateDhcpOptions&DhcpOptionsId={set}&VpcId={vpc}")).unwrap();
        let delete = format!("DeleteDhcpOptions&DhcpOptionsId={set}");
        associate(&set);
        client.refuses(&[(&delete, "DependencyViolation")]);
        associate("default");
        assert_eq!(client.text("DescribeVpcs", "dhcpOptionsId"), "default");
        client.ask(&delete).unwrap();
        client.refuses(&[
            ("CreateDhcpOptions", "MissingParameter"),
            ("CreateDhcpOptions&DhcpConfiguration.1.Key=domain-name", "MissingParameter"),
            (&one("colour", "red"), "InvalidParameterValue"),
            (&one("netbios-node-type", "3"), "InvalidParameterValue"),
            (&one("domain-name-servers", "ns.example.org"), "InvalidParameterValue"),
            (&format!("{}&{more}", one("ntp-servers", "10.0.0.1")), "InvalidParameterValue"),
            (
                &format!("AssociateDhcpOptions&DhcpOptionsId={set}&VpcId={vpc}"),
                "InvalidDhcpOptionID.NotFound",
            ),
        ]);
        client.ask(&one("domain-name-servers", "AmazonProvidedDNS")).unwrap();
    }
}
