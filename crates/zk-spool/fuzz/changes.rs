//! What may happen to the files that a spool wrote: a field of a frame, a header
//! or a slot is another one, under its old checksum or one that fits; sectors and
//! frames go astray; files are cut off, gone, renamed, or as they were before.

use std::collections::BTreeMap;
use std::ops::Range;

use arbitrary::Arbitrary;
use crc32c::{crc32c, crc32c_append};
use zk_spool::StreamId;

use crate::made::Field;

pub(crate) type Files = BTreeMap<String, Vec<u8>>;

/// What was done to the files, and so how much may be asked of what is found in
/// them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Level {
    /// Nothing.
    #[default]
    Whole,
    /// What is not as it was written is under a checksum that does not fit, or is
    /// not there: all of it can be found out.
    Damaged,
    /// Something that a spool has written stands in the place of what should be
    /// there, or the newest is gone and nothing tells of it. That can't be found
    /// out; but no record can be taken for another.
    Exchanged,
    /// Something that no spool has written is under a checksum that fits.
    Forged,
}

#[derive(Arbitrary, Debug)]
pub(crate) enum Change {
    Frame(u8, u8, Edit),
    Header(u8, Copies, Edit),
    Slot(Copies, Edit),
    /// A frame goes, and what follows moves up; or it is there twice; or another
    /// one is in its place.
    TakeFrame(u8, u8),
    RepeatFrame(u8, u8),
    MoveFrame((u8, u8), (u8, u8)),
    /// The mark of a frame, and a header that says so much of its length.
    Mark(u8, u16, u32),
    Sector {
        version: u8,
        from: (u8, u8),
        to: (u8, u8),
    },
    SwapSlots,
    Restore {
        version: u8,
        file: u8,
    },
    Name {
        file: u8,
        name: u8,
        keep: bool,
    },
    Remove(u8),
    Cut(u8, u16),
    Grow(u8, u16, u8),
    Fill(u8, u16, u16, u8),
    Flip(u8, u16, u8),
    Unreadable(u8, u16, u16),
}

/// A field, by its place in one of the tables below, and what it is to be.
#[derive(Arbitrary, Debug)]
pub(crate) struct Edit {
    field: u8,
    to: Field,
    checksum: Checksum,
}

#[derive(Arbitrary, Clone, Copy, Debug)]
enum Checksum {
    Fits,
    Stays,
}

#[derive(Arbitrary, Clone, Copy, Debug)]
pub(crate) enum Copies {
    First,
    Second,
    Both,
}

impl Copies {
    fn of(self, len: usize) -> impl Iterator<Item = Range<usize>> {
        let which = match self {
            Self::First => 0..1,
            Self::Second => 1..2,
            Self::Both => 0..2,
        };
        which.map(move |copy| copy * len..(copy + 1) * len)
    }
}

/// Offset and bytes of each field. Sixteen bytes are a stream.
type Fields = &'static [(usize, usize)];

const HEADER: Fields = &[
    (0, 8),
    (8, 4),
    (16, 8),
    (24, 16),
    (40, 8),
    (48, 16),
    (64, 8),
    (72, 1),
];

/// Those of the body as well: the length of the first record and what may stand
/// there, and all of an `opened` and a `sealed` frame.
const FRAME: Fields = &[
    (0, 4),
    (8, 4),
    (12, 2),
    (14, 2),
    (16, 8),
    (24, 8),
    (32, 4),
    (32, 1),
    (32, 16),
    (36, 4),
    (48, 8),
    (56, 8),
    (64, 8),
    (72, 1),
];

/// Those of the first loss as well.
const SLOT: Fields = &[
    (0, 8),
    (8, 4),
    (16, 8),
    (24, 8),
    (32, 16),
    (48, 8),
    (56, 8),
    (64, 8),
    (72, 8),
    (80, 8),
    (88, 4),
    (96, 8),
    (104, 1),
    (105, 1),
    (112, 16),
    (128, 8),
    (136, 8),
    (144, 8),
];

const LOSSES: usize = 96;
const LOSS: usize = 72;

impl Edit {
    /// Whether anything is different, with a checksum that does not fit or that does.
    fn apply(
        &self,
        fields: Fields,
        bytes: &mut [u8],
        streams: &[StreamId],
        checksum: impl Fn(&[u8]) -> Option<(usize, u32)>,
    ) -> Level {
        let (at, len) = fields[usize::from(self.field) % fields.len()];
        let before = bytes.to_vec();
        let Some(field) = bytes.get_mut(at..at + len) else {
            return Level::Whole;
        };
        if len == 16 {
            let other = self.to.of(0) as usize;
            if !matches!(self.to, Field::Right)
                && let Some(at) = other.checked_rem(streams.len())
            {
                field.copy_from_slice(&streams[at].0);
            }
        } else {
            let right = field.iter().fold(0, |n, byte| n << 8 | u64::from(*byte));
            field.copy_from_slice(&self.to.of(right).to_be_bytes()[8 - len..]);
        }
        if matches!(self.checksum, Checksum::Fits)
            && let Some((at, crc)) = checksum(bytes)
        {
            bytes[at..at + 4].copy_from_slice(&crc.to_be_bytes());
        }
        match self.checksum {
            _ if before == bytes => Level::Whole,
            Checksum::Fits => Level::Forged,
            Checksum::Stays => Level::Damaged,
        }
    }
}

fn header_checksum(copy: &[u8]) -> Option<(usize, u32)> {
    Some((12, crc32c_append(crc32c(&copy[..12]), &copy[16..])))
}

fn slot_checksum(slot: &[u8]) -> Option<(usize, u32)> {
    let count = u32::from_be_bytes(array(slot, 88)?) as usize;
    let used = slot.get(16..LOSSES + LOSS * count.min(226))?;
    Some((12, crc32c_append(crc32c(&slot[..12]), used)))
}

/// For a frame of the segment of this number and stream, that stands at `at`. A
/// sealed one names its stream itself.
fn frame_checksum(number: u64, stream: [u8; 16], at: usize, frame: &[u8]) -> Option<(usize, u32)> {
    let sealed = frame.get(12..14)? == [0, 4];
    let stream = array(frame, 32).filter(|_| sealed).unwrap_or(stream);
    let seed = crc32c_append(crc32c(&number.to_be_bytes()), &stream);
    let seed = crc32c_append(seed, &(at as u64).to_be_bytes());
    Some((4, crc32c_append(seed, &frame[8..])))
}

fn array<const N: usize>(bytes: &[u8], at: usize) -> Option<[u8; N]> {
    bytes.get(at..at + N)?.try_into().ok()
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    array(bytes, at).map_or(0, u64::from_be_bytes)
}

/// Where frames seem to be.
fn frames(segment: &[u8]) -> Vec<Range<usize>> {
    let mut found = Vec::new();
    let mut at = FRAMES_AT;
    while at + 32 <= segment.len() {
        let len = array(segment, at + 8).map_or(0, u32::from_be_bytes) as usize;
        if segment[at..].starts_with(&MARK) && len <= segment.len() - at - 32 {
            found.push(at..at + 32 + len);
            at += 32 + len;
        } else {
            at += 1;
        }
    }
    found
}

/// Those under a checksum that is right.
fn whole_frames(number: u64, stream: [u8; 16], segment: &[u8]) -> impl Iterator<Item = &[u8]> {
    frames(segment).into_iter().filter_map(move |frame| {
        let (at, frame) = (frame.start, &segment[frame]);
        fits(frame, |frame| frame_checksum(number, stream, at, frame)).then_some(frame)
    })
}

/// The sequence behind a frame's.
fn next(frame: &[u8]) -> u64 {
    u64_at(frame, 16).wrapping_add(array(frame, 14).map_or(0, u16::from_be_bytes).into())
}

/// Whether the checksum of a header, a slot or a frame is right.
fn fits(bytes: &[u8], checksum: impl Fn(&[u8]) -> Option<(usize, u32)>) -> bool {
    let magic = [&MARK[..], b"zk-spseg", b"zk-spsta"];
    magic.iter().any(|magic| bytes.starts_with(magic))
        && checksum(bytes)
            .is_some_and(|(at, crc)| array(bytes, at).map(u32::from_be_bytes) == Some(crc))
}

/// The stream of a segment, if its header tells.
fn stream_of(segment: &[u8]) -> Option<[u8; 16]> {
    let mut copies = segment.chunks_exact(SECTOR).take(2);
    array(copies.find(|copy| fits(copy, header_checksum))?, 24)
}

/// The same, of a segment under its own number.
fn header_of(number: u64, segment: &[u8]) -> Option<[u8; 16]> {
    let mut copies = segment.chunks_exact(SECTOR).take(2);
    let own = |copy: &&[u8]| fits(copy, header_checksum) && u64_at(copy, 16) == number;
    array(copies.find(own)?, 24)
}

/// The files, while they are changed.
pub(crate) struct Scene<'a> {
    pub(crate) files: Files,
    /// What could be there instead: from earlier, and of another spool.
    pub(crate) versions: &'a [Files],
    pub(crate) streams: &'a [StreamId],
    pub(crate) unreadable: Vec<(String, Range<u64>)>,
    pub(crate) level: Level,
}

impl Scene<'_> {
    pub(crate) fn change(&mut self, change: &Change) {
        let level = self.apply(change).unwrap_or_default();
        self.level = self.level.max(level);
    }

    /// What that did; `None` if there is nothing to do it to.
    fn apply(&mut self, change: &Change) -> Option<Level> {
        let streams = self.streams;
        match *change {
            Change::Frame(segment, frame, ref edit) => {
                let (number, segment) = self.segment(segment)?;
                let stream = stream_of(segment)?;
                let place = pick(&frames(segment), frame)?.clone();
                let at = place.start;
                let checksum = |frame: &[u8]| frame_checksum(number, stream, at, frame);
                Some(edit.apply(FRAME, &mut segment[place], streams, checksum))
            }
            Change::Header(segment, copies, ref edit) => {
                let (_, segment) = self.segment(segment)?;
                let mut level = Level::Whole;
                for copy in copies.of(SECTOR) {
                    // The file may be cut off behind the first.
                    let Some(copy) = segment.get_mut(copy) else {
                        continue;
                    };
                    level = level.max(edit.apply(HEADER, copy, streams, header_checksum));
                }
                Some(level)
            }
            Change::Slot(copies, ref edit) => {
                let state = self.files.get_mut("state")?;
                let mut level = Level::Whole;
                for slot in copies.of(SLOT_LEN) {
                    let Some(slot) = state.get_mut(slot) else {
                        continue;
                    };
                    level = level.max(edit.apply(SLOT, slot, streams, slot_checksum));
                }
                Some(level)
            }
            Change::TakeFrame(segment, frame) => {
                let (_, segment) = self.segment(segment)?;
                let place = pick(&frames(segment), frame)?.clone();
                segment.drain(place);
                Some(Level::Damaged)
            }
            Change::RepeatFrame(segment, frame) => {
                let (_, segment) = self.segment(segment)?;
                let place = pick(&frames(segment), frame)?.clone();
                let again = segment[place.clone()].to_vec();
                segment.splice(place.end..place.end, again);
                Some(Level::Damaged)
            }
            Change::MoveFrame((from, frame), (to, place)) => {
                let (_, segment) = self.segment(from)?;
                let frame = segment[pick(&frames(segment), frame)?.clone()].to_vec();
                let (_, segment) = self.segment(to)?;
                let place = pick(&frames(segment), place)?.clone();
                segment.splice(place, frame);
                Some(Level::Damaged)
            }
            Change::Mark(segment, at, len) => {
                let (_, segment) = self.segment(segment)?;
                let at = usize::from(at).checked_rem(segment.len())?;
                let mut mark = MARK.to_vec();
                mark.extend([0; 4]);
                mark.extend(len.to_be_bytes());
                let end = segment.len().min(at + mark.len());
                segment[at..end].copy_from_slice(&mark[..end - at]);
                Some(Level::Damaged)
            }
            Change::Sector { version, from, to } => {
                let versions = self.versions.len() + 1;
                let old = self.versions.get(usize::from(version) % versions);
                let source = old.unwrap_or(&self.files);
                let (name, bytes) = pick_file(source, from.0)?;
                let sectors = bytes.len().div_ceil(SECTOR);
                let start = SECTOR * usize::from(from.1).checked_rem(sectors)?;
                let sector = bytes[start..bytes.len().min(start + SECTOR)].to_vec();
                let stays = old.is_none() && name != "state";
                let (_, bytes) = pick_file_mut(&mut self.files, to.0)?;
                let sectors = bytes.len().div_ceil(SECTOR);
                let start = SECTOR * usize::from(to.1).checked_rem(sectors)?;
                let end = bytes.len().min(start + sector.len());
                bytes.splice(start..end, sector);
                Some(if stays {
                    Level::Damaged
                } else {
                    Level::Exchanged
                })
            }
            Change::SwapSlots => {
                let state = self.files.get_mut("state")?;
                let half = SLOT_LEN.min(state.len());
                state.rotate_left(half);
                Some(Level::Exchanged)
            }
            Change::Restore { version, file } => {
                let version = pick(self.versions, version)?;
                let (name, bytes) = pick_file(version, file)?;
                let before = self.files.insert(name.clone(), bytes.clone());
                (before.as_ref() != Some(bytes)).then_some(Level::Exchanged)
            }
            Change::Name { file, name, keep } => {
                let (old, bytes) = pick_file(&self.files, file)?;
                let (old, bytes) = (old.clone(), bytes.clone());
                let name = self.name(name);
                let refused = number(&name).is_some_and(|number| number >= 1 << 61);
                // It was kept under another name, and comes back.
                let older = self.files.get(&name) != Some(&bytes) && belongs(&name, &bytes);
                if !keep {
                    self.files.remove(&old);
                }
                self.files.insert(name, bytes);
                Some(if refused || older {
                    Level::Exchanged
                } else {
                    Level::Damaged
                })
            }
            Change::Remove(file) => {
                let name = pick_file(&self.files, file)?.0.clone();
                self.files.remove(&name);
                Some(Level::Damaged)
            }
            Change::Cut(file, len) => {
                let (_, bytes) = pick_file_mut(&mut self.files, file)?;
                let keep = usize::from(len).checked_rem(bytes.len())?;
                bytes.truncate(keep);
                Some(Level::Damaged)
            }
            Change::Grow(file, len, with) => {
                let (_, bytes) = pick_file_mut(&mut self.files, file)?;
                bytes.resize(bytes.len() + usize::from(len % 4096), with);
                Some(Level::Damaged)
            }
            Change::Fill(file, at, len, with) => {
                let (_, bytes) = pick_file_mut(&mut self.files, file)?;
                let at = usize::from(at).checked_rem(bytes.len())?;
                let end = bytes.len().min(at + usize::from(len % 4096));
                bytes[at..end].fill(with);
                Some(Level::Damaged)
            }
            Change::Flip(file, at, bit) => {
                let (_, bytes) = pick_file_mut(&mut self.files, file)?;
                let at = usize::from(at).checked_rem(bytes.len())?;
                bytes[at] ^= 1 << (bit % 8);
                Some(Level::Damaged)
            }
            Change::Unreadable(segment, at, len) => {
                let segments: Vec<(u64, String)> = segments(&self.files).collect();
                let (_, name) = pick(&segments, segment)?;
                let at = u64::from(at).checked_rem(self.files[name].len() as u64)?;
                // It may be such that it can't even be opened.
                let place = if len == u16::MAX {
                    0..u64::MAX
                } else {
                    at..at + u64::from(len)
                };
                self.unreadable.push((name.clone(), place));
                Some(Level::Damaged)
            }
        }
    }

    fn segment(&mut self, segment: u8) -> Option<(u64, &mut Vec<u8>)> {
        let names: Vec<String> = segments(&self.files).map(|(_, name)| name).collect();
        let name = pick(&names, segment)?;
        Some((number(name)?, self.files.get_mut(name)?))
    }

    /// One that is a spool's, or looks so.
    fn name(&self, name: u8) -> String {
        let newest = segments(&self.files).map(|(number, _)| number).max();
        let newest = newest.unwrap_or(0);
        let below = u64::from(name / 16) % newest.max(1) + 1;
        match name % 16 {
            0..=5 => format!("{below:020}.seg"),
            6 => format!("{:020}.seg", newest.saturating_add(1)),
            7 => format!("{:020}.seg", newest.saturating_add(3)),
            8 => format!("{:020}.tmp", newest.saturating_add(1)),
            9 => format!("{below:020}.tmp"),
            10 => format!("{:020}.seg", 0),
            11 => "0000000000000000000x.seg".into(),
            12 => "state".into(),
            13 => "zk-spool".into(),
            14 => format!("damaged/{below:020}.seg"),
            _ => format!("{:020}.seg", 1_u64 << 61),
        }
    }
}

/// Whether a spool would take the bytes for what it has written under that name.
fn belongs(name: &str, bytes: &[u8]) -> bool {
    match number(name) {
        Some(number) => header_of(number, bytes).is_some(),
        None => {
            let mut slots = bytes.chunks(SLOT_LEN);
            name == "state" && slots.any(|slot| fits(slot, slot_checksum))
        }
    }
}

/// The numbers and the names of the segments, ascending.
pub(crate) fn segments(files: &Files) -> impl Iterator<Item = (u64, String)> {
    let names = files.keys();
    names.filter_map(|name| Some((number(name)?, name.clone())))
}

fn number(name: &str) -> Option<u64> {
    let digits = name.strip_suffix(".seg").filter(|name| name.len() == 20)?;
    digits.parse().ok().filter(|number| *number > 0)
}

fn pick<T>(all: &[T], which: u8) -> Option<&T> {
    all.get(usize::from(which).checked_rem(all.len())?)
}

fn pick_file(files: &Files, which: u8) -> Option<(&String, &Vec<u8>)> {
    files
        .iter()
        .nth(usize::from(which).checked_rem(files.len())?)
}

fn pick_file_mut(files: &mut Files, which: u8) -> Option<(&String, &mut Vec<u8>)> {
    let which = usize::from(which).checked_rem(files.len())?;
    files.iter_mut().nth(which)
}

/// What is left of the files, and what it still tells.
pub(crate) struct Left {
    /// For each stream what a frame or a slot says of it that is as it was: up to here
    /// all was durable.
    pub(crate) durable: BTreeMap<StreamId, u64>,
    /// Whether nothing that is left tells of the newest.
    pub(crate) unaware: bool,
    /// Whether no segment is there and no slot can be read; or a segment is gone and
    /// only one can: it may be older than that, which then counts as drained.
    pub(crate) nothing: bool,
    /// Whether the slots are as they were, and a header of the newest stream can be read,
    /// which tells of those before it.
    pub(crate) told: bool,
}

impl Left {
    /// What is left in `after` of the newest of all `versions`. `highest` is the highest
    /// number that a segment had so far.
    pub(crate) fn of(
        versions: &[Files],
        after: &Files,
        unreadable: &[(String, Range<u64>)],
        highest: u64,
    ) -> Self {
        let before = versions.last().unwrap_or(after);
        // What can't be read tells as little as what is damaged.
        let mut after = after.clone();
        for (name, place) in unreadable {
            let Some(bytes) = after.get_mut(name) else {
                continue;
            };
            let end = place.end.min(bytes.len() as u64) as usize;
            if let Some(bytes) = bytes.get_mut(place.start as usize..end) {
                bytes.iter_mut().for_each(|byte| *byte ^= 0xA5);
            }
        }
        let after = &after;
        let mut durable = BTreeMap::new();
        let mut know = |stream: [u8; 16], sequence: u64| {
            let known: &mut u64 = durable.entry(StreamId(stream)).or_default();
            *known = sequence.max(*known);
        };
        for (number, name) in segments(after) {
            let bytes = &after[&name];
            let Some(stream) = header_of(number, bytes) else {
                continue;
            };
            for frame in whole_frames(number, stream, bytes) {
                know(stream, u64_at(frame, 24));
            }
        }
        let state = after.get("state").map(Vec::as_slice).unwrap_or_default();
        let slots = state
            .chunks(SLOT_LEN)
            .filter(|slot| fits(slot, slot_checksum));
        let mut known = (0, 0);
        let mut readable = 0;
        for slot in slots {
            readable += 1;
            let synced = (u64_at(slot, 64), u64_at(slot, 72));
            known = known.max(synced).max((u64_at(slot, 24), 0));
            know(array(slot, 32).unwrap_or_default(), u64_at(slot, 48));
            let segment = before.get(&format!("{:020}.seg", synced.0));
            if let Some(stream) = segment.and_then(|bytes| header_of(synced.0, bytes)) {
                know(stream, synced.1);
            }
        }

        let gone = segments(before).any(|(_, name)| !after.contains_key(&name));
        let newest = |files: &Files| segments(files).last();
        let is = newest(after).map_or(0, |(number, _)| number);
        let unaware = if is < highest {
            known.0 <= is
        } else if let Some((number, name)) = newest(after)
            && let Some(stream) = header_of(number, &after[&name])
        {
            // It ends where one of its frames did, and there were more at some time.
            let bytes = &after[&name];
            let whole = frames(bytes).last().is_none_or(|f| f.end == bytes.len());
            let last = |bytes: &Vec<u8>| {
                let frames = whole_frames(number, stream, bytes);
                frames.map(next).max().unwrap_or(1).saturating_sub(1)
            };
            let had = versions.iter().filter_map(|files| files.get(&name));
            let had = had.map(last).max().unwrap_or(0);
            whole && last(bytes) < had && known < (number, had)
        } else {
            false
        };
        let newest_stream = |files: &Files| {
            let (number, name) = newest(files)?;
            header_of(number, &files[&name])
        };
        let stream = newest_stream(before);
        Self {
            durable,
            unaware,
            told: before.get("state") == after.get("state")
                && stream.is_some()
                && stream == newest_stream(after),
            nothing: (newest(after).is_none() && readable == 0) || (gone && readable == 1),
        }
    }
}

const FRAMES_AT: usize = 1024;
const MARK: [u8; 4] = [0xF5, 0x5A, 0x4B, 0x1E];
const SECTOR: usize = 512;
const SLOT_LEN: usize = 16 << 10;
