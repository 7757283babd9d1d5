//! RunInstances: checks everything, and records instances with all that belongs to them in one transaction. Their actors
//! do the rest.

mod devices;
mod network;
mod request;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use jiff::Timestamp;

pub use request::{RunInstances, Switch};

use super::attachments::check_attachments;
use super::start_instances::no_capacity;
use super::view;
use super::{metadata, refused, user_data};
use crate::actions::instance_profiles::associate;
use crate::actions::lookup::{find, key_pairs};
use crate::actions::network_interfaces::new::{interface as new_interface, used_macs};
use crate::ids::{AttachmentId, InstanceId, ReservationId, VolumeId};
use crate::instances::capacity::Need;
use crate::network::public_addresses::give_automatic;
use crate::query::tags::specified;
use crate::query::{Action, ApiError, Context, idempotency};
use crate::records::{
    Attachment, AttachmentStatus, BlockDevice, Image, ImageState, Instance, InstanceProfile,
    InterfaceAttachment, Lifecycle, MetadataOptions, NetworkInterface, RootDeviceType, ShutdownBehavior,
    Snapshot, Volume, VolumeState,
};
use crate::state::{Draft, World};
use crate::volumes::stack;
use devices::{Device, Devices};
use network::{Place, Planned, What};

/// The type of instances for which none is named. EC2's is m1.small, which nobody has any more.
const DEFAULT_TYPE: &str = "t3.micro";

/// The most instances that one request launches.
const MAX_COUNT: usize = 1000;

/// What can be tagged at launch.
const TAGGABLE: [&str; 3] = ["instance", "volume", "network-interface"];

/// A launch that can be done.
struct Plan {
    image: Arc<Image>,
    instance_type: String,
    public_key: Option<String>,
    count: usize,
    place: Place,
    devices: Devices,
    user_data: Option<String>,
    shutdown_behavior: ShutdownBehavior,
    metadata_options: MetadataOptions,
    instance_profile: Option<Arc<InstanceProfile>>,
    /// By kind of resource.
    tags: BTreeMap<String, BTreeMap<String, String>>,
}

impl RunInstances {
    fn plan(&self, world: &World, context: Context<'_>) -> Result<Plan, ApiError> {
        let agent = context.agent;
        let image = image(world, context, self.image_id.as_deref())?;
        let (least, most) = counts(self.min_count, self.max_count)?;
        let name = self.instance_type.as_deref().unwrap_or(DEFAULT_TYPE);
        let kind = agent.catalogue.get(name).ok_or_else(|| {
            let message = format!("Invalid value '{name}' for InstanceType.");
            ApiError::new("InvalidParameterValue", message)
        })?;
        refused::check(self, kind)?;
        if self.ebs_optimized && kind.ebs.is_none() {
            let message = "EBS-optimized instances are not supported for your requested configuration.";
            return Err(ApiError::combination(message));
        }
        let public_key = self.key_name.as_deref().map(|name| public_key(world, context, name)).transpose()?;
        let user_data = self.user_data.as_deref().map(user_data::checked).transpose()?.flatten();
        let shutdown_behavior = shutdown_behavior(self, &image)?;
        let metadata_options = metadata_options(self, &image)?;
        let tags = specified(&self.tags, &TAGGABLE)?;
        let of_instance = tags.get("instance").into_iter().flat_map(BTreeMap::keys);
        metadata::check_tag_keys(&metadata_options, of_instance)?;
        let specification = self.iam_instance_profile.as_ref();
        let instance_profile = specification.map(|wanted| wanted.find(world, context)).transpose()?.cloned();
        let devices = devices::plan(world, context, &image, kind, &self.block_devices)?;
        let place = network::place(world, context, self, kind, most)?;
        if place.instances.len() < least {
            let message = format!(
                "There are not enough free addresses in subnet '{}' to satisfy the requested number of instances.",
                place.subnet.id
            );
            return Err(ApiError::new("InsufficientFreeAddressesInSubnet", message));
        }
        let interfaces = place.instances.first().map_or(1, Vec::len);
        check_attachments(devices.volumes.len() + devices.instance_store.len(), interfaces)?;
        let need = Need::new(kind, &devices.instance_store);
        let room = agent.capacity.room(world, &agent.catalogue, need);
        let count = most.min(place.instances.len()).min(usize::try_from(room).unwrap_or(usize::MAX));
        if count < least {
            return Err(no_capacity(name));
        }
        Ok(Plan {
            image,
            instance_type: name.to_owned(),
            public_key,
            count,
            place,
            devices,
            user_data,
            shutdown_behavior,
            metadata_options,
            instance_profile,
            tags,
        })
    }

    /// Records what is planned. The order of the launch indexes is that of the addresses.
    fn record(&self, plan: &Plan, draft: &mut Draft, context: Context<'_>) -> ReservationId {
        let now = Timestamp::now();
        let reservation = ReservationId::random();
        let mut macs = used_macs(draft);
        let owner = &context.caller.account;
        let place = &plan.place;
        for (launch_index, interfaces) in (0..).zip(place.instances.iter().take(plan.count)) {
            let id = InstanceId::random();
            let block_devices = plan.devices.volumes.iter().map(|device| {
                let volume = volume(plan, draft, device, &id, owner, now);
                let entry = BlockDevice {
                    device_name: device.name.clone(),
                    volume: volume.id.clone(),
                    delete_on_termination: device.volume.delete_on_termination,
                };
                plan.tag(draft, "volume", &volume.id);
                draft.put(volume);
                entry
            });
            let block_devices = block_devices.collect();
            let mut primary = None;
            for planned in interfaces {
                let attached = attach(planned, &id, now, &mut macs);
                if let What::New { .. } = planned.what {
                    plan.tag(draft, "network-interface", &attached.id);
                }
                let attached_id = attached.id.clone();
                draft.put(attached);
                give_automatic(draft, &context.agent.config, &attached_id);
                primary.get_or_insert(attached_id);
            }
            let Some(network_interface) = primary else { continue };
            let instance = Instance {
                reservation: reservation.clone(),
                owner: owner.clone(),
                image: plan.image.id.clone(),
                instance_type: plan.instance_type.clone(),
                launch_index,
                launch_time: now,
                key_name: self.key_name.clone(),
                public_key: plan.public_key.clone(),
                user_data: plan.user_data.clone(),
                client_token: self.client_token.clone(),
                availability_zone: place.subnet.availability_zone.clone(),
                vpc: place.subnet.vpc.clone(),
                subnet: place.subnet.id.clone(),
                network_interface,
                root_device_name: plan.image.root_device_name.clone(),
                block_devices,
                instance_store: plan.devices.instance_store.clone(),
                boot: plan.image.boot.clone(),
                shutdown_behavior: plan.shutdown_behavior,
                disable_api_termination: self.disable_api_termination,
                disable_api_stop: self.disable_api_stop,
                ebs_optimized: self.ebs_optimized,
                monitoring: self.monitoring.enabled,
                cpu_credits: self.credit_specification.as_ref().map(|wanted| wanted.cpu_credits.clone()),
                metadata_options: plan.metadata_options.clone(),
                instance_profile: plan.instance_profile.as_ref().map(|profile| associate(profile, now)),
                lifecycle: Lifecycle::launch(now),
                id,
            };
            plan.tag(draft, "instance", &instance.id);
            draft.put(instance);
        }
        reservation
    }
}

impl Plan {
    /// Tags something that was made, as the request says for its kind.
    fn tag(&self, draft: &mut Draft, kind: &str, resource: impl AsRef<str>) {
        if let Some(tags) = self.tags.get(kind) {
            draft.tag(resource, tags.clone());
        }
    }
}

/// The image, if the caller may launch it and it can be launched.
fn image(world: &World, context: Context<'_>, id: Option<&str>) -> Result<Arc<Image>, ApiError> {
    let id = id.ok_or_else(|| ApiError::missing("ImageId"))?;
    let image = find::<Image>(world, context, id)?;
    if image.state != ImageState::Available {
        let message =
            format!("The image ID '[{id}]' is not available: wait until it is, or choose another one.");
        return Err(ApiError::new("InvalidAMIID.Unavailable", message));
    }
    Ok(image.clone())
}

/// The public half of a key pair. The instance keeps it, whatever becomes of the pair.
fn public_key(world: &World, context: Context<'_>, name: &str) -> Result<String, ApiError> {
    let pair = key_pairs(world, context).find(|pair| pair.name == name).ok_or_else(|| {
        let message = format!("The key pair '{name}' does not exist");
        ApiError::new("InvalidKeyPair.NotFound", message)
    })?;
    Ok(pair.public_key.clone())
}

/// MinCount and MaxCount.
fn counts(least: Option<i64>, most: Option<i64>) -> Result<(usize, usize), ApiError> {
    let least = least.ok_or_else(|| ApiError::missing("MinCount"))?;
    let most = most.ok_or_else(|| ApiError::missing("MaxCount"))?;
    let at_least_one = |count: i64, name: &str| {
        usize::try_from(count).ok().filter(|count| *count > 0).ok_or_else(|| {
            let reason = "Minimum value of 1 is expected.";
            ApiError::invalid(count, name, reason)
        })
    };
    let (least, most) = (at_least_one(least, "minCount")?, at_least_one(most, "maxCount")?);
    if least > most {
        let message = format!(
            "Value ({most}) for parameter maxCount is invalid. It must not be less than minCount ({least})."
        );
        return Err(ApiError::new("InvalidParameterValue", message));
    }
    if least > MAX_COUNT {
        let message =
            format!("You have requested {least} instances; one request launches at most {MAX_COUNT}.");
        return Err(ApiError::new("InstanceLimitExceeded", message));
    }
    Ok((least, most.min(MAX_COUNT)))
}

/// An instance without a root volume has nothing that could be started again.
fn shutdown_behavior(request: &RunInstances, image: &Image) -> Result<ShutdownBehavior, ApiError> {
    let wanted = request.instance_initiated_shutdown_behavior.as_deref();
    let behavior = wanted.map(parse_behavior).transpose()?;
    if image.root_device_type() == RootDeviceType::Ebs {
        return Ok(behavior.unwrap_or_default());
    }
    if behavior == Some(ShutdownBehavior::Stop) {
        return Err(ApiError::combination(
            "The attribute instanceInitiatedShutdownBehavior can only be used for elastic images.",
        ));
    }
    Ok(ShutdownBehavior::Terminate)
}

/// Reads `stop` or `terminate`.
pub fn parse_behavior(text: &str) -> Result<ShutdownBehavior, ApiError> {
    match text {
        "stop" => Ok(ShutdownBehavior::Stop),
        "terminate" => Ok(ShutdownBehavior::Terminate),
        other => Err(ApiError::invalid(
            other,
            "instanceInitiatedShutdownBehavior",
            "Expecting one of: stop, terminate.",
        )),
    }
}

/// What the image asks for, and then the request.
fn metadata_options(request: &RunInstances, image: &Image) -> Result<MetadataOptions, ApiError> {
    let mut options = MetadataOptions::default();
    if image.imds_support.as_deref() == Some("v2.0") {
        options.http_tokens = "required".to_owned();
        options.http_put_response_hop_limit = 2;
    }
    request.metadata_options.apply(&mut options)?;
    Ok(options)
}

/// An interface in the hands of its instance.
fn attach(
    planned: &Planned,
    instance: &InstanceId,
    now: Timestamp,
    macs: &mut BTreeSet<String>,
) -> NetworkInterface {
    let interface = match &planned.what {
        What::Existing(interface) => NetworkInterface::clone(interface),
        What::New { subnet, addresses, groups, description, public } => NetworkInterface {
            groups: groups.clone(),
            description: description.clone(),
            associate_public_address: *public,
            ..new_interface(subnet, addresses.clone(), macs)
        },
    };
    let attachment = InterfaceAttachment {
        id: AttachmentId::random(),
        instance: instance.clone(),
        device_index: planned.device_index,
        attached: now,
        status: AttachmentStatus::Attaching,
        delete_on_termination: planned.delete_on_termination,
    };
    NetworkInterface { attachment: Some(attachment), ..interface }
}

/// A volume in the making, that an instance has.
fn volume(
    plan: &Plan,
    draft: &mut Draft,
    device: &Device,
    instance: &InstanceId,
    owner: &str,
    now: Timestamp,
) -> Volume {
    let wanted = &device.volume;
    let snapshot = wanted.snapshot.as_ref().and_then(|id| draft.get::<Snapshot>(id));
    let base = snapshot.map(|snapshot| snapshot.layer.clone());
    Volume {
        layer: stack::found(draft, base.as_ref(), wanted.size),
        id: VolumeId::random(),
        owner: owner.to_owned(),
        size: wanted.size,
        volume_type: wanted.volume_type.clone(),
        iops: wanted.iops,
        throughput: wanted.throughput,
        encrypted: wanted.encrypted,
        snapshot: wanted.snapshot.clone(),
        availability_zone: plan.place.subnet.availability_zone.clone(),
        created: now,
        state: VolumeState::Creating,
        attachment: Some(Attachment {
            instance: instance.clone(),
            device: device.name.clone(),
            delete_on_termination: wanted.delete_on_termination,
            attached: now,
            status: AttachmentStatus::Attaching,
        }),
        modification: None,
        impairment: None,
        auto_enable_io: false,
    }
}

/// What an earlier request with the same token has launched.
fn again(world: &World, context: Context<'_>, reservation: String) -> Result<view::Reservation, ApiError> {
    let of_it = |instance: &&Instance| instance.reservation.as_str() == reservation;
    let mut instances: Vec<&Instance> = world.all::<Instance>().map(AsRef::as_ref).filter(of_it).collect();
    if instances.is_empty() {
        return Err(ApiError::new(
            "IdempotentInstanceTerminated",
            "The instances that were launched with this client token are terminated. Use another one for new instances.",
        ));
    }
    instances.sort_by_key(|instance| instance.launch_index);
    let interfaces = view::Interfaces::new(world);
    Ok(view::reservation(world, context, &interfaces, reservation.clone(), instances.into_iter()))
}

impl Action for RunInstances {
    const NAME: &'static str = "RunInstances";
    type Response = view::Reservation;

    fn check(&self, context: Context<'_>) -> Result<(), ApiError> {
        let world = context.agent.state.read();
        match idempotency::recall(&world, context, Self::NAME, self.client_token.as_deref())? {
            Some(_) => Ok(()),
            None => self.plan(&world, context).map(drop),
        }
    }

    fn run(self, context: Context<'_>) -> Result<view::Reservation, ApiError> {
        let token = self.client_token.as_deref();
        context.agent.state.change(|draft| {
            if let Some(reservation) = idempotency::recall(draft, context, Self::NAME, token)? {
                return again(draft, context, reservation);
            }
            let plan = self.plan(draft, context)?;
            let reservation = self.record(&plan, draft, context).to_string();
            idempotency::remember(draft, context, Self::NAME, token, &reservation);
            again(draft, context, reservation)
        })
    }
}
