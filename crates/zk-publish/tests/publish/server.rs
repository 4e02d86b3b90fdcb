//! A TLS server on loopback that does to each request what the test says.

use std::convert::Infallible;
use std::future::pending;
use std::net::SocketAddr;
use std::ops::Range;
use std::pin::{Pin, pin};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, mpsc};
use std::task::{Context, Poll};
use std::thread;
use std::time::Duration;

use http_body_util::BodyExt;
use hyper::body::{Body, Bytes, Frame, Incoming};
use hyper::header::HeaderMap;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, ExtendedKeyUsagePurpose, IsCa,
    KeyPair, date_time_ymd,
};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use rustls::server::WebPkiClientVerifier;
use rustls::{ClientConfig, HandshakeKind, RootCertStore, ServerConfig, SupportedProtocolVersion};
use tokio::net::TcpListener;
use tokio::sync::oneshot;
use tokio_rustls::TlsAcceptor;

/// Two authorities: one for the server, one for the devices.
pub(crate) struct Pki {
    server: CertifiedIssuer<'static, KeyPair>,
    devices: CertifiedIssuer<'static, KeyPair>,
}

impl Pki {
    pub(crate) fn new() -> Self {
        Self {
            server: authority("server CA"),
            devices: authority("device CA"),
        }
    }

    /// For a server named `localhost`.
    pub(crate) fn server(&self, versions: &[&'static SupportedProtocolVersion]) -> ServerConfig {
        let (chain, key) = leaf(
            &self.server,
            "localhost",
            ExtendedKeyUsagePurpose::ServerAuth,
        );
        let verifier = WebPkiClientVerifier::builder(Arc::new(roots(&self.devices)));
        ServerConfig::builder_with_protocol_versions(versions)
            .with_client_cert_verifier(verifier.build().unwrap())
            .with_single_cert(chain, key)
            .unwrap()
    }

    /// For a server of this name, with a certificate of these years.
    pub(crate) fn server_named(&self, name: &str, years: Range<i32>) -> ServerConfig {
        let usage = ExtendedKeyUsagePurpose::ServerAuth;
        let (chain, key) = leaf_of_years(&self.server, name, usage, Some(years));
        let verifier = WebPkiClientVerifier::builder(Arc::new(roots(&self.devices)));
        ServerConfig::builder()
            .with_client_cert_verifier(verifier.build().unwrap())
            .with_single_cert(chain, key)
            .unwrap()
    }

    pub(crate) fn device(&self, name: &str) -> ClientConfig {
        let (chain, key) = leaf(&self.devices, name, ExtendedKeyUsagePurpose::ClientAuth);
        ClientConfig::builder()
            .with_root_certificates(roots(&self.server))
            .with_client_auth_cert(chain, key)
            .unwrap()
    }

    /// With a certificate of the servers' authority, which does not vouch for clients.
    pub(crate) fn server_as_client(&self) -> ClientConfig {
        let (chain, key) = leaf(
            &self.server,
            "localhost",
            ExtendedKeyUsagePurpose::ClientAuth,
        );
        ClientConfig::builder()
            .with_root_certificates(roots(&self.server))
            .with_client_auth_cert(chain, key)
            .unwrap()
    }

    pub(crate) fn nobody(&self) -> ClientConfig {
        ClientConfig::builder()
            .with_root_certificates(roots(&self.server))
            .with_no_client_auth()
    }
}

/// What the server does to a request it has read to the end.
#[derive(Clone, Debug)]
pub(crate) enum Act {
    /// Answers with this status, and a body as AWS IoT sends it.
    Reply(u16),
    /// Answers with this status, header and body.
    ReplyWith(u16, (&'static str, &'static str), Vec<u8>),
    /// Answers with this status, then closes without having said so.
    ReplyThenClose(u16),
    /// Answers with this status and the start of a body that never ends.
    ReplyThenHang(u16),
    /// Closes the connection without an answer.
    Close,
    /// Never answers.
    Hang,
}

/// A request that the server read to the end.
#[derive(Clone, Debug)]
pub(crate) struct Seen {
    pub(crate) connection: usize,
    pub(crate) resumed: bool,
    pub(crate) alpn: Option<Vec<u8>>,
    pub(crate) line: String,
    pub(crate) headers: HeaderMap,
    pub(crate) body: Vec<u8>,
}

pub(crate) struct Server {
    pub(crate) address: SocketAddr,
    pub(crate) seen: mpsc::Receiver<Seen>,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<thread::JoinHandle<()>>,
}

impl Server {
    /// `act` is given the number of the request, from 0, and the request.
    pub(crate) fn start(
        tls: ServerConfig,
        act: impl FnMut(usize, &Seen) -> Act + Send + 'static,
    ) -> Self {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        Self::start_on(listener, tls, act)
    }

    pub(crate) fn start_on(
        listener: std::net::TcpListener,
        tls: ServerConfig,
        act: impl FnMut(usize, &Seen) -> Act + Send + 'static,
    ) -> Self {
        listener.set_nonblocking(true).unwrap();
        let address = listener.local_addr().unwrap();
        let (sender, seen) = mpsc::channel();
        let (stop, stopped) = oneshot::channel();
        let thread = thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .unwrap();
            runtime.block_on(async {
                let listener = TcpListener::from_std(listener).unwrap();
                tokio::select! {
                    () = serve(listener, tls, act, sender) => {}
                    _ = stopped => {}
                }
            });
        });
        Self {
            address,
            seen,
            stop: Some(stop),
            thread: Some(thread),
        }
    }

    pub(crate) fn endpoint(&self) -> String {
        format!("localhost:{}", self.address.port())
    }

    /// The next request, for which the test waits.
    pub(crate) fn next(&self) -> Seen {
        self.seen
            .recv_timeout(PATIENCE)
            .expect("the server saw no further request")
    }

    /// Sees to it that no request comes. One that is on its way comes within
    /// this time or a test passes that should not; none fails for it.
    pub(crate) fn is_left_alone(&self) {
        let seen = self.seen.recv_timeout(Duration::from_millis(50));
        assert!(seen.is_err(), "{seen:?}");
    }

    /// What was seen and not yet taken.
    pub(crate) fn rest(&self) -> Vec<Seen> {
        self.seen.try_iter().collect()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// How long a test waits for what must come: long, since it only matters when it fails.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

pub(crate) const TRACE_ID: &str = "0f8e1b57-2b5e-4a1c-9d5b-6a1c33d2f0aa";

async fn serve(
    listener: TcpListener,
    tls: ServerConfig,
    act: impl FnMut(usize, &Seen) -> Act + Send + 'static,
    sender: mpsc::Sender<Seen>,
) {
    let acceptor = TlsAcceptor::from(Arc::new(tls));
    let act = Arc::new(Mutex::new(act));
    let requests = Arc::new(AtomicUsize::new(0));
    let mut connection = 0;
    loop {
        let (stream, _) = listener.accept().await.unwrap();
        connection += 1;
        let (acceptor, act) = (acceptor.clone(), Arc::clone(&act));
        let (requests, sender) = (Arc::clone(&requests), sender.clone());
        tokio::spawn(async move {
            let Ok(stream) = acceptor.accept(stream).await else {
                return;
            };
            let tls = stream.get_ref().1;
            let resumed = tls.handshake_kind() == Some(HandshakeKind::Resumed);
            let alpn = tls.alpn_protocol().map(<[u8]>::to_vec);
            let (close, mut closed) = mpsc_of_one();
            let service = service_fn(move |request: Request<Incoming>| {
                let (act, requests, close) =
                    (Arc::clone(&act), Arc::clone(&requests), close.clone());
                let (sender, alpn) = (sender.clone(), alpn.clone());
                async move {
                    let (head, body) = request.into_parts();
                    let body = body
                        .collect()
                        .await
                        .map_err(|_| "no body")?
                        .to_bytes()
                        .to_vec();
                    let line = format!("{} {} {:?}", head.method, head.uri, head.version);
                    let seen = Seen {
                        connection,
                        resumed,
                        alpn,
                        line,
                        headers: head.headers,
                        body,
                    };
                    let number = requests.fetch_add(1, Ordering::SeqCst);
                    let _ = sender.send(seen.clone());
                    let act = (act.lock().unwrap())(number, &seen);
                    let response = match act {
                        Act::Reply(status) => reply(status, ok_body(status), None),
                        Act::ReplyWith(status, (name, value), body) => {
                            let mut response = reply(status, body, None);
                            response.headers_mut().insert(name, value.parse().unwrap());
                            response
                        }
                        Act::ReplyThenClose(status) => reply(status, ok_body(status), Some(close)),
                        Act::ReplyThenHang(status) => Response::builder()
                            .status(status)
                            .header("content-length", "65")
                            .body(Answer {
                                rest: None,
                                endless: true,
                                close: None,
                            })
                            .unwrap(),
                        Act::Close => return Err("closed by the test"),
                        Act::Hang => pending().await,
                    };
                    Ok(response)
                }
            });
            let mut serving =
                pin!(http1::Builder::new().serve_connection(TokioIo::new(stream), service));
            tokio::select! {
                _ = serving.as_mut() => {}
                _ = closed.recv() => {
                    serving.as_mut().graceful_shutdown();
                    let _ = serving.await;
                }
            }
        });
    }
}

/// A body that says when hyper has done with it.
struct Answer {
    rest: Option<Bytes>,
    endless: bool,
    close: Option<tokio::sync::mpsc::Sender<()>>,
}

impl Body for Answer {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        match self.rest.take() {
            Some(bytes) => Poll::Ready(Some(Ok(Frame::data(bytes)))),
            None if self.endless => Poll::Pending,
            None => Poll::Ready(None),
        }
    }
}

impl Drop for Answer {
    fn drop(&mut self) {
        if let Some(close) = self.close.take() {
            let _ = close.try_send(());
        }
    }
}

fn reply(
    status: u16,
    body: Vec<u8>,
    close: Option<tokio::sync::mpsc::Sender<()>>,
) -> Response<Answer> {
    Response::builder()
        .status(status)
        .header("content-type", "application/json")
        .header("content-length", body.len())
        .header("x-amzn-RequestId", TRACE_ID)
        .body(Answer {
            rest: Some(body.into()),
            endless: false,
            close,
        })
        .unwrap()
}

fn ok_body(status: u16) -> Vec<u8> {
    let message = if status == 200 {
        "OK"
    } else {
        "as the test says"
    };
    format!(r#"{{"message":"{message}","traceId":"{TRACE_ID}"}}"#).into_bytes()
}

fn mpsc_of_one() -> (
    tokio::sync::mpsc::Sender<()>,
    tokio::sync::mpsc::Receiver<()>,
) {
    tokio::sync::mpsc::channel(1)
}

fn authority(name: &str) -> CertifiedIssuer<'static, KeyPair> {
    let mut params = CertificateParams::default();
    params.distinguished_name.push(DnType::CommonName, name);
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap()
}

fn leaf(
    issuer: &CertifiedIssuer<'static, KeyPair>,
    name: &str,
    usage: ExtendedKeyUsagePurpose,
) -> (Vec<CertificateDer<'static>>, PrivateKeyDer<'static>) {
    leaf_of_years(issuer, name, usage, None)
}

/// From the first day of one year to that of another.
fn leaf_of_years(
    issuer: &CertifiedIssuer<'static, KeyPair>,
    name: &str,
    usage: ExtendedKeyUsagePurpose,
    years: Option<Range<i32>>,
) -> (Vec<CertificateDer<'static>>, PrivateKeyDer<'static>) {
    let key = KeyPair::generate().unwrap();
    let mut params = CertificateParams::new([name.to_owned()]).unwrap();
    if let Some(years) = years {
        params.not_before = date_time_ymd(years.start, 1, 1);
        params.not_after = date_time_ymd(years.end, 1, 1);
    }
    params.distinguished_name.push(DnType::CommonName, name);
    params.extended_key_usages = vec![usage];
    let certificate = params.signed_by(&key, issuer).unwrap();
    let key = PrivatePkcs8KeyDer::from(key.serialize_der());
    (vec![certificate.der().clone()], key.into())
}

fn roots(issuer: &CertifiedIssuer<'static, KeyPair>) -> RootCertStore {
    let mut roots = RootCertStore::empty();
    roots.add(issuer.der().clone()).unwrap();
    roots
}
