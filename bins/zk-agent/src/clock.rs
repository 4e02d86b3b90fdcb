//! What time it is, by all the clocks there are.

use std::fmt;
use std::fs;
use std::path::Path;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, SystemTime};

use rustix::time::{ClockId, clock_gettime};
use zk_envelope::{
    BootId, ClockBefore, ClockQuality, DRIFT_PPM, Moment, Report, TimeAnchor, Timestamp,
};

use crate::Error;

use self::kernel::Discipline;

mod kernel;

/// The device's clocks: the system's, the monotonic one, and, where the system's
/// was never set, the one of the security module.
pub struct Clock {
    boot: BootId,
    wall: Box<dyn Fn() -> SystemTime + Send>,
    kernel: Box<dyn Fn() -> Discipline + Send>,
    slew: Box<dyn Fn() -> i64 + Send>,
    module: ModuleClock,
    /// The last record's: what a step is measured against.
    last: Option<Now>,
}

/// A moment, and what is known of its clocks.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Now {
    pub(crate) moment: Moment,
    /// By how many milliseconds its wall clock may be wrong, if the kernel vouches
    /// for it.
    error_ms: Option<u64>,
    /// By how many milliseconds the kernel has put its monotonic clock forward since
    /// the boot, by letting it run faster or slower.
    slewed_ms: i64,
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
            && let Some(offset) = offset(time, millis(since_boot()))
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
            slew: Box::new(slewed_ms),
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
        self.read().moment
    }

    /// As [`now`](Self::now), with what else is known.
    pub(crate) fn read(&self) -> Now {
        let (mut now, mut apart) = self.look();
        for _ in 0..3 {
            if apart.is_zero() {
                break;
            }
            let again = self.look();
            if again.1 < apart {
                (now, apart) = again;
            }
        }
        now
    }

    /// One look at the clocks, and how many whole milliseconds lie between the first
    /// and the last of them: then the one says less of the other.
    fn look(&self) -> (Now, Duration) {
        let begun = since_boot();
        // Asked before and after: whoever sets the clock in between, and vouches for
        // it, does not vouch for what it said before.
        let before = (self.kernel)();
        let system = Timestamp::from((self.wall)());
        let after = (self.kernel)();
        let slewed_ms = (self.slew)();
        let apart = since_boot().saturating_sub(begun).as_millis();
        let apart = u64::try_from(apart).unwrap_or(u64::MAX);

        let since_boot_ms = millis(begun);
        let right = before.synchronised && after.synchronised;
        let (time, clock) = if system.as_millis() >= Y2020_MS {
            let quality = match right {
                true => ClockQuality::Synchronised,
                false => ClockQuality::FreeRunning,
            };
            (system, quality)
        } else if let Some(time) = self.module.at(since_boot_ms) {
            (time, ClockQuality::HardwareClock)
        } else {
            (system, ClockQuality::Unknown)
        };
        let error_ms = (clock == ClockQuality::Synchronised).then(|| {
            let us = before.error.max(after.error).as_micros();
            let ms = u64::try_from(us.div_ceil(1000)).unwrap_or(u64::MAX);
            ms.saturating_add(apart)
        });
        let now = Now {
            moment: Moment {
                boot: self.boot,
                since_boot_ms,
                time,
                clock,
            },
            error_ms,
            slewed_ms,
        };
        (now, Duration::from_millis(apart))
    }

    /// A time anchor if the wall clock was set since the last record, or became
    /// known to be right; or if it is right and no anchor is `known` that says so.
    pub(crate) fn anchor(&self, now: &Now, known: bool) -> Option<Report> {
        let before = self.last.and_then(|last| self.before(&last, now));
        if before.is_none() && (known || now.error_ms.is_none()) {
            return None;
        }
        // What was before is dated by a clock that the kernel may have moved since
        // then, by more than any clock drifts.
        let last = self.last.as_ref();
        let (since, slewed) =
            last.map_or((0, 0), |last| (last.moment.since_boot_ms, last.slewed_ms));
        let drift = now
            .moment
            .since_boot_ms
            .abs_diff(since)
            .saturating_mul(DRIFT_PPM)
            / 1_000_000;
        let slewed = now.slewed_ms.abs_diff(slewed).saturating_sub(drift);
        let error_ms = now.error_ms.map(|error| error.saturating_add(slewed));
        Some(Report::TimeAnchor(TimeAnchor { before, error_ms }))
    }

    /// What the clock of the last record would say now, if it is not the one of now.
    fn before(&self, last: &Now, now: &Now) -> Option<ClockBefore> {
        let clock = last.moment.clock;
        let before = offset(last.moment.time, last.moment.since_boot_ms)?;
        let is = offset(now.moment.time, now.moment.since_boot_ms)?;
        let became_right = now.error_ms.is_some() && clock != ClockQuality::Synchronised;
        if is.abs_diff(before) < STEP_MS && !became_right {
            return None;
        }
        let time = before.checked_add_unsigned(now.moment.since_boot_ms)?;
        let time = Timestamp::from_millis(u64::try_from(time).unwrap_or(0));
        Some(ClockBefore {
            time: time.unwrap_or(Timestamp::MAX),
            clock,
        })
    }

    /// From here on, steps are measured against this moment.
    pub(crate) fn follow(&mut self, now: &Now) {
        self.last = Some(*now);
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
    pub(crate) fn with_slew(self, slew: impl Fn() -> i64 + Send + 'static) -> Self {
        let slew = Box::new(slew);
        Self { slew, ..self }
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
        Some(shift) if shift.unsigned_abs() >= SHIFT_MS => shift,
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
    let look = |_| {
        let (begun, time) = (since_boot(), SystemTime::now());
        let apart = since_boot().saturating_sub(begun);
        (apart, offset(time.into(), millis(begun)).unwrap_or(0))
    };
    // The thread may be put to sleep between one and the other.
    (0..3).map(look).min().map_or(0, |(_, offset)| offset)
}

/// What the system's clock says if it is so far ahead of the uptime.
pub(crate) fn time_of(offset: i64) -> SystemTime {
    let ms = offset.saturating_add_unsigned(millis(since_boot()));
    SystemTime::UNIX_EPOCH + Duration::from_millis(ms.try_into().unwrap_or(0))
}

fn since_boot() -> Duration {
    time_by(ClockId::Boottime)
}

/// What a kernel's clock that counts from the boot says.
fn time_by(clock: ClockId) -> Duration {
    let up = clock_gettime(clock);
    let ns = u32::try_from(up.tv_nsec).unwrap_or(0);
    Duration::new(up.tv_sec.unsigned_abs(), ns)
}

/// See [`Now::slewed_ms`]: there is one clock that the kernel never touches.
fn slewed_ms() -> i64 {
    let [slewed, raw] = [ClockId::Monotonic, ClockId::MonotonicRaw].map(time_by);
    let ahead = i64::try_from(millis(slewed)).unwrap_or(i64::MAX);
    ahead.saturating_sub_unsigned(millis(raw))
}

fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

/// Wall clock minus uptime.
fn offset(time: Timestamp, since_boot_ms: u64) -> Option<i64> {
    i64::try_from(time.as_millis())
        .ok()?
        .checked_sub_unsigned(since_boot_ms)
}

/// A jump of the wall clock that is worth a record.
const STEP_MS: u64 = 1000;
/// One that readings follow which wait in memory. Time sources set a clock that is off
/// by 128 ms (ntpd), 400 ms (timesyncd), a second (chrony); what is off by less they
/// slew, which takes longer than a reading waits.
const SHIFT_MS: u64 = 100;
/// Before 2020 nothing has set a clock.
pub(crate) const Y2020_MS: u64 = 1_577_836_800_000;
