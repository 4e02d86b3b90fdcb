//! What a device remembers: its keys and its perimeter, in `state.toml` or, for a
//! device that is thrown away, in memory.

use std::fmt;
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use p256::SecretKey;
use p256::elliptic_curve::Generate;
use rustix::fs::FlockOperation;
use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use zeroize::{Zeroize, ZeroizeOnDrop, Zeroizing};

use crate::device::{Error, Model, failed, replace};

const STATE: &str = "state.toml";

/// 32 bytes that nobody shall see: hexadecimal in the file.
#[derive(Clone, Zeroize, ZeroizeOnDrop)]
pub(crate) struct Secret(pub(crate) [u8; 32]);

impl Secret {
    fn random() -> Result<Self, Error> {
        let mut secret = Self([0; 32]);
        getrandom::fill(&mut secret.0)?;
        Ok(secret)
    }

    /// A P-256 key.
    pub(crate) fn key() -> Result<Self, Error> {
        let key = SecretKey::try_generate()?;
        let mut bytes = key.to_bytes();
        let secret = Self(bytes.into());
        bytes.zeroize();
        Ok(secret)
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret")
    }
}

impl Serialize for Secret {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let text = Zeroizing::new(base16ct::lower::encode_string(&self.0));
        serializer.serialize_str(&text)
    }
}

impl<'de> Deserialize<'de> for Secret {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = Zeroizing::new(String::deserialize(deserializer)?);
        let mut secret = Self([0; 32]);
        match base16ct::lower::decode(&*text, &mut secret.0) {
            Ok(bytes) if bytes.len() == 32 => Ok(secret),
            _ => Err(D::Error::custom("not 32 bytes in lower-case hexadecimal")),
        }
    }
}

/// A public key of another device: X and Y, 64 bytes in hexadecimal.
#[derive(Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Foreign {
    pub(crate) slot: u32,
    pub(crate) public: String,
}

#[derive(Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct KeyPair {
    pub(crate) slot: u32,
    pub(crate) secret: Secret,
}

/// One of the two channels.
#[derive(Clone, Copy, Debug, Default, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Channel {
    /// The flags that were set.
    pub(crate) action: u32,
    /// Seconds since 1970, or 0.
    pub(crate) breached: u32,
}

#[derive(Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub(crate) struct State {
    /// The key that locks for this device alone.
    pub(crate) one_way: Secret,
    pub(crate) perimeter: [Channel; 2],
    pub(crate) keys: Vec<KeyPair>,
    /// Of the battery.
    #[serde(default = "charged")]
    pub(crate) millivolts: u16,
    /// It is in another machine than the one that it is bound to.
    #[serde(default)]
    pub(crate) elsewhere: bool,
    #[serde(default)]
    pub(crate) foreign: Vec<Foreign>,
}

fn charged() -> u16 {
    3050
}

impl State {
    fn new() -> Result<Self, Error> {
        Ok(Self {
            one_way: Secret::random()?,
            perimeter: Default::default(),
            keys: Vec::new(),
            millivolts: charged(),
            elsewhere: false,
            foreign: Vec::new(),
        })
    }

    /// Whether the model's own key pairs are there.
    fn is_complete(&self, model: Model) -> bool {
        (0..model.key_pairs()).all(|slot| self.key(slot).is_some())
    }

    fn complete(&mut self, model: Model) -> Result<(), Error> {
        for slot in 0..model.key_pairs() {
            if self.key(slot).is_none() {
                let secret = Secret::key()?;
                self.keys.push(KeyPair { slot, secret });
            }
        }
        Ok(())
    }

    pub(crate) fn key(&self, slot: u32) -> Option<&Secret> {
        let found = self.keys.iter().find(|key| key.slot == slot);
        found.map(|key| &key.secret)
    }
}

/// Where a state is kept.
#[derive(Debug)]
pub(crate) enum Store {
    Directory(PathBuf),
    Memory(Box<Mutex<State>>),
}

impl Store {
    /// Reads the state in `directory`, or makes it.
    pub(crate) fn in_directory(directory: &Path, model: Model) -> Result<Self, Error> {
        let store = Self::Directory(directory.to_owned());
        let made = directory.join(STATE);
        if !made.try_exists().map_err(failed("find", &made))?
            || !store.read(|state| state.is_complete(model))?
        {
            store.change(|state| state.complete(model))??;
        }
        Ok(store)
    }

    pub(crate) fn in_memory(model: Model) -> Result<Self, Error> {
        let mut state = State::new()?;
        state.complete(model)?;
        Ok(Self::Memory(Box::new(Mutex::new(state))))
    }

    pub(crate) fn read<T>(&self, look: impl FnOnce(&State) -> T) -> Result<T, Error> {
        match self {
            Self::Directory(directory) => Ok(look(&load(&directory.join(STATE))?)),
            Self::Memory(state) => Ok(look(&state.lock().unwrap_or_else(PoisonError::into_inner))),
        }
    }

    /// Changes the state, unless `change` gives an error. No other process
    /// changes it meanwhile.
    pub(crate) fn change<T, E>(
        &self,
        change: impl FnOnce(&mut State) -> Result<T, E>,
    ) -> Result<Result<T, E>, Error> {
        let directory = match self {
            Self::Directory(directory) => directory,
            Self::Memory(state) => {
                return Ok(change(
                    &mut state.lock().unwrap_or_else(PoisonError::into_inner),
                ));
            }
        };
        let lock = File::open(directory).map_err(failed("open", directory))?;
        rustix::fs::flock(&lock, FlockOperation::LockExclusive)
            .map_err(|errno| failed("lock", directory)(errno.into()))?;
        let path = directory.join(STATE);
        let mut state = match load(&path) {
            Err(Error::Io { source, .. }) if source.kind() == io::ErrorKind::NotFound => {
                State::new()?
            }
            state => state?,
        };
        let result = change(&mut state);
        if result.is_ok() {
            let text = toml::to_string(&state).map(Zeroizing::new);
            let text = text.map_err(|error| Error::Syntax {
                path: path.clone(),
                problem: error.to_string(),
            })?;
            replace(&path, text.as_bytes())?;
        }
        Ok(result)
    }
}

fn load(path: &Path) -> Result<State, Error> {
    let text = Zeroizing::new(fs::read_to_string(path).map_err(failed("read", path))?);
    // The text of an error would show the line, and with it a key.
    toml::from_str(&text).map_err(|error| Error::Syntax {
        path: path.to_owned(),
        problem: error.message().to_owned(),
    })
}
