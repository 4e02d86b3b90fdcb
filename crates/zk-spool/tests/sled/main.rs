//! The tests of the public surface once more, with the engine `sled`; and what it
//! alone has to show.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stdout,
    missing_docs
)]

/// The engine that is tested.
const ENGINE: zk_spool::Engine = zk_spool::Engine::Sled;

#[path = "../spool/common.rs"]
#[allow(dead_code, reason = "some of it is for tests on storage in memory")]
mod common;
#[path = "../spool/concurrency.rs"]
mod concurrency;
#[path = "../spool/contract.rs"]
mod contract;
mod costs;
// But for the images, about the engine `log`; as are those on a disk in memory.
#[path = "../spool/disk.rs"]
mod disk;
#[path = "../spool/full.rs"]
mod full;
mod guard;
#[path = "../spool/kill.rs"]
#[allow(dead_code, reason = "some of it is for tests of the engine `log`")]
mod kill;
#[path = "../spool/model.rs"]
mod model;
