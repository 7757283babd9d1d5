//! AttachNetworkInterface and DetachNetworkInterface.

use serde::de::IgnoredAny;
use serde::{Deserialize, Serialize};

use super::{own, zone};
use crate::actions::instances::check_attachments;
use crate::actions::lookup::find_own;
use crate::actions::network_interfaces::new::too_many_addresses;
use crate::actions::refused::refuse;
use crate::catalogue::InstanceType;
use crate::ids::{AttachmentId, is_well_formed};
use crate::instances::{detach_interface, interfaces};
use crate::query::{Action, ApiError, Context};
use crate::records::{AttachmentStatus, Instance, InstanceState, InterfaceAttachment, NetworkInterface};
use crate::state::World;

/// Gives an interface to an instance that is running or stopped.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase", deny_unknown_fields)]
pub struct AttachNetworkInterface {
    network_interface_id: String,
    instance_id: String,
    device_index: i64,
    #[serde(default)]
    network_card_index: i64,
    ena_srd_specification: Option<IgnoredAny>,
    ena_queue_count: Option<i64>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Attached {
    attachment_id: String,
    network_card_index: u32,
}

impl AttachNetworkInterface {
    fn plan(
        &self,
        world: &World,
        context: Context<'_>,
    ) -> Result<(NetworkInterface, InterfaceAttachment), ApiError> {
        refuse(&[
            (
                self.network_card_index != 0,
                "An instance has one network card, 0: leave NetworkCardIndex out.",
            ),
            (
                self.ena_srd_specification.is_some() || self.ena_queue_count.is_some(),
                "Network interfaces of this host are no ENAs: leave EnaSrdSpecification and EnaQueueCount out.",
            ),
        ])?;
        let interface = own(world, context, &self.network_interface_id)?;
        let instance = find_own::<Instance>(world, context, &self.instance_id)?;
        if interface.attachment.is_some() {
            return Err(in_use(interface));
        }
        let state = instance.lifecycle.state;
        if !matches!(state, InstanceState::Running | InstanceState::Stopped) {
            let message = format!(
                "Instance '{}' is not 'running' or 'stopped'; it is '{}'.",
                instance.id,
                state.name()
            );
            return Err(ApiError::new("IncorrectState", message));
        }
        if zone(world, interface) != instance.availability_zone || interface.vpc != instance.vpc {
            let message = "You may not attach a network interface to an instance if they are not in the same \
                           availability zone and VPC";
            return Err(ApiError::combination(message));
        }
        let device_index = u32::try_from(self.device_index)
            .map_err(|_| ApiError::invalid(self.device_index, "deviceIndex", "It must not be negative."))?;
        let others = interfaces(world, &instance.id);
        let used = others.iter().filter_map(|id| world.get::<NetworkInterface>(id)?.attachment.as_ref());
        if used.into_iter().any(|attachment| attachment.device_index == device_index) {
            let message = format!(
                "Instance '{}' already has an interface attached at device index '{device_index}'.",
                instance.id
            );
            return Err(ApiError::new("InvalidParameterValue", message));
        }
        check_attachments(instance.block_devices.len() + instance.instance_store.len(), others.len() + 1)?;
        if let Some(kind) = context.agent.catalogue.get(&instance.instance_type) {
            check_limits(kind, others.len() + 1, interface.addresses().count())?;
        }
        let attachment = InterfaceAttachment {
            id: AttachmentId::random(),
            instance: instance.id.clone(),
            device_index,
            attached: jiff::Timestamp::now(),
            // The instance's actor gives it to a guest that runs.
            status: match state {
                InstanceState::Running => AttachmentStatus::Attaching,
                _ => AttachmentStatus::Attached,
            },
            delete_on_termination: false,
        };
        Ok((NetworkInterface::clone(interface), attachment))
    }
}

/// The error for an interface that an instance has.
pub fn in_use(interface: &NetworkInterface) -> ApiError {
    ApiError::new("InvalidNetworkInterface.InUse", format!("Interface: [{}] in use.", interface.id))
}

/// Whether an instance of this type can have so many interfaces, with so many addresses each.
pub fn check_limits(kind: &InstanceType, interfaces: usize, addresses: usize) -> Result<(), ApiError> {
    let network = &kind.network;
    if interfaces > network.interfaces as usize {
        let message = format!(
            "Interface count {interfaces} exceeds the limit for {}, which is {}.",
            kind.name, network.interfaces
        );
        return Err(ApiError::new("AttachmentLimitExceeded", message));
    }
    if addresses > network.addresses as usize {
        return Err(too_many_addresses(network.addresses as usize));
    }
    Ok(())
}

impl Action for AttachNetworkInterface {
    const NAME: &'static str = "AttachNetworkInterface";
    type Response = Attached;

    fn check(&self, context: Context<'_>) -> Result<(), ApiError> {
        self.plan(&context.agent.state.read(), context).map(drop)
    }

    fn run(self, context: Context<'_>) -> Result<Attached, ApiError> {
        context.agent.state.change(|draft| {
            let (mut interface, attachment) = self.plan(draft, context)?;
            let answer = Attached { attachment_id: attachment.id.to_string(), network_card_index: 0 };
            interface.attachment = Some(attachment);
            draft.put(interface);
            Ok(answer)
        })
    }
}

/// Takes an interface away from its instance.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase", deny_unknown_fields)]
pub struct DetachNetworkInterface {
    attachment_id: String,
    /// Whether the guest is not waited for.
    #[serde(default)]
    force: bool,
}

impl DetachNetworkInterface {
    fn plan(&self, world: &World, context: Context<'_>) -> Result<NetworkInterface, ApiError> {
        let id = self.attachment_id.as_str();
        if !is_well_formed(AttachmentId::PREFIX, id) {
            let message = format!("Invalid id: \"{id}\" (expecting \"eni-attach-...\")");
            return Err(ApiError::new("InvalidAttachmentID.Malformed", message));
        }
        let owner = &context.caller.account;
        let mut own = world.all::<NetworkInterface>().filter(|interface| interface.owner == *owner);
        let found = own.find_map(|interface| {
            let attachment =
                interface.attachment.as_ref().filter(|attachment| attachment.id.as_str() == id)?;
            Some((interface, attachment))
        });
        let Some((interface, attachment)) = found else {
            let message = format!("The attachment ID '{id}' does not exist");
            return Err(ApiError::new("InvalidAttachmentID.NotFound", message));
        };
        if attachment.device_index == 0 {
            let message = "The network interface at device index 0 cannot be detached.";
            return Err(ApiError::new("OperationNotPermitted", message));
        }
        let instance = world.get::<Instance>(&attachment.instance);
        if instance.is_some_and(|instance| instance.lifecycle.state == InstanceState::ShuttingDown) {
            let message = format!("Instance '{}' is shutting down.", attachment.instance);
            return Err(ApiError::new("IncorrectState", message));
        }
        let mut interface = NetworkInterface::clone(interface);
        if let Some(attachment) = &mut interface.attachment {
            attachment.status = AttachmentStatus::Detaching { force: self.force };
        }
        Ok(interface)
    }
}

impl Action for DetachNetworkInterface {
    const NAME: &'static str = "DetachNetworkInterface";
    type Response = ();

    fn check(&self, context: Context<'_>) -> Result<(), ApiError> {
        self.plan(&context.agent.state.read(), context).map(drop)
    }

    fn run(self, context: Context<'_>) -> Result<(), ApiError> {
        context.agent.state.change(|draft| {
            let interface = self.plan(draft, context)?;
            let instance = interface.instance().and_then(|id| draft.get::<Instance>(id));
            let has_vmm = instance.is_some_and(|instance| instance.lifecycle.state.holds_capacity());
            let id = interface.id.clone();
            draft.put(interface);
            // A guest that has it has to let go of it first: its instance's actor sees to that.
            if !has_vmm {
                detach_interface(draft, &id);
            }
            Ok(())
        })
    }
}
