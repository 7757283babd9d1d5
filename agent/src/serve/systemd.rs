//! What systemd hears of us, if it has started us: `Type=notify`, and the watchdog. Without it all of this is without
//! effect.

use std::time::Duration;

use sd_notify::NotifyState;

/// The API answers.
pub fn ready(status: &str) {
    say(&[NotifyState::Ready, NotifyState::Status(status)]);
}

/// The agent is about to end.
pub fn stopping() {
    say(&[NotifyState::Stopping, NotifyState::Status("waiting for the last requests")]);
}

/// Shows signs of life as often as the unit's `WatchdogSec` wants to see them, until it is dropped.
pub async fn watchdog() {
    let Some(patience) = sd_notify::watchdog_enabled() else { return };
    let mut ticks = tokio::time::interval((patience / 2).max(Duration::from_millis(1)));
    loop {
        ticks.tick().await;
        say(&[NotifyState::Watchdog]);
    }
}

fn say(what: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(what) {
        tracing::warn!(%error, "cannot tell systemd how we are");
    }
}
