//! What a device's stored records say together.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::RangeInclusive;

use zk_envelope::{
    BootId, ClockQuality, DeviceEvent, DeviceId, Header, Heartbeat, KeyId, LossReason, LossReceipt,
    PreviousStream, RecipientId, Report, StreamId, TimeAnchor, Timestamp, TrustedDevice, Verified,
};

use crate::Reason;
use crate::check::is_ahead;
use crate::ranges::Ranges;

/// Gathers what the records of one device say together: is anything missing,
/// twice, or not as it should be?
///
/// Give it each stored record once, in any order: [`Audit::record`] when it
/// verifies, [`Audit::report`] as well when its body is a report, and
/// [`Audit::refused`] or [`Audit::damaged`] when it does not. Two records with
/// the same stream and sequence number are a fork: whoever made them signed two
/// different things as one.
///
/// It keeps ranges of numbers, so that a stream without gaps costs the same
/// memory for ten records as for ten million.
#[derive(Clone, Debug)]
pub struct Audit {
    device: DeviceId,
    owners: BTreeSet<RecipientId>,
    whole: bool,
    streams: BTreeMap<StreamId, Stream>,
    rejected: Vec<LossReceipt>,
    repairs: Vec<ClockRepair>,
    events: Vec<(Place, DeviceEvent)>,
    alarms: BTreeMap<AlarmKind, (u64, Place)>,
    damaged: Vec<Damaged>,
    ahead: u64,
    clock_unknown: u64,
    last_heard: Option<(Timestamp, Place)>,
    heartbeat: Option<(Timestamp, Place, Heartbeat)>,
}

#[derive(Clone, Debug, Default)]
struct Stream {
    seen: Ranges,
    forks: Ranges,
    receipts: Vec<(LossReason, Ranges)>,
    /// What receipts name that say how many records were lost.
    named: Ranges,
    /// The first number of a loss of unknown extent.
    doubt_from: Option<u64>,
    /// What its records say of its beginning, by their numbers: the first
    /// stream, or the one before it and that one's last number.
    origins: BTreeSet<(u64, Option<(StreamId, u64)>)>,
    again: u64,
    first_received: Option<Timestamp>,
}

impl Audit {
    /// `trusted` is what the owner knows of the device. `whole` says that every
    /// stored record of the device is given, those of 1970 included: then
    /// numbers before the first and after the last one seen can be missing too.
    #[must_use]
    pub fn new(device: DeviceId, trusted: &TrustedDevice, whole: bool) -> Self {
        Self {
            device,
            owners: trusted.owners.clone(),
            whole,
            streams: BTreeMap::new(),
            rejected: Vec::new(),
            repairs: Vec::new(),
            events: Vec::new(),
            alarms: BTreeMap::new(),
            damaged: Vec::new(),
            ahead: 0,
            clock_unknown: 0,
            last_heard: None,
            heartbeat: None,
        }
    }

    /// Takes a record that verifies as the device's ([`recheck`](crate::recheck)),
    /// received first at `received_at` and `again` times more.
    pub fn record(&mut self, record: &Verified, received_at: Timestamp, again: u64) {
        let header = record.header();
        let stream = self.streams.entry(header.stream).or_default();
        if stream.seen.contains(header.sequence) {
            stream.forks.insert(header.sequence..=header.sequence);
        }
        stream.seen.insert(header.sequence..=header.sequence);
        stream.again = stream.again.saturating_add(again);
        stream.first_received = Some(
            stream
                .first_received
                .map_or(received_at, |first| first.min(received_at)),
        );

        let recipients = &header.recipients;
        let unexpected = recipients.iter().filter(|id| !self.owners.contains(id));
        let mut kinds: Vec<_> = unexpected
            .copied()
            .map(AlarmKind::UnexpectedRecipient)
            .collect();
        let absent = self.owners.iter().filter(|id| !recipients.contains(id));
        kinds.extend(absent.copied().map(AlarmKind::OwnerLeftOut));
        for kind in kinds {
            self.alarm(kind, header);
        }

        self.ahead += u64::from(is_ahead(header.time, received_at));
        self.clock_unknown += u64::from(header.clock == ClockQuality::Unknown);
        let place = Place::of(header);
        if self
            .last_heard
            .is_none_or(|(at, last)| last.order(at) < place.order(received_at))
        {
            self.last_heard = Some((received_at, place));
        }
    }

    /// Takes the body of a record of kind 2 to 5, in addition to the record.
    pub fn report(&mut self, header: &Header, received_at: Timestamp, report: &Report) {
        match report {
            Report::LossReceipt(receipt) => self.loss_receipt(receipt),
            Report::TimeAnchor(TimeAnchor { before, error_ms }) => {
                self.repairs.extend(before.map(|before| ClockRepair {
                    place: Place::of(header),
                    boot: header.boot,
                    before: before.time,
                    clock_before: before.clock,
                    error_ms: *error_ms,
                }));
            }
            Report::DeviceEvent(DeviceEvent::StreamStarted { previous }) => {
                let stream = self.streams.entry(header.stream).or_default();
                let before = previous.map(|before| (before.stream, before.last));
                stream.origins.insert((header.sequence, before));
            }
            Report::DeviceEvent(event) => self.events.push((Place::of(header), event.clone())),
            Report::Heartbeat(heartbeat) => {
                let place = Place::of(header);
                if self
                    .heartbeat
                    .as_ref()
                    .is_none_or(|(at, last, _)| last.order(*at) < place.order(received_at))
                {
                    self.heartbeat = Some((received_at, place, heartbeat.clone()));
                }
            }
            // Reports that this version does not know change no count.
            _ => {}
        }
    }

    /// Takes a stored record that does not verify as the device's: an alarm.
    /// `claimed` is its header, of which nothing is proven.
    pub fn refused(&mut self, claimed: &Header, reason: Reason) {
        self.alarm(
            AlarmKind::Refused {
                reason,
                signer: claimed.signer,
            },
            claimed,
        );
    }

    /// Takes a stored item that is no record, or one that does not open, under
    /// its key in the store.
    pub fn damaged(&mut self, key: &str, detail: &str) {
        self.damaged.push(Damaged {
            key: key.to_owned(),
            detail: detail.to_owned(),
        });
    }

    /// What it all says.
    #[must_use]
    pub fn finish(mut self) -> Findings {
        let mut successors: BTreeMap<StreamId, Vec<(StreamId, u64)>> = BTreeMap::new();
        for (id, stream) in &self.streams {
            for (_, before) in &stream.origins {
                if let Some((before, last)) = before {
                    successors.entry(*before).or_default().push((*id, *last));
                }
            }
        }
        if self.whole {
            for id in successors.keys() {
                self.streams.entry(*id).or_default();
            }
        }
        let mut streams: Vec<_> = std::mem::take(&mut self.streams)
            .into_iter()
            .map(|(id, stream)| {
                let successors = successors.remove(&id).unwrap_or_default();
                (
                    stream.first_received,
                    stream.findings(id, &successors, self.whole),
                )
            })
            .collect();
        streams.sort_by_key(|(first_received, findings)| (*first_received, findings.stream));
        let streams: Vec<_> = streams.into_iter().map(|(_, findings)| findings).collect();
        let unlinked = if self.whole {
            unlinked(&streams)
        } else {
            Vec::new()
        };
        // A receipt may be sealed twice if the device stops in between.
        self.rejected
            .sort_by_key(|receipt| (receipt.noticed_at, receipt.records, receipt.reason as u8));
        self.rejected.dedup();
        self.repairs
            .sort_by_key(|repair| (repair.place.stream, repair.place.sequence));
        self.events
            .sort_by_key(|(place, _)| (place.stream, place.sequence));
        Findings {
            device: self.device,
            streams,
            unlinked,
            rejected: self.rejected,
            repairs: self.repairs,
            events: self.events,
            alarms: self
                .alarms
                .into_iter()
                .map(|(kind, (records, first))| Alarm {
                    kind,
                    records,
                    first,
                })
                .collect(),
            damaged: self.damaged,
            ahead: self.ahead,
            clock_unknown: self.clock_unknown,
            last_heard: self.last_heard,
            heartbeat: self.heartbeat.map(|(at, _, heartbeat)| (at, heartbeat)),
        }
    }

    fn loss_receipt(&mut self, receipt: &LossReceipt) {
        let Some(range) = receipt.range else {
            self.rejected.push(receipt.clone());
            return;
        };
        let stream = self.streams.entry(range.stream).or_default();
        if receipt.records == 0 {
            let from = stream.doubt_from.unwrap_or(range.first);
            stream.doubt_from = Some(from.min(range.first));
        } else {
            stream.named.insert(range.first..=range.last);
        }
        let receipts = &mut stream.receipts;
        let numbers = range.first..=range.last;
        if let Some((_, known)) = receipts
            .iter_mut()
            .find(|(reason, _)| *reason == receipt.reason)
        {
            known.insert(numbers);
        } else {
            let mut known = Ranges::default();
            known.insert(numbers);
            receipts.push((receipt.reason, known));
        }
    }

    fn alarm(&mut self, kind: AlarmKind, header: &Header) {
        let place = Place::of(header);
        let (records, first) = self.alarms.entry(kind).or_insert((0, place));
        *records += 1;
        if (place.time, place.sequence) < (first.time, first.sequence) {
            *first = place;
        }
    }
}

impl Stream {
    fn findings(
        self,
        stream: StreamId,
        successors: &[(StreamId, u64)],
        whole: bool,
    ) -> StreamFindings {
        // What came after it says where it ended.
        let stated_end = successors.iter().map(|(_, last)| *last).max();
        let seen = self.seen.first().zip(self.seen.last());
        let bounds = if whole {
            // So does a receipt: what it says is lost was there.
            let lost = self.receipts.iter().filter_map(|(_, lost)| lost.last());
            let ends = lost.chain(self.seen.last()).chain(stated_end);
            (1, ends.max().unwrap_or(0))
        } else {
            seen.unwrap_or((1, 0))
        };
        let missing = self.missing(bounds.0..=bounds.1);
        let unexplained = missing.iter().find(|gap| gap.receipt.is_none());
        let complete_to = unexplained.map_or(bounds.1, |gap| gap.first - 1);
        let beyond_end = stated_end
            .and_then(|end| end.checked_add(1))
            .map(|from| self.seen.within(from..=u64::MAX).collect())
            .unwrap_or_default();
        let lost = self.named.within(0..=u64::MAX);
        let arrived = lost.flat_map(|range| self.seen.within(range)).collect();
        let mut successor_ids: Vec<_> = successors.iter().map(|(id, _)| *id).collect();
        successor_ids.dedup();
        StreamFindings {
            stream,
            records: self.seen.count(),
            seen: seen.map(|(first, last)| first..=last),
            complete_to,
            missing,
            arrived,
            forks: self.forks.into_vec(),
            doubt_from: self.doubt_from,
            again: self.again,
            origin: self.origins.first().map_or(Origin::Unknown, |(_, before)| {
                before.map_or(Origin::First, |(stream, last)| {
                    Origin::After(PreviousStream { stream, last })
                })
            }),
            successors: successor_ids,
            beyond_end,
        }
    }

    /// The gaps within `bounds`, cut where a receipt begins or ends.
    fn missing(&self, bounds: RangeInclusive<u64>) -> Vec<Gap> {
        let gap = |range: RangeInclusive<u64>, receipt| Gap {
            first: *range.start(),
            last: *range.end(),
            receipt,
        };
        let mut open = self.seen.gaps(bounds);
        let mut missing = Vec::new();
        for (reason, lost) in &self.receipts {
            let covered = open.iter().flat_map(|range| lost.within(range.clone()));
            missing.extend(covered.map(|range| gap(range, Some(*reason))));
            open = open
                .into_iter()
                .flat_map(|range| lost.gaps(range))
                .collect();
        }
        missing.extend(open.into_iter().map(|range| gap(range, None)));
        missing.sort_by_key(|gap| gap.first);
        missing
    }
}

/// The streams of unknown beginning, if any of them may come after one of
/// several that nothing is known to come after.
fn unlinked(streams: &[StreamFindings]) -> Vec<StreamId> {
    let open = streams
        .iter()
        .filter(|stream| stream.successors.is_empty())
        .count();
    let unknown = streams
        .iter()
        .filter(|stream| open > 1 && stream.records > 0 && stream.origin == Origin::Unknown);
    unknown.map(|stream| stream.stream).collect()
}

/// What an [`Audit`] found.
#[derive(Clone, Debug)]
pub struct Findings {
    /// The device.
    pub device: DeviceId,
    /// Its streams, in the order in which they were first heard of.
    pub streams: Vec<StreamFindings>,
    /// Streams of which the record that tells their beginning is not there, while
    /// there is more than one that no other is known to follow: any of those may
    /// have gone on past its last record, and one of these have taken its place.
    pub unlinked: Vec<StreamId>,
    /// Readings that the device refused before they had a number, in the order in
    /// which it noticed.
    pub rejected: Vec<LossReceipt>,
    /// Where the wall clock was set, in the order of the streams.
    pub repairs: Vec<ClockRepair>,
    /// What happened to the device and its security module, in the order of the
    /// streams. Their beginnings are in `streams`.
    pub events: Vec<(Place, DeviceEvent)>,
    /// What the owner should look into.
    pub alarms: Vec<Alarm>,
    /// Stored items that are no records, or do not open.
    pub damaged: Vec<Damaged>,
    /// Records whose time is more than an hour ahead of their receipt.
    pub ahead: u64,
    /// Records made while nothing was known of the clock.
    pub clock_unknown: u64,
    /// When the last record was received, and which one it is.
    pub last_heard: Option<(Timestamp, Place)>,
    /// The last heartbeat and when it was received. The next is due after its
    /// interval.
    pub heartbeat: Option<(Timestamp, Heartbeat)>,
}

impl Findings {
    /// Whether every record is there or its loss stated by the device, and
    /// nothing needs to be looked into.
    #[must_use]
    pub fn is_clean(&self) -> bool {
        self.alarms.is_empty()
            && self.damaged.is_empty()
            && self.unlinked.is_empty()
            && self.streams.iter().all(StreamFindings::is_clean)
    }

    /// The streams that say that they are the device's first. With more than one
    /// of them nothing need be wrong: each spool begins without a predecessor,
    /// as does that of a storage card that was replaced, with what was on it.
    #[must_use]
    pub fn without_predecessor(&self) -> Vec<StreamId> {
        let first = |stream: &&StreamFindings| stream.origin == Origin::First;
        let streams = self.streams.iter().filter(first);
        streams.map(|stream| stream.stream).collect()
    }
}

/// What an [`Audit`] found of one stream.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StreamFindings {
    /// The stream.
    pub stream: StreamId,
    /// How many records there are.
    pub records: u64,
    /// The lowest and the highest number among them; `None` for a stream that
    /// only others tell of.
    pub seen: Option<RangeInclusive<u64>>,
    /// Up to this number every record is there or its loss is stated.
    pub complete_to: u64,
    /// What is not there, ascending.
    pub missing: Vec<Gap>,
    /// What a receipt names as lost, and is there all the same: a record that was
    /// refused and was published again by hand, or one that was delivered while
    /// the device still took it for undelivered. Nothing is wrong with that.
    pub arrived: Vec<RangeInclusive<u64>>,
    /// Numbers that more than one record has.
    pub forks: Vec<RangeInclusive<u64>>,
    /// From this number on the device's storage could not be read: how many
    /// records were lost there is not known.
    pub doubt_from: Option<u64>,
    /// How often records came in again after they were stored.
    pub again: u64,
    /// What the stream's first record says of its beginning.
    pub origin: Origin,
    /// The streams that say that they come after this one. More than one means
    /// that the device's storage or its key was copied.
    pub successors: Vec<StreamId>,
    /// Records past the number at which the device says the stream ended.
    pub beyond_end: Vec<RangeInclusive<u64>>,
}

impl StreamFindings {
    /// As [`Findings::is_clean`], of this stream.
    #[must_use]
    pub fn is_clean(&self) -> bool {
        self.missing.iter().all(|gap| gap.receipt.is_some())
            && self.forks.is_empty()
            && self.doubt_from.is_none()
            && self.beyond_end.is_empty()
            && self.successors.len() <= 1
    }
}

/// Consecutive numbers of which there is no record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Gap {
    /// The first number.
    pub first: u64,
    /// The last number, at least `first`.
    pub last: u64,
    /// Why, if the device gave a receipt for the loss.
    pub receipt: Option<LossReason>,
}

/// What a stream's first record says of its beginning.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Origin {
    /// It was not among the records.
    #[default]
    Unknown,
    /// It is the device's first stream.
    First,
    /// It takes the place of another one.
    After(PreviousStream),
}

/// Where a record stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    /// Its wall clock.
    pub time: Timestamp,
    /// Its stream.
    pub stream: StreamId,
    /// Its number there.
    pub sequence: u64,
}

impl Place {
    fn of(header: &Header) -> Self {
        Self {
            time: header.time,
            stream: header.stream,
            sequence: header.sequence,
        }
    }

    /// Which of two records is the later one.
    fn order(&self, received_at: Timestamp) -> (Timestamp, StreamId, u64) {
        (received_at, self.stream, self.sequence)
    }
}

/// The wall clock was set: the times of earlier records of this boot are off by
/// `place.time - before`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ClockRepair {
    /// The record that says so; its time is the new one.
    pub place: Place,
    /// The boot during which it happened.
    pub boot: BootId,
    /// What the clock would have said.
    pub before: Timestamp,
    /// What was known of the clock before.
    pub clock_before: ClockQuality,
    /// The most by which the new time may be wrong, if the device's kernel says.
    pub error_ms: Option<u64>,
}

/// Something that should not be, and how often.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Alarm {
    /// What.
    pub kind: AlarmKind,
    /// In how many records.
    pub records: u64,
    /// The earliest of them, by its own word.
    pub first: Place,
}

/// What an [`Alarm`] is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[non_exhaustive]
pub enum AlarmKind {
    /// Encrypted for somebody who is none of the device's owners.
    UnexpectedRecipient(RecipientId),
    /// Not encrypted for one of the owners.
    OwnerLeftOut(RecipientId),
    /// Stored, but it does not verify as the device's.
    Refused {
        /// Why.
        reason: Reason,
        /// The key that it names.
        signer: KeyId,
    },
}

/// A stored item that is no record, or does not open.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Damaged {
    /// Its key in the store.
    pub key: String,
    /// What is wrong with it.
    pub detail: String,
}
