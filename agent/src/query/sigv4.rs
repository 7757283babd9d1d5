//! Who sent a request: AWS's Signature Version 4, in the `Authorization` header or in a presigned query.
//!
//! [`verify`] and [`sign`] share the canonical request, the text that both sides hash. AWS's page "Create a signed AWS
//! API request" describes it. A body is always signed: EC2 knows no unsigned payloads. Paths are taken as they are:
//! a client that sends dots or empty parts in one finds its signature refused.

use hmac::{Hmac, KeyInit, Mac};
use jiff::{SignedDuration, Timestamp};
use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;

use crate::query::dispatch::hex;
use crate::query::{ApiError, Service};

const ALGORITHM: &str = "AWS4-HMAC-SHA256";

/// How far a client's clock may be from ours.
const SKEW: SignedDuration = SignedDuration::from_mins(15);

/// The longest time that a presigned request is good for, in seconds.
const LONGEST: i64 = 7 * 24 * 3600;

/// An HTTP request, as far as it is signed.
#[derive(Clone, Copy, Debug)]
pub struct Signed<'a> {
    /// Such as `POST`.
    pub method: &'a str,
    /// As it is sent, encoded.
    pub path: &'a str,
    /// The query's names and values, decoded.
    pub query: &'a [(String, String)],
    /// The headers; the names in lower case.
    pub headers: &'a [(String, String)],
    /// The body.
    pub body: &'a [u8],
}

/// What a request was signed with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Signer {
    /// The access key's id.
    pub access_key: String,
    /// The service that it is meant for.
    pub service: Service,
}

/// Signs a request: the headers to send with it. Its own have to have `host`.
pub fn sign(
    request: Signed<'_>,
    access_key: &str,
    secret: &str,
    region: &str,
    service: Service,
    now: Timestamp,
) -> Vec<(String, String)> {
    let date = now.strftime("%Y%m%dT%H%M%SZ").to_string();
    let mut headers = request.headers.to_vec();
    headers.push(("x-amz-date".to_owned(), date.clone()));
    let mut names: Vec<&str> = headers.iter().map(|(name, _)| name.as_str()).collect();
    names.sort_unstable();
    names.dedup();
    let scope = Scope { day: date.get(..8).unwrap_or_default(), region, service };
    let request = Signed { headers: &headers, ..request };
    let signature = signature(request, &names, &date, scope, secret);
    let authorization = format!(
        "{ALGORITHM} Credential={access_key}/{scope}, SignedHeaders={}, Signature={signature}",
        names.join(";")
    );
    vec![("x-amz-date".to_owned(), date), ("authorization".to_owned(), authorization)]
}

/// Finds out who signed a request, and refuses it if that is not certain. `secret` finds an access key's secret.
pub fn verify(
    request: Signed<'_>,
    region: &str,
    now: Timestamp,
    secret: impl FnOnce(&str) -> Option<String>,
) -> Result<Signer, ApiError> {
    let claim = match request.header("authorization")? {
        Some(header) => Claim::of_header(request, header)?,
        None => Claim::of_query(request)?,
    };
    let (access_key, scope) = claim.credential()?;
    if claim.has_token {
        let message = "Security tokens are not supported: use an access key that is not temporary.";
        return Err(ApiError::new("InvalidClientTokenId", message));
    }
    // Clients that know no region ask STS in us-east-1.
    if scope.region != region && (scope.service, scope.region) != (Service::Sts, "us-east-1") {
        let message =
            format!("Credential should be scoped to the region '{region}', not '{}'.", scope.region);
        return Err(ApiError::new("AuthFailure", message));
    }
    claim.is_timely(scope.day, now)?;
    let names = claim.signed_headers(request)?;
    if let Some(hash) = request.header("x-amz-content-sha256")?
        && hash != hex(&Sha256::digest(request.body))
    {
        let message = "The header x-amz-content-sha256 is not the hash of the body.";
        return Err(ApiError::new("AuthFailure", message));
    }
    let Some(secret) = secret(access_key) else { return Err(refused(scope.service, true)) };
    // The signature is no part of what it signs.
    let query: Vec<_> = request.query.iter().filter(|(name, _)| name != "X-Amz-Signature").cloned().collect();
    let expected = signature(Signed { query: &query, ..request }, &names, claim.date, scope, &secret);
    if !bool::from(expected.as_bytes().ct_eq(claim.signature.as_bytes())) {
        return Err(refused(scope.service, false));
    }
    Ok(Signer { access_key: access_key.to_owned(), service: scope.service })
}

/// The error for an unknown key or a wrong signature. EC2 does not say which of them it is.
fn refused(service: Service, unknown: bool) -> ApiError {
    match (service, unknown) {
        (Service::Ec2, _) => {
            ApiError::new("AuthFailure", "AWS was not able to validate the provided access credentials")
        }
        (Service::Sts, true) => {
            ApiError::new("InvalidClientTokenId", "The security token included in the request is invalid.")
        }
        (Service::Sts, false) => ApiError::new(
            "SignatureDoesNotMatch",
            "The request signature we calculated does not match the signature you provided. Check your secret \
             access key and signing method.",
        ),
    }
}

fn incomplete(message: impl Into<String>) -> ApiError {
    ApiError::new("IncompleteSignature", message)
}

/// Where and when a signature is good for.
#[derive(Clone, Copy, Debug)]
struct Scope<'a> {
    day: &'a str,
    region: &'a str,
    service: Service,
}

impl std::fmt::Display for Scope<'_> {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(formatter, "{}/{}/{}/aws4_request", self.day, self.region, self.service.name())
    }
}

/// What a request says of its signature.
struct Claim<'a> {
    credential: &'a str,
    signed_headers: &'a str,
    signature: &'a str,
    date: &'a str,
    /// In seconds, if it is presigned.
    expires: Option<&'a str>,
    has_token: bool,
}

impl<'a> Claim<'a> {
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
            has_token: request.header("x-amz-security-token")?.is_some(),
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
            has_token: find("X-Amz-Security-Token")?.is_some()
                || request.header("x-amz-security-token")?.is_some(),
        })
    }

    /// The access key's id, and where its use is good for.
    fn credential(&self) -> Result<(&'a str, Scope<'a>), ApiError> {
        let parts: Vec<&str> = self.credential.split('/').collect();
        let &[access_key, day, region, service, "aws4_request"] = parts.as_slice() else {
            return Err(incomplete(
                "Credential has to be the access key's id, the day, the region, the service and aws4_request, \
                 with slashes between them.",
            ));
        };
        let Some(service) = Service::named(service) else {
            let message =
                format!("Credential should be scoped to the service 'ec2' or 'sts', not '{service}'.");
            return Err(ApiError::new("SignatureDoesNotMatch", message));
        };
        Ok((access_key, Scope { day, region, service }))
    }

    /// Whether the request is neither too old nor from the future.
    fn is_timely(&self, day: &str, now: Timestamp) -> Result<(), ApiError> {
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
    fn signed_headers(&self, request: Signed<'_>) -> Result<Vec<&'a str>, ApiError> {
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
    fn header(&self, name: &str) -> Result<Option<&'a str>, ApiError> {
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

/// The signature of a request.
fn signature(request: Signed<'_>, names: &[&str], date: &str, scope: Scope<'_>, secret: &str) -> String {
    let canonical = canonical(request, names);
    let to_sign = format!("{ALGORITHM}\n{date}\n{scope}\n{}", hex(&Sha256::digest(canonical.as_bytes())));
    let mut key = hmac(format!("AWS4{secret}").as_bytes(), scope.day);
    for part in [scope.region, scope.service.name(), "aws4_request"] {
        key = hmac(&key, part);
    }
    hex(&hmac(&key, &to_sign))
}

/// The canonical request.
fn canonical(request: Signed<'_>, names: &[&str]) -> String {
    let mut pairs: Vec<_> =
        request.query.iter().map(|(name, value)| (encode(name, false), encode(value, false))).collect();
    pairs.sort();
    let query: Vec<_> = pairs.iter().map(|(name, value)| format!("{name}={value}")).collect();
    let mut text = format!("{}\n{}\n{}\n", request.method, encode(request.path, true), query.join("&"));
    for &name in names {
        let values = request.headers.iter().filter(|(other, _)| other == name);
        let values: Vec<_> = values.map(|(_, value)| single_spaced(value)).collect();
        text.extend([name, ":", &values.join(","), "\n"]);
    }
    text.extend(["\n", &names.join(";"), "\n", &hex(&Sha256::digest(request.body))]);
    text
}

/// A header's value without the spaces that do not matter.
fn single_spaced(value: &str) -> String {
    value.split(' ').filter(|part| !part.is_empty()).collect::<Vec<_>>().join(" ")
}

/// Percent-encodes a text; slashes too, but in a path.
fn encode(text: &str, path: bool) -> String {
    use std::fmt::Write;
    text.bytes().fold(String::with_capacity(text.len()), |mut out, byte| {
        match byte {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => out.push(byte.into()),
            b'/' if path => out.push('/'),
            // Writing to a text cannot fail.
            _ => drop(write!(out, "%{byte:02X}")),
        }
        out
    })
}

/// HMAC-SHA256.
fn hmac(key: &[u8], text: &str) -> [u8; 32] {
    // A key is filled up to a block with zeros, and hashed if it is longer: what makes it fit cannot fail.
    let mut block = [0; 64];
    let hashed = Sha256::digest(key);
    let key = if key.len() > block.len() { hashed.as_slice() } else { key };
    block.iter_mut().zip(key).for_each(|(to, from)| *to = *from);
    let mut mac = Hmac::<Sha256>::new(&block.into());
    mac.update(text.as_bytes());
    mac.finalize().into_bytes().into()
}
