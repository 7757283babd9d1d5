//! DescribeNetworkInterfaceAttribute, ModifyNetworkInterfaceAttribute and ResetNetworkInterfaceAttribute.

use serde::de::IgnoredAny;
use serde::{Deserialize, Serialize};

use super::item::{Attachment, Group, groups};
use super::new::groups_by_id;
use super::own;
use crate::actions::lookup::{find, find_own};
use crate::actions::refused::{NO_IPV6, refuse};
use crate::network::public_addresses::{give_automatic, take_automatic};
use crate::query::{Action, ApiError, Context};
use crate::records::{Instance, InstanceState, NetworkInterface, Subnet};
use crate::state::World;

/// One attribute of an interface.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase", deny_unknown_fields)]
pub struct DescribeNetworkInterfaceAttribute {
    network_interface_id: String,
    attribute: Option<String>,
}

/// The interface, and the one that was asked for.
#[derive(Debug, Default, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Attributes {
    network_interface_id: String,
    description: Option<Value<String>>,
    source_dest_check: Option<Value<bool>>,
    group_set: Option<Vec<Group>>,
    attachment: Option<Attachment>,
    associate_public_ip_address: Option<bool>,
}

/// A value, in requests and in answers.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all(deserialize = "PascalCase"), deny_unknown_fields)]
struct Value<T> {
    value: T,
}

impl Action for DescribeNetworkInterfaceAttribute {
    const NAME: &'static str = "DescribeNetworkInterfaceAttribute";
    type Response = Attributes;

    fn run(self, context: Context<'_>) -> Result<Attributes, ApiError> {
        let world = context.agent.state.read();
        let interface = find::<NetworkInterface>(&world, context, &self.network_interface_id)?;
        let mut answer =
            Attributes { network_interface_id: interface.id.to_string(), ..Attributes::default() };
        let Some(attribute) = &self.attribute else { return Err(ApiError::missing("attribute")) };
        match attribute.as_str() {
            "description" => answer.description = Some(Value { value: interface.description.clone() }),
            "sourceDestCheck" => {
                answer.source_dest_check = Some(Value { value: interface.source_dest_check })
            }
            "groupSet" => answer.group_set = Some(groups(&world, &interface.groups)),
            "attachment" => {
                let attachment = interface.attachment.as_ref();
                answer.attachment = attachment.map(|found| Attachment::new(found, &interface.owner));
            }
            "associatePublicIpAddress" => {
                answer.associate_public_ip_address = Some(interface.associate_public_address);
            }
            other => {
                let reason = "An interface has description, groupSet, sourceDestCheck, attachment and \
                              associatePublicIpAddress.";
                return Err(ApiError::invalid(other, "attribute", reason));
            }
        }
        Ok(answer)
    }
}

/// Changes one attribute of an interface.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", deny_unknown_fields)]
pub struct ModifyNetworkInterfaceAttribute {
    network_interface_id: String,
    description: Option<Value<String>>,
    source_dest_check: Option<Value<bool>>,
    #[serde(default, rename = "SecurityGroupId")]
    groups: Vec<String>,
    attachment: Option<AttachmentChange>,
    associate_public_ip_address: Option<bool>,
    ena_srd_specification: Option<IgnoredAny>,
    #[serde(default)]
    enable_primary_ipv6: bool,
    connection_tracking_specification: Option<IgnoredAny>,
    #[serde(default, rename = "AssociatedSubnetId")]
    associated_subnets: Vec<IgnoredAny>,
}

/// `Attachment`.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase", deny_unknown_fields)]
struct AttachmentChange {
    attachment_id: Option<String>,
    delete_on_termination: Option<bool>,
    ena_queue_count: Option<i64>,
    #[serde(default)]
    default_ena_queue_count: bool,
}

impl ModifyNetworkInterfaceAttribute {
    /// The interface as it shall be.
    fn plan(&self, world: &World, context: Context<'_>) -> Result<NetworkInterface, ApiError> {
        let queues = self
            .attachment
            .as_ref()
            .is_some_and(|change| change.ena_queue_count.is_some() || change.default_ena_queue_count);
        refuse(&[
            (self.enable_primary_ipv6, NO_IPV6),
            (
                self.ena_srd_specification.is_some() || queues,
                "Network interfaces of this host are no ENAs: leave EnaSrdSpecification and EnaQueueCount out.",
            ),
            (
                self.connection_tracking_specification.is_some(),
                "The timeouts of connections cannot be chosen: leave ConnectionTrackingSpecification out.",
            ),
            (
                !self.associated_subnets.is_empty(),
                "A network interface of this host is in one subnet: leave AssociatedSubnetId out.",
            ),
        ])?;
        let wanted = [
            self.description.is_some(),
            self.source_dest_check.is_some(),
            !self.groups.is_empty(),
            self.attachment.is_some(),
            self.associate_public_ip_address.is_some(),
        ];
        match wanted.iter().filter(|wanted| **wanted).count() {
            0 => return Err(ApiError::combination("No attributes specified.")),
            1 => {}
            _ => {
                let message = "Fields for multiple attribute types specified: change one at a time.";
                return Err(ApiError::combination(message));
            }
        }
        let mut interface = NetworkInterface::clone(own(world, context, &self.network_interface_id)?);
        if let Some(description) = &self.description {
            interface.description.clone_from(&description.value);
        }
        if let Some(check) = &self.source_dest_check {
            interface.source_dest_check = check.value;
        }
        if !self.groups.is_empty() {
            let subnet = find_own::<Subnet>(world, context, interface.subnet.as_str())?;
            interface.groups = groups_by_id(world, context, &self.groups, subnet)?;
        }
        if let Some(change) = &self.attachment {
            apply(change, &mut interface)?;
        }
        if let Some(wanted) = self.associate_public_ip_address {
            interface.associate_public_address = wanted;
        }
        Ok(interface)
    }
}

fn apply(change: &AttachmentChange, interface: &mut NetworkInterface) -> Result<(), ApiError> {
    let Some(id) = &change.attachment_id else { return Err(ApiError::missing("attachmentId")) };
    let found = interface.attachment.as_mut().filter(|attachment| attachment.id.as_str() == id);
    let Some(attachment) = found else {
        let message = format!("The attachment ID '{id}' does not exist");
        return Err(ApiError::new("InvalidAttachmentID.NotFound", message));
    };
    let delete = change.delete_on_termination.ok_or_else(|| ApiError::missing("deleteOnTermination"))?;
    attachment.delete_on_termination = delete;
    Ok(())
}

impl Action for ModifyNetworkInterfaceAttribute {
    const NAME: &'static str = "ModifyNetworkInterfaceAttribute";
    type Response = ();

    fn check(&self, context: Context<'_>) -> Result<(), ApiError> {
        self.plan(&context.agent.state.read(), context).map(drop)
    }

    fn run(self, context: Context<'_>) -> Result<(), ApiError> {
        context.agent.state.change(|draft| {
            let interface = self.plan(draft, context)?;
            let id = interface.id.clone();
            let instance = interface.instance().and_then(|id| draft.get::<Instance>(id));
            let runs = instance.is_some_and(|instance| instance.lifecycle.state == InstanceState::Running);
            draft.put(interface);
            match self.associate_public_ip_address {
                Some(true) if runs => give_automatic(draft, &context.agent.config, &id),
                Some(false) => take_automatic(draft, &id),
                _ => {}
            }
            Ok(())
        })
    }
}

/// Gives an attribute its default again.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase", deny_unknown_fields)]
pub struct ResetNetworkInterfaceAttribute {
    network_interface_id: String,
    /// Its value says nothing.
    source_dest_check: Option<String>,
}

impl ResetNetworkInterfaceAttribute {
    /// The change that it comes to.
    fn modification(&self) -> Result<ModifyNetworkInterfaceAttribute, ApiError> {
        if self.source_dest_check.is_none() {
            return Err(ApiError::missing("sourceDestCheck"));
        }
        Ok(ModifyNetworkInterfaceAttribute {
            network_interface_id: self.network_interface_id.clone(),
            source_dest_check: Some(Value { value: true }),
            ..ModifyNetworkInterfaceAttribute::default()
        })
    }
}

impl Action for ResetNetworkInterfaceAttribute {
    const NAME: &'static str = "ResetNetworkInterfaceAttribute";
    type Response = ();

    fn check(&self, context: Context<'_>) -> Result<(), ApiError> {
        self.modification()?.check(context)
    }

    fn run(self, context: Context<'_>) -> Result<(), ApiError> {
        self.modification()?.run(context)
    }
}
