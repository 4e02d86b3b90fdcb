//! Segments as [sled](::sled) databases, and around sled what it takes to keep
//! what it has acknowledged.
//!
//! A segment is a *generation*: a database of its own, in a directory of its own.
//! What is written to it stands in there in pieces, under the offset of each; so
//! frames keep their checksums, and what sled silently loses is noticed. Cursor,
//! losses and everything else are files, as with the engine `log`.

use std::{
    collections::HashMap,
    fmt,
    fs::{self, DirBuilder, File, OpenOptions, Permissions},
    io,
    os::unix::fs::{DirBuilderExt, FileExt, MetadataExt, OpenOptionsExt, PermissionsExt},
    panic::{AssertUnwindSafe, catch_unwind},
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, PoisonError, Weak,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use ::sled::{Batch, Db, IVec, Mode};
use rustix::{
    fs::{FallocateFlags, OFlags, fallocate, fstatvfs},
    io::Errno,
};

use super::{Directory, Lock, Storage, StorageFile};
use crate::format;

/// A directory of the real file system whose segments are sled databases.
#[derive(Debug)]
pub struct SledDirectory {
    directory: Directory,
    path: PathBuf,
    generations: Mutex<Generations>,
}

#[derive(Debug, Default)]
struct Generations {
    /// A database can be open once.
    open: HashMap<u64, Weak<Generation>>,
    /// Opening one takes long: those used last stay open.
    recent: Vec<(u64, Arc<Generation>)>,
}

impl SledDirectory {
    /// The same directory twice.
    pub(crate) fn new(directory: Directory, path: &Path) -> Self {
        Self {
            directory,
            path: path.to_owned(),
            generations: Mutex::default(),
        }
    }

    fn generation(&self, number: u64, create: bool) -> io::Result<Arc<dyn StorageFile>> {
        let mut generations = lock(&self.generations);
        let known = generations.open.get(&number).and_then(Weak::upgrade);
        let generation = match known {
            Some(known) if !create => known,
            _ => {
                let path = self.path.join(format::generation_dir(number));
                // Only one beside it stays open. It is the other one that is
                // appended to, and held by whoever appends.
                generations.recent.truncate(1);
                let opened = Arc::new(if create {
                    Generation::create(path)?
                } else {
                    Generation::open(path)?
                });
                generations.open.insert(number, Arc::downgrade(&opened));
                opened
            }
        };
        generations.recent.retain(|(other, _)| *other != number);
        generations
            .recent
            .insert(0, (number, Arc::clone(&generation)));
        generations.recent.truncate(2);
        Ok(generation)
    }

    fn forget(&self, number: u64) {
        let mut generations = lock(&self.generations);
        generations.open.remove(&number);
        generations.recent.retain(|(other, _)| *other != number);
    }

    /// The directories of generations below one, with whether they are complete,
    /// and the lengths of their databases.
    fn list_generations(&self, below: &Path) -> io::Result<Vec<(u64, bool, u64)>> {
        let entries = match below.read_dir() {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            entries => entries?,
        };
        let mut found = Vec::new();
        for entry in entries {
            let entry = entry?;
            let name = entry.file_name();
            let number = name.to_str().and_then(format::generation_number);
            let Some(number) = number.filter(|_| entry.file_type().is_ok_and(|t| t.is_dir()))
            else {
                continue;
            };
            let complete = entry.path().join(COMPLETE).symlink_metadata().is_ok();
            let len = entry.path().join(DB).symlink_metadata();
            found.push((number, complete, len.map_or(0, |metadata| metadata.len())));
        }
        Ok(found)
    }
}

impl Storage for SledDirectory {
    fn name(&self) -> String {
        self.directory.name()
    }

    fn lock(&self, file: &str) -> io::Result<Option<Lock>> {
        self.directory.lock(file)
    }

    fn lock_holder(&self, file: &str) -> Option<u32> {
        self.directory.lock_holder(file)
    }

    /// Generations under the names of segments. Their lengths are those of the
    /// databases; what is in them only they know.
    fn list(&self, subdirectory: &str) -> io::Result<Vec<(String, u64)>> {
        let mut files = self.directory.list(subdirectory)?;
        let below = self.path.join(subdirectory);
        for (number, complete, len) in self.list_generations(&below)? {
            let complete = complete || !subdirectory.is_empty();
            files.push(if complete {
                (format::segment_file(number), len)
            } else {
                (format::unfinished_file(number), len)
            });
        }
        Ok(files)
    }

    fn open(&self, file: &str) -> io::Result<Arc<dyn StorageFile>> {
        match format::segment_number(file) {
            Some(number) => self.generation(number, false),
            None => self.directory.open(file),
        }
    }

    fn create(&self, file: &str) -> io::Result<Arc<dyn StorageFile>> {
        match format::unfinished_number(file) {
            Some(number) => {
                self.remove(file).or_else(|error| match error.kind() {
                    io::ErrorKind::NotFound => Ok(()),
                    _ => Err(error),
                })?;
                self.generation(number, true)
            }
            None => self.directory.create(file),
        }
    }

    fn create_dir(&self, subdirectory: &str) -> io::Result<()> {
        self.directory.create_dir(subdirectory)
    }

    /// A generation keeps the name of its directory, by which sled knows it; a
    /// file in it tells that it is complete.
    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        match format::unfinished_number(from) {
            Some(number) if format::segment_number(to) == Some(number) => {
                let path = self.path.join(format::generation_dir(number));
                options().create_new(true).open(path.join(COMPLETE))?;
                sync_directory(&path)
            }
            _ => self.directory.rename(from, to),
        }
    }

    fn link(&self, from: &str, to: &str) -> io::Result<()> {
        let Some(number) = format::segment_number(from) else {
            return self.directory.link(from, to);
        };
        let name = format::generation_dir(number);
        let (from, to) = (
            self.path.join(&name),
            self.path.join(to).with_file_name(name),
        );
        DirBuilder::new().mode(0o700).create(&to)?;
        let link = || {
            for entry in from.read_dir()? {
                let entry = entry?;
                if entry.file_type()?.is_file() {
                    fs::hard_link(entry.path(), to.join(entry.file_name()))?;
                }
            }
            sync_directory(&to)
        };
        link().inspect_err(|_| {
            // Half of it is nothing to look at, and would pass for all of it.
            let _ = fs::remove_dir_all(&to);
        })
    }

    /// A generation that is complete is none any more, durably, before anything of
    /// it goes.
    fn remove(&self, file: &str) -> io::Result<()> {
        let number = format::segment_number(file).or_else(|| format::unfinished_number(file));
        let Some(number) = number else {
            return self.directory.remove(file);
        };
        let path = self.path.join(format::generation_dir(number));
        if !path.symlink_metadata()?.is_dir() {
            return self.directory.remove(file);
        }
        self.forget(number);
        match fs::remove_file(path.join(COMPLETE)) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            removed => removed.and_then(|()| sync_directory(&path))?,
        }
        fs::remove_dir_all(&path)
    }

    fn sync_dir(&self, subdirectory: &str) -> io::Result<()> {
        self.directory.sync_dir(subdirectory)
    }
}

/// One open database.
struct Generation {
    path: PathBuf,
    /// Taken out only when it is dropped.
    db: Option<Db>,
    /// Our own handle to sled's file, which sled itself does not sync.
    file: File,
    /// Where the pieces ended that were durable, so that it is noticed when sled
    /// opens with less. Not synced: a crash of the system may leave less in it.
    known: File,
    writing: Mutex<Writing>,
    /// Where the pieces end.
    end: AtomicU64,
    /// How many bytes of pieces are durable, of those that `Writing` counts.
    durable: AtomicU64,
    /// A call failed that changes something: nothing more counts as durable.
    failed: AtomicBool,
}

#[derive(Debug)]
struct Writing {
    /// Bytes of pieces written since it was opened.
    written: u64,
    /// Whether the names of the files, and those beside the database, are durable.
    settled: bool,
}

impl Generation {
    fn create(path: PathBuf) -> io::Result<Self> {
        DirBuilder::new().mode(0o700).create(&path)?;
        DirBuilder::new().mode(0o700).create(path.join(BLOBS))?;
        let file = options().create_new(true).open(path.join(DB))?;
        let known = options().create_new(true).open(path.join(KNOWN))?;
        Self::start(path, file, known, SPARE)
    }

    fn open(path: PathBuf) -> io::Result<Self> {
        for entry in path.read_dir()? {
            let entry = entry?;
            let (name, kind) = (entry.file_name(), entry.file_type()?);
            if kind.is_symlink() {
                return Err(damaged(format!("{name:?} is a symbolic link")));
            }
            // Half a snapshot, which sled takes for one. Without it, sled reads
            // the whole database. What is longer than such a file can be, sled would
            // read as a whole; it makes both kinds anew.
            let name = name.to_string_lossy();
            let made_anew = name == CONF || name.starts_with(SNAPSHOT);
            let too_long = || {
                entry
                    .metadata()
                    .is_ok_and(|file| file.len() > LONGEST_OTHER)
            };
            if name.ends_with(".generating") || made_anew && kind.is_file() && too_long() {
                fs::remove_file(entry.path())?;
            }
        }
        let file = match options().open(path.join(DB)) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return Err(damaged("its database is missing".to_owned()));
            }
            file => file?,
        };
        let len = file.metadata()?.len();
        if len > LONGEST {
            return Err(damaged(format!("{len} bytes are more than it can have")));
        }
        let known = options()
            .create(true)
            .truncate(false)
            .open(path.join(KNOWN))?;
        Self::start(path, file, known, 0)
    }

    fn start(path: PathBuf, file: File, known: File, spare: u64) -> io::Result<Self> {
        let mut generation = Self {
            path,
            db: None,
            file,
            known,
            writing: Mutex::new(Writing {
                written: 0,
                settled: false,
            }),
            end: AtomicU64::new(0),
            durable: AtomicU64::new(0),
            failed: AtomicBool::new(false),
        };
        // To sled a full disk is an error for good.
        generation.reserve(0, spare)?;
        let db = match generation.open_database() {
            // It may be that not the database is damaged.
            Err(error) if super::is_damage(&error) && generation.forget_made_anew()? => {
                generation.open_database()?
            }
            opened => opened?,
        };
        let db = generation.db.insert(db);
        let last = caught(|| db.last())?;
        let end = last.map_or(Ok(0), |(key, piece)| {
            offset(&key).map(|at| at.saturating_add(piece.len() as u64))
        })?;
        // What lies between can't be read, and is missed then.
        let known = read_known(&generation.known).filter(|known| *known > end);
        if let Some(known) = known {
            tracing::warn!(generation = %generation.path.display(), end, known,
                "sled does not have all that was durable");
        }
        generation.end = AtomicU64::new(known.unwrap_or(end));
        for directory in [generation.path.clone(), generation.path.join(BLOBS)] {
            for entry in directory.read_dir()? {
                let entry = entry?;
                if entry.file_type()?.is_file() {
                    fs::set_permissions(entry.path(), Permissions::from_mode(0o600))?;
                }
            }
        }
        Ok(generation)
    }

    fn open_database(&self) -> io::Result<Db> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let config = ::sled::Config::new()
                .path(&self.path)
                .mode(Mode::LowSpace)
                .cache_capacity(CACHE)
                .flush_every_ms(None);
            match caught(|| config.open()) {
                // Threads of sled's may hold it for a moment after it was closed.
                Err(error) if is_held(&error) && Instant::now() < deadline => {
                    thread::sleep(Duration::from_millis(1));
                }
                opened => break opened,
            }
        }
    }

    /// Removes what sled makes anew, and tells whether there was any.
    fn forget_made_anew(&self) -> io::Result<bool> {
        let mut found = false;
        for entry in self.path.read_dir()? {
            let entry = entry?;
            if is_made_anew(&entry.file_name().to_string_lossy()) {
                fs::remove_file(entry.path())?;
                found = true;
            }
        }
        Ok(found)
    }

    fn db(&self) -> io::Result<&Db> {
        self.db
            .as_ref()
            .ok_or_else(|| damaged("it is closed".to_owned()))
    }

    /// Whether anything may still be changed.
    fn check(&self) -> io::Result<()> {
        if self.failed.load(Ordering::Acquire) {
            return Err(io::Error::other("an earlier change of it failed"));
        }
        Ok(())
    }

    fn change<T>(&self, change: impl FnOnce(&Db) -> ::sled::Result<T>) -> io::Result<T> {
        self.check()?;
        let db = self.db()?;
        caught(|| change(db)).inspect_err(|_| self.failed.store(true, Ordering::Release))
    }

    /// Sees to it that sled will not find the disk full while it writes so much, and that
    /// as much as `spare` is left.
    fn reserve(&self, bytes: usize, spare: u64) -> io::Result<()> {
        let metadata = self.file.metadata()?;
        let room = metadata.len() + SLED_SEGMENT + bytes as u64 * AMPLIFIED;
        let missing = room.saturating_sub(metadata.blocks() * 512);
        if missing == 0 {
            return Ok(());
        }
        let disk = fstatvfs(&self.file)?;
        let free = disk.f_bavail.saturating_mul(disk.f_frsize);
        if spare > 0 && free < missing + spare {
            return Err(io::ErrorKind::StorageFull.into());
        }
        // More, where there is, so that it is not to be had each time.
        let more = 2 * SLED_SEGMENT;
        let more = if free < missing + more + spare {
            0
        } else {
            more
        };
        match fallocate(&self.file, FallocateFlags::KEEP_SIZE, 0, room + more) {
            // Then others may be quicker.
            Err(Errno::OPNOTSUPP | Errno::NOSYS) if free >= missing => Ok(()),
            Err(Errno::OPNOTSUPP | Errno::NOSYS) => Err(io::ErrorKind::StorageFull.into()),
            reserved => Ok(reserved?),
        }
    }

    /// Makes durable what was written so far: sled's flush hands it to the system,
    /// which is not asked by sled to keep it.
    fn make_durable(&self, writing: &mut Writing) -> io::Result<()> {
        self.change(|db| db.flush())?;
        let failed = |_: &io::Error| self.failed.store(true, Ordering::Release);
        if !writing.settled {
            let settle = || {
                File::open(self.path.join(CONF))?.sync_all()?;
                sync_directory(&self.path.join(BLOBS))?;
                sync_directory(&self.path)
            };
            settle().inspect_err(failed)?;
            writing.settled = true;
        }
        self.file.sync_data().inspect_err(failed)?;
        self.durable.store(writing.written, Ordering::Release);
        write_known(&self.known, self.end.load(Ordering::Acquire))
    }

    /// The changes that take away what stands from `start` to `end`.
    fn clear(&self, batch: &mut Batch, start: u64, end: u64) -> io::Result<()> {
        let db = self.db()?;
        let before = caught(|| db.range(..key(start)).next_back().transpose())?;
        let mut pieces: Vec<(IVec, IVec)> = before.into_iter().collect();
        pieces.extend(caught(|| {
            db.range(key(start)..key(end))
                .collect::<::sled::Result<Vec<_>>>()
        })?);
        for (at, piece) in pieces {
            let from = offset(&at)?;
            let until = from + piece.len() as u64;
            if from >= start {
                batch.remove(at);
            } else if until > start {
                batch.insert(at, &piece[..(start - from) as usize]);
            }
            if until > end {
                batch.insert(&key(end), &piece[(end - from) as usize..]);
            }
        }
        Ok(())
    }
}

impl StorageFile for Generation {
    fn size(&self) -> io::Result<u64> {
        Ok(self.end.load(Ordering::Acquire))
    }

    fn read_at(&self, buffer: &mut [u8], start: u64) -> io::Result<()> {
        let db = self.db()?;
        let end = start.saturating_add(buffer.len() as u64);
        let before = caught(|| db.range(..key(start)).next_back().transpose())?;
        let mut pieces = caught(|| Ok(db.range(key(start)..key(end))))?;
        let mut next = before;
        let mut at = start;
        let mut missing = false;
        loop {
            if let Some((from, piece)) = next {
                let from = offset(&from)?;
                let until = from.saturating_add(piece.len() as u64).min(end);
                missing |= from > at;
                // They don't overlap.
                let from_here = from.max(at);
                if from_here < until {
                    let place = (from_here - start) as usize..(until - start) as usize;
                    let piece = &piece[(from_here - from) as usize..(until - from) as usize];
                    buffer[place].copy_from_slice(piece);
                    at = until;
                }
            }
            match caught(|| pieces.next().transpose())? {
                Some(piece) => next = Some(piece),
                None => break,
            }
        }
        if missing || at < end {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        Ok(())
    }

    /// What no piece holds is a hole.
    fn next_data(&self, start: u64) -> io::Result<Option<u64>> {
        let db = self.db()?;
        if let Some((from, piece)) = caught(|| db.range(..=key(start)).next_back().transpose())?
            && offset(&from)?.saturating_add(piece.len() as u64) > start
        {
            return Ok(Some(start));
        }
        match caught(|| db.range(key(start)..).next().transpose())? {
            Some((from, _)) => offset(&from).map(Some),
            None => Ok(None),
        }
    }

    fn write_at(&self, bytes: &[u8], start: u64) -> io::Result<()> {
        let mut writing = lock(&self.writing);
        self.check()?;
        let appends = start >= self.end.load(Ordering::Acquire);
        self.reserve(bytes.len(), if appends { SPARE } else { 0 })?;
        let mut at = start;
        for part in bytes.chunks(UNSYNCED) {
            let unsynced = writing.written - self.durable.load(Ordering::Acquire);
            if unsynced + part.len() as u64 > UNSYNCED as u64 {
                self.make_durable(&mut writing)?;
            }
            let until = at + part.len() as u64;
            let end = self.end.load(Ordering::Acquire);
            let single = at >= end && part.len() <= PIECE;
            if single {
                self.change(|db| db.insert(key(at), part).map(drop))?;
            } else {
                let mut batch = Batch::default();
                if at < end {
                    self.clear(&mut batch, at, until)?;
                }
                for (piece, from) in part.chunks(PIECE).zip((at..).step_by(PIECE)) {
                    batch.insert(&key(from), piece);
                }
                self.change(|db| db.apply_batch(batch))?;
            }
            writing.written += part.len() as u64;
            self.end.fetch_max(until, Ordering::AcqRel);
            at = until;
        }
        Ok(())
    }

    /// Only shortens.
    fn set_len(&self, len: u64) -> io::Result<()> {
        let mut writing = lock(&self.writing);
        let end = self.end.load(Ordering::Acquire);
        if len > end {
            return Err(io::ErrorKind::Unsupported.into());
        }
        if len == end {
            return Ok(());
        }
        let mut batch = Batch::default();
        self.clear(&mut batch, len, end)?;
        write_known(&self.known, 0)?;
        self.change(|db| db.apply_batch(batch))?;
        writing.written += 1;
        self.end.store(len, Ordering::Release);
        Ok(())
    }

    fn sync_data(&self) -> io::Result<()> {
        self.make_durable(&mut lock(&self.writing))
    }
}

impl Drop for Generation {
    fn drop(&mut self) {
        let db = self.db.take();
        if let Err(error) = caught(|| {
            drop(db);
            Ok(())
        }) {
            tracing::warn!(%error, generation = %self.path.display(), "sled failed while closing");
        }
    }
}

impl fmt::Debug for Generation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // sled's own would print all that is in it.
        f.debug_struct("Generation")
            .field("path", &self.path)
            .finish_non_exhaustive()
    }
}

/// Calls sled, and makes of its panics, and of its errors, which are its own
/// mostly, such of a file.
fn caught<T>(call: impl FnOnce() -> ::sled::Result<T>) -> io::Result<T> {
    match catch_unwind(AssertUnwindSafe(call)) {
        Ok(result) => result.map_err(io_error),
        Err(panic) => {
            let what = panic
                .downcast_ref::<String>()
                .map(String::as_str)
                .or_else(|| panic.downcast_ref::<&str>().copied())
                .unwrap_or("without a word");
            Err(damaged(format!("sled panicked: {what}")))
        }
    }
}

/// What a file could also say is told as it is; all else is damage.
fn io_error(error: ::sled::Error) -> io::Error {
    match error {
        ::sled::Error::Io(error) if is_held(&error) || is_of_the_system(&error) => error,
        error => damaged(format!("sled: {error}")),
    }
}

fn is_of_the_system(error: &io::Error) -> bool {
    use io::ErrorKind::{NotFound, QuotaExceeded, StorageFull};
    match error.kind() {
        StorageFull | QuotaExceeded => true,
        // A file of the database's; and places in it that make no sense.
        NotFound => false,
        _ => Errno::from_io_error(error).is_some_and(|errno| errno != Errno::INVAL),
    }
}

/// What sled makes anew if it is missing: its configuration, which is ours; and
/// snapshots, without which it reads the whole database.
fn is_made_anew(name: &str) -> bool {
    name == CONF || name.starts_with(SNAPSHOT)
}

/// Whether sled found its file locked.
fn is_held(error: &io::Error) -> bool {
    error.to_string().starts_with("could not acquire lock")
}

fn damaged(what: String) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what)
}

/// An offset and its checksum.
fn write_known(file: &File, end: u64) -> io::Result<()> {
    let mut bytes = [0; 12];
    let (offset, crc) = bytes.split_at_mut(8);
    offset.copy_from_slice(&end.to_be_bytes());
    crc.copy_from_slice(&crc32c::crc32c(offset).to_be_bytes());
    file.write_all_at(&bytes, 0)
}

/// `None`: it says nothing.
fn read_known(file: &File) -> Option<u64> {
    let mut bytes = [0; 12];
    file.read_exact_at(&mut bytes, 0).ok()?;
    let (offset, crc) = bytes.split_at(8);
    let good = crc32c::crc32c(offset).to_be_bytes() == crc;
    self::offset(offset).ok().filter(|_| good)
}

/// Keys sort as their offsets do.
fn key(offset: u64) -> [u8; 8] {
    offset.to_be_bytes()
}

fn offset(key: &[u8]) -> io::Result<u64> {
    let key = key.try_into().ok().map(u64::from_be_bytes);
    key.filter(|offset| *offset < u64::MAX / 2)
        .ok_or_else(|| damaged("a key is no offset".to_owned()))
}

fn options() -> OpenOptions {
    let mut options = OpenOptions::new();
    options
        .read(true)
        .write(true)
        .mode(0o600)
        .custom_flags(OFlags::NOFOLLOW.bits() as i32);
    options
}

fn sync_directory(path: &Path) -> io::Result<()> {
    File::open(path)?.sync_all()
}

/// No closure of a caller's runs with these held, and sled's panics are caught.
fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Of each open database.
const CACHE: u64 = 8 << 20;
/// Names that sled gives.
const BLOBS: &str = "blobs";
const CONF: &str = "conf";
const DB: &str = "db";
/// How the name of a snapshot begins.
const SNAPSHOT: &str = "snap.";
/// Where the durable pieces end.
const KNOWN: &str = "end";
/// Tells that a generation is complete; without it, it is being made or removed.
const COMPLETE: &str = "complete";
/// sled replaces a leaf of up to 17 pieces as a whole, and puts what is larger than
/// 128 KiB into files of their own, which it does not sync. So none is that large.
const PIECE: usize = 4 << 10;
/// How much may be written before it is made durable. sled writes over a segment of
/// its log when what was in it is copied, and one more segment was begun since; the
/// copy must be durable by then. So much makes it write less than a segment.
const UNSYNCED: usize = 64 << 10;
/// Of sled's log.
const SLED_SEGMENT: u64 = 512 << 10;
/// Of a database: many times what the largest takes. Room would be reserved for all of
/// it, and sled would read all of it.
const LONGEST: u64 = 1 << 30;
/// Of the other files that sled reads.
const LONGEST_OTHER: u64 = 16 << 20;
/// How many bytes sled writes for one, at most.
const AMPLIFIED: u64 = 8;
/// What appending leaves free on the disk: a database that is opened to be drained takes
/// some room.
const SPARE: u64 = 2 << 20;
/// How long sled may hold a database that is closed.
const PATIENCE: Duration = Duration::from_secs(10);
