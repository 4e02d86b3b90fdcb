//! One request: what it asks for, who asks, and the answer.

use std::mem;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::{Instant, SystemTime};

use http_body_util::{BodyExt, Full, LengthLimitError, Limited};
use hyper::body::{Body, Bytes, Incoming};
use hyper::header::{ALLOW, CONNECTION, CONTENT_TYPE, EXPECT, HeaderValue, RETRY_AFTER};
use hyper::{Method, Request, Response, StatusCode, Uri};
use percent_encoding::percent_decode_str;
use serde_json::json;
use tokio::time::timeout;
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
        // one place for each message that is in memory
        let place = timeout(self.limits().body, self.places().acquire()).await;
        let Ok(Ok(_place)) = place else {
            return Err(Refusal::new(
                StatusCode::SERVICE_UNAVAILABLE,
                "too many requests at once",
            ));
        };
        let message = self.read(request).await?;
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

    async fn read(&self, request: Request<Incoming>) -> Result<Bytes, Refusal> {
        let too_large = || {
            Refusal::new(
                StatusCode::PAYLOAD_TOO_LARGE,
                "the message is larger than 128 KiB",
            )
        };
        if request.body().size_hint().lower() > MAX_MESSAGE as u64 {
            self.discard(request).await;
            return Err(too_large());
        }
        let body = Limited::new(request.into_body(), MAX_MESSAGE);
        match timeout(self.limits().body, body.collect()).await {
            Ok(Ok(body)) => Ok(body.to_bytes()),
            Ok(Err(error)) if error.is::<LengthLimitError>() => Err(too_large()),
            Ok(Err(error)) => {
                debug!(%error, "a body broke off");
                Err(Refusal::new(StatusCode::BAD_REQUEST, "the body is broken"))
            }
            Err(_) => Err(Refusal::new(
                StatusCode::REQUEST_TIMEOUT,
                "the body took too long",
            )),
        }
    }

    /// Takes in a body that nobody will look at, within the usual limits. A
    /// client that is still sending when the connection closes may never see
    /// the answer; one that waits for leave to send never gets it.
    async fn discard(&self, request: Request<Incoming>) {
        if !request.headers().contains_key(EXPECT) {
            let mut body = Limited::new(request.into_body(), MAX_DISCARDED);
            let rest = async { while let Some(Ok(_)) = body.frame().await {} };
            let _ = timeout(self.limits().body, rest).await;
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
            StatusCode::REQUEST_TIMEOUT => {
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

/// As much of an unwanted body is read before the answer.
const MAX_DISCARDED: usize = 2 * MAX_MESSAGE;
