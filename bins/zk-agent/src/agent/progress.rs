//! What the agent's threads have done, and whom they tell of it.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

use zk_envelope::{ClockQuality, Report, StreamId};
use zk_sensors::Reading;

use super::pulse::Pulse;

/// What happens to readings on their way, as [`Agent::start_observed`](crate::Agent::start_observed)
/// tells it.
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub enum Event<'a> {
    /// Taken from the sensors: so far they are in memory alone.
    Captured(&'a [Reading]),
    /// A record of these readings is in the spool.
    Sealed {
        /// The record's stream.
        stream: StreamId,
        /// The record's number there.
        sequence: u64,
        /// What is in it, in order. If the clock was set since they were captured,
        /// their times are by the new one.
        readings: &'a [Reading],
    },
    /// A report of the agent's own is in the spool.
    Reported {
        /// The record's stream.
        stream: StreamId,
        /// The record's number there.
        sequence: u64,
        /// What it says.
        report: &'a Report,
    },
    /// Neither key nor spool took them: a loss receipt will say how many. None
    /// of them: it was a report of the agent's own, and counts as one.
    GivenUp(&'a [Reading]),
}

/// Whom events are told to.
///
/// A function and no log: a subscriber would write readings to a disk in clear
/// that nobody but their owner is to see. Who takes them here has asked for them.
pub(super) struct Observer(pub(super) Box<dyn Fn(Event<'_>) + Send + Sync>);

impl Default for Observer {
    fn default() -> Self {
        Self(Box::new(|_| {}))
    }
}

impl fmt::Debug for Observer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Observer")
    }
}

#[derive(Debug, Default)]
pub(super) struct Progress {
    pub(super) observer: Observer,
    pub(super) sampled: AtomicU64,
    pub(super) sealed: AtomicU64,
    /// Given up, and not yet counted by the spool.
    pub(super) uncounted: AtomicU64,
    pub(super) given_up: AtomicU64,
    pub(super) sensors: AtomicU64,
    /// Nothing is sealed any more.
    pub(super) ended: AtomicBool,
    /// The sealer was left behind, and what it has not sealed counted: it may seal and
    /// count nothing any more.
    pub(super) abandoned: AtomicBool,
    /// The key did not sign at the last attempt, which is made again.
    pub(super) waits_for_key: AtomicBool,
    /// Of the threads that sample and seal.
    pub(super) sampler: Pulse,
    pub(super) sealer: Pulse,
    /// Records of data of other programs.
    pub(super) data_taken: AtomicU64,
    pub(super) data_refused: AtomicU64,
    /// Readings by quality.
    pub(super) qualities: Tally,
    /// What was found lost, by reason.
    pub(super) lost: Tally,
    /// What the last record says of its clock.
    pub(super) clock: Mutex<Option<ClockQuality>>,
}

/// Counts by name.
#[derive(Debug, Default)]
pub(super) struct Tally(Mutex<BTreeMap<&'static str, u64>>);

impl Tally {
    pub(super) fn add(&self, name: &'static str, count: u64) {
        let mut counts = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        *counts.entry(name).or_default() += count;
    }

    /// All of `names`, and whatever else there was.
    pub(super) fn read(&self, names: &[&'static str]) -> BTreeMap<&'static str, u64> {
        let mut counts: BTreeMap<_, _> = names.iter().map(|name| (*name, 0)).collect();
        counts.extend(self.0.lock().unwrap_or_else(PoisonError::into_inner).iter());
        counts
    }
}

impl Progress {
    pub(super) fn tell(&self, event: Event<'_>) {
        (self.observer.0)(event);
    }

    pub(super) fn give_up(&self, readings: &[Reading]) {
        if !readings.is_empty() {
            self.tell(Event::GivenUp(readings));
        }
        let count = readings.len() as u64;
        self.uncounted.fetch_add(count, Ordering::Relaxed);
        self.given_up.fetch_add(count, Ordering::Relaxed);
    }
}
