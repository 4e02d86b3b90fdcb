use std::fs::{self, File, OpenOptions};
use std::io::{self, ErrorKind, Read, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

use crate::error::{SensorError, excerpt};
use crate::id::{Family, SensorId};
use crate::reading::Quality;
use crate::scratchpad::Sample;

/// A thermometer that the kernel lists, and how it is set.
///
/// [`W1Bus::list`](crate::W1Bus::list) gives them. Nothing is kept open: a
/// sensor may be pulled meanwhile, and then its settings answer with an error.
///
/// ```
/// use std::time::Duration;
/// use zk_sensors::{Power, SensorError, SensorId, SimulatedBus, W1Bus};
///
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let dir = tempfile::tempdir()?;
/// let cellar: SensorId = "28-0000000a0001".parse()?;
/// let wires = SimulatedBus::create(dir.path(), &[cellar])?;
///
/// for thermometer in W1Bus::new(wires.root()).list()?.thermometers {
///     assert_eq!(thermometer.bus(), Some("w1_bus_master1"));
///     assert_eq!(thermometer.power()?, Power::External);
///     assert_eq!(thermometer.conversion_time()?, Duration::from_millis(750));
///     assert_eq!(thermometer.resolution()?, Some(12));
///     thermometer.set_resolution(10)?;
///     assert_eq!(thermometer.resolution()?, Some(10));
///     let refused = thermometer.set_resolution(13);
///     assert!(matches!(refused, Err(SensorError::BadResolution { bits: 13, .. })));
/// }
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug)]
pub struct Thermometer {
    id: SensorId,
    bus: Option<String>,
    dir: PathBuf,
}

/// Where a thermometer gets its current from, as it says itself.
///
/// A sensor that is not there says `External`: a wire that nobody pulls down
/// reads as ones.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Power {
    /// From a supply of its own.
    External,
    /// From the data line. Each reading takes twice as long, the driver cannot
    /// poll, and a bus that is too long or too full shows power-on values.
    Parasite,
}

impl Power {
    /// `external` or `parasite`.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::External => "external",
            Self::Parasite => "parasite",
        }
    }
}

/// What the driver does beyond reading, as a sum in `features`.
///
/// It is the driver's, not the chip's: it is lost when the sensor or the
/// machine goes, and nothing saves it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Features {
    /// 1: makes an empty reading of the power-on value. There is no need for it
    /// here: [`Quality::PowerOn`] says as much, and keeps the value.
    pub check_result: bool,
    /// 2: polls for the end of a conversion instead of waiting for as long as
    /// the data sheet says. For chips that are slower than that. Not possible
    /// with parasite power; and a bus with such a sensor has no bulk
    /// conversion, which would not poll.
    pub poll: bool,
}

/// How long the driver is to wait for a conversion, for
/// [`Thermometer::set_conversion_time`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ConversionTime {
    /// As the data sheet says: 95, 190, 375 or 750 ms, by resolution.
    DataSheet,
    /// This long, in whole milliseconds from 2 ms to 10 s. Where that is too
    /// short, readings are old or power-on values, and not all of them show it.
    Fixed(Duration),
    /// As long as a conversion takes now, and a fifth more. Measuring takes one
    /// conversion, and is not possible with parasite power.
    Measured,
}

impl Thermometer {
    pub(crate) fn new(id: SensorId, bus: Option<String>, dir: PathBuf) -> Self {
        Self { id, bus, dir }
    }

    /// Its name.
    pub fn id(&self) -> SensorId {
        self.id
    }

    /// The bus that it is on, `w1_bus_master1`, if the tree tells.
    pub fn bus(&self) -> Option<&str> {
        self.bus.as_deref()
    }

    /// The resolution in bits, read from the chip: 9 to 12, and up to 14 with
    /// some copies. `None` for a DS18S20, which has no choice.
    ///
    /// # Errors
    ///
    /// [`SensorError::NoAnswer`] from a sensor that was pulled and is still
    /// listed, as it is for about 100 s, and from one that was added by hand and
    /// does not exist. [`SensorError::Setting`], [`SensorError::BadSetting`].
    pub fn resolution(&self) -> Result<Option<u8>, SensorError> {
        if self.id.family() == Family::Ds18s20 {
            return Ok(None);
        }
        let bits = self.setting("resolution")?;
        match u8::try_from(bits) {
            Ok(bits @ 9..=14) => Ok(Some(bits)),
            _ => Err(self.bad_setting("resolution", &bits.to_string())),
        }
    }

    /// Has the chip measure with 9 to 12 bits: in steps of 1/2, 1/4, 1/8 or
    /// 1/16 °C, for 95, 190, 375 or 750 ms.
    ///
    /// It is read back: a driver takes no notice of some words, and some copies
    /// of the chip none of the setting. It lasts until the chip loses power,
    /// unless it is [saved](Self::save). The driver sets the conversion time
    /// back to the data sheet's.
    ///
    /// # Errors
    ///
    /// [`SensorError::BadResolution`] for other numbers: nothing is written,
    /// since the driver refuses 13 and 14 and sets 9 and 10.
    /// [`SensorError::NoResolution`] of a DS18S20. [`SensorError::NotTaken`] if
    /// another resolution is read back. [`SensorError::Setting`] if this process
    /// may not write the file, by default only root may, or the chip does not
    /// answer; [`SensorError::NoAnswer`], [`SensorError::BadSetting`].
    pub fn set_resolution(&self, bits: u8) -> Result<(), SensorError> {
        if self.id.family() == Family::Ds18s20 {
            return Err(SensorError::NoResolution { sensor: self.id });
        }
        if !(9..=12).contains(&bits) {
            return Err(SensorError::BadResolution {
                sensor: self.id,
                bits,
            });
        }
        let written = self.write("resolution", &format!("{bits}\n"));
        if matches!(&written, Err(SensorError::Setting { source, .. })
            if source.raw_os_error() != Some(EIO))
        {
            return written;
        }
        // EIO: the chip said something else when the driver read it back
        match (self.resolution(), written) {
            (Ok(Some(found)), _) if found == bits => Ok(()),
            (Ok(Some(found)), _) => {
                Err(self.not_taken("resolution", bits.to_string(), found.to_string()))
            }
            (Err(error), Ok(())) => Err(error),
            (_, written) => written,
        }
    }

    /// Keeps the resolution in the chip's EEPROM, so that it has it after
    /// power-on as well. Returns that resolution.
    ///
    /// The driver says nothing of how it went. So the chip is made to load what
    /// its EEPROM has, and the resolution is read back. The alarms are saved and
    /// loaded with it.
    ///
    /// **The EEPROM bears about 50,000 writes**: this is for a person's hand and
    /// not for a program's start. Nothing else in this crate does it.
    ///
    /// # Errors
    ///
    /// [`SensorError::NoResolution`] of a DS18S20. [`SensorError::NotTaken`] if
    /// the EEPROM has another resolution, which the chip has now as well.
    /// [`SensorError::Setting`], [`SensorError::NoAnswer`],
    /// [`SensorError::BadSetting`].
    pub fn save(&self) -> Result<u8, SensorError> {
        let fixed = SensorError::NoResolution { sensor: self.id };
        let bits = self.resolution()?.ok_or(fixed)?;
        // with their newlines, or the driver takes no notice
        self.write("eeprom_cmd", "save\n")?;
        thread::sleep(EEPROM_WRITE);
        self.write("eeprom_cmd", "restore\n")?;
        match self.resolution()? {
            Some(found) if found != bits => Err(self.not_taken(
                "resolution in the EEPROM",
                bits.to_string(),
                found.to_string(),
            )),
            _ => Ok(bits),
        }
    }

    /// Where it gets its current from, asked of the chip.
    ///
    /// # Errors
    ///
    /// [`SensorError::NoAnswer`], [`SensorError::Setting`],
    /// [`SensorError::BadSetting`].
    pub fn power(&self) -> Result<Power, SensorError> {
        match self.setting("ext_power")? {
            0 => Ok(Power::Parasite),
            1 => Ok(Power::External),
            other => Err(self.bad_setting("ext_power", &other.to_string())),
        }
    }

    /// How long the driver waits for a conversion. It does not ask the chip, so
    /// a sensor that is gone has one as well.
    ///
    /// # Errors
    ///
    /// [`SensorError::Setting`], [`SensorError::BadSetting`].
    pub fn conversion_time(&self) -> Result<Duration, SensorError> {
        let time = self.setting("conv_time")?;
        match u32::try_from(time) {
            Ok(time) => Ok(Duration::from_millis(time.into())),
            Err(_) => Err(self.bad_setting("conv_time", &time.to_string())),
        }
    }

    /// Has the driver wait longer, or not as long, for a conversion. Returns how
    /// long that is now.
    ///
    /// # Errors
    ///
    /// [`SensorError::BadConversionTime`] beyond 2 ms to 10 s.
    /// [`SensorError::NotTaken`] if the driver has taken no notice.
    /// [`SensorError::Setting`] if this process may not write the file, or if it
    /// could not be measured; [`SensorError::BadSetting`].
    pub fn set_conversion_time(&self, time: ConversionTime) -> Result<Duration, SensorError> {
        let word = match time {
            ConversionTime::DataSheet => 0,
            ConversionTime::Measured => 1,
            ConversionTime::Fixed(time) => u32::try_from(time.as_millis())
                .ok()
                .filter(|ms| CONVERSION_MS.contains(ms))
                .filter(|ms| Duration::from_millis((*ms).into()) == time)
                .ok_or(SensorError::BadConversionTime {
                    sensor: self.id,
                    time,
                })?,
        };
        self.write("conv_time", &format!("{word}\n"))?;
        let found = self.conversion_time()?;
        let taken = match time {
            ConversionTime::Fixed(_) => found.as_millis() == u128::from(word),
            ConversionTime::DataSheet | ConversionTime::Measured => {
                found.as_millis() >= u128::from(*CONVERSION_MS.start())
            }
        };
        if taken {
            Ok(found)
        } else {
            let asked = match time {
                ConversionTime::DataSheet => "the data sheet's".to_owned(),
                ConversionTime::Fixed(time) => format!("{time:?}"),
                ConversionTime::Measured => "one that is measured".to_owned(),
            };
            Err(self.not_taken("conversion time", asked, format!("{found:?}")))
        }
    }

    /// What the driver does beyond reading.
    ///
    /// # Errors
    ///
    /// [`SensorError::Setting`], [`SensorError::BadSetting`].
    pub fn features(&self) -> Result<Features, SensorError> {
        match self.setting("features")? {
            sum @ 0..=3 => Ok(Features {
                check_result: sum & 1 != 0,
                poll: sum & POLL != 0,
            }),
            other => Err(self.bad_setting("features", &other.to_string())),
        }
    }

    /// Has the driver do more, or less, beyond reading.
    ///
    /// # Errors
    ///
    /// [`SensorError::NotTaken`] if it does not: with parasite power the driver
    /// leaves polling out and says nothing. [`SensorError::Setting`],
    /// [`SensorError::BadSetting`].
    pub fn set_features(&self, features: Features) -> Result<(), SensorError> {
        self.write("features", &format!("{}\n", features.sum()))?;
        let found = self.features()?;
        if found == features {
            return Ok(());
        }
        let sum = |features: Features| features.sum().to_string();
        Err(self.not_taken("sum of features", sum(features), sum(found)))
    }

    /// What its `w1_slave` amounts to. Without a bulk conversion before it this
    /// is a conversion.
    pub(crate) fn read(&self) -> Sample {
        let file = self.dir.join("w1_slave");
        let mut there = File::open(&self.dir);
        let mut text = read_start(&file);
        if is_missing(&text) && !is_still(&there, &self.dir) {
            // unplugged, or plugged in again, in this very moment: look once more
            there = File::open(&self.dir);
            text = read_start(&file);
        }
        match text {
            Ok(text) => Sample::from_w1_slave(self.id.family(), &text),
            Err(error) => {
                let quality = quality_of(&error, is_still(&there, &self.dir));
                tracing::debug!(sensor = %self.id, %error, %quality, "w1_slave can't be read");
                Sample::without_value(quality)
            }
        }
    }

    /// Whether the driver lets a bulk conversion serve it.
    pub(crate) fn has_bulk(&self) -> bool {
        self.id.family().has_bulk()
    }

    /// Whether the driver polls it for the end of a conversion.
    pub(crate) fn is_polled(&self) -> bool {
        number(&self.dir.join("features")).unwrap_or(0) & POLL != 0
    }

    /// How long the driver waits for it. The first drivers with bulk conversion do
    /// not tell; then it is as long as the data sheet has a conversion take.
    pub(crate) fn wait(&self) -> Duration {
        let time = number(&self.dir.join("conv_time")).and_then(|time| u64::try_from(time).ok());
        time.map_or(DATA_SHEET, Duration::from_millis)
    }

    /// A file with one whole number.
    fn setting(&self, name: &str) -> Result<i64, SensorError> {
        let path = self.dir.join(name);
        let text = read_start(&path).map_err(|source| SensorError::Setting {
            path,
            verb: "read",
            source,
        })?;
        let number = std::str::from_utf8(&text)
            .ok()
            .map(|text| text.strip_suffix('\n').unwrap_or(text))
            .and_then(|text| {
                let number: i64 = text.parse().ok()?;
                (number.to_string() == text).then_some(number)
            });
        match number {
            // the kernel's error numbers go up to 4095
            Some(code @ -4095..=-1) if name != "conv_time" => Err(SensorError::NoAnswer {
                sensor: self.id,
                code: code.unsigned_abs(),
            }),
            Some(number) => Ok(number),
            None => Err(self.bad_setting(name, &String::from_utf8_lossy(&text))),
        }
    }

    /// Writes a word. It is so short that the system takes it at once: to a
    /// driver each write is a word of its own.
    fn write(&self, name: &str, word: &str) -> Result<(), SensorError> {
        let path = self.dir.join(name);
        OpenOptions::new()
            .write(true)
            .truncate(true)
            .open(&path)
            .and_then(|mut file| file.write_all(word.as_bytes()))
            .map_err(|source| SensorError::Setting {
                path,
                verb: "write",
                source,
            })
    }

    fn bad_setting(&self, name: &str, text: &str) -> SensorError {
        SensorError::BadSetting {
            path: self.dir.join(name),
            text: excerpt(text),
        }
    }

    fn not_taken(&self, what: &'static str, asked: String, found: String) -> SensorError {
        SensorError::NotTaken {
            sensor: self.id,
            what,
            asked,
            found,
        }
    }
}

impl Features {
    fn sum(self) -> i64 {
        i64::from(self.check_result) + if self.poll { POLL } else { 0 }
    }
}

/// The whole number that a file holds, if it does.
pub(crate) fn number(path: &Path) -> Option<i64> {
    let text = read_start(path).ok()?;
    std::str::from_utf8(&text).ok()?.trim_end().parse().ok()
}

/// The first 256 bytes of a file; none of the driver's is longer than 80.
fn read_start(path: &Path) -> io::Result<Vec<u8>> {
    let mut text = Vec::with_capacity(256);
    File::open(path)?.take(256).read_to_end(&mut text)?;
    Ok(text)
}

/// Whether `dir` is there, and the directory that was opened. As long as that is
/// open, no other one has its inode number.
fn is_still(opened: &io::Result<File>, dir: &Path) -> bool {
    let (Ok(opened), Ok(now)) = (opened, fs::metadata(dir)) else {
        return false;
    };
    let same = |opened: fs::Metadata| (opened.dev(), opened.ino()) == (now.dev(), now.ino());
    opened.metadata().is_ok_and(same)
}

/// What is to be said of a sensor whose `w1_slave` could not be read, by whether its
/// directory is still the one that it was.
fn quality_of(error: &io::Error, is_there: bool) -> Quality {
    match error.raw_os_error() {
        // it went while its file was open
        Some(ENODEV) => Quality::Unplugged,
        Some(EIO) => Quality::Empty,
        // without the driver there is a directory, which stays, and no w1_slave in it
        _ if error.kind() == ErrorKind::NotFound && !is_there => Quality::Unplugged,
        _ => Quality::Unreadable,
    }
}

fn is_missing<T>(result: &io::Result<T>) -> bool {
    matches!(result, Err(error) if error.kind() == ErrorKind::NotFound)
}

/// The bit of `features` that has the driver poll for the conversion's end.
const POLL: i64 = 2;

/// The longest conversion by the data sheet: of 12 bits.
const DATA_SHEET: Duration = Duration::from_millis(750);

/// What a conversion time may be set to. 0 and 1 mean something else to the
/// driver.
const CONVERSION_MS: std::ops::RangeInclusive<u32> = 2..=10_000;

/// Twice what the data sheet allows a chip for writing its EEPROM; the driver
/// does not wait for it.
const EEPROM_WRITE: Duration = Duration::from_millis(20);

// the same number on every Linux
const EIO: i32 = 5;
const ENODEV: i32 = 19;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bus::W1Bus;
    use crate::simulated::SimulatedBus;

    #[test]
    fn a_driver_that_does_not_tell_waits_for_as_long_as_the_data_sheet_says() {
        let dir = tempfile::tempdir().unwrap();
        let cellar = "28-0000000a0001".parse().unwrap();
        let mut wires = SimulatedBus::create(dir.path(), &[cellar]).unwrap();
        wires.set_resolution(cellar, 9).unwrap();
        let mut listing = W1Bus::new(dir.path()).list().unwrap();
        let sensor = listing.thermometers.remove(0);
        assert_eq!(sensor.wait(), Duration::from_millis(95));
        // a driver that has bulk conversion, and no such file
        fs::remove_file(sensor.dir.join("conv_time")).unwrap();
        assert_eq!(sensor.wait(), Duration::from_millis(750));
    }

    /// No file that a test can make gives all of these.
    #[test]
    fn what_the_system_says_of_a_reading_is_told_apart() {
        for (code, is_there, quality) in [
            // ENODEV, also of a sensor that is back
            (19, false, Quality::Unplugged),
            (19, true, Quality::Unplugged),
            // EIO
            (5, true, Quality::Empty),
            (5, false, Quality::Empty),
            // ENOENT
            (2, false, Quality::Unplugged),
            (2, true, Quality::Unreadable),
            // EAGAIN, ENOMEM, EACCES, EBUSY, EMFILE, ELOOP, ETIMEDOUT
            (11, false, Quality::Unreadable),
            (12, true, Quality::Unreadable),
            (13, true, Quality::Unreadable),
            (16, true, Quality::Unreadable),
            (24, false, Quality::Unreadable),
            (40, true, Quality::Unreadable),
            (110, true, Quality::Unreadable),
        ] {
            let error = io::Error::from_raw_os_error(code);
            assert_eq!(quality_of(&error, is_there), quality, "{error}");
        }
    }
}
