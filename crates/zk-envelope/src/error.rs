use std::path::PathBuf;

use crate::{KeyId, RecipientId};

/// What can go wrong with an envelope, a message, an owner's key or a trust file.
///
/// Nothing here is worth a retry with the same input, except [`Error::Sign`]
/// (the device's key may answer the next time) and [`Error::Io`].
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The signature does not fit the bytes and the key: they were changed, or
    /// another key made it.
    #[error(
        "the signature does not verify under the signer's key: the record was changed or forged"
    )]
    BadSignature,

    /// A file could not be read or written.
    #[error("{}: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What the operating system said.
        source: std::io::Error,
    },

    /// The message is not the JSON of this format: unknown, repeated or missing
    /// members, or no JSON at all.
    #[error("not a message of this format: {0}")]
    Json(#[from] serde_json::Error),

    /// An encrypted key file did not open: wrong passphrase, or not a P-256 key.
    #[error("{what}: {detail}")]
    Key {
        /// What was to be read or written.
        what: &'static str,
        /// What is wrong, and what to do.
        detail: String,
    },

    /// Bytes that break a rule of the format.
    #[error("malformed {what}: {rule}")]
    Malformed {
        /// The field or member.
        what: &'static str,
        /// The rule that it breaks.
        rule: &'static str,
    },

    /// The envelope was not encrypted for this owner.
    #[error(
        "not encrypted for owner {owner}: its recipients are {}",
        list(recipients)
    )]
    NotARecipient {
        /// The owner who tried.
        owner: RecipientId,
        /// Those who can open it.
        recipients: Vec<RecipientId>,
    },

    /// A secret file that others may read.
    #[error(
        "{}: mode {mode:03o} lets other users read a secret; run: chmod 600 {}",
        path.display(), path.display()
    )]
    Permissions {
        /// The file.
        path: PathBuf,
        /// Its permission bits.
        mode: u32,
    },

    /// The system's random source failed; nothing was sealed.
    #[error("the system's random source failed: {0}")]
    Random(#[from] getrandom::Error),

    /// The device's key did not sign. The signer's own error is the source.
    #[error("the device's key did not sign the record")]
    Sign(#[source] signature::Error),

    /// The signer's key is not the one that the sealer was made for.
    #[error("the signature fits no record of key {expected}: the signer holds another key")]
    SignerChanged {
        /// The key that the sealer states in its records.
        expected: KeyId,
    },

    /// More bytes than the format allows.
    #[error("{what} of {size} bytes: the limit is {limit}")]
    TooLarge {
        /// What is too large.
        what: &'static str,
        /// Its size in bytes.
        size: usize,
        /// The largest allowed, in bytes.
        limit: usize,
    },

    /// The trust file breaks a rule of its format.
    #[error("trust file {}: {detail}", path.display())]
    TrustFile {
        /// The file.
        path: PathBuf,
        /// Line, what is wrong and what is allowed.
        detail: String,
    },

    /// Tag, padding or content is wrong for this owner's key. One value for
    /// all of them, so that nobody learns which.
    #[error(
        "does not open: it was changed after it was encrypted, or made for another owner's key"
    )]
    Undecryptable,

    /// Another format, or a later version of this one.
    #[error("magic {magic:02x?}, suite {suite}: this version reads ZKE1 with suite 1")]
    UnsupportedVersion {
        /// The first four bytes.
        magic: [u8; 4],
        /// The fifth.
        suite: u8,
    },

    /// A file that decides whom to trust, and that others may write.
    #[error(
        "{}: mode {mode:03o} lets other users decide whom this machine trusts; see that its \
         content is right, then run: chmod go-w {}",
        path.display(), path.display()
    )]
    Writable {
        /// The file.
        path: PathBuf,
        /// Its permission bits.
        mode: u32,
    },

    /// The key given to verify is not the one that the envelope names.
    #[error("the record names signer {stated}, the key is {given}")]
    WrongSigner {
        /// The signer that the envelope states.
        stated: KeyId,
        /// The key that was to verify it.
        given: KeyId,
    },
}

impl Error {
    pub(crate) fn malformed(what: &'static str, rule: &'static str) -> Self {
        Self::Malformed { what, rule }
    }
}

fn list(ids: &[RecipientId]) -> String {
    ids.iter()
        .map(ToString::to_string)
        .collect::<Vec<_>>()
        .join(", ")
}
