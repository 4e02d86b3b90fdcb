use std::{
    collections::VecDeque,
    fmt, io,
    path::Path,
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    thread::JoinHandle,
    time::{Duration, Instant},
};

use crate::{
    AppendError, Engine, Error, Loss, Options, Position, Predecessor, Record, Report, Stats,
    StreamId,
    drain::Drain,
    error::At,
    format::{self, Ended},
    ledger::Cursor,
    options::{self, Limits},
    recover::recover,
    segment::Segment,
    storage::{Directory, Lock, Storage, StorageFile, sync},
    writer::Writer,
};

#[cfg(feature = "sled")]
use crate::storage::SledDirectory;

/// An ordered queue of byte records in a directory.
///
/// All methods take `&self`; put it in an [`Arc`] to append on one thread and
/// drain on another. [`peek`](Self::peek), [`ack`](Self::ack) and
/// [`stats`](Self::stats) never wait for a closure that makes a record. While
/// the value lives, the directory is locked.
///
/// Dropping it closes the spool; [`close`](Self::close) does the same and tells
/// of errors.
pub struct Spool {
    inner: Arc<Inner>,
    syncer: Option<JoinHandle<()>>,
}

impl Spool {
    /// Opens the spool in a directory, which is made if it is missing (mode
    /// 0700, files 0600), and recovers what a crash has left.
    ///
    /// Only the newest segment is read; damage in older ones is found when
    /// reading comes to it, or by [`verify`](Self::verify). On a full disk a
    /// spool that exists can be opened and drained. (The engine `sled` reads all
    /// segments, and needs some room to open.)
    ///
    /// # Errors
    ///
    /// - [`Error::Locked`]: somebody has it open.
    /// - [`Error::UnsupportedFormat`]: a newer program wrote it. Nothing was
    ///   changed.
    /// - [`Error::OtherEngine`]: it is a spool of another engine. Nothing was
    ///   changed.
    /// - [`Error::NotASpool`], [`Error::InvalidOptions`].
    /// - [`Error::Io`], [`Error::DiskFull`]: the directory can't be read, or a
    ///   new one not be made.
    pub fn open(directory: impl AsRef<Path>, options: Options) -> Result<Self, Error> {
        let limits = Limits::new(&options)?;
        let path = directory.as_ref();
        let name = path.display().to_string();
        if let Some(found) = engine_in(path, options.engine).at("list", &name)? {
            return Err(Error::OtherEngine {
                dir: name,
                found,
                asked: options.engine.name(),
            });
        }
        let directory = Directory::new(path).at("make the directory", &name)?;
        let storage: Arc<dyn Storage> = match options.engine {
            Engine::Log => Arc::new(directory),
            #[cfg(feature = "sled")]
            Engine::Sled => Arc::new(SledDirectory::new(directory, path)),
        };
        Self::start(storage, limits)
    }

    /// Opens a spool on storage of the caller's, which takes the place of the
    /// engine.
    ///
    /// # Errors
    ///
    /// As [`open`](Self::open).
    #[cfg(feature = "fault-injection")]
    pub fn open_on(storage: Arc<dyn Storage>, options: Options) -> Result<Self, Error> {
        Self::start(storage, Limits::new(&options)?)
    }

    fn start(storage: Arc<dyn Storage>, limits: Limits) -> Result<Self, Error> {
        let inner = Arc::new(Inner::open(storage, limits)?);
        let syncer = match inner.limits.window {
            None => None,
            Some(window) => {
                let inner = Arc::clone(&inner);
                let thread = std::thread::Builder::new()
                    .name("zk-spool sync".to_owned())
                    .spawn(move || inner.sync_within(window))
                    .at("start the thread that syncs", "zk-spool")?;
                Some(thread)
            }
        };
        Ok(Self { inner, syncer })
    }

    /// The stream that appends go to. It is the same for as long as the spool
    /// is open, and known before the first append.
    pub fn stream(&self) -> StreamId {
        self.inner.stream
    }

    /// What came before the current stream, if anything did. Whoever appends
    /// the stream's first record (sequence 1) should name it there.
    pub fn predecessor(&self) -> Option<Predecessor> {
        self.inner.predecessor
    }

    /// Appends the record that the closure makes, knowing its sequence number,
    /// and returns that number.
    ///
    /// When it returns, the record is durable, or will be within the window
    /// ([`SyncPolicy`](crate::SyncPolicy)). Numbers have no gaps: a closure that fails, or whose record is
    /// not taken, has used none, and the next one is given the same. Appends
    /// wait for each other; the closure must not append.
    ///
    /// If the spool is known to be full the closure is not called.
    ///
    /// # Errors
    ///
    /// - [`AppendError::Seal`]: what the closure returned.
    /// - [`Error::Full`], [`Error::DiskFull`]: no room, which is counted as a
    ///   loss.
    /// - [`Error::TooLarge`]: over [`MAX_RECORD`](crate::MAX_RECORD), or too large for the cap.
    /// - [`Error::Io`], [`Error::Poisoned`]: it is not known whether the record
    ///   is on the medium.
    pub fn append_with<E>(
        &self,
        seal: impl FnOnce(u64) -> Result<Vec<u8>, E>,
    ) -> Result<u64, AppendError<E>> {
        self.inner.append(seal, false)
    }

    /// Appends the records of several closures as one group, with one sync.
    ///
    /// Returns one entry for each closure, in order: the record's number, or
    /// the closure's error. The others are appended all the same; they are
    /// numbered without gaps. Until it returns, a crash may keep none of the
    /// group or a part from its beginning.
    ///
    /// # Errors
    ///
    /// As [`append_with`](Self::append_with); nothing of the group is stored then.
    pub fn append_batch_with<E, F>(
        &self,
        seals: impl IntoIterator<Item = F>,
    ) -> Result<Vec<Result<u64, E>>, Error>
    where
        F: FnOnce(u64) -> Result<Vec<u8>, E>,
    {
        self.inner.append_batch(seals)
    }

    /// As [`append_with`](Self::append_with), for a record that says what was
    /// lost: room is kept for it below the cap, so that a full spool can take
    /// it.
    ///
    /// # Errors
    ///
    /// As [`append_with`](Self::append_with).
    pub fn append_receipt_with<E>(
        &self,
        seal: impl FnOnce(u64) -> Result<Vec<u8>, E>,
    ) -> Result<u64, AppendError<E>> {
        self.inner.append(seal, true)
    }

    /// Counts records that the caller gave up before they had a number, as if
    /// it had offered them and found the spool full.
    ///
    /// # Errors
    ///
    /// [`Error::Io`], [`Error::Poisoned`].
    pub fn refuse(&self, records: u64) -> Result<(), Error> {
        self.inner.check()?;
        let last = self.inner.state().next_sequence - 1;
        self.inner.count_refused(last, records)
    }

    /// Makes durable what was appended so far.
    ///
    /// # Errors
    ///
    /// [`Error::Io`], [`Error::Poisoned`].
    pub fn sync(&self) -> Result<(), Error> {
        self.inner.check()?;
        self.inner.sync()
    }

    /// The oldest records that wait, in order, across streams; durable ones
    /// only. At most `max_records`, and at most `max_bytes` of content, but at
    /// least one if there is one. They stay until acknowledged.
    ///
    /// Comes upon damage, and records it as a loss, when that is what is
    /// oldest.
    ///
    /// # Errors
    ///
    /// [`Error::Io`], [`Error::Poisoned`], [`Error::DiskFull`].
    pub fn peek(&self, max_records: usize, max_bytes: usize) -> Result<Vec<Record>, Error> {
        self.inner.peek(max_records, max_bytes)
    }

    /// Waits until there is something to peek at (`true`), or time is up
    /// (`false`).
    ///
    /// # Errors
    ///
    /// [`Error::Poisoned`].
    pub fn wait(&self, timeout: Duration) -> Result<bool, Error> {
        self.inner.wait(timeout)
    }

    /// Marks everything up to and with this record as delivered, durably.
    /// Segments that are drained are unlinked at once. A position that was
    /// passed before changes nothing.
    ///
    /// # Errors
    ///
    /// [`Error::UnknownPosition`], [`Error::Io`], [`Error::Poisoned`],
    /// [`Error::DiskFull`] (on file systems that need room to overwrite).
    pub fn ack(&self, position: Position) -> Result<(), Error> {
        self.inner.ack(position)
    }

    /// Sets the oldest waiting record aside, because the receiver refused it
    /// for good: it goes to `rejected/`, if there is room, and is named as a
    /// loss.
    ///
    /// # Errors
    ///
    /// [`Error::NotOldest`], and as [`ack`](Self::ack).
    pub fn reject(&self, position: Position) -> Result<(), Error> {
        self.inner.reject(position)
    }

    /// What was lost and is not confirmed, by ascending id. What is returned
    /// is durable, and no entry of it changes any more.
    ///
    /// # Errors
    ///
    /// [`Error::Io`], [`Error::Poisoned`], [`Error::DiskFull`].
    pub fn losses(&self) -> Result<Vec<Loss>, Error> {
        self.inner.losses()
    }

    /// Forgets the losses with ids up to this one, of those that
    /// [`losses`](Self::losses) has returned since the spool was opened. To be
    /// called when a record that names them is where nothing takes it away again:
    /// delivered, if the spool drops its oldest records when it is full, and
    /// durable at least (after [`sync`](Self::sync), where appends are not).
    ///
    /// # Errors
    ///
    /// As [`losses`](Self::losses).
    pub fn confirm(&self, through: u64) -> Result<(), Error> {
        self.inner.confirm(through)
    }

    /// Counts, without touching the disk.
    ///
    /// # Errors
    ///
    /// [`Error::Poisoned`].
    pub fn stats(&self) -> Result<Stats, Error> {
        self.inner.stats()
    }

    /// Reads all segments, and reports what is not as it was written. Damaged
    /// records that still wait are recorded as lost.
    ///
    /// # Errors
    ///
    /// [`Error::Io`], [`Error::Poisoned`], [`Error::DiskFull`].
    pub fn verify(&self) -> Result<Report, Error> {
        self.inner.verify()
    }

    /// Syncs, notes on disk that the spool was closed in good order, and
    /// unlocks it.
    ///
    /// # Errors
    ///
    /// [`Error::Io`], [`Error::Poisoned`], [`Error::DiskFull`]. The spool is
    /// closed even so, and the next opening recovers.
    pub fn close(mut self) -> Result<(), Error> {
        self.shut()
    }

    fn shut(&mut self) -> Result<(), Error> {
        let first_time = !std::mem::replace(&mut self.inner.state().closing, true);
        self.inner.changed.notify_all();
        if let Some(syncer) = self.syncer.take() {
            // Its panic would be one of ours; there is nothing to add to it.
            let _ = syncer.join();
        }
        if first_time {
            self.inner.finish()
        } else {
            Ok(())
        }
    }
}

impl Drop for Spool {
    fn drop(&mut self) {
        if let Err(error) = self.shut() {
            tracing::warn!(%error, "the spool could not be closed in good order");
        }
    }
}

impl fmt::Debug for Spool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Spool")
            .field("directory", &self.inner.storage.name())
            .field("stream", &self.inner.stream)
            .finish_non_exhaustive()
    }
}

/// The spool without its thread. Locks are taken in the order of the fields;
/// only `writer` is held while a closure runs, and only `state` is held without
/// reading or writing files.
pub(crate) struct Inner {
    pub(crate) storage: Arc<dyn Storage>,
    pub(crate) limits: Limits,
    pub(crate) stream: StreamId,
    pub(crate) predecessor: Option<Predecessor>,
    /// The streams before this one that left a trace, newest first.
    pub(crate) before: Vec<Ended>,
    /// All streams that are known to be over.
    pub(crate) ended: Vec<Ended>,
    pub(crate) writer: Mutex<Writer>,
    pub(crate) drain: Mutex<Drain>,
    /// Held during a sync of the active segment: an error must be known before
    /// the next one can succeed.
    syncing: Mutex<()>,
    state: Mutex<State>,
    /// Records became durable, the first one waits to, or the end has come.
    pub(crate) changed: Condvar,
    _lock: Lock,
}

/// What all sides share.
pub(crate) struct State {
    failed: Option<Failure>,
    closing: bool,
    /// Oldest first; the last one is the newest there is, whether it is
    /// appended to or not.
    pub(crate) segments: VecDeque<Segment>,
    /// The file of the newest segment while it is appended to.
    pub(crate) active: Option<Arc<dyn StorageFile>>,
    pub(crate) cursor: Cursor,
    pub(crate) next_sequence: u64,
    pub(crate) losses: usize,
    /// Bytes of all segments.
    pub(crate) disk: u64,
    /// When the oldest record was appended that is not durable.
    pub(crate) unsynced_since: Option<Instant>,
    pub(crate) appended: u64,
    pub(crate) syncs: u64,
    pub(crate) state_syncs: u64,
    pub(crate) written: u64,
}

#[derive(Clone)]
struct Failure {
    action: &'static str,
    file: String,
    source: Arc<io::Error>,
}

impl Inner {
    fn open(storage: Arc<dyn Storage>, limits: Limits) -> Result<Self, Error> {
        let marker = format::MARKER_FILE;
        let lock_held = storage
            .lock(marker)
            .at("lock", marker)?
            .ok_or_else(|| Error::Locked {
                dir: storage.name(),
                holder: storage.lock_holder(marker),
            })?;
        let found = recover(&*storage)?;
        let inner = Self {
            stream: found.stream,
            predecessor: found.predecessor,
            before: found.before,
            ended: found.ended,
            writer: Mutex::new(Writer::new(
                found.start,
                found.next_sequence,
                found.next_segment,
            )),
            state: Mutex::new(State {
                failed: None,
                closing: false,
                disk: length(&found.segments),
                segments: found.segments,
                active: None,
                cursor: found.ledger.contents().cursor,
                next_sequence: found.next_sequence,
                losses: found.ledger.contents().open_losses().count(),
                unsynced_since: None,
                appended: 0,
                syncs: 0,
                state_syncs: 0,
                written: 0,
            }),
            drain: Mutex::new(Drain::new(found.ledger)),
            syncing: Mutex::new(()),
            changed: Condvar::new(),
            storage,
            limits,
            _lock: lock_held,
        };
        for number in found.damaged {
            inner.set_aside(number);
        }
        inner.remove_drained(&mut lock(&inner.drain))?;
        Ok(inner)
    }

    pub(crate) fn state(&self) -> MutexGuard<'_, State> {
        lock(&self.state)
    }

    /// Whether the spool may go on.
    pub(crate) fn check(&self) -> Result<(), Error> {
        self.state().check()
    }

    /// Lets a result pass, and poisons the spool if it is an I/O error.
    pub(crate) fn guard<T>(&self, result: Result<T, Error>) -> Result<T, Error> {
        if let Err(Error::Io {
            action,
            file,
            source,
        }) = &result
        {
            tracing::error!(action, file, %source, "the spool stops until it is opened again");
            self.state().failed.get_or_insert(Failure {
                action,
                file: file.clone(),
                source: Arc::clone(source),
            });
            self.changed.notify_all();
        }
        result
    }

    /// Makes durable what the active segment holds now.
    pub(crate) fn sync(&self) -> Result<(), Error> {
        let _one_at_a_time = lock(&self.syncing);
        self.check()?;
        let (file, segment) = {
            let mut state = self.state();
            let (Some(file), Some(segment)) = (state.active.clone(), state.segments.back()) else {
                return Ok(());
            };
            if segment.end == segment.durable_end {
                return Ok(());
            }
            let segment = *segment;
            state.unsynced_since = None;
            (file, segment)
        };
        self.guard(sync(&*file).at("sync", &segment.file()))?;
        let mut state = self.state();
        state.syncs += 1;
        if let Some(synced) = state
            .segments
            .iter_mut()
            .rev()
            .find(|candidate| candidate.number == segment.number)
        {
            synced.durable_end = synced.durable_end.max(segment.end);
            synced.durable_last = synced.durable_last.max(segment.last);
        }
        drop(state);
        self.changed.notify_all();
        Ok(())
    }

    /// What the thread does that syncs within the window.
    fn sync_within(&self, window: Duration) {
        let mut state = self.state();
        while !state.closing && state.failed.is_none() {
            let Some(since) = state.unsynced_since else {
                state = wait(self.changed.wait(state));
                continue;
            };
            let left = window.saturating_sub(since.elapsed());
            if left > Duration::ZERO {
                state = wait(self.changed.wait_timeout(state, left)).0;
                continue;
            }
            drop(state);
            // An error has poisoned the spool, which ends the loop and tells
            // whoever calls next.
            let _ = self.sync();
            state = self.state();
        }
    }

    fn wait(&self, timeout: Duration) -> Result<bool, Error> {
        let deadline = Instant::now().checked_add(timeout);
        loop {
            // Under the lock that the wait gives up, or a failure between the two
            // would wake nobody.
            let state = self.state();
            state.check()?;
            if state.has_waiting() {
                return Ok(true);
            }
            let left = deadline.map_or(Duration::MAX, |deadline| {
                deadline.saturating_duration_since(Instant::now())
            });
            if left.is_zero() {
                return Ok(false);
            }
            drop(wait(self.changed.wait_timeout(state, left)));
        }
    }

    fn stats(&self) -> Result<Stats, Error> {
        self.check()?;
        Ok(self.state().stats(self.stream))
    }
}

impl State {
    /// Whether the spool may go on.
    pub(crate) fn check(&self) -> Result<(), Error> {
        match self.failed.clone() {
            None => Ok(()),
            Some(Failure {
                action,
                file,
                source,
            }) => Err(Error::Poisoned {
                action,
                file,
                source,
            }),
        }
    }

    /// The oldest segment that may hold something to read, and where.
    pub(crate) fn segment_from(&self, number: u64) -> Option<Segment> {
        let at = self
            .segments
            .partition_point(|segment| segment.number < number);
        self.segments.get(at).copied()
    }

    /// The sequences of a segment that are not done yet, durable or not.
    pub(crate) fn waiting_in(&self, segment: &Segment) -> Option<(u64, u64)> {
        let first = match segment.number.cmp(&self.cursor.segment) {
            std::cmp::Ordering::Less => return None,
            std::cmp::Ordering::Equal => segment.first.max(self.cursor.sequence + 1),
            std::cmp::Ordering::Greater => segment.first,
        };
        (first <= segment.last).then_some((first, segment.last))
    }

    /// Whether the oldest segment can go. The newest never can: it is what tells
    /// which sequence comes next.
    pub(crate) fn oldest_is_drained(&self) -> bool {
        self.segments.len() > 1
            && self
                .segments
                .front()
                .is_some_and(|segment| self.waiting_in(segment).is_none())
    }

    /// Whether the newest segment takes room for nothing that waits.
    pub(crate) fn newest_is_drained(&self) -> bool {
        self.segments.back().is_some_and(|segment| {
            segment.disk > format::SEGMENT_OVERHEAD && self.waiting_in(segment).is_none()
        })
    }

    fn has_waiting(&self) -> bool {
        self.segments.iter().any(|segment| {
            self.waiting_in(segment)
                .is_some_and(|(first, _)| first <= segment.durable_last)
        })
    }

    fn stats(&self, stream: StreamId) -> Stats {
        let mut stats = Stats {
            stream,
            next_sequence: self.next_sequence,
            oldest: None,
            newest: None,
            records: 0,
            unsynced: 0,
            bytes: 0,
            disk_bytes: self.disk,
            segments: self.segments.len(),
            acked: (self.cursor.sequence > 0).then_some((self.cursor.stream, self.cursor.sequence)),
            losses: self.losses,
            appended: self.appended,
            syncs: self.syncs,
            state_syncs: self.state_syncs,
            written: self.written,
        };
        for segment in &self.segments {
            let Some((first, last)) = self.waiting_in(segment) else {
                continue;
            };
            let from = if segment.number == self.cursor.segment {
                self.cursor.offset
            } else {
                format::FRAMES_AT
            };
            stats.oldest = stats.oldest.or(Some((segment.stream, first)));
            stats.newest = Some((segment.stream, last));
            stats.records = stats.records.saturating_add(last - first + 1);
            stats.unsynced += segment.last - segment.durable_last;
            stats.bytes = stats.bytes.saturating_add(segment.end.saturating_sub(from));
        }
        stats
    }
}

/// Bytes of all segments. Files that somebody made up may be longer, together, than
/// can be counted.
pub(crate) fn length(segments: &VecDeque<Segment>) -> u64 {
    segments
        .iter()
        .fold(0, |sum, segment| sum.saturating_add(segment.disk))
}

/// The engine of the segments in a directory, if it is another one than `asked`.
pub(crate) fn engine_in(directory: &Path, asked: Engine) -> io::Result<Option<&'static str>> {
    let entries = match directory.read_dir() {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        entries => entries?,
    };
    for entry in entries {
        let entry = entry?;
        let (name, kind) = (entry.file_name(), entry.file_type()?);
        let Some(name) = name.to_str() else {
            continue;
        };
        let found = if kind.is_file() && format::segment_number(name).is_some() {
            options::LOG
        } else if kind.is_dir() && format::generation_number(name).is_some() {
            options::SLED
        } else {
            continue;
        };
        if found != asked.name() {
            return Ok(Some(found));
        }
    }
    Ok(None)
}

/// A closure of the caller's may have panicked with a lock held. Nothing of
/// ours is half done then: it is called between steps.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn wait<T>(result: Result<T, PoisonError<T>>) -> T {
    result.unwrap_or_else(PoisonError::into_inner)
}
