use std::error::Error as StdError;
use std::fmt;
use std::io;
use std::iter::successors;
use std::time::Duration;

use rustls::AlertDescription;

/// Why a message was not delivered.
///
/// What to do follows from the variant: [`Refused`](Self::Refused) is about the
/// message, [`Forbidden`](Self::Forbidden) and
/// [`CertificateRefused`](Self::CertificateRefused) are about the device's
/// registration, and everything else may pass if the same message is sent
/// again later.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PublishError {
    /// 408, 429 or 5xx: the server asks for patience or has trouble of its own.
    #[error("the server could not take the message now: {answer}; send it again later")]
    Busy {
        /// What it said.
        answer: Answer,
        /// How long it asks to be left alone (`Retry-After`).
        retry_after: Option<Duration>,
    },
    /// The server ended the handshake, or the connection after it, with an
    /// alert about the client certificate.
    #[error(
        "the server does not accept this device's certificate or signature; check that it is registered and active, that it has not expired, and that the server trusts its CA"
    )]
    CertificateRefused {
        /// The TLS alert.
        source: BoxError,
    },
    /// The connection was closed before an answer came. AWS IoT does this to a
    /// certificate that is unknown or inactive; a link that broke looks alike.
    #[error(
        "the connection was closed before any response; if this persists, the device's certificate is not accepted: check that it is registered and active"
    )]
    Closed {
        /// How it ended.
        source: BoxError,
    },
    /// 401 or 403: the certificate may not publish to this topic.
    #[error(
        "publishing is forbidden: {answer}; check that the device is registered and not revoked, and that its policy allows this topic"
    )]
    Forbidden {
        /// What the server said.
        answer: Answer,
    },
    /// TLS failed otherwise: nothing in common with the server, or the key of the
    /// device did not sign.
    #[error("the TLS handshake failed; check the device's key, and what TLS the server speaks")]
    Handshake {
        /// What rustls or the signing key reports.
        source: BoxError,
    },
    /// The answer was not HTTP/1.1.
    #[error("the server does not speak HTTP/1.1; check the endpoint's host and port")]
    Protocol {
        /// What hyper reports.
        source: BoxError,
    },
    /// 400 or 413: the server will not take this message, now or later.
    #[error("the server refused the message: {answer}")]
    Refused {
        /// What it said.
        answer: Answer,
    },
    /// A step took longer than [`Timeouts`](crate::Timeouts) allow.
    #[error("{phase} took longer than {after:?}")]
    TimedOut {
        /// The step.
        phase: Phase,
        /// Its limit.
        after: Duration,
    },
    /// Any other status, which a publish endpoint does not give.
    #[error("the server gave an unexpected answer: {answer}; check the endpoint's host and port")]
    Unexpected {
        /// What it said.
        answer: Answer,
    },
    /// Whatever answers there is not the server, or cannot show that it is: its
    /// certificate is not accepted, or it speaks no TLS. So it is with a captive
    /// portal, a proxy that looks into TLS, a server whose certificate has
    /// expired, and a clock of this device that is off. The device's key was not
    /// used.
    #[error("what answers there is not the server, as far as this device can tell: {}", untrusted(self.tls()))]
    Untrusted {
        /// What rustls reports.
        source: BoxError,
    },
    /// The name did not resolve or no TCP connection came about.
    #[error("{target} cannot be reached; check the network and the endpoint")]
    Unreachable {
        /// The URL.
        target: String,
        /// What the system reports.
        source: BoxError,
    },
}

impl PublishError {
    /// Sorts an error of a connection that was open: by what rustls says of it,
    /// when it says anything, then by how the connection or HTTP ended.
    ///
    /// For programs that speak to a server by other means than
    /// [`Client`](crate::Client), and want its judgement.
    pub fn of_transport(error: impl Into<BoxError>) -> Self {
        let source = error.into();
        match find::<rustls::Error>(&*source) {
            Some(rustls::Error::AlertReceived(alert)) if about_certificate(*alert) => {
                return Self::CertificateRefused { source };
            }
            Some(rustls::Error::InvalidCertificate(_) | rustls::Error::InvalidMessage(_)) => {
                return Self::Untrusted { source };
            }
            Some(_) => return Self::Handshake { source },
            None => {}
        }
        match find::<hyper::Error>(&*source) {
            Some(error) if error.is_parse() => Self::Protocol { source },
            Some(_) => Self::Closed { source },
            None if is_close(&*source) => Self::Closed { source },
            None => Self::Handshake { source },
        }
    }

    /// What rustls says, if the error is about TLS.
    pub fn tls(&self) -> Option<&rustls::Error> {
        find(self)
    }
}

/// What a server said when it did not take a message.
///
/// The texts are the server's own, with control characters removed and at most
/// 256 characters each.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Answer {
    /// The HTTP status.
    pub status: u16,
    /// `x-amzn-ErrorType`, such as `ForbiddenException`.
    pub error_type: Option<String>,
    /// The body's `message`.
    pub message: Option<String>,
    /// The server's id for this request, to look for in its logs.
    pub trace_id: Option<String>,
}

impl fmt::Display for Answer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "status {}", self.status)?;
        if let Some(error_type) = &self.error_type {
            write!(f, " {error_type}")?;
        }
        if let Some(message) = &self.message {
            write!(f, " {message:?}")?;
        }
        if let Some(trace_id) = &self.trace_id {
            write!(f, " (trace id {trace_id})")?;
        }
        Ok(())
    }
}

/// A step of a publish.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Phase {
    /// Name resolution and TCP.
    Connect,
    /// TLS.
    Handshake,
    /// The request and its answer.
    Response,
}

impl fmt::Display for Phase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Connect => "connecting",
            Self::Handshake => "the TLS handshake",
            Self::Response => "waiting for the answer",
        })
    }
}

type BoxError = Box<dyn StdError + Send + Sync>;

fn find<'a, T: StdError + 'static>(error: &'a (dyn StdError + 'static)) -> Option<&'a T> {
    chain(error).find_map(|error| error.downcast_ref())
}

/// The error, what it wraps, what that wraps.
fn chain<'a>(
    error: &'a (dyn StdError + 'static),
) -> impl Iterator<Item = &'a (dyn StdError + 'static)> {
    successors(Some(error), |&error| {
        // io::Error::source passes over the error it wraps
        let io = error.downcast_ref::<io::Error>();
        match io.and_then(io::Error::get_ref) {
            Some(inner) => Some(inner),
            None => error.source(),
        }
    })
}

fn is_close(error: &(dyn StdError + 'static)) -> bool {
    use io::ErrorKind::{BrokenPipe, ConnectionAborted, ConnectionReset, UnexpectedEof};
    let mut causes = chain(error).filter_map(|error| error.downcast_ref::<io::Error>());
    causes.any(|error| {
        matches!(
            error.kind(),
            BrokenPipe | ConnectionAborted | ConnectionReset | UnexpectedEof
        )
    })
}

/// What to do about a server that is not trusted.
fn untrusted(error: Option<&rustls::Error>) -> &'static str {
    use rustls::CertificateError::{
        BadSignature, Expired, ExpiredContext, NotValidForName, NotValidForNameContext,
        NotValidYet, NotValidYetContext, UnknownIssuer,
    };
    match error {
        Some(rustls::Error::InvalidMessage(_)) => {
            "it speaks no TLS; a captive portal does that, or endpoint or port is another one's"
        }
        Some(rustls::Error::InvalidCertificate(why)) => match why {
            Expired | ExpiredContext { .. } => {
                "its certificate has expired; renew it, or, if it has not, set this device's clock"
            }
            NotValidYet | NotValidYetContext { .. } => {
                "its certificate is not valid yet; set this device's clock, which is behind"
            }
            NotValidForName | NotValidForNameContext { .. } => {
                "its certificate is for another name; check the endpoint, and for a captive portal"
            }
            UnknownIssuer | BadSignature => {
                "its certificate is of no authority that is trusted; check the trust root for the \
                 server, and for a captive portal or a proxy"
            }
            _ => "its certificate is not in order; check the server's, and for a captive portal",
        },
        _ => "check the endpoint's host and port",
    }
}

/// The alerts by which a server says that it does not take our certificate.
fn about_certificate(alert: AlertDescription) -> bool {
    matches!(
        alert,
        AlertDescription::AccessDenied
            | AlertDescription::BadCertificate
            | AlertDescription::CertificateExpired
            | AlertDescription::CertificateRequired
            | AlertDescription::CertificateRevoked
            | AlertDescription::CertificateUnknown
            // a signature failed: the CA's under our certificate, or ours
            | AlertDescription::DecryptError
            | AlertDescription::UnknownCA
            | AlertDescription::UnsupportedCertificate
    )
}
