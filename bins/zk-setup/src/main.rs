//! `zk-setup`: arguments, what is printed where, exit code.
#![forbid(unsafe_code)]

use std::error::Error;
use std::io::{self, IsTerminal, Write};
use std::process::ExitCode;
use std::sync::Arc;

use clap::Parser;
use tracing_subscriber::Layer;
use tracing_subscriber::filter::{LevelFilter, Targets};
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
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
            let mut said = error.to_string();
            tell(&format!("zk-setup: {}", printable(&said)));
            for cause in error.chain().skip(1).map(ToString::to_string) {
                // many errors tell their cause themselves
                if !said.contains(&cause) {
                    tell(&format!("  because: {}", printable(&cause)));
                    said = cause;
                }
            }
            let files = error.chain().filter_map(io_error);
            if let Some(cure) = files.last().and_then(cure) {
                tell(&format!("  next: {cure}"));
            }
            ExitCode::FAILURE
        }
    }
}

/// A line to standard error, if anybody is there: `eprintln!` would panic.
fn tell(line: &str) {
    let _ = writeln!(io::stderr(), "{line}");
}

/// Text that may hold what a store or a file says, made fit for a terminal.
fn printable(text: &str) -> String {
    let shown = |c: char| match c {
        '\n' | '"' | '\'' | '\\' => c.to_string(),
        _ => c.escape_debug().to_string(),
    };
    text.chars().map(shown).collect()
}

fn io_error<'a>(error: &'a (dyn Error + 'static)) -> Option<&'a io::Error> {
    let shared = || error.downcast_ref::<Arc<io::Error>>().map(AsRef::as_ref);
    error.downcast_ref().or_else(shared)
}

/// What to do about a file that can't be used.
fn cure(error: &io::Error) -> Option<&'static str> {
    match error.kind() {
        io::ErrorKind::NotFound => Some("check the path; a relative one begins where you are"),
        io::ErrorKind::PermissionDenied => {
            Some("run this as the file's owner, or have the owner permit it")
        }
        io::ErrorKind::IsADirectory | io::ErrorKind::NotADirectory => {
            Some("check the path: a file is needed where a directory is, or the other way round")
        }
        io::ErrorKind::AlreadyExists => Some("choose another path, or move away what is there"),
        io::ErrorKind::InvalidData => Some("this is no text file; check the path"),
        io::ErrorKind::StorageFull => Some("the disk is full: free some space, and try again"),
        _ => None,
    }
}
