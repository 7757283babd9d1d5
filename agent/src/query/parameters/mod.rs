//! The parameters of a request: `name=value` pairs, whose dotted names make a tree, made an action's type.
//!
//! `Filter.1.Value.2=x` is a list of structs with a list of texts. The tree is never built: sorted by name, the
//! parameters below any name lie side by side, so that a node is a part of one slice. What a hostile request costs is
//! what sorting costs, for a bounded number of names of a bounded depth. A list's order is that of its numbers, and
//! numbers may be left out, as in EC2.

mod tree;

use std::cmp::Ordering;

use serde::de::DeserializeOwned;

use self::tree::Node;
use crate::query::ApiError;

/// The most parameters of a request.
pub const MAX_PARAMETERS: usize = 10_000;

/// The most parts of a name.
const MAX_DEPTH: usize = 16;

/// The most digits of a number in a name.
const MAX_DIGITS: usize = 6;

/// Reads `name=value&…`, which is a query or a form. What is not UTF-8 or not encoded as it should be is an error.
pub fn decode(text: &[u8]) -> Result<Vec<(String, String)>, ApiError> {
    let mut pairs = Vec::new();
    for pair in text.split(|&byte| byte == b'&').filter(|pair| !pair.is_empty()) {
        if pairs.len() == MAX_PARAMETERS {
            return Err(too_many());
        }
        let equals = pair.iter().position(|&byte| byte == b'=');
        let (name, value) = match equals {
            Some(at) => (pair.get(..at).unwrap_or_default(), pair.get(at + 1..).unwrap_or_default()),
            None => (pair, [].as_slice()),
        };
        pairs.push((decode_part(name)?, decode_part(value)?));
    }
    Ok(pairs)
}

fn decode_part(text: &[u8]) -> Result<String, ApiError> {
    let bad = |reason| ApiError::new("MalformedQueryString", format!("The query string {reason}"));
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.iter();
    while let Some(&byte) = rest.next() {
        bytes.push(match byte {
            b'+' => b' ',
            b'%' => {
                let mut digit = || char::from(*rest.next()?).to_digit(16);
                match (digit(), digit()) {
                    (Some(high), Some(low)) => (high * 16 + low) as u8,
                    _ => return Err(bad("has a % that is not followed by two hexadecimal digits")),
                }
            }
            other => other,
        });
    }
    String::from_utf8(bytes).map_err(|_| bad("is not UTF-8"))
}

fn too_many() -> ApiError {
    ApiError::new(
        "InvalidParameterValue",
        format!("A request has at most {MAX_PARAMETERS} parameters; send several requests."),
    )
}

/// Reads an action's type from the decoded parameters of a request, but for those that every request has.
pub fn parse<A: DeserializeOwned>(parameters: &[(String, String)]) -> Result<A, ApiError> {
    let entries = sorted(parameters)?;
    A::deserialize(Node::root(&entries)).map_err(|failure| failure.at(""))
}

/// A name and its value.
type Entry<'a> = (&'a str, &'a str);

/// The parameters in the order of the tree, when they make one.
fn sorted(parameters: &[(String, String)]) -> Result<Vec<Entry<'_>>, ApiError> {
    if parameters.len() > MAX_PARAMETERS {
        return Err(too_many());
    }
    let mut entries: Vec<Entry> =
        parameters.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
    if let Some((name, _)) = entries.iter().find(|(name, _)| !is_well_formed(name)) {
        return Err(unknown(name));
    }
    entries.sort_by(|(left, _), (right, _)| compare(left, right));
    for ((name, _), (next, _)) in entries.iter().zip(entries.iter().skip(1)) {
        match next.strip_prefix(name) {
            Some("") => {
                let message = format!("The parameter {name} is there more than once");
                return Err(ApiError::combination(message));
            }
            Some(rest) if rest.starts_with('.') => {
                return Err(ApiError::combination(format!(
                    "The parameter {name} cannot have a value together with {next}"
                )));
            }
            _ => {}
        }
    }
    Ok(entries)
}

fn is_well_formed(name: &str) -> bool {
    let mut depth = 0;
    name.split('.').all(|part| {
        depth += 1;
        let number = part.bytes().all(|byte| byte.is_ascii_digit());
        let small = part.len() <= MAX_DIGITS && !part.starts_with('0');
        !part.is_empty() && depth <= MAX_DEPTH && (!number || small)
    })
}

/// Orders names part by part: first numbers, which have no leading zeros, by their value, then words.
fn compare(left: &str, right: &str) -> Ordering {
    let (mut left, mut right) = (left.split('.'), right.split('.'));
    loop {
        return match (left.next(), right.next()) {
            (None, None) => Ordering::Equal,
            (None, Some(_)) => Ordering::Less,
            (Some(_), None) => Ordering::Greater,
            (Some(left), Some(right)) if left == right => continue,
            (Some(left), Some(right)) => match (is_number(left), is_number(right)) {
                (true, true) => left.len().cmp(&right.len()).then(left.cmp(right)),
                (false, false) => left.cmp(right),
                (true, false) => Ordering::Less,
                (false, true) => Ordering::Greater,
            },
        };
    }
}

fn is_number(part: &str) -> bool {
    part.starts_with(|first: char| first.is_ascii_digit()) && part.bytes().all(|byte| byte.is_ascii_digit())
}

fn unknown(name: &str) -> ApiError {
    ApiError::new("UnknownParameter", format!("The parameter {name} is not recognized"))
}

/// Reads EC2's booleans.
pub fn boolean(text: &str) -> Option<bool> {
    match text {
        "1" => Some(true),
        "0" => Some(false),
        _ if text.eq_ignore_ascii_case("true") => Some(true),
        _ if text.eq_ignore_ascii_case("false") => Some(false),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;
    use serde::de::{MapAccess, SeqAccess, Visitor};
    use serde::{Deserialize, Deserializer};

    use super::*;
    use crate::ids;
    use crate::query::filters::Filter;

    #[derive(Debug, Default, PartialEq, Deserialize)]
    #[serde(rename_all = "PascalCase", deny_unknown_fields)]
    struct Request {
        #[serde(default, rename = "InstanceId")]
        instance_ids: Vec<ids::InstanceId>,
        #[serde(default, rename = "Filter")]
        filters: Vec<Filter>,
        placement: Option<Placement>,
        #[serde(default)]
        min_count: u32,
        size: Option<i64>,
        overcommit: Option<f64>,
        disable_api_termination: Option<Attribute<bool>>,
        tenancy: Option<Tenancy>,
        volume_id: Option<ids::VolumeId>,
    }

    #[derive(Debug, PartialEq, Deserialize)]
    #[serde(rename_all = "PascalCase", deny_unknown_fields)]
    struct Placement {
        availability_zone: String,
        partition: Option<u8>,
    }

    #[derive(Debug, PartialEq, Deserialize)]
    #[serde(rename_all = "PascalCase", deny_unknown_fields)]
    struct Attribute<T> {
        value: T,
    }

    #[derive(Debug, PartialEq, Deserialize)]
    #[serde(rename_all = "lowercase")]
    enum Tenancy {
        Default,
        Dedicated,
    }

    fn read<A: DeserializeOwned>(query: &str) -> Result<A, ApiError> {
        parse(&decode(query.as_bytes())?)
    }

    fn message(query: &str) -> (&'static str, String) {
        let error = read::<Request>(query).unwrap_err();
        (error.code, error.message)
    }

    #[test]
    fn dotted_names_make_a_request() {
        let request: Request = read(
            "Filter.2.Name=b&Filter.10.Name=c&Filter.1.Name=a%3A1&Filter.1.Value.1=x+y&Filter.1.Value.3=z&Size=-1\
             &Placement.AvailabilityZone=&Placement.Partition=7&MinCount=4294967295&Overcommit=1.5\
             &DisableApiTermination.Value=TRUE&Tenancy=dedicated&InstanceId.7=i-0123456789abcdef0\
             &InstanceId.9=i-12345678",
        )
        .unwrap();
        let filter = |name: &str, values: &[&str]| Filter {
            name: name.into(),
            values: values.iter().map(|&value| value.into()).collect(),
        };
        let id = |text: &str| text.parse().unwrap();
        let expected = Request {
            instance_ids: vec![id("i-0123456789abcdef0"), id("i-12345678")],
            filters: vec![filter("a:1", &["x y", "z"]), filter("b", &[]), filter("c", &[])],
            placement: Some(Placement { availability_zone: String::new(), partition: Some(7) }),
            min_count: u32::MAX,
            size: Some(-1),
            overcommit: Some(1.5),
            disable_api_termination: Some(Attribute { value: true }),
            tenancy: Some(Tenancy::Dedicated),
            volume_id: None,
        };
        assert_eq!(request, expected);
        assert_eq!(read::<Request>("").unwrap(), Request::default());
        assert_eq!(read::<Request>("InstanceId=").unwrap(), Request::default());
    }

    #[test]
    fn errors_name_the_parameter_as_ec2_does() {
        for (query, code, part) in [
            ("Filter.1.Value.1=x", "MissingParameter", "must contain the parameter Filter.1.Name"),
            ("Placement.Partition=1", "MissingParameter", "Placement.AvailabilityZone"),
            ("Colour=red", "UnknownParameter", "The parameter Colour is not recognized"),
            ("Placement.Colour.1=red", "UnknownParameter", "The parameter Placement.Colour is not"),
            ("Filter.1.Name=a&Filter.1.Nam=b", "UnknownParameter", "The parameter Filter.1.Nam is not"),
            ("Filter.Name=a", "UnknownParameter", "Filter.Name is not"),
            ("Filter.0.Name=a", "UnknownParameter", "Filter.0.Name is not"),
            ("Filter.01.Name=a", "UnknownParameter", "Filter.01.Name is not"),
            ("Filter.1234567.Name=a", "UnknownParameter", "Filter.1234567.Name is not"),
            ("InstanceId=i-12345678", "UnknownParameter", "use InstanceId.1"),
            ("InstanceId.1.2=i-12345678", "UnknownParameter", "InstanceId.1.2"),
            ("Placement=x", "UnknownParameter", "Placement"),
            ("Placement=", "UnknownParameter", "Placement"),
            ("MinCount.1=3", "UnknownParameter", "MinCount.1"),
            ("Min..Count=3", "UnknownParameter", "Min..Count"),
            (".=3", "UnknownParameter", ""),
            ("=3", "UnknownParameter", ""),
            ("MinCount=-1", "InvalidParameterValue", "Value (-1) for parameter MinCount is invalid."),
            ("MinCount=", "InvalidParameterValue", "Value () for parameter MinCount"),
            ("MinCount=4294967296", "InvalidParameterValue", "MinCount"),
            (
                "Placement.AvailabilityZone=a&Placement.Partition=256",
                "InvalidParameterValue",
                "Placement.Partition",
            ),
            ("Size=1.5", "InvalidParameterValue", "Size"),
            ("Overcommit=nan", "InvalidParameterValue", "Overcommit"),
            ("DisableApiTermination.Value=yes", "InvalidParameterValue", "DisableApiTermination.Value"),
            (
                "Tenancy=host",
                "InvalidParameterValue",
                "Value (host) for parameter Tenancy is invalid. Expecting one of: default, dedicated.",
            ),
            ("InstanceId.1=i-x", "InvalidInstanceID.Malformed", "Invalid id: \"i-x\" (expecting \"i-...\")"),
            (
                "VolumeId=x",
                "InvalidParameterValue",
                "Value (x) for parameter VolumeId is invalid. Expected: 'vol-...'.",
            ),
            ("Size=1&Size=2", "InvalidParameterCombination", "Size is there more than once"),
            (
                "Size=1&Size.1=2",
                "InvalidParameterCombination",
                "Size cannot have a value together with Size.1",
            ),
        ] {
            let (found, message) = message(query);
            assert_eq!(found, code, "{query}: {message}");
            assert!(message.contains(part), "{query}: {message}");
        }
    }

    #[test]
    fn every_kind_of_id_has_its_error() {
        fn code<I: DeserializeOwned + std::fmt::Debug>() -> &'static str {
            read::<BTreeMap<String, I>>("Id=x").unwrap_err().code
        }
        assert_eq!(code::<ids::ImageId>(), "InvalidAMIID.Malformed");
        assert_eq!(code::<ids::SecurityGroupId>(), "InvalidGroupId.Malformed");
        assert_eq!(code::<ids::SecurityGroupRuleId>(), "InvalidSecurityGroupRuleId.Malformed");
        assert_eq!(code::<ids::SubnetId>(), "InvalidSubnetID.Malformed");
        assert_eq!(code::<ids::VpcId>(), "InvalidVpcID.Malformed");
        assert_eq!(code::<ids::NetworkInterfaceId>(), "InvalidNetworkInterfaceId.Malformed");
        assert_eq!(code::<ids::DhcpOptionsId>(), "InvalidDhcpOptionsId.Malformed");
        assert_eq!(code::<ids::SnapshotId>(), "InvalidParameterValue");
    }

    #[test]
    fn what_is_not_well_encoded_is_refused() {
        for query in ["A=%", "A=%4", "A=%4x", "A=%+1", "A=%ff", "%c3=1"] {
            assert_eq!(decode(query.as_bytes()).unwrap_err().code, "MalformedQueryString", "{query}");
        }
        let pair = |name: &str, value: &str| (name.to_owned(), value.to_owned());
        let pairs = decode(b"&A=b=c&&D&%45=%c3%A9&").unwrap();
        assert_eq!(pairs, [pair("A", "b=c"), pair("D", ""), pair("E", "é")]);
    }

    #[test]
    fn what_a_request_can_hold_is_bounded() {
        let many =
            |count: usize| (1..=count).map(|n| format!("InstanceId.{n}=i-12345678&")).collect::<String>();
        assert_eq!(read::<Request>(&many(MAX_PARAMETERS)).unwrap().instance_ids.len(), MAX_PARAMETERS);
        assert_eq!(message(&many(MAX_PARAMETERS + 1)).0, "InvalidParameterValue");
        assert_eq!(message(&format!("A{}=1", ".A".repeat(MAX_DEPTH))).0, "UnknownParameter");
    }

    /// Any tree of parameters, read with nothing known of it.
    #[derive(Clone, Debug, PartialEq)]
    enum Tree {
        Text(String),
        List(Vec<Tree>),
        Struct(BTreeMap<String, Tree>),
    }

    impl<'de> Deserialize<'de> for Tree {
        fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
            struct Any;
            impl<'de> Visitor<'de> for Any {
                type Value = Tree;

                fn expecting(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                    formatter.write_str("anything")
                }

                fn visit_str<E>(self, text: &str) -> Result<Tree, E> {
                    Ok(Tree::Text(text.to_owned()))
                }

                fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Tree, A::Error> {
                    let mut all = Vec::new();
                    while let Some(item) = items.next_element()? {
                        all.push(item);
                    }
                    Ok(Tree::List(all))
                }

                fn visit_map<A: MapAccess<'de>>(self, mut fields: A) -> Result<Tree, A::Error> {
                    let mut all = BTreeMap::new();
                    while let Some((name, field)) = fields.next_entry()? {
                        all.insert(name, field);
                    }
                    Ok(Tree::Struct(all))
                }
            }
            deserializer.deserialize_any(Any)
        }
    }

    fn flatten(tree: &Tree, name: &str, pairs: &mut Vec<(String, String)>) {
        let below = |part: &str| if name.is_empty() { part.to_owned() } else { format!("{name}.{part}") };
        match tree {
            Tree::Text(text) => pairs.push((name.to_owned(), text.clone())),
            Tree::List(items) => {
                // With gaps, which do not matter.
                for (number, item) in items.iter().enumerate() {
                    flatten(item, &below(&(number * 3 + 1).to_string()), pairs);
                }
            }
            Tree::Struct(fields) => {
                fields.iter().for_each(|(part, field)| flatten(field, &below(part), pairs));
            }
        }
    }

    fn trees() -> impl Strategy<Value = Tree> {
        let tree = any::<String>().prop_map(Tree::Text).prop_recursive(4, 60, 5, |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 1..8).prop_map(Tree::List),
                prop::collection::btree_map("[A-Z][A-Za-z0-9]{0,2}", inner, 1..5).prop_map(Tree::Struct),
            ]
        });
        prop::collection::btree_map("[A-Z][A-Za-z0-9]{0,2}", tree, 1..5).prop_map(Tree::Struct)
    }

    fn encode(text: &str) -> String {
        form_urlencoded::byte_serialize(text.as_bytes()).collect()
    }

    proptest! {
        #[test]
        fn a_tree_comes_back_in_whatever_order_it_was_sent(tree in trees(), turn in any::<usize>()) {
            let mut pairs = Vec::new();
            flatten(&tree, "", &mut pairs);
            let turn = turn % pairs.len();
            pairs.rotate_left(turn);
            pairs.chunks_mut(2).for_each(<[_]>::reverse);
            let query: Vec<_> =
                pairs.iter().map(|(name, value)| format!("{}={}", encode(name), encode(value))).collect();
            prop_assert_eq!(decode(query.join("&").as_bytes()).unwrap(), pairs.clone());
            prop_assert_eq!(parse::<Tree>(&pairs).unwrap(), tree);
        }

        #[test]
        fn nothing_that_is_sent_makes_it_panic(
            text in prop::collection::vec(
                prop_oneof![any::<u8>(), prop::sample::select(&b"%&=.12AB"[..])],
                0..200,
            ),
            pairs in prop::collection::vec(
                ("([A-C]|[0-9]{1,2}|\\.){0,6}|(Filter|InstanceId|MinCount)(\\.[1a]){0,2}", ".{0,3}"),
                0..12,
            ),
        ) {
            if let Ok(decoded) = decode(&text) {
                let _ = parse::<Request>(&decoded);
                let _ = parse::<Tree>(&decoded);
            }
            let _ = parse::<Request>(&pairs);
            let _ = parse::<Tree>(&pairs);
        }

        #[test]
        fn names_have_one_order(
            names in prop::collection::vec("([0-9]{1,3}[a-c]?|[a-c]){1,2}(\\.([0-9]{1,2}[ab]?|a))?", 3),
        ) {
            let [a, b, c] = <[String; 3]>::try_from(names).unwrap();
            prop_assert_eq!(compare(&a, &b), compare(&b, &a).reverse());
            if compare(&a, &b).is_lt() && compare(&b, &c).is_lt() {
                prop_assert!(compare(&a, &c).is_lt());
            }
        }
    }
}
