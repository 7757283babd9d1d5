//! What people are told.

use std::error::Error;

/// The length of a message, in bytes. What a disk says in one is cut off, and there may be two or three of that.
const MAX_LENGTH: usize = 3000;

/// Checks that a message is one line that a terminal can show.
pub fn check_message(error: &(dyn Error + 'static)) {
    let mut part = Some(error);
    while let Some(error) = part {
        let message = error.to_string();
        assert!(!message.is_empty() && message.len() <= MAX_LENGTH, "{message:?}");
        assert!(!message.chars().any(char::is_control), "{message:?}");
        part = error.source();
    }
}
