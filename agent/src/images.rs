//! The files of images: what a directory that an image is registered from has in it, and the copies that the agent
//! keeps.
//!
//! An image directory is what a recipe of the `images` package makes:
//!
//! | file | |
//! | --- | --- |
//! | `vmlinux` or `vmlinuz` | the kernel: an uncompressed ELF file, which is preferred, or a bzImage |
//! | `initrd.img` | the initial RAM file system, if the kernel needs one |
//! | `disk.raw` | the root disk, if there is one |
//! | `disk.manifest` | the disk's checksums, if it was imported: the copy has to have them |
//! | `command-line` | the kernel's command line, on one line, if the usual one does not do |
//!
//! Without a kernel, the disk says what its instances boot, each time that they start ([`innkeeper_images::boot`]). Other
//! files are of no interest. The agent may read below the directories of the setting `image-directories` and nowhere
//! else, and follows no symbolic link there.
//!
//! The disk becomes a layer ([`crate::volumes`]). The other files are copied to a directory of their own below `images` in
//! the state directory, which is locked until a record refers to it. What no record refers to and nobody has locked is
//! garbage ([`clean_up`]), whenever it was left.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Read};
use std::os::fd::OwnedFd;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use innkeeper_images::import::{MANIFEST, Manifest};
use nix::errno::Errno;
use nix::fcntl::{OFlag, OpenHow, ResolveFlag, openat, openat2};
use nix::sys::stat::Mode;

use crate::ids::ImageId;
use crate::records::{BootFiles, Image, Instance, InstanceState, Snapshot, StoreDisk};
use crate::state::{State, World};
use crate::store::StoreError;
use crate::volumes::copy::copy_sparse;
use crate::volumes::{self, NewLayer, Volumes};

/// The kernel's name in an image directory.
const KERNELS: [&str; 2] = ["vmlinux", "vmlinuz"];
const INITRD: &str = "initrd.img";
const DISK: &str = "disk.raw";
const COMMAND_LINE: &str = "command-line";

/// The longest manifest, in bytes: a disk of 12 TiB without a hole has one.
const MAX_MANIFEST: u64 = 256 << 20;

/// The most that Linux takes on x86, without the zero at the end.
const MAX_COMMAND_LINE: usize = 2047;

/// The command line for an image that says none: a serial console, little chatter, and no time spent on hardware that
/// the machine does not have.
const USUAL_COMMAND_LINE: &str = "console=ttyS0 quiet panic=1 8250.nr_uarts=1 tsc=reliable random.trust_cpu=on \
                                  cryptomgr.notests i8042.noaux i8042.nokbd";

/// What comes behind it for one with a disk.
const ROOT: &str = "root=/dev/vda1";

/// How many images are copied at once. Each takes the disk and a thread, for minutes if it is large.
const MAX_COPIES: usize = 4;

/// Held by who makes a directory until it is locked, and by who removes one: no new one passes for garbage.
static CLAIMING: Mutex<()> = Mutex::new(());

/// Why an image's files cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// It is not the operator's wish that this is read.
    #[error(
        "{0} is not below a directory that images may be registered from: the setting image-directories has {1}"
    )]
    Forbidden(String, String),
    /// Something is not there that has to be, or is not as it has to be.
    #[error("{0}: {1}")]
    Unusable(PathBuf, String),
    /// As many images as may be are being copied already.
    #[error("{MAX_COPIES} images are being copied already: try again when one of them is registered")]
    Busy,
    /// The host failed.
    #[error("cannot {what} {path}")]
    Io {
        /// Such as `copy`.
        what: &'static str,
        /// Which file.
        path: PathBuf,
        /// Why.
        #[source]
        cause: io::Error,
    },
    /// Its disk cannot become a layer.
    #[error("cannot take the disk over")]
    Volumes(#[from] volumes::Error),
    /// It cannot be recorded.
    #[error("cannot record it")]
    Store(#[source] StoreError),
}

impl Error {
    /// Whether it is for the client to do something about it.
    pub fn is_the_clients(&self) -> bool {
        matches!(self, Self::Forbidden(..) | Self::Unusable(..))
    }
}

fn io_error(what: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Error {
    move |cause| Error::Io { what, path: path.to_owned(), cause }
}

/// The images that are being copied.
#[derive(Debug)]
pub struct Copying {
    count: Arc<AtomicUsize>,
    /// How long a request waits for one. Clients wait for a minute.
    patience: Duration,
}

impl Default for Copying {
    fn default() -> Self {
        Self { count: Arc::default(), patience: Duration::from_secs(30) }
    }
}

/// The right to copy one, until it is dropped.
#[derive(Debug)]
pub struct Turn {
    count: Arc<AtomicUsize>,
    patience: Duration,
}

impl Copying {
    /// A turn, if there is one.
    pub fn begin(&self) -> Result<Turn, Error> {
        let add = |count: usize| (count < MAX_COPIES).then_some(count + 1);
        match self.count.fetch_update(Ordering::Relaxed, Ordering::Relaxed, add) {
            Ok(_) => Ok(Turn { count: Arc::clone(&self.count), patience: self.patience }),
            Err(_) => Err(Error::Busy),
        }
    }

    /// Whose requests wait that long.
    #[cfg(test)]
    pub fn with_patience(patience: Duration) -> Self {
        Self { patience, ..Self::default() }
    }
}

impl Turn {
    /// How long the request waits.
    pub fn patience(&self) -> Duration {
        self.patience
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        self.count.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Images whose files an agent was copying when it ended cannot be made. To be called at the start.
pub fn fail_interrupted(state: &State) -> Result<(), StoreError> {
    state.change(|draft| {
        let interrupted: Vec<_> = draft.all::<Image>().filter(|image| image.is_copied).cloned().collect();
        for image in interrupted {
            tracing::warn!(id = %image.id, "the agent ended while the image's files were copied");
            draft.update::<Image>(&image.id, |image| {
                image.fail("the agent ended while the image's files were copied: deregister it, and register it again");
            });
        }
        Ok(())
    })
}

/// A file of an image directory.
#[derive(Debug)]
struct Artefact {
    name: &'static str,
    file: File,
    length: u64,
}

/// An image directory, with its files opened.
#[derive(Debug)]
pub struct Source {
    /// Without symbolic links.
    pub directory: PathBuf,
    /// What is booted, if that is not for the disk to say.
    boot: Option<Boot>,
    disk: Option<Artefact>,
    /// What is known of the disk, if it was imported.
    manifest: Option<Manifest>,
}

/// What is booted.
#[derive(Debug)]
struct Boot {
    kernel: Artefact,
    initrd: Option<Artefact>,
    command_line: String,
}

impl Source {
    /// Opens an image directory, which must be below one of the allowed ones. `command_line` takes the place of the
    /// directory's own.
    pub fn open(location: &str, allowed: &[PathBuf], command_line: Option<&str>) -> Result<Self, Error> {
        let forbidden = || {
            let allowed: Vec<_> = allowed.iter().map(|path| path.display().to_string()).collect();
            Error::Forbidden(location.to_owned(), allowed.join(", "))
        };
        if !Path::new(location).is_absolute() {
            return Err(forbidden());
        }
        // What cannot be found is not told from what must not be read: that would tell what the host has.
        let directory = fs::canonicalize(location).map_err(|_| forbidden())?;
        let opened = allowed.iter().find_map(|allowed| {
            let allowed = fs::canonicalize(allowed).ok()?;
            let below = directory.strip_prefix(&allowed).ok().filter(|below| *below != Path::new(""))?;
            Some(open_below(&allowed, below))
        });
        let opened = match opened.ok_or_else(forbidden)? {
            Ok(opened) => opened,
            Err(Errno::ENOTDIR) => return Err(Error::Unusable(directory, "it is not a directory".into())),
            // Somebody changes things while we look.
            Err(Errno::ELOOP | Errno::EXDEV | Errno::ENOENT | Errno::EAGAIN) => return Err(forbidden()),
            Err(error) => return Err(io_error("open", &directory)(error.into())),
        };
        let artefact = |name| artefact(&opened, &directory, name);
        let mut kernel = None;
        for name in KERNELS {
            if kernel.is_none() {
                kernel = artefact(name)?;
            }
        }
        let initrd = artefact(INITRD)?;
        let disk = artefact(DISK)?;
        let own = artefact(COMMAND_LINE)?;
        let manifest = match artefact(MANIFEST)?.filter(|_| disk.is_some()) {
            Some(manifest) => Some(read_manifest(&directory.join(MANIFEST), manifest)?),
            None => None,
        };
        let Some(kernel) = kernel else {
            let reason = if disk.is_none() {
                format!("there is no kernel ({}) and no disk ({DISK}) in it", KERNELS.join(" or "))
            } else if initrd.is_some() || own.is_some() || command_line.is_some() {
                "an initial RAM disk or a command line goes with a kernel; a disk that boots by itself says its own".into()
            } else {
                return Ok(Self { directory, boot: None, disk, manifest });
            };
            return Err(Error::Unusable(directory, reason));
        };
        let command_line = match (command_line, own) {
            (Some(text), _) => check_command_line(&directory, text)?,
            (None, Some(own)) => {
                let mut text = String::new();
                let path = directory.join(COMMAND_LINE);
                let read = own.file.take(MAX_COMMAND_LINE as u64 + 2).read_to_string(&mut text);
                read.map_err(io_error("read", &path))?;
                check_command_line(&path, &text)?
            }
            (None, None) if disk.is_some() => format!("{USUAL_COMMAND_LINE} {ROOT}"),
            (None, None) => USUAL_COMMAND_LINE.to_owned(),
        };
        Ok(Self { directory, boot: Some(Boot { kernel, initrd, command_line }), disk, manifest })
    }

    /// The size of the disk in GiB, rounded up; at least 1, also without a disk.
    pub fn volume_size(&self) -> u32 {
        let length = self.disk.as_ref().map_or(0, |disk| disk.length);
        u32::try_from(length.div_ceil(1 << 30)).unwrap_or(u32::MAX).max(1)
    }

    /// The size of the disk in bytes, in whole sectors; 1 GiB without a disk.
    pub fn disk_size(&self) -> u64 {
        let length = self.disk.as_ref().map_or(1 << 30, |disk| disk.length);
        length.checked_next_multiple_of(512).unwrap_or(length)
    }

    /// Whether there is a disk.
    pub fn has_disk(&self) -> bool {
        self.disk.is_some()
    }

    /// Makes a layer of the disk, and copies everything else to a new directory below `images`. All is on the disk when this
    /// returns, and is no garbage as long as the copy is there.
    pub fn copy(&self, images: &Path, id: &ImageId, volumes: &Volumes) -> Result<Copy, Error> {
        DirBuilder::new().recursive(true).mode(0o700).create(images).map_err(io_error("create", images))?;
        // The number tells it from an earlier image of this id, whose instances may still need its files.
        let directory = images.join(format!("{id}.{:016x}", rand::random::<u64>()));
        let claiming = CLAIMING.lock().unwrap_or_else(PoisonError::into_inner);
        DirBuilder::new().mode(0o700).create(&directory).map_err(io_error("create", &directory))?;
        let lock = File::open(&directory).map_err(io_error("open", &directory))?;
        lock.lock().map_err(io_error("lock", &directory))?;
        drop(claiming);
        let mut copy = Copy {
            boot: self.boot.as_ref().map(|boot| BootFiles {
                kernel: directory.join(boot.kernel.name),
                initrd: boot.initrd.as_ref().map(|initrd| directory.join(initrd.name)),
                command_line: boot.command_line.clone(),
            }),
            disk: None,
            directory,
            lock,
        };
        let copied = self.copy_files(&copy).and_then(|()| {
            copy.disk = self.disk.as_ref().map(|disk| self.copy_disk(disk, volumes)).transpose()?;
            Ok(())
        });
        match copied {
            Ok(()) => Ok(copy),
            Err(error) => {
                copy.discard();
                Err(error)
            }
        }
    }

    /// Has `check` look whether a disk that is to boot by itself can, or say why not.
    pub fn check_boots(&self, check: impl FnOnce(File) -> Result<(), String>) -> Result<(), Error> {
        let (None, Some(disk)) = (&self.boot, &self.disk) else { return Ok(()) };
        let path = self.directory.join(DISK);
        let file = disk.file.try_clone().map_err(io_error("open", &path))?;
        check(file).map_err(|reason| Error::Unusable(path, reason))
    }

    fn copy_files(&self, copy: &Copy) -> Result<(), Error> {
        let boot = self.boot.as_ref();
        let (kernel, initrd) = (boot.map(|boot| &boot.kernel), boot.and_then(|boot| boot.initrd.as_ref()));
        for artefact in [kernel, initrd].into_iter().flatten() {
            let path = copy.directory.join(artefact.name);
            let copied = || {
                let target = OpenOptions::new().write(true).create_new(true).mode(0o400).open(&path)?;
                copy_sparse(&artefact.file, &target)?;
                if target.metadata()?.len() != artefact.length {
                    return Err(io::Error::other("it has changed meanwhile; wait until it is complete"));
                }
                target.sync_all()
            };
            copied().map_err(io_error("copy", &path))?;
        }
        let parent = copy.directory.parent().unwrap_or(&copy.directory);
        copy.lock.sync_all().map_err(io_error("write", &copy.directory))?;
        File::open(parent).and_then(|parent| parent.sync_all()).map_err(io_error("write", parent))
    }

    fn copy_disk(&self, disk: &Artefact, volumes: &Volumes) -> Result<NewLayer, Error> {
        let path = self.directory.join(DISK);
        volumes.import(&disk.file, |copy| {
            if copy.metadata().map_err(io_error("look at", &path))?.len() != disk.length {
                let changed = io::Error::other("it has changed meanwhile; wait until it is complete");
                return Err(io_error("copy", &path)(changed));
            }
            // The copy, so that it is what was imported whatever has happened since.
            let Some(manifest) = &self.manifest else { return Ok(()) };
            manifest.verify(copy).map_err(|error| Error::Unusable(path.clone(), error.to_string()))
        })
    }
}

/// Opens the directory `below` an allowed one. Whoever may write there cannot put a link to elsewhere in its way, not
/// even after the path was looked at.
fn open_below(allowed: &Path, below: &Path) -> nix::Result<OwnedFd> {
    let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
    let allowed = nix::fcntl::open(allowed, flags, Mode::empty())?;
    let resolve = ResolveFlag::RESOLVE_BENEATH | ResolveFlag::RESOLVE_NO_SYMLINKS;
    openat2(allowed, below, OpenHow::new().flags(flags).resolve(resolve))
}

/// Opens a file of an image directory, if it is there. `path` is the directory's, for errors.
fn artefact(directory: &OwnedFd, path: &Path, name: &'static str) -> Result<Option<Artefact>, Error> {
    let path = path.join(name);
    // Without waiting for the other end of what might be a pipe.
    let flags = OFlag::O_RDONLY | OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK | OFlag::O_CLOEXEC;
    let file = match openat(directory, name, flags, Mode::empty()) {
        Ok(file) => File::from(file),
        Err(Errno::ENOENT) => return Ok(None),
        Err(Errno::ELOOP) => {
            return Err(Error::Unusable(path, "it is a symbolic link, and has to be the file itself".into()));
        }
        Err(error) => return Err(io_error("open", &path)(error.into())),
    };
    let metadata = file.metadata().map_err(io_error("look at", &path))?;
    if !metadata.is_file() || metadata.len() == 0 {
        return Err(Error::Unusable(path, "it is empty or not a regular file".into()));
    }
    Ok(Some(Artefact { name, file, length: metadata.len() }))
}

/// What an import has noted of its disk.
fn read_manifest(path: &Path, artefact: Artefact) -> Result<Manifest, Error> {
    if artefact.length > MAX_MANIFEST {
        return Err(Error::Unusable(path.to_owned(), format!("it is longer than {MAX_MANIFEST} bytes")));
    }
    let mut text = String::new();
    let read = artefact.file.take(MAX_MANIFEST).read_to_string(&mut text);
    read.map_err(io_error("read", path))?;
    Manifest::parse(&text).map_err(|error| Error::Unusable(path.to_owned(), error.to_string()))
}

fn check_command_line(path: &Path, text: &str) -> Result<String, Error> {
    let text = text.trim();
    if text.len() > MAX_COMMAND_LINE || text.chars().any(char::is_control) {
        let reason =
            format!("the command line must be one line of at most {MAX_COMMAND_LINE} printable characters");
        return Err(Error::Unusable(path.to_owned(), reason));
    }
    Ok(text.to_owned())
}

/// An image's files, in the state directory.
#[derive(Debug)]
pub struct Copy {
    /// What its instances boot, if their disk does not say.
    pub boot: Option<BootFiles>,
    /// The root disk.
    pub disk: Option<NewLayer>,
    directory: PathBuf,
    /// Held until a record refers to it.
    lock: File,
}

impl Copy {
    /// Removes it again.
    pub fn discard(self) {
        if let Err(error) = fs::remove_dir_all(&self.directory) {
            let directory = self.directory.display();
            tracing::warn!(%directory, %error, "an image's files stay behind until the next start");
        }
    }
}

/// Where the agent keeps the files of images.
pub fn directory(state_directory: &Path) -> PathBuf {
    state_directory.join("images")
}

/// Whether a record refers to a file in a directory. An image's files stay as long as one of its instances could boot
/// from them, even if the image is gone.
pub fn is_needed(world: &World, directory: &Path) -> bool {
    let boots = |boot: &Option<BootFiles>| {
        boot.as_ref().is_some_and(|boot| {
            boot.kernel.starts_with(directory)
                || boot.initrd.as_ref().is_some_and(|initrd| initrd.starts_with(directory))
        })
    };
    // Of an agent of before there were layers.
    let holds = |file: &Option<PathBuf>| file.as_ref().is_some_and(|file| file.starts_with(directory));
    let has_root = |disks: &[StoreDisk]| disks.iter().any(|disk| holds(&disk.source));
    let is_alive = |instance: &&Arc<Instance>| instance.lifecycle.state != InstanceState::Terminated;
    world.all::<Image>().any(|image| boots(&image.boot) || has_root(image.root_store.as_slice()))
        || world.all::<Snapshot>().any(|snapshot| holds(&snapshot.file))
        || world
            .all::<Instance>()
            .filter(is_alive)
            .any(|instance| boots(&instance.boot) || has_root(&instance.instance_store))
}

/// Removes what no record refers to. To be called at the start, and when an image or an instance is gone.
pub fn clean_up(images: &Path, state: &State) -> io::Result<()> {
    let entries = match fs::read_dir(images) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        entries => entries?,
    };
    for entry in entries {
        let entry = entry?;
        // Whatever else there is, we have not made it.
        if !entry.file_type()?.is_dir() {
            continue;
        }
        let path = entry.path();
        // One that cannot be removed must not keep the others.
        match remove_unneeded(&path, state) {
            Ok(false) => {}
            Ok(true) => {
                tracing::info!(directory = %path.display(), "removed the files of an image that nobody needs any more");
            }
            Err(error) => {
                tracing::warn!(directory = %path.display(), %error, "an image's files stay for now")
            }
        }
    }
    Ok(())
}

/// Removes an image's directory if no record refers to it, and says whether it has.
fn remove_unneeded(path: &Path, state: &State) -> io::Result<bool> {
    let _claiming = CLAIMING.lock().unwrap_or_else(PoisonError::into_inner);
    let lock = File::open(path)?;
    // Whoever has the lock is about to record it. Who has recorded it before we had the lock is in the state now.
    if lock.try_lock().is_err() || is_needed(&state.read(), path) {
        return Ok(false);
    }
    fs::remove_dir_all(path)?;
    Ok(true)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    /// A directory with `import/image` in it, which has these files.
    fn lab(files: &[&str]) -> (tempfile::TempDir, PathBuf) {
        let lab = tempfile::tempdir().unwrap();
        let image = lab.path().join("import/image");
        fs::create_dir_all(&image).unwrap();
        for name in files {
            fs::write(image.join(name), name).unwrap();
        }
        (lab, image)
    }

    /// Volumes that nobody has recorded anything of.
    fn volumes(lab: &tempfile::TempDir) -> Volumes {
        let state = State::open(Arc::new(crate::store::memory::Memory::default())).unwrap();
        Volumes::new(Arc::new(state), lab.path())
    }

    fn open(lab: &Path, location: &Path) -> Result<Source, String> {
        let allowed = [lab.join("import"), lab.join("nowhere")];
        Source::open(location.to_str().unwrap(), &allowed, None).map_err(|error| error.to_string())
    }

    #[test]
    fn an_image_directory_has_a_kernel_and_maybe_more() {
        let (lab, image) = lab(&["vmlinux", "initrd.img", "disk.raw", "command-line", "README"]);
        let source = open(lab.path(), &image).unwrap();
        let boots =
            |source: &Source| source.boot.as_ref().map(|boot| (boot.kernel.name, boot.command_line.clone()));
        assert_eq!((boots(&source), source.volume_size()), (Some(("vmlinux", "command-line".to_owned())), 1));
        File::options().write(true).open(image.join("disk.raw")).unwrap().set_len((2 << 30) + 1).unwrap();
        fs::remove_file(image.join("command-line")).unwrap();
        fs::rename(image.join("vmlinux"), image.join("vmlinuz")).unwrap();
        let source = open(lab.path(), &image).unwrap();
        let (kernel, command_line) = boots(&source).unwrap();
        assert_eq!((kernel, source.volume_size()), ("vmlinuz", 3));
        assert!(command_line.ends_with("root=/dev/vda1"), "{command_line}");
        let allowed = [lab.path().join("import")];
        let own = Source::open(image.to_str().unwrap(), &allowed, Some("quiet")).unwrap();
        assert_eq!(boots(&own).unwrap().1, "quiet");
        let two = Source::open(image.to_str().unwrap(), &allowed, Some("a\nb")).unwrap_err();
        assert!(two.is_the_clients() && two.to_string().contains("one line"), "{two}");
    }

    #[test]
    fn a_disk_without_a_kernel_has_to_boot_by_itself() {
        let (lab, image) = lab(&["disk.raw"]);
        let source = open(lab.path(), &image).unwrap();
        assert!(source.boot.is_none() && source.has_disk());
        let error = source.check_boots(|_| Err("it does not".into())).unwrap_err();
        assert!(error.is_the_clients() && error.to_string().contains("disk.raw: it does not"), "{error}");
        assert!(source.check_boots(|_| Ok(())).is_ok());
        fs::write(image.join("command-line"), "quiet").unwrap();
        assert!(open(lab.path(), &image).unwrap_err().contains("goes with a kernel"));
    }

    #[test]
    fn nothing_else_is_read() {
        let (lab, image) = lab(&["vmlinux"]);
        let outside = lab.path().join("outside");
        fs::create_dir(&outside).unwrap();
        fs::write(outside.join("vmlinux"), "secret").unwrap();
        symlink(&outside, lab.path().join("import/link")).unwrap();
        let import = lab.path().join("import");
        for location in [
            Path::new("import/image"),
            &import,
            &outside,
            &import.join("link"),
            &image.join("../../outside"),
            &import.join("missing"),
        ] {
            let error = open(lab.path(), location).unwrap_err();
            assert!(error.contains("image-directories"), "{location:?}: {error}");
        }
        fs::remove_file(image.join("vmlinux")).unwrap();
        assert!(open(lab.path(), &image).unwrap_err().contains("no kernel"));
        symlink(outside.join("vmlinux"), image.join("vmlinux")).unwrap();
        assert!(open(lab.path(), &image).unwrap_err().contains("symbolic link"));
        fs::remove_file(image.join("vmlinux")).unwrap();
        nix::unistd::mkfifo(&image.join("vmlinux"), nix::sys::stat::Mode::S_IRWXU).unwrap();
        assert!(open(lab.path(), &image).unwrap_err().contains("regular file"));
    }

    #[test]
    fn only_some_images_are_copied_at_once() {
        let copying = Copying::default();
        let mut turns: Vec<Turn> = (0..MAX_COPIES).map(|_| copying.begin().unwrap()).collect();
        assert!(matches!(copying.begin(), Err(Error::Busy)));
        turns.pop();
        assert!(copying.begin().is_ok());
    }

    #[test]
    fn a_link_that_comes_after_the_look_is_not_followed() {
        let (lab, image) = lab(&["vmlinux"]);
        let outside = lab.path().join("outside");
        fs::create_dir(&outside).unwrap();
        let import = lab.path().join("import");
        assert!(open_below(&import, Path::new("image")).is_ok());
        fs::rename(&image, import.join("away")).unwrap();
        symlink(&outside, &image).unwrap();
        assert_eq!(open_below(&import, Path::new("image")).err(), Some(Errno::ELOOP));
        assert_eq!(open_below(&import, Path::new("../outside")).err(), Some(Errno::EXDEV));
    }

    #[test]
    fn an_image_that_changes_meanwhile_is_refused() {
        let (lab, image) = lab(&["vmlinux", "disk.raw"]);
        let images = lab.path().join("images");
        let source = open(lab.path(), &image).unwrap();
        File::options().write(true).open(image.join("disk.raw")).unwrap().set_len(1 << 20).unwrap();
        assert!(source.copy(&images, &ImageId::random(), &volumes(&lab)).is_err());
        assert_eq!(fs::read_dir(&images).unwrap().count(), 0);
    }

    #[test]
    fn an_imported_disk_that_is_another_by_now_is_refused() {
        let (lab, image) = lab(&["vmlinux"]);
        let imported = lab.path().join("import/imported");
        let disk = lab.path().join("disk");
        fs::write(&disk, [7; 1024]).unwrap();
        struct Silent;
        impl innkeeper_images::import::Progress for Silent {}
        let import = innkeeper_images::import::Import {
            source: disk,
            format: innkeeper_images::import::Format::Raw,
            target: imported.clone(),
            checksum: None,
        };
        import.run(&mut Silent).unwrap();
        fs::copy(image.join("vmlinux"), imported.join("vmlinux")).unwrap();
        let images = lab.path().join("images");
        let volumes = volumes(&lab);
        let copy = || open(lab.path(), &imported).unwrap().copy(&images, &ImageId::random(), &volumes);
        let layer = copy().unwrap().disk.unwrap().record;
        let data = fs::read(lab.path().join("layers").join(layer.files + ".data")).unwrap();
        assert_eq!((&data[..1024], layer.size), (&[7; 1024][..], 1024));
        let before = fs::read_dir(&images).unwrap().count();
        fs::write(imported.join(DISK), [8; 1024]).unwrap();
        let error = copy().unwrap_err();
        assert!(error.is_the_clients() && error.to_string().contains(DISK), "{error}");
        assert_eq!(fs::read_dir(&images).unwrap().count(), before, "a part is left");
        fs::write(imported.join(MANIFEST), "nonsense").unwrap();
        assert!(open(lab.path(), &imported).unwrap_err().contains(MANIFEST));
    }

    #[test]
    fn garbage_is_what_nobody_records_or_is_about_to() {
        let (lab, image) = lab(&["vmlinux", "disk.raw"]);
        let images = lab.path().join("images");
        let state = State::open(std::sync::Arc::new(crate::store::memory::Memory::default())).unwrap();
        let source = open(lab.path(), &image).unwrap();
        let count = || fs::read_dir(&images).unwrap().count();
        clean_up(&images, &state).unwrap();
        let id = ImageId::random();
        let volumes = volumes(&lab);
        let copy = || source.copy(&images, &id, &volumes).unwrap();
        let (first, second) = (copy(), copy());
        assert_eq!(fs::read(&first.boot.as_ref().unwrap().kernel).unwrap(), b"vmlinux");
        clean_up(&images, &state).unwrap();
        assert_eq!(count(), 2);
        drop(first);
        clean_up(&images, &state).unwrap();
        assert_eq!(count(), 1);
        second.discard();
        assert_eq!(count(), 0);
    }
}
