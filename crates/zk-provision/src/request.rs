use p256::ecdsa::VerifyingKey;
use x509_cert::der::asn1::ObjectIdentifier;
use x509_cert::der::oid::db::rfc4519;
use x509_cert::der::pem::PemLabel;
use x509_cert::der::referenced::OwnedToRef;
use x509_cert::der::{self, Decode, pem};
use x509_cert::ext::pkix::name::DirectoryString;
use x509_cert::name::Name;
use x509_cert::request::{CertReq, CertReqInfo};
use zk_envelope::DeviceId;

use crate::signed::Signed;

/// A certificate request (PKCS#10, RFC 2986) that passed every check.
///
/// It keeps the device's name and its public key. Whatever else the request
/// asks for (other parts of the name, extensions, a password) is never looked
/// at, so it can't reach a certificate.
#[derive(Clone, Debug)]
pub struct CertificateRequest {
    device: DeviceId,
    key: VerifyingKey,
}

impl CertificateRequest {
    /// The largest request in PEM that is read, in bytes. One with a P-256 key
    /// has about 500.
    pub const MAX_LEN: usize = 16 * 1024;

    /// Reads one request in PEM (RFC 7468) and proves that it was signed by the
    /// key it carries.
    ///
    /// # Errors
    /// [`RequestError`] says which check failed: size, form, algorithm, key
    /// type, signature, or a common name that isn't `expected`.
    pub fn from_pem(text: &[u8], expected: &DeviceId) -> Result<Self, RequestError> {
        if text.len() > Self::MAX_LEN {
            return Err(RequestError::TooLarge {
                limit: Self::MAX_LEN,
            });
        }
        let (label, bytes) = pem::decode_vec(text).map_err(RequestError::Pem)?;
        if label != CertReq::PEM_LABEL {
            return Err(RequestError::Label {
                found: label.to_owned(),
            });
        }
        let signed = Signed::from_der(&bytes).map_err(RequestError::Der)?;
        if let Some(oid) = signed.foreign_algorithm() {
            return Err(RequestError::Algorithm { oid });
        }
        let info = CertReqInfo::from_der(signed.content).map_err(RequestError::Der)?;
        let key = VerifyingKey::try_from(info.public_key.owned_to_ref()).map_err(|_| {
            RequestError::Key {
                oid: info.public_key.algorithm.oid,
            }
        })?;
        if !signed.is_by(&key) {
            return Err(RequestError::Signature);
        }
        let found = common_name(&info.subject)?;
        if found != expected.as_str() {
            return Err(RequestError::Name {
                expected: expected.clone(),
                found,
            });
        }
        Ok(Self {
            device: expected.clone(),
            key,
        })
    }

    /// The device that the request names.
    #[must_use]
    pub fn device(&self) -> &DeviceId {
        &self.device
    }

    /// The key that signed the request.
    #[must_use]
    pub fn key(&self) -> &VerifyingKey {
        &self.key
    }
}

/// Why a certificate request was refused.
///
/// All of them need another request; trying the same one again can't help.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RequestError {
    /// It is signed with another algorithm.
    #[error("signed with {oid}: make the request with ECDSA P-256 and SHA-256")]
    Algorithm {
        /// The algorithm that it names.
        oid: ObjectIdentifier,
    },

    /// No single common name, or one that isn't text.
    #[error("the subject needs exactly one common name (CN), the device's name")]
    CommonName,

    /// The DER inside is no certificate request.
    #[error("not a certificate request; make one on the device: {MAKE}")]
    Der(#[source] der::Error),

    /// The key isn't a valid point on P-256.
    #[error("its key (algorithm {oid}) is not a P-256 key: devices sign with P-256")]
    Key {
        /// The key's algorithm.
        oid: ObjectIdentifier,
    },

    /// A PEM block of another kind, such as a certificate or a private key.
    #[error(
        "the PEM block is a {found}, not a CERTIFICATE REQUEST; make one on the device: {MAKE}"
    )]
    Label {
        /// The block's label.
        found: String,
    },

    /// The request is for another device.
    #[error("made for device {found:?}, not {expected}: request one with CN={expected}")]
    Name {
        /// The device that is being added.
        expected: DeviceId,
        /// The request's common name.
        found: String,
    },

    /// Not one PEM block with nothing after it.
    #[error("not a PEM file with one certificate request; make one on the device: {MAKE}")]
    Pem(#[source] pem::Error),

    /// It wasn't signed by the key it carries, or was changed since.
    #[error(
        "its signature does not verify: it was changed, or made with another key; copy it from the device again"
    )]
    Signature,

    /// More bytes than any real request has.
    #[error("longer than {limit} bytes: not a certificate request; make one on the device: {MAKE}")]
    TooLarge {
        /// The largest that is read.
        limit: usize,
    },
}

/// What makes a request of a key file.
const MAKE: &str = "`openssl req -new -key KEY -subj /CN=NAME -out FILE`";

fn common_name(subject: &Name) -> Result<String, RequestError> {
    let mut names = subject
        .iter()
        .filter(|attribute| attribute.oid == rfc4519::COMMON_NAME);
    match (names.next(), names.next()) {
        (Some(name), None) => DirectoryString::try_from(&name.value)
            .map(|text| text.value().into_owned())
            .map_err(|_| RequestError::CommonName),
        _ => Err(RequestError::CommonName),
    }
}
