//! `zk-reader`: arguments, logging, exit code. What it does is in `commands`.
#![forbid(unsafe_code)]
#![allow(clippy::print_stdout, clippy::print_stderr)]

mod commands;
mod config;
mod passphrase;

use std::env;
use std::io::{self, IsTerminal};
use std::process::ExitCode;

use clap::error::ErrorKind;
use clap::{CommandFactory, Parser};
use tracing_subscriber::Layer as _;
use tracing_subscriber::filter::{LevelFilter, Targets};
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use zk_cli::{log_filter, tell_error};
use zk_reader::arguments::{Arguments, Command, Common, Quarantine};

use crate::config::Settings;

/// How a command that could do its work ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Outcome {
    Fine,
    Findings,
}

/// Why a command could not do its work.
#[derive(Debug)]
enum Failure {
    /// It was told too little, or something impossible.
    Usage(String),
    Failed(anyhow::Error),
}

impl<E: Into<anyhow::Error>> From<E> for Failure {
    fn from(error: E) -> Self {
        Self::Failed(error.into())
    }
}

fn main() -> ExitCode {
    let Arguments { common, command } = Arguments::parse();
    // One that is wrong is none.
    let filter = env::var("RUST_LOG").ok();
    let filter = filter.and_then(|filter| log_filter(&filter).ok());
    let lines = tracing_subscriber::fmt::layer()
        .with_writer(io::stderr)
        .with_ansi(io::stderr().is_terminal());
    tracing_subscriber::registry()
        .with(
            lines.with_filter(
                filter.unwrap_or_else(|| Targets::new().with_default(LevelFilter::WARN)),
            ),
        )
        .init();
    match run(common, command) {
        Ok(Outcome::Fine) => ExitCode::SUCCESS,
        Ok(Outcome::Findings) => ExitCode::from(3),
        Err(Failure::Usage(what)) => {
            let error = Arguments::command().error(ErrorKind::MissingRequiredArgument, what);
            // Who can't be told can't be told.
            let _ = error.print();
            ExitCode::from(2)
        }
        Err(Failure::Failed(error)) => {
            if !is_broken_pipe(&error) {
                tell_error("zk-reader", error.as_ref());
            }
            ExitCode::FAILURE
        }
    }
}

fn run(common: Common, command: Command) -> Result<Outcome, Failure> {
    if let Command::Keygen {
        out,
        backup,
        no_backup,
        json,
    } = &command
    {
        let passphrase_file = common.passphrase_file.as_deref();
        return commands::keygen(out, backup.as_deref(), *no_backup, passphrase_file, *json);
    }
    let settings = Settings::resolve(common)?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    runtime.block_on(async {
        match command {
            Command::Keygen { .. } => Ok(Outcome::Fine),
            Command::List {
                selection,
                limit,
                as_signed,
                json,
            } => commands::list(&settings, &selection, limit, as_signed, json).await,
            Command::Show {
                device,
                record,
                from,
                to,
                as_signed,
                json,
            } => {
                let times = commands::range(from, to)?;
                commands::show(&settings, &device, &record, times, as_signed, json).await
            }
            Command::Follow(arguments) => commands::follow::follow(&settings, &arguments).await,
            Command::Export(arguments) => commands::export::export(&settings, &arguments).await,
            Command::Audit { selection, json } => {
                commands::audit(&settings, &selection, json).await
            }
            Command::Quarantine(command) => match command {
                Quarantine::List { among, json } => {
                    commands::quarantine::list(&settings, &among, json).await
                }
                Quarantine::Show { id, json } => {
                    commands::quarantine::show(&settings, &id, json).await
                }
                Quarantine::Replay(arguments) => {
                    commands::quarantine::replay(&settings, &arguments).await
                }
            },
        }
    })
}

/// Nobody reads any more what is written: no news to anybody.
fn is_broken_pipe(error: &anyhow::Error) -> bool {
    error
        .downcast_ref::<io::Error>()
        .is_some_and(|error| error.kind() == io::ErrorKind::BrokenPipe)
}
