//! The server, as a device meets it: name, connection, handshake, and an answer
//! to a request that asks for nothing.

use std::error::Error as StdError;
use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, SystemTime};

use http_body_util::Empty;
use hyper::body::Bytes;
use hyper::client::conn::http1;
use hyper::header::{CONNECTION, DATE, HOST};
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{WebPkiServerVerifier, verify_server_name};
use rustls::server::ParsedCertificate;
use rustls::{
    AlertDescription, CertificateError, ClientConfig, DigitallySignedStruct, RootCertStore,
    SignatureScheme,
};
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use x509_cert::Certificate;
use x509_cert::der::Decode;
use zk_publish::PublishError;

/// The addresses of a name.
pub(crate) async fn resolve(host: &str, port: u16, limit: Duration) -> io::Result<Vec<SocketAddr>> {
    let addresses = timeout(limit, tokio::net::lookup_host((host, port))).await??;
    Ok(addresses.collect())
}

/// A connection to the first address that takes one.
pub(crate) async fn connect(
    addresses: &[SocketAddr],
    limit: Duration,
) -> io::Result<(TcpStream, SocketAddr)> {
    let mut last = io::Error::from(io::ErrorKind::AddrNotAvailable);
    for address in addresses {
        match timeout(limit, TcpStream::connect(address)).await {
            Ok(Ok(stream)) => return Ok((stream, *address)),
            Ok(Err(error)) => last = error,
            Err(_) => last = io::ErrorKind::TimedOut.into(),
        }
    }
    Err(last)
}

/// What the server says of itself.
pub(crate) struct Answer {
    pub(crate) version: String,
    pub(crate) status: u16,
    /// What its clock says, if it does.
    pub(crate) date: Option<SystemTime>,
}

/// Why there is no answer, as far as can be told.
#[derive(Debug)]
pub(crate) enum Refusal {
    /// It closed the connection without a word.
    Closed,
    /// Its certificate is not one that this device may trust.
    Certificate {
        error: CertificateError,
        shown: Option<Shown>,
    },
    /// It does not take this device's certificate.
    Device(AlertDescription),
    /// It does not speak TLS.
    NotTls,
    /// Anything else.
    Other(String),
    /// No answer came in time.
    TimedOut,
}

/// The certificate that a server showed.
#[derive(Clone, Debug)]
pub(crate) struct Shown {
    pub(crate) subject: String,
    pub(crate) issuer: String,
    /// Whether it is for the name that was asked for.
    pub(crate) fits: bool,
}

/// Does the handshake with the device's key, then asks for `/`, so that a server
/// that refuses the device after the handshake (TLS 1.3) can say so.
pub(crate) async fn greet(
    stream: TcpStream,
    host: &str,
    tls: &ClientConfig,
    roots: RootCertStore,
    limit: Duration,
) -> Result<Answer, Refusal> {
    let other = |error: &dyn StdError| Refusal::Other(error.to_string());
    let name = ServerName::try_from(host.to_owned()).map_err(|error| other(&error))?;
    let provider = Arc::clone(tls.crypto_provider());
    let inner = WebPkiServerVerifier::builder_with_provider(Arc::new(roots), provider)
        .build()
        .map_err(|error| other(&error))?;
    let witness = Arc::new(Witness {
        inner,
        shown: OnceLock::new(),
    });
    let mut tls = tls.clone();
    tls.dangerous()
        .set_certificate_verifier(Arc::clone(&witness) as Arc<dyn ServerCertVerifier>);
    let judge = |error: Box<dyn StdError + Send + Sync>| {
        judge(&PublishError::of_transport(error), &witness, &name)
    };

    let handshake = TlsConnector::from(Arc::new(tls)).connect(name.clone(), stream);
    let stream = timeout(limit, handshake)
        .await
        .map_err(|_| Refusal::TimedOut)?
        .map_err(|error| judge(error.into()))?;
    let version = stream.get_ref().1.protocol_version();
    let version = version.map_or_else(|| "TLS".to_owned(), |version| format!("{version:?}"));

    let request = Request::get("/")
        .header(HOST, host)
        .header(CONNECTION, "close")
        .body(Empty::<Bytes>::new())
        .map_err(|error| other(&error))?;
    let asked = async {
        let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
        // what fails there fails the request too
        tokio::spawn(connection);
        sender.send_request(request).await
    };
    let answer = timeout(limit, asked)
        .await
        .map_err(|_| Refusal::TimedOut)?
        .map_err(|error| judge(error.into()))?;
    Ok(Answer {
        version,
        status: answer.status().as_u16(),
        date: date(&answer),
    })
}

fn date<T>(answer: &Response<T>) -> Option<SystemTime> {
    let text = answer.headers().get(DATE)?.to_str().ok()?;
    let date = jiff::fmt::rfc2822::parse(text).ok()?;
    date.timestamp().try_into().ok()
}

fn judge(error: &PublishError, witness: &Witness, name: &ServerName<'_>) -> Refusal {
    match (error, error.tls()) {
        (_, Some(rustls::Error::InvalidCertificate(error))) => Refusal::Certificate {
            error: error.clone(),
            shown: witness.shown.get().and_then(|der| shown(der, name)),
        },
        (PublishError::CertificateRefused { .. }, Some(rustls::Error::AlertReceived(alert))) => {
            Refusal::Device(*alert)
        }
        (_, Some(rustls::Error::InvalidMessage(_))) => Refusal::NotTls,
        (PublishError::Closed { .. }, _) => Refusal::Closed,
        _ => Refusal::Other(
            error
                .source()
                .map_or_else(|| error.to_string(), with_causes),
        ),
    }
}

fn shown(der: &CertificateDer<'_>, name: &ServerName<'_>) -> Option<Shown> {
    let certificate = Certificate::from_der(der).ok()?;
    let fits = ParsedCertificate::try_from(der)
        .is_ok_and(|parsed| verify_server_name(&parsed, name).is_ok());
    Some(Shown {
        subject: printable(&certificate.tbs_certificate().subject().to_string()),
        issuer: printable(&certificate.tbs_certificate().issuer().to_string()),
        fits,
    })
}

/// Text that a stranger chose: short, and without anything that could move a
/// cursor.
pub(crate) fn printable(text: &str) -> String {
    let text: String = text.chars().filter(|c| !c.is_control()).take(200).collect();
    match text.as_str() {
        "" => "nobody".to_owned(),
        _ => text,
    }
}

/// As strict as the verifier of a usual connection, which it asks; it also keeps
/// the certificate that was shown, so that one that is refused can be named.
#[derive(Debug)]
struct Witness {
    inner: Arc<WebPkiServerVerifier>,
    shown: OnceLock<CertificateDer<'static>>,
}

impl ServerCertVerifier for Witness {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        self.shown
            .get_or_init(|| CertificateDer::from(end_entity.to_vec()));
        self.inner
            .verify_server_cert(end_entity, intermediates, server_name, ocsp_response, now)
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.inner
            .verify_tls12_signature(message, certificate, signature)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.inner
            .verify_tls13_signature(message, certificate, signature)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.inner.supported_verify_schemes()
    }
}

/// An error with its causes, in one line.
pub(crate) fn with_causes(error: &dyn StdError) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        let cause_text = cause.to_string();
        if !text.ends_with(&cause_text) {
            text.push_str(": ");
            text.push_str(&cause_text);
        }
        next = cause.source();
    }
    printable_line(&text)
}

fn printable_line(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}
