//! For programs: one JSON object in one line of ASCII.

use std::io;

use serde::Serialize;
use serde_json::Value;
use serde_json::ser::{Formatter, Serializer};
use zk_envelope::{Header, Kind};
use zk_verify::{AlarmKind, Findings, Origin, Place};

use crate::reader::{Record, State};
use crate::registry::Difference;
use crate::text::alarm;

impl Record {
    /// The record as one JSON object in one line of ASCII.
    ///
    /// | member | when |
    /// | --- | --- |
    /// | `state` | always: `open`, `sealed`, `refused`, `damaged` |
    /// | `device`, `key`, `alarms` | always; alarms are texts |
    /// | `receivedAt`, `principal`, `again` | if the item can be read; the store's word |
    /// | `header` | `open` and `sealed`: the device's word |
    /// | `claimed` | `refused`: the same members, of which nothing is proven |
    /// | `reason`, `detail` | `refused`; `sealed` and `damaged` |
    /// | `contentType` and one of `json`, `text`, `hex` | `open`: the body, as what it is |
    #[must_use]
    pub fn to_json(&self) -> String {
        line(&RecordView::of(self))
    }
}

/// What an audit found, as one JSON object in one line of ASCII, with what the
/// registry says of the same device.
///
/// `clean` says whether everything is there or stated as lost, nothing is to be
/// looked into, and anything was heard at all. The members are described in
/// `docs/reader.md`.
#[must_use]
pub fn findings_json(findings: &Findings, differences: &[&Difference]) -> String {
    line(&FindingsView::of(findings, differences))
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct RecordView<'a> {
    state: &'static str,
    device: &'a str,
    key: &'a str,
    #[serde(flatten)]
    delivery: Option<DeliveryView<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    header: Option<HeaderView>,
    #[serde(skip_serializing_if = "Option::is_none")]
    claimed: Option<HeaderView>,
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    detail: Option<String>,
    #[serde(flatten)]
    content: Option<ContentView<'a>>,
    alarms: Vec<String>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct DeliveryView<'a> {
    received_at: String,
    principal: &'a str,
    again: u64,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct HeaderView {
    kind: String,
    stream: String,
    sequence: u64,
    time: String,
    clock: String,
    boot: String,
    since_boot_ms: u64,
    signer: String,
    recipients: Vec<String>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct ContentView<'a> {
    content_type: &'a str,
    #[serde(flatten)]
    body: BodyView<'a>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
enum BodyView<'a> {
    Json(Value),
    Text(&'a str),
    Hex(String),
}

impl<'a> RecordView<'a> {
    fn of(record: &'a Record) -> Self {
        let mut view = Self {
            state: "damaged",
            device: record.device.as_str(),
            key: &record.key,
            delivery: record.delivery.as_ref().map(|delivery| DeliveryView {
                received_at: delivery.received_at.to_string(),
                principal: &delivery.principal,
                again: delivery.again,
            }),
            header: record.header().map(HeaderView::of),
            claimed: None,
            reason: None,
            detail: None,
            content: None,
            alarms: record.alarms.iter().map(alarm).collect(),
        };
        match &record.state {
            State::Open { content, .. } => {
                view.state = "open";
                view.content = Some(ContentView {
                    content_type: content.content_type(),
                    body: BodyView::of(content),
                });
            }
            State::Sealed { error, .. } => {
                view.state = "sealed";
                view.detail = Some(error.to_string());
            }
            State::Refused { claimed, reason } => {
                view.state = "refused";
                view.claimed = Some(HeaderView::of(claimed));
                view.reason = Some(reason.as_str());
            }
            State::Damaged { detail } => view.detail = Some(detail.clone()),
        }
        view
    }
}

impl HeaderView {
    fn of(header: &Header) -> Self {
        Self {
            kind: header.kind.to_string(),
            stream: header.stream.to_string(),
            sequence: header.sequence,
            time: header.time.to_string(),
            clock: header.clock.to_string(),
            boot: header.boot.to_string(),
            since_boot_ms: header.since_boot_ms,
            signer: header.signer.to_string(),
            recipients: header.recipients.iter().map(ToString::to_string).collect(),
        }
    }
}

impl<'a> BodyView<'a> {
    fn of(content: &'a zk_envelope::Opened) -> Self {
        let is_json =
            content.header().kind != Kind::Data || content.content_type() == "application/json";
        let json = is_json
            .then(|| serde_json::from_slice(content.body()).ok())
            .flatten();
        match (json, str::from_utf8(content.body())) {
            (Some(json), _) => Self::Json(json),
            (None, Ok(text)) => Self::Text(text),
            (None, Err(_)) => Self::Hex(hex(content.body())),
        }
    }
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct FindingsView {
    device: String,
    clean: bool,
    last_heard: Option<HeardView>,
    streams: Vec<StreamView>,
    unlinked: Vec<String>,
    without_predecessor: Vec<String>,
    rejected: Vec<RejectedView>,
    clock_repairs: Vec<RepairView>,
    clock_unknown: u64,
    ahead: u64,
    heartbeat: Option<HeartbeatView>,
    alarms: Vec<AlarmView>,
    damaged: Vec<DamagedView>,
    registry: Vec<String>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct HeardView {
    received_at: String,
    #[serde(flatten)]
    place: PlaceView,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct PlaceView {
    time: String,
    stream: String,
    sequence: u64,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct StreamView {
    stream: String,
    records: u64,
    first: Option<u64>,
    last: Option<u64>,
    complete_to: u64,
    missing: Vec<GapView>,
    arrived: Vec<RangeView>,
    forks: Vec<RangeView>,
    beyond_end: Vec<RangeView>,
    doubt_from: Option<u64>,
    again: u64,
    is_first: bool,
    previous: Option<PreviousView>,
    successors: Vec<String>,
}

#[derive(Serialize)]
struct GapView {
    #[serde(flatten)]
    range: RangeView,
    receipt: Option<Value>,
}

#[derive(Serialize)]
struct RangeView {
    first: u64,
    last: u64,
}

#[derive(Serialize)]
struct PreviousView {
    stream: String,
    last: u64,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct RejectedView {
    records: u64,
    reason: Value,
    noticed_at: String,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct RepairView {
    #[serde(flatten)]
    place: PlaceView,
    boot: String,
    before: String,
    clock_before: String,
    error_ms: Option<u64>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct HeartbeatView {
    received_at: String,
    interval_ms: u64,
    waiting: u64,
    waiting_bytes: u64,
    sensors: u64,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct AlarmView {
    alarm: &'static str,
    text: String,
    records: u64,
    first: PlaceView,
}

#[derive(Serialize)]
struct DamagedView {
    key: String,
    detail: String,
}

impl FindingsView {
    fn of(findings: &Findings, differences: &[&Difference]) -> Self {
        let clean = findings.is_clean() && findings.last_heard.is_some() && differences.is_empty();
        Self {
            device: findings.device.to_string(),
            clean,
            last_heard: findings
                .last_heard
                .as_ref()
                .map(|(received_at, place)| HeardView {
                    received_at: received_at.to_string(),
                    place: PlaceView::of(place),
                }),
            streams: findings.streams.iter().map(StreamView::of).collect(),
            unlinked: findings.unlinked.iter().map(ToString::to_string).collect(),
            without_predecessor: findings
                .without_predecessor()
                .iter()
                .map(ToString::to_string)
                .collect(),
            rejected: findings
                .rejected
                .iter()
                .map(|receipt| RejectedView {
                    records: receipt.records,
                    reason: name(&receipt.reason),
                    noticed_at: receipt.noticed_at.to_string(),
                })
                .collect(),
            clock_repairs: findings
                .repairs
                .iter()
                .map(|repair| RepairView {
                    place: PlaceView::of(&repair.place),
                    boot: repair.boot.to_string(),
                    before: repair.before.to_string(),
                    clock_before: repair.clock_before.to_string(),
                    error_ms: repair.error_ms,
                })
                .collect(),
            clock_unknown: findings.clock_unknown,
            ahead: findings.ahead,
            heartbeat: findings
                .heartbeat
                .as_ref()
                .map(|(received_at, beat)| HeartbeatView {
                    received_at: received_at.to_string(),
                    interval_ms: beat.interval_ms,
                    waiting: beat.waiting,
                    waiting_bytes: beat.waiting_bytes,
                    sensors: beat.sensors,
                }),
            alarms: findings
                .alarms
                .iter()
                .map(|found| AlarmView {
                    alarm: match found.kind {
                        AlarmKind::UnexpectedRecipient(_) => "unexpected-recipient",
                        AlarmKind::OwnerLeftOut(_) => "owner-left-out",
                        AlarmKind::Refused { reason, .. } => reason.as_str(),
                        _ => "other",
                    },
                    text: alarm(&found.kind),
                    records: found.records,
                    first: PlaceView::of(&found.first),
                })
                .collect(),
            damaged: findings
                .damaged
                .iter()
                .map(|damaged| DamagedView {
                    key: damaged.key.clone(),
                    detail: damaged.detail.clone(),
                })
                .collect(),
            registry: differences.iter().map(ToString::to_string).collect(),
        }
    }
}

impl StreamView {
    fn of(stream: &zk_verify::StreamFindings) -> Self {
        let range = |range: &std::ops::RangeInclusive<u64>| RangeView {
            first: *range.start(),
            last: *range.end(),
        };
        Self {
            stream: stream.stream.to_string(),
            records: stream.records,
            first: stream.seen.as_ref().map(|seen| *seen.start()),
            last: stream.seen.as_ref().map(|seen| *seen.end()),
            complete_to: stream.complete_to,
            missing: stream
                .missing
                .iter()
                .map(|gap| GapView {
                    range: RangeView {
                        first: gap.first,
                        last: gap.last,
                    },
                    receipt: gap.receipt.as_ref().map(name),
                })
                .collect(),
            arrived: stream.arrived.iter().map(range).collect(),
            forks: stream.forks.iter().map(range).collect(),
            beyond_end: stream.beyond_end.iter().map(range).collect(),
            doubt_from: stream.doubt_from,
            again: stream.again,
            is_first: stream.origin == Origin::First,
            previous: match stream.origin {
                Origin::After(previous) => Some(PreviousView {
                    stream: previous.stream.to_string(),
                    last: previous.last,
                }),
                Origin::First | Origin::Unknown => None,
            },
            successors: stream.successors.iter().map(ToString::to_string).collect(),
        }
    }
}

impl PlaceView {
    fn of(place: &Place) -> Self {
        Self {
            time: place.time.to_string(),
            stream: place.stream.to_string(),
            sequence: place.sequence,
        }
    }
}

/// JSON in one line of ASCII: what is in it can't reach a terminal as anything
/// but letters.
pub(crate) fn line(value: &impl Serialize) -> String {
    let mut out = Vec::new();
    // Strings, numbers and lists always serialise, into memory.
    let _ = value.serialize(&mut Serializer::with_formatter(&mut out, Ascii));
    String::from_utf8(out).unwrap_or_default()
}

pub(crate) fn hex(bytes: &[u8]) -> String {
    base16ct::lower::encode_string(bytes)
}

/// The name that a value has in its own serialisation.
fn name(value: &impl Serialize) -> Value {
    serde_json::to_value(value).unwrap_or_default()
}

struct Ascii;

impl Formatter for Ascii {
    fn write_string_fragment<W: ?Sized + io::Write>(
        &mut self,
        writer: &mut W,
        fragment: &str,
    ) -> io::Result<()> {
        for c in fragment.chars() {
            if (' '..='~').contains(&c) {
                writer.write_all(&[c as u8])?;
            } else {
                for unit in c.encode_utf16(&mut [0; 2]) {
                    write!(writer, "\\u{unit:04x}")?;
                }
            }
        }
        Ok(())
    }
}
