//! Files of the format in which any field may be wrong under a checksum that is
//! right, and files that are none of it.

use arbitrary::Arbitrary;
use crc32c::{crc32c, crc32c_append};
use zk_spool::storage::FaultStorage;

/// What is in the directory before a spool is opened there.
#[derive(Arbitrary, Debug)]
pub(crate) struct Made {
    marker: bool,
    segments: Vec<Segment>,
    state: Option<State>,
    edits: Vec<Edit>,
}

impl Made {
    /// Whether there is more than what a spool begins with.
    pub(crate) fn is_something(&self) -> bool {
        !self.segments.is_empty() || self.state.is_some() || !self.edits.is_empty()
    }

    pub(crate) fn put(&self, storage: &FaultStorage) {
        if self.marker {
            storage.put("zk-spool", marker());
        }
        for (number, segment) in (1..).zip(self.segments.iter().take(4)) {
            segment.put(number, storage);
        }
        if let Some(state) = &self.state {
            storage.put("state", state.to_bytes());
        }
        for edit in self.edits.iter().take(8) {
            edit.apply(storage);
        }
    }
}

/// The right value, or another one.
#[derive(Arbitrary, Clone, Copy, Debug)]
pub(crate) enum Field {
    Right,
    Plus(i8),
    Other(u64),
}

impl Field {
    pub(crate) fn of(self, right: u64) -> u64 {
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

fn marker() -> Vec<u8> {
    let mut bytes = b"zk-spool\0\0\0\x01".to_vec();
    bytes.extend(crc32c(&bytes).to_be_bytes());
    bytes
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
