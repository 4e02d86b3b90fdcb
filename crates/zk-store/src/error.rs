use std::error::Error;
use std::io;
#[cfg(feature = "embedded")]
use std::path::Path;
use std::path::PathBuf;

use aws_sdk_dynamodb::error::{ProvideErrorMetadata, SdkError};

/// What can go wrong with a store.
///
/// While a message is taken in, every error means that it is not known to be
/// stored: have it sent again. What is wrong with the message itself is never an
/// error but a verdict.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StoreError {
    /// Something else is registered for this principal.
    #[error(
        "another record is registered for principal {principal}: change that one, or remove it first"
    )]
    AlreadyRegistered {
        /// The principal.
        principal: String,
    },

    /// Others changed it each time between reading and writing it.
    #[error("{what} is being changed by others: try again")]
    Contended {
        /// What was to be changed.
        what: String,
    },

    /// An item that is not as this library writes it.
    #[error("table {table}, item {key}: {detail}")]
    Damaged {
        /// The table.
        table: String,
        /// The item's key.
        key: String,
        /// What is wrong with it.
        detail: String,
    },

    /// The embedded engine could not open its file.
    #[error("{}: the store does not open", path.display())]
    Engine {
        /// The file.
        path: PathBuf,
        /// What the engine said.
        source: Box<dyn Error + Send + Sync>,
    },

    /// A signed record has to be put aside, and there is no room for it: it is
    /// refused so that its sender keeps it.
    #[error(
        "the quarantine holds all the signed evidence of principal {principal} that it may: \
         look into it, then replay or discard some"
    )]
    EvidenceFull {
        /// The principal.
        principal: String,
    },

    /// A file or directory could not be made, read or opened.
    #[error("{}: {error}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// What the operating system said.
        error: io::Error,
    },

    /// Somebody else has held the lock of those who write for longer than any
    /// commit takes.
    #[error(
        "{}: {holder} has held this lock for too long: it may be stopped or stuck; \
         end it, or let it go on, and try again",
        path.display()
    )]
    Locked {
        /// The file of the lock, beside the store's.
        path: PathBuf,
        /// Its number and name, if they are known.
        holder: String,
    },

    /// There is no store in this place.
    #[error("{}: there is no store here; check the path, or set one up first", path.display())]
    NoStore {
        /// The file.
        path: PathBuf,
    },

    /// A table is missing.
    #[error("table {table} does not exist: check region and prefix, or set the store up first")]
    NoTable {
        /// The table.
        table: String,
    },

    /// Nothing is registered for this principal.
    #[error("nothing is registered for principal {principal}")]
    NotRegistered {
        /// The principal.
        principal: String,
    },

    /// There is no such item in the quarantine.
    #[error("there is nothing under {id} in the quarantine")]
    NotQuarantined {
        /// The id that was asked for.
        id: String,
    },

    /// DynamoDB, or the embedded engine, did not do as asked. The SDK has tried
    /// again where that made sense.
    #[error("{operation} on table {table} failed")]
    Request {
        /// The operation.
        operation: &'static str,
        /// The table.
        table: String,
        /// The SDK's error.
        source: Box<dyn Error + Send + Sync>,
    },

    /// A part of the work ended before its time.
    #[error("the store's work was cut short")]
    Stopped(#[source] Box<dyn Error + Send + Sync>),

    /// The name of a store, or of its tables, breaks a rule.
    #[error("{given:?}: {rule}")]
    Uri {
        /// What was given.
        given: String,
        /// The rule that it breaks.
        rule: &'static str,
    },

    /// Everybody may write the file, or put another one in its place: what it
    /// says of devices is worth nothing.
    #[error(
        "{}: every user of this machine can write to this store; run: chmod o-w {}",
        path.display(), path.display()
    )]
    Writable {
        /// The file or its directory.
        path: PathBuf,
    },

    /// A table of that name has other keys.
    #[error("table {table} exists and is not one of ours: choose another prefix")]
    WrongTable {
        /// The table.
        table: String,
    },
}

impl StoreError {
    #[cfg(feature = "embedded")]
    pub(crate) fn file(path: &Path, error: io::Error) -> Self {
        Self::File {
            path: path.to_owned(),
            error,
        }
    }

    /// The error of a request that the caller does not look into any further.
    pub(crate) fn request<E, R>(
        operation: &'static str,
        table: &str,
    ) -> impl FnOnce(SdkError<E, R>) -> Self
    where
        E: ProvideErrorMetadata + Error + Send + Sync + 'static,
        R: std::fmt::Debug + Send + Sync + 'static,
    {
        let table = table.to_owned();
        move |error| {
            if error.code() == Some("ResourceNotFoundException") {
                Self::NoTable { table }
            } else {
                Self::Request {
                    operation,
                    table,
                    source: error.into(),
                }
            }
        }
    }
}
