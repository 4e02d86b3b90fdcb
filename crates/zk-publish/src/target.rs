use std::fmt;

use hyper::Uri;
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use rustls::pki_types::ServerName;

/// Where messages go: an HTTPS endpoint and a topic.
///
/// A message is sent as `POST /topics/<topic>?qos=1`, with every byte of the
/// topic that RFC 3986 does not call unreserved percent-encoded, so
/// `Zymkey/pi-01` travels as `Zymkey%2Fpi-01`.
///
/// ```
/// use zk_publish::Target;
///
/// let target = Target::new("a1b2c3-ats.iot.eu-central-1.amazonaws.com", "Zymkey/pi-01")?;
/// assert_eq!(target.port(), 8443);
/// assert_eq!(
///     target.to_string(),
///     "https://a1b2c3-ats.iot.eu-central-1.amazonaws.com:8443/topics/Zymkey%2Fpi-01?qos=1",
/// );
/// # Ok::<(), zk_publish::TargetError>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target {
    host: String,
    port: u16,
    topic: String,
    uri: Uri,
    server_name: ServerName<'static>,
}

impl Target {
    /// A target from an endpoint and a topic.
    ///
    /// The endpoint is `host`, `host:port` or `[ipv6]:port`, without a scheme
    /// or path; the port is [8443](Self::DEFAULT_PORT) when none is given. The
    /// topic is at most 256 bytes with at most seven slashes and holds no
    /// wildcard (`+`, `#`) and no control character, as AWS IoT demands.
    ///
    /// # Errors
    ///
    /// [`TargetError`] names what is wrong with the endpoint or the topic.
    pub fn new(endpoint: &str, topic: &str) -> Result<Self, TargetError> {
        let bad_endpoint = |reason| TargetError::Endpoint {
            endpoint: endpoint.to_owned(),
            reason,
        };
        if endpoint.contains("://") {
            return Err(bad_endpoint("it has a scheme"));
        }
        let (host, port) = split(endpoint).map_err(bad_endpoint)?;
        let server_name = ServerName::try_from(host.to_owned())
            .map_err(|_| bad_endpoint("its host is neither a DNS name nor an IP address"))?;
        let reason = match topic {
            "" => Some("it is empty"),
            _ if topic.len() > 256 => Some("it is longer than 256 bytes"),
            _ if topic.matches('/').count() > 7 => Some("it has more than seven slashes"),
            _ if topic.contains(['+', '#']) => Some("it has a wildcard"),
            _ if topic.contains(char::is_control) => Some("it has a control character"),
            _ => None,
        };
        if let Some(reason) = reason {
            return Err(TargetError::Topic {
                topic: topic.to_owned(),
                reason,
            });
        }
        let authority = if host.contains(':') {
            format!("[{host}]:{port}")
        } else {
            format!("{host}:{port}")
        };
        let path = format!("/topics/{}?qos=1", utf8_percent_encode(topic, &RESERVED));
        let uri = Uri::builder()
            .scheme("https")
            .authority(authority)
            .path_and_query(path)
            .build()
            .map_err(|_| bad_endpoint("it does not make a URL"))?;
        Ok(Self {
            host: host.to_owned(),
            port,
            topic: topic.to_owned(),
            uri,
            server_name,
        })
    }

    /// AWS IoT's port for HTTPS with a client certificate and no ALPN.
    pub const DEFAULT_PORT: u16 = 8443;

    /// The host to connect to and to name in SNI: a DNS name, or an IP address
    /// without brackets.
    pub fn host(&self) -> &str {
        &self.host
    }

    /// The TCP port.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// The topic, not encoded.
    pub fn topic(&self) -> &str {
        &self.topic
    }

    pub(crate) fn uri(&self) -> &Uri {
        &self.uri
    }

    pub(crate) fn server_name(&self) -> ServerName<'static> {
        self.server_name.clone()
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.uri.fmt(f)
    }
}

/// An endpoint or topic that cannot be published to.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum TargetError {
    /// The endpoint is not a host with an optional port.
    #[error(
        "endpoint {endpoint:?} is not usable: {reason}; give host, host:port or [ipv6]:port and nothing else"
    )]
    Endpoint {
        /// What was given.
        endpoint: String,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// The topic is not one that can be published to.
    #[error("topic {topic:?} is not usable: {reason}")]
    Topic {
        /// What was given.
        topic: String,
        /// What is wrong with it.
        reason: &'static str,
    },
}

/// Host without brackets, and port.
fn split(endpoint: &str) -> Result<(&str, u16), &'static str> {
    let (host, port) = if let Some(rest) = endpoint.strip_prefix('[') {
        let (host, rest) = rest.split_once(']').ok_or("a bracket is not closed")?;
        match rest {
            "" => (host, None),
            _ => (
                host,
                Some(rest.strip_prefix(':').ok_or("text follows the bracket")?),
            ),
        }
    } else {
        match endpoint.split_once(':') {
            Some((_, rest)) if rest.contains(':') => {
                return Err("an IPv6 address stands in brackets");
            }
            Some((host, port)) => (host, Some(port)),
            None => (endpoint, None),
        }
    };
    let port = match port {
        None => Target::DEFAULT_PORT,
        // `parse` alone would take "+443"
        Some(text) if text.bytes().all(|b| b.is_ascii_digit()) => match text.parse() {
            Ok(port) if port != 0 => port,
            _ => return Err("its port is not a number from 1 to 65535"),
        },
        Some(_) => return Err("its port is not a number from 1 to 65535"),
    };
    Ok((host, port))
}

/// Everything but RFC 3986's unreserved characters.
const RESERVED: AsciiSet = NON_ALPHANUMERIC
    .remove(b'-')
    .remove(b'.')
    .remove(b'_')
    .remove(b'~');
