//! What one entry of a boot menu says, whoever wrote it.

/// How many initial RAM file systems an entry may have. One or two are usual.
pub const MAX_INITRDS: usize = 32;

/// An entry of a boot menu.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BootEntry {
    /// For people.
    pub title: String,
    /// The kernel's path, in the file system that the menu is on.
    pub kernel: String,
    /// The paths of the initial RAM file systems, which are put together.
    pub initrds: Vec<String>,
    /// The kernel's arguments, if anything says them.
    pub arguments: Option<String>,
}

/// Where the values of variables come from.
pub trait Variables {
    /// The value of a variable; empty if there is none.
    fn value(&self, name: &str) -> &str;
}
