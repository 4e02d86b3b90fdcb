use std::collections::BTreeMap;
use std::path::PathBuf;

use rustls_pki_types::ServerName;
use zk_envelope::{DeviceId, OwnerPublicKey};

use crate::{CertificateRequest, Gateway};

/// What a set-up is to be. What is left out stays as it is; [`Default`] is what
/// is there already, made whole.
#[derive(Clone, Debug, Default)]
pub struct Desired {
    /// The gateway.
    pub gateway: Gateway,
    /// Its names if it has none yet and none are given.
    pub names_at_first: Vec<ServerName<'static>>,
    /// Whom devices encrypt for. Empty: those each of them has. If there are
    /// none at all, a key is made: `owner.pem`.
    pub owners: Vec<OwnerPublicKey>,
    /// The devices.
    pub devices: BTreeMap<DeviceId, DesiredDevice>,
    /// What becomes of devices that it doesn't name.
    pub others: Others,
}

/// What becomes of devices that a [`Desired`] doesn't name.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Others {
    /// They stay as they are, made whole.
    #[default]
    Keep,
    /// They are revoked, and what was made for them is removed.
    Remove,
    /// The same, but only these are revoked: those that somebody has agreed to,
    /// as [`Plan::revokes`](crate::Plan::revokes) named them. One that was added
    /// since then is [`Error::NotAgreed`](crate::Error::NotAgreed).
    RemoveThese(Vec<DeviceId>),
}

/// What a device is to be.
#[derive(Clone, Debug, Default)]
pub struct DesiredDevice {
    /// Its key.
    pub key: DesiredKey,
    /// The key's URI for agent.toml. `None`: leave what is there; at first that
    /// is `zymkey:slot=0`.
    pub hsm: Option<String>,
    /// Where it publishes to, `host:port`. `None`: leave what is there; at first
    /// that is the first name in the gateway's certificate.
    pub endpoint: Option<String>,
}

/// A device's key, as far as it is known.
#[derive(Clone, Debug, Default)]
pub enum DesiredKey {
    /// The one that the trust file has.
    #[default]
    Registered,
    /// The one that signed this request.
    Request(CertificateRequest),
    /// One in this file that is yet to be made: good enough for a plan, not for
    /// more.
    ToBeMade(PathBuf),
}
