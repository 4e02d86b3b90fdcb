//! From the spool to the cloud: HTTPS publish over mutual TLS, oldest first,
//! acknowledged only when delivered.
//!
//! A [`Publisher`] is a thread that empties a spool: it takes the oldest
//! records, packs them into a message, sends it to its [`Target`], AWS IoT or
//! a gateway that speaks like it, and acknowledges them once the answer is
//! 2xx. When there is no link it keeps everything and tries again.
//!
//! ```no_run
//! use std::convert::Infallible;
//! use std::sync::Arc;
//! use std::time::Duration;
//!
//! use zk_publish::{Options, Publisher, Target};
//! use zk_spool::Spool;
//!
//! # fn run(tls: Arc<rustls::ClientConfig>) -> Result<(), Box<dyn std::error::Error>> {
//! let spool = Arc::new(Spool::open("/var/lib/example", zk_spool::Options::default())?);
//! let target = Target::new("a1b2c3-ats.iot.eu-central-1.amazonaws.com", "Zymkey/pi-01")?;
//! // `tls` is a rustls client configuration: the roots of the server's
//! // authority, and the device's certificate with a key that may be in a chip.
//! let publisher = Publisher::spawn(
//!     Arc::clone(&spool),
//!     target,
//!     tls,
//!     Options::default(),
//!     // how to make a message of records; zk_envelope::pack does it for envelopes
//!     |records, _limit| Ok::<_, Infallible>((records[0].to_vec(), 1)),
//! )?;
//!
//! spool.append_with(|_sequence| Ok::<_, Infallible>(b"21.437".to_vec()))?;
//!
//! // At the end: ten seconds for what is left. The rest stays in the spool.
//! let status = publisher.stop(Duration::from_secs(10));
//! println!("{} delivered, last error: {:?}", status.records, status.last_error);
//! # Ok(())
//! # }
//! ```
//!
//! A [`Client`] sends single messages, for an async program that keeps its
//! records elsewhere, or for a person who wants to see what the server says.
//!
//! # What it does not do
//!
//! It never looks into records or messages. It cannot tell whether what AWS
//! IoT has taken was stored by a rule. A message can arrive twice, when an
//! answer was lost or a process ended between delivery and acknowledgement;
//! the receiver has to recognise it, as the gateway and the Lambda do. It does
//! not subscribe, and speaks neither MQTT nor HTTP/2.

#![forbid(unsafe_code)]

mod backoff;
mod client;
mod error;
mod link;
mod publisher;
mod resolve;
mod status;
mod target;

pub use backoff::Backoff;
pub use client::{Client, Delivered, Timeouts};
pub use error::{Answer, Phase, PublishError};
pub use publisher::{Options, Publisher};
pub use status::{State, Status};
pub use target::{Target, TargetError};
