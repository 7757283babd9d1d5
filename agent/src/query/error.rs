//! EC2's errors, and those of the services beside it: a code for programs, a sentence for people, an HTTP status.

use std::fmt;

use crate::identity::IdentityError;
use crate::query::Service;
use crate::store::StoreError;

/// An answer that is an error.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ApiError {
    /// EC2's code, such as `InvalidInstanceID.NotFound`.
    pub code: &'static str,
    /// What is wrong and what to do.
    pub message: String,
}

impl fmt::Display for ApiError {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}: {}", self.code, self.message)
    }
}

impl std::error::Error for ApiError {}

impl From<StoreError> for ApiError {
    fn from(error: StoreError) -> Self {
        Self::internal(format_args!("{error}: {}", error.cause))
    }
}

impl From<IdentityError> for ApiError {
    fn from(error: IdentityError) -> Self {
        match error {
            IdentityError::Authority(cause) => Self::internal(cause),
            error @ IdentityError::NotYet => Self::internal(error),
            IdentityError::Store(cause) => cause.into(),
        }
    }
}

impl ApiError {
    /// An error with this code.
    pub fn new(code: &'static str, message: impl Into<String>) -> Self {
        Self { code, message: message.into() }
    }

    /// The HTTP status that EC2 sends with the code.
    pub fn status(&self) -> u16 {
        match self.code {
            "AuthFailure" => 401,
            "AccessDenied"
            | "ExpiredToken"
            | "InvalidClientTokenId"
            | "MissingAuthenticationToken"
            | "SignatureDoesNotMatch"
            | "UnauthorizedOperation" => 403,
            "NoSuchEntity" => 404,
            "MethodNotAllowed" => 405,
            "RequestTimeout" => 408,
            "DeleteConflict" | "EntityAlreadyExists" | "LimitExceeded" => 409,
            "DryRunOperation" => 412,
            "RequestEntityTooLarge" => 413,
            "InsufficientInstanceCapacity" | "InternalError" | "InternalFailure" => 500,
            "RequestLimitExceeded" | "ServiceUnavailable" | "Unavailable" => 503,
            _ => 400,
        }
    }

    /// The same in the words of a service. What is wrong with a parameter has a code for each kind of mistake with EC2,
    /// and one for all with the others.
    pub fn of(self, service: Service) -> Self {
        let code = match self.code {
            code if service == Service::Ec2 => code,
            "InvalidNextToken"
            | "InvalidParameterCombination"
            | "InvalidParameterValue"
            | "MissingParameter"
            | "UnknownParameter" => "ValidationError",
            "TagLimitExceeded" => "LimitExceeded",
            code => code,
        };
        Self { code, ..self }
    }

    /// A parameter that has to be there is not.
    pub fn missing(parameter: &str) -> Self {
        Self::new("MissingParameter", format!("The request must contain the parameter {parameter}"))
    }

    /// A value that is not allowed.
    pub fn invalid(value: impl fmt::Display, parameter: &str, reason: impl fmt::Display) -> Self {
        Self::new(
            "InvalidParameterValue",
            format!("Value ({value}) for parameter {parameter} is invalid. {reason}"),
        )
    }

    /// Parameters that do not go together.
    pub fn combination(message: impl Into<String>) -> Self {
        Self::new("InvalidParameterCombination", message)
    }

    /// The host or the agent failed; the cause goes to the log, with the request's id.
    pub fn internal(cause: impl fmt::Display) -> Self {
        tracing::error!(%cause, "a request failed");
        Self::new("InternalError", "An internal error has occurred; the agent's log says which.")
    }
}
