//! A spool that is used, and whose files are something else now and then: a power
//! cut, an operation that fails, damage of one kind or another, or numbers that
//! nobody wrote under a checksum that is right. It may also begin in a directory
//! of any content.
//!
//! Whatever is in the files, the spool opens or refuses them, and is drained in an end.
//! How far it may be asked that no sequence is given out twice, and that what it took
//! is delivered or named, depends on what was done to them: [`Level`].
#![no_main]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]

mod changes;
mod made;

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::convert::Infallible;
use std::fs;
use std::ops::{ControlFlow, Range};
use std::sync::{Arc, LazyLock};
use std::time::Duration;

use arbitrary::Arbitrary;
use libfuzzer_sys::fuzz_target;
use zk_spool::storage::{Cut, FaultStorage};
use zk_spool::{
    AppendError, Error, Full, Loss, Options, Reason, Record, Spool, StreamId, SyncPolicy, inspect,
};

use crate::changes::{Change, Files, Left, Level, Scene, segments};
use crate::made::Made;

fuzz_target!(|input: Input| {
    let storage = FaultStorage::new();
    input.made.put(&storage);
    let options = Options {
        cap: 16 << 10,
        segment_size: Some(2 << 10),
        full: if input.drop_oldest {
            Full::DropOldest
        } else {
            Full::Reject
        },
        sync: if input.windowed {
            SyncPolicy::Every(Duration::from_secs(1 << 20))
        } else {
            SyncPolicy::Each
        },
        evidence: Some(4 << 10),
        ..Options::default()
    };
    let level = if input.made.is_something() {
        Level::Forged
    } else {
        Level::Whole
    };
    let mut run = Run {
        storage,
        options,
        level,
        ..Run::default()
    };
    let mut spool = run.open();
    for op in input.ops.iter().take(32) {
        spool = match spool {
            Some(spool) => run.step(spool, op),
            None => return,
        };
    }
    if let Some(spool) = spool {
        run.finish(spool);
    }
});

#[derive(Arbitrary, Debug)]
struct Input {
    made: Made,
    drop_oldest: bool,
    windowed: bool,
    ops: Vec<Op>,
}

#[derive(Arbitrary, Debug)]
enum Op {
    Append(u16),
    Batch(Vec<u8>),
    Receipt(u8),
    Refuse,
    Peek(u8, u16),
    Ack(u8),
    Reject,
    Sync,
    Losses,
    Confirm(u8),
    Verify,
    Close,
    Kill,
    Cut(u64),
    Fail(u8),
    /// Something is done to the files, after it was closed or killed.
    Change(bool, Vec<Change>),
}

type Key = (StreamId, u64);

#[derive(Clone, Default)]
struct Run {
    storage: FaultStorage,
    options: Options,
    /// The worst that was done to the files so far.
    level: Level,
    /// How often something was done to them.
    changes: usize,
    /// The highest number of a segment, when something was done to the files.
    highest: u64,
    /// The files as they were at times, to be put back.
    versions: Vec<Files>,
    /// What can't be read of them, from some change on.
    unreadable: Vec<(String, Range<u64>)>,
    /// What was left of them that told how far all was durable.
    durable: BTreeMap<StreamId, u64>,
    /// The streams, oldest first.
    streams: Vec<StreamId>,
    /// All contents that there can be of a number.
    contents: BTreeMap<Key, Vec<Vec<u8>>>,
    /// Numbers that an append returned or that were delivered, since something was done to
    /// the files that can't be found out.
    taken: BTreeSet<Key>,
    /// What was appended, and is neither acknowledged nor lost.
    waiting: BTreeSet<Key>,
    /// What was acknowledged, and of that what was since something was done to the
    /// files, and the newest since the spool was opened.
    done: BTreeSet<Key>,
    delivered: BTreeSet<Key>,
    newest: Option<Key>,
    peeked: Vec<Record>,
    losses: Vec<Loss>,
    appended: u64,
    /// An error of the medium was asked for, since something was done to the files or
    /// ever.
    failing: bool,
    failed: bool,
}

impl Run {
    fn open(&mut self) -> Option<Spool> {
        self.peeked.clear();
        self.newest = None;
        let empty = segments(&self.storage.files()).next().is_none();
        let before = self.storage.bytes_read();
        let opened = Spool::open_on(Arc::new(self.storage.clone()), self.options);
        self.check_read(before);
        match opened {
            Ok(spool) => {
                if !self.streams.contains(&spool.stream()) {
                    self.streams.push(spool.stream());
                }
                self.told(&spool);
                Some(spool)
            }
            Err(Error::NotASpool { .. } | Error::UnsupportedFormat { .. })
                if empty || self.level > Level::Damaged =>
            {
                None
            }
            Err(Error::Io { .. }) if self.failing => None,
            Err(error) => panic!("{error}"),
        }
    }

    /// Nothing in the files makes it read them over and over.
    fn check_read(&self, before: u64) {
        let read = self.storage.bytes_read() - before;
        let files = self.storage.used();
        assert!(read <= 64 * (files + (1 << 16)), "{read} of {files}");
    }

    /// A new stream says where the one before it ended, or that there is none: what an
    /// append was given behind that is gone, unless something is left that knew it to
    /// be durable.
    fn told(&mut self, spool: &Spool) {
        let before = spool.predecessor();
        let end = before.map(|before| self.place((before.stream, before.last_sequence)));
        let end = end.unwrap_or_default();
        let gone = |key: &Key| {
            let known = self.durable.get(&key.0).copied().unwrap_or(0);
            key.0 != spool.stream() && self.place(*key) > end && key.1 > known
        };
        let gone: BTreeSet<Key> = self.waiting.iter().copied().filter(gone).collect();
        self.waiting.retain(|key| !gone.contains(key));
    }

    /// Where it comes in the order of all records.
    fn place(&self, (stream, sequence): Key) -> (Option<usize>, u64) {
        let stream = self.streams.iter().position(|known| *known == stream);
        (stream, sequence)
    }

    fn step(&mut self, spool: Spool, op: &Op) -> Option<Spool> {
        let done = match op {
            Op::Append(len) => self.append(&spool, usize::from(*len) % 5000, false),
            Op::Receipt(len) => self.append(&spool, (*len).into(), true),
            Op::Batch(lens) => self.batch(&spool, lens),
            Op::Refuse => match spool.append_with(|_| Err::<Vec<u8>, ()>(())) {
                Err(AppendError::Spool(error)) => Err(error),
                Err(AppendError::Seal(())) | Ok(_) => Ok(()),
            },
            Op::Peek(records, bytes) => self.peek(&spool, (*records).into(), (*bytes).into()),
            Op::Ack(place) => self.ack(&spool, (*place).into()),
            Op::Reject => self.reject(&spool),
            Op::Sync => spool.sync(),
            Op::Losses => self.note_losses(&spool),
            Op::Confirm(id) => self
                .note_losses(&spool)
                .and_then(|()| spool.confirm((*id).into())),
            Op::Verify => self.verify(&spool),
            Op::Close => {
                self.close(spool);
                return self.open();
            }
            Op::Kill => {
                self.crash(spool, Cut::All);
                return self.open();
            }
            Op::Cut(seed) => {
                self.crash(spool, Cut::Random(*seed));
                return self.open();
            }
            Op::Fail(after) => {
                self.failing = true;
                self.failed = true;
                self.storage
                    .fail_at(self.storage.operations() + 1 + u64::from(*after % 16));
                return Some(spool);
            }
            Op::Change(close, changes) => return self.change(spool, *close, changes),
        };
        match done {
            Ok(()) => Some(spool),
            Err(Error::Io { .. } | Error::Poisoned { .. }) if self.failing => {
                drop(spool);
                self.open()
            }
            Err(Error::Full { .. } | Error::TooLarge { .. }) => Some(spool),
            Err(error) => panic!("{op:?}: {error}"),
        }
    }

    fn close(&mut self, spool: Spool) {
        match spool.close() {
            Err(error) if !self.failing => panic!("{error}"),
            _ => {}
        }
    }

    fn crash(&mut self, spool: Spool, cut: Cut) {
        let after = self.storage.after_cut(cut);
        drop(spool);
        self.storage = after;
        // Where the log ends, and so what an unfinished window has lost, is told by what
        // may not be true.
        if self.level > Level::Damaged {
            self.waiting.clear();
        }
    }

    // ---- appending ----

    fn append(&mut self, spool: &Spool, len: usize, receipt: bool) -> Result<(), Error> {
        let content = self.content(len);
        let mut given = None;
        let seal = |sequence| {
            given = Some(sequence);
            Ok::<_, Infallible>(content.clone())
        };
        let result = match receipt {
            true => spool.append_receipt_with(seal),
            false => spool.append_with(seal),
        };
        let result = result.map_err(|error| match error {
            AppendError::Seal(never) => match never {},
            AppendError::Spool(error) => error,
        });
        let given = given.map(|sequence| (sequence, content));
        self.appended(spool, given, result.map(|sequence| vec![sequence]))
    }

    fn batch(&mut self, spool: &Spool, lens: &[u8]) -> Result<(), Error> {
        let contents: Vec<Vec<u8>> = lens
            .iter()
            .take(8)
            .map(|len| self.content((*len).into()))
            .collect();
        let given = RefCell::new(Vec::new());
        let seals = contents.into_iter().map(|content| {
            |sequence| {
                given.borrow_mut().push((sequence, content.clone()));
                Ok::<_, Infallible>(content)
            }
        });
        let result = spool.append_batch_with(seals);
        let result = result.map(|all| all.into_iter().map(|Ok(sequence)| sequence).collect());
        self.appended(spool, given.into_inner(), result)
    }

    /// Unlike that of any other record.
    fn content(&mut self, len: usize) -> Vec<u8> {
        self.appended += 1;
        let mut content = format!("appended {}", self.appended).into_bytes();
        content.resize(content.len().max(len), b'.');
        content
    }

    fn appended(
        &mut self,
        spool: &Spool,
        given: impl IntoIterator<Item = (u64, Vec<u8>)>,
        result: Result<Vec<u64>, Error>,
    ) -> Result<(), Error> {
        // After an error of the medium it may be there or not.
        if matches!(
            result,
            Ok(_) | Err(Error::Io { .. } | Error::Poisoned { .. })
        ) {
            for (sequence, content) in given {
                let key = (spool.stream(), sequence);
                self.contents.entry(key).or_default().push(content);
            }
        }
        for sequence in result? {
            let key = (spool.stream(), sequence);
            let new = self.taken.insert(key);
            assert!(new, "{key:?} was given out before");
            assert!(self.contents.contains_key(&key));
            self.waiting.insert(key);
        }
        Ok(())
    }

    // ---- draining ----

    fn peek(&mut self, spool: &Spool, records: usize, bytes: usize) -> Result<(), Error> {
        self.peeked = spool.peek(records, bytes)?;
        assert!(self.peeked.len() <= records);
        let mut before = self.newest;
        for record in &self.peeked {
            let key = key(record);
            match self.contents.get(&key) {
                Some(contents) => {
                    assert!(
                        contents.iter().any(|known| known == record.bytes()),
                        "{key:?}"
                    );
                }
                None => assert_eq!(self.level, Level::Forged, "{key:?} was never appended"),
            }
            self.taken.insert(key);
            if self.level <= Level::Damaged {
                let ascending = before.is_none_or(|before| self.place(before) < self.place(key));
                assert!(ascending, "{key:?} behind {before:?}");
                before = Some(key);
            }
            let again = self.level == Level::Whole && self.done.contains(&key);
            assert!(!again, "{key:?} was acknowledged");
        }
        Ok(())
    }

    fn ack(&mut self, spool: &Spool, place: usize) -> Result<(), Error> {
        let Some(last) = place.checked_rem(self.peeked.len()) else {
            return Ok(());
        };
        let peeked = std::mem::take(&mut self.peeked);
        let keys: Vec<Key> = peeked[..=last].iter().map(key).collect();
        match spool.ack(peeked[last].position()) {
            // It was dropped at the cap, or found damaged, since.
            Err(Error::UnknownPosition { .. }) => Ok(()),
            Err(error) => {
                // Also after an error it may be on the medium.
                self.waiting.retain(|key| !keys.contains(key));
                Err(error)
            }
            Ok(()) => {
                self.newest = keys.last().copied();
                for key in keys {
                    self.waiting.remove(&key);
                    self.done.insert(key);
                    self.delivered.insert(key);
                }
                Ok(())
            }
        }
    }

    fn reject(&mut self, spool: &Spool) -> Result<(), Error> {
        let Some(oldest) = self.peeked.first().map(Record::position) else {
            return Ok(());
        };
        self.peeked.clear();
        match spool.reject(oldest) {
            Err(Error::NotOldest { .. } | Error::UnknownPosition { .. }) => Ok(()),
            other => other,
        }
    }

    fn note_losses(&mut self, spool: &Spool) -> Result<(), Error> {
        self.losses.extend(spool.losses()?);
        let damaged = |loss: &Loss| matches!(loss.reason, Reason::Damaged | Reason::Several);
        if self.level == Level::Whole {
            assert!(!self.losses.iter().any(damaged), "{:?}", self.losses);
        }
        Ok(())
    }

    fn verify(&mut self, spool: &Spool) -> Result<(), Error> {
        let before = self.storage.bytes_read();
        let report = spool.verify()?;
        self.check_read(before);
        if self.level == Level::Whole {
            assert_eq!(report.damage, []);
        }
        Ok(())
    }

    /// Takes all out. In the end what was appended was delivered, or is named.
    fn drain(&mut self, spool: &Spool) {
        match spool.sync() {
            Err(_) if self.failing => return,
            synced => synced.unwrap(),
        }
        for _ in 0..10_000 {
            let done = self
                .peek(spool, 7, 5000)
                .and_then(|()| self.ack(spool, self.peeked.len().saturating_sub(1)));
            if self.failing && done.is_err() {
                return;
            }
            done.unwrap();
            if self.peek(spool, 1, 1).is_ok() && self.peeked.is_empty() {
                match self.note_losses(spool) {
                    Err(error) if !self.failing => panic!("{error}"),
                    Err(_) => {}
                    Ok(()) => self.settle(),
                }
                return;
            }
        }
        panic!("it does not come to an end");
    }

    /// What was appended and not delivered is named, exactly if it was not.
    fn settle(&self) {
        let several = |loss: &Loss| loss.reason == Reason::Several;
        let vague = |loss: &Loss| loss.records == 0;
        let exchanged = self.level > Level::Damaged;
        if self.losses.iter().any(several) || exchanged && self.losses.iter().any(vague) {
            return;
        }
        let names = |loss: &Loss, key: Key| {
            if vague(loss) {
                let from = self.place((loss.stream, loss.first));
                return from.0.is_none() || self.place(key) >= from;
            }
            loss.reason != Reason::Full
                && loss.stream == key.0
                && (loss.first..=loss.last).contains(&key.1)
        };
        for key in &self.waiting {
            let named = self.losses.iter().any(|loss| names(loss, *key));
            assert!(
                named,
                "{key:?} is neither delivered nor named: {:?}",
                self.losses
            );
        }
        if self.level <= Level::Damaged && self.changes == 1 {
            for key in &self.delivered {
                let damage = |loss: &&Loss| loss.reason == Reason::Damaged && !vague(loss);
                let named = self
                    .losses
                    .iter()
                    .filter(damage)
                    .find(|loss| names(loss, *key));
                assert_eq!(named, None, "{key:?} is delivered and named");
            }
        }
    }

    /// Closing and opening changes nothing; then all is taken out; and it goes on.
    fn finish(&mut self, spool: Spool) {
        let Some(spool) = self.again(spool) else {
            return;
        };
        self.drain(&spool);
        if self.failing {
            return;
        }
        match self.append(&spool, 20, false) {
            Err(Error::Full { .. }) if self.level > Level::Damaged => return,
            done => done.unwrap(),
        }
        let stream = spool.stream();
        let Some(spool) = self.again(spool) else {
            return;
        };
        // Forged numbers may have come to their end; and what is appended where it can't be
        // read is damaged at once.
        let ends = self.level == Level::Forged || !self.unreadable.is_empty();
        assert!(spool.stream() == stream || ends);
        self.drain(&spool);
    }

    fn again(&mut self, spool: Spool) -> Option<Spool> {
        if self.failing {
            return Some(spool);
        }
        spool.sync().unwrap();
        let before = self.look(&spool);
        self.close(spool);
        let spool = self.open()?;
        let after = self.look(&spool);
        // What does not belong there, or was damaged more than once, may be read in
        // another way once parts of it are gone.
        if self.level <= Level::Damaged && self.changes <= 1 {
            assert_eq!(after, before);
        }
        Some(spool)
    }

    fn look(&mut self, spool: &Spool) -> Look {
        self.peek(spool, usize::MAX, usize::MAX).unwrap();
        let stats = spool.stats().unwrap();
        let mut losses = spool.losses().unwrap();
        // A doubt about one segment may be put elsewhere when those around it are gone.
        losses.retain(|loss| loss.records > 0);
        Look {
            peeked: self.peeked.iter().map(key).collect(),
            records: stats.records,
            ends: (stats.oldest, stats.newest),
            losses,
        }
    }

    // ---- what happens to the files ----

    fn change(&mut self, spool: Spool, close: bool, changes: &[Change]) -> Option<Spool> {
        let losses = spool.losses().unwrap_or_default();
        if close {
            self.close(spool);
        } else {
            self.crash(spool, Cut::All);
        }
        let before = self.storage.files();
        let mut versions = self.versions.clone();
        versions.push(OTHER.files.clone());
        let mut streams = self.streams.clone();
        streams.push(OTHER.stream);
        let mut scene = Scene {
            files: before.clone(),
            versions: &versions,
            streams: &streams,
            unreadable: self.unreadable.clone(),
            level: self.level,
        };
        for change in changes.iter().take(8) {
            scene.change(change);
        }
        let Scene {
            files,
            unreadable,
            level,
            ..
        } = scene;
        let names: BTreeSet<&String> = before.keys().chain(files.keys()).collect();
        let differs = |name: &&String| before.get(*name) != files.get(*name);
        let touched: BTreeSet<&String> = names
            .into_iter()
            .filter(differs)
            .chain(unreadable.iter().map(|(name, _)| name))
            .collect();
        let touched = touched.len();
        self.storage = FaultStorage::new();
        for (name, bytes) in &files {
            self.storage.put(name, bytes.clone());
        }
        for (name, bytes) in &unreadable {
            self.storage.set_unreadable(name, bytes.clone());
        }
        self.unreadable = unreadable;
        self.failing = false;
        self.changes += 1;
        self.delivered.clear();
        let newest = segments(&before).last().map_or(0, |(number, _)| number);
        self.highest = self.highest.max(newest);
        self.versions.push(before);
        let left = Left::of(&self.versions, &files, &self.unreadable, self.highest);
        self.expect(level, left, touched);

        // All that comes of it is looked at in a copy.
        let looked = self.inspect(&files);
        // A write that failed may have left a slot half written.
        let is_whole = self.level == Level::Whole && !self.failed;
        let is_well = looked.as_ref().is_none_or(|looked| looked.well);
        assert!(is_well || !is_whole, "nothing was done");
        let mut copy = self.clone();
        copy.storage = self.storage.after_cut(Cut::All);
        let spool = copy.open()?;
        copy.check_kept(&spool, &losses);
        let spool = copy.again(spool)?;
        copy.drain(&spool);
        if self.level <= Level::Damaged
            && self.changes == 1
            && self.unreadable.is_empty()
            && let Some(looked) = looked
        {
            copy.compare(&looked);
        }
        copy.finish(spool);
        self.open()
    }

    /// What can be asked of what is there now, after so many files were changed.
    fn expect(&mut self, level: Level, left: Left, touched: usize) {
        self.level = level;
        if left.unaware {
            self.level = level.max(Level::Exchanged);
        }
        self.durable = left.durable;
        if self.level > Level::Damaged {
            self.durable.clear();
        }
        // What is damaged is told of by the slots and by the newest header. What other
        // files than one may still tell without those, or one that was damaged before,
        // is not modelled here: of that it is not asked that losses are named. Nor where an
        // operation failed between a loss and its copy, which one damaged slot then makes
        // forgotten.
        let simple = self.changes == 1 && (touched <= 1 || left.told) && !self.failed;
        if left.nothing || self.level > Level::Damaged || !simple {
            self.waiting.clear();
        }
        if self.level > Level::Damaged {
            // An older end of the log may be taken for the newest. But what is found in it
            // counts.
            self.taken.clear();
        }
        match self.level {
            Level::Whole | Level::Damaged => {}
            Level::Exchanged => {
                for (key, contents) in &OTHER.contents {
                    let known = self.contents.entry(*key).or_default();
                    known.extend(contents.iter().cloned());
                }
            }
            Level::Forged => self.contents.clear(),
        }
    }

    /// Losses that were offered are there, unless it says that they may not be.
    fn check_kept(&mut self, spool: &Spool, before: &[Loss]) {
        let after = spool.losses().unwrap();
        let forgotten = |loss: &Loss| loss.reason == Reason::Several;
        if self.level > Level::Damaged || self.failed || after.iter().any(forgotten) {
            return;
        }
        for loss in before {
            let same = |kept: &&Loss| {
                (kept.id, kept.reason, kept.stream) == (loss.id, loss.reason, loss.stream)
                    && kept.first == loss.first
            };
            let kept = after.iter().find(same);
            let segments = segments(&self.storage.files()).next().is_some();
            assert!(
                kept.is_some() || !segments,
                "{loss:?} is forgotten: {after:?}"
            );
        }
    }

    /// A look from outside, at files on a disk.
    fn inspect(&self, files: &Files) -> Option<Looked> {
        let directory = tempfile::tempdir().unwrap();
        for (name, bytes) in files {
            let path = directory.path().join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, bytes).unwrap();
        }
        let newer = |error: &Error| {
            self.level > Level::Damaged && matches!(error, Error::UnsupportedFormat { .. })
        };
        let found = match inspect(directory.path()) {
            Err(error) if newer(&error) => None,
            found => found.unwrap(),
        }?;
        let mut seen = Vec::new();
        let see = |record: Record| {
            let key = key(&record);
            if self.level < Level::Forged {
                let known = self.contents.get(&key);
                let known = known.is_some_and(|known| known.iter().any(|k| k == record.bytes()));
                assert!(known, "{key:?} is seen and was never appended");
            }
            seen.push(key);
            ControlFlow::Continue(())
        };
        found.visit(see).unwrap();
        let newest = found.newest_record().unwrap();
        assert_eq!(newest.as_ref().map(key), seen.last().copied());
        if self.level <= Level::Damaged {
            let ascending = seen.is_sorted_by(|a, b| self.place(*a) < self.place(*b));
            assert!(ascending, "{seen:?}");
        }
        let report = match found.verify(|_| {}) {
            Err(error) if newer(&error) => return None,
            report => report.unwrap(),
        };
        Some(Looked {
            seen: seen.into_iter().collect(),
            well: report.damage.is_empty(),
        })
    }

    /// What is seen from outside is what is delivered.
    fn compare(&self, looked: &Looked) {
        assert_eq!(looked.seen, self.delivered);
        let damage = |loss: &&Loss| matches!(loss.reason, Reason::Damaged | Reason::Several);
        let damage = self.losses.iter().find(damage);
        let well = looked.well;
        assert!(
            !well || damage.is_none(),
            "nothing is wrong, and {damage:?}"
        );
    }
}

fn key(record: &Record) -> Key {
    (record.stream(), record.sequence())
}

/// What is said of a spool at rest, and what waits in it.
#[derive(Debug, PartialEq)]
struct Look {
    peeked: Vec<Key>,
    records: u64,
    ends: (Option<Key>, Option<Key>),
    losses: Vec<Loss>,
}

/// What was seen from outside.
struct Looked {
    seen: BTreeSet<Key>,
    /// Nothing is wrong with the files.
    well: bool,
}

/// Another spool, whose files may come among those of the one that is looked at.
struct Other {
    stream: StreamId,
    files: Files,
    contents: BTreeMap<Key, Vec<Vec<u8>>>,
}

static OTHER: LazyLock<Other> = LazyLock::new(|| {
    let mut run = Run {
        options: Options {
            cap: 16 << 10,
            segment_size: Some(2 << 10),
            ..Options::default()
        },
        ..Run::default()
    };
    let spool = run.open().unwrap();
    for len in [100, 1000, 1500, 200, 700] {
        run.append(&spool, len, false).unwrap();
    }
    run.peek(&spool, 2, usize::MAX).unwrap();
    run.ack(&spool, 0).unwrap();
    run.peek(&spool, 1, usize::MAX).unwrap();
    run.reject(&spool).unwrap();
    let stream = spool.stream();
    run.close(spool);
    Other {
        stream,
        files: run.storage.files(),
        contents: run.contents,
    }
});
