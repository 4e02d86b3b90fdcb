use p256::ecdsa::signature::Verifier;
use p256::ecdsa::{DerSignature, VerifyingKey};
use x509_cert::der::asn1::{BitStringRef, ObjectIdentifier};
use x509_cert::der::oid::db::rfc5912::ECDSA_WITH_SHA_256;
use x509_cert::der::{self, Decode, Reader, SliceReader};
use x509_cert::spki::AlgorithmIdentifierRef;

/// The frame that certificates and certificate requests share: `SEQUENCE {
/// content, signatureAlgorithm, signature }` (RFC 5280 section 4.1, RFC 2986
/// section 4), with the content as the bytes that came.
pub(crate) struct Signed<'a> {
    pub(crate) content: &'a [u8],
    algorithm: AlgorithmIdentifierRef<'a>,
    signature: BitStringRef<'a>,
}

impl<'a> Signed<'a> {
    pub(crate) fn from_der(bytes: &'a [u8]) -> der::Result<Self> {
        let mut reader = SliceReader::new(bytes)?;
        let signed = reader.sequence(|inner: &mut SliceReader<'a>| {
            der::Result::Ok(Self {
                content: inner.tlv_bytes()?,
                algorithm: AlgorithmIdentifierRef::decode(inner)?,
                signature: BitStringRef::decode(inner)?,
            })
        })?;
        reader.finish()?;
        Ok(signed)
    }

    /// The algorithm, if it is another than ECDSA with SHA-256 (RFC 5758: an
    /// identifier without parameters).
    pub(crate) fn foreign_algorithm(&self) -> Option<ObjectIdentifier> {
        let ours = self.algorithm.oid == ECDSA_WITH_SHA_256 && self.algorithm.parameters.is_none();
        (!ours).then_some(self.algorithm.oid)
    }

    pub(crate) fn is_by(&self, key: &VerifyingKey) -> bool {
        self.foreign_algorithm().is_none()
            && self
                .signature
                .as_bytes()
                .and_then(|bytes| DerSignature::try_from(bytes).ok())
                .is_some_and(|signature| key.verify(self.content, &signature).is_ok())
    }
}
