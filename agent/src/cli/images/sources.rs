//! Image directories for the agent to register from: made of a disk in a file, or built by a recipe.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use innkeeper_images::display::{BuildDisplay, ImportDisplay};
use innkeeper_images::import::{Checksum, Format, Import};
use innkeeper_images::recipe::{Cache, Recipes};

use crate::cli::global::Global;
use crate::volumes::copy::copy_sparse;

/// An image directory that is to go when its image is registered. It stays if that fails: it may have taken long.
pub struct Source(PathBuf);

impl Source {
    /// Makes one of a disk. `name` is the image's.
    pub fn import(
        global: &Global,
        name: &str,
        file: PathBuf,
        format: Format,
        checksum: Option<Checksum>,
    ) -> Result<Self> {
        let target = place(global, name)?;
        let mut display = ImportDisplay::new(&target);
        let import = Import { source: file, format, target: target.clone(), checksum };
        let imported = import.run(&mut display);
        display.end(imported.as_ref().ok());
        imported?;
        Ok(Self(target))
    }

    /// Builds one by a recipe, unless it is built.
    pub fn build(global: &Global, name: &str, recipe: &str) -> Result<Self> {
        let target = place(global, name)?;
        let recipe = Recipes::of_checkout().get(recipe)?;
        let artefacts = Cache::of_user()?.build(&recipe, false, &mut BuildDisplay::default())?;
        let copied = copy(&artefacts, &target);
        copied.with_context(|| format!("cannot copy {} to {}", artefacts.display(), target.display()))?;
        Ok(Self(target))
    }

    /// Where it is.
    pub fn directory(&self) -> &Path {
        &self.0
    }

    /// Removes it: the agent has a copy.
    pub fn remove(self) -> Result<()> {
        fs::remove_dir_all(&self.0).with_context(|| format!("cannot remove {}", self.0.display()))
    }
}

/// Where the directory of an image of this name is to be: in the first of those that the agent may read.
fn place(global: &Global, name: &str) -> Result<PathBuf> {
    let directories = global.configuration()?.image_directories;
    let parent = directories.first().context("the configuration has no image-directories")?;
    let made = DirBuilder::new().recursive(true).mode(0o700).create(parent);
    made.with_context(|| {
        format!("cannot make the directory {} (run as root, or change image-directories)", parent.display())
    })?;
    let target = parent.join(file_name(name));
    ensure!(
        !target.exists(),
        "{0} is there already: register it with `innkeeper image register {0} --name …`, or remove it",
        target.display()
    );
    Ok(target)
}

/// A file's name that says which image it is of.
fn file_name(name: &str) -> String {
    let is_plain = |letter: char| letter.is_ascii_alphanumeric() || matches!(letter, '-' | '_' | '.');
    let plain: String = name.chars().map(|letter| if is_plain(letter) { letter } else { '-' }).collect();
    // Neither hidden nor a way up.
    plain.trim_start_matches('.').to_owned()
}

/// Copies the files of a directory to a new one, which is there when it is whole.
fn copy(from: &Path, to: &Path) -> Result<()> {
    // Neither another image's, nor what an import that is not done has beside its target.
    let mut name = to.file_name().context("the image's name has no letter in it")?.to_owned();
    name.push(".copying");
    let new = to.with_file_name(name);
    if new.exists() {
        fs::remove_dir_all(&new)?;
    }
    DirBuilder::new().mode(0o700).create(&new)?;
    for entry in fs::read_dir(from)? {
        let entry = entry?;
        if entry.file_type()?.is_file() {
            let target = OpenOptions::new().write(true).create_new(true).open(new.join(entry.file_name()))?;
            copy_sparse(&File::open(entry.path())?, &target)?;
        }
    }
    fs::rename(new, to)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_is_called_like_its_image() {
        for (name, expected) in
            [("debian-12", "debian-12"), ("a b/c (1)", "a-b-c--1-"), ("../x", "-x"), ("...", "")]
        {
            assert_eq!(file_name(name), expected, "{name}");
        }
    }

    #[test]
    fn files_are_copied_and_nothing_else() {
        let lab = tempfile::tempdir().unwrap();
        let (from, to) = (lab.path().join("from"), lab.path().join("to.1"));
        fs::create_dir_all(from.join("modules")).unwrap();
        fs::write(from.join("vmlinux"), "kernel").unwrap();
        // Of one that was interrupted, and of imports to this name and to another that begins like it.
        for name in ["to.1.copying", "to.1.partial", "to.partial"] {
            fs::create_dir(lab.path().join(name)).unwrap();
            fs::write(lab.path().join(name).join("vmlinux"), "half").unwrap();
        }
        copy(&from, &to).unwrap();
        assert_eq!(fs::read(to.join("vmlinux")).unwrap(), b"kernel");
        let mut left: Vec<_> =
            fs::read_dir(lab.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        left.sort();
        assert_eq!(left, ["from", "to.1", "to.1.partial", "to.partial"]);
        assert_eq!(fs::read_dir(&to).unwrap().count(), 1);
    }
}
