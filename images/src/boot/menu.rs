//! Which file system of a disk has the boot menu, and what its entry is.

use std::cell::Cell;

use super::Origin;
use super::bls;
use super::disk::Region;
use super::entry::BootEntry;
use super::error::{Error, Place};
use super::ext4::FileSystem;
use super::grub::{self, Environment};
use super::load::From;
use super::newest::newest;
use super::partitions::{self, Partition, Role};
use super::signature::{Content, identify};
use super::tree::{self, Tree};

/// The size of a configuration file that is accepted, in bytes: 1 MiB.
const MAX_CONFIGURATION: u64 = 1 << 20;

/// The size of an entry of the Boot Loader Specification, in bytes, and how many there may be.
const MAX_ENTRY: u64 = 64 << 10;
const MAX_ENTRIES: usize = 256;

/// A partition, or the whole disk if it has none.
struct Part<'a> {
    place: Place,
    partition: Option<Partition>,
    content: Content,
    /// What there is to read, best first: nothing, a file system, or its subvolumes and then the whole of it.
    volumes: Vec<Volume<'a>>,
}

/// A file system, or a subvolume of one.
pub struct Volume<'a> {
    /// Its files.
    pub tree: Box<dyn Tree + 'a>,
    /// The subvolume's path, unless it is what is mounted anyway.
    pub subvolume: Option<&'static str>,
}

/// Opens file systems that are not read here.
pub trait Mount {
    /// Opens what the kernel of this machine knows as `file_system`. The whole file system comes last, if there are
    /// subvolumes.
    ///
    /// # Errors
    /// It cannot be opened.
    fn mount(&mut self, file_system: &str, region: Region<'_>) -> Result<Vec<Volume<'static>>, tree::Error>;
}

/// What is on a disk.
pub struct Parts<'a>(Vec<Part<'a>>);

/// What is booted, and from where.
pub struct Found<'a> {
    pub from: From<'a>,
    pub configuration: Option<String>,
    pub entry: BootEntry,
}

impl Found<'_> {
    /// Where it is from, and the arguments of the entry.
    pub fn origin(self) -> (Origin, String) {
        let BootEntry { title, kernel, initrds, arguments } = self.entry;
        let origin =
            Origin { place: self.from.place, configuration: self.configuration, title, kernel, initrds };
        (origin, arguments.unwrap_or_default())
    }
}

impl<'a> Parts<'a> {
    /// Looks at all partitions of a disk, with `mount` at those that are not read here. Gives also what is wrong with the
    /// first file system that is broken, which does not matter if another has a boot menu.
    pub fn of(disk: Region<'a>, mut mount: Option<&mut dyn Mount>) -> Result<(Self, Option<Error>), Error> {
        let table = match partitions::read(disk) {
            Ok(table) => table,
            // A file system without partitions may begin with a boot loader, which ends as a table does.
            Err(error) => match identify(disk) {
                Ok(Content::Ext4 | Content::Foreign(_)) => None,
                _ => return Err(Error::Partitions(error)),
            },
        };
        let regions = match table {
            // Or has an empty table there.
            Some(table) if !table.is_empty() => table
                .into_iter()
                .filter_map(|partition| {
                    let region = disk.part(partition.start, partition.length)?;
                    Some((Place::Partition(partition.number), Some(partition), region))
                })
                .collect(),
            _ => vec![(Place::Disk, None, disk)],
        };
        let mut parts = Vec::new();
        let mut problem = None;
        for (place, partition, region) in regions {
            let mut content = identify(region).map_err(Error::Disk)?;
            let mut volumes = Vec::new();
            if content == Content::Ext4 {
                match FileSystem::open(region) {
                    Ok(opened) => volumes.push(Volume { tree: Box::new(opened), subvolume: None }),
                    // Linux may well know what this reader does not.
                    Err(tree::Error::Unsupported(what)) => {
                        content = Content::Foreign(format!("ext4 (with {what})"))
                    }
                    Err(cause) => {
                        problem.get_or_insert(Error::FileSystem { place, cause });
                    }
                }
            }
            if let (Content::Foreign(name), Some(mount)) = (&content, &mut mount)
                && partition.as_ref().is_none_or(|partition| partition.role != Role::Other)
            {
                match mount.mount(name, region) {
                    Ok(mounted) => volumes = mounted,
                    Err(cause) => {
                        problem.get_or_insert(Error::FileSystem { place, cause });
                    }
                }
            }
            parts.push(Part { place, partition, content, volumes });
        }
        Ok((Self(parts), problem))
    }

    /// Chooses what is booted. `problem` is what to say if there is nothing.
    pub fn choose(&self, mut problem: Option<Error>) -> Result<Found<'_>, Error> {
        let mut readable: Vec<_> = self.0.iter().filter(|part| part.role() != Role::Other).collect();
        readable.sort_by_key(|part| part.role() != Role::Boot);
        let places = |bases: [&'static str; 2]| {
            let readable = &readable;
            bases.into_iter().flat_map(move |base| readable.iter().flat_map(move |part| part.from(base)))
        };
        let work = Cell::new(grub::MAX_WORK);
        // A file system of its own for /boot hides what the root file system has there.
        for from in places(["", "/boot"]) {
            match Menu::read(&from) {
                Ok(Some(menu)) => {
                    if let Some(entry) = menu.entry(&from, &work)? {
                        return Ok(Found { from, configuration: Some(menu.path), entry });
                    }
                }
                Ok(None) => {}
                Err(error) => {
                    problem.get_or_insert(error);
                }
            }
        }
        // Where something is broken, what is left may not be what the disk would boot.
        if let Some(problem) = problem {
            return Err(problem);
        }
        for from in places(["/boot", ""]) {
            match from.tree.names(from.base) {
                Ok(names) => {
                    if let Some(mut entry) = newest(from.base, &names) {
                        entry.arguments = Some(self.root(&from)?);
                        return Ok(Found { from, configuration: None, entry });
                    }
                }
                Err(tree::Error::NotFound | tree::Error::NotA(_)) => {}
                Err(cause) => return Err(Error::FileSystem { place: from.place, cause }),
            }
        }
        Err(self.for_a_guest().unwrap_or_else(|| Error::NoKernel(self.summary())))
    }

    /// The first partition that a guest could read; rather one that says it is a root file system.
    fn for_a_guest(&self) -> Option<Error> {
        let mut foreign: Vec<_> = self
            .0
            .iter()
            .filter_map(|part| match &part.content {
                Content::Foreign(name) if part.volumes.is_empty() => Some((part, name)),
                _ => None,
            })
            .collect();
        foreign.sort_by_key(|(part, _)| part.role() != Role::Root);
        let (part, name) = foreign.first()?;
        Some(Error::NeedsGuest { place: part.place, file_system: (*name).clone() })
    }

    /// The arguments that tell Linux its root file system.
    fn root(&self, kernel: &From<'_>) -> Result<String, Error> {
        let has_system = |part: &&Part<'_>| part.system().is_some();
        let parts = || self.0.iter();
        let root = parts()
            .find(|part| part.role() == Role::Root)
            .or_else(|| parts().find(has_system))
            .or_else(|| {
                parts().find(|part| part.volumes.is_empty() && matches!(part.content, Content::Foreign(_)))
            })
            .or_else(|| parts().find(|part| part.place == kernel.place && !kernel.base.is_empty()))
            .ok_or(Error::NoRoot)?;
        let device = match &root.partition {
            Some(Partition { uuid: Some(uuid), .. }) => format!("PARTUUID={uuid}"),
            Some(Partition { number, .. }) => format!("/dev/vda{number}"),
            None => "/dev/vda".into(),
        };
        Ok(match root.system().and_then(|volume| volume.subvolume) {
            Some(subvolume) => format!("root={device} rootflags=subvol={subvolume}"),
            None => format!("root={device}"),
        })
    }

    /// What is where, for a message.
    fn summary(&self) -> String {
        let part = |part: &Part<'_>| {
            let content = match &part.content {
                Content::Ext4 => "ext4",
                Content::Foreign(name) => name,
                Content::Other(name) => name,
                Content::Unknown => "nothing that is known",
            };
            let without = if part.volumes.is_empty() { "" } else { " without a kernel" };
            format!("{}: {content}{without}", part.place)
        };
        let mut parts: Vec<_> = self.0.iter().take(8).map(part).collect();
        if self.0.len() > parts.len() {
            parts.push("…".into());
        }
        parts.join("; ")
    }
}

impl Part<'_> {
    fn role(&self) -> Role {
        self.partition.as_ref().map_or(Role::Unknown, |partition| partition.role)
    }

    /// What can be loaded from, with kernels in this directory.
    fn from<'a>(&'a self, base: &'a str) -> impl Iterator<Item = From<'a>> {
        let whole = self.volumes.len().checked_sub(1).filter(|last| *last > 0);
        self.volumes.iter().enumerate().map(move |(index, volume)| From {
            place: self.place,
            tree: volume.tree.as_ref(),
            base,
            whole: whole
                .filter(|whole| index < *whole)
                .and_then(|whole| self.volumes.get(whole))
                .map(|volume| volume.tree.as_ref()),
        })
    }

    /// The volume that has an operating system.
    fn system(&self) -> Option<&Volume<'_>> {
        let marks = ["/etc/fstab", "/etc/os-release", "/sbin/init"];
        let has_system =
            |volume: &&Volume<'_>| marks.iter().any(|mark| volume.tree.exists(mark).unwrap_or(false));
        self.volumes.iter().find(has_system)
    }
}

/// The files of a boot menu.
struct Menu {
    /// The `grub.cfg`, or the directory of entries.
    path: String,
    script: Option<String>,
    environment: Option<Environment>,
    /// The entries of the Boot Loader Specification, best first.
    specified: Vec<bls::Entry>,
    loader: Option<String>,
}

impl Menu {
    /// Reads a boot menu, if there is one.
    fn read(from: &From<'_>) -> Result<Option<Self>, Error> {
        let text = |contents: Vec<u8>| String::from_utf8_lossy(&contents).into_owned();
        let mut script = None;
        let mut environment = None;
        for loader in ["grub", "grub2"] {
            let directory = format!("{}/{loader}", from.base);
            let path = format!("{directory}/grub.cfg");
            if script.is_none() {
                script = read(from, &path, MAX_CONFIGURATION)?.map(|contents| (path, text(contents)));
            }
            if environment.is_none() {
                let block = read(from, &format!("{directory}/grubenv"), MAX_CONFIGURATION)?;
                environment = block.and_then(|block| Environment::parse(&block));
            }
        }
        let directory = format!("{}/loader/entries", from.base);
        let specified = specified(from, &directory)?;
        let loader = read(from, &format!("{}/loader/loader.conf", from.base), MAX_ENTRY)?.map(text);
        let (path, script) = match script {
            Some((path, script)) => (path, Some(script)),
            None if specified.is_empty() => return Ok(None),
            None => (directory, None),
        };
        Ok(Some(Self { path, script, environment, specified, loader }))
    }

    /// The entry that is booted; `None` if the menu is empty. `work` is what scripts may still do.
    fn entry(&self, from: &From<'_>, work: &Cell<usize>) -> Result<Option<BootEntry>, Error> {
        let error = |reason| Error::Configuration { place: from.place, path: self.path.clone(), reason };
        if let Some(script) = &self.script {
            let chosen = grub::default_entry(script, self.environment.as_ref(), &self.specified, work);
            let chosen = chosen.map_err(|cause| error(cause.to_string()))?;
            if chosen.is_some() {
                return Ok(chosen);
            }
        }
        let none = Environment::default();
        let environment = self.environment.as_ref().unwrap_or(&none);
        let chosen =
            bls::default_entry(&self.specified, environment.get("saved_entry"), self.loader.as_deref());
        let chosen = chosen.map(|entry| entry.boot_entry(environment)).transpose();
        chosen.map_err(|cause| error(cause.to_string()))
    }
}

/// A file that need not be there.
fn read(from: &From<'_>, path: &str, limit: u64) -> Result<Option<Vec<u8>>, Error> {
    match from.tree.read(path, limit) {
        Ok(contents) => Ok(Some(contents)),
        Err(tree::Error::NotFound | tree::Error::NotA("directory")) => Ok(None),
        Err(cause) => Err(Error::File { place: from.place, path: path.to_owned(), cause }),
    }
}

/// The entries of the Boot Loader Specification in a directory, best first.
fn specified(from: &From<'_>, directory: &str) -> Result<Vec<bls::Entry>, Error> {
    let error = |cause| Error::File { place: from.place, path: directory.to_owned(), cause };
    let names = match from.tree.names(directory) {
        Ok(names) => names,
        Err(tree::Error::NotFound | tree::Error::NotA(_)) => return Ok(Vec::new()),
        Err(cause) => return Err(error(cause)),
    };
    let names: Vec<_> = names.into_iter().filter(|name| name.ends_with(".conf")).collect();
    if names.len() > MAX_ENTRIES {
        return Err(Error::Configuration {
            place: from.place,
            path: directory.to_owned(),
            reason: format!("there are more than {MAX_ENTRIES} entries"),
        });
    }
    let mut entries = Vec::new();
    for name in names {
        if let Some(contents) = read(from, &format!("{directory}/{name}"), MAX_ENTRY)? {
            entries.extend(bls::Entry::parse(&name, &String::from_utf8_lossy(&contents)));
        }
    }
    entries.sort_by(bls::order);
    Ok(entries)
}

#[cfg(test)]
mod tests {
    use std::fs;

    use tempfile::TempDir;

    use super::*;
    use crate::boot::disk::BUDGET;
    use crate::boot::reader::Mounted;

    /// The subvolumes of a btrfs: one that is mounted by default, one by its name, and the whole.
    struct Subvolumes(TempDir, Option<&'static str>);

    impl Subvolumes {
        fn with(default: Option<&'static str>, files: &[(&str, &str)]) -> Self {
            let whole = tempfile::tempdir().unwrap();
            fs::create_dir(whole.path().join("root")).unwrap();
            for (path, contents) in files {
                let path = whole.path().join(path);
                fs::create_dir_all(path.parent().unwrap()).unwrap();
                fs::write(path, contents).unwrap();
            }
            Self(whole, default)
        }
    }

    impl Mount for Subvolumes {
        fn mount(&mut self, kind: &str, region: Region<'_>) -> Result<Vec<Volume<'static>>, tree::Error> {
            assert_eq!((kind, region.start()), ("btrfs", 0));
            let volume = |path: &str, subvolume| {
                let tree = Mounted::at(&self.0.path().join(path)).map_err(tree::Error::Linux)?;
                Ok(Volume { tree: Box::new(tree) as Box<dyn Tree>, subvolume })
            };
            [(self.1.unwrap_or(""), None), ("root", Some("root")), ("", Some("/"))]
                .into_iter()
                .map(|(path, subvolume)| volume(path, subvolume))
                .collect()
        }
    }

    /// What a btrfs without partitions boots: the first line of the kernel, and the arguments.
    fn boots(mut subvolumes: Subvolumes) -> Result<(String, String), Error> {
        let mut disk = vec![0; 1 << 20];
        disk[0x1_0040..0x1_0048].copy_from_slice(b"_BHRfS_M");
        let (budget, disk) = (Cell::new(BUDGET), disk.as_slice());
        let (parts, problem) = Parts::of(Region::whole(&disk, &budget).unwrap(), Some(&mut subvolumes))?;
        let found = parts.choose(problem)?;
        let mut kernel = Vec::new();
        found.from.copy(&found.entry.kernel, 100, &mut |_, piece| {
            kernel.extend_from_slice(piece);
            Ok(())
        })?;
        Ok((String::from_utf8(kernel).unwrap(), found.origin().1))
    }

    #[test]
    fn subvolumes() {
        let grub = |kernel: &str| format!("menuentry x {{ linux {kernel} ro }}");
        let (inner, outer) = (grub("/boot/vmlinuz-1"), grub("/root/boot/vmlinuz-1"));
        for (default, files, expected) in [
            // GRUB's paths are those of the subvolume, or of the whole.
            (None, &[("root/boot/grub/grub.cfg", &*inner), ("root/boot/vmlinuz-1", "a")][..], ("a", "ro")),
            (None, &[("root/boot/grub/grub.cfg", &outer), ("root/boot/vmlinuz-1", "a")], ("a", "ro")),
            // The one that is mounted by default comes first, the whole last.
            (
                Some("snapshot"),
                &[
                    ("snapshot/boot/grub/grub.cfg", &inner),
                    ("snapshot/boot/vmlinuz-1", "a"),
                    ("root/boot/grub/grub.cfg", &inner),
                    ("root/boot/vmlinuz-1", "b"),
                ],
                ("a", "ro"),
            ),
            (
                None,
                &[("root/boot/vmlinuz-1", "a"), ("root/etc/fstab", "")],
                ("a", "root=/dev/vda rootflags=subvol=root"),
            ),
            (None, &[("boot/vmlinuz-1", "a"), ("etc/fstab", "")], ("a", "root=/dev/vda")),
        ] {
            let found = boots(Subvolumes::with(default, files)).unwrap();
            assert_eq!((&*found.0, &*found.1), expected, "{files:?}");
        }
        let error = boots(Subvolumes::with(None, &[])).unwrap_err().to_string();
        assert!(error.contains("the disk: btrfs without a kernel"), "{error}");
        let error = boots(Subvolumes::with(Some("nowhere"), &[])).unwrap_err();
        assert!(matches!(error, Error::FileSystem { place: Place::Disk, .. }), "{error}");
    }
}
