//! The power goes off at every operation that changes a file, and what was not
//! synced is lost, kept, torn or kept in pieces. Whatever it is, what was
//! promised holds.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    time::Duration,
};

use proptest::prelude::*;
use zk_spool::{
    AppendError, End, Error, Full, Loss, Options, Reason, Record, Spool, StreamId, SyncPolicy,
    storage::{Cut, Fault, FaultStorage},
};

use crate::common::{
    Key, Random, append, append_batch, append_receipt, content, cuts_wanted, effort, key, names,
    open, peek_all, small, tell,
};

/// What the spool has said so far, and must stand by.
#[derive(Clone, Default)]
struct History {
    /// Streams in the order of their first use.
    streams: Vec<StreamId>,
    /// The length of the record that was last made for a number.
    made: HashMap<Key, usize>,
    /// What a number stands for since an append returned it, or it was read.
    used: HashMap<Key, Vec<u8>>,
    /// Durable, by what the spool promised.
    durable: BTreeSet<Key>,
    /// Appended in a window that is not over.
    windowed: BTreeSet<Key>,
    /// The last record that an acknowledgement was asked for, and the last one
    /// for which that returned.
    ack_asked: Option<Key>,
    acked: Option<Key>,
    /// Losses that were confirmed, or asked to be.
    losses: Vec<Loss>,
    /// The ids of those that were offered, and nobody wanted to confirm.
    offered: BTreeSet<u64>,
    /// Records that were refused for want of room, and those whose append did not
    /// say.
    refused: u64,
    unsaid: u64,
    /// How often the spool came to an end in the midst of something.
    ends: u64,
}

impl History {
    fn place(&self, (stream, sequence): Key) -> (usize, u64) {
        let index = self.streams.iter().position(|known| *known == stream);
        (index.expect("a stream nobody appended to"), sequence)
    }

    fn is_up_to(&self, key: Key, limit: Option<Key>) -> bool {
        limit.is_some_and(|limit| self.place(key) <= self.place(limit))
    }

    fn use_up(&mut self, key: Key, bytes: &[u8]) {
        let before = self.used.insert(key, bytes.to_vec());
        assert!(
            before.is_none_or(|before| before == bytes),
            "{key:?} was used twice"
        );
    }

    fn attempt(&mut self, stream: StreamId, sequence: u64, len: usize) {
        if !self.streams.contains(&stream) {
            self.streams.push(stream);
        }
        self.made.insert((stream, sequence), len);
    }

    fn appended(&mut self, stream: StreamId, sequence: u64, windowed: bool) {
        let key = (stream, sequence);
        let len = self.made[&key];
        self.use_up(key, &content(stream, sequence, len));
        if windowed {
            self.windowed.insert(key);
        } else {
            self.durable.insert(key);
        }
    }

    fn synced(&mut self) {
        let mut windowed = std::mem::take(&mut self.windowed);
        self.durable.append(&mut windowed);
    }

    fn offered(&mut self, losses: &[Loss]) {
        let ids: BTreeSet<u64> = losses.iter().map(|loss| loss.id).collect();
        assert!(self.offered.is_subset(&ids), "a loss was forgotten");
        self.offered = ids;
    }

    /// Refusals are written down when their number has doubled; the one that was
    /// going on at an end may not be.
    fn check_losses(&self, losses: &[Loss]) {
        let all: BTreeMap<u64, &Loss> = self
            .losses
            .iter()
            .chain(losses)
            .map(|l| (l.id, l))
            .collect();
        let (full, ranges): (Vec<&Loss>, Vec<&Loss>) = all
            .into_values()
            .partition(|loss| loss.reason == Reason::Full);
        let counted: u64 = full.iter().map(|loss| loss.records).sum();
        let (most, least) = (
            self.refused + self.unsaid,
            self.refused.saturating_sub(12 * self.ends) / 2,
        );
        assert!(
            (least..=most).contains(&counted),
            "{counted} of {} and {} refused",
            self.refused,
            self.unsaid
        );
        // What has a number is named once.
        let mut ranges: Vec<_> = ranges.iter().map(|l| (l.stream, l.first, l.last)).collect();
        ranges.sort_unstable();
        for pair in ranges.windows(2) {
            let ((stream, _, last), (next_stream, next, _)) = (pair[0], pair[1]);
            assert!(
                stream != next_stream || last < next,
                "named twice: {pair:?}"
            );
        }
    }

    fn read(&mut self, records: &[Record]) {
        for record in records {
            let key = key(record);
            let len = *self.made.get(&key).expect("a record that nobody made");
            assert_eq!(record.bytes(), content(key.0, key.1, len), "{key:?}");
            self.use_up(key, record.bytes());
            // What was read may have been published.
            self.windowed.remove(&key);
            self.durable.insert(key);
        }
        assert!(
            records.is_sorted_by_key(|record| self.place(key(record))),
            "out of order"
        );
        if let Some(first) = records.first() {
            assert!(
                !self.is_up_to(key(first), self.acked),
                "{:?} was acknowledged",
                key(first)
            );
        }
    }
}

/// One open spool and the story so far.
struct Session<'a> {
    spool: Spool,
    history: &'a mut History,
    windowed: bool,
}

impl Session<'_> {
    fn append(&mut self, len: usize, receipt: bool) -> Result<(), Error> {
        let stream = self.spool.stream();
        self.history
            .attempt(stream, self.spool.stats()?.next_sequence, len);
        let sequence = if receipt {
            append_receipt(&self.spool, len)?
        } else {
            append(&self.spool, len)?
        };
        self.history.appended(stream, sequence, self.windowed);
        Ok(())
    }

    fn append_batch(&mut self, lens: &[usize]) -> Result<(), Error> {
        let stream = self.spool.stream();
        let next = self.spool.stats()?.next_sequence;
        for (sequence, len) in (next..).zip(lens) {
            self.history.attempt(stream, sequence, *len);
        }
        for sequence in append_batch(&self.spool, lens)? {
            self.history.appended(stream, sequence, self.windowed);
        }
        Ok(())
    }

    fn sync(&mut self) -> Result<(), Error> {
        self.spool.sync()?;
        self.history.synced();
        Ok(())
    }

    fn ack(&mut self, records: usize) -> Result<(), Error> {
        let records = self.spool.peek(records, usize::MAX)?;
        self.history.read(&records);
        if let Some(last) = records.last() {
            self.history.ack_asked = Some(key(last));
            self.spool.ack(last.position())?;
            self.history.acked = Some(key(last));
        }
        Ok(())
    }

    fn reject(&mut self) -> Result<(), Error> {
        let records = self.spool.peek(1, 0)?;
        self.history.read(&records);
        if let Some(record) = records.first() {
            self.history.ack_asked = Some(key(record));
            self.spool.reject(record.position())?;
            self.history.acked = Some(key(record));
        }
        Ok(())
    }

    fn confirm(&mut self) -> Result<(), Error> {
        let losses = self.spool.losses()?;
        self.history.offered(&losses);
        if let Some(last) = losses.last() {
            self.append(80, true)?;
            self.sync()?;
            let through = last.id;
            self.history.losses.extend(losses);
            self.history.offered.clear();
            self.spool.confirm(through)?;
        }
        Ok(())
    }

    fn take(&mut self, step: &Step) -> Result<(), Error> {
        let result = match step {
            Step::Append(len) => self.append(*len, false),
            Step::Batch(lens) => self.append_batch(lens),
            Step::Ack(records) => self.ack(*records),
            Step::Reject => self.reject(),
            Step::Confirm => self.confirm(),
            Step::Sync => self.sync(),
        };
        let records = match step {
            Step::Append(_) => 1,
            Step::Batch(lens) => lens.len() as u64,
            Step::Confirm => 1,
            Step::Ack(_) | Step::Reject | Step::Sync => 0,
        };
        match result {
            // Both are answers, not the end.
            Err(Error::Full { .. } | Error::DiskFull { .. }) => {
                // To confirm, the disk may have had no room for the state either.
                if matches!(step, Step::Confirm) {
                    self.history.unsaid += records;
                } else {
                    self.history.refused += records;
                }
                Ok(())
            }
            result => {
                self.history.unsaid += if result.is_err() { records } else { 0 };
                result
            }
        }
    }
}

/// Something to do with a spool.
#[derive(Clone, Debug)]
enum Step {
    Append(usize),
    Batch(Vec<usize>),
    Ack(usize),
    Reject,
    Confirm,
    Sync,
}

impl Step {
    fn any(random: &mut Random) -> Self {
        let len = 40 + random.below(500) as usize;
        match random.below(16) {
            0..6 => Self::Append(len),
            6..9 => Self::Batch((0..random.below(5)).map(|n| len / 2 + n as usize).collect()),
            9..12 => Self::Ack(1 + random.below(6) as usize),
            12 => Self::Reject,
            13 => Self::Confirm,
            14 => Self::Sync,
            _ => Self::Append(4 * len),
        }
    }
}

/// Opens, takes some steps and closes, again and again, until something fails.
fn work(
    storage: &FaultStorage,
    options: &Options,
    history: &mut History,
    mut random: Random,
    sessions: u32,
) -> Result<(), Error> {
    for _ in 0..sessions {
        let mut session = Session {
            spool: open(storage, options)?,
            history: &mut *history,
            windowed: options.sync != SyncPolicy::Each,
        };
        for _ in 0..10 + random.below(20) {
            session.take(&Step::any(&mut random))?;
        }
        if random.below(4) > 0 {
            let Session { spool, .. } = session;
            match spool.close() {
                Ok(()) => history.synced(),
                // No room for the mark that it was closed: as if it was not.
                Err(Error::DiskFull { .. }) => {}
                Err(error) => return Err(error),
            }
        }
    }
    Ok(())
}

/// Opens what a power cut has left, and holds it against what was promised.
fn check(history: &mut History, image: &FaultStorage, options: &Options) {
    check_with(history, image, options, false);
}

/// As [`check`]; `damaged` if the medium could not be read once, so that records
/// may be lost that are named.
fn check_with(history: &mut History, image: &FaultStorage, options: &Options, damaged: bool) {
    let spool = open(image, options).expect("opens after a power cut");
    let losses = spool.losses().unwrap();
    let records = peek_all(&spool).unwrap();
    let before = spool.predecessor();
    assert_eq!(spool.stats().unwrap().unsynced, 0);
    let report = spool.verify().unwrap();
    assert!(damaged || report.damage.is_empty(), "{report:?}");

    for loss in &losses {
        assert!(
            damaged || loss.reason != Reason::Damaged,
            "nothing was damaged: {loss:?}"
        );
    }
    history.ends += 1;
    history.check_losses(&losses);
    history.offered(&losses);
    // What was going on when the power went may have been done.
    history.windowed.clear();
    history.read(&records);
    let there: BTreeSet<Key> = records.iter().map(key).collect();
    for loss in losses.iter().chain(&history.losses) {
        assert!(
            !there.iter().any(|key| names(loss, *key)),
            "both lost and there: {loss:?}"
        );
    }
    for key in &history.durable {
        assert!(
            there.contains(key)
                || history.is_up_to(*key, history.ack_asked)
                || losses
                    .iter()
                    .chain(&history.losses)
                    .any(|loss| names(loss, *key) || is_in_doubt(loss, *key)),
            "{key:?} was durable and is gone"
        );
    }
    if let Some(before) = before.filter(|_| !damaged) {
        assert_ne!(before.end, End::Damaged, "nothing was damaged");
        let of_it = history
            .durable
            .iter()
            .chain(&there)
            .filter(|key| key.0 == before.stream);
        assert!(of_it.map(|key| key.1).max() <= Some(before.last_sequence));
    }

    // A second recovery finds the same.
    drop(spool);
    let spool = open(image, options).expect("opens a second time");
    let again = peek_all(&spool).unwrap();
    assert!(again.iter().map(key).eq(records.iter().map(key)));
    assert_eq!(spool.losses().unwrap(), losses);
    assert_eq!(spool.predecessor(), before);
}

/// Whether a loss says that what came from a place on is not known, which only a
/// medium that can't be read brings about.
fn is_in_doubt(loss: &Loss, (stream, sequence): Key) -> bool {
    (loss.reason, loss.records, loss.stream) == (Reason::Damaged, 0, stream)
        && loss.first <= sequence
}

/// After all the checks: it goes on.
fn check_going_on(mut history: History, image: &FaultStorage, options: &Options) {
    let mut session = Session {
        spool: open(image, options).unwrap(),
        history: &mut history,
        windowed: options.sync != SyncPolicy::Each,
    };
    session.ack(usize::MAX).unwrap();
    session.append(100, false).unwrap();
    session.append(100, false).unwrap();
    session.sync().unwrap();
    session.ack(1).unwrap();
    let stats = session.spool.stats().unwrap();
    assert_eq!(stats.records, 1);
    // Nothing but the segment in use stays of what is drained.
    assert_eq!(stats.segments, 1, "{:?}", image.files().keys());
    drop(session);
    let spool = open(image, options).unwrap();
    assert_eq!(peek_all(&spool).unwrap().len(), 1);
}

fn cuts(seed: u64) -> [Cut; 6] {
    [
        Cut::Synced,
        Cut::All,
        Cut::Torn(seed),
        Cut::Torn(seed + 1),
        Cut::Random(seed),
        Cut::Random(seed + 1),
    ]
}

fn options(policy: u64) -> Options {
    let (sync, full) = match policy % 4 {
        0 => (SyncPolicy::Each, Full::Reject),
        1 => (SyncPolicy::Each, Full::DropOldest),
        2 => (HOURS, Full::Reject),
        _ => (HOURS, Full::DropOldest),
    };
    Options {
        sync,
        full,
        // Full after some thirty records.
        cap: 16 << 10,
        ..small()
    }
}

/// The window never ends by itself: syncs are where the test puts them.
const HOURS: SyncPolicy = SyncPolicy::Every(Duration::from_secs(1 << 20));

/// One workload, cut at each of its operations. How many cuts that were, and
/// whether the spool was full in it.
fn exhaustive(policy: u64, seed: u64) -> (u64, bool) {
    let options = options(policy);
    let random = Random(seed);
    let storage = FaultStorage::new();
    let mut history = History::default();
    work(&storage, &options, &mut history, random.clone(), 3).unwrap();
    let full = history
        .losses
        .iter()
        .any(|loss| matches!(loss.reason, Reason::Dropped | Reason::Full));
    let operations = storage.operations();
    let mut points = 0;
    for operation in 1..=operations {
        let storage = FaultStorage::new();
        storage.cut_at(operation);
        let mut history = History::default();
        // A session that is dropped does not tell.
        let _ = work(&storage, &options, &mut history, random.clone(), 3);
        for cut in cuts(seed ^ operation) {
            let image = storage.after_cut(cut);
            let mut history = history.clone();
            check(&mut history, &image, &options);
            check_going_on(history, &image, &options);
            points += 1;
        }
    }
    (points, full)
}

#[test]
fn nothing_acknowledged_is_lost_at_any_operation() {
    let (mut points, mut full, mut workloads) = (0, 0, 0);
    while points < cuts_wanted() {
        for policy in 0..4 {
            let (more, was_full) = exhaustive(policy, workloads);
            points += more;
            full += u64::from(was_full);
        }
        workloads += 1;
    }
    tell(&format!(
        "{points} cut points: each operation of {} workloads",
        4 * workloads
    ));
    assert!(full >= 2 * workloads, "{full} workloads met the cap");
}

/// The power goes off again at each operation of the recovery from a first cut,
/// and of the first append after it.
#[test]
fn cut_again_in_recovery() {
    let recover = |image: &FaultStorage, options: &Options, history: &mut History| {
        let windowed = options.sync != SyncPolicy::Each;
        let spool = open(image, options)?;
        let mut session = Session {
            spool,
            history,
            windowed,
        };
        session.take(&Step::Append(60))?;
        session.sync()?;
        session.take(&Step::Ack(2))
    };
    let mut points = 0;
    for policy in 0..4 {
        let options = options(policy);
        let random = Random(100 + policy);
        let storage = FaultStorage::new();
        let mut story = History::default();
        work(&storage, &options, &mut story, random.clone(), 3).unwrap();
        let step = if effort() > 1 { 1 } else { 29 };
        for operation in (1..=storage.operations()).step_by(step) {
            let storage = FaultStorage::new();
            storage.cut_at(operation);
            let mut history = History::default();
            let _ = work(&storage, &options, &mut history, random.clone(), 3);
            for cut in cuts(operation) {
                let left = storage.after_cut(cut);
                let whole = left.after_cut(Cut::All);
                let _ = recover(&whole, &options, &mut history.clone());
                for again in 1..=whole.operations() {
                    let image = left.after_cut(Cut::All);
                    image.cut_at(again);
                    let mut history = history.clone();
                    // What the first cut took within a window stays gone.
                    history.windowed.clear();
                    let _ = recover(&image, &options, &mut history);
                    let second = cuts(again)[(operation + again) as usize % 6];
                    check(&mut history, &image.after_cut(second), &options);
                    points += 1;
                }
            }
        }
    }
    tell(&format!("{points} cut points: again while recovering"));
}

/// Each operation of a workload fails, half-done, in each way that operations
/// fail. The process opens the spool again and goes on; then the power goes off.
#[test]
fn any_operation_fails() {
    let mut points = 0;
    for seed in 0..effort() {
        for policy in 0..4 {
            let options = options(policy);
            let random = Random(20 + 4 * seed + policy);
            let storage = FaultStorage::new();
            let mut story = History::default();
            work(&storage, &options, &mut story, random.clone(), 3).unwrap();
            for operation in 1..=storage.operations() {
                for (which, fault) in faults(seed ^ operation).into_iter().enumerate() {
                    let storage = FaultStorage::new();
                    storage.fail_with(operation, fault);
                    let mut history = History::default();
                    let failed = work(&storage, &options, &mut history, random.clone(), 3);
                    if failed.is_err() {
                        history.windowed.clear();
                    }
                    let cut = cuts(operation)[(operation as usize + which) % 6];
                    check(&mut history.clone(), &storage.after_cut(cut), &options);
                    // Only one operation fails.
                    work(&storage, &options, &mut history, Random(operation), 1).unwrap();
                    check(&mut history.clone(), &storage.after_cut(cut), &options);
                    check(&mut history, &storage, &options);
                    points += 2;
                }
            }
        }
    }
    tell(&format!(
        "{points} cut points: behind an operation that failed (EIO, ENOSPC, EINTR)"
    ));
}

/// A sync fails, so that what is read is not what is on the medium; the process goes
/// on, and then the power goes off at each of the operations that follow.
#[test]
fn cut_behind_a_failure() {
    let mut points = 0;
    for policy in 0..4 {
        let options = options(policy);
        let random = Random(40 + policy);
        let storage = FaultStorage::new();
        let mut story = History::default();
        work(&storage, &options, &mut story, random.clone(), 2).unwrap();
        for operation in 1..=storage.operations() {
            for later in 1..=8 * effort().min(4) {
                let storage = FaultStorage::new();
                storage.fail_with(operation, Fault::Medium(operation ^ later));
                let mut history = History::default();
                let failed = work(&storage, &options, &mut history, random.clone(), 2);
                if failed.is_err() {
                    history.windowed.clear();
                }
                storage.restart();
                storage.cut_at(storage.operations() + later);
                let _ = work(&storage, &options, &mut history, Random(later), 1);
                let cut = cuts(later)[(operation + later) as usize % 6];
                check(&mut history, &storage.after_cut(cut), &options);
                points += 1;
            }
        }
    }
    tell(&format!("{points} cut points: behind a failure"));
}

/// A segment is sealed, durably, before there is a next one: also where what is
/// behind it is damaged, its end is known.
#[test]
fn a_segment_is_sealed_before_the_next_begins() {
    let mut sealed = 0;
    for policy in 0..4 {
        let options = options(policy);
        let storage = FaultStorage::new();
        let mut story = History::default();
        work(&storage, &options, &mut story, Random(policy), 3).unwrap();
        for operation in 1..=storage.operations() {
            let storage = FaultStorage::new();
            storage.cut_at(operation);
            let _ = work(
                &storage,
                &options,
                &mut History::default(),
                Random(policy),
                3,
            );
            let left = storage.after_cut(Cut::Random(operation));
            if let Ok(spool) = open(&left, &options) {
                // Where a new stream begins, the old one is sealed.
                let _ = append(&spool, 10);
            }
            let files = left.after_cut(Cut::Synced).files();
            let segments = files.iter().filter(|(name, _)| name.ends_with(".seg"));
            let mut segments: Vec<_> = segments.collect();
            segments.pop();
            for (name, bytes) in segments {
                let frame = &bytes[bytes.len() - 80..];
                assert!(frame.starts_with(b"\xF5ZK\x1E"), "{name}, {operation}");
                assert_eq!(frame[12..14], [0, 4], "{name}, {operation}");
                sealed += 1;
            }
        }
    }
    assert!(sealed > 1000, "{sealed}");
}

/// What did not fit is gone for good when the append says so: no cut finds a part
/// of it, and ends the stream for that.
#[test]
fn a_refused_append_leaves_nothing_to_cut() {
    for room in 1..200 {
        let storage = FaultStorage::new();
        let spool = open(&storage, &small()).unwrap();
        append(&spool, 100).unwrap();
        storage.set_capacity(Some(storage.used() + room));
        assert!(matches!(append(&spool, 400), Err(Error::DiskFull { .. })));
        for cut in cuts(room) {
            let after = open(&storage.after_cut(cut), &small()).unwrap();
            assert_eq!(after.stream(), spool.stream(), "{room}, {cut:?}");
            assert_eq!(after.predecessor(), None, "{room}, {cut:?}");
            assert_eq!(peek_all(&after).unwrap().len(), 1);
        }
    }
}

/// A state file that had to be made anew is one that stays: what was acknowledged
/// since does not come back.
#[test]
fn a_state_file_made_anew_stays() {
    let storage = FaultStorage::new();
    let spool = open(&storage, &small()).unwrap();
    for _ in 0..3 {
        append(&spool, 100).unwrap();
    }
    spool.close().unwrap();
    let without = FaultStorage::new();
    for (name, bytes) in storage.files() {
        if name != "state" {
            without.put(&name, bytes);
        }
    }
    let spool = open(&without, &small()).unwrap();
    let losses = spool.losses().unwrap();
    let second = peek_all(&spool).unwrap().remove(1);
    spool.ack(second.position()).unwrap();
    for cut in cuts(9) {
        let spool = open(&without.after_cut(cut), &small()).unwrap();
        assert_eq!(peek_all(&spool).unwrap().len(), 1, "{cut:?}");
        assert_eq!(spool.losses().unwrap(), losses, "{cut:?}");
    }
}

/// Something can't be read, opened or listed, once. What is lost by that is
/// named, and the rest is there.
#[test]
fn anything_can_not_be_read_once() {
    let mut points = 0;
    for policy in 0..4 {
        let options = options(policy);
        let random = Random(60 + policy);
        let storage = FaultStorage::new();
        let mut story = History::default();
        work(&storage, &options, &mut story, random.clone(), 3).unwrap();
        for look in 1..=storage.looks() {
            for fault in [Fault::Medium(look), Fault::Interrupted(look)] {
                let storage = FaultStorage::new();
                storage.fail_look(look, fault);
                let mut history = History::default();
                let failed = work(&storage, &options, &mut history, random.clone(), 3);
                if failed.is_err() {
                    history.windowed.clear();
                }
                let damaged = matches!(fault, Fault::Medium(_));
                let image = storage.after_cut(cuts(look)[look as usize % 6]);
                check_with(&mut history.clone(), &image, &options, damaged);
                check_with(&mut history, &storage, &options, damaged);
                points += 1;
            }
        }
    }
    tell(&format!("{points} cut points: behind a look that failed"));
}

fn faults(seed: u64) -> [Fault; 3] {
    [
        Fault::Medium(seed),
        Fault::NoSpace(seed),
        Fault::Interrupted(seed),
    ]
}

fn a_step() -> impl Strategy<Value = Step> {
    prop_oneof![
        6 => (0..1200_usize).prop_map(Step::Append),
        3 => prop::collection::vec(0..400_usize, 0..12).prop_map(Step::Batch),
        4 => (1..25_usize).prop_map(Step::Ack),
        1 => Just(Step::Reject),
        1 => Just(Step::Confirm),
        1 => Just(Step::Sync),
    ]
}

/// What ends a session.
#[derive(Clone, Copy, Debug)]
enum Ending {
    Close,
    /// The power goes off at this operation, or, if there are fewer, after all.
    Off(u64, Cut),
    /// This operation fails; then the process opens the spool again.
    Fails(u64, Fault),
}

fn an_ending() -> impl Strategy<Value = Ending> {
    let cut = prop_oneof![
        Just(Cut::Synced),
        Just(Cut::All),
        any::<u64>().prop_map(Cut::Torn),
        any::<u64>().prop_map(Cut::Random),
    ];
    let fault = (0..3_usize, any::<u64>()).prop_map(|(which, seed)| faults(seed)[which]);
    prop_oneof![
        1 => Just(Ending::Close),
        4 => (1..90_u64, cut).prop_map(|(operation, cut)| Ending::Off(operation, cut)),
        2 => (1..90_u64, fault).prop_map(|(operation, fault)| Ending::Fails(operation, fault)),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: 300 * effort() as u32,
        failure_persistence: None,
        ..ProptestConfig::default()
    })]

    /// Any sessions, ended in any way, one after the other on the same spool.
    #[test]
    fn whatever_is_done_and_however_it_ends(
        policy in 0..4_u64,
        sessions in prop::collection::vec(
            (prop::collection::vec(a_step(), 0..40), an_ending()),
            1..8,
        ),
    ) {
        let options = options(policy);
        let mut storage = FaultStorage::new();
        let mut history = History::default();
        for (steps, ending) in sessions {
            let done = storage.operations();
            match ending {
                Ending::Close => {}
                Ending::Off(operation, _) => storage.cut_at(done + operation),
                Ending::Fails(operation, fault) => storage.fail_with(done + operation, fault),
            }
            let session = |history: &mut History| -> Result<(), Error> {
                let mut session = Session {
                    spool: open(&storage, &options)?,
                    history,
                    windowed: options.sync != SyncPolicy::Each,
                };
                for step in &steps {
                    session.take(step)?;
                }
                let Session { spool, history, .. } = session;
                spool.close()?;
                history.synced();
                Ok(())
            };
            let ended = session(&mut history);
            match ending {
                Ending::Off(_, cut) => storage = storage.after_cut(cut),
                Ending::Close | Ending::Fails(..) => storage.restart(),
            }
            if ended.is_err() {
                history.windowed.clear();
            }
            check(&mut history, &storage, &options);
        }
        check_going_on(history, &storage.after_cut(Cut::All), &options);
    }
}

/// Cut after cut on the same spool: in work, in recovery, in what follows.
#[test]
fn cut_upon_cut() {
    for seed in 0..400 * effort() {
        let options = options(seed);
        let mut random = Random(seed);
        let mut storage = FaultStorage::new();
        let mut history = History::default();
        for _ in 0..8 {
            storage.cut_at(1 + random.below(120));
            let work_random = Random(random.next());
            let end = work(&storage, &options, &mut history, work_random, 4);
            let cut = cuts(random.next())[random.below(6) as usize];
            // If it ran through, the process is killed after closing.
            let cut = if end.is_ok() { Cut::All } else { cut };
            storage = storage.after_cut(cut);
            check(&mut history, &storage, &options);
        }
        check_going_on(history, &storage, &options);
    }
}

/// A process is killed at every operation, the next one opens what it left in
/// memory, goes on, and only then the power goes off.
#[test]
fn killed_and_then_cut() {
    for policy in 0..4 {
        let options = options(policy);
        let random = Random(3 + policy);
        let storage = FaultStorage::new();
        work(
            &storage,
            &options,
            &mut History::default(),
            random.clone(),
            3,
        )
        .unwrap();
        for operation in 1..=storage.operations() {
            let storage = FaultStorage::new();
            storage.cut_at(operation);
            let mut history = History::default();
            let _ = work(&storage, &options, &mut history, random.clone(), 3);
            storage.restart();
            check(&mut history, &storage, &options);
            for cut in cuts(operation) {
                check(&mut history.clone(), &storage.after_cut(cut), &options);
            }
            work(&storage, &options, &mut history, Random(operation), 1).unwrap();
            for cut in cuts(operation) {
                check(&mut history.clone(), &storage.after_cut(cut), &options);
            }
        }
    }
}

/// The disk fills to the last byte while the power goes off at every operation.
#[test]
fn on_a_full_disk() {
    for policy in 0..4 {
        let options = options(policy);
        let full = || {
            let storage = FaultStorage::new();
            storage.set_capacity(Some(32 * 1024 + 16 + 9_000));
            storage
        };
        let storage = full();
        work(
            &storage,
            &options,
            &mut History::default(),
            Random(policy),
            3,
        )
        .unwrap();
        for operation in 1..=storage.operations() {
            let storage = full();
            storage.cut_at(operation);
            let mut history = History::default();
            let _ = work(&storage, &options, &mut history, Random(policy), 3);
            for cut in cuts(operation) {
                let image = storage.after_cut(cut);
                // A spool that exists needs no room to be opened and drained.
                if !history.durable.is_empty() {
                    image.set_capacity(Some(image.used()));
                }
                check(&mut history.clone(), &image, &options);
            }
        }
    }
}

/// A sync that fails leaves pages that the system takes for written. Reopening
/// must not believe it.
#[test]
fn a_failed_sync_is_not_believed_afterwards() {
    for policy in 0..4 {
        let options = options(policy);
        let storage = FaultStorage::new();
        work(&storage, &options, &mut History::default(), Random(7), 3).unwrap();
        for operation in 2..=2 * storage.operations() {
            let storage = FaultStorage::new();
            storage.fail_at(operation / 2);
            let mut history = History::default();
            let failed = work(&storage, &options, &mut history, Random(7), 3);
            // Some operations may fail without harm.
            if failed.is_err() {
                history.windowed.clear();
            }
            // The process lives on and opens the spool again, without a cut.
            check(&mut history, &storage, &options);
            let image = storage.after_cut(Cut::Synced);
            check(&mut history.clone(), &image, &options);
            if operation % 2 == 0 {
                // Goes on in the same segment, and not far.
                let mut session = Session {
                    spool: open(&storage, &options).unwrap(),
                    history: &mut history,
                    windowed: options.sync != SyncPolicy::Each,
                };
                session.append(1, true).unwrap();
                session.sync().unwrap();
            } else {
                let more = work(&storage, &options, &mut history, Random(8), 1);
                more.expect("only one operation fails");
                history.windowed.clear();
            }
            // What is durable by now must survive losing what is not.
            check(&mut history, &storage.after_cut(Cut::Synced), &options);
        }
    }
}

/// The mark of a clean end is not believed either.
#[test]
fn a_failed_close_is_not_believed_afterwards() {
    for operation in 1..=4 {
        let storage = FaultStorage::new();
        let spool = open(&storage, &small()).unwrap();
        let stream = spool.stream();
        append(&spool, 100).unwrap();
        storage.fail_at(storage.operations() + operation);
        // The mark and the state, each written and synced.
        assert!(matches!(spool.close(), Err(Error::Io { .. })));
        let spool = open(&storage, &small()).unwrap();
        append(&spool, 100).unwrap();
        let spool = open(&storage.after_cut(Cut::Synced), &small()).unwrap();
        let torn = operation == 1;
        assert_eq!(spool.stream() != stream, torn, "{operation}");
        assert_eq!(spool.predecessor().is_some(), torn, "{operation}");
        assert!(spool.verify().unwrap().damage.is_empty());
        assert_eq!(peek_all(&spool).unwrap().len(), 2);
    }
}

/// After an error every call says so, until the spool is opened again.
#[test]
fn an_error_poisons() {
    let storage = FaultStorage::new();
    let spool = open(&storage, &small()).unwrap();
    append(&spool, 100).unwrap();
    let record = peek_all(&spool).unwrap().remove(0);
    storage.fail_at(storage.operations() + 2);
    assert!(matches!(append(&spool, 100), Err(Error::Io { .. })));

    let poisoned = |error: Error| matches!(error, Error::Poisoned { .. });
    assert!(poisoned(append(&spool, 100).unwrap_err()));
    assert!(poisoned(append_batch(&spool, &[1]).unwrap_err()));
    assert!(poisoned(append_receipt(&spool, 1).unwrap_err()));
    assert!(poisoned(peek_all(&spool).unwrap_err()));
    assert!(poisoned(spool.ack(record.position()).unwrap_err()));
    assert!(poisoned(spool.reject(record.position()).unwrap_err()));
    assert!(poisoned(spool.sync().unwrap_err()));
    assert!(poisoned(spool.stats().unwrap_err()));
    assert!(poisoned(spool.losses().unwrap_err()));
    assert!(poisoned(spool.confirm(1).unwrap_err()));
    assert!(poisoned(spool.verify().unwrap_err()));
    assert!(poisoned(spool.wait(Duration::ZERO).unwrap_err()));
    assert!(poisoned(spool.close().unwrap_err()));

    let spool = open(&storage, &small()).unwrap();
    assert_eq!(peek_all(&spool).unwrap()[0].sequence(), 1);
}

/// An append that was under way when another call failed does not pass either:
/// nothing would make its record durable.
#[test]
fn an_error_reaches_the_append_that_was_under_way() {
    for sync in [SyncPolicy::Each, HOURS] {
        let storage = FaultStorage::new();
        let options = Options { sync, ..small() };
        let spool = open(&storage, &options).unwrap();
        append(&spool, 100).unwrap();
        let first = peek_all(&spool).unwrap();
        let mut operations = 0;
        let appended = spool.append_with(|_| {
            storage.fail_at(storage.operations() + 1);
            match sync {
                SyncPolicy::Each => spool.ack(first[0].position()).unwrap_err(),
                SyncPolicy::Every(_) => spool.sync().unwrap_err(),
            };
            operations = storage.operations();
            Ok::<_, Error>(vec![1])
        });
        assert!(
            matches!(appended, Err(AppendError::Spool(Error::Poisoned { .. }))),
            "{appended:?}"
        );
        assert_eq!(storage.operations(), operations, "nothing was written");
    }
}

/// A spool whose first opening was killed half-way knows of no losses, and says
/// so whatever happens next.
#[test]
fn a_first_opening_that_was_killed_forgets_nothing() {
    let storage = FaultStorage::new();
    drop(open(&storage, &small()).unwrap());
    for operation in 1..=storage.operations() {
        let storage = FaultStorage::new();
        storage.cut_at(operation);
        let _ = open(&storage, &small());
        storage.restart();
        let spool = open(&storage, &small()).unwrap();
        append(&spool, 100).unwrap();
        for cut in cuts(operation) {
            let spool = open(&storage.after_cut(cut), &small()).unwrap();
            assert_eq!(spool.losses().unwrap(), [], "{operation}, {cut:?}");
            assert_eq!(peek_all(&spool).unwrap().len(), 1);
        }
    }
}

/// Whatever a power cut leaves of a first opening, it is a spool's, and the next
/// one goes on.
#[test]
fn a_first_opening_that_was_cut_is_gone_on_with() {
    let storage = FaultStorage::new();
    drop(open(&storage, &small()).unwrap());
    for operation in 1..=storage.operations() {
        for seed in 0..40 {
            let storage = FaultStorage::new();
            storage.cut_at(operation);
            let _ = open(&storage, &small());
            let image = storage.after_cut(Cut::Random(seed));
            let spool = open(&image, &small()).unwrap();
            assert_eq!(spool.losses().unwrap(), [], "{operation}, {seed}");
            assert_eq!(append(&spool, 100).unwrap(), 1);
        }
    }
}

/// Nor is it believed where the state file already knew of all records.
#[test]
fn a_failed_close_behind_an_acknowledgement_is_not_believed() {
    let storage = FaultStorage::new();
    let spool = open(&storage, &small()).unwrap();
    let stream = spool.stream();
    append_batch(&spool, &[100; 2]).unwrap();
    let first = spool.peek(1, 0).unwrap();
    spool.ack(first[0].position()).unwrap();
    // The sync of the mark.
    storage.fail_at(storage.operations() + 2);
    assert!(matches!(spool.close(), Err(Error::Io { .. })));
    let spool = open(&storage, &small()).unwrap();
    append(&spool, 100).unwrap();
    let spool = open(&storage.after_cut(Cut::Synced), &small()).unwrap();
    assert_eq!(spool.stream(), stream);
    assert!(spool.verify().unwrap().damage.is_empty());
    assert_eq!(peek_all(&spool).unwrap().len(), 2);
}

/// The segment of a refused record goes only when the loss is on the medium: not
/// when a sync of the state file has failed, and a later session reads what was
/// not written.
#[test]
fn a_failed_refusal_is_not_believed_afterwards() {
    for operation in 1..12 {
        let storage = FaultStorage::new();
        let spool = open(&storage, &small()).unwrap();
        append(&spool, 3000).unwrap();
        let refused = peek_all(&spool).unwrap().remove(0);
        storage.fail_at(storage.operations() + operation);
        let _ = spool.reject(refused.position());
        drop(spool);
        let spool = open(&storage, &small()).unwrap();
        append(&spool, 100).unwrap();
        for cut in [Cut::Synced, Cut::All] {
            let image = storage.after_cut(cut);
            let spool = open(&image, &small()).unwrap();
            let waiting = peek_all(&spool)
                .unwrap()
                .iter()
                .any(|r| key(r) == key(&refused));
            let losses = spool.losses().unwrap();
            let named = losses
                .iter()
                .any(|loss| loss.reason == Reason::Refused && names(loss, key(&refused)));
            assert!(waiting || named, "{operation} {cut:?}: {losses:?}");
        }
    }
}
