//! What a disk boots: read here if its file system is one that is read here, else by a guest that is thrown away
//! ([`innkeeper_images::boot::reader`]).

use std::fs::File;
use std::io::{self, Read};
use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use innkeeper_block::{Backend, Layered, layered};
use innkeeper_images::boot::{self, BootSource, reader};
use innkeeper_protocol::{BootSource as Boot, Command, Configure, Descriptor, Happening, Identity, Limits};
use tokio::sync::oneshot;
use tokio::time::timeout;

use super::Shared;
use super::actor::blocking;
use super::vmm::{DiskFiles, NewDisk, Vmm, VmmError};
use crate::host::VmmProcess;

/// How long a guest may take to read a disk. On a host with hardware support it takes less than a second.
const PATIENCE: Duration = Duration::from_secs(120);

/// The longest command line of the guest that reads disks, in bytes.
const MAX_COMMAND_LINE: u64 = 2048;

/// A stack of layers, to be read from.
struct Stack(Layered);

impl boot::Disk for Stack {
    fn size(&self) -> io::Result<u64> {
        Ok(self.0.capacity())
    }

    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        self.0.read_at(buffer, offset)
    }
}

/// Reads what a disk boots. Nobody may write to it meanwhile.
///
/// # Errors
/// It cannot be booted, or cannot be read here and there is no guest to do so.
pub async fn read(shared: &Arc<Shared>, disk: DiskFiles) -> Result<BootSource> {
    let turn = Arc::clone(&shared.boot_readers).acquire_owned().await?;
    let (found, disk) = blocking(move || {
        // Held to the end, also when nobody waits for it any more.
        let _turn = turn;
        (find(&disk), disk)
    })
    .await;
    match found {
        Err(error) if matches!(error.downcast_ref(), Some(boot::Error::NeedsGuest { .. })) => {
            let Some(directory) = shared.boot_reader.clone() else {
                bail!(
                    "{error}: build it with `innkeeper-images build boot-reader`, and name its directory in boot-reader"
                );
            };
            tracing::debug!(reason = %error, "a guest is to read the disk");
            by_guest(shared, directory.into(), disk).await.context(error)
        }
        found => found,
    }
}

/// The same without a guest. Blocks.
pub fn find(disk: &DiskFiles) -> Result<BootSource> {
    match disk {
        DiskFiles::Raw(file) => Ok(boot::find(&File::from(file.try_clone()?))?),
        DiskFiles::Layers(layers) => {
            let copy = |layer: &layered::Layer| {
                Ok(layered::Layer { data: layer.data.try_clone()?, map: layer.map.try_clone()? })
            };
            let layers = layers.iter().map(copy).collect::<io::Result<_>>()?;
            Ok(boot::find(&Stack(Layered::open_still(layers)?))?)
        }
    }
}

/// Has a guest read a disk. It ends when nobody waits for it any more.
async fn by_guest(shared: &Arc<Shared>, directory: Arc<Path>, disk: DiskFiles) -> Result<BootSource> {
    let _turn = shared.boot_guests.acquire().await?;
    let (waiting, gone) = oneshot::channel::<()>();
    let shared = Arc::clone(shared);
    let running = tokio::spawn(async move {
        let guest = Guest::start(&shared, &directory).await?;
        guest.run(disk, gone).await
    });
    let result = running.await;
    drop(waiting);
    result?
}

/// A guest that reads disks.
struct Guest {
    vmm: Vmm,
    answer: OwnedFd,
}

impl Guest {
    async fn start(shared: &Arc<Shared>, directory: &Arc<Path>) -> Result<Self> {
        let (shared, directory) = (Arc::clone(shared), Arc::clone(directory));
        let opened = move || -> Result<(VmmProcess, OwnedFd, [OwnedFd; 3], String)> {
            let host = &shared.host;
            let mut command_line = String::new();
            let path = directory.join("command-line");
            let mut file = File::from(host.boot_file(&path)?).take(MAX_COMMAND_LINE);
            let read = file.read_to_string(&mut command_line);
            read.with_context(|| format!("cannot read {}", path.display()))?;
            let (kernel, initrd) = (directory.join("vmlinux"), directory.join("initrd.img"));
            let descriptors = [host.kvm()?, host.boot_file(&kernel)?, host.boot_file(&initrd)?];
            let answer = host.scratch_file(reader::ANSWER_DISK)?;
            Ok((host.start_helper()?, answer, descriptors, command_line.trim().to_owned()))
        };
        let (process, answer, descriptors, command_line) = blocking(opened).await?;
        let mut vmm = Vmm::open(process).await?;
        vmm.say(Command::Events { after: 0 }).await?;
        let configure = Configure {
            kvm: Descriptor(0),
            cpus: 1,
            memory: reader::MEMORY,
            identity: Identity {
                uuid: uuid::Builder::from_random_bytes(rand::random()).into_uuid().to_string(),
                serial: None,
                asset_tag: None,
            },
            boot: Boot { kernel: Descriptor(1), initrd: Some(Descriptor(2)), command_line },
            listener: None,
            virtio_console: false,
            balloon: false,
            vsock: None,
        };
        vmm.call(Command::Configure(Box::new(configure)), &descriptors).await?;
        Ok(Self { vmm, answer })
    }

    /// Lets it read a disk, until somebody is `gone`.
    async fn run(mut self, disk: DiskFiles, gone: oneshot::Receiver<()>) -> Result<BootSource> {
        // Of the one that its instance has, which stands still, or not at all.
        let new = NewDisk { id: "disk", serial: "", is_still: true, limits: Limits::default() };
        self.vmm.attach_disk(new, &disk).await?;
        let answer = DiskFiles::Raw(self.answer.try_clone()?);
        self.vmm.attach_disk(NewDisk { id: "answer", is_still: false, ..new }, &answer).await?;
        self.vmm.say(Command::Start).await?;
        tokio::select! {
            ended = timeout(PATIENCE, until_the_end(&mut self.vmm)) => if let Ok(Err(error)) = ended {
                tracing::debug!(%error, "the guest that reads a disk");
            },
            // Nobody waits for it any more.
            _ = gone => {}
        }
        self.vmm.end().await?;
        // It says whether it has come to its end.
        let answer = File::from(self.answer);
        Ok(blocking(move || reader::answer(&answer)).await?)
    }
}

/// Waits until the guest is off. One whose kernel has crashed comes again, to say so.
async fn until_the_end(vmm: &mut Vmm) -> Result<(), VmmError> {
    loop {
        match vmm.event().await?.what {
            Happening::Ended(_) => return Ok(()),
            Happening::BootSourceWanted { .. } => vmm.say(Command::Boot { source: None }).await?,
            _ => {}
        }
    }
}
