//! What there is to read: categories and their leaves, as EC2's documentation lists them, made from the records at the
//! moment of the request.
//!
//! - [`Category`] is a list of names, each with a way to what is behind it, so that only what is asked for is made.
//! - [`meta_data`], [`network`], [`events`] and [`dynamic`] say what is where. What an instance does not have is not
//!   listed, and whatever is listed can be read.
//!
//! A version of the tree has what there was at its date.

mod dynamic;
mod events;
mod iam;
mod meta_data;
mod network;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use jiff::Timestamp;
use serde::Serialize;

use crate::records::{Instance, NetworkInterface};
use crate::state::World;

pub use dynamic::{Signed, document};

/// The versions of the tree. The last one has everything.
pub const VERSIONS: [&str; 26] = [
    "1.0",
    "2007-01-19",
    "2007-03-01",
    "2007-08-29",
    "2007-10-10",
    "2007-12-15",
    "2008-02-01",
    "2008-09-01",
    "2009-04-04",
    "2011-01-01",
    "2011-05-01",
    "2012-01-12",
    "2014-02-25",
    "2014-11-05",
    "2015-10-20",
    "2016-04-19",
    "2016-06-30",
    "2016-09-02",
    "2018-03-28",
    "2018-08-17",
    "2018-09-24",
    "2019-10-01",
    "2020-10-27",
    "2021-01-03",
    "2021-03-23",
    LATEST,
];

/// The version that has everything.
pub const LATEST: &str = "latest";

/// The first version.
const FIRST: &str = "1.0";

/// An instance, as it is now.
#[derive(Clone, Copy)]
pub struct View<'v> {
    /// Everything.
    pub world: &'v World,
    /// The instance.
    pub instance: &'v Instance,
    /// Its region.
    pub region: &'v str,
    /// The time.
    pub now: Timestamp,
}

impl<'v> View<'v> {
    /// Its primary interface.
    fn primary(self) -> Option<&'v NetworkInterface> {
        self.world.get::<NetworkInterface>(&self.instance.network_interface).map(AsRef::as_ref)
    }
}

/// What is at a path.
pub enum Node<'v> {
    /// A text.
    Text(String),
    /// What the owner of the instance gave to it, byte by byte.
    UserData(Vec<u8>),
    /// A signature of the identity document, which takes a while.
    Signature(Signed),
    /// More paths.
    Category(Category<'v>),
}

/// What is behind a name.
type Way<'v> = Box<dyn Fn() -> Option<Node<'v>> + 'v>;

struct Entry<'v> {
    name: String,
    /// What stands in the list of the category.
    listed: String,
    way: Way<'v>,
}

/// A list of names.
pub struct Category<'v> {
    version: &'v str,
    entries: Vec<Entry<'v>>,
}

impl<'v> Category<'v> {
    fn new(version: &'v str) -> Self {
        Self { version, entries: Vec::new() }
    }

    /// Whether this version of the tree has what was new in `since`.
    fn has(&self, since: &str) -> bool {
        // Letters come behind digits, and dates are in their order.
        self.version >= since
    }

    fn push(&mut self, name: impl Into<String>, listed: impl Into<String>, way: Way<'v>) {
        self.entries.push(Entry { name: name.into(), listed: listed.into(), way });
    }

    /// A leaf that is always there.
    fn text(mut self, since: &str, name: &str, text: impl Fn() -> String + 'v) -> Self {
        if self.has(since) {
            self.push(name, name, Box::new(move || Some(Node::Text(text()))));
        }
        self
    }

    /// A leaf that is there if it says something.
    fn some(self, since: &str, name: &str, text: Option<String>) -> Self {
        match text {
            Some(text) => self.text(since, name, move || text.clone()),
            None => self,
        }
    }

    /// A leaf whose name is the instance's own.
    fn named(mut self, name: String, text: String) -> Self {
        self.push(name.clone(), name, Box::new(move || Some(Node::Text(text.clone()))));
        self
    }

    /// A category that is always there.
    fn category(mut self, since: &str, name: &str, inside: impl Fn(Self) -> Self + 'v) -> Self {
        if self.has(since) {
            self.within(name.to_owned(), inside);
        }
        self
    }

    /// A category whose name is the instance's own.
    fn within(&mut self, name: String, inside: impl Fn(Self) -> Self + 'v) {
        let version = self.version;
        let listed = format!("{name}/");
        self.push(name, listed, Box::new(move || Some(Node::Category(inside(Category::new(version))))));
    }

    /// A category that is there if it has something.
    fn category_if(self, there: bool, since: &str, name: &str, inside: impl Fn(Self) -> Self + 'v) -> Self {
        if there { self.category(since, name, inside) } else { self }
    }

    /// What is behind a name.
    fn get(&self, name: &str) -> Option<Node<'v>> {
        let entry = self.entries.iter().find(|entry| entry.name == name)?;
        (entry.way)()
    }

    /// The names, one in a line, in their order.
    pub fn list(&self) -> String {
        let mut names: Vec<&str> = self.entries.iter().map(|entry| entry.listed.as_str()).collect();
        names.sort_unstable();
        names.join("\n")
    }
}

/// What is at a path: its parts, the version first.
pub fn lookup<'v>(view: View<'v>, path: &[impl AsRef<str>]) -> Option<Node<'v>> {
    let Some((version, path)) = path.split_first() else {
        let mut versions = Category::new(LATEST);
        for version in VERSIONS {
            versions.push(version, version, Box::new(|| None));
        }
        return Some(Node::Category(versions));
    };
    let version = VERSIONS.into_iter().find(|known| *known == version.as_ref())?;
    let mut node = Node::Category(root(view, version));
    for part in path {
        let Node::Category(category) = node else { return None };
        node = category.get(part.as_ref())?;
    }
    Some(node)
}

/// What a version has. Here alone, categories are listed without a slash.
fn root<'v>(view: View<'v>, version: &'v str) -> Category<'v> {
    let mut root = Category::new(version);
    let mut top = |name: &str, category: fn(View<'v>, Category<'v>) -> Category<'v>| {
        let way = move || Some(Node::Category(category(view, Category::new(version))));
        root.push(name, name, Box::new(way));
    };
    top("meta-data", meta_data::meta_data);
    if version >= "2009-04-04" {
        top("dynamic", dynamic::dynamic);
    }
    if let Some(text) = &view.instance.user_data {
        // It was checked when it came.
        let way = move || STANDARD.decode(text).ok().map(Node::UserData);
        root.push("user-data", "user-data", Box::new(way));
    }
    root
}

/// A document, as EC2 writes it: in lines, with a space before the colon. No value has a quotation mark before a colon and a space.
fn json(document: &impl Serialize) -> String {
    // A document of texts can always be written.
    let text = serde_json::to_string_pretty(document).unwrap_or_default();
    text.replace("\": ", "\" : ")
}

/// A time, as in `2026-11-29T10:00:00Z`.
fn second(time: Timestamp) -> String {
    time.strftime("%Y-%m-%dT%H:%M:%SZ").to_string()
}

#[cfg(test)]
mod tests;
