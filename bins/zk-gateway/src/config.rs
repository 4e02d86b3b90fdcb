//! `gateway.toml`, and what the command line and the environment put over it.

use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use jiff::SignedDuration;
use serde::{Deserialize, Deserializer, de};
use zk_store::StoreUri;

use crate::error::{CONFIGURATION, Error};
use crate::turns::WAITING;

/// Everything the gateway is told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// Where devices connect to.
    pub listen: SocketAddr,
    /// Where metrics and health are served, without TLS: a loopback address.
    pub metrics: Option<SocketAddr>,
    /// Where records go.
    pub store: StoreUri,
    /// What the names of its tables begin with.
    pub prefix: String,
    /// Certificates and key.
    pub tls: TlsFiles,
    /// Sizes, numbers and times that no client goes past.
    pub limits: Limits,
}

impl Config {
    /// Reads a configuration file. Relative paths in it start at the directory
    /// it lies in. What `over` holds goes before what the file says.
    ///
    /// # Errors
    ///
    /// [`Error::Config`] names the file, and for a key that is unknown,
    /// missing or of the wrong type the line and what is allowed.
    pub fn load(path: &Path, over: Overrides) -> Result<Self, Error> {
        let config = |error: toml::de::Error| Error::Config {
            path: path.to_owned(),
            error: error.into(),
        };
        let text = fs::read_to_string(path)
            .map_err(|error| Error::unreadable(CONFIGURATION, path, error))?;
        let file: File = toml::from_str(&text).map_err(config)?;
        let directory = path.parent().unwrap_or(Path::new(""));
        let store = match file.store {
            StoreUri::File(path) => StoreUri::File(directory.join(path)),
            other => other,
        };
        Ok(Self {
            listen: over.listen.unwrap_or(file.listen),
            metrics: over.metrics.or(file.metrics),
            store: over.store.unwrap_or(store),
            prefix: over
                .prefix
                .or(file.prefix)
                .unwrap_or_else(|| "zk".to_owned()),
            tls: TlsFiles {
                certificate: directory.join(file.tls.certificate),
                key: directory.join(file.tls.key),
                device_ca: directory.join(file.tls.device_ca),
            },
            limits: file.limits,
        })
    }
}

/// Settings from the command line or the environment.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Overrides {
    /// In place of `listen`.
    pub listen: Option<SocketAddr>,
    /// In place of `metrics`.
    pub metrics: Option<SocketAddr>,
    /// In place of `store`.
    pub store: Option<StoreUri>,
    /// In place of `prefix`.
    pub prefix: Option<String>,
}

/// PEM files.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct TlsFiles {
    /// The gateway's certificate, first, and any that lead to the CA which
    /// devices trust.
    pub certificate: PathBuf,
    /// Its private key, in clear, readable for nobody but the gateway: mode 0600,
    /// or 0640 if another user owns it.
    pub key: PathBuf,
    /// The authorities of device certificates, and of nothing else.
    pub device_ca: PathBuf,
}

/// What no client goes past. [`Default`] suits one small machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct Limits {
    /// Connections of proven devices, all together. Default 1024. Further ones
    /// wait in the handshake, then for their turn at one.
    #[serde(deserialize_with = "number")]
    pub connections: usize,
    /// Connections of one device. Default 4. A further one closes the oldest,
    /// which on a link that breaks often is a dead one; and so does any when all
    /// connections are taken.
    #[serde(deserialize_with = "number")]
    pub connections_per_device: usize,
    /// Handshakes under way. Default 128. They have a limit of their own so
    /// that strangers cannot take the place of devices that are connected. Eight
    /// times as many may wait for one; the address of which the fewest are under
    /// way (of IPv6, the first 64 bits) is always next, and takes the place of
    /// one that has many.
    #[serde(deserialize_with = "number")]
    pub handshakes: usize,
    /// Requests whose body is in memory. Default 64, each with at most
    /// 128 KiB. Further ones wait, with at most the first 8 KiB of it read.
    #[serde(deserialize_with = "number")]
    pub requests: usize,
    /// Time for a TLS handshake. Default 10 s, of which a slow chip may need
    /// one or two.
    #[serde(deserialize_with = "duration")]
    pub handshake: Duration,
    /// Time from the end of one answer to the end of the next request's
    /// header: for silence between requests and for slow headers alike. And
    /// for a client to take what is sent to it. Default 2 min.
    #[serde(deserialize_with = "duration")]
    pub idle: Duration,
    /// Time for a request's body. Default 30 s. When a connection is closed, so
    /// long is read, and thrown away, what the client still sends.
    #[serde(deserialize_with = "duration")]
    pub body: Duration,
    /// Time for the store to take a message. Default 30 s.
    #[serde(deserialize_with = "duration")]
    pub store: Duration,
    /// Age at which a connection is closed after the answer under way, so that
    /// a device proves its certificate again. Default 1 h.
    #[serde(deserialize_with = "duration")]
    pub age: Duration,
    /// Time that requests under way have when the gateway stops. Default 20 s.
    #[serde(deserialize_with = "duration")]
    pub stop: Duration,
}

impl Limits {
    /// How many files may be open at once when all of it is used up.
    #[must_use]
    pub fn open_files(&self) -> u64 {
        let sockets = self.connections + self.handshakes * (1 + WAITING);
        sockets as u64 + OTHER_FILES
    }
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            connections: 1024,
            connections_per_device: 4,
            handshakes: 128,
            requests: 64,
            handshake: Duration::from_secs(10),
            idle: Duration::from_secs(120),
            body: Duration::from_secs(30),
            store: Duration::from_secs(30),
            age: Duration::from_secs(3600),
            stop: Duration::from_secs(20),
        }
    }
}

/// The file, as it is written.
#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
struct File {
    #[serde(deserialize_with = "parsed")]
    listen: SocketAddr,
    #[serde(default, deserialize_with = "optional_loopback")]
    metrics: Option<SocketAddr>,
    #[serde(deserialize_with = "parsed")]
    store: StoreUri,
    prefix: Option<String>,
    tls: TlsFiles,
    #[serde(default)]
    limits: Limits,
}

/// Parses an address that only this machine reaches: what is served there is
/// for anybody who does.
///
/// # Errors
///
/// What is wrong with it, and what would do.
pub fn loopback(text: &str) -> Result<SocketAddr, String> {
    match text.parse::<SocketAddr>() {
        Ok(address) if address.ip().is_loopback() => Ok(address),
        Ok(_) => Err(
            "this is served without TLS: give a loopback address, such as \
             127.0.0.1:9464, and put a proxy of your choice before it"
                .to_owned(),
        ),
        Err(error) => Err(error.to_string()),
    }
}

fn optional_loopback<'de, D>(deserializer: D) -> Result<Option<SocketAddr>, D::Error>
where
    D: Deserializer<'de>,
{
    let text = String::deserialize(deserializer)?;
    loopback(&text)
        .map(Some)
        .map_err(|error| de::Error::custom(format_args!("{text:?}: {error}")))
}

fn parsed<'de, D, T>(deserializer: D) -> Result<T, D::Error>
where
    D: Deserializer<'de>,
    T: std::str::FromStr,
    T::Err: std::fmt::Display,
{
    let text = String::deserialize(deserializer)?;
    text.parse()
        .map_err(|error| de::Error::custom(format_args!("{text:?}: {error}")))
}

fn number<'de, D: Deserializer<'de>>(deserializer: D) -> Result<usize, D::Error> {
    let value = u32::deserialize(deserializer)?;
    match usize::try_from(value) {
        Ok(value @ 1..=MAX_NUMBER) => Ok(value),
        _ => Err(de::Error::custom(format_args!(
            "{value} is not from 1 to {MAX_NUMBER}"
        ))),
    }
}

fn duration<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Duration, D::Error> {
    let text = String::deserialize(deserializer)?;
    let value = text.parse::<SignedDuration>().map_err(|error| {
        de::Error::custom(format_args!(
            "{error}; give a time such as \"30s\" or \"2m\""
        ))
    })?;
    match Duration::try_from(value) {
        Ok(value) if (MIN_TIME..=MAX_TIME).contains(&value) => Ok(value),
        _ => Err(de::Error::custom(format_args!(
            "{text:?} is not from 10ms to 24h"
        ))),
    }
}

/// The store's, the listeners, the metrics' readers and the runtime's own.
const OTHER_FILES: u64 = 64;

/// The most of anything that is counted; a semaphore takes it.
const MAX_NUMBER: usize = 1_000_000;

const MIN_TIME: Duration = Duration::from_millis(10);
const MAX_TIME: Duration = Duration::from_secs(24 * 3600);
