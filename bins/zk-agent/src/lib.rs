//! The service on the device: sensors to sealed records, spooled on disk and
//! published over mutual TLS.
//!
//! The program `zk-agent` is a thin shell around [`Agent`]; applications that
//! want the same pipeline in their own process use it directly.
//!
//! ```no_run
//! use std::path::Path;
//! use std::time::Duration;
//! use zk_agent::{Agent, Config};
//!
//! # fn main() -> Result<(), zk_agent::Error> {
//! let config = Config::read(Path::new("/etc/zk-agent/agent.toml"))?;
//! let agent = Agent::start(&config, || eprintln!("call stop to learn why"))?;
//! println!("{} readings sealed so far", agent.status()?.sealed);
//! agent.stop(Duration::from_secs(10))?;
//! # Ok(())
//! # }
//! ```
//!
//! # Records it makes
//!
//! Readings (kind 1), several in one record when the key is slow; a
//! `stream-started` event (kind 4) as the first record of each stream; a
//! heartbeat (kind 5) at a fixed interval; a time anchor (kind 3) when the wall
//! clock was set, and as a first record if it is right; a loss receipt (kind 2)
//! for whatever the spool had to give up.
//!
//! `unsafe` is in one module, which asks the kernel how its clock is kept.

mod agent;
pub mod arguments;
mod check;
mod clock;
mod config;
mod error;
mod files;
mod metrics;
mod serve;
mod socket;

pub use agent::{Agent, Event, Status, Watch, receipt_of};
pub use check::{Finding, check};
pub use clock::Clock;
pub use config::{
    Config, Device, Engine, Events, Full, Heartbeat, Log, LogFormat, MetricsTable, Owners, Sensors,
    SocketTable, SpoolTable, Sync, Target, loopback, template,
};
pub use error::{Error, with_causes};
pub use files::{certificates, check_certificate, owner, roots};
pub use metrics::Metrics;
pub use socket::MAX_DATA;
