//! Answers as XML.

use serde::Serialize;

use crate::query::ApiError;

/// The answer of an action.
pub fn response(action: &str, request_id: &str, response: &impl Serialize) -> Result<String, ApiError> {
    let _ = (action, request_id, response);
    Err(ApiError::new("InternalError", "not yet"))
}
