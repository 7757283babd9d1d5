//! Answers as they should be, with all their headers.

use std::collections::BTreeSet;
use std::fmt;
use std::ops::RangeInclusive;

use anyhow::{Context, Result, ensure};
use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;

use super::wire::{Answer, TTL, refusal};

/// An answer, with all headers that it has.
#[derive(Clone, Debug)]
pub struct Expected {
    status: u16,
    /// None is an answer of HTTP's own, which has nothing to say and is the last one.
    media_type: Option<&'static str>,
    more: Option<(&'static str, &'static str)>,
    /// How many seconds a token is good for.
    ttl: Option<RangeInclusive<u32>>,
    body: Body,
}

#[derive(Clone)]
enum Body {
    Is(Vec<u8>),
    /// As after a request that is HEAD.
    IsNotSent(usize),
    IsToken,
}

impl fmt::Debug for Body {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Is(bytes) => write!(formatter, "{:?}", String::from_utf8_lossy(bytes)),
            Self::IsNotSent(length) => write!(formatter, "{length} bytes that are not sent"),
            Self::IsToken => write!(formatter, "a token"),
        }
    }
}

pub fn text(text: impl Into<Vec<u8>>) -> Expected {
    Expected {
        status: 200,
        media_type: Some("text/plain"),
        more: None,
        ttl: None,
        body: Body::Is(text.into()),
    }
}

pub fn bytes(bytes: &[u8]) -> Expected {
    Expected { media_type: Some("application/octet-stream"), ..text(bytes) }
}

pub fn refused(status: u16) -> Expected {
    let word = match status {
        400 => "Bad Request",
        401 => "Unauthorized",
        403 => "Forbidden",
        404 => "Not Found",
        405 => "Method Not Allowed",
        _ => "?",
    };
    Expected { status, media_type: Some("text/html"), ..text(refusal(status, word)) }
}

/// The method is not for this path.
pub fn not_so(allow: &'static str) -> Expected {
    refused(405).with("allow", allow)
}

/// A token that is good for so long.
pub fn is_token(seconds: u32) -> Expected {
    Expected { ttl: Some(seconds..=seconds), body: Body::IsToken, ..text("") }
}

/// What is not understood at all.
pub fn last_word(status: u16) -> Expected {
    Expected { status, media_type: None, ..text("") }
}

impl Expected {
    /// To a request with a token that was good for so long a moment ago.
    pub fn by_token(self, seconds: u32) -> Self {
        Self { ttl: Some(seconds.saturating_sub(60)..=seconds), ..self }
    }

    /// With one more header.
    pub fn with(self, name: &'static str, value: &'static str) -> Self {
        Self { more: Some((name, value)), ..self }
    }

    /// To the same request with HEAD.
    pub fn head(self) -> Self {
        let length = if let Body::Is(body) = &self.body { body.len() } else { 0 };
        Self { body: Body::IsNotSent(length), ..self }
    }

    pub fn check(&self, answer: &Answer) -> Result<()> {
        ensure!(answer.status == self.status);
        ensure!(answer.line.starts_with("HTTP/1."), "{}", answer.line);
        let length = match &self.body {
            Body::Is(body) => {
                ensure!(*body == answer.body, "another body");
                body.len()
            }
            Body::IsNotSent(length) => *length,
            Body::IsToken => {
                let token = BASE64_STANDARD.decode(&answer.body).context("no token")?;
                ensure!(answer.body.len() == 56 && token.len() == 42, "another token");
                56
            }
        };
        let mut headers: BTreeSet<(&str, String)> =
            answer.headers.iter().map(|(name, value)| (name.as_str(), value.clone())).collect();
        ensure!(headers.len() == answer.headers.len(), "a header twice");
        let mut take = |name: &'static str, value: String| headers.remove(&(name, value));
        ensure!(take("content-length", length.to_string()), "another length");
        match self.media_type {
            Some(media_type) => {
                ensure!(take("content-type", media_type.to_owned()), "another type");
                ensure!(take("server", "EC2ws".to_owned()) && take("accept-ranges", "none".to_owned()));
            }
            None => ensure!(take("connection", "close".to_owned()), "not the last one"),
        }
        if let Some((name, value)) = self.more {
            ensure!(take(name, value.to_owned()), "{name} is not {value}");
        }
        let ttl = TTL.to_lowercase();
        match (&self.ttl, answer.header(&ttl)) {
            (Some(range), Some(found)) => ensure!(range.contains(&found.parse()?), "{found} seconds"),
            (None, None) => {}
            (_, found) => anyhow::bail!("{TTL} is {found:?}"),
        }
        headers.retain(|(name, _)| *name != "date" && *name != ttl);
        ensure!(answer.header("date").is_some_and(|date| date.ends_with(" GMT")), "no date");
        ensure!(headers.is_empty(), "further headers: {headers:?}");
        Ok(())
    }
}
