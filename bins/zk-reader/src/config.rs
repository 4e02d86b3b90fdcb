//! What `zk-reader` is told: arguments before environment before file.

use std::env;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::Context;
use serde::{Deserialize, Deserializer, de};
use zk_store::{Options, Store, StoreUri};

use crate::Failure;
use zk_reader::arguments::Common;

/// Where everything is.
#[derive(Debug, Default)]
pub(crate) struct Settings {
    store: Option<StoreUri>,
    prefix: Option<String>,
    key: Option<PathBuf>,
    trust: Option<PathBuf>,
    pub(crate) passphrase_file: Option<PathBuf>,
}

impl Settings {
    pub(crate) fn resolve(given: Common) -> Result<Self, Failure> {
        let file = match &given.config {
            Some(path) => Self::read(path)?,
            None => match usual_place() {
                Some(path) if path.exists() => Self::read(&path)?,
                _ => Self::default(),
            },
        };
        Ok(Self {
            store: given.store.or(file.store),
            prefix: given.prefix.or(file.prefix),
            key: given.key.or(file.key),
            trust: given.trust.or(file.trust),
            passphrase_file: given.passphrase_file.or(file.passphrase_file),
        })
    }

    pub(crate) fn store(&self) -> Result<&StoreUri, Failure> {
        required(self.store.as_ref(), "store", "file:PATH or dynamodb:REGION")
    }

    pub(crate) async fn open_store(&self) -> Result<Store, Failure> {
        let mut options = Options::default();
        if let Some(prefix) = &self.prefix {
            options.prefix.clone_from(prefix);
        }
        Ok(Store::open(self.store()?, options).await?)
    }

    pub(crate) fn key(&self) -> Result<&Path, Failure> {
        required(
            self.key.as_deref(),
            "key",
            "the owner's key, as `zk-reader keygen` makes it",
        )
    }

    pub(crate) fn trust(&self) -> Result<&Path, Failure> {
        required(
            self.trust.as_deref(),
            "trust",
            "the trust file, as `zk-setup` writes it",
        )
    }

    fn read(path: &Path) -> Result<Self, Failure> {
        let name = || path.display().to_string();
        let text = fs::read_to_string(path).with_context(name)?;
        let file: File = toml::from_str(&text).with_context(name)?;
        let directory = path.parent().unwrap_or(Path::new(""));
        let store = match file.store {
            Some(StoreUri::File(path)) => Some(StoreUri::File(directory.join(path))),
            other => other,
        };
        let joined = |path: Option<PathBuf>| path.map(|path| directory.join(path));
        Ok(Self {
            store,
            prefix: file.prefix,
            key: joined(file.key),
            trust: joined(file.trust),
            passphrase_file: joined(file.passphrase_file),
        })
    }
}

/// The file, as it is written.
#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
struct File {
    #[serde(default, deserialize_with = "uri")]
    store: Option<StoreUri>,
    prefix: Option<String>,
    key: Option<PathBuf>,
    trust: Option<PathBuf>,
    passphrase_file: Option<PathBuf>,
}

fn uri<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<StoreUri>, D::Error> {
    let text = String::deserialize(deserializer)?;
    text.parse().map(Some).map_err(de::Error::custom)
}

fn required<T>(value: Option<T>, name: &str, what: &str) -> Result<T, Failure> {
    value.ok_or_else(|| {
        Failure::Usage(format!(
            "no {name}: give --{name} ({what}), set ZK_READER_{}, or write {name} = \"…\" into \
             ~/.config/zk/reader.toml",
            name.to_uppercase()
        ))
    })
}

fn usual_place() -> Option<PathBuf> {
    let absolute = |name| {
        env::var_os(name)
            .map(PathBuf::from)
            .filter(|path| path.is_absolute())
    };
    let base = absolute("XDG_CONFIG_HOME").or_else(|| Some(absolute("HOME")?.join(".config")));
    Some(base?.join("zk/reader.toml"))
}
