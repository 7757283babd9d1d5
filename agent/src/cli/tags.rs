//! Tags.

use crate::cli::client::Parameters;
use crate::cli::global::{Global, split};
use crate::cli::names;

/// The tags that a new resource gets: its name, and others.
pub fn tags(name: Option<&str>, others: &[String]) -> anyhow::Result<Vec<(String, String)>> {
    let name = name.map(|name| Ok(("Name".to_owned(), name.to_owned())));
    name.into_iter().chain(others.iter().map(|each| split(each, "tag", "KEY=VALUE"))).collect()
}

/// Adds tags to resources.
#[derive(Debug, clap::Args)]
pub struct Tag {
    /// The id of a resource of any kind, or the name of an instance
    resource: String,
    /// Tags to add or to change
    #[arg(required = true, value_name = "KEY=VALUE")]
    tags: Vec<String>,
}

impl Tag {
    /// Does it; returns the exit status.
    pub fn execute(self, global: &Global) -> anyhow::Result<u8> {
        let tags = tags(None, &self.tags)?;
        let client = global.client()?;
        let id = names::resource(&client, &self.resource)?;
        let parameters = tags.iter().zip(1..).fold(
            Parameters::default().with("ResourceId.1", id.as_str()),
            |parameters, ((key, value), number)| {
                parameters
                    .with(&format!("Tag.{number}.Key"), key.as_str())
                    .with(&format!("Tag.{number}.Value"), value.as_str())
            },
        );
        client.call("CreateTags", parameters)?;
        global.done("resourceId", &[id])?;
        Ok(0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tag_needs_a_key_and_may_be_empty() {
        for text in ["a", "=b", ""] {
            assert!(tags(None, &[text.to_owned()]).is_err(), "{text}");
        }
        let made = tags(Some("web"), &["a=".to_owned(), "b=c=d".to_owned()]).unwrap();
        let made: Vec<_> = made.iter().map(|(key, value)| (key.as_str(), value.as_str())).collect();
        assert_eq!(made, [("Name", "web"), ("a", ""), ("b", "c=d")]);
    }
}
