//! Answers as XML.
//!
//! An answer is a serde struct, and its form is EC2's: a field is an element with its name, `None` is left out, the
//! members of a list are `item` elements. Other services have `member` elements, and an element around the whole answer. Everything goes straight into one text; there is no tree.

use std::fmt::{Display, Write};

use serde::Serialize;
use serde::ser::{self, Impossible, Serializer};

use crate::query::{ApiError, Service};

/// What every document begins with.
const HEAD: &str = "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n";

/// The answer of one of EC2's actions.
pub fn response(action: &str, request_id: &str, response: &impl Serialize) -> Result<String, ApiError> {
    answer(Service::Ec2, action, request_id, response)
}

/// The answer of an action of any service.
pub fn answer(
    service: Service,
    action: &str,
    request_id: &str,
    response: &impl Serialize,
) -> Result<String, ApiError> {
    let mut out = String::with_capacity(4096);
    out.push_str(HEAD);
    // Writing to a text cannot fail, so the results of `write!` say nothing.
    let _ = write!(out, "<{action}Response xmlns=\"{}\">", service.namespace());
    if service == Service::Ec2 {
        element(&mut out, "requestId", request_id);
        write_to(&mut out, None, response)?;
    } else {
        write_to(&mut out, Some(&format!("{action}Result")), response)?;
        out.push_str("<ResponseMetadata>");
        element(&mut out, "RequestId", request_id);
        out.push_str("</ResponseMetadata>");
    }
    let _ = write!(out, "</{action}Response>");
    Ok(out)
}

/// Writes an answer; with a wrapper, an element around it, as services other than EC2 have it.
fn write_to(out: &mut String, wrapper: Option<&str>, response: &impl Serialize) -> Result<(), ApiError> {
    response.serialize(Root { out, wrapper }).map_err(|Unwritable(reason)| ApiError::internal(reason))
}

/// The answer that is an error.
pub fn error(service: Service, request_id: &str, error: &ApiError) -> String {
    let mut out = String::with_capacity(512);
    out.push_str(HEAD);
    if service == Service::Ec2 {
        out.push_str("<Response><Errors><Error>");
        element(&mut out, "Code", error.code);
        element(&mut out, "Message", &error.message);
        out.push_str("</Error></Errors>");
        element(&mut out, "RequestID", request_id);
        out.push_str("</Response>");
    } else {
        let _ = write!(out, "<ErrorResponse xmlns=\"{}\"><Error>", service.namespace());
        element(&mut out, "Type", if error.status() < 500 { "Sender" } else { "Receiver" });
        element(&mut out, "Code", error.code);
        element(&mut out, "Message", &error.message);
        out.push_str("</Error>");
        element(&mut out, "RequestId", request_id);
        out.push_str("</ErrorResponse>");
    }
    out
}

/// An element with a text.
fn element(out: &mut String, name: &str, text: &str) {
    open(out, name);
    escape(out, text);
    close(out, name);
}

fn open(out: &mut String, name: &str) {
    out.push('<');
    out.push_str(name);
    out.push('>');
}

fn close(out: &mut String, name: &str) {
    out.push_str("</");
    out.push_str(name);
    out.push('>');
}

/// Ends an element whose content begins at `start`; in its short form if it has none.
fn finish(out: &mut String, name: &str, start: usize) {
    if out.len() == start {
        out.truncate(start.saturating_sub(1));
        out.push_str("/>");
    } else {
        close(out, name);
    }
}

/// Appends a text, escaped. What XML 1.0 cannot hold even so becomes U+FFFD.
fn escape(out: &mut String, text: &str) {
    // Nearly all texts are plain, which is quickly seen by their bytes. U+FFFE and U+FFFF begin with 0xef.
    let is_suspect = |byte| matches!(byte, 0..=0x1f | b'&' | b'<' | b'>' | b'"' | 0xef);
    if !text.bytes().any(is_suspect) {
        out.push_str(text);
        return;
    }
    let special = |character: char| {
        matches!(character, '\0'..='\x1f' | '&' | '<' | '>' | '"' | '\u{fffe}' | '\u{ffff}')
    };
    let mut rest = text;
    while let Some(at) = rest.find(special) {
        let (plain, from) = rest.split_at(at);
        out.push_str(plain);
        let mut characters = from.chars();
        match characters.next() {
            Some('&') => out.push_str("&amp;"),
            Some('<') => out.push_str("&lt;"),
            Some('>') => out.push_str("&gt;"),
            Some('"') => out.push_str("&quot;"),
            // A parser would make a line feed of it.
            Some('\r') => out.push_str("&#13;"),
            Some(kept @ ('\t' | '\n')) => out.push(kept),
            _ => out.push('\u{fffd}'),
        }
        rest = characters.as_str();
    }
    out.push_str(rest);
}

/// Why an answer cannot be written: its type is not one that EC2 has. That is a mistake in the action.
#[derive(Debug)]
struct Unwritable(String);

impl Display for Unwritable {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str(&self.0)
    }
}

impl std::error::Error for Unwritable {}

impl ser::Error for Unwritable {
    fn custom<T: Display>(message: T) -> Self {
        Self(message.to_string())
    }
}

type Written = Result<(), Unwritable>;

fn not_xml<T>(what: &str) -> Result<T, Unwritable> {
    Err(Unwritable(format!("{what} has no form in EC2's XML")))
}

/// The content of the document's element.
struct Root<'a> {
    out: &'a mut String,
    wrapper: Option<&'a str>,
}

impl Root<'_> {
    /// What the members of lists are called.
    fn member(&self) -> &'static str {
        if self.wrapper.is_some() { "member" } else { "item" }
    }
}

/// An element, whose content is the value.
struct Element<'a> {
    out: &'a mut String,
    name: &'a str,
    /// What the members of lists are called.
    member: &'static str,
}

impl Element<'_> {
    fn display(self, value: impl Display) -> Written {
        open(self.out, self.name);
        let _ = write!(self.out, "{value}");
        close(self.out, self.name);
        Ok(())
    }
}

/// Elements side by side: a struct's fields, or a list's items. Inside an element, if it has a name.
struct Content<'a> {
    out: &'a mut String,
    name: Option<&'a str>,
    member: &'static str,
    start: usize,
    key: String,
}

impl<'a> Content<'a> {
    fn of(element: Element<'a>) -> Self {
        let Element { out, name, member } = element;
        open(out, name);
        Self { start: out.len(), out, name: Some(name), member, key: String::new() }
    }

    fn end(self) -> Written {
        if let Some(name) = self.name {
            finish(self.out, name, self.start);
        }
        Ok(())
    }
}

/// What is refused alike at the root and below.
macro_rules! refuse {
    () => {
        fn serialize_bytes(self, _: &[u8]) -> Written {
            not_xml("a sequence of bytes")
        }

        fn serialize_newtype_variant<T: Serialize + ?Sized>(
            self,
            _: &'static str,
            _: u32,
            _: &'static str,
            _: &T,
        ) -> Written {
            not_xml("a variant with content")
        }

        fn serialize_tuple_variant(
            self,
            _: &'static str,
            _: u32,
            _: &'static str,
            _: usize,
        ) -> Result<Self::SerializeTupleVariant, Unwritable> {
            not_xml("a variant with content")
        }

        fn serialize_struct_variant(
            self,
            _: &'static str,
            _: u32,
            _: &'static str,
            _: usize,
        ) -> Result<Self::SerializeStructVariant, Unwritable> {
            not_xml("a variant with content")
        }
    };
}

macro_rules! refuse_scalars {
    ($($serialize:ident $type:ty,)*) => {$(
        fn $serialize(self, _: $type) -> Written {
            not_xml("an answer that is no struct")
        }
    )*};
}

macro_rules! display_scalars {
    ($($serialize:ident $type:ty,)*) => {$(
        fn $serialize(self, value: $type) -> Written {
            self.display(value)
        }
    )*};
}

impl<'a> Serializer for Root<'a> {
    type Ok = ();
    type Error = Unwritable;
    type SerializeSeq = Impossible<(), Unwritable>;
    type SerializeTuple = Impossible<(), Unwritable>;
    type SerializeTupleStruct = Impossible<(), Unwritable>;
    type SerializeTupleVariant = Impossible<(), Unwritable>;
    type SerializeMap = Content<'a>;
    type SerializeStruct = Content<'a>;
    type SerializeStructVariant = Impossible<(), Unwritable>;

    refuse!();

    refuse_scalars! {
        serialize_bool bool, serialize_char char, serialize_str &str,
        serialize_i8 i8, serialize_i16 i16, serialize_i32 i32, serialize_i64 i64,
        serialize_u8 u8, serialize_u16 u16, serialize_u32 u32, serialize_u64 u64,
        serialize_f32 f32, serialize_f64 f64,
    }

    fn serialize_unit(self) -> Written {
        if self.wrapper.is_none() {
            element(self.out, "return", "true");
        }
        Ok(())
    }

    fn serialize_unit_struct(self, _: &'static str) -> Written {
        self.serialize_unit()
    }

    fn serialize_unit_variant(self, _: &'static str, _: u32, _: &'static str) -> Written {
        not_xml("an answer that is no struct")
    }

    fn serialize_none(self) -> Written {
        Ok(())
    }

    fn serialize_some<T: Serialize + ?Sized>(self, value: &T) -> Written {
        value.serialize(self)
    }

    fn serialize_newtype_struct<T: Serialize + ?Sized>(self, _: &'static str, value: &T) -> Written {
        value.serialize(self)
    }

    fn serialize_seq(self, _: Option<usize>) -> Result<Self::SerializeSeq, Unwritable> {
        not_xml("an answer that is a list")
    }

    fn serialize_tuple(self, _: usize) -> Result<Self::SerializeTuple, Unwritable> {
        not_xml("an answer that is a list")
    }

    fn serialize_tuple_struct(
        self,
        _: &'static str,
        _: usize,
    ) -> Result<Self::SerializeTupleStruct, Unwritable> {
        not_xml("an answer that is a list")
    }

    fn serialize_map(self, _: Option<usize>) -> Result<Content<'a>, Unwritable> {
        let member = self.member();
        Ok(match self.wrapper {
            Some(name) => Content::of(Element { out: self.out, name, member }),
            None => Content { start: self.out.len(), out: self.out, name: None, member, key: String::new() },
        })
    }

    fn serialize_struct(self, _: &'static str, _: usize) -> Result<Content<'a>, Unwritable> {
        self.serialize_map(None)
    }
}

impl<'a> Serializer for Element<'a> {
    type Ok = ();
    type Error = Unwritable;
    type SerializeSeq = Content<'a>;
    type SerializeTuple = Content<'a>;
    type SerializeTupleStruct = Content<'a>;
    type SerializeTupleVariant = Impossible<(), Unwritable>;
    type SerializeMap = Content<'a>;
    type SerializeStruct = Content<'a>;
    type SerializeStructVariant = Impossible<(), Unwritable>;

    refuse!();

    display_scalars! {
        serialize_bool bool,
        serialize_i8 i8, serialize_i16 i16, serialize_i32 i32, serialize_i64 i64, serialize_i128 i128,
        serialize_u8 u8, serialize_u16 u16, serialize_u32 u32, serialize_u64 u64, serialize_u128 u128,
        serialize_f32 f32, serialize_f64 f64,
    }

    fn serialize_str(self, value: &str) -> Written {
        element(self.out, self.name, value);
        Ok(())
    }

    fn serialize_char(self, value: char) -> Written {
        self.serialize_str(value.encode_utf8(&mut [0; 4]))
    }

    fn serialize_unit(self) -> Written {
        Content::of(self).end()
    }

    fn serialize_unit_struct(self, _: &'static str) -> Written {
        self.serialize_unit()
    }

    fn serialize_unit_variant(self, _: &'static str, _: u32, variant: &'static str) -> Written {
        self.serialize_str(variant)
    }

    fn serialize_none(self) -> Written {
        Ok(())
    }

    fn serialize_some<T: Serialize + ?Sized>(self, value: &T) -> Written {
        value.serialize(self)
    }

    fn serialize_newtype_struct<T: Serialize + ?Sized>(self, _: &'static str, value: &T) -> Written {
        value.serialize(self)
    }

    fn serialize_seq(self, _: Option<usize>) -> Result<Content<'a>, Unwritable> {
        Ok(Content::of(self))
    }

    fn serialize_tuple(self, _: usize) -> Result<Content<'a>, Unwritable> {
        Ok(Content::of(self))
    }

    fn serialize_tuple_struct(self, _: &'static str, _: usize) -> Result<Content<'a>, Unwritable> {
        Ok(Content::of(self))
    }

    fn serialize_map(self, _: Option<usize>) -> Result<Content<'a>, Unwritable> {
        Ok(Content::of(self))
    }

    fn serialize_struct(self, _: &'static str, _: usize) -> Result<Content<'a>, Unwritable> {
        Ok(Content::of(self))
    }
}

macro_rules! items {
    ($($trait:ident $method:ident,)*) => {$(
        impl ser::$trait for Content<'_> {
            type Ok = ();
            type Error = Unwritable;

            fn $method<T: Serialize + ?Sized>(&mut self, value: &T) -> Written {
                value.serialize(Element { out: self.out, name: self.member, member: self.member })
            }

            fn end(self) -> Written {
                Content::end(self)
            }
        }
    )*};
}

items! {
    SerializeSeq serialize_element,
    SerializeTuple serialize_element,
    SerializeTupleStruct serialize_field,
}

impl ser::SerializeStruct for Content<'_> {
    type Ok = ();
    type Error = Unwritable;

    fn serialize_field<T: Serialize + ?Sized>(&mut self, name: &'static str, value: &T) -> Written {
        value.serialize(Element { out: self.out, name, member: self.member })
    }

    fn end(self) -> Written {
        Content::end(self)
    }
}

/// A struct with a flattened field is a map to serde.
impl ser::SerializeMap for Content<'_> {
    type Ok = ();
    type Error = Unwritable;

    fn serialize_key<T: Serialize + ?Sized>(&mut self, key: &T) -> Written {
        // Serde's keys are values too. The text of one is what stands between its tags.
        let mut text = String::new();
        key.serialize(Element { out: &mut text, name: "", member: self.member })?;
        self.key =
            text.strip_prefix("<>").and_then(|text| text.strip_suffix("</>")).unwrap_or_default().into();
        let name = self.key.as_bytes();
        if name.first().is_some_and(u8::is_ascii_alphabetic) && name.iter().all(u8::is_ascii_alphanumeric) {
            Ok(())
        } else {
            not_xml(&format!("an element named {:?}", self.key))
        }
    }

    fn serialize_value<T: Serialize + ?Sized>(&mut self, value: &T) -> Written {
        value.serialize(Element { out: self.out, name: &self.key, member: self.member })
    }

    fn end(self) -> Written {
        Content::end(self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Serialize)]
    #[serde(rename_all = "camelCase")]
    struct Answer {
        reservation_id: &'static str,
        groups: Vec<Group>,
        none: Option<u8>,
        some: Option<u8>,
        ebs_optimized: bool,
        price: f64,
        state: State,
        nothing: Vec<u8>,
        empty: Empty,
        names: Vec<String>,
        #[serde(flatten)]
        attachment: Attachment,
        #[serde(rename = "return")]
        done: bool,
    }

    #[derive(Serialize)]
    #[serde(rename_all = "camelCase")]
    struct Group {
        group_id: String,
    }

    #[derive(Serialize)]
    struct Empty {}

    #[derive(Serialize)]
    #[serde(rename_all = "camelCase")]
    struct Attachment {
        delete_on_termination: bool,
        device: Group,
    }

    #[derive(Serialize)]
    #[serde(rename_all = "kebab-case")]
    enum State {
        ShuttingDown,
    }

    #[test]
    fn an_answer_has_ec2s_form() {
        let group = |id: &str| Group { group_id: id.into() };
        let answer = Answer {
            reservation_id: "r-1",
            groups: vec![group("sg-1"), group("sg-2")],
            none: None,
            some: Some(7),
            ebs_optimized: false,
            price: 0.25,
            state: State::ShuttingDown,
            nothing: Vec::new(),
            empty: Empty {},
            names: vec!["a".into(), String::new()],
            attachment: Attachment { delete_on_termination: true, device: group("x") },
            done: true,
        };
        let expected = "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n\
            <RunInstancesResponse xmlns=\"http://ec2.amazonaws.com/doc/2016-11-15/\"><requestId>id</requestId>\
            <reservationId>r-1</reservationId><groups><item><groupId>sg-1</groupId></item>\
            <item><groupId>sg-2</groupId></item></groups><some>7</some><ebsOptimized>false</ebsOptimized>\
            <price>0.25</price><state>shutting-down</state><nothing/><empty/>\
            <names><item>a</item><item></item></names><deleteOnTermination>true</deleteOnTermination>\
            <device><groupId>x</groupId></device><return>true</return></RunInstancesResponse>";
        assert_eq!(response("RunInstances", "id", &answer).unwrap(), expected);
    }

    #[test]
    fn an_action_without_output_returns_true() {
        let document = response("DeleteVolume", "id", &()).unwrap();
        assert!(document.ends_with("<requestId>id</requestId><return>true</return></DeleteVolumeResponse>"));
    }

    #[test]
    fn sts_has_a_form_of_its_own() {
        let document = answer(Service::Sts, "Get", "id", &Group { group_id: "x".into() }).unwrap();
        let expected = "<GetResponse xmlns=\"https://sts.amazonaws.com/doc/2011-06-15/\"><GetResult>\
            <groupId>x</groupId></GetResult><ResponseMetadata><RequestId>id</RequestId></ResponseMetadata>\
            </GetResponse>";
        assert_eq!(document.strip_prefix(HEAD), Some(expected));
    }

    #[test]
    fn what_is_not_ec2s_has_members_and_may_be_nothing() {
        #[derive(Serialize)]
        #[serde(rename_all = "PascalCase")]
        struct Names {
            names: Vec<Vec<u8>>,
        }
        let content = |answer: String| {
            let (_, rest) = answer.split_once("2010-05-08/\">").unwrap();
            rest.split_once("<ResponseMetadata>").unwrap().0.to_owned()
        };
        let names = answer(Service::Iam, "List", "id", &Names { names: vec![vec![1], vec![]] }).unwrap();
        let expected = "<ListResult><Names><member><member>1</member></member><member/></Names></ListResult>";
        assert_eq!(content(names), expected);
        assert_eq!(content(answer(Service::Iam, "Update", "id", &Empty {}).unwrap()), "<UpdateResult/>");
        assert_eq!(content(answer(Service::Iam, "Delete", "id", &()).unwrap()), "");
    }

    #[test]
    fn errors_are_documents() {
        let wrong = ApiError::new("AuthFailure", "a < b");
        let expected = "<Response><Errors><Error><Code>AuthFailure</Code><Message>a &lt; b</Message></Error>\
            </Errors><RequestID>id</RequestID></Response>";
        assert_eq!(error(Service::Ec2, "id", &wrong).strip_prefix(HEAD), Some(expected));
        let expected = "<ErrorResponse xmlns=\"https://sts.amazonaws.com/doc/2011-06-15/\"><Error>\
            <Type>Sender</Type><Code>AuthFailure</Code><Message>a &lt; b</Message></Error>\
            <RequestId>id</RequestId></ErrorResponse>";
        assert_eq!(error(Service::Sts, "id", &wrong).strip_prefix(HEAD), Some(expected));
    }

    #[test]
    fn a_text_is_never_markup_and_always_xml() {
        for (text, expected) in [
            ("<a b=\"c\">&amp;", "&lt;a b=&quot;c&quot;&gt;&amp;amp;"),
            ("a\tb\nc\r\n", "a\tb\nc&#13;\n"),
            ("\0\u{1b}[0m\u{fffe}\u{ffff}", "\u{fffd}\u{fffd}[0m\u{fffd}\u{fffd}"),
            ("héé 🦀\u{fffd}", "héé 🦀\u{fffd}"),
        ] {
            let mut out = String::new();
            escape(&mut out, text);
            assert_eq!(out, expected);
        }
    }

    #[test]
    fn what_ec2_has_no_form_for_is_an_error_and_no_document() {
        #[derive(Serialize)]
        enum Choice {
            One(u8),
        }
        let map = |key: &str| std::collections::BTreeMap::from([(key.to_owned(), 1)]);
        assert!(response("A", "id", &map("aB1")).unwrap().contains("<aB1>1</aB1>"));
        for name in ["", "a b", "1", "a>"] {
            assert_eq!(response("A", "id", &map(name)).unwrap_err().code, "InternalError");
        }
        assert!(response("A", "id", &vec![1]).is_err());
        assert!(response("A", "id", &"text").is_err());
        assert!(response("A", "id", &Choice::One(1)).is_err());
    }
}
