//! `zk-ctl`: arguments, what is printed where, exit code.
#![forbid(unsafe_code)]

use std::io::{self, IsTerminal, Write};
use std::process::ExitCode;

use clap::Parser;
use tracing_subscriber::filter::LevelFilter;
use zk_cli::{tell, tell_error};
use zk_ctl::{Arguments, Outcome, Output};

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    tracing_subscriber::fmt()
        .with_max_level(LevelFilter::WARN)
        .with_writer(io::stderr)
        .with_ansi(io::stderr().is_terminal())
        .without_time()
        .with_target(false)
        .init();
    match zk_ctl::run(&arguments) {
        Ok(outcome) => {
            if let Err(error) = print(&outcome, arguments.json)
                && error.kind() != io::ErrorKind::BrokenPipe
            {
                tell(&format!("zk-ctl: cannot write to standard output: {error}"));
                return ExitCode::FAILURE;
            }
            for hint in outcome.hints {
                tell(&hint);
            }
            ExitCode::from(outcome.exit)
        }
        Err(error) => {
            tell_error("zk-ctl", &error);
            ExitCode::from(error.exit_code())
        }
    }
}

fn print(outcome: &Outcome, json: bool) -> io::Result<()> {
    let mut out = io::stdout().lock();
    match &outcome.output {
        Output::Said => {}
        _ if json => writeln!(out, "{}", outcome.to_json())?,
        Output::Bytes(bytes) => out.write_all(bytes)?,
        Output::Text(text) => writeln!(out, "{text}")?,
    }
    out.flush()
}
