use std::io;
use std::path::PathBuf;
use std::time::Duration;

use crate::id::SensorId;
use crate::offset::Offset;
use crate::reading::MilliCelsius;

/// What can go wrong in this crate.
///
/// A sensor that cannot be read is no error: it is a
/// [`Reading`](crate::Reading) with a [`Quality`](crate::Quality) that says so.
#[non_exhaustive]
#[derive(Debug, thiserror::Error)]
pub enum SensorError {
    /// The driver can't be told to wait this long for a conversion.
    #[error(
        "{sensor} cannot be given {time:?} for a conversion: choose whole milliseconds, 2 ms to 10 s"
    )]
    BadConversionTime {
        /// The sensor.
        sensor: SensorId,
        /// The time.
        time: Duration,
    },

    /// Text that should be a sensor's name is not.
    #[error(
        "{text:?} is no thermometer's name: expected family 10, 22, 28, 3b or 42, a hyphen and \
         12 lower-case hex digits, as in 28-0000000a0001"
    )]
    BadId {
        /// The start of the text.
        text: String,
    },

    /// Text that should be an offset is not.
    #[error(
        "{text:?} is no offset: expected SENSOR=CELSIUS with a point and at most 3 decimals, as in \
         28-0000000a0001=-0.25"
    )]
    BadOffset {
        /// The start of the text.
        text: String,
    },

    /// Text that should be the name of a quality is not.
    #[error("{text:?} is no reading quality known here: a newer program may have written it")]
    BadQuality {
        /// The start of the text.
        text: String,
    },

    /// A sensor was asked for a resolution that it does not have.
    #[error("{sensor} cannot measure with {bits} bits: choose 9 to 12 (a DS18S20 has no choice)")]
    BadResolution {
        /// The sensor.
        sensor: SensorId,
        /// The resolution asked for.
        bits: u8,
    },

    /// A file of the driver's does not hold what the driver writes.
    #[error("{} holds {text:?}, which is not of w1_therm: is this its tree?", path.display())]
    BadSetting {
        /// The file.
        path: PathBuf,
        /// The start of its text.
        text: String,
    },

    /// A sensor did not answer when it was asked how it is set.
    #[error(
        "{sensor} does not answer (error {code} of the kernel): is it plugged in? The kernel lists \
         a sensor for about 100 s after it is gone"
    )]
    NoAnswer {
        /// The sensor.
        sensor: SensorId,
        /// The kernel's error: 5, EIO, or, on a wire that nobody is on, 19,
        /// ENODEV.
        code: u64,
    },

    /// The bus directory cannot be listed.
    #[error("cannot list the 1-Wire devices in {}: {source}{}", path.display(), hint_of_bus(source))]
    NoBus {
        /// The directory.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },

    /// The sensor has but one resolution.
    #[error("{sensor} is a DS18S20, whose resolution is fixed: there is none to set or to save")]
    NoResolution {
        /// The sensor.
        sensor: SensorId,
    },

    /// A setting was written, and another one is read back.
    #[error(
        "{sensor} did not take the {what} {asked}: it has {found} now. Noise on the wire does \
         this, and so do parasite power and copies of the chip that have no choice"
    )]
    NotTaken {
        /// The sensor.
        sensor: SensorId,
        /// Which setting.
        what: &'static str,
        /// What was written.
        asked: String,
        /// What was read.
        found: String,
    },

    /// A setting could not be read or written.
    #[error("cannot {verb} {}: {source}{}", path.display(), hint(source))]
    Setting {
        /// The file.
        path: PathBuf,
        /// `read` or `write`.
        verb: &'static str,
        /// What the system said.
        source: io::Error,
    },

    /// A calibration offset is larger than that of any sound sensor.
    #[error(
        "an offset of {} degrees Celsius for {} is no calibration: at most 10 either way",
        offset.celsius, offset.sensor
    )]
    OffsetTooLarge {
        /// The offset.
        offset: Offset,
    },

    /// One sensor is given an offset twice.
    #[error("{sensor} is given more than one offset: leave one")]
    OffsetTwice {
        /// The sensor.
        sensor: SensorId,
    },

    /// A file or directory of the simulated tree could not be made.
    #[error("cannot write the simulated 1-Wire tree at {}: give it an empty directory of its own", path.display())]
    Simulation {
        /// The file or directory.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },

    /// A temperature does not fit the sensor's registers.
    #[error("{sensor} has no bits for {value} degrees Celsius: choose a value nearer to its range")]
    TooFar {
        /// The sensor.
        sensor: SensorId,
        /// The temperature.
        value: MilliCelsius,
    },

    /// The simulated bus has no such sensor.
    #[error("no sensor {sensor} on this simulated bus: name it when the bus is created")]
    UnknownSensor {
        /// The sensor.
        sensor: SensorId,
    },
}

/// What to do when the devices can't be listed.
fn hint_of_bus(source: &io::Error) -> &'static str {
    match source.kind() {
        io::ErrorKind::NotFound => {
            "; is 1-Wire enabled (on a Raspberry Pi: dtoverlay=w1-gpio in config.txt) and w1_therm \
             loaded?"
        }
        io::ErrorKind::PermissionDenied => "; by default everybody may: see to its mode",
        _ => "",
    }
}

/// What to do when a sensor's file can't be used.
fn hint(source: &io::Error) -> &'static str {
    match source.kind() {
        io::ErrorKind::PermissionDenied => {
            "; only root may, unless a udev rule says otherwise: docs/sensors.md"
        }
        io::ErrorKind::NotFound => {
            "; the sensor is gone, or the kernel is older than 5.10 and has no such file"
        }
        io::ErrorKind::InvalidInput => "; w1_therm refuses it",
        _ => "; is the sensor still there, and its wire sound?",
    }
}

/// The start of a text that came from outside, short enough for an error.
pub(crate) fn excerpt(text: &str) -> String {
    text.chars().take(40).collect()
}
