//! One request: what it asks for, who asks, and the answer.

use std::mem;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::{Instant, SystemTime};

use http_body_util::{BodyExt, Full, Limited};
use hyper::body::{Body, Bytes, Incoming};
use hyper::header::{ALLOW, CONNECTION, CONTENT_TYPE, EXPECT, HeaderValue, RETRY_AFTER};
use hyper::{Method, Request, Response, StatusCode, Uri};
use percent_encoding::percent_decode_str;
use serde_json::json;
use tokio::sync::SemaphorePermit;
use tokio::task::unconstrained;
use tokio::time::{timeout, timeout_at};
use tracing::{debug, error, info, warn};
use uuid::Uuid;
use zk_envelope::{MAX_MESSAGE, Timestamp};
use zk_store::{Ingested, StoreError};
use zk_verify::Context;

use crate::gateway::Gateway;

/// Whose connection it is.
#[derive(Debug)]
pub(crate) struct Peer {
    pub(crate) principal: String,
    pub(crate) address: SocketAddr,
    /// Whether its refusal has been logged: once per connection is enough.
    pub(crate) refused: AtomicBool,
}

impl Gateway {
    /// Answers one request.
    pub(crate) async fn answer(
        &self,
        peer: &Peer,
        request: Request<Incoming>,
    ) -> Response<Full<Bytes>> {
        let id = Uuid::new_v4();
        let response = match self.publish(peer, id, request).await {
            Ok(()) => response(StatusCode::OK, "OK", id),
            Err(refusal) => refusal.response(id),
        };
        let status = response.status().as_u16();
        debug!(principal = %peer.principal, %id, status, "answered");
        self.meters()
            .count(|counters| *counters.answers.entry(status).or_default() += 1);
        response
    }

    /// `Ok` says that everything in the message is durable, among the readings
    /// or in quarantine.
    async fn publish(
        &self,
        peer: &Peer,
        id: Uuid,
        request: Request<Incoming>,
    ) -> Result<(), Refusal> {
        let topic = match topic_of(request.method(), request.uri()) {
            Ok(topic) => topic,
            Err(refusal) => {
                self.discard(request).await;
                return Err(refusal);
            }
        };
        let received_at = Timestamp::from(SystemTime::now());
        if let Err(refusal) = self.admit(peer, received_at).await {
            self.discard(request).await;
            return Err(refusal);
        }
        let (message, _place) = self.read(request).await?;
        self.meters()
            .count(|counters| counters.bytes += message.len() as u64);

        let context = Context {
            principal: peer.principal.clone(),
            topic,
            received_at,
        };
        let begun = Instant::now();
        let ingested = self.asked(self.store().ingest(&message, &context)).await;
        self.meters().count(|counters| {
            counters.store_calls += 1;
            counters.store_time += begun.elapsed();
        });
        let ingested = ingested?;
        self.mended();
        self.note(&ingested, peer, &context, id);
        Ok(())
    }

    /// Whether the certificate is registered and not revoked, as of now.
    async fn admit(&self, peer: &Peer, at: Timestamp) -> Result<(), Refusal> {
        if self
            .asked(self.store().registered(&peer.principal, at))
            .await?
            .is_some()
        {
            return Ok(());
        }
        let message = "this certificate is not registered, or it is revoked";
        if !peer.refused.swap(true, Relaxed) {
            warn!(principal = %peer.principal, peer = %peer.address, "refused: {message}");
        }
        Err(Refusal::new(StatusCode::FORBIDDEN, message))
    }

    /// The message, with its place among those that are in memory. A body that
    /// has just begun needs none, so that slow ones keep nobody waiting.
    async fn read(
        &self,
        request: Request<Incoming>,
    ) -> Result<(Vec<u8>, SemaphorePermit<'_>), Refusal> {
        let too_large = || {
            Refusal::new(
                StatusCode::PAYLOAD_TOO_LARGE,
                "the message is larger than 128 KiB",
            )
        };
        if request.body().size_hint().lower() > MAX_MESSAGE as u64 {
            return Err(too_large());
        }
        let deadline = Instant::now() + self.limits().body;
        let mut body = request.into_body();
        // Copied into one piece: of a body in many small chunks each would cost
        // more than it holds.
        let mut message = Vec::new();
        let mut place = None;
        while let Some(frame) = in_time(deadline, body.frame()).await? {
            let frame = frame.map_err(|error| {
                debug!(%error, "a body broke off");
                Refusal::new(StatusCode::BAD_REQUEST, "the body is broken")
            })?;
            let data = frame.into_data().unwrap_or_default();
            if message.len() + data.len() > MAX_MESSAGE {
                return Err(too_large());
            }
            if message.len() + data.len() > BEGINNING && place.is_none() {
                place = Some(self.place(deadline).await?);
            }
            message.extend_from_slice(&data);
        }
        let place = match place {
            Some(place) => place,
            None => self.place(Instant::now() + self.limits().store).await?,
        };
        Ok((message, place))
    }

    async fn place(&self, deadline: Instant) -> Result<SemaphorePermit<'_>, Refusal> {
        // it is never closed
        let place = timeout_at(deadline.into(), self.places().acquire()).await;
        place.ok().and_then(Result::ok).ok_or_else(|| {
            Refusal::new(StatusCode::SERVICE_UNAVAILABLE, "too many requests at once")
        })
    }

    /// Takes in a body that nobody will look at, within the usual limits: then
    /// the connection can go on. One who waits for leave to send never gets it.
    async fn discard(&self, request: Request<Incoming>) {
        if !request.headers().contains_key(EXPECT) {
            let deadline = Instant::now() + self.limits().body;
            let mut body = Limited::new(request.into_body(), MAX_MESSAGE);
            while let Ok(Some(Ok(_))) = in_time(deadline, body.frame()).await {}
        }
    }

    /// Waits for the store, and keeps account of how it fares.
    async fn asked<T>(
        &self,
        asking: impl Future<Output = Result<T, StoreError>>,
    ) -> Result<T, Refusal> {
        let failure = match timeout(self.limits().store, asking).await {
            Ok(Ok(value)) => return Ok(value),
            Ok(Err(error @ StoreError::EvidenceFull { .. })) => {
                warn!("{error}");
                let message = "the quarantine is full; its owner has to look into it";
                return Err(Refusal::new(StatusCode::SERVICE_UNAVAILABLE, message));
            }
            Ok(Err(error)) => anyhow::Error::from(error),
            Err(_) => anyhow::anyhow!("it took longer than {:?}", self.limits().store),
        };
        let mut failing = false;
        self.meters().count(|counters| {
            counters.store_failures += 1;
            failing = mem::replace(&mut counters.store_failing, true);
        });
        // once per outage, or it fills the log
        if failing {
            debug!("the store still fails: {failure:#}");
        } else {
            error!("the store failed; devices keep their records and try again: {failure:#}");
        }
        Err(Refusal::new(
            StatusCode::SERVICE_UNAVAILABLE,
            "the store cannot take it now",
        ))
    }

    /// Ends an outage of the store. Only a message that it has taken does: a
    /// device may be known from memory, and a full disk can still be read.
    fn mended(&self) {
        let mut failing = false;
        self.meters()
            .count(|counters| failing = mem::take(&mut counters.store_failing));
        if failing {
            info!("the store is well again");
        }
    }

    fn note(&self, ingested: &Ingested, peer: &Peer, context: &Context, id: Uuid) {
        self.meters().count(|counters| {
            counters.stored += ingested.stored;
            counters.duplicates += ingested.duplicates;
            counters.ahead += ingested.ahead;
            for held in &ingested.quarantined {
                *counters
                    .quarantined
                    .entry(held.reason.as_str())
                    .or_default() += 1;
                counters.over_budget += u64::from(!held.kept);
            }
        });
        if let Some(held) = ingested.quarantined.first() {
            warn!(
                principal = %context.principal, peer = %peer.address, topic = ?context.topic, %id,
                records = ingested.quarantined.len(), reason = held.reason.as_str(),
                quarantine = %held.id, kept = held.kept,
                "not accepted"
            );
        }
    }
}

/// Waits for more of a body, until `deadline`.
async fn in_time<T>(deadline: Instant, more: impl Future<Output = T>) -> Result<T, Refusal> {
    // Whoever sends without a pause uses up the budget that the runtime gives a
    // task, and a timer that shares it would never fire.
    unconstrained(timeout_at(deadline.into(), more))
        .await
        .map_err(|_| Refusal::new(StatusCode::REQUEST_TIMEOUT, "the body took too long"))
}

/// An answer that is not 200.
#[derive(Debug)]
struct Refusal {
    status: StatusCode,
    message: &'static str,
}

impl Refusal {
    fn new(status: StatusCode, message: &'static str) -> Self {
        Self { status, message }
    }

    fn response(&self, id: Uuid) -> Response<Full<Bytes>> {
        let mut response = response(self.status, self.message, id);
        let headers = response.headers_mut();
        // the names that AWS uses
        let name = match self.status {
            StatusCode::FORBIDDEN => "ForbiddenException",
            StatusCode::METHOD_NOT_ALLOWED => "MethodNotAllowedException",
            StatusCode::NOT_FOUND => "ResourceNotFoundException",
            StatusCode::PAYLOAD_TOO_LARGE => "RequestEntityTooLargeException",
            StatusCode::SERVICE_UNAVAILABLE => "ServiceUnavailableException",
            _ => "InvalidRequestException",
        };
        headers.insert("x-amzn-errortype", HeaderValue::from_static(name));
        match self.status {
            StatusCode::METHOD_NOT_ALLOWED => {
                headers.insert(ALLOW, HeaderValue::from_static("POST"));
            }
            StatusCode::PAYLOAD_TOO_LARGE | StatusCode::REQUEST_TIMEOUT => {
                headers.insert(CONNECTION, HeaderValue::from_static("close"));
            }
            StatusCode::SERVICE_UNAVAILABLE => {
                headers.insert(RETRY_AFTER, HeaderValue::from_static("1"));
            }
            _ => {}
        }
        response
    }
}

/// The answer that AWS IoT gives.
fn response(status: StatusCode, message: &str, id: Uuid) -> Response<Full<Bytes>> {
    let id = id.to_string();
    let body = json!({ "message": message, "traceId": id }).to_string();
    let mut response = Response::new(Full::from(body));
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    if let Ok(id) = HeaderValue::try_from(id) {
        headers.insert("x-amzn-requestid", id);
    }
    response
}

/// The topic of a publish; anything else is refused.
///
/// `POST /topics/<topic>?qos=0|1`, the topic percent-encoded as a whole or with
/// its slashes left in. Without `qos` it is 0, as on AWS. Either way the answer
/// comes when the message is stored.
fn topic_of(method: &Method, uri: &Uri) -> Result<String, Refusal> {
    let bad = |message| Refusal::new(StatusCode::BAD_REQUEST, message);
    let Some(encoded) = uri.path().strip_prefix("/topics/") else {
        return Err(Refusal::new(
            StatusCode::NOT_FOUND,
            "there is nothing but /topics/<topic>",
        ));
    };
    if method != Method::POST {
        return Err(Refusal::new(
            StatusCode::METHOD_NOT_ALLOWED,
            "topics take POST only",
        ));
    }
    if !matches!(uri.query(), None | Some("" | "qos=0" | "qos=1")) {
        return Err(bad("the query can be qos=0 or qos=1"));
    }
    let broken = encoded.split('%').skip(1).any(|rest| {
        !rest
            .as_bytes()
            .get(..2)
            .is_some_and(|hex| hex.iter().all(u8::is_ascii_hexdigit))
    });
    if broken {
        return Err(bad("the topic's percent-encoding is broken"));
    }
    let topic = percent_decode_str(encoded)
        .decode_utf8()
        .map_err(|_| bad("the topic is not UTF-8"))?;
    match &*topic {
        "" => Err(bad("the topic is empty")),
        topic if topic.len() > 256 => Err(bad("the topic is longer than 256 bytes")),
        topic if topic.matches('/').count() > 7 => {
            Err(bad("the topic has more than seven slashes"))
        }
        topic if topic.contains(['+', '#', '\0']) => Err(bad("the topic has a wildcard or a NUL")),
        topic => Ok(topic.to_owned()),
    }
}

/// So much of a body is read, on each connection, before it needs a place: more
/// than most messages have.
const BEGINNING: usize = 8 * 1024;
