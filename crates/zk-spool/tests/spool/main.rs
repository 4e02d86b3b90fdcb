//! The spool, tested through its public surface.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stdout,
    missing_docs
)]

mod aside;
mod bad_input;
mod common;
mod concurrency;
mod contract;
mod damage;
mod disk;
mod format;
mod full;
mod inspect;
mod kill;
mod model;
mod power;
