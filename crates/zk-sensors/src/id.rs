use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::error::{SensorError, excerpt};
use crate::text::Text;

/// A thermometer's name as the kernel writes it: `28-0000000a0001`.
///
/// Two lower-case hex digits of family code, a hyphen, and the 48-bit serial
/// number as 12 lower-case hex digits: 15 bytes. Only families with a
/// thermometer are names of this type: `10` (DS18S20), `22` (DS1822), `28`
/// (DS18B20), `3b` (DS1825, MAX31850) and `42` (DS28EA00).
///
/// The order is by family, then by serial number. In serde it is a string.
///
/// ```
/// use zk_sensors::SensorId;
///
/// let id: SensorId = "28-0000000a0001".parse()?;
/// assert_eq!(id.to_string(), "28-0000000a0001");
/// assert!("28-0000000A0001".parse::<SensorId>().is_err());
/// assert!("01-0000000a0001".parse::<SensorId>().is_err());
/// # Ok::<(), zk_sensors::SensorError>(())
/// ```
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SensorId {
    family: Family,
    serial: u64,
}

impl SensorId {
    pub(crate) fn family(self) -> Family {
        self.family
    }

    /// The first seven bytes of the chip's ROM: family, then the serial number
    /// with its lowest byte first.
    pub(crate) fn rom(self) -> [u8; 7] {
        let [_, _, s5, s4, s3, s2, s1, s0] = self.serial.to_be_bytes();
        [self.family as u8, s0, s1, s2, s3, s4, s5]
    }
}

impl fmt::Display for SensorId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // through pad, so that a width given by a table works
        f.pad(&format!("{:02x}-{:012x}", self.family as u8, self.serial))
    }
}

impl fmt::Debug for SensorId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SensorId({self})")
    }
}

impl FromStr for SensorId {
    type Err = SensorError;

    fn from_str(text: &str) -> Result<Self, SensorError> {
        let parse = || {
            let (family, serial) = text.split_once('-')?;
            let family = match family {
                "10" => Family::Ds18s20,
                "22" => Family::Ds1822,
                "28" => Family::Ds18b20,
                "3b" => Family::Ds1825,
                "42" => Family::Ds28ea00,
                _ => return None,
            };
            let hex = |b: u8| matches!(b, b'0'..=b'9' | b'a'..=b'f');
            if serial.len() != 12 || !serial.bytes().all(hex) {
                return None;
            }
            let serial = u64::from_str_radix(serial, 16).ok()?;
            Some(Self { family, serial })
        };
        parse().ok_or_else(|| SensorError::BadId {
            text: excerpt(text),
        })
    }
}

impl TryFrom<&str> for SensorId {
    type Error = SensorError;

    fn try_from(text: &str) -> Result<Self, SensorError> {
        text.parse()
    }
}

impl Serialize for SensorId {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for SensorId {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_str(Text::expecting("a sensor's name such as 28-0000000a0001"))
    }
}

/// The families of 1-Wire chips that w1_therm reads, by family code.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Family {
    Ds18s20 = 0x10,
    Ds1822 = 0x22,
    Ds18b20 = 0x28,
    /// DS1825 and MAX31826 (thermometers), MAX31850 and MAX31851 (thermocouples).
    Ds1825 = 0x3b,
    Ds28ea00 = 0x42,
}

impl Family {
    /// Whether the driver lets a bulk conversion serve this family.
    pub(crate) fn has_bulk(self) -> bool {
        self != Self::Ds28ea00
    }
}
