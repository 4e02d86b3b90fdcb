use std::collections::BTreeMap;
use std::fs;
use std::io::ErrorKind;
use std::path::PathBuf;
use std::time::SystemTime;

use crate::error::SensorError;
use crate::health::SensorHealth;
use crate::id::SensorId;
use crate::master::Master;
use crate::offset::Offset;
use crate::readers::{Readers, moment};
use crate::reading::{MilliCelsius, Quality, Reading};
use crate::thermometer::Thermometer;

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
    readers: Readers,
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
            readers: Readers::default(),
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
    /// by a thread of its own. A reading that is empty because another program's
    /// bulk conversion is under way is taken once more when that is over; no other
    /// is repeated.
    ///
    /// A driver that does not come back from a call keeps nothing else from being
    /// read: once it has said nothing for 100 s, what is left of its bus is
    /// [`Quality::Unreadable`], and at once in the sweeps after that, until it has
    /// come back. Its thread stays as long, also beyond this value's end.
    ///
    /// `now` tells the time, as a rule [`SystemTime::now`]; it is asked, by the
    /// thread that called this, at the
    /// end of each bulk conversion, and for each other reading when that is in
    /// hand. A time before 1970 becomes 1970. If another program reads the same
    /// sensor between the end of a bulk conversion and its reading, that is of a
    /// conversion of its own, and its time is too early by as much as that takes.
    ///
    /// # Errors
    ///
    /// [`SensorError::NoBus`] if `bus/w1/devices` cannot be listed. Once a sensor
    /// has been seen, that is no error: without that directory the sensors are
    /// unplugged, and where something else keeps it from being listed they are
    /// unreadable.
    pub fn read_all<N>(&mut self, now: N) -> Result<Vec<Reading>, SensorError>
    where
        N: Fn() -> SystemTime,
    {
        let mut of_the_others = Quality::Unplugged;
        let listing = match self.list() {
            Err(error @ SensorError::NoBus { .. }) if !self.health.is_empty() => {
                if let SensorError::NoBus { source, .. } = &error
                    && source.kind() != ErrorKind::NotFound
                {
                    tracing::warn!(%error, "no sensor can be read");
                    of_the_others = Quality::Unreadable;
                }
                Listing::default()
            }
            listing => listing?,
        };
        self.sweep += 1;
        let masters = self.masters(listing);
        let mut readings: BTreeMap<_, _> = self
            .readers
            .read(masters, &now)
            .into_iter()
            .map(|reading| (reading.sensor, reading))
            .collect();
        for reading in readings.values() {
            let health = self.health.entry(reading.sensor);
            health.or_insert_with(|| SensorHealth::new(reading)).listed = self.sweep;
        }
        self.forget_longest_gone();
        for (sensor, health) in &mut self.health {
            let reading = readings
                .entry(*sensor)
                .or_insert_with(|| Reading::without_value(*sensor, of_the_others, moment(&now)));
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
                    .join(bus.as_deref().unwrap_or_default())
                    .join("therm_bulk_read"),
                bus,
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

/// How many sensors that are gone are remembered.
const MAX_GONE: usize = 256;

#[cfg(test)]
mod tests {
    use std::thread;
    use std::time::Duration;

    use super::*;
    use crate::simulated::SimulatedBus;

    /// A driver that does not come back from a call, and then does.
    #[test]
    fn a_bus_that_hangs_holds_up_no_other() {
        let ids = ["28-0000000a0001", "28-0000000a0002", "28-0000000a0003"];
        let [well, beside, hangs] = ids.map(|name| name.parse().unwrap());
        let dir = tempfile::tempdir().unwrap();
        let _first = SimulatedBus::create(dir.path(), &[well]).unwrap();
        let mut second = SimulatedBus::create(dir.path(), &[beside, hangs]).unwrap();
        let mut bus = W1Bus::new(dir.path());
        bus.readers.patience = Duration::from_secs(1);
        let mut read = || -> Vec<_> {
            let readings = bus.read_all(SystemTime::now).unwrap();
            readings.iter().map(|reading| reading.quality).collect()
        };

        let mut held = second.hold(hangs).unwrap();
        assert_eq!(read(), [Quality::Ok, Quality::Ok, Quality::Unreadable]);
        held.begun().unwrap();
        // nobody waits for it again, nor for what is beside it
        for _ in 0..3 {
            let unread = [Quality::Ok, Quality::Unreadable, Quality::Unreadable];
            assert_eq!(read(), unread);
        }
        held.answer().unwrap();
        while read() != [Quality::Ok; 3] {
            thread::yield_now();
        }
    }
}
