//! Certificates (RFC 5280).

use std::str::FromStr;
use std::time::Duration;

use der::asn1::{BitString, GeneralizedTime, Ia5String, ObjectIdentifier, OctetString, UtcTime};
use der::{Decode, DecodePem, Encode};
use dsa::pkcs8::EncodePublicKey;
use jiff::{SignedDuration, Timestamp};
use rsa::pkcs1v15;
use rsa::rand_core::{OsRng, RngCore};
use rsa::signature::{Keypair, Signer};
use sha1::{Digest, Sha1};
use sha2::Sha256;
use x509_cert::ext::pkix::name::GeneralName;
use x509_cert::ext::pkix::{
    AuthorityKeyIdentifier, BasicConstraints, ExtendedKeyUsage, KeyUsage, KeyUsages, SubjectAltName,
    SubjectKeyIdentifier,
};
use x509_cert::ext::{AsExtension, Extension};
use x509_cert::name::Name;
use x509_cert::serial_number::SerialNumber;
use x509_cert::spki::{AlgorithmIdentifierOwned, SubjectPublicKeyInfoOwned};
use x509_cert::time::{Time, Validity};
use x509_cert::{Certificate, TbsCertificate, Version};

use crate::keys::sign_rsa;
use crate::{Error, ServerName};

/// How long an authority lasts: a century, as those of EC2 do.
const LIFE: SignedDuration = SignedDuration::from_hours(24 * 36_525);

/// Certificates begin before they are made, for clients whose clocks are late.
const EARLIER: SignedDuration = SignedDuration::from_hours(24);

/// `sha256WithRSAEncryption` (RFC 8017).
const RSA_SHA256: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.113549.1.1.11");
/// `id-dsa-with-sha256` (RFC 5758).
const DSA_SHA256: ObjectIdentifier = ObjectIdentifier::new_unwrap("2.16.840.1.101.3.4.3.2");
/// `id-kp-serverAuth` (RFC 5280).
const SERVER: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.3.6.1.5.5.7.3.1");

/// Who signs the certificates of others.
pub struct Issuer<'a> {
    /// The key.
    pub key: &'a pkcs1v15::SigningKey<Sha256>,
    /// Its certificate.
    pub certificate: &'a Certificate,
}

/// Reads a certificate in PEM.
pub fn read(what: &'static str, pem: &str) -> Result<Certificate, Error> {
    Certificate::from_pem(pem).map_err(|error| Error::Unreadable(what, error.to_string()))
}

/// That of the authority itself, by itself.
pub fn of_authority(
    region: &str,
    key: &pkcs1v15::SigningKey<Sha256>,
    now: Timestamp,
) -> Result<Certificate, Error> {
    let public = key.verifying_key().to_public_key_der()?;
    let name = Name::from_str(&format!("CN=Innkeeper {region},O=Innkeeper"))?;
    let mut own = Draft::new(rsa_sha256(), name.clone(), name, public.as_bytes(), century(now)?)?;
    own.add(BasicConstraints { ca: true, path_len_constraint: Some(0) })?;
    own.add(KeyUsage(KeyUsages::DigitalSignature | KeyUsages::KeyCertSign))?;
    own.sign(|bytes| sign_rsa(key, bytes))
}

/// That of a DSA key, by itself.
pub fn of_dsa(region: &str, key: &dsa::SigningKey, now: Timestamp) -> Result<Certificate, Error> {
    let public = key.verifying_key().to_public_key_der()?;
    let name = Name::from_str(&format!("CN=Innkeeper {region} DSA,O=Innkeeper"))?;
    let algorithm = AlgorithmIdentifierOwned { oid: DSA_SHA256, parameters: None };
    let mut own = Draft::new(algorithm, name.clone(), name, public.as_bytes(), century(now)?)?;
    own.add(BasicConstraints { ca: false, path_len_constraint: None })?;
    own.add(KeyUsage(KeyUsages::DigitalSignature.into()))?;
    own.sign(|bytes| {
        let signature: dsa::Signature = key.try_sign(bytes)?;
        Ok(signature.to_der()?)
    })
}

/// That of a server with this public key (in DER), valid as long as its issuer's.
pub fn of_server(
    issuer: Issuer<'_>,
    public: &[u8],
    names: &[ServerName<'_>],
    now: Timestamp,
) -> Result<Certificate, Error> {
    let authority = &issuer.certificate.tbs_certificate;
    let validity = Validity { not_before: time(now - EARLIER)?, not_after: authority.validity.not_after };
    let name = Name::from_str("CN=Innkeeper API,O=Innkeeper")?;
    let mut own = Draft::new(rsa_sha256(), authority.subject.clone(), name, public, validity)?;
    let key_identifier = key_identifier(&authority.subject_public_key_info)?;
    own.add(AuthorityKeyIdentifier { key_identifier: Some(key_identifier), ..Default::default() })?;
    own.add(BasicConstraints { ca: false, path_len_constraint: None })?;
    own.add(KeyUsage(KeyUsages::DigitalSignature.into()))?;
    own.add(ExtendedKeyUsage(vec![SERVER]))?;
    let names = names.iter().map(|name| match name {
        ServerName::Dns(name) => Ok(GeneralName::DnsName(Ia5String::new(name)?)),
        ServerName::Ip(address) => Ok(GeneralName::from(*address)),
    });
    own.add(SubjectAltName(names.collect::<Result<_, Error>>()?))?;
    own.sign(|bytes| sign_rsa(issuer.key, bytes))
}

/// A certificate that nobody has signed yet.
struct Draft(TbsCertificate);

impl Draft {
    /// `algorithm` is the one that it will be signed by.
    fn new(
        algorithm: AlgorithmIdentifierOwned,
        issuer: Name,
        subject: Name,
        public: &[u8],
        validity: Validity,
    ) -> Result<Self, Error> {
        let public = SubjectPublicKeyInfoOwned::from_der(public)?;
        let own_identifier = key_identifier(&public)?;
        let mut draft = Self(TbsCertificate {
            version: Version::V3,
            serial_number: serial_number()?,
            signature: algorithm,
            issuer,
            validity,
            subject,
            subject_public_key_info: public,
            issuer_unique_id: None,
            subject_unique_id: None,
            extensions: None,
        });
        draft.add(SubjectKeyIdentifier(own_identifier))?;
        Ok(draft)
    }

    fn add(&mut self, extension: impl AsExtension) -> Result<(), Error> {
        let extensions: &mut Vec<Extension> = self.0.extensions.get_or_insert_default();
        let extension = extension.to_extension(&self.0.subject, extensions)?;
        extensions.push(extension);
        Ok(())
    }

    fn sign(self, sign: impl FnOnce(&[u8]) -> Result<Vec<u8>, Error>) -> Result<Certificate, Error> {
        let signature = BitString::from_bytes(&sign(&self.0.to_der()?)?)?;
        let signature_algorithm = self.0.signature.clone();
        Ok(Certificate { tbs_certificate: self.0, signature_algorithm, signature })
    }
}

fn rsa_sha256() -> AlgorithmIdentifierOwned {
    AlgorithmIdentifierOwned { oid: RSA_SHA256, parameters: Some(der::Any::null()) }
}

/// The first way of RFC 5280 §4.2.1.2.
fn key_identifier(public: &SubjectPublicKeyInfoOwned) -> Result<OctetString, Error> {
    Ok(OctetString::new(Sha1::digest(public.subject_public_key.raw_bytes()).as_slice())?)
}

/// Random, and positive.
fn serial_number() -> Result<SerialNumber, Error> {
    let mut bytes = [0; 16];
    OsRng.fill_bytes(&mut bytes);
    bytes[0] = bytes[0] & 0x3f | 0x40;
    Ok(SerialNumber::new(&bytes)?)
}

fn century(now: Timestamp) -> Result<Validity, Error> {
    Ok(Validity { not_before: time(now - EARLIER)?, not_after: time(now + LIFE)? })
}

/// Until 2049 in the one form, and from then on in the other (RFC 5280 §4.1.2.5).
fn time(at: Timestamp) -> Result<Time, Error> {
    // A clock from before 1970 is not set.
    let since = Duration::from_secs(u64::try_from(at.as_second()).unwrap_or_default());
    Ok(match UtcTime::from_unix_duration(since) {
        Ok(time) => Time::UtcTime(time),
        Err(_) => Time::GeneralTime(GeneralizedTime::from_unix_duration(since)?),
    })
}
