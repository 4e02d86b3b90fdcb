//! The gateway, tested over TLS on loopback and as a process.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stdout,
    missing_docs
)]

mod config;
mod curl;
mod hostile;
mod http;
mod program;
mod publish;
mod service;
mod world;
