//! An ordered, durable queue of byte records in a directory: what `append`
//! returned survives a power cut.
//!
//! Records are opaque. Each one gets the next number of a *stream* while it is
//! made, so that the number can be part of what is signed; the spool never
//! gives the same number out twice. One side appends, another one takes the
//! oldest records, delivers them, and acknowledges.
//!
//! ```
//! use zk_spool::{Options, Spool};
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! # let directory = tempfile::tempdir()?;
//! # let directory = directory.path().join("spool");
//! let spool = Spool::open(&directory, Options::default())?;
//! for celsius in ["21.437", "21.500"] {
//!     // Durable when it returns. The closure is where a slow chip signs.
//!     spool.append_with(|sequence| {
//!         Ok::<_, std::io::Error>(format!("{sequence}: {celsius}").into_bytes())
//!     })?;
//! }
//!
//! let records = spool.peek(64, 128 * 1024)?;
//! assert_eq!(records[0].bytes(), b"1: 21.437");
//! // Deliver them, then:
//! if let Some(last) = records.last() {
//!     spool.ack(last.position())?;
//! }
//!
//! // Whatever will not be delivered is named until that is confirmed.
//! assert!(spool.losses()?.is_empty());
//! # Ok(())
//! # }
//! ```
//!
//! # What it promises
//!
//! - An append is durable when it returns, or within a stated window
//!   ([`SyncPolicy`]). Only durable records can be [peeked](Spool::peek) at, so
//!   nothing is published that a power cut could take back.
//! - Every number up to the newest is delivered, or named by a [`Loss`] with its
//!   [`Reason`]: dropped at the cap, damaged on the medium, refused by the
//!   receiver. A loss is written down before anything is taken away.
//! - A number stands for one record. Where a crash leaves that in doubt, a new
//!   stream begins, which [knows what was before](Spool::predecessor).
//! - A damaged file, a full disk or a crash at any moment never need a hand: the
//!   spool opens, serves what can be served, and says what can't.
//! - After an I/O error it stops until it is opened again.
//!
//! # What it does not do
//!
//! It does not look into records, encrypt them, or hide their sizes. It has one
//! writer process, and one place from which it is drained. It delivers at least
//! once: a crash between delivery and acknowledgement means a repeat. An append
//! that did not return may or may not be there after a crash. It needs a local
//! POSIX file system that keeps the assumptions of `docs/spool-format.md`, where
//! the files are laid out byte by byte.
//!
//! # Features
//!
//! `sled` adds `Engine::Sled`, which stores segments in sled databases. It costs more
//! and can do less than the log: `docs/spool-engines.md`.
//!
//! `fault-injection` adds the module `storage`, for tests: a file system in
//! memory that loses what was not synced, fills up, fails, and stops at any
//! operation; and `Spool::open_on`, to use it.
#![forbid(unsafe_code)]

mod drain;
mod error;
mod format;
mod inspect;
mod ledger;
mod loss;
mod options;
mod record;
mod recover;
mod rejected;
mod segment;
mod spool;
mod stats;
#[cfg(feature = "fault-injection")]
pub mod storage;
#[cfg(not(feature = "fault-injection"))]
#[allow(unreachable_pub, reason = "public with the feature")]
mod storage;
mod survey;
mod walk;
mod writer;

pub use error::{AppendError, Error};
pub use format::MAX_RECORD;
pub use inspect::{Inspection, inspect};
pub use loss::{Loss, Reason};
pub use options::{Engine, Full, Options, SyncPolicy};
pub use record::{End, Position, Predecessor, Record, StreamId};
pub use rejected::Rejected;
pub use spool::Spool;
pub use stats::{Damage, Report, Stats};
