use std::fmt;
use std::str::FromStr;

use jiff::Timestamp;
use serde::de::{Error as _, Unexpected, Visitor};
use serde::ser::{Error as _, SerializeStruct};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::error::{SensorError, excerpt};
use crate::id::SensorId;
use crate::text::{Text, from_map};

/// What one sensor said at one time, and how far it can be believed.
///
/// In serde it is a map of exactly four members, in this order when written
/// and in any order when read:
///
/// | member | content |
/// | --- | --- |
/// | `sensor` | [`SensorId`] as a string |
/// | `at` | UTC with milliseconds, 24 bytes: `2026-11-23T11:20:44.123Z`; a time before 1970 is refused both ways |
/// | `celsius` | [`MilliCelsius`] as a number of degrees, or null |
/// | `quality` | [`Quality`] as a string |
///
/// Reading is strict: a missing, repeated or unknown member, an array in place
/// of the map, a time in another form, a number that is no whole thousandth,
/// and a `celsius` that does not go with its `quality` are refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Reading {
    /// Which sensor.
    pub sensor: SensorId,
    /// When the conversion was over that gave the value: when the driver said
    /// that a bulk conversion is, or else when the sensor's answer was in hand,
    /// which comes with the end of its conversion. Without a value, when that
    /// was known. The chip measures all through its conversion, which begins up
    /// to 0.75 s before. Serde carries milliseconds and cuts off what is finer;
    /// [`W1Bus`](crate::W1Bus) gives whole milliseconds.
    pub at: Timestamp,
    /// The temperature, present exactly if [`Quality::has_value`] says so: what
    /// the chip measured, with its [offset](crate::W1Bus::set_offsets) added if it
    /// has one.
    pub value: Option<MilliCelsius>,
    /// How far the value can be believed, or why there is none.
    pub quality: Quality,
}

impl Reading {
    pub(crate) fn without_value(sensor: SensorId, quality: Quality, at: Timestamp) -> Self {
        Self {
            sensor,
            at,
            value: None,
            quality,
        }
    }
}

impl Serialize for Reading {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        if self.quality.has_value() != self.value.is_some() {
            return Err(S::Error::custom(MISMATCH));
        }
        if self.at < Timestamp::UNIX_EPOCH {
            return Err(S::Error::custom("a reading's time is before 1970"));
        }
        let mut members = serializer.serialize_struct("Reading", 4)?;
        members.serialize_field("sensor", &self.sensor)?;
        members.serialize_field("at", &format_args!("{:.3}", self.at))?;
        members.serialize_field("celsius", &self.value)?;
        members.serialize_field("quality", &self.quality)?;
        members.end()
    }
}

impl<'de> Deserialize<'de> for Reading {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(deny_unknown_fields)]
        struct Members {
            sensor: SensorId,
            at: Millisecond,
            // named, so that a missing member is an error and not a null
            #[serde(deserialize_with = "Option::deserialize")]
            celsius: Option<MilliCelsius>,
            quality: Quality,
        }

        let members: Members = from_map(deserializer)?;
        if members.quality.has_value() != members.celsius.is_some() {
            return Err(D::Error::custom(MISMATCH));
        }
        Ok(Self {
            sensor: members.sensor,
            at: members.at.0,
            value: members.celsius,
            quality: members.quality,
        })
    }
}

/// The body of a data record: readings in the order they were taken.
///
/// With serde_json it is, to the byte,
///
/// ```
/// # use zk_sensors::{MilliCelsius, Quality, Reading, Readings};
/// # let readings = Readings { readings: vec![Reading {
/// #     sensor: "28-0000000a0001".parse()?,
/// #     at: "2026-11-23T11:20:44.123Z".parse()?,
/// #     value: Some(MilliCelsius(21_437)),
/// #     quality: Quality::Ok,
/// # }]};
/// let body = serde_json::to_vec(&readings)?;
/// assert_eq!(
///     body,
///     br#"{"readings":[{"sensor":"28-0000000a0001","at":"2026-11-23T11:20:44.123Z","celsius":21.437,"quality":"ok"}]}"#,
/// );
/// assert_eq!(serde_json::from_slice::<Readings>(&body)?, readings);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
///
/// and reading it back is as strict as [`Reading`]. The list may be empty, and
/// one sensor may be in it many times.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Readings {
    /// The readings.
    pub readings: Vec<Reading>,
}

impl<'de> Deserialize<'de> for Readings {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(deny_unknown_fields)]
        struct Members {
            readings: Vec<Reading>,
        }

        from_map(deserializer).map(|Members { readings }| Self { readings })
    }
}

/// A temperature in thousandths of a degree Celsius.
///
/// As text it always has three decimals: `21.437`, `-0.062`, `85.000`.
///
/// In serde it is a number of degrees, written with as many decimals as it
/// needs and at least one: `21.437`, `-0.062`, `85.0`. Every value of the type
/// is written exactly and read back unchanged: at most ten digits, and a double
/// keeps fifteen. A number that is no whole thousandth is refused, not rounded.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct MilliCelsius(
    /// Thousandths of a degree.
    pub i32,
);

impl fmt::Display for MilliCelsius {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (degrees, thousandths) = (self.0.unsigned_abs() / 1000, self.0.unsigned_abs() % 1000);
        // through pad_integral, so that width, fill and sign work as for numbers
        f.pad_integral(self.0 >= 0, "", &format!("{degrees}.{thousandths:03}"))
    }
}

impl Serialize for MilliCelsius {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_f64(f64::from(self.0) / 1000.0)
    }
}

impl<'de> Deserialize<'de> for MilliCelsius {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Degrees;

        impl Visitor<'_> for Degrees {
            type Value = MilliCelsius;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("degrees Celsius in whole thousandths")
            }

            fn visit_f64<E: serde::de::Error>(self, degrees: f64) -> Result<MilliCelsius, E> {
                // `as` saturates, and the division tells whether anything was lost
                let thousandths = (degrees * 1000.0).round() as i32;
                if f64::from(thousandths) / 1000.0 == degrees {
                    Ok(MilliCelsius(thousandths))
                } else {
                    Err(E::invalid_value(Unexpected::Float(degrees), &self))
                }
            }

            fn visit_i64<E: serde::de::Error>(self, degrees: i64) -> Result<MilliCelsius, E> {
                degrees
                    .checked_mul(1000)
                    .and_then(|thousandths| i32::try_from(thousandths).ok())
                    .map(MilliCelsius)
                    .ok_or_else(|| E::invalid_value(Unexpected::Signed(degrees), &self))
            }

            fn visit_u64<E: serde::de::Error>(self, degrees: u64) -> Result<MilliCelsius, E> {
                match i64::try_from(degrees) {
                    Ok(degrees) => self.visit_i64(degrees),
                    Err(_) => Err(E::invalid_value(Unexpected::Unsigned(degrees), &self)),
                }
            }
        }

        deserializer.deserialize_f64(Degrees)
    }
}

/// How far a reading can be believed, or why it has no value.
///
/// The names, in text and in serde, are stable. A value is there whenever a
/// chip spoke and may have measured it; only [`Quality::Ok`] says that nothing
/// speaks against it.
#[non_exhaustive]
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Quality {
    /// `crc`: the bytes do not match their checksum. Kernels since 5.x hide
    /// this as [`Quality::Empty`]; older ones show it. No value.
    Crc,
    /// `empty`: the driver gave no bytes, which is how it says that a
    /// conversion failed: bad checksum five times, nobody answered, a signal,
    /// or another program's bulk conversion under way. It is also what a pulled
    /// sensor gives until the kernel drops it, about 100 s. No value.
    Empty,
    /// `false-zero`: every byte is zero, checksum included. A shorted wire
    /// reads like this, and so do some copies of the chip now and then; the
    /// driver calls it 0 °C. No value.
    FalseZero,
    /// `fault`: a MAX31850 reports its thermocouple open or shorted. No value.
    Fault,
    /// `garbled`: the driver's file is not what the driver writes, or
    /// contradicts itself: cut short, two lines that differ, a `t=` that is
    /// not what the bytes say. No value.
    Garbled,
    /// `ok`: intact, and nothing about it is suspicious.
    Ok,
    /// `out-of-range`: intact, but beyond what the chip can measure: −55 to
    /// 125 °C, or −270 to 1768 °C for a MAX31850.
    OutOfRange,
    /// `power-on`: the value that a chip shows before its first conversion,
    /// 85.000 °C (or 127.937 °C when it is short of power), with byte 6 at
    /// `0c`. A DS18B20's true 85 °C has another byte 6. On a DS18S20 and a
    /// DS28EA00, and on copies that never change byte 6, a true 85 °C looks the
    /// same, so the value is kept.
    PowerOn,
    /// `stale-suspect`: intact, but it may come from a bulk conversion that
    /// another program triggered at an unknown time and never read, and a
    /// second reading to replace it failed.
    StaleSuspect,
    /// `unplugged`: the kernel no longer has the sensor. No value.
    Unplugged,
    /// `unreadable`: the sensor is listed but its file can't be read: no
    /// permission, w1_therm is not loaded, or the bus's driver does not come back
    /// from a call. No value.
    Unreadable,
}

impl Quality {
    pub(crate) const COUNT: usize = 11;

    /// All of them, in the order of their names.
    pub const ALL: [Self; Self::COUNT] = [
        Self::Crc,
        Self::Empty,
        Self::FalseZero,
        Self::Fault,
        Self::Garbled,
        Self::Ok,
        Self::OutOfRange,
        Self::PowerOn,
        Self::StaleSuspect,
        Self::Unplugged,
        Self::Unreadable,
    ];

    /// The stable name.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Crc => "crc",
            Self::Empty => "empty",
            Self::FalseZero => "false-zero",
            Self::Fault => "fault",
            Self::Garbled => "garbled",
            Self::Ok => "ok",
            Self::OutOfRange => "out-of-range",
            Self::PowerOn => "power-on",
            Self::StaleSuspect => "stale-suspect",
            Self::Unplugged => "unplugged",
            Self::Unreadable => "unreadable",
        }
    }

    /// Whether a reading of this quality has a value. It is all or nothing:
    /// `ok`, `out-of-range`, `power-on` and `stale-suspect` always have one,
    /// the others never.
    pub const fn has_value(self) -> bool {
        match self {
            Self::Ok | Self::OutOfRange | Self::PowerOn | Self::StaleSuspect => true,
            Self::Crc
            | Self::Empty
            | Self::FalseZero
            | Self::Fault
            | Self::Garbled
            | Self::Unplugged
            | Self::Unreadable => false,
        }
    }
}

impl fmt::Display for Quality {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

impl FromStr for Quality {
    type Err = SensorError;

    fn from_str(text: &str) -> Result<Self, SensorError> {
        Self::ALL
            .into_iter()
            .find(|quality| quality.as_str() == text)
            .ok_or_else(|| SensorError::BadQuality {
                text: excerpt(text),
            })
    }
}

impl Serialize for Quality {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.as_str())
    }
}

impl<'de> Deserialize<'de> for Quality {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_str(Text::expecting("a reading quality such as ok"))
    }
}

/// A time in exactly the form that is written.
struct Millisecond(Timestamp);

impl FromStr for Millisecond {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        text.parse()
            .ok()
            .filter(|at| *at >= Timestamp::UNIX_EPOCH && format!("{at:.3}") == text)
            .map(Self)
            .ok_or("a reading's time is not of the form 2026-11-23T11:20:44.123Z")
    }
}

impl<'de> Deserialize<'de> for Millisecond {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_str(Text::expecting("a time such as 2026-11-23T11:20:44.123Z"))
    }
}

const MISMATCH: &str = "a reading has a value exactly if its quality says so";
