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
//! | `command-line` | the kernel's command line, on one line, if the usual one does not do |
//!
//! Other files are of no interest. The agent may read below the directories of the setting `image-directories` and
//! nowhere else, and follows no symbolic link there.
//!
//! A copy is a directory of its own below `images` in the state directory, and is locked until a record refers to it.
//! What no record refers to and nobody has locked is garbage ([`clean_up`]), whenever it was left.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Read};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use crate::ids::ImageId;
use crate::records::{BootFiles, Image, Instance, InstanceState, Snapshot};
use crate::state::{State, World};
use crate::volumes::copy_sparse;

/// The kernel's name in an image directory.
const KERNELS: [&str; 2] = ["vmlinux", "vmlinuz"];
const INITRD: &str = "initrd.img";
const DISK: &str = "disk.raw";
const COMMAND_LINE: &str = "command-line";

/// The most that Linux takes on x86, without the zero at the end.
const MAX_COMMAND_LINE: usize = 2047;

/// The command line for an image that says none: a serial console, little chatter, and no time spent on hardware that
/// the machine does not have.
const USUAL_COMMAND_LINE: &str = "console=ttyS0 quiet panic=1 8250.nr_uarts=1 tsc=reliable random.trust_cpu=on \
                                  cryptomgr.notests i8042.noaux i8042.nokbd";

/// What comes behind it for one with a disk.
const ROOT: &str = "root=/dev/vda1";

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
    kernel: Artefact,
    initrd: Option<Artefact>,
    disk: Option<Artefact>,
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
        let is_allowed = |path: &PathBuf| {
            fs::canonicalize(path).is_ok_and(|allowed| directory != allowed && directory.starts_with(allowed))
        };
        if !allowed.iter().any(is_allowed) {
            return Err(forbidden());
        }
        if !directory.is_dir() {
            return Err(Error::Unusable(directory, "it is not a directory".into()));
        }
        let mut kernel = None;
        for name in KERNELS {
            if kernel.is_none() {
                kernel = artefact(&directory, name)?;
            }
        }
        let Some(kernel) = kernel else {
            let reason = format!("there is no kernel in it ({})", KERNELS.join(" or "));
            return Err(Error::Unusable(directory, reason));
        };
        let initrd = artefact(&directory, INITRD)?;
        let disk = artefact(&directory, DISK)?;
        let own = artefact(&directory, COMMAND_LINE)?;
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
        Ok(Self { directory, kernel, initrd, disk, command_line })
    }

    /// The size of the disk in GiB, rounded up; at least 1, also without a disk.
    pub fn volume_size(&self) -> u32 {
        let length = self.disk.as_ref().map_or(0, |disk| disk.length);
        u32::try_from(length.div_ceil(1 << 30)).unwrap_or(u32::MAX).max(1)
    }

    /// Whether there is a disk.
    pub fn has_disk(&self) -> bool {
        self.disk.is_some()
    }

    /// Copies everything to a new directory below `images`. It is on the disk when this returns, and is locked.
    pub fn copy(&self, images: &Path, id: &ImageId) -> Result<Copy, Error> {
        DirBuilder::new().recursive(true).mode(0o700).create(images).map_err(io_error("create", images))?;
        // The number tells it from an earlier image of this id, whose instances may still need its files.
        let directory = images.join(format!("{id}.{:016x}", rand::random::<u64>()));
        let claiming = CLAIMING.lock().unwrap_or_else(PoisonError::into_inner);
        DirBuilder::new().mode(0o700).create(&directory).map_err(io_error("create", &directory))?;
        let lock = File::open(&directory).map_err(io_error("open", &directory))?;
        lock.lock().map_err(io_error("lock", &directory))?;
        drop(claiming);
        let copy = Copy {
            boot: BootFiles {
                kernel: directory.join(self.kernel.name),
                initrd: self.initrd.as_ref().map(|initrd| directory.join(initrd.name)),
                command_line: self.command_line.clone(),
            },
            disk: self.disk.as_ref().map(|disk| directory.join(disk.name)),
            directory,
            lock,
        };
        match self.copy_files(&copy) {
            Ok(()) => Ok(copy),
            Err(error) => {
                copy.discard();
                Err(error)
            }
        }
    }

    fn copy_files(&self, copy: &Copy) -> Result<(), Error> {
        for artefact in [Some(&self.kernel), self.initrd.as_ref(), self.disk.as_ref()].into_iter().flatten() {
            let path = copy.directory.join(artefact.name);
            let copied = || {
                let target = OpenOptions::new().write(true).create_new(true).mode(0o400).open(&path)?;
                copy_sparse(&artefact.file, &target)?;
                target.sync_all()
            };
            copied().map_err(io_error("copy", &path))?;
        }
        let parent = copy.directory.parent().unwrap_or(&copy.directory);
        copy.lock.sync_all().map_err(io_error("write", &copy.directory))?;
        File::open(parent).and_then(|parent| parent.sync_all()).map_err(io_error("write", parent))
    }
}

/// Opens a file of an image directory, if it is there.
fn artefact(directory: &Path, name: &'static str) -> Result<Option<Artefact>, Error> {
    let path = directory.join(name);
    // Without waiting for the other end of what might be a pipe.
    let flags = libc::O_NOFOLLOW | libc::O_NONBLOCK;
    let file = match OpenOptions::new().read(true).custom_flags(flags).open(&path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) if error.raw_os_error() == Some(libc::ELOOP) => {
            return Err(Error::Unusable(path, "it is a symbolic link, and has to be the file itself".into()));
        }
        Err(error) => return Err(io_error("open", &path)(error)),
    };
    let metadata = file.metadata().map_err(io_error("look at", &path))?;
    if !metadata.is_file() || metadata.len() == 0 {
        return Err(Error::Unusable(path, "it is empty or not a regular file".into()));
    }
    Ok(Some(Artefact { name, file, length: metadata.len() }))
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
    /// What its instances boot.
    pub boot: BootFiles,
    /// The root disk.
    pub disk: Option<PathBuf>,
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
    let holds = |file: &Option<PathBuf>| file.as_ref().is_some_and(|file| file.starts_with(directory));
    world.all::<Image>().any(|image| boots(&image.boot))
        || world.all::<Snapshot>().any(|snapshot| holds(&snapshot.file))
        || world
            .all::<Instance>()
            .any(|instance| instance.lifecycle.state != InstanceState::Terminated && boots(&instance.boot))
}

/// Removes what no record refers to. To be called at the start, and when an image or an instance is gone.
pub fn clean_up(images: &Path, state: &State) -> io::Result<()> {
    let entries = match fs::read_dir(images) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        entries => entries?,
    };
    for entry in entries {
        let path = entry?.path();
        let _claiming = CLAIMING.lock().unwrap_or_else(PoisonError::into_inner);
        let lock = File::open(&path)?;
        // Whoever has the lock is about to record it. Who has recorded it before we had the lock is in the state now.
        if lock.try_lock().is_err() || is_needed(&state.read(), &path) {
            continue;
        }
        fs::remove_dir_all(&path)?;
        tracing::info!(directory = %path.display(), "removed the files of an image that nobody needs any more");
    }
    Ok(())
}
