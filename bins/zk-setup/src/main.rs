//! `zk-setup`: arguments, what is printed where, exit code.
#![forbid(unsafe_code)]

use std::io::{self, IsTerminal, Write};
use std::process::ExitCode;

use clap::Parser;
use tracing_subscriber::Layer;
use tracing_subscriber::filter::{LevelFilter, Targets};
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use zk_cli::{tell, tell_error};
use zk_setup::Arguments;

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let logged = Targets::new()
        .with_default(LevelFilter::WARN)
        // it tells of each place where it looked in vain
        .with_target("aws_config", LevelFilter::ERROR);
    let to_stderr = tracing_subscriber::fmt::layer()
        .with_writer(io::stderr)
        .with_ansi(io::stderr().is_terminal())
        .without_time()
        .with_target(false)
        // it would tell them to the standard error that it can't write to
        .log_internal_errors(false);
    tracing_subscriber::registry()
        .with(to_stderr.with_filter(logged))
        .init();
    // A script gets one object; whoever looks on sees what happens all the same.
    // Whoever has gone away doesn't keep the work from being done.
    let mut say = |line: &str| {
        let _ = if arguments.json {
            writeln!(io::stderr(), "{line}")
        } else {
            writeln!(io::stdout(), "{line}")
        };
    };
    match zk_setup::run(&arguments, &mut say) {
        Ok(outcome) => {
            let text = if arguments.json && !outcome.json.is_null() {
                outcome.json.to_string()
            } else {
                outcome.text
            };
            let written = if text.is_empty() {
                Ok(())
            } else {
                writeln!(io::stdout(), "{text}")
            };
            if let Err(error) = written
                && error.kind() != io::ErrorKind::BrokenPipe
            {
                tell(&format!(
                    "zk-setup: cannot write to standard output: {error}"
                ));
                return ExitCode::FAILURE;
            }
            for hint in outcome.hints {
                tell(&hint);
            }
            ExitCode::from(if outcome.findings { 3 } else { 0 })
        }
        Err(error) => {
            tell_error("zk-setup", error.as_ref());
            ExitCode::FAILURE
        }
    }
}
