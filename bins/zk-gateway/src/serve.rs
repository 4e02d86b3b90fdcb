//! Sockets: accepting, proving, serving, and closing them.

use std::convert::Infallible;
use std::future::poll_fn;
use std::io;
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::header::CONTENT_TYPE;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use rustix::net::sockopt::set_tcp_user_timeout;
use rustls::HandshakeKind;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, timeout, timeout_at};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use tracing::{debug, error, info, warn};
use zk_verify::principal_of;

use crate::gateway::Gateway;
use crate::request::Peer;
use crate::turns::{Turn, Turns};

/// Serves devices on `listener` until `shutdown` completes. Then it takes no
/// more connections, answers the requests under way, and closes; what has no
/// answer when [`Limits::stop`](crate::Limits::stop) is over is cut off.
pub async fn run(listener: TcpListener, gateway: Gateway, shutdown: impl Future<Output = ()>) {
    let (turns, mut given) = Turns::new(gateway.limits().handshakes);
    let connections = Arc::new(Semaphore::new(gateway.limits().connections));
    let (stopping, stop) = watch::channel(());
    let mut tasks = JoinSet::new();
    let mut shutdown = pin!(shutdown);
    loop {
        tokio::select! {
            biased;
            () = &mut shutdown => break,
            Some(ended) = tasks.join_next() => reap(ended),
            Some(((stream, peer), turn)) = given.recv() => {
                let connections = Arc::clone(&connections);
                let stop = stop.clone();
                tasks.spawn(visit(gateway.clone(), stream, peer, turn, connections, stop));
            }
            (stream, peer) = accept(&listener) => {
                give_up_after(gateway.limits().idle, &stream);
                let sent_away = turns.ask(peer.ip(), (stream, peer));
                if let Some((_, peer)) = sent_away {
                    debug!(%peer, "too many wait for a handshake, most of them from there");
                    failed(&gateway, "crowded");
                }
            }
        }
    }
    turns.close();
    drop(given);
    drop(listener);
    drop(stopping);
    info!(
        connections = tasks.len(),
        "stopping: answering what is under way"
    );
    let ended = timeout(gateway.limits().stop, async {
        while let Some(ended) = tasks.join_next().await {
            reap(ended);
        }
    });
    if ended.await.is_err() {
        warn!(
            connections = tasks.len(),
            "cut off; their devices send again what had no answer"
        );
        tasks.shutdown().await;
    }
}

/// Serves metrics at `/metrics`, in Prometheus' text format, and health at
/// `/healthz`, until `shutdown` completes.
///
/// Health is 200, and 503 from a failure of the store until it has taken a
/// message again. There is no TLS and nobody is asked who they are:
/// `listener` is for a loopback address.
pub async fn run_metrics(
    listener: TcpListener,
    gateway: Gateway,
    shutdown: impl Future<Output = ()>,
) {
    let places = Arc::new(Semaphore::new(MAX_SCRAPERS));
    let mut tasks = JoinSet::new();
    let mut shutdown = pin!(shutdown);
    loop {
        // the semaphore is never closed
        let next = async {
            let place = Arc::clone(&places).acquire_owned().await;
            (accept(&listener).await.0, place)
        };
        let (stream, place) = tokio::select! {
            biased;
            () = &mut shutdown => break,
            Some(ended) = tasks.join_next() => {
                reap(ended);
                continue;
            }
            next = next => next,
        };
        give_up_after(SCRAPE, &stream);
        let gateway = gateway.clone();
        tasks.spawn(async move {
            let service = service_fn(|request| {
                let response = metrics(&gateway, &request);
                async { Ok::<_, Infallible>(response) }
            });
            let serving = http(SCRAPE).serve_connection(TokioIo::new(stream), service);
            if let Err(error) = serving.await {
                debug!(%error, "a metrics connection ended");
            }
            drop(place);
        });
    }
}

/// Who has connected, and nothing more.
type Visitor = (TcpStream, SocketAddr);

/// One connection whose turn it is.
async fn visit(
    gateway: Gateway,
    stream: TcpStream,
    peer: SocketAddr,
    mut turn: Turn<Visitor>,
    connections: Arc<Semaphore>,
    mut stop: watch::Receiver<()>,
) {
    // Whoever connects and says nothing costs no more than this.
    let begun = Instant::now();
    let spoken = tokio::select! {
        spoken = timeout(gateway.limits().handshake, stream.readable()) => spoken,
        () = turn.taken() => return failed(&gateway, "crowded"),
        _ = stop.changed() => return,
    };
    if spoken.is_err() {
        return failed(&gateway, "timeout");
    }
    let deadline = begun + gateway.limits().handshake;
    Box::pin(connection(
        gateway,
        stream,
        peer,
        (turn, deadline),
        connections,
        stop,
    ))
    .await;
}

/// One connection, from the handshake to its end.
async fn connection(
    gateway: Gateway,
    stream: TcpStream,
    peer: SocketAddr,
    (mut turn, deadline): (Turn<Visitor>, Instant),
    connections: Arc<Semaphore>,
    mut stop: watch::Receiver<()>,
) {
    let proven = tokio::select! {
        () = turn.taken() => {
            debug!(%peer, "its turn is another's, as most are from there");
            return failed(&gateway, "crowded");
        }
        proven = timeout_at(deadline, Box::pin(prove(&gateway, stream))) => proven,
        _ = stop.changed() => return,
    };
    let (stream, principal) = match proven {
        Ok(Ok(proven)) => proven,
        Ok(Err(Unproven { cause, error })) => {
            match cause {
                "certificate" => gateway.log_refusal(peer, &error),
                _ => debug!(%peer, %error, "a handshake failed"),
            }
            return failed(&gateway, cause);
        }
        Err(_) => return failed(&gateway, "timeout"),
    };
    // Who comes back after his link broke leaves a connection behind that he
    // cannot close: it goes first, rather than that he waits for its end.
    if connections.available_permits() == 0 {
        gateway.displace(&principal);
    }
    let place = tokio::select! {
        place = timeout(gateway.limits().handshake, connections.acquire_owned()) => place,
        () = turn.taken() => return failed(&gateway, "crowded"),
        _ = stop.changed() => return,
    };
    let Ok(Ok(_place)) = place else {
        warn!(%peer, %principal, "no connection is free; raise limits.connections");
        return failed(&gateway, "full");
    };
    drop(turn);

    serve(&gateway, stream, peer, principal, stop).await;
}

/// Answers the requests of a device that has proven who it is.
async fn serve(
    gateway: &Gateway,
    stream: impl AsyncRead + AsyncWrite + Unpin,
    address: SocketAddr,
    principal: String,
    stop: watch::Receiver<()>,
) {
    let entry = gateway.enter(&principal);
    let peer = Peer {
        principal,
        address,
        refused: AtomicBool::new(false),
    };
    debug!(principal = %peer.principal, peer = %peer.address, "connected");
    tokio::select! {
        () = answer(gateway, stream, &peer, stop) => {}
        () = entry.displaced() => {
            debug!(principal = %peer.principal, "closed for a newer connection");
        }
    }
}

/// Answers until the connection ends, by itself or of age, and closes it.
async fn answer(
    gateway: &Gateway,
    stream: impl AsyncRead + AsyncWrite + Unpin,
    peer: &Peer,
    mut stop: watch::Receiver<()>,
) {
    let service = service_fn(move |request| {
        Box::pin(async move { Ok::<_, Infallible>(gateway.answer(peer, request).await) })
    });
    let mut serving = http(gateway.limits().idle).serve_connection(TokioIo::new(stream), service);
    let ended = tokio::select! {
        ended = poll_fn(|cx| serving.poll_without_shutdown(cx)) => ended,
        () = sleep(gateway.limits().age) => {
            std::pin::Pin::new(&mut serving).graceful_shutdown();
            // whoever takes longer than all limits together is not reading
            let limits = gateway.limits();
            let rest = poll_fn(|cx| serving.poll_without_shutdown(cx));
            match timeout(limits.body * 2 + limits.store * 2, rest).await {
                Ok(ended) => ended,
                Err(_) => return,
            }
        }
        _ = stop.changed() => {
            std::pin::Pin::new(&mut serving).graceful_shutdown();
            poll_fn(|cx| serving.poll_without_shutdown(cx)).await
        }
    };
    if let Err(error) = ended {
        debug!(principal = %peer.principal, %error, "a connection ended");
        // what could not be parsed has had an answer too
        if !error.is_parse() {
            return;
        }
    }
    let mut stream = serving.into_parts().io.into_inner();
    tokio::select! {
        () = linger(&mut stream, Instant::now() + gateway.limits().body) => {}
        _ = stop.changed() => {}
    }
}

/// Closes, and until `deadline` takes in what is still on its way: who closes a
/// connection with something unread resets it, and the client may lose the answer.
async fn linger(stream: &mut (impl AsyncRead + AsyncWrite + Unpin), deadline: Instant) {
    let mut unread = [0; 1024];
    if let Ok(Ok(())) = timeout_at(deadline, stream.shutdown()).await {
        // a timer does not fire while there is something to read all the time
        while Instant::now() < deadline
            && let Ok(Ok(1..)) = timeout_at(deadline, stream.read(&mut unread)).await
        {}
    }
}

/// For the fuzz target: what a device sends, behind the handshake.
#[cfg(feature = "fuzzing")]
#[doc(hidden)]
pub async fn serve_proven(
    gateway: &Gateway,
    stream: impl AsyncRead + AsyncWrite + Unpin,
    principal: String,
) {
    let (_stopping, stop) = watch::channel(());
    let nowhere = SocketAddr::from(([127, 0, 0, 1], 0));
    serve(gateway, stream, nowhere, principal, stop).await;
}

/// Why a connection came to nothing.
struct Unproven {
    cause: &'static str,
    error: io::Error,
}

/// The handshake: gives the stream and the device's principal.
async fn prove(
    gateway: &Gateway,
    stream: TcpStream,
) -> Result<(Box<TlsStream<TcpStream>>, String), Unproven> {
    let tls = gateway.tls();
    let stream = TlsAcceptor::from(tls.config())
        .accept(stream)
        .await
        .map_err(|error| {
            let cause = match error.get_ref().and_then(|inner| inner.downcast_ref()) {
                Some(
                    rustls::Error::InvalidCertificate(_) | rustls::Error::NoCertificatesPresented,
                ) => "certificate",
                _ => "other",
            };
            Unproven { cause, error }
        })?;
    let session = stream.get_ref().1;
    let certificate = |reason: &'static str| Unproven {
        cause: "certificate",
        error: io::Error::other(reason),
    };
    let chain = session.peer_certificates().unwrap_or_default();
    let leaf = chain.first().ok_or_else(|| certificate("no certificate"))?;
    let resumed = session.handshake_kind() == Some(HandshakeKind::Resumed);
    if resumed && !tls.still_accepts(chain) {
        return Err(certificate(
            "the certificate of the resumed session is no longer accepted",
        ));
    }
    gateway
        .meters()
        .count(|counters| counters.resumed += u64::from(resumed));
    let principal = principal_of(leaf);
    Ok((Box::new(stream), principal))
}

/// Has the system end a connection whose peer takes nothing for so long, be it
/// gone or not reading.
fn give_up_after(time: Duration, stream: &TcpStream) {
    let millis = u32::try_from(time.as_millis()).unwrap_or(u32::MAX);
    if let Err(error) = set_tcp_user_timeout(stream, millis) {
        debug!(%error, "the time for a silent peer cannot be set");
    }
}

/// The next connection.
async fn accept(listener: &TcpListener) -> (TcpStream, SocketAddr) {
    let mut pause = Duration::from_millis(5);
    loop {
        match listener.accept().await {
            Ok((stream, peer)) => {
                // an answer is one packet, which shall not wait for another
                let _ = stream.set_nodelay(true);
                return (stream, peer);
            }
            // mostly: no file descriptor is free
            Err(error) => {
                error!(%error, "cannot accept connections; trying again");
                sleep(pause).await;
                pause = (pause * 2).min(Duration::from_secs(1));
            }
        }
    }
}

fn failed(gateway: &Gateway, cause: &'static str) {
    gateway
        .meters()
        .count(|counters| *counters.handshakes_failed.entry(cause).or_default() += 1);
}

fn reap(ended: Result<(), tokio::task::JoinError>) {
    if let Err(error) = ended {
        error!(%error, "a connection's task panicked");
    }
}

fn http(idle: Duration) -> http1::Builder {
    let mut http = http1::Builder::new();
    http.timer(TokioTimer::new())
        .half_close(true)
        .header_read_timeout(idle)
        .max_buf_size(MAX_HEAD)
        .max_headers(MAX_HEADERS);
    http
}

fn metrics(gateway: &Gateway, request: &Request<Incoming>) -> Response<Full<Bytes>> {
    let counters = gateway.counters();
    let (status, kind, text) = match (request.method(), request.uri().path()) {
        (&Method::GET, "/metrics") => match counters.prometheus(gateway.tls().expires()) {
            Ok(page) => (StatusCode::OK, "text/plain; version=0.0.4", page),
            Err(error) => (
                StatusCode::INTERNAL_SERVER_ERROR,
                "text/plain",
                format!("{error}\n"),
            ),
        },
        (&Method::GET, "/healthz") if counters.store_failing => (
            StatusCode::SERVICE_UNAVAILABLE,
            "text/plain",
            "the store fails\n".to_owned(),
        ),
        (&Method::GET, "/healthz") => (StatusCode::OK, "text/plain", "ok\n".to_owned()),
        _ => (
            StatusCode::NOT_FOUND,
            "text/plain",
            "GET /metrics or /healthz\n".to_owned(),
        ),
    };
    let mut response = Response::new(Full::from(text));
    *response.status_mut() = status;
    response
        .headers_mut()
        .insert(CONTENT_TYPE, hyper::header::HeaderValue::from_static(kind));
    response
}

/// A request's line and headers, in bytes and in number.
const MAX_HEAD: usize = 16 * 1024;
const MAX_HEADERS: usize = 64;

/// Connections to the metrics, and how long each may be silent.
const MAX_SCRAPERS: usize = 16;
const SCRAPE: Duration = Duration::from_secs(30);
