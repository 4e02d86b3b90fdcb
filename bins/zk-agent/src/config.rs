//! agent.toml: what the agent is told.

use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use bytesize::ByteSize;
use jiff::SignedDuration;
use serde::{Deserialize, Deserializer, de};
use zk_envelope::DeviceId;

use crate::Error;

/// agent.toml. Relative paths in it are relative to the file's own directory.
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
/// ```
#[derive(Clone, Debug, Deserialize)]
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
    /// Metrics and health.
    #[serde(default)]
    pub metrics: MetricsTable,
}

/// `[device]`
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Device {
    /// The common name of its certificate.
    pub id: DeviceId,
    /// The key: `zymkey:slot=0`, `pkcs11:token=…;object=…` or `soft:/path`.
    pub hsm: String,
    /// The certificate chain in PEM, the device's own first.
    pub certificate: PathBuf,
}

/// `[target]`
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Target {
    /// Host and port of AWS IoT Core or of a gateway.
    pub endpoint: String,
    /// The roots that the endpoint's certificate chains to, in PEM.
    pub roots: PathBuf,
}

/// `[owners]`
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Owners {
    /// Public keys in PEM, 1 to 8.
    pub files: Vec<PathBuf>,
}

/// `[sensors]`
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Sensors {
    /// From one sweep over all sensors to the next.
    pub interval: SignedDuration,
    /// Where the kernel shows its buses: `/sys`, or a simulated tree.
    pub root: PathBuf,
}

/// `[spool]`
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SpoolTable {
    /// Its directory.
    pub dir: PathBuf,
    /// How it stores segments.
    #[serde(default)]
    pub engine: Engine,
    /// The most that it may hold.
    #[serde(default = "default_cap")]
    pub cap: ByteSize,
    /// What happens when it holds that much.
    #[serde(default)]
    pub full: Full,
    /// When a record is safe from a power cut.
    #[serde(default)]
    pub sync: Sync,
}

/// `spool.engine`
#[derive(Clone, Copy, Debug, Default, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "kebab-case")]
pub enum Engine {
    /// In a log of our own.
    #[default]
    Log,
    /// In sled databases, where the program is built with the feature `sled`.
    Sled,
}

/// `spool.full`
#[derive(Clone, Copy, Debug, Default, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "kebab-case")]
pub enum Full {
    /// New readings are not taken.
    Reject,
    /// The oldest records make room.
    #[default]
    DropOldest,
}

/// `spool.sync`
#[derive(Clone, Copy, Debug, Default, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "kebab-case")]
pub enum Sync {
    /// Before it counts as taken.
    #[default]
    Each,
    /// Within this time; spares SD cards.
    Every(SignedDuration),
}

/// `[heartbeat]`
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Heartbeat {
    /// From one heartbeat record to the next.
    pub interval: SignedDuration,
}

/// `[events]`: what of the key's module is sealed when it happens.
#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Events {
    /// A perimeter circuit is broken, or cleared.
    pub perimeter: bool,
    /// The battery is below so many volts, or no longer.
    pub battery: Option<f32>,
    /// It is bound to another machine, or signs again after it had not.
    pub module: bool,
    /// How often it is asked, if any of these is wanted.
    pub interval: SignedDuration,
}

/// `[metrics]`
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MetricsTable {
    /// A loopback address where they are served without TLS; without one they
    /// are not.
    #[serde(default, deserialize_with = "optional_loopback")]
    pub listen: Option<SocketAddr>,
}

impl Default for Sensors {
    fn default() -> Self {
        Self {
            interval: SignedDuration::from_secs(10),
            root: "/sys".into(),
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

impl Config {
    /// Reads agent.toml and makes its paths absolute.
    ///
    /// # Errors
    /// [`Error::Config`] with file, line, what is wrong and what is allowed;
    /// [`Error::File`].
    pub fn read(path: &Path) -> Result<Self, Error> {
        let text = fs::read_to_string(path).map_err(|e| Error::file(path, e))?;
        let wrong = |detail: String| Error::Config {
            path: path.into(),
            detail,
        };
        let mut config: Self = toml::from_str(&text).map_err(|e| wrong(e.to_string()))?;
        let absolute = std::path::absolute(path).map_err(|e| Error::file(path, e))?;
        let base = absolute.parent().unwrap_or(&absolute);
        let paths = [
            &mut config.device.certificate,
            &mut config.target.roots,
            &mut config.sensors.root,
            &mut config.spool.dir,
        ];
        for path in paths.into_iter().chain(&mut config.owners.files) {
            *path = base.join(&*path);
        }
        config.check().map_err(wrong)?;
        Ok(config)
    }

    /// What the types do not say.
    pub(crate) fn check(&self) -> Result<(), String> {
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
                return Err(format!(
                    "{key} is {interval:#}: at least {SHORTEST:#} and at most {LONGEST:#} are allowed"
                ));
            }
        }
        if let Some(volts) = self.events.battery
            && !(0.1..=10.0).contains(&volts)
        {
            return Err(format!(
                "events.battery is {volts}: it is in volts, 0.1 to 10 are allowed"
            ));
        }
        if !(1..=8).contains(&self.owners.files.len()) {
            return Err(format!(
                "owners.files names {}: 1 to 8 are allowed",
                self.owners.files.len()
            ));
        }
        Ok(())
    }
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

fn default_cap() -> ByteSize {
    ByteSize::mib(256)
}
