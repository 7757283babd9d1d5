//! Tags: in requests (`TagSpecification.N`, `Tag.N`) and in answers (`tagSet`).

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::query::ApiError;

/// The most tags that a resource has.
const MAX_TAGS: usize = 50;

/// A tag: in requests `Key` and `Value`, in answers `key` and `value`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all(deserialize = "PascalCase"), deny_unknown_fields)]
pub struct Tag {
    /// At most 128 characters, not beginning with `aws:`.
    pub key: String,
    /// At most 256 characters.
    #[serde(default)]
    pub value: String,
}

/// Tags for what an action makes.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "PascalCase", deny_unknown_fields)]
pub struct TagSpecification {
    /// Such as `instance`.
    pub resource_type: String,
    /// The tags.
    #[serde(default, rename = "Tag")]
    pub tags: Vec<Tag>,
}

/// The tags that a request has for each kind of resource that it makes; `kinds` are those that there can be.
pub fn specified(
    specifications: &[TagSpecification],
    kinds: &[&str],
) -> Result<BTreeMap<String, BTreeMap<String, String>>, ApiError> {
    let mut all: BTreeMap<String, BTreeMap<String, String>> = BTreeMap::new();
    for specification in specifications {
        let kind = specification.resource_type.as_str();
        if !kinds.contains(&kind) {
            return Err(ApiError::new(
                "InvalidParameterValue",
                format!("'{kind}' is not a valid taggable resource type for this operation."),
            ));
        }
        if all.contains_key(kind) {
            let message = format!("Tag specification resource type '{kind}' is there twice.");
            return Err(ApiError::new("InvalidParameterValue", message));
        }
        all.insert(kind.to_owned(), checked(&specification.tags)?);
    }
    Ok(all)
}

/// The tags that a request has for the one kind of resource that it makes.
pub fn specified_for(
    specifications: &[TagSpecification],
    kind: &str,
) -> Result<BTreeMap<String, String>, ApiError> {
    Ok(specified(specifications, &[kind])?.remove(kind).unwrap_or_default())
}

/// Tags that are as they may be.
pub fn checked(tags: &[Tag]) -> Result<BTreeMap<String, String>, ApiError> {
    let mut all = BTreeMap::new();
    for Tag { key, value } in tags {
        if key.is_empty() || key.chars().count() > 128 {
            let message = format!("Tag key '{key}' is not between 1 and 128 characters long.");
            return Err(ApiError::new("InvalidParameterValue", message));
        }
        if key.to_ascii_lowercase().starts_with("aws:") {
            let message = format!("Tag keys starting with 'aws:' are reserved for internal use ('{key}').");
            return Err(ApiError::new("InvalidParameterValue", message));
        }
        if value.chars().count() > 256 {
            let message = format!("The value of tag '{key}' is longer than 256 characters.");
            return Err(ApiError::new("InvalidParameterValue", message));
        }
        if all.insert(key.clone(), value.clone()).is_some() {
            let message = format!("Duplicate tag key '{key}' specified.");
            return Err(ApiError::new("InvalidParameterValue", message));
        }
    }
    fits(all.len())?;
    Ok(all)
}

/// Whether a resource may have so many tags.
pub fn fits(count: usize) -> Result<(), ApiError> {
    if count > MAX_TAGS {
        let message = format!("More than {MAX_TAGS} tags for one resource.");
        return Err(ApiError::new("TagLimitExceeded", message));
    }
    Ok(())
}

/// `tagSet`.
pub fn tag_set(tags: Option<&BTreeMap<String, String>>) -> Vec<Tag> {
    let tag = |(key, value): (&String, &String)| Tag { key: key.clone(), value: value.clone() };
    tags.map(|tags| tags.iter().map(tag).collect()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tags(pairs: &[(&str, &str)]) -> Vec<Tag> {
        pairs.iter().map(|&(key, value)| Tag { key: key.into(), value: value.into() }).collect()
    }

    #[test]
    fn tags_are_checked() {
        assert_eq!(checked(&tags(&[("Name", "web")])).unwrap().len(), 1);
        let long = "x".repeat(257);
        for bad in [
            vec![("", "x")],
            vec![("aws:x", "x")],
            vec![("AWS:x", "x")],
            vec![("a", "1"), ("a", "2")],
            vec![("a", long.as_str())],
            vec![(&long[..129], "x")],
        ] {
            assert_eq!(checked(&tags(&bad)).unwrap_err().code, "InvalidParameterValue", "{bad:?}");
        }
        let many: Vec<_> =
            (0..51).map(|number| Tag { key: number.to_string(), value: String::new() }).collect();
        assert_eq!(checked(&many).unwrap_err().code, "TagLimitExceeded");
    }

    #[test]
    fn specifications_name_what_is_made() {
        let specification =
            |kind: &str| TagSpecification { resource_type: kind.into(), tags: tags(&[("a", "b")]) };
        let kinds = ["instance", "volume"];
        let found = specified(&[specification("instance"), specification("volume")], &kinds).unwrap();
        assert_eq!(found.len(), 2);
        for bad in [vec![specification("vpc")], vec![specification("volume"), specification("volume")]] {
            assert_eq!(specified(&bad, &kinds).unwrap_err().code, "InvalidParameterValue");
        }
    }
}
