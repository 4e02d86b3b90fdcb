use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::error::{SensorError, excerpt};
use crate::id::SensorId;
use crate::reading::MilliCelsius;
use crate::text::Text;

/// What a calibration has found: so much is to be added to what a sensor
/// measures, for [`W1Bus::set_offsets`](crate::W1Bus::set_offsets).
///
/// As text, and in serde, it is the sensor, `=`, and degrees Celsius: an optional
/// sign, digits, and at most three decimals after a point. Nothing else is read,
/// and nothing beyond ten degrees either way.
///
/// ```
/// use zk_sensors::{MilliCelsius, Offset};
///
/// let offset: Offset = "28-0000000a0001=-0.25".parse()?;
/// assert_eq!(offset.celsius, MilliCelsius(-250));
/// assert_eq!(offset.to_string(), "28-0000000a0001=-0.250");
/// assert!("28-0000000a0001=-0,25".parse::<Offset>().is_err());
/// assert!("28-0000000a0001=25".parse::<Offset>().is_err());
/// # Ok::<(), zk_sensors::SensorError>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Offset {
    /// The sensor.
    pub sensor: SensorId,
    /// What is added: how much it was found to be wrong by, with its sign turned.
    pub celsius: MilliCelsius,
}

impl Offset {
    /// # Errors
    /// [`SensorError::OffsetTooLarge`].
    pub(crate) fn check(self) -> Result<Self, SensorError> {
        if self.celsius.0.unsigned_abs() > LARGEST {
            return Err(SensorError::OffsetTooLarge { offset: self });
        }
        Ok(self)
    }
}

impl fmt::Display for Offset {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}={}", self.sensor, self.celsius)
    }
}

impl FromStr for Offset {
    type Err = SensorError;

    fn from_str(text: &str) -> Result<Self, SensorError> {
        let bad = || SensorError::BadOffset {
            text: excerpt(text),
        };
        let (sensor, celsius) = text.split_once('=').ok_or_else(bad)?;
        Self {
            sensor: sensor.parse()?,
            celsius: degrees(celsius).ok_or_else(bad)?,
        }
        .check()
    }
}

impl Serialize for Offset {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Offset {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_str(Text::expecting("an offset such as 28-0000000a0001=-0.25"))
    }
}

/// Degrees with at most three decimals.
fn degrees(text: &str) -> Option<MilliCelsius> {
    let (sign, digits) = match text.as_bytes().first()? {
        b'-' => (-1, &text[1..]),
        b'+' => (1, &text[1..]),
        _ => (1, text),
    };
    let (whole, decimals) = match digits.split_once('.') {
        Some((_, "")) => return None,
        Some(parts) => parts,
        None => (digits, ""),
    };
    let is_number = |text: &str| text.bytes().all(|byte| byte.is_ascii_digit());
    // as many as are surely a number of this type; whether that is too large is
    // another matter
    let fits = (1..=6).contains(&whole.len()) && decimals.len() <= 3;
    let is_padded = whole.len() > 1 && whole.starts_with('0');
    if !fits || is_padded || !is_number(whole) || !is_number(decimals) {
        return None;
    }
    let thousandths: i32 = format!("{whole}{decimals:0<3}").parse().ok()?;
    Some(MilliCelsius(sign * thousandths))
}

/// In thousandths of a degree. A sound sensor is right to half a degree, so what is
/// beyond is a slip.
const LARGEST: u32 = 10_000;
