//! What happens when a spool is opened: finding out what is there without
//! reading more than the newest segment. Nothing is cut or moved here; what has
//! to be is left to the first append, so that a spool can be opened and drained
//! on a full disk. Only what must not be forgotten is written: losses, in
//! place, into the state file.

use std::{collections::VecDeque, io};

use crate::{
    End, Error, Predecessor, Reason, StreamId,
    error::At,
    format::{self, Checked, FRAMES_AT, Sealed, Seed},
    ledger::{Contents, Cursor, Ledger},
    record::NO_STREAM,
    segment::{Ends, Segment, make_durable, scan},
    storage::{Storage, is_damage, sync, sync_dir},
    walk::{CHUNK, Step, Walk, read_salvaging},
};

/// A spool as it was found.
#[derive(Debug)]
pub(crate) struct Recovered {
    pub(crate) segments: VecDeque<Segment>,
    pub(crate) ledger: Ledger,
    pub(crate) stream: StreamId,
    pub(crate) predecessor: Option<Predecessor>,
    pub(crate) next_sequence: u64,
    /// The number of the next segment file.
    pub(crate) next_segment: u64,
    pub(crate) start: Start,
    /// Segments of which a copy is to be kept in `damaged/`.
    pub(crate) damaged: Vec<u64>,
}

/// What the first append has to do before it may give out a sequence.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Start {
    /// Write an `opened` frame at the end of the newest segment, behind a
    /// `closed` one if the last session ended in good order.
    Resume { closed: bool },
    /// Seal the newest segment, if it is not, and create one.
    Create { seal: Option<Sealed> },
}

pub(crate) fn recover(storage: &dyn Storage) -> Result<Recovered, Error> {
    let (files, unfinished) = list(storage)?;
    let marked = is_marked(storage, !files.is_empty())?;
    let mut ends: Vec<Ends> = Vec::with_capacity(files.len());
    // The stream that a segment before was of, if a header told of its predecessor.
    let mut told = None;
    for (index, (number, disk)) in files.iter().enumerate() {
        let newest = index + 1 == files.len();
        let found = Ends::read(storage, *number, *disk, told.filter(|_| !newest))?;
        let stream = found.start().map(|(stream, _)| stream);
        told = stream.filter(|_| found.header.is_some() || stream == told);
        ends.push(found);
    }
    if !marked && files.is_empty() && Ledger::is_foreign(storage).at("read", format::STATE_FILE)? {
        return Err(Error::NotASpool {
            file: format::STATE_FILE.to_owned(),
        });
    }
    let newer = Ledger::newer_version(storage).at("read", format::STATE_FILE)?;
    if let Some(found) = newer {
        return Err(Error::UnsupportedFormat {
            file: format::STATE_FILE.to_owned(),
            found,
            supported: format::VERSION,
        });
    }
    // Nothing was changed so far; now it is known to be ours.
    if !marked {
        write_marker(storage).at("write", format::MARKER_FILE)?;
    }
    for file in unfinished {
        storage.remove(&file).at("remove", &file)?;
    }
    // Names that were found may not be durable yet: whoever made them may have
    // been killed, or told of an error, before they were.
    sync_dir(storage, "").at("sync", &storage.name())?;
    let ledger = Ledger::open(storage).at("open", format::STATE_FILE)?;

    let mut recovery = Recovery {
        storage,
        ends,
        segments: VecDeque::new(),
        contents: ledger.contents().clone(),
        forgotten: ledger.forgotten || ledger.contents().cursor.is_lost(),
        lost: Vec::new(),
        doubt: Vec::new(),
        damaged: Vec::new(),
    };
    let mut tail = Tail::empty();
    for index in 0..recovery.ends.len() {
        let (lost, doubt) = (recovery.lost.len(), recovery.doubt.len());
        let segment;
        (segment, tail) = recovery.resolve(index)?;
        // All that was in it is done, and a name that a power cut brought back may
        // lead to anything.
        if segment.number < recovery.contents.cursor.segment {
            recovery.lost.truncate(lost);
            recovery.doubt.truncate(doubt);
        }
        recovery.segments.push_back(segment);
    }
    recovery.expect_newest(&mut tail);
    if tail.last >= format::ABSURD {
        recovery.end_stream(&mut tail);
    }
    recovery.find_missing_segments(ledger.trusted);
    recovery.finish(ledger, tail)
}

struct Recovery<'a> {
    storage: &'a dyn Storage,
    ends: Vec<Ends>,
    /// Those resolved so far.
    segments: VecDeque<Segment>,
    contents: Contents,
    /// Whether `contents` say nothing because nothing could be read, now or when they
    /// were written.
    forgotten: bool,
    /// Ranges that were durable and are not there.
    lost: Vec<(StreamId, u64, u64)>,
    /// Places from which on it is not known what was there.
    doubt: Vec<(StreamId, u64)>,
    damaged: Vec<u64>,
}

/// How the log goes on behind a segment.
#[derive(Clone, Copy)]
struct Tail {
    stream: StreamId,
    last: u64,
    /// What came before `stream`.
    predecessor: Option<Predecessor>,
    /// Why `stream` has to end here, if it has to.
    end: Option<End>,
    start: Start,
}

impl Tail {
    /// Of a spool without segments.
    fn empty() -> Self {
        Self {
            stream: NO_STREAM,
            last: 0,
            predecessor: None,
            end: None,
            start: Start::Create { seal: None },
        }
    }

    fn sealed(sealed: Sealed, predecessor: Option<Predecessor>) -> Self {
        Self {
            stream: sealed.stream,
            last: sealed.last,
            predecessor,
            end: sealed.stream_end,
            start: Start::Create { seal: None },
        }
    }
}

impl Recovery<'_> {
    fn resolve(&mut self, index: usize) -> Result<(Segment, Tail), Error> {
        let ends = &self.ends[index];
        if let Some(sealed) = ends.sealed {
            let segment = Segment::sealed(ends.number, sealed, ends.disk);
            return Ok((segment, Tail::sealed(sealed, ends.predecessor())));
        }
        let Some((stream, first)) = ends.start().or_else(|| self.identify(index)) else {
            return Ok(self.unidentified(index));
        };
        if let Some(last) = self.last_by_next(index, stream)
            && last.checked_add(1).is_some_and(|next| next >= first)
        {
            let segment = Segment::durable(ends.number, stream, first, last, ends.disk, ends.disk);
            // Not the newest: its tail is of no interest.
            return Ok((segment, Tail::empty()));
        }
        self.read(index, stream, first)
    }

    /// A segment of which neither end tells how far it goes.
    fn read(
        &mut self,
        index: usize,
        stream: StreamId,
        first: u64,
    ) -> Result<(Segment, Tail), Error> {
        let Ends { number, disk, .. } = self.ends[index];
        let predecessor = self.ends[index].predecessor();
        let name = format::segment_file(number);
        let file = match self.storage.open(&name) {
            Err(error) if is_damage(&error) => return Ok(self.unidentified(index)),
            opened => opened.at("open", &name)?,
        };
        let seed = Seed::new(number, stream);
        let mut found = scan(&*file, seed, disk, first, self.synced(number, stream));
        found.damaged |= self.ends[index].header.is_none();
        if let Some(sealed) = found.sealed {
            let segment = Segment::sealed(number, sealed, disk);
            return Ok((segment, Tail::sealed(sealed, predecessor)));
        }
        let known_closed = found.closed && self.contents.synced == (number, found.last);
        if !known_closed {
            make_durable(&*file, seed, first, &found).at("make durable", &name)?;
        }
        if found.damaged {
            self.damaged.push(number);
        }
        for (first, last) in &found.lost {
            self.lost.push((stream, *first, *last));
        }
        if found.doubt {
            self.doubt.push((stream, found.last + 1));
        }
        if found.cut {
            tracing::warn!(
                file = name,
                from = found.end,
                bytes = disk - found.end,
                "bytes at the end of the log that no append had made durable are left out"
            );
        }

        let end = if found.damaged {
            Some(End::Damaged)
        } else if found.cut {
            Some(End::Cut)
        } else if !found.closed && found.windowed == Some(true) {
            Some(End::Window)
        } else {
            None
        };
        let segment = Segment::durable(number, stream, first, found.last, found.end, disk);
        let seal = Sealed {
            stream,
            first,
            last: found.last,
            end: found.end,
            stream_end: end,
        };
        let tail = Tail {
            stream,
            last: found.last,
            predecessor,
            end,
            start: match end {
                None => Start::Resume {
                    closed: found.closed,
                },
                Some(_) => Start::Create { seal: Some(seal) },
            },
        };
        Ok((segment, tail))
    }

    /// A segment that nothing can be read of.
    fn unidentified(&mut self, index: usize) -> (Segment, Tail) {
        let Ends { number, disk, .. } = self.ends[index];
        let cursor = &self.contents.cursor;
        self.damaged.push(number);
        if let Some((stream, last)) = self.told_by_next(index)
            && self.knows_before()
        {
            let first = match self.segments.back() {
                Some(before) if before.stream == stream => before.last + 1,
                _ if cursor.stream == stream && cursor.segment <= number => cursor.sequence + 1,
                _ => 1,
            };
            let last = last.max(first - 1);
            if last >= first {
                self.lost.push((stream, first, last));
            }
            let end = FRAMES_AT.min(disk);
            let segment = Segment::durable(number, stream, first, last, end, disk);
            return (segment, Tail::empty());
        }
        let (stream, before) = match self.segments.back() {
            Some(before) if cursor.segment != number => (before.stream, before.last),
            None if cursor.segment > number => (NO_STREAM, 0),
            _ => (cursor.stream, cursor.sequence),
        };
        let first = before + 1;
        let last = self.synced(number, stream).max(first - 1);
        if last >= first {
            self.lost.push((stream, first, last));
        }
        self.doubt.push((stream, last + 1));
        let tail = Tail {
            stream,
            last,
            predecessor: None,
            end: Some(End::Damaged),
            start: Start::Create { seal: None },
        };
        let end = FRAMES_AT.min(disk);
        (
            Segment::durable(number, stream, first, last, end, disk),
            tail,
        )
    }

    /// Finds out of which stream a segment is whose header is gone, by trying
    /// those around it.
    fn identify(&self, index: usize) -> Option<(StreamId, u64)> {
        let Ends { number, disk, .. } = self.ends[index];
        let file = self.storage.open(&format::segment_file(number)).ok()?;
        let before = self.segments.back();
        let next = self.ends.get(index + 1);
        let around = [
            before.map(|segment| segment.stream),
            next.and_then(Ends::start).map(|(stream, _)| stream),
            next.and_then(Ends::predecessor).map(|p| p.stream),
            Some(self.contents.cursor.stream),
        ];
        around.into_iter().flatten().find_map(|stream| {
            let seed = Seed::new(number, stream);
            let mut walk = Walk::new(&*file, seed, FRAMES_AT..disk, (1, 0), CHUNK);
            let found = match walk.step() {
                Step::Frame(frame) => frame.header.first,
                Step::Gap(gap) => gap.next?,
                Step::End => return None,
            };
            // What comes before the first frame that can be read is lost with
            // the header, unless it is in an earlier segment, or done.
            let cursor = &self.contents.cursor;
            let first = match before {
                Some(segment) if segment.stream == stream => segment.last + 1,
                _ if cursor.stream == stream && cursor.segment <= number => cursor.sequence + 1,
                _ if self.knows_before() => 1,
                _ => found,
            };
            Some((stream, first.min(found)))
        })
    }

    /// Whether it is known how far the log went, or was drained, before the segment that
    /// is looked at: of a stream that began since, nothing was drained.
    fn knows_before(&self) -> bool {
        let before = self.segments.back();
        !self.forgotten || before.is_some_and(|segment| segment.stream != NO_STREAM)
    }

    /// The stream that a segment ended with and its last sequence, as the one behind
    /// it tells.
    fn told_by_next(&self, index: usize) -> Option<(StreamId, u64)> {
        match self.ends.get(index + 1)?.start()? {
            (stream, 1) => self
                .predecessor(index + 1, stream)
                .map(|p| (p.stream, p.last_sequence)),
            (stream, first) => Some((stream, first - 1)),
        }
    }

    /// What came before the stream of a segment, as the first header tells that is left
    /// of it, in this segment or behind.
    fn predecessor(&self, index: usize, stream: StreamId) -> Option<Predecessor> {
        let segments = self.ends.iter().skip(index);
        segments
            .take_while(|ends| ends.start().is_none_or(|(of, _)| of == stream))
            .find(|ends| ends.header.is_some())
            .and_then(Ends::predecessor)
    }

    /// The last sequence of a segment, as the one behind it tells.
    fn last_by_next(&self, index: usize, stream: StreamId) -> Option<u64> {
        match self.ends.get(index + 1)?.start()? {
            (next_stream, next_first) if next_stream == stream => Some(next_first - 1),
            (next_stream, _) => self
                .predecessor(index + 1, next_stream)
                .filter(|predecessor| predecessor.stream == stream)
                .map(|predecessor| predecessor.last_sequence),
        }
    }

    /// The last sequence of a segment that the state file knows to be durable.
    fn synced(&self, number: u64, stream: StreamId) -> u64 {
        let Contents { cursor, synced, .. } = &self.contents;
        let by_sync = if synced.0 == number { synced.1 } else { 0 };
        let by_cursor = if (cursor.segment, cursor.stream) == (number, stream) {
            cursor.sequence
        } else {
            0
        };
        by_sync.max(by_cursor)
    }

    /// The state file may know of a segment newer than the newest that is
    /// there. Its sequences must not be used again.
    fn expect_newest(&mut self, tail: &mut Tail) {
        let Contents { cursor, synced, .. } = &self.contents;
        let newest = self.segments.back().map_or(0, |segment| segment.number);
        if cursor.segment.max(synced.0) <= newest {
            return;
        }
        let cursor = *cursor;
        self.end_stream(tail);
        if cursor.segment > newest {
            tail.stream = cursor.stream;
            tail.last = cursor.sequence;
        }
        self.doubt.push((tail.stream, tail.last + 1));
    }

    /// Ends a stream that would otherwise have gone on.
    fn end_stream(&self, tail: &mut Tail) {
        tail.end = Some(End::Damaged);
        if let Start::Resume { .. } = tail.start
            && let Some(segment) = self.segments.back()
        {
            tail.start = Start::Create {
                seal: Some(Sealed {
                    stream: segment.stream,
                    first: segment.first,
                    last: segment.last,
                    end: segment.end,
                    stream_end: tail.end,
                }),
            };
        }
    }

    /// Whole segments may be missing between those that are there.
    fn find_missing_segments(&mut self, trust_cursor: bool) {
        let cursor = self.contents.cursor;
        let known = trust_cursor && cursor.stream != NO_STREAM;
        let mut at = known.then_some((cursor.stream, cursor.sequence));
        for (index, segment) in self.segments.iter().enumerate() {
            if segment.number < cursor.segment {
                continue;
            }
            let before = at.filter(|_| segment.number > cursor.segment);
            // Nothing was ever drained, and the first segments are gone.
            let untouched = trust_cursor && !self.forgotten && cursor.segment == 0;
            if before.is_some() || (at.is_none() && untouched && segment.number > 1) {
                // Of the stream before, what it had; of this one, what comes before here.
                let goes_on = before.is_some_and(|(stream, _)| stream == segment.stream);
                // One that left no trace is no predecessor: what comes before it may be
                // that of the next.
                let traced = before.is_none_or(|(_, last)| last > 0) || cursor.segment <= 1;
                let ended = match goes_on {
                    true => None,
                    false => self.predecessor(index, segment.stream),
                };
                let ended = ended.filter(|ended| {
                    traced || before.is_some_and(|(stream, _)| stream == ended.stream)
                });
                let ended = ended.map(|ended| (ended.stream, ended.last_sequence));
                for (stream, last) in ended
                    .into_iter()
                    .chain([(segment.stream, segment.first - 1)])
                {
                    let known = before.filter(|(known, _)| *known == stream);
                    let after = known.map_or(0, |(_, last)| last);
                    if last > after {
                        self.lost.push((stream, after + 1, last));
                    }
                }
            }
            if segment.last >= segment.first {
                at = Some((segment.stream, segment.last));
            }
        }
    }

    /// Writes down what was lost and settles where appending goes on.
    fn finish(self, mut ledger: Ledger, tail: Tail) -> Result<Recovered, Error> {
        let mut contents = self.contents.clone();
        self.place_cursor(&mut contents, ledger.trusted);
        let named = contents.clone();
        if ledger.forgotten && !self.segments.is_empty() {
            tracing::warn!(
                "the state file can't be read: what was delivered and is still there will be \
                 delivered again, and losses that nobody confirmed are forgotten"
            );
            contents.add(Reason::Several, NO_STREAM, 0, 0, 0, 0);
        }
        let done = self.contents.cursor;
        for (stream, first, last) in &self.lost {
            // Up to the cursor all was delivered, or named already.
            let first = match *stream == done.stream {
                true => (*first).max(done.sequence + 1),
                false => *first,
            };
            if first > *last {
                continue;
            }
            tracing::warn!(%stream, first, last, "records that were durable are damaged or missing");
            contents.lose(Reason::Damaged, *stream, first, *last, 0);
        }
        for (stream, from) in &self.doubt {
            if !contents.doubts(*stream, *from) {
                tracing::warn!(%stream, from, "what was stored from here on can't be known");
                contents.add(Reason::Damaged, *stream, *from, *from, 0, 0);
            }
        }
        if ledger.to_mend {
            ledger
                .mend(self.storage, contents)
                .at("write", format::STATE_FILE)?;
        } else if contents.same_losses(&named) {
            ledger.assume(contents);
        } else {
            ledger
                .commit_both(contents)
                .at("write", format::STATE_FILE)?;
        }

        let newest = self.segments.back().map_or(0, |segment| segment.number);
        let cursor = ledger.contents().cursor;
        let mut recovered = Recovered {
            next_segment: newest
                .max(cursor.segment)
                .max(ledger.contents().synced.0)
                .saturating_add(1),
            segments: self.segments,
            ledger,
            stream: tail.stream,
            predecessor: tail.predecessor,
            next_sequence: tail.last + 1,
            start: tail.start,
            damaged: self.damaged,
        };
        if tail.end.is_some() || tail.stream == NO_STREAM {
            recovered.begin_stream(tail.end, tail.last)?;
        }
        Ok(recovered)
    }

    /// A cursor that points nowhere is moved to where it points next.
    fn place_cursor(&self, contents: &mut Contents, trusted: bool) {
        let cursor = &mut contents.cursor;
        // An older one, where the newest can't be read: what came behind it and is not
        // there may have been drained since. Or nothing was ever drained: then what is
        // not there is named now, and must not be so again.
        let mut behind = self
            .segments
            .iter()
            .skip_while(|s| s.number < cursor.segment);
        if let Some(next) = behind.next().filter(|s| s.number > cursor.segment)
            && (!trusted || cursor.sequence == 0 && next.stream != NO_STREAM)
        {
            *cursor = Cursor {
                segment: next.number,
                stream: next.stream,
                sequence: next.first - 1,
                offset: FRAMES_AT,
            };
            return;
        }
        let Some(segment) = self
            .segments
            .iter()
            .find(|segment| segment.number == cursor.segment)
        else {
            return;
        };
        if cursor.stream != segment.stream || cursor.sequence + 1 < segment.first {
            cursor.stream = segment.stream;
            cursor.sequence = segment.first - 1;
            cursor.offset = FRAMES_AT;
        } else if cursor.sequence > segment.last
            || !(FRAMES_AT..=segment.end).contains(&cursor.offset)
        {
            cursor.sequence = cursor.sequence.min(segment.last);
            cursor.offset = FRAMES_AT;
        }
    }
}

impl Recovered {
    fn begin_stream(&mut self, end: Option<End>, last: u64) -> Result<(), Error> {
        let mut id = [0; 16];
        getrandom::fill(&mut id).map_err(Error::Randomness)?;
        // A stream that kept no record leaves no trace: its predecessor stays.
        if let Some(end) = end
            && last > 0
            && self.stream != NO_STREAM
        {
            self.predecessor = Some(Predecessor {
                stream: self.stream,
                last_sequence: last,
                end,
            });
        }
        self.stream = StreamId(id);
        self.next_sequence = 1;
        Ok(())
    }
}

/// The segments that are there, oldest first, with their lengths; and what
/// creating one has left unfinished.
#[expect(clippy::type_complexity, reason = "two lists")]
fn list(storage: &dyn Storage) -> Result<(Vec<(u64, u64)>, Vec<String>), Error> {
    let mut segments = Vec::new();
    let mut unfinished = Vec::new();
    for (file, len) in storage.list("").at("list", &storage.name())? {
        if let Some(number) = format::segment_number(&file) {
            if number >= format::LAST_SEGMENT {
                return Err(Error::NotASpool { file });
            }
            segments.push((number, len));
        } else if format::is_unfinished(&file) {
            unfinished.push(file);
        }
    }
    segments.sort_unstable();
    Ok((segments, unfinished))
}

/// Whether the marker file is as it should be. If not, the spool is new, or the
/// file is damaged.
fn is_marked(storage: &dyn Storage, has_segments: bool) -> Result<bool, Error> {
    let name = format::MARKER_FILE;
    let file = storage.open(name).at("open", name)?;
    let len = file.size().at("read", name)?;
    let mut bytes = [0; format::MARKER_LEN];
    if len >= format::MARKER_LEN as u64 {
        read_salvaging(&*file, &mut bytes, 0);
    }
    match format::check_marker(&bytes) {
        Checked::Good(()) => Ok(true),
        Checked::Newer(found) => Err(Error::UnsupportedFormat {
            file: name.to_owned(),
            found,
            supported: format::VERSION,
        }),
        Checked::Bad if len > format::MARKER_LEN as u64 && !has_segments => Err(Error::NotASpool {
            file: name.to_owned(),
        }),
        Checked::Bad => Ok(false),
    }
}

fn write_marker(storage: &dyn Storage) -> io::Result<()> {
    let file = storage.open(format::MARKER_FILE)?;
    file.set_len(format::MARKER_LEN as u64)?;
    file.write_at(&format::marker(), 0)?;
    sync(&*file)
}
