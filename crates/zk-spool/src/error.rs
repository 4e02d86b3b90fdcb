use std::{io, sync::Arc};

use crate::{Position, StreamId};

/// Why the spool did not do what it was asked.
///
/// After [`Error::Io`] the spool is poisoned: nothing can be said about what
/// reached the medium, so every later call returns [`Error::Poisoned`] until
/// the spool is opened again, which looks. All other errors leave it usable.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The file system has no room. Nothing that was stored is touched, and
    /// draining works on; appending works again once there is room.
    #[error("{file}: the disk is full; free some space, or let the spool drain")]
    DiskFull {
        /// The file that could not grow.
        file: String,
        /// What the operating system said.
        source: Arc<io::Error>,
    },

    /// The spool is at its cap and [`Full::Reject`](crate::Full::Reject) is
    /// chosen. Nothing was stored; the refusal is counted as a
    /// [`Loss`](crate::Loss).
    #[error(
        "the spool is full: {used} of {cap} bytes are taken; drain it, raise the cap, \
         or choose to drop the oldest"
    )]
    Full {
        /// Bytes that the segments take.
        used: u64,
        /// The cap from the options.
        cap: u64,
    },

    /// The options contradict themselves.
    #[error("the spool's options do not fit: {what}")]
    InvalidOptions {
        /// Which one, and what it must be.
        what: &'static str,
    },

    /// Reading or writing failed. The spool is poisoned from here on.
    #[error(
        "{file}: could not {action}; once the cause is mended open the spool again, which \
         checks what is on the medium"
    )]
    Io {
        /// What was being done.
        action: &'static str,
        /// To which file of the spool's directory.
        file: String,
        /// What the operating system said.
        source: Arc<io::Error>,
    },

    /// Another process, or another `Spool` of this one, has the spool open.
    #[error("{dir}: the spool is in use{}; it has one writer at a time", by(*holder))]
    Locked {
        /// The spool's directory.
        dir: String,
        /// The process that has it, where the system tells.
        holder: Option<u32>,
    },

    /// The directory holds a file by the name of the spool's marker, its state, or
    /// a segment, that is something else.
    #[error("{file}: no spool has made this file; give the spool a directory of its own")]
    NotASpool {
        /// The file in question.
        file: String,
    },

    /// The files of a spool with this engine can't be read beside whoever has it
    /// open, nor without changing them.
    #[error(
        "{dir}: a spool of the engine {engine} can't be looked into from outside; \
         ask its owner's metrics, or open it when it is not in use"
    )]
    NotInspectable {
        /// The spool's directory.
        dir: String,
        /// Its engine.
        engine: &'static str,
    },

    /// Only the oldest waiting record can be rejected.
    #[error(
        "sequence {sequence} of stream {stream} is not the oldest waiting record; \
         acknowledge or reject what is before it first"
    )]
    NotOldest {
        /// The stream of the record.
        stream: StreamId,
        /// The sequence of the record.
        sequence: u64,
    },

    /// The directory holds segments of another engine. Nothing was changed.
    #[error(
        "{dir}: this is a spool of the engine {found}, not {asked}; open it with {found} \
         (a program built with that engine), or give {asked} a directory of its own"
    )]
    OtherEngine {
        /// The spool's directory.
        dir: String,
        /// The engine that wrote what is there.
        found: &'static str,
        /// The engine that was asked for.
        asked: &'static str,
    },

    /// An earlier call failed, so that it is not known what is on the medium.
    #[error("the spool stopped when it could not {action} ({file}); open it again")]
    Poisoned {
        /// What was being done then.
        action: &'static str,
        /// To which file.
        file: String,
        /// What the operating system said then.
        source: Arc<io::Error>,
    },

    /// The system has no random numbers for a stream id.
    #[error("no random bytes for a new stream id; the system's random source must work")]
    Randomness(#[source] getrandom::Error),

    /// A record, or a batch of them, is larger than the spool can ever hold.
    #[error("{bytes} bytes are too large for this spool; its limit is {limit}")]
    TooLarge {
        /// The size that was asked for.
        bytes: u64,
        /// The largest that can be.
        limit: u64,
    },

    /// The position is not of this spool, or of a part that recovery cut off.
    #[error("there is no record at {position:?} in this spool; take positions from `peek`")]
    UnknownPosition {
        /// The position that was given.
        position: Position,
    },

    /// The spool was written by a newer program.
    #[error(
        "{file}: format version {found}, and this program knows {supported} at most; \
         use the newer program, or drain the spool with it first"
    )]
    UnsupportedFormat {
        /// The file that says so.
        file: String,
        /// The version found.
        found: u32,
        /// The newest version known.
        supported: u32,
    },
}

/// Why [`append_with`](crate::Spool::append_with) stored nothing.
#[derive(Debug, thiserror::Error)]
pub enum AppendError<E> {
    /// The closure failed; no sequence was used.
    #[error("the record could not be made")]
    Seal(#[source] E),
    /// The spool could not take the record.
    #[error(transparent)]
    Spool(#[from] Error),
}

impl Error {
    /// For a failed operation on a file.
    pub(crate) fn io(action: &'static str, file: &str, source: io::Error) -> Self {
        let (file, source) = (file.to_owned(), Arc::new(source));
        if is_full(&source) {
            Self::DiskFull { file, source }
        } else {
            Self::Io {
                action,
                file,
                source,
            }
        }
    }
}

fn by(holder: Option<u32>) -> String {
    holder.map_or_else(String::new, |process| format!(" by process {process}"))
}

/// Adds what was being done, and to which file.
pub(crate) trait At<T> {
    fn at(self, action: &'static str, file: &str) -> Result<T, Error>;
}

impl<T> At<T> for io::Result<T> {
    fn at(self, action: &'static str, file: &str) -> Result<T, Error> {
        self.map_err(|source| Error::io(action, file, source))
    }
}

pub(crate) fn is_full(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded
    )
}
