//! The bytes on disk, as laid out in `docs/spool-format.md`. Pure functions: no
//! file is touched here.

use std::ops::Range;

use crc32c::{crc32c, crc32c_append};

use crate::{End, Predecessor, StreamId};

/// The format version this crate writes, and the newest that it reads.
pub(crate) const VERSION: u32 = 1;

/// The file that identifies a spool and is locked by its writer.
pub(crate) const MARKER_FILE: &str = "zk-spool";
/// The cursor and the losses.
pub(crate) const STATE_FILE: &str = "state";
/// Where copies of damaged segments are kept.
pub(crate) const DAMAGED_DIR: &str = "damaged";
/// Where refused records are kept.
pub(crate) const REJECTED_DIR: &str = "rejected";

/// The largest record, in bytes.
pub const MAX_RECORD: usize = 1 << 20;

/// No spool ever gets this far with any of its numbers. A file that says so is
/// not gone on with, or they would run out.
pub(crate) const ABSURD: u64 = 1 << 62;

/// From this number on a segment is not one of a spool. It lies far below the numbers
/// that are read as none, so that whatever a session begins behind it is found again.
pub(crate) const LAST_SEGMENT: u64 = ABSURD / 2;

/// Where the frames of a segment begin: behind two copies of the header.
pub(crate) const FRAMES_AT: u64 = 1024;
pub(crate) const HEADER_COPY: usize = 512;
pub(crate) const FRAME_HEADER: usize = 32;
pub(crate) const SEALED_FRAME: usize = FRAME_HEADER + SEALED_BODY;
/// The most that a segment takes beside its records: headers, the `opened`
/// frame at its start, and those that end it.
pub(crate) const SEGMENT_OVERHEAD: u64 =
    FRAMES_AT + (FRAME_HEADER + OPENED_BODY + FRAME_HEADER + SEALED_FRAME) as u64;

pub(crate) fn segment_file(number: u64) -> String {
    format!("{number:020}.seg")
}

pub(crate) fn segment_number(file: &str) -> Option<u64> {
    number_of(file.strip_suffix(".seg")?)
}

/// The name of a segment file while it is being made.
pub(crate) fn unfinished_file(number: u64) -> String {
    format!("{number:020}.tmp")
}

pub(crate) fn is_unfinished(file: &str) -> bool {
    unfinished_number(file).is_some()
}

pub(crate) fn unfinished_number(file: &str) -> Option<u64> {
    number_of(file.strip_suffix(".tmp")?)
}

/// The directory of a segment of the engine `sled`.
#[cfg(feature = "sled")]
pub(crate) fn generation_dir(number: u64) -> String {
    format!("{number:020}.sled")
}

pub(crate) fn generation_number(directory: &str) -> Option<u64> {
    number_of(directory.strip_suffix(".sled")?)
}

fn number_of(digits: &str) -> Option<u64> {
    let number = digits.len() == 20 && digits.bytes().all(|byte| byte.is_ascii_digit());
    digits
        .parse()
        .ok()
        .filter(|value| number && (1..ABSURD).contains(value))
}

/// What a checked file is, or why it can't be read.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Checked<T> {
    Good(T),
    /// Its checksum is right, its version is not known here.
    Newer(u32),
    Bad,
}

impl<T> Checked<T> {
    pub(crate) fn good(self) -> Option<T> {
        match self {
            Self::Good(value) => Some(value),
            Self::Newer(_) | Self::Bad => None,
        }
    }
}

// ---- marker ----

pub(crate) const MARKER_LEN: usize = 16;

pub(crate) fn marker() -> [u8; MARKER_LEN] {
    let mut bytes = [0; MARKER_LEN];
    put(&mut bytes, 0, MARKER_MAGIC);
    put(&mut bytes, 8, &VERSION.to_be_bytes());
    let crc = crc32c(&bytes[..12]);
    put(&mut bytes, 12, &crc.to_be_bytes());
    bytes
}

pub(crate) fn check_marker(bytes: &[u8]) -> Checked<()> {
    if bytes.len() < MARKER_LEN
        || !bytes.starts_with(MARKER_MAGIC)
        || u32_at(bytes, 12) != crc32c(&bytes[..12])
    {
        return Checked::Bad;
    }
    checked_version(bytes, ())
}

// ---- segment header ----

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Header {
    pub(crate) number: u64,
    pub(crate) stream: StreamId,
    /// The sequence of the first record that will be in it.
    pub(crate) first: u64,
    pub(crate) predecessor: Option<Predecessor>,
    /// The streams before this one that left a trace, newest first: the first is the
    /// predecessor.
    pub(crate) ended: Vec<Ended>,
}

/// A stream that is over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Ended {
    pub(crate) stream: StreamId,
    /// Its last sequence that had become durable.
    pub(crate) last: u64,
    /// The number of its last segment; 0 where that is not told.
    pub(crate) segment: u64,
}

impl Ended {
    fn to_bytes(self) -> [u8; ENDED] {
        let mut bytes = [0; ENDED];
        put(&mut bytes, 0, &self.stream.0);
        put(&mut bytes, 16, &self.last.to_be_bytes());
        put(&mut bytes, 24, &self.segment.to_be_bytes());
        bytes
    }

    fn from_bytes(bytes: &[u8]) -> Self {
        Self {
            stream: stream_at(bytes, 0),
            last: u64_at(bytes, 16),
            segment: u64_at(bytes, 24),
        }
    }
}

impl Header {
    /// Both copies.
    pub(crate) fn to_bytes(&self) -> Vec<u8> {
        let mut copy = [0; HEADER_COPY];
        put(&mut copy, 0, SEGMENT_MAGIC);
        put(&mut copy, 8, &VERSION.to_be_bytes());
        put(&mut copy, 16, &self.number.to_be_bytes());
        put(&mut copy, 24, &self.stream.0);
        put(&mut copy, 40, &self.first.to_be_bytes());
        if let Some(predecessor) = self.predecessor {
            put(&mut copy, 48, &predecessor.stream.0);
            put(&mut copy, 64, &predecessor.last_sequence.to_be_bytes());
            put(&mut copy, 72, &[end_to_byte(Some(predecessor.end))]);
        }
        for (place, ended) in self.ended.iter().take(ENDED_KEPT).enumerate() {
            put(&mut copy, ENDED_AT + place * ENDED, &ended.to_bytes());
        }
        let crc = header_crc(&copy);
        put(&mut copy, 12, &crc.to_be_bytes());
        copy.repeat(2)
    }

    /// Reads one copy.
    pub(crate) fn check(copy: &[u8], number: u64) -> Checked<Self> {
        if copy.len() < HEADER_COPY
            || !copy.starts_with(SEGMENT_MAGIC)
            || u32_at(copy, 12) != header_crc(copy)
        {
            return Checked::Bad;
        }
        if let Checked::Newer(version) = checked_version(copy, ()) {
            return Checked::Newer(version);
        }
        let predecessor = end_from_byte(copy[72]).map(|end| Predecessor {
            stream: stream_at(copy, 48),
            last_sequence: u64_at(copy, 64),
            end,
        });
        let table = copy[ENDED_AT..].chunks_exact(ENDED).take(ENDED_KEPT);
        let mut ended: Vec<Ended> = table
            .map(Ended::from_bytes)
            .take_while(|ended| ended.segment > 0)
            .collect();
        if let Some(before) = predecessor
            && ended.is_empty()
        {
            // So it was written before there was that table.
            ended.push(Ended {
                stream: before.stream,
                last: before.last_sequence,
                segment: 0,
            });
        }
        let header = Self {
            number: u64_at(copy, 16),
            stream: stream_at(copy, 24),
            first: u64_at(copy, 40),
            predecessor,
            ended,
        };
        let end = predecessor.map_or(0, |before| before.last_sequence);
        let ends = header
            .ended
            .iter()
            .map(|ended| ended.last.max(ended.segment));
        let highest = ends.fold(header.first.max(end), u64::max);
        if header.number != number || header.first == 0 || highest >= ABSURD {
            return Checked::Bad;
        }
        checked_version(copy, header)
    }
}

fn header_crc(copy: &[u8]) -> u32 {
    crc32c_append(crc32c(&copy[..12]), &copy[16..HEADER_COPY])
}

// ---- frames ----

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Records = 1,
    /// A session began. Body: 1 if it syncs within a window, 0 if each append.
    Opened = 2,
    /// A session ended, with everything synced.
    Closed = 3,
    /// The segment is complete.
    Sealed = 4,
}

/// The first 32 bytes of a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct FrameHeader {
    pub(crate) crc: u32,
    pub(crate) kind: Kind,
    pub(crate) body: u32,
    pub(crate) count: u16,
    /// The sequence of its first record; without records, of the next one.
    pub(crate) first: u64,
    /// All records of the stream up to this one were durable when this frame
    /// was written.
    pub(crate) synced: u64,
}

impl FrameHeader {
    pub(crate) fn parse(bytes: &[u8]) -> Option<Self> {
        if bytes.len() < FRAME_HEADER || !bytes.starts_with(&MARK) {
            return None;
        }
        let header = Self {
            crc: u32_at(bytes, 4),
            body: u32_at(bytes, 8),
            kind: match u16_at(bytes, 12) {
                1 => Kind::Records,
                2 => Kind::Opened,
                3 => Kind::Closed,
                4 => Kind::Sealed,
                _ => return None,
            },
            count: u16_at(bytes, 14),
            first: u64_at(bytes, 16),
            synced: u64_at(bytes, 24),
        };
        let body = match header.kind {
            Kind::Records => 4 * usize::from(header.count).max(1)..=MAX_BODY,
            Kind::Opened => OPENED_BODY..=OPENED_BODY,
            Kind::Closed => 0..=0,
            Kind::Sealed => SEALED_BODY..=SEALED_BODY,
        };
        let plausible = body.contains(&(header.body as usize))
            && (header.count > 0) == (header.kind == Kind::Records)
            && header.first > header.synced
            && header.first < ABSURD - u64::from(header.count);
        plausible.then_some(header)
    }

    /// The length of the frame.
    pub(crate) fn len(&self) -> usize {
        FRAME_HEADER + self.body as usize
    }

    /// The sequence after the frame's last record.
    pub(crate) fn next(&self) -> u64 {
        self.first + u64::from(self.count)
    }

    /// Whether the frame's bytes are what was written at this place.
    pub(crate) fn intact(&self, seed: Seed, offset: u64, frame: &[u8]) -> bool {
        if frame_crc(seed, offset, frame) != self.crc {
            return false;
        }
        let body = &frame[FRAME_HEADER..];
        let mut ranges = records(self.count, body);
        self.count == 0
            || ranges.nth(usize::from(self.count) - 1).map(|last| last.end) == Some(body.len())
    }
}

/// Binds frames to their segment: one that was copied elsewhere, or is
/// contained in a record, does not pass for one that was written in its place.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Seed(u32);

impl Seed {
    pub(crate) fn new(number: u64, stream: StreamId) -> Self {
        Self(crc32c_append(crc32c(&number.to_be_bytes()), &stream.0))
    }
}

/// Appends one frame without records to `buffer`, which will be written at
/// `offset`.
pub(crate) fn push_frame(
    buffer: &mut Vec<u8>,
    seed: Seed,
    offset: u64,
    kind: Kind,
    first: u64,
    synced: u64,
    body: &[u8],
) {
    let start = begin_frame(buffer);
    buffer.extend_from_slice(body);
    finish_frame(buffer, start, seed, offset, kind, 0, first, synced);
}

/// Appends the frames for a group of records: one, unless the group is larger
/// than a frame may be.
pub(crate) fn push_records(
    buffer: &mut Vec<u8>,
    seed: Seed,
    offset: u64,
    first: u64,
    synced: u64,
    records: &[Vec<u8>],
) {
    let mut first = first;
    let mut records = records;
    while !records.is_empty() {
        let start = begin_frame(buffer);
        let (count, _) = next_frame(records);
        let (these, rest) = records.split_at(usize::from(count));
        for record in these {
            let len = u32::try_from(record.len()).unwrap_or(u32::MAX);
            buffer.extend_from_slice(&len.to_be_bytes());
            buffer.extend_from_slice(record);
        }
        finish_frame(
            buffer,
            start,
            seed,
            offset,
            Kind::Records,
            count,
            first,
            synced,
        );
        first += u64::from(count);
        records = rest;
    }
}

/// The bytes that the frames of a group take.
pub(crate) fn group_len(mut records: &[Vec<u8>]) -> u64 {
    let mut len = 0;
    while !records.is_empty() {
        let (count, body) = next_frame(records);
        len += (FRAME_HEADER + body) as u64;
        records = &records[usize::from(count)..];
    }
    len
}

/// How many of the records go into the next frame, and the length of its body.
fn next_frame(records: &[Vec<u8>]) -> (u16, usize) {
    let mut count: u16 = 0;
    let mut body = 0;
    for record in records {
        let more = body + 4 + record.len();
        if count == u16::MAX || (count > 0 && more > FRAME_TARGET) {
            break;
        }
        count += 1;
        body = more;
    }
    (count, body)
}

/// The places of the records in a frame's body.
pub(crate) fn records(count: u16, body: &[u8]) -> impl Iterator<Item = Range<usize>> {
    let mut at = 0;
    (0..count).map_while(move |_| {
        let start = at + 4;
        let len = body.get(at..start).map(|len| u32_at(len, 0) as usize)?;
        at = start.checked_add(len).filter(|end| *end <= body.len())?;
        Some(start..at)
    })
}

fn begin_frame(buffer: &mut Vec<u8>) -> usize {
    let start = buffer.len();
    buffer.resize(start + FRAME_HEADER, 0);
    start
}

#[expect(clippy::too_many_arguments, reason = "the fields of a frame header")]
fn finish_frame(
    buffer: &mut [u8],
    start: usize,
    seed: Seed,
    offset: u64,
    kind: Kind,
    count: u16,
    first: u64,
    synced: u64,
) {
    let frame = &mut buffer[start..];
    let body = u32::try_from(frame.len() - FRAME_HEADER).unwrap_or(u32::MAX);
    put(frame, 0, &MARK);
    put(frame, 8, &body.to_be_bytes());
    put(frame, 12, &(kind as u16).to_be_bytes());
    put(frame, 14, &count.to_be_bytes());
    put(frame, 16, &first.to_be_bytes());
    put(frame, 24, &synced.to_be_bytes());
    let crc = frame_crc(seed, offset + start as u64, frame);
    put(frame, 4, &crc.to_be_bytes());
}

fn frame_crc(seed: Seed, offset: u64, frame: &[u8]) -> u32 {
    crc32c_append(crc32c_append(seed.0, &offset.to_be_bytes()), &frame[8..])
}

// ---- opened and sealed frames ----

pub(crate) const OPENED_BODY: usize = 8;

pub(crate) fn opened_body(windowed: bool) -> [u8; OPENED_BODY] {
    [windowed.into(), 0, 0, 0, 0, 0, 0, 0]
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Sealed {
    pub(crate) stream: StreamId,
    pub(crate) first: u64,
    /// The last sequence of the segment: `first - 1` if it has none.
    pub(crate) last: u64,
    /// Frames count up to here; what lies between here and the sealed frame was
    /// cut off.
    pub(crate) end: u64,
    /// `None`: the stream goes on in the next segment.
    pub(crate) stream_end: Option<End>,
}

impl Sealed {
    pub(crate) fn to_body(self) -> [u8; SEALED_BODY] {
        let mut body = [0; SEALED_BODY];
        put(&mut body, 0, &self.stream.0);
        put(&mut body, 16, &self.first.to_be_bytes());
        put(&mut body, 24, &self.last.to_be_bytes());
        put(&mut body, 32, &self.end.to_be_bytes());
        put(&mut body, 40, &[end_to_byte(self.stream_end)]);
        body
    }

    /// Reads the body of a sealed frame that stands at `offset`.
    pub(crate) fn from_body(body: &[u8], offset: u64) -> Option<Self> {
        if body.len() != SEALED_BODY {
            return None;
        }
        let sealed = Self {
            stream: stream_at(body, 0),
            first: u64_at(body, 16),
            last: u64_at(body, 24),
            end: u64_at(body, 32),
            stream_end: end_from_byte(body[40]),
        };
        let sane = sealed.first > 0
            && (sealed.first - 1..ABSURD).contains(&sealed.last)
            && (FRAMES_AT..=offset).contains(&sealed.end);
        sane.then_some(sealed)
    }

    /// Reads the last bytes of a segment file, which are a sealed frame if the
    /// segment is complete.
    pub(crate) fn check(frame: &[u8], number: u64, offset: u64) -> Option<Self> {
        let header = FrameHeader::parse(frame)?;
        if header.kind != Kind::Sealed || frame.len() != SEALED_FRAME {
            return None;
        }
        let sealed = Self::from_body(&frame[FRAME_HEADER..], offset)?;
        let seed = Seed::new(number, sealed.stream);
        header.intact(seed, offset, frame).then_some(sealed)
    }
}

/// 0 stands for none.
fn end_to_byte(end: Option<End>) -> u8 {
    match end {
        None => 0,
        Some(End::Cut) => 1,
        Some(End::Damaged) => 2,
        Some(End::Window) => 3,
    }
}

fn end_from_byte(byte: u8) -> Option<End> {
    match byte {
        0 => None,
        1 => Some(End::Cut),
        3 => Some(End::Window),
        _ => Some(End::Damaged),
    }
}

// ---- shared ----

pub(crate) fn checked_version<T>(bytes: &[u8], value: T) -> Checked<T> {
    match u32_at(bytes, 8) {
        0 => Checked::Bad,
        VERSION => Checked::Good(value),
        newer => Checked::Newer(newer),
    }
}

pub(crate) fn put(bytes: &mut [u8], at: usize, field: &[u8]) {
    bytes[at..at + field.len()].copy_from_slice(field);
}

pub(crate) fn u16_at(bytes: &[u8], at: usize) -> u16 {
    u16::from_be_bytes(array_at(bytes, at))
}

pub(crate) fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_be_bytes(array_at(bytes, at))
}

pub(crate) fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_be_bytes(array_at(bytes, at))
}

pub(crate) fn stream_at(bytes: &[u8], at: usize) -> StreamId {
    StreamId(array_at(bytes, at))
}

fn array_at<const N: usize>(bytes: &[u8], at: usize) -> [u8; N] {
    let mut array = [0; N];
    array.copy_from_slice(&bytes[at..at + N]);
    array
}

/// Begins every frame, and is searched for behind damage. 0xF5 is in no text.
pub(crate) const MARK: [u8; 4] = [0xF5, b'Z', b'K', 0x1E];
/// The most bytes in the body of a frame: one record of the largest size.
pub(crate) const MAX_BODY: usize = 4 + MAX_RECORD;

/// How many streams before its own a segment's header tells of.
pub(crate) const ENDED_KEPT: usize = 13;
const ENDED_AT: usize = 80;
const ENDED: usize = 32;
const FRAME_TARGET: usize = 256 << 10;
const MARKER_MAGIC: &[u8; 8] = b"zk-spool";
const SEALED_BODY: usize = 48;
const SEGMENT_MAGIC: &[u8; 8] = b"zk-spseg";
