//! A client of the agent's own EC2 API.

use std::io::{BufRead, BufReader};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, bail};
use jiff::Timestamp;
use serde_json::Value;
use tokio_rustls::rustls::{self, crypto::ring};
use ureq::tls::{PemItem, RootCerts, TlsConfig, parse_pem};

use crate::cli::answer::{list, parse, text};
use crate::config::Config;
use crate::credentials::Credentials;
use crate::events;
use crate::query::Service;
use crate::query::sigv4::{self, Signed};

/// The version of EC2's API, its only one of the last ten years.
const VERSION: &str = "2016-11-15";

/// RunInstances of many instances takes a while on a busy host.
const TIMEOUT: Duration = Duration::from_secs(60);

/// An agent ends a stream of events after two minutes. One that has not is gone.
const LONGEST_STREAM: Duration = Duration::from_secs(180);

/// An answer of 10,000 instances is about 40 MiB.
const LONGEST_ANSWER: u64 = 256 << 20;

/// An error that the agent answered with.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message} ({code}){}", advice(code, message))]
pub struct Refused {
    /// EC2's code.
    pub code: String,
    /// EC2's message.
    pub message: String,
    /// The status of the answer; from 500 on, the same request may be answered later.
    pub status: u16,
}

/// What to do about an error, where its message does not say.
fn advice(code: &str, message: &str) -> &'static str {
    match code {
        "InvalidParameterValue" if message.ends_with("for InstanceType") => {
            ". `innkeeper types` lists the types"
        }
        "AuthFailure" | "InvalidClientTokenId" | "SignatureDoesNotMatch" => {
            ". The credentials are those of AWS_ACCESS_KEY_ID, else those that the agent keeps in its state \
             directory: `innkeeper credentials` shows them"
        }
        "IncorrectInstanceState" | "InvalidInstanceID.NotFound" => {
            ". `innkeeper ps --all` lists the instances"
        }
        "InvalidAMIID.NotFound" | "InvalidAMIID.Malformed" => ". `innkeeper image list` lists the images",
        "InvalidKeyPair.NotFound" => ". `innkeeper key list` lists the key pairs",
        "InvalidSnapshot.NotFound" => ". `innkeeper snapshot list` lists the snapshots",
        "InvalidVolume.NotFound" => ". `innkeeper volume list` lists the volumes",
        "InvalidGroup.NotFound" => ". `innkeeper group list` lists the security groups",
        "InsufficientInstanceCapacity" => ". `innkeeper types --fits` lists what fits",
        _ => "",
    }
}

/// The parameters of a request.
#[derive(Clone, Debug, Default)]
pub struct Parameters(Vec<(String, String)>);

impl Parameters {
    /// Adds one.
    pub fn with(mut self, name: &str, value: impl Into<String>) -> Self {
        self.0.push((name.to_owned(), value.into()));
        self
    }

    /// Adds one if there is a value.
    pub fn with_some(self, name: &str, value: Option<impl Into<String>>) -> Self {
        match value {
            Some(value) => self.with(name, value),
            None => self,
        }
    }

    /// Adds a list.
    pub fn with_list<'a>(self, name: &str, values: impl IntoIterator<Item = &'a String>) -> Self {
        let values = values.into_iter().zip(1..);
        values.fold(self, |parameters, (value, number)| {
            parameters.with(&format!("{name}.{number}"), value.as_str())
        })
    }

    /// Adds the tags that a new resource of this type gets.
    pub fn with_tags(self, resource: &str, tags: &[(String, String)]) -> Self {
        if tags.is_empty() {
            return self;
        }
        let parameters = self.with("TagSpecification.1.ResourceType", resource);
        tags.iter().zip(1..).fold(parameters, |parameters, ((key, value), number)| {
            let name = format!("TagSpecification.1.Tag.{number}");
            parameters
                .with(&format!("{name}.Key"), key.as_str())
                .with(&format!("{name}.Value"), value.as_str())
        })
    }

    /// Adds filters. One that is there twice gets all of its values.
    pub fn with_filters(self, filters: &[(String, String)]) -> Self {
        let mut grouped: Vec<(&str, Vec<&str>)> = Vec::new();
        for (name, value) in filters {
            let values = value.split(',');
            match grouped.iter_mut().find(|(known, _)| known == name) {
                Some((_, all)) => all.extend(values),
                None => grouped.push((name, values.collect())),
            }
        }
        grouped.into_iter().zip(1..).fold(self, |parameters, ((name, values), number)| {
            let parameters = parameters.with(&format!("Filter.{number}.Name"), name);
            values.into_iter().zip(1..).fold(parameters, |parameters, (value, index)| {
                parameters.with(&format!("Filter.{number}.Value.{index}"), value)
            })
        })
    }
}

/// What a stream of events tells.
#[derive(Clone, Debug, PartialEq)]
pub enum Told {
    /// An event, in EventBridge's form.
    Event {
        /// Its place among all.
        number: u64,
        /// The document.
        event: Value,
    },
    /// So many were forgotten before they could be read.
    Lost(u64),
}

/// A client of one agent.
pub struct Client {
    http: ureq::Agent,
    credentials: Credentials,
}

/// Those of the environment, else those that the agent has written.
fn credentials(config: &Config) -> anyhow::Result<Credentials> {
    if let (Ok(access_key_id), Ok(secret_access_key)) =
        (std::env::var("AWS_ACCESS_KEY_ID"), std::env::var("AWS_SECRET_ACCESS_KEY"))
    {
        let (region, endpoint_url) = (config.region.clone(), config.endpoint_url(config.listen.port()));
        let ca_bundle = config.ca_bundle().map(|path| path.display().to_string());
        return Ok(Credentials { access_key_id, secret_access_key, region, endpoint_url, ca_bundle });
    }
    let path = config.credentials();
    Credentials::read(&path).with_context(|| {
        let path = path.display();
        format!(
            "there are no credentials: cannot read {path}, which `innkeeper serve` writes on its first start \
             (become the agent's user, or set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY)"
        )
    })
}

/// The host and the port of an endpoint, or nothing.
fn host_of(endpoint: &str) -> &str {
    let host = endpoint.strip_prefix("http://").or_else(|| endpoint.strip_prefix("https://"));
    host.unwrap_or_default()
}

/// The certificates by which endpoints are trusted if nobody says, as Debian and most others have them.
const SYSTEM_BUNDLE: &str = "/etc/ssl/certs/ca-certificates.crt";

/// The file with the certificates by which an endpoint is trusted: the agent's own, else that which AWS's tools would
/// choose, else the system's.
fn trusted(credentials: &Credentials) -> PathBuf {
    let own = credentials.ca_bundle.as_ref().map(PathBuf::from);
    let named =
        || ["AWS_CA_BUNDLE", "SSL_CERT_FILE"].into_iter().find_map(std::env::var_os).map(PathBuf::from);
    own.or_else(named).unwrap_or_else(|| SYSTEM_BUNDLE.into())
}

/// How an endpoint is talked to that is trusted by what a file has.
fn tls(bundle: PathBuf) -> anyhow::Result<TlsConfig> {
    let read = std::fs::read(&bundle);
    let read = read.with_context(|| {
        let bundle = bundle.display();
        format!(
            "cannot read {bundle}, by which the agent is to be trusted (ca_bundle in the credentials, else AWS_CA_BUNDLE)"
        )
    })?;
    let certificates = parse_pem(&read).filter_map(|item| match item {
        Ok(PemItem::Certificate(certificate)) => Some(Ok(certificate)),
        Ok(_) => None,
        Err(error) => Some(Err(error)),
    });
    let certificates = certificates.collect::<Result<Vec<_>, _>>();
    let certificates = certificates.with_context(|| format!("{} is no PEM", bundle.display()))?;
    Ok(TlsConfig::builder()
        .root_certs(RootCerts::new_with_certs(&certificates))
        .unversioned_rustls_crypto_provider(Arc::new(ring::default_provider()))
        .build())
}

impl Client {
    /// One of the agent that is configured, or of the one at an address.
    pub fn new(config: &Config, endpoint: Option<&str>) -> anyhow::Result<Self> {
        let mut credentials = credentials(config)?;
        if let Some(endpoint) = endpoint {
            credentials.endpoint_url = endpoint.to_owned();
        }
        Self::with(credentials)
    }

    fn with(mut credentials: Credentials) -> anyhow::Result<Self> {
        let endpoint = credentials.endpoint_url.trim_end_matches('/').to_owned();
        let host = host_of(&endpoint);
        if host.is_empty() || host.contains('/') {
            bail!("{endpoint:?} is not an address of an agent: write http://HOST:PORT, or https://HOST:PORT");
        }
        let tls = match endpoint.starts_with("https://") {
            true => tls(trusted(&credentials))?,
            false => TlsConfig::default(),
        };
        let http = ureq::Agent::config_builder()
            .http_status_as_error(false)
            // The agent is on this host, or behind a tunnel.
            .proxy(None)
            .max_redirects(0)
            .timeout_global(Some(TIMEOUT))
            .tls_config(tls)
            .build()
            .new_agent();
        credentials.endpoint_url = endpoint;
        Ok(Self { http, credentials })
    }

    /// Asks for one of EC2's actions.
    pub fn call(&self, action: &str, parameters: Parameters) -> anyhow::Result<Value> {
        let mut form = form_urlencoded::Serializer::new(String::new());
        form.append_pair("Action", action).append_pair("Version", VERSION);
        let body = form.extend_pairs(parameters.0).finish();
        let content_type = "application/x-www-form-urlencoded; charset=utf-8";
        let headers = vec![("content-type".to_owned(), content_type.to_owned())];
        let headers = self.signed("POST", "/", &[], headers, body.as_bytes());
        let mut request = self.http.post(format!("{}/", self.credentials.endpoint_url));
        for (name, value) in headers {
            request = request.header(name, value);
        }
        let response = request.send(&body).map_err(|error| self.unanswered(error))?;
        self.document(response)
    }

    /// Adds the host and the signature to a request's headers.
    fn signed(
        &self,
        method: &str,
        path: &str,
        query: &[(String, String)],
        mut headers: Vec<(String, String)>,
        body: &[u8],
    ) -> Vec<(String, String)> {
        let Credentials { access_key_id, secret_access_key, region, endpoint_url, .. } = &self.credentials;
        headers.push(("host".to_owned(), host_of(endpoint_url).to_owned()));
        let request = Signed { method, path, query, headers: &headers, body };
        let now = Timestamp::now();
        let signature = sigv4::sign(request, access_key_id, secret_access_key, region, Service::Ec2, now);
        headers.extend(signature);
        headers
    }

    /// The document that an answer is, or the error that it says.
    fn document(&self, mut response: ureq::http::Response<ureq::Body>) -> anyhow::Result<Value> {
        let endpoint_url = &self.credentials.endpoint_url;
        let status = response.status();
        let answer = response.body_mut().with_config().limit(LONGEST_ANSWER).read_to_string();
        let answer = answer.map_err(|error| self.unanswered(error))?;
        let tree = parse(&answer)
            .with_context(|| format!("{endpoint_url} does not answer as an agent (HTTP status {status})"))?;
        if status.is_success() {
            return Ok(tree);
        }
        // STS puts no list around its error.
        let error = tree.get("Errors").unwrap_or(&tree);
        let (code, message) = (text(error, "Error.Code"), text(error, "Error.Message"));
        let message = message.trim_end_matches('.').to_owned();
        Err(Refused { code: code.to_owned(), message, status: status.as_u16() }.into())
    }

    /// Reads the stream of events behind one, until it ends or `listener` has heard enough.
    pub fn events(
        &self,
        after: u64,
        follow: bool,
        listener: &mut dyn FnMut(Told) -> bool,
    ) -> anyhow::Result<()> {
        let query = [("after".to_owned(), after.to_string()), ("follow".to_owned(), follow.to_string())];
        let headers = self.signed("GET", events::PATH, &query, Vec::new(), b"");
        let query = form_urlencoded::Serializer::new(String::new()).extend_pairs(&query).finish();
        let request = self.http.get(format!("{}{}?{query}", self.credentials.endpoint_url, events::PATH));
        let mut request = request
            .config()
            .timeout_global(None)
            .timeout_recv_response(Some(TIMEOUT))
            .timeout_recv_body(Some(LONGEST_STREAM))
            .build();
        for (name, value) in headers {
            request = request.header(name, value);
        }
        let response = request.call().map_err(|error| self.unanswered(error))?;
        if !response.status().is_success() {
            return self.document(response).map(drop);
        }
        let lines = BufReader::new(response.into_body().into_reader()).lines();
        let (mut number, mut is_loss) = (after, false);
        for line in lines {
            let line = line.map_err(|error| self.unanswered(error.into()))?;
            let (field, value) = line.split_once(": ").unwrap_or_default();
            match field {
                "id" => number = value.parse().context("an event without a number")?,
                "event" => is_loss = value == "lost",
                "data" => {
                    let event: Value = serde_json::from_str(value).context("an event that is not JSON")?;
                    let told = if std::mem::take(&mut is_loss) {
                        Told::Lost(event.get("lost").and_then(Value::as_u64).unwrap_or_default())
                    } else {
                        Told::Event { number, event }
                    };
                    if !listener(told) {
                        return Ok(());
                    }
                }
                _ => {}
            }
        }
        Ok(())
    }

    /// Asks for everything that an action lists, page by page.
    pub fn describe(&self, action: &str, parameters: Parameters, name: &str) -> anyhow::Result<Vec<Value>> {
        let (mut all, mut token) = (Vec::new(), None::<String>);
        loop {
            let answer = self.call(action, parameters.clone().with_some("NextToken", token))?;
            all.extend(list(&answer, name).iter().cloned());
            match text(&answer, "nextToken") {
                "" => return Ok(all),
                next => token = Some(next.to_owned()),
            }
        }
    }

    /// Asks for instances, out of their reservations.
    pub fn instances(&self, parameters: Parameters) -> anyhow::Result<Vec<Value>> {
        let reservations = self.describe("DescribeInstances", parameters, "reservationSet")?;
        Ok(reservations.iter().flat_map(|each| list(each, "instancesSet")).cloned().collect())
    }

    /// Says why there is no answer, and what to do.
    fn unanswered(&self, error: ureq::Error) -> anyhow::Error {
        let endpoint = &self.credentials.endpoint_url;
        let is_refused = match &error {
            ureq::Error::Io(error) => error.kind() == std::io::ErrorKind::ConnectionRefused,
            ureq::Error::ConnectionFailed => true,
            _ => false,
        };
        if is_refused {
            return anyhow::anyhow!(
                "no agent answers at {endpoint}: start it with `innkeeper serve`, or say where it is with --endpoint-url"
            );
        }
        let is_untrusted = |error: &std::io::Error| {
            let cause = error.get_ref().and_then(|cause| cause.downcast_ref::<rustls::Error>());
            matches!(cause, Some(rustls::Error::InvalidCertificate(_)))
        };
        let advice = match &error {
            ureq::Error::Io(error) if is_untrusted(error) => {
                " (ca_bundle in the credentials, else AWS_CA_BUNDLE, names the file by which it is trusted)"
            }
            _ => "",
        };
        anyhow::Error::new(error).context(format!("cannot talk to the agent at {endpoint}{advice}"))
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use std::io::{Read, Write};
    use std::net::TcpListener;
    use std::thread::JoinHandle;

    use super::*;

    fn client_of(endpoint: &str) -> anyhow::Result<Client> {
        Client::with(Credentials {
            access_key_id: "AKIAEXAMPLE".into(),
            secret_access_key: "secret".into(),
            region: "us-east-1".into(),
            endpoint_url: endpoint.into(),
            ca_bundle: None,
        })
    }

    /// A server that gives these answers, one per connection, and then returns what it was asked.
    pub fn serve(answers: Vec<(u16, String)>) -> (Client, JoinHandle<Vec<String>>) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let endpoint = format!("http://{}", listener.local_addr().unwrap());
        let server = std::thread::spawn(move || {
            let answer = |(status, body): (u16, String)| {
                let mut stream = BufReader::new(listener.accept().unwrap().0);
                let (mut head, mut length) = (String::new(), 0);
                while !head.ends_with("\r\n\r\n") {
                    let start = head.len();
                    stream.read_line(&mut head).unwrap();
                    let line = head[start..].to_lowercase();
                    if let Some(value) = line.strip_prefix("content-length:") {
                        length = value.trim().parse().unwrap();
                    }
                }
                let mut asked = vec![0; length];
                stream.read_exact(&mut asked).unwrap();
                let answer = format!(
                    "HTTP/1.1 {status} X\r\ncontent-length: {}\r\nconnection: close\r\n\r\n{body}",
                    body.len()
                );
                stream.get_mut().write_all(answer.as_bytes()).unwrap();
                head + &String::from_utf8(asked).unwrap()
            };
            answers.into_iter().map(answer).collect()
        });
        (client_of(&endpoint).unwrap(), server)
    }

    #[test]
    fn a_request_is_signed_so_that_the_agent_believes_it() {
        let (client, server) = serve(vec![(200, "<R><requestId>1</requestId></R>".into())]);
        let parameters = Parameters::default().with_filters(&[
            ("a".into(), "1,2".into()),
            ("b".into(), "x y".into()),
            ("a".into(), "3".into()),
        ]);
        client.call("DescribeInstances", parameters).unwrap();
        let asked = server.join().unwrap().remove(0);
        let (head, body) = asked.split_once("\r\n\r\n").unwrap();
        assert_eq!(
            body,
            "Action=DescribeInstances&Version=2016-11-15&Filter.1.Name=a&Filter.1.Value.1=1&Filter.1.Value.2=2\
             &Filter.1.Value.3=3&Filter.2.Name=b&Filter.2.Value.1=x+y"
        );
        let headers: Vec<(String, String)> = head
            .lines()
            .skip(1)
            .map(|line| line.split_once(':').unwrap())
            .map(|(name, value)| (name.to_lowercase(), value.trim().to_owned()))
            .collect();
        let request =
            Signed { method: "POST", path: "/", query: &[], headers: &headers, body: body.as_bytes() };
        let signer = sigv4::verify(request, "us-east-1", Timestamp::now(), |key, _| {
            if key == "AKIAEXAMPLE" { Ok("secret".into()) } else { Err(sigv4::Unfit::Unknown) }
        });
        assert_eq!(signer.unwrap().access_key, "AKIAEXAMPLE");
    }

    #[test]
    fn advice_is_given_where_the_message_has_none() {
        for (code, message, expected) in [
            ("InvalidParameterValue", "Invalid value 't9.tiny' for InstanceType", "`innkeeper types` lists"),
            ("InvalidParameterValue", "The filter 'colour' is invalid", ""),
            ("InvalidVolume.NotFound", "The volume 'vol-1' does not exist", "`innkeeper volume list` lists"),
        ] {
            let said = advice(code, message);
            assert_eq!((said.contains(expected), said.is_empty()), (true, expected.is_empty()), "{message}");
        }
    }

    #[test]
    fn an_error_is_one_line_with_ec2s_code_and_what_to_do() {
        let xml = "<Response><Errors><Error><Code>InvalidKeyPair.NotFound</Code><Message>The key pair 'a' does not \
                   exist</Message></Error></Errors><RequestID>1</RequestID></Response>";
        let (client, server) = serve(vec![(400, xml.into()), (502, "Bad gateway".into())]);
        let error = client.call("RunInstances", Parameters::default()).unwrap_err();
        assert_eq!(
            error.to_string(),
            "The key pair 'a' does not exist (InvalidKeyPair.NotFound). `innkeeper key list` lists the key pairs"
        );
        let error = client.call("RunInstances", Parameters::default()).unwrap_err();
        assert!(
            error.to_string().ends_with("does not answer as an agent (HTTP status 502 Bad Gateway)"),
            "{error}"
        );
        server.join().unwrap();
    }

    #[test]
    fn an_agent_that_does_not_run_is_said_to_be_so() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let endpoint = format!("http://{}/", listener.local_addr().unwrap());
        drop(listener);
        let client = client_of(&endpoint).unwrap();
        let error = client.call("DescribeInstances", Parameters::default()).unwrap_err();
        assert!(error.to_string().contains("start it with `innkeeper serve`"), "{error}");
    }

    #[test]
    fn pages_are_put_together() {
        let page = |id: &str, token: &str| {
            let xml = format!(
                "<R><volumeSet><item><volumeId>{id}</volumeId></item></volumeSet><nextToken>{token}</nextToken></R>"
            );
            (200, xml)
        };
        let (client, server) = serve(vec![page("vol-1", "more"), page("vol-2", "")]);
        let all = client.describe("DescribeVolumes", Parameters::default(), "volumeSet").unwrap();
        assert_eq!(all.iter().map(|each| text(each, "volumeId")).collect::<Vec<_>>(), ["vol-1", "vol-2"]);
        let asked = server.join().unwrap();
        assert!(!asked[0].contains("NextToken") && asked[1].ends_with("&NextToken=more"), "{asked:?}");
    }

    #[test]
    fn who_is_trusted_has_to_be_in_a_file() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("ca.pem");
        let error = tls(file.clone()).unwrap_err().to_string();
        assert!(
            error.ends_with(
                "by which the agent is to be trusted (ca_bundle in the credentials, else AWS_CA_BUNDLE)"
            ),
            "{error}"
        );
        std::fs::write(&file, "-----BEGIN CERTIFICATE-----\n!\n-----END CERTIFICATE-----\n").unwrap();
        assert_eq!(tls(file.clone()).unwrap_err().to_string(), format!("{} is no PEM", file.display()));
        std::fs::write(&file, "").unwrap();
        assert!(tls(file).is_ok());
    }

    #[test]
    fn only_plain_addresses_are_endpoints() {
        for endpoint in ["127.0.0.1:8773", "ftp://127.0.0.1:8773", "http://", "https://", "http://a/b"] {
            assert!(client_of(endpoint).is_err(), "{endpoint}");
        }
    }
}
