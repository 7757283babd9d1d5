//! HTTP's own rules: requests on one connection, and those that are not as a client would send them.

use std::time::Duration;

use anyhow::{Context, Result, ensure};

use super::PATIENCE;
use super::conformance::VERSIONS;
use super::expected::{bytes, is_token, last_word, not_so, refused, text};
use super::inn::{Inn, USER_DATA};
use super::wire::{Ask, TOKEN_PATH, TTL, Wire, ask, get, put};

#[test]
fn connections_are_as_http_has_them() -> Result<()> {
    let inn = Inn::open()?;
    let leaf = || get("/latest/meta-data/instance-id");
    let is = || text(inn.id.as_str());
    let open = || Wire::open(&inn.guest);

    // One after the other, whatever is answered.
    let mut wire = open()?;
    for _ in 0..3 {
        is().check(&wire.ask(&leaf())?)?;
        refused(404).check(&wire.ask(&get("/latest/nothing"))?)?;
        is().head().check(&wire.ask(&ask("HEAD", "/latest/meta-data/instance-id"))?)?;
        not_so("PUT").check(&wire.ask(&get(TOKEN_PATH))?)?;
        is_token(60).check(&wire.ask(&put("60"))?)?;
        bytes(USER_DATA).check(&wire.ask(&get("/latest/user-data"))?)?;
    }

    // At once, and in their order; also if they come in pieces.
    let all = [leaf(), get("/latest/nothing"), put("60"), get("/latest/user-data")];
    let sent: Vec<u8> = all.iter().flat_map(Ask::bytes).collect();
    for size in [sent.len(), 100, 7] {
        for piece in sent.chunks(size) {
            wire.say(piece)?;
        }
        for expected in [is(), refused(404), is_token(60), bytes(USER_DATA)] {
            expected.check(&wire.hear()?).with_context(|| format!("in pieces of {size}"))?;
        }
    }
    // A body belongs to its request.
    let inside = leaf().bytes();
    let smuggled = put("60").with("Content-Length", &inside.len().to_string());
    wire.say(&[smuggled.bytes(), inside, get("/").bytes()].concat())?;
    is_token(60).check(&wire.hear().context("before a body")?)?;
    text(VERSIONS.join("\n")).check(&wire.hear().context("after a body")?)?;

    // The last one says so.
    let closing = is().with("connection", "close");
    closing.check(&wire.ask(&leaf().with("Connection", "close"))?)?;
    wire.expect_end(PATIENCE)?;
    for ask in [leaf().version("HTTP/1.0"), leaf().bare().version("HTTP/1.0")] {
        let mut wire = open()?;
        let answer = wire.ask(&ask)?;
        ensure!(answer.line == "HTTP/1.0 200 OK", "{answer:?}");
        is().check(&answer)?;
        wire.expect_end(PATIENCE)?;
    }
    let mut wire = open()?;
    for _ in 0..2 {
        let ask = leaf().version("HTTP/1.0").with("Connection", "keep-alive");
        is().with("connection", "keep-alive").check(&wire.ask(&ask)?)?;
    }

    // A body may come later, and be waited for.
    let mut wire = open()?;
    for headers in ["", "Expect: 100-continue\r\n"] {
        wire.say(
            format!("PUT {TOKEN_PATH} HTTP/1.1\r\n{TTL}: 60\r\nContent-Length: 5\r\n{headers}\r\n")
                .as_bytes(),
        )?;
        if !headers.is_empty() {
            ensure!(wire.hear_head()?.line == "HTTP/1.1 100 Continue");
        }
        std::thread::sleep(Duration::from_millis(50));
        wire.say(b"hello")?;
        is_token(60).check(&wire.hear().context("after a body that comes late")?)?;
    }
    // But not if it is too long.
    let ask = put("60").with("Content-Length", "20000").body(&"x".repeat(20_000));
    is_token(60).with("connection", "close").check(&wire.ask(&ask)?)?;
    wire.expect_end(PATIENCE)?;

    // What is understood without being right.
    for request in [
        "GET /latest/meta-data/instance-id HTTP/1.1\n\n",
        "GET /latest/meta-data/instance-id HTTP/1.1\nHost: x\n\n",
        "\r\n\r\nGET /latest/meta-data/instance-id HTTP/1.1\r\n\r\n",
    ] {
        let mut wire = open()?;
        wire.say(request.as_bytes())?;
        is().check(&wire.hear()?).with_context(|| format!("{request:?}"))?;
    }
    // What is not.
    for request in [
        "\0\0\0\0",
        "hello\r\n\r\n",
        "GET /latest/\r\n\r\n",
        "GET /latest/ HTTP/1.1\r\nno colon\r\n\r\n",
        "GET /latest/ HTTP/1.1\r\nA: b\r\n folded\r\n\r\n",
        "GET /latest/ HTTP/1.1\r\nA : b\r\n\r\n",
        "GET  /latest/ HTTP/1.1\r\n\r\n",
        "GET\t/latest/ HTTP/1.1\r\n\r\n",
        "PUT /latest/api/token HTTP/1.1\r\nContent-Length: 1\r\nTransfer-Encoding: x\r\n\r\nx",
        "\u{16}\u{3}\u{1}\u{2}\0\u{1}\0\u{1}\u{fc}\u{3}\u{3}",
    ] {
        let mut wire = open()?;
        wire.say(request.as_bytes())?;
        let answer = wire.hear().with_context(|| format!("{request:?}"))?;
        last_word(400).check(&answer).with_context(|| format!("{request:?}: {answer:?}"))?;
        wire.expect_end(PATIENCE)?;
    }
    // HTTP/2 has other refusals.
    let mut wire = open()?;
    wire.say(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n")?;
    wire.expect_end(PATIENCE)?;
    // Half a request, and nothing more of it.
    for half in ["", "GET", "GET /latest/ HTTP/1.1\r\n", "PUT /latest/api/token HTTP/1.1\r\nHost: x\r\n"] {
        let mut wire = open()?;
        wire.say(half.as_bytes())?;
        wire.stream().shutdown(std::net::Shutdown::Write)?;
        wire.expect_end(PATIENCE).with_context(|| format!("{half:?}"))?;
    }
    // Whoever closes his half after a whole request is answered.
    let mut wire = open()?;
    wire.say(&leaf().bytes())?;
    wire.stream().shutdown(std::net::Shutdown::Write)?;
    let answer = wire.hear().context("after the end of all requests")?;
    ensure!(answer.text()? == inn.id, "{answer:?}");
    wire.expect_end(PATIENCE)
}
