//! Reading a segment frame by frame, and finding the way again behind damage.

use std::{io, ops::Range};

use crate::{
    format::{FRAME_HEADER, FrameHeader, MARK, Seed},
    storage::StorageFile,
};

/// A walk along the frames of one segment.
#[derive(Debug)]
pub(crate) struct Walk<'a> {
    file: &'a dyn StorageFile,
    seed: Seed,
    /// Where the walk stands.
    offset: u64,
    /// Frames are read up to here.
    end: u64,
    /// The sequence that comes next.
    expected: u64,
    /// The last one that should be there; 0 if that is not known.
    last: u64,
    /// How many bytes may still be checked in vain while looking for a frame.
    patience: u64,
    window: Window,
}

/// What stands at a place.
enum Found {
    /// A frame, and it is whole.
    Whole(FrameHeader),
    /// The header of a frame of this length, which is not whole.
    Broken(u64),
    Nothing,
}

#[derive(Debug)]
pub(crate) enum Step {
    Frame(Frame),
    Gap(Gap),
    /// The end was reached.
    End,
}

/// A frame whose checksum is right.
#[derive(Debug)]
pub(crate) struct Frame {
    pub(crate) header: FrameHeader,
    pub(crate) offset: u64,
    pub(crate) end: u64,
    /// Its body, in [`Walk::bytes`].
    body: Range<usize>,
}

/// A place where something else stands than the frame that is due.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Gap {
    pub(crate) offset: u64,
    /// Where the next good frame begins, or the end.
    pub(crate) end: u64,
    /// The sequence that was due.
    pub(crate) expected: u64,
    /// The sequence that the next good frame begins with; `None` if there is no
    /// further frame.
    pub(crate) next: Option<u64>,
    /// The records that should be here.
    pub(crate) missing: Option<(u64, u64)>,
    /// Whether the medium refused to read a part of what the walk has seen.
    pub(crate) unreadable: bool,
}

impl<'a> Walk<'a> {
    /// Walks over the frames in `place`, which should hold the records from
    /// `expected` to `last`, or to an end that is not known (0). `chunk` is how
    /// much to read at a time, for those who want little.
    pub(crate) fn new(
        file: &'a dyn StorageFile,
        seed: Seed,
        place: Range<u64>,
        (expected, last): (u64, u64),
        chunk: usize,
    ) -> Self {
        Self {
            file,
            seed,
            offset: place.start,
            end: place.end,
            expected,
            last,
            patience: PATIENCE.saturating_mul(place.end.saturating_sub(place.start)),
            window: Window {
                start: 0,
                bytes: Vec::new(),
                unreadable: false,
                chunk: chunk.clamp(4 << 10, CHUNK),
            },
        }
    }

    pub(crate) fn expected(&self) -> u64 {
        self.expected
    }

    /// The body of the frame that the walk stands behind.
    pub(crate) fn bytes(&self, frame: &Frame) -> &[u8] {
        &self.window.bytes[frame.body.clone()]
    }

    /// All of that frame.
    pub(crate) fn frame(&self, frame: &Frame) -> &[u8] {
        &self.window.bytes[frame.body.start - FRAME_HEADER..frame.body.end]
    }

    pub(crate) fn step(&mut self) -> Step {
        let from = self.offset;
        // What stands behind the last record was cut off, or is no record.
        let complete = self.last > 0 && self.expected > self.last;
        if complete || (from >= self.end && self.expected > self.last) {
            return Step::End;
        }
        if let Found::Whole(header) = self.frame_at(from)
            && header.first <= self.expected
        {
            return Step::Frame(self.pass(header, from));
        }
        // Not the frame that is due: look for the next one that can follow.
        let mut at = from;
        let next = loop {
            let Some(mark) = self.next_mark(at) else {
                break None;
            };
            let len = match self.frame_at(mark) {
                Found::Whole(header) if header.next().max(header.first + 1) > self.expected => {
                    break Some((mark, header));
                }
                Found::Whole(header) => header.len() as u64,
                Found::Broken(len) => len,
                Found::Nothing => 1,
            };
            // A frame may begin inside what only looked like one. But a file made
            // of nothing else must not take forever.
            at = if self.patience >= len {
                self.patience -= len;
                mark + 1
            } else {
                mark + len
            };
        };
        let expected = self.expected;
        let next = next.map(|(mark, header)| (mark, header.first.max(expected)));
        let (end, due) = next.unwrap_or((self.end.max(from), expected.max(self.last + 1)));
        self.offset = end;
        self.expected = due;
        Step::Gap(Gap {
            offset: from,
            end,
            expected,
            next: next.map(|(_, first)| first),
            missing: (expected < due).then(|| (expected, due - 1)),
            unreadable: self.window.unreadable,
        })
    }

    fn pass(&mut self, header: FrameHeader, offset: u64) -> Frame {
        let end = offset + header.len() as u64;
        self.offset = end;
        self.expected = self.expected.max(header.next());
        let start = (offset - self.window.start) as usize;
        Frame {
            header,
            offset,
            end,
            body: start + FRAME_HEADER..start + header.len(),
        }
    }

    fn frame_at(&mut self, offset: u64) -> Found {
        let room = self.end.saturating_sub(offset);
        if room < FRAME_HEADER as u64 {
            return Found::Nothing;
        }
        let header = self.window.load(self.file, offset, FRAME_HEADER, self.end);
        let Some(header) = FrameHeader::parse(header) else {
            return Found::Nothing;
        };
        if header.len() as u64 > room {
            return Found::Nothing;
        }
        let frame = self.window.load(self.file, offset, header.len(), self.end);
        if header.intact(self.seed, offset, frame) {
            Found::Whole(header)
        } else {
            Found::Broken(header.len() as u64)
        }
    }

    /// The first place from `offset` on where a frame's mark stands.
    fn next_mark(&mut self, offset: u64) -> Option<u64> {
        let mut at = offset;
        while self.end.saturating_sub(at) >= FRAME_HEADER as u64 {
            self.window.load(self.file, at, MARK.len(), self.end);
            let loaded = self.window.rest(at);
            if let Some(found) = loaded.windows(MARK.len()).position(|four| four == MARK) {
                return Some(at + found as u64);
            }
            // A mark may lie across the end of what is loaded, but has no byte in a
            // hole.
            at += (loaded.len() - (MARK.len() - 1)) as u64;
            if let Ok(data) = self.file.next_data(at) {
                at = data?.max(at);
            }
        }
        None
    }
}

/// A stretch of the file in memory.
#[derive(Debug)]
struct Window {
    start: u64,
    bytes: Vec<u8>,
    unreadable: bool,
    chunk: usize,
}

impl Window {
    /// `len` bytes from `offset` on, which lie before `end`.
    fn load(&mut self, file: &dyn StorageFile, offset: u64, len: usize, end: u64) -> &[u8] {
        let have =
            offset >= self.start && offset + len as u64 <= self.start + self.bytes.len() as u64;
        if !have {
            let room = usize::try_from(end - offset).unwrap_or(usize::MAX);
            self.bytes.resize(len.max(self.chunk).min(room), 0);
            self.start = offset;
            self.unreadable |= read_salvaging(file, &mut self.bytes, offset);
        }
        let from = (offset - self.start) as usize;
        &self.bytes[from..from + len]
    }

    /// All that is loaded from `offset` on.
    fn rest(&self, offset: u64) -> &[u8] {
        &self.bytes[(offset - self.start) as usize..]
    }
}

/// Reads what can be read; what can't is zero. Whether there was such.
///
/// A bad sector must not keep the rest of the file from being read. What it
/// held fails its checksum and is lost as damage, which is written down durably
/// before reading goes on: a medium that is gone altogether fails there.
pub(crate) fn read_salvaging(file: &dyn StorageFile, buffer: &mut [u8], offset: u64) -> bool {
    if file.read_at(buffer, offset).is_ok() {
        return false;
    }
    let mut unreadable = false;
    let mut at = offset;
    let mut rest = buffer;
    while !rest.is_empty() {
        let len = rest.len().min((SECTOR - at % SECTOR) as usize);
        let (sector, behind) = rest.split_at_mut(len);
        sector.fill(0);
        if let Err(error) = file.read_at(sector, at) {
            if error.kind() != io::ErrorKind::UnexpectedEof {
                sector.fill(0);
            }
            unreadable = true;
        }
        at += len as u64;
        rest = behind;
    }
    unreadable
}

/// How much is read at a time.
pub(crate) const CHUNK: usize = 128 << 10;
const SECTOR: u64 = 512;
/// How often a file may be checked in vain, all in all.
const PATIENCE: u64 = 16;
