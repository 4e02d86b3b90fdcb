//! Why a message is quarantined.

use std::fmt;
use std::str::FromStr;

/// Why a message, or one envelope of it, is not accepted.
///
/// The names are stable: they are stored, counted and shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[non_exhaustive]
pub enum Reason {
    /// `bad-signature`: not made by the key that the envelope names, or the
    /// bytes were changed.
    BadSignature,
    /// `conflict`: other bytes are stored under the same device, time, stream
    /// and sequence. Only a store can find it.
    Conflict,
    /// `header-mismatch`: the routing copies of device id or time outside the
    /// signature are not the signed ones.
    HeaderMismatch,
    /// `malformed`: breaks a rule of the format.
    Malformed,
    /// `principal-mismatch`: the envelope names another device than the one
    /// whose certificate brought it.
    PrincipalMismatch,
    /// `revoked-device`: received after the certificate or the signing key was
    /// revoked.
    RevokedDevice,
    /// `signer-mismatch`: the envelope names the right device, but a key that
    /// is none of that device's.
    SignerMismatch,
    /// `too-large`: more bytes than the format allows.
    TooLarge,
    /// `topic-mismatch`: published on a topic that is not the device's own.
    TopicMismatch,
    /// `unknown-device`: no device is registered for the principal.
    UnknownDevice,
    /// `unsupported-version`: another format, or a later version of this one.
    UnsupportedVersion,
}

impl Reason {
    /// Every reason, in alphabetical order.
    pub const ALL: [Self; 11] = [
        Self::BadSignature,
        Self::Conflict,
        Self::HeaderMismatch,
        Self::Malformed,
        Self::PrincipalMismatch,
        Self::RevokedDevice,
        Self::SignerMismatch,
        Self::TooLarge,
        Self::TopicMismatch,
        Self::UnknownDevice,
        Self::UnsupportedVersion,
    ];

    /// The stable name.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::BadSignature => "bad-signature",
            Self::Conflict => "conflict",
            Self::HeaderMismatch => "header-mismatch",
            Self::Malformed => "malformed",
            Self::PrincipalMismatch => "principal-mismatch",
            Self::RevokedDevice => "revoked-device",
            Self::SignerMismatch => "signer-mismatch",
            Self::TooLarge => "too-large",
            Self::TopicMismatch => "topic-mismatch",
            Self::UnknownDevice => "unknown-device",
            Self::UnsupportedVersion => "unsupported-version",
        }
    }

    /// Whether the verdict depends on what is registered, so that it may be
    /// another one once the registry has been read anew.
    #[must_use]
    pub const fn rests_on_registry(self) -> bool {
        matches!(
            self,
            Self::PrincipalMismatch
                | Self::RevokedDevice
                | Self::SignerMismatch
                | Self::UnknownDevice
        )
    }
}

/// Writes the stable name.
impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Takes the stable name.
impl FromStr for Reason {
    type Err = UnknownReason;

    fn from_str(name: &str) -> Result<Self, UnknownReason> {
        Self::ALL
            .into_iter()
            .find(|reason| reason.as_str() == name)
            .ok_or(UnknownReason)
    }
}

/// A name that is none of [`Reason`]'s.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct UnknownReason;

impl fmt::Display for UnknownReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("not a reason for quarantine that this version knows")
    }
}

impl std::error::Error for UnknownReason {}
