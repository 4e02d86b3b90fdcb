//! The thread that reads the sensors.

use std::sync::atomic::Ordering;
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::{Duration, Instant};

use zk_sensors::{Offset, Quality, W1Bus};

use super::inbox::{Closing, Inbox, Refused, Sweep};
use super::progress::{Event, Progress};
use crate::clock;
use crate::config::{Sensors, unsigned};

/// Reads all sensors at each interval until told to stop, which is when nobody is left
/// to say that interval or offsets are others.
pub(super) fn sample(
    sensors: &Sensors,
    others: &Receiver<Sensors>,
    inbox: &Inbox,
    progress: &Progress,
) {
    let _at_the_end = Closing(inbox);
    let mut bus = W1Bus::new(&sensors.root);
    let mut offsets = sensors.offsets.clone();
    if !offsets.is_empty() {
        set_offsets(&mut bus, &offsets);
    }
    let mut interval = unsigned(sensors.interval);
    let mut next = Instant::now();
    // What keeps the sensors from being read, and when that was last said.
    let mut trouble: Option<(String, Instant)> = None;
    loop {
        let wait = next.saturating_duration_since(Instant::now());
        progress.sampler.waits();
        match others.recv_timeout(wait) {
            Err(RecvTimeoutError::Timeout) => {}
            Ok(other) => {
                if offsets != other.offsets {
                    offsets = other.offsets;
                    set_offsets(&mut bus, &offsets);
                }
                interval = unsigned(other.interval);
                next = next.min(Instant::now() + interval);
                continue;
            }
            Err(RecvTimeoutError::Disconnected) => return,
        }
        progress.sampler.works();
        // A sweep that takes longer than the interval delays the next one; it
        // does not make up for it afterwards by two of the same moment.
        next = (next + interval).max(Instant::now() + interval / 2);
        // One clock for all of it, whatever is set meanwhile.
        let offset = clock::system_offset();
        let now = || {
            // It is asked when a sensor has been read: a sweep may be long.
            progress.sampler.works();
            clock::time_of(offset)
        };
        let readings = match bus.read_all(now) {
            Ok(readings) => readings,
            Err(error) => {
                let error = error.to_string();
                let said = trouble
                    .as_ref()
                    .is_some_and(|(before, at)| *before == error && at.elapsed() < SAID_AGAIN);
                if !said {
                    tracing::warn!(error, "cannot read the sensors; trying every {interval:?}");
                    trouble = Some((error, Instant::now()));
                }
                continue;
            }
        };
        if trouble.take().is_some() {
            tracing::info!("the sensors can be read again");
        }
        progress.tell(Event::Captured(&readings));
        let count = readings.len() as u64;
        let well = readings
            .iter()
            .filter(|reading| reading.quality == Quality::Ok)
            .count();
        for reading in &readings {
            progress.qualities.add(reading.quality.as_str(), 1);
        }
        progress.sensors.store(well as u64, Ordering::Relaxed);
        progress.sampled.fetch_add(count, Ordering::Relaxed);
        if readings.is_empty() {
            continue;
        }
        match inbox.offer(Sweep { readings, offset }) {
            Ok(()) => {}
            // The key has not signed for so long that memory would fill up.
            Err(Refused::Full(sweep)) => progress.give_up(&sweep.readings),
            Err(Refused::Closed) => return,
        }
    }
}

/// From the next sweep on. The log tells since when they hold, because readings don't
/// say that there is one in them.
fn set_offsets(bus: &mut W1Bus, offsets: &[Offset]) {
    let told: Vec<_> = offsets.iter().map(Offset::to_string).collect();
    match bus.set_offsets(offsets) {
        Ok(()) => tracing::info!(
            offsets = told.join(" "),
            "degrees that are added to what is measured"
        ),
        // The configuration was checked.
        Err(error) => tracing::error!(%error, "offsets stay as they were"),
    }
}

/// How often the log repeats why the sensors can't be read.
const SAID_AGAIN: Duration = Duration::from_secs(600);

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::sync::mpsc::channel;

    use jiff::SignedDuration;
    use zk_sensors::SimulatedBus;

    use super::*;

    /// However many sensors there are, and however slow each is.
    #[test]
    fn each_sensor_is_a_piece_of_work() {
        let dir = tempfile::tempdir().unwrap();
        let [first, second] = ["28-0000000a0001", "28-0000000a0002"].map(|id| id.parse().unwrap());
        let mut wires = SimulatedBus::create(dir.path(), &[first]).unwrap();
        let mut others = SimulatedBus::create(dir.path(), &[second]).unwrap();
        let sensors = Sensors {
            interval: SignedDuration::from_hours(1),
            root: dir.path().into(),
            ..Sensors::default()
        };
        let (inbox, progress) = (Inbox::new(10), Progress::default());
        let (stop, stopped) = channel();
        let (mut one, mut other) = (wires.hold(first).unwrap(), others.hold(second).unwrap());
        std::thread::scope(|scope| {
            let (inbox, progress) = (&inbox, &progress);
            scope.spawn(move || sample(&sensors, &stopped, inbox, progress));
            one.begun().unwrap();
            other.begun().unwrap();
            // as if it had been at it for so long that nobody counts on it any more
            progress.sampler.waits();
            one.answer().unwrap();
            let begun = Instant::now();
            while progress.sampler.at_it().is_none() {
                assert!(begun.elapsed() < Duration::from_secs(20));
                std::thread::yield_now();
            }
            other.answer().unwrap();
            drop(stop);
        });
    }
}
