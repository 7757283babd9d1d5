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

/// The service that a request says it is signed for, so that also an error looks as its client expects.
pub fn service(request: Signed<'_>) -> Option<Service> {
    let (_, scope) = Claim::of(request).ok()?.credential().ok()?;
    Some(scope.service)
}

/// Finds out who signed a request, and refuses it if that is not certain. `secret` finds an access key's secret.
pub fn verify(
    request: Signed<'_>,
    region: &str,
    now: Timestamp,
    secret: impl FnOnce(&str) -> Option<String>,
) -> Result<Signer, ApiError> {
    let claim = Claim::of(request)?;
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
    fn of(request: Signed<'a>) -> Result<Self, ApiError> {
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

#[cfg(test)]
mod tests {
    use std::time::{Duration, SystemTime};

    use aws_credential_types::Credentials;
    use aws_sigv4::http_request::{
        SignableBody, SignableRequest, SignatureLocation, SigningSettings, sign as oracle_sign,
    };
    use aws_sigv4::sign::v4::SigningParams;
    use proptest::prelude::*;

    use super::*;
    use crate::query::parameters;

    const KEY: &str = "AKIAIOSFODNN7EXAMPLE";
    const SECRET: &str = "wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY";
    const REGION: &str = "eu-west-1";

    /// A request of one's own.
    #[derive(Clone, Debug)]
    struct Owned {
        method: String,
        path: String,
        query: Vec<(String, String)>,
        headers: Vec<(String, String)>,
        body: Vec<u8>,
    }

    impl Owned {
        fn post(body: &str) -> Self {
            let header = |name: &str, value: &str| (name.to_owned(), value.to_owned());
            Self {
                method: "POST".to_owned(),
                path: "/".to_owned(),
                query: Vec::new(),
                headers: vec![
                    header("host", "127.0.0.1:8773"),
                    header("content-type", "application/x-www-form-urlencoded"),
                ],
                body: body.into(),
            }
        }

        fn borrow(&self) -> Signed<'_> {
            Signed {
                method: &self.method,
                path: &self.path,
                query: &self.query,
                headers: &self.headers,
                body: &self.body,
            }
        }

        fn url(&self) -> String {
            let pair = |(name, value): &(String, String)| {
                format!("{}={}", encode(name, false), encode(value, false))
            };
            let query: Vec<_> = self.query.iter().map(pair).collect();
            let mark = if query.is_empty() { "" } else { "?" };
            let (_, host) = self.headers.iter().find(|(name, _)| name == "host").unwrap();
            format!("http://{host}{}{mark}{}", self.path, query.join("&"))
        }

        fn verify_at(&self, now: Timestamp) -> Result<Signer, ApiError> {
            verify(self.borrow(), REGION, now, |key| (key == KEY).then(|| SECRET.to_owned()))
        }

        fn code(&self) -> &'static str {
            self.verify_at(now()).unwrap_err().code
        }

        /// Signed by [`sign`].
        fn signed(mut self, region: &str, service: Service, at: Timestamp) -> Self {
            self.headers.extend(sign(self.borrow(), KEY, SECRET, region, service, at));
            self
        }

        /// Signed by Amazon's signer.
        fn signed_by_oracle(mut self, secret: &str, settings: SigningSettings, service: &str) -> Self {
            let identity = Credentials::new(KEY, secret, None, None, "test").into();
            let time = SystemTime::UNIX_EPOCH + Duration::from_secs(now().as_second() as u64);
            let parameters = SigningParams::builder()
                .identity(&identity)
                .region(REGION)
                .name(service)
                .time(time)
                .settings(settings)
                .build()
                .unwrap()
                .into();
            let url = self.url();
            let headers = self.headers.iter().map(|(name, value)| (name.as_str(), value.as_str()));
            let request =
                SignableRequest::new(&self.method, url, headers, SignableBody::Bytes(&self.body)).unwrap();
            let (instructions, _) = oracle_sign(request, &parameters).unwrap().into_parts();
            for header in instructions.headers() {
                self.headers.push((header.0.to_owned(), header.1.to_owned()));
            }
            for (name, value) in instructions.params() {
                self.query.push((name.to_string(), value.to_string()));
            }
            self
        }

        fn header_mut(&mut self, wanted: &str) -> &mut String {
            &mut self.headers.iter_mut().find(|(name, _)| name == wanted).unwrap().1
        }
    }

    fn now() -> Timestamp {
        "2026-11-21T10:00:00Z".parse().unwrap()
    }

    fn presigned() -> SigningSettings {
        let mut settings = SigningSettings::default();
        settings.signature_location = SignatureLocation::QueryParams;
        settings.expires_in = Some(Duration::from_secs(600));
        settings
    }

    fn requests() -> impl Strategy<Value = Owned> {
        (
            prop::sample::select(&["POST", "GET"][..]),
            prop::sample::select(&["/", "/services/Cloud", "/a%20b/"][..]),
            prop::collection::vec((".{1,5}", ".{0,8}"), 0..4),
            prop::collection::vec(("x-[b-y][a-z0-9]{1,6}", "[!-~]([ -~]{0,12}[!-~])?"), 0..4),
            prop::collection::vec(any::<u8>(), 0..50),
        )
            .prop_map(|(method, path, query, headers, body)| {
                let mut request = Owned::post("");
                request.headers.extend(headers);
                Owned { method: method.to_owned(), path: path.to_owned(), query, body, ..request }
            })
    }

    proptest! {
        #[test]
        fn what_amazons_signer_signs_is_good(request in requests(), in_query in any::<bool>(), sts in any::<bool>()) {
            let settings = if in_query { presigned() } else { SigningSettings::default() };
            let service = if sts { Service::Sts } else { Service::Ec2 };
            let request = request.signed_by_oracle(SECRET, settings, service.name());
            let signer = Signer { access_key: KEY.to_owned(), service };
            prop_assert_eq!(request.verify_at(now()), Ok(signer));
        }

        #[test]
        fn our_signer_and_amazons_agree(request in requests()) {
            let mut ours = request.clone().signed(REGION, Service::Ec2, now());
            let mut theirs = request.signed_by_oracle(SECRET, SigningSettings::default(), "ec2");
            prop_assert_eq!(ours.header_mut("authorization"), theirs.header_mut("authorization"));
            prop_assert!(ours.verify_at(now()).is_ok());
        }

        #[test]
        fn no_change_to_what_was_signed_goes_unseen(
            request in requests(),
            in_query in any::<bool>(),
            part in 0..6,
            at in any::<prop::sample::Index>(),
        ) {
            let settings = if in_query { presigned() } else { SigningSettings::default() };
            let mut request = request.signed_by_oracle(SECRET, settings, "ec2");
            match part {
                0 => request.method.push('S'),
                1 => request.path.push('x'),
                2 => request.body.push(b'x'),
                3 => request.query.push(("Action".to_owned(), "TerminateInstances".to_owned())),
                4 if !request.query.is_empty() => at.get_mut(&mut request.query).1.push('0'),
                _ => at.get_mut(&mut request.headers).1.push('x'),
            }
            prop_assert!(request.verify_at(now()).is_err());
        }

        #[test]
        fn nothing_that_is_sent_makes_it_panic(
            authorization in "(AWS4-HMAC-SHA256 )?(Credential=[a-z/0-9]{0,20}|SignedHeaders=[a-z;]{0,5}|Signature=.|[,=;/ ]){0,6}",
            date in "[0-9TZ:é]{0,17}|20[0-9]{6}T[0-9]{6}Z",
        ) {
            let mut request = Owned::post("");
            request.headers.push(("authorization".to_owned(), authorization));
            request.headers.push(("x-amz-date".to_owned(), date));
            prop_assert!(request.verify_at(now()).is_err());
        }
    }

    #[test]
    fn a_signature_is_good_for_a_while() {
        let minutes = |count| now() + SignedDuration::from_mins(count);
        let request = Owned::post("Action=A").signed(REGION, Service::Ec2, now());
        for (age, code) in
            [(-16, Some("RequestExpired")), (-14, None), (14, None), (16, Some("RequestExpired"))]
        {
            assert_eq!(request.verify_at(minutes(age)).err().map(|error| error.code), code, "{age}");
        }
        let request = Owned::post("").signed_by_oracle(SECRET, presigned(), "ec2");
        for (age, code) in [(-16, Some("RequestExpired")), (9, None), (11, Some("RequestExpired"))] {
            assert_eq!(request.verify_at(minutes(age)).err().map(|error| error.code), code, "{age}");
        }
        for expires in ["604801", "-1", "x", "99999999999999999999"] {
            let mut request = request.clone();
            request.query.iter_mut().find(|(name, _)| name == "X-Amz-Expires").unwrap().1 =
                expires.to_owned();
            assert_eq!(request.code(), "InvalidParameterValue", "{expires}");
        }
    }

    #[test]
    fn who_cannot_sign_is_refused_in_the_services_words() {
        for (service, unknown, wrong) in
            [("ec2", "AuthFailure", "AuthFailure"), ("sts", "InvalidClientTokenId", "SignatureDoesNotMatch")]
        {
            let settings = SigningSettings::default;
            assert_eq!(Owned::post("").signed_by_oracle("wrong", settings(), service).code(), wrong);
            let mut request = Owned::post("").signed_by_oracle(SECRET, settings(), service);
            let header = request.header_mut("authorization");
            *header = header.replace(KEY, "AKIAX");
            assert_eq!(request.code(), unknown);
        }
        assert_eq!(Owned::post("").code(), "MissingAuthenticationToken");
    }

    #[test]
    fn a_signature_for_elsewhere_is_refused() {
        let signed = |region, service| Owned::post("").signed(region, service, now());
        assert!(signed("us-east-1", Service::Sts).verify_at(now()).is_ok());
        assert_eq!(signed("us-east-1", Service::Ec2).code(), "AuthFailure");
        assert_eq!(signed("us-west-2", Service::Sts).code(), "AuthFailure");
        let other = Owned::post("").signed_by_oracle(SECRET, SigningSettings::default(), "s3");
        assert_eq!(other.code(), "SignatureDoesNotMatch");
    }

    #[test]
    fn headers_that_have_a_say_have_to_be_signed() {
        let mut request = Owned::post("").signed(REGION, Service::Ec2, now());
        request.headers.push(("x-amz-target".to_owned(), "x".to_owned()));
        assert_eq!(request.code(), "AuthFailure");

        let mut request = Owned::post("");
        request.headers.retain(|(name, _)| name != "host");
        assert_eq!(request.signed(REGION, Service::Ec2, now()).code(), "AuthFailure");

        let with = |name: &str, value: &str| {
            let mut request = Owned::post("body");
            request.headers.push((name.to_owned(), value.to_owned()));
            request.signed(REGION, Service::Ec2, now())
        };
        let hash = hex(&Sha256::digest("body"));
        assert!(with("x-amz-content-sha256", &hash).verify_at(now()).is_ok());
        assert_eq!(with("x-amz-content-sha256", "UNSIGNED-PAYLOAD").code(), "AuthFailure");
        assert_eq!(with("x-amz-security-token", "x").code(), "InvalidClientTokenId");
    }

    #[test]
    fn half_a_signature_is_incomplete() {
        let good = Owned::post("").signed(REGION, Service::Ec2, now());
        let authorization = good.clone().header_mut("authorization").clone();
        for (from, to) in [
            ("AWS4-HMAC-SHA256", "AWS3"),
            ("AWS4-HMAC-SHA256 ", "AWS4-HMAC-SHA256"),
            ("Credential=", "Credentials="),
            ("SignedHeaders=", ""),
            (", Signature=", ", x="),
            ("/aws4_request", ""),
            ("/2026", "/2025"),
            ("content-type;host", "host;content-type"),
        ] {
            let mut request = good.clone();
            *request.header_mut("authorization") = authorization.replace(from, to);
            assert_eq!(request.code(), "IncompleteSignature", "{from}");
        }
        for date in ["", "2026-11-21T10:00:00Z", "20261121T100000+", "20261341T100000Z"] {
            let mut request = good.clone();
            *request.header_mut("x-amz-date") = date.to_owned();
            assert_eq!(request.code(), "IncompleteSignature", "{date}");
        }
        let mut twice = good.clone();
        twice.headers.push(("authorization".to_owned(), authorization));
        assert_eq!(twice.code(), "IncompleteSignature");
        let mut undated = good;
        undated.headers.retain(|(name, _)| name != "x-amz-date");
        assert_eq!(undated.code(), "IncompleteSignature");

        let good = Owned::post("").signed_by_oracle(SECRET, presigned(), "ec2");
        for part in ["Credential", "SignedHeaders", "Signature", "Date", "Expires"] {
            let mut request = good.clone();
            request.query.retain(|(name, _)| *name != format!("X-Amz-{part}"));
            assert_eq!(request.code(), "IncompleteSignature", "{part}");
        }
    }

    #[test]
    fn a_query_is_signed_as_it_is_understood() {
        let mut request = Owned::post("");
        request.query = parameters::decode(b"Action=A&Value.1=a%20b%2Bc&Value.2=%7E*&Empty").unwrap();
        let text = canonical(request.borrow(), &["host"]);
        let lines: Vec<_> = text.lines().collect();
        assert_eq!(lines[2], "Action=A&Empty=&Value.1=a%20b%2Bc&Value.2=~%2A");
    }
}
