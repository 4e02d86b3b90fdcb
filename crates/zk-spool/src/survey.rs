//! What the files of a spool say, without changing any: for whoever opens it, and for
//! whoever only looks. Of segments that are sealed the ends are read, of the newest all.

use std::{
    collections::{BTreeMap, VecDeque},
    io,
    sync::Arc,
};

use crate::{
    End, Error, Predecessor, StreamId,
    error::At,
    format::{self, Ended, FRAMES_AT, Sealed, Seed},
    ledger::{Contents, Cursor},
    record::NO_STREAM,
    segment::{Ends, Scan, Segment, scan},
    storage::{StorageFile, is_damage},
    walk::{CHUNK, Step, Walk},
};

/// A log as it was found.
#[derive(Debug)]
pub(crate) struct Survey {
    pub(crate) segments: VecDeque<Segment>,
    pub(crate) tail: Tail,
    /// Where reading begins.
    pub(crate) cursor: Cursor,
    /// Ranges that were durable and are not there.
    pub(crate) lost: Vec<Lost>,
    /// Places from which on it is not known what was there.
    pub(crate) doubt: Vec<Doubt>,
    /// Segments in which damage was found.
    pub(crate) damaged: Vec<u64>,
    /// Segments that nothing can be read of.
    pub(crate) opaque: Vec<u64>,
    /// The streams that are over, as far as any header tells.
    pub(crate) ended: Vec<Ended>,
    /// Segments that were read to their ends.
    pub(crate) read: Vec<Read>,
}

#[derive(Clone, Copy, Debug)]
pub(crate) struct Lost {
    pub(crate) stream: StreamId,
    pub(crate) first: u64,
    pub(crate) last: u64,
    /// Where they were.
    pub(crate) segment: u64,
    /// Whether that segment is gone.
    pub(crate) gone: bool,
}

#[derive(Clone, Copy, Debug)]
pub(crate) struct Doubt {
    pub(crate) stream: StreamId,
    pub(crate) from: u64,
    pub(crate) segment: u64,
}

/// A segment that was read to its end, and what was found.
#[derive(Debug)]
pub(crate) struct Read {
    pub(crate) number: u64,
    pub(crate) seed: Seed,
    pub(crate) first: u64,
    pub(crate) scan: Scan,
}

/// How the log goes on behind a segment.
#[derive(Clone, Debug)]
pub(crate) struct Tail {
    pub(crate) stream: StreamId,
    pub(crate) last: u64,
    /// What came before `stream`.
    pub(crate) predecessor: Option<Predecessor>,
    pub(crate) ended: Vec<Ended>,
    /// Why `stream` has to end here, if it has to.
    pub(crate) end: Option<End>,
    pub(crate) start: Start,
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

impl Tail {
    /// Of a spool without segments.
    fn empty() -> Self {
        Self {
            stream: NO_STREAM,
            last: 0,
            predecessor: None,
            ended: Vec::new(),
            end: None,
            start: Start::Create { seal: None },
        }
    }
}

/// What is known beside the segments.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Known<'a> {
    pub(crate) contents: &'a Contents,
    /// Whether the cursor is the newest there was.
    pub(crate) trusted: bool,
    /// Whether neither slot could be read.
    pub(crate) forgotten: bool,
    /// The newest segment that there has to be.
    pub(crate) newest: u64,
}

/// Opens a segment.
pub(crate) type Opens<'a> = dyn Fn(u64) -> io::Result<Arc<dyn StorageFile>> + 'a;

pub(crate) fn survey(ends: &[Ends], known: Known<'_>, open: &Opens<'_>) -> Result<Survey, Error> {
    let (told, places) = told(ends);
    let mut surveyor = Surveyor {
        open,
        ends,
        known,
        told,
        places,
        found: Survey {
            segments: VecDeque::new(),
            tail: Tail::empty(),
            cursor: known.contents.cursor,
            lost: Vec::new(),
            doubt: Vec::new(),
            damaged: Vec::new(),
            opaque: Vec::new(),
            ended: Vec::new(),
            read: Vec::new(),
        },
    };
    for index in 0..ends.len() {
        let (lost, doubt) = (surveyor.found.lost.len(), surveyor.found.doubt.len());
        let segment;
        (segment, surveyor.found.tail) = surveyor.resolve(index)?;
        // All that was in it is done, and a name that a power cut brought back may
        // lead to anything.
        if segment.number < known.contents.cursor.segment {
            surveyor.found.lost.truncate(lost);
            surveyor.found.doubt.truncate(doubt);
        }
        surveyor.found.segments.push_back(segment);
    }
    surveyor.descend();
    surveyor.expect_newest();
    surveyor.expect_numbers();
    surveyor.find_missing();
    surveyor.found.cursor = surveyor.placed_cursor();
    let told = surveyor.told.into_iter();
    surveyor.found.ended = told.map(Told::at_latest).collect();
    Ok(surveyor.found)
}

/// A stream that is over, as a header tells.
#[derive(Clone, Copy, Debug)]
struct Told {
    ended: Ended,
    /// That header's stream, and its segment.
    by: (StreamId, u64),
}

impl Told {
    /// With the number that its last segment has at most, if that is not told.
    fn at_latest(self) -> Ended {
        Ended {
            segment: match self.ended.segment {
                0 => self.by.1.saturating_sub(1),
                told => told,
            },
            ..self.ended
        }
    }

    /// Whether all of it comes before a place in another stream.
    fn is_before(&self, cursor: &Cursor) -> bool {
        let untold = self.ended.segment == 0;
        // One that left no trace is no predecessor: what comes before it may be that of
        // the next.
        let untraced = cursor.sequence == 0 && cursor.segment > 1;
        (untold && (self.by.0 == cursor.stream || untraced))
            || self.at_latest().segment <= cursor.segment
    }
}

/// The streams that are over, oldest first, and the place of each.
fn told(ends: &[Ends]) -> (Vec<Told>, BTreeMap<StreamId, usize>) {
    let mut all: Vec<Told> = Vec::new();
    let mut places = BTreeMap::new();
    for header in ends.iter().filter_map(|ends| ends.header.as_ref()) {
        let by = (header.stream, header.number);
        for ended in header.ended.iter().rev() {
            let place = *places.entry(ended.stream).or_insert(all.len());
            match all.get_mut(place) {
                None => all.push(Told { ended: *ended, by }),
                Some(told) => {
                    told.ended.last = told.ended.last.max(ended.last);
                    told.ended.segment = told.ended.segment.max(ended.segment);
                }
            }
        }
    }
    (all, places)
}

struct Surveyor<'a> {
    open: &'a Opens<'a>,
    ends: &'a [Ends],
    known: Known<'a>,
    told: Vec<Told>,
    places: BTreeMap<StreamId, usize>,
    /// What was found so far.
    found: Survey,
}

impl Surveyor<'_> {
    fn resolve(&mut self, index: usize) -> Result<(Segment, Tail), Error> {
        let ends = &self.ends[index];
        let newest = index + 1 == self.ends.len();
        // Where the log ends, a sealed frame has to be in accord with those before it.
        if let Some(sealed) = ends.sealed.filter(|_| !newest) {
            let segment = Segment::sealed(ends.number, sealed, ends.disk);
            return Ok((segment, Tail::empty()));
        }
        let own = ends.header.as_ref().map(|own| (own.stream, own.first));
        let start = own.or_else(|| ends.start());
        let Some((stream, first)) = start.or_else(|| self.identify(index)) else {
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

    /// A segment of which neither end tells how far it goes, or the newest.
    fn read(
        &mut self,
        index: usize,
        stream: StreamId,
        first: u64,
    ) -> Result<(Segment, Tail), Error> {
        let Ends { number, disk, .. } = self.ends[index];
        let file = match (self.open)(number) {
            Err(error) if is_damage(&error) => return Ok(self.unidentified(index)),
            opened => opened.at("open", &format::segment_file(number))?,
        };
        let seed = Seed::new(number, stream);
        let mut found = scan(&*file, seed, disk, first, self.synced(number, stream));
        found.damaged |= self.ends[index].header.is_none() && found.sealed.is_none();
        let mut tail = Tail {
            stream,
            last: found.last,
            end: None,
            start: Start::Create { seal: None },
            ..Tail::empty()
        };
        match found.sealed {
            Some(sealed) => {
                tail.last = sealed.last;
                tail.end = sealed.stream_end;
            }
            None => {
                self.note(number, stream, disk, &found);
                tail.end = if found.damaged {
                    Some(End::Damaged)
                } else if found.cut {
                    Some(End::Cut)
                } else if !found.closed && found.windowed == Some(true) {
                    Some(End::Window)
                } else {
                    None
                };
                let seal = Sealed {
                    stream,
                    first,
                    last: found.last,
                    end: found.end,
                    stream_end: tail.end,
                };
                tail.start = match tail.end {
                    None => Start::Resume {
                        closed: found.closed,
                    },
                    Some(_) => Start::Create { seal: Some(seal) },
                };
            }
        }
        let segment = Segment::scanned(number, stream, first, &found, disk);
        self.found.read.push(Read {
            number,
            seed,
            first,
            scan: found,
        });
        Ok((segment, tail))
    }

    /// Notes what is wrong with a segment that was read.
    fn note(&mut self, number: u64, stream: StreamId, disk: u64, found: &Scan) {
        if found.damaged {
            self.found.damaged.push(number);
        }
        for (first, last) in &found.lost {
            self.lose(number, stream, *first, *last);
        }
        if found.doubt {
            self.doubt(number, stream, found.last + 1);
        }
        if found.cut {
            tracing::warn!(
                file = format::segment_file(number),
                from = found.end,
                bytes = disk - found.end,
                "bytes at the end of the log that no append had made durable are left out"
            );
        }
    }

    fn lose(&mut self, segment: u64, stream: StreamId, first: u64, last: u64) {
        self.found.lost.push(Lost {
            stream,
            first,
            last,
            segment,
            gone: false,
        });
    }

    fn doubt(&mut self, segment: u64, stream: StreamId, from: u64) {
        self.found.doubt.push(Doubt {
            stream,
            from,
            segment,
        });
    }

    /// A segment that nothing can be read of.
    fn unidentified(&mut self, index: usize) -> (Segment, Tail) {
        let Ends { number, disk, .. } = self.ends[index];
        let cursor = self.known.contents.cursor;
        self.found.damaged.push(number);
        self.found.opaque.push(number);
        let end = FRAMES_AT.min(disk);
        let before = self.found.segments.back().copied();
        let newest = index + 1 == self.ends.len();
        let owner = self.owner(index).filter(|_| !newest && self.knows_before());
        if let Some((stream, last)) = owner {
            let first = match before {
                Some(before) if before.stream == stream => before.last + 1,
                _ if cursor.stream == stream && cursor.segment <= number => cursor.sequence + 1,
                _ => 1,
            };
            let last = last.unwrap_or(0).max(first - 1);
            if last >= first {
                self.lose(number, stream, first, last);
            }
            let segment = Segment::durable(number, stream, first, last, end, disk);
            return (segment, Tail::empty());
        }
        let (stream, before) = match before {
            Some(before) if cursor.segment != number => (before.stream, before.last),
            None if cursor.segment > number => (NO_STREAM, 0),
            _ => (cursor.stream, cursor.sequence),
        };
        let first = before + 1;
        let last = self.synced(number, stream).max(first - 1);
        if last >= first {
            self.lose(number, stream, first, last);
        }
        self.doubt(number, stream, last + 1);
        let tail = Tail {
            stream,
            last,
            end: Some(End::Damaged),
            ..Tail::empty()
        };
        let segment = Segment::durable(number, stream, first, last, end, disk);
        (segment, tail)
    }

    /// Finds out of which stream a segment is whose header is gone, by trying
    /// those around it.
    fn identify(&self, index: usize) -> Option<(StreamId, u64)> {
        let Ends { number, disk, .. } = self.ends[index];
        let file = (self.open)(number).ok()?;
        let before = self.found.segments.back();
        let next = self.ends.get(index + 1);
        let around = [
            before.map(|segment| segment.stream),
            self.owner(index).map(|(stream, _)| stream),
            next.and_then(Ends::start).map(|(stream, _)| stream),
            Some(self.known.contents.cursor.stream),
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
            let cursor = &self.known.contents.cursor;
            let first = match before {
                Some(segment) if segment.stream == stream => segment.last + 1,
                _ if cursor.stream == stream && cursor.segment <= number => cursor.sequence + 1,
                _ if self.knows_before() => 1,
                _ => found,
            };
            Some((stream, first.min(found)))
        })
    }

    /// Whether neither slot tells how far the log was drained, now or when they were
    /// written.
    fn forgotten(&self) -> bool {
        self.known.forgotten || self.known.contents.cursor.is_lost()
    }

    /// Whether it is known how far the log went, or was drained, before the segment that
    /// is looked at: of a stream that began since, nothing was drained.
    fn knows_before(&self) -> bool {
        let before = self.found.segments.back();
        !self.forgotten() || before.is_some_and(|segment| segment.stream != NO_STREAM)
    }

    /// The stream that the records in a segment were of, as others tell, and the last of
    /// them if that is told too.
    fn owner(&self, index: usize) -> Option<(StreamId, Option<u64>)> {
        let number = self.ends[index].number;
        let behind = self.ends.iter().skip(index + 1);
        let next = behind.filter_map(Ends::start).next();
        let before_next = |stream| {
            next.filter(|(of, _)| *of == stream)
                .map(|(_, first)| first - 1)
        };
        let ended = self.told.iter().map(|told| told.ended);
        let ended = ended.filter(|ended| ended.segment >= number);
        if let Some(ended) = ended.min_by_key(|ended| ended.segment) {
            let last = match ended.segment == number {
                true => Some(ended.last),
                false => before_next(ended.stream),
            };
            return Some((ended.stream, last));
        }
        match next? {
            (stream, 1) => {
                let is_direct = |told: &&Told| told.by.0 == stream && told.ended.segment == 0;
                let told = self.told.iter().find(is_direct)?;
                Some((told.ended.stream, Some(told.ended.last)))
            }
            (stream, first) => Some((stream, Some(first - 1))),
        }
    }

    fn told_of(&self, stream: StreamId) -> Option<Told> {
        let place = *self.places.get(&stream)?;
        self.told.get(place).copied()
    }

    /// The last sequence of a segment, as the one behind it tells, or any header behind.
    fn last_by_next(&self, index: usize, stream: StreamId) -> Option<u64> {
        let number = self.ends[index].number;
        let (next, first) = self.ends.get(index + 1)?.start()?;
        if next == stream {
            return Some(first - 1);
        }
        let told = self.told_of(stream)?;
        let its_last = match told.ended.segment {
            0 => told.by.0 == next,
            segment => segment == number,
        };
        its_last.then_some(told.ended.last)
    }

    /// The last sequence of a segment that the state file knows to be durable.
    fn synced(&self, number: u64, stream: StreamId) -> u64 {
        let Contents { cursor, synced, .. } = self.known.contents;
        let by_sync = if synced.0 == number { synced.1 } else { 0 };
        let by_cursor = if (cursor.segment, cursor.stream) == (number, stream) {
            cursor.sequence
        } else {
            0
        };
        by_sync.max(by_cursor)
    }

    /// Which streams came before the one that the log ends with.
    fn descend(&mut self) {
        let stream = self.found.tail.stream;
        let mut behind = self.ends.iter().rev();
        let Some(header) = behind.find_map(|ends| ends.header.as_ref()) else {
            return;
        };
        let mut predecessor = header.predecessor;
        let mut ended = header.ended.clone();
        let own = |segment: &&Segment| segment.stream == header.stream;
        let last = self.found.segments.iter().rfind(own);
        if header.stream != stream
            && let Some(last) = last.filter(|segment| segment.last > 0)
        {
            let at = self.ends.iter().find(|ends| ends.number == last.number);
            let end = at.and_then(|ends| ends.sealed?.stream_end);
            predecessor = Some(Predecessor {
                stream: last.stream,
                last_sequence: last.last,
                end: end.unwrap_or(End::Damaged),
            });
            ended.insert(
                0,
                Ended {
                    stream: last.stream,
                    last: last.last,
                    segment: last.number,
                },
            );
        }
        self.found.tail.predecessor = predecessor;
        self.found.tail.ended = ended;
    }

    /// The state file may know of a segment newer than the newest that is
    /// there. Its sequences must not be used again.
    fn expect_newest(&mut self) {
        let cursor = self.known.contents.cursor;
        let newest = self
            .found
            .segments
            .back()
            .map_or(0, |segment| segment.number);
        if self.known.newest <= newest {
            return;
        }
        self.end_stream();
        let tail = &mut self.found.tail;
        if cursor.segment > newest {
            if cursor.stream != tail.stream && tail.last > 0 {
                tail.ended.insert(
                    0,
                    Ended {
                        stream: tail.stream,
                        last: tail.last,
                        segment: newest,
                    },
                );
            }
            tail.stream = cursor.stream;
            tail.last = cursor.sequence;
        }
        let (stream, from) = (self.found.tail.stream, self.found.tail.last + 1);
        self.doubt(self.known.newest, stream, from);
    }

    /// A number that anything knows of is not given out again, whatever the newest
    /// segment says of where the log ends.
    fn expect_numbers(&mut self) {
        let stream = self.found.tail.stream;
        let Contents { cursor, .. } = self.known.contents;
        let own = self.found.segments.iter().filter(|s| s.stream == stream);
        let named = own
            .map(|segment| segment.last)
            .chain(self.told_of(stream).map(|told| told.ended.last))
            .chain((cursor.stream == stream).then_some(cursor.sequence))
            .chain(self.known.contents.last_lost(stream))
            .fold(self.found.tail.last, u64::max)
            .min(format::ABSURD - 1);
        // A refused append may have come behind others that never became durable, and
        // that is no reason to doubt, if the stream ends for it.
        let given = self.known.contents.last_given(stream);
        let is_short = given > self.found.tail.last && self.found.tail.end.is_none();
        if named > self.found.tail.last || is_short {
            self.found.tail.last = named;
            self.end_stream();
            // So that it is still known when what knows of it now is drained.
            if !self.found.doubt.iter().any(|doubt| doubt.stream == stream) {
                let newest = self.found.segments.back();
                self.doubt(newest.map_or(0, |newest| newest.number), stream, named + 1);
            }
        }
    }

    /// Ends a stream that would otherwise have gone on.
    fn end_stream(&mut self) {
        let tail = &mut self.found.tail;
        tail.end = Some(End::Damaged);
        if let Start::Resume { .. } = tail.start
            && let Some(segment) = self.found.segments.back()
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

    /// From where on all should be there.
    fn origin(&self) -> Option<Cursor> {
        let cursor = self.known.contents.cursor;
        let segments = &self.found.segments;
        let placed = self.placed_cursor();
        let is_there = segments.iter().any(|s| s.number == cursor.segment);
        if self.known.trusted && !self.forgotten() && !is_there {
            // Where nothing was ever drained, it is there from the first segment on.
            let first = segments.front().map_or(0, |segment| segment.number);
            return Some(match (cursor.segment, first) {
                (0, 1) => placed,
                _ => cursor,
            });
        }
        if placed.stream != NO_STREAM {
            return Some(placed);
        }
        let behind = segments.iter().filter(|s| s.number >= cursor.segment);
        let mut known = behind.filter(|segment| segment.stream != NO_STREAM);
        known.next().map(Cursor::at_start)
    }

    /// Whole segments may be missing between those that are there, or before them.
    fn find_missing(&mut self) {
        let Some(origin) = self.origin() else {
            return;
        };
        // The streams, oldest first, and what there is of each.
        let mut streams: Vec<StreamId> = self.told.iter().map(|t| t.ended.stream).collect();
        let mut own: BTreeMap<StreamId, Vec<Segment>> = BTreeMap::new();
        let segments = self.found.segments.iter();
        for segment in segments.filter(|segment| segment.number >= origin.segment) {
            let of_it = own.entry(segment.stream).or_default();
            if of_it.is_empty() && !self.places.contains_key(&segment.stream) {
                streams.push(segment.stream);
            }
            of_it.push(*segment);
        }
        for stream in streams {
            let told = self.told_of(stream);
            let own = own.remove(&stream).unwrap_or_default();
            let is_before = || told.is_none_or(|told| told.is_before(&origin));
            let is_own = stream == origin.stream;
            if stream == NO_STREAM || !is_own && own.is_empty() && is_before() {
                continue;
            }
            let mut from = if is_own { origin.sequence + 1 } else { 1 };
            let mut lose = |segment: u64, first: u64, last: u64| {
                if first <= last {
                    self.found.lost.push(Lost {
                        stream,
                        first,
                        last,
                        segment,
                        gone: true,
                    });
                }
            };
            for segment in own {
                lose(segment.number - 1, from, segment.first - 1);
                from = from.max(segment.last + 1);
            }
            if let Some(told) = told {
                lose(told.at_latest().segment, from, told.ended.last);
            }
        }
    }

    /// A cursor that points nowhere is moved to where it points next.
    fn placed_cursor(&self) -> Cursor {
        let mut cursor = self.known.contents.cursor;
        // An older one, where the newest can't be read: what came behind it and is not
        // there may have been drained since. Or nothing was ever drained: then what is
        // not there is named now, and must not be so again.
        let segments = self.found.segments.iter();
        let mut behind = segments.skip_while(|s| s.number < cursor.segment);
        let Some(segment) = behind.next() else {
            return cursor;
        };
        if segment.number > cursor.segment {
            let untouched = cursor.sequence == 0 && segment.stream != NO_STREAM;
            return match !self.known.trusted || untouched {
                true => Cursor::at_start(segment),
                false => cursor,
            };
        }
        if cursor.stream != segment.stream || cursor.sequence + 1 < segment.first {
            return Cursor::at_start(segment);
        }
        if cursor.sequence > segment.last || !(FRAMES_AT..=segment.end).contains(&cursor.offset) {
            cursor.sequence = cursor.sequence.min(segment.last);
            cursor.offset = FRAMES_AT;
        }
        cursor
    }
}

impl Cursor {
    /// Before the first record of a segment.
    fn at_start(segment: &Segment) -> Self {
        Self {
            segment: segment.number,
            stream: segment.stream,
            sequence: segment.first - 1,
            offset: FRAMES_AT,
        }
    }
}
