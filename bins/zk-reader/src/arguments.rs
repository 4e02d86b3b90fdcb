//! The command line, for the program and for its manual.
#![allow(missing_docs)] // what stands here is what --help says

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Parser, Subcommand, ValueEnum};
use zk_envelope::DeviceId;
use zk_store::StoreUri;
use zk_verify::Reason;

use crate::when::{self, When};

/// Reads telemetry back on the owner's machine.
///
/// Every record is verified with the keys of the trust file, never with what the
/// store says of keys, and opened with the owner's key, here.
#[derive(Debug, Parser)]
#[command(name = "zk-reader", version, after_long_help = AFTER_HELP)]
pub struct Arguments {
    #[command(flatten)]
    pub common: Common,
    #[command(subcommand)]
    pub command: Command,
}

#[derive(Debug, Args)]
pub struct Common {
    /// Where the records are: file:PATH or dynamodb:REGION.
    #[arg(long, global = true, help_heading = SETTINGS, env = "ZK_READER_STORE", value_name = "URI")]
    pub store: Option<StoreUri>,
    /// What the names of the store's tables begin with: of another set-up than
    /// zk in DynamoDB.
    #[arg(long, global = true, help_heading = SETTINGS, env = "ZK_READER_PREFIX", value_name = "PREFIX")]
    pub prefix: Option<String>,
    /// The owner's key, as `zk-reader keygen` makes it.
    #[arg(long, global = true, help_heading = SETTINGS, env = "ZK_READER_KEY", value_name = "FILE")]
    pub key: Option<PathBuf>,
    /// The trust file, as `zk-setup` writes it.
    #[arg(long, global = true, help_heading = SETTINGS, env = "ZK_READER_TRUST", value_name = "FILE")]
    pub trust: Option<PathBuf>,
    /// A file with the key's passphrase that nobody else may read. Without it
    /// ZK_OWNER_PASSPHRASE is used, or the terminal asked.
    #[arg(long, global = true, help_heading = SETTINGS, value_name = "FILE")]
    pub passphrase_file: Option<PathBuf>,
    /// Defaults for store, prefix, key, trust and passphrase-file, in TOML. Without it
    /// ~/.config/zk/reader.toml, if there is one.
    #[arg(long, global = true, help_heading = SETTINGS, value_name = "FILE")]
    pub config: Option<PathBuf>,
}

#[derive(Debug, Subcommand)]
pub enum Command {
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
        /// The owner's id and the files as a JSON object.
        #[arg(long)]
        json: bool,
    },
    /// List records: a row for each sensor reading, a summary of the others.
    ///
    /// Device by device, in the order of the signed time (UTC). A `?` behind a
    /// time says that the device knew nothing of its clock, a `~` that a time
    /// anchor of the device's dates it: it knows better. Records that do not
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
        /// Times as they were signed, as with --limit: spares looking for what
        /// dates them.
        #[arg(long)]
        as_signed: bool,
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
        /// Signed at this time or later, as for list.
        #[arg(long, value_name = "TIME")]
        from: Option<When>,
        /// Signed at this time or earlier.
        #[arg(long, value_name = "TIME")]
        to: Option<When>,
        /// Its time as it was signed: spares looking for what dates it.
        #[arg(long)]
        as_signed: bool,
        /// As a JSON object.
        #[arg(long)]
        json: bool,
    },
    /// Print records as they come in, until Ctrl-C.
    ///
    /// Also those that come in late, with an older time than others before them,
    /// as after an outage. What is new about a device's newest record shows with
    /// the next look. With each 30th look what lies further back is asked for as
    /// well: as far as --late before the newest record, and in 1970, where records
    /// of a clock that was not set stand. What comes in behind newer records with
    /// a time older than that is not shown; list that time later.
    ///
    /// When the store fails this says so, and tries again. At the end the exit
    /// status is 3 if records did not verify or open, or there were alarms.
    #[command(after_help = FOLLOW_EXAMPLES)]
    Follow(FollowArguments),
    /// Write sensor readings or whole records to a file, or to standard output.
    ///
    /// csv has a row for each sensor reading, jsonl an object for each record, as
    /// `list --json`. Only what verifies and opens is written, unless
    /// --include-refused is given; if anything does not, the exit status is 3.
    #[command(after_help = EXPORT_EXAMPLES)]
    Export(ExportArguments),
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
    /// Look into what was not accepted, and replay it. Needs only the store.
    #[command(subcommand)]
    Quarantine(Quarantine),
}

#[derive(Debug, Subcommand)]
pub enum Quarantine {
    /// The newest 1000, the newest last.
    #[command(after_help = QUARANTINE_EXAMPLES)]
    List {
        #[command(flatten)]
        among: Among,
        /// All of them in no particular order, one JSON object in a line for each.
        #[arg(long)]
        json: bool,
    },
    /// All that can be told of one message, and its first bytes.
    #[command(after_help = QUARANTINE_EXAMPLES)]
    Show {
        /// Its id.
        id: String,
        /// As a JSON object, with the whole message in hex.
        #[arg(long)]
        json: bool,
    },
    /// Take messages in again, once what was wrong is mended.
    ///
    /// Each is checked as it came in then, with the same certificate, topic and
    /// time of receipt, by what is registered now. What is accepted goes to the
    /// readings and leaves the quarantine; what is not stays, with the reason of
    /// now. Without --apply this only says what would happen.
    ///
    /// --apply writes to readings and quarantine: it needs the right to (with
    /// dynamodb: PutItem, UpdateItem and DeleteItem besides those of reading).
    ///
    /// Messages that did not fit into the quarantine were only counted: they
    /// can't be replayed.
    #[command(after_help = QUARANTINE_EXAMPLES)]
    Replay(ReplayArguments),
}

#[derive(Debug, Args)]
pub struct FollowArguments {
    /// One device; otherwise all that the trust file or the store knows.
    #[arg(long, value_name = "DEVICE")]
    pub device: Option<DeviceId>,
    /// Begin with what was signed at this time or later, as for list. Without it
    /// begin with what comes in now.
    #[arg(long, value_name = "TIME")]
    pub from: Option<When>,
    /// How often to look: 100ms, 2s, 1m.
    #[arg(long, value_name = "SPAN", default_value = "2s", value_parser = interval)]
    pub interval: Duration,
    /// How far behind the newest record to look for late ones: 6h, 7d. Each of
    /// those looks asks for every key of that time.
    #[arg(long, value_name = "SPAN", default_value = "1d", value_parser = when::span)]
    pub late: Duration,
    /// One JSON object in a line for each record.
    #[arg(long)]
    pub json: bool,
}

#[derive(Debug, Args)]
pub struct ExportArguments {
    #[command(flatten)]
    pub selection: Selection,
    /// What to write.
    #[arg(long, value_enum)]
    pub format: Format,
    /// The file, mode 0600. It appears when all is written, or not at all.
    #[arg(long, value_name = "FILE")]
    pub out: Option<PathBuf>,
    /// Replace the file if it exists.
    #[arg(long, requires = "out")]
    pub force: bool,
    /// Write what does not verify or open as well, as what it is.
    #[arg(long)]
    pub include_refused: bool,
    /// Nothing in the columns dated, or the member: spares looking for it.
    #[arg(long)]
    pub as_signed: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// A heading and a row for each sensor reading (RFC 4180).
    Csv,
    /// A JSON object in a line for each record.
    Jsonl,
}

#[derive(Debug, Args)]
pub struct ReplayArguments {
    /// Their ids.
    #[arg(value_name = "ID", conflicts_with_all = ["all", "device", "principal", "reason", "from", "to"])]
    pub ids: Vec<String>,
    /// All of them.
    #[arg(long, conflicts_with_all = ["device", "principal", "reason", "from", "to"])]
    pub all: bool,
    #[command(flatten)]
    pub among: Among,
    /// Do it.
    #[arg(long)]
    pub apply: bool,
    /// One JSON object in a line for each message.
    #[arg(long)]
    pub json: bool,
}

/// Which messages of the quarantine.
#[derive(Debug, Args)]
pub struct Among {
    /// Sent on this device's topic, or with a certificate of it.
    #[arg(long, value_name = "DEVICE")]
    pub device: Option<DeviceId>,
    /// Sent with this certificate: SHA-256 of its DER, in hex.
    #[arg(long, value_name = "PRINCIPAL")]
    pub principal: Option<String>,
    /// Not accepted for this reason; may be given several times.
    #[arg(long, value_name = "REASON", value_parser = reason)]
    pub reason: Vec<Reason>,
    /// Last received at this time or later, as for list.
    #[arg(long, value_name = "TIME")]
    pub from: Option<When>,
    /// Last received at this time or earlier.
    #[arg(long, value_name = "TIME")]
    pub to: Option<When>,
}

impl Among {
    /// Whether nothing was chosen.
    #[must_use]
    pub fn is_all(&self) -> bool {
        let Self {
            device,
            principal,
            reason,
            from,
            to,
        } = self;
        device.is_none()
            && principal.is_none()
            && reason.is_empty()
            && from.is_none()
            && to.is_none()
    }
}

fn reason(name: &str) -> Result<Reason, String> {
    name.parse().map_err(|_| {
        let known = Reason::ALL.map(Reason::as_str).join(", ");
        format!("is no reason; there are {known}")
    })
}

/// Often enough for a person, and not so often that the store does nothing else.
fn interval(text: &str) -> Result<Duration, String> {
    let span = when::span(text)?;
    if (Duration::from_millis(10)..=Duration::from_hours(1)).contains(&span) {
        Ok(span)
    } else {
        Err("takes 10ms to 1h".into())
    }
}

#[derive(Debug, Args)]
pub struct Selection {
    /// One device; otherwise all that the trust file or the store knows.
    #[arg(long, value_name = "DEVICE")]
    pub device: Option<DeviceId>,
    /// Signed at this time or later: 2026-11-23T11:20:44Z, 2026-11-23 (UTC), or
    /// a time ago such as 90m, 12h or 7d.
    #[arg(long, value_name = "TIME")]
    pub from: Option<When>,
    /// Signed at this time or earlier; a day is meant to its end.
    #[arg(long, value_name = "TIME")]
    pub to: Option<When>,
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
  zk-reader follow --device pi-01
  zk-reader audit --from 7d
  zk-reader export --format csv --from 2026-11-01 --out november.csv
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

const FOLLOW_EXAMPLES: &str = "\
Examples:
  zk-reader follow
  zk-reader follow --device pi-01 --from 1h --json | jq -c .json.readings
  zk-reader follow --interval 30s --late 30d";

const EXPORT_EXAMPLES: &str = "\
Examples:
  zk-reader export --format csv --device pi-01 --from 2026-11-01 --out november.csv
  zk-reader export --format jsonl --from 1d | jq -c 'select(.header.kind == \"data\")'";

const QUARANTINE_EXAMPLES: &str = "\
Examples:
  zk-reader quarantine list --device pi-01 --reason unknown-device --from 7d
  zk-reader quarantine show 3f2a…
  zk-reader quarantine replay --reason unknown-device
  zk-reader quarantine replay --reason unknown-device --apply";

const AUDIT_EXAMPLES: &str = "\
Examples:
  zk-reader audit
  zk-reader audit --device pi-01 --from 24h || mail -s 'telemetry' me";
