//! Reads telemetry back on the owner's machine: verifies, opens, audits.
//!
//! A [`Reader`] is a store seen by an owner. Each record is verified with the
//! keys of the owner's trust file, never with what the store says of keys, and
//! opened with the owner's key. What does not verify or open is shown as what
//! it is.
//!
//! ```
//! use zk_envelope::{OwnerKey, TrustFile};
//! use zk_reader::{Reader, Table, all_times, describe};
//! use zk_store::{Options, Store, StoreUri};
//!
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! # let directory = tempfile::tempdir()?;
//! # let (trust, owner) = (TrustFile::default(), OwnerKey::generate()?);
//! # let uri: StoreUri = format!("file:{}", directory.path().join("zk.db").display()).parse()?;
//! # Store::create(&uri, Options::default()).await?;
//! // let trust = TrustFile::read(path)?;
//! // let owner = OwnerKey::read(path, passphrase)?;
//! let store = Store::open(&uri, Options::default()).await?;
//! let reader = Reader::new(store, trust, owner);
//!
//! let device = "pi-01".parse()?;
//! let table = Table::new([&device]);
//! let mut records = reader.records(&device, all_times());
//! while let Some(record) = records.next().await {
//!     for row in table.rows(&record?) {
//!         println!("{row}");
//!     }
//! }
//!
//! let findings = reader.audit(&device, all_times()).await?;
//! assert!(findings.last_heard.is_none());
//! # let now = zk_envelope::Timestamp::MAX;
//! assert_eq!(describe(&findings, now), "pi-01: nothing heard\n");
//! # Ok(())
//! # }
//! ```
//!
//! All text that comes from here may go to a terminal: what a store or a sender
//! can choose is escaped. [`Record::to_json`] and the like are for programs.
//!
//! # What it does not do
//!
//! It cannot see what a store leaves out at the end of a stream, only when the
//! device was heard last. When a record was received is the store's word: a
//! store that lies can show what a revoked key signed later as received before.
//! Opening takes the owner's key into memory; it leaves the machine by no way of
//! this crate. It prints nothing, and writes no files but those of [`keygen`].

#![forbid(unsafe_code)]

pub mod arguments;
mod audit;
mod describe;
mod error;
mod export;
mod follow;
mod json;
mod keygen;
mod quarantine;
mod reader;
mod registry;
mod text;
pub mod when;

pub use describe::describe;
pub use error::Error;
pub use export::Csv;
pub use follow::{Follow, Following, News, Reach};
pub use json::findings_json;
pub use keygen::{KeyFiles, MIN_PASSPHRASE, keygen};
pub use quarantine::{
    quarantine_heading, quarantine_json, quarantine_page, quarantine_rows, replay_json, replay_row,
};
pub use reader::{Dates, Delivery, Reader, Record, Records, State, Wanted, all_times};
pub use registry::{Difference, Registry};
pub use text::Table;
