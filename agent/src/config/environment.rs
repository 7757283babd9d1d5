//! Variables of the environment: `INNKEEPER_STATE_DIRECTORY=/srv/innkeeper` is `state-directory` in the file.
//!
//! The elements of a list are separated by commas. Variables with the prefix that name no key belong to others, such as
//! the client commands.

use serde_json::Value;

use super::{Config, ConfigError};

const PREFIX: &str = "INNKEEPER_";

/// Takes over what the environment says, and returns the keys that it says something of.
pub fn apply(
    config: &mut Config,
    environment: impl Iterator<Item = (String, String)>,
) -> Result<Vec<String>, ConfigError> {
    let mut chosen = Vec::new();
    for (variable, text) in environment {
        let Some(name) = variable.strip_prefix(PREFIX) else { continue };
        let key = name.to_ascii_lowercase().replace('_', "-");
        let failed = |reason: String| ConfigError::Environment { variable: variable.clone(), reason };
        let mut all = serde_json::to_value(&*config).map_err(|error| failed(error.to_string()))?;
        let Some(value) = all.get_mut(&key) else { continue };
        if key == "instance-types" {
            return Err(failed("instance types can only be set in the file".to_owned()));
        }
        *value = parse(&text, value).ok_or_else(|| failed(format!("{text:?} is not a number")))?;
        *config = serde_json::from_value(all).map_err(|error| failed(error.to_string()))?;
        chosen.push(key);
    }
    Ok(chosen)
}

/// A value of the same type as the one that it replaces.
fn parse(text: &str, like: &Value) -> Option<Value> {
    match like {
        Value::Number(_) => text.parse().ok().map(Value::Number),
        Value::Array(_) => {
            let elements = text.split(',').map(str::trim).filter(|element| !element.is_empty());
            Some(Value::Array(elements.map(Value::from).collect()))
        }
        _ => Some(Value::from(text)),
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::read;
    use super::*;

    #[test]
    fn the_environment_overrides_the_file() {
        let environment = [
            ("INNKEEPER_LISTEN", "127.0.0.1:1234"),
            ("INNKEEPER_STATE_DIRECTORY", "/srv/state"),
            ("INNKEEPER_ACCOUNT", "123456789012"),
            ("INNKEEPER_ZONES", "us-east-1a, us-east-1f"),
            ("INNKEEPER_CPU_OVERCOMMIT", "2"),
            ("INNKEEPER_STOP_TIMEOUT", "7"),
            ("INNKEEPER_VMM", "/opt/innkeeper-vmm"),
            ("INNKEEPER_PUBLIC_ADDRESSES", "203.0.113.0/24"),
            ("INNKEEPER_ENDPOINT", "not a key"),
            ("HOME", "/root"),
        ];
        let config = read("account = '999999999999'\nreserved-memory = 1", &environment).unwrap();
        let expected = Config {
            listen: ([127, 0, 0, 1], 1234).into(),
            state_directory: "/srv/state".into(),
            account: "123456789012".into(),
            zones: vec!["us-east-1a".into(), "us-east-1f".into()],
            cpu_overcommit: 2.0,
            stop_timeout: 7,
            reserved_memory: 1,
            vmm: Some("/opt/innkeeper-vmm".into()),
            public_addresses: vec!["203.0.113.0/24".parse().unwrap()],
            ..Config::default()
        };
        assert_eq!(config, expected);
    }

    #[test]
    fn a_mistake_in_the_environment_is_named_with_its_variable() {
        for (variable, value, error) in [
            (
                "INNKEEPER_STOP_TIMEOUT",
                "long",
                "the variable INNKEEPER_STOP_TIMEOUT: \"long\" is not a number",
            ),
            (
                "INNKEEPER_STOP_TIMEOUT",
                "-1",
                "the variable INNKEEPER_STOP_TIMEOUT: invalid value: integer `-1`",
            ),
            ("INNKEEPER_LISTEN", "here", "the variable INNKEEPER_LISTEN: invalid socket address syntax"),
            (
                "INNKEEPER_INSTANCE_TYPES",
                "a",
                "the variable INNKEEPER_INSTANCE_TYPES: instance types can only",
            ),
        ] {
            let found = read("", &[(variable, value)]).unwrap_err();
            assert!(found.starts_with(error), "{found}");
        }
    }
}
