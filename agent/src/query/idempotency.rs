//! `ClientToken`: a request that is sent again is answered as before, and does nothing.

use jiff::Timestamp;

use crate::query::{ApiError, Context};
use crate::records::Idempotency;
use crate::state::{Draft, World};

/// What an earlier request with this token has made, to be called in the transaction that would make it again, and
/// before everything else in a check. An earlier one with other parameters is an error.
pub fn recall(
    world: &World,
    context: Context<'_>,
    action: &str,
    token: Option<&str>,
) -> Result<Option<String>, ApiError> {
    let Some(token) = token else { return Ok(None) };
    if token.len() > 64 || !token.is_ascii() {
        return Err(ApiError::invalid(token, "clientToken", "At most 64 ASCII characters."));
    }
    match world.get::<Idempotency>(key(context, action, token)) {
        None => Ok(None),
        Some(earlier) if earlier.request == context.digest => Ok(Some(earlier.resource.clone())),
        Some(_) => Err(ApiError::new(
            "IdempotentParameterMismatch",
            format!("The client token '{token}' was used before, with other parameters."),
        )),
    }
}

/// Keeps in mind what a request with this token has made, in the same transaction.
pub fn remember(
    draft: &mut Draft,
    context: Context<'_>,
    action: &str,
    token: Option<&str>,
    resource: impl ToString,
) {
    if let Some(token) = token {
        draft.put(Idempotency {
            key: key(context, action, token),
            request: context.digest.to_owned(),
            resource: resource.to_string(),
            created: Timestamp::now(),
        });
    }
}

fn key(context: Context<'_>, action: &str, token: &str) -> String {
    format!("{}/{action}/{token}", context.caller.account)
}
