//! The agent's own authority. It signs instance identity documents, and the certificates of our servers.
//!
//! EC2 gives a guest its identity document with three signatures (EC2 User Guide, "Verify the instance identity
//! document"), each for a certificate that AWS publishes. Here an [`Authority`] makes them, with keys of its own:
//!
//! | name | what it is | key |
//! | --- | --- | --- |
//! | `signature` | the bare signature of the document, RSA with SHA-256 | RSA |
//! | `pkcs7` | PKCS #7 signed data with the document in it, DSA with SHA-1 | DSA |
//! | `rsa2048` | the same, RSA with SHA-256 | RSA |
//!
//! The RSA key's certificate is also that of a certificate authority, for TLS: [`Authority::issue`].

#![cfg_attr(not(test), deny(clippy::unwrap_used, clippy::expect_used))]

mod certificate;
mod keys;
mod signed_data;

use std::net::IpAddr;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use der::EncodePem;
use der::pem::LineEnding;
use jiff::Timestamp;
use p256::pkcs8::{EncodePrivateKey, EncodePublicKey};
use rsa::pkcs1v15;
use rsa::rand_core::OsRng;
use serde::{Deserialize, Serialize};
use sha2::Sha256;
use x509_cert::Certificate;

use crate::certificate::Issuer;
use crate::signed_data::{rsa_algorithm, sha1_algorithm, sha256_algorithm};

/// Why something could not be signed, or a key not be read.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// What is kept is not what was made.
    #[error("the {0} of the agent's authority cannot be read: {1}")]
    Unreadable(&'static str, String),
    /// What is not a name that a server can have.
    #[error("{0:?} cannot be the name of a server: it is not a DNS name or an IP address")]
    Name(String),
    /// A number, a time or a text that has no encoding.
    #[error("it cannot be encoded")]
    Encoding(#[from] der::Error),
    /// A public key that has no encoding.
    #[error("the public key cannot be encoded")]
    PublicKey(#[from] x509_cert::spki::Error),
    /// A private key that has no encoding.
    #[error("the private key cannot be encoded")]
    PrivateKey(#[from] p256::pkcs8::Error),
    /// A key that cannot be made.
    #[error("the RSA key cannot be made")]
    Rsa(#[from] rsa::Error),
    /// A signature that cannot be made.
    #[error("it cannot be signed")]
    Signature(#[from] rsa::signature::Error),
}

/// What is kept of an authority, in PEM.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Keys {
    /// The RSA key: secret.
    pub rsa_key: String,
    /// Its certificate.
    pub rsa_certificate: String,
    /// The DSA key: secret.
    pub dsa_key: String,
    /// Its certificate.
    pub dsa_certificate: String,
}

impl std::fmt::Debug for Keys {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("Keys").finish_non_exhaustive()
    }
}

/// What a certificate is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// To verify the document's `signature`.
    Signature,
    /// To verify its `pkcs7`.
    Pkcs7,
    /// To verify its `rsa2048`.
    Rsa2048,
    /// To verify our servers.
    Ca,
}

impl Kind {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Signature, Self::Pkcs7, Self::Rsa2048, Self::Ca];

    /// Its name, which those of EC2's have in the metadata.
    pub fn name(self) -> &'static str {
        match self {
            Self::Signature => "signature",
            Self::Pkcs7 => "pkcs7",
            Self::Rsa2048 => "rsa2048",
            Self::Ca => "ca",
        }
    }
}

/// What a server shows and needs, in PEM.
#[derive(Clone)]
pub struct ServerCertificate {
    /// The server's certificate, then the authority's.
    pub chain_pem: String,
    /// The server's private key, in PKCS #8.
    pub key_pem: String,
}

impl std::fmt::Debug for ServerCertificate {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter
            .debug_struct("ServerCertificate")
            .field("chain_pem", &self.chain_pem)
            .finish_non_exhaustive()
    }
}

/// The keys, ready to sign. Signing takes milliseconds, and what is signed is no secret: keep it where it is asked for
/// often.
pub struct Authority {
    rsa: pkcs1v15::SigningKey<Sha256>,
    rsa_certificate: Certificate,
    dsa: dsa::SigningKey,
    dsa_certificate: Certificate,
}

impl std::fmt::Debug for Authority {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let serial = self.rsa_certificate.tbs_certificate.serial_number.to_string();
        formatter.debug_struct("Authority").field("serial_number", &serial).finish_non_exhaustive()
    }
}

impl Authority {
    /// Makes new keys, and certificates for a century. The primes of the RSA key are searched for: that takes up to a few
    /// seconds of a CPU.
    pub fn generate(region: &str, now: Timestamp) -> Result<Self, Error> {
        let (rsa, dsa) = (keys::new_rsa()?, keys::new_dsa()?);
        let rsa_certificate = certificate::of_authority(region, &rsa, now)?;
        let dsa_certificate = certificate::of_dsa(region, &dsa, now)?;
        Ok(Self { rsa, rsa_certificate, dsa, dsa_certificate })
    }

    /// Reads what was kept.
    pub fn open(keys: &Keys) -> Result<Self, Error> {
        Ok(Self {
            rsa: keys::read("RSA key", &keys.rsa_key)?,
            rsa_certificate: certificate::read("RSA certificate", &keys.rsa_certificate)?,
            dsa: keys::read("DSA key", &keys.dsa_key)?,
            dsa_certificate: certificate::read("DSA certificate", &keys.dsa_certificate)?,
        })
    }

    /// What is to be kept.
    pub fn keys(&self) -> Result<Keys, Error> {
        Ok(Keys {
            rsa_key: self.rsa.to_pkcs8_pem(LineEnding::LF)?.to_string(),
            rsa_certificate: self.rsa_certificate.to_pem(LineEnding::LF)?,
            dsa_key: self.dsa.to_pkcs8_pem(LineEnding::LF)?.to_string(),
            dsa_certificate: self.dsa_certificate.to_pem(LineEnding::LF)?,
        })
    }

    /// The certificate for something, in PEM.
    pub fn certificate(&self, kind: Kind) -> Result<String, Error> {
        let certificate = match kind {
            Kind::Signature | Kind::Rsa2048 | Kind::Ca => &self.rsa_certificate,
            Kind::Pkcs7 => &self.dsa_certificate,
        };
        Ok(certificate.to_pem(LineEnding::LF)?)
    }

    /// The `signature` of a document: RSA (PKCS #1 v1.5) with SHA-256, in base64.
    pub fn signature(&self, document: &[u8]) -> Result<String, Error> {
        Ok(lines(&keys::sign_rsa(&self.rsa, document)?))
    }

    /// The `pkcs7` of a document: DSA with SHA-1, in base64.
    pub fn pkcs7(&self, document: &[u8]) -> Result<String, Error> {
        let signature = keys::sign_dsa_sha1(&self.dsa, document)?;
        let algorithms = (sha1_algorithm(), signed_data::dsa_algorithm());
        Ok(lines(&signed_data::of(document, &self.dsa_certificate, algorithms, signature)?))
    }

    /// The `rsa2048` of a document: RSA (PKCS #1 v1.5) with SHA-256, in base64.
    pub fn rsa2048(&self, document: &[u8]) -> Result<String, Error> {
        let signature = keys::sign_rsa(&self.rsa, document)?;
        let algorithms = (sha256_algorithm(), rsa_algorithm());
        Ok(lines(&signed_data::of(document, &self.rsa_certificate, algorithms, signature)?))
    }

    /// A key and a certificate for a TLS server with these names, each a DNS name or an IP address. It is valid as long as
    /// the authority's own.
    pub fn issue<S: AsRef<str>>(&self, names: &[S], now: Timestamp) -> Result<ServerCertificate, Error> {
        let key = p256::SecretKey::random(&mut OsRng);
        let public = key.public_key().to_public_key_der()?;
        let names = names.iter().map(|name| server_name(name.as_ref())).collect::<Result<Vec<_>, _>>()?;
        let issuer = Issuer { key: &self.rsa, certificate: &self.rsa_certificate };
        let certificate = certificate::of_server(issuer, public.as_bytes(), &names, now)?;
        let chain =
            [&certificate, &self.rsa_certificate].map(|certificate| certificate.to_pem(LineEnding::LF));
        let [own, authority] = chain;
        Ok(ServerCertificate {
            chain_pem: format!("{}{}", own?, authority?),
            key_pem: key.to_pkcs8_pem(LineEnding::LF)?.to_string(),
        })
    }
}

/// The name of a server.
enum ServerName<'a> {
    Dns(&'a str),
    Ip(IpAddr),
}

/// Whether a text can be the name of a server: a DNS name, also `*.` and one, or an IP address.
pub fn is_server_name(name: &str) -> bool {
    server_name(name).is_ok()
}

fn server_name(name: &str) -> Result<ServerName<'_>, Error> {
    if let Ok(address) = name.parse() {
        return Ok(ServerName::Ip(address));
    }
    let is_label = |label: &str| {
        let is_inner = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-';
        (1..=63).contains(&label.len())
            && label.bytes().all(is_inner)
            && !label.starts_with('-')
            && !label.ends_with('-')
    };
    let plain = name.strip_prefix("*.").unwrap_or(name);
    // What ends with a number would be an address.
    let is_address =
        plain.rsplit('.').next().is_some_and(|last| last.bytes().all(|byte| byte.is_ascii_digit()));
    if name.len() <= 253 && !is_address && plain.split('.').all(is_label) {
        return Ok(ServerName::Dns(name));
    }
    Err(Error::Name(name.to_owned()))
}

/// As EC2 writes it: base64 in lines, without an end of the last one. Some readers of PEM insist on 64 characters
/// (RFC 7468).
fn lines(bytes: &[u8]) -> String {
    let text = STANDARD.encode(bytes);
    // All of it is ASCII, so that nothing is lost.
    let lines: Vec<_> = text.as_bytes().chunks(64).map(String::from_utf8_lossy).collect();
    lines.join("\n")
}

#[cfg(test)]
mod tests {
    use std::sync::LazyLock;

    use super::*;

    static AUTHORITY: LazyLock<Authority> =
        LazyLock::new(|| Authority::generate("us-east-1", Timestamp::UNIX_EPOCH).unwrap());

    #[test]
    fn what_is_kept_is_all_that_it_is() {
        let keys = AUTHORITY.keys().unwrap();
        let stored = serde_json::to_string(&keys).unwrap();
        let again = Authority::open(&serde_json::from_str(&stored).unwrap()).unwrap();
        assert_eq!(again.keys().unwrap(), keys);
        assert_eq!(again.signature(b"{}").unwrap(), AUTHORITY.signature(b"{}").unwrap());
        assert_eq!(again.pkcs7(b"{}").unwrap(), AUTHORITY.pkcs7(b"{}").unwrap());
    }

    #[test]
    fn what_is_kept_and_was_changed_is_refused() {
        let keys = AUTHORITY.keys().unwrap();
        for (changed, what) in [
            (Keys { rsa_key: keys.dsa_key.clone(), ..keys.clone() }, "RSA key"),
            (Keys { rsa_certificate: String::new(), ..keys.clone() }, "RSA certificate"),
            (Keys { dsa_key: keys.dsa_key.replace("PRIVATE", "PUBLIC"), ..keys.clone() }, "DSA key"),
            (Keys { dsa_certificate: keys.rsa_key.clone(), ..keys.clone() }, "DSA certificate"),
        ] {
            let error = Authority::open(&changed).unwrap_err().to_string();
            assert!(
                error.starts_with(&format!("the {what} of the agent's authority cannot be read: ")),
                "{error}"
            );
        }
    }

    #[test]
    fn no_private_key_gets_into_a_log() {
        let server = AUTHORITY.issue(&["innkeeper.example"], Timestamp::UNIX_EPOCH).unwrap();
        for text in
            [format!("{:?}", *AUTHORITY), format!("{:?}", AUTHORITY.keys().unwrap()), format!("{server:?}")]
        {
            assert!(!text.contains("PRIVATE"), "{text}");
        }
    }

    #[test]
    fn a_signature_comes_in_lines() {
        assert_eq!(lines(&[0; 48]), "A".repeat(64));
        assert_eq!(lines(&[0; 51]), format!("{}\nAAAA", "A".repeat(64)));
        let signature = AUTHORITY.pkcs7(b"{\"region\": \"us-east-1\"}").unwrap();
        assert!(signature.lines().all(|line| line.len() <= 64) && !signature.ends_with('\n'), "{signature}");
    }

    #[test]
    fn only_names_are_names() {
        for name in ["innkeeper", "a.b-c.example", "*.innkeeper.example", "10.0.0.1", "::1", "1.example"] {
            assert!(is_server_name(name), "{name}");
        }
        for name in ["", ".", "a..b", "-a", "a b", "ä", "*", "a.*.b", "10.0.0.256", "1", "[::1]", "a:1"] {
            assert!(!is_server_name(name), "{name}");
        }
        assert!(!is_server_name(&"a".repeat(64)) && !is_server_name(&"a.".repeat(127)));
    }
}
