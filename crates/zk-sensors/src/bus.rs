use std::collections::BTreeMap;
use std::fs::{self, OpenOptions};
use std::io::{ErrorKind, Write};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant, SystemTime};

use jiff::Timestamp;

use crate::error::SensorError;
use crate::health::SensorHealth;
use crate::id::SensorId;
use crate::offset::Offset;
use crate::reading::{MilliCelsius, Quality, Reading};
use crate::scratchpad::Sample;
use crate::thermometer::{Thermometer, number};

/// Every thermometer on every 1-Wire bus of this machine.
///
/// It keeps nothing open and looks for sensors anew in each sweep, so they may
/// come and go. What it does keep is how each sensor that it has seen has done,
/// see [`W1Bus::health`].
#[derive(Debug)]
pub struct W1Bus {
    root: PathBuf,
    bulk: bool,
    offsets: BTreeMap<SensorId, MilliCelsius>,
    health: BTreeMap<SensorId, SensorHealth>,
    sweep: u64,
}

/// What is on the buses of a machine, whether it answers or not.
#[non_exhaustive]
#[derive(Clone, Debug, Default)]
pub struct Listing {
    /// The buses, `w1_bus_master1` and so on, sorted.
    pub buses: Vec<String>,
    /// The thermometers, sorted.
    pub thermometers: Vec<Thermometer>,
    /// The names of other devices, sorted: `01-0000000a0001`. Family `00` is
    /// none: a wire that floats, as a rule for want of a pull-up resistor, has
    /// the kernel see devices such as `00-400000000000`.
    pub others: Vec<String>,
}

impl W1Bus {
    /// A reader of the tree at `root`, which has `bus/w1/devices` in it: `/sys`,
    /// or [`SimulatedBus::root`](crate::SimulatedBus::root). Touches nothing yet.
    pub fn new(root: impl Into<PathBuf>) -> Self {
        Self {
            root: root.into(),
            bulk: true,
            offsets: BTreeMap::new(),
            health: BTreeMap::new(),
            sweep: 0,
        }
    }

    /// The same, but it never triggers a bulk conversion: it reads one sensor of
    /// a bus after the other.
    ///
    /// That is for looking at a bus that another program reads all the time.
    /// While a bulk conversion runs, the other's readings are empty; while a
    /// sensor converts alone, none is.
    #[must_use]
    pub fn without_bulk(self) -> Self {
        Self {
            bulk: false,
            ..self
        }
    }

    /// From now on adds these to what their sensors measure, and nothing to what
    /// others do.
    ///
    /// The quality is judged before. A [`Quality::PowerOn`] value is no
    /// measurement and stays as it is, to be known by. A [`Reading`] does not say
    /// that it has an offset in it; [`SensorHealth::measured`] is what the chip said.
    ///
    /// ```
    /// use std::time::SystemTime;
    /// use zk_sensors::{MilliCelsius, SensorId, SimulatedBus, W1Bus};
    ///
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let dir = tempfile::tempdir()?;
    /// let cellar: SensorId = "28-0000000a0001".parse()?;
    /// let wires = SimulatedBus::create(dir.path(), &[cellar])?;
    /// let mut bus = W1Bus::new(wires.root());
    /// bus.set_offsets(&["28-0000000a0001=-0.25".parse()?])?;
    ///
    /// let readings = bus.read_all(SystemTime::now)?;
    /// assert_eq!(readings[0].value, Some(MilliCelsius(19_750)));
    /// assert_eq!(bus.health()[&cellar].measured, Some(MilliCelsius(20_000)));
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    ///
    /// [`SensorError::OffsetTooLarge`] beyond ten degrees either way: a sound sensor
    /// is right to half a degree, so that is a slip. [`SensorError::OffsetTwice`].
    /// Those that there were stay then.
    pub fn set_offsets(&mut self, offsets: &[Offset]) -> Result<(), SensorError> {
        let mut all = BTreeMap::new();
        for offset in offsets {
            let Offset { sensor, celsius } = offset.check()?;
            if all.insert(sensor, celsius).is_some() {
                return Err(SensorError::OffsetTwice { sensor });
            }
        }
        self.offsets = all;
        Ok(())
    }

    /// What is added to what a sensor measures.
    pub fn offset(&self, sensor: SensorId) -> MilliCelsius {
        self.offsets.get(&sensor).copied().unwrap_or_default()
    }

    /// Reads every thermometer once.
    ///
    /// The result is sorted by sensor and has **exactly one reading for each
    /// sensor that is there or has ever been seen** by this value: one that has
    /// gone is [`Quality::Unplugged`] in every sweep until it returns. (Of more
    /// than 256 gone sensors, the longest gone are forgotten.)
    ///
    /// It blocks for as long as the wires need. Where this process may write
    /// `therm_bulk_read`, one conversion serves all sensors of a bus: 0.8 s.
    /// Where it may not, each sensor takes 0.77 s (less at lower resolutions),
    /// 1.5 s with parasite power. Several buses are read at the same time, each
    /// by a thread that ends before this returns. A reading that is empty because
    /// another program's bulk conversion is under way is taken once more when
    /// that is over; no other is repeated.
    ///
    /// `now` tells the time, as a rule [`SystemTime::now`]; it is asked at the
    /// end of each bulk conversion, and for each other reading when that is in
    /// hand. A time before 1970 becomes 1970. If another program reads the same
    /// sensor between the end of a bulk conversion and its reading, that is of a
    /// conversion of its own, and its time is too early by as much as that takes.
    ///
    /// # Errors
    ///
    /// [`SensorError::NoBus`] if `bus/w1/devices` cannot be listed. Once a
    /// sensor has been seen, its absence is no error: the sensors are unplugged.
    pub fn read_all<N>(&mut self, now: N) -> Result<Vec<Reading>, SensorError>
    where
        N: Fn() -> SystemTime + Sync,
    {
        let listing = match self.list() {
            Err(SensorError::NoBus { source, .. })
                if source.kind() == ErrorKind::NotFound && !self.health.is_empty() =>
            {
                Listing::default()
            }
            listing => listing?,
        };
        self.sweep += 1;
        let mut readings: BTreeMap<_, _> = read_masters(&self.masters(listing), &now)
            .into_iter()
            .map(|reading| (reading.sensor, reading))
            .collect();
        for reading in readings.values() {
            let health = self.health.entry(reading.sensor);
            health.or_insert_with(|| SensorHealth::new(reading)).listed = self.sweep;
        }
        self.forget_longest_gone();
        for (sensor, health) in &mut self.health {
            let reading = readings.entry(*sensor).or_insert_with(|| {
                reading(
                    *sensor,
                    Sample::without_value(Quality::Unplugged),
                    moment(&now),
                )
            });
            let measured = reading.value;
            if let (Some(value), Some(offset)) = (&mut reading.value, self.offsets.get(sensor))
                && reading.quality != Quality::PowerOn
            {
                *value = MilliCelsius(value.0.saturating_add(offset.0));
            }
            health.add(reading, measured);
        }
        Ok(readings.into_values().collect())
    }

    /// How each sensor has done that [`W1Bus::read_all`] remembers: those that
    /// are there, and those that are gone, up to 256.
    ///
    /// ```
    /// use std::time::SystemTime;
    /// use zk_sensors::{MilliCelsius, Quality, SensorId, SimulatedBus, W1Bus};
    ///
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let dir = tempfile::tempdir()?;
    /// let cellar: SensorId = "28-0000000a0001".parse()?;
    /// let mut wires = SimulatedBus::create(dir.path(), &[cellar])?;
    /// let mut bus = W1Bus::new(wires.root());
    /// bus.read_all(SystemTime::now)?;
    /// wires.empty(cellar)?;
    /// bus.read_all(SystemTime::now)?;
    /// bus.read_all(SystemTime::now)?;
    ///
    /// let health = &bus.health()[&cellar];
    /// assert_eq!(health.failures, 2);
    /// assert_eq!(health.count(Quality::Empty), 2);
    /// let good = health.last_good.expect("the first reading");
    /// assert_eq!(good.value, Some(MilliCelsius(20_000)));
    /// # Ok(())
    /// # }
    /// ```
    pub fn health(&self) -> &BTreeMap<SensorId, SensorHealth> {
        &self.health
    }

    /// What is listed now. Nothing is read, and nothing is remembered.
    ///
    /// A sensor that was pulled stays listed for about 100 s. One that somebody
    /// wrote to `w1_master_add` is listed whether it exists or not.
    ///
    /// # Errors
    ///
    /// [`SensorError::NoBus`] if `bus/w1/devices` cannot be listed.
    pub fn list(&self) -> Result<Listing, SensorError> {
        let devices = self.devices();
        let failed = |source| SensorError::NoBus {
            path: devices.clone(),
            source,
        };
        let mut listing = Listing::default();
        for entry in fs::read_dir(&devices).map_err(failed)? {
            let entry = entry.map_err(failed)?;
            let name = entry.file_name();
            let Some(name) = name.to_str() else { continue };
            if is_bus(name) {
                listing.buses.push(name.to_owned());
            } else if let Ok(id) = name.parse() {
                let dir = entry.path();
                // ../../../devices/w1_bus_master1/28-0000000a0001; where there is
                // no such link the sensor counts as on a bus without bulk reads
                let bus = fs::read_link(&dir).ok();
                let bus = bus
                    .as_deref()
                    .and_then(|link| link.parent()?.file_name()?.to_str())
                    .filter(|name| is_bus(name))
                    .map(str::to_owned);
                listing.thermometers.push(Thermometer::new(id, bus, dir));
            } else if is_device(name) {
                listing.others.push(name.to_owned());
            }
        }
        // w1_bus_master10 after w1_bus_master9
        listing.buses.sort_by_key(|name| (name.len(), name.clone()));
        listing.thermometers.sort_by_key(Thermometer::id);
        listing.others.sort();
        Ok(listing)
    }

    fn devices(&self) -> PathBuf {
        self.root.join("bus/w1/devices")
    }

    /// The thermometers by bus.
    fn masters(&self, listing: Listing) -> Vec<Master> {
        let devices = self.devices();
        let mut masters: BTreeMap<Option<String>, Vec<Thermometer>> = BTreeMap::new();
        for thermometer in listing.thermometers {
            let bus = thermometer.bus().map(str::to_owned);
            masters.entry(bus).or_default().push(thermometer);
        }
        masters
            .into_iter()
            .map(|(bus, sensors)| Master {
                may_trigger: self.bulk,
                bulk: devices
                    .join(bus.unwrap_or_default())
                    .join("therm_bulk_read"),
                sensors,
            })
            .collect()
    }

    fn forget_longest_gone(&mut self) {
        let mut gone: Vec<_> = self
            .health
            .iter()
            .filter(|(_, health)| health.listed < self.sweep)
            .map(|(sensor, health)| (health.listed, *sensor))
            .collect();
        let surplus = gone.len().saturating_sub(MAX_GONE);
        gone.sort_unstable();
        for (_, sensor) in gone.into_iter().take(surplus) {
            tracing::warn!(%sensor, "gone for longest of more than {MAX_GONE} sensors: forgotten");
            self.health.remove(&sensor);
        }
    }
}

impl Default for W1Bus {
    /// The kernel's own tree, `/sys`.
    fn default() -> Self {
        Self::new("/sys")
    }
}

/// One bus, `w1_bus_masterN`.
struct Master {
    may_trigger: bool,
    bulk: PathBuf,
    sensors: Vec<Thermometer>,
}

impl Master {
    fn read(&self, now: &impl Fn() -> SystemTime) -> Vec<Reading> {
        let converted = self.convert(now);
        self.sensors
            .iter()
            .map(|sensor| {
                let mut converted = converted.filter(|_| sensor.has_bulk());
                let mut sample = self.sample(sensor, converted.is_some());
                if sample.quality == Quality::Empty && self.is_converting() {
                    self.wait_for_others();
                    converted = None;
                    sample = self.sample(sensor, false);
                }
                let at = converted.filter(|_| sample.value.is_some());
                reading(sensor.id(), sample, at.unwrap_or_else(|| moment(now)))
            })
            .collect()
    }

    fn sample(&self, sensor: &Thermometer, converted: bool) -> Sample {
        if !converted && bulk_status(&self.bulk) == Some(Status::Unread) {
            // somebody's conversion waits to be read, perhaps this sensor's: the
            // first reading may be of any age
            fresh(sensor.read(), sensor.read())
        } else {
            sensor.read()
        }
    }

    /// Has all sensors measure at the same time, if that is possible here, and
    /// tells when they had. Then each sensor's next reading is of this
    /// conversion.
    fn convert(&self, now: &impl Fn() -> SystemTime) -> Option<Timestamp> {
        let bulk = || self.sensors.iter().filter(|sensor| sensor.has_bulk());
        // for a single one there is nothing to gain, and its reading is checked
        // more closely by the driver
        if !self.may_trigger || bulk().count() < 2 {
            return None;
        }
        let mut trigger = match OpenOptions::new().write(true).open(&self.bulk) {
            Ok(trigger) => trigger,
            Err(error) => {
                tracing::debug!(path = %self.bulk.display(), %error, "no bulk conversion");
                return None;
            }
        };
        // a sensor that is set to be polled needs longer than the driver waits,
        // and here it is not polled
        if bulk().any(Thermometer::is_polled) {
            return None;
        }
        // begun anew, a conversion gives whoever waits for it the values before
        if self.is_converting() {
            return None;
        }
        let wait = self.longest_wait();
        let begun = Instant::now();
        let written = trigger.write(TRIGGER);
        let ended = moment(now);
        match written {
            Ok(8) => is_converted(bulk_status(&self.bulk), begun.elapsed(), wait).then_some(ended),
            other => {
                tracing::debug!(path = %self.bulk.display(), ?other, "bulk conversion refused");
                None
            }
        }
    }

    /// How long the driver waits for the slowest, by its data sheet or conv_time.
    fn longest_wait(&self) -> Duration {
        let bulk = self.sensors.iter().filter(|sensor| sensor.has_bulk());
        bulk.map(Thermometer::wait).max().unwrap_or_default()
    }

    /// Whether a bulk conversion is under way, which is another program's.
    fn is_converting(&self) -> bool {
        bulk_status(&self.bulk) == Some(Status::Converting)
    }

    /// Waits for the end of another program's bulk conversion, which takes as
    /// long as the slowest sensor of the bus.
    fn wait_for_others(&self) {
        let begun = Instant::now();
        let limit = self.longest_wait().min(LONGEST_WAIT);
        while begun.elapsed() <= limit && self.is_converting() {
            thread::sleep(LOOK_AGAIN);
        }
    }
}

/// What `therm_bulk_read` says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Status {
    /// `0`: no conversion is waiting.
    Idle,
    /// `-1`: one is under way.
    Converting,
    /// `1`: one is over, and at least one sensor has not been read since.
    Unread,
}

fn bulk_status(path: &Path) -> Option<Status> {
    match number(path)? {
        0 => Some(Status::Idle),
        -1 => Some(Status::Converting),
        1 => Some(Status::Unread),
        _ => None,
    }
}

/// Whether a trigger had its conversion.
///
/// The driver says `Unread` even when a signal cut its waiting short, or
/// nobody answered; only the time tells. `Idle`: it took no notice, or another
/// program was quicker to read. A plain file of a simulated tree says what was
/// written to it, and its sensors are always ready.
fn is_converted(status: Option<Status>, took: Duration, wait: Duration) -> bool {
    match status {
        Some(Status::Unread) => took >= wait,
        Some(Status::Idle | Status::Converting) => false,
        None => true,
    }
}

/// Two readings in a row, of which the first may be old and the second is not:
/// the second, or what there is of the first.
fn fresh(first: Sample, second: Sample) -> Sample {
    match (first.quality, second.quality.has_value()) {
        (Quality::Ok, false) => Sample {
            quality: Quality::StaleSuspect,
            ..first
        },
        _ => second,
    }
}

fn read_masters<N>(masters: &[Master], now: &N) -> Vec<Reading>
where
    N: Fn() -> SystemTime + Sync,
{
    let Some((first, rest)) = masters.split_first() else {
        return Vec::new();
    };
    thread::scope(|scope| {
        let others: Vec<_> = rest
            .iter()
            .map(|master| {
                let thread = thread::Builder::new().name("zk-sensors".into());
                (master, thread.spawn_scoped(scope, move || master.read(now)))
            })
            .collect();
        let mut readings = first.read(now);
        for (master, thread) in others {
            readings.extend(match thread.map(thread::ScopedJoinHandle::join) {
                Ok(Ok(readings)) => readings,
                // only the caller's clock can have panicked
                Ok(Err(panic)) => std::panic::resume_unwind(panic),
                // no thread to be had: in turn, then
                Err(_) => master.read(now),
            });
        }
        readings
    })
}

fn reading(sensor: SensorId, sample: Sample, at: Timestamp) -> Reading {
    Reading {
        sensor,
        at,
        value: sample.value,
        quality: sample.quality,
    }
}

/// The time now, in whole milliseconds.
fn moment(now: &impl Fn() -> SystemTime) -> Timestamp {
    let now = now().max(SystemTime::UNIX_EPOCH);
    let whole = Timestamp::try_from(now).map_or(i64::MAX, Timestamp::as_millisecond);
    Timestamp::from_millisecond(whole).unwrap_or(Timestamp::MAX)
}

/// `w1_bus_master1`, and no other kind of name.
fn is_bus(name: &str) -> bool {
    name.strip_prefix("w1_bus_master").is_some_and(|number| {
        (1..=10).contains(&number.len()) && number.bytes().all(|b| b.is_ascii_digit())
    })
}

/// `01-0000000a0001`: a device of any family.
fn is_device(name: &str) -> bool {
    let hex = |text: &str| text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
    matches!(name.split_once('-'), Some((family, serial))
        if family.len() == 2 && serial.len() == 12 && hex(family) && hex(serial))
}

/// The newline is part of the command.
const TRIGGER: &[u8; 8] = b"trigger\n";

/// How many sensors that are gone are remembered.
const MAX_GONE: usize = 256;

/// For another program's conversion: no longer than one can be set to take.
const LONGEST_WAIT: Duration = Duration::from_secs(10);
const LOOK_AGAIN: Duration = Duration::from_millis(5);

#[cfg(test)]
mod tests {
    use super::*;

    fn sample(quality: Quality, value: i32) -> Sample {
        Sample {
            quality,
            value: quality.has_value().then_some(MilliCelsius(value)),
        }
    }

    #[test]
    fn the_second_reading_counts_and_the_first_stands_in_under_suspicion() {
        for (first, second, expected) in [
            (
                sample(Quality::Ok, 20_000),
                sample(Quality::Ok, 40_000),
                sample(Quality::Ok, 40_000),
            ),
            (
                sample(Quality::Ok, 20_000),
                sample(Quality::PowerOn, 85_000),
                sample(Quality::PowerOn, 85_000),
            ),
            (
                sample(Quality::Ok, 20_000),
                sample(Quality::Empty, 0),
                sample(Quality::StaleSuspect, 20_000),
            ),
            (
                sample(Quality::OutOfRange, 126_000),
                sample(Quality::Crc, 0),
                sample(Quality::Crc, 0),
            ),
            (
                sample(Quality::Empty, 0),
                sample(Quality::Empty, 0),
                sample(Quality::Empty, 0),
            ),
        ] {
            assert_eq!(fresh(first, second), expected);
        }
    }

    #[test]
    fn a_trigger_counts_only_when_its_conversion_had_time() {
        let wait = Duration::from_millis(750);
        let cut_short = Duration::from_millis(749);
        for (status, took, expected) in [
            (Some(Status::Unread), wait, true),
            (Some(Status::Unread), cut_short, false),
            (Some(Status::Idle), wait, false),
            (Some(Status::Converting), wait, false),
            (None, Duration::ZERO, true),
        ] {
            assert_eq!(is_converted(status, took, wait), expected, "{status:?}");
        }
    }
}
