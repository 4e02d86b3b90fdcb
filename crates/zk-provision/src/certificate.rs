use std::fmt;
use std::net::IpAddr;
use std::time::SystemTime;

use p256::ecdsa::VerifyingKey;
use rustls_pki_types::ServerName;
use x509_cert::der::pem::{self, LineEnding, PemLabel};
use x509_cert::der::referenced::OwnedToRef;
use x509_cert::der::{self, Decode};
#[cfg(feature = "aws")]
use x509_cert::ext::pkix::BasicConstraints;
use x509_cert::ext::pkix::SubjectAltName;
use x509_cert::ext::pkix::name::GeneralName;

use crate::signed::Signed;

/// An X.509 certificate with a P-256 key, as bytes and as what they say.
///
/// The bytes are kept as they came: a certificate's identity is a hash of them.
#[derive(Clone, PartialEq, Eq)]
pub struct Certificate {
    der: Vec<u8>,
    pem: String,
    parsed: x509_cert::Certificate,
    key: VerifyingKey,
}

impl Certificate {
    /// The certificate in DER.
    #[must_use]
    pub fn der(&self) -> &[u8] {
        &self.der
    }

    /// The certificate as one PEM block (RFC 7468).
    #[must_use]
    pub fn pem(&self) -> &str {
        &self.pem
    }

    /// SHA-256 of the DER in lower-case hex: the device's principal in a store,
    /// and what AWS IoT calls the certificate id.
    #[must_use]
    pub fn principal(&self) -> String {
        zk_verify::principal_of(&self.der)
    }

    /// The public key that it certifies.
    #[must_use]
    pub fn key(&self) -> &VerifyingKey {
        &self.key
    }

    /// The first instant at which it is no longer valid.
    #[must_use]
    pub fn not_after(&self) -> SystemTime {
        self.parsed
            .tbs_certificate()
            .validity()
            .not_after
            .to_system_time()
    }

    /// Whom it is about.
    pub(crate) fn subject(&self) -> String {
        self.parsed.tbs_certificate().subject().to_string()
    }

    /// Whether it may sign others.
    #[cfg(feature = "aws")]
    pub(crate) fn is_authority(&self) -> bool {
        let constraints = self
            .parsed
            .tbs_certificate()
            .get_extension::<BasicConstraints>();
        matches!(constraints, Ok(Some((_, constraints))) if constraints.ca)
    }

    /// The host names and addresses that it is for, in its order.
    #[must_use]
    pub fn names(&self) -> Vec<ServerName<'static>> {
        let names = self
            .parsed
            .tbs_certificate()
            .get_extension::<SubjectAltName>();
        let names = names
            .ok()
            .flatten()
            .map(|(_, names)| names.0)
            .unwrap_or_default();
        names.iter().filter_map(server_name).collect()
    }

    pub(crate) fn from_der(der: Vec<u8>) -> Result<Self, der::Error> {
        let parsed = x509_cert::Certificate::from_der(&der)?;
        let spki = parsed
            .tbs_certificate()
            .subject_public_key_info()
            .owned_to_ref();
        let key = VerifyingKey::try_from(spki).map_err(|_| der::ErrorKind::Failed)?;
        let pem = pem::encode_string(x509_cert::Certificate::PEM_LABEL, LineEnding::LF, &der)?;
        Ok(Self {
            der,
            pem,
            parsed,
            key,
        })
    }

    /// Reads exactly one PEM block.
    pub(crate) fn from_pem(text: &[u8]) -> Result<Self, der::Error> {
        let (label, der) = pem::decode_vec(text)?;
        if label != x509_cert::Certificate::PEM_LABEL {
            return Err(pem::Error::Label.into());
        }
        Self::from_der(der)
    }

    pub(crate) fn is_issued_by(&self, authority: &Self) -> bool {
        Signed::from_der(&self.der).is_ok_and(|signed| signed.is_by(&authority.key))
    }

    /// Whether less than a third of its life is left: time for a new one.
    pub(crate) fn is_due(&self, now: SystemTime) -> bool {
        let validity = self.parsed.tbs_certificate().validity();
        let (from, until) = (
            validity.not_before.to_system_time(),
            validity.not_after.to_system_time(),
        );
        let life = until.duration_since(from).unwrap_or_default();
        until.duration_since(now).unwrap_or_default() < life / 3
    }

    pub(crate) fn parsed(&self) -> &x509_cert::Certificate {
        &self.parsed
    }
}

impl fmt::Debug for Certificate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Certificate")
            .field(
                "subject",
                &self.parsed.tbs_certificate().subject().to_string(),
            )
            .field(
                "serial",
                &self.parsed.tbs_certificate().serial_number().to_string(),
            )
            .finish_non_exhaustive()
    }
}

fn server_name(name: &GeneralName) -> Option<ServerName<'static>> {
    match name {
        GeneralName::DnsName(name) => ServerName::try_from(name.to_string()).ok(),
        GeneralName::IpAddress(octets) => {
            let octets = octets.as_bytes();
            let v4 = <[u8; 4]>::try_from(octets).map(IpAddr::from);
            let address = v4.or_else(|_| <[u8; 16]>::try_from(octets).map(IpAddr::from));
            address.ok().map(ServerName::from)
        }
        _ => None,
    }
}
