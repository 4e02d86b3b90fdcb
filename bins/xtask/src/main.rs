//! The developers' commands: `cargo xtask test`.
#![forbid(unsafe_code)]
#![allow(clippy::print_stdout, clippy::print_stderr)]

mod test;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// The developers' commands of the workspace.
#[derive(Parser)]
#[command(name = "cargo xtask")]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Sets up what the tests need below target/, then runs them.
    ///
    /// Without an area it runs all of them. `cargo test --workspace` alone needs no
    /// foreign program but the openssl command.
    #[command(after_help = "Examples:\n  cargo xtask test\n  cargo xtask test peers")]
    Test {
        /// One area only.
        area: Option<test::Area>,
    },
}

fn main() -> ExitCode {
    let Command::Test { area } = Arguments::parse().command;
    match test::run(area) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("xtask: {error:#}");
            ExitCode::FAILURE
        }
    }
}
