//! What AWS IoT takes in, verified and stored: an AWS Lambda function behind a
//! rule, with the same [`ingest`](zk_store::Store::ingest) as the gateway.
//!
//! ```text
//!   SELECT encode(*,'base64') AS message, principal() AS principal,
//!          topic() AS topic, timestamp() AS receivedAt
//!   FROM 'Zymkey/+'
//! ```
//!
//! The rule gives the published bytes as they came, and beside them what AWS IoT
//! itself knows of the sender, which no member of a payload can pose as. That is
//! an [`Event`]; the message in it is one envelope or a batch.
//!
//! | what is wrong | answer | then |
//! | --- | --- | --- |
//! | the message: forged, of a stranger, malformed, too large | success | it is in quarantine |
//! | the store: away, slow, out of room for evidence | [`Error::Store`], [`Error::Late`] | Lambda tries again, then the dead-letter queue has it |
//! | the event: not what the rule gives | [`Error::Event`] | the same |
//!
//! The program is [`handle`] with Lambda's runtime around it:
//!
//! ```no_run
//! use std::time::{Duration, SystemTime};
//!
//! use zk_verifier_lambda::{Config, handle};
//!
//! # async fn invoked(event: &str) -> Result<(), zk_verifier_lambda::Error> {
//! let store = Config::from_env()?.open().await?;
//! let deadline = SystemTime::now() + Duration::from_secs(20);
//! let answer = handle(&store, event, "the request's id", deadline).await?;
//! println!("{} records stored", answer.stored);
//! # Ok(())
//! # }
//! ```
//!
//! # What it does not do
//!
//! It takes the rule's events one at a time, not through a queue. It cannot read
//! what it stores. It logs no payload.

#![forbid(unsafe_code)]

mod config;
mod error;
mod event;
mod function;

pub use config::Config;
pub use error::Error;
pub use event::Event;
pub use function::{Answer, Quarantined, handle};
