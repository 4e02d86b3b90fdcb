//! The simulator through its C functions, as a program loads them.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stdout
)]

mod devices;
mod faults;
mod functions;
mod support;
