//! Signed data (PKCS #7 v1.5, RFC 5652 §5).

use cms::cert::IssuerAndSerialNumber;
use cms::content_info::{CmsVersion, ContentInfo};
use cms::signed_data::{EncapsulatedContentInfo, SignedData, SignerIdentifier, SignerInfo, SignerInfos};
use der::asn1::{ObjectIdentifier, OctetString, SetOfVec};
use der::{Any, Encode};
use x509_cert::Certificate;
use x509_cert::spki::AlgorithmIdentifierOwned;

use crate::Error;

/// `id-data` and `id-signedData` (RFC 5652).
const DATA: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.113549.1.7.1");
const SIGNED_DATA: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.113549.1.7.2");
/// `sha-1` and `id-dsa-with-sha1` (RFC 3370).
const SHA1: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.3.14.3.2.26");
const DSA_SHA1: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.10040.4.3");
/// `id-sha256` (RFC 5754) and `rsaEncryption` (RFC 3370).
const SHA256: ObjectIdentifier = ObjectIdentifier::new_unwrap("2.16.840.1.101.3.4.2.1");
const RSA: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.113549.1.1.1");

pub fn sha1_algorithm() -> AlgorithmIdentifierOwned {
    AlgorithmIdentifierOwned { oid: SHA1, parameters: Some(Any::null()) }
}

pub fn dsa_algorithm() -> AlgorithmIdentifierOwned {
    AlgorithmIdentifierOwned { oid: DSA_SHA1, parameters: None }
}

pub fn sha256_algorithm() -> AlgorithmIdentifierOwned {
    AlgorithmIdentifierOwned { oid: SHA256, parameters: Some(Any::null()) }
}

pub fn rsa_algorithm() -> AlgorithmIdentifierOwned {
    AlgorithmIdentifierOwned { oid: RSA, parameters: Some(Any::null()) }
}

/// A document with its signature, in DER. As in EC2, the document is in it, and the certificate is not. The signature is
/// that of the document itself: there are no signed attributes, which data needs none of.
pub fn of(
    document: &[u8],
    signer: &Certificate,
    (digest, algorithm): (AlgorithmIdentifierOwned, AlgorithmIdentifierOwned),
    signature: Vec<u8>,
) -> Result<Vec<u8>, Error> {
    let signer = &signer.tbs_certificate;
    let signer =
        IssuerAndSerialNumber { issuer: signer.issuer.clone(), serial_number: signer.serial_number.clone() };
    let info = SignerInfo {
        version: CmsVersion::V1,
        sid: SignerIdentifier::IssuerAndSerialNumber(signer),
        digest_alg: digest.clone(),
        signed_attrs: None,
        signature_algorithm: algorithm,
        signature: OctetString::new(signature)?,
        unsigned_attrs: None,
    };
    let content = Any::encode_from(&OctetString::new(document)?)?;
    let data = SignedData {
        version: CmsVersion::V1,
        digest_algorithms: SetOfVec::try_from(vec![digest])?,
        encap_content_info: EncapsulatedContentInfo { econtent_type: DATA, econtent: Some(content) },
        certificates: None,
        crls: None,
        signer_infos: SignerInfos(SetOfVec::try_from(vec![info])?),
    };
    Ok(ContentInfo { content_type: SIGNED_DATA, content: Any::encode_from(&data)? }.to_der()?)
}
