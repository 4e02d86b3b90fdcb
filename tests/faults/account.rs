//! Every reading that was captured, held against what the owner finds.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

use zk_envelope::{LossReason, LossReceipt, Report, StreamId, TimeAnchor};
use zk_reader::{Record, State, all_times};
use zk_sensors::Reading;
use zk_store::{Options, Store};
use zk_tests::System;
use zk_verify::StreamFindings;

use crate::journal::{self, Line};

/// What there is of one stream, by number.
#[derive(Default)]
struct Stream {
    /// As the owner finds them.
    stored: BTreeMap<u64, Stored>,
    /// As agents took them.
    sealed: BTreeMap<u64, Vec<Reading>>,
    /// Named by receipts.
    lost: BTreeSet<u64>,
    /// Where an agent said how it began.
    starts: BTreeSet<u64>,
}

/// A record as the owner finds it.
#[derive(Debug)]
struct Stored {
    since_boot_ms: u64,
    /// The wall clock minus the one since boot.
    offset_ms: i64,
    readings: Vec<Reading>,
    /// What the record does to the clock by which readings are dated.
    clock: Dating,
}

/// See [`Stored::clock`].
#[derive(Debug)]
enum Dating {
    /// Tells where it was set.
    Anchor(TimeAnchor),
    /// Is dated by it.
    Dated,
    /// Is there for itself: a receipt, an event.
    Apart,
}

/// A stream, and a number there.
type Place = (StreamId, u64);

/// Fails unless each reading is stored once or its loss named, each where and when it
/// was captured, and all accounts agree. `journals` are those of the agent's
/// processes, in order, and whether each had its records synced within a window.
/// `offset_ms` is the right wall clock minus the one since boot.
pub(crate) async fn settle(system: &System, journals: &[(PathBuf, bool)], offset_ms: i64) {
    let mut streams: BTreeMap<StreamId, Stream> = BTreeMap::new();
    let (receipts, again) = stored(system, &mut streams).await;

    // The receipts that are there. One may be there twice, if an agent was killed
    // before it knew that the first one had arrived.
    let mut counted: Vec<LossReceipt> = Vec::new();
    let mut known: Vec<&LossReceipt> = Vec::new();
    for receipt in &receipts {
        assert_ne!(receipt.reason, LossReason::Damaged, "{receipt:?}");
        assert_ne!(receipt.reason, LossReason::Refused, "{receipt:?}");
        match receipt.range {
            Some(range) => {
                let stream = streams.entry(range.stream).or_default();
                stream.lost.extend(range.first..=range.last);
            }
            None if known.contains(&receipt) => {}
            None => {
                known.push(receipt);
                counted.push(receipt.clone());
            }
        }
    }

    let mut lives: Vec<Life> = Vec::new();
    for (path, _) in journals {
        println!("holding against {}", path.display());
        lives.push(Life::of(&journal::read(path), &mut streams));
    }
    let mut sums = Sums::default();
    unnoticed(&mut lives, &streams, &mut sums);

    let mut given_up_before = 0;
    let mut named_before: Vec<LossReceipt> = Vec::new();
    let mut newest = None;
    for (life, (path, windowed)) in lives.iter().zip(journals) {
        // What was in memory when the agent was killed: the newest readings, all in
        // a row.
        let lost = life.captured.len() - life.done;
        match life.end {
            End::Killed => {
                assert!(lost <= IN_MEMORY, "{lost}");
                sums.lost_in_memory += lost;
                sums.most_in_memory = sums.most_in_memory.max(lost);
            }
            End::Unsealed(counted) => {
                assert_eq!(lost as u64, counted, "{}", path.display());
                sums.unsealed += lost;
            }
            End::Unsigned | End::Stopped => {
                assert_eq!(lost, 0, "{}: in memory at an orderly end", path.display());
            }
        }
        sums.killed += usize::from(life.end == End::Killed);
        sums.ended_unsigned += usize::from(life.end == End::Unsigned);
        dated_right(life, &streams, offset_ms, &mut sums);

        for (stream, sequence) in &life.starts {
            newest = Some(*stream);
            streams.entry(*stream).or_default().starts.insert(*sequence);
        }
        for receipt in &life.receipts {
            if receipt.range.is_none() && !named_before.contains(receipt) {
                named_before.push(receipt.clone());
            }
        }
        given_up_before += life.units;
        if life.end != End::Stopped {
            // Of what this process gave up, the last batch may be told here alone;
            // and half may not be on the disk yet where that has its window.
            let named: u64 = named_before.iter().map(|receipt| receipt.records).sum();
            let open = given_up_before.saturating_sub(named);
            let unwritten = if *windowed { life.units / 2 } else { 0 };
            sums.may_be_forgotten += open.min(unwritten + life.last_given_up);
        }
        sums.given_up += life.given_up;
        sums.given_up_units += life.units;
        sums.captured += life.captured.len();
        for capture in &life.captured {
            let quality = capture.reading.quality.as_str();
            *sums.captured_by_quality.entry(quality).or_default() += 1;
        }
    }

    for (id, stream) in &streams {
        for (sequence, readings) in &stream.sealed {
            if let Some(there) = stream.stored.get(sequence) {
                assert_eq!(there.readings, *readings, "{id} {sequence}");
                sums.named_and_stored += usize::from(stream.lost.contains(sequence));
            } else {
                let named = stream.lost.contains(sequence);
                assert!(named, "{id} {sequence}: neither stored nor named");
                sums.lost_by_number += readings.len();
            }
        }
        let readings = stream.stored.values().map(|record| record.readings.len());
        sums.readings_stored += readings.sum::<usize>();
        sums.sealed += stream.sealed.len();
        sums.stored += stream.stored.len();
        let known = stream.stored.keys().chain(stream.sealed.keys()).max();
        assert!(
            stream.lost.iter().max() <= known,
            "{id}: lost what never was"
        );
        anchored(*id, stream, &lives, &mut sums);
    }
    let accounted = sums.readings_stored + sums.lost_by_number + sums.given_up + sums.unsealed;
    let accounted = accounted + sums.lost_in_memory;
    assert_eq!(sums.captured, accounted, "{sums:#?}");

    let named: u64 = counted.iter().map(|receipt| receipt.records).sum();
    println!(
        "{sums:#?}\nrecords on the wire again: {again}\n\
         receipts: {} by number, {} by count, of {named}\nstreams: {}",
        receipts.iter().filter(|r| r.range.is_some()).count(),
        counted.len(),
        streams.len(),
    );
    let forgotten = sums.given_up_units.saturating_sub(named);
    println!("given up, and the count lost with a kill: {forgotten}");
    assert!(forgotten <= sums.may_be_forgotten, "{forgotten}");
    // An append that was refused may be counted when the journal has no line yet.
    assert!(named <= sums.given_up_units + sums.killed as u64, "{named}");

    audit(system, &streams, newest, &counted, sums.anchors).await;
}

/// What was appended without the journal's knowing: one record for each agent that
/// was killed, at most, of the readings that were next.
fn unnoticed(lives: &mut [Life], streams: &BTreeMap<StreamId, Stream>, sums: &mut Sums) {
    let mut seen = BTreeSet::new();
    for (id, stream) in streams {
        for (sequence, record) in &stream.stored {
            if stream.sealed.contains_key(sequence) {
                continue;
            }
            let at = life_at(lives, record.since_boot_ms);
            let life = &mut lives[at];
            assert_eq!(life.end, End::Killed, "nobody made {id} {sequence}");
            assert!(seen.insert(at), "life {at} appended twice unnoticed");
            life.take((*id, *sequence), &record.readings);
            sums.appended_unnoticed += record.readings.len();
        }
    }
}

/// Which of them there was then.
fn life_at(lives: &[Life], since_boot_ms: u64) -> usize {
    let after = lives.partition_point(|life| life.began_ms <= since_boot_ms);
    after.checked_sub(1).expect("somebody made it")
}

/// How long before its record each reading was taken, by the clock that is never set,
/// is how long it was by the one of its record, whatever was set in between.
fn dated_right(life: &Life, streams: &BTreeMap<StreamId, Stream>, offset_ms: i64, sums: &mut Sums) {
    for ((stream, sequence), first) in &life.taken {
        let Some(record) = streams[stream].stored.get(sequence) else {
            continue;
        };
        for (reading, capture) in record.readings.iter().zip(&life.captured[*first..]) {
            let put_forward = reading.at.as_millisecond() - capture.reading.at.as_millisecond();
            let wrong = |ahead: &i64| {
                let clock_was = offset_ms + ahead;
                (record.offset_ms - clock_was - put_forward).abs()
            };
            let wrong = capture.ahead.iter().map(wrong).min().unwrap();
            assert!(
                wrong <= UNTOLD_MS,
                "{stream} {sequence}: {reading:?} is dated {wrong} ms wrong; {capture:?}"
            );
            sums.dated_anew += usize::from(put_forward != 0);
        }
    }
}

/// Before a record is dated by another clock than the last one, an anchor says so.
fn anchored(id: StreamId, stream: &Stream, lives: &[Life], sums: &mut Sums) {
    let mut told: Option<i64> = None;
    let mut last = (0, 0);
    for (sequence, record) in &stream.stored {
        let life = life_at(lives, record.since_boot_ms);
        // What is lost in between may have said it. Who starts has nothing to say.
        if last != (life, sequence - 1) {
            told = None;
        }
        last = (life, *sequence);
        match &record.clock {
            Dating::Apart => continue,
            Dating::Anchor(TimeAnchor {
                before: Some(before),
                ..
            }) => {
                let before = i64::try_from(before.time.as_millis()).unwrap()
                    - i64::try_from(record.since_boot_ms).unwrap();
                if let Some(told) = told {
                    let wrong = (before - told).abs();
                    assert!(
                        wrong <= UNTOLD_MS,
                        "{id} {sequence}: {wrong} ms; {record:?}"
                    );
                }
                sums.anchors += 1;
            }
            Dating::Anchor(_) => {}
            Dating::Dated => {
                let step = told.map_or(0, |told| (record.offset_ms - told).abs());
                assert!(
                    step <= UNTOLD_MS,
                    "{id} {sequence}: the clock was set by {step} ms, and no anchor says so"
                );
            }
        }
        told = Some(record.offset_ms);
    }
}

/// One process of the agent, by its journal.
struct Life {
    /// By the clock that is never set.
    began_ms: u64,
    captured: Vec<Capture>,
    /// Where the readings went, and which was the first of them there.
    taken: Vec<(Place, usize)>,
    /// So many of those captured were taken or given up, in this order.
    done: usize,
    given_up: usize,
    /// What receipts have to name: readings, and records without any.
    units: u64,
    last_given_up: u64,
    receipts: Vec<LossReceipt>,
    starts: Vec<Place>,
    end: End,
}

/// A reading as it was taken.
#[derive(Debug)]
struct Capture {
    reading: Reading,
    /// How far ahead the wall clock may have been.
    ahead: BTreeSet<i64>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    Killed,
    /// So many readings were counted at its end.
    Unsealed(u64),
    Unsigned,
    Stopped,
}

impl Life {
    fn of(lines: &[Line], streams: &mut BTreeMap<StreamId, Stream>) -> Self {
        let Some(Line::Begins {
            since_boot_ms,
            ahead_ms,
        }) = lines.first()
        else {
            panic!("it does not say when it began");
        };
        let mut life = Self {
            began_ms: *since_boot_ms,
            captured: Vec::new(),
            taken: Vec::new(),
            done: 0,
            given_up: 0,
            units: 0,
            last_given_up: 0,
            receipts: Vec::new(),
            starts: Vec::new(),
            end: End::Killed,
        };
        let mut take = |stream: &StreamId, sequence: &u64, readings: &[Reading]| {
            let sealed = &mut streams.entry(*stream).or_default().sealed;
            let newest = sealed.keys().next_back();
            assert!(
                newest < Some(sequence),
                "{sequence} was given out after {newest:?}"
            );
            sealed.insert(*sequence, readings.to_vec());
        };
        // How far ahead the clock may have been since the last sweep, and is.
        let mut ahead = BTreeSet::from([*ahead_ms]);
        let mut is = Some(*ahead_ms);
        for line in &lines[1..] {
            match line {
                Line::Begins { .. } => panic!("it began twice"),
                Line::Failed => panic!("the agent failed; its log says why"),
                Line::ClockToBe(to_be) => {
                    ahead.insert(*to_be);
                    is = None;
                }
                Line::ClockIs(now) => is = Some(*now),
                Line::Captured(readings) => {
                    life.captured.extend(readings.iter().map(|reading| Capture {
                        reading: *reading,
                        ahead: ahead.clone(),
                    }));
                    if let Some(is) = is {
                        ahead = BTreeSet::from([is]);
                    }
                }
                Line::Sealed {
                    stream,
                    sequence,
                    readings,
                } => {
                    take(stream, sequence, readings);
                    life.take((*stream, *sequence), readings);
                }
                Line::Reported {
                    stream,
                    sequence,
                    receipt,
                    starts,
                } => {
                    take(stream, sequence, &[]);
                    if *starts {
                        life.starts.push((*stream, *sequence));
                    }
                    life.receipts.extend(receipt.clone());
                }
                Line::GivenUp(readings) => {
                    life.last_given_up = readings.len().max(1) as u64;
                    life.units += life.last_given_up;
                    life.given_up += readings.len();
                    life.next(readings);
                }
                Line::Unsealed(readings) => {
                    life.units += readings;
                    life.end = End::Unsealed(*readings);
                }
                Line::Unsigned => life.end = End::Unsigned,
                Line::Stopped => life.end = End::Stopped,
            }
        }
        life
    }

    fn take(&mut self, place: Place, readings: &[Reading]) {
        self.taken.push((place, self.done));
        self.next(readings);
    }

    /// These are what was captured next: none is left out, and none comes twice.
    fn next(&mut self, readings: &[Reading]) {
        let next = self.captured.get(self.done..self.done + readings.len());
        let next = next.expect("captured before");
        for (reading, Capture { reading: was, .. }) in readings.iter().zip(next) {
            let same = (was.sensor, was.value, was.quality)
                == (reading.sensor, reading.value, reading.quality);
            assert!(same, "{reading:?}, but {was:?} was next");
        }
        self.done += readings.len();
    }
}

#[derive(Debug, Default)]
struct Sums {
    captured: usize,
    captured_by_quality: BTreeMap<&'static str, usize>,
    /// Records of any kind, by the journals.
    sealed: usize,
    /// Records of any kind, by the owner.
    stored: usize,
    readings_stored: usize,
    /// Readings in records that receipts name.
    lost_by_number: usize,
    /// Records that were delivered and, for want of an answer, dropped as well.
    named_and_stored: usize,
    /// Readings that a receipt counts.
    given_up: usize,
    /// The same, and records of the agent's own.
    given_up_units: u64,
    /// As much of it can have been forgotten by kills.
    may_be_forgotten: u64,
    /// Readings that were counted at an end at which the key did not answer.
    unsealed: usize,
    /// Lives that ended by a kill.
    killed: usize,
    /// Lives that ended while the key did not sign.
    ended_unsigned: usize,
    /// Readings that a kill took from memory: nobody can name them.
    lost_in_memory: usize,
    most_in_memory: usize,
    /// Readings that were in the spool when a kill kept the journal from saying.
    appended_unnoticed: usize,
    /// Records that say that the clock was set.
    anchors: usize,
    /// Readings that were put right, for the clock was set before they were sealed.
    dated_anew: usize,
}

/// What the owner finds, by its place; the receipts, and how often records came in
/// again.
async fn stored(
    system: &System,
    streams: &mut BTreeMap<StreamId, Stream>,
) -> (Vec<LossReceipt>, u64) {
    let (mut receipts, mut again) = (Vec::new(), 0);
    let reader = system.reader().await;
    let mut records: Vec<Record> = Vec::new();
    let mut all = reader.records(&system.device, all_times());
    while let Some(record) = all.next().await {
        records.push(record.unwrap());
    }
    records.sort_by_key(|record| {
        let header = record.header().unwrap();
        (header.stream, header.sequence)
    });
    let mut last = None;
    for record in &records {
        assert!(record.is_fine(), "{record:?}");
        let State::Open { content, .. } = &record.state else {
            unreachable!("it is fine");
        };
        let header = content.header();
        again += record.delivery.as_ref().unwrap().again;
        // In the order of numbers times rise, by the clock that is never set.
        let since_boot_ms = header.since_boot_ms;
        if let Some((stream, before)) = last
            && stream == header.stream
        {
            assert!(before <= since_boot_ms, "{header:?}");
        }
        last = Some((header.stream, since_boot_ms));
        let place = (header.stream, header.sequence);
        let report = content.report().unwrap();
        if let Some(Report::LossReceipt(receipt)) = &report {
            receipts.push(receipt.clone());
        }
        let record = Stored {
            since_boot_ms,
            offset_ms: i64::try_from(header.time.as_millis()).unwrap()
                - i64::try_from(since_boot_ms).unwrap(),
            readings: record.readings().map_or(Vec::new(), |body| body.readings),
            clock: match report {
                Some(Report::TimeAnchor(anchor)) => Dating::Anchor(anchor),
                None | Some(Report::Heartbeat(_)) => Dating::Dated,
                Some(_) => Dating::Apart,
            },
        };
        let stream = streams.entry(header.stream).or_default();
        let before = stream.stored.insert(header.sequence, record);
        assert!(before.is_none(), "{place:?} is stored twice");
    }

    let uri = system.setup.store().unwrap();
    let store = Store::open(&uri, Options::default()).await.unwrap();
    let held = store.quarantine().next().await;
    assert!(held.is_none(), "in quarantine: {held:?}");
    (receipts, again)
}

/// The audit knows no more than the store, and comes to the same.
async fn audit(
    system: &System,
    streams: &BTreeMap<StreamId, Stream>,
    newest: Option<StreamId>,
    counted: &[LossReceipt],
    anchors: usize,
) {
    let reader = system.reader().await;
    let findings = reader.audit(&system.device, all_times()).await.unwrap();
    let text = zk_reader::describe(&findings, zk_envelope::Timestamp::MAX);
    assert!(
        findings.alarms.is_empty() && findings.damaged.is_empty(),
        "{text}"
    );
    assert!(
        findings.streams.iter().all(StreamFindings::is_clean),
        "{text}"
    );
    // How a stream began is said again when that was dropped, for as long as the
    // stream goes on. After its end nobody can: the audit says so, and is right.
    println!(
        "streams of which nobody knows the beginning: {}",
        findings.unlinked.len()
    );
    for unlinked in &findings.unlinked {
        let stream = &streams[unlinked];
        let found = findings
            .streams
            .iter()
            .find(|found| found.stream == *unlinked);
        // It has ended; by what stream, may be lost as well.
        let has_ended = !found.unwrap().successors.is_empty() || newest != Some(*unlinked);
        assert!(has_ended, "{text}");
        assert!(stream.starts.is_subset(&stream.lost), "{text}");
    }
    assert_eq!(findings.streams.len(), streams.len());
    for found in &findings.streams {
        let stream = &streams[&found.stream];
        let sealed = stream.sealed.keys().max().copied().unwrap_or(0);
        let stored = stream.stored.keys().max().copied().unwrap_or(0);
        assert_eq!(found.complete_to, sealed.max(stored), "{found:#?}");
        let missing = found.missing.iter().flat_map(|gap| gap.first..=gap.last);
        let missing: BTreeSet<u64> = missing.collect();
        let there = stream.stored.keys().copied().collect();
        assert_eq!(missing, stream.lost.difference(&there).copied().collect());
    }
    let mut rejected = findings.rejected;
    let mut counted = counted.to_vec();
    for receipts in [&mut rejected, &mut counted] {
        receipts.sort_by_key(|receipt| (receipt.noticed_at, receipt.records));
    }
    assert_eq!(rejected, counted);
    assert_eq!(findings.repairs.len(), anchors);
}

/// What an agent holds in memory at most while its chip does not sign: what waits for
/// the sealer, what that has taken, and a sweep.
const IN_MEMORY: usize = 16_384 + 513 + 2;
/// What of a wall clock nobody is told of, in milliseconds: steps of less than a
/// second, and what passes between the readings of two clocks.
const UNTOLD_MS: i64 = 2000;
