//! Appending: sessions, groups, segments that fill and the room for them.

use std::{io, sync::Arc, time::Instant};

use crate::{
    AppendError, Error, MAX_RECORD, Reason,
    drain::Drain,
    error::{At, is_full},
    format::{
        self, FRAME_HEADER, FRAMES_AT, Header, Kind, SEGMENT_OVERHEAD, Sealed, Seed, group_len,
        opened_body, push_frame, push_records,
    },
    ledger::Cursor,
    segment::Segment,
    spool::{Inner, lock},
    storage::{StorageFile, is_damage, sync, sync_dir},
    survey::Start,
};

/// The side that appends.
#[derive(Debug)]
pub(crate) struct Writer {
    /// What is to be done before the first sequence is given out; `None` once
    /// it is done.
    start: Option<Start>,
    active: Option<Active>,
    next_sequence: u64,
    next_segment: u64,
}

/// The segment that is appended to.
#[derive(Debug)]
struct Active {
    number: u64,
    file: Arc<dyn StorageFile>,
    seed: Seed,
    first: u64,
    end: u64,
}

impl Active {
    fn name(&self) -> String {
        format::segment_file(self.number)
    }
}

impl Writer {
    pub(crate) fn new(start: Start, next_sequence: u64, next_segment: u64) -> Self {
        Self {
            start: Some(start),
            active: None,
            next_sequence,
            next_segment,
        }
    }
}

impl Inner {
    pub(crate) fn append<E>(
        &self,
        seal: impl FnOnce(u64) -> Result<Vec<u8>, E>,
        receipt: bool,
    ) -> Result<u64, AppendError<E>> {
        let mut writer = lock(&self.writer);
        if let Err(error) = self.ready(&mut writer, receipt) {
            return Err(self.refuse(&writer, error, 1).into());
        }
        let sequence = writer.next_sequence;
        let record = seal(sequence).map_err(AppendError::Seal)?;
        self.store(&mut writer, &[record], receipt)?;
        Ok(sequence)
    }

    pub(crate) fn append_batch<E, F>(
        &self,
        seals: impl IntoIterator<Item = F>,
    ) -> Result<Vec<Result<u64, E>>, Error>
    where
        F: FnOnce(u64) -> Result<Vec<u8>, E>,
    {
        let mut writer = lock(&self.writer);
        let seals = seals.into_iter();
        if let Err(error) = self.ready(&mut writer, false) {
            return Err(self.refuse(&writer, error, seals.count()));
        }
        let mut records = Vec::new();
        let mut results = Vec::new();
        for seal in seals {
            let sequence = writer.next_sequence + records.len() as u64;
            results.push(seal(sequence).map(|record| {
                records.push(record);
                sequence
            }));
        }
        self.store(&mut writer, &records, false)?;
        Ok(results)
    }

    /// Sees to it that a sequence may be given out.
    fn ready(&self, writer: &mut Writer, receipt: bool) -> Result<(), Error> {
        self.check()?;
        self.admit(receipt)?;
        self.begin(writer)
    }

    fn store(&self, writer: &mut Writer, records: &[Vec<u8>], receipt: bool) -> Result<(), Error> {
        if records.is_empty() {
            return Ok(());
        }
        // The closure may have taken long.
        self.check()?;
        self.write_group(writer, records, receipt)
            .map_err(|error| self.refuse(writer, error, records.len()))
    }

    /// Whether even the smallest record would not fit.
    fn admit(&self, receipt: bool) -> Result<(), Error> {
        let least = SEGMENT_OVERHEAD + (FRAME_HEADER + 4) as u64;
        let (used, drained) = {
            let state = self.state();
            (state.disk, state.newest_is_drained())
        };
        if self.limits.drop_oldest
            || drained
            || used.saturating_add(least) <= self.limits.room(receipt)
        {
            return Ok(());
        }
        Err(Error::Full {
            used,
            cap: self.limits.cap,
        })
    }

    /// Counts records that were not taken for want of room.
    fn refuse(&self, writer: &Writer, error: Error, records: usize) -> Error {
        if matches!(error, Error::Full { .. } | Error::DiskFull { .. }) {
            // If even that can't be written down the spool is poisoned, and
            // says so from the next call on.
            let _ = self.count_refused(writer.next_sequence - 1, records as u64);
        }
        error
    }

    /// Does what has to be durable before a sequence may be given out.
    fn begin(&self, writer: &mut Writer) -> Result<(), Error> {
        match writer.start {
            None if writer.active.is_some() => return Ok(()),
            // A full disk kept a segment from being created before.
            None => {
                self.create_segment(writer)?;
            }
            Some(Start::Resume { closed }) => self.resume(writer, closed)?,
            Some(Start::Create { seal }) => {
                if let Some(sealed) = seal {
                    self.seal_found(sealed)?;
                    writer.start = Some(Start::Create { seal: None });
                }
                self.create_segment(writer)?;
            }
        }
        writer.start = None;
        self.remove_drained(&mut lock(&self.drain))
    }

    /// Goes on in the newest segment, after a session that ended in good order,
    /// or had made each append durable.
    fn resume(&self, writer: &mut Writer, closed: bool) -> Result<(), Error> {
        let Some(segment) = self.state().segments.back().copied() else {
            return Ok(());
        };
        let name = segment.file();
        let file = self.guard(self.storage.open(&name).at("open", &name))?;
        let mut active = Active {
            number: segment.number,
            file,
            seed: segment.seed(),
            first: segment.first,
            end: segment.end,
        };
        let next = writer.next_sequence;
        if closed {
            // That frame may be of a sync that failed: then it is in memory only,
            // and would leave a hole. It is written again, as it is.
            let mut mark = Vec::new();
            let at = active.end - FRAME_HEADER as u64;
            push_frame(
                &mut mark,
                active.seed,
                at,
                Kind::Closed,
                next,
                next - 1,
                &[],
            );
            self.guard(active.file.write_at(&mark, at).at("append to", &name))?;
            self.state().written += mark.len() as u64;
        }
        let body = opened_body(self.limits.window.is_some());
        self.push_mark(&mut active, Kind::Opened, next, next - 1, &body)?;
        self.guard(sync(&*active.file).at("sync", &name))?;

        let mut state = self.state();
        state.syncs += 1;
        state.active = Some(Arc::clone(&active.file));
        if let Some(segment) = state.segments.back_mut() {
            segment.complete = false;
            segment.end = active.end;
            segment.durable_end = active.end;
        }
        drop(state);
        writer.active = Some(active);
        Ok(())
    }

    /// Seals the newest segment as recovery has found it.
    fn seal_found(&self, sealed: Sealed) -> Result<(), Error> {
        let Some(segment) = self.state().segments.back().copied() else {
            return Ok(());
        };
        let name = segment.file();
        let file = match self.storage.open(&name) {
            // Where it ends, the next one's header tells as well.
            Err(error) if is_damage(&error) => return Ok(()),
            opened => self.guard(opened.at("open", &name))?,
        };
        let mut active = Active {
            number: segment.number,
            file,
            seed: segment.seed(),
            first: segment.first,
            end: segment.disk,
        };
        let (next, body) = (sealed.last + 1, sealed.to_body());
        let mut mark = Vec::new();
        push_frame(
            &mut mark,
            active.seed,
            active.end,
            Kind::Sealed,
            next,
            sealed.last,
            &body,
        );
        let done = self
            .try_extend(&mut active, &mark)
            .and_then(|()| sync(&*active.file).at("sync", &name));
        match done {
            // It is longer than a file can be, or damaged so that it can't be written
            // to. It would be so at the next opening, too.
            Err(Error::Io { source, .. }) if is_never_written(&source) => Ok(()),
            done => {
                self.state().syncs += 1;
                self.guard(done)
            }
        }
    }

    /// Completes the active segment and begins another.
    fn roll<'w>(&self, writer: &'w mut Writer) -> Result<&'w mut Active, Error> {
        // Whatever is in a sealed segment is durable.
        self.sync()?;
        if let Some(active) = &mut writer.active {
            let sealed = Sealed {
                stream: self.stream,
                first: active.first,
                last: writer.next_sequence - 1,
                end: active.end,
                stream_end: None,
            };
            let (next, body) = (sealed.last + 1, sealed.to_body());
            self.push_mark(active, Kind::Sealed, next, sealed.last, &body)?;
            self.guard(sync(&*active.file).at("sync", &active.name()))?;
            let mut state = self.state();
            state.syncs += 1;
            state.active = None;
            if let Some(segment) = state.segments.back_mut() {
                segment.complete = true;
            }
            drop(state);
            writer.active = None;
        }
        let active = self.create_segment(writer)?;
        self.remove_drained(&mut lock(&self.drain))?;
        Ok(active)
    }

    fn create_segment<'w>(&self, writer: &'w mut Writer) -> Result<&'w mut Active, Error> {
        let number = writer.next_segment;
        let first = writer.next_sequence;
        let seed = Seed::new(number, self.stream);
        let mut bytes = Header {
            number,
            stream: self.stream,
            first,
            predecessor: self.predecessor,
            ended: self.before.clone(),
        }
        .to_bytes();
        let body = opened_body(self.limits.window.is_some());
        push_frame(&mut bytes, seed, 0, Kind::Opened, first, first - 1, &body);

        let (unfinished, name) = (
            format::unfinished_file(number),
            format::segment_file(number),
        );
        let made = self.storage.create(&unfinished).and_then(|file| {
            file.write_at(&bytes, 0)?;
            sync(&*file)?;
            self.storage.rename(&unfinished, &name)?;
            Ok(file)
        });
        if made.as_ref().is_err_and(is_full) {
            // It would be in the way of whatever frees the room.
            let _ = self.storage.remove(&unfinished);
        }
        let file = self.guard(made.at("create", &name))?;
        self.guard(sync_dir(&*self.storage, "").at("make its name durable", &name))?;

        let end = bytes.len() as u64;
        let mut segment = Segment::durable(number, self.stream, first, first - 1, end, end);
        segment.complete = false;
        let mut state = self.state();
        state.segments.push_back(segment);
        state.active = Some(Arc::clone(&file));
        state.disk = state.disk.saturating_add(end);
        state.written += end;
        state.syncs += 1;
        drop(state);
        writer.next_segment += 1;
        self.note_first_segment(number, first)?;
        Ok(writer.active.insert(Active {
            number,
            file,
            seed,
            first,
            end,
        }))
    }

    /// The state file of a spool that never had a segment does not know the stream,
    /// without which nothing can be read once the segment's header is damaged.
    fn note_first_segment(&self, number: u64, first: u64) -> Result<(), Error> {
        let mut drain = lock(&self.drain);
        let mut contents = drain.contents();
        if contents.cursor.segment > 0 || self.state().segments.len() > 1 {
            return Ok(());
        }
        contents.cursor = Cursor {
            segment: number,
            stream: self.stream,
            sequence: first - 1,
            offset: FRAMES_AT,
        };
        match self.commit(&mut drain, contents, false) {
            // It is known with the first acknowledgement.
            Err(Error::DiskFull { .. }) => Ok(()),
            result => result,
        }
    }

    /// Writes a group behind what is there, and makes it durable if each append
    /// is to be.
    fn write_group(
        &self,
        writer: &mut Writer,
        records: &[Vec<u8>],
        receipt: bool,
    ) -> Result<(), Error> {
        let len = group_len(records);
        let (bytes, limit) = match records.iter().find(|record| record.len() > MAX_RECORD) {
            Some(record) => (record.len() as u64, MAX_RECORD as u64),
            None => (len, self.limits.largest_group(receipt)),
        };
        if bytes > limit {
            return Err(Error::TooLarge { bytes, limit });
        }
        self.make_room(writer, len + SEGMENT_OVERHEAD, receipt)?;
        let first = writer.next_sequence;
        let active = match &mut writer.active {
            Some(active)
                if active.first == first || active.end + len <= self.limits.segment_size =>
            {
                active
            }
            _ => self.roll(writer)?,
        };
        let synced = self
            .state()
            .segments
            .back()
            .map_or(0, |segment| segment.durable_last);
        let mut bytes = Vec::with_capacity(len as usize);
        push_records(&mut bytes, active.seed, active.end, first, synced, records);
        self.extend(active, &bytes)?;
        writer.next_sequence += records.len() as u64;

        let mut state = self.state();
        state.appended += records.len() as u64;
        state.next_sequence = writer.next_sequence;
        if let Some(segment) = state.segments.back_mut() {
            segment.last = writer.next_sequence - 1;
            segment.end = segment.disk;
        }
        if self.limits.window.is_none() {
            drop(state);
            return self.sync();
        }
        if state.unsynced_since.is_none() {
            state.unsynced_since = Some(Instant::now());
            self.changed.notify_all();
        }
        // Nothing syncs any more once a sync has failed.
        state.check()
    }

    /// Sees to it that so many bytes more stay below the cap.
    fn make_room(&self, writer: &mut Writer, bytes: u64, receipt: bool) -> Result<(), Error> {
        loop {
            let (used, drained, segments) = {
                let state = self.state();
                (state.disk, state.newest_is_drained(), state.segments.len())
            };
            if used.saturating_add(bytes) <= self.limits.room(receipt) {
                return Ok(());
            }
            if drained {
                self.roll(writer)?;
            } else if !self.limits.drop_oldest {
                return Err(Error::Full {
                    used,
                    cap: self.limits.cap,
                });
            } else if segments > 1 {
                self.drop_oldest(&mut lock(&self.drain))?;
            } else {
                self.roll(writer)?;
            }
        }
    }

    /// Takes the oldest segment away. What waits in it is lost.
    fn drop_oldest(&self, drain: &mut Drain) -> Result<(), Error> {
        let (segment, waiting) = {
            let state = self.state();
            let Some(segment) = state.segments.front().copied() else {
                return Ok(());
            };
            (segment, state.waiting_in(&segment))
        };
        if let Some((first, last)) = waiting {
            let mut contents = drain.contents();
            let offered = drain.offered();
            contents.lose(Reason::Dropped, segment.stream, first, last, offered);
            contents.cursor = Cursor {
                segment: segment.number,
                stream: segment.stream,
                sequence: last,
                offset: segment.end,
            };
            self.commit(drain, contents, true)?;
            tracing::warn!(
                stream = %segment.stream, first, last,
                "the spool is full: the oldest records were dropped"
            );
        }
        self.remove_drained(drain)
    }

    /// Appends a frame without records.
    fn push_mark(
        &self,
        active: &mut Active,
        kind: Kind,
        first: u64,
        synced: u64,
        body: &[u8],
    ) -> Result<(), Error> {
        let mut bytes = Vec::new();
        push_frame(
            &mut bytes,
            active.seed,
            active.end,
            kind,
            first,
            synced,
            body,
        );
        self.extend(active, &bytes)
    }

    /// Writes bytes at the end of the active segment. On a full disk all is as
    /// it was before.
    fn extend(&self, active: &mut Active, bytes: &[u8]) -> Result<(), Error> {
        self.guard(self.try_extend(active, bytes))
    }

    /// As `extend`, but an error poisons nothing yet.
    fn try_extend(&self, active: &mut Active, bytes: &[u8]) -> Result<(), Error> {
        let name = active.name();
        if let Err(error) = active.file.write_at(bytes, active.end) {
            if is_full(&error) {
                let undone = active
                    .file
                    .set_len(active.end)
                    .and_then(|()| sync(&*active.file));
                undone.map_err(io::Error::other).at("shorten", &name)?;
            }
            return Err(error).at("append to", &name);
        }
        active.end += bytes.len() as u64;
        let mut state = self.state();
        state.written += bytes.len() as u64;
        state.disk = state.disk.saturating_add(bytes.len() as u64);
        if let Some(segment) = state.segments.back_mut() {
            segment.disk = active.end;
        }
        Ok(())
    }

    /// Ends the session: everything is synced, and a last frame says so.
    pub(crate) fn finish(&self) -> Result<(), Error> {
        let mut writer = lock(&self.writer);
        self.check()?;
        let mut drain = lock(&self.drain);
        self.save_refused(&mut drain)?;
        if writer.start.is_some() {
            return Ok(());
        }
        self.sync()?;
        let next = writer.next_sequence;
        let marked = match &mut writer.active {
            None => Ok(()),
            Some(active) => self
                .push_mark(active, Kind::Closed, next, next - 1, &[])
                .and_then(|()| self.guard(sync(&*active.file).at("sync", &active.name()))),
        };
        if matches!(marked, Ok(()) | Err(Error::DiskFull { .. })) {
            // Also in the state file, which takes no room, so that damage to the
            // very end of the log is known for what it is.
            let contents = drain.contents();
            self.commit(&mut drain, contents, false)?;
        }
        marked
    }
}

/// Whether writing to a file fails for what the file is, and not for want of anything.
fn is_never_written(error: &io::Error) -> bool {
    use io::ErrorKind::{FileTooLarge, InvalidData, InvalidInput};
    matches!(error.kind(), FileTooLarge | InvalidData | InvalidInput)
}
