//! Draining: reading what is oldest, acknowledging it, and keeping account of
//! what is lost.

use std::{io, ops::Range, sync::Arc, time::Instant};

use crate::{
    Damage, Error, Loss, Position, Reason, Record, Report,
    error::At,
    format::{self, DAMAGED_DIR, Ended, FRAMES_AT, REJECTED_DIR},
    ledger::{Contents, Cursor, Ledger},
    rejected,
    segment::{Segment, header_copies, read_sealed},
    spool::{Inner, length, lock},
    storage::{StorageFile, is_damage},
    walk::{CHUNK, Gap, Step, Walk},
};

/// The side that drains.
#[derive(Debug)]
pub(crate) struct Drain {
    ledger: Ledger,
    /// The segment that is being read.
    open: Option<(u64, Arc<dyn StorageFile>)>,
    refused: Refused,
}

/// Appends that were refused for want of room, of which the ledger may not know
/// all: where appends are made durable within a window, so are their refusals.
#[derive(Debug, Default)]
struct Refused {
    saved: u64,
    saved_at: Option<Instant>,
    unsaved: u64,
    first: u64,
    last: u64,
}

impl Drain {
    pub(crate) fn new(ledger: Ledger) -> Self {
        Self {
            ledger,
            open: None,
            refused: Refused::default(),
        }
    }

    pub(crate) fn contents(&self) -> Contents {
        self.ledger.contents().clone()
    }

    /// Losses up to this id were offered.
    pub(crate) fn offered(&self) -> u64 {
        self.ledger.offered
    }

    fn cursor(&self) -> Cursor {
        self.ledger.contents().cursor
    }
}

impl Inner {
    pub(crate) fn peek(&self, max_records: usize, max_bytes: usize) -> Result<Vec<Record>, Error> {
        let mut drain = lock(&self.drain);
        self.check()?;
        self.read(&mut drain, max_records, max_bytes)
    }

    /// Reads from the cursor on. Damage that comes first is passed, and the
    /// cursor with it; damage behind a record is left until that is done.
    fn read(
        &self,
        drain: &mut Drain,
        max_records: usize,
        max_bytes: usize,
    ) -> Result<Vec<Record>, Error> {
        let mut records: Vec<Record> = Vec::new();
        let mut bytes = 0;
        let mut number = drain.cursor().segment;
        while let Some((segment, first, offset)) = self.next_to_read(drain, &mut number) {
            let Some(file) = self.open_segment(drain, &segment)? else {
                if records.is_empty() {
                    let missing = (first, segment.durable_last);
                    self.pass_damage(drain, &segment, missing, segment.durable_end)?;
                    continue;
                }
                break;
            };
            let place = offset..segment.durable_end;
            let sequences = (first, segment.durable_last);
            let mut walk = Walk::new(&*file, segment.seed(), place, sequences, max_bytes);
            loop {
                // A further frame would be read and checked in vain.
                let enough = records.len() >= max_records || bytes >= max_bytes;
                if enough && !records.is_empty() {
                    return Ok(records);
                }
                match walk.step() {
                    Step::Frame(frame) => {
                        let body = walk.bytes(&frame);
                        let places = format::records(frame.header.count, body);
                        for (sequence, place) in (frame.header.first..).zip(places) {
                            if sequence < first {
                                continue;
                            }
                            // The next segment has those that follow.
                            if sequence > segment.durable_last {
                                break;
                            }
                            bytes += place.len();
                            let enough = bytes > max_bytes && !records.is_empty();
                            if enough || records.len() >= max_records {
                                return Ok(records);
                            }
                            let last = place.end == body.len();
                            let position = Position {
                                stream: segment.stream,
                                sequence,
                                segment: segment.number,
                                resume: if last { frame.end } else { frame.offset },
                            };
                            let bytes = body[place].to_vec();
                            records.push(Record { position, bytes });
                        }
                    }
                    Step::Gap(Gap {
                        missing: Some(missing),
                        end,
                        ..
                    }) => {
                        if !records.is_empty() {
                            return Ok(records);
                        }
                        self.pass_damage(drain, &segment, missing, end)?;
                    }
                    // No record is missing there.
                    Step::Gap(_) => {}
                    Step::End => break,
                }
            }
        }
        Ok(records)
    }

    /// The next segment from `number` on that holds durable records which are
    /// not done, the first of those, and where to look for it.
    fn next_to_read(&self, drain: &Drain, number: &mut u64) -> Option<(Segment, u64, u64)> {
        let state = self.state();
        let cursor = drain.cursor();
        loop {
            let segment = state.segment_from(*number)?;
            *number = segment.number + 1;
            if let Some((first, _)) = state.waiting_in(&segment)
                && first <= segment.durable_last
            {
                let offset = if segment.number == cursor.segment {
                    cursor.offset
                } else {
                    FRAMES_AT
                };
                return Some((segment, first, offset));
            }
        }
    }

    /// `None`: the file is not there any more, or is damaged so that it can't be
    /// opened.
    fn open_segment(
        &self,
        drain: &mut Drain,
        segment: &Segment,
    ) -> Result<Option<Arc<dyn StorageFile>>, Error> {
        if let Some((number, file)) = &drain.open
            && *number == segment.number
        {
            return Ok(Some(Arc::clone(file)));
        }
        let name = segment.file();
        match self.storage.open(&name) {
            Err(error) if error.kind() == io::ErrorKind::NotFound || is_damage(&error) => Ok(None),
            opened => {
                let file = self.guard(opened.at("open", &name))?;
                drain.open = Some((segment.number, Arc::clone(&file)));
                Ok(Some(file))
            }
        }
    }

    /// Names damaged records as lost and moves the cursor behind them.
    fn pass_damage(
        &self,
        drain: &mut Drain,
        segment: &Segment,
        (first, last): (u64, u64),
        offset: u64,
    ) -> Result<(), Error> {
        tracing::warn!(
            file = segment.file(), stream = %segment.stream, first, last,
            "records are damaged and can't be delivered"
        );
        self.set_aside(segment.number);
        let mut contents = drain.contents();
        let offered = drain.offered();
        contents.lose(Reason::Damaged, segment.stream, first, last, offered);
        contents.cursor = Cursor {
            segment: segment.number,
            stream: segment.stream,
            sequence: last,
            offset,
        };
        self.commit(drain, contents, true)?;
        self.remove_drained(drain)
    }

    pub(crate) fn ack(&self, position: Position) -> Result<(), Error> {
        let mut drain = lock(&self.drain);
        self.check()?;
        self.advance(&mut drain, position, None)
    }

    /// Moves the cursor behind a record, and names it as lost if there is a
    /// reason.
    fn advance(
        &self,
        drain: &mut Drain,
        position: Position,
        lost: Option<Reason>,
    ) -> Result<(), Error> {
        let Position {
            stream,
            sequence,
            segment,
            resume,
        } = position;
        let cursor = drain.cursor();
        if segment < cursor.segment
            || (segment, stream) == (cursor.segment, cursor.stream) && sequence <= cursor.sequence
        {
            return Ok(());
        }
        let known = self.state().segment_from(segment).is_some_and(|known| {
            (known.number, known.stream) == (segment, stream)
                && (known.first..=known.durable_last).contains(&sequence)
                && (FRAMES_AT..=known.durable_end).contains(&resume)
        });
        if !known {
            return Err(Error::UnknownPosition { position });
        }
        let mut contents = drain.contents();
        if let Some(reason) = lost {
            contents.lose(reason, stream, sequence, sequence, drain.offered());
        }
        contents.cursor = Cursor {
            segment,
            stream,
            sequence,
            offset: resume,
        };
        self.commit(drain, contents, lost.is_some())?;
        self.remove_drained(drain)
    }

    pub(crate) fn reject(&self, position: Position) -> Result<(), Error> {
        let mut drain = lock(&self.drain);
        self.check()?;
        let oldest = self.read(&mut drain, 1, 0)?.pop();
        let Some(record) = oldest.filter(|record| record.position == position) else {
            return Err(Error::NotOldest {
                stream: position.stream,
                sequence: position.sequence,
            });
        };
        if let Err(error) = self.keep_rejected(&record) {
            // That must not keep the records behind it waiting.
            tracing::warn!(%error, stream = %position.stream, sequence = position.sequence,
                "a refused record could not be kept in {REJECTED_DIR}/");
        }
        self.advance(&mut drain, position, Some(Reason::Refused))
    }

    /// Writes a refused record to a file of its own. The oldest of them make
    /// room.
    fn keep_rejected(&self, record: &Record) -> io::Result<()> {
        let bytes = record.bytes();
        let mut kept = self.storage.list(REJECTED_DIR)?;
        kept.retain(|(file, _)| rejected::position(file).is_some());
        kept.sort_unstable();
        let own = bytes.len() as u64;
        let mut total = sum(&kept);
        if own > self.limits.evidence {
            return Ok(());
        }
        for (file, len) in &kept {
            if total.saturating_add(own) <= self.limits.evidence {
                break;
            }
            self.storage.remove(&format!("{REJECTED_DIR}/{file}"))?;
            total = total.saturating_sub(*len);
        }
        self.storage.create_dir(REJECTED_DIR)?;
        let name = rejected::file_name(record.position);
        let file = self.storage.create(&name)?;
        match file.write_at(bytes, 0).and_then(|()| file.sync_data()) {
            Ok(()) => {
                self.state().written += own;
                self.storage.sync_dir(REJECTED_DIR)
            }
            // Half a record is no evidence.
            Err(error) => self.storage.remove(&name).and(Err(error)),
        }
    }

    /// Gives a damaged segment a second name, under which it stays when it is
    /// drained, unless there is as much of that already as is wanted.
    pub(crate) fn set_aside(&self, number: u64) {
        let file = format::segment_file(number);
        let kept = format!("{DAMAGED_DIR}/{file}");
        let linked = self.storage.list(DAMAGED_DIR).and_then(|files| {
            let own = self.state().segment_from(number).map_or(0, |s| s.disk);
            let full = sum(&files).saturating_add(own) > self.limits.evidence;
            if full || files.iter().any(|(name, _)| *name == file) {
                return Ok(());
            }
            self.storage.create_dir(DAMAGED_DIR)?;
            self.storage.link(&file, &kept)?;
            self.storage.sync_dir(DAMAGED_DIR)
        });
        if let Err(error) = linked {
            tracing::warn!(%error, file, "a damaged segment could not be kept in {DAMAGED_DIR}/");
        }
    }

    pub(crate) fn losses(&self) -> Result<Vec<Loss>, Error> {
        let mut drain = lock(&self.drain);
        self.check()?;
        self.save_refused(&mut drain)?;
        let mut losses: Vec<Loss> = drain.ledger.contents().open_losses().collect();
        losses.sort_unstable_by_key(|loss| loss.id);
        if let Some(newest) = losses.last() {
            if !drain.ledger.settled {
                let contents = drain.contents();
                self.commit(&mut drain, contents, true)?;
            }
            drain.ledger.offered = newest.id;
            drain.refused = Refused::default();
        }
        Ok(losses)
    }

    pub(crate) fn confirm(&self, through: u64) -> Result<(), Error> {
        let mut drain = lock(&self.drain);
        self.check()?;
        let mut contents = drain.contents();
        contents.confirm(through.min(drain.offered()));
        if contents.same_losses(drain.ledger.contents()) {
            return Ok(());
        }
        self.commit(&mut drain, contents, true)
    }

    /// Counts appends that were refused after sequence `last`.
    pub(crate) fn count_refused(&self, last: u64, appends: u64) -> Result<(), Error> {
        let mut drain = lock(&self.drain);
        let refused = &mut drain.refused;
        if refused.unsaved == 0 {
            refused.first = last;
        }
        refused.last = last;
        refused.unsaved += appends;
        if let (Some(window), Some(saved_at)) = (self.limits.window, refused.saved_at)
            && refused.unsaved < refused.saved
            && saved_at.elapsed() < window
        {
            return Ok(());
        }
        self.save_refused(&mut drain)
    }

    pub(crate) fn save_refused(&self, drain: &mut Drain) -> Result<(), Error> {
        let Refused {
            unsaved,
            first,
            last,
            ..
        } = drain.refused;
        if unsaved == 0 {
            return Ok(());
        }
        let before = drain.contents();
        let mut contents = before.clone();
        let offered = drain.offered();
        contents.add(Reason::Full, self.stream, first, last, unsaved, offered);
        // A loss that is in both slots already only has a higher number.
        let new = contents.last_id() != before.last_id();
        let committed = self.commit(drain, contents, new);
        // Where only the copy could not be written, they are counted all the same.
        if !drain.ledger.contents().same_losses(&before) {
            drain.refused.saved += unsaved;
            drain.refused.saved_at = Some(Instant::now());
            drain.refused.unsaved = 0;
        }
        committed
    }

    /// Makes new contents of the state file durable, in one slot or both.
    pub(crate) fn commit(
        &self,
        drain: &mut Drain,
        mut contents: Contents,
        both: bool,
    ) -> Result<(), Error> {
        {
            let state = self.state();
            if let Some(newest) = state.segments.back() {
                // The newest may be gone. Until there is a newer one, nothing else tells
                // that its numbers were given out.
                contents.synced = contents.synced.max((newest.number, newest.durable_last));
            }
            let cursor = contents.cursor;
            contents.forget(|loss| {
                let ahead = |s: &Segment| s.stream == loss.stream && s.number > cursor.segment;
                let ended = |e: &Ended| e.stream == loss.stream && e.segment > cursor.segment;
                if loss.stream == cursor.stream {
                    loss.last > cursor.sequence
                } else {
                    // All of it may be gone, and then is found to be so again.
                    state.segments.iter().any(ahead) || self.ended.iter().any(ended)
                }
            });
        }
        let syncs = drain.ledger.syncs;
        let written = if both {
            drain.ledger.commit_both(contents)
        } else {
            drain.ledger.commit(contents)
        };
        // Where only the copy could not be written, the contents hold all the
        // same.
        let contents = drain.ledger.contents();
        let mut state = self.state();
        state.cursor = contents.cursor;
        state.losses = contents.open_losses().count();
        state.written += written.as_ref().unwrap_or(&0);
        state.state_syncs += drain.ledger.syncs - syncs;
        drop(state);
        self.guard(written.at("write", format::STATE_FILE))?;
        Ok(())
    }

    /// Unlinks the segments that are drained.
    pub(crate) fn remove_drained(&self, drain: &mut Drain) -> Result<(), Error> {
        // What a commit says that failed half-way may be in memory only; it must
        // be on the medium before anything is unlinked because of it.
        if !drain.ledger.settled && self.state().oldest_is_drained() {
            let contents = drain.contents();
            self.commit(drain, contents, true)?;
        }
        // Nothing is lost if a power cut brings them back: the cursor is behind them.
        loop {
            let segment = {
                let state = self.state();
                match state.segments.front() {
                    Some(segment) if state.oldest_is_drained() => *segment,
                    _ => return Ok(()),
                }
            };
            let name = segment.file();
            match self.storage.remove(&name) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                result => self.guard(result.at("remove", &name))?,
            }
            drain.open = drain
                .open
                .take()
                .filter(|(open, _)| *open != segment.number);
            let mut state = self.state();
            state.segments.pop_front();
            state.disk = length(&state.segments);
        }
    }

    pub(crate) fn verify(&self) -> Result<Report, Error> {
        self.check()?;
        let segments: Vec<Segment> = self.state().segments.iter().copied().collect();
        let newest = segments.last().map_or(0, |segment| segment.number);
        let mut report = Report::default();
        for segment in segments {
            let name = segment.file();
            let before = report.damage.len();
            match self.storage.open(&name) {
                // Drained meanwhile.
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                Err(error) if is_damage(&error) => {
                    let Segment {
                        stream,
                        first,
                        durable_last,
                        ..
                    } = segment;
                    report.damage.push(Damage {
                        file: name,
                        offset: 0,
                        bytes: segment.disk,
                        lost: (first <= durable_last).then_some((stream, first, durable_last)),
                    });
                    report.segments += 1;
                }
                file => {
                    let file = self.guard(file.at("open", &name))?;
                    examine(&segment, &*file, newest, &mut report);
                }
            }
            self.record_damage(&segment, &report.damage[before..])?;
        }
        Ok(report)
    }

    /// Names the damaged records of a segment as lost that still wait.
    fn record_damage(&self, segment: &Segment, damage: &[Damage]) -> Result<(), Error> {
        let mut drain = lock(&self.drain);
        let Some((waiting, _)) = self.state().waiting_in(segment) else {
            return Ok(());
        };
        let mut contents = drain.contents();
        let offered = drain.offered();
        for (stream, first, last) in damage.iter().filter_map(|damage| damage.lost) {
            contents.lose(Reason::Damaged, stream, first.max(waiting), last, offered);
        }
        if contents.same_losses(drain.ledger.contents()) {
            return Ok(());
        }
        self.set_aside(segment.number);
        self.commit(&mut drain, contents, true)
    }
}

/// Reads one segment, and adds to the report.
pub(crate) fn examine(segment: &Segment, file: &dyn StorageFile, newest: u64, report: &mut Report) {
    let name = segment.file();
    let mut damaged = |place: Range<u64>, lost: Option<(u64, u64)>| {
        report.damage.push(Damage {
            file: name.clone(),
            offset: place.start,
            bytes: place.end - place.start,
            lost: lost.map(|(first, last)| (segment.stream, first, last)),
        });
    };
    let copies = header_copies(file, segment.number, segment.disk);
    for (copy, at) in copies.into_iter().zip([0, FRAMES_AT / 2]) {
        if copy.good().is_none() {
            damaged(at..at + FRAMES_AT / 2, None);
        }
    }
    let mut records = 0;
    let place = FRAMES_AT..segment.durable_end;
    let sequences = (segment.first, segment.durable_last);
    let mut walk = Walk::new(file, segment.seed(), place, sequences, CHUNK);
    let mut end = FRAMES_AT.min(segment.disk);
    loop {
        match walk.step() {
            Step::Frame(frame) => {
                records += u64::from(frame.header.count);
                end = frame.end;
            }
            Step::Gap(gap) => {
                damaged(gap.offset..gap.end, gap.missing);
                end = gap.end;
            }
            Step::End => break,
        }
    }
    // What a crash left behind the end of the newest one is cut by the first append,
    // which also seals it.
    if segment.complete
        && segment.number < newest
        && read_sealed(file, segment.number, segment.disk).is_none()
    {
        damaged(end..segment.disk.max(end), None);
    }
    report.segments += 1;
    report.records += records;
    report.bytes = report.bytes.saturating_add(segment.disk);
}

/// The lengths of files, which somebody may have made up.
fn sum(files: &[(String, u64)]) -> u64 {
    files
        .iter()
        .fold(0, |sum, (_, len)| sum.saturating_add(*len))
}
