//! Who sent a request: AWS's Signature Version 4, in the `Authorization` header or in a presigned query.
//!
//! [`verify`] and [`sign`] share the canonical request, the text that both sides hash. AWS's page "Create a signed AWS
//! API request" describes it. A body is always signed: EC2 knows no unsigned payloads. Paths are taken as they are:
//! a client that sends dots or empty parts in one finds its signature refused.

mod claim;

use jiff::{SignedDuration, Timestamp};
use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;

use self::claim::{Claim, Scope};
use crate::query::dispatch::hex;
use crate::query::{ApiError, Service};
use crate::records::secret::hmac;

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

/// Why nothing can be signed with an access key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unfit {
    /// Nobody has it, or not with this security token.
    Unknown,
    /// It was temporary.
    Expired,
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

/// Finds out who signed a request, and refuses it if that is not certain. `secret` finds the secret of an access key and
/// the security token that goes with it, if one does.
pub fn verify(
    request: Signed<'_>,
    region: &str,
    now: Timestamp,
    secret: impl FnOnce(&str, Option<&str>) -> Result<String, Unfit>,
) -> Result<Signer, ApiError> {
    let claim = Claim::of(request)?;
    let (access_key, scope) = claim.credential()?;
    if scope.region != region && !(scope.service.is_global() && scope.region == "us-east-1") {
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
    let secret = secret(access_key, claim.token).map_err(|unfit| unfit.of(scope.service))?;
    // The signature is no part of what it signs.
    let query: Vec<_> = request.query.iter().filter(|(name, _)| name != "X-Amz-Signature").cloned().collect();
    let expected = signature(Signed { query: &query, ..request }, &names, claim.date, scope, &secret);
    if !bool::from(expected.as_bytes().ct_eq(claim.signature.as_bytes())) {
        return Err(mismatch(scope.service));
    }
    Ok(Signer { access_key: access_key.to_owned(), service: scope.service })
}

impl Unfit {
    /// The error. EC2 does not say whether it is the key that is wrong or the signature.
    fn of(self, service: Service) -> ApiError {
        match (service, self) {
            (Service::Ec2, Self::Unknown) => mismatch(service),
            (Service::Ec2, Self::Expired) => ApiError::new("RequestExpired", "Request has expired."),
            (_, Self::Unknown) => ApiError::new(
                "InvalidClientTokenId",
                "The security token included in the request is invalid.",
            ),
            (_, Self::Expired) => {
                ApiError::new("ExpiredToken", "The security token included in the request is expired")
            }
        }
    }
}

/// The error for a wrong signature.
fn mismatch(service: Service) -> ApiError {
    match service {
        Service::Ec2 => {
            ApiError::new("AuthFailure", "AWS was not able to validate the provided access credentials")
        }
        Service::Iam | Service::Sts => ApiError::new(
            "SignatureDoesNotMatch",
            "The request signature we calculated does not match the signature you provided. Check your secret \
             access key and signing method.",
        ),
    }
}

/// The signature of a request.
fn signature(request: Signed<'_>, names: &[&str], date: &str, scope: Scope<'_>, secret: &str) -> String {
    let canonical = canonical(request, names);
    let to_sign = format!("{ALGORITHM}\n{date}\n{scope}\n{}", hex(&Sha256::digest(canonical.as_bytes())));
    let mut key = hmac(format!("AWS4{secret}").as_bytes(), scope.day.as_bytes());
    for part in [scope.region, scope.service.name(), "aws4_request"] {
        key = hmac(&key, part.as_bytes());
    }
    hex(&hmac(&key, to_sign.as_bytes()))
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
pub fn encode(text: &str, path: bool) -> String {
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
    /// A temporary key, what goes with it, and what went with it before.
    const TEMPORARY: &str = "ASIAIOSFODNN7EXAMPLE";
    const TOKEN: &str = "aSBhbSB/dGhlIHRva2Vu+w==";
    const OLD: &str = "b2xk";
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
            verify(self.borrow(), REGION, now, |key, token| match (key, token) {
                (KEY, None) | (TEMPORARY, Some(TOKEN)) => Ok(SECRET.to_owned()),
                (TEMPORARY, Some(OLD)) => Err(Unfit::Expired),
                _ => Err(Unfit::Unknown),
            })
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
        fn signed_by_oracle(self, secret: &str, settings: SigningSettings, service: &str) -> Self {
            self.signed_with(Credentials::new(KEY, secret, None, None, "test"), settings, service)
        }

        fn signed_with(mut self, key: Credentials, settings: SigningSettings, service: &str) -> Self {
            let identity = key.into();
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
        fn what_amazons_signer_signs_is_good(
            request in requests(),
            in_query in any::<bool>(),
            temporary in any::<bool>(),
            service in prop::sample::select(&[Service::Ec2, Service::Iam, Service::Sts][..]),
        ) {
            let settings = if in_query { presigned() } else { SigningSettings::default() };
            let (key, token) = if temporary { (TEMPORARY, Some(TOKEN.to_owned())) } else { (KEY, None) };
            let request =
                request.signed_with(Credentials::new(key, SECRET, token, None, "test"), settings, service.name());
            let signer = Signer { access_key: key.to_owned(), service };
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
            authorization in "(AWS4-HMAC-SHA256 )?\
                (Credential=[a-z/0-9]{0,20}|SignedHeaders=[a-z;]{0,5}|Signature=.|[,=;/ ]){0,6}",
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
        for (service, unknown, wrong) in [
            ("ec2", "AuthFailure", "AuthFailure"),
            ("iam", "InvalidClientTokenId", "SignatureDoesNotMatch"),
            ("sts", "InvalidClientTokenId", "SignatureDoesNotMatch"),
        ] {
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
        for service in [Service::Iam, Service::Sts] {
            assert!(signed("us-east-1", service).verify_at(now()).is_ok());
            assert!(signed(REGION, service).verify_at(now()).is_ok());
        }
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
    }

    #[test]
    fn a_temporary_key_goes_with_its_token_and_another_with_none() {
        let code = |key: &str, token: Option<&str>, settings: SigningSettings, service: &str| {
            let key = Credentials::new(key, SECRET, token.map(str::to_owned), None, "test");
            let found = Owned::post("").signed_with(key, settings, service).verify_at(now());
            found.map_or_else(|error| error.code, |_| "")
        };
        for (key, token, of_ec2, of_iam) in [
            (TEMPORARY, Some(TOKEN), "", ""),
            (TEMPORARY, Some(OLD), "RequestExpired", "ExpiredToken"),
            (TEMPORARY, Some("x"), "AuthFailure", "InvalidClientTokenId"),
            (TEMPORARY, None, "AuthFailure", "InvalidClientTokenId"),
            (KEY, Some(TOKEN), "AuthFailure", "InvalidClientTokenId"),
        ] {
            for settings in [SigningSettings::default, presigned] {
                assert_eq!(code(key, token, settings(), "ec2"), of_ec2, "{key} {token:?}");
                assert_eq!(code(key, token, settings(), "iam"), of_iam, "{key} {token:?}");
                assert_eq!(code(key, token, settings(), "sts"), of_iam, "{key} {token:?}");
            }
        }
        let key = || Credentials::new(TEMPORARY, SECRET, Some(TOKEN.into()), None, "test");
        let mut stolen = Owned::post("").signed_with(key(), SigningSettings::default(), "ec2");
        *stolen.header_mut("x-amz-security-token") = OLD.to_owned();
        assert_eq!(stolen.code(), "RequestExpired");
        // A token that was not signed, or is there twice.
        let mut added = Owned::post("").signed_by_oracle(SECRET, SigningSettings::default(), "ec2");
        added.headers.push(("x-amz-security-token".to_owned(), TOKEN.to_owned()));
        assert_eq!(added.code(), "AuthFailure");
        let mut twice = Owned::post("").signed_with(key(), presigned(), "ec2");
        twice.headers.push(("x-amz-security-token".to_owned(), TOKEN.to_owned()));
        assert_eq!(twice.code(), "IncompleteSignature");
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
    fn what_botocore_has_signed_is_good() {
        let authorization = |headers: &str, signature: &str| {
            let scope = "20261121/eu-west-1/ec2/aws4_request";
            format!("{ALGORITHM} Credential={KEY}/{scope}, SignedHeaders={headers}, Signature={signature}")
        };
        let header = |name: &str, value: &str| (name.to_owned(), value.to_owned());
        let query = "Action=DescribeInstances&Version=2016-11-15&Filter.1.Name=tag%3AName";

        let mut post = Owned::post(
            "Action=RunInstances&Version=2016-11-15&TagSpecification.1.Tag.1.Value=a+b%2Bc%C3%A9",
        );
        post.header_mut("content-type").push_str("; charset=utf-8");
        let signature = "efabfc8fb38bae03b8c2eba5a5bd2d49f287688f5808bcfa8b7580cc1e2a744a";
        post.headers.push(header("authorization", &authorization("content-type;host;x-amz-date", signature)));
        post.headers.push(header("x-amz-date", "20261121T100000Z"));

        // It signs a space as %20, and sends it as a plus.
        let mut get = Owned::post("");
        get.method = "GET".to_owned();
        let sent = format!("{query}&Filter.1.Value.1=a+b%2Bc%2F%C3%A9~%2A");
        get.query = parameters::decode(sent.as_bytes()).unwrap();
        let signature = "cba0dbc0f2890c0859050e5bb4ec7df29dcca3b8140701d8ed0e1863c25f797f";
        get.headers.push(header("authorization", &authorization("host;x-amz-date", signature)));
        get.headers.push(header("x-amz-date", "20261121T100000Z"));

        let mut presigned = Owned::post("");
        presigned.method = "GET".to_owned();
        let sent = format!(
            "{query}&Filter.1.Value.1=a%20b%2Bc%2F%C3%A9~%2A&X-Amz-Algorithm=AWS4-HMAC-SHA256\
             &X-Amz-Credential=AKIAIOSFODNN7EXAMPLE%2F20261121%2Feu-west-1%2Fec2%2Faws4_request\
             &X-Amz-Date=20261121T100000Z&X-Amz-Expires=600&X-Amz-SignedHeaders=host\
             &X-Amz-Signature=97e38726ddf41258251a32db3a4235b01fc9c5cb49eb0c1c439db3e481846f14"
        );
        presigned.query = parameters::decode(sent.as_bytes()).unwrap();

        for request in [post, get, presigned] {
            assert!(request.verify_at(now()).is_ok(), "{request:?}");
        }
    }
}
