//! The instance types: what each has, by name.

use std::collections::BTreeMap;

/// An instance type.
#[derive(Clone, Debug, PartialEq)]
pub struct InstanceType {
    /// Such as `t3.micro`.
    pub name: String,
    /// How many CPUs the guest sees.
    pub vcpus: u32,
    /// In MiB.
    pub memory: u64,
}

/// All instance types.
#[derive(Clone, Debug, Default)]
pub struct Catalogue {
    types: BTreeMap<String, InstanceType>,
}

impl Catalogue {
    /// The type with this name.
    pub fn get(&self, name: &str) -> Option<&InstanceType> {
        self.types.get(name)
    }

    /// All of them, in the order of their names.
    pub fn all(&self) -> impl Iterator<Item = &InstanceType> {
        self.types.values()
    }
}
