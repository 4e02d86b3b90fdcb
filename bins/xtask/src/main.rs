//! The developers' commands: `cargo xtask test`, `cargo xtask fuzz`, `cargo xtask
//! bench`, `cargo xtask lambda`, `cargo xtask package`.
#![forbid(unsafe_code)]
#![allow(clippy::print_stdout, clippy::print_stderr)]

mod bench;
mod fuzz;
mod lambda;
#[cfg(feature = "manuals")]
mod manuals;
mod package;
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
    /// Looks for inputs that break a promise, for a time.
    ///
    /// Builds with counters in the workspace's code and lets libFuzzer change inputs
    /// until they reach more of it: docs/fuzzing.md.
    #[command(after_help = "Examples:\n  cargo xtask fuzz\n  cargo xtask fuzz spool --seconds 600")]
    Fuzz {
        /// One target only.
        target: Option<fuzz::Target>,
        /// How long each is run.
        #[arg(long, default_value_t = 20, value_parser = clap::value_parser!(u64).range(1..))]
        seconds: u64,
        /// Then keeps, in the target's corpus, the inputs that together reach most.
        #[arg(long)]
        keep: bool,
    },
    /// Measures, in ratios to what one would use instead.
    ///
    /// It prints and does not gate: a missed bar is in the table, and the exit
    /// status is 0. It takes minutes, the first build besides.
    #[command(
        after_help = "Examples:\n  cargo xtask bench\n  cargo xtask bench spool --dir /mnt/card\n  \
                      cargo xtask bench verify --json > verify.json"
    )]
    Bench(bench::Arguments),
    /// Builds zk-verifier-lambda as a zip for AWS Lambda, below target/lambda/.
    ///
    /// The compiler for it, Zig's, is installed below target/: docs/lambda.md.
    #[command(after_help = "Examples:\n  cargo xtask lambda\n  cargo xtask lambda --arch x86_64")]
    Lambda {
        /// The architecture of the function.
        #[arg(long, value_enum, default_value_t = lambda::Arch::Arm64)]
        arch: lambda::Arch,
    },
    /// Builds Debian packages of the programs, below target/package/.
    ///
    /// For Debian 11 or later and Raspberry Pi OS, 64 bits. What it takes beside
    /// dpkg is installed below target/; docs/packages.md says what is in them.
    #[command(
        after_help = "Examples:\n  cargo xtask package\n  cargo xtask package agent --arch arm64"
    )]
    Package {
        /// Which [otherwise: all].
        packages: Vec<package::Package>,
        /// For which architecture [otherwise: both].
        #[arg(long, value_enum)]
        arch: Vec<lambda::Arch>,
    },
    /// Writes man pages and shell completions of all programs.
    #[cfg(feature = "manuals")]
    #[command(hide = true)]
    Manuals { out: std::path::PathBuf },
}

fn main() -> ExitCode {
    let done = match Arguments::parse().command {
        Command::Bench(arguments) => bench::run(&arguments),
        Command::Lambda { arch } => lambda::run(arch),
        Command::Package { packages, arch } => package::run(&packages, &arch),
        #[cfg(feature = "manuals")]
        Command::Manuals { out } => manuals::write(&out),
        Command::Test { area } => test::run(area),
        Command::Fuzz {
            target,
            seconds,
            keep,
        } => fuzz::run(target, seconds, None, keep),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("xtask: {error:#}");
            ExitCode::FAILURE
        }
    }
}
