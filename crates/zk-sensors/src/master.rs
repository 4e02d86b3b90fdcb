//! One bus: its bulk conversions, and its sensors one after the other.

use std::fs::OpenOptions;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use jiff::Timestamp;

use crate::reading::{Quality, Reading};
use crate::scratchpad::Sample;
use crate::thermometer::{Thermometer, number};

/// One bus, `w1_bus_masterN`.
pub(crate) struct Master {
    /// Its name, if the tree tells.
    pub(crate) bus: Option<String>,
    pub(crate) may_trigger: bool,
    /// Its `therm_bulk_read`.
    pub(crate) bulk: PathBuf,
    pub(crate) sensors: Vec<Thermometer>,
}

impl Master {
    /// Reads each sensor, and tells of it. `time` says what time it is, and `None` of
    /// both that nobody listens any more, which is the end.
    pub(crate) fn read(
        &self,
        time: impl Fn() -> Option<Timestamp>,
        mut tell: impl FnMut(Reading) -> Option<()>,
    ) -> Option<()> {
        let converted = self.convert(&time);
        for sensor in &self.sensors {
            let mut converted = converted.filter(|_| sensor.has_bulk());
            let mut sample = self.sample(sensor, converted.is_some());
            if sample.quality == Quality::Empty && self.is_converting() {
                self.wait_for_others();
                converted = None;
                sample = self.sample(sensor, false);
            }
            let at = match converted.filter(|_| sample.value.is_some()) {
                Some(at) => at,
                None => time()?,
            };
            tell(Reading {
                sensor: sensor.id(),
                at,
                value: sample.value,
                quality: sample.quality,
            })?;
        }
        Some(())
    }

    fn sample(&self, sensor: &Thermometer, converted: bool) -> Sample {
        let may_be_old = !converted && sensor.has_bulk();
        if may_be_old && bulk_status(&self.bulk) == Some(Status::Unread) {
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
    fn convert(&self, time: &impl Fn() -> Option<Timestamp>) -> Option<Timestamp> {
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
        let ended = time()?;
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

/// The newline is part of the command.
const TRIGGER: &[u8; 8] = b"trigger\n";

/// For another program's conversion: no longer than one can be set to take.
const LONGEST_WAIT: Duration = Duration::from_secs(10);
const LOOK_AGAIN: Duration = Duration::from_millis(5);

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
