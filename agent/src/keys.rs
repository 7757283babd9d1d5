//! Key pairs: making them, reading public keys in the forms that people have, and EC2's fingerprints.
//!
//! EC2 has three kinds of fingerprint, which is what tells its keys apart: of an RSA key that it has made, the SHA-1 of
//! the private key (DER, PKCS #8); of one that was imported, the MD5 of the public key (DER, SubjectPublicKeyInfo); of
//! an ed25519 key, the SHA-256 of the public key as OpenSSH has it.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use md5::{Digest, Md5};
use rsa::pkcs1::{EncodeRsaPrivateKey, LineEnding};
use rsa::pkcs8::{DecodePublicKey, EncodePrivateKey, EncodePublicKey};
use rsa::rand_core::OsRng;
use rsa::{BigUint, RsaPrivateKey, RsaPublicKey};
use sha1::Sha1;
use sha2::Sha256;
use ssh_key::public::{KeyData, RsaPublicKey as SshRsaPublicKey};
use ssh_key::{Algorithm, PrivateKey, PublicKey};

/// The size of the RSA keys that EC2 makes.
const RSA_BITS: usize = 2048;

/// The sizes that it takes.
const IMPORTED_RSA_BITS: [usize; 3] = [1024, 2048, 4096];

/// Which algorithm a key is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KeyType {
    /// RSA.
    Rsa,
    /// Ed25519.
    Ed25519,
}

impl KeyType {
    /// EC2's name for it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Rsa => "rsa",
            Self::Ed25519 => "ed25519",
        }
    }

    /// The type with this name.
    pub fn named(name: &str) -> Option<Self> {
        [Self::Rsa, Self::Ed25519].into_iter().find(|key_type| key_type.name() == name)
    }
}

/// The public half of a key pair.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Public {
    /// Which algorithm it is for.
    pub key_type: KeyType,
    /// As EC2 computes it.
    pub fingerprint: String,
    /// In OpenSSH's one-line form, with the pair's name behind.
    pub line: String,
}

/// Why there is no key.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// It cannot be read.
    #[error(
        "it is neither an OpenSSH public key, nor one in the form of RFC 4716, nor a PEM or DER public key"
    )]
    Unreadable,
    /// It is for another algorithm.
    #[error("it is for {0}, and only RSA and ed25519 keys are supported")]
    Algorithm(String),
    /// It has a size that EC2 does not take.
    #[error("it has {0} bits, and RSA keys must have 1024, 2048 or 4096")]
    Size(usize),
    /// The cryptography failed.
    #[error("cannot make a key: {0}")]
    Failed(String),
}

/// Makes a key pair. The private half is in the form in which EC2 hands it out, once: PKCS #1 or OpenSSH's, both PEM.
pub fn generate(key_type: KeyType, name: &str) -> Result<(Public, String), Error> {
    match key_type {
        KeyType::Rsa => {
            let private = RsaPrivateKey::new(&mut OsRng, RSA_BITS).map_err(failed)?;
            let fingerprint = created_rsa_fingerprint(&private)?;
            let line = line(rsa_key_data(&private.to_public_key())?, name)?;
            let pem = private.to_pkcs1_pem(LineEnding::LF).map_err(failed)?;
            Ok((Public { key_type, fingerprint, line }, pem.to_string()))
        }
        KeyType::Ed25519 => {
            let private = PrivateKey::random(&mut OsRng, Algorithm::Ed25519).map_err(failed)?;
            let key = private.public_key().key_data().clone();
            let fingerprint = ed25519_fingerprint(&key)?;
            let pem = private.to_openssh(LineEnding::LF).map_err(failed)?;
            Ok((Public { key_type, fingerprint, line: line(key, name)? }, pem.to_string()))
        }
    }
}

/// Reads a public key.
pub fn import(material: &[u8], name: &str) -> Result<Public, Error> {
    match read(material)? {
        KeyData::Rsa(key) => {
            let number = |bytes: &ssh_key::Mpint| BigUint::try_from(bytes).map_err(|_| Error::Unreadable);
            let (modulus, exponent) = (number(&key.n)?, number(&key.e)?);
            let bits = modulus.bits();
            if !IMPORTED_RSA_BITS.contains(&bits) {
                return Err(Error::Size(bits));
            }
            let public = RsaPublicKey::new(modulus, exponent).map_err(|_| Error::Unreadable)?;
            Ok(Public {
                key_type: KeyType::Rsa,
                fingerprint: imported_rsa_fingerprint(&public)?,
                line: line(KeyData::Rsa(key), name)?,
            })
        }
        key @ KeyData::Ed25519(_) => Ok(Public {
            key_type: KeyType::Ed25519,
            fingerprint: ed25519_fingerprint(&key)?,
            line: line(key, name)?,
        }),
        other => Err(Error::Algorithm(other.algorithm().to_string())),
    }
}

fn read(material: &[u8]) -> Result<KeyData, Error> {
    // A DER key is the only form that is no text.
    let Ok(text) = std::str::from_utf8(material) else {
        return rsa_key_data(&RsaPublicKey::from_public_key_der(material).map_err(|_| Error::Unreadable)?);
    };
    let text = text.trim();
    if text.starts_with("-----BEGIN PUBLIC KEY-----") {
        let key = RsaPublicKey::from_public_key_pem(text).map_err(|_| Error::Unreadable)?;
        return rsa_key_data(&key);
    }
    if text.starts_with("---- BEGIN SSH2 PUBLIC KEY ----") {
        let blob = STANDARD.decode(rfc4716_body(text)).map_err(|_| Error::Unreadable)?;
        return PublicKey::from_bytes(&blob).map(KeyData::from).map_err(|_| Error::Unreadable);
    }
    if let Ok(key) = PublicKey::from_openssh(text) {
        return Ok(KeyData::from(key));
    }
    let der = STANDARD.decode(text.split_whitespace().collect::<String>()).map_err(|_| Error::Unreadable)?;
    rsa_key_data(&RsaPublicKey::from_public_key_der(&der).map_err(|_| Error::Unreadable)?)
}

/// The base64 of a key in the form of RFC 4716: without the markers and the headers, which a backslash continues.
fn rfc4716_body(text: &str) -> String {
    let mut body = String::new();
    let mut in_header = false;
    for text_line in text.lines().map(str::trim_end).filter(|text_line| !text_line.starts_with("----")) {
        if in_header || text_line.contains(':') {
            in_header = text_line.ends_with('\\');
        } else {
            body.push_str(text_line);
        }
    }
    body
}

fn rsa_key_data(key: &RsaPublicKey) -> Result<KeyData, Error> {
    SshRsaPublicKey::try_from(key).map(KeyData::Rsa).map_err(failed)
}

fn line(key: KeyData, name: &str) -> Result<String, Error> {
    PublicKey::new(key, name).to_openssh().map_err(failed)
}

fn created_rsa_fingerprint(key: &RsaPrivateKey) -> Result<String, Error> {
    let der = key.to_pkcs8_der().map_err(failed)?;
    Ok(with_colons(&Sha1::digest(der.as_bytes())))
}

fn imported_rsa_fingerprint(key: &RsaPublicKey) -> Result<String, Error> {
    let der = key.to_public_key_der().map_err(failed)?;
    Ok(with_colons(&Md5::digest(der.as_bytes())))
}

fn ed25519_fingerprint(key: &KeyData) -> Result<String, Error> {
    let blob = PublicKey::new(key.clone(), "").to_bytes().map_err(failed)?;
    Ok(STANDARD.encode(Sha256::digest(&blob)))
}

fn with_colons(bytes: &[u8]) -> String {
    let pairs: Vec<String> = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
    pairs.join(":")
}

fn failed(error: impl std::fmt::Display) -> Error {
    Error::Failed(error.to_string())
}

#[cfg(test)]
mod tests {
    use rsa::pkcs1::DecodeRsaPrivateKey;

    use super::*;

    // Made for these tests with openssl and ssh-keygen, which also say what their fingerprints are.
    const RSA_2048: &str = "ssh-rsa AAAAB3NzaC1yc2EAAAADAQABAAABAQDSC9W2Yu+cZbvqlyvC6HrbcjtobBQTBX1yWMp+2PXomPHE3dJ/17J99VWsdss0HTOc\
         ju5rZ5RJNwV0PubLVKYn+qY6VnoYn67vHZhgRJkX5I9NgFn0bYpLKamHzcvXSU7XFcIM1kuvjN0c5Ei4nIf/KuDksQg4IZ0O\
         5cdp6F+GiEiALUwn6R5YV+c02e8G1Nt/EoMPvCd12jYpt7xN0vAA3XgCQ5k6ux/pp820OmYTslXFT6fhupABhBpmv5DwLem9\
         rc0kIHKxCemBVcJmg2snqUWb3RA1Ix3ioWUvSK0s8lQLxdye8vnJKDfImiSL7I/lopNpjZSp0h3WYM+1GloH";
    const RSA_2048_SPKI: &str = "-----BEGIN PUBLIC KEY-----
MIIBIjANBgkqhkiG9w0BAQEFAAOCAQ8AMIIBCgKCAQEA0gvVtmLvnGW76pcrwuh6
23I7aGwUEwV9cljKftj16JjxxN3Sf9eyffVVrHbLNB0znI7ua2eUSTcFdD7my1Sm
J/qmOlZ6GJ+u7x2YYESZF+SPTYBZ9G2KSymph83L10lO1xXCDNZLr4zdHORIuJyH
/yrg5LEIOCGdDuXHaehfhohIgC1MJ+keWFfnNNnvBtTbfxKDD7wnddo2Kbe8TdLw
AN14AkOZOrsf6afNtDpmE7JVxU+n4bqQAYQaZr+Q8C3pva3NJCBysQnpgVXCZoNr
J6lFm90QNSMd4qFlL0itLPJUC8XcnvL5ySg3yJoki+yP5aKTaY2UqdId1mDPtRpa
BwIDAQAB
-----END PUBLIC KEY-----";
    const RSA_2048_RFC4716: &str = r#"---- BEGIN SSH2 PUBLIC KEY ----
Comment: "A comment \
 that goes on: here"
AAAAB3NzaC1yc2EAAAADAQABAAABAQDSC9W2Yu+cZbvqlyvC6HrbcjtobBQTBX1yWMp+2P
XomPHE3dJ/17J99VWsdss0HTOcju5rZ5RJNwV0PubLVKYn+qY6VnoYn67vHZhgRJkX5I9N
gFn0bYpLKamHzcvXSU7XFcIM1kuvjN0c5Ei4nIf/KuDksQg4IZ0O5cdp6F+GiEiALUwn6R
5YV+c02e8G1Nt/EoMPvCd12jYpt7xN0vAA3XgCQ5k6ux/pp820OmYTslXFT6fhupABhBpm
v5DwLem9rc0kIHKxCemBVcJmg2snqUWb3RA1Ix3ioWUvSK0s8lQLxdye8vnJKDfImiSL7I
/lopNpjZSp0h3WYM+1GloH
---- END SSH2 PUBLIC KEY ----"#;
    const RSA_1024: &str = "ssh-rsa AAAAB3NzaC1yc2EAAAADAQABAAAAgQDDRAQ4jKVb4OiZrK0jeoDC1dUOhIFls05bAJQBQTQziSeVgxLYeXmOU2aZ2b8E5Rrq\
         0usSfWl5fTDK8WjrpWonIT7UeqmXI3GbuxIWsjwSDebA3bpiRkESwER9P2VT18Hc4EsPm1rdLLaviLhuJwHsyOIh41j0Fhw1\
         Hqj9iKN+Ew== someone@somewhere";
    const RSA_3072: &str = "ssh-rsa AAAAB3NzaC1yc2EAAAADAQABAAABgQDBilyuoCiYaBsrzwq5z/QgEK2zS9PNRK6JL3ST0AsjaHP9NCI+M7NgWVUglaJpRU0B\
         vZQlmZoGms80/b36Tn8sKVi0LEU1Fwp8WwBx1hCeNVGEsuJ2YIEdszzE1z3HQxpw0W+24JvON+3fIHeMr//L8pOqydjKOwnv\
         pRy06l0IWXD+wio9Q4vcyytUQ6pc2T5vDBTEUFietB+iws+OzCnDMPZWjgCicv9kWVA7OYDkWygl9Lx98vP/qznbS85cIbXw\
         72b8Rx576jYPIrwQbVlxdKyNWrW9t4jUotvkThPBQiGztDcqtDP045E4MgeZAy7PsnZl57v6t8Ca9jOvtpKmhoRYYSzYz+cV\
         0E8dKdSw6nHOYL/4AqeG28M+AIRTrzyOipYFn8ngZ5f4bNgvduvrTOY35Uk+7q89rAaevLzxa1Fs40ftb1vVgxPu1Ozy1QGJ\
         506UpuxtbbjK5LFGpCFhKvO4MVTMzKHnEIg2AH4RA7UuUwZtW0eKFE+Yan6N3Zk=";
    const ECDSA: &str = "ecdsa-sha2-nistp256 AAAAE2VjZHNhLXNoYTItbmlzdHAyNTYAAAAIbmlzdHAyNTYAAABBBAnrxPDhiQ3684mBEO+4yFM303OCcJDKIW05onD4os2G\
         00UrQfj147IZazXiMpH68ShIoAeKxF9/ky30vuzVKg4=";
    const ED25519: &str = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIDBbLXHmMe3Dr2sX2T2WT9v+SsS7bREjryOgujhBWRF7";

    const PRIVATE: &str = "-----BEGIN RSA PRIVATE KEY-----
MIICWwIBAAKBgQC/lP9ax6CmvHnsKjGcSwGDc858aKIleIqlnlRBehIGVUBXivRW
apVxLw1d2dykdfE4r3QwXD79CWMCEbN57fLjC+FL4lpsxf2g9arKE0voAI4Af6bp
k2j23oEq5FNsq/jfAhWf2JK6SOowKDni9cq4kxGz+t/84cWi6LTi3PQ2EwIDAQAB
AoGAJftjONs1BXl+boza8xKHxUjzWgTgiK9CRZ2DNMv/wNOsAu8gi/VrlVnvu3iS
3uQnI8bdMS1Iq5/tyh46R+Ud7v78En54RqOuRwGB3hRbz1+4QghktquHaSIGsnOx
Wqz6pkY6ODqjNP9hvRyLLJUmulm78c2+nKfCiQ6KSRDDorkCQQD8mneJrKBIQ4xJ
WZaKlE6ZgVycWaOkdlpw8jptaQF7O0Tdvl871Tcu5cdIdrfZRNqrh1pKGKTBmUM6
vsQqxdqnAkEAwih6QQUt2BYKWmAQwQK2Rs2OayiQvZceC3sHqrfuvX3q0+xqB9Y1
AeLnrS3qk/S0niQpEeLcgJNxfU7jqkQytQJAbfkB2dph3ZQq2zQ5qhNvNL1xCFCu
QceVEF8kuMVic7gV/0QGShJFeBFpdU7aM6kaWlsPH/sin3aOImEzHjwNOQJAB0Xq
5nqiMAELXD1TA1ftqhNTLXJ0kZWSm419SQjg2ZpY7J1jj22XyL1OPm+E5Qv6pB3o
p/HenrZnPvFwl9U8LQJAVgyQW0oP25w1qP7ZuSL0IEgbLeQx2PeBklwC4qcRr8ln
0c7AUDCx6RaMFIYCB1dHIZeJpUdckRUYB2hMbkKutg==
-----END RSA PRIVATE KEY-----";

    #[test]
    fn an_imported_key_has_the_fingerprint_of_its_public_half() {
        let rsa_2048 = "b0:b4:b1:70:23:3a:c3:93:29:eb:07:47:05:9a:66:78";
        for (material, key_type, fingerprint) in [
            (RSA_2048, KeyType::Rsa, rsa_2048),
            (RSA_2048_SPKI, KeyType::Rsa, rsa_2048),
            (RSA_2048_RFC4716, KeyType::Rsa, rsa_2048),
            (RSA_1024, KeyType::Rsa, "ce:50:b4:28:d2:0e:f3:2a:ad:fc:64:07:49:cf:ab:16"),
            (ED25519, KeyType::Ed25519, "+DRqrik3NAjTUPTMP/wPawGQvAs6spGyRpkprWtc+cM="),
        ] {
            let public = import(material.as_bytes(), "mine").unwrap();
            assert_eq!((public.key_type, &*public.fingerprint), (key_type, fingerprint), "{material}");
            assert!(public.line.ends_with(" mine"), "{}", public.line);
        }
        assert_eq!(import(RSA_2048.as_bytes(), "mine").unwrap().line, format!("{RSA_2048} mine"));
    }

    #[test]
    fn other_keys_are_refused() {
        for (material, reason) in [
            ("", "it is neither"),
            ("ssh-rsa AAAA", "it is neither"),
            ("hello", "it is neither"),
            (RSA_3072, "it has 3072 bits"),
            (ECDSA, "it is for ecdsa-sha2-nistp256"),
            (PRIVATE, "it is neither"),
        ] {
            let error = import(material.as_bytes(), "mine").unwrap_err().to_string();
            assert!(error.starts_with(reason), "{material}: {error}");
        }
    }

    #[test]
    fn a_made_rsa_key_has_the_fingerprint_of_its_private_half() {
        let private = RsaPrivateKey::from_pkcs1_pem(PRIVATE).unwrap();
        assert_eq!(
            created_rsa_fingerprint(&private).unwrap(),
            "a4:3d:ed:e8:a1:4a:6a:52:f1:dd:fe:57:18:e4:19:bd:cb:48:4c:f9"
        );
    }

    #[test]
    fn keys_are_made_in_the_forms_of_ec2() {
        for (key_type, start, length) in [
            (KeyType::Rsa, "-----BEGIN RSA PRIVATE KEY-----\n", 59),
            (KeyType::Ed25519, "-----BEGIN OPENSSH PRIVATE KEY-----\n", 44),
        ] {
            let (public, private) = generate(key_type, "mine").unwrap();
            assert!(private.starts_with(start), "{private}");
            assert_eq!(public.fingerprint.len(), length);
            let again = import(public.line.as_bytes(), "mine").unwrap();
            assert_eq!((again.key_type, again.line), (key_type, public.line));
        }
    }
}
