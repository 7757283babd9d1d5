//! HTTP as bytes: a test sees all that is said, and says what no client would.

use std::fmt;
use std::io::{BufRead, BufReader, ErrorKind, Read, Write};
use std::net::{Ipv4Addr, TcpStream};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use innkeeper_tests::network::Place;

use super::PATIENCE;

/// Where the service is.
pub const SERVICE: Ipv4Addr = Ipv4Addr::new(169, 254, 169, 254);
/// Its port.
pub const HTTP: u16 = 80;
/// The path of tokens.
pub const TOKEN_PATH: &str = "/latest/api/token";
/// By which header a token is shown.
pub const TOKEN: &str = "X-aws-ec2-metadata-token";
/// By which header it is said for how long one is to be good.
pub const TTL: &str = "X-aws-ec2-metadata-token-ttl-seconds";

/// A request.
#[derive(Clone)]
pub struct Ask {
    method: String,
    target: String,
    version: &'static str,
    headers: Vec<(String, String)>,
    body: String,
}

/// A request with this method and target, as they are written.
pub fn ask(method: &str, target: &str) -> Ask {
    Ask {
        method: method.to_owned(),
        target: target.to_owned(),
        version: "HTTP/1.1",
        headers: vec![("Host".to_owned(), SERVICE.to_string())],
        body: String::new(),
    }
}

/// Asks for a path.
pub fn get(path: &str) -> Ask {
    ask("GET", path)
}

/// Asks for a token that is good for so many seconds.
pub fn put(seconds: &str) -> Ask {
    ask("PUT", TOKEN_PATH).with(TTL, seconds)
}

impl Ask {
    /// With another header.
    pub fn with(mut self, name: &str, value: &str) -> Self {
        self.headers.push((name.to_owned(), value.to_owned()));
        self
    }

    /// Without any header.
    pub fn bare(mut self) -> Self {
        self.headers.clear();
        self
    }

    /// With a token.
    pub fn token(self, token: &str) -> Self {
        self.with(TOKEN, token)
    }

    /// With another version of HTTP.
    pub fn version(mut self, version: &'static str) -> Self {
        self.version = version;
        self
    }

    /// With something after its headers.
    pub fn body(mut self, body: &str) -> Self {
        body.clone_into(&mut self.body);
        self
    }

    /// As it is sent.
    pub fn bytes(&self) -> Vec<u8> {
        let mut text = format!("{} {} {}\r\n", self.method, self.target, self.version);
        for (name, value) in &self.headers {
            text += &format!("{name}: {value}\r\n");
        }
        (text + "\r\n" + &self.body).into_bytes()
    }
}

impl fmt::Display for Ask {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text: String = String::from_utf8_lossy(&self.bytes()).chars().take(200).collect();
        write!(formatter, "{text:?}")
    }
}

/// An answer.
#[derive(Clone)]
pub struct Answer {
    /// Such as 200.
    pub status: u16,
    /// The first line.
    pub line: String,
    /// In their order, with names in lower case.
    pub headers: Vec<(String, String)>,
    /// What follows them.
    pub body: Vec<u8>,
}

impl fmt::Debug for Answer {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let body = String::from_utf8_lossy(&self.body);
        write!(formatter, "{:?} {:?} {body:?}", self.line, self.headers)
    }
}

impl Answer {
    /// The value of a header.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(found, _)| found == name).map(|(_, value)| value.as_str())
    }

    /// The body of an answer that is a text, which must not be a refusal.
    pub fn text(&self) -> Result<&str> {
        ensure!(self.status == 200, "{self:?}");
        Ok(std::str::from_utf8(&self.body)?)
    }
}

/// A connection to the service.
pub struct Wire(BufReader<TcpStream>);

impl Wire {
    /// Connects from a place.
    pub fn open(place: &Place) -> Result<Self> {
        let connection = place.connect(SERVICE, HTTP, PATIENCE)?.connected()?;
        let stream = connection.into_stream();
        stream.set_read_timeout(Some(PATIENCE))?;
        Ok(Self(BufReader::new(stream)))
    }

    /// Sends bytes.
    pub fn say(&mut self, bytes: &[u8]) -> Result<()> {
        Ok(self.0.get_mut().write_all(bytes)?)
    }

    /// The next answer, to anything but HEAD.
    pub fn hear(&mut self) -> Result<Answer> {
        let mut answer = self.hear_head()?;
        let length = answer.header("content-length").context("an answer without a length")?.parse()?;
        answer.body = vec![0; length];
        self.0.read_exact(&mut answer.body).context("an answer that is cut")?;
        Ok(answer)
    }

    /// The next answer's head, which is all that there is to HEAD.
    pub fn hear_head(&mut self) -> Result<Answer> {
        let mut lines = Vec::new();
        loop {
            let mut line = String::new();
            self.0.read_line(&mut line).context("no answer")?;
            let line = line.strip_suffix("\r\n").with_context(|| format!("after {lines:?}, {line:?}"))?;
            if line.is_empty() {
                break;
            }
            lines.push(line.to_owned());
        }
        let (line, headers) = lines.split_first().context("an empty answer")?;
        let status = line.split(' ').nth(1).context("no status")?.parse()?;
        let header = |line: &String| {
            let (name, value) = line.split_once(": ")?;
            Some((name.to_lowercase(), value.to_owned()))
        };
        let headers = headers.iter().map(|line| header(line).with_context(|| format!("a header {line:?}")));
        Ok(Answer { status, line: line.clone(), headers: headers.collect::<Result<_>>()?, body: Vec::new() })
    }

    /// Asks, and hears the answer.
    pub fn ask(&mut self, ask: &Ask) -> Result<Answer> {
        self.say(&ask.bytes())?;
        if ask.method == "HEAD" { self.hear_head() } else { self.hear() }.with_context(|| ask.to_string())
    }

    /// Expects that nothing more comes, and that the other end closes the connection within this time.
    pub fn expect_end(&mut self, patience: Duration) -> Result<()> {
        self.0.get_ref().set_read_timeout(Some(patience))?;
        let mut rest = Vec::new();
        match self.0.read_to_end(&mut rest) {
            Ok(0) => Ok(()),
            // Who is sent what he does not read resets the connection when he closes it.
            Err(error) if error.kind() == ErrorKind::ConnectionReset && rest.is_empty() => Ok(()),
            Err(error) => Err(error).with_context(|| format!("no end after {patience:?}, but {rest:?}")),
            Ok(_) => anyhow::bail!("something more: {:?}", String::from_utf8_lossy(&rest)),
        }
    }

    /// The stream, for those who read nothing of what was buffered.
    pub fn stream(&self) -> &TcpStream {
        self.0.get_ref()
    }
}

/// Asks once, on a connection of its own.
pub fn once(place: &Place, request: &Ask) -> Result<Answer> {
    Wire::open(place)?.ask(request)
}

/// A token that is good for so many seconds.
pub fn token(place: &Place, seconds: u32) -> Result<String> {
    Ok(once(place, &put(&seconds.to_string()))?.text()?.to_owned())
}

/// The document that says why there is nothing else.
pub fn refusal(status: u16, word: &str) -> String {
    format!(
        r#"<?xml version="1.0" encoding="iso-8859-1"?>
<!DOCTYPE html PUBLIC "-//W3C//DTD XHTML 1.0 Transitional//EN"
	"http://www.w3.org/TR/xhtml1/DTD/xhtml1-transitional.dtd">
<html xmlns="http://www.w3.org/1999/xhtml" xml:lang="en" lang="en">
 <head>
  <title>{status} - {word}</title>
 </head>
 <body>
  <h1>{status} - {word}</h1>
 </body>
</html>
"#
    )
}
