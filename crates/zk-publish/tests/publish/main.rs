//! Publishing, tested against a real TLS server on loopback.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]

mod client;
mod publisher;
mod server;
mod target;
