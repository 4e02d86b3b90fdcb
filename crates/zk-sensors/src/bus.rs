use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs::{self, File, OpenOptions};
use std::io::{self, ErrorKind, Read, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant, SystemTime};

use jiff::Timestamp;

use crate::error::SensorError;
use crate::id::SensorId;
use crate::reading::{Quality, Reading};
use crate::scratchpad::Sample;

/// Every thermometer on every 1-Wire bus of this machine.
///
/// It keeps nothing open and looks for sensors anew in each sweep, so they may
/// come and go. What it does keep is which sensors it has seen.
#[derive(Debug)]
pub struct W1Bus {
    root: PathBuf,
    /// The number of the sweep in which each sensor was last listed.
    last_seen: BTreeMap<SensorId, u64>,
    sweep: u64,
}

impl W1Bus {
    /// A reader of the tree at `root`, which has `bus/w1/devices` in it: `/sys`,
    /// or [`SimulatedBus::root`](crate::SimulatedBus::root). Touches nothing yet.
    pub fn new(root: impl Into<PathBuf>) -> Self {
        Self {
            root: root.into(),
            last_seen: BTreeMap::new(),
            sweep: 0,
        }
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
    /// by a thread that ends before this returns. `now` tells the time, as a
    /// rule [`SystemTime::now`]; it is asked once for each reading, when that
    /// is in hand. A time before 1970 becomes 1970.
    ///
    /// # Errors
    ///
    /// [`SensorError::NoBus`] if `bus/w1/devices` cannot be listed. Once a
    /// sensor has been seen, its absence is no error: the sensors are unplugged.
    pub fn read_all<N>(&mut self, now: N) -> Result<Vec<Reading>, SensorError>
    where
        N: Fn() -> SystemTime + Sync,
    {
        let masters = self.find()?;
        self.sweep += 1;
        let mut readings: BTreeMap<_, _> = read_masters(&masters, &now)
            .into_iter()
            .map(|reading| (reading.sensor, reading))
            .collect();
        for sensor in readings.keys() {
            self.last_seen.insert(*sensor, self.sweep);
        }
        self.forget_longest_gone();
        for sensor in self.last_seen.keys() {
            readings.entry(*sensor).or_insert_with(|| {
                reading(*sensor, Sample::without_value(Quality::Unplugged), &now)
            });
        }
        Ok(readings.into_values().collect())
    }

    /// The thermometers that are listed now, by bus.
    fn find(&self) -> Result<Vec<Master>, SensorError> {
        let devices = self.root.join("bus/w1/devices");
        let failed = |source| SensorError::NoBus {
            path: devices.clone(),
            source,
        };
        let entries = match fs::read_dir(&devices) {
            Ok(entries) => entries,
            Err(error) if error.kind() == ErrorKind::NotFound && !self.last_seen.is_empty() => {
                return Ok(Vec::new());
            }
            Err(error) => return Err(failed(error)),
        };
        let mut masters: BTreeMap<PathBuf, Vec<Sensor>> = BTreeMap::new();
        for entry in entries {
            let entry = entry.map_err(failed)?;
            // foreign chips, and the buses themselves, have other names
            let Some(id) = entry
                .file_name()
                .to_str()
                .and_then(|name| name.parse().ok())
            else {
                continue;
            };
            let dir = entry.path();
            // ../../../devices/w1_bus_master1/28-0000000a0001; where there is no
            // such link the sensor counts as alone on a bus without bulk reads
            let master = fs::read_link(&dir)
                .ok()
                .and_then(|link| link.parent().and_then(Path::file_name).map(OsStr::to_owned))
                .unwrap_or_default();
            masters
                .entry(devices.join(master))
                .or_default()
                .push(Sensor { id, dir });
        }
        Ok(masters
            .into_iter()
            .map(|(dir, sensors)| Master {
                bulk: dir.join("therm_bulk_read"),
                sensors,
            })
            .collect())
    }

    fn forget_longest_gone(&mut self) {
        let mut gone: Vec<_> = self
            .last_seen
            .iter()
            .filter(|(_, sweep)| **sweep < self.sweep)
            .map(|(sensor, sweep)| (*sweep, *sensor))
            .collect();
        let surplus = gone.len().saturating_sub(MAX_GONE);
        gone.sort_unstable();
        for (_, sensor) in gone.into_iter().take(surplus) {
            tracing::warn!(%sensor, "gone for longest of more than {MAX_GONE} sensors: forgotten");
            self.last_seen.remove(&sensor);
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
    bulk: PathBuf,
    sensors: Vec<Sensor>,
}

struct Sensor {
    id: SensorId,
    dir: PathBuf,
}

impl Master {
    fn read(&self, now: &impl Fn() -> SystemTime) -> Vec<Reading> {
        let converted = self.convert();
        self.sensors
            .iter()
            .map(|sensor| {
                let sample = if !converted && bulk_status(&self.bulk) == Some(Status::Unread) {
                    // somebody's conversion waits to be read, perhaps this
                    // sensor's: the first reading may be of any age
                    fresh(sensor.read(), sensor.read())
                } else {
                    sensor.read()
                };
                reading(sensor.id, sample, now)
            })
            .collect()
    }

    /// Has all sensors measure at the same time, if that is possible here.
    /// After `true` each sensor's next reading is of this conversion.
    fn convert(&self) -> bool {
        let bulk = || self.sensors.iter().filter(|s| s.id.family().has_bulk());
        if bulk().count() < 2 {
            // nothing to gain, and a single reading is checked more closely by
            // the driver
            return false;
        }
        let mut trigger = match OpenOptions::new().write(true).open(&self.bulk) {
            Ok(trigger) => trigger,
            Err(error) => {
                tracing::debug!(path = %self.bulk.display(), %error, "no bulk conversion");
                return false;
            }
        };
        // the driver waits for the slowest by its data sheet or conv_time. A
        // sensor that is set to be polled needs longer, and here it is not polled
        let mut wait = Duration::ZERO;
        for sensor in bulk() {
            if number(&sensor.dir.join("features")).unwrap_or(0) & POLL != 0 {
                return false;
            }
            let conversion = number(&sensor.dir.join("conv_time")).unwrap_or(0);
            wait = wait.max(Duration::from_millis(conversion.unsigned_abs()));
        }
        let begun = Instant::now();
        match trigger.write(TRIGGER) {
            Ok(8) => is_converted(bulk_status(&self.bulk), begun.elapsed(), wait),
            other => {
                tracing::debug!(path = %self.bulk.display(), ?other, "bulk conversion refused");
                false
            }
        }
    }
}

impl Sensor {
    fn read(&self) -> Sample {
        let file = self.dir.join("w1_slave");
        let mut there = File::open(&self.dir);
        let mut text = read_start(&file);
        if is_missing(&text) && !is_still(&there, &self.dir) {
            // unplugged, or plugged in again, in this very moment: look once more
            there = File::open(&self.dir);
            text = read_start(&file);
        }
        let quality = match text {
            Ok(text) => return Sample::from_w1_slave(self.id.family(), &text),
            Err(error) if error.raw_os_error() == Some(ENODEV) => Quality::Unplugged,
            Err(error) if error.raw_os_error() == Some(EIO) => Quality::Empty,
            // without the driver there is a directory, which stays, and no
            // w1_slave in it
            failed if is_missing(&failed) && !is_still(&there, &self.dir) => Quality::Unplugged,
            Err(error) => {
                tracing::debug!(sensor = %self.id, %error, "w1_slave is unreadable");
                Quality::Unreadable
            }
        };
        Sample::without_value(quality)
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

fn reading(sensor: SensorId, sample: Sample, now: &impl Fn() -> SystemTime) -> Reading {
    let now = now().max(SystemTime::UNIX_EPOCH);
    let whole = Timestamp::try_from(now).map_or(i64::MAX, Timestamp::as_millisecond);
    Reading {
        sensor,
        at: Timestamp::from_millisecond(whole).unwrap_or(Timestamp::MAX),
        value: sample.value,
        quality: sample.quality,
    }
}

fn number(path: &Path) -> Option<i64> {
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

fn is_missing<T>(result: &io::Result<T>) -> bool {
    matches!(result, Err(error) if error.kind() == ErrorKind::NotFound)
}

/// The newline is part of the command.
const TRIGGER: &[u8; 8] = b"trigger\n";

/// The bit of `features` that has the driver poll for the conversion's end.
const POLL: i64 = 2;

/// How many sensors that are gone are remembered.
const MAX_GONE: usize = 256;

// the same number on every Linux
const EIO: i32 = 5;
const ENODEV: i32 = 19;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::reading::MilliCelsius;

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
