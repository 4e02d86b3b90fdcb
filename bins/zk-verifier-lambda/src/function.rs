//! One invocation: the event, the store, the answer, and a line in the log.

use std::time::{Duration, SystemTime};

use serde::Serialize;
use tokio::time::timeout;
use tracing::{error, info, warn};
use zk_store::{Ingested, Store};
use zk_verify::Context;

use crate::{Error, Event};

/// What became of a message. All of it is durable.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Answer {
    /// Records accepted and stored.
    pub stored: u64,
    /// Accepted, and stored before.
    pub duplicates: u64,
    /// Of those stored, more than an hour ahead of their receipt.
    pub ahead: u64,
    /// Not accepted, in the order of the message.
    pub quarantined: Vec<Quarantined>,
}

/// A record, or a whole message, in quarantine.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Quarantined {
    /// Under which id.
    pub id: String,
    /// Why: one of the [reasons](zk_verify::Reason), by its name.
    pub reason: &'static str,
    /// Whether it is kept, not only counted.
    pub kept: bool,
}

/// Takes one event in, and logs one line about it: counts, reasons, whose it is,
/// nothing of what is in it.
///
/// It returns in time for the answer to reach Lambda before `deadline`, when the
/// invocation ends, whether the store answers or not.
///
/// # Errors
/// [`Error::Event`]; [`Error::Store`] and [`Error::Late`], after which a part of the
/// message may be stored already: the same event again makes it whole.
pub async fn handle(
    store: &Store,
    event: &str,
    request_id: &str,
    deadline: SystemTime,
) -> Result<Answer, Error> {
    let event = Event::parse(event).inspect_err(|error| {
        error!(requestId = request_id, kind = error.kind(), "{error}");
    })?;
    // Nothing is invoked after its end: then a clock is wrong, here or there.
    let left = deadline.duration_since(SystemTime::now());
    let left = left.map_or(AT_A_GUESS, |left| left.saturating_sub(TO_ANSWER));
    let ingesting = store.ingest(&event.message, &event.context);
    let ingested = match timeout(left, ingesting).await {
        Ok(ingested) => ingested.map_err(Error::from),
        Err(_) => Err(Error::Late),
    };
    let principal = &event.context.principal;
    let ingested = ingested.inspect_err(|error| {
        error!(
            requestId = request_id,
            principal,
            kind = error.kind(),
            "{}",
            error.chain()
        );
    })?;
    note(&ingested, &event.context, request_id);
    Ok(ingested.into())
}

fn note(ingested: &Ingested, context: &Context, request_id: &str) {
    let Ingested {
        stored,
        duplicates,
        ahead,
        quarantined,
    } = ingested;
    // Its own topic is a condition for a record to be accepted.
    let proven = stored + duplicates > 0;
    let device = context.topic.rsplit('/').next().filter(|_| proven);
    let Some(first) = quarantined.first() else {
        info!(
            requestId = request_id,
            device, stored, duplicates, ahead, "taken in"
        );
        return;
    };
    let mut reasons: Vec<_> = quarantined
        .iter()
        .map(|held| held.reason.as_str())
        .collect();
    reasons.sort_unstable();
    reasons.dedup();
    warn!(
        requestId = request_id,
        device,
        principal = context.principal,
        stored,
        duplicates,
        ahead,
        quarantined = quarantined.len(),
        reasons = reasons.join(" "),
        first = first.id,
        "not all of it is accepted"
    );
}

impl From<Ingested> for Answer {
    fn from(ingested: Ingested) -> Self {
        let quarantined = ingested.quarantined.into_iter().map(|held| Quarantined {
            id: held.id,
            reason: held.reason.as_str(),
            kept: held.kept,
        });
        Self {
            stored: ingested.stored,
            duplicates: ingested.duplicates,
            ahead: ingested.ahead,
            quarantined: quarantined.collect(),
        }
    }
}

/// For an invocation of which the end is not known.
const AT_A_GUESS: Duration = Duration::from_secs(10);

/// For an error to get to Lambda before the invocation ends without one.
const TO_ANSWER: Duration = Duration::from_millis(500);
