//! From readings to sealed records in the spool, and receipts for what is lost.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::RangeInclusive;
use std::sync::atomic::Ordering;
use std::sync::{Arc, OnceLock, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use jiff::SignedDuration;
use p256::ecdsa::Signature;
use p256::ecdsa::signature::{Error as SignatureError, Signer};
use zk_envelope::{
    Content, DeviceEvent, LossReason, LossReceipt, Moment, PreviousStream, Report, Sealer,
    SequenceRange, StreamId, Timestamp,
};
use zk_hsm::Class;
use zk_sensors::Reading;
use zk_spool::{AppendError, Spool};

use super::inbox::{Inbox, Sweep, Taken};
use super::progress::{Event, Progress};
use crate::Error;
use crate::clock::{self, Clock};
use crate::files::Reminder;
use crate::socket::{Answer, Data};

/// Everything that it takes to make records of readings.
pub(super) struct Sealing<K> {
    pub(super) sealer: Sealer,
    pub(super) key: K,
    pub(super) spool: Arc<Spool>,
    pub(super) clock: Clock,
    pub(super) progress: Arc<Progress>,
    pub(super) patience: Arc<OnceLock<Instant>>,
    pub(super) heartbeat: Duration,
    /// Where the record is, or can be, that says how the stream began; `None` if
    /// there is none.
    pub(super) started: Option<RangeInclusive<u64>>,
    /// Where the last anchor is that vouches for the clock; `None` if there is none,
    /// or it was lost: then a right clock is worth another.
    pub(super) anchored: Option<u64>,
    pub(super) receipts: Receipts,
    /// A receipt found no room; the next try is when a record has found some.
    pub(super) receipts_wait: bool,
    /// The last loss that metrics have counted.
    pub(super) counted: u64,
    /// The most bytes in a body of readings: [`MAX_BODY`], or what the spool takes.
    pub(super) largest: usize,
    /// Whether it is worth a record that the key signs again.
    pub(super) recoveries: bool,
    /// Since when the key has not signed.
    pub(super) out_since: Option<Instant>,
    /// For how long it had not, until just now.
    pub(super) recovered: Option<Duration>,
    /// Of the certificate, whose end nobody may see coming.
    pub(super) reminder: Reminder,
}

impl<K: Signer<Signature>> Sealing<K> {
    pub(super) fn run_to_the_end(mut self, inbox: &Inbox) -> Result<Receipts, Error> {
        let outcome = self.run(inbox);
        self.progress.ended.store(true, Ordering::Relaxed);
        if let Err(error) = &outcome {
            inbox.close();
            loop {
                match inbox.take(Instant::now(), usize::MAX) {
                    Taken::Sweeps(sweeps) => {
                        for sweep in sweeps {
                            self.progress.give_up(&sweep.readings);
                        }
                    }
                    Taken::Event(event) => tracing::error!(?event, "it is not in any record"),
                    Taken::Nothing | Taken::Closed => break,
                    // Who handed data over is told that it is not taken.
                    Taken::Data(_) | Taken::Heartbeat(_) => {}
                }
            }
            let lost = self.progress.uncounted.load(Ordering::Relaxed);
            tracing::error!(%error, readings_lost = lost, "the agent stops");
            // If it is not the spool that failed, the next start can name them.
            if let Err(error) = self.count_given_up() {
                tracing::error!(%error, "they could not be counted");
            }
        }
        outcome.map(|()| self.receipts)
    }

    pub(super) fn run(&mut self, inbox: &Inbox) -> Result<(), Error> {
        self.begin()?;
        // What was read first does not wait for a sign of life to be signed.
        let mut next_heartbeat = Instant::now() + self.heartbeat.min(FIRST_BEAT);
        loop {
            if Instant::now() >= next_heartbeat {
                self.beat()?;
                next_heartbeat = Instant::now() + self.heartbeat;
            }
            self.receipts()?;
            if let Some(outage) = self.recovered.take()
                && self.recoveries
            {
                let outage_ms = outage.as_millis().try_into().unwrap_or(u64::MAX);
                self.event(DeviceEvent::ModuleRecovered { outage_ms })?;
            }
            // What came in while the key signed shares the next record.
            self.progress.sealer.waits();
            let taken = inbox.take(next_heartbeat, READINGS_GATHERED);
            self.progress.sealer.works();
            match taken {
                Taken::Sweeps(sweeps) => self.sweeps(sweeps)?,
                Taken::Event(event) => self.event(event)?,
                Taken::Data(data) => self.data(data)?,
                Taken::Heartbeat(interval) => {
                    self.heartbeat = interval;
                    next_heartbeat = next_heartbeat.min(Instant::now() + interval);
                }
                Taken::Nothing => {}
                Taken::Closed => {
                    // There may be room now, and no record comes to find it.
                    self.receipts_wait = false;
                    self.receipts()?;
                    return Ok(self.spool.sync()?);
                }
            }
        }
    }

    /// Finds out where an earlier process left off.
    pub(super) fn begin(&mut self) -> Result<(), Error> {
        let last = self.spool.stats()?.next_sequence - 1;
        self.started = (last > 0).then_some(1..=last);
        // Once they were asked for they grow no more: an earlier process may have
        // named them.
        self.spool.losses()?;
        Ok(())
    }

    fn beat(&mut self) -> Result<(), Error> {
        if let Some(what) = self.reminder.due(Instant::now(), SystemTime::now()) {
            tracing::warn!("{what}");
        }
        let stats = self.spool.stats()?;
        let beat = Report::Heartbeat(zk_envelope::Heartbeat {
            interval_ms: self.heartbeat.as_millis().try_into().unwrap_or(u64::MAX),
            waiting: stats.records,
            waiting_bytes: stats.bytes,
            sensors: self.progress.sensors.load(Ordering::Relaxed),
        });
        if self.append(Content::Report(&beat), Room::Usual)?.is_none() {
            self.progress.tell(Event::GivenUp(&[]));
        }
        Ok(())
    }

    /// Something happened to the device: a full spool still has room for it.
    fn event(&mut self, event: DeviceEvent) -> Result<(), Error> {
        let event = Report::DeviceEvent(event);
        if self
            .append(Content::Report(&event), Room::Receipts)?
            .is_none()
        {
            self.progress.tell(Event::GivenUp(&[]));
        }
        Ok(())
    }

    /// Data of another program, which is told what becomes of it once that is sure.
    fn data(&mut self, data: Data) -> Result<(), Error> {
        // Who has gone hands it over again.
        if data.answer.is_closed() {
            return Ok(());
        }
        let content = Content::Data {
            content_type: &data.content_type,
            body: &data.body,
        };
        let answer = match self.append(content, Room::Usual) {
            Ok(Some(sequence)) => {
                if self.spool.stats()?.unsynced > 0 {
                    self.spool.sync()?;
                }
                let stream = StreamId(self.spool.stream().0);
                Answer::Taken { stream, sequence }
            }
            Ok(None) => Answer::Full,
            Err(Error::Spool(zk_spool::Error::TooLarge { .. })) => Answer::TooLarge,
            Err(error) => return Err(error),
        };
        let counter = match answer {
            Answer::Taken { .. } => &self.progress.data_taken,
            Answer::Full | Answer::TooLarge => &self.progress.data_refused,
        };
        counter.fetch_add(1, Ordering::Relaxed);
        // It may have gone meanwhile.
        let _ = data.answer.send(answer);
        Ok(())
    }

    /// Hands what was given up to the spool, which remembers it.
    fn count_given_up(&mut self) -> Result<(), Error> {
        if self.progress.abandoned.load(Ordering::SeqCst) {
            return Ok(());
        }
        let given_up = self.progress.uncounted.swap(0, Ordering::Relaxed);
        if given_up > 0 {
            self.spool.refuse(given_up)?;
        }
        Ok(())
    }

    /// Names what was lost, in records that nobody can change. What finds no
    /// room stays counted, and is named when there is some.
    pub(super) fn receipts(&mut self) -> Result<(), Error> {
        self.count_given_up()?;
        if self.receipts_wait {
            return Ok(());
        }
        let losses = self.receipts.unnamed()?;
        let stream = self.spool.stream();
        for loss in losses.iter().filter(|loss| loss.id > self.counted) {
            let receipt = receipt_of(loss, stream);
            self.progress
                .lost
                .add(reason_of(receipt.reason), receipt.records);
        }
        let last = losses.last().map_or(0, |loss| loss.id);
        self.counted = self.counted.max(last);
        if let Some(place) = &self.started
            && losses.iter().any(|loss| takes(loss, stream, place))
        {
            self.started = None;
        }
        if let Some(number) = self.anchored
            && losses
                .iter()
                .any(|loss| takes(loss, stream, &(number..=number)))
        {
            self.anchored = None;
        }
        for run in losses.chunk_by(continues) {
            let Some((first, last)) = run.first().zip(run.last()) else {
                continue;
            };
            if self.receipts.waiting()? >= self.receipts.most() {
                return Ok(());
            }
            let mut loss = *last;
            loss.first = first.first;
            loss.records = run.iter().map(|loss| loss.records).sum();
            let receipt = receipt_of(&loss, stream);
            tracing::warn!(reason = ?loss.reason, records = receipt.records, "records are lost");
            let Some(sequence) = self.receipt(receipt)? else {
                return Ok(());
            };
            let ids = run.iter().map(|loss| (loss.id, sequence));
            self.receipts.named.extend(ids);
        }
        Ok(())
    }

    /// `None`: there is no room even for this.
    fn receipt(&mut self, receipt: LossReceipt) -> Result<Option<u64>, Error> {
        let report = Report::LossReceipt(receipt);
        let mut taken = None;
        if self.start_stream()? {
            let now = self.clock.now();
            taken = self.seal_until_signed(&now, Content::Report(&report), &[], Room::Receipts)?;
        }
        if taken.is_none() {
            self.progress.tell(Event::GivenUp(&[]));
        }
        self.receipts_wait = taken.is_none();
        Ok(taken)
    }

    /// Readings by the clock of their record's header, whatever the system's said
    /// when they were taken: an anchor goes before them then.
    pub(super) fn sweeps(&mut self, sweeps: Vec<Sweep>) -> Result<(), Error> {
        let mut waiting: Vec<(Reading, i64)> = Vec::new();
        for Sweep { readings, offset } in sweeps {
            waiting.extend(readings.into_iter().map(|reading| (reading, offset)));
        }
        while !waiting.is_empty() {
            let now = self.moment(Room::Usual);
            let dated = |(reading, offset): &(Reading, i64)| {
                let shift = now.as_ref().ok().and_then(|now| now.as_ref());
                let shift = shift.map_or(0, |now| clock::shift(*offset, now));
                let at = reading
                    .at
                    .saturating_add(SignedDuration::from_millis(shift));
                Reading {
                    at: at.unwrap_or(reading.at),
                    ..*reading
                }
            };
            let mut readings: Vec<Reading> = waiting.iter().map(dated).collect();
            let (body, taken) = body_of(&readings, self.largest).ok_or(Error::ThreadEnded)?;
            let content = Content::Data {
                content_type: "application/json",
                body: &body,
            };
            let outcome = match now {
                Ok(Some(now)) => {
                    self.seal_until_signed(&now, content, &readings[..taken], Room::Usual)
                }
                Ok(None) => Ok(None),
                Err(error) => Err(error),
            };
            match outcome {
                Ok(Some(_)) => {
                    self.receipts_wait = false;
                    let count = taken as u64;
                    self.progress.sealed.fetch_add(count, Ordering::Relaxed);
                }
                Ok(None) => {
                    readings.truncate(taken);
                    self.progress.give_up(&readings);
                    // The spool has counted the record: for one of them.
                    self.progress.uncounted.fetch_sub(1, Ordering::Relaxed);
                    self.count_given_up()?;
                }
                Err(Error::Spool(zk_spool::Error::TooLarge { .. })) if taken > 1 => {
                    // So small is the spool: from now on its records are, too.
                    self.largest = body.len() / 2;
                    continue;
                }
                Err(error) => {
                    self.progress.give_up(&readings);
                    return Err(error);
                }
            }
            waiting.drain(..taken);
        }
        Ok(())
    }

    /// Readings that were taken by the clock as it is.
    #[cfg(test)]
    pub(super) fn readings(&mut self, readings: Vec<Reading>) -> Result<(), Error> {
        let offset = clock::ahead(&self.clock.now());
        self.sweeps(vec![Sweep { readings, offset }])
    }

    /// A record, and before it an anchor if the clock was set. `None`: the spool is
    /// full, and has counted it.
    fn append(&mut self, content: Content<'_>, room: Room) -> Result<Option<u64>, Error> {
        let Some(now) = self.moment(room)? else {
            return Ok(None);
        };
        let taken = self.seal_until_signed(&now, content, &[], room)?;
        self.receipts_wait &= taken.is_none();
        Ok(taken)
    }

    /// The moment of the next record, after what has to be before it: the first
    /// record of the stream, and an anchor if the clock was set. `None`: there is no
    /// room for these, which the spool has counted as one.
    fn moment(&mut self, room: Room) -> Result<Option<Moment>, Error> {
        if !self.start_stream()? {
            return Ok(None);
        }
        let now = self.clock.read();
        if let Some(anchor) = self.clock.anchor(&now, self.anchored.is_some()) {
            let report = Content::Report(&anchor);
            let taken = self.seal_until_signed(&now.moment, report, &[], room)?;
            let Some(sequence) = taken else {
                return Ok(None);
            };
            tracing::info!(?anchor, "the clock was set");
            if matches!(&anchor, Report::TimeAnchor(anchor) if anchor.error_ms.is_some()) {
                self.anchored = Some(sequence);
            }
        }
        self.clock.follow(&now);
        *self
            .progress
            .clock
            .lock()
            .unwrap_or_else(PoisonError::into_inner) = Some(now.moment.clock);
        // If the clock was set once more while the key signed the anchor, the record
        // is of that moment, and the next anchor is before the next record.
        Ok(Some(now.moment))
    }

    /// The first record of a stream says which stream it takes the place of; if
    /// it is lost, another one does.
    fn start_stream(&mut self) -> Result<bool, Error> {
        if self.started.is_none() {
            let previous = self.spool.predecessor().map(|before| PreviousStream {
                stream: StreamId(before.stream.0),
                last: before.last_sequence,
            });
            let started = Report::DeviceEvent(DeviceEvent::StreamStarted { previous });
            let now = self.clock.now();
            let sequence =
                self.seal_until_signed(&now, Content::Report(&started), &[], Room::Receipts)?;
            self.started = sequence.map(|sequence| sequence..=sequence);
        }
        Ok(self.started.is_some())
    }

    /// Tries until the key signs, and returns the record's number; `None`: there
    /// is no room for it. However long that takes, the record is of that moment, by
    /// whose clock its body is. A key that is out for good, or stuck, is an error, and
    /// so is one that does not sign while the agent is to stop.
    fn seal_until_signed(
        &mut self,
        now: &Moment,
        content: Content<'_>,
        readings: &[Reading],
        room: Room,
    ) -> Result<Option<u64>, Error> {
        let mut pause = Duration::from_millis(50);
        loop {
            let Self {
                sealer, key, spool, ..
            } = self;
            self.progress.sealer.works();
            let abandoned = &self.progress.abandoned;
            let seal = |sequence| {
                let envelope = sealer.seal(&*key, now, sequence, content)?;
                // The signature came too late.
                match abandoned.load(Ordering::SeqCst) {
                    true => Err(zk_envelope::Error::Sign(SignatureError::new())),
                    false => Ok(envelope.to_bytes()),
                }
            };
            let outcome = match room {
                Room::Usual => spool.append_with(seal),
                Room::Receipts => spool.append_receipt_with(seal),
            };
            let waits = matches!(&outcome, Err(AppendError::Seal(_)));
            self.progress.waits_for_key.store(waits, Ordering::Relaxed);
            match outcome {
                Ok(sequence) => {
                    if let Some(since) = self.out_since.take() {
                        self.recovered = Some(since.elapsed());
                    }
                    let stream = StreamId(spool.stream().0);
                    self.progress.tell(match content {
                        Content::Data { .. } => Event::Sealed {
                            stream,
                            sequence,
                            readings,
                        },
                        Content::Report(report) => Event::Reported {
                            stream,
                            sequence,
                            report,
                        },
                    });
                    return Ok(Some(sequence));
                }
                Err(AppendError::Spool(
                    zk_spool::Error::Full { .. } | zk_spool::Error::DiskFull { .. },
                )) => return Ok(None),
                Err(AppendError::Spool(error)) => return Err(error.into()),
                Err(AppendError::Seal(error)) if may_pass(&error) => {
                    self.out_since.get_or_insert_with(Instant::now);
                    let left = self.patience.get().map(|until| {
                        let left = until.saturating_duration_since(Instant::now());
                        (!left.is_zero()).then_some(left)
                    });
                    let wait = match left {
                        None => pause,
                        Some(Some(left)) => pause.min(left),
                        Some(None) => return Err(error.into()),
                    };
                    tracing::warn!(%error, "next try in {wait:?}");
                    self.progress.sealer.waits();
                    std::thread::park_timeout(wait);
                    pause = (pause * 2).min(Duration::from_secs(5));
                }
                Err(AppendError::Seal(error)) => return Err(error.into()),
            }
        }
    }
}

/// Which room in the spool a record may take.
#[derive(Clone, Copy)]
pub(super) enum Room {
    Usual,
    /// Kept free for loss receipts, so that a full spool can still say so, and for
    /// what happens to the device.
    Receipts,
}

/// Which losses are named by receipts that lie in the spool.
///
/// A loss is confirmed when its receipt was delivered, and not before: a full
/// spool that drops its oldest records drops receipts too, the cloud may refuse
/// one, and what these named has to be named again. A process that starts knows of
/// no receipt and names all once more, which the audit takes for the same.
#[derive(Debug)]
pub(super) struct Receipts {
    spool: Arc<Spool>,
    /// By the losses' ids, the receipts' numbers in the spool's present stream.
    named: BTreeMap<u64, u64>,
    /// How many receipts may wait at a time. In a small spool that drops its
    /// oldest records more of them would drive each other out, and all readings.
    most: usize,
    /// How often in a row receipts were refused.
    refusals: u32,
    /// The number that has to be done with before the next receipt.
    after: u64,
}

impl Receipts {
    pub(super) fn new(spool: &Arc<Spool>, cap: u64) -> Self {
        let most = usize::try_from(cap / 2 / RECEIPT).unwrap_or(usize::MAX);
        Self {
            spool: Arc::clone(spool),
            named: BTreeMap::new(),
            most: most.max(1),
            refusals: 0,
            after: 0,
        }
    }

    /// How many receipts may wait at a time: one alone, to see whether it is taken,
    /// after one was refused.
    fn most(&self) -> usize {
        if self.refusals > 0 { 1 } else { self.most }
    }

    /// How many receipts are in the spool, not delivered yet.
    fn waiting(&self) -> Result<usize, Error> {
        let acked = self.spool.stats()?.acked;
        let done = acked.map_or(0, |(of, to)| if of == self.spool.stream() { to } else { 0 });
        let numbers: BTreeSet<_> = self.named.values().filter(|at| **at > done).collect();
        Ok(numbers.len())
    }

    /// Confirms what is delivered. Returns what no receipt in the spool names.
    pub(super) fn unnamed(&mut self) -> Result<Vec<zk_spool::Loss>, Error> {
        let stream = self.spool.stream();
        // Asked first: what moved it by dropping or refusing records is among the
        // losses.
        let acked = self.spool.stats()?.acked;
        let done = acked.map_or(0, |(of, to)| if of == stream { to } else { 0 });
        let mut losses = self.spool.losses()?;
        for loss in &losses {
            if self.named.contains_key(&loss.id) {
                continue;
            }
            let before = self.named.len();
            self.named
                .retain(|_, number| !takes(loss, stream, &(*number..=*number)));
            if self.named.len() < before && loss.reason == zk_spool::Reason::Refused {
                let behind = 1 << self.refusals.min(MOST_BEHIND);
                self.after = loss.last.saturating_add(behind);
                self.refusals += 1;
            }
        }
        let delivered = |loss: &&zk_spool::Loss| {
            let number = self.named.get(&loss.id);
            number.is_some_and(|number| *number <= done)
        };
        let last = losses.iter().take_while(delivered).last();
        if let Some(id) = last.map(|loss| loss.id) {
            self.spool.confirm(id)?;
            losses.retain(|loss| loss.id > id);
            self.named.retain(|named, _| *named > id);
            self.refusals = 0;
        }
        // A cloud that refused the last thing it was given would refuse the receipt
        // for it as well, and that one's, without an end.
        let refused = losses.iter().any(|loss| {
            loss.reason == zk_spool::Reason::Refused && loss.stream == stream && loss.last == done
        });
        if self.refusals > 0 && (refused || done < self.after) {
            return Ok(Vec::new());
        }
        losses.retain(|loss| !self.named.contains_key(&loss.id));
        Ok(losses)
    }
}

/// Whether a loss can have taken away the record at one of these numbers before
/// it was delivered.
fn takes(loss: &zk_spool::Loss, stream: zk_spool::StreamId, numbers: &RangeInclusive<u64>) -> bool {
    let last = if loss.records == 0 {
        u64::MAX
    } else {
        loss.last
    };
    match loss.reason {
        zk_spool::Reason::Full => false,
        zk_spool::Reason::Damaged | zk_spool::Reason::Dropped | zk_spool::Reason::Refused => {
            loss.stream == stream && loss.first <= *numbers.end() && *numbers.start() <= last
        }
        // Of several, nobody knows which.
        _ => true,
    }
}

/// The reason as metrics name it.
fn reason_of(reason: LossReason) -> &'static str {
    match reason {
        LossReason::Damaged => "damaged",
        LossReason::Dropped => "dropped",
        LossReason::Refused => "refused",
        LossReason::Rejected => "rejected",
        _ => "several",
    }
}

/// Whether two losses can be named as one, exactly.
fn continues(one: &zk_spool::Loss, next: &zk_spool::Loss) -> bool {
    use zk_spool::Reason::{Damaged, Dropped, Refused};
    matches!(one.reason, Damaged | Dropped | Refused)
        && (one.reason, one.stream) == (next.reason, next.stream)
        && one.records > 0
        && next.records > 0
        && one.last.checked_add(1) == Some(next.first)
}

/// The body of a record of the first of these readings, at least one, of so many
/// bytes at most, and how many they are.
fn body_of(readings: &[Reading], largest: usize) -> Option<(Vec<u8>, usize)> {
    let mut body = br#"{"readings":["#.to_vec();
    let mut taken = 0;
    for reading in readings {
        let start = body.len();
        if taken > 0 {
            body.push(b',');
        }
        serde_json::to_writer(&mut body, reading).ok()?;
        if taken > 0 && body.len() + END.len() > largest {
            body.truncate(start);
            break;
        }
        taken += 1;
    }
    body.extend_from_slice(END);
    Some((body, taken))
}

/// Whether the same key may sign later, in this process.
pub(super) fn may_pass(error: &zk_envelope::Error) -> bool {
    let zk_envelope::Error::Sign(error) = error else {
        return false;
    };
    match std::error::Error::source(error).and_then(|source| source.downcast_ref::<zk_hsm::Error>())
    {
        // Only another process can open it anew.
        Some(zk_hsm::Error::Wedged { elapsed, .. }) => *elapsed < STUCK,
        Some(error) => error.class() == Class::Transient,
        None => false,
    }
}

/// The receipt that tells the owner of a loss in a spool, whose present stream is
/// `stream`.
#[must_use]
pub fn receipt_of(loss: &zk_spool::Loss, stream: zk_spool::StreamId) -> LossReceipt {
    let (reason, stream) = match loss.reason {
        zk_spool::Reason::Damaged => (LossReason::Damaged, loss.stream),
        zk_spool::Reason::Dropped => (LossReason::Dropped, loss.stream),
        zk_spool::Reason::Refused => (LossReason::Refused, loss.stream),
        zk_spool::Reason::Full => (LossReason::Rejected, loss.stream),
        // The table of losses is damaged: nobody knows what stood in it. All
        // that the stream has is in doubt then, whatever the number.
        _ if loss.records == 0 => (LossReason::Damaged, stream),
        _ => (LossReason::Several, stream),
    };
    let numbered = !matches!(reason, LossReason::Rejected | LossReason::Several);
    let range = numbered.then(|| {
        let first = loss.first.max(1);
        SequenceRange {
            stream: StreamId(stream.0),
            first,
            last: loss.last.max(first),
        }
    });
    let records = match range {
        Some(_) if loss.records == 0 => 0,
        Some(range) => range.last - range.first + 1,
        None => loss.records,
    };
    let noticed_at = Timestamp::from_millis(loss.until_ms).unwrap_or(Timestamp::MAX);
    LossReceipt {
        reason,
        records,
        range,
        noticed_at,
    }
}

/// Bytes of JSON in a record of readings, at most.
pub(super) const MAX_BODY: usize = 48 * 1024;
/// How a body of readings ends.
const END: &[u8] = b"]}";
/// Readings that are taken from the inbox at once: about what fills a record.
const READINGS_GATHERED: usize = 512;
/// After how many refusals in a row the next receipt no longer has to wait for
/// twice as many records as the one before: then it is one in a thousand.
const MOST_BEHIND: u32 = 10;
/// Bytes that a receipt takes in the spool, about.
const RECEIPT: u64 = 1024;
/// How long the first heartbeat waits for the first readings, which go first.
const FIRST_BEAT: Duration = Duration::from_secs(1);
/// A key that is stuck for so long is given up: systemd starts the agent anew.
const STUCK: Duration = Duration::from_secs(60);
