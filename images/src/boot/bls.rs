//! Entries of the Boot Loader Specification (UAPI.1), as in `/boot/loader/entries`.

use std::cmp::Ordering;

use super::entry::{BootEntry, MAX_INITRDS, Variables};
use super::version;

/// The length of all that an entry becomes with its variables, in bytes. A command line is much shorter.
const MAX_EXPANDED: usize = 64 << 10;

/// How much is compared of what entries are ordered by, in characters: as much as a file's name may have. Each is compared
/// with others again and again.
const MAX_KEY: usize = 255;

/// Why an entry says nothing.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// More than [`MAX_INITRDS`].
    #[error("its default entry has more than {MAX_INITRDS} initial RAM file systems")]
    Initrds,
    /// Variables make it too long.
    #[error("its default entry has more than {} KiB with its variables", MAX_EXPANDED >> 10)]
    Expanded,
}

/// An entry.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Entry {
    /// The file's name without `.conf` and without the counters of tries.
    pub id: String,
    /// For people.
    pub title: Option<String>,
    /// The kernel's version.
    pub version: String,
    sort_key: Option<String>,
    machine_id: String,
    linux: String,
    /// In lines: as many strings could take more memory than the file.
    initrds: String,
    options: String,
    has_no_tries_left: bool,
}

impl Entry {
    /// Reads an entry from the file of this name. `None` if it is none for Linux on this architecture.
    pub fn parse(file_name: &str, text: &str) -> Option<Self> {
        let name = file_name.strip_suffix(".conf")?;
        let (id, tries) = name.rsplit_once('+').filter(|(_, tries)| are_tries(tries)).unwrap_or((name, "1"));
        let mut entry = Self {
            id: id.to_owned(),
            has_no_tries_left: tries.split('-').next() == Some("0"),
            ..Self::default()
        };
        for line in text.lines() {
            let line = line.trim();
            let (key, value) = line.split_once([' ', '\t']).unwrap_or((line, ""));
            let value = value.trim();
            let compared = || value.chars().take(MAX_KEY).collect();
            match key {
                "title" => entry.title = Some(value.to_owned()),
                "version" => entry.version = compared(),
                "sort-key" => entry.sort_key = Some(compared()),
                "machine-id" => entry.machine_id = compared(),
                "linux" => entry.linux = value.to_owned(),
                "initrd" => entry.initrds.extend([value, "\n"]),
                "options" => entry.options.extend([value, "\n"]),
                "architecture" if !value.eq_ignore_ascii_case("x64") => return None,
                _ => {}
            }
        }
        (!entry.linux.is_empty()).then_some(entry)
    }

    /// What it boots, with the values of variables such as `$kernelopts`.
    ///
    /// # Errors
    /// It is more than is accepted.
    pub fn boot_entry(&self, variables: &dyn Variables) -> Result<BootEntry, Error> {
        let mut room = MAX_EXPANDED;
        let mut initrds = Vec::new();
        for paths in self.initrds.lines() {
            // There may be several on a line, and variables for more.
            let paths = expand(paths, variables, &mut room)?;
            initrds.extend(paths.split_whitespace().take(MAX_INITRDS + 1).map(str::to_owned));
            if initrds.len() > MAX_INITRDS {
                return Err(Error::Initrds);
            }
        }
        let options = self.options.trim_end_matches('\n').replace('\n', " ");
        let arguments = expand(&options, variables, &mut room)?;
        Ok(BootEntry {
            title: self.title.clone().unwrap_or_else(|| self.id.clone()),
            kernel: self.linux.clone(),
            initrds,
            arguments: Some(arguments.trim().to_owned()),
        })
    }
}

/// Counters of tries as in `+3` or `+2-1`.
fn are_tries(text: &str) -> bool {
    let mut numbers = text.split('-');
    numbers.clone().count() <= 2 && numbers.all(|number| number.parse::<u32>().is_ok())
}

/// Puts in the values of `$name` and `${name}`. `room` is how long it may become, in bytes, and then what is left of it.
fn expand(text: &str, variables: &dyn Variables, room: &mut usize) -> Result<String, Error> {
    let mut expanded = String::new();
    let mut push = |piece: &str| {
        *room = room.checked_sub(piece.len()).ok_or(Error::Expanded)?;
        expanded.push_str(piece);
        Ok(())
    };
    let mut rest = text;
    while let Some((before, after)) = rest.split_once('$') {
        push(before)?;
        let braced = after.strip_prefix('{').and_then(|inner| inner.split_once('}'));
        let (name, behind) = braced.unwrap_or_else(|| {
            let end = after.find(|c: char| !c.is_ascii_alphanumeric() && c != '_').unwrap_or(after.len());
            after.split_at(end)
        });
        if name.is_empty() {
            push("$")?;
        }
        push(variables.value(name))?;
        rest = behind;
    }
    push(rest)?;
    Ok(expanded)
}

/// The order in a menu, best first ("Sorting" in the specification).
pub fn order(a: &Entry, b: &Entry) -> Ordering {
    let newer_first = |a: &str, b: &str| version::compare(b, a);
    let by_key = || match (&a.sort_key, &b.sort_key) {
        (Some(x), Some(y)) => x
            .cmp(y)
            .then_with(|| a.machine_id.cmp(&b.machine_id))
            .then_with(|| newer_first(&a.version, &b.version)),
        (Some(_), None) => Ordering::Less,
        (None, Some(_)) => Ordering::Greater,
        (None, None) => Ordering::Equal,
    };
    a.has_no_tries_left
        .cmp(&b.has_no_tries_left)
        .then_with(by_key)
        .then_with(|| newer_first(&a.id, &b.id))
        .then_with(|| b.id.cmp(&a.id))
}

/// The entry that is booted, of entries in their [`order`]. `saved` is from GRUB's environment, and `loader` is
/// `loader.conf`.
pub fn default_entry<'e>(
    entries: &'e [Entry],
    saved: Option<&str>,
    loader: Option<&str>,
) -> Option<&'e Entry> {
    let by_id = |id: &str| entries.iter().find(|entry| entry.id == id.strip_suffix(".conf").unwrap_or(id));
    let by_number = |text: &str| text.parse::<usize>().ok().and_then(|number| entries.get(number));
    let saved =
        saved.filter(|saved| !saved.is_empty()).and_then(|saved| by_id(saved).or_else(|| by_number(saved)));
    let by_pattern = || {
        let default = loader?
            .lines()
            .filter_map(|line| line.trim().split_once([' ', '\t']))
            .rfind(|(key, _)| *key == "default");
        let (_, pattern) = default?;
        let pattern = pattern.trim();
        entries.iter().find(|entry| {
            matches(pattern.as_bytes(), format!("{}.conf", entry.id).as_bytes())
                || matches(pattern.as_bytes(), entry.id.as_bytes())
        })
    };
    saved.or_else(by_pattern).or_else(|| entries.first())
}

/// Whether a name is as a pattern with `*` and `?` says. It takes no longer than one times the other's length.
fn matches(pattern: &[u8], name: &[u8]) -> bool {
    let (mut p, mut n) = (0, 0);
    // Where to go on if the last star has to take in one more.
    let mut star = None;
    while n < name.len() {
        match pattern.get(p) {
            Some(b'*') => {
                star = Some((p + 1, n));
                p += 1;
            }
            Some(wanted) if *wanted == b'?' || name.get(n) == Some(wanted) => (p, n) = (p + 1, n + 1),
            _ => match star {
                Some((behind, taken)) => {
                    (p, n) = (behind, taken + 1);
                    star = Some((behind, taken + 1));
                }
                None => return false,
            },
        }
    }
    pattern.get(p..).unwrap_or_default().iter().all(|byte| *byte == b'*')
}

#[cfg(test)]
mod tests;
