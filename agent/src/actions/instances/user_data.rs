//! User data: base64 in requests and in records.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

use crate::query::ApiError;

/// The most bytes, decoded.
const MAX: usize = 16 * 1024;

/// User data that is as it may be; none if it is empty.
pub fn checked(text: &str) -> Result<Option<String>, ApiError> {
    let malformed = |_| ApiError::new("InvalidParameterValue", "Invalid BASE64 encoding of user data.");
    // Some encoders break lines.
    let text: String = text.chars().filter(|character| !character.is_ascii_whitespace()).collect();
    if STANDARD.decode(&text).map_err(malformed)?.len() > MAX {
        let message = format!("User data is limited to {MAX} bytes");
        return Err(ApiError::new("InvalidParameterValue", message));
    }
    Ok(Some(text).filter(|text| !text.is_empty()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn user_data_is_base64_and_not_too_long() {
        assert_eq!(checked("aGk=").unwrap().as_deref(), Some("aGk="));
        assert_eq!(checked("aG\nk=\n").unwrap().as_deref(), Some("aGk="));
        assert_eq!(checked("").unwrap(), None);
        assert!(checked(&STANDARD.encode([0; MAX])).is_ok());
        let message = |text: &str| checked(text).unwrap_err().message;
        assert_eq!(message(&STANDARD.encode([0; MAX + 1])), "User data is limited to 16384 bytes");
        assert_eq!(message("#!/bin/sh"), "Invalid BASE64 encoding of user data.");
    }
}
