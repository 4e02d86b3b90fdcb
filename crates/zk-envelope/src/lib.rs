//! Telemetry records that only their owners can read and only one key can have
//! made: envelope version 1.
//!
//! A record is encrypted with AES-256 for one to eight owners, then signed with
//! the device's P-256 key. Everything that matters, the device, the time, the
//! place in the stream, lies under the signature. The format is laid out byte
//! by byte in `docs/envelope-format.md`.
//!
//! The types keep the order of work: an [`Envelope`] has structure and nothing
//! else, [`Envelope::verify`] makes it [`Verified`], and only a `Verified` can
//! be [opened](Verified::open).
//!
//! ```
//! use p256::ecdsa::SigningKey;
//! # use p256::elliptic_curve::Generate;
//! use zk_envelope::{
//!     BootId, ClockQuality, Content, DeviceId, Envelope, Moment, OwnerKey, Sealer, StreamId,
//!     Timestamp,
//! };
//!
//! # fn main() -> Result<(), zk_envelope::Error> {
//! let owner = OwnerKey::generate()?;
//! // On a device this is the security module; any signer of RustCrypto's
//! // `signature` traits will do.
//! # let device_key = SigningKey::generate();
//! let mut sealer = Sealer::new(
//!     DeviceId::try_from("pi-01")?,
//!     StreamId([7; 16]),
//!     device_key.verifying_key(),
//!     &[owner.public_key().clone()],
//! )?;
//! let now = Moment {
//!     boot: BootId([3; 16]),
//!     since_boot_ms: 81_000,
//!     time: "2026-11-23T11:20:44.123Z".parse::<Timestamp>()?,
//!     clock: ClockQuality::Synchronised,
//! };
//! let content = Content::Data { content_type: "text/plain", body: b"21.437 degrees" };
//! let record = sealer.seal(&device_key, &now, 1, content)?.to_bytes();
//!
//! // Anywhere else, later:
//! let envelope = Envelope::from_bytes(&record)?;
//! let verified = envelope.verify(device_key.verifying_key())?;
//! let opened = verified.open(&owner)?;
//! assert_eq!(opened.header().sequence, 1);
//! assert_eq!(opened.body(), b"21.437 degrees");
//! # Ok(())
//! # }
//! ```
//!
//! On the wire a record travels in a JSON [`Message`], alone or in a batch;
//! [`pack`] makes one of the records in a spool.
//!
//! # What it does not do
//!
//! It does not hide device ids, kinds, times, rates, sizes and the number of
//! owners. An owner's key opens all that was ever encrypted for it. Who is root
//! on a running device can read the records of the current epoch, and can have
//! the device's key sign what he likes. All keys have the 128-bit strength of
//! P-256. The crate keeps no clock and does no network; of files it reads and
//! writes owner keys and the trust file.

#![forbid(unsafe_code)]

mod crypto;
mod envelope;
mod error;
mod id;
pub mod key_file;
mod message;
mod owner;
mod report;
mod seal;
mod trust;

pub use envelope::{ClockQuality, Envelope, Header, Kind, MAX_ENCRYPTED_DATA, Opened, Verified};
pub use error::Error;
pub use id::{BootId, DeviceId, KeyId, RecipientId, StreamId, Timestamp};
pub use message::{Entry, MAX_MESSAGE, Message, pack};
pub use owner::{OwnerKey, OwnerPublicKey};
/// The types of a device's public key and its signatures are RustCrypto's.
pub use p256::ecdsa::{Signature, VerifyingKey};
pub use report::{
    ClockBefore, DRIFT_PPM, DeviceEvent, Heartbeat, LossReason, LossReceipt, PreviousStream,
    Report, SequenceRange, TimeAnchor,
};
pub use seal::{Content, Moment, Sealer};
pub use trust::{KeyState, TrustFile, TrustedDevice, TrustedKey};
