//! Whether this host can run guests, found out by trying.
//!
//! `/dev/kvm` alone proves little: some hosts offer a KVM that emulates kernel-mode code and knows only the
//! common instructions. So we run a few of those that every kernel uses and such emulators lack, in a
//! throw-away virtual machine, and see how far it gets.

mod probe;

use std::fmt;
use std::io;

use kvm_ioctls::Kvm;

/// What this host can do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Readiness {
    /// Unmodified kernels run.
    Ready,
    /// There is a KVM, but it failed at something every kernel does.
    NoHardwareSupport {
        /// What it failed at.
        reason: String,
    },
    /// There is no KVM that we can use.
    NoKvm {
        /// Why not.
        reason: String,
        /// What to do about it.
        advice: &'static str,
    },
}

impl fmt::Display for Readiness {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Ready => f.write_str("ready: this host runs unmodified guests"),
            Self::NoHardwareSupport { reason } => write!(
                f,
                "KVM without hardware support: {reason}\n\
                 Unmodified kernels cannot run here; small bare-metal payloads can. Use a host with Intel VT-x or \
                 AMD-V (nested virtualisation switched on, if it is a virtual machine itself), or run guests in \
                 the lab: scripts/lab"
            ),
            Self::NoKvm { reason, advice } => write!(f, "no KVM: {reason}\n{advice}"),
        }
    }
}

/// The only API version there has been since Linux 2.6.22.
const KVM_API_VERSION: i32 = 12;

/// Probes the host.
pub fn check() -> Readiness {
    let kvm = match Kvm::new() {
        Ok(kvm) => kvm,
        Err(error) => return no_kvm(&error),
    };
    let version = kvm.get_api_version();
    if version != KVM_API_VERSION {
        return Readiness::NoKvm {
            reason: format!("/dev/kvm speaks API version {version}, and we speak {KVM_API_VERSION}"),
            advice: "Use a current Linux kernel.",
        };
    }
    match probe::run(&kvm) {
        Ok(probe::Outcome::Completed) => Readiness::Ready,
        Ok(probe::Outcome::FailedAt(step)) => Readiness::NoHardwareSupport {
            reason: format!("the processor instruction {step} does not run in a guest"),
        },
        Err(error) => {
            Readiness::NoHardwareSupport { reason: format!("a test machine could not be made: {error}") }
        }
    }
}

fn no_kvm(error: &kvm_ioctls::Error) -> Readiness {
    let source = io::Error::from_raw_os_error(error.errno());
    let advice = match error.errno() {
        libc::ENOENT | libc::ENXIO | libc::ENODEV => {
            "Load the module (modprobe kvm_amd, or kvm_intel); if it refuses, switch virtualisation on in the \
             firmware, or run guests in the lab: scripts/lab"
        }
        libc::EACCES | libc::EPERM => "Run as root, or add your user to the group kvm.",
        _ => "See the kernel's log (dmesg) for the reason.",
    };
    Readiness::NoKvm { reason: format!("cannot open /dev/kvm: {source}"), advice }
}
