//! How many disks and network interfaces an instance can have.

use crate::query::ApiError;

/// All of them together, as EC2 has it for its newer types. Each is a device in a slot of its VMM's bus, of which as many as
/// 30 can come and go.
pub const MAX_ATTACHMENTS: usize = 28;

/// The most disks, for every instance has an interface.
pub const MAX_VOLUMES: usize = MAX_ATTACHMENTS - 1;

/// Whether an instance can have so many disks, volumes and those of its instance store, and so many interfaces.
pub fn check_attachments(disks: usize, interfaces: usize) -> Result<(), ApiError> {
    if disks + interfaces <= MAX_ATTACHMENTS {
        return Ok(());
    }
    let message = format!(
        "An instance can have at most {MAX_ATTACHMENTS} volumes, instance store volumes and network interfaces together; \
         this would be {disks} and {interfaces}."
    );
    Err(ApiError::new("AttachmentLimitExceeded", message))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::actions::testing::Client;
    use crate::records::InstanceState;

    #[test]
    fn disks_and_interfaces_share_what_there_is() {
        for (disks, interfaces, fit) in
            [(27, 1, true), (28, 0, true), (13, 15, true), (27, 2, false), (28, 1, false)]
        {
            assert_eq!(check_attachments(disks, interfaces).is_ok(), fit, "{disks} and {interfaces}");
        }
    }

    #[test]
    fn no_instance_gets_more_than_its_vmm_has_slots_for() {
        let client = Client::new();
        let instance = client.instance(InstanceState::Stopped);
        let attach = |number: u8| {
            let volume = client.text("CreateVolume&AvailabilityZone=us-east-1a&Size=1", "volumeId");
            // Up to bz, and then cz.
            let device = format!("{}{}", if number < 26 { 'b' } else { 'c' }, char::from(b'a' + number % 26));
            client
                .ask(&format!("AttachVolume&VolumeId={volume}&InstanceId={instance}&Device=/dev/xvd{device}"))
        };
        for number in 0..26 {
            attach(number).unwrap();
        }
        let interface = || {
            let subnet = client.texts(
                "DescribeSubnets&Filter.1.Name=availability-zone&Filter.1.Value.1=us-east-1a",
                "subnetId",
            );
            client.text(&format!("CreateNetworkInterface&SubnetId={}", subnet[0]), "networkInterfaceId")
        };
        let plug = |index: u8| {
            let interface = interface();
            client.ask(&format!(
                "AttachNetworkInterface&NetworkInterfaceId={interface}&InstanceId={instance}&DeviceIndex={index}"
            ))
        };
        // The second interface takes the last place.
        plug(1).unwrap();
        assert_eq!(attach(26).unwrap_err().code, "AttachmentLimitExceeded");
        let attachments = client.texts("DescribeNetworkInterfaces", "attachmentId");
        let second = attachments
            .iter()
            .find(|id| client.ask(&format!("DetachNetworkInterface&AttachmentId={id}")).is_ok());
        assert!(second.is_some());
        attach(26).unwrap();
        assert_eq!(plug(1).unwrap_err().code, "AttachmentLimitExceeded");
    }
}
