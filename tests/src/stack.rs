//! Looking into volumes, and changing them as a guest would have.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use innkeeper_block::layered::{self, Layer};
use innkeeper_block::{Backend, EngineKind, Layered};

/// What is compared and written at once, in bytes.
const BLOCK: usize = 4096;

/// A volume's layers in a directory, from the bottom, as paths without an extension.
#[derive(Debug)]
pub struct Stack(Vec<PathBuf>);

impl Stack {
    /// The only stack in `directory` whose top takes writes.
    pub fn find(directory: &Path) -> Result<Self> {
        let mut layers = BTreeMap::new();
        for entry in fs::read_dir(directory)? {
            let path = entry?.path();
            if path.extension().is_some_and(|extension| extension == "map") {
                let (description, is_sealed) = layered::description(&File::open(&path)?)?;
                layers.insert(description.id, (description.parent, is_sealed, path.with_extension("")));
            }
        }
        let mut tops = layers.iter().filter(|(_, (_, is_sealed, _))| !is_sealed).map(|(id, _)| *id);
        let mut next = tops.next();
        ensure!(tops.next().is_none(), "there is more than one volume in {}", directory.display());
        let mut stack = Vec::new();
        while let Some(id) = next {
            let (parent, _, path) = layers.get(&id).with_context(|| format!("layer {id} is not there"))?;
            stack.push(path.clone());
            next = *parent;
        }
        stack.reverse();
        ensure!(!stack.is_empty(), "there is no volume in {}", directory.display());
        Ok(Self(stack))
    }

    fn open(paths: &[PathBuf], is_writable: bool) -> Result<Vec<Layer>> {
        let open = |path: &PathBuf, kind: &str| {
            File::options().read(true).write(is_writable).open(path.with_extension(kind))
        };
        paths.iter().map(|path| Ok(Layer { data: open(path, "data")?, map: open(path, "map")? })).collect()
    }

    /// Copies what is durable of the volume to a raw file.
    pub fn copy_to(&self, file: &Path) -> Result<()> {
        let volume = Layered::open_still(Self::open(&self.0, false)?)?;
        let target = File::create(file)?;
        target.set_len(volume.capacity())?;
        each_block(&volume, |offset, block| {
            if block.iter().any(|byte| *byte != 0) {
                target.write_all_at(block, offset)?;
            }
            Ok(())
        })
    }

    /// Makes the volume what a raw file is, as if its guest had written and flushed that. It may run, as long as it does
    /// not use the volume itself.
    pub fn copy_from(&self, file: &Path) -> Result<()> {
        let (top, below) = self.0.split_last().context("there are no layers")?;
        let directory = tempfile::tempdir()?;
        let own = directory.path().join("top");
        for kind in ["data", "map"] {
            fs::copy(top.with_extension(kind), own.with_extension(kind))?;
        }
        let mut layers = Self::open(below, false)?;
        layers.extend(Self::open(std::slice::from_ref(&own), true)?);
        let volume = Layered::open(layers, false)?.with_engine(EngineKind::Synchronous);
        let source = File::open(file)?;
        let length = source.metadata()?.len();
        each_block(&volume, |offset, block| {
            let mut wanted = vec![0; block.len()];
            let there = usize::try_from(length.saturating_sub(offset)).unwrap_or(BLOCK).min(wanted.len());
            source.read_exact_at(&mut wanted[..there], offset)?;
            if wanted != block {
                volume.write_at(&wanted, offset)?;
            }
            Ok(())
        })?;
        volume.flush()?;
        drop(volume);
        // To the same files, which somebody may have open.
        for kind in ["data", "map"] {
            let content = fs::read(own.with_extension(kind))?;
            File::options().write(true).open(top.with_extension(kind))?.write_all_at(&content, 0)?;
        }
        Ok(())
    }
}

fn each_block(volume: &Layered, mut visit: impl FnMut(u64, &[u8]) -> Result<()>) -> Result<()> {
    // A volume of 1 GiB is mostly zeroes; what is behind the first part is not looked at.
    const LOOKED_AT: u64 = 64 << 20;
    let end = volume.capacity().min(LOOKED_AT);
    let mut block = vec![0; BLOCK];
    for offset in (0..end).step_by(BLOCK) {
        let length = usize::try_from(end - offset).unwrap_or(BLOCK).min(BLOCK);
        volume.read_at(&mut block[..length], offset)?;
        visit(offset, &block[..length])?;
    }
    Ok(())
}
