//! The trust file: which keys speak for which device, and for whom.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::Path;

use p256::ecdsa::VerifyingKey;
use pkcs8::DecodePublicKey;
use serde::{Deserialize, Serialize};

use crate::Error;
use crate::id::{DeviceId, KeyId, RecipientId, Timestamp};
use crate::owner::{OwnerPublicKey, public_key_pem};

/// What an owner believes of devices: written by the operator's set-up, kept by
/// the owner, trusted alone. What a store says of keys decides nothing.
///
/// On disk it is TOML:
///
/// ```toml
/// version = 1
///
/// [[owners]]
/// id = "4f1d0c2b9a8e7f60"
/// public_key = '''
/// -----BEGIN PUBLIC KEY-----
/// …
/// -----END PUBLIC KEY-----
/// '''
///
/// [devices.pi-01]
/// owners = ["4f1d0c2b9a8e7f60"]
///
/// [[devices.pi-01.keys]]
/// id = "<SHA-256 of the SubjectPublicKeyInfo, hex>"
/// state = "active"              # active, retired, or revoked with revoked_at
/// public_key = '''…'''
/// ```
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TrustFile {
    /// The owners that devices encrypt for.
    pub owners: BTreeMap<RecipientId, OwnerPublicKey>,
    /// The devices.
    pub devices: BTreeMap<DeviceId, TrustedDevice>,
}

/// One device of a trust file.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TrustedDevice {
    /// The owners that its records should be encrypted for: any other
    /// recipient is an alarm.
    pub owners: BTreeSet<RecipientId>,
    /// Its signing keys, oldest first.
    pub keys: Vec<TrustedKey>,
}

/// One key of a device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TrustedKey {
    /// The public half.
    pub key: VerifyingKey,
    /// Whether its signatures still count.
    pub state: KeyState,
}

/// Whether a key's signatures still count.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KeyState {
    /// In use.
    Active,
    /// Replaced by another: still right for records that arrive late.
    Retired,
    /// Not to be believed: nothing received after this instant counts, whatever
    /// time it claims.
    Revoked {
        /// When it was revoked.
        at: Timestamp,
    },
}

impl TrustFile {
    /// The key of `device` with this identity, if the owner knows it.
    #[must_use]
    pub fn key(&self, device: &DeviceId, signer: KeyId) -> Option<&TrustedKey> {
        self.devices
            .get(device)?
            .keys
            .iter()
            .find(|known| KeyId::of(&known.key) == signer)
    }

    /// Reads and checks a trust file.
    ///
    /// # Errors
    /// [`Error::Writable`] if others could have written it; [`Error::Io`];
    /// [`Error::TrustFile`] with line, what is wrong and what is allowed;
    /// [`Error::TooLarge`].
    pub fn read(path: &Path) -> Result<Self, Error> {
        let io = |source| Error::Io {
            path: path.into(),
            source,
        };
        let file = File::open(path).map_err(io)?;
        let mode = file.metadata().map_err(io)?.mode() & 0o777;
        if mode & 0o022 != 0 {
            return Err(Error::Writable {
                path: path.into(),
                mode,
            });
        }
        let mut text = String::new();
        file.take(MAX_FILE as u64 + 1)
            .read_to_string(&mut text)
            .map_err(io)?;
        if text.len() > MAX_FILE {
            return Err(Error::TooLarge {
                what: "trust file",
                size: text.len(),
                limit: MAX_FILE,
            });
        }
        let wrong = |detail: String| Error::TrustFile {
            path: path.into(),
            detail,
        };
        let file: FileText = toml::from_str(&text).map_err(|error| wrong(error.to_string()))?;
        file.check().map_err(|error| wrong(error.to_string()))
    }

    /// Replaces `path` in one step: a crash leaves the old file or the new one.
    ///
    /// # Errors
    /// [`Error::Io`], [`Error::TrustFile`].
    pub fn write(&self, path: &Path) -> Result<(), Error> {
        let wrong = |detail: String| Error::TrustFile {
            path: path.into(),
            detail,
        };
        let text = toml::to_string_pretty(&FileText::from(self))
            .map_err(|error| wrong(error.to_string()))?;
        let directory = path
            .parent()
            .filter(|parent| !parent.as_os_str().is_empty());
        let temporary = path.with_extension("tmp");
        let replace = || -> io::Result<()> {
            // What a crash, or somebody else, left there is not written through:
            // it may have another mode, or be a link.
            match fs::remove_file(&temporary) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => {}
            }
            let mut file = OpenOptions::new()
                .write(true)
                .create_new(true)
                .mode(0o600)
                .open(&temporary)?;
            file.write_all(HEAD.as_bytes())?;
            file.write_all(text.as_bytes())?;
            file.sync_all()?;
            fs::rename(&temporary, path)?;
            File::open(directory.unwrap_or(Path::new(".")))?.sync_all()
        };
        replace().map_err(|source| Error::Io {
            path: path.into(),
            source,
        })
    }
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct FileText {
    version: u32,
    #[serde(default)]
    owners: Vec<OwnerText>,
    #[serde(default)]
    devices: BTreeMap<DeviceId, DeviceText>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct OwnerText {
    id: RecipientId,
    public_key: String,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct DeviceText {
    owners: Vec<RecipientId>,
    #[serde(default)]
    keys: Vec<KeyText>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct KeyText {
    id: KeyId,
    state: StateText,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    revoked_at: Option<Timestamp>,
    public_key: String,
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
enum StateText {
    Active,
    Retired,
    Revoked,
}

impl FileText {
    /// The rules that the syntax does not state.
    fn check(self) -> Result<TrustFile, Error> {
        let rule = |rule| Err(Error::malformed("trust file", rule));
        if self.version != 1 {
            return rule("version 1; a newer file needs a newer zk");
        }
        let mut trust = TrustFile::default();
        for OwnerText { id, public_key } in self.owners {
            let key = OwnerPublicKey::from_pem(&public_key)?;
            if key.id() != id {
                return rule("an owner's id is that of its public_key");
            }
            if trust.owners.insert(id, key).is_some() {
                return rule("each owner once");
            }
        }
        for (device, DeviceText { owners, keys }) in self.devices {
            if !owners.iter().all(|owner| trust.owners.contains_key(owner)) {
                return rule("a device's owners stand under [[owners]]");
            }
            let mut ids = BTreeSet::new();
            if !keys.iter().all(|key| ids.insert(key.id)) {
                return rule("each key of a device once");
            }
            let keys = keys
                .into_iter()
                .map(KeyText::check)
                .collect::<Result<_, _>>()?;
            let owners = owners.into_iter().collect();
            trust.devices.insert(device, TrustedDevice { owners, keys });
        }
        Ok(trust)
    }
}

impl KeyText {
    fn check(self) -> Result<TrustedKey, Error> {
        let rule = |rule| Err(Error::malformed("trust file", rule));
        let key =
            VerifyingKey::from_public_key_pem(self.public_key.trim_start()).map_err(|_| {
                Error::malformed("trust file", "a device's public_key is a P-256 key in PEM")
            })?;
        if KeyId::of(&key) != self.id {
            return rule("a key's id is SHA-256 of its public_key's SubjectPublicKeyInfo");
        }
        let state = match (self.state, self.revoked_at) {
            (StateText::Active, None) => KeyState::Active,
            (StateText::Retired, None) => KeyState::Retired,
            (StateText::Revoked, Some(at)) => KeyState::Revoked { at },
            _ => return rule("revoked_at stands with state revoked, and only there"),
        };
        Ok(TrustedKey { key, state })
    }
}

impl From<&TrustFile> for FileText {
    fn from(trust: &TrustFile) -> Self {
        let owner = |(id, key): (&RecipientId, &OwnerPublicKey)| OwnerText {
            id: *id,
            public_key: key.to_pem(),
        };
        let device = |(id, device): (&DeviceId, &TrustedDevice)| {
            let owners = device.owners.iter().copied().collect();
            (
                id.clone(),
                DeviceText {
                    owners,
                    keys: device.keys.iter().map(KeyText::from).collect(),
                },
            )
        };
        Self {
            version: 1,
            owners: trust.owners.iter().map(owner).collect(),
            devices: trust.devices.iter().map(device).collect(),
        }
    }
}

impl From<&TrustedKey> for KeyText {
    fn from(known: &TrustedKey) -> Self {
        let (state, revoked_at) = match known.state {
            KeyState::Active => (StateText::Active, None),
            KeyState::Retired => (StateText::Retired, None),
            KeyState::Revoked { at } => (StateText::Revoked, Some(at)),
        };
        Self {
            id: KeyId::of(&known.key),
            state,
            revoked_at,
            public_key: public_key_pem(&known.key),
        }
    }
}

const HEAD: &str = "\
# Which keys speak for which device, and for whom. Readers believe this file
# alone, so keep it as you keep a password list. Written by zk-setup.

";

/// A thousand devices have about half a megabyte.
const MAX_FILE: usize = 16 * 1024 * 1024;
