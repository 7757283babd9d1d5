//! A client of EC2's API for programs that measure: one connection that stays, and nothing between.

use std::time::{Duration, SystemTime};

use anyhow::{Context, Result, bail, ensure};
use aws_credential_types::Credentials;
use aws_sigv4::http_request::{SignableBody, SignableRequest, SigningSettings, sign};
use aws_sigv4::sign::v4::SigningParams;
use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;

const FORM: &str = "application/x-www-form-urlencoded; charset=utf-8";
const PATIENCE: Duration = Duration::from_secs(60);

/// A client.
pub struct Client {
    endpoint: String,
    region: String,
    credentials: Credentials,
    connections: ureq::Agent,
}

impl Client {
    /// A client for this endpoint, such as `http://127.0.0.1:8773`.
    pub fn new(endpoint: &str, region: &str, access_key: &str, secret: &str) -> Self {
        let config = ureq::Agent::config_builder()
            .http_status_as_error(false)
            .timeout_global(Some(PATIENCE))
            .no_delay(true)
            .build();
        Self {
            endpoint: format!("{endpoint}/"),
            region: region.to_owned(),
            credentials: Credentials::new(access_key, secret, None, None, "tests"),
            connections: config.into(),
        }
    }

    /// Sends a request and returns the answer, which must not be an error.
    pub fn ask(&self, action: &str, parameters: &[(&str, &str)]) -> Result<String> {
        let (status, answer) = self.send(action, parameters)?;
        ensure!(status == 200, "{action}: {status}, {answer}");
        Ok(answer)
    }

    /// Sends a request and returns the status and the answer.
    pub fn send(&self, action: &str, parameters: &[(&str, &str)]) -> Result<(u16, String)> {
        let body = form_urlencoded::Serializer::new(String::new())
            .extend_pairs([("Action", action), ("Version", "2016-11-15")])
            .extend_pairs(parameters)
            .finish();
        let identity = self.credentials.clone().into();
        let signing = SigningParams::builder()
            .identity(&identity)
            .region(&self.region)
            .name("ec2")
            .time(SystemTime::now())
            .settings(SigningSettings::default())
            .build()?
            .into();
        let own = [("content-type", FORM)];
        let body_to_sign = SignableBody::Bytes(body.as_bytes());
        let request = SignableRequest::new("POST", &self.endpoint, own.into_iter(), body_to_sign)?;
        let (instructions, _) = sign(request, &signing)?.into_parts();
        let mut request = self.connections.post(&self.endpoint).header("content-type", FORM);
        for (name, value) in instructions.headers() {
            request = request.header(name, value);
        }
        let mut response =
            request.send(&body).with_context(|| format!("{action} at {} was not answered", self.endpoint))?;
        let answer = response.body_mut().with_config().limit(64 << 20).read_to_string()?;
        Ok((response.status().as_u16(), answer))
    }

    /// Launches one instance, and returns its id.
    pub fn launch(&self, image: &str, instance_type: &str) -> Result<String> {
        let parameters =
            [("ImageId", image), ("InstanceType", instance_type), ("MinCount", "1"), ("MaxCount", "1")];
        let answer = self.ask("RunInstances", &parameters)?;
        texts(&answer, "instanceId").pop().with_context(|| format!("no instance: {answer}"))
    }

    /// What an instance has printed on its console.
    pub fn console(&self, instance: &str) -> Result<String> {
        console_text(&self.ask("GetConsoleOutput", &[("InstanceId", instance)])?)
    }

    /// Waits until all of these instances are in a state; looks every few milliseconds.
    pub fn wait_for(&self, instances: &[String], state: &str, patience: Duration) -> Result<()> {
        let deadline = std::time::Instant::now() + patience;
        let chosen = numbered("InstanceId", instances);
        let parameters: Vec<(&str, &str)> =
            chosen.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
        loop {
            let answer = self.ask("DescribeInstances", &parameters)?;
            let there = answer.matches(&format!("<name>{state}</name>")).count();
            if there == instances.len() {
                return Ok(());
            }
            if std::time::Instant::now() > deadline {
                bail!("{there} of {} instances are {state} after {patience:?}: {answer}", instances.len());
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

/// A list of parameters: `InstanceId.1`, `InstanceId.2` and so on.
pub fn numbered(name: &str, values: &[String]) -> Vec<(String, String)> {
    values.iter().zip(1..).map(|(value, number)| (format!("{name}.{number}"), value.clone())).collect()
}

/// The texts of all elements with this name in an answer.
pub fn texts(answer: &str, element: &str) -> Vec<String> {
    let (open, close) = (format!("<{element}>"), format!("</{element}>"));
    let after = answer.split(&open).skip(1);
    after.filter_map(|rest| rest.split(&close).next()).map(str::to_owned).collect()
}

/// What the console has printed, of an answer to GetConsoleOutput.
pub fn console_text(answer: &str) -> Result<String> {
    let encoded = texts(answer, "output").pop().unwrap_or_default();
    let bytes = BASE64_STANDARD.decode(&encoded).with_context(|| format!("not base64: {encoded}"))?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_are_found() {
        let answer = "<a><id>1</id><other>x</other><id>2</id><ids/></a>";
        assert_eq!(texts(answer, "id"), ["1", "2"]);
        assert_eq!(texts(answer, "nothing"), Vec::<String>::new());
        assert_eq!(numbered("Id", &["x".into(), "y".into()])[1], ("Id.2".to_owned(), "y".to_owned()));
    }
}
