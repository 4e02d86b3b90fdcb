use x509_cert::attr::AttributeTypeAndValue;
use x509_cert::builder::Builder;
use x509_cert::der::asn1::Utf8StringRef;
use x509_cert::der::oid::db::{rfc4519, rfc5280};
use x509_cert::der::pem::LineEnding;
use x509_cert::der::{Any, Decode, Encode, EncodePem};
use x509_cert::ext::pkix::{ExtendedKeyUsage, KeyUsage, KeyUsages};
use x509_cert::name::{Name, RdnSequence, RelativeDistinguishedName};
use x509_cert::request::RequestBuilder;
use x509_cert::spki::SignatureBitStringEncoding;

use crate::error::Error;
use crate::hsm::Hsm;

pub(crate) fn request(hsm: &Hsm, common_name: &str) -> Result<String, Error> {
    let mut builder = RequestBuilder::new(subject(common_name)?)?;
    builder.add_extension(&KeyUsage(KeyUsages::DigitalSignature.into()))?;
    builder.add_extension(&ExtendedKeyUsage(vec![rfc5280::ID_KP_CLIENT_AUTH]))?;
    // in three steps, so that a failed signature stays the error it is
    let body = builder.finalize(hsm)?;
    let signature = hsm.sign(&body)?.to_der().to_bitstring()?;
    Ok(builder.assemble(signature, hsm)?.to_pem(LineEnding::LF)?)
}

/// `CN=<common_name>`, put together from its parts: a comma in the name is a
/// comma, and begins no further attribute.
fn subject(common_name: &str) -> Result<Name, Error> {
    let problem = match common_name.chars().count() {
        0 => Some("is empty"),
        65.. => Some("is too long"),
        _ if common_name.chars().any(char::is_control) => Some("has a control character"),
        _ => None,
    };
    if let Some(problem) = problem {
        return Err(Error::CommonName { problem });
    }
    let attribute = AttributeTypeAndValue {
        oid: rfc4519::CN,
        value: Any::encode_from(&Utf8StringRef::new(common_name)?)?,
    };
    let mut rdn = RelativeDistinguishedName::default();
    rdn.insert(attribute)?;
    let mut sequence = RdnSequence::default();
    sequence.push(rdn);
    Ok(Name::from_der(&sequence.to_der()?)?)
}
