//! ModifyInstanceAttribute and ResetInstanceAttribute.
//!
//! EC2 has two forms for one change: `DisableApiStop.Value=true`, and `Attribute=disableApiStop&Value=true`.

use serde::Deserialize;
use serde::de::IgnoredAny;

use super::attachments::check_attachments;
use super::run_instances::{Switch, parse_behavior};
use super::user_data;
use crate::actions::lookup::find_own;
use crate::actions::network_interfaces::check_limits;
use crate::actions::network_interfaces::new::groups_by_id;
use crate::actions::refused::unsupported;
use crate::catalogue::InstanceType;
use crate::ids::{SecurityGroupId, VolumeId};
use crate::instances::interfaces;
use crate::query::parameters::boolean;
use crate::query::{Action, ApiError, Context};
use crate::records::{
    Instance, InstanceState, NetworkInterface, ShutdownBehavior, StoreDisk, Subnet, Volume,
};
use crate::state::{Draft, World};

/// Changes one attribute of an instance.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", deny_unknown_fields)]
pub struct ModifyInstanceAttribute {
    instance_id: String,
    attribute: Option<String>,
    value: Option<String>,
    instance_type: Option<Value<String>>,
    user_data: Option<Value<String>>,
    disable_api_termination: Option<Value<bool>>,
    disable_api_stop: Option<Value<bool>>,
    instance_initiated_shutdown_behavior: Option<Value<String>>,
    #[serde(default, rename = "GroupId")]
    groups: Vec<String>,
    ebs_optimized: Option<Value<bool>>,
    source_dest_check: Option<Value<bool>>,
    #[serde(default, rename = "BlockDeviceMapping")]
    block_devices: Vec<BlockDeviceMapping>,
    ena_support: Option<Value<bool>>,
    sriov_net_support: Option<IgnoredAny>,
    kernel: Option<IgnoredAny>,
    ramdisk: Option<IgnoredAny>,
    enclave_options: Option<Switch>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase", deny_unknown_fields)]
struct Value<T> {
    value: T,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "PascalCase", deny_unknown_fields)]
struct BlockDeviceMapping {
    device_name: String,
    #[serde(default)]
    ebs: Ebs,
    virtual_name: Option<IgnoredAny>,
    no_device: Option<IgnoredAny>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", deny_unknown_fields)]
struct Ebs {
    volume_id: Option<String>,
    delete_on_termination: Option<bool>,
}

/// A change, understood.
#[derive(Clone, Debug)]
enum Change {
    Type(String),
    UserData(Option<String>),
    DisableApiTermination(bool),
    DisableApiStop(bool),
    ShutdownBehavior(ShutdownBehavior),
    Groups(Vec<String>),
    EbsOptimized(bool),
    SourceDestCheck(bool),
    BlockDevices(Vec<BlockDeviceMapping>),
    /// What is so at any rate.
    Nothing,
}

impl ModifyInstanceAttribute {
    /// The one change of the request.
    fn change(&self) -> Result<Change, ApiError> {
        let mut changes = Vec::new();
        if let Some(wanted) = &self.instance_type {
            changes.push(Change::Type(wanted.value.clone()));
        }
        if let Some(wanted) = &self.user_data {
            changes.push(Change::UserData(user_data::checked(&wanted.value)?));
        }
        if let Some(wanted) = &self.disable_api_termination {
            changes.push(Change::DisableApiTermination(wanted.value));
        }
        if let Some(wanted) = &self.disable_api_stop {
            changes.push(Change::DisableApiStop(wanted.value));
        }
        if let Some(wanted) = &self.instance_initiated_shutdown_behavior {
            changes.push(Change::ShutdownBehavior(parse_behavior(&wanted.value)?));
        }
        if !self.groups.is_empty() {
            changes.push(Change::Groups(self.groups.clone()));
        }
        if let Some(wanted) = &self.ebs_optimized {
            changes.push(Change::EbsOptimized(wanted.value));
        }
        if let Some(wanted) = &self.source_dest_check {
            changes.push(Change::SourceDestCheck(wanted.value));
        }
        if !self.block_devices.is_empty() {
            changes.push(Change::BlockDevices(self.block_devices.clone()));
        }
        if let Some(wanted) = &self.ena_support {
            changes.push(ena_support(wanted.value)?);
        }
        if let Some(wanted) = &self.enclave_options {
            if wanted.enabled {
                return Err(unsupported("This host has no enclaves: leave EnclaveOptions out."));
            }
            changes.push(Change::Nothing);
        }
        if self.sriov_net_support.is_some() || self.kernel.is_some() || self.ramdisk.is_some() {
            return Err(fixed());
        }
        match (self.attribute.as_deref(), &self.value) {
            (Some(attribute), Some(value)) => changes.push(named(attribute, value)?),
            (Some(_), None) if changes.is_empty() => return Err(ApiError::missing("Value")),
            (None, Some(_)) => return Err(ApiError::missing("Attribute")),
            // EC2 takes the name as well, beside the other form.
            (Some(_), None) | (None, None) => {}
        }
        match changes.as_slice() {
            [] => Err(ApiError::combination("No attributes specified.")),
            [change] => Ok(change.clone()),
            _ => Err(ApiError::combination(
                "Fields for multiple attribute types specified: change one at a time.",
            )),
        }
    }

    fn plan(&self, world: &World, context: Context<'_>) -> Result<(Instance, Change), ApiError> {
        let instance = find_own::<Instance>(world, context, &self.instance_id)?;
        let change = self.change()?;
        let mut instance = Instance::clone(instance);
        allowed(&instance, &change)?;
        apply(world, context, &mut instance, &change)?;
        Ok((instance, change))
    }
}

/// The form that names the attribute.
fn named(attribute: &str, value: &str) -> Result<Change, ApiError> {
    let truth =
        || boolean(value).ok_or_else(|| ApiError::invalid(value, "value", "Expecting true or false."));
    Ok(match attribute {
        "instanceType" => Change::Type(value.to_owned()),
        "userData" => Change::UserData(user_data::checked(value)?),
        "disableApiTermination" => Change::DisableApiTermination(truth()?),
        "disableApiStop" => Change::DisableApiStop(truth()?),
        "instanceInitiatedShutdownBehavior" => Change::ShutdownBehavior(parse_behavior(value)?),
        "groupSet" => Change::Groups(vec![value.to_owned()]),
        "ebsOptimized" => Change::EbsOptimized(truth()?),
        "sourceDestCheck" => Change::SourceDestCheck(truth()?),
        "enaSupport" => ena_support(truth()?)?,
        "kernel" | "ramdisk" | "sriovNetSupport" => return Err(fixed()),
        other => {
            return Err(ApiError::invalid(
                other,
                "attribute",
                "It is none that can be changed in this form.",
            ));
        }
    })
}

fn ena_support(wanted: bool) -> Result<Change, ApiError> {
    if wanted { Ok(Change::Nothing) } else { Err(fixed()) }
}

fn fixed() -> ApiError {
    unsupported(
        "The kernel, the initial RAM disk and the kind of network device of an instance cannot be changed on this host.",
    )
}

/// Whether the state allows a change.
fn allowed(instance: &Instance, change: &Change) -> Result<(), ApiError> {
    let (id, state) = (&instance.id, instance.lifecycle.state);
    let needs_stop = matches!(change, Change::Type(_) | Change::UserData(_) | Change::EbsOptimized(_));
    let message = match state {
        InstanceState::ShuttingDown | InstanceState::Terminated => {
            format!("The instance '{id}' is {}, and cannot be changed.", state.name())
        }
        _ if needs_stop && state != InstanceState::Stopped => {
            format!("The instance '{id}' is not in the 'stopped' state.")
        }
        _ => return Ok(()),
    };
    Err(ApiError::new("IncorrectInstanceState", message))
}

/// Makes a change to the instance itself.
fn apply(
    world: &World,
    context: Context<'_>,
    instance: &mut Instance,
    change: &Change,
) -> Result<(), ApiError> {
    match change {
        Change::Type(name) => {
            let Some(kind) = context.agent.catalogue.get(name) else {
                let message = format!("Invalid value '{name}' for InstanceType.");
                return Err(ApiError::new("InvalidParameterValue", message));
            };
            check_interfaces(world, instance, kind)?;
            instance.instance_type.clone_from(name);
            exchange_store(world, instance, kind)?;
        }
        Change::UserData(data) => instance.user_data.clone_from(data),
        Change::DisableApiTermination(on) => instance.disable_api_termination = *on,
        Change::DisableApiStop(on) => instance.disable_api_stop = *on,
        Change::ShutdownBehavior(behavior) => {
            if *behavior == ShutdownBehavior::Stop && !instance.endings().can_stop() {
                return Err(ApiError::combination(
                    "The attribute instanceInitiatedShutdownBehavior can only be used for elastic images.",
                ));
            }
            instance.shutdown_behavior = *behavior;
        }
        Change::Groups(ids) => {
            groups(world, context, instance, ids)?;
        }
        Change::EbsOptimized(on) => instance.ebs_optimized = *on,
        Change::SourceDestCheck(_) => only_interface(world, instance)?,
        Change::BlockDevices(mappings) => {
            for mapping in mappings {
                device(instance, mapping)?;
            }
        }
        Change::Nothing => {}
    }
    Ok(())
}

/// The groups that an instance's primary interface is to have. EC2 wants those with several interfaces to say which.
fn groups(
    world: &World,
    context: Context<'_>,
    instance: &Instance,
    ids: &[String],
) -> Result<Vec<SecurityGroupId>, ApiError> {
    only_interface(world, instance)?;
    let subnet = find_own::<Subnet>(world, context, instance.subnet.as_str())?;
    groups_by_id(world, context, ids, subnet)
}

/// Refuses what is about the interface of an instance that has several.
fn only_interface(world: &World, instance: &Instance) -> Result<(), ApiError> {
    if interfaces(world, &instance.id).len() > 1 {
        let message = format!(
            "There are multiple interfaces attached to instance '{}'. Please specify an interface ID for the operation \
             instead.",
            instance.id
        );
        return Err(ApiError::new("InvalidInstanceID", message));
    }
    Ok(())
}

/// Whether another type can have the interfaces of an instance, and their addresses.
fn check_interfaces(world: &World, instance: &Instance, kind: &InstanceType) -> Result<(), ApiError> {
    let all = interfaces(world, &instance.id);
    let addresses = all.iter().filter_map(|id| Some(world.get::<NetworkInterface>(id)?.addresses().count()));
    check_limits(kind, all.len(), addresses.max().unwrap_or(0))
}

/// An instance of another type has that one's instance store. What the mapping has given a name keeps it.
fn exchange_store(world: &World, instance: &mut Instance, kind: &InstanceType) -> Result<(), ApiError> {
    let before = std::mem::take(&mut instance.instance_store);
    let root = before.iter().filter(|disk| disk.is_root()).cloned();
    let mut disks: Vec<StoreDisk> = root.chain(kind.instance_store()).collect();
    for disk in &mut disks {
        let same = before.iter().find(|other| other.name == disk.name);
        disk.device_name = same.and_then(|other| other.device_name.clone());
    }
    check_attachments(disks.len() + instance.block_devices.len(), interfaces(world, &instance.id).len())?;
    instance.instance_store = disks;
    Ok(())
}

/// Only DeleteOnTermination can be changed: volumes are attached and detached otherwise.
fn device(instance: &mut Instance, mapping: &BlockDeviceMapping) -> Result<(), ApiError> {
    let name = &mapping.device_name;
    let Some(device) = instance.block_devices.iter_mut().find(|device| device.device_name == *name) else {
        let message = format!("No device is currently mapped at {name}");
        return Err(ApiError::new("InvalidInstanceAttributeValue", message));
    };
    let other_volume = mapping.ebs.volume_id.as_ref().is_some_and(|id| id != device.volume.as_str());
    if other_volume || mapping.virtual_name.is_some() || mapping.no_device.is_some() {
        let message = format!(
            "Only Ebs.DeleteOnTermination of {name} can be changed: use AttachVolume and DetachVolume."
        );
        return Err(ApiError::combination(message));
    }
    if let Some(delete) = mapping.ebs.delete_on_termination {
        device.delete_on_termination = delete;
    }
    Ok(())
}

/// Records a changed instance, and what its interface and volumes say of the change.
fn record(
    draft: &mut Draft,
    context: Context<'_>,
    instance: Instance,
    change: &Change,
) -> Result<(), ApiError> {
    match change {
        Change::Groups(ids) => {
            let groups = groups(draft, context, &instance, ids)?;
            draft.update::<NetworkInterface>(&instance.network_interface, |interface| {
                interface.groups = groups;
            });
        }
        Change::SourceDestCheck(on) => {
            draft.update::<NetworkInterface>(&instance.network_interface, |interface| {
                interface.source_dest_check = *on;
            });
        }
        Change::BlockDevices(_) => {
            let devices: Vec<(VolumeId, bool)> = instance
                .block_devices
                .iter()
                .map(|device| (device.volume.clone(), device.delete_on_termination))
                .collect();
            for (volume, delete) in devices {
                draft.update::<Volume>(volume, |volume| {
                    if let Some(attachment) = &mut volume.attachment {
                        attachment.delete_on_termination = delete;
                    }
                });
            }
        }
        _ => {}
    }
    draft.put(instance);
    Ok(())
}

impl Action for ModifyInstanceAttribute {
    const NAME: &'static str = "ModifyInstanceAttribute";
    type Response = ();

    fn check(&self, context: Context<'_>) -> Result<(), ApiError> {
        self.plan(&context.agent.state.read(), context).map(drop)
    }

    fn run(self, context: Context<'_>) -> Result<(), ApiError> {
        context.agent.state.change(|draft| {
            let (instance, change) = self.plan(draft, context)?;
            record(draft, context, instance, &change)
        })
    }
}

/// Gives an attribute its default again.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase", deny_unknown_fields)]
pub struct ResetInstanceAttribute {
    instance_id: String,
    attribute: String,
}

impl ResetInstanceAttribute {
    /// The change that it comes to.
    fn modification(&self) -> Result<ModifyInstanceAttribute, ApiError> {
        match self.attribute.as_str() {
            "sourceDestCheck" => Ok(ModifyInstanceAttribute {
                instance_id: self.instance_id.clone(),
                source_dest_check: Some(Value { value: true }),
                ..ModifyInstanceAttribute::default()
            }),
            "kernel" | "ramdisk" => Err(fixed()),
            other => Err(ApiError::invalid(
                other,
                "attribute",
                "Only sourceDestCheck, kernel and ramdisk can be reset.",
            )),
        }
    }
}

impl Action for ResetInstanceAttribute {
    const NAME: &'static str = "ResetInstanceAttribute";
    type Response = ();

    fn check(&self, context: Context<'_>) -> Result<(), ApiError> {
        self.modification()?.check(context)
    }

    fn run(self, context: Context<'_>) -> Result<(), ApiError> {
        self.modification()?.run(context)
    }
}
