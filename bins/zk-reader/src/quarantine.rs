//! What was put aside, for people and for programs. Nothing of it is trusted.

use std::fmt::Write as _;

use serde::Serialize;
use zk_cli::clipped;
use zk_envelope::Message;
use zk_store::{Quarantined, Replayed};

use crate::json::{hex, line};
use crate::text::{counted, dump};

/// The names of the columns of [`quarantine_rows`].
#[must_use]
pub fn quarantine_heading(columns: Option<usize>) -> String {
    rows("LAST RECEIVED", "TIMES", "REASON", "TOPIC", "ID", columns).join("\n")
}

/// A message of the quarantine in one line, or in two if the terminal has fewer
/// `columns` than that takes.
#[must_use]
pub fn quarantine_rows(held: &Quarantined, columns: Option<usize>) -> Vec<String> {
    let last = held.last_received_at.to_string();
    let topic = clipped(&held.context.topic, 40).to_string();
    let id = clipped(&held.id, 64).to_string();
    let times = held.times.to_string();
    rows(&last, &times, held.reason.as_str(), &topic, &id, columns)
}

/// All that can be told of a message of the quarantine: who sent it where and
/// when, what it claims, and its first bytes.
#[must_use]
pub fn quarantine_page(held: &Quarantined) -> String {
    let mut page = String::new();
    let mut line = |name: &str, value: &dyn std::fmt::Display| {
        // Writing to a string does not fail.
        let _ = writeln!(page, "{name:<14} {value}");
    };
    line("id", &clipped(&held.id, 64));
    line("reason", &held.reason);
    let signed = if held.authentic {
        "by a key that is registered for the device and not revoked"
    } else {
        "not proven"
    };
    line("signed", &signed);
    line(
        "sent by",
        &format_args!("certificate {}", clipped(&held.context.principal, 200)),
    );
    line("topic", &clipped(&held.context.topic, 300));
    line("first received", &held.context.received_at);
    line("last received", &held.last_received_at);
    line("times", &held.times);
    line("size", &format_args!("{} bytes", held.message.len()));
    line("it claims", &"(nothing of this is proven)");
    for claim in claims(&held.message) {
        line("", &claim);
    }
    let shown = &held.message[..held.message.len().min(PREVIEW)];
    let rest = held.message.len() - shown.len();
    let _ = write!(page, "\n{}", dump(shown));
    if rest > 0 {
        let _ = writeln!(page, "… and {rest} bytes more; --json has them all");
    }
    page
}

/// A message of the quarantine as one JSON object in one line of ASCII; the
/// message itself is hex, and left out if it is empty, as it is in a listing.
#[must_use]
pub fn quarantine_json(held: &Quarantined) -> String {
    line(&View {
        id: &held.id,
        reason: held.reason.as_str(),
        authentic: held.authentic,
        principal: &held.context.principal,
        topic: &held.context.topic,
        first_received_at: held.context.received_at.to_string(),
        last_received_at: held.last_received_at.to_string(),
        times: held.times,
        message: hex(&held.message),
    })
}

/// What a replay did, or with `applied` false would do, in one line.
#[must_use]
pub fn replay_row(id: &str, replayed: &Replayed, applied: bool) -> String {
    let ingested = &replayed.ingested;
    let what = match (replayed.leaves, applied) {
        (true, true) => "left",
        (true, false) => "would leave",
        (false, true) => "stays",
        (false, false) => "would stay",
    };
    let mut parts = Vec::new();
    let counts = [
        (ingested.stored, "stored"),
        (ingested.duplicates, "stored before"),
        (ingested.ahead, "over an hour ahead of its receipt"),
    ];
    let counts = counts.into_iter().filter(|(count, _)| *count > 0);
    parts.extend(counts.map(|(count, what)| format!("{count} {what}")));
    parts.extend(ingested.quarantined.iter().map(|held| {
        let room = if held.kept { "" } else { ", no room for it" };
        let place = if held.id == id {
            String::new()
        } else {
            format!(" (now {})", clipped(&held.id, 64))
        };
        format!("{}{place}{room}", held.reason)
    }));
    format!("{} {what}: {}", clipped(id, 64), parts.join(", "))
}

/// The same as one JSON object in one line of ASCII.
#[must_use]
pub fn replay_json(id: &str, replayed: &Replayed, applied: bool) -> String {
    let ingested = &replayed.ingested;
    line(&ReplayView {
        id,
        applied,
        leaves: replayed.leaves,
        stored: ingested.stored,
        duplicates: ingested.duplicates,
        ahead: ingested.ahead,
        refused: ingested
            .quarantined
            .iter()
            .map(|held| RefusedView {
                id: &held.id,
                reason: held.reason.as_str(),
                kept: held.kept,
            })
            .collect(),
    })
}

#[derive(Serialize)]
struct ReplayView<'a> {
    id: &'a str,
    applied: bool,
    leaves: bool,
    stored: u64,
    duplicates: u64,
    ahead: u64,
    refused: Vec<RefusedView<'a>>,
}

#[derive(Serialize)]
struct RefusedView<'a> {
    id: &'a str,
    reason: &'static str,
    kept: bool,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct View<'a> {
    id: &'a str,
    reason: &'static str,
    authentic: bool,
    principal: &'a str,
    topic: &'a str,
    first_received_at: String,
    last_received_at: String,
    times: u64,
    #[serde(skip_serializing_if = "String::is_empty")]
    message: String,
}

fn claims(message: &[u8]) -> Vec<String> {
    let message = match Message::parse(message) {
        Ok(message) => message,
        Err(error) => return vec![clipped(&error.to_string(), 300).to_string()],
    };
    let mut claims = vec![format!(
        "to be {} of device {}",
        counted(message.entries.len() as u128, "record"),
        clipped(&message.device_id, 64)
    )];
    claims.extend(
        message
            .entries
            .iter()
            .take(CLAIMS)
            .map(|entry| match entry.envelope() {
                Ok(envelope) => {
                    let header = envelope.unverified_header();
                    format!(
                        "{} of device {}, number {} of stream {}, {}, signer {}",
                        header.kind,
                        header.device,
                        header.sequence,
                        header.stream,
                        header.time,
                        header.signer
                    )
                }
                Err(error) => clipped(&error.to_string(), 300).to_string(),
            }),
    );
    if let Some(more @ 1..) = message.entries.len().checked_sub(CLAIMS) {
        claims.push(format!("… and {more} more"));
    }
    claims
}

fn rows(
    last: &str,
    times: &str,
    reason: &str,
    topic: &str,
    id: &str,
    columns: Option<usize>,
) -> Vec<String> {
    let row = format!("{last:<24} {times:>6}  {reason:<19}");
    if columns.is_some_and(|columns| columns < FULL_WIDTH) {
        vec![format!("{row}  {topic}"), format!("    {id}")]
    } else {
        vec![format!("{row}  {topic:<24}  {id}")]
    }
}

/// As wide as a row with an id and a topic of the usual length is.
const FULL_WIDTH: usize = 24 + 1 + 6 + 2 + 19 + 2 + 24 + 2 + 64;

/// So many bytes of a message are shown.
const PREVIEW: usize = 1024;

/// So many of its records are.
const CLAIMS: usize = 16;
