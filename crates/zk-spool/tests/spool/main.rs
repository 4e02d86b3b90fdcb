//! The spool, tested through its public surface.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stdout,
    missing_docs
)]

/// The engine that is tested; `tests/sled` does the same with another.
const ENGINE: zk_spool::Engine = zk_spool::Engine::Log;

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
mod streams;
