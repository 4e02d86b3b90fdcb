//! `zk-demo`: the whole system on one machine, with nothing.
#![forbid(unsafe_code)]
#![allow(clippy::print_stdout, clippy::print_stderr)]

mod demo;
mod forge;
mod keys;
mod link;
mod screen;

use std::io::IsTerminal;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::Parser;
use tracing_subscriber::Layer as _;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;

/// Shows the whole system on this machine: no chip, no Pi, no account, no root.
///
/// It sets up authorities, a gateway, an owner and a device with simulated
/// thermometers; publishes good data and forged data; cuts the link and brings
/// it back; then reads everything back as the owner would, and checks every
/// promise.
#[derive(Parser)]
#[command(
    version,
    after_help = "\
Examples:
  cargo run --release -p zk-demo
  cargo run --release -p zk-demo -- --hsm sim
  cargo run --release -p zk-demo -- --serve
  cargo run --release -p zk-demo -- --dir ./demo

Exit status: 0 all promises held, 1 one did not or the demo could not run, 2 wrong usage."
)]
struct Arguments {
    /// Where everything is kept, so that you can look into it; must not exist
    /// yet. Default: a new directory among the temporary files.
    #[arg(long)]
    dir: Option<PathBuf>,
    /// What holds the keys. A simulated chip fails in mid-run, and nothing is lost.
    #[arg(long, value_name = "KIND", default_value = "soft")]
    hsm: keys::Keys,
    /// Goes on sampling and publishing until Ctrl-C.
    #[arg(long)]
    serve: bool,
}

fn main() -> ExitCode {
    let Arguments { dir, hsm, serve } = Arguments::parse();
    let filter = std::env::var("RUST_LOG").ok();
    let filter = filter.and_then(|filter| zk_cli::log_filter(&filter).ok());
    let lines = tracing_subscriber::fmt::layer()
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal());
    tracing_subscriber::registry()
        .with(lines.with_filter(filter.unwrap_or_default()))
        .init();
    let outcome = tokio::runtime::Runtime::new()
        .map_err(anyhow::Error::from)
        .and_then(|runtime| runtime.block_on(demo::run(dir, hsm, serve)));
    match outcome {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("\nzk-demo could not go on: {error:#}");
            eprintln!("RUST_LOG=info shows what its parts say.");
            ExitCode::FAILURE
        }
    }
}
