//! `zk-setup`: arguments, what is printed where, exit code.
#![forbid(unsafe_code)]
#![allow(clippy::print_stdout, clippy::print_stderr)]

use std::io::IsTerminal;
use std::process::ExitCode;

use clap::Parser;
use tracing_subscriber::filter::LevelFilter;
use zk_setup::Arguments;

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    tracing_subscriber::fmt()
        .with_max_level(LevelFilter::WARN)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal())
        .without_time()
        .with_target(false)
        .init();
    match zk_setup::run(&arguments) {
        Ok(outcome) => {
            println!(
                "{}",
                if arguments.json {
                    outcome.json.to_string()
                } else {
                    outcome.text
                }
            );
            for hint in outcome.hints {
                eprintln!("{hint}");
            }
            ExitCode::SUCCESS
        }
        Err(error) => {
            let mut said = error.to_string();
            eprintln!("zk-setup: {said}");
            for cause in error.chain().skip(1).map(ToString::to_string) {
                // many errors tell their cause themselves
                if !said.contains(&cause) {
                    eprintln!("  because: {cause}");
                    said = cause;
                }
            }
            ExitCode::FAILURE
        }
    }
}
