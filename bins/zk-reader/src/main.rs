//! `zk-reader`: arguments, logging, exit code. What it does is in `commands`.
#![forbid(unsafe_code)]
#![allow(clippy::print_stdout, clippy::print_stderr)]

mod commands;
mod config;
mod passphrase;
mod when;

use std::error::Error;
use std::io::{self, IsTerminal};
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;

use clap::error::ErrorKind;
use clap::{Args, CommandFactory, Parser, Subcommand};
use tracing_subscriber::EnvFilter;
use zk_envelope::DeviceId;
use zk_reader::printable;
use zk_store::StoreUri;

use crate::config::Settings;
use crate::when::When;

/// Reads telemetry back on the owner's machine.
///
/// Every record is verified with the keys of the trust file, never with what the
/// store says of keys, and opened with the owner's key, here.
#[derive(Debug, Parser)]
#[command(name = "zk-reader", version, after_long_help = AFTER_HELP)]
struct Arguments {
    #[command(flatten)]
    common: Common,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Args)]
struct Common {
    /// Where the records are: file:PATH or dynamodb:REGION.
    #[arg(long, global = true, help_heading = SETTINGS, env = "ZK_READER_STORE", value_name = "URI")]
    store: Option<StoreUri>,
    /// The owner's key, as `zk-reader keygen` makes it.
    #[arg(long, global = true, help_heading = SETTINGS, env = "ZK_READER_KEY", value_name = "FILE")]
    key: Option<PathBuf>,
    /// The trust file, as `zk-setup` writes it.
    #[arg(long, global = true, help_heading = SETTINGS, env = "ZK_READER_TRUST", value_name = "FILE")]
    trust: Option<PathBuf>,
    /// A file with the key's passphrase that nobody else may read. Without it
    /// ZK_OWNER_PASSPHRASE is used, or the terminal asked.
    #[arg(long, global = true, help_heading = SETTINGS, value_name = "FILE")]
    passphrase_file: Option<PathBuf>,
    /// Defaults for store, key, trust and passphrase-file, in TOML. Without it
    /// ~/.config/zk/reader.toml, if there is one.
    #[arg(long, global = true, help_heading = SETTINGS, value_name = "FILE")]
    config: Option<PathBuf>,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Make an owner's key and its backup.
    ///
    /// Writes the private key (encrypted PKCS#8, mode 0600), the public key
    /// beside it (.pub.pem), which devices encrypt for, and a backup. Reads all
    /// back; overwrites nothing.
    #[command(after_help = KEYGEN_EXAMPLES)]
    Keygen {
        /// The private key's file.
        #[arg(long, value_name = "FILE", default_value = "owner.pem")]
        out: PathBuf,
        /// Where the backup goes: a file or directory elsewhere, best on a
        /// medium that can be taken away.
        #[arg(long, value_name = "PATH", conflicts_with = "no_backup")]
        backup: Option<PathBuf>,
        /// Make no backup. If the key is lost, so is everything that was ever
        /// encrypted for it.
        #[arg(long)]
        no_backup: bool,
    },
    /// List records: a row for each sensor reading, a summary of the others.
    ///
    /// Device by device, in the order of the signed time (UTC). A `?` behind a
    /// time says that the device knew nothing of its clock. Records that do not
    /// verify or open are listed as REFUSED, SEALED or DAMAGED, and alarms
    /// follow the record that raises them; then the exit status is 3. So it is
    /// when the store's registry says something else than the trust file.
    #[command(after_help = LIST_EXAMPLES)]
    List {
        #[command(flatten)]
        selection: Selection,
        /// Only the newest records of each device, so many.
        #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
        limit: Option<u32>,
        /// One JSON object in a line for each record.
        #[arg(long)]
        json: bool,
    },
    /// Show one record in full.
    #[command(after_help = SHOW_EXAMPLES)]
    Show {
        /// The device.
        device: DeviceId,
        /// Its number, for which all keys of the device are looked at, or its
        /// key in the store, which is found at once.
        #[arg(value_name = "NUMBER|KEY")]
        record: String,
        /// As a JSON object.
        #[arg(long)]
        json: bool,
    },
    /// Say whether anything is missing, twice, or not as it should be.
    ///
    /// Without --from and --to, every stored record is part of it, and numbers
    /// before the first and after the last one can be missing too. With them it
    /// is about the numbers between the first and the last record of that time;
    /// one that is missing there is looked for at all other times too.
    #[command(after_help = AUDIT_EXAMPLES)]
    Audit {
        #[command(flatten)]
        selection: Selection,
        /// One JSON object in a line for each device.
        #[arg(long)]
        json: bool,
    },
    /// Look into what was not accepted. Needs only the store.
    #[command(subcommand)]
    Quarantine(Quarantine),
}

#[derive(Debug, Subcommand)]
enum Quarantine {
    /// The newest 1000, the newest last.
    List {
        /// All of them in no particular order, one JSON object in a line for each.
        #[arg(long)]
        json: bool,
    },
    /// All that can be told of one message, and its first bytes.
    Show {
        /// Its id.
        id: String,
        /// As a JSON object, with the whole message in hex.
        #[arg(long)]
        json: bool,
    },
}

#[derive(Debug, Args)]
struct Selection {
    /// One device; otherwise all that the trust file or the store knows.
    #[arg(long, value_name = "DEVICE")]
    device: Option<DeviceId>,
    /// Signed at this time or later: 2026-11-23T11:20:44Z, 2026-11-23 (UTC), or
    /// a time ago such as 90m, 12h or 7d.
    #[arg(long, value_name = "TIME")]
    from: Option<When>,
    /// Signed at this time or earlier; a day is meant to its end.
    #[arg(long, value_name = "TIME")]
    to: Option<When>,
}

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
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("warn"));
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(io::stderr)
        .with_ansi(io::stderr().is_terminal())
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
                eprintln!("zk-reader: {}", printable(&told(&error)));
            }
            ExitCode::FAILURE
        }
    }
}

/// The error, its causes as far as it doesn't tell them itself, and what to do.
fn told(error: &anyhow::Error) -> String {
    let mut told = error.to_string();
    for cause in error.chain().skip(1).map(ToString::to_string) {
        if !told.contains(&cause) {
            told = format!("{told}: {cause}");
        }
    }
    let files = error.chain().filter_map(io_error);
    match files.last().and_then(cure) {
        Some(cure) => format!("{told}; {cure}"),
        None => told,
    }
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

fn run(common: Common, command: Command) -> Result<Outcome, Failure> {
    if let Command::Keygen {
        out,
        backup,
        no_backup,
    } = &command
    {
        let passphrase_file = common.passphrase_file.as_deref();
        return commands::keygen(out, backup.as_deref(), *no_backup, passphrase_file);
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
                json,
            } => commands::list(&settings, &selection, limit, json).await,
            Command::Show {
                device,
                record,
                json,
            } => commands::show(&settings, &device, &record, json).await,
            Command::Audit { selection, json } => {
                commands::audit(&settings, &selection, json).await
            }
            Command::Quarantine(Quarantine::List { json }) => {
                commands::quarantine_list(&settings, json).await
            }
            Command::Quarantine(Quarantine::Show { id, json }) => {
                commands::quarantine_show(&settings, &id, json).await
            }
        }
    })
}

/// Nobody reads any more what is written: no news to anybody.
fn is_broken_pipe(error: &anyhow::Error) -> bool {
    error
        .downcast_ref::<io::Error>()
        .is_some_and(|error| error.kind() == io::ErrorKind::BrokenPipe)
}

const SETTINGS: &str = "Settings";

const AFTER_HELP: &str = "\
Settings: an argument goes before the environment, that before the file reader.toml:
  store = \"dynamodb:eu-central-1\"
  key = \"owner.pem\"                # relative to the file's directory
  trust = \"trust.toml\"
  passphrase-file = \"passphrase\"

Exit status:
  0  done, and everything is as it should be
  1  could not be done
  2  called the wrong way
  3  done, and there are findings: records that do not verify or open, something
     missing, alarms

Examples:
  zk-reader keygen --out owner.pem --backup /media/stick
  zk-reader --store file:zk.db --key owner.pem --trust trust.toml list --limit 20
  zk-reader audit --from 7d
  zk-reader quarantine list";

const KEYGEN_EXAMPLES: &str = "\
Examples:
  zk-reader keygen --out owner.pem --backup /media/stick
  zk-reader keygen --out owner.pem --backup /mnt/safe/owner.pem --passphrase-file pass";

const LIST_EXAMPLES: &str = "\
Examples:
  zk-reader list --limit 20
  zk-reader list --device pi-01 --from 2026-11-23 --to 2026-11-24T12:00:00Z
  zk-reader list --from 12h --json | jq -r 'select(.state == \"open\") | .json.readings[]?'";

const SHOW_EXAMPLES: &str = "\
Examples:
  zk-reader show pi-01 17
  zk-reader show pi-01 '2026-11-23T11:20:44.123Z#<stream>#00000000000000000017'";

const AUDIT_EXAMPLES: &str = "\
Examples:
  zk-reader audit
  zk-reader audit --device pi-01 --from 24h || mail -s 'telemetry' me";
