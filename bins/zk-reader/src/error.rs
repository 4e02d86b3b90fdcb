use std::path::PathBuf;

use zk_envelope::RecipientId;
use zk_store::StoreError;

/// What can keep the reader from reading, or from making an owner's key.
///
/// A record that does not verify or open is none of these: it is shown as what
/// it is, a [`Record`](crate::Record) with another [`State`](crate::State).
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A backup in the directory of the key is lost together with it.
    #[error(
        "{}: a backup beside the key is lost together with the key; \
         choose another directory, best on a medium that can be taken away",
        path.display()
    )]
    BackupBesideKey {
        /// Where the backup was to go.
        path: PathBuf,
    },

    /// An owner's key that could not be made, written or opened.
    #[error(transparent)]
    Envelope(#[from] zk_envelope::Error),

    /// Keys are never overwritten: what was encrypted for the old one could
    /// never be read again.
    #[error(
        "{}: exists, and a key is never overwritten; choose another name, or move it away \
         if you are sure that nothing was encrypted for it",
        path.display()
    )]
    Exists {
        /// The file.
        path: PathBuf,
    },

    /// A file could not be written.
    #[error("{}: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What the operating system said.
        source: std::io::Error,
    },

    /// The passphrase is too short to protect anything.
    #[error(
        "the passphrase is too short: it takes at least {least} characters; several words are good"
    )]
    PassphraseTooShort {
        /// The least number of characters.
        least: usize,
    },

    /// What was written reads back as another key: the medium is not to be
    /// trusted.
    #[error(
        "{}: reads back as owner {found}, written was {written}; nothing was kept, \
         try again on another medium",
        path.display()
    )]
    ReadsBackWrong {
        /// The file.
        path: PathBuf,
        /// The key that it holds.
        found: RecipientId,
        /// The key that was written.
        written: RecipientId,
    },

    /// The store did not answer, or is none.
    #[error(transparent)]
    Store(#[from] StoreError),
}
