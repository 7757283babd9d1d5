//! What people are told.

use std::error::Error;

/// Checks that a message is one line that a terminal can show.
pub fn check_message(error: &(dyn Error + 'static)) {
    let mut part = Some(error);
    while let Some(error) = part {
        let message = error.to_string();
        assert!(!message.is_empty() && !message.chars().any(char::is_control), "{message:?}");
        part = error.source();
    }
}
