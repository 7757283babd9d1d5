//! Launching instances.

use std::io::Read;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

use crate::cli::answer::{list, text};
use crate::cli::client::{Client, Parameters};
use crate::cli::global::Global;
use crate::cli::instances::INSTANCES;
use crate::cli::names;
use crate::cli::tags::tags;
use crate::cli::wait::Wait;

/// EC2's limit for user data, in bytes.
const LONGEST_USER_DATA: usize = 16 << 10;

/// Launches instances.
#[derive(Debug, clap::Args)]
pub struct Run {
    /// An image: its id, its name, or the beginning of its name
    image: String,
    /// The instance type; `innkeeper types` lists them
    #[arg(long = "type", short = 't', value_name = "TYPE", default_value = "t3.micro")]
    instance_type: String,
    /// How many
    #[arg(long, short = 'n', value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..))]
    count: u32,
    /// A name: the tag Name
    #[arg(long)]
    name: Option<String>,
    /// A key pair, whose owner may log in
    #[arg(long, short = 'k')]
    key: Option<String>,
    /// An instance profile's name: the role that programs in the guest have, for which they need no keys
    #[arg(long)]
    profile: Option<String>,
    /// A file for the guest's first boot, such as a script or cloud-init's configuration; - is standard input
    #[arg(long, value_name = "FILE")]
    user_data: Option<PathBuf>,
    /// The root volume's size, if it shall be larger than the image's
    #[arg(long, value_name = "GiB", value_parser = clap::value_parser!(u32).range(1..))]
    disk_size: Option<u32>,
    /// A security group's id or name; by default the VPC's own, and one that lets this host log in
    #[arg(long, short = 'g')]
    group: Vec<String>,
    /// A tag
    #[arg(long, value_name = "KEY=VALUE")]
    tag: Vec<String>,
    #[command(flatten)]
    wait: Wait,
}

impl Run {
    /// Does it; returns the exit status.
    pub fn execute(self, global: &Global) -> anyhow::Result<u8> {
        let user_data = self.user_data.as_deref().map(read_user_data).transpose()?;
        let tags = tags(self.name.as_deref(), &self.tag)?;
        let client = global.client()?;
        let image = names::image(&client, &self.image)?;
        let root = match self.disk_size {
            Some(size) => Some((root_device(&client, &image)?, size)),
            None => None,
        };
        let groups = match self.group.is_empty() {
            true => usual_groups(&client)?,
            false => self.group.clone(),
        };
        let parameters = self.parameters(&image, user_data, root, &groups, &tags);
        let answer = client.call("RunInstances", parameters)?;
        let mut launched = list(&answer, "instancesSet").to_vec();
        if self.wait.wait {
            let ids: Vec<_> = launched.iter().map(|each| text(each, "instanceId").to_owned()).collect();
            self.wait.until(&client, &ids, "running")?;
            launched = client.instances(Parameters::default().with_list("InstanceId", &ids))?;
        }
        global.show(&INSTANCES, &launched)?;
        Ok(0)
    }

    fn parameters(
        &self,
        image: &str,
        user_data: Option<String>,
        root: Option<(String, u32)>,
        groups: &[String],
        tags: &[(String, String)],
    ) -> Parameters {
        let count = self.count.to_string();
        let (ids, groups): (Vec<_>, Vec<_>) = groups.iter().partition(|group| group.starts_with("sg-"));
        let (device, size) = root.unzip();
        Parameters::default()
            .with("ImageId", image)
            .with("InstanceType", self.instance_type.as_str())
            .with("MinCount", count.as_str())
            .with("MaxCount", count)
            .with_some("KeyName", self.key.as_deref())
            .with_some("IamInstanceProfile.Name", self.profile.as_deref())
            .with_some("UserData", user_data)
            .with_list("SecurityGroupId", ids)
            .with_list("SecurityGroup", groups)
            .with_some("BlockDeviceMapping.1.DeviceName", device)
            .with_some("BlockDeviceMapping.1.Ebs.VolumeSize", size.map(|size| size.to_string()))
            .with_tags("instance", tags)
    }
}

/// The groups of instances for which none is named: the default VPC's own, which lets in its members only, and one that
/// lets the host in by ssh, which is made when it is missing, as EC2's console does. None, if there is no default VPC, or no
/// address by which the host could come.
fn usual_groups(client: &Client) -> anyhow::Result<Vec<String>> {
    let host = client.call("InnkeeperDescribeHost", Parameters::default())?;
    let is_default = [("is-default".to_owned(), "true".to_owned())];
    let vpcs = client.describe("DescribeVpcs", Parameters::default().with_filters(&is_default), "vpcSet")?;
    let (host, Some(vpc)) = (text(&host, "hostAddress"), vpcs.first().map(|vpc| text(vpc, "vpcId"))) else {
        return Ok(Vec::new());
    };
    if host.is_empty() {
        return Ok(Vec::new());
    }
    let in_vpc = Parameters::default().with_filters(&[("vpc-id".to_owned(), vpc.to_owned())]);
    let groups = client.describe("DescribeSecurityGroups", in_vpc, "securityGroupInfo")?;
    let named = |name: &str| {
        let found = groups.iter().find(|group| text(group, "groupName") == name);
        found.map(|group| text(group, "groupId").to_owned())
    };
    let login = match named(LOGIN_GROUP) {
        Some(group) => group,
        None => make_login_group(client, vpc)?,
    };
    let_in(client, &login, host)?;
    Ok(named("default").into_iter().chain([login]).collect())
}

/// The group that lets the host log in.
const LOGIN_GROUP: &str = "innkeeper-login";

fn make_login_group(client: &Client, vpc: &str) -> anyhow::Result<String> {
    let group = Parameters::default()
        .with("GroupName", LOGIN_GROUP)
        .with("GroupDescription", "Made by innkeeper run: lets the host log in")
        .with("VpcId", vpc);
    let made = client.call("CreateSecurityGroup", group)?;
    Ok(text(&made, "groupId").to_owned())
}

/// Lets the host in. It may be let in already, and another host may have been before.
fn let_in(client: &Client, group: &str, host: &str) -> anyhow::Result<()> {
    let rule = Parameters::default()
        .with("GroupId", group)
        .with("IpPermissions.1.IpProtocol", "tcp")
        .with("IpPermissions.1.FromPort", "22")
        .with("IpPermissions.1.ToPort", "22")
        .with("IpPermissions.1.IpRanges.1.CidrIp", format!("{host}/32"))
        .with("IpPermissions.1.IpRanges.1.Description", "ssh from the host");
    match client.call("AuthorizeSecurityGroupIngress", rule) {
        Err(error) if format!("{error:#}").contains("InvalidPermission.Duplicate") => Ok(()),
        other => other.map(drop),
    }
}

fn read_user_data(path: &Path) -> anyhow::Result<String> {
    let mut data = Vec::new();
    if path == Path::new("-") {
        std::io::stdin().read_to_end(&mut data).context("cannot read the user data from standard input")?;
    } else {
        data =
            std::fs::read(path).with_context(|| format!("cannot read the user data {}", path.display()))?;
    }
    if data.len() > LONGEST_USER_DATA {
        bail!(
            "the user data has {} bytes, and EC2 takes {LONGEST_USER_DATA}: let it fetch the rest",
            data.len()
        );
    }
    Ok(STANDARD.encode(data))
}

fn root_device(client: &Client, image: &str) -> anyhow::Result<String> {
    let found =
        client.describe("DescribeImages", Parameters::default().with("ImageId.1", image), "imagesSet")?;
    let device = found.first().map(|image| text(image, "rootDeviceName")).unwrap_or_default();
    if device.is_empty() {
        bail!("{image} has no root device, so that there is nothing for --disk-size to enlarge");
    }
    Ok(device.to_owned())
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;
    use crate::cli::client::tests::serve;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        run: Run,
    }

    #[test]
    fn a_line_becomes_ec2s_parameters() {
        let line = [
            "run",
            "micro",
            "-n",
            "2",
            "--name",
            "web",
            "--group",
            "sg-1",
            "--group",
            "b",
            "--tag",
            "a=b=c",
            "--key",
            "k",
            "--profile",
            "web",
        ];
        let Line { run } = Line::parse_from(line);
        let tags = tags(run.name.as_deref(), &run.tag).unwrap();
        let parameters = run.parameters("ami-1", None, Some(("/dev/xvda".into(), 20)), &run.group, &tags);
        let (client, server) = serve(vec![(200, "<R><a/></R>".into())]);
        client.call("RunInstances", parameters).unwrap();
        let asked = server.join().unwrap().remove(0);
        let body = asked.split_once("\r\n\r\n").unwrap().1;
        assert_eq!(
            body,
            "Action=RunInstances&Version=2016-11-15&ImageId=ami-1&InstanceType=t3.micro&MinCount=2&MaxCount=2\
             &KeyName=k&IamInstanceProfile.Name=web&SecurityGroupId.1=sg-1&SecurityGroup.1=b&BlockDeviceMapping.1.DeviceName=%2Fdev%2Fxvda\
             &BlockDeviceMapping.1.Ebs.VolumeSize=20&TagSpecification.1.ResourceType=instance\
             &TagSpecification.1.Tag.1.Key=Name&TagSpecification.1.Tag.1.Value=web\
             &TagSpecification.1.Tag.2.Key=a&TagSpecification.1.Tag.2.Value=b%3Dc"
        );
    }
}
