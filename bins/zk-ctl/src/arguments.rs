use std::fmt;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Duration;

use clap::{Args, Parser, Subcommand, ValueEnum};
use jiff::SignedDuration;
use zk_cli::KeyUri;
use zk_envelope::DeviceId;
use zk_hsm::{HsmUri, MAX_RANDOM};
use zk_publish::Target;
use zk_sensors::{ConversionTime, SensorId};

/// The tool for a person on the device: publishes by hand, uses the key, looks
/// into the spool, and finds out what is wrong.
#[derive(Clone, Debug, Parser)]
#[command(version, after_help = AFTER_HELP)]
pub struct Arguments {
    #[command(flatten)]
    pub(crate) common: Common,

    /// Prints one JSON object
    #[arg(long, global = true, display_order = 900)]
    pub json: bool,

    #[command(subcommand)]
    pub(crate) command: Command,
}

/// Which device this is.
#[derive(Clone, Debug, Args)]
pub(crate) struct Common {
    /// The device's configuration, as zk-setup writes it
    #[arg(
        long,
        global = true,
        display_order = 900,
        env = "ZK_CTL_CONFIG",
        value_name = "FILE",
        default_value = USUAL_CONFIG
    )]
    pub(crate) config: PathBuf,

    /// The device's key, in place of device.hsm: zymkey:slot=0,
    /// pkcs11:token=T;object=O or, for development, soft:/absolute/path.pem
    #[arg(
        long,
        global = true,
        display_order = 900,
        env = "ZK_CTL_HSM",
        value_name = "URI",
        value_parser = KeyUri
    )]
    pub(crate) hsm: Option<HsmUri>,
}

impl Common {
    /// Whether the configuration is where it usually is, as nobody had to say.
    pub(crate) fn is_usual(&self) -> bool {
        self.config == Path::new(USUAL_CONFIG)
    }
}

#[derive(Clone, Debug, Subcommand)]
pub(crate) enum Command {
    /// Seals data with the device's key and publishes it
    #[command(after_help = PUBLISH_HELP)]
    Publish(Publish),

    /// Uses the device's key
    #[command(subcommand, after_help = HSM_HELP)]
    Hsm(HsmCommand),

    /// Looks into a spool, also while the agent has it open
    #[command(subcommand, after_help = SPOOL_HELP)]
    Spool(SpoolCommand),

    /// Reads every thermometer of this machine
    #[command(after_help = SENSORS_HELP, args_conflicts_with_subcommands = true)]
    Sensors(Sensors),

    /// Checks this machine: what is wrong, and what to do about it
    #[command(after_help = DOCTOR_HELP)]
    Doctor(Doctor),
}

#[derive(Clone, Debug, Args)]
pub(crate) struct Publish {
    /// The data; - or nothing: standard input. A forgery can do without
    #[arg(value_name = "FILE")]
    pub(crate) file: Option<PathBuf>,

    /// The data's media type [otherwise: application/json if it is a JSON
    /// object or array, text/plain; charset=utf-8 if it is text, else
    /// application/octet-stream]
    #[arg(long, value_name = "TYPE", value_parser = content_type)]
    pub(crate) content_type: Option<String>,

    /// Publishes what must not be believed, to see that it isn't
    #[arg(long, value_name = "KIND")]
    pub(crate) forge: Option<Forgery>,

    /// How long to wait for delivery
    #[arg(long, value_name = "DURATION", default_value = "30s", value_parser = duration)]
    pub(crate) timeout: Duration,

    /// Goes without the agent: where records wait, below it by device; not the agent's
    /// spool [otherwise, and if no agent is there: zk-ctl-spool beside it]
    #[arg(long, env = "ZK_CTL_SPOOL", value_name = "DIR")]
    pub(crate) spool: Option<PathBuf>,

    #[command(flatten)]
    pub(crate) endpoint: Endpoint,
}

#[derive(Clone, Debug, Args)]
pub(crate) struct Endpoint {
    /// Where records go, in place of target.endpoint
    #[arg(long, env = "ZK_CTL_ENDPOINT", value_name = "HOST:PORT", value_parser = endpoint)]
    pub(crate) endpoint: Option<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Forgery {
    /// A record that was changed after it was signed
    Signature,
    /// A record that claims to be another device's
    Device,
    /// A true record, sent twice
    Replay,
}

#[derive(Clone, Debug, Subcommand)]
pub(crate) enum HsmCommand {
    /// What the security module says of itself, and what it measures
    Info,

    /// The public key, in PEM
    PublicKey {
        /// X and Y in hexadecimal, 64 bytes, and nothing else
        #[arg(long)]
        hex: bool,
    },

    /// A certificate request, in PEM, for zk-setup device add --csr
    #[command(after_help = CSR_HELP)]
    Csr(Csr),

    /// Signs a file, so that verify and openssl can verify it
    #[command(after_help = SIGN_HELP)]
    Sign(Transform),

    /// Verifies what sign signed
    #[command(after_help = VERIFY_HELP)]
    Verify(Verify),

    /// Encrypts a file so that only this security module can decrypt it
    #[command(after_help = LOCK_HELP)]
    Lock(Transform),

    /// Decrypts what was locked
    #[command(after_help = LOCK_HELP)]
    Unlock(Transform),

    /// Random bytes from the security module, in hexadecimal
    #[command(after_help = RANDOM_HELP)]
    Random {
        /// How many
        #[arg(value_name = "BYTES", value_parser = clap::value_parser!(u32).range(1..=MAX_RANDOM as i64))]
        bytes: u32,

        /// The bytes as they are, not in hexadecimal
        #[arg(long)]
        raw: bool,
    },

    /// The keys that the security module has
    #[command(subcommand)]
    Keys(KeysCommand),

    /// Prints a line when something about the security module changes
    #[command(after_help = WATCH_HELP)]
    Watch(Watch),
}

#[derive(Clone, Debug, Args)]
pub(crate) struct Csr {
    /// The device's name: the common name, CN [otherwise: device.id of the
    /// configuration]
    #[arg(long, value_name = "DEVICE")]
    pub(crate) name: Option<DeviceId>,

    /// The organization, O
    #[arg(long, value_name = "NAME")]
    pub(crate) organization: Option<String>,

    /// The organizational unit, OU
    #[arg(long, value_name = "NAME")]
    pub(crate) organizational_unit: Option<String>,

    /// The state or province, ST
    #[arg(long, value_name = "NAME")]
    pub(crate) state: Option<String>,

    /// The country, C: two capital letters
    #[arg(long, value_name = "CODE")]
    pub(crate) country: Option<String>,

    /// The device's serial number
    #[arg(long, value_name = "NUMBER")]
    pub(crate) serial_number: Option<String>,

    /// An alternative name: a host name; may be given again, as the next two
    #[arg(long, value_name = "HOST")]
    pub(crate) dns: Vec<String>,

    /// An alternative name: an IP address
    #[arg(long, value_name = "ADDRESS")]
    pub(crate) ip: Vec<IpAddr>,

    /// An alternative name: a URI
    #[arg(long, value_name = "URI")]
    pub(crate) uri: Vec<String>,

    /// A new file for it [otherwise: standard output]
    #[arg(long, value_name = "FILE")]
    pub(crate) out: Option<PathBuf>,
}

#[derive(Clone, Debug, Args)]
pub(crate) struct Transform {
    /// The file; - or nothing: standard input
    #[arg(value_name = "FILE")]
    pub(crate) file: Option<PathBuf>,

    /// A new file for the result, readable for nobody else; -: the bytes as they
    /// are, to standard output
    #[arg(long, value_name = "FILE")]
    pub(crate) out: Option<PathBuf>,
}

#[derive(Clone, Debug, Args)]
pub(crate) struct Verify {
    /// The file that was signed; - or nothing: standard input
    #[arg(value_name = "FILE")]
    pub(crate) file: Option<PathBuf>,

    /// The signature: DER, or r and s of 32 bytes each, or one of these in
    /// hexadecimal
    #[arg(long, value_name = "FILE")]
    pub(crate) signature: PathBuf,

    /// The key that has to have signed: in PEM, or X and Y in hexadecimal
    /// [otherwise: the security module's own]
    #[arg(long, value_name = "FILE")]
    pub(crate) public_key: Option<PathBuf>,
}

#[derive(Clone, Debug, Subcommand)]
pub(crate) enum KeysCommand {
    /// All P-256 keys of the security module, with the URIs that open them
    #[command(after_help = KEYS_HELP)]
    List,

    /// Makes a new key, and prints the URI that opens it
    #[command(after_help = KEYS_HELP)]
    Generate,
}

#[derive(Clone, Debug, Args)]
pub(crate) struct Watch {
    /// From one look to the next, at least 10ms
    #[arg(long, value_name = "DURATION", default_value = "5s", value_parser = interval)]
    pub(crate) interval: Duration,

    /// Ends after so many looks [otherwise: at SIGINT or SIGTERM]
    #[arg(long, value_name = "LOOKS", value_parser = clap::value_parser!(u64).range(1..))]
    pub(crate) count: Option<u64>,

    /// Looks once: as --count 1
    #[arg(long, conflicts_with = "count")]
    pub(crate) once: bool,
}

#[derive(Clone, Debug, Subcommand)]
pub(crate) enum SpoolCommand {
    /// How much waits, what was lost, and what it costs the card
    #[command(after_help = STATUS_HELP)]
    Status(SpoolPlace),

    /// The records that wait, oldest first: what their headers say
    #[command(after_help = LIST_HELP)]
    List {
        #[command(flatten)]
        place: SpoolPlace,

        /// At most so many
        #[arg(long, value_name = "RECORDS", default_value_t = 20, value_parser = clap::value_parser!(u32).range(1..=10_000))]
        limit: u32,
    },

    /// Reads all that is there, and says what is not as it was written
    #[command(after_help = VERIFY_SPOOL_HELP)]
    Verify(SpoolPlace),

    /// Copies the records that wait, and leaves them where they are
    #[command(after_help = EXPORT_HELP)]
    Export {
        #[command(flatten)]
        place: SpoolPlace,

        /// A new directory, with a file for each record [otherwise: lines of JSON
        /// on standard output]
        #[arg(long, value_name = "DIR")]
        out: Option<PathBuf>,
    },

    /// The records that the server refused for good
    #[command(subcommand, after_help = REJECTED_HELP)]
    Rejected(RejectedCommand),
}

#[derive(Clone, Debug, Subcommand)]
pub(crate) enum RejectedCommand {
    /// Which they are, oldest first
    #[command(after_help = REJECTED_HELP)]
    List(SpoolPlace),

    /// Publishes them as they are; what the server takes is removed
    #[command(after_help = RETRY_HELP)]
    Retry {
        #[command(flatten)]
        place: SpoolPlace,

        #[command(flatten)]
        which: Which,

        /// How long each step over the network may take
        #[arg(long, value_name = "DURATION", default_value = "30s", value_parser = duration)]
        timeout: Duration,

        #[command(flatten)]
        endpoint: Endpoint,
    },

    /// Removes them for good
    #[command(after_help = DROP_HELP)]
    Drop {
        #[command(flatten)]
        place: SpoolPlace,

        #[command(flatten)]
        which: Which,
    },
}

#[derive(Clone, Debug, Args)]
#[group(required = true, multiple = false)]
pub(crate) struct Which {
    /// Those that list names so: the stream or its first digits, a slash, and the
    /// sequence, as in d75d6723/17
    #[arg(value_name = "RECORD")]
    pub(crate) records: Vec<RecordName>,

    /// All of them
    #[arg(long)]
    pub(crate) all: bool,
}

/// Names a record: the first hexadecimal digits of its stream, and its sequence.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct RecordName {
    pub(crate) stream: String,
    pub(crate) sequence: u64,
}

impl FromStr for RecordName {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let hint = "give the stream's digits and the sequence, as in d75d6723/17";
        let (stream, sequence) = text.split_once('/').ok_or(hint)?;
        let digits = stream.bytes().all(|byte| byte.is_ascii_hexdigit());
        let stream = stream.to_ascii_lowercase();
        match sequence.parse() {
            Ok(sequence) if digits && (1..=32).contains(&stream.len()) => {
                Ok(Self { stream, sequence })
            }
            _ => Err(hint),
        }
    }
}

impl fmt::Display for RecordName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.stream, self.sequence)
    }
}

#[derive(Clone, Debug, Args)]
pub(crate) struct SpoolPlace {
    /// The spool's directory [otherwise: the agent's, spool.dir]
    #[arg(long, value_name = "DIR")]
    pub(crate) dir: Option<PathBuf>,
}

#[derive(Clone, Debug, Args)]
pub(crate) struct Sensors {
    #[command(flatten)]
    pub(crate) tree: SensorTree,

    /// One conversion for all of a bus, where this user may: quicker, but
    /// meanwhile whoever else reads these sensors, such as the agent, gets nothing
    #[arg(long)]
    pub(crate) bulk: bool,

    /// Reads them again and again
    #[arg(long)]
    pub(crate) watch: bool,

    /// From one sweep to the next, at least 10ms
    #[arg(long, value_name = "DURATION", default_value = "5s", value_parser = interval, requires = "watch")]
    pub(crate) interval: Duration,

    /// Ends after so many sweeps [otherwise: at SIGINT or SIGTERM]
    #[arg(long, value_name = "SWEEPS", value_parser = clap::value_parser!(u64).range(1..), requires = "watch")]
    pub(crate) count: Option<u64>,

    #[command(subcommand)]
    pub(crate) command: Option<SensorsCommand>,
}

#[derive(Clone, Debug, Subcommand)]
pub(crate) enum SensorsCommand {
    /// Has a thermometer measure otherwise, and reads back whether it does
    #[command(after_help = SET_HELP)]
    Set(SetSensor),
}

#[derive(Clone, Debug, Args)]
pub(crate) struct SensorTree {
    /// Where the kernel shows its buses, or another such tree [otherwise: the
    /// agent's, sensors.root, or /sys]
    #[arg(long, env = "ZK_CTL_SENSORS_ROOT", value_name = "DIR")]
    pub(crate) root: Option<PathBuf>,
}

#[derive(Clone, Debug, Args)]
#[group(id = "settings", required = true, multiple = true, args = ["resolution", "conversion_time", "poll", "save"])]
pub(crate) struct SetSensor {
    /// Which one
    #[arg(value_name = "SENSOR")]
    pub(crate) sensor: SensorId,

    /// In bits, 9 to 12: steps of 1/2, 1/4, 1/8, 1/16 degree, for 95, 190, 375,
    /// 750 ms
    #[arg(long, value_name = "BITS", value_parser = clap::value_parser!(u8).range(9..=12))]
    pub(crate) resolution: Option<u8>,

    /// How long the driver waits for a conversion: default is the data sheet's,
    /// measured is what this chip takes, and a fifth more
    #[arg(long, value_name = "DURATION|default|measured")]
    pub(crate) conversion_time: Option<Conversion>,

    /// Whether the driver asks the chip instead if it is done; not with parasite
    /// power
    #[arg(long, value_name = "on|off")]
    pub(crate) poll: Option<Switch>,

    /// Keeps the resolution in the chip's EEPROM, which bears about 50,000 of that
    #[arg(long)]
    pub(crate) save: bool,

    #[command(flatten)]
    pub(crate) tree: SensorTree,
}

/// A conversion time as it is typed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Conversion(pub(crate) ConversionTime);

impl FromStr for Conversion {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Ok(Self(match text {
            "default" => ConversionTime::DataSheet,
            "measured" => ConversionTime::Measured,
            time => ConversionTime::Fixed(
                duration(time)
                    .map_err(|_| "give default, measured, or a time such as 900ms".to_owned())?,
            ),
        }))
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Switch {
    On,
    Off,
}

#[derive(Clone, Debug, Args)]
pub(crate) struct Doctor {
    /// Publishes a small record of its own, and sees whether the server takes it
    #[arg(long)]
    pub(crate) publish: bool,

    /// How long each step over the network may take
    #[arg(long, value_name = "DURATION", default_value = "10s", value_parser = duration)]
    pub(crate) timeout: Duration,

    #[command(flatten)]
    pub(crate) endpoint: Endpoint,
}

fn content_type(text: &str) -> Result<String, String> {
    let printable = text.bytes().all(|byte| (b' '..=b'~').contains(&byte));
    if printable && (1..=255).contains(&text.len()) {
        Ok(text.to_owned())
    } else {
        Err("a media type is 1 to 255 characters of printable ASCII, as in text/csv".to_owned())
    }
}

fn duration(text: &str) -> Result<Duration, String> {
    let hint = "give a time such as 30s, 1m30s or 500ms, up to a day";
    let duration: SignedDuration = text.parse().map_err(|_| hint.to_owned())?;
    match Duration::try_from(duration) {
        Ok(duration) if duration <= DAY => Ok(duration),
        _ => Err(hint.to_owned()),
    }
}

fn interval(text: &str) -> Result<Duration, String> {
    match duration(text)? {
        interval if interval >= SHORTEST => Ok(interval),
        _ => Err("give at least 10ms".to_owned()),
    }
}

fn endpoint(text: &str) -> Result<String, String> {
    match Target::new(text, "topic") {
        Ok(_) => Ok(text.to_owned()),
        Err(error) => Err(error.to_string()),
    }
}

const USUAL_CONFIG: &str = "/etc/zk-agent/agent.toml";

const DAY: Duration = Duration::from_secs(24 * 60 * 60);

/// Between two looks of watch.
const SHORTEST: Duration = Duration::from_millis(10);

const AFTER_HELP: &str = "\
Examples:
  zk-ctl doctor
  vcgencmd measure_temp | zk-ctl publish
  zk-ctl publish report.csv --content-type text/csv --json
  zk-ctl publish --forge signature
  zk-ctl hsm csr --out pi-01.csr.pem
  zk-ctl hsm keys list
  zk-ctl hsm lock secret.txt --out secret.locked
  zk-ctl spool status
  zk-ctl sensors

Settings of the command line go before the environment, that before the file.

Exit codes: 0 done, 1 failed, 2 wrong arguments or configuration, 3 looked into
and not in order (doctor, hsm verify, hsm watch, sensors, spool verify and retry), 4 not
delivered, and kept for the next run (publish, spool rejected retry), 5 refused by the
server (the same two), 6 the security module can't do that.";

const PUBLISH_HELP: &str = "\
If an agent runs that takes data (socket.listen), it is handed the data, seals it and
has it on its disk when this ends; it goes out among the agent's own records. Else, or
with --spool, --endpoint or --hsm, the record goes through a spool and a stream of
zk-ctl's own. If it can't be delivered in time it stays there, and the next run
delivers it first. At most 62 KiB go into a record.

Forgeries go straight to the server, on a stream of their own:
  signature  a record changed after signing       quarantine: bad-signature
  device     another device's id in a record      quarantine: principal-mismatch
  replay     a true record, sent twice            stored once, counted

Exit codes: 0 delivered, or taken by the agent (a forgery: the server took it, for its
quarantine), 4 kept for the next run, 5 refused by the server, 1 failed, 2 wrong arguments or
configuration.";

const DOCTOR_HELP: &str = "\
Without --publish nothing is published: the server is asked for / and no more. Whether
it lets this device publish shows only with it.

Examples:
  zk-ctl doctor
  sudo zk-ctl doctor --publish
  zk-ctl doctor --json

Exit codes: 0 nothing failed, 3 a check failed, 1 it could not run, 2 wrong
arguments.";

const SENSORS_HELP: &str = "\
A value that is in doubt is shown with its quality, never hidden and never alone.
One with an offset (sensors.offsets) is shown beside what was measured.
One sensor after the other takes 0.8 s each; buses are read at the same time.

Examples:
  zk-ctl sensors
  zk-ctl sensors --watch
  zk-ctl sensors --json
  zk-ctl sensors set 28-0000000a0001 --resolution 10

Exit codes: 0 each sensor is ok (with --watch: at the last sweep, or it was ended by
SIGINT or SIGTERM), 3 one is not, or there is none, 1 there is no bus, or it can't be
listed, 2 wrong arguments.";

const SET_HELP: &str = "\
Only root may, unless a udev rule says otherwise. What is set is lost when the chip
loses power; --save keeps the resolution, and nothing else is ever kept. A DS18S20
has no choice of resolution.

Examples:
  zk-ctl sensors set 28-0000000a0001 --resolution 10
  zk-ctl sensors set 28-0000000a0001 --resolution 9 --save
  zk-ctl sensors set 28-0000000a0001 --conversion-time measured    a slow copy
  zk-ctl sensors set 28-0000000a0001 --poll on                     the same, asked

Exit codes: 0 it is set, and was read back, 1 it is not (no right to, no answer, not
taken), 2 wrong arguments, or no such sensor.";

const HSM_HELP: &str = "\
Examples:
  zk-ctl hsm info
  zk-ctl hsm info --hsm zymkey:slot=0 --json
  zk-ctl hsm public-key > pi-01.pub.pem
  zk-ctl hsm csr --out pi-01.csr.pem
  zk-ctl hsm sign report.pdf --out report.sig
  zk-ctl hsm keys list
  zk-ctl hsm watch

Exit code 6: the security module can't do that; what it can't is said.";

const SPOOL_HELP: &str = "\
Beside a running agent, at any time: status, list, verify, export, rejected list.
They take no lock and change nothing. With the agent stopped: rejected retry and
rejected drop. They lock the spool, and refuse while somebody has it open, whom
they name.

Examples:
  zk-ctl spool status
  zk-ctl spool verify
  zk-ctl spool export > waiting.jsonl
  zk-ctl spool rejected list
  zk-ctl spool list --dir /var/lib/zk-agent/zk-ctl-spool/pi-01";

const STATUS_HELP: &str = "\
Safe beside a running agent. What is written and synced an hour is told by the
agent, if it runs and metrics.listen is set: it is the mean since it started, over
all of the spool's files, and says nothing of what the file system adds.

Examples:
  zk-ctl spool status
  zk-ctl spool status --json";

const LIST_HELP: &str = "\
Safe beside a running agent. Nothing that is shown is verified.

Examples:
  zk-ctl spool list
  zk-ctl spool list --limit 1000 --json";

const VERIFY_SPOOL_HELP: &str = "\
Safe beside a running agent, which is told nothing: it finds the same damage when it
gets there, names what is lost in a receipt, and goes on with the rest.

Examples:
  zk-ctl spool verify
  zk-ctl spool verify --json

Exit codes: 0 all is as it was written, 3 something is not, 1 that could not be
found out, 2 wrong arguments or configuration.";

const EXPORT_HELP: &str = "\
Safe beside a running agent; what it delivers meanwhile may be left out. Records are
encrypted for their owners and stay so. A line of JSON has the record in
hexadecimal, as `record`; a file has its bytes.

Examples:
  zk-ctl spool export > waiting.jsonl
  zk-ctl spool export --out /media/usb/waiting";

const REJECTED_HELP: &str = "\
list is safe beside a running agent; retry and drop need it stopped.

Examples:
  zk-ctl spool rejected list
  zk-ctl spool rejected retry d75d6723/17
  zk-ctl spool rejected drop --all";

const RETRY_HELP: &str = "\
The agent has to be stopped: the spool is locked meanwhile, and whoever has it open
is named. Records go out one by one, as they were sealed, and each is removed when
the server has taken it. That they were refused was stated to the owner, or will be;
the audit then says that they arrived after all.

Examples:
  zk-ctl spool rejected retry --all
  zk-ctl spool rejected retry d75d6723/17 d75d6723/18

Exit codes: 0 all were taken, 3 some are no records of this device and were not
sent, 4 some could not be delivered and are kept, 5 the server refused some, or this
device, 1 failed (the spool is in use), 2 wrong arguments or configuration.";

const DROP_HELP: &str = "\
The agent has to be stopped: the spool is locked meanwhile, and whoever has it open
is named. What is removed is gone; that it was refused was stated to the owner, or
will be.

Examples:
  zk-ctl spool rejected drop d75d6723/17
  zk-ctl spool rejected drop --all";

const CSR_HELP: &str = "\
Examples:
  zk-ctl hsm csr --out pi-01.csr.pem
  zk-ctl hsm csr --hsm zymkey:slot=0 --name pi-01 --organization 'Example Ltd' \\
    --dns pi-01.plant.example --uri urn:dev:mac:b827ebfffe123456

zk-setup device add takes over the name and the key; other authorities may want more.";

const SIGN_HELP: &str = "\
What is signed is the label `zk-ctl/1 signature`, a zero byte, and the file, by
ECDSA on P-256 with SHA-256. The label keeps a signature from being of use as
one of a record, a TLS handshake or a certificate request. The signature is in
DER; without --out it is printed in hexadecimal.

  zk-ctl hsm sign report.pdf --out report.sig
  zk-ctl hsm verify report.pdf --signature report.sig
  zk-ctl hsm public-key > pi-01.pub.pem
  (printf 'zk-ctl/1 signature\\0'; cat report.pdf) |
    openssl dgst -sha256 -verify pi-01.pub.pem -signature report.sig";

const VERIFY_HELP: &str = "\
What has to be signed is what zk-ctl hsm sign signs: its label, and the file.
With --public-key no security module is needed.

Examples:
  zk-ctl hsm verify report.pdf --signature report.sig
  zk-ctl hsm verify report.pdf --signature report.sig --public-key pi-01.pub.pem

Exit codes: 0 the signature is valid, 3 it is not, 1 that could not be found out,
2 wrong arguments or configuration.";

const LOCK_HELP: &str = "\
Examples:
  zk-ctl hsm lock secret.txt --out secret.locked
  zk-ctl hsm unlock secret.locked | some-program
  zk-ctl hsm unlock secret.locked --out -        also shows it on a terminal";

const RANDOM_HELP: &str = "\
Examples:
  zk-ctl hsm random 32
  zk-ctl hsm random 32 --raw > seed";

const KEYS_HELP: &str = "\
Which security module is meant is told by --hsm or device.hsm; list doesn't mind
which of its keys that names.

Examples:
  zk-ctl hsm keys list --hsm zymkey:slot=0
  zk-ctl hsm keys generate --hsm 'pkcs11:token=plant;object=device?pin-source=file:/etc/zk/pin'
  zk-ctl hsm keys generate --hsm soft:/home/me/dev-key.pem     for development

Where the key is to be made: pkcs11: with the URI's label and id, zymkey: in a
free slot (models without such slots can't: exit code 6), soft: in a new file.";

const WATCH_HELP: &str = "\
The first line has everything, the ones that follow what has changed: the state,
perimeter events, battery (by 0.05 V), temperature (by 2 degrees), the module's
clock against the system's (by 2 s), and counters of failures. With --json each
line is one object with everything, and `changed`.

Examples:
  zk-ctl hsm watch
  zk-ctl hsm watch --interval 1m --json >> hsm.jsonl
  zk-ctl hsm watch --once --json

Exit codes: 0 ended by SIGINT or SIGTERM, or after the last look, 3 the module was
not ready at the last look, 1 it could not be opened.";
