use std::net::IpAddr;
use std::time::{Duration, SystemTime};

use getrandom::SysRng;
use getrandom::rand_core::TryRng;
use p256::SecretKey;
use p256::ecdsa::{DerSignature, SigningKey, VerifyingKey};
use rustls_pki_types::ServerName;
use x509_cert::builder::profile::BuilderProfile;
use x509_cert::builder::{self, Builder, CertificateBuilder};
use x509_cert::certificate::TbsCertificate;
use x509_cert::der::Encode;
use x509_cert::der::asn1::Ia5String;
use x509_cert::der::oid::db::rfc5280::{ID_KP_CLIENT_AUTH, ID_KP_SERVER_AUTH};
use x509_cert::ext::pkix::name::{GeneralName, GeneralNames};
use x509_cert::ext::pkix::{
    AuthorityKeyIdentifier, BasicConstraints, ExtendedKeyUsage, KeyUsage, KeyUsages,
    SubjectAltName, SubjectKeyIdentifier,
};
use x509_cert::ext::{Extension, ToExtension};
use x509_cert::name::Name;
use x509_cert::serial_number::SerialNumber;
use x509_cert::spki::{SubjectPublicKeyInfoOwned, SubjectPublicKeyInfoRef};
use x509_cert::time::{Time, Validity};
use zk_envelope::{DeviceId, KeyId};

use crate::{Certificate, Error};

/// A certificate authority, its key unlocked.
///
/// It signs end certificates only (`pathLenConstraint` 0), with ECDSA P-256 and
/// SHA-256, each with a random serial number of 126 bits. Certificates are
/// valid from an hour before `now`, for clocks that are behind, and never
/// longer than their authority.
#[derive(Debug)]
pub struct Authority {
    certificate: Certificate,
    key: SigningKey,
}

impl Authority {
    /// Makes the certificate of `key`, signed by itself: critical `CA:TRUE,
    /// pathlen:0`, critical `keyCertSign, cRLSign`, valid for 20 years.
    ///
    /// `role` begins the subject's common name; the first 8 digits of the
    /// [`KeyId`] end it, so that two authorities are never mistaken.
    pub(crate) fn new(role: &str, key: &SecretKey, now: SystemTime) -> Result<Self, Error> {
        let key = SigningKey::from(key);
        let id = KeyId::of(key.verifying_key()).to_string();
        let subject = subject(&format!("{role} {}", &id[..8]))?;
        let profile = Profile {
            subject,
            issuer: None,
            usage: Usage::Authority,
        };
        let validity = validity(now, AUTHORITY_LIFE, None)?;
        let certificate = sign(profile, key.verifying_key(), validity, &key)?;
        Ok(Self { certificate, key })
    }

    /// `None` if it isn't the key of the certificate.
    pub(crate) fn open(certificate: Certificate, key: &SecretKey) -> Option<Self> {
        let key = SigningKey::from(key);
        (key.verifying_key() == certificate.key()).then_some(Self { certificate, key })
    }

    /// The authority's own certificate.
    #[must_use]
    pub fn certificate(&self) -> &Certificate {
        &self.certificate
    }

    /// Signs a device's certificate: common name = the device's id, extended
    /// key usage `clientAuth`, valid for 10 years.
    ///
    /// This registers nothing: a gateway refuses the certificate until
    /// [`LocalSetup::add_device`](crate::LocalSetup::add_device) has run.
    ///
    /// # Errors
    /// [`Error::AuthorityExpired`], [`Error::Random`] if the system's random
    /// source fails, [`Error::CertificateEncoding`] if `now` is past the year 9999.
    pub fn issue_device(
        &self,
        device: &DeviceId,
        key: &VerifyingKey,
        now: SystemTime,
    ) -> Result<Certificate, Error> {
        self.issue(
            subject(device.as_str())?,
            Usage::Device,
            key,
            DEVICE_LIFE,
            now,
        )
    }

    /// Signs a gateway's certificate for the names and addresses it is reached
    /// at: extended key usage `serverAuth`, valid for 2 years.
    pub(crate) fn issue_gateway(
        &self,
        names: &[ServerName<'_>],
        key: &VerifyingKey,
        now: SystemTime,
    ) -> Result<Certificate, Error> {
        let names = names.iter().map(general_name).collect::<Result<_, _>>()?;
        self.issue(
            subject("zk gateway")?,
            Usage::Gateway(names),
            key,
            GATEWAY_LIFE,
            now,
        )
    }

    /// Signs the certificate that shows to AWS IoT that the authority's key is at
    /// hand: common name = `code`, for a key that nobody keeps, for a day.
    #[cfg(feature = "aws")]
    pub(crate) fn issue_proof(&self, code: &str, now: SystemTime) -> Result<Certificate, Error> {
        let key = SigningKey::from(&crate::keys::generate()?);
        self.issue(subject(code)?, Usage::Proof, key.verifying_key(), DAY, now)
    }

    fn issue(
        &self,
        subject: Name,
        usage: Usage,
        key: &VerifyingKey,
        life: Duration,
        now: SystemTime,
    ) -> Result<Certificate, Error> {
        let authority = self.certificate.parsed().tbs_certificate();
        let until = self.certificate.not_after();
        if until <= now {
            return Err(Error::AuthorityExpired {
                subject: authority.subject().to_string(),
            });
        }
        let profile = Profile {
            subject,
            issuer: Some(authority.subject().clone()),
            usage,
        };
        sign(profile, key, validity(now, life, Some(until))?, &self.key)
    }
}

/// The extensions of our kinds of certificate (RFC 5280, section 4.2).
struct Profile {
    subject: Name,
    issuer: Option<Name>,
    usage: Usage,
}

enum Usage {
    Authority,
    Device,
    Gateway(GeneralNames),
    #[cfg(feature = "aws")]
    Proof,
}

impl BuilderProfile for Profile {
    fn get_issuer(&self, subject: &Name) -> Name {
        self.issuer.clone().unwrap_or_else(|| subject.clone())
    }

    fn get_subject(&self) -> Name {
        self.subject.clone()
    }

    fn build_extensions(
        &self,
        key: SubjectPublicKeyInfoRef<'_>,
        issuer_key: SubjectPublicKeyInfoRef<'_>,
        _: &TbsCertificate,
    ) -> builder::Result<Vec<Extension>> {
        let ca = matches!(self.usage, Usage::Authority);
        let constraints = BasicConstraints {
            ca,
            path_len_constraint: ca.then_some(0),
        };
        let usage = if ca {
            KeyUsages::KeyCertSign | KeyUsages::CRLSign
        } else {
            KeyUsages::DigitalSignature.into()
        };
        let mut all = vec![
            constraints.to_extension(&self.subject, &[])?,
            KeyUsage(usage).to_extension(&self.subject, &[])?,
            SubjectKeyIdentifier::try_from(key)?.to_extension(&self.subject, &[])?,
            AuthorityKeyIdentifier::try_from(issuer_key)?.to_extension(&self.subject, &[])?,
        ];
        let purpose = match &self.usage {
            Usage::Authority => return Ok(all),
            #[cfg(feature = "aws")]
            Usage::Proof => return Ok(all),
            Usage::Device => ID_KP_CLIENT_AUTH,
            Usage::Gateway(names) => {
                all.push(SubjectAltName(names.clone()).to_extension(&self.subject, &[])?);
                ID_KP_SERVER_AUTH
            }
        };
        all.push(ExtendedKeyUsage(vec![purpose]).to_extension(&self.subject, &[])?);
        Ok(all)
    }
}

fn sign(
    profile: Profile,
    key: &VerifyingKey,
    validity: Validity,
    signer: &SigningKey,
) -> Result<Certificate, Error> {
    let serial = serial_number()?;
    let spki = SubjectPublicKeyInfoOwned::from_key(key).map_err(builder::Error::from)?;
    let signed = CertificateBuilder::new(profile, serial, validity, spki)?
        .build::<_, DerSignature>(signer)?;
    let der = signed.to_der().map_err(builder::Error::from)?;
    Ok(Certificate::from_der(der).map_err(builder::Error::from)?)
}

/// 16 bytes, the first from 40 to 7f: positive, never zero, always as long.
fn serial_number() -> Result<SerialNumber, Error> {
    let mut serial = [0; 16];
    SysRng.try_fill_bytes(&mut serial)?;
    serial[0] = serial[0] & 0x3f | 0x40;
    Ok(SerialNumber::new(&serial).map_err(builder::Error::from)?)
}

fn validity(now: SystemTime, life: Duration, limit: Option<SystemTime>) -> Result<Validity, Error> {
    clock_is_set(now)?;
    let from = now
        .checked_sub(CLOCK_SKEW)
        .unwrap_or(SystemTime::UNIX_EPOCH);
    // a time past what the system can count is refused below as past 9999
    let until = now.checked_add(life).unwrap_or(now);
    let until = limit.map_or(until, |limit| until.min(limit));
    let time = |instant| Time::try_from(instant).map_err(builder::Error::from);
    Ok(Validity::new(time(from)?, time(until)?))
}

pub(crate) fn clock_is_set(now: SystemTime) -> Result<(), Error> {
    if now < SystemTime::UNIX_EPOCH + CLOCK_SET {
        return Err(Error::ClockUnset { now });
    }
    Ok(())
}

fn subject(common_name: &str) -> Result<Name, Error> {
    Ok(format!("CN={common_name}")
        .parse::<Name>()
        .map_err(builder::Error::from)?)
}

fn general_name(name: &ServerName<'_>) -> Result<GeneralName, Error> {
    match name {
        ServerName::IpAddress(address) => Ok(IpAddr::from(*address).into()),
        name => {
            let name = Ia5String::new(&name.to_str().to_ascii_lowercase());
            Ok(GeneralName::DnsName(name.map_err(builder::Error::from)?))
        }
    }
}

const HOUR: Duration = Duration::from_secs(60 * 60);
#[cfg(feature = "aws")]
const DAY: Duration = HOUR.saturating_mul(24);
const YEAR: Duration = Duration::from_secs(365 * 24 * 60 * 60);

/// 2020-01-01: before that, nobody has set the clock.
const CLOCK_SET: Duration = Duration::from_secs(1_577_836_800);

/// How far behind a device's clock may be and still accept a new certificate.
const CLOCK_SKEW: Duration = HOUR;

const AUTHORITY_LIFE: Duration = YEAR.saturating_mul(20);
// A device may sit where nobody comes for years, and is shut out by its record
// in the store, not by a date.
const DEVICE_LIFE: Duration = YEAR.saturating_mul(10);
const GATEWAY_LIFE: Duration = YEAR.saturating_mul(2);
