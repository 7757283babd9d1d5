//! How a record lies in the store: JSON, with the version of its form.

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::records::{AccessKey, Identity, Record, Secret};

/// By kind, what nobody needs to see.
const SECRETS: [(&str, &[&str]); 3] =
    [(AccessKey::KIND, &["secret"]), (Identity::KIND, &["rsa_key", "dsa_key"]), (Secret::KIND, &["secret"])];

#[derive(Serialize, Deserialize)]
struct Envelope<D> {
    version: u32,
    document: D,
}

/// What is stored for a record.
pub fn encode<R: Record>(record: &R) -> Result<Vec<u8>, serde_json::Error> {
    serde_json::to_vec(&Envelope { version: R::VERSION, document: record })
}

/// Reads a stored record, of this version or an older one.
pub fn decode<R: Record>(bytes: &[u8]) -> Result<R, String> {
    let envelope: Envelope<Value> = serde_json::from_slice(bytes).map_err(|error| error.to_string())?;
    let mut document = envelope.document;
    if envelope.version > R::VERSION {
        return Err(format!(
            "it has version {} and this agent knows {} up to {}: use the newer agent that wrote it",
            envelope.version,
            R::KIND,
            R::VERSION
        ));
    }
    for version in envelope.version..R::VERSION {
        document = R::migrate(version, document)?;
    }
    serde_json::from_value(document).map_err(|error| error.to_string())
}

/// A stored record for people to look at.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Document {
    /// `kind/name`.
    pub key: String,
    /// The version of its form.
    pub version: u32,
    /// What it says.
    pub document: Value,
}

impl Document {
    /// A record as it would be stored.
    pub fn new<R: Record>(record: &R) -> Result<Self, serde_json::Error> {
        let key = format!("{}/{}", R::KIND, record.key());
        Ok(Self { key, version: R::VERSION, document: serde_json::to_value(record)? })
    }

    /// What is stored at a key. What has no version, such as `meta/format`, has version 0.
    pub fn read(key: String, bytes: &[u8]) -> Result<Self, serde_json::Error> {
        let value: Value = serde_json::from_slice(bytes)?;
        Ok(match Envelope::<Value>::deserialize(&value) {
            Ok(Envelope { version, document }) => Self { key, version, document },
            Err(_) => Self { key, version: 0, document: value },
        })
    }

    /// Whether it is of this kind, or has this key, as in `instance` and `instance/i-0123456789abcdef0`.
    pub fn is_one_of(&self, wanted: &str) -> bool {
        self.key == wanted || self.key.split_once('/').is_some_and(|(kind, _)| kind == wanted)
    }

    /// Takes out what nobody needs to see.
    pub fn without_secrets(mut self) -> Self {
        let secrets = SECRETS.into_iter().filter(|(kind, _)| self.is_one_of(kind));
        for name in secrets.flat_map(|(_, names)| names).collect::<Vec<_>>() {
            if let Some(secret) = self.document.get_mut(name) {
                *secret = "(masked)".into();
            }
        }
        self
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::sync::Arc;

    use innkeeper_identity::Keys;
    use jiff::Timestamp;

    use super::*;
    use crate::records::Tags;
    use crate::state::State;
    use crate::store::memory::Memory;
    use crate::store::{Store, Write};

    /// At first it had a name; then two; then a list of them.
    #[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
    struct Guest {
        names: Vec<String>,
    }

    impl Record for Guest {
        const KIND: &'static str = "guest";
        const VERSION: u32 = 3;

        fn key(&self) -> &str {
            &self.names[0]
        }

        fn migrate(version: u32, document: Value) -> Result<Value, String> {
            match version {
                1 => Ok(serde_json::json!({ "first": document["name"], "last": "Doe" })),
                2 => Ok(serde_json::json!({ "names": [document["first"], document["last"]] })),
                other => Err(format!("version {other} never was")),
            }
        }
    }

    #[test]
    fn documents_of_every_version_are_read() {
        for text in [
            r#"{"version":1,"document":{"name":"Jo"}}"#,
            r#"{"version":2,"document":{"first":"Jo","last":"Doe"}}"#,
            r#"{"version":3,"document":{"names":["Jo","Doe"]}}"#,
        ] {
            let guest: Guest = decode(text.as_bytes()).unwrap();
            assert_eq!(guest.names, ["Jo", "Doe"]);
            assert_eq!(decode::<Guest>(&encode(&guest).unwrap()), Ok(guest));
        }
    }

    #[test]
    fn documents_that_cannot_be_understood_are_refused() {
        for (text, error) in [
            (
                r#"{"version":4,"document":{}}"#,
                "it has version 4 and this agent knows guest up to 3: use the newer",
            ),
            (r#"{"version":0,"document":{}}"#, "version 0 never was"),
            (r#"{"version":3,"document":{}}"#, "missing field `names`"),
            (r#"{"document":{}}"#, "missing field `version`"),
            ("", "EOF"),
        ] {
            let found = decode::<Guest>(text.as_bytes()).unwrap_err();
            assert!(found.starts_with(error), "{found}");
        }
    }

    #[test]
    fn a_state_with_a_bad_document_is_not_opened() {
        for (text, error) in [
            (r#"{"version":9,"document":{}}"#, "it has version 9"),
            (r#"{"version":1,"document":{"resource":"b","tags":{}}}"#, "the document says that it is tags/b"),
        ] {
            let store: Arc<dyn Store> = Arc::new(Memory::default());
            drop(State::open(Arc::clone(&store)).unwrap());
            store.commit(&[Write { key: "tags/a".into(), value: Some(text.into()) }]).unwrap();
            let found = State::open(store).err().unwrap();
            assert_eq!(found.to_string(), "the state store cannot read tags/a");
            assert!(found.cause.to_string().starts_with(error), "{}", found.cause);
        }
    }

    #[test]
    fn secrets_are_not_shown() {
        let key = AccessKey {
            id: "AKIA".into(),
            secret: "swordfish".into(),
            account: "000000000000".into(),
            created: Timestamp::UNIX_EPOCH,
        };
        let stored = Document::read("access-key/AKIA".into(), &encode(&key).unwrap()).unwrap();
        assert_eq!(stored, Document::new(&key).unwrap());
        assert_eq!(stored.document["secret"], "swordfish");
        assert_eq!(stored.without_secrets().document["secret"], "(masked)");
        let own = Document::new(&Secret::random()).unwrap();
        assert_eq!(own.without_secrets().document["secret"], "(masked)");
        let text = |text: &str| text.to_owned();
        let keys = Keys {
            rsa_key: text("swordfish"),
            rsa_certificate: text("an RSA certificate"),
            dsa_key: text("swordfish"),
            dsa_certificate: text("a DSA certificate"),
        };
        let identity = Document::new(&Identity { name: Identity::THIS.into(), keys }).unwrap();
        let shown = serde_json::to_string(&identity.without_secrets()).unwrap();
        assert!(!shown.contains("swordfish") && shown.contains("an RSA certificate"), "{shown}");
    }

    #[test]
    fn a_document_is_found_by_its_kind_and_by_its_key() {
        let tags = Document::new(&Tags { resource: "i-1".into(), tags: BTreeMap::new() }).unwrap();
        assert!(tags.is_one_of("tags") && tags.is_one_of("tags/i-1"));
        assert!(!tags.is_one_of("tag") && !tags.is_one_of("tags/i") && !tags.is_one_of("i-1"));
        let meta = Document::read("meta/format".into(), br#"{"format":1}"#).unwrap();
        assert_eq!((meta.version, meta.document["format"].as_u64()), (0, Some(1)));
    }
}
