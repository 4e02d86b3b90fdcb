use jiff::Timestamp;

use crate::reading::{MilliCelsius, Quality, Reading};

/// How a sensor has done since it was first seen: counters and a few marks, no
/// history.
///
/// [`W1Bus::health`](crate::W1Bus::health) has one for each sensor that it
/// remembers. Times are those of the readings, by the caller's clock.
#[non_exhaustive]
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SensorHealth {
    /// The time of its first reading.
    pub first_seen: Timestamp,
    /// Since when all its readings have been of the same quality as the last.
    pub since: Timestamp,
    /// Its last reading.
    pub last: Reading,
    /// What the chip itself said then: the value of [`last`](Self::last) without an
    /// offset.
    pub measured: Option<MilliCelsius>,
    /// Its last reading that was [`Quality::Ok`].
    pub last_good: Option<Reading>,
    /// How many readings, up to the last, were not `ok` in a row.
    pub failures: u64,
    counts: [u64; Quality::COUNT],
    /// The number of the sweep in which it was last listed.
    pub(crate) listed: u64,
}

impl SensorHealth {
    pub(crate) fn new(first: &Reading) -> Self {
        Self {
            first_seen: first.at,
            since: first.at,
            last: *first,
            measured: None,
            last_good: None,
            failures: 0,
            counts: [0; Quality::COUNT],
            listed: 0,
        }
    }

    /// `measured` is the reading's value without an offset.
    pub(crate) fn add(&mut self, reading: &Reading, measured: Option<MilliCelsius>) {
        if reading.quality != self.last.quality {
            self.since = reading.at;
        }
        self.last = *reading;
        self.measured = measured;
        if reading.quality == Quality::Ok {
            self.last_good = Some(*reading);
            self.failures = 0;
        } else {
            self.failures = self.failures.saturating_add(1);
        }
        let count = &mut self.counts[reading.quality as usize];
        *count = count.saturating_add(1);
    }

    /// How many readings were of a quality.
    pub fn count(&self, quality: Quality) -> u64 {
        self.counts[quality as usize]
    }

    /// How many readings there were of each quality, in the order of its names;
    /// also those of which there were none.
    pub fn counts(&self) -> impl Iterator<Item = (Quality, u64)> + '_ {
        Quality::ALL.into_iter().zip(self.counts)
    }
}
