//! Actions that EC2 does not have, for people on the host.

mod check_volume;
mod describe_host;
mod describe_identity;
mod describe_state;
mod notify_instance;
mod schedule_event;
mod trace_packets;

use crate::query::dispatch::Registry;
pub use schedule_event::find_event;

pub(super) fn register(registry: &mut Registry) {
    registry.add::<check_volume::CheckVolume>();
    registry.add::<describe_host::DescribeHost>();
    registry.add::<describe_identity::DescribeIdentity>();
    registry.add::<describe_state::DescribeState>();
    registry.add::<notify_instance::NotifyInstance>();
    registry.add::<schedule_event::ScheduleEvent>();
    registry.add::<schedule_event::CancelEvent>();
    registry.add::<trace_packets::TracePackets>();
}
