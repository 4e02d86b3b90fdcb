//! The verdict on a telemetry message, and the audit of what is stored.
//!
//! Everything here is a pure function of its arguments: no clock, no network,
//! no disk. [`check`] decides on what comes in, the same way behind a gateway,
//! in a cloud function, and once more when quarantined messages are replayed.
//! [`recheck`] is the owner's own look at a stored record, and [`Audit`] tells
//! what a device's records say together.
//!
//! ```
//! use zk_verify::{Context, Reason, check, principal_of, topic_of};
//!
//! # fn main() -> Result<(), zk_envelope::Error> {
//! let device = "pi-01".parse()?;
//! let context = Context {
//!     principal: principal_of(b"the DER of the certificate that the TLS client showed"),
//!     topic: topic_of(&device),
//!     received_at: "2026-11-23T11:20:45.001Z".parse()?,
//! };
//! // Nothing is registered for that certificate.
//! let verdicts = check(br#"{"deviceId":"pi-01"}"#, &context, None);
//! let [Err(evidence)] = &verdicts[..] else { panic!() };
//! assert_eq!(evidence.reason, Reason::UnknownDevice);
//! assert_eq!(evidence.reason.to_string(), "unknown-device");
//! # Ok(())
//! # }
//! ```
//!
//! # What it does not do
//!
//! It looks nothing up: who registered which key is the caller's knowledge. It
//! never decrypts, and could not: that takes an owner's key. It cannot know what
//! is stored already, so [`Reason::Conflict`] is found by a store.

#![forbid(unsafe_code)]

mod audit;
mod check;
mod dating;
mod ranges;
mod reason;

pub use audit::{
    Alarm, AlarmKind, Audit, ClockRepair, Damaged, Findings, Gap, Origin, Place, StreamFindings,
};
pub use check::{
    Accepted, Context, DeviceRecord, Evidence, Verdict, check, principal_of, recheck, topic_of,
};
pub use dating::{Dated, Dating};
pub use reason::{Reason, UnknownReason};
