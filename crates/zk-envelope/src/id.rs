//! The names of things: devices, streams, boots, keys, owners, instants.

use std::fmt;
use std::str::FromStr;

use p256::ecdsa::VerifyingKey;
use sha2::{Digest, Sha256};

use crate::Error;

/// A device's name: 1 to 64 of `A-Z a-z 0-9 _ -`, equal to its certificate's
/// common name.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct DeviceId(String);

impl DeviceId {
    /// The name as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl TryFrom<&str> for DeviceId {
    type Error = Error;

    fn try_from(name: &str) -> Result<Self, Error> {
        let legal = |b: u8| b.is_ascii_alphanumeric() || b == b'_' || b == b'-';
        if (1..=64).contains(&name.len()) && name.bytes().all(legal) {
            Ok(Self(name.to_owned()))
        } else {
            Err(Error::malformed("device id", "1 to 64 of A-Z a-z 0-9 _ -"))
        }
    }
}

impl FromStr for DeviceId {
    type Err = Error;

    fn from_str(name: &str) -> Result<Self, Error> {
        Self::try_from(name)
    }
}

impl fmt::Display for DeviceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// An instant in milliseconds since the Unix epoch, up to the end of the year
/// 9999, written `2026-11-23T11:20:44.123Z`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Timestamp(u64);

impl Timestamp {
    /// The last instant that the format can hold: `9999-12-31T23:59:59.999Z`.
    pub const MAX: Self = Self(253_402_300_799_999);

    /// `None` past [`Timestamp::MAX`].
    #[must_use]
    pub fn from_millis(millis: u64) -> Option<Self> {
        (millis <= Self::MAX.0).then_some(Self(millis))
    }

    /// Milliseconds since the Unix epoch.
    #[must_use]
    pub fn as_millis(self) -> u64 {
        self.0
    }
}

/// Times before the epoch become the epoch, times past [`Timestamp::MAX`]
/// become that: a clock that is so wrong carries no information.
impl From<std::time::SystemTime> for Timestamp {
    fn from(time: std::time::SystemTime) -> Self {
        let since = time
            .duration_since(std::time::UNIX_EPOCH)
            .unwrap_or_default();
        Self(u64::try_from(since.as_millis()).map_or(Self::MAX.0, |ms| ms.min(Self::MAX.0)))
    }
}

impl fmt::Display for Timestamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // jiff's own Timestamp ends a day before the year 9999 does; its civil
        // date and time does not.
        let whole = i64::try_from(self.0).map_err(|_| fmt::Error)?;
        let civil = jiff::civil::DateTime::constant(1970, 1, 1, 0, 0, 0, 0)
            .checked_add(jiff::SignedDuration::from_millis(whole))
            .map_err(|_| fmt::Error)?;
        write!(
            f,
            "{:04}-{:02}-{:02}T{:02}:{:02}:{:02}.{:03}Z",
            civil.year(),
            civil.month(),
            civil.day(),
            civil.hour(),
            civil.minute(),
            civil.second(),
            civil.subsec_nanosecond() / 1_000_000
        )
    }
}

impl FromStr for Timestamp {
    type Err = Error;

    /// Takes exactly what `Display` writes.
    fn from_str(text: &str) -> Result<Self, Error> {
        let wrong = || Error::malformed("timestamp", "written like 2026-11-23T11:20:44.123Z");
        let civil: jiff::civil::DateTime = text
            .strip_suffix('Z')
            .ok_or_else(wrong)?
            .parse()
            .map_err(|_| wrong())?;
        let since = civil.duration_since(jiff::civil::DateTime::constant(1970, 1, 1, 0, 0, 0, 0));
        let millis = u64::try_from(since.as_millis()).map_err(|_| wrong())?;
        let time = Self::from_millis(millis).ok_or_else(wrong)?;
        if time.to_string() == text {
            Ok(time)
        } else {
            Err(wrong())
        }
    }
}

/// The random identity of a stream of records: the spool's store id.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct StreamId(pub [u8; 16]);

/// The kernel's random identity of one boot (`/proc/sys/kernel/random/boot_id`).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct BootId(pub [u8; 16]);

impl BootId {
    /// Reads the text of `/proc/sys/kernel/random/boot_id`: a UUID with hyphens.
    ///
    /// # Errors
    /// [`Error::Malformed`] if it is not one.
    pub fn from_uuid(text: &str) -> Result<Self, Error> {
        text.trim_end().replace('-', "").parse()
    }
}

/// A signing key's identity: SHA-256 of its SubjectPublicKeyInfo in DER.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct KeyId(pub [u8; 32]);

impl KeyId {
    /// The identity of `key`.
    #[must_use]
    pub fn of(key: &VerifyingKey) -> Self {
        Self(Sha256::digest(spki_der(key)).into())
    }
}

/// An owner's short identity in an envelope: the first 8 bytes of SHA-256 of
/// its SubjectPublicKeyInfo in DER.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RecipientId(pub [u8; 8]);

/// The SubjectPublicKeyInfo of a P-256 key in DER (RFC 5480): 26 bytes that are
/// the same for every key, then the uncompressed point.
pub(crate) fn spki_der(key: &VerifyingKey) -> [u8; 91] {
    const PREFIX: [u8; 26] = [
        0x30, 0x59, 0x30, 0x13, 0x06, 0x07, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x02, 0x01, 0x06, 0x08,
        0x2a, 0x86, 0x48, 0xce, 0x3d, 0x03, 0x01, 0x07, 0x03, 0x42, 0x00,
    ];
    let mut der = [0; 91];
    der[..26].copy_from_slice(&PREFIX);
    der[26..].copy_from_slice(key.to_sec1_point(false).as_bytes());
    der
}

macro_rules! hex_id {
    ($name:ident, $what:literal) => {
        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&base16ct::lower::encode_string(&self.0))
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!(stringify!($name), "({})"), self)
            }
        }

        impl FromStr for $name {
            type Err = Error;

            fn from_str(text: &str) -> Result<Self, Error> {
                let wrong = || Error::malformed($what, "lower-case hex of its full length");
                let bytes = base16ct::lower::decode_vec(text).map_err(|_| wrong())?;
                bytes.try_into().map(Self).map_err(|_| wrong())
            }
        }

        serde_text!($name);
    };
}

macro_rules! serde_text {
    ($name:ident) => {
        impl serde::Serialize for $name {
            fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.collect_str(self)
            }
        }

        impl<'de> serde::Deserialize<'de> for $name {
            fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                let text = String::deserialize(deserializer)?;
                text.parse().map_err(serde::de::Error::custom)
            }
        }
    };
}

serde_text!(DeviceId);
serde_text!(Timestamp);
hex_id!(StreamId, "stream id");
hex_id!(BootId, "boot id");
hex_id!(KeyId, "key id");
hex_id!(RecipientId, "recipient id");
