//! The daemon's log, on standard error. `RUST_LOG` says how much of it; by default what happens to the daemon and to
//! instances, and what goes wrong.

use std::os::unix::fs::MetadataExt;

use tracing_subscriber::EnvFilter;

/// Begins the log. To be called once.
pub fn begin() {
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("warn,innkeeper=info"));
    let log = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        // Whoever reads the log may go away: that is no reason to say so there.
        .log_internal_errors(false);
    if goes_to_journal() {
        // Which has the time already, and shows colours as they are.
        log.without_time().with_ansi(false).init();
    } else {
        log.with_ansi(std::io::IsTerminal::is_terminal(&std::io::stderr())).init();
    }
}

/// Whether standard error is a connection to systemd's journal: systemd says in `JOURNAL_STREAM` which file that is.
/// Programs that we were started by may have given us another.
pub fn goes_to_journal() -> bool {
    let Ok(said) = std::env::var("JOURNAL_STREAM") else { return false };
    std::fs::metadata("/proc/self/fd/2").is_ok_and(|file| said == format!("{}:{}", file.dev(), file.ino()))
}
