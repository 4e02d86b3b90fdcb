//! What agent.toml names: owners, certificates, roots.

use std::fs;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use rustls::RootCertStore;
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::{self, PemObject};
use x509_cert::Certificate;
use x509_cert::der::Decode;
use x509_cert::der::oid::db::rfc4519::COMMON_NAME;
use x509_cert::ext::pkix::name::DirectoryString;
use zk_envelope::{DeviceId, OwnerPublicKey};

use crate::Error;

/// Reads an owner's public key, as in [`Owners::files`](crate::Owners::files).
///
/// # Errors
/// [`Error::File`], [`Error::Pem`].
pub fn owner(path: &Path) -> Result<OwnerPublicKey, Error> {
    let pem = fs::read_to_string(path).map_err(|e| Error::file(path, e))?;
    OwnerPublicKey::from_pem(&pem).map_err(|error| Error::Pem {
        path: path.into(),
        what: "owner's public key",
        detail: error.to_string(),
    })
}

/// Reads certificates in PEM, at least one, as in
/// [`Device::certificate`](crate::Device::certificate).
///
/// # Errors
/// [`Error::File`], [`Error::Pem`].
pub fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, Error> {
    let text = fs::read(path).map_err(|e| Error::file(path, e))?;
    let wrong = |detail: String| Error::Pem {
        path: path.into(),
        what: "certificate",
        detail,
    };
    let chain = CertificateDer::pem_slice_iter(&text)
        .collect::<Result<Vec<_>, _>>()
        .map_err(|error| wrong(pem_problem(&error)))?;
    if chain.is_empty() {
        Err(wrong("the file holds none".into()))
    } else {
        Ok(chain)
    }
}

/// In words, where the library shows bytes.
fn pem_problem(error: &pem::Error) -> String {
    match error {
        pem::Error::MissingSectionEnd { .. } => {
            "it breaks off before an END line; copy it again, all of it".to_owned()
        }
        pem::Error::IllegalSectionStart { .. } => {
            "a BEGIN line is not right; copy it again, all of it".to_owned()
        }
        error => error.to_string(),
    }
}

/// Returns when the first certificate of `chain`, which was read from `path`,
/// expires, if it is the device's own. Logs a warning if that is soon, or past.
///
/// # Errors
/// [`Error::Pem`], [`Error::OtherDevice`].
pub fn check_certificate(
    path: &Path,
    chain: &[CertificateDer<'_>],
    device: &DeviceId,
) -> Result<SystemTime, Error> {
    let der = chain.first().map(AsRef::as_ref).unwrap_or_default();
    let certificate = Certificate::from_der(der).map_err(|error| Error::Pem {
        path: path.into(),
        what: "certificate",
        detail: error.to_string(),
    })?;
    let certificate = certificate.tbs_certificate();
    let subject = certificate.subject();
    let names = subject.iter().filter(|part| part.oid == COMMON_NAME);
    let names = names.filter_map(|part| DirectoryString::try_from(&part.value).ok());
    let names: Vec<_> = names.map(|name| name.value().into_owned()).collect();
    if names != [device.as_str()] {
        return Err(Error::OtherDevice {
            path: path.into(),
            device: device.clone(),
            found: names.join(", "),
        });
    }
    let expires = certificate.validity().not_after.to_system_time();
    if let Some(what) = expiry(expires, SystemTime::now()) {
        tracing::warn!(path = %path.display(), "{what}");
    }
    Ok(expires)
}

/// What is to be said of a certificate that expires then: nothing until 30 days
/// before.
pub(crate) fn expiry(expires: SystemTime, now: SystemTime) -> Option<String> {
    match expires.duration_since(now) {
        Err(_) => Some(
            "the device's certificate has expired: records wait in the spool until there is a new \
             one, from zk-setup device add"
                .to_owned(),
        ),
        Ok(left) if left < SOON => Some(format!(
            "the device's certificate expires in {} days: zk-setup device add makes a new one",
            left.as_secs() / DAY.as_secs()
        )),
        Ok(_) => None,
    }
}

/// Says it again each day: who installs a device and forgets it reads no log of
/// months ago.
#[derive(Debug)]
pub(crate) struct Reminder {
    expires: Expires,
    said: Instant,
}

impl Reminder {
    /// Of a certificate of which it was said just now.
    pub(crate) fn new(expires: Expires) -> Self {
        Self {
            expires,
            said: Instant::now(),
        }
    }

    /// What is to be said, if it is time.
    pub(crate) fn due(&mut self, now: Instant, wall: SystemTime) -> Option<String> {
        if now.saturating_duration_since(self.said) < DAY {
            return None;
        }
        self.said = now;
        expiry(self.expires.get(), wall)
    }
}

/// When the certificate expires, which another certificate changes. Clones are the
/// same.
#[derive(Clone, Debug)]
pub(crate) struct Expires(Arc<Mutex<SystemTime>>);

impl Expires {
    pub(crate) fn new(expires: SystemTime) -> Self {
        Self(Arc::new(Mutex::new(expires)))
    }

    pub(crate) fn get(&self) -> SystemTime {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn set(&self, expires: SystemTime) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = expires;
    }
}

/// Reads trust roots in PEM, at least one, as in
/// [`Target::roots`](crate::Target::roots).
///
/// # Errors
/// [`Error::File`], [`Error::Pem`].
pub fn roots(path: &Path) -> Result<RootCertStore, Error> {
    let mut roots = RootCertStore::empty();
    for certificate in certificates(path)? {
        roots.add(certificate).map_err(|error| Error::Pem {
            path: path.into(),
            what: "root certificate",
            detail: error.to_string(),
        })?;
    }
    Ok(roots)
}

/// When an expiring certificate is worth a warning.
const SOON: Duration = Duration::from_secs(30 * 24 * 3600);
const DAY: Duration = Duration::from_secs(24 * 3600);

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn a_certificate_is_told_of_from_30_days_before_and_each_day_again() {
        let wall = SystemTime::now();
        let expires = wall + 31 * DAY - Duration::from_secs(1);
        let mut reminder = Reminder::new(Expires::new(expires));
        let start = Instant::now();
        let mut on = |day: u32, hours: u64| {
            let since = day * DAY + Duration::from_secs(hours * 3600);
            reminder.due(start + since, wall + since)
        };
        assert_eq!(on(0, 23), None);
        let said = on(1, 1).unwrap();
        assert!(said.contains("expires in 29 days"), "{said}");
        assert_eq!(on(1, 2), None);
        assert_eq!(on(2, 0), None);
        assert!(on(2, 1).unwrap().contains("expires in 28 days"));
        assert!(on(40, 0).unwrap().contains("has expired"));
        assert_eq!(expiry(expires, wall), None);
    }
}
