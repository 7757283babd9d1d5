//! The messages. Sizes are in bytes, times in the unit that the field's name ends in.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::disk::{AttachDisk, LayerFiles, SealDisk};
use crate::metrics::Metrics;

/// A descriptor that came with a message: its position among them, from 0. Each is named once.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Descriptor(pub u32);

/// What a controller sends.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Request {
    /// Comes back in the reply.
    pub id: u64,
    /// What to do.
    pub command: Command,
}

/// What a VMM can be asked to do.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub enum Command {
    /// Opens a connection. Nothing else is answered before.
    Hello {
        /// The version that the controller speaks.
        version: u32,
    },
    /// Says what machine there is to be. Once.
    Configure(Box<Configure>),
    /// Adds a disk: before the start, or while the guest runs.
    AttachDisk(Box<AttachDisk>),
    /// Says what the lower layers are of the next layered disk that this controller adds, above those that it has said
    /// before: a packet has no room for the files of a deep stack. They are let go of when that disk is added or refused, and
    /// with the connection. At most [`LAYERS_MAX`](crate::LAYERS_MAX) layers wait.
    Layers {
        /// From the bottom.
        layers: Vec<LayerFiles>,
    },
    /// Puts new tops on layered disks, at one point of time for all of them. What they held is a snapshot from then on, which
    /// is durable once `finish-seal` has had its event.
    ///
    /// All is checked before any disk is changed, nothing is synced, and it can be said again. Changes of all these disks wait
    /// for each other for a moment: what the guest has seen complete before is in the snapshots, of whichever disk, and what
    /// it begins afterwards is in none. If one that is under way takes longer than a second, nothing is done.
    SealDisks {
        /// Each once.
        disks: Vec<SealDisk>,
    },
    /// Makes durable what `seal-disks` has made a snapshot, and marks those layers as sealed. `disk-sealed` is the event that
    /// follows, also if there is nothing to do. It can be said again; one event may answer all who ask while it is done.
    FinishSeal {
        /// The disk.
        id: String,
    },
    /// Asks which layers a layered disk has. Refused if they are more than
    /// [`NAMED_LAYERS_MAX`](crate::NAMED_LAYERS_MAX).
    DiskLayers {
        /// The disk.
        id: String,
    },
    /// Puts a layer in the place of some below a disk's top that it was merged of. `merged` is opened for reading.
    ReplaceLayers {
        /// The disk.
        id: String,
        /// The lowest of them, counted from the bottom, from 0.
        first: u32,
        /// How many.
        count: u32,
        /// The layer.
        merged: LayerFiles,
    },
    /// Adds a network interface: before the start, or while the guest runs.
    AttachInterface(Box<AttachInterface>),
    /// Takes a disk or an interface away. The guest is asked to let go of it, and asked again each time this is said;
    /// `device-freed` is the event that follows when it has.
    Detach {
        /// The device.
        id: String,
        /// Does not wait for the guest, which loses what it has not written: an interface is pulled out; a disk's file
        /// is closed, and the guest's requests fail until it lets go of what is left.
        #[serde(default)]
        force: bool,
    },
    /// Makes a disk larger. A file or the top layer grows with it.
    ResizeDisk {
        /// The disk.
        id: String,
        /// The new size, a multiple of 512; not less than the old one.
        size: u64,
    },
    /// Sets the limits of a disk, in place of those it had.
    LimitDisk {
        /// The disk.
        id: String,
        /// The limits.
        limits: Limits,
    },
    /// Sets the limits of an interface, in place of those it had.
    LimitInterface {
        /// The interface.
        id: String,
        /// For what the guest receives.
        #[serde(default)]
        receive: Limits,
        /// For what the guest sends.
        #[serde(default)]
        transmit: Limits,
    },
    /// Asks the guest to give memory back, or lets it have that again.
    SetBalloon {
        /// How much memory the guest is to do without.
        size: u64,
    },
    /// Lets the guest connect to a vsock port of the host. Each connection arrives at the other end of `stream`, a
    /// `SOCK_SEQPACKET` socket, as a packet that holds the descriptor of a connected stream socket.
    ListenVsock {
        /// The port.
        port: u32,
        /// Where connections go.
        stream: Descriptor,
    },
    /// Lets the guest run.
    Start,
    /// Stops the CPUs, and returns when they stand still.
    Pause,
    /// Lets the CPUs run on.
    Resume,
    /// Presses the ACPI power button.
    PowerButton,
    /// Presses the power button, again every 10 s, and takes the guest's next power-off as a reset.
    Reboot {
        /// After this time the guest is reset hard.
        timeout_ms: u64,
    },
    /// Resets the guest, as by the button on the case.
    Reset,
    /// Ends the guest, as by pulling the plug.
    PowerOff,
    /// Answers `boot-source-wanted`.
    Boot {
        /// What to boot now; none for the same as before.
        #[serde(default)]
        source: Option<BootSource>,
    },
    /// Has a guest that was reset wait longer for its boot source: this long from now, and ten minutes at most. A controller
    /// that has to look for it says so; who says nothing may be gone.
    DelayBoot {
        /// How long.
        within_ms: u64,
    },
    /// Asks for a [`Status`].
    Status,
    /// Asks for [`Metrics`].
    Metrics,
    /// Copies a console's output, from the beginning of what is kept, to `output`, and takes input for the guest from
    /// `input`. Ends when a descriptor does, or with the guest.
    AttachConsole {
        /// Which one.
        console: ConsoleKind,
        /// Where output goes.
        #[serde(default)]
        output: Option<Descriptor>,
        /// Where input comes from.
        #[serde(default)]
        input: Option<Descriptor>,
        /// Without, what is kept is copied, and then `output` is closed.
        #[serde(default = "yes")]
        follow: bool,
        /// Begin behind this many bytes of all that the guest has printed.
        #[serde(default)]
        after: u64,
    },
    /// Asks for all events whose number is above `after`, those that were and those that will be.
    Events {
        /// The last number that the controller knows; 0 for all.
        after: u64,
    },
    /// Ends the VMM, and with it a guest that still runs.
    Quit,
}

fn yes() -> bool {
    true
}

/// A machine.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Configure {
    /// `/dev/kvm`.
    pub kvm: Descriptor,
    /// How many CPUs, 1 to 32.
    pub cpus: u8,
    /// RAM, 4 MiB to 256 GiB.
    pub memory: u64,
    /// What SMBIOS says.
    pub identity: Identity,
    /// What is booted.
    pub boot: BootSource,
    /// A listening `SOCK_SEQPACKET` socket, for controllers to come. Without, the guest ends with its controller.
    #[serde(default)]
    pub listener: Option<Descriptor>,
    /// Whether there is a virtio console beside the serial port.
    #[serde(default)]
    pub virtio_console: bool,
    /// Whether there is a balloon.
    #[serde(default)]
    pub balloon: bool,
    /// Whether there is a vsock device.
    #[serde(default)]
    pub vsock: Option<Vsock>,
}

/// Who the machine says it is.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Identity {
    /// In its usual text form.
    pub uuid: String,
    /// By default the UUID.
    #[serde(default)]
    pub serial: Option<String>,
    /// The base board's.
    #[serde(default)]
    pub asset_tag: Option<String>,
}

/// What is booted.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BootSource {
    /// An uncompressed ELF kernel or a bzImage.
    pub kernel: Descriptor,
    /// The initial RAM file system.
    #[serde(default)]
    pub initrd: Option<Descriptor>,
    /// The kernel's command line.
    pub command_line: String,
}

/// A vsock device.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Vsock {
    /// The guest's context id, 3 or more.
    pub cid: u32,
    /// A listening stream socket, for connections to the guest: who connects says `CONNECT PORT` and a line feed, and
    /// is answered `OK PORT`.
    #[serde(default)]
    pub listener: Option<Descriptor>,
}

/// A network interface to add.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AttachInterface {
    /// The controller's name for it, unique among all devices.
    pub id: String,
    /// The opened tap, with `IFF_VNET_HDR`: one descriptor for each pair of queues, 1 to 8.
    pub taps: Vec<Descriptor>,
    /// `/dev/vhost-net`, opened once for each pair of queues: the kernel moves the frames.
    #[serde(default)]
    pub vhost: Vec<Descriptor>,
    /// Six pairs of hexadecimal digits with colons.
    pub mac: String,
    /// For what the guest receives. Not with vhost.
    #[serde(default)]
    pub receive: Limits,
    /// For what the guest sends. Not with vhost.
    #[serde(default)]
    pub transmit: Limits,
}

/// How much of something there may be; none means no limit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Limits {
    /// For bytes.
    #[serde(default)]
    pub bytes: Option<Limit>,
    /// For disk requests or network frames.
    #[serde(default)]
    pub operations: Option<Limit>,
}

/// A token bucket.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Limit {
    /// What is refilled in a second, 1 or more.
    pub per_second: u64,
    /// What may be used at once after a pause; by default as much as in a tenth of a second.
    #[serde(default)]
    pub burst: Option<u64>,
}

/// Which console.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ConsoleKind {
    /// The 16550, `ttyS0` in Linux.
    Serial,
    /// The virtio console, `hvc0` in Linux.
    Virtio,
}

/// What a VMM sends.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Message {
    /// The answer to a request.
    Reply(Reply),
    /// Something happened.
    Event(Event),
}

/// The answer to a request.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Reply {
    /// The request's; 0 if it had none that could be read.
    pub id: u64,
    /// How it went.
    #[serde(flatten)]
    pub outcome: Outcome,
}

/// How a request went.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Outcome {
    /// Well.
    Ok(Answer),
    /// Not at all: nothing has changed.
    Error(Failure),
}

/// What a request was asking for.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Answer {
    /// It is done, or begun.
    Done,
    /// To `hello`.
    Hello {
        /// The version that is spoken.
        version: u32,
        /// The VMM's name and version.
        program: String,
        /// The VMM's process.
        pid: u32,
    },
    /// To `attach-disk` and `attach-interface`.
    Attached {
        /// The PCI slot, 1 to 31.
        slot: u8,
    },
    /// To `disk-layers`.
    DiskLayers {
        /// Their UUIDs, from the bottom.
        layers: Vec<String>,
    },
    /// To `status`.
    Status(Box<Status>),
    /// To `metrics`.
    Metrics(Box<Metrics>),
}

/// Why a request was refused.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failure {
    /// For programs.
    pub code: FailureCode,
    /// For people: what is wrong and what to do.
    pub message: String,
}

/// Why a request was refused, for programs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum FailureCode {
    /// The message cannot be understood, or a value is not allowed.
    Invalid,
    /// There is no device with this id.
    NotFound,
    /// It does not go with the state that the machine or the device is in.
    Conflict,
    /// This host, or this device, does not have it.
    Unsupported,
    /// The kernel cannot be booted.
    Kernel,
    /// The initrd cannot be loaded.
    Initrd,
    /// The host failed.
    Failed,
}

/// Something that happened.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Event {
    /// Counts from 1, without gaps.
    pub sequence: u64,
    /// Since 1970.
    pub time_ms: u64,
    /// What.
    pub what: Happening,
}

/// What happened.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Happening {
    /// The guest runs: at first, or after a reset.
    Started,
    /// The CPUs stand still.
    Paused,
    /// The CPUs run on.
    Resumed,
    /// The guest was reset, and starts anew once its boot source is known.
    Reset {
        /// By whom.
        cause: ResetCause,
    },
    /// The VMM wants to know what to boot now. `boot` is the answer; without one, it boots what it booted before.
    BootSourceWanted {
        /// How long it waits.
        within_ms: u64,
    },
    /// What the controller sent cannot be booted, and the boot source before it is used.
    BootSourceRefused {
        /// What is wrong with it.
        reason: String,
    },
    /// A device is there.
    DeviceAttached {
        /// Which one.
        id: String,
    },
    /// The guest was asked to let go of a device.
    DeviceDetaching {
        /// Which one.
        id: String,
    },
    /// The guest has let go of a device, or was made to.
    DeviceEjected {
        /// Which one.
        id: String,
    },
    /// Nothing of the device is left, and its descriptors are closed.
    DeviceFreed {
        /// Which one.
        id: String,
    },
    /// `finish-seal` is done.
    DiskSealed {
        /// Which disk.
        id: String,
        /// Why nothing is durable or marked, if that is so.
        failure: Option<String>,
    },
    /// The guest has ended. `quit` is all that is left to say.
    Ended(Ending),
}

/// Who reset the guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ResetCause {
    /// The guest.
    Guest,
    /// A CPU that could not deliver a double fault.
    TripleFault,
    /// A controller, by `reset`, or by `reboot` after its timeout.
    Controller,
}

/// How a guest ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Ending {
    /// It switched itself off.
    PowerOff,
    /// A controller ended it.
    Stopped,
    /// It could not go on.
    Failed {
        /// Why.
        reason: String,
    },
}

/// What a machine is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum State {
    /// Nobody has said what it is to be.
    Unconfigured,
    /// It was not started yet.
    Configured,
    /// The guest runs.
    Running,
    /// The CPUs stand still.
    Paused,
    /// The guest was reset, and waits for its boot source.
    Resetting,
    /// The guest has ended.
    Ended,
}

/// How things stand.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Status {
    /// What the machine is doing.
    pub state: State,
    /// How the guest ended, if it has.
    pub ending: Option<Ending>,
    /// How often it was reset.
    pub resets: u64,
    /// Whether the next power-off is taken as a reset.
    pub is_rebooting: bool,
    /// The number of the last event; 0 if there was none.
    pub last_event: u64,
    /// The disks and interfaces.
    pub devices: Vec<DeviceStatus>,
    /// Layered disks that are gone, of which something could not be made durable, and why. One is here until a disk of this
    /// name is attached again.
    #[serde(default)]
    pub losses: BTreeMap<String, String>,
    /// How much the guest has printed on the serial port, in bytes.
    pub serial_output: u64,
    /// The same for the virtio console.
    pub virtio_output: u64,
    /// The balloon, if there is one.
    pub balloon: Option<BalloonStatus>,
}

/// A disk or an interface.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct DeviceStatus {
    /// The controller's name for it.
    pub id: String,
    /// What it is.
    pub kind: DeviceKind,
    /// Its PCI slot.
    pub slot: u8,
    /// How far it is.
    pub state: DeviceState,
    /// A disk's size; 0 for others.
    pub size: u64,
    /// What the guest makes of it.
    #[serde(default)]
    pub driver: DriverState,
    /// The UUID of a layered disk's top layer; none for others.
    #[serde(default)]
    pub top: Option<String>,
    /// How many layers a layered disk has; 0 for others.
    #[serde(default)]
    pub layers: u32,
    /// How many of those below the top are not marked as sealed.
    #[serde(default)]
    pub unsealed: u32,
    /// Why a layered disk takes no more changes, if that is so: something could not be made durable.
    #[serde(default)]
    pub impairment: Option<String>,
}

/// What the guest makes of a device.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum DriverState {
    /// No driver has it, or the driver has given up.
    #[default]
    None,
    /// A driver uses it.
    Running,
    /// It was driven in a way that makes no sense, or its host has failed it, and does nothing until it is reset.
    NeedsReset,
}

/// What a device is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum DeviceKind {
    /// A disk.
    Disk,
    /// A network interface.
    Interface,
}

/// How far a device is on its way out. One that is freed is not there any more.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum DeviceState {
    /// In use.
    Attached,
    /// The guest was asked to let go of it.
    Detaching,
    /// The guest does not have it any more; requests that were under way are being finished.
    Ejected,
}

/// A balloon.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BalloonStatus {
    /// How much memory the guest is to do without.
    pub target: u64,
    /// How much it does without.
    pub actual: u64,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::disk::{DiskEngine, DiskSource};

    /// A mistake of Kata Containers (CVE-2026-24054): from the path of a volume, a device was guessed, and that was the
    /// host's own disk. Here a file is the descriptor that came with the message; nothing else can be said.
    #[test]
    fn a_file_is_a_descriptor_and_nothing_else() {
        let attach = |file: &str| {
            format!(r#"{{"attach-disk":{{"id":"vol-1","source":{{"raw":{{"file":{file}}}}}}}}}"#)
        };
        assert!(serde_json::from_str::<Command>(&attach("0")).is_ok());
        for file in
            [r#""/dev/sda""#, r#""0""#, "-1", "null", r#"{"path":"/dev/sda"}"#, r#"0,"path":"/dev/sda""#]
        {
            assert!(serde_json::from_str::<Command>(&attach(file)).is_err(), "{file}");
        }
        // And what it is made of is said, not guessed.
        for source in ["qcow2", "auto", "file"] {
            let text = attach("0").replace(r#""raw""#, &format!("{source:?}"));
            assert!(serde_json::from_str::<Command>(&text).is_err(), "{source}");
        }
        for source in ["0", "null", r#""raw""#, "{}", r#"{"raw":{}}"#, r#"{"raw":0}"#] {
            let text = format!(r#"{{"attach-disk":{{"id":"vol-1","source":{source}}}}}"#);
            assert!(serde_json::from_str::<Command>(&text).is_err(), "{source}");
        }
    }

    /// The form of the messages is the protocol: it must not change by accident.
    #[test]
    fn messages_look_as_they_are_documented() {
        let layer = |first| LayerFiles { data: Descriptor(first), map: Descriptor(first + 1) };
        let disk = AttachDisk {
            id: "vol-1".into(),
            source: DiskSource::Raw { file: Descriptor(0) },
            read_only: false,
            still: false,
            serial: "vol1".into(),
            engine: DiskEngine::IoUring,
            queues: None,
            limits: Limits { bytes: Some(Limit { per_second: 1, burst: None }), operations: None },
        };
        let commands = [
            (Command::Hello { version: 1 }, r#"{"hello":{"version":1}}"#),
            (Command::Start, r#""start""#),
            (
                Command::AttachDisk(Box::new(disk)),
                r#"{"attach-disk":{"id":"vol-1","source":{"raw":{"file":0}},"read_only":false,"still":false,"serial":"vol1","engine":"io_uring","queues":null,"limits":{"bytes":{"per_second":1,"burst":null},"operations":null}}}"#,
            ),
            (Command::Boot { source: None }, r#"{"boot":{"source":null}}"#),
            (
                Command::Layers { layers: vec![layer(0), layer(2)] },
                r#"{"layers":{"layers":[{"data":0,"map":1},{"data":2,"map":3}]}}"#,
            ),
            (
                Command::SealDisks { disks: vec![SealDisk { id: "vol-1".into(), tops: vec![layer(0)] }] },
                r#"{"seal-disks":{"disks":[{"id":"vol-1","tops":[{"data":0,"map":1}]}]}}"#,
            ),
            (Command::FinishSeal { id: "vol-1".into() }, r#"{"finish-seal":{"id":"vol-1"}}"#),
            (Command::DiskLayers { id: "vol-1".into() }, r#"{"disk-layers":{"id":"vol-1"}}"#),
            (
                Command::ReplaceLayers { id: "vol-1".into(), first: 1, count: 3, merged: layer(0) },
                r#"{"replace-layers":{"id":"vol-1","first":1,"count":3,"merged":{"data":0,"map":1}}}"#,
            ),
        ];
        for (command, text) in commands {
            assert_eq!(serde_json::to_string(&command).unwrap(), text);
            assert_eq!(serde_json::from_str::<Command>(text).unwrap(), command);
        }
        let failure = Failure { code: FailureCode::NotFound, message: "no".into() };
        let event = Event { sequence: 3, time_ms: 4, what: Happening::Ended(Ending::PowerOff) };
        let messages = [
            (
                Message::Reply(Reply { id: 2, outcome: Outcome::Ok(Answer::Done) }),
                r#"{"reply":{"id":2,"ok":"done"}}"#,
            ),
            (
                Message::Reply(Reply { id: 2, outcome: Outcome::Error(failure) }),
                r#"{"reply":{"id":2,"error":{"code":"not-found","message":"no"}}}"#,
            ),
            (Message::Event(event), r#"{"event":{"sequence":3,"time_ms":4,"what":{"ended":"power-off"}}}"#),
        ];
        for (message, text) in messages {
            assert_eq!(serde_json::to_string(&message).unwrap(), text);
            assert_eq!(serde_json::from_str::<Message>(text).unwrap(), message);
        }
    }

    #[test]
    fn what_may_be_left_out_can_be() {
        let texts = [
            r#"{"attach-disk":{"id":"a","source":{"raw":{"file":0}}}}"#,
            r#"{"attach-disk":{"id":"a","source":{"layered":{"layers":[{"data":0,"map":1}]}}}}"#,
            r#"{"attach-interface":{"id":"a","taps":[0],"mac":"02:00:00:00:00:01"}}"#,
            r#"{"attach-console":{"console":"serial","output":0}}"#,
            r#"{"detach":{"id":"a"}}"#,
            r#"{"boot":{}}"#,
        ];
        for text in texts {
            assert!(serde_json::from_str::<Command>(text).is_ok(), "{text}");
        }
        let configure = r#"{"configure":{"kvm":0,"cpus":1,"memory":1,"identity":{"uuid":""},"boot":{"kernel":1,"command_line":""}}}"#;
        assert!(serde_json::from_str::<Command>(configure).is_ok());
        assert!(serde_json::from_str::<Command>(&configure.replace("cpus", "cores")).is_err());
    }
}
