use std::io;
use std::path::PathBuf;

use crate::id::SensorId;
use crate::reading::MilliCelsius;

/// What can go wrong in this crate.
///
/// A sensor that cannot be read is no error: it is a
/// [`Reading`](crate::Reading) with a [`Quality`](crate::Quality) that says so.
#[non_exhaustive]
#[derive(Debug, thiserror::Error)]
pub enum SensorError {
    /// Text that should be a sensor's name is not.
    #[error(
        "{text:?} is no thermometer's name: expected family 10, 22, 28, 3b or 42, a hyphen and \
         12 lower-case hex digits, as in 28-0000000a0001"
    )]
    BadId {
        /// The start of the text.
        text: String,
    },

    /// Text that should be the name of a quality is not.
    #[error("{text:?} is no reading quality known here: a newer program may have written it")]
    BadQuality {
        /// The start of the text.
        text: String,
    },

    /// A simulated sensor was asked for a resolution that it does not have.
    #[error("{sensor} cannot measure with {bits} bits: choose 9 to 12 (a DS18S20 has no choice)")]
    BadResolution {
        /// The sensor.
        sensor: SensorId,
        /// The resolution asked for.
        bits: u8,
    },

    /// The bus directory cannot be listed.
    #[error(
        "cannot list the 1-Wire devices in {}: is 1-Wire enabled \
         (on a Raspberry Pi: dtoverlay=w1-gpio in config.txt) and w1_therm loaded?",
        path.display()
    )]
    NoBus {
        /// The directory.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
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

/// The start of a text that came from outside, short enough for an error.
pub(crate) fn excerpt(text: &str) -> String {
    text.chars().take(40).collect()
}
