//! EC2's XML answers as trees: an element is a text, an object of its elements, or an array of its `item`s.

use anyhow::{Context, bail};
use quick_xml::Reader;
use quick_xml::events::Event;
use serde_json::{Map, Value};

/// Lists whose names do not end in `Set`. Only by its name is an empty list told from an empty text.
const LISTS: [&str; 12] = [
    "attachmentStatuses",
    "availabilityZoneInfo",
    "blockDeviceMapping",
    "details",
    "groups",
    "ipPermissions",
    "ipPermissionsEgress",
    "ipRanges",
    "ipv6Ranges",
    "prefixListIds",
    "productCodes",
    "securityGroupInfo",
];

/// More than EC2 ever nests.
const DEEPEST: usize = 64;

/// An element that has begun.
struct Open {
    name: String,
    text: String,
    items: Vec<Value>,
    fields: Map<String, Value>,
}

impl Open {
    fn new(name: String) -> Self {
        Self { name, text: String::new(), items: Vec::new(), fields: Map::new() }
    }

    fn take(&mut self, name: String, value: Value) {
        if name == "item" {
            self.items.push(value);
        } else {
            self.fields.insert(name, value);
        }
    }

    fn close(self) -> (String, Value) {
        let is_list = self.name.ends_with("Set") || LISTS.contains(&self.name.as_str());
        let value = if !self.fields.is_empty() {
            Value::Object(self.fields)
        } else if !self.items.is_empty() || is_list {
            Value::Array(self.items)
        } else {
            Value::String(self.text)
        };
        (self.name, value)
    }
}

/// Reads an answer. The outermost element's name is left out.
pub fn parse(xml: &str) -> anyhow::Result<Value> {
    let mut reader = Reader::from_str(xml);
    let mut open: Vec<Open> = Vec::new();
    loop {
        let closed = match reader.read_event().context("the answer is not well-formed XML")? {
            Event::Start(start) => {
                if open.len() == DEEPEST {
                    bail!("the answer is nested too deeply");
                }
                open.push(Open::new((*start.name().as_ref()).to_owned()));
                continue;
            }
            Event::Empty(empty) => Open::new((*empty.name().as_ref()).to_owned()),
            Event::End(_) => open.pop().context("the answer ends an element that it did not begin")?,
            Event::Text(text) => {
                if let Some(element) = open.last_mut() {
                    element.text.push_str(&text.xml10_content());
                }
                continue;
            }
            Event::CData(text) => {
                if let Some(element) = open.last_mut() {
                    element.text.push_str(&text.xml10_content());
                }
                continue;
            }
            Event::GeneralRef(reference) => {
                let character = match reference.resolve_char_ref()? {
                    Some(character) => character.to_string(),
                    None => quick_xml::escape::resolve_predefined_entity(&reference)
                        .with_context(|| format!("the answer has the unknown entity &{};", &*reference))?
                        .to_owned(),
                };
                if let Some(element) = open.last_mut() {
                    element.text.push_str(&character);
                }
                continue;
            }
            Event::Eof => bail!("the answer ends too early"),
            _ => continue,
        };
        let (name, value) = closed.close();
        match open.last_mut() {
            Some(parent) => parent.take(name, value),
            None => return Ok(value),
        }
    }
}

/// The element at a path such as `instanceState.name`.
pub fn at<'a>(value: &'a Value, path: &str) -> Option<&'a Value> {
    path.split('.').try_fold(value, |value, name| value.get(name))
}

/// The text at a path; empty if there is none.
pub fn text<'a>(value: &'a Value, path: &str) -> &'a str {
    at(value, path).and_then(Value::as_str).unwrap_or_default()
}

/// The number at a path.
pub fn number(value: &Value, path: &str) -> Option<u64> {
    text(value, path).parse().ok()
}

/// The list at a path; empty if there is none.
pub fn list<'a>(value: &'a Value, path: &str) -> &'a [Value] {
    at(value, path).and_then(Value::as_array).map_or(&[], Vec::as_slice)
}

/// The value of a resource's tag.
pub fn tag<'a>(resource: &'a Value, key: &str) -> Option<&'a str> {
    let found = list(resource, "tagSet").iter().find(|tag| text(tag, "key") == key)?;
    Some(text(found, "value"))
}

/// An answer as the resource that it is about.
pub fn without_request(mut answer: Value) -> Value {
    if let Some(fields) = answer.as_object_mut() {
        fields.remove("requestId");
    }
    answer
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn elements_are_objects_and_items_are_arrays() {
        for (xml, tree) in [
            ("<R><a>1</a><b>x &amp; &#x41;</b></R>", json!({"a": "1", "b": "x & A"})),
            ("<R><tagSet/><b/></R>", json!({"tagSet": [], "b": ""})),
            ("<R><groups></groups></R>", json!({"groups": []})),
            ("<R><s><item>1</item><item>2</item></s></R>", json!({"s": ["1", "2"]})),
            (
                "<?xml version='1.0'?>\n<R>\n <s>\n <item><a>1</a></item>\n </s>\n</R>",
                json!({"s": [{"a": "1"}]}),
            ),
            ("<R><a><![CDATA[<b>]]></a></R>", json!({"a": "<b>"})),
        ] {
            assert_eq!(parse(xml).unwrap(), tree, "{xml}");
        }
    }

    #[test]
    fn what_is_not_an_answer_is_an_error() {
        let deep = "<a>".repeat(1000);
        for xml in ["", "Not found", "<R><a></R>", "<R>", "<R>&nothing;</R>", "</R>", &deep] {
            assert!(parse(xml).is_err(), "{xml}");
        }
    }

    #[test]
    fn paths_lead_into_the_tree() {
        let value = json!({"a": {"b": "7"}, "s": ["x"], "tagSet": [{"key": "Name", "value": "web"}]});
        assert_eq!(text(&value, "a.b"), "7");
        assert_eq!(text(&value, "a.c"), "");
        assert_eq!(number(&value, "a.b"), Some(7));
        assert_eq!(number(&value, "s"), None);
        assert_eq!(list(&value, "s").len(), 1);
        assert_eq!(list(&value, "a.b").len(), 0);
        assert_eq!(tag(&value, "Name"), Some("web"));
        assert_eq!(tag(&value, "Role"), None);
    }
}
