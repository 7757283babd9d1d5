//! What only the agent knows.

use hmac::{Hmac, KeyInit, Mac};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::Record;

/// A random number that the agent made on its first start. What it hands out and has to recognise later, such as a
/// metadata token, is authenticated with a key that is derived from it, so that nothing has to be kept of each.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Secret {
    /// There is one: [`Secret::THIS`].
    pub name: String,
    /// The number.
    pub secret: [u8; 32],
}

impl Secret {
    /// The name of the only one.
    pub const THIS: &'static str = "this";

    /// A new one.
    pub fn random() -> Self {
        Self { name: Self::THIS.to_owned(), secret: rand::random() }
    }

    /// The key for a purpose. Those of different purposes tell nothing about each other.
    pub fn derive(&self, purpose: &str) -> [u8; 32] {
        hmac(&self.secret, purpose.as_bytes())
    }
}

impl Record for Secret {
    const KIND: &'static str = "secret";

    fn key(&self) -> &str {
        &self.name
    }
}

impl std::fmt::Debug for Secret {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("Secret").field("name", &self.name).finish_non_exhaustive()
    }
}

/// HMAC-SHA256.
pub fn hmac(key: &[u8], message: &[u8]) -> [u8; 32] {
    // A key is filled up to a block with zeros, and hashed if it is longer: what makes it fit cannot fail.
    let mut block = [0; 64];
    let hashed = Sha256::digest(key);
    let key = if key.len() > block.len() { hashed.as_slice() } else { key };
    block.iter_mut().zip(key).for_each(|(to, from)| *to = *from);
    let mut mac = Hmac::<Sha256>::new(&block.into());
    mac.update(message);
    mac.finalize().into_bytes().into()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// RFC 4231, test case 2, whose key is filled up with zeros as HMAC does it.
    #[test]
    fn it_is_hmac() {
        let mut key = [0; 32];
        key[..4].copy_from_slice(b"Jefe");
        let expected = "5bdcc146bf60754e6a042426089575c75a003f089d2739839dec58b964ec3843";
        let found: String =
            hmac(&key, b"what do ya want for nothing?").iter().map(|b| format!("{b:02x}")).collect();
        assert_eq!(found, expected);
    }

    #[test]
    fn each_purpose_has_a_key_and_no_log_has_the_number() {
        let secret = Secret { name: Secret::THIS.into(), secret: [7; 32] };
        assert_ne!(secret.derive("a"), secret.derive("b"));
        assert_eq!(secret.derive("a"), secret.derive("a"));
        assert!(!format!("{secret:?}").contains('7'));
        assert_ne!(Secret::random(), Secret::random());
    }
}
