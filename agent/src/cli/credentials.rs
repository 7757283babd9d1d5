//! `innkeeper credentials`.

use std::io::{self, Write};

use anyhow::Context;
use clap::{Args, ValueEnum};

use super::{ConfigFile, exit_status};
use crate::credentials;

/// Print the access key that the daemon made on its first start.
///
/// For a shell: eval "$(innkeeper credentials)"
///
/// For ~/.aws/config: credential_process = innkeeper credentials --format json
#[derive(Debug, Args)]
pub struct Credentials {
    #[command(flatten)]
    config: ConfigFile,

    /// In which form.
    #[arg(long, value_enum, default_value_t = Format::Env)]
    format: Format,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Format {
    /// Lines for a shell.
    Env,
    /// As in the file that AWS_SHARED_CREDENTIALS_FILE names.
    File,
    /// What AWS's tools expect of a credential_process.
    Json,
}

impl Credentials {
    pub fn execute(self) -> anyhow::Result<u8> {
        let path = self.config.load()?.credentials();
        let credentials = credentials::Credentials::read(&path).with_context(|| {
            format!("cannot read {} (innkeeper serve makes it; only its user can read it)", path.display())
        })?;
        io::stdout().write_all(write(&credentials, self.format).as_bytes())?;
        Ok(exit_status::SUCCESS)
    }
}

/// Only a path can have a character that needs quotes.
fn write(credentials: &credentials::Credentials, format: Format) -> String {
    match format {
        Format::File => credentials.render(),
        Format::Env => {
            let lines = [
                ("AWS_ACCESS_KEY_ID", &credentials.access_key_id),
                ("AWS_SECRET_ACCESS_KEY", &credentials.secret_access_key),
                ("AWS_DEFAULT_REGION", &credentials.region),
                ("AWS_REGION", &credentials.region),
                ("AWS_ENDPOINT_URL", &credentials.endpoint_url),
            ];
            let bundle = credentials.ca_bundle.as_deref().map(quoted);
            let lines = lines.into_iter().chain(bundle.iter().map(|path| ("AWS_CA_BUNDLE", path)));
            lines.map(|(name, value)| format!("export {name}={value}\n")).collect()
        }
        Format::Json => {
            let json = serde_json::json!({
                "Version": 1,
                "AccessKeyId": credentials.access_key_id,
                "SecretAccessKey": credentials.secret_access_key,
            });
            format!("{json}\n")
        }
    }
}

/// A text as a shell reads it.
fn quoted(text: &str) -> String {
    let is_plain = |letter: char| letter.is_ascii_alphanumeric() || "/._-".contains(letter);
    if text.chars().all(is_plain) { text.to_owned() } else { format!("'{}'", text.replace('\'', r"'\''")) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn credentials_are_written_for_shells_files_and_programs() {
        let credentials = credentials::Credentials {
            access_key_id: "AKIAEXAMPLE".into(),
            secret_access_key: "swordfish".into(),
            region: "us-east-1".into(),
            endpoint_url: "https://[::1]:8773".into(),
            ca_bundle: Some("/srv/ca.pem".into()),
        };
        for (format, expected) in [
            (
                Format::Env,
                "export AWS_ACCESS_KEY_ID=AKIAEXAMPLE\nexport AWS_SECRET_ACCESS_KEY=swordfish\n\
                 export AWS_DEFAULT_REGION=us-east-1\nexport AWS_REGION=us-east-1\n\
                 export AWS_ENDPOINT_URL=https://[::1]:8773\nexport AWS_CA_BUNDLE=/srv/ca.pem\n",
            ),
            (
                Format::File,
                "[default]\naws_access_key_id = AKIAEXAMPLE\naws_secret_access_key = swordfish\n\
                 region = us-east-1\nendpoint_url = https://[::1]:8773\nca_bundle = /srv/ca.pem\n",
            ),
            (
                Format::Json,
                "{\"AccessKeyId\":\"AKIAEXAMPLE\",\"SecretAccessKey\":\"swordfish\",\"Version\":1}\n",
            ),
        ] {
            assert_eq!(write(&credentials, format), expected);
        }
        assert_eq!(quoted("/srv/it's here"), r"'/srv/it'\''s here'");
    }
}
