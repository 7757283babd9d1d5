//! `MetadataOptions`, as RunInstances and ModifyInstanceMetadataOptions have them.

use serde::Deserialize;

use crate::actions::refused::unsupported;
use crate::query::ApiError;
use crate::records::MetadataOptions;

/// What a request says about the metadata service. What it leaves out stays.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", deny_unknown_fields)]
pub struct Wanted {
    pub http_tokens: Option<String>,
    pub http_put_response_hop_limit: Option<i64>,
    pub http_endpoint: Option<String>,
    pub http_protocol_ipv6: Option<String>,
    pub instance_metadata_tags: Option<String>,
}

impl Wanted {
    /// Changes options as it is wanted.
    pub fn apply(&self, options: &mut MetadataOptions) -> Result<(), ApiError> {
        let switch = ["enabled", "disabled"];
        one_of(&self.http_tokens, "HttpTokens", ["optional", "required"], &mut options.http_tokens)?;
        one_of(&self.http_endpoint, "HttpEndpoint", switch, &mut options.http_endpoint)?;
        let tags = &mut options.instance_metadata_tags;
        one_of(&self.instance_metadata_tags, "InstanceMetadataTags", switch, tags)?;
        let mut ipv6 = String::new();
        one_of(&self.http_protocol_ipv6, "HttpProtocolIpv6", switch, &mut ipv6)?;
        if ipv6 == "enabled" {
            return Err(unsupported(
                "The metadata service has no IPv6 address: leave HttpProtocolIpv6 disabled.",
            ));
        }
        if let Some(limit) = self.http_put_response_hop_limit {
            options.http_put_response_hop_limit =
                u32::try_from(limit).ok().filter(|limit| (1..=64).contains(limit)).ok_or_else(|| {
                    ApiError::invalid(limit, "HttpPutResponseHopLimit", "Expecting a number from 1 to 64.")
                })?;
        }
        Ok(())
    }
}

/// Sets an option that has two values.
fn one_of(
    wanted: &Option<String>,
    name: &str,
    allowed: [&str; 2],
    option: &mut String,
) -> Result<(), ApiError> {
    let Some(wanted) = wanted else { return Ok(()) };
    if !allowed.contains(&wanted.as_str()) {
        return Err(ApiError::invalid(wanted, name, format!("Expecting one of: {}.", allowed.join(", "))));
    }
    option.clone_from(wanted);
    Ok(())
}

/// Refuses the tags of an instance that could not have a path in the metadata service, where they would be.
pub fn check_tag_keys<'k>(
    options: &MetadataOptions,
    mut keys: impl Iterator<Item = &'k String>,
) -> Result<(), ApiError> {
    if options.instance_metadata_tags != "enabled" {
        return Ok(());
    }
    match keys.find(|key| !tag_key_fits(key)) {
        None => Ok(()),
        Some(key) => Err(ApiError::new(
            "InvalidParameterValue",
            format!(
                "'{key}' is not a valid tag key. Tag keys must match pattern ([0-9a-zA-Z\\-_+=,.@:]{{1,255}}), and must \
                 not be a reserved name ('.', '..', '_index')"
            ),
        )),
    }
}

/// Whether a tag can have a path in the metadata service.
pub fn tag_key_fits(key: &str) -> bool {
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"+-=._,:@".contains(&byte);
    key.bytes().all(allowed) && !matches!(key, "." | ".." | "_index")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_left_out_stays() {
        let mut options = MetadataOptions::default();
        let wanted = Wanted { http_tokens: Some("required".into()), ..Wanted::default() };
        wanted.apply(&mut options).unwrap();
        assert_eq!(options, MetadataOptions { http_tokens: "required".into(), ..MetadataOptions::default() });
    }

    #[test]
    fn values_out_of_range_are_refused() {
        let text = |text: &str| Some(text.to_owned());
        for (wanted, code) in [
            (Wanted { http_tokens: text("maybe"), ..Wanted::default() }, "InvalidParameterValue"),
            (Wanted { http_endpoint: text("on"), ..Wanted::default() }, "InvalidParameterValue"),
            (Wanted { instance_metadata_tags: text(""), ..Wanted::default() }, "InvalidParameterValue"),
            (Wanted { http_put_response_hop_limit: Some(0), ..Wanted::default() }, "InvalidParameterValue"),
            (Wanted { http_put_response_hop_limit: Some(65), ..Wanted::default() }, "InvalidParameterValue"),
            (Wanted { http_protocol_ipv6: text("enabled"), ..Wanted::default() }, "UnsupportedOperation"),
        ] {
            assert_eq!(wanted.apply(&mut MetadataOptions::default()).unwrap_err().code, code, "{wanted:?}");
        }
    }

    #[test]
    fn tag_keys_are_paths() {
        for (key, expected) in
            [("Name", true), ("a.b:c", true), ("a/b", false), ("a b", false), ("..", false)]
        {
            assert_eq!(tag_key_fits(key), expected, "{key}");
        }
    }
}
