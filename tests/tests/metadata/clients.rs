//! The clients of the service that guests have, in a guest's place.

use anyhow::{Context, Result};
use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use innkeeper_tests::agent::{REGION, TINY, run_suite, suite};
use innkeeper_tests::ec2::texts;
use innkeeper_tests::stand_in::Lab;
use serde_json::json;

const USER_DATA: &str = "#cloud-config\nhostname: inn\n";

#[test]
fn real_clients_find_everything() -> Result<()> {
    let lab = Lab::start()?;
    lab.client.ask("CreateKeyPair", &[("KeyName", "my-public-key")])?;
    let public_key = lab.one("DescribeKeyPairs", &[("IncludePublicKey", "true")], "publicKey")?;
    let user_data = BASE64_STANDARD.encode(USER_DATA);
    let ids = [lab.launch_with(&[
        ("KeyName", "my-public-key"),
        ("UserData", &user_data),
        ("BlockDeviceMapping.1.DeviceName", "/dev/sdf"),
        ("BlockDeviceMapping.1.Ebs.VolumeSize", "1"),
        ("TagSpecification.1.ResourceType", "instance"),
        ("TagSpecification.1.Tag.1.Key", "Name"),
        ("TagSpecification.1.Tag.1.Value", "the inn"),
        ("TagSpecification.1.Tag.2.Key", "Stage"),
        ("TagSpecification.1.Tag.2.Value", "test"),
        ("MetadataOptions.InstanceMetadataTags", "enabled"),
        ("MetadataOptions.HttpTokens", "required"),
    ])?];
    let described = lab.client.ask("DescribeInstances", &[("InstanceId.1", &ids[0])])?;
    let own = |name: &str| texts(&described, name).into_iter().next().context(name.to_owned());
    let interface = own("networkInterfaceId")?;
    let more = [("NetworkInterfaceId", interface.as_str()), ("SecondaryPrivateIpAddressCount", "2")];
    let assigned = lab.client.ask("AssignPrivateIpAddresses", &more)?;
    let expected = json!({
        "ami-id": lab.image,
        "availability-zone": own("availabilityZone")?,
        "instance-id": ids[0],
        "instance-type": TINY,
        "key-name": "my-public-key",
        "local-hostname": own("privateDnsName")?,
        "local-ipv4": own("privateIpAddress")?,
        "mac": own("macAddress")?,
        "public-hostname": own("dnsName")?,
        "public-ipv4": own("ipAddress")?,
        "public-key": public_key,
        "region": REGION,
        "reservation-id": own("reservationId")?,
        "root": own("rootDeviceName")?,
        "secondary": texts(&assigned, "privateIpAddress"),
        "security-groups": "default",
        "tags": { "Name": "the inn", "Stage": "test" },
        "user-data": USER_DATA,
        "vpc-id": own("vpcId")?,
    });
    let mut suite = suite("in_a_guest")?;
    lab.guest(&ids[0])?.take_in(&mut suite);
    // Nothing is configured there, nor by whoever runs the test.
    for (name, _) in std::env::vars_os() {
        if name.to_str().is_some_and(|name| name.starts_with("AWS_")) {
            suite.env_remove(name);
        }
    }
    suite
        .env("AWS_CONFIG_FILE", "/dev/null")
        .env("AWS_SHARED_CREDENTIALS_FILE", "/dev/null")
        .env("INNKEEPER_TEST_INSTANCE", expected.to_string());
    run_suite(&mut suite).with_context(|| lab.agent.last_words())?;
    lab.end("TerminateInstances", &ids, "terminated")
}
