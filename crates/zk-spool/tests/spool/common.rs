//! What the tests share.

use std::{convert::Infallible, io::Write, path::Path, sync::Arc};

use tempfile::TempDir;
use zk_spool::{
    AppendError, Engine, Error, Loss, Options, Reason, Record, Spool, StreamId,
    storage::{Cut, FaultStorage},
};

pub(crate) type Key = (StreamId, u64);

/// The default options, with the engine that is tested.
pub(crate) fn defaults() -> Options {
    Options {
        engine: crate::ENGINE,
        ..Options::default()
    }
}

/// Small segments, so that a few records make several.
pub(crate) fn small() -> Options {
    Options {
        cap: 64 << 10,
        segment_size: Some(2 << 10),
        ..defaults()
    }
}

/// In memory where there is such a place, for tests that don't need the disk's word.
pub(crate) fn quick_directory() -> TempDir {
    tempfile::tempdir_in("/dev/shm").unwrap_or_else(|_| tempfile::tempdir().unwrap())
}

/// Where a spool can be.
pub(crate) trait Opens {
    fn open(&self, options: &Options) -> Result<Spool, Error>;
}

impl Opens for FaultStorage {
    fn open(&self, options: &Options) -> Result<Spool, Error> {
        Spool::open_on(Arc::new(self.clone()), *options)
    }
}

pub(crate) fn open(place: &impl Opens, options: &Options) -> Result<Spool, Error> {
    place.open(options)
}

/// A place for the engine that is tested: memory, or where that needs files, a
/// directory.
pub(crate) enum Place {
    Memory(FaultStorage),
    Directory(TempDir),
}

impl Place {
    pub(crate) fn new() -> Self {
        match crate::ENGINE {
            Engine::Log => Self::Memory(FaultStorage::new()),
            _ => Self::Directory(quick_directory()),
        }
    }

    /// What is left when the process is killed now.
    pub(crate) fn killed(&self) -> Self {
        self.cut(Cut::All)
    }

    /// What is left when the power is cut now; of a directory, when the process is
    /// killed.
    pub(crate) fn cut(&self, cut: Cut) -> Self {
        match self {
            Self::Memory(storage) => Self::Memory(storage.after_cut(cut)),
            Self::Directory(directory) => {
                let left = quick_directory();
                std::fs::remove_dir(left.path()).unwrap();
                copy(directory.path(), left.path());
                Self::Directory(left)
            }
        }
    }
}

impl Opens for Place {
    fn open(&self, options: &Options) -> Result<Spool, Error> {
        match self {
            Self::Memory(storage) => storage.open(options),
            Self::Directory(directory) => Spool::open(directory.path(), *options),
        }
    }
}

/// Content that tells its place, so that nothing can stand in for another.
pub(crate) fn content(stream: StreamId, sequence: u64, len: usize) -> Vec<u8> {
    let mut bytes = format!("{stream} {sequence} ").into_bytes();
    let mut random = Random(sequence ^ len as u64);
    while bytes.len() < len {
        bytes.push(random.next() as u8);
    }
    bytes
}

pub(crate) fn append(spool: &Spool, len: usize) -> Result<u64, Error> {
    let stream = spool.stream();
    let seal = |sequence| Ok::<_, Infallible>(content(stream, sequence, len));
    only_spool(spool.append_with(seal))
}

pub(crate) fn append_receipt(spool: &Spool, len: usize) -> Result<u64, Error> {
    let stream = spool.stream();
    let seal = |sequence| Ok::<_, Infallible>(content(stream, sequence, len));
    only_spool(spool.append_receipt_with(seal))
}

pub(crate) fn append_batch(spool: &Spool, lens: &[usize]) -> Result<Vec<u64>, Error> {
    let stream = spool.stream();
    let seals = lens
        .iter()
        .map(|len| move |sequence| Ok::<_, Infallible>(content(stream, sequence, *len)));
    let appended = spool.append_batch_with(seals)?;
    Ok(appended.into_iter().map(|Ok(sequence)| sequence).collect())
}

pub(crate) fn only_spool(result: Result<u64, AppendError<Infallible>>) -> Result<u64, Error> {
    result.map_err(|error| match error {
        AppendError::Seal(never) => match never {},
        AppendError::Spool(error) => error,
    })
}

pub(crate) fn peek_all(spool: &Spool) -> Result<Vec<Record>, Error> {
    spool.peek(usize::MAX, usize::MAX)
}

pub(crate) fn key(record: &Record) -> Key {
    (record.stream(), record.sequence())
}

/// Copies a directory.
pub(crate) fn copy(from: &Path, to: &Path) {
    std::fs::create_dir(to).unwrap();
    for entry in from.read_dir().unwrap() {
        let entry = entry.unwrap();
        let to = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            copy(&entry.path(), &to);
        } else {
            std::fs::copy(entry.path(), to).unwrap();
        }
    }
}

/// Takes everything out, a few at a time.
pub(crate) fn drain(spool: &Spool) -> Vec<Record> {
    let mut drained = Vec::new();
    loop {
        let records = spool.peek(5, 10_000).unwrap();
        let Some(last) = records.last() else {
            break drained;
        };
        spool.ack(last.position()).unwrap();
        drained.extend(records);
    }
}

pub(crate) fn names(loss: &Loss, (stream, sequence): Key) -> bool {
    loss.reason != Reason::Full
        && loss.stream == stream
        && (loss.first..=loss.last).contains(&sequence)
}

/// SplitMix64.
#[derive(Clone)]
pub(crate) struct Random(pub(crate) u64);

impl Random {
    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    pub(crate) fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound
    }
}

/// How much more than usual to run, from the environment.
pub(crate) fn effort() -> u64 {
    std::env::var("ZK_SPOOL_EFFORT").map_or(1, |effort| effort.parse().unwrap())
}

/// How many cut points the exhaustive test has to reach, from the environment.
pub(crate) fn cuts_wanted() -> u64 {
    std::env::var("ZK_SPOOL_CUTS").map_or(3_000, |cuts| cuts.parse().unwrap())
}

/// Says what was done, past the harness, which keeps what passing tests print.
pub(crate) fn tell(what: &str) {
    let _ = writeln!(std::io::stderr(), "spool: {what}");
}
