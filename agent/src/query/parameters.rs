//! The parameters of a request: dotted names, made a tree, made an action's type.

use serde::de::DeserializeOwned;

use crate::query::ApiError;

/// Reads an action's type from the decoded parameters of a request, but for those that every request has.
pub fn parse<A: DeserializeOwned>(parameters: &[(String, String)]) -> Result<A, ApiError> {
    let _ = parameters;
    Err(ApiError::new("InternalError", "not yet"))
}
