//! A change of a volume in answers.

use serde::Serialize;

use crate::actions::lookup::time;
use crate::records::{Modification, ModificationState, Volume};

/// `volumeModification`.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct ModificationItem {
    pub volume_id: String,
    pub modification_state: &'static str,
    /// Why it has failed.
    pub status_message: Option<String>,
    pub target_size: u32,
    pub target_iops: Option<u32>,
    pub target_volume_type: String,
    pub target_throughput: Option<u32>,
    pub target_multi_attach_enabled: bool,
    pub original_size: u32,
    pub original_iops: Option<u32>,
    pub original_volume_type: String,
    pub original_throughput: Option<u32>,
    pub original_multi_attach_enabled: bool,
    /// In percent.
    pub progress: u32,
    pub start_time: String,
    pub end_time: Option<String>,
}

impl ModificationItem {
    /// The last change of a volume.
    pub fn new(volume: &Volume, modification: &Modification) -> Self {
        let Modification { original, target, state, started, ended } = modification;
        // It is done at once when it is done, so that nothing is between the beginning and the end.
        let (modification_state, status_message, progress) = match state {
            ModificationState::Modifying => ("modifying", None, 0),
            ModificationState::Completed => ("completed", None, 100),
            ModificationState::Failed(why) => ("failed", Some(why.clone()), 0),
        };
        Self {
            volume_id: volume.id.to_string(),
            modification_state,
            status_message,
            target_size: target.size,
            target_iops: target.iops,
            target_volume_type: target.volume_type.clone(),
            target_throughput: target.throughput,
            target_multi_attach_enabled: false,
            original_size: original.size,
            original_iops: original.iops,
            original_volume_type: original.volume_type.clone(),
            original_throughput: original.throughput,
            original_multi_attach_enabled: false,
            progress,
            start_time: time(*started),
            end_time: ended.map(time),
        }
    }
}
