//! Runs a script as far as it has to do with what is booted. Unknown commands do nothing, and succeed.

use std::cell::Cell;
use std::collections::{BTreeMap, BTreeSet};

use super::script::{Part, Statement, Word};
use super::{Environment, Error};
use crate::boot::entry::MAX_INITRDS;

/// How many variables there may be, and entries in a menu.
const MAX_VARIABLES: usize = 512;
const MAX_ENTRIES: usize = 1024;

/// The length of a variable's value and of a command, in bytes. What does not fit fails.
const MAX_VALUE: usize = 4096;
const MAX_COMMAND: usize = 64 << 10;

/// What a word and a variable cost of the work that may be done, beside their length, in bytes.
const WORD: usize = 64;

/// An entry of a menu.
#[derive(Debug)]
pub struct Entry<'s> {
    pub title: String,
    pub id: Option<String>,
    pub body: Body<'s>,
}

/// What an entry leads to.
#[derive(Clone, Copy, Debug)]
pub enum Body<'s> {
    Commands(&'s [Statement<'s>]),
    Submenu(&'s [Statement<'s>]),
    /// All entries of the Boot Loader Specification, at this place.
    Specification,
}

/// The state of a run.
#[derive(Debug)]
pub struct Machine<'s> {
    environment: Option<&'s Environment>,
    /// What may still be done, in bytes.
    work: &'s Cell<usize>,
    variables: BTreeMap<String, String>,
    /// The menu as far as it is made.
    pub menu: Vec<Entry<'s>>,
    /// What `linux` was last called with.
    pub kernel: Option<Vec<String>>,
    /// What `initrd` was last called with.
    pub initrds: Vec<String>,
}

impl<'s> Machine<'s> {
    /// With the variables that GRUB itself sets. `work` is what may be done, in bytes.
    pub fn new(environment: Option<&'s Environment>, work: &'s Cell<usize>) -> Self {
        let own = [
            ("grub_platform", "pc"),
            ("grub_cpu", "x86_64"),
            ("prefix", "/boot/grub"),
            ("config_directory", "/boot/grub"),
            ("feature_menuentry_id", "y"),
            ("feature_menuentry_options", "y"),
            ("feature_default_font_path", "y"),
            ("feature_platform_search_hint", "y"),
            ("feature_timeout_style", "y"),
            ("feature_all_video_module", "y"),
            // Ubuntu first tries to do without an initrd, and notes in the environment that this has failed. Nobody notes
            // it here, and with an initrd it boots in any case.
            ("initrdfail", "1"),
        ];
        let variables = own.map(|(name, value)| (name.to_owned(), value.to_owned())).into();
        Self { environment, work, variables, menu: Vec::new(), kernel: None, initrds: Vec::new() }
    }

    /// The value of a variable; empty if there is none.
    pub fn get(&self, name: &str) -> &str {
        self.variables.get(name).map_or("", String::as_str)
    }

    /// Takes something from the work that may be done. A short script can make words out of words.
    fn charge(&self, length: usize) -> Result<(), Error> {
        super::charge(self.work, length.saturating_add(WORD))
    }

    fn set(&mut self, name: &str, value: &str) -> Result<(), Error> {
        if value.len() > MAX_VALUE || name.len() > MAX_VALUE {
            return Err(Error::Limit("a variable has more than 4096 bytes"));
        }
        self.variables.insert(name.to_owned(), value.to_owned());
        if self.variables.len() > MAX_VARIABLES {
            return Err(Error::Limit("there are more than 512 variables"));
        }
        Ok(())
    }

    /// Runs statements, and says whether the last one succeeded.
    pub fn run(&mut self, statements: &'s [Statement<'s>]) -> Result<bool, Error> {
        let mut succeeded = true;
        for statement in statements {
            succeeded = match statement {
                Statement::Command(words, block) => {
                    let words = self.expand(words)?;
                    self.command(&words, block.as_deref())?
                }
                Statement::If(branches, otherwise) => {
                    let mut taken = None;
                    for (condition, then) in branches {
                        if self.run(condition)? {
                            taken = Some(then);
                            break;
                        }
                    }
                    self.run(taken.unwrap_or(otherwise))?
                }
            };
        }
        Ok(succeeded)
    }

    fn expand(&self, words: &[Word<'s>]) -> Result<Vec<String>, Error> {
        let mut expanded = Vec::with_capacity(words.len());
        let mut length = 0;
        for word in words {
            // A word of nothing but an empty variable without quotes is none.
            let mut current: Option<String> = None;
            for part in word {
                let text = match *part {
                    Part::Text(text) | Part::Bare(text) => text,
                    Part::Variable { name, .. } => self.get(name),
                };
                self.charge(text.len())?;
                length += text.len();
                if length > MAX_COMMAND {
                    return Err(Error::Limit("a command has more than 64 KiB"));
                }
                if !matches!(part, Part::Variable { is_quoted: false, .. }) {
                    current.get_or_insert_default().push_str(text);
                    continue;
                }
                for (index, piece) in text.split(' ').enumerate() {
                    if index > 0 {
                        self.charge(0)?;
                        expanded.extend(current.take());
                    }
                    if !piece.is_empty() {
                        current.get_or_insert_default().push_str(piece);
                    }
                }
            }
            expanded.extend(current);
        }
        Ok(expanded)
    }

    fn command(&mut self, words: &[String], block: Option<&'s [Statement<'s>]>) -> Result<bool, Error> {
        let Some((name, arguments)) = words.split_first() else { return Ok(true) };
        match name.as_str() {
            "set" => {
                if let Some((name, value)) = arguments.first().and_then(|word| word.split_once('=')) {
                    self.set(name, value)?;
                }
            }
            "unset" => {
                for name in arguments {
                    self.variables.remove(name);
                }
            }
            "load_env" => return self.load_environment(arguments),
            "true" => return Ok(true),
            "false" => return Ok(false),
            "[" => return Ok(self.test(arguments.split_last().map_or(&[], |(_, condition)| condition))),
            "test" => return Ok(self.test(arguments)),
            "menuentry" => self.entry(arguments, block.map(Body::Commands))?,
            "submenu" => self.entry(arguments, block.map(Body::Submenu))?,
            "blscfg" => {
                if !self.menu.iter().any(|entry| matches!(entry.body, Body::Specification)) {
                    self.menu.push(Entry { title: String::new(), id: None, body: Body::Specification });
                }
            }
            "linux" | "linux16" | "linuxefi" => self.kernel = Some(arguments.to_vec()),
            "initrd" | "initrd16" | "initrdefi" => {
                if arguments.len() > MAX_INITRDS {
                    return Err(Error::Limit("an entry has more than 32 initial RAM file systems"));
                }
                self.initrds = arguments.to_vec();
            }
            // An assignment needs no `set`.
            _ => {
                if let Some((name, value)) = name.split_once('=')
                    && arguments.is_empty()
                    && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_')
                {
                    self.set(name, value)?;
                }
            }
        }
        Ok(true)
    }

    fn load_environment(&mut self, arguments: &[String]) -> Result<bool, Error> {
        let mut wanted = BTreeSet::new();
        let mut arguments = arguments.iter();
        while let Some(argument) = arguments.next() {
            match argument.as_str() {
                // Another file than the usual one.
                "-f" | "--file" if arguments.next().is_none_or(|path| !self.is_environment(path)) => {
                    return Ok(false);
                }
                "-f" | "--file" | "-s" | "--skip-sig" => {}
                name => {
                    wanted.insert(name);
                }
            }
        }
        let Some(environment) = self.environment else { return Ok(false) };
        for (name, value) in environment.iter() {
            self.charge(name.len().saturating_add(value.len()))?;
            if wanted.is_empty() || wanted.contains(name) {
                self.set(name, value)?;
            }
        }
        Ok(true)
    }

    /// Whether a path is that of the environment, and there is one. Other files are not looked for.
    fn is_environment(&self, path: &str) -> bool {
        self.environment.is_some() && path.ends_with("/grubenv")
    }

    fn entry(&mut self, arguments: &[String], body: Option<Body<'s>>) -> Result<(), Error> {
        let Some(body) = body else { return Ok(()) };
        let mut title = None;
        let mut id = None;
        let mut arguments = arguments.iter();
        while let Some(argument) = arguments.next() {
            match argument.as_str() {
                "--id" => id = arguments.next().cloned(),
                "--class" | "--users" | "--hotkey" | "--source" => {
                    arguments.next();
                }
                option if option.starts_with("--") => {
                    if let Some(value) = option.strip_prefix("--id=") {
                        id = Some(value.to_owned());
                    }
                }
                text => {
                    title.get_or_insert_with(|| text.to_owned());
                }
            }
        }
        self.menu.push(Entry { title: title.unwrap_or_default(), id, body });
        if self.menu.len() > MAX_ENTRIES {
            return Err(Error::Limit("there are more than 1024 entries in a menu"));
        }
        Ok(())
    }

    /// What `[` and `test` do: comparisons with `!`, `-a` and `-o`, without parentheses.
    fn test(&self, condition: &[String]) -> bool {
        condition
            .split(|word| word == "-o")
            .any(|terms| terms.split(|word| word == "-a").all(|term| self.term(term)))
    }

    fn term(&self, term: &[String]) -> bool {
        let words: Vec<&str> = term.iter().map(String::as_str).collect();
        let number = |word: &str| word.parse::<i64>().unwrap_or(0);
        match *words.as_slice() {
            ["!", ref rest @ ..] => {
                // From the end of the exclamation marks on, so that no row of them takes long.
                let marks = 1 + rest.iter().take_while(|word| **word == "!").count();
                self.term(term.get(marks..).unwrap_or_default()) != (marks % 2 == 1)
            }
            [word] => !word.is_empty(),
            ["-n", word] => !word.is_empty(),
            ["-z", word] => word.is_empty(),
            ["-s" | "-f" | "-e", path] => self.is_environment(path),
            [a, "=" | "==", b] => a == b,
            [a, "!=", b] => a != b,
            [a, "<", b] => a < b,
            [a, ">", b] => a > b,
            [a, "-eq", b] => number(a) == number(b),
            [a, "-ne", b] => number(a) != number(b),
            [a, "-lt", b] => number(a) < number(b),
            [a, "-le", b] => number(a) <= number(b),
            [a, "-gt", b] => number(a) > number(b),
            [a, "-ge", b] => number(a) >= number(b),
            _ => false,
        }
    }
}
