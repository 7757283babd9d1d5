//! Recipes, and the cache of what they build.
//!
//! A recipe is a directory under `recipes/`: a bash script `build`, an optional file `needs` that names other recipes
//! (one a line), an optional file `program` if the program that runs the script is itself part of the image, and
//! whatever files the script uses. The script runs with
//!
//! | variable | is |
//! | --- | --- |
//! | `OUT` | an empty directory: what is in it afterwards is the image |
//! | `WORK` | an empty directory for the script's own use, removed afterwards |
//! | `RECIPE` | the recipe's directory |
//! | `INNKEEPER_IMAGES` | the program that runs the script, for `extract-kernel`, or for the image |
//! | `KERNEL`, … | for each recipe that it needs, where that one's artefacts are |
//!
//! and prints a line `== …` at each step. An image is known by a *key*, the hash of the recipe's files, of the program if
//! that is part of it, and of what it needs, and lies in `<cache>/images/<name>/<key>`; `<cache>/images/<name>/current` leads to the one built last.
//! What a package archive gives on the day is not part of the key: `force` builds anew.

use std::collections::VecDeque;
use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::{BufRead, BufReader, Write};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};
use std::{env, io};

use sha2::{Digest, Sha256};

/// Why an image cannot be built or found.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// No recipe has this name.
    #[error("there is no recipe {name} in {} (there are: {known})", directory.display())]
    Unknown {
        /// The name that was asked for.
        name: String,
        /// Where recipes are.
        directory: PathBuf,
        /// The names there are.
        known: String,
    },
    /// Recipes that need each other.
    #[error("recipe {0} needs itself")]
    Cycle(String),
    /// The image is not in the cache.
    #[error("image {name} is not built yet (`innkeeper-images build {name}` does it)")]
    NotBuilt {
        /// The image's name.
        name: String,
    },
    /// Neither variable says where the cache is.
    #[error("there is no place for the cache: set INNKEEPER_CACHE, XDG_CACHE_HOME or HOME")]
    NoCache,
    /// The recipe's script failed.
    #[error("recipe {name} failed ({status}); the last of its output (all of it is in {}):\n{tail}", log.display())]
    Failed {
        /// The recipe's name.
        name: String,
        /// How its script ended.
        status: ExitStatus,
        /// Its whole output.
        log: PathBuf,
        /// Its last lines.
        tail: String,
    },
    /// A file could not be used.
    #[error("cannot {action} {}", path.display())]
    Io {
        /// What was to be done.
        action: &'static str,
        /// To which file.
        path: PathBuf,
        /// The system's reason.
        source: io::Error,
    },
}

type Result<T, E = Error> = std::result::Result<T, E>;

/// Adds to an I/O error what was to be done, and to which file.
fn failed<'a>(action: &'static str, path: &'a Path) -> impl FnOnce(io::Error) -> Error + 'a {
    move |source| Error::Io { action, path: path.into(), source }
}

/// Where someone wants to see how far a build is.
pub trait Progress {
    /// A recipe's build begins.
    fn begin(&mut self, image: &str);
    /// The build has come to this step.
    fn step(&mut self, step: &str);
    /// The build is over.
    fn end(&mut self);
}

/// The recipes of a checkout.
#[derive(Debug, Clone)]
pub struct Recipes {
    directory: PathBuf,
}

impl Recipes {
    /// The recipes in `directory`.
    pub fn new(directory: impl Into<PathBuf>) -> Self {
        Self { directory: directory.into() }
    }

    /// The recipes of the checkout that this crate was compiled from, or those in `$INNKEEPER_RECIPES`.
    pub fn of_checkout() -> Self {
        let directory = env::var_os("INNKEEPER_RECIPES").map(PathBuf::from);
        Self::new(directory.unwrap_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("recipes")))
    }

    /// The names of all recipes, sorted.
    ///
    /// # Errors
    /// The directory of recipes cannot be read.
    pub fn names(&self) -> Result<Vec<String>> {
        let mut names = Vec::new();
        for entry in files_in(&self.directory)? {
            if let (true, Some(name)) =
                (entry.join("build").is_file(), entry.file_name().and_then(OsStr::to_str))
            {
                names.push(name.to_owned());
            }
        }
        Ok(names)
    }

    /// The recipe `name`, with those it needs.
    ///
    /// # Errors
    /// There is no such recipe, or it cannot be read.
    pub fn get(&self, name: &str) -> Result<Recipe> {
        self.get_below(name, &mut Vec::new())
    }

    fn get_below(&self, name: &str, above: &mut Vec<String>) -> Result<Recipe> {
        if above.iter().any(|other| other == name) {
            return Err(Error::Cycle(name.into()));
        }
        let names = self.names()?;
        if !names.iter().any(|known| known == name) {
            let directory = self.directory.clone();
            return Err(Error::Unknown { name: name.into(), directory, known: names.join(", ") });
        }
        let directory = self.directory.join(name);
        let list = directory.join("needs");
        let list = if list.exists() {
            fs::read_to_string(&list).map_err(failed("read", &list))?
        } else {
            String::new()
        };
        above.push(name.into());
        let needs = list.lines().map(|need| self.get_below(need, above)).collect::<Result<Vec<_>>>()?;
        above.pop();
        let key = key(&directory, &needs)?;
        Ok(Recipe { name: name.into(), directory, needs, key })
    }
}

/// How to build one image.
#[derive(Debug, Clone)]
pub struct Recipe {
    name: String,
    directory: PathBuf,
    needs: Vec<Recipe>,
    key: String,
}

impl Recipe {
    /// The name of the recipe and of its image.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Tells one version of the image from others: 16 hexadecimal digits.
    pub fn key(&self) -> &str {
        &self.key
    }
}

/// Hashes the names, modes and contents of a recipe's files, the program if the recipe puts that into its image, and the
/// keys of what it needs.
fn key(directory: &Path, needs: &[Recipe]) -> Result<String> {
    let mut hash = Sha256::new();
    for path in files_in(directory)? {
        let metadata = path.metadata().map_err(failed("read", &path))?;
        let contents = fs::read(&path).map_err(failed("read", &path))?;
        hash.update(path.file_name().unwrap_or_default().as_encoded_bytes());
        // The lengths keep two files from being taken for one.
        hash.update([0, u8::from(metadata.permissions().mode() & 0o100 != 0)]);
        hash.update((contents.len() as u64).to_le_bytes());
        hash.update(contents);
    }
    if directory.join("program").exists() {
        let program = env::current_exe().map_err(failed("find the program itself, for", directory))?;
        hash.update(fs::read(&program).map_err(failed("read", &program))?);
    }
    for need in needs {
        hash.update(&need.key);
    }
    Ok(hash.finalize()[..8].iter().map(|byte| format!("{byte:02x}")).collect())
}

/// The paths of what is in a directory, sorted.
fn files_in(directory: &Path) -> Result<Vec<PathBuf>> {
    let entries = fs::read_dir(directory).map_err(failed("read directory", directory))?;
    let paths = entries.map(|entry| Ok(entry?.path())).collect::<io::Result<Vec<_>>>();
    let mut paths = paths.map_err(failed("read directory", directory))?;
    paths.sort();
    Ok(paths)
}

/// The images on this machine.
#[derive(Debug, Clone)]
pub struct Cache {
    images: PathBuf,
}

impl Cache {
    /// The cache in `directory`.
    pub fn new(directory: impl AsRef<Path>) -> Self {
        Self { images: directory.as_ref().join("images") }
    }

    /// `$INNKEEPER_CACHE`, or `innkeeper` in the user's directory of caches.
    ///
    /// # Errors
    /// No variable says where that is.
    pub fn of_user() -> Result<Self> {
        let variable = |name| env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
        variable("INNKEEPER_CACHE")
            .or_else(|| variable("XDG_CACHE_HOME").map(|caches| caches.join("innkeeper")))
            .or_else(|| variable("HOME").map(|home| home.join(".cache/innkeeper")))
            .map(Self::new)
            .ok_or(Error::NoCache)
    }

    /// The artefacts of an image, if it is built.
    ///
    /// # Errors
    /// It is not, or not by this version of its recipe.
    pub fn find(&self, recipe: &Recipe) -> Result<PathBuf> {
        let artefacts = self.artefacts(recipe);
        if artefacts.is_dir() { Ok(artefacts) } else { Err(Error::NotBuilt { name: recipe.name.clone() }) }
    }

    /// The artefacts of the image of this name that was built last, by whichever version of its recipe. It is for a
    /// program that has no recipes.
    ///
    /// # Errors
    /// It was never built.
    pub fn current(&self, name: &str) -> Result<PathBuf> {
        let current = self.images.join(name).join("current");
        current.canonicalize().map_err(|_| Error::NotBuilt { name: name.into() })
    }

    /// Builds an image and what it needs, unless they are built; returns the artefacts' directory.
    ///
    /// Other processes may do the same: the second waits for the first and takes what it made. A build that fails or
    /// is killed leaves nothing that could be taken for an image.
    ///
    /// # Errors
    /// The recipe fails, or the cache cannot be written.
    pub fn build(&self, recipe: &Recipe, force: bool, progress: &mut dyn Progress) -> Result<PathBuf> {
        let mut variables = Vec::new();
        for need in &recipe.needs {
            let name = need.name.to_uppercase().replace('-', "_");
            variables.push((name, self.build(need, false, progress)?));
        }
        let artefacts = self.artefacts(recipe);
        let versions = self.images.join(&recipe.name);
        fs::create_dir_all(&versions).map_err(failed("create", &versions))?;
        let lock_path = versions.join(".lock");
        let lock = File::create(&lock_path).map_err(failed("create", &lock_path))?;
        // Held until `lock` is closed, at the latest when this process ends.
        lock.lock().map_err(failed("lock", &lock_path))?;

        if force || !artefacts.is_dir() {
            progress.begin(&recipe.name);
            let result = self.run(recipe, &versions, &variables, progress);
            progress.end();
            let built = result?;
            let old = versions.join(".old");
            remove(&old)?;
            if artefacts.exists() {
                fs::rename(&artefacts, &old).map_err(failed("replace", &artefacts))?;
            }
            fs::rename(&built, &artefacts).map_err(failed("create", &artefacts))?;
            remove(&old)?;
        }
        self.point_current(recipe, &versions)?;
        Ok(artefacts)
    }

    fn artefacts(&self, recipe: &Recipe) -> PathBuf {
        self.images.join(&recipe.name).join(&recipe.key)
    }

    /// Runs the recipe's script; returns the directory that it filled.
    fn run(
        &self,
        recipe: &Recipe,
        versions: &Path,
        variables: &[(String, PathBuf)],
        progress: &mut dyn Progress,
    ) -> Result<PathBuf> {
        let (out, work, log) = (versions.join(".out"), versions.join(".work"), versions.join("build.log"));
        for directory in [&out, &work] {
            remove(directory)?;
            fs::create_dir(directory).map_err(failed("create", directory))?;
        }
        let script = recipe.directory.join("build");
        let program = env::current_exe().map_err(failed("find the program itself, run from", &script))?;
        let (output, script_output) = io::pipe().map_err(failed("run", &script))?;
        let mut child = Command::new(&script)
            .env("OUT", &out)
            .env("WORK", &work)
            .env("RECIPE", &recipe.directory)
            .env("INNKEEPER_IMAGES", program)
            .envs(variables.iter().map(|(name, path)| (name, path)))
            .current_dir(&work)
            .stdin(Stdio::null())
            .stdout(script_output.try_clone().map_err(failed("run", &script))?)
            .stderr(script_output)
            .spawn()
            .map_err(failed("run", &script))?;

        let mut log_file = File::create(&log).map_err(failed("create", &log))?;
        let mut tail = VecDeque::new();
        for line in BufReader::new(output).split(b'\n') {
            let line = line.map_err(failed("read the output of", &script))?;
            let line = String::from_utf8_lossy(&line);
            writeln!(log_file, "{line}").map_err(failed("write", &log))?;
            if let Some(step) = line.strip_prefix("== ") {
                progress.step(step);
            }
            if tail.len() == 10 {
                tail.pop_front();
            }
            tail.push_back(line.into_owned());
        }
        let status = child.wait().map_err(failed("run", &script))?;
        remove(&work)?;
        if status.success() {
            return Ok(out);
        }
        remove(&out)?;
        let tail = tail.into_iter().map(|line| format!("  {line}")).collect::<Vec<_>>().join("\n");
        Err(Error::Failed { name: recipe.name.clone(), status, log, tail })
    }

    /// Makes `current` lead to this version, at once.
    fn point_current(&self, recipe: &Recipe, versions: &Path) -> Result<()> {
        let (current, new) = (versions.join("current"), versions.join(".current"));
        if fs::read_link(&current).is_ok_and(|target| target == Path::new(&recipe.key)) {
            return Ok(());
        }
        remove(&new)?;
        symlink(&recipe.key, &new).map_err(failed("create", &new))?;
        fs::rename(&new, &current).map_err(failed("create", &current))
    }
}

/// Removes a file, or a directory with all that is in it, if it exists.
fn remove(path: &Path) -> Result<()> {
    let result = match path.symlink_metadata() {
        Ok(metadata) if metadata.is_dir() => fs::remove_dir_all(path),
        Ok(_) => fs::remove_file(path),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(e) => Err(e),
    };
    result.map_err(failed("remove", path))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Default)]
    struct Steps(Vec<String>);

    impl Progress for Steps {
        fn begin(&mut self, image: &str) {
            self.0.push(format!("begin {image}"));
        }
        fn step(&mut self, step: &str) {
            self.0.push(step.into());
        }
        fn end(&mut self) {}
    }

    struct Lab {
        directory: tempfile::TempDir,
        recipes: Recipes,
        cache: Cache,
    }

    fn lab() -> Lab {
        let directory = tempfile::tempdir().unwrap();
        let recipes = directory.path().join("recipes");
        fs::create_dir(&recipes).unwrap();
        let cache = Cache::new(directory.path().join("cache"));
        Lab { recipes: Recipes::new(recipes), cache, directory }
    }

    impl Lab {
        fn write(&self, name: &str, script: &str, needs: &str) {
            let directory = self.directory.path().join("recipes").join(name);
            fs::create_dir_all(&directory).unwrap();
            let build = directory.join("build");
            fs::write(&build, format!("#!/bin/sh\nset -e\n{script}\n")).unwrap();
            fs::set_permissions(&build, fs::Permissions::from_mode(0o755)).unwrap();
            fs::write(directory.join("needs"), needs).unwrap();
        }
    }

    #[test]
    fn builds_once_with_what_it_needs() {
        let lab = lab();
        lab.write("bread", "echo == knead; echo rye > $OUT/loaf", "");
        lab.write("open-sandwich", "cp $BREAD/loaf $OUT/", "bread");
        let recipe = lab.recipes.get("open-sandwich").unwrap();
        assert!(matches!(lab.cache.find(&recipe), Err(Error::NotBuilt { .. })));

        let mut steps = Steps::default();
        let artefacts = lab.cache.build(&recipe, false, &mut steps).unwrap();
        assert_eq!(fs::read_to_string(artefacts.join("loaf")).unwrap(), "rye\n");
        assert_eq!(steps.0, ["begin bread", "knead", "begin open-sandwich"]);
        assert_eq!(lab.cache.find(&recipe).unwrap(), artefacts);
        assert_eq!(lab.cache.current("open-sandwich").unwrap(), artefacts.canonicalize().unwrap());
        assert!(matches!(lab.cache.current("toast"), Err(Error::NotBuilt { .. })));

        let mut steps = Steps::default();
        lab.cache.build(&recipe, false, &mut steps).unwrap();
        assert!(steps.0.is_empty());
        lab.cache.build(&recipe, true, &mut steps).unwrap();
        assert_eq!(steps.0, ["begin open-sandwich"]);
    }

    #[test]
    fn a_change_below_changes_the_key() {
        let lab = lab();
        lab.write("bread", "true", "");
        lab.write("sandwich", "true", "bread");
        let before = lab.recipes.get("sandwich").unwrap().key().to_owned();
        assert_eq!(before, lab.recipes.get("sandwich").unwrap().key());
        lab.write("bread", "true # rye", "");
        assert_ne!(before, lab.recipes.get("sandwich").unwrap().key());
    }

    #[test]
    fn a_program_may_be_part_of_an_image() {
        let lab = lab();
        let key = |program: &str| {
            lab.write("toast", "cp $INNKEEPER_IMAGES $OUT/", "");
            fs::write(lab.recipes.directory.join("toast").join(program), "").unwrap();
            lab.recipes.get("toast").unwrap().key().to_owned()
        };
        let without = key("programs");
        fs::remove_file(lab.recipes.directory.join("toast/programs")).unwrap();
        assert_ne!(without, key("program"));
        assert_eq!(key("program"), key("program"));
    }

    #[test]
    fn a_failed_build_leaves_no_image() {
        let lab = lab();
        lab.write("toast", "echo half > $OUT/toast; echo burnt >&2; exit 3", "");
        let recipe = lab.recipes.get("toast").unwrap();
        let error = lab.cache.build(&recipe, false, &mut Steps::default()).unwrap_err();
        assert!(error.to_string().contains("burnt"), "{error}");
        assert!(lab.cache.find(&recipe).is_err());
        lab.write("toast", "true", "");
        lab.cache.build(&lab.recipes.get("toast").unwrap(), false, &mut Steps::default()).unwrap();
    }

    #[test]
    fn names_what_there_is() {
        let lab = lab();
        lab.write("egg", "true", "hen");
        lab.write("hen", "true", "egg");
        assert!(matches!(lab.recipes.get("hen"), Err(Error::Cycle(name)) if name == "hen"));
        let error = lab.recipes.get("../hen").unwrap_err().to_string();
        assert!(error.contains("there are: egg, hen"), "{error}");
    }
}
