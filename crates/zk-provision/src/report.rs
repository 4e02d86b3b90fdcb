use std::fmt;
use std::path::PathBuf;
use std::time::SystemTime;

use zk_envelope::{DeviceId, KeyId, KeyState, Timestamp};

use zk_store::StoreUri;

use crate::Certificate;

/// One thing that an operation made, changed, took away or found as it should
/// be; in a [`Plan`], what it would do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Step {
    /// What is done.
    pub action: Action,
    /// To what.
    pub item: Item,
    /// Why, where the action alone doesn't tell; else empty.
    pub reason: String,
}

/// What is done to an [`Item`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// It was there and is not as it was.
    Changed,
    /// It was not there.
    Created,
    /// It was there, as it should be.
    Kept,
    /// It was there and is gone.
    Removed,
}

impl Action {
    /// What is to be done, as a plan says it: `change`, `create`, `keep`,
    /// `remove`.
    #[must_use]
    pub fn imperative(self) -> &'static str {
        match self {
            Self::Changed => "change",
            Self::Created => "create",
            Self::Kept => "keep",
            Self::Removed => "remove",
        }
    }
}

/// What [`LocalSetup::apply`](crate::LocalSetup::apply) would do, in its order.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Plan {
    /// Every item of the set-up, what is kept among them.
    pub steps: Vec<Step>,
    /// Which passphrases it takes.
    pub needs: Needs,
    /// The devices that are shut out for good, which can't be taken back.
    pub revokes: Vec<DeviceId>,
}

impl Plan {
    /// Whether anything is not as it is to be.
    #[must_use]
    pub fn has_changes(&self) -> bool {
        self.steps.iter().any(|step| step.action != Action::Kept)
    }
}

/// Which passphrases an operation takes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Needs {
    /// That of the authorities' keys: something is to be signed.
    pub authorities: Option<Age>,
    /// That of the owner's key, which is made.
    pub owner: Option<Age>,
}

/// Whether what a passphrase opens is there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Age {
    /// It is made, and the passphrase is a new one.
    New,
    /// It is there.
    Known,
}

/// A file, or a record in the store.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Item {
    /// A file.
    File(PathBuf),
    /// The device record of this principal.
    Record(String),
    /// The device record of a certificate that is yet to be made.
    NewRecord(DeviceId),
    /// The tables of a store that is no file.
    Tables(StoreUri),
    /// Something in an AWS account, `kind` as AWS calls it.
    Resource {
        /// Such as `IAM role`.
        kind: &'static str,
        /// Its name.
        name: String,
    },
}

/// One thing that was looked at, and what was found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Checked {
    /// What.
    pub what: String,
    /// How it is.
    pub verdict: Verdict,
}

/// How something is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// As it should be.
    Good,
    /// It works, or may well be meant so.
    Warning {
        /// What is unusual.
        cause: String,
        /// What to do if it isn't meant so.
        cure: String,
    },
    /// It doesn't work, or not for long, or isn't safe.
    Bad {
        /// What is wrong.
        cause: String,
        /// What to do.
        cure: String,
    },
}

/// A certificate authority.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct AuthorityEntry {
    /// Whom it signs: `device` or `gateway`.
    pub signs: &'static str,
    /// Its name.
    pub subject: String,
    /// Its key.
    pub key: KeyId,
    /// SHA-256 of its certificate, lower-case hex; in AWS IoT, its id.
    pub id: String,
    /// Its certificate.
    pub file: PathBuf,
    /// When that expires.
    pub expires: SystemTime,
}

/// When a certificate expires.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Expiry {
    /// The certificate.
    pub file: PathBuf,
    /// When.
    pub at: SystemTime,
    /// Whether less than a third of its life is left: time for a new one.
    pub is_due: bool,
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

/// A device whose new key has taken over.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct FinishedRotation {
    /// Its name.
    pub device: DeviceId,
    /// Its signing key.
    pub key: KeyId,
    /// Its certificate.
    pub certificate: Certificate,
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
    /// When the certificate in its directory expires, if there is one.
    pub expires: Option<SystemTime>,
    /// The principal of the certificate that it is changing to.
    pub next: Option<String>,
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
            Self::Removed => "removed",
        })
    }
}

impl fmt::Display for Item {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File(path) => path.display().fmt(f),
            // the store's word, and it may go to a terminal
            Self::Record(principal) => write!(f, "store record {}", principal.escape_debug()),
            Self::NewRecord(device) => write!(f, "store record of {device}'s new certificate"),
            Self::Tables(store) => write!(f, "tables in {store}"),
            Self::Resource { kind, name } => write!(f, "{kind} {}", name.escape_debug()),
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
