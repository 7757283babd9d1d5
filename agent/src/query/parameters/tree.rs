//! Sorted parameters as a tree that serde reads an action's type from.

use serde::Deserializer;
use serde::de::{DeserializeSeed, IntoDeserializer, MapAccess, SeqAccess, Visitor};

use super::{Entry, boolean, is_number, unknown};
use crate::query::ApiError;

/// Everything below one name: the parameters that begin with its `length` bytes. At the root there may be none at all;
/// anywhere else there is at least one.
#[derive(Clone, Copy)]
pub(super) struct Node<'a> {
    entries: &'a [Entry<'a>],
    length: usize,
}

impl<'a> Node<'a> {
    /// All of them, which are in the order of the tree, and no name of which is the beginning of another.
    pub(super) fn root(entries: &'a [Entry<'a>]) -> Self {
        Self { entries, length: 0 }
    }

    /// Its full name.
    fn name(&self) -> &'a str {
        self.entries.first().and_then(|(name, _)| name.get(..self.length)).unwrap_or_default()
    }

    /// Its value, if it has no children.
    fn value(&self) -> Option<&'a str> {
        match self.entries {
            [(name, value)] if name.len() == self.length && self.length > 0 => Some(value),
            _ => None,
        }
    }

    /// Its value, when it has to have one.
    fn text(&self) -> Result<&'a str, Failure> {
        self.value().ok_or_else(|| {
            let name = self.entries.first().map(|(name, _)| *name).unwrap_or_default();
            Failure::Known(unknown(name))
        })
    }

    /// The first child's last name part and the child, and what is left.
    fn split(&self) -> Option<(&'a str, Node<'a>, Node<'a>)> {
        let start = if self.length == 0 { 0 } else { self.length + 1 };
        let part = |name: &'a str| name.get(start..).and_then(|rest| rest.split('.').next());
        let first = part(self.entries.first()?.0)?;
        let count = self.entries.iter().take_while(|(name, _)| part(name) == Some(first)).count();
        let (child, rest) = self.entries.split_at_checked(count)?;
        let child = Node { entries: child, length: start + first.len() };
        Some((first, child, Node { entries: rest, length: self.length }))
    }

    /// Says where a failure was that does not say so itself.
    fn locate(&self, failure: Failure) -> Failure {
        let name = self.name();
        Failure::Known(match (failure, self.value()) {
            (Failure::Other(message), Some(value)) => {
                malformed_id(value, name, &message).unwrap_or_else(|| ApiError::invalid(value, name, message))
            }
            (failure, _) => failure.at(name),
        })
    }

    /// The failure of a value that is not of the wanted kind.
    fn invalid(&self, expecting: impl std::fmt::Display) -> Failure {
        Failure::Known(ApiError::invalid(self.value().unwrap_or_default(), self.name(), expecting))
    }
}

/// Why a type cannot be read. Serde does not say at which name: the list or struct around adds it.
#[derive(Debug)]
pub(super) enum Failure {
    Known(ApiError),
    Missing(&'static str),
    Unknown(String),
    Other(String),
}

impl std::fmt::Display for Failure {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Known(error) => error.fmt(formatter),
            Self::Missing(field) => write!(formatter, "{field} is missing"),
            Self::Unknown(field) => write!(formatter, "{field} is unknown"),
            Self::Other(message) => formatter.write_str(message),
        }
    }
}

impl std::error::Error for Failure {}

impl serde::de::Error for Failure {
    fn custom<T: std::fmt::Display>(message: T) -> Self {
        Self::Other(message.to_string())
    }

    fn missing_field(field: &'static str) -> Self {
        Self::Missing(field)
    }

    fn unknown_field(field: &str, _: &'static [&'static str]) -> Self {
        Self::Unknown(field.to_owned())
    }

    fn unknown_variant(_: &str, expected: &'static [&'static str]) -> Self {
        Self::Other(format!("Expecting one of: {}.", expected.join(", ")))
    }
}

impl Failure {
    /// The error for a failure of the struct with this name.
    pub(super) fn at(self, name: &str) -> ApiError {
        let below = |field: &str| if name.is_empty() { field.to_owned() } else { format!("{name}.{field}") };
        match self {
            Self::Known(error) => error,
            Self::Missing(field) => ApiError::missing(&below(field)),
            Self::Unknown(field) => unknown(&below(&field)),
            Self::Other(message) => {
                let message = format!("The parameter {name} is invalid. {message}");
                ApiError::new("InvalidParameterValue", message)
            }
        }
    }
}

/// EC2's error for a value that is not the id that it should be. Serde hands on only the text of
/// [`Malformed`](crate::ids::Malformed), which has the prefix. EC2's services do not agree on a code.
fn malformed_id(value: &str, name: &str, message: &str) -> Option<ApiError> {
    let (_, form) = message.rsplit_once(" is not an id of the form ")?;
    let prefix = form.strip_suffix("-0123456789abcdef0")?;
    let code = match prefix {
        "i" => "InvalidInstanceID.Malformed",
        "ami" => "InvalidAMIID.Malformed",
        "sg" => "InvalidGroupId.Malformed",
        "sgr" => "InvalidSecurityGroupRuleId.Malformed",
        "subnet" => "InvalidSubnetID.Malformed",
        "vpc" => "InvalidVpcID.Malformed",
        "eni" => "InvalidNetworkInterfaceId.Malformed",
        "dopt" => "InvalidDhcpOptionsId.Malformed",
        _ => return Some(ApiError::invalid(value, name, format_args!("Expected: '{prefix}-...'."))),
    };
    Some(ApiError::new(code, format!("Invalid id: \"{value}\" (expecting \"{prefix}-...\")")))
}

macro_rules! integers {
    ($($deserialize:ident $visit:ident $integer:ident,)*) => {$(
        fn $deserialize<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Failure> {
            let text = self.text()?;
            let (smallest, largest) = ($integer::MIN, $integer::MAX);
            match text.parse() {
                Ok(number) => visitor.$visit(number),
                Err(_) => Err(self.invalid(format!("Expecting an integer from {smallest} to {largest}."))),
            }
        }
    )*};
}

impl<'de> Deserializer<'de> for Node<'de> {
    type Error = Failure;

    integers! {
        deserialize_i8 visit_i8 i8,
        deserialize_i16 visit_i16 i16,
        deserialize_i32 visit_i32 i32,
        deserialize_i64 visit_i64 i64,
        deserialize_u8 visit_u8 u8,
        deserialize_u16 visit_u16 u16,
        deserialize_u32 visit_u32 u32,
        deserialize_u64 visit_u64 u64,
    }

    fn deserialize_f32<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Failure> {
        self.deserialize_f64(visitor)
    }

    fn deserialize_f64<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Failure> {
        match self.text()?.parse() {
            Ok(number) if f64::is_finite(number) => visitor.visit_f64(number),
            _ => Err(self.invalid("Expecting a number.")),
        }
    }

    fn deserialize_bool<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Failure> {
        match boolean(self.text()?) {
            Some(value) => visitor.visit_bool(value),
            None => Err(self.invalid("Expecting true or false.")),
        }
    }

    fn deserialize_char<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Failure> {
        self.deserialize_str(visitor)
    }

    fn deserialize_str<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Failure> {
        visitor.visit_borrowed_str(self.text()?)
    }

    fn deserialize_string<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Failure> {
        self.deserialize_str(visitor)
    }

    fn deserialize_bytes<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Failure> {
        visitor.visit_borrowed_bytes(self.text()?.as_bytes())
    }

    fn deserialize_byte_buf<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Failure> {
        self.deserialize_bytes(visitor)
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Failure> {
        visitor.visit_some(self)
    }

    fn deserialize_unit<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Failure> {
        match self.entries.first() {
            None => visitor.visit_unit(),
            Some((name, _)) => Err(Failure::Known(unknown(name))),
        }
    }

    fn deserialize_unit_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        visitor: V,
    ) -> Result<V::Value, Failure> {
        self.deserialize_unit(visitor)
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        visitor: V,
    ) -> Result<V::Value, Failure> {
        visitor.visit_newtype_struct(self)
    }

    fn deserialize_seq<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Failure> {
        let rest = match self.value() {
            // SDKs write an empty list so.
            Some("") => Node { entries: &[], length: self.length },
            Some(_) => {
                let name = self.name();
                let message = format!("The parameter {name} is not recognized: it is a list, use {name}.1");
                return Err(Failure::Known(ApiError::new("UnknownParameter", message)));
            }
            None => self,
        };
        visitor.visit_seq(Items(rest))
    }

    fn deserialize_tuple<V: Visitor<'de>>(self, _: usize, visitor: V) -> Result<V::Value, Failure> {
        self.deserialize_seq(visitor)
    }

    fn deserialize_tuple_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        _: usize,
        visitor: V,
    ) -> Result<V::Value, Failure> {
        self.deserialize_seq(visitor)
    }

    fn deserialize_map<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Failure> {
        if self.value().is_some() {
            return Err(Failure::Known(unknown(self.name())));
        }
        visitor.visit_map(Fields { rest: self, child: None })
    }

    fn deserialize_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        _: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Failure> {
        self.deserialize_map(visitor)
    }

    fn deserialize_enum<V: Visitor<'de>>(
        self,
        _: &'static str,
        _: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Failure> {
        visitor.visit_enum(self.text()?.into_deserializer())
    }

    fn deserialize_identifier<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Failure> {
        self.deserialize_str(visitor)
    }

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Failure> {
        match (self.value(), self.split()) {
            (Some(_), _) => self.deserialize_str(visitor),
            (None, Some((part, _, _))) if is_number(part) => self.deserialize_seq(visitor),
            (None, _) => self.deserialize_map(visitor),
        }
    }

    fn deserialize_ignored_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Failure> {
        visitor.visit_unit()
    }
}

/// The members of a list.
struct Items<'a>(Node<'a>);

impl<'de> SeqAccess<'de> for Items<'de> {
    type Error = Failure;

    fn next_element_seed<T: DeserializeSeed<'de>>(&mut self, seed: T) -> Result<Option<T::Value>, Failure> {
        let Some((part, child, rest)) = self.0.split() else { return Ok(None) };
        if !is_number(part) {
            return Err(Failure::Known(unknown(child.name())));
        }
        self.0 = rest;
        seed.deserialize(child).map(Some).map_err(|failure| child.locate(failure))
    }
}

/// The fields of a struct.
struct Fields<'a> {
    rest: Node<'a>,
    child: Option<Node<'a>>,
}

impl<'de> MapAccess<'de> for Fields<'de> {
    type Error = Failure;

    fn next_key_seed<K: DeserializeSeed<'de>>(&mut self, seed: K) -> Result<Option<K::Value>, Failure> {
        let Some((part, child, rest)) = self.rest.split() else { return Ok(None) };
        self.rest = rest;
        self.child = Some(child);
        seed.deserialize(serde::de::value::BorrowedStrDeserializer::new(part)).map(Some)
    }

    fn next_value_seed<V: DeserializeSeed<'de>>(&mut self, seed: V) -> Result<V::Value, Failure> {
        match self.child.take() {
            Some(child) => seed.deserialize(child).map_err(|failure| child.locate(failure)),
            None => Err(Failure::Other("a value was asked for before its name".to_owned())),
        }
    }
}
