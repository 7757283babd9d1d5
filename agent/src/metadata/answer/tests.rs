use jiff::{SignedDuration, Timestamp};
use proptest::prelude::*;

use super::*;
use crate::actions::testing::Client;
use crate::ids::InstanceId;
use crate::records::{Instance, InstanceState, MetadataOptions, Secret};

fn now() -> Timestamp {
    "2026-11-29T10:00:00Z".parse().unwrap()
}

fn tokens() -> Tokens {
    Tokens::new(&Secret { name: Secret::THIS.into(), secret: [9; 32] })
}

/// An instance with these options.
struct Asking {
    client: Client,
    id: InstanceId,
}

impl Asking {
    fn new(change: impl FnOnce(&mut MetadataOptions)) -> Self {
        let client = Client::new();
        let id = client.instance(InstanceState::Running);
        let mut instance = Instance::clone(client.agent.state.read().get::<Instance>(&id).unwrap());
        change(&mut instance.metadata_options);
        client.put(instance);
        Self { client, id }
    }

    fn ask_at(&self, now: Timestamp, request: Request<'_>) -> Answer {
        let world = self.client.agent.state.read();
        let instance = world.get::<Instance>(&self.id).unwrap();
        answer(View { world: &world, instance, region: "us-east-1", now }, &tokens(), request)
    }

    fn ask(&self, request: Request<'_>) -> Answer {
        self.ask_at(now(), request)
    }

    fn token(&self) -> String {
        tokens().issue(&self.id, 60, now())
    }
}

const ID: &str = "/latest/meta-data/instance-id";

fn get(path: &str) -> Request<'_> {
    Request { method: "GET", path, ..Request::default() }
}

fn put(ttl: Option<&str>) -> Request<'_> {
    Request { method: "PUT", path: "/latest/api/token", ttl: ttl.map(str::as_bytes), ..Request::default() }
}

fn refused(answer: &Answer) -> Option<u16> {
    answer.content.as_ref().err().map(|refusal| refusal.status().0)
}

#[test]
fn a_token_is_had_for_one_to_21600_seconds() {
    let asking = Asking::new(|options| options.http_put_response_hop_limit = 3);
    for (ttl, expected) in [
        (Some("1"), None),
        (Some("21600"), None),
        (Some("060"), None),
        (None, Some(400)),
        (Some(""), Some(400)),
        (Some("0"), Some(400)),
        (Some("21601"), Some(400)),
        (Some("-1"), Some(400)),
        (Some("+1"), Some(400)),
        (Some("1.5"), Some(400)),
        (Some(" 1"), Some(400)),
        (Some("99999999999999999999"), Some(400)),
        (Some("ten"), Some(400)),
    ] {
        let answer = asking.ask(put(ttl));
        assert_eq!(refused(&answer), expected, "{ttl:?}");
        assert_eq!(answer.hop_limit, expected.is_none().then_some(3), "{ttl:?}");
        if let Ok(Content::Text(token)) = &answer.content {
            let left = tokens().verify(&asking.id, token.as_bytes(), now());
            assert!(left.is_some() && left == answer.token_ttl);
        }
    }
    let forwarded = Request { is_forwarded: true, ..put(Some("60")) };
    assert_eq!(refused(&asking.ask(forwarded)), Some(403));
    for (path, expected) in [
        ("/2021-03-23/api/token", 403),
        ("/1.0/api/token/", 403),
        ("/latest/api", 405),
        ("/latest/meta-data", 405),
        ("/", 405),
    ] {
        assert_eq!(refused(&asking.ask(Request { path, ..put(Some("60")) })), Some(expected), "{path}");
    }
    for path in ["/latest/api/token/", "//latest//api//token//", "/latest/%61pi/token"] {
        assert_eq!(refused(&asking.ask(Request { path, ..put(Some("60")) })), None, "{path}");
    }
}

#[test]
fn a_token_that_is_not_good_is_refused_even_where_none_is_needed() {
    let foreign = Asking::new(|_| {}).token();
    for needed in ["optional", "required"] {
        let asking = Asking::new(|options| options.http_tokens = needed.into());
        let own = asking.token();
        let with = |token: &str, after| {
            let request = Request { token: Some(token.as_bytes()), ..get(ID) };
            asking.ask_at(now() + SignedDuration::from_secs(after), request)
        };
        let good = with(&own, 20);
        assert_eq!(good.content, Ok(Content::Text(asking.id.to_string())));
        assert_eq!((good.token_ttl, good.hop_limit), (Some(40), None));
        for (token, after) in [(own.as_str(), 60), (&foreign, 0), ("", 0), ("x", 0), (&own[1..], 0)] {
            assert_eq!(refused(&with(token, after)), Some(401), "{needed} {token}");
        }
        let without = asking.ask(get(ID));
        assert_eq!(refused(&without), (needed == "required").then_some(401));
        // Before anything is said of what is there.
        let nothing = asking.ask(get("/latest/nothing"));
        assert_eq!(refused(&nothing), Some(if needed == "required" { 401 } else { 404 }));
    }
}

#[test]
fn a_service_that_is_off_says_nothing() {
    let asking = Asking::new(|options| options.http_endpoint = "disabled".into());
    let token = asking.token();
    for request in [
        get("/"),
        get(ID),
        get("/latest/nothing"),
        put(Some("60")),
        put(None),
        Request { method: "DELETE", ..get(ID) },
        Request { token: Some(token.as_bytes()), ..get(ID) },
    ] {
        assert_eq!(refused(&asking.ask(request)), Some(403), "{request:?}");
    }
}

#[test]
fn it_is_only_read() {
    let asking = Asking::new(|_| {});
    for method in ["POST", "DELETE", "OPTIONS", "PATCH", "TRACE", "CONNECT", "get", "BREW"] {
        for (path, allowed) in
            [(ID, "GET, HEAD"), ("/latest/nothing", "GET, HEAD"), ("/latest/api/token", "PUT")]
        {
            let answer = asking.ask(Request { method, ..get(path) });
            assert_eq!(answer.content, Err(Refusal::MethodNotAllowed { allowed }), "{method} {path}");
        }
    }
    let token = asking.ask(get("/latest/api/token"));
    assert_eq!(token.content, Err(Refusal::MethodNotAllowed { allowed: "PUT" }));
    // Only tokens are not for others.
    assert_eq!(refused(&asking.ask(Request { is_forwarded: true, ..get(ID) })), None);
}

#[test]
fn slashes_and_percent_signs_mean_what_they_mean() {
    let asking = Asking::new(|_| {});
    let id = asking.id.to_string();
    for path in [
        "/latest/meta-data/instance-id",
        "/latest/meta-data/instance-id/",
        "//latest///meta-data//instance-id//",
        "/latest//meta-data/instance-id",
        "/latest/meta%2ddata/instance%2Did",
        "/2009-04-04/meta-data/instance-id",
    ] {
        assert_eq!(asking.ask(get(path)).content, Ok(Content::Text(id.clone())), "{path}");
    }
    for path in [
        "/latest/meta-data/instance-id/x",
        "/latest%2fmeta-data/instance-id",
        "/latest/meta-data/../meta-data/instance-id",
        "/latest/meta-data/%ff",
        "/latest/meta-data/instance-id%00",
        &"/a".repeat(10_000),
    ] {
        assert_eq!(refused(&asking.ask(get(path))), Some(404), "{path}");
    }
    assert_eq!(asking.ask(get("")).content, asking.ask(get("/")).content);
    assert_eq!(asking.ask(get("/latest")).content, asking.ask(get("/latest/")).content);
}

#[test]
fn a_refusal_is_a_document_that_says_so() {
    let document = Refusal::NotFound.document();
    assert!(document.starts_with("<?xml version=\"1.0\" encoding=\"iso-8859-1\"?>\n<!DOCTYPE html"));
    assert!(document.contains("  <title>404 - Not Found</title>\n"));
    assert!(document.contains("  <h1>404 - Not Found</h1>\n"));
}

proptest! {
    #[test]
    fn any_request_is_answered(
        method in "GET|PUT|HEAD|[A-Z]{1,8}",
        path in "(/latest/|/1.0/|/)?(meta-data|api/token|%[0-9a-f]{2}|.{0,20})(/.{0,20})?",
        token in prop::option::of(prop::collection::vec(any::<u8>(), 0..70)),
        ttl in prop::option::of(prop::collection::vec(any::<u8>(), 0..10)),
        is_forwarded: bool,
    ) {
        thread_local!(static ASKING: Asking = Asking::new(|options| options.http_tokens = "required".into()));
        let request = Request {
            method: &method, path: &path, token: token.as_deref(), ttl: ttl.as_deref(), is_forwarded,
        };
        let answer = ASKING.with(|asking| asking.ask(request));
        // Nobody has a token, so that nothing is to be had but one.
        let is_token = matches!(&answer.content, Ok(Content::Text(token)) if token.len() == 56);
        prop_assert!(answer.content.is_err() || (is_token && method == "PUT"), "{answer:?}");
    }
}
