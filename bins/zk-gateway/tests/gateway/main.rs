//! The gateway, tested over TLS on loopback and as a process.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]

mod config;
mod curl;
mod http;
mod program;
mod publish;
mod world;
