//! A directory of any content, opened and used: whole files of the format with
//! a field that is not what it should be under a checksum that is right, bytes
//! that are none of it, and a power cut now and then.
//!
//! Whatever is in the files, the spool opens or refuses them, is drained in an end,
//! gives no sequence out twice, and names or delivers what it took itself.
#![no_main]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]

use std::collections::{BTreeMap, BTreeSet};
use std::convert::Infallible;
use std::sync::Arc;

use arbitrary::Arbitrary;
use crc32c::{crc32c, crc32c_append};
use libfuzzer_sys::fuzz_target;
use zk_spool::storage::{Cut, FaultStorage};
use zk_spool::{AppendError, Error, Full, Loss, Options, Reason, Record, Spool, StreamId};

fuzz_target!(|input: Input| {
    let storage = FaultStorage::new();
    if input.marker {
        storage.put("zk-spool", checked(*b"zk-spool\0\0\0\x01\0\0\0\0", 12, 16));
    }
    for (number, segment) in (1..).zip(input.segments.iter().take(4)) {
        segment.put(number, &storage);
    }
    if let Some(state) = &input.state {
        storage.put("state", state.to_bytes());
    }
    for edit in input.edits.iter().take(8) {
        edit.apply(&storage);
    }
    let options = Options {
        cap: 16 << 10,
        segment_size: Some(2 << 10),
        full: if input.drop_oldest {
            Full::DropOldest
        } else {
            Full::Reject
        },
        evidence: Some(4 << 10),
        ..Options::default()
    };
    let mut run = Run {
        storage,
        options,
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
        run.drain(&spool);
    }
});

// ---- what is in the directory ----

#[derive(Arbitrary, Debug)]
struct Input {
    marker: bool,
    drop_oldest: bool,
    segments: Vec<Segment>,
    state: Option<State>,
    edits: Vec<Edit>,
    ops: Vec<Op>,
}

/// The right value, or another one.
#[derive(Arbitrary, Clone, Copy, Debug)]
enum Field {
    Right,
    Plus(i8),
    Other(u64),
}

impl Field {
    fn of(self, right: u64) -> u64 {
        match self {
            Self::Right => right,
            Self::Plus(by) => right.wrapping_add_signed(by.into()),
            Self::Other(value) => value,
        }
    }
}

#[derive(Arbitrary, Debug)]
struct Segment {
    /// The number in the header; the name has the right one.
    number: Field,
    stream: u8,
    first: Field,
    predecessor: (u8, u64, u8),
    bad_copies: [bool; 2],
    frames: Vec<Frame>,
    cut: u8,
}

#[derive(Arbitrary, Debug)]
struct Frame {
    kind: Kind,
    kind_field: Field,
    count: Field,
    first: Field,
    synced: Field,
    len: Field,
    bad_checksum: bool,
    /// Other bytes between this frame and the one before.
    gap: u8,
}

#[derive(Arbitrary, Debug)]
enum Kind {
    Records(Vec<(u8, Field)>),
    Opened(u8),
    Closed,
    Sealed {
        first: Field,
        last: Field,
        end: Field,
        reason: u8,
    },
    Other(Vec<u8>),
}

impl Segment {
    fn put(&self, number: u64, storage: &FaultStorage) {
        let stream = [self.stream % 3 + 1; 16];
        let first = self.first.of(1);
        let mut copy = vec![0; 512];
        copy[..8].copy_from_slice(b"zk-spseg");
        copy[11] = 1;
        let number_field = self.number.of(number);
        copy[16..24].copy_from_slice(&number_field.to_be_bytes());
        copy[24..40].copy_from_slice(&stream);
        copy[40..48].copy_from_slice(&first.to_be_bytes());
        let (before, last, end) = self.predecessor;
        if end != 0 {
            copy[48..64].copy_from_slice(&[before % 3 + 1; 16]);
            copy[64..72].copy_from_slice(&last.to_be_bytes());
            copy[72] = end;
        }
        let crc = crc32c_append(crc32c(&copy[..12]), &copy[16..]);
        copy[12..16].copy_from_slice(&crc.to_be_bytes());
        let mut file = copy.repeat(2);
        for (copy, bad) in self.bad_copies.iter().enumerate() {
            file[512 * copy] ^= u8::from(*bad);
        }
        let seed = crc32c_append(crc32c(&number.to_be_bytes()), &stream);
        let mut next = first;
        for frame in self.frames.iter().take(12) {
            frame.push(&mut file, seed, stream, first, &mut next);
        }
        file.truncate(file.len().saturating_sub(self.cut.into()));
        storage.put(&format!("{number:020}.seg"), file);
    }
}

impl Frame {
    fn push(&self, file: &mut Vec<u8>, seed: u32, stream: [u8; 16], segment: u64, next: &mut u64) {
        file.extend(vec![0xA5; self.gap.into()]);
        let at = file.len() as u64;
        let first = self.first.of(*next);
        let mut body = Vec::new();
        let (kind, count) = match &self.kind {
            Kind::Records(records) => {
                let records = &records[..records.len().min(8)];
                for (index, (len, field)) in records.iter().enumerate() {
                    body.extend((field.of((*len).into()) as u32).to_be_bytes());
                    body.extend(vec![index as u8; (*len).into()]);
                }
                (1, records.len() as u64)
            }
            Kind::Opened(windowed) => {
                body.extend([*windowed, 0, 0, 0, 0, 0, 0, 0]);
                (2, 0)
            }
            Kind::Closed => (3, 0),
            Kind::Sealed {
                first,
                last,
                end,
                reason,
            } => {
                body.extend(stream);
                body.extend(first.of(segment).to_be_bytes());
                body.extend(last.of(next.wrapping_sub(1)).to_be_bytes());
                body.extend(end.of(at).to_be_bytes());
                body.extend([*reason, 0, 0, 0, 0, 0, 0, 0]);
                (4, 0)
            }
            Kind::Other(bytes) => {
                body.extend(bytes.iter().take(512));
                (0, 0)
            }
        };
        let mut frame = vec![0xF5, 0x5A, 0x4B, 0x1E, 0, 0, 0, 0];
        frame.extend((self.len.of(body.len() as u64) as u32).to_be_bytes());
        frame.extend((self.kind_field.of(kind) as u16).to_be_bytes());
        frame.extend((self.count.of(count) as u16).to_be_bytes());
        frame.extend(first.to_be_bytes());
        frame.extend(self.synced.of(first.wrapping_sub(1)).to_be_bytes());
        frame.extend(body);
        let crc = crc32c_append(crc32c_append(seed, &at.to_be_bytes()), &frame[8..]);
        let crc = crc ^ u32::from(self.bad_checksum);
        frame[4..8].copy_from_slice(&crc.to_be_bytes());
        file.extend(frame);
        *next = first.wrapping_add(count);
    }
}

#[derive(Arbitrary, Debug)]
struct State {
    slots: [Option<Slot>; 2],
    cut: u8,
}

#[derive(Arbitrary, Debug)]
struct Slot {
    generation: Field,
    segment: Field,
    stream: u8,
    sequence: Field,
    offset: Field,
    durable: (Field, Field),
    last_id: Field,
    count: Field,
    losses: Vec<LossEntry>,
    bad_checksum: bool,
}

#[derive(Arbitrary, Debug)]
struct LossEntry {
    id: Field,
    reason: u8,
    confirmed: u8,
    stream: u8,
    first: u64,
    last: Field,
    records: Field,
    since: u64,
}

impl State {
    fn to_bytes(&self) -> Vec<u8> {
        let mut bytes = vec![0; 32 << 10];
        for (place, slot) in self.slots.iter().enumerate() {
            if let Some(slot) = slot {
                slot.write(place as u64, &mut bytes[place << 14..(place + 1) << 14]);
            }
        }
        bytes.truncate(bytes.len() - usize::from(self.cut));
        bytes
    }
}

impl Slot {
    fn write(&self, generation: u64, bytes: &mut [u8]) {
        let losses = &self.losses[..self.losses.len().min(8)];
        let stream = [self.stream % 3 + 1; 16];
        bytes[..8].copy_from_slice(b"zk-spsta");
        bytes[11] = 1;
        let mut at = 16;
        let mut put = |field: &[u8]| {
            bytes[at..at + field.len()].copy_from_slice(field);
            at += field.len();
        };
        put(&self.generation.of(generation).to_be_bytes());
        put(&self.segment.of(1).to_be_bytes());
        put(&stream);
        put(&self.sequence.of(0).to_be_bytes());
        put(&self.offset.of(1024).to_be_bytes());
        put(&self.durable.0.of(1).to_be_bytes());
        put(&self.durable.1.of(0).to_be_bytes());
        put(&self.last_id.of(losses.len() as u64).to_be_bytes());
        let count = self.count.of(losses.len() as u64) as u32;
        put(&count.to_be_bytes());
        put(&[0; 4]);
        for (id, loss) in (1..).zip(losses) {
            put(&loss.id.of(id).to_be_bytes());
            put(&[loss.reason, loss.confirmed, 0, 0, 0, 0, 0, 0]);
            put(&[loss.stream % 4; 16]);
            put(&loss.first.to_be_bytes());
            let last = loss.last.of(loss.first);
            put(&last.to_be_bytes());
            let records = loss
                .records
                .of(last.wrapping_sub(loss.first).wrapping_add(1));
            put(&records.to_be_bytes());
            put(&loss.since.to_be_bytes());
            put(&loss.since.to_be_bytes());
        }
        // What is counted is what the checksum covers.
        let end = 96 + 72 * count.min(226) as usize;
        let crc = crc32c_append(crc32c(&bytes[..12]), &bytes[16..end]);
        let crc = crc ^ u32::from(self.bad_checksum);
        bytes[12..16].copy_from_slice(&crc.to_be_bytes());
    }
}

fn checked<const N: usize>(mut bytes: [u8; N], at: usize, len: usize) -> Vec<u8> {
    let crc = crc32c(&bytes[..at]);
    bytes[at..at + 4].copy_from_slice(&crc.to_be_bytes());
    bytes[..len].to_vec()
}

/// Something done to a file, without regard for what is in it.
#[derive(Arbitrary, Debug)]
enum Edit {
    Write(u8, u16, Vec<u8>),
    Cut(u8, u16),
    Copy(u8, u8),
    Whole(u8, Vec<u8>),
    Unreadable(u8, u16, u16),
}

impl Edit {
    fn apply(&self, storage: &FaultStorage) {
        let content = |file: u8| storage.files().remove(&name(file)).unwrap_or_default();
        match self {
            Self::Write(file, at, bytes) => {
                let mut content = content(*file);
                let at = usize::from(*at).min(content.len());
                let end = content.len().min(at + bytes.len());
                content.splice(at..end, bytes.iter().copied());
                storage.put(&name(*file), content);
            }
            Self::Cut(file, len) => {
                let mut content = content(*file);
                content.truncate((*len).into());
                storage.put(&name(*file), content);
            }
            Self::Copy(from, to) => storage.put(&name(*to), content(*from)),
            Self::Whole(file, bytes) => storage.put(&name(*file), bytes.clone()),
            Self::Unreadable(file, from, len) => {
                let from = u64::from(*from);
                storage.set_unreadable(&name(*file), from..from + u64::from(*len));
            }
        }
    }
}

fn name(file: u8) -> String {
    match file % 16 {
        0 => "zk-spool".into(),
        1 => "state".into(),
        number @ 2..=8 => format!("{:020}.seg", number - 1),
        9 => format!("{:020}.tmp", 2),
        10 => format!("{:020}.seg", (1_u64 << 61) - 1),
        11 => format!("{:020}.seg", (1_u64 << 61) - 3),
        12 => format!("{:020}.seg", u64::MAX),
        13 => format!("damaged/{:020}.seg", 1),
        14 => format!("rejected/{:020}-{:020}-{}.rec", 1, 1, "01".repeat(16)),
        _ => "another".into(),
    }
}

// ---- what is done with it ----

#[derive(Arbitrary, Debug)]
enum Op {
    Append(u16),
    Batch(Vec<u8>),
    Receipt(u8),
    Refuse,
    Peek(u8, u16),
    Ack(u8),
    Reject,
    Losses,
    Confirm(u8),
    Verify,
    Close,
    Kill,
    Cut(u64),
    Fail(u8),
}

type Key = (StreamId, u64);

#[derive(Default)]
struct Run {
    storage: FaultStorage,
    options: Options,
    /// All that was ever given out or seen, with its content.
    seen: BTreeMap<Key, Vec<u8>>,
    /// What was appended, is durable, and is neither acknowledged nor lost.
    waiting: BTreeSet<Key>,
    peeked: Vec<Record>,
    losses: Vec<Loss>,
    appended: u64,
    /// An error of the medium was asked for.
    failing: bool,
}

impl Run {
    fn open(&mut self) -> Option<Spool> {
        self.peeked.clear();
        let (before, files) = (self.storage.bytes_read(), self.storage.used());
        let opened = Spool::open_on(Arc::new(self.storage.clone()), self.options);
        // Nothing in the files makes it read them over and over.
        let read = self.storage.bytes_read() - before;
        assert!(read <= 64 * (files + (1 << 16)), "{read} of {files}");
        match opened {
            Ok(spool) => Some(spool),
            Err(Error::NotASpool { .. } | Error::UnsupportedFormat { .. }) => None,
            Err(error @ Error::Io { .. }) if self.failing => drop_error(&error),
            Err(error) => panic!("{error}"),
        }
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
            Op::Losses => self.note_losses(&spool),
            Op::Confirm(id) => self
                .note_losses(&spool)
                .and_then(|()| spool.confirm((*id).into())),
            Op::Verify => spool.verify().map(drop),
            Op::Close => {
                let closed = spool.close();
                self.may_fail(closed);
                return self.open();
            }
            Op::Kill => return self.crash(spool, Cut::All),
            Op::Cut(seed) => return self.crash(spool, Cut::Random(*seed)),
            Op::Fail(after) => {
                self.failing = true;
                self.storage
                    .fail_at(self.storage.operations() + 1 + u64::from(*after % 16));
                return Some(spool);
            }
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

    fn may_fail(&self, done: Result<(), Error>) {
        match done {
            Err(error) if !self.failing => panic!("{error}"),
            _ => {}
        }
    }

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
        match result {
            Ok(sequence) => {
                assert_eq!(given, Some(sequence));
                self.appended((spool.stream(), sequence), content);
                Ok(())
            }
            Err(AppendError::Seal(never)) => match never {},
            Err(AppendError::Spool(error)) => Err(error),
        }
    }

    fn batch(&mut self, spool: &Spool, lens: &[u8]) -> Result<(), Error> {
        let contents: Vec<Vec<u8>> = lens
            .iter()
            .take(8)
            .map(|len| self.content((*len).into()))
            .collect();
        let seals = contents
            .iter()
            .map(|content| |_| Ok::<_, Infallible>(content.clone()));
        let sequences = spool.append_batch_with(seals)?;
        for (Ok(sequence), content) in sequences.into_iter().zip(contents) {
            self.appended((spool.stream(), sequence), content);
        }
        Ok(())
    }

    /// Unlike that of any other record.
    fn content(&mut self, len: usize) -> Vec<u8> {
        self.appended += 1;
        let mut content = format!("appended {}", self.appended).into_bytes();
        content.resize(content.len().max(len), b'.');
        content
    }

    fn appended(&mut self, key: Key, content: Vec<u8>) {
        let before = self.seen.insert(key, content);
        assert_eq!(before, None, "{key:?} was given out before");
        self.waiting.insert(key);
    }

    fn peek(&mut self, spool: &Spool, records: usize, bytes: usize) -> Result<(), Error> {
        self.peeked = spool.peek(records, bytes)?;
        assert!(self.peeked.len() <= records);
        for record in &self.peeked {
            let key = (record.stream(), record.sequence());
            let known = self
                .seen
                .entry(key)
                .or_insert_with(|| record.bytes().to_vec());
            // Foreign files may hold one number twice; what was appended stands.
            if known.starts_with(b"appended") {
                assert_eq!(known, record.bytes(), "{key:?}");
            }
        }
        Ok(())
    }

    fn ack(&mut self, spool: &Spool, place: usize) -> Result<(), Error> {
        let Some(last) = place.checked_rem(self.peeked.len()) else {
            return Ok(());
        };
        let peeked = std::mem::take(&mut self.peeked);
        let done = peeked[..=last]
            .iter()
            .map(|record| (record.stream(), record.sequence()));
        let done: Vec<Key> = done.filter(|key| self.waiting.remove(key)).collect();
        match spool.ack(peeked[last].position()) {
            // It was dropped at the cap, or found damaged, since.
            Err(Error::UnknownPosition { .. }) => {
                self.waiting.extend(done);
                Ok(())
            }
            // Also after an error it may be on the medium.
            other => other,
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
        Ok(())
    }

    fn crash(&mut self, spool: Spool, cut: Cut) -> Option<Spool> {
        let after = self.storage.after_cut(cut);
        drop(spool);
        self.storage = after;
        self.open()
    }

    /// Takes all out. In the end what was appended was delivered, or is named.
    fn drain(&mut self, spool: &Spool) {
        for _ in 0..10_000 {
            let done = self
                .peek(spool, 7, 5000)
                .and_then(|()| self.ack(spool, self.peeked.len().saturating_sub(1)));
            if self.failing && done.is_err() {
                return;
            }
            done.unwrap();
            if self.peek(spool, 1, 1).is_ok() && self.peeked.is_empty() {
                let named = self.settle(spool);
                self.may_fail(named);
                return;
            }
        }
        panic!("it does not come to an end");
    }

    /// What was appended and not delivered is named.
    fn settle(&mut self, spool: &Spool) -> Result<(), Error> {
        self.note_losses(spool)?;
        let vague = |loss: &Loss| loss.reason == Reason::Several || loss.records == 0;
        if self.losses.iter().any(vague) {
            return Ok(());
        }
        for (stream, sequence) in &self.waiting {
            let named = self.losses.iter().any(|loss| {
                loss.reason != Reason::Full
                    && loss.stream == *stream
                    && (loss.first..=loss.last).contains(sequence)
            });
            assert!(named, "{stream} {sequence} is neither delivered nor named");
        }
        Ok(())
    }
}

fn drop_error<T>(_: &Error) -> Option<T> {
    None
}
