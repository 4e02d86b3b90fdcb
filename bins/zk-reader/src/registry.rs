//! The store's registry against the trust file.

use std::collections::BTreeSet;
use std::fmt;

use zk_cli::escaped;
use zk_envelope::{DeviceId, KeyId, KeyState, TrustFile};
use zk_verify::DeviceRecord;

use crate::text::key_state;

/// The devices that anybody knows of, and what the store says wrong of them.
///
/// The store's registry decides which records come in, not which count: that is
/// the trust file's alone. Where the two differ, somebody has changed one of
/// them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Registry {
    /// Those of the trust file and those of the store.
    pub devices: BTreeSet<DeviceId>,
    /// Where the store differs.
    pub differences: Vec<Difference>,
}

/// One thing that the store's registry says otherwise than the trust file.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Difference {
    /// The registry can't be read.
    Damaged {
        /// The principal whose item it is.
        principal: String,
        /// What is wrong with it.
        detail: String,
    },
    /// The store takes what a revoked key signs, refuses what a good one signs,
    /// or calls it retired when it isn't.
    KeyState {
        /// The device.
        device: DeviceId,
        /// Its certificate in the registry.
        principal: String,
        /// The key.
        key: KeyId,
        /// What the store says.
        stored: KeyState,
        /// What the trust file says.
        trusted: KeyState,
    },
    /// An active key of the trust file is registered for no certificate, or for
    /// revoked ones only: what it signs is refused.
    NotRegistered {
        /// The device.
        device: DeviceId,
        /// The key.
        key: KeyId,
    },
    /// The store knows a device that the trust file does not.
    UnknownDevice {
        /// The device.
        device: DeviceId,
        /// Its certificate in the registry.
        principal: String,
    },
    /// The store takes what this key signs for the device's.
    UnknownKey {
        /// The device.
        device: DeviceId,
        /// Its certificate in the registry.
        principal: String,
        /// The key.
        key: KeyId,
    },
}

impl Difference {
    /// The device that it is about, if that can be told.
    #[must_use]
    pub fn device(&self) -> Option<&DeviceId> {
        match self {
            Self::Damaged { .. } => None,
            Self::KeyState { device, .. }
            | Self::NotRegistered { device, .. }
            | Self::UnknownDevice { device, .. }
            | Self::UnknownKey { device, .. } => Some(device),
        }
    }
}

/// One line that may go to a terminal.
impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Damaged { principal, detail } => write!(
                f,
                "the store's registry can't be read: item {}: {}",
                escaped(principal),
                escaped(detail)
            ),
            Self::KeyState {
                device,
                principal,
                key,
                stored,
                trusted,
            } => write!(
                f,
                "{device}: the store calls key {key} {} (certificate {}), the trust file {}",
                key_state(*stored),
                escaped(principal),
                key_state(*trusted)
            ),
            Self::NotRegistered { device, key } => write!(
                f,
                "{device}: key {key} is active in the trust file, but the store knows it for no \
                 certificate that counts and refuses what it signs"
            ),
            Self::UnknownDevice { device, principal } => write!(
                f,
                "{device}: the store knows this device (certificate {}), the trust file does not",
                escaped(principal)
            ),
            Self::UnknownKey {
                device,
                principal,
                key,
            } => write!(
                f,
                "{device}: the store takes what key {key} signs (certificate {}), \
                 the trust file does not know that key",
                escaped(principal)
            ),
        }
    }
}

/// Compares what is registered, or says why that can't be read.
pub(crate) fn differences(
    trust: &TrustFile,
    registered: Result<Vec<(String, DeviceRecord)>, (String, String)>,
) -> Vec<Difference> {
    let registered = match registered {
        Ok(registered) => registered,
        Err((principal, detail)) => return vec![Difference::Damaged { principal, detail }],
    };
    let mut differences = Vec::new();
    let mut keys = BTreeSet::new();
    for (principal, record) in registered {
        let device = record.device;
        let counts = !matches!(record.certificate, KeyState::Revoked { .. });
        if !trust.devices.contains_key(&device) {
            differences.push(Difference::UnknownDevice { device, principal });
            continue;
        }
        for known in record.keys {
            let key = KeyId::of(&known.key);
            let principal = principal.clone();
            match trust.key(&device, key) {
                None => differences.push(Difference::UnknownKey {
                    device: device.clone(),
                    principal,
                    key,
                }),
                Some(trusted) if trusted.state != known.state => {
                    differences.push(Difference::KeyState {
                        device: device.clone(),
                        principal,
                        key,
                        stored: known.state,
                        trusted: trusted.state,
                    });
                }
                Some(_) => {}
            }
            if counts {
                keys.insert((device.clone(), key));
            }
        }
    }
    for (device, trusted) in &trust.devices {
        for known in trusted
            .keys
            .iter()
            .filter(|known| known.state == KeyState::Active)
        {
            let key = KeyId::of(&known.key);
            if !keys.contains(&(device.clone(), key)) {
                differences.push(Difference::NotRegistered {
                    device: device.clone(),
                    key,
                });
            }
        }
    }
    differences
}
