use std::time::{Duration, SystemTime};

use x509_cert::builder::profile::BuilderProfile;
use x509_cert::builder::{self, Builder, CertificateBuilder};
use x509_cert::certificate::TbsCertificate;
use x509_cert::der::oid::db::rfc5280;
use x509_cert::der::pem::LineEnding;
use x509_cert::der::{Decode, EncodePem};
use x509_cert::ext::pkix::{
    BasicConstraints, ExtendedKeyUsage, KeyUsage, KeyUsages, SubjectKeyIdentifier,
};
use x509_cert::ext::{Extension, ToExtension};
use x509_cert::name::Name;
use x509_cert::request::RequestBuilder;
use x509_cert::serial_number::SerialNumber;
use x509_cert::spki::{
    SignatureBitStringEncoding, SubjectPublicKeyInfoOwned, SubjectPublicKeyInfoRef,
};
use x509_cert::time::{Time, Validity};

use crate::error::Error;
use crate::hsm::Hsm;
use crate::subject::Subject;

pub(crate) fn request(hsm: &Hsm, subject: &Subject) -> Result<String, Error> {
    let mut builder = RequestBuilder::new(subject.name()?)?;
    builder.add_extension(&KeyUsage(KeyUsages::DigitalSignature.into()))?;
    builder.add_extension(&ExtendedKeyUsage(vec![rfc5280::ID_KP_CLIENT_AUTH]))?;
    if let Some(names) = subject.alternative_names()? {
        builder.add_extension(&names)?;
    }
    sign(hsm, builder)
}

pub(crate) fn self_signed(
    hsm: &Hsm,
    subject: &Subject,
    lifetime: Duration,
    now: SystemTime,
) -> Result<String, Error> {
    let profile = SelfSigned(subject.name()?);
    let key = SubjectPublicKeyInfoOwned::from_der(hsm.spki())?;
    let mut builder =
        CertificateBuilder::new(profile, serial_number()?, validity(lifetime, now)?, key)?;
    if let Some(names) = subject.alternative_names()? {
        builder.add_extension(&names)?;
    }
    sign(hsm, builder)
}

/// In three steps, so that a failed signature stays the error it is.
fn sign<B>(hsm: &Hsm, mut builder: B) -> Result<String, Error>
where
    B: Builder<Output: EncodePem>,
{
    let body = builder.finalize(hsm)?;
    let signature = hsm.sign(&body)?.to_der().to_bitstring()?;
    Ok(builder.assemble(signature, hsm)?.to_pem(LineEnding::LF)?)
}

/// An end entity's certificate that is its own issuer (RFC 5280, section 4.2;
/// the authority's key identifier may be left out there).
struct SelfSigned(Name);

impl BuilderProfile for SelfSigned {
    fn get_issuer(&self, subject: &Name) -> Name {
        subject.clone()
    }

    fn get_subject(&self) -> Name {
        self.0.clone()
    }

    fn build_extensions(
        &self,
        key: SubjectPublicKeyInfoRef<'_>,
        _issuer_key: SubjectPublicKeyInfoRef<'_>,
        _: &TbsCertificate,
    ) -> builder::Result<Vec<Extension>> {
        let constraints = BasicConstraints {
            ca: false,
            path_len_constraint: None,
        };
        let usage = KeyUsage(KeyUsages::DigitalSignature.into());
        let purpose = ExtendedKeyUsage(vec![rfc5280::ID_KP_CLIENT_AUTH]);
        Ok(vec![
            constraints.to_extension(&self.0, &[])?,
            usage.to_extension(&self.0, &[])?,
            SubjectKeyIdentifier::try_from(key)?.to_extension(&self.0, &[])?,
            purpose.to_extension(&self.0, &[])?,
        ])
    }
}

/// 16 bytes, the first from 40 to 7f: positive, never zero, always as long.
fn serial_number() -> Result<SerialNumber, Error> {
    let mut serial = [0; 16];
    getrandom::fill(&mut serial).map_err(|source| Error::Random { source })?;
    serial[0] = serial[0] & 0x3f | 0x40;
    Ok(SerialNumber::new(&serial)?)
}

fn validity(lifetime: Duration, now: SystemTime) -> Result<Validity, Error> {
    let refused = |problem| Err(Error::Validity { problem });
    if now < SystemTime::UNIX_EPOCH + CLOCK_SET {
        return refused("would begin before 2020: set this machine's clock first");
    }
    if lifetime < Duration::from_secs(1) {
        return refused("must be a second or longer");
    }
    if lifetime > MAX_LIFETIME {
        return refused("must be 100 years or shorter");
    }
    let (from, until) = (now - CLOCK_SKEW, now + lifetime);
    Ok(Validity::new(Time::try_from(from)?, Time::try_from(until)?))
}

/// 2020-01-01: before that, nobody has set the clock.
const CLOCK_SET: Duration = Duration::from_secs(1_577_836_800);

/// How far behind a server's clock may be and still accept a new certificate.
const CLOCK_SKEW: Duration = Duration::from_secs(60 * 60);

const MAX_LIFETIME: Duration = Duration::from_secs(100 * 365 * 24 * 60 * 60);

#[cfg(test)]
mod tests {
    use x509_cert::Certificate;
    use x509_cert::der::DecodePem;

    use super::*;
    use crate::fault::{Act, Chip};

    #[test]
    fn a_clock_that_nobody_has_set_begins_no_certificate() {
        let year = Duration::from_secs(365 * 24 * 60 * 60);
        let (chip, _closed) = Chip::new();
        let hsm = chip.open();
        for since in [Duration::ZERO, CLOCK_SET - Duration::from_secs(1)] {
            let now = SystemTime::UNIX_EPOCH + since;
            let error = self_signed(&hsm, &"pi-01".into(), year, now).unwrap_err();
            assert!(matches!(error, Error::Validity { .. }), "{error}");
        }
        assert_eq!(hsm.counters().signatures, 0);
        let now = SystemTime::UNIX_EPOCH + CLOCK_SET;
        self_signed(&hsm, &"pi-01".into(), year, now).unwrap();
    }

    /// To the end of 2049 in UTCTime, from then on in GeneralizedTime.
    #[test]
    fn it_lives_as_long_as_it_should() {
        let (chip, _closed) = Chip::new();
        let hsm = chip.open();
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(1_795_432_844);
        for lifetime in [Duration::from_secs(1), MAX_LIFETIME] {
            let pem = self_signed(&hsm, &"pi-01".into(), lifetime, now).unwrap();
            let certificate = Certificate::from_pem(pem).unwrap();
            let validity = certificate.tbs_certificate().validity();
            let from = validity.not_before.to_system_time();
            let until = validity.not_after.to_system_time();
            assert_eq!((from, until), (now - CLOCK_SKEW, now + lifetime));
            let utc = matches!(validity.not_after, Time::UtcTime(_));
            assert_eq!(utc, lifetime < MAX_LIFETIME);
        }
        let second = Duration::from_secs(1);
        for lifetime in [Duration::ZERO, second / 2, MAX_LIFETIME + second] {
            let error = self_signed(&hsm, &"pi-01".into(), lifetime, now).unwrap_err();
            assert!(matches!(error, Error::Validity { .. }), "{error}");
        }
    }

    #[test]
    fn a_failed_signature_is_the_error_it_is() {
        let (chip, _closed) = Chip::new();
        let hsm = chip.open();
        let bad = || chip.on_calls([Act::Corrupt(7), Act::Corrupt(8)]);
        bad();
        let error = hsm.csr("pi-01").unwrap_err();
        assert!(matches!(error, Error::BadSignature { .. }), "{error}");
        bad();
        let error = hsm.self_signed("pi-01", MAX_LIFETIME).unwrap_err();
        assert!(matches!(error, Error::BadSignature { .. }), "{error}");
    }
}
