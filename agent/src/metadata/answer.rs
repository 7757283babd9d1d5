//! From a request to its answer: who may ask, and what.

use std::borrow::Cow;

use percent_encoding::percent_decode_str;

use super::token::{self, Tokens};
use super::tree::{self, Node, Signed, View};

/// The path of tokens. A request is for one if it has this method and this path in the last version of the tree.
const TOKEN: [&str; 3] = [tree::LATEST, "api", "token"];

/// The most parts that a path has.
const DEEPEST: usize = 16;

/// What a request says.
#[derive(Clone, Copy, Debug, Default)]
pub struct Request<'r> {
    /// Such as `GET`.
    pub method: &'r str,
    /// As it is sent, encoded, without a query.
    pub path: &'r str,
    /// `X-aws-ec2-metadata-token`.
    pub token: Option<&'r [u8]>,
    /// `X-aws-ec2-metadata-token-ttl-seconds`.
    pub ttl: Option<&'r [u8]>,
    /// Whether it has `X-Forwarded-For`.
    pub is_forwarded: bool,
}

/// What is answered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    /// What is said, or why nothing is.
    pub content: Result<Content, Refusal>,
    /// How long the token is good for that was made or used, in seconds.
    pub token_ttl: Option<u32>,
    /// How many hops the answer may go; none is as many as usual.
    pub hop_limit: Option<u8>,
}

/// What is said.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Content {
    /// A text.
    Text(String),
    /// Whatever it is, byte by byte.
    Bytes(Vec<u8>),
    /// A signature of this document.
    Signature(Signed, String),
}

/// Why nothing is said.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// A token was asked for and it was not said for how long, or not so that it makes sense.
    BadRequest,
    /// The token is none of this instance's, has expired, or is missing.
    Unauthorized,
    /// The service is off, or it is not to be asked so.
    Forbidden,
    /// Nothing is there.
    NotFound,
    /// Not so.
    MethodNotAllowed {
        /// How, then.
        allowed: &'static str,
    },
    /// It could not be done.
    Unavailable,
}

impl Refusal {
    /// The status, and HTTP's word for it.
    pub fn status(self) -> (u16, &'static str) {
        match self {
            Self::BadRequest => (400, "Bad Request"),
            Self::Unauthorized => (401, "Unauthorized"),
            Self::Forbidden => (403, "Forbidden"),
            Self::NotFound => (404, "Not Found"),
            Self::MethodNotAllowed { .. } => (405, "Method Not Allowed"),
            Self::Unavailable => (503, "Service Unavailable"),
        }
    }

    /// The document that says so, as EC2 sends it.
    pub fn document(self) -> String {
        let (status, word) = self.status();
        format!(
            "<?xml version=\"1.0\" encoding=\"iso-8859-1\"?>\n\
             <!DOCTYPE html PUBLIC \"-//W3C//DTD XHTML 1.0 Transitional//EN\"\n\
             \t\"http://www.w3.org/TR/xhtml1/DTD/xhtml1-transitional.dtd\">\n\
             <html xmlns=\"http://www.w3.org/1999/xhtml\" xml:lang=\"en\" lang=\"en\">\n \
             <head>\n  <title>{status} - {word}</title>\n </head>\n \
             <body>\n  <h1>{status} - {word}</h1>\n </body>\n</html>\n"
        )
    }
}

impl From<Refusal> for Answer {
    fn from(refusal: Refusal) -> Self {
        Self { content: Err(refusal), token_ttl: None, hop_limit: None }
    }
}

/// Answers an instance.
pub fn answer(view: View<'_>, tokens: &Tokens, request: Request<'_>) -> Answer {
    try_answer(view, tokens, request).unwrap_or_else(Answer::from)
}

fn try_answer(view: View<'_>, tokens: &Tokens, request: Request<'_>) -> Result<Answer, Refusal> {
    let options = &view.instance.metadata_options;
    if options.http_endpoint != "enabled" {
        return Err(Refusal::Forbidden);
    }
    let path = parts(request.path);
    let is_for_token = path.as_ref().is_some_and(|path| path.as_slice() == TOKEN);
    match request.method {
        "PUT" if is_for_token => return issue(view, tokens, request),
        // A token is for all versions of the tree, and is asked for in the last one.
        "PUT"
            if path.as_ref().is_some_and(
                |path| matches!(path.as_slice(), [_, api, token] if [api, token] == ["api", "token"]),
            ) =>
        {
            return Err(Refusal::Forbidden);
        }
        _ if is_for_token => return Err(Refusal::MethodNotAllowed { allowed: "PUT" }),
        "GET" | "HEAD" => {}
        _ => return Err(Refusal::MethodNotAllowed { allowed: "GET, HEAD" }),
    }
    let token_ttl = match request.token {
        Some(token) => {
            let left = tokens.verify(&view.instance.id, token, view.now);
            Some(left.ok_or(Refusal::Unauthorized)?)
        }
        None if options.http_tokens == "required" => return Err(Refusal::Unauthorized),
        None => None,
    };
    let content = match tree::lookup(view, &path.ok_or(Refusal::NotFound)?).ok_or(Refusal::NotFound)? {
        Node::Text(text) => Content::Text(text),
        Node::UserData(bytes) => Content::Bytes(bytes),
        Node::Signature(kind) => Content::Signature(kind, tree::document(view)),
        Node::Category(category) => Content::Text(category.list()),
    };
    Ok(Answer { content: Ok(content), token_ttl, hop_limit: None })
}

fn issue(view: View<'_>, tokens: &Tokens, request: Request<'_>) -> Result<Answer, Refusal> {
    // It would be a proxy's, and the token that of anybody who can reach it.
    if request.is_forwarded {
        return Err(Refusal::Forbidden);
    }
    let ttl = request.ttl.and_then(|ttl| std::str::from_utf8(ttl).ok()).and_then(seconds);
    let ttl = ttl.ok_or(Refusal::BadRequest)?;
    let token = tokens.issue(&view.instance.id, ttl, view.now);
    let hop_limit = u8::try_from(view.instance.metadata_options.http_put_response_hop_limit).unwrap_or(1);
    Ok(Answer { content: Ok(Content::Text(token)), token_ttl: Some(ttl), hop_limit: Some(hop_limit) })
}

/// For how long a token is asked for.
fn seconds(text: &str) -> Option<u32> {
    // Signs are no digits.
    let is_number = text.bytes().all(|byte| byte.is_ascii_digit());
    text.parse().ok().filter(|seconds| is_number && (1..=token::LONGEST).contains(seconds))
}

/// The parts of a path, decoded. Slashes at its end, and more than one at once, mean nothing.
fn parts(path: &str) -> Option<Vec<Cow<'_, str>>> {
    let parts = path.split('/').filter(|part| !part.is_empty());
    let parts: Vec<_> = parts
        .take(DEEPEST + 1)
        .map(|part| percent_decode_str(part).decode_utf8().ok())
        .collect::<Option<_>>()?;
    Some(parts).filter(|parts| parts.len() <= DEEPEST)
}

#[cfg(test)]
mod tests;
