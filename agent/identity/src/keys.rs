//! The private keys.

use der::{Decode, Document};
use dsa::{Components, SigningKey};
use p256::pkcs8::DecodePrivateKey;
use rsa::pkcs1v15;
use rsa::rand_core::OsRng;
use rsa::signature::{DigestSigner, RandomizedSigner, SignatureEncoding};
use rsa::{RsaPrivateKey, pkcs8};
use sha1::Digest;
use sha2::Sha256;

use crate::Error;

/// In bits, as the name of EC2's `rsa2048` says.
const RSA_SIZE: usize = 2048;

/// Two primes of 2048 and 256 bits and a generator, which any number of DSA keys can share. To search for them takes ten
/// times as long as to search for those of an RSA key. They were made as FIPS 186-4, A.1.1.2 and A.2.3, says, with the
/// counter 3 and the index 1 from this seed: the SHA-256 of `Innkeeper: the parameters of DSA, 27`, the first of these
/// whose seed gives a prime. `openssl genpkey -genparam` finds them again; a test has its options.
const DSA_PARAMETERS: &str = include_str!("dsa-parameters.pem");

/// A new key.
pub fn new_rsa() -> Result<pkcs1v15::SigningKey<Sha256>, Error> {
    Ok(pkcs1v15::SigningKey::new(RsaPrivateKey::new(&mut OsRng, RSA_SIZE)?))
}

/// A new key.
pub fn new_dsa() -> Result<SigningKey, Error> {
    let (_, parameters) = Document::from_pem(DSA_PARAMETERS)?;
    Ok(SigningKey::generate(&mut OsRng, Components::from_der(parameters.as_bytes())?))
}

/// Reads a key in PEM.
pub fn read<K>(what: &'static str, pem: &str) -> Result<K, Error>
where
    K: for<'a> TryFrom<pkcs8::PrivateKeyInfo<'a>, Error = pkcs8::Error>,
{
    K::from_pkcs8_pem(pem).map_err(|error| Error::Unreadable(what, error.to_string()))
}

/// The signature of a message's SHA-256 (PKCS #1 v1.5). It is blinded, so that how long it takes tells nothing about the
/// key.
pub fn sign_rsa(key: &pkcs1v15::SigningKey<Sha256>, message: &[u8]) -> Result<Vec<u8>, Error> {
    Ok(key.try_sign_with_rng(&mut OsRng, message)?.to_vec())
}

/// The signature of a message's SHA-1, in DER.
pub fn sign_dsa_sha1(key: &SigningKey, message: &[u8]) -> Result<Vec<u8>, Error> {
    let signature: dsa::Signature = key.try_sign_digest(sha1::Sha1::new_with_prefix(message))?;
    Ok(der::Encode::to_der(&signature)?)
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    #[test]
    fn the_parameters_of_dsa_are_those_of_the_seed() {
        let seed: String = Sha256::digest("Innkeeper: the parameters of DSA, 27")
            .iter()
            .map(|byte| format!("{byte:02x}"))
            .collect();
        let mut command = Command::new("openssl");
        command.args(["genpkey", "-quiet", "-genparam", "-algorithm", "DSA"]);
        for option in ["pbits:2048", "qbits:256", "type:fips186_4", "digest:SHA256", "gindex:1"] {
            command.args(["-pkeyopt", option]);
        }
        let output = command.args(["-pkeyopt", &format!("hexseed:{seed}")]).output().unwrap();
        let made = String::from_utf8_lossy(&output.stdout);
        assert_eq!(made, DSA_PARAMETERS, "{}", String::from_utf8_lossy(&output.stderr));
    }
}
