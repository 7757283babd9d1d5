//! How each [`Step`] is done. Each can be done again after it was done in part.

use std::io;
use std::os::fd::OwnedFd;
use std::time::Duration;

use anyhow::{Context, Result};
use innkeeper_protocol::{
    BootSource, Command, Configure, Descriptor, Error as ProtocolError, FailureCode, Identity,
    State as GuestState,
};
use jiff::Timestamp;
use sha2::{Digest, Sha256};
use tokio::time::Instant;

use super::actor::{Actor, Woken, blocking};
use super::failpoint::pass;
use super::lifecycle::Observation;
use super::settle::{attached, detach};
use super::store;
use super::vmm::{Vmm, VmmError};
use super::{boot_disk, chain};
use crate::ids::{InstanceId, VolumeId};
use crate::records::{AttachmentStatus, BootFiles, Instance, Snapshot, Step, StoreDisk, Volume};
use crate::state::Draft;
use crate::store::StoreError;

/// How often the power button is pressed: a guest that was busy booting has not heard it.
const BUTTON_INTERVAL: Duration = Duration::from_secs(10);

/// How long a disk may be another VMM's that has ended: of one that was killed, the kernel closes what its io_uring had
/// in hand some time after.
const LETTING_GO: Duration = Duration::from_secs(2);

impl Actor {
    /// Makes the files of the instance's volumes.
    pub(super) async fn prepare_volumes(&mut self, instance: &Instance) -> Result<()> {
        pass("prepare-volumes.before");
        for device in &instance.block_devices {
            self.prepare_volume(&device.volume).await?;
        }
        pass("prepare-volumes.made");
        Ok(())
    }

    /// Makes a volume's file, if it is not there.
    async fn prepare_volume(&mut self, id: &VolumeId) -> Result<()> {
        let (shared, volume) = (self.shared.clone(), id.clone());
        if blocking(move || shared.volumes.open(&volume)).await.is_ok() {
            return Ok(());
        }
        let volume = self.record::<Volume>(id).with_context(|| format!("{id} does not exist any more"))?;
        let source = match &volume.snapshot {
            None => None,
            Some(snapshot) => {
                let gone = || format!("{snapshot}, which {id} is to be made from, does not exist any more");
                self.record::<Snapshot>(snapshot).with_context(gone)?.file.clone()
            }
        };
        let _turn = self.shared.makers.acquire().await?;
        let shared = self.shared.clone();
        let made = blocking(move || {
            shared.volumes.make(&volume.id, u64::from(volume.size) << 30, source.as_deref())?;
            // It may have been deleted meanwhile, and nobody would ever look for its file.
            if shared.state.read().get::<Volume>(&volume.id).is_none() {
                shared.volumes.remove(&volume.id)?;
            }
            Ok::<_, io::Error>(())
        });
        made.await.with_context(|| format!("cannot make {id}"))
    }

    /// Starts the guest, unless it runs already.
    pub(super) async fn start_vmm(&mut self, instance: &Instance) -> Result<()> {
        pass("start-vmm.before");
        if self.take_over_started().await? {
            return Ok(());
        }
        self.make_store(instance).await?;
        pass("start-vmm.store-made");
        let (shared, id) = (self.shared.clone(), self.id.clone());
        let process = blocking(move || shared.host.start_vmm(&id)).await?;
        pass("start-vmm.spawned");
        let vmm = self.vmm.insert(Vmm::open(process).await?);
        vmm.say(Command::Events { after: 0 }).await?;
        self.configure(instance).await?;
        pass("start-vmm.configured");
        self.disks.clear();
        // The guest's first disk is its root.
        for disk in instance.instance_store.iter().filter(|disk| disk.is_root()) {
            self.attach_store_disk(disk).await?;
        }
        for device in &instance.block_devices {
            self.attach_volume(&device.volume).await?;
        }
        for disk in instance.instance_store.iter().filter(|disk| !disk.is_root()) {
            self.attach_store_disk(disk).await?;
        }
        pass("start-vmm.attached");
        self.attach_interfaces(instance).await?;
        pass("start-vmm.connected");
        self.vmm()?.say(Command::Start).await?;
        pass("start-vmm.started");
        Ok(())
    }

    /// Makes the disks of the instance store.
    async fn make_store(&self, instance: &Instance) -> Result<()> {
        let disks = &instance.instance_store;
        if disks.is_empty() {
            return Ok(());
        }
        // A root disk is copied, as a volume is. Others are made at once, and wait for nobody's copies.
        let is_copied = disks.iter().any(|disk| disk.source.is_some());
        let _turn = if is_copied { Some(self.shared.makers.acquire().await?) } else { None };
        let (shared, instance) = (self.shared.clone(), instance.clone());
        Ok(blocking(move || store::make(shared.host.as_ref(), &instance)).await?)
    }

    /// Whether an earlier try has come so far that the guest runs. What has not is ended.
    async fn take_over_started(&mut self) -> Result<bool> {
        self.vmm = None;
        let Some(mut vmm) = self.find_vmm().await? else { return Ok(false) };
        let status = vmm.status().await?;
        if matches!(status.state, GuestState::Unconfigured | GuestState::Configured | GuestState::Ended) {
            vmm.end().await?;
            return Ok(false);
        }
        // The actor takes it over once more, as any running guest.
        Ok(true)
    }

    /// The VMM that an earlier agent has started, if it can be talked to. One that does not answer is ended.
    async fn find_vmm(&self) -> Result<Option<Vmm>> {
        let (shared, id) = (self.shared.clone(), self.id.clone());
        let Some(process) = blocking(move || shared.host.find_vmm(&id)).await? else { return Ok(None) };
        let pidfd = process.pidfd.try_clone()?;
        match Vmm::open(process).await {
            Ok(vmm) => Ok(Some(vmm)),
            Err(error) => {
                tracing::warn!(instance = %self.id, error = chain(&error), "ending a VMM that does not answer");
                blocking(move || crate::host::kill(&pidfd)).await?;
                Ok(None)
            }
        }
    }

    fn vmm(&mut self) -> Result<&mut Vmm> {
        self.vmm.as_mut().context("there is no VMM")
    }

    async fn configure(&mut self, instance: &Instance) -> Result<()> {
        let (shared, id) = (self.shared.clone(), self.id.clone());
        let opened = blocking(move || {
            Ok::<_, crate::host::HostError>([shared.host.kvm()?, shared.host.listener(&id)?])
        });
        let mut parcel = Vec::from(opened.await?);
        let boot = self.boot_source(instance, &mut parcel).await?;
        let shared = self.shared.clone();
        let size = shared
            .catalogue
            .get(&instance.instance_type)
            .with_context(|| format!("there is no instance type {} any more", instance.instance_type))?;
        let configure = Configure {
            kvm: Descriptor(0),
            cpus: u8::try_from(size.vcpus).context("more CPUs than a guest can have")?,
            memory: size.memory << 20,
            identity: Identity { uuid: uuid(&self.id), serial: None, asset_tag: Some(self.id.to_string()) },
            boot,
            listener: Some(Descriptor(1)),
            virtio_console: false,
            balloon: false,
            vsock: None,
        };
        self.vmm()?.call(Command::Configure(Box::new(configure)), &parcel).await?;
        Ok(())
    }

    /// Opens what the instance boots, and adds it to the descriptors that go with the message.
    pub(super) async fn boot_source(
        &mut self,
        instance: &Instance,
        parcel: &mut Vec<OwnedFd>,
    ) -> Result<BootSource> {
        let (kernel, initrd, command_line) = match &instance.boot {
            Some(files) => self.open_boot_files(files.clone()).await?,
            None => self.read_boot_disk(instance).await?,
        };
        let mut add = |descriptor| {
            parcel.push(descriptor);
            Descriptor(u32::try_from(parcel.len() - 1).unwrap_or(u32::MAX))
        };
        let (kernel, initrd) = (add(kernel), initrd.map(add));
        Ok(BootSource { kernel, initrd, command_line })
    }

    async fn open_boot_files(&self, files: BootFiles) -> Result<(OwnedFd, Option<OwnedFd>, String)> {
        let shared = self.shared.clone();
        let opened = blocking(move || {
            let kernel = shared.host.boot_file(&files.kernel)?;
            let initrd = files.initrd.as_deref().map(|path| shared.host.boot_file(path)).transpose()?;
            Ok::<_, crate::host::HostError>((kernel, initrd, files.command_line))
        });
        Ok(opened.await?)
    }

    /// Reads from the root disk what it boots now. No guest runs on it: there is none yet, or it waits in a reset.
    async fn read_boot_disk(&mut self, instance: &Instance) -> Result<(OwnedFd, Option<OwnedFd>, String)> {
        let (name, disk) = self.open_root(instance).await?;
        let read = boot_disk::read(&self.shared, disk).await;
        let source = read.with_context(|| format!("cannot boot from {name}"))?;
        let origin = &source.origin;
        tracing::debug!(instance = %self.id, disk = name, title = origin.title, kernel = origin.kernel, "boots");
        Ok((source.kernel.into(), source.initrd.map(OwnedFd::from), source.command_line))
    }

    /// Opens the root disk, which has this name.
    async fn open_root(&mut self, instance: &Instance) -> Result<(String, OwnedFd)> {
        if let Some(disk) = instance.instance_store.iter().find(|disk| disk.is_root()) {
            return Ok(("its instance store".to_owned(), self.open_store_disk(disk).await?));
        }
        let root = instance.block_devices.iter().find(|one| one.device_name == instance.root_device_name);
        let id = &root.context("there is no root volume to boot from")?.volume;
        Ok((id.to_string(), self.open_volume(id).await?))
    }

    /// Opens a volume, whose file is made if it is not there.
    async fn open_volume(&mut self, id: &VolumeId) -> Result<OwnedFd> {
        self.prepare_volume(id).await?;
        let (shared, volume) = (self.shared.clone(), id.clone());
        let opened = blocking(move || shared.volumes.open(&volume));
        opened.await.with_context(|| format!("cannot open {id}"))
    }

    async fn open_store_disk(&self, disk: &StoreDisk) -> Result<OwnedFd> {
        let (shared, id, name) = (self.shared.clone(), self.id.clone(), disk.name.clone());
        Ok(blocking(move || store::open(shared.host.as_ref(), &id, &name)).await?)
    }

    async fn attach_store_disk(&mut self, disk: &StoreDisk) -> Result<()> {
        let file = self.open_store_disk(disk).await?;
        self.attach_disk(&disk.name, file).await
    }

    async fn attach_volume(&mut self, id: &VolumeId) -> Result<()> {
        let file = self.open_volume(id).await?;
        self.attach_disk(id.as_str(), file).await?;
        self.disks.insert(id.clone());
        Ok(())
    }

    /// Gives the guest a disk. Its serial number is its name, without a dash.
    async fn attach_disk(&mut self, name: &str, file: OwnedFd) -> Result<()> {
        let serial = name.replace('-', "");
        let deadline = Instant::now() + LETTING_GO;
        let slot = loop {
            match self.vmm()?.attach_disk(name, &serial, false, &file).await {
                Err(VmmError::Protocol(ProtocolError::Refused(failure)))
                    if failure.code == FailureCode::Conflict && Instant::now() < deadline =>
                {
                    tokio::time::sleep(LETTING_GO / 100).await;
                }
                result => break result?,
            }
        };
        tracing::debug!(instance = %self.id, disk = name, slot, "attached");
        Ok(())
    }

    /// Gives a running guest the volumes that it is to have, takes those that it is to lose, and records what came of
    /// it.
    pub(super) async fn reconcile_volumes(&mut self, instance: &Instance) {
        for device in &instance.block_devices {
            let id = &device.volume;
            let Some(attachment) = self.record::<Volume>(id).and_then(|volume| volume.attachment.clone())
            else {
                continue;
            };
            let result = match (attachment.status, self.disks.contains(id)) {
                (AttachmentStatus::Attached, true) => Ok(()),
                (AttachmentStatus::Attaching, true) => self.change(id, attached).await,
                (AttachmentStatus::Attaching | AttachmentStatus::Attached, false) => {
                    match self.attach_volume(id).await {
                        Ok(()) => self.change(id, attached).await,
                        Err(error) => Err(error),
                    }
                }
                (AttachmentStatus::Detaching { force }, true) => self.ask_for(id.as_str(), force).await,
                (AttachmentStatus::Detaching { .. }, false) => self.change(id, detach).await,
            };
            if let Err(error) = result {
                tracing::warn!(instance = %self.id, volume = %id, error = chain(error.as_ref()), "cannot do so");
            }
        }
    }

    /// Asks the guest to let go of a device, or takes it away. An event tells when it has.
    pub(super) async fn ask_for(&mut self, id: &str, force: bool) -> Result<()> {
        self.vmm()?.say(Command::Detach { id: id.to_owned(), force }).await?;
        Ok(())
    }

    /// Records a change of a volume or an interface.
    pub(super) async fn change<Id: Clone + Send + 'static>(
        &self,
        id: &Id,
        change: fn(&mut Draft, &Id),
    ) -> Result<()> {
        let (shared, id) = (self.shared.clone(), id.clone());
        let changed = blocking(move || {
            shared.state.change(|draft| -> Result<(), StoreError> {
                change(draft, &id);
                Ok(())
            })
        });
        Ok(changed.await?)
    }

    /// Lets the guest reboot.
    pub(super) async fn reboot(&mut self, instance: &Instance) -> Result<Option<Observation>> {
        pass("reboot.before");
        if let Err(seen) = self.adopt(instance).await {
            return Ok(Some(seen));
        }
        let timeout_ms = u64::try_from(self.shared.reboot_timeout.as_millis()).unwrap_or(u64::MAX);
        self.vmm()?.say(Command::Reboot { timeout_ms }).await?;
        pass("reboot.asked");
        Ok(None)
    }

    /// Presses the power button until the guest is off or its time is over.
    pub(super) async fn press_button(
        &mut self,
        instance: &Instance,
        deadline: Timestamp,
    ) -> Option<Observation> {
        let step = Step::PressButton { deadline };
        pass("press-button.before");
        let until_then = || Duration::try_from(deadline.duration_since(Timestamp::now())).unwrap_or_default();
        // The host's clock may be set back meanwhile.
        let latest = Instant::now() + until_then();
        loop {
            if let Err(seen) = self.adopt(instance).await {
                return Some(seen);
            }
            let rest = until_then().min(latest.saturating_duration_since(Instant::now()));
            if rest.is_zero() {
                return Some(Observation::Failed(step, "The guest has not switched itself off".into()));
            }
            match self.vmm().ok()?.say(Command::PowerButton).await {
                Ok(()) => pass("press-button.pressed"),
                Err(error) => tracing::debug!(instance = %self.id, error = chain(&error), "the power button"),
            }
            match self.wait(Some(Instant::now() + rest.min(BUTTON_INTERVAL))).await {
                Woken::Seen(Observation::PoweredOff) => return Some(Observation::Done(step)),
                Woken::Seen(other) => return Some(other),
                Woken::Time => {}
                // The record says whether that matters.
                Woken::Changed => {
                    let now = self.record::<Instance>(&self.id)?;
                    if now.lifecycle.step.as_ref() != Some(&step) {
                        return None;
                    }
                }
            }
        }
    }

    /// Ends the VMM, if there is one, and removes what it leaves.
    pub(super) async fn end_vmm(&mut self) -> Result<()> {
        pass("end-vmm.before");
        let vmm = match self.vmm.take() {
            Some(vmm) => Some(vmm),
            None => self.find_vmm().await?,
        };
        if let Some(mut vmm) = vmm {
            self.keep_console(&mut vmm).await;
            pass("end-vmm.console-kept");
            vmm.end().await?;
        }
        pass("end-vmm.ended");
        self.disks.clear();
        self.interfaces.clear();
        let (shared, id) = (self.shared.clone(), self.id.clone());
        blocking(move || shared.host.remove_store(&id)).await?;
        pass("end-vmm.store-removed");
        let (shared, id) = (self.shared.clone(), self.id.clone());
        blocking(move || shared.host.forget_vmm(&id)).await?;
        pass("end-vmm.forgotten");
        Ok(())
    }

    /// What the guest has said last can be read after its end. That this fails keeps nobody from ending it.
    async fn keep_console(&mut self, vmm: &mut Vmm) {
        let kept = match vmm.console().await {
            Ok(bytes) => {
                let (shared, id) = (self.shared.clone(), self.id.clone());
                blocking(move || shared.consoles.keep(&id, &bytes)).await
            }
            Err(error) => Err(io::Error::other(error)),
        };
        if let Err(error) = kept {
            tracing::warn!(instance = %self.id, %error, "the console's last output is lost");
        }
    }

    /// Removes the volumes that go with the instance.
    pub(super) async fn release_volumes(&mut self, instance: &Instance) -> Result<()> {
        pass("release-volumes.before");
        for device in instance.block_devices.iter().filter(|device| device.delete_on_termination) {
            let (shared, volume) = (self.shared.clone(), device.volume.clone());
            let removed = blocking(move || shared.volumes.remove(&volume));
            removed.await.with_context(|| format!("cannot remove {}", device.volume))?;
        }
        pass("release-volumes.removed");
        Ok(())
    }
}

/// The product UUID that the guest sees. It begins with `ec2`, by which guests recognise EC2, and stays the same for
/// life.
fn uuid(id: &InstanceId) -> String {
    let hash = Sha256::digest(id.as_str());
    let mut digits = String::from("ec2");
    for byte in hash.iter().take(15) {
        digits.push_str(&format!("{byte:02x}"));
    }
    digits.truncate(32);
    let part = |range: std::ops::Range<usize>| digits.get(range).unwrap_or_default();
    format!("{}-{}-{}-{}-{}", part(0..8), part(8..12), part(12..16), part(16..20), part(20..32))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_uuid_is_ec2_and_stays() {
        let id: InstanceId = "i-0123456789abcdef0".parse().unwrap();
        assert_eq!(uuid(&id), uuid(&id));
        assert_ne!(uuid(&id), uuid(&InstanceId::random()));
        assert!(uuid(&id).starts_with("ec2"));
        assert_eq!(uuid(&id).split('-').map(str::len).collect::<Vec<_>>(), [8, 4, 4, 4, 12]);
    }
}
