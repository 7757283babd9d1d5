//! Lists in requests to IAM, which are written `Tags.member.1.Key` and not `Tag.1.Key` as with EC2.

use std::fmt;
use std::marker::PhantomData;

use serde::de::{Error, MapAccess, Visitor};
use serde::{Deserialize, Deserializer};

/// A list.
#[derive(Debug)]
pub struct Members<T>(pub Vec<T>);

impl<T> Default for Members<T> {
    fn default() -> Self {
        Self(Vec::new())
    }
}

impl<'de, T: Deserialize<'de>> Deserialize<'de> for Members<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct List<T>(PhantomData<T>);
        impl<'de, T: Deserialize<'de>> Visitor<'de> for List<T> {
            type Value = Vec<T>;

            fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
                formatter.write_str("a list: its first member is member.1")
            }

            /// SDKs write an empty list so.
            fn visit_str<E: Error>(self, text: &str) -> Result<Vec<T>, E> {
                if text.is_empty() {
                    Ok(Vec::new())
                } else {
                    Err(E::custom("Expecting a list: use member.1."))
                }
            }

            fn visit_map<A: MapAccess<'de>>(self, mut fields: A) -> Result<Vec<T>, A::Error> {
                let mut members = Vec::new();
                while let Some(name) = fields.next_key::<String>()? {
                    if name != "member" {
                        return Err(A::Error::unknown_field(&name, &["member"]));
                    }
                    members = fields.next_value()?;
                }
                Ok(members)
            }
        }
        deserializer.deserialize_any(List(PhantomData)).map(Self)
    }
}
