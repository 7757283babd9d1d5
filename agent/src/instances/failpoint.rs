//! Places at which the agent can be made to die, to test that it can: `INNKEEPER_FAILPOINT=NAME[:N]` ends the process,
//! as by `kill -9`, when the place of that name is passed for the Nth time.

use std::sync::LazyLock;
use std::sync::atomic::{AtomicU64, Ordering};

struct Armed {
    name: String,
    rest: AtomicU64,
}

static ARMED: LazyLock<Option<Armed>> = LazyLock::new(|| {
    let text = std::env::var("INNKEEPER_FAILPOINT").ok()?;
    let (name, count) = match text.rsplit_once(':') {
        Some((name, count)) => (name, count.parse().ok()?),
        None => (text.as_str(), 1),
    };
    Some(Armed { name: name.to_owned(), rest: AtomicU64::new(count) })
});

/// Every place, in the order of an instance's life.
pub const PLACES: &[&str] = &[
    "prepare-volumes.before",
    "prepare-volumes.made",
    "prepare-volumes.after",
    "start-vmm.before",
    "start-vmm.store-made",
    "start-vmm.spawned",
    "start-vmm.configured",
    "start-vmm.attached",
    "start-vmm.connected",
    "start-vmm.started",
    "start-vmm.after",
    "cover.made",
    "cover.sealed",
    "cover.durable",
    "reboot.before",
    "reboot.asked",
    "reboot.after",
    "press-button.before",
    "press-button.pressed",
    "press-button.after",
    "end-vmm.before",
    "end-vmm.console-kept",
    "end-vmm.ended",
    "end-vmm.store-removed",
    "end-vmm.forgotten",
    "end-vmm.after",
    "release-volumes.before",
    "release-volumes.after",
];

/// Passes a place.
pub fn pass(place: &'static str) {
    debug_assert!(PLACES.contains(&place), "{place}");
    if let Some(armed) = ARMED.as_ref()
        && armed.name == place
        && armed.rest.fetch_sub(1, Ordering::Relaxed) == 1
    {
        eprintln!("failpoint {place}");
        // SAFETY: ends this process, and touches nothing.
        unsafe { nix::libc::kill(nix::libc::getpid(), nix::libc::SIGKILL) };
    }
}
