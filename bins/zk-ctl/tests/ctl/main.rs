//! The program as a process, against a gateway and a store that are real.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]

mod chip;
mod doctor;
mod forge;
mod hsm;
mod publish;
mod sensors;
mod spool;
mod token;
mod usage;
mod world;
