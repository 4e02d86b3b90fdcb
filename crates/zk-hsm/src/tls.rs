use std::sync::Arc;

use rustls::client::ResolvesClientCert;
use rustls::crypto::aws_lc_rs;
use rustls::pki_types::{CertificateDer, SubjectPublicKeyInfoDer};
use rustls::sign::{CertifiedKey, Signer, SigningKey, SingleCertAndKey};
use rustls::{
    ClientConfig, InconsistentKeys, OtherError, RootCertStore, SignatureAlgorithm, SignatureScheme,
};
use x509_cert::Certificate;
use x509_cert::der::{Decode, Encode};

use crate::error::Error;
use crate::hsm::{Hsm, key_id};

/// # TLS
///
/// rustls 0.23, TLS 1.2 and 1.3, signature scheme `ecdsa_secp256r1_sha256`.
///
/// **rustls signs on the thread that drives the handshake, and that thread
/// waits for the HSM**: 100 ms and more for a small chip, at most
/// [`Options::deadline`](crate::Options::deadline). Under an async runtime that
/// holds up a worker, and with it all other tasks once no other worker is free;
/// on a current-thread runtime, always. So do the handshake where waiting is
/// allowed, as here, or on a thread or a runtime of its own; and share one
/// configuration, so that most connections resume and need no signature at all.
///
/// ```no_run
/// use std::io;
/// use std::sync::Arc;
///
/// use rustls::ClientConfig;
/// use rustls::pki_types::ServerName;
/// use tokio::net::TcpStream;
/// use tokio::runtime::Handle;
/// use tokio::task::spawn_blocking;
/// use tokio_rustls::TlsConnector;
/// use tokio_rustls::client::TlsStream;
///
/// /// `config` is from [`zk_hsm::Hsm::client_config`]. The stream can be used
/// /// by any task: rustls signs in the handshake only.
/// async fn connect(
///     config: Arc<ClientConfig>,
///     host: &'static str,
/// ) -> io::Result<TlsStream<TcpStream>> {
///     let runtime = Handle::current();
///     let handshake = async move {
///         let tcp = TcpStream::connect((host, 443)).await?;
///         let name = ServerName::try_from(host).map_err(io::Error::other)?;
///         TlsConnector::from(config).connect(name, tcp).await
///     };
///     spawn_blocking(move || runtime.block_on(handshake)).await?
/// }
/// ```
impl Hsm {
    /// This key as rustls wants it, for your own `CertifiedKey` and resolver,
    /// on the client's or the server's side.
    ///
    /// Choosing a scheme asks nothing of the HSM. A signing failure reaches
    /// the handshake as `rustls::Error::Other`, with an [`Error`] of this crate
    /// inside.
    #[must_use]
    pub fn signing_key(&self) -> Arc<dyn SigningKey> {
        Arc::new(Key(self.clone()))
    }

    /// A rustls client configuration that proves this key to the server.
    ///
    /// `chain` is the device's certificate, then its issuers without the root;
    /// `roots` are the authorities that the *server's* certificate is checked
    /// against; `alpn` are protocols to offer, the preferred one first, or none.
    /// The crypto provider is aws-lc-rs, whatever the process default is.
    ///
    /// Make **one** and share the `Arc`: sessions are resumed only among
    /// connections of one configuration (or clones of it), and a resumed
    /// connection costs no signature. [`Counters`](crate::Counters) show it.
    ///
    /// # Errors
    ///
    /// [`Error::CertificateMismatch`] if the certificate is for another key,
    /// [`Error::CertificateUnusable`], [`Error::Tls`].
    pub fn client_config(
        &self,
        chain: Vec<CertificateDer<'static>>,
        roots: impl Into<Arc<RootCertStore>>,
        alpn: &[&[u8]],
    ) -> Result<Arc<ClientConfig>, Error> {
        let certified = CertifiedKey::new(chain, self.signing_key());
        certified
            .keys_match()
            .map_err(|error| self.explain(&certified, error))?;
        let resolver: Arc<dyn ResolvesClientCert> = Arc::new(SingleCertAndKey::from(certified));
        let mut config = ClientConfig::builder_with_provider(aws_lc_rs::default_provider().into())
            .with_safe_default_protocol_versions()
            .map_err(|source| Error::Tls { source })?
            .with_root_certificates(roots)
            .with_client_cert_resolver(resolver);
        config.alpn_protocols = alpn.iter().map(|protocol| protocol.to_vec()).collect();
        Ok(Arc::new(config))
    }

    fn explain(&self, certified: &CertifiedKey, error: rustls::Error) -> Error {
        let rustls::Error::InconsistentKeys(InconsistentKeys::KeyMismatch) = error else {
            return Error::CertificateUnusable { source: error };
        };
        let certificate = certified.cert.first().map(|der| Certificate::from_der(der));
        let Some(Ok(certificate)) = certificate else {
            return Error::CertificateUnusable { source: error };
        };
        let tbs = certificate.tbs_certificate();
        match tbs.subject_public_key_info().to_der() {
            Ok(found) => Error::CertificateMismatch {
                hsm: self.uri().to_string().into(),
                subject: tbs.subject().to_string().into(),
                serial: tbs.serial_number().to_string().into(),
                expected: key_id(self.spki()),
                found: key_id(&found),
            },
            Err(source) => source.into(),
        }
    }
}

/// rustls's view of the key; the same for all handshakes.
#[derive(Debug)]
struct Key(Hsm);

impl SigningKey for Key {
    fn choose_scheme(&self, offered: &[SignatureScheme]) -> Option<Box<dyn Signer>> {
        offered
            .contains(&SCHEME)
            .then(|| Box::new(Self(self.0.clone())) as Box<dyn Signer>)
    }

    fn public_key(&self) -> Option<SubjectPublicKeyInfoDer<'_>> {
        Some(self.0.spki().into())
    }

    fn algorithm(&self) -> SignatureAlgorithm {
        SignatureAlgorithm::ECDSA
    }
}

impl Signer for Key {
    fn sign(&self, message: &[u8]) -> Result<Vec<u8>, rustls::Error> {
        match self.0.sign(message) {
            Ok(signature) => Ok(signature.to_der().as_bytes().to_vec()),
            Err(error) => Err(OtherError(Arc::new(error)).into()),
        }
    }

    fn scheme(&self) -> SignatureScheme {
        SCHEME
    }
}

const SCHEME: SignatureScheme = SignatureScheme::ECDSA_NISTP256_SHA256;

#[cfg(test)]
mod tests;
