//! What time it is, by all the clocks there are.

use std::fmt;
use std::fs;
use std::path::Path;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, SystemTime};

use rustix::time::{ClockId, clock_gettime};
use zk_envelope::{BootId, ClockBefore, ClockQuality, Moment, Report, TimeAnchor, Timestamp};

use crate::Error;

use self::kernel::Discipline;

mod kernel;

/// The device's clocks: the system's, the monotonic one, and, where the system's
/// was never set, the one of the security module.
pub struct Clock {
    boot: BootId,
    wall: Box<dyn Fn() -> SystemTime + Send>,
    kernel: Box<dyn Fn() -> Discipline + Send>,
    module: ModuleClock,
    /// Wall clock minus uptime in milliseconds, and the quality, at the last
    /// record: what a step is measured against.
    last: Option<(i64, ClockQuality)>,
}

/// The clock of the security module: minus uptime, in milliseconds, as it was
/// first read.
///
/// Clones are the same clock.
#[derive(Clone, Debug, Default)]
pub(crate) struct ModuleClock(Arc<OnceLock<i64>>);

impl ModuleClock {
    /// Takes what the module said a moment ago. A clock of before 2020 was never
    /// set either.
    pub(crate) fn set(&self, time: SystemTime) {
        let time = Timestamp::from(time);
        if time.as_millis() >= Y2020_MS
            && let Some(offset) = offset(time, since_boot_ms())
        {
            // The first one counts: a clock that is read in whole seconds would
            // jump by one of them at each reading.
            let _ = self.0.set(offset);
        }
    }

    fn at(&self, since_boot_ms: u64) -> Option<Timestamp> {
        let ms = self.0.get()?.checked_add_unsigned(since_boot_ms)?;
        Timestamp::from_millis(u64::try_from(ms).ok()?)
    }
}

impl Clock {
    /// The clocks of this machine, as of its last boot. `wall` tells the time,
    /// as a rule [`SystemTime::now`].
    ///
    /// # Errors
    /// [`Error::File`], [`Error::Envelope`]: the kernel tells no boot id.
    pub fn new(wall: impl Fn() -> SystemTime + Send + 'static) -> Result<Self, Error> {
        let path = Path::new("/proc/sys/kernel/random/boot_id");
        let text = fs::read_to_string(path).map_err(|e| Error::file(path, e))?;
        Ok(Self {
            boot: BootId::from_uuid(&text)?,
            wall: Box::new(wall),
            kernel: Box::new(kernel::discipline),
            module: ModuleClock::default(),
            last: None,
        })
    }

    /// The security module's clock, which counts while the system's was never
    /// set: whoever has the module sets it.
    pub(crate) fn module(&self) -> ModuleClock {
        self.module.clone()
    }

    /// Now, by all of them, and how far the wall clock is to be believed:
    /// synchronised is what the kernel says is (adjtimex); before 2020 nothing
    /// has set the clock.
    pub fn now(&self) -> Moment {
        let since_boot_ms = since_boot_ms();
        let system = Timestamp::from((self.wall)());
        let (time, clock) = if system.as_millis() >= Y2020_MS {
            let quality = if (self.kernel)().synchronised {
                ClockQuality::Synchronised
            } else {
                ClockQuality::FreeRunning
            };
            (system, quality)
        } else if let Some(time) = self.module.at(since_boot_ms) {
            (time, ClockQuality::HardwareClock)
        } else {
            (system, ClockQuality::Unknown)
        };
        Moment {
            boot: self.boot,
            since_boot_ms,
            time,
            clock,
        }
    }

    /// A time anchor if the wall clock was set since the last record, or became
    /// known to be right; of the first record, if it is.
    pub(crate) fn anchor(&self, now: &Moment) -> Option<Report> {
        let right = now.clock == ClockQuality::Synchronised;
        let before = match self.last {
            None if right => None,
            None => return None,
            Some((before, clock)) => {
                let stepped = offset(now.time, now.since_boot_ms)?.abs_diff(before) >= STEP_MS;
                let became_right = right && clock != ClockQuality::Synchronised;
                if !stepped && !became_right {
                    return None;
                }
                let time = before.checked_add_unsigned(now.since_boot_ms)?;
                let time = Timestamp::from_millis(u64::try_from(time).unwrap_or(0));
                Some(ClockBefore {
                    time: time.unwrap_or(Timestamp::MAX),
                    clock,
                })
            }
        };
        let error_ms = right.then(|| {
            let us = (self.kernel)().error.as_micros();
            u64::try_from(us.div_ceil(1000)).unwrap_or(u64::MAX)
        });
        Some(Report::TimeAnchor(TimeAnchor { before, error_ms }))
    }

    /// A clock that is slewed drifts from its first offset: from here on, steps
    /// are measured against this moment.
    pub(crate) fn follow(&mut self, now: &Moment) {
        self.last = offset(now.time, now.since_boot_ms).map(|offset| (offset, now.clock));
    }

    #[cfg(test)]
    pub(crate) fn with_kernel(
        self,
        synchronised: impl Fn() -> Option<Duration> + Send + 'static,
    ) -> Self {
        let kernel = move || Discipline {
            synchronised: synchronised().is_some(),
            error: synchronised().unwrap_or_default(),
        };
        Self {
            kernel: Box::new(kernel),
            ..self
        }
    }

    #[cfg(test)]
    pub(crate) fn with_boot(self, boot: BootId) -> Self {
        Self { boot, ..self }
    }
}

impl fmt::Debug for Clock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Clock")
            .field("boot", &self.boot)
            .field("last", &self.last)
            .finish_non_exhaustive()
    }
}

/// By how many milliseconds times have to be put forward that were taken when the
/// system's clock was [`system_offset`] ahead of the uptime, to be by the clock of a
/// record of this moment. 0 if no clock was set in between.
pub(crate) fn shift(taken: i64, now: &Moment) -> i64 {
    match offset(now.time, now.since_boot_ms).map(|offset| offset.saturating_sub(taken)) {
        Some(shift) if shift.unsigned_abs() >= STEP_MS => shift,
        _ => 0,
    }
}

/// How far a moment's clock is ahead of its uptime, in milliseconds.
#[cfg(test)]
pub(crate) fn ahead(now: &Moment) -> i64 {
    offset(now.time, now.since_boot_ms).unwrap_or(0)
}

/// The system's clock minus uptime, in milliseconds.
pub(crate) fn system_offset() -> i64 {
    offset(SystemTime::now().into(), since_boot_ms()).unwrap_or(0)
}

/// What the system's clock says if it is so far ahead of the uptime.
pub(crate) fn time_of(offset: i64) -> SystemTime {
    let ms = offset.saturating_add_unsigned(since_boot_ms());
    SystemTime::UNIX_EPOCH + Duration::from_millis(ms.try_into().unwrap_or(0))
}

fn since_boot_ms() -> u64 {
    let up = clock_gettime(ClockId::Boottime);
    up.tv_sec.unsigned_abs().saturating_mul(1000) + up.tv_nsec.unsigned_abs() / 1_000_000
}

/// Wall clock minus uptime.
fn offset(time: Timestamp, since_boot_ms: u64) -> Option<i64> {
    i64::try_from(time.as_millis())
        .ok()?
        .checked_sub_unsigned(since_boot_ms)
}

/// A jump of the wall clock that is worth a record.
const STEP_MS: u64 = 1000;
/// Before 2020 nothing has set a clock.
pub(crate) const Y2020_MS: u64 = 1_577_836_800_000;
