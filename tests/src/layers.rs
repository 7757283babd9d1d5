//! Layers as an agent would have them: files in a directory, from the bottom, and what to say of them to a VMM.

use std::collections::BTreeSet;
use std::fs::{File, OpenOptions};
use std::io::Write as _;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use innkeeper_block::layered::{self, Layer, LayerDescription};
use innkeeper_block::{Layered, layered::Report};
use innkeeper_protocol::{
    AttachDisk, Command, Descriptor, DiskSource, LayerFiles, Limits, MAX_DESCRIPTORS, SealDisk,
};
use uuid::Uuid;

use crate::controller::Controller;

/// The file in which the layers of a volume are written down.
const LIST: &str = "layers";

/// The layers of a volume, by their names.
#[derive(Debug)]
pub struct Layers {
    directory: PathBuf,
    /// From the bottom, and how each is named.
    pub names: Vec<(String, Uuid)>,
    /// Of the volume, in bytes.
    pub size: u64,
    /// How many were made.
    made: u128,
    /// Tells the layers of one volume from those of another.
    volume: u128,
}

/// Files on their way to a VMM, and what a message says of them.
#[derive(Debug, Default)]
pub struct Parcel {
    files: Vec<OwnedFd>,
    /// In the order in which they were added.
    pub layers: Vec<LayerFiles>,
}

impl Parcel {
    /// Adds a layer.
    pub fn add(&mut self, Layer { data, map }: Layer) -> LayerFiles {
        let mut add = |file: File| {
            self.files.push(file.into());
            Descriptor(self.files.len() as u32 - 1)
        };
        let files = LayerFiles { data: add(data), map: add(map) };
        self.layers.push(files);
        files
    }

    /// The files, to go with the message.
    pub fn descriptors(&self) -> Vec<std::os::fd::BorrowedFd<'_>> {
        self.files.iter().map(AsFd::as_fd).collect()
    }
}

impl Layers {
    /// A volume of one empty layer. Volumes in one test have different numbers.
    pub fn new(directory: &Path, volume: u128, size: u64) -> Result<Self> {
        let mut layers = Self { directory: directory.into(), names: Vec::new(), size, made: 0, volume };
        let (name, id) = layers.make()?;
        layers.names.push((name, id));
        Ok(layers)
    }

    /// The volume whose layers [`Layers::save`] has written down, whatever has happened since then. Files of layers that were
    /// not written down are deleted. `made` says how many layers may have been made of the volume at most, whether they were
    /// written down or not: none has its id again.
    pub fn load(directory: &Path, made: u128) -> Result<Self> {
        let path = directory.join(LIST);
        let text = std::fs::read_to_string(&path).with_context(|| path.display().to_string())?;
        let mut lines = text.lines();
        let first =
            lines.next().and_then(|line| line.split_once(' ')).context("the list of layers is empty")?;
        let (volume, size) = (first.0.parse()?, first.1.parse()?);
        let name = |line: &str| -> Result<(String, Uuid)> {
            let (name, id) = line.split_once(' ').context("the list of layers has a line that is cut off")?;
            Ok((name.to_owned(), id.parse()?))
        };
        let names = lines.map(name).collect::<Result<Vec<_>>>()?;
        ensure!(!names.is_empty(), "the list of layers has none");
        let layers = Self { directory: directory.into(), names, size, made, volume };
        layers.delete_others()?;
        Ok(layers)
    }

    /// Deletes the files of all layers that are not the volume's any more, or not yet.
    pub fn delete_others(&self) -> Result<()> {
        let listed: BTreeSet<&str> = self.names.iter().map(|(name, _)| name.as_str()).collect();
        for entry in std::fs::read_dir(&self.directory)? {
            let path = entry?.path();
            let is_of_layer = path.extension().is_some_and(|kind| kind == "data" || kind == "map");
            let is_listed =
                path.file_stem().and_then(|name| name.to_str()).is_some_and(|name| listed.contains(name));
            if is_of_layer && !is_listed {
                std::fs::remove_file(path)?;
            }
        }
        Ok(())
    }

    /// Writes down which layers the volume has, so that a crash of the host takes neither that nor the names of their files.
    pub fn save(&self) -> Result<()> {
        let directory = File::open(&self.directory)?;
        directory.sync_all()?;
        let mut text = format!("{} {}\n", self.volume, self.size);
        for (name, id) in &self.names {
            text += &format!("{name} {id}\n");
        }
        let new = self.directory.join(format!("{LIST}.new"));
        let mut file = File::create(&new)?;
        file.write_all(text.as_bytes())?;
        file.sync_all()?;
        std::fs::rename(&new, self.directory.join(LIST))?;
        Ok(directory.sync_all()?)
    }

    /// Opens the files of a layer.
    pub fn open(&self, name: &str, is_written: bool) -> Result<Layer> {
        let open = |kind: &str| {
            let path = self.directory.join(format!("{name}.{kind}"));
            let file = OpenOptions::new().read(true).write(is_written).create(is_written).open(&path);
            file.with_context(|| path.display().to_string())
        };
        Ok(Layer { data: open("data")?, map: open("map")? })
    }

    /// Makes an empty layer for the top, which is not one of the volume's yet.
    pub fn make(&mut self) -> Result<(String, Uuid)> {
        let parent = self.names.last().map(|(_, id)| *id);
        let (name, id) = self.next();
        layered::create_layer(&self.open(&name, true)?, &LayerDescription { id, parent, size: self.size })?;
        Ok((name, id))
    }

    fn next(&mut self) -> (String, Uuid) {
        self.made += 1;
        (format!("{}-{}", self.volume, self.made), Uuid::from_u128(self.volume << 64 | self.made))
    }

    /// Makes an empty layer, and notes that it is the volume's top: what is said to a VMM next.
    pub fn push(&mut self) -> Result<String> {
        let (name, id) = self.make()?;
        self.names.push((name.clone(), id));
        Ok(name)
    }

    /// The layers, open: those that are not marked as sealed for writing too.
    pub fn files(&self) -> Result<Vec<Layer>> {
        let top = self.names.len() - 1;
        let open = |(index, (name, _)): (usize, &(String, Uuid))| {
            let layer = self.open(name, false)?;
            let (_, is_sealed) = layered::description(&layer.map)?;
            if index == top || !is_sealed { self.open(name, true) } else { Ok(layer) }
        };
        self.names.iter().enumerate().map(open).collect()
    }

    /// The layers up to one, to be read only.
    pub fn snapshot(&self, count: usize) -> Result<Layered> {
        let open = |(name, _): &(String, Uuid)| self.open(name, false);
        let layers = self.names.iter().take(count).map(open).collect::<Result<Vec<_>>>()?;
        Ok(Layered::open(layers, true)?)
    }

    /// What is wrong with the layers.
    pub fn check(&self) -> Result<Report> {
        let open = |(name, _): &(String, Uuid)| self.open(name, false);
        Ok(layered::check(self.names.iter().map(open).collect::<Result<_>>()?))
    }

    /// Makes one layer of some that are sealed; returns its name, and notes that it takes their place.
    pub fn merge(&mut self, layers: std::ops::Range<usize>) -> Result<String> {
        let open = |(name, _): &(String, Uuid)| self.open(name, false);
        let old = self.names[layers.clone()].iter().map(open).collect::<Result<Vec<_>>>()?;
        let (name, _) = self.next();
        let merged = layered::merge(old, self.open(&name, true)?, |_| true)?;
        self.names.splice(layers, [(name.clone(), merged.id)]);
        Ok(name)
    }

    /// What attaches the volume, for a VMM that has no layers of it waiting.
    pub fn disk(&self, id: &str, layers: Vec<LayerFiles>) -> AttachDisk {
        AttachDisk {
            id: id.into(),
            source: DiskSource::Layered { layers },
            read_only: false,
            still: false,
            serial: id.into(),
            engine: Default::default(),
            queues: None,
            limits: Limits::default(),
        }
    }

    /// Attaches the volume, in as many packets as that takes; returns its slot.
    pub fn attach(&self, controller: &mut Controller, id: &str) -> Result<u8> {
        let mut files = self.files()?;
        while files.len() > MAX_DESCRIPTORS / 2 {
            let mut parcel = Parcel::default();
            files.drain(..MAX_DESCRIPTORS / 2).for_each(|layer| _ = parcel.add(layer));
            controller.call(Command::Layers { layers: parcel.layers.clone() }, &parcel.descriptors())?;
        }
        let mut parcel = Parcel::default();
        files.into_iter().for_each(|layer| _ = parcel.add(layer));
        let disk = self.disk(id, parcel.layers.clone());
        controller.attach(disk, &parcel.descriptors())
    }

    /// What puts layers with these names on the disk `id`.
    pub fn seal(&self, id: &str, names: &[&str], parcel: &mut Parcel) -> Result<SealDisk> {
        let tops = names.iter().map(|name| Ok(parcel.add(self.open(name, true)?)));
        Ok(SealDisk { id: id.into(), tops: tops.collect::<Result<_>>()? })
    }
}
