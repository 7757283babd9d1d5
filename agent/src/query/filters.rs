//! `Filter.N`: which of the described resources are wanted. Values of one filter are alternatives, filters must all hold;
//! `*` and `?` are wildcards and a backslash takes their meaning away. Case matters.

use std::collections::BTreeMap;

use serde::Deserialize;

use crate::query::ApiError;

/// The most values that all filters of a request have together.
const MAX_VALUES: usize = 200;

/// A filter, as it is in a request.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "PascalCase", deny_unknown_fields)]
pub struct Filter {
    /// Such as `instance-state-name` or `tag:Name`.
    pub name: String,
    /// The alternatives.
    #[serde(default, rename = "Value")]
    pub values: Vec<String>,
}

/// A described resource, as filters see it.
pub trait Filtered {
    /// How to find the values that a resource has for a filter: none if it does not have the thing at all. No function
    /// if there is no such filter. Those for tags are not among them.
    fn field(name: &str) -> Option<Field<Self>>;

    /// Its tags.
    fn tags(&self) -> Option<&BTreeMap<String, String>>;
}

/// Finds the values that a resource has for a filter.
pub type Field<R> = fn(&R) -> Vec<String>;

/// How one filter finds its values.
enum Source<R> {
    Field(Field<R>),
    Tag(String),
    TagKey,
    TagValue,
}

/// The filters of a request, understood.
pub struct Selection<'a, R>(Vec<(Source<R>, &'a [String])>);

impl<'a, R: Filtered> Selection<'a, R> {
    /// Refuses filters that there are not.
    pub fn new(filters: &'a [Filter]) -> Result<Self, ApiError> {
        let values: usize = filters.iter().map(|filter| filter.values.len()).sum();
        if values > MAX_VALUES {
            return Err(ApiError::new(
                "FilterLimitExceeded",
                format!("The maximum number of filter values specified on a single call is {MAX_VALUES}"),
            ));
        }
        filters.iter().map(Self::source).collect::<Result<_, _>>().map(Self)
    }

    fn source(filter: &'a Filter) -> Result<(Source<R>, &'a [String]), ApiError> {
        let name = filter.name.as_str();
        let source = match name {
            "tag-key" => Source::TagKey,
            "tag-value" => Source::TagValue,
            _ => match name.strip_prefix("tag:") {
                Some(key) => Source::Tag(key.to_owned()),
                None => match R::field(name) {
                    Some(field) => Source::Field(field),
                    None => {
                        let message = format!("The filter '{name}' is invalid");
                        return Err(ApiError::new("InvalidParameterValue", message));
                    }
                },
            },
        };
        if filter.values.is_empty() {
            return Err(ApiError::new(
                "InvalidParameterValue",
                format!("The filter '{name}' has no value: give at least Filter.N.Value.1"),
            ));
        }
        Ok((source, &filter.values))
    }

    /// Whether a resource is wanted.
    pub fn accepts(&self, resource: &R) -> bool {
        let any = |patterns: &[String], value: &str| patterns.iter().any(|pattern| matches(pattern, value));
        self.0.iter().all(|(source, patterns)| match source {
            Source::Field(values) => values(resource).iter().any(|value| any(patterns, value)),
            Source::Tag(key) => {
                resource.tags().and_then(|tags| tags.get(key)).is_some_and(|value| any(patterns, value))
            }
            Source::TagKey => resource.tags().is_some_and(|tags| tags.keys().any(|key| any(patterns, key))),
            Source::TagValue => {
                resource.tags().is_some_and(|tags| tags.values().any(|value| any(patterns, value)))
            }
        })
    }
}

/// Whether a pattern with wildcards is the whole of a text.
pub fn matches(pattern: &str, text: &str) -> bool {
    /// A piece of a pattern.
    enum Piece {
        Star,
        One,
        Literal(char),
    }
    // Each piece but a star is a character of the text: a pattern with more of them is not worth a longer look, however
    // long it is.
    let mut rest = text.chars().count();
    let mut pieces = Vec::new();
    let mut characters = pattern.chars();
    while let Some(character) = characters.next() {
        let piece = match character {
            // A second star adds nothing.
            '*' if matches!(pieces.last(), Some(Piece::Star)) => continue,
            '*' => Piece::Star,
            '?' => Piece::One,
            '\\' => Piece::Literal(characters.next().unwrap_or('\\')),
            other => Piece::Literal(other),
        };
        if !matches!(piece, Piece::Star) {
            let Some(left) = rest.checked_sub(1) else { return false };
            rest = left;
        }
        pieces.push(piece);
    }
    // The reachable positions in the pattern, after each character of the text: linear in both, and no more pieces than
    // twice the text.
    let mut reachable = vec![false; pieces.len() + 1];
    let close = |reachable: &mut Vec<bool>| {
        for (index, piece) in pieces.iter().enumerate() {
            if reachable[index] && matches!(piece, Piece::Star) {
                reachable[index + 1] = true;
            }
        }
    };
    reachable[0] = true;
    close(&mut reachable);
    for character in text.chars() {
        let mut next = vec![false; pieces.len() + 1];
        for (index, piece) in pieces.iter().enumerate() {
            if reachable[index] {
                match piece {
                    Piece::Star => next[index] = true,
                    Piece::One => next[index + 1] = true,
                    Piece::Literal(literal) => next[index + 1] |= *literal == character,
                }
            }
        }
        close(&mut next);
        reachable = next;
    }
    reachable.last().copied().unwrap_or(false)
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Thing(BTreeMap<String, String>);

    impl Filtered for Thing {
        fn field(name: &str) -> Option<Field<Self>> {
            Some(match name {
                "state" => |_| vec!["running".into()],
                "none" => |_| vec![],
                _ => return None,
            })
        }

        fn tags(&self) -> Option<&BTreeMap<String, String>> {
            Some(&self.0)
        }
    }

    #[test]
    fn patterns() {
        for (pattern, text, expected) in [
            ("", "", true),
            ("", "a", false),
            ("*", "", true),
            ("a*", "abc", true),
            ("*c", "abc", true),
            ("a?c", "abc", true),
            ("a?c", "ac", false),
            ("A*", "abc", false),
            (r"\*", "*", true),
            (r"\*", "a", false),
            ("a*b*c", "axxbyyc", true),
            ("a*b*c", "axxbyy", false),
            ("*ä?", "xxäö", true),
        ] {
            assert_eq!(matches(pattern, text), expected, "{pattern} {text}");
        }
        // What takes exponential time when done by trying.
        assert!(!matches(&"*a".repeat(50), &"a".repeat(49)));
        // What takes minutes when each of its characters is compared with each of the text.
        let text = "a".repeat(256);
        for _ in 0..100 {
            assert!(matches(&"*".repeat(500_000), &text));
            assert!(!matches(&"a".repeat(500_000), &text));
        }
    }

    #[test]
    fn filters_must_all_hold() {
        let thing = Thing(BTreeMap::from([("Name".into(), "web-1".into())]));
        let filter = |name: &str, values: &[&str]| Filter {
            name: name.into(),
            values: values.iter().map(|&value| value.to_owned()).collect(),
        };
        for (filters, expected) in [
            (vec![], true),
            (vec![filter("state", &["stopped", "run*"])], true),
            (vec![filter("state", &["running"]), filter("tag:Name", &["db-*"])], false),
            (vec![filter("tag:Name", &["web-?"]), filter("tag-key", &["Name"])], true),
            (vec![filter("tag-value", &["web"])], false),
            (vec![filter("tag:name", &["*"])], false),
            (vec![filter("none", &["*"])], false),
        ] {
            assert_eq!(Selection::<Thing>::new(&filters).unwrap().accepts(&thing), expected, "{filters:?}");
        }
        for bad in [filter("colour", &["red"]), filter("state", &[])] {
            assert_eq!(Selection::<Thing>::new(&[bad]).err().unwrap().code, "InvalidParameterValue");
        }
    }
}
