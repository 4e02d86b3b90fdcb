//! All buses at the same time, and none held up by another.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::mpsc::{RecvTimeoutError, Sender, SyncSender, channel, sync_channel};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant, SystemTime};

use jiff::Timestamp;

use crate::id::SensorId;
use crate::master::Master;
use crate::reading::{Quality, Reading};
use crate::thermometer::Thermometer;

/// A thread for each bus, for as long as it is read.
#[derive(Debug)]
pub(crate) struct Readers {
    /// Those that wait for a driver which does not come back, by bus.
    hung: BTreeMap<Option<String>, JoinHandle<()>>,
    /// For how long a bus may tell nothing.
    pub(crate) patience: Duration,
}

/// A bus that is being read.
struct Busy {
    bus: Option<String>,
    thread: JoinHandle<()>,
    /// The sensors that it has not told of.
    left: BTreeSet<SensorId>,
    /// When it told something last.
    heard: Instant,
}

/// What a thread tells, or asks.
enum Said {
    Reading(Reading),
    /// What time is it? Here, since the caller's clock need not be one for threads.
    Time(SyncSender<Timestamp>),
}

impl Default for Readers {
    fn default() -> Self {
        Self {
            hung: BTreeMap::new(),
            patience: PATIENCE,
        }
    }
}

impl Readers {
    /// One reading for each sensor of each bus.
    pub(crate) fn read(
        &mut self,
        masters: Vec<Master>,
        now: &impl Fn() -> SystemTime,
    ) -> Vec<Reading> {
        self.welcome_back();
        let mut readings = Vec::new();
        let unreadable = |sensor| Reading::without_value(sensor, Quality::Unreadable, moment(now));
        let (tell, told) = channel();
        let mut busy = BTreeMap::new();
        for (number, master) in masters.into_iter().enumerate() {
            let bus = master.bus.clone();
            let left: BTreeSet<_> = master.sensors.iter().map(Thermometer::id).collect();
            if self.hung.contains_key(&bus) {
                readings.extend(left.into_iter().map(unreadable));
                continue;
            }
            let master = Arc::new(master);
            match spawn(number, Arc::clone(&master), tell.clone()) {
                Ok(thread) => {
                    let heard = Instant::now();
                    let reader = Busy {
                        bus,
                        thread,
                        left,
                        heard,
                    };
                    busy.insert(number, reader);
                }
                // no thread to be had: in turn, then
                Err(_) => {
                    let time = || Some(moment(now));
                    let _ = master.read(time, |reading| {
                        readings.push(reading);
                        Some(())
                    });
                }
            }
        }
        drop(tell);
        while let Some(longest) = busy.values().map(|reader: &Busy| reader.heard).min() {
            let wait = self.patience.saturating_sub(longest.elapsed());
            match told.recv_timeout(wait) {
                Ok((number, said)) => {
                    // one that was given up may wake up meanwhile: too late
                    let Some(reader) = busy.get_mut(&number) else {
                        continue;
                    };
                    match said {
                        Said::Time(answer) => drop(answer.send(moment(now))),
                        Said::Reading(reading) => {
                            reader.left.remove(&reading.sensor);
                            readings.push(reading);
                        }
                    }
                    reader.heard = Instant::now();
                    if reader.left.is_empty()
                        && let Some(done) = busy.remove(&number)
                    {
                        // it has nothing left to do
                        let _ = done.thread.join();
                    }
                }
                Err(error) => {
                    // they all ended before they had told everything: a defect
                    let ended = error == RecvTimeoutError::Disconnected;
                    let late = |reader: &Busy| ended || reader.heard.elapsed() >= self.patience;
                    for (_, reader) in busy.extract_if(.., |_, reader| late(reader)) {
                        let bus = reader.bus.as_deref();
                        tracing::warn!(bus, "its driver does not answer; going on without it");
                        readings.extend(reader.left.into_iter().map(unreadable));
                        self.hung.insert(reader.bus, reader.thread);
                    }
                }
            }
        }
        readings
    }

    /// Drops the threads whose drivers have come back.
    fn welcome_back(&mut self) {
        self.hung.retain(|bus, thread| {
            let hangs = !thread.is_finished();
            if !hangs {
                tracing::info!(bus, "its driver answers again");
            }
            hangs
        });
    }
}

fn spawn(
    number: usize,
    master: Arc<Master>,
    tell: Sender<(usize, Said)>,
) -> std::io::Result<JoinHandle<()>> {
    let read = move || {
        let say = |said| tell.send((number, said)).ok();
        let time = || {
            let (answer, time) = sync_channel(1);
            say(Said::Time(answer))?;
            time.recv().ok()
        };
        // nobody listens any more, if it was given up
        let _ = master.read(time, |reading| say(Said::Reading(reading)));
    };
    thread::Builder::new().name("zk-sensors".into()).spawn(read)
}

/// The time now, in whole milliseconds.
pub(crate) fn moment(now: &impl Fn() -> SystemTime) -> Timestamp {
    let now = now().max(SystemTime::UNIX_EPOCH);
    let whole = Timestamp::try_from(now).map_or(i64::MAX, Timestamp::as_millisecond);
    Timestamp::from_millisecond(whole).unwrap_or(Timestamp::MAX)
}

/// More than a bus can need for one sensor: four readings of 20 s each, which a
/// conversion of 10 s takes with parasite power, and 10 s for another program's.
const PATIENCE: Duration = Duration::from_secs(100);
