//! A gateway of your own in place of AWS IoT: it takes telemetry over mutual
//! TLS the way AWS IoT's HTTPS endpoint does, verifies it, and stores it.
//!
//! ```text
//!   POST /topics/Zymkey%2F<device>?qos=1
//!   200 {"message":"OK","traceId":"…"}      durable: stored, or in quarantine
//!   403 {"message":"…","traceId":"…"}       this certificate is not registered, or revoked
//!   503 {"message":"…","traceId":"…"}       the store cannot take it now: send it again
//! ```
//!
//! The handshake lets in who has a certificate of the device CA. Whether that
//! certificate is registered and not revoked is looked up for every request,
//! before its body is read. What a message contains is checked by `zk-verify`
//! and kept by `zk-store`; the gateway itself adds nothing to that but limits:
//! see [`Limits`] for all of them.
//!
//! The program is this library with arguments, logging and signals around it:
//!
//! ```no_run
//! use std::path::Path;
//!
//! use tokio::net::TcpListener;
//! use zk_gateway::{Config, Gateway, Overrides, Tls, run};
//! use zk_store::{Options, Store};
//!
//! # async fn serve() -> Result<(), Box<dyn std::error::Error>> {
//! let config = Config::load(Path::new("gateway.toml"), Overrides::default())?;
//! let store = Store::open(&config.store, Options::default()).await?;
//! let gateway = Gateway::new(store, Tls::load(&config.tls)?, config.limits);
//! let listener = TcpListener::bind(config.listen).await?;
//! run(listener, gateway.clone(), async {
//!     // returns when it is time to stop
//! # std::future::pending::<()>().await
//! })
//! .await;
//! println!("{} records stored", gateway.counters().stored);
//! # Ok(())
//! # }
//! ```
//!
//! # What it does not do
//!
//! It publishes to nobody: there are no subscribers, rules or shadows, and
//! both values of `qos` mean the same. It cannot read what it stores. It does
//! not limit how much a registered device may send in a day.

#![forbid(unsafe_code)]

pub mod arguments;
mod config;
mod counters;
mod error;
mod gateway;
mod request;
mod serve;
mod tls;
mod turns;

pub use config::{Config, Limits, Overrides, TlsFiles, loopback};
pub use counters::Counters;
pub use error::Error;
pub use gateway::Gateway;
#[cfg(feature = "fuzzing")]
#[doc(hidden)]
pub use serve::serve_proven;
pub use serve::{run, run_metrics};
pub use tls::Tls;
