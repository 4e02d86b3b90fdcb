//! The gateway's side of TLS: who it is, and whose certificates it takes.

use std::fmt;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::Arc;
use std::time::SystemTime;

use rustls::crypto::aws_lc_rs;
use rustls::server::danger::ClientCertVerifier;
use rustls::server::{ServerSessionMemoryCache, WebPkiClientVerifier};
use rustls::{RootCertStore, ServerConfig};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, UnixTime};
use x509_cert::Certificate;
use x509_cert::der::Decode;

use crate::config::TlsFiles;
use crate::error::Error;

/// Who the gateway is, and whose certificates it takes: TLS 1.2 and 1.3, and
/// no client without a certificate.
///
/// A device with a slow chip saves a signature by resuming its session. The
/// certificate of a resumed session is checked again all the same: it may have
/// expired, or its authority been taken out, in between.
#[derive(Clone)]
pub struct Tls {
    config: Arc<ServerConfig>,
    verifier: Arc<dyn ClientCertVerifier>,
    expires: SystemTime,
}

impl Tls {
    /// Reads the certificate, the key and the authorities.
    ///
    /// # Errors
    ///
    /// [`Error`] names the file, what is wrong with it, and the cure.
    pub fn load(files: &TlsFiles) -> Result<Self, Error> {
        let chain = certificates("certificate", &files.certificate)?;
        let key = private_key(&files.key)?;
        let mut roots = RootCertStore::empty();
        for root in certificates("device CA", &files.device_ca)? {
            roots
                .add(root)
                .map_err(|error| pem_error("device CA", &files.device_ca, error))?;
        }
        let expires = Certificate::from_der(&chain[0])
            .map_err(|error| pem_error("certificate", &files.certificate, error))?
            .tbs_certificate()
            .validity()
            .not_after
            .to_system_time();

        let provider = Arc::new(aws_lc_rs::default_provider());
        let tls = |source| Error::Tls {
            path: files.certificate.clone(),
            source,
        };
        let verifier =
            WebPkiClientVerifier::builder_with_provider(Arc::new(roots), Arc::clone(&provider))
                .build()
                .map_err(|error| pem_error("device CA", &files.device_ca, error))?;
        let mut config = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(tls)?
            .with_client_cert_verifier(Arc::clone(&verifier))
            .with_single_cert(chain, key)
            .map_err(|error| match error {
                rustls::Error::InconsistentKeys(_) => Error::CertificateAndKey {
                    certificate: files.certificate.clone(),
                    key: files.key.clone(),
                },
                error => tls(error),
            })?;
        // A client that offers none of these is served too; one that offers
        // only others, such as h2, is told so in the handshake.
        config.alpn_protocols = [&b"x-amzn-http-ca"[..], b"http/1.1", b"http/1.0"]
            .map(<[u8]>::to_vec)
            .to_vec();
        config.session_storage = ServerSessionMemoryCache::new(SESSIONS);
        Ok(Self {
            config: Arc::new(config),
            verifier,
            expires,
        })
    }

    /// When the gateway's own certificate expires.
    pub fn expires(&self) -> SystemTime {
        self.expires
    }

    pub(crate) fn config(&self) -> Arc<ServerConfig> {
        Arc::clone(&self.config)
    }

    /// Checks once more what the handshake of a resumed session did not.
    pub(crate) fn still_accepts(&self, chain: &[CertificateDer<'_>]) -> bool {
        chain.split_first().is_some_and(|(leaf, intermediates)| {
            self.verifier
                .verify_client_cert(leaf, intermediates, UnixTime::now())
                .is_ok()
        })
    }
}

impl fmt::Debug for Tls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tls")
            .field("expires", &self.expires)
            .finish_non_exhaustive()
    }
}

/// At least one certificate.
fn certificates(what: &'static str, path: &Path) -> Result<Vec<CertificateDer<'static>>, Error> {
    let pem = fs::read(path).map_err(|error| Error::unreadable(what, path, error))?;
    let certificates: Vec<_> = CertificateDer::pem_slice_iter(&pem)
        .collect::<Result<_, _>>()
        .map_err(|error| pem_error(what, path, error))?;
    if certificates.is_empty() {
        return Err(pem_error(
            what,
            path,
            "it holds no certificate in PEM (BEGIN CERTIFICATE)",
        ));
    }
    Ok(certificates)
}

fn private_key(path: &Path) -> Result<PrivateKeyDer<'static>, Error> {
    let unreadable = |error| Error::unreadable("TLS key", path, error);
    let found = fs::metadata(path).map_err(unreadable)?;
    let mode = found.mode() & 0o7777;
    // As with sshd: whose key it is can make it his alone. Only who runs without
    // owning it, as with a systemd credential, has it by its group.
    let own = found.uid() == rustix::process::geteuid().as_raw();
    if mode & if own { 0o077 } else { 0o027 } != 0 {
        return Err(Error::KeyExposed {
            path: path.to_owned(),
            mode,
        });
    }
    let pem = fs::read(path).map_err(unreadable)?;
    PrivateKeyDer::from_pem_slice(&pem).map_err(|error| {
        let encrypted = pem.windows(ENCRYPTED.len()).any(|window| window == ENCRYPTED);
        if encrypted {
            pem_error(
                "TLS key",
                path,
                "it is encrypted; the gateway starts without anybody to ask, so give it the \
                 plain key in a file of its own, readable for nobody else (openssl pkey -in … -out …)",
            )
        } else {
            pem_error("TLS key", path, error)
        }
    })
}

fn pem_error(what: &'static str, path: &Path, reason: impl fmt::Display) -> Error {
    Error::Pem {
        what,
        path: path.to_owned(),
        reason: reason.to_string(),
    }
}

const ENCRYPTED: &[u8] = b"BEGIN ENCRYPTED PRIVATE KEY";

/// Sessions that can be resumed, each of them a few kilobytes.
const SESSIONS: usize = 4096;

#[cfg(test)]
mod tests {
    use super::*;
    use rcgen::{CertificateParams, CertifiedIssuer, IsCa, KeyPair, date_time_ymd};

    /// What the handshake of a resumed session leaves out.
    #[test]
    fn a_chain_is_checked_as_of_now() {
        let authority = |name: &str| {
            let mut params = CertificateParams::default();
            params
                .distinguished_name
                .push(rcgen::DnType::CommonName, name);
            params.is_ca = IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
            CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap()
        };
        let (ours, another) = (authority("ours"), authority("another"));
        let leaf = |ca: &CertifiedIssuer<'_, KeyPair>, year| {
            let mut params = CertificateParams::default();
            params.not_before = date_time_ymd(2020, 1, 1);
            params.not_after = date_time_ymd(year, 1, 1);
            params.extended_key_usages = vec![rcgen::ExtendedKeyUsagePurpose::ClientAuth];
            let key = KeyPair::generate().unwrap();
            params.signed_by(&key, ca).unwrap().der().clone()
        };

        let directory = tempfile::tempdir().unwrap();
        let path = |name| directory.path().join(name);
        let files = TlsFiles {
            certificate: path("certificate"),
            key: path("key"),
            device_ca: path("device-ca"),
        };
        let key = KeyPair::generate().unwrap();
        let own = CertificateParams::default().self_signed(&key).unwrap();
        fs::write(&files.certificate, own.pem()).unwrap();
        fs::write(&files.key, key.serialize_pem()).unwrap();
        fs::set_permissions(
            &files.key,
            std::os::unix::fs::PermissionsExt::from_mode(0o600),
        )
        .unwrap();
        fs::write(&files.device_ca, ours.pem()).unwrap();
        let tls = Tls::load(&files).unwrap();

        assert!(tls.still_accepts(&[leaf(&ours, 4000)]));
        assert!(!tls.still_accepts(&[leaf(&ours, 2021)]));
        assert!(!tls.still_accepts(&[leaf(&another, 4000)]));
        assert!(!tls.still_accepts(&[]));
    }
}
