//! 1-Wire thermometers read through the Linux w1_therm driver, each reading
//! with its quality.
//!
//! [`W1Bus`] finds every thermometer on every bus of the machine, each time
//! anew, and reads them all: DS18B20, DS1822, DS18S20, DS1825, DS28EA00 and
//! the thermocouple chips MAX31850 and MAX31851. It does not take the driver's
//! word for a temperature. It checks the bytes of the chip against their CRC
//! itself, works out the value from them, compares, and says in a [`Quality`]
//! what the value is worth: a shorted wire is not 0 °C, the power-on value is
//! not 85 °C, and a sensor that gives nothing is still in the result.
//!
//! Beside readings there are
//!
//! - [`W1Bus::health`]: how each sensor has done so far, its last good value and
//!   since when it has none;
//! - [`W1Bus::list`]: what is on the buses, and of each [`Thermometer`] its
//!   resolution, power, conversion time and features, to be read and set;
//! - [`W1Bus::set_offsets`]: what a calibration has found;
//! - [`SimulatedBus`]: a tree of files like the kernel's, on which things go wrong.
//!
//! ```
//! use std::time::SystemTime;
//! use zk_sensors::{MilliCelsius, Quality, Readings, SensorId, SimulatedBus, W1Bus};
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! // a simulated bus; without one, W1Bus::default() reads /sys
//! let dir = tempfile::tempdir()?;
//! let cellar: SensorId = "28-0000000a0001".parse()?;
//! let boiler: SensorId = "28-0000000a0002".parse()?;
//! let mut wires = SimulatedBus::create(dir.path(), &[cellar, boiler])?;
//! wires.set(cellar, MilliCelsius(11_062))?;
//! wires.power_on_value(boiler)?;
//!
//! let mut bus = W1Bus::new(wires.root());
//! for reading in bus.read_all(SystemTime::now)? {
//!     match (reading.value, reading.quality) {
//!         (Some(value), Quality::Ok) => println!("{} {value} °C", reading.sensor),
//!         (_, quality) => println!("{} {quality}", reading.sensor),
//!     }
//! }
//!
//! // one that is gone is reported as well
//! wires.unplug(cellar)?;
//! let readings = bus.read_all(SystemTime::now)?;
//! assert_eq!(readings[0].quality, Quality::Unplugged);
//!
//! // the body of a record, and back
//! let body = serde_json::to_vec(&Readings { readings })?;
//! let readings: Readings = serde_json::from_slice(&body)?;
//! assert_eq!(readings.readings.len(), 2);
//! # Ok(())
//! # }
//! ```
//!
//! # What it cannot see
//!
//! - A sensor that missed the command to convert answers with its **old value**
//!   and a good CRC. No file shows it, and equal bytes twice in a row are what a
//!   quiet room gives too, so nothing is concluded from them. Nor from a quick
//!   answer: some chips are quicker than their data sheet.
//! - Some copies of the DS18B20 show an old temperature or 25 °C at power-on
//!   instead of 85 °C. That is `ok` here.
//! - A sensor slower than its data sheet gives such old values all the time.
//!   [Set its conversion time](Thermometer::set_conversion_time), or
//!   [have it polled](Features::poll): then the driver waits for it, and this
//!   crate leaves bulk conversion alone where it would not.
//! - An `ok` is about the way from the chip to here. Whether the chip is
//!   accurate, or is where it should be, is another matter.
//!
//! [`Quality::StaleSuspect`] is therefore rare. It stands for the one case that
//! leaves a trace: another program triggered a bulk conversion, did not read all
//! of it, and when the sensor was read again for a fresh value it failed.
//!
//! # What it does not do
//!
//! It changes no setting of a sensor by itself, keeps no history, repeats no
//! failed reading (the driver has tried five times; one that failed because
//! another program was converting is the exception), and does not sleep between
//! sweeps. [`W1Bus::read_all`] blocks as long as the wires need; give it a
//! thread. If that thread receives signals, readings under way become empty.
//!
//! What others call an unknown quality is told apart: [`Quality::Crc`],
//! [`Quality::Fault`], [`Quality::Garbled`], [`Quality::Unreadable`].
#![forbid(unsafe_code)]

mod bus;
mod error;
mod health;
mod id;
mod master;
mod offset;
mod readers;
mod reading;
mod scratchpad;
mod simulated;
mod text;
mod thermometer;

pub use bus::{Listing, W1Bus};
pub use error::SensorError;
pub use health::SensorHealth;
pub use id::SensorId;
pub use offset::Offset;
pub use reading::{MilliCelsius, Quality, Reading, Readings};
pub use simulated::{Curve, HeldReading, SimulatedBus};
pub use thermometer::{ConversionTime, Features, Power, Thermometer};
