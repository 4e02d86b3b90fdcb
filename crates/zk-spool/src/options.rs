use std::time::Duration;

use crate::{Error, format};

/// How a spool is to behave. Nothing of it is stored: every opening may choose
/// anew.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// How segments are stored. A directory keeps the engine that it was begun
    /// with.
    pub engine: Engine,
    /// When appended records become durable.
    pub sync: SyncPolicy,
    /// Bytes that segments may take on disk, at least 16 KiB. Default 256 MiB.
    /// A sixteenth of it, 4 KiB to 64 KiB, is kept for
    /// [loss receipts](crate::Spool::append_receipt_with).
    pub cap: u64,
    /// What to do at the cap.
    pub full: Full,
    /// Bytes after which a new segment file is begun: a segment is what is
    /// unlinked at a time. From 2 KiB to a quarter of the cap, and to 32 MiB with
    /// the engine `sled`. `None`: a sixteenth of the cap, 4 KiB to 4 MiB, or to
    /// 8 MiB with `sled`.
    pub segment_size: Option<u64>,
    /// Bytes that may be kept in `damaged/`, and as many in `rejected/`, beyond
    /// the cap. `None`: an eighth of the cap. `Some(0)` keeps nothing.
    pub evidence: Option<u64>,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            engine: Engine::Log,
            sync: SyncPolicy::Each,
            cap: 256 << 20,
            full: Full::Reject,
            segment_size: None,
            evidence: None,
        }
    }
}

/// How the records of a segment are stored. All else is the same: cursor, losses,
/// recovery, and what is promised.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Engine {
    /// An append-only file.
    #[default]
    Log,
    /// A [sled](https://docs.rs/sled/0.34.7) database for each segment, guarded,
    /// because sled alone does not keep what it has acknowledged: see
    /// `docs/spool-engines.md`. It writes about four times as much, opens slower,
    /// takes about twice the room that the cap counts, and can't be
    /// [inspected](crate::inspect).
    #[cfg(feature = "sled")]
    Sled,
}

impl Engine {
    /// Its name, as in configuration files.
    pub fn name(self) -> &'static str {
        match self {
            Self::Log => LOG,
            #[cfg(feature = "sled")]
            Self::Sled => SLED,
        }
    }
}

pub(crate) const LOG: &str = "log";
pub(crate) const SLED: &str = "sled";

/// When an appended record survives a power cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SyncPolicy {
    /// When the append returns.
    Each,
    /// At most this long after the append returned; a thread of the spool sees
    /// to it. Spares flash: one sync serves all appends of the window. A power
    /// cut may take the window, and the next opening then begins a new stream.
    Every(Duration),
}

/// What happens to an append that does not fit below the cap.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Full {
    /// It is refused with [`Error::Full`], and counted.
    Reject,
    /// The oldest segment goes, as a whole, and its waiting records are named
    /// as a [`Loss`](crate::Loss): also those that were peeked at and are not
    /// acknowledged yet.
    DropOldest,
}

/// The options as numbers, checked.
#[derive(Clone, Debug)]
pub(crate) struct Limits {
    pub(crate) window: Option<Duration>,
    pub(crate) cap: u64,
    pub(crate) reserve: u64,
    pub(crate) drop_oldest: bool,
    pub(crate) segment_size: u64,
    largest_segment: u64,
    pub(crate) evidence: u64,
}

impl Limits {
    pub(crate) fn new(options: &Options) -> Result<Self, Error> {
        let cap = options.cap;
        if cap < MIN_CAP {
            return Err(Error::InvalidOptions {
                what: "`cap` must be at least 16 KiB",
            });
        }
        let (usual, largest_segment) = match options.engine {
            Engine::Log => (4 << 20, u64::MAX),
            // Each is a database with files of its own, which a crash makes sled
            // read whole.
            #[cfg(feature = "sled")]
            Engine::Sled => (8 << 20, MAX_GENERATION),
        };
        let segment_size = options
            .segment_size
            .unwrap_or_else(|| (cap / 16).clamp(4 << 10, usual));
        if segment_size > largest_segment {
            return Err(Error::InvalidOptions {
                what: "`segment_size` must be at most 32 MiB with the engine `sled`",
            });
        }
        if !(MIN_SEGMENT..=cap / 4).contains(&segment_size) {
            return Err(Error::InvalidOptions {
                what: "`segment_size` must be from 2 KiB to a quarter of `cap`",
            });
        }
        Ok(Self {
            window: match options.sync {
                SyncPolicy::Each => None,
                SyncPolicy::Every(window) => Some(window),
            },
            cap,
            reserve: (cap / 16).clamp(4 << 10, 64 << 10),
            drop_oldest: options.full == Full::DropOldest,
            segment_size,
            largest_segment,
            evidence: options.evidence.unwrap_or(cap / 8),
        })
    }

    /// The bytes that segments may take after an ordinary append, or after that
    /// of a loss receipt.
    pub(crate) fn room(&self, receipt: bool) -> u64 {
        if receipt {
            self.cap
        } else {
            self.cap - self.reserve
        }
    }

    /// The most that the frames of one append may take: what fits when all
    /// other segments are gone, in a segment of its own.
    pub(crate) fn largest_group(&self, receipt: bool) -> u64 {
        self.room(receipt).min(self.largest_segment) - 2 * format::SEGMENT_OVERHEAD
    }
}

/// The most that one sled database holds.
#[cfg(feature = "sled")]
const MAX_GENERATION: u64 = 32 << 20;
const MIN_CAP: u64 = 16 << 10;
const MIN_SEGMENT: u64 = 2 << 10;
