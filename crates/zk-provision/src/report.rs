use std::fmt;
use std::path::PathBuf;

use zk_envelope::{DeviceId, KeyId, KeyState, Timestamp};

use crate::Certificate;

/// One thing that an operation made, changed or found as it should be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Step {
    /// What was done.
    pub action: Action,
    /// To what.
    pub item: Item,
}

/// What was done to an [`Item`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// It was there and is not as it was.
    Changed,
    /// It was not there.
    Created,
    /// It was there, as it should be.
    Kept,
}

/// A file, or a record in the store.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Item {
    /// A file.
    File(PathBuf),
    /// The device record of this principal.
    Record(String),
}

/// A gateway that can be started.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct GatewayFiles {
    /// Its certificate.
    pub certificate: Certificate,
    /// What it needs: configuration, key, certificate, roots.
    pub dir: PathBuf,
    /// What was done, in order.
    pub steps: Vec<Step>,
}

/// A device that may publish.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct AddedDevice {
    /// Its name.
    pub device: DeviceId,
    /// Its signing key.
    pub key: KeyId,
    /// Its certificate.
    pub certificate: Certificate,
    /// What goes to the device: configuration, certificate, roots, owners.
    pub dir: PathBuf,
    /// What was done, in order.
    pub steps: Vec<Step>,
}

/// A device that may no longer publish.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct RevokedDevice {
    /// Its name.
    pub device: DeviceId,
    /// What was done, in order.
    pub steps: Vec<Step>,
}

/// What trust file and store say of a device.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct DeviceEntry {
    /// The device.
    pub device: DeviceId,
    /// Both together.
    pub standing: Standing,
    /// Its signing keys in the trust file, oldest first.
    pub keys: Vec<(KeyId, KeyState)>,
    /// Its certificates in the store, oldest first.
    pub certificates: Vec<CertificateEntry>,
}

/// A device's certificate in the store.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct CertificateEntry {
    /// SHA-256 of the certificate, lower-case hex: the store's key.
    pub principal: String,
    /// Whether it still counts.
    pub state: KeyState,
    /// When the store learned of it.
    pub registered_at: Timestamp,
}

/// Whether a device's records are accepted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Standing {
    /// They are.
    Active,
    /// Trust file and store disagree: an operation was interrupted. Add or
    /// revoke the device again.
    Incomplete,
    /// They are not, since the device was revoked.
    Revoked,
    /// The gateway takes them and readers don't believe them: the store has a
    /// record of a device that the trust file doesn't know.
    Untrusted,
}

impl fmt::Display for Action {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Changed => "changed",
            Self::Created => "created",
            Self::Kept => "kept",
        })
    }
}

impl fmt::Display for Item {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File(path) => path.display().fmt(f),
            // the store's word, and it may go to a terminal
            Self::Record(principal) => write!(f, "store record {}", principal.escape_debug()),
        }
    }
}

impl fmt::Display for Standing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Active => "active",
            Self::Incomplete => "incomplete",
            Self::Revoked => "revoked",
            Self::Untrusted => "untrusted",
        })
    }
}
