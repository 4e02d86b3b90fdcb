//! zk-setup.toml: what a set-up is to be.

use std::collections::BTreeMap;
use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use anyhow::{Context, bail};
use rustls_pki_types::ServerName;
use serde::{Deserialize, Deserializer, de};
use zk_envelope::DeviceId;
use zk_hsm::HsmUri;
use zk_provision::Architecture;
use zk_store::StoreUri;

use crate::arguments;

/// A zk-setup.toml. Relative paths in it are relative to the file's own
/// directory. What is left out stays as it is; but a device that is left out is
/// removed.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SetupFile {
    /// Files with the public keys that all devices encrypt for.
    #[serde(default)]
    pub owners: Vec<PathBuf>,
    /// The gateway, if readings go to one.
    #[serde(default)]
    pub gateway: GatewayTable,
    /// AWS, if readings go there.
    #[serde(default)]
    pub aws: AwsTable,
    /// The devices.
    #[serde(default)]
    pub devices: BTreeMap<DeviceId, DeviceTable>,
}

/// `[gateway]`
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GatewayTable {
    /// The host names and addresses in its certificate; devices are told the
    /// first.
    #[serde(default, deserialize_with = "names")]
    pub names: Vec<ServerName<'static>>,
    /// Where it listens.
    #[serde(default, deserialize_with = "listen")]
    pub listen: Option<SocketAddr>,
    /// Where device records and readings are kept.
    #[serde(default, deserialize_with = "parsed")]
    pub store: Option<StoreUri>,
}

/// `[aws]`
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct AwsTable {
    /// The region.
    pub region: Option<String>,
    /// What every name begins with.
    pub prefix: Option<String>,
    /// The program that verifies.
    pub lambda_zip: Option<PathBuf>,
    /// What it runs on.
    #[serde(default, deserialize_with = "arch")]
    pub arch: Option<Architecture>,
    /// Who signs the certificate of what devices publish to, in place of Amazon.
    pub roots: Option<PathBuf>,
}

/// `[devices.NAME]`
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DeviceTable {
    /// A certificate request that the device made.
    pub csr: Option<PathBuf>,
    /// Its key, for its agent.toml; without `csr` it is in this machine.
    #[serde(default, deserialize_with = "parsed")]
    pub hsm: Option<HsmUri>,
    /// Where it publishes to.
    #[serde(default, deserialize_with = "endpoint")]
    pub endpoint: Option<String>,
}

impl SetupFile {
    /// Reads the file and makes its paths absolute.
    ///
    /// # Errors
    /// The file, and for a key that is unknown or a value that is wrong the line
    /// and what is allowed.
    pub fn read(path: &Path) -> anyhow::Result<Self> {
        let shown = path.display();
        let text = fs::read_to_string(path).with_context(|| format!("cannot read {shown}"))?;
        let mut file: Self = toml::from_str(&text)
            .map_err(|error| anyhow::anyhow!("{shown}: {}", explain(&error, &text)))?;
        let base = std::path::absolute(path)?;
        let base = base.parent().unwrap_or(Path::new("/"));
        for path in &mut file.owners {
            *path = base.join(&*path);
        }
        if let Some(StoreUri::File(path)) = &mut file.gateway.store {
            *path = base.join(&*path);
        }
        let in_aws = [&mut file.aws.lambda_zip, &mut file.aws.roots];
        for path in in_aws.into_iter().flatten() {
            *path = base.join(&*path);
        }
        for (name, device) in &mut file.devices {
            if let Some(path) = &mut device.csr {
                *path = base.join(&*path);
            }
            if device.csr.is_none() && device.hsm.is_none() {
                bail!(
                    "{shown}: [devices.{name}] names no key: give csr, a request that the device \
                     made, or hsm, a key in this machine"
                );
            }
        }
        Ok(file)
    }
}

/// What is wrong, with the line; without it if that holds a key's URI, where a PIN
/// may stand that doesn't belong there.
fn explain(error: &toml::de::Error, text: &str) -> String {
    let before = error.span().and_then(|span| text.get(..span.start));
    let line = before.map_or(0, |before| before.matches('\n').count());
    let holds_uri = |line: &str| line.contains("pkcs11:");
    if text.lines().nth(line).is_some_and(holds_uri) {
        format!("line {}: {}", line + 1, error.message())
    } else {
        error.to_string().trim_end().to_owned()
    }
}

fn names<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<ServerName<'static>>, D::Error> {
    let names: Vec<String> = Vec::deserialize(deserializer)?;
    let parse = |name: String| {
        arguments::server_name(&name)
            .map_err(|error| de::Error::custom(format_args!("{name:?}: {error}")))
    };
    names.into_iter().map(parse).collect()
}

fn listen<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<SocketAddr>, D::Error> {
    let text = String::deserialize(deserializer)?;
    let address = arguments::socket_address(&text);
    address
        .map(Some)
        .map_err(|error| de::Error::custom(format_args!("{text:?}: {error}")))
}

fn arch<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Architecture>, D::Error> {
    let text = String::deserialize(deserializer)?;
    arguments::architecture(&text)
        .map(Some)
        .map_err(|error| de::Error::custom(format_args!("{text:?}: {error}")))
}

fn endpoint<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<String>, D::Error> {
    let text = String::deserialize(deserializer)?;
    arguments::endpoint(&text)
        .map(Some)
        .map_err(de::Error::custom)
}

fn parsed<'de, D, T>(deserializer: D) -> Result<Option<T>, D::Error>
where
    D: Deserializer<'de>,
    T: FromStr,
    T::Err: std::fmt::Display,
{
    let text = String::deserialize(deserializer)?;
    text.parse().map(Some).map_err(de::Error::custom)
}

/// A zk-setup.toml to begin with.
pub(crate) const TEMPLATE: &str = include_str!("../template.toml");
