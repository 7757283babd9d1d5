//! What GRUB would boot by its `grub.cfg`: a small interpreter for what `grub-mkconfig` writes.
//!
//! `script` has the syntax and `run` the commands. The menu is made, the default looked up in it, and only that
//! entry's commands are run. What is left out, because no generated script needs it to say what is booted: functions,
//! loops, and files that it includes. `search` decides nothing either: paths are those of the file system that
//! `grub.cfg` is on.
//!
//! `next_entry`, what `grub-reboot` writes, is not taken: GRUB would remove it as it boots, and here nobody writes to the
//! disk, so that "once" would be for ever.

mod run;
mod script;

use std::cell::Cell;
use std::collections::BTreeMap;

use super::bls;
use super::entry::{BootEntry, Variables};
use run::{Body, Entry, Machine};

/// How deep menus may be in one another.
const MAX_MENUS: usize = 8;

/// What all scripts of a disk may do together: what they have of text and of words, with the values of variables, in
/// bytes. Debian's takes less than 100 KiB.
pub const MAX_WORK: usize = 16 << 20;

/// Takes something from the work that may be done.
fn charge(work: &Cell<usize>, length: usize) -> Result<(), Error> {
    let rest = work.get().checked_sub(length).ok_or(Error::Limit("there is too much to do in it"))?;
    work.set(rest);
    Ok(())
}

/// Why a `grub.cfg` says nothing.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// It is no script.
    #[error(transparent)]
    Syntax(#[from] script::Error),
    /// More of something than is accepted.
    #[error("{0}")]
    Limit(&'static str),
    /// The default is an entry of the Boot Loader Specification that says nothing.
    #[error(transparent)]
    Specified(#[from] bls::Error),
    /// The default is something else than Linux.
    #[error("its default entry, {0:?}, has no linux command: choose another default (GRUB_DEFAULT)")]
    NoKernel(String),
}

/// GRUB's environment, `grubenv`: a block of 1024 bytes with names and values.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Environment(BTreeMap<String, String>);

impl Environment {
    /// Reads it. `None` if it is none.
    pub fn parse(block: &[u8]) -> Option<Self> {
        let block = block.strip_prefix(b"# GRUB Environment Block\n")?;
        let text =
            String::from_utf8_lossy(block.get(..block.len().min(4096)).unwrap_or_default()).into_owned();
        let mut variables = BTreeMap::new();
        for line in text.lines() {
            if let Some((name, value)) = line.split_once('=')
                && !name.starts_with('#')
                && !matches!(name, "next_entry" | "initrdfail")
            {
                variables.insert(name.to_owned(), value.replace("\\\\", "\\"));
            }
        }
        Some(Self(variables))
    }

    /// The value of a variable.
    pub fn get(&self, name: &str) -> Option<&str> {
        self.0.get(name).map(String::as_str)
    }

    fn iter(&self) -> impl Iterator<Item = (&str, &str)> {
        self.0.iter().map(|(name, value)| (name.as_str(), value.as_str()))
    }
}

impl Variables for Environment {
    fn value(&self, name: &str) -> &str {
        self.get(name).unwrap_or_default()
    }
}

impl Variables for Machine<'_> {
    fn value(&self, name: &str) -> &str {
        self.get(name)
    }
}

/// The entry that a script boots; `None` if its menu is empty. `specified` are the entries of the Boot Loader
/// Specification, best first, which are part of the menu if the script asks for them. `work` is what may still be done of
/// [`MAX_WORK`].
///
/// # Errors
/// Those of the script.
pub fn default_entry(
    source: &str,
    environment: Option<&Environment>,
    specified: &[bls::Entry],
    work: &Cell<usize>,
) -> Result<Option<BootEntry>, Error> {
    charge(work, source.len())?;
    let script = script::parse(source)?;
    let mut machine = Machine::new(environment, work);
    machine.run(&script)?;
    let default = machine.get("default").to_owned();
    let mut wanted = default.as_str();
    for _ in 0..MAX_MENUS {
        let menu = std::mem::take(&mut machine.menu);
        let Some((chosen, rest)) = choose(&menu, specified, wanted) else { return Ok(None) };
        match chosen {
            Chosen::Specified(entry) => return Ok(Some(entry.boot_entry(&machine)?)),
            Chosen::Own(Entry { body: Body::Submenu(statements), .. }) => {
                machine.run(statements)?;
                wanted = rest;
            }
            Chosen::Own(Entry { title, body, .. }) => {
                if let Body::Commands(statements) = body {
                    machine.run(statements)?;
                }
                let kernel = machine.kernel.take().unwrap_or_default();
                let Some((kernel, arguments)) = kernel.split_first() else {
                    return Err(Error::NoKernel(title.clone()));
                };
                return Ok(Some(BootEntry {
                    title: title.clone(),
                    kernel: without_device(kernel),
                    initrds: machine.initrds.iter().map(|path| without_device(path)).collect(),
                    arguments: Some(
                        arguments.iter().map(|argument| quoted(argument)).collect::<Vec<_>>().join(" "),
                    ),
                }));
            }
        }
    }
    Err(Error::Limit("menus are in one another more than 8 deep"))
}

enum Chosen<'m, 's> {
    Own(&'m Entry<'s>),
    Specified(&'m bls::Entry),
}

/// The entry that a default says, by number, identifier or title, and what is left of the default for a submenu. What
/// is not there is the first one, as with GRUB.
fn choose<'m, 's, 'w>(
    menu: &'m [Entry<'s>],
    specified: &'m [bls::Entry],
    wanted: &'w str,
) -> Option<(Chosen<'m, 's>, &'w str)> {
    let entries = || {
        menu.iter().flat_map(|entry| {
            let (own, specified) = match entry.body {
                Body::Specification => (None, specified),
                _ => (Some(Chosen::Own(entry)), &[][..]),
            };
            own.into_iter().chain(specified.iter().map(Chosen::Specified))
        })
    };
    let by_name = |name: &str| {
        entries().find(|entry| match entry {
            Chosen::Own(entry) => entry.id.as_deref() == Some(name) || entry.title == name,
            Chosen::Specified(entry) => entry.id == name || entry.title.as_deref() == Some(name),
        })
    };
    let (first, rest) = split_default(wanted);
    let found = match first.parse::<usize>() {
        Ok(number) => entries().nth(number),
        Err(_) => by_name(&first),
    };
    match found {
        Some(entry) => Some((entry, rest)),
        None => entries().next().map(|entry| (entry, "")),
    }
}

/// Parts a default at its first `>`. Two of them are one of a title.
fn split_default(default: &str) -> (String, &str) {
    let mut at = 0;
    while let Some(found) = default.get(at..).and_then(|rest| rest.find('>')) {
        let mark = at + found;
        if default.get(mark + 1..).is_some_and(|rest| rest.starts_with('>')) {
            at = mark + 2;
            continue;
        }
        let (first, rest) = default.split_at(mark);
        return (first.replace(">>", ">"), rest.get(1..).unwrap_or_default());
    }
    (default.replace(">>", ">"), "")
}

/// A path without the device in front, such as `($root)`.
fn without_device(path: &str) -> String {
    let inner = path.strip_prefix('(').and_then(|rest| rest.split_once(')'));
    inner.map_or(path, |(_, path)| path).to_owned()
}

/// An argument as GRUB hands it to Linux, which takes quotes off itself.
fn quoted(argument: &str) -> String {
    if argument.contains(' ') {
        format!("\"{}\"", argument.replace('"', "\\\""))
    } else {
        argument.to_owned()
    }
}

#[cfg(test)]
mod tests;
