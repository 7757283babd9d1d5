//! How each [`Step`] is done. Each can be done again after it was done in part.

use std::io;
use std::os::fd::OwnedFd;
use std::time::Duration;

use anyhow::{Context, Result};
use innkeeper_protocol::{BootSource, Command, Configure, Descriptor, Identity, State as GuestState};
use jiff::Timestamp;
use sha2::{Digest, Sha256};
use tokio::time::Instant;

use super::actor::{Actor, Woken, blocking};
use super::failpoint::pass;
use super::lifecycle::Observation;
use super::vmm::Vmm;
use super::{boot_disk, chain};
use crate::ids::InstanceId;
use crate::records::{BootFiles, Instance, Step};
use crate::state::Draft;
use crate::store::StoreError;

/// How often the power button is pressed: a guest that was busy booting has not heard it.
const BUTTON_INTERVAL: Duration = Duration::from_secs(10);

impl Actor {
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
        self.attach_disks(instance).await?;
        pass("start-vmm.attached");
        self.attach_interfaces(instance).await?;
        pass("start-vmm.connected");
        self.vmm()?.say(Command::Start).await?;
        pass("start-vmm.started");
        Ok(())
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

    pub(super) fn vmm(&mut self) -> Result<&mut Vmm> {
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
        let id = id.clone();
        self.record_change(move |draft| change(draft, &id)).await
    }

    /// Records any change.
    pub(super) async fn record_change(&self, change: impl FnOnce(&mut Draft) + Send + 'static) -> Result<()> {
        let shared = self.shared.clone();
        let changed = blocking(move || {
            shared.state.change(|draft| -> Result<(), StoreError> {
                change(draft);
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
        let mut next = Instant::now();
        loop {
            if let Err(seen) = self.adopt(instance).await {
                return Some(seen);
            }
            let rest = until_then().min(latest.saturating_duration_since(Instant::now()));
            if rest.is_zero() {
                return Some(Observation::Failed(step, "The guest has not switched itself off".into()));
            }
            // Not each time that something has changed.
            if next <= Instant::now() {
                match self.vmm().ok()?.say(Command::PowerButton).await {
                    Ok(()) => pass("press-button.pressed"),
                    Err(error) => {
                        tracing::debug!(instance = %self.id, error = chain(&error), "the power button");
                    }
                }
                next = Instant::now() + BUTTON_INTERVAL;
            }
            match self.wait(Some(next.min(Instant::now() + rest))).await {
                Woken::Seen(Observation::PoweredOff) => return Some(Observation::Done(step)),
                Woken::Seen(other) => return Some(other),
                Woken::Time => {}
                // The record says whether that matters.
                Woken::Changed => {
                    let now = self.record::<Instance>(&self.id)?;
                    if now.lifecycle.step.as_ref() != Some(&step) {
                        return None;
                    }
                    // The guest still writes, and a snapshot is of the moment when it was asked for.
                    self.reconcile_layers().await;
                }
            }
        }
    }

    /// Ends the VMM, if there is one, and removes what it leaves.
    pub(super) async fn end_vmm(&mut self, instance: &Instance) -> Result<()> {
        pass("end-vmm.before");
        let vmm = match self.vmm.take() {
            Some(vmm) => Some(vmm),
            None => self.find_vmm().await?,
        };
        if let Some(mut vmm) = vmm {
            self.keep_console(&mut vmm).await;
            pass("end-vmm.console-kept");
            // What is known of its disks goes with it.
            if let Ok(status) = vmm.end_guest().await {
                self.note_impairments(&status).await?;
            }
            vmm.quit().await?;
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
        self.settle_volumes(instance).await;
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
