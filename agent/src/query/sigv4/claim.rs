//! What a request says of its signature, in a header or in its query.

use jiff::{SignedDuration, Timestamp};

use super::{ALGORITHM, LONGEST, SKEW, Signed};
use crate::query::{ApiError, Service};

fn incomplete(message: impl Into<String>) -> ApiError {
    ApiError::new("IncompleteSignature", message)
}

/// Where and when a signature is good for.
#[derive(Clone, Copy, Debug)]
pub(super) struct Scope<'a> {
    pub(super) day: &'a str,
    pub(super) region: &'a str,
    pub(super) service: Service,
}

impl std::fmt::Display for Scope<'_> {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(formatter, "{}/{}/{}/aws4_request", self.day, self.region, self.service.name())
    }
}

/// What a request says of its signature.
pub(super) struct Claim<'a> {
    credential: &'a str,
    signed_headers: &'a str,
    pub(super) signature: &'a str,
    pub(super) date: &'a str,
    /// In seconds, if it is presigned.
    expires: Option<&'a str>,
    /// What goes with a temporary access key.
    pub(super) token: Option<&'a str>,
}

impl<'a> Claim<'a> {
    pub(super) fn of(request: Signed<'a>) -> Result<Self, ApiError> {
        match request.header("authorization")? {
            Some(header) => Self::of_header(request, header),
            None => Self::of_query(request),
        }
    }

    fn of_header(request: Signed<'a>, header: &'a str) -> Result<Self, ApiError> {
        let Some(parts) = header.strip_prefix(ALGORITHM).filter(|rest| rest.starts_with([' ', '\t'])) else {
            return Err(incomplete(format!("The Authorization header has to begin with {ALGORITHM}.")));
        };
        let part = |name: &str| {
            let mut found = parts.split(',').filter_map(|part| part.trim().split_once('='));
            let value = found.find(|(key, _)| *key == name).map(|(_, value)| value);
            value.ok_or_else(|| incomplete(format!("Authorization header requires '{name}' parameter.")))
        };
        let date = request.header("x-amz-date")?;
        Ok(Self {
            credential: part("Credential")?,
            signed_headers: part("SignedHeaders")?,
            signature: part("Signature")?,
            date: date.ok_or_else(|| incomplete("A signed request requires the header 'X-Amz-Date'."))?,
            expires: None,
            token: request.header("x-amz-security-token")?,
        })
    }

    fn of_query(request: Signed<'a>) -> Result<Self, ApiError> {
        let find = |name| request.parameter(name);
        let Some(algorithm) = find("X-Amz-Algorithm")? else {
            let message = "Request is missing Authentication Token: sign it with an access key";
            return Err(ApiError::new("MissingAuthenticationToken", message));
        };
        if algorithm != ALGORITHM {
            return Err(incomplete(format!("X-Amz-Algorithm has to be {ALGORITHM}.")));
        }
        let need = |name| {
            find(name)?.ok_or_else(|| incomplete(format!("A presigned request requires '{name}' parameter.")))
        };
        Ok(Self {
            credential: need("X-Amz-Credential")?,
            signed_headers: need("X-Amz-SignedHeaders")?,
            signature: need("X-Amz-Signature")?,
            date: need("X-Amz-Date")?,
            expires: Some(need("X-Amz-Expires")?),
            token: match (find("X-Amz-Security-Token")?, request.header("x-amz-security-token")?) {
                (Some(_), Some(_)) => {
                    return Err(incomplete("The security token is in the query and in a header."));
                }
                (query, header) => query.or(header),
            },
        })
    }

    /// The access key's id, and where its use is good for.
    pub(super) fn credential(&self) -> Result<(&'a str, Scope<'a>), ApiError> {
        let parts: Vec<&str> = self.credential.split('/').collect();
        let &[access_key, day, region, service, "aws4_request"] = parts.as_slice() else {
            return Err(incomplete(
                "Credential has to be the access key's id, the day, the region, the service and aws4_request, \
                 with slashes between them.",
            ));
        };
        let Some(service) = Service::named(service) else {
            let message =
                format!("Credential should be scoped to the service 'ec2', 'iam' or 'sts', not '{service}'.");
            return Err(ApiError::new("SignatureDoesNotMatch", message));
        };
        Ok((access_key, Scope { day, region, service }))
    }

    /// Whether the request is neither too old nor from the future.
    pub(super) fn is_timely(&self, day: &str, now: Timestamp) -> Result<(), ApiError> {
        let date = read_date(self.date)
            .ok_or_else(|| incomplete("X-Amz-Date has to have the form 20161115T000000Z."))?;
        if self.date.get(..8) != Some(day) {
            return Err(incomplete("The day in Credential is not that of X-Amz-Date."));
        }
        let lifetime = match self.expires {
            None => SKEW,
            Some(text) => match text.parse() {
                Ok(seconds @ 0..=LONGEST) => SignedDuration::from_secs(seconds),
                _ => {
                    let reason = format!("Expecting a number of seconds from 0 to {LONGEST}.");
                    return Err(ApiError::invalid(text, "X-Amz-Expires", reason));
                }
            },
        };
        let age = now.duration_since(date);
        if age > lifetime || age < -SKEW {
            let message = format!("Request has expired: it is dated {}, and here it is {now:.0}.", self.date);
            return Err(ApiError::new("RequestExpired", message));
        }
        Ok(())
    }

    /// The names of the signed headers. All that have a say must be among them.
    pub(super) fn signed_headers(&self, request: Signed<'_>) -> Result<Vec<&'a str>, ApiError> {
        let names: Vec<&str> = self.signed_headers.split(';').collect();
        let present = request.headers.iter().map(|(name, _)| name.as_str());
        let mut needed = present.filter(|name| name.starts_with("x-amz-")).chain(["host"]);
        if let Some(name) = needed.find(|name| !names.contains(name)) {
            return Err(ApiError::new("AuthFailure", format!("The header '{name}' has to be signed.")));
        }
        if !names.is_sorted() {
            return Err(incomplete("SignedHeaders has to be sorted."));
        }
        Ok(names)
    }
}

/// Reads `20161115T000000Z`, and no other form.
fn read_date(text: &str) -> Option<Timestamp> {
    let form = text.len() == 16
        && text.bytes().enumerate().all(|(at, byte)| match at {
            8 => byte == b'T',
            15 => byte == b'Z',
            _ => byte.is_ascii_digit(),
        });
    form.then(|| text.parse().ok()).flatten()
}

impl<'a> Signed<'a> {
    /// A header that may be there once.
    pub(super) fn header(&self, name: &str) -> Result<Option<&'a str>, ApiError> {
        once(self.headers, name)
    }

    /// A parameter of the query that may be there once.
    fn parameter(&self, name: &str) -> Result<Option<&'a str>, ApiError> {
        once(self.query, name)
    }
}

fn once<'a>(pairs: &'a [(String, String)], name: &str) -> Result<Option<&'a str>, ApiError> {
    let mut found = pairs.iter().filter(|(other, _)| other == name).map(|(_, value)| value.as_str());
    match (found.next(), found.next()) {
        (first, None) => Ok(first),
        (_, Some(_)) => Err(incomplete(format!("'{name}' is there more than once."))),
    }
}
