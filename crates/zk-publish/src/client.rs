use std::error::Error as StdError;
use std::fmt;
use std::future::{pending, poll_fn};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Bytes;
use hyper::client::conn::http1::{self, SendRequest};
use hyper::header::{CONTENT_TYPE, HOST, HeaderMap, RETRY_AFTER, USER_AGENT};
use hyper::{Method, Request, Response, Uri};
use hyper_rustls::{FixedServerNameResolver, HttpsConnector, MaybeHttpsStream};
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioIo;
use rustls::ClientConfig;
use serde::Deserialize;
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep, timeout, timeout_at};
use tower_service::Service;
use tracing::debug;

use crate::error::{Answer, Phase, PublishError};
use crate::resolve::Resolver;
use crate::target::Target;

/// An HTTPS publisher for one [`Target`], over one kept-alive connection.
///
/// HTTP/1.1 only. The connection is opened by the first message and used for
/// all that follow until either side closes it; when a kept-alive connection
/// turns out to have been closed before it answered, the message is sent once
/// more on a new one. While its name isn't resolved, the server is sought where
/// it last was. A message can therefore arrive twice: records have to be
/// idempotent, as those with a sequence number are.
///
/// Nothing is sent in the background and nothing is retried otherwise; the
/// loop that does is [`Publisher`](crate::Publisher).
///
/// The future of [`publish`](Self::publish) runs on any tokio runtime with I/O
/// and time enabled. A rustls signer that waits for a chip blocks the thread
/// that polls it during the handshake.
pub struct Client {
    target: Target,
    tcp: Tcp,
    https: HttpsConnector<Tcp>,
    /// Changes when TCP is done and TLS begins.
    shaking_hands: watch::Receiver<()>,
    timeouts: Timeouts,
    idle: Option<Connection>,
    connections: u64,
}

impl Client {
    /// A client for `target`, not yet connected.
    ///
    /// `tls` holds the trust roots for the **server** (Amazon's, or those of
    /// the gateway's own CA; never the CA of the devices) and the client
    /// certificate. Give every client of a process the same `Arc`, so that
    /// they share its session cache.
    ///
    /// When the target's port is 443 and `tls` names no ALPN protocol,
    /// `x-amzn-http-ca` is offered, which is what AWS IoT asks for there. For
    /// another server at port 443 that insists on a protocol, name it in
    /// `tls`; a list that is not empty is left as it is.
    pub fn new(target: Target, tls: Arc<ClientConfig>, timeouts: Timeouts) -> Self {
        let (connected, shaking_hands) = watch::channel(());
        let tcp = Tcp::new(timeouts.connect, connected);
        Self {
            https: https(&tcp, tls, &target),
            tcp,
            target,
            shaking_hands,
            timeouts,
            idle: None,
            connections: 0,
        }
    }

    /// Sends one message and waits for the answer.
    ///
    /// `Ok` means that the server answered 2xx, and nothing else does. Dropping
    /// the future closes the connection it was using.
    ///
    /// # Errors
    ///
    /// Every other outcome is a [`PublishError`], which says whether the
    /// message, the certificate or the network is at fault.
    pub async fn publish(&mut self, message: impl Into<Bytes>) -> Result<Delivered, PublishError> {
        let message = message.into();
        if let Some(connection) = self.idle.take() {
            match self.exchange(connection, message.clone()).await {
                Err(PublishError::Closed { source }) => {
                    debug!(error = %source, "the kept-alive connection was closed; opening another");
                }
                outcome => return outcome,
            }
        }
        let connection = self.connect().await?;
        self.exchange(connection, message).await
    }

    /// TLS connections made so far, each of which cost the client's key one
    /// signature unless a session was resumed.
    pub fn connections(&self) -> u64 {
        self.connections
    }

    /// Closes the kept-alive connection; the next message opens another.
    pub(crate) fn disconnect(&mut self) {
        self.idle = None;
    }

    /// Connections from now on are made with this.
    pub(crate) fn set_tls(&mut self, tls: Arc<ClientConfig>) {
        self.https = https(&self.tcp, tls, &self.target);
        self.disconnect();
    }

    async fn connect(&mut self) -> Result<Connection, PublishError> {
        self.shaking_hands.mark_unchanged();
        let uri = self.target.uri().clone();
        let connecting = async {
            poll_fn(|cx| self.https.poll_ready(cx)).await?;
            self.https.call(uri).await
        };
        let handshake_is_late = async {
            match self.shaking_hands.changed().await {
                Ok(()) => sleep(self.timeouts.handshake).await,
                Err(_) => pending().await,
            }
        };
        let stream = tokio::select! {
            biased;
            outcome = connecting => outcome.map_err(|error| {
                match error.downcast::<PublishError>() {
                    Ok(of_tcp) => *of_tcp,
                    Err(of_tls) => PublishError::of_transport(of_tls),
                }
            })?,
            () = handshake_is_late => return Err(PublishError::TimedOut {
                phase: Phase::Handshake,
                after: self.timeouts.handshake,
            }),
        };
        self.connections += 1;

        let (sender, driver) = http1::Builder::new()
            .max_buf_size(MAX_HEAD)
            .handshake::<_, Full<Bytes>>(stream)
            .await
            .map_err(PublishError::of_transport)?;
        Ok(Connection {
            sender,
            driver: tokio::spawn(drive(driver)),
        })
    }

    /// One request and its answer. The connection is kept for the next message
    /// when it is fit for one.
    async fn exchange(
        &mut self,
        mut connection: Connection,
        message: Bytes,
    ) -> Result<Delivered, PublishError> {
        let limit = self.timeouts.response_to(message.len());
        let deadline = Instant::now() + limit;
        let request = self.request(message)?;
        let sent = async {
            connection.sender.ready().await?;
            connection.sender.send_request(request).await
        };
        let response = timeout_at(deadline, sent)
            .await
            .map_err(|_| PublishError::TimedOut {
                phase: Phase::Response,
                after: limit,
            })?
            .map_err(PublishError::of_transport)?;
        // The status line decides. What follows it only explains, so a body
        // that is cut short, slow or too long costs the connection and no more.
        let (head, body) = response.into_parts();
        let body = match timeout_at(deadline, Limited::new(body, MAX_BODY).collect()).await {
            Ok(Ok(body)) => {
                self.idle = Some(connection);
                body.to_bytes()
            }
            _ => Bytes::new(),
        };
        outcome(&Response::from_parts(head, body))
    }

    fn request(&self, message: Bytes) -> Result<Request<Full<Bytes>>, PublishError> {
        let uri = self.target.uri();
        let path = uri.path_and_query().map_or("/", |path| path.as_str());
        let host = uri
            .authority()
            .map_or(self.target.host(), |authority| authority.as_str());
        Request::builder()
            .method(Method::POST)
            .uri(path)
            .header(HOST, host)
            .header(
                USER_AGENT,
                concat!("zk-publish/", env!("CARGO_PKG_VERSION")),
            )
            .header(CONTENT_TYPE, "application/json")
            .body(Full::new(message))
            .map_err(|source| PublishError::Protocol {
                source: source.into(),
            })
    }
}

impl fmt::Debug for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Client")
            .field("target", &self.target)
            .field("timeouts", &self.timeouts)
            .field("connections", &self.connections)
            .finish_non_exhaustive()
    }
}

/// How long each step of a publish may take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timeouts {
    /// Name resolution and TCP, all addresses of the host together. Default
    /// 5 s: on a link that swallows packets, attempts as short as this find it
    /// again sooner than the kernel's own growing pauses do.
    pub connect: Duration,
    /// TLS, including the time the chip takes to sign. Default 15 s.
    pub handshake: Duration,
    /// From the request's first byte to the answer's last. Default 10 s. A
    /// second is added for each 4 KiB of the message, or one large record
    /// would never get through a slow link, nor would any behind it.
    pub response: Duration,
}

impl Timeouts {
    fn response_to(&self, bytes: usize) -> Duration {
        let sending = Duration::from_secs((bytes / SLOWEST) as u64);
        self.response.saturating_add(sending).min(LONGEST)
    }
}

impl Default for Timeouts {
    fn default() -> Self {
        Self {
            connect: Duration::from_secs(5),
            handshake: Duration::from_secs(15),
            response: Duration::from_secs(10),
        }
    }
}

/// A message the server has taken.
///
/// AWS IoT says with it that the broker has the message; whether a rule then
/// stored it is not known here. The gateway says with it that every record in
/// the message is on its disk.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Delivered {
    /// The server's id for this request, to look for in its logs.
    pub trace_id: Option<String>,
}

/// What [`HttpsConnector`] has its TLS on: TCP, with a time limit of its own, so
/// that waiting for the network is told from waiting for the handshake.
#[derive(Clone)]
struct Tcp {
    http: HttpConnector<Resolver>,
    limit: Duration,
    connected: watch::Sender<()>,
}

impl Tcp {
    fn new(limit: Duration, connected: watch::Sender<()>) -> Self {
        let mut http = HttpConnector::new_with_resolver(Resolver::new());
        http.enforce_http(false);
        http.set_nodelay(true);
        http.set_connect_timeout(Some(limit));
        // Keeps the way through a NAT open, and shows that an idle connection
        // is dead before a message is spent on it.
        http.set_keepalive(Some(KEEPALIVE));
        http.set_keepalive_interval(Some(KEEPALIVE_INTERVAL));
        http.set_keepalive_retries(Some(3));
        Self {
            http,
            limit,
            connected,
        }
    }
}

impl Service<Uri> for Tcp {
    type Response = TokioIo<TcpStream>;
    type Error = BoxError;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, BoxError>> + Send>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        self.http.poll_ready(cx).map_err(Into::into)
    }

    /// Its errors are [`PublishError`]s.
    fn call(&mut self, uri: Uri) -> Self::Future {
        let (limit, connected) = (self.limit, self.connected.clone());
        let connecting = self.http.call(uri.clone());
        Box::pin(async move {
            let stream = timeout(limit, connecting)
                .await
                .map_err(|_| PublishError::TimedOut {
                    phase: Phase::Connect,
                    after: limit,
                })?
                .map_err(|source| PublishError::Unreachable {
                    target: uri.to_string(),
                    source: source.into(),
                })?;
            connected.send_replace(());
            Ok(stream)
        })
    }
}

/// TLS over these connections, which know where a name last led.
fn https(tcp: &Tcp, tls: Arc<ClientConfig>, target: &Target) -> HttpsConnector<Tcp> {
    let name = FixedServerNameResolver::new(target.server_name());
    let tls = with_alpn(tls, target.port());
    HttpsConnector::new(tcp.clone(), tls, true, Arc::new(name))
}

/// The configuration, offering AWS IoT's protocol where it has to be.
fn with_alpn(tls: Arc<ClientConfig>, port: u16) -> Arc<ClientConfig> {
    if port != 443 || !tls.alpn_protocols.is_empty() {
        return tls;
    }
    // a clone shares the original's session cache and key
    let mut tls = ClientConfig::clone(&tls);
    tls.alpn_protocols = vec![ALPN_443.to_vec()];
    Arc::new(tls)
}

/// A connection and the task that moves its bytes, which ends with it.
struct Connection {
    sender: SendRequest<Full<Bytes>>,
    driver: JoinHandle<()>,
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.driver.abort();
    }
}

async fn drive(connection: http1::Connection<MaybeHttpsStream<TokioIo<TcpStream>>, Full<Bytes>>) {
    // what fails here fails the request too, and is reported there
    if let Err(error) = connection.await {
        debug!(%error, "the connection ended");
    }
}

/// What AWS IoT and the gateway put into an answer's body.
#[derive(Default, Deserialize)]
struct Body {
    message: Option<String>,
    #[serde(rename = "traceId")]
    trace_id: Option<String>,
}

fn outcome(response: &Response<Bytes>) -> Result<Delivered, PublishError> {
    let status = response.status();
    let headers = response.headers();
    let body: Body = serde_json::from_slice(response.body()).unwrap_or_default();
    let trace_id = body
        .trace_id
        .as_deref()
        .or_else(|| text(headers, "x-amzn-requestid"))
        .map(bounded);
    if status.is_success() {
        return Ok(Delivered { trace_id });
    }
    let answer = Answer {
        status: status.as_u16(),
        error_type: text(headers, "x-amzn-errortype").map(bounded),
        message: body.message.as_deref().map(bounded),
        trace_id,
    };
    // only the form in seconds: the other is a date, and our clock may be unset
    let retry_after = headers
        .get(RETRY_AFTER)
        .and_then(|value| value.to_str().ok()?.trim().parse().ok())
        .map(Duration::from_secs);
    Err(match answer.status {
        400 | 413 => PublishError::Refused { answer },
        401 | 403 => PublishError::Forbidden { answer },
        408 | 429 | 500..=599 => PublishError::Busy {
            answer,
            retry_after,
        },
        _ => PublishError::Unexpected { answer },
    })
}

fn text<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a str> {
    headers.get(name)?.to_str().ok()
}

/// Text of the server's for logs and errors: short, and without anything that
/// could move a cursor.
fn bounded(text: &str) -> String {
    text.chars()
        .filter(|c| !c.is_control())
        .take(MAX_TEXT)
        .collect()
}

type BoxError = Box<dyn StdError + Send + Sync>;

const ALPN_443: &[u8] = b"x-amzn-http-ca";

/// Bytes per second that a link carries at the least.
const SLOWEST: usize = 4096;

/// So that a limit can always be added to a moment.
pub(crate) const LONGEST: Duration = Duration::from_secs(10 * 365 * 24 * 3600);

/// TCP's own signs of life on a connection that is silent.
const KEEPALIVE: Duration = Duration::from_secs(60);
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(10);

/// An answer's status line and headers.
const MAX_HEAD: usize = 64 * 1024;

/// An answer's body; AWS IoT sends 65 bytes.
const MAX_BODY: usize = 16 * 1024;

/// Characters kept of a text that the server chose.
const MAX_TEXT: usize = 256;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_large_message_has_more_time() {
        let timeouts = Timeouts::default();
        let seconds = |bytes| timeouts.response_to(bytes).as_secs();
        assert_eq!([0, 4095, 4096, 5120].map(seconds), [10, 10, 11, 11]);
        assert_eq!(seconds(128 * 1024), 42);
    }

    #[test]
    fn port_443_alone_is_offered_awss_protocol_unless_another_is_named() {
        let offered = |port, named: &[&[u8]]| {
            let mut tls = ClientConfig::builder()
                .with_root_certificates(rustls::RootCertStore::empty())
                .with_no_client_auth();
            tls.alpn_protocols = named.iter().map(|name| name.to_vec()).collect();
            with_alpn(Arc::new(tls), port).alpn_protocols.clone()
        };
        assert_eq!(offered(443, &[]), [b"x-amzn-http-ca"]);
        assert_eq!(offered(443, &[b"http/1.1"]), [b"http/1.1"]);
        assert!(offered(8443, &[]).is_empty());
        assert_eq!(offered(8443, &[b"http/1.1"]), [b"http/1.1"]);
    }
}
