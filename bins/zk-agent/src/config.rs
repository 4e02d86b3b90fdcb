//! agent.toml: what the agent is told.

use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use bytesize::ByteSize;
use clap::ValueEnum;
use documented::DocumentedFields;
use jiff::SignedDuration;
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};
use toml::de::DeTable;
use tracing_subscriber::filter::Targets;
use zk_envelope::DeviceId;
use zk_sensors::{Offset, W1Bus};

use crate::{Error, arguments};

/// agent.toml. Relative paths in it are relative to the file's own directory.
/// [`template`] has all of it, with comments.
///
/// ```toml
/// [device]
/// id = "pi-01"
/// hsm = "zymkey:slot=0"
/// certificate = "pi-01.crt.pem"
///
/// [target]
/// endpoint = "gateway.example:8443"
/// roots = "gateway-ca.crt.pem"
///
/// [owners]
/// files = ["owner-0011223344556677.pub.pem"]
///
/// [sensors]
/// interval = "10s"
/// root = "/sys"
/// offsets = ["28-0000000a0001=-0.25"]
///
/// [spool]
/// dir = "/var/lib/zk-agent/spool"
/// cap = "256MiB"
/// full = "drop-oldest"
/// sync = "each"
///
/// [heartbeat]
/// interval = "5m"
///
/// [events]
/// perimeter = true
/// battery = 2.5
/// module = true
/// interval = "1m"
///
/// [metrics]
/// listen = "127.0.0.1:9465"
///
/// [socket]
/// listen = "/run/zk-agent/publish.sock"
/// group = "zk-publish"
///
/// [log]
/// filter = "info"
/// ```
#[derive(Clone, Debug, Deserialize, DocumentedFields, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// Who this is.
    pub device: Device,
    /// Where records go.
    pub target: Target,
    /// Whom records are encrypted for.
    pub owners: Owners,
    /// What is read, and how often.
    #[serde(default)]
    pub sensors: Sensors,
    /// Where records wait.
    pub spool: SpoolTable,
    /// Signs of life.
    #[serde(default)]
    pub heartbeat: Heartbeat,
    /// What of the key's module is worth a record.
    #[serde(default)]
    pub events: Events,
    /// Metrics and health, over plain HTTP.
    #[serde(default)]
    pub metrics: MetricsTable,
    /// Where other programs of this machine hand over data of theirs.
    #[serde(default)]
    pub socket: SocketTable,
    /// What is logged, to standard error.
    #[serde(default)]
    pub log: Log,
}

/// `[device]`
#[derive(Clone, Debug, Deserialize, DocumentedFields, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Device {
    /// The device's name, which is the common name of its certificate: 1 to 64 of
    /// A-Z a-z 0-9 _ -
    #[serde(serialize_with = "displayed")]
    pub id: DeviceId,
    /// The key: `zymkey:slot=0`, `pkcs11:token=…;object=…` or, for development
    /// only, `soft:/path/key.pem`.
    pub hsm: String,
    /// The certificate chain in PEM, the device's own first.
    pub certificate: PathBuf,
}

/// `[target]`
#[derive(Clone, Debug, Deserialize, DocumentedFields, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Target {
    /// Host and port of AWS IoT Core or of a gateway. The host is a name in the
    /// server's certificate.
    pub endpoint: String,
    /// The roots that the endpoint's certificate chains to, in PEM; never the
    /// authority of the devices.
    pub roots: PathBuf,
}

/// `[owners]`
#[derive(Clone, Debug, Deserialize, DocumentedFields, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Owners {
    /// Public keys in PEM, 1 to 8; each record is encrypted for all of them.
    pub files: Vec<PathBuf>,
}

/// `[sensors]`
#[derive(Clone, Debug, Deserialize, DocumentedFields, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct Sensors {
    /// From one sweep over all sensors to the next: 10 ms to 24 h.
    #[serde(serialize_with = "jiff::fmt::serde::duration::friendly::compact::required")]
    pub interval: SignedDuration,
    /// Where the kernel shows its buses: `/sys`, or a simulated tree.
    pub root: PathBuf,
    /// What a calibration has found: degrees Celsius that are added to what a sensor
    /// measures, such as `28-0000000a0001=-0.25`, with at most 3 decimals, at most 10
    /// degrees either way. The readings have them in their values.
    pub offsets: Vec<Offset>,
}

/// `[spool]`
#[derive(Clone, Debug, Deserialize, DocumentedFields, Serialize)]
#[serde(deny_unknown_fields)]
pub struct SpoolTable {
    /// Its directory.
    pub dir: PathBuf,
    /// How it stores records: `log`; or `sled`, where the program is built with that
    /// feature, which is no improvement. A spool keeps its engine.
    #[serde(default)]
    pub engine: Engine,
    /// The most that it may take on disk.
    #[serde(
        default = "default_cap",
        deserialize_with = "size_of",
        serialize_with = "size"
    )]
    pub cap: ByteSize,
    /// What happens then: `drop-oldest`, or `reject` what is new. Either way signed
    /// receipts name what is lost.
    #[serde(default)]
    pub full: Full,
    /// When a record is safe from a power cut: `each`, before it counts as taken; or
    /// within a time, as in { every = `1s` }, which spares SD cards.
    #[serde(default)]
    pub sync: Sync,
}

/// `spool.engine`
#[derive(Clone, Copy, Debug, Default, Deserialize, PartialEq, Eq, Serialize, ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum Engine {
    /// In a log of our own.
    #[default]
    Log,
    /// In sled databases, where the program is built with the feature `sled`.
    Sled,
}

/// `spool.full`
#[derive(Clone, Copy, Debug, Default, Deserialize, PartialEq, Eq, Serialize, ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum Full {
    /// New readings are not taken.
    Reject,
    /// The oldest records make room.
    #[default]
    DropOldest,
}

/// `spool.sync`
#[derive(Clone, Copy, Debug, Default, Deserialize, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Sync {
    /// Before it counts as taken.
    #[default]
    Each,
    /// Within this time; spares SD cards.
    Every(
        #[serde(serialize_with = "jiff::fmt::serde::duration::friendly::compact::required")]
        SignedDuration,
    ),
}

/// `[heartbeat]`
#[derive(Clone, Debug, Deserialize, DocumentedFields, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct Heartbeat {
    /// From one heartbeat record to the next, 10 ms to 24 h, so that silence of the
    /// sensors means something.
    #[serde(serialize_with = "jiff::fmt::serde::duration::friendly::compact::required")]
    pub interval: SignedDuration,
}

/// `[events]`: what of the key's module is sealed when it happens.
#[derive(Clone, Copy, Debug, Deserialize, DocumentedFields, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct Events {
    /// A perimeter circuit is broken, or cleared.
    pub perimeter: bool,
    /// The battery is below so many volts, or no longer.
    pub battery: Option<f32>,
    /// It is bound to another machine, or signs again after it had not.
    pub module: bool,
    /// How often it is asked, if any of these is wanted: 10 ms to 24 h.
    #[serde(serialize_with = "jiff::fmt::serde::duration::friendly::compact::required")]
    pub interval: SignedDuration,
}

/// `[metrics]`
#[derive(Clone, Debug, Default, Deserialize, DocumentedFields, Serialize)]
#[serde(deny_unknown_fields)]
pub struct MetricsTable {
    /// A loopback address where they are served without TLS; without one they
    /// are not.
    #[serde(default, deserialize_with = "optional_loopback")]
    pub listen: Option<SocketAddr>,
}

/// `[socket]`
#[derive(Clone, Debug, Default, Deserialize, DocumentedFields, Serialize)]
#[serde(deny_unknown_fields)]
pub struct SocketTable {
    /// Its path; without one there is none. The directory has to be there.
    pub listen: Option<PathBuf>,
    /// The group whose members may use it; the agent's user has to be one of them.
    /// Without one that is the group of the agent itself.
    pub group: Option<String>,
}

/// `[log]`
#[derive(Clone, Debug, Deserialize, DocumentedFields, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct Log {
    /// Which lines: a level, or a filter such as `info,zk_publish=debug`. A variable
    /// RUST_LOG goes before it.
    pub filter: String,
    /// How they are written: `text`, or `json`, an object in a line.
    pub format: LogFormat,
}

/// `log.format`
#[derive(Clone, Copy, Debug, Default, Deserialize, PartialEq, Eq, Serialize, ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum LogFormat {
    /// For people.
    #[default]
    Text,
    /// An object in a line.
    Json,
}

impl Default for Sensors {
    fn default() -> Self {
        Self {
            interval: SignedDuration::from_secs(10),
            root: "/sys".into(),
            offsets: Vec::new(),
        }
    }
}

impl Default for Events {
    fn default() -> Self {
        Self {
            perimeter: false,
            battery: None,
            module: false,
            interval: SignedDuration::from_mins(1),
        }
    }
}

impl Events {
    pub(crate) fn are_wanted(&self) -> bool {
        self.perimeter || self.battery.is_some() || self.module
    }
}

impl Default for Heartbeat {
    fn default() -> Self {
        Self {
            interval: SignedDuration::from_mins(5),
        }
    }
}

impl Default for Log {
    fn default() -> Self {
        Self {
            filter: "info".to_owned(),
            format: LogFormat::default(),
        }
    }
}

impl Log {
    /// The filter.
    ///
    /// # Errors
    /// [`Error::Setting`].
    pub fn targets(&self) -> Result<Targets, Error> {
        let key = "log.filter";
        self.filter()
            .map_err(|detail| Error::Setting { key, detail })
    }

    fn filter(&self) -> Result<Targets, String> {
        let text = &self.filter;
        zk_cli::log_filter(text).map_err(|problem| format!("is {text:?}: {problem}"))
    }
}

impl Config {
    /// Reads agent.toml and makes its paths absolute.
    ///
    /// # Errors
    /// [`Error::Config`] with file, line, what is wrong and what is allowed;
    /// [`Error::File`].
    pub fn read(path: &Path) -> Result<Self, Error> {
        let text = fs::read_to_string(path).map_err(|e| Error::file(path, e))?;
        let wrong = |line, detail| Error::Config {
            path: path.into(),
            line,
            detail,
        };
        let at = |key: &str, detail: String| wrong(line_of(&text, key), format!("{key} {detail}"));
        let mut config: Self = toml::from_str(&text).map_err(|error| {
            let line = error.span().map(|span| line_at(&text, span.start));
            wrong(line, error.to_string().trim_end().to_owned())
        })?;
        let absolute = std::path::absolute(path).map_err(|e| Error::file(path, e))?;
        let base = absolute.parent().unwrap_or(&absolute);
        for (key, path) in config.paths() {
            // it would be the directory itself
            if path.as_os_str().is_empty() {
                return Err(at(
                    key,
                    "is empty: give it a path, or leave it out".to_owned(),
                ));
            }
            *path = base.join(&*path);
        }
        config.check().map_err(|(key, detail)| at(key, detail))?;
        Ok(config)
    }

    /// All paths, with their keys.
    fn paths(&mut self) -> impl Iterator<Item = (&'static str, &mut PathBuf)> {
        let paths = [
            ("device.certificate", &mut self.device.certificate),
            ("target.roots", &mut self.target.roots),
            ("sensors.root", &mut self.sensors.root),
            ("spool.dir", &mut self.spool.dir),
        ];
        let owners = self.owners.files.iter_mut();
        let socket = self.socket.listen.iter_mut();
        paths
            .into_iter()
            .chain(owners.map(|file| ("owners.files", file)))
            .chain(socket.map(|path| ("socket.listen", path)))
    }

    /// The key that names this path.
    pub(crate) fn names(&self, path: &Path) -> Option<&'static str> {
        let mut config = self.clone();
        let found = config.paths().find(|(_, named)| *named == path);
        found.map(|(key, _)| key)
    }

    /// What the types do not say: the key that is wrong, and what is allowed.
    pub(crate) fn check(&self) -> Result<(), (&'static str, String)> {
        let window = match self.spool.sync {
            Sync::Each => None,
            Sync::Every(window) => Some(("spool.sync.every", window)),
        };
        let intervals = [
            ("sensors.interval", self.sensors.interval),
            ("heartbeat.interval", self.heartbeat.interval),
            ("events.interval", self.events.interval),
        ];
        for (key, interval) in intervals.into_iter().chain(window) {
            if !(SHORTEST..=LONGEST).contains(&interval) {
                let detail = format!(
                    "is {interval:#}: at least {SHORTEST:#} and at most {LONGEST:#} are allowed"
                );
                return Err((key, detail));
            }
        }
        if let Some(volts) = self.events.battery
            && !(0.1..=10.0).contains(&volts)
        {
            let detail = format!("is {volts}: it is in volts, 0.1 to 10 are allowed");
            return Err(("events.battery", detail));
        }
        let cap = self.spool.cap;
        if cap < LEAST_CAP {
            return Err((
                "spool.cap",
                format!("is {cap}: at least {LEAST_CAP} are needed"),
            ));
        }
        if let Err(error) = W1Bus::new(&self.sensors.root).set_offsets(&self.sensors.offsets) {
            return Err(("sensors.offsets", format!("can't hold: {error}")));
        }
        let owners = self.owners.files.len();
        if !(1..=8).contains(&owners) {
            let detail = format!("names {owners}: 1 to 8 are allowed");
            return Err(("owners.files", detail));
        }
        self.log
            .filter()
            .map(drop)
            .map_err(|detail| ("log.filter", detail))
    }
}

impl Config {
    /// The keys whose values are others in `other`.
    pub(crate) fn changed(&self, other: &Self) -> Result<Vec<String>, Error> {
        let table = |config: &Self| toml::Table::try_from(config).map_err(|e| unwritten(&e));
        let (own, other) = (table(self)?, table(other)?);
        let mut changed = Vec::new();
        for table in own.keys() {
            let keys = |config: &toml::Table| {
                let keys = config.get(table).and_then(|keys| keys.as_table());
                keys.cloned().unwrap_or_default()
            };
            let (own, other) = (keys(&own), keys(&other));
            let mut names: Vec<_> = own.keys().chain(other.keys()).collect();
            names.sort_unstable();
            names.dedup();
            let differs = names
                .into_iter()
                .filter(|key| own.get(*key) != other.get(*key));
            changed.extend(differs.map(|key| format!("{table}.{key}")));
        }
        Ok(changed)
    }
}

/// A complete agent.toml with comments, made of what the types say: required keys
/// with an example, all others commented out, with what holds without them.
///
/// # Errors
/// [`Error::Config`]: none that is known of.
pub fn template() -> Result<String, Error> {
    let mut config: Config = toml::from_str(LEAST).map_err(|e| unwritten(&e))?;
    config.events.battery = Some(2.5);
    config.metrics.listen = Some(SocketAddr::from(([127, 0, 0, 1], 9465)));
    config.socket.listen = Some("/run/zk-agent/publish.sock".into());
    config.socket.group = Some("zk-publish".to_owned());
    let least: toml::Table = toml::from_str(LEAST).map_err(|e| unwritten(&e))?;
    let all = toml::to_string(&config).map_err(|e| unwritten(&e))?;

    let mut text = TEMPLATE_HEAD.to_owned();
    let mut table = "";
    for line in all.lines() {
        if let Some(heading) = line.strip_prefix('[') {
            table = heading.trim_end_matches(']');
            text.push('\n');
            comment(&mut text, Config::get_field_docs(table).unwrap_or_default());
            text += &format!("[{table}]\n");
        } else if let Some((key, _)) = line.split_once(" = ") {
            comment(&mut text, docs_of(table, key).unwrap_or_default());
            let over = arguments::over(table, key);
            comment(&mut text, &over.unwrap_or_default());
            let required = least.get(table).is_some_and(|keys| keys.get(key).is_some());
            text += if required { "" } else { "# " };
            text += &format!("{line}\n");
        }
    }
    Ok(text)
}

/// Of what is written here, and not read.
fn unwritten(error: &dyn std::error::Error) -> Error {
    Error::Config {
        path: "agent.toml".into(),
        line: None,
        detail: error.to_string(),
    }
}

/// What the types say of a key.
fn docs_of(table: &str, key: &str) -> Option<&'static str> {
    let docs = match table {
        "device" => Device::get_field_docs(key),
        "events" => Events::get_field_docs(key),
        "heartbeat" => Heartbeat::get_field_docs(key),
        "log" => Log::get_field_docs(key),
        "metrics" => MetricsTable::get_field_docs(key),
        "owners" => Owners::get_field_docs(key),
        "sensors" => Sensors::get_field_docs(key),
        "socket" => SocketTable::get_field_docs(key),
        "spool" => SpoolTable::get_field_docs(key),
        "target" => Target::get_field_docs(key),
        _ => return None,
    };
    docs.ok()
}

/// Adds a comment of lines that are not too long.
fn comment(text: &mut String, words: &str) {
    let mut line = String::new();
    for word in words.replace('`', "\"").split_whitespace() {
        if line.len() + word.len() > 78 {
            *text += &format!("#{line}\n");
            line.clear();
        }
        line = line + " " + word;
    }
    if !line.is_empty() {
        *text += &format!("#{line}\n");
    }
}

/// The line of `table.key` in a file, if it is there; else that of the table.
pub(crate) fn line_of(text: &str, key: &str) -> Option<usize> {
    let (table, key) = key.split_once('.')?;
    let key = key.split('.').next().unwrap_or(key);
    let tables = DeTable::parse(text).ok()?;
    let (heading, keys) = tables.get_ref().get_key_value(table)?;
    let key = keys
        .get_ref()
        .as_table()
        .and_then(|keys| keys.get_key_value(key));
    let at = key.map_or(heading.span(), |(key, _)| key.span()).start;
    Some(line_at(text, at))
}

fn line_at(text: &str, at: usize) -> usize {
    let before = text.as_bytes().iter().take(at);
    before.filter(|byte| **byte == b'\n').count() + 1
}

/// A checked duration without its sign.
pub(crate) fn unsigned(duration: SignedDuration) -> Duration {
    duration.unsigned_abs()
}

/// An address that only this machine reaches.
///
/// # Errors
/// What is wrong with it, and what to give instead.
pub fn loopback(text: &str) -> Result<SocketAddr, String> {
    match text.parse::<SocketAddr>() {
        Ok(address) if address.ip().is_loopback() => Ok(address),
        Ok(_) => Err(
            "this is served without TLS: give a loopback address, such as 127.0.0.1:9465"
                .to_owned(),
        ),
        Err(error) => Err(format!("{error}; give an address such as 127.0.0.1:9465")),
    }
}

fn optional_loopback<'de, D>(deserializer: D) -> Result<Option<SocketAddr>, D::Error>
where
    D: Deserializer<'de>,
{
    let text = String::deserialize(deserializer)?;
    loopback(&text).map(Some).map_err(de::Error::custom)
}

const SHORTEST: SignedDuration = SignedDuration::from_millis(10);
const LONGEST: SignedDuration = SignedDuration::from_hours(24);

/// A spool takes no less.
const LEAST_CAP: ByteSize = ByteSize::kib(16);

fn default_cap() -> ByteSize {
    ByteSize::mib(256)
}

fn displayed<S: Serializer>(
    value: &impl std::fmt::Display,
    serializer: S,
) -> Result<S::Ok, S::Error> {
    serializer.collect_str(value)
}

/// `256MiB`, or bytes.
fn size_of<'de, D: Deserializer<'de>>(deserializer: D) -> Result<ByteSize, D::Error> {
    let size = ByteSize::deserialize(deserializer);
    size.map_err(|_| de::Error::custom("give a size such as \"256MiB\", or a number of bytes"))
}

/// As a person writes it: `256MiB`.
fn size<S: Serializer>(size: &ByteSize, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(&size.to_string().replace(".0 ", ""))
}

/// The least that parses.
const LEAST: &str = r#"
[device]
id = "pi-01"
hsm = "zymkey:slot=0"
certificate = "device.crt.pem"

[target]
endpoint = "gateway.example:8443"
roots = "gateway-ca.crt.pem"

[owners]
files = ["owner.pub.pem"]

[spool]
dir = "/var/lib/zk-agent/spool"
"#;

const TEMPLATE_HEAD: &str = "\
# zk-agent: which device this is, what it reads, for whom, and where it goes.
# What begins with a key and is commented out holds as it stands here, but for
# metrics, socket and events.battery, which are not there without it. A path that does not begin
# with / begins at this file's directory. Flags go before environment variables,
# these before this file. SIGHUP has it read again; zk-agent --check-config says
# whether it is right.
";
