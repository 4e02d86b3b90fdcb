use std::fmt;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use crate::uri::UriError;

/// Everything that can go wrong between a call and its answer.
///
/// [`Error::class`] says what a program should do about it; the text says what
/// a person should do, and doesn't repeat its `source`. The value is `Clone`, because a failed HSM gives the
/// same answer to every later call.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// More than one token or key is as the URI says.
    #[error(
        "{hsm}: there are {found} such {what}, and which one is meant can't be told; name one by \
         more of its attributes (`zk-ctl hsm keys list` shows them), or remove the others"
    )]
    Ambiguous {
        /// The HSM's URI.
        hsm: Box<str>,
        /// What there is too much of: `tokens`, `private keys`, `public keys`.
        what: &'static str,
        /// How many were found.
        found: usize,
    },

    /// The HSM gave a signature that its own public key doesn't verify. It was
    /// discarded, and asking once more didn't help.
    #[error(
        "{hsm} returned a signature that does not verify under its public key; it was discarded. \
         If this repeats, check the wiring and the power supply of the HSM"
    )]
    BadSignature {
        /// The HSM's URI.
        hsm: Box<str>,
    },

    /// The call never reached the HSM: the queue was full, or the calls before
    /// this one took up all its time.
    #[error(
        "the HSM is busy: {waiting} calls were waiting for it; \
         call less often, or wait and try again"
    )]
    Busy {
        /// How many calls waited in the queue.
        waiting: usize,
    },

    /// The certificate belongs to another key.
    #[error(
        "the certificate for `{subject}` (serial {serial}) holds key {} but {hsm} holds key {}: \
         use the certificate that was issued for this key, or open the key it was issued for",
        Hex(.found), Hex(.expected)
    )]
    CertificateMismatch {
        /// The HSM's URI.
        hsm: Box<str>,
        /// The certificate's subject, as RFC 4514 writes it.
        subject: Box<str>,
        /// The certificate's serial number, in hexadecimal.
        serial: Box<str>,
        /// The HSM's key: SHA-256 of its SubjectPublicKeyInfo DER.
        expected: [u8; 32],
        /// The certificate's key: SHA-256 of its SubjectPublicKeyInfo DER.
        found: [u8; 32],
    },

    /// The certificate chain is empty or its first certificate can't be read.
    #[error(
        "the device certificate cannot be used; the chain must begin with the X.509 version 3 \
         certificate of this device (`openssl x509 -req` without extensions makes version 1)"
    )]
    CertificateUnusable {
        /// What rustls has against it.
        source: rustls::Error,
    },

    /// A public key, a certificate or a request for one could not be written as
    /// DER.
    #[error("DER encoding failed")]
    Encoding {
        /// The encoder's report.
        source: Arc<x509_cert::builder::Error>,
    },

    /// After the HSM was opened again it held another key. Nothing was signed
    /// with it.
    #[error(
        "{hsm} was opened again and holds key {} instead of {}: the HSM was exchanged, erased or \
         given a new key. If that was meant, issue a certificate for the new key and restart; if \
         not, treat it as an attack",
        Hex(.found), Hex(.expected)
    )]
    KeyChanged {
        /// The HSM's URI.
        hsm: Box<str>,
        /// The key it had: SHA-256 of the SubjectPublicKeyInfo DER.
        expected: [u8; 32],
        /// The key it has now: SHA-256 of the SubjectPublicKeyInfo DER.
        found: [u8; 32],
    },

    /// The HSM has a key of the label or the id that a new one was to get.
    #[error(
        "{hsm}: there is a key of this label or id already, and none is overwritten; choose \
         others, or remove the key with the vendor's tool if it is no longer needed"
    )]
    KeyExists {
        /// The new key's URI.
        hsm: Box<str>,
    },

    /// There is a file at the path where a key was to be created.
    #[error(
        "{} exists, and a key file is never overwritten; choose another path, or move the file \
         away if its key is no longer needed", .path.display()
    )]
    KeyFileExists {
        /// Where the key was to go.
        path: PathBuf,
    },

    /// A key file isn't an unencrypted PEM PKCS#8 P-256 private key.
    #[error("{} is not a usable key file: {problem}", .path.display())]
    KeyFileFormat {
        /// The file.
        path: PathBuf,
        /// What it is instead, and the way out.
        problem: &'static str,
    },

    /// A key file could not be read or written.
    #[error("cannot {action} key file {}", .path.display())]
    KeyFileIo {
        /// The file.
        path: PathBuf,
        /// `open`, `read`, `create` or the like.
        action: &'static str,
        /// The system's answer.
        source: Arc<io::Error>,
    },

    /// Others than its owner have access to a key file.
    #[error(
        "key file {} has mode {mode:04o}: others than its owner have access to the private key. \
         Run `chmod 600 {}`, and if somebody may have read it, make a new key",
        .path.display(), .path.display()
    )]
    KeyFilePermissions {
        /// The file.
        path: PathBuf,
        /// Its permission bits.
        mode: u32,
    },

    /// An argument is too short or too long.
    #[error("{what}: {len} bytes given, {min} to {max} possible")]
    Length {
        /// Which argument.
        what: &'static str,
        /// Its length in bytes.
        len: usize,
        /// The least that is allowed.
        min: usize,
        /// The most that is allowed.
        max: usize,
    },

    /// The HSM was opened, but has no key where the URI says.
    #[error(
        "{hsm} has no key there; `zk-ctl hsm keys list` tells what it has, and `zk-ctl hsm keys \
         generate` makes one. If the key was there before, it is gone, and a new one needs a new \
         certificate"
    )]
    KeyMissing {
        /// The HSM's URI.
        hsm: Box<str>,
    },

    /// The backend's library reported a failure.
    #[error("{hsm}: {function} failed with code {code} ({meaning}), {class}; {next}")]
    Library {
        /// The HSM's URI.
        hsm: Box<str>,
        /// The function that failed, by the name its vendor gives it.
        function: &'static str,
        /// The code it returned, unchanged.
        code: i64,
        /// The code's name, such as `ETIMEDOUT` or `CKR_DEVICE_ERROR`, or what
        /// was wrong with the answer.
        meaning: &'static str,
        /// How that code is sorted.
        class: Class,
        /// What a person should do.
        next: &'static str,
    },

    /// The backend's library can't be loaded.
    #[error("{} can't be loaded: {problem}; {next}", .path.display())]
    LibraryUnloadable {
        /// The library.
        path: PathBuf,
        /// What the dynamic linker, or the system, says.
        problem: Box<str>,
        /// What a person should do.
        next: &'static str,
    },

    /// Others could put their code into the backend's library.
    #[error(
        "{} is not loaded: {} {problem}, so others could put their code into this program; \
         give it to root (or to the user that runs this), and run `chmod go-w {}`",
        .library.display(), .path.display(), .path.display()
    )]
    LibraryUntrusted {
        /// The library.
        library: PathBuf,
        /// The file or directory that others have power over.
        path: PathBuf,
        /// Who has.
        problem: &'static str,
    },

    /// The PIN couldn't be had from where the URI says.
    #[error("no PIN from {pin_source}: {problem}")]
    Pin {
        /// Where it should have come from, as in the URI.
        pin_source: Box<str>,
        /// What is wrong with that place, and the way out.
        problem: &'static str,
    },

    /// The token refused the PIN, or would refuse any. It isn't tried again:
    /// a few wrong ones lock a token for good.
    #[error("{hsm}: {problem}; {next}")]
    PinRefused {
        /// The HSM's URI.
        hsm: Box<str>,
        /// What the token says.
        problem: &'static str,
        /// What a person should do.
        next: &'static str,
    },

    /// The operating system's random source failed.
    #[error("the operating system gave no random bytes")]
    Random {
        /// The system's answer.
        source: getrandom::Error,
    },

    /// No thread could be started for the HSM.
    #[error("no thread could be started for the HSM; check the limits on threads and memory")]
    Thread {
        /// The system's answer.
        source: Arc<io::Error>,
    },

    /// The HSM had the call but no answer came in time. Whether it did the
    /// work isn't known; a late result is discarded.
    #[error(
        "{operation} got no answer from the HSM within {after:.1?}; see that it is connected and \
         that its daemon runs{}",
        Perhaps(*.operation)
    )]
    TimedOut {
        /// What was asked of it.
        operation: Operation,
        /// How long the caller waited.
        after: Duration,
    },

    /// Part of a [`Subject`](crate::Subject) can't stand in a certificate.
    /// Nothing was signed.
    #[error("the subject's {attribute} {problem}")]
    Subject {
        /// Which part.
        attribute: &'static str,
        /// What is wrong with it, or what it may be.
        problem: Box<str>,
    },

    /// rustls refused the configuration.
    #[error("rustls refused the TLS configuration")]
    Tls {
        /// What rustls said.
        source: rustls::Error,
    },

    /// The HSM failed and is closed; it will be opened again by itself.
    #[error("the HSM failed and is closed; it is opened again {}", When(*.retry_in))]
    Unavailable {
        /// The time until the next attempt; zero while it is made.
        retry_in: Duration,
        /// The failure that closed it, or the latest failure to open it.
        source: Box<Self>,
    },

    /// No token as the URI describes it is there now. It may come back.
    #[error(
        "{hsm}: there is no such token; plug it in, or correct the URI. These are there: {present}"
    )]
    TokenMissing {
        /// The HSM's URI.
        hsm: Box<str>,
        /// The labels of the tokens that are there.
        present: Box<str>,
    },

    /// The library was tried with data made for that, and doesn't tell data
    /// that was changed from good data. So nothing is unlocked with it.
    #[error(
        "{hsm} is not used to unlock anything, because its library {problem}; update the vendor's \
         library, and report this to its vendor"
    )]
    UnlockUntrusted {
        /// The HSM's URI.
        hsm: Box<str>,
        /// What it did with the data.
        problem: &'static str,
    },

    /// This HSM, or the version of its library that is installed, can't do that.
    #[error("{hsm} can't {what}: {why}")]
    Unsupported {
        /// The HSM's URI.
        hsm: Box<str>,
        /// What it can't do, as a verb: `generate keys`.
        what: &'static str,
        /// Why, and what can.
        why: &'static str,
    },

    /// The locked data isn't from this HSM, or was changed.
    #[error("unlock refused: the data was not locked by this HSM, or was changed since")]
    UnlockRefused,

    /// A path can't be put into an HSM URI.
    #[error(transparent)]
    Uri(#[from] UriError),

    /// A certificate can't be valid for such a time.
    #[error("the certificate's validity {problem}")]
    Validity {
        /// What is wrong with it, or what it may be.
        problem: &'static str,
    },

    /// A call has been stuck inside the HSM for longer than the deadline, so
    /// no further one is made.
    #[error(
        "the HSM is stuck: {operation} has been in it for {elapsed:.1?}. If it stays so, restart \
         this program; if that doesn't help, restart the HSM's daemon or the machine"
    )]
    Wedged {
        /// The call that is stuck.
        operation: Operation,
        /// For how long.
        elapsed: Duration,
    },

    /// The thread that owns the HSM ended unexpectedly: a defect in a backend.
    #[error("the HSM's thread ended unexpectedly; open the HSM again, and report this defect")]
    WorkerDied,
}

impl Error {
    /// What a program should do about this error. Decided by variant and code,
    /// never by text.
    #[must_use]
    pub fn class(&self) -> Class {
        match self {
            Self::BadSignature { .. }
            | Self::Busy { .. }
            | Self::Thread { .. }
            | Self::TimedOut { .. }
            | Self::TokenMissing { .. }
            | Self::Unavailable { .. }
            | Self::Wedged { .. } => Class::Transient,
            Self::Ambiguous { .. }
            | Self::KeyChanged { .. }
            | Self::KeyFileFormat { .. }
            | Self::KeyFileIo { .. }
            | Self::KeyFilePermissions { .. }
            | Self::KeyMissing { .. }
            | Self::LibraryUnloadable { .. }
            | Self::LibraryUntrusted { .. }
            | Self::Pin { .. }
            | Self::PinRefused { .. }
            | Self::Random { .. }
            | Self::WorkerDied => Class::Fatal,
            Self::CertificateMismatch { .. }
            | Self::CertificateUnusable { .. }
            | Self::Encoding { .. }
            | Self::KeyExists { .. }
            | Self::KeyFileExists { .. }
            | Self::Length { .. }
            | Self::Subject { .. }
            | Self::Tls { .. }
            | Self::UnlockRefused
            | Self::UnlockUntrusted { .. }
            | Self::Unsupported { .. }
            | Self::Uri(_)
            | Self::Validity { .. } => Class::Logic,
            Self::Library { class, .. } => *class,
        }
    }

    /// Trying again later can help. The same as asking for
    /// [`Class::Transient`].
    #[must_use]
    pub fn is_transient(&self) -> bool {
        self.class() == Class::Transient
    }
}

impl From<x509_cert::builder::Error> for Error {
    fn from(source: x509_cert::builder::Error) -> Self {
        Self::Encoding {
            source: Arc::new(source),
        }
    }
}

impl From<x509_cert::der::Error> for Error {
    fn from(source: x509_cert::der::Error) -> Self {
        x509_cert::builder::Error::from(source).into()
    }
}

/// The three kinds of failure.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub enum Class {
    /// It may pass: try again later.
    Transient,
    /// The HSM can't be used until somebody acts. This [`Hsm`](crate::Hsm) is
    /// closed for good.
    Fatal,
    /// The request is at fault and would fail again; the HSM is in order.
    Logic,
}

impl fmt::Display for Class {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Transient => "transient: it may pass",
            Self::Fatal => "fatal: it is not tried again",
            Self::Logic => "refused",
        })
    }
}

/// What the HSM was asked to do.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
#[non_exhaustive]
pub enum Operation {
    /// Closing the backend after a failure.
    Close,
    /// [`generate_key`](crate::generate_key).
    Generate,
    /// [`Hsm::health`](crate::Hsm::health).
    Health,
    /// [`Hsm::info`](crate::Hsm::info).
    Info,
    /// [`list_keys`](crate::list_keys).
    List,
    /// [`Hsm::lock`](crate::Hsm::lock).
    Lock,
    /// Opening the backend, the first time or again.
    Open,
    /// [`Hsm::random`](crate::Hsm::random).
    Random,
    /// [`Hsm::sign`](crate::Hsm::sign) and all that signs.
    Sign,
    /// [`Hsm::unlock`](crate::Hsm::unlock).
    Unlock,
}

impl fmt::Display for Operation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Close => "close",
            Self::Generate => "generate key",
            Self::Health => "health",
            Self::Info => "info",
            Self::List => "list keys",
            Self::Lock => "lock",
            Self::Open => "open",
            Self::Random => "random",
            Self::Sign => "sign",
            Self::Unlock => "unlock",
        })
    }
}

/// What may have been done all the same, for messages.
struct Perhaps(Operation);

impl fmt::Display for Perhaps {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Operation::Generate => f.write_str(
                ". Before another key is made: `zk-ctl hsm keys list` tells whether this one was",
            ),
            _ => Ok(()),
        }
    }
}

/// When something comes, for messages.
struct When(Duration);

impl fmt::Display for When {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Duration::ZERO => f.write_str("now"),
            time => write!(f, "in {time:.1?}"),
        }
    }
}

/// Lower-case hexadecimal, for messages.
pub(crate) struct Hex<'a>(pub(crate) &'a [u8; 32]);

impl fmt::Display for Hex<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}
