//! Every reading that was captured, held against what the owner finds.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::PathBuf;

use jiff::Timestamp;
use zk_envelope::{LossReason, LossReceipt, Report, StreamId};
use zk_reader::{Record, State, all_times};
use zk_sensors::{Reading, SensorId};
use zk_store::{Options, Store};
use zk_tests::System;
use zk_verify::StreamFindings;

use crate::journal::{self, Line};

/// What there is of one stream, by number.
#[derive(Default)]
struct Stream {
    /// As the owner finds them.
    stored: BTreeMap<u64, Vec<Reading>>,
    /// As agents took them.
    sealed: BTreeMap<u64, Vec<Reading>>,
    /// Named by receipts.
    lost: BTreeSet<u64>,
    /// Where an agent said how it began.
    starts: BTreeSet<u64>,
}

/// A stream, and a number there.
type Place = (StreamId, u64);

/// Which reading: of which sensor, when, and which one of that moment, since a
/// thread that was held up may sweep twice in a millisecond.
type Key = (SensorId, Timestamp, usize);

/// Gives readings their keys, in the order in which it is asked.
#[derive(Default)]
struct Keys(HashMap<(SensorId, Timestamp), usize>);

impl Keys {
    fn of(&mut self, reading: &Reading) -> Key {
        let count = self.0.entry((reading.sensor, reading.at)).or_default();
        *count += 1;
        (reading.sensor, reading.at, *count)
    }
}

/// Fails unless each reading is stored once or its loss named, and all accounts
/// agree. `journals` are those of the agent's processes, in order, and whether each
/// had its records synced within a window.
pub(crate) async fn settle(system: &System, journals: &[(PathBuf, bool)]) {
    let mut streams: BTreeMap<StreamId, Stream> = BTreeMap::new();
    let (stored, receipts, again) = stored(system, &mut streams).await;

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

    let mut sums = Sums::default();
    let mut seen: HashMap<Key, Reading> = HashMap::new();
    let mut given_up_before = 0;
    let mut named_before: Vec<LossReceipt> = Vec::new();
    let mut newest = None;
    for (path, windowed) in journals {
        let life = Life::of(&journal::read(path), &mut streams);
        for (key, reading) in &life.captured {
            assert!(seen.insert(*key, *reading).is_none(), "{reading:?}");
        }
        // What was in memory when the agent was killed: the newest readings, all
        // in a row. One append may have ended without the journal's knowing.
        let waits = |(key, _): &&(Key, Reading)| {
            !life.taken.contains_key(key) && !life.given_up.contains(key)
        };
        let in_memory: Vec<&(Key, Reading)> = life.captured.iter().filter(waits).collect();
        let after = life.captured.iter().skip_while(|reading| !waits(reading));
        for (key, reading) in after {
            let taken = life.taken.contains_key(key);
            assert!(!taken, "{reading:?} overtook others");
        }
        let places: BTreeSet<_> = in_memory
            .iter()
            .filter_map(|(key, _)| stored.get(key).map(|(place, _)| place))
            .collect();
        assert!(places.len() <= 1, "{places:?}: more than one append");
        let lost = in_memory
            .iter()
            .filter(|(key, _)| !stored.contains_key(key))
            .count();
        assert!(life.stopped || lost <= IN_MEMORY, "{lost}");
        assert!(!life.stopped || in_memory.is_empty(), "{in_memory:?}");
        sums.lost_in_memory += lost;
        sums.most_in_memory = sums.most_in_memory.max(lost);
        sums.appended_unnoticed += in_memory.len() - lost;
        sums.killed += usize::from(!life.stopped);

        for (stream, sequence) in life.starts {
            newest = Some(stream);
            streams.entry(stream).or_default().starts.insert(sequence);
        }
        for receipt in life.receipts {
            if receipt.range.is_none() && !named_before.contains(&receipt) {
                named_before.push(receipt);
            }
        }
        given_up_before += life.units;
        if !life.stopped {
            // Of what this process gave up, the last batch may be told here alone;
            // and half may not be on the disk yet where that has its window.
            let named: u64 = named_before.iter().map(|receipt| receipt.records).sum();
            let open = given_up_before.saturating_sub(named);
            let unwritten = if *windowed { life.units / 2 } else { 0 };
            sums.may_be_forgotten += open.min(unwritten + life.last_given_up);
        }
        sums.given_up += life.given_up.len();
        sums.given_up_units += life.units;
        sums.captured += life.captured.len();
    }

    // Nothing is stored that nobody captured, or more often.
    for (key, (place, reading)) in &stored {
        assert_eq!(Some(reading), seen.get(key), "{place:?}");
    }
    for (id, stream) in &streams {
        for (sequence, readings) in &stream.sealed {
            if let Some(there) = stream.stored.get(sequence) {
                assert_eq!(there, readings, "{id} {sequence}");
                sums.named_and_stored += usize::from(stream.lost.contains(sequence));
            } else {
                let named = stream.lost.contains(sequence);
                assert!(named, "{id} {sequence}: neither stored nor named");
                sums.lost_by_number += readings.len();
            }
        }
        sums.sealed += stream.sealed.len();
        sums.stored += stream.stored.len();
        let known = stream.stored.keys().chain(stream.sealed.keys()).max();
        assert!(
            stream.lost.iter().max() <= known,
            "{id}: lost what never was"
        );
    }
    let accounted = stored.len() + sums.lost_by_number + sums.given_up + sums.lost_in_memory;
    assert_eq!(sums.captured, accounted, "{sums:#?}");

    let named: u64 = counted.iter().map(|receipt| receipt.records).sum();
    println!(
        "{sums:#?}\nreadings stored: {}\nrecords on the wire again: {again}\n\
         receipts: {} by number, {} by count, of {named}\nstreams: {}",
        stored.len(),
        receipts.iter().filter(|r| r.range.is_some()).count(),
        counted.len(),
        streams.len(),
    );
    let forgotten = sums.given_up_units.saturating_sub(named);
    println!("given up, and the count lost with a kill: {forgotten}");
    assert!(forgotten <= sums.may_be_forgotten, "{forgotten}");
    // An append that was refused may be counted when the journal has no line yet.
    assert!(named <= sums.given_up_units + sums.killed as u64, "{named}");

    audit(system, &streams, newest, &counted).await;
}

/// One process of the agent, by its journal.
#[derive(Default)]
struct Life {
    captured: Vec<(Key, Reading)>,
    taken: HashMap<Key, Place>,
    given_up: BTreeSet<Key>,
    /// What receipts have to name: readings, and records without any.
    units: u64,
    last_given_up: u64,
    receipts: Vec<LossReceipt>,
    starts: Vec<Place>,
    stopped: bool,
}

impl Life {
    fn of(lines: &[Line], streams: &mut BTreeMap<StreamId, Stream>) -> Self {
        let mut life = Self::default();
        let (mut captured, mut done) = (Keys::default(), Keys::default());
        let mut take = |stream: &StreamId, sequence: &u64, readings: &[Reading]| {
            let stream = streams.entry(*stream).or_default();
            let before = stream.sealed.insert(*sequence, readings.to_vec());
            assert!(before.is_none(), "{sequence} was given out twice");
        };
        for line in lines {
            match line {
                Line::Captured(readings) => {
                    let keyed = readings.iter().map(|r| (captured.of(r), *r));
                    life.captured.extend(keyed);
                }
                Line::Sealed {
                    stream,
                    sequence,
                    readings,
                } => {
                    take(stream, sequence, readings);
                    for reading in readings {
                        let place = (*stream, *sequence);
                        let before = life.taken.insert(done.of(reading), place);
                        assert!(before.is_none(), "{reading:?} is in two records");
                    }
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
                    life.given_up.extend(readings.iter().map(|r| done.of(r)));
                }
                Line::Stopped => life.stopped = true,
            }
        }
        life
    }
}

#[derive(Debug, Default)]
struct Sums {
    captured: usize,
    /// Records of any kind, by the journals.
    sealed: usize,
    /// Records of any kind, by the owner.
    stored: usize,
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
    /// Lives that ended by a kill.
    killed: usize,
    /// Readings that a kill took from memory: nobody can name them.
    lost_in_memory: usize,
    most_in_memory: usize,
    /// Readings that were in the spool when a kill kept the journal from saying.
    appended_unnoticed: usize,
}

/// What the owner finds: the place of each reading, the receipts, and how often
/// records came in again.
async fn stored(
    system: &System,
    streams: &mut BTreeMap<StreamId, Stream>,
) -> (HashMap<Key, (Place, Reading)>, Vec<LossReceipt>, u64) {
    let (mut stored, mut receipts, mut again) = (HashMap::new(), Vec::new(), 0);
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
    let mut keys = Keys::default();
    let mut newest: HashMap<SensorId, Timestamp> = HashMap::new();
    for record in &records {
        assert!(record.is_fine(), "{record:?}");
        let State::Open { content, .. } = &record.state else {
            unreachable!("it is fine");
        };
        let header = content.header();
        again += record.delivery.as_ref().unwrap().again;
        // In the order of numbers all times rise.
        let now = (header.stream, header.since_boot_ms, header.time);
        if let Some((stream, since_boot, time)) = last
            && stream == header.stream
        {
            assert!(since_boot <= header.since_boot_ms, "{header:?}");
            assert!(time <= header.time, "{header:?}");
        } else {
            newest.clear();
        }
        last = Some(now);
        let place = (header.stream, header.sequence);
        let readings = record.readings().map_or(Vec::new(), |body| body.readings);
        for reading in &readings {
            let before = newest.insert(reading.sensor, reading.at);
            assert!(before.is_none_or(|at| at <= reading.at), "{reading:?}");
            stored.insert(keys.of(reading), (place, *reading));
        }
        match content.report().unwrap() {
            Some(Report::LossReceipt(receipt)) => receipts.push(receipt),
            // An agent that starts under a right clock says so.
            Some(Report::TimeAnchor(anchor)) if anchor.before.is_some() => {
                panic!("this machine's clock was set: {anchor:?}")
            }
            _ => {}
        }
        let stream = streams.entry(header.stream).or_default();
        let before = stream.stored.insert(header.sequence, readings);
        assert!(before.is_none(), "{place:?} is stored twice");
    }

    let uri = system.setup.store().unwrap();
    let store = Store::open(&uri, Options::default()).await.unwrap();
    let held = store.quarantine().next().await;
    assert!(held.is_none(), "in quarantine: {held:?}");
    (stored, receipts, again)
}

/// The audit knows no more than the store, and comes to the same.
async fn audit(
    system: &System,
    streams: &BTreeMap<StreamId, Stream>,
    newest: Option<StreamId>,
    counted: &[LossReceipt],
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
}

/// What an agent holds in memory at most: 256 sweeps, one on each side of them,
/// and a record that is being sealed; of two sensors.
const IN_MEMORY: usize = 2 * 258 + 480;
