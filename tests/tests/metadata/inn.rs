//! An instance that has a bit of everything.

use std::net::Ipv4Addr;

use anyhow::{Context, Result};
use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use innkeeper_tests::agent::{IMPATIENT, STORED};
use innkeeper_tests::ec2::texts;
use innkeeper_tests::stand_in::{Guest, Lab};

use super::PATIENCE;

/// Not a text in any encoding.
pub const USER_DATA: &[u8] = b"#!/bin/sh\n\0\xff\xfe\r\n\x80 not a text\n\n";
/// The owner of everything.
pub const ACCOUNT: &str = "000000000000";
/// A tag's key of everything that one may have.
pub const KEY: &str = "2026:first.try_a+b=c,d@e-f";

/// A daemon with an instance that has a bit of everything, and another one.
pub struct Inn {
    pub lab: Lab,
    pub guest: Guest,
    pub stranger: Guest,
    pub id: String,
    /// The addresses of its interface, and the public ones of each.
    pub addresses: [Ipv4Addr; 2],
    pub elastic: [Ipv4Addr; 2],
    pub groups: [String; 2],
    /// What the API says of it.
    pub described: String,
    pub public_key: String,
    pub subnet: String,
    pub vpc: String,
}

impl Inn {
    pub fn open() -> Result<Self> {
        // Hundreds of requests in a second are not what a guest may do.
        let lab = Lab::start_with(&format!("{IMPATIENT}\nservice-packets = 0"))?;
        lab.client.ask("CreateKeyPair", &[("KeyName", "my-public-key"), ("KeyType", "ed25519")])?;
        let groups = [group(&lab, "web")?, group(&lab, "db")?];
        let user_data = BASE64_STANDARD.encode(USER_DATA);
        let launch = [
            ("ImageId", lab.image.as_str()),
            ("InstanceType", STORED),
            ("MinCount", "1"),
            ("MaxCount", "1"),
            ("KeyName", "my-public-key"),
            ("UserData", &user_data),
            ("SecurityGroupId.1", &groups[0]),
            ("SecurityGroupId.2", &groups[1]),
            ("BlockDeviceMapping.1.DeviceName", "/dev/sdf"),
            ("BlockDeviceMapping.1.Ebs.VolumeSize", "1"),
            ("BlockDeviceMapping.2.DeviceName", "/dev/sdc"),
            ("BlockDeviceMapping.2.VirtualName", "ephemeral0"),
            ("TagSpecification.1.ResourceType", "instance"),
            ("TagSpecification.1.Tag.1.Key", "Name"),
            ("TagSpecification.1.Tag.1.Value", "an inn, \"quoted\" & größer"),
            ("TagSpecification.1.Tag.2.Key", KEY),
            ("TagSpecification.1.Tag.2.Value", ""),
            ("MetadataOptions.InstanceMetadataTags", "enabled"),
            ("Monitoring.Enabled", "true"),
        ];
        let id = lab.one("RunInstances", &launch, "instanceId")?;
        lab.client.wait_for(std::slice::from_ref(&id), "running", PATIENCE)?;
        let interface = lab.described(&id, "networkInterfaceId")?.context("an interface")?;
        let more = [("NetworkInterfaceId", interface.as_str()), ("SecondaryPrivateIpAddressCount", "1")];
        lab.client.ask("AssignPrivateIpAddresses", &more)?;
        let own = lab.client.ask("DescribeNetworkInterfaces", &[("NetworkInterfaceId.1", &interface)])?;
        let mut private = texts(&own, "privateIpAddress");
        private.dedup();
        let [first, second] = &private[..] else { anyhow::bail!("not two addresses: {own}") };
        let addresses = [first.parse()?, second.parse()?];
        let elastic = [first, second].map(|private| associate(&lab, &interface, private));
        let [first, second] = elastic;
        let elastic = [first?, second?];

        let stranger = lab.launch()?;
        let described = lab.client.ask("DescribeInstances", &[("InstanceId.1", &id)])?;
        let one = |name: &str| texts(&described, name).into_iter().next().context(name.to_owned());
        let (subnet, vpc) = (one("subnetId")?, one("vpcId")?);
        Ok(Self {
            guest: lab.guest(&id)?,
            stranger: lab.guest(&stranger)?,
            addresses,
            elastic,
            groups,
            public_key: lab.one("DescribeKeyPairs", &[("IncludePublicKey", "true")], "publicKey")?,
            subnet: lab.client.ask("DescribeSubnets", &[("SubnetId.1", &subnet)])?,
            vpc: lab.client.ask("DescribeVpcs", &[("VpcId.1", &vpc)])?,
            described,
            id,
            lab,
        })
    }

    /// The first text with a name in what the API says of the instance.
    pub fn own(&self, name: &str) -> String {
        texts(&self.described, name).into_iter().next().unwrap_or_default()
    }

    pub fn change(&self, option: &str, value: &str) -> Result<()> {
        let change = [("InstanceId", self.id.as_str()), (option, value)];
        self.lab.client.ask("ModifyInstanceMetadataOptions", &change).map(drop)
    }
}

fn group(lab: &Lab, name: &str) -> Result<String> {
    let parameters = [("GroupName", name), ("GroupDescription", name)];
    lab.one("CreateSecurityGroup", &parameters, "groupId")
}

/// Gives an elastic address to a private one.
fn associate(lab: &Lab, interface: &str, private: &str) -> Result<Ipv4Addr> {
    let allocated = lab.client.ask("AllocateAddress", &[("Domain", "vpc")])?;
    let text = |name| texts(&allocated, name).pop().context(name);
    let whom = [
        ("AllocationId", &*text("allocationId")?),
        ("NetworkInterfaceId", interface),
        ("PrivateIpAddress", private),
    ];
    lab.client.ask("AssociateAddress", &whom)?;
    Ok(text("publicIp")?.parse()?)
}
