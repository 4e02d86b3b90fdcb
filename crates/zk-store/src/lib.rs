//! Where telemetry is kept: devices, readings and quarantine, in DynamoDB.
//!
//! A [`Store`] is three tables in DynamoDB, in anything that speaks its
//! protocol, or in one file with an engine inside this process, over no socket
//! (the feature `embedded`, which is on by default).
//! [`Store::ingest`] takes messages in; the rest is for those who set devices up
//! and those who read.
//!
//! ```
//! use zk_store::{Options, Store, StoreUri};
//! use zk_verify::{Context, Reason, topic_of};
//!
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! # let directory = tempfile::tempdir()?;
//! # let path = directory.path().join("zk.db");
//! let uri: StoreUri = format!("file:{}", path.display()).parse()?;
//! let store = Store::create(&uri, Options::default()).await?;
//!
//! let context = Context {
//!     principal: "3f2a".into(),
//!     topic: topic_of(&"pi-01".parse()?),
//!     received_at: "2026-11-23T11:20:45.001Z".parse()?,
//! };
//! let result = store.ingest(br#"{"deviceId":"pi-01"}"#, &context).await?;
//! // Nobody has registered that principal, so it is put aside.
//! assert_eq!(result.quarantined[0].reason, Reason::UnknownDevice);
//! assert!(store.quarantined(&result.quarantined[0].id).await?.is_some());
//! # Ok(())
//! # }
//! ```
//!
//! # When it is durable
//!
//! What [`Store::ingest`] has answered for is durable. In DynamoDB that is the
//! service's promise. In a file, every commit is followed by fsync of
//! SQLite's write-ahead log before it is answered (`journal_mode` WAL with
//! `synchronous` FULL, which the engine leaves as SQLite is built); writes
//! that wait at the same time share one commit. That holds as far as the medium
//! keeps what it said it has synced.
//!
//! A file may be open in several processes: a reader beside a gateway. It has
//! to be on a local file system, and who reads needs to be able to write, as the
//! locks lie beside the file (`-shm`, `-lock`; the log is `-wal`). Nothing else
//! should write to it: processes that use this library take turns by `-lock`.
//!
//! # What it asks of DynamoDB
//!
//! | who | devices | readings | quarantine |
//! | --- | --- | --- | --- |
//! | [`Store::ingest`] | `GetItem` | `PutItem` `GetItem` `UpdateItem` | `PutItem` `GetItem` `UpdateItem` |
//! | readers | `Scan` | `Query` | `Scan` `GetItem` |
//! | [`Store::rehearse`], besides | `GetItem` | `GetItem` | |
//! | [`Store::replay`], besides | `GetItem` | as `ingest` | as `ingest`, `DeleteItem` |
//! | set-up | `GetItem` `PutItem` `Scan` | | |
//! | [`Store::remove_device`] | `DeleteItem` | | |
//! | [`Store::create`] | `CreateTable` `DescribeTable` | the same | the same |
//! | [`Store::delete_tables`] | `DeleteTable` `UpdateTable` `DescribeTable` | the same | the same |
//!
//! # What expires
//!
//! Messages of the quarantine that no key of the device has signed carry the
//! attribute [`EXPIRES_AT`], 90 days after they came in first; so does what counts
//! them for each principal. Where time to live is enabled for the table by that
//! attribute, as a set-up in AWS does, DynamoDB deletes them within days after
//! that, and there is room for new ones. Anywhere else, in a file too, they stay
//! until they are replayed or discarded. Nothing else ever expires: no reading, no
//! device, no evidence that the device's key has signed.
//!
//! # What it does not do
//!
//! It believes nothing that it keeps, and nobody else should: whoever reads
//! verifies again, with keys of his own. It never deletes a reading.

#![forbid(unsafe_code)]

mod devices;
#[cfg(feature = "embedded")]
mod embedded;
#[cfg(not(feature = "embedded"))]
#[path = "without_engine.rs"]
mod embedded;
mod error;
mod ingest;
mod item;
mod quarantine;
mod readings;
mod store;
mod uri;

pub use error::StoreError;
pub use ingest::Ingested;
pub use quarantine::{EXPIRES_AT, Held, Overflow, Quarantine, Quarantined, Replayed};
pub use readings::{ReadingKeys, Readings, StoredReading};
pub use store::{Budget, Options, Store, TABLE_KEYS};
pub use uri::StoreUri;
