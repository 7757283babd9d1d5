//! Key pairs: list, create, import, remove.

use std::fs::OpenOptions;
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use anyhow::Context;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use clap::ValueEnum;
use serde_json::Value;

use crate::cli::answer::{text, without_request};
use crate::cli::client::Parameters;
use crate::cli::global::{Global, Output, print};
use crate::cli::output::{View, age};

const KEYS: View = View {
    id: "keyName",
    columns: &[
        ("NAME", |each, _| text(each, "keyName").into()),
        ("ID", |each, _| text(each, "keyPairId").into()),
        ("TYPE", |each, _| text(each, "keyType").into()),
        ("FINGERPRINT", |each, _| text(each, "keyFingerprint").into()),
        ("CREATED", |each, now| age(text(each, "createTime"), now)),
    ],
};

/// How a key pair looks that is new.
const NEW: View = View {
    id: "keyName",
    columns: &[
        ("NAME", |each, _| text(each, "keyName").into()),
        ("ID", |each, _| text(each, "keyPairId").into()),
        ("FINGERPRINT", |each, _| text(each, "keyFingerprint").into()),
    ],
};

/// A key pair's cryptography.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum KeyType {
    /// Short and fast.
    Ed25519,
    /// For old clients.
    Rsa,
}

/// What to do with key pairs.
#[derive(Debug, clap::Subcommand)]
pub enum Keys {
    /// List key pairs
    List,
    /// Create a key pair; its private key is printed, or written to a file, and kept nowhere else
    Create {
        /// A name
        name: String,
        /// The kind of key: ed25519, or rsa for old clients
        #[arg(
            long = "type",
            short = 't',
            value_enum,
            hide_possible_values = true,
            value_name = "TYPE",
            default_value_t = KeyType::Ed25519
        )]
        key_type: KeyType,
        /// Write the private key to this new file, which only you can read
        #[arg(long, short)]
        file: Option<PathBuf>,
    },
    /// Make a key pair of a public key, such as ~/.ssh/id_ed25519.pub
    Import {
        /// A name
        name: String,
        /// The public key
        file: PathBuf,
    },
    /// Delete key pairs; whoever has the private key can still log in to instances that have it
    #[command(visible_alias = "delete")]
    Remove {
        /// Names of key pairs
        #[arg(required = true, value_name = "NAME")]
        names: Vec<String>,
    },
}

impl Keys {
    /// Does it; returns the exit status.
    pub fn execute(self, global: &Global) -> anyhow::Result<u8> {
        let client = global.client()?;
        match self {
            Self::List => {
                let found = client.describe("DescribeKeyPairs", Parameters::default(), "keySet")?;
                global.show(&KEYS, &found)?;
            }
            Self::Create { name, key_type, file } => {
                let key_type = match key_type {
                    KeyType::Ed25519 => "ed25519",
                    KeyType::Rsa => "rsa",
                };
                let parameters = Parameters::default().with("KeyName", name).with("KeyType", key_type);
                // The file first: a private key that cannot be written is lost.
                let file =
                    file.map(|path| Ok::<_, anyhow::Error>((private_file(&path)?, path))).transpose()?;
                let answer = match (client.call("CreateKeyPair", parameters), &file) {
                    (Err(error), Some((_, path))) => {
                        // Nothing is in it yet, and if it stays, that does no harm.
                        let _ = std::fs::remove_file(path);
                        return Err(error);
                    }
                    (answer, _) => answer?,
                };
                show_new(global, answer, file)?;
            }
            Self::Import { name, file } => {
                let key = std::fs::read(&file)
                    .with_context(|| format!("cannot read the public key {}", file.display()))?;
                let parameters = Parameters::default()
                    .with("KeyName", name)
                    .with("PublicKeyMaterial", STANDARD.encode(key));
                let answer = client.call("ImportKeyPair", parameters)?;
                global.show(&NEW, &[without_request(answer)])?;
            }
            Self::Remove { names } => {
                // EC2 says yes to what is not there as well; a person has mistyped.
                client.call("DescribeKeyPairs", Parameters::default().with_list("KeyName", &names))?;
                for name in &names {
                    client.call("DeleteKeyPair", Parameters::default().with("KeyName", name.as_str()))?;
                }
                global.done("keyName", &names)?;
            }
        }
        Ok(0)
    }
}

fn show_new(global: &Global, answer: Value, file: Option<(std::fs::File, PathBuf)>) -> anyhow::Result<()> {
    let mut key = without_request(answer);
    let Some((mut file, path)) = file else {
        // Without a file the private key is what one wants: `innkeeper key create me > me.pem`.
        return match global.output {
            Output::Json => global.show_json(&[key]),
            Output::Table => print(&format!("{}\n", text(&key, "keyMaterial").trim_end())),
        };
    };
    let material = format!("{}\n", text(&key, "keyMaterial").trim_end());
    file.write_all(material.as_bytes())
        .and_then(|()| file.sync_all())
        .with_context(|| format!("cannot write the private key to {}", path.display()))?;
    if let Some(fields) = key.as_object_mut() {
        fields.remove("keyMaterial");
    }
    global.show(&NEW, &[key])
}

/// A new file that nobody else can read.
fn private_file(path: &Path) -> anyhow::Result<std::fs::File> {
    OpenOptions::new().write(true).create_new(true).mode(0o600).open(path).with_context(|| {
        format!("cannot make {} for the private key (a file that is there stays as it is)", path.display())
    })
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn a_private_key_is_for_its_owner_and_replaces_nothing() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("key.pem");
        let made = private_file(&path).unwrap();
        assert_eq!(made.metadata().unwrap().permissions().mode() & 0o777, 0o600);
        let error = private_file(&path).unwrap_err();
        assert!(error.to_string().contains("key.pem"), "{error}");
    }
}
