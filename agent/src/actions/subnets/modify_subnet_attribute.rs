//! ModifySubnetAttribute, and AssociateSubnetCidrBlock, which is about IPv6 only.

use serde::Deserialize;
use serde::de::IgnoredAny;

use crate::actions::lookup::find_own;
use crate::actions::refused::{NO_IPV6, NO_OUTPOSTS, refuse, unsupported};
use crate::query::{Action, ApiError, Context};
use crate::records::Subnet;
use crate::state::World;

/// Changes an attribute of a subnet: there is one that can be changed, and those that are what they are.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase", deny_unknown_fields)]
pub struct ModifySubnetAttribute {
    subnet_id: String,
    map_public_ip_on_launch: Option<Value>,
    assign_ipv6_address_on_creation: Option<Value>,
    map_customer_owned_ip_on_launch: Option<Value>,
    customer_owned_ipv4_pool: Option<IgnoredAny>,
    enable_dns64: Option<Value>,
    private_dns_hostname_type_on_launch: Option<String>,
    #[serde(rename = "EnableResourceNameDnsARecordOnLaunch")]
    enable_resource_name_a: Option<Value>,
    #[serde(rename = "EnableResourceNameDnsAAAARecordOnLaunch")]
    enable_resource_name_aaaa: Option<Value>,
    enable_lni_at_device_index: Option<IgnoredAny>,
    disable_lni_at_device_index: Option<Value>,
}

#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(rename_all = "PascalCase", deny_unknown_fields)]
struct Value {
    value: bool,
}

/// Whether something is to be switched on.
fn on(value: Option<Value>) -> bool {
    value.is_some_and(|value| value.value)
}

impl ModifySubnetAttribute {
    /// The subnet as it shall be.
    fn plan(&self, world: &World, context: Context<'_>) -> Result<Subnet, ApiError> {
        let mut subnet = Subnet::clone(find_own::<Subnet>(world, context, &self.subnet_id)?);
        let hostname_type = self.private_dns_hostname_type_on_launch.as_deref();
        let names = hostname_type.is_some_and(|kind| kind != "ip-name")
            || on(self.enable_resource_name_a)
            || on(self.enable_resource_name_aaaa);
        let outposts = on(self.map_customer_owned_ip_on_launch)
            || self.customer_owned_ipv4_pool.is_some()
            || self.enable_lni_at_device_index.is_some();
        refuse(&[
            (on(self.assign_ipv6_address_on_creation) || on(self.enable_dns64), NO_IPV6),
            (outposts, NO_OUTPOSTS),
            (
                names,
                "The names of this host's instances come from their addresses: PrivateDnsHostnameTypeOnLaunch can only be \
                 ip-name, without records for resource names.",
            ),
        ])?;
        let unchanged = [
            self.assign_ipv6_address_on_creation,
            self.map_customer_owned_ip_on_launch,
            self.enable_dns64,
            self.enable_resource_name_a,
            self.enable_resource_name_aaaa,
            self.disable_lni_at_device_index,
        ];
        let count = unchanged.iter().flatten().count()
            + usize::from(hostname_type.is_some())
            + usize::from(self.map_public_ip_on_launch.is_some());
        match count {
            0 => return Err(ApiError::missing("mapPublicIpOnLaunch")),
            1 => {}
            _ => {
                let message = "Fields for multiple attribute types specified: change one at a time.";
                return Err(ApiError::combination(message));
            }
        }
        if let Some(wanted) = self.map_public_ip_on_launch {
            subnet.map_public_ip_on_launch = wanted.value;
        }
        Ok(subnet)
    }
}

impl Action for ModifySubnetAttribute {
    const NAME: &'static str = "ModifySubnetAttribute";
    type Response = ();

    fn check(&self, context: Context<'_>) -> Result<(), ApiError> {
        self.plan(&context.agent.state.read(), context).map(drop)
    }

    fn run(self, context: Context<'_>) -> Result<(), ApiError> {
        context.agent.state.change(|draft| {
            let subnet = self.plan(draft, context)?;
            draft.put(subnet);
            Ok(())
        })
    }
}

/// Would give an IPv6 range to a subnet.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase", deny_unknown_fields)]
pub struct AssociateSubnetCidrBlock {
    subnet_id: String,
    #[serde(rename = "Ipv6CidrBlock")]
    _ipv6_cidr_block: Option<IgnoredAny>,
    #[serde(rename = "Ipv6IpamPoolId")]
    _ipv6_ipam_pool_id: Option<IgnoredAny>,
    #[serde(rename = "Ipv6NetmaskLength")]
    _ipv6_netmask_length: Option<IgnoredAny>,
}

impl Action for AssociateSubnetCidrBlock {
    const NAME: &'static str = "AssociateSubnetCidrBlock";
    type Response = ();

    fn check(&self, context: Context<'_>) -> Result<(), ApiError> {
        find_own::<Subnet>(&context.agent.state.read(), context, &self.subnet_id)?;
        Err(unsupported(NO_IPV6))
    }

    fn run(self, context: Context<'_>) -> Result<(), ApiError> {
        self.check(context)
    }
}
