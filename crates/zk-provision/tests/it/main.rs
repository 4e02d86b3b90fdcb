//! The crate through its public surface, with openssl and rustls as judges.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]

mod certificates;
mod common;
mod devices;
mod plan;
mod request;
#[cfg(feature = "aws")]
mod roots;
mod rotate;
mod setup;
